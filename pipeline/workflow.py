# SPDX-License-Identifier: Apache-2.0
"""The response workflow: its steps as data, and what each one does. Knows nothing of the engine.

    observe → remains → protect → freeze → isolate
            → memory → live → read and copy → hostkeys → records → verify   each target
    analyse → report → notify                                    the case

A step reads what came before from the ledger and from AWS, never from another step's answer: any
machine can go on where another one stopped. What is done already costs a look. A step whose code or
right is missing ends as a gap, and the others go on.

A module that brings a step names its function in `STEPS`; until it is there the step is a gap.

Source: RFC 3227, order of volatility; docs/design.md.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import JsonValue

from acquisition.errors import AcquisitionError
from acquisition.target import Target, parse_target
from evidence_store.errors import CaseClosedError, Error, IntegrityError, StoreError
from evidence_store.ledger import Draft
from evidence_store.model import clean
from pipeline import steps
from pipeline.acquire import Acquisition, Taking, missing_settings
from pipeline.errors import PipelineError
from pipeline.freeze import Result, outcome_of
from pipeline.run import Stopped

if TYPE_CHECKING:
    from evidence_store.store import Case
    from pipeline.isolate import Containment
    from pipeline.session import Session

Params = dict[str, JsonValue]
Queue = Literal["acquire", "cpu", "memory"]
Scope = Literal["target", "case"]
Outcome = Literal["ok", "gap", "waiting", "broken", "stopped"]

log = logging.getLogger(__name__)
_ENDED = ("terminated", "shutting-down")
_MAX_GAPS = 20  # of one step; an outcome is a row, not a report


class CancelledError(Exception):
    """Somebody cancelled the run, or this process ends: the step stays open."""


class ApprovalNeededError(PipelineError):
    """A step must not go on before a person approved it (`impound approve CASE STEP`)."""

    exit_code = 4


@dataclass(frozen=True)
class Did:
    """What a step came to. `gaps`: what could not be done, in words; `facts`: short."""

    gaps: tuple[str, ...] = ()
    facts: Mapping[str, JsonValue] = field(default_factory=dict)


@dataclass
class Job:
    """One step at work on one target (or on the case), on one `unit` of it if it has several.

    Attributes:
        unit: one of what `Step.units` listed, "" if the step is one piece.
        progress: called with (done, in all or None); raises CancelledError once cancelled.
        check: raises CancelledError once cancelled; for loops without progress.
        cancelled: is set then, for waits.
    """

    case: Case
    session: Session
    target: Target | None
    unit: str
    report: Path
    seal: Callable[[Case], object]
    say: Callable[[str], None]
    progress: Callable[[int, int | None], None]
    cancelled: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Raises: CancelledError."""
        if self.cancelled.is_set():
            raise CancelledError

    @property
    def key(self) -> str:
        """What its events in the ledger are about."""
        return self.unit or (self.target.arn if self.target else self.case.case_id)

    @contextmanager
    def acquisition(self) -> Iterator[tuple[Acquisition, Taking]]:
        """The volumes of the target. Its waits end when this job is cancelled."""
        if self.target is None:
            raise ValueError("a step of the case has no target")
        made = Acquisition(
            self.case, self.session.accounts(self.case.case_id), self.session.settings,
            self.target, say=self.say, progress=lambda _label: self.progress,
            ending=self.cancelled,
        )  # fmt: skip
        with closing(made):
            yield made, made.taking(self.target)


Run = Callable[[Job], Did]


@dataclass(frozen=True)
class Step:
    """One step of a response.

    Attributes:
        name: fixed: engine, ledger and command line know the step by it.
        about: what it does, for people.
        run: does it, or `module:function` of what may not be installed.
        after: steps that must have ended, however they ended.
        needs: of those, the ones whose approval it waits for too.
        queue: which machines may do it.
        scope: once for each target, or once for the case after all targets.
        units: pieces that can be done beside each other; None: it is one piece.
    """

    name: str
    about: str
    run: Run | str
    after: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    queue: Queue = "acquire"
    scope: Scope = "target"
    units: Callable[[Job], list[str]] | None = None

    def function(self) -> Run | None:
        """Return what does it; None if it is not there."""
        if not isinstance(self.run, str):
            return self.run
        module, _, name = self.run.partition(":")
        if importlib.util.find_spec(module) is None:
            return None
        return cast("Run", getattr(importlib.import_module(module), name))


