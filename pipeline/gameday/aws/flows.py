# SPDX-License-Identifier: Apache-2.0
"""Whether security groups and network ACLs let a TCP flow pass, now and after a change. Pure.

    new flow        the groups of each end allow it in its direction, the ACLs both directions
    tracked         packets of both directions pass whatever the groups say later, until it is idle
                    for five days; ACLs know no flows and cut it
    not tracked     each packet is judged by the rules of now: a group swap cuts it at once

A flow is not tracked if a rule for all addresses lets it begin and one for all addresses and ports
lets its answers through. Through NAT gateways and the like it is always tracked.

Source: EC2 User Guide, "Security group connection tracking" (untracked connections, automatically
tracked connections, idle timeout); VPC User Guide, "Network ACL rules". Not in these, so
unconfirmed: a tracked flow ceases to be tracked once the rules of its interface would not track it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

ALWAYS_TRACKED = frozenset({
    "nat-gateway", "network-load-balancer", "privatelink", "transit-gateway", "network-firewall",
    "egress-only-gateway", "lambda",
})  # fmt: skip
IDLE_S = 432_000
_EVERYBODY = frozenset({"0.0.0.0/0", "::/0"})


@dataclass(frozen=True)
class Rule:
    """One rule of a security group: whom it names is a network, or a group by id."""

    outward: bool
    protocol: str
    low: int
    high: int
    whom: str

    def allows(self, port: int, address: str, groups: Iterable[str]) -> bool:
        """Whether it lets TCP to `port` pass; `groups`: those that the address is in."""
        if self.protocol not in ("-1", "tcp") or not self.low <= port <= self.high:
            return False
        return self.whom in groups if self.whom.startswith("sg-") else _within(address, self.whom)


@dataclass(frozen=True)
class Entry:
    """One entry of a network ACL."""

    number: int
    outward: bool
    allow: bool
    protocol: str
    low: int
    high: int
    network: str


@dataclass(frozen=True)
class Face:
    """An interface as the network sees it.

    Attributes:
        addresses: its private ones, and public ones that are associated.
        groups: ids of its security groups.
        rules: of all of them.
        entries: of its subnet's ACL.
        up: its instance runs.
    """

    addresses: frozenset[str]
    groups: frozenset[str]
    rules: tuple[Rule, ...]
    entries: tuple[Entry, ...]
    up: bool = True


@dataclass(frozen=True)
class Flow:
    """A TCP connection. `via`: one of ALWAYS_TRACKED, or ""."""

    source: str
    destination: str
    port: int
    via: str = ""
    source_port: int = 49152


@dataclass(frozen=True)
class End:
    """One end of a flow that has a face: its peer, and the peer's groups."""

    face: Face
    outward: bool
    peer: str
    peer_groups: frozenset[str] = frozenset()


def begins(flow: Flow, end: End) -> bool:
    """Whether this end lets a new flow begin."""
    return end.face.up and bool(_matching(flow, end)) and _passes_acl(flow, end)


def is_tracked(flow: Flow, end: End) -> bool:
    """Whether this end's groups, as they are, track it; it is one that they let begin."""
    if flow.via in ALWAYS_TRACKED:
        return True
    if not any(r.whom in _EVERYBODY for r in _matching(flow, end)):
        return True
    return not any(
        r.outward != end.outward and r.whom in _EVERYBODY and r.protocol in ("-1", "tcp")
        and r.low <= 0 and r.high >= 65535 for r in end.face.rules
    )  # fmt: skip


def goes_on(flow: Flow, end: End, *, tracked: bool, idle_s: float = 0.0) -> tuple[bool, bool]:
    """Judge a flow that began.

    Args:
        flow: the flow.
        end: as it is now.
        tracked: whether it was, so far.
        idle_s: seconds since its last packet.

    Returns: (packets pass now, it is tracked from now on).
    """
    allowed = bool(_matching(flow, end))
    tracked = tracked and idle_s < IDLE_S
    if allowed:
        tracked = is_tracked(flow, end) if flow.via not in ALWAYS_TRACKED else True
    passes = end.face.up and _passes_acl(flow, end)
    return passes and (tracked or (allowed and _answers(flow, end))), tracked


def _matching(flow: Flow, end: End) -> list[Rule]:
    return [
        r for r in end.face.rules
        if r.outward == end.outward and r.allows(flow.port, end.peer, end.peer_groups)
    ]  # fmt: skip


def _answers(flow: Flow, end: End) -> bool:
    """Whether a rule of the other direction lets the answers of an untracked flow through."""
    return any(
        r.outward != end.outward and r.allows(flow.source_port, end.peer, end.peer_groups)
        for r in end.face.rules
    )


def _passes_acl(flow: Flow, end: End) -> bool:
    there = _acl(end.face.entries, end.outward, end.peer, flow.port)
    return there and _acl(end.face.entries, not end.outward, end.peer, flow.source_port)


def _acl(entries: Iterable[Entry], outward: bool, peer: str, port: int) -> bool:
    """The first entry that fits decides; without one it is denied."""
    for entry in sorted(entries, key=lambda e: e.number):
        if (
            entry.outward == outward and entry.protocol in ("-1", "6", "tcp")
            and (entry.protocol == "-1" or entry.low <= port <= entry.high)
            and _within(peer, entry.network)
        ):  # fmt: skip
            return entry.allow
    return False


def _within(address: str, network: str) -> bool:
    try:
        found, where = ip_address(address), ip_network(network)
    except ValueError:
        return False
    return found.version == where.version and found in where
