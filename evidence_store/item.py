# SPDX-License-Identifier: Apache-2.0
"""Items: the manifest that describes one, and the file that reads it back.

A manifest is canonical JSON below 1 MiB whose SHA-256 stands in `item.acquired`; it names the image
root (SHA-256 of `segments.sha256`), which names every object. So one signature reaches every byte.

Three facts are kept apart: a *hole* was read and is zero; an *unreadable* range was refused by the
source; what is neither stored nor listed does not exist. Reading gives zeros for the first two;
whoever interprets them asks `unreadable`.
"""

from __future__ import annotations

import io
import json
import os
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Annotated, Literal, Protocol

from pydantic import Field, JsonValue, ValidationError

from evidence_store.backend import Backend, sha256_of_fd
from evidence_store.digest import SegmentList, segment_name
from evidence_store.errors import IntegrityError
from evidence_store.model import Closed, Count, Data, Kind, Sha256, Text, Tool, Version, canonical

MAX_MANIFEST_BYTES = 1 << 20
MAX_MEMBER_BYTES = 1 << 20
MAX_LISTED_GAPS = 1000
_OPEN_SEGMENTS = 64


class Gap(Closed):
    """A byte range that the source refused, and what it said."""

    offset: Count
    length: Count
    error: Text


class Members(Closed):
    """`members.jsonl` of a file set: original names and times, one JSON line an object."""

    count: Count
    size: Count
    sha256: Sha256


class Manifest(Closed):
    """Everything about an item but its bytes. Sizes in bytes, times UTC."""

    v: Version = 1
    case: Text
    item: Annotated[str, Field(pattern=r"^E[0-9]{4,9}$")]
    kind: Kind
    layout: Literal["image", "set"]
    source: Data
    parents: list[Text] = Field(default_factory=list)
    method: Text
    parameters: Data
    tool: Tool
    host: Data
    started: Text
    ended: Text
    size: Count
    segment_size: Count
    image_root: Sha256
    content: dict[str, Text] | None
    content_absent: Text | None = None
    holes_bytes: Count
    unreadable_bytes: Count
    unreadable_ranges: Count
    unreadable: list[Gap] = Field(default_factory=list, max_length=MAX_LISTED_GAPS)
    stored_objects: Count
    stored_bytes: Count
    source_changes: list[Text] = Field(default_factory=list)
    members: Members | None = None
    notes: list[Text] = Field(default_factory=list)
    result: Literal["ok", "partial"]

    def encode(self) -> bytes:
        """Return the bytes of `manifest.json`.

        Raises: ValueError at 1 MiB or more.
        """
        body = canonical(self.model_dump()) + b"\n"
        if len(body) >= MAX_MANIFEST_BYTES:
            raise ValueError(f"the manifest has {len(body)} bytes; it must stay below 1 MiB")
        return body


def parse_manifest(raw: bytes) -> Manifest:
    """Return the manifest in a `manifest.json`.

    Raises: IntegrityError.
    """
    try:
        manifest = Manifest.model_validate_json(raw)
        if canonical(json.loads(raw)) + b"\n" != raw:
            raise IntegrityError("manifest is not in canonical form")
    except (ValidationError, ValueError, RecursionError) as e:
        raise IntegrityError(f"manifest is malformed: {str(e).splitlines()[0]}") from e
    return manifest


def parse_member(line: bytes) -> dict[str, str | int | None]:
    r"""Return one line of `members.jsonl`: flat, keys sorted, as `json.dumps` writes it.

    >>> parse_member(b'{"name": "a", "object": null}\n')
    {'name': 'a', 'object': None}

    Raises: ValueError, saying what is wrong.
    """
    if len(line) > MAX_MEMBER_BYTES:
        raise ValueError(f"is longer than {MAX_MEMBER_BYTES} bytes")
    try:
        member = json.loads(line)
        same = encode_member(member) == line
    except (ValueError, RecursionError):
        raise ValueError("is not JSON") from None
    if not isinstance(member, dict) or not same:
        raise ValueError("is not an object in the form that it was written in")
    if any(type(value) not in (str, int, type(None)) for value in member.values()):
        raise ValueError("holds more than texts and numbers")
    has_object = "object" in member and not isinstance(member["object"], int)
    if not isinstance(member.get("name"), str) or not has_object:
        raise ValueError("has no name or does not say which object it is")
    return member


def encode_member(member: Mapping[str, JsonValue]) -> bytes:
    """Return the line of `members.jsonl` for one file."""
    return json.dumps(member, sort_keys=True).encode() + b"\n"


class Readable(Protocol):
    """Random access to the logical bytes of an image."""

    size: int

    def pread(self, length: int, offset: int) -> bytes:
        """Return bytes at `offset`; fewer than `length` only at the end."""


