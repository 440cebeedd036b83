# SPDX-License-Identifier: Apache-2.0
"""Responses from outside: plan one, start or join it, see how far it is, stop it.

    plan = plan_response(session, case, targets)
    control = Control(session, case)
    ended = control.drive([control.params(plan, report)], desk, tell)

On one machine whoever comes first runs the jobs, and whoever comes later watches, ready to take
over. With a PostgreSQL the workers run them, and everybody watches.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from acquisition.errors import AcquisitionError
from acquisition.snapshot import Ec2, Observed
from acquisition.target import Target
from evidence_store.errors import BusyError, CaseClosedError
from evidence_store.store import Case
from pipeline.acquire import Acquisition, missing_settings
from pipeline.board import (
    RUN,
    TARGET,
    VERSION,
    Board,
    EngineError,
    Place,
    Row,
    host_id,
    is_locked,
    place_of,
    prepare,
)
from pipeline.board import prefix_of as prefix
from pipeline.errors import UsageError
from pipeline.plan import Plan, plan_volumes
from pipeline.plan import Step as Cost
from pipeline.remains import look
from pipeline.session import Session
from pipeline.workflow import BY_NAME, STEPS, Desk, Params, Step, of_scope, open_targets

Tell = Callable[[list[Row]], None]
_LOOK_S = 0.3
_AWAY_S = 300.0
_ABOUT = "not part of this version: a gap"


@dataclass(frozen=True)
class ResponsePlan:
    """What `respond` executes: these steps, in this order, on these targets."""

    case_id: str
    targets: tuple[Plan, ...]
    steps: tuple[Step, ...]
    approve: tuple[str, ...]
    missing: Mapping[str, str]

    @property
    def gaps(self) -> list[str]:
        """What is known beforehand not to be possible."""
        return [
            *(f"{plan.target.resource_id}: {gap}" for plan in self.targets
              for gap in plan.observed.gaps),
            *(f"{s.name}: {_ABOUT}" for s in self.steps if s.function() is None),
            *(f"copy: the setting {name} is missing ({about})"
              for name, about in self.missing.items()),
        ]  # fmt: skip

    def costs(self, plan: Plan) -> Iterator[tuple[Step, Cost | None]]:
        """Yield the steps of one target with what they cost, None if that is nothing in AWS.

        What `acquire volume` calls lock and prove belongs to freeze and verify here.
        """
        known = {cost.name: cost for cost in plan.steps}
        part_of = {"freeze": ("freeze", "lock"), "verify": ("prove",)}
        for step in self.steps:
            if step.scope == "target":
                costs = [known[n] for n in part_of.get(step.name, (step.name,)) if n in known]
                yield step, _sum(costs) if costs else None

    def document(self) -> dict[str, JsonValue]:
        """As JSON."""
        whole = [plan.document() for plan in self.targets]
        return {
            "case": self.case_id,
            "steps": [
                {"step": s.name, "about": s.about, "after": list(s.after), "queue": s.queue,
                 "scope": s.scope, "waits_for_approval": s.name in self.approve,
                 "here": s.function() is not None}
                for s in self.steps
            ],
            "targets": list(whole),
            "gaps": list(self.gaps),
            "calls": sum(int(str(w["calls"])) for w in whole),
            "bytes": sum(int(str(w["bytes"])) for w in whole),
            "seconds": max((int(str(w["seconds"])) for w in whole), default=0),
            "usd": round(sum(s.usd for p in self.targets for s in p.steps), 2),
            "usd_a_month": round(sum(s.monthly for p in self.targets for s in p.steps), 2),
        }  # fmt: skip


def _sum(costs: list[Cost]) -> Cost:
    calls: dict[str, int] = {}
    for cost in costs:
        for name, n in cost.calls.items():
            calls[name] = calls.get(name, 0) + n
    return Cost(
        costs[0].name, costs[0].about, calls, sum(c.size for c in costs),
        sum(c.seconds for c in costs), sum(c.usd for c in costs), sum(c.monthly for c in costs),
    )  # fmt: skip


def plan_response(session: Session, case: Case, targets: Iterable[Target]) -> ResponsePlan:
    """Look at the targets and return the plan. Nothing is changed or recorded.

    A target that is gone is planned from what was frozen of it.

    Raises: AcquisitionError, AccountError, UsageError.
    """
    aws = session.settings.aws
    missing = missing_settings(session.settings)
    plans = []
    for target in targets:
        if target.kind == "snapshot":
            raise UsageError(
                f"{target.resource_id} is a snapshot; respond takes instances and volumes",
                hint="its volume, or an instance, is what can be responded to",
            )
        accounts = session.accounts(case.case_id)
        client = accounts.client("ec2", target.account, target.region)
        try:
            seen = Ec2(client, client, target.account, target.region).observe(
                target.kind, target.resource_id
            )
        except AcquisitionError as e:
            if (
                Acquisition(case, accounts, session.settings, target)
                .taking(target)
                .freeze.recorded()
            ):
                left = "only what was frozen before is taken"
            elif look(case, accounts, target).nothing(planned=True):
                raise
            else:
                left = "what is left of it is taken"
            seen = Observed((), (f"{e}; {left}",))
        plans.append(
            plan_volumes(target, seen, copy=not missing, lock=aws.source_lock != "none",
                         in_s3=session.in_aws)
        )  # fmt: skip
    return ResponsePlan(case.case_id, tuple(plans), STEPS,
                        check_steps(session.settings.engine.approve), missing)  # fmt: skip


def check_steps(names: Iterable[str]) -> tuple[str, ...]:
    """Return names of steps. Raises: UsageError."""
    named = tuple(names)
    for name in named:
        if name not in BY_NAME:
            raise UsageError(f"no step {name!r}", hint=f"steps: {', '.join(BY_NAME)}")
    return named


@dataclass
class Control:
    """The runs of one case: those under way, those that ended."""

    session: Session
    case: Case

    @cached_property
    def place(self) -> Place:
        """Where they are kept. Raises: ConfigError."""
        return place_of(self.session.settings, self._store_id, self.case.case_id)

    @cached_property
    def board(self) -> Board:
        """What is known of them."""
        return Board(self.place)

    @cached_property
    def _store_id(self) -> str:
        return self.case.store.identity.store_id

    @property
    def prefix(self) -> str:
        """What their ids begin with."""
        return prefix(self._store_id, self.case.case_id)

    def rows(self) -> list[Row]:
        """All of this case. Raises: EngineError."""
        return self.board.rows(self.prefix)

    def live(self) -> list[Row]:
        """Runs that have not ended."""
        return [row for row in self.rows() if row.name == RUN and not row.over]

    def params(self, targets: Iterable[str], steps: Iterable[str], report: Path) -> Params:
        """Return what a run is started with."""
        root = self.session.local_root()
        host = host_id() if root is not None and self.place.shared else ""
        store = str(root.resolve()) if root is not None else self.session.store_uri
        named: list[JsonValue] = [*sorted(set(targets))]
        return {
            "store": store, "case": self.case.case_id, "targets": named,
            "steps": list(check_steps(steps)), "report": str(report.resolve()), "host": host,
        }  # fmt: skip

    def run_id(self, params: Params) -> str:
        """Id of the run under way over these targets, else of a new one."""
        digest = hashlib.sha256("\n".join(map(str, params["targets"])).encode())  # type: ignore[arg-type]
        base = f"{self.prefix}{digest.hexdigest()[:6]}-"
        runs = [r for r in self.rows() if r.name == RUN and r.id.startswith(base)]
        live = [r.id for r in runs if not r.over and r.version == VERSION]
        return live[-1] if live else f"{base}{len(runs) + 1}"

    def drive(self, wanted: list[Params], desk: Desk, tell: Tell) -> list[Row]:
        """Start these runs or join them, until they have ended; return their rows.

        With none: take up what did not end. Whatever else of this case is under way in a local
        place is brought to its end too. `tell` is called with all rows, again and again.

        Raises: EngineError, ConfigError; KeyboardInterrupt leaves everything resumable.
        """
        from pipeline.engine import Client, Executor

        if self.case.state.sealed:
            raise CaseClosedError(f"case {self.case.case_id} is closed; it takes no more evidence")
        if self.place.home is not None:
            prepare(self.place.home, self.session.local_root())
        ids: list[str] = []
        while True:
            if self.place.shared:
                with Client(self.place) as client:
                    ids = ids or self._begin(client, wanted)
                return self._follow(ids, tell, lambda: False)
            try:
                slots = self.session.settings.engine.slots
                with Executor(self.place, desk, slots=slots) as executor:
                    with Client(self.place) as client:
                        ids = ids or self._begin(client, wanted)
                    ended = self._follow(ids, tell, executor.stalled.is_set)
                    if executor.stalled.is_set():
                        raise EngineError(
                            f"the engine's database in {self.place.home} takes no more outcomes",
                            hint="free space on its disk, then: impound resume "
                            f"{self.case.case_id}",
                        )
                    return ended
            except BusyError:
                time.sleep(_LOOK_S)
                if not self.board.exists:  # it has only just begun
                    continue
            with Client(self.place) as client:
                ids = ids or self._begin(client, wanted)
            ended = self._follow(ids, tell, lambda: not is_locked(self.place))
            if all(row.over for row in ended):
                return ended

    def _begin(self, client: Any, wanted: list[Params]) -> list[str]:
        """Start what is wanted and not under way; replace what another version left."""
        stale = [r for r in self.live() if r.version != VERSION]
        for run in stale:
            client.cancel([r.id for r in self.board.rows(run.id, over=False)])
        for params in [*wanted, *(r.params for r in stale if r.params)]:
            client.start(self.run_id(params), params)
        return [r.id for r in self.live()]

    def _follow(self, ids: list[str], tell: Tell, left: Callable[[], bool]) -> list[Row]:
        """Tell how it goes until all have ended, or nobody is at it.

        A server that is away for some minutes is waited for: the workers wait for it too.
        """
        seen = time.monotonic()
        while True:
            free = left()
            try:
                rows = self.rows()
            except EngineError:
                if not self.place.shared or time.monotonic() - seen > _AWAY_S:
                    raise
                time.sleep(_LOOK_S)
                continue
            seen = time.monotonic()
            tell(rows)
            runs = {r.id: r for r in rows if r.name == RUN}
            watched = [runs[i] for i in ids if i in runs]
            local = not self.place.shared
            if all(r.over for r in (runs.values() if local else watched)) or free:
                return watched
            time.sleep(_LOOK_S)

    def cancel(self) -> list[Row]:
        """Cancel what has not ended; return the runs. Whoever is at it stops within seconds.

        Raises: EngineError.
        """
        from pipeline.engine import Client

        open_ = [row for row in self.rows() if not row.over]
        if open_:
            with Client(self.place) as client:
                # A run first: what it would start next is then not started any more.
                client.cancel([r.id for r in sorted(open_, key=lambda r: r.id.count("/"))])
        return [row for row in open_ if row.name == RUN]

    def open_targets(self) -> list[str]:
        """ARNs whose response is not done, as the ledger says."""
        return open_targets(self.case)


# -- how far it is ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """One step of one target (or of the case), as `status` shows it.

    `state`: waits, queued, running, ok, gap, waiting (for approval), broken, stopped, cancelled,
    error, lost (nobody is at it), nothing (there was nothing to do).
    """

    target: str
    step: str
    unit: str
    state: str
    detail: str = ""
    done: int = 0
    total: int | None = None
    seconds_left: float | None = None
    gaps: tuple[str, ...] = field(default=())

    def document(self) -> dict[str, JsonValue]:
        """As JSON."""
        left = self.seconds_left
        return {
            "target": self.target, "step": self.step, "unit": self.unit, "state": self.state,
            "detail": self.detail, "done": self.done, "total": self.total,
            "seconds_left": None if left is None else round(left), "gaps": list(self.gaps),
        }  # fmt: skip


def lines_of(run: Row, rows: Iterable[Row], live: Iterable[str]) -> list[Line]:
    """Return every step of a run, in order. Pure.

    Args:
        run: the run.
        rows: at least all rows of this run.
        live: executors that are at work.
    """
    at_work = set(live)
    mine = [r for r in rows if r.id.startswith(f"{run.id}/") and r.name.startswith("step.")]
    names = [str(n) for n in run.params.get("steps", ()) if n in BY_NAME]
    made: list[Line] = []
    for arn in map(str, run.params.get("targets", ())):
        of = [r for r in mine if r.params.get("target") == arn]
        branch = f"{run.id}/{arn.rpartition('/')[2]}"
        parent = next((r for r in rows if r.id == branch), run)
        made += _branch(arn, of_scope(names, "target"), of, run.over or parent.over, at_work)
    of = [r for r in mine if "target" not in r.params]
    made += _branch("", of_scope(names, "case"), of, run.over, at_work)
    return made


def _branch(
    target: str, steps: list[Step], rows: list[Row], over: bool, live: set[str]
) -> Iterator[Line]:
    latest: dict[tuple[str, str], Row] = {}
    for row in rows:
        latest[row.name, str(row.params.get("unit", ""))] = row
    by_step = {s.name: [r for (n, _), r in latest.items() if n == f"step.{s.name}"] for s in steps}
    begun = [i for i, s in enumerate(steps) if by_step[s.name]]
    for number, step in enumerate(steps):
        found = by_step[step.name]
        for row in found:
            yield _line(target, step, row, live)
        if not found:
            # A step that has pieces and found none is passed over without a job.
            passed = over or (step.units is not None and bool(begun) and begun[-1] > number)
            open_ = [
                a for a in step.after
                if a in by_step and not (by_step[a] and all(r.over for r in by_step[a]))
            ]  # fmt: skip
            waits = ", ".join(open_) or "all targets" if not target else ", ".join(open_)
            yield Line(target, step.name, "", "nothing" if passed else "waits",
                       "" if passed or not waits else f"for {waits}")  # fmt: skip


def _line(target: str, step: Step, row: Row, live: set[str]) -> Line:
    unit = str(row.params.get("unit", ""))
    if row.over:
        answer = row.answer if isinstance(row.answer, dict) else {}
        gaps = tuple(str(g) for g in answer.get("gaps", ()))
        detail = row.error or (gaps[0] if gaps else "")
        return Line(target, step.name, unit, row.outcome, detail, row.done, row.total, 0, gaps)
    if row.version != VERSION:
        return Line(target, step.name, unit, "lost", "of another version; impound resume CASE")
    if row.status != "PENDING":
        return Line(target, step.name, unit, "queued", f"in {row.queue}")
    if row.executor not in live:
        return Line(target, step.name, unit, "lost", f"{row.executor} is gone; impound resume CASE")
    return Line(target, step.name, unit, "running", f"on {row.executor}", row.done, row.total,
                row.seconds_left)  # fmt: skip


def is_job(row: Row) -> bool:
    """Whether a row is a step at work, not a run or a target."""
    return row.name not in (RUN, TARGET)
