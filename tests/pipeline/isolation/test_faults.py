# SPDX-License-Identifier: Apache-2.0
"""Refusals, lost answers and delays; every restore checked; killed between any two steps."""

from __future__ import annotations

import contextlib

import pytest

from acquisition.containment.aws import Aws
from acquisition.containment.identity import ContainmentError
from evidence_store.store import Case
from pipeline.gameday.aws.faults import Fault
from tests.pipeline.isolation.conftest import KINDS, by_kind, deny

# -- refusals, lost answers, delays

CALLS = [
    ("ec2", "DescribeInstances"), ("ec2", "DescribeInstanceAttribute"),
    ("ec2", "DescribeInstanceStatus"), ("ec2", "DescribeAddresses"),
    ("ec2", "DescribeNetworkAcls"), ("ec2", "DescribeIamInstanceProfileAssociations"),
    ("iam", "GetInstanceProfile"), ("iam", "GetRolePolicy"),
    ("ec2", "ModifyInstanceAttribute"), ("autoscaling", "SetInstanceProtection"),
    ("ec2", "DisassociateAddress"), ("ec2", "CreateNetworkAclEntry"), ("iam", "PutRolePolicy"),
    ("ec2", "DisassociateIamInstanceProfile"),
]  # fmt: skip


@pytest.mark.parametrize(("service", "operation"), CALLS, ids=lambda v: v)
def test_one_right_is_missing(contain, web, aws, service, operation):
    """A gap that names the call's object and the lack; the instance is cut off all the same."""
    deny(aws, operation, service)
    done = contain().isolate()
    aws.faults.clear()
    said = [g for g in done.gaps if "lacks the right" in g]
    assert said, done.gaps
    assert len(set(done.gaps)) == len(done.gaps)
    assert set(map(tuple, web.groups().values())) == {(web.isolation_group(),)}
    assert web.member() == []


@pytest.mark.parametrize(
    ("service", "operation"),
    [("ec2", "CreateSecurityGroup"), ("ec2", "DescribeSecurityGroups"),
     ("ec2", "DescribeSecurityGroupRules"), ("ec2", "ModifyNetworkInterfaceAttribute"),
     ("ec2", "AuthorizeSecurityGroupEgress"), ("ec2", "RevokeSecurityGroupEgress")],
    ids=lambda v: v,
)  # fmt: skip
def test_the_right_to_cut_is_missing(contain, web, aws, service, operation):
    """Not isolated, and said so; sessions and address are ended all the same."""
    deny(aws, operation, service)
    done = contain().isolate()
    aws.faults.clear()
    assert done.verdict.verdict == "not isolated"
    assert [g for g in done.gaps if "lacks the right" in g]
    assert web.profiles() == []
    assert set(web.addresses().values()) == {("", None)}


def test_nothing_may_be_seen(contain, aws):
    deny(aws, "Describe*", "ec2")
    with pytest.raises(ContainmentError, match="nothing of i-"):
        contain().isolate()


CHANGES = [
    ("ec2", "ModifyInstanceAttribute"), ("autoscaling", "SetInstanceProtection"),
    ("autoscaling", "DetachInstances"), ("ec2", "CreateSecurityGroup"),
    ("ec2", "AuthorizeSecurityGroupIngress"), ("ec2", "AuthorizeSecurityGroupEgress"),
    ("ec2", "RevokeSecurityGroupEgress"), ("ec2", "ModifyNetworkInterfaceAttribute"),
    ("ec2", "DisassociateAddress"), ("ec2", "CreateNetworkAclEntry"), ("iam", "PutRolePolicy"),
    ("ec2", "DisassociateIamInstanceProfile"),
]  # fmt: skip


@pytest.mark.parametrize(("service", "operation"), CHANGES, ids=lambda v: v)
def test_a_lost_answer(contain, web, aws, service, operation):
    before = web.picture()
    aws.faults.add(Fault("lost-answer", service=service, operation=operation, times=1))
    done = contain().isolate()
    assert aws.faults.hits()
    if "SecurityGroup" not in operation:
        assert len(done.gaps) == 1, done.gaps
    done = contain().isolate()  # a group that was half made is completed by the next run
    assert done.verdict.verdict == "groups applied, not probed"
    contain().release()
    assert web.picture() == before


