# SPDX-License-Identifier: Apache-2.0
"""One test for each attack on custody (docs/format.md): what is found, and by which run."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import subprocess
import sys
from datetime import timedelta

import pytest

from evidence_store.backend import LocalBackend
from evidence_store.checkpoint import LastSeen
from evidence_store.errors import SigningKeyError
from evidence_store.ledger import Draft
from evidence_store.sign import sign_note
from evidence_store.store import Case, Store, allow_key
from tests.evidence_store import kit
from tests.evidence_store.kit import CASE, CHECKPOINT, ENTRY, SEGMENT, STRANGER


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """Four entries and a checkpoint. Copy before changing."""
    world = kit.make_world(tmp_path_factory.mktemp("four") / "store")
    for n in range(3):
        world.note(str(n))
    world.seal()
    return world


@pytest.fixture
def case(four, tmp_path):
    return four.copy(tmp_path / "copy")


@pytest.fixture
def full(filled, tmp_path):
    return filled.copy(tmp_path / "full")


def unseal(world):
    shutil.rmtree(world.folder / "checkpoints")


def resign(world, seq, signer, change=lambda text: text):
    """Sign entry `seq` again, as somebody who holds a key would."""
    text = world.entry(seq).read_bytes().partition(b"\n\n")[0] + b"\n"
    kit.rewrite(world.entry(seq), sign_note(change(text), "local/entry", signer))


# -- sound -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("deep", [False, True])
def test_an_untouched_case_is_clean(full, deep):
    verdict = full.verify(deep=deep)
    assert (verdict.outcome, verdict.exit_code) == ("clean", 0)
    assert (verdict.items, verdict.entries, verdict.sealed) == (2, 9, 9)
    assert verdict.first_key == ENTRY.public.fingerprint
    assert (verdict.hashed_bytes > 2 * SEGMENT) == deep


def test_verify_writes_nothing(full):
    def state():
        return sorted(
            (path, os.lstat(path).st_mtime_ns, os.lstat(path).st_ino)
            for folder, folders, names in os.walk(full.root)
            for path in (os.path.join(folder, n) for n in [*folders, *names])  # noqa: PTH118
        )

    before = state()
    full.verify(deep=True)
    assert state() == before


# -- the ledger ------------------------------------------------------------------------------------


def flip_and_find(world, seq, bit):
    path = world.entry(seq)
    whole = path.read_bytes()
    kit.flip(path, bit)
    verdict = world.verify(deep=False)
    kit.rewrite(path, whole)
    return verdict.outcome == "broken"


def every_bit(world):
    return [(seq, bit) for seq in range(4) for bit in range(kit.bits(world.entry(seq)))]


@pytest.mark.parametrize("sealed", [True, False])
def test_a_flipped_bit_anywhere_in_a_ledger_is_found(case, sealed):
    if not sealed:
        unseal(case)
    for seq, bit in random.Random(1).sample(every_bit(case), 150):
        assert flip_and_find(case, seq, bit), (seq, bit)


@pytest.mark.chaos
@pytest.mark.parametrize("sealed", [True, False])
def test_each_flipped_bit_of_a_ledger_is_found(case, sealed):
    if not sealed:
        unseal(case)
    missed = [at for at in every_bit(case) if not flip_and_find(case, *at)]
    assert missed == []


def test_a_deleted_entry_is_found(case):
    unseal(case)
    case.entry(1).unlink()
    kit.assert_broken(case, "gap")


def test_a_deleted_first_entry_is_found(case):
    case.entry(0).unlink()
    kit.assert_broken(case, "no entry 0")


def test_entries_deleted_and_renumbered_are_found(case):
    unseal(case)
    case.entry(1).unlink()
    for seq in (2, 3):
        case.entry(seq).rename(case.entry(seq - 1))
    kit.assert_broken(case, "says it is entry 2")


def test_entries_in_another_order_are_found(case):
    unseal(case)
    case.entry(1).rename(case.root / "aside")
    case.entry(2).rename(case.entry(1))
    (case.root / "aside").rename(case.entry(2))
    kit.assert_broken(case, "ledger entry 1")


def test_a_duplicated_entry_is_found(case):
    unseal(case)
    shutil.copy(case.entry(3), case.entry(4))
    kit.assert_broken(case, "says it is entry 3")


def test_an_entry_of_another_case_is_found(case, tmp_path):
    unseal(case)
    other = kit.make_world(tmp_path / "other", deployment="elsewhere")
    for n in range(4):
        other.note(str(n))
    shutil.copy(other.entry(4), case.entry(4))
    kit.assert_broken(case, "ledger entry 4")


def test_a_whole_ledger_replayed_as_another_case_is_found(case):
    (case.root / "cases" / CASE).rename(case.root / "cases" / "T-2")
    verdict = kit.verify(case.root, case_id="T-2")
    assert "not to case T-2" in str(verdict.findings[0])


def test_an_entry_replayed_into_another_case_of_the_same_store_is_found(case):
    unseal(case)
    store = Store(LocalBackend(case.root), kit.make_scribe(seed="2"))
    other = store.create_case("T-2", kit.AUTHORITY, deployment="local",
                              checkpoint_key=CHECKPOINT.public)  # fmt: skip
    other.record(lambda: Draft("review.noted", {"note": "there"}))
    there = case.root / "cases" / "T-2" / "ledger" / f"{1:016d}.note"
    kit.rewrite(case.entry(1), there.read_bytes())
    for seq in (2, 3):
        case.entry(seq).unlink()
    kit.assert_broken(case, "ledger entry 1")


def test_an_unsigned_entry_is_found(case):
    unseal(case)
    kit.rewrite(case.entry(3), case.entry(3).read_bytes().partition(b"\n\n")[0] + b"\n")
    kit.assert_broken(case, "not a signed note")


def test_a_stripped_signature_is_found(case):
    unseal(case)
    kit.rewrite(case.entry(3), case.entry(3).read_bytes().partition(b"\n\n")[0] + b"\n\n")
    kit.assert_broken(case, "ledger entry 3")


def test_a_stranger_s_signature_is_found(case):
    unseal(case)
    resign(case, 3, STRANGER)
    kit.assert_broken(case, "no key that this case allows")


def test_a_checkpoint_key_does_not_sign_entries(case):
    unseal(case)
    resign(case, 3, CHECKPOINT)
    kit.assert_broken(case, "no key that this case allows")


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_torn_entry_is_found(case, keep):
    unseal(case)
    kit.rewrite(case.entry(3), case.entry(3).read_bytes()[:keep])
    kit.assert_broken(case, "ledger entry 3")


@pytest.mark.parametrize(
    "name", ["x", "0000000000000009.note", "0000000000000001.note.bak", ".hidden", "4.note",
             "a\nb", "sub/0000000000000000.note"],
)  # fmt: skip
def test_a_stray_file_in_the_ledger_is_found(case, name):
    path = case.folder / "ledger" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")
    kit.assert_broken(case, "is not an entry of the ledger")


@pytest.mark.parametrize("what", ["link", "folder", "pipe", "large"])
def test_an_entry_that_is_no_file_of_the_store_is_found(case, what):
    unseal(case)
    path = case.entry(3)
    path.rename(case.root / "aside")
    if what == "link":
        path.symlink_to(case.root / "aside")
    elif what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(b"x" * (2 << 20))
    kit.assert_broken(case, "ledger entry 3")


def test_a_truncated_tail_is_found_by_the_checkpoint_only(case):
    for seq in (2, 3):
        case.entry(seq).unlink()
    verdict = kit.assert_broken(case, "says the ledger has 4 entries, but there are 2")
    assert "the end was removed" in str(verdict.findings[0])
    unseal(case)
    verdict = case.verify()
    assert verdict.findings == []
    assert "not sealed by a checkpoint" in str(verdict.notes[0])


@pytest.mark.parametrize("first", [1, 3])
def test_a_tail_rewritten_with_a_stolen_entry_key_is_found_by_the_checkpoint_only(case, first):
    for seq in range(first, 4):
        case.entry(seq).unlink()
    forger = Case(Store(LocalBackend(case.root), kit.make_scribe(seed="forged")), CASE)
    for n in range(first, 4):
        forger.record(lambda n=n: Draft("review.noted", {"note": f"forged {n}"}))
    kit.assert_broken(case, "are not those that were sealed")
    unseal(case)
    assert case.verify().findings == []


def test_a_fork_that_goes_on_beyond_the_checkpoint_is_found(case):
    case.entry(3).unlink()
    forger = Case(Store(LocalBackend(case.root), kit.make_scribe(seed="forged")), CASE)
    for n in range(5):
        forger.record(lambda n=n: Draft("review.noted", {"note": f"forged {n}"}))
    kit.assert_broken(case, "are not those that were sealed")


# -- checkpoints -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["log.note", "last.proof"])
def test_each_flipped_bit_of_a_checkpoint_is_found(case, name):
    path = case.folder / "checkpoints" / f"{4:016d}" / name
    whole = path.read_bytes()
    for bit in range(len(whole) * 8):
        kit.flip(path, bit)
        assert case.verify(deep=False).outcome == "broken", bit
    kit.rewrite(path, whole)


def test_a_checkpoint_moved_to_another_size_is_found(case):
    folder = case.folder / "checkpoints"
    (folder / f"{4:016d}").rename(folder / f"{3:016d}")
    kit.assert_broken(case, "says 4 entries, its folder 3")


def test_a_checkpoint_of_nothing_is_found(case):
    folder = case.folder / "checkpoints"
    (folder / f"{4:016d}").rename(folder / f"{0:016d}")
    kit.assert_broken(case, f"checkpoints/{0:016d}")


@pytest.mark.parametrize(
    "name", ["x", "log.note", "4/log.note", f"{4:016d}/other", f"{4:016d}/sub/log.note",
             "a b/log.note"],
)  # fmt: skip
def test_a_stray_file_among_the_checkpoints_is_found(case, name):
    path = case.folder / "checkpoints" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")
    kit.assert_broken(case, "checkpoint")


def test_a_missing_proof_is_found(case):
    (case.folder / "checkpoints" / f"{4:016d}" / "last.proof").unlink()
    kit.assert_broken(case, "last.proof")


@pytest.mark.parametrize("name", ["log.note", "last.proof"])
def test_a_large_checkpoint_file_is_found(case, name):
    kit.rewrite(case.folder / "checkpoints" / f"{4:016d}" / name, b"A" * (2 << 20))
    kit.assert_broken(case, "checkpoints")


def test_rolling_back_ledger_and_checkpoints_is_found_by_what_was_seen_before(four, tmp_path):
    memory = LastSeen(tmp_path / "seen")
    world = four.copy(tmp_path / "world")
    old = four.copy(tmp_path / "old")
    world.store.last_seen = memory
    world.note("later")
    world.seal()
    assert world.verify(last_seen=memory).outcome == "clean"
    assert old.verify().outcome == "clean"
    kit.assert_broken(old, "the end was removed", last_seen=memory)


def test_a_case_made_anew_in_the_same_store_is_found_by_what_was_seen_before(tmp_path):
    memory = LastSeen(tmp_path / "seen")
    world = kit.make_world(tmp_path / "store", last_seen=memory)
    world.seal()
    shutil.rmtree(world.folder)
    again = kit.make_world(world.root, scribe=kit.make_scribe(STRANGER, "new"))
    again.seal()
    assert again.verify().outcome == "clean"
    kit.assert_broken(again, "not those that were sealed", last_seen=memory)


# -- clocks ----------------------------------------------------------------------------------------


def test_a_clock_moved_backwards_is_a_note(world):
    world.note()
    world.scribe.clock.now -= timedelta(minutes=10)
    world.note()
    world.seal()
    verdict = world.verify()
    assert (verdict.outcome, verdict.exit_code) == ("notes", 3)
    assert "a clock was wrong" in str(verdict.notes[0])


def test_a_clock_a_few_seconds_off_is_not_worth_a_note(world):
    world.note()
    world.scribe.clock.now -= timedelta(seconds=4)
    world.note()
    world.seal()
    assert world.verify().outcome == "clean"


# -- keys and store.json ---------------------------------------------------------------------------


@pytest.mark.parametrize("kid", [ENTRY.public.kid, CHECKPOINT.public.kid])
def test_a_substituted_key_is_found(case, kid):
    kit.rewrite(case.folder / "keys" / f"{kid}.pem", STRANGER.public.pem())
    kit.assert_broken(case, f"keys/{kid}.pem holds the key {STRANGER.public.kid}")


@pytest.mark.parametrize("kid", [ENTRY.public.kid, CHECKPOINT.public.kid])
def test_a_missing_key_is_found(case, kid):
    (case.folder / "keys" / f"{kid}.pem").unlink()
    kit.assert_broken(case, f"keys/{kid}.pem is missing")


def test_each_flipped_bit_of_a_key_is_found(case):
    path = case.folder / "keys" / f"{ENTRY.public.kid}.pem"
    for bit in range(kit.bits(path)):
        kit.flip(path, bit)
        assert case.verify(deep=False).outcome == "broken", bit
        kit.flip(path, bit)


def test_a_key_that_nobody_listed_is_a_note_since_it_has_no_power(case):
    """A refused or interrupted `key add` leaves one; that must not break a case for good."""
    path = case.folder / "keys" / f"{STRANGER.public.kid}.pem"
    path.write_bytes(STRANGER.public.pem())
    verdict = case.verify()
    assert verdict.outcome == "notes"
    assert "a key that the ledger does not name" in str(verdict.notes[0])


def test_who_may_not_sign_leaves_no_key_behind(case):
    stranger = Case(Store(LocalBackend(case.root), kit.make_scribe(STRANGER)), kit.CASE)
    stranger.refresh()
    with pytest.raises(SigningKeyError):
        allow_key(stranger, STRANGER.public, "entry")
    assert not (case.folder / "keys" / f"{STRANGER.public.kid}.pem").exists()


def test_substituted_key_and_ledger_are_found_by_the_fingerprint_that_travels_apart(case):
    """Everything made anew with other keys verifies: only the first key's fingerprint tells."""
    shutil.rmtree(case.folder)
    again = kit.make_world(case.root, scribe=kit.make_scribe(STRANGER))
    again.seal()
    verdict = again.verify()
    assert verdict.outcome == "clean"
    assert verdict.first_key == STRANGER.public.fingerprint != ENTRY.public.fingerprint


