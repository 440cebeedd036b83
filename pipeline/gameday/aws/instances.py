# SPDX-License-Identifier: Apache-2.0
"""What guards and connects an instance: attributes, security groups, network ACLs, its role.

moto ignores the shutdown behaviour, takes security groups that do not exist, adds the groups that
an instance was run with to those of its interfaces, takes an associated address away, raises where
an ACL entry is missing.

Source: EC2 API Reference (ModifyInstanceAttribute, ModifyNetworkInterfaceAttribute,
AssociateAddress, DeleteNetworkAclEntry, CreateSecurityGroup, "Eventual consistency", "Error
codes"); IAM User Guide ("Changes that I make are not always immediately visible"); VPC User
Guide, "Amazon VPC quotas".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moto.ec2.models import EC2Backend, ec2_backends
from moto.ec2.models.elastic_network_interfaces import NetworkInterface
from moto.ec2.models.instances import Instance
from moto.ec2.models.security_groups import SecurityGroup, SecurityGroupBackend
from moto.iam.models import Role, iam_backends

from pipeline.gameday.aws.call import Answer, Call, before
from pipeline.gameday.aws.conditions import conditions

ACL_RULES = 20


def _backend(call: Call) -> EC2Backend:
    backend: EC2Backend = ec2_backends[call.account][call.region]
    return backend


def _many(call: Call, name: str) -> list[str]:
    return [str(v) for k, v in call.parameters.items() if k.startswith(f"{name}.")]


@before("ec2", "ModifyInstanceAttribute")
def shutdown_behaviour_is_kept(call: Call) -> Answer | None:
    """What the operating system's own shutdown does: `stop` or `terminate`."""
    wanted = call.parameters.get("InstanceInitiatedShutdownBehavior.Value")
    if wanted is None:
        return None
    if wanted not in ("stop", "terminate"):
        return call.error(400, "InvalidParameterValue", f"Value ({wanted}) is invalid.")
    instance = _backend(call).get_instance(str(call.parameters["InstanceId"]))
    instance.instance_initiated_shutdown_behavior = wanted
    return Answer(
        200, {"content-type": "text/xml"},
        b"<ModifyInstanceAttributeResponse><return>true</return></ModifyInstanceAttributeResponse>",
    )  # fmt: skip


@before("ec2", "ModifyNetworkInterfaceAttribute", "ModifyInstanceAttribute")
def groups_exist(call: Call) -> Answer | None:
    """A group that does not exist, is not seen yet, or lies in another VPC is refused."""
    named = _many(call, "SecurityGroupId") + _many(call, "GroupId")
    if not named:
        return None
    conditions.tick("group")
    backend = _backend(call)
    interface = backend.enis.get(str(call.parameters.get("NetworkInterfaceId", "")))
    for each in named:
        group = backend.get_security_group_from_id(each)
        if group is None or not conditions.visible("group", each):
            return call.error(
                400, "InvalidGroup.NotFound", f"The security group '{each}' does not exist"
            )
        if interface is not None and group.vpc_id != interface.subnet.vpc_id:
            return call.error(
                400, "InvalidGroup.NotFound",
                f"You have specified two resources that belong to different networks: {each}",
            )  # fmt: skip
    return None


@before("ec2", "AssociateAddress")
def an_address_is_not_taken_away(call: Call) -> Answer | None:
    """An address that is associated elsewhere stays there, unless that is asked for."""
    given = call.parameters
    backend = _backend(call)
    found = [a for a in backend.addresses
             if a.allocation_id == given.get("AllocationId")]  # fmt: skip
    if not found or not found[0].association_id or given.get("AllowReassociation") == "true":
        return None
    holder = found[0].eni.id if found[0].eni else ""
    if holder == given.get("NetworkInterfaceId"):
        return None
    return call.error(
        400, "Resource.AlreadyAssociated",
        f"resource {found[0].allocation_id} is already associated with "
        f"associate-id {found[0].association_id}",
    )  # fmt: skip


