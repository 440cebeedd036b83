# SPDX-License-Identifier: Apache-2.0
"""A captured memory image as one physical address space, whatever file format it came in.

Raw, LiME version 1, ELF core (QEMU, DumpIt, a copy of /proc/kcore), AVML (LiME's header with
Snappy frames, decompressed as they are read) and 64-bit Windows crash dumps (full, or by a bitmap
of pages). The file is hostile: ranges may overlap, run past its end or be a million; what could not
be taken at its word stands in `problems`, what is there is read. Nothing is ever held whole, so
64 GiB cost what is looked at.

Source: LiME doc/README (header `<IIQQQ`, inclusive end); AVML src/image.rs (version 2, magic
0x4C4D5641: Snappy frames, then the frame bytes as u64); elf(5); the Snappy framing format,
https://github.com/google/snappy/blob/main/framing_format.txt; _DUMP_HEADER64 and _SUMMARY_DUMP as
volatility3 has them (crash64.json, crash_common.json).
"""

from __future__ import annotations

import itertools
import struct
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from analysis.errors import UnsupportedImageError

_LIME, _AVML = 0x4C694D45, 0x4C4D5641
_HEADER = struct.Struct("<IIQQQ")
_MAX_RANGES = 1 << 16
_EM_X86_64, _EM_AARCH64 = 62, 183
_ALL_ONES = (1 << 64) - 1
_PHYSICAL = 1 << 52  # no x86-64 has more; so a sum never passes 64 bits
_CHUNK = 4 << 20
_FRAMES_KEPT = 64
_MAX_FRAME = 1 << 16
_STREAM_ID = b"\xff\x06\x00\x00sNaPpY"
_KINDS = {b"KDUMP   ": "a compressed kdump", b"DISKDUMP": "a diskdump",
          b"PK\x03\x04": "a ZIP archive", b"\x1f\x8b": "compressed by gzip",
          b"\x28\xb5\x2f\xfd": "compressed by zstd", b"\xfd7zXZ": "compressed by xz",
          b"PAGEDUMP": "a crash dump of 32-bit Windows",
          **dict.fromkeys((b"hibr", b"HIBR", b"wake", b"WAKE", b"RSTR"),
                          "a hibernation file of Windows")}  # fmt: skip
_MACHINES = {0x8664: "x86-64", 0xAA64: "arm64", 0x14C: "x86"}  # IMAGE_FILE_MACHINE_*
_PAGE = 4096
_DUMP_HEADER = 2 * _PAGE
_MAX_RUNS = 1 << 19  # of pages in a bitmap; about 100 bytes each
_MAX_BITMAP = 64 << 20  # 2 TiB of memory


class Bytes(Protocol):
    """What an image is read from: `evidence_store.item.RandomAccess`."""

    size: int

    def pread(self, length: int, offset: int) -> bytes:
        """Return bytes; fewer than `length` only at the end."""


@dataclass(frozen=True)
class Range:
    """Physical addresses [start, end) at `offset` of `source`."""

    start: int
    end: int
    offset: int
    source: Bytes


@dataclass(frozen=True)
class Problem:
    """Something that the image says and is not so. `offset`: in the file, bytes."""

    offset: int
    length: int
    reason: str


