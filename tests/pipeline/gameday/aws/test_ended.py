# SPDX-License-Identifier: Apache-2.0
"""Instances that have ended, and what AWS Config remembers; one test a behaviour, both modes."""

from __future__ import annotations

import json

import pytest

from pipeline.gameday.aws.accounts import MEMBER


@pytest.fixture
def ended(member, instance):
    """End an instance with two volumes, of which the first ends with it."""
    i, volumes = instance(1, 1)
    member.modify_instance_attribute(InstanceId=i, BlockDeviceMappings=[
        {"DeviceName": d, "Ebs": {"DeleteOnTermination": d == "/dev/sda1"}}
        for d in ("/dev/sda1", "/dev/sdf")
    ])  # fmt: skip
    held = member.describe_instances(InstanceIds=[i])["Reservations"][0]["Instances"][0]
    devices = {m["Ebs"]["VolumeId"]: m["DeviceName"] for m in held["BlockDeviceMappings"]}
    member.terminate_instances(InstanceIds=[i])
    return i, sorted(volumes, key=lambda v: devices[v])


def history(aws, instance_id):
    return aws.client("config", MEMBER).get_resource_config_history(
        resourceType="AWS::EC2::Instance", resourceId=instance_id
    )["configurationItems"]  # fmt: skip


def test_delete_on_termination(member, ended):
    """EC2 User Guide, Preserve data when an instance is terminated."""
    _, [_root, data] = ended
    [left] = member.describe_volumes()["Volumes"]
    assert (left["VolumeId"], left["State"], left["Attachments"]) == (data, "available", [])


def test_listed_for_a_while_without_its_volumes(aws, member, ended, refused):
    """EC2 User Guide, Terminate your instance: visible for a short while, then not."""
    i, _ = ended
    [said] = member.describe_instances(InstanceIds=[i])["Reservations"][0]["Instances"]
    assert said["State"]["Name"] == "terminated"
    assert said["BlockDeviceMappings"] == []
    aws.advance(3601)
    with refused("InvalidInstanceID.NotFound", 400):
        member.describe_instances(InstanceIds=[i])


def test_config_remembers_the_volumes(aws, member, instance):
    """AWS Config Developer Guide, Components of a configuration item; newest first."""
    aws.behave(config_recorder=1)
    i, [root] = instance()
    member.terminate_instances(InstanceIds=[i])
    deleted, last = history(aws, i)
    assert deleted["configurationItemStatus"] == "ResourceDeleted"
    [mapping] = json.loads(last["configuration"])["blockDeviceMappings"]
    assert mapping["ebs"]["volumeId"] == root
    assert [r["resourceId"] for r in last["relationships"]] == [root]


def test_config_does_not_know_what_it_did_not_record(aws, ended, refused):
    """AWS Config API, GetResourceConfigHistory: ResourceNotDiscoveredException."""
    with refused("ResourceNotDiscoveredException", 400):
        history(aws, ended[0])
