# SPDX-License-Identifier: Apache-2.0
"""export, import and verify --bag as their user runs them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import evidence_store
from tests.pipeline.test_cli import HEAVY

GOLDEN = Path(__file__).parents[1] / "data" / "golden-bag"


@pytest.fixture
def exported(opened, home):
    """A bag of two items in the working directory; the command line goes on as another person."""
    (home / "disk.img").write_bytes(b"\1" * 70_000 + bytes(100_000))
    (home / "logs").mkdir()
    (home / "logs/auth.log").write_text("hello\n")
    assert opened("ingest", "T-1001", home / "disk.img", "--kind", "disk").code == 0
    assert opened("ingest", "T-1001", home / "logs", "--kind", "logs").code == 0
    return opened


def test_must_show(exported, home, monkeypatch):
    done = exported("export", "T-1001", "bag", "--raw", "--recipient", "Lab 7")
    assert done.code == 0, done.err
    assert "checkpoint 10:" in done.out
    assert subprocess.run(["sh", "bag/verify.sh"], check=False, capture_output=True).returncode == 0
    verdict = exported("--json", "verify", "--bag", "bag")
    assert verdict.code == 0
    assert verdict.json["outcome"] == "clean"
    assert verdict.json["recipient"] == "Lab 7"
    assert verdict.json["items"] == "E0001-E0002"
    assert Path("bag/data/raw/E0001/disk.raw").read_bytes() == (home / "disk.img").read_bytes()

    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "lab-config"))
    taken = exported("--json", "--store", "lab", "import", "bag")
    assert taken.code == 0, taken.err
    assert taken.json["items"] == ["E0001", "E0002"]
    assert taken.json["first_key"] != verdict.json["first_key"] == taken.json["bag"]["first_key"]
    checked = exported("--store", "lab", "verify", "T-1001", "--deep")
    assert checked.code == 0, checked.out
    assert "received with 10 entries (10 sealed)" in checked.out
    shown = exported("--json", "--store", "lab", "case", "show", "T-1001").json["received"]
    assert (shown["size"], shown["exports"]) == (10, [verdict.json["export_id"]])
    told = exported("--store", "lab", "case", "show", "T-1001").out
    assert f"export {verdict.json['export_id']}, entry 3 of" in told
    again = exported("--store", "lab", "import", "bag")
    assert (again.code, "imported before" in again.out) == (0, True)
    listed = exported("--json", "--store", "lab", "item", "list", "T-1001").json["items"]
    assert [(i["item"], i["state"]) for i in listed] == [("E0001", "complete"),
                                                         ("E0002", "complete")]  # fmt: skip
    cat = exported("--store", "lab", "item", "cat", "T-1001", "E0002", "--member", "auth.log")
    assert cat.out == "hello\n"
    assert exported("--store", "lab", "report", "T-1001", "-o", "out").code == 0
    assert exported("--store", "lab", "verify", "T-1001", "--record").code == 0


def test_json_of_an_export(exported):
    done = exported("--json", "export", "T-1001", "bag", "--items", "E0002")
    assert done.code == 0
    assert (done.json["items"], done.json["left_out"]) == (["E0002"], ["E0001"])
    assert done.json["receipt"]["size"] == done.json["entries"]
    verdict = exported("--json", "verify", "--bag", "bag")
    assert verdict.code == 3
    assert verdict.json["left_out"] == "E0001"
    assert [n["about"] for n in verdict.json["notes"]] == ["item E0001"]


def test_results_travel_and_are_asked_in_the_lab(opened, home, need_tool, monkeypatch):
    (home / "tree").mkdir()
    (home / "tree/evil.sh").write_text("#!/bin/sh\n")
    command = [need_tool("mke2fs"), "-q", "-F", "-t", "ext4", "-d", str(home / "tree")]
    subprocess.run([*command, str(home / "d.img"), "8M"], check=True)
    assert opened("ingest", "T-1001", home / "d.img", "--kind", "disk").code == 0
    assert opened("analyse", "T-1001").code == 0
    sql = "SELECT path FROM files WHERE type = 'file'"
    before = opened("--json", "query", "T-1001", sql).json
    assert opened("export", "T-1001", "bag").code == 0
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "lab-config"))
    lab = ("--store", "lab")
    assert opened(*lab, "import", "bag").code == 0
    assert opened("--json", *lab, "query", "T-1001", sql).json == before
    assert "done before: E0002" in opened(*lab, "analyse", "T-1001").out
    again = opened("--json", *lab, "analyse", "T-1001", "--again").json
    assert again["results"][0]["result_item"] == "E1001"
    assert opened(*lab, "report", "T-1001", "-o", "out").code == 0
    assert opened(*lab, "verify", "T-1001", "--deep").code == 0


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["export", "T-1001", "full"], 11, "not empty"),
        (["export", "T-1001", "bag", "--items", ","], 2, "no item"),
        (["export", "T-1001", "bag", "--items", "E0099"], 11, "no item E0099"),
        (["export", "T-9", "bag"], 11, "no case T-9"),
        (["export", "../x", "bag"], 2, "not a case id"),
        (["export", "T-1001", "/proc/bag"], 11, "cannot write the bag"),
        (["export", "T-1001", "evidence/bag"], 11, "inside the evidence store"),
        (["import", "none"], 11, "no folder"),
        (["import", "full"], 10, "no bag"),
        (["import", "full", "--expect", "x"], 2, "not a receipt"),
        (["verify"], 2, "name a case"),
        (["verify", "T-1001", "--bag", "full"], 2, "name a case"),
        (["verify", "--bag", "full", "--record"], 2, "only read"),
        (["verify", "--bag", "none"], 11, "no folder"),
    ],
)
def test_one_clear_error(opened, argv, code, says):
    Path("full").mkdir()
    Path("full/x").write_text("mine")
    done = opened(*argv)
    assert done.code == code, done.err
    assert says in done.err
    assert "Traceback" not in done.err
    assert Path("full/x").read_text() == "mine"


def test_a_broken_bag_names_the_file(opened, home):
    shutil.copytree(GOLDEN, "bag")
    path = Path("bag/data/cases/T-1001/items/E0001/data/0000000000000000")
    path.write_bytes(b"x" + path.read_bytes()[1:])
    done = opened("verify", "--bag", "bag")
    assert done.code == 10
    assert f"BROKEN  {path.relative_to('bag')}" in done.out
    taken = opened("--store", "lab", "import", "bag")
    assert taken.code == 10
    assert not Path("lab").exists()


def test_import_beside_a_case_of_the_same_name(opened):
    done = opened("import", GOLDEN)
    assert done.code == 11
    assert "of its own" in done.err


def test_a_seal_that_cannot_be_made_here_is_said(exported, home):
    for half in ("checkpoint.pem", "checkpoint.pub.pem"):
        (home / ".config/impound/keys" / half).unlink()
    done = exported("--json", "export", "T-1001", "bag")
    assert done.code == 3
    assert done.json["unsealed"] == 1
    assert "not sealed" in done.err
    assert exported("verify", "--bag", "bag").code == 3


def test_verify_of_a_bag_loads_nothing_heavy(home):
    code = (
        "import sys; from pipeline.cli.base import run\n"
        f"assert run(['verify', '--bag', {str(GOLDEN)!r}]) == 3\n"
        "print('MODULES', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.rpartition("MODULES")[2].split()}
    assert not loaded & HEAVY


def test_the_script_travels_as_it_is(exported):
    assert exported("export", "T-1001", "bag").code == 0
    ours = Path(evidence_store.__file__).with_name("verify.sh").read_bytes()
    assert Path("bag/verify.sh").read_bytes() == ours


def test_json_error(opened):
    done = opened("--json", "import", "none")
    assert json.loads(done.err.splitlines()[-1])["code"] == 11
