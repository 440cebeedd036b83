# SPDX-License-Identifier: Apache-2.0
"""What is noticed in a bag. Both verifiers are asked; a bag's content is hostile."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

import evidence_store
from evidence_store.bag import layout, verify_bag
from evidence_store.errors import StoreNotFoundError
from evidence_store.ledger import Draft, entry_name
from evidence_store.sign import sign_note
from tests.evidence_store import kit
from tests.evidence_store.bag.make import (
    GOLDEN,
    copy,
    export,
    findings,
    golden_world,
    relist,
    writable,
)
from tests.evidence_store.kit import CASE, ENTRY, STRANGER

SCRIPT = Path(evidence_store.__file__).with_name("verify.sh")
SEED = int(os.environ.get("IMPOUND_SEED", "20260102"))
GOLDEN_KEY = "e2e36c5a8396103c8edb0638c55e30abf69f93edb50bea72486362ba99c2364f"
INNER = f"data/cases/{CASE}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A bag of everything, with raw images. Never change it: `copy` first."""
    folder = tmp_path_factory.mktemp("whole")
    export(golden_world(folder / "store"), folder / "bag", raw=True)
    return folder / "bag"


@pytest.fixture
def bag(whole, tmp_path):
    return copy(whole, tmp_path / "bag")


def shell(bag, *options, script=SCRIPT, interpreter="sh"):
    done = subprocess.run(
        [interpreter, str(script), *options, str(bag)], capture_output=True, check=False,
        timeout=120,
    )  # fmt: skip
    done.out = done.stdout.decode("ascii")  # what it prints is printable ASCII, whatever the bag
    assert b"syntax" not in done.stderr
    return done


def broken(bag, about="", *, script=True):
    """Both verifiers call it broken; return what Python found."""
    found = findings(bag)
    assert found
    assert all(line.isprintable() for line in found)
    assert any(about in line for line in found), found
    if script:
        done = shell(bag)
        assert done.returncode == 1, done.out
        assert done.out.splitlines()[-1].startswith("BROKEN ")
    return found


# -- sound -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("interpreter", ["dash", "bash"])
def test_the_golden_bag_holds_for_ever(need_tool, interpreter):
    """Made once, with keys that the tests know; never made anew."""
    verdict = verify_bag(GOLDEN, linear=True, first_key=GOLDEN_KEY)
    assert verdict.findings == []
    assert [str(n) for n in verdict.notes] == [
        "item E0003: is not in this bag: it was left out of the export"
    ]
    assert (verdict.case.entries, verdict.case.sealed, verdict.case.items) == (14, 14, 2)
    for script in (SCRIPT, GOLDEN / "verify.sh"):
        done = shell(GOLDEN, "-k", GOLDEN_KEY, script=script, interpreter=need_tool(interpreter))
        assert done.returncode == 0, done.out
        assert "note: item E0003 is not in this bag" in done.out


def test_the_script_finds_the_bag_that_it_lies_in(bag, tmp_path):
    for argv, cwd in ((["sh", "verify.sh"], bag), (["sh", str(bag / "verify.sh")], tmp_path),
                      (["sh", "bag/verify.sh", "-q"], tmp_path)):  # fmt: skip
        done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
        assert done.stdout.splitlines()[-1].startswith("OK 14 entries, 3 items")


def test_a_bag_elsewhere_with_an_odd_name(whole, tmp_path):
    odd = copy(whole, tmp_path / "-r x\n'")
    assert findings(odd) == []
    done = subprocess.run(
        ["sh", str(SCRIPT), "--", odd.name], cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 0


def test_receipt_and_key_that_the_caller_brings(bag):
    verdict = verify_bag(bag)
    receipt = verdict.case.sealed, verdict.case.root
    assert findings(bag, receipt=receipt, first_key=verdict.case.first_key) == []
    assert findings(bag, receipt=(receipt[0] + 1, receipt[1]))
    assert findings(bag, first_key="0" * 64)
    assert shell(bag, "-k", "0" * 64).returncode == 1
    assert shell(bag, "-r", f"{receipt[0]}:{receipt[1]}").returncode == 0


def test_the_store_layout_is_kept(bag):
    """The verifiers of stores work on what lies in the bag, unchanged."""
    assert kit.verify(bag / "data").outcome == "clean"
    assert shell(bag / INNER).returncode == 0


# -- flips -----------------------------------------------------------------------------------------


@pytest.mark.chaos
def test_a_flipped_bit_anywhere(whole, tmp_path):
    chance = random.Random(SEED)
    files = sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_file())
    bag = copy(whole, tmp_path / "bag")
    for number in range(100):
        path = bag / chance.choice(files)
        body = path.read_bytes()
        if not body:
            continue
        kit.flip(path, chance.randrange(len(body) * 8))
        assert findings(bag), (path, number)
        if number % 20 == 0:
            assert shell(bag).returncode == 1, (path, number)
        path.write_bytes(body)
    assert findings(bag) == []


