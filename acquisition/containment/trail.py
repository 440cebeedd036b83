# SPDX-License-Identifier: Apache-2.0
"""As whom an instance acted, as CloudTrail has it: roles that its sessions assumed, users' keys.

A session of the instance is named after it, so its calls are looked up by name; so are those of
each role that it assumed, and of those that they assumed. A user's key is known by the address that
it was used from. CloudTrail tells minutes late, keeps 90 days, and answers two requests a second.

Source: CloudTrail API Reference, LookupEvents; CloudTrail User Guide, "userIdentity element"; IAM
User Guide, "Roles terms and concepts" (role chaining), "IAM identifiers" (unique ids).
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from evidence_store.aws import Failure, failures
from evidence_store.errors import Error
from evidence_store.model import clean

PAGES = 10  # of 50 events, of one question in one Region
_SESSIONS = 20  # that are followed
_KEYS = 10
_ROLE = re.compile(r"arn:aws[a-z-]*:iam::([0-9]{12}):role/(?:[\x21-\x7e]+/)?([\w+=,.@-]{1,64})",
                   re.ASCII)  # fmt: skip
_USER_ID = re.compile(r"AROA[A-Z0-9]{8,60}:([\w+=,.@-]{2,64})", re.ASCII)
_KEY = re.compile(r"AKIA[A-Z0-9]{12,60}")
_USER = re.compile(r"[\w+=,.@-]{1,64}", re.ASCII)
_HARMLESS = {"GetCallerIdentity"}  # no policy forbids it


@dataclass(frozen=True, order=True)
class Session:
    """A session of a role: `user_id` is its `aws:userid`, role id and session name."""

    account: str
    role: str
    user_id: str


@dataclass(frozen=True, order=True)
class Key:
    """A user's access key."""

    account: str
    user: str
    key: str


@dataclass(frozen=True)
class Acted:
    """As whom an instance acted.

    Attributes:
        sessions: that its sessions got, and theirs.
        keys: of users, used from its addresses.
        calls: (moment, call) of its own sessions that succeeded, the latest first.
        gaps: what was not seen.
    """

    sessions: tuple[Session, ...] = ()
    keys: tuple[Key, ...] = ()
    calls: tuple[tuple[datetime, str], ...] = ()
    gaps: tuple[str, ...] = ()