@before("ec2", "DeleteNetworkAclEntry")
def an_entry_that_is_not_there(call: Call) -> Answer | None:
    """Moto raises StopIteration."""
    given = call.parameters
    acl = _backend(call).network_acls.get(str(given.get("NetworkAclId")))
    if acl is None or any(
        str(e.rule_number) == str(given.get("RuleNumber"))
        and str(e.egress).lower() == str(given.get("Egress")).lower()
        for e in acl.network_acl_entries
    ):
        return None
    return call.error(
        400, "InvalidNetworkAclEntry.NotFound",
        f"The network ACL entry '{given.get('RuleNumber')}' does not exist",
    )  # fmt: skip


@before("ec2", "CreateNetworkAclEntry")
def an_acl_has_so_many_rules(call: Call) -> Answer | None:
    """Each way, the one that denies the rest among them."""
    acl = _backend(call).network_acls.get(str(call.parameters.get("NetworkAclId")))
    way = str(call.parameters.get("Egress")).lower()
    held = [e for e in acl.network_acl_entries if str(e.egress).lower() == way] if acl else []
    if len(held) < ACL_RULES:
        return None
    return call.error(
        400, "NetworkAclEntryLimitExceeded",
        "You have reached the limit on the number of rules for the network ACL.",
    )  # fmt: skip


# An interface has its own groups and no others; those of an instance are those of its first one.


def _groups(self: Instance) -> list[SecurityGroup]:
    first = getattr(self, "nics", {}).get(0)
    found: list[SecurityGroup] = first._group_set if first else self.__dict__.get("run_with", [])
    return found


def _set_groups(self: Instance, groups: list[SecurityGroup]) -> None:
    self.__dict__["run_with"] = groups
    if first := getattr(self, "nics", {}).get(0):
        first._group_set = groups


# -- what is new is seen later


def _create_group(plain: Callable[..., SecurityGroup]) -> Callable[..., SecurityGroup]:
    def create_security_group(self: EC2Backend, *given: Any, **named: Any) -> SecurityGroup:
        made = plain(self, *given, **named)
        conditions.born("group", made.id)
        return made

    return create_security_group


def _describe_groups(plain: Callable[..., Any]) -> Callable[..., Any]:
    def describe_security_groups(self: EC2Backend, *given: Any, **named: Any) -> Any:
        return [g for g in plain(self, *given, **named) if conditions.visible("group", g.id)]

    return describe_security_groups


@before("ec2", "DescribeSecurityGroups")
def asked_for_groups(_call: Call) -> None:
    """One request more that would see them."""
    conditions.tick("group")


def _role(account: str, name: str) -> Role | None:
    return next((r for r in iam_backends[account]["aws"].roles.values() if r.name == name), None)


@before("iam", "PutRolePolicy")
def policies_are_seen_later(call: Call) -> None:
    """A new policy takes a while to be known everywhere."""
    given = call.parameters
    role = _role(call.account, str(given.get("RoleName")))
    if role is not None and given.get("PolicyName") not in role.policies:
        conditions.born("policy", f"{given.get('RoleName')} {given.get('PolicyName')}")


@before("iam", "GetRolePolicy")
def asked_for_a_policy(call: Call) -> Answer | None:
    """Not there before it is known here."""
    conditions.tick("policy")
    name = f"{call.parameters.get('RoleName')} {call.parameters.get('PolicyName')}"
    if conditions.visible("policy", name):
        return None
    return call.error(404, "NoSuchEntity", "The role policy with that name cannot be found.")


def install() -> None:
    """Let new groups be seen later, and interfaces have their own."""
    Instance.security_groups = property(_groups, _set_groups)  # type: ignore[assignment]
    NetworkInterface.group_set = property(  # type: ignore[method-assign, assignment]
        lambda self: self._group_set
    )
    SecurityGroupBackend.create_security_group = _create_group(  # type: ignore[method-assign]
        SecurityGroupBackend.create_security_group
    )
    SecurityGroupBackend.describe_security_groups = _describe_groups(  # type: ignore[method-assign]
        SecurityGroupBackend.describe_security_groups
    )
