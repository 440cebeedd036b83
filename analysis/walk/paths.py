# SPDX-License-Identifier: Apache-2.0
"""Only these paths: the part of a file system that patterns name, and no more of it.

A pattern is an absolute path. In a component `*`, `?` and `[…]` match as in a shell (a leading dot
too); a component `**` stands for any number of directories. On NTFS and FAT case does not count.

Invariants:

* Only directories below which a pattern can still match are listed, and only names that match are
  looked at.
* Symbolic links on the way of a pattern are followed, inside the volume, as Linux does: what a link
  names replaces it, `..` is the directory's own parent, and that of the root is the root. `**`
  follows none, and the last component is the link itself.
* Work is bounded: `MAX_LINKS` links for one pattern (as in path_resolution(7)), `MAX_WAYS` ways in
  all, `MAX_FOUND` entries; beyond it is a gap.

Source: glob(7), path_resolution(7).
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from itertools import dropwhile
from typing import TYPE_CHECKING, Any, Literal, Protocol

from analysis.walk.content import DamagedError
from analysis.walk.rows import line
from analysis.walk.tree import Descent, Place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from analysis.walk.rows import Entry, Recorder

MAX_LINKS = 40
MAX_WAYS = 5_000
MAX_FOUND = 50_000
MAX_PATTERN = 4096

States = frozenset[tuple[int, int]]
"""(number of a way, how many of its parts are matched)."""


class Tree(Protocol):
    """What a reader of a file system gives to `find`.

    Attributes:
        folds: names that differ in case only are one.
    """

    folds: bool

    @property
    def root(self) -> int:
        """Inode of the root directory."""

    def begin(self, out: Recorder) -> None:
        """Tell what of the file system as a whole is not seen."""

    def listed(self, inum: int, failed: list[str]) -> Iterator[tuple[bytes, int, Any]]:
        """Yield (name, inode, what `look` needs) of each live name in a directory.

        Raises: DamagedError, OSError; what ends a listing early is in `failed`.
        """

    def look(self, out: Recorder, place: Place, raw: bytes, inum: int, found: Any) -> bool:
        """Add the entries of one name to `out`; return whether it is a directory to enter."""

    def small(self, entry: Entry) -> bytes:
        """Return content that is kept beside the metadata, for which `entry.content` is None.

        Raises: DamagedError, OSError.
        """

    def end(self, out: Recorder) -> None:
        """Tell what only showed on the way."""


@dataclass(frozen=True)
class Part:
    """One component of a pattern. `kind` any: `**`; up: `..` of a link's target."""

    kind: Literal["name", "glob", "any", "up"]
    text: str

    def matches(self, name: str, *, folds: bool = False) -> bool:
        """Say whether a name matches."""
        want = self.text
        if folds:
            name, want = name.casefold(), want.casefold()
        if self.kind == "name":
            return name == want
        return self.kind == "glob" and _regex(want).fullmatch(name) is not None


_compiled: dict[str, re.Pattern[str]] = {}


def _regex(glob: str) -> re.Pattern[str]:
    if glob not in _compiled:
        _compiled[glob] = re.compile(fnmatch.translate(glob))
    return _compiled[glob]


def parse(pattern: str) -> tuple[Part, ...]:
    """Return the parts of a pattern.

    >>> [(p.kind, p.text) for p in parse("/root//.ssh/*")]
    [('name', 'root'), ('name', '.ssh'), ('glob', '*')]

    Raises: ValueError, saying what is wrong.
    """
    if not pattern.startswith("/"):
        raise ValueError("is not an absolute path")
    if len(pattern) > MAX_PATTERN or "\0" in pattern:
        raise ValueError(f"is longer than {MAX_PATTERN} characters, or holds a NUL")
    names = [name for name in pattern.split("/") if name not in ("", ".")]
    if ".." in names:
        raise ValueError("holds '..'; write the path without it")
    if not names:
        raise ValueError("names the root only; /* names what is in it")
    parts: list[Part] = []
    for name in names:
        if name == "**":
            if not parts or parts[-1].kind != "any":
                parts.append(Part("any", name))
        else:
            parts.append(Part("glob" if re.search(r"[*?\[]", name) else "name", name))
    return tuple(parts)


@dataclass(frozen=True)
class Way:
    """A pattern, or what became of it where a link was followed. `of`: the pattern's number."""

    of: int
    parts: tuple[Part, ...]
    links: int = 0


class Ways:
    """Several ways at once as one automaton: which names go on, which are found."""

    def __init__(self, ways: Iterable[Way], *, folds: bool = False) -> None:
        self.ways = [*ways]
        self._folds = folds

    def start(self) -> States:
        """States of the root directory."""
        return self._closed({(n, 0) for n in range(len(self.ways))})

    def step(self, states: States, name: str) -> tuple[States, States]:
        """Return the states after `name`, and those of them in which it was named, not by `**`."""
        kept: set[tuple[int, int]] = set()
        named: set[tuple[int, int]] = set()
        for way, at in states:
            if at >= len(self.ways[way].parts):
                continue
            part = self.ways[way].parts[at]
            if part.kind == "any":
                kept.add((way, at))
            elif part.matches(name, folds=self._folds):
                named.add((way, at + 1))
        return self._closed(kept | named), frozenset(named)

    def _closed(self, states: set[tuple[int, int]]) -> States:
        """Add those that follow because `**` also stands for no directory at all."""
        more = {(n, at + 1) for n, at in states if self._kind(n, at) == "any"}
        return frozenset(states | more)  # never two `**` in a row

    def _kind(self, way: int, at: int) -> str:
        parts = self.ways[way].parts
        return parts[at].kind if at < len(parts) else ""

    def found(self, states: States) -> set[int]:
        """Return the numbers of the patterns that are matched."""
        return {self.ways[n].of for n, at in states if at == len(self.ways[n].parts)}

    def open(self, states: Iterable[tuple[int, int]]) -> list[tuple[Way, tuple[Part, ...]]]:
        """Return (way, parts still to match) of the others."""
        return [
            (self.ways[n], self.ways[n].parts[at:])
            for n, at in sorted(states) if at < len(self.ways[n].parts)
        ]  # fmt: skip


