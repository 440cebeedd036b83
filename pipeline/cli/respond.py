# SPDX-License-Identifier: Apache-2.0
"""`impound respond`, `status`, `resume`, `cancel`, `approve`, `jobs`, `worker`."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from acquisition.target import Target, parse_target
from pipeline import workflow
from pipeline.board import RUN, Place, Row, place_of
from pipeline.cli.acquire import parsed
from pipeline.cli.base import Command, Globals, human, pass_globals, receipt, shown, table
from pipeline.cli.case import checked
from pipeline.errors import ConfigError, UsageError
from pipeline.response import (
    Control,
    Line,
    ResponsePlan,
    check_steps,
    is_job,
    lines_of,
    plan_response,
)
from pipeline.session import Session
from pipeline.workflow import Desk, cancelled, worst

if TYPE_CHECKING:
    from evidence_store.store import Case
    from pipeline.board import EngineError

CODES = {"ok": 0, "gap": 3, "waiting": 4, "broken": 10, "stopped": 11, "cancelled": 130, "error": 1}
_SHOWN_GAPS = 40


def respond_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """CASE, TARGET… and where they lie."""
    for option in (
        click.argument("targets", metavar="TARGET...", nargs=-1, required=True),
        click.argument("case_id", metavar="CASE"),
        click.option("--account", default="", help="Account of TARGETs that are ids."),
        click.option("--region", default="", help="Region of TARGETs that are ids."),
    ):
        command = option(command)
    return command


@click.command(cls=Command)
@respond_options
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR",
              help="Where the report goes (default: CASE-report).")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the plan and do nothing.")
@pass_globals
def respond(
    options: Globals, case_id: str, targets: tuple[str, ...], account: str, region: str,
    output: Path | None, dry_run: bool,
) -> int:  # fmt: skip
    """Respond to incidents: every step for every TARGET, in the order of volatility.

    What is done already is found and not done again. A step that cannot be done is a gap, and the
    rest goes on (exit 3). If this case's response runs already, its progress is shown. Interrupted,
    it goes on with `impound resume CASE`, from any machine.
    """
    checked(case_id)
    where = [parsed(options, t, account, region) for t in targets]
    if dry_run:
        return show_plan(options, case_id, where)
    control = _control(options, case_id)
    plan = plan_response(options.session, control.case, where)
    params = control.params(
        (p.target.arn for p in plan.targets), (s.name for s in plan.steps),
        output or Path(f"{case_id}-report"),
    )  # fmt: skip
    return _drive(options, control, [params])


def show_plan(options: Globals, case_id: str, where: Iterable[Target]) -> int:
    """Print the plan of `respond`; return the exit code."""
    case = options.read_case(case_id)
    plan = plan_response(options.session, case, where)
    options.result({"message_type": "plan", **plan.document()}, list(_plan_lines(plan)))
    return 3 if plan.gaps else 0


def _plan_lines(plan: ResponsePlan) -> Iterator[str]:
    for one in plan.targets:
        yield f"{one.target.arn}: {len(one.observed.volumes)} volumes, at most"
        yield from table(
            ("STEP", "CALLS", "BYTES", "MINUTES", "USD", "WHAT"),
            [(s.name, sum(c.calls.values()) if c else "-", human(c.size) if c else "-",
              f"{c.seconds / 60:.1f}" if c else "-", f"{c.usd:.2f}" if c else "-",
              s.about + ("; waits for approval" if s.name in plan.approve else ""))
             for s, c in plan.costs(one)],
        )  # fmt: skip
        yield ""
    yield from (f"then {s.name}: {s.about}" for s in plan.steps if s.scope == "case")
    said = plan.document()
    yield (
        f"in all {said['calls']} calls, {said['usd']} USD and {said['usd_a_month']} USD a month "
        "(assumed prices)"
    )
    yield from (f"  GAP: {gap}" for gap in plan.gaps)


def _control(options: Globals, case_id: str, *, writing: bool = True) -> Control:
    store = options.open_store(writing=writing)
    return Control(options.session, store.case(checked(case_id)))


def _desk(options: Globals) -> Desk:
    """Where this process does jobs: stores of these settings, keys of this user."""
    sessions: dict[str, Session] = {}
    lock = threading.Lock()

    def session(uri: str) -> Session:
        with lock:
            if uri not in sessions:
                own = options.session
                sessions[uri] = Session(own.settings, uri, own.passphrase)
            return sessions[uri]

    def seal(case: Case) -> None:
        with lock:
            options.checkpoint(case)

    return Desk(session, seal, say=lambda _line: None)


def _drive(options: Globals, control: Control, wanted: list[dict[str, Any]]) -> int:
    with _telling(options, control) as tell:
        ended = control.drive(wanted, _desk(options), tell)
    case = control.case
    case.refresh()
    checkpoint = options.seal(case)
    lines = [line for run in ended for line in lines_of(run, control.rows(), [])]
    outcome = _outcome(ended, lines)
    code = _code(outcome, ended, control)
    gaps = [(line, gap) for line in lines for gap in line.gaps[1:]]  # the first is in the table
    options.result(
        {"message_type": "response", "case": case.case_id, "outcome": outcome,
         "runs": [run.id for run in ended], "steps": [line.document() for line in lines],
         "receipt": receipt(checkpoint)},
        [
            *table(("TARGET", "STEP", "PIECE", "STATE", "WHAT"), map(_cells, lines)),
            *(f"  GAP: {line.step} {line.unit or line.target}: {gap}"
              for line, gap in gaps[:_SHOWN_GAPS]),
            *([f"  and {len(gaps) - _SHOWN_GAPS} more (--json shows all)"]
              if len(gaps) > _SHOWN_GAPS else []),
            *_next(outcome, case.case_id, lines),
        ],
    )  # fmt: skip
    return code


def _outcome(ended: Iterable[Row], lines: Iterable[Line]) -> str:
    found = [run.outcome for run in ended]
    for name in ("cancelled", "error"):
        if name in found:
            return name
    return worst([*found, *(line.state for line in lines if line.state == "broken")])


def _code(outcome: str, ended: Iterable[Row], control: Control) -> int:
    if outcome == "stopped":  # of what it was that stopped it
        ids = tuple(f"{run.id}/" for run in ended)
        answers = [r.answer for r in control.rows() if r.id.startswith(ids) and is_job(r)]
        codes = [a["code"] for a in answers if isinstance(a, dict) and a["result"] == "stopped"]
        return int(codes[0]) if codes else CODES["stopped"]
    return CODES[outcome]


def _next(outcome: str, case_id: str, lines: Iterable[Line]) -> list[str]:
    if outcome == "waiting":
        names = sorted({line.step for line in lines if line.state == "waiting"})
        return [f"waits for approval: impound approve {case_id} {n}" for n in names] + [
            f"then: impound resume {case_id}"
        ]
    if outcome in ("stopped", "cancelled", "error"):
        return [f"{outcome}; it goes on with: impound resume {case_id}"]
    return []


@click.command(cls=Command)
@click.argument("case_id", metavar="CASE")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR",
              help="Where the report goes (default: CASE-report).")  # fmt: skip
@pass_globals
def resume(options: Globals, case_id: str, output: Path | None) -> int:
    """Go on with a case's response, wherever it was interrupted, and by whomever.

    The ledger says for which targets; what is done is found and not done again. What another
    version of the program left unfinished is taken up too.
    """
    control = _control(options, case_id)
    open_ = control.open_targets()
    live = control.live()
    if not open_ and not live:
        options.result(
            {"message_type": "response", "case": case_id, "outcome": "ok", "runs": [],
             "steps": [], "receipt": None},
            [f"case {case_id} has no response to resume"],
        )  # fmt: skip
        return 0
    begun = {str(arn) for run in live for arn in run.params.get("targets", ())}
    wanted = []
    if left := [arn for arn in open_ if arn not in begun]:
        from pipeline.workflow import STEPS

        wanted = [control.params(left, (s.name for s in STEPS),
                                 output or Path(f"{case_id}-report"))]  # fmt: skip
    return _drive(options, control, wanted)


@click.command(cls=Command)
@click.argument("case_id", metavar="CASE")
@click.option("--note", default="", help="Why.")
@pass_globals
def cancel(options: Globals, case_id: str, note: str) -> int:
    """Stop a case's response: its processes end, what was taken stays, and it can be resumed."""
    control = _control(options, case_id)
    runs = control.cancel()
    targets = {str(t) for r in runs for t in r.params.get("targets", ())}
    targets |= set(control.open_targets())
    cancelled(control.case, sorted(targets), f"cancelled{f': {note}' if note else ''}")
    checkpoint = options.seal(control.case)
    options.result(
        {"message_type": "cancelled", "case": case_id, "runs": [r.id for r in runs],
         "targets": sorted(targets), "receipt": receipt(checkpoint)},
        [f"cancelled: {target}" for target in sorted(targets)] or
        [f"case {case_id} has no response under way"],
    )  # fmt: skip
    return 0


