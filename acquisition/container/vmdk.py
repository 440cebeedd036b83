# SPDX-License-Identifier: Apache-2.0
"""VMDK: sparse, flat and stream-optimised extents, one or many.

Source: VMware Virtual Disk Format 5.0 (Virtual Disk Technical Note).
"""

from __future__ import annotations

import re
import struct
import zlib
from bisect import bisect_right
from collections.abc import Hashable
from dataclasses import dataclass

from acquisition.container.disk import (
    Cache,
    DamagedError,
    Disk,
    File,
    RefusedError,
    Run,
    check_distinct,
)

MAX_DESCRIPTOR = 1 << 20
_HEADER = "<4sIIQQQQIQQQB4sH"
_AT_END = 0xFFFF_FFFF_FFFF_FFFF
_EXTENT = re.compile(
    r'(?:RW|RDONLY|NOACCESS)\s+([0-9]{1,15})\s+([A-Z0-9]+)(?:\s+"([^"]*)"(?:\s+([0-9]{1,15}))?)?.*'
)
_ZERO_GRAINS, _COMPRESSED = 1 << 2, 1 << 16


@dataclass(frozen=True)
class Extent:
    """One line of a descriptor: bytes, type, file name ("" for zeros), byte offset in the file."""

    size: int
    kind: str
    name: str
    at: int


@dataclass(frozen=True)
class Descriptor:
    """The text that says what a VMDK is made of."""

    extents: list[Extent]
    settings: dict[str, str]


def parse_descriptor(raw: bytes) -> Descriptor:
    """Return what a descriptor says. Names in it are claims, not to be opened as they are.

    Raises: RefusedError, DamagedError.
    """
    extents: list[Extent] = []
    settings: dict[str, str] = {}
    text = raw.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
    for line in map(str.strip, text.splitlines()):
        if match := _EXTENT.fullmatch(line):
            size, kind, name, at = match.groups()
            extents.append(Extent(int(size) * 512, kind, name or "", int(at or 0) * 512))
        elif "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            settings.setdefault(key.strip(), value.strip().strip('"'))
    if settings.get("parentCID", "ffffffff").lower() != "ffffffff":
        raise RefusedError(
            "it holds only what differs from a parent disk",
            "bring both together first, for example with qemu-img convert -O raw",
        )
    if not extents:
        raise DamagedError("its descriptor names no extent")
    if len(extents) > 4096:
        raise RefusedError(f"its descriptor names {len(extents)} extents; 4096 are the most")
    return Descriptor(extents, settings)


def embedded_descriptor(file: File) -> bytes:
    """Return the descriptor inside a sparse extent, b"" if it has none. Raises: DamagedError."""
    _, _, _, _, _, at, sectors, *_ = file.unpack(_HEADER, 0)
    return file.read(at * 512, sectors * 512) if 0 < sectors * 512 <= MAX_DESCRIPTOR else b""


class _Sparse:
    """One sparse extent."""

    def __init__(self, file: File) -> None:
        fields = file.unpack(_HEADER, 0)
        if fields[9] == _AT_END:  # stream-optimised: the header to use is the footer
            fields = file.unpack(_HEADER, file.size - 1024)
        (magic, version, self.flags, capacity, grain, _, _, self._per_table, _, gd_at, _,
         self.unclean, _, algorithm) = fields  # fmt: skip
        if magic != b"KDMV":
            raise DamagedError(f"{file.name} has no header of a sparse extent")
        if version > 3 or algorithm > 1:
            raise RefusedError(f"{file.name} is of version {version}, compression {algorithm}")
        if not 1 <= grain <= 1 << 16 or not 1 <= self._per_table <= 1 << 16:
            raise DamagedError(f"{file.name} has grains of {grain} sectors")
        self.file = file
        self.size = capacity * 512
        self._grain = grain * 512
        self._covers = self._grain * self._per_table
        count = -(-self.size // self._covers)
        self._directory = struct.unpack(f"<{count}I", file.read(gd_at * 512, 4 * count))
        check_distinct([table for table in self._directory if table])
        self._table = Cache(self._read_table, 64)

    def _read_table(self, sector: int) -> bytes:
        table = self.file.read(sector * 512, 4 * self._per_table)
        check_distinct([at for (at,) in struct.iter_unpack("<I", table) if at > 1])
        return table if any(table) else b""

    def run(self, offset: int) -> Run:
        index, inner = divmod(offset, self._covers)
        table = self._directory[index]
        try:
            entries = self._table(table) if table else b""
        except DamagedError as e:
            raise DamagedError(str(e), self._covers - inner) from e
        if not entries:
            return Run(self._covers - inner, "zero")
        number, inner = divmod(inner, self._grain)
        left = self._grain - inner
        (sector,) = struct.unpack_from("<I", entries, 4 * number)
        if not sector or (sector == 1 and self.flags & _ZERO_GRAINS):
            return Run(left, "zero")
        if self.flags & _COMPRESSED:
            return Run(left, "packed", at=inner, unit=(self, sector, offset - inner))
        return Run(left, "data", self.file, sector * 512 + inner)

    def grain(self, sector: int, offset: int) -> bytes:
        lba, length = self.file.unpack("<QI", sector * 512)
        if lba * 512 != offset:
            raise DamagedError(f"{self.file.name} has another grain where that of {offset} is due")
        if length > 2 * self._grain + 1024:
            raise DamagedError(f"{self.file.name} has a grain of {length} bytes")
        want = min(self._grain, self.size - offset)
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(self.file.read(sector * 512 + 12, length), self._grain)
        if len(data) == self._grain:
            unpacker.decompress(unpacker.unconsumed_tail, 1)  # the stream's checksum comes last
        if not unpacker.eof or len(data) < want:
            raise DamagedError(f"{self.file.name} has an incomplete grain at sector {sector}")
        return data


class Vmdk(Disk):
    """A disk made of the extents of a descriptor; `files` stand in their order, None for zeros."""

    def __init__(self, descriptor: Descriptor, files: list[File | None]) -> None:
        super().__init__(sum(extent.size for extent in descriptor.extents))
        self._starts: list[int] = []
        self._parts: list[tuple[Extent, File | None, _Sparse | None]] = []
        at = 0
        for extent, file in zip(descriptor.extents, files, strict=True):
            sparse = None
            if file is not None and extent.kind == "SPARSE":
                sparse = _Sparse(file)
                if sparse.size < extent.size:
                    raise DamagedError(f"{file.name} is smaller than its descriptor says")
                if sparse.unclean:
                    self.remarks.append(f"{file.name} was not closed by the program that wrote it")
            self._starts.append(at)
            self._parts.append((extent, file, sparse))
            at += extent.size
        wanted = ("createType", "CID", "ddb.adapterType", "ddb.uuid", "ddb.virtualHWVersion")
        self.facts = {k: v[:200] for k in wanted if (v := descriptor.settings.get(k))}
        self.facts["extents"] = len(self._parts)

    def run(self, offset: int) -> Run:
        """See `Disk.run`."""
        index = bisect_right(self._starts, offset) - 1
        extent, file, sparse = self._parts[index]
        inner = offset - self._starts[index]
        left = extent.size - inner
        if file is None:
            return Run(left, "zero")
        if sparse is None:
            return Run(left, "data", file, extent.at + inner)
        run = sparse.run(inner)
        return Run(min(run.length, left), run.kind, run.file, run.at, run.unit)

    def unpack(self, unit: Hashable) -> bytes:
        """See `Disk.unpack`."""
        assert isinstance(unit, tuple)  # noqa: S101
        sparse, sector, offset = unit
        grain: bytes = sparse.grain(sector, offset)
        return grain