@dataclass(frozen=True)
class Found:
    """What a name led to. `patterns`: numbers of those that name it; empty: a link on the way."""

    entries: list[Entry]
    patterns: frozenset[int]


class Finder:
    """One search of one file system; `run` does it. Then `matched` are the patterns' numbers."""

    def __init__(
        self,
        tree: Tree,
        out: Recorder,
        entries: list[Entry],
        take: Callable[[Found], None],
        most: int = MAX_FOUND,
    ) -> None:
        """`entries`: where `out` puts what it is told; `take` gets each path once."""
        self._tree = tree
        self._out = out
        self._entries = entries
        self._take = take
        self._left = most
        self._known: set[tuple[str, str | None]] = set()
        self._waiting: list[Way] = []
        self._ways: set[tuple[int, tuple[Part, ...]]] = set()
        self.matched: set[int] = set()
        self.followed: dict[str, str] = {}

    def run(self, patterns: Iterable[tuple[Part, ...]]) -> None:
        """Find what the patterns name. Raises: what `take` and the image raise beside OSError."""
        self._tree.begin(self._out)
        for number, parts in enumerate(patterns):
            self._add(Way(number, parts))
        while self._waiting and self._left > 0:
            ways, self._waiting = self._waiting, []
            self._round(Ways(ways, folds=self._tree.folds))
        if self._left <= 0:
            self._out.gap("file-system", "more entries match than are taken; the rest is not")
        self._tree.end(self._out)

    def _add(self, way: Way) -> None:
        parts = tuple(dropwhile(lambda part: part.kind == "up", way.parts))  # from the root
        key, way = (way.of, parts), Way(way.of, parts, way.links)
        if key in self._ways:
            return
        if len(self._ways) >= MAX_WAYS:
            self._out.gap("directory", f"more than {MAX_WAYS} ways through links: not followed",
                          kind="too many links")  # fmt: skip
            return
        self._ways.add(key)
        self._waiting.append(way)

    def _round(self, ways: Ways) -> None:
        """Go all `ways` from the root once."""
        root = Place(self._tree.root, "", None, 0)
        descent = Descent(self._out, root.inode)
        stack: list[tuple[Place, tuple[str, ...], States]] = [(root, (), ways.start())]
        while stack and self._left > 0:
            place, names, states = stack.pop()
            inner = []
            failed: list[str] = []
            for raw, inum, found in self._listed(place.inode, failed):
                name = raw.decode("utf-8", "surrogateescape")
                after, named = ways.step(states, name)
                if not after:
                    continue
                is_directory = self._tree.look(self._out, place, raw, inum, found)
                entries = [*self._entries]
                self._entries.clear()
                link = next((e.link_target for e in entries if e.type == "symlink"), None)
                goes_on = is_directory and ways.open(after)
                through = link is not None and ways.open(named)
                if through and link is not None:
                    self.followed[entries[0].path] = link
                self._give(entries, frozenset(ways.found(after)), on_the_way=bool(through))
                if self._left <= 0:
                    break
                for way, rest in through or ():
                    self._follow(way, names, link or "", rest)
                if goes_on:
                    for way, rest in goes_on:
                        if rest[0].kind == "up":  # of a link's target: `name` was a directory
                            self._add(Way(way.of, (*_literal(names), *rest[1:]), way.links))
                    entered = descent.enter(place, raw, inum)
                    if entered:
                        inner.append((entered, (*names, name), after))
            for reason in failed:
                self._out.gap("directory", reason, path=place.path or "/",
                              kind="damaged directory")  # fmt: skip
            stack += reversed(inner)

    def _listed(self, inum: int, failed: list[str]) -> Iterator[tuple[bytes, int, Any]]:
        names = self._tree.listed(inum, failed)
        while True:
            try:
                one = next(names)
            except StopIteration:
                return
            except (DamagedError, OSError) as error:
                failed.append(line(error))
                return
            yield one

    def _give(self, entries: list[Entry], patterns: frozenset[int], *, on_the_way: bool) -> None:
        self.matched |= patterns
        if not patterns and not on_the_way:
            return
        fresh = [e for e in entries if (e.path, e.stream) not in self._known]
        self._known |= {(e.path, e.stream) for e in fresh}
        if fresh:
            self._left -= len(fresh)
            self._take(Found(fresh, patterns))

    def _follow(
        self, way: Way, names: tuple[str, ...], target: str, rest: tuple[Part, ...]
    ) -> None:
        """Put what a link names in its place. `names`: of the directory that it lies in."""
        if way.links >= MAX_LINKS:
            self._out.gap("directory", f"more than {MAX_LINKS} links, one leading to the next",
                          path="/" + "/".join(names), kind="link loop")  # fmt: skip
            return
        parts = [] if target.startswith("/") else [*_literal(names)]
        for name in target.split("/"):
            if name == "..":
                if not parts:
                    continue
                if len(parts) <= len(names) and not target.startswith("/"):
                    parts.pop()  # these are directories themselves, and no links
                    names = names[: len(parts)]
                else:
                    parts.append(Part("up", name))
            elif name not in ("", "."):
                parts.append(Part("name", name))
        self._add(Way(way.of, (*parts, *rest), way.links + 1))


def _literal(names: Iterable[str]) -> tuple[Part, ...]:
    return tuple(Part("name", name) for name in names)
