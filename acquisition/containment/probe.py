# SPDX-License-Identifier: Apache-2.0
"""Packets that prove isolation: what answers, what does not, and which flows go on.

From the forensics side, which the isolation group lets in, the permitted port must answer: without
that, silence of the others proves nothing. Ports that are not permitted must stay silent: also a
refusal comes from the host, so it was reached. Flows that began before are seen by `ss` on the host
once somebody may log in; until then they are an exception.

    sights = probe(addresses, ports_to_try(wanted), connect)
    found = judged(verdict(…), wanted, Proof(source, sights))

Source: EC2 User Guide, "Security group connection tracking"; RFC 9293 §3.10.7.1 (RST); ss(8).
"""

from __future__ import annotations

import concurrent.futures
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from typing import Literal

from acquisition.containment.state import Verdict, Wanted
from evidence_store.model import clean

# What intruders and administrators listen on, and the port of a direct listener of ours.
COMMON_PORTS = (22, 80, 443, 445, 3306, 3389, 4444, 4445, 5985, 8080, 8443)
_AT_ONCE = 16
_MANY = 20

Answered = Literal["open", "refused", "silent", "no route"]
Connect = Callable[[str, int], socket.socket]


@dataclass(frozen=True, order=True)
class Sight:
    """What one port did. `refused` is an answer too: the host was reached."""

    interface: str
    address: str
    port: int
    answered: Answered

    @property
    def reached(self) -> bool:
        """Whether packets got through."""
        return self.answered in ("open", "refused")


@dataclass(frozen=True)
class Proof:
    """What was tried.

    Attributes:
        source: the address that the target sees, or "".
        sights: of every interface, permitted ports and others.
        why_not: why nothing was tried, or "".
        flows: flows on the target that are not ours, in words; None: nobody looked.
    """

    source: str = ""
    sights: tuple[Sight, ...] = ()
    why_not: str = ""
    flows: tuple[str, ...] | None = None


def ports_to_try(wanted: Wanted, more: Iterable[int] = ()) -> list[int]:
    """Return the ports to probe: permitted ones first, then some that are not."""
    others = sorted({*COMMON_PORTS, *more} - set(wanted.ports))
    return [*wanted.ports, *others]


def permitted_source(source: str, wanted: Wanted) -> bool:
    """Whether isolation lets this address in.

    >>> permitted_source("10.9.0.4", Wanted(("10.9.0.0/24",)))
    True
    """
    return any(ip_address(source) in ip_network(network) for network in wanted.sources)


def probe(
    addresses: Mapping[str, Sequence[str]], ports: Iterable[int], connect: Connect
) -> tuple[Sight, ...]:
    """Try every port of every address, many at once. Nothing is sent but what opens a connection.

    Args:
        addresses: interface -> its addresses.
        ports: TCP.
        connect: opens a connection. Raises ConnectionRefusedError, TimeoutError, OSError.
    """
    wanted = list(dict.fromkeys(ports))
    tries = [(i, a, p) for i, held in sorted(addresses.items()) for a in held for p in wanted]

    def look(one: tuple[str, str, int]) -> Sight:
        return Sight(*one, _answer(connect, one[1], one[2]))

    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        return tuple(pool.map(look, tries))


def _answer(connect: Connect, address: str, port: int) -> Answered:
    try:
        connect(address, port).close()
    except (ConnectionRefusedError, ConnectionResetError):
        return "refused"
    except TimeoutError:
        return "silent"
    except OSError:  # no route, no address, a proxy that does not work: nothing was reached
        return "no route"
    return "open"


def judged(found: Verdict, wanted: Wanted, proof: Proof) -> Verdict:
    """Return the verdict of re-reading, with what packets proved. Pure."""
    reached = [
        f"port {s.port} of {s.address} ({s.interface}) answers {proof.source}: {s.answered}"
        for s in proof.sights if s.reached and s.port not in wanted.ports
    ]  # fmt: skip
    if reached or found.verdict == "not isolated":
        return replace(found, verdict="not isolated", left=(*found.left, *reached))
    answers = {s.interface for s in proof.sights if s.reached and s.port in wanted.ports}
    why_not = proof.why_not or ("nothing was probed" if not proof.sights else "")
    if not why_not and not answers:
        ports = ", ".join(map(str, wanted.ports))
        why_not = f"the permitted port {ports} is silent too, so that silence proves nothing"
    if why_not:
        return replace(found, not_probed=why_not)
    tried = {s.interface: s.address for s in proof.sights}
    left = [
        *(f"{i} ({a}): its permitted port is silent too, so nothing is proved of it"
          for i, a in sorted(tried.items()) if i not in answers),
        *found.holes,
    ]  # fmt: skip
    if proof.flows is None:
        left.append("flows that began before: nobody logged in to look")
    else:
        left += [f"the host holds a flow, which may be cut by now: {f}" for f in proof.flows]
    return replace(found, verdict="isolated except" if left else "isolated", left=tuple(left))


# Run on the host: who we are to it (a proxy may stand between), then its flows.
LOOK_AT_FLOWS = 'echo "$SSH_CONNECTION"; ss -Htun state established'


def flows_on(text: str, ours: Iterable[str] = ()) -> tuple[str, ...]:
    r"""Return the flows that a host holds, but for those with us and with itself.

    It may lie, and it does not know which of them are cut on the way.

    Args:
        text: what LOOK_AT_FLOWS prints: our address and port and its own, then lines of netid,
            queues, local and peer address.
        ours: addresses that we come from.

    >>> flows_on("10.9.0.4 4242 10.0.0.5 22\ntcp 0 0 10.0.0.5:22 10.9.0.4:4242\n"
    ...          "tcp 0 0 10.0.0.5:51000 203.0.113.9:443")
    ('tcp 10.0.0.5:51000 203.0.113.9:443',)
    """
    who, _, rest = text.partition("\n")
    me = tuple(who.split()[:2])
    own = set(ours)
    found = []
    for line in rest.splitlines():
        words = line.split()
        if len(words) < 5:
            continue
        peer, _, port = words[4].rpartition(":")
        peer = peer.strip("[]").partition("%")[0].removeprefix("::ffff:")
        try:
            itself = ip_address(peer).is_loopback
        except ValueError:
            itself = False
        if peer not in own and (peer, port) != me and not itself:
            found.append(clean(f"{words[0]} {words[3]} {words[4]}", 120))
    if len(found) > _MANY:
        found = [*found[:_MANY], f"and {len(found) - _MANY} more"]
    return tuple(found)
