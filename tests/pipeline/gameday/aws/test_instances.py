# SPDX-License-Identifier: Apache-2.0
"""What guards and connects an instance, as AWS documents it; each test names the page."""

from __future__ import annotations

import json

import pytest

from pipeline.gameday.aws.accounts import MEMBER

DENY = {
    "Version": "2012-10-17",
    "Statement": [{
        "Effect": "Deny", "Action": "*", "Resource": "*",
        "Condition": {"StringLike": {"aws:userid": "*:i-0123456789abcdef0"}},
    }],
}  # fmt: skip


@pytest.fixture
def vpc(member):
    return member.describe_vpcs()["Vpcs"][0]["VpcId"]


@pytest.fixture
def group(member, vpc):
    return lambda name, where=None: member.create_security_group(
        GroupName=name, Description=name, VpcId=where or vpc
    )["GroupId"]


@pytest.fixture
def interface(member):
    """An interface with these groups."""

    def make(*groups):
        subnet = member.describe_subnets()["Subnets"][0]["SubnetId"]
        made = member.create_network_interface(SubnetId=subnet, Groups=list(groups))
        return made["NetworkInterface"]["NetworkInterfaceId"]

    return make


def held(member, interface):
    found = member.describe_network_interfaces(NetworkInterfaceIds=[interface])
    return [g["GroupId"] for g in found["NetworkInterfaces"][0]["Groups"]]


def test_a_swap_replaces_all_groups_of_one_interface(member, interface, group):
    """EC2 API Reference, ModifyNetworkInterfaceAttribute."""
    first, second = group("first"), group("second")
    one, other = interface(first, second), interface(first)
    member.modify_network_interface_attribute(NetworkInterfaceId=one, Groups=[second])
    assert (held(member, one), held(member, other)) == ([second], [first])


def test_a_swap_on_an_instance_run_with_groups(member, instance, group):
    """EC2 API Reference, ModifyNetworkInterfaceAttribute; DescribeInstances shows the same."""
    first, second = group("first"), group("second")
    made, _ = instance(SecurityGroupIds=[first])
    found = member.describe_instances(InstanceIds=[made])["Reservations"][0]["Instances"][0]
    one = found["NetworkInterfaces"][0]["NetworkInterfaceId"]
    member.modify_network_interface_attribute(NetworkInterfaceId=one, Groups=[second])
    assert held(member, one) == [second]
    found = member.describe_instances(InstanceIds=[made])["Reservations"][0]["Instances"][0]
    assert [g["GroupId"] for g in found["NetworkInterfaces"][0]["Groups"]] == [second]
    assert [g["GroupId"] for g in found["SecurityGroups"]] == [second]


def test_a_group_that_does_not_exist_is_refused(member, interface, group, refused):
    """EC2 "Error codes", InvalidGroup.NotFound; moto empties the interface."""
    kept = group("kept")
    one = interface(kept)
    with refused("InvalidGroup.NotFound", 400):
        member.modify_network_interface_attribute(NetworkInterfaceId=one, Groups=["sg-00000000"])
    assert held(member, one) == [kept]


def test_a_group_of_another_vpc_is_refused(member, interface, group, refused):
    """EC2 User Guide, "Security groups": a group is for its own VPC."""
    other = member.create_vpc(CidrBlock="10.77.0.0/16")["Vpc"]["VpcId"]
    kept, foreign = group("kept"), group("foreign", other)
    one = interface(kept)
    with refused("InvalidGroup.NotFound", 400):
        member.modify_network_interface_attribute(NetworkInterfaceId=one, Groups=[foreign])
    assert held(member, one) == [kept]


def test_a_new_group_is_seen_later(aws, member, group, interface, refused):
    """EC2 API Reference, "Eventual consistency"."""
    one = interface(group("kept"))
    aws.behave(visibility=2)
    made = group("new")

    def seen():
        found = member.describe_security_groups()["SecurityGroups"]
        return made in {g["GroupId"] for g in found}

    assert not seen()
    with refused("InvalidGroup.NotFound", 400):
        member.modify_network_interface_attribute(NetworkInterfaceId=one, Groups=[made])
    assert seen()
    member.modify_network_interface_attribute(NetworkInterfaceId=one, Groups=[made])


def test_shutdown_behaviour(member, instance, refused):
    """EC2 API Reference, ModifyInstanceAttribute, InstanceInitiatedShutdownBehavior."""
    made, _ = instance(InstanceInitiatedShutdownBehavior="terminate")

    def now():
        name = "instanceInitiatedShutdownBehavior"
        said = member.describe_instance_attribute(InstanceId=made, Attribute=name)
        return said["InstanceInitiatedShutdownBehavior"]["Value"]

    assert now() == "terminate"
    member.modify_instance_attribute(
        InstanceId=made, InstanceInitiatedShutdownBehavior={"Value": "stop"}
    )
    assert now() == "stop"
    with refused("InvalidParameterValue", 400):
        member.modify_instance_attribute(
            InstanceId=made, InstanceInitiatedShutdownBehavior={"Value": "sleep"}
        )


@pytest.mark.parametrize(
    ("name", "key"), [("disableApiTermination", "DisableApiTermination"),
                      ("disableApiStop", "DisableApiStop")],
)  # fmt: skip
def test_protection_from_termination_and_stop(member, instance, refused, name, key):
    """EC2 User Guide, "Change instance termination protection", "Enable stop protection"."""
    made, _ = instance()
    member.modify_instance_attribute(InstanceId=made, **{key: {"Value": True}})
    said = member.describe_instance_attribute(InstanceId=made, Attribute=name)
    assert said[key]["Value"] is True
    end = member.terminate_instances if "Term" in name else member.stop_instances
    with refused("OperationNotPermitted", 400):
        end(InstanceIds=[made])