# -- the steps that are here -----------------------------------------------------------------------


def observe(job: Job) -> Did:
    """Look at the target and its volumes; what was frozen before can be taken without it."""
    with job.acquisition() as (_, each):
        try:
            seen = each.freeze.observe()
        except AcquisitionError as e:
            if each.freeze.recorded():
                return Did((f"{e}; only what was frozen before is taken",))
            return Did((_said(e),))
    return Did(seen.gaps, {"volumes": len(seen.volumes), "state": seen.state})


def rescue(job: Job) -> Did:
    """Find, hold and take what is left of a target that has ended; of another, nothing."""
    from pipeline.remains import remains

    target = _target(job)
    with job.acquisition() as (_, each):
        try:
            seen = each.freeze.observe()
        except AcquisitionError:
            pass  # what it is that ended, `remains` finds out
        else:
            if seen.volumes or seen.state not in _ENDED:
                return Did((), {"left": "it has not ended"})
    found = remains(
        job.case, job.session.accounts(job.case.case_id), job.session.settings, target,
        copy=not missing_settings(job.session.settings), say=job.say,
        progress=lambda _label: job.progress,
    )  # fmt: skip
    if found.broken:
        raise IntegrityError(f"a copy of what is left of {target.resource_id} differs")
    if error := found.nothing():
        raise error
    lost = [f"{volume} is lost: {why}" for volume, why in found.decision.lost.items()]
    gaps = [*found.gaps, *lost, *(gap for r in found.taken.values() for gap in r.gaps)]
    return Did(tuple(gaps), {"items": len(found.items)})


def protect(job: Job) -> Did:
    """Keep an instance and its volumes from being lost."""
    if _target(job).kind != "instance":
        return Did((), {"nothing": "a volume alone cannot be ended by anything but its deletion"})
    done = _containment(job).protect()
    return Did(tuple(done.gaps), {"changes": len(done.made)})


def isolate(job: Job) -> Did:
    """Cut an instance off, so that it can be undone, and say what is proved."""
    if _target(job).kind != "instance":
        return Did((), {"nothing": "a volume has no connections"})
    containment = _containment(job)
    containment.sockets = lambda: _sockets(job)
    done = containment.isolate()
    if done.waits:
        raise ApprovalNeededError(done.waits, hint=f"impound approve {job.case.case_id} isolate")
    verdict = done.verdict.verdict if done.verdict else "not proved"
    return Did(tuple(done.gaps), {"changes": len(done.made), "verdict": verdict})


def _sockets(job: Job) -> tuple[str, ...]:
    """Log in and look which flows the host holds; its disk was frozen before.

    Raises: AcquisitionError, PipelineError.
    """
    from acquisition.containment.probe import LOOK_AT_FLOWS, flows_on
    from pipeline.hosts import Host

    accounts = job.session.accounts(job.case.case_id)
    host = Host(job.case, accounts, job.session.settings, _target(job), say=job.say)
    with host.open("isolate") as remote:
        ran = remote.run(LOOK_AT_FLOWS, "which flows it holds")
    if ran.code != 0 or ran.cut:
        raise AcquisitionError(f"ss on {remote.place} did not tell: {clean(ran.err, 200)}")
    return flows_on(
        ran.out.decode("utf-8", "replace"), filter(None, [job.session.settings.ssh.source])
    )


def _containment(job: Job) -> Containment:
    from pipeline.isolate import Containment

    target = _target(job)
    return Containment(
        job.case, job.session.accounts(job.case.case_id), job.session.settings, target,
        say=job.say, approve=lambda _question: approved(job.case, "isolate", target),
        sleep=lambda seconds: _wait(job, seconds), packets=True,
    )  # fmt: skip


