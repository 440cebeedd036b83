# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random

import pytest

from analysis.image import TskImage, identify, volumes

from .conftest import ImageBytes, ImageFile

MIB = 1 << 20


def disk(make, script, size=64 * MIB):
    path = make.blank(size, "disk")
    make.run("sfdisk", "-q", "--no-reread", path, data=script.encode())
    return path


def put(path, source, offset):
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(source.read_bytes())


def brief(found):
    return [(v.name, v.offset // MIB, v.length // MIB, v.kind) for v in found]


GPT = "label: gpt\nstart=2048, size=32768, name=root\nstart=65536, size=32768, name=data\n"


def test_gpt(make):
    path = disk(make, GPT)
    put(path, make.ext(size=16 * MIB), MIB)
    notes = []
    found = volumes(ImageFile(path), notes)
    assert brief(found) == [
        ("p1", 1, 16, "ext"),
        ("", 17, 15, "unallocated"),
        ("p2", 32, 16, ""),
        ("", 48, 16, "unallocated"),
    ]
    assert [v.index for v in found] == [0, 1, 2, 3]
    assert "root" in found[0].description
    assert found[0].reason == ""
    assert "no file system recognised" in found[2].reason
    assert notes == []


@pytest.mark.parametrize(
    "damage",
    [(512, b"\0" * 512), (512 + 40, b"\xff" * 8), (1024 + 32, b"\x11\x22\x33")],
    ids=["header wiped", "header changed", "entries changed"],
)
def test_damaged_primary_gpt_falls_back_to_the_backup_with_a_note(make, damage):
    path = disk(make, GPT)
    data = bytearray(path.read_bytes())
    at, bad = damage
    data[at : at + len(bad)] = bad
    notes = []
    found = volumes(ImageBytes(data), notes)
    assert [(v.name, v.offset) for v in found if v.name] == [("p1", MIB), ("p2", 32 * MIB)]
    assert any("backup" in note for note in notes)


def test_both_gpts_damaged_is_told(make):
    path = disk(make, GPT)
    data = bytearray(path.read_bytes())
    data[512:1024] = bytes(512)
    data[-512:] = bytes(512)
    notes = []
    found = volumes(ImageBytes(data), notes)
    assert notes
    assert sum(v.length for v in found) >= 60 * MIB  # nothing dropped


def test_mbr_with_logical_partitions_numbered_as_linux_does(make):
    path = disk(
        make,
        "label: dos\nstart=2048,size=16384,type=83\nstart=20480,size=102400,type=5\n"
        "start=22528,size=16384,type=83\nstart=43008,size=16384,type=83\n",
    )
    found = volumes(ImageFile(path))
    assert [(v.name, v.offset // 512) for v in found if v.name] == [
        ("p1", 2048),
        ("p5", 22528),
        ("p6", 43008),
    ]


def disk_of_4096(make, *commands, size=64 * MIB):
    """Return a disk with a table that fdisk wrote for sectors of 4,096 bytes."""
    path = make.blank(size, "disk")
    make.run("fdisk", "-b", 4096, path, data="\n".join([*commands, "w", ""]).encode())
    return path


GPT_4096 = "g", "n", "1", "256", "+16M", "n", "2", "8192", "+16M"
MBR_4096 = (
    "o", "n", "p", "1", "256", "+8M", "n", "e", "2", "4096", "+40M", "n", "l", "4352", "+8M",
    "n", "l", "6656", "+8M",
)  # fmt: skip


def test_gpt_of_4096_byte_sectors(make):
    path = disk_of_4096(make, *GPT_4096)
    put(path, make.ext(size=16 * MIB), MIB)
    notes = []
    assert brief(volumes(ImageFile(path), notes)) == [
        ("p1", 1, 16, "ext"),
        ("", 17, 15, "unallocated"),
        ("p2", 32, 16, ""),
        ("", 48, 16, "unallocated"),
    ]
    assert notes == []


@pytest.mark.parametrize(
    "damage",
    [
        (4096, b"\0" * 4096),
        (4096 + 40, b"\xff" * 8),
        (8192 + 32, b"\x11\x22\x33"),
        (0, bytes(8192)),
    ],
    ids=["header wiped", "header changed", "entries changed", "MBR wiped too"],
)
def test_damaged_gpt_of_4096_byte_sectors(make, damage):
    path = disk_of_4096(make, *GPT_4096)
    data = bytearray(path.read_bytes())
    at, bad = damage
    data[at : at + len(bad)] = bad
    notes = []
    found = [(v.name, v.offset) for v in volumes(ImageBytes(data), notes) if v.name]
    assert any("backup" in note for note in notes)
    assert found == ([] if at == 0 else [("p1", MIB), ("p2", 32 * MIB)])


def test_mbr_of_4096_byte_sectors_is_known_by_what_begins_where_it_points(make):
    path = disk_of_4096(make, *MBR_4096)
    put(path, make.ext(size=8 * MIB, name="fs"), 26 * MIB)  # in the second logical one
    notes = []
    found = volumes(ImageFile(path), notes)
    assert [(v.name, v.offset // 4096, v.length // MIB, v.kind) for v in found if v.name] == [
        ("p1", 256, 8, ""), ("p5", 4352, 8, ""), ("p6", 6656, 8, "ext"),
    ]  # fmt: skip
    assert notes == []


def test_mbr_of_512_byte_sectors_stays_so_whatever_lies_where_4096_would_point(make):
    path = disk(make, "label: dos\nstart=2048,size=8192,type=83\nstart=16384,size=16384,type=83\n")
    put(path, make.ext(size=8 * MIB, name="fs"), 8 * MIB)  # 16384 sectors, or 2048 longer ones
    found = volumes(ImageFile(path))
    assert [(v.name, v.offset // MIB, v.kind) for v in found if v.name] == [
        ("p1", 1, ""), ("p2", 8, "ext"),
    ]  # fmt: skip


def test_mbr_extended_loop_ends(make):
    path = disk(make, "label: dos\nstart=2048,size=16384,type=5\nstart=4096,size=2048,type=83\n")
    data = bytearray(path.read_bytes())
    second = 2048 * 512 + 446 + 16  # next-table entry of the first extended boot record
    data[second : second + 16] = bytes([0, 0, 0, 0, 5, 0, 0, 0]) + bytes(4) + b"\0\x40\0\0"
    volumes(ImageBytes(data))


def test_no_table_is_one_volume(make):
    path = make.ext()
    assert brief(volumes(ImageFile(path))) == [("", 0, 16, "ext")]


def test_fat_boot_sector_is_not_a_partition_table(make):
    path = make.fat(16, 16 * MIB)
    notes = []
    assert brief(volumes(ImageFile(path), notes)) == [("", 0, 16, "fat")]
    assert notes == []


def test_file_system_and_table_at_the_same_place_are_both_kept(make):
    path = disk(make, "label: dos\nstart=8192,size=16384,type=83\n", size=16 * MIB)
    table = path.read_bytes()[:512]
    put(path, make.ext(size=16 * MIB), 0)
    data = table + path.read_bytes()[512:]
    notes = []
    found = volumes(ImageBytes(data), notes)
    assert (found[0].name, found[0].kind) == ("", "ext")
    assert "p1" in [v.name for v in found]
    assert notes


def test_partition_past_the_end_of_a_truncated_image_is_told(make):
    path = disk(make, GPT)
    data = path.read_bytes()[: 40 * MIB]
    notes = []
    found = volumes(ImageBytes(data), notes)
    assert [v.name for v in found if v.name] == ["p1", "p2"]
    assert any("after the image does" in note for note in notes)


@pytest.mark.parametrize(
    ("offset", "magic", "kind"),
    [
        (0, b"LUKS\xba\xbe\0\x02", "luks"),
        (3, b"-FVE-FS-", "bitlocker"),
        (512, b"LABELONE", "lvm"),
        (4086, b"SWAPSPACE2", "swap"),
        (65600, b"_BHRfS_M", "btrfs"),
        (4096, b"\xfc\x4e\x2b\xa9", "mdraid"),
        (32769, b"CD001", "iso9660"),
        (32, b"NXSB", "apfs"),
    ],
)
def test_what_cannot_be_opened_is_named(offset, magic, kind):
    data = bytearray(MIB)
    data[offset : offset + len(magic)] = magic
    found, reason = identify(ImageBytes(data), 0, MIB)
    assert found == kind
    assert "not supported" in reason


@pytest.mark.parametrize("size", [0, 1, 511, 512, 1024, 4096])
def test_tiny_images(size):
    assert len(volumes(ImageBytes(b"\xaa" * size))) == (size > 0)


def test_unreadable_first_sector_does_not_raise():
    notes = []
    (found,) = volumes(ImageBytes(bytes(MIB), bad=[(0, 512)]), notes)
    assert "could not be read" in found.reason
    assert notes


def test_random_tables_never_raise():
    for seed in range(50):
        rng = random.Random(seed)
        data = bytearray(rng.randbytes(64 << 10))
        data[510:512] = b"\x55\xaa"
        if seed % 2:
            data[512:520] = b"EFI PART"
        for n in range(4):
            data[446 + n * 16] = 0
        volumes(ImageBytes(data))


def test_errors_that_are_not_of_the_evidence_pass_through():
    class Broken:
        size = MIB

        def pread(self, length, offset):
            raise LookupError("not ours to swallow")

    image = TskImage(Broken())
    assert image.read(0, 512) == b""
    with pytest.raises(LookupError):
        image.check()
    with pytest.raises(LookupError):
        volumes(Broken())
