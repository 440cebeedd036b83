# SPDX-License-Identifier: Apache-2.0
"""Attached volumes: found by serial, read-only at block level, mounted without a replay."""

from __future__ import annotations

import hashlib
import os
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from acquisition import volume
from acquisition.errors import AcquisitionError, SourceNotFoundError, UnsupportedSourceError
from acquisition.volume import Machine, NotReadOnlyError
from tests.conftest import missing, need_tool

VOLUME = "vol-0123456789abcdef0"


def machine(tmp_path, **serials):
    sysfs, dev = tmp_path / "sys", tmp_path / "dev"
    for name, serial in serials.items():
        folder = sysfs / "block" / name / "device"
        folder.mkdir(parents=True)
        (folder / "serial").write_text(f"{serial}\n")
    dev.mkdir()
    return Machine(sysfs, dev)


def test_a_volume_is_found_by_its_serial_not_by_its_name(tmp_path):
    here = machine(tmp_path, nvme0n1="vol0fedcba9876543210", nvme7n1="vol0123456789abcdef0")
    assert here.device(VOLUME) == tmp_path / "dev/nvme7n1"


def test_no_device_two_devices_and_no_volume(tmp_path):
    here = machine(tmp_path, nvme1n1="vol0123456789abcdef0", nvme2n1="vol0123456789abcdef0")
    with pytest.raises(UnsupportedSourceError, match="2 devices"):
        here.device(VOLUME)
    with pytest.raises(SourceNotFoundError, match="serial number vol0aaaaaaaa"):
        here.device("vol-0aaaaaaaa")
    with pytest.raises(SourceNotFoundError, match="not a volume"):
        here.device("../../sda")


def test_the_instance_is_known_without_a_network(tmp_path):
    here = machine(tmp_path, sda="x")
    tag = tmp_path / "sys/devices/virtual/dmi/id/board_asset_tag"
    assert here.instance_id() == ""
    tag.parent.mkdir(parents=True)
    tag.write_text("i-0123456789abcdef0\n")
    assert here.instance_id() == "i-0123456789abcdef0"
    tag.write_text("Not Specified\n")
    assert here.instance_id() == ""


def test_partitions_come_in_order_of_their_numbers(tmp_path):
    here = machine(tmp_path, nvme1n1="x")
    for number in (10, 2, 1):
        part = tmp_path / f"sys/block/nvme1n1/nvme1n1p{number}"
        part.mkdir()
        (part / "partition").write_text(f"{number}\n")
    found = here.partitions(tmp_path / "dev/nvme1n1")
    assert [p.name for p in found] == ["nvme1n1p1", "nvme1n1p2", "nvme1n1p10"]


def test_a_file_is_no_device(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UnsupportedSourceError, match="no block device"):
        volume.make_read_only([tmp_path / "file"])
    with pytest.raises(AcquisitionError, match="cannot open"):
        volume.is_read_only(tmp_path / "none")


# -- real devices


@contextmanager
def loop(image):
    if os.geteuid() != 0:
        missing("loop devices need root")
    done = subprocess.run([need_tool("losetup"), "--find", "--show", image], capture_output=True,
                          text=True)  # fmt: skip
    if done.returncode:
        missing(f"no loop device: {done.stderr.strip()}")
    device = Path(done.stdout.strip())
    try:
        yield device
    finally:
        # A loop device stays read-only for whoever uses it next; a volume that is detached is gone.
        subprocess.run(["blockdev", "--setrw", device], check=True)
        subprocess.run(["losetup", "--detach", device], check=True)


def sha256(path):
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def run(*command):
    subprocess.run([need_tool(command[0]), *map(str, command[1:])], check=True, capture_output=True)


def dirty(image, kind, tmp_path):
    """Make a file system whose journal holds what its blocks do not: cut off while mounted."""
    size = 320 << 20 if kind == "xfs" else 32 << 20
    live, point = tmp_path / "live", tmp_path / "point"
    with live.open("wb") as f:
        f.truncate(size)
    run(f"mkfs.{kind}", *(("-q",) if kind == "xfs" else ("-q", "-F")), live)
    point.mkdir()
    with loop(live) as device:
        run("mount", device, point)
        (point / "first").write_text("before\n")
        run("umount", point)
        run("mount", device, point)
        try:
            (point / "evidence").write_text("in the journal\n")
            descriptor = os.open(point / "evidence", os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
            # What reached the disk until now: what a snapshot of a running machine holds.
            run("cp", "--sparse=always", live, image)
        finally:
            run("umount", point)
            point.rmdir()


def needs_replay(image, kind):
    if kind == "xfs":
        said = subprocess.run(
            [need_tool("xfs_repair"), "-n", "-f", image], capture_output=True, text=True
        )
        return "valuable metadata changes in a log" in said.stdout + said.stderr
    said = subprocess.run([need_tool("dumpe2fs"), "-h", image], capture_output=True, text=True)
    return "needs_recovery" in said.stdout


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_mount_replays_no_journal_and_changes_no_byte(kind, tmp_path):
    image, point = tmp_path / "image", tmp_path / "evidence"
    dirty(image, kind, tmp_path)
    assert needs_replay(image, kind)
    before = sha256(image)
    with loop(image) as device:
        volume.make_read_only([device])
        options = volume.mount(device, point)
        try:
            assert {"ro", "nosuid", "nodev", "noexec"} <= set(options)
            assert volume.mounted([device]) == [point]
            assert (point / "first").read_text() == "before\n"
            assert not (point / "evidence").exists()  # a replay would bring it
            with pytest.raises(OSError, match="Read-only"):
                (point / "mine").touch()
        finally:
            volume.unmount(point)
        assert not point.exists()
        assert volume.mounted([device]) == []
    assert sha256(image) == before
    assert needs_replay(image, kind)


def test_the_kernel_refuses_to_write_to_a_read_only_device(tmp_path):
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    with loop(image) as device:
        assert not volume.is_read_only(device)
        volume.make_read_only([device])
        assert volume.is_read_only(device)
        with pytest.raises(OSError), device.open("r+b", buffering=0) as f:  # noqa: PT012
            f.write(b"x" * 512)
            os.fsync(f.fileno())


def test_a_writable_device_is_not_mounted(tmp_path):
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    with loop(image) as device, pytest.raises(NotReadOnlyError):
        volume.mount(device, tmp_path / "point")


def test_what_is_no_known_file_system_is_not_mounted(tmp_path):
    image = tmp_path / "image"
    image.write_bytes(b"\xff" * (1 << 20))
    with loop(image) as device:
        volume.make_read_only([device])
        with pytest.raises(UnsupportedSourceError, match="neither"):
            volume.mount(device, tmp_path / "point")


def test_a_damaged_file_system_is_one_error(tmp_path):
    image = tmp_path / "image"
    image.write_bytes(bytes(1080) + b"\x53\xef" + bytes(1 << 20))
    with loop(image) as device:
        volume.make_read_only([device])
        with pytest.raises(AcquisitionError, match="cannot be mounted"):
            volume.mount(device, tmp_path / "point")
    with suppress(OSError):
        (tmp_path / "point").rmdir()