def _wait(job: Job, seconds: float) -> None:
    job.cancelled.wait(seconds)
    job.check()


def _target(job: Job) -> Target:
    assert job.target is not None  # noqa: S101
    return job.target


def freeze(job: Job) -> Did:
    """One snapshot of all volumes at one moment, locked against deletion."""
    with job.acquisition() as (acquisition, each):
        outcome = each.freeze.take(acquisition.items)
        if not outcome.volumes:
            return Did((*outcome.gaps, "there is no volume to freeze"))
        gaps = [*outcome.gaps, *(gap for r in outcome.volumes for gap in r.gaps)]
        for result in outcome.volumes:
            job.check()
            if _deleted(job, result):
                continue
            try:
                each.freeze.hold(result)
            except StoreError:
                raise
            except Error as e:
                gaps.append(f"{result.snapshot}: {_said(e)}")
    return Did(tuple(gaps), {"snapshots": len(outcome.volumes)})


def read(job: Job) -> Did:
    """Every written block of one snapshot into the store, as soon as the snapshot is complete."""
    with job.acquisition() as (acquisition, each):
        result = _one(job)
        begun = steps.begin(job.case, "read", result.snapshot)
        done = begun.done or {}
        if (item := str(done.get("item", ""))) and job.case.item(item).acquired:
            return Did((), {"item": item})
        acquisition.complete(each, result)
        acquisition.read(each, result)
        if begun.done is None:
            steps.done(job.case, begun, item=result.item, of=each.target.arn)
    return Did(tuple(result.gaps), {"item": result.item})


def copy(job: Job) -> Did:
    """Copy one snapshot under the Audit account's key, and lock the copy."""
    if missing := missing_settings(job.session.settings):
        return Did((f"the Audit copy needs {' and '.join(missing)} in the settings",))
    result = _one(job)
    if _deleted(job, result):
        return Did((), {"copy": _outcome(job.case, "copy", result.snapshot, "copy")})
    with job.acquisition() as (acquisition, each):
        acquisition.copied(each, result)
    return Did((), {"copy": result.copy})


def verify(job: Job) -> Did:
    """Read the Audit copy of one snapshot whole, and compare it with the item."""
    result = _one(job)
    result.item = _outcome(job.case, "read", result.snapshot, "item")
    result.copy = _outcome(job.case, "copy", result.snapshot, "copy")
    if not result.item or not result.copy:
        missing = "was not read" if not result.item else "has no Audit copy"
        return Did((f"{result.snapshot} {missing}; source and copy cannot be compared",))
    with job.acquisition() as (acquisition, each):
        acquisition.prove(each, result)
    return Did(tuple(result.gaps), {"item": result.item, "copy": result.copy})


def frozen(job: Job) -> list[Result]:
    """The target's frozen volumes, as the ledger says it."""
    with job.acquisition() as (_, each):
        return each.freeze.recorded()


def _deleted(job: Job, result: Result) -> bool:
    """Whether `acquire cleanup` deleted the source, its copy being proved."""
    return outcome_of(job.case, "delete", result.snapshot) is not None


def _snapshots(job: Job) -> list[str]:
    return [result.snapshot for result in frozen(job)]


def _one(job: Job) -> Result:
    return next(result for result in frozen(job) if result.snapshot == job.unit)


def _outcome(case: Case, step: str, key: str, name: str) -> str:
    done = [e for e in steps.events_of(case, step, key) if e.action == "step.done"]
    return str((done[-1].data or {}).get(name, "")) if done else ""


def _analyses(job: Job) -> list[str]:
    from analysis.jobs import JOBS

    items = [i for i in job.case.state.items.values() if i.acquired and not i.disposed]
    return [f"{name}:{i.item_id}" for name, j in JOBS.items() for i in items if i.kind in j.kinds]


