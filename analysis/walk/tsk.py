# SPDX-License-Identifier: Apache-2.0
"""NTFS, FAT and exFAT by TSK.

Invariants:

* One row per name, one more per NTFS alternate data stream. Deleted names and the files of TSK's
  $OrphanFiles are rows; TSK's other inventions ($MBR, $FAT1, …) are not.
* NTFS content comes from TSK, which honours initialised sizes, compression and sparse runs; each
  compression unit is checked here first, since TSK gives content for damaged ones too. What a
  filter driver keeps elsewhere (WOF, deduplication, cloud files) is not hashed: its data attribute
  holds zeros.
* FAT content is read by cluster run; exFAT beyond its valid data length reads as zeros.
* FAT keeps local times without a zone. They are given as if they were UTC, whatever the TZ of this
  process, and one gap says so.
* mode, uid and gid are null: these file systems have none, and TSK's are made up.
"""

from __future__ import annotations

import calendar
import hashlib
import time
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import pytsk3

from analysis.image import TskImage
from analysis.walk import lznt1
from analysis.walk.content import (
    EMPTY,
    HOLE,
    Content,
    DamagedError,
    Extent,
    broken,
    laid_out,
)
from analysis.walk.rows import bare_name, line
from analysis.walk.tree import Descent, Place, below, guarded, text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from analysis.image import Readable, Volume
    from analysis.walk.rows import Entry, Recorder

_Times = tuple[int | None, int | None, int | None, int | None]

TSK_ERRORS = (OSError, RuntimeError, MemoryError)
"""What pytsk3 raises when the evidence is bad."""

_PIECE = 1 << 20
_EPOCH_1601 = 116_444_736_000_000_000  # 1970 in 100 ns since 1601
_SI = pytsk3.TSK_FS_ATTR_TYPE_NTFS_SI
_DATA = int(pytsk3.TSK_FS_ATTR_TYPE_NTFS_DATA)
_REPARSE = int(pytsk3.TSK_FS_ATTR_TYPE_NTFS_REPARSE)
_LOGGED = int(pytsk3.TSK_FS_ATTR_TYPE_NTFS_LOG)
_NAME_LIVE = int(pytsk3.TSK_FS_NAME_FLAG_ALLOC)
_META_LIVE = int(pytsk3.TSK_FS_META_FLAG_ALLOC)
_RESIDENT, _ENCRYPTED = int(pytsk3.TSK_FS_ATTR_RES), int(pytsk3.TSK_FS_ATTR_ENC)
_COMPRESSED = int(pytsk3.TSK_FS_ATTR_COMP)
_UNIT = 16  # clusters of a compression unit: Windows and ntfs-3g know no other
# [MS-FSCC] 2.1.2.1. Files with these tags have their content in the data attribute, or none.
_PLAIN_TAGS = {
    0xA0000003,  # mount point
    0xA000000C,  # symbolic link
    0xA000001D,  # symbolic link of WSL
    0x80000023,  # socket
    0x80000024,  # fifo of WSL
    0x80000025,  # character device of WSL
    0x80000026,  # block device of WSL
    0x8000001B,  # alias of an app
}
_FILTERS = {0x80000017: "WOF compression", 0x80000013: "data deduplication"}
_CLOUD = 0x9000001A  # bits 12 to 15 vary
_NOT_HERE = 0x1000 | 0x40000 | 0x400000  # FILE_ATTRIBUTE_OFFLINE, RECALL_ON_OPEN, _ON_DATA_ACCESS
_HOLE_RUN = int(pytsk3.TSK_FS_ATTR_RUN_FLAG_SPARSE) | int(pytsk3.TSK_FS_ATTR_RUN_FLAG_FILLER)
_KINDS = {
    int(pytsk3.TSK_FS_TYPE_NTFS): "ntfs",
    int(pytsk3.TSK_FS_TYPE_FAT12): "fat12",
    int(pytsk3.TSK_FS_TYPE_FAT16): "fat16",
    int(pytsk3.TSK_FS_TYPE_FAT32): "fat32",
    int(pytsk3.TSK_FS_TYPE_EXFAT): "exfat",
}
_DETECT = {
    "ntfs": pytsk3.TSK_FS_TYPE_NTFS,
    "fat": pytsk3.TSK_FS_TYPE_FAT_DETECT,
    "exfat": pytsk3.TSK_FS_TYPE_EXFAT,
}
_TYPES = {
    int(pytsk3.TSK_FS_META_TYPE_REG): "file",
    int(pytsk3.TSK_FS_META_TYPE_DIR): "dir",
    int(pytsk3.TSK_FS_META_TYPE_LNK): "symlink",
}
_NAME_TYPES = {
    int(pytsk3.TSK_FS_NAME_TYPE_REG): "file",
    int(pytsk3.TSK_FS_NAME_TYPE_DIR): "dir",
    int(pytsk3.TSK_FS_NAME_TYPE_LNK): "symlink",
}
_VIRTUAL = {int(pytsk3.TSK_FS_META_TYPE_VIRT), int(pytsk3.TSK_FS_META_TYPE_VIRT_DIR)}


