# SPDX-License-Identifier: Apache-2.0
"""Files of memory that others made: what they are, and whether they are whole."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path

import cramjam
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acquisition.dump import recognise
from acquisition.source import open_source

MIB = 1 << 20
# Seeded: every worker must collect the same parameters.
NOISE = random.Random(20)


def found(body):
    return recognise(lambda at, n: body[at : at + n], len(body))


def header(magic, version, start, end):
    return struct.pack("<IIQQQ", magic, version, start, end, 0)


def lime(*ranges):
    return b"".join(
        header(0x4C694D45, 1, start, start + len(body) - 1) + body for start, body in ranges
    )


def avml(*ranges):
    out = b""
    for start, body in ranges:
        packed = bytes(cramjam.snappy.compress(body))
        out += header(0x4C4D5641, 2, start, start + len(body) - 1) + packed
        out += struct.pack("<Q", len(packed))
    return out


def crash64(pages, kind=1, missing=0):
    head = bytearray(8192)
    head[:8] = b"PAGEDU64"
    struct.pack_into("<I4xQQQ", head, 0x88, 1, pages, 0x100, pages)
    struct.pack_into("<I", head, 0xF98, kind)
    return bytes(head) + bytes(pages * 4096 - missing)


def crash_bitmap(pages, missing=0):
    head = bytearray(crash64(0, kind=5)[:8192])
    bitmap = b"FDMPDUMP" + bytes(24) + struct.pack("<QQQ", 0x4000, pages, 64)
    return bytes(head) + bitmap.ljust(0x2000, b"\0") + bytes(pages * 4096 - missing)


WHOLE = [
    (lime((0x1000, b"a" * 4096), (MIB, b"b" * 8192)), "lime", [(0x1000, 0x1FFF),
                                                                (MIB, MIB + 8191)]),
    (avml((0x1000, NOISE.randbytes(200_000)), (MIB, bytes(300_000))), "avml",
     [(0x1000, 0x1000 + 199_999), (MIB, MIB + 299_999)]),
    (crash64(3), "windows crash dump (64-bit)", [(0x100000, 0x102FFF)]),
    (crash_bitmap(3), "windows crash dump (64-bit)", []),
    (b"\x7fELF" + bytes(4092), "elf core", []), (bytes(8192), "raw", []),
]  # fmt: skip


@pytest.mark.parametrize(("body", "form", "ranges"), WHOLE)
def test_format_and_ranges(body, form, ranges):
    dump = found(body)
    assert (dump.format, dump.ranges, dump.problems) == (form, ranges, [])


@pytest.mark.parametrize("body", [
    lime((0x1000, b"a" * 4096))[:-1], lime((0, b"a" * 4096), (8192, b"b" * 9))[:-20],
    lime((0, b"a" * 4096)) + b"EMiL", avml((0, NOISE.randbytes(300_000)))[:-50_000],
    crash64(3, missing=1), crash_bitmap(3, missing=4096), crash64(1)[:5000],
])  # fmt: skip
def test_truncated_is_told(body):
    assert any("truncated" in p for p in found(body).problems)


@pytest.mark.parametrize("body", [
    lime((0, b"a" * 4096)) + b"x" * 4096, header(0x4C694D45, 1, 9, 5), header(0x4C694D45, 7, 0, 5),
    header(0x4C694D45, 1, 0, (1 << 64) - 1), lime((8192, b"a" * 4096), (8192, b"b" * 4096)),
    bytes(4097),
])  # fmt: skip
def test_malformed_is_told(body):
    assert found(body).problems


@given(st.binary(max_size=300), st.sampled_from([w[0] for w in WHOLE[:4]]), st.integers(0, 8300))
def test_arbitrary_bytes_never_break_it(noise, body, at):
    broken = body[:at] + noise + body[at + len(noise) :]
    found(broken[:20_000])
    found(noise)


def test_truncated_capture_is_taken_as_it_is_and_is_partial(world, tmp_path):
    body = lime((0x1000, b"a" * 40960))[:-100]
    path = tmp_path / "memory.lime"
    path.write_bytes(body)
    with open_source(str(path), "memory") as source:
        taken = world.case.ingest("memory", source)
    assert taken.manifest.result == "partial"
    assert taken.manifest.source["format"] == "lime"
    assert any("truncated" in note for note in taken.manifest.notes)
    with world.case.open(taken.item_id) as f:
        assert f.read() == body
    with open_source(str(path), "memory") as source:
        assert world.case.ingest("memory", source).existing


def test_disk_is_never_taken_for_memory(world, tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(lime((0, b"a" * 4096)))
    with open_source(str(path), "disk") as source:
        assert "format" not in source.facts


@pytest.mark.skipif("IMPOUND_SAMPLES" not in os.environ, reason="IMPOUND_SAMPLES is not set")
def test_recorded_capture_is_whole(need_tool, tmp_path):
    import subprocess

    out = tmp_path / "mem.lime"
    packed = Path(os.environ["IMPOUND_SAMPLES"]) / "memory-6.1" / "mem.lime.zst"
    subprocess.run([need_tool("zstd"), "-q", "-d", packed, "-o", out], check=True)
    body = out.read_bytes()
    assert found(body).problems == []
    assert found(body).ranges == [(0x1000, 0x9EFFF), (0x100000, 0x7FDBFFF)]