def analyse(job: Job) -> Did:
    """Run one analysis job over one item, in a limited process of its own."""
    from analysis.jobs import JOBS, run_job

    name, _, item = job.unit.partition(":")
    done = run_job(job.case, JOBS[name], item, progress=job.progress, check=job.check)
    gaps = () if done.result == "ok" else (
        f"{name} of {item}: {len(done.gaps)} gaps, listed in the table coverage"
        if done.result == "partial" else f"{name} of {item} found no rows at all",
    )  # fmt: skip
    return Did(gaps, {"item": done.result_item, "rows": sum(done.rows.values())})


def report(job: Job) -> Did:
    """Write the report, as of a checkpoint made for it."""
    from pipeline.report import render

    job.seal(job.case)
    return Did((), {"report": str(render(job.case, job.report))})


STEPS: tuple[Step, ...] = (
    Step("observe", "look at the target and its volumes", observe),
    Step("remains", "what is left of a target that has ended", rescue, after=("observe",)),
    Step("protect", "against termination, stop, scale-in", protect, after=("remains",)),
    Step("freeze", "one snapshot of all volumes, locked", freeze, after=("protect",)),
    Step("isolate", "cut the target off, and prove it", isolate, after=("freeze",),
         needs=("protect",)),
    Step("memory", "capture RAM over the permitted port", "pipeline.memory:memory",
         after=("isolate",), needs=("isolate",), queue="memory"),
    Step("live", "volatile facts over the same port", "pipeline.live:live",
         after=("memory",), needs=("isolate",), queue="memory"),
    Step("read", "every written block into the store", read, after=("live",), units=_snapshots),
    Step("hostkeys", "who answered over SSH, against the disk", "pipeline.hostkeys:hostkeys",
         after=("read",)),
    Step("copy", "under the Audit account's key, locked", copy, after=("live",), units=_snapshots),
    Step("records", "what AWS logged, with its digests", "pipeline.records:records",
         after=("hostkeys", "copy")),
    Step("verify", "the Audit copy against the item", verify, after=("records",),
         units=_snapshots),
    Step("analyse", "every job that reads an item", analyse, queue="cpu", scope="case",
         units=_analyses),
    Step("report", "one page, as of a checkpoint", report, after=("analyse",), queue="cpu",
         scope="case"),
    Step("notify", "whom the case names", "pipeline.notify:notify", after=("report",),
         scope="case"),
)  # fmt: skip
BY_NAME: Mapping[str, Step] = {step.name: step for step in STEPS}


def of_scope(names: Iterable[str], scope: Scope) -> list[Step]:
    """Return the steps of these names that have this scope, in their order.

    Raises: KeyError for a name that is no step.
    """
    wanted = {BY_NAME[name].name for name in names}
    return [step for step in STEPS if step.name in wanted and step.scope == scope]


# -- where they are done ---------------------------------------------------------------------------


