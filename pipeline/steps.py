# SPDX-License-Identifier: Apache-2.0
"""Steps of a response in the ledger: an intent before anything is done, its outcome after.

The ledger is the memory. A step whose outcome is recorded is not done again; one whose intent alone
is recorded was interrupted, and whoever does it again first looks for what it may have made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from pydantic import JsonValue

from evidence_store.ledger import Draft
from evidence_store.model import CustodyEvent, clean
from evidence_store.store import Case


@dataclass(frozen=True)
class Begun:
    """A step that is under way.

    Attributes:
        seq: entry of its first intent that has no outcome.
        since: when that was recorded.
        resumed: an earlier run recorded it.
        done: what the ledger says it came to, if it is done already.
    """

    name: str
    target: str
    seq: int
    since: datetime
    resumed: bool
    done: Mapping[str, JsonValue] | None = None


def last_outcome(case: Case, name: str, target: str) -> tuple[CustodyEvent | None, bool]:
    """Return (newest event of a step, whether it is open). Pure, over the verified ledger."""
    newest = None
    for event in case.ledger.events:
        data = event.data or {}
        if event.action.startswith("step.") and (data.get("step"), data.get("target")) == (
            name, target,
        ):  # fmt: skip
            newest = event
    return newest, newest is not None and newest.action == "step.started"


def begin(case: Case, name: str, target: str, **facts: JsonValue) -> Begun:
    """Record the intent of a step, unless it is open or done.

    Raises: StoreError.
    """
    found: list[Begun] = []

    def build() -> Draft | None:
        found.clear()
        event, is_open = last_outcome(case, name, target)
        if event is not None and event.action == "step.done":
            found.append(Begun(name, target, event.seq, event.at, resumed=True, done=event.data))
            return None
        if event is not None and is_open:
            found.append(Begun(name, target, event.seq, event.at, resumed=True))
            return None
        return Draft("step.started", {"data": {"step": name, "target": target, **facts}})

    logged = case.record(build)
    if logged is None:
        return found[0]
    return Begun(name, target, logged.event.seq, logged.event.at, resumed=False)


def done(case: Case, step: Begun, **facts: JsonValue) -> None:
    """Record that a step is done, and what it came to. Raises: StoreError."""
    _end(case, step, "step.done", "ok", facts)


def failed(case: Case, step: Begun, why: str) -> None:
    """Record that a step failed; it can be begun again. Raises: StoreError."""
    _end(case, step, "step.failed", "failed", {}, why)


def skipped(case: Case, name: str, target: str, why: str) -> None:
    """Record that a step cannot be done, unless that is its last word already."""

    def build() -> Draft | None:
        event, _ = last_outcome(case, name, target)
        note = clean(why, 500)
        if event is not None and event.action == "step.skipped" and event.note == note:
            return None
        return Draft("step.skipped", {"data": {"step": name, "target": target}, "note": note})

    case.record(build)


def _end(
    case: Case, step: Begun, action: str, result: str, facts: Mapping[str, JsonValue],
    note: str = "",
) -> None:  # fmt: skip
    fields = {
        "refs": [step.seq], "result": result,
        "data": {"step": step.name, "target": step.target, **facts},
    }  # fmt: skip
    if note:
        fields["note"] = clean(note, 500)
    case.record(lambda: Draft(action, fields))  # type: ignore[arg-type]