@dataclass
class Trail:
    """Follows an instance through the event history.

    Attributes:
        client: of CloudTrail, for an account and Region.
        account: of the instance.
        regions: to look in; of STS and IAM events some are in us-east-1 only.
        now: the time, seconds since the epoch.
        seconds: after so long nothing more is asked.
        sleep, clock: between questions; measures that.
    """

    client: Callable[[str, str], Any]
    account: str
    regions: Sequence[str]
    now: Callable[[], float] = time.time
    seconds: float = 15.0
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    _until: float = field(default=0.0, init=False)
    _since: datetime = field(default=datetime.min.replace(tzinfo=UTC), init=False)
    _gaps: list[str] = field(default_factory=list, init=False)
    _asked: int = field(default=0, init=False)

    def follow(self, instance: str, hours: float, addresses: Sequence[str] = ()) -> Acted:
        """Return as whom an instance acted in the last `hours`. Raises nothing of AWS's.

        Args:
            instance: its id.
            hours: how far back.
            addresses: its own: keys used from there are its.
        """
        self._until = self.clock() + self.seconds
        self._since = datetime.fromtimestamp(self.now(), UTC) - timedelta(hours=hours)
        self._gaps, self._asked = [], 0
        found: dict[Session, None] = {}
        calls: list[tuple[datetime, str]] = []
        for event in self._events(self.account, instance):
            if str(_dig(event, "userIdentity", "principalId")).endswith(f":{instance}"):
                self._take(found, event)
                if not event.get("errorCode") and event.get("eventName") not in _HARMLESS:
                    calls.append((_moment(event), clean(event.get("eventName", "?"), 60)))
        asked = 0
        while asked < len(found):
            session = list(found)[asked]
            asked += 1
            for event in self._events(session.account, session.user_id.partition(":")[2]):
                if _dig(event, "userIdentity", "principalId") == session.user_id:
                    self._take(found, event)
        keys = self._keys(set(addresses)) if addresses else ()
        return Acted(tuple(found), tuple(keys), tuple(sorted(calls, reverse=True)),
                     tuple(dict.fromkeys(self._gaps)))  # fmt: skip

    def _take(self, found: dict[Session, None], event: Mapping[str, Any]) -> None:
        """Note the session that an AssumeRole gave."""
        if event.get("eventName") != "AssumeRole" or event.get("errorCode"):
            return
        role = _ROLE.fullmatch(str(_dig(event, "requestParameters", "roleArn")))
        got = str(_dig(event, "responseElements", "assumedRoleUser", "assumedRoleId"))
        if role is None or _USER_ID.fullmatch(got) is None:
            self._gaps.append(
                f"event {clean(event.get('eventID', '?'), 40)}: an AssumeRole that does not say "
                "what it gave"
            )
        elif len(found) >= _SESSIONS:
            self._gaps.append(f"more than {_SESSIONS} sessions were assumed; the others go on")
        else:
            found.setdefault(Session(role[1], role[2], got))

    def _keys(self, addresses: set[str]) -> list[Key]:
        found: dict[Key, None] = {}
        for event in self._events(self.account, None):
            who = event.get("userIdentity")
            if event.get("sourceIPAddress") not in addresses or not isinstance(who, dict):
                continue
            key = Key(str(who.get("accountId")), str(who.get("userName")),
                      str(who.get("accessKeyId")))  # fmt: skip
            if who.get("type") == "Root" and _KEY.fullmatch(key.key):
                self._gaps.append(
                    f"the root user's key {key.key} was used from the instance: only the root user "
                    "can deactivate it"
                )
            elif who.get("type") == "IAMUser" and _KEY.fullmatch(key.key):
                if not (_USER.fullmatch(key.user) and re.fullmatch("[0-9]{12}", key.account)):
                    self._gaps.append(f"the key {key.key} was used, and its user is not named")
                elif len(found) >= _KEYS:
                    self._gaps.append(f"more than {_KEYS} users' keys were used from the instance")
                else:
                    found.setdefault(key)
        return list(found)

    def _events(self, account: str, name: str | None) -> Iterator[Mapping[str, Any]]:
        """Events since then, the newest first: of sessions of this name, or all."""
        what = f"calls of {name}" if name else "who called from its addresses"
        asked: dict[str, Any] = {"StartTime": self._since, "MaxResults": 50}
        if name:
            asked["LookupAttributes"] = [{"AttributeKey": "Username", "AttributeValue": name}]
        for region in dict.fromkeys(self.regions):
            try:
                yield from self._pages(account, region, asked, what)
            except failures() as e:
                failure = Failure(e)
                self._gaps.append(
                    f"cannot look up {what} in {account} {region}: {clean(failure.message, 200)} "
                    f"({clean(failure.code, 60)}); the role needs cloudtrail:LookupEvents"
                )
            except Error as e:
                self._gaps.append(f"cannot look up {what} in {account}: {clean(str(e), 200)}")

    def _pages(
        self, account: str, region: str, asked: Mapping[str, Any], what: str
    ) -> Iterator[Mapping[str, Any]]:
        client, more = self.client(account, region), dict[str, Any]()
        for _ in range(PAGES):
            if self.clock() > self._until:
                break
            if self._asked:
                self.sleep(0.5)
            self._asked += 1
            page = client.lookup_events(**asked, **more)
            for said in page.get("Events", ()):
                try:
                    event = json.loads(said["CloudTrailEvent"])
                except (KeyError, ValueError):
                    event = None
                if isinstance(event, dict):
                    yield event
                else:
                    self._gaps.append(f"{what}: an event cannot be read")
            if not page.get("NextToken"):
                return
            more = {"NextToken": page["NextToken"]}
        self._gaps.append(f"{what} in {region}: only the newest events were read")


def _dig(event: Any, *names: str) -> Any:
    for name in names:
        event = event.get(name) if isinstance(event, dict) else None
    return event


def _moment(event: Mapping[str, Any]) -> datetime:
    try:
        return datetime.fromisoformat(str(event.get("eventTime")).replace("Z", "+00:00"))
    except ValueError:
        return datetime.fromtimestamp(0, UTC)
