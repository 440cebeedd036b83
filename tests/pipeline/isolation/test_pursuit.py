# SPDX-License-Identifier: Apache-2.0
"""Sessions that the instance's own ones assumed, and users' keys."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from botocore.exceptions import ClientError

from pipeline.accounts import AccountError
from pipeline.gameday.aws import trail
from pipeline.gameday.aws.accounts import LOG_ARCHIVE, MEMBER, REGION
from pipeline.gameday.aws.faults import Fault
from pipeline.gameday.aws.seed import WEB
from tests.pipeline.isolation.conftest import Clients, by_kind, changing, deny, interface_of

# -- sessions that its own ones assumed, users' keys


def may(client):
    try:
        client("ec2").describe_regions()
    except ClientError:
        return False
    return True


def policies(aws, role, account=MEMBER):
    return aws.client("iam", account).list_role_policies(RoleName=role)["PolicyNames"]


def test_a_role_that_its_session_assumed_is_denied_to_that_session_only(contain, attacker, aws):
    own = attacker.own()
    chained = attacker.chain(own, "deploy", "night-job")
    further = attacker.chain(chained, "audit-all", "xx")
    bystander = attacker.chain(attacker.own("i-0123456789abcdef0"), "deploy", "other")
    assert all(map(may, (own, chained, further, bystander)))
    done = contain().isolate()
    assert not any(map(may, (own, chained, further)))
    assert may(bystander)
    found = {str(c.attribute): c.phase for c in done.made if c.attribute.kind == "session-deny"}
    assert found == {f"session-deny {WEB}": "sessions", "session-deny deploy": "after",
                     "session-deny audit-all": "after"}  # fmt: skip
    undone = contain().release()
    assert all(map(may, (own, chained, further)))
    assert by_kind(undone)["session-deny"] == {"exact"}
    assert policies(aws, "deploy") == policies(aws, "audit-all") == []


def test_a_role_of_another_account(contain, attacker, aws):
    chained = attacker.chain(attacker.own(), "cross", "xx", LOG_ARCHIVE)
    done = contain().isolate()
    assert not may(chained)
    assert f"session-deny {LOG_ARCHIVE}/cross" in [str(c.attribute) for c in done.made]
    contain().release()
    assert policies(aws, "cross", LOG_ARCHIVE) == []


@pytest.mark.chaos
def test_an_account_that_is_out_of_reach_meanwhile(contain, attacker, aws, monkeypatch, web):
    """The rest is given back; what could not be is said, and done by the next release."""
    attacker.chain(attacker.own(), "cross", "xx", LOG_ARCHIVE)
    contain().isolate()
    plain = Clients.client

    def client(self, service, account, region):
        if account == LOG_ARCHIVE:
            raise AccountError("out of reach")
        return plain(self, service, account, region)

    monkeypatch.setattr(Clients, "client", client)
    done = by_kind(contain().release())
    assert done["session-deny"] == {"cannot", "exact"}
    assert done["groups"] == {"exact"}
    monkeypatch.undo()
    [last] = contain().release()
    assert (str(last.attribute), last.restored) == (f"session-deny {LOG_ARCHIVE}/cross", "exact")
    assert policies(aws, "cross", LOG_ARCHIVE) == []


def test_its_own_role_assumed_by_itself(contain, attacker, web):
    own = attacker.own()
    chained = attacker.chain(own, WEB, "me-again")
    planned = contain().plan()
    done = contain().isolate()
    assert not may(own)
    assert not may(chained)
    assert [(c.attribute, c.after) for c in planned.changes if c.attribute.kind == "session-deny"
            ] == [(c.attribute, c.after) for c in done.made
                  if c.attribute.kind == "session-deny"]  # fmt: skip
    contain().release()
    assert web.iam.list_role_policies(RoleName=WEB)["PolicyNames"] == []


@pytest.mark.chaos
def test_sessions_found_later_are_added_to_those_denied(contain, attacker):
    own = attacker.own()
    first = attacker.chain(own, "deploy", "one")
    contain().isolate()
    late = attacker.chain(attacker.own("i-0123456789abcdef0"), "deploy", "two")
    assert may(late)
    # Its event shows late; it was made before the deny.
    for event in trail._events[MEMBER, REGION]:
        if "two" in event["CloudTrailEvent"]:
            event["CloudTrailEvent"] = event["CloudTrailEvent"].replace(
                "i-0123456789abcdef0", attacker.web.id
            )
            event["Username"] = attacker.web.id
    contain().isolate()
    assert not may(first)
    assert not may(late)
    assert contain().plan().changes == ()


@pytest.mark.chaos
def test_again_finds_the_same_sessions_and_changes_nothing(contain, attacker, aws, world):
    attacker.chain(attacker.own(), "deploy", "night-job")
    contain().isolate()
    seen = len(list(aws.calls()))
    world.case.refresh()
    size = len(world.case.ledger.entries)
    again = contain().isolate()
    assert (changing(aws, seen), again.made) == ([], [])
    world.case.refresh()
    assert len(world.case.ledger.entries) == size


@pytest.mark.chaos
def test_a_refused_assume_role_gives_nothing_to_deny(contain, attacker, aws):
    iam = aws.client("iam", MEMBER)
    iam.create_role(RoleName="closed", AssumeRolePolicyDocument=json.dumps({"Statement": []}))
    with pytest.raises(ClientError):
        attacker.chain(attacker.own(), "closed", "xx", trusted=False)
    contain().isolate()
    assert policies(aws, "closed") == []


def test_sessions_that_may_not_be_looked_up_are_a_gap(contain, aws):
    deny(aws, "LookupEvents", "cloudtrail")
    done = contain().isolate()
    assert [g for g in done.gaps if "cloudtrail:LookupEvents" in g]
    assert done.verdict.verdict == "groups applied, not probed"


@pytest.mark.chaos
def test_a_chained_role_that_may_not_be_changed_is_a_gap(contain, attacker, aws):
    chained = attacker.chain(attacker.own(), "deploy", "xx")
    aws.faults.add(Fault("error", service="iam", operation="PutRolePolicy", account=MEMBER,
                         resource="deploy", code="AccessDenied"))  # fmt: skip
    done = contain().isolate()
    assert may(chained)
    assert [g for g in done.gaps if "session-deny deploy" in g]


def test_calls_that_succeed_after_the_deny_are_no_isolation(contain, attacker, aws, monkeypatch):
    own = attacker.own()
    assert contain().isolate().verdict.verdict == "groups applied, not probed"
    # IAM does not hold it there yet, longer than it may.
    monkeypatch.setattr("pipeline.isolate.IN_FORCE", timedelta(seconds=-1))
    own("ec2")
    from pipeline.gameday.aws import identities  # once `aws` has installed it

    monkeypatch.setattr(identities, "effects", lambda *_a, **_k: set())
    assert may(own)
    monkeypatch.undo()
    monkeypatch.setattr("pipeline.isolate.IN_FORCE", timedelta(seconds=-1))
    found = contain().isolate().verdict
    assert found.verdict == "not isolated"
    assert [t for t in found.left if "DescribeRegions" in t]


def test_a_key_that_is_named_is_deactivated(contain, attacker, aws):
    key, client = attacker.user()
    other = aws.client("iam", MEMBER).create_access_key(UserName="deployer")["AccessKey"]
    assert may(client)
    done = contain(user_keys=(key,)).isolate()
    assert not may(client)
    states = {
        k["AccessKeyId"]: k["Status"]
        for k in aws.client("iam", MEMBER).list_access_keys(UserName="deployer")[
            "AccessKeyMetadata"
        ]
    }
    assert states == {key: "Inactive", other["AccessKeyId"]: "Active"}
    document = aws.client("iam", MEMBER).get_user_policy(
        UserName="deployer", PolicyName=f"impound-{attacker.web.id}"
    )["PolicyDocument"]  # fmt: skip
    [statement] = document["Statement"]
    assert list(statement["Condition"]) == ["DateLessThan"]  # tokens of it, not other keys
    assert {str(c.attribute).split()[0] for c in done.made if c.phase == "after"} >= {
        "access-key", "user-deny",
    }  # fmt: skip
    assert contain(user_keys=(key,)).plan().changes == ()
    undone = contain().release()
    assert may(client)
    assert by_kind(undone)["access-key"] == by_kind(undone)["user-deny"] == {"exact"}


def test_a_key_used_from_the_instance_is_found(contain, attacker, web, aws):
    _, own = interface_of(web)
    _, client = attacker.user(address=own)
    _, bystander = attacker.user("else", address="192.0.2.77")
    assert may(client)
    assert may(bystander)
    contain().isolate()
    assert not may(client)
    assert may(bystander)


@pytest.mark.chaos
def test_a_key_that_was_inactive_before_stays_so(contain, attacker, aws):
    key, _ = attacker.user()
    iam = aws.client("iam", MEMBER)
    iam.update_access_key(UserName="deployer", AccessKeyId=key, Status="Inactive")
    contain(user_keys=(key,)).isolate()
    contain().release()
    [held] = iam.list_access_keys(UserName="deployer")["AccessKeyMetadata"]
    assert held["Status"] == "Inactive"


@pytest.mark.chaos
def test_a_key_that_was_deleted_since_cannot_be_restored(contain, attacker, aws):
    key, _ = attacker.user()
    contain(user_keys=(key,)).isolate()
    aws.client("iam", MEMBER).delete_access_key(UserName="deployer", AccessKeyId=key)
    assert by_kind(contain().release())["access-key"] == {"cannot"}


@pytest.mark.chaos
def test_a_key_of_nobody_is_a_gap(contain, web):
    done = contain(user_keys=("AKIAIOSFODNN7EXAMPLE",)).isolate()
    assert [g for g in done.gaps if "AKIAIOSFODNN7EXAMPLE" in g]
    assert done.verdict.verdict == "groups applied, not probed"


@pytest.fixture
def neighbour(web):
    """Another instance with the same role."""
    made = web.ec2.run_instances(
        ImageId="ami-gameday", InstanceType="m6i.large", MinCount=1, MaxCount=1,
        IamInstanceProfile={"Name": WEB},
    )  # fmt: skip
    return made["Instances"][0]["InstanceId"]


def test_role_wide_waits_and_names_whom_it_breaks(contain, attacker, neighbour, web):
    theirs = attacker.own(neighbour)
    done = contain(role_wide=True).isolate()
    assert neighbour in done.waits
    assert may(theirs)
    assert set(map(tuple, web.groups().values())) == {(web.isolation_group(),)}  # cut all the same


def test_role_wide_ends_all_sessions_of_the_role(contain, attacker, neighbour, world, web):
    before = web.picture()
    theirs = attacker.own(neighbour)
    planned = contain(role_wide=True).plan()
    assert planned.breaks == (neighbour,)
    done = contain(role_wide=True, approve=lambda _q: True).isolate()
    assert done.breaks == (neighbour,)
    assert not may(theirs)
    world.case.refresh()
    given = [e for e in world.case.ledger.events if e.action == "approval.given"]
    assert [(e.data["step"], neighbour in e.note) for e in given] == [("role-wide", True)]
    assert contain(role_wide=True).plan().changes == ()
    contain().release()
    assert may(theirs)
    assert web.picture() == before
