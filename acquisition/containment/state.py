# SPDX-License-Identifier: Apache-2.0
"""What an instance was, what shall change, what may be undone, what is proved. Pure.

Source: EC2 User Guide ("Security groups", "Connection tracking", "Instance metadata"); EC2 Auto
Scaling User Guide ("Health checks for instances"); IAM User Guide ("IAM condition keys").
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from typing import Literal

from pydantic import JsonValue

GROUP_NAME = "impound-isolation"
NEW_GROUP = "(the new isolation group)"
# Without any egress rule CloudFormation adds one that allows all; so there is always this one.
NO_EGRESS = "egress -1 all 127.0.0.1/32"

ACL_RULES = 20  # each way, the default quota; the rule that denies the rest counts

LONG = 1000  # characters of a policy that a ledger has room for
TOKEN_MARGIN = timedelta(minutes=15)  # a key still issues tokens until its end is known everywhere

Phase = Literal["protect", "cut", "sessions", "after"]
Restored = Literal["exact", "new id", "cannot"]

# What a later association gives another id, or a group another capacity.
ANEW = frozenset({"address", "profile", "membership"})
# What is there without the instance.
OUTLIVES = frozenset({"acl-entry", "session-deny", "user-deny", "access-key", "isolation-group"})
# Parts of a value that say nothing of whether it is the same.
_INCIDENTAL = frozenset({"association", "protected"})


@dataclass(frozen=True, order=True)
class Attribute:
    """One thing that can be read and written.

    | kind | resource | value |
    |---|---|---|
    | termination-protection, stop-protection, scale-in-protection | instance | bool |
    | shutdown-behavior | instance | stop, terminate |
    | delete-on-termination | instance, device | bool |
    | membership | instance | {group, lifecycle, protected} or None |
    | isolation-group | VPC | {id, rules} or None; of many rules the first twenty |
    | groups | interface | list of group ids, sorted |
    | address | allocation | {interface, private, association} or None |
    | acl-entry | ACL, egress or ingress, number | {cidr, action, protocol} or None |
    | session-deny | role | policy document as text, names in order, or None |
    | user-deny | user | the same |
    | access-key | user, key | Active, Inactive, or None |
    | profile | instance | {arn, association} or None |
    """

    kind: str
    resource: str

    @classmethod
    def parse(cls, text: str) -> Attribute:
        """Read what `str` writes."""
        kind, _, resource = text.partition(" ")
        return cls(kind, resource)

    def __str__(self) -> str:
        return f"{self.kind} {self.resource}"


@dataclass(frozen=True)
class State:
    """An instance as observed.

    Attributes:
        instance: its id.
        phase: `running` and so on; "" if it could not be seen.
        attributes: what could be read.
        interfaces: id -> VPC of every interface that is its own.
        residual: risks and holes in words: what no group filters, who may still end it.
        gaps: what could not be seen.
        managed_by: the Auto Scaling group that its tag names, or "".
        roles: those of its profile.
        addresses: interface -> its private IPv4 addresses.
        holes: interfaces and addresses that isolation does not close, in words.
    """

    instance: str
    phase: str
    attributes: Mapping[Attribute, JsonValue]
    interfaces: Mapping[str, str]
    residual: tuple[str, ...] = ()
    gaps: tuple[str, ...] = ()
    managed_by: str = ""
    roles: tuple[str, ...] = ()
    addresses: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    holes: tuple[str, ...] = ()

    def of(self, kind: str) -> Iterator[tuple[Attribute, JsonValue]]:
        """The attributes of one kind, in order."""
        return ((a, v) for a, v in sorted(self.attributes.items()) if a.kind == kind)


@dataclass(frozen=True)
class Wanted:
    """What isolation shall look like.

    Attributes:
        sources: networks that may still come in, as CIDR.
        ports: TCP ports that they reach.
        peers: addresses to cut at once by network ACL, as CIDR.
        sessions: role -> `aws:userid` of sessions that the instance's own ones assumed.
        wide: the moment (ISO, UTC) before which all sessions of its own roles were issued that
            are to end, whosever they are, or "".
        keys_end: the same moment for sessions of users whose keys it used.
        given: denies that this case has written.
    """

    sources: tuple[str, ...] = ()
    ports: tuple[int, ...] = (22,)
    peers: tuple[str, ...] = ()
    sessions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    wide: str = ""
    keys_end: str = ""
    given: Mapping[Attribute, JsonValue] = field(default_factory=dict)

    @property
    def rules(self) -> list[str]:
        """The rules of the isolation group."""
        inward = [f"ingress tcp {p} {s}" for p in self.ports for s in self.sources]
        return sorted([NO_EGRESS, *inward])


@dataclass(frozen=True)
class Change:
    """One attribute from one value to another."""

    attribute: Attribute
    before: JsonValue
    after: JsonValue
    phase: Phase

    def document(self) -> dict[str, JsonValue]:
        """As JSON."""
        return {"attribute": str(self.attribute), "before": self.before, "after": self.after,
                "phase": self.phase}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """Changes in the order in which they are made.

    `gaps`: what is wanted and cannot be planned; `breaks`: others that it breaks.
    """

    changes: tuple[Change, ...]
    gaps: tuple[str, ...] = ()
    breaks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What re-reading and packets proved.

    Attributes:
        verdict: re-reading alone gives no more than `groups applied, not probed`.
        left: what is open, or the exceptions.
        unfiltered: what no group filters.
        holes: as of the state that was read.
        not_probed: why packets proved nothing.
    """

    verdict: Literal["isolated", "isolated except", "groups applied, not probed", "not isolated"]
    left: tuple[str, ...] = ()
    unfiltered: tuple[str, ...] = ()
    holes: tuple[str, ...] = ()
    not_probed: str = ""