class RandomAccess(io.RawIOBase):
    """A seekable read-only file over `pread`, which the kind of file brings."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self._at = 0

    @abstractmethod
    def pread(self, length: int, offset: int) -> bytes:
        """Return bytes at `offset`; fewer than `length` only at the end."""

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Position in bytes."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As io.IOBase.seek."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError("negative seek position")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """As io.RawIOBase.readinto."""
        data = self.pread(len(buffer), self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


class SegmentFile(RandomAccess):
    r"""One seekable read-only file over segments that somebody else opens and checks.

    `open_segment(index)` returns a descriptor of a segment that it has checked, or None where the
    segment is not stored (a hole or unreadable: zeros). At most 64 descriptors are open at a time.
    Not for use by several threads at once.

    >>> SegmentFile(10, 4, lambda i: None).pread(3, 8)
    b'\x00\x00'
    """

    def __init__(
        self, size: int, segment_size: int, open_segment: Callable[[int], int | None]
    ) -> None:
        super().__init__(size)
        self.segment_size = segment_size
        self._open_segment = open_segment
        self._fds: OrderedDict[int, int | None] = OrderedDict()

    def _fd(self, index: int) -> int | None:
        if index in self._fds:
            self._fds.move_to_end(index)
            return self._fds[index]
        if len(self._fds) >= _OPEN_SEGMENTS:
            _, oldest = self._fds.popitem(last=False)
            if oldest is not None:
                os.close(oldest)
        self._fds[index] = fd = self._open_segment(index)
        return fd

    def pread(self, length: int, offset: int) -> bytes:
        """Return bytes at `offset`; fewer than `length` only at the end.

        Raises: IntegrityError if a segment is not what was recorded, or got shorter since.
        """
        end = min(offset + length, self.size)
        if offset < 0 or offset >= end:
            return b""
        index, inner = divmod(offset, self.segment_size)
        if end - offset <= self.segment_size - inner:
            return self._part(index, inner, end - offset)
        parts = []
        while offset < end:
            index, inner = divmod(offset, self.segment_size)
            want = min(end - offset, self.segment_size - inner)
            parts.append(self._part(index, inner, want))
            offset += want
        return b"".join(parts)

    def zeros(self, offset: int) -> int:
        """Return how many bytes from `offset` on are zero because their segment is not stored."""
        index = offset // self.segment_size
        if self._fd(index) is not None:
            return 0
        return min((index + 1) * self.segment_size, self.size) - offset

    def _part(self, index: int, inner: int, want: int) -> bytes:
        fd = self._fd(index)
        if fd is None:
            return bytes(want)
        data = os.pread(fd, want, inner)
        if len(data) != want:
            raise IntegrityError(f"segment {segment_name(index)} got shorter while it was read")
        return data

    def close(self) -> None:
        """Close every descriptor."""
        if not self.closed:
            for fd in self._fds.values():
                if fd is not None:
                    os.close(fd)
            self._fds.clear()
        super().close()


class VerifiedSegments:
    """Opens segments of one item, each checked.

    What `open` and `open_object` promise: the whole SHA-256 of the object was what is recorded when
    this opened it first, and the file that is opened now has the device, inode, size, modification
    and change time it had then; if any differs, it is hashed again. A descriptor that is out shows
    the file as it is at each read; a change below those times is for `verify --deep` to find.
    """

    def __init__(self, backend: Backend, prefix: str, segments: SegmentList) -> None:
        self._backend = backend
        self._prefix = prefix
        self._segments = segments
        self._seen: dict[str, tuple[int, ...]] = {}

    def names(self) -> list[str]:
        """Return the names of all stored objects, below `data/`."""
        return list(self._segments.digests)

    def open(self, index: int) -> int | None:
        """Return a descriptor of segment `index`, or None if it is not stored.

        Raises: IntegrityError naming the object; StoreError.
        """
        return self.open_object(segment_name(index))

    def open_object(self, name: str) -> int | None:
        """Return a descriptor of an object by its name, at its start, or None if there is none.

        Raises: IntegrityError naming the object; StoreError.
        """
        expected = self._segments.digests.get(name)
        if expected is None:
            return None
        fd = self._backend.open_fd(f"{self._prefix}/data/{name}")
        try:
            # Taken before hashing: what changes meanwhile differs at the next open.
            found = os.fstat(fd)
            version = (
                found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
            )  # fmt: skip
            if self._seen.get(name) == version:
                return fd
            actual, _ = sha256_of_fd(fd)
            os.lseek(fd, 0, os.SEEK_SET)  # looking for holes moved it
        except OSError as e:
            os.close(fd)
            raise IntegrityError(f"{self._prefix}/data/{name} cannot be read: {e}") from e
        if actual != expected:
            os.close(fd)
            raise IntegrityError(
                f"{self._prefix}/data/{name} is not what was acquired "
                f"(SHA-256 {actual}, recorded {expected})",
                hint="stop using this copy; verify --deep names everything that differs",
            )
        self._seen[name] = version
        return fd
