# SPDX-License-Identifier: Apache-2.0
"""A bag into another store: the ledger it came with stays as it is, a new one continues.

    cases/<case>/ledger/…                       the receiver's: entry 0 names the root received
    cases/<case>/received/store.json            what came, unchanged and only read from there on
    cases/<case>/received/cases/<case>/…        ledger, checkpoints, keys, items

Order: the bag is verified; `case.opened`; objects, each hashed again on its way; ledger, then
checkpoints; one `item.received` an item, one for the delivery. A run that dies is repeated. A later
bag of the same case must continue the ledger that is here, or be continued by it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from evidence_store.backend import Backend, LocalBackend, translate
from evidence_store.bag import layout
from evidence_store.bag.verify import BagVerdict, verify_bag
from evidence_store.case import ItemRecord, item_number, received_folder
from evidence_store.checkpoint import Checkpoint
from evidence_store.errors import (
    AlreadyExistsError,
    CaseNotFoundError,
    IntegrityError,
    StoreError,
    StoreNotFoundError,
)
from evidence_store.ledger import Draft
from evidence_store.model import Authority, StoredObject, clean
from evidence_store.sign import PublicKey
from evidence_store.store import Case, Store
from evidence_store.transfer import Progress

_CHUNK = 4 << 20


@dataclass(frozen=True)
class Imported:
    """What an import did. `existing`: this export was taken in before, nothing was done."""

    case: Case
    verdict: BagVerdict
    items: list[str]
    existing: bool = False


def import_bag(
    store: Store,
    folder: Path,
    *,
    deployment: str,
    checkpoint_key: PublicKey,
    workers: int = 2,
    progress: Progress = lambda _done, _total: None,
    receipt: tuple[int, str] | None = None,
    first_key: str | None = None,
) -> Imported:
    """Verify a bag and take its case into `store`, or add to what came before of the same case.

    Args:
        store: opened for writing; made if there is none.
        folder: the bag.
        deployment: name of the store if it is made now.
        checkpoint_key: who may seal the case here.
        workers: objects in work at once.
        progress: called with (bytes done, bytes in all); the bag is read twice.
        receipt: (size, base64 root) that the bag's ledger must extend.
        first_key: fingerprint that the first key of the bag's ledger must have.

    Raises: IntegrityError for a bag that is broken or tells another history than what is here;
    AlreadyExistsError if the store has a case of its own under that id; StoreError. Nothing is
    written before the bag was verified.
    """
    verdict = verify_bag(
        folder, workers=workers, progress=progress, receipt=receipt, first_key=first_key
    )
    if verdict.findings or verdict.opened is None:
        raise IntegrityError(
            f"the bag is broken and was not imported: {verdict.findings[0]}",
            hint=f"impound verify --bag {folder} names everything; ask for another copy",
        )
    key = f"{verdict.opened.case_id}.import"
    work = _Import(store, verdict, verdict.opened, deployment, checkpoint_key, workers, progress)
    work.known()  # refuse before anything is made, the lock included
    with store.backend.exclusive(key):
        return work.run()


@dataclass
class _Import:
    store: Store
    verdict: BagVerdict
    theirs: Case
    deployment: str
    checkpoint_key: PublicKey
    workers: int
    progress: Progress
    done: int = 0
    total: int = 0
    there: dict[str, int] = field(default_factory=dict)

    @property
    def facts(self) -> dict[str, JsonValue]:
        """What the receiver's ledger says of the one received."""
        ledger = self.theirs.ledger
        size = len(ledger.entries)
        numbers = [item_number(i) for i in self.theirs.state.items]
        return {
            "export_id": self.verdict.export_id, "origin": ledger.origin or "", "size": size,
            "root": Checkpoint(size, ledger.roots[size], "").root_text,
            "first_key": ledger.ring.first, "last_item": max(numbers, default=0),
        }  # fmt: skip

    def known(self) -> Case | None:
        """Return the case here, if this bag may add to it; None if there is none yet.

        Raises: AlreadyExistsError, IntegrityError, StoreError.
        """
        case_id = self.theirs.case_id
        try:
            mine = self.store.case(case_id)
        except (StoreNotFoundError, CaseNotFoundError):
            return None
        if mine.state.received is None:
            raise AlreadyExistsError(
                f"the store has a case {case_id} of its own; the bag was not imported",
                hint="import it into another store, with --store",
            )
        first = self.theirs.ledger.ring.first
        if mine.state.received.get("first_key") != first:
            raise IntegrityError(
                f"the bag holds another case {case_id} than the one received before: its first "
                f"key is {first}, that one's {mine.state.received.get('first_key')}",
                hint="ask both senders; import it into another store, with --store",
            )
        self._continues(mine)
        for record in self._items():
            _is_here(mine, record)
        return mine

    def _continues(self, mine: Case) -> None:
        """Check that one of the two ledgers, here and in the bag, is the beginning of the other."""
        inner, theirs = mine.received, self.theirs.ledger
        assert inner is not None  # noqa: S101
        inner.refresh()
        size = min(len(inner.ledger.entries), len(theirs.entries))
        same = inner.ledger.roots[size] == theirs.roots[size]
        begun = mine.state.received or {}
        stated = int(begun["size"])
        if stated < len(theirs.roots):
            same = same and Checkpoint(stated, theirs.roots[stated], "").root_text == begun["root"]
        elif not mine.state.deliveries:
            raise StoreError(
                f"an import of a newer bag of case {mine.case_id} was begun and not finished",
                hint="finish that one first",
            )
        if not same:
            raise IntegrityError(
                f"the first {size} entries of the bag are not those that were received before: "
                "one of the two histories was rewritten",
                hint="compare receipts with the sender; keep both",
            )

    def run(self) -> Imported:
        mine = self.known()
        if mine is not None and self.verdict.export_id in mine.state.deliveries:
            return Imported(mine, self.verdict, [i.item_id for i in self._items()], existing=True)
        if mine is None:
            state = self.theirs.state
            mine = self.store.create_case(
                self.theirs.case_id, Authority(ticket=state.ticket, basis=state.basis),
                deployment=self.deployment, title=state.title, contact=state.contact,
                checkpoint_key=self.checkpoint_key, received=self.facts,
            )  # fmt: skip
        mine.ledger.check_may_sign(self.store.require_scribe().signer.public)
        self._copy(mine)
        taken = self._items()
        for record in taken:
            mine.record(partial(self._receive, mine, record, self._received(record)))
        self._delivered(mine, [r.item_id for r in taken])
        return Imported(mine, self.verdict, [r.item_id for r in taken])

    def _items(self) -> list[ItemRecord]:
        """Return the items whose data are in the bag."""
        export = self.verdict.export
        assert export is not None  # noqa: S101
        left_out = layout.left_out(export)
        return [
            record for record in self.theirs.state.items.values()
            if record.acquired is not None and not record.disposed
            and not left_out(record.item_id)
        ]  # fmt: skip

    # -- bytes -----------------------------------------------------------------------------------

    def _copy(self, mine: Case) -> None:
        place = f"{mine.prefix}/received"
        self.there = {s.key: s.size for s in self.store.backend.list(place)}
        prefix = self.theirs.prefix
        names = [n.removeprefix("data/") for n in self.verdict.digests if n.startswith("data/")]
        kept = [n for n in names if n == "store.json" or n.startswith(f"{prefix}/")]
        self.total = sum(self.verdict.digests[f"data/{n}"][1] for n in kept)

        def of(folder: str) -> list[str]:
            return sorted(n for n in kept if n.startswith(f"{prefix}/{folder}/"))

        with ThreadPoolExecutor(self.workers, thread_name_prefix="import") as pool:
            futures = [pool.submit(self._put, place, name)
                       for name in ["store.json", *of("keys"), *of("items")]]  # fmt: skip
            try:
                for future in futures:
                    future.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        # In order, last.proof before log.note: what an interrupted run leaves is only shorter.
        for name in [*of("ledger"), *of("checkpoints")]:
            self._put(place, name)

    def _put(self, place: str, name: str) -> None:
        backend = self.store.backend
        sha256, size = self.verdict.digests[f"data/{name}"]
        key = f"{place}/{name}"
        if key in self.there and not _is_torn(backend, key, self.there[key], size):
            if backend.sha256(key)[0] != sha256:
                raise IntegrityError(
                    f"{key} is not what the bag holds; nothing was overwritten",
                    hint=f"impound verify {self.theirs.case_id} --deep",
                )
        else:
            backend.create(key, self._chunks(f"data/{name}", sha256), sha256=sha256)
        self.done += size
        self.progress(min(self.done, self.total), self.total)

    def _chunks(self, name: str, expected: str) -> Iterator[bytes]:
        digest = hashlib.sha256()
        fd = layout.open_file(self.verdict.folder, name)
        with os.fdopen(fd, "rb", buffering=0) as f:
            try:
                while chunk := f.read(_CHUNK):
                    digest.update(chunk)
                    yield chunk
            except OSError as e:
                raise translate(e, f"cannot read {name} of the bag") from e
        if digest.hexdigest() != expected:
            raise IntegrityError(f"{name} changed since it was verified", hint="the disk fails")

    # -- entries ---------------------------------------------------------------------------------

    def _receive(self, mine: Case, record: ItemRecord, fields: dict[str, Any]) -> Draft | None:
        return None if _is_here(mine, record) else Draft("item.received", fields)

    def _received(self, record: ItemRecord) -> dict[str, Any]:
        acquired = record.acquired
        assert acquired is not None  # noqa: S101
        place = f"{received_folder(self.theirs.case_id)}/{record.folder}"
        objects = [
            StoredObject.model_validate({
                **o.model_dump(by_alias=True, exclude_none=True),
                "uri": place + o.uri.removeprefix(record.folder),
            })
            for o in acquired.objects or [] if o.uri.startswith(record.folder)
        ]  # fmt: skip
        data: dict[str, Any] = {
            "kind": record.kind, "source": clean(record.source, 200), "received": self.facts,
        }  # fmt: skip
        if record.size is not None:
            data["size"] = record.size
        if record.parents:
            data["parents"] = record.parents
        if done := [a for a in self.theirs.state.analyses if a.item == record.item_id]:
            data["analysis"] = done[-1].hand_on()
        return {
            "item": record.item_id, "objects": objects, "data": data, "result": acquired.result,
        }  # fmt: skip

    def _delivered(self, mine: Case, taken: list[str]) -> None:
        export_id = self.verdict.export_id
        data: dict[str, JsonValue] = {
            "received": self.facts, "items": layout.encode_items(taken),
            "notes": len(self.verdict.notes),
        }  # fmt: skip
        build: Callable[[], Draft | None] = lambda: (  # noqa: E731
            None if export_id in mine.state.deliveries else Draft("item.received", {"data": data})
        )
        mine.record(build)


def _is_here(mine: Case, record: ItemRecord) -> bool:
    """Tell whether an item was received before. Raises: StoreError if its id is another item's."""
    here = mine.state.items.get(record.item_id)
    if here is None:
        return False
    if not here.received or here.manifest_sha256 != record.manifest_sha256:
        raise StoreError(
            f"item {record.item_id} of the bag exists in case {mine.case_id} as another item",
            hint="import the bag into another store, with --store",
        )
    return True


def _is_torn(backend: Backend, key: str, found: int, size: int) -> bool:
    """Set aside what a kill left where creates can tear; tell whether there was such a thing."""
    if found < size and isinstance(backend, LocalBackend) and not backend.atomic_create:
        backend.set_aside(key)
        return True
    return False