@click.command(cls=Command)
@click.argument("case_id", metavar="CASE")
@click.argument("step", metavar="STEP")
@click.option("--target", "arn", metavar="ARN", help="Only for this target (default: all).")
@click.option("--note", default="", help="On whose word, and why.")
@pass_globals
def approve(options: Globals, case_id: str, step: str, arn: str | None, note: str) -> int:
    """Approve a step that waits; the ledger keeps who did it and when.

    A response that is under way, or that workers do, goes on by itself.
    """
    check_steps([step])
    control = _control(options, case_id)
    if arn is not None and arn not in {*control.open_targets()}:
        raise UsageError(f"{arn} is no target whose response is open",
                         hint=f"impound status {case_id}")  # fmt: skip
    new = workflow.approve(control.case, step, arn, note)
    checkpoint = options.seal(control.case)
    goes_on = control.place.shared and bool(control.open_targets())
    if goes_on:
        _continue(control)
    options.result(
        {"message_type": "approved", "case": case_id, "step": step, "target": arn, "new": new,
         "receipt": receipt(checkpoint)},
        [f"{step} is approved in case {case_id}" + ("" if new else " already"),
         *([] if goes_on else [f"  if nothing runs: impound resume {case_id}"])],
    )  # fmt: skip
    return 0


def _continue(control: Control) -> None:
    """Let workers go on with what waited."""
    from pipeline.engine import Client
    from pipeline.workflow import STEPS

    last = [r for r in control.rows() if r.name == RUN and r.params]
    busy = {str(t) for r in last if not r.over for t in r.params["targets"]}
    if targets := [t for t in control.open_targets() if t not in busy]:
        report = Path(str(last[-1].params["report"])) if last else Path(
            f"{control.case.case_id}-report"
        )  # fmt: skip
        params = control.params(targets, (s.name for s in STEPS), report)
        with Client(control.place) as client:
            client.start(control.run_id(params), params)


