# SPDX-License-Identifier: Apache-2.0
"""Where a report goes: a directory that is its own, never the evidence store."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from pathlib import Path

from evidence_store.backend import LocalBackend
from evidence_store.store import Case
from pipeline.errors import PipelineError

MARK = '<meta name="impound-report" content="{}">'
_MARK = re.compile(rb'<meta name="impound-report" content="([^"]{0,300})">')
_HEAD = 4096


def check_destination(case: Case, destination: Path, mark: str) -> None:
    """Refuse a directory that a report must not be written to. Writes nothing.

    Args:
        case: the case; a local store must not hold the destination.
        destination: directory, existing or not.
        mark: what names the case in a report (`MARK`).

    Raises: PipelineError.
    """
    backend = case.store.backend
    real = destination.resolve()
    if isinstance(backend, LocalBackend) and real.is_relative_to(backend.root.resolve()):
        raise PipelineError(
            f"{destination} lies inside the evidence store; a report is not evidence",
            hint="name a directory elsewhere: impound report CASE -o DIR",
        )
    if destination.exists() and not destination.is_dir():
        raise PipelineError(f"{destination} is not a directory")
    index = destination / "index.html"
    if os.path.lexists(index):
        found = _mark_of(index)
        if found != mark.encode():
            what = "is the report of another case" if found is not None else "is no report of ours"
            raise PipelineError(
                f"{index} {what}, and is not overwritten", hint="name another directory with -o"
            )
    elif os.path.lexists(destination / "verify.sh"):
        raise PipelineError(
            f"{destination / 'verify.sh'} exists and no report beside it; it is not overwritten",
            hint="name another directory with -o",
        )


def _mark_of(index: Path) -> bytes | None:
    try:
        if index.is_symlink() or not index.is_file():
            return None
        with index.open("rb") as f:
            match = _MARK.search(f.read(_HEAD))
    except OSError as e:
        raise PipelineError(f"cannot look at {index}: {e.strerror}") from e
    return match[1] if match else None


def write(destination: Path, files: dict[str, tuple[bytes, int]]) -> None:
    """Write files (name -> bytes, mode) into `destination`, each whole or not at all, in order.

    Raises: PipelineError.
    """
    try:
        destination.mkdir(parents=True, exist_ok=True)
        for name, (body, mode) in files.items():
            temporary = destination / f".{name}.{secrets.token_hex(8)}"
            try:
                fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
                with os.fdopen(fd, "wb") as f:
                    f.write(body)
                    f.flush()
                    os.fsync(fd)
                temporary.replace(destination / name)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    temporary.unlink()
    except OSError as e:
        raise PipelineError(f"cannot write the report to {destination}: {e.strerror}") from e
