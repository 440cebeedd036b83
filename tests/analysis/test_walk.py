# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import os
import random
import stat
import struct
import subprocess
import sys
from pathlib import Path

import pyfsxfs
import pytest

from analysis.walk import content, rows, walk_image

from .conftest import ImageBytes, ImageFile, Kept

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


@pytest.mark.parametrize("kind", ["ext2", "ext3", "ext4"])
@pytest.mark.parametrize("block", [1024, 4096])
def test_ext(make, tree, walk, kind, block):
    fill(tree)
    if kind != "ext4":  # no room for nanoseconds is asked for, and mke2fs writes none
        for path in below(tree):
            os.utime(path, (1_600_000_000, 1_600_000_000), follow_symlinks=False)
    walked = walk(make.ext(tree, kind=kind, options=("-b", str(block))))
    assert walked.reasons() == ""
    assert {row["fs"] for row in walked.all} == {kind}
    expect_tree(walked, tree)
    assert walked["/lost+found"]["type"] == "dir"
    assert walked["/fifo"]["type"] == "fifo"
    names = {row["path"] for row in walked.all}
    assert len(names) == len(walked.all)
    assert walked.summary.walked == 1


def test_ext4_inline_data(make, tree, walk):
    fill(tree)
    (tree / "hole").unlink()  # mke2fs -d cuts a hole at the end of a file here
    (tree / "medium").write_bytes(BLOB[:140])  # in i_block and in system.data
    walked = walk(make.ext(tree, options=("-O", "inline_data", "-I", "256")))
    expect_tree(walked, tree)
    assert walked["/small"]["sha256"] == digest(b"hello\n")
    assert walked["/a/b/f0"]["sha256"] == digest(b"")


@pytest.mark.parametrize("options", ["^64bit", "meta_bg,^resize_inode", "^flex_bg,^metadata_csum"])
def test_ext4_features(make, tree, walk, options):
    fill(tree)
    walked = walk(make.ext(tree, options=("-O", options)))
    assert walked.reasons() == ""
    expect_tree(walked, tree)


def test_indexed_directory_has_every_live_name_and_no_other(make, tree, walk):
    # TSK 4.15 loses live names of such directories and takes parts of the index for names.
    for n in range(3000):
        (tree / f"file with a longer name {n}").write_bytes(b"%d" % n)
    image = make.ext(tree, size=32 * MIB, options=("-N", "4000"))
    tool = make.tool("e2fsck")
    assert subprocess.run([tool, "-fyD", image], capture_output=True).returncode in (0, 1)
    assert b"Root node dump" in make.run("debugfs", "-R", "htree_dump /", image)
    walked = walk(image)
    expect_tree(walked, tree)
    live = [row for row in walked.all if row["name_state"] == "allocated"]
    assert len(live) == 3000 + 2
    assert walked.reasons() == ""


def test_removed_names_in_directory_slack(make, tree, walk):
    for n in range(40):
        (tree / f"name-{n}").write_bytes(b"x")
    image = make.ext(tree)
    make.debugfs(image, "rm name-7", "rm name-8", "rm name-31")
    gone = {row["path"] for row in walk(image).all if row["name_state"] != "allocated"}
    assert {"/name-7", "/name-8", "/name-31"} <= gone
    assert all(path.startswith(("/name-", "/$OrphanFiles/")) for path in gone)


def test_times_in_ns_beyond_32_bits_and_before_1970(make, tree, walk):
    image = make.ext()
    (tree / "f").write_bytes(b"x")
    make.debugfs(
        image,
        f"write {tree / 'f'} f",
        "sif f mtime_lo 0x80000000",  # 1901 by sign alone
        "sif f mtime_extra 0",
        "sif f atime_lo 0x80000000",  # 2038-01-19T03:14:08Z: epoch bit 1
        f"sif f atime_extra {1 | 999_999_999 << 2}",
        "sif f ctime_lo 0",
        f"sif f ctime_extra {3 | 1 << 2}",
        "sif f crtime_lo 5",
        f"sif f crtime_extra {7 << 2}",
    )
    row = walk(image)["/f"]
    assert row["mtime"] == -(1 << 31) * SECOND
    assert row["atime"] == (1 << 31) * SECOND + 999_999_999
    assert row["ctime"] is None  # the year 2378 does not fit int64 ns
    assert row["btime"] == 5 * SECOND + 7


