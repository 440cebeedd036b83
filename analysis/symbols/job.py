# SPDX-License-Identifier: Apache-2.0
"""The job `symbols`: the kernel's symbol table from a memory image. Runs in a limited child.

It makes one row of `kernels` and `symbols/00000000.json.gz`, an ISF.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from analysis.errors import AnalysisError, SymbolsError
from analysis.output import ParquetSink
from analysis.ram import Ram, open_ram
from analysis.schema import KERNELS
from analysis.symbols.isf import from_given, from_image, from_side_cars
from analysis.symbols.kernel import Kernel, banners, read_boot_id
from evidence_store.child import Channel

SIDE_CARS = ("btf", "kallsyms")
"""Files of the live kernel: /sys/kernel/btf/vmlinux and /proc/kallsyms."""

CAPTURED = {"btf": "btf.vmlinux", "kallsyms": "kallsyms"}
"""Their names where a capture took them beside its memory."""

_MAX_CAR = 64 << 20

ISF_PART = "symbols/00000000.json.gz"


def main(channel: Channel) -> None:
    """Make the symbols of the image that the request names."""
    sink = ParquetSink(channel)
    request = channel.request
    with channel.image(request["item"]) as image:
        try:
            ram = open_ram(image)
            source, kernel, isf = _made(ram, channel)
        except AnalysisError as e:
            sink.coverage(job="symbols", what="symbols", reason=f"no symbols: {e}{_seen(image)}",
                          count=1)  # fmt: skip
            return
        plain = json.dumps(isf, separators=(",", ":")).encode()
        path = Path("out", ISF_PART)
        path.parent.mkdir(parents=True)
        path.write_bytes(gzip.compress(plain, 3, mtime=0))
        channel.send("part", table="symbols", name=ISF_PART, rows=len(isf["symbols"]))
        sha256 = hashlib.sha256(plain).hexdigest()
        row = {**_row(request, ram, kernel, isf, sha256), "source": source}
        sink.rows("kernels", pa.Table.from_pylist([row], schema=KERNELS))
    sink.close()


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
        fd = channel.open_object(beside["item"], beside["objects"].get(captured, ""))
        if fd is not None:
            with open(fd, "rb") as f:  # noqa: PTH123
                found[name] = f.read(_MAX_CAR)
    return found


def _seen(image: Any) -> str:
    """What else the image tells of its kernel, for a person who looks for symbols elsewhere."""
    try:
        found = banners(open_ram(image))
    except AnalysisError:
        return ""
    said = "; ".join(f"{text[:200]} (at {at:#x})" for at, text in found[:3])
    return f". The image says: {said}" if said else ". The image has no banner of a Linux kernel"


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
        "release": kernel.release, "machine": "x86-64",
        "banner": banner.rstrip(b"\n\0").decode("ascii", "backslashreplace"),
        "boot_id": _boot_id(ram, kernel, isf), "build_id": kernel.build_id,
        "offset": ram.offset_of(kernel.address),
        "address": kernel.address, "kernel_offset": kernel.offset,
        "page_table": _page_table(kernel),
        "levels": kernel.levels,
        "symbols": len(isf["symbols"]), "types": len(isf["user_types"]),
        "sha256": sha256, "tool": "impound", "tool_version": request["version"],
    }  # fmt: skip