class Ram:
    """Physical memory. Not for use by several threads at once.

    Attributes:
        format: "raw", "lime", "avml", "elf" or "crash".
        ranges: ascending, disjoint.
        problems: what the file says and does not hold.
        machine: of an ELF core or crash dump: "x86-64", "arm64", "machine N"; else "".
        page_table: physical, of the top page table that a crash dump names; else None.
    """

    def __init__(
        self, kind: str, ranges: list[Range], problems: list[Problem], machine: str = "",
        page_table: int | None = None,
    ):  # fmt: skip
        self.format = kind
        self.page_table = page_table
        self.problems = problems
        self.machine = machine
        self.ranges = self._disjoint(ranges)
        self._starts = [r.start for r in self.ranges]

    def _disjoint(self, ranges: list[Range]) -> list[Range]:
        """Return them sorted; where two overlap, what came first in the file holds."""
        if len(ranges) < 2 or all(a.end <= b.start for a, b in itertools.pairwise(ranges)):
            return ranges
        order = {id(r): n for n, r in enumerate(ranges)}
        kept: list[Range] = []
        overlaps = 0
        for new in sorted(ranges, key=lambda r: (r.start, order[id(r)])):
            start = new.start
            if kept and start < kept[-1].end:
                overlaps += 1
                start = kept[-1].end
            if start < new.end:
                kept.append(Range(start, new.end, new.offset + start - new.start, new.source))
        if overlaps:
            why = f"{overlaps} ranges overlap others; of each address the lower range is read"
            self.problems.append(Problem(0, 0, why))
        return kept

    @property
    def size(self) -> int:
        """Bytes of memory that the image holds."""
        return sum(r.end - r.start for r in self.ranges)

    @property
    def end(self) -> int:
        """One past the highest address."""
        return self.ranges[-1].end if self.ranges else 0

    def _find(self, address: int) -> Range | None:
        at = bisect_right(self._starts, address) - 1
        if at >= 0 and address < self.ranges[at].end:
            return self.ranges[at]
        return None

    def holds(self, address: int, length: int = 1) -> bool:
        """Return whether all these bytes are in the image."""
        end = address + length
        while address < end:
            found = self._find(address)
            if found is None:
                return False
            address = found.end
        return length > 0

    def read(self, address: int, length: int) -> bytes | None:
        """Return bytes of physical memory, None if the image does not hold all of them."""
        parts = []
        while length > 0:
            found = self._find(address)
            if found is None:
                return None
            want = min(length, found.end - address)
            data = found.source.pread(want, found.offset + address - found.start)
            if len(data) != want:
                return None
            parts.append(data)
            address += want
            length -= want
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def offset_of(self, address: int) -> int | None:
        """Return where in the file an address lies; None if it does not, or is compressed there."""
        found = self._find(address)
        if found is None or isinstance(found.source, _Snappy):
            return None
        return found.offset + address - found.start

    def pieces(self, size: int = _CHUNK, overlap: int = 0) -> Iterator[tuple[int, int]]:
        """Yield (address, length) of all memory, in pieces of `size` and `overlap` bytes more.

        No piece starts in what is known to be zero because it is not stored.
        """
        for run in self.ranges:
            at = run.start
            while at < run.end:
                inner = run.offset + at - run.start
                hole = getattr(run.source, "zeros", lambda _offset: 0)(inner)
                if hole:
                    at += hole
                    continue
                yield at, min(size + overlap, run.end - at)
                at += size

    def find(self, needle: bytes) -> Iterator[int]:
        """Yield the addresses at which `needle` stands, ascending."""
        zeros = bytes(_CHUNK + len(needle) - 1)
        last = -1
        for address, length in self.pieces(_CHUNK, len(needle) - 1):
            data = self.read(address, length)
            if data is None or data == zeros:
                continue
            at = data.find(needle)
            while at >= 0:
                if address + at > last:
                    last = address + at
                    yield last
                at = data.find(needle, at + 1)


def open_ram(image: Bytes) -> Ram:
    """Return the memory that an image holds.

    Raises: UnsupportedImageError, with what to do, if it is of a format that is not read.
    """
    head = image.pread(64, 0)
    for magic, what in _KINDS.items():
        if head.startswith(magic):
            raise UnsupportedImageError(
                f"the memory image is {what}", hint="decompress or convert it, and ingest that"
            )
    if head[:4] == b"\x7fELF":
        return _elf(image, head)
    if head.startswith(b"PAGEDU64"):
        return _crash(image)
    if len(head) >= 4 and struct.unpack_from("<I", head)[0] in (_LIME, _AVML):
        return _lime(image)
    return Ram("raw", [Range(0, image.size, 0, image)] if image.size else [], [])


def _lime(image: Bytes) -> Ram:
    ranges: list[Range] = []
    problems: list[Problem] = []
    at, kind = 0, "lime"
    while at < image.size:
        rest = image.size - at
        head = image.pread(_HEADER.size, at)
        if len(head) < _HEADER.size:
            problems.append(Problem(at, rest, "the image ends inside the header of a range"))
            break
        magic, version, start, last, _ = _HEADER.unpack(head)
        if (magic, version) not in ((_LIME, 1), (_AVML, 2)) or last < start or last >= _PHYSICAL:
            why = "no header of a range, where one must be; nothing behind it can be placed"
            problems.append(Problem(at, rest, why))
            break
        if len(ranges) >= _MAX_RANGES:
            problems.append(Problem(at, rest, f"only {_MAX_RANGES} ranges are read"))
            break
        at += _HEADER.size
        end = last + 1
        if magic == _AVML:
            kind = "avml"
            frames = _Snappy(image, at, end - start, problems)
            if frames.size:
                ranges.append(Range(start, start + min(frames.size, end - start), 0, frames))
            at = frames.end
            continue
        held = min(end - start, image.size - at)
        if held < end - start:
            why = f"the image ends {end - start - held} bytes before the range {start:#x} does"
            problems.append(Problem(image.size, 0, why))
        if held:
            ranges.append(Range(start, start + held, at, image))
        at += end - start
    return Ram(kind, ranges, problems)


