# SPDX-License-Identifier: Apache-2.0
"""`impound query`."""

from __future__ import annotations

import math
from typing import Any

import click

from analysis.query import query as ask
from pipeline.cli.base import Command, Globals, pass_globals, table
from pipeline.cli.case import checked


@click.command(cls=Command)
@click.argument("case_id", metavar="CASE")
@click.argument("sql", metavar="SQL")
@pass_globals
def query(options: Globals, case_id: str, sql: str) -> None:
    """Ask SQL (DuckDB) of a case's tables: files, processes, coverage, ... (SHOW TABLES).

    Times are nanoseconds UTC: make_timestamp_ns(mtime) makes them readable.
    """
    answer = ask(options.read_case(checked(case_id)), sql)
    rows = [dict(zip(answer.columns, map(_plain, row), strict=True)) for row in answer.rows]
    cells = ([_cell(value) for value in row] for row in answer.rows)
    options.result({"columns": answer.columns, "rows": rows}, table(answer.columns, cells))
    if not rows:
        options.say("no rows")


def _plain(value: Any) -> Any:
    """Return a value that JSON has."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).hex()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _cell(value: Any) -> str:
    return "" if value is None else str(_plain(value))
