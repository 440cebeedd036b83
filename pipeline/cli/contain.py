# SPDX-License-Identifier: Apache-2.0
"""`impound isolate` and `impound release`."""

from __future__ import annotations

import contextlib
import re
import sys
from typing import TYPE_CHECKING, Any

import click

from evidence_store.errors import SigningKeyError
from evidence_store.ledger import Draft
from pipeline.cli.acquire import parsed, target_options
from pipeline.cli.base import Command, Globals, pass_globals, receipt, table
from pipeline.cli.case import checked
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from acquisition.target import Target
    from pipeline.isolate import Containment, ToUndo
    from pipeline.journal import Journal

_KEY = re.compile(r"AKIA[A-Z0-9]{12,60}")


@click.command(cls=Command)
@target_options(1, "TARGET")
@click.option(
    "--peer", "peers", multiple=True, metavar="ADDRESS",
    help="Cut flows with this address at once, by network ACL, beside those that flow logs name;"
    " may be repeated.",
)  # fmt: skip
@click.option(
    "--user-key", "user_keys", multiple=True, metavar="AKIA…",
    help="Deactivate this access key of a user, and end what it issued; may be repeated.",
)  # fmt: skip
@click.option(
    "--role-wide", is_flag=True,
    help="End all sessions of its role, other instances' too; they are named first, and it needs an"
    " approval.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the plan and do nothing.")
@pass_globals
def isolate(
    options: Globals, targets: str, case_id: str, account: str, region: str,
    peers: tuple[str, ...], user_keys: tuple[str, ...], role_wide: bool, dry_run: bool,
) -> int:  # fmt: skip
    """Cut an instance off, so that it can be undone.

    Its state is recorded first; then it is protected from termination, moved into the isolation
    group on every interface, loses its addresses, sessions and profile; what it assumed and whom it
    talked to is looked up and ended too; then all is read again.
    """
    from acquisition.containment.state import peer_cidr

    where = _instance(options, targets, account, region)
    try:
        cut = tuple(peer_cidr(p) for p in peers)
    except ValueError as e:
        raise UsageError(f"not an address: {e}", hint="--peer takes an address or a CIDR") from e
    for key in user_keys:
        if not _KEY.fullmatch(key):
            raise UsageError(
                f"no access key of a user: {key[:40]!r}",
                hint="it begins with AKIA; keys that begin with ASIA end with their session",
            )
    more = {"peers": cut, "user_keys": user_keys, "role_wide": role_wide}
    if dry_run:
        return _show_plan(options, _dry(options, case_id, where, **more), case_id)
    journal = _journal(options, checked(case_id))
    outcome = _containment(options, journal, case_id, where, **more).isolate()
    checkpoint = None if journal.spooled else options.seal(journal.current)
    found = outcome.verdict
    options.result(
        {"case": case_id, **outcome.document(), "spooled": journal.spooled,
         "receipt": receipt(checkpoint)},
        [
            *_changes([(c.attribute, c.before, c.after) for c in outcome.made]),
            f"{where.resource_id}: {found.verdict if found else 'not proved'}",
            *(f"  LEFT: {text}" for text in (found.left if found else ())),
            *(f"  UNFILTERED: {text}" for text in (found.unfiltered if found else ())),
            *(f"  GAP: {gap}" for gap in outcome.gaps),
            *(f"  BREAKS: {name} had sessions of the same role" for name in outcome.breaks),
            *([f"  WAITS: {outcome.waits} (--yes approves it)"] if outcome.waits else []),
        ],
    )  # fmt: skip
    return 4 if outcome.waits else 3 if outcome.gaps or journal.spooled else 0