class _Snappy:
    """Snappy frames as bytes that can be read at any place; each is decompressed when needed.

    Only where each frame starts is kept: 16 bytes for 64 KiB of memory.
    """

    def __init__(self, image: Bytes, at: int, expected: int, problems: list[Problem]) -> None:
        self._image = image
        self._starts, self._offsets = array("Q"), array("Q")
        self._recent: OrderedDict[int, bytes] = OrderedDict()
        self.size, begin = 0, at
        while self.size < expected:
            head = image.pread(14, at)
            if len(head) < 4:
                problems.append(Problem(at, 0, "the image ends inside a compressed range"))
                break
            kind, length = head[0], int.from_bytes(head[1:4], "little")
            if at + 4 + length > image.size:
                why = "the image ends inside a compressed block"
                problems.append(Problem(at, image.size - at, why))
                at = image.size
                break
            if kind in (0, 1):
                size = length - 4 if kind == 1 else _varint(head[8:14])
                if not 0 < size <= _MAX_FRAME:
                    problems.append(Problem(at, 0, "a compressed block of an impossible size"))
                    at = image.size
                    break
                self._starts.append(self.size)
                self._offsets.append(at)
                self.size += size
            elif kind < 0x80:
                problems.append(Problem(at, 0, "a compressed block of an unknown kind"))
                at = image.size
                break
            at += 4 + length
        if self.size >= expected:
            # u64: bytes of the frames, stated behind them.
            stated = image.pread(8, at)
            if len(stated) == 8 and int.from_bytes(stated, "little") == at - begin:
                at += 8
            else:
                why = "a compressed range is not followed by its length"
                problems.append(Problem(at, 0, why))
        self.end = at

    def pread(self, length: int, offset: int) -> bytes:
        """Return decompressed bytes; fewer where a block is damaged."""
        parts = []
        end = min(offset + length, self.size)
        while offset < end:
            number = bisect_right(self._starts, offset) - 1
            block = self._block(number)
            inner = offset - self._starts[number]
            part = block[inner : inner + end - offset]
            if not part:
                break
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def _block(self, number: int) -> bytes:
        if number in self._recent:
            self._recent.move_to_end(number)
            return self._recent[number]
        import cramjam

        at = self._offsets[number]
        length = int.from_bytes(self._image.pread(4, at)[1:4], "little")
        frame = self._image.pread(4 + length, at)
        try:
            # The framed decoder also checks the block's CRC-32C.
            block = bytes(cramjam.snappy.decompress(_STREAM_ID + frame, output_len=_MAX_FRAME))
        except cramjam.DecompressionError:
            block = b""
        self._recent[number] = block
        if len(self._recent) > _FRAMES_KEPT:
            self._recent.popitem(last=False)
        return block


def _varint(data: bytes) -> int:
    value = 0
    for n, byte in enumerate(data[:5]):
        value |= (byte & 0x7F) << (7 * n)
        if byte < 0x80:
            return value
    return -1


def _elf(image: Bytes, head: bytes) -> Ram:
    if len(head) < 64 or head[4:6] != b"\x02\x01":
        raise UnsupportedImageError(
            "the memory image is an ELF file, but not of a 64-bit little-endian machine",
            hint="32-bit kernels are not analysed",
        )
    machine, = struct.unpack_from("<H", head, 18)  # fmt: skip
    table, sections = struct.unpack_from("<QQ", head, 32)
    entry, count = struct.unpack_from("<HH", head, 54)
    if count == 0xFFFF:  # PN_XNUM: the number stands in the first section header
        extended = image.pread(64, sections)
        count = struct.unpack_from("<I", extended, 44)[0] if len(extended) == 64 else 0
    names = {_EM_X86_64: "x86-64", _EM_AARCH64: "arm64"}
    problems: list[Problem] = []
    ranges: list[Range] = []
    if entry != 56 or count > _MAX_RANGES:
        raise UnsupportedImageError("the program headers of the ELF image are damaged")
    loads = []
    for n in range(count):
        header = image.pread(56, table + n * 56)
        if len(header) < 56:
            problems.append(Problem(table, 0, "the image ends inside its program headers"))
            break
        kind, _, offset, _, physical, held, _, _ = struct.unpack("<IIQQQQQQ", header)
        if kind == 1 and held and physical != _ALL_ONES:
            loads.append((physical, offset, held))
    for physical, offset, held in loads:
        there = max(0, min(held, image.size - offset))
        if there < held:
            why = f"the image ends {held - there} bytes before the range {physical:#x} does"
            problems.append(Problem(min(offset, image.size), 0, why))
        if physical + there >= _PHYSICAL:
            problems.append(Problem(offset, held, f"a range at {physical:#x}, beyond any memory"))
        elif there:
            ranges.append(Range(physical, physical + there, offset, image))
    if not ranges:
        raise UnsupportedImageError("the ELF image holds no range of physical memory")
    return Ram("elf", ranges, problems, names.get(machine, f"machine {machine}"))


