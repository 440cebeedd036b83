# SPDX-License-Identifier: LicenseRef-VSL-1.0
"""A PDB as a symbol table, by volatility3's own converter. Runs in a limited child.

The request names a file of the child's folder and the PDB's name; the table is left as `PART` below
`out`. A message `converted` or `refused` (with the reason) ends it.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from volatility3.framework import constants, contexts
from volatility3.framework.symbols.windows import pdbconv

from analysis.errors import SymbolsError
from analysis.symbols.pdb import header
from analysis.symbols.windows import KERNELS
from evidence_store.child import Channel

PART = "symbols/00000000.json.gz"
_AMD64 = 0x8664


def main(channel: Channel) -> None:
    """Convert the file that the request names."""
    constants.OFFLINE = True
    path = Path(channel.request["file"])
    try:
        isf = _converted(path, channel.request["name"])
    except SymbolsError as e:
        channel.send("refused", reason=str(e))
        return
    plain = json.dumps(isf, separators=(",", ":"), sort_keys=True).encode()
    out = Path("out", PART)
    out.parent.mkdir(parents=True)
    out.write_bytes(gzip.compress(plain, 6, mtime=0))
    channel.send("converted")


def _converted(path: Path, name: str) -> dict[str, Any]:
    with path.open("rb") as f:
        guid, age = header(f)
    try:
        reader = pdbconv.PdbReader(contexts.Context(), path.absolute().as_uri(), name)
        isf: dict[str, Any] = reader.get_json()
    except MemoryError:
        raise
    # What the converter raises on a damaged or a C++ PDB is anything; it is told.
    except Exception as e:
        why = f"volatility3 cannot convert it: {type(e).__name__}: {str(e)[:200]}"
        raise SymbolsError(why) from e
    said = isf["metadata"]["windows"]["pdb"]
    if (said["GUID"], said["age"]) != (guid, age):
        raise SymbolsError(
            f"its head says {guid} {age}, its conversion {said['GUID']} {said['age']}"
        )
    if said["machine_type"] != _AMD64:
        raise SymbolsError(f"it is of machine {said['machine_type']:#x}: only x86-64 is analysed")
    if name in KERNELS and "_EPROCESS" not in isf["user_types"]:
        raise SymbolsError("it has no types of a kernel")
    # When it was converted is of no use in a table that is named by its digest.
    isf["metadata"]["producer"].pop("datetime", None)
    return isf
