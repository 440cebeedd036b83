# SPDX-License-Identifier: Apache-2.0
"""Building blocks for store tests: a small case on disk, fake sources, ways to damage it."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from evidence_store.backend import Backend, LocalBackend
from evidence_store.checkpoint import LastSeen
from evidence_store.ledger import Draft, Scribe, entry_name
from evidence_store.model import (
    ZERO_DIGEST,
    Actor,
    Authority,
    CustodyEvent,
    Tool,
    canonical,
)
from evidence_store.sign import LocalSigner, sign_note
from evidence_store.store import Case, Store
from evidence_store.transfer import Member
from evidence_store.verify import Verdict, verify_case

SEGMENT = 65536
CASE = "T-1001"
AUTHORITY = Authority(ticket="T-1001", basis="warrant 17")


def make_signer(number: int) -> LocalSigner:
    """The same key for the same number, so that a failure can be repeated."""
    return LocalSigner(ec.derive_private_key(number, ec.SECP256R1()))


ENTRY, CHECKPOINT, STRANGER, SECOND = (make_signer(n) for n in (1001, 1002, 1003, 1004))


class FakeClock:
    """One second later at each look, unless set."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


def fake_ids(seed: str = "") -> Callable[[], str]:
    count = itertools.count()
    return lambda: str(uuid.uuid5(uuid.NAMESPACE_URL, f"{seed}{next(count)}"))


def make_scribe(signer: LocalSigner = ENTRY, seed: str = "") -> Scribe:
    return Scribe(
        Actor(asserted={"user": "examiner"}, host={"name": "lab"}),
        Tool(name="impound", version="0"),
        signer,
        clock=FakeClock(),
        new_id=fake_ids(seed),
    )


@dataclass
class World:
    """One store with one open case."""

    root: Path
    store: Store
    case: Case
    scribe: Scribe

    @property
    def folder(self) -> Path:
        return self.root / "cases" / CASE

    def note(self, text: str = "x") -> None:
        self.case.record(lambda: Draft("review.noted", {"note": text}))

    def seal(self) -> None:
        self.case.seal(CHECKPOINT)

    def entry(self, seq: int) -> Path:
        return self.folder / "ledger" / entry_name(seq)

    def verify(
        self, *, deep: bool = True, linear: bool = False, last_seen: LastSeen | None = None
    ) -> Verdict:
        return verify(self.root, deep=deep, linear=linear, last_seen=last_seen)

    def copy(self, to: Path) -> World:
        shutil.copytree(self.root, to, symlinks=True)
        store = Store(LocalBackend(to), self.scribe)
        return World(to, store, Case(store, CASE), self.scribe)


def make_world(
    root: Path,
    *,
    backend: Backend | None = None,
    last_seen: LastSeen | None = None,
    deployment: str = "local",
    scribe: Scribe | None = None,
) -> World:
    scribe = scribe or make_scribe()
    store = Store(backend or LocalBackend(root), scribe, last_seen)
    case = store.create_case(
        CASE, AUTHORITY, deployment=deployment, title="lab", contact="soc@example.org",
        checkpoint_key=CHECKPOINT.public,
    )  # fmt: skip
    return World(root, store, case, scribe)


def verify(
    root: Path,
    *,
    deep: bool = True,
    linear: bool = False,
    last_seen: LastSeen | None = None,
    case_id: str = CASE,
) -> Verdict:
    """Verify as a stranger would: nothing of the writer's memory is used."""
    case = Case(Store(LocalBackend(root), None, last_seen), case_id)
    return verify_case(case, deep=deep, linear=linear)


