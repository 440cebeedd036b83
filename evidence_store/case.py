# SPDX-License-Identifier: Apache-2.0
"""What a ledger says of a case: a pure fold over its verified events."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from evidence_store.digest import SEGMENT_BYTES
from evidence_store.model import CustodyEvent

ItemState = Literal[
    "identified", "acquiring", "interrupted", "failed", "complete", "partial", "disposed"
]


@dataclass
class Intent:
    """One `acquire.started`: how it ended, and whether a later one took it up."""

    seq: int
    ended_by: int | None = None
    outcome: Literal["open", "acquired", "failed", "resumed"] = "open"


@dataclass(frozen=True)
class Analysis:
    """One analysis: of `analysis.completed`, or as `item.received` hands it on."""

    item: str
    job: str
    what: str
    rows: dict[str, int]
    gaps: int
    result: str
    note: str | None
    seq: int

    @classmethod
    def of(cls, event: CustodyEvent, data: dict[str, Any]) -> Analysis:
        """Return what `data` of an event says; fields of another type are left empty."""
        rows, gaps = data.get("rows"), data.get("gaps")
        received = event.action == "item.received"
        note = data.get("note") if received else event.note
        return cls(
            item=str(event.item), job=str(data.get("job")), what=str(data.get("what")),
            rows={k: v for k, v in rows.items() if isinstance(v, int)}
            if isinstance(rows, dict) else {},
            gaps=gaps if isinstance(gaps, int) else 0,
            result=str(data.get("result")) if received else event.result,
            note=str(note) if note else None,
            seq=event.seq,
        )  # fmt: skip

    def hand_on(self) -> dict[str, Any]:
        """Return it as `data.analysis` of `item.received`."""
        facts: dict[str, Any] = {
            "job": self.job, "what": self.what, "rows": self.rows, "gaps": self.gaps,
            "result": self.result,
        }  # fmt: skip
        return facts | ({"note": self.note[:200]} if self.note else {})


@dataclass
class ItemRecord:
    """One item as the ledger tells it.

    `segment_size`: bytes of a segment, for as long as it is taken. `folder`: where it lies,
    relative to the case.
    """

    item_id: str
    kind: str
    source: str
    key: str | None
    identified: int
    size: int | None = None
    segment_size: int = SEGMENT_BYTES
    intents: list[Intent] = field(default_factory=list)
    acquired: CustodyEvent | None = None
    verified: list[int] = field(default_factory=list)
    parents: list[str] = field(default_factory=list)
    disposed: bool = False
    folder: str = ""

    def __post_init__(self) -> None:
        self.folder = self.folder or f"items/{self.item_id}"

    @property
    def received(self) -> bool:
        """Whether it came with a bag: its own ledger lies in `received/`."""
        return self.acquired is not None and self.acquired.action == "item.received"

    @property
    def state(self) -> ItemState:
        """Where the item stands. `interrupted`: started, no end recorded; it may be running."""
        if self.disposed:
            return "disposed"
        if self.acquired is not None:
            return "complete" if self.acquired.result == "ok" else "partial"
        if not self.intents:
            return "identified"
        return "failed" if self.intents[-1].outcome == "failed" else "interrupted"

    @property
    def manifest_sha256(self) -> str | None:
        """Digest of `manifest.json` as recorded."""
        return self._recorded(f"{self.folder}/manifest.json", "stored")

    def _recorded(self, uri: str, as_: Literal["stored", "content"]) -> str | None:
        objects = (self.acquired.objects if self.acquired else None) or []
        return next((o.sha256 for o in objects if (o.uri, o.as_) == (uri, as_)), None)

    @property
    def content_sha256(self) -> str | None:
        """SHA-256 of all logical bytes in order, as recorded; None if it was not taken."""
        return self._recorded(self.folder, "content")

    @property
    def image_root(self) -> str | None:
        """Digest of `segments.sha256` as recorded: the item's identity."""
        return self._recorded(f"{self.folder}/segments.sha256", "stored")


