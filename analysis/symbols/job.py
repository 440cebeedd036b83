# SPDX-License-Identifier: Apache-2.0
"""The job `symbols`: the kernel's symbol table from a memory image. Runs in a limited child.

It makes one row of `kernels` and `symbols/00000000.json.gz`, an ISF. Of Windows, whose symbols
cannot be had from its memory, the row and `pdbs` say which are wanted; a table that was given and
is of one of them is kept as a part `symbols`.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from analysis.errors import AnalysisError, SymbolsError
from analysis.output import ParquetSink
from analysis.ram import Ram, open_ram
from analysis.schema import KERNELS, PDBS
from analysis.symbols import windows
from analysis.symbols.isf import from_given, from_image, from_side_cars, read_table
from analysis.symbols.kernel import Kernel, banners, read_boot_id
from analysis.symbols.windows import Pdb, WindowsKernel
from evidence_store.child import Channel

SIDE_CARS = ("btf", "kallsyms")
"""Files of the live kernel: /sys/kernel/btf/vmlinux and /proc/kallsyms."""

CAPTURED = {"btf": "btf.vmlinux", "kallsyms": "kallsyms"}
"""Their names where a capture took them beside its memory."""

_MAX_CAR = 64 << 20


def main(channel: Channel) -> None:
    """Make the symbols of the image that the request names."""
    sink = ParquetSink(channel)
    request = channel.request
    with channel.image(request["item"]) as image:
        try:
            ram = open_ram(image)
        except AnalysisError as e:
            _gap(sink, f"no symbols: {e}")
            return
        try:
            source, kernel, isf = _made(ram, channel)
        except AnalysisError as e:
            _windows(sink, channel, ram, str(e))
        else:
            sha256 = _keep(channel, isf, 0)
            row = {**_row(request, ram, kernel, isf, sha256), "source": source}
            sink.rows("kernels", pa.Table.from_pylist([row], schema=KERNELS))
    sink.close()


def _gap(sink: ParquetSink, reason: str) -> None:
    sink.coverage(job="symbols", what="symbols", reason=reason, count=1)


def _keep(channel: Channel, isf: dict[str, Any], number: int) -> str:
    """Leave a table as a part of the result; return its SHA-256, not compressed."""
    plain = json.dumps(isf, separators=(",", ":")).encode()
    name = f"symbols/{number:08d}.json.gz"
    path = Path("out", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(plain, 3, mtime=0))
    channel.send("part", table="symbols", name=name, rows=len(isf["symbols"]))
    return hashlib.sha256(plain).hexdigest()


def _windows(sink: ParquetSink, channel: Channel, ram: Ram, no_linux: str) -> None:
    """Tell what Windows an image is of and which PDBs are wanted; keep the tables that fit."""
    request = channel.request
    records = windows.records(ram)
    try:
        kernel = windows.find_kernel(ram, records)
    except SymbolsError as e:
        held = any(record.pdb.name in windows.KERNELS for record in records)
        _gap(sink, f"no symbols: {no_linux}" + (f"; {e}" if held else _seen(ram)))
        return
    # Of other images any that memory has; of kernels that one which runs.
    wanted = {r.pdb: r for r in reversed(records) if r.pdb.name in windows.USES}
    wanted[kernel.pdb] = next(r for r in records if r.pdb == kernel.pdb)
    tables, reasons = _given(channel, wanted.keys())
    evidence = {"item": request["item"], "item_digest": request["item_digest"],
                "tool": "impound", "tool_version": request["version"]}  # fmt: skip
    row, rows = _windows_row(ram, kernel), []
    for number, pdb in enumerate(sorted(wanted, key=lambda pdb: (pdb != kernel.pdb, pdb))):
        path = tables.get(pdb)
        if path is not None:
            isf, _ = read_table(path.read_bytes())
            sha256 = _keep(channel, isf, number)
            if pdb == kernel.pdb:
                row |= {"source": "given", "symbols": len(isf["symbols"]),
                        "types": len(isf["user_types"]), "sha256": sha256}  # fmt: skip
        rows.append({
            **evidence, "pdb": pdb.name, "guid": pdb.guid, "age": pdb.age, "url": pdb.url,
            "used_by": "kernel" if pdb == kernel.pdb else windows.USES[pdb.name],
            "address": wanted[pdb].address, "offset": ram.offset_of(wanted[pdb].address),
            "object": f"symbols/{number:08d}.json.gz" if path is not None else None,
        })  # fmt: skip
    sink.rows("kernels", pa.Table.from_pylist([{**evidence, **row}], schema=KERNELS))
    sink.rows("pdbs", pa.Table.from_pylist(rows, schema=PDBS))
    if kernel.pdb not in tables:
        _gap(sink, f"Windows {kernel.version}: its kernel needs {kernel.pdb.name}, GUID and age "
             f"{kernel.pdb.key}, which was not given: symbols kit tells how to fetch it on a "
             f"connected machine{'; '.join(['', *reasons])}")  # fmt: skip


def _given(channel: Channel, wanted: Iterable[Pdb]) -> tuple[dict[Pdb, Path], list[str]]:
    """Return the tables that are of these PDBs, by GUID and age, and what the others are."""
    by_key = {pdb.key: pdb for pdb in wanted}
    found: dict[Pdb, Path] = {}
    reasons: list[str] = []
    for path in map(Path, channel.request["given"]):
        if path.name in SIDE_CARS:
            continue
        try:
            _, whose = read_table(path.read_bytes())
        except SymbolsError as e:
            reasons.append(f"{path.name}: {e}")
            continue
        if isinstance(whose, Pdb) and whose.key in by_key:
            found.setdefault(by_key[whose.key], path)
        else:
            reasons.append(f"{path.name} is of another kernel")
    return found, reasons[:8]


def _windows_row(ram: Ram, kernel: WindowsKernel) -> dict[str, Any]:
    return {
        "system": "windows", "release": kernel.version, "machine": "x86-64",
        "banner": kernel.pdb.name, "build_id": kernel.pdb.key,
        "offset": ram.offset_of(kernel.address), "address": kernel.address,
        "kernel_offset": kernel.base - (1 << 64), "page_table": kernel.page_table, "levels": 4,
        "source": "", "symbols": 0, "types": 0, "sha256": "",
    }  # fmt: skip


def _made(ram: Ram, channel: Channel) -> tuple[str, Kernel, dict[str, Any]]:
    """From the image; else from BTF and kallsyms of the live kernel; else what was given.

    Raises: SymbolsError, saying why none of them served; IntegrityError.
    """
    request = channel.request
    producer = ("impound", request["version"])
    reasons = []
    try:
        return "image", *from_image(ram, producer)
    except SymbolsError as e:
        reasons.append(str(e))
    given = [Path(name) for name in request["given"]]
    cars = {path.name: path.read_bytes() for path in given if path.name in SIDE_CARS}
    beside = request["beside"]
    for whose, held in (
        ("", cars),
        (f" {beside['item']}" if beside else "", _captured(channel) if beside else {}),
    ):
        if not held:
            continue
        if lacking := [name for name in SIDE_CARS if name not in held]:
            reasons.append(f"the side-cars{whose} have no {' and no '.join(lacking)}")
            continue
        try:
            made = from_side_cars(ram, **held, producer=producer)
        except SymbolsError as e:
            reasons.append(f"of the side-cars{whose}: {e}")
        else:
            return "side-cars", *made
    tables = [path for path in given if path.name not in SIDE_CARS]
    try:
        if tables:
            found = from_given(ram, ((path.name, path.read_bytes()) for path in tables))
            return "given", *found
    except SymbolsError as e:
        reasons.append(f"of the tables given: {e}")
    raise SymbolsError("; ".join(reasons))


def _captured(channel: Channel) -> dict[str, bytes]:
    """Return the side-cars that the capture took; without those that it did not."""
    beside = channel.request["beside"]
    found = {}
    for name, captured in CAPTURED.items():
        name_of = beside["objects"].get(captured, "")
        if (car := channel.read_object(beside["item"], name_of, _MAX_CAR)) is not None:
            found[name] = car
    return found


def _seen(ram: Ram) -> str:
    """What else the image tells of its kernel, for a person who looks for symbols elsewhere."""
    found = banners(ram)
    said = "; ".join(f"{text[:200]} (at {at:#x})" for at, text in found[:3])
    return (
        f". The image says: {said}"
        if said
        else ". The image has neither a banner of a Linux kernel nor a "
        "CodeView record of a Windows kernel"
    )


def _page_table(kernel: Kernel) -> int | None:
    top = kernel.symbol("swapper_pg_dir")
    return None if top is None else kernel.physical(top)


def _boot_id(ram: Ram, kernel: Kernel, isf: dict[str, Any]) -> str | None:
    address = isf["symbols"].get("sysctl_bootid", {}).get("address")
    return read_boot_id(ram, kernel, address + kernel.offset) if isinstance(address, int) else None


def _row(
    request: dict[str, Any], ram: Ram, kernel: Kernel, isf: dict[str, Any], sha256: str
) -> dict[str, Any]:
    banner = base64.b64decode(isf["symbols"]["linux_banner"]["constant_data"])
    return {
        "item": request["item"], "item_digest": request["item_digest"],
        "system": "linux", "release": kernel.release, "machine": "x86-64",
        "banner": banner.rstrip(b"\n\0").decode("ascii", "backslashreplace"),
        "boot_id": _boot_id(ram, kernel, isf), "build_id": kernel.build_id,
        "offset": ram.offset_of(kernel.address),
        "address": kernel.address, "kernel_offset": kernel.offset,
        "page_table": _page_table(kernel),
        "levels": kernel.levels,
        "symbols": len(isf["symbols"]), "types": len(isf["user_types"]),
        "sha256": sha256, "tool": "impound", "tool_version": request["version"],
    }  # fmt: skip
