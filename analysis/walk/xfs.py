# SPDX-License-Identifier: Apache-2.0
"""XFS (v4 and v5), read here: TSK has none, and libfsxfs refuses names that are not UTF-8.

Invariants:

* Names are the bytes on disk; a file whose name is invalid UTF-8 is a row like any other.
* Times, sizes and content are those that Linux (fs/xfs) reports once its log is clean; the log is
  not replayed here. Bigtime and 64-bit extent counters are understood.
* A block map that leaves its device gives no content; content on a realtime device is a gap.

Source: XFS Algorithms & Data Structures, 3rd edition; Linux fs/xfs/libxfs/xfs_format.h.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from analysis.walk.content import (
    EMPTY,
    HOLE,
    MOST_EXTENTS,
    Content,
    DamagedError,
    Extent,
    broken,
    in_order,
    laid_out,
)
from analysis.walk.rows import Entry, bare_name, file_type, line
from analysis.walk.tree import ORPHANS, Descent, Place, below, guarded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from analysis.image import Readable, Volume
    from analysis.walk.rows import Recorder

KIND = "xfs"

_CORE = struct.Struct(">2sHBBHIIIHHQQQQQQIIHBBIHHII")  # di_magic … di_next_unlinked, 100 bytes
_LEAF_OFFSET = 1 << 35  # XFS_DIR2_LEAF_OFFSET: directory data lies below it
_LOCAL, _EXTENT_LIST, _BTREE = 1, 2, 3
_BIGTIME, _NREXT64 = 8, 16  # di_flags2
_REALTIME = 1  # di_flags
_MOST_DIR_BYTES = 4 << 30
_CACHE_BYTES = 64 << 10
_CACHE = 256


class Inode(NamedTuple):
    """One decoded inode; times in ns since 1970 UTC."""

    mode: int
    uid: int
    gid: int
    links: int
    size: int
    mtime: int
    atime: int
    ctime: int
    btime: int | None
    format: int
    extents: int
    realtime: bool
    fork: bytes
    next_unlinked: int
    at: int


_LOG_CHUNK = 8 << 20
_LOG_MAGIC = b"\xfe\xed\xba\xbe"
_LOG_UNMOUNT = 0x20


class Super:
    """Superblock of the XFS file system at `offset` in `image`.

    Raises: DamagedError if it describes no file system; OSError if it cannot be read.
    """

    def __init__(self, image: Readable, offset: int) -> None:
        raw = image.pread(512, offset)
        if len(raw) < 512 or raw[:4] != b"XFSB":
            raise DamagedError("no superblock")
        self.image, self.offset = image, offset
        self.block: int
        self.blocks: int
        self.block, self.blocks = struct.unpack_from(">IQ", raw, 4)
        self.uuid = raw[32:48]
        self.log_start, self.root = struct.unpack_from(">QQ", raw, 48)
        self.log_blocks = struct.unpack_from(">I", raw, 96)[0]
        self.ag_blocks, self.ags = struct.unpack_from(">II", raw, 84)
        version, self.sector, self.inode_size = struct.unpack_from(">HHH", raw, 100)
        self.inode_log, self.inop_log, self.ag_log = raw[122], raw[123], raw[124]
        self.inodes = struct.unpack_from(">Q", raw, 128)[0]
        free = struct.unpack_from(">Q", raw, 136)[0]
        self.used = max(self.inodes - free, 0)
        self.dir_block = self.block << raw[192]
        self.v5 = version & 0xF == 5
        features2, self.incompat = (
            struct.unpack_from(">I", raw, 200)[0],
            struct.unpack_from(">I", raw, 216)[0],
        )
        self.ftype = bool(self.incompat & 1) if self.v5 else bool(features2 & 0x200)
        if (
            self.block not in (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
            or self.inode_size not in (256, 512, 1024, 2048)
            or 1 << self.inode_log != self.inode_size
            or self.inode_size << self.inop_log != self.block
            or not 0 < self.ag_blocks <= 1 << min(self.ag_log, 31)
            or not self.ags
            or self.dir_block > 65536
            or self.blocks > self.ag_blocks * self.ags
        ):
            raise DamagedError("superblock fields contradict each other")
        self._cache: dict[int, bytes] = {}

    def byte(self, block: int) -> int:
        """Return the image offset of a file system block number (AG in its high bits).

        Raises: DamagedError if it lies outside the file system.
        """
        ag, inner = block >> self.ag_log, block & ((1 << self.ag_log) - 1)
        flat = ag * self.ag_blocks + inner
        if inner >= self.ag_blocks or flat >= self.blocks:
            raise DamagedError(f"block {block} lies outside the file system")
        where: int = self.offset + flat * self.block
        return where

    def log_is_clean(self) -> bool:
        """Tell whether the newest record of the log is an unmount record.

        Raises: DamagedError if the log is on another device or holds no record; OSError.
        Source: xlog_find_tail in fs/xfs/xfs_log_recover.c, struct xlog_rec_header.
        """
        if not self.log_start:
            raise DamagedError("it is on another device")
        start, size = self.byte(self.log_start), self.log_blocks * self.block
        newest, unmount = -1, False
        for at in range(0, size, _LOG_CHUNK):
            # One record header and the operation after it may lie across the end of a chunk.
            raw = self.image.pread(min(_LOG_CHUNK + 1024, size - at), start + at)
            found = raw.find(_LOG_MAGIC)
            while 0 <= found < _LOG_CHUNK:
                if found % 512 == 0 and raw[found + 304 : found + 320] == self.uuid:
                    lsn, ops = struct.unpack_from(">Q16xI", raw, found + 16)
                    if lsn > newest and found + 522 <= len(raw):
                        newest = lsn
                        unmount = ops == 1 and bool(raw[found + 521] & _LOG_UNMOUNT)
                found = raw.find(_LOG_MAGIC, found + 1)
        if newest < 0:
            raise DamagedError("no record was found in it")
        return unmount

    def inode(self, number: int) -> Inode:
        """Return an inode.

        Raises: DamagedError if there is none; OSError.
        """
        inner = number & ((1 << self.inop_log) - 1)
        at = self.byte(number >> self.inop_log) + (inner << self.inode_log)
        part, slot = divmod(at - self.offset, _CACHE_BYTES)
        raw = self._cache.get(part)
        if raw is None:
            if len(self._cache) >= _CACHE:
                self._cache.clear()
            raw = self.image.pread(_CACHE_BYTES, self.offset + part * _CACHE_BYTES)
            self._cache[part] = raw
        raw = raw[slot : slot + self.inode_size]
        if len(raw) < self.inode_size:
            raise DamagedError(f"inode {number} lies beyond the end of the image")
        (
            magic, mode, version, form, old_links, uid, gid, links, _, _, big_extents, atime, mtime,
            ctime, size, _, _, extents, _, fork_off, _, _, _, flags, _, unlinked,
        ) = _CORE.unpack_from(raw)  # fmt: skip
        if magic != b"IN" or not 1 <= version <= 3:
            raise DamagedError(f"inode {number} has no magic number")
        if not mode:
            raise DamagedError(f"inode {number} is free")
        flags2, birth, core = 0, None, 100
        if version == 3:
            flags2 = struct.unpack_from(">Q", raw, 120)[0]
            birth, core = struct.unpack_from(">Q", raw, 144)[0], 176
            if struct.unpack_from(">Q", raw, 152)[0] != number:
                raise DamagedError(f"inode {number} says that it is another")
        big = bool(flags2 & _BIGTIME)
        if version == 1:
            links = old_links
        if flags2 & _NREXT64:
            extents = big_extents
        end = core + fork_off * 8 if fork_off else self.inode_size
        return Inode(
            mode, uid, gid, links, size, _time(mtime, big), _time(atime, big), _time(ctime, big),
            None if birth is None else _time(birth, big), form, extents,
            bool(flags & _REALTIME), raw[core:end], unlinked, at,
        )  # fmt: skip

    def extents(self, inode: Inode) -> list[Extent]:
        """Return the data fork's extents, ascending; unwritten ones and holes are left out.

        Raises: DamagedError, OSError.
        """
        if inode.format == _EXTENT_LIST:
            if inode.extents * 16 > len(inode.fork):
                raise DamagedError("more extents than the inode has room for")
            found = self._records(inode.fork, 0, inode.extents)
        elif inode.format == _BTREE:
            found = self._btree(inode)
        else:
            raise DamagedError(f"data fork of format {inode.format}")
        return [one for one in in_order(found) if one[2] != HOLE]

    def _records(self, raw: bytes, at: int, count: int) -> list[Extent]:
        found = []
        size = self.block
        for n in range(count):
            high, low = struct.unpack_from(">QQ", raw, at + 16 * n)
            length = low & 0x1FFFFF
            start = (high & 0x1FF) << 43 | low >> 21
            where = HOLE
            if not high >> 63:
                where = self.byte(start)
                if length:
                    self.byte(start + length - 1)
            found.append(((high >> 9 & (1 << 54) - 1) * size, length * size, where))
        return found

    def _btree(self, inode: Inode) -> list[Extent]:
        level, count = struct.unpack_from(">HH", inode.fork)
        most = (len(inode.fork) - 4) // 16
        if not 0 < level < 10 or count > most:
            raise DamagedError("root of the extent tree is damaged")
        stack = [
            (one, level - 1)
            for one in reversed(struct.unpack_from(f">{count}Q", inode.fork, 4 + most * 8))
        ]
        header, magic = (72, b"BMA3") if self.v5 else (24, b"BMAP")
        most = (self.block - header) // 16
        found: list[Extent] = []
        read = 0
        while stack:
            block, level = stack.pop()
            raw = self.image.pread(self.block, self.byte(block))
            read += 1
            if len(raw) < self.block or raw[:4] != magic:
                raise DamagedError("a node of the extent tree is damaged or missing")
            told, count = struct.unpack_from(">HH", raw, 4)
            if told != level or count > most or read > MOST_EXTENTS // 8:
                raise DamagedError("extent tree is damaged")
            if level:
                pointers = struct.unpack_from(f">{count}Q", raw, header + most * 8)
                stack += [(one, level - 1) for one in reversed(pointers)]
            else:
                found += self._records(raw, header, count)
            if len(found) > MOST_EXTENTS:
                raise DamagedError(f"more than {MOST_EXTENTS} extents")
        return found

    def names(self, inode: Inode, skipped: list[str]) -> Iterator[tuple[bytes, int]]:
        """Yield (name, inode number) of a directory, without "." and "..".

        A damaged block is told in `skipped`; the others are read. Raises: DamagedError, OSError.
        """
        if inode.format == _LOCAL:
            yield from self._short(inode.fork[: inode.size])
            return
        for logical, length, physical in self.extents(inode):
            if logical >= _LEAF_OFFSET:
                return
            if length % self.dir_block and self.dir_block > self.block:
                # A directory block may be scattered over extents: gather block by block.
                yield from self._scattered(inode, skipped)
                return
            if logical + length > _MOST_DIR_BYTES:
                raise DamagedError("directory is larger than 4 GiB")
            for at in range(0, length, self.dir_block):
                raw = self.image.pread(self.dir_block, physical + at)
                yield from self._dir_block(raw, skipped)

    def _scattered(self, inode: Inode, skipped: list[str]) -> Iterator[tuple[bytes, int]]:
        blocks: dict[int, int] = {}
        for logical, length, physical in self.extents(inode):
            if logical < min(_LEAF_OFFSET, _MOST_DIR_BYTES):
                for at in range(0, length, self.block):
                    blocks[logical + at] = physical + at
        for logical in sorted({at - at % self.dir_block for at in blocks}):
            parts = range(logical, logical + self.dir_block, self.block)
            raw = b"".join(self.image.pread(self.block, blocks[at]) for at in parts if at in blocks)
            yield from self._dir_block(raw, skipped)

    def _short(self, raw: bytes) -> Iterator[tuple[bytes, int]]:
        if len(raw) < 6:
            raise DamagedError("short directory is cut off")
        wide = 8 if raw[1] else 4
        count, at = raw[1] or raw[0], 2 + wide
        for _ in range(max(count, raw[0])):
            end = at + 3 + raw[at] if at < len(raw) else 0
            stop = end + self.ftype + wide
            if not end or stop > len(raw):
                raise DamagedError("short directory is cut off")
            yield raw[at + 3 : end], int.from_bytes(raw[end + self.ftype : stop], "big")
            at = stop

    def _dir_block(self, raw: bytes, skipped: list[str]) -> Iterator[tuple[bytes, int]]:
        magic = raw[:4]
        if len(raw) < self.dir_block or magic not in (b"XD2B", b"XD2D", b"XDB3", b"XDD3"):
            skipped.append("a directory block is damaged or missing")
            return
        at, end = (64 if magic[3:] == b"3" else 16), len(raw)
        if magic in (b"XD2B", b"XDB3"):
            end -= 8 + 8 * int.from_bytes(raw[-8:-4], "big")
            if end < at:
                skipped.append("a directory block is damaged or missing")
        while at + 12 <= end:
            if raw[at : at + 2] == b"\xff\xff":
                step = int.from_bytes(raw[at + 2 : at + 4], "big")
            else:
                length = raw[at + 8]
                step = (8 + 1 + length + self.ftype + 2 + 7) & ~7
                name = raw[at + 9 : at + 9 + length]
                if not length or at + step > end:
                    skipped.append("a directory entry is damaged")
                    return
                if name not in (b".", b".."):
                    yield name, int.from_bytes(raw[at : at + 8], "big")
            if step < 8 or step % 8:
                skipped.append("a directory block is damaged")
                return
            at += step

    def target(self, inode: Inode) -> bytes | None:
        """Return the target of a symbolic link, or None if it cannot be read."""
        if not 0 < inode.size <= 1024:  # XFS_SYMLINK_MAXLEN
            return None
        if inode.format == _LOCAL:
            return inode.fork[: inode.size]
        found = b""
        try:
            for _, length, physical in self.extents(inode):
                # One header for each extent, not for each block (xfs_symlink_remote.c).
                raw = self.image.pread(min(length, 4096), physical)
                if self.v5 and raw[:4] != b"XSLM":
                    return None
                found += raw[56:] if self.v5 else raw
        except (DamagedError, OSError):
            return None
        return found[: inode.size] if len(found) >= inode.size else None

    def unlinked(self, skipped: list[str]) -> Iterator[int]:
        """Yield inodes that are in use without a name (the AGI's unlinked lists)."""
        for ag in range(min(self.ags, self.image.size // (self.ag_blocks * self.block) + 1)):
            start = self.offset + ag * self.ag_blocks * self.block
            raw = self.image.pread(self.sector, start + 2 * self.sector)
            if raw[:4] != b"XAGI" or len(raw) < 296:
                skipped.append(f"inode header of allocation group {ag} is damaged or missing")
                continue
            known: set[int] = set()
            for number in struct.unpack_from(">64I", raw, 40):
                while number != 0xFFFFFFFF and number not in known:
                    known.add(number)
                    full = ag << self.ag_log + self.inop_log | number
                    yield full
                    try:
                        number = self.inode(full).next_unlinked
                    except DamagedError:
                        break


def _time(value: int, big: bool) -> int:
    if big:
        return value - (1 << 31) * 1_000_000_000
    seconds = value >> 32
    return (seconds - (seconds >> 31 << 32)) * 1_000_000_000 + (value & 0xFFFFFFFF)


class XfsWalk:
    """One walk over one XFS file system; `run` does it.

    Raises: DamagedError, OSError if the superblock cannot be used.
    """

    def __init__(self, image: Readable, volume: Volume) -> None:
        self._image = image
        self._volume = volume
        self.super = Super(image, volume.offset)
        self.kind = KIND

    def run(self, out: Recorder) -> None:
        """Record every name, then the inodes in use that have none."""
        sb = self.super
        out.total = sb.used
        self._shape(out)
        self._log(out)
        root = self._record(out, Place(0, "", None, 0), b"", sb.root)
        descent = Descent(out, sb.root)
        stack = [(Place(sb.root, "", None, 0), root)] if root else []
        while stack:
            place, inode = stack.pop()
            inner: list[tuple[Place, Inode]] = []
            skipped: list[str] = []
            where = place.path or "/"
            failed: list[str] = []
            names = guarded(sb.names(inode, skipped), failed, (DamagedError, OSError))
            for raw, number in names:
                child = self._record(out, place, raw, number)
                if child is None or child.mode & 0xF000 != 0x4000:
                    continue
                entered = descent.enter(place, raw, number)
                if entered:
                    inner.append((entered, child))
            for reason in failed + skipped:
                out.gap("directory", reason, path=where, kind=reason)
            stack += reversed(inner)
        self._unlinked(out)

    # -- `analysis.walk.paths.Tree` ----------------------------------------------------------------

    folds = False

    @property
    def root(self) -> int:
        """See `Tree.root`."""
        number: int = self.super.root
        return number

    def begin(self, out: Recorder) -> None:
        """See `Tree.begin`. The log is not read to its end here, which may take 2 GiB."""
        self._shape(out)
        out.limit("file-system", "log neither judged nor replayed: the last seconds of writes may "
                  "be missing")  # fmt: skip

    def listed(self, inum: int, failed: list[str]) -> Iterator[tuple[bytes, int, None]]:
        """See `Tree.listed`."""
        inode = self.super.inode(inum)
        names = guarded(self.super.names(inode, failed), failed, (DamagedError, OSError))
        for raw, number in names:
            yield raw, number, None

    def look(self, out: Recorder, place: Place, raw: bytes, inum: int, _found: None) -> bool:
        """See `Tree.look`."""
        inode = self._record(out, place, raw, inum)
        return inode is not None and inode.mode & 0xF000 == 0x4000

    def small(self, entry: Entry) -> bytes:
        """See `Tree.small`."""
        raise DamagedError(f"XFS keeps no content in inode {entry.inode}")

    def end(self, out: Recorder) -> None:
        """See `Tree.end`."""

    # ----------------------------------------------------------------------------------------------

    def _shape(self, out: Recorder) -> None:
        sb = self.super
        out.truncated(self._image.size, self._volume.offset + sb.blocks * sb.block)
        if sb.incompat & ~0x2FF:
            out.gap("file-system", f"unknown incompatible features {sb.incompat:#x}")

    def _log(self, out: Recorder) -> None:
        """Say what is not seen because the log is not replayed, or cannot be judged."""
        try:
            clean = self.super.log_is_clean()
        except (DamagedError, OSError) as error:
            out.gap("file-system", f"the log could not be read: {line(error)}")
        else:
            if not clean:
                out.gap("file-system", "log not replayed: not unmounted cleanly, so the last "
                        "seconds of writes may be missing")  # fmt: skip
        out.limit("file-system", "freed inodes are not searched here")

    def _unlinked(self, out: Recorder) -> None:
        skipped: list[str] = []
        for number in guarded(self.super.unlinked(skipped), skipped, (DamagedError, OSError)):
            self._record(out, Place(0, ORPHANS, None, 1), b"OrphanFile-%d" % number, number,
                         state="orphan")  # fmt: skip
        for reason in skipped:
            out.gap("inode", reason, kind="unlinked inodes")

    def _record(
        self, out: Recorder, place: Place, raw: bytes, number: int, *, state: str = "allocated"
    ) -> Inode | None:
        name, path, path_raw = below(place, raw)
        try:
            inode = self.super.inode(number)
        except (DamagedError, OSError) as error:
            out.gap("inode", line(error), path=path, kind="damaged inode")
            out.add(bare_name((path, path_raw, name), number, state))
            return None
        kind = file_type(inode.mode)
        sha256, sha256_state, content, target = None, "not-a-file", None, None
        if kind == "file":
            sha256_state = ""
            if not inode.size:
                sha256, sha256_state = EMPTY, "ok"
            else:
                content = self._content(inode)
        elif kind == "symlink":
            link = self.super.target(inode)
            if link is None:
                out.gap("content", "target of the link could not be read", path=path,
                        kind="link target")  # fmt: skip
            else:
                target = link.decode("utf-8", "backslashreplace").replace("\0", "\\x00")
        out.add(
            Entry(
                path, path_raw, name, None, number, kind, inode.size, inode.mode, inode.uid,
                inode.gid, inode.links, True, state, target, inode.mtime, inode.atime, inode.ctime,
                inode.btime, sha256, sha256_state, content,
            )
        )  # fmt: skip
        return inode

    def _content(self, inode: Inode) -> Content:
        if inode.realtime:
            return broken(inode.size, inode.at, "content is on the realtime device")
        try:
            extents = self.super.extents(inode)
        except (DamagedError, OSError) as error:
            return broken(inode.size, inode.at, line(error))
        return laid_out(inode.size, extents, inode.at)
