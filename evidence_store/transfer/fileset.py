# SPDX-License-Identifier: Apache-2.0
"""Many files into the store: one object each; their names and times in `members.jsonl`.

Files are read in order. Small ones are handed on in memory, so that several are on their way at
once where the backend says that it is worth it; a larger one goes as it is read.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from types import TracebackType
from typing import Self

from pydantic import JsonValue

from evidence_store.backend import Backend
from evidence_store.digest import SegmentList, segment_name
from evidence_store.errors import SourceChangedError
from evidence_store.item import Members, encode_member
from evidence_store.model import clean
from evidence_store.transfer import Progress, SetSource, Taken, compare, put_once

_SMALL = 1 << 20


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
    size = 0
    with _Keeper(backend) as keeper:
        for member in source.members():
            text = member.name.decode("utf-8", "replace")
            line: dict[str, JsonValue] = {"name": text, "object": None, **member.facts}
            if text.encode() != member.name:
                line["name_hex"] = member.name.hex()
            if member.chunks is not None:
                name = member.place or segment_name(len(digests))
                stream = _Hashed(member.chunks())
                try:
                    keeper.take(f"{prefix}/data/{name}", stream, name in existing)
                except _MemberError as e:
                    line["error"] = str(e)
                    failed.append(f"{clean(text, 120)}: {e}")
                else:
                    digests[name] = stream.sha256
                    size += stream.size
                    line |= {"object": name, "size": stream.size, "sha256": stream.sha256}
            lines.append(encode_member(line))
            progress(size, None)
        keeper.finish()
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
        existing_objects=keeper.reused,
        members=Members(count=len(lines), size=len(body), sha256=hashlib.sha256(body).hexdigest()),
        notes=[*failed, *source.skipped()],
    )


class _Keeper:
    """Stores files, or compares them with what is stored; `reused`: how many were there already."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._at_once = backend.at_once
        self._pool = ThreadPoolExecutor(self._at_once, thread_name_prefix="file")
        self._running: deque[Future[object]] = deque()
        self.reused = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._pool.shutdown(wait=True, cancel_futures=True)

    def take(self, key: str, stream: _Hashed, exists: bool) -> None:
        """Read one file to its end, and store it now or soon.

        Raises: _MemberError if it cannot be read; StoreError, also of an earlier file.
        """
        if exists:
            for _ in stream:
                pass
            self.reused += 1
            self._soon(lambda: compare(self._backend, key, stream.sha256))
            return
        if self._at_once == 1:
            self._backend.create(key, stream)
            return
        parts, rest = [], iter(stream)
        for part in rest:
            parts.append(part)
            if stream.size > _SMALL:
                self._backend.create(key, chain(parts, rest))
                return
        body, sha256 = b"".join(parts), stream.sha256
        self._soon(lambda: self._backend.create(key, body, sha256=sha256))

    def _soon(self, work: Callable[[], object]) -> None:
        if self._at_once == 1:
            work()
            return
        self._running.append(self._pool.submit(work))
        if len(self._running) > 2 * self._at_once:
            self._running.popleft().result()

    def finish(self) -> None:
        """Wait until everything is stored. Raises: StoreError."""
        while self._running:
            self._running.popleft().result()


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
