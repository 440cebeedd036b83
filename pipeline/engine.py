# SPDX-License-Identifier: Apache-2.0
"""The durable engine: DBOS over SQLite on one machine, over PostgreSQL for a fleet.

The only module that imports dbos; it is imported when something is run. What it keeps is memory:
where a run stood. What was done is in the ledger and in AWS, and a step looks there first, so a run
is never rewound: a new one begins, and finds what the old one did.

Rules, each of which a test holds:
    - one executor to an id, by a lock taken before launch;
    - the version is that of the workflow's shape, pinned, so that a release strands nothing;
    - one step to one name, so that drift in the order is an error and not a wrong answer;
    - workflow bodies call steps and the engine only: no clock, no chance, no AWS;
    - rows are JSON, and the environment cannot make the library talk to anybody.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, cast

from evidence_store.errors import BusyError, StoreError
from pipeline.board import (
    RUN,
    SERIALIZER,
    SLOTS,
    TARGET,
    VERSION,
    Board,
    EngineError,
    Place,
    Row,
    host_id,
    lock_number,
)
from pipeline.workflow import (
    STEPS,
    CancelledError,
    Desk,
    Outcome,
    Params,
    Step,
    approved,
    of_scope,
    worst,
)

# What it would otherwise be told by whoever set the environment: where to report, what to run.
for _name in [n for n in os.environ if n.startswith("DBOS_")]:
    del os.environ[_name]

from dbos import DBOS, DBOSClient, DBOSConfig, Serializer, SetWorkflowID  # noqa: E402
from dbos._error import (  # noqa: E402
    DBOSAwaitedWorkflowCancelledError,
    DBOSWorkflowCancelledError,
)

from acquisition.target import parse_target  # noqa: E402

if TYPE_CHECKING:
    import psycopg

log = logging.getLogger(__name__)
APPLICATION = "impound"
TAKEOVERS = 3
STALL_S = 20.0
RESPOND_QUEUE = "respond"
_POLL_S = 0.2
_TELL_S = 1.0
_GRACE_S = 5.0  # after the database came back: others take their locks again first
_KEEPALIVE = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}


class Json(Serializer):
    """Rows as JSON. An exception becomes its words."""

    def serialize(self, data: Any) -> str:
        """Return JSON. Raises: TypeError for what is none."""
        if isinstance(data, BaseException):
            return json.dumps({"error": f"{type(data).__name__}: {data}"[:2000]})
        return json.dumps(data)

    def deserialize(self, serialized_data: str) -> Any:
        """Return what JSON says; of an exception, an EngineError with its words."""
        value = json.loads(serialized_data)
        if isinstance(value, dict) and value.keys() == {"error"}:
            return EngineError(str(value["error"]))
        return value

    def name(self) -> str:
        """Rows of other names are not read."""
        return SERIALIZER


class _Forward(logging.Handler):
    """What the library says, in our own log, its tracebacks only with -v.

    A cancelled run is no error, though it logs it as one; that the database is away, which every
    thread of it says again and again, `Executor` says once.
    """

    def emit(self, record: logging.LogRecord) -> None:
        kind = record.exc_info[0] if record.exc_info else None
        said = record.getMessage()
        cancelled = (DBOSWorkflowCancelledError, DBOSAwaitedWorkflowCancelledError)
        if (kind is not None and issubclass(kind, cancelled)) or "was cancelled" in said:
            return
        reason = f": {record.exc_info[1]}" if record.exc_info else ""
        again = "OperationalError" in said + reason or "connection" in said
        level = logging.INFO if again or "no longer owned" in said else record.levelno
        log.log(level, "engine: %s", " ".join(f"{said}{reason}".split())[:500])
        if record.exc_info:
            log.info("where it happened", exc_info=record.exc_info)


def _quiet() -> None:
    """Take the library's log over; it writes to standard error by itself otherwise."""
    logger = logging.getLogger("dbos")
    logger.handlers[:] = [_FORWARD]
    logger.propagate = False


# -- the one process that runs jobs ----------------------------------------------------------------


