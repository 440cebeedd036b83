# SPDX-License-Identifier: Apache-2.0
"""The calls of isolation: observe an instance, read and write one attribute.

Every write may be repeated: what it wants is looked for afterwards, and found is done, whatever the
call answered.

Source: EC2 API Reference (ModifyInstanceAttribute, ModifyNetworkInterfaceAttribute,
DescribeSecurityGroupRules, CreateNetworkAclEntry, AssociateAddress, AssociateIamInstanceProfile);
EC2 Auto Scaling API Reference (DetachInstances, EnterStandby, AttachInstances); IAM API Reference
(PutRolePolicy).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

from acquisition.containment.identity import KINDS, ContainmentError, Identity
from acquisition.containment.state import (
    GROUP_NAME,
    NEW_GROUP,
    Attribute,
    State,
    is_member,
    same,
)
from evidence_store.aws import Failure, failures
from evidence_store.model import clean

PAUSE_S = 1.0
PATIENCE_S = 20.0  # a detachment, a new group or a policy may take so long to show
_SWITCHES = {
    "termination-protection": ("disableApiTermination", "DisableApiTermination"),
    "stop-protection": ("disableApiStop", "DisableApiStop"),
    "shutdown-behavior": ("instanceInitiatedShutdownBehavior", "InstanceInitiatedShutdownBehavior"),
}
_GONE = {"InvalidInstanceID.NotFound", "InvalidNetworkInterfaceID.NotFound"}
_LATE = {"InvalidGroup.NotFound"}  # a new group is not known everywhere at once
_MANAGERS = {
    "aws:ecs:clusterName": "ECS", "eks:cluster-name": "EKS", "aws:eks:cluster-name": "EKS",
    "aws:ec2:fleet-id": "an EC2 fleet", "elasticmapreduce:job-flow-id": "EMR",
    "elasticbeanstalk:environment-id": "Elastic Beanstalk",
}  # fmt: skip
_MANY = 20  # rules of a group that a ledger has room for
_GROUP_TAG = "aws:autoscaling:groupName"


class GoneError(ContainmentError):
    """The instance, or what belongs to it, is not there any more."""


@dataclass
class Aws:
    """One instance, seen and changed through AWS.

    Attributes:
        ec2, scaling, iam: clients in its account and Region.
        instance: its id.
        iam_of: a client for IAM in another account.
        sleep: between looks.
    """

    ec2: Any
    scaling: Any
    iam: Any
    instance: str
    iam_of: Callable[[str], Any] | None = None
    sleep: Callable[[float], None] = time.sleep

    # -- observe ---------------------------------------------------------------------------------

    @property
    def identity(self) -> Identity:
        """Roles, users and keys."""
        return Identity(
            lambda account: self.iam_of(account) if account and self.iam_of else self.iam,
            self.instance,
        )

    def observe(self, known: Iterable[Attribute] = ()) -> State:
        """Return what the instance is now. What may not be seen is a gap, the rest is there.

        Args:
            known: denies and keys that it was seen with before: without a profile nothing names
                its role.

        Raises: GoneError if there is no such instance; ContainmentError if nothing of it is seen.
        """
        look = _Look(self)
        instance = look.instance()
        interfaces = look.interfaces()
        if instance is None and not interfaces:
            raise ContainmentError(
                f"nothing of {self.instance} can be seen: {look.gaps[0]}",
                hint="the role needs ec2:DescribeInstances and ec2:DescribeNetworkInterfaces",
            )
        if look.phase not in ("terminated", "shutting-down"):
            look.protections(instance or {})
            look.membership()
            look.network(interfaces)
            look.sessions(known)
        return State(
            self.instance, look.phase, look.attributes,
            {i["NetworkInterfaceId"]: i["VpcId"] for i in interfaces},
            tuple(look.residual), tuple(look.gaps), look.managed_by, tuple(sorted(look.roles)),
            {i["NetworkInterfaceId"]: _private(i) for i in interfaces}, tuple(look.holes),
        )  # fmt: skip

    def interfaces(self) -> list[Mapping[str, Any]]:
        """Return its own interfaces as EC2 describes them; none if they may not be seen."""
        return _Look(self).interfaces()

    def sharing(self, roles: Iterable[str]) -> list[str]:
        """Return the other instances of the Region with these roles. Raises: ContainmentError."""
        try:
            return self.identity.sharing(self.ec2, roles)
        except failures() as e:
            raise _error(e, "list who else has its role") from e

    # -- one attribute ---------------------------------------------------------------------------

    def read(self, attribute: Attribute) -> JsonValue:
        """Return its value now. Raises: GoneError, ContainmentError."""
        try:
            return self._read(attribute)
        except failures() as e:
            raise _error(e, f"look at {attribute}") from e

    def write(self, attribute: Attribute, value: JsonValue) -> JsonValue:
        """Give it a value and see that it has it; return the value as it reads.

        A membership that cannot be ended may become a standby instead.

        Raises: GoneError, ContainmentError.
        """
        wanted, waited = value, 0.0
        late = True
        while True:
            error: ContainmentError | None = None
            if late:
                try:
                    wanted = self._write(attribute, value)
                except failures() as e:
                    error = _error(e, f"change {attribute}")
                    late = Failure(e).code in _LATE
                else:  # the rules of a new group may be seen late, and have to be mended again
                    late = attribute.kind == "isolation-group"
            now = self.read(attribute)
            if _reads(attribute, now, wanted):
                return now
            if (error and not late) or waited >= PATIENCE_S:
                raise error or ContainmentError(
                    f"{attribute} was changed and does not show it after {PATIENCE_S:.0f} s",
                    hint="run the same command again; it looks first",
                )
            self.sleep(PAUSE_S)
            waited += PAUSE_S

    def _read(self, attribute: Attribute) -> JsonValue:
        kind, resource = attribute.kind, attribute.resource
        if kind in _SWITCHES:
            name, key = _SWITCHES[kind]
            said = self.ec2.describe_instance_attribute(InstanceId=resource, Attribute=name)
            value: JsonValue = said[key]["Value"]
            return value
        if kind == "delete-on-termination":
            _, _, device = resource.partition(" ")
            return _devices(self._described()).get(device)
        if kind in ("scale-in-protection", "membership"):
            held = self._membership()
            return held if kind == "membership" else held and held["protected"]
        if kind == "groups":
            found = self.ec2.describe_network_interfaces(NetworkInterfaceIds=[resource])
            return _group_ids(found["NetworkInterfaces"][0])
        if kind == "address":
            return _association(
                self.ec2.describe_addresses(AllocationIds=[resource])["Addresses"][0]
            )
        if kind == "acl-entry":
            acl, way, number = resource.split(" ")
            found = self.ec2.describe_network_acls(NetworkAclIds=[acl])["NetworkAcls"][0]
            return _entries(found).get((way, int(number)))
        if kind in KINDS:
            return self.identity.read(attribute)
        if kind == "profile":
            return self._profile()
        if kind == "isolation-group":
            return self._group(resource)
        raise ValueError(f"no such attribute: {attribute}")

    def _write(self, attribute: Attribute, value: Any) -> JsonValue:
        kind, resource, ec2 = attribute.kind, attribute.resource, self.ec2
        if kind in _SWITCHES:
            key = _SWITCHES[kind][1]
            ec2.modify_instance_attribute(InstanceId=resource, **{key: {"Value": value}})
        elif kind == "delete-on-termination":
            _, _, device = resource.partition(" ")
            ec2.modify_instance_attribute(InstanceId=self.instance, BlockDeviceMappings=[
                {"DeviceName": device, "Ebs": {"DeleteOnTermination": value}}
            ])  # fmt: skip
        elif kind == "scale-in-protection":
            held = self._membership()
            if held is None:
                raise ContainmentError(f"{self.instance} is in no Auto Scaling group")
            self._protect(str(held["group"]), protected=value)
        elif kind == "membership":
            return self._set_membership(value)
        elif kind == "groups":
            ec2.modify_network_interface_attribute(NetworkInterfaceId=resource, Groups=value)
        elif kind == "address":
            self._set_address(resource, value)
        elif kind == "acl-entry":
            self._set_entry(resource, value)
        elif kind in KINDS:
            self.identity.write(attribute, value)
        elif kind == "profile":
            self._set_profile(value)
        elif kind == "isolation-group":
            return self._mend_group(resource, value)
        else:
            raise ValueError(f"no such attribute: {attribute}")
        written: JsonValue = value
        return written

    def _described(self) -> Mapping[str, Any]:
        found = self.ec2.describe_instances(InstanceIds=[self.instance])["Reservations"]
        described: Mapping[str, Any] = found[0]["Instances"][0]
        return described

    # -- Auto Scaling

    def _membership(self) -> dict[str, JsonValue] | None:
        found = self.scaling.describe_auto_scaling_instances(InstanceIds=[self.instance])
        for held in found["AutoScalingInstances"]:
            return {
                "group": held["AutoScalingGroupName"], "lifecycle": held["LifecycleState"],
                "protected": held["ProtectedFromScaleIn"],
            }  # fmt: skip
        return None

    def _set_membership(self, value: Any) -> JsonValue:
        held = self._membership()
        if value is None and held is not None:
            return self._leave(str(held["group"]))
        if value is None:
            return None
        where = {"AutoScalingGroupName": value["group"], "InstanceIds": [self.instance]}
        if value["lifecycle"] == "Standby":
            self.scaling.enter_standby(**where, ShouldDecrementDesiredCapacity=False)
        elif held is None:
            self.scaling.attach_instances(**where)
        elif held["lifecycle"] == "Standby":
            self.scaling.exit_standby(**where)
        self._await_member()
        if value.get("protected") is not None:
            self._protect(value["group"], protected=value["protected"])
        written: JsonValue = value
        return written

    def _await_member(self) -> None:
        waited = 0.0
        while waited < PATIENCE_S and (self._membership() or {}).get("lifecycle") in (
            None, "Pending", "Pending:Wait", "Pending:Proceed",
        ):  # fmt: skip
            self.sleep(PAUSE_S)
            waited += PAUSE_S

    def _leave(self, group: str) -> JsonValue:
        """Detach; the group starts another instance, so its minimum does not stand in the way."""
        where = {"AutoScalingGroupName": group, "InstanceIds": [self.instance]}
        try:
            self.scaling.detach_instances(**where, ShouldDecrementDesiredCapacity=False)
        except failures():
            held = self._membership()
            if held is None:  # the answer was lost, or somebody else was faster
                return None
            self.scaling.enter_standby(**where, ShouldDecrementDesiredCapacity=False)
            return {**held, "lifecycle": "Standby"}
        return None

    def _protect(self, group: str, *, protected: bool) -> None:
        self.scaling.set_instance_protection(
            AutoScalingGroupName=group, InstanceIds=[self.instance], ProtectedFromScaleIn=protected
        )

    def capacity(self, group: str) -> str:
        """Return a group's sizes in words. Raises: ContainmentError."""
        try:
            found = self.scaling.describe_auto_scaling_groups(AutoScalingGroupNames=[group])
        except failures() as e:
            raise _error(e, f"look at the Auto Scaling group {group}") from e
        for g in found["AutoScalingGroups"]:
            return f"minimum {g['MinSize']}, desired {g['DesiredCapacity']}, most {g['MaxSize']}"
        return "the group is not there any more"

    # -- network

    def _set_address(self, allocation: str, value: Any) -> None:
        if value is not None:
            self.ec2.associate_address(
                AllocationId=allocation, NetworkInterfaceId=value["interface"],
                PrivateIpAddress=value["private"], AllowReassociation=False,
            )  # fmt: skip
            return
        held = self.read(Attribute("address", allocation))
        if isinstance(held, dict):
            self.ec2.disassociate_address(AssociationId=held["association"])

    def _set_entry(self, resource: str, value: Any) -> None:
        acl, way, number = resource.split(" ")
        where = {"NetworkAclId": acl, "RuleNumber": int(number), "Egress": way == "egress"}
        if value is None:
            self.ec2.delete_network_acl_entry(**where)
            return
        key = "Ipv6CidrBlock" if ":" in value["cidr"] else "CidrBlock"
        self.ec2.create_network_acl_entry(
            **where, Protocol=value["protocol"], RuleAction=value["action"], **{key: value["cidr"]}
        )

    def _group(self, vpc: str) -> dict[str, JsonValue] | None:
        found = self.ec2.describe_security_groups(Filters=[
            {"Name": "vpc-id", "Values": [vpc]}, {"Name": "group-name", "Values": [GROUP_NAME]},
        ])["SecurityGroups"]  # fmt: skip
        if not found:
            return None
        group = found[0]["GroupId"]
        rules = list[JsonValue](sorted(text for text, _ in self._rules(group)))
        if len(rules) > _MANY:  # somebody else's: enough to be told from ours, and fit for a ledger
            rules = [*rules[:_MANY], f"and {len(rules) - _MANY} more"]
        return {"id": group, "rules": rules}

    def _rules(self, group: str) -> list[tuple[str, Mapping[str, Any]]]:
        pages = self.ec2.get_paginator("describe_security_group_rules").paginate(
            Filters=[{"Name": "group-id", "Values": [group]}]
        )
        return [(rule_text(r), r) for page in pages for r in page["SecurityGroupRules"]]

    def _mend_group(self, vpc: str, value: Any) -> JsonValue:
        """Make the group if it is missing; let it have these rules and no others."""
        group = str(value["id"])
        if group == NEW_GROUP:
            group = self._make_group(vpc)
        held = dict(self._rules(group))
        # First what is wanted: a group without an egress rule is open again where CloudFormation
        # mends it. Then the rest goes.
        for text in sorted(set(value["rules"]) - held.keys()):
            self._allow(group, text)
        for text in sorted(held.keys() - set(value["rules"])):
            rule = held[text]
            revoke = (self.ec2.revoke_security_group_egress if rule["IsEgress"]
                      else self.ec2.revoke_security_group_ingress)  # fmt: skip
            revoke(GroupId=group, SecurityGroupRuleIds=[rule["SecurityGroupRuleId"]])
        return {"id": group, "rules": list(value["rules"])}

    def _make_group(self, vpc: str) -> str:
        """Make it; one that is there already, though not seen yet, is waited for."""
        try:
            made: str = self.ec2.create_security_group(
                GroupName=GROUP_NAME, VpcId=vpc,
                Description="isolation of instances under investigation",
                TagSpecifications=[{"ResourceType": "security-group", "Tags": [
                    {"Key": "Name", "Value": GROUP_NAME},
                ]}],
            )["GroupId"]  # fmt: skip
        except failures() as e:
            failure = Failure(e)
            if failure.code != "InvalidGroup.Duplicate" and not failure.may_have_happened:
                raise
            made = ""
        waited = 0.0
        while (found := self._group(vpc)) is None and waited < PATIENCE_S:
            self.sleep(PAUSE_S)
            waited += PAUSE_S
        if found is None:
            raise ContainmentError(
                f"the isolation group of {vpc} does not appear",
                hint="run the same command again; it looks for it first",
            )
        return made or str(found["id"])

    def _allow(self, group: str, text: str) -> None:
        way, protocol, port, cidr = text.split(" ")
        permission: dict[str, Any] = {"IpProtocol": protocol}
        if port != "all":
            permission |= {"FromPort": int(port), "ToPort": int(port)}
        if ":" in cidr:
            permission["Ipv6Ranges"] = [{"CidrIpv6": cidr}]
        else:
            permission["IpRanges"] = [{"CidrIp": cidr}]
        allow = (self.ec2.authorize_security_group_egress if way == "egress"
                 else self.ec2.authorize_security_group_ingress)  # fmt: skip
        allow(GroupId=group, IpPermissions=[permission])

    # -- sessions

    def _profile(self) -> dict[str, JsonValue] | None:
        found = self.ec2.describe_iam_instance_profile_associations(
            Filters=[{"Name": "instance-id", "Values": [self.instance]}]
        )["IamInstanceProfileAssociations"]
        for a in found:
            if a["State"] in ("associated", "associating"):
                return {"arn": a["IamInstanceProfile"]["Arn"], "association": a["AssociationId"]}
        return None

    def _set_profile(self, value: Any) -> None:
        if value is not None:
            self.ec2.associate_iam_instance_profile(
                InstanceId=self.instance, IamInstanceProfile={"Arn": value["arn"]}
            )
            return
        held = self._profile()
        if held is not None:
            self.ec2.disassociate_iam_instance_profile(AssociationId=held["association"])


