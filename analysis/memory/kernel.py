# SPDX-License-Identifier: LicenseRef-VSL-1.0
"""One kernel in volatility3: its memory, page tables, symbols; loaded once for all plugins.

Nothing is searched for: where it lies was read from the image when its symbols were made or found.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import volatility3.plugins
import volatility3.symbols
from volatility3 import framework
from volatility3.framework import constants, contexts, exceptions, interfaces
from volatility3.framework.layers import intel
from volatility3.framework.symbols import linux, windows
from volatility3.framework.symbols.linux import network
from volatility3.framework.symbols.windows import pdbutil

from analysis.ram import Ram

MODULE = "kernel"
_LAYER, _TABLE = "kernel_layer", "kernel_symbols"
_COMMON_TYPES = (
    "task_struct", "mm_struct", "vm_area_struct", "file", "dentry", "inode", "super_block", "mount",
    "module", "socket", "sock", "inet_sock", "net", "net_device", "cred", "pid_namespace", "kset",
)  # fmt: skip


class RamLayer(interfaces.layers.DataLayerInterface):  # type: ignore[misc]
    """Physical memory as volatility3 reads it; what is known to be zero is not scanned."""

    def __init__(self, context: Any, config_path: str, name: str, ram: Ram) -> None:
        super().__init__(context=context, config_path=config_path, name=name)
        self._ram = ram

    @property
    def minimum_address(self) -> int:
        """The lowest address."""
        return self._ram.ranges[0].start if self._ram.ranges else 0

    @property
    def maximum_address(self) -> int:
        """The highest address that is there."""
        return max(0, self._ram.end - 1)

    def is_valid(self, offset: int, length: int = 1) -> bool:
        """Whether all of it is in the image."""
        return self._ram.holds(offset, length)

    def read(self, offset: int, length: int, pad: bool = False) -> bytes:
        """Return bytes. Raises: InvalidAddressException unless padded."""
        data = self._ram.read(offset, length) if length else b""
        if data is not None:
            return data
        if not pad:
            raise exceptions.InvalidAddressException(self.name, offset, "not in the image")
        sizes = (
            (at, min(4096, offset + length - at)) for at in range(offset, offset + length, 4096)
        )
        return b"".join(self._ram.read(at, size) or bytes(size) for at, size in sizes)

    def write(self, offset: int, data: bytes) -> None:
        """Evidence is not written. Raises: NotImplementedError."""
        raise NotImplementedError("evidence is read-only")

    def _scan_iterator(
        self, scanner: Any, sections: Iterable[tuple[int, int]]
    ) -> Iterator[tuple[list[tuple[str, int, int]], int]]:
        wanted = list(sections)
        for at, length in self._ram.pieces(scanner.chunk_size, scanner.overlap):
            for start, size in wanted:
                low, high = max(at, start), min(at + length, start + size)
                if low < high:
                    yield [(self.name, low, high - low)], high


class FiveLevels(intel.LinuxIntel32e):  # type: ignore[misc]
    """Linux page tables of five levels (LA57), which volatility3 does not have."""

    _maxphyaddr = 52
    _maxvirtaddr = 57
    _structure = [  # noqa: RUF012
        ("page map layer 5", 9, False),
        ("page map layer 4", 9, False),
        ("page directory pointer", 9, True),
        ("page directory", 9, True),
        ("page table", 9, True),
    ]


def load(ram: Ram, isf: Path, facts: Mapping[str, Any]) -> Any:
    """Return a context that has the kernel as module `MODULE`.

    Args:
        ram: the memory.
        isf: the symbol table. Tables of other PDBs may be beside it, in `windows/`.
        facts: the row of `kernels`: `system`, `kernel_offset` (of Windows the base of its image),
            `levels`, `page_table`.

    Raises: volatility3's exceptions, ValueError for a symbol table that is none.
    """
    constants.OFFLINE = True
    constants.PARALLELISM = constants.Parallelism.Off
    volatility3.symbols.__path__ = [str(isf.parent.absolute()), *constants.SYMBOL_BASEPATHS]
    context = contexts.Context()
    context.add_layer(RamLayer(context, "ram", "ram", ram))
    context.config[f"{_LAYER}.memory_layer"] = "ram"
    context.config[f"{_LAYER}.page_map_offset"] = facts["page_table"]
    if facts["system"] == "windows":
        _windows(context, isf, facts)
    else:
        _linux(context, isf, facts)
    return context


def image_of(context: Any, facts: Mapping[str, Any]) -> tuple[int, int]:
    """Return the first and last address of a loaded kernel's image, as rows have addresses."""
    module = context.modules[MODULE]
    if facts["system"] == "windows":
        head = context.layers[_LAYER].read(module.offset, 0x400)
        (at,) = struct.unpack_from("<I", head, 0x3C)
        return module.offset, module.offset + struct.unpack_from("<I", head, at + 24 + 56)[0] - 1
    first, last = (module.get_absolute_symbol_address(name) for name in ("_text", "_end"))
    return first, last


