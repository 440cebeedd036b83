# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest

from tests.analysis.walk.kit import BLOB, MIB, SECOND, below, corrupt, digest, expect_tree, fill


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


@pytest.mark.parametrize("group", range(5))
def test_random_corruption_ext(make, tree, walk, group):
    fill(tree)
    data = make.ext(tree, size=8 * MIB).read_bytes()
    for seed in range(group * 10, group * 10 + 10):
        walk(corrupt(data, seed, 512 << 10))
