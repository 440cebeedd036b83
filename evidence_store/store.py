# SPDX-License-Identifier: Apache-2.0
"""The store: cases, and the way evidence goes in and comes out.

    store = Store(backend, scribe, last_seen)
    case = store.create_case("T-1001", authority, title="lab", contact="soc@example.org")
    taken = case.ingest("disk", source)
    with case.open(taken.item_id) as image: ...
    case.seal(checkpoint_signer)

Order of every change: bytes are verified, then written, then recorded. What the ledger names is
durably stored; what is stored and not named is reported, never trusted.
"""

from __future__ import annotations

import contextlib
import hashlib
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from evidence_store.backend import (
    Backend,
    Below,
    LocalBackend,
    ObjectNotFoundError,
    UnfitObjectError,
)
from evidence_store.case import CaseState, ItemRecord
from evidence_store.checkpoint import (
    Checkpoint,
    LastSeen,
    Sealer,
    checkpoint_sizes,
    read_checkpoint,
)
from evidence_store.digest import MAX_LIST_BYTES, SEGMENT_BYTES, SegmentList, parse_segments
from evidence_store.errors import (
    AlreadyExistsError,
    CaseNotFoundError,
    IntegrityError,
    ItemNotFoundError,
    SigningKeyError,
    StoreError,
    StoreNotFoundError,
)
from evidence_store.ingest import Ingest, Ingested
from evidence_store.item import (
    MAX_MANIFEST_BYTES,
    Manifest,
    SegmentFile,
    VerifiedSegments,
    parse_manifest,
    parse_member,
)
from evidence_store.ledger import (
    Draft,
    Ledger,
    Logged,
    Scribe,
    entry_name,
    recovery,
    set_aside,
)
from evidence_store.model import (
    CASE_ID,
    AllowedKey,
    Authority,
    Kind,
    StoreBinding,
    canonical,
    clean,
)
from evidence_store.sign import MAX_NOTE_BYTES, PublicKey, Signer, check_key_name
from evidence_store.transfer import ImageSource, Progress, SetSource, StreamSource

LAYOUT = 1


@dataclass(frozen=True)
class StoreId:
    """The contents of `store.json`."""

    layout: int
    store_id: str
    deployment: str

    def encode(self) -> bytes:
        """Return the bytes of `store.json`."""
        return canonical(self.__dict__) + b"\n"


def read_store_id(backend: Backend) -> StoreId:
    """Return what `store.json` says.

    Raises: StoreNotFoundError, IntegrityError.
    """
    try:
        raw = backend.read("store.json", 4096)
    except ObjectNotFoundError as e:
        raise StoreNotFoundError(
            f"no evidence store at {backend.uri}",
            hint="name one with --store, or start one with: impound case open CASE",
        ) from e
    try:
        identity = StoreId(**StoreBinding.model_validate_json(raw).model_dump())
        canonical_form = identity.encode()
    except ValueError as e:
        raise IntegrityError("store.json is malformed") from e
    if canonical_form != raw:
        raise IntegrityError("store.json is not in canonical form")
    if identity.layout != LAYOUT:
        raise StoreError(f"the store has layout {identity.layout}, this version reads {LAYOUT}")
    return identity


