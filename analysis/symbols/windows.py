# SPDX-License-Identifier: Apache-2.0
"""Where a Windows kernel lies in a memory image, and the PDB that has its symbols.

The image alone decides: a page that is a top page table (one entry leads back to itself) maps
KUSER_SHARED_DATA and an executable whose debug directory leads to the CodeView record of a kernel.
Records are all over memory (caches, updates); only the one that the page tables lead to counts.

Source: PE format, https://learn.microsoft.com/windows/win32/debug/pe-format; CodeView record RSDS
and the paths of symbol servers, https://learn.microsoft.com/windows/win32/debug/symbol-servers;
KUSER_SHARED_DATA at 0xFFFFF780'00000000, ntddk.h (NtMajorVersion, NtBuildNumber); page tables,
Intel SDM volume 3, 4.5.
"""

from __future__ import annotations

import re
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from analysis.errors import SymbolsError
from analysis.ram import Ram

SERVER = "https://msdl.microsoft.com/download/symbols"
"""Microsoft's public symbol server. It is named to people, and never asked."""

KERNELS = ("ntkrnlmp.pdb", "ntoskrnl.pdb", "ntkrnlpa.pdb", "ntkrpamp.pdb")
USES = {"tcpip.pdb": "windows.netstat", "conhost.pdb": "windows.consoles, windows.cmdscan",
        "cryptdll.pdb": "windows.malware.skeleton_key_check"}  # fmt: skip
"""PDBs of other images that plugins ask for, and which."""

SHARED = 0xFFFFF780_00000000
_KERNEL_FROM, _KERNEL_TO = 0xFFFFF800_00000000, 0xFFFFF880_00000000
PDB_NAME = re.compile(r"[a-z0-9_.+-]{1,60}\.pdb")
_RECORD = re.compile(rb"RSDS(.{16})(.{4})([a-zA-Z0-9_.+-]{1,60}\.[pP][dD][bB])\0", re.DOTALL)
_FRAME = 0x000F_FFFF_FFFF_F000
_PAGE = 4096
_MAX_READS = 1 << 22  # of page tables, to find a kernel: hostile ones have no end
_MAX_RECORDS = 256
_MAX_TOPS = 256
_MAX_IMAGE = 64 << 20
_AMD64 = 0x8664
_OTHERS = {0x14C: "32-bit x86", 0xAA64: "ARM64", 0x1C4: "32-bit ARM"}


@dataclass(frozen=True, order=True)
class Pdb:
    """A file of symbols by what names it at a symbol server.

    Attributes:
        name: of the file.
        guid: 32 hex digits, upper case.
        age: how often it was changed.
    """

    name: str
    guid: str
    age: int

    @property
    def key(self) -> str:
        """GUID and age as a symbol server writes them."""
        return f"{self.guid}{self.age:x}"

    @property
    def path(self) -> str:
        """Below the root of a symbol server."""
        return f"{self.name}/{self.key}/{self.name}"

    @property
    def url(self) -> str:
        """Where Microsoft offers it."""
        return f"{SERVER}/{self.path}"


@dataclass(frozen=True)
class Record:
    """A CodeView record in memory. `address`: physical."""

    address: int
    pdb: Pdb


@dataclass(frozen=True)
class WindowsKernel:
    """The kernel that runs in an image.

    Attributes:
        pdb: its symbols.
        base: virtual address of its image, not signed.
        size: of its image, bytes.
        address: physical, of the first page of its image.
        page_table: physical, of the top page table.
        version: as "10.0 build 19041"; "" if KUSER_SHARED_DATA says nothing possible.
    """

    pdb: Pdb
    base: int
    size: int
    address: int
    page_table: int
    version: str


def guid(raw: bytes) -> str:
    """Return a GUID as 32 hex digits, as symbol servers write it.

    >>> guid(bytes(range(16)))
    '030201000504070608090A0B0C0D0E0F'
    """
    first, second, third = struct.unpack_from("<IHH", raw)
    return f"{first:08X}{second:04X}{third:04X}{raw[8:16].hex().upper()}"


def records(ram: Ram, names: tuple[str, ...] = (*KERNELS, *USES)) -> list[Record]:
    """Return the CodeView records of these PDBs, ascending, 256 at most."""
    found: list[Record] = []
    for at in ram.find(b"RSDS"):
        data = ram.read(at, min(96, ram.end - at)) or b""
        match = _RECORD.match(data)
        if match and (name := match[3].decode().lower()) in names:
            pdb = Pdb(name, guid(match[1]), int.from_bytes(match[2], "little"))
            found.append(Record(at, pdb))
            if len(found) >= _MAX_RECORDS:
                break
    return found


