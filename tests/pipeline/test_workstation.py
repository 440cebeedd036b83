# SPDX-License-Identifier: Apache-2.0
"""The workstation of a case: launched and judged, given volumes, ended; never the evidence."""

from __future__ import annotations

import hashlib
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest

from acquisition.volume import Machine
from pipeline.config import Settings
from pipeline.errors import ConfigError
from pipeline.gameday.aws.accounts import REGION
from pipeline.workstation import parameters
from tests.conftest import missing, need_tool


def snapshot(ec2):
    volume = ec2.create_volume(Size=1, AvailabilityZone=f"{REGION}a", Encrypted=True)["VolumeId"]
    ec2.get_waiter("volume_available").wait(VolumeIds=[volume])
    made = ec2.create_snapshot(VolumeId=volume)["SnapshotId"]
    ec2.get_waiter("snapshot_completed").wait(SnapshotIds=[made])
    return made, volume


def state(ec2, instance):
    [found] = ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"]
    return found["State"]["Name"]


def test_launch_attach_terminate(bench, launched, ec2):
    instance = launched["instance"]
    assert (launched["state"], launched["zone"]) == ("running", f"{REGION}b")
    listed = bench("--json", "workstation", "list").json["workstations"]
    assert [(w["case"], w["instance"]) for w in listed] == [("T-1", instance)]

    source, _ = snapshot(ec2)
    attached = bench("--json", "workstation", "attach", source, "--case", "T-1")
    assert attached.code == 0, attached.err
    volume = attached.json["volume"]
    found = ec2.describe_volumes(VolumeIds=[volume])["Volumes"][0]
    assert (found["AvailabilityZone"], found["SnapshotId"]) == (f"{REGION}b", source)
    assert attached.json["device"] is None  # this machine is not that workstation
    # The same again makes nothing.
    again = bench("--json", "workstation", "attach", source, "--case", "T-1").json
    assert again["volume"] == volume

    ended = bench("--json", "workstation", "terminate")
    assert (ended.code, ended.json["gaps"]) == (0, []), ended.err
    assert state(ec2, instance) == "terminated"
    assert ec2.describe_snapshots(SnapshotIds=[source])["Snapshots"][0]["State"] == "completed"
    assert bench("--json", "workstation", "list").json["workstations"] == []
    assert bench("verify", "T-1").code == 0

    # Another round is another workstation, and another volume.
    second = bench("--json", "workstation", "launch", "--case", "T-1", "--target", "10.0.0.5")
    assert second.code == 0, second.err
    assert second.json["instance"] != instance
    once_more = bench("--json", "workstation", "attach", source, "--case", "T-1")
    assert once_more.code == 0, once_more.err
    assert once_more.json["volume"] != volume


def test_launch_is_done_once_and_a_workstation_that_was_opened_is_told(bench, launched, ec2):
    again = bench("--json", "workstation", "launch", "--case", "T-1")
    assert (again.code, again.json["instance"]) == (0, launched["instance"])
    result = bench("workstation", "attach", "../x", "--case", "T-1")
    assert (result.code, "not a snapshot or an item" in result.err) == (2, True)
    ec2.authorize_security_group_ingress(GroupId=launched["group"], IpPermissions=[{
        "IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "0.0.0.0/0"}],
    }])  # fmt: skip
    again = bench("workstation", "launch", "--case", "T-1")
    assert again.code == 12
    assert "permitted to it: tcp 22-22 0.0.0.0/0" in again.err
    assert "terminate" in again.err


@pytest.mark.chaos
def test_the_target_is_that_of_the_case(bench, target, zone):
    assert bench("acquire", "volume", target, "--case", "T-1", "--no-copy").code == 0
    plan = bench("--json", "workstation", "launch", "--case", "T-1", "--dry-run")
    assert plan.code == 0, plan.err
    assert plan.json["parameters"]["TargetCidr"].endswith("/32")
    assert bench("--json", "workstation", "list").json["workstations"] == []


