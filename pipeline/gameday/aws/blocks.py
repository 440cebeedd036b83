# SPDX-License-Identifier: Apache-2.0
"""Blocks of a snapshot: where their bytes are, and how EBS direct pages, signs and answers.

Standard library only: the stand-in and the benchmark's server share it. Contents never change once
made; a write makes another content over it, so that a snapshot is a reference. Bytes stay in the
file they came from, and memory holds checksums and what was written through `Layered`.

Source: EBS direct APIs reference (ListSnapshotBlocks, GetSnapshotBlock, ListChangedBlocks) and the
EBS User Guide, "EBS direct APIs concepts" and "FAQ".
"""

from __future__ import annotations

import base64
import bisect
import errno
import hashlib
import heapq
import hmac
import itertools
import os
import secrets
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BLOCK = 512 * 1024
GIB = 1 << 30
PAGE_DEFAULT, PAGE_MIN, PAGE_MAX = 10_000, 100, 10_000
BLOCK_TOKEN_SECONDS = 7 * 86_400.0
PAGE_TOKEN_SECONDS = 3_600.0
_CHECKSUMS_KEPT = 1 << 18

Block = bytes | Callable[[], bytes]


class BlockError(Exception):
    """A refusal of EBS direct: HTTP status, code, message, and its `Reason`."""

    def __init__(self, status: int, code: str, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.reason = status, code, message, reason


class ContentError(ValueError):
    """This cannot be the content of a volume, or it changed after it became one."""


class Content(ABC):
    """Blocks by index. Subclasses say which there are (ever written) and give their bytes."""

    def __init__(self) -> None:
        self._checksums: dict[int, str] = {}
        self._count: int | None = None

    @abstractmethod
    def indexes(self, start: int = 0) -> Iterator[int]:
        """Yield the indexes of written blocks from `start` on, ascending, without holding them."""

    @abstractmethod
    def source(self, index: int) -> Content | None:
        """Whoever holds the block; None if it was never written."""

    @abstractmethod
    def _bytes(self, index: int) -> bytes:
        """Return the whole block."""

    def read(self, index: int) -> bytes:
        """Return the whole block, zeros where nothing was written. Raises: ContentError."""
        holder = self.source(index)
        return bytes(BLOCK) if holder is None else holder._bytes(index).ljust(BLOCK, b"\0")

    def checksum(self, index: int) -> str:
        """Return the SHA-256 of the block, Base64; kept after the first time."""
        holder = self.source(index)
        return _sha256(bytes(BLOCK)) if holder is None else holder._checksum(index)

    def _checksum(self, index: int) -> str:
        found = self._checksums.get(index)
        if found is None:
            found = _sha256(self._bytes(index).ljust(BLOCK, b"\0"))
            if len(self._checksums) >= _CHECKSUMS_KEPT:
                self._checksums.clear()
            self._checksums[index] = found
        return found

    def count(self) -> int:
        """Return how many blocks were written."""
        if self._count is None:
            self._count = sum(1 for _ in self.indexes())
        return self._count

    def end(self) -> int:
        """Return the index after the last written block."""
        return max(self.indexes(), default=-1) + 1


def _sha256(block: bytes) -> str:
    return base64.b64encode(hashlib.sha256(block).digest()).decode()


class FileContent(Content):
    """A sparse file: what is no hole was written. It must not change any more."""

    def __init__(self, path: Path | str) -> None:
        """Raises: ContentError."""
        super().__init__()
        self.path = Path(path)
        try:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as e:
            raise ContentError(f"cannot open {path}: {e.strerror}") from e
        os.fsync(self._fd)  # what is not on disk yet may look like a hole, and not be one later
        self._state = self._now()
        self.size = self._state[0]
        self._ranges = list(self._written())
        self._ends = [end for _, end in self._ranges]

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)

    def _now(self) -> tuple[int, int]:
        state = os.fstat(self._fd)
        return state.st_size, state.st_mtime_ns

    def _written(self) -> Iterator[tuple[int, int]]:
        """Yield (first, after the last) of each run of blocks that holds data."""
        position = 0
        while position < self.size:
            try:
                data = os.lseek(self._fd, position, os.SEEK_DATA)
                hole = os.lseek(self._fd, data, os.SEEK_HOLE)
            except OSError as e:
                if e.errno == errno.ENXIO:  # only a hole is left
                    return
                raise
            end = -(-hole // BLOCK)
            yield data // BLOCK, end
            position = end * BLOCK

    def indexes(self, start: int = 0) -> Iterator[int]:
        """Yield what SEEK_DATA found."""
        for first, end in self._ranges[bisect.bisect_right(self._ends, start) :]:
            yield from range(max(first, start), end)

    def source(self, index: int) -> Content | None:
        """Itself, or None in a hole."""
        return self if next(self.indexes(index), None) == index else None

    def end(self) -> int:
        """Return the index after the last one that holds data."""
        return self._ends[-1] if self._ends else 0

    def _bytes(self, index: int) -> bytes:
        if self._now() != self._state:
            raise ContentError(f"{self.path} changed after it became the content of a volume")
        return os.pread(self._fd, BLOCK, index * BLOCK)


class MapContent(Content):
    """Blocks by index, as bytes or as what returns them; shorter ones are filled with zeros."""

    def __init__(self, blocks: Mapping[int, Block]) -> None:
        """Raises: ContentError."""
        super().__init__()
        if any(i < 0 for i in blocks):
            raise ContentError("a block's index is at least 0")
        if any(isinstance(b, bytes) and len(b) > BLOCK for b in blocks.values()):
            raise ContentError(f"a block has {BLOCK} bytes at most")
        self._blocks = blocks
        self._order = sorted(blocks)

    def indexes(self, start: int = 0) -> Iterator[int]:
        """Yield the keys."""
        return (i for i in self._order if i >= start)

    def source(self, index: int) -> Content | None:
        """Itself, if it has the block."""
        return self if index in self._blocks else None

    def _bytes(self, index: int) -> bytes:
        block = self._blocks[index]
        return block if isinstance(block, bytes) else block()


class Layered(Content):
    """Blocks over another content: what a volume holds after a write."""

    def __init__(self, below: Content, blocks: Mapping[int, Block]) -> None:
        """Raises: ContentError."""
        super().__init__()
        self._below, self._above = below, MapContent(blocks)

    def indexes(self, start: int = 0) -> Iterator[int]:
        """Yield those of both."""
        return _each(self._below.indexes(start), self._above.indexes(start))

    def source(self, index: int) -> Content | None:
        """The upper one first."""
        return self._above.source(index) or self._below.source(index)

    def _bytes(self, index: int) -> bytes:
        holder = self.source(index)
        return b"" if holder is None else holder._bytes(index)


EMPTY = MapContent({})


def _each(*sorted_indexes: Iterator[int]) -> Iterator[int]:
    return (i for i, _ in itertools.groupby(heapq.merge(*sorted_indexes)))


def changed(first: Content, second: Content, start: int = 0) -> Iterator[tuple[int, bool]]:
    """Yield (index, whether it differs) for every block that either has, ascending."""
    for index in _each(first.indexes(start), second.indexes(start)):
        one, other = first.source(index), second.source(index)
        same = one is other or (one and other and one._checksum(index) == other._checksum(index))
        yield index, not same


# -- EBS direct


@dataclass(frozen=True)
class Readable:
    """A snapshot as EBS direct sees it. `size` in GiB."""

    snapshot: str
    content: Content
    size: int


class Tokens:
    """Block and page tokens: signed, so that nothing is kept of them. One key a process."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def make(self, purpose: str, index: int, expires: float) -> str:
        """Return a token, other at each call: Base64, 64 characters."""
        body = struct.pack(">QQ", index, int(expires)) + secrets.token_bytes(8)
        return base64.b64encode(body + self._tag(purpose, body)).decode()

    def index(self, purpose: str, token: str, now: float) -> int | None:
        """Return the index that a token speaks of; None if it is not one, or expired."""
        try:
            raw = base64.b64decode(token, validate=True)
        except ValueError:
            return None
        body, tag = raw[:24], raw[24:]
        if len(body) != 24 or not hmac.compare_digest(tag, self._tag(purpose, body)):
            return None
        index, expires = struct.unpack(">QQ", body[:16])
        return int(index) if now < expires else None

    def _tag(self, purpose: str, body: bytes) -> bytes:
        return hmac.digest(self._key, purpose.encode() + b"\0" + body, "sha256")[:24]


def list_blocks(
    tokens: Tokens, now: float, query: Mapping[str, Any], of: Readable, limit: int = 0
) -> dict[str, Any]:
    """Answer ListSnapshotBlocks.

    Args:
        tokens: of this server.
        now: seconds since the epoch.
        query: maxResults, pageToken, startingBlockIndex as in the URL.
        of: the snapshot.
        limit: a page's size whatever is asked for, as the service may do; 0: none.

    Raises: BlockError (ValidationException).
    """
    purpose = f"list {of.snapshot}"
    start, size = _page(tokens, now, purpose, query, limit)
    found = list(itertools.islice(of.content.indexes(start), size + 1))
    expires = now + BLOCK_TOKEN_SECONDS
    answer = _answer(of, expires)
    answer["Blocks"] = [
        {"BlockIndex": i, "BlockToken": tokens.make(f"get {of.snapshot}", i, expires)}
        for i in found[:size]
    ]
    if len(found) > size:
        answer["NextToken"] = tokens.make(purpose, found[size], now + PAGE_TOKEN_SECONDS)
    return answer


def list_changed(
    tokens: Tokens, now: float, query: Mapping[str, Any], first: Readable | None,
    second: Readable, limit: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Answer ListChangedBlocks; arguments as of `list_blocks`. Without `first`: all of `second`.

    A page compares as many blocks as it may hold: it can be empty and have a NextToken.

    Raises: BlockError (ValidationException).
    """
    purpose = f"changed {first.snapshot if first else '-'} {second.snapshot}"
    start, size = _page(tokens, now, purpose, query, limit)
    compared = changed(first.content if first else EMPTY, second.content, start)
    found = list(itertools.islice(compared, size))
    follows = next(_each(
        first.content.indexes(found[-1][0] + 1) if first else iter(()),
        second.content.indexes(found[-1][0] + 1),
    ), None) if len(found) == size else None  # fmt: skip
    expires = now + BLOCK_TOKEN_SECONDS
    answer = _answer(second, expires)
    answer["ChangedBlocks"] = [
        {"BlockIndex": i} | {
            f"{name}BlockToken": tokens.make(f"get {of.snapshot}", i, expires)
            for name, of in (("First", first), ("Second", second))
            if of and of.content.source(i)
        }
        for i, differs in found if differs
    ]  # fmt: skip
    if follows is not None:
        answer["NextToken"] = tokens.make(purpose, follows, now + PAGE_TOKEN_SECONDS)
    return answer


def get_block(
    tokens: Tokens, now: float, of: Readable, index: Any, token: str
) -> tuple[dict[str, str], bytes]:
    """Answer GetSnapshotBlock: (headers, bytes). Raises: BlockError; ContentError."""
    number = _number("BlockIndex", index)
    if tokens.index(f"get {of.snapshot}", token, now) != number:
        raise BlockError(
            400, "ValidationException", "The block token is invalid or expired.",
            "INVALID_BLOCK_TOKEN",
        )  # fmt: skip
    return {
        "content-type": "application/octet-stream",
        "x-amz-Data-Length": str(BLOCK),
        "x-amz-Checksum": of.content.checksum(number),
        "x-amz-Checksum-Algorithm": "SHA256",
    }, of.content.read(number)


def _answer(of: Readable, expires: float) -> dict[str, Any]:
    return {"ExpiryTime": int(expires), "VolumeSize": of.size, "BlockSize": BLOCK}


def _page(
    tokens: Tokens, now: float, purpose: str, query: Mapping[str, Any], limit: int
) -> tuple[int, int]:
    """(first index, size) of a page. Fewer than 100 results are never asked for with success."""
    size = _number("MaxResults", query.get("maxResults", PAGE_DEFAULT))
    size = limit or min(max(size, PAGE_MIN), PAGE_MAX)
    if (page := query.get("pageToken")) is None:
        return _number("StartingBlockIndex", query.get("startingBlockIndex", 0)), size
    start = tokens.index(purpose, str(page), now)
    if start is None:
        raise BlockError(
            400, "ValidationException", "The page token is invalid or expired.",
            "INVALID_PAGE_TOKEN",
        )  # fmt: skip
    return start, size


def _number(name: str, value: Any) -> int:
    try:
        number = int(value)
    except ValueError:
        number = -1
    if number < 0:
        raise BlockError(
            400, "ValidationException", f"{name} is not valid: {value}", "INVALID_PARAMETER_VALUE"
        )
    return number
