# SPDX-License-Identifier: Apache-2.0
"""CloudTrail's event history: calls of EC2, and of roles assumed, looked up a while later.

moto has no LookupEvents. What volumes RunInstances made stands in no event: they are attached after
the answer.

Source: CloudTrail API Reference, LookupEvents ("last 90 days", one lookup attribute, MaxResults 1
to 50, an event is seen within minutes); CloudTrail User Guide, "Record contents".
"""

from __future__ import annotations

import base64
import json
import re
import uuid
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from xml.etree import ElementTree

from moto.cloudtrail.responses import CloudTrailResponse
from moto.core.exceptions import JsonRESTError

from pipeline.gameday.aws.call import Answer, Call, after
from pipeline.gameday.aws.conditions import conditions
from pipeline.gameday.aws.identities import session_of, user_of

DAYS = 90
PAGE = 50
_KINDS = {"i": "Instance", "vol": "Volume", "snap": "Snapshot", "ami": "Ami"}
_ID = re.compile(r"(i|vol|snap|ami)-[0-9a-f]{8,17}")
_READS = ("Describe", "Get", "List", "Search")
_NOT_SAID = {"RunInstances": "blockDeviceMapping"}

_events: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)


def reset() -> None:
    """Forget all events."""
    _events.clear()


@after("sts", "AssumeRole")
@after("ec2", "*")
def calls_are_recorded(call: Call, answer: Answer) -> Answer:
    """One event for each call, refused ones too."""
    reading = call.operation.startswith(_READS)
    said = {} if reading and answer.status == 200 else _elements(answer.body)
    error = (said.get("errors") or said).get("error") if answer.status >= 400 else None
    if call.service == "sts":
        said = _given(said)
    if error is None and (left_out := _NOT_SAID.get(call.operation)):
        _drop(said, left_out)
    asked = _parameters(call.parameters)
    now = conditions.now()
    moment = f"{datetime.fromtimestamp(now, UTC):%Y-%m-%dT%H:%M:%SZ}"
    event = {
        "eventVersion": "1.11", "eventID": str(uuid.uuid4()), "eventTime": moment,
        "eventSource": f"{call.service}.amazonaws.com", "eventName": call.operation,
        "awsRegion": call.region, "readOnly": reading,
        "sourceIPAddress": call.headers.get("X-Forwarded-For", "203.0.113.7"),
        "userIdentity": _who(call),
        "requestParameters": asked, "responseElements": None if error or reading else said,
        "recipientAccountId": call.account, "eventCategory": "Management",
    }  # fmt: skip
    if error:
        error = error[0] if isinstance(error, list) else error
        error = {str(k).lower(): v for k, v in error.items()}
        event |= {"errorCode": error.get("code", ""), "errorMessage": error.get("message", "")}
    names = sorted(set(_named([asked, said])))
    _events[call.account, call.region].append({
        "EventId": event["eventID"], "EventName": call.operation, "EventTime": now,
        "EventSource": event["eventSource"], "ReadOnly": str(reading).lower(),
        "Username": _who(call).get("userName") or call.caller.arn.rpartition("/")[2],
        "AccessKeyId": call.access_key,
        "Resources": [{"ResourceType": f"AWS::EC2::{_KINDS[n.partition('-')[0]]}",
                       "ResourceName": n} for n in names],
        "CloudTrailEvent": json.dumps(event),
    })  # fmt: skip
    return answer


def _who(call: Call) -> dict[str, str]:
    """The element userIdentity."""
    common = {"accountId": call.account, "accessKeyId": call.access_key}
    if (session := session_of(call)) is not None:
        return common | {
            "type": "AssumedRole", "arn": session.arn, "principalId": session.user_id
        }  # fmt: skip
    if (user := user_of(call)) is not None:
        return common | {"type": "IAMUser", "arn": user.arn, "principalId": user.id,
                         "userName": user.name}  # fmt: skip
    return common | {"type": "Root", "arn": call.caller.arn, "principalId": call.account}


def _given(said: dict[str, Any]) -> dict[str, Any]:
    """What AssumeRole gave, without the secret."""
    result = said.get("assumeRoleResult") or {}
    credentials = result.get("Credentials") or {}
    who = result.get("AssumedRoleUser") or {}
    return {
        "credentials": {"accessKeyId": credentials.get("AccessKeyId", ""),
                        "expiration": credentials.get("Expiration", "")},
        "assumedRoleUser": {"assumedRoleId": who.get("AssumedRoleId", ""),
                            "arn": who.get("Arn", "")},
    } if result else {}  # fmt: skip


