# SPDX-License-Identifier: Apache-2.0
"""Bytes into the store: what moves, hashes and lays them down. It knows no case.

`image.take_image` takes what is one run of bytes, `fileset.take_set` what is many files. Both store
each object once; one that exists already (a resume) is read back and compared, never overwritten.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from pydantic import JsonValue

from evidence_store.backend import Backend, LocalBackend, Runs, SparseBody
from evidence_store.digest import SegmentList
from evidence_store.errors import AlreadyExistsError, SourceChangedError
from evidence_store.item import Gap, Members

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


@runtime_checkable
class BulkSource(ImageSource, Protocol):
    """A source that reads the many pieces of a segment better all at once than one by one."""

    def fill(self, view: memoryview, offset: int, stop: threading.Event) -> tuple[Runs, list[Gap]]:
        """Read a whole segment at `offset` into `view`; return what was read, what could not be.

        Runs are (start, end) in `view`, in order; outside them zeros are meant, whatever `view`
        keeps there. Gaps are in bytes of the source. Once `stop` is set it returns as soon as
        nothing writes to `view` any more, and what it returns is not used.
        """


@runtime_checkable
class Immutable(Protocol):
    """A source whose content cannot be another under the same identity."""

    @property
    def immutable(self) -> bool:
        """Whether somebody else vouches for that (a service by its contract)."""


@runtime_checkable
class Concluding(Protocol):
    """A source that says of itself what its content must be (a container with stored digests)."""

    @property
    def digests(self) -> tuple[str, ...]:
        """Algorithms, beside SHA-256, that it needs of its content."""

    def conclude(self, content: Mapping[str, str] | None) -> list[str]:
        """Be told the digests of the content (None: not taken) once all was read.

        Return remarks in words; any of them makes the item partial. May add to `facts`.
        """


class UnreadableError(OSError):
    """Bytes cannot be read. `length`: how many, from the one asked for, are lost together."""

    def __init__(self, why: str, length: int) -> None:
        super().__init__(errno.EIO, why)
        self.length = length


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


def put_once(
    backend: Backend, key: str, body: bytes | SparseBody, sha256: str, *, exists: bool = False
) -> bool:
    """Store `body`, or compare it with what is stored; return whether it is new.

    Raises: SourceChangedError if other bytes are stored under `key`; StoreError.
    """
    if not exists:
        try:
            backend.create(key, body, sha256=sha256)
        except AlreadyExistsError:
            pass
        else:
            return True
    if isinstance(backend, LocalBackend) and not backend.atomic_create:
        _, size = backend.sha256(key)
        if size < (len(body.view) if isinstance(body, SparseBody) else len(body)):
            # Without hard links a kill can leave the beginning of an object. Nothing names it yet.
            backend.set_aside(key)
            backend.create(key, body, sha256=sha256)
            return True
    compare(backend, key, sha256)
    return False


def compare(backend: Backend, key: str, sha256: str) -> None:
    """Raise SourceChangedError if the object under `key` is not the one with this SHA-256."""
    stored, _ = backend.sha256(key)
    if stored != sha256:
        raise SourceChangedError(
            f"{key} was stored with other content (SHA-256 {stored}, now {sha256}); "
            "nothing was overwritten",
            hint="the source changed since; take it as a new item with --again",
        )
