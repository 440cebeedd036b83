# SPDX-License-Identifier: Apache-2.0
"""Analysis jobs: a limited child reads an item, the parent keeps what it made as a new item.

What a job made before it died is kept, and its death is a row of `coverage`. A job that made no
rows at all from an item is a finding, not a success.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import JsonValue

from analysis.beside import LIVE, SIDE_CARS, Watched, alone, answers, find, taken_ns
from analysis.errors import AnalysisError
from evidence_store.child import Child, Limits, Outcome
from evidence_store.ingest import Ingested
from evidence_store.item import Manifest
from evidence_store.ledger import Draft
from evidence_store.model import clean
from evidence_store.store import Case
from evidence_store.transfer import Member

if TYPE_CHECKING:
    import pyarrow as pa

_PART = re.compile(r"([a-z_]{1,40})/[0-9]{8}\.(parquet|json\.gz|bin)")
_BOOT = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MAX_COVERAGE = 100_000
EXTRACT_REQUEST = "wanted.json"
COVERAGE_PART = "coverage/00000000.parquet"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Job:
    """One kind of analysis.

    Attributes:
        name: what `--jobs` calls it.
        module: whose `main(channel)` runs in the child.
        kinds: kinds of items it reads.
        layout: image, or set (of answers, which the request names).
        tables: tables it makes, beside `coverage`.
        needs: a job on the same item whose result this one reads; it is done first. What it did
            not see stands in its own coverage: without a result this one still runs.
        beside: type of an item that is read beside it, where the case has one.
        program: what `python -I -m` starts, if not the child itself.
        limits: of the child.
    """

    name: str
    module: str
    kinds: tuple[str, ...]
    tables: tuple[str, ...]
    layout: Literal["image", "set"] = "image"
    needs: str = ""
    beside: str = ""
    program: str = "evidence_store.child"
    limits: Limits = field(default_factory=Limits)

    def reads(self, manifest: Manifest) -> bool:
        """Whether it is for such an item."""
        return manifest.kind in self.kinds and manifest.layout == self.layout


JOBS: Mapping[str, Job] = {
    job.name: job
    for job in (
        Job("files", "analysis.files", ("disk",), ("files",)),
        Job("live", "analysis.live.job", ("live",),
            ("live_outcomes", "live_host", "live_processes", "live_sockets", "live_modules",
             "live_mounts", "live_sessions", "live_open_files", "live_mappings",
             "live_environment", "live_schedule", "live_services", "live_containers", "timeline"),
            layout="set", limits=Limits(address_space=3 << 30)),
        Job("symbols", "analysis.symbols.job", ("memory",), ("kernels", "pdbs", "symbols"),
            beside=SIDE_CARS,
            limits=Limits(address_space=3 << 30)),
        Job("memory", "analysis.memory.worker", ("memory",),
            ("processes", "process_views", "sockets", "modules", "memory", "matches", "timeline",
             "findings"),
            needs="symbols", beside=LIVE, program="analysis.memory"),
    )
}  # fmt: skip

EXTRACT = Job("extract", "analysis.memory.extract", ("memory",), ("extracted", "content"),
              needs="symbols", program="analysis.memory")  # fmt: skip
"""Runs on request only: it is told what to take by `extract_request`."""


def extract_request(pids: Iterable[int], paths: Iterable[str]) -> Mapping[str, bytes]:
    """Return what to give to `EXTRACT`: executables of processes, files by path or pattern."""
    asked = {"pids": sorted(set(pids)), "paths": sorted(set(paths))}
    return {EXTRACT_REQUEST: json.dumps(asked).encode()}


@dataclass
class JobResult:
    """What a job gave.

    Attributes:
        item: the item that was read.
        result_item: the item that holds what it made.
        rows: table -> rows.
        coverage: rows of the `coverage` table (of a job done before: only as many as it had gaps).
        outcome: how the child ended; None if the same job had been done before.
        existing: whether it had been done before, and nothing was done now.
        needed: the job that was done first, because this one reads its result.
    """

    job: str
    item: str
    result_item: str
    rows: dict[str, int]
    coverage: list[dict[str, Any]]
    outcome: Outcome | None
    existing: bool = False
    needed: JobResult | None = None

    @property
    def result(self) -> Literal["ok", "partial", "failed"]:
        """`failed`: no rows at all; `partial`: something was not seen."""
        if not any(n for table, n in self.rows.items() if table != "coverage"):
            return "failed"
        return "partial" if self.gaps or (self.outcome and not self.outcome.ok) else "ok"

    @property
    def gaps(self) -> list[dict[str, Any]]:
        """Coverage rows that are gaps in this evidence; the rest are limits of the method."""
        return [row for row in self.coverage if row.get("level") != "limit"]


@dataclass
class _Made:
    tables: tuple[str, ...]
    rows: dict[str, int] = field(default_factory=dict)
    parts: dict[str, int] = field(default_factory=dict)  # name -> rows, as the child says
    coverage: list[dict[str, Any]] = field(default_factory=list)
    dropped: int = 0

    def take(self, message: Mapping[str, Any], progress: Callable[[int, int | None], None]) -> None:
        """Take one message of the child; raises TypeError, KeyError, ValueError for a bad one."""
        kind = message["message_type"]
        if kind == "part":
            match = _PART.fullmatch(message["name"])
            if match is None or match[1] != message["table"]:
                raise ValueError("a part of no known name")
            if message["name"] in self.parts or match[1] not in self.tables:
                raise ValueError("a part announced twice, or of a table that is not this job's")
            self.parts[message["name"]] = rows = max(0, int(message["rows"]))
            self.rows[match[1]] = self.rows.get(match[1], 0) + rows
        elif kind == "coverage":
            if len(self.coverage) < _MAX_COVERAGE:
                self.coverage.append(dict(message["row"]))
            else:
                self.dropped += 1
        elif kind == "progress":
            total = message["total"]
            progress(int(message["done"]), None if total is None else int(total))
        else:
            raise ValueError("a message of no known type")


def run_job(
    case: Case,
    job: Job,
    item_id: str,
    *,
    limits: Limits | None = None,
    again: bool = False,
    options: Mapping[str, str] | None = None,
    given: Mapping[str, Mapping[str, bytes]] | None = None,
    beside: str = "",
    progress: Callable[[int, int | None], None] = lambda _done, _total: None,
    check: Callable[[], None] = lambda: None,
    temporary: Path | None = None,
) -> JobResult:
    """Run a job over an item and keep what it made as a `result` item of the case.

    Args:
        case: the case; its store must be writable.
        job: one of `JOBS`.
        item_id: a complete item of a kind that the job reads.
        limits: of the child.
        again: do it even if the same job by the same tool was done on this item.
        options: how to do it; with others it is another job.
        given: job -> files for the child's folder, by name, such as rules; with others it is
            another job.
        beside: item that stands beside this one, of a job that reads a live response; "" finds it.
        progress: called with (bytes done, bytes in all or None).
        check: called every second while the child runs; what it raises ends the child.
        temporary: where the child works; the system's temporary directory if None.

    Raises: AnalysisError if an item is of another kind; ItemNotFoundError; IntegrityError if the
    item is not what was acquired; StoreError.
    """
    manifest = case.manifest(item_id)
    if not job.reads(manifest):
        raise AnalysisError(
            f"job {job.name} reads {' or '.join(job.kinds)} {job.layout}s; {item_id} is "
            f"{manifest.kind} ({manifest.layout})",
            hint=f"impound item list {case.case_id} shows the kinds",
        )
    options, files = options or {}, (given or {}).get(job.name, {})
    needed = None
    if job.needs:
        needed = run_job(case, JOBS[job.needs], item_id, given=given, progress=progress,
                         check=check, temporary=temporary)  # fmt: skip
    tool = case.store.require_scribe().tool
    boot = str(manifest.source.get("boot_id", ""))[:64]
    if not boot and needed:
        boot = _told(case, needed, "kernels")

    def boot_of(live: str) -> str:
        return _told(case, run_job(case, JOBS["live"], live, check=check, temporary=temporary),
                     "live_host")  # fmt: skip

    other = find(case, manifest, job.beside, boot=boot, boot_of=boot_of,
                 named=beside if job.beside == LIVE else "") if job.beside else None  # fmt: skip
    how = [*options.values(), *_digests(files), *([f"{other.type} {other.item}"] if other else [])]
    source = _Result(job, manifest, f"{tool.version} ({(tool.sha256 or '-')[:12]})", how)
    if not again and (done := _done_before(case, source)):
        return replace(done, needed=needed)
    parents = [item_id]
    if needed and needed.result != "failed":
        parents.append(needed.result_item)
    watched = Watched(case.objects(other.item)) if other else None
    with tempfile.TemporaryDirectory(prefix="impound-", dir=temporary) as name:
        folder, own = Path(name, "child"), Path(name, "parent")
        folder.mkdir()
        for file, content in files.items():
            (folder / file).write_bytes(content)
        made = _Made(job.tables)
        child = Child(
            module=job.module,
            program=job.program,
            request={
                "job": job.name,
                "item": item_id,
                "item_digest": manifest.image_root,
                "version": tool.version,
                "needed": parents[1:],
                "options": dict(options),
                "given": sorted(files),
                "beside": other.request() if other else None,
                "alone": alone(manifest, boot),
                "taken": taken_ns(manifest),
                "boot_id": boot,
                "objects": answers(case, item_id) if job.layout == "set" else {},
                "root": str(manifest.source.get("root", ""))[:10],
            },
            items={
                item_id: (manifest.size, manifest.segment_size, case.objects(item_id)),
                **{name: (0, 0, case.objects(name)) for name in parents[1:]},
                **({other.item: (0, 0, watched)} if other and watched else {}),
            },
            folder=folder,
            limits=limits or job.limits,
            on_message=lambda message: made.take(message, progress),
            check=check,
        )
        outcome = child.run()
        if other and watched and watched.read:
            parents.append(other.item)
        lost = list(_drop_lost(folder / "out", made, job))
        coverage = [
            *_of_manifest(manifest, job), *made.coverage, *lost, *_of_child(outcome, made, job)
        ]  # fmt: skip
        _write_coverage(own / COVERAGE_PART, coverage, manifest, job.name, tool.version)
        source.fill(folder / "out", own, made, coverage)
        ingested = case.ingest("result", source, parents=parents, again=again, read_back=False)
        result = JobResult(job.name, item_id, ingested.item_id,
                           {**made.rows, "coverage": len(coverage)}, coverage, outcome,
                           needed=needed)  # fmt: skip
        _record(case, result, ingested)
    return result


def _told(case: Case, result: JobResult, table: str) -> str:
    """Return the boot id in the first row of a table that a job made, "" if it has none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    fd = case.objects(result.result_item).open_object(f"{table}/00000000.parquet")
    if fd is None:
        return ""
    with os.fdopen(fd, "rb") as f:
        try:
            rows = pq.read_table(f, columns=["boot_id"]).slice(0, 1).to_pylist()
        except pa.ArrowException:  # a child wrote it, which may have been broken into
            return ""
    said = str(rows[0].get("boot_id")) if rows else ""
    return said if _BOOT.fullmatch(said) else ""


