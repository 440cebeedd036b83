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
    "plugin",  # a plugin failed, hung, found nothing to read, or was left out
    "rules",  # rules that were ignored, or could not be applied to all of the item
    "live",  # a live response, or lines of it, not there, not whole, not read or of another boot
    "extract",  # a file that was asked for and is not, or not wholly, in memory
    "rows-cut",  # more rows than are kept
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

_ADDRESS = "virtual address of the kernel object, as a signed 64-bit number"

SYSTEMS = ("linux", "windows")
"""Values of `kernels.system`."""

KERNELS = pa.schema(
    [
        *_EVIDENCE,
        _field("system", pa.string(), "one of SYSTEMS; null (linux) in results of old", null=True),
        _field("release", pa.string(), 'as uname -r; Windows: as "10.0 build 19041"'),
        _field("machine", pa.string(), "x86-64"),
        _field("banner", pa.string(), "linux_banner, without its newline; Windows: name of PDB"),
        _field("boot_id", pa.string(), "of this boot; null if nobody had asked for it", null=True),
        _field(
            "build_id",
            pa.string(),
            'of vmlinux, hex; "" if the kernel states none; Windows: GUID and age of its PDB',
        ),
        _field("offset", pa.int64(), "in the item, of what is at `address`", null=True),
        _field("address", pa.int64(), "physical, of the VMCOREINFO note; Windows: of its image"),
        _field("kernel_offset", pa.int64(), "KASLR shift, bytes; Windows: base, signed 64 bits"),
        _field(
            "page_table", pa.int64(), "physical address of the kernel's top page table", null=True
        ),
        _field("levels", pa.int32(), "of page tables, 4 or 5"),
        _field(
            "source",
            pa.string(),
            'what the symbols were made from: image, side-cars, given; "" if there are none',
        ),
        _field("symbols", pa.int64(), "how many"),
        _field("types", pa.int64(), "structs and unions"),
        _field("sha256", pa.string(), 'of the symbol table (JSON, not compressed); "" without one'),
        *_TOOL,
    ]
)

PDBS = pa.schema(
    [
        *_EVIDENCE,
        _field("pdb", pa.string(), "name of the file of symbols, as the image of its code has it"),
        _field("guid", pa.string(), "32 hex digits"),
        _field("age", pa.int64(), "how often the PDB was changed"),
        _field("used_by", pa.string(), "kernel, or the plugins that ask for it"),
        _field("url", pa.string(), "where Microsoft offers it; never asked from here"),
        _field("address", pa.int64(), "physical, of its CodeView record"),
        _field("offset", pa.int64(), "of the record in the item", null=True),
        _field("object", pa.string(), "member of the result that is its table; null: it lacks",
               null=True),
        *_TOOL,
    ]
)  # fmt: skip

PROCESSES = pa.schema(
    [
        *_EVIDENCE,
        _field("pid", pa.int64(), "process id in the first namespace"),
        _field("ppid", pa.int64(), "of its parent", null=True),
        _field("comm", pa.string(), "name that the kernel keeps (15 bytes at most)"),
        _field("uid", pa.int64(), "real user", null=True),
        _field("gid", pa.int64(), "real group", null=True),
        _field("euid", pa.int64(), "effective user", null=True),
        _field("started", pa.int64(), f"start, {_NS}", null=True),
        _field("args", pa.string(), "command line, as the process may have changed it", null=True),
        _field("address", pa.int64(), f"{_ADDRESS} (task_struct, _EPROCESS)"),
        _field("views", pa.string(), "methods that found it, comma-separated"),
        *_TOOL,
    ]
)

PROCESS_VIEWS = pa.schema(
    [
        *_EVIDENCE,
        _field(
            "view",
            pa.string(),
            "method: pslist, pidhashtable, psscan, thrdscan, csrss; live, live-ps",
        ),
        _field("pid", pa.int64(), "process id"),
        _field("ppid", pa.int64(), "of its parent", null=True),
        _field("comm", pa.string(), "name"),
        _field(
            "state",
            pa.string(),
            "exit state, where the method tells it; of Windows exited",
            null=True,
        ),
        _field(
            "address",
            pa.int64(),
            "of task_struct (virtual, but physical of psscan) or _EPROCESS",
            null=True,
        ),
        *_TOOL,
    ]
)