@click.command(cls=Command)
@target_options(1, "TARGET")
@click.option("--dry-run", is_flag=True, help="Print what would be restored and do nothing.")
@pass_globals
def release(
    options: Globals, targets: str, case_id: str, account: str, region: str, dry_run: bool
) -> int:
    """Put back what `isolate` changed, as far as nobody else changed it since.

    Needs an approval: an answer at the terminal, or --yes.
    """
    where = _instance(options, targets, account, region)
    if dry_run:
        return _show_undo(options, _dry(options, case_id, where).release_plan(), case_id, where)
    journal = _journal(options, checked(case_id))
    containment = _containment(options, journal, case_id, where)
    wanted = containment.release_plan()
    if not wanted:
        options.result({"case": case_id, "target": where.arn, "attributes": []},
                       [f"case {case_id} changed nothing of {where.resource_id}"])  # fmt: skip
        return 0
    if not _approved(options, f"Restore {len(wanted)} attributes of {where.resource_id}?"):
        _show_undo(options, wanted, case_id, where)
        options.warn("release waits for an approval: answer at the terminal, or give --yes")
        return 4
    data = {"step": "release", "target": where.arn, "attributes": len(wanted)}
    journal.record(lambda: Draft("approval.given", {"data": dict(data)}))
    done = containment.release()
    checkpoint = None if journal.spooled else options.seal(journal.current)
    lost = [u for u in done if u.restored == "cannot"]
    options.result(
        {"case": case_id, "target": where.arn, "attributes": [u.document() for u in done],
         "spooled": journal.spooled, "receipt": receipt(checkpoint)},
        table(("ATTRIBUTE", "RESTORED", "NOTE"),
              [(u.attribute, u.restored, u.note or "-") for u in done]),
    )  # fmt: skip
    return 3 if lost or journal.spooled else 0


def _instance(options: Globals, target: str, account: str, region: str) -> Target:
    where = parsed(options, target, account, region)
    if where.kind != "instance":
        raise UsageError(f"{where.resource_id} is no instance", hint="name an instance")
    return where


def _containment(
    options: Globals, journal: Journal, case_id: str, where: Target, **more: Any
) -> Containment:
    from pipeline.isolate import Containment

    return Containment(
        journal, options.session.accounts(case_id), options.session.settings, where,
        say=options.say, approve=lambda question: _approved(options, question), packets=True,
        **more,
    )  # fmt: skip


def _dry(options: Globals, case_id: str, where: Target, **more: Any) -> Containment:
    from pipeline.isolate import Containment

    return Containment(
        options.read_case(checked(case_id)), options.session.accounts(case_id),
        options.session.settings, where, **more,
    )  # fmt: skip


def _journal(options: Globals, case_id: str) -> Journal:
    from pipeline.journal import Journal

    session = options.session
    if "entry" in session.local_key_uses and "entry" not in session.missing_keys():
        # Asked for before the clock runs; that it is missing is the journal's to deal with.
        with contextlib.suppress(SigningKeyError):
            session.passphrase.get()
    return Journal.of(
        session, case_id, lambda: options.open_store(writing=True).case(case_id), warn=options.warn
    )


def _approved(options: Globals, question: str) -> bool:
    if options.yes:
        return True
    return bool(sys.stdin) and sys.stdin.isatty() and click.confirm(question, err=True)


def _changes(rows: list[tuple[object, object, object]]) -> list[str]:
    from pipeline.isolate import short

    return table(("ATTRIBUTE", "WAS", "IS"), [(a, short(b), short(n)) for a, b, n in rows])


def _show_plan(options: Globals, containment: Containment, case_id: str) -> int:
    from pipeline.isolate import short

    planned = containment.plan()
    gaps = list(planned.gaps)
    options.result(
        {"message_type": "plan", "case": case_id, "target": containment.target.arn,
         "changes": [c.document() for c in planned.changes], "gaps": gaps,
         "breaks": list(planned.breaks)},
        [
            *table(("PHASE", "ATTRIBUTE", "IS", "WOULD BE"),
                   [(c.phase, c.attribute, short(c.before), short(c.after))
                    for c in planned.changes]),
            *(f"  BREAKS: {name} has sessions of the same role" for name in planned.breaks),
            *(f"  GAP: {gap}" for gap in gaps),
        ],
    )  # fmt: skip
    return 3 if gaps else 0


def _show_undo(options: Globals, wanted: list[ToUndo], case_id: str, where: Target) -> int:
    from pipeline.isolate import short

    options.result(
        {"message_type": "plan", "case": case_id, "target": where.arn, "attributes": [
            {"attribute": str(u.attribute), "now": u.now, "before": u.before, "what": u.what,
             "note": u.note} for u in wanted
        ]},
        table(("ATTRIBUTE", "IS", "WAS", "WOULD", "NOTE"),
              [(u.attribute, short(u.now), short(u.before), u.what, u.note or "-")
               for u in wanted]),
    )  # fmt: skip
    return 3 if any(u.what == "leave" for u in wanted) else 0
