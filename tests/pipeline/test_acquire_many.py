# SPDX-License-Identifier: Apache-2.0
"""Many targets at once: all frozen first, within the quotas, nothing made twice."""

from __future__ import annotations

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
def fleet(aws_server, zone):
    """Make instances with a volume of 1 GiB each, other content in each; return their ids."""

    def make(count):
        ec2 = aws_server.client("ec2", MEMBER)
        mapping = {"DeviceName": "/dev/sda1", "Ebs": {
            "VolumeSize": 1, "VolumeType": "gp3", "Encrypted": True,
            "KmsKeyId": zone.estate.member_key,
        }}  # fmt: skip
        made = ec2.run_instances(
            ImageId="ami-gameday", InstanceType="m6i.large", MinCount=count, MaxCount=count,
            BlockDeviceMappings=[mapping],
        )["Instances"]  # fmt: skip
        ids = [i["InstanceId"] for i in made]
        for page in ec2.describe_instances(InstanceIds=ids)["Reservations"]:
            for number, instance in enumerate(page["Instances"]):
                volume = instance["BlockDeviceMappings"][0]["Ebs"]["VolumeId"]
                aws_server.write(volume, {2047: pattern(BLOCK, number)})
        return ids

    return make


@pytest.fixture
def acquire(cloud, monkeypatch):
    monkeypatch.setattr("pipeline.run.CREATES_PER_SECOND", 1000.0)
    return lambda targets, *more: cloud("--json", "acquire", "volume", *targets, "--case", "T-1",
                                        "--account", MEMBER, "--region", "eu-central-1",
                                        *more)  # fmt: skip


def own(aws_server, account):
    found = aws_server.client("ec2", account).describe_snapshots(OwnerIds=["self"])["Snapshots"]
    return [s for s in found if any(t["Key"] == "impound-nonce" for t in s.get("Tags", []))]


@pytest.mark.chaos
def test_fifty_instances(acquire, fleet, aws_server, cloud):
    targets = fleet(50)
    aws_server.behave(snapshot_seconds=2.0)
    calls = len(aws_server.calls())
    done = acquire(targets)
    assert done.code == 0, done.err
    assert all(v["proved"] for v in done.json["volumes"])
    assert len({v["item"] for v in done.json["volumes"]}) == 50
    seen = aws_server.calls()[calls:]
    order = [c.operation for c in seen]
    # A quota that was exceeded would have been refused by the stand-in, and the call made again.
    assert order.count("CreateSnapshots") == order.count("CopySnapshot") == 50
    last_freeze = len(order) - order[::-1].index("CreateSnapshots")
    assert "ListSnapshotBlocks" not in order[:last_freeze]
    assert len(own(aws_server, MEMBER)) == len(own(aws_server, AUDIT)) == 50
    calls = len(aws_server.calls())
    again = acquire(targets)
    assert again.code == 0, again.err
    operations = {c.operation for c in aws_server.calls()[calls:]}
    assert not operations & {"CreateSnapshots", "CopySnapshot", "LockSnapshot", "GetSnapshotBlock"}
    assert len(own(aws_server, MEMBER)) == len(own(aws_server, AUDIT)) == 50


def test_a_target_that_fails_is_its_gap_and_the_others_finish(acquire, fleet, aws_server):
    targets = fleet(2)
    done = acquire([targets[0], "i-0123456789abcdef0", targets[1]])
    assert done.code == 3
    assert [len(t["volumes"]) for t in done.json["targets"]] == [1, 0, 1]
    assert "not exist" in done.json["targets"][1]["gaps"][0]
    assert all(v["proved"] for v in done.json["volumes"])


def test_targets_that_all_fail_are_one_error(acquire):
    done = acquire(["i-0123456789abcdef0", "i-0123456789abcdef1"])
    assert done.code == 12
    assert "not exist" in done.err


@pytest.mark.parametrize(
    ("operation", "code"),
    [("CopySnapshot", "ResourceLimitExceeded"),
     ("CreateSnapshots", "ConcurrentSnapshotLimitExceeded"),
     ("CreateSnapshots", "RequestLimitExceeded")],
)  # fmt: skip
def test_a_quota_that_is_full_is_waited_for(acquire, fleet, aws_server, operation, code):
    status = 503 if code == "RequestLimitExceeded" else 400
    aws_server.faults.add(
        Fault("error", service="ec2", operation=operation, code=code, status=status, times=3,
              message="full")
    )  # fmt: skip
    done = acquire(fleet(1))
    assert done.code == 0, done.out + done.err
    assert len(own(aws_server, MEMBER)) == len(own(aws_server, AUDIT)) == 1


def test_with_several_targets_only_the_last_items_are_bases(acquire, fleet):
    done = acquire(fleet(2), "--since", "E0001")
    assert done.code == 2
    assert "only last" in done.err


def test_the_same_target_twice_is_one(acquire, fleet, aws_server):
    (target,) = fleet(1)
    done = acquire([target, target], "--no-copy")
    assert done.code == 0
    assert len(done.json["volumes"]) == 1
