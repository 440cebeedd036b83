# SPDX-License-Identifier: Apache-2.0
"""EWF version 2: Ex01, one or many segment files, deflate or none, not encrypted.

Source: Expert Witness Compression Format version 2 specification (libewf documentation).
"""

from __future__ import annotations

import struct
import uuid
import zlib
from bisect import bisect_right
from collections.abc import Hashable
from dataclasses import dataclass

from acquisition.container.disk import Cache, DamagedError, Disk, File, RefusedError, Run, inflate
from acquisition.container.ewf import (
    MAX_CHUNK,
    MAX_RATIO,
    header_values,
    inflate_chunk,
    note_unread,
)

SIGNATURE = b"EVF2\x0d\x0a\x81\x00"
_MAX_SECTIONS = 1 << 18
_MAX_TEXT = 1 << 20
_DEVICE, _CASE, _TABLE, _ERRORS, _MD5, _SHA1, _KEYS, _NEXT, _DONE = 1, 2, 4, 5, 8, 9, 11, 13, 15
_ENCRYPTED = 2
_PACKED, _CHECKED, _PATTERN = 1, 2, 4
_NAMES = {
    "nm": "description", "cn": "case_number", "en": "evidence_number", "ex": "examiner",
    "nt": "notes", "av": "software_version", "os": "operating_system", "at": "acquired",
    "tt": "system_date", "sn": "serial", "md": "model", "lb": "device_label",
}  # fmt: skip


@dataclass(frozen=True)
class _Table:
    """Entries of `count` chunks from chunk `first` on, at `at` of `file`."""

    file: File
    at: int
    first: int
    count: int
    damaged: str


