# SPDX-License-Identifier: Apache-2.0
"""What the engine's database says of runs and jobs, read without the engine.

The engine's database is memory, not evidence: it can be lost, and is never taken in with a case.
Rows that another serializer wrote are shown without what is in them: reading those could run code.

Ids of jobs tell where they belong:

    <store, 8 digits>/<case>/<run>                      a run
    <run id>/<resource>                                 one target of it
    <run id>/<resource or ->/<step>[/<unit>][~<again>]  one job
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import re
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evidence_store.aws import failures
from evidence_store.model import clean
from pipeline.config import Settings, state_home
from pipeline.errors import ConfigError, PipelineError

SERIALIZER = "impound_json"
VERSION = "respond-1"  # of the workflow's shape: what changes it makes in-flight runs stale
ENDED = ("SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")
RUN, TARGET = "respond", "respond.target"
SLOTS = 16  # executors of one host
_FREE_BYTES = 64 << 20
_SHARED = re.compile(r"nfs\d?|cifs|smb\d?|smbfs|9p|ceph|glusterfs|lustre|fuse\.(sshfs|s3fs|efs.*)")
_WAIT_S = 60.0


class EngineError(PipelineError):
    """The engine's database cannot be used, or a run in it ended in an error."""


@dataclass(frozen=True)
class Place:
    """Where the engine keeps its memory: a file in `home`, or a PostgreSQL of several machines."""

    url: str
    home: Path | None = None

    @property
    def shared(self) -> bool:
        """Whether other machines use it too."""
        return self.home is None

    @property
    def file(self) -> Path:
        """The database of `home`."""
        if self.home is None:
            raise ValueError("a shared place has no file")
        return self.home / "engine.sqlite"


def place_of(settings: Settings, store_id: str, case_id: str) -> Place:
    """Return where runs of a case are kept: `IMPOUND_ENGINE_URL`, the settings, else a file.

    The variable may be the ARN of a secret in AWS Secrets Manager that holds the address.

    Raises: ConfigError.
    """
    url = os.environ.get("IMPOUND_ENGINE_URL") or settings.engine.url
    if re.match(r"arn:aws[a-z-]*:secretsmanager:", url):
        url = _secret(url)
    if url:
        if not re.match(r"postgres(ql)?://", url):
            raise ConfigError(
                "IMPOUND_ENGINE_URL is no address of a PostgreSQL database",
                hint="it looks like postgresql://user@host/database",
            )
        return Place("postgresql://" + url.partition("://")[2])
    home = state_home() / "engine" / store_id / case_id
    return Place(f"sqlite:///{home}/engine.sqlite", home)


@functools.cache
def _secret(arn: str) -> str:
    """Return the text of a secret. Raises: ConfigError; what it says of the secret is its name."""
    import boto3

    try:
        client = boto3.session.Session().client("secretsmanager", region_name=arn.split(":")[3])
        said = client.get_secret_value(SecretId=arn)
    except failures() as e:
        raise ConfigError(
            f"cannot read the secret that IMPOUND_ENGINE_URL names: {clean(str(e), 300)}",
            hint=f"the role needs secretsmanager:GetSecretValue on {arn}",
        ) from e
    return str(said.get("SecretString", "")).strip() or "(an empty secret)"


def prepare(home: Path, evidence: Path | None) -> None:
    """Make the folder of a local engine, for its owner only.

    Raises: ConfigError if it lies where it must not: in the store, on a network file system (a WAL
    needs shared memory), or on a full disk.
    """
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        free = os.statvfs(home)
    except OSError as e:
        raise ConfigError(f"cannot use {home}: {e.strerror}") from e
    if evidence is not None and home.resolve().is_relative_to(evidence.resolve()):
        raise ConfigError(
            f"the engine's folder {home} lies in the evidence store",
            hint="set XDG_STATE_HOME to a place outside of it",
        )
    if _SHARED.fullmatch(kind := _file_system(home)):
        raise ConfigError(
            f"the engine's folder {home} is on {kind}, which its database cannot use",
            hint="set XDG_STATE_HOME to a local disk, or IMPOUND_ENGINE_URL to a PostgreSQL",
        )
    if free.f_bavail * free.f_frsize < _FREE_BYTES:
        raise ConfigError(
            f"less than {_FREE_BYTES >> 20} MiB are free for the engine in {home}",
            hint="free some space, or set XDG_STATE_HOME to another disk",
        )


