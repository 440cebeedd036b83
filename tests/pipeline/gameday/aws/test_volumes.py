# SPDX-License-Identifier: Apache-2.0
"""Volumes, instances, pages, idempotency, visibility; one test a behaviour, both modes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from pipeline.gameday.aws.accounts import AUDIT, MEMBER, REGION
from pipeline.gameday.aws.stand import StandError

ZONE = f"{REGION}a"


def one(ec2, volume_id):
    [found] = ec2.describe_volumes(VolumeIds=[volume_id])["Volumes"]
    return found


# -- keys and content


def test_key_goes_from_volume_to_volume(member, volume, cmk, blocks, padded):
    """EBS User Guide, EBS encryption: volume, snapshot, copy and volume under the key."""
    key = cmk()
    first = volume({1: b"x"}, KmsKeyId=key)
    assert one(member, first)["KmsKeyId"] == key
    made = member.create_snapshot(VolumeId=first)
    assert (made["Encrypted"], made["KmsKeyId"]) == (True, key)
    copy = member.copy_snapshot(
        SourceSnapshotId=made["SnapshotId"], SourceRegion=REGION, KmsKeyId=key
    )["SnapshotId"]
    again = volume(SnapshotId=copy)
    seen = one(member, again)
    assert (seen["KmsKeyId"], seen["SnapshotId"], seen["Size"]) == (key, copy, 1)
    last = member.create_snapshot(VolumeId=again)["SnapshotId"]
    assert blocks(last) == {1: padded(b"x")}


def test_volume_from_a_shared_snapshot(aws, member, audit, snapshot, lent, cmk):
    """EBS User Guide, EBS encryption: from a shared snapshot, under one's own or default key."""
    made, own = snapshot(KmsKeyId=lent), cmk(account=AUDIT)
    member.modify_snapshot_attribute(SnapshotId=made, OperationType="add", UserIds=[AUDIT])
    where = {"SnapshotId": made, "AvailabilityZone": ZONE}
    mine = audit.create_volume(KmsKeyId=own, Encrypted=True, **where)["VolumeId"]
    assert one(audit, mine)["KmsKeyId"] == own
    default = one(audit, audit.create_volume(**where)["VolumeId"])["KmsKeyId"]
    assert default not in (own, lent)


def test_volume_whose_key_may_not_be_used(aws, member, audit, snapshot, cmk, refused):
    """A KMS denial shown as NotFound (aws-ebs-csi-driver 2685): accepted, then not there."""
    made = snapshot(KmsKeyId=cmk())
    member.modify_snapshot_attribute(SnapshotId=made, OperationType="add", UserIds=[AUDIT])
    volume_id = audit.create_volume(SnapshotId=made, AvailabilityZone=ZONE)["VolumeId"]
    with refused("InvalidVolume.NotFound", 400):
        one(audit, volume_id)


def test_encryption_by_default(member, volume, instance, cmk):
    """EBS User Guide, Encryption by default: every new volume, under the default key."""
    key = cmk()
    assert one(member, volume())["Encrypted"] is False
    member.modify_ebs_default_kms_key_id(KmsKeyId=key)
    member.enable_ebs_encryption_by_default()
    _, [root] = instance()
    for each in (volume(), root):
        assert (one(member, each)["Encrypted"], one(member, each)["KmsKeyId"]) == (True, key)


def test_volume_smaller_than_its_snapshot(member, snapshot, volume, refused):
    """EC2 API reference, CreateVolume, Size: at least the snapshot's."""
    made = snapshot(Size=2)
    with refused("InvalidParameterValue", 400):
        volume(SnapshotId=made, Size=1)
    assert one(member, volume(SnapshotId=made, Size=3))["Size"] == 3


def test_volume_from_a_pending_snapshot(aws, member, volume, refused):
    """EC2 API reference, Error codes, IncorrectState."""
    aws.behave(snapshot_polls=1)
    made = member.create_snapshot(VolumeId=volume())["SnapshotId"]
    with refused("IncorrectState", 400):
        volume(SnapshotId=made)


