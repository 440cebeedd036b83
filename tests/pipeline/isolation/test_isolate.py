# SPDX-License-Identifier: Apache-2.0
"""Isolation and release against the AWS stand-in: the whole way, each bad input."""

from __future__ import annotations

import json

import pytest

from acquisition.containment.aws import Aws, GoneError
from acquisition.containment.state import GROUP_NAME, Attribute
from acquisition.target import parse_target
from pipeline.gameday.aws.accounts import MEMBER
from pipeline.gameday.aws.seed import WEB
from tests.pipeline.isolation.conftest import KINDS, PEER, RULES, by_kind, changing, deny

# -- the whole of it


def test_an_instance_is_cut_off(contain, web):
    done = contain().isolate()
    group = web.isolation_group()
    assert set(map(tuple, web.groups().values())) == {(group,)}
    assert len(web.groups()) == 2
    now = web.picture()
    assert (now["termination-protection"], now["stop-protection"]) == (True, True)
    assert (now["shutdown-behavior"], now["delete-on-termination"]) == ("stop", [False])
    assert (now["membership"], now["profile"]) == ([], [])
    assert set(now["address"].values()) == {("", None)}
    denied = [e for e in now["acl-entry"] if e.get("CidrBlock") == PEER]
    assert {(e["Egress"], e["RuleAction"], e["RuleNumber"]) for e in denied} == {
        (True, "deny", 1), (False, "deny", 1),
    }  # fmt: skip
    document = web.iam.get_role_policy(RoleName=WEB, PolicyName=now["session-deny"][0])
    [statement] = document["PolicyDocument"]["Statement"]
    assert statement["Effect"] == "Deny"
    assert statement["Condition"] == {"StringLike": {"aws:userid": f"*:{web.id}"}}
    assert done.verdict.verdict == "groups applied, not probed"
    assert done.verdict.left == ()
    assert done.gaps == [
        "groups applied, not probed: no packet was sent to prove that nothing gets through"
    ]
    assert any("DNS" in text for text in done.verdict.unfiltered)


def test_the_isolation_group_lets_the_responders_in_and_nothing_out(contain, web):
    contain().isolate()
    rules = web.ec2.describe_security_group_rules(
        Filters=[{"Name": "group-id", "Values": [web.isolation_group()]}]
    )["SecurityGroupRules"]
    assert {(r["IsEgress"], r["IpProtocol"], r["CidrIpv4"]) for r in rules} == {
        (True, "-1", "127.0.0.1/32"), (False, "tcp", "10.9.0.0/24"),
    }  # fmt: skip


def test_release_puts_all_back(contain, web):
    before = web.picture()
    contain().isolate()
    assert all(web.picture()[kind] != value for kind, value in before.items())
    done = contain().release()
    assert web.picture() == before
    found = by_kind(done)
    anew = ("address", "profile", "membership")
    assert {k for k, v in found.items() if v == {"new id"}} == set(anew)
    assert {k for k, v in found.items() if v == {"exact"}} == (
        {*KINDS, "scale-in-protection"} - set(anew)
    )
    notes = {u.attribute.kind: u.note for u in done}
    assert "is now eipassoc-" in notes["address"]
    assert "is now iip-assoc-" in notes["profile"]
    assert "desired 2" in notes["membership"]
    assert contain().release() == []


def test_the_plan_is_what_is_done(contain):
    planned = contain().plan()
    done = contain().isolate()
    assert [c.attribute for c in planned.changes] == [c.attribute for c in done.made]
    assert [c.before for c in planned.changes] == [c.before for c in done.made]
    assert contain().plan().changes == ()


def test_a_plan_changes_nothing(contain, aws, world):
    seen, size = len(list(aws.calls())), len(world.case.ledger.entries)
    contain().plan()
    contain().release_plan()
    assert changing(aws, seen) == []
    world.case.refresh()
    assert len(world.case.ledger.entries) == size


