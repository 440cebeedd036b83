# SPDX-License-Identifier: Apache-2.0
"""The directory tree of a volume: safe paths, and which directories are entered.

Invariants:

* Each directory is entered once, however often and however deep it is named.
* A live directory that is not entered is a gap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

from analysis.walk.rows import line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from analysis.walk.rows import Recorder

_T = TypeVar("_T")

MAX_DEPTH = 1024
MAX_PATH = 32_768
"""Directories deeper or longer (characters) than this are not entered; it is a gap."""

ORPHANS = "/$OrphanFiles"
"""Directory, as in TSK, of rows for inodes that have no name."""


class Place(NamedTuple):
    """A directory to enter: its inode, path ("" for the root), true bytes of it, and depth."""

    inode: int
    path: str
    raw: bytes | None
    depth: int


class Descent:
    """Remembers which directories of a volume were entered. Of the rest `too_deep` tells."""

    def __init__(self, out: Recorder, root: int, too_deep: str = "too deep to be entered") -> None:
        self._out = out
        self._entered = {root}
        self._too_deep = too_deep

    def __contains__(self, inode: int) -> bool:
        return inode in self._entered

    def enter(self, place: Place, raw: bytes, inode: int, *, live: bool = True) -> Place | None:
        """Return the directory `raw` of `place` as a place to enter, or None with the gap told.

        A name that is not `live` may lead to a directory already entered: that is no gap.
        """
        _, path, path_raw = below(place, raw)
        if inode in self._entered:
            if live:
                self._out.gap("directory", f"inode {inode} is a directory already entered",
                              path=path, kind="loop")  # fmt: skip
            return None
        if place.depth >= MAX_DEPTH or len(path) > MAX_PATH:
            self._out.gap("directory", self._too_deep, path=path[:MAX_PATH], kind="too deep")
            return None
        self._entered.add(inode)
        return Place(inode, path, path_raw, place.depth + 1)


def text(raw: bytes) -> tuple[str, bool]:
    r"""Return `raw` as text, and whether it had to be escaped (see `analysis.schema`).

    >>> text(b"caf\xc3\xa9"), text(b"a/b"), text(b"\xff")
    (('café', False), ('a\\x2fb', True), ('\\xff', True))
    """
    try:
        found = raw.decode()
        escaped = False
    except UnicodeDecodeError:
        found = raw.decode("utf-8", "backslashreplace")
        escaped = True
    if "/" in found or "\0" in found:
        return found.replace("/", "\\x2f").replace("\0", "\\x00"), True
    return found, escaped


def below(place: Place, raw: bytes) -> tuple[str, str, bytes | None]:
    """Return (name, path, path_raw) of the entry `raw` in `place`."""
    if place.raw is None and b"/" not in raw and b"\0" not in raw:
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            pass
        else:
            return name, f"{place.path}/{name}", None
    name, escaped = text(raw)
    path = f"{place.path}/{name}"
    if place.raw is not None:
        return name, path, place.raw + b"/" + raw
    return name, path, place.path.encode() + b"/" + raw if escaped else None


def guarded(
    items: Iterator[_T], failed: list[str], errors: tuple[type[Exception], ...], again: int = 0
) -> Iterator[_T]:
    """Yield from `items` until it raises one of `errors`, which goes to `failed`.

    So an error of the evidence ends a listing, and an error of the sink is not taken for one.
    `again`: how many errors to pass over where `items` can go on.
    """
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except errors as error:
            failed.append(line(error))
            if len(failed) > again:
                return
            continue
        yield item
