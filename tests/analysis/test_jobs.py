# SPDX-License-Identifier: Apache-2.0
"""Jobs: limited children whose results become items, and whose deaths become coverage."""

from __future__ import annotations

import subprocess

import pyarrow.parquet as pq
import pytest

from acquisition.source import open_source
from analysis.errors import AnalysisError
from analysis.jobs import JOBS, Job, run_job
from analysis.query import query, results
from evidence_store.child import Limits
from evidence_store.errors import ItemNotFoundError
from tests.evidence_store import kit

FILES = JOBS["files"]


def body(name: str) -> Job:
    return Job(name, f"tests.analysis.job_bodies.{name}", ("disk",), ("files",))


@pytest.fixture
def world(tmp_path):
    return kit.make_world(tmp_path / "store")


@pytest.fixture
def disk(world, tmp_path, need_tool):
    """E0001: a small ext4 with three files, taken from a real image file."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name, content in (("a.txt", b"alpha"), ("b.bin", bytes(5000)), ("empty", b"")):
        (tree / name).write_bytes(content)
    image = tmp_path / "disk.img"
    command = [need_tool("mke2fs"), "-q", "-F", "-t", "ext4", "-d", str(tree), str(image), "8M"]
    subprocess.run(command, check=True)
    world.case.ingest("disk", open_source(str(image), "disk"))
    return image


def test_files_job_makes_an_item_with_its_parent(world, disk):
    result = run_job(world.case, FILES, "E0001")
    assert result.result == "ok", result
    assert result.rows["files"] >= 5
    record = world.case.item(result.result_item)
    assert (record.kind, record.parents, record.state) == ("result", ["E0001"], "complete")
    assert [e.action for e in world.case.ledger.events][-1] == "analysis.completed"
    rows = query(world.case, "SELECT name, sha256 FROM files WHERE sha256 IS NOT NULL ORDER BY 1")
    assert [name for name, _ in rows.rows] == ["a.txt", "b.bin", "empty"]


def test_coverage_table_is_always_written(world, disk):
    result = run_job(world.case, FILES, "E0001")
    part = (
        world.root / world.case.item_prefix(result.result_item) / "data/coverage/00000000.parquet"
    )
    assert pq.read_metadata(part).num_rows == len(result.coverage)


def test_same_job_is_not_done_twice_unless_told(world, disk):
    first = run_job(world.case, FILES, "E0001")
    second = run_job(world.case, FILES, "E0001")
    assert second.existing
    assert second.result_item == first.result_item
    assert second.rows == first.rows
    third = run_job(world.case, FILES, "E0001", again=True)
    assert third.result_item != first.result_item
    assert list(results(world.case).values()) == [third.result_item]
    (count,) = query(world.case, "SELECT count(*) FROM files").rows[0]
    assert count == first.rows["files"]


def test_what_a_job_made_before_it_crashed_is_kept(world, disk):
    result = run_job(world.case, body("crashes"), "E0001")
    assert result.result == "partial"
    assert result.rows["files"] == 2
    assert [(row["what"], row["reason"]) for row in result.coverage] == [
        ("job-died", "it crashed (SIGSEGV)")
    ]
    assert query(world.case, "SELECT count(*) FROM files").rows == [(2,)]
    assert query(world.case, "SELECT what FROM coverage").rows == [("job-died",)]
    event = world.case.ledger.events[-1]
    assert event.note is not None
    assert "SIGSEGV" in event.note


def test_no_rows_is_a_failure_and_stands_in_coverage(world, disk):
    result = run_job(world.case, body("finds_nothing"), "E0001")
    assert result.result == "failed"
    assert [row["what"] for row in result.coverage] == ["no-rows"]
    assert world.case.ledger.events[-1].result == "failed"


def test_job_over_its_memory_is_a_coverage_row(world, disk):
    limits = Limits(address_space=200 << 20)
    result = run_job(world.case, FILES, "E0001", limits=limits)
    assert result.result == "failed"
    assert [row["what"] for row in result.coverage] == ["job-died"]


def test_a_part_that_would_leave_the_folder_ends_the_job(world, disk):
    result = run_job(world.case, body("escapes"), "E0001")
    assert result.result == "failed"
    assert "malformed message" in result.coverage[-1]["reason"]
    assert world.case.manifest(result.result_item).stored_objects == 1  # coverage alone


def test_links_and_pipes_that_a_job_leaves_are_not_followed(world, disk, tmp_path):
    result = run_job(world.case, body("links"), "E0001", temporary=tmp_path)
    assert result.result == "partial"
    assert result.rows["files"] == 2
    assert [row["what"] for row in result.coverage] == ["part-lost"] * 3
    assert query(world.case, "SELECT count(*) FROM files").rows == [(2,)]
    assert query(world.case, "SELECT count(*) FROM coverage").rows == [(3,)]


def test_paths_as_long_as_they_come_do_not_end_the_job(world, disk):
    result = run_job(world.case, body("long_paths"), "E0001")
    assert result.outcome.ok, result.outcome
    assert [row["what"] for row in result.coverage] == ["directory"]


def test_a_failed_repetition_hides_no_good_result_and_is_tried_again(world, disk):
    good = run_job(world.case, FILES, "E0001")
    few = Limits(address_space=200 << 20)
    failed = run_job(world.case, FILES, "E0001", again=True, limits=few)
    assert failed.result == "failed"
    assert list(results(world.case).values()) == [good.result_item]
    other = kit.make_world(world.root.parent / "other")
    other.case.ingest("disk", open_source(str(disk), "disk"))
    assert run_job(other.case, FILES, "E0001", limits=few).result == "failed"
    assert not run_job(other.case, FILES, "E0001").existing


def test_hostile_coverage_values_are_fitted_to_the_schema(world, disk):
    result = run_job(world.case, body("babbles"), "E0001")
    assert result.result == "partial"
    answer = query(world.case, 'SELECT what, reason, "offset", count FROM coverage')
    assert answer.rows[0] == ("\\x1b[2J", "x" * 4095 + "…", None, 0)


def test_unreadable_ranges_of_the_item_are_not_seen_by_any_job(world):
    image = kit.FakeImage(kit.pattern(1 << 20), bad=[(8192, 4096)])
    world.case.ingest("disk", image, segment_size=kit.SEGMENT)
    result = run_job(world.case, FILES, "E0001")
    assert ("unreadable", 8192, 4096) in [
        (row["what"], row.get("offset"), row.get("length")) for row in result.coverage
    ]


def test_wrong_kind_and_unfinished_items_are_refused(world):
    world.case.ingest("memory", kit.FakeImage(kit.pattern(1000)), segment_size=kit.SEGMENT)
    with pytest.raises(AnalysisError, match="reads disk images; E0001 is memory"):
        run_job(world.case, FILES, "E0001")
    with pytest.raises(ItemNotFoundError, match="no item E0009"):
        run_job(world.case, FILES, "E0009")