SOCKETS = pa.schema(
    [
        *_EVIDENCE,
        _field("pid", pa.int64(), "of a process that has it open"),
        _field("comm", pa.string(), "name of the process"),
        _field("fd", pa.int64(), "descriptor", null=True),
        _field("netns", pa.int64(), "inode of the network namespace", null=True),
        _field("family", pa.string(), "AF_INET, AF_UNIX, ..."),
        _field("type", pa.string(), "STREAM, DGRAM, ...", null=True),
        _field("protocol", pa.string(), "TCP, UDP, ...", null=True),
        _field("local_address", pa.string(), "or path", null=True),
        _field("local_port", pa.int64(), "or inode, or netlink port", null=True),
        _field("remote_address", pa.string(), "of the peer", null=True),
        _field("remote_port", pa.int64(), "of the peer", null=True),
        _field("state", pa.string(), "LISTEN, ESTABLISHED, ...", null=True),
        _field("address", pa.int64(), f"{_ADDRESS} (sock)"),
        *_TOOL,
    ]
)

MODULES = pa.schema(
    [
        *_EVIDENCE,
        _field("name", pa.string(), "of the kernel module"),
        _field("size", pa.int64(), "of its code, bytes", null=True),
        _field("taints", pa.string(), "that it brought", null=True),
        _field("parameters", pa.string(), "load arguments; of Windows its path", null=True),
        _field("address", pa.int64(), f"{_ADDRESS} (module; of Windows its base)"),
        _field("views", pa.string(), "methods that found it, comma-separated"),
        *_TOOL,
    ]
)

MEMORY = pa.schema(
    [
        *_EVIDENCE,
        _field("plugin", pa.string(), "that gave the row"),
        _field("row", pa.int64(), "its number, from 0"),
        _field("depth", pa.int32(), "in a tree, from 0"),
        _field("pid", pa.int64(), "where the row is of a process", null=True),
        _field("comm", pa.string(), "its name", null=True),
        _field("address", pa.int64(), "the first address of the row, signed 64 bits", null=True),
        _field("data", pa.string(), "JSON: column -> value; times as ISO 8601"),
        *_TOOL,
    ]
)

MATCHES = pa.schema(
    [
        *_EVIDENCE,
        _field("rule", pa.string(), "YARA rule"),
        _field("namespace", pa.string(), "file of the rule"),
        _field("pattern", pa.string(), "$name in the rule"),
        _field("physical", pa.int64(), "address of the match", null=True),
        _field("offset", pa.int64(), "bytes from the start of the item", null=True),
        _field("length", pa.int64(), "bytes"),
        _field("pid", pa.int64(), "of a process that has the page mapped", null=True),
        _field("comm", pa.string(), "its name", null=True),
        _field("virtual", pa.int64(), "address of the match in that process", null=True),
        _field("data", pa.string(), "the first bytes of the match, hex"),
        *_TOOL,
    ]
)

EXTRACTED = pa.schema(
    [
        *_EVIDENCE,
        _field("kind", pa.string(), "executable (of a process) or file"),
        _field("pid", pa.int64(), "of the process", null=True),
        _field("comm", pa.string(), "its name", null=True),
        _field("path", pa.string(), "as the kernel has it", null=True),
        _field("inode", pa.int64(), "number", null=True),
        _field("size", pa.int64(), "bytes that the inode states"),
        _field("held", pa.int64(), "bytes that memory has; the rest are zeros here"),
        _field("sha256", pa.string(), "of what is here: of the file only if held = size"),
        _field("absent", pa.string(), "JSON: [start, end] of what memory has not, 200 at most"),
        _field("object", pa.string(), "member of the result item that is the content"),
        *_TOOL,
    ]
)

TIMELINE = pa.schema(
    [
        _field("message", pa.string(), "what happened, one line"),
        _field("datetime", pa.string(), "ISO 8601, UTC, microseconds"),
        _field("timestamp", pa.int64(), "microseconds since 1970-01-01T00:00:00Z"),
        _field("timestamp_desc", pa.string(), "which time this is"),
        _field("source", pa.string(), "table or plugin that the row is from"),
        *_EVIDENCE,
        *_TOOL,
    ]
)

