# SPDX-License-Identifier: Apache-2.0
"""The plan of a capture from the head of kcore and iomem: pure, on heads of 4 and 5 levels."""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acquisition.kcore import KcoreError, Layout, Piece, parse_head, parse_iomem, plan
from tests.acquisition.kcore_host import CODE, MIB, RAM, data, head, iomem

SAMPLES = os.environ.get("IMPOUND_SAMPLES")


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("text", [True, False])
def test_ram_is_read_where_kcore_shows_it(levels, text):
    made = plan(parse_head(head(levels=levels, text=text)), iomem())
    assert made.pieces == tuple(Piece(a, b, data(a)) for a, b in RAM)
    assert made.missing == ()
    assert made.kernel == (CODE,)
    assert (made.machine, made.levels) == ("x86_64", levels)
    assert made.ram == made.readable == sum(b - a for a, b in RAM)


def test_text_alias_alone_is_never_taken_for_ram():
    made = plan(parse_head(head()), iomem())
    assert all(p.offset < 1 << 40 for p in made.pieces)


def test_ends_of_iomem_are_inclusive_and_cut_to_pages():
    ram, _ = parse_iomem("00001000-0009fbff : System RAM\n00100000-07fdbfff : System RAM\n")
    assert ram == [(0x1000, 0x9F000), (0x100000, 0x7FDC000)]


def test_ranges_that_touch_are_one_and_parts_are_not_counted_twice():
    ram, _ = parse_iomem(
        "00100000-001fffff : System RAM\n  00110000-0011ffff : System RAM\n"
        "00200000-002fffff : System RAM\n  00500000-005fffff : System RAM (kmem)\n"
    )
    assert ram == [(0x100000, 0x300000), (0x500000, 0x600000)]


def test_ram_that_kcore_does_not_show_is_missing_and_not_zero():
    hotplugged = (*RAM, (8192 * MIB, 8200 * MIB))
    made = plan(parse_head(head(RAM)), iomem(hotplugged))
    assert made.missing == ((8192 * MIB, 8200 * MIB),)
    assert made.ram - made.readable == 8 * MIB
    assert all(p.end <= 4099 * MIB for p in made.pieces)


def test_range_with_a_hole_in_kcore_is_cut_around_it():
    shown = ((MIB, 5 * MIB), (6 * MIB, 8 * MIB))
    made = plan(parse_head(head(shown, text=False)), iomem(((MIB, 9 * MIB),)))
    assert [(p.start, p.end) for p in made.pieces] == list(shown)
    assert made.missing == ((5 * MIB, 6 * MIB), (8 * MIB, 9 * MIB))


def test_hidden_iomem_falls_back_on_what_kcore_lists_and_says_so():
    made = plan(parse_head(head()), iomem(hidden=True))
    assert [(p.start, p.end) for p in made.pieces] == list(RAM)
    assert "iomem is hidden" in made.notes[0]


@pytest.mark.parametrize(("raw", "said"), [
    (b"", "no ELF"), (b"total 0\n", "no ELF"), (head()[:40], "no ELF"),
    (b"\x7fELF\x01" + head()[5:], "64-bit"), (head()[:200], "program headers"),
    (head()[:16] + struct.pack("<H", 2) + head()[18:], "malformed"),
])  # fmt: skip
def test_what_is_no_kcore_is_refused(raw, said):
    with pytest.raises(KcoreError, match=said):
        parse_head(raw)


def test_kernel_that_states_no_addresses_is_refused():
    with pytest.raises(KcoreError, match="no physical addresses"):
        plan(parse_head(head(((1 << 40, (1 << 40) + MIB),), text=False)), iomem())


def test_impossible_ranges_are_refused():
    with pytest.raises(KcoreError, match="impossible"):
        parse_iomem("00000000-ffffffffffffffff : System RAM\n")
    with pytest.raises(KcoreError, match="impossible"):
        plan(parse_head(head(((1 << 51, (1 << 52) + MIB),), base=0)), iomem())


@given(st.binary(max_size=400), st.text(max_size=300))
def test_arbitrary_heads_and_iomem_never_break_the_parser(noise, text):
    raw = bytearray(head())
    raw[: min(len(noise), 300)] = noise[:300]
    for candidate in (bytes(raw), b"\x7fELF\x02\x01" + noise):
        with suppress(KcoreError):
            plan(parse_head(candidate), text + iomem())


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6),
       st.integers(0, 9000), st.integers(1, 40000))  # fmt: skip
def test_parts_of_an_image_cover_it_without_overlap(sizes, offset, length):
    at, pieces = 0, []
    for gap, size in sizes:
        start = at + gap * 4096
        at = start + size * 4096
        pieces.append(Piece(start, at, data(start)))
    layout = Layout(tuple(pieces))
    length = min(length, layout.size - offset)
    reached = 0
    for start, end, what in layout.parts(offset, max(0, length)):
        assert start == reached
        if not isinstance(what, bytes):
            assert layout.image_offset(what[0]) == offset + start
            assert layout.kcore_offset(what[0]) == data(what[0])
        assert (len(what) if isinstance(what, bytes) else what[1] - what[0]) == end - start
        reached = end
    assert reached == max(0, length)


@pytest.mark.skipif(not SAMPLES, reason="IMPOUND_SAMPLES is not set")
def test_plan_of_a_recorded_guest():
    folder = Path(SAMPLES or "") / "memory-6.1"
    made = plan(parse_head((folder / "kcore.head").read_bytes()), (folder / "iomem").read_text())
    assert [(p.start, p.size, p.offset) for p in made.pieces] == [
        (0x1000, 0x9E000, 0xA7E40005000), (0x100000, 0x7EDC000, 0xA7E40104000)]  # fmt: skip
    assert made.missing == ()
    assert made.levels == 4
