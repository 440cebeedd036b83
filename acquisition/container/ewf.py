# SPDX-License-Identifier: Apache-2.0
"""EWF version 1: EnCase (E01), SMART (s01), one or many segment files.

A chunk whose checksum is wrong, or whose segment file is missing, is lost and said to be: libewf
gives zeros in its place.

Source: Expert Witness Compression Format specification (libewf documentation).
"""

from __future__ import annotations

import struct
import uuid
import zlib
from bisect import bisect_right
from collections.abc import Hashable
from dataclasses import dataclass

from acquisition.container.disk import Cache, DamagedError, Disk, File, Run, inflate

SIGNATURE = b"EVF\x09\x0d\x0a\xff\x00"
_MAX_SECTIONS = 1 << 18
_MAX_HEADER = 1 << 20
MAX_CHUNK = 64 << 20
# Deflate makes at most 1032 bytes of one; most files of a set may be lost and it is still evidence.
MAX_RATIO = 1032 * 64
_HEADER_NAMES = {
    "a": "description", "c": "case_number", "n": "evidence_number", "e": "examiner", "t": "notes",
    "av": "software_version", "ov": "operating_system", "m": "acquired", "u": "system_date",
    "md": "model", "sn": "serial", "l": "device_label", "pid": "process_id", "ext": "extents",
}  # fmt: skip


@dataclass(frozen=True)
class _Table:
    """Where the chunks `first` to `first + count - 1` lie: entries at `at` of `file`."""

    file: File
    at: int
    count: int
    base: int
    end: int  # of the section that holds the chunks
    damaged: str


