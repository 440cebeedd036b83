# SPDX-License-Identifier: Apache-2.0
"""What this user's interrupted runs stored of an item, so that a resume need not read it again.

Only for a source that cannot change (`Immutable`). Until an item is recorded nothing in the store
says what its segments must be; this does, from outside the store: one JSON line a segment, written
before the segment is. A resume takes a stored segment for read only if its whole SHA-256 is the one
noted here. What is not noted, or differs, is read from the source and compared with what is stored.

It is a courtesy: without the file, or on another machine, all is read again.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from evidence_store.item import Gap

_NAME = re.compile(r"[0-9a-f]{16}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Noted:
    """One segment as it was read: its digest, and which of its zeros stand for lost bytes."""

    sha256: str
    gaps: list[Gap]


class ResumeRecord:
    """The notes on one unfinished item; for use by several threads at once.

    `about` (source key, segment size) is its first line: notes about something else are dropped.
    """

    def __init__(self, path: Path, about: dict[str, str | int]) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._noted: dict[str, Noted] = {}
        self._fd = -1
        with contextlib.suppress(OSError):  # not there, or not to be read: nothing is noted
            lines = path.read_bytes().split(b"\n")[:-1]  # the last may be torn
            if lines and _parse(lines[0]) == about:
                self._noted = dict(filter(None, map(_note, lines[1:])))
        with contextlib.suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(
                path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
            self._write(dict(about))
            for name, noted in self._noted.items():
                self._write(_line(name, noted))

    def get(self, name: str) -> Noted | None:
        """Return what was noted of a segment."""
        return self._noted.get(name)

    def add(self, name: str, noted: Noted) -> None:
        """Note a segment that is about to be stored."""
        with self._lock:
            if self._fd >= 0 and self._noted.get(name) != noted:
                self._noted[name] = noted
                with contextlib.suppress(OSError):  # it is read again then
                    self._write(_line(name, noted))

    def _write(self, line: dict[str, object]) -> None:
        os.write(self._fd, json.dumps(line).encode() + b"\n")

    def close(self, *, done: bool) -> None:
        """Close the file; `done`: the item is recorded, its notes are of no more use."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        if done:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)


def _line(name: str, noted: Noted) -> dict[str, object]:
    return {"name": name, "sha256": noted.sha256, "gaps": [g.model_dump() for g in noted.gaps]}


def _parse(line: bytes) -> dict[str, object]:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _note(line: bytes) -> tuple[str, Noted] | None:
    said = _parse(line)
    name, sha256, gaps = said.get("name"), said.get("sha256"), said.get("gaps")
    if not isinstance(name, str) or not _NAME.fullmatch(name) or not isinstance(gaps, list):
        return None
    if not isinstance(sha256, str) or not _DIGEST.fullmatch(sha256):
        return None
    try:
        return name, Noted(sha256, [Gap.model_validate(gap) for gap in gaps])
    except ValidationError:
        return None