def test_each_flipped_bit_of_store_json_is_found(case):
    path = case.root / "store.json"
    for bit in range(kit.bits(path)):
        kit.flip(path, bit)
        assert case.verify(deep=False).outcome == "broken", bit
        kit.flip(path, bit)


def test_a_case_moved_into_another_store_is_found(case, tmp_path):
    other = Store(LocalBackend(tmp_path / "other"))
    other.create("local")
    shutil.copytree(case.folder, tmp_path / "other" / "cases" / CASE)
    verdict = kit.verify(tmp_path / "other")
    assert [f.about for f in verdict.findings] == ["store.json"]


def test_a_missing_store_json_is_found(case):
    (case.root / "store.json").unlink()
    kit.assert_broken(case, "store.json")


# -- items -----------------------------------------------------------------------------------------

IMAGE, SET = "items/E0001", "items/E0002"
SEGMENT_0 = f"{IMAGE}/data/{0:016x}"


@pytest.mark.parametrize(
    "name",
    [f"{IMAGE}/manifest.json", f"{IMAGE}/segments.sha256", f"{SET}/manifest.json",
     f"{SET}/segments.sha256", f"{SET}/members.jsonl", f"{SET}/data/{1:016x}"],
)  # fmt: skip
@pytest.mark.parametrize("deep", [False, True])
def test_a_flipped_bit_of_what_describes_an_item_is_found_by_any_run(full, name, deep):
    path = full.folder / name
    for bit in random.Random(2).sample(range(kit.bits(path)), 25):
        kit.flip(path, bit)
        assert full.verify(deep=deep).outcome == "broken", bit
        kit.flip(path, bit)


