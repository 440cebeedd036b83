# SPDX-License-Identifier: Apache-2.0
"""Steps of a response in the ledger: an intent before anything is done, its outcome after.

The ledger is the memory. A step whose outcome is recorded is not done again; one whose intent alone
is recorded was interrupted, and whoever does it again first looks for what it may have made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from pydantic import JsonValue

from evidence_store.ledger import Draft, Logged
from evidence_store.model import CustodyEvent, clean


class Events(Protocol):
    """The verified events of a case, in order."""

    @property
    def events(self) -> list[CustodyEvent]:
        """Them."""


class Recorder(Protocol):
    """Where steps are recorded: a case, or `pipeline.journal.Journal` when it cannot be had."""

    @property
    def ledger(self) -> Events:
        """What was recorded."""

    def record(self, build: Callable[[], Draft | None]) -> Logged | None:
        """Record one event, unless `build` no longer wants it."""


@dataclass(frozen=True)
class Begun:
    """A step that is under way.

    Attributes:
        seq: entry of the intent that an outcome refers to.
        since: when the step was first meant to be done: what it makes is not older.
        resumed: an earlier run recorded an intent, and may have made something.
        done: what the ledger says it came to, if it is done already.
    """

    name: str
    target: str
    seq: int
    since: datetime
    resumed: bool
    done: Mapping[str, JsonValue] | None = None


def events_of(case: Recorder, name: str, target: str) -> list[CustodyEvent]:
    """Return what the verified ledger says of a step, in order."""
    return [
        event for event in case.ledger.events
        if event.action.startswith(("step.", "target."))
        and ((event.data or {}).get("step"), (event.data or {}).get("target")) == (name, target)
    ]  # fmt: skip


def begin(case: Recorder, name: str, target: str, **facts: JsonValue) -> Begun:
    """Record the intent of a step, unless it is open or done.

    Raises: StoreError.
    """
    before: list[CustodyEvent] = []

    def build() -> Draft | None:
        before[:] = events_of(case, name, target)
        if before and before[-1].action in ("step.started", "step.done"):
            return None
        return Draft("step.started", {"data": {"step": name, "target": target, **facts}})

    logged = case.record(build)
    intents = [event for event in before if event.action == "step.started"]
    last = logged.event if logged else intents[-1]
    outcome = before[-1] if before and before[-1].action == "step.done" else None
    return Begun(
        name, target, last.seq, (intents or [last])[0].at, resumed=bool(intents),
        done=outcome.data if outcome else None,
    )  # fmt: skip


def done(case: Recorder, step: Begun, **facts: JsonValue) -> None:
    """Record that a step is done, and what it came to. Raises: StoreError."""
    _end(case, step, "step.done", "ok", facts)


def changed(
    case: Recorder, step: Begun, action: Literal["target.changed", "target.restored"],
    **facts: JsonValue,
) -> None:  # fmt: skip
    """Record that a step changed its target, or put it back. Raises: StoreError."""
    _end(case, step, action, "ok", facts)


def note(case: Recorder, name: str, target: str, **facts: JsonValue) -> None:
    """Record one fact of a step, unless it stands: an event of its own, for events are short."""
    data: dict[str, JsonValue] = {"step": name, "target": target, **facts}

    def build() -> Draft | None:
        stands = any(event.data == data for event in events_of(case, name, target))
        return None if stands else Draft("step.done", {"data": data})

    case.record(build)


def failed(case: Recorder, step: Begun, why: str) -> None:
    """Record that a step failed; it can be begun again. Raises: StoreError."""
    _end(case, step, "step.failed", "failed", {}, why)


def skipped(case: Recorder, name: str, target: str, why: str) -> None:
    """Record that a step cannot be done, unless that is its last word already."""

    def build() -> Draft | None:
        note = clean(why, 500)
        last = events_of(case, name, target)[-1:]
        if last and last[0].action == "step.skipped" and last[0].note == note:
            return None
        return Draft("step.skipped", {"data": {"step": name, "target": target}, "note": note})

    case.record(build)


def _end(
    case: Recorder, step: Begun, action: str, result: str, facts: Mapping[str, JsonValue],
    note: str = "",
) -> None:  # fmt: skip
    fields = {
        "refs": [step.seq], "result": result,
        "data": {"step": step.name, "target": step.target, **facts},
    }  # fmt: skip
    if note:
        fields["note"] = clean(note, 500)
    case.record(lambda: Draft(action, fields))  # type: ignore[arg-type]