def test_again_changes_nothing_and_records_nothing(contain, aws, world):
    contain().isolate()
    seen = len(list(aws.calls()))
    world.case.refresh()
    size = len(world.case.ledger.entries)
    again = contain().isolate()
    assert changing(aws, seen) == []
    assert again.made == []
    world.case.refresh()
    assert len(world.case.ledger.entries) == size


def test_what_it_was_is_recorded_before_the_first_change(contain, aws, zone, world):
    seen = len(list(aws.calls()))
    known = []

    class Watching:
        def __init__(self, case):
            self.case, self.ledger = case, case.ledger

        def record(self, build):
            logged = self.case.record(build)
            if logged and (logged.event.data or {}).get("step") == "observe state":
                known.append((logged.event.action, changing(aws, seen)))
            return logged

    world.case.refresh()
    contain(case=Watching(world.case)).isolate()
    assert known == [("step.started", []), ("step.done", [])]
    kept = contain().original()
    kinds = {a.kind for a in kept}
    assert kinds >= {"groups", "address", "profile", "membership", "acl-entry", "isolation-group",
                     "termination-protection", "stop-protection", "shutdown-behavior",
                     "delete-on-termination", "session-deny", "scale-in-protection"}  # fmt: skip
    assert len([a for a in kept if a.kind == "groups"]) == 2
    assert kept[Attribute("shutdown-behavior", zone.instance)] == "terminate"


def test_every_change_is_an_intent_and_an_outcome(contain, world):
    made = contain().isolate().made
    contain().release()
    world.case.refresh()
    events = {e.seq: e for e in world.case.ledger.events}
    for action, count in (("target.changed", len(made)), ("target.restored", len(made) - 1)):
        outcomes = [e for e in events.values() if e.action == action]
        assert len(outcomes) == count
        for one in outcomes:
            [intent] = [events[r] for r in one.refs]
            assert intent.action == "step.started"
            assert intent.data["attribute"] == one.data["attribute"]


def test_isolated_again_after_a_release(contain, web):
    before = web.picture()
    web.scaling.update_auto_scaling_group(AutoScalingGroupName=WEB, MaxSize=9)
    for _ in range(2):
        contain().isolate()
        assert contain().plan().changes == ()
        contain().release()
    assert web.picture() == before


# -- bad inputs


def test_without_a_profile(contain, web):
    [held] = web.ec2.describe_iam_instance_profile_associations()["IamInstanceProfileAssociations"]
    web.ec2.disassociate_iam_instance_profile(AssociationId=held["AssociationId"])
    done = contain().isolate()
    assert done.verdict.verdict == "groups applied, not probed"
    assert not {c.attribute.kind for c in done.made} & {"profile", "session-deny"}
    assert web.iam.list_role_policies(RoleName=WEB)["PolicyNames"] == []


def test_without_the_tag_notification(contain, web):
    web.ec2.delete_tags(Resources=[web.id], Tags=[{"Key": "notification"}])
    done = contain().isolate()
    assert [g for g in done.gaps if "`notification`" in g]
    assert done.verdict.verdict == "groups applied, not probed"


def test_in_a_group_that_would_end_it(contain, web):
    """Its load balancer cannot reach it any more; it was detached before, so it lives."""
    contain().isolate()
    for _ in range(3):
        assert web.described["State"]["Name"] == "running"
    members = web.scaling.describe_auto_scaling_groups()["AutoScalingGroups"][0]["Instances"]
    assert [m["InstanceId"] for m in members] != [web.id]
    assert len(members) == 1


def test_that_cannot_be_detached_goes_on_standby(contain, web, aws):
    before = web.picture()
    deny(aws, "DetachInstances", "autoscaling")
    done = contain().isolate()
    assert web.member() == [(WEB, "Standby", True)]
    assert web.described["State"]["Name"] == "running"
    assert done.verdict.verdict == "groups applied, not probed"
    assert contain().plan().changes == ()
    undone = by_kind(contain().release())
    assert undone["membership"] == {"new id"}
    assert web.picture() == before


