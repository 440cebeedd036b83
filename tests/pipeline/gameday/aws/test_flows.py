# SPDX-License-Identifier: Apache-2.0
"""Connection tracking as the EC2 User Guide documents it ("Security group connection tracking")."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.gameday.aws.flows import (
    ALWAYS_TRACKED,
    IDLE_S,
    End,
    Entry,
    Face,
    Flow,
    Rule,
    begins,
    goes_on,
    is_tracked,
)

ALL = (0, 65535)
OUT_ALL = Rule(True, "-1", *ALL, "0.0.0.0/0")
OPEN = (Entry(100, False, True, "-1", *ALL, "0.0.0.0/0"),
        Entry(100, True, True, "-1", *ALL, "0.0.0.0/0"))  # fmt: skip
FLOW = Flow("198.51.100.7", "10.0.0.5", 443)
NOBODY = Rule(True, "-1", *ALL, "127.0.0.1/32")


def inward(*rules, entries=OPEN, up=True, peer="198.51.100.7", groups=()):
    face = Face(frozenset({"10.0.0.5"}), frozenset({"sg-own"}), rules, entries, up)
    return End(face, False, peer, frozenset(groups))


def rule(whom, port=443, protocol="tcp", outward=False):
    return Rule(outward, protocol, port, port, whom)


@pytest.mark.parametrize(
    ("rules", "allowed"),
    [
        ([rule("0.0.0.0/0")], True),
        ([rule("198.51.100.0/24")], True),
        ([Rule(False, "-1", *ALL, "198.51.100.7/32")], True),
        ([Rule(False, "tcp", 400, 500, "0.0.0.0/0")], True),
        ([], False),
        ([rule("0.0.0.0/0", outward=True)], False),
        ([rule("0.0.0.0/0", protocol="udp")], False),
        ([rule("0.0.0.0/0", port=22)], False),
        ([rule("203.0.113.0/24")], False),
        ([rule("::/0")], False),
        ([rule("sg-other")], False),
        ([rule("pl-1234")], False),
    ],
)
def test_a_rule_lets_a_flow_begin(rules, allowed):
    assert begins(FLOW, inward(*rules)) is allowed


def test_a_rule_by_group_lets_its_members_in():
    end = inward(rule("sg-web"), groups=["sg-web"])
    assert begins(FLOW, end)
    assert not begins(FLOW, replace(end, peer_groups=frozenset({"sg-db"})))


def test_outward_it_is_the_rules_outward_that_count():
    face = Face(frozenset({"10.0.0.5"}), frozenset(), (NOBODY, rule("0.0.0.0/0")), OPEN)
    assert not begins(FLOW, End(face, True, "203.0.113.9"))
    assert begins(FLOW, End(replace(face, rules=(OUT_ALL,)), True, "203.0.113.9"))


def test_nothing_reaches_what_does_not_run():
    assert not begins(FLOW, inward(rule("0.0.0.0/0"), up=False))


@pytest.mark.parametrize(
    ("entries", "allowed"),
    [
        (OPEN, True),
        ((), False),
        (OPEN[:1], False),  # ACLs know no flows: the answers need an entry too
        ((Entry(50, False, False, "-1", *ALL, "198.51.100.7/32"), *OPEN), False),
        ((Entry(50, True, False, "-1", *ALL, "198.51.100.7/32"), *OPEN), False),
        ((Entry(200, False, False, "-1", *ALL, "198.51.100.7/32"), *OPEN), True),
        ((Entry(50, False, False, "6", 22, 22, "0.0.0.0/0"), *OPEN), True),
        ((Entry(50, False, False, "17", *ALL, "0.0.0.0/0"), *OPEN), True),
        ((Entry(50, False, False, "6", 443, 443, "0.0.0.0/0"), *OPEN), False),
    ],
)
def test_the_first_entry_of_an_acl_that_fits_decides(entries, allowed):
    end = inward(rule("0.0.0.0/0"), entries=entries)
    assert begins(FLOW, end) is allowed
    assert goes_on(FLOW, end, tracked=True)[0] is allowed


@pytest.mark.parametrize(
    ("rules", "tracked"),
    [
        ([rule("0.0.0.0/0"), OUT_ALL], False),
        ([rule("198.51.100.0/24"), OUT_ALL], True),
        ([rule("0.0.0.0/0")], True),
        ([rule("0.0.0.0/0"), Rule(True, "tcp", 0, 1024, "0.0.0.0/0")], True),
        ([rule("0.0.0.0/0"), Rule(True, "-1", *ALL, "10.0.0.0/8")], True),
        ([rule("0.0.0.0/0"), NOBODY], True),
    ],
)
def test_only_what_is_open_to_all_both_ways_is_not_tracked(rules, tracked):
    assert is_tracked(FLOW, inward(*rules)) is tracked


def test_a_tracked_flow_survives_a_group_swap():
    assert goes_on(FLOW, inward(NOBODY), tracked=True) == (True, True)


def test_an_untracked_flow_ends_with_its_rule():
    assert goes_on(FLOW, inward(NOBODY), tracked=False) == (False, False)


def test_an_untracked_flow_needs_a_rule_for_its_answers():
    assert goes_on(FLOW, inward(rule("0.0.0.0/0"), OUT_ALL), tracked=False) == (True, False)
    only = inward(rule("0.0.0.0/0"), Rule(True, "tcp", 22, 22, "0.0.0.0/0"))
    assert goes_on(FLOW, only, tracked=False) == (True, True)  # tracked from now on


def test_a_tracked_flow_that_was_idle_for_five_days_is_forgotten():
    isolated = inward(NOBODY)
    assert goes_on(FLOW, isolated, tracked=True, idle_s=IDLE_S - 1)[0]
    assert not goes_on(FLOW, isolated, tracked=True, idle_s=IDLE_S)[0]


def test_allow_all_and_then_isolation_cuts_a_tracked_flow():
    every = inward(Rule(False, "-1", *ALL, "0.0.0.0/0"), OUT_ALL)
    passes, tracked = goes_on(FLOW, every, tracked=True)
    assert (passes, tracked) == (True, False)
    assert not goes_on(FLOW, inward(NOBODY), tracked=tracked)[0]


@pytest.mark.parametrize("via", sorted(ALWAYS_TRACKED))
def test_what_is_always_tracked_survives_even_that(via):
    flow = replace(FLOW, via=via)
    every = inward(Rule(False, "-1", *ALL, "0.0.0.0/0"), OUT_ALL)
    assert is_tracked(flow, every)
    _, tracked = goes_on(flow, every, tracked=True)
    assert goes_on(flow, inward(NOBODY), tracked=tracked) == (True, True)