def _digests(files: Mapping[str, bytes]) -> list[str]:
    """Name what was given, so that other files make another job; one digest for many."""
    named = [f"{name} {hashlib.sha256(data).hexdigest()[:12]}" for name, data in files.items()]
    if len(named) <= 3:
        return named
    return [f"{len(named)} files {hashlib.sha256(repr(named).encode()).hexdigest()[:12]}"]


def _done_before(case: Case, source: _Result) -> JobResult | None:
    text = clean(source.text, 400)
    for done in case.state.analyses:
        if done.what == text:
            early = done.result == "failed" or done.note is not None
            if early or case.item(done.item).disposed:
                continue
            missed: list[dict[str, Any]] = [{}] * done.gaps
            return JobResult(source.job.name, source.manifest.item, done.item, dict(done.rows),
                             missed, None, existing=True)  # fmt: skip
    return None


def _record(case: Case, result: JobResult, ingested: Ingested) -> None:
    outcome = result.outcome
    assert outcome is not None  # noqa: S101
    data: dict[str, JsonValue] = {
        "job": result.job,
        "what": clean(str(ingested.manifest.source["text"]), 400),
        "rows": dict(result.rows),
        "gaps": len(result.gaps),
        "network": clean(outcome.network, 100),
        "files": clean(outcome.files, 100),
        "processes": clean(outcome.processes, 100),
        "seconds": int(outcome.seconds),
        "max_rss": outcome.max_rss,
    }  # fmt: skip
    acquired = case.item(ingested.item_id).acquired
    fields: dict[str, Any] = {
        "item": ingested.item_id, "data": data, "result": result.result,
        "refs": [acquired.seq] if acquired else [],
    }  # fmt: skip
    if outcome.reason:
        fields["note"] = clean(f"the job ended early: {outcome.reason}", 500)
    case.record(lambda: Draft("analysis.completed", fields))