@pytest.mark.parametrize("tag", [*sorted(layout.KNOWN_TAGS), layout.TAG_MANIFEST, layout.NOTE])
def test_each_tag_file_changed_cut_and_removed(bag, tag):
    body = (bag / tag).read_bytes()
    for other in (body + b"x", body[:-1], body[: len(body) // 2], b""):
        (bag / tag).write_bytes(other)
        broken(bag, script=other == body[:-1])
    (bag / tag).unlink()
    broken(bag, tag)


# -- files added, missing, renamed -----------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["extra", "data/extra", f"{INNER}/items/E0001/data/00000000000000ff", "keys/x",
             f"{INNER}/items/E0009/manifest.json", "data/cases/other/ledger/x",
             "data/raw/E0001/other"],
)  # fmt: skip
def test_an_added_file(bag, name):
    (bag / name).parent.mkdir(parents=True, exist_ok=True)
    (bag / name).write_bytes(b"x")
    broken(bag, name)


def test_every_file_missing(whole, tmp_path):
    bag = copy(whole, tmp_path / "bag")
    for path in sorted(p for p in bag.rglob("*") if p.is_file()):
        body = path.read_bytes()
        path.unlink()
        name = path.relative_to(bag).as_posix()
        assert any(name in f for f in findings(bag)), name
        path.write_bytes(body)


def test_a_missing_and_a_renamed_object(bag):
    path = bag / INNER / "items/E0002/data/0000000000000000"
    path.rename(path.with_name("0000000000000009"))
    found = broken(bag, "0000000000000009")
    assert any("0000000000000000" in f and "missing" in f for f in found)


# -- somebody without keys who writes the lists anew -----------------------------------------------


def anew(bag, change):
    change(bag)
    relist(bag)
    return broken(bag)


@pytest.mark.chaos
def test_lists_written_anew_do_not_help(whole, tmp_path):
    changes = {
        "object": lambda b: kit.flip(b / INNER / "items/E0001/data/0000000000000000", 7),
        "no object": lambda b: (b / INNER / "items/E0001/data/0000000000000000").unlink(),
        "no item": lambda b: shutil.rmtree(b / INNER / "items/E0003"),
        "no data": lambda b: shutil.rmtree(b / INNER / "items/E0003/data"),
        "raw": lambda b: kit.flip(b / "data/raw/E0001/disk.raw", 3),
        "table": lambda b: (b / "custody.csv").write_text("nothing happened\n"),
        "graph": lambda b: (b / "case.jsonld").write_text("{}\n"),
        "script": lambda b: (b / "verify.sh").write_text("echo OK\n"),
        "recipient": lambda b: (b / "bag-info.txt").write_text(
            (b / "bag-info.txt").read_text().replace("Impound-Items", "Impound-Recipient")
        ),
        "a stranger's key": lambda b: (b / f"keys/{STRANGER.public.kid}.pem").write_bytes(
            STRANGER.public.pem()
        ),
        "a key replaced": lambda b: (b / f"keys/{ENTRY.public.kid}.pem").write_bytes(
            STRANGER.public.pem()
        ),
        "extra": lambda b: (b / "data/extra").write_text("x"),
        "tail": lambda b: remove_tail(b),
    }
    for name, change in changes.items():
        assert anew(copy(whole, tmp_path / name.replace(" ", "_").replace("'", "")), change), name


def remove_tail(bag):
    last = max((bag / INNER / "ledger").iterdir())
    last.unlink()
    shutil.rmtree(max((bag / INNER / "checkpoints").iterdir()))


def test_an_entry_added_by_a_stranger(bag):
    ledger = sorted((bag / INNER / "ledger").iterdir())
    world_note = ledger[-1].read_bytes().split(b"\n\n")[0] + b"\n"
    (bag / INNER / "ledger" / entry_name(len(ledger))).write_bytes(
        sign_note(world_note, "local/entry", STRANGER)
    )
    relist(bag, signer=STRANGER, export_id=verify_bag(bag).export_id)
    found = broken(bag)
    assert any("ledger" in f for f in found)
    assert any("bag.note" in f for f in found)


def test_the_bag_of_another_export_signed_for_this_one(tmp_path):
    """Mix and match: the signature of one export over the lists of another."""
    world = golden_world(tmp_path / "store")
    export(world, tmp_path / "one")
    export(world, tmp_path / "two", items=["E0001"])
    writable(tmp_path / "two")
    shutil.copyfile(tmp_path / "one/bag.note", tmp_path / "two/bag.note")
    broken(tmp_path / "two", "bag.note")