@dataclass
class Store:
    """Cases below one backend. `scribe` may be None for reading only.

    `resume`: folder outside the store for `evidence_store.transfer.resume`; None to keep none.
    """

    backend: Backend
    scribe: Scribe | None = None
    last_seen: LastSeen | None = None
    resume: Path | None = None

    @property
    def identity(self) -> StoreId:
        """What `store.json` says. Raises: StoreNotFoundError, IntegrityError."""
        return read_store_id(self.backend)

    def create(self, deployment: str) -> StoreId:
        """Write `store.json` if there is none yet; return the store's identity.

        Raises: ValueError for a deployment that cannot stand in a key name; StoreError,
        IntegrityError.
        """
        identity = StoreId(LAYOUT, str(uuid.uuid4()), check_key_name(deployment))
        with contextlib.suppress(AlreadyExistsError):
            self.backend.create("store.json", identity.encode())
        return self.identity

    def case_ids(self) -> list[str]:
        """Return the ids of all cases, sorted.

        Raises: StoreNotFoundError, IntegrityError, StoreError.
        """
        _ = self.identity
        return sorted(name for name in self.backend.folders("cases") if self._has_first_entry(name))

    def _has_first_entry(self, case_id: str) -> bool:
        try:
            self.backend.read(f"cases/{case_id}/ledger/{entry_name(0)}", MAX_NOTE_BYTES)
        except ObjectNotFoundError:
            return False
        except UnfitObjectError:
            pass  # a case, and a broken one: whoever opens it is told
        return True

    def create_case(
        self,
        case_id: str,
        authority: Authority,
        *,
        deployment: str,
        title: str = "",
        contact: str = "",
        checkpoint_key: PublicKey,
        received: dict[str, JsonValue] | None = None,
    ) -> Case:
        """Open a new case: store its public keys, then record `case.opened`.

        `received`: of a case that continues one that came in a bag, what is known of that one.

        Where creates can tear, what an earlier attempt left of `store.json`, a key or entry 0 is
        set aside first, and `recovery.noted` says so.

        Raises: ValueError for an id out of form; AlreadyExistsError; StoreError.
        """
        check_case_id(case_id)
        scribe = self.require_scribe()
        self.backend.label(f"cases/{case_id}", case_tags(case_id, authority.ticket, contact))
        torn = [self._set_torn_identity_aside()]
        identity = self.create(deployment)
        case = Case(self, case_id)
        torn.append(case.ledger.set_torn_aside(0))
        if case.ledger.sync():
            raise AlreadyExistsError(
                f"case {case_id} exists in {self.backend.uri}",
                hint=f"look at it with: impound case show {case_id}",
            )
        entry_key = scribe.signer.public
        torn += [
            self._create_whole(f"{case.prefix}/keys/{key.kid}.pem", key.pem())
            for key in (entry_key, checkpoint_key)
        ]
        name = f"{identity.deployment}/entry"
        fields: dict[str, Any] = {
            "store": StoreBinding(**identity.__dict__),
            "keys": [
                allowed(entry_key, name, "entry"),
                allowed(checkpoint_key, f"{identity.deployment}/cases/{case_id}", "checkpoint"),
            ],
            "data": {
                "title": clean(title, 200), "contact": clean(contact, 200),
                **({"received": received} if received else {}),
            },
        }  # fmt: skip
        case.ledger.append(
            scribe,
            authority,
            lambda: None if case.ledger.entries else Draft("case.opened", fields),
            origin=f"{identity.deployment}/cases/{case_id}",
        )
        opened = case.ledger.entries[0].event
        if opened.keys is None or opened.keys[0].sha256 != entry_key.fingerprint:
            raise AlreadyExistsError(f"case {case_id} was opened by another process just now")
        case.refresh()
        for facts in filter(None, torn):
            case.record(lambda facts=facts: recovery(facts))  # type: ignore[misc]
        return case

    def _set_torn_identity_aside(self) -> dict[str, JsonValue] | None:
        """Move a `store.json` whose write was interrupted aside, unless a case could rely on it."""
        backend = self.backend
        try:
            raw = backend.read("store.json", 4096)
        except ObjectNotFoundError:
            return None
        if raw.endswith(b"\n") or any(backend.folders("cases")):
            return None
        if not isinstance(backend, LocalBackend) or backend.atomic_create:
            return None
        return set_aside(backend, "store.json", raw)

    def _create_whole(self, key: str, body: bytes) -> dict[str, JsonValue] | None:
        """Store `body` unless it is there; where creates can tear, replace the front of it.

        Return the facts for `recovery.noted` if a torn object was set aside.
        """
        backend = self.backend
        try:
            backend.create(key, body)
        except AlreadyExistsError:
            if isinstance(backend, LocalBackend) and not backend.atomic_create:
                raw = backend.read(key, MAX_NOTE_BYTES)
                if raw != body and body.startswith(raw):
                    facts = set_aside(backend, key, raw)
                    backend.create(key, body)
                    return facts
        return None

    def case(self, case_id: str) -> Case:
        """Return an existing case, its ledger verified.

        Raises: CaseNotFoundError, LedgerError, IntegrityError, StoreError.
        """
        check_case_id(case_id)
        identity = self.identity
        case = Case(self, case_id)
        case.refresh()
        opened = case.ledger.entries[0].event.store if case.ledger.entries else None
        if opened is not None and opened.model_dump() != identity.__dict__:
            raise IntegrityError(
                f"store.json of {self.backend.uri} is not that of the store in which {case_id} was "
                "opened",
                hint="keep this copy as it is; compare it with another copy or a receipt",
            )
        if not case.ledger.entries:
            raise CaseNotFoundError(
                f"no case {case_id} in {self.backend.uri}",
                hint="impound case list shows the cases; impound case open makes one",
            )
        return case

    def case_unverified(self, case_id: str) -> Case:
        """Return a case whose ledger was not read yet, for `verify_case` to judge.

        Raises: CaseNotFoundError if nothing at all is stored under that id; StoreError.
        """
        check_case_id(case_id)
        case = Case(self, case_id)
        if next(iter(self.backend.list(case.prefix)), None) is None:
            _ = self.identity
            raise CaseNotFoundError(
                f"no case {case_id} in {self.backend.uri}",
                hint="impound case list shows the cases",
            )
        return case

    def require_scribe(self) -> Scribe:
        """Return who writes. Raises: RuntimeError for a store opened for reading only."""
        if self.scribe is None:
            raise RuntimeError("this store was opened for reading only")
        return self.scribe


