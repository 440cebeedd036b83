# SPDX-License-Identifier: Apache-2.0
"""The checksums of ext group descriptors: too slow here for more than those.

Source: Linux lib/crc16.c, lib/crc32.c; `ext4_group_desc_csum` in fs/ext4/super.c.
"""

from __future__ import annotations


def _table(polynomial: int) -> tuple[int, ...]:
    found = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (polynomial if value & 1 else 0)
        found.append(value)
    return tuple(found)


_CRC16, _CRC32C = _table(0xA001), _table(0x82F63B78)


def crc16(data: bytes) -> int:
    """Return the CRC-16 (0xA001 reflected) of `data`, begun with 0xFFFF.

    >>> hex(crc16(b"123456789"))
    '0x4b37'
    """
    return _reduce(_CRC16, data, 0xFFFF)


def crc32c(data: bytes, seed: int = 0xFFFFFFFF) -> int:
    """Return the CRC-32C of `data`, not inverted at its end, as ext4 and XFS chain it.

    >>> hex(crc32c(b"123456789") ^ 0xFFFFFFFF)
    '0xe3069283'
    """
    return _reduce(_CRC32C, data, seed)


def _reduce(table: tuple[int, ...], data: bytes, value: int) -> int:
    for byte in data:
        value = value >> 8 ^ table[(value ^ byte) & 0xFF]
    return value
