# SPDX-License-Identifier: Apache-2.0
"""What the examiner did on a host: each connection, command, count of bytes and exit code.

Kept as JSON lines, each written down before the act it tells of, so that a killed session leaves
its record behind. What was typed as a secret never comes here: passwords go by standard input.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from acquisition.closing import Closing
from evidence_store.model import clean
from evidence_store.transfer import Member

_MAX_TEXT = 2000


@dataclass
class Footprint(Closing):
    """The record of one session on one host; for use by several threads.

    Attributes:
        path: file to keep it in while the session lasts; None: memory only.
        now: time in ns since 1970.
    """

    path: Path | None = None
    now: Any = time.time_ns
    lines: list[bytes] = field(default_factory=list)
    _fd: int = -1
    _count: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        if self.path is not None:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(self.path, flags, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX)  # so that others see that the session lives

    def begin(self, what: str, **facts: JsonValue) -> int:
        """Note an act before it is done; return its number."""
        with self._lock:
            self._count += 1
            self._add({"n": self._count, "at_ns": self.now(), "what": what, **_cleaned(facts)})
            return self._count

    def end(self, number: int, **facts: JsonValue) -> None:
        """Note what act `number` came to."""
        with self._lock:
            self._add({"end_of": number, "at_ns": self.now(), **_cleaned(facts)})

    def _add(self, line: Mapping[str, JsonValue]) -> None:
        text = json.dumps(line, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"
        self.lines.append(text)
        if self._fd >= 0:
            os.write(self._fd, text)

    @property
    def acts(self) -> list[dict[str, Any]]:
        """Acts with what they came to, in order."""
        return acts(self.lines)

    def close(self) -> None:
        """Close the file; it stays until `done`."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def done(self) -> None:
        """Remove the file: the record is in custody."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
        self.close()


def _cleaned(facts: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    return {k: clean(v, _MAX_TEXT) if isinstance(v, str) else v for k, v in facts.items()}


def acts(lines: list[bytes]) -> list[dict[str, Any]]:
    """Return acts with what they came to, from the lines of a footprint; the last may be torn."""
    found: dict[int, dict[str, Any]] = {}
    for raw in lines:
        try:
            line = json.loads(raw)
        except ValueError:
            continue
        if not isinstance(line, dict):
            continue
        if (of := line.get("end_of")) in found:
            began = found[of]
            began |= {k: v for k, v in line.items() if k not in ("end_of", "at_ns")}
            began["ms"] = max(0, line["at_ns"] - began["at_ns"]) // 1_000_000
        elif isinstance(line.get("n"), int):
            found[line["n"]] = line
    return list(found.values())


@dataclass
class FootprintFiles(Closing):
    """Footprints as a source: those of killed sessions first, then that of this one."""

    text: str
    records: Mapping[str, bytes]
    facts: Mapping[str, JsonValue]
    method: str = "written by impound while it was on the host"
    identity: None = None

    def members(self) -> Iterator[Member]:
        """See `SetSource.members`."""
        for name, body in self.records.items():
            yield Member(name.encode(), {"type": "footprint"}, lambda body=body: iter([body]))  # type: ignore[misc]

    def skipped(self) -> list[str]:
        """See `SetSource.skipped`."""
        return []

    def changes(self) -> list[str]:
        """See `Source.changes`."""
        return []