def test_that_cannot_leave_its_group_waits_for_an_approval(contain, web, aws):
    deny(aws, "DetachInstances", "autoscaling")
    deny(aws, "EnterStandby", "autoscaling")
    before = web.groups()
    done = contain().isolate()
    assert WEB in done.waits
    assert web.groups() == before
    assert web.profiles()
    assert web.addresses()
    assert done.verdict.verdict == "not isolated"
    assert web.flag("disableApiTermination") is True


def test_approved_it_is_cut_off_and_may_be_ended(contain, web, aws, world):
    deny(aws, "DetachInstances", "autoscaling")
    deny(aws, "EnterStandby", "autoscaling")
    asked = []
    done = contain(approve=lambda question: not asked.append(question)).isolate()
    assert len(asked) == 1
    assert done.waits == ""
    world.case.refresh()
    assert [e for e in world.case.ledger.events if e.action == "approval.given"]
    assert web.described["State"]["Name"] == "terminated"
    assert done.verdict.verdict == "not isolated"
    assert any("terminated" in text for text in done.verdict.left)


def test_a_group_that_cannot_be_seen_but_is_tagged_waits(contain, web, aws):
    deny(aws, "DescribeAutoScalingInstances", "autoscaling")
    done = contain().isolate()
    assert "tag says" in done.waits
    assert web.isolation_group() is None


def test_a_drifted_isolation_group_is_repaired(contain, web):
    vpc = web.described["VpcId"]
    drifted = web.ec2.create_security_group(
        GroupName=GROUP_NAME, Description="x", VpcId=vpc
    )["GroupId"]  # fmt: skip
    web.ec2.authorize_security_group_ingress(GroupId=drifted, IpPermissions=[
        {"IpProtocol": "tcp", "FromPort": 1, "ToPort": 65535,
         "IpRanges": [{"CidrIp": "203.0.113.0/24"}]},
        {"IpProtocol": "-1", "Ipv6Ranges": [{"CidrIpv6": "::/0"}]},
        {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": drifted}]},
    ])  # fmt: skip
    done = contain().isolate()
    aws = contain().aws
    assert aws.read(Attribute("isolation-group", vpc)) == {"id": drifted, "rules": RULES}
    assert set(map(tuple, web.groups().values())) == {(drifted,)}
    assert done.verdict.left == ()


def test_an_isolation_group_that_was_stuffed_with_rules(contain, web):
    """Somebody made it before us, with more rules than a ledger entry has room for."""
    vpc = web.described["VpcId"]
    stuffed = web.ec2.create_security_group(
        GroupName=GROUP_NAME, Description="x", VpcId=vpc
    )["GroupId"]  # fmt: skip
    web.ec2.authorize_security_group_ingress(GroupId=stuffed, IpPermissions=[
        {"IpProtocol": "tcp", "FromPort": port, "ToPort": port,
         "IpRanges": [{"CidrIp": "203.0.113.0/24"}]} for port in range(1000, 1055)
    ])  # fmt: skip
    done = contain().isolate()
    assert done.verdict.left == ()
    assert contain().aws.read(Attribute("isolation-group", vpc))["rules"] == RULES


def test_a_policy_of_our_name_that_is_too_long(contain, web):
    """It is told, not overwritten: it could not be put back."""
    long = json.dumps({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Action": f"s3:Get{n}", "Resource": "*"} for n in range(60)
    ]})  # fmt: skip
    name = f"impound-{web.id}"
    web.iam.put_role_policy(RoleName=WEB, PolicyName=name, PolicyDocument=long)
    done = contain().isolate()
    assert [g for g in done.gaps if "not ours" in g]
    held = web.iam.get_role_policy(RoleName=WEB, PolicyName=name)["PolicyDocument"]
    assert held == json.loads(long)
    assert web.profiles() == []