@dataclass
class Desk:
    """Where the jobs of one process are done: it opens stores, runs steps, and can be cleared.

    Attributes:
        session: for a store's URI.
        seal: makes a checkpoint.
        board: told (job id, done, in all) of what is under way.
    """

    session: Callable[[str], Session]
    seal: Callable[[Case], object]
    say: Callable[[str], None] = lambda _line: None
    board: Callable[[str, int, int | None], None] = lambda _id, _done, _total: None
    _cases: dict[tuple[str, str], Case] = field(default_factory=dict, init=False)
    _active: dict[str, threading.Event] = field(default_factory=dict, init=False)
    _closing: threading.Event = field(default_factory=threading.Event, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def case(self, params: Params) -> Case:
        """Return the case of a job, opened for writing once, as fresh as its ledger.

        Raises: StoreError, IntegrityError.
        """
        where = str(params["store"]), str(params["case"])
        with self._lock:
            case = self._cases.get(where)
            if case is None:
                store = self.session(where[0]).open_store(writing=True)
                case = self._cases[where] = store.case(where[1])
        case.refresh()
        return case

    @property
    def active(self) -> list[str]:
        """Ids of the jobs that are at work."""
        with self._lock:
            return list(self._active)

    def cancel(self, job_id: str) -> None:
        """Tell a job to end; it does at its next look, and its child processes with it."""
        with self._lock:
            if job_id in self._active:
                self._active[job_id].set()

    def close(self) -> None:
        """Tell all jobs to end because the process does."""
        self._closing.set()
        for job_id in self.active:
            self.cancel(job_id)

    @contextmanager
    def _at_work(self, job_id: str) -> Iterator[threading.Event]:
        token = threading.Event()
        with self._lock:
            self._active[job_id] = token
        if self._closing.is_set():
            token.set()
        try:
            yield token
        finally:
            with self._lock:
                self._active.pop(job_id, None)

    def _job(self, job_id: str, params: Params, token: threading.Event) -> Job:
        def progress(done: int, total: int | None) -> None:
            if token.is_set():
                raise CancelledError
            self.board(job_id, done, total)

        arn = params.get("target")
        return Job(
            self.case(params), self.session(str(params["store"])),
            parse_target(str(arn)) if arn else None, str(params.get("unit", "")),
            Path(str(params["report"])), self.seal, self.say, progress, token,
        )  # fmt: skip

    def perform(self, step: Step, params: Params) -> Params:
        """Do one job and say what it came to; only cancelling it raises.

        The answer: {"result": Outcome, "gaps": […], "facts": {…}}, with "code" (exit code) and
        "hint" where the run cannot go on (`stopped`).

        Raises: CancelledError.
        """
        job_id = str(params["id"])
        with self._at_work(job_id) as token:
            try:
                return self._perform(step, self._job(job_id, params, token))
            except (CancelledError, Stopped) as e:
                ended: BaseException | None = e
            except StoreError as e:
                ended = None
                if not token.is_set():
                    return _answer("stopped", [str(e)], code=e.exit_code, hint=e.hint)
        raise CancelledError from ended

    def give_up(self, step: Step, params: Params, why: str) -> Params:
        """Do not do a job any more; it is a gap."""
        try:
            self._gaps(step, self._job(str(params["id"]), params, threading.Event()), [why])
        except StoreError as e:
            return _answer("stopped", [str(e)], code=e.exit_code, hint=e.hint)
        return _answer("gap", [why])

    def _perform(self, step: Step, job: Job) -> Params:
        try:
            why = _unapproved(step, job)
            if why:
                return _answer("waiting", [why])
            run = step.function()
            did = run(job) if run else Did((f"{step.name} is not part of this version",))
        except (StoreError, CancelledError, Stopped):
            raise
        except ApprovalNeededError as e:
            return _answer("waiting", [_said(e)])
        except IntegrityError as e:
            self._gaps(step, job, [_said(e)])
            return _answer("broken", [_said(e)], code=e.exit_code, hint=e.hint)
        except Error as e:
            did = Did((_said(e),))
        except Exception as e:
            log.exception("step %s of %s", step.name, job.key)
            did = Did((f"internal error: {type(e).__name__}: {e}",))
        self._gaps(step, job, did.gaps)
        return _answer("gap" if did.gaps else "ok", did.gaps, did.facts)

    def _gaps(self, step: Step, job: Job, gaps: Iterable[str]) -> None:
        """Record each gap once, under a name of its own: the step may be done all the same."""
        name = f"respond.{step.name}"
        for gap in gaps:
            note = clean(gap, 500)

            def build(note: str = note) -> Draft | None:
                stands = any(e.note == note for e in steps.events_of(job.case, name, job.key))
                data: dict[str, JsonValue] = {"step": name, "target": job.key}
                return None if stands else Draft("step.skipped", {"data": data, "note": note})

            job.case.record(build)

    def units(self, step: Step, params: Params) -> list[str]:
        """Return the pieces of a step; none if it has nothing to do. Raises: StoreError."""
        job = self._job(str(params["id"]), params, threading.Event())
        return list(step.units(job)) if step.units else [""]

    def begin(self, params: Params) -> None:
        """Record the intent for each target: a machine that never saw the run can resume it.

        Raises: StoreError.
        """
        case = self.case(params)
        for arn in cast("list[str]", params["targets"]):
            steps.begin(case, "respond", arn)

    def finish(self, params: Params, outcomes: Mapping[str, str]) -> None:
        """Record what became of each target, and seal the case. Raises: StoreError.

        A target that waits, or whose run was stopped, stays open.
        """
        case = self.case(params)
        for arn, outcome in outcomes.items():
            begun = steps.begin(case, "respond", arn)
            if outcome == "ok" and begun.done is None:
                steps.done(case, begun)
            elif outcome in ("gap", "broken"):
                steps.failed(case, begun, f"ended with {outcome}")
        self.seal(case)


def _unapproved(step: Step, job: Job) -> str:
    """Why a step waits, or "" if it may go on."""
    held = step.name in job.session.settings.engine.approve
    if held and not approved(job.case, step.name, job.target):
        return f"{step.name} waits for approval: impound approve {job.case.case_id} {step.name}"
    return ""


def approved(case: Case, step: str, target: Target | None = None) -> bool:
    """Whether the ledger holds an approval of a step, for this target or for all."""
    for event in case.ledger.events:
        data = event.data or {}
        if event.action == "approval.given" and data.get("step") == step:
            of = data.get("target")
            if of is None or (target is not None and of == target.arn):
                return True
    return False


def approve(case: Case, step: str, target: str | None = None, note: str = "") -> bool:
    """Record an approval, unless it stands; return whether it is new.

    Raises: CaseClosedError, StoreError.
    """
    if case.state.sealed:
        raise CaseClosedError(f"case {case.case_id} is closed; nothing waits in it")
    data: dict[str, JsonValue] = {"step": step, **({"target": target} if target else {})}

    def build() -> Draft | None:
        stands = any(
            e.action == "approval.given" and e.data == data for e in case.ledger.events
        )  # fmt: skip
        fields: dict[str, Any] = {"data": data, **({"note": clean(note, 500)} if note else {})}
        return None if stands else Draft("approval.given", fields)

    return case.record(build) is not None


def cancelled(case: Case, targets: Iterable[str], note: str) -> None:
    """Record that the response to these targets was cancelled. Raises: StoreError."""
    for arn in targets:
        begun = steps.begin(case, "respond", arn)
        if begun.done is None:
            steps.failed(case, begun, note)


def open_targets(case: Case) -> list[str]:
    """ARNs of the targets whose response the ledger does not show as done, in order."""
    last: dict[str, str] = {}
    for event in case.ledger.events:
        data = event.data or {}
        if data.get("step") == "respond" and event.action.startswith("step."):
            last[str(data["target"])] = event.action
    return [arn for arn, action in last.items() if action != "step.done"]


def worst(outcomes: Iterable[str]) -> Outcome:
    """The one that decides: broken, stopped, waiting, gap, ok.

    >>> worst(["ok", "gap"])
    'gap'
    """
    order: tuple[Outcome, ...] = ("broken", "stopped", "waiting", "gap", "ok")
    found = set(outcomes)
    return next((o for o in order if o in found), "ok")


def _said(e: Error) -> str:
    return f"{e}" + (f" ({e.hint})" if e.hint else "")


def _answer(
    result: Outcome, gaps: Iterable[str] = (), facts: Mapping[str, JsonValue] | None = None,
    **more: JsonValue,
) -> Params:  # fmt: skip
    said = [clean(g, 500) for g in gaps]
    shown = said[:_MAX_GAPS]
    if len(said) > len(shown):
        shown.append(f"and {len(said) - len(shown)} more, in the ledger")
    return {"result": result, "gaps": cast("list[JsonValue]", shown), "facts": dict(facts or {}),
            **more}  # fmt: skip
