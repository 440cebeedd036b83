# SPDX-License-Identifier: Apache-2.0
"""Many files into the store: one object each; their names and times in `members.jsonl`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from pydantic import JsonValue

from evidence_store.backend import Backend
from evidence_store.digest import SegmentList, segment_name
from evidence_store.errors import SourceChangedError
from evidence_store.item import Members, encode_member
from evidence_store.model import clean
from evidence_store.transfer import Progress, SetSource, Taken, compare, put_once


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
        lines.append(encode_member(line))
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
    compare(backend, key, stream.sha256)
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