def test_part_of_an_item_that_was_left_out(tmp_path):
    """Left out means that no object is there; some of them is broken, not left out."""
    world = golden_world(tmp_path / "store")
    export(world, tmp_path / "bag", items=["E0002"])
    bag = writable(tmp_path / "bag")
    source = world.folder / "items/E0001/data/0000000000000000"
    target = bag / INNER / "items/E0001/data/0000000000000000"
    target.parent.mkdir()
    shutil.copyfile(source, target)
    relist(bag, signer=ENTRY, export_id=verify_bag(bag).export_id)
    broken(bag, "item E0001")


def test_an_item_that_no_signed_entry_leaves_out(tmp_path):
    world = golden_world(tmp_path / "store")
    export(world, tmp_path / "bag", items=["E0001", "E0002"])
    bag = writable(tmp_path / "bag")
    shutil.rmtree(bag / INNER / "items/E0002/data")
    info = bag / "bag-info.txt"
    info.write_text(info.read_text().replace("Left-Out: E0003", "Left-Out: E0002-E0003"))
    relist(bag, signer=ENTRY, export_id=verify_bag(bag).export_id)
    broken(bag, "item E0002")


# -- hostile folders -------------------------------------------------------------------------------


def test_no_folder(tmp_path):
    with pytest.raises(StoreNotFoundError):
        verify_bag(tmp_path / "none")


def test_links_pipes_and_sockets(whole, tmp_path):
    def link(path):
        path.unlink()
        path.symlink_to("/etc/passwd")

    for number, name in enumerate((f"{INNER}/items/E0001/data/0000000000000000", "data/store.json",
                                   "bag-info.txt", "bagit.txt", layout.MANIFEST)):  # fmt: skip
        bag = copy(whole, tmp_path / f"l{number}")
        link(bag / name)
        assert any("link" in f for f in broken(bag, name))
    bag = copy(whole, tmp_path / "folder")
    shutil.move(bag / INNER / "items", tmp_path / "away")
    (bag / INNER / "items").symlink_to(tmp_path / "away")
    broken(bag, "items")
    bag = copy(whole, tmp_path / "pipe")
    os.mkfifo(bag / "data/pipe")
    broken(bag, "data/pipe")
    bag = copy(whole, tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(bag / "sock"))
        broken(bag, "sock")


@pytest.mark.parametrize("name", [b"a\nb", b"\xff", b"\x1b[2J", b".hidden", b"a b", b"x" * 250])
def test_odd_names(bag, name):
    (bag / "data" / os.fsdecode(name)).write_bytes(b"x")
    broken(bag)


@pytest.mark.parametrize(
    "body",
    [b"", b"BagIt-Version: 0.97\nTag-File-Character-Encoding: UTF-8\n",
     b"BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-16\n", layout.BAGIT + b"x\n",
     layout.BAGIT.replace(b"\n", b"\r\n"), b"\0" * 100000],
)  # fmt: skip
def test_another_declaration(bag, body):
    (bag / "bagit.txt").write_bytes(body)
    broken(bag, "bagit.txt")


def test_fetch_txt_is_refused(bag):
    (bag / "fetch.txt").write_text("http://example.org/x 1 data/x\n")
    relist(bag)
    broken(bag, "fetch.txt")


def test_lists_that_point_elsewhere(whole, tmp_path):
    lines = [f"{'a' * 64}  data/../../x\n", f"{'a' * 64}  /etc/passwd\n", "x" * (1 << 20) + "\n",
             "\x1b[2J\n", f"{'a' * 64}  data/A\n{'a' * 64}  data/a\n"]  # fmt: skip
    for number, line in enumerate(lines):
        for name in (layout.MANIFEST, layout.TAG_MANIFEST):
            bag = copy(whole, tmp_path / f"{number}{name}")
            with (bag / name).open("a") as f:
                f.write(line)
            broken(bag, name)


def test_two_cases_or_none(whole, tmp_path):
    bag = copy(whole, tmp_path / "two")
    shutil.copytree(bag / INNER, bag / "data/cases/other")
    relist(bag)
    broken(bag, "data/cases")
    bag = copy(whole, tmp_path / "none")
    shutil.rmtree(bag / "data/cases")
    relist(bag)
    broken(bag, "data/cases")


def test_a_bag_that_was_never_exported(tmp_path):
    """A ledger without item.exported, however well it is packed."""
    world = golden_world(tmp_path / "store")
    export(world, tmp_path / "bag")
    bag = writable(tmp_path / "bag")
    remove_tail(bag)
    relist(bag, signer=ENTRY, export_id="x")
    broken(bag, "no entry says")


def test_a_later_entry_does_not_hide_the_export(tmp_path):
    world = golden_world(tmp_path / "store")

    def seal(case):
        case.record(lambda: Draft("review.noted", {"note": "meanwhile"}))
        return case.seal(kit.CHECKPOINT)

    from evidence_store.bag import export_case

    export_case(world.case, tmp_path / "bag", seal)
    assert findings(tmp_path / "bag") == []
    assert shell(tmp_path / "bag").returncode == 0
