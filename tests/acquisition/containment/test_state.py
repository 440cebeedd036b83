# SPDX-License-Identifier: Apache-2.0
"""Decisions of isolation, without AWS."""

from __future__ import annotations

import json

import pytest

from acquisition.containment.state import (
    NEW_GROUP,
    Attribute,
    History,
    State,
    Wanted,
    peer_cidr,
    plan,
    same,
    session_deny,
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
    observed = tuple(f"198.51.100.{n}/32" for n in range(30))
    wanted = Wanted(("10.9.0.0/24",), peers=("192.0.2.1/32",), observed=observed)
    found = plan(isolated(acl_entry=entries), wanted)
    cut = [(c.after["cidr"], c.phase) for c in found.changes]
    assert cut == [("192.0.2.1/32", "cut"), *((o, "peers") for o in observed[:17])]
    [gap] = found.gaps
    assert "198.51.100.17/32" in gap
    assert "8 more" in gap


def test_who_is_named_and_observed_is_cut_once_and_first():
    entries = {"acl-1 egress 100": {"cidr": "0.0.0.0/0", "action": "allow", "protocol": "-1"}}
    wanted = Wanted(("10.9.0.0/24",), peers=("192.0.2.1/32",), observed=("192.0.2.1/32",))
    [change] = plan(isolated(acl_entry=entries), wanted).changes
    assert change.phase == "cut"


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