def _named(said: Any) -> Iterator[str]:
    """Ids that stand by themselves: not in descriptions."""
    if isinstance(said, str):
        if _ID.fullmatch(said):
            yield said
        return
    for inner in (
        said.values() if isinstance(said, dict) else said if isinstance(said, list) else ()
    ):
        yield from _named(inner)


def _parameters(given: dict[str, Any]) -> dict[str, Any]:
    """As CloudTrail writes EC2's: lists are sets of items."""
    asked: dict[str, Any] = {}
    for name, value in given.items():
        if name in ("Action", "Version"):
            continue
        key = name[:1].lower() + name[1:]
        plain, _, number = key.partition(".")
        if number.isdigit():
            items = asked.setdefault(f"{plain}Set", {"items": []})["items"]
            items.append({plain: value})
        else:
            asked[key] = value
    return asked


def _elements(body: bytes) -> dict[str, Any]:
    def read(node: ElementTree.Element) -> Any:
        children = list(node)
        if not children:
            return node.text or ""
        if all(_name(c) == "item" for c in children):
            return {"items": [read(c) for c in children]}
        return {_name(c): read(c) for c in children}

    found = read(ElementTree.fromstring(body)) if body.strip() else {}  # noqa: S314 (moto's own)
    lowered = (
        {k[:1].lower() + k[1:]: v for k, v in found.items()} if isinstance(found, dict) else {}
    )
    errors = lowered.get("errors")
    if isinstance(errors, dict):
        inner = errors.get("Error", {})
        lowered["errors"] = {"error": {k.lower(): v for k, v in inner.items()}}
    return lowered


def _name(node: ElementTree.Element) -> str:
    return node.tag.rpartition("}")[2]


def _drop(said: Any, key: str) -> None:
    if isinstance(said, dict):
        said.pop(key, None)
    for inner in (
        said.values() if isinstance(said, dict) else said if isinstance(said, list) else ()
    ):
        _drop(inner, key)


def _refuse(code: str, message: str) -> JsonRESTError:
    return JsonRESTError(code, message)


def lookup_events(self: CloudTrailResponse) -> str:
    """LookupEvents: newest first, by one attribute at most, in pages."""
    get = self._get_param
    attributes, size = get("LookupAttributes") or [], get("MaxResults") or PAGE
    if len(attributes) > 1:
        raise _refuse("InvalidLookupAttributesException", "One lookup attribute at most.")
    if not 1 <= int(size) <= PAGE:
        raise _refuse("InvalidMaxResultsException", f"MaxResults is 1 to {PAGE}.")
    now = conditions.now()
    begin = max(float(get("StartTime") or 0), now - DAYS * 86_400)
    end = min(float(get("EndTime") or now), now - conditions.settings.trail_seconds)
    found = [
        e for e in reversed(_events[self.current_account, self.region])
        if begin <= e["EventTime"] <= end and all(_matches(e, a) for a in attributes)
    ]  # fmt: skip
    mark = json.dumps([attributes, get("StartTime"), get("EndTime")])
    start = 0
    if token := get("NextToken"):
        try:
            said, start = json.loads(base64.b64decode(token, validate=True))
        except ValueError:
            said = ""
        if said != mark:
            raise _refuse("InvalidNextTokenException", "The token is not of this query.")
    stop = start + int(size)
    answer: dict[str, Any] = {"Events": found[start:stop]}
    if stop < len(found):
        answer["NextToken"] = base64.b64encode(json.dumps([mark, stop]).encode()).decode()
    return json.dumps(answer)


def _matches(event: dict[str, Any], asked: dict[str, str]) -> bool:
    key, value = asked["AttributeKey"], asked["AttributeValue"]
    if key == "ResourceName":
        return any(r["ResourceName"] == value for r in event["Resources"])
    if key == "ResourceType":
        return any(r["ResourceType"] == value for r in event["Resources"])
    return str(event.get(key, "")) == value


def install() -> None:
    """Let moto answer it."""
    CloudTrailResponse.lookup_events = lookup_events  # type: ignore[attr-defined]