# -- watching --------------------------------------------------------------------------------------


@click.command(cls=Command)
@click.argument("case_id", metavar="CASE", required=False)
@click.option("--follow/--no-follow", default=None,
              help="Until nothing runs any more (default: on a terminal).")  # fmt: skip
@click.option("--aws", is_flag=True,
              help="Ask AWS too which snapshots are tagged for the case, of targets of which this"
              " machine knows no run.")  # fmt: skip
@pass_globals
def status(options: Globals, case_id: str | None, follow: bool | None, aws: bool) -> int:
    """Show how far responses are: what runs, what waits for what, how long it will take.

    Needs no key and, without --aws, no AWS. Of a run of another machine it tells what the ledger
    says, and what that does not say. With --json one line a step. Exit 4: a step waits for
    approval.
    """
    store = options.open_store()
    controls = [
        Control(options.session, store.case(c))
        for c in ([checked(case_id)] if case_id else store.case_ids())
    ]
    if follow is None:
        follow = sys.stdout.isatty() and not options.as_json and case_id is not None
    waiting = False
    for control in controls:
        if follow and control.live():
            with _telling(options, control) as tell:
                while control.live():
                    tell(control.rows())
                    time.sleep(0.5)
        waiting |= _show(options, control, alone=case_id is not None, aws=aws)
    return 4 if waiting and case_id else 0


def _show(options: Globals, control: Control, *, alone: bool, aws: bool) -> bool:
    """Print one case; return whether something in it waits for approval."""
    case_id = control.case.case_id
    rows = control.rows()
    runs = _latest([r for r in rows if r.name == RUN])
    live = control.board.live([r.executor for r in rows if not r.over]) if rows else set()
    waiting = False
    for run in runs:
        lines = lines_of(run, rows, live)
        waiting |= run.outcome == "waiting"
        head = {"message_type": "run", "case": case_id, "run": run.id, "state": _state(run, live),
                "targets": run.params.get("targets", [])}  # fmt: skip
        options.result(head, [f"{case_id}: {_state(run, live)}",
                              *table(("TARGET", "STEP", "PIECE", "STATE", "WHAT"),
                                     map(_cells, lines))])  # fmt: skip
        if options.as_json:
            for line in lines:
                document = {"message_type": "step", "case": case_id, **line.document()}
                options.result(document, [])
    told = {str(t) for r in runs for t in r.params.get("targets", ())}
    if left := [t for t in control.open_targets() if t not in told]:
        waiting |= _elsewhere(options, control.case, left, aws=aws)
    elif not runs and alone:
        options.result({"message_type": "run", "case": case_id, "run": None, "state": "none",
                        "targets": []}, [f"case {case_id} has had no response here"])  # fmt: skip
    return waiting


