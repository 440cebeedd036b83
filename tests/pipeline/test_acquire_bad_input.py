# SPDX-License-Identifier: Apache-2.0
"""What is wrong with accounts, keys, snapshots and stores: one clear error, then a second run."""

from __future__ import annotations

import errno
import os

import pytest

from pipeline.gameday.aws.accounts import AUDIT, LOG_ARCHIVE, MEMBER
from pipeline.gameday.aws.faults import Fault
from tests.evidence_store.kit import pattern

GIB = 1 << 30
BLOCK = 512 << 10


@pytest.fixture
def images(tmp_path):
    """Three volumes with a block each at the end."""
    made = []
    for number in range(3):
        path = tmp_path / f"volume{number}.img"
        with path.open("wb") as f:
            f.truncate(GIB)
            os.pwrite(f.fileno(), pattern(BLOCK, number + 1), GIB - BLOCK)
        made.append(path)
    return made


@pytest.fixture
def one(cloud, zone):
    """`acquire volume` of the first volume."""
    volume = zone.estate.variables()["VOLUMES"].split()[0]
    return lambda *more: cloud("--json", "acquire", "volume", volume, "--case", "T-1", *more)


def gaps(done):
    return " ".join([*done.json["gaps"], *(g for v in done.json["volumes"] for g in v["gaps"])])


def test_a_disabled_key_is_named(one, zone, aws_server):
    made = one("--no-copy")  # the bytes are there; only the copy needs the key from here
    assert made.code == 0
    kms = aws_server.client("kms", MEMBER)
    kms.disable_key(KeyId=zone.estate.member_key)
    done = one()
    assert done.code == 3
    assert f"key {zone.estate.member_key} is Disabled" in gaps(done)
    kms.enable_key(KeyId=zone.estate.member_key)
    assert one().code == 0


def test_a_key_of_an_account_out_of_reach_is_a_gap(one, cloud, zone, aws_server):
    kms = aws_server.client("kms", LOG_ARCHIVE)
    key = kms.create_key(
        Policy='{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":"*",'
        '"Action":"kms:*","Resource":"*"}]}',
    )["KeyMetadata"]["Arn"]  # fmt: skip
    aws_server.faults.add(
        Fault("error", service="sts", operation="AssumeRole", code="AccessDenied", times=None,
              resource=f"arn:aws:iam::{LOG_ARCHIVE}:*")
    )  # fmt: skip
    volume = aws_server.client("ec2", MEMBER).create_volume(
        Size=1, AvailabilityZone="eu-central-1a", Encrypted=True, KmsKeyId=key
    )["VolumeId"]
    done = cloud("--json", "acquire", "volume", volume, "--case", "T-1", "--account", MEMBER,
                 "--region", "eu-central-1")  # fmt: skip
    assert done.code == 3
    assert LOG_ARCHIVE in gaps(done)
    assert done.json["volumes"][0]["item"]
    aws_server.faults.clear()
    again = cloud("acquire", "volume", volume, "--case", "T-1", "--account", MEMBER, "--region",
                  "eu-central-1")  # fmt: skip
    assert again.code == 0


def test_a_snapshot_that_fails_is_a_gap_and_again_makes_another(one, zone, aws_server):
    aws_server.behave(snapshot_seconds=3600)
    aws_server.faults.add(
        Fault("error", service="ec2", operation="LockSnapshot", code="UnauthorizedOperation",
              status=403, message="no")
    )  # fmt: skip
    made = []

    def fail(*_):
        (snapshot,) = [
            s["SnapshotId"]
            for s in aws_server.client("ec2", MEMBER).describe_snapshots(
                OwnerIds=["self"])["Snapshots"]
            if s["Description"] != "nightly"
        ]  # fmt: skip
        aws_server.set_snapshot(snapshot, "error", "An internal error occurred.")
        made.append(snapshot)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.acquire.Acquisition._take", _before(fail))
        done = one()
    assert done.code == 3
    assert f"snapshot {made[0]} failed: An internal error occurred." in gaps(done)
    aws_server.behave()
    again = one("--again")
    assert again.code == 0, again.out
    assert again.json["volumes"][0]["snapshot"] != made[0]


def _before(first):
    from pipeline.acquire import Acquisition

    take = Acquisition._take

    def both(self, taking):
        first()
        return take(self, taking)

    return both


def test_a_role_that_cannot_be_assumed(one, aws_server):
    aws_server.faults.add(
        Fault("error", service="sts", operation="AssumeRole", code="AccessDenied", times=None)
    )
    done = one()
    assert done.code == 14
    assert "impound-ExecutionRole" in done.err
    aws_server.faults.clear()
    assert one().code == 0


def test_a_role_in_the_wrong_account(one, home):
    path = home / "impound.toml"
    right = path.read_text()
    path.write_text(f'{right}\n[accounts.{MEMBER}]\nrole = "arn:aws:iam::{AUDIT}:role/any"\n')
    done = one()
    assert done.code == 14
    assert f"not in {MEMBER}" in done.err
    path.write_text(right)
    assert one().code == 0


def test_a_region_that_is_off(one, aws_server):
    aws_server.faults.add(
        Fault("error", service="ec2", operation="*", code="AuthFailure", status=401, times=None,
              message="AWS was not able to validate the provided access credentials")
    )  # fmt: skip
    done = one()
    assert done.code == 12
    assert "Region may not be enabled" in done.err
    aws_server.faults.clear()
    assert one().code == 0


def test_an_instance_that_was_terminated_after_the_freeze(cloud, zone, aws_server):
    target = zone.estate.variables()["INSTANCE"]
    aws_server.faults.add(
        Fault("error", service="ebs", operation="ListSnapshotBlocks", status=403, times=None,
              code="AccessDeniedException", message="no")
    )  # fmt: skip
    assert cloud("acquire", "volume", target, "--case", "T-1", "--no-copy").code == 3
    aws_server.faults.clear()
    aws_server.client("ec2", MEMBER).terminate_instances(InstanceIds=[zone.estate.instance])
    done = cloud("--json", "acquire", "volume", target, "--case", "T-1", "--no-copy")
    assert done.code == 0, done.out + done.err
    assert len([v for v in done.json["volumes"] if v["item"]]) == 3


def test_one_volume_of_three_that_is_refused_leaves_the_others(cloud, zone, aws_server):
    target = zone.estate.variables()["INSTANCE"]
    aws_server.behave()
    made = cloud("--json", "acquire", "volume", target, "--case", "T-1", "--no-copy")
    assert made.code == 0
    refused = made.json["volumes"][1]["snapshot"]
    aws_server.faults.add(
        Fault("error", service="ec2", operation="CopySnapshot", resource=refused, status=403,
              code="UnauthorizedOperation", message="no", times=None)
    )  # fmt: skip
    done = cloud("--json", "acquire", "volume", target, "--case", "T-1")
    assert done.code == 3, done.out
    assert [v["proved"] for v in done.json["volumes"]] == [True, False, True]
    aws_server.faults.clear()
    assert cloud("acquire", "volume", target, "--case", "T-1").code == 0


def test_a_store_that_is_full_is_said_and_the_next_run_goes_on(one, aws_server, monkeypatch):
    from evidence_store import backend

    def full(*_arguments, **_named):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(backend.os, "pwrite", full)
        patch.setattr(backend.os, "write", full)
        done = one()
    assert done.code == 11, done.err
    assert "full" in done.err or "space" in done.err
    assert one().code == 0
    made = aws_server.client("ec2", MEMBER).describe_snapshots(OwnerIds=["self"])["Snapshots"]
    assert len([s for s in made if s.get("Tags")]) == 1