class _Look:
    """One observation: each part is seen or is a gap."""

    def __init__(self, aws: Aws) -> None:
        self.aws = aws
        self.attributes: dict[Attribute, JsonValue] = {}
        self.residual: list[str] = []
        self.holes: list[str] = []
        self.gaps: list[str] = []
        self.phase = ""
        self.managed_by = ""
        self.roles: set[str] = set()

    def instance(self) -> Mapping[str, Any] | None:
        """Its description; None if it may not be seen. Raises: GoneError."""
        try:
            found = self.aws._described()
        except failures() as e:
            error = _error(e, f"look at {self.aws.instance}")
            if isinstance(error, GoneError):
                raise error from e
            self.gaps.append(_said(error))
            return None
        self.phase = found["State"]["Name"]
        tags = {t["Key"]: t["Value"] for t in found.get("Tags", ())}
        self.managed_by = tags.get(_GROUP_TAG, "")
        if not tags.get("notification"):
            self.gaps.append(
                f"{self.aws.instance} has no tag `notification`: nobody is named to be told"
            )
        if found.get("InstanceLifecycle") == "spot":
            self.residual.append("a Spot instance: EC2 may take it back at any time")
        self.residual += [
            f"managed by {name}, which may end it" for tag, name in _MANAGERS.items() if tag in tags
        ]
        return found

    def interfaces(self) -> list[Mapping[str, Any]]:
        """Its own interfaces, whoever says which they are."""
        found = self._try("look at its network interfaces", lambda: self._pages(
            "describe_network_interfaces", "NetworkInterfaces",
            Filters=[{"Name": "attachment.instance-id", "Values": [self.aws.instance]}],
        )) or []  # fmt: skip
        own = []
        for each in found:
            name = each["NetworkInterfaceId"]
            if each.get("RequesterManaged") or each.get("InterfaceType") in ("branch", "trunk"):
                self.holes.append(f"{name} is managed by AWS and keeps its groups")
                continue
            own.append(each)
            public = each.get("Association", {})
            if public.get("PublicIp") and not public.get("AllocationId"):
                self.residual.append(f"{name} keeps its public address {public['PublicIp']}")
            if each.get("Ipv6Addresses"):
                self.residual.append(f"{name} has IPv6 addresses")
        return own

    def protections(self, described: Mapping[str, Any]) -> None:
        """Flags against termination and loss."""
        name = self.aws.instance
        for kind in _SWITCHES:
            self._read(Attribute(kind, name))
        for device, value in _devices(described).items():
            self.attributes[Attribute("delete-on-termination", f"{name} {device}")] = value
        found = self._try("look at its scheduled events", lambda: self.aws.ec2
                          .describe_instance_status(InstanceIds=[name]))  # fmt: skip
        self.residual += [
            f"scheduled by AWS: {clean(e['Code'], 60)}"
            for s in (found or {}).get("InstanceStatuses", ())
            for e in s.get("Events", ()) if "[Completed]" not in e.get("Description", "")
        ]  # fmt: skip

    def membership(self) -> None:
        """Its place in an Auto Scaling group."""
        attribute = Attribute("membership", self.aws.instance)
        self._read(attribute)
        held = self.attributes.get(attribute)
        if isinstance(held, dict) and is_member(held):
            self.attributes[Attribute("scale-in-protection", self.aws.instance)] = held["protected"]

    def network(self, interfaces: Iterable[Mapping[str, Any]]) -> None:
        """Groups, isolation group, addresses and network ACLs."""
        interfaces = list(interfaces)
        for each in interfaces:
            self.attributes[Attribute("groups", each["NetworkInterfaceId"])] = _group_ids(each)
        for vpc in sorted({i["VpcId"] for i in interfaces}):
            self._read(Attribute("isolation-group", vpc))
        ids = [i["NetworkInterfaceId"] for i in interfaces]
        subnets = sorted({i["SubnetId"] for i in interfaces})
        if not ids:
            return
        addresses = self._try("look at its addresses", lambda: self.aws.ec2.describe_addresses(
            Filters=[{"Name": "network-interface-id", "Values": ids}]
        )["Addresses"])  # fmt: skip
        for address in addresses or ():
            self.attributes[Attribute("address", address["AllocationId"])] = _association(address)
        acls = self._try("look at its network ACLs", lambda: self._pages(
            "describe_network_acls", "NetworkAcls",
            Filters=[{"Name": "association.subnet-id", "Values": subnets}],
        ))  # fmt: skip
        for acl in acls or ():
            for (way, number), value in _entries(acl).items():
                where = f"{acl['NetworkAclId']} {way} {number}"
                self.attributes[Attribute("acl-entry", where)] = value

    def sessions(self, known: Iterable[Attribute]) -> None:
        """Its profile, the deny on every role that it has or had, what else it acted as."""
        attribute = Attribute("profile", self.aws.instance)
        self._read(attribute)
        held = self.attributes.get(attribute)
        if isinstance(held, dict):
            profile = str(held["arn"]).rpartition("/")[2]
            found = self._try(f"look at the instance profile {profile}", lambda: self.aws.iam
                              .get_instance_profile(InstanceProfileName=profile))  # fmt: skip
            self.roles = {r["RoleName"] for r in (found or {}).get("InstanceProfile", {})
                      .get("Roles", ())}  # fmt: skip
        own = {Attribute("session-deny", role) for role in self.roles}
        for one in sorted(own | {a for a in known if a.kind in KINDS}):
            self._read(one)

    def _read(self, attribute: Attribute) -> None:
        try:
            self.attributes[attribute] = self.aws.read(attribute)
        except ContainmentError as e:
            self.gaps.append(_said(e))

    def _try(self, what: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except failures() as e:
            self.gaps.append(_said(_error(e, f"{what} ({self.aws.instance})")))
            return None

    def _pages(self, operation: str, key: str, **how: Any) -> list[Mapping[str, Any]]:
        pages = self.aws.ec2.get_paginator(operation).paginate(**how)
        return [one for page in pages for one in page[key]]


def _reads(attribute: Attribute, now: JsonValue, wanted: JsonValue) -> bool:
    if attribute.kind == "membership" and isinstance(wanted, dict) and isinstance(now, dict):
        return now["group"] == wanted["group"] and now["lifecycle"] == wanted["lifecycle"]
    return same(now, wanted)


def _devices(described: Mapping[str, Any]) -> dict[str, JsonValue]:
    return {
        m["DeviceName"]: m["Ebs"]["DeleteOnTermination"]
        for m in described.get("BlockDeviceMappings", ()) if "Ebs" in m
    }  # fmt: skip


def _private(interface: Mapping[str, Any]) -> tuple[str, ...]:
    held = [a["PrivateIpAddress"] for a in interface.get("PrivateIpAddresses", ())]
    return tuple(held) or tuple(filter(None, [interface.get("PrivateIpAddress", "")]))


def _group_ids(interface: Mapping[str, Any]) -> list[JsonValue]:
    return sorted(g["GroupId"] for g in interface["Groups"])


def _association(address: Mapping[str, Any]) -> JsonValue:
    if not address.get("AssociationId"):
        return None
    return {
        "interface": address["NetworkInterfaceId"], "private": address["PrivateIpAddress"],
        "association": address["AssociationId"],
    }  # fmt: skip


def _entries(acl: Mapping[str, Any]) -> dict[tuple[str, int], JsonValue]:
    return {
        ("egress" if e["Egress"] else "ingress", e["RuleNumber"]): {
            "cidr": e.get("CidrBlock") or e.get("Ipv6CidrBlock", ""), "action": e["RuleAction"],
            "protocol": e["Protocol"],
        } for e in acl["Entries"]
    }  # fmt: skip


def rule_text(rule: Mapping[str, Any]) -> str:
    """Return a security group rule in one line: `ingress tcp 22 10.1.0.0/24`."""
    low, high = rule.get("FromPort", -1), rule.get("ToPort", -1)
    ports = "all" if rule["IpProtocol"] == "-1" else str(low) if low == high else f"{low}-{high}"
    whom = (
        rule.get("CidrIpv4") or rule.get("CidrIpv6") or rule.get("PrefixListId")
        or rule.get("ReferencedGroupInfo", {}).get("GroupId", "?")
    )  # fmt: skip
    return f"{'egress' if rule['IsEgress'] else 'ingress'} {rule['IpProtocol']} {ports} {whom}"


def _said(error: ContainmentError) -> str:
    return f"{error} ({error.hint})" if error.hint else str(error)


def _error(e: Exception, what: str) -> ContainmentError:
    failure = Failure(e)
    error = failure.error(f"cannot {what}")
    kind = GoneError if failure.code in _GONE else ContainmentError
    hint = error.hint
    if failure.code == "UnauthorizedOperation":
        hint = "the role lacks the right, or an SCP denies it"
    return kind(clean(str(error), 400), hint=hint)