@dataclass(frozen=True)
class Undone:
    """What became of one attribute at release."""

    attribute: Attribute
    restored: Restored
    note: str = ""

    def document(self) -> dict[str, JsonValue]:
        """As JSON."""
        return {"attribute": str(self.attribute), "restored": self.restored, "note": self.note}


def same(one: JsonValue, other: JsonValue) -> bool:
    """Whether two values of an attribute mean the same; ids of associations do not count.

    >>> same({"arn": "a", "association": "1"}, {"arn": "a", "association": "2"})
    True
    """
    return _essence(one) == _essence(other)


def _essence(value: JsonValue) -> JsonValue:
    if isinstance(value, dict):
        return {k: v for k, v in value.items() if k not in _INCIDENTAL}
    return value


@dataclass(frozen=True)
class Deny:
    """A policy that denies all.

    Attributes:
        users: to sessions whose `aws:userid` is like one of these, old and new.
        before: to sessions issued before this moment (ISO, UTC), or "".
    """

    users: tuple[str, ...] = ()
    before: str = ""

    @property
    def text(self) -> str:
        """As a policy document."""
        conditions: list[tuple[str, JsonValue]] = []
        if self.users:
            like: JsonValue = self.users[0] if len(self.users) == 1 else list(self.users)
            conditions.append(("ImpoundIsolation", {"StringLike": {"aws:userid": like}}))
        if self.before:
            conditions.append(
                ("ImpoundTokens", {"DateLessThan": {"aws:TokenIssueTime": self.before}})
            )
        return policy_text({"Version": "2012-10-17", "Statement": [
            {"Sid": sid, "Effect": "Deny", "Action": "*", "Resource": "*", "Condition": condition}
            for sid, condition in conditions
        ]})  # fmt: skip

    @classmethod
    def parse(cls, text: JsonValue) -> Deny:
        """Return what a policy of ours says; nothing of one that is not."""
        users: list[str] = []
        before = ""
        try:
            for statement in json.loads(str(text))["Statement"]:
                for operator, test in statement["Condition"].items():
                    [value] = test.values()
                    if operator == "StringLike":
                        users += [value] if isinstance(value, str) else value
                    else:
                        before = value
            found = cls(tuple(users), before)
        except (ValueError, KeyError, TypeError, AttributeError):
            return cls()
        return found if found.text == text else cls()


def session_deny(instance: str) -> str:
    """Return a policy that denies all to sessions of one instance, old and new."""
    return Deny((f"*:{instance}",)).text


