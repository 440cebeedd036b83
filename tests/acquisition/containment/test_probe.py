# SPDX-License-Identifier: Apache-2.0
"""What packets prove, and what they do not."""

from __future__ import annotations

import socket

import pytest

from acquisition.containment.probe import (
    Proof,
    Sight,
    flows_on,
    judged,
    permitted_source,
    ports_to_try,
    probe,
)
from acquisition.containment.state import Verdict, Wanted

WANTED = Wanted(("10.9.0.0/24",))
APPLIED = Verdict("groups applied, not probed", unfiltered=("DNS",))
SOURCE = "10.9.0.4"


def sights(*answers, interface="eni-1", address="10.0.0.5"):
    """Answers of port 22, and of others."""
    return tuple(Sight(interface, address, p, a)
                 for p, a in zip((22, 443, 4445), answers, strict=False))  # fmt: skip


def proof(*answers, flows=(), more=()):
    return Proof(SOURCE, (*sights(*answers), *more), flows=flows)


def test_isolated_is_what_answers_only_where_it_shall():
    found = judged(APPLIED, WANTED, proof("open", "silent", "silent"))
    assert (found.verdict, found.left, found.unfiltered) == ("isolated", (), ("DNS",))


def test_a_refusal_of_the_permitted_port_shows_that_the_host_is_reached():
    assert judged(APPLIED, WANTED, proof("refused", "silent")).verdict == "isolated"


@pytest.mark.parametrize("answer", ["open", "refused"])
def test_whatever_else_answers_is_not_isolated(answer):
    found = judged(APPLIED, WANTED, proof("open", answer, "silent"))
    assert found.verdict == "not isolated"
    assert found.left == (f"port 443 of 10.0.0.5 (eni-1) answers {SOURCE}: {answer}",)


def test_silence_alone_proves_nothing():
    for silent in ("silent", "no route"):
        found = judged(APPLIED, WANTED, proof(silent, "silent"))
        assert found.verdict == "groups applied, not probed"
        assert "port 22 is silent too" in found.not_probed


def test_without_packets_nothing_is_proved():
    assert judged(APPLIED, WANTED, Proof()).not_probed == "nothing was probed"
    found = judged(APPLIED, WANTED, Proof(why_not="no network"))
    assert (found.verdict, found.not_probed) == ("groups applied, not probed", "no network")


def test_packets_do_not_mend_what_reads_wrong():
    wrong = Verdict("not isolated", ("eni-1: in sg-9",))
    found = judged(wrong, WANTED, proof("open", "open"))
    assert found.verdict == "not isolated"
    assert found.left[0] == "eni-1: in sg-9"
    assert "port 443" in found.left[1]
    assert judged(wrong, WANTED, proof("open", "silent")).verdict == "not isolated"


def test_flows_that_go_on_are_exceptions():
    flow = "tcp 10.0.0.5:51000 203.0.113.9:443"
    found = judged(APPLIED, WANTED, proof("open", "silent", flows=(flow,)))
    assert (found.verdict, found.left) == (
        "isolated except",
        (f"the host holds a flow, which may be cut by now: {flow}",),
    )


def test_flows_that_nobody_looked_at_are_an_exception():
    found = judged(APPLIED, WANTED, proof("open", "silent", flows=None))
    assert found.verdict == "isolated except"
    assert found.left == ("flows that began before: nobody logged in to look",)


def test_an_interface_that_does_not_answer_at_all_is_an_exception():
    other = sights("silent", "silent", interface="eni-2", address="10.0.0.6")
    found = judged(APPLIED, WANTED, proof("open", "silent", more=other))
    assert found.verdict == "isolated except"
    assert found.left[0].startswith("eni-2 (10.0.0.6): its permitted port is silent too")


def test_holes_are_exceptions():
    hole = "eni-7 is managed by AWS and keeps its groups"
    known = Verdict("groups applied, not probed", holes=(hole,))
    assert judged(known, WANTED, proof("open", "silent")).left == (hole,)


def test_ports_to_try():
    tried = ports_to_try(Wanted(ports=(22, 443)), [9999, 22])
    assert tried[:2] == [22, 443]
    assert len(tried) == len(set(tried))
    assert {4445, 3389, 9999} < set(tried)  # A direct listener's port too: closed unless opened.


def test_only_a_permitted_source_may_prove_it():
    assert permitted_source("10.9.0.255", WANTED)
    assert not permitted_source("10.9.1.0", WANTED)
    assert not permitted_source("10.9.0.4", Wanted())
    assert not permitted_source("::1", WANTED)


def test_every_port_of_every_address_is_tried_and_told_apart():
    with socket.create_server(("127.0.0.1", 0)) as server:
        listening = server.getsockname()[1]
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))  # taken, and nobody listens
            closed = held.getsockname()[1]

            def connect(address, port):
                if address == "10.0.0.6":
                    raise TimeoutError
                if port == 9:
                    raise OSError(113, "No route to host")
                return socket.create_connection((address, port), 5)

            found = probe(
                {"eni-1": ["127.0.0.1"], "eni-2": ["10.0.0.6"]}, [listening, closed, 9], connect
            )
    assert [(s.interface, s.port, s.answered) for s in found] == [
        ("eni-1", listening, "open"), ("eni-1", closed, "refused"), ("eni-1", 9, "no route"),
        ("eni-2", listening, "silent"), ("eni-2", closed, "silent"), ("eni-2", 9, "silent"),
    ]  # fmt: skip
    assert [s.reached for s in found] == [True, True, False, False, False, False]


def test_flows_with_us_and_with_itself_are_not_told():
    text = "\n".join([
        "10.0.2.2 44466 10.0.0.5 22",
        "tcp   0  0  10.0.0.5:22        10.0.2.2:44466",
        "tcp   0  0  10.0.0.5:22        10.9.0.4:50000",
        "tcp   0  0  127.0.0.1:4444     127.0.0.1:37000",
        "tcp   0  0  [::ffff:10.0.0.5]:22 [::ffff:10.9.0.4]:50001",
        "tcp   0  0  [::1]:5432         [::1]:37002",
        "tcp   0  36 10.0.0.5:51000     203.0.113.9:443   users:((\"x\"))",
        "udp   0  0  10.0.0.5%eth0:68   10.0.0.1:67", "", "cannot open netlink",
        "tcp   0  0  10.0.0.5:1         \x1b[31mevil:9",
    ])  # fmt: skip
    found = flows_on(text, ["10.9.0.4"])
    assert found[:2] == (
        "tcp 10.0.0.5:51000 203.0.113.9:443", "udp 10.0.0.5%eth0:68 10.0.0.1:67"
    )  # fmt: skip
    assert len(found) == 3
    assert "\x1b" not in found[2]


def test_another_flow_from_where_we_come_from_is_told():
    """Behind a proxy all seem to be us; only our own connection is."""
    text = "10.0.2.2 44466 10.0.0.5 22\ntcp 0 0 10.0.0.5:22 10.0.2.2:44467\n"
    assert flows_on(text) == ("tcp 10.0.0.5:22 10.0.2.2:44467",)


def test_a_host_that_tells_of_many_flows_fills_no_ledger():
    text = "who\n" + "\n".join(f"tcp 0 0 10.0.0.5:1 203.0.113.9:{n}" for n in range(5000))
    found = flows_on(text, [])
    assert len(found) == 21
    assert found[-1] == "and 4980 more"