@pytest.mark.parametrize(
    ("service", "operation"),
    [("ec2", "AssociateIamInstanceProfile"), ("iam", "DeleteRolePolicy"),
     ("ec2", "DeleteNetworkAclEntry"), ("ec2", "AssociateAddress"),
     ("ec2", "ModifyNetworkInterfaceAttribute"), ("autoscaling", "AttachInstances"),
     ("autoscaling", "SetInstanceProtection"), ("ec2", "ModifyInstanceAttribute")],
    ids=lambda v: v,
)  # fmt: skip
def test_a_lost_answer_at_release(contain, web, aws, service, operation):
    before = web.picture()
    contain().isolate()
    aws.faults.add(Fault("lost-answer", service=service, operation=operation, times=1))
    done = contain().release()
    assert aws.faults.hits()
    assert "cannot" not in {u.restored for u in done}
    assert web.picture() == before


def test_new_groups_and_policies_are_seen_late(contain, web, aws):
    aws.behave(visibility=3)
    done = contain().isolate()
    assert done.verdict.verdict == "groups applied, not probed"
    assert len(done.gaps) == 1
    assert set(map(tuple, web.groups().values())) == {(web.isolation_group(),)}


def test_a_group_that_is_not_known_everywhere_yet(contain, web, aws):
    aws.faults.add(Fault("error", operation="ModifyNetworkInterfaceAttribute", times=3, status=400,
                         code="InvalidGroup.NotFound"))  # fmt: skip
    done = contain().isolate()
    assert len(done.gaps) == 1
    assert done.verdict.verdict == "groups applied, not probed"


# -- every restore is checked


@pytest.mark.parametrize("kind", KINDS)
def test_a_restore_that_does_nothing_is_not_called_restored(contain, web, monkeypatch, kind):
    before = web.picture()
    contain().isolate()
    plain = Aws._write

    def broken(self, attribute, value):
        return value if attribute.kind == kind else plain(self, attribute, value)

    monkeypatch.setattr(Aws, "_write", broken)
    done = by_kind(contain().release())
    assert done[kind] == {"cannot"}
    now = web.picture()
    assert now[kind] != before[kind]
    tied = {kind, "membership"} if kind == "groups" else {kind}
    assert {k: v for k, v in now.items() if k not in tied} == {
        k: v for k, v in before.items() if k not in tied
    }


@pytest.mark.chaos
@pytest.mark.parametrize("kind", ["access-key", "user-deny"])
def test_a_key_that_is_not_given_back_is_not_called_restored(contain, attacker, monkeypatch, kind):
    key, _ = attacker.user()
    contain(user_keys=(key,)).isolate()
    plain = Aws._write

    def broken(self, attribute, value):
        return value if attribute.kind == kind else plain(self, attribute, value)

    monkeypatch.setattr(Aws, "_write", broken)
    assert by_kind(contain().release())[kind] == {"cannot"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_that_does_nothing_is_not_called_done(contain, monkeypatch, kind):
    plain = Aws._write

    def broken(self, attribute, value):
        return value if attribute.kind == kind else plain(self, attribute, value)

    monkeypatch.setattr(Aws, "_write", broken)
    done = contain().isolate()
    assert kind not in {c.attribute.kind for c in done.made}
    assert [g for g in done.gaps if g.startswith(kind)] or done.waits


# -- killed


class KilledError(BaseException):
    """As by kill -9: nothing is cleaned up."""


class Dying:
    """A case whose writer dies before, or just after, its n-th event."""

    def __init__(self, case, after, *, recorded):
        self.case, self.ledger, self.left, self.recorded = case, case.ledger, after, recorded

    def record(self, build):
        self.left -= 1
        if self.left < 0:
            if self.recorded:
                self.case.record(build)
            raise KilledError
        return self.case.record(build)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("after", range(1, 36, 7))
def test_killed_at_any_point_it_goes_on(contain, web, world, after, recorded):
    """Before an event, the change may have been made and nothing says so."""
    before = web.picture()
    with contextlib.suppress(KilledError):
        contain(case=Dying(world.case, after, recorded=recorded)).isolate()
    done = contain().isolate()
    assert done.verdict.verdict == "groups applied, not probed"
    assert contain().history().open == {}
    dying = Case(world.store, world.case.case_id)
    dying.refresh()
    with contextlib.suppress(KilledError):
        contain(case=Dying(dying, after, recorded=recorded)).release()
    assert "cannot" not in {u.restored for u in contain().release()}
    assert web.picture() == before


@pytest.mark.parametrize("after", range(4, 36, 9))
def test_killed_and_then_released(contain, web, world, after):
    """Release undoes what was made, whether its outcome was recorded or not."""
    before = web.picture()
    with contextlib.suppress(KilledError):
        contain(case=Dying(world.case, after, recorded=False)).isolate()
    contain().release()
    assert web.picture() == before
