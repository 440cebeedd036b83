# SPDX-License-Identifier: Apache-2.0
"""What evidence is read from: files, devices, images split or in containers, directories, stdin.

A source reads and tells; it stores nothing. Nothing here writes to what it reads: files are opened
read-only (without touching their access time where the system allows it), links are not followed
inside a directory, and what is not a regular file is named instead of opened.

Source: docs/format.md §6; lseek(2) SEEK_DATA; Linux Documentation/ABI/stable/sysfs-block (stat,
diskseq, holders); proc_pid_mountinfo(5).
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import sys
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from acquisition.closing import Closing
from acquisition.container.image import ContainerImage, open_container
from acquisition.dump import MemoryDump
from acquisition.errors import AcquisitionError, SourceNotFoundError, UnsupportedSourceError
from evidence_store.model import clean
from evidence_store.transfer import Member

_CHUNK = 4 << 20
_SPLIT = re.compile(r"(?P<stem>.+\.)(?P<first>0+[01]|a{2,4})")
# Containers hold an image inside; taken as raw bytes they would be another thing under its name.
_CONTAINERS = (
    (b"EVF\x09\x0d\x0a\xff\x00", "E01"),
    (b"EVF2\x0d\x0a\x81\x00", "Ex01"),
    (b"LVF\x09\x0d\x0a\xff\x00", "EWF logical (L01)"),
    (b"QFI\xfb", "qcow2"),
    (b"KDMV", "VMDK"),
    (b"# Disk DescriptorFile", "VMDK"),
    (b"vhdxfile", "VHDX"),
    (b"conectix", "VHD"),
)
_UNREAD = ("EWF logical (L01)",)


def open_source(path: str, kind: str, *, text: str = "", store: Path | None = None) -> AnySource:
    """Return the source at `path` ("-" is standard input), open for reading; the caller closes it.

    Args:
        path: regular file, first part of a split image (.000, .001, .aa), container (E01, Ex01,
            qcow2, VMDK, VHD, VHDX), block device, directory.
        kind: `disk` and `memory` are taken as one image; `logs` and `record` as a set of files.
        text: what people call it; the path if empty.
        store: directory of a local store; it must not lie inside what is taken, nor hold it.

    Raises: SourceNotFoundError, UnsupportedSourceError, AcquisitionError.
    """
    image = kind in ("disk", "memory")
    if path == "-":
        return (StandardInput if image else PipedFile)(text or "standard input")
    place = Path(path)
    try:
        mode = place.stat().st_mode
    except FileNotFoundError as e:
        raise SourceNotFoundError(
            f"no such file: {clean(path)}", hint="check the path; nothing was recorded"
        ) from e
    except OSError as e:
        raise AcquisitionError(f"cannot look at {clean(path)}: {e.strerror}") from e
    text = text or clean(path)
    _refuse_overlap(place, store)
    if stat.S_ISDIR(mode):
        return Directory(place, text)
    if stat.S_ISBLK(mode):
        return BlockDevice(place, text)
    if not stat.S_ISREG(mode):
        raise UnsupportedSourceError(
            f"{clean(path)} is neither a file, a block device nor a directory",
            hint="pipe it in with: … | impound ingest CASE - --kind KIND",
        )
    if not image:
        return Directory(place.parent, text, only=place.name)
    paths = split_parts(place)
    with ExitStack() as opened:  # whatever refuses a part closes those before it
        parts = [opened.enter_context(RawFile(p, text)) for p in paths[:1]]
        if form := _container(parts[0]):
            return open_container(place, form, text)
        parts += [opened.enter_context(RawFile(p, text)) for p in paths[1:]]
        opened.pop_all()
    whole = SplitImage(parts, text) if parts[1:] else parts[0]
    if kind != "memory":
        return whole
    try:
        return MemoryDump(whole)
    except OSError as e:
        whole.close()
        raise AcquisitionError(f"cannot read {clean(path)}: {e.strerror}") from e


class _Descriptor(Closing):
    """One open file description."""

    _fd: int

    def readinto(self, view: memoryview, offset: int) -> int:
        """See `ImageSource.readinto`."""
        return os.preadv(self._fd, [view], offset)

    def close(self) -> None:
        """See `Closing.close`."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class RawFile(_Descriptor):
    """A regular file, taken byte for byte. Holes are found by SEEK_DATA and not read."""

    method = "pread(2) of a regular file; ranges that the file system reports as holes are not read"

    def __init__(self, path: Path, text: str) -> None:
        self.text = text
        self.path = path
        self._fd = _open(path)
        self._before = os.fstat(self._fd)
        self.size = self._before.st_size
        self.facts: Mapping[str, JsonValue] = {
            "type": "file", "path": clean(str(path.absolute())), **_stat_facts(self._before),
            "stamp": str(self._before.st_mtime_ns),
        }  # fmt: skip
        self.identity: Mapping[str, JsonValue] = {
            "size": self.size, "device": self._before.st_dev, "inode": self._before.st_ino,
        }  # fmt: skip

    def next_data(self, offset: int) -> int:
        """See `ImageSource.next_data`."""
        try:
            return os.lseek(self._fd, offset, os.SEEK_DATA)
        except OSError as e:
            if e.errno == errno.ENXIO:  # no data from here to the end (or the file got shorter)
                now = os.fstat(self._fd).st_size
                return self.size if now >= self.size else max(offset, min(now, self.size - 1))
            return offset

    def changes(self) -> list[str]:
        """See `Source.changes`."""
        after = os.fstat(self._fd)
        found = []
        if after.st_size != self._before.st_size:
            found.append(f"size was {self._before.st_size}, is {after.st_size} bytes")
        if after.st_mtime_ns != self._before.st_mtime_ns:
            found.append("was written to while it was read: not the state of one moment")
        try:
            if self.path.stat().st_ino != self._before.st_ino:
                found.append("another file stands at its path now")
        except OSError as e:
            found.append(f"is no longer at its path ({e.strerror})")
        return found


