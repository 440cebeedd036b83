# SPDX-License-Identifier: Apache-2.0
"""What the tables of a case say, aggregated by DuckDB: file systems, activity, other tables.

Every query orders by enough columns to be unambiguous, so that equal tables give equal pages.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb

from analysis.schema import TABLES
from evidence_store.model import parse_time
from pipeline.report.chart import STAMPS, Chart, at_bins, unit_for
from pipeline.report.facts import Covered
from pipeline.report.text import at

TOP = 20
MAX_VOLUMES = 24
_WINDOW = timedelta(days=30)
_PLAIN = re.compile(r"[A-Za-z0-9._/-]*")
_WHERE = "item = ? AND volume = ? AND volume_offset = ? AND fs = ?"
Key = tuple[str, str, int, str]
"""item, volume, volume_offset, fs."""


@dataclass(frozen=True)
class Stamps:
    """What is known of one kind of time stamp on a volume."""

    name: str
    known: int
    absent: int
    zero: int
    later: int | None
    first: int | None
    last: int | None


@dataclass
class Volume:
    """One file system of one item, as the newest job `files` saw it."""

    key: Key
    names: int
    inodes: int
    types: list[tuple[Any, ...]] = field(default_factory=list)
    hashes: list[tuple[str, int]] = field(default_factory=list)
    stamps: list[Stamps] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    largest: list[tuple[Any, ...]] = field(default_factory=list)
    recent: list[tuple[Any, ...]] = field(default_factory=list)
    regular: int = 0
    dated: int = 0

    @property
    def title(self) -> str:
        """What the volume is called."""
        item, volume, offset, fs = self.key
        where = f"volume {volume}" if volume else "whole image"
        return f"{item}, {where} ({fs} at byte {offset:,})"

    def sql(self, rest: str) -> str:
        """Return a query over this volume that a reader can run."""
        item, volume, _, _ = self.key
        more = f" AND volume='{volume}'" if _PLAIN.fullmatch(volume) else ""
        return f"FROM files WHERE item='{item}'{more} {rest}"


@dataclass(frozen=True)
class Other:
    """A table that has no section of its own, or a part of one: its first rows.

    Attributes:
        title: what people call it.
        sql: query that gives all of it.
        count: rows in all.
        columns, rows: what is shown.
    """

    title: str
    sql: str
    count: int
    columns: list[str]
    rows: list[tuple[Any, ...]]


# Of a live response only this: its tables hold environments, and tens of thousands of rows.
_LIVE = (
    ("Running hosts that were asked",
     "SELECT item, name, os, boot_id, asked, ahead, tainted FROM live_host"),
    ("Sockets on which a running host listens",
     "SELECT item, protocol, local_address, local_port, pid, comm, uid, views FROM live_sockets "
     "WHERE state = 'LISTEN' AND protocol IS NOT NULL OR protocol = 'UDP' AND state = "
     "'UNCONNECTED'"),
    ("Running programs whose file is deleted",
     "SELECT item, pid, comm, uid, exe, exe_sha256, args FROM live_processes WHERE exe_deleted"),
    ("Kernel modules that taint a running kernel",
     "SELECT item, name, taints, views FROM live_modules WHERE taints IS NOT NULL"),
)  # fmt: skip


def volumes(connection: duckdb.DuckDBPyConnection, covered: Covered) -> tuple[list[Volume], int]:
    """Return the first `MAX_VOLUMES` volumes in full, and how many there are."""
    rows = connection.execute(
        "SELECT item, volume, volume_offset, fs, count(*), count(DISTINCT inode) FROM files "
        "GROUP BY ALL ORDER BY item, volume_offset, volume, fs"
    ).fetchall()
    out = [Volume((r[0], r[1], r[2], r[3]), r[4], r[5]) for r in rows[:MAX_VOLUMES]]
    for volume in out:
        _Fill(connection, covered, volume).run()
    return out, len(rows)


def others(connection: duckdb.DuckDBPyConnection) -> list[Other]:
    """Return what lies in tables that have no section of their own, and what hosts said."""
    skip = {"item_digest", "tool", "tool_version"}
    wanted = []
    for name in sorted(set(TABLES) - {"files", "coverage", "timeline"}):
        if not name.startswith("live_"):
            listed = ", ".join(f'"{c}"' for c in TABLES[name].names if c not in skip)
            wanted.append((f"Table {name}", f"FROM {name}", f"SELECT {listed} FROM {name}"))  # noqa: S608
    wanted += [(title, sql, sql) for title, sql in _LIVE]
    out = []
    for title, shown, sql in wanted:
        found = connection.execute(f"SELECT count(*) FROM ({sql})").fetchone()  # noqa: S608
        if found and found[0]:
            cursor = connection.execute(f"{sql} ORDER BY ALL LIMIT {TOP}")
            columns = [column[0] for column in cursor.description or []]
            out.append(Other(title, shown, found[0], columns, cursor.fetchall()))
    return out


class _Fill:
    def __init__(
        self, connection: duckdb.DuckDBPyConnection, covered: Covered, volume: Volume
    ) -> None:
        self._connection = connection
        self._volume = volume
        item = covered.items.get(volume.key[0])
        self._acquired: int | None = None
        if item is not None and item.manifest is not None:
            self._acquired = (int(parse_time(item.manifest.ended).timestamp()) + 1) * 10**9

    def _rows(self, columns: str, rest: str = "", *more: object) -> list[tuple[Any, ...]]:
        """Return columns of this volume; all names in them are ours, all values are parameters."""
        return self._connection.execute(
            f"SELECT {columns} FROM files WHERE {_WHERE} {rest}",  # noqa: S608
            [*self._volume.key, *more],
        ).fetchall()

    def run(self) -> None:
        volume = self._volume
        volume.types = self._rows(
            "type, count(*) FILTER (name_state = 'allocated'), "
            "count(*) FILTER (name_state = 'deleted'), "
            "count(*) FILTER (name_state = 'reallocated'), "
            "count(*) FILTER (name_state = 'orphan'), count(*), "
            "coalesce(sum(size) FILTER (allocated), 0)::HUGEINT, count(sha256)",
            "GROUP BY type ORDER BY count(*) DESC, type",
        )
        hashes = self._rows("sha256_state, count(*)", "GROUP BY 1 ORDER BY 2 DESC, 1")
        volume.hashes = [(state, count) for state, count in hashes]
        columns, ties = "path, size, mtime, sha256, name_state", "path, inode, stream NULLS FIRST"
        volume.largest = self._rows(
            columns,
            f"AND type = 'file' AND size IS NOT NULL ORDER BY size DESC, {ties} LIMIT ?",
            TOP,
        )
        volume.recent = self._rows(
            columns, f"AND type = 'file' AND mtime IS NOT NULL ORDER BY mtime DESC, {ties} LIMIT ?",
            TOP,
        )  # fmt: skip
        volume.regular, volume.dated = self._rows("count(size), count(mtime)", "AND type = 'file'")[
            0
        ]
        volume.stamps = [self._stamps(name) for name in STAMPS]
        self._charts()

    def _stamps(self, name: str) -> Stamps:
        known, absent, zero, first, last = self._rows(
            f"count({name}) FILTER ({name} <> 0), count(*) - count({name}), "
            f"count(*) FILTER ({name} = 0), min({name}) FILTER ({name} <> 0), "
            f"max({name}) FILTER ({name} <> 0)"
        )[0]
        later = None
        if self._acquired is not None:
            later = self._rows("count(*)", f"AND {name} > ?", self._acquired)[0][0]
        return Stamps(name, known, absent, zero, later, first, last)

    def _charts(self) -> None:
        firsts = [s.first for s in self._volume.stamps if s.first is not None]
        lasts = [s.last for s in self._volume.stamps if s.last is not None]
        if not firsts:
            return
        first, last = min(firsts), max(lasts)
        whole = self._chart("all time stamps", first, last)
        self._volume.charts.append(whole)
        if not whole.coarse:
            return
        # Old and absurd stamps stretch the axis; a second picture shows the end of the story.
        limit = last if self._acquired is None else self._acquired
        end = max(self._each("max", "<=", limit), default=None)
        if end is None:
            return
        start = min(self._each("min", ">=", end - int(_WINDOW.total_seconds()) * 10**9))
        near = self._chart(f"the last 30 days before {at(end):%Y-%m-%d %H:%M}", start, end)
        if near.unit != whole.unit and len(near.starts) > 1:
            self._volume.charts.append(near)

    def _each(self, function: str, comparison: str, limit: int) -> list[int]:
        """Return the first or last stamp of each kind on one side of `limit`, if any."""
        found = [
            self._rows(f"{function}({name})", f"AND {name} <> 0 AND {name} {comparison} ?", limit)
            for name in STAMPS
        ]
        return [rows[0][0] for rows in found if rows[0][0] is not None]

    def _chart(self, title: str, first: int, last: int) -> Chart:
        unit = unit_for(at(first), at(last))
        counts: dict[str, dict[datetime, int]] = {}
        for name in STAMPS:
            rows = self._rows(
                f"date_trunc('{unit}', make_timestamp_ns({name}))::TIMESTAMP, count(*)",
                f"AND {name} <> 0 AND {name} BETWEEN ? AND ? GROUP BY 1",
                first, last,
            )  # fmt: skip
            counts[name] = {start.replace(tzinfo=UTC): count for start, count in rows}
        return at_bins(f"{self._volume.title}, {title}", unit, at(first), at(last), counts)
