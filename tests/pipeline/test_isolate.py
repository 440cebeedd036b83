# SPDX-License-Identifier: Apache-2.0
"""Isolation and release against the AWS stand-in: each bad input, each lost answer, each kill."""

from __future__ import annotations

import contextlib
import json
import socket
from datetime import timedelta

import pytest
from botocore.exceptions import ClientError

from acquisition.containment.aws import Aws, GoneError
from acquisition.containment.identity import ContainmentError
from acquisition.containment.state import GROUP_NAME, Attribute
from acquisition.errors import AcquisitionError
from acquisition.target import parse_target
from evidence_store.store import Case
from pipeline.accounts import AccountError
from pipeline.config import Settings
from pipeline.gameday.aws import trail
from pipeline.gameday.aws.accounts import LOG_ARCHIVE, MEMBER, REGION, Credentials, assume
from pipeline.gameday.aws.faults import Fault
from pipeline.gameday.aws.seed import CALLED, FLOW_LOGS, SERVED, WEB, estate, flow
from pipeline.isolate import Containment
from pipeline.journal import LateError
from tests.evidence_store.kit import make_world

SOURCES = ("10.9.0.0/24",)
RULES = ["egress -1 all 127.0.0.1/32", "ingress tcp 22 10.9.0.0/24"]
PEER = "198.51.100.7/32"
CHANGING = ("Modify", "Create", "Delete", "Associate", "Disassociate", "Authorize", "Revoke", "Put",
            "Detach", "Attach", "Enter", "Exit", "Set")  # fmt: skip


class Clients:
    """Accounts, as far as isolation asks for them."""

    def __init__(self, aws):
        self.aws = aws

    def client(self, service, account, region):
        return self.aws.client(service, account)


@pytest.fixture
def aws(aws_in_process):
    return aws_in_process


@pytest.fixture
def zone(aws, tmp_path):
    image = tmp_path / "root.img"
    image.write_bytes(bytes(4096))
    return estate(aws, [image])


@pytest.fixture
def world(tmp_path):
    return make_world(tmp_path / "evidence")


class Web:
    """The instance, seen by other eyes than those of the tool."""

    def __init__(self, aws, instance):
        self.aws, self.id = aws, instance
        self.ec2 = aws.client("ec2", MEMBER)
        self.scaling = aws.client("autoscaling", MEMBER)
        self.iam = aws.client("iam", MEMBER)

    @property
    def described(self):
        return self.ec2.describe_instances(InstanceIds=[self.id])["Reservations"][0]["Instances"][0]

    @property
    def interfaces(self):
        held = sorted(
            self.described["NetworkInterfaces"], key=lambda n: n["Attachment"]["DeviceIndex"]
        )
        return [n["NetworkInterfaceId"] for n in held]

    def groups(self):
        found = self.ec2.describe_network_interfaces(NetworkInterfaceIds=self.interfaces)
        return {n["NetworkInterfaceId"]: sorted(g["GroupId"] for g in n["Groups"])
                for n in found["NetworkInterfaces"]}  # fmt: skip

    def flag(self, name):
        said = self.ec2.describe_instance_attribute(InstanceId=self.id, Attribute=name)
        return said[name[0].upper() + name[1:]]["Value"]

    def member(self):
        found = self.scaling.describe_auto_scaling_instances(InstanceIds=[self.id])
        return [(i["AutoScalingGroupName"], i["LifecycleState"], i["ProtectedFromScaleIn"])
                for i in found["AutoScalingInstances"]]  # fmt: skip

    def addresses(self):
        return {a["AllocationId"]: (a.get("NetworkInterfaceId"), a.get("PrivateIpAddress"))
                for a in self.ec2.describe_addresses()["Addresses"]}  # fmt: skip

    def entries(self):
        return [e for a in self.ec2.describe_network_acls()["NetworkAcls"] for e in a["Entries"]]

    def profiles(self):
        found = self.ec2.describe_iam_instance_profile_associations(
            Filters=[{"Name": "instance-id", "Values": [self.id]}]
        )
        return [a["IamInstanceProfile"]["Arn"] for a in found["IamInstanceProfileAssociations"]]

    def isolation_group(self):
        found = self.ec2.describe_security_groups(
            Filters=[{"Name": "group-name", "Values": [GROUP_NAME]}]
        )["SecurityGroups"]
        return found[0]["GroupId"] if found else None

    def picture(self):
        """Everything that isolation changes, by kind."""
        return {
            "termination-protection": self.flag("disableApiTermination"),
            "stop-protection": self.flag("disableApiStop"),
            "shutdown-behavior": self.flag("instanceInitiatedShutdownBehavior"),
            "delete-on-termination": [m["Ebs"]["DeleteOnTermination"]
                                      for m in self.described["BlockDeviceMappings"]],
            "membership": self.member(),
            "groups": self.groups(),
            "address": self.addresses(),
            "acl-entry": self.entries(),
            "session-deny": self.iam.list_role_policies(RoleName=WEB)["PolicyNames"],
            "profile": self.profiles(),
        }  # fmt: skip