def _elsewhere(options: Globals, case: Case, targets: list[str], *, aws: bool) -> bool:
    """What ledger and AWS tell of a run that another machine knows; whether something waits."""
    from pipeline import chronicle

    waiting = False
    newest = chronicle.last(case)
    by = " ".join(str(newest[k]) for k in ("by", "host") if newest[k])
    head = {
        "message_type": "run", "case": case.case_id, "run": None, "state": "elsewhere",
        "targets": targets, "last": newest, "untold": chronicle.UNTOLD,
    }  # fmt: skip
    found = {
        t: list(chronicle.lines(case, t, options.session.settings.engine.approve)) for t in targets
    }
    options.result(head, [
        f"{case.case_id}: not done, says the ledger; this machine knows no run of it (impound "
        f"resume {case.case_id})",
        f"  last entry {newest['time']}: {newest['action']}" + (f", by {by}" if by else ""),
        *table(("TARGET", "STEP", "PIECE", "STATE", "WHAT"),
               [_cells(line) for lines in found.values() for line in lines]),
        f"  NOT TOLD: {chronicle.UNTOLD}",
    ])  # fmt: skip
    for line in (line for lines in found.values() for line in lines):
        waiting |= line.state == "waiting"
        if options.as_json:
            document = {"message_type": "step", "case": case.case_id, "from": "ledger"}
            options.result({**document, **line.document()}, [])
    places = {(t.account, t.region): t for t in map(parse_target, targets if aws else ())}
    for target in places.values():
        for one in chronicle.tagged(case, options.session.accounts(case.case_id), target):
            options.result(
                {"message_type": "tagged", "case": case.case_id, "account": target.account,
                 "region": target.region, **dataclasses.asdict(one)},
                [f"  AWS: {one.snapshot} of {one.volume} is {one.state} {one.progress}"
                 + ("" if one.recorded else ", which the ledger does not name")],
            )  # fmt: skip
    return waiting


def _latest(runs: list[Row]) -> list[Row]:
    """Those under way, and of each set of targets the last."""
    last = {tuple(r.params.get("targets", ())): r for r in runs}
    return [r for r in runs if not r.over or last[tuple(r.params.get("targets", ()))] is r]


def _state(run: Row, live: set[str]) -> str:
    if run.over:
        return run.outcome
    if run.status == "PENDING":
        return "running" if run.executor in live else "interrupted"
    return "queued"


def _cells(line: Line) -> tuple[str, ...]:
    detail = line.detail
    if line.state == "running" and line.total:
        detail = f"{100 * line.done / line.total:.0f} % of {human(line.total)}"
        if line.seconds_left is not None:
            detail += f", {_span(line.seconds_left)} left"
    short = line.target.rpartition("/")[2] or "case"
    return short, line.step, line.unit or "-", line.state, detail


def _span(seconds: float) -> str:
    """Say how long.

    >>> _span(3725)
    '1 h 2 min'
    """
    minutes = int(seconds) // 60
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{int(seconds)} s"


@contextlib.contextmanager
def _telling(options: Globals, control: Control) -> Iterator[Callable[[list[Row]], None]]:
    """Give a function that shows rows as they change: a table on a terminal, lines elsewhere."""
    seen: dict[tuple[str, str, str], str] = {}
    asked = [0.0, 0.0]

    def lines(rows: list[Row]) -> list[Line]:
        live = control.board.live([r.executor for r in rows if not r.over])
        runs = [r for r in rows if r.name == RUN]
        watched = [r for r in runs if not r.over] or runs[-1:]
        return [line for run in watched for line in lines_of(run, rows, live)]

    def said(rows: list[Row]) -> None:
        for line in lines(rows):
            key = line.target, line.step, line.unit
            if line.state not in ("waits", "nothing", "queued") and seen.get(key) != line.state:
                seen[key] = line.state
                options.say("  ".join(_cells(line)).rstrip())
        now = time.monotonic()
        asked[0] = asked[0] or now
        if control.place.shared and now - asked[0] > 5 and now - asked[1] > 60:
            asked[1] = now
            if not control.board.workers():
                options.warn("no worker is at work; start one with: impound worker")

    if options.quiet or options.as_json or options.no_progress or not sys.stderr.isatty():
        yield said
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from pipeline.cli.live import Cells, picture

    def cells(line: Line) -> Cells:
        _, step, piece, state, what = map(shown, _cells(line))
        return step, piece, state, "" if what == "on local" else what  # there is no other

    def drawn(rows: list[Row]) -> Text:
        width, height = console.size
        found = picture(((line, cells(line)) for line in lines(rows)), width, max(height - 1, 1))
        return Text("\n".join(found), no_wrap=True, overflow="crop")

    console = Console(stderr=True, no_color=options.colorless, highlight=False)
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        yield lambda rows: live.update(drawn(rows))


