# SPDX-License-Identifier: Apache-2.0
"""VHD (fixed, dynamic) and VHDX (fixed, dynamic).

Source: Virtual Hard Disk Image Format Specification 1.0 (Microsoft); [MS-VHDX].
"""

from __future__ import annotations

import struct
import uuid

from acquisition.container.disk import (
    Cache,
    DamagedError,
    Disk,
    File,
    RefusedError,
    Run,
    check_distinct,
)

_PARENT = (
    "it holds only what differs from a parent disk",
    "bring both together first, for example with qemu-img convert -O raw",
)
_TABLE = 64 << 10  # bytes of an allocation table that are read at once


class Vhd(Disk):
    """One .vhd file."""

    def __init__(self, file: File) -> None:
        footer, where = _vhd_footer(file)
        _, data_at, _, creator, _, _, _, size, geometry, kind = struct.unpack(
            ">QQI4sI4sQQIi", footer[8:64]
        )
        super().__init__(size)
        self._file = file
        self.facts = {
            "variant": {2: "fixed", 3: "dynamic"}.get(kind, str(kind)),
            "creator": creator.decode("latin-1").strip("\0 "),
            "identifier": str(uuid.UUID(bytes=footer[68:84])),
            "geometry_bytes": (geometry >> 16) * (geometry >> 8 & 255) * (geometry & 255) * 512,
        }
        if where:
            self.remarks.append(where)
        self._fixed = kind == 2
        if kind == 4:
            raise RefusedError(*_PARENT)
        if self._fixed:
            return
        if kind != 3:
            raise RefusedError(f"it is a VHD of unknown type {kind}")
        header = file.read(data_at, 1024)
        cookie, _, self._bat_at, _, self._entries, self._block = struct.unpack(
            ">8sQQIII", header[:36]
        )
        if cookie != b"cxsparse" or not _vhd_sum_is_right(header, 36):
            raise DamagedError("the header of the dynamic disk is damaged")
        if not self._block or self._block % 512 or self._entries * self._block < size:
            raise DamagedError(f"{self._entries} blocks of {self._block} bytes for {size} bytes")
        self._bitmap = (self._block // 512 + 4095) // 4096 * 512  # one bit a sector
        self._table = Cache(self._read_table, 64)

    def _read_table(self, part: int) -> bytes:
        length = min(_TABLE, self._entries * 4 - part * _TABLE)
        table = self._file.read(self._bat_at + part * _TABLE, length)
        check_distinct([at for (at,) in struct.iter_unpack(">I", table) if at != 0xFFFF_FFFF])
        return table

    def run(self, offset: int) -> Run:
        """See `Disk.run`."""
        if self._fixed:
            return Run(self.size - offset, "data", self._file, offset)
        index, inner = divmod(offset, self._block)
        left = self._block - inner
        part, at = divmod(index * 4, _TABLE)
        try:
            (sector,) = struct.unpack_from(">I", self._table(part), at)
        except DamagedError as e:
            raise DamagedError(str(e), left) from e
        if sector == 0xFFFF_FFFF:
            return Run(left, "zero")
        return Run(left, "data", self._file, sector * 512 + self._bitmap + inner)


def _vhd_footer(file: File) -> tuple[bytes, str]:
    """Return the footer; of a dynamic disk its copy at the start if the one at the end is bad."""
    last = file.size - 512
    for at, remark in ((last, ""), (0, "its footer is damaged; the copy at its start was used")):
        footer = file.read(at, 512)
        if footer.startswith(b"conectix") and _vhd_sum_is_right(footer, 64):
            return footer, remark
    raise DamagedError("neither its footer nor a copy of it is whole")


def _vhd_sum_is_right(block: bytes, at: int) -> bool:
    total = sum(block) - sum(block[at : at + 4])
    return bool(struct.unpack_from(">I", block, at)[0] == ~total & 0xFFFF_FFFF)


_BAT = uuid.UUID("2dc27766-f623-4200-9d64-115e9bfd4a08")
_METADATA = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")
_PARAMETERS = uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
_SIZE = uuid.UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
_SECTOR = uuid.UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f")
_PRESENT = 6


class Vhdx(Disk):
    """One .vhdx file."""

    def __init__(self, file: File) -> None:
        header = _newest_header(file)
        if any(header[48:64]):
            raise RefusedError(
                "it was not closed: changes wait in its log",
                "apply the log on a copy (attach it read-write, or qemu-img check -r all), or keep "
                "the file itself with --kind record",
            )
        regions = _regions(file)
        if _BAT not in regions or _METADATA not in regions:
            raise DamagedError("its region table lacks the block table or the metadata")
        self._bat_at, self._bat_length = regions[_BAT]
        items = _metadata(file, *regions[_METADATA])
        try:
            self._block, flags = struct.unpack_from("<II", items[_PARAMETERS])
            (size,) = struct.unpack_from("<Q", items[_SIZE])
            (sector,) = struct.unpack_from("<I", items[_SECTOR])
        except (KeyError, struct.error) as e:
            raise DamagedError("its metadata lack a size") from e
        if flags & 2:
            raise RefusedError(*_PARENT)
        if sector not in (512, 4096) or not 1 << 20 <= self._block <= 256 << 20:
            raise DamagedError(f"blocks of {self._block} bytes, sectors of {sector}")
        super().__init__(size)
        self._file = file
        self._ratio = (sector << 23) // self._block
        if not self._ratio:
            raise DamagedError(f"blocks of {self._block} bytes, sectors of {sector}")
        self._table = Cache(self._read_table, 64)
        self.facts = {
            "block_size": self._block, "sector_size": sector,
            "variant": "fixed" if flags & 1 else "dynamic",
        }  # fmt: skip

    def _read_table(self, part: int) -> bytes:
        length = min(_TABLE, self._bat_length - part * _TABLE)
        table = self._file.read(self._bat_at + part * _TABLE, length)
        entries = struct.unpack(f"<{length // 8}Q", table[: length // 8 * 8])
        check_distinct([e >> 20 for e in entries if e & 7 == _PRESENT])
        return table

    def run(self, offset: int) -> Run:
        """See `Disk.run`."""
        index, inner = divmod(offset, self._block)
        left = self._block - inner
        part, at = divmod((index + index // self._ratio) * 8, _TABLE)
        try:
            (entry,) = struct.unpack_from("<Q", self._table(part), at)
        except DamagedError as e:
            raise DamagedError(str(e), left) from e
        except struct.error as e:
            raise DamagedError("its block table is too short", left) from e
        if entry & 7 != _PRESENT:
            return Run(left, "zero")
        return Run(left, "data", self._file, (entry >> 20 << 20) + inner)


def _newest_header(file: File) -> bytes:
    found = []
    for at in (64 << 10, 128 << 10):
        header = file.read(at, 4096)
        if header.startswith(b"head") and _crc_is_right(header):
            found.append((struct.unpack_from("<Q", header, 8)[0], header))
    if not found:
        raise DamagedError("neither of its headers is whole")
    return max(found)[1]


def _regions(file: File) -> dict[uuid.UUID, tuple[int, int]]:
    for at in (192 << 10, 256 << 10):
        table = file.read(at, 64 << 10)
        (count,) = struct.unpack_from("<I", table, 8)
        if table.startswith(b"regi") and count <= 2047 and _crc_is_right(table):
            entries = struct.iter_unpack("<16sQII", table[16 : 16 + 32 * count])
            return {uuid.UUID(bytes_le=guid): (at, length) for guid, at, length, _ in entries}
    raise DamagedError("neither of its region tables is whole")


def _metadata(file: File, at: int, length: int) -> dict[uuid.UUID, bytes]:
    table = file.read(at, 64 << 10)
    (count,) = struct.unpack_from("<H", table, 10)
    if not table.startswith(b"metadata") or count > 2047:
        raise DamagedError("its metadata table is damaged")
    items = {}
    for guid, inner, size, _, _ in struct.iter_unpack("<16sIIII", table[32 : 32 + 32 * count]):
        name = uuid.UUID(bytes_le=guid)
        if name in (_PARAMETERS, _SIZE, _SECTOR) and inner + size <= length and size <= 64:
            items[name] = file.read(at + inner, size)
    return items


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F6_3B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC = _crc_table()


def _crc_is_right(block: bytes) -> bool:
    """CRC-32C of the block with its own field (bytes 4 to 7) zero."""
    crc = 0xFFFF_FFFF
    for byte in block[:4] + bytes(4) + block[8:]:
        crc = crc >> 8 ^ _CRC[(crc ^ byte) & 255]
    return bool(crc ^ 0xFFFF_FFFF == struct.unpack_from("<I", block, 4)[0])