def policy_text(document: object) -> str:
    """Return a policy in one form, in ASCII: what somebody else put there must fit a ledger."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def is_member(value: JsonValue) -> bool:
    """Whether a membership makes Auto Scaling check and end the instance."""
    return isinstance(value, dict) and value.get("lifecycle") != "Standby"


def plan(state: State, wanted: Wanted) -> Plan:
    """Return what has to change, given what is; nothing if all is as wanted."""
    gaps: list[str] = []
    changes = [*_protect(state), *_cut(state, wanted, gaps), *_sessions(state, wanted, gaps)]
    return Plan(tuple(c for c in changes if not same(c.before, c.after)), tuple(gaps))


_PROTECTED: tuple[tuple[str, JsonValue], ...] = (
    ("termination-protection", True),
    ("stop-protection", True),
    ("shutdown-behavior", "stop"),
    ("delete-on-termination", False),
    ("scale-in-protection", True),
)


def _protect(state: State) -> Iterator[Change]:
    for kind, after in _PROTECTED:
        for attribute, before in state.of(kind):
            yield Change(attribute, before, after, "protect")
    for attribute, before in state.of("membership"):
        if is_member(before):
            yield Change(attribute, before, None, "protect")


def _cut(state: State, wanted: Wanted, gaps: list[str]) -> Iterator[Change]:
    ids: dict[str, str] = {}
    for attribute, before in state.of("isolation-group"):
        known = str(before["id"]) if isinstance(before, dict) else NEW_GROUP
        ids[attribute.resource] = known
        yield Change(attribute, before, {"id": known, "rules": list[JsonValue](wanted.rules)},
                     "cut")  # fmt: skip
    for attribute, before in state.of("groups"):
        vpc = state.interfaces.get(attribute.resource, "")
        if vpc in ids:
            yield Change(attribute, before, [ids[vpc]], "cut")
        else:
            gaps.append(f"the isolation group of {vpc} is not known, so {attribute.resource} stays")
    for attribute, before in state.of("address"):
        yield Change(attribute, before, None, "cut")
    yield from _acl_entries(state, wanted, gaps)


def _acl_entries(state: State, wanted: Wanted, gaps: list[str]) -> Iterator[Change]:
    """Deny entries before the first that allows, both ways, for those peers only."""
    entries: dict[tuple[str, str], dict[int, JsonValue]] = {}
    for attribute, value in state.of("acl-entry"):
        acl, way, rule = attribute.resource.split(" ")
        entries.setdefault((acl, way), {})[int(rule)] = value
    for (acl, way), held in entries.items():
        allowed = [n for n, v in held.items() if isinstance(v, dict) and v["action"] == "allow"]
        first = min(allowed, default=32767)
        free = (n for n in range(1, first) if n not in held)
        room, left_out = ACL_RULES - len(held), list[str]()
        for peer in dict.fromkeys(wanted.peers):
            entry: JsonValue = {"cidr": peer, "action": "deny", "protocol": "-1"}
            if any(same(v, entry) for n, v in held.items() if n < first):
                continue
            number = next(free, None) if room > 0 else None
            if number is None:
                left_out.append(peer)
                continue
            room -= 1
            yield Change(Attribute("acl-entry", f"{acl} {way} {number}"), None, entry, "cut")
        if left_out:
            gaps.append(
                f"{acl} has no free {way} rule before rule {first}, of {ACL_RULES} in all, to cut "
                f"{some(left_out)}"
            )


def _sessions(state: State, wanted: Wanted, gaps: list[str]) -> Iterator[Change]:
    for attribute, before in state.of("session-deny"):
        deny = _role_deny(state, wanted, attribute, before, gaps)
        yield Change(attribute, before, deny.text, "sessions")
    for attribute, before in state.of("access-key"):
        if before is not None:
            yield Change(attribute, before, "Inactive", "sessions")
    for attribute, before in state.of("user-deny"):
        held = Deny.parse(before).before or Deny.parse(wanted.given.get(attribute)).before
        if held or wanted.keys_end:
            yield Change(attribute, before, Deny(before=held or wanted.keys_end).text, "sessions")
    for attribute, before in state.of("profile"):
        yield Change(attribute, before, None, "sessions")


def _role_deny(
    state: State, wanted: Wanted, attribute: Attribute, before: JsonValue, gaps: list[str]
) -> Deny:
    """What is denied already, the instance's own sessions, those that they assumed: all of it."""
    role, own = attribute.resource, f"*:{state.instance}"
    given, held = Deny.parse(wanted.given.get(attribute)), Deny.parse(before)
    found = wanted.sessions.get(role, ())
    users = list(dict.fromkeys((*given.users, *held.users)))
    if own not in users and (role in state.roles or not (users or found)):
        users.insert(0, own)
    moment = held.before or given.before or (wanted.wide if own in users else "")
    left_out = []
    for user in found:
        if user not in users and len(Deny((*users, user), moment or _A_MOMENT).text) <= LONG:
            users.append(user)
        elif user not in users:
            left_out.append(user)
    if left_out:
        gaps.append(
            f"role {role}: the deny has no room for {len(left_out)} more sessions that the instance"
            f" assumed: {some(left_out)}; revoke the role's sessions by hand"
        )
    return Deny(tuple(users), moment)


