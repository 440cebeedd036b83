# SPDX-License-Identifier: Apache-2.0
"""What an export writes, what it refuses, and what a run that died leaves."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import bagit
import pytest

from evidence_store.backend import Backend, LocalBackend
from evidence_store.bag import export as export_module
from evidence_store.bag import layout, verify_bag
from evidence_store.bag import tags as tags_module
from evidence_store.errors import (
    AlreadyExistsError,
    IntegrityError,
    ItemNotFoundError,
    StoreError,
    StoreFullError,
)
from evidence_store.ledger import Draft
from evidence_store.store import Case, Store
from tests.evidence_store import kit
from tests.evidence_store.bag.make import export, findings, golden_world, receive, writable
from tests.evidence_store.kit import CASE


@pytest.fixture
def world(tmp_path):
    return golden_world(tmp_path / "store")


def test_the_last_entry_and_its_checkpoint_are_in_the_bag(world, tmp_path):
    done = export(world, tmp_path / "bag", recipient="Lab\n7")
    verdict = verify_bag(tmp_path / "bag")
    assert (verdict.outcome, verdict.findings, verdict.notes) == ("clean", [], [])
    last = verdict.opened.ledger.events[-1]
    assert last.action == "item.exported"
    assert last.data == {
        "export_id": done.export_id, "items": "E0001-E0003", "left_out": "", "raw": False,
        "recipient": "Lab\\x0a7", "size": last.seq,
        "root": world.case.ledger.roots and last.data["root"],
    }  # fmt: skip
    assert verdict.case.sealed == last.seq + 1 == done.checkpoint.size == done.entries
    info = layout.parse_info((tmp_path / "bag/bag-info.txt").read_bytes())
    assert info["Impound-Checkpoint-Root"] == done.checkpoint.root_text
    assert info["Impound-Export-Id"] == done.export_id


def test_the_library_of_congress_accepts_it(world, tmp_path):
    export(world, tmp_path / "bag", raw=True, items=["E0001"])
    bag = bagit.Bag(str(tmp_path / "bag"))
    assert bag.validate(processes=1)
    assert bag.version_info == (1, 0)


@pytest.mark.chaos
def test_the_case_standard_accepts_the_graph_and_sees_what_is_wrong(world, tmp_path):
    export(world, tmp_path / "bag")
    graph = tmp_path / "bag/case.jsonld"
    tool = [sys.executable, "-c", "from case_utils.case_validate import main; main()"]
    good = subprocess.run([*tool, str(graph)], capture_output=True, text=True, check=False)
    assert "Conforms: True" in good.stdout
    assert good.returncode == 0
    wrong = tmp_path / "wrong.jsonld"
    wrong.write_text(graph.read_text().replace("xsd:hexBinary", "xsd:string"))
    bad = subprocess.run([*tool, str(wrong)], capture_output=True, text=True, check=False)
    assert bad.returncode != 0
    body = json.loads(graph.read_text())
    kinds = [node["@type"] for node in body["@graph"]]
    assert kinds.count("case-investigation:InvestigativeAction") == len(world.case.ledger.entries)
    assert kinds.count("case-investigation:ProvenanceRecord") == 3
    assert "uco-observable:Image" in kinds


def test_the_graph_is_the_same_each_time(world):
    def graph():
        manifests = {i: world.case.manifest(i) for i in world.case.state.items}
        return tags_module.uco.graph(CASE, "lab", world.case.ledger.events, manifests)

    assert graph() == graph()


def test_raw_is_the_image_sparse_and_in_the_manifest(tmp_path):
    world = kit.make_world(tmp_path / "store")
    data = kit.pattern(65536) + bytes(20 << 20) + kit.pattern(1000, 3)
    world.case.ingest("disk", kit.FakeImage(data), segment_size=65536)
    export(world, tmp_path / "bag", raw=True)
    raw = tmp_path / "bag/data/raw/E0001/disk.raw"
    assert raw.read_bytes() == data
    assert raw.stat().st_blocks * 512 < 1 << 20
    listed = (tmp_path / "bag/manifest-sha256.txt").read_text()
    assert f"{hashlib.sha256(data).hexdigest()}  data/raw/E0001/disk.raw\n" in listed
    assert findings(tmp_path / "bag") == []


def test_raw_without_a_linear_digest_is_compared_by_segments(tmp_path):
    world = kit.make_world(tmp_path / "store")
    data = kit.pattern(65536) + bytes(2 * 65536) + kit.pattern(100, 3)
    world.case.ingest("disk", kit.FakeImage(data), segment_size=65536, linear=False)
    export(world, tmp_path / "bag", raw=True)
    bag = writable(tmp_path / "bag")
    assert findings(bag) == []
    from tests.evidence_store.bag.make import relist

    for at in (0, 70000, 3 * 65536 + 99):
        raw = bag / "data/raw/E0001/disk.raw"
        body = bytearray(data)
        body[at] ^= 1
        raw.write_bytes(body)
        relist(bag, signer=kit.ENTRY, export_id=verify_bag(bag).export_id)
        assert findings(bag) == [
            f"data/raw/E0001/disk.raw: differs from E0001 in segment {at // 65536}"
        ]


def test_items_left_out_are_notes_and_their_data_are_not_there(world, tmp_path):
    done = export(world, tmp_path / "bag", items=["E0001", "E0002"])
    assert (done.items, done.left_out) == (["E0001", "E0002"], ["E0003"])
    left = tmp_path / "bag/data/cases" / CASE / "items/E0003"
    assert sorted(p.name for p in left.iterdir()) == ["manifest.json", "segments.sha256"]
    verdict = verify_bag(tmp_path / "bag")
    assert verdict.exit_code == 3
    assert [str(n) for n in verdict.notes] == [
        "item E0003: is not in this bag: it was left out of the export"
    ]
    assert "left out" not in world.verify().outcome  # the store itself must have all
    assert world.verify().outcome == "clean"


def test_an_export_does_not_excuse_the_store(world, tmp_path):
    export(world, tmp_path / "bag", items=["E0001"])
    for path in sorted((world.folder / "items/E0003/data").iterdir()):
        path.unlink()
    assert world.verify().outcome == "broken"


def test_unknown_and_unfinished_items_are_refused(world, tmp_path):
    with pytest.raises(ItemNotFoundError):
        export(world, tmp_path / "bag", items=["E0009"])
    claimed = {"item": "E0004", "data": {"kind": "disk", "source": "x"}}
    world.case.record(lambda: Draft("item.identified", claimed))
    with pytest.raises(ItemNotFoundError, match="identified"):
        export(world, tmp_path / "bag", items=["E0004"])
    assert not (tmp_path / "bag").exists()


def damaged(world, path, body=None):
    target = world.folder / path
    kit.rewrite(target, body if body is not None else b"x" + target.read_bytes()[1:])


@pytest.mark.parametrize(
    "path", ["items/E0001/data/0000000000000000", "items/E0001/manifest.json",
             "items/E0002/members.jsonl", "ledger/0000000000000003.note"],
)  # fmt: skip
def test_a_broken_store_is_not_exported(world, tmp_path, path):
    damaged(world, path)
    case = Case(Store(LocalBackend(world.root), world.scribe), CASE)
    world.case = case
    entries = len(list((world.folder / "ledger").iterdir()))
    with pytest.raises(IntegrityError):
        export(world, tmp_path / "bag")
    assert not (tmp_path / "bag/bagit.txt").exists()
    assert len(list((world.folder / "ledger").iterdir())) == entries


def test_destination_that_exists(world, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for name in ("full", "file", "link"):
        with pytest.raises(AlreadyExistsError) as caught:
            export(world, tmp_path / name)
        assert caught.value.hint
    assert (tmp_path / "full/x").read_text() == "mine"
    export(world, tmp_path / "empty")
    with pytest.raises(AlreadyExistsError):
        export(world, tmp_path / "empty")
    assert findings(tmp_path / "empty") == []


def test_destination_inside_the_store_or_where_nothing_can_be_made(world, tmp_path):
    (tmp_path / "file").write_text("x")
    for place in (world.root / "bag", tmp_path / "file/bag", Path("/proc/bag")):
        with pytest.raises(StoreError):
            export(world, place)
    assert world.verify().outcome == "clean"


def test_a_disk_too_small_is_noticed_before_the_first_byte(world, tmp_path, monkeypatch):
    class Full:
        f_bavail, f_frsize = 1, 512

    monkeypatch.setattr(export_module.os, "statvfs", lambda _path: Full)
    with pytest.raises(StoreFullError, match="512"):
        export(world, tmp_path / "bag")
    assert not (tmp_path / "bag/data").exists()


def test_a_disk_that_fills_up(world, tmp_path, monkeypatch):
    whole, calls = export_module._write_at, []

    def full(fd, view, offset):
        calls.append(1)
        if len(calls) == 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(fd, view, offset)

    monkeypatch.setattr(export_module, "_write_at", full)
    with pytest.raises(StoreFullError) as caught:
        export(world, tmp_path / "bag")
    assert "again" in caught.value.hint
    assert "no bag" in findings(tmp_path / "bag")[0]
    monkeypatch.undo()
    export(world, tmp_path / "bag")
    assert findings(tmp_path / "bag") == []


class Killed(BaseException):
    pass


def test_killed_after_each_file_and_run_again(tmp_path, monkeypatch):
    """What is left is plainly no bag; the same command makes the bag, with the same export id."""
    put, left = export_module._write_at, [0]

    def dying(fd, view, offset):
        if not left[0]:
            raise Killed
        left[0] -= 1
        put(fd, view, offset)

    monkeypatch.setattr(export_module, "_write_at", dying)
    for count in range(0, 60, 5):
        world = golden_world(tmp_path / f"store{count}")
        bag = tmp_path / f"bag{count}"
        left[0] = count
        try:
            export(world, bag, raw=True)
        except Killed:
            assert not (bag / "bagit.txt").exists()
            first = json.loads((bag / layout.PLAN).read_text()) if count else None
            left[0] = 1000
            done = export(world, bag, raw=True)
            assert first is None or done.export_id == first["export_id"]
        else:
            assert count > 40
        verdict = verify_bag(bag)
        assert (verdict.outcome, verdict.findings, verdict.notes) == ("clean", [], [])
        assert not (bag / layout.PARTIAL).exists()
        assert world.verify().outcome == "clean"


def test_what_is_taken_up_must_be_the_same_export(world, tmp_path):
    bag = tmp_path / "bag"
    with pytest.raises(Killed):
        export(world, bag, progress=lambda _done, _total: (_ for _ in ()).throw(Killed))
    with pytest.raises(AlreadyExistsError, match="another export"):
        export(world, bag, items=["E0001"])
    kept = next((bag / "data/cases" / CASE / "items").rglob("*.json"))
    writable(bag)
    kept.write_bytes(b"x")
    with pytest.raises(IntegrityError, match="is not what this export wrote"):
        export(world, bag)


def test_an_item_that_comes_in_meanwhile(world, tmp_path):
    def late(_done, _total):
        if "E0004" not in world.case.state.items:
            other = Case(Store(LocalBackend(world.root), kit.make_scribe(seed="late")), CASE)
            other.refresh()
            other.ingest("logs", kit.FakeSet({b"late": b"x"}, serial="F9", text="late"))

    with pytest.raises(StoreError) as caught:
        export(world, tmp_path / "bag", progress=late, workers=1)
    assert "again" in caught.value.hint
    done = export(world, tmp_path / "bag")
    assert done.items == ["E0001", "E0002", "E0003", "E0004"]
    assert findings(tmp_path / "bag") == []


def test_what_cannot_be_sealed_here_is_said(world, tmp_path):
    done = export_module.export_case(world.case, tmp_path / "bag", lambda _case: None)
    assert done.unsealed == 1
    verdict = verify_bag(tmp_path / "bag")
    assert verdict.exit_code == 3
    assert "not sealed" in str(verdict.notes[0])


def test_a_case_that_was_received_is_not_exported_again(world, tmp_path):
    export(world, tmp_path / "bag")
    lab = receive(tmp_path / "lab", tmp_path / "bag").case
    with pytest.raises(StoreError, match="came in a bag"):
        export_module.export_case(lab, tmp_path / "again", lambda _case: None)


class OnlyTheProtocol:
    """A backend that has nothing but what `Backend` promises."""

    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        if name not in {n for n in dir(Backend) if not n.startswith("_")}:
            raise AttributeError(name)
        return getattr(self._inner, name)


def test_nothing_but_the_protocol_is_used(world, tmp_path):
    store = Store(OnlyTheProtocol(LocalBackend(world.root)), world.scribe)
    world.case = store.case(CASE)
    export(world, tmp_path / "bag", raw=True)
    assert findings(tmp_path / "bag") == []


def test_hostile_text_in_what_people_open(tmp_path):
    world = kit.make_world(tmp_path / "store")
    world.note("=cmd|' /C calc'!A0")
    world.note("<script>alert(1)</script>")
    export(world, tmp_path / "bag")
    table = (tmp_path / "bag/custody.csv").read_text()
    assert "'=cmd|" in table
    page = (tmp_path / "bag/custody.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_files_are_read_only_and_the_script_can_be_run(world, tmp_path):
    export(world, tmp_path / "bag")
    for path in (tmp_path / "bag").rglob("*"):
        if path.is_file():
            assert not path.stat().st_mode & 0o222, path
    assert os.access(tmp_path / "bag/verify.sh", os.X_OK)
