# SPDX-License-Identifier: Apache-2.0
"""SQL over what the jobs of a case made.

Every table of `analysis.schema.TABLES` is a view of that name, empty if no job has made rows yet.
Where a job ran more than once on an item, its newest result counts. Each Parquet part is verified
against the ledger before DuckDB sees it, and DuckDB can open nothing else: no files, no network, no
extensions.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import duckdb
from pyarrow.dataset import dataset

from analysis.errors import AnalysisError
from analysis.schema import TABLES
from evidence_store.case import Analysis
from evidence_store.store import Case

_MOST_MEMORY = 2 << 30
_THREADS = min(len(os.sched_getaffinity(0)), 4)  # each has buffers of its own


@dataclass(frozen=True)
class Answer:
    """Rows of a query. `rows`: tuples in the order of `columns`."""

    columns: list[str]
    rows: list[tuple[Any, ...]]


def results(case: Case, *, as_of: int | None = None) -> Mapping[tuple[str, str], str]:
    """Return (job, item read) -> result item, the newest of each.

    A failed result counts only where there is no other; a disposed one never.

    Args:
        case: a refreshed case.
        as_of: look at the first `as_of` ledger entries only.
    """
    newest: dict[tuple[str, str], Analysis] = {}
    for analysis in case.state.analyses:
        if as_of is not None and analysis.seq >= as_of:
            break
        record = case.item(analysis.item)
        key = analysis.job, next(iter(record.parents), "")  # the rest are what it read beside it
        known = newest.get(key)
        hides = analysis.result == "failed" and known is not None and known.result != "failed"
        if not record.disposed and not hides:
            newest[key] = analysis
    return {key: analysis.item for key, analysis in newest.items()}


@contextmanager
def tables(case: Case, *, as_of: int | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """Give a connection in which the case's tables are views; it can reach nothing else.

    Raises: IntegrityError if a part is not what was recorded; StoreError.
    """
    descriptors: list[int] = []
    parts: dict[str, list[str]] = {}
    connection = duckdb.connect(":memory:")
    try:
        for item_id in results(case, as_of=as_of).values():
            objects = case.objects(item_id)
            for name in objects.names():
                table = name.partition("/")[0]
                fd = objects.open_object(name)
                if fd is not None and table in TABLES:
                    descriptors.append(fd)
                    parts.setdefault(table, []).append(f"/proc/self/fd/{fd}")
        # The parts are Arrow datasets over descriptors that we opened: DuckDB itself is given no
        # path, since a path it may read it may also COPY over.
        connection.execute("SET temp_directory=''")  # else it spills into the working directory
        connection.execute("SET enable_external_access=false")
        connection.execute(f"SET memory_limit='{_memory_limit()}B'")
        connection.execute(f"SET threads={_THREADS}")
        for table, schema in TABLES.items():
            files = parts.get(table)
            rows = (
                dataset(files, schema=schema, format="parquet") if files else schema.empty_table()
            )
            connection.register(f"arrow_{table}", rows)
            connection.execute(f"CREATE VIEW {table} AS SELECT * FROM arrow_{table}")  # noqa: S608
        connection.execute("SET lock_configuration=true")
        yield connection
    finally:
        connection.close()
        for fd in descriptors:
            os.close(fd)


def _memory_limit() -> int:
    """Return the bytes that a query may take: half of the machine's memory, 2 GiB at most."""
    return min(_MOST_MEMORY, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)


def query(case: Case, sql: str, *, as_of: int | None = None) -> Answer:
    """Return the rows of one SQL statement over the tables of a case.

    Raises: AnalysisError if the statement fails; IntegrityError, StoreError.
    """
    with tables(case, as_of=as_of) as connection:
        try:
            cursor = connection.execute(sql)
            columns = [column[0] for column in cursor.description or []]
            return Answer(columns, cursor.fetchall())
        except duckdb.Error as e:
            raise AnalysisError(
                f"the query failed: {str(e).strip().splitlines()[0]}",
                hint=f"tables: {', '.join(sorted(TABLES))}; columns of one: DESCRIBE files",
            ) from e