@dataclass
class CaseState:
    """The fold. `items` in order of identification.

    `received`: of a case that came in a bag, what entry 0 says of it; `deliveries`: export ids of
    the bags that were taken in to the end.
    """

    case_id: str
    items: dict[str, ItemRecord] = field(default_factory=dict)
    analyses: list[Analysis] = field(default_factory=list)
    received: dict[str, Any] | None = None
    deliveries: dict[str, CustodyEvent] = field(default_factory=dict)
    foreign: int = 0
    title: str = ""
    contact: str = ""
    ticket: str = ""
    basis: str = ""
    opened: str = ""
    sealed: str = ""

    @classmethod
    def of(cls, case_id: str, events: Iterable[CustodyEvent]) -> CaseState:
        """Return the state after `events`."""
        state = cls(case_id)
        for event in events:
            state.apply(event)
        return state

    def apply(self, event: CustodyEvent) -> None:
        """Take one more verified event. Events that speak of unknown items change nothing here.

        The first `item.identified` and the first `item.acquired` of an item count: a later entry
        cannot change or hide what was recorded before it.
        """
        if event.action == "case.opened":
            data = event.data or {}
            self.title, self.contact = str(data.get("title", "")), str(data.get("contact", ""))
            self.ticket, self.basis = event.authority.ticket, event.authority.basis
            self.opened = event.time
            self._deliver(event)
        elif event.action == "case.sealed":
            self.sealed = event.time
        elif event.action == "item.identified" and event.item and event.item not in self.items:
            data = event.data or {}
            key, size, parents = data.get("key"), data.get("size"), data.get("parents")
            segment = data.get("segment_size")
            self.items[event.item] = ItemRecord(
                item_id=event.item,
                kind=str(data.get("kind", "")),
                source=str(data.get("source", "")),
                key=key if isinstance(key, str) else None,
                identified=event.seq,
                size=size if isinstance(size, int) else None,
                segment_size=(
                    segment if isinstance(segment, int) and 0 < segment <= SEGMENT_BYTES
                    else SEGMENT_BYTES
                ),
                parents=[str(p) for p in parents] if isinstance(parents, list) else [],
            )  # fmt: skip
        elif event.action == "item.received" and (event.data or {}).get("received"):
            self._receive(event)
        elif event.item in self.items:
            if event.action == "analysis.completed":
                self.analyses.append(Analysis.of(event, event.data or {}))
            self._apply_to(self.items[event.item], event)

    def _deliver(self, event: CustodyEvent) -> None:
        received = (event.data or {}).get("received")
        if isinstance(received, dict):
            self.received = self.received or received
            last = received.get("last_item")
            self.foreign = max(self.foreign, last if isinstance(last, int) else 0)

    def _receive(self, event: CustodyEvent) -> None:
        """Take an item, or the end of a whole delivery."""
        self._deliver(event)
        data = event.data or {}
        if event.item is None:
            received = data["received"]
            if isinstance(received, dict):
                self.deliveries.setdefault(str(received.get("export_id")), event)
        elif event.item not in self.items:
            parents, size = data.get("parents"), data.get("size")
            self.items[event.item] = ItemRecord(
                item_id=event.item,
                kind=str(data.get("kind", "")),
                source=str(data.get("source", "")),
                key=None,
                identified=event.seq,
                size=size if isinstance(size, int) else None,
                acquired=event,
                parents=[str(p) for p in parents] if isinstance(parents, list) else [],
                folder=f"{received_folder(self.case_id)}/items/{event.item}",
            )
            if isinstance(analysis := data.get("analysis"), dict):
                self.analyses.append(Analysis.of(event, analysis))

    def _apply_to(self, item: ItemRecord, event: CustodyEvent) -> None:
        refs = event.refs or []
        if event.action == "acquire.started":
            for intent in item.intents:
                if intent.seq in refs and intent.outcome in ("open", "failed"):
                    intent.ended_by = event.seq
                    intent.outcome = "resumed"
            item.intents.append(Intent(event.seq))
        elif event.action in ("acquire.failed", "item.acquired"):
            outcome: Literal["failed", "acquired"] = (
                "failed" if event.action == "acquire.failed" else "acquired"
            )
            for intent in item.intents:
                if intent.seq in refs:
                    intent.ended_by, intent.outcome = event.seq, outcome
            if event.action == "item.acquired" and item.acquired is None:
                item.acquired = event
        elif event.action == "item.verified":
            item.verified.append(event.seq)
        elif event.action == "item.disposed":
            item.disposed = True

    def next_item_id(self) -> str:
        """The next free id: E0001, E0002 and so on.

        Where a case was received, its own ids begin at the next thousand, so that a later delivery
        can bring the items that its first holder numbered meanwhile.
        """
        own = max((int(i[1:]) for i, r in self.items.items() if not r.received), default=0)
        start = -(-self.foreign // 1000) * 1000
        return f"E{max(own, start) + 1:04d}"


def received_folder(case_id: str) -> str:
    """Return where a received case lies, relative to the case that continues it."""
    return f"received/cases/{case_id}"


def item_number(item_id: str) -> int:
    """Return the number in an item id.

    >>> item_number("E0012")
    12
    """
    return int(item_id[1:])
