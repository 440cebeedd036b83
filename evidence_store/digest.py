# SPDX-License-Identifier: Apache-2.0
"""Digests of items: the list of segments, the image root, the linear digest.

`segments.sha256` is text that `sha256sum -c` understands (lines starting with `#` are comments to
it) and that says of every byte of an item whether it was read, zero or unreadable:

    # impound segments 1
    # size 8589934592
    # segment-size 67108864
    <sha256>  data/0000000000000000
    # hole 0000000000000001 7            first all-zero segment, number of segments
    # unreadable 536870912 4096          byte offset, length; zeros stand in for them in a segment

A file set has segment size 0, one line an object, and no holes. The file is canonical: equal facts,
equal bytes. `image_root` is SHA-256 of it, and is the identity of the item.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from evidence_store.errors import IntegrityError

SEGMENT_BYTES = 64 << 20
MAX_LIST_BYTES = 1 << 30
_HEADER = "# impound segments 1"
_ZERO_STEP, _ZERO_STATES = 1 << 20, 64
_ZEROS = bytes(256 << 10)  # hashed from a core's cache
_LINE = re.compile(r"([0-9a-f]{64})  data/([0-9a-z_-][0-9a-z._-]*(?:/[0-9a-z_-][0-9a-z._-]*)*)")
_HOLE = re.compile(r"# hole ([0-9a-f]{16}) ([1-9][0-9]*)")
_GAP = re.compile(r"# unreadable (0|[1-9][0-9]*) ([1-9][0-9]*)")


@dataclass(frozen=True, order=True)
class Range:
    """A range of bytes [offset, offset + length)."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        """First byte after it."""
        return self.offset + self.length


def merge(ranges: Iterable[Range]) -> list[Range]:
    """Return sorted ranges with touching and overlapping ones joined.

    >>> merge([Range(4, 4), Range(0, 4), Range(10, 2)])
    [Range(offset=0, length=8), Range(offset=10, length=2)]
    """
    out: list[Range] = []
    for part in sorted(ranges):
        if out and part.offset <= out[-1].end:
            last = out.pop()
            out.append(Range(last.offset, max(last.end, part.end) - last.offset))
        else:
            out.append(part)
    return out


@dataclass(frozen=True)
class SegmentList:
    """What an item consists of.

    Attributes:
        size: logical bytes (for a file set: the sum of its objects).
        segment_size: bytes of a segment, the last may be shorter; 0 for a file set.
        digests: object name below `data/` -> SHA-256, in order.
        holes: all-zero segments, as (first index, count), sorted, maximal.
        unreadable: byte ranges that the source refused, sorted, merged.
    """

    size: int
    segment_size: int
    digests: Mapping[str, str]
    holes: list[tuple[int, int]] = field(default_factory=list)
    unreadable: list[Range] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Number of segments of an image, stored or not."""
        return -(-self.size // self.segment_size) if self.segment_size else len(self.digests)

    def length(self, index: int) -> int:
        """Bytes of segment `index`."""
        return min(self.segment_size, self.size - index * self.segment_size)

    def encode(self) -> bytes:
        """Return the bytes of `segments.sha256`."""
        lines = [_HEADER, f"# size {self.size}", f"# segment-size {self.segment_size}"]
        body: list[tuple[str, str]] = [
            (name, f"{sha256}  data/{name}") for name, sha256 in self.digests.items()
        ]
        body += [(segment_name(f), f"# hole {segment_name(f)} {n}") for f, n in self.holes]
        lines += [line for _, line in sorted(body)]
        lines += [f"# unreadable {gap.offset} {gap.length}" for gap in self.unreadable]
        return ("\n".join(lines) + "\n").encode()

    @property
    def root(self) -> str:
        """`image_root`: SHA-256 of the encoded list."""
        return hashlib.sha256(self.encode()).hexdigest()


def segment_name(index: int) -> str:
    """Object name of segment `index`: 16 hex digits (the nbdkit S3 convention)."""
    return f"{index:016x}"


def hole_ranges(indices: Iterable[int]) -> list[tuple[int, int]]:
    """Return sorted indices as (first, count) runs.

    >>> hole_ranges([1, 2, 3, 7])
    [(1, 3), (7, 1)]
    """
    runs: list[tuple[int, int]] = []
    for index in sorted(indices):
        if runs and index == sum(runs[-1]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((index, 1))
    return runs


def parse_segments(raw: bytes) -> SegmentList:
    """Return the list in a `segments.sha256`.

    Every segment of an image must be accounted for exactly once: stored, a hole, or unreadable as a
    whole. Raises: IntegrityError.
    """
    try:
        lines = raw.decode("ascii").split("\n")
        if lines[0] != _HEADER or lines[-1] != "":
            raise IntegrityError("segments.sha256 has no header or no end")
        size = int(lines[1].removeprefix("# size "))
        segment_size = int(lines[2].removeprefix("# segment-size "))
    except (ValueError, IndexError) as e:
        raise IntegrityError("segments.sha256 is malformed") from e
    digests: dict[str, str] = {}
    holes: list[tuple[int, int]] = []
    gaps: list[Range] = []
    for line in lines[3:-1]:
        if match := _LINE.fullmatch(line):
            digests[match[2]] = match[1]
        elif match := _HOLE.fullmatch(line):
            holes.append((int(match[1], 16), int(match[2])))
        elif match := _GAP.fullmatch(line):
            gaps.append(Range(int(match[1]), int(match[2])))
        else:
            raise IntegrityError("segments.sha256 holds a line of no known form")
    parsed = SegmentList(size, segment_size, digests, holes, gaps)
    if size < 0 or segment_size < 0 or gaps != merge(gaps) or parsed.encode() != raw:
        raise IntegrityError("segments.sha256 is not in canonical form")
    if segment_size:
        _check_complete(parsed)
    return parsed


def _check_complete(parsed: SegmentList) -> None:
    if not all(re.fullmatch("[0-9a-f]{16}", name) for name in parsed.digests):
        raise IntegrityError("segments.sha256 of an image lists an object that is no segment")
    covered = sorted([(int(name, 16), 1) for name in parsed.digests] + parsed.holes)
    at = 0
    for first, count in [*covered, (parsed.count, 0)]:
        if first < at or first + count > parsed.count:
            raise IntegrityError("segments.sha256 lists a segment twice or beyond the end")
        start, end = at * parsed.segment_size, min(first * parsed.segment_size, parsed.size)
        # Ranges are merged: what is absent in one piece is unreadable in one piece.
        if first > at and not any(g.offset <= start and end <= g.end for g in parsed.unreadable):
            raise IntegrityError(f"segments.sha256 does not account for segment {at}")
        at = first + count


@functools.lru_cache(maxsize=256)
def _zero_state(name: str, steps: int) -> hashlib._Hash:
    """The digest after `steps` MiB of zeros. Never updated: only copied."""
    state = _after_zeros(name, steps - 1) if steps else hashlib.new(name, usedforsecurity=False)
    if steps:
        for _ in range(_ZERO_STEP // len(_ZEROS)):
            state.update(_ZEROS)
    return state


def _after_zeros(name: str, steps: int) -> hashlib._Hash:
    return _zero_state(name, steps).copy()


class LinearDigest:
    """SHA-256 (and others on request) of the logical bytes in order, holes included."""

    def __init__(self, names: Iterable[str] = ("sha256",)) -> None:
        self._digests = {name: hashlib.new(name, usedforsecurity=False) for name in names}
        self._fresh = True

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes."""
        self._fresh = self._fresh and not len(data)
        for digest in self._digests.values():
            digest.update(data)

    def zeros(self, length: int) -> None:
        """Take `length` zero bytes."""
        if self._fresh and (known := min(length // _ZERO_STEP, _ZERO_STATES)):
            # Many segments begin with zeros, and all of those begin with the same state.
            self._digests = {name: _after_zeros(name, known) for name in self._digests}
            self._fresh = False
            length -= known * _ZERO_STEP
        with memoryview(_ZEROS) as view:
            while length > 0:
                part = min(length, len(view))
                self.update(view[:part])
                length -= part

    def sparse(self, view: memoryview, runs: Iterable[tuple[int, int]]) -> None:
        """Take the bytes of `view` within `runs`, (start, end) in order; zeros for all others."""
        at = 0
        for start, end in runs:
            self.zeros(start - at)
            self.update(view[start:end])
            at = end
        self.zeros(len(view) - at)

    def results(self) -> dict[str, str]:
        """Return algorithm -> hex digest."""
        return {name: digest.hexdigest() for name, digest in self._digests.items()}