def test_bad_input_is_one_clear_error(bench):
    for argv, code, said in (
        (("launch", "--case", "T-1"), 2, "names 0 instances"),
        (("launch", "--case", "T-1", "--target", "0.0.0.0/0"), 2, "not an address"),
        (("attach", "snap-0123456789abcdef0", "--case", "T-1"), 12, "has no workstation"),
        (("terminate",), 2, "there are 0 workstations"),
        (("detach", "vol-0123456789abcdef0", "--case", "T-1"), 2, "is no volume that was made"),
    ):
        result = bench("workstation", *argv)
        assert (result.code, said in result.err) == (code, True), result.err


def test_a_volume_whose_snapshot_is_gone_is_a_gap_and_stays(bench, launched, ec2):
    source, _ = snapshot(ec2)
    volume = bench("--json", "workstation", "attach", source, "--case", "T-1").json["volume"]
    ec2.delete_snapshot(SnapshotId=source)
    ended = bench("--json", "workstation", "terminate")
    assert ended.code == 3
    assert "stays" in ended.json["gaps"][0]
    assert ec2.describe_volumes(VolumeIds=[volume])["Volumes"]


def test_settings_that_are_missing_are_named():
    with pytest.raises(ConfigError, match=r"workstation\.vpc.*s3\.kms_key"):
        parameters(Settings(), "s3://b", "T-1", "T-1", "a@b", "10.0.0.5")
    with pytest.raises(ConfigError, match="is a directory"):
        parameters(Settings(), "./evidence", "T-1", "T-1", "a@b", "10.0.0.5")


# -- on the workstation itself: a loop device stands for the attached volume


@contextmanager
def as_workstation(tmp_path, instance, volume, image):
    """This machine as the workstation that has `volume`, whose content is that of `image`."""
    if os.geteuid() != 0:
        missing("loop devices need root")
    done = subprocess.run([need_tool("losetup"), "--find", "--show", image], capture_output=True,
                          text=True)  # fmt: skip
    if done.returncode:
        missing(f"no loop device: {done.stderr.strip()}")
    device = Path(done.stdout.strip())
    sysfs = tmp_path / "sys"
    for path, text in {
        "devices/virtual/dmi/id/board_asset_tag": instance,
        f"block/{device.name}/device/serial": volume.replace("-", ""),
    }.items():
        (sysfs / path).parent.mkdir(parents=True, exist_ok=True)
        (sysfs / path).write_text(f"{text}\n")
    try:
        yield Machine(sysfs), device
    finally:
        subprocess.run(["umount", device], capture_output=True)
        subprocess.run(["blockdev", "--setrw", device], check=True)
        subprocess.run(["losetup", "--detach", device], check=True)


def sha256(path):
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def test_on_the_workstation_the_volume_is_read_only_and_mounted(
    bench, launched, ec2, tmp_path, monkeypatch
):
    image = tmp_path / "volume.img"
    with image.open("wb") as f:
        f.truncate(16 << 20)
    subprocess.run([need_tool("mkfs.ext4"), "-q", "-F", image], check=True)
    before = sha256(image)
    source, _ = snapshot(ec2)
    volume = bench("--json", "workstation", "attach", source, "--case", "T-1").json["volume"]
    instance = launched["instance"]
    with as_workstation(tmp_path, instance, volume, image) as (machine, device):
        monkeypatch.setattr("pipeline.workstation.MACHINE", machine)
        monkeypatch.setattr("pipeline.workstation.MOUNTS", tmp_path / "mnt")
        used = bench("--json", "workstation", "attach", source, "--case", "T-1")
        assert used.code == 0, used.err
        assert used.json["device"] == str(device)
        [mount] = used.json["mounts"]
        assert {"ro", "noload"} <= set(mount["options"])
        assert (Path(mount["at"]) / "lost+found").is_dir()
        # Not this machine: it would end itself.
        refused = bench("workstation", "terminate")
        assert (refused.code, "this is that workstation" in refused.err) == (2, True)
        gone = bench("workstation", "detach", volume, "--case", "T-1")
        assert gone.code == 0, gone.err
        assert not Path(mount["at"]).exists()
    assert sha256(image) == before
    assert ec2.describe_snapshots(SnapshotIds=[source])["Snapshots"]
