# SPDX-License-Identifier: Apache-2.0
"""Bytes into the store: what moves, hashes and lays down segments. It knows no case.

An image goes through in 64 MiB segments with at most `workers + 1` of them in memory, whatever its
size. Each worker reads, recognises zeros, hashes and stores one segment; one more thread takes the
linear digest in order. A segment that exists already (a resume) is read back and compared, never
overwritten.

Reading never stops at a bad spot: the failing range is narrowed to 4 KiB, recorded as unreadable
and passed over. An end of file that comes too early is an unreadable range too.
"""

from __future__ import annotations

import hashlib
import json
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from pydantic import JsonValue

from evidence_store.backend import Backend, LocalBackend, sha256_of
from evidence_store.digest import (
    SEGMENT_BYTES,
    LinearDigest,
    Range,
    SegmentList,
    hole_ranges,
    merge,
    segment_name,
)
from evidence_store.errors import AlreadyExistsError, SourceChangedError
from evidence_store.item import Gap, Members
from evidence_store.model import clean

SECTOR = 4096
_READ = 4 << 20
_ZERO_MIB = bytearray(1 << 20)

Progress = Callable[[int, int | None], None]


class Source(Protocol):
    """What every source tells of itself."""

    @property
    def text(self) -> str:
        """What people call it ("laptop 7")."""

    @property
    def facts(self) -> Mapping[str, JsonValue]:
        """What was observed of it (path, type, size, serial); stands in the manifest.

        `stamp`, where there is one, is a text that differs once the content was written to.
        """

    @property
    def identity(self) -> Mapping[str, JsonValue] | None:
        """By what a resume recognises it; None if it cannot be read twice (a stream)."""

    @property
    def method(self) -> str:
        """How it is read, for a third party to repeat."""

    def changes(self) -> list[str]:
        """After reading: what is no longer as it was at the start, in words."""


class ImageSource(Source, Protocol):
    """A source of known size that can be read at any offset, by several threads at once."""

    @property
    def size(self) -> int:
        """Bytes."""

    def readinto(self, view: memoryview, offset: int) -> int:
        """Read into `view`; return the bytes read, 0 only at the end. Raises: OSError."""

    def next_data(self, offset: int) -> int:
        """Return the first offset >= `offset` that may hold data, or `size`. Zeros before it."""


class StreamSource(Source, Protocol):
    """A source that can be read once, in order, and whose size is known at its end."""

    def readinto(self, view: memoryview) -> int:
        """Read into `view`; return the bytes read, 0 only at the end. Raises: OSError."""


@dataclass(frozen=True)
class Member:
    """One file of a set.

    Attributes:
        name: original name below the source, as bytes.
        facts: type, times, mode, owner.
        chunks: its content in parts; None for what has none (a directory, a link).
        place: object name below `data/`; None for the next free number.
    """

    name: bytes
    facts: Mapping[str, JsonValue]
    chunks: Callable[[], Iterator[bytes]] | None
    place: str | None = None


@runtime_checkable
class SetSource(Source, Protocol):
    """Many files."""

    def members(self) -> Iterable[Member]:
        """Yield the files in a stable order."""

    def skipped(self) -> list[str]:
        """After reading: what was not taken (sockets, pipes, unreadable folders), in words."""


@dataclass
class Taken:
    """What an ingest stored, ready for the manifest."""

    segments: SegmentList
    content: dict[str, str] | None
    gaps: list[Gap] = field(default_factory=list)
    holes_bytes: int = 0
    stored_objects: int = 0
    stored_bytes: int = 0
    existing_objects: int = 0
    members: Members | None = None
    notes: list[str] = field(default_factory=list)


