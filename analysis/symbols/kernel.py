# SPDX-License-Identifier: Apache-2.0
"""Where a Linux kernel lies in a memory image, and its own tables of names: VMCOREINFO, kallsyms.

Source: https://docs.kernel.org/admin-guide/kdump/vmcoreinfo.html; kernel/kallsyms.c and
scripts/kallsyms.c (kernel 6.1); arch/x86/include/asm/page_64_types.h (__START_KERNEL_map);
drivers/char/random.c (sysctl_bootid).
"""

from __future__ import annotations

import re
import struct
import uuid
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from analysis.errors import SymbolsError
from analysis.ram import Ram

KERNEL_MAP = 0xFFFFFFFF80000000  # link address of physical 0, on x86-64
_NOTE = b"VMCOREINFO\0"
_MAX_NOTE = 64 << 10
_MAX_SYMBOLS = 2_000_000
_MAX_NAMES = 64 << 20
_MAX_BLOB = 64 << 20
_MAX_NAME = 1024  # KSYM_NAME_LEN is 512
_MARKERS_WITHIN = 1 << 20
_BANNER = re.compile(rb"Linux version [1-9]\.[0-9]{1,3}[^\0\n]{10,500}\n\0")
_LINE = re.compile(r"([0-9a-f]{1,16}) ([A-Za-z]) ([^\s]{1,1024})")


@dataclass(frozen=True)
class Kernel:
    """A kernel that a VMCOREINFO note describes.

    Attributes:
        address: physical, of the note.
        values: its lines, key -> value.
    """

    address: int
    values: Mapping[str, str] = field(repr=False)

    @property
    def release(self) -> str:
        """As `uname -r`."""
        return self.values["OSRELEASE"]

    @property
    def build_id(self) -> str:
        """Of vmlinux, hex; "" on kernels before 5.9."""
        return self.values.get("BUILD-ID", "")

    @property
    def machine(self) -> str:
        """What it runs on: x86-64, arm64, riscv64 or unknown."""
        if "NUMBER(VA_BITS)" in self.values or "NUMBER(kimage_voffset)" in self.values:
            return "arm64" if "NUMBER(kimage_voffset)" in self.values else "riscv64"
        return "x86-64" if "NUMBER(phys_base)" in self.values else "unknown"

    @property
    def offset(self) -> int:
        """KASLR shift of the kernel's text, bytes."""
        return int(self.values["KERNELOFFSET"], 16)

    @property
    def phys_base(self) -> int:
        """What to add to an address less `KERNEL_MAP` to have its physical address."""
        return int(self.values["NUMBER(phys_base)"])

    @property
    def levels(self) -> int:
        """Of page tables: 4 or 5."""
        return 5 if self.values.get("NUMBER(pgtable_l5_enabled)", "0") not in ("0", "n") else 4

    def symbol(self, name: str) -> int | None:
        """Return the run-time address of a symbol that the note names."""
        text = self.values.get(f"SYMBOL({name})")
        return int(text, 16) if text else None

    def physical(self, address: int) -> int:
        """Return the physical address of an address in the kernel's image."""
        return address - KERNEL_MAP + self.phys_base


def parse_note(text: bytes) -> dict[str, str] | None:
    """Return the lines of a VMCOREINFO note, None if these bytes are none."""
    if not text.startswith(b"OSRELEASE="):
        return None
    values: dict[str, str] = {}
    for line in text.split(b"\0")[0].decode("ascii", "replace").split("\n"):
        key, equals, value = line.partition("=")
        if equals and len(line) < 512 and line.isascii():
            values.setdefault(key, value.strip())
    for key, kind in (("KERNELOFFSET", 16), ("NUMBER(phys_base)", 10)):
        try:
            int(values.get(key, "0"), kind)
        except ValueError:
            return None
    try:
        for key, value in values.items():
            if key.startswith("SYMBOL("):
                int(value, 16)
    except ValueError:
        return None
    return values


def kernels(ram: Ram) -> Iterator[Kernel]:
    """Yield what looks like a kernel's VMCOREINFO note, ascending. False ones are among them."""
    for at in ram.find(_NOTE):
        head = ram.read(at - 12, 12) if at >= 12 else None
        if head is None:
            continue
        name_size, size, _ = struct.unpack("<III", head)
        if name_size != len(_NOTE) or not 0 < size <= _MAX_NOTE:
            continue
        text = ram.read(at + 12, size)
        if text is not None and (values := parse_note(text)):
            yield Kernel(at, values)


