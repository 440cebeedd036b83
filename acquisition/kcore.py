# SPDX-License-Identifier: Apache-2.0
"""Where a host's RAM stands in its /proc/kcore, and the LiME image made of it. Pure.

/proc/iomem says which physical ranges are RAM; the program headers of kcore say where each physical
byte can be read. Two kinds of segment show the same memory: the direct map, and the kernel's own
text at another address. Physical addresses are those that the kernel states (`p_paddr`), never
computed from constants: with address randomisation these are wrong.

A range that kcore does not show is `missing`: it is left out of the image, not filled with zeros.

Source: Linux fs/proc/kcore.c, kernel/resource.c (an end in iomem is inclusive),
arch/x86/include/asm/page_64.h; ELF-64 object file format 1.5; LiME, doc/README (format v1).
"""

from __future__ import annotations

import hashlib
import re
import struct
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from acquisition.errors import AcquisitionError

PAGE = 4096
HEAD_BYTES = 16 * PAGE  # of kcore: ELF header, program headers, notes
LIME_MAGIC, LIME_VERSION, LIME_HEADER = 0x4C694D45, 1, struct.Struct("<IIQQQ")

_RAM = re.compile(r"(\s*)([0-9a-f]{1,16})-([0-9a-f]{1,16}) : System RAM(| \([a-z ]+\))")
_KERNEL = re.compile(r"\s*([0-9a-f]{1,16})-([0-9a-f]{1,16}) : Kernel (?:code|rodata)")
_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_MACHINES = {62: "x86_64", 183: "aarch64"}
_PT_LOAD, _PT_NOTE = 1, 4
_NO_ADDRESS = (1 << 64) - 1
_MOST = 1 << 52  # bytes: physical addresses end there
_MOST_RANGES = 4096

Range = tuple[int, int]  # start, end (exclusive), physical


class KcoreError(AcquisitionError):
    """What the host shows as its kcore or iomem cannot be used."""


@dataclass(frozen=True)
class Load:
    """One PT_LOAD segment: `size` bytes of memory at `paddr`, to be read at `offset`."""

    vaddr: int
    paddr: int
    offset: int
    size: int


@dataclass(frozen=True)
class Head:
    """What the first bytes of kcore say."""

    machine: str
    loads: tuple[Load, ...]
    vmcoreinfo: Mapping[str, str]


@dataclass(frozen=True)
class Piece:
    """A range of RAM, and where in kcore it begins. In bytes; `end` is exclusive."""

    start: int
    end: int
    offset: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start


@dataclass(frozen=True)
class Plan:
    """What will be read, in the order of physical addresses.

    Attributes:
        pieces: ascending, disjoint, each in multiples of a page.
        missing: RAM that kcore does not show.
        kernel: where the kernel's code and read-only data lie, to read again.
        notes: what was assumed, in words.
    """

    pieces: tuple[Piece, ...]
    missing: tuple[Range, ...] = ()
    kernel: tuple[Range, ...] = ()
    notes: tuple[str, ...] = ()
    machine: str = ""
    levels: int = 0

    @property
    def ram(self) -> int:
        """Bytes of RAM, missing ones too."""
        return self.readable + sum(end - start for start, end in self.missing)

    @property
    def readable(self) -> int:
        """Bytes of RAM that kcore shows."""
        return sum(piece.size for piece in self.pieces)

    @property
    def digest(self) -> str:
        """SHA-256 of the layout: a reboot of a host with other addresses is another one."""
        text = ";".join(f"{p.start:x}-{p.end:x}@{p.offset:x}" for p in self.pieces)
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def image(self) -> Layout:
        """The image that holds it."""
        return Layout(self.pieces)