def test_a_flipped_bit_of_an_image_segment_is_found_by_a_deep_run(full):
    for bit in random.Random(3).sample(range(kit.bits(full.folder / SEGMENT_0)), 25):
        kit.flip(full.folder / SEGMENT_0, bit)
        verdict = kit.assert_broken(full, f"segment 0 (data/{0:016x}) has SHA-256")
        assert len(verdict.findings) == 1
        assert full.verify(deep=False).outcome == "clean"
        kit.flip(full.folder / SEGMENT_0, bit)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("how", ["missing", "short", "long", "link", "folder"])
@pytest.mark.parametrize("item", [IMAGE, SET])
def test_a_segment_that_is_missing_or_of_another_size_is_found_by_any_run(full, item, how, deep):
    path = full.folder / item / "data" / f"{0 if item == IMAGE else 1:016x}"
    body = path.read_bytes()
    path.rename(full.root / "aside")
    if how == "short":
        path.write_bytes(body[:-1])
    elif how == "long":
        path.write_bytes(body + b"\0")
    elif how == "link":
        path.symlink_to(full.root / "aside")
    elif how == "folder":
        path.mkdir()
    kit.assert_broken(full, item[-5:], deep=deep)


def test_the_same_damage_in_two_items_is_two_findings(world):
    for serial in ("S1", "S2"):
        source = kit.FakeImage(kit.pattern(SEGMENT), serial=serial)
        world.case.ingest("disk", source, segment_size=SEGMENT)
    for item in ("E0001", "E0002"):
        kit.flip(world.folder / "items" / item / "data" / f"{0:016x}", 0)
    verdict = kit.assert_broken(world, "E0001")
    assert {f.about for f in verdict.findings} == {"item E0001", "item E0002"}