def _file_system(path: Path) -> str:
    """Kind of the file system that `path` is on, "" if unknown. Source: proc(5), mounts."""
    best, kind = -1, ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mounts").read_text(errors="replace").splitlines():
            _, point, found, *_ = line.split(" ")
            point = point.replace("\\040", " ")
            if path.resolve().is_relative_to(point) and len(point) >= best:
                best, kind = len(point), found
    return kind


def host_id() -> str:
    """Return the name of this machine as it stands in queue names and executor ids.

    >>> bool(re.fullmatch("[A-Za-z0-9._-]+", host_id()))
    True
    """
    return re.sub(r"[^A-Za-z0-9._-]", "_", platform.node())[:60] or "host"


def lock_number(executor: str) -> int:
    """The advisory lock of an executor id: a signed 64-bit number.

    >>> lock_number("a") == lock_number("a") != lock_number("b")
    True
    """
    digest = hashlib.sha256(f"impound executor {executor}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def prefix_of(store_id: str, case_id: str) -> str:
    """What the ids of a case's runs begin with."""
    return f"{store_id[:8]}/{case_id}/"


@dataclass(frozen=True)
class Row:
    """One run, target or job. Times in seconds since the epoch, 0 if not yet.

    Attributes:
        name: of the step, or `RUN`, or `TARGET`.
        status: as the engine has it; `ENDED` are its ends.
        params: what it was started with; {} if it cannot be read safely.
        answer: what it came to, None if not yet.
        error: what an `ERROR` says.
        done, total: progress in bytes, if it tells any; `rate` in bytes a second.
    """

    id: str
    name: str
    status: str
    executor: str
    version: str
    queue: str
    created: float
    started: float
    ended: float
    params: dict[str, Any] = field(default_factory=dict)
    answer: Any = None
    error: str = ""
    done: int = 0
    total: int | None = None
    rate: float = 0.0

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.status in ENDED

    @property
    def outcome(self) -> str:
        """`ok`, `gap`, `waiting`, `broken`, `stopped`, `cancelled`, `error`; "" if not ended."""
        if self.status == "SUCCESS":
            return str((self.answer or {}).get("result") or (self.answer or {}).get("outcome", ""))
        return {"ERROR": "error", "CANCELLED": "cancelled"}.get(
            self.status, "error" if self.over else ""
        )

    @property
    def seconds_left(self) -> float | None:
        """At this rate; None if it cannot be said."""
        if self.total is None or not self.rate:
            return None
        return max(0, self.total - self.done) / self.rate


_COLUMNS = """
    s.workflow_uuid, s.name, s.status, s.executor_id, s.application_version, s.queue_name,
    s.created_at, s.started_at_epoch_ms, s.completed_at, s.serialization, i.inputs, o.output,
    o.error, p.done, p.total, p.first, p.first_done, p.at
"""
_PROGRESS = """
    create table if not exists {0}progress (
        id text primary key, done bigint not null, total bigint, first bigint not null,
        first_done bigint not null, at bigint not null)
"""
_BEGUN = "create table if not exists {0}begun (id text primary key, n integer not null)"


@dataclass
class Board:
    """Runs and jobs of a place."""

    place: Place

    def _ours(self) -> str:
        return "impound." if self.place.shared else "impound_"

    @contextlib.contextmanager
    def _connect(self, *, writing: bool = False) -> Iterator[Any]:
        """Give a connection whose one transaction is committed at the end.

        Raises: EngineError.
        """
        if not self.place.shared:
            mode = "rwc" if writing else "ro"
            try:
                connection = sqlite3.connect(
                    f"file:{_quoted(self.place.file)}?mode={mode}", uri=True, timeout=_WAIT_S
                )
                with contextlib.closing(connection), connection:
                    yield connection
            except sqlite3.Error as e:
                raise EngineError(
                    f"cannot use the engine's database {self.place.file}: {e}",
                    hint="it is memory only: remove it, and resume finds what was done",
                ) from e
            return
        import psycopg

        try:
            with psycopg.connect(self.place.url, connect_timeout=10) as shared:
                yield shared
        except psycopg.Error as e:
            raise EngineError(
                f"cannot use the engine's database: {str(e).strip().splitlines()[0]}",
                hint="check IMPOUND_ENGINE_URL, and that its server runs; nothing is lost",
            ) from e

    def _sql(self, text: str) -> str:
        """Make a statement with `?` and `{dbos}`, `{ours}` fit this database."""
        dbos = "dbos." if self.place.shared else ""
        made = text.replace("{dbos}", dbos).replace("{ours}", self._ours())
        return made.replace("?", "%s") if self.place.shared else made

    @property
    def exists(self) -> bool:
        """Whether anything was ever kept here."""
        if not self.place.shared:
            if not self.place.file.exists():
                return False
            text = (
                "select count(*) from sqlite_master where name in "
                "('impound_progress', 'workflow_output')"
            )
        else:
            text = (
                "select (to_regclass('impound.progress') is not null)::int "
                "+ (to_regclass('dbos.workflow_output') is not null)::int"
            )
        with self._connect() as c:
            return bool(c.execute(text).fetchone()[0] == 2)

    def workers(self) -> int:
        """How many executors are connected to a shared place. Raises: EngineError."""
        text = "select count(*) from pg_stat_activity where application_name = 'impound-executor'"
        with self._connect() as c:
            return int(c.execute(text).fetchone()[0])

    def make(self) -> None:
        """Make what is missing: the file in WAL mode for its owner only, our tables.

        Raises: EngineError.
        """
        if not self.place.shared:
            try:
                os.close(os.open(self.place.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            except OSError as e:
                raise EngineError(f"cannot use {self.place.file}: {e.strerror}") from e
        with self._connect(writing=True) as c:
            if self.place.shared:
                # Two that create the same schema at once would make one of them fail.
                c.execute("select pg_advisory_xact_lock(%s)", (lock_number("schema"),))
                c.execute("create schema if not exists impound")
            else:
                c.execute("pragma journal_mode=wal")
            c.execute(_PROGRESS.format(self._ours()))
            c.execute(_BEGUN.format(self._ours()))

    def rows(self, prefix: str = "", *, over: bool = True) -> list[Row]:
        """Return runs, targets and jobs whose id begins with `prefix`, oldest first.

        `over`: also those that have ended. Raises: EngineError.
        """
        if not self.exists:
            return []
        names = ", ".join(f"'{e}'" for e in ENDED)
        only = "" if over else f"and s.status not in ({names})"
        text = f"""
            select {_COLUMNS} from {{dbos}}workflow_status s
            left join {{dbos}}workflow_input i on i.workflow_uuid = s.workflow_uuid
            left join {{dbos}}workflow_output o on o.workflow_uuid = s.workflow_uuid
            left join {{ours}}progress p on p.id = s.workflow_uuid
            where substr(s.workflow_uuid, 1, ?) = ? {only}
            order by s.created_at, s.workflow_uuid
        """  # noqa: S608 (no value of anybody else's is in it)
        with self._connect() as c:
            return [_row(r) for r in c.execute(self._sql(text), (len(prefix), prefix)).fetchall()]

    def cancelled(self, ids: Sequence[str]) -> list[str]:
        """Return those of `ids` that were cancelled. Raises: EngineError."""
        if not ids:
            return []
        marks = ", ".join("?" * len(ids))
        text = (
            "select workflow_uuid from {dbos}workflow_status "  # noqa: S608
            f"where status = 'CANCELLED' and workflow_uuid in ({marks})"
        )
        with self._connect() as c:
            return [r[0] for r in c.execute(self._sql(text), tuple(ids)).fetchall()]

    def tell(self, job_id: str, done: int, total: int | None) -> None:
        """Note how far a job is. Raises: EngineError."""
        now = time.time_ns() // 1_000_000
        text = """
            insert into {ours}progress as p (id, done, total, first, first_done, at)
            values (?, ?, ?, ?, ?, ?) on conflict (id) do update set
            done = excluded.done, total = excluded.total, at = excluded.at,
            first = case when excluded.done < p.done then excluded.first else p.first end,
            first_done = case when excluded.done < p.done then excluded.done else p.first_done end
        """
        with self._connect(writing=True) as c:
            c.execute(self._sql(text), (job_id, done, total, now, done, now))

    def begun(self, job_id: str, by: int = 1) -> int:
        """Count how often a job was begun and not ended in order; return it.

        Raises: EngineError.
        """
        text = """
            insert into {ours}begun as b (id, n) values (?, ?)
            on conflict (id) do update set n = b.n + excluded.n returning n
        """
        with self._connect(writing=True) as c:
            return int(c.execute(self._sql(text), (job_id, by)).fetchone()[0])

    def forget(self, prefix: str) -> None:
        """Drop our own notes of runs whose id begins with `prefix`. Raises: EngineError."""
        with self._connect(writing=True) as c:
            for table in ("progress", "begun"):
                text = f"delete from {{ours}}{table} where substr(id, 1, ?) = ?"  # noqa: S608
                c.execute(self._sql(text), (len(prefix), prefix))

    def live(self, executors: Sequence[str]) -> set[str]:
        """Return those of these executors that hold their lock now. Raises: EngineError."""
        if not self.place.shared:
            return {e for e in executors if is_locked(self.place)}
        with self._connect() as c:
            held = c.execute(
                "select classid::bigint << 32 | objid::bigint from pg_locks "
                "where locktype = 'advisory' and objsubid = 1 and granted and database = "
                "(select oid from pg_database where datname = current_database())"
            ).fetchall()
        numbers = {n[0] for n in held}
        return {e for e in executors if lock_number(e) in numbers}


def is_locked(place: Place) -> bool:
    """Whether some process is the executor of a local place."""
    import fcntl

    if place.home is None:
        raise ValueError("only a local place has one executor")
    try:
        fd = os.open(place.home / "executor.lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _quoted(path: Path) -> str:
    from urllib.parse import quote

    return quote(str(path))


def _row(raw: Sequence[Any]) -> Row:
    (uuid, name, status, executor, version, queue, created, started, ended, serializer, inputs,
     output, error, done, total, first, first_done, at) = raw  # fmt: skip
    readable = serializer == SERIALIZER
    params: Any = {}
    if readable and inputs:
        args = json.loads(inputs).get("args") or [{}]
        params = args[0]
    seconds = ((at or 0) - (first or 0)) / 1000
    return Row(
        uuid, name or "", status or "", executor or "", version or "", queue or "",
        (created or 0) / 1000, (started or 0) / 1000, (ended or 0) / 1000,
        params if isinstance(params, dict) else {},
        json.loads(output) if readable and output else None,
        _error_text(error) if readable and error else "",
        done or 0, total, ((done or 0) - (first_done or 0)) / seconds if seconds > 0 else 0.0,
    )  # fmt: skip


def _error_text(raw: str) -> str:
    said = json.loads(raw)
    return str(said.get("error", said)) if isinstance(said, dict) else str(said)