def test_names_that_a_ledger_refuses(contain, world, monkeypatch):
    """Others choose the names of groups; one must not stop an isolation."""
    plain = Aws._membership

    def membership(self):
        held = plain(self)
        return held and held | {"group": "e\u0301vil\x1b[2J"}

    monkeypatch.setattr(Aws, "_membership", membership)
    contain(approve=lambda _question: True).isolate()
    world.case.refresh()
    kept = contain().original()
    [found] = [v for a, v in kept.items() if a.kind == "membership"]
    assert found["group"] == "évil\\x1b[2J"


def test_drift_after_isolation_is_seen_and_repaired(contain, web):
    contain().isolate()
    group = web.isolation_group()
    web.ec2.authorize_security_group_egress(GroupId=group, IpPermissions=[
        {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
    ])  # fmt: skip
    web.ec2.modify_network_interface_attribute(
        NetworkInterfaceId=web.interfaces[0], Groups=[_default(web)]
    )
    done = contain().isolate()
    assert {c.attribute.kind for c in done.made} == {"isolation-group", "groups"}
    assert done.verdict.left == ()


def _default(web):
    found = web.ec2.describe_security_groups(
        Filters=[{"Name": "group-name", "Values": ["default"]},
                 {"Name": "vpc-id", "Values": [web.described["VpcId"]]}]
    )["SecurityGroups"]  # fmt: skip
    return found[0]["GroupId"]


def test_after_drift_release_goes_back_to_the_first_state(contain, web):
    before = web.groups()
    contain().isolate()
    web.ec2.modify_network_interface_attribute(
        NetworkInterfaceId=web.interfaces[0], Groups=[_default(web)]
    )
    contain().isolate()
    contain().release()
    assert web.groups() == before


def test_isolated_by_somebody_else_stays_so_at_release(contain, web):
    vpc = web.described["VpcId"]
    group = web.ec2.create_security_group(
        GroupName=GROUP_NAME, Description="x", VpcId=vpc
    )["GroupId"]  # fmt: skip
    web.scaling.detach_instances(
        AutoScalingGroupName=WEB, InstanceIds=[web.id], ShouldDecrementDesiredCapacity=False
    )
    for each in web.interfaces:
        web.ec2.modify_network_interface_attribute(NetworkInterfaceId=each, Groups=[group])
    done = contain().isolate()
    assert "groups" not in {c.attribute.kind for c in done.made}
    undone = contain().release()
    assert "groups" not in by_kind(undone)
    assert set(map(tuple, web.groups().values())) == {(group,)}


def test_changed_since_by_somebody_else_is_left(contain, web):
    before = web.groups()
    contain().isolate()
    first, second = web.interfaces
    other = _default(web)
    web.ec2.modify_network_interface_attribute(NetworkInterfaceId=first, Groups=[other])
    web.iam.put_role_policy(
        RoleName=WEB, PolicyName=f"impound-{web.id}",
        PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [
            {"Effect": "Deny", "Action": "s3:*", "Resource": "*"}]}),
    )  # fmt: skip
    done = {str(u.attribute): u for u in contain().release()}
    left = done[f"groups {first}"]
    assert left.restored == "cannot"
    assert "changed since by somebody else" in left.note
    assert done[f"session-deny {WEB}"].restored == "cannot"
    assert web.groups() == {first: [other], second: before[second]}
    assert done[f"groups {second}"].restored == "exact"
    assert web.iam.list_role_policies(RoleName=WEB)["PolicyNames"]
    assert web.described["State"]["Name"] == "running"
    again = contain().release()
    assert {u.attribute.kind for u in again} == {
        "groups", "session-deny", "membership", "scale-in-protection",
    }  # fmt: skip


def test_put_back_by_somebody_else_is_found(contain, web):
    before = web.groups()
    contain().isolate()
    for each, groups in before.items():
        web.ec2.modify_network_interface_attribute(NetworkInterfaceId=each, Groups=groups)
    done = contain().release()
    assert {u.note for u in done if u.attribute.kind == "groups"} == {"it was so already"}
    assert web.groups() == before


def end(web):
    for name in ("DisableApiTermination", "DisableApiStop"):
        web.ec2.modify_instance_attribute(InstanceId=web.id, **{name: {"Value": False}})
    web.ec2.terminate_instances(InstanceIds=[web.id])


