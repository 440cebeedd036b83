# SPDX-License-Identifier: Apache-2.0
"""Memory images of every format, whole and hostile, against the bytes they were made from."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.errors import UnsupportedImageError
from analysis.ram import open_ram
from evidence_store.item import SegmentFile
from tests.analysis.conftest import ImageBytes
from tests.analysis.kernel_image import avml, elf_core, lime

A, B = bytes(range(256)) * 16, b"second" * 700
PARTS = [(0x1000, A), (0x10000, B)]


@pytest.mark.parametrize(
    ("make", "kind"),
    [(lime, "lime"), (elf_core, "elf"), (avml, "avml")],
    ids=["lime", "elf", "avml"],
)
def test_each_format_gives_the_bytes_at_their_addresses(make, kind):
    ram = open_ram(ImageBytes(make(PARTS)))
    assert (ram.format, ram.problems) == (kind, [])
    assert [(r.start, r.end) for r in ram.ranges] == [(s, s + len(d)) for s, d in PARTS]
    assert ram.read(0x1000, len(A)) == A
    assert ram.read(0x10003, 100) == B[3:103]
    assert ram.read(0xFFF, 2) is None
    assert ram.read(0x1000 + len(A) - 1, 2) is None
    assert ram.holds(0x1000, len(A))
    assert not ram.holds(0x1000, len(A) + 1)
    assert ram.size == len(A) + len(B)


def test_raw_image_is_at_its_own_addresses():
    ram = open_ram(ImageBytes(A))
    assert ram.format == "raw"
    assert ram.read(10, 20) == A[10:30]
    assert ram.offset_of(10) == 10


def test_avml_of_many_frames_reads_across_them():
    data = b"".join(struct.pack("<Q", n * 2654435761 % 2**61) for n in range(40_000))
    ram = open_ram(ImageBytes(avml([(0x100000, data)])))
    assert ram.read(0x100000 + 65530, 20) == data[65530:65550]
    assert ram.read(0x100000, len(data)) == data
    needle = data[65532:65540]
    assert list(ram.find(needle)) == [0x100000 + 65532]


def test_corrupt_avml_frame_is_not_read_as_memory():
    data = b"".join(struct.pack("<Q", n * 2654435761 % 2**61) for n in range(40_000))
    image = bytearray(avml([(0, data)]))
    image[100_000] ^= 0xFF
    ram = open_ram(ImageBytes(bytes(image)))
    assert ram.read(0, 16) == data[:16]
    assert ram.read(65536, 65536) is None


def test_truncated_lime_keeps_what_is_there_and_says_what_is_not():
    whole = lime(PARTS)
    ram = open_ram(ImageBytes(whole[:-100]))
    assert ram.read(0x10000, len(B) - 100) == B[:-100]
    assert ram.read(0x10000, len(B)) is None
    assert ["100 bytes before" in p.reason for p in ram.problems] == [True]


def test_overlapping_lime_ranges_are_said_and_read_once():
    ram = open_ram(ImageBytes(lime([(0x1000, A), (0x1800, b"x" * 4096)])))
    assert [(r.start, r.end) for r in ram.ranges] == [(0x1000, 0x2000), (0x2000, 0x2800)]
    assert ram.read(0x1800, 0x1000) == A[0x800:] + b"x" * 0x800
    assert "overlap" in ram.problems[0].reason


def test_lime_of_rising_starts_and_no_sense_ends():
    bad = struct.pack("<IIQQQ", 0x4C694D45, 1, 0x2000, 0x1000, 0)
    ram = open_ram(ImageBytes(lime(PARTS[:1]) + bad + A))
    assert [r.start for r in ram.ranges] == [0x1000]
    assert "no header" in ram.problems[0].reason
    huge = struct.pack("<IIQQQ", 0x4C694D45, 1, 0, (1 << 64) - 1, 0)
    assert open_ram(ImageBytes(huge + A)).ranges == []


def test_million_tiny_ranges_are_cut_and_said():
    one = struct.pack("<IIQQQ", 0x4C694D45, 1, 0, 0, 0) + b"x"
    ram = open_ram(ImageBytes(one * 70_000))
    assert "only 65536 ranges" in ram.problems[0].reason
    assert ram.size == 1


@pytest.mark.parametrize("magic", [b"KDUMP   ", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PK\x03\x04"])
def test_other_formats_are_named(magic):
    with pytest.raises(UnsupportedImageError, match="memory image is"):
        open_ram(ImageBytes(magic + bytes(100)))


def test_arm64_core_says_what_it_is():
    assert open_ram(ImageBytes(elf_core(PARTS, machine=183))).machine == "arm64"


def test_64_gib_sparse_image_costs_only_what_is_stored():
    needle = b"needle in the last gigabyte"

    def segment(index):
        if index != 1023:
            return None
        import os

        fd = os.memfd_create("segment")
        os.truncate(fd, 64 << 20)
        os.pwrite(fd, needle, 12345)
        return fd

    image = SegmentFile(64 << 30, 64 << 20, segment)
    ram = open_ram(image)
    with image:
        assert list(ram.find(needle)) == [(1023 * (64 << 20)) + 12345]
        assert sum(length for _, length in ram.pieces()) <= 64 << 20


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=400), st.sampled_from(["lime", "avml", "elf"]), st.data())
def test_arbitrary_bytes_never_crash_nor_read_past_the_image(noise, kind, data):
    whole = {"lime": lime, "avml": avml, "elf": elf_core}[kind](PARTS)
    at = data.draw(st.integers(0, len(whole)))
    image = whole[:at] + noise + whole[at + len(noise) :][: data.draw(st.integers(0, 9000))]
    try:
        ram = open_ram(ImageBytes(image))
    except UnsupportedImageError:
        return
    ends = [(r.start, r.end) for r in ram.ranges]
    assert all(a < b for a, b in ends)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(ends))
    for address, length in ram.pieces(4096, 16):
        found = ram.read(address, length)
        assert found is None or len(found) == length


def dump(kind=1, runs=((0, 2), (16, 1)), pages=3, machine=0x8664):
    """A crash dump of 64-bit Windows whose pages hold their own number in the file."""
    head = bytearray(b"PAGE" * 2048)
    head[:8] = b"PAGEDU64"
    struct.pack_into("<Q", head, 0x10, 0x1AD002)
    struct.pack_into("<I", head, 0x30, machine)
    struct.pack_into("<IIQ", head, 0x88, len(runs), 0, pages)
    for n, run in enumerate(runs):
        struct.pack_into("<QQ", head, 0x98 + 16 * n, *run)
    struct.pack_into("<I", head, 0xF98, kind)
    return bytes(head) + b"".join(bytes([n]) * 4096 for n in range(pages))


def bitmap_dump(bitmap, pages, *, kind=5, bits=None, present=None):
    head = dump(kind, pages=0)
    present = pages if present is None else present
    summary = b"FDMPDUMP" + bytes(24) + struct.pack(
        "<QQQ", 0x3000, present, 8 * len(bitmap) if bits is None else bits)  # fmt: skip
    body = b"".join(bytes([n]) * 4096 for n in range(pages))
    return head + (summary + bitmap).ljust(4096, b"\0") + body


def test_full_crash_dump_gives_the_bytes_at_their_addresses():
    ram = open_ram(ImageBytes(dump()))
    assert (ram.format, ram.machine, ram.page_table, ram.problems) == (
        "crash", "x86-64", 0x1AD000, [])  # fmt: skip
    assert [(r.start, r.end) for r in ram.ranges] == [(0, 0x2000), (0x10000, 0x11000)]
    assert ram.read(0x1000, 1) == b"\x01"
    assert ram.read(0x10000, 1) == b"\x02"


def test_bitmap_crash_dump_gives_the_bytes_at_their_addresses():
    ram = open_ram(ImageBytes(bitmap_dump(b"\x81\xff\x01\x00\x80", 12)))
    assert [(r.start >> 12, r.end >> 12) for r in ram.ranges] == [(0, 1), (7, 17), (39, 40)]
    assert ram.problems == []
    assert ram.read(16 << 12, 1) == b"\x0a"
    assert ram.read(39 << 12, 1) == b"\x0b"


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (dump()[:-1000], "the image ends 1000 bytes before the range 0x10000 does"),
        (dump(runs=[(0, 3)] * 44), "44 runs of memory are stated; 43 have room"),
        (dump(runs=[(0, 3), (1 << 60, 1)]), "run 1 of memory is impossible"),
        (dump(runs=[(0, 2), (1, 1)]), "1 ranges overlap others"),
        (bitmap_dump(b"\x07", 3, kind=6), "the kernel's memory only"),
        (bitmap_dump(b"\x07", 3, present=9), "the bitmap has 3 pages and its header states 9"),
        (bitmap_dump(b"\x07", 3, bits=1 << 60), "the bitmap states 1152921504606846976 pages"),
        (bitmap_dump(b"\x0f", 3), "the image ends 4096 bytes before"),
    ],
    ids=["truncated", "too many runs", "impossible run", "overlapping runs", "kernel dump",
         "other count", "endless bitmap", "pages that are not there"],
)  # fmt: skip
def test_hostile_crash_dump_keeps_what_is_there_and_says_so(image, says):
    ram = open_ram(ImageBytes(image))
    assert says in "; ".join(p.reason for p in ram.problems)
    assert ram.read(0, 1) == b"\x00"


def test_many_runs_of_a_bitmap_are_cut_and_said(monkeypatch):
    monkeypatch.setattr("analysis.ram._MAX_RUNS", 8)
    ram = open_ram(ImageBytes(bitmap_dump(b"\x55" * 20, 80)))
    assert "only 8 runs of pages are read" in "; ".join(p.reason for p in ram.problems)
    assert len(ram.ranges) == 8


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (dump()[:5000], "ends inside its header"),
        (dump(4), "of type 4"),
        (dump(5, pages=0), "bitmap of the crash dump's pages is not there"),
        (dump(runs=[]), "holds no page"),
        (b"PAGEDUMP" + bytes(5000), "32-bit Windows"),
        (b"HIBR" + bytes(5000), "hibernation file"),
    ],
    ids=["cut header", "small dump", "no bitmap", "no runs", "32 bits", "hibernation file"],
)
def test_what_is_no_whole_crash_dump_is_named(image, says):
    with pytest.raises(UnsupportedImageError, match=says):
        open_ram(ImageBytes(image))
