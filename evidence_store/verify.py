# SPDX-License-Identifier: Apache-2.0
"""Verification: recompute everything from the stored bytes and say what was and was not checked.

Steps, in this order
    1. Every entry: canonical, in order, chained, signed by a key allowed at that point; every file
       in `keys/` is the key that its name says.
    2. `store.json` is the one that `case.opened` names.
    3. Nothing else lies in `ledger/`, `checkpoints/`, `keys/`; what the store keeps beside the
       bytes (versions, locks, tags) is as it was made.
    4. Every checkpoint: signature, size, root, `last.proof`.
    5. What this user has seen before, outside the store, is a prefix.
    6. What the caller brought along: a receipt, the first key's fingerprint.
    7. Every item: manifest, segment list and `members.jsonl` as recorded and of one mind; every
       object present with its size.
       Deep: SHA-256 of every object. A plain run does this only for file sets up to 256 MiB.
       Linear: also the digests of all logical bytes in order that a manifest states.
    8. Of a case that came in a bag: its own ledger, by steps 1 to 4, and that it begins with what
       each delivery stated; that what was received is what it recorded.
    9. What nobody recorded, what was never finished, and clocks that ran backwards, are notes.
   10. What interrupted writes left outside every case is counted; it is no fault of the case.

A finding is broken evidence (exit 10); a note is a fact a reader should know (exit 3).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from evidence_store.backend import (
    Leftovers,
    LocalBackend,
    ObjectNotFoundError,
    UnfitObjectError,
)
from evidence_store.checkpoint import (
    Checkpoint,
    compare_with_checkpoint,
    encode_proof,
    read_checkpoint,
    root_from_proof,
)
from evidence_store.content import (
    LINEAR_DIGESTS,
    called,
    check_members,
    contradictions,
    hash_in_order,
    hash_objects,
)
from evidence_store.digest import LinearDigest, SegmentList
from evidence_store.errors import IntegrityError, StoreError, StoreUnavailableError
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


@dataclass(frozen=True)
class Opinion:
    """A verification of an item that another identity than its acquirer recorded.

    `by`: ARN that AWS vouched for, else the key that signed; `entry`: where it stands.
    """

    item: str
    by: str
    entry: int
    how: str
    result: str


def second_opinions(case: Case) -> list[Opinion]:
    """Return, of each item, the newest verification by somebody else than who acquired it."""
    acquired: dict[str, str] = {}
    newest: dict[str, Opinion] = {}
    for logged in case.ledger.entries:
        event, said = logged.event, logged.event.actor.authenticated or {}
        who = str(said.get("arn") or f"key {logged.signed_by}")
        if event.item is None:
            continue
        if event.action == "item.acquired":
            acquired.setdefault(event.item, who)
        elif event.action == "item.verified" and acquired.get(event.item, who) != who:
            how = str((event.data or {}).get("how", ""))
            newest[event.item] = Opinion(event.item, who, event.seq, how, event.result)
    return list(newest.values())


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
        opinions: verifications recorded by another identity than the acquirer's.
        deep: whether all content was hashed.
        linear: whether linear digests were recomputed, where a manifest states them.
        linear_items: images whose linear digests were recomputed and compared.
        received: of a case that came in a bag, the verdict on the ledger that it came with.
        leftovers: what lies in `tmp/` and `quarantine/`; None if it could not be looked at.
    """

    case_id: str
    deep: bool
    linear: bool = False
    findings: list[Remark] = field(default_factory=list)
    notes: list[Remark] = field(default_factory=list)
    entries: int = 0
    sealed: int = 0
    root: str = ""
    first_key: str = ""
    items: int = 0
    objects: int = 0
    hashed_bytes: int = 0
    opinions: list[Opinion] = field(default_factory=list)
    linear_items: int = 0
    leftovers: Leftovers | None = None
    received: Verdict | None = None

    @property
    def covered(self) -> list[str]:
        """What was recomputed, in words."""
        what = ["ledger, checkpoints, manifests, presence and sizes"]
        what.append("every object" if self.deep else "objects of small file sets")
        if self.linear:
            what.append(f"linear digests (images: {self.linear_items})")
        return what

    @property
    def not_covered(self) -> list[str]:
        """What was not, in words."""
        missing = [] if self.deep else ["content of images and large file sets (--deep does)"]
        if not self.linear:
            missing.append("linear digests (--linear does)")
        return missing

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
    linear: bool = False,
    workers: int = 2,
    progress: Callable[[int, int | None], None] = lambda _done, _total: None,
    receipt: tuple[int, str] | None = None,
    first_key: str | None = None,
    left_out: Callable[[str], bool] = lambda _item: False,
) -> Verdict:
    """Verify a case; `case` need not have been refreshed. Writes nothing.

    Args:
        case: the case.
        deep: hash all content.
        linear: hash all content, and recompute the linear digests that manifests state: one after
            the other, holes included, so an image takes as long as one `sha256sum` over it.
        workers: objects hashed at once.
        progress: called with (bytes hashed, None); with `linear` the zeros of holes count too.
        receipt: (size, base64 root) that the ledger must extend, from a ticket or mail.
        first_key: fingerprint that the case's first key must have.
        left_out: items that this copy need not hold; they are notes if no object of them is there.

    Raises: StoreError only if the store itself cannot be read: what could not be looked at
    (`StoreUnavailableError`) is no finding, and no verdict is given then.
    """
    return _Verification(
        case, deep or linear, linear, workers, progress, receipt, first_key, left_out
    ).run()


