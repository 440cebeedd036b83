# SPDX-License-Identifier: Apache-2.0
"""How far a response is, told without the engine: from the ledger, and from tags in AWS.

The ledger says what was begun and what it came to. It does not say whether who began it is still at
it, how far it is, or what is queued; that knows only the machine (or the PostgreSQL) of the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from acquisition.target import Target
from evidence_store.model import CustodyEvent, clean
from evidence_store.store import Case
from pipeline import steps
from pipeline.accounts import Accounts
from pipeline.freeze import frozen, name, newest
from pipeline.response import Line
from pipeline.workflow import STEPS, approved

UNTOLD = (
    "progress and rates; what is queued; whether who began a step is still at it; steps of which "
    "nothing is recorded until they end"
)
# Steps whose pieces are snapshots, and those that are recorded under another name.
_OF_SNAPSHOTS = ("read", "copy", "verify")
_RECORDED = {"remains": "search", "protect": "observe state", "isolate": "prove"}


def last(case: Case) -> dict[str, JsonValue]:
    """Return when and by whom the newest entry was written, and what it is."""
    event = case.ledger.events[-1]
    who = event.actor.asserted.get("responder") or event.actor.asserted.get("user") or ""
    host = event.actor.host.get("name") or ""
    return {"time": event.time, "action": event.action, "by": clean(str(who), 80),
            "host": clean(str(host), 80)}  # fmt: skip


def lines(case: Case, target: str, waiting: tuple[str, ...] = ()) -> Iterator[Line]:
    """Yield what the ledger says of every step of one target, in their order.

    Args:
        case: its ledger.
        target: ARN.
        waiting: steps that wait for an approval, by the settings of this machine.
    """
    freeze = name(target, max(newest(case, target), 1))
    snapshots = sorted(frozen(case, freeze).values())
    for step in STEPS:
        if step.scope != "target":
            continue
        gaps = _gaps(case, step.name, target)
        if step.name in _OF_SNAPSHOTS and snapshots:
            for snapshot in snapshots:
                more = _gaps(case, step.name, snapshot)
                yield _line(case, step.name, target, snapshot, more or gaps, waiting)
        else:
            yield _line(case, step.name, target, "", gaps, waiting)


def _line(
    case: Case, step: str, target: str, unit: str, gaps: tuple[str, ...], waiting: tuple[str, ...]
) -> Line:
    events = _events(case, step, target, unit)
    newest_ = events[-1] if events else None
    if newest_ is not None and newest_.action == "step.started":
        detail = f"begun {newest_.at:%Y-%m-%d %H:%M:%SZ}; whether it goes on is not known here"
        return Line(target, step, unit, "begun", detail, gaps=gaps)
    if gaps:
        return Line(target, step, unit, "gap", gaps[0], gaps=gaps)
    if newest_ is not None and newest_.action == "step.failed":
        return Line(target, step, unit, "failed", newest_.note or "")
    if newest_ is not None:
        return Line(target, step, unit, "ok", _came_to(newest_.data or {}))
    if step in waiting and not _approved(case, step, target):
        hint = f"for approval: impound approve {case.case_id} {step}"
        return Line(target, step, unit, "waiting", hint)
    return Line(target, step, unit, "unrecorded")


def _events(case: Case, step: str, target: str, unit: str) -> list[CustodyEvent]:
    if step == "verify":
        copies = [str((e.data or {}).get("copy")) for e in steps.events_of(case, "copy", unit)
                  if e.action == "step.done"]  # fmt: skip
        return [
            e for e in case.ledger.events if (e.data or {}).get("step") == "prove"
            and str((e.data or {}).get("target")).partition(" ")[0] in copies
        ]  # fmt: skip
    if step == "freeze":
        return steps.events_of(case, step, name(target, max(newest(case, target), 1)))
    return steps.events_of(case, _RECORDED.get(step, step), unit or target)


def _came_to(data: Mapping[str, JsonValue]) -> str:
    facts = {k: v for k, v in data.items() if k in (
        "verdict", "item", "copy", "volumes", "state", "left"
    ) and isinstance(v, str | int)}  # fmt: skip
    return clean(", ".join(f"{k} {v}" for k, v in facts.items()), 120)


def _gaps(case: Case, step: str, key: str) -> tuple[str, ...]:
    return tuple(
        e.note for e in steps.events_of(case, f"respond.{step}", key)
        if e.action == "step.skipped" and e.note
    )  # fmt: skip


def _approved(case: Case, step: str, target: str) -> bool:
    from acquisition.target import parse_target

    return approved(case, step, parse_target(target))


@dataclass(frozen=True)
class Tagged:
    """A snapshot that AWS shows with the tag of the case. `recorded`: the ledger names it."""

    snapshot: str
    volume: str
    state: str
    progress: str
    recorded: bool


def tagged(case: Case, accounts: Accounts, target: Target) -> list[Tagged]:
    """Return what AWS shows of a target's account and Region, tagged for the case.

    Raises: AccountError, AcquisitionError.
    """
    from acquisition.errors import AcquisitionError
    from evidence_store.aws import Failure, failures

    known = {
        str(value) for e in case.ledger.events for key, value in (e.data or {}).items()
        if key in ("snapshot", "copy", "target")
    }  # fmt: skip
    client = accounts.client("ec2", target.account, target.region)
    try:
        pages = client.get_paginator("describe_snapshots").paginate(
            OwnerIds=["self"], Filters=[{"Name": "tag:case", "Values": [case.case_id]}]
        )
        found = [s for page in pages for s in page["Snapshots"]]
    except failures() as e:
        error = Failure(e).error(f"cannot list snapshots of {target.account} in {target.region}")
        raise AcquisitionError(clean(str(error), 400), hint=error.hint) from e
    return [
        Tagged(s["SnapshotId"], s.get("VolumeId", ""), s["State"], s.get("Progress") or "",
               s["SnapshotId"] in known)
        for s in sorted(found, key=lambda s: str(s["SnapshotId"]))
    ]  # fmt: skip
