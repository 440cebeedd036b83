# SPDX-License-Identifier: Apache-2.0
"""`impound analyse`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from analysis.beside import LIVE
from analysis.errors import AnalysisError
from analysis.jobs import EXTRACT, JOBS, Job, JobResult, extract_request, run_job
from evidence_store.child import Outcome
from evidence_store.model import clean
from evidence_store.store import Case
from pipeline.cli.base import Command, Globals, pass_globals, receipt
from pipeline.cli.case import checked
from pipeline.errors import UsageError
from pipeline.symbols import brought, files


@click.command(cls=Command)
@click.argument("case_id", metavar="CASE")
@click.option("--item", "items", metavar="ITEM", multiple=True, help="Only these (default: all).")
@click.option("--jobs", "names", metavar="NAME[,NAME]", default="",
              help=f"Only these: {', '.join(JOBS)} (default: all that fit).")  # fmt: skip
@click.option("--profile", type=click.Choice(["quick", "full"]), default="quick",
              help="Of memory: what is asked first, or all plugins.")  # fmt: skip
@click.option("--rules", "folder", metavar="DIR", default=None,
              type=click.Path(exists=True, path_type=Path),
              help="YARA rules (*.yar, *.yara) for memory.")  # fmt: skip
@click.option("--symbols", "tables", metavar="PATH", default=None,
              type=click.Path(exists=True, path_type=Path),
              help="ISF or folder (ISF, or btf and kallsyms) where none can be made.")  # fmt: skip
@click.option("--extract", "wanted", metavar="PID|PATH", multiple=True,
              help="Of memory: this process's executable, or cached files of this path or pattern. "
                   "Without --jobs, only that.")  # fmt: skip
@click.option("--beside", metavar="ITEM", default="",
              help="Live response that memory is compared with (default: of its target or "
                   "boot).")  # fmt: skip
@click.option("--again", is_flag=True, help="Also where the same job was done before.")
@pass_globals
def analyse(
    options: Globals, case_id: str, items: tuple[str, ...], names: str, profile: str,
    folder: Path | None, tables: Path | None, wanted: tuple[str, ...], beside: str, again: bool,
) -> int:  # fmt: skip
    """Run analysis jobs over the items of a case, each in a limited process of its own.

    Exit 3: done, and something was not seen (it stands in the table `coverage`).
    """
    asked = _asked(wanted)
    chosen = [] if asked and not names else _jobs(names)
    chosen += [EXTRACT] if asked else []
    case = options.open_store(writing=True).case(checked(case_id))
    work = _work(case, items, chosen)
    if beside and sum(job.beside == LIVE for job, _ in work) != 1:
        raise UsageError("--beside is for one memory item and the job memory",
                         hint="name it: --item ITEM, --jobs memory")  # fmt: skip
    results: list[JobResult] = []
    given: dict[str, Mapping[str, bytes]] = {"symbols": files(tables)} if tables else {}
    if asked:
        given["extract"] = asked
    if folder:
        given["memory"] = _rule_files(folder)
    for job, item_id in work:
        with options.progress(f"{job.name} {item_id}") as progress:
            how = {"profile": profile} if job.name == "memory" and profile != "quick" else {}
            done = run_job(case, job, item_id, again=again, options=how, given=given,
                           beside=beside, progress=progress)  # fmt: skip
            symbols = done if job.name == "symbols" else done.needed
            lacks = symbols is not None and not symbols.rows.get("symbols")
            if lacks and not tables and (found := brought(case, item_id)):
                done = run_job(case, job, item_id, again=again, options=how, beside=beside,
                               given={**given, "symbols": found}, progress=progress)  # fmt: skip
        for result in (done.needed, done):
            # What a job needed was done just before, if its own turn came.
            if result and all(result.result_item != known.result_item for known in results):
                results.append(result)
                if not options.as_json:
                    for line in _lines(result):
                        options.result({}, [line])
    checkpoint = options.seal(case)
    document = {
        "message_type": "analysis", "case": case_id, "receipt": receipt(checkpoint),
        "results": [_document(result) for result in results],
    }  # fmt: skip
    options.result(document, [])
    if any(result.result == "failed" for result in results):
        return AnalysisError.exit_code
    return 3 if any(result.result == "partial" for result in results) else 0


def _asked(wanted: tuple[str, ...]) -> Mapping[str, bytes]:
    """Return the request for what is to be extracted, empty if nothing is. Raises: UsageError."""
    for one in wanted:
        if not (one.isdecimal() and len(one) < 10) and not one.startswith("/"):
            raise UsageError(
                f"--extract {clean(one, 100)} is neither a process id nor an absolute path",
                hint="--extract 1234, --extract /usr/sbin/sshd, --extract '/tmp/*'",
            )
    pids = [int(one) for one in wanted if not one.startswith("/")]
    paths = [one for one in wanted if one.startswith("/")]
    return extract_request(pids, paths) if wanted else {}


def _rule_files(folder: Path) -> dict[str, bytes]:
    """Return the rules of a folder, or one file, by names that stand for them in the job."""
    found = [folder] if folder.is_file() else sorted(
        path for path in folder.rglob("*") if path.suffix in (".yar", ".yara") and path.is_file()
    )  # fmt: skip
    if not found:
        raise UsageError(f"no *.yar or *.yara below {folder}")
    names = (re.sub("[^A-Za-z0-9._-]", "_", path.name)[-80:] for path in found)
    return {f"{n:04d}-{name}": path.read_bytes()
            for n, (name, path) in enumerate(zip(names, found, strict=True))}  # fmt: skip


def _jobs(names: str) -> list[Job]:
    wanted = [name.strip() for name in names.split(",") if name.strip()] or list(JOBS)
    for name in wanted:
        if name not in JOBS:
            raise UsageError(f"no job {name!r}", hint=f"jobs: {', '.join(JOBS)}")
    return [JOBS[name] for name in wanted]


def _work(case: Case, items: tuple[str, ...], jobs: list[Job]) -> list[tuple[Job, str]]:
    records = [case.item(i) for i in items] if items else list(case.state.items.values())
    for record in records:
        if items and record.acquired is None:
            raise AnalysisError(
                f"item {record.item_id} is {record.state}; it cannot be analysed yet",
                hint="run its ingest again; it continues where it stopped",
            )
    work = [(job, r.item_id) for job in jobs for r in records if r.acquired and r.kind in job.kinds]
    if not work:
        raise AnalysisError(
            f"case {case.case_id} has no complete item that these jobs read",
            hint=f"impound item list {case.case_id} shows what there is",
        )
    return work


def _document(result: JobResult) -> dict[str, Any]:
    return {
        "job": result.job, "item": result.item, "result_item": result.result_item,
        "result": result.result, "existing": result.existing, "rows": result.rows,
        "coverage": result.coverage if not result.existing else None,
        "seconds": round(result.outcome.seconds, 3) if result.outcome else None,
        "network": result.outcome.network if result.outcome else None,
        "files": result.outcome.files if result.outcome else None,
        "processes": result.outcome.processes if result.outcome else None,
    }  # fmt: skip


def _not_taken_away(outcome: Outcome) -> Iterator[str]:
    if outcome.network != "none":
        yield f"  the job's network could not be taken away ({outcome.network})"
    if outcome.files != "own folder only":
        yield f"  the job's files could not be limited to its own folder ({outcome.files})"
    if outcome.processes != "ended with it":
        yield f"  a process that the job started may have outlived it ({outcome.processes})"


def _lines(result: JobResult) -> list[str]:
    rows = (
        ", ".join(f"{n} {t}" for t, n in sorted(result.rows.items()) if t != "coverage") or "none"
    )
    if result.existing:
        return [f"{result.job} of {result.item} was done before: {result.result_item} ({rows})",
                "  (--again does it again)"]  # fmt: skip
    lines = [f"{result.job} of {result.item}: {result.result_item}, rows: {rows}"]
    if result.outcome:
        lines += _not_taken_away(result.outcome)
    shown = result.gaps[:10]
    lines += [f"  GAP: {row['what']}: {row['reason']}" for row in shown]
    if len(result.gaps) > len(shown):
        lines.append(f"  and {len(result.gaps) - len(shown)} more in the table coverage")
    return lines
