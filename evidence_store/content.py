# SPDX-License-Identifier: Apache-2.0
"""What an item's own records say of its bytes, against the bytes and against each other.

One pass over the objects of an item: several at once (`hash_objects`), or in order with the digests
of all logical bytes (`hash_in_order`). It judges no case; `evidence_store.verify` does.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from evidence_store.ahead import in_order
from evidence_store.backend import ObjectNotFoundError, parts_of_fd, translate
from evidence_store.digest import LinearDigest, SegmentList, segment_name
from evidence_store.errors import StoreError, StoreUnavailableError
from evidence_store.item import MAX_MEMBER_BYTES, Manifest, Members, parse_member

if TYPE_CHECKING:
    from evidence_store.store import Case

LINEAR_DIGESTS = ("md5", "sha1", "sha256")
_SHOWN_LINES = 10
_PART = 4 << 20
_ZERO_PART = 64 << 20
_WINDOW = 4


def contradictions(manifest: Manifest, segments: SegmentList) -> Iterator[str]:
    """Yield in what a manifest and its segment list, or the manifest and itself, disagree."""
    said = (manifest.size, manifest.segment_size, manifest.stored_objects)
    if said != (segments.size, segments.segment_size, len(segments.digests)):
        yield "its manifest and its segment list speak of different items"
    if manifest.unreadable_bytes != sum(gap.length for gap in segments.unreadable):
        yield "its manifest and its segment list disagree on what was unreadable"
    holes, stored = 0, segments.size
    if segments.segment_size:
        holes = sum(_run_bytes(segments, first, count) for first, count in segments.holes)
        stored = sum(segments.length(int(name, 16)) for name in segments.digests)
    if (manifest.holes_bytes, manifest.stored_bytes) != (holes, stored):
        yield "its manifest and its segment list disagree on how much is stored or zero"
    is_set = manifest.layout == "set"
    odd = manifest.content if is_set else manifest.members
    if odd or is_set != (manifest.members is not None) or is_set != (segments.segment_size == 0):
        yield f"its manifest contradicts itself: it is no {manifest.layout}"


def _run_bytes(segments: SegmentList, first: int, count: int) -> int:
    end = min((first + count) * segments.segment_size, segments.size)
    return end - first * segments.segment_size


def check_members(
    case: Case, item_id: str, listed: Members, segments: SegmentList, present: Mapping[str, int]
) -> Iterator[str]:
    """Yield what is wrong with the `members.jsonl` of a file set; reads it once, line by line.

    Args:
        case: the case.
        item_id: the file set.
        listed: what its manifest says of the file.
        segments: its segment list: every object must stand in one line, with its SHA-256.
        present: names below the item -> bytes stored.
    """
    key = f"{case.item_prefix(item_id)}/members.jsonl"
    lines = _MemberLines(segments, present)
    digest, size = hashlib.sha256(), 0
    try:
        with os.fdopen(case.store.backend.open_fd(key), "rb") as f:
            while line := f.readline(MAX_MEMBER_BYTES + 1):
                digest.update(line)
                size += len(line)
                lines.take(line)
    except StoreUnavailableError:
        raise
    except StoreError as e:
        yield str(e)
        return
    except OSError as e:
        yield str(translate(e, f"cannot read {key}"))
        return
    if (digest.hexdigest(), size) != (listed.sha256, listed.size):
        yield "members.jsonl is not what was recorded"
        return
    yield from lines.problems(listed.count)


class _MemberLines:
    """The lines of a `members.jsonl` against the segment list."""

    def __init__(self, segments: SegmentList, present: Mapping[str, int]) -> None:
        self._digests = segments.digests
        self._present = present
        self._named: set[str] = set()
        self._count = 0
        self._wrong = 0
        self._first: list[str] = []

    def take(self, line: bytes) -> None:
        """Take the next line, its newline included."""
        self._count += 1
        try:
            self._check(line)
        except ValueError as e:
            self._wrong += 1
            if len(self._first) < _SHOWN_LINES:
                self._first.append(f"members.jsonl line {self._count}: {e}")

    def _check(self, line: bytes) -> None:
        member = parse_member(line)
        name = member["object"]
        if not isinstance(name, str):
            return
        expected = self._digests.get(name)
        if expected is None:
            raise ValueError("names an object that the segment list does not have")
        if name in self._named:
            raise ValueError(f"data/{name} was named before")
        self._named.add(name)
        if member.get("sha256") != expected:
            raise ValueError(f"states another SHA-256 for data/{name} than the segment list")
        if member.get("size") != self._present.get(f"data/{name}"):
            raise ValueError(f"states another size for data/{name} than it has")

    def problems(self, count: int) -> Iterator[str]:
        """Yield what was wrong, after the last line; `count` lines were promised."""
        yield from self._first
        if self._wrong > len(self._first):
            yield f"members.jsonl: {self._wrong - len(self._first)} more lines are wrong"
        if self._count != count:
            yield f"members.jsonl has {self._count} lines, recorded {count}"
        if missing := len(self._digests) - len(self._named):
            name = next(n for n in self._digests if n not in self._named)
            yield f"members.jsonl does not name {missing} stored objects, the first is data/{name}"


def hash_objects(
    case: Case, item_id: str, segments: SegmentList, workers: int = 2
) -> Iterator[tuple[str, int, str]]:
    """Hash every object of an item, several at once; yield (name, bytes, problem or "") in order.

    Reads each byte once, 4 MiB at a time for each worker.
    """
    backend, prefix = case.store.backend, case.item_prefix(item_id)

    def check(name: str) -> tuple[str, int, str]:
        try:
            actual, size = backend.sha256(f"{prefix}/data/{name}")
        except ObjectNotFoundError:
            return name, 0, "is missing"
        except StoreUnavailableError:
            raise
        except StoreError as e:
            return name, 0, f"cannot be read: {e}"
        expected = segments.digests[name]
        same = "" if actual == expected else f"has SHA-256 {actual}, recorded {expected}"
        return name, size, same

    with ThreadPoolExecutor(workers, thread_name_prefix="verify") as pool:
        yield from in_order(pool, check, segments.digests)


def hash_in_order(
    case: Case,
    item_id: str,
    segments: SegmentList,
    digest: LinearDigest,
    progress: Callable[[int], None],
) -> Iterator[tuple[str, int, str]]:
    """As `hash_objects` for an image, giving `digest` all logical bytes in order on the way.

    Reads each byte once. `digest` has a thread of its own; at most four parts of 4 MiB wait for it.
    `progress` is called with the bytes of each part, zeros included. After an object that cannot be
    read, or has not its size, `digest` is worth nothing.
    """
    feed = _Feed(digest, progress)
    with contextlib.closing(feed):
        at = 0
        for name, expected in segments.digests.items():
            index = int(name, 16)
            feed.zeros(index * segments.segment_size - at)
            try:
                actual, size = feed.take(case, f"{case.item_prefix(item_id)}/data/{name}")
            except ObjectNotFoundError:
                yield name, 0, "is missing"
            except StoreUnavailableError:
                raise
            except StoreError as e:
                yield name, 0, f"cannot be read: {e}"
            else:
                same = "" if actual == expected else f"has SHA-256 {actual}, recorded {expected}"
                yield name, size, same
            at = min((index + 1) * segments.segment_size, segments.size)
        feed.zeros(segments.size - at)


class _Feed:
    """Hands parts of an image to a `LinearDigest` in its own thread, behind a bounded window."""

    def __init__(self, digest: LinearDigest, progress: Callable[[int], None]) -> None:
        self._digest = digest
        self._progress = progress
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="linear")
        self._buffers = [memoryview(bytearray(_PART)) for _ in range(_WINDOW)]
        self._waiting: deque[Future[None]] = deque()
        self._turn = 0

    def _buffer(self) -> memoryview:
        # At most _WINDOW - 1 works wait, and each took another buffer: this one is free.
        return self._buffers[self._turn]

    def _submit(self, work: Callable[[], None], length: int) -> None:
        self._waiting.append(self._pool.submit(work))
        if len(self._waiting) == _WINDOW:
            self._waiting.popleft().result()
        self._progress(length)

    def zeros(self, length: int) -> None:
        """Take a hole."""
        while length > 0:
            part = min(length, _ZERO_PART)
            self._submit(partial(self._digest.zeros, part), part)
            length -= part

    def take(self, case: Case, key: str) -> tuple[str, int]:
        """Take an object; return (SHA-256, bytes) of it. Raises: StoreError."""
        own, size = LinearDigest(), 0
        fd = case.store.backend.open_fd(key)
        try:
            for part in parts_of_fd(fd, self._buffer):
                if isinstance(part, int):
                    self.zeros(part)
                    own.zeros(part)
                    size += part
                else:
                    self._submit(partial(self._digest.update, part), len(part))
                    self._turn = (self._turn + 1) % _WINDOW
                    own.update(part)
                    size += len(part)
        except OSError as e:
            raise translate(e, f"cannot read {key}") from e
        finally:
            os.close(fd)
        return own.results()["sha256"], size

    def close(self) -> None:
        """Wait for what was handed on."""
        self._pool.shutdown(wait=True, cancel_futures=False)
        while self._waiting:
            self._waiting.popleft().result()


def check_content(case: Case, manifest: Manifest, workers: int = 2) -> list[str]:
    """Return what differs when every object of an item is read back; empty if nothing does."""
    segments = case.segments(manifest)
    return [
        f"{called(f'data/{name}')} {problem}"
        for name, _, problem in hash_objects(case, manifest.item, segments, workers)
        if problem
    ]


def called(name: str) -> str:
    """`data/000…0a` of an image is also called segment 10."""
    base = os.path.basename(name)  # noqa: PTH119
    try:
        index = int(base, 16)
    except ValueError:
        return name
    return f"segment {index} ({name})" if base == segment_name(index) else name
