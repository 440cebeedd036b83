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