def test_a_snapshot_is_a_point_in_time(aws, member, volume, blocks, padded):
    """EBS User Guide, EBS snapshots: data written after the call is not in it."""
    made = volume({0: b"old", 1: b"kept"})
    before = member.create_snapshot(VolumeId=made)["SnapshotId"]
    aws.write(made, {0: b"new", 9: b"more"})
    after = member.create_snapshot(VolumeId=made)["SnapshotId"]
    assert blocks(before) == {0: padded(b"old"), 1: padded(b"kept")}
    assert blocks(after) == {0: padded(b"new"), 1: padded(b"kept"), 9: padded(b"more")}


def test_content_from_a_sparse_file(aws, member, volume, blocks, tmp_path):
    """What is no hole was written; the end of the file is filled with zeros."""
    image = tmp_path / "image"
    with image.open("wb") as f:
        f.seek(3 * 524288)
        f.write(b"x" * 600_000)
    made = volume(image)
    got = blocks(member.create_snapshot(VolumeId=made)["SnapshotId"])
    assert list(got) == [3, 4]
    assert b"".join(got.values()) == (b"x" * 600_000).ljust(2 * 524288, b"\0")


def test_content_from_functions(aws_in_process):
    """In this process a block may be made when it is read."""
    asked = []

    def block():
        asked.append(1)
        return b"made"

    aws = aws_in_process
    ec2, ebs = aws.client("ec2", MEMBER), aws.client("ebs", MEMBER)
    made = ec2.create_volume(Size=16384, AvailabilityZone=ZONE)["VolumeId"]
    aws.fill(made, {30_000_000: block})
    snapshot = ec2.create_snapshot(VolumeId=made)["SnapshotId"]
    [listed] = ebs.list_snapshot_blocks(SnapshotId=snapshot)["Blocks"]
    assert asked == []
    got = ebs.get_snapshot_block(SnapshotId=snapshot, **listed)["BlockData"].read()
    assert got.rstrip(b"\0") == b"made"


def test_content_that_cannot_be(aws, volume, tmp_path):
    made = volume()
    with pytest.raises(StandError, match="cannot open"):
        aws.fill(made, tmp_path / "none")
    with pytest.raises(StandError, match="is larger"):
        aws.fill(made, {2048: b"beyond 1 GiB"})
    with pytest.raises(StandError, match="524288 bytes at most"):
        aws.fill(made, {0: bytes(524289)})
    with pytest.raises(StandError, match="no such volume"):
        aws.fill("vol-0", {})


def test_functions_do_not_cross_processes(aws_server):
    with pytest.raises(StandError, match="another process"):
        aws_server.fill("vol-0", {0: lambda: b""})


# -- attachments


def test_attach_and_detach(aws, member, instance, volume, refused):
    """EC2 API reference, AttachVolume, DetachVolume: states, VolumeInUse, device names."""
    i, _ = instance()
    other, _ = instance()
    made = volume()
    done = member.attach_volume(VolumeId=made, InstanceId=i, Device="/dev/sdf")
    assert done["State"] == "attaching"
    assert one(member, made)["State"] == "in-use"
    for where in (i, other):
        with refused("VolumeInUse", 400):
            member.attach_volume(VolumeId=made, InstanceId=where, Device="/dev/sdg")
    with refused("InvalidParameterValue", 400):
        member.attach_volume(VolumeId=volume(), InstanceId=i, Device="/dev/sdf")
    with refused("VolumeInUse", 400):
        member.delete_volume(VolumeId=made)
    with refused("InvalidAttachment.NotFound", 400):
        member.detach_volume(VolumeId=made, InstanceId=other)
    assert member.detach_volume(VolumeId=made)["State"] == "detaching"
    assert one(member, made)["State"] == "available"
    with refused("IncorrectState", 400):
        member.detach_volume(VolumeId=made)


def test_attach_in_another_zone(member, instance, volume, refused):
    """EC2 API reference, Error codes, InvalidVolume.ZoneMismatch."""
    i, _ = instance()
    made = volume(AvailabilityZone=f"{REGION}b")
    with refused("InvalidVolume.ZoneMismatch", 400):
        member.attach_volume(VolumeId=made, InstanceId=i, Device="/dev/sdf")


def test_root_of_a_running_instance(member, instance, refused):
    """EC2 API reference, DetachVolume: the root volume only of a stopped instance."""
    i, [root] = instance()
    with refused("OperationNotPermitted", 400):
        member.detach_volume(VolumeId=root)
    member.stop_instances(InstanceIds=[i])
    member.detach_volume(VolumeId=root)


