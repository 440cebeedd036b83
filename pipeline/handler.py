# SPDX-License-Identifier: Apache-2.0
"""Containment as a Lambda function: observe → protect → freeze → isolate, from one event.

    event    {"case": "T-1001", "target": ARN of an instance,
              "peers": [addresses to cut at once],
              "open": {"ticket", "title", "contact"}   opens the case if there is none}
    answer   {"code", "case", "target", "verdict", "left", "unfiltered", "gaps", "waits",
              "changes", "snapshots": {volume: snapshot}, "spooled"}

`code` is the exit code that the command line would give. The snapshots are ordered and locked, not
awaited. If the store or its key cannot be had, the entries go to the function's log, one signed
line each (`impound-spool …`); the event, which asks for the same again, is the rest of the spool.

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
from acquisition.target import Target, parse_target
from evidence_store.errors import CaseNotFoundError, IntegrityError, StoreError, StoreNotFoundError
from evidence_store.model import Authority, clean
from evidence_store.store import Case, check_case_id
from pipeline.config import load
from pipeline.errors import UsageError
from pipeline.freeze import Freeze
from pipeline.isolate import Containment
from pipeline.journal import Journal
from pipeline.run import Run
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
    frozen = _freeze(Run(journal.current, accounts, settings, written=journal), target, gaps)
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


def _freeze(run: Run, target: Target, gaps: list[JsonValue]) -> dict[str, JsonValue]:
    """Order and lock one snapshot of each volume; `acquire volume` finds them in the ledger."""
    freeze = Freeze(run, target)
    try:
        outcome = freeze.take({})
    except AcquisitionError as e:
        gaps.append(f"not frozen: {e}")
        return {}
    gaps += outcome.gaps
    for result in outcome.volumes:
        gaps += result.gaps
        if not result.gone:
            try:
                freeze.hold(result)
            except AcquisitionError as e:
                gaps.append(f"{result.snapshot} is not locked: {e}")
    return {r.volume.volume_id: r.snapshot for r in outcome.volumes}
