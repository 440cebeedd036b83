# SPDX-License-Identifier: Apache-2.0
"""What a capture of memory is worth: complete, partial or unusable. No exit status is asked.

    scan = Scan(plan, banner)    counts pages of zeros, looks for the kernel's banner, keeps samples
    judge(seen)                  pure

Source: docs/design.md, "Memory"; Linux init/version.c (`linux_banner`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue

from acquisition.kcore import PAGE, Plan, Range
from evidence_store.backend import Runs

SAMPLES = 32  # pages of kernel code that are read twice

_ZERO_PAGE = bytearray(PAGE)

Word = Literal["complete", "partial", "unusable"]


@dataclass
class Seen:
    """What was observed of a capture.

    Attributes:
        ram, read, zero: bytes: of RAM, of it read, of that in pages of zeros.
        missing: ranges that kcore does not show.
        lost: why bytes could not be read, in words.
        banner: where the kernel's banner was found; None: it is not known what to look for.
        sampled, same: pages of kernel code that were read again, and of them those unchanged.
        stalls, connections: of the link.
    """

    ram: int = 0
    read: int = 0
    zero: int = 0
    missing: tuple[Range, ...] = ()
    lost: tuple[str, ...] = ()
    banner: bool | None = None
    sampled: int = 0
    same: int = 0
    stalls: int = 0
    connections: int = 1

    def document(self) -> dict[str, JsonValue]:
        """As JSON."""
        return {
            "ram_bytes": self.ram, "read_bytes": self.read, "zero_bytes": self.zero,
            "missing": [f"{a:x}-{b - 1:x}" for a, b in self.missing[:100]],
            "lost": list(self.lost[:100]), "banner": self.banner, "sampled": self.sampled,
            "same": self.same, "stalls": self.stalls, "connections": self.connections,
        }  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What a capture is worth. `reasons` say why it is not complete; `remarks` what to know."""

    word: Word
    reasons: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def judge(seen: Seen) -> Verdict:
    """Return the verdict on a capture. Pure; no exit status is asked."""
    useless, short, remarks = [], [], []
    if not seen.read:
        useless.append("no byte of memory was read")
    elif seen.zero >= seen.read * 0.999:
        useless.append("all of it is zero: the host does not show its memory")
    if seen.sampled >= 4 and seen.same * 2 < seen.sampled:
        useless.append(
            f"{seen.sampled - seen.same} of {seen.sampled} pages of kernel code read again differ: "
            "what was read is not memory as it lies there"
        )
    if seen.read < seen.ram:
        short.append(f"{seen.ram - seen.read} of {seen.ram} bytes were not read")
    short += seen.lost[:5]
    if seen.missing:
        short.append(f"{len(seen.missing)} ranges of RAM are not shown by kcore")
    if seen.banner is False and seen.read:
        where = short if seen.read < seen.ram else useless
        where.append("the kernel's own banner is not in it: analysis will not know the kernel")
    if seen.sampled and seen.same < seen.sampled:
        remarks.append(f"{seen.sampled - seen.same} of {seen.sampled} pages of kernel code changed")
    if seen.stalls:
        remarks.append(f"the link stalled {seen.stalls} times")
    if seen.connections > 1:
        remarks.append(f"{seen.connections} connections were needed")
    word: Word = "unusable" if useless else "partial" if short else "complete"
    return Verdict(word, (*useless, *short), tuple(remarks))


def exit_code(word: Word) -> int:
    """Return the exit code of a verdict: 0, 3 or 12."""
    return {"complete": 0, "partial": 3, "unusable": 12}[word]


class Scan:
    """Counts what passes: zero pages, the banner, samples. Of any source of the image's bytes."""

    def __init__(self, made: Plan, banner_text: str) -> None:
        banner = banner_text.encode()
        self._banner = banner if len(banner) > 20 else b""
        self._spots = _samples(made)
        self.samples: dict[int, str] = {}
        self.zero = 0
        self.read = 0
        self.found = False if self._banner else None
        self._ends: dict[int, bytes] = {}  # what lies before and after each border of two spans
        self._begins: dict[int, bytes] = {}

    @property
    def spots(self) -> list[int]:
        """Physical addresses of the pages to read twice."""
        return self._spots

    def pages(self, view: memoryview, physical: int) -> Runs:
        """Look at whole pages from `physical` on; return where in `view` there is data."""
        runs: Runs = []
        size = len(view)
        for at in range(0, size, PAGE):
            end = min(at + PAGE, size)
            if end - at == PAGE and view[at:end] == _ZERO_PAGE:
                self.zero += PAGE
            elif runs and runs[-1][1] == at:
                runs[-1] = runs[-1][0], end
            else:
                runs.append((at, end))
        self.read += size
        self._sample(view, physical)
        if self.found is False:
            self.found = self._look(view, runs) or self._look_across(view, physical)
        return runs

    def _look(self, view: memoryview, runs: Runs) -> bool:
        size = len(self._banner)
        return any(bytes(view[a : b + size]).find(self._banner) >= 0 for a, b in _steps(runs))

    def _look_across(self, view: memoryview, physical: int) -> bool:
        """Whether it begins in one span and ends in the next; they come in any order."""
        keep, end = len(self._banner) - 1, physical + len(view)
        self._begins[physical], self._ends[end] = bytes(view[:keep]), bytes(view[-keep:])
        return any(
            self._banner in self._ends.get(at, b"") + self._begins.get(at, b"")
            for at in (physical, end)
        )

    def _sample(self, view: memoryview, physical: int) -> None:
        for spot in self._spots:
            at = spot - physical
            if 0 <= at <= len(view) - PAGE and spot not in self.samples:
                self.samples[spot] = hashlib.sha256(view[at : at + PAGE]).hexdigest()


def _steps(runs: Runs) -> Iterator[tuple[int, int]]:
    for start, end in runs:
        for at in range(start, end, 1 << 20):
            yield at, min(at + (1 << 20), end)


def _samples(made: Plan) -> list[int]:
    """Pages spread over the kernel's code; over all RAM where it is not known."""
    where = made.kernel or tuple((p.start, p.end) for p in made.pieces)
    whole = [
        (max(a, p.start), min(b, p.end)) for a, b in where for p in made.pieces
        if max(a, p.start) < min(b, p.end)
    ]  # fmt: skip
    total = sum((b - a) // PAGE for a, b in whole)
    found = []
    for wanted in range(min(SAMPLES, total)):
        index = wanted * total // SAMPLES
        for a, b in whole:
            first = -(-a // PAGE) * PAGE
            pages = (b - first) // PAGE
            if index < pages:
                found.append(first + index * PAGE)
                break
            index -= pages
    return sorted(set(found))