_A_MOMENT = "2026-01-01T00:00:00Z"


def token_end(now: datetime) -> str:
    """Return the moment up to which tokens are revoked when that is asked for now, in UTC."""
    return f"{(now + TOKEN_MARGIN).astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def applied(state: State, changes: Iterable[Change]) -> State:
    """Return the state after these changes."""
    return replace(
        state, attributes={**state.attributes, **{c.attribute: c.after for c in changes}}
    )


def some(names: Sequence[str], most: int = 5) -> str:
    """Name a few of many.

    >>> some(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def peer_cidr(text: str) -> str:
    """Return an address or network as CIDR. Raises: ValueError.

    >>> peer_cidr("192.0.2.1")
    '192.0.2.1/32'
    """
    return str(ip_network(text))


def verdict(now: State, wanted: Wanted, wrong: Iterable[str] = ()) -> Verdict:
    """Return what re-reading proves.

    Args:
        now: observed again after the last change.
        wanted: what isolation looks like.
        wrong: attributes that were changed and do not read so.
    """
    left = list(wrong)
    if now.phase in ("terminated", "shutting-down"):
        left.append(f"{now.instance} is {now.phase}")
    isolated = {a.resource: v for a, v in now.of("isolation-group")}
    groups = {a.resource: v for a, v in now.of("groups")}
    if not now.interfaces:
        left.append(f"no interface of {now.instance} could be seen")
    for interface, vpc in sorted(now.interfaces.items()):
        group = isolated.get(vpc)
        if not isinstance(group, dict):
            left.append(f"{interface}: {vpc} has no isolation group")
        elif groups.get(interface) != [group["id"]]:
            left.append(f"{interface}: in {groups.get(interface)}")
        elif group["rules"] != wanted.rules:
            left.append(f"{interface}: the rules of {group['id']} are not those wanted")
    left += [f"address {a.resource} is still associated"
             for a, v in now.of("address") if v is not None]  # fmt: skip
    return Verdict(
        "not isolated" if left else "groups applied, not probed", tuple(dict.fromkeys(left)),
        (*_NEVER_FILTERED, *now.residual, *now.holes), now.holes,
    )  # fmt: skip


_NEVER_FILTERED = (
    "security groups do not filter the VPC's DNS resolver, the instance metadata service, the time "
    "service and DHCP",
    "flows that were tracked before go on until they are idle for long enough (up to five days); "
    "those through NAT gateways, Network Load Balancers and endpoints are always tracked",
    "flow logs and CloudTrail tell minutes late: what isolate finds when it is run again in a "
    "quarter of an hour is cut then",
)


def undo(before: JsonValue, after: JsonValue, now: JsonValue) -> Literal["as it was", "ours",
                                                                        "changed"]:  # fmt: skip
    """Say whether a change may be undone: only what still has the value that we gave it."""
    if same(now, before):
        return "as it was"
    return "ours" if same(now, after) else "changed"


@dataclass
class History:
    """What the ledger says of the changes to one instance that are not undone yet.

    `made`: attribute -> (value before the first change, value after the last one), in the order in
    which they were first made. `open`: intents without an outcome.
    """

    made: dict[Attribute, tuple[JsonValue, JsonValue]] = field(default_factory=dict)
    open: dict[Attribute, tuple[JsonValue, JsonValue]] = field(default_factory=dict)

    def began(self, attribute: Attribute, before: JsonValue, after: JsonValue) -> None:
        """An intent was recorded."""
        self.open[attribute] = before, after

    def changed(self, attribute: Attribute, after: JsonValue) -> None:
        """Its outcome was recorded. What it was before the first change stands."""
        before, _ = self.made.get(attribute) or self.open.get(attribute) or (None, None)
        self.open.pop(attribute, None)
        self.made[attribute] = before, after

    def failed(self, attribute: Attribute) -> None:
        """It was not done."""
        self.open.pop(attribute, None)

    def restored(self, attribute: Attribute) -> None:
        """It was undone, or given up."""
        self.open.pop(attribute, None)
        self.made.pop(attribute, None)

    def to_undo(self) -> list[tuple[Attribute, JsonValue, JsonValue]]:
        """(attribute, before, after) of all that may have been changed; the last made is first."""
        seen = dict(self.made)
        for attribute, values in self.open.items():
            seen.setdefault(attribute, values)
        return [(a, before, after) for a, (before, after) in reversed(seen.items())
                if a.kind != "isolation-group"]  # fmt: skip
