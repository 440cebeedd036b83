# SPDX-License-Identifier: Apache-2.0
"""What a ledger says of a case: a pure fold over its verified events."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

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


@dataclass
class ItemRecord:
    """One item as the ledger tells it."""

    item_id: str
    kind: str
    source: str
    key: str | None
    identified: int
    size: int | None = None
    intents: list[Intent] = field(default_factory=list)
    acquired: CustodyEvent | None = None
    verified: list[int] = field(default_factory=list)
    parents: list[str] = field(default_factory=list)
    disposed: bool = False

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
        return self._recorded(f"items/{self.item_id}/manifest.json", "stored")

    def _recorded(self, uri: str, as_: Literal["stored", "content"]) -> str | None:
        objects = (self.acquired.objects if self.acquired else None) or []
        return next((o.sha256 for o in objects if (o.uri, o.as_) == (uri, as_)), None)

    @property
    def content_sha256(self) -> str | None:
        """SHA-256 of all logical bytes in order, as recorded; None if it was not taken."""
        return self._recorded(f"items/{self.item_id}", "content")

    @property
    def image_root(self) -> str | None:
        """Digest of `segments.sha256` as recorded: the item's identity."""
        return self._recorded(f"items/{self.item_id}/segments.sha256", "stored")


@dataclass
class CaseState:
    """The fold. `items` in order of identification."""

    case_id: str
    items: dict[str, ItemRecord] = field(default_factory=dict)
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
        elif event.action == "case.sealed":
            self.sealed = event.time
        elif event.action == "item.identified" and event.item and event.item not in self.items:
            data = event.data or {}
            key, size, parents = data.get("key"), data.get("size"), data.get("parents")
            self.items[event.item] = ItemRecord(
                item_id=event.item,
                kind=str(data.get("kind", "")),
                source=str(data.get("source", "")),
                key=key if isinstance(key, str) else None,
                identified=event.seq,
                size=size if isinstance(size, int) else None,
                parents=[str(p) for p in parents] if isinstance(parents, list) else [],
            )
        elif event.item in self.items:
            self._apply_to(self.items[event.item], event)

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
        """The next free id: E0001, E0002 and so on."""
        return f"E{max((int(i[1:]) for i in self.items), default=0) + 1:04d}"