class Executor:
    """Runs the jobs of a place in this process. Use as a context manager.

    Args:
        place: where runs are kept.
        desk: does the steps.
        queues: that this machine serves; None: all.
        slots: analysis jobs at once.

    Raises: BusyError if this id is taken: another process is at work here; EngineError.
    """

    def __init__(
        self, place: Place, desk: Desk, *, queues: Iterable[str] | None = None, slots: int = 0
    ) -> None:
        self.place = place
        self.desk = desk
        self.board = Board(place)
        self.fenced = threading.Event()
        self.stalled = threading.Event()
        self._queues = None if queues is None else list(queues)
        self._slots = slots or os.cpu_count() or 1
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._told: dict[str, float] = {}
        self._lock: _FileLock | _SharedLock

    def __enter__(self) -> Executor:
        self._lock = (
            _SharedLock(self.place) if self.place.shared else _FileLock(self.place)
        )  # fmt: skip
        try:
            self.board.make()
            self._launch()
        except BaseException:
            self._lock.release()
            raise
        self.desk.board = self._tell
        self._start(self._watch)
        if isinstance(self._lock, _SharedLock):
            self._start(self._hold)
            self._start(self._reap)
        return self

    def __exit__(self, kind: object, _error: object, _trace: object) -> None:
        self.leave(0 if kind else 5)

    @property
    def executor_id(self) -> str:
        """The id under which this process runs."""
        return self._lock.executor

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name=f"engine{work.__name__}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _launch(self) -> None:
        config: DBOSConfig = {
            "name": APPLICATION, "system_database_url": self.place.url,
            "executor_id": self._lock.executor, "application_version": VERSION,
            "serializer": Json(), "log_level": "WARNING", "enable_otlp": False,
            "sys_db_pool_size": 10, "notification_listener_polling_interval_sec": _POLL_S,
        }  # fmt: skip
        try:
            DBOS(config=config)
            _quiet()
            _register(self.desk, self.board)
            if self._queues is not None:
                DBOS.listen_queues(self._queues)
            DBOS.launch()
            host = f"host-{host_id()}"
            for name, limit in (
                (RESPOND_QUEUE, None), ("acquire", 8), ("cpu", self._slots), ("memory", 1),
                (host, self._slots + 4),
            ):  # fmt: skip
                DBOS.register_queue(name, worker_concurrency=limit, polling_interval_sec=_POLL_S)
        except Exception as e:
            DBOS.destroy(destroy_registry=True)
            raise EngineError(
                f"the engine cannot start: {type(e).__name__}: {str(e).splitlines()[0]}",
                hint="its database is memory only: impound resume finds what was done",
            ) from e

    def leave(self, patience_s: float) -> None:
        """Take no more jobs; let those at work end for `patience_s`, then tell them to stop.

        What did not end stays as it is, for the next executor.
        """
        if self._stop.is_set():
            return
        self._stop.set()
        end = time.monotonic() + patience_s
        ending = threading.Thread(
            target=DBOS.destroy, daemon=True,
            kwargs={"workflow_completion_timeout_sec": max(1, int(patience_s)),
                    "destroy_registry": True},
        )  # fmt: skip
        if patience_s > 0 and self.desk.active:
            ending.start()  # first thing it does: no more jobs are taken
            while self.desk.active and time.monotonic() < end:
                time.sleep(0.1)
            time.sleep(0.5)  # the outcome of the last one
        self.desk.close()
        while self.desk.active and time.monotonic() < end + 10:
            time.sleep(0.1)
        if not ending.is_alive():
            DBOS.destroy(destroy_registry=True)
        for thread in self._threads:
            thread.join(timeout=5)
        self._lock.release()

    def _tell(self, job_id: str, done: int, total: int | None) -> None:
        """Note progress, at most once a second; a database that is away loses only this."""
        now = time.monotonic()
        if now - self._told.get(job_id, 0) < _TELL_S and done != total:
            return
        self._told[job_id] = now
        try:
            self.board.tell(job_id, done, total)
        except EngineError as e:
            log.info("progress of %s is not noted: %s", job_id, e)

    def _watch(self) -> None:
        """Tell jobs at work here that somebody cancelled them; notice when nothing goes on.

        Where the outcome of a job cannot be written (a full disk), nobody hears of it.
        """
        seen: tuple[object, float] = ((), time.monotonic())
        while not self._stop.wait(1.0):
            try:
                for job_id in self.board.cancelled(self.desk.active):
                    self.desk.cancel(job_id)
                if self.place.shared:
                    continue
                before = time.monotonic()
                self.board.tell("executor", 0, None)  # waits while others lock the database
                now = time.monotonic()
                state = [(r.id, r.status) for r in self.board.rows(over=False)]
            except EngineError as e:
                log.info("cannot look at what is under way: %s", e)
                if not self.place.shared and not self.desk.active:
                    self.stalled.set()
                continue
            if not state or self.desk.active or state != seen[0] or now - before > 1:
                seen = state, now
            elif now - seen[1] > STALL_S:
                self.stalled.set()

    def _hold(self) -> None:
        """Keep our lock; if the server went away and somebody took our id over, stop."""
        lock = cast("_SharedLock", self._lock)
        while not self._stop.wait(1.0):
            if not lock.keep():
                log.error("another process took over what %s was doing", lock.executor)
                self.fenced.set()
                self.desk.close()
                return

    def _reap(self) -> None:
        """Take over the jobs of executors that are gone."""
        lock = cast("_SharedLock", self._lock)
        while not self._stop.wait(1.0):
            if time.monotonic() - lock.since < _GRACE_S:
                continue
            try:
                pending = [r for r in self.board.rows(over=False) if r.status == "PENDING"]
                live = self.board.live([lock.executor, *(r.executor for r in pending)])
                if lock.executor not in live or time.monotonic() - lock.since < _GRACE_S:
                    continue  # the server was away just now, and not everybody is back
                for executor in {r.executor for r in pending} - live - {lock.executor}:
                    self._take_over(executor)
            except EngineError as e:
                log.info("cannot look for executors that are gone: %s", e)

    def _take_over(self, executor: str) -> None:
        try:
            held = _SharedLock(self.place, executor)
        except BusyError:
            return  # it is back, or another one is at it
        try:
            with Client(self.place) as client:
                for row in self.board.rows(over=False):
                    if (row.status, row.executor, row.version) != ("PENDING", executor, VERSION):
                        continue
                    log.warning("taking over %s from %s", row.id, executor)
                    client.resume(row)
        finally:
            held.release()