def parse_head(raw: bytes) -> Head:
    """Return what the head of kcore says. Raises: KcoreError."""
    if len(raw) < _EHDR.size or raw[:4] != b"\x7fELF":
        raise KcoreError(
            "what the host shows as /proc/kcore is no ELF file",
            hint="a container or a hardened kernel: no memory by this way",
        )
    if raw[4:6] != b"\x02\x01":
        raise KcoreError("kcore is not 64-bit little-endian: not supported")
    _, kind, machine, _, _, phoff, _, _, _, phentsize, phnum, *_ = _EHDR.unpack_from(raw)
    if kind != 4 or phentsize != _PHDR.size:
        raise KcoreError("kcore is malformed: not a core file with 56-byte program headers")
    if phoff + phnum * phentsize > len(raw):
        raise KcoreError(f"kcore has {phnum} program headers, more than its first {len(raw)} bytes")
    loads: list[Load] = []
    info: dict[str, str] = {}
    for index in range(phnum):
        kind, _, offset, vaddr, paddr, size, _, _ = _PHDR.unpack_from(
            raw, phoff + index * phentsize
        )
        if kind == _PT_LOAD and paddr != _NO_ADDRESS and size:
            if paddr + size > _MOST or offset + size >= 1 << 63:
                raise KcoreError("kcore states impossible addresses: the host may be lying")
            loads.append(Load(vaddr, paddr, offset, size))
        elif kind == _PT_NOTE:
            info |= _vmcoreinfo(raw[offset : offset + size])
    return Head(_MACHINES.get(machine, f"machine {machine}"), tuple(loads), info)


def _vmcoreinfo(notes: bytes) -> dict[str, str]:
    at = 0
    while at + 12 <= len(notes):
        namesz, descsz, _ = struct.unpack_from("<III", notes, at)
        name = notes[at + 12 : at + 12 + namesz].rstrip(b"\0")
        at += 12 + (namesz + 3) // 4 * 4
        if name == b"VMCOREINFO":
            text = notes[at : at + descsz].decode("ascii", "replace")
            return dict(line.split("=", 1) for line in text.split("\n") if "=" in line)
        at += (descsz + 3) // 4 * 4
    return {}


def parse_iomem(text: str) -> tuple[list[Range], list[Range]]:
    r"""Return ranges of RAM, merged and cut to whole pages, and where the kernel's code lies.

    Empty where the kernel hides addresses (all of them read as zero). Raises: KcoreError.

    >>> parse_iomem("00001000-0009fbff : System RAM\n")[0] == [(0x1000, 0x9f000)]
    True
    """
    found, kernel = [], []
    for line in text.splitlines():
        if match := _RAM.fullmatch(line):
            if match[1] and not match[4]:
                continue  # a part of what stands above it
            found.append((int(match[2], 16), int(match[3], 16) + 1))
        elif match := _KERNEL.fullmatch(line):
            kernel.append((int(match[1], 16), int(match[2], 16) + 1))
    found = [r for r in found if r != (0, 1)]
    if any(end > _MOST or start >= end for start, end in found) or len(found) > _MOST_RANGES:
        raise KcoreError("iomem states impossible ranges: the host may be lying")
    return list(_pages(_merged(found))), [r for r in _merged(kernel) if r != (0, 1)]


def _merged(ranges: Iterable[Range]) -> Iterator[Range]:
    last: Range | None = None
    for start, end in sorted(ranges):
        if last and start <= last[1]:
            last = last[0], max(last[1], end)
            continue
        if last:
            yield last
        last = start, end
    if last:
        yield last


