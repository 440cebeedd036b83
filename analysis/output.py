# SPDX-License-Identifier: Apache-2.0
"""The child's side of an analysis job: where its rows go.

Rows are written as Parquet parts `out/<table>/<n:08d>.parquet`, each closed and renamed before it
is announced, so that what a job made before it died is whole. Coverage rows and progress go to the
parent as messages; the parent writes the `coverage` table, because a dead child cannot.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from analysis.schema import TABLES
from evidence_store.child import Channel

_PART_ROWS = 200_000
_BATCH = 20_000
_PROGRESS_S = 0.2
# Characters; JSON may take 12 bytes for one, and a message has 128 KiB. One more than the parent
# keeps, so that it sees, and marks, that there was more.
_MAX_TEXT = 4097


class ParquetSink:
    """Takes rows of any table of the schema; see the module's docstring."""

    def __init__(self, channel: Channel, folder: Path = Path("out")) -> None:
        self._channel = channel
        self.job = str(channel.request.get("job", ""))
        self._folder = folder
        self._waiting: dict[str, list[pa.Table]] = {}
        self._parts: dict[str, int] = {}
        self._said = 0.0

    def rows(self, table: str, batch: pa.RecordBatch | pa.Table) -> None:
        """Take rows of `table`, whose schema must be that of `analysis.schema.TABLES`."""
        if isinstance(batch, pa.RecordBatch):
            batch = pa.Table.from_batches([batch])
        waiting = self._waiting.setdefault(table, [])
        waiting.append(batch)
        if sum(part.num_rows for part in waiting) >= _PART_ROWS:
            self._write(table)

    def write(
        self, table: str, rows: Iterable[Mapping[str, Any]], common: Mapping[str, Any]
    ) -> None:
        """Take rows as they come; `common` stands for what a row has not. They are fitted."""
        rows = iter(rows)
        while batch := [fitted(table, {**common, **row}) for row in islice(rows, _BATCH)]:
            self.rows(table, pa.Table.from_pylist(batch, schema=TABLES[table]))

    def coverage(self, **fields: Any) -> None:
        """Tell the parent what was not seen, and why."""
        cut = {k: v[:_MAX_TEXT] if isinstance(v, str) else v for k, v in fields.items()}
        self._channel.send("coverage", row=cut)

    def progress(self, done: int, total: int | None) -> None:
        """Tell the parent how far it is, a few times a second."""
        now = time.monotonic()
        if now - self._said >= _PROGRESS_S:
            self._said = now
            self._channel.send("progress", done=done, total=total)

    def close(self) -> None:
        """Write what is waiting."""
        for table in list(self._waiting):
            self._write(table)

    def _write(self, table: str) -> None:
        rows = pa.concat_tables(self._waiting.pop(table, []) or [TABLES[table].empty_table()])
        if not rows.num_rows:
            return
        number = self._parts.get(table, 0)
        self._parts[table] = number + 1
        name = f"{table}/{number:08d}.parquet"
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part")
        write_parquet(rows, temporary)
        temporary.rename(path)
        self._channel.send("part", table=table, name=name, rows=rows.num_rows)


def fitted(table: str, row: dict[str, Any]) -> dict[str, Any]:
    """Return a row that the schema takes: what is no number there is null, an absent text ""."""
    for column in TABLES[table]:
        value = row.get(column.name)
        if pa.types.is_boolean(column.type):
            row[column.name] = None if value is None and column.nullable else bool(value)
        elif pa.types.is_integer(column.type):
            whole = isinstance(value, int) and -(1 << 63) <= value < 1 << 63
            row[column.name] = value if whole else None if column.nullable else 0
        elif value is not None or not column.nullable:
            text = "" if value is None else str(value)
            row[column.name] = text.encode("utf-8", "backslashreplace").decode()
    return row


def write_parquet(rows: pa.Table, path: Path) -> None:
    """Write rows as every table of a case is written: zstd, statistics, no time stamps inside."""
    pq.write_table(rows, path, compression="zstd", write_statistics=True)
