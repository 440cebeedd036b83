# SPDX-License-Identifier: Apache-2.0
"""What is not there, and why: gaps of acquisition, of verification, of analysis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import duckdb

from analysis.jobs import JOBS
from evidence_store.case import Analysis
from evidence_store.model import CustodyEvent
from pipeline.hostkeys import KINDS, STEP
from pipeline.report.facts import Covered, Item
from pipeline.report.text import number, plural, size

MAX_GROUPS = 200
MAX_LISTED = 20

MEANINGS: Mapping[str, str] = {
    "image": "a part of the image could not be read",
    "partition-table": "the partition table is damaged, ambiguous, or only its backup was usable",
    "unallocated": "space that belongs to no partition; files may have lain there",
    "volume": "a volume that this installation cannot open",
    "file-system": "a file system that was recognised, but not or not wholly read",
    "directory": "a directory whose entries are not, or not all, in this report",
    "inode": "an entry whose metadata could not be read",
    "content": "a file whose content was not hashed",
    "value": "a recorded value that does not fit its column; it is shown as unknown",
    "unreadable": "bytes that the source refused when it was acquired",
    "source-changed": "the source changed while it was acquired",
    "job-died": "the job ended before its work was done; what it had made is kept",
    "part-lost": "rows that the job announced and did not leave behind",
    "no-rows": "the job ended well and found nothing at all, which is not what one expects",
    "memory": "memory that the image states and does not hold, or that is not analysed",
    "symbols": "no symbol table of this kernel could be had, or be trusted",
    "plugin": "a method of memory analysis failed, hung, or was left out",
    "rules": "rules that were ignored, or not applied to all of the item",
    "live": "a live response, or lines of it, not there, not whole, not read, or of another boot",
    "extract": "a file that was asked for and is not, or not wholly, in memory",
    "rows-cut": "more rows than are kept",
    "coverage-cut": "more gaps than can be kept; the rest is known only by number",
}
"""What each kind of coverage row means, for readers who do not know the program."""


@dataclass(frozen=True)
class Gap:
    """Something that is known to be missing, outside the coverage tables.

    Attributes:
        item: where; "" for the case as a whole.
        what: a few words.
        text: a sentence.
        examples: particulars.
        more: how many particulars are not listed.
    """

    item: str
    what: str
    text: str
    examples: tuple[str, ...] = ()
    more: int = 0


@dataclass(frozen=True)
class Group:
    """Coverage rows that say the same thing."""

    what: str
    meaning: str
    item: str
    job: str
    reason: str
    count: int
    rows: int
    examples: tuple[str, ...]
    more: bool


@dataclass(frozen=True)
class Unseen:
    """The whole of what is known to be missing.

    Attributes:
        custody: gaps of acquisition and verification, from the ledger and the manifests.
        analysis: items that no job looked at, and jobs that did not end well.
        groups: coverage rows of the level `gap`, grouped; at most `MAX_GROUPS`.
        group_count: how many groups there are.
        totals: (kind, meaning, things) of these rows.
        limits: coverage rows of the level `limit`, grouped: what the method never sees.
        limit_count: how many groups of limits there are.
    """

    custody: list[Gap]
    analysis: list[Gap]
    groups: list[Group]
    group_count: int
    totals: list[tuple[str, str, int]]
    limits: list[Group]
    limit_count: int

    @property
    def nothing(self) -> bool:
        """Whether nothing is known to be missing."""
        return not (self.custody or self.analysis or self.group_count)

    @property
    def count(self) -> int:
        """How many statements the section makes."""
        return len(self.custody) + len(self.analysis) + self.group_count


def unseen(connection: duckdb.DuckDBPyConnection, covered: Covered) -> Unseen:
    """Return what is known to be missing."""
    custody = [gap for item in covered.items.values() for gap in _of_item(item)]
    custody += _not_authenticated(covered)
    analysis = list(_unanalysed(covered))
    totals = connection.execute(
        "SELECT what, sum(count)::HUGEINT FROM coverage WHERE level IS DISTINCT FROM 'limit' "
        "GROUP BY 1 ORDER BY 2 DESC, 1"
    ).fetchall()
    groups, group_count = _grouped(connection, limits=False)
    limits, limit_count = _grouped(connection, limits=True)
    return Unseen(
        custody, analysis, groups, group_count,
        [(what, MEANINGS.get(what, ""), count) for what, count in totals],
        limits, limit_count,
    )  # fmt: skip


def _grouped(connection: duckdb.DuckDBPyConnection, *, limits: bool) -> tuple[list[Group], int]:
    """Return coverage rows that say the same thing, and how many such groups there are."""
    grouped = connection.execute(
        "SELECT what, item, job, reason, sum(count)::HUGEINT AS things, count(*), "
        'min(path, 3), min("offset", 3), count(DISTINCT path), count(DISTINCT "offset"), '
        "count(*) OVER () FROM coverage WHERE (level IS NOT DISTINCT FROM 'limit') = ? "
        "GROUP BY what, item, job, reason "
        "ORDER BY things DESC, item, job, what, reason LIMIT ?",
        [limits, MAX_GROUPS],
    ).fetchall()
    return [_group(row) for row in grouped], grouped[0][10] if grouped else 0


def _group(row: tuple[Any, ...]) -> Group:
    what, item, job, reason, things, rows, paths, offsets, path_count, offset_count, _ = row
    if paths:
        examples, more = tuple(paths), path_count > len(paths)
    else:
        examples = tuple(f"byte {number(offset)}" for offset in offsets or [])
        more = offset_count > len(examples)
    return Group(what, MEANINGS.get(what, ""), item, job, reason, things, rows, examples, more)


def _of_item(item: Item) -> Iterator[Gap]:
    record, manifest = item.record, item.manifest
    name = record.item_id
    if record.state in ("identified", "interrupted", "failed"):
        ends = [e.note or e.action for _, how, e in item.attempts if how == "failed" and e]
        yield Gap(name, "not acquired", f"The item was {_became(record.state)}. Nothing of it is "
                  "in this report.", tuple(ends[-3:]))  # fmt: skip
    if record.disposed:
        yield Gap(name, "disposed of", "The item was disposed of; its bytes need not exist.")
    if manifest is not None:
        if manifest.unreadable_bytes:
            ranges = [
                f"byte {number(gap.offset)}, {size(gap.length)}: {gap.error}"
                for gap in manifest.unreadable[:MAX_LISTED]
            ]
            yield Gap(
                name, "unreadable",
                f"The source refused {number(manifest.unreadable_bytes)} bytes in "
                f"{plural(manifest.unreadable_ranges, 'range')}. Zeros stand in their place.",
                tuple(ranges), manifest.unreadable_ranges - len(ranges),
            )  # fmt: skip
        if manifest.source_changes:
            text = "The source changed while it was read: the copy is not the state of one moment."
            yield _list(name, "source changed", text, manifest.source_changes)
        if manifest.notes:
            yield _list(name, "remarks", "The acquisition left remarks.", manifest.notes)
    failed = [e for e in item.verifications if e.result != "ok"]
    if failed:
        yield _list(name, "verification failed", "A verification found that the stored bytes are "
                    "not those that were acquired.", [_entry(e) for e in failed])  # fmt: skip
    if record.acquired and record.kind != "result" and not (record.received or item.verifications):
        yield Gap(name, "never read back", "No entry records that the stored copy was read back "
                  "and compared.")  # fmt: skip


def _not_authenticated(covered: Covered) -> Iterator[Gap]:
    """What was taken over SSH from a host of which nothing says who it is."""
    outcomes: dict[str, str] = {}
    for event in covered.events:
        data = event.data or {}
        listed = data.get("items")
        if event.action == "step.done" and data.get("step") == STEP and isinstance(listed, list):
            outcomes |= {str(name): str(data.get("outcome")) for name in listed}
    for name, item in covered.items.items():
        source = item.manifest.source if item.manifest else {}
        if item.record.kind not in KINDS or "host_key" not in source or item.record.disposed:
            continue
        outcome = outcomes.get(name, "not compared")
        if outcome == "differs":
            yield Gap(name, "source not authenticated", "The host that it was taken from showed a "
                      "key that the frozen disk does not hold.")  # fmt: skip
        elif outcome != "same" and source.get("host_key_trust") != "pinned":
            yield Gap(name, "source not authenticated", "The key of the host that it was taken "
                      "from was trusted at first use, and no frozen disk confirms it.")  # fmt: skip


def _became(state: str) -> str:
    return {
        "identified": "identified and never acquired",
        "interrupted": "begun and not ended: the acquisition was running or was interrupted",
        "failed": "not acquired: the acquisition failed and was not continued",
    }[state]


def _entry(event: CustodyEvent) -> str:
    return f"entry {event.seq}, {event.time}" + (f": {event.note}" if event.note else "")


def _list(item: str, what: str, text: str, remarks: list[str]) -> Gap:
    return Gap(item, what, text, tuple(remarks[:MAX_LISTED]), max(0, len(remarks) - MAX_LISTED))


def _unanalysed(covered: Covered) -> Iterator[Gap]:
    done: dict[tuple[str, str], Analysis] = {}
    for event in covered.state.analyses:
        for parent in covered.items[event.item].record.parents[:1]:
            done[event.job, parent] = event
    for name, item in covered.items.items():
        record = item.record
        if record.kind == "result" or record.acquired is None or record.disposed:
            continue
        wanted = [job for job in JOBS.values() if item.manifest and job.reads(item.manifest)]
        if not wanted and not any(parent == name for _, parent in done):
            yield Gap(name, "not analysed", "This version has no analysis job for an item of kind "
                      f"{record.kind}; it is held, and nothing here is drawn from it.")  # fmt: skip
        for job in wanted:
            if (job.name, name) not in done:
                yield Gap(name, "not analysed", f"The job {job.name} was not run on this item.")
    for (job_name, parent), event in done.items():
        if event.result != "ok":
            yield Gap(
                parent, f"analysis {event.result}",
                f"The job {job_name} (entry {event.seq}, result {event.item}) "
                + ("made no rows." if event.result == "failed" else "did not see everything."),
                (event.note,) if event.note else (),
            )  # fmt: skip