def test_time_that_does_not_fit_is_null_and_counted(make, tree, walk, monkeypatch):
    proto = b"/x\n0 0\nd--755 0 0\nf ---644 0 0 /dev/null\n$\n$\n"
    data = bytearray(make.xfs(proto).read_bytes())
    walked = walk(data)
    at = find_xfs_inode(data, walked["/f"]["inode"])
    assert data[at + 120 + 7] & 8  # bigtime
    data[at + 40 : at + 48] = b"\xff" * 8
    walked = walk(data)
    assert walked["/f"]["mtime"] is None
    assert walked["/f"]["atime"] is not None
    assert any(gap["what"] == "value" and "mtime" in gap["reason"] for gap in walked.gaps)


def test_small_inodes_have_no_birth_time(make, tree, walk):
    fill(tree)
    walked = walk(make.ext(tree, options=("-I", "128")))
    assert walked["/small"]["btime"] is None
    assert walked["/small"]["mtime"] == 1_700_000_000 * SECOND
    assert walked["/small"]["sha256"] == digest(b"hello\n")


def test_owner_beyond_16_bits(make, tree, walk):
    image = make.ext()
    (tree / "f").write_bytes(b"x")
    make.debugfs(image, f"write {tree / 'f'} f", "sif f uid 3000000000", "sif f gid 70000")
    row = walk(image)["/f"]
    assert (row["uid"], row["gid"]) == (3_000_000_000, 70_000)


def test_hard_links_are_hashed_once_and_listed_each(make, tree, walk, monkeypatch):
    (tree / "one").write_bytes(BLOB)
    (tree / "d").mkdir()
    os.link(tree / "one", tree / "d/two")
    hashed = []
    original = content.Hasher.hash_all
    monkeypatch.setattr(
        content.Hasher, "hash_all", lambda self, all_: hashed.extend(all_) or original(self, all_)
    )
    monkeypatch.setattr(rows, "BATCH", 2)  # the names come in different batches
    walked = walk(make.ext(tree))
    assert walked["/one"]["inode"] == walked["/d/two"]["inode"]
    assert walked["/one"]["links"] == 2
    assert walked["/one"]["sha256"] == walked["/d/two"]["sha256"] == digest(BLOB)
    assert len(hashed) == 1


def test_fragmented_file_and_deep_extent_tree(make, tree, walk):
    data = bytearray()
    with (tree / "f").open("wb") as file:
        for n in range(400):  # every second block a hole: one extent each
            piece = BLOB[n * 1024 : n * 1024 + 1024]
            file.seek(n * 2048)
            file.write(piece)
            data[n * 2048 :] = bytes(n * 2048 - len(data)) + piece
    walked = walk(make.ext(tree, options=("-b", "1024")))
    assert walked["/f"]["sha256"] == digest(data)
    walked = walk(make.ext(tree, kind="ext2", options=("-b", "1024")))
    assert walked["/f"]["sha256"] == digest(data)


def test_unwritten_extents_read_as_zeros(make, tree, walk):
    image = make.ext()
    (tree / "f").write_bytes(b"A" * 4096)
    make.debugfs(image, f"write {tree / 'f'} f", "fallocate f 1 15", "sif f size 65536")
    data = image.read_bytes()
    inode = walk(image)["/f"]["inode"]
    assert walk(data)["/f"]["sha256"] == digest(b"A" * 4096 + bytes(65536 - 4096)), inode