def _windows(context: Any, isf: Path, facts: Mapping[str, Any]) -> None:
    base = facts["kernel_offset"] & intel.WindowsIntel32e.maximum_address
    context.config[f"{_LAYER}.kernel_virtual_offset"] = base
    context.add_layer(
        intel.WindowsIntel32e(context, config_path=_LAYER, name=_LAYER, metadata={"os": "Windows"})
    )
    table = windows.WindowsKernelIntermedSymbols(
        context, _TABLE, name=_TABLE, isf_url=isf.absolute().as_uri()
    )
    context.symbol_space.append(table)
    contexts.Module.create(context, MODULE, _LAYER, base, symbol_table_name=_TABLE)
    # What is not here is not fetched: asked for, it is looked up below `windows/` once more.
    pdbutil.PDBUtility.download_pdb_isf = _not_fetched


def _not_fetched(*_args: Any, **_more: Any) -> None:
    return None


def _linux(context: Any, isf: Path, facts: Mapping[str, Any]) -> None:
    context.config[f"{_LAYER}.kernel_virtual_offset"] = facts["kernel_offset"]
    kind = FiveLevels if facts["levels"] == 5 else intel.LinuxIntel32e
    context.add_layer(kind(context, config_path=_LAYER, name=_LAYER, metadata={"os": "Linux"}))
    mask = context.layers[_LAYER].address_mask
    # Addresses have no sign extension, so symbols must have none. As an argument it comes too late.
    context.config[f"{_TABLE}.symbol_mask"] = mask
    table = linux.LinuxKernelIntermedSymbols(
        context, _TABLE, name=_TABLE, isf_url=isf.absolute().as_uri(), symbol_mask=mask
    )
    context.symbol_space.append(table)
    # hidden_modules refuses what dwarf2json did not make, though it needs nothing that ours lacks.
    context.symbol_space.verify_table_versions = _as_newest
    contexts.Module.create(
        context, MODULE, _LAYER, facts["kernel_offset"], symbol_table_name=_TABLE
    )
    # Classes that single plugins set are set too late once another one has read the types.
    network.NetSymbols.apply(context.symbol_space[_TABLE])
    # Resolved here once; else each fork resolves them again.
    for name in _COMMON_TYPES:
        with contextlib.suppress(exceptions.SymbolError):
            context.symbol_space.get_type(f"{_TABLE}!{name}")


def warm(context: Any) -> None:
    """Sort the symbols by address: once, for all forks that look one up by where it lies."""
    list(context.symbol_space["kernel_symbols"].get_symbols_by_location(0))


def _as_newest(_producer: str, validator: Any, _tables: Any = None) -> bool:
    return bool(validator((0, 9, 0), None))


def plugins() -> tuple[dict[str, Any], list[str]]:
    """Return volatility3's plugins by name, and those that could not be imported."""
    failed = framework.import_files(volatility3.plugins, True)
    return framework.list_plugins(), list(failed)


def clock(context: Any) -> int | None:
    """Return what the kernel's clock said when that page was read, ns since 1970 in whole seconds.

    None where it cannot be read, or the kernel keeps it elsewhere (kernel/time/timekeeping.c).
    """
    try:
        seconds = int(context.modules[MODULE].object_from_symbol("tk_core").timekeeper.xtime_sec)
    except (exceptions.VolatilityException, AttributeError, KeyError, TypeError, ValueError):
        return None
    return seconds * 10**9 if 0 < seconds < 1 << 33 else None