def _row(job: Job, what: str, reason: str, **more: Any) -> dict[str, Any]:
    return {"job": job.name, "what": what, "reason": reason, "count": 1, **more}


def _of_manifest(manifest: Manifest, job: Job) -> Iterator[dict[str, Any]]:
    """What the item itself lacks is not seen by any job over it."""
    for gap in manifest.unreadable:
        yield _row(job, "unreadable", f"the source could not be read here: {gap.error}",
                   offset=gap.offset, length=gap.length)  # fmt: skip
    more = manifest.unreadable_ranges - len(manifest.unreadable)
    if more > 0:
        yield {
            **_row(job, "unreadable", "further ranges, listed in segments.sha256"),
            "count": more,
        }
    for change in manifest.source_changes:
        yield _row(job, "source-changed", f"while it was acquired, the source {change}")


def _of_child(outcome: Outcome, made: _Made, job: Job) -> Iterator[dict[str, Any]]:
    if not outcome.ok:
        yield _row(job, "job-died", outcome.reason)
    elif not made.parts:
        yield _row(job, "no-rows", "the job ended well and made no rows")
    if made.dropped:
        yield {**_row(job, "coverage-cut", f"only {_MAX_COVERAGE} rows are kept"),
               "count": made.dropped}  # fmt: skip


