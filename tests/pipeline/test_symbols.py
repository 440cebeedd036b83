# SPDX-License-Identifier: Apache-2.0
"""Symbol tables that are brought in: by `--symbols`, by import, and what is told when they lack."""

from __future__ import annotations

import contextlib
import gzip
import json
import lzma

import pytest

from acquisition.source import open_source
from analysis.errors import AnalysisError, SymbolsError
from analysis.jobs import JOBS, run_job
from analysis.query import query
from analysis.ram import open_ram
from analysis.symbols.isf import from_image
from analysis.symbols.windows import Pdb
from pipeline.symbols import brought, files, library, take
from tests.analysis.conftest import ImageBytes
from tests.analysis.kernel_image import TEXT, Memory
from tests.analysis.linked import link, loaded
from tests.analysis.windows_image import PDB, Windows, record
from tests.analysis.windows_image import isf as windows_isf
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


@pytest.fixture
def windows(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    world = kit.make_world(tmp_path / "store")
    (tmp_path / "windows").write_bytes(bytes(Windows().bytes))
    world.case.ingest("memory", open_source(str(tmp_path / "windows"), "memory"))
    return world


def table_file(tmp_path, isf, name="table.json", pack=lambda data: data):
    path = tmp_path / name
    path.write_bytes(pack(json.dumps(isf).encode()))
    return path


def reasons(world):
    return " ".join(r for (r,) in query(world.case, "SELECT reason FROM coverage").rows)


def test_windows_without_symbols_says_which_pdb_is_wanted(windows):
    result = run_job(windows.case, JOBS["symbols"], "E0001")
    assert result.result == "partial", "a row and a gap, no empty table"
    assert f"its kernel needs ntkrnlmp.pdb, GUID and age {PDB.key}" in reasons(windows)
    rows = query(windows.case, "SELECT system, release, banner, source, symbols FROM kernels").rows
    assert rows == [("windows", "10.0 build 19041", "ntkrnlmp.pdb", "", 0)]
    rows = query(windows.case, "SELECT pdb, guid, age, url, object FROM pdbs").rows
    assert rows == [(PDB.name, PDB.guid, PDB.age, PDB.url, None)]
    memory = run_job(windows.case, JOBS["memory"], "E0001")
    assert (memory.result, set(memory.rows)) == ("failed", {"coverage"})
    assert f"no symbols of Windows 10.0 build 19041 (ntkrnlmp.pdb {PDB.key})" in reasons(windows)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
def test_windows_table_that_was_imported_is_used(windows, tmp_path, pack):
    (taken,) = take([table_file(tmp_path, windows_isf(), pack=pack)])
    assert (taken["pdb"], taken["guid"], taken["age"]) == (PDB.name, PDB.guid, PDB.age)
    done = run_job(windows.case, JOBS["symbols"], "E0001", given={"symbols": files(library())})
    assert done.result == "ok"
    assert source(windows) == [("given",)]
    assert query(windows.case, "SELECT object FROM pdbs").rows == [("symbols/00000000.json.gz",)]


def test_table_of_another_build_of_windows_is_not_used(windows, tmp_path):
    take([table_file(tmp_path, windows_isf(Pdb("ntkrnlmp.pdb", "00" * 16, 1)))])
    done = run_job(windows.case, JOBS["symbols"], "E0001", given={"symbols": files(library())})
    assert done.result == "partial"
    assert "is of another kernel" in reasons(windows)


def test_pdbs_of_drivers_are_told_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    world = kit.make_world(tmp_path / "store")
    network, machine = Pdb("tcpip.pdb", "CD" * 16, 2), Windows()
    machine.bytes[0x40000:0x40040] = record(network)
    (tmp_path / "windows").write_bytes(bytes(machine.bytes))
    world.case.ingest("memory", open_source(str(tmp_path / "windows"), "memory"))
    take([table_file(tmp_path, windows_isf(), "a.json"),
          table_file(tmp_path, windows_isf(network), "b.json")])  # fmt: skip
    run_job(world.case, JOBS["symbols"], "E0001", given={"symbols": files(library())})
    rows = query(world.case, "SELECT pdb, used_by, object FROM pdbs ORDER BY object").rows
    assert rows == [("ntkrnlmp.pdb", "kernel", "symbols/00000000.json.gz"),
                    ("tcpip.pdb", "windows.netstat", "symbols/00000001.json.gz")]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"GUID": "zz"}, "its GUID or age is none"),
        ({"age": True}, "its GUID or age is none"),
        ({"database": "../../x.pdb"}, "its name would be"),
    ],
)
def test_windows_table_that_lies_about_its_pdb_is_refused(windows, tmp_path, change, says):
    isf = windows_isf()
    isf["metadata"]["windows"]["pdb"] |= change
    with pytest.raises(SymbolsError, match=says):
        take([table_file(tmp_path, isf)])
    assert not library().exists()