class BlockDevice(_Descriptor):
    """A whole block device or partition."""

    method = "pread(2) of a block device"

    def __init__(self, path: Path, text: str) -> None:
        self.text = text
        self._path = path
        self._fd = _open(path)
        self.size = os.lseek(self._fd, 0, os.SEEK_END)
        rdev = os.fstat(self._fd).st_rdev
        self._number = number = f"{os.major(rdev)}:{os.minor(rdev)}"
        self._sysfs = Path(f"/sys/dev/block/{number}").resolve()
        attributes = {
            name: found for name, file in (
                ("serial", "device/serial"), ("model", "device/model"), ("wwid", "wwid"),
                ("read_only", "ro"), ("backing_file", "loop/backing_file"),
                ("logical_block_size", "queue/logical_block_size"),
            ) if (found := _attribute(self._sysfs / file))
        }  # fmt: skip
        self._settle()
        self._written = _written(self._sysfs)
        self._mounted = _mounted_writable(self._sysfs, number)
        self.facts: Mapping[str, JsonValue] = {
            "type": "block device", "path": clean(str(path.absolute())), "size": self.size,
            "device": number, **attributes, "stamp": _device_stamp(self._sysfs),
            **({"mounted": list(self._mounted)} if self._mounted else {}),
        }  # fmt: skip
        self.identity: Mapping[str, JsonValue] = {
            "size": self.size, "device": number, "serial": attributes.get("serial", ""),
            "backing_file": attributes.get("backing_file", ""),
        }  # fmt: skip

    def _settle(self) -> None:
        """Have what others wrote and this kernel still holds back written out, so that it counts.

        It would be written within seconds all the same; we write nothing. A device that fails to
        take it has no counters to go by, and reading shows what it holds.
        """
        with suppress(OSError):
            os.fsync(self._fd)

    def next_data(self, offset: int) -> int:
        """Every byte of a device is read; zeros are recognised afterwards."""
        return offset

    def changes(self) -> list[str]:
        """See `Source.changes`."""
        found = [
            f"{where}: not the state of one moment"
            for where in {
                **self._mounted,
                **_mounted_writable(self._sysfs, self._number),
            }
        ]
        try:
            size = os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as e:
            return [*found, f"no longer answers ({e.strerror})"]
        if size != self.size:
            found.append(f"size was {self.size}, is {size} bytes")
        self._settle()
        if _written(self._sysfs) != self._written:
            found.append("was written to while it was read: not the state of one moment")
        return found