@pytest.fixture
def web(aws, zone):
    return Web(aws, zone.instance)


@pytest.fixture
def contain(aws, zone, world):
    """A containment as a new run makes it, on the case as it is stored now."""

    def make(case=None, **more):
        settings = Settings(aws={"isolation_sources": SOURCES})
        target = parse_target(zone.variables()["INSTANCE"])
        if case is None:
            case = Case(world.store, world.case.case_id)
            case.refresh()
        more = {"peers": (PEER,), "sleep": lambda _s: None} | more
        return Containment(case, Clients(aws), settings, target, **more)

    return make


def changing(aws, since=0):
    return [c.operation for c in list(aws.calls())[since:] if c.operation.startswith(CHANGING)]


def by_kind(undone):
    found = {}
    for one in undone:
        found.setdefault(one.attribute.kind, set()).add(one.restored)
    return found


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


# -- sessions that its own ones assumed, users' keys


class Attacker:
    """Acts with the credentials of the instance, and what they get."""

    def __init__(self, aws, web):
        self.aws, self.web = aws, web

    def session(self, credentials, address=""):
        def client(service):
            made = credentials.session().client(
                service, region_name=REGION, endpoint_url=self.aws.endpoint
            )
            if address:
                made.meta.events.register("before-sign", lambda request, **_: request.headers
                                          .add_header("X-Forwarded-For", address))  # fmt: skip
            return made

        return client

    def own(self, instance=""):
        return self.session(assume(MEMBER, WEB, instance or self.web.id, self.aws.endpoint))

    def chain(self, client, role, name, account=MEMBER, *, trusted=True):
        trust = {"Version": "2012-10-17", "Statement": [
            {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}
        ]}  # fmt: skip
        iam = self.aws.client("iam", account)
        with contextlib.suppress(iam.exceptions.EntityAlreadyExistsException):
            iam.create_role(RoleName=role, AssumeRolePolicyDocument=json.dumps(trust))
        if trusted:
            iam.update_assume_role_policy(RoleName=role, PolicyDocument=json.dumps(trust))
        got = client("sts").assume_role(
            RoleArn=f"arn:aws:iam::{account}:role/{role}", RoleSessionName=name
        )["Credentials"]  # fmt: skip
        return self.session(
            Credentials(got["AccessKeyId"], got["SecretAccessKey"], got["SessionToken"])
        )

    def user(self, name="deployer", address=""):
        iam = self.aws.client("iam", MEMBER)
        iam.create_user(UserName=name)
        made = iam.create_access_key(UserName=name)["AccessKey"]
        held = Credentials(made["AccessKeyId"], made["SecretAccessKey"], "")
        return made["AccessKeyId"], self.session(held, address)


@pytest.fixture
def attacker(aws, web):
    return Attacker(aws, web)


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


# -- peers that flow logs name


def denied(web):
    return sorted((e["CidrBlock"], e["Egress"]) for e in web.entries()
                  if e["RuleAction"] == "deny" and e["RuleNumber"] < 32767)  # fmt: skip


def interface_of(web, number=0):
    held = web.ec2.describe_network_interfaces(NetworkInterfaceIds=[web.interfaces[number]])
    return web.interfaces[number], held["NetworkInterfaces"][0]["PrivateIpAddress"]


def test_whom_it_talked_to_is_cut_without_being_named(contain, web):
    done = contain(peers=()).isolate()
    cut = (f"{CALLED}/32", f"{SERVED}/32")
    assert denied(web) == sorted((c, way) for c in cut for way in (True, False))
    [called, served] = done.document()["peers"]
    assert (called["address"], called["opened"], called["kind"]) == (CALLED, True, "peer")
    assert (served["address"], served["opened"]) == (SERVED, False)
    numbers = {e["CidrBlock"]: e["RuleNumber"] for e in web.entries() if not e["Egress"]}
    assert numbers[cut[0]] < numbers[cut[1]]


