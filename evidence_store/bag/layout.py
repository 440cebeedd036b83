# SPDX-License-Identifier: Apache-2.0
"""The folder of a bag: names, lists of digests, `bag-info.txt`.

    bagit.txt  bag-info.txt  manifest-sha256.txt  tagmanifest-sha256.txt  bag.note
    VERIFY.txt  verify.sh  keys/<kid>.pem  case.jsonld  custody.csv  custody.html
    data/store.json  data/cases/<case>/…           the store's own layout
    data/raw/<item>/disk.raw                       images once more, where asked for

A reader is stricter than RFC 8493: one algorithm, one form of line, names of the store's form, no
`fetch.txt`. What an export wrote passes; anything else is not what an export wrote.

Source: RFC 8493; docs/format.md §11.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from evidence_store.backend import check_key, translate
from evidence_store.errors import IntegrityError, StoreError
from evidence_store.model import ITEM_ID, CustodyEvent, clean

BAGIT = b"BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n"
DECLARATION = "bagit.txt"
INFO = "bag-info.txt"
MANIFEST = "manifest-sha256.txt"
TAG_MANIFEST = "tagmanifest-sha256.txt"
NOTE = "bag.note"
PLAN = "export-unfinished.json"
PARTIAL = "export-partial"
RAW = "data/raw"
REQUIRED_TAGS = frozenset({DECLARATION, INFO, MANIFEST})
KNOWN_TAGS = REQUIRED_TAGS | {
    "VERIFY.txt", "verify.sh", "case.jsonld", "custody.csv", "custody.html",
}  # fmt: skip
MAX_TAG_BYTES = 1 << 16
_LINE = re.compile(rb"([0-9a-f]{64})  ([\x21-\x7e]{1,600})\n")
_INFO_LINE = re.compile(r"([A-Za-z0-9-]{1,60}): ([^\n]{0,2000})")


@dataclass(frozen=True)
class Found:
    """One thing in the folder of a bag. `problem`: why it is no file of a bag, or ""."""

    name: str
    size: int
    problem: str = ""


def walk(root: Path) -> Iterator[Found]:
    """Yield every file below `root`, and whatever is no file; links are never followed.

    Raises: StoreError if a folder cannot be read.
    """
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        try:
            entries = sorted(os.scandir(root / folder), key=lambda e: e.name)
        except OSError as e:
            raise translate(e, f"cannot list {shown(folder or '.')} of the bag") from e
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            try:
                check_key(name)
                found = entry.stat(follow_symlinks=False)
            except ValueError:
                yield Found(name, 0, "has a name that no export writes")
                continue
            except OSError as e:
                raise translate(e, f"cannot look at {shown(name)} of the bag") from e
            if stat.S_ISDIR(found.st_mode):
                waiting.append(name)
            elif stat.S_ISREG(found.st_mode):
                yield Found(name, found.st_size)
            else:
                yield Found(name, 0, "is a link or a special file")


def shown(name: str) -> str:
    """Return a name fit for a message."""
    return clean(name, 200)


def open_file(root: Path, name: str) -> int:
    """Return a read-only descriptor of a regular file. Raises: StoreError."""
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        fd = os.open(root / name, flags)
    except OSError as e:
        raise translate(e, f"cannot read {shown(name)} of the bag") from e
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise StoreError(f"{shown(name)} of the bag is not a regular file")
    return fd


def read_file(root: Path, name: str, limit: int) -> bytes:
    """Return a small file of the bag. Raises: IntegrityError above `limit` bytes; StoreError."""
    with os.fdopen(open_file(root, name), "rb") as f:
        try:
            body = f.read(limit + 1)
        except OSError as e:
            raise translate(e, f"cannot read {shown(name)} of the bag") from e
    if len(body) > limit:
        raise IntegrityError(f"has more than {limit} bytes")
    return body


def read_listing(root: Path, name: str, fits: Callable[[str], bool], most: int) -> dict[str, str]:
    """Return path -> SHA-256 of `manifest-sha256.txt` or `tagmanifest-sha256.txt`.

    `fits` says which paths may stand there, `most` how many. Raises: IntegrityError; StoreError.
    """
    listed: dict[str, str] = {}
    folded: set[str] = set()
    with os.fdopen(open_file(root, name), "rb") as f:
        number = 0
        while line := f.readline(1024):
            number += 1
            match = _LINE.fullmatch(line)
            if number > most:
                raise IntegrityError(f"names more than {most} files; so many are not there")
            if match is None:
                raise IntegrityError(f"line {number} has not the form of an export")
            path = match[2].decode()
            try:
                check_key(path)
            except ValueError:
                raise IntegrityError(f"line {number} names {shown(path)!r}") from None
            if not fits(path):
                raise IntegrityError(f"line {number} names {shown(path)}, which cannot be there")
            if path.lower() in folded:
                raise IntegrityError(f"line {number} names {shown(path)} again (but for case)")
            folded.add(path.lower())
            listed[path] = match[1].decode()
    if not listed:
        raise IntegrityError("is empty")
    return listed


def encode_listing(digests: Mapping[str, str]) -> Iterator[bytes]:
    """Yield the lines of a list of digests, sorted by path."""
    for path in sorted(digests):
        yield f"{digests[path]}  {path}\n".encode()


def encode_info(fields: Iterable[tuple[str, str]]) -> bytes:
    """Return the bytes of `bag-info.txt`, one line a field."""
    return "".join(f"{name}: {clean(value, 500)}\n" for name, value in fields).encode()


def parse_info(raw: bytes) -> dict[str, str]:
    """Return the fields of `bag-info.txt`; each once, one line each.

    Raises: IntegrityError.
    """
    try:
        lines = raw.decode().split("\n")
    except UnicodeDecodeError as e:
        raise IntegrityError("is not UTF-8") from e
    if lines.pop() != "":
        raise IntegrityError("has no end")
    fields: dict[str, str] = {}
    for line in lines:
        match = _INFO_LINE.fullmatch(line)
        if match is None or match[1] in fields or match[2] != clean(match[2]):
            raise IntegrityError("has a line of no known form, or a field twice")
        fields[match[1]] = match[2]
    return fields


def bag_text(export_id: str, tag_manifest_sha256: str) -> bytes:
    """Return what `bag.note` signs."""
    return f"impound bag 1\n{export_id}\n{tag_manifest_sha256}\n".encode()


# -- sets of items ---------------------------------------------------------------------------------


def encode_items(items: Iterable[str]) -> str:
    """Return item ids as text: sorted, runs joined.

    >>> encode_items(["E0007", "E0001", "E0002", "E0003"])
    'E0001-E0003 E0007'
    """
    numbers = sorted({int(item[1:]) for item in items})
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return " ".join(
        f"E{first:04d}" if first == last else f"E{first:04d}-E{last:04d}" for first, last in runs
    )


def decode_items(text: str) -> Callable[[str], bool]:
    """Return what tells whether an item is in the set. Raises: IntegrityError.

    >>> [decode_items("E0001-E0003 E0007")(item) for item in ("E0002", "E0004")]
    [True, False]
    """
    runs: list[tuple[int, int]] = []
    for part in text.split(" ") if text else []:
        first, _, last = part.partition("-")
        last = last or first
        if not (ITEM_ID.fullmatch(first) and ITEM_ID.fullmatch(last)):
            raise IntegrityError("malformed list of items")
        runs.append((int(first[1:]), int(last[1:])))
    return lambda item: any(first <= int(item[1:]) <= last for first, last in runs)


def last_export(events: Iterable[CustodyEvent]) -> CustodyEvent | None:
    """Return the newest `item.exported`: it says what a bag must hold."""
    exports = [e for e in events if e.action == "item.exported" and "export_id" in (e.data or {})]
    return exports[-1] if exports else None


def left_out(event: CustodyEvent) -> Callable[[str], bool]:
    """Return what tells whether the export left an item out. Raises: IntegrityError."""
    return decode_items(str((event.data or {}).get("left_out", "")))