class SplitImage(Closing):
    """A raw image cut into numbered files, read as one."""

    method = "pread(2) of the parts in order, as one image"

    def __init__(self, parts: list[RawFile], text: str) -> None:
        self.text = text
        self._parts = parts
        self._starts: list[int] = []
        self.size = 0
        for part in parts:
            self._starts.append(self.size)
            self.size += part.size
        self.facts: Mapping[str, JsonValue] = {
            "type": "split raw", "size": self.size, "parts": len(parts),
            "first": parts[0].facts["path"], "last": parts[-1].facts["path"],
            "part_sizes": [part.size for part in parts[:200]],
            "stamp": _digest_of(str(part.facts["stamp"]) for part in parts),
        }  # fmt: skip
        self.identity: Mapping[str, JsonValue] = {
            "size": self.size, "parts": [dict(part.identity) for part in parts],
        }  # fmt: skip

    def _part(self, offset: int) -> tuple[RawFile, int]:
        index = bisect_right(self._starts, offset) - 1
        return self._parts[index], self._starts[index]

    def readinto(self, view: memoryview, offset: int) -> int:
        """See `ImageSource.readinto`; a read never crosses into the next part."""
        if offset >= self.size:
            return 0
        part, start = self._part(offset)
        n = part.readinto(view[: max(0, start + part.size - offset)], offset - start)
        if n == 0 and len(view):  # not the end of the image: the next part still has its bytes
            raise OSError(errno.EIO, f"part {clean(part.path.name)} ended early")
        return n

    def next_data(self, offset: int) -> int:
        """See `ImageSource.next_data`."""
        while offset < self.size:
            part, start = self._part(offset)
            data = part.next_data(offset - start)
            if data < part.size:
                return start + data
            offset = start + part.size
        return self.size

    def close(self) -> None:
        """See `Closing.close`."""
        for part in self._parts:
            part.close()

    def changes(self) -> list[str]:
        """See `Source.changes`."""
        return [f"{clean(p.path.name)}: {change}" for p in self._parts for change in p.changes()]


class _Piped(Closing):
    """Bytes piped in. They cannot be read twice, so an interruption is not resumed."""

    method = "read(2) of standard input"
    identity = None

    def __init__(self, text: str) -> None:
        if sys.stdin is None or os.isatty(0):
            raise AcquisitionError(
                "standard input is a terminal", hint="pipe the bytes in, or name a file"
            )
        self.text = text
        self.facts: Mapping[str, JsonValue] = {"type": "stream"}

    def changes(self) -> list[str]:
        """A stream leaves nothing to compare with."""
        return []


class StandardInput(_Piped):
    """Standard input as one image."""

    def readinto(self, view: memoryview) -> int:
        """See `StreamSource.readinto`."""
        return os.readv(0, [view])


class PipedFile(_Piped):
    """Standard input as a set of one file named `stdin`."""

    def members(self) -> Iterator[Member]:
        """See `SetSource.members`."""
        yield Member(b"stdin", {"type": "stream"}, self._chunks)

    def _chunks(self) -> Iterator[bytes]:
        while chunk := os.read(0, _CHUNK):
            yield chunk

    def skipped(self) -> list[str]:
        """A stream is taken to its end, or the file is in error."""
        return []