def test_terminated_before(contain, web, aws):
    web.scaling.detach_instances(
        AutoScalingGroupName=WEB, InstanceIds=[web.id], ShouldDecrementDesiredCapacity=False
    )
    end(web)
    seen = len(list(aws.calls()))
    with pytest.raises(GoneError, match="terminated"):
        contain().isolate()
    assert changing(aws, seen) == []


def test_no_such_instance(contain):
    made = contain()
    made.target = parse_target(f"arn:aws:ec2:eu-central-1:{MEMBER}:instance/i-0123456789abcdef0")
    with pytest.raises(GoneError):
        made.isolate()


def test_terminated_between_isolate_and_release(contain, web):
    """What outlives it is cleared away; the rest is said to be lost."""
    entries = web.entries()
    contain().isolate()
    end(web)
    done = by_kind(contain().release())
    assert done.pop("acl-entry") == {"exact"}
    assert done.pop("session-deny") == {"exact"}
    assert set(map(frozenset, done.values())) == {frozenset({"cannot"})}
    assert web.entries() == entries
    assert web.iam.list_role_policies(RoleName=WEB)["PolicyNames"] == []


def test_terminated_while_it_is_isolated(contain, web, aws, monkeypatch):
    plain = Aws.write

    def write(self, attribute, value):
        if attribute.kind == "groups":
            end(web)
            monkeypatch.setattr(Aws, "write", plain)
        return plain(self, attribute, value)

    monkeypatch.setattr(Aws, "write", write)
    done = contain().isolate()
    assert done.verdict.verdict == "not isolated"
    assert any("terminated" in text for text in done.verdict.left)


def test_a_group_that_was_deleted_since_cannot_be_restored(contain, web):
    contain().isolate()
    gone = [g["GroupId"] for g in web.ec2.describe_security_groups()["SecurityGroups"]
            if g["GroupName"] == "admin"]  # fmt: skip
    web.ec2.delete_security_group(GroupId=gone[0])
    done = {str(u.attribute): u for u in contain().release()}
    lost = [u for u in done.values() if u.attribute.kind == "groups"]
    assert {u.restored for u in lost} == {"cannot"}
    assert all(gone[0] in u.note for u in lost)
    assert web.member() == []
    assert web.described["State"]["Name"] == "running"
    tied = ("groups", "membership", "scale-in-protection")
    assert {u.restored for u in done.values() if u.attribute.kind not in tied} == {
        "exact", "new id",
    }  # fmt: skip


def test_what_cannot_be_reached_again_stays_out_of_its_group(contain, web, aws):
    """Its load balancer would have it ended."""
    contain().isolate()
    deny(aws, "ModifyNetworkInterfaceAttribute", "ec2")
    done = {u.attribute.kind: u for u in contain().release()}
    aws.faults.clear()
    assert done["membership"].restored == "cannot"
    assert "would end it" in done["membership"].note
    assert web.described["State"]["Name"] == "running"
    assert by_kind(contain().release())["membership"] == {"new id"}
    assert web.member()


def test_a_group_that_is_full_cannot_take_it_back(contain, web):
    contain().isolate()
    web.scaling.update_auto_scaling_group(AutoScalingGroupName=WEB, MaxSize=1)
    done = by_kind(contain().release())
    assert done["membership"] == {"cannot"}
    assert done["groups"] == {"exact"}


def test_no_room_in_a_network_acl(contain, web):
    acl = web.ec2.describe_network_acls()["NetworkAcls"][0]["NetworkAclId"]
    web.ec2.create_network_acl_entry(
        NetworkAclId=acl, RuleNumber=1, Egress=True, Protocol="-1", RuleAction="allow",
        CidrBlock="0.0.0.0/0",
    )  # fmt: skip
    done = contain().isolate()
    assert [g for g in done.gaps if "no free egress rule" in g]
    assert {(e["Egress"]) for e in web.entries() if e.get("CidrBlock") == PEER} == {False}