SEVERITIES = ("info", "low", "medium", "high")
"""Values of `findings.severity`."""

FINDINGS = pa.schema(
    [
        *_EVIDENCE,
        _field("rule", pa.string(), "stable name of what was looked for"),
        _field("severity", pa.string(), "one of SEVERITIES"),
        _field("title", pa.string(), "one line"),
        _field("reason", pa.string(), "what differs, and what may explain it"),
        _field("explanation", pa.string(), "most likely: race, exit, hidden, hook, injected, ..."),
        _field("pid", pa.int64(), "where it is of a process", null=True),
        _field("address", pa.int64(), "where it is of one object", null=True),
        _field("rows", pa.string(), "JSON: the rows it rests on"),
        *_TOOL,
    ]
)

_ASKED = (
    _field("collector", pa.string(), "of the live response, whose answer the row is from"),
    _field("line", pa.int64(), "of that answer, from 1"),
)
_PID = _field("pid", pa.int64(), "process id")

LIVE_OUTCOMES = pa.schema(
    [
        *_EVIDENCE,
        _field("name", pa.string(), "of the collector, or of a file that was taken"),
        _field("outcome", pa.string(), "success, empty, missing or failed"),
        _field("why", pa.string(), "of what failed", null=True),
        _field("command", pa.string(), "for sh, on the host", null=True),
        _field("size", pa.int64(), "of the answer, bytes", null=True),
        _field("code", pa.int64(), "exit code", null=True),
        _field("sha256", pa.string(), "of the answer, hex", null=True),
        _field("began", pa.int64(), f"by the examiner's clock, {_NS}", null=True),
        _field("said", pa.string(), "on stderr", null=True),
        *_TOOL,
    ]
)

LIVE_HOST = pa.schema(
    [
        *_EVIDENCE,
        _field("boot_id", pa.string(), "of this boot", null=True),
        _field("machine_id", pa.string(), "/etc/machine-id", null=True),
        _field("name", pa.string(), "as uname -n", null=True),
        _field("kernel", pa.string(), "as uname -a", null=True),
        _field("os", pa.string(), "PRETTY_NAME of os-release", null=True),
        _field("cmdline", pa.string(), "of the kernel", null=True),
        _field("tainted", pa.int64(), "/proc/sys/kernel/tainted", null=True),
        _field("timezone", pa.string(), "that it is set to", null=True),
        _field("asked", pa.int64(), f"by its own clock, {_NS}", null=True),
        _field("booted", pa.int64(), f"by its own clock, {_NS}", null=True),
        _field("ahead", pa.int64(), "of the examiner's clock, ns", null=True),
        *_TOOL,
    ]
)

LIVE_PROCESSES = pa.schema(
    [
        *_EVIDENCE,
        _PID,
        _field("ppid", pa.int64(), "of its parent", null=True),
        _field("comm", pa.string(), "name (15 bytes at most)"),
        _field("state", pa.string(), "R, S, D, T, Z, ...", null=True),
        _field("uid", pa.int64(), "real user", null=True),
        _field("euid", pa.int64(), "effective user", null=True),
        _field("gid", pa.int64(), "real group", null=True),
        _field("user", pa.string(), "name that ps gives", null=True),
        _field("tty", pa.string(), "terminal", null=True),
        _field("started", pa.int64(), f"by the host's clock, {_NS}", null=True),
        _field("args", pa.string(), "command line, as the process may have changed it", null=True),
        _field("exe", pa.string(), "path of its program; null of a kernel thread", null=True),
        _field("exe_deleted", pa.bool_(), "the kernel marks that path as deleted", null=True),
        _field("exe_sha256", pa.string(), "of its program as it ran, hex", null=True),
        _field("cwd", pa.string(), "working directory", null=True),
        _field("root", pa.string(), "its root directory", null=True),
        _field("cgroup", pa.string(), "lines of /proc/pid/cgroup", null=True),
        _field("tracer", pa.int64(), "process that traces it, 0 if none does", null=True),
        _field("seccomp", pa.int64(), "mode: 0 off, 1 strict, 2 filter", null=True),
        _field("capabilities", pa.string(), "effective, hex", null=True),
        _field("views", pa.string(), "collectors that list it: processes.proc, processes (ps)"),
        *_ASKED,
        *_TOOL,
    ]
)

