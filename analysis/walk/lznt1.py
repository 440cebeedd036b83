# SPDX-License-Identifier: Apache-2.0
"""Whether a compression unit of an NTFS file is sound LZNT1.

TSK and libfsntfs decompress a damaged unit to something and call it content. Windows and ntfs-3g
refuse some of what they accept, and every reader gives other bytes where a chunk comes out short.
So a unit that does not decompress to exactly what it must gives no digest.

Source: [MS-XCA] 2.5; ntfs-3g libntfs-3g/compress.c ntfs_decompress.
"""

from __future__ import annotations

from analysis.walk.content import DamagedError

_CHUNK = 4096


def check(raw: bytes, need: int) -> None:
    """Hold that `raw`, the clusters of one unit, decompress to at least `need` bytes.

    Every chunk but the last must give 4,096 bytes.

    Raises: DamagedError.
    """
    at, end, given = 0, len(raw), 0
    while given < need:
        if at + 2 > end:
            raise DamagedError("a compression unit ends early")
        header = raw[at] | raw[at + 1] << 8
        stop = at + (header & 0xFFF) + 3
        if header & 0x7000 != 0x3000 or stop > end:
            raise DamagedError("a compressed chunk has no sound header")
        given += _length(raw, at + 2, stop) if header & 0x8000 else stop - at - 2
        if given % _CHUNK and given < need:
            raise DamagedError("a compressed chunk comes out short")
        at = stop


def _length(raw: bytes, at: int, stop: int) -> int:
    """Return the bytes that the tokens between `at` and `stop` stand for."""
    done = 0
    while at < stop:
        tags = raw[at]
        at += 1
        if not tags:  # eight literals: most groups of what compresses badly
            done += min(8, stop - at)
            at = min(at + 8, stop)
            continue
        for bit in range(8):
            if at >= stop:
                break
            if not tags >> bit & 1:
                at += 1
                done += 1
                continue
            if at + 2 > stop or not done:
                raise DamagedError("a compressed chunk is cut off")
            pair = raw[at] | raw[at + 1] << 8
            at += 2
            width = 12 - max((done - 1).bit_length() - 4, 0)  # of the length; the rest is distance
            if pair >> width >= done:
                raise DamagedError("a compressed chunk refers to before its beginning")
            done += (pair & (1 << width) - 1) + 3
    if done > _CHUNK:
        raise DamagedError("a compressed chunk comes out too long")
    return done