@dataclass
class Directory(Closing):
    """Every file below a directory, or one file of it. Links and special files are only named."""

    root: Path
    text: str
    only: str | None = None

    def __post_init__(self) -> None:
        self._skipped: list[str] = []
        self._changed: list[str] = []
        place = self.root / self.only if self.only else self.root
        self.method = f"read(2) of {'one file' if self.only else 'every regular file, by name'}"
        try:
            found = place.stat()
        except OSError as e:
            raise AcquisitionError(f"cannot look at {clean(str(place))}: {e.strerror}") from e
        self.facts: Mapping[str, JsonValue] = {
            "type": "file" if self.only else "directory", "path": clean(str(place.absolute())),
            **_stat_facts(found), "stamp": self._stamp(),
        }  # fmt: skip
        self.identity: Mapping[str, JsonValue] = {
            "device": found.st_dev, "inode": found.st_ino,
            **({"size": found.st_size} if self.only else {}),
        }  # fmt: skip

    def members(self) -> Iterator[Member]:
        """See `SetSource.members`: depth first, names in byte order."""
        root = os.fsencode(self.root)
        if self.only is not None:
            name = os.fsencode(self.only)
            path = os.path.join(root, name)  # noqa: PTH118
            try:
                found = os.stat(path)  # noqa: PTH116
            except OSError as e:
                self._skip(name, f"not readable: {e.strerror}")
                return
            yield self._member(path, name, found)
            return
        yield from self._below(root)

    def _stamp(self) -> str:
        """Digest of names, sizes and times, without reading contents: differs if files changed."""
        keys = ("type", "size", "mtime_ns", "target")
        stamp = _digest_of(
            f"{member.name.hex()} {[member.facts.get(k) for k in keys]}"
            for member in self.members()
        )
        self._skipped.clear()  # it is said when the files are taken
        return stamp

    def _below(self, root: bytes) -> Iterator[Member]:
        waiting = self._names(root, b"")  # a stack, not a recursion: evidence may be any depth deep
        while waiting:
            name = waiting.pop()
            path = root + b"/" + name
            try:
                found = os.lstat(path)
                target = os.readlink(path) if stat.S_ISLNK(found.st_mode) else b""  # noqa: PTH115
            except OSError as e:
                self._skip(name, f"not readable: {e.strerror}")
                continue
            if stat.S_ISREG(found.st_mode):
                yield self._member(path, name, found)
            elif stat.S_ISLNK(found.st_mode):
                facts = {"type": "symlink", "target": target.decode("utf-8", "backslashreplace")}
                yield Member(name, {**_stat_facts(found), **facts}, None)
            elif stat.S_ISDIR(found.st_mode):
                yield Member(name, {**_stat_facts(found), "type": "directory"}, None)
                waiting += self._names(path, name + b"/")
            else:
                self._skip(name, "a socket, pipe or device; not opened")

    def _names(self, folder: bytes, prefix: bytes) -> list[bytes]:
        """Names in `folder`, last first."""
        try:
            names = sorted(os.listdir(folder), reverse=True)  # noqa: PTH208
        except OSError as e:
            self._skip(prefix or b".", f"directory not readable: {e.strerror}")
            return []
        return [prefix + name for name in names]

    def _member(self, path: bytes, name: bytes, found: os.stat_result) -> Member:
        return Member(
            name, {**_stat_facts(found), "type": "file"}, lambda: self._chunks(path, name)
        )

    def _chunks(self, path: bytes, name: bytes) -> Iterator[bytes]:
        # Inside a directory a link is named, not followed; a file named by itself may be one.
        fd = _open_quietly(path, os.O_NONBLOCK | (0 if self.only else os.O_NOFOLLOW))
        with os.fdopen(fd, "rb", buffering=0) as f:
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode):
                raise OSError(errno.EINVAL, "is no longer a regular file")
            read = 0
            while chunk := f.read(_CHUNK):
                read += len(chunk)
                yield chunk
            after = os.fstat(fd)
            if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns) or (
                read != before.st_size
            ):
                self._changed.append(
                    f"{_shown(name)}: changed while it was read ({read} bytes taken)"
                )

    def _skip(self, name: bytes, why: str) -> None:
        self._skipped.append(f"{_shown(name)}: {why}")

    def skipped(self) -> list[str]:
        """See `SetSource.skipped`."""
        return list(self._skipped)

    def changes(self) -> list[str]:
        """See `Source.changes`."""
        return list(self._changed)


AnySource = (
    RawFile
    | MemoryDump
    | BlockDevice
    | SplitImage
    | ContainerImage
    | StandardInput
    | PipedFile
    | Directory
)


def split_parts(first: Path) -> list[Path]:
    """Return the parts of a split image that begins with `first`; one path if it is not split.

    Raises: UnsupportedSourceError if `first` is a later part, or a part in between is missing.
    """
    match = _SPLIT.fullmatch(first.name)
    if match is None:
        _refuse_later_part(first)
        return [first]
    stem, suffix = match["stem"], match["first"]
    if suffix.endswith("1"):
        _refuse_later_part(first)
    siblings = _siblings(first, stem)
    parts = [siblings.pop(suffix)]
    while following := next((s for s in _followers(suffix) if s in siblings), ""):
        parts.append(siblings.pop(following))
        suffix = following
    missing = _successor(suffix)
    beyond = [
        s for s in siblings if len(s) == len(missing) and s > missing
        and (s.isdigit() if missing.isdigit() else re.fullmatch("[a-z]+", s))
    ]  # fmt: skip
    # Letters may be a word instead (disk.aaa beside disk.txt): too far off to be a part.
    reach = max(26, 2 * (len(parts) + len(beyond)))
    if not missing.isdigit():
        beyond = [s for s in beyond if _ordinal(s) - _ordinal(missing) <= reach]
    if beyond:
        raise UnsupportedSourceError(
            f"the split image {clean(first.name)} lacks part {clean(stem)}{missing}, but has "
            f"{clean(stem)}{min(beyond)}",
            hint="find the missing part; an image with a part left out would be another image",
        )
    return parts


