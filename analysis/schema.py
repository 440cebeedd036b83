# SPDX-License-Identifier: Apache-2.0
"""The Parquet schemas of everything that analysis derives. The one place.

Invariants:

* Every row names its evidence: `item` and `item_digest` (hex), then where in it (volume, inode,
  offset), then who says so (`tool`, `tool_version`).
* Units: sizes, offsets and lengths are bytes; offsets count from the start of the item. Times are
  signed nanoseconds since 1970-01-01T00:00:00Z without leap seconds (int64: 1677 to 2262).
* null is "not known or does not exist"; it is never a zero. What was not looked at is a row of
  `coverage`, never an absence.
* `path` is text. Where the bytes of a name are not valid UTF-8, or hold a "/" or a NUL, those bytes
  stand as backslash-x-hex in `path` and `name`, and `path_raw` holds the true bytes; where
  `path_raw` is null, `path` is literal (a backslash in it is a backslash). Control characters are
  left in: who prints a path must neutralise it.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE_TYPES = ("file", "dir", "symlink", "fifo", "socket", "chardev", "blockdev", "other")
"""Values of `files.type`."""

NAME_STATES = ("allocated", "deleted", "reallocated", "orphan")
"""Values of `files.name_state`.

allocated: a live name. deleted: a removed name, or a freed inode without a name. reallocated: a
removed name whose inode now belongs to another file, so that size, times and owner are null.
orphan: an inode in use that no directory names (unlinked while open, or its directory is damaged).
"""

SHA256_STATES = (
    "ok",
    "not-a-file",
    "deleted",
    "unreadable",
    "too-large",
    "encrypted",
)
"""Values of `files.sha256_state`; `sha256` is set if and only if it is "ok".

unreadable: a part of the content lies outside the image, could not be read, its block map or its
compression is damaged (the kernel would answer EIO), or a filter driver keeps it elsewhere.
too-large: more logical bytes than the walk may hash, always with a coverage row. encrypted: only
ciphertext is at hand.
"""

COVERAGE_WHAT = (
    "image",  # the image itself could not be read at offset
    "partition-table",  # damaged, ambiguous, or only its backup was usable
    "unallocated",  # space in no partition
    "volume",  # a volume that this installation cannot open (encrypted, LVM, unknown, ...)
    "file-system",  # recognised, but damaged, truncated, dirty, empty or only partly read
    "directory",  # a directory that could not be listed, or not entered
    "inode",  # metadata of an entry could not be read
    "content",  # content of a file was not hashed
    "value",  # a recorded value that does not fit its column, stored as null
    "unreadable",  # bytes that the source refused when the item was acquired
    "source-changed",  # the source changed while it was acquired
    "job-died",  # the job ended before its work was done
    "part-lost",  # rows that the job announced and did not leave
    "no-rows",  # the job ended well and made no rows
    "coverage-cut",  # more rows of coverage than are kept
    "memory",  # memory that the image states and does not hold, or a machine that is not analysed
    "symbols",  # no symbol table of this kernel could be had, or it failed its test
)
"""Values of `coverage.what`: the kind of thing that was not (wholly) seen."""


COVERAGE_LEVELS = ("gap", "limit")
"""Values of `coverage.level`.

gap: something in this evidence should have been seen and was not; the job is `partial`, exit 3.
limit: what this method never sees, in any evidence; it stands in the report, and is no failure.
"""


def _field(name: str, kind: pa.DataType, doc: str, *, null: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=null, metadata={"doc": doc})


_EVIDENCE = (
    _field("item", pa.string(), "evidence item id, e.g. E0001"),
    _field("item_digest", pa.string(), "digest that identifies the item, lower-case hex"),
)
_TOOL = (
    _field("tool", pa.string(), "what read this row from the evidence"),
    _field("tool_version", pa.string(), "its version"),
)
_NS = "ns since 1970-01-01T00:00:00Z"

FILES = pa.schema(
    [
        *_EVIDENCE,
        _field("volume", pa.string(), 'partition, e.g. "p1"; "" for the whole image'),
        _field("volume_offset", pa.int64(), "bytes from the start of the item"),
        _field("fs", pa.string(), "ext2, ext3, ext4, xfs, ntfs, fat12, fat16, fat32 or exfat"),
        _field("path", pa.string(), 'absolute, "/" between names; see the module docstring'),
        _field("path_raw", pa.binary(), "true bytes of an escaped path", null=True),
        _field("name", pa.string(), "last component of path"),
        _field("stream", pa.string(), "NTFS alternate data stream", null=True),
        _field("inode", pa.int64(), "inode, MFT entry or TSK address", null=True),
        _field("type", pa.string(), "one of FILE_TYPES"),
        _field("size", pa.int64(), "bytes", null=True),
        _field(
            "mode", pa.int32(), "st_mode: type and permission bits; null on NTFS, FAT", null=True
        ),
        _field("uid", pa.int64(), "numeric owner; null on NTFS, FAT", null=True),
        _field("gid", pa.int64(), "numeric group; null on NTFS, FAT", null=True),
        _field("links", pa.int32(), "hard link count", null=True),
        _field("allocated", pa.bool_(), "the inode is in use and belongs to this row"),
        _field("name_state", pa.string(), "one of NAME_STATES"),
        _field("link_target", pa.string(), "of a symbolic link, escaped as path", null=True),
        _field("sha256", pa.string(), "of the content, lower-case hex", null=True),
        _field("sha256_state", pa.string(), "one of SHA256_STATES"),
        _field("mtime", pa.int64(), f"content change, {_NS}", null=True),
        _field("atime", pa.int64(), f"access, {_NS}", null=True),
        _field("ctime", pa.int64(), f"metadata change, {_NS}", null=True),
        _field("btime", pa.int64(), f"birth, {_NS}", null=True),
        *_TOOL,
    ]
)

COVERAGE = pa.schema(
    [
        *_EVIDENCE,
        _field("job", pa.string(), "analysis job"),
        _field("volume", pa.string(), "as in files"),
        _field("path", pa.string(), "where it concerns one path", null=True),
        _field("offset", pa.int64(), "bytes from the start of the item", null=True),
        _field("length", pa.int64(), "bytes", null=True),
        _field("what", pa.string(), "one of COVERAGE_WHAT"),
        _field("level", pa.string(), "one of COVERAGE_LEVELS"),
        _field("reason", pa.string(), "one sentence"),
        _field("count", pa.int64(), "how many things this row stands for, at least 1"),
        *_TOOL,
    ]
)

KERNELS = pa.schema(
    [
        *_EVIDENCE,
        _field("release", pa.string(), "as uname -r"),
        _field("machine", pa.string(), "x86-64"),
        _field("banner", pa.string(), "linux_banner, without its newline"),
        _field("build_id", pa.string(), 'of vmlinux, hex; "" if the kernel states none'),
        _field("offset", pa.int64(), "of the VMCOREINFO note in the item", null=True),
        _field("address", pa.int64(), "physical, of the VMCOREINFO note"),
        _field("kernel_offset", pa.int64(), "KASLR shift, bytes"),
        _field("levels", pa.int32(), "of page tables, 4 or 5"),
        _field("source", pa.string(), "what the symbols were made from: image, side-cars"),
        _field("symbols", pa.int64(), "how many"),
        _field("types", pa.int64(), "structs and unions"),
        _field("sha256", pa.string(), "of the symbol table (JSON, not compressed)"),
        *_TOOL,
    ]
)

TABLES: Mapping[str, pa.Schema] = MappingProxyType(
    {"files": FILES, "kernels": KERNELS, "coverage": COVERAGE}
)
"""Schema of each table by its name."""
