# SPDX-License-Identifier: Apache-2.0
"""Units of NTFS compression: the sound ones pass, and each kind of damage is named."""

from __future__ import annotations

import pytest

from analysis.walk.content import DamagedError
from analysis.walk.lznt1 import check


def chunk(body, *, compressed=True):
    header = len(body) - 1 | 0x3000 | (0x8000 if compressed else 0)
    return header.to_bytes(2, "little") + body


LITERAL = b"\0" + b"literals"
RAW = chunk(bytes(range(256)) * 16, compressed=False)


def full():
    """A chunk of 4,096 equal bytes: one literal, then itself again and again."""
    return chunk(b"\x02a" + (4095 - 3).to_bytes(2, "little"))


def test_whole_units_pass():
    check(full() * 16, 65536)
    check(RAW + full() + RAW, 3 * 4096)
    check(full() + chunk(LITERAL) + bytes(100), 4096 + 8)
    check(full() + b"junk after what is needed", 4096)


@pytest.mark.parametrize(
    ("raw", "need", "reason"),
    [
        (full() + b"\0\0", 4097, "no sound header"),
        (full(), 4097, "ends early"),
        (full()[:-1], 4096, "no sound header"),
        (bytes([full()[0], full()[1] & ~0x10]) + full()[2:], 4096, "no sound header"),
        (chunk(LITERAL) + full(), 8 + 4096, "comes out short"),
        (chunk(RAW[2:-1], compressed=False) + full(), 8000, "comes out short"),
        (chunk(b"\x01" + b"\0\0"), 3, "cut off"),
        (chunk(b"\x02a\0"), 3, "cut off"),
        (chunk(b"\x02a\x00\x10"), 3, "before its beginning"),
        (chunk(b"\x02a\xff\x0f"), 4096, "too long"),
    ],
)
def test_damaged_units_are_refused(raw, need, reason):
    with pytest.raises(DamagedError, match=reason):
        check(raw, need)
