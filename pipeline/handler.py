# SPDX-License-Identifier: Apache-2.0
"""Containment as a Lambda function: observe → protect → freeze → isolate, from one event.

    event    {"case": "T-1001", "target": ARN of an instance,
              "peers": [addresses to cut at once],
              "open": {"ticket", "title", "contact"}   opens the case if there is none}
    answer   {"code", "case", "target", "verdict", "left", "unfiltered", "gaps", "waits",
              "changes", "snapshots": {volume: snapshot}, "spooled"}

`code` is the exit code that the command line would give. The snapshots are ordered, not awaited. If
the store or its key cannot be had, the entries go to the function's log, one signed line each
(`impound-spool …`); the event, which asks for the same again, is the rest of the spool.

Environment: `IMPOUND_SETTINGS` (settings as text) or `IMPOUND_CONFIG` (their file),
`XDG_STATE_HOME` and `XDG_CACHE_HOME` (folders below `/tmp`). Needs boto3, cryptography, pydantic
and rfc8785, nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue

from acquisition.containment.state import peer_cidr
from acquisition.errors import AcquisitionError
from acquisition.snapshot import Ec2, nonce
from acquisition.target import Target, parse_target
from evidence_store.errors import CaseNotFoundError, IntegrityError, StoreError, StoreNotFoundError
from evidence_store.model import Authority, clean
from evidence_store.store import Case, case_tags, check_case_id
from pipeline import steps
from pipeline.config import load
from pipeline.errors import UsageError
from pipeline.isolate import Containment
from pipeline.journal import Journal
from pipeline.session import Passphrase, Session

_log = logging.getLogger("pipeline.handler")


def handler(event: Mapping[str, Any], _context: object) -> dict[str, JsonValue]:
    """Contain what the event names. Raises: UsageError, AcquisitionError, and those of settings."""
    case_id, target, peers = _asked(event)
    settings = load().settings
    session = Session(settings, settings.store, Passphrase(interactive=False))
    journal = Journal.of(
        session, case_id, lambda: case_of(session, case_id, event.get("open")),
        warn=_log.warning, echo=_log.warning,
    )  # fmt: skip
    accounts = session.accounts(case_id)
    containment = Containment(journal, accounts, settings, target, peers, say=_log.info)
    containment.protect()
    gaps: list[JsonValue] = []
    frozen: dict[str, JsonValue] = {}
    try:
        frozen = _freeze(journal, accounts, target, gaps)
    except AcquisitionError as e:
        gaps.append(f"not frozen: {e}")
    outcome = containment.isolate()
    if not journal.spooled and settings.signing.sealer and session.in_aws:
        try:
            session.ask_sealer(journal.current)
        except (StoreError, IntegrityError) as e:
            gaps.append(f"not sealed: {e}")
    gaps += outcome.gaps
    code = 4 if outcome.waits else 3 if gaps or journal.spooled else 0
    return {
        **outcome.document(), "code": code, "case": case_id, "gaps": gaps, "snapshots": frozen,
        "spooled": journal.spooled,
    }  # fmt: skip


def _asked(event: Mapping[str, Any]) -> tuple[str, Target, tuple[str, ...]]:
    try:
        case_id = check_case_id(str(event["case"]))
        target = parse_target(str(event["target"]))
        peers = tuple(peer_cidr(str(p)) for p in event.get("peers", ()))
    except KeyError as e:
        raise UsageError(f"the event names no {e.args[0]}") from e
    except ValueError as e:
        raise UsageError(str(e)) from e
    if target.kind != "instance":
        raise UsageError(f"{target.resource_id} is no instance")
    return case_id, target, peers


def case_of(session: Session, case_id: str, opening: Mapping[str, Any] | None) -> Case:
    """Return a case for writing, opened if there is none and `opening` (see above) is given.

    Raises: CaseNotFoundError, StoreNotFoundError, StoreError, IntegrityError, SigningKeyError.
    """
    store = session.open_store(writing=True)
    try:
        return store.case(case_id)
    except (CaseNotFoundError, StoreNotFoundError):
        if opening is None:
            raise
    ticket = clean(str(opening.get("ticket") or case_id), 100)
    return store.create_case(
        case_id, Authority(ticket=ticket), deployment=session.settings.deployment,
        title=str(opening.get("title", "")), contact=str(opening.get("contact", "")),
        checkpoint_key=session.checkpoint_public,
    )  # fmt: skip


def _freeze(
    journal: Journal, accounts: Any, target: Target, gaps: list[JsonValue]
) -> dict[str, JsonValue]:
    """Order one snapshot of each volume; `acquire volume` finds them in the ledger."""
    events = journal.events
    known = {
        str(e.data["volume"]): e.data["snapshot"] for e in events
        if e.data and e.data.get("step") == "snapshot" and e.data.get("of") == target.arn
    }  # fmt: skip
    if known and any(e.action == "step.done" for e in
                     steps.events_of(journal, "freeze", target.arn)):  # fmt: skip
        return known
    ec2 = Ec2(
        accounts.client("ec2", target.account, target.region),
        accounts.client("ec2", target.account, target.region, once=True),
        target.account, target.region,
    )  # fmt: skip
    observed = ec2.observe(target.kind, target.resource_id)
    gaps += observed.gaps
    if not observed.volumes:
        return {}
    case = journal.current
    tags = case_tags(case.case_id, case.state.ticket, case.state.contact)
    mark = nonce(case.store.identity.store_id, case.case_id, "freeze", target.arn)
    begun = steps.begin(journal, "freeze", target.arn)
    try:
        made = ec2.freeze(observed, tags, mark, begun.since, resumed=begun.resumed)
    except AcquisitionError as e:
        steps.failed(journal, begun, str(e))
        raise
    for volume in observed.volumes:
        snapshot = made[volume.volume_id]
        steps.note(
            journal, "snapshot", volume.volume_id, of=target.arn, **volume.facts,
            snapshot=snapshot.snapshot_id, started=snapshot.facts["started"],
        )  # fmt: skip
    steps.done(journal, begun, volumes=len(made))
    return {volume: snapshot.snapshot_id for volume, snapshot in made.items()}