def test_attach_to_a_terminated_instance(member, instance, volume, refused):
    """EC2 API reference, Error codes, IncorrectState; volumes kept stay, as asked."""
    i, [root] = instance()
    member.terminate_instances(InstanceIds=[i])
    assert one(member, root)["State"] == "available"
    with refused("IncorrectState", 400):
        member.attach_volume(VolumeId=volume(), InstanceId=i, Device="/dev/sdf")
    with refused("IncorrectState", 400):
        member.create_snapshots(InstanceSpecification={"InstanceId": i})


def test_volume_states_take_time(aws, member, instance, volume, refused):
    """EC2 API reference, Volume and VolumeAttachment: creating, attaching, detaching."""
    i, _ = instance()
    aws.behave(volume_polls=1)
    made = volume()
    assert one(member, made)["State"] == "creating"
    assert one(member, made)["State"] == "available"
    member.attach_volume(VolumeId=made, InstanceId=i, Device="/dev/sdf")
    states = [one(member, made)["Attachments"][0]["State"] for _ in range(2)]
    assert states == ["attaching", "attached"]
    member.detach_volume(VolumeId=made)
    assert one(member, made)["Attachments"][0]["State"] == "detaching"
    assert one(member, made)["Attachments"] == []


# -- idempotency


def test_client_token_of_a_volume(member, refused):
    """EC2 Developer Guide, Ensuring idempotency: CreateVolume."""
    how = {"AvailabilityZone": ZONE, "ClientToken": "once"}
    first = member.create_volume(Size=1, **how)["VolumeId"]
    assert member.create_volume(Size=1, **how)["VolumeId"] == first
    with refused("IdempotentParameterMismatch", 400):
        member.create_volume(Size=2, **how)
    assert len(member.describe_volumes()["Volumes"]) == 1


def test_client_token_of_an_instance(member, audit, refused):
    """EC2 Developer Guide, Ensuring idempotency: RunInstances; tokens are the account's own."""
    how = {"ImageId": "ami-1", "MaxCount": 1, "MinCount": 1, "ClientToken": "once"}
    first = member.run_instances(**how)["Instances"][0]["InstanceId"]
    assert member.run_instances(**how)["Instances"][0]["InstanceId"] == first
    with refused("IdempotentParameterMismatch", 400):
        member.run_instances(**how | {"ImageId": "ami-2"})
    assert audit.run_instances(**how)["Instances"][0]["InstanceId"] != first
    assert len(member.describe_instances()["Reservations"]) == 1


# -- pages


@pytest.mark.parametrize("what", ["volumes", "snapshots", "instances"])
def test_pages(aws, member, volume, snapshot, what, refused):
    """EC2 Developer Guide, Pagination: MaxResults, NextToken, fewer than asked for."""
    name, key = {"volumes": ("Volumes", "VolumeId"), "snapshots": ("Snapshots", "SnapshotId"),
                 "instances": ("Reservations", "ReservationId")}[what]  # fmt: skip
    if what == "instances":
        member.run_instances(ImageId="ami-1", MinCount=7, MaxCount=7)
        read = lambda p: [i["InstanceId"] for r in p[name] for i in r["Instances"]]  # noqa: E731
    else:
        for _ in range(7):
            {"volumes": volume, "snapshots": snapshot}[what]()
        read = lambda p: [each[key] for each in p[name]]  # noqa: E731
    describe = getattr(member, f"describe_{what}")
    everything = read(describe())
    assert len(everything) == 7
    first = describe(MaxResults=5)
    second = describe(MaxResults=5, NextToken=first["NextToken"])
    assert [len(read(first)), len(read(second))] == [5, 2]
    assert "NextToken" not in second
    assert read(first) + read(second) == everything
    aws.behave(page_limit=3)
    pages = list(member.get_paginator(f"describe_{what}").paginate(
        PaginationConfig={"PageSize": 5}
    ))  # fmt: skip
    assert [len(read(p)) for p in pages] == [3, 3, 1]
    with refused("InvalidParameterValue", 400):
        describe(MaxResults=4)
    with refused("InvalidNextToken", 400):
        describe(NextToken="bm9uc2Vuc2U=")


def test_pages_of_named_things(member, volume, instance, refused):
    """EC2 API reference, DescribeInstances, DescribeVolumes: no MaxResults with ids."""
    i, _ = instance()
    with refused("InvalidParameterCombination", 400):
        member.describe_instances(InstanceIds=[i], MaxResults=5)
    with refused("InvalidParameterCombination", 400):
        member.describe_volumes(VolumeIds=[volume()], MaxResults=5)


