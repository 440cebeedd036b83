# SPDX-License-Identifier: Apache-2.0
"""Symbol tables that were brought from elsewhere: a folder of ISF, and what to give to the jobs."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from analysis.errors import AnalysisError, SymbolsError
from analysis.jobs import open_part
from analysis.query import query
from analysis.symbols.isf import read_table
from analysis.symbols.job import CAPTURED, SIDE_CARS
from analysis.symbols.pdb import MAGIC
from analysis.symbols.windows import PDB_NAME, Pdb
from evidence_store.child import Child, Limits
from evidence_store.model import clean
from evidence_store.store import Case
from pipeline.config import data_home

_MAX_FILES = 64
_MAX_BYTES = 1 << 30
_MAX_PDB = 1 << 30
_PDB_LIMITS = Limits(cpu_s=3600, wall_s=3600.0, file_bytes=1 << 30)
_PDB_PART = "symbols/00000000.json.gz"
_AS_CAPTURED = {captured: name for name, captured in CAPTURED.items()}
_OF_PDB = re.compile(r"\.pdb-[0-9A-F]{33,40}-", re.IGNORECASE)
_SUFFIXES = (".json", ".json.gz", ".json.xz", ".isf")


def library() -> Path:
    """Where `symbols import` keeps tables."""
    return data_home() / "symbols"


def files(path: Path) -> dict[str, bytes]:
    """Return the tables of a folder, or one, by the names they get in a job's folder.

    A folder may also hold `btf` and `kallsyms`, copies of /sys/kernel/btf/vmlinux and
    /proc/kallsyms of the live kernel.

    Raises: AnalysisError if there are none, or too many to give at once.
    """
    single = [path] if path.is_file() else []
    found = single or sorted(
        one for one in path.glob("*")
        if one.is_file()
        and (one.name in (*SIDE_CARS, *_AS_CAPTURED) or one.name.endswith(_SUFFIXES))
    )  # fmt: skip
    if not found:
        raise AnalysisError(f"no symbol table in {path}", hint="files *.json, *.json.gz, *.json.xz")
    if single and _is_pdb(path):
        raise AnalysisError(f"{path} is a PDB", hint=f"impound symbols import {path}")
    return _given(found, path)


def brought(case: Case, item_id: str) -> dict[str, bytes]:
    """Return the tables of the library that may be of an item, by the names they get in a job.

    Those of PDBs that the item does not want are left out: a library has many. Empty if none is
    left. Raises: AnalysisError if there are too many to give at once.
    """
    sql = f"SELECT guid, age FROM pdbs WHERE item = '{item_id}'"  # noqa: S608 - an id of ours
    wanted = [f"-{guid}{age:x}-" for guid, age in query(case, sql).rows]
    found = [one for one in sorted(library().glob("*.json.gz"))
             if not _OF_PDB.search(one.name) or any(key in one.name for key in wanted)]  # fmt: skip
    return _given(found, library())


def _given(found: list[Path], path: Path) -> dict[str, bytes]:
    size = sum(one.stat().st_size for one in found)
    if len(found) > _MAX_FILES or size > _MAX_BYTES:
        raise AnalysisError(
            f"{path} has {len(found)} tables of {size} bytes; at most {_MAX_FILES} of {_MAX_BYTES} "
            "bytes are tried at once",
            hint="name the one that fits: --symbols FILE",
        )
    return {_name(n, one.name): one.read_bytes() for n, one in enumerate(found)}


def _name(number: int, name: str) -> str:
    if name in (*SIDE_CARS, *_AS_CAPTURED):
        return _AS_CAPTURED.get(name, name)
    return f"{number:04d}-{re.sub('[^A-Za-z0-9._-]', '_', name)[-80:]}"


def _is_pdb(path: Path) -> bool:
    with path.open("rb") as f:
        return path.suffix.lower() == ".pdb" or f.read(len(MAGIC)) == MAGIC


def take(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Check tables and copy them into the library; return what each is, and `file`.

    Of Linux `release` and `banner`; of Windows also `pdb`, `guid` and `age`. A PDB is converted
    first, which takes up to some minutes.

    Raises: AnalysisError if one is no table of a kernel; nothing of it is copied.
    """
    taken = []
    for path in paths:
        raw = _converted(path) if _is_pdb(path) else path.read_bytes()
        try:
            isf, whose = read_table(raw)
        except SymbolsError as e:
            raise SymbolsError(
                f"{path}: {e}", hint="an ISF (*.json, *.json.gz, *.json.xz) or a PDB is taken"
            ) from e
        if isinstance(whose, Pdb):
            release = f"{whose.name}-{whose.key}"
            said: dict[str, Any] = {"release": whose.name, "banner": whose.key, "pdb": whose.name,
                                    "guid": whose.guid, "age": whose.age}  # fmt: skip
        else:
            banner = whose.rstrip(b"\n\0").decode("ascii", "backslashreplace")
            release = banner.split(" ")[2]
            said = {"release": re.sub("[^A-Za-z0-9._+-]", "_", release)[:80], "banner": banner}
        taken.append({**said, "file": str(_keep(isf, release))})
    return taken


def _keep(isf: dict[str, Any], name: str) -> Path:
    plain = json.dumps(isf, separators=(",", ":")).encode()
    stem = re.sub("[^A-Za-z0-9._+-]", "_", name)[:120]
    target = library() / f"{stem}-{hashlib.sha256(plain).hexdigest()[:12]}.json.gz"
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(f".{os.getpid()}")
    temporary.write_bytes(gzip.compress(plain, 6, mtime=0))
    temporary.rename(target)
    return target


def _converted(path: Path) -> bytes:
    """Return the ISF of a PDB, converted in a limited child, since a PDB may be hostile.

    Raises: SymbolsError, with the reason, if it is none that can be converted.
    """
    if path.stat().st_size > _MAX_PDB:
        raise SymbolsError(f"{path} has more than {_MAX_PDB} bytes")
    name = path.name.lower()
    if not PDB_NAME.fullmatch(name):
        raise SymbolsError(f"{path} is a PDB and has not the name of one",
                           hint="name it as it was linked, such as ntkrnlmp.pdb")  # fmt: skip
    refused: list[str] = []
    with tempfile.TemporaryDirectory(prefix="impound-") as folder:
        shutil.copyfile(path, Path(folder, "file.pdb"))
        outcome = Child(
            module="analysis.memory.pdb", program="analysis.memory", items={},
            request={"file": "file.pdb", "name": name}, folder=Path(folder), limits=_PDB_LIMITS,
            on_message=lambda message: refused.extend(_reason(message)),
        ).run()  # fmt: skip
        if not outcome.ok or refused:
            raise SymbolsError(f"{path}: {'; '.join(refused) or outcome.reason}")
        try:
            with os.fdopen(open_part(Path(folder, "out"), _PDB_PART), "rb") as f:
                return f.read(_MAX_BYTES)
        except OSError as e:
            raise SymbolsError(f"{path}: its table was not left: {e.strerror}") from e


def _reason(message: dict[str, Any]) -> list[str]:
    if message["message_type"] == "refused":
        return [clean(str(message["reason"]), 400)]
    return []