@dataclass
class _Verification:
    case: Case
    deep: bool
    linear: bool
    workers: int
    progress: Callable[[int, int | None], None]
    receipt: tuple[int, str] | None
    first_key: str | None
    left_out: Callable[[str], bool] = lambda _item: False
    above: frozenset[str] | None = None  # items that the ledger above a received one answers for
    verdict: Verdict = field(init=False)
    done: int = 0

    def __post_init__(self) -> None:
        self.verdict = Verdict(self.case.case_id, self.deep, self.linear)

    def run(self) -> Verdict:
        if self._ledger():
            self._binding()
            self._closed_folders()
            self._anomalies()
            self._checkpoints()
            self._last_seen()
            self._expected()
            self._items()
            self._received()
            self._notes()
        self._leftovers()
        return self.verdict

    def _broken(self, about: str, text: str) -> None:
        self.verdict.findings.append(Remark(about, text))

    def _note(self, about: str, text: str) -> None:
        self.verdict.notes.append(Remark(about, text))

    def _ledger(self) -> bool:
        ledger = self.case.ledger
        try:
            self.case.refresh()
            ledger.check_key_files()
        except (IntegrityError, UnfitObjectError) as e:
            self._broken("ledger", str(e))
        if not ledger.entries:
            if not self.verdict.findings:
                self._broken("ledger", "there is no entry 0")
            return False
        self.verdict.entries = len(ledger.entries)
        self.verdict.first_key = ledger.ring.first
        self.verdict.opinions = second_opinions(self.case)
        return True

    def _binding(self) -> None:
        binding = self.case.ledger.entries[0].event.store
        try:
            identity = self.case.store.identity
        except StoreUnavailableError:
            raise
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

    def _anomalies(self) -> None:
        """What the store keeps beside the bytes must still be as it was made."""
        try:
            for key, text in self.case.store.backend.anomalies(self.case.prefix):
                self._broken(key, text)
        except StoreUnavailableError:
            raise
        except StoreError as e:
            self._broken(self.case.prefix, f"its protection could not be checked: {e}")

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
        except StoreUnavailableError:
            raise
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
            if record.acquired is None or record.disposed or record.item_id in (self.above or ()):
                continue
            about = f"item {record.item_id}"
            try:
                manifest = self.case.manifest(record.item_id)
                segments = self.case.segments(manifest)
            except StoreUnavailableError:
                raise
            except (IntegrityError, StoreError) as e:
                self._broken(about, str(e))
                continue
            if self.above is not None:
                self._note(about, "was not received: it was left out of the bag")
                continue
            if self.left_out(record.item_id) and not self._has_objects(record.item_id):
                self._note(about, "is not in this bag: it was left out of the export")
                continue
            self.verdict.items += 1
            self._item(manifest, segments)

    def _has_objects(self, item_id: str) -> bool:
        folder = f"{self.case.item_prefix(item_id)}/data"
        return next(iter(self.case.store.backend.list(folder)), None) is not None

    def _received(self) -> None:
        """The ledger that the case came with, and what each delivery stated of it."""
        inner = self.case.received
        if inner is None:
            return
        prefix = f"{self.case.prefix}/received"
        complete = bool(self.case.state.deliveries)
        if not complete:
            self._note(prefix, "an import was begun and not finished; run it again")
            if next(iter(inner.store.backend.list(f"{inner.prefix}/ledger")), None) is None:
                return
        mine = {i: r for i, r in self.case.state.items.items() if r.received}
        found = _Verification(
            inner, False, False, self.workers, self.progress, None, None, above=frozenset(mine)
        ).run()
        self.verdict.received = found
        self.verdict.findings += [Remark(f"{prefix}: {f.about}", f.text) for f in found.findings]
        if complete:
            self.verdict.notes += [Remark(f"{prefix}: {n.about}", n.text) for n in found.notes]
        for event in self.case.ledger.events:
            stated = (event.data or {}).get("received")
            whole = event.action == "item.received" and event.item is None
            if isinstance(stated, dict) and (whole or (event.seq == 0 and complete)):
                self._delivery(inner, event.seq, stated)
        for item_id, record in mine.items():
            theirs = inner.state.items.get(item_id)
            if theirs is None or (theirs.manifest_sha256, theirs.image_root) != (
                record.manifest_sha256, record.image_root,
            ):  # fmt: skip
                self._broken(f"item {item_id}", "is not what the ledger that it came with records")

    def _delivery(self, inner: Case, seq: int, stated: Mapping[str, object]) -> None:
        about = f"entry {seq}"
        try:
            size, root = int(str(stated["size"])), base64.b64decode(str(stated["root"]))
            checkpoint = Checkpoint(size, root, str(stated["origin"]))
            compare_with_checkpoint(inner.ledger, checkpoint, "what was received")
            if stated["first_key"] != inner.ledger.ring.first:
                raise IntegrityError("what was received was opened with another key")
        except (IntegrityError, KeyError, ValueError) as e:
            self._broken(about, str(e))

    def _item(self, manifest: Manifest, segments: SegmentList) -> None:
        case = self.case
        about = f"item {manifest.item}"
        prefix = case.item_prefix(manifest.item)
        present = {s.key.removeprefix(f"{prefix}/"): s.size
                   for s in case.store.backend.list(prefix)}  # fmt: skip
        for problem in contradictions(manifest, segments):
            self._broken(about, problem)
        recorded = case.item(manifest.item).content_sha256
        if recorded != (manifest.content or {}).get("sha256"):
            self._broken(about, "its manifest and its entry state different linear digests")
        total = 0
        for name in segments.digests:
            self.verdict.objects += 1
            found = present.get(f"data/{name}")
            total += found or 0
            size = segments.length(int(name, 16)) if segments.segment_size else found
            if found is None:
                self._broken(about, f"{called(f'data/{name}')} is missing")
            elif found != size:
                self._broken(about, f"{called(f'data/{name}')} has {found} bytes, recorded {size}")
        if not segments.segment_size and total != segments.size:
            self._broken(about, f"its objects have {total} bytes, recorded {segments.size}")
        known = {"manifest.json", "segments.sha256"}
        if manifest.members is not None:
            known.add("members.jsonl")
            for problem in check_members(case, manifest.item, manifest.members, segments, present):
                self._broken(about, problem)
        for name in sorted(present):
            if name not in known and name.removeprefix("data/") not in segments.digests:
                self._note(f"{prefix}/{name}", "is not logged: no entry speaks of it")
        for key in case.store.backend.strays(prefix):
            self._note(key, "is not logged: not a regular file of the store")
        small = manifest.layout == "set" and manifest.size <= SMALL_SET_BYTES
        if self.deep or small:
            said = set(self.verdict.findings)
            in_order = self.linear and manifest.content and segments.segment_size
            check = self._linear if in_order else self._content
            self.verdict.findings += [r for r in check(manifest, segments) if r not in said]

    def _content(self, manifest: Manifest, segments: SegmentList) -> Iterator[Remark]:
        for name, size, problem in hash_objects(self.case, manifest.item, segments, self.workers):
            self.verdict.hashed_bytes += size
            self._advance(size)
            if problem:
                yield Remark(f"item {manifest.item}", f"{called(f'data/{name}')} {problem}")

    def _linear(self, manifest: Manifest, segments: SegmentList) -> Iterator[Remark]:
        about, stated = f"item {manifest.item}", manifest.content or {}
        known = {name: digest for name, digest in stated.items() if name in LINEAR_DIGESTS}
        for name in sorted(stated.keys() - known.keys()):
            self._note(about, f"states a linear digest of a kind that is not checked ({name})")
        digest, problems = LinearDigest(known), 0
        for name, size, problem in hash_in_order(self.case, manifest.item, segments, digest,
                                                 self._advance):  # fmt: skip
            self.verdict.hashed_bytes += size
            if problem:
                problems += 1
                yield Remark(about, f"{called(f'data/{name}')} {problem}")
        if problems:
            return  # then all bytes in order cannot be right, and it is known why
        self.verdict.linear_items += bool(known)
        for name, value in digest.results().items():
            if value != known[name]:
                yield Remark(about, f"its bytes in order have {name} {value}, recorded "
                                    f"{known[name]}")  # fmt: skip

    def _advance(self, size: int) -> None:
        self.done += size
        self.progress(self.done, None)

    # -- notes -----------------------------------------------------------------------------------

    def _notes(self) -> None:
        case = self.case
        for stored in case.store.backend.list(case.prefix):
            if not self._is_claimed(stored.key):
                self._note(stored.key, "is not logged: no entry speaks of it")
        for key in case.store.backend.strays(case.prefix):
            if not self._is_claimed(key):
                self._note(key, "is not logged: not a regular file of the store")
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
        for event in case.ledger.events:
            failed = event.action == "item.verified" and event.result != "ok"
            if failed and event.item in case.state.items:
                self._note(
                    f"item {event.item}", f"entry {event.seq} recorded a failed verification"
                )

    def _is_claimed(self, key: str) -> bool:
        """Tell whether a file of the case lies where another step looks at it."""
        folder, *rest = key.removeprefix(f"{self.case.prefix}/").split("/")
        if folder == "items":
            return len(rest) > 1 and rest[0] in self.case.state.items
        if folder == "received" and self.case.state.received is not None:
            return rest[:1] == ["store.json"] or rest[:2] == ["cases", self.case.case_id]
        return bool(rest) and folder in ("ledger", "checkpoints", "keys")

    def _leftovers(self) -> None:
        backend = self.case.store.backend
        if isinstance(backend, LocalBackend):
            with contextlib.suppress(StoreError):  # then the verdict says None: not looked at
                self.verdict.leftovers = backend.leftovers()