@dataclass
class _Segment:
    index: int
    offset: int
    view: memoryview
    buffer: bytearray
    prefilled: bool
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
        progress: called with (bytes done, bytes in all or None).

    Raises: SourceChangedError if a segment stored earlier has other content; StoreError. Everything
    stored until then stays.
    """
    return _ImageTaker(
        backend, prefix, source, linear, digests, workers, segment_size, progress
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
        progress: Progress,
    ) -> None:
        self._backend = backend
        self._prefix = prefix
        self._source = source
        self._size: int | None = getattr(source, "size", None)
        self._segment_size = segment_size
        self._progress = progress
        self._workers = workers
        self._linear = LinearDigest(["sha256", *digests]) if linear else None
        self._order: queue.SimpleQueue[_Segment | int | None] = queue.SimpleQueue()
        self._buffers: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
        self._spare = workers + 1
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
                segment = self._segment(index, offset, length, prefilled=False)
            else:
                segment = self._segment(index, offset, self._segment_size, prefilled=True)
                n = self._fill_from_stream(segment)
                if n == 0:
                    self._release(segment)
                    self._release(segment)
                    self._size = offset
                    return
                if n < self._segment_size:
                    segment.view = segment.view[:n]
                    self._size = offset + n
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

    def _segment(self, index: int, offset: int, length: int, *, prefilled: bool) -> _Segment:
        if self._spare and self._buffers.empty():
            self._spare -= 1
            buffer = bytearray(self._segment_size)
        else:
            buffer = self._next_buffer()
        return _Segment(index, offset, memoryview(buffer)[:length], buffer, prefilled)

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
            gaps: list[Gap] = []
            try:
                if not segment.prefilled:
                    gaps = read_with_gaps(self._source, segment.view, segment.offset)  # type: ignore[arg-type]
            finally:
                segment.filled.set()
            self._keep(segment, gaps)
            self._advance(len(segment.view))
        except BaseException:
            self._stop.set()
            raise
        finally:
            self._release(segment)

    def _keep(self, segment: _Segment, gaps: list[Gap]) -> None:
        name = segment_name(segment.index)
        if sum(gap.length for gap in gaps) == len(segment.view):
            with self._lock:
                self._gaps += gaps
            return
        if not gaps and is_zero(segment.view):
            with self._lock:
                self._holes.append(segment.index)
            return
        sha256 = hashlib.sha256(segment.view).hexdigest()
        new = put_once(self._backend, f"{self._prefix}/data/{name}", segment.view, sha256,
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
            if self._linear and not self._stop.is_set():
                self._linear.update(part.view)
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


def take_set(
    backend: Backend,
    prefix: str,
    source: SetSource,
    *,
    progress: Progress = lambda _done, _total: None,
) -> Taken:
    """Store every file of a source as one object; original names go into `members.jsonl`.

    Raises: SourceChangedError, StoreError.
    """
    digests: dict[str, str] = {}
    lines: list[bytes] = []
    failed: list[str] = []
    data = f"{prefix}/data/"
    existing = {stored.key.removeprefix(data) for stored in backend.list(f"{prefix}/data")}
    size = reused = 0
    for member in source.members():
        text = member.name.decode("utf-8", "replace")
        line: dict[str, JsonValue] = {"name": text, "object": None, **member.facts}
        if text.encode() != member.name:
            line["name_hex"] = member.name.hex()
        if member.chunks is not None:
            name = member.place or segment_name(len(digests))
            stream = _Hashed(member.chunks())
            try:
                reused += _take_member(backend, f"{prefix}/data/{name}", stream, name in existing)
            except _MemberError as e:
                line["error"] = str(e)
                failed.append(f"{clean(text, 120)}: {e}")
            else:
                digests[name] = stream.sha256
                size += stream.size
                line |= {"object": name, "size": stream.size, "sha256": stream.sha256}
        lines.append(json.dumps(line, sort_keys=True).encode() + b"\n")
        progress(size, None)
    if gone := existing - set(digests):
        raise SourceChangedError(
            f"{len(gone)} files stored before are no longer in the source, or can no longer be "
            f"read; the first is {min(gone)}",
            hint="the source changed; take it as a new item with --again",
        )
    body = b"".join(lines)
    put_once(backend, f"{prefix}/members.jsonl", body, hashlib.sha256(body).hexdigest())
    return Taken(
        segments=SegmentList(size, 0, digests),
        content=None,
        stored_objects=len(digests),
        stored_bytes=size,
        existing_objects=reused,
        members=Members(count=len(lines), size=len(body), sha256=hashlib.sha256(body).hexdigest()),
        notes=[*failed, *source.skipped()],
    )


def _take_member(backend: Backend, key: str, stream: _Hashed, exists: bool) -> bool:
    """Store one file, or compare it with what is stored; return whether it was there already."""
    if not exists:
        backend.create(key, stream)
        return False
    for _ in stream:
        pass
    _compare(backend, key, stream.sha256)
    return True


class _MemberError(Exception):
    """A file of a set could not be read; the rest goes on."""


class _Hashed:
    """An iterator of chunks that hashes what passes, and marks errors as the source's."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._digest = hashlib.sha256()
        self.size = 0

    def __iter__(self) -> Iterator[bytes]:
        while True:
            try:
                chunk = next(self._chunks, b"")
            except OSError as e:
                raise _MemberError(clean(e.strerror or str(e), 200)) from e
            if not chunk:
                return
            self._digest.update(chunk)
            self.size += len(chunk)
            yield chunk

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


