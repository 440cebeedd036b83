# SPDX-License-Identifier: Apache-2.0
"""Verification: recompute everything from the stored bytes and say what was and was not checked.

Steps, in this order
    1. `store.json` is the one that `case.opened` names.
    2. Every entry: canonical, in order, chained, signed by a key allowed at that point.
    3. Nothing else lies in `ledger/`, `checkpoints/`, `keys/`.
    4. Every checkpoint: signature, size, root, `last.proof`.
    5. What this user has seen before, outside the store, is a prefix.
    6. Every item: manifest and segment list as recorded; every object present with its size.
    7. Deep: SHA-256 of every object. A plain run does this only for file sets up to 256 MiB.
    8. What nobody recorded, what was never finished, and clocks that ran backwards, are notes.

A finding is broken evidence (exit 10); a note is a fact a reader should know (exit 3).
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from evidence_store.backend import ObjectNotFoundError, UnfitObjectError, sha256_of
from evidence_store.checkpoint import (
    Checkpoint,
    compare_with_checkpoint,
    encode_proof,
    read_checkpoint,
    root_from_proof,
)
from evidence_store.digest import SegmentList, segment_name
from evidence_store.errors import IntegrityError, ItemNotFoundError, StoreError
from evidence_store.item import Manifest
from evidence_store.ledger import entry_name

if TYPE_CHECKING:
    from evidence_store.store import Case

SMALL_SET_BYTES = 256 << 20
_CLOCK_TOLERANCE = timedelta(seconds=5)


@dataclass(frozen=True)
class Remark:
    """One finding or note: what it is about (a key or an item), and a sentence."""

    about: str
    text: str

    def __str__(self) -> str:
        return f"{self.about}: {self.text}"


@dataclass
class Verdict:
    """What a verification found.

    Attributes:
        findings: what is broken.
        notes: what is sound but should be known.
        entries: ledger entries verified.
        sealed: entries covered by the newest checkpoint.
        root: its root, base64, or "".
        first_key: fingerprint of the key that opened the case.
        items: complete items checked.
        objects: objects whose presence and size were checked.
        hashed_bytes: bytes of objects whose SHA-256 was recomputed.
        deep: whether all content was hashed.
    """

    case_id: str
    deep: bool
    findings: list[Remark] = field(default_factory=list)
    notes: list[Remark] = field(default_factory=list)
    entries: int = 0
    sealed: int = 0
    root: str = ""
    first_key: str = ""
    items: int = 0
    objects: int = 0
    hashed_bytes: int = 0

    @property
    def outcome(self) -> Literal["clean", "notes", "broken"]:
        """The verdict in a word."""
        if self.findings:
            return "broken"
        return "notes" if self.notes else "clean"

    @property
    def exit_code(self) -> int:
        """0 clean, 3 sound with notes, 10 broken."""
        return {"clean": 0, "notes": 3, "broken": 10}[self.outcome]


def verify_case(
    case: Case,
    *,
    deep: bool = False,
    workers: int = 2,
    progress: Callable[[int, int | None], None] = lambda _done, _total: None,
    receipt: tuple[int, str] | None = None,
    first_key: str | None = None,
) -> Verdict:
    """Verify a case; `case` need not have been refreshed. Writes nothing.

    Args:
        case: the case.
        deep: hash all content.
        workers: objects hashed at once.
        progress: called with (bytes hashed, None).
        receipt: (size, base64 root) that the ledger must extend, from a ticket or mail.
        first_key: fingerprint that the case's first key must have.

    Raises: StoreError only if the store itself cannot be read.
    """
    return _Verification(case, deep, workers, progress, receipt, first_key).run()


@dataclass
class _Verification:
    case: Case
    deep: bool
    workers: int
    progress: Callable[[int, int | None], None]
    receipt: tuple[int, str] | None
    first_key: str | None
    verdict: Verdict = field(init=False)
    done: int = 0

    def __post_init__(self) -> None:
        self.verdict = Verdict(self.case.case_id, self.deep)

    def run(self) -> Verdict:
        if self._ledger():
            self._binding()
            self._closed_folders()
            self._checkpoints()
            self._last_seen()
            self._expected()
            self._items()
            self._notes()
        return self.verdict

    def _broken(self, about: str, text: str) -> None:
        self.verdict.findings.append(Remark(about, text))

    def _note(self, about: str, text: str) -> None:
        self.verdict.notes.append(Remark(about, text))

    def _ledger(self) -> bool:
        ledger = self.case.ledger
        try:
            self.case.refresh()
            ledger.load_keys()
        except (IntegrityError, UnfitObjectError) as e:
            self._broken("ledger", str(e))
        if not ledger.entries:
            if not self.verdict.findings:
                self._broken("ledger", "there is no entry 0")
            return False
        self.verdict.entries = len(ledger.entries)
        self.verdict.first_key = ledger.ring.first
        return True

    def _binding(self) -> None:
        binding = self.case.ledger.entries[0].event.store
        try:
            identity = self.case.store.identity
        except (IntegrityError, StoreError) as e:
            self._broken("store.json", str(e))
            return
        if binding is None or binding.model_dump() != identity.__dict__:
            self._broken("store.json", "is not the store in which the case was opened")

    def _closed_folders(self) -> None:
        """Nothing may lie in the ledger, checkpoint and key folders that is not accounted for."""
        case, ledger = self.case, self.case.ledger
        for key in ledger.names_out_of_order():
            self._broken(key, "is not an entry of the ledger (a gap, or something put there)")
        listed = {
            f"{case.prefix}/keys/{k.kid}.pem" for e in ledger.events for k in e.keys or []
        }  # fmt: skip
        for stored in case.store.backend.list(f"{case.prefix}/keys"):
            if stored.key not in listed:
                # It has no power; an append that was refused or interrupted leaves one.
                self._note(stored.key, "is not logged: a key that the ledger does not name")
        for folder in ("keys", "checkpoints"):
            for key in case.store.backend.strays(f"{case.prefix}/{folder}"):
                self._broken(key, "is not a regular file of the store")

    def _checkpoints(self) -> None:
        case, ledger = self.case, self.case.ledger
        folders: dict[str, set[str]] = {}
        for stored in case.store.backend.list(f"{case.prefix}/checkpoints"):
            folder, _, name = stored.key.removeprefix(f"{case.prefix}/checkpoints/").rpartition("/")
            folders.setdefault(folder, set()).add(name)
        for folder, names in sorted(folders.items()):
            about = f"{case.prefix}/checkpoints/{folder}"
            if not (len(folder) == 16 and folder.isdigit()) or names - {"log.note", "last.proof"}:
                self._broken(about, "is not a checkpoint")
                continue
            if "log.note" not in names:
                # The proof is written first; the note that would make it count never came.
                self._note(about, "a checkpoint was begun and not finished")
                continue
            try:
                checkpoint = read_checkpoint(case, int(folder))
                self._proof(f"{about}/last.proof", checkpoint)
            except (IntegrityError, ObjectNotFoundError, UnfitObjectError) as e:
                self._broken(about, str(e))
                continue
            self.verdict.sealed, self.verdict.root = checkpoint.size, checkpoint.root_text
        unsealed = len(ledger.entries) - self.verdict.sealed
        if unsealed and not self.verdict.findings:
            self._note(
                "ledger",
                f"{unsealed} entries are not sealed by a checkpoint; cutting them off would not be "
                f"noticed (impound seal {case.case_id})",
            )

    def _proof(self, key: str, checkpoint: Checkpoint) -> None:
        raw = self.case.store.backend.read(key, 65536)
        try:
            steps = [base64.b64decode(line, validate=True) for line in raw.splitlines()]
        except binascii.Error as e:
            raise IntegrityError(f"{key} is malformed") from e
        leaf = self.case.ledger.leaves[checkpoint.size - 1]
        root = root_from_proof(leaf, checkpoint.size - 1, checkpoint.size, steps)
        if root != checkpoint.root or encode_proof(steps) != raw:
            raise IntegrityError(f"{key} does not lead to the root")

    def _last_seen(self) -> None:
        memory, ledger = self.case.store.last_seen, self.case.ledger
        if memory is None:
            return
        try:
            known = memory.get(self.case.store.identity.store_id, self.case.case_id)
            if known is None:
                return
            compare_with_checkpoint(ledger, known[0], "the checkpoint remembered by this user")
            if known[1] != ledger.ring.first:
                raise IntegrityError("the case was opened with another key when last seen")
        except (IntegrityError, StoreError) as e:
            self._broken("last seen", str(e))

    def _expected(self) -> None:
        """What the person who asks brought along: a receipt, a fingerprint."""
        ledger = self.case.ledger
        if self.first_key and self.first_key.lower() != ledger.ring.first:
            self._broken("first key", f"is {ledger.ring.first}, expected {self.first_key}")
        if self.receipt is None:
            return
        size, root = self.receipt
        expected = Checkpoint(size, base64.b64decode(root), ledger.origin or "")
        try:
            compare_with_checkpoint(ledger, expected, "the receipt")
        except IntegrityError as e:
            self._broken("receipt", str(e))

    # -- items -----------------------------------------------------------------------------------

    def _items(self) -> None:
        for record in self.case.state.items.values():
            if record.acquired is None or record.disposed:
                continue
            about = f"item {record.item_id}"
            try:
                manifest = self.case.manifest(record.item_id)
                segments = self.case.segments(manifest)
            except (IntegrityError, StoreError) as e:
                self._broken(about, str(e))
                continue
            self.verdict.items += 1
            self._item(manifest, segments)

    def _item(self, manifest: Manifest, segments: SegmentList) -> None:
        case = self.case
        about = f"item {manifest.item}"
        prefix = case.item_prefix(manifest.item)
        present = {s.key.removeprefix(f"{prefix}/"): s.size
                   for s in case.store.backend.list(prefix)}  # fmt: skip
        expected = {f"data/{name}": _length(segments, name) for name in segments.digests}
        said = (manifest.size, manifest.segment_size, manifest.stored_objects)
        if said != (segments.size, segments.segment_size, len(segments.digests)):
            self._broken(about, "its manifest and its segment list speak of different items")
        if manifest.unreadable_bytes != sum(gap.length for gap in segments.unreadable):
            self._broken(about, "its manifest and its segment list disagree on what was unreadable")
        total = 0
        for name, size in expected.items():
            self.verdict.objects += 1
            found = present.get(name)
            total += found or 0
            if found is None:
                self._broken(about, f"{_called(name)} is missing")
            elif size is not None and found != size:
                self._broken(about, f"{_called(name)} has {found} bytes, recorded {size}")
        if manifest.layout == "set" and total != manifest.size:
            self._broken(about, f"its objects have {total} bytes, recorded {manifest.size}")
        known = {*expected, "manifest.json", "segments.sha256"}
        if manifest.members is not None:
            known.add("members.jsonl")
            self._members(manifest)
        for name in sorted(set(present) - known):
            self._note(f"{prefix}/{name}", "is not logged: no entry speaks of it")
        for key in case.store.backend.strays(prefix):
            self._note(key, "is not logged: not a regular file of the store")
        small = manifest.layout == "set" and manifest.size <= SMALL_SET_BYTES
        if self.deep or small:
            for remark in self._content(manifest, segments):
                if remark not in self.verdict.findings:
                    self.verdict.findings.append(remark)

    def _members(self, manifest: Manifest) -> None:
        key = f"{self.case.item_prefix(manifest.item)}/members.jsonl"
        try:
            sha256, size = sha256_of(self.case.store.backend, key)
        except (ItemNotFoundError, StoreError) as e:
            self._broken(f"item {manifest.item}", str(e))
            return
        if manifest.members and (sha256, size) != (manifest.members.sha256, manifest.members.size):
            self._broken(f"item {manifest.item}", "members.jsonl is not what was recorded")

    def _content(self, manifest: Manifest, segments: SegmentList) -> Iterator[Remark]:
        for name, size, problem in hash_objects(self.case, manifest.item, segments, self.workers):
            self.verdict.hashed_bytes += size
            self.done += size
            self.progress(self.done, None)
            if problem:
                yield Remark(f"item {manifest.item}", f"{_called(f'data/{name}')} {problem}")

    # -- notes -----------------------------------------------------------------------------------

    def _notes(self) -> None:
        case = self.case
        claimed = {f"{case.item_prefix(i)}/" for i in case.state.items}
        for stored in case.store.backend.list(f"{case.prefix}/items"):
            if not any(stored.key.startswith(prefix) for prefix in claimed):
                self._note(stored.key, "is not logged: no entry speaks of it")
        closed = ("ledger/", "checkpoints/", "keys/", "items/")
        for stored in case.store.backend.list(case.prefix):
            if not stored.key.removeprefix(f"{case.prefix}/").startswith(closed):
                self._note(stored.key, "is not logged: no entry speaks of it")
        for record in case.state.items.values():
            if record.state in ("identified", "interrupted", "failed"):
                self._note(
                    f"item {record.item_id}",
                    {
                        "identified": "was identified and never acquired",
                        "interrupted": "acquisition started, no end recorded (running, or stopped)",
                        "failed": "acquisition failed and was not continued",
                    }[record.state] + f" ({record.source})",
                )  # fmt: skip
        before = None
        for event in case.ledger.events:
            if before is not None and event.at < before - _CLOCK_TOLERANCE:
                self._note(
                    f"{case.prefix}/ledger/{entry_name(event.seq)}",
                    f"its time {event.time} is {(before - event.at).total_seconds():.0f} s before "
                    "the entry it follows: a clock was wrong",
                )
            before = event.at if before is None else max(before, event.at)
        for record in case.state.items.values():
            self._failed_verifications(record.item_id)

    def _failed_verifications(self, item_id: str) -> None:
        for event in self.case.ledger.events:
            if event.item == item_id and event.action == "item.verified" and event.result != "ok":
                self._note(f"item {item_id}", f"entry {event.seq} recorded a failed verification")


def hash_objects(
    case: Case, item_id: str, segments: SegmentList, workers: int = 2
) -> Iterator[tuple[str, int, str]]:
    """Hash every object of an item, several at once; yield (name, bytes, problem or "") in order.

    Reads each byte once, 4 MiB at a time for each worker.
    """
    backend, prefix = case.store.backend, case.item_prefix(item_id)

    def check(name: str) -> tuple[str, int, str]:
        try:
            actual, size = sha256_of(backend, f"{prefix}/data/{name}")
        except ObjectNotFoundError:
            return name, 0, "is missing"
        except StoreError as e:
            return name, 0, f"cannot be read: {e}"
        expected = segments.digests[name]
        same = "" if actual == expected else f"has SHA-256 {actual}, recorded {expected}"
        return name, size, same

    with ThreadPoolExecutor(workers, thread_name_prefix="verify") as pool:
        yield from pool.map(check, segments.digests)


def check_content(case: Case, manifest: Manifest, workers: int = 2) -> list[str]:
    """Return what differs when every object of an item is read back; empty if nothing does."""
    segments = case.segments(manifest)
    return [
        f"{_called(f'data/{name}')} {problem}"
        for name, _, problem in hash_objects(case, manifest.item, segments, workers)
        if problem
    ]


def _length(segments: SegmentList, name: str) -> int | None:
    if not segments.segment_size:
        return None
    return segments.length(int(name, 16))


def _called(name: str) -> str:
    """`data/000…0a` of an image is also called segment 10."""
    base = os.path.basename(name)  # noqa: PTH119
    try:
        index = int(base, 16)
    except ValueError:
        return name
    return f"segment {index} ({name})" if base == segment_name(index) else name
