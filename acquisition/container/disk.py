# SPDX-License-Identifier: Apache-2.0
"""What the readers of all container formats share: a disk is a map from offsets to runs.

All of this runs in the limited child. Files are descriptors that the parent opened; no path is ever
opened here, and every length is checked against the file before it is used.
"""

from __future__ import annotations

import os
import struct
import zlib
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

V = TypeVar("V")

MAX_SIZE = 64 << 40
_MAX_STEPS = 1 << 16


class DamagedError(Exception):
    """Bytes of the container are missing or wrong. `length`: bytes of the disk lost by it, or 0."""

    def __init__(self, message: str, length: int = 0) -> None:
        super().__init__(message)
        self.length = length


class RefusedError(Exception):
    """The container is of a kind that is not read. `hint`: what to do instead."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True)
class File:
    """A file of the container: descriptor, size in bytes when it was opened, name in messages."""

    fd: int
    size: int
    name: str

    def read(self, at: int, length: int) -> bytes:
        """Return exactly `length` bytes. Raises: DamagedError."""
        if at < 0 or length < 0 or at + length > self.size:
            raise DamagedError(f"{self.name} ends before byte {at + max(length, 0)}")
        try:
            data = os.pread(self.fd, length, at)
        except OSError as e:
            raise DamagedError(f"{self.name} cannot be read at {at}: {e.strerror}") from e
        if len(data) != length:
            raise DamagedError(f"{self.name} cannot be read at {at}")
        return data

    def unpack(self, form: str, at: int) -> tuple[Any, ...]:
        """Return the fields of a `struct` form at byte `at`. Raises: DamagedError."""
        return struct.unpack(form, self.read(at, struct.calcsize(form)))


@dataclass(frozen=True)
class Run:
    """Where some bytes of the disk lie.

    Attributes:
        length: bytes from the asked offset to the end of the run.
        kind: `zero`; `data`: as they are at `at` of `file`; `packed`: in unit `unit` of the disk,
            from byte `at` of what that unit unpacks to.
    """

    length: int
    kind: Literal["zero", "data", "packed"]
    file: File | None = None
    at: int = 0
    unit: Hashable = None


class Cache(Generic[V]):
    """The last `room` values of a function of one argument."""

    def __init__(self, make: Callable[[Any], V], room: int) -> None:
        self._make = make
        self._room = room
        self._kept: OrderedDict[Hashable, V] = OrderedDict()

    def __call__(self, key: Hashable) -> V:
        """Return the value, made now or before."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        value = self._make(key)
        if len(self._kept) >= self._room:
            self._kept.popitem(last=False)
        self._kept[key] = value
        return value


class Disk(ABC):
    """The logical disk inside a container.

    Attributes:
        size: bytes.
        facts: what the container says of itself, JSON.
        hashes: digests of the disk that the container stores: `md5`, `sha1` -> hex.
        remarks: what is not in order with it, in words.
        sparse: whether `run` knows what was never written.
    """

    sparse = True

    def __init__(self, size: int) -> None:
        if not 0 <= size <= MAX_SIZE:
            raise RefusedError(f"it claims a disk of {size} bytes; {MAX_SIZE} is the most")
        self.size = size
        self.facts: dict[str, Any] = {}
        self.hashes: dict[str, str] = {}
        self.remarks: list[str] = []
        self._unpacked = Cache(self.unpack, 4)

    @abstractmethod
    def run(self, offset: int) -> Run:
        """Return the run at an offset below `size`. Raises: DamagedError with a length."""

    def unpack(self, unit: Hashable) -> bytes:
        """Return the bytes of a packed unit, where the format has them. Raises: DamagedError."""
        raise DamagedError(f"nothing in it is packed, yet {unit!r} was asked for")

    def fill(self, view: memoryview, offset: int) -> int:
        """Fill `view`; return the bytes filled, fewer before the end or before a damaged spot.

        Raises: DamagedError, with the length, if the first byte asked for is lost.
        """
        at = 0
        view = view[: max(0, self.size - offset)]
        while at < len(view):
            length = 512  # of a spot about which nothing more is known
            try:
                run = self.run(offset + at)
                length = min(run.length, len(view) - at)
                at += self._fill(view[at : at + length], run)
            except (DamagedError, zlib.error, struct.error) as e:
                if at:
                    return at
                lost = e.length if isinstance(e, DamagedError) and e.length else length
                raise DamagedError(str(e), min(lost, len(view))) from e
        return at

    def _fill(self, view: memoryview, run: Run) -> int:
        if run.kind == "zero":
            view[:] = bytes(len(view))
        elif run.kind == "packed":
            part = memoryview(self._unpacked(run.unit))[run.at : run.at + len(view)]
            if len(part) != len(view):
                raise DamagedError("a compressed unit is shorter than it must be")
            view[:] = part
        else:
            assert run.file is not None  # noqa: S101
            view = view[: max(0, run.file.size - run.at)]
            n = os.preadv(run.file.fd, [view], run.at) if len(view) else 0
            if not n:
                raise DamagedError(f"{run.file.name} ends before byte {run.at + 1}")
            return n
        return len(view)

    def next_data(self, offset: int) -> int:
        """Return the first offset >= `offset` that may hold data, or `size`."""
        for _ in range(_MAX_STEPS):
            if offset >= self.size:
                return self.size
            try:
                run = self.run(offset)
            except (DamagedError, struct.error):
                return offset
            if run.kind != "zero":
                return offset
            offset += run.length
        return min(offset, self.size)


def check_distinct(places: list[int]) -> None:
    """Refuse two entries of a table that lead to one place: a loop, or a bomb.

    Raises: DamagedError.
    """
    if len(set(places)) != len(places):
        raise DamagedError("two entries of an allocation table lead to one place")


def inflate(data: bytes, size: int, wbits: int) -> bytes:
    """Return at most `size` bytes of a deflate stream. Raises: zlib.error."""
    return zlib.decompressobj(wbits).decompress(data, size)