def put_once(
    backend: Backend, key: str, body: bytes | memoryview, sha256: str, *, exists: bool = False
) -> bool:
    """Store `body`, or compare it with what is stored; return whether it is new.

    Raises: SourceChangedError if other bytes are stored under `key`; StoreError.
    """
    if not exists:
        try:
            backend.create(key, body)
        except AlreadyExistsError:
            pass
        else:
            return True
    if isinstance(backend, LocalBackend) and not backend.atomic_create:
        _, size = sha256_of(backend, key)
        if size < len(body):
            # Without hard links a kill can leave the beginning of an object. Nothing names it yet.
            backend.set_aside(key)
            backend.create(key, body)
            return True
    _compare(backend, key, sha256)
    return False


def _compare(backend: Backend, key: str, sha256: str) -> None:
    stored, _ = sha256_of(backend, key)
    if stored != sha256:
        raise SourceChangedError(
            f"{key} was stored with other content (SHA-256 {stored}, now {sha256}); "
            "nothing was overwritten",
            hint="the source changed since; take it as a new item with --again",
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


def read_with_gaps(source: ImageSource, view: memoryview, offset: int) -> list[Gap]:
    """Fill `view` from `offset`; return what could not be read, zero-filled and narrowed to 4 KiB.

    Every part of `view` is written: a buffer is used again, and what lies in it is another segment.
    """
    gaps: list[Gap] = []
    work = [(0, len(view))]
    while work:
        at, end = work.pop()
        while at < end:
            data = min(source.next_data(offset + at) - offset, end)
            if data > at:  # a hole of the source: reading it would only fill the page cache
                _zero(view[at:data])
                at = data
                continue
            try:
                n = source.readinto(view[at : min(end, at + _READ)], offset + at)
            except OSError as e:
                span = min(end, at + _READ) - at
                if span <= SECTOR:
                    _zero(view[at : at + span])
                    why = clean(e.strerror or str(e), 200)
                    gaps.append(Gap(offset=offset + at, length=span, error=why))
                    at += span
                    continue
                half = max(SECTOR, span // 2 // SECTOR * SECTOR)
                work.append((at + span, end))
                work.append((at + half, at + span))
                end = at + half
                continue
            if n == 0:
                _zero(view[at:end])
                gaps.append(Gap(offset=offset + at, length=end - at, error="source ended early"))
                break
            at += n
    return join_gaps(gaps)


def _zero(view: memoryview) -> None:
    for at in range(0, len(view), len(_ZERO_MIB)):
        part = view[at : at + len(_ZERO_MIB)]
        part[:] = memoryview(_ZERO_MIB)[: len(part)]


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
