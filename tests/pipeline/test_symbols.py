# SPDX-License-Identifier: Apache-2.0
"""Symbol tables that are brought in: by `--symbols`, by import, and what is told when they lack."""

from __future__ import annotations

import json

import pytest

from acquisition.source import open_source
from analysis.errors import AnalysisError, SymbolsError
from analysis.jobs import JOBS, run_job
from analysis.query import query
from analysis.ram import open_ram
from analysis.symbols.isf import from_image
from pipeline.symbols import files, library, take
from tests.analysis.conftest import ImageBytes
from tests.analysis.kernel_image import TEXT, Memory
from tests.evidence_store import kit

OLD = {"SYMBOL(kallsyms_names)": None}  # a kernel before 6.0


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    world = kit.make_world(tmp_path / "store")
    (tmp_path / "old").write_bytes(bytes(Memory(note=OLD).bytes))
    world.case.ingest("memory", open_source(str(tmp_path / "old"), "memory"))
    return world


@pytest.fixture
def table(tmp_path):
    _, isf = from_image(open_ram(ImageBytes(bytes(Memory().bytes))), ("other", "1"))
    path = tmp_path / "6.1.0-test.json"
    path.write_text(json.dumps(isf))
    return path


def source(world):
    return query(world.case, "SELECT source FROM kernels").rows


def test_imported_table_is_used_where_none_can_be_made(world, table):
    job = JOBS["symbols"]
    assert run_job(world.case, job, "E0001").result == "failed"
    (taken,) = take([table])
    assert taken["release"] == "6.1.0-test"
    done = run_job(world.case, job, "E0001", given={"symbols": files(library())})
    assert done.result == "ok"
    assert source(world) == [("given",)]


@pytest.mark.parametrize("btf", ["btf", "btf.vmlinux"])
def test_side_cars_are_used_where_none_can_be_made(world, tmp_path, btf):
    memory = Memory(note=OLD)
    (tmp_path / "cars").mkdir()
    (tmp_path / "cars" / btf).write_bytes(memory.types)
    (tmp_path / "cars/kallsyms").write_bytes(kallsyms(memory))
    given = {"symbols": files(tmp_path / "cars")}
    assert run_job(world.case, JOBS["symbols"], "E0001", given=given).result == "ok"
    assert source(world) == [("side-cars",)]


class SideCars(kit.FakeSet):
    """What `acquire memory` takes beside a capture."""

    facts = {"type": "memory side-cars", "target": "arn:a"}  # noqa: RUF012


def kallsyms(memory):
    lines = (f"{a + memory.kaslr if a >= TEXT else a:016x} {k} {n}\n" for k, n, a in memory.symbols)
    return "".join(lines).encode()


def test_side_cars_of_the_capture_are_used_by_themselves(world):
    memory = Memory(note=OLD)
    files = {b"kcore.head": b"x", b"btf.vmlinux": memory.types, b"kallsyms": kallsyms(memory)}
    assert run_job(world.case, JOBS["symbols"], "E0001").result == "failed"
    cars = world.case.ingest("record", SideCars(files), parents=["E0001"]).item_id
    done = run_job(world.case, JOBS["symbols"], "E0001")
    assert (done.result, done.existing) == ("ok", False)
    assert source(world) == [("side-cars",)]
    assert world.case.item(done.result_item).parents == ["E0001", cars]
    assert run_job(world.case, JOBS["symbols"], "E0001").existing


def test_side_cars_are_no_parent_where_the_image_suffices(world, tmp_path):
    (tmp_path / "new").write_bytes(bytes(Memory().bytes))
    item = world.case.ingest("memory", open_source(str(tmp_path / "new"), "memory")).item_id
    world.case.ingest("record", SideCars({b"kallsyms": b"x"}), parents=[item])
    done = run_job(world.case, JOBS["symbols"], item)
    assert world.case.item(done.result_item).parents == [item]
    assert source(world) == [("image",)]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({b"kallsyms": b"ffffffff81000000 T _text\n"}, "the side-cars E0002 have no btf"),
        ({b"kallsyms": b"0000000000000000 T _text\n", b"btf.vmlinux": b"junk"},
         "of the side-cars E0002: the copy of /proc/kallsyms hides addresses"),
    ],
)  # fmt: skip
def test_side_cars_that_do_not_serve_say_why(world, files, says):
    world.case.ingest("record", SideCars(files), parents=["E0001"])
    assert run_job(world.case, JOBS["symbols"], "E0001").result == "failed"
    reasons = query(world.case, "SELECT reason FROM coverage WHERE what = 'symbols'").rows
    assert any(says in reason for (reason,) in reasons), reasons


def test_what_is_no_table_is_refused(world, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(AnalysisError, match="no symbol table in"):
        files(tmp_path / "empty")
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(SymbolsError, match="not the ISF"):
        take([tmp_path / "x.json"])
    assert not library().exists()