# -- visibility


def test_new_things_are_seen_later(aws, member, refused):
    """EC2 Developer Guide, Eventual consistency: NotFound by id, absent from lists, for a while."""
    aws.behave(visibility=2)
    run = member.run_instances(ImageId="ami-1", MinCount=1, MaxCount=1)
    i = run["Instances"][0]["InstanceId"]
    v = member.create_volume(Size=1, AvailabilityZone=ZONE)["VolumeId"]
    s = member.create_snapshot(VolumeId=v)["SnapshotId"]
    for describe, name, code, made in (
        (member.describe_instances, "InstanceIds", "InvalidInstanceID.NotFound", i),
        (member.describe_volumes, "VolumeIds", "InvalidVolume.NotFound", v),
        (member.describe_snapshots, "SnapshotIds", "InvalidSnapshot.NotFound", s),
    ):
        with refused(code, 400):
            describe(**{name: [made]})
        assert made not in json.dumps(describe(), default=str)
        assert made in json.dumps(describe(**{name: [made]}), default=str)


def test_a_snapshot_not_seen_is_not_there_for_anything(aws, member, volume, refused):
    """The same for what names it: each such request counts, so that trying again helps."""
    aws.behave(visibility=1)
    made = member.create_snapshot(VolumeId=volume())["SnapshotId"]
    with refused("InvalidSnapshot.NotFound", 400):
        member.lock_snapshot(SnapshotId=made, LockMode="governance", LockDuration=1)
    member.lock_snapshot(SnapshotId=made, LockMode="governance", LockDuration=1)


def test_new_tags_are_seen_later(aws, member, volume):
    """The same for tags: the old value, or none, for a while; in filters too."""
    made = volume(
        TagSpecifications=[{"ResourceType": "volume", "Tags": [{"Key": "a", "Value": "1"}]}]
    )
    aws.behave(visibility=1)
    member.create_tags(
        Resources=[made], Tags=[{"Key": "a", "Value": "2"}, {"Key": "b", "Value": "3"}]
    )
    assert one(member, made)["Tags"] == [{"Key": "a", "Value": "1"}]
    find = [{"Name": "tag:b", "Values": ["3"]}]
    assert len(member.describe_volumes(Filters=find)["Volumes"]) == 1
    member.create_tags(Resources=[made], Tags=[{"Key": "c", "Value": "4"}])
    assert len(member.describe_tags()["Tags"]) == 2
    assert len(member.describe_tags()["Tags"]) == 3


def test_a_share_is_seen_later(aws, member, audit, snapshot, refused):
    """The same for permissions."""
    made = snapshot()
    aws.behave(visibility=1)
    member.modify_snapshot_attribute(SnapshotId=made, OperationType="add", UserIds=[AUDIT])
    with refused("InvalidSnapshot.NotFound", 400):
        audit.describe_snapshots(SnapshotIds=[made])
    audit.describe_snapshots(SnapshotIds=[made])


def test_what_is_not_seen_outlives_a_killed_client(aws_server):
    """A22: the delay is AWS's, not the client's: kill -9 does not shorten it."""
    code = (
        "import boto3, os, signal\n"
        "ec2 = boto3.client('ec2')\n"
        f"ec2.create_volume(Size=1, AvailabilityZone='{ZONE}')\n"
        "ec2.describe_volumes()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    aws_server.behave(visibility=2)
    environment = aws_server.credentials(MEMBER).environment()
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"AWS_ENDPOINT_URL": aws_server.endpoint}, check=False,
    )  # fmt: skip
    assert done.returncode == -9
    ec2 = aws_server.client("ec2", MEMBER)
    assert [len(ec2.describe_volumes()["Volumes"]) for _ in range(2)] == [0, 1]


@pytest.mark.parametrize(
    "bad", [{"visibility": -1}, {"kms_denial": "maybe"}, {"colour": "red"}, {"page_limit": "x"}]
)
def test_no_such_behaviour(aws, bad):
    with pytest.raises(StandError):
        aws.behave(**bad)


def test_time_goes_forward(aws):
    with pytest.raises(StandError, match="forward"):
        aws.advance(-1)