def listing(fs: Any, inode: int, failed: list[str]) -> Iterator[Any]:
    """Yield the `pytsk3.File` of each name in a directory; what TSK could not do is in `failed`."""
    try:
        directory = iter(fs.open_dir(inode=inode))
    except TSK_ERRORS as error:
        failed.append(line(error))
        return
    yield from guarded(directory, failed, TSK_ERRORS, again=100)


class TskWalk:
    """One walk over one file system; `run` does it.

    Raises: OSError if TSK does not open it.
    """

    def __init__(self, image: Readable, volume: Volume) -> None:
        self._image = image
        self._volume = volume
        self._tsk = TskImage(image)
        self._fs = pytsk3.FS_Info(self._tsk, offset=volume.offset, type=_DETECT[volume.kind])
        self.kind = _KINDS.get(int(self._fs.info.ftype), volume.kind)
        self._ntfs = self.kind == "ntfs"
        self._block = int(self._fs.info.block_size)
        self._orphans = int(self._fs.info.last_inum)
        self._heap = 0
        if self.kind == "exfat":
            sector = image.pread(512, volume.offset)
            self._heap = volume.offset + (int.from_bytes(sector[88:92], "little") << sector[108])

    def run(self, out: Recorder) -> None:
        """Record every name that TSK knows."""
        self.begin(out)
        root = self.root
        descent = Descent(out, root)
        self._root(out, root)
        stack = [Place(root, "", None, 0)]
        while stack:
            place = stack.pop()
            failed: list[str] = []
            inner = []
            for entry in listing(self._fs, place.inode, failed):
                found = entry.info.name
                raw, inum = bytes(found.name), int(found.meta_addr)
                if raw in (b".", b"..") or not raw:
                    continue
                if inum == self._orphans and raw == b"$OrphanFiles":
                    inner.append(Place(inum, "/$OrphanFiles", None, place.depth + 1))
                    continue
                if not self._record(out, place, entry, raw, inum):
                    continue
                live = bool(int(found.flags) & _NAME_LIVE) and place.inode != self._orphans
                entered = descent.enter(place, raw, inum, live=live)
                if entered:
                    inner.append(entered)
            self._tsk.check()
            for reason in failed:
                out.gap("directory", reason, path=place.path or "/", kind="damaged directory")
            # $OrphanFiles comes last: what has a place in the tree is recorded there.
            inner.sort(key=lambda one: one.inode != self._orphans)
            stack += reversed(inner) if place.inode != root else inner
        self.end(out)

    # -- `analysis.walk.paths.Tree` ----------------------------------------------------------------

    folds = True

    @property
    def root(self) -> int:
        """See `Tree.root`."""
        return int(self._fs.info.root_inum)

    def begin(self, out: Recorder) -> None:
        """See `Tree.begin`."""
        size = int(self._fs.info.block_count) * self._block
        out.truncated(self._image.size, self._volume.offset + size)
        if not self._ntfs:
            out.limit("file-system", "times are local times of the system that wrote them, given "
                      "as if they were UTC")  # fmt: skip

    def listed(self, inum: int, failed: list[str]) -> Iterator[tuple[bytes, int, Any]]:
        """See `Tree.listed`."""
        for entry in listing(self._fs, inum, failed):
            found = entry.info.name
            raw, number = bytes(found.name), int(found.meta_addr)
            named = int(found.flags) & _NAME_LIVE and number != self._orphans
            if named and raw and raw not in (b".", b".."):
                yield raw, number, entry
        self._tsk.check()

    def look(self, out: Recorder, place: Place, raw: bytes, inum: int, found: Any) -> bool:
        """See `Tree.look`."""
        entered = self._record(out, place, found, raw, inum)
        self._tsk.check()
        return entered

    def small(self, entry: Entry) -> bytes:
        """See `Tree.small`: resident data."""
        try:
            file = self._fs.open_meta(inode=entry.inode)
            for one in file:
                label = text(bytes(one.info.name))[0] if self._ntfs and one.info.name else None
                if label == entry.stream and (not self._ntfs or int(one.info.type) == _DATA):
                    size = int(one.info.size) if self._ntfs else entry.size
                    return bytes(file.read_random(0, size, one.info.type, one.info.id))
        except TSK_ERRORS as error:
            raise DamagedError(line(error)) from error
        raise DamagedError("its data attribute is not there")

    def end(self, out: Recorder) -> None:
        """See `Tree.end`."""
        if self._tsk.failed:
            offset, length = self._tsk.failed
            out.gap("image", "read error", offset=offset, length=length)

    # ----------------------------------------------------------------------------------------------

    def _root(self, out: Recorder, root: int) -> None:
        try:
            entry = self._fs.open_meta(inode=root)
        except TSK_ERRORS as error:
            out.gap("inode", f"root directory: {line(error)}", path="/")
            return
        self._add(out, ("/", None, ""), entry, entry.info.meta, root, "allocated", live=True)

    def _record(self, out: Recorder, place: Place, entry: Any, raw: bytes, inum: int) -> bool:
        """Record one name and its streams; return whether it is a directory to enter."""
        name, path, path_raw = below(place, raw)
        meta = entry.info.meta
        named = bool(int(entry.info.name.flags) & _NAME_LIVE)
        live = named and meta is not None and bool(int(meta.flags) & _META_LIVE)
        state = "allocated" if named else "deleted"
        if place.inode == self._orphans and meta is not None and int(meta.flags) & _META_LIVE:
            state, live = "orphan", True
        elif not named and meta is not None and int(meta.flags) & _META_LIVE:
            state, meta = "reallocated", None
        if meta is None or int(meta.type) in _VIRTUAL:
            if meta is not None:
                return False
            if named:
                out.gap("inode", f"inode {inum} could not be read", path=path, kind="damaged inode")
            kind = _NAME_TYPES.get(int(entry.info.name.type), "other")
            out.add(bare_name((path, path_raw, name), inum, state, kind))
            return False
        self._add(out, (path, path_raw, name), entry, meta, inum, state, live=live)
        return int(meta.type) == int(pytsk3.TSK_FS_META_TYPE_DIR)

    def _add(
        self,
        out: Recorder,
        names: tuple[str, bytes | None, str],
        entry: Any,
        meta: Any,
        inum: int,
        state: str,
        *,
        live: bool,
    ) -> None:
        kind = _TYPES.get(int(meta.type), "other")
        size = int(meta.size)
        failed: list[str] = []
        attributes: list[Any] = []
        try:
            attributes = list(entry)
        except TSK_ERRORS as error:
            failed.append(line(error))
        times = self._times(entry, meta)
        link = meta.link
        target = None if not link else text(bytes(link))[0].replace("\\x2f", "/")
        streams: list[tuple[str | None, Any]] = []
        elsewhere, encrypted = "", False
        for one in attributes:
            if self._ntfs and (number := int(one.info.type)) != _DATA:
                if number == _REPARSE:
                    elsewhere = _filtered(entry, one)
                elif number == _LOGGED and one.info.name == b"$EFS":
                    encrypted = True
                continue
            label = one.info.name if self._ntfs else None
            if label:
                streams.append((text(bytes(label))[0], one))
            elif kind == "file":
                streams.insert(0, (None, one))
        if not streams or streams[0][0] is not None:
            streams.insert(0, (None, None))
        for stream, one in streams:
            sha256, content = None, None
            sha256_state = "not-a-file" if kind != "file" and stream is None else "deleted"
            if one is not None and (stream is not None or not self._ntfs):
                size = int(one.info.size) if self._ntfs else size
            if live and sha256_state == "deleted":
                if encrypted and size:
                    sha256_state = "encrypted"
                elif stream is None and size and elsewhere:
                    content, sha256_state = broken(size, 0, elsewhere), ""
                elif one is None and size:
                    content = broken(size, 0, failed[0] if failed else "no data attribute")
                    sha256_state = ""
                else:
                    sha256_state, content, sha256 = self._content(entry, one, inum, size)
                if sha256_state == "encrypted":
                    out.gap("content", "encrypted by EFS", path=names[0], kind="encrypted")
            mtime, atime, ctime, btime = times
            out.add(
                bare_name(names, inum, state, kind)._replace(
                    stream=stream,
                    size=size,
                    links=int(meta.nlink),
                    allocated=live,
                    link_target=target,
                    mtime=mtime,
                    atime=atime,
                    ctime=ctime,
                    btime=btime,
                    sha256=sha256,
                    sha256_state=sha256_state,
                    content=content,
                )
            )

    def _content(
        self, entry: Any, one: Any, inum: int, size: int
    ) -> tuple[str, Content | None, str | None]:
        """Return (state, content, sha256) of one data attribute."""
        if not size or one is None:
            return "ok", None, EMPTY
        flags = int(one.info.flags)
        if flags & _ENCRYPTED:
            return "encrypted", None, None
        if flags & _RESIDENT and size <= _PIECE:
            try:
                data = entry.read_random(0, size, one.info.type, one.info.id)
            except TSK_ERRORS as error:
                return "", broken(size, 0, line(error)), None
            if len(data) == size:
                return "ok", None, hashlib.sha256(data).hexdigest()
            return "", broken(size, 0, "resident data is cut off"), None
        try:
            extents = self._extents(one)
        except TSK_ERRORS as error:
            return "", broken(size, 0, line(error)), None
        start = extents[0][2] if extents else 0
        if not self._ntfs:
            there = sum(length for _, length, _ in extents)
            if there < size:
                reason = f"the cluster chain ends after {there} of {size} bytes"
                return "", broken(size, start, reason), None
            return "", laid_out(size, self._valid(extents, inum), start), None
        if not extents:
            return "", Content(size, 0, []), None
        kind, number = one.info.type, one.info.id
        units = extents if flags & _COMPRESSED else []

        def chunks() -> Iterator[bytes]:
            self._check_units(units, size)
            try:
                file = self._fs.open_meta(inode=inum)
                for at in range(0, size, _PIECE):
                    data = file.read_random(at, min(_PIECE, size - at), kind, number)
                    self._tsk.check()
                    if not data:
                        return
                    yield data
            except (RuntimeError, MemoryError) as error:
                raise OSError(line(error)) from error

        return "", Content(size, start, None, chunks), None

    def _extents(self, one: Any) -> list[Extent]:
        """Return the runs of an attribute that have blocks."""
        block, base = self._block, self._volume.offset
        return [
            (int(run.offset) * block, int(run.len) * block, base + int(run.addr) * block)
            for run in one
            if not int(run.flags) & _HOLE_RUN
        ]

    def _check_units(self, extents: list[Extent], size: int) -> None:
        """Hold that every compressed unit is sound. Raises: DamagedError, OSError."""
        whole = _UNIT * self._block
        pieces = (
            (start, max(start - logical, 0), min(start + whole - logical, length), physical)
            for logical, length, physical in extents
            for start in range(logical // whole * whole, min(logical + length, size), whole)
        )
        for start, unit in groupby(pieces, itemgetter(0)):
            parts = [(end - skip, physical + skip) for _, skip, end, physical in unit]
            if sum(length for length, _ in parts) < whole:  # a full one is stored as it is
                raw = b"".join(self._image.pread(length, at) for length, at in parts)
                lznt1.check(raw, min(whole, size - start))

    def _valid(self, extents: list[Extent], inum: int) -> list[Extent]:
        """Cut exFAT runs at the valid data length (exFAT specification §7.6.5)."""
        if not self._heap:
            return extents
        # TSK numbers exFAT inodes by directory entry of 32 bytes, from 3 at the cluster heap.
        try:
            raw = self._image.pread(64, self._heap + (inum - 3) * 32)
        except OSError:
            return extents
        if len(raw) < 64 or raw[0] & 0x7F != 0x05 or raw[32] & 0x7F != 0x40:
            return extents
        valid = int.from_bytes(raw[40:48], "little")
        cut = []
        for logical, length, physical in extents:
            if logical < valid:
                cut.append((logical, min(length, valid - logical), physical))
            else:
                cut.append((logical, length, HOLE))
        return cut

    def _times(self, entry: Any, meta: Any) -> _Times:
        """Return (mtime, atime, ctime, btime) in ns."""
        if not self._ntfs:
            return (
                _unzoned(int(meta.mtime), int(meta.mtime_nano)),
                _unzoned(int(meta.atime), int(meta.atime_nano)),
                None,
                _unzoned(int(meta.crtime), int(meta.crtime_nano)),
            )
        seconds = (int(meta.mtime), int(meta.atime), int(meta.ctime), int(meta.crtime))
        if 0 in seconds:
            # TSK says 0 for every time before 1970 and after 2106; the attribute itself knows.
            try:
                raw = entry.read_random(0, 32, _SI, 0)
            except TSK_ERRORS:
                raw = b""
            if len(raw) == 32:
                birth, change, meta_change, access = (
                    int.from_bytes(raw[n : n + 8], "little") for n in (0, 8, 16, 24)
                )
                return (_filetime(change), _filetime(access), _filetime(meta_change),
                        _filetime(birth))  # fmt: skip
        return (
            _both(meta.mtime, meta.mtime_nano),
            _both(meta.atime, meta.atime_nano),
            _both(meta.ctime, meta.ctime_nano),
            _both(meta.crtime, meta.crtime_nano),
        )


def _filtered(entry: Any, reparse: Any) -> str:
    """Return why the content of a file with a reparse point is not in it; "" if it is."""
    try:
        tag = int.from_bytes(entry.read_random(0, 4, reparse.info.type, reparse.info.id), "little")
        facts = entry.read_random(0, 36, _SI, 0)
    except TSK_ERRORS as error:
        return f"reparse point: {line(error)}"
    if tag in _PLAIN_TAGS:
        return ""
    if tag & 0xFFFF0FFF == _CLOUD:
        here = len(facts) == 36 and not int.from_bytes(facts[32:36], "little") & _NOT_HERE
        return "" if here else f"content is kept in a cloud (reparse tag {tag:#x})"
    return f"content is kept by {_FILTERS.get(tag, 'a filter driver')} (reparse tag {tag:#x})"


def _filetime(value: int) -> int | None:
    return (value - _EPOCH_1601) * 100 if value else None


def _both(seconds: int, nano: int) -> int | None:
    return int(seconds) * 1_000_000_000 + int(nano) if seconds else None


def _unzoned(seconds: int, nano: int) -> int | None:
    """Undo mktime(3), by which TSK reads a FAT time in this process's time zone."""
    if not seconds:
        return None
    return calendar.timegm(time.localtime(seconds)) * 1_000_000_000 + nano
