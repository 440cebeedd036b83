# SPDX-License-Identifier: Apache-2.0
"""SQL over a case: stable tables, verified parts, and nothing else within reach."""

from __future__ import annotations

import os

import pytest

from analysis.errors import AnalysisError
from analysis.jobs import Job, run_job
from analysis.query import query
from analysis.schema import TABLES
from evidence_store.errors import IntegrityError
from tests.evidence_store import kit


@pytest.fixture
def case(tmp_path):
    """A case with one result of two made-up rows."""
    world = kit.make_world(tmp_path / "store")
    world.case.ingest("disk", kit.FakeImage(kit.pattern(5000)), segment_size=kit.SEGMENT)
    run_job(
        world.case,
        Job("crashes", "tests.analysis.job_bodies.crashes", ("disk",), ("files",)),
        "E0001",
    )
    return world.case


def test_every_table_of_the_schema_exists_before_any_job_ran(tmp_path):
    world = kit.make_world(tmp_path / "store")
    for table, schema in TABLES.items():
        answer = query(world.case, f"SELECT * FROM {table}")
        assert answer.columns == schema.names
        assert answer.rows == []


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM read_text('/proc/self/environ')",
        "COPY files TO '{folder}/out.csv'",
        "COPY files TO '{part}'",
        "ATTACH '{folder}/x.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access=true",
        "SET lock_configuration=false",
        "EXPORT DATABASE '{folder}/dump'",
    ],
)
def test_a_query_reaches_nothing_but_the_tables(case, tmp_path, sql):
    part = next((tmp_path / "store").rglob("files/00000000.parquet"))
    before = part.read_bytes()
    with pytest.raises(AnalysisError):
        query(case, sql.format(folder=tmp_path, part=part))
    assert part.read_bytes() == before
    assert not (tmp_path / "out.csv").exists()


def test_a_query_never_spills_into_the_working_directory(case):
    assert query(case, "SELECT current_setting('temp_directory')").rows == [("",)]


def test_a_query_that_wants_more_memory_than_is_allowed_fails_with_one_error(case, monkeypatch):
    limit, threads = query(
        case, "SELECT current_setting('memory_limit'), current_setting('threads')"
    ).rows[0]
    number, unit = limit.split()
    half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2
    scale = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}[unit]
    assert 0 < float(number) * scale <= min(2 << 30, half) * 1.01
    assert 0 < threads <= 4
    monkeypatch.setattr("analysis.query._MOST_MEMORY", 32 << 20)
    with pytest.raises(AnalysisError, match=r"(?i)memory"):
        query(case, "SELECT list(i::VARCHAR || 'a longer text') FROM range(20000000) t(i)")


def test_changed_part_is_an_integrity_error_not_an_answer(case, tmp_path):
    part = next((tmp_path / "store").rglob("files/00000000.parquet"))
    part.chmod(0o600)
    body = bytearray(part.read_bytes())
    body[10] ^= 1
    part.write_bytes(body)
    with pytest.raises(IntegrityError, match=r"00000000\.parquet is not what was acquired"):
        query(case, "SELECT 1")


def test_wrong_sql_says_which_tables_there_are(case):
    with pytest.raises(AnalysisError, match="the query failed") as e:
        query(case, "SELECT * FROM fils")
    assert "files" in e.value.hint