LIVE_SOCKETS = pa.schema(
    [
        *_EVIDENCE,
        _field("family", pa.string(), "AF_INET, AF_INET6, AF_UNIX, ..."),
        _field("type", pa.string(), "STREAM, DGRAM, ...; null of IP", null=True),
        _field("protocol", pa.string(), "TCP, UDP, RAW, ...; null if not of IP", null=True),
        _field("state", pa.string(), "LISTEN, ESTABLISHED, UNCONNECTED, ...", null=True),
        _field("local_address", pa.string(), "or path"),
        _field("local_port", pa.int64(), "port", null=True),
        _field("remote_address", pa.string(), "of the peer"),
        _field("remote_port", pa.int64(), "of the peer", null=True),
        _field("uid", pa.int64(), "owner", null=True),
        _field("inode", pa.int64(), "of the socket; null if it has none any more", null=True),
        _field("pid", pa.int64(), "of a process that has it open", null=True),
        _field("comm", pa.string(), "its name", null=True),
        _field("fd", pa.int64(), "its descriptor", null=True),
        _field("views", pa.string(), "collectors that list it: sockets.proc, sockets (ss)"),
        *_ASKED,
        *_TOOL,
    ]
)

LIVE_MODULES = pa.schema(
    [
        *_EVIDENCE,
        _field("name", pa.string(), "of the kernel module"),
        _field("size", pa.int64(), "bytes", null=True),
        _field("references", pa.int64(), "how often it is in use", null=True),
        _field("used_by", pa.string(), "modules, comma-separated", null=True),
        _field("state", pa.string(), "Live, Loading or Unloading", null=True),
        _field("taints", pa.string(), "that it brought: O out of tree, E unsigned, ...", null=True),
        _field("address", pa.int64(), "signed 64 bits; null if hidden", null=True),
        _field("views", pa.string(), "procfs, sysfs; sysfs alone: built in, or hidden"),
        *_ASKED,
        *_TOOL,
    ]
)

LIVE_MOUNTS = pa.schema(
    [
        *_EVIDENCE,
        _field("mount", pa.int64(), "its number"),
        _field("parent", pa.int64(), "number of the one it lies in"),
        _field("device_number", pa.string(), "major:minor"),
        _field("root", pa.string(), "what of the file system is mounted"),
        _field("path", pa.string(), "where"),
        _field("type", pa.string(), "of file system"),
        _field("device", pa.string(), "what it is made of"),
        _field("options", pa.string(), "of the mount"),
        _field("fs_options", pa.string(), "of the file system"),
        *_ASKED,
        *_TOOL,
    ]
)

LIVE_SESSIONS = pa.schema(
    [
        *_EVIDENCE,
        _field("kind", pa.string(), "login, failed, session, ended, getty, boot, shutdown, ..."),
        _field("user", pa.string(), "name", null=True),
        _field("uid", pa.int64(), "number", null=True),
        _field("tty", pa.string(), "terminal", null=True),
        _field("host", pa.string(), "from where; of a boot: the kernel", null=True),
        _field("pid", pa.int64(), "process", null=True),
        _field("session", pa.string(), "of logind", null=True),
        _field("at", pa.int64(), f"where it is certain, {_NS}", null=True),
        _field("until", pa.int64(), f"where it is certain, {_NS}", null=True),
        _field("by", pa.string(), "program that says so: who, last, lastb, loginctl"),
        _field("said", pa.string(), "the line"),
        *_ASKED,
        *_TOOL,
    ]
)

LIVE_OPEN_FILES = pa.schema(
    [
        *_EVIDENCE,
        _PID,
        _field("fd", pa.int64(), "descriptor"),
        _field("mode", pa.string(), "r- read, -w write, rw both"),
        _field("target", pa.string(), "path, or socket:[inode], pipe:[inode], ...", null=True),
        _field("deleted", pa.bool_(), "the kernel marks that path as deleted"),
        _field("socket", pa.int64(), "inode of a socket", null=True),
        *_ASKED,
        *_TOOL,
    ]
)

