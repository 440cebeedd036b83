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
    monkeypatch.setattr("analysis.walk.tree.MAX_DEPTH", 20)
    path = tree.joinpath(*(f"d{n}" for n in range(30)))
    path.mkdir(parents=True)
    (path / "treasure").write_bytes(b"gold")
    walked = walk(make.ext(tree))
    assert "directory" in walked.what()
    (row,) = [row for row in walked.all if row["sha256"] == digest(b"gold")]
    assert row["path"].startswith("/$OrphanFiles/OrphanFile-")
    assert row["path"].endswith("/d29/treasure")


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


def zero(data, *ranges):
    data = bytearray(data)
    for start, end in ranges:
        data[start:end] = bytes(min(end, len(data)) - start)
    return data


def expect_files(walked, tree):
    """Hold every file of a tree against a live row of its content, wherever its path is now."""
    digests = {row["sha256"]: row for row in walked.all if row["allocated"]}
    for path in below(tree):
        if not path.is_symlink() and path.is_file():
            assert digest(path.read_bytes()) in digests, path


@pytest.mark.parametrize(
    ("kind", "block", "size", "group"),
    [("ext2", 1024, 24, 1), ("ext4", 1024, 24, 1), ("ext4", 2048, 40, 1), ("ext4", 4096, 140, 1)],
)
def test_backup_superblock_is_used_and_told(make, tree, walk, kind, block, size, group):
    fill(tree)
    image = make.ext(tree, kind=kind, size=size * MIB, options=("-b", str(block)))
    walked = walk(zero(image.read_bytes(), (0, 4096 if block > 1024 else 2048)))
    assert {row["fs"] for row in walked.all} == {kind}
    assert f"its backup in group {group}" in walked.reasons()
    for path in below(tree):
        row = walked[f"/{path.relative_to(tree)}"]
        if not path.is_symlink() and path.is_file():
            assert row["sha256"] == digest(path.read_bytes()), path


@pytest.mark.parametrize("head", [4096, 64 << 10, MIB])
@pytest.mark.parametrize(("block", "size"), [(1024, 40), (2048, 80), (4096, 300)])
def test_zeroed_head_costs_only_what_lay_in_it(make, tree, walk, block, size, head):
    fill(tree)
    # Few inodes, their tables in each group: most lie behind what is zeroed.
    options = ("-b", str(block), "-O", "^flex_bg", "-N", "160")
    image = make.ext(tree, size=size * MIB, options=options)
    data = image.read_bytes()
    whole = {row["inode"]: row for row in walk(data).all}
    walked = walk(zero(data, (0, head)))
    assert "its backup in group 1" in walked.reasons()
    kept = [
        row for row in walked.all if row["name_state"] in ("allocated", "orphan") and row["mode"]
    ]
    for row in kept:
        if row["sha256"] != whole[row["inode"]]["sha256"]:  # its content lay there too
            blocks = make.run("debugfs", "-R", f"blocks <{row['inode']}>", image).split()
            assert min(map(int, blocks)) * block < head
        assert row["mtime"] == whole[row["inode"]]["mtime"]
    assert len(kept) == len({row["inode"] for row in kept})
    if head == 4096:
        assert walked["/small"]["sha256"] == digest(b"hello\n")
    assert len(kept) >= (len(whole) if head == 4096 else 10)


def test_lost_root_leaves_the_trees_below_it_in_one_piece(make, tree, walk):
    fill(tree)
    image = make.ext(tree)
    data = image.read_bytes()
    at = data.index(b"lost+found")  # in the block of the root directory
    block = at - at % 1024
    walked = walk(zero(data, (block, block + 1024)))
    expect_files(walked, tree)
    (row,) = [r for r in walked.all if r["path"].endswith("/b/f9")]
    assert row["path"].startswith("/$OrphanFiles/OrphanFile-")
    assert row["path"].count("/") == 4
    assert len({r["inode"] for r in walked.all}) == len(walked.all)  # none is told twice
    assert "directory" in walked.what()