def test_huge_sparse_file_is_not_hashed_for_ever(make, tree, walk):
    image = make.ext()
    (tree / "f").write_bytes(b"x" * 5000)
    make.debugfs(image, f"write {tree / 'f'} f", f"sif f size {1 << 60}", f"write {tree / 'f'} g")
    walked = walk(image)
    assert walked["/f"]["size"] == 1 << 60
    assert walked["/f"]["sha256_state"] == "too-large"
    assert walked["/g"]["sha256"] == digest(b"x" * 5000)
    (gap,) = [gap for gap in walked.gaps if gap["what"] == "content"]
    assert gap["path"] == "/f"


def test_many_large_sparse_files_share_one_budget(make, tree, walk):
    for n in range(12):
        with (tree / f"f{n}").open("wb") as file:
            file.truncate(60 * MIB)
    walked = walk(make.ext(tree))
    states = [walked[f"/f{n}"]["sha256_state"] for n in range(12)]
    assert states.count("ok") == 4
    assert states.count("too-large") == 8


HOSTILE = [
    b"new\nline",
    b"\x1b[31mred\x1b[0m",
    b"..\\..\\etc",
    b"<script>alert(1)<br>",
    b"bad\xff\xfeutf8",
    b"x" * 255,
    "\u202egnp.exe".encode(),
    b"back\\x41slash",
    b"$OrphanFiles",
    b" ",
    b"...",
]


def test_hostile_names(make, tree, walk):
    for n, name in enumerate(HOSTILE):
        Path(os.fsdecode(os.fsencode(tree) + b"/" + name)).write_bytes(b"%d" % n)
    below = os.fsdecode(os.fsencode(tree) + b"/dir\xff")
    Path(below).mkdir()
    (Path(below) / "inner").write_bytes(b"inner")
    walked = walk(make.ext(tree))
    by_raw = {row["path_raw"] or row["path"].encode(): row for row in walked.all}
    for n, name in enumerate(HOSTILE):
        assert by_raw[b"/" + name]["sha256"] == digest(b"%d" % n), name
    assert walked["/bad\\xff\\xfeutf8"]["path_raw"] == b"/bad\xff\xfeutf8"
    assert walked["/back\\x41slash"]["path_raw"] is None
    assert walked["/dir\\xff/inner"]["path_raw"] == b"/dir\xff/inner"
    assert walked["/dir\\xff/inner"]["name"] == "inner"


def test_names_that_no_kernel_would_write(make, tree, walk):
    (tree / "slash_name").write_bytes(b"1")
    (tree / "sub").mkdir()
    (tree / "sub/updown").write_bytes(b"2")
    data = make.ext(tree, options=("-O", "^metadata_csum")).read_bytes()
    data = data.replace(b"slash_name", b"sl/sh_name").replace(b"updown", b"../../")
    walked = walk(data)
    row = walked["/sl\\x2fsh_name"]
    assert (row["path_raw"], row["sha256"]) == (b"/sl/sh_name", digest(b"1"))
    assert walked["/sub/..\\x2f..\\x2f"]["sha256"] == digest(b"2")


def test_directory_loop(make, tree, walk):
    (tree / "a/b/c").mkdir(parents=True)
    (tree / "a/b/c/f").write_bytes(b"x")
    image = make.ext(tree)
    make.debugfs(image, "link a a/b/c/loop", "link / a/root")
    walked = walk(image)
    assert walked["/a/b/c/f"]["sha256"] == digest(b"x")
    assert walked["/a/b/c/loop"]["inode"] == walked["/a"]["inode"]
    assert len(walked.all) == 8
    assert sum("already entered" in gap["reason"] for gap in walked.gaps) == 2


def test_deep_tree_is_bounded_and_nothing_is_lost(make, tree, walk, monkeypatch):
    monkeypatch.setattr("analysis.walk.ext.MAX_DEPTH", 20)
    path = tree.joinpath(*(f"d{n}" for n in range(30)))
    path.mkdir(parents=True)
    (path / "treasure").write_bytes(b"gold")
    walked = walk(make.ext(tree))
    assert "directory" in walked.what()
    (row,) = [row for row in walked.all if row["sha256"] == digest(b"gold")]
    assert row["name_state"] == "orphan"


