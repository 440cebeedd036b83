# SPDX-License-Identifier: Apache-2.0
"""Role sessions: who may assume a role, how long a chained session may be, and that they end.

Source: STS API Reference, AssumeRole ("DurationSeconds", role chaining: one hour at most); IAM User
Guide, "Troubleshoot temporary credentials". Code by service: EC2 "Error codes" (RequestExpired),
S3 "Error responses" (ExpiredToken), "Common errors" of the others (ExpiredTokenException).
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime

from moto.iam.models import iam_backends

from pipeline.gameday.aws.call import Answer, Call, after, before
from pipeline.gameday.aws.conditions import conditions
from pipeline.gameday.aws.kms import effects

CHAINED_SECONDS = 3600
SERVICES = ("ec2", "ebs", "kms", "s3", "lambda", "sts", "events", "sqs", "logs", "ssm", "iam")
_EXPIRED = {
    "ec2": ("RequestExpired", "Request has expired."),
    "s3": ("ExpiredToken", "The provided token has expired."),
    "sts": ("ExpiredToken", "The security token included in the request is expired"),
}
_began: dict[str, float] = {}
_OTHERS = ("ExpiredTokenException", "The security token included in the request is expired")


def session_has_ended(call: Call) -> Answer | None:
    """Refuse what is signed with credentials that are too old."""
    seconds = conditions.settings.session_seconds
    if not seconds:
        return None
    began = _began.get(call.access_key)
    if began is None or conditions.now() < began + seconds:
        return None
    return call.error(400, *_EXPIRED.get(call.service, _OTHERS))


for _service in SERVICES:
    before(_service, "*")(session_has_ended)


@before("sts", "AssumeRole")
def chained_sessions_are_short(call: Call) -> Answer | None:
    """A role that assumes a role gets one hour at most."""
    asked = int(call.parameters.get("DurationSeconds", CHAINED_SECONDS))
    if call.caller.role is None or asked <= CHAINED_SECONDS:
        return None
    return call.error(
        400, "ValidationError",
        "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role"
        " chaining",
    )  # fmt: skip


@before("sts", "AssumeRole")
def trusted_only(call: Call) -> Answer | None:
    """A role that exists in IAM is assumed by whom its trust policy names, with its ExternalId.

    A role that nobody made is anybody's, and who has no role yet may assume any: so tests begin.
    """
    arn = str(call.parameters.get("RoleArn", ""))
    parts = arn.split(":")
    if call.caller.role is None or len(parts) < 6:
        return None
    roles = iam_backends[parts[4]]["aws"].roles.values()
    role = next((r for r in roles if r.arn == arn), None)
    facts = {"aws:principalarn": call.caller.role, "aws:principalaccount": call.account}
    if "ExternalId" in call.parameters:
        facts["sts:externalid"] = call.parameters["ExternalId"]
    if role is None:
        return None
    policy = role.assume_role_policy_document
    text = policy if isinstance(policy, str) else json.dumps(policy)
    if effects(text, "sts:AssumeRole", call.caller, facts) == {"Allow"}:
        return None
    return call.error(
        403, "AccessDenied",
        f"User: {call.caller.arn} is not authorized to perform: sts:AssumeRole on resource: {arn}",
    )  # fmt: skip


@after("sts", "AssumeRole")
def sessions_are_dated(_call: Call, answer: Answer) -> Answer:
    """Know when a session began, and tell the client when it ends."""
    found = re.search(rb"<AccessKeyId>([^<]+)</AccessKeyId>", answer.body)
    if answer.status != 200 or found is None:
        return answer
    now = conditions.now()
    _began[found[1].decode()] = now
    if not conditions.settings.session_seconds:
        return answer
    ends = datetime.fromtimestamp(now + conditions.settings.session_seconds, UTC)
    stamp = f"<Expiration>{ends:%Y-%m-%dT%H:%M:%S.%fZ}</Expiration>".encode()
    body = re.sub(rb"<Expiration>[^<]*</Expiration>", stamp, answer.body)
    return Answer(200, answer.headers | {"content-length": str(len(body))}, body)


def began(access_key: str) -> float | None:
    """When a session's credentials were issued, seconds since the epoch."""
    return _began.get(access_key)


def reset() -> None:
    """Forget the sessions of an earlier stand-in."""
    _began.clear()