def test_release_removes_the_entries_of_observed_peers(contain, web):
    before = web.entries()
    contain(peers=()).isolate()
    done = contain(peers=()).release()
    assert web.entries() == before
    assert [u.restored for u in done if u.attribute.kind == "acl-entry"] == ["exact"] * 4


@pytest.mark.chaos
def test_peers_are_looked_for_after_the_cut(contain, aws):
    contain().isolate()
    order = [c.operation for c in aws.calls()]
    asked = order.index("FilterLogEvents")
    assert {"ModifyNetworkInterfaceAttribute", "PutRolePolicy", "DisassociateAddress"} <= set(
        order[:asked]
    )


@pytest.mark.chaos
def test_a_private_peer_is_named_and_not_cut(contain, web, aws):
    interface, own = interface_of(web)
    flow(aws.client("logs", MEMBER), interface, own, "10.77.0.9", 50_000, 5432)
    done = contain(peers=()).isolate()
    [gap] = [g for g in done.gaps if "10.77.0.9" in g]
    assert "--peer" in gap
    assert not [c for c, _ in denied(web) if c.startswith("10.77.")]


@pytest.mark.chaos
def test_responders_are_no_peers(contain, web, aws):
    interface, own = interface_of(web)
    flow(aws.client("logs", MEMBER), interface, "10.9.0.5", own, 50_000, 22)
    done = contain(peers=()).isolate()
    assert "10.9.0." not in str(done.document()["peers"]) + str(done.gaps)


@pytest.mark.chaos
def test_a_peer_of_the_second_interface(contain, web, aws):
    interface, own = interface_of(web, 1)
    flow(aws.client("logs", MEMBER), interface, own, "192.0.2.9", 50_000, 80)
    contain(peers=()).isolate()
    assert ("192.0.2.9/32", True) in denied(web)


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"age": 7200.0}, "hold no accepted flow"),
        ({"action": "REJECT"}, "hold no accepted flow"),
    ],
)
def test_a_log_that_holds_nothing_is_no_proof_of_no_peer(contain, web, aws, change, said):
    logs = aws.client("logs", MEMBER)
    logs.delete_log_group(logGroupName=FLOW_LOGS)
    logs.create_log_group(logGroupName=FLOW_LOGS)
    interface, own = interface_of(web)
    flow(logs, interface, own, "192.0.2.9", 50_000, 80, **change)
    done = contain(peers=()).isolate()
    assert [g for g in done.gaps if said in g]
    assert denied(web) == []


def test_without_flow_logs_the_plan_says_that_peers_are_not_known(contain, web):
    held = [f["FlowLogId"] for f in web.ec2.describe_flow_logs()["FlowLogs"]]
    web.ec2.delete_flow_logs(FlowLogIds=held)
    assert [g for g in contain(peers=()).plan().gaps if "has no flow logs" in g]
    assert [g for g in contain(peers=()).isolate().gaps if "has no flow logs" in g]


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("service", "operation", "right"),
    [("ec2", "DescribeFlowLogs", "ec2:DescribeFlowLogs"),
     ("logs", "FilterLogEvents", "logs:FilterLogEvents")],
)  # fmt: skip
def test_without_the_right_to_read_flow_logs(contain, web, aws, service, operation, right):
    deny(aws, operation, service)
    done = contain().isolate()
    assert [g for g in done.gaps if right in g]
    assert done.verdict.verdict == "groups applied, not probed"
    assert [c for c, _ in denied(web)] == [PEER, PEER]


@pytest.mark.chaos
def test_flow_logs_that_give_no_answer_keep_nothing_waiting(contain, web, monkeypatch):
    def late(_seconds, _call):
        raise LateError("late")

    monkeypatch.setattr("pipeline.sightings.within", late)
    done = contain().isolate()
    assert [g for g in done.gaps if "no peer is known" in g]
    assert done.verdict.verdict == "groups applied, not probed"


@pytest.mark.chaos
def test_more_peers_than_an_acl_has_room_for(contain, web, aws):
    interface, own = interface_of(web)
    logs = aws.client("logs", MEMBER)
    for n in range(20):
        flow(logs, interface, f"192.0.2.{n}", own, 50_000, 443)
    done = contain(peers=()).isolate()
    entries = [e for e in web.entries() if e["Egress"]]
    assert len(entries) == 20
    assert any(e.get("CidrBlock") == f"{CALLED}/32" for e in entries)
    assert [g for g in done.gaps if "no free egress rule" in g]
    contain().release()
    assert denied(web) == []


