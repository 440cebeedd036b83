# SPDX-License-Identifier: Apache-2.0
"""Decisions of isolation, without AWS."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from acquisition.containment.state import (
    NEW_GROUP,
    Attribute,
    Deny,
    History,
    State,
    Wanted,
    peer_cidr,
    plan,
    same,
    session_deny,
    token_end,
    undo,
    verdict,
)

RULES = ["egress -1 all 127.0.0.1/32", "ingress tcp 22 10.9.0.0/24"]
WANTED = Wanted(("10.9.0.0/24",), peers=("192.0.2.1/32",))


def state(phase="running", interfaces=("eni-1",), **kinds):
    attributes = {
        Attribute(kind.replace("_", "-"), resource): value
        for kind, held in kinds.items() for resource, value in held.items()
    }  # fmt: skip
    return State("i-1", phase, attributes, dict.fromkeys(interfaces, "vpc-1"))


def isolated(**more):
    return state(
        groups={"eni-1": ["sg-1"]}, isolation_group={"vpc-1": {"id": "sg-1", "rules": RULES}},
        **more,
    )  # fmt: skip


def test_protection_comes_before_the_cut_and_sessions_last():
    found = plan(state(
        termination_protection={"i-1": False}, profile={"i-1": {"arn": "a", "association": "x"}},
        membership={"i-1": {"group": "g", "lifecycle": "InService", "protected": False}},
        scale_in_protection={"i-1": False}, groups={"eni-1": ["sg-9"]},
        isolation_group={"vpc-1": None}, session_deny={"role": None},
    ), WANTED)  # fmt: skip
    assert [c.phase for c in found.changes] == ["protect"] * 3 + ["cut"] * 2 + ["sessions"] * 2
    kinds = [c.attribute.kind for c in found.changes]
    assert kinds.index("scale-in-protection") < kinds.index("membership")
    assert kinds.index("isolation-group") < kinds.index("groups")
    assert kinds.index("session-deny") < kinds.index("profile")
    assert next(c.after for c in found.changes if c.attribute.kind == "groups") == [NEW_GROUP]


def test_nothing_to_change():
    held = {"group": "g", "lifecycle": "Standby", "protected": True}
    assert plan(isolated(membership={"i-1": held}, stop_protection={"i-1": True}),
                WANTED).changes == ()  # fmt: skip


def test_an_interface_whose_vpc_is_not_known_stays_and_is_told():
    found = plan(state(groups={"eni-1": ["sg-9"]}), WANTED)
    assert found.changes == ()
    assert "eni-1 stays" in found.gaps[0]


@pytest.mark.parametrize(
    ("held", "number"),
    [
        ({100: "allow"}, 1),
        ({1: "deny", 2: "deny", 100: "allow"}, 3),
        ({1: "allow"}, None),
        ({32767: "deny"}, 1),
    ],
)  # fmt: skip
def test_deny_entries_come_before_the_first_that_allows(held, number):
    entries = {f"acl-1 egress {n}": {"cidr": "0.0.0.0/0", "action": a, "protocol": "-1"}
               for n, a in held.items()}  # fmt: skip
    found = plan(isolated(acl_entry=entries), WANTED)
    made = [c.attribute.resource for c in found.changes]
    assert made == ([f"acl-1 egress {number}"] if number else [])
    assert bool(found.gaps) == (number is None)


def test_peers_beyond_the_quota_are_named():
    """Twenty rules each way, the one that denies the rest among them; first who was named."""
    entries = {f"acl-1 egress {n}": {"cidr": "0.0.0.0/0", "action": a, "protocol": "-1"}
               for n, a in ((100, "allow"), (32767, "deny"))}  # fmt: skip
    peers = tuple(f"198.51.100.{n}/32" for n in range(30))
    found = plan(isolated(acl_entry=entries), Wanted(("10.9.0.0/24",), peers=peers))
    assert [c.after["cidr"] for c in found.changes] == list(peers[:18])
    [gap] = found.gaps
    assert "198.51.100.18/32" in gap
    assert "7 more" in gap


def test_who_is_named_and_observed_is_cut_once():
    entries = {"acl-1 egress 100": {"cidr": "0.0.0.0/0", "action": "allow", "protocol": "-1"}}
    wanted = Wanted(("10.9.0.0/24",), peers=("192.0.2.1/32", "192.0.2.1/32"))
    assert len(plan(isolated(acl_entry=entries), wanted).changes) == 1


def test_an_entry_that_stands_is_enough_unless_something_allows_before():
    deny = {"cidr": "192.0.2.1/32", "action": "deny", "protocol": "-1"}
    allow = {"cidr": "0.0.0.0/0", "action": "allow", "protocol": "-1"}
    before = {"acl-1 egress 5": deny, "acl-1 egress 100": allow}
    assert plan(isolated(acl_entry=before), WANTED).changes == ()
    after = {"acl-1 egress 50": allow, "acl-1 egress 100": deny}
    assert len(plan(isolated(acl_entry=after), WANTED).changes) == 1


def test_the_deny_names_this_instance_only():
    [statement] = json.loads(session_deny("i-1"))["Statement"]
    assert statement["Condition"] == {"StringLike": {"aws:userid": "*:i-1"}}
    assert (statement["Effect"], statement["Action"], statement["Resource"]) == ("Deny", "*", "*")


MOMENT = "2026-03-01T12:00:00Z"


def role_deny(before=None, **wanted):
    """What is wanted of the deny of one role: text, gaps."""
    found = plan(isolated(session_deny={"web": before}), Wanted(("10.9.0.0/24",), **wanted))
    return [c.after for c in found.changes], found.gaps


def test_sessions_that_it_assumed_are_denied_beside_its_own():
    chained = {"web": ("AROAAAAAAAAAAAAAAAAAA:job",)}
    given = {Attribute("session-deny", "web"): session_deny("i-1")}
    [text], _ = role_deny(session_deny("i-1"), sessions=chained, given=given)
    assert Deny.parse(text) == Deny(("*:i-1", "AROAAAAAAAAAAAAAAAAAA:job"))
    assert role_deny(text, sessions=chained) == ([], ())
    assert role_deny(text) == ([], ())  # the event is too old to be found again


def test_a_role_that_it_only_assumed_is_not_denied_to_the_instance():
    [text], _ = role_deny(sessions={"web": ("AROAAAAAAAAAAAAAAAAAA:job",)})
    assert Deny.parse(text).users == ("AROAAAAAAAAAAAAAAAAAA:job",)


def test_more_sessions_than_a_deny_has_room_for_are_named():
    many = tuple(f"AROAAAAAAAAAAAAAAAAAA:{'x' * 55}{n:02}" for n in range(30))
    [text], [gap] = role_deny(sessions={"web": many})
    held = Deny.parse(text).users
    assert len(text) <= 1000
    assert held == many[: len(held)]
    assert f"no room for {30 - len(held)} more" in gap


def test_a_moment_stays_what_it_was():
    before = Deny(("*:i-1",), MOMENT).text
    assert role_deny(before, wide="2027-01-01T00:00:00Z") == ([], ())


def test_the_moment_lies_ahead_of_now():
    assert token_end(datetime(2026, 3, 1, 11, 45, tzinfo=UTC)) == MOMENT


@pytest.mark.parametrize(
    "text", [None, "", "[]", "{}", '{"Statement":3}', '{"Statement":[{"Condition":{"X":{}}}]}',
             Deny(("*:i-1",)).text.replace('"*"', '"s3:*"')],
)  # fmt: skip
def test_a_policy_that_is_not_ours_says_nothing(text):
    assert Deny.parse(text) == Deny()


def test_a_user_is_denied_what_was_issued_and_no_more():
    found = plan(isolated(user_deny={"bob": None}, access_key={"bob AKIA1": "Active"}),
                 Wanted(("10.9.0.0/24",), keys_end=MOMENT))  # fmt: skip
    assert [(c.attribute.kind, c.after) for c in found.changes] == [
        ("access-key", "Inactive"), ("user-deny", Deny(before=MOMENT).text),
    ]  # fmt: skip


def test_the_isolation_group_always_has_an_egress_rule():
    assert Wanted().rules == ["egress -1 all 127.0.0.1/32"]


@pytest.mark.parametrize(
    ("now", "left"),
    [
        (isolated(), ""),
        (isolated(phase="terminated"), "is terminated"),
        (state(interfaces=()), "no interface"),
        (state(groups={"eni-1": ["sg-1"]}, isolation_group={"vpc-1": None}), "no isolation group"),
        (isolated(address={"eipalloc-1": {"interface": "eni-1"}}), "still associated"),
        (state(groups={"eni-1": ["sg-1", "sg-2"]},
               isolation_group={"vpc-1": {"id": "sg-1", "rules": RULES}}), "eni-1: in"),
        (state(groups={"eni-1": ["sg-1"]},
               isolation_group={"vpc-1": {"id": "sg-1", "rules": [*RULES, "egress x"]}}), "rules"),
        (state(isolation_group={"vpc-1": {"id": "sg-1", "rules": RULES}}), "eni-1: in None"),
    ],
)  # fmt: skip
def test_verdict(now, left):
    found = verdict(now, WANTED)
    assert found.verdict == ("not isolated" if left else "groups applied, not probed")
    assert left in " ".join(found.left)
    assert found.unfiltered


def test_a_change_that_does_not_read_so_is_no_isolation():
    assert verdict(isolated(), WANTED, ["profile i-1"]).verdict == "not isolated"


@pytest.mark.parametrize(
    ("now", "what"), [("old", "as it was"), ("new", "ours"), ("other", "changed"),
                      (None, "changed")],
)  # fmt: skip
def test_only_what_is_ours_is_undone(now, what):
    assert undo("old", "new", now) == what


def test_ids_of_associations_do_not_count():
    assert same({"arn": "a", "association": "1"}, {"arn": "a", "association": "2"})
    assert not same({"arn": "a", "association": "1"}, {"arn": "b", "association": "1"})
    assert not same(None, {"arn": "a"})


def test_history():
    one, other, group = Attribute("groups", "eni-1"), Attribute("profile", "i-1"), Attribute(
        "isolation-group", "vpc-1"
    )  # fmt: skip
    made = History()
    for attribute in (group, one, other):
        made.began(attribute, f"{attribute} was", "x")
    made.changed(group, "x")
    made.changed(one, "x")
    assert made.to_undo() == [(other, "profile i-1 was", "x"), (one, "groups eni-1 was", "x")]
    made.began(one, "drifted", "y")
    made.changed(one, "y")
    assert made.made[one] == ("groups eni-1 was", "y")
    made.failed(other)
    made.restored(one)
    assert made.to_undo() == []


def test_attributes_are_read_as_they_are_written():
    one = Attribute("delete-on-termination", "i-1 /dev/sda1")
    assert Attribute.parse(str(one)) == one


@pytest.mark.parametrize("text", ["nowhere", "192.0.2.1/8", ""])
def test_no_address(text):
    with pytest.raises(ValueError, match=r"appear|host bits"):
        peer_cidr(text)
