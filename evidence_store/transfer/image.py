# SPDX-License-Identifier: Apache-2.0
"""An image into the store, in segments, with at most `workers + 1` of them in memory.

Each worker reads, hashes and stores one segment; one more thread takes the linear digest in order.
A source that fills a segment at once (`BulkSource`) is kept busy by `workers` of them.
Only the runs of a segment that were read are looked at again: what lies between them is zeros, and
neither filled in nor scanned.

Reading never stops at a bad spot: the failing range is narrowed to 4 KiB, recorded as unreadable
and passed over; a source that knows what is lost together says so (`UnreadableError`). An end of
file that comes too early is an unreadable range too.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import cast

from evidence_store.backend import Backend, Runs, SparseBody
from evidence_store.digest import (
    SEGMENT_BYTES,
    LinearDigest,
    Range,
    SegmentList,
    hole_ranges,
    merge,
    segment_name,
)
from evidence_store.errors import SourceChangedError
from evidence_store.item import Gap
from evidence_store.model import clean
from evidence_store.transfer import (
    BulkSource,
    ImageSource,
    Progress,
    StreamSource,
    Taken,
    UnreadableError,
    put_once,
)
from evidence_store.transfer.resume import Noted, ResumeRecord

SECTOR = 4096
_READ = 1 << 20  # stays in a core's cache from the read to its digest
_ZERO_MIB = bytearray(1 << 20)


@dataclass
class _Segment:
    index: int
    offset: int
    view: memoryview
    buffer: bytearray
    runs: Runs | None = None  # set once it is filled
    filled: threading.Event = field(default_factory=threading.Event)
    holders: int = 2


def take_image(
    backend: Backend,
    prefix: str,
    source: ImageSource | StreamSource,
    *,
    linear: bool,
    digests: Iterable[str] = (),
    workers: int = 2,
    segment_size: int = SEGMENT_BYTES,
    resume: ResumeRecord | None = None,
    progress: Progress = lambda _done, _total: None,
) -> Taken:
    """Store a source as an image below `prefix`; return what was stored.

    Args:
        backend: where the segments go.
        prefix: folder of the item.
        source: an `ImageSource`, or a `StreamSource` that is read in order.
        linear: whether to take the digest of all logical bytes in order.
        digests: algorithms beside SHA-256 (`md5`, `sha1`) for old tools.
        workers: segments in work at once.
        segment_size: bytes of a segment.
        resume: what earlier runs noted of a source that cannot change; those segments are read
            from the store instead.
        progress: called with (bytes done, bytes in all or None).

    Raises: SourceChangedError if a segment stored earlier has other content; StoreError. Everything
    stored until then stays.
    """
    return _ImageTaker(
        backend, prefix, source, linear, digests, workers, segment_size, resume, progress
    ).run()


class _Stopped(Exception):
    """A worker failed; its own error is the one to report."""


class _ImageTaker:
    def __init__(
        self,
        backend: Backend,
        prefix: str,
        source: ImageSource | StreamSource,
        linear: bool,
        digests: Iterable[str],
        workers: int,
        segment_size: int,
        resume: ResumeRecord | None,
        progress: Progress,
    ) -> None:
        self._backend = backend
        self._prefix = prefix
        self._source = source
        self._bulk = source if isinstance(source, BulkSource) else None
        self._size: int | None = getattr(source, "size", None)
        self._segment_size = segment_size
        self._resume = resume
        self._progress = progress
        self._workers = workers
        self._linear = LinearDigest(["sha256", *digests]) if linear else None
        self._order: queue.SimpleQueue[_Segment | int | None] = queue.SimpleQueue()
        self._buffers: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
        self._spare = workers if self._bulk else workers + 1
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._done = 0
        self._digests: dict[int, str] = {}
        self._holes: list[int] = []
        self._gaps: list[Gap] = []
        self._existing = {
            stored.key.rpartition("/")[2] for stored in backend.list(f"{prefix}/data")
        }
        self._reused = 0
        self._notes: list[str] = []

    def run(self) -> Taken:
        linear_thread = threading.Thread(target=self._digest_in_order, name="linear", daemon=True)
        linear_thread.start()
        running: set[Future[None]] = set()
        try:
            with ThreadPoolExecutor(self._workers, thread_name_prefix="segment") as pool:
                try:
                    for segment in self._segments():
                        running.add(pool.submit(self._store, segment))
                        finished, running = wait(running, 0, FIRST_COMPLETED)
                        for future in finished:
                            future.result()
                    for future in running:
                        future.result()
                except BaseException as e:
                    self._stop.set()
                    pool.shutdown(wait=True, cancel_futures=True)
                    if isinstance(e, _Stopped):
                        for future in running:
                            if not future.cancelled():
                                future.result()
                    raise
        except BaseException:
            self._stop.set()
            self._order.put(None)
            raise
        self._order.put(None)
        linear_thread.join()
        return self._taken()

    # -- the pieces ------------------------------------------------------------------------------

    def _segments(self) -> Iterator[_Segment]:
        """Yield segments to store, in order; note holes on the way. Blocks for a free buffer."""
        source = self._source
        index = 0
        while self._size is None or index * self._segment_size < self._size:
            offset = index * self._segment_size
            if self._size is not None and not hasattr(source, "next_data"):
                raise RuntimeError("a source of known size must tell where data begins")
            if self._size is not None:
                length = min(self._segment_size, self._size - offset)
                data = min(source.next_data(offset), self._size)  # type: ignore[union-attr]
                if data >= offset + length:
                    index = self._skip(index, data)
                    continue
                segment = self._segment(index, offset, length)
            else:
                segment = self._segment(index, offset, self._segment_size)
                n = self._fill_from_stream(segment)
                if n == 0:
                    self._release(segment)
                    self._release(segment)
                    self._size = offset
                    return
                if n < self._segment_size:
                    segment.view = segment.view[:n]
                    self._size = offset + n
                segment.runs = [(0, n)]
                segment.filled.set()
            self._order.put(segment)
            yield segment
            index += 1

    def _fill_from_stream(self, segment: _Segment) -> int:
        """Read until the segment is full or the stream ends; a failing stream ends here."""
        at = 0
        while at < len(segment.view):
            try:
                n = self._source.readinto(segment.view[at:])  # type: ignore[call-arg]
            except OSError as e:
                why = clean(e.strerror or str(e), 200)
                self._notes.append(f"the stream failed at byte {segment.offset + at}: {why}")
                n = 0
            if n == 0:
                break
            at += n
        return at

    def _skip(self, index: int, data: int) -> int:
        """Note the all-zero segments that end at or before `data`; return the next index."""
        assert self._size is not None  # noqa: S101
        last = -(-self._size // self._segment_size)
        until = last if data >= self._size else data // self._segment_size
        length = min(until * self._segment_size, self._size) - index * self._segment_size
        self._holes.extend(range(index, until))
        self._order.put(length)
        self._advance(length)
        return until

    def _segment(self, index: int, offset: int, length: int) -> _Segment:
        if self._spare and self._buffers.empty():
            self._spare -= 1
            buffer = bytearray(self._segment_size)
        else:
            buffer = self._next_buffer()
        return _Segment(index, offset, memoryview(buffer)[:length], buffer)

    def _next_buffer(self) -> bytearray:
        while True:
            try:
                return self._buffers.get(timeout=0.5)
            except queue.Empty:
                if self._stop.is_set():
                    raise _Stopped from None

    def _release(self, segment: _Segment) -> None:
        with self._lock:
            segment.holders -= 1
            last = segment.holders == 0
        if last:
            segment.view.release()
            self._buffers.put(segment.buffer)

    def _store(self, segment: _Segment) -> None:
        try:
            if self._stop.is_set():
                return
            try:
                read = None if self._take_stored(segment) else self._read(segment)
            finally:
                segment.filled.set()
            if self._stop.is_set():
                return
            if read is not None:
                self._keep(segment, *read)
            self._advance(len(segment.view))
        except BaseException:
            self._stop.set()
            raise
        finally:
            self._release(segment)

    def _read(self, segment: _Segment) -> tuple[Runs, list[Gap], str]:
        """Fill a segment, unless a stream did; return what was read, what could not be, SHA-256."""
        gaps: list[Gap] = []
        digest = LinearDigest()
        if segment.runs is not None:
            digest.update(segment.view)
        elif self._bulk:
            segment.runs, gaps = self._bulk.fill(segment.view, segment.offset, self._stop)
            digest.sparse(segment.view, segment.runs)
        else:
            source = cast(ImageSource, self._source)
            segment.runs, gaps = read_runs(source, segment.view, segment.offset, digest)
        return segment.runs, gaps, digest.results()["sha256"]

    def _take_stored(self, segment: _Segment) -> bool:
        """Fill a segment from the store, if it is there as an earlier run noted it."""
        name = segment_name(segment.index)
        noted = self._resume.get(name) if self._resume and name in self._existing else None
        if noted is None or segment.runs is not None:
            return False
        digest, at = LinearDigest(), 0
        fd = self._backend.open_fd(f"{self._prefix}/data/{name}")
        try:
            if os.fstat(fd).st_size != len(segment.view):
                return False
            while at < len(segment.view):
                n = os.preadv(fd, [segment.view[at : at + _READ]], at)
                if n == 0:
                    return False
                digest.update(segment.view[at : at + n])
                at += n
        except OSError:
            return False  # reading it from the source and comparing tells what is wrong
        finally:
            os.close(fd)
        if digest.results()["sha256"] != noted.sha256:
            return False
        segment.runs = [(0, at)]
        with self._lock:
            self._digests[segment.index] = noted.sha256
            self._gaps += noted.gaps
            self._reused += 1
        return True

    def _keep(self, segment: _Segment, runs: Runs, gaps: list[Gap], sha256: str) -> None:
        name = segment_name(segment.index)
        if sum(gap.length for gap in gaps) == len(segment.view):
            with self._lock:
                self._gaps += gaps
            return
        if not gaps and all(is_zero(segment.view[start:end]) for start, end in runs):
            with self._lock:
                self._holes.append(segment.index)
            return
        if self._resume:
            self._resume.add(name, Noted(sha256, gaps))
        new = put_once(self._backend, f"{self._prefix}/data/{name}",
                       SparseBody(segment.view, runs), sha256,
                       exists=name in self._existing)  # fmt: skip
        with self._lock:
            self._digests[segment.index] = sha256
            self._gaps += gaps
            self._reused += not new

    def _advance(self, length: int) -> None:
        with self._lock:
            self._done += length
            done = self._done
        self._progress(done, self._size)

    def _digest_in_order(self) -> None:
        while (part := self._order.get()) is not None:
            if isinstance(part, int):
                if self._linear:
                    self._linear.zeros(part)
                continue
            while not part.filled.wait(0.5) and not self._stop.is_set():
                pass
            if self._linear and part.runs is not None and not self._stop.is_set():
                self._linear.sparse(part.view, part.runs)
            self._release(part)

    def _taken(self) -> Taken:
        size = self._size or 0
        stored = sorted(self._holes)
        unexpected = self._existing - {segment_name(i) for i in self._digests}
        if unexpected:
            raise SourceChangedError(
                f"{len(unexpected)} segments stored before no longer exist in the source, "
                f"the first is {min(unexpected)}",
                hint="the source changed; take it as a new item with --again",
            )
        gaps = join_gaps(self._gaps)
        segments = SegmentList(
            size=size,
            segment_size=self._segment_size,
            digests={segment_name(i): self._digests[i] for i in sorted(self._digests)},
            holes=hole_ranges(stored),
            unreadable=merge(Range(g.offset, g.length) for g in gaps),
        )
        return Taken(
            segments=segments,
            content=self._linear.results() if self._linear else None,
            gaps=gaps,
            holes_bytes=sum(segments.length(i) for i in stored),
            stored_objects=len(self._digests),
            stored_bytes=sum(segments.length(i) for i in self._digests),
            existing_objects=self._reused,
            notes=self._notes,
        )


def is_zero(view: memoryview) -> bool:
    """Tell whether all bytes are zero, by memcmp."""
    step = len(_ZERO_MIB)
    for at in range(0, len(view), step):
        part = view[at : at + step]
        zeros = _ZERO_MIB if len(part) == step else bytearray(len(part))
        if zeros != part:
            return False
    return True


def read_runs(
    source: ImageSource, view: memoryview, offset: int, digest: LinearDigest
) -> tuple[Runs, list[Gap]]:
    """Read a segment at `offset` into `view`; return what was read and what could not be.

    Runs are (start, end) in `view`; outside them `view` keeps what lay in it, and zeros are meant.
    Gaps are narrowed to 4 KiB. `digest` takes all of the segment in order, zeros included.
    """
    runs: Runs = []
    gaps: list[Gap] = []
    hashed = 0
    work = [(0, len(view))]
    while work:
        at, end = work.pop()
        while at < end:
            data = min(source.next_data(offset + at) - offset, end)
            if data > at:
                at = data
                continue
            try:
                n = source.readinto(view[at : min(end, at + _READ)], offset + at)
            except OSError as e:
                span = min(end, at + _READ) - at
                if isinstance(e, UnreadableError) and e.length > 0:
                    span = min(span, e.length)
                elif span > SECTOR:
                    half = max(SECTOR, span // 2 // SECTOR * SECTOR)
                    work.append((at + span, end))
                    work.append((at + half, at + span))
                    end = at + half
                    continue
                why = clean(e.strerror or str(e), 200)
                gaps.append(Gap(offset=offset + at, length=span, error=why))
                at += span
                continue
            if n == 0:
                gaps.append(Gap(offset=offset + at, length=end - at, error="source ended early"))
                break
            digest.zeros(at - hashed)
            digest.update(view[at : at + n])
            if runs and runs[-1][1] == at:
                runs[-1] = (runs[-1][0], at + n)
            else:
                runs.append((at, at + n))
            at += n
            hashed = at
    digest.zeros(len(view) - hashed)
    return runs, join_gaps(gaps)


def join_gaps(gaps: Iterable[Gap]) -> list[Gap]:
    """Return gaps in order, touching ones of one cause joined."""
    out: list[Gap] = []
    for gap in sorted(gaps, key=lambda g: g.offset):
        last = out[-1] if out else None
        if last and last.error == gap.error and last.offset + last.length == gap.offset:
            length = last.length + gap.length
            out[-1] = Gap(offset=last.offset, length=length, error=gap.error)
        else:
            out.append(gap)
    return out
