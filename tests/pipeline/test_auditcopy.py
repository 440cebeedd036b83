# SPDX-License-Identifier: Apache-2.0
"""Snapshots that are there already, unencrypted, under the key of EBS, or another's: how copied."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.gameday.aws.accounts import AUDIT, LOG_ARCHIVE, MEMBER, RESPONDER_ROLE, role_arn
from pipeline.gameday.aws.faults import Fault
from pipeline.gameday.aws.seed import lend
from tests.evidence_store.kit import pattern
from tests.pipeline import landing_zone

GIB = 1 << 30
BLOCK = 512 << 10


@pytest.fixture
def images(tmp_path):
    """One volume with a block at its end."""
    return [landing_zone.image(tmp_path / "volume.img", GIB, {2047: pattern(BLOCK, 1)})]


@pytest.fixture
def volume(aws_server, images):
    """Make a volume of that content and return its id."""

    def make(account=MEMBER, **more):
        made = aws_server.client("ec2", account).create_volume(
            Size=1, AvailabilityZone="eu-central-1a", VolumeType="gp3", **more
        )["VolumeId"]
        aws_server.fill(made, images[0])
        return made

    return make


@pytest.fixture
def acquire(cloud):
    """`acquire volume` or `acquire snapshot` of an id in the member account."""

    def call(kind, target, *more):
        return cloud("--json", "acquire", kind, target, "--case", "T-1", "--account", MEMBER,
                     "--region", "eu-central-1", *more)  # fmt: skip

    return call


def add_setting(home, line):
    path = home / "impound.toml"
    path.write_text(path.read_text() + line + "\n")


@pytest.fixture
def member_key(aws_server, zone, home):
    """A key of the member account that Audit may use, named in the settings."""
    kms = aws_server.client("kms", MEMBER)
    statements = [
        {"Effect": "Allow", "Principal": {"AWS": f"arn:aws:iam::{MEMBER}:root"},
         "Action": "kms:*", "Resource": "*"}, *lend(role_arn(AUDIT, RESPONDER_ROLE)),
    ]  # fmt: skip
    key = kms.create_key(
        Policy=json.dumps({"Version": "2012-10-17", "Statement": statements}),
        BypassPolicyLockoutSafetyCheck=True,
    )["KeyMetadata"]["Arn"]  # fmt: skip
    kms.create_alias(AliasName="alias/impound", TargetKeyId=key)
    return key


def test_a_snapshot_that_is_there_is_locked_read_copied_and_proved(acquire, cloud, zone,
                                                                   aws_server):  # fmt: skip
    calls = len(aws_server.calls())
    done = acquire("snapshot", zone.estate.snapshot)
    assert done.code == 0, done.out + done.err
    (row,) = done.json["volumes"]
    assert row["proved"]
    assert row["item"] == "E0001"
    seen = [c.operation for c in aws_server.calls()[calls:]]
    assert not {"CreateSnapshots", "CreateSnapshot"} & set(seen)
    locked = aws_server.client("ec2", MEMBER).describe_locked_snapshots()["Snapshots"]
    assert [s["SnapshotId"] for s in locked] == [zone.estate.snapshot]
    again = acquire("snapshot", zone.estate.snapshot)
    assert again.code == 0
    assert again.json["volumes"][0]["item"] == "E0001"


def test_a_plan_of_a_snapshot_freezes_nothing(acquire, cloud, zone):
    dry = acquire("snapshot", zone.estate.snapshot, "--dry-run")
    planned = cloud("--json", "plan", "snapshot", zone.estate.variables()["SNAPSHOT"], "--case",
                    "T-1")  # fmt: skip
    assert dry.code == planned.code == 0, dry.err + planned.err
    assert dry.json == planned.json
    assert [s["step"] for s in dry.json["steps"]] == ["observe", "lock", "read", "copy", "prove"]


def test_kinds_are_not_mixed_up(acquire, zone):
    assert "no snapshot" in acquire("snapshot", zone.estate.volumes[0]).err
    assert "no volume" in acquire("volume", zone.estate.snapshot).err


def test_a_snapshot_that_is_not_there(acquire):
    done = acquire("snapshot", "snap-0123456789abcdef0")
    assert done.code == 12
    assert "can see no snapshot" in done.err


def test_another_owners_snapshot_cannot_be_locked_and_is_taken(acquire, volume, aws_server, zone):
    ec2 = aws_server.client("ec2", LOG_ARCHIVE)
    made = ec2.create_snapshot(VolumeId=volume(LOG_ARCHIVE))["SnapshotId"]
    ec2.modify_snapshot_attribute(
        SnapshotId=made, Attribute="createVolumePermission", OperationType="add",
        UserIds=[MEMBER, AUDIT],
    )  # fmt: skip
    done = acquire("snapshot", made)
    (row,) = done.json["volumes"]
    assert done.code == 3, done.out
    assert row["proved"]
    assert [g for g in row["gaps"] if "cannot be locked" in g] == row["gaps"]


def test_another_owners_snapshot_that_audit_cannot_use_is_read_and_the_copy_a_gap(
    acquire, volume, aws_server, zone
):
    ec2 = aws_server.client("ec2", LOG_ARCHIVE)
    made = ec2.create_snapshot(VolumeId=volume(LOG_ARCHIVE))["SnapshotId"]
    ec2.modify_snapshot_attribute(
        SnapshotId=made, Attribute="createVolumePermission", OperationType="add", UserIds=[MEMBER]
    )
    done = acquire("snapshot", made)
    (row,) = done.json["volumes"]
    assert done.code == 3
    assert row["item"]
    assert not row["copy"]
    assert any("only its owner can share it" in g for g in row["gaps"])


def test_an_unencrypted_source_is_copied_encrypted_and_said_to_be_so(acquire, volume, aws_server,
                                                                     zone, cloud):  # fmt: skip
    done = acquire("volume", volume())
    assert done.code == 0, done.out + done.err
    (row,) = done.json["volumes"]
    assert row["proved"]
    assert any("is not encrypted" in n for n in row["notes"])
    (copy,) = aws_server.client("ec2", AUDIT).describe_snapshots(
        SnapshotIds=[row["copy"]])["Snapshots"]  # fmt: skip
    assert copy["KmsKeyId"] == zone.estate.copy_key
    notes = Path("evidence/cases/T-1/ledger").glob("*.note")
    assert any('"encrypted":false' in note.read_text() for note in notes)
    assert not any(c.operation == "GetKeyPolicy" for c in aws_server.calls())


def test_under_the_key_of_ebs_and_no_key_set_the_item_rests_on_the_source(acquire, volume,
                                                                          aws_server):  # fmt: skip
    done = acquire("volume", volume(Encrypted=True))
    (row,) = done.json["volumes"]
    assert done.code == 3
    assert row["item"]
    assert not row["copy"]
    assert any("member_key" in g for g in row["gaps"])
    assert aws_server.client("ec2", AUDIT).describe_snapshots(OwnerIds=["self"])["Snapshots"] == []


def test_under_the_key_of_ebs_it_is_copied_through_a_key_of_the_member(
    acquire, volume, aws_server, home, member_key
):
    add_setting(home, 'member_key = "alias/impound"')
    target = volume(Encrypted=True)
    aws_server.faults.add(Fault("lost-answer", service="ec2", operation="CopySnapshot", times=1))
    done = acquire("volume", target)
    assert done.code == 0, done.out + done.err
    (row,) = done.json["volumes"]
    assert row["proved"]
    ours = aws_server.client("ec2", MEMBER).describe_snapshots(OwnerIds=["self"])["Snapshots"]
    (through,) = [s for s in ours if s.get("KmsKeyId") == member_key and "copy" in
                  s["Description"]]  # fmt: skip
    assert {t["Key"] for t in through["Tags"]} >= {"incident-response", "impound-nonce"}
    locked = aws_server.client("ec2", MEMBER).describe_locked_snapshots()["Snapshots"]
    assert {s["SnapshotId"] for s in locked} == {row["snapshot"], through["SnapshotId"]}
    again = acquire("volume", target)
    assert again.code == 0
    found = aws_server.client("ec2", MEMBER).describe_snapshots(OwnerIds=["self"])["Snapshots"]
    assert len(found) == len(ours)


def test_the_key_of_an_account_goes_before_the_alias_of_all(acquire, volume, home, member_key):
    add_setting(home, f'member_key = "alias/other"\n[accounts.{MEMBER}]\n'
                f'snapshot_key = "{member_key}"')  # fmt: skip
    assert acquire("volume", volume(Encrypted=True)).code == 0


def test_a_member_key_that_is_disabled_is_named(acquire, volume, home, member_key, aws_server):
    add_setting(home, 'member_key = "alias/impound"')
    aws_server.client("kms", MEMBER).disable_key(KeyId=member_key)
    target = volume(Encrypted=True)
    done = acquire("volume", target)
    assert done.code == 3
    assert any("is Disabled" in g for g in done.json["volumes"][0]["gaps"])
    aws_server.client("kms", MEMBER).enable_key(KeyId=member_key)
    assert acquire("volume", target).code == 0