def _siblings(path: Path, stem: str) -> dict[str, Path]:
    """What stands beside `path` under a name that begins with `stem`, by the rest of the name."""
    found = path.parent.iterdir()
    return {p.name.removeprefix(stem): p for p in found if p.name.startswith(stem)}


def _refuse_later_part(path: Path) -> None:
    stem, dot, suffix = path.name.rpartition(".")
    if not dot or not re.fullmatch(r"[0-9]{2,4}|[a-z]{2,4}", suffix):
        return
    siblings = _siblings(path, stem + dot)
    zeros = "0" * len(suffix)
    firsts = (zeros, zeros[1:] + "1") if suffix.isdigit() else ("a" * len(suffix),)
    for first in firsts:
        # Letters may be a word instead: a part is what follows another part.
        follows = suffix.isdigit() or any(suffix in _followers(s) for s in siblings if s.isalpha())
        if first < suffix and first in siblings and follows:
            raise UnsupportedSourceError(
                f"{clean(path.name)} is a later part of a split image",
                hint=f"name the first part: {clean(stem)}.{first}",
            )


def _ordinal(letters: str) -> int:
    """Position of a suffix of letters: aa is 0, ab is 1."""
    return sum((ord(c) - ord("a")) * 26**i for i, c in enumerate(reversed(letters)))


def _successor(suffix: str) -> str:
    """The suffix after `suffix`: 001 -> 002, az -> ba; "" after the last."""
    if suffix.isdigit():
        following = str(int(suffix) + 1)
        return following.zfill(len(suffix)) if len(following) <= len(suffix) else following
    letters = list(suffix)
    for i in reversed(range(len(letters))):
        if letters[i] != "z":
            letters[i] = chr(ord(letters[i]) + 1)
            return "".join(letters)
        letters[i] = "a"
    return ""


def _followers(suffix: str) -> tuple[str, ...]:
    """The suffixes that may come after `suffix`: the next one, and split(1)'s wider one.

    split(1) keeps names in order by growing the suffix: yz is followed by zaaa, 89 by 9000.
    """
    following = _successor(suffix)
    last, zero = ("9", "0") if following.isdigit() else ("z", "a")
    if following and re.fullmatch(f"{last}+{zero}+", following):
        return following, following + 2 * zero
    return (following,)


def _container(source: RawFile) -> str:
    """Return the format of a container, "" for a raw image. Raises: UnsupportedSourceError."""
    head, tail = bytearray(32), bytearray(512)
    try:
        source.readinto(memoryview(head), 0)
        if source.size >= 512:
            source.readinto(memoryview(tail), source.size - 512)
    except OSError:
        return ""  # unreadable there; it will be recorded as such
    for magic, form in _CONTAINERS:
        if head.startswith(magic) or (form == "VHD" and tail.startswith(magic)):
            if form in _UNREAD:
                raise UnsupportedSourceError(
                    f"{clean(str(source.path))} is an {form} container, which is not read",
                    hint="turn it into a raw image first (ewfexport), or take the container file "
                    "itself with --kind record",
                )
            return form
    return ""


def _refuse_overlap(place: Path, store: Path | None) -> None:
    if store is None:
        return
    inner, outer = store.resolve(), place.resolve()
    if inner.is_relative_to(outer):
        raise UnsupportedSourceError(
            f"the evidence store {clean(str(store))} lies inside {clean(str(place))}",
            hint="name another store with --store, outside of what is taken",
        )
    if outer.is_relative_to(inner):
        raise UnsupportedSourceError(
            f"{clean(str(place))} lies inside the evidence store {clean(str(store))}",
            hint="what the store holds is in custody already; to read it use: impound item cat",
        )


def _open(path: Path) -> int:
    try:
        return _open_quietly(path)
    except OSError as e:
        raise AcquisitionError(
            f"cannot open {clean(str(path))}: {e.strerror}",
            hint="check its permissions; devices are usually read as root",
        ) from e


