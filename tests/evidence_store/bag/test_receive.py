# SPDX-License-Identifier: Apache-2.0
"""A bag taken in: the ledger it came with is kept, a new one continues; what is refused."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import evidence_store
from evidence_store.backend import LocalBackend
from evidence_store.bag import receive as receive_module
from evidence_store.errors import AlreadyExistsError, IntegrityError, StoreError
from evidence_store.ledger import Draft
from evidence_store.store import Case, Store
from evidence_store.verify import verify_case
from tests.evidence_store import kit
from tests.evidence_store.bag.make import (
    LAB_CHECKPOINT,
    LAB_ENTRY,
    copy,
    export,
    golden_world,
    lab_store,
    receive,
    writable,
)
from tests.evidence_store.kit import CASE

SCRIPT = Path(evidence_store.__file__).with_name("verify.sh")


@pytest.fixture
def world(tmp_path):
    return golden_world(tmp_path / "store")


@pytest.fixture
def bag(world, tmp_path):
    export(world, tmp_path / "bag")
    return tmp_path / "bag"


def verdict_of(root):
    return verify_case(Case(Store(LocalBackend(root)), CASE), deep=True)


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes()
            for p in folder.rglob("*") if p.is_file()}  # fmt: skip


def test_both_ledgers_verify_and_the_first_is_unchanged(world, bag, tmp_path):
    done = receive(tmp_path / "lab", bag)
    assert done.items == ["E0001", "E0002", "E0003"]
    verdict = verdict_of(tmp_path / "lab")
    assert (verdict.outcome, verdict.findings, verdict.notes) == ("clean", [], [])
    assert verdict.received.entries == len(world.case.ledger.entries)
    inner = tmp_path / "lab/cases" / CASE / "received"
    assert tree(inner) == {k.removeprefix("data/"): v for k, v in tree(bag).items()
                           if k.startswith("data/")}  # fmt: skip
    opened = done.case.ledger.events[0]
    size = len(world.case.ledger.entries)
    assert opened.data["received"]["size"] == size
    assert opened.data["received"]["first_key"] == world.case.ledger.ring.first
    assert done.case.ledger.ring.first == LAB_ENTRY.public.fingerprint


def test_the_shell_verifies_both_ledgers(bag, tmp_path):
    receive(tmp_path / "lab", bag)
    folder = tmp_path / "lab/cases" / CASE

    def run():
        return subprocess.run(["sh", str(SCRIPT), str(folder)], capture_output=True, text=True,
                              check=False)  # fmt: skip

    done = run()
    assert done.returncode == 0, done.stdout
    assert "received: OK 14 entries" in done.stdout
    target = folder / "received/cases" / CASE / "ledger/0000000000000003.note"
    kit.flip(target, 9)
    assert run().returncode == 1
    assert verdict_of(tmp_path / "lab").outcome == "broken"


@pytest.mark.parametrize("which", ["ledger", "checkpoints", "keys", "items"])
def test_a_flip_in_what_was_received(bag, tmp_path, which):
    receive(tmp_path / "lab", bag)
    folder = tmp_path / "lab/cases" / CASE / "received/cases" / CASE / which
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        body = path.read_bytes()
        if body:
            kit.flip(path, 8 * len(body) // 2)
            assert verdict_of(tmp_path / "lab").outcome == "broken", path
            kit.rewrite(path, body)
    assert verdict_of(tmp_path / "lab").outcome == "clean"


def test_the_received_end_cut_off_and_entries_added(world, bag, tmp_path):
    receive(tmp_path / "lab", bag)
    folder = tmp_path / "lab/cases" / CASE / "received/cases" / CASE
    last = max((folder / "ledger").iterdir())
    body = last.read_bytes()
    last.unlink()
    for path in max((folder / "checkpoints").iterdir()).iterdir():
        path.unlink()
    found = [str(f) for f in verdict_of(tmp_path / "lab").findings]
    assert any("the end was removed" in f for f in found)
    last.write_bytes(body)
    assert verdict_of(tmp_path / "lab").outcome == "notes"  # its last checkpoint is gone


def test_items_are_read_and_new_ones_number_on_at_a_distance(bag, tmp_path):
    case = receive(tmp_path / "lab", bag).case
    with case.open("E0001") as image:
        assert image.read()[:4096] == kit.pattern(4096)
    assert {m["name"] for m in case.members("E0002")} == {"etc/hosts", "a\ufffd"}
    made = case.ingest("result", kit.FakeSet({b"t": b"x"}, serial="R"), parents=["E0001"])
    assert made.item_id == "E1001"
    again = case.ingest("result", kit.FakeSet({b"u": b"x"}, serial="S"), parents=["E0001"])
    assert again.item_id == "E1002"
    case.seal(LAB_CHECKPOINT)
    assert verdict_of(tmp_path / "lab").outcome == "clean"


def test_again_says_so_and_writes_nothing(bag, tmp_path):
    receive(tmp_path / "lab", bag)
    before = tree(tmp_path / "lab/cases")
    assert receive(tmp_path / "lab", bag, seed="again").existing
    assert tree(tmp_path / "lab/cases") == before


def test_a_broken_bag_is_refused_and_nothing_is_written(bag, tmp_path):
    bad = copy(bag, tmp_path / "bad")
    kit.flip(bad / f"data/cases/{CASE}/items/E0001/data/0000000000000000", 1)
    with pytest.raises(IntegrityError, match="not imported"):
        receive(tmp_path / "lab", bad)
    assert not (tmp_path / "lab").exists()


def test_a_second_delivery_extends_the_first(world, tmp_path):
    export(world, tmp_path / "one", items=["E0001"])
    world.case.ingest("logs", kit.FakeSet({b"new": b"y"}, serial="F4", text="new"))
    export(world, tmp_path / "two", items=["E0003", "E0004"])
    first = receive(tmp_path / "lab", tmp_path / "one")
    assert first.items == ["E0001"]
    notes = [str(n) for n in verdict_of(tmp_path / "lab").notes]
    assert len(notes) == 2
    assert all("was not received" in n for n in notes)
    assert "E0003" not in first.case.state.items
    made = first.case.ingest("result", kit.FakeSet({b"t": b"x"}), parents=["E0001"])
    second = receive(tmp_path / "lab", tmp_path / "two", seed="two")
    assert second.items == ["E0003", "E0004"]
    assert sorted(second.case.state.items) == ["E0001", "E0003", "E0004", made.item_id]
    verdict = verdict_of(tmp_path / "lab")
    assert verdict.findings == []
    notes = [n.about for n in verdict.notes if "ledger" not in n.about]  # clocks: fakes begin anew
    assert notes == [f"cases/{CASE}/received: item E0002"]
    done = subprocess.run(["sh", str(SCRIPT), str(tmp_path / "lab/cases" / CASE)],
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("received: OK") == 2


def test_an_older_bag_after_a_newer_one(world, tmp_path):
    export(world, tmp_path / "one", items=["E0001"])
    export(world, tmp_path / "two", items=["E0002", "E0003"])
    receive(tmp_path / "lab", tmp_path / "two")
    receive(tmp_path / "lab", tmp_path / "one", seed="one")
    verdict = verdict_of(tmp_path / "lab")
    assert (verdict.findings, verdict.notes) == ([], [])


def test_a_history_that_forked_is_refused(world, tmp_path):
    twin = world.copy(tmp_path / "twin")
    twin.case.refresh()
    export(world, tmp_path / "one")
    twin.case.record(lambda: Draft("review.noted", {"note": "another past"}))
    export(twin, tmp_path / "two")
    receive(tmp_path / "lab", tmp_path / "one")
    before = tree(tmp_path / "lab/cases")
    with pytest.raises(IntegrityError, match="rewritten"):
        receive(tmp_path / "lab", tmp_path / "two", seed="two")
    assert tree(tmp_path / "lab/cases") == before


def test_another_case_of_the_same_name(world, bag, tmp_path):
    receive(tmp_path / "lab", bag)
    other = kit.make_world(tmp_path / "other", scribe=kit.make_scribe(kit.SECOND, "other"))
    export(other, tmp_path / "bag2")
    with pytest.raises(IntegrityError, match="first key"):
        receive(tmp_path / "lab", tmp_path / "bag2", seed="2")


def test_a_case_of_the_stores_own(world, bag, tmp_path):
    entries = tree(world.root / "cases")
    with pytest.raises(AlreadyExistsError, match="of its own"):
        receive(world.root, bag)
    assert tree(world.root / "cases") == entries


def test_an_item_id_that_both_use(world, tmp_path, monkeypatch):
    export(world, tmp_path / "one")
    case = receive(tmp_path / "lab", tmp_path / "one").case
    monkeypatch.setattr(type(case.state), "next_item_id", lambda _self: "E0004")
    case.ingest("result", kit.FakeSet({b"t": b"x"}), parents=["E0001"])
    world.case.ingest("logs", kit.FakeSet({b"new": b"y"}, serial="F4", text="new"))
    export(world, tmp_path / "two")
    with pytest.raises(StoreError, match="as another item"):
        receive(tmp_path / "lab", tmp_path / "two", seed="2")


class Killed(BaseException):
    pass


def test_killed_after_each_write_and_run_again(bag, tmp_path, monkeypatch):
    create, left = LocalBackend.create, [0]

    def dying(self, key, body, *, sha256=None):
        if not left[0]:
            raise Killed
        left[0] -= 1
        return create(self, key, body, sha256=sha256)

    monkeypatch.setattr(LocalBackend, "create", dying)
    finished = 0
    for count in range(0, 60, 4):
        root, left[0] = tmp_path / f"lab{count}", count
        try:
            receive(root, bag, sealed=False)
        except Killed:
            left[0] = 1000
            if (root / "cases" / CASE / "ledger").exists():
                half = verdict_of(root)
                assert half.findings == [], (count, half.findings)
                assert half.outcome == "notes"
            receive(root, bag, seed=f"again{count}")
        else:
            finished += 1
            left[0] = 1000
            lab_store(root).case(CASE).seal(LAB_CHECKPOINT)
        verdict = verdict_of(root)
        assert (verdict.findings, verdict.notes) == ([], []), count
    assert 0 < finished < 15


def test_a_bag_that_changes_while_it_is_read(bag, tmp_path, monkeypatch):
    verify = receive_module.verify_bag

    def then_changed(folder, **more):
        verdict = verify(folder, **more)
        writable(folder)
        kit.flip(folder / f"data/cases/{CASE}/items/E0001/data/0000000000000000", 1)
        return verdict

    monkeypatch.setattr(receive_module, "verify_bag", then_changed)
    with pytest.raises(IntegrityError, match="changed since"):
        receive(tmp_path / "lab", bag)
    stored = tmp_path / "lab/cases" / CASE / "received/cases" / CASE / "items/E0001/data"
    assert not (stored / "0000000000000000").exists()


def test_an_unsealed_bag_is_taken_in_with_a_note(world, tmp_path):
    from evidence_store.bag import export_case

    export_case(world.case, tmp_path / "bag", lambda _case: None)
    done = receive(tmp_path / "lab", tmp_path / "bag")
    assert done.verdict.exit_code == 3
    verdict = verdict_of(tmp_path / "lab")
    assert verdict.findings == []
    assert ["not sealed" in str(n) for n in verdict.notes] == [True]
    shell = subprocess.run(["sh", str(SCRIPT), str(tmp_path / "lab/cases" / CASE)],
                           capture_output=True, text=True, check=False)  # fmt: skip
    assert shell.returncode == 0, shell.stdout
    assert "not sealed" in shell.stdout


def test_the_same_keys_and_deployment_on_both_sides(world, bag, tmp_path):
    """One person with one pair of keys: still two ledgers, each bound to its own store."""
    store = Store(LocalBackend(tmp_path / "lab"), kit.make_scribe(seed="lab"))
    done = receive_module.import_bag(
        store, bag, deployment="local", checkpoint_key=kit.CHECKPOINT.public
    )
    done.case.seal(kit.CHECKPOINT)
    assert verdict_of(tmp_path / "lab").outcome == "clean"
