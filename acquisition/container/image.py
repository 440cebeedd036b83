# SPDX-License-Identifier: Apache-2.0
"""The disk inside a container as a source: bytes come from limited children over shared memory.

Source: memfd_create(2), fcntl(2) F_ADD_SEALS (a child cannot take the memory away from under us).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import mmap
import os
import queue
import resource
import stat
import string
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from acquisition.closing import Closing
from acquisition.container.disk import MAX_SIZE, DamagedError, File, RefusedError
from acquisition.container.vmdk import (
    MAX_DESCRIPTOR,
    Extent,
    embedded_descriptor,
    parse_descriptor,
)
from acquisition.errors import AcquisitionError, SourceNotFoundError, UnsupportedSourceError
from evidence_store.child import Child, Limits, RunningChild
from evidence_store.errors import ChildError
from evidence_store.model import clean
from evidence_store.transfer import UnreadableError

_BUFFER = 4 << 20
_READERS = 2
_TIMEOUT_S = 60.0
_MAX_DEATHS, _MAX_DEAD_S = 200, 300.0
_MAX_FILES = 15_000  # E01 to ZZZ are 14,971
_MAX_EXTENTS = 1000
_LISTED = 200
_FEW_FILES = 500  # more may need more descriptors than a process has by default
_MAX_FACTS = 64 << 10
_FORMATS = {
    "E01": "EWF (E01)",
    "Ex01": "EWF2 (Ex01)",
    "qcow2": "qcow2",
    "VMDK": "VMDK",
    "VHD": "VHD",
    "VHDX": "VHDX",
}
_KEEP = "to keep the container file itself: --kind record"


def open_container(path: Path, form: str, text: str) -> ContainerImage:
    """Return the disk inside a container.

    Args:
        path: the file, the first of a set, or the descriptor.
        form: `E01`, `Ex01`, `qcow2`, `VMDK`, `VHD`, `VHDX`.
        text: what people call it.

    Raises: UnsupportedSourceError; AcquisitionError if it is damaged.
    """
    # Beside what a link leads to lie the other files of the set, not beside the link.
    path = path.resolve()
    with contextlib.ExitStack() as opened:
        files = _Files(path.parent, opened)
        files.open(path.name)
        request: dict[str, Any] = {"format": form}
        try:
            if form in ("E01", "Ex01"):
                _open_segments(files, path.name, form)
            elif form == "VMDK":
                request |= _open_extents(files)
            readers = _Readers(request, files.all)
            opened.callback(readers.close)
            inside = _Inside.parse(readers.open())
        except (DamagedError, ChildError) as e:
            raise AcquisitionError(
                f"{clean(path.name)} is damaged: {clean(str(e), 300)} ({_FORMATS[form]})",
                hint=f"get another copy of it; {_KEEP}",
            ) from e
        except RefusedError as e:
            raise UnsupportedSourceError(
                f"{clean(path.name)} cannot be read: {clean(str(e), 300)}",
                hint=clean(e.hint, 300) or _KEEP,
            ) from e
        return ContainerImage(path, text, form, files, readers, inside, opened.pop_all())


class _Files:
    """The files of a container, all in one folder, open for reading."""

    def __init__(self, folder: Path, opened: contextlib.ExitStack) -> None:
        self.folder = folder
        self.all: list[File] = []
        self.names: list[str] = []
        self.stats: list[os.stat_result] = []
        self._opened = opened

    def open(self, name: str) -> File:
        """Open a regular file by its plain name. Raises: AcquisitionError."""
        if len(self.all) >= _MAX_FILES:
            raise UnsupportedSourceError(f"it consists of more than {_MAX_FILES} files")
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        if len(self.all) == _FEW_FILES:
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            most = max(soft, min(hard, 2 * _MAX_FILES))
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        path = self.folder / name
        try:
            try:
                fd = os.open(path, flags | os.O_NOATIME)
            except PermissionError:  # O_NOATIME is for the owner and root only
                fd = os.open(path, flags)
        except OSError as e:
            kind = SourceNotFoundError if e.errno == errno.ENOENT else AcquisitionError
            raise kind(
                f"cannot open {clean(name)}, a part of the container: {e.strerror}",
                hint="all files of a container must lie in one folder, as files",
            ) from e
        self._opened.callback(os.close, fd)
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise UnsupportedSourceError(f"{clean(name)} is no regular file")
        self.all.append(File(fd, found.st_size, clean(name, 60)))
        self.names.append(name)
        self.stats.append(found)
        return self.all[-1]


# -- the files of a set ----------------------------------------------------------------------------


def _open_segments(files: _Files, name: str, form: str) -> None:
    at, length = (9, 2) if form == "E01" else (12, 4)
    number = int.from_bytes(files.all[0].read(at, length), "little")
    stem, dot, suffix = name.rpartition(".")
    if number != 1:
        raise UnsupportedSourceError(
            f"{clean(name)} is segment file {number} of a set",
            hint=f"name the first one (.{form})",
        )
    if not dot or len(suffix) != len(form) or not suffix.endswith("01"):
        return
    there = {p.name for p in files.folder.iterdir()}
    wanted = iter(f"{stem}.{following}" for following in segment_suffixes(suffix))
    missing = next((one for one in _take(wanted, there, files)), "")
    if beyond := next((one for one in wanted if one in there), ""):
        raise UnsupportedSourceError(
            f"the set lacks {clean(missing)}, but has {clean(beyond)}",
            hint="find the missing file; without it this would be another image",
        )


def _take(wanted: Iterator[str], there: set[str], files: _Files) -> Iterator[str]:
    """Open what is there, in order; yield the first name that is not."""
    for name in wanted:
        if name not in there:
            yield name
            return
        files.open(name)


def segment_suffixes(first: str) -> Iterator[str]:
    """Yield the suffixes after the first: E02 … E99, EAA … EZZ, FAA … ZZZ, in the case of E.

    Of Ex01: Ex02 … Ex99, ExAA … ExZZ, EyAA … EzZZ.

    >>> names = list(segment_suffixes("E01"))
    >>> names[0], names[97], names[98], names[98 + 676], names[-1]
    ('E02', 'E99', 'EAA', 'FAA', 'ZZZ')
    """
    fixed, letter = first[:-3], first[-3]
    yield from (f"{fixed}{letter}{n:02d}" for n in range(2, 100))
    last = "Z" if letter.isupper() else "z"
    letters = string.ascii_uppercase if first[0].isupper() else string.ascii_lowercase
    for head in range(ord(letter), ord(last) + 1):
        yield from (fixed + chr(head) + a + b for a in letters for b in letters)


def _open_extents(files: _Files) -> dict[str, Any]:
    """Open what a VMDK descriptor names, beside it; return what the child must know of it.

    The descriptor is text, read here by one regular expression: what it names is a claim. Only a
    plain name of a regular file in the same folder is opened.
    """
    own = files.all[0]
    embedded = own.read(0, 4) == b"KDMV"
    raw = embedded_descriptor(own) if embedded else own.read(0, min(own.size, MAX_DESCRIPTOR))
    if not raw:
        raise RefusedError(
            "it is one extent of a disk in several", "name the descriptor (.vmdk, a small text)"
        )
    descriptor = parse_descriptor(raw)
    if len(descriptor.extents) >= _MAX_EXTENTS:
        raise RefusedError(f"its descriptor names {len(descriptor.extents)} extents")
    extents = []
    for extent in descriptor.extents:
        which = None
        if extent.kind != "ZERO":
            which = _extent_file(files, extent, embedded and len(descriptor.extents) == 1)
        extents.append((extent.size, extent.kind, extent.at, which))
    kept = {k[:40]: v[:200] for k, v in descriptor.settings.items()}
    wanted = ("createType", "CID", "ddb.adapterType", "ddb.uuid", "ddb.virtualHWVersion")
    return {"extents": extents, "settings": {k: clean(kept[k]) for k in wanted if k in kept}}


def _extent_file(files: _Files, extent: Extent, itself: bool) -> int:
    name = extent.name
    if extent.kind not in ("SPARSE", "FLAT", "VMFS"):
        raise RefusedError(
            f"it has an extent of type {clean(extent.kind)}",
            "turn it into a raw image first: qemu-img convert -O raw",
        )
    if itself and extent.kind == "SPARSE":  # the name inside is the one it was made under
        return 0
    if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise RefusedError(
            f"its descriptor names an extent outside of its folder: {clean(name, 100)}",
            "a descriptor may only name files beside it",
        )
    if name in files.names:
        return files.names.index(name)
    files.open(name)
    return len(files.all) - 1


# -- the readers -----------------------------------------------------------------------------------


@dataclass
class _Reader:
    """One child and the memory that is shared with it."""

    request: Mapping[str, Any]
    files: list[File]
    folder: Path
    limits: Limits
    child: RunningChild | None = None
    opened: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._fd = os.memfd_create("impound", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self._fd, _BUFFER)
        # A child that cut it short would kill us with SIGBUS.
        fcntl.fcntl(
            self._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        )
        self._shared = mmap.mmap(self._fd, _BUFFER)
        self.view = memoryview(self._shared)

    def call(self, **request: Any) -> dict[str, Any]:
        """Ask the child, started if there is none. Raises: ChildError."""
        try:
            if self.child is None:
                self.child = self._start()
                # A set may have thousands of files: too long a list for one message.
                files = [(f.fd, f.size, f.name) for f in self.files]
                what = json.dumps({**self.request, "files": files}).encode()
                self.view[: len(what)] = what
                self.opened = self.child.call({"do": "open", "length": len(what)}, _TIMEOUT_S)
            return self.child.call(request, _TIMEOUT_S) if request else self.opened
        except ChildError:
            self.child = None
            raise

    def _start(self) -> RunningChild:
        return Child(
            "acquisition.container.reader", {"buffer": (self._fd, _BUFFER)}, {}, self.folder,
            self.limits,
            descriptors=(self._fd, *(f.fd for f in self.files)),
        ).start()  # fmt: skip

    def close(self) -> None:
        """End the child, give the memory back."""
        if self.child is not None:
            self.child.close()
        self.view.release()
        self._shared.close()
        os.close(self._fd)


class _Readers:
    """Up to two children, each of use to one thread at a time."""

    def __init__(self, request: Mapping[str, Any], files: list[File]) -> None:
        self._request = request
        self._files = files
        self._folder = tempfile.TemporaryDirectory(prefix="impound-")
        self._idle: queue.LifoQueue[_Reader] = queue.LifoQueue()
        self._all: list[_Reader] = []
        self._lock = threading.Lock()
        self._deaths, self._dead_s = 0, 0.0
        self.size = 0
        self.hello: Mapping[str, str] = {}

    def open(self) -> dict[str, Any]:
        """Return what the child says of the container. Raises: ChildError."""
        with self.lend() as reader:
            said = reader.call()
            if reader.child is not None:
                self.hello = reader.child.hello
            return said

    def _limits(self) -> Limits:
        total = sum(file.size for file in self._files)
        # 1 MiB/s of the container and 16 MiB/s of the disk: far slower than any reader is.
        return Limits(
            address_space=2 << 30, file_bytes=64 << 20, open_files=len(self._files) + 64,
            cpu_s=600 + (total >> 20) + (self.size >> 24),
        )  # fmt: skip

    @contextlib.contextmanager
    def lend(self) -> Iterator[_Reader]:
        """Lend a reader that nobody else uses.

        Raises: AcquisitionError if the children died too often; OSError if this one does.
        """
        reader = self._borrow()
        started = time.monotonic()
        try:
            yield reader
        except ChildError as e:
            if not self.size:
                raise
            with self._lock:
                self._deaths += 1
                self._dead_s += time.monotonic() - started
                given_up = self._deaths > _MAX_DEATHS or self._dead_s > _MAX_DEAD_S
            if given_up:
                raise AcquisitionError(
                    f"the reader of the container died {self._deaths} times, the last time: {e}",
                    hint=f"what was stored stays; {_KEEP}",
                ) from e
            raise OSError(errno.EIO, f"its reader died here: {e}") from e
        finally:
            self._idle.put(reader)

    def _borrow(self) -> _Reader:
        with self._lock:
            if self._idle.empty() and len(self._all) < _READERS:
                folder = Path(self._folder.name, str(len(self._all)))
                folder.mkdir()
                reader = _Reader(self._request, self._files, folder, self._limits())
                self._all.append(reader)
                return reader
        return self._idle.get()

    def close(self) -> None:
        """End the children."""
        for reader in self._all:
            reader.close()
        self._folder.cleanup()


@dataclass(frozen=True)
class _Inside:
    """What a child said of the disk, checked."""

    size: int
    sparse: bool
    facts: dict[str, JsonValue]
    hashes: dict[str, str]
    remarks: list[str]

    @classmethod
    def parse(cls, said: Mapping[str, Any]) -> _Inside:
        """Raises: RefusedError, DamagedError, as the child found."""
        if "refused" in said:
            raise RefusedError(str(said["refused"]), str(said.get("hint", "")))
        if "damaged" in said:
            raise DamagedError(str(said["damaged"]))
        size, facts, hashes, remarks = (
            said.get(k) for k in ("size", "facts", "hashes", "remarks")
        )  # fmt: skip
        if not isinstance(size, int) or not 0 <= size <= MAX_SIZE:
            raise DamagedError("its reader names no size")
        if not (isinstance(facts, dict) and isinstance(hashes, dict) and isinstance(remarks, list)):
            raise DamagedError("its reader breaks the protocol")
        known = {clean(str(k), 60): _bounded(v) for k, v in list(facts.items())[:40]}
        if len(json.dumps(known)) > _MAX_FACTS:
            raise DamagedError("its reader breaks the protocol")
        lengths = {"md5": 32, "sha1": 40}
        return cls(
            size=size,
            sparse=bool(said.get("sparse")),
            facts=known,
            hashes={
                k: v for k, v in hashes.items()
                if isinstance(v, str) and len(v) == lengths.get(k)
                and set(v) <= set("0123456789abcdef")
            },
            remarks=[clean(str(r), 300) for r in remarks[:100]],
        )  # fmt: skip


def _bounded(value: Any, depth: int = 0) -> JsonValue:
    """Return what a child said in the form and size of a manifest."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**53 else str(value)[:60]
    if isinstance(value, dict) and depth < 2:
        return {clean(str(k), 60): _bounded(v, depth + 1) for k, v in list(value.items())[:40]}
    if isinstance(value, list) and depth < 3:
        return [_bounded(v, depth + 1) for v in value[:_LISTED]]
    return clean(str(value)[:2000], 1000)