@click.command(cls=Command)
@click.argument("case_id", metavar="CASE", required=False)
@click.option("--prune", is_flag=True, help="Forget runs that ended; the ledger keeps all.")
@pass_globals
def jobs(options: Globals, case_id: str | None, prune: bool) -> None:
    """List the engine's jobs: on which queue, by whom, how far, since when. One JSON line each."""
    store = options.open_store()
    for name in [checked(case_id)] if case_id else store.case_ids():
        control = Control(options.session, store.case(name))
        if prune and control.board.exists:
            from pipeline.engine import Client

            with Client(control.place) as client:
                gone = client.forget(control.prefix)
            options.say(f"{name}: {gone} rows forgotten")
        rows = [r for r in control.rows() if is_job(r)]
        if options.as_json:
            for row in rows:
                options.result({"message_type": "job", "case": name, **_job(row)}, [])
        else:
            options.result({}, table(
                ("JOB", "STATE", "QUEUE", "EXECUTOR", "OUTCOME"),
                [(r.id.partition("/")[2], r.status.lower(), r.queue, r.executor or "-",
                  r.outcome or "-") for r in rows],
            ) if rows else [f"{name}: no jobs"])  # fmt: skip


def _job(row: Row) -> dict[str, Any]:
    return {
        "job": row.id, "step": row.name.removeprefix("step."), "state": row.status.lower(),
        "queue": row.queue, "executor": row.executor, "version": row.version,
        "created": row.created, "started": row.started or None, "ended": row.ended or None,
        "outcome": row.outcome or None, "done": row.done, "total": row.total,
    }  # fmt: skip


@click.command(cls=Command)
@click.option("--queue", "queues", multiple=True,
              type=click.Choice(["acquire", "cpu", "memory"]),
              help="Serve only these, and this host's own (default: all).")  # fmt: skip
@click.option("--drain", type=click.IntRange(0), default=300, show_default=True, metavar="SECONDS",
              help="How long jobs may go on after it was told to end.")  # fmt: skip
@pass_globals
def worker(options: Globals, queues: tuple[str, ...], drain: int) -> int:
    """Do the jobs of a fleet until told to end (SIGTERM, SIGINT). Needs IMPOUND_ENGINE_URL.

    What it leaves, and what it was doing when it died, other workers take over.
    """
    from pipeline.board import host_id
    from pipeline.engine import RESPOND_QUEUE, Executor

    place: Place = place_of(options.session.settings, "", "")
    if not place.shared:
        raise ConfigError(
            "a worker needs the PostgreSQL that it shares with others",
            hint="set IMPOUND_ENGINE_URL; on one machine, respond does the jobs itself",
        )
    if not options.session.signs_unasked:
        raise ConfigError(
            "a worker must be able to sign without asking anybody",
            hint="set IMPOUND_PASSPHRASE_FILE, or a KMS key in the settings",
        )
    served = [RESPOND_QUEUE, f"host-{host_id()}", *(queues or ("acquire", "cpu", "memory"))]
    stop = threading.Event()
    kept = {
        s: signal.signal(s, lambda *_: stop.set()) for s in (signal.SIGTERM, signal.SIGINT)
    }  # fmt: skip
    try:
        with Executor(place, _desk(options), queues=served,
                      slots=options.session.settings.engine.slots) as executor:  # fmt: skip
            options.say(f"worker {executor.executor_id} serves {', '.join(served)}")
            while not stop.wait(0.2) and not executor.fenced.is_set():
                pass
            if executor.fenced.is_set():
                raise _fenced()
            options.say("ending; no more jobs are taken")
            executor.leave(drain)
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
    return 0


def _fenced() -> EngineError:
    from pipeline.board import EngineError

    return EngineError("another worker took over what this one was doing",
                       hint="start it again: it gets an id of its own")  # fmt: skip
