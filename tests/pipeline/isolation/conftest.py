# SPDX-License-Identifier: Apache-2.0
"""An instance of the stand-in, its containment, and what tests of both share."""

from __future__ import annotations

import contextlib
import json

import pytest

from acquisition.containment.state import GROUP_NAME
from acquisition.target import parse_target
from evidence_store.store import Case
from pipeline.config import Settings
from pipeline.gameday.aws.accounts import MEMBER, REGION, Credentials, assume
from pipeline.gameday.aws.faults import Fault
from pipeline.gameday.aws.seed import WEB, estate
from pipeline.isolate import Containment
from tests.evidence_store.kit import make_world

SOURCES = ("10.9.0.0/24",)
RULES = ["egress -1 all 127.0.0.1/32", "ingress tcp 22 10.9.0.0/24"]
PEER = "198.51.100.7/32"
CHANGING = ("Modify", "Create", "Delete", "Associate", "Disassociate", "Authorize", "Revoke", "Put",
            "Detach", "Attach", "Enter", "Exit", "Set")  # fmt: skip
KINDS = ["termination-protection", "stop-protection", "shutdown-behavior", "delete-on-termination",
         "membership", "groups", "address", "acl-entry", "session-deny", "profile"]  # fmt: skip


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


def deny(aws, operation, service="*", times=None):
    code = "UnauthorizedOperation" if service == "ec2" else "AccessDenied"
    aws.faults.add(Fault(
        "error", service=service, operation=operation, account=MEMBER, code=code, times=times
    ))  # fmt: skip


def interface_of(web, number=0):
    held = web.ec2.describe_network_interfaces(NetworkInterfaceIds=[web.interfaces[number]])
    return web.interfaces[number], held["NetworkInterfaces"][0]["PrivateIpAddress"]


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