@pytest.mark.parametrize("number", [1, 2, 3])
def test_next_backup_is_used_where_the_first_is_gone(make, tree, walk, number):
    (tree / "f").write_bytes(BLOB[:9000])
    data = make.ext(tree, size=90 * MIB, options=("-b", "1024")).read_bytes()
    groups = [1, 3, 5, 7, 9]
    wiped = [((g * 8192 + 1) * 1024, (g * 8192 + 2) * 1024) for g in groups[:number]]
    walked = walk(zero(data, (0, 2048), *wiped))
    assert f"its backup in group {groups[number]}," in walked.reasons()
    assert walked["/f"]["sha256"] == digest(BLOB[:9000])


def test_backup_of_sparse_super2_in_the_last_group(make, tree, walk):
    (tree / "f").write_bytes(BLOB[:9000])
    options = ("-b", "1024", "-O", "sparse_super2,^resize_inode", "-E", "num_backup_sb=2")
    data = make.ext(tree, size=90 * MIB, options=options).read_bytes()
    walked = walk(zero(data, (0, 2048), (8193 * 1024, 8194 * 1024)))
    assert "its backup in group 11," in walked.reasons()
    assert walked["/f"]["sha256"] == digest(BLOB[:9000])


def test_backup_of_another_group_or_of_a_file_is_not_believed(make, tree, walk):
    (tree / "f").write_bytes(b"x")
    data = bytearray(make.ext(tree, size=24 * MIB, options=("-b", "1024")).read_bytes())
    at = 8193 * 1024 + 90  # s_block_group_nr
    data[at] = 3
    walked = walk(zero(data, (0, 2048)))
    assert walked.all == []
    assert "volume" in walked.what()


@pytest.mark.parametrize(
    "options", ["^metadata_csum,uninit_bg", "metadata_csum", "^metadata_csum,^uninit_bg", "^64bit",
                "meta_bg,^resize_inode"],
)  # fmt: skip
@pytest.mark.parametrize("damage", ["zeros", "one bit", "random"])
def test_backup_of_group_descriptors_is_used_and_told(make, tree, walk, options, damage):
    fill(tree)
    image = make.ext(tree, size=40 * MIB, options=("-b", "1024", "-O", options))
    data = bytearray(image.read_bytes())
    assert walk(data).reasons() == ""
    if damage == "zeros":
        data[2048:3072] = bytes(1024)
    elif damage == "random":
        data[2048:3072] = random.Random(1).randbytes(1024)
    elif options == "^metadata_csum,^uninit_bg":
        data[2048 + 11] |= 0x80  # without a checksum only what is impossible is known
    else:
        data[2048 + 8] ^= 4  # the inode table of group 0
    walked = walk(data)
    assert "were damaged" in walked.reasons() or "are damaged" in walked.reasons()
    expect_tree(walked, tree)


def test_descriptors_are_sound_on_a_file_system_that_linux_wrote(make, tree, walk):
    # The checksums: those of mke2fs, and of e2fsck after a resize.
    (tree / "f").write_bytes(BLOB)
    for options in ("metadata_csum", "metadata_csum,metadata_csum_seed", "^metadata_csum,uninit_bg",
                    "metadata_csum,^64bit"):  # fmt: skip
        image = make.ext(tree, size=40 * MIB, options=("-b", "1024", "-O", options))
        make.run("tune2fs", "-L", "label", image)
        with image.open("r+b") as file:
            file.truncate(64 * MIB)
        subprocess.run([make.tool("e2fsck"), "-fy", image], capture_output=True, check=False)
        make.run("resize2fs", image)
        walked = walk(image)
        assert walked.reasons() == "", options
        assert walked["/f"]["sha256"] == digest(BLOB)


@pytest.mark.parametrize("group", range(5))
def test_random_corruption_ext_without_a_superblock(make, tree, walk, group):
    fill(tree)
    data = make.ext(tree, size=24 * MIB, options=("-b", "1024")).read_bytes()
    for seed in range(group * 6, group * 6 + 6):
        walk(bytes(zero(corrupt(data, seed, 512 << 10), (0, 2048))))