def fill(world: World) -> None:
    """Two items: an image with a hole, a zero segment and an unreadable gap, and a file set."""
    data = pattern(SEGMENT) + bytes(2 * SEGMENT) + pattern(3 * SEGMENT // 2, 7)
    image = FakeImage(data, holes=[(SEGMENT, SEGMENT)], bad=[(3 * SEGMENT + 4096, 4096)])
    world.case.ingest("disk", image, segment_size=SEGMENT)
    files = {b"etc/hosts": pattern(300), b"bad\xff\nname": b"", b"var/log/syslog": pattern(5000, 3)}
    world.case.ingest("logs", FakeSet(files))
    world.seal()


def pattern(size: int, seed: int = 1) -> bytes:
    """Bytes that differ everywhere and hold no zero run."""
    block = hashlib.sha512(bytes([seed])).digest().replace(b"\0", b"\1")
    out = bytearray((block * (size // len(block) + 1))[:size])
    for at in range(0, size, 4096):
        out[at : at + 4] = (at + seed).to_bytes(4, "big")[: size - at]
    return bytes(out)


@dataclass
class FakeImage:
    """An image in memory; `bad` ranges (offset, length) raise EIO, `holes` are not to be read."""

    data: bytes
    text: str = "laptop 7"
    holes: list[tuple[int, int]] = field(default_factory=list)
    bad: list[tuple[int, int]] = field(default_factory=list)
    serial: str = "S1"
    changed: list[str] = field(default_factory=list)
    on_read: Callable[[int], None] = lambda _offset: None
    method: str = "a fake"

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def facts(self) -> dict[str, str]:
        return {"type": "fake", "serial": self.serial}

    @property
    def identity(self) -> dict[str, object] | None:
        return {"serial": self.serial, "size": self.size}

    def readinto(self, view: memoryview, offset: int) -> int:
        self.on_read(offset)
        end = offset + len(view)
        for start, length in self.bad:
            if start < end and offset < start + length:
                raise OSError(5, "Input/output error")
        for start, length in self.holes:
            if start <= offset < start + length:
                raise AssertionError(f"a hole was read: {offset}+{len(view)}")
        part = self.data[offset:end]
        view[: len(part)] = part
        return len(part)

    def next_data(self, offset: int) -> int:
        for start, length in self.holes:
            if start <= offset < start + length:
                return start + length
        return offset

    def changes(self) -> list[str]:
        return list(self.changed)


@dataclass
class FakeStream:
    """Bytes in odd pieces, once; fails at `fails_at`."""

    data: bytes
    text: str = "pipe"
    piece: int = 10007
    fails_at: int | None = None
    method: str = "a fake stream"
    identity: None = None
    _at: int = 0

    @property
    def facts(self) -> dict[str, str]:
        return {"type": "stream"}

    def readinto(self, view: memoryview) -> int:
        if self.fails_at is not None and self._at >= self.fails_at:
            raise OSError(5, "Input/output error")
        part = self.data[self._at : self._at + min(len(view), self.piece)]
        view[: len(part)] = part
        self._at += len(part)
        return len(part)

    def changes(self) -> list[str]:
        return []


@dataclass
class FakeSet:
    """Files in memory; a value that is an OSError is raised while reading."""

    files: dict[bytes, bytes | OSError]
    text: str = "folder"
    serial: str = "F1"
    left_out: list[str] = field(default_factory=list)
    method: str = "a fake set"

    @property
    def facts(self) -> dict[str, str]:
        return {"type": "fake set"}

    @property
    def identity(self) -> dict[str, object] | None:
        return {"serial": self.serial}

    def members(self) -> Iterable[Member]:
        for name in sorted(self.files):
            yield Member(name, {"mode": "100644"}, lambda name=name: self._chunks(name))

    def _chunks(self, name: bytes) -> Iterator[bytes]:
        content = self.files[name]
        if isinstance(content, OSError):
            yield b"begun"
            raise content
        for at in range(0, len(content), 1000):
            yield content[at : at + 1000]

    def skipped(self) -> list[str]:
        return list(self.left_out)

    def changes(self) -> list[str]:
        return []


def assert_broken(world, about="", **how):
    verdict = world.verify(**how)
    assert verdict.outcome == "broken"
    assert verdict.exit_code == 10
    assert any(about in str(f) for f in verdict.findings), verdict.findings
    return verdict


# -- damage ----------------------------------------------------------------------------------------


def rewrite(path: Path, body: bytes) -> None:
    """Replace a file, whatever its mode."""
    path.unlink()
    path.write_bytes(body)


def flip(path: Path, bit: int) -> None:
    body = bytearray(path.read_bytes())
    body[bit // 8] ^= 1 << bit % 8
    rewrite(path, bytes(body))


def bits(path: Path) -> int:
    return path.stat().st_size * 8


def forge(world: World, change: Callable[[CustodyEvent], CustodyEvent]) -> None:
    """Rewrite and seal the ledger again, as somebody with the store and both keys can."""
    shutil.rmtree(world.folder / "checkpoints")
    prev = ZERO_DIGEST
    for seq, event in enumerate(world.store.case(CASE).ledger.events):
        forged = change(event).model_copy(update={"prev": prev})
        raw = sign_note(forged.text(), "local/entry", ENTRY)
        rewrite(world.entry(seq), raw)
        prev = hashlib.sha256(raw).hexdigest()
    Case(Store(LocalBackend(world.root), world.scribe), CASE).seal(CHECKPOINT)


def forge_item(
    world: World,
    item: str,
    manifest: Callable[[dict[str, Any]], object] = lambda _manifest: None,
    members: Callable[[bytes], bytes] | None = None,
    content: str | None = None,
    segments: Callable[[bytes], bytes] = lambda body: body,
) -> None:
    """Change what describes an item, and sign every entry again so that they name it."""
    folder = world.folder / "items" / item
    described = json.loads((folder / "manifest.json").read_bytes())
    listing = segments((folder / "segments.sha256").read_bytes())
    rewrite(folder / "segments.sha256", listing)
    root = described["image_root"] = hashlib.sha256(listing).hexdigest()
    if members:
        body = members((folder / "members.jsonl").read_bytes())
        rewrite(folder / "members.jsonl", body)
        described["members"] = {"count": body.count(b"\n"), "size": len(body),
                                "sha256": hashlib.sha256(body).hexdigest()}  # fmt: skip
    manifest(described)
    raw = canonical(described) + b"\n"
    rewrite(folder / "manifest.json", raw)
    facts = {"sha256": hashlib.sha256(raw).hexdigest(), "size": len(raw)}

    def change(event: CustodyEvent) -> CustodyEvent:
        if (event.action, event.item) != ("item.acquired", item):
            return event
        objects = []
        for stored in event.objects or []:
            if stored.uri.endswith("/manifest.json"):
                objects.append(stored.model_copy(update=facts))
            elif stored.uri.endswith("/segments.sha256"):
                objects.append(stored.model_copy(update={"sha256": root, "size": len(listing)}))
            elif stored.as_ == "content" and content:
                objects.append(stored.model_copy(update={"sha256": content}))
            else:
                objects.append(stored)
        return event.model_copy(update={"objects": objects})

    forge(world, change)


def _more(field: str) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: manifest.update({field: manifest[field] + 1})


def _set(field: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: manifest.update({field: value})


_HOLE = b"# hole 0000000000000001 2\n"  # the hole of the image in `fill`, of 5 segments


def _hole(other: bytes) -> dict[str, Callable[[bytes], bytes]]:
    return {"segments": lambda body: body.replace(_HOLE, other)}


def _lines(change: Callable[[list[bytes]], list[bytes]]) -> dict[str, Callable[[bytes], bytes]]:
    return {"segments": lambda body: b"".join(change(body.splitlines(keepends=True)))}


_HOSTS = b'"object": "0000000000000001"'  # the line of etc/hosts in `fill`


def _line(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    def changed(body: bytes) -> bytes:
        lines = body.splitlines(keepends=True)
        return b"".join(change(line) if _HOSTS in line else line for line in lines)

    return changed


# What somebody with both keys can make an item of `fill` say of itself: what is wrong with it ->
# (item, arguments of `forge_item`, what the verdict says, what verify.sh says).
LIES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    **{
        f"{field} of the manifest": ("E0001", {"manifest": _more(field)}, python, shell)
        for field, python, shell in [
            ("size", "speak of different items", "disagree on size"),
            ("segment_size", "speak of different items", "disagree on size"),
            ("stored_objects", "speak of different items", "disagree on what is stored"),
            ("stored_bytes", "how much is stored or zero", "disagree on what is stored"),
            ("holes_bytes", "how much is stored or zero", "disagree on how much is zero"),
            ("unreadable_bytes", "on what was unreadable", "disagree on what was unreadable"),
        ]
    },
    "a linear digest that the entry does not state": (
        "E0001", {"manifest": _set("content", {"sha256": "0" * 64})},
        "different linear digests", "different linear digests",
    ),
    "a linear digest that the manifest does not state": (
        "E0001", {"manifest": _set("content", None)},
        "different linear digests", "different linear digests",
    ),
    "a set that has no members": (
        "E0002", {"manifest": _set("members", None)}, "it is no set", "names no members.jsonl",
    ),
    "an image that is a set": (
        "E0001", {"manifest": _set("layout", "set")}, "it is no set", "it is no \"set\"",
    ),
    "a set that is an image": (
        "E0002", {"manifest": _set("layout", "image")}, "it is no image", "contradicts itself",
    ),
    "an image that has members": (
        "E0001",
        {"manifest": _set("members", {"count": 0, "size": 0, "sha256": ZERO_DIGEST})},
        "it is no image", "contradicts itself",
    ),
    "a set that has a linear digest": (
        "E0002", {"manifest": _set("content", {"sha256": "0" * 64}), "content": "0" * 64},
        "it is no set", "different linear digests",
    ),
    "a list without a hole": (
        "E0001", _hole(b""), "account for segment 1", "account for segment 1",
    ),
    "a hole that is too short": (
        "E0001", _hole(b"# hole 0000000000000001 1\n"),
        "account for segment 2", "account for segment 2",
    ),
    "a hole over a stored segment": (
        "E0001", _hole(b"# hole 0000000000000001 3\n"), "lists a segment twice", "segment twice",
    ),
    "a hole beyond the end": (
        "E0001", _lines(lambda x: [*x[:-1], b"# hole 0000000000000005 1\n", x[-1]]),
        "beyond the end", "beyond the end",
    ),
    "a hole beyond all numbers": (
        "E0001", _lines(lambda x: [*x[:-1], b"# hole ffffffffffffffff 1\n", x[-1]]),
        "beyond the end", "beyond the end",
    ),
    "a hole that no number counts": (
        "E0001", _hole(b"# hole 0000000000000001 99999999999999999999\n"),
        "beyond the end", "is malformed",
    ),
    "a hole that is unreadable in part": (
        "E0001", _lines(lambda x: [*(y for y in x[:-1] if y != _HOLE),
                                   b"# unreadable 65536 131071\n", x[-1]]),
        "account for segment 1", "account for segment 1",
    ),
    "a hole that is unreadable in two pieces": (
        "E0001", _lines(lambda x: [
            *(y for y in x[:-1] if y != _HOLE),
            b"# unreadable 65536 65536\n", b"# unreadable 131072 65536\n", x[-1],
        ]),
        "not in canonical form", "account for segment 1",
    ),
    "a list without its last segment": (
        "E0001", _lines(lambda x: [*x[:-2], x[-1]]), "segment 4", "segment 4",
    ),
    "a list in another order": (
        "E0001", _lines(lambda x: [*x[:3], x[5], x[4], x[3], *x[6:]]),
        "not in canonical form", "not in order",
    ),
    "a list that names an object twice": (
        "E0002", _lines(lambda x: [*x, x[-1]]), "not in canonical form", "not in order",
    ),
    "a list of an image that names a file": (
        "E0001", _lines(lambda x: [*x[:-1], b"0" * 64 + b"  data/x\n", x[-1]]),
        "is no segment", "is no segment",
    ),
    "a list of no known version": (
        "E0001", {"segments": lambda x: x.replace(b"segments 1", b"segments 2")},
        "has no header", "is malformed",
    ),
    "a list with a line of no form": (
        "E0001", {"segments": lambda x: x + b"# holes\n"}, "no known form", "is malformed",
    ),
    "a list with a number that starts with zero": (
        "E0001", {"segments": lambda x: x.replace(b"# unreadable ", b"# unreadable 0")},
        "no known form", "is malformed",
    ),
    "a count of members": (
        "E0002", {"manifest": lambda m: m["members"].update(count=4)},
        "has 3 lines, recorded 4", "has 3 lines, recorded 4",
    ),
    "a size of members": (
        "E0002", {"manifest": lambda m: m["members"].update(size=m["members"]["size"] + 1)},
        "is not what was recorded", "is not what was recorded",
    ),
    "a digest in members": (
        "E0002",
        {"members": _line(lambda x: re.sub(rb'"sha256": "[0-9a-f]{4}', b'"sha256": "0000', x))},
        "states another SHA-256", "is not in the segment list",
    ),
    "a size in members": (
        "E0002", {"members": _line(lambda x: x.replace(b"300", b"301"))},
        "states another size", "is another size",
    ),
    "a member that is missing": (
        "E0002", {"members": _line(lambda _: b"")}, "does not name 1 stored", "is not in members",
    ),
    "a member that is there twice": (
        "E0002", {"members": _line(lambda x: x + x)}, "was named before", "stands twice",
    ),
    "a member that is not stored": (
        "E0002", {"members": _line(lambda x: x + x.replace(b"0001", b"0009"))},
        "does not have", "is not in the segment list",
    ),
    "a member of no form": (
        "E0002", {"members": _line(lambda x: x + b"{}\n")}, "has no name", "no known form",
    ),
    "a member without object": (
        "E0002", {"members": _line(lambda x: x.replace(_HOSTS + b", ", b""))},
        "does not say which object", "no known form",
    ),
    "a member without name": (
        "E0002", {"members": _line(lambda x: x.replace(b'"name"', b'"nick"'))},
        "has no name", "no known form",
    ),
    "a member with two objects": (
        "E0002", {"members": _line(lambda x: x.replace(b"{", b'{"object": null, '))},
        "not an object in the form", "no known form",
    ),
    "a member with an object inside": (
        "E0002", {"members": _line(lambda x: x.replace(b"{", b'{"a": {"object": null}, '))},
        "more than texts and numbers", "no known form",
    ),
    "a last line that does not end": (
        "E0002", {"members": lambda x: x[:-1]}, "not an object in the form", "no known form",
    ),
    "a member that is no text": (
        "E0002", {"members": _line(lambda x: x + b"\xff\0\n")}, "is not JSON", "no known form",
    ),
}  # fmt: skip


def tree(root: Path) -> dict[str, bytes]:
    """Every file below `root` with its content."""
    return {
        os.path.relpath(path, root): Path(path).read_bytes()
        for folder, _, names in os.walk(root)
        for path in (os.path.join(folder, name) for name in names)  # noqa: PTH118
        if Path(path).is_file() and not Path(path).is_symlink()
    }
