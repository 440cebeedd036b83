# SPDX-License-Identifier: Apache-2.0
"""`acquire volume --via volume`: a real block device with a journal to replay, read unchanged."""

from __future__ import annotations

import os

import pytest

from acquisition.volume import Machine
from pipeline.gameday.aws.accounts import AUDIT
from tests.acquisition.test_volume import dirty, loop, needs_replay, sha256
from tests.conftest import need_tool

GIB = 1 << 30


@pytest.fixture(params=["ext4", "xfs"])
def kind(request):
    need_tool("losetup")
    return request.param


@pytest.fixture
def images(kind, tmp_path):
    image = tmp_path / "volume.img"
    (tmp_path / "work-of-disk").mkdir()
    dirty(image, kind, tmp_path / "work-of-disk")
    os.truncate(image, GIB)
    return [image]


class AsWorkstation(Machine):
    """This machine as the workstation; a loop device is whatever is attached."""

    def of(self, instance, device):
        object.__setattr__(self, "_instance", instance)
        object.__setattr__(self, "_device", device)
        return self

    def instance_id(self):
        return self._instance

    def device(self, volume_id):
        return self._device

    def partitions(self, device):
        return []


@pytest.mark.chaos
def test_a_device_with_a_journal_to_replay_is_read_as_it_is(
    bench, launched, ec2, images, kind, zone, monkeypatch
):
    [image], [volume] = images, zone.estate.volumes
    assert needs_replay(image, kind)
    before = sha256(image)
    take = ("--json", "acquire", "volume", zone.estate.variables()["VOLUMES"], "--case", "T-1",
            "--via", "volume")  # fmt: skip

    # Elsewhere than on the workstation it is a gap, and nothing is read.
    elsewhere = bench(*take)
    assert elsewhere.code == 3
    assert "is not the workstation" in elsewhere.json["volumes"][0]["gaps"][0]

    with loop(image) as device:
        machine = AsWorkstation().of(launched["instance"], device)
        monkeypatch.setattr("pipeline.workstation.MACHINE", machine)
        taken = bench(*take)
    assert taken.code == 0, taken.err + taken.out
    [found] = taken.json["volumes"]
    assert (found["volume"], found["sha256"], found["proved"]) == (volume, before, True)
    assert sha256(image) == before
    assert needs_replay(image, kind)

    # What it was read through is told, and gone; the copy stays.
    shown = bench("--json", "item", "list", "T-1").json
    source = shown["items"][0]["manifest"]["source"]
    assert source["snapshot"] == found["snapshot"]
    assert source["via"]["copy"] == found["copy"]
    assert source["via"]["instance"] == launched["instance"]
    made = [v for v in ec2.describe_volumes()["Volumes"] if v.get("SnapshotId") == found["copy"]]
    assert made == []
    assert ec2.describe_snapshots(SnapshotIds=[found["copy"]], OwnerIds=[AUDIT])["Snapshots"]
    assert bench("verify", "T-1").code == 0


def test_what_does_not_go_with_it_is_usage(impound):
    for more in ("--no-copy", "--since=last"):
        result = impound("acquire", "volume", "vol-0123456789abcdef0", "--account", AUDIT,
                       "--case", "T-1", "--via", "volume", more)  # fmt: skip
        assert (result.code, "--via volume" in result.err) == (2, True)