def test_deleted_entries(make, tree, walk):
    fill(tree)
    image = make.ext(tree, kind="ext2")
    make.debugfs(image, "rm small", "rm a/b/f7")
    walked = walk(image)
    gone = [row for row in walked.all if row["name_state"] == "deleted"]
    assert {row["path"] for row in gone} >= {"/small", "/a/b/f7"}
    for row in gone:
        assert not row["allocated"]
        assert row["sha256"] is None
        assert row["sha256_state"] in ("deleted", "not-a-file")
    assert walked["/a/b/f8"]["sha256"] == digest((tree / "a/b/f8").read_bytes())


def test_deleted_name_of_a_reused_inode_tells_nothing_of_the_new_file(make, tree, walk):
    (tree / "first").write_bytes(b"1" * 100)
    image = make.ext(kind="ext2")
    make.debugfs(image, f"write {tree / 'first'} first", f"write {tree / 'first'} next", "rm next",
                 "mkdir d", )  # fmt: skip
    walked = walk(image)
    reused = [row for row in walked.all if row["name_state"] == "reallocated"]
    for row in reused:
        assert row["size"] is row["mtime"] is row["uid"] is None
    assert walked["/d"]["type"] == "dir"


def test_unlinked_inode_in_use_is_an_orphan_and_hashed(make, tree, walk):
    (tree / "open").write_bytes(BLOB)
    image = make.ext(tree)
    inode = walk(image)["/open"]["inode"]
    make.debugfs(image, "unlink open", f"sif <{inode}> links_count 0")
    row = walk(image)[f"/$OrphanFiles/OrphanFile-{inode}"]
    assert row["name_state"] == "orphan"
    assert row["allocated"]
    assert row["links"] == 0
    assert row["sha256"] == digest(BLOB)


def test_unreplayed_journal_is_told(make, tree, walk):
    image = make.ext()
    make.debugfs(image, "feature needs_recovery")
    assert "journal not replayed" in walk(image).reasons()


def test_encrypted_file_has_no_hash(make, tree, walk):
    (tree / "f").write_bytes(b"cipher")
    image = make.ext()
    make.debugfs(image, f"write {tree / 'f'} f", "sif f flags 0x80800")
    walked = walk(image)
    assert walked["/f"]["sha256_state"] == "encrypted"
    assert any(gap["path"] == "/f" for gap in walked.gaps)


def test_blocks_outside_the_device_give_no_hash(make, tree, walk):
    (tree / "f").write_bytes(BLOB)
    image = make.ext(kind="ext2", size=8 * MIB)
    make.debugfs(image, f"write {tree / 'f'} f", "sif f block[IND] 4000000000")
    walked = walk(image)
    assert walked["/f"]["sha256_state"] == "unreadable"
    assert "lies outside" in walked.reasons()


def test_unreadable_sector_costs_only_the_file_it_is_in(make, tree, walk):
    for n in range(20):
        (tree / f"f{n}").write_bytes(bytes([n + 1]) * 4096)
    image = make.ext(tree)
    data = image.read_bytes()
    at = data.index(bytes([8]) * 4096)
    walked = walk(ImageBytes(data, bad=[(at, at + 512)]))
    assert walked["/f7"]["sha256_state"] == "unreadable"
    for n in set(range(20)) - {7}:
        assert walked[f"/f{n}"]["sha256"] == digest(bytes([n + 1]) * 4096)


