# SPDX-License-Identifier: Apache-2.0
"""Symbol tables that were brought from elsewhere: a folder of ISF, and what to give to the jobs."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from analysis.errors import AnalysisError
from analysis.symbols.isf import read_isf
from analysis.symbols.job import CAPTURED, SIDE_CARS
from pipeline.config import data_home

_MAX_FILES = 64
_MAX_BYTES = 1 << 30
_AS_CAPTURED = {captured: name for name, captured in CAPTURED.items()}
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


def take(paths: Iterable[Path]) -> list[dict[str, str]]:
    """Check tables and copy them into the library; return `release`, `banner`, `file` of each.

    Raises: AnalysisError if one is no table of a Linux kernel; nothing of it is copied.
    """
    taken = []
    folder = library()
    for path in paths:
        isf, banner = read_isf(path.read_bytes())
        text = banner.rstrip(b"\n\0").decode("ascii", "backslashreplace")
        plain = json.dumps(isf, separators=(",", ":")).encode()
        release = re.sub("[^A-Za-z0-9._+-]", "_", text.split(" ")[2])[:80]
        target = folder / f"{release}-{hashlib.sha256(plain).hexdigest()[:12]}.json.gz"
        folder.mkdir(parents=True, exist_ok=True)
        temporary = target.with_suffix(f".{os.getpid()}")
        temporary.write_bytes(gzip.compress(plain, 6, mtime=0))
        temporary.rename(target)
        taken.append({"release": release, "banner": text, "file": str(target)})
    return taken