def banners(ram: Ram, most: int = 8) -> list[tuple[int, str]]:
    """Return (address, text) of what looks like `linux_banner`, for a message."""
    found: list[tuple[int, str]] = []
    for at in ram.find(b"Linux version "):
        data = ram.read(at, min(600, ram.end - at)) or b""
        if match := _BANNER.match(data):
            text = match[0][:-2].decode("ascii", "backslashreplace")
            if all(text != known for _, known in found):
                found.append((at, text))
        if len(found) >= most:
            break
    return found


@dataclass
class Names:
    """Symbols of a kernel at run-time addresses: (type letter, address) by name, best first."""

    symbols: dict[str, tuple[str, int]] = field(default_factory=dict)

    def add(self, kind: str, address: int, name: str) -> None:
        """Take one; of several of one name a global one holds, else the first."""
        known = self.symbols.get(name)
        if known is None or (kind.isupper() and known[0].islower()):
            self.symbols[name] = (kind, address)

    def __getitem__(self, name: str) -> int:
        if (known := self.symbols.get(name)) is None:
            raise SymbolsError(f"the kernel's kallsyms do not name {name}")
        return known[1]

    def get(self, name: str) -> int | None:
        """Return the address of a symbol, None if it is not known."""
        known = self.symbols.get(name)
        return known[1] if known else None


class _Image:
    """Reads of the kernel's image by run-time address."""

    def __init__(self, ram: Ram, kernel: Kernel) -> None:
        self._ram = ram
        self._kernel = kernel

    def at(self, address: int, length: int, what: str) -> bytes:
        data = None
        if address >= KERNEL_MAP and (physical := self._kernel.physical(address)) >= 0:
            data = self._ram.read(physical, length)
        if data is None:
            raise SymbolsError(f"{what} does not lie in the image (at {address:#x})")
        return data

    def some(self, address: int, length: int, what: str) -> bytes:
        """As `at`; as much as there is, at least a page."""
        while length > 4096:
            try:
                return self.at(address, length, what)
            except SymbolsError:
                length //= 2
        return self.at(address, length, what)


def read_names(ram: Ram, kernel: Kernel) -> Names:
    """Return the symbols that the kernel keeps for itself (kallsyms), read from its memory.

    Raises: SymbolsError, saying what is missing.
    """
    image = _Image(ram, kernel)
    where: dict[str, int] = {}
    for name in ("num_syms", "names", "token_table", "token_index"):
        address = kernel.symbol(f"kallsyms_{name}")
        if address is None:
            raise SymbolsError(
                f"kernel {kernel.release} does not say where its kallsyms lie (it is older than "
                "6.0, or built without them)"
            )
        where[name] = address
    (count,) = struct.unpack("<I", image.at(where["num_syms"], 4, "kallsyms_num_syms"))
    if not 0 < count <= _MAX_SYMBOLS:
        raise SymbolsError(f"kallsyms claims {count} symbols")
    tokens = _tokens(image, where)
    addresses = _addresses(image, kernel, count)
    names = Names()
    starts = _decode(image, where["names"], tokens, addresses, names)
    _markers(image, where["names"], starts, names)
    for key in kernel.values:
        if key.startswith("SYMBOL(") and key.endswith(")"):
            address = kernel.symbol(key[7:-1])
            if address is not None and address >= KERNEL_MAP:
                names.add("d", address, key[7:-1])
    return names


def _tokens(image: _Image, where: Mapping[str, int]) -> list[str]:
    index = struct.unpack("<256H", image.at(where["token_index"], 512, "kallsyms_token_index"))
    table = image.some(where["token_table"], max(index) + _MAX_NAME, "kallsyms_token_table")
    tokens = []
    for start in index:
        end = table.find(b"\0", start)
        if end < 0:
            raise SymbolsError("a token of kallsyms has no end")
        tokens.append(table[start:end].decode("ascii", "backslashreplace"))
    return tokens


def _addresses(image: _Image, kernel: Kernel, count: int) -> list[int]:
    base_at, offsets_at = kernel.symbol("kallsyms_relative_base"), kernel.symbol("kallsyms_offsets")
    if base_at is not None and offsets_at is not None:
        (base,) = struct.unpack("<Q", image.at(base_at, 8, "kallsyms_relative_base"))
        offsets = array("i", image.at(offsets_at, 4 * count, "kallsyms_offsets"))
        # CONFIG_KALLSYMS_ABSOLUTE_PERCPU: what is not negative is absolute (a per-CPU offset).
        if sum(1 for o in offsets if o < 0) * 2 > count:
            return [o if o >= 0 else base - 1 - o for o in offsets]
        return [base + (o & 0xFFFFFFFF) for o in offsets]
    whole = kernel.symbol("kallsyms_addresses")
    if whole is None:
        raise SymbolsError("the kernel does not say where the addresses of its kallsyms lie")
    return list(array("Q", image.at(whole, 8 * count, "kallsyms_addresses")))