class ContainerImage(Closing):
    """The disk inside a container: an `ImageSource` that concludes (`Concluding`).

    A damaged unit is unreadable as a whole. A child that dies is started again; where it dies every
    time the spot is unreadable, and after 200 deaths the container is given up.
    """

    def __init__(
        self, path: Path, text: str, form: str, files: _Files, readers: _Readers, inside: _Inside,
        owned: contextlib.ExitStack,
    ) -> None:  # fmt: skip
        self.text = text
        self.size = readers.size = inside.size
        self._path = path
        self._files = files
        self._readers = readers
        self._inside = inside
        self.digests = tuple(sorted(inside.hashes))
        self.method = (
            f"the disk inside a container ({_FORMATS[form]}), unpacked by a limited child process; "
            "damaged units are unreadable ranges"
        )
        self.facts: dict[str, JsonValue] = {
            "type": "container", "format": _FORMATS[form], "path": clean(str(path)),
            "size": self.size, "inside": inside.facts, "reader": dict(readers.hello),
            "stamp": hashlib.sha256(
                repr([(s.st_size, s.st_mtime_ns) for s in files.stats]).encode()
            ).hexdigest(),
        }  # fmt: skip
        first = files.stats[0]
        self.identity: Mapping[str, JsonValue] = {
            "size": self.size, "device": first.st_dev, "inode": first.st_ino,
        }  # fmt: skip
        self._received = _Received(files.all)
        self._end = weakref.finalize(self, _end, self._received, owned)

    def close(self) -> None:
        """See `Closing.close`."""
        self._end()

    def readinto(self, view: memoryview, offset: int) -> int:
        """See `ImageSource.readinto`. Raises: AcquisitionError if the readers are given up."""
        self._received.begin()
        length = min(len(view), _BUFFER, max(0, self.size - offset))
        if length == 0:
            return 0
        with self._readers.lend() as reader:
            said = reader.call(do="read", offset=offset, length=length)
            filled = said.get("filled")
            if isinstance(filled, int) and 0 < filled <= length:
                view[:filled] = reader.view[:filled]
                return filled
        lost = said.get("lost")
        whole = lost if isinstance(lost, int) and 0 < lost <= length else 0
        raise UnreadableError(clean(str(said.get("why", "no reason given")), 200), whole)

    def next_data(self, offset: int) -> int:
        """See `ImageSource.next_data`."""
        if not self._inside.sparse or offset >= self.size:
            return offset
        try:
            with self._readers.lend() as reader:
                said = reader.call(do="next", offset=offset).get("offset")
        except OSError:
            return offset  # reading it will tell
        return said if isinstance(said, int) and offset <= said <= self.size else offset

    def changes(self) -> list[str]:
        """See `Source.changes`."""
        found = []
        for name, file, before in zip(
            self._files.names, self._files.all, self._files.stats, strict=True
        ):
            after = os.fstat(file.fd)
            if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
                found.append(f"{clean(name)}: was written to while it was read")
        return found

    def conclude(self, content: Mapping[str, str] | None) -> list[str]:
        """See `Concluding.conclude`: compare with the digests that the container stores."""
        files = self._received.files()
        self.facts["files"] = list(files[:_LISTED])
        if len(files) > _LISTED:
            self.facts["files_count"] = len(files)
            lines = "".join(f"{f['sha256']}  {f['name']}\n" for f in files)
            self.facts["files_sha256"] = hashlib.sha256(lines.encode()).hexdigest()
        remarks = list(self._inside.remarks)
        for name, stored in sorted(self._inside.hashes.items()):
            computed = (content or {}).get(name)
            match = None if computed is None else computed == stored
            self.facts[f"container_{name}"] = {
                "stored": stored, "computed": computed, "match": match,
            }  # fmt: skip
            if match is None:
                remarks.append(f"the {name.upper()} stored in the container was not compared")
            elif not match:
                remarks.append(
                    f"the content does not have the {name.upper()} stored in the container: "
                    f"{computed}, stored {stored}"
                )
        self._end()
        return remarks


class _Received:
    """SHA-256 of the files as they were received, taken by a thread beside the reading."""

    def __init__(self, files: list[File]) -> None:
        self._files = files
        self._found: list[str | None] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Start, if that was not done."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="container", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        for file in self._files:
            digest, at = hashlib.sha256(), 0
            try:
                while at < file.size and not self._stop.is_set():
                    if not (chunk := os.pread(file.fd, min(1 << 20, file.size - at), at)):
                        break
                    digest.update(chunk)
                    at += len(chunk)
            except OSError:
                at = -1
            self._found.append(digest.hexdigest() if at == file.size else None)

    def files(self) -> list[dict[str, JsonValue]]:
        """Wait for the end; return name, size and SHA-256 (null: not readable to its end)."""
        self.begin()
        assert self._thread is not None  # noqa: S101
        self._thread.join()
        return [
            {"name": clean(file.name), "size": file.size, "sha256": sha256}
            for file, sha256 in zip(self._files, self._found, strict=True)
        ]

    def end(self) -> None:
        """Stop early."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()


def _end(received: _Received, owned: contextlib.ExitStack) -> None:
    received.end()
    owned.close()