def case_tags(case_id: str, ticket: str, contact: str) -> dict[str, str]:
    """Return the tags of a case's objects (AWS-wide names, so that others find them)."""
    return {
        "case": case_id, "incident-response": f"quarantine:{ticket}", "notification": contact,
    }  # fmt: skip


def check_case_id(case_id: str) -> str:
    """Return `case_id` if it is in form. Raises: ValueError."""
    if not CASE_ID.fullmatch(case_id):
        raise ValueError(
            f"not a case id: {clean(case_id, 80)!r} (1 to 64 letters, digits, '.', '_' or '-'; "
            "the first is not '.' or '-')"
        )
    return case_id


def allow_key(case: Case, key: PublicKey, use: str) -> None:
    """Store a public key and record `key.added`. Raises: StoreError, SigningKeyError."""
    if key.kid in case.ledger.ring.revoked:
        raise SigningKeyError(
            f"key {key.kid} was revoked in case {case.case_id}; it cannot be added again",
            hint="make a new key: impound key new",
        )
    known = case.ledger.ring.entry if use == "entry" else case.ledger.ring.checkpoint
    if key.kid in known:
        raise AlreadyExistsError(f"key {key.kid} may sign in case {case.case_id} already")
    name = f"{case.store.identity.deployment}/entry" if use == "entry" else case.ledger.origin or ""
    case.ledger.check_may_sign(case.store.require_scribe().signer.public)
    with contextlib.suppress(AlreadyExistsError):
        case.store.backend.create(f"{case.prefix}/keys/{key.kid}.pem", key.pem())
    case.record(lambda: Draft("key.added", {"keys": [allowed(key, name, use)]}))


def allowed(key: PublicKey, name: str, use: str) -> AllowedKey:
    """Return a key as the ledger lists it."""
    return AllowedKey.model_validate(
        {"kid": key.kid, "sha256": key.fingerprint, "name": name, "use": use}
    )


@dataclass(frozen=True)
class ListedKey:
    """A key that the ledger lists: since which entry, and until which if it was revoked."""

    allowed: AllowedKey
    since: int
    revoked: int | None