def _pages(ranges: Iterable[Range]) -> Iterator[Range]:
    for start, end in ranges:
        first, last = -(-start // PAGE) * PAGE, end // PAGE * PAGE
        if first < last:
            yield first, last


def plan(head: Head, iomem: str) -> Plan:
    """Return how all RAM is read. Raises: KcoreError if none of it can be."""
    ram, kernel = parse_iomem(iomem)
    notes = []
    if not ram:
        ram = _direct(head.loads)
        notes.append("iomem is hidden: ranges are those that kcore lists")
    by_delta: defaultdict[int, list[Load]] = defaultdict(list)
    for load in head.loads:
        by_delta[load.vaddr - load.paddr].append(load)
    covered = {d: sum(p.size for p in _cover(ram, loads)[0]) for d, loads in by_delta.items()}
    best = max(covered, key=lambda d: covered[d], default=None)
    if best is None or not covered[best]:
        raise KcoreError(
            "kcore states no physical addresses of RAM",
            hint="a kernel older than 4.19 or a container; the next way is --avml",
        )
    pieces, missing = _cover(ram, by_delta[best])
    levels = 0
    if head.machine == "x86_64":
        levels = 5 if head.vmcoreinfo.get("NUMBER(pgtable_l5_enabled)") == "1" else 4
    return Plan(tuple(pieces), tuple(missing), tuple(kernel), tuple(notes), head.machine, levels)


def _direct(loads: Iterable[Load]) -> list[Range]:
    """RAM as kcore alone has it: the mapping that shows the most of it."""
    sizes: defaultdict[int, list[Range]] = defaultdict(list)
    for load in loads:
        sizes[load.vaddr - load.paddr].append((load.paddr, load.paddr + load.size))
    best = max(sizes.values(), key=lambda rs: sum(b - a for a, b in rs), default=[])
    return list(_pages(_merged(best)))


def _cover(ram: Iterable[Range], loads: Iterable[Load]) -> tuple[list[Piece], list[Range]]:
    """Cut ranges by the segments that show them; return what is shown and what is not."""
    segments = sorted(loads, key=lambda load: load.paddr)
    pieces: list[Piece] = []
    missing: list[Range] = []
    for start, end in ram:
        at = start
        for load in segments:
            low, high = max(at, load.paddr), min(end, load.paddr + load.size)
            low, high = -(-low // PAGE) * PAGE, high // PAGE * PAGE
            if low >= high:
                continue
            if low > at:
                missing.append((at, low))
            pieces.append(Piece(low, high, load.offset + low - load.paddr))
            at = high
        if at < end:
            missing.append((at, end))
    return pieces, missing


@dataclass(frozen=True)
class Layout:
    """A LiME image: for each piece a header of 32 bytes, then its bytes. Known before reading."""

    pieces: tuple[Piece, ...]

    @cached_property
    def starts(self) -> list[int]:
        """Where each header stands."""
        found, at = [], 0
        for piece in self.pieces:
            found.append(at)
            at += LIME_HEADER.size + piece.size
        return found

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(LIME_HEADER.size + piece.size for piece in self.pieces)

    def header(self, piece: Piece) -> bytes:
        """Return the header of a piece; its end is inclusive."""
        return LIME_HEADER.pack(LIME_MAGIC, LIME_VERSION, piece.start, piece.end - 1, 0)

    def parts(self, offset: int, length: int) -> Iterator[tuple[int, int, bytes | Range]]:
        """Yield what stands in a span of the image, as (from, to, what), relative to `offset`.

        What: bytes of a header, or the physical range to read.
        """
        end = offset + length
        index = max(0, bisect_right(self.starts, offset) - 1)
        while index < len(self.pieces) and self.starts[index] < end:
            piece, at = self.pieces[index], self.starts[index]
            body = at + LIME_HEADER.size
            low, high = max(at, offset), min(body, end)
            if low < high:
                yield low - offset, high - offset, self.header(piece)[low - at : high - at]
            low, high = max(body, offset), min(body + piece.size, end)
            if low < high:
                yield low - offset, high - offset, (
                    piece.start + low - body, piece.start + high - body
                )  # fmt: skip
            index += 1

    def kcore_offset(self, physical: int) -> int:
        """Return where in kcore a physical address is read. Raises: ValueError."""
        piece = self._piece(physical)
        return piece.offset + physical - piece.start

    def image_offset(self, physical: int) -> int:
        """Return where in the image a physical address stands. Raises: ValueError."""
        piece = self._piece(physical)
        return self.starts[self.pieces.index(piece)] + LIME_HEADER.size + physical - piece.start

    def piece_end(self, physical: int) -> int:
        """Return the end of the piece that holds a physical address. Raises: ValueError."""
        return self._piece(physical).end

    def _piece(self, physical: int) -> Piece:
        index = bisect_right([p.start for p in self.pieces], physical) - 1
        if index < 0 or physical >= self.pieces[index].end:
            raise ValueError(f"{physical:#x} is not in the image")
        return self.pieces[index]