def _crash(image: Bytes) -> Ram:
    """A crash dump of 64-bit Windows: runs of pages in its header, or a bitmap of pages."""
    head = image.pread(_DUMP_HEADER, 0)
    if len(head) < _DUMP_HEADER:
        raise UnsupportedImageError("the crash dump ends inside its header")
    (kind,) = struct.unpack_from("<I", head, 0xF98)
    problems: list[Problem] = []
    if kind == 1:
        runs = _stated_runs(head, problems)
        first = _DUMP_HEADER
    elif kind in (5, 6):
        first, runs = _bitmap_runs(image, problems)
        if kind == 6:
            why = "the crash dump holds the kernel's memory only, none of processes"
            problems.append(Problem(0, 0, why))
    else:
        raise UnsupportedImageError(
            f"the crash dump is of type {kind}: not a full one, and without a bitmap of its pages",
            hint="a small dump holds no memory; take a complete or active one",
        )
    ranges: list[Range] = []
    at = first
    for page, pages in runs:
        start, size = page * _PAGE, pages * _PAGE
        held = max(0, min(size, image.size - at))
        if held < size:
            why = f"the image ends {size - held} bytes before the range {start:#x} does"
            problems.append(Problem(min(at + held, image.size), 0, why))
        if held:
            ranges.append(Range(start, start + held, at, image))
        at += size
        if at >= image.size and held < size:
            problems.append(Problem(image.size, 0, "what follows that range is not there either"))
            break
    if not ranges:
        raise UnsupportedImageError("the crash dump holds no page of physical memory")
    top, machine = struct.unpack_from("<Q", head, 0x10)[0], struct.unpack_from("<I", head, 0x30)[0]
    return Ram("crash", ranges, problems, _MACHINES.get(machine, f"machine {machine:#x}"),
               top & (_PHYSICAL - _PAGE))  # fmt: skip


def _stated_runs(head: bytes, problems: list[Problem]) -> list[tuple[int, int]]:
    """Return (first page, pages) of a full dump's header."""
    (count,) = struct.unpack_from("<I", head, 0x88)
    room = (0x348 - 0x98) // 16  # up to the context record
    if count > room:
        problems.append(Problem(0x88, 4, f"{count} runs of memory are stated; {room} have room"))
        count = room
    runs = []
    for index in range(count):
        page, pages = struct.unpack_from("<QQ", head, 0x98 + 16 * index)
        if not pages or page + pages > _PHYSICAL // _PAGE:
            why = f"run {index} of memory is impossible; nothing behind it can be placed"
            problems.append(Problem(0x98 + 16 * index, 16, why))
            break
        runs.append((page, pages))
    return runs


def _bitmap_runs(image: Bytes, problems: list[Problem]) -> tuple[int, list[tuple[int, int]]]:
    """Return where the pages begin in the file, and (first page, pages) of what the bitmap has."""
    head = image.pread(0x38, _DUMP_HEADER)
    if len(head) < 0x38 or head[:4] not in (b"SDMP", b"FDMP") or head[4:8] != b"DUMP":
        raise UnsupportedImageError("the bitmap of the crash dump's pages is not there")
    first, present, bits = struct.unpack_from("<QQQ", head, 0x20)
    length = min(-(-bits // 8), _MAX_BITMAP)
    bitmap = image.pread(length, _DUMP_HEADER + 0x38)
    if len(bitmap) < -(-bits // 8):
        why = f"the bitmap states {bits} pages and has {8 * len(bitmap)}, or more than are read"
        problems.append(Problem(_DUMP_HEADER, 0, why))
    runs: list[tuple[int, int]] = []
    begin: int | None = None
    total = 0
    for index, byte in enumerate(bitmap):
        # Most bytes go on with what the one before had.
        if (byte == 0 and begin is None) or (byte == 0xFF and begin is not None):
            continue
        for bit in range(8):
            page = index * 8 + bit
            if byte >> bit & 1:
                begin = page if begin is None else begin
            elif begin is not None:
                runs.append((begin, page - begin))
                total += page - begin
                begin = None
        if len(runs) >= _MAX_RUNS:
            problems.append(Problem(_DUMP_HEADER, 0, f"only {_MAX_RUNS} runs of pages are read"))
            begin = None
            break
    else:
        if begin is not None:
            runs.append((begin, 8 * len(bitmap) - begin))
            total += runs[-1][1]
        if total != present:
            why = f"the bitmap has {total} pages and its header states {present}"
            problems.append(Problem(_DUMP_HEADER + 0x28, 8, why))
    return first, runs
