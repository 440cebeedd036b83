# SPDX-License-Identifier: Apache-2.0
"""A volume that was attached to this workstation: found, made read-only, mounted, taken away.

The kernel names devices as it likes, so a volume is found by the serial number that its NVMe
controller states: the volume's id without the dash. The device, and each of its partitions, is made
read-only at block level before anything else is done with it, and that is read back. Mounting then
replays no journal, so that not a byte is written even if read-only did not hold.

That is no write blocker: the claim of a custody event is that the source snapshot was read again
and is equal.

Source: EC2 User Guide, "Amazon EBS and NVMe on Linux"; blockdev(8), BLKROSET and BLKROGET of
linux/fs.h; ext4(5) `noload`; xfs(5) `norecovery`, `nouuid`.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import struct
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from acquisition.errors import AcquisitionError, SourceNotFoundError, UnsupportedSourceError
from acquisition.source import BlockDevice
from evidence_store.model import clean

_BLKROSET, _BLKROGET = 0x125D, 0x125E
_VOLUME = re.compile(r"vol-([0-9a-f]{8,17})")
_INSTANCE = re.compile(r"i-[0-9a-f]{8,17}")
_TIMEOUT_S = 120
# Nothing on it is run, no device file on it is opened, and it is not changed by being read.
_SAFE = ("ro", "nosuid", "nodev", "noexec", "noatime")
_OPTIONS = {"ext": ("noload",), "xfs": ("norecovery", "nouuid")}


class NotReadOnlyError(AcquisitionError):
    """A device can be written to, so it is left alone."""


@dataclass(frozen=True)
class Machine:
    """This machine, as its kernel shows it."""

    sysfs: Path = Path("/sys")
    dev: Path = Path("/dev")

    def instance_id(self) -> str:
        """Return the EC2 instance that this is, "" if it is none.

        Nitro writes it into the board's asset tag: no network is asked.
        """
        try:
            text = (self.sysfs / "devices/virtual/dmi/id/board_asset_tag").read_text("ascii")
        except (OSError, UnicodeDecodeError):
            return ""
        found = _INSTANCE.fullmatch(text.strip())
        return found[0] if found else ""

    def device(self, volume_id: str) -> Path:
        """Return the device of an attached volume.

        Raises: SourceNotFoundError if none states its id; UnsupportedSourceError if more than one.
        """
        matched = _VOLUME.fullmatch(volume_id)
        if matched is None:
            raise SourceNotFoundError(f"not a volume: {clean(volume_id, 60)!r}")
        serial = f"vol{matched[1]}"
        found = []
        for entry in sorted((self.sysfs / "block").iterdir()):
            try:
                said = (entry / "device/serial").read_text("ascii").strip()
            except (OSError, UnicodeDecodeError):
                continue
            if said.replace("-", "") == serial:
                found.append(self.dev / entry.name)
        if not found:
            raise SourceNotFoundError(
                f"no device here has the serial number {serial}",
                hint="is it attached to this machine? lsblk -o NAME,SERIAL lists what is",
            )
        if len(found) > 1:
            raise UnsupportedSourceError(
                f"{len(found)} devices have the serial number {serial}: "
                + ", ".join(map(str, found)),
                hint="detach all but the one that EC2 shows",
            )
        return found[0]

    def partitions(self, device: Path) -> list[Path]:
        """Return the devices of its partitions, in order of their numbers."""
        entry = self.sysfs / "block" / device.name
        numbers = {}
        for part in entry.iterdir():
            if part.name.startswith(device.name) and (part / "partition").is_file():
                numbers[int((part / "partition").read_text())] = self.dev / part.name
        return [numbers[n] for n in sorted(numbers)]


class AttachedSnapshot(BlockDevice):
    """A volume made of a snapshot, as an `ImageSource`: read whole from its read-only device.

    It stands for the snapshot that the volume's snapshot is a copy of; that both hold the same is
    for the caller to prove, by reading the copy another way.
    """

    method = (
        "pread(2) of the block device of an EBS volume made from the snapshot's copy; the device "
        "read-only in the kernel"
    )

    def __init__(
        self, device: Path, snapshot: str, *, text: str, size: int,
        facts: Mapping[str, JsonValue], via: Mapping[str, JsonValue],
    ) -> None:  # fmt: skip
        """Open it.

        Args:
            device: read-only already.
            snapshot: id of the source snapshot.
            text: what people call it.
            size: bytes that the device must have.
            facts: what EC2 tells of the source snapshot.
            via: volume, copy and instance that it is read through.

        Raises: NotReadOnlyError; UnsupportedSourceError if the size is another; AcquisitionError.
        """
        if not is_read_only(device):
            raise NotReadOnlyError(f"{device} is not read-only: not read")
        super().__init__(device, text)
        if self.size != size:
            self.close()
            raise UnsupportedSourceError(
                f"{device} has {self.size} bytes, the snapshot {size}: not the same volume"
            )
        # The device's own facts tell of the way; the source is the snapshot.
        kept = ("path", "serial", "model", "read_only", "logical_block_size", "mounted")
        way = {name: self.facts[name] for name in kept if name in self.facts}
        self.facts = {
            "type": "EBS snapshot", **facts, "snapshot": snapshot, "size": size,
            "via": {**via, **way},
        }  # fmt: skip
        self.identity = {"snapshot": snapshot, "size": size, "via": "volume"}


def make_read_only(devices: Sequence[Path]) -> None:
    """Make block devices read-only, and read back that they are.

    Raises: NotReadOnlyError, AcquisitionError.
    """
    for device in devices:
        descriptor = _open(device)
        try:
            fcntl.ioctl(descriptor, _BLKROSET, struct.pack("i", 1))
        except OSError as e:
            raise NotReadOnlyError(
                f"{device} cannot be made read-only: {e.strerror}", hint="run it as root"
            ) from e
        finally:
            os.close(descriptor)
    for device in devices:
        if not is_read_only(device):
            raise NotReadOnlyError(f"{device} can still be written to", hint="detach it")


def is_read_only(device: Path) -> bool:
    """Whether the kernel refuses to write to a block device. Raises: AcquisitionError."""
    descriptor = _open(device)
    try:
        answer = fcntl.ioctl(descriptor, _BLKROGET, struct.pack("i", 0))
    except OSError as e:
        raise AcquisitionError(f"cannot ask whether {device} is read-only: {e.strerror}") from e
    finally:
        os.close(descriptor)
    return bool(struct.unpack("i", answer)[0])


def _open(device: Path) -> int:
    try:
        descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as e:
        raise AcquisitionError(f"cannot open {device}: {e.strerror}", hint="run it as root") from e
    if not stat.S_ISBLK(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UnsupportedSourceError(f"{device} is no block device")
    return descriptor


def file_system(device: Path) -> str:
    """Return `ext`, `xfs` or "" by the magic number. Raises: AcquisitionError."""
    descriptor = _open(device)
    try:
        head = os.pread(descriptor, 2048, 0)
    except OSError as e:
        raise AcquisitionError(f"cannot read {device}: {e.strerror}") from e
    finally:
        os.close(descriptor)
    if head[:4] == b"XFSB":
        return "xfs"
    return "ext" if head[1080:1082] == b"\x53\xef" else ""


def mount(device: Path, point: Path) -> tuple[str, ...]:
    """Mount a read-only device without replaying its journal; return the options that were used.

    Raises: NotReadOnlyError; UnsupportedSourceError; AcquisitionError.
    """
    if not is_read_only(device):
        raise NotReadOnlyError(f"{device} is not read-only: not mounted")
    kind = file_system(device)
    if not kind:
        raise UnsupportedSourceError(
            f"{device} holds neither ext2-4 nor XFS: not mounted",
            hint="impound analyse reads NTFS and FAT out of the item, without a mount",
        )
    options = (*_SAFE, *_OPTIONS[kind])
    point.mkdir(mode=0o700, parents=True, exist_ok=True)
    done = _run("mount", "-t", "xfs" if kind == "xfs" else "ext4", "-o", ",".join(options),
                str(device), str(point))  # fmt: skip
    if done:
        raise AcquisitionError(
            f"{device} cannot be mounted: {done}",
            hint="impound analyse reads the item itself, without the kernel's file systems",
        )
    return options


def unmount(point: Path) -> None:
    """Unmount; remove the folder if it is empty then. Raises: AcquisitionError."""
    if done := _run("umount", str(point)):
        raise AcquisitionError(
            f"{point} cannot be unmounted: {done}", hint="end what uses it (fuser -vm)"
        )
    point.rmdir()


def mounted(devices: Sequence[Path]) -> list[Path]:
    """Return where any of these devices is mounted on this machine, last first."""
    names = {str(device) for device in devices}
    found = []
    for line in Path("/proc/self/mounts").read_text("utf-8", "surrogateescape").splitlines():
        source, point = line.split(" ")[:2]
        if source in names:
            found.append(Path(re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), point)))
    return found[::-1]


def _run(*command: str) -> str:
    """Run a program; return "" or what it said when it failed."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=_TIMEOUT_S, check=False, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                                                  "LC_ALL": "C"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as e:
        return clean(str(e), 300)
    return clean(done.stderr.strip() or f"exit {done.returncode}", 300) if done.returncode else ""