def test_truncated_image_keeps_what_is_there(make, tree, walk):
    fill(tree)
    data = make.ext(tree).read_bytes()
    walked = walk(data[: len(data) // 2])
    assert "the image ends before the file system does" in walked.reasons()
    assert walked["/small"]["sha256"] == digest(b"hello\n")


def test_random_truncation(make, tree, walk):
    fill(tree)
    data = make.ext(tree, size=8 * MIB).read_bytes()
    for seed in range(12):
        walked = walk(data[: random.Random(seed).randrange(2048, len(data))])
        assert walked.gaps


def corrupt(data, seed, span):
    """Return `data` with 40 damaged places, most of them in its first `span` bytes."""
    rng = random.Random(seed)
    data = bytearray(data)
    for n in range(40):
        at = rng.randrange(span if n % 4 else len(data))
        piece = rng.choice((b"\xff" * 4, b"\0" * 8, rng.randbytes(1), rng.randbytes(16)))
        data[at : at + len(piece)] = piece[: len(data) - at]
    return bytes(data)


@pytest.mark.parametrize("group", range(5))
def test_random_corruption_ext(make, tree, walk, group):
    fill(tree)
    data = make.ext(tree, size=8 * MIB).read_bytes()
    for seed in range(group * 10, group * 10 + 10):
        walk(corrupt(data, seed, 512 << 10))


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


@pytest.fixture
def xfs_tree(tree):
    fill(tree)
    (tree / "short link").rename(tree / "short-link")
    (tree / "long link").rename(tree / "long-link")
    (tree / "many").mkdir()
    for n in range(1500):
        (tree / f"many/a-file-of-some-length-{n}").touch()
    return tree


def test_xfs(make, xfs_tree, walk):
    image = make.xfs(xfs_proto(xfs_tree))
    walked = walk(image)
    assert {row["fs"] for row in walked.all} == {"xfs"}
    for path in below(xfs_tree):
        row = walked[f"/{path.relative_to(xfs_tree)}"]
        there = path.lstat()
        assert row["mode"] & 0o7777 == there.st_mode & 0o777
        assert (row["uid"], row["gid"]) == (there.st_uid, there.st_gid)
        assert row["btime"] is not None
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


def test_ntfs(make, tree, walk):
    image = make.ntfs()
    (tree / "small").write_bytes(b"resident")
    large = BLOB[:500_000]
    (tree / "large").write_bytes(large)
    make.run("ntfscp", image, tree / "small", "small.txt")
    make.run("ntfscp", image, tree / "large", "large.bin")
    make.run("ntfscp", "-N", "hidden", image, tree / "small", "large.bin")
    make.run("ntfscp", "-N", "big", image, tree / "large", "small.txt")
    walked = walk(image)
    assert walked.gaps == []  # its boot sector is no partition table that is damaged
    assert {row["fs"] for row in walked.all} == {"ntfs"}
    assert walked["/small.txt"]["sha256"] == digest(b"resident")
    assert walked["/large.bin"]["sha256"] == digest(large)
    assert walked["/large.bin"]["size"] == len(large)
    assert walked["/large.bin", "hidden"]["sha256"] == digest(b"resident")
    assert walked["/large.bin", "hidden"]["size"] == len(b"resident")
    assert walked["/small.txt", "big"]["sha256"] == digest(large)
    row = walked["/small.txt"]
    assert row["mode"] is row["uid"] is row["gid"] is None
    assert row["mtime"] > 1_500_000_000 * SECOND
    assert row["btime"] > 1_500_000_000 * SECOND
    assert walked["/$MFT"]["sha256_state"] == "ok"


def test_ntfs_times_before_1970(make, tree, walk):
    image = make.ntfs()
    (tree / "f").write_bytes(b"x")
    make.run("ntfscp", image, tree / "f", "old.txt")
    row = walk(image)["/old.txt"]
    data = bytearray(image.read_bytes())
    ticks = row["btime"] // 100 + 116_444_736_000_000_000
    at = data.index(struct.pack("<Q", ticks))
    data[at : at + 8] = struct.pack("<Q", 10_000_000 * 86_400)  # 1601-01-02
    assert walk(data)["/old.txt"]["btime"] is None  # 1601 does not fit int64 ns
    data[at : at + 8] = struct.pack("<Q", 116_444_736_000_000_000 - 1)
    walked = walk(data)
    assert walked["/old.txt"]["btime"] == -100
    assert walked["/old.txt"]["mtime"] == row["mtime"]


@pytest.mark.parametrize("group", range(5))
def test_random_corruption_ntfs(make, tree, walk, group):
    image = make.ntfs(4 * MIB)
    (tree / "f").write_bytes(BLOB[:100_000])
    for n in range(5):
        make.run("ntfscp", image, tree / "f", f"f{n}")
    data = image.read_bytes()
    for seed in range(group * 10, group * 10 + 10):
        walk(corrupt(data, seed, 64 << 10))


@pytest.mark.parametrize(("bits", "size"), [(12, 2 * MIB), (16, 20 * MIB), (32, 40 * MIB)])
def test_fat(make, tree, walk, monkeypatch, bits, size):
    monkeypatch.setenv("TZ", "UTC")
    (tree / "small.txt").write_bytes(b"hello")
    (tree / "A long name, with spaces.bin").write_bytes(BLOB[:900_001])
    (tree / "gone.txt").write_bytes(b"gone")
    for name in tree.iterdir():
        os.utime(name, (1_600_000_000, 1_600_000_000))
    image = make.fat(bits, size)
    for name in sorted(tree.iterdir()):
        make.run("mcopy", "-m", "-i", image, name, "::/")
    make.run("mmd", "-i", image, "::/dir")
    make.run("mcopy", "-i", image, tree / "small.txt", "::/dir/inner.txt")
    make.run("mdel", "-i", image, "::/gone.txt")
    walked = walk(image)
    assert {row["fs"] for row in walked.all} == {f"fat{bits}"}
    assert walked["/A long name, with spaces.bin"]["sha256"] == digest(BLOB[:900_001])
    assert walked["/small.txt"]["sha256"] == digest(b"hello")
    assert walked["/small.txt"]["mtime"] == 1_600_000_000 * SECOND
    assert walked["/dir/inner.txt"]["sha256"] == digest(b"hello")
    assert any(row["name_state"] == "deleted" and "one.txt" in row["name"] for row in walked.all)
    assert not any(row["name"].startswith("$") for row in walked.all)
    assert "local times" in walked.reasons()


def test_fat_times_do_not_depend_on_the_zone_of_this_process(make, tree, need_tool):
    (tree / "f.txt").write_bytes(b"x")
    os.utime(tree / "f.txt", (1_600_000_000, 1_600_000_000))
    image = make.fat(16, 20 * MIB)
    subprocess.run([need_tool("mcopy"), "-m", "-i", image, tree / "f.txt", "::/"],
                   check=True, env={**os.environ, "TZ": "UTC"})  # fmt: skip
    script = (
        "import sys; from tests.analysis.conftest import Walked, ImageFile\n"
        "print(Walked(ImageFile(sys.argv[1]))['/f.txt']['mtime'])"
    )
    for zone in ("UTC", "Asia/Tokyo", "America/New_York"):
        done = subprocess.run([sys.executable, "-c", script, image], capture_output=True, text=True,
                              env={**os.environ, "TZ": zone}, check=True,
                              cwd=Path(__file__).parents[2])  # fmt: skip
        assert int(done.stdout) == 1_600_000_000 * SECOND, zone


def test_random_corruption_fat(make, tree, walk):
    (tree / "f.bin").write_bytes(BLOB[:200_000])
    image = make.fat(12, 2 * MIB)
    make.run("mcopy", "-i", image, tree / "f.bin", "::/")
    make.run("mmd", "-i", image, "::/dir")
    make.run("mcopy", "-i", image, tree / "f.bin", "::/dir/")
    data = image.read_bytes()
    for seed in range(50):
        walk(corrupt(data, seed, 16 << 10))


def test_fat_chain_that_ends_early(make, tree, walk):
    (tree / "f.bin").write_bytes(BLOB[:100_000])
    image = make.fat(16, 20 * MIB)
    make.run("mcopy", "-i", image, tree / "f.bin", "::/")
    data = bytearray(image.read_bytes())
    reserved = struct.unpack_from("<H", data, 14)[0] * 512
    first = struct.unpack_from("<H", data, data.index(b"F       BIN") + 26)[0]
    struct.pack_into("<H", data, reserved + 2 * first, 0xFFFF)
    walked = walk(data)
    assert walked["/f.bin"]["sha256_state"] == "unreadable"


def exfat(files):
    """Write a small exFAT volume: (name, data, valid length) of each file, one run each."""
    cluster, heap, count = 4096, 64 * 512, 200
    image = bytearray(heap + count * cluster)
    boot = bytearray(512)
    boot[0:3], boot[3:11] = b"\xeb\x76\x90", b"EXFAT   "
    struct.pack_into("<QQIIIIIIHHBBBBB", boot, 64, 0, len(image) // 512, 24, 8, 64, count, 4,
                     0x1234, 0x100, 0, 9, 3, 1, 0x80, 0)  # fmt: skip
    boot[510:512] = b"\x55\xaa"
    image[:512] = image[12 * 512 : 13 * 512] = boot
    fat = struct.pack("<II", 0xFFFFFFF8, 0xFFFFFFFF) + struct.pack("<III", *[0xFFFFFFFF] * 3)
    image[24 * 512 : 24 * 512 + len(fat)] = fat
    image[heap : heap + 25] = b"\xff" * 25  # allocation bitmap, cluster 2
    entries = struct.pack("<BB18xIQ", 0x81, 0, 2, 25) + struct.pack("<B3xI12xIQ", 0x82, 0, 3, 64)
    following = 5
    for name, data, valid in files:
        wide = name.encode("utf-16-le")
        parts = -(-len(name) // 15)
        stamp = (40 << 25) | (9 << 21) | (13 << 16) | (12 << 11)
        one = bytearray(struct.pack("<BBHHHIIIBBBBB7x", 0x85, 1 + parts, 0, 0x20, 0, stamp, stamp,
                                    stamp, 0, 0, 0x80, 0x80, 0x80))  # fmt: skip
        one += struct.pack(
            "<BBBBHHQIIQ", 0xC0, 3, 0, len(name), 0, 0, valid, 0, following, len(data)
        )
        for n in range(parts):
            one += b"\xc1\0" + wide[n * 30 : n * 30 + 30].ljust(30, b"\0")
        total = 0
        for at, byte in enumerate(one):
            if at not in (2, 3):
                total = ((total << 15 | total >> 1) + byte) & 0xFFFF
        struct.pack_into("<H", one, 2, total)
        entries += one
        image[heap + (following - 2) * cluster :][: len(data)] = b""
        at = heap + (following - 2) * cluster
        image[at : at + len(data)] = data
        following += -(-len(data) // cluster)
    at = heap + 2 * cluster
    image[at : at + len(entries)] = entries
    return bytes(image)


def test_exfat_valid_data_length(walk):
    data = BLOB[:10_000]
    walked = walk(exfat([("whole.bin", data, len(data)), ("half-written file.bin", data, 5000)]))
    assert {row["fs"] for row in walked.all} == {"exfat"}
    assert walked["/whole.bin"]["sha256"] == digest(data)
    assert walked["/half-written file.bin"]["sha256"] == digest(data[:5000] + bytes(5000))


def test_partitions_are_walked_and_the_rest_is_covered(make, tree, walk):
    (tree / "f").write_bytes(BLOB)
    ext = make.ext(tree, name="part").read_bytes()
    path = make.blank(64 * MIB, "disk")
    make.run("sfdisk", "-q", "--no-reread", path, data=b"label: gpt\nstart=2048,size=32768\n"
             b"start=40960,size=32768\nstart=81920,size=8192\n")  # fmt: skip
    data = bytearray(path.read_bytes())
    data[MIB : MIB + len(ext)] = ext
    data[20 * MIB : 20 * MIB + len(ext)] = ext
    data[40 * MIB + 512 : 40 * MIB + 520] = b"LABELONE"
    walked = walk(data)
    assert [row["volume"] for row in walked.all if row["path"] == "/f"] == ["p1", "p2"]
    assert [row["sha256"] for row in walked.all if row["path"] == "/f"] == [digest(BLOB)] * 2
    assert {row["volume_offset"] for row in walked.all} == {MIB, 20 * MIB}
    assert any(gap["volume"] == "p3" and "LVM" in gap["reason"] for gap in walked.gaps)
    assert "unallocated" in walked.what()


def test_recognised_but_empty_is_told(walk):
    for offset, magic in ((1080, b"\x53\xef"), (0, b"XFSB"), (3, b"NTFS    ")):
        data = bytearray(MIB)
        data[offset : offset + len(magic)] = magic
        assert "file-system" in walk(data).what()


def test_nothing_at_all_is_told(walk):
    assert "image" in walk(b"").what()
    assert "volume" in walk(bytes(MIB)).what()


def test_gaps_of_one_kind_are_counted_not_listed(make, tree, walk):
    for n in range(300):
        (tree / f"f{n}").write_bytes(b"x" * 2000)
    image = make.ext(tree, kind="ext2")
    data = image.read_bytes()
    first = data.index(b"x" * 2000)
    walked = walk(ImageBytes(data, bad=[(first, len(data))]))
    gaps = [gap for gap in walked.gaps if gap["what"] == "content"]
    assert len(gaps) == 201
    assert sum(gap["count"] for gap in gaps) == 300


def test_batches_and_progress(make, tree, monkeypatch):
    monkeypatch.setattr(rows, "BATCH", 16)
    fill(tree)
    sink = Kept()
    summary = walk_image(ImageFile(make.ext(tree)), item="E0001", item_digest="ab", sink=sink)
    assert max(batch.num_rows for batch in sink.batches) == 16
    assert sink.table().num_rows == summary.entries
    assert [done for done, _ in sink.steps] == sorted(done for done, _ in sink.steps)
    assert sink.steps[-1][0] == summary.entries


def test_error_of_the_sink_is_not_taken_for_bad_evidence(make, tree):
    class Full(Kept):
        def rows(self, table, batch):
            raise OSError(28, "No space left on device")

    fill(tree)
    with pytest.raises(OSError, match="No space"):
        walk_image(ImageFile(make.ext(tree)), item="E0001", item_digest="ab", sink=Full())


def test_integrity_error_of_the_reader_passes(make, tree):
    class Tampered(ImageFile):
        def pread(self, length, offset):
            if offset > MIB:
                raise LookupError("digest differs")
            return super().pread(length, offset)

    fill(tree)
    with pytest.raises(LookupError, match="digest differs"):
        walk_image(Tampered(make.ext(tree)), item="E0001", item_digest="ab", sink=Kept())


SAMPLES = os.environ.get("IMPOUND_SAMPLES")


@pytest.mark.skipif(not SAMPLES, reason="IMPOUND_SAMPLES is not set")
@pytest.mark.parametrize("name", ["host_ext4", "host_xfs", "host_btrfs"])
def test_samples_from_a_real_kernel(walk, tmp_path, need_tool, name):
    source = Path(SAMPLES) / "generated_disk"
    image = tmp_path / "image"
    subprocess.run([need_tool("zstd"), "-dq", source / f"{name}.raw.zst", "-o", image], check=True)
    walked = walk(image)
    if name == "host_btrfs":
        assert "btrfs" in walked.reasons()
        return
    letter = {"host_ext4": "e", "host_xfs": "x"}[name]  # recipes: keep files stay, others go
    for n in range(1, 6):
        row = walked[f"/home/alice/keep{n}.txt"]
        assert row["sha256"] == digest(f"keep {letter} {n}\n".encode())
    assert walked["/etc/cron.d/sysupd"]["mtime"] == 1_420_074_060 * SECOND
    assert walked["/home/alice/keep1.txt"]["btime"] % SECOND  # real nanoseconds


@pytest.mark.skipif(not SAMPLES, reason="IMPOUND_SAMPLES is not set")
def test_sample_volume_system_and_syslog_image(walk):
    walked = walk(Path(SAMPLES) / "disk/tsk_volume_system.raw")
    assert walked["/lost+found"]["volume"] == "p5"
    assert any(gap["volume"] == "p1" for gap in walked.gaps)
    walked = walk(Path(SAMPLES) / "linux/syslog_image.dd")
    assert any(row["sha256"] for row in walked.all)
