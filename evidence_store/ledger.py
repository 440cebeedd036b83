# SPDX-License-Identifier: Apache-2.0
"""The ledger: one signed file per custody event, created once, each naming the whole one before.

Invariants
    - `ledger/<seq:016d>.note`, seq from 0 without a gap; `prev` is SHA-256 of the whole previous
      file, so signatures are chained too.
    - Entry 0 is `case.opened`; it lists the first keys. A later key is allowed by `key.added`,
      signed by a key already allowed; `key.revoked` ends it for later entries.
    - An append is retried with the same `id` until that id stands in the ledger once: a lost answer
      never makes a second entry. There is no lock: the create is the lock.

Source: docs/format.md §3; Tessera ("already exists with identical bytes" is success).
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pydantic import JsonValue

from evidence_store.backend import (
    AmbiguousWriteError,
    Backend,
    LocalBackend,
    ObjectNotFoundError,
    UnfitObjectError,
)
from evidence_store.checkpoint import EMPTY_ROOT, Tree, leaf_hash
from evidence_store.errors import (
    AlreadyExistsError,
    CaseClosedError,
    IntegrityError,
    LedgerError,
    SigningKeyError,
    StoreError,
)
from evidence_store.model import (
    ZERO_DIGEST,
    Action,
    Actor,
    Authority,
    Clock,
    CustodyEvent,
    Tool,
    format_time,
    parse_event,
)
from evidence_store.sign import (
    MAX_NOTE_BYTES,
    PublicKey,
    Signer,
    parse_note,
    sign_note,
    verify_note,
)

_ATTEMPTS = 60
# What may still be recorded after a case was sealed: looking at it, handing it on, disposing of it.
_AFTER_SEAL = {
    "item.verified", "item.accessed", "item.exported", "item.transferred", "item.received",
    "item.disposed", "hold.set", "hold.released", "retention.extended", "correction",
    "recovery.noted", "review.noted", "key.added", "key.revoked",
}  # fmt: skip


def entry_name(seq: int) -> str:
    """File name of entry `seq`."""
    return f"{seq:016d}.note"


@dataclass(frozen=True)
class Logged:
    """One verified entry: the event, SHA-256 of its file, its Merkle leaf."""

    event: CustodyEvent
    sha256: str
    leaf: bytes
    signed_by: str


@dataclass(frozen=True)
class Draft:
    """What the caller wants recorded; the ledger adds order, time, actor and tool."""

    action: Action
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass
class KeyRing:
    """Which keys may sign, as the ledger itself says, in the order it says it."""

    pems: dict[str, PublicKey]
    entry: dict[str, tuple[str, PublicKey]] = field(default_factory=dict)
    checkpoint: dict[str, PublicKey] = field(default_factory=dict)
    listed: dict[str, int] = field(default_factory=dict)  # kid -> seq of its first listing
    revoked: dict[str, int] = field(default_factory=dict)  # kid -> seq
    first: str = ""
    unfit: dict[str, str] = field(
        default_factory=dict
    )  # kid as a file's name says -> what is wrong

    def checkpoint_keys(self, size: int) -> dict[str, PublicKey]:
        """The keys that may seal the first `size` entries: listed in them, not revoked in them."""
        return {
            kid: key for kid, key in self.checkpoint.items()
            if self.listed[kid] < size <= self.revoked.get(kid, size)
        }  # fmt: skip

    def copy(self) -> KeyRing:
        """A ring to try an event on."""
        return KeyRing(
            self.pems, dict(self.entry), dict(self.checkpoint), dict(self.listed),
            dict(self.revoked), self.first, self.unfit,
        )  # fmt: skip

    def apply(self, event: CustodyEvent) -> None:
        """Take the key changes of a verified event.

        Raises: IntegrityError if a listed key is missing from `keys/` or is another one.
        """
        if event.action in ("case.opened", "key.added"):
            for allowed in event.keys or []:
                key = self.pems.get(allowed.kid)
                if key is None:
                    problem = self.unfit.get(allowed.kid, f"keys/{allowed.kid}.pem is missing")
                    raise IntegrityError(problem)
                if key.fingerprint != allowed.sha256:
                    raise IntegrityError(f"keys/{allowed.kid}.pem is not the key that was listed")
                if allowed.kid in self.revoked:
                    raise IntegrityError(f"key {allowed.kid} was revoked; it cannot be added again")
                self.listed.setdefault(allowed.kid, event.seq)
                if allowed.use == "entry":
                    self.entry[allowed.kid] = (allowed.name, key)
                else:
                    self.checkpoint[allowed.kid] = key
                self.first = self.first or allowed.sha256
        elif event.action == "key.revoked":
            for allowed in event.keys or []:
                self.entry.pop(allowed.kid, None)
                self.revoked.setdefault(allowed.kid, event.seq)


def check_entry(raw: bytes, *, seq: int, prev: str, origin: str | None, ring: KeyRing) -> Logged:
    """Return entry `seq` if everything about it holds. Pure.

    1. It is a note. 2. Its text is a canonical event within the schema. 3. seq, prev and origin are
    the expected ones. 4. Entry 0 opens the case, no other does. 5. A key allowed at this point
    signed it, and no known key's signature is bad.

    Raises: LedgerError.
    """
    try:
        note = parse_note(raw)
        event = parse_event(note.text)
        if event.seq != seq:
            raise IntegrityError(f"says it is entry {event.seq}")
        if event.prev != prev:
            raise IntegrityError("does not continue the entry before it (prev differs)")
        if origin is not None and event.origin != origin:
            raise IntegrityError(f"belongs to {event.origin!r}, not to {origin!r}")
        if (event.action == "case.opened") != (seq == 0):
            raise IntegrityError("case.opened must be the first entry, and only the first")
        if seq == 0:
            ring.apply(event)
        signed_by = verify_note(note, ring.entry)
        if seq:
            ring.apply(event)
        else:
            # Its fingerprint is what people compare: it must be the key that vouches for the rest.
            first = ring.first[:8]
            if all(s.kid != first for s in note.signatures) or first not in ring.entry:
                raise IntegrityError("is not signed by the first key that it lists")
    except (IntegrityError, SigningKeyError) as e:
        raise LedgerError(
            f"ledger entry {seq}: {e}",
            position=seq,
            hint="keep this copy as it is; compare it with another copy or a receipt",
        ) from e
    return Logged(event, hashlib.sha256(raw).hexdigest(), leaf_hash(raw), signed_by)


def _is_torn(raw: bytes) -> bool:
    """Tell whether a file is no note at all: the front of a write that did not end."""
    try:
        parse_note(raw)
    except IntegrityError:
        return True
    return False


def set_aside(backend: LocalBackend, key: str, raw: bytes) -> dict[str, JsonValue]:
    """Move a torn object, of which `raw` is there, to `quarantine/`; return what to record.

    Raises: StoreError.
    """
    moved = backend.set_aside(key)
    return {"moved_to": moved, "size": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}


def recovery(facts: dict[str, JsonValue]) -> Draft:
    """Return the event that tells of an object set aside."""
    note = "a torn object, left by an interrupted write, was set aside"
    return Draft("recovery.noted", {"data": facts, "note": note})


@dataclass
class Scribe:
    """Who writes: everything that each entry of a process has in common."""

    actor: Actor
    tool: Tool
    signer: Signer
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    clock_facts: Callable[[], Clock] = lambda: Clock(source="system")
    new_id: Callable[[], str] = lambda: str(uuid.uuid4())


class Ledger:
    """The events of one case, verified as they are read.

    Not shared between processes; within one, appends are serialised here.
    """

    def __init__(self, backend: Backend, case_id: str) -> None:
        self._backend = backend
        self._prefix = f"cases/{case_id}"
        self._lock = threading.RLock()
        self.case_id = case_id
        self.origin: str | None = None
        self.entries: list[Logged] = []
        self.ring = KeyRing({})
        self.roots: list[bytes] = [EMPTY_ROOT]  # root of the first n entries, by n
        self._tree = Tree()

    # -- reading ---------------------------------------------------------------------------------

    def load_keys(self) -> None:
        """Read `keys/*.pem`; which of them count is for the ledger to say.

        A file that is not the key its name says stops nobody unless the ledger lists that key:
        else one byte put there would close a case. `check_key_files` tells of it.
        """
        for stored in self._backend.list(f"{self._prefix}/keys"):
            name = stored.key.rpartition("/")[2]
            kid = name.removesuffix(".pem")
            if kid in self.ring.pems:
                continue
            try:
                self.ring.pems[kid] = self._key_in(stored.key, name)
            except IntegrityError as e:
                self.ring.unfit[kid] = str(e)

    def check_key_files(self) -> None:
        """Read `keys/*.pem`. Raises: IntegrityError if one is not the key that its name says."""
        self.load_keys()
        for problem in self.ring.unfit.values():
            raise IntegrityError(problem)

    def _key_in(self, key: str, name: str) -> PublicKey:
        try:
            pem = self._backend.read(key, 4096)
            found = PublicKey.from_pem(pem)
        except (SigningKeyError, UnfitObjectError) as e:
            raise IntegrityError(f"keys/{name}: {e}") from e
        if name != f"{found.kid}.pem":
            raise IntegrityError(f"keys/{name} holds the key {found.kid}")
        if found.pem() != pem:
            raise IntegrityError(f"keys/{name} is not in canonical form")
        return found

    def sync(self) -> list[Logged]:
        """Read and verify the entries that are new since the last call; return them.

        Raises: LedgerError at the first entry that does not hold; StoreError.
        """
        with self._lock:
            new: list[Logged] = []
            keys = (f"{self._prefix}/ledger/{entry_name(seq)}"
                    for seq in itertools.count(len(self.entries)))  # fmt: skip
            try:
                new.extend(map(self._accept, self._backend.read_run(keys, 1 << 20)))
            except UnfitObjectError as e:
                seq = len(self.entries)
                raise LedgerError(f"ledger entry {seq}: {e}", position=seq) from e
            return new

    def _accept(self, raw: bytes) -> Logged:
        """Take the next entry, if everything about it holds. Raises: LedgerError, StoreError."""
        seq = len(self.entries)
        if seq == 0 or b'"key.added"' in raw:
            self.load_keys()
        logged = check_entry(
            raw,
            seq=seq,
            prev=self.entries[-1].sha256 if self.entries else ZERO_DIGEST,
            origin=self.origin,
            ring=self.ring,
        )
        if seq == 0 and not logged.event.origin.endswith(f"/cases/{self.case_id}"):
            raise LedgerError(
                f"ledger entry 0: belongs to {logged.event.origin!r}, not to case {self.case_id}",
                position=0,
            )
        self.origin = logged.event.origin
        self.entries.append(logged)
        self.roots.append(self._tree.add(logged.leaf))
        return logged

    def names_out_of_order(self) -> Iterable[str]:
        """Yield what lies in `ledger/` and is no entry of the verified run 0..n-1."""
        folder = f"{self._prefix}/ledger"
        wanted = {f"{folder}/{entry_name(seq)}" for seq in range(len(self.entries))}
        for stored in self._backend.list(folder):
            if stored.key not in wanted:
                yield stored.key
        yield from self._backend.strays(folder)

    def folded(self) -> AbstractContextManager[object]:
        """Let no entry come in meanwhile, so that what is derived of them never goes back."""
        return self._lock

    @property
    def events(self) -> list[CustodyEvent]:
        """The verified events in order."""
        return [logged.event for logged in self.entries]

    @property
    def leaves(self) -> list[bytes]:
        """Merkle leaves in order."""
        return [logged.leaf for logged in self.entries]

    @property
    def sealed(self) -> bool:
        """Whether `case.sealed` has been recorded."""
        return any(e.event.action == "case.sealed" for e in self.entries)

    # -- writing ---------------------------------------------------------------------------------

    def append(
        self,
        scribe: Scribe,
        authority: Authority,
        build: Callable[[], Draft | None],
        *,
        origin: str | None = None,
    ) -> Logged | None:
        """Record one event exactly once; return it, or None if `build` no longer wants it.

        `build` is called again whenever another writer was faster, after that writer's entries were
        read, so that a decision ("the next free item id") is never made on stale facts.

        Raises: LedgerError, CaseClosedError, SigningKeyError, StoreError. After an error the ledger
        is whole; running the command again is safe.
        """
        identity = scribe.new_id()
        with self._lock:
            self._sync_or_recover(scribe, authority)
            for attempt in range(_ATTEMPTS):
                draft = build()
                if draft is None:
                    return None
                raw = self._sign(draft, identity, scribe, authority, origin)
                key = f"{self._prefix}/ledger/{entry_name(len(self.entries))}"
                with contextlib.suppress(AlreadyExistsError, AmbiguousWriteError):
                    self._backend.create(key, raw)
                for logged in self.sync():
                    if logged.event.id == identity:
                        return logged
                if attempt:
                    time.sleep(random.uniform(0, min(0.002 * 2**attempt, 0.5)))  # noqa: S311
        raise StoreError(
            f"{self.case_id}: the event could not be recorded in {_ATTEMPTS} attempts",
            hint="other writers are too busy or the store does not answer; try again",
        )

    def _sync_or_recover(self, scribe: Scribe, authority: Authority) -> None:
        """Read what is new; where creates can tear, set a torn last entry aside and say so.

        With link(2) a torn entry cannot come from a crash, so it is left in place as an error.
        """
        try:
            self.sync()
            return
        except LedgerError as e:
            facts = self.set_torn_aside(e.position)
            if facts is None:
                raise
        self.append(scribe, authority, lambda: recovery(facts))

    def set_torn_aside(self, seq: int) -> dict[str, JsonValue] | None:
        """Where creates can tear: move entry `seq` to `quarantine/` if it is torn and the last.

        Return the facts for `recovery.noted`, or None if there is no such entry.
        Raises: StoreError.
        """
        if not isinstance(self._backend, LocalBackend) or self._backend.atomic_create:
            return None
        folder = f"{self._prefix}/ledger"
        if f"{folder}/{entry_name(seq + 1)}" in (s.key for s in self._backend.list(folder)):
            return None
        key = f"{folder}/{entry_name(seq)}"
        try:
            raw = self._backend.read(key, 1 << 20)
        except (ObjectNotFoundError, UnfitObjectError):
            return None
        return set_aside(self._backend, key, raw) if _is_torn(raw) else None

    def check_may_sign(self, key: PublicKey) -> str:
        """Return the name under which `key` signs entries now. Raises: SigningKeyError."""
        known = self.ring.entry.get(key.kid)
        if known is None or known[1].fingerprint != key.fingerprint:
            raise SigningKeyError(
                f"your key {key.kid} may not sign in case {self.case_id}",
                hint=f"ask a holder of an allowed key to run: impound key add {self.case_id} "
                "YOUR.pub.pem",
            )
        return known[0]

    def _sign(
        self, draft: Draft, identity: str, scribe: Scribe, authority: Authority, origin: str | None
    ) -> bytes:
        seq = len(self.entries)
        if self.sealed and draft.action not in _AFTER_SEAL:
            raise CaseClosedError(
                f"case {self.case_id} is closed; {draft.action} is not recorded",
                hint="open a new case and refer to this one",
            )
        if seq == 0:
            if draft.action != "case.opened" or origin is None:
                raise StoreError(f"case {self.case_id} has no ledger yet")
            name = next(k.name for k in draft.fields["keys"] if k.use == "entry")
        else:
            name = self.check_may_sign(scribe.signer.public)
        event = CustodyEvent(
            origin=origin or self.origin or "",
            seq=seq,
            prev=self.entries[-1].sha256 if self.entries else ZERO_DIGEST,
            id=identity,
            time=format_time(scribe.clock()),
            clock=scribe.clock_facts(),
            action=draft.action,
            actor=scribe.actor,
            authority=authority,
            tool=scribe.tool,
            **draft.fields,
        )
        raw = sign_note(event.text(), name, scribe.signer)
        if len(raw) > MAX_NOTE_BYTES:
            raise ValueError("a signed event is larger than a note may be")
        if draft.action in ("case.opened", "key.added"):
            self.load_keys()
            for key in event.keys or []:
                if key.kid in self.ring.unfit:
                    raise IntegrityError(self.ring.unfit[key.kid])
        try:  # what a reader would refuse must not be written: it could never be taken back
            check_entry(raw, seq=seq, prev=event.prev, origin=event.origin, ring=self.ring.copy())
        except LedgerError as e:
            raise ValueError(f"not recorded, nobody could read it: {e}") from e
        return raw
