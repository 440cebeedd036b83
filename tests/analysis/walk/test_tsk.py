# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import pytsk3

from tests.analysis.walk.kit import BLOB, MIB, SECOND, corrupt, digest


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


LINES = b"".join(b"line %d of a log with words in it\n" % n for n in range(20_000))


def put(truth, path, data, *, at=0, size=None):
    """Write `data` at `at` into a file, cut or extend it, and keep what read(2) then gives."""
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.seek(at)
        file.write(data)
        if size is not None:
            file.truncate(size)
        file.seek(0)
        truth[path.name] = file.read()


def compressed(make, cluster):
    """Return an NTFS image on which ntfs-3g compressed files, and what is in them by name."""
    image, truth = make.ntfs(48 * MIB, cluster), {}
    with make.mounted(image, "ntfs-3g", "-o", "compression,streams_interface=windows") as top:
        folder = top / "c"
        folder.mkdir()
        os.setxattr(folder, "system.ntfs_attrib", struct.pack("<I", 0x800 | 0x10))
        put(truth, folder / "text", LINES)
        put(truth, folder / "text:stream", LINES[:200_000])
        put(truth, folder / "zeros", bytes(MIB))
        put(truth, folder / "random", BLOB[:300_000])
        put(truth, folder / "mixed", LINES[:70_000] + bytes(200_000) + BLOB[:100_000] + LINES[:999])
        put(truth, folder / "resident", b"small")
        put(truth, folder / "one unit", LINES[: 16 * cluster])
        put(truth, folder / "one byte more", LINES[: 16 * cluster + 1])
        put(truth, folder / "sparse", LINES[:100])
        put(truth, folder / "sparse", LINES[:70_000], at=MIB, size=2 * MIB)
        put(truth, folder / "rewritten", LINES[:300_000])
        put(truth, folder / "rewritten", BLOB[:50_000], at=100_000)
        put(truth, folder / "shrunk", LINES[:300_000], size=123_457)
        if cluster <= 4096:  # NTFS compresses nothing in larger clusters
            assert (folder / "text").stat().st_blocks * 512 < len(LINES) / 2
    return image, truth


@pytest.mark.chaos
@pytest.mark.parametrize("cluster", [512, 4096, 65536])
def test_ntfs_compressed_files_have_the_digest_of_what_is_in_them(make, walk, cluster):
    image, truth = compressed(make, cluster)
    walked = walk(image)
    assert walked.reasons() == ""
    for name, data in truth.items():
        path, _, stream = name.partition(":")
        row = walked[f"/c/{path}", stream or None]
        assert (row["size"], row["sha256"]) == (len(data), digest(data)), name


@pytest.mark.chaos
def test_damaged_ntfs_compression_gives_no_digest_that_ntfs_3g_would_not(make, walk):
    # TSK 4.15 and libfsntfs give content for units that ntfs-3g refuses.
    image, _ = compressed(make, 4096)
    good = image.read_bytes()
    fs = pytsk3.FS_Info(pytsk3.Img_Info(str(image)))
    blocks = [
        block
        for attribute in fs.open("/c/mixed")
        for run in attribute
        if int(attribute.info.type) == 128 and run.addr
        for block in range(run.addr, run.addr + run.len)
    ]
    refused = 0
    for seed in range(40):
        rng = random.Random(seed)
        data = bytearray(good)
        at = rng.choice(blocks[:8]) * 4096 + rng.randrange(2 if seed % 3 else 4096)
        data[at] ^= 1 << rng.randrange(8)
        row = walk(bytes(data))["/c/mixed"]
        if row["sha256"] is None:
            assert row["sha256_state"] == "unreadable"
            refused += 1
            continue
        image.write_bytes(data)
        assert row["sha256"] == digest(make.run("ntfscat", "-f", image, "c/mixed"))
    assert 0 < refused < 40


@pytest.mark.chaos
def test_ntfs_sparse_and_fragmented_files(make, walk):
    image, truth = make.ntfs(64 * MIB), {}
    with make.mounted(image, "ntfs-3g") as top:
        put(truth, top / "sparse", b"end", at=5 * MIB, size=7 * MIB)
        for n in range(300):  # runs beyond what one MFT entry has room for
            for name in ("one", "two"):
                with (top / name).open("ab") as file:
                    file.write(BLOB[n * 4096 : n * 4096 + 4000])
        for name in ("one", "two"):
            truth[name] = (top / name).read_bytes()
    walked = walk(image)
    for name, data in truth.items():
        assert walked[f"/{name}"]["sha256"] == digest(data), name
    assert walked.reasons() == ""


def mft_attribute(data, name, kind):
    """Return the offset of an attribute in the MFT entry that has a file name."""
    at = data.index(name.encode("utf-16-le"), data.index(b"FILE"))
    record = data.rindex(b"FILE", 0, at)
    at = record + struct.unpack_from("<H", data, record + 20)[0]
    while struct.unpack_from("<I", data, at)[0] != kind:
        at += struct.unpack_from("<I", data, at + 4)[0]
    return at


