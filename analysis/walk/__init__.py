# SPDX-License-Identifier: Apache-2.0
"""Walk every file system of an image once: names, metadata, times, SHA-256 of each file.

Invariants:

* Evidence never makes the walk raise or run for ever; what could not be read is a coverage row.
  What the reader raises beside OSError (`evidence_store.errors.IntegrityError`) and what the sink
  raises does pass.
* The image is read by one thread at a time, contents in block order within a batch.
* Memory is bounded by `rows.BATCH` entries, whatever the image holds.
* A volume that is not walked, and a walked one without entries, is a coverage row.
"""

from __future__ import annotations

import gc
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Protocol

from analysis.image import WALKABLE, volumes
from analysis.walk.content import DamagedError, Hasher, Serial
from analysis.walk.ext import ExtWalk
from analysis.walk.paths import Tree
from analysis.walk.rows import Recorder, Sink, line
from analysis.walk.tsk import TSK_ERRORS, TskWalk
from analysis.walk.xfs import XfsWalk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from analysis.image import Readable, Volume

__all__ = ["READERS", "Sink", "Summary", "Walk", "walk_image"]


class Walk(Tree, Protocol):
    """A reader of one file system."""

    kind: str

    def run(self, out: Recorder) -> None:
        """Record everything."""


_OURS = version("impound")
_WITH_TSK = f"{_OURS} (pytsk3 {version('pytsk3')})"
_ABOUT = "impound.image", _WITH_TSK
READERS: dict[str, tuple[Callable[[Serial, Volume], Walk], tuple[str, str]]] = {
    "ext": (ExtWalk, ("impound.ext", _OURS)),
    "xfs": (XfsWalk, ("impound.xfs", _OURS)),
    "ntfs": (TskWalk, ("impound.tsk", _WITH_TSK)),
    "fat": (TskWalk, ("impound.tsk", _WITH_TSK)),
    "exfat": (TskWalk, ("impound.tsk", _WITH_TSK)),
}


@dataclass(frozen=True)
class Summary:
    """What a walk did.

    Attributes:
        volumes: volumes found, gaps between partitions not counted.
        walked: file systems walked.
        entries: rows of `files`.
        hashed: rows of `files` with a SHA-256.
        gaps: things not seen; `coverage` has them, those of a kind beyond 200 as one count.
    """

    volumes: int
    walked: int
    entries: int
    hashed: int
    gaps: int


def walk_image(image: Readable, *, item: str, item_digest: str, sink: Sink) -> Summary:
    """Record every entry of every file system of `image` in `sink`.

    Rows come in the order of the directories, a parent before its children, the root as "/".
    """
    serial = Serial(image)
    notes: list[str] = []
    found = volumes(serial, notes)
    walked = entries = hashed = gaps = 0
    with _collector_paused(), Hasher(serial) as hasher:
        for volume in (None, *found):
            out = Recorder(sink, hasher, evidence=(item, item_digest), tool=_ABOUT, before=entries)
            if volume:
                _walk(serial, volume, out)
            else:
                for note in notes:
                    out.gap("partition-table", note)
                if not found:
                    out.gap("image", "the image is empty")
            out.close()
            walked += out.found > 0
            entries, hashed, gaps = entries + out.found, hashed + out.hashed, gaps + out.gaps
    count = sum(one.kind != "unallocated" for one in found)
    return Summary(count, walked, entries, hashed, gaps)


def _walk(image: Serial, volume: Volume, out: Recorder) -> None:
    offset, length = volume.offset, volume.length
    out.volume = volume.name, offset
    if volume.reason or volume.kind not in WALKABLE:
        what = "unallocated" if volume.kind == "unallocated" else "volume"
        out.gap(what, volume.reason, offset=offset, length=length)
        return
    reader, out.tool = READERS[volume.kind]
    try:
        walk = reader(image, volume)
    except (DamagedError, *TSK_ERRORS) as error:
        reason = f"recognised as {volume.kind}, but not usable: {line(error)}"
        out.gap("file-system", reason, offset=offset, length=length)
        return
    out.fs = walk.kind
    walk.run(out)
    out.flush()
    if not out.found:
        out.gap("file-system", "recognised, but it has no entry", offset=offset, length=length)


@contextmanager
def _collector_paused() -> Iterator[None]:
    # Rows are many and make no cycles: collecting costs 7 % and frees nothing.
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
