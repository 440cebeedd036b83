# SPDX-License-Identifier: Apache-2.0
"""What a case made in member accounts: when it is deleted, and all that stands against it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.gameday.aws.accounts import AUDIT, MEMBER
from pipeline.gameday.aws.faults import Fault
from tests.evidence_store.kit import pattern
from tests.pipeline import landing_zone

GIB = 1 << 30
BLOCK = 512 << 10


@pytest.fixture
def images(tmp_path):
    """One volume with a block at its end."""
    return [landing_zone.image(tmp_path / "volume.img", GIB, {2047: pattern(BLOCK, 1)})]


@pytest.fixture
def clean(cloud):
    return lambda *more: cloud("--json", "--yes", "acquire", "cleanup", "T-1", *more)


@pytest.fixture
def member(aws_server):
    return aws_server.client("ec2", MEMBER)


@pytest.fixture
def taken(take):
    done = take()
    assert done.code == 0, done.out + done.err
    return done.json["volumes"][0]


def ids(ec2):
    return {s["SnapshotId"] for s in ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]}


def changes(aws_server):
    return [c.operation for c in aws_server.calls()
            if c.operation.startswith(("Delete", "Modify", "Unlock"))]  # fmt: skip


def test_what_is_proved_is_deleted_once_its_lock_ended_and_the_copy_stays(
    taken, take, clean, cloud, member, aws_server, zone
):
    before = len(changes(aws_server))
    kept = clean()
    assert kept.code == 3
    (row,) = kept.json["snapshots"]
    assert "is locked" in row["kept_because"]
    assert row["locked_until"]
    assert not row["shared"]  # the share is not needed any more
    assert taken["snapshot"] in ids(member)
    aws_server.advance(2 * 86400)
    dry = clean("--dry-run")
    assert dry.json["would_delete"] == [taken["snapshot"]]
    assert changes(aws_server)[before:] == ["ModifySnapshotAttribute"]
    done = clean()
    assert done.code == 0, done.out + done.err
    assert ids(member) == {zone.estate.snapshot}
    assert taken["copy"] in ids(aws_server.client("ec2", AUDIT))
    assert clean().json["snapshots"] == []
    again = take()
    assert again.code == 0, again.out
    row = again.json["volumes"][0]
    assert (row["item"], row["copy"], row["proved"]) == (taken["item"], taken["copy"], True)
    assert ids(member) == {zone.estate.snapshot}
    assert cloud("verify", "T-1").code == 0


def test_without_a_yes_nothing_is_deleted(taken, cloud, member, aws_server):
    aws_server.advance(2 * 86400)
    done = cloud("acquire", "cleanup", "T-1")
    assert done.code == 2
    assert taken["snapshot"] in ids(member)


def test_without_a_copy_nothing_is_deleted(take, clean, member, aws_server):
    made = take("--no-copy").json["volumes"][0]["snapshot"]
    aws_server.advance(2 * 86400)
    done = clean()
    assert done.code == 3
    assert "no copy" in done.out
    assert made in ids(member)


def test_a_copy_that_is_not_proved_is_not_relied_on(take, clean, member, aws_server):
    aws_server.faults.add(
        Fault("error", service="ebs", operation="ListSnapshotBlocks", account=AUDIT, status=403,
              times=None, code="AccessDeniedException", message="no")
    )  # fmt: skip
    made = take().json["volumes"][0]["snapshot"]
    aws_server.faults.clear()
    aws_server.advance(2 * 86400)
    done = clean()
    assert done.code == 3
    assert "not proved" in done.out
    assert made in ids(member)


def test_a_copy_that_was_deleted_meanwhile_leaves_the_source_as_the_last(taken, clean, member,
                                                                         aws_server):  # fmt: skip
    aws_server.advance(2 * 86400)
    aws_server.client("ec2", AUDIT).delete_snapshot(SnapshotId=taken["copy"])
    done = clean()
    assert done.code == 3
    assert "this is the last" in done.out
    assert taken["snapshot"] in ids(member)


def test_a_foreign_snapshot_with_a_forged_tag_is_not_looked_at(taken, clean, member, zone,
                                                               aws_server):  # fmt: skip
    (ours,) = member.describe_snapshots(SnapshotIds=[taken["snapshot"]])["Snapshots"]
    forged = member.create_snapshot(
        VolumeId=zone.estate.volumes[0],
        TagSpecifications=[{"ResourceType": "snapshot", "Tags": ours["Tags"]}],
    )["SnapshotId"]  # fmt: skip
    aws_server.advance(2 * 86400)
    done = clean()
    assert done.code == 0
    assert forged not in done.out
    assert forged in ids(member)


def test_one_of_ours_that_lost_its_tag_stays(taken, clean, member, aws_server):
    member.delete_tags(Resources=[taken["snapshot"]], Tags=[{"Key": "impound-nonce"}])
    aws_server.advance(2 * 86400)
    done = clean()
    assert done.code == 3
    assert "does not carry the tag" in done.out
    assert taken["snapshot"] in ids(member)


def test_an_item_that_does_not_verify_keeps_the_source(taken, clean, member, aws_server):
    (segment,) = Path("evidence/cases/T-1/items/E0001/data").iterdir()
    segment.chmod(0o600)
    with segment.open("r+b") as f:
        f.seek(-1, os.SEEK_END)
        f.write(b"\xff" if f.read(1) != b"\xff" else b"\0")
    aws_server.advance(2 * 86400)
    done = clean()
    assert done.code == 3
    assert "does not verify" in done.out
    assert taken["snapshot"] in ids(member)


def test_what_was_there_before_stays_and_is_shared_no_more(cloud, clean, zone, member,
                                                           aws_server):  # fmt: skip
    target = zone.estate.variables()["SNAPSHOT"]
    assert cloud("acquire", "snapshot", target, "--case", "T-1").code == 0
    aws_server.advance(2 * 86400)
    assert clean().code == 0
    assert ids(member) == {zone.estate.snapshot}
    shares = member.describe_snapshot_attribute(
        SnapshotId=zone.estate.snapshot, Attribute="createVolumePermission"
    )["CreateVolumePermissions"]  # fmt: skip
    assert shares == []


def test_a_lost_answer_to_the_deletion_is_settled_by_the_next_run(taken, clean, cloud, member,
                                                                  aws_server):  # fmt: skip
    aws_server.advance(2 * 86400)
    aws_server.faults.add(
        Fault("error", service="ec2", operation="DeleteSnapshot", code="UnauthorizedOperation",
              status=403, message="no", times=1)
    )  # fmt: skip
    assert clean().code == 3
    aws_server.faults.add(Fault("lost-answer", service="ec2", operation="DeleteSnapshot"))
    clean()
    assert clean().json["snapshots"] == []
    assert taken["snapshot"] not in ids(member)
    assert cloud("verify", "T-1").code == 0