@pytest.mark.parametrize(
    ("size", "told_by"), [(100, "$EFS"), (100_000, "$EFS"), (100_000, "attribute")]
)
def test_ntfs_encrypted_file_has_no_digest_and_is_told(make, tree, walk, size, told_by):
    # TSK takes the flag of the attribute from its runs: it knows none for a resident one.
    image = make.ntfs()
    (tree / "f").write_bytes(BLOB[:size])
    make.run("ntfscp", image, tree / "f", "secret.txt")
    (tree / "keys").write_bytes(bytes(64))
    make.run("ntfscp", "-N", "$EFS", image, tree / "keys", "secret.txt")
    data = bytearray(image.read_bytes())
    at = mft_attribute(data, "secret.txt", 0x80)
    keys = at + struct.unpack_from("<I", data, at + 4)[0]
    if told_by == "$EFS":
        struct.pack_into("<I", data, keys, 0x100)
    else:
        data[at + 13] |= 0x40  # ATTR_IS_ENCRYPTED
    walked = walk(data)
    row = walked["/secret.txt"]
    assert (row["size"], row["sha256_state"], row["sha256"]) == (size, "encrypted", None)
    (gap,) = [gap for gap in walked.gaps if gap["path"] == "/secret.txt"]
    assert "EFS" in gap["reason"]


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("tag", "attributes", "reason"),
    [
        (0x80000017, 0x20, "WOF compression"),
        (0x80000013, 0x20, "data deduplication"),
        (0x9000601A, 0x1000 | 0x20, "in a cloud"),
        (0x9000601A, 0x20, ""),
        (0x80001234, 0x20, "a filter driver"),
        (0x8000001B, 0x20, ""),
    ],
)
def test_ntfs_content_that_a_filter_driver_keeps_is_not_hashed(make, walk, tag, attributes, reason):
    image = make.ntfs()
    with make.mounted(image, "ntfs-3g", "-o", "streams_interface=windows") as top:
        for name in ("kept.dll", "kept.dll:WofCompressedData"):
            with (top / name).open("wb") as file:
                file.write(b"compressed" if ":" in name else b"")
        os.truncate(top / "kept.dll", 70_000)
        os.setxattr(top / "kept.dll", "system.ntfs_attrib", struct.pack("<I", attributes))
        os.setxattr(top / "kept.dll", "system.ntfs_reparse_data",
                    struct.pack("<IHH", tag, 16, 0) + bytes(16))  # fmt: skip
    walked = walk(image)
    row = walked["/kept.dll"]
    assert row["size"] == 70_000
    if reason:
        assert row["sha256_state"] == "unreadable"
        (gap,) = [gap for gap in walked.gaps if gap["path"] == "/kept.dll"]
        assert reason in gap["reason"]
    else:
        assert row["sha256"] == digest(bytes(70_000))
    assert walked["/kept.dll", "WofCompressedData"]["sha256"] == digest(b"compressed")


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
                              cwd=Path(__file__).parents[3])  # fmt: skip
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


@pytest.mark.chaos
@pytest.mark.parametrize("cluster", [512, 4096, 131_072])
def test_exfat_as_mkfs_and_the_fuse_driver_write_it(make, walk, cluster):
    image, truth = make.blank(64 * MIB), {}
    make.run("mkfs.exfat", "-c", cluster, image)
    with make.mounted(image, "mount.exfat-fuse", "-o", "rw") as top:
        put(truth, top / "empty", b"")
        put(truth, top / "large", BLOB)
        put(truth, top / ("a very long name " * 10 + "漢字.txt"), BLOB[:70_000])
        put(truth, top / "grown", b"a" * 1000, size=300_000)
        for n in range(40):  # two that share the clusters between them
            for name in ("one", "two"):
                put(truth, top / name, BLOB[n * 9001 :][:9001], at=n * 9001)
        (top / "many").mkdir()
        for n in range(300):
            (top / f"many/f{n:03d}").write_bytes(b"%d" % n)
        (top / "gone").write_bytes(BLOB[:9999])
        (top / "gone").unlink()
    walked = walk(image)
    assert {row["fs"] for row in walked.all} == {"exfat"}
    for name, data in truth.items():
        assert (walked[f"/{name}"]["size"], walked[f"/{name}"]["sha256"]) == (
            len(data), digest(data),
        ), name  # fmt: skip
    for n in range(300):
        assert walked[f"/many/f{n:03d}"]["sha256"] == digest(b"%d" % n)
    assert [row["path"] for row in walked.all if row["name_state"] == "deleted"] == ["/gone"]
    assert walked["/gone"]["sha256"] is None


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