LIVE_MAPPINGS = pa.schema(
    [
        *_EVIDENCE,
        _PID,
        _field("start", pa.int64(), "address, signed 64 bits"),
        _field("end", pa.int64(), "first address after it"),
        _field("protection", pa.string(), "as rwxp"),
        _field("offset", pa.int64(), "in the file, bytes"),
        _field("inode", pa.int64(), "of the file, 0 if there is none", null=True),
        _field("path", pa.string(), "of the file", null=True),
        _field("deleted", pa.bool_(), "the kernel marks that path as deleted"),
        *_ASKED,
        *_TOOL,
    ]
)

LIVE_ENVIRONMENT = pa.schema(
    [
        *_EVIDENCE,
        _PID,
        _field("name", pa.string(), 'of the variable; "" of text that is none'),
        _field("value", pa.string(), "as the process may have changed it"),
        *_ASKED,
        *_TOOL,
    ]
)

LIVE_SCHEDULE = pa.schema(
    [
        *_EVIDENCE,
        _field("kind", pa.string(), "timer, cron or at"),
        _field("name", pa.string(), "timer, file of the crontab, or number of the job"),
        _field("schedule", pa.string(), "of cron: five fields, or @word", null=True),
        _field("user", pa.string(), "as whom it runs", null=True),
        _field("command", pa.string(), "what runs; of a timer: its unit", null=True),
        _field("next", pa.int64(), f"where it is certain, {_NS}", null=True),
        _field("last", pa.int64(), f"where it is certain, {_NS}", null=True),
        _field("said", pa.string(), "the line"),
        *_ASKED,
        *_TOOL,
    ]
)

LIVE_SERVICES = pa.schema(
    [
        *_EVIDENCE,
        _field("name", pa.string(), "of the unit"),
        _field("load", pa.string(), "loaded, not-found, masked, ...", null=True),
        _field("active", pa.string(), "active, inactive, failed, ...", null=True),
        _field("sub", pa.string(), "running, exited, dead, ...", null=True),
        _field("enabled", pa.string(), "state of its unit file", null=True),
        _field("preset", pa.string(), "what the vendor wants", null=True),
        _field("description", pa.string(), "of the unit", null=True),
        *_ASKED,
        *_TOOL,
    ]
)

LIVE_CONTAINERS = pa.schema(
    [
        *_EVIDENCE,
        _field("by", pa.string(), "docker or podman, crictl, ctr"),
        _field("container", pa.string(), "its id"),
        _field("name", pa.string(), "of the container", null=True),
        _field("image", pa.string(), "that it was made from", null=True),
        _field("command", pa.string(), "that it runs", null=True),
        _field("status", pa.string(), "as printed", null=True),
        _field("created", pa.string(), "as printed", null=True),
        _field("ports", pa.string(), "as printed", null=True),
        _field("pod", pa.string(), "as printed", null=True),
        *_ASKED,
        *_TOOL,
    ]
)

TABLES: Mapping[str, pa.Schema] = MappingProxyType({
    "files": FILES, "kernels": KERNELS, "pdbs": PDBS, "processes": PROCESSES,
    "process_views": PROCESS_VIEWS, "sockets": SOCKETS, "modules": MODULES, "memory": MEMORY,
    "matches": MATCHES, "extracted": EXTRACTED, "live_outcomes": LIVE_OUTCOMES,
    "live_host": LIVE_HOST,
    "live_processes": LIVE_PROCESSES, "live_sockets": LIVE_SOCKETS, "live_modules": LIVE_MODULES,
    "live_mounts": LIVE_MOUNTS, "live_sessions": LIVE_SESSIONS,
    "live_open_files": LIVE_OPEN_FILES, "live_mappings": LIVE_MAPPINGS,
    "live_environment": LIVE_ENVIRONMENT, "live_schedule": LIVE_SCHEDULE,
    "live_services": LIVE_SERVICES, "live_containers": LIVE_CONTAINERS,
    "timeline": TIMELINE, "findings": FINDINGS, "coverage": COVERAGE,
})  # fmt: skip
"""Schema of each table by its name."""