@dataclass
class Case:
    """One case of a store. Build it with `Store.case` or `Store.create_case`."""

    store: Store
    case_id: str
    state: CaseState = field(init=False)
    ledger: Ledger = field(init=False)

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.store.backend, self.case_id)
        self.state = CaseState(self.case_id)

    @property
    def prefix(self) -> str:
        """Folder of the case in the backend."""
        return f"cases/{self.case_id}"

    @property
    def authority(self) -> Authority:
        """By what right entries of this case are made."""
        return Authority(ticket=self.state.ticket, basis=self.state.basis)

    def refresh(self) -> None:
        """Read and verify what was recorded since.

        Raises: LedgerError, StoreError.
        """
        self.ledger.sync()
        self._fold()

    def _fold(self) -> None:
        with self.ledger.folded():  # several threads record: an older state must not come last
            self.state = state = CaseState.of(self.case_id, self.ledger.events)
        label = self.store.backend.label
        if state.opened:
            label(self.prefix, case_tags(self.case_id, state.ticket, state.contact))
        for item in (i for i in state.items.values() if not i.received):
            label(self.item_prefix(item.item_id), {"item": item.item_id, "kind": item.kind})

    @property
    def listed_keys(self) -> list[ListedKey]:
        """Every key that was ever allowed in this case, in the order of the ledger."""
        revoked = self.ledger.ring.revoked
        return [
            ListedKey(key, event.seq, revoked.get(key.kid))
            for event in self.ledger.events
            if event.action in ("case.opened", "key.added")
            for key in event.keys or []
        ]

    def record(self, build: Callable[[], Draft | None]) -> Logged | None:
        """Append one event; `build` sees a fresh `state` each time it is called.

        Raises: as `Ledger.append`.
        """

        def decide() -> Draft | None:
            self._fold()
            return build()

        if not self.ledger.entries:
            self.refresh()
        logged = self.ledger.append(self.store.require_scribe(), self.authority, decide)
        self._fold()
        return logged

    # -- items -----------------------------------------------------------------------------------

    def item(self, item_id: str) -> ItemRecord:
        """Return what the ledger says of an item.

        Raises: ItemNotFoundError.
        """
        try:
            return self.state.items[item_id]
        except KeyError:
            raise ItemNotFoundError(
                f"case {self.case_id} has no item {clean(item_id, 40)}",
                hint=f"impound item list {self.case_id} shows its items",
            ) from None

    def item_prefix(self, item_id: str) -> str:
        """Folder of an item in the backend; that of a received one lies in `received/`."""
        known = self.state.items.get(item_id)
        return f"{self.prefix}/{known.folder if known else f'items/{item_id}'}"

    @property
    def received(self) -> Case | None:
        """The case that this one continues, as it came in a bag, not read yet; for reading."""
        if self.state.received is None:
            return None
        inner = Below(self.store.backend, f"{self.prefix}/received")
        return Case(Store(inner), self.case_id)

    def manifest(self, item_id: str) -> Manifest:
        """Return the manifest of a stored item, checked against the ledger.

        Raises: ItemNotFoundError if it is not complete; IntegrityError.
        """
        record = self.item(item_id)
        expected = record.manifest_sha256
        if expected is None:
            raise ItemNotFoundError(
                f"item {item_id} is {record.state}, not stored yet",
                hint="run its ingest again; it continues where it stopped",
            )
        raw = self._read_recorded(f"{self.item_prefix(item_id)}/manifest.json", expected,
                                  MAX_MANIFEST_BYTES)  # fmt: skip
        manifest = parse_manifest(raw)
        if (manifest.case, manifest.item) != (self.case_id, item_id):
            raise IntegrityError(f"the manifest of {item_id} describes another item")
        return manifest

    def segments(self, manifest: Manifest) -> SegmentList:
        """Return the segment list of an item, checked against its manifest.

        Raises: IntegrityError.
        """
        raw = self._read_recorded(f"{self.item_prefix(manifest.item)}/segments.sha256",
                                  manifest.image_root, MAX_LIST_BYTES)  # fmt: skip
        return parse_segments(raw)

    def _read_recorded(self, key: str, expected: str, limit: int) -> bytes:
        try:
            raw = self.store.backend.read(key, limit)
        except ObjectNotFoundError as e:
            raise IntegrityError(f"{key} is missing") from e
        actual = hashlib.sha256(raw).hexdigest()
        if actual != expected:
            raise IntegrityError(
                f"{key} is not what was recorded (SHA-256 {actual}, recorded {expected})"
            )
        return raw

    def objects(self, item_id: str) -> VerifiedSegments:
        """Return access to the objects of an item; `VerifiedSegments` says when each is verified.

        Raises: ItemNotFoundError, IntegrityError.
        """
        manifest = self.manifest(item_id)
        return VerifiedSegments(
            self.store.backend, self.item_prefix(item_id), self.segments(manifest)
        )

    def open(self, item_id: str) -> SegmentFile:
        """Return the logical bytes of an image as a seekable read-only file.

        Raises: ItemNotFoundError if it is not stored, or is a file set; IntegrityError, also later
        while reading, naming the segment.
        """
        manifest = self.manifest(item_id)
        if manifest.layout != "image":
            raise ItemNotFoundError(
                f"item {item_id} is a file set, not an image",
                hint=f"read one file: impound item cat {self.case_id} {item_id} --member NAME",
            )
        verified = VerifiedSegments(
            self.store.backend, self.item_prefix(item_id), self.segments(manifest)
        )
        return SegmentFile(manifest.size, manifest.segment_size, verified.open)

    def members(self, item_id: str) -> Iterator[dict[str, Any]]:
        """Yield the lines of a file set's `members.jsonl`, checked against the manifest.

        Raises: ItemNotFoundError if it is an image; IntegrityError.
        """
        listed = self.manifest(item_id).members
        if listed is None:
            raise ItemNotFoundError(f"item {item_id} is an image, not a file set")
        key = f"{self.item_prefix(item_id)}/members.jsonl"
        raw = self._read_recorded(key, listed.sha256, listed.size)
        for number, line in enumerate(raw.splitlines(keepends=True), 1):
            try:
                yield parse_member(line)
            except ValueError as e:
                raise IntegrityError(f"{key} line {number}: {e}") from e

    def open_member(self, item_id: str, name: str | None) -> int:
        """Return a verified descriptor of one file of a set; of its only file if `name` is None.

        Raises: ItemNotFoundError, IntegrityError, StoreError.
        """
        files = [m for m in self.members(item_id) if m["object"]]
        if name is not None:
            files = [m for m in files if m["name"] == name]
        if len(files) != 1:
            raise ItemNotFoundError(
                f"item {item_id} has {len(files)} files"
                + (f" named {clean(name, 100)}" if name is not None else ""),
                hint=f"name one with --member: impound item members {self.case_id} {item_id}",
            )
        fd = self.objects(item_id).open_object(files[0]["object"])
        if fd is None:
            raise IntegrityError(f"{files[0]['object']} of {item_id} is listed but not stored")
        return fd

    # -- taking evidence -------------------------------------------------------------------------

    def ingest(
        self,
        kind: Kind,
        source: ImageSource | StreamSource | SetSource,
        *,
        again: bool = False,
        linear: bool | None = None,
        digests: Iterable[str] = (),
        parents: Iterable[str] = (),
        workers: int = 2,
        segment_size: int = SEGMENT_BYTES,
        read_back: bool = True,
        facts: dict[str, JsonValue] | None = None,
        progress: Progress = lambda _done, _total: None,
    ) -> Ingested:
        """Take a source into custody as one item, or go on with one that was interrupted.

        Args:
            kind: what it is.
            source: what it is read from.
            again: make a new item even if this source was taken before.
            linear: force or forbid the digest of all bytes in order; None: up to 256 GiB.
            digests: `md5`, `sha1` beside it.
            parents: items it was derived from.
            workers: segments in work at once; memory is about (workers + 1) segments, for a
                `BulkSource` workers of them.
            segment_size: bytes of a segment of an image, 64 MiB at most. An item that was begun
                keeps the size that it was begun with.
            read_back: read everything back from the store afterwards and record `item.verified`.
            facts: of the acquisition, beside those of the source.
            progress: called with (bytes done, bytes in all or None).

        Raises: BusyError, SourceChangedError, CaseClosedError, StoreError, IntegrityError. What was
        stored stays; the same call again continues.
        """
        return Ingest(
            self, kind, source, list(digests), list(parents), again, linear, workers,
            segment_size, read_back, facts or {}, progress,
        ).run()  # fmt: skip

    # -- checkpoints -----------------------------------------------------------------------------

    def seal(self, signer: Signer) -> Checkpoint:
        """Sign a checkpoint over the ledger as it is now; see `Sealer`."""
        return Sealer(signer, self.store.last_seen).seal(self)

    def latest_checkpoint(self) -> Checkpoint | None:
        """Return the newest stored checkpoint, signature and root verified, or None.

        Raises: IntegrityError if one says what the ledger does not.
        """
        latest = None
        for size in checkpoint_sizes(self):
            latest = read_checkpoint(self, size)
        return latest