class Ewf2(Disk):
    """The disk in a set of segment files, in order; `files` may lack the last ones.

    A table says itself which chunks it holds, so what is lost in one file moves nothing elsewhere.
    """

    sparse = False

    def __init__(self, files: list[File]) -> None:
        self._tables: list[_Table] = []
        self._values: dict[str, str] = {}
        self._errors: list[tuple[int, int]] = []
        self._found_hashes: dict[str, str] = {}
        self._found_remarks: list[str] = []
        identifier = b""
        complete = False
        for number, file in enumerate(files, 1):
            signature, major, _, method, claimed, found = file.unpack("<8sBBHI16s", 0)
            if signature != SIGNATURE or major != 2:
                raise DamagedError(f"{file.name} has no EWF version 2 signature")
            if method > 1:
                raise RefusedError(f"its chunks are compressed with method {method}")
            if claimed != number:
                raise DamagedError(f"{file.name} says that it is segment file {claimed}")
            if identifier and found != identifier:
                raise DamagedError(f"{file.name} belongs to another set")
            identifier = found
            complete = self._read_sections(file) == _DONE
        try:
            sector = int(self._values["bp"])
            size = int(self._values["ts"]) * sector
            self._chunk = int(self._values["sb"]) * sector
        except (KeyError, ValueError) as e:
            raise DamagedError("it says nothing of the size of the disk") from e
        if not 0 < self._chunk <= MAX_CHUNK or not 0 < sector <= 1 << 16:
            raise DamagedError(f"chunks of {self._chunk} bytes, sectors of {sector}")
        if size > 16 * MAX_RATIO * sum(file.size for file in files):
            raise DamagedError(f"it claims {size} bytes")
        super().__init__(size)
        self._tables.sort(key=lambda table: table.first)
        self._firsts = [table.first for table in self._tables]
        if not self._tables and size:
            raise DamagedError("no table of chunks is left")
        self._entries: Cache[bytes] = Cache(self._read_entries, 64)
        self.hashes = self._found_hashes
        self.remarks = self._found_remarks
        if not complete:
            self.remarks.append("the set is incomplete: its last file is missing, or one is cut")
        self.facts = {
            "header": {_NAMES[k]: v for k, v in self._values.items() if k in _NAMES},
            "chunk_size": self._chunk, "sector_size": sector,
            "stored_hashes": sorted(self.hashes),
            "set_identifier": str(uuid.UUID(bytes_le=identifier)),
        }  # fmt: skip
        note_unread(self, self._errors)

    def _read_sections(self, file: File) -> int:
        """Read one file from its end backwards, as its sections are linked; return the last one."""
        last, at = 0, file.size - 64
        for _ in range(_MAX_SECTIONS):
            try:
                raw = file.read(at, 64)
            except DamagedError:
                raw = bytes(64)
            kind, flags, before, size, _, padding = struct.unpack("<IIQQII", raw[:32])
            if not kind or zlib.adler32(raw[:60]) != struct.unpack("<I", raw[60:])[0]:
                self._found_remarks.append(f"{file.name} is cut or damaged at {max(0, at)}")
                return last or kind
            if kind == _KEYS or flags & _ENCRYPTED:
                raise RefusedError("it is encrypted", "decrypt it first, with what made it")
            last = last or kind
            if size > at - 32 or padding > size:
                raise DamagedError(f"{file.name} has a section of {size} bytes at {at}")
            try:
                self._read_section(file, kind, at - size, size - padding)
            except (DamagedError, zlib.error, struct.error, ValueError) as e:
                self._found_remarks.append(f"{file.name}: section {kind} is damaged ({e})")
            if not before:
                return last
            if before >= at:
                raise DamagedError(f"{file.name} has sections that run in a circle")
            at = before
        raise DamagedError(f"{file.name} has more than {_MAX_SECTIONS} sections")

    def _read_section(self, file: File, kind: int, at: int, size: int) -> None:
        if kind in (_DEVICE, _CASE):
            text = inflate(file.read(at, min(size, _MAX_TEXT)), _MAX_TEXT, 15)
            self._values |= header_values(text, wide=True)
        elif kind in (_MD5, _SHA1):
            name, length = ("md5", 16) if kind == _MD5 else ("sha1", 20)
            digest = _checked(file, at, length)
            if any(digest):
                self._found_hashes[name] = digest.hex()
        elif kind == _TABLE:
            first, count = struct.unpack("<QI", _checked(file, at, 16)[:12])
            damaged = ""
            try:
                _checked(file, at + 32, 16 * count)
            except DamagedError:
                damaged = f"{file.name} has a damaged chunk table"
            if at + 32 + 16 * count > file.size:
                raise DamagedError("too short")
            if count:
                self._tables.append(_Table(file, at + 32, first, count, damaged))
        elif kind == _ERRORS:
            (count,) = struct.unpack("<I", _checked(file, at, 16)[:4])
            body = _checked(file, at + 32, 16 * count)
            self._errors += [(start, n) for start, n, _ in struct.iter_unpack("<QII", body)]

    def run(self, offset: int) -> Run:
        """See `Disk.run`."""
        unit, inner = divmod(offset, self._chunk)
        return Run(self._chunk - inner, "packed", at=inner, unit=unit)

    def _read_entries(self, index: int) -> bytes:
        table = self._tables[index]
        return table.file.read(table.at, 16 * table.count)

    def unpack(self, unit: Hashable) -> bytes:
        """See `Disk.unpack`: the number of a chunk."""
        assert isinstance(unit, int)  # noqa: S101
        index = bisect_right(self._firsts, unit) - 1
        want = min(self._chunk, self.size - unit * self._chunk)
        if index < 0 or unit - self._firsts[index] >= self._tables[index].count:
            raise DamagedError("this part of the image is in none of the segment files")
        table = self._tables[index]
        if table.damaged:
            raise DamagedError(table.damaged)
        place = 16 * (unit - table.first)
        at, length, flags = struct.unpack_from("<QII", self._entries(index), place)
        if flags & _PATTERN:
            return struct.pack("<Q", at) * (-(-want // 8))
        if length > 2 * self._chunk + 4096:
            raise DamagedError(f"{table.file.name} has a chunk of {length} bytes")
        body = table.file.read(at, length)
        if flags & _PACKED:
            return inflate_chunk(body, self._chunk, want)
        if flags & _CHECKED:
            body, stored = body[:-4], struct.unpack("<I", body[-4:])[0]
            if zlib.adler32(body) != stored:
                raise DamagedError("wrong checksum of a chunk")
        if not want <= len(body) <= self._chunk:
            raise DamagedError("a chunk does not have the length that it must have")
        return body


def _checked(file: File, at: int, length: int) -> bytes:
    """Return bytes that their Adler-32 follows. Raises: DamagedError."""
    body = file.read(at, length + 4)
    if zlib.adler32(body[:-4]) != struct.unpack("<I", body[-4:])[0]:
        raise DamagedError("wrong checksum")
    return body[:-4]
