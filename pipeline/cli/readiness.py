# SPDX-License-Identifier: Apache-2.0
"""`impound readiness`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.base import Command, Globals, pass_globals, receipt, shown
from pipeline.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from evidence_store.store import Case
    from pipeline.readiness.look import Estate
    from pipeline.readiness.model import Check, Finding

_LIGHTS = {"failed": ("✕", "red"), "unknown": ("?", "magenta"), "gap": ("◐", "yellow"),
           "warning": ("!", "yellow"), "ok": ("✓", "green")}  # fmt: skip
_VERDICTS = {0: "ready", 3: "ready with gaps", 14: "not ready"}


@click.command(cls=Command)
@click.option("--account", "ids", multiple=True, metavar="ID",
              help="Only this account and Audit; may be repeated.")  # fmt: skip
@click.option("--region", "regions", multiple=True, metavar="REGION",
              help="Look here (default: of the settings, else of the session); may be repeated.",
              )  # fmt: skip
@click.option("--check", "names", multiple=True, metavar="CHECK", help="Only this check.")
@click.option("--fix", "fixes", multiple=True, metavar="CHECK|all",
              help="Put right what AWS lets us, after a plan and a question.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="With --fix: print the plan and change nothing.")
@click.option("--html", "html", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Write the result as one page, too.")  # fmt: skip
@click.option("--all", "everything", is_flag=True, help="Show what is in order, too.")
@click.option("--limit", type=click.FloatRange(1, 3600), default=300, show_default=True,
              metavar="SECONDS", help="Time for looking; the rest is unknown.")  # fmt: skip
@pass_globals
def readiness(
    options: Globals, ids: tuple[str, ...], regions: tuple[str, ...], names: tuple[str, ...],
    fixes: tuple[str, ...], dry_run: bool, html: Path | None, everything: bool, limit: float,
) -> int:  # fmt: skip
    """Say whether everything is in place before an incident.

    Every account of the organisation and every Region of the settings is looked at. What may not be
    looked at is unknown, never a failure.

    Exit 14 if a check failed, 3 if something is unknown or stays a gap, else 0; a warning changes
    nothing. Each run is an item of the case `_readiness`.
    """
    from pipeline.readiness import judge, look
    from pipeline.readiness.model import exit_code
    from pipeline.readiness.organisation import estate as organisation

    checks = _checks(names)
    chosen = {check.name for check in _checks(fixes)} if fixes else set()
    if dry_run and not fixes:
        raise UsageError("--dry-run goes with --fix")
    estate = organisation(options.session, ids, regions)
    if estate.unlisted:
        options.warn(estate.unlisted)
    options.say(f"looking at {len(estate.everywhere)} accounts in {', '.join(estate.regions)} ...")
    seen = look.observations(estate, checks, limit)
    settings, at = options.session.settings, estate.now()
    found = [f for o in seen for f in judge.judge(o, settings, at)]
    mending = [f for f in found if f.check.name in chosen and f.mend is not None]
    if dry_run:
        return _plan(options, mending)
    case = _case(options)
    refused: list[str] = []
    if mending and case is not None and _approved(options, mending):
        refused = _mend(options, estate, case, mending)
        again = {f.check for f in mending}
        fresh = look.observations(estate, [c for c in checks if c in again], limit)
        seen = [o for o in seen if o.check not in again] + fresh
        seen.sort(key=lambda o: checks.index(o.check))
        at = estate.now()
        found = [f for o in seen for f in judge.judge(o, settings, at)]
    from pipeline.readiness.page import render, write
    from pipeline.readiness.record import Run

    page = render(found, at)
    if html:
        write(html, page)
    item, checkpoint = "", None
    if case is not None:
        item = case.ingest("record", Run(seen, found, at, page)).item_id
        checkpoint = options.seal(case)
    code = exit_code(found)
    code = 3 if code == 0 and (case is None or estate.unlisted) else code
    if options.as_json:
        document = {
            "message_type": "readiness", "verdict": _VERDICTS[code], "at": at.isoformat(),
            "accounts": list(estate.everywhere), "regions": list(estate.regions),
            "findings": [f.document() for f in found], "fixed": len(mending) - len(refused)
            if refused or mending else 0, "refused": refused, "item": item,
            "unlisted": estate.unlisted, "receipt": receipt(checkpoint),
        }  # fmt: skip
        options.result(document, [])
        return code
    _table(options, [f for f in found if everything or f.status != "ok"])
    counts = Counter[str](f.status for f in found)
    options.result({}, [
        *(f"REFUSED: {why}" for why in refused),
        f"{_VERDICTS[code]}: " + ", ".join(f"{counts[s]} {s}" for s in _LIGHTS if counts[s]),
        *([f"recorded as {item} of _readiness"] if item else []),
    ])  # fmt: skip
    return code


def _checks(names: Sequence[str]) -> list[Check]:
    """The checks of these names, `all` for all, in order. Raises: UsageError."""
    from pipeline.readiness.checks import BY_NAME, CHECKS

    if not names or "all" in names:
        return list(CHECKS)
    for name in names:
        if name not in BY_NAME:
            raise UsageError(f"no check is called {name}", hint=f"all: {', '.join(BY_NAME)}")
    return [c for c in CHECKS if c.name in names]


def _case(options: Globals) -> Case | None:
    """The reserved case for writing; None, with a warning, if it cannot be had."""
    from evidence_store.errors import Error
    from pipeline.readiness.record import readiness_case

    try:
        return readiness_case(options.session, options.session.open_store(writing=True))
    except (Error, ConfigError) as e:
        options.warn(f"this run is not recorded, and nothing is put right: {e}")
        if e.hint:
            options.say(f"  {e.hint}")
        return None


def _planned(mending: Sequence[Finding]) -> list[str]:
    return [f"{f.place}  {f.check.name}: {f.what}: {f.fix}" for f in mending]


def _plan(options: Globals, mending: Sequence[Finding]) -> int:
    options.result(
        {"message_type": "plan", "changes": [f.document() | {"mend": f.mend} for f in mending]},
        _planned(mending) or ["nothing that --fix could do"],
    )
    return 0


def _approved(options: Globals, mending: Sequence[Finding]) -> bool:
    for line in _planned(mending):
        options.say(line)
    if options.yes:
        return True
    question = f"Change these {len(mending)} things?"
    if bool(sys.stdin) and sys.stdin.isatty() and click.confirm(question, err=True):
        return True
    options.warn("nothing was changed: answer at the terminal, or give --yes")
    return False


def _mend(options: Globals, estate: Estate, case: Case, mending: Sequence[Finding]) -> list[str]:
    """Put right what can be; return what AWS refused."""
    from pipeline.readiness import mend

    refused = []
    for finding in mending:
        why = mend.apply(estate, finding, case)
        options.say(f"{finding.place}  {finding.check.name}: {why or 'done'}")
        if why:
            refused.append(f"{finding.check.name} in {finding.place}: {why}")
    return refused


def _table(options: Globals, found: Sequence[Finding]) -> None:
    """Traffic lights: a mark and a word, so that they can be read without colours."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not found:
        return
    console = Console(
        no_color=options.colorless, highlight=False, soft_wrap=False,
        width=None if sys.stdout.isatty() else 160,
    )  # fmt: skip
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "CHECK", "ACCOUNT", "REGION"):
        grid.add_column(name, no_wrap=True)
    grid.add_column("WHAT, AND HOW TO PUT IT RIGHT", overflow="fold")

    def row(f: Finding) -> None:
        mark, colour = _LIGHTS[f.status]
        what = Text(shown(f.what))
        if f.fix:
            how = f"  → {f.fix}" + (f" (--fix {f.check.name})" if f.mend is not None else "")
            what.append("\n" + shown(how), style="dim")
        grid.add_row(
            Text(f"{mark} {f.status}", style=colour), f.check.name, f.place.account or "-",
            f.place.region or "-", what,
        )  # fmt: skip

    for status in _LIGHTS:
        for finding in found:
            if finding.status == status:
                row(finding)
    with console.capture() as drawn:
        console.print(grid)
    click.echo("\n".join(line.rstrip() for line in drawn.get().splitlines()))
