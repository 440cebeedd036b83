# SPDX-License-Identifier: Apache-2.0
"""The files that patterns name, out of an image. `main` runs in a limited child.

What it tells the parent, in messages:

    volume    name, offset, length, holds, reason: each part of the image; `reason`: why not read
    walked    name, offset, fs: one of them is looked into
    found     one entry of a file system (`_facts`); `object`: number of the file below `out/files`
              that has its content, written whole before it is told
    coverage  row: what was not seen
    matched   patterns: numbers of those that named something
    followed  path, target: a symbolic link on the way of a pattern
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.image import WALKABLE, volumes
from analysis.walk import READERS
from analysis.walk.content import DamagedError, Hasher, Serial
from analysis.walk.paths import Finder, Found, Tree, parse
from analysis.walk.rows import Recorder, line
from analysis.walk.tsk import TSK_ERRORS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pyarrow as pa

    from analysis.image import Volume
    from analysis.walk.rows import Entry
    from evidence_store.child import Channel

_MOST_TOLD = 60_000  # bytes of a message; a channel takes 128 KiB
_MAX_TEXT = 4097
FILES = "files"


class _Sink:
    """Hands coverage on; there are no rows."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def rows(self, table: str, batch: pa.RecordBatch | pa.Table) -> None:
        raise AssertionError(table, batch)

    def coverage(self, **fields: Any) -> None:
        cut = {k: v[:_MAX_TEXT] if isinstance(v, str) else v for k, v in fields.items()}
        self._channel.send("coverage", row=cut)

    def progress(self, done: int, total: int | None) -> None:
        raise AssertionError(done, total)


class _Collector(Recorder):
    """A recorder whose entries are picked up one name at a time."""

    def __init__(self, sink: _Sink, hasher: Hasher, item: str) -> None:
        super().__init__(sink, hasher, evidence=(item, ""), tool=("", ""))
        self.picked: list[Entry] = []

    def add(self, entry: Entry) -> None:
        self.picked.append(entry)


class _Taker:
    """Writes what was found into files, within limits, and tells the parent."""

    def __init__(self, channel: Channel, hasher: Hasher) -> None:
        self._channel = channel
        self._hasher = hasher
        self._take = bool(channel.request["take"])
        self._largest = int(channel.request["max_file"])
        self._left = int(channel.request["max_total"])
        self._folder = Path("out", FILES)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._number = 0

    def take(self, found: Found, tree: Tree, out: Recorder) -> None:
        """Take one path: its entries, of which an alternate data stream is one too."""
        for entry in found.entries:
            facts = {**_facts(entry), "fs": out.fs, "volume": out.volume[0],
                     "offset": out.volume[1], "patterns": sorted(found.patterns)[:100]}  # fmt: skip
            if len(json.dumps(facts)) > _MOST_TOLD:
                out.gap("value", "path or link too long to be told", path=entry.path[:1000])
                continue
            if self._take and found.patterns:
                facts |= self._content(entry, tree, out)
            self._channel.send("found", **facts)

    def _content(self, entry: Entry, tree: Tree, out: Recorder) -> dict[str, Any]:
        """Write the content of an entry; return the file's number, size and SHA-256."""
        is_content = entry.type == "file" or entry.stream is not None
        size = entry.size or 0
        if not is_content or entry.sha256_state not in ("", "ok"):
            return {}  # what there is no content of has its gap already
        name = entry.path if entry.stream is None else f"{entry.path}:{entry.stream}"
        limit = min(self._largest, self._left)
        if size > limit:
            which = "--max-total" if limit < self._largest else "--max-file"
            reason = f"too large: {size} bytes, {limit} may be taken ({which})"
            out.gap("content", reason, path=name, length=min(size, 1 << 62), kind="too large")
            return {}
        path = self._folder / f"{self._number:08d}"
        digest, done = hashlib.sha256(), 0
        try:
            with path.open("wb") as f:
                for piece in self._pieces(entry, tree):
                    done += len(piece)
                    if done > size:
                        raise DamagedError("its content is longer than it says")
                    digest.update(piece)
                    f.write(piece)
                if done != size:
                    raise DamagedError(f"{done} of {size} bytes could be read")
        except (DamagedError, *TSK_ERRORS) as error:
            path.unlink(missing_ok=True)
            out.gap("content", f"unreadable: {line(error)}", path=name, length=size,
                    kind="unreadable")  # fmt: skip
            return {}
        self._left -= size
        self._number += 1
        return {"object": self._number - 1, "stored": size, "sha256": digest.hexdigest()}

    def _pieces(self, entry: Entry, tree: Tree) -> Iterable[bytes | memoryview]:
        if entry.content is None:
            return [tree.small(entry)] if entry.size else []
        if entry.content.chunks:
            return entry.content.chunks()
        return self._hasher.pieces(entry.content)


def _facts(entry: Entry) -> dict[str, Any]:
    """What the parent is told of an entry; names as in `schema.FILES`."""
    names = ("path", "stream", "inode", "type", "size", "mode", "uid", "gid", "links", "mtime",
             "atime", "ctime", "btime", "link_target")  # fmt: skip
    raw = entry.path_raw.hex() if entry.path_raw is not None else None
    return {name: getattr(entry, name) for name in names} | {"raw": raw}


def main(channel: Channel) -> None:
    """Find what the request's patterns name in its item; see the module."""
    request = channel.request
    patterns = [parse(pattern) for pattern in request["patterns"]]
    sink = _Sink(channel)
    with channel.image(request["item"]) as image:
        serial = Serial(image)
        with Hasher(serial) as hasher:
            taker = _Taker(channel, hasher)
            matched: set[int] = set()
            for volume, out in _volumes(channel, serial, hasher, sink):
                matched |= _search(channel, serial, volume, out, taker, patterns)
                out.close()
    channel.send("matched", patterns=sorted(matched))


def _volumes(
    channel: Channel, image: Serial, hasher: Hasher, sink: _Sink
) -> Iterator[tuple[Volume, _Collector]]:
    """Tell of every volume; yield those that can be read."""
    notes: list[str] = []
    found = volumes(image, notes)
    item = channel.request["item"]
    about = _Collector(sink, hasher, item)
    for note in notes:
        about.gap("partition-table", note)
    about.close()
    for volume in found:
        out = _Collector(sink, hasher, item)
        out.volume = volume.name, volume.offset
        reason = volume.reason if volume.kind in WALKABLE else volume.reason or "not supported"
        channel.send("volume", name=volume.name, offset=volume.offset, length=volume.length,
                     holds=volume.kind, reason=reason)  # fmt: skip
        if not reason:
            yield volume, out
        elif volume.kind != "unallocated":
            out.gap("volume", reason, offset=volume.offset, length=volume.length)
            out.close()


def _search(
    channel: Channel, image: Serial, volume: Volume, out: _Collector, taker: _Taker,
    patterns: list[Any],
) -> set[int]:  # fmt: skip
    reader, out.tool = READERS[volume.kind]
    try:
        walk = reader(image, volume)
    except (DamagedError, *TSK_ERRORS) as error:
        out.gap("file-system", f"recognised as {volume.kind}, but not usable: {line(error)}",
                offset=volume.offset, length=volume.length)  # fmt: skip
        return set()
    out.fs = walk.kind
    channel.send("walked", name=volume.name, offset=volume.offset, fs=walk.kind)
    finder = Finder(walk, out, out.picked, lambda found: taker.take(found, walk, out))
    finder.run(patterns)
    for path, target in [*finder.followed.items()][:200]:
        channel.send("followed", path=path[:_MAX_TEXT], target=target[:_MAX_TEXT])
    return finder.matched
