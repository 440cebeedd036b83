# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.schema import COVERAGE_WHAT, FILE_TYPES, NAME_STATES, SHA256_STATES, TABLES


@pytest.mark.parametrize("table", TABLES)
def test_every_field_is_documented(table):
    for field in TABLES[table]:
        assert field.metadata[b"doc"], field.name


@pytest.mark.parametrize("table", TABLES)
def test_every_row_names_its_evidence_and_its_tool(table):
    of_disks = ("volume",) if table in ("files", "coverage") else ()
    for name in ("item", "item_digest", *of_disks, "tool", "tool_version"):
        assert not TABLES[table].field(name).nullable


def test_promised_columns_of_files():
    # `query` offers these names (DESIGN §7): renaming one breaks users' SQL.
    promised = {"path", "inode", "size", "mode", "uid", "gid", "allocated", "sha256"}
    promised |= {"mtime", "atime", "ctime", "btime"}
    assert promised <= set(TABLES["files"].names)
    for name in ("mtime", "atime", "ctime", "btime", "size", "inode"):
        assert TABLES["files"].field(name).type == pa.int64()


def test_schemas_survive_parquet(tmp_path):
    for name, schema in TABLES.items():
        pq.write_table(schema.empty_table(), tmp_path / name)
        assert pq.read_schema(tmp_path / name).equals(schema, check_metadata=True)


def test_enumerations_have_no_doubles():
    for values in (FILE_TYPES, NAME_STATES, SHA256_STATES, COVERAGE_WHAT):
        assert len(set(values)) == len(values)


def test_tables_cannot_be_changed():
    with pytest.raises(TypeError):
        TABLES["files"] = None
