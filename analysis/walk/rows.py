# SPDX-License-Identifier: Apache-2.0
"""Rows of one volume: contents hashed batch by batch, columns handed on.

Invariants:

* At most `BATCH` entries and a few chunks of content are in memory, whatever the volume holds.
* Rows leave in the order in which they were found; hashing goes in block order within a batch.
* A gap is never lost: beyond `_DETAILED` rows of one kind, one row carries the count of the rest.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import pyarrow as pa

from analysis.schema import FILES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from analysis.walk.content import Content, Hasher

BATCH = 20_000
_DETAILED = 200
_CACHED_LINKS = 200_000
_INT64 = range(-(1 << 63), 1 << 63)
_INT32 = range(-(1 << 31), 1 << 31)

_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "chardev",
    stat.S_IFBLK: "blockdev",
}


class Sink(Protocol):
    """Takes what the walk finds. Called from the thread that called `walk_image` only."""

    def rows(self, table: str, batch: pa.RecordBatch | pa.Table) -> None:
        """Take rows of `table`, in its schema of `analysis.schema.TABLES`."""

    def coverage(self, **fields: Any) -> None:
        """Take one coverage row: fields of `schema.COVERAGE`, without `job`."""

    def progress(self, done: int, total: int | None) -> None:
        """Learn that `done` entries of the image are recorded, of about `total`."""


class Entry(NamedTuple):
    """One name in a file system; fields as columns of `schema.FILES`.

    `content` is None where there is nothing to hash; `sha256_state` then says why.
    """

    path: str
    path_raw: bytes | None
    name: str
    stream: str | None
    inode: int | None
    type: str
    size: int | None
    mode: int | None
    uid: int | None
    gid: int | None
    links: int | None
    allocated: bool
    name_state: str
    link_target: str | None
    mtime: int | None
    atime: int | None
    ctime: int | None
    btime: int | None
    sha256: str | None
    sha256_state: str
    content: Content | None


def bare_name(
    names: tuple[str, bytes | None, str], inum: int | None, state: str, kind: str = "other"
) -> Entry:
    """Return the entry of a name of which only the name is known."""
    path, path_raw, name = names
    return Entry(
        path=path,
        path_raw=path_raw,
        name=name,
        stream=None,
        inode=inum,
        type=kind,
        size=None,
        mode=None,
        uid=None,
        gid=None,
        links=None,
        allocated=False,
        name_state=state,
        link_target=None,
        mtime=None,
        atime=None,
        ctime=None,
        btime=None,
        sha256=None,
        sha256_state="unreadable" if state in ("allocated", "orphan") else "deleted",
        content=None,
    )


def file_type(mode: int) -> str:
    """Return the `schema.FILE_TYPES` value of a st_mode."""
    return _TYPES.get(mode & 0xF000, "other")


def line(error: Exception) -> str:
    """Return the text of an error as one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]


