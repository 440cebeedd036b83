# SPDX-License-Identifier: Apache-2.0
"""Rows that the made-up jobs give."""

from __future__ import annotations

import pyarrow as pa

from analysis.schema import TABLES


def two_files() -> pa.Table:
    schema = TABLES["files"]
    row = {
        column.name: None if column.nullable else (0 if pa.types.is_integer(column.type) else "x")
        for column in schema
    } | {"allocated": True}
    return pa.Table.from_pylist([row, row], schema=schema)
