# SPDX-License-Identifier: Apache-2.0
"""Trees to put into images, what a walk must then find, and damage."""

from __future__ import annotations

import hashlib
import os
import random
import stat
import struct
from pathlib import Path

MIB = 1 << 20
BLOB = random.Random(1).randbytes(3 * MIB)
SECOND = 1_000_000_000


def below(tree):
    """Every path below `tree`. Not rglob: in some Pythons it fails at a link with a long target."""
    for folder, folders, files in os.walk(tree):
        yield from (Path(folder, name) for name in folders + files)


def digest(data):
    return hashlib.sha256(data).hexdigest()


def expect_tree(walked, tree):
    """Hold every name of a directory against its row."""
    for path in [tree, *sorted(below(tree))]:
        row = walked[f"/{path.relative_to(tree)}" if path != tree else "/"]
        there = path.lstat()
        assert row["name_state"] == "allocated"
        # Older mke2fs -d writes no nanoseconds; those have a test of their own.
        assert row["mtime"] in (there.st_mtime_ns, int(there.st_mtime) * SECOND) or path == tree
        if row["mode"] is not None and path != tree:
            assert row["mode"] == there.st_mode
            assert (row["uid"], row["gid"]) == (there.st_uid, there.st_gid)
        if stat.S_ISREG(there.st_mode):
            assert row["type"] == "file"
            assert row["size"] == there.st_size
            assert row["sha256"] == digest(path.read_bytes()), path
        elif stat.S_ISLNK(there.st_mode):
            assert row["link_target"] == str(path.readlink())
        else:
            assert row["sha256_state"] == "not-a-file"


def fill(tree):
    """Put files of all usual kinds and sizes into a directory."""
    (tree / "empty").touch()
    (tree / "small").write_bytes(b"hello\n")
    (tree / "large").write_bytes(BLOB)
    (tree / "a/b/c").mkdir(parents=True)
    for n in range(60):
        (tree / f"a/b/f{n}").write_bytes(BLOB[n * 100 : n * 100 + n * 777])
    (tree / "short link").symlink_to("small")
    (tree / "long link").symlink_to("x" * 300)
    os.mkfifo(tree / "fifo")
    with (tree / "hole").open("wb") as file:
        file.write(b"start")
        file.seek(2 * MIB)
        file.write(b"end")
        file.truncate(3 * MIB + 17)
    os.utime(tree / "small", ns=(1_600_000_000_123_456_789, 1_700_000_000_987_654_321))


def corrupt(data, seed, span):
    """Return `data` with 40 damaged places, most of them in its first `span` bytes."""
    rng = random.Random(seed)
    data = bytearray(data)
    for n in range(40):
        at = rng.randrange(span if n % 4 else len(data))
        piece = rng.choice((b"\xff" * 4, b"\0" * 8, rng.randbytes(1), rng.randbytes(16)))
        data[at : at + len(piece)] = piece[: len(data) - at]
    return bytes(data)


def find_xfs_inode(data, number):
    block, ag_blocks = struct.unpack_from(">I", data, 4)[0], struct.unpack_from(">I", data, 84)[0]
    inode_log, inop_log, ag_log = data[122:125]
    ag, agino = number >> (ag_log + inop_log), number & ((1 << ag_log + inop_log) - 1)
    return ag * ag_blocks * block + (agino << inode_log)


def xfs_proto(tree):
    """Return a mkfs.xfs prototype of a tree (spaces in names are not possible in one)."""
    lines = ["/x", "0 0"]

    def add(path, name, depth):
        there = path.lstat()
        head = f"{name} " if name else ""
        mode = f"{there.st_mode & 0o777:03o}"
        owner = f"{there.st_uid} {there.st_gid}"
        if path.is_symlink():
            lines.append(f"{head}l--{mode} {owner} {path.readlink()}")
        elif path.is_dir():
            lines.append(f"{head}d--{mode} {owner}")
            for inner in sorted(path.iterdir()):
                add(inner, inner.name, depth + 1)
            lines.append("$")
        elif path.is_fifo():
            lines.append(f"{head}p--{mode} {owner}")
        else:
            lines.append(f"{head}---{mode} {owner} {path}")

    add(tree, "", 0)
    return "\n".join(lines).encode() + b"\n"