def open_part(folder: Path, name: str) -> int:
    """Return a descriptor of `folder/<table>/<part>`, written by a child that is not trusted.

    No link is followed, nothing but a regular file with this one name is opened, and a pipe does
    not block. Raises: OSError.
    """
    table, _, part = name.partition("/")
    no_link = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    at = os.open(folder, no_link | os.O_DIRECTORY)
    try:
        inner = os.open(table, no_link | os.O_DIRECTORY, dir_fd=at)
    finally:
        os.close(at)
    try:
        fd = os.open(part, no_link | os.O_NONBLOCK, dir_fd=inner)
    finally:
        os.close(inner)
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        os.close(fd)
        raise OSError(errno.EINVAL, "not a file of its own")
    return fd


def _drop_lost(folder: Path, made: _Made, job: Job) -> Iterator[dict[str, Any]]:
    """Forget the parts that were announced and are not there as files; each is a gap."""
    for name in [*made.parts]:
        try:
            os.close(open_part(folder, name))
        except OSError as e:
            made.rows[name.partition("/")[0]] -= made.parts.pop(name)
            yield _row(job, "part-lost", f"{name} was announced and is not there: {e.strerror}")


def _write_coverage(
    target: Path, coverage: list[dict[str, Any]], manifest: Manifest, job: str, version: str
) -> None:
    """Write `coverage`, always, so that its absence never passes for "nothing was missed"."""
    import pyarrow as pa

    from analysis.output import write_parquet
    from analysis.schema import TABLES

    schema = TABLES["coverage"]
    common = {"item": manifest.item, "item_digest": manifest.image_root, "tool": "impound",
              "tool_version": version, "volume": "", "level": "gap"}  # fmt: skip
    rows = [_fit(schema, {**common, "job": job, **row}) for row in coverage]
    target.parent.mkdir(parents=True, exist_ok=True)
    write_parquet(pa.Table.from_pylist(rows, schema=schema), target)


def _fit(schema: pa.Schema, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of the schema's types from what a child said."""
    import pyarrow as pa

    fitted: dict[str, Any] = {}
    for column in schema:
        value = row.get(column.name)
        if value is None:
            empty = 0 if pa.types.is_integer(column.type) else ""
            fitted[column.name] = None if column.nullable else empty
        elif pa.types.is_integer(column.type):
            whole = isinstance(value, int) and abs(value) < 2**63
            fitted[column.name] = value if whole else (None if column.nullable else 0)
        else:
            fitted[column.name] = clean(str(value), 4096)
    return fitted


class _Result:
    """What a job made, as a source to take into custody."""

    method = "tables written by a limited child process, one object a part"

    def __init__(self, job: Job, manifest: Manifest, tool: str, how: list[str]) -> None:
        self.job = job
        self.manifest = manifest
        with_ = f" with {', '.join(how)}" if how else ""
        self.text = f"{job.name} of {manifest.item}{with_} by impound {tool}".strip()
        self.identity: Mapping[str, JsonValue] | None = None
        self.facts: Mapping[str, JsonValue] = {}
        self._folder = self._own = Path()
        self._parts: list[str] = []

    def fill(self, folder: Path, own: Path, made: _Made, coverage: list[dict[str, Any]]) -> None:
        """Name what is to be taken: parts below `folder` that were announced, our coverage."""
        self._folder, self._own = folder, own
        self._parts = sorted({*made.parts, COVERAGE_PART})
        self.facts = {
            "type": "analysis", "job": self.job.name, "item": self.manifest.item,
            "item_digest": self.manifest.image_root,
            "rows": {**made.rows, "coverage": len(coverage)},
        }  # fmt: skip

    def members(self) -> Iterator[Member]:
        """See `SetSource.members`."""
        for name in self._parts:
            yield Member(name.encode(), {"type": "file"}, partial(self._chunks, name), place=name)

    def _chunks(self, name: str) -> Iterator[bytes]:
        folder = self._own if name == COVERAGE_PART else self._folder
        with os.fdopen(open_part(folder, name), "rb") as f:
            while chunk := f.read(_CHUNK):
                yield chunk

    def skipped(self) -> list[str]:
        """Nothing is left out here; what the job did not see stands in `coverage`."""
        return []

    def changes(self) -> list[str]:
        """What was made does not change."""
        return []