def test_delete_on_termination_of_one_device(member, instance):
    """EC2 User Guide, "Preserve data when an instance is terminated"."""
    made, _ = instance(1, 1)
    for value in (True, False):
        member.modify_instance_attribute(InstanceId=made, BlockDeviceMappings=[
            {"DeviceName": "/dev/sdf", "Ebs": {"DeleteOnTermination": value}}
        ])  # fmt: skip
        found = member.describe_instances(InstanceIds=[made])["Reservations"][0]["Instances"][0]
        devices = {m["DeviceName"]: m["Ebs"]["DeleteOnTermination"]
                   for m in found["BlockDeviceMappings"]}  # fmt: skip
        assert devices == {"/dev/sda1": False, "/dev/sdf": value}


def test_an_address_comes_back_under_a_new_association(member, interface, group, refused):
    """EC2 API Reference, AssociateAddress, DisassociateAddress."""
    one, other = interface(group("one")), interface(group("other"))
    address = member.allocate_address(Domain="vpc")["AllocationId"]
    first = member.associate_address(AllocationId=address, NetworkInterfaceId=one)
    with refused("Resource.AlreadyAssociated", 400):
        member.associate_address(AllocationId=address, NetworkInterfaceId=other)
    member.disassociate_address(AssociationId=first["AssociationId"])
    with refused("InvalidAssociationID.NotFound", 400):
        member.disassociate_address(AssociationId=first["AssociationId"])
    again = member.associate_address(AllocationId=address, NetworkInterfaceId=one)
    assert again["AssociationId"] != first["AssociationId"]


def test_entries_of_a_network_acl(member, refused):
    """EC2 API Reference, CreateNetworkAclEntry, DeleteNetworkAclEntry."""
    acl = member.describe_network_acls()["NetworkAcls"][0]["NetworkAclId"]
    where = {"NetworkAclId": acl, "RuleNumber": 7, "Egress": True}
    entry = {"Protocol": "-1", "RuleAction": "deny", "CidrBlock": "192.0.2.1/32"}
    member.create_network_acl_entry(**where, **entry)
    with refused("NetworkAclEntryAlreadyExists", 400):
        member.create_network_acl_entry(**where, **entry)
    with refused("InvalidNetworkAclEntry.NotFound", 400):
        member.delete_network_acl_entry(**where | {"Egress": False})
    member.delete_network_acl_entry(**where)
    with refused("InvalidNetworkAclEntry.NotFound", 400):
        member.delete_network_acl_entry(**where)


def test_a_profile_comes_back_under_a_new_association(aws, member, instance, refused):
    """EC2 API Reference, AssociateIamInstanceProfile, DisassociateIamInstanceProfile."""
    iam = aws.client("iam", MEMBER)
    iam.create_instance_profile(InstanceProfileName="web")
    made, _ = instance(IamInstanceProfile={"Name": "web"})

    def associations():
        found = member.describe_iam_instance_profile_associations(
            Filters=[{"Name": "instance-id", "Values": [made]}]
        )["IamInstanceProfileAssociations"]
        return [a["AssociationId"] for a in found]

    [first] = associations()
    member.disassociate_iam_instance_profile(AssociationId=first)
    assert associations() == []
    member.associate_iam_instance_profile(InstanceId=made, IamInstanceProfile={"Name": "web"})
    [again] = associations()
    assert again != first
    with refused("IncorrectState", 400):
        member.associate_iam_instance_profile(InstanceId=made, IamInstanceProfile={"Name": "web"})


@pytest.fixture
def role(aws):
    iam = aws.client("iam", MEMBER)
    iam.create_role(RoleName="web", AssumeRolePolicyDocument=json.dumps(
        {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"AWS": "*"},
                                                 "Action": "sts:AssumeRole"}]}
    ))  # fmt: skip
    return iam


def test_a_deny_by_session_name_ends_old_sessions_of_that_instance_only(aws, role, refused):
    """IAM User Guide, "IAM condition keys", aws:userid; policies hold for sessions that exist."""
    mine = aws.credentials(MEMBER, "web", "i-0123456789abcdef0").session()
    other = aws.credentials(MEMBER, "web", "i-0fedcba9876543210").session()
    where = {"endpoint_url": aws.endpoint}
    ours = [mine.client(s, **where) for s in ("ec2", "sts", "kms")]
    ours[0].describe_vpcs()
    role.put_role_policy(RoleName="web", PolicyName="deny", PolicyDocument=json.dumps(DENY))
    with refused("UnauthorizedOperation", 403):
        ours[0].describe_vpcs()
    with refused("AccessDenied", 403):
        ours[1].assume_role(RoleArn="arn:aws:iam::222222222222:role/x", RoleSessionName="xx")
    with refused("AccessDeniedException", 403):
        ours[2].list_keys()
    other.client("ec2", **where).describe_vpcs()
    role.delete_role_policy(RoleName="web", PolicyName="deny")
    ours[0].describe_vpcs()


def test_a_policy_takes_a_while_to_be_known(aws, role, refused):
    """IAM User Guide, "Changes that I make are not always immediately visible"."""
    mine = aws.credentials(MEMBER, "web", "i-0123456789abcdef0").session()
    ec2 = mine.client("ec2", endpoint_url=aws.endpoint)
    aws.behave(visibility=1)
    role.put_role_policy(RoleName="web", PolicyName="deny", PolicyDocument=json.dumps(DENY))
    ec2.describe_vpcs()
    with refused("NoSuchEntity", 404):
        role.get_role_policy(RoleName="web", PolicyName="deny")
    assert role.get_role_policy(RoleName="web", PolicyName="deny")["PolicyDocument"] == DENY
    with refused("UnauthorizedOperation", 403):
        ec2.describe_vpcs()