def test_manifests_of_two_items_swapped_are_found(full):
    one, two = (full.folder / i / "manifest.json" for i in (IMAGE, SET))
    first, second = one.read_bytes(), two.read_bytes()
    kit.rewrite(one, second)
    kit.rewrite(two, first)
    verdict = kit.assert_broken(full, "E0001")
    assert {f.about for f in verdict.findings} >= {"item E0001", "item E0002"}


@pytest.mark.parametrize(
    "name", [f"{IMAGE}/data/{9:016x}", f"{IMAGE}/extra", f"{SET}/data/zz", "items/E0009/data/0",
             "elsewhere/x", f"{IMAGE}/odd name"],
)  # fmt: skip
def test_an_object_that_nobody_recorded_is_a_note(full, name):
    path = full.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    verdict = full.verify()
    assert verdict.outcome == "notes"
    assert "is not logged" in str(verdict.notes[0])


def test_a_hole_that_someone_filled_is_a_note_and_not_read(full):
    (full.folder / IMAGE / "data" / f"{1:016x}").write_bytes(b"\xff" * SEGMENT)
    assert full.verify().outcome == "notes"
    with full.store.case(CASE).open("E0001") as image:
        assert image.pread(SEGMENT, SEGMENT) == bytes(SEGMENT)


def test_a_disposed_item_is_not_missed(full):
    full.case.record(lambda: Draft("item.disposed", {"item": "E0001"}))
    shutil.rmtree(full.folder / IMAGE)
    assert full.verify().findings == []


