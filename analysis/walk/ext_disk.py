# SPDX-License-Identifier: Apache-2.0
"""The on-disk form of ext2, ext3 and ext4: superblock, groups, inodes, block maps.

Invariants:

* What is returned is what Linux (fs/ext4) would make of the same bytes; what Linux would refuse
  raises `DamagedError`.
* Work per inode is bounded, whatever its block map claims.

Source: Linux fs/ext4/ext4.h, extents.c, indirect.c; Documentation/filesystems/ext4.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

from analysis.image import ext_backups
from analysis.walk.content import HOLE, MOST_EXTENTS, DamagedError, Extent, in_order
from analysis.walk.crc import crc16, crc32c
from analysis.walk.rows import line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from analysis.image import Readable

# i_mode … i_links_count, i_flags, i_block, i_size_high, i_uid_high, i_gid_high
_INODE = struct.Struct("<HHIiiiIHH4xI4x60s8xI8xHH")
_EXTRA = struct.Struct("<H2xIIIiI")  # i_extra_isize … i_crtime_extra
_NODE = struct.Struct("<HHHH4x")
_ONE = struct.Struct("<HHHH4xIHHI")  # a header and one leaf
_LEAF = struct.Struct("<IHHI")
_NAME = struct.Struct("<IHBB")  # inode, rec_len, name_len, file_type
_INDEX = struct.Struct("<IIHH")

EXTENTS, INLINE_DATA, ENCRYPT, EA_INODE = 0x80000, 0x10000000, 0x800, 0x200000
_INDEXED = 0x1000
"""i_flags."""

REGULAR, DIRECTORY, LINK = 0x8000, 0x4000, 0xA000
"""Types in i_mode."""

_UNWRITTEN = 0x8000  # ee_len above it: initialised length is zero
_CACHE = 256
_CACHE_BYTES = 64 << 10
_SECOND = 1_000_000_000


class Inode(NamedTuple):
    """One decoded inode. Times in ns since 1970 UTC; `btime` None where the inode has no room."""

    mode: int
    uid: int
    gid: int
    links: int
    size: int
    mtime: int
    atime: int
    ctime: int
    btime: int | None
    flags: int
    blocks: bytes
    at: int
    used: int


class Super:
    """Superblock and group descriptors of the ext file system at `offset` in `image`.

    Where the primary ones are damaged, backups are used.

    Attributes:
        restored: sentences that say which backups were used, and what that means.

    Raises: DamagedError if they describe no file system; OSError if they cannot be read.
    """

    def __init__(self, image: Readable, offset: int, length: int) -> None:
        self.image, self.offset = image, offset
        self.restored: list[str] = []
        self.is_backup = False
        try:
            self._decode(image.pread(1024, offset + 1024))
        except (DamagedError, OSError) as error:
            if not self._restore(length, line(error)):
                raise
        self._descriptors: dict[int, list[tuple[bytes, bool]]] = {}
        self._tables: OrderedDict[int, bytes] = OrderedDict()
        self._groups: dict[int, tuple[int, bytes]] = {}

    def _restore(self, length: int, reason: str) -> bool:
        """Use the first sound backup of the superblock, if there is one."""
        for group, at in ext_backups(self.image, self.offset, length):
            try:
                self._decode(self.image.pread(1024, at))
            except (DamagedError, OSError):
                continue
            self.is_backup = True
            self.restored.append(
                f"the superblock is not usable ({reason}): its backup in group {group}, at byte "
                f"{at}, was used; whether the journal was replayed is not known"
            )
            return True
        return False

    def _decode(self, raw: bytes) -> None:
        if len(raw) < 1024 or raw[56:58] != b"\x53\xef":
            raise DamagedError("no superblock")
        u32 = struct.Struct("<I").unpack_from
        self.inodes, free = u32(raw, 0)[0], u32(raw, 16)[0]
        self.compat, self.incompat, self.ro_compat = struct.unpack_from("<III", raw, 92)
        wide = bool(self.incompat & 0x80)
        self.blocks = u32(raw, 4)[0] + (u32(raw, 0x150)[0] << 32 if wide else 0)
        self.first_block, log = u32(raw, 20)[0], u32(raw, 24)[0]
        self.per_group, self.inodes_per_group = u32(raw, 32)[0], u32(raw, 40)[0]
        revision = u32(raw, 76)[0]
        self.inode_size = struct.unpack_from("<H", raw, 88)[0] if revision else 128
        self.desc_size = struct.unpack_from("<H", raw, 254)[0] if wide else 32
        self.first_inode = u32(raw, 84)[0] if revision else 11
        self.used = max(self.inodes - free, 0)
        if (
            log > 6
            or not self.per_group
            or not self.inodes_per_group
            or self.inode_size not in (128, 256, 512, 1024, 2048, 4096)
            or not 32 <= self.desc_size <= 1024
            or self.blocks <= self.first_block
        ):
            raise DamagedError("superblock fields contradict each other")
        self.block = 1024 << log
        self.groups = -(-(self.blocks - self.first_block) // self.per_group)
        self._backups = struct.unpack_from("<II", raw, 0x24C)
        self._first_meta = u32(raw, 0x104)[0]
        self._uuid = raw[104:120]
        # s_checksum_seed, or what the kernel would make of the UUID.
        self._seed = u32(raw, 0x270)[0] if self.incompat & 0x2000 else crc32c(self._uuid)

    @property
    def kind(self) -> str:
        """The driver that Linux would name: ext4, ext3 or ext2."""
        if self.incompat & ~0x16 or self.ro_compat & ~0x7:
            return "ext4"
        return "ext3" if self.compat & 0x4 else "ext2"

    def descriptor(self, group: int) -> tuple[int, int, int, int]:
        """Return (inode bitmap block, inode table block, flags, unused inodes) of a group."""
        chunk, slot = divmod(group, self.block // self.desc_size)
        chosen = self._descriptors.get(chunk)
        if chosen is None:
            chosen = self._descriptors[chunk] = self._load(chunk)
        if slot >= len(chosen):
            raise DamagedError(f"descriptor of group {group} lies beyond the end of the image")
        raw, is_backup = chosen[slot]
        bitmap, table = self._places(raw)
        flags, unused = struct.unpack_from("<H", raw, 18)[0], struct.unpack_from("<H", raw, 28)[0]
        if self.desc_size >= 64:
            unused += struct.unpack_from("<H", raw, 50)[0] << 16
        # Without gdt_csum or metadata_csum these fields mean nothing; in a backup they are those
        # of the day on which mke2fs made it.
        if is_backup or not self.ro_compat & 0x410:
            flags = unused = 0
        return bitmap, table, flags, unused

    def _places(self, raw: bytes) -> tuple[int, int]:
        bitmap, table = struct.unpack_from("<4xII", raw, 0)
        if self.desc_size >= 64:
            high_bitmap, high_table = struct.unpack_from("<II", raw, 36)
            bitmap, table = bitmap + (high_bitmap << 32), table + (high_table << 32)
        return bitmap, table

    def _load(self, chunk: int) -> list[tuple[bytes, bool]]:
        """Return the descriptors in one block of them, each with whether it is from a backup."""
        each, size = self.block // self.desc_size, self.desc_size
        first = chunk * each
        primary, *copies = self._descriptor_blocks(chunk)
        raw = self._read(primary * self.block, self.block)
        chosen = [(raw[at : at + size], False) for at in range(0, len(raw) - size + 1, size)]
        wanted = range(first, min(first + each, self.groups))
        bad = [g for g in wanted if not self._is_sound(g, chosen[g - first : g - first + 1])]
        if not bad:
            return chosen
        chosen += [(bytes(size), False)] * (each - len(chosen))
        for block in copies:
            if not bad:
                break
            try:
                raw = self._read(block * self.block, self.block)
            except OSError:
                continue
            found = {g: (raw[(g - first) * size :][:size], True) for g in bad}
            good = [g for g in bad if self._is_sound(g, [found[g]])]
            if good:
                self.restored.append(
                    f"descriptors of {len(good)} groups from {good[0]} on are damaged: their "
                    f"backup in block {block} was used; inodes that were never used may be rows"
                )
            for g in good:
                chosen[g - first] = found[g]
            bad = [g for g in bad if g not in good]
        return chosen

    def _descriptor_blocks(self, chunk: int) -> list[int]:
        """Return where a block of descriptors is, and where its backups are."""
        # fs/ext4/super.c descriptor_loc: the superblock is in block 1 only if blocks are 1 KiB
        if self.incompat & 0x10 and chunk >= self._first_meta:  # meta_bg
            each = self.block // self.desc_size
            found = []
            for group in (chunk * each, chunk * each + 1, (chunk + 1) * each - 1):
                where = self.first_block + group * self.per_group + self._has_super(group)
                found.append(where + (self.block == 1024 and not group and not self.first_block))
            return found
        copies = [g for g in range(1, min(self.groups, 1000)) if self._has_super(g)]
        return [
            (self.block == 1024) + 1 + chunk,
            *(self.first_block + g * self.per_group + 1 + chunk for g in copies[:16]),
        ]

    def _is_sound(self, group: int, found: list[tuple[bytes, bool]]) -> bool:
        """Say whether a descriptor names places in the file system and has its checksum."""
        if not found or len(found[0][0]) < self.desc_size:
            return False
        raw = found[0][0]
        bitmap, table = self._places(raw)
        if not (0 < bitmap < self.blocks and 0 < table < self.blocks):
            return False
        number, told = group.to_bytes(4, "little"), int.from_bytes(raw[30:32], "little")
        if self.ro_compat & 0x400:  # metadata_csum
            return crc32c(number + raw[:30] + b"\0\0" + raw[32:], self._seed) & 0xFFFF == told
        if self.ro_compat & 0x10:  # gdt_csum
            return crc16(self._uuid + number + raw[:30] + raw[32:]) == told
        return True

    def _has_super(self, group: int) -> bool:
        if self.compat & 0x200:  # sparse_super2
            return group == 0 or group in self._backups
        if group <= 1 or not self.ro_compat & 1:
            return True
        for base in (3, 5, 7):
            power = base
            while power < group:
                power *= base
            if power == group:
                return True
        return False

    def _read(self, at: int, length: int) -> bytes:
        return self.image.pread(length, self.offset + at) if at >= 0 else b""

    def _open_group(self, group: int) -> tuple[int, bytes]:
        """Return where the inode table of a group begins in the image, and its inode bitmap."""
        block, table, flags, _ = self.descriptor(group)
        if not 0 < table < self.blocks:
            raise DamagedError(f"inode table of group {group} lies outside the file system")
        size = (self.inodes_per_group + 7) // 8
        bitmap = b"" if flags & 1 or block >= self.blocks else self._read(block * self.block, size)
        bitmap = bitmap.ljust(size, b"\0")
        if not flags & 1 and not bitmap.strip(b"\0") and (self.restored or not group):
            bitmap = self._guessed_bitmap(group, self.offset + table * self.block, size)
        opened = self._groups[group] = self.offset + table * self.block, bitmap
        return opened

    def _guessed_bitmap(self, group: int, table: int, size: int) -> bytes:
        """Return which inodes look used, where their bitmap is lost: linked, and not deleted."""
        found = bytearray(size)
        there = self.inodes * self.inode_size <= self.image.size
        for n in range(self.inodes_per_group if there else 0):
            if not n % (_CACHE_BYTES // self.inode_size):
                raw = self.image.pread(_CACHE_BYTES, table + n * self.inode_size)
            at = n * self.inode_size % _CACHE_BYTES
            dtime, links = raw[at + 20 : at + 24], raw[at + 26 : at + 28]
            if links.strip(b"\0") and not dtime.strip(b"\0"):
                found[n >> 3] |= 1 << (n & 7)
        if any(found):
            self.restored.append(
                f"inode bitmap of group {group} is lost: linked inodes that were not deleted "
                "are taken as used"
            )
        return bytes(found)

    def inode(self, inum: int) -> Inode | None:
        """Return an inode, or None if it was never written.

        Raises: DamagedError, OSError.
        """
        if not 0 < inum <= self.inodes:
            raise DamagedError(f"inode {inum} does not exist")
        group, n = divmod(inum - 1, self.inodes_per_group)
        start, bitmap = self._groups.get(group) or self._open_group(group)
        part, slot = divmod(n * self.inode_size, _CACHE_BYTES)
        key = group << 32 | part
        raw = self._tables.get(key)
        if raw is None:
            raw = self.image.pread(_CACHE_BYTES, start + part * _CACHE_BYTES)
            self._tables[key] = raw
            if len(self._tables) > _CACHE:
                self._tables.popitem(last=False)
        if len(raw) < slot + self.inode_size:
            raise DamagedError(f"inode {inum} lies beyond the end of the image")
        (mode, uid, size, atime, ctime, mtime, dtime, gid, links, flags, blocks, high,
         uid_high, gid_high) = _INODE.unpack_from(raw, slot)  # fmt: skip
        if not mode and not links and not dtime:
            return None
        if high and (
            mode & 0xF000 == REGULAR or (mode & 0xF000 == DIRECTORY and self.incompat & 0x4000)
        ):
            size |= high << 32
        birth = None
        room = 0
        if self.inode_size > 128:
            room, ctime_x, mtime_x, atime_x, crtime, crtime_x = _EXTRA.unpack_from(raw, slot + 128)
        if room >= 24:
            # Two epoch bits extend the signed 32-bit seconds; the rest are nanoseconds.
            ctime = (ctime + ((ctime_x & 3) << 32)) * _SECOND + (ctime_x >> 2)
            mtime = (mtime + ((mtime_x & 3) << 32)) * _SECOND + (mtime_x >> 2)
            atime = (atime + ((atime_x & 3) << 32)) * _SECOND + (atime_x >> 2)
            birth = (crtime + ((crtime_x & 3) << 32)) * _SECOND + (crtime_x >> 2)
        else:
            ctime, mtime, atime = ctime * _SECOND, mtime * _SECOND, atime * _SECOND
        used = bitmap[n >> 3] >> (n & 7) & 1
        uid, gid, at = uid | uid_high << 16, gid | gid_high << 16, start + n * self.inode_size
        # Half the cost of Inode(...), and this runs once for every file of an image.
        return tuple.__new__(
            Inode,
            (mode, uid, gid, links, size, mtime, atime, ctime, birth, flags, blocks, at, used),
        )

    def extents(self, inode: Inode) -> list[Extent]:
        """Return where the content of an inode lies, ascending; holes are left out.

        Raises: DamagedError where Linux would answer EIO; OSError.
        """
        blocks, size = inode.blocks, self.block
        if inode.flags & EXTENTS:
            magic, count, most, depth = _NODE.unpack_from(blocks)
            if magic != 0xF30A or count > most or most > 4 or depth > 5:
                raise DamagedError("extent header is damaged")
            found = [one for one in self._leaves(blocks, depth, 4) if one[2] != HOLE]
        else:
            found = self._indirect(blocks, -(-inode.size // size))
        return in_order(found)

    def single(self, inode: Inode) -> int | None:
        """Return where an inode's content begins if it is one written extent: most files are."""
        magic, count, most, depth, logical, length, high, low = _ONE.unpack_from(inode.blocks)
        if magic != 0xF30A or count != 1 or depth or logical or not inode.flags & EXTENTS:
            return None
        start: int = high << 32 | low
        if (
            length > _UNWRITTEN
            or length * self.block < inode.size
            or most > 4
            or not 0 < start <= self.blocks - length
        ):
            return None
        where: int = self.offset + start * self.block
        return where

    def _leaves(self, node: bytes, depth: int, room: int) -> list[Extent]:
        """Return the extents below one node."""
        found: list[Extent] = []
        stack = [(node, depth, room)]
        read = 0
        while stack:
            node, depth, room = stack.pop()
            magic, count, most, level = _NODE.unpack_from(node)
            if magic != 0xF30A or level != depth or count > most or most > room:
                raise DamagedError("extent node is damaged")
            if depth:
                children = []
                for n in range(count):
                    _, low, high, _ = _INDEX.unpack_from(node, 12 + 12 * n)
                    children.append(high << 32 | low)
                read += count
                if read > MOST_EXTENTS // 64:
                    raise DamagedError("extent tree is larger than any sound one")
                stack += [
                    (self._block(one), depth - 1, (self.block - 12) // 12)
                    for one in reversed(children)
                ]
                continue
            for n in range(count):
                logical, length, high, low = _LEAF.unpack_from(node, 12 + 12 * n)
                start, at = high << 32 | low, self.offset
                unwritten = length > _UNWRITTEN
                length -= _UNWRITTEN if unwritten else 0
                if not length or not start or start + length > self.blocks:
                    raise DamagedError(f"extent at block {start} lies outside the file system")
                where = HOLE if unwritten else at + start * self.block
                found.append((logical * self.block, length * self.block, where))
            if len(found) > MOST_EXTENTS:
                raise DamagedError(f"more than {MOST_EXTENTS} extents")
        return found

    def _block(self, number: int) -> bytes:
        if not 0 < number < self.blocks:
            raise DamagedError(f"block {number} lies outside the file system")
        raw = self._read(number * self.block, self.block)
        if len(raw) < self.block:
            raise DamagedError(f"block {number} lies beyond the end of the image")
        return raw

    def _indirect(self, blocks: bytes, count: int) -> list[Extent]:
        """Follow an ext2 block map of `count` blocks."""
        found: list[Extent] = []
        size, each = self.block, self.block // 4
        pointers = struct.unpack("<15I", blocks)

        def put(logical: int, number: int) -> None:
            if number >= self.blocks:
                raise DamagedError(f"block {number} lies outside the file system")
            where = self.offset + number * size
            if found:
                last, length, start = found[-1]
                if last + length == logical * size and start + length == where:
                    found[-1] = last, length + size, start
                    return
            if len(found) >= MOST_EXTENTS:
                raise DamagedError(f"more than {MOST_EXTENTS} extents")
            found.append((logical * size, size, where))

        def follow(number: int, level: int, logical: int) -> None:
            if not number or logical >= count:
                return
            if not level:
                put(logical, number)
                return
            below_it = each ** (level - 1)
            for n, one in enumerate(struct.unpack(f"<{each}I", self._block(number))):
                if one:
                    follow(one, level - 1, logical + n * below_it)

        for n in range(12):
            follow(pointers[n], 0, n)
        start = 12
        for level in (1, 2, 3):
            follow(pointers[11 + level], level, start)
            start += each**level
        return found

    def inline(self, inode: Inode) -> bytes | None:
        """Return inline data: i_block, then the value of the attribute system.data.

        None if it is damaged. Raises: OSError.
        """
        if inode.size <= 60:
            return inode.blocks[: inode.size]
        raw = self.image.pread(self.inode_size, inode.at)
        at = 128 + int.from_bytes(raw[128:130], "little")
        if raw[at : at + 4] != b"\x00\x00\x02\xea":
            return None
        first = at = at + 4
        while at + 16 <= len(raw) and raw[at]:
            length, index, where = struct.unpack_from("<BBH", raw, at)
            size = int.from_bytes(raw[at + 8 : at + 12], "little")
            if index == 7 and raw[at + 16 : at + 16 + length] == b"data":
                whole = inode.blocks + raw[first + where : first + where + size]
                return whole[: inode.size] if len(whole) >= inode.size else None
            at += 16 + (length + 3 & ~3)
        return None

    def names(self, inode: Inode, skipped: list[str]) -> Iterator[tuple[bytes, int, bool]]:
        """Yield (name, inode number, whether it is live) of a directory, without "." and "..".

        Live names come first and are those that Linux lists. Then come removed ones that stand in
        the slack of entries, each once, unless the same name of the same inode is live. A damaged
        block is told in `skipped`. Raises: DamagedError, OSError.
        """
        live: set[tuple[bytes, int]] = set()
        dead: dict[tuple[bytes, int], None] = {}
        for block, indexed in self._dir_blocks(inode):
            for name, inum in self._entries(block, indexed, dead, skipped):
                if inode.used:
                    live.add((name, inum))
                    yield name, inum, True
                else:
                    dead[name, inum] = None
        for name, inum in dead:
            if (name, inum) not in live:
                yield name, inum, False

    def parent(self, inode: Inode) -> int:
        """Return the inode that ".." of a directory names, or 0 if it cannot be read."""
        try:
            if inode.flags & INLINE_DATA:
                return int.from_bytes(inode.blocks[:4], "little")
            raw = next(self._dir_blocks(inode), (b"", False))[0]
        except (DamagedError, OSError):
            return 0
        return int.from_bytes(raw[12:16], "little") if raw[20:22] == b".." else 0

    def _dir_blocks(self, inode: Inode) -> Iterator[tuple[bytes, bool]]:
        """Yield each block of a directory, and whether it may hold an index."""
        if inode.flags & INLINE_DATA:
            data = self.inline(inode)
            if data is None:
                raise DamagedError("inline directory is damaged")
            yield data[4:60], False
            yield data[60:], False
            return
        indexed = bool(inode.flags & _INDEXED)
        for logical, length, physical in self.extents(inode):
            for at in range(0, min(length, inode.size - logical), self.block):
                yield self.image.pread(self.block, physical + at), indexed

    def _entries(
        self,
        raw: bytes,
        indexed: bool,
        dead: dict[tuple[bytes, int], None],
        skipped: list[str],
    ) -> Iterator[tuple[bytes, int]]:
        at, end = 0, len(raw)
        if not end:
            return
        while at + 8 <= end:
            inum, step, length, kind = _NAME.unpack_from(raw, at)
            if step in (0, 0xFFFF) and self.block == 1 << 16:
                step = 1 << 16
            if not self.incompat & 2:
                length |= kind << 8
            used = 8 + length
            if step < 12 or step % 4 or at + step > end or used > step:
                skipped.append("a directory block is damaged")
                self._slack(raw, at + 4, end, dead)
                return
            name = raw[at + 8 : at + used]
            if inum and length:
                if name not in (b".", b".."):
                    yield name, inum
            elif length and name.strip(b"\0") and kind != 0xDE:
                dead[name, 0] = None
            # An index stands where slack would be: after "..", or in a block with no entry.
            if step > used + 8 and not (indexed and (name == b".." or not length)):
                self._slack(raw, at + (used + 3 & ~3), at + step, dead)
            at += step
        if at < end:
            skipped.append("a directory block is damaged")

    def _slack(self, raw: bytes, at: int, end: int, dead: dict[tuple[bytes, int], None]) -> None:
        """Add to `dead` what looks like an entry between `at` and `end`."""
        typed = self.incompat & 2
        while at + 12 <= end:
            inum, step, length, kind = _NAME.unpack_from(raw, at)
            name = raw[at + 8 : at + 8 + length]
            if (
                0 < inum <= self.inodes
                and length
                and at + 8 + length <= end
                and step >= 8 + length
                and step % 4 == 0
                and at + step <= len(raw)
                and (0 < kind < 8 if typed else kind == 0)
                and b"\0" not in name
                and b"/" not in name
            ):
                if name not in (b".", b".."):
                    dead[name, inum] = None
                at += 8 + length + 3 & ~3
            else:
                at += 4
