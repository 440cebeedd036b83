# SPDX-License-Identifier: Apache-2.0
"""Hash file contents in block order.

Invariants:

* The image is read by one thread at a time, forwards within a batch, neighbours in one read. Two
  threads hash (hashlib releases the GIL above 2047 bytes): measured 1.6 times as fast as one.
* What is hashed is what the kernel's read(2) returns: holes and unwritten extents are zeros, the
  end is the file size. A file of which one byte cannot be read gets no hash.
* Work is bounded: no file beyond the larger of 64 MiB and the size of the image, no file without
  a single block beyond 1 GiB, and four times the size of the image over all files of the walk.
  Beyond it is "too-large", never a hash of a part.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from analysis.image import Readable

HOLE = -1
"""`Extent` address of a range that reads as zeros."""

Extent = tuple[int, int, int]
"""(first byte in the file, length in bytes, byte offset in the image or HOLE)."""

WHOLE: Sequence[Extent] = ((0, 1 << 63, 0),)
"""`Content.extents` of the frequent file that is one run from `start`; saves a list for each."""

EMPTY = hashlib.sha256(b"").hexdigest()

MOST_EXTENTS = 1 << 20
"""Extents that a file may have; more are damage."""

_CHUNK = 1 << 20  # larger ones cost page faults: glibc maps them anew each time
_NEAR = 64 << 10  # reading over a gap of this size is cheaper than a second read
_LARGE = 64 << 20  # read and hashed side by side; smaller ones share the threads file by file
_SMALLEST_CAP = 64 << 20
_LARGEST_HOLE = 1 << 30
_WHOLE_WALK = 4
_ZEROS = memoryview(bytes(1 << 20))


class DamagedError(Exception):
    """The block map of a file is not one that the kernel would follow. Never leaves the walk."""


@dataclass(slots=True, eq=False)
class Content:
    """Content of one file, still to be read; `hash_all` sets `sha256` or `state`.

    Attributes:
        size: bytes of the content.
        start: byte offset in the image of its first block: the sort key.
        extents: ascending, not overlapping; what they leave out reads as zeros. None: `chunks`.
        chunks: yields the content in pieces where reading extents would not give it.
        sha256: lower-case hex, or None.
        state: as `schema.SHA256_STATES`.
        reason: why there is no hash.
    """

    size: int
    start: int
    extents: Sequence[Extent] | None
    chunks: Callable[[], Iterable[bytes]] | None = None
    sha256: str | None = None
    state: str = ""
    reason: str = ""


def laid_out(size: int, extents: list[Extent], otherwise: int) -> Content:
    """Return content that lies in `extents`; `otherwise` is its place in the order without any."""
    if len(extents) == 1:
        logical, length, physical = extents[0]
        if logical == 0 and length >= size and physical != HOLE:
            return Content(size, physical, WHOLE)
    return Content(size, extents[0][2] if extents else otherwise, extents)


def in_order(extents: list[Extent]) -> list[Extent]:
    """Return `extents` if each begins after the one before it ends. Raises: DamagedError."""
    if any(a[0] + a[1] > b[0] for a, b in pairwise(extents)):
        raise DamagedError("extents overlap or are out of order")
    return extents


def broken(size: int, start: int, reason: str) -> Content:
    """Return content that cannot be read, for `reason`."""

    def chunks() -> Iterable[bytes]:
        raise DamagedError(reason)

    return Content(size, start, None, chunks)


class Serial:
    """An image that several threads may read, one at a time."""

    def __init__(self, image: Readable) -> None:
        self.size = image.size
        self._image = image
        self._lock = Lock()

    def pread(self, length: int, offset: int) -> bytes:
        """As `Readable.pread`."""
        with self._lock:
            return self._image.pread(length, offset)


class Hasher:
    """Hashes batches of contents of one image; close it with `with`."""

    def __init__(self, image: Serial) -> None:
        self._image = image
        self._cap = max(image.size, _SMALLEST_CAP)
        self._left = _WHOLE_WALK * self._cap
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="sha256")

    def __enter__(self) -> Hasher:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def hash_all(self, contents: list[Content]) -> None:
        """Hash every content; afterwards each has `sha256`, or a `state` and `reason` without it.

        Raises: what `image.pread` raises beside OSError.
        """
        contents.sort(key=_by_start)
        cap, left = self._cap, self._left
        runs: list[tuple[list[Content], int, int]] = []
        run: list[Content] = []
        run_start = run_end = -_NEAR - 1
        for content in contents:
            size = content.size
            extents = content.extents
            if size > cap or size > left or (extents == [] and size > _LARGEST_HOLE):
                content.state = "too-large"
                content.reason = f"{size} bytes, against a limit of {min(cap, left)} here"
                continue
            left -= size
            if extents is None or size > _LARGE:
                continue
            start = content.start
            if size > _CHUNK or extents is not WHOLE:
                runs.append(([content], start, start))
                continue
            if start - run_end > _NEAR or start + size - run_start > _CHUNK:
                if run:
                    runs.append((run, run_start, run_end))
                run = []
                run_start = run_end = start
            run.append(content)
            if start + size > run_end:
                run_end = start + size
        self._left = left
        if run:
            runs.append((run, run_start, run_end))
        for _ in self._pool.map(self._hash_run, runs):
            pass
        for content in contents:
            if not content.state:
                self._stream(content, self._pool)

    def _hash_run(self, work: tuple[list[Content], int, int]) -> None:
        """Hash neighbours from one read, or one file in pieces; leave what cannot be read."""
        run, start, end = work
        if start == end:
            self._stream(run[0])
            return
        try:
            data = memoryview(self._image.pread(end - start, start))
        except OSError:
            data = memoryview(b"")
        if len(data) < end - start:
            for content in run:  # one bad range must not cost its neighbours
                self._stream(content)
            return
        sha256 = hashlib.sha256
        for content in run:
            at = content.start - start
            content.sha256 = sha256(data[at : at + content.size]).hexdigest()
            content.state = "ok"

    def _stream(self, content: Content, pool: ThreadPoolExecutor | None = None) -> None:
        """Hash one file piece by piece; with a pool, a piece is hashed while the next is read."""
        digest = hashlib.sha256()
        done = 0
        update: Future[None] | None = None
        try:
            for piece in content.chunks() if content.chunks else self.pieces(content):
                done += len(piece)
                if pool is None:
                    digest.update(piece)
                    continue
                if update:
                    update.result()
                update = pool.submit(digest.update, piece)
        except (OSError, DamagedError) as error:
            content.state = "unreadable"
            content.reason = " ".join(str(error).split())[:300]
        finally:
            if update:
                update.result()
        if content.state:
            return
        if done == content.size:
            content.sha256, content.state = digest.hexdigest(), "ok"
        else:
            content.state = "unreadable"
            content.reason = f"{done} of {content.size} bytes could be read"

    def pieces(self, content: Content) -> Iterator[bytes | memoryview]:
        """Yield content that lies in extents. Raises: DamagedError, OSError."""
        at = 0
        extents = content.extents
        if extents is WHOLE:
            extents = [(0, content.size, content.start)]
        for logical, length, physical in extents or ():
            if logical >= content.size:  # preallocated beyond the end, or damage
                break
            stop = min(logical + length, content.size)
            if stop <= at:
                continue
            yield from _zeros(logical - at)
            at = max(at, logical)
            if physical == HOLE:
                yield from _zeros(stop - at)
                at = stop
            while at < stop:
                want = min(_CHUNK, stop - at)
                where = physical + at - logical
                data = self._image.pread(want, where)
                if len(data) != want:
                    raise DamagedError(f"blocks at byte {where} lie beyond the end of the image")
                yield data
                at += want
        yield from _zeros(content.size - at)


def _by_start(content: Content) -> int:
    return content.start


def _zeros(length: int) -> Iterator[memoryview]:
    while length > 0:
        yield _ZEROS[: min(length, len(_ZEROS))]
        length -= len(_ZEROS)