def test_an_unfinished_item_is_a_note(world):
    world.case.record(lambda: Draft("item.identified", {"item": "E0001", "data": {"kind": "disk"}}))
    assert "never acquired" in str(world.verify().notes)
    world.case.record(lambda: Draft("acquire.started", {"item": "E0001", "refs": [1]}))
    assert "no end recorded" in str(world.verify().notes)
    world.case.record(lambda: Draft("acquire.failed", {"item": "E0001", "refs": [2]}))
    assert "failed and was not continued" in str(world.verify().notes)


def test_a_failed_verification_on_record_stays_a_note(full):
    full.case.record(lambda: Draft("item.verified", {"item": "E0001", "result": "failed"}))
    full.seal()
    assert "recorded a failed verification" in str(full.verify().notes)


# -- what belongs to no case -----------------------------------------------------------------------


def test_leftovers_of_interrupted_writes_are_counted_and_no_fault_of_the_case(full):
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    (full.root / "tmp" / f"{dead.pid}-{'0' * 16}").write_bytes(b"half")
    (full.root / "quarantine" / "x").mkdir(parents=True)
    (full.root / "quarantine" / "x" / "torn").write_bytes(b"ha")
    verdict = full.verify()
    assert verdict.outcome == "clean"
    assert [s.size for s in verdict.leftovers.temporary] == [4]
    assert [s.size for s in verdict.leftovers.quarantine] == [2]


@pytest.mark.parametrize("place", ["", "items", "sub", "items/E0009"])
def test_what_is_no_file_of_the_store_anywhere_in_a_case_is_a_note(full, place):
    path = full.folder / place / "odd name"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    verdict = full.verify()
    assert verdict.outcome == "notes"
    assert "not a regular file of the store" in str(verdict.notes[0])


# -- no input ends it ------------------------------------------------------------------------------


def test_a_verification_always_ends_in_a_verdict(filled, tmp_path):
    """Any file replaced by junk: a verdict, never an exception."""
    names = sorted(kit.tree(filled.root))
    junk = [b"", b"\n", b"\n\n", b"{}\n", b"[" * 3000, b"\0" * 100, b"x" * (2 << 20)]
    world = filled.copy(tmp_path / "world")
    for name, body in itertools.product(names, junk):
        if "/data/" in name or name.startswith(("tmp/", "locks/")):
            continue
        whole = (world.root / name).read_bytes()
        kit.rewrite(world.root / name, body)
        assert world.verify(deep=False).outcome == "broken", (name, body[:10])
        kit.rewrite(world.root / name, whole)


def test_a_ledger_that_lists_a_victims_key_first_is_not_the_victims(world):
    """The attacker lists the other's public key first, and signs with an own one."""
    from evidence_store.errors import LedgerError
    from evidence_store.ledger import KeyRing, check_entry
    from evidence_store.model import ZERO_DIGEST
    from evidence_store.sign import sign_note
    from evidence_store.store import allowed

    opened = world.case.ledger.entries[0].event
    victim = allowed(kit.SECOND.public, opened.keys[0].name, "entry")
    event = opened.model_copy(update={"keys": [victim, *opened.keys]})
    raw = sign_note(event.text(), opened.keys[0].name, kit.ENTRY)
    keys = (kit.SECOND, kit.ENTRY, kit.CHECKPOINT)
    ring = KeyRing({signer.public.kid: signer.public for signer in keys})
    with pytest.raises(LedgerError, match="not signed by the first key"):
        check_entry(raw, seq=0, prev=ZERO_DIGEST, origin=None, ring=ring)
