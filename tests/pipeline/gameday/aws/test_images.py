# SPDX-License-Identifier: Apache-2.0
"""Images of instances; one test a behaviour, both modes."""

from __future__ import annotations


def test_an_image_holds_a_snapshot_of_each_volume(aws, member, instance, cmk, blocks, padded):
    """EC2 API, CreateImage: snapshots of the root and of every other volume, under their keys."""
    key = cmk()
    i, volumes = instance(1, 1, key=key)
    for n, volume_id in enumerate(volumes):
        aws.fill(volume_id, {n: b"x"})
    made = member.create_image(InstanceId=i, Name="golden")["ImageId"]
    [image] = member.describe_images(ImageIds=[made])["Images"]
    ids = [m["Ebs"]["SnapshotId"] for m in image["BlockDeviceMappings"]]
    said = {s["SnapshotId"]: s for s in member.describe_snapshots(SnapshotIds=ids)["Snapshots"]}
    assert {s["VolumeId"] for s in said.values()} == set(volumes)
    assert {s["KmsKeyId"] for s in said.values()} == {key}
    content = {said[s]["VolumeId"]: blocks(s) for s in ids}
    assert content == {v: {n: padded(b"x")} for n, v in enumerate(volumes)}
    assert len(member.describe_snapshots(OwnerIds=["self"])["Snapshots"]) == 2


def test_images_are_found_by_instance_and_by_snapshot(member, instance):
    """EC2 API, DescribeImages: source-instance-id, block-device-mapping.snapshot-id."""
    i, _ = instance()
    made = member.create_image(InstanceId=i, Name="golden")["ImageId"]
    [image] = member.describe_images(ImageIds=[made])["Images"]
    snapshot = image["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"]
    for name, value in (("source-instance-id", i), ("block-device-mapping.snapshot-id", snapshot)):
        found = member.describe_images(Filters=[{"Name": name, "Values": [value]}])["Images"]
        assert [f["ImageId"] for f in found] == [made]
    none = member.describe_images(
        Filters=[{"Name": "source-instance-id", "Values": ["i-0123456789abcdef0"]}]
    )
    assert none["Images"] == []


def test_a_snapshot_of_an_image_cannot_be_deleted(member, instance, refused):
    """EC2 API, DeleteSnapshot: not one that a registered AMI uses."""
    made = member.create_image(InstanceId=instance()[0], Name="golden")["ImageId"]
    [image] = member.describe_images(ImageIds=[made])["Images"]
    snapshot = image["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"]
    with refused("InvalidSnapshot.InUse", 400):
        member.delete_snapshot(SnapshotId=snapshot)
    member.deregister_image(ImageId=made)
    member.delete_snapshot(SnapshotId=snapshot)
