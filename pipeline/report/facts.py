# SPDX-License-Identifier: Apache-2.0
"""What the first `size` ledger entries say of a case, arranged for reading.

Nothing here looks at later entries, at the clock, or at the machine that renders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from evidence_store.case import CaseState, ItemRecord
from evidence_store.checkpoint import Checkpoint, checkpoint_sizes, read_checkpoint
from evidence_store.errors import IntegrityError
from evidence_store.item import Manifest
from evidence_store.ledger import Logged
from evidence_store.model import CustodyEvent, StoreBinding
from evidence_store.store import Case
from pipeline.errors import PipelineError

_STATES = {
    "identified": "identified, never acquired",
    "acquiring": "being acquired",
    "interrupted": "acquisition started, no end recorded",
    "failed": "acquisition failed and was not continued",
    "complete": "complete",
    "partial": "stored, with gaps or remarks",
    "disposed": "disposed of",
}


@dataclass(frozen=True)
class KeyUse:
    """A key that the ledger allows, and between which entries."""

    kid: str
    sha256: str
    name: str
    use: str
    added: int
    revoked: int | None


@dataclass
class Item:
    """One item: what the ledger and its manifest say.

    Attributes:
        record: the fold over the ledger.
        manifest: None while it is not stored.
        identified: its first entry.
        events: every entry that names it.
        children: items derived from it.
    """

    record: ItemRecord
    manifest: Manifest | None
    identified: CustodyEvent
    events: list[CustodyEvent]
    children: list[str] = field(default_factory=list)

    @property
    def state(self) -> str:
        """Where it stands, in words."""
        return _STATES[self.record.state]

    @property
    def by(self) -> CustodyEvent | None:
        """The entry whose actor took it: of its acquisition, else of the last attempt."""
        started = [e for e in self.events if e.action == "acquire.started"]
        return self.record.acquired or (started[-1] if started else None)

    @property
    def attempts(self) -> list[tuple[CustodyEvent, str, CustodyEvent | None]]:
        """Every start of an acquisition: its entry, how it ended, the entry that says so."""
        by_seq = {e.seq: e for e in self.events}
        return [
            (by_seq[i.seq], i.outcome, by_seq.get(i.ended_by) if i.ended_by else None)
            for i in self.record.intents
        ]

    @property
    def verifications(self) -> list[CustodyEvent]:
        """Entries that record a verification."""
        return [e for e in self.events if e.action == "item.verified"]

    @property
    def analyses(self) -> list[CustodyEvent]:
        """Entries that record an analysis whose result this item is."""
        return [e for e in self.events if e.action == "analysis.completed"]

    def digest_of(self, name: str) -> str | None:
        """Recorded digest of one of the item's own files."""
        uri = f"{self.record.folder}/{name}"
        objects = self.record.acquired.objects if self.record.acquired else None
        return next((o.sha256 for o in objects or [] if o.uri == uri), None)


@dataclass
class Covered:
    """A case as of a checkpoint: the only thing that sections are made from."""

    case: Case
    checkpoint: Checkpoint

    @cached_property
    def entries(self) -> list[Logged]:
        """The entries that the checkpoint covers."""
        return self.case.ledger.entries[: self.checkpoint.size]

    @cached_property
    def events(self) -> list[CustodyEvent]:
        """Their events."""
        return [logged.event for logged in self.entries]

    @cached_property
    def state(self) -> CaseState:
        """The fold over them."""
        return CaseState.of(self.case.case_id, self.events)

    @property
    def case_id(self) -> str:
        """Id of the case."""
        return self.case.case_id

    @property
    def size(self) -> int:
        """Number of entries."""
        return self.checkpoint.size

    @property
    def as_of(self) -> str:
        """Time of the last entry."""
        return self.events[-1].time

    @property
    def opened(self) -> CustodyEvent:
        """Entry 0."""
        return self.events[0]

    @property
    def binding(self) -> StoreBinding | None:
        """The store in which the case was opened."""
        return self.opened.store

    @cached_property
    def keys(self) -> list[KeyUse]:
        """Every key ever allowed, in the order of the ledger."""
        revoked = {
            key.kid: event.seq
            for event in self.events if event.action == "key.revoked"
            for key in event.keys or []
        }  # fmt: skip
        return [
            KeyUse(key.kid, key.sha256, key.name, key.use, event.seq, revoked.get(key.kid))
            for event in self.events if event.action in ("case.opened", "key.added")
            for key in event.keys or []
        ]  # fmt: skip

    @property
    def first_key(self) -> str:
        """Fingerprint of the key that opened the case."""
        return self.keys[0].sha256 if self.keys else ""

    @cached_property
    def unvouched(self) -> int:
        """Entries whose actor nobody vouched for."""
        return sum(not event.actor.authenticated for event in self.events)

    @cached_property
    def items(self) -> Mapping[str, Item]:
        """Every item in the order of identification.

        Raises: IntegrityError if a manifest is not what was recorded.
        """
        by_item: dict[str, list[CustodyEvent]] = {}
        for event in self.events:
            if event.item:
                by_item.setdefault(event.item, []).append(event)
        items = {
            item_id: Item(record, self._manifest(record), self.events[record.identified],
                          by_item[item_id])
            for item_id, record in self.state.items.items()
        }  # fmt: skip
        for item_id, item in items.items():
            for parent in item.record.parents:
                if parent in items:
                    items[parent].children.append(item_id)
        return items

    def _manifest(self, record: ItemRecord) -> Manifest | None:
        if record.acquired is None:
            return None
        try:
            return self.case.manifest(record.item_id)
        except IntegrityError:
            if record.disposed:  # then its manifest may be gone, and the ledger says so
                return None
            raise


def cover(case: Case, as_of: int | None) -> Covered:
    """Return the case as of a stored checkpoint; the newest if `as_of` is None.

    Raises: PipelineError if there is no such checkpoint; IntegrityError if it does not hold.
    """
    case.refresh()
    sizes = checkpoint_sizes(case)
    if not sizes:
        raise PipelineError(
            f"case {case.case_id} has no checkpoint, and a report is made as of one",
            hint=f"impound seal {case.case_id}",
        )
    size = sizes[-1] if as_of is None else as_of
    if size not in sizes:
        raise PipelineError(
            f"case {case.case_id} has no checkpoint over {size} entries",
            hint=f"there are checkpoints over {_listed(sizes)} entries",
        )
    return Covered(case, read_checkpoint(case, size))


def _listed(sizes: list[int]) -> str:
    if len(sizes) > 20:
        return f"{', '.join(map(str, sizes[:5]))}, …, {', '.join(map(str, sizes[-10:]))}"
    return ", ".join(map(str, sizes))