class Ewf(Disk):
    """The disk in a set of segment files, in order; `files` may lack the last ones."""

    sparse = False

    def __init__(self, files: list[File]) -> None:
        self._chunk = 0  # bytes of the disk in one chunk
        self._tables: list[_Table] = []
        self._firsts: list[int] = []
        self._header: dict[str, str] = {}
        self._volume: tuple[int, int, int, int, bytes] | None = None
        self._errors: list[tuple[int, int]] = []
        self._found_hashes: dict[str, str] = {}
        self._found_remarks: list[str] = []
        self._chunks = 0  # known so far, in order
        last = ""
        for number, file in enumerate(files, 1):
            signature, _, claimed, _ = file.unpack("<8sBHH", 0)
            if signature != SIGNATURE:
                raise DamagedError(f"{file.name} has no EWF signature")
            if claimed != number:
                raise DamagedError(f"{file.name} says that it is segment file {claimed}")
            last = self._read_sections(file)
            if last != "next":
                if number < len(files):
                    # How many chunks are lost here is not known: what follows has no place.
                    self._found_remarks.append(f"nothing after {file.name} can be placed")
                break
        if self._volume is None:
            raise DamagedError(f"{files[0].name} says nothing of the size of the disk")
        claimed_chunks, per_chunk, sector, sectors, _ = self._volume
        self._chunk = per_chunk * sector
        if not 0 < self._chunk <= MAX_CHUNK or sector > 1 << 16:
            raise DamagedError(f"chunks of {per_chunk} sectors of {sector} bytes")
        size = sectors * sector
        if claimed_chunks * self._chunk < size or size > MAX_RATIO * sum(f.size for f in files):
            raise DamagedError(f"it claims {size} bytes in {claimed_chunks} chunks")
        super().__init__(size)
        self._entries: Cache[list[tuple[int, int, bool]]] = Cache(self._read_entries, 16)
        self.hashes = self._found_hashes
        self.remarks = self._found_remarks
        if last != "done":
            self.remarks.append("the set is incomplete: its last file is missing, or one is cut")
        needed = -(-size // self._chunk)
        if not self._chunks and needed:
            raise DamagedError("no table of chunks is left")
        if self._chunks < needed:
            self.remarks.append(f"{needed - self._chunks} of {needed} chunks are in no table")
        self.facts = {
            "header": {_HEADER_NAMES[k]: v for k, v in self._header.items() if k in _HEADER_NAMES},
            "chunk_size": self._chunk, "sector_size": sector,
            "stored_hashes": sorted(self.hashes),
        }  # fmt: skip
        if self._volume[4].strip(b"\0"):
            self.facts["set_identifier"] = str(uuid.UUID(bytes_le=self._volume[4]))
        note_unread(self, self._errors)

    # -- sections --------------------------------------------------------------------------------

    def _read_sections(self, file: File) -> str:
        """Read one segment file; return its last section, or what ended it."""
        at, end = 13, 13
        tables: list[_Table | None] = []  # a table and its copy, not yet chosen from
        for _ in range(_MAX_SECTIONS):
            try:
                raw = file.read(at, 76)
            except DamagedError:
                return "cut" if self._add(file, tables) else "damaged"
            kind, following, _ = struct.unpack("<16sQQ", raw[:32])
            if zlib.adler32(raw[:72]) != struct.unpack("<I", raw[72:])[0]:
                self._found_remarks.append(f"{file.name}: the section at {at} is damaged")
                self._add(file, tables)
                return "damaged"
            name: str = kind.split(b"\0", 1)[0].decode("latin-1")
            stop = min(following, file.size)
            if name != "table2":
                if not self._add(file, tables):
                    return "damaged"
                tables = []
            if name in ("done", "next"):
                return name
            if name == "sectors":
                end = stop
            elif name in ("table", "table2"):
                tables.append(_read_table(file, at, stop, end))
            else:
                self._read_section(file, name, at + 76, stop)
            if following <= at:
                self._found_remarks.append(f"{file.name}: sections run in a circle at {at}")
                self._add(file, tables)
                return "damaged"
            at = following
        raise DamagedError(f"{file.name} has more than {_MAX_SECTIONS} sections")

    def _add(self, file: File, tables: list[_Table | None]) -> bool:
        """Take the better one of a table and its copy; False if neither tells a count."""
        known = [table for table in tables if table is not None]
        if not known:
            if tables:
                self._found_remarks.append(f"{file.name}: a table of chunks and its copy are lost")
            return not tables
        best = next((table for table in known if not table.damaged), known[0])
        if best is not tables[0] and not best.damaged:
            self._found_remarks.append(f"{file.name}: a table is damaged, its copy is used")
        if best.count:
            self._tables.append(best)
            self._firsts.append(self._chunks)
            self._chunks += best.count
        return True

    def _read_section(self, file: File, name: str, at: int, stop: int) -> None:
        body = file.read(at, max(0, min(stop - at, _MAX_HEADER)))
        try:
            if name in ("volume", "disk", "data"):
                self._read_volume(file, body)
            elif name in ("header", "header2"):
                text = inflate(body, _MAX_HEADER, 15)
                self._header = header_values(text, wide=name == "header2") | self._header
            elif name in ("hash", "digest"):
                whole = 36 if name == "hash" else 80
                (checksum,) = struct.unpack("<I", body[whole - 4 : whole])
                if zlib.adler32(body[: whole - 4]) != checksum:
                    self._found_remarks.append(f"{file.name}: its stored {name} is damaged")
                    return
                if any(body[:16]):
                    self._found_hashes["md5"] = body[:16].hex()
                if name == "digest" and any(body[16:36]):
                    self._found_hashes["sha1"] = body[16:36].hex()
            elif name == "error2":
                (count,) = struct.unpack_from("<I", body)
                pairs = body[520 : 520 + 8 * count]
                self._errors += struct.iter_unpack("<II", pairs[: len(pairs) // 8 * 8])
        except (struct.error, zlib.error, ValueError) as e:
            self._found_remarks.append(f"{file.name}: its section {name} is damaged ({e})")

    def _read_volume(self, file: File, body: bytes) -> None:
        if len(body) >= 1052:
            count, per_chunk, sector, sectors = struct.unpack_from("<IIIQ", body, 4)
            identifier = body[64:80]
            right = zlib.adler32(body[:1048]) == struct.unpack_from("<I", body, 1048)[0]
        else:  # SMART
            count, per_chunk, sector, sectors = struct.unpack_from("<IIII", body, 4)
            identifier = b""
            right = zlib.adler32(body[:90]) == struct.unpack_from("<I", body, 90)[0]
        if not right:
            raise ValueError("wrong checksum")
        found = (count, per_chunk, sector, sectors, identifier)
        if self._volume is None:
            self._volume = found
        elif identifier and self._volume[4] and identifier != self._volume[4]:
            raise DamagedError(f"{file.name} belongs to another set")

    # -- chunks ----------------------------------------------------------------------------------

    def run(self, offset: int) -> Run:
        """See `Disk.run`."""
        unit, inner = divmod(offset, self._chunk)
        return Run(self._chunk - inner, "packed", at=inner, unit=unit)

    def _read_entries(self, index: int) -> list[tuple[int, int, bool]]:
        """Return (start, end, compressed) of every chunk of a table."""
        table = self._tables[index]
        raw = struct.unpack(f"<{table.count}I", table.file.read(table.at, 4 * table.count))
        out: list[tuple[int, int, bool]] = []
        overflow = False
        for i, entry in enumerate(raw):
            start, packed = (entry, False) if overflow else (entry & 0x7FFF_FFFF, entry >> 31 == 1)
            if i + 1 < len(raw):
                end = raw[i + 1] if overflow else raw[i + 1] & 0x7FFF_FFFF
                if end < start and raw[i + 1] > start:
                    # EnCase 6.7 lets offsets grow past 31 bits; then no chunk is compressed.
                    end, overflow = raw[i + 1], True
                end += table.base
            else:
                end = table.end
            out.append((start + table.base, end, packed))
        return out

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
        start, end, packed = self._entries(index)[unit - self._firsts[index]]
        if not want <= end - start - 4 <= 2 * self._chunk + 4096 and not (
            packed and 0 < end - start <= 2 * self._chunk + 4096
        ):
            raise DamagedError(f"{table.file.name} has a chunk of {end - start} bytes")
        body = table.file.read(start, end - start)
        if packed:
            return inflate_chunk(body, self._chunk, want)
        size = min(len(body) - 4, self._chunk) if len(body) - 4 != want else want
        data, stored = body[:size], struct.unpack_from("<I", body, size)[0]
        if zlib.adler32(data) != stored:
            raise DamagedError("wrong checksum of a chunk")
        return data


def _read_table(file: File, at: int, stop: int, end: int) -> _Table | None:
    """Return a table; None if nothing can be known of it."""
    try:
        header = file.read(at + 76, 24)
    except DamagedError:
        return None
    count, base = struct.unpack("<I4xQ", header[:16])
    body = at + 100
    damaged = ""
    if zlib.adler32(header[:20]) != struct.unpack("<I", header[20:])[0]:
        return None
    if body + 4 * count > file.size:
        return None
    if stop >= body + 4 * count + 4 and end > 13:
        entries = file.read(body, 4 * count + 4)
        if zlib.adler32(entries[:-4]) != struct.unpack("<I", entries[-4:])[0]:
            damaged = f"{file.name} has a damaged chunk table"
    # SMART has no section of its own for the chunks: they follow the table in its section.
    return _Table(file, body, count, base, end if end > 13 else stop, damaged)


def note_unread(disk: Disk, ranges: list[tuple[int, int]]) -> None:
    """Have a disk say which sectors whoever acquired it could not read: (first, count)."""
    if not ranges:
        return
    disk.facts["acquisition_errors"] = [list(one) for one in ranges[:200]]
    disk.remarks.append(
        f"whoever made it could not read {sum(n for _, n in ranges)} sectors in {len(ranges)} "
        f"ranges, the first at sector {ranges[0][0]}"
    )


def inflate_chunk(body: bytes, limit: int, want: int) -> bytes:
    """Return a whole chunk; zlib itself checks its Adler-32. Raises: DamagedError, zlib.error."""
    unpacker = zlib.decompressobj()
    data = unpacker.decompress(body, limit)
    if not unpacker.eof:
        data += unpacker.decompress(unpacker.unconsumed_tail, 1)
    if not unpacker.eof or not want <= len(data) <= limit:
        raise DamagedError("a chunk does not have the length that it must have")
    return data


def header_values(text: bytes, *, wide: bool) -> dict[str, str]:
    r"""Return the values that are not empty in a header section, by the format's short names.

    >>> header_values(b"1\r\nmain\r\nc\tn\r\nK-7\tE1\r\n\r\n", wide=False)
    {'c': 'K-7', 'n': 'E1'}
    """
    decoded = text.decode("utf-16" if wide else "utf-8", "replace")
    lines = decoded.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for i, line in enumerate(lines[:-2]):
        if line == "main":
            names, values = lines[i + 1].split("\t"), lines[i + 2].split("\t")
            return {k: v for k, v in zip(names, values, strict=False) if v.strip()}
    return {}
