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

from analysis.errors import AnalysisError
from analysis.output import ParquetSink
from analysis.ram import Ram, open_ram
from analysis.schema import KERNELS
from analysis.symbols.isf import from_image
from analysis.symbols.kernel import Kernel, banners
from evidence_store.child import Channel

ISF_PART = "symbols/00000000.json.gz"


def main(channel: Channel) -> None:
    """Make the symbols of the image that the request names."""
    sink = ParquetSink(channel)
    request = channel.request
    with channel.image(request["item"]) as image:
        try:
            ram = open_ram(image)
            kernel, isf = from_image(ram, ("impound", request["version"]))
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
        row = _row(request, ram, kernel, isf, sha256)
        sink.rows("kernels", pa.Table.from_pylist([row], schema=KERNELS))
    sink.close()


def _seen(image: Any) -> str:
    """What else the image tells of its kernel, for a person who looks for symbols elsewhere."""
    try:
        found = banners(open_ram(image))
    except AnalysisError:
        return ""
    said = "; ".join(f"{text[:200]} (at {at:#x})" for at, text in found[:3])
    return f". The image says: {said}" if said else ". The image has no banner of a Linux kernel"


def _row(
    request: dict[str, Any], ram: Ram, kernel: Kernel, isf: dict[str, Any], sha256: str
) -> dict[str, Any]:
    banner = base64.b64decode(isf["symbols"]["linux_banner"]["constant_data"])
    return {
        "item": request["item"], "item_digest": request["item_digest"],
        "release": kernel.release, "machine": "x86-64",
        "banner": banner.rstrip(b"\n\0").decode("ascii", "backslashreplace"),
        "build_id": kernel.build_id, "offset": ram.offset_of(kernel.address),
        "address": kernel.address, "kernel_offset": kernel.offset, "levels": kernel.levels,
        "source": "image", "symbols": len(isf["symbols"]), "types": len(isf["user_types"]),
        "sha256": sha256, "tool": "impound", "tool_version": request["version"],
    }  # fmt: skip
