# SPDX-License-Identifier: Apache-2.0
"""Buckets, keys, volumes and snapshots, and how a refusal is looked at."""

from __future__ import annotations

import base64
import hashlib
import json
from contextlib import contextmanager

import pytest
from botocore.exceptions import ClientError

from pipeline.gameday.aws.accounts import AUDIT, MEMBER, REGION
from pipeline.gameday.aws.blocks import BLOCK

BUCKET = "evidence"


@pytest.fixture
def s3(aws):
    return aws.client("s3", AUDIT)


@pytest.fixture
def kms(aws):
    return aws.client("kms", AUDIT)


@pytest.fixture
def bucket(s3):
    s3.create_bucket(
        Bucket=BUCKET,
        ObjectLockEnabledForBucket=True,
        CreateBucketConfiguration={"LocationConstraint": REGION},
    )
    return BUCKET


@pytest.fixture
def sha256():
    return lambda body: base64.b64encode(hashlib.sha256(body).digest()).decode()


@pytest.fixture
def refused():
    """`with refused("Code", 403):` the call in it must be refused so."""

    @contextmanager
    def check(code, status):
        with pytest.raises(ClientError) as caught:
            yield caught
        error = caught.value.response
        assert (error["Error"]["Code"], error["ResponseMetadata"]["HTTPStatusCode"]) == (
            code,
            status,
        )

    return check


@pytest.fixture
def member(aws):
    """EC2 of the member account."""
    return aws.client("ec2", MEMBER)


@pytest.fixture
def audit(aws):
    """EC2 of the Audit account."""
    return aws.client("ec2", AUDIT)


@pytest.fixture
def allow():
    """Return a statement that allows `principal` actions on a key."""

    def make(principal, *actions, **condition):
        return {
            "Effect": "Allow", "Principal": {"AWS": principal}, "Resource": "*",
            "Action": [f"kms:{a}" for a in actions],
            **({"Condition": condition} if condition else {}),
        }  # fmt: skip

    return make


@pytest.fixture
def cmk(aws, allow):
    """Make a customer managed key with further statements; return its ARN."""

    def make(*statements, account=MEMBER):
        owner = allow(f"arn:aws:iam::{account}:root", "*")
        policy = json.dumps({"Version": "2012-10-17", "Statement": [owner, *statements]})
        return aws.client("kms", account).create_key(Policy=policy)["KeyMetadata"]["Arn"]

    return make


@pytest.fixture
def read_actions():
    """What EBS User Guide, Share the KMS key, lists."""
    return [
        "DescribeKey", "CreateGrant", "Decrypt", "ReEncryptFrom", "GenerateDataKey",
        "GenerateDataKeyWithoutPlaintext",
    ]  # fmt: skip


@pytest.fixture
def lent(cmk, allow, read_actions):
    """A key of the member account that Audit may use as a copy needs it."""
    return cmk(allow(f"arn:aws:iam::{AUDIT}:root", *read_actions))


@pytest.fixture
def volume(aws):
    """Make a volume that holds `content`; return its id."""

    def make(content=None, account=MEMBER, **more):
        more = {"AvailabilityZone": f"{REGION}a"} | more
        if "SnapshotId" not in more:
            more = {"Size": 1} | more
        if "KmsKeyId" in more:
            more["Encrypted"] = True
        made = aws.client("ec2", account).create_volume(**more)["VolumeId"]
        if content is not None:
            aws.fill(made, content)
        return made

    return make


@pytest.fixture
def snapshot(aws, volume):
    """Make a snapshot of a new volume; return its id."""

    def make(content=None, account=MEMBER, **more):
        made = volume(content, account, **more)
        return aws.client("ec2", account).create_snapshot(VolumeId=made)["SnapshotId"]

    return make


@pytest.fixture
def blocks(aws):
    """Read a snapshot through EBS direct; return {index: bytes}."""

    def read(snapshot_id, account=MEMBER):
        ebs = aws.client("ebs", account)
        listed = ebs.list_snapshot_blocks(SnapshotId=snapshot_id)
        return {
            b["BlockIndex"]: ebs.get_snapshot_block(SnapshotId=snapshot_id, **b)["BlockData"].read()
            for b in listed["Blocks"]
        }

    return read


@pytest.fixture
def instance(aws):
    """Run an instance with volumes; return its id and theirs."""

    def make(*sizes, account=MEMBER, key=None, **more):
        encrypted = {"Encrypted": True, "KmsKeyId": key} if key else {}
        mappings = [
            {"DeviceName": name, "Ebs": {"VolumeSize": size, **encrypted}}
            for name, size in zip(
                ("/dev/sda1", "/dev/sdf", "/dev/sdg"), sizes or (1,), strict=False
            )
        ]
        ec2 = aws.client("ec2", account)
        more = {"MinCount": 1, "MaxCount": 1} | more
        made = ec2.run_instances(ImageId="ami-1", BlockDeviceMappings=mappings, **more)
        [i] = [i["InstanceId"] for i in made["Instances"]]
        held = ec2.describe_volumes(Filters=[{"Name": "attachment.instance-id", "Values": [i]}])
        return i, [v["VolumeId"] for v in held["Volumes"]]

    return make


@pytest.fixture
def padded():
    """As a whole block."""
    return lambda data: data.ljust(BLOCK, b"\0")
