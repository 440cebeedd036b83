# SPDX-License-Identifier: Apache-2.0
"""The Recycle Bin; one test a behaviour, both modes."""

from __future__ import annotations

import pytest

KINDS = ["volume", "snapshot", "image"]


@pytest.fixture
def deleted(member, volume, instance):
    """Make something and delete it; return its id."""

    def make(kind):
        if kind == "volume":
            made = volume({1: b"x"})
            member.delete_volume(VolumeId=made)
        elif kind == "snapshot":
            made = member.create_snapshot(VolumeId=volume({1: b"x"}))["SnapshotId"]
            member.delete_snapshot(SnapshotId=made)
        else:
            made = member.create_image(InstanceId=instance()[0], Name="golden")["ImageId"]
            member.deregister_image(ImageId=made)
        return made

    return make


def listed(member, kind):
    answer = getattr(member, f"list_{kind}s_in_recycle_bin")()
    return {s[f"{kind.title()}Id"]: s for s in answer[f"{kind.title()}s"]}


def restore(member, kind, name):
    getattr(member, f"restore_{kind}_from_recycle_bin")(**{f"{kind.title()}Id": name})


def there(member, kind):
    scope = {"snapshot": {"OwnerIds": ["self"]}, "image": {"Owners": ["self"]}}.get(kind, {})
    answer = getattr(member, f"describe_{kind}s")(**scope)
    return {s[f"{kind.title()}Id"] for s in answer[f"{kind.title()}s"]}


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_rule_it_is_gone(member, deleted, kind):
    """EBS User Guide, Recycle Bin: only what matches a retention rule is retained."""
    deleted(kind)
    assert listed(member, kind) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_kept_and_given_back(aws, member, deleted, kind):
    """EBS User Guide, Recover deleted …: listed with its times, not described; then as before."""
    aws.behave(**{f"recycle_{kind}s_days": 3})
    made = deleted(kind)
    [(name, said)] = listed(member, kind).items()
    assert name == made
    assert (said["RecycleBinExitTime"] - said["RecycleBinEnterTime"]).days == 3
    assert made not in there(member, kind)
    restore(member, kind, made)
    assert made in there(member, kind)
    assert listed(member, kind) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_the_time_is_over(aws, member, deleted, refused, kind):
    """EBS User Guide, Recycle Bin: permanently deleted when the retention period expires."""
    aws.behave(**{f"recycle_{kind}s_days": 1})
    made = deleted(kind)
    aws.advance(86_401)
    assert listed(member, kind) == {}
    code = {"volume": "InvalidVolume.NotFound", "snapshot": "InvalidSnapshot.NotFound",
            "image": "InvalidAMIID.NotFound"}[kind]  # fmt: skip
    with refused(code, 400):
        restore(member, kind, made)


def test_content_key_and_volume_are_as_before(aws, member, volume, cmk, blocks, padded):
    """EBS User Guide, Recover deleted EBS snapshots."""
    aws.behave(recycle_snapshots_days=1)
    key = cmk()
    of = volume({7: b"x"}, KmsKeyId=key)
    made = member.create_snapshot(VolumeId=of)["SnapshotId"]
    member.delete_snapshot(SnapshotId=made)
    restore(member, "snapshot", made)
    [said] = member.describe_snapshots(SnapshotIds=[made])["Snapshots"]
    assert (said["VolumeId"], said["KmsKeyId"], said["State"]) == (of, key, "completed")
    assert blocks(made) == {7: padded(b"x")}


def test_what_was_restored_is_seen_late(aws, member, deleted, refused):
    """EC2 Developer Guide, Eventual consistency."""
    aws.behave(recycle_snapshots_days=1)
    made = deleted("snapshot")
    aws.behave(recycle_snapshots_days=1, visibility=2)
    restore(member, "snapshot", made)
    with refused("InvalidSnapshot.NotFound", 400):
        member.describe_snapshots(SnapshotIds=[made])
    there(member, "snapshot")
    assert made in there(member, "snapshot")


def test_an_image_needs_its_snapshots_back_first(aws, member, instance, refused):
    """EBS User Guide, Recover deleted EBS-backed AMIs: restore the snapshots first."""
    aws.behave(recycle_snapshots_days=1, recycle_images_days=1)
    made = member.create_image(InstanceId=instance()[0], Name="golden")["ImageId"]
    [image] = member.describe_images(ImageIds=[made])["Images"]
    [snapshot] = [m["Ebs"]["SnapshotId"] for m in image["BlockDeviceMappings"]]
    member.deregister_image(ImageId=made)
    member.delete_snapshot(SnapshotId=snapshot)
    with refused("InvalidSnapshot.NotFound", 400):
        restore(member, "image", made)
    restore(member, "snapshot", snapshot)
    restore(member, "image", made)
    assert made in there(member, "image")


def test_what_ends_with_an_instance_goes_there_too(aws, member, instance):
    """EBS User Guide, Recycle Bin: volumes that are deleted, also by DeleteOnTermination."""
    aws.behave(recycle_volumes_days=1)
    i, [root] = instance()
    member.modify_instance_attribute(InstanceId=i, BlockDeviceMappings=[
        {"DeviceName": "/dev/sda1", "Ebs": {"DeleteOnTermination": True}}
    ])  # fmt: skip
    member.terminate_instances(InstanceIds=[i])
    assert list(listed(member, "volume")) == [root]