class Recorder:
    """Collects entries and gaps of one volume and hands them to the sink.

    Attributes:
        volume: name and byte offset of the volume; set before the first entry, as are `fs` and
            `tool` (name, version).
        total: about how many entries there will be, if known.
        found, hashed, gaps: entries and gaps so far.
    """

    def __init__(
        self,
        sink: Sink,
        hasher: Hasher,
        *,
        evidence: tuple[str, str],
        tool: tuple[str, str],
        before: int = 0,
    ) -> None:
        self._sink = sink
        self._hasher = hasher
        self._evidence = evidence
        self.volume = "", 0
        self.fs = ""
        self.tool = tool
        self._entries: list[Entry] = []
        self._links: dict[tuple[int, str | None], Content] = {}
        self._gaps: dict[tuple[str, str], int] = {}
        self._before = before
        self.total: int | None = None
        self.found = 0
        self.hashed = 0
        self.gaps = 0

    def add(self, entry: Entry) -> None:
        """Record an entry; every `BATCH` of them are hashed and handed on."""
        self._entries.append(entry)
        if len(self._entries) >= BATCH:
            self.flush()

    def gap(
        self,
        what: str,
        reason: str,
        *,
        path: str | None = None,
        offset: int | None = None,
        length: int | None = None,
        kind: str = "",
    ) -> None:
        """Record what was not seen. Rows of one `kind` beyond the first 200 become a count."""
        self.gaps += 1
        key = what, kind or reason
        self._gaps[key] = self._gaps.get(key, 0) + 1
        if self._gaps[key] <= _DETAILED:
            self._cover(what, reason, path, offset, length, 1)

    def truncated(self, image_size: int, end: int) -> None:
        """Record it if a file system that ends at byte `end` is longer than its image."""
        if end > image_size:
            self.gap("file-system", "the image ends before the file system does",
                     offset=image_size, length=min(end - image_size, _INT64[-1]))  # fmt: skip

    def limit(self, what: str, reason: str) -> None:
        """Record what this method never sees, whatever the evidence: no gap, but to be known."""
        self._cover(what, reason, None, None, None, 1, level="limit")

    def close(self) -> None:
        """Hand on what is left."""
        self.flush()
        for (what, kind), count in self._gaps.items():
            if count > _DETAILED:
                self._cover(
                    what, f"{kind} (more of this kind)", None, None, None, count - _DETAILED
                )
        self._gaps.clear()

    def flush(self) -> None:
        """Hash and hand on the entries collected so far."""
        entries, self._entries = self._entries, []
        if not entries:
            return
        contents = self._hash(entries)
        *facts, sha256s, states, _ = zip(*entries, strict=True)
        sha256, state = list(sha256s), list(states)
        for n, content in contents:
            sha256[n], state[n] = content.sha256, content.state
        self.hashed += state.count("ok")
        rows = len(entries)
        item, digest = self._evidence
        named = dict(zip(Entry._fields, [*facts, sha256, state], strict=False))
        named |= {
            name: pa.repeat(pa.scalar(value), rows)
            for name, value in (
                ("item", item),
                ("item_digest", digest),
                ("volume", self.volume[0]),
                ("volume_offset", self.volume[1]),
                ("fs", self.fs),
                ("tool", self.tool[0]),
                ("tool_version", self.tool[1]),
            )
        }
        arrays = [self._array(field, named[field.name], named["path"]) for field in FILES]
        self.found += rows
        self._sink.rows("files", pa.RecordBatch.from_arrays(arrays, schema=FILES))
        self._sink.progress(self._before + self.found, self.total)

    def _hash(self, entries: list[Entry]) -> list[tuple[int, Content]]:
        """Hash the contents of `entries`, each inode once; return them by position."""
        links, todo, placed = self._links, [], []
        for n, entry in enumerate(entries):
            content = entry[-1]
            if content is None:
                continue
            if entry.links != 1 and entry.inode is not None:
                key = entry.inode, entry.stream
                known = links.get(key)
                if known is not None:
                    placed.append((n, known))
                    continue
                if len(links) < _CACHED_LINKS:
                    links[key] = content
            todo.append(content)
            placed.append((n, content))
        self._hasher.hash_all(todo)
        for content in todo:  # what is kept for later names must not keep its block map
            content.extents = content.chunks = None
        for n, content in placed:
            if content.state != "ok":
                path, offset = entries[n].path, content.start if content.start >= 0 else None
                self.gap(
                    "content",
                    f"{content.state}: {content.reason}",
                    path=path,
                    offset=offset,
                    length=min(content.size, _INT64[-1]),
                    kind=content.state,
                )
        return placed

    def _array(self, field: pa.Field, values: Any, paths: Sequence[str]) -> pa.Array:
        if isinstance(values, pa.Array):
            return values
        try:
            return pa.array(values, field.type)
        except (pa.ArrowInvalid, OverflowError):
            # A hostile or damaged inode holds a number that the column cannot: null, and a gap.
            room = _INT32 if field.type == pa.int32() else _INT64
            values = list(values)
            for n, value in enumerate(values):
                if value is not None and value not in room:
                    self.gap(
                        "value",
                        f"{field.name} {value} does not fit its column",
                        path=paths[n],
                        kind=field.name,
                    )
                    values[n] = None
            return pa.array(values, field.type)

    def _cover(
        self,
        what: str,
        reason: str,
        path: str | None,
        offset: int | None,
        length: int | None,
        count: int,
        level: str = "gap",
    ) -> None:
        self._sink.coverage(
            item=self._evidence[0],
            item_digest=self._evidence[1],
            volume=self.volume[0],
            path=path,
            offset=offset,
            length=length,
            what=what,
            level=level,
            reason=reason,
            count=count,
            tool=self.tool[0],
            tool_version=self.tool[1],
        )
