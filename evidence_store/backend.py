# SPDX-License-Identifier: Apache-2.0
"""Where objects lie. One contract, two backends (local directory here; S3 is the other).

Promises of every backend
    - `create` is write-once and durable on return: the object is whole or absent, never torn.
      A taken name is `AlreadyExistsError` and changes nothing. If the outcome is not known,
      `AmbiguousWriteError`: read before trying again.
    - Nothing is ever overwritten or deleted.
    - Keys are relative, `/`-separated, of `[A-Za-z0-9._-]+` parts; anything else is `ValueError`.
    - Reads return what is stored; they judge nothing.

Source: docs/format.md; link(2) for create-once without a lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from evidence_store.digest import LinearDigest
from evidence_store.errors import (
    AlreadyExistsError,
    BusyError,
    ItemNotFoundError,
    StoreError,
    StoreFullError,
)

Runs = list[tuple[int, int]]


@dataclass(frozen=True)
class SparseBody:
    """A body of which only some runs, (start, end) in order, count: between them are zeros.

    What lies in `view` there is of no meaning, so that nobody has to fill it.
    """

    view: memoryview
    runs: Runs

    def whole(self) -> memoryview:
        """Fill in the zeros and return every byte."""
        at = 0
        for start, end in [*self.runs, (len(self.view), len(self.view))]:
            while at < start:
                part = self.view[at : min(start, at + len(_ZEROS))]
                part[:] = memoryview(_ZEROS)[: len(part)]
                at += len(part)
            at = end
        return self.view


Buffer = bytes | bytearray | memoryview
Body = Buffer | SparseBody | Iterable[bytes]

_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
_CHUNK = 4 << 20
_PIECE = 65536
_ZEROS = bytearray(_PIECE)
_STALE_SECONDS = 24 * 3600
_TMP = "tmp"
_LOCKS = "locks"


class AmbiguousWriteError(StoreError):
    """The write may or may not have happened (a lost answer, a timeout)."""


class ObjectNotFoundError(ItemNotFoundError):
    """No object under this key."""


class UnfitObjectError(StoreError):
    """Under this key lies what no store writes: a link, a pipe, a folder, more than it may have."""


@dataclass(frozen=True, order=True)
class Stored:
    """One stored object: its key and size in bytes."""

    key: str
    size: int


@dataclass(frozen=True)
class Leftovers:
    """What interrupted writes left in a store, outside every case.

    Attributes:
        temporary: files in `tmp/` that no process of this machine is writing.
        quarantine: torn objects that `set_aside` moved; a `recovery.noted` speaks of each.
    """

    temporary: list[Stored]
    quarantine: list[Stored]


class Backend(Protocol):
    """The contract stands in the module's docstring."""

    @property
    def uri(self) -> str:
        """Where it is, for people."""

    @property
    def at_once(self) -> int:
        """How many small objects are worth storing at the same time."""

    def create(self, key: str, body: Body, *, sha256: str | None = None) -> Stored:
        """Store `body` under `key`, durable on return.

        `sha256` (hex) is that of `body` if the caller knows it, to save taking it again.

        Raises: AlreadyExistsError, AmbiguousWriteError, StoreFullError, StoreError.
        """

    def read(self, key: str, limit: int) -> bytes:
        """Return the whole object.

        Raises: ObjectNotFoundError; UnfitObjectError, also above `limit` bytes; StoreError.
        """

    def read_run(self, keys: Iterator[str], limit: int) -> Iterator[bytes]:
        """Yield the objects under `keys` in order, whole, until the first that is missing.

        `keys` does not end, lies in one folder and ascends.

        Raises: as `read`, but for what is missing.
        """

    def sha256(self, key: str) -> tuple[str, int]:
        """Return (SHA-256 in hex, size) of an object, in bounded memory.

        Raises: ObjectNotFoundError, UnfitObjectError, StoreError.
        """

    def open_fd(self, key: str) -> int:
        """Return a read-only descriptor of the object; the caller closes it.

        Raises: ObjectNotFoundError, UnfitObjectError, StoreError.
        """

    def list(self, prefix: str) -> Iterator[Stored]:
        """Yield every object under the folder `prefix`, sorted by key."""

    def folders(self, prefix: str) -> Iterator[str]:
        """Yield the names of the immediate sub-folders of `prefix`, in the order of `list`.

        It reads `prefix` and nothing below. Where folders exist by themselves (a file system) one
        that holds no object may be among them; a link or a name out of form never is.
        """

    def strays(self, prefix: str) -> Iterator[str]:
        """Yield what lies under `prefix` and is no object (links, pipes, names out of form)."""

    def anomalies(self, prefix: str) -> Iterator[tuple[str, str]]:
        """Yield (key, what is wrong) of objects below `prefix` that were tampered with in place.

        What a store keeps beside the bytes: delete markers, further versions, lock, key, tags.
        """

    def label(self, prefix: str, facts: Mapping[str, str]) -> None:
        """Have what is created below `prefix` from now on carry `facts`, where there are tags."""

    def exclusive(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Hold an advisory lock; BusyError if another process has it.

        A courtesy to people, not the ground of correctness: `create` is.
        """


def check_key(key: str) -> str:
    """Return `key` if it is in form, else raise ValueError."""
    if not _KEY.fullmatch(key) or len(key) > 512:
        raise ValueError(f"not an object key: {key!r}")
    return key


class LocalBackend:
    """Objects as files below one directory.

    Create-once is temp file, fsync, link(2), fsync of the directory. Where the file system knows
    no hard links (FAT, some network shares) it is O_EXCL, write, fsync: `atomic_create` is False,
    and a torn last file is possible after a crash (`set_aside`).
    """

    at_once = 1  # what syncs each file to one disk gains nothing

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = root.absolute().as_uri()
        self._made: set[Path] = set()

    # -- writing ---------------------------------------------------------------------------------

    def create(self, key: str, body: Body, *, sha256: str | None = None) -> Stored:  # noqa: ARG002
        """See `Backend.create`."""
        final = self._path(key)
        try:
            self._make_folder(final.parent)
            if self.atomic_create:
                return Stored(key, self._create_by_link(final, body))
            return Stored(key, self._create_in_place(final, body))
        except FileExistsError as e:
            raise AlreadyExistsError(f"{key} exists and is not overwritten") from e
        except OSError as e:
            raise translate(e, f"cannot store {key} in {self.root}") from e

    @cached_property
    def atomic_create(self) -> bool:
        """Whether this file system can make a whole file appear at once; tried with a real link."""
        folder = self.root / _TMP
        self._make_folder(folder)
        probe = folder / f"{os.getpid()}-{secrets.token_hex(8)}"
        _write_new(probe, b"")
        try:
            os.link(probe, probe.with_suffix(".link"))
            probe.with_suffix(".link").unlink()
        except OSError as e:
            if e.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            return False
        finally:
            probe.unlink()
        return True

    def _create_by_link(self, final: Path, body: Body) -> int:
        folder = self.root / _TMP
        self._make_folder(folder)
        temporary = folder / f"{os.getpid()}-{secrets.token_hex(8)}"
        try:
            size = _write_new(temporary, body)
            os.link(temporary, final)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
        _sync_folder(final.parent)
        return size

    def _create_in_place(self, final: Path, body: Body) -> int:
        try:
            size = _write_new(final, body)
        except FileExistsError:
            raise
        except BaseException:
            # The name was free a moment ago and nobody was told of it: take our torn file back.
            with contextlib.suppress(OSError):
                final.unlink()
            raise
        _sync_folder(final.parent)
        return size

    def set_aside(self, key: str) -> str:
        """Move a torn object to `quarantine/`, never deleting it; return its new key.

        Only for stores without atomic create. Raises: StoreError.
        """
        target = f"quarantine/{secrets.token_hex(4)}/{key}"
        try:
            self._make_folder(self._path(target).parent)
            self._path(key).rename(self._path(target))
            _sync_folder(self._path(key).parent)
        except OSError as e:
            raise translate(e, f"cannot set {key} aside") from e
        return target

    @contextlib.contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        """See `Backend.exclusive`."""
        with exclusive_file(self.root / _LOCKS, name):
            yield

    def label(self, prefix: str, facts: Mapping[str, str]) -> None:
        """Nothing: files have no tags, and the manifest says it all."""

    # -- reading ---------------------------------------------------------------------------------

    def read(self, key: str, limit: int) -> bytes:
        """See `Backend.read`."""
        fd = self.open_fd(key)
        try:
            with os.fdopen(fd, "rb", buffering=0) as f:
                size = os.fstat(fd).st_size
                if size > limit:
                    raise UnfitObjectError(
                        f"{key} has {size} bytes, more than the {limit} it may have"
                    )
                return f.read(limit + 1) or b""
        except OSError as e:
            raise translate(e, f"cannot read {key}") from e

    def read_run(self, keys: Iterator[str], limit: int) -> Iterator[bytes]:
        """See `Backend.read_run`."""
        for key in keys:
            try:
                yield self.read(key, limit)
            except ObjectNotFoundError:
                return

    def sha256(self, key: str) -> tuple[str, int]:
        """See `Backend.sha256`; file holes are hashed, not read."""
        fd = self.open_fd(key)
        try:
            return sha256_of_fd(fd)
        except OSError as e:
            raise translate(e, f"cannot read {key}") from e
        finally:
            os.close(fd)

    def open_fd(self, key: str) -> int:
        """See `Backend.open_fd`; a symbolic link or special file is never followed."""
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            fd = os.open(self._path(key), flags)
        except (FileNotFoundError, NotADirectoryError) as e:
            raise ObjectNotFoundError(f"{key} is missing from {self.root}") from e
        except OSError as e:
            if e.errno in (errno.ELOOP, errno.ENXIO):  # a link; a socket
                raise UnfitObjectError(f"{key} is not a regular file") from e
            raise translate(e, f"cannot read {key}") from e
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise UnfitObjectError(f"{key} is not a regular file")
        return fd

    def list(self, prefix: str) -> Iterator[Stored]:
        """See `Backend.list`."""
        for key, entry in self._walk(check_key(prefix)):
            if entry.is_file(follow_symlinks=False) and _KEY.fullmatch(key):
                yield Stored(key, entry.stat(follow_symlinks=False).st_size)

    def folders(self, prefix: str) -> Iterator[str]:
        """See `Backend.folders`."""
        for entry in self._scan(check_key(prefix)):
            if entry.is_dir(follow_symlinks=False) and _KEY.fullmatch(entry.name):
                yield entry.name

    def strays(self, prefix: str) -> Iterator[str]:
        """See `Backend.strays`."""
        for key, entry in self._walk(check_key(prefix)):
            if not entry.is_file(follow_symlinks=False) or not _KEY.fullmatch(key):
                yield key

    def leftovers(self) -> Leftovers:
        """Return what interrupted writes left outside every case. Nothing names `tmp/`.

        A temporary file counts if it is older than a day, or if no process of this machine has the
        id that its name begins with. A process of another machine (or container) may still be
        writing it: that is why nobody but a person removes it. Raises: StoreError.
        """
        temporary, oldest = [], time.time() - _STALE_SECONDS
        for key, entry in self._walk(_TMP):
            try:
                found = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # its writer was done with it just now
            if not stat.S_ISREG(found.st_mode):
                continue
            if found.st_mtime < oldest or _writer_is_gone(entry.name):
                temporary.append(Stored(key, found.st_size))
        return Leftovers(temporary, list(self.list("quarantine")))

    def anomalies(self, prefix: str) -> Iterator[tuple[str, str]]:  # noqa: ARG002
        """None: a file system keeps nothing beside the bytes that a write could have fixed."""
        return iter(())

    def _walk(self, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
        for entry in self._scan(prefix):
            key = f"{prefix}/{entry.name}"
            if entry.is_dir(follow_symlinks=False) and _KEY.fullmatch(key):
                yield from self._walk(key)
            else:
                yield key, entry

    def _scan(self, prefix: str) -> Iterable[os.DirEntry[str]]:
        try:
            return sorted(os.scandir(self._path(prefix)), key=_place)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as e:
            raise translate(e, f"cannot list {prefix}") from e

    # -- folders ---------------------------------------------------------------------------------

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    def _make_folder(self, folder: Path) -> None:
        if folder in self._made:
            return
        missing = []
        at = folder
        while not at.is_dir():
            missing.append(at)
            at = at.parent
        for part in reversed(missing):
            with contextlib.suppress(FileExistsError):
                part.mkdir(mode=0o750)
            _sync_folder(part.parent)
        self._made.add(folder)


@dataclass(frozen=True)
class Below:
    """The objects below one folder of a backend, for reading: a store within a store."""

    backend: Backend
    folder: str

    @property
    def uri(self) -> str:
        """Address of the folder."""
        return f"{self.backend.uri}/{self.folder}"

    @property
    def at_once(self) -> int:
        """See `Backend.at_once`."""
        return self.backend.at_once

    def _inner(self, key: str) -> str:
        return f"{self.folder}/{check_key(key)}"

    def create(self, key: str, body: Body, *, sha256: str | None = None) -> Stored:  # noqa: ARG002
        """Refused. Raises: RuntimeError."""
        raise RuntimeError(f"{self._inner(key)} is another store's; it is only read")

    def read(self, key: str, limit: int) -> bytes:
        """See `Backend.read`."""
        return self.backend.read(self._inner(key), limit)

    def read_run(self, keys: Iterator[str], limit: int) -> Iterator[bytes]:
        """See `Backend.read_run`."""
        return self.backend.read_run(map(self._inner, keys), limit)

    def sha256(self, key: str) -> tuple[str, int]:
        """See `Backend.sha256`."""
        return self.backend.sha256(self._inner(key))

    def open_fd(self, key: str) -> int:
        """See `Backend.open_fd`."""
        return self.backend.open_fd(self._inner(key))

    def list(self, prefix: str) -> Iterator[Stored]:
        """See `Backend.list`."""
        for stored in self.backend.list(self._inner(prefix)):
            yield Stored(stored.key.removeprefix(f"{self.folder}/"), stored.size)

    def folders(self, prefix: str) -> Iterator[str]:
        """See `Backend.folders`."""
        return self.backend.folders(self._inner(prefix))

    def strays(self, prefix: str) -> Iterator[str]:
        """See `Backend.strays`."""
        for key in self.backend.strays(self._inner(prefix)):
            yield key.removeprefix(f"{self.folder}/")

    def anomalies(self, prefix: str) -> Iterator[tuple[str, str]]:  # noqa: ARG002
        """None: whoever holds the outer store looks at all of it."""
        return iter(())

    def label(self, prefix: str, facts: Mapping[str, str]) -> None:
        """Nothing: nothing is created here."""

    def exclusive(self, name: str) -> contextlib.AbstractContextManager[None]:
        """See `Backend.exclusive`."""
        return self.backend.exclusive(name)


@contextlib.contextmanager
def exclusive_file(folder: Path, name: str) -> Iterator[None]:
    """Hold an advisory lock among the processes of this machine: flock(2), ends with its process.

    Raises: BusyError, StoreError.
    """
    try:
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        fd = os.open(folder / check_key(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise translate(e, f"cannot lock {name}") from e
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            holder = os.pread(fd, 200, 0).decode("ascii", "replace").strip() or "unknown"
            raise BusyError(
                f"{name} is being worked on by another process ({holder})",
                hint="wait until it ends, or end it, then run the same command again",
            ) from e
        except OSError as e:
            raise translate(e, f"cannot lock {name}") from e
        with contextlib.suppress(OSError):  # who holds it is a courtesy; the disk may be full
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"pid {os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def _place(entry: os.DirEntry[str]) -> str:
    """Where an entry comes in the order of whole keys: `a-b` before `a/b`."""
    return entry.name + "/" * entry.is_dir(follow_symlinks=False)


def _writer_is_gone(name: str) -> bool:
    """Tell whether `<pid>-<random>` names a process that this machine does not have."""
    match = re.fullmatch(r"([1-9][0-9]{0,8})-[0-9a-f]{16}(\.link)?", name)
    if match is None:
        return False
    try:
        os.kill(int(match[1]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _write_new(path: Path, body: Body) -> int:
    """Write a file that must not exist yet; return its size, on disk."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o440)
    try:
        size = 0
        if isinstance(body, SparseBody):
            for start, end in body.runs:
                _write_data(fd, body.view[start:end], start)
            size = len(body.view)
        else:
            for part in (body,) if isinstance(body, (bytes, bytearray, memoryview)) else body:
                with memoryview(part) as view:
                    _write_data(fd, view, size)
                    size += len(view)
        os.ftruncate(fd, size)
        os.fsync(fd)
    finally:
        os.close(fd)
    return size


def _write_data(fd: int, view: memoryview, offset: int) -> None:
    for start, end in _data_runs(view):
        while start < end:
            start += os.pwrite(fd, view[start:end], offset + start)


def _data_runs(view: memoryview) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of what is worth writing; 64 KiB pieces of zeros become file holes."""
    if len(view) < 16 * _PIECE:
        yield 0, len(view)
        return
    start = None
    for at in range(0, len(view), _PIECE):
        piece = view[at : at + _PIECE]
        if len(piece) == _PIECE and _ZEROS == piece:  # noqa: SIM300 (this order is a memcmp)
            if start is not None:
                yield start, at
                start = None
        elif start is None:
            start = at
    if start is not None:
        yield start, len(view)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def translate(e: OSError, what: str) -> StoreError:
    """Return the store's error for an operating-system error, with the next thing to do."""
    reason = e.strerror or str(e)
    if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StoreFullError(
            f"{what}: {reason}",
            hint="free or add space, then run the same command again; it continues",
        )
    if e.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StoreError(
            f"{what}: {reason}", hint="check who owns the store and that it is mounted writable"
        )
    return StoreError(f"{what}: {reason}")


def sha256_of_fd(fd: int) -> tuple[str, int]:
    """Return (SHA-256, size) of an open file from its start; file holes are hashed, not read.

    Raises: OSError.
    """
    digest, size = LinearDigest(), 0
    with memoryview(bytearray(_CHUNK)) as view:
        for part in parts_of_fd(fd, lambda: view):
            if isinstance(part, int):
                digest.zeros(part)
                size += part
            else:
                digest.update(part)
                size += len(part)
    return digest.results()["sha256"], size


def parts_of_fd(fd: int, buffer: Callable[[], memoryview]) -> Iterator[memoryview | int]:
    """Yield an open file from its start: bytes, or how many zeros a file hole stands for.

    `buffer` gives the memory for the next read; the caller says when it is free again.
    Raises: OSError.
    """
    at, size = 0, os.fstat(fd).st_size
    while at < size:
        data = min(_next_data(fd, at), size)
        if data > at:
            yield data - at
            at = data
            continue
        view = buffer()
        n = os.preadv(fd, [view], at)
        if n == 0:
            return  # it got shorter while it was read
        yield view[:n]
        at += n


def _next_data(fd: int, at: int) -> int:
    """First offset that may hold data; the end of the file if there is none."""
    try:
        return os.lseek(fd, at, os.SEEK_DATA)
    except OSError as e:
        if e.errno == errno.ENXIO:
            return os.fstat(fd).st_size
        if e.errno == errno.EINVAL:
            return at
        raise