class Tables:
    """Page tables of four levels, read at need. Only what the processor itself would take.

    Attributes:
        top: physical address of the top one.
        left: how many reads may still be done; shared by those who are given the same list.
    """

    def __init__(self, ram: Ram, top: int, left: list[int] | None = None) -> None:
        self._ram = ram
        self.top = top
        self.left = left if left is not None else [_MAX_READS]

    def _spend(self) -> None:
        self.left[0] -= 1
        if self.left[0] < 0:
            raise SymbolsError("its page tables have no end")

    def physical(self, address: int) -> int | None:
        """Return the physical address of a virtual one; None if it is not mapped."""
        self._spend()
        table = self.top
        for shift in (39, 30, 21, 12):
            raw = self._ram.read(table + (address >> shift & 511) * 8, 8)
            entry = int.from_bytes(raw, "little") if raw is not None else 0
            if not entry & 1:
                return None
            if shift == 12 or (shift < 39 and entry & 0x80):
                inner = (1 << shift) - 1
                return (entry & _FRAME & ~inner) | (address & inner)
            table = entry & _FRAME
        return None

    def read(self, address: int, length: int) -> bytes | None:
        """Return bytes at a virtual address; None if not all of them are there."""
        parts = []
        while length > 0:
            size = min(length, _PAGE - address % _PAGE)
            at = self.physical(address)
            data = self._ram.read(at, size) if at is not None else None
            if data is None:
                return None
            parts.append(data)
            address += size
            length -= size
        return b"".join(parts)

    def mappings(self, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """Yield (virtual, physical, bytes) of what is mapped in [first, last).

        Raises: SymbolsError after more reads than may be done.
        """
        yield from self._below(self.top, 39, first & ~((1 << 48) - 1), first, last)

    def _below(
        self, table: int, shift: int, base: int, first: int, last: int
    ) -> Iterator[tuple[int, int, int]]:
        self._spend()
        data = self._ram.read(table, _PAGE)
        if data is None:
            return
        entries = array("Q", data)
        size = 1 << shift
        low = max(0, (first - base) >> shift)
        high = min(512, -(-(last - base) >> shift))
        for index in range(low, high):
            entry = entries[index]
            if not entry & 1:
                continue
            at = base + index * size
            if shift == 12 or (shift < 39 and entry & 0x80):
                yield at, entry & _FRAME & ~(size - 1), size
            else:
                yield from self._below(entry & _FRAME, shift - 9, at, first, last)


def tops(ram: Ram) -> Iterator[int]:
    """Yield physical addresses of pages that have exactly one valid entry that leads to themselves.

    Windows maps its page tables by such an entry, in the upper half. That of a crash dump's header
    comes first; then ascending, since that of the System process is made at boot.
    """
    if ram.page_table is not None:
        yield ram.page_table
    for start, length in ram.pieces():
        data = ram.read(start, length)
        if data is None:
            continue
        for inner in range(-start % _PAGE, length - _PAGE + 1, _PAGE):
            if _leads_to_itself(data, inner, start + inner):
                yield start + inner


def _leads_to_itself(data: bytes, at: int, address: int) -> bool:
    # Bits 16 to 47 stand in bytes 2 to 5 of the entry; find is much faster than unpacking.
    needle = (address >> 16).to_bytes(4, "little")
    place = data.find(needle, at + 2048 + 2, at + _PAGE)
    found = 0
    while place >= 0:
        if (place - at) % 8 == 2:
            (entry,) = struct.unpack_from("<Q", data, place - 2)
            if entry & _FRAME == address and entry & 0x81 == 1:
                found += 1
        place = data.find(needle, place + 1, at + _PAGE)
    return found == 1


def find_kernel(ram: Ram, known: list[Record]) -> WindowsKernel:
    """Return the Windows kernel that runs in an image.

    Args:
        ram: the memory.
        known: `records` of it.

    Raises: SymbolsError, saying what was found and what was not; of memory that has no kernel's
    record, that alone.
    """
    candidates = {r.address: r.pdb for r in known if r.pdb.name in KERNELS}
    if not candidates:
        raise SymbolsError("no CodeView record of a Windows kernel")
    if ram.machine not in ("", "x86-64"):
        raise SymbolsError(f"Windows on {ram.machine}: only x86-64 is analysed")
    reasons: list[str] = []
    tried, left = 0, [_MAX_READS]
    for top in tops(ram):
        tables = Tables(ram, top, left)
        try:
            if tables.physical(SHARED) is None:
                continue
            tried += 1
            if found := _mapped(tables, candidates):
                return found
        except SymbolsError as e:
            reasons.append(str(e))
            break
        if tried >= _MAX_TOPS:
            reasons.append(f"only {tried} page tables were tried")
            break
    said = ", ".join(f"{pdb.name} {pdb.key}" for pdb in sorted(set(candidates.values()))[:5])
    others = _other_machines(ram, candidates)
    why = f"it is of {others}: only x86-64 is analysed" if others else (
        f"none of {tried} page tables of x86-64 maps it (4 levels; a pagefile is not read)"
    )  # fmt: skip
    raise SymbolsError("; ".join([f"a Windows kernel ({said}), and {why}", *reasons[:3]]))


def _mapped(tables: Tables, candidates: dict[int, Pdb]) -> WindowsKernel | None:
    """Return the kernel whose CodeView record is mapped where its own headers say."""
    for virtual, physical, size in tables.mappings(_KERNEL_FROM, _KERNEL_TO):
        for address, pdb in candidates.items():
            if physical <= address < physical + size:
                record = virtual + address - physical
                if found := _image(tables, record, pdb):
                    return found
    return None


def _image(tables: Tables, record: int, pdb: Pdb) -> WindowsKernel | None:
    """Return the kernel whose headers lead to the record, looked for page by page before it."""
    missing = 0
    for base in range(record & -_PAGE, max(_KERNEL_FROM, record - _MAX_IMAGE), -_PAGE):
        magic = tables.read(base, 2)
        if magic is None:
            missing += 1
            if missing > 4096:
                return None
        elif magic == b"MZ" and (size := _leads_to(tables, base, record)):
            at = tables.physical(base)
            assert at is not None  # noqa: S101
            return WindowsKernel(pdb, base, size, at, tables.top, _version(tables))
    return None


def _leads_to(tables: Tables, base: int, record: int) -> int:
    """Return the size of the executable at `base` if a debug entry of it is `record`, else 0."""
    head = tables.read(base, 0x400)
    if head is None:
        return 0
    (at,) = struct.unpack_from("<I", head, 0x3C)
    if not 0x40 <= at <= 0x400 - 24 - 0xA8 - 8 or head[at : at + 4] != b"PE\0\0":
        return 0
    machine, magic = (struct.unpack_from("<H", head, at + n)[0] for n in (4, 24))
    (size,) = struct.unpack_from("<I", head, at + 24 + 56)
    if machine != _AMD64 or magic != 0x20B or not 0 < size <= _MAX_IMAGE:
        return 0
    directory, length = struct.unpack_from("<II", head, at + 24 + 112 + 6 * 8)
    if not 0 < directory < size or not 28 <= length <= 28 * 64:
        return 0
    entries = tables.read(base + directory, length - length % 28)
    for offset in range(0, len(entries or b""), 28):
        kind, _, where = struct.unpack_from("<III", entries or b"", offset + 12)
        if kind == 2 and base + where == record:
            return int(size)
    return 0


def _version(tables: Tables) -> str:
    shared = tables.read(SHARED + 0x260, 0x10)
    if shared is None:
        return ""
    build, _, _, major = struct.unpack("<IIII", shared)
    minor = tables.read(SHARED + 0x270, 4)
    if not 5 <= major <= 20 or minor is None:
        return ""
    # Before Windows 10 the build stands elsewhere and this field is reserved.
    number = f" build {build & 0xFFFF}" if major >= 10 else ""
    return f"{major}.{int.from_bytes(minor, 'little')}{number}"


def _other_machines(ram: Ram, candidates: dict[int, Pdb]) -> str:
    """Return of what other machine a kernel is whose header is below its record, "" if of none."""
    for address, pdb in candidates.items():
        if pdb.name in ("ntkrnlpa.pdb", "ntkrpamp.pdb"):
            return _OTHERS[0x14C]
        for base in range(address & -_PAGE, max(-1, address - _MAX_IMAGE), -_PAGE):
            head = ram.read(base, 0x400) or b""
            if head[:2] != b"MZ":
                continue
            (at,) = struct.unpack_from("<I", head, 0x3C)
            if at <= 0x3F0 and head[at : at + 4] == b"PE\0\0":
                (machine,) = struct.unpack_from("<H", head, at + 4)
                if machine in _OTHERS:
                    return _OTHERS[machine]
                break
    return ""