_FORWARD = _Forward()


class _FileLock:
    """One executor to a folder."""

    executor = "local"

    def __init__(self, place: Place) -> None:
        if place.home is None:
            raise ValueError("a shared place is locked in its database")
        self._fd = os.open(
            place.home / "executor.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            os.close(self._fd)
            raise BusyError(
                "another process runs this case's response",
                hint="impound status CASE shows how far it is",
            ) from e

    def release(self) -> None:
        """Let the next one in."""
        os.close(self._fd)


class _SharedLock:
    """One executor to an id: a session's advisory lock, gone when the process or its host is.

    Without an id: the first free one of this host.
    """

    def __init__(self, place: Place, executor: str = "") -> None:
        self._url = place.url
        self._away = False
        self._connection = self._connect()
        names = [executor] if executor else [f"{host_id()}-{n}" for n in range(1, SLOTS + 1)]
        for name in names:
            if self._take(name):
                self.executor = name
                break
        else:
            self._connection.close()
            raise BusyError(
                f"executor {executor} is alive" if executor else
                f"{SLOTS} workers run on {host_id()}", hint="end one of them first",
            )  # fmt: skip
        self.since = time.monotonic()

    def _connect(self) -> psycopg.Connection[Any]:
        import psycopg

        try:
            return psycopg.connect(
                self._url, autocommit=True, connect_timeout=5, application_name="impound-executor",
                **cast("Any", _KEEPALIVE),
            )  # fmt: skip
        except psycopg.Error as e:
            raise EngineError(
                f"cannot reach the engine's database: {str(e).strip().splitlines()[0]}",
                hint="check IMPOUND_ENGINE_URL, and that its server runs",
            ) from e

    def _take(self, name: str) -> bool:
        asked = self._connection.execute("select pg_try_advisory_lock(%s)", (lock_number(name),))
        found = asked.fetchone()
        return bool(found and found[0])

    def keep(self) -> bool:
        """Whether it is still ours, once the server can be asked; taken again if it is free."""
        import psycopg

        try:
            self._connection.execute("select 1")
            return True
        except psycopg.Error:
            if not self._away:
                log.warning("the engine's database is away; waiting for it")
            self._away = True
        try:
            self._connection.close()
            self._connection = self._connect()
            self.since = time.monotonic()
            self._away = False
            log.warning("the engine's database is back")
            return self._take(self.executor)
        except (EngineError, psycopg.Error):
            return True  # nobody can have taken it meanwhile: there is no server

    def release(self) -> None:
        """Let the next one in."""
        self._connection.close()


# -- the workflows ---------------------------------------------------------------------------------


def _register(desk: Desk, board: Board) -> None:
    """Name the workflows and steps of this process. Their bodies call nothing but these."""
    jobs = {step.name: _job_of(step, desk, board) for step in STEPS}
    units = {step.name: _units_of(step, desk) for step in STEPS if step.units}

    @DBOS.step(name="respond.begin")
    def begin(params: Params) -> Params:
        return _guarded(lambda: desk.begin(params))

    @DBOS.step(name="respond.finish")
    def finish(params: Params, outcomes: dict[str, str]) -> Params:
        return _guarded(lambda: desk.finish(params, outcomes))

    @DBOS.step(name="respond.approved")
    def now_approved(params: Params, waiting: list[str]) -> list[str]:
        case = desk.case(params)
        arn = params.get("target")
        target = parse_target(str(arn)) if arn else None
        return [name for name in waiting if approved(case, name, target)]

    def schedule(params: Params, steps: list[Step]) -> Outcome:
        """Start each step when those before it have ended; return the worst outcome.

        The order in which jobs end is recorded, so a replay starts the same ones again.
        """
        base = str(DBOS.workflow_id) + ("" if "target" in params else "/-")
        left, again = list(steps), ""
        ended: dict[str, list[str]] = {}
        running: dict[str, tuple[str, Any]] = {}

        def waits(name: str) -> bool:
            return "waiting" in ended.get(name, ())

        def start(step: Step) -> None:
            job_id = f"{base}/{step.name}"
            listed = units[step.name]({**params, "id": job_id}) if step.units else [""]
            ended[step.name] = ["stopped"] if isinstance(listed, dict) else []
            for unit in [] if isinstance(listed, dict) else listed:
                one = (f"{job_id}/{unit}" if unit else job_id) + again
                with SetWorkflowID(one):
                    handle = DBOS.enqueue_workflow(
                        _queue(step, params), jobs[step.name],
                        {**params, "id": one, "unit": unit},
                    )  # fmt: skip
                running[one] = step.name, handle

        while True:
            busy = {name for name, _ in running.values()}
            halted = any("stopped" in e for e in ended.values())
            open_ = {s.name for s in left} | busy
            for step in [] if halted else list(left):
                if any(a in open_ for a in step.after):
                    continue
                left.remove(step)
                if any(waits(need) for need in step.needs):
                    ended[step.name] = ["waiting"]
                else:
                    start(step)
                if step.name not in {name for name, _ in running.values()}:
                    open_.discard(step.name)
            if running:
                first = DBOS.wait_first([h for _, h in running.values()],
                                        polling_interval_sec=_POLL_S)  # fmt: skip
                name, handle = running.pop(first.workflow_id)
                ended[name].append(_outcome_of(handle))
                continue
            if halted or not left:
                waiting = [s for s in steps if waits(s.name)]
                free = [] if halted or not waiting else now_approved(
                    params, [s.name for s in waiting]
                )  # fmt: skip
                if not free:
                    return worst(o for e in ended.values() for o in e)
                again += "~"
                for step in waiting:
                    del ended[step.name]
                left = waiting

    @DBOS.workflow(name=TARGET)
    def target(params: Params) -> Params:
        names = cast("list[str]", params["steps"])
        return {"outcome": schedule(params, of_scope(names, "target"))}

    @DBOS.workflow(name=RUN)
    def respond(params: Params) -> Params:
        targets = cast("list[str]", params["targets"])
        outcomes: dict[str, str] = {}
        if begin(params).get("result") == "stopped":
            return {"outcome": "stopped"}
        handles = {}
        for arn in targets:
            with SetWorkflowID(f"{DBOS.workflow_id}/{arn.rpartition('/')[2]}"):
                handles[arn] = DBOS.enqueue_workflow(RESPOND_QUEUE, target,
                                                     {**params, "target": arn})  # fmt: skip
        for arn, handle in handles.items():
            outcomes[arn] = _outcome_of(handle)
        whole: list[str] = list(outcomes.values())
        if "stopped" not in whole:
            names = cast("list[str]", params["steps"])
            whole.append(schedule(params, of_scope(names, "case")))
            if finish(params, outcomes).get("result") == "stopped":
                whole.append("stopped")
        return {"outcome": worst(whole)}


def _job_of(step: Step, desk: Desk, board: Board) -> Callable[[Params], Params]:
    shared = board.place.shared  # alone, a person sees that it ends, and starts it again

    def begun(job_id: str, by: int) -> int:
        try:
            return board.begun(job_id, by) if shared else 0
        except EngineError as e:
            log.info("not counted that %s begins: %s", job_id, e)
            return 0

    @DBOS.step(name=step.name)
    def do(params: Params) -> Params:
        job_id = str(params["id"])
        if (times := begun(job_id, 1)) > TAKEOVERS + 1:
            return desk.give_up(step, params, f"{times - 1} workers ended while they did it")
        try:
            return desk.perform(step, params)
        except CancelledError as e:
            begun(job_id, -1)
            # No outcome is recorded: whoever resumes the job does the step again.
            raise DBOSWorkflowCancelledError(job_id) from e

    @DBOS.workflow(name=f"step.{step.name}")
    def job(params: Params) -> Params:
        return do(params)

    return job


def _units_of(step: Step, desk: Desk) -> Callable[[Params], list[str] | Params]:
    @DBOS.step(name=f"{step.name}.units")
    def units(params: Params) -> list[str] | Params:
        try:
            return desk.units(step, params)
        except StoreError as e:
            log.error("%s", e)  # noqa: TRY400 (the message says it all)
            return {"result": "stopped"}

    return units


def _guarded(work: Callable[[], None]) -> Params:
    try:
        work()
    except StoreError as e:
        log.error("%s", e)  # noqa: TRY400 (the message says it all)
        return {"result": "stopped", "gaps": [str(e)], "code": e.exit_code, "hint": e.hint}
    return {"result": "ok"}


def _outcome_of(handle: Any) -> str:
    """What a job came to. One that was given up is a gap; one whose engine failed stops the run."""
    try:
        answer = handle.get_result(polling_interval_sec=_POLL_S)
    except DBOSAwaitedWorkflowCancelledError:
        return "gap"
    except EngineError:
        return "stopped"
    return str(answer.get("result") or answer["outcome"])


def _queue(step: Step, params: Params) -> str:
    """Where a job waits: with evidence on a disk of one host of several, on that host."""
    return f"host-{params['host']}" if params.get("host") else step.queue


# -- from outside ----------------------------------------------------------------------------------


class Client:
    """Starts, resumes and cancels runs of a place; runs nothing itself. A context manager."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.board = Board(place)

    def __enter__(self) -> Client:
        _quiet()
        try:
            if self.place.shared:
                self.board.make()
                DBOS.migrate(self.place.url)
            self._client = DBOSClient(
                system_database_url=self.place.url, serializer=Json(),
                application_name=APPLICATION, system_database_pool_size=2,
            )  # fmt: skip
        except EngineError:
            raise
        except Exception as e:
            raise EngineError(
                f"cannot use the engine's database: {type(e).__name__}: {str(e).splitlines()[0]}",
                hint="check IMPOUND_ENGINE_URL, and that its server runs; nothing is lost",
            ) from e
        return self

    def __exit__(self, *_: object) -> None:
        self._client.destroy()

    def start(self, run_id: str, params: Params) -> None:
        """Start a run, or do nothing if it was started."""
        with _failing():
            self._client.enqueue(
                {"workflow_name": RUN, "queue_name": RESPOND_QUEUE, "workflow_id": run_id,
                 "app_version": VERSION},
                params,
            )  # fmt: skip

    def resume(self, row: Row) -> None:
        """Let another executor take up a job, on the queue it waited in."""
        with _failing():
            self._client.resume_workflow(row.id, queue_name=row.queue or RESPOND_QUEUE)

    def cancel(self, ids: list[str]) -> None:
        """Cancel runs and jobs that have not ended."""
        if ids:
            with _failing():
                self._client.cancel_workflows(ids)

    def forget(self, prefix: str) -> int:
        """Remove runs that have ended; return how many rows. The ledger keeps what was done."""
        ids = [row.id for row in self.board.rows(prefix) if row.over]
        if ids:
            with _failing():
                self._client.delete_workflows(ids)
            self.board.forget(prefix)
        return len(ids)


@contextlib.contextmanager
def _failing() -> Iterator[None]:
    try:
        yield
    except EngineError:
        raise
    except Exception as e:
        raise EngineError(
            f"the engine's database refused: {type(e).__name__}: {str(e).splitlines()[0]}",
            hint="it is memory only; impound resume finds what was done",
        ) from e