def _decode(
    image: _Image, at: int, tokens: list[str], addresses: list[int], names: Names
) -> list[int]:
    """Take all names; return where every 256th starts, for `_markers`."""
    blob = image.some(at, min(_MAX_NAMES, 64 * len(addresses) + 4096), "kallsyms_names")
    starts: list[int] = []
    place, end = 0, len(blob)
    for number, address in enumerate(addresses):
        if number % 256 == 0:
            starts.append(place)
        if place + 1 >= end:
            raise SymbolsError(f"the names of kallsyms end after {number} of {len(addresses)}")
        length = blob[place]
        place += 1
        if length & 0x80:  # ULEB128 since 6.1; before, no name was so long
            length = length & 0x7F | blob[place] << 7
            place += 1
        if not length or length > _MAX_NAME or place + length > end:
            raise SymbolsError(f"name {number} of kallsyms has an impossible length {length}")
        text = "".join([tokens[b] for b in blob[place : place + length]])
        place += length
        if len(text) < 2 or not text[0].isalpha() or len(text) > 4 * _MAX_NAME:
            raise SymbolsError(f"name {number} of kallsyms is no symbol: {text[:40]!r}")
        names.add(text[0], address, text[1:])
    return starts


def _markers(image: _Image, names_at: int, starts: list[int], names: Names) -> None:
    """Find `kallsyms_markers`, which nothing names: the offsets of every 256th name."""
    expected = struct.pack(f"<{min(len(starts), 16)}I", *starts[:16])
    if len(starts) < 2:
        return
    begin = names_at + starts[-1]
    data = image.some(begin, _MARKERS_WITHIN, "kallsyms_markers")
    found = data.find(expected)
    if found >= 0:
        names.add("r", begin + found, "kallsyms_markers")


def parse_kallsyms(text: bytes) -> Names:
    """Return the symbols of a copy of /proc/kallsyms; those of modules are left out.

    Raises: SymbolsError if addresses are hidden (kptr_restrict) or it is something else.
    """
    names = Names()
    taken = 0
    for raw in text.split(b"\n"):
        match = _LINE.fullmatch(raw.decode("ascii", "backslashreplace"))
        if match:
            taken += 1
            if taken > _MAX_SYMBOLS:
                raise SymbolsError(f"kallsyms of more than {_MAX_SYMBOLS} lines")
            names.add(match[2], int(match[1], 16), match[3])
    if not taken:
        raise SymbolsError("the copy of /proc/kallsyms has no line of a kernel symbol")
    if not any(address for _, address in names.symbols.values()):
        raise SymbolsError("the copy of /proc/kallsyms hides addresses (kptr_restrict)")
    return names


def read_btf(ram: Ram, kernel: Kernel, names: Names) -> bytes:
    """Return the kernel's BTF. Raises: SymbolsError if it has none in this image."""
    start, stop = names.get("__start_BTF"), names.get("__stop_BTF")
    if start is None or stop is None:
        raise SymbolsError(f"kernel {kernel.release} was built without CONFIG_DEBUG_INFO_BTF")
    if not 24 <= stop - start <= _MAX_BLOB:
        raise SymbolsError(f"the BTF of the kernel would be of {stop - start} bytes")
    return _Image(ram, kernel).at(start, stop - start, "the BTF of the kernel")


def read_banner(ram: Ram, kernel: Kernel, names: Names) -> bytes:
    """Return `linux_banner` with its newline and NUL. Raises: SymbolsError."""
    data = _Image(ram, kernel).at(names["linux_banner"], 600, "linux_banner")
    if not (match := _BANNER.match(data)):
        raise SymbolsError("linux_banner does not hold the kernel's version")
    return match[0]


def read_boot_id(ram: Ram, kernel: Kernel, address: int) -> str | None:
    """Return the boot id as /proc/sys/kernel/random/boot_id gives it.

    None if it does not lie in the image, or there is none: it is made when it is first asked for.

    Args:
        ram: the memory.
        kernel: of it.
        address: of `sysctl_bootid`, at run time.
    """
    physical = kernel.physical(address)
    data = ram.read(physical, 16) if physical >= 0 else None
    made = uuid.UUID(bytes=data) if data else None
    # The kernel makes a random one (version 4 of RFC 9562); other bytes are something else.
    return str(made) if made and made.version == 4 else None