def _open_quietly(path: Path | bytes, flags: int = 0) -> int:
    """Open for reading without touching the access time, where that is allowed. Raises: OSError."""
    flags |= os.O_RDONLY | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_NOATIME)
    except PermissionError:  # O_NOATIME is for the owner and root only
        return os.open(path, flags)


def _digest_of(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()


def _stat_facts(found: os.stat_result) -> dict[str, JsonValue]:
    """Times as text of nanoseconds: JSON numbers do not hold them exactly."""
    return {
        "size": found.st_size, "device": found.st_dev, "inode": found.st_ino,
        "mode": f"{found.st_mode:06o}", "uid": found.st_uid, "gid": found.st_gid,
        "mtime_ns": str(found.st_mtime_ns), "ctime_ns": str(found.st_ctime_ns),
    }  # fmt: skip


def _attribute(path: Path) -> str:
    try:
        return clean(path.read_text(errors="replace").strip(), 200)
    except OSError:
        return ""


def _device_stamp(sysfs: Path) -> str:
    """Return a text that differs once a device may have been written to.

    The kernel counts completed writes and discards since boot, and gives each disk a new `diskseq`
    when it is attached or its medium changes. A write to a partition counts for its disk, but one
    to the disk does not count for the partition it falls into: so it is the disk's that count.
    What lies below a loop device can be written without it: there its backing file counts too.

    Without counters the text is never the same twice: nothing says that nothing was written.
    """
    disk = sysfs.parent if (sysfs / "partition").exists() else sysfs
    boot, written = _attribute(Path("/proc/sys/kernel/random/boot_id")), _written(disk)
    if not boot or not written or _attribute(disk / "queue/iostats") != "1":
        return f"not known: no write counters ({time.time_ns()})"
    stamp = f"boot {boot} diskseq {_attribute(disk / 'diskseq') or '-'} {written}"
    if not (disk / "loop").is_dir():
        return stamp
    try:
        below = Path((disk / "loop/backing_file").read_text().rstrip("\n")).stat()
    except OSError:
        return f"not known: the backing file is not to be seen ({time.time_ns()})"
    return f"{stamp} below {below.st_dev}:{below.st_ino} {below.st_mtime_ns}"


def _written(sysfs: Path) -> str:
    """Return the sectors written and discarded since boot, or "" if they are not counted."""
    counters = _attribute(sysfs / "stat").split()
    if len(counters) < 11:
        return ""
    return f"written {counters[6]} discarded {counters[13] if len(counters) > 13 else 0}"


def _mounted_writable(sysfs: Path, number: str) -> dict[str, None]:
    """Return "is mounted writable at …" of a device, and "its partition …" of what lies on it."""
    try:
        table = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    except OSError:
        return {}
    names = {number: ""}
    waiting = [sysfs]
    while waiting:
        place = waiting.pop()
        # Partitions are directories below their disk; LVM, dm-crypt and MD hold what they lie on.
        above = [("partition", p.parent) for p in place.glob("*/partition")]
        above += [("holder", p.resolve()) for p in place.glob("holders/*")]
        for kind, inner in above:
            found = _attribute(inner / "dev")
            if found and found not in names:
                names[found] = f"its {kind} {clean(inner.name)} "
                waiting.append(inner)
    return {
        f"{names[mounted]}is mounted writable at {clean(where)}": None
        for mounted, where in _writable_mounts(table) if mounted in names
    }  # fmt: skip


def _writable_mounts(table: str) -> Iterator[tuple[str, str]]:
    """Yield (major:minor, mount point) of what a mountinfo table shows to be writable.

    A file system that is mounted read-only in one place is writable if its superblock is.
    """
    for line in table.splitlines():
        fields, _, rest = line.partition(" - ")
        mount, super_ = fields.split(" "), rest.split(" ")
        if len(mount) < 6 or len(super_) < 3 or "rw" not in super_[2].split(","):
            continue
        number = mount[2]
        if number.startswith("0:") and super_[1].startswith("/"):  # btrfs has no device number
            try:
                device = Path(super_[1]).stat()
            except OSError:
                continue
            number = f"{os.major(device.st_rdev)}:{os.minor(device.st_rdev)}"
        yield number, re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), mount[4])


def _shown(name: bytes) -> str:
    return clean(os.fsdecode(name), 200)
