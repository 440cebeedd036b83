# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import stat
import subprocess

import pyfsxfs
import pytest

from tests.analysis.walk.kit import (
    BLOB,
    MIB,
    below,
    corrupt,
    digest,
    fill,
    find_xfs_inode,
    xfs_proto,
)


@pytest.fixture
def xfs_tree(tree):
    fill(tree)
    (tree / "short link").rename(tree / "short-link")
    (tree / "long link").rename(tree / "long-link")
    (tree / "many").mkdir()
    for n in range(1500):
        (tree / f"many/a-file-of-some-length-{n}").touch()
    return tree


@pytest.mark.parametrize(
    "options",
    ["", "-m crc=0", "-m crc=0 -n ftype=0", "-m crc=0 -i size=256 -b size=1024",
     "-m crc=0 -n size=16384", "-m crc=0,finobt=0 -b size=512", "-b size=1024 -n size=8192",
     "-s size=4096", "-m bigtime=0"],
)  # fmt: skip
def test_xfs(make, xfs_tree, walk, options):
    with (xfs_tree / "fragments").open("wb") as file:
        for n in range(600):  # a tree of extents
            file.seek(n * 8192)
            file.write(BLOB[n : n + 4096])
    image = make.xfs(xfs_proto(xfs_tree), options=options.split())
    walked = walk(image)
    assert {row["fs"] for row in walked.all} == {"xfs"}
    for path in below(xfs_tree):
        row = walked[f"/{path.relative_to(xfs_tree)}"]
        there = path.lstat()
        assert row["mode"] & 0o7777 == there.st_mode & 0o777
        assert (row["uid"], row["gid"]) == (there.st_uid, there.st_gid)
        assert (row["btime"] is None) == ("crc=0" in options)  # v4 inodes have no room for it
        if stat.S_ISREG(there.st_mode):
            assert row["sha256"] == digest(path.read_bytes()), path
        elif stat.S_ISLNK(there.st_mode):
            assert row["link_target"] == str(path.readlink())
    assert len(walked.all) == 1 + sum(1 for _ in below(xfs_tree))
    assert {gap["level"] for gap in walked.gaps} == {"limit"}


def test_xfs_clean_log_is_a_limit_and_no_gap(make, xfs_tree, walk):
    walked = walk(make.xfs(xfs_proto(xfs_tree)))
    assert [(gap["what"], gap["level"]) for gap in walked.gaps] == [("file-system", "limit")]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("unmount", "not unmounted cleanly"),
        ("records", "no record"),
        ("external", "another device"),
    ],
)
def test_xfs_log_that_is_not_clean_is_a_gap(make, xfs_tree, walk, damage, reason):
    data = bytearray(make.xfs(xfs_proto(xfs_tree)).read_bytes())
    record = data.find(b"\xfe\xed\xba\xbe")
    if damage == "unmount":
        data[record + 521] &= ~0x20
    elif damage == "records":
        data = bytearray(bytes(data).replace(b"\xfe\xed\xba\xbe", bytes(4)))
    else:
        data[48:56] = bytes(8)
    walked = walk(data)
    assert reason in next(gap["reason"] for gap in walked.gaps if gap["level"] == "gap")
    assert walked.table().num_rows > 5


@pytest.mark.parametrize("group", range(3))
def test_random_corruption_xfs_v4(make, tree, walk, group):
    fill(tree)
    (tree / "short link").unlink()
    (tree / "long link").unlink()
    data = make.xfs(xfs_proto(tree), options=("-m", "crc=0")).read_bytes()
    start = find_xfs_inode(data, walk(data)["/"]["inode"])
    for seed in range(group * 10, group * 10 + 10):
        damaged = bytearray(data[: start + 4 * MIB])
        damaged[start : start + MIB] = corrupt(data[start : start + MIB], seed, 64 << 10)
        walk(bytes(damaged))


