# SPDX-License-Identifier: Apache-2.0
"""The member account of a game day: what is in it, and how little Audit may do with its key."""

from __future__ import annotations

import json

import pytest
from botocore.exceptions import ClientError

from acquisition.target import parse_target
from pipeline.gameday.aws.accounts import AUDIT, EXECUTION_ROLE, MEMBER, REGION, RESPONDER_ROLE
from pipeline.gameday.aws.seed import EXTERNAL_ID, estate, lend, seed


@pytest.fixture
def images(tmp_path):
    made = [tmp_path / "root.img", tmp_path / "data.img"]
    for n, image in enumerate(made):
        with image.open("wb") as f:
            f.write(b"image %d" % n)
            f.truncate((n + 1) << 30)
    return made


def test_estate(aws, images, blocks, padded):
    made = seed(aws, "no.such:handler", images).estate
    ec2 = aws.client("ec2", MEMBER)
    held = ec2.describe_volumes(VolumeIds=made.volumes)["Volumes"]
    assert [(v["Size"], v["KmsKeyId"], v["State"]) for v in held] == [
        (1, made.member_key, "in-use"),
        (2, made.member_key, "in-use"),
    ]
    assert {v["Attachments"][0]["InstanceId"] for v in held} == {made.instance}
    assert blocks(made.snapshot) == {0: padded(b"image 0")}
    arns = made.variables()["VOLUMES"].split()
    assert [arn.rpartition("/")[2] for arn in arns] == list(made.volumes)
    assert all(parse_target(arn).account == MEMBER for arn in arns)
    assert made.variables()["IMAGES"].split() == [str(i) for i in images]


def test_the_execution_role_is_assumed_from_audit(aws, images):
    made = seed(aws, "no.such:handler", images).estate
    responder = aws.client("sts", AUDIT, RESPONDER_ROLE)
    how = {"RoleArn": made.execution_role, "RoleSessionName": "T.me"}
    got = responder.assume_role(ExternalId=EXTERNAL_ID, **how)
    assert f":assumed-role/{EXECUTION_ROLE}/" in got["AssumedRoleUser"]["Arn"]
    with pytest.raises(ClientError, match="AccessDenied"):
        responder.assume_role(**how)


def test_audit_copies_what_is_shared(aws, images, blocks, padded):
    made = estate(aws, images)
    member, audit = aws.client("ec2", MEMBER), aws.client("ec2", AUDIT)
    member.modify_snapshot_attribute(SnapshotId=made.snapshot, OperationType="add", UserIds=[AUDIT])
    copy = audit.copy_snapshot(
        SourceSnapshotId=made.snapshot, SourceRegion=REGION, KmsKeyId=made.copy_key
    )["SnapshotId"]
    for each in (copy, made.snapshot):
        assert blocks(each, AUDIT) == {0: padded(b"image 0")}
    with pytest.raises(ClientError, match="AccessDenied"):
        aws.client("kms", AUDIT).disable_key(KeyId=made.member_key)


@pytest.mark.parametrize("without", [*range(4), "grant"])
def test_nothing_can_be_left_out_of_the_key_policy(aws_in_process, images, without):
    """Each statement and action that a copy needs: without it the copy ends in error."""
    aws = aws_in_process
    made = estate(aws, images)
    needed, grant = lend(f"arn:aws:iam::{AUDIT}:root")
    statements = [needed, grant]
    if without == "grant":
        statements.remove(grant)
    else:
        removed = needed["Action"][without]
        needed["Action"].remove(removed)
    owner = {"Effect": "Allow", "Action": "kms:*", "Resource": "*",
             "Principal": {"AWS": f"arn:aws:iam::{MEMBER}:root"}}  # fmt: skip
    aws.client("kms", MEMBER).put_key_policy(
        KeyId=made.member_key, PolicyName="default",
        Policy=json.dumps({"Statement": [owner, *statements]}),
    )  # fmt: skip
    aws.client("ec2", MEMBER).modify_snapshot_attribute(
        SnapshotId=made.snapshot, OperationType="add", UserIds=[AUDIT]
    )
    audit = aws.client("ec2", AUDIT)
    copy = audit.copy_snapshot(
        SourceSnapshotId=made.snapshot, SourceRegion=REGION, KmsKeyId=made.copy_key
    )["SnapshotId"]
    [seen] = audit.describe_snapshots(SnapshotIds=[copy])["Snapshots"]
    assert seen["State"] == "error"