def deny(aws, operation, service="*", times=None):
    code = "UnauthorizedOperation" if service == "ec2" else "AccessDenied"
    aws.faults.add(Fault(
        "error", service=service, operation=operation, account=MEMBER, code=code, times=times
    ))  # fmt: skip


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


KINDS = ["termination-protection", "stop-protection", "shutdown-behavior", "delete-on-termination",
         "membership", "groups", "address", "acl-entry", "session-deny", "profile"]  # fmt: skip


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


# -- proof by packets, through the stand-in's network


@pytest.fixture
def listener():
    """A port on 127.0.0.1 that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield server.getsockname()[1]


@pytest.fixture
def packets(aws, contain, web, listener):
    """A containment that probes from the forensics side, with a host behind the instance."""
    aws.attach(web.id, {22: listener, 4444: listener})

    def make(source="10.9.0.4", sources=SOURCES, **more):
        made = contain(packets=True, probe_s=2.0, **more)
        made.settings = Settings(
            aws={"isolation_sources": sources},
            ssh={"proxy": f"127.0.0.1:{aws.vantage(source)}", "source": source},
        )
        return made

    return make


def proved(world):
    return [e.data for e in world.case.ledger.events if (e.data or {}).get("step") == "prove"][-1]


def test_isolation_is_proved_by_packets(packets, world):
    done = packets(sockets=lambda: ()).isolate()
    assert (done.verdict.verdict, done.verdict.left, done.gaps) == ("isolated", (), [])
    world.case.refresh()
    assert proved(world)["verdict"] == "isolated"
    probed = [e.data for e in world.case.ledger.events if (e.data or {}).get("step") == "probe"][-1]
    assert probed["source"] == "10.9.0.4"
    assert len(probed["reached"]) == 2  # port 22 of both interfaces, and nothing else
    assert {4444, 4445, 22} < set(probed["ports"])


def test_flows_of_the_instance_are_exceptions(packets, world):
    done = packets(sockets=lambda: ("tcp 10.0.0.5:51000 203.0.113.9:443",)).isolate()
    assert done.verdict.verdict == "isolated except"
    assert done.gaps == [
        "isolated except: the host holds a flow, which may be cut by now: "
        "tcp 10.0.0.5:51000 203.0.113.9:443"
    ]


def test_nobody_who_logs_in_is_an_exception_too(packets):
    assert packets().isolate().gaps == [
        "isolated except: flows that began before: nobody logged in to look"
    ]


def test_a_login_that_fails_is_a_gap_and_the_proof_goes_on(packets):
    def flows():
        raise AcquisitionError("the host refuses the key")

    done = packets(sockets=flows).isolate()
    assert done.verdict.verdict == "isolated except"
    assert done.gaps[0] == "its flows were not looked at: the host refuses the key"


def test_a_port_that_answers_is_not_isolated(packets, web, monkeypatch):
    """Groups that read right and do not filter: what only a packet shows."""
    from pipeline.gameday.aws import network

    plain = network.begins
    monkeypatch.setattr(network, "begins",
                        lambda flow, end: flow.port in (22, 4444) or plain(flow, end))  # fmt: skip
    done = packets(sockets=lambda: ()).isolate()
    assert done.verdict.verdict == "not isolated"
    assert len(done.verdict.left) == 2
    assert all("port 4444 of" in text for text in done.verdict.left)


def test_a_machine_that_isolation_does_not_let_in_proves_nothing(packets):
    done = packets(source="10.8.0.4").isolate()
    assert done.verdict.verdict == "groups applied, not probed"
    assert done.gaps[0].endswith("10.8.0.4 is not among aws.isolation_sources")


def test_without_sources_there_is_nothing_to_prove_it_by(packets):
    done = packets(sources=()).isolate()
    assert done.gaps[0].endswith("aws.isolation_sources names no network")


def test_a_host_that_is_off_proves_nothing(packets, contain, web):
    contain().isolate()
    web.ec2.modify_instance_attribute(InstanceId=web.id, DisableApiStop={"Value": False})
    web.ec2.stop_instances(InstanceIds=[web.id], Force=True)
    done = packets().isolate()
    assert done.verdict.verdict == "groups applied, not probed"
    assert "silence proves nothing" in done.gaps[-1]