@pytest.mark.chaos
@pytest.mark.parametrize("options", ["", "-b size=1024 -n size=8192", "-m crc=0"])
def test_xfs_as_linux_wrote_it(make, walk, options):
    image = make.blank(400 * MIB)
    make.run("mkfs.xfs", "-q", "-f", *options.split(), image)
    truth = {}
    try:
        with make.mounted(image, "mount", "-t", "xfs") as top:
            (top / "many").mkdir()
            for n in range(2000):
                (top / f"many/a-name-of-length-{n}").write_bytes(b"%d" % n)
            for n in range(0, 2000, 3):  # holes in its blocks
                (top / f"many/a-name-of-length-{n}").unlink()
            with (top / "fragments").open("wb") as file:
                for n in range(1500):
                    file.seek(n * 8192)
                    file.write(BLOB[n : n + 4096])
            (top / "long").symlink_to("x" * 900)
            os.utime(top / "fragments", ns=(-5_000_000_001, 1_600_000_000_123_456_789))
            for path in below(top):
                there = path.lstat()
                content = digest(path.read_bytes()) if stat.S_ISREG(there.st_mode) else None
                truth[f"/{path.relative_to(top)}"] = (
                    there.st_ino, there.st_mode, there.st_size, there.st_mtime_ns,
                    there.st_ctime_ns, content,
                )  # fmt: skip
    except subprocess.CalledProcessError as error:
        if b"wrong fs type" not in error.stderr:
            raise
        pytest.skip("this kernel does not mount it")
    walked = walk(image)
    columns = "inode", "mode", "size", "mtime", "ctime", "sha256"
    for path, facts in truth.items():
        assert tuple(walked[path][name] for name in columns) == facts, path
    assert walked["/long"]["link_target"] == "x" * 900
    assert len(walked.all) == len(truth) + 1


def test_xfs_agrees_with_libfsxfs(make, xfs_tree, walk):
    image = make.xfs(xfs_proto(xfs_tree))
    walked = walk(image)
    volume = pyfsxfs.volume()
    volume.open(str(image))
    for path in ("/small", "/large", "/a/b/f9", "/many", "/hole", "/long-link"):
        theirs, ours = volume.get_file_entry_by_path(path), walked[path]
        assert ours["inode"] == theirs.inode_number
        assert ours["mtime"] == theirs.get_modification_time_as_integer()
        assert ours["atime"] == theirs.get_access_time_as_integer()
        assert ours["ctime"] == theirs.get_inode_change_time_as_integer()
        assert ours["btime"] == theirs.get_creation_time_as_integer()
        assert ours["links"] == theirs.number_of_links
    volume.close()


def test_xfs_link_outside_the_inode(make, walk):
    long = b"t" * 1000
    proto = b"/x\n0 0\nd--755 0 0\nlink l--777 0 0 " + long + b"\n$\n$\n"
    data = bytearray(make.xfs(proto).read_bytes())
    block = data.index(long) & ~4095  # mkfs.xfs 6.1 writes no header; Linux refuses that
    data[block : block + 1056] = b"XSLM" + bytes(52) + long
    assert walk(data)["/link"]["link_target"] == long.decode()
    data[block : block + 4] = b"XXXX"
    walked = walk(data)
    assert walked["/link"]["link_target"] is None
    assert "target of the link" in walked.reasons()


def test_xfs_name_that_is_not_utf8(make, walk):
    data = bytearray(
        make.xfs(b"/x\n0 0\nd--755 0 0\nevil_name ---644 0 0 /dev/null\n$\n$\n").read_bytes()
    )
    at = data.index(b"evil_name")
    data[at + 4] = 0xFF
    assert walk(data)["/evil\\xffname"]["path_raw"] == b"/evil\xffname"


def test_xfs_directory_loop(make, tree, walk):
    proto = b"/x\n0 0\nd--755 0 0\na d--755 0 0\nb d--755 0 0\n$\n$\n$\n$\n"
    data = bytearray(make.xfs(proto).read_bytes())
    walked = walk(data)
    root = find_xfs_inode(data, walked["/"]["inode"])
    inner = find_xfs_inode(data, walked["/a"]["inode"])
    at = data.index(walked["/a/b"]["inode"].to_bytes(4, "big"), inner + 176)
    data[at : at + 4] = walked["/"]["inode"].to_bytes(4, "big")
    walked = walk(data)
    assert root
    assert "already entered" in walked.reasons()


def test_xfs_truncated(make, xfs_tree, walk):
    data = make.xfs(xfs_proto(xfs_tree)).read_bytes()
    walked = walk(data[: len(data) // 2])
    assert "the image ends before the file system does" in walked.reasons()
    assert "/small" in {row["path"] for row in walked.all}


def test_random_corruption_xfs(make, tree, walk):
    fill(tree)
    (tree / "short link").unlink()
    (tree / "long link").unlink()
    data = make.xfs(xfs_proto(tree)).read_bytes()
    start = find_xfs_inode(data, walk(data)["/"]["inode"])
    for seed in range(50):
        damaged = bytearray(data[: start + 4 * MIB])  # the first group holds all of it
        damaged[start : start + MIB] = corrupt(data[start : start + MIB], seed, 64 << 10)
        if seed % 5 == 0:
            damaged[: 1 << 12] = corrupt(data[: 1 << 12], seed, 300)
        walk(bytes(damaged))
