# SPDX-License-Identifier: Apache-2.0
"""What an instance was, what shall change, what may be undone, what is proved. Pure.

Source: EC2 User Guide ("Security groups", "Connection tracking", "Instance metadata"); EC2 Auto
Scaling User Guide ("Health checks for instances"); IAM User Guide ("IAM condition keys").
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Literal

from pydantic import JsonValue

GROUP_NAME = "impound-isolation"
NEW_GROUP = "(the new isolation group)"
# Without any egress rule CloudFormation adds one that allows all; so there is always this one.
NO_EGRESS = "egress -1 all 127.0.0.1/32"

Phase = Literal["protect", "cut", "sessions"]
Restored = Literal["exact", "new id", "cannot"]

# What a later association gives another id, or a group another capacity.
ANEW = frozenset({"address", "profile", "membership"})
# What is there without the instance.
OUTLIVES = frozenset({"acl-entry", "session-deny", "isolation-group"})
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
    """

    sources: tuple[str, ...] = ()
    ports: tuple[int, ...] = (22,)
    peers: tuple[str, ...] = ()

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
    """Changes in the order in which they are made. `gaps`: what is wanted and cannot be planned."""

    changes: tuple[Change, ...]
    gaps: tuple[str, ...] = ()


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


def session_deny(instance: str) -> str:
    """Return a policy that denies all to sessions of one instance, old and new."""
    return policy_text({
        "Version": "2012-10-17",
        "Statement": [{
            "Sid": "ImpoundIsolation", "Effect": "Deny", "Action": "*", "Resource": "*",
            "Condition": {"StringLike": {"aws:userid": f"*:{instance}"}},
        }],
    })  # fmt: skip


def policy_text(document: object) -> str:
    """Return a policy in one form, in ASCII: what somebody else put there must fit a ledger."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def is_member(value: JsonValue) -> bool:
    """Whether a membership makes Auto Scaling check and end the instance."""
    return isinstance(value, dict) and value.get("lifecycle") != "Standby"


def plan(state: State, wanted: Wanted) -> Plan:
    """Return what has to change, given what is; nothing if all is as wanted."""
    gaps: list[str] = []
    changes = [*_protect(state), *_cut(state, wanted, gaps), *_sessions(state)]
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
    yield from _acl_entries(state, wanted.peers, gaps)


def _acl_entries(state: State, peers: Iterable[str], gaps: list[str]) -> Iterator[Change]:
    """Deny entries before the first that allows, both ways, for those peers only."""
    entries: dict[tuple[str, str], dict[int, JsonValue]] = {}
    for attribute, value in state.of("acl-entry"):
        acl, way, rule = attribute.resource.split(" ")
        entries.setdefault((acl, way), {})[int(rule)] = value
    for (acl, way), held in entries.items():
        allowed = [n for n, v in held.items() if isinstance(v, dict) and v["action"] == "allow"]
        first = min(allowed, default=32767)
        free = (n for n in range(1, first) if n not in held)
        for peer in peers:
            entry: JsonValue = {"cidr": peer, "action": "deny", "protocol": "-1"}
            if any(same(v, entry) for n, v in held.items() if n < first):
                continue
            number = next(free, None)
            if number is None:
                gaps.append(f"{acl} has no free {way} rule before rule {first} to cut {peer}")
                continue
            yield Change(Attribute("acl-entry", f"{acl} {way} {number}"), None, entry, "cut")


def _sessions(state: State) -> Iterator[Change]:
    for attribute, before in state.of("session-deny"):
        yield Change(attribute, before, session_deny(state.instance), "sessions")
    for attribute, before in state.of("profile"):
        yield Change(attribute, before, None, "sessions")


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
    "a policy takes up to minutes to be in force everywhere",
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
