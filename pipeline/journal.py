# SPDX-License-Identifier: Apache-2.0
"""A recorder that never keeps containment waiting: the case, or a spool beside it.

If the store or its signing key cannot be had in time, intents and outcomes go into a spool: a local
store of its own, whose ledger is signed by keys made for this run and forgotten with it. The
fingerprint of its first key is said at once; who reads the spool later compares it. The next
command that reaches the case adopts what lies there: each event is recorded again with the time and
the digest that it has in the spool, and `recovery.noted` names spool, root and key.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import os
import queue
import threading
import uuid
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import JsonValue

from evidence_store.backend import LocalBackend
from evidence_store.errors import (
    CaseClosedError,
    CaseNotFoundError,
    IntegrityError,
    StoreError,
    StoreNotFoundError,
)
from evidence_store.ledger import Draft, Logged, Scribe, entry_name
from evidence_store.model import Actor, Authority, CustodyEvent, Tool
from evidence_store.sign import LocalSigner
from evidence_store.store import Case, Store
from pipeline.config import state_home
from pipeline.session import Session, tool_identity

OPEN_S = 30.0
RECORD_S = 10.0
DEPLOYMENT = "impound.spool"
_ADOPTED = "adopted"
# A mistake of whoever asks, which a spool must not hide.
_OURS = (CaseNotFoundError, StoreNotFoundError, CaseClosedError)

T = TypeVar("T")


class LateError(StoreError):
    """The store did not answer in time."""


class Journal:
    """What is recorded of one case by one run. See the module.

    Args:
        case_id: of which case.
        open_case: opens it for writing; may take long, or fail.
        folder: where spools are kept.
        actor, tool: who writes, for a spool.
        warn: told what must not be missed.
        echo: given every entry of a spool as one line, signed: for the log of a function, whose
            disk does not last.
    """

    def __init__(
        self, case_id: str, open_case: Callable[[], Case], folder: Path,
        actor: Callable[[], Actor], tool: Callable[[], Tool], *,
        warn: Callable[[str], None] = lambda _line: None,
        echo: Callable[[str], None] = lambda _line: None,
    ) -> None:  # fmt: skip
        self.case_id = case_id
        self._folder = folder / case_id
        self._actor, self._tool, self._warn, self._echo = actor, tool, warn, echo
        self._spool: Case | None = None
        self._earlier: list[CustodyEvent] = []
        self.case: Case | None = None
        try:
            self.case = within(OPEN_S, open_case)
        except (StoreError, IntegrityError) as e:
            if isinstance(e, _OURS):
                raise
            self._leave(e)
        else:
            self._adopt(self.case)
        if self.case is None:
            self._earlier = [e for c in self._spools() for e in c.ledger.events[1:]]

    @classmethod
    def of(
        cls, session: Session, case_id: str, open_case: Callable[[], Case], *,
        warn: Callable[[str], None] = lambda _line: None,
        echo: Callable[[str], None] = lambda _line: None,
    ) -> Journal:  # fmt: skip
        """Return the journal of a session. Raises: CaseNotFoundError and the like."""

        def actor() -> Actor:
            try:
                return session.actor
            except StoreError:
                return Actor(asserted={"uid": os.getuid()}, host={})

        return cls(case_id, open_case, state_home() / "spool", actor, tool_identity,
                   warn=warn, echo=echo)  # fmt: skip

    @property
    def ledger(self) -> Journal:
        """This, as a step looks at a case."""
        return self

    @property
    def events(self) -> list[CustodyEvent]:
        """What is known to have been recorded: in the case as far as it was read, in spools."""
        read = self.case.ledger.events if self.case else []
        return [*read, *self._earlier, *(self._spool.ledger.events[1:] if self._spool else ())]

    @property
    def spooled(self) -> bool:
        """Whether the case is not at hand (any more)."""
        return self._spool is not None or self.case is None

    @property
    def current(self) -> Case:
        """The case, or the spool that stands in for it."""
        return self.case if self.case is not None and self._spool is None else self._spooling()

    def record(self, build: Callable[[], Draft | None]) -> Logged | None:
        """Record one event in the case, or in the spool. Raises: StoreError, CaseClosedError."""
        case = self.case
        if case is not None and self._spool is None:
            try:
                return within(RECORD_S, lambda: case.record(build))
            except (StoreError, IntegrityError) as e:
                if isinstance(e, _OURS):
                    raise
                self._leave(e)
        spool = self._spooling()
        logged = spool.record(build)
        if logged is not None:
            self._say(spool, logged.event.seq)
        return logged

    def _leave(self, e: Exception) -> None:
        self._warn(f"case {self.case_id} cannot be written: {e}; going on with a spool")
        self._spooling()

    def _spooling(self) -> Case:
        if self._spool is None:
            signer = LocalSigner.generate()
            root = self._folder / str(uuid.uuid4())
            store = Store(LocalBackend(root), Scribe(self._actor(), self._tool(), signer))
            self._spool = store.create_case(
                self.case_id, Authority(ticket=self.case_id), deployment=DEPLOYMENT,
                title="spool", checkpoint_key=LocalSigner.generate().public,
            )  # fmt: skip
            weakref.finalize(self, os.close, _hold(root))
            self._warn(f"spool {root}, signed by {signer.public.fingerprint}")
            self._echo(f"impound-spool {self.case_id} key {signer.public.pem().decode()!r}")
            self._say(self._spool, 0)
        return self._spool

    def _say(self, spool: Case, seq: int) -> None:
        note = spool.store.backend.read(f"{spool.prefix}/ledger/{entry_name(seq)}", 1 << 20)
        self._echo(f"impound-spool {self.case_id} {seq} {base64.b64encode(note).decode()}")

    def _adopt(self, case: Case) -> None:
        for spool in self._spools():
            root = _root(spool)
            try:
                with _held(root):
                    adopt(case, spool)
                    done = self._folder / _ADOPTED
                    done.mkdir(exist_ok=True)
                    root.rename(done / root.name)
            except (StoreError, IntegrityError, BlockingIOError) as e:
                self._warn(f"the spool {root} is not adopted yet: {e}")
                self._earlier += spool.ledger.events[1:]
            else:
                self._warn(f"adopted {len(spool.ledger.events) - 1} entries that were spooled")

    def _spools(self) -> Iterator[Case]:
        """Those of this case that nobody adopted yet, their ledgers verified."""
        for found in sorted(self._folder.glob("*/store.json")):
            try:
                yield Store(LocalBackend(found.parent)).case(self.case_id)
            except CaseNotFoundError:
                continue  # its writer ended before the first entry
            except (StoreError, IntegrityError) as e:
                self._warn(f"the spool {found.parent} cannot be read: {e}")


def _root(spool: Case) -> Path:
    backend = spool.store.backend
    if not isinstance(backend, LocalBackend):
        raise TypeError("a spool is local")
    return backend.root


def _hold(root: Path) -> int:
    """Keep others from adopting a spool until the descriptor is closed; return that."""
    descriptor = os.open(root, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


@contextlib.contextmanager
def _held(root: Path) -> Iterator[None]:
    descriptor = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def adopt(case: Case, spool: Case) -> None:
    """Record in a case what lies in a spool, each event once. Raises: StoreError."""
    identity = spool.store.identity.store_id
    for logged in spool.ledger.entries[1:]:
        _adopt_one(case, identity, logged)
    facts: dict[str, JsonValue] = {
        "spool": identity, "entries": len(spool.ledger.entries),
        "root": spool.ledger.roots[-1].hex(), "key": spool.ledger.ring.first,
        "actor": spool.ledger.events[0].actor.model_dump(),
    }  # fmt: skip

    def build() -> Draft | None:
        stands = any((e.data or {}).get("spool") == identity for e in case.ledger.events
                     if e.action == "recovery.noted")  # fmt: skip
        note = "what was recorded while the store could not be written was adopted"
        return None if stands else Draft("recovery.noted", {"data": facts, "note": note})

    case.record(build)


def _adopt_one(case: Case, identity: str, logged: Logged) -> None:
    event = logged.event
    spooled: dict[str, JsonValue] = {
        "spool": identity, "seq": event.seq, "time": event.time, "sha256": logged.sha256,
    }  # fmt: skip
    fields: dict[str, object] = {
        "data": {**(event.data or {}), "spooled": spooled}, "result": event.result,
    }  # fmt: skip
    if event.note:
        fields["note"] = event.note

    def build() -> Draft | None:
        stands = any((e.data or {}).get("spooled") == spooled for e in case.ledger.events)
        return None if stands else Draft(event.action, fields)

    case.record(build)


def within(seconds: float, call: Callable[[], T]) -> T:
    """Return what `call` returns, or raise what it raises; if it takes too long, LateError.

    It is then left to itself, on a thread that does not keep the process from ending.
    """
    answers: queue.SimpleQueue[tuple[bool, object]] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put((True, call()))
        except BaseException as e:
            answers.put((False, e))

    threading.Thread(target=work, daemon=True, name="journal").start()
    with contextlib.suppress(queue.Empty):
        fine, value = answers.get(timeout=seconds)
        if fine:
            return value  # type: ignore[return-value]
        try:
            raise value  # type: ignore[misc]
        finally:
            del value  # its traceback holds this frame, and the caller's
    raise LateError(f"the store did not answer within {seconds:.0f} s")
