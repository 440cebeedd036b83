# SPDX-License-Identifier: Apache-2.0
"""From an image to its volumes: partition tables, and what each volume holds.

Invariants:

* Every byte of the image belongs to a returned `Volume`, to a partition table, or to a returned gap
  (kind "unallocated"): nothing is dropped in silence.
* A volume that cannot be opened here is returned with the reason; the reason becomes coverage.
* Bad evidence never raises. `evidence_store.errors.IntegrityError` of a reader does pass.

Magic numbers: each format's own specification as named in `_SIGNATURES`; GPT: UEFI 2.10 §5.3.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import pytsk3

if TYPE_CHECKING:
    from collections.abc import Iterator

SECTOR = 512
_SECTORS = SECTOR, 4096  # logical ones of the disk that the table was written on
_SMALLEST_GAP = 2 << 20  # alignment gaps below this hold no file system worth a row of their own

WALKABLE = frozenset({"ext", "xfs", "ntfs", "fat", "exfat"})
"""Values of `Volume.kind` that `analysis.walk` can read."""


@runtime_checkable
class Readable(Protocol):
    """Evidence as one seekable, read-only run of bytes."""

    size: int

    def pread(self, length: int, offset: int) -> bytes:
        """Return `length` bytes at `offset`; short only at the end of the image.

        Raises: OSError where a range cannot be read.
        """
        ...


@dataclass(frozen=True)
class Volume:
    """One partition, the whole image, or a gap between partitions.

    Attributes:
        index: position in the returned list, from 0.
        name: "p1" as Linux numbers partitions; "" for the whole image or a gap.
        offset, length: bytes in the image. `length` may pass the end of a truncated image.
        description: what the partition table says of it.
        kind: one of WALKABLE, or another name for what was recognised; "" if nothing was.
        reason: why it cannot be walked; "" if it can.
    """

    index: int
    name: str
    offset: int
    length: int
    description: str
    kind: str
    reason: str = ""


class TskImage(pytsk3.Img_Info):  # type: ignore[misc]  # pytsk3 has no types
    """A Readable as TSK wants it. Not for use by more than one thread.

    Attributes:
        failed: (offset, length) of the first read that failed, or None. TSK reports such a read
            as damage to the file system; this says where it came from.
    """

    def __init__(self, image: Readable, sector: int = SECTOR) -> None:
        self._image = image
        self.failed: tuple[int, int] | None = None
        self._error: Exception | None = None
        super().__init__(url="", type=pytsk3.TSK_IMG_TYPE_EXTERNAL, sector_size=sector)

    def read(self, offset: int, length: int) -> bytes:
        """Called by TSK."""
        try:
            return self._image.pread(length, offset)
        except OSError:
            self.failed = self.failed or (offset, length)
        except Exception as error:  # it would not survive TSK's callback; `check` raises it
            self._error = error
        return b""

    def check(self) -> None:
        """Raise what `image.pread` raised beside OSError, if it did."""
        if self._error is not None:
            raise self._error

    def get_size(self) -> int:
        """Called by TSK."""
        return self._image.size

    def close(self) -> None:
        """Called by TSK; the image belongs to the caller."""


# (offset, magic, kind, what it is). Order matters: containers before what they may imitate.
_SIGNATURES = (
    (0, b"LUKS\xba\xbe", "luks", "LUKS encrypted volume"),
    (3, b"-FVE-FS-", "bitlocker", "BitLocker encrypted volume"),
    *((n * SECTOR, b"LABELONE", "lvm", "LVM2 physical volume") for n in range(4)),
    (4096, b"\xfc\x4e\x2b\xa9", "mdraid", "Linux MD RAID member (1.2)"),
    (0, b"XFSB", "xfs", ""),
    (3, b"NTFS    ", "ntfs", ""),
    (3, b"EXFAT   ", "exfat", ""),
    (1080, b"\x53\xef", "ext", ""),
    (0, b"\xfc\x4e\x2b\xa9", "mdraid", "Linux MD RAID member (1.1)"),
    (65600, b"_BHRfS_M", "btrfs", "btrfs file system"),
    (4086, b"SWAPSPACE2", "swap", "Linux swap area"),
    (65526, b"SWAPSPACE2", "swap", "Linux swap area (64 KiB pages)"),
    (32769, b"CD001", "iso9660", "ISO 9660 file system"),
    (1024, b"\x10\x20\xf5\xf2", "f2fs", "F2FS file system"),
    (1024, b"H+\x00\x04", "hfs+", "HFS+ file system"),
    (1024, b"HX\x00\x05", "hfs+", "HFSX file system"),
    (1024, b"\xe2\xe1\xf5\xe0", "erofs", "EROFS file system"),
    (32, b"NXSB", "apfs", "APFS container"),
    (0, b"hsqs", "squashfs", "SquashFS file system"),
    (3, b"ReFS\x00", "refs", "ReFS file system"),
    (0, b"\x00\x00\x00\x00ReFS", "refs", "ReFS file system"),
)
_PROBE = 65600 + 8
_EXT_COPIES = (1, *sorted(base**n for base in (3, 5, 7) for n in range(1, 12) if base**n < 65536))


def identify(image: Readable, offset: int, length: int) -> tuple[str, str]:
    """Return (kind, reason) of what begins at `offset`; ("", reason) if nothing is recognised."""
    try:
        head = image.pread(min(_PROBE, length), offset)
    except OSError as error:
        return "", f"could not be read: {error}"
    for at, magic, kind, title in _SIGNATURES:
        if head[at : at + len(magic)] == magic:
            return kind, f"{title} is not supported" if title else ""
    if _is_fat(head):
        return "fat", ""
    if not head.strip(b"\0"):
        return "", "begins with zeros; no file system recognised"
    return "", "no known file system, container or encryption header recognised"


def ext_backups(image: Readable, offset: int, length: int) -> Iterator[tuple[int, int]]:
    """Yield (group, its first byte in the image) of each backup of an ext superblock.

    Looked for where mke2fs puts them by default, and believed if it says that it is of that group.

    Source: Linux fs/ext4/super.c ext4_bg_has_super; Documentation/filesystems/ext4 (super).
    """
    for log in range(7):
        block = 1024 << log
        first = 1 if block == 1024 else 0
        groups = -(-(length // block - first) // (8 * block))
        last = {groups - 1} if groups > 1 else set()  # sparse_super2
        for group in sorted({g for g in _EXT_COPIES if g < groups} | last):
            at = offset + (group * 8 * block + first) * block
            try:
                raw = image.pread(1024, at)
            except OSError:
                continue
            if (
                raw[56:58] == b"\x53\xef"
                and int.from_bytes(raw[24:28], "little") == log
                and int.from_bytes(raw[32:36], "little") == 8 * block
                and int.from_bytes(raw[90:92], "little") == group
            ):
                yield group, at


def _is_fat(head: bytes) -> bool:
    # Microsoft FAT specification 1.03: a boot sector without a plausible BPB is not FAT.
    if len(head) < SECTOR or head[510:512] != b"\x55\xaa":
        return False
    sector, cluster = int.from_bytes(head[11:13], "little"), head[13]
    reserved, copies, media = int.from_bytes(head[14:16], "little"), head[16], head[21]
    return (
        sector in (512, 1024, 2048, 4096)
        and cluster in (1, 2, 4, 8, 16, 32, 64, 128)
        and reserved > 0
        and copies in (1, 2)
        and (media == 0xF0 or media >= 0xF8)
    )


def _named(image: Readable, offset: int, length: int) -> tuple[str, str]:
    """As `identify`; an ext file system is also known by a backup of its superblock."""
    kind, reason = identify(image, offset, length)
    if not kind and next(ext_backups(image, offset, length), None):
        return "ext", ""
    return kind, reason


def volumes(image: Readable, notes: list[str] | None = None) -> list[Volume]:
    """Return the volumes of an image with a GPT, an MBR (logical partitions too), or neither.

    A file system that starts at byte 0 is returned as the volume "" even if there is a table too:
    which of the two an operating system used is not for us to guess. Volumes are in order of
    offset. To `notes` is added a sentence where a table is damaged, was read from its backup, or
    contradicts the image.
    """
    kind, reason = identify(image, 0, image.size)
    notes = [] if notes is None else notes
    parts = _partitions(image, notes)
    outside = [p for p in parts if p[0] >= image.size]
    if outside and (kind or len(outside) == len(parts)):
        # A boot sector's code read as a table gives such entries; a truncated image gives some.
        if kind not in WALKABLE:
            notes.append("partition table names only places outside the image")
        parts = []
    if not parts:
        kind, reason = _named(image, 0, image.size)
        whole = Volume(0, "", 0, image.size, "whole image", kind, reason)
        return [whole] if image.size else []

    found: list[tuple[str, int, int, str, str, str]] = []
    if kind in WALKABLE:
        notes.append(f"a partition table and a file system ({kind}) both begin at byte 0")
        found.append(("", 0, image.size, "whole image", kind, reason))
    done = 0
    for offset, length, name, description in sorted(parts):
        if offset - done >= _SMALLEST_GAP:
            found.append(_gap(image, done, offset))
        what = _named(image, offset, length) if offset < image.size else ("", "")
        if offset >= image.size:
            what = "", "lies beyond the end of the image"
        elif offset < done:
            notes.append(f"{name} overlaps the partition before it")
        if offset < image.size < offset + length:
            notes.append(f"{name} ends {offset + length - image.size} bytes after the image does")
        found.append((name, offset, length, description, *what))
        done = max(done, offset + length)
    if image.size - done >= _SMALLEST_GAP:
        found.append(_gap(image, done, image.size))
    return [Volume(n, *one) for n, one in enumerate(found)]


def _gap(image: Readable, start: int, end: int) -> tuple[str, int, int, str, str, str]:
    kind, _ = identify(image, start, end - start)
    hidden = f"; a signature of {kind} begins it" if kind else ""
    reason = f"in no partition; not searched for files{hidden}"
    return "", start, end - start, "unallocated", "unallocated", reason


_Part = tuple[int, int, str, str]
"""(offset, length, name, description) of an allocated partition."""


def _partitions(image: Readable, notes: list[str]) -> list[_Part]:
    try:
        head = image.pread(2 * _SECTORS[-1], 0)
    except OSError as error:
        notes.append(f"the first sectors could not be read: {error}")
        return []
    gpt, sector = _gpt_state(image, head, notes)
    if gpt == "none" and head[510:512] != b"\x55\xaa":
        return []
    view = _Blanked(image, sector) if gpt == "backup" else image
    try:
        if gpt != "none":
            return _entries(view, pytsk3.TSK_VS_TYPE_GPT, sector)
        return _mbr(image)
    except OSError as error:
        # A file system on the whole disk may end its boot sector as a partition table does.
        if gpt != "none" or identify(image, 0, image.size)[0] not in WALKABLE:
            notes.append(f"partition table not usable: {' '.join(str(error).split())[:200]}")
        return []


def _mbr(image: Readable) -> list[_Part]:
    """Read an MBR. It does not say how long its sectors are: what begins where it points does.

    Raises: OSError if TSK does not take it for one.
    """
    parts = _entries(image, pytsk3.TSK_VS_TYPE_DOS, SECTOR)
    if _recognised(image, parts):
        return parts
    for sector in _SECTORS[1:]:
        try:
            wider = _entries(image, pytsk3.TSK_VS_TYPE_DOS, sector)
        except OSError:
            continue
        if _recognised(image, wider):
            return wider
    return parts


def _recognised(image: Readable, parts: list[_Part]) -> bool:
    return any(identify(image, at, length)[0] for at, length, _, _ in parts if at < image.size)


def _entries(image: Readable, kind: object, sector: int) -> list[_Part]:
    """Return the allocated partitions of a table. Raises: OSError."""
    table = pytsk3.Volume_Info(TskImage(image, sector), kind)
    unit = int(table.info.block_size)
    found: list[_Part] = []
    logical = 5
    for part in table:
        if not int(part.flags) & int(pytsk3.TSK_VS_PART_FLAG_ALLOC):
            continue
        if kind == pytsk3.TSK_VS_TYPE_GPT or int(part.table_num) == 0:
            number = int(part.slot_num) + 1
        else:
            number, logical = logical, logical + 1
        text = bytes(part.desc).decode("utf-8", "backslashreplace")
        found.append((part.start * unit, part.len * unit, f"p{number}", text))
    return found


class _Blanked:
    """The image without its primary GPT header, so that TSK turns to the backup."""

    def __init__(self, image: Readable, sector: int) -> None:
        self.size = image.size
        self._image = image
        self._sector = sector

    def pread(self, length: int, offset: int) -> bytes:
        data = self._image.pread(length, offset)
        start, end = max(offset, self._sector), min(offset + len(data), 2 * self._sector)
        if start >= end:
            return data
        return data[: start - offset] + bytes(end - start) + data[end - offset :]


def _gpt_state(image: Readable, head: bytes, notes: list[str]) -> tuple[str, int]:
    """Return ("primary", "backup" or "none": the GPT to use; bytes of a sector).

    Notes say what is wrong with it.
    """
    primary = [s for s in _SECTORS if _gpt_sound(image, head[s : 2 * s], s)]
    if primary:
        if len(primary) > 1:
            notes.append("two GPTs, of 512 and of 4096 bytes a sector: the former is used")
        return "primary", primary[0]
    claimed = [s for s in _SECTORS if head[s : s + 8] == b"EFI PART"]
    protective = any(head[450 + n * 16] == 0xEE for n in range(4)) if len(head) >= SECTOR else False
    for sector in _SECTORS:
        last = b""
        if image.size >= 4 * sector:
            try:
                last = image.pread(sector, image.size // sector * sector - sector)
            except OSError as error:
                notes.append(f"backup GPT header could not be read: {error}")
        if _gpt_sound(image, last, sector):
            if claimed or protective:
                notes.append("primary GPT is damaged; its backup at the end of the image is used")
                return "backup", sector
            notes.append("a sound backup GPT is at the end of the image, but no primary: not used")
            return "none", SECTOR
    if claimed:
        notes.append("GPT header or table fails its checksum, and no sound backup was found")
        return "primary", claimed[0]
    if protective:
        notes.append("protective MBR, but no GPT")
    return "none", SECTOR


def _gpt_sound(image: Readable, header: bytes, sector: int) -> bool:
    if header[:8] != b"EFI PART":
        return False
    size = int.from_bytes(header[12:16], "little")
    if not 92 <= size <= len(header):
        return False
    blank = header[:16] + b"\0\0\0\0" + header[20:size]
    if zlib.crc32(blank) != int.from_bytes(header[16:20], "little"):
        return False
    at = int.from_bytes(header[72:80], "little") * sector
    length = int.from_bytes(header[80:84], "little") * int.from_bytes(header[84:88], "little")
    if length > 1 << 20 or at + length > image.size:
        return False
    try:
        entries = image.pread(length, at)
    except OSError:
        return False
    return zlib.crc32(entries) == int.from_bytes(header[88:92], "little")