def test_pdb_of_a_real_linker_is_converted(windows, tmp_path, need_tool):
    _, pdb = link(need_tool, tmp_path)
    (taken,) = take([pdb])
    with gzip.open(taken["file"]) as f:
        isf = json.load(f)
    ours = windows_isf()
    for name, expected in ours["user_types"].items():
        made = isf["user_types"][name]
        assert made["size"] == expected["size"], name
        for field, place in expected["fields"].items():
            assert made["fields"][field]["offset"] == place["offset"], (name, field)
    assert ours["symbols"].keys() <= isf["symbols"].keys()
    with pytest.raises(AnalysisError, match="is a PDB"):
        files(pdb)


def test_kernel_and_pdb_of_one_linker_belong_together(tmp_path, monkeypatch, need_tool):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    executable, pdb = link(need_tool, tmp_path)
    (taken,) = take([pdb])
    with gzip.open(taken["file"]) as f:
        machine = Windows(table=json.load(f), image=loaded(executable))
    (tmp_path / "windows").write_bytes(bytes(machine.bytes))
    world = kit.make_world(tmp_path / "store")
    world.case.ingest("memory", open_source(str(tmp_path / "windows"), "memory"))
    done = run_job(world.case, JOBS["symbols"], "E0001", given={"symbols": files(library())})
    assert done.result == "ok", done.coverage


@pytest.mark.parametrize(
    ("source", "name", "says"),
    [
        ("struct a { int b; } c; int entry(void) { return 0; }", "ntkrnlmp.pdb",
         "it has no types of a kernel"),
        (None, "Program Database.pdb", "has not the name of one"),
    ],
    ids=["of another program", "renamed"],
)  # fmt: skip
def test_pdb_that_is_not_a_kernels_is_refused(tmp_path, monkeypatch, need_tool, source, name, says):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    _, pdb = link(need_tool, tmp_path, name, source)
    with pytest.raises(SymbolsError, match=says):
        take([pdb])
    assert not library().exists()


@pytest.mark.parametrize("place", [0.2, 0.5, 0.8])
def test_damaged_pdb_is_refused_or_converted_and_never_crashes(
    tmp_path, monkeypatch, need_tool, place
):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    _, pdb = link(need_tool, tmp_path)
    data = bytearray(pdb.read_bytes())
    at = int(len(data) * place)
    data[at : at + 3000] = b"\xff" * 3000
    pdb.write_bytes(data)
    with contextlib.suppress(SymbolsError):
        take([pdb])


def test_file_with_the_name_of_a_pdb_is_refused(windows, tmp_path):
    (tmp_path / "ntkrnlmp.pdb").write_text("<html>not found</html>")
    with pytest.raises(SymbolsError, match="the page of an error"):
        take([tmp_path / "ntkrnlmp.pdb"])


def test_lab_without_a_network_is_told_what_to_fetch_and_uses_it(
    impound, home, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    (tmp_path / "windows").write_bytes(bytes(Windows().bytes))
    impound("--yes", "case", "open", "W-1")
    impound("ingest", "W-1", str(tmp_path / "windows"), "--kind", "memory")
    asked = impound("--json", "symbols", "kit", "W-1")
    assert asked.code == 3
    assert asked.json["wanted"] == [
        {"item": "E0001", "reason": "the job symbols was not run on it"}
    ]
    assert impound("analyse", "W-1", "--jobs", "symbols").code == 3
    said = impound("symbols", "kit", "W-1")
    assert said.code == 3
    assert PDB.url in said.out
    assert "curl --location --remote-name ADDRESS" in said.out
    assert "dwarf2json" not in said.out, "that is for Linux"
    (wanted,) = impound("--json", "symbols", "kit", "W-1").json["wanted"]
    assert (wanted["pdb"], wanted["guid"], wanted["age"]) == (PDB.name, PDB.guid, PDB.age)
    assert impound("analyse", "W-1", "--jobs", "memory").code == 13
    assert impound("symbols", "import", str(table_file(tmp_path, windows_isf()))).code == 0
    assert impound("analyse", "W-1", "--jobs", "symbols").code == 0
    assert impound("symbols", "kit", "W-1").out == "no symbols are wanting\n"


def test_of_a_large_library_only_what_an_item_wants_is_given(windows, tmp_path, table, monkeypatch):
    for n in range(3):
        take([table_file(tmp_path, windows_isf(Pdb("ntkrnlmp.pdb", f"{n:032X}", 1)))])
    monkeypatch.setattr("pipeline.symbols._MAX_FILES", 2)
    run_job(windows.case, JOBS["symbols"], "E0001")
    assert brought(windows.case, "E0001") == {}
    take([table, table_file(tmp_path, windows_isf())])
    found = brought(windows.case, "E0001")
    assert [PDB.key in name for name in sorted(found)] == [False, True], "of Linux any may fit"
    assert run_job(windows.case, JOBS["symbols"], "E0001", given={"symbols": found}).result == "ok"
