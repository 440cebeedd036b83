# SPDX-License-Identifier: Apache-2.0
"""The ledger: every append exactly once, whoever else writes and whatever gets lost on the way."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from evidence_store.backend import AmbiguousWriteError, LocalBackend
from evidence_store.errors import (
    AlreadyExistsError,
    CaseClosedError,
    IntegrityError,
    LedgerError,
    SigningKeyError,
    StoreError,
)
from evidence_store.ledger import Draft, Ledger
from evidence_store.model import ZERO_DIGEST
from evidence_store.store import Case, Store, allowed
from tests.evidence_store import kit
from tests.evidence_store.kit import AUTHORITY, CASE, CHECKPOINT, ENTRY, SECOND, STRANGER

NAME = "local/entry"


def note(text="x"):
    return Draft("review.noted", {"note": text})


class LossyBackend(LocalBackend):
    """Loses one request in ten and two answers in ten, by a seed."""

    def __init__(self, root, seed):
        super().__init__(root)
        self._random = random.Random(seed)

    def create(self, key, body, **options):
        luck = self._random.random()
        if "/ledger/" in key and luck < 0.1:
            raise AmbiguousWriteError("the request was lost")
        stored = super().create(key, body, **options)
        if "/ledger/" in key and luck < 0.3:
            raise AmbiguousWriteError("the answer was lost")
        return stored


# -- order and chain -------------------------------------------------------------------------------


def test_entries_are_numbered_chained_and_signed(world):
    for n in range(3):
        world.note(str(n))
    before = ZERO_DIGEST
    for seq, logged in enumerate(Case(world.store, CASE).ledger.sync()):
        assert (logged.event.seq, logged.event.prev) == (seq, before)
        assert logged.signed_by == ENTRY.public.kid
        before = hashlib.sha256(world.entry(seq).read_bytes()).hexdigest()
        assert logged.sha256 == before


def test_sync_returns_only_what_is_new(world):
    reader = Ledger(world.store.backend, CASE)
    assert [e.event.seq for e in reader.sync()] == [0]
    world.note()
    world.note()
    assert [e.event.seq for e in reader.sync()] == [1, 2]
    assert reader.sync() == []
    assert len(reader.roots) == 4


def test_origin_binds_the_case_name(world, tmp_path):
    (world.root / "cases" / CASE).rename(world.root / "cases" / "T-2")
    with pytest.raises(LedgerError, match="not to case T-2"):
        Ledger(world.store.backend, "T-2").sync()


# -- append ----------------------------------------------------------------------------------------


def test_eight_threads_with_lost_requests_and_answers_append_exactly_once(world):
    wanted = {f"{w}.{n}" for w in range(8) for n in range(15)}

    def write(worker):
        backend = LossyBackend(world.root, seed=worker)
        ledger, scribe = Ledger(backend, CASE), kit.make_scribe(seed=f"w{worker}.")
        for n in range(15):
            logged = ledger.append(scribe, AUTHORITY, lambda n=n: note(f"{worker}.{n}"))
            assert logged.event.note == f"{worker}.{n}"

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    events = Case(world.store, CASE).ledger.sync()[1:]
    assert len(events) == 120
    assert {logged.event.note for logged in events} == wanted
    assert len({logged.event.id for logged in events}) == 120
    assert world.verify().findings == []


def test_four_processes_append_exactly_once(world):
    code = (
        "import sys; from pathlib import Path; from tests.evidence_store import kit\n"
        "from evidence_store.backend import LocalBackend\n"
        "from evidence_store.ledger import Draft, Ledger\n"
        "ledger = Ledger(LocalBackend(Path(sys.argv[1])), kit.CASE)\n"
        "scribe = kit.make_scribe(seed=sys.argv[2])\n"
        "for n in range(25):\n"
        "    draft = Draft('review.noted', {'note': f'{sys.argv[2]}.{n}'})\n"
        "    ledger.append(scribe, kit.AUTHORITY, lambda: draft)\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(world.root), str(p)]) for p in range(4)
    ]
    assert [p.wait() for p in running] == [0] * 4
    notes = [logged.event.note for logged in Case(world.store, CASE).ledger.sync()[1:]]
    assert sorted(notes) == sorted(f"{p}.{n}" for p in range(4) for n in range(25))
    for p in range(4):  # each writer's own order is kept
        assert [x for x in notes if x.startswith(f"{p}.")] == [f"{p}.{n}" for n in range(25)]


@pytest.mark.parametrize("happened", [True, False])
def test_after_an_ambiguous_answer_an_append_finds_its_own_entry(world, happened):
    class Once(LocalBackend):
        lost = False

        def create(self, key, body, **options):
            if self.lost or "/ledger/" not in key:
                return super().create(key, body, **options)
            self.lost = True
            if happened:
                super().create(key, body, **options)
            raise AmbiguousWriteError("no answer")

    ledger = Ledger(Once(world.root), CASE)
    built = []
    logged = ledger.append(kit.make_scribe(), AUTHORITY, lambda: built.append(1) or note())
    assert logged.event.seq == 1
    assert len(built) == (1 if happened else 2)
    assert len(Ledger(world.store.backend, CASE).sync()) == 2


def test_the_loser_of_a_race_decides_again_on_fresh_facts(world):
    ledger = Ledger(world.store.backend, CASE)
    seen = []

    def build():
        seen.append(len(ledger.entries))
        if len(seen) == 1:
            world.note("faster")
        return note("slower") if len(seen) < 3 else None

    assert ledger.append(kit.make_scribe(seed="b"), AUTHORITY, build).event.seq == 2
    assert seen == [1, 2]


def test_nothing_is_written_if_build_no_longer_wants_it(world):
    assert world.case.record(lambda: None) is None
    assert not world.entry(1).exists()


def test_append_gives_up_when_the_store_never_answers(world, monkeypatch):
    monkeypatch.setattr("evidence_store.ledger._ATTEMPTS", 3)

    class Deaf(LocalBackend):
        def create(self, key, body, **options):
            raise AmbiguousWriteError("no answer")

    with pytest.raises(StoreError, match="3 attempts"):
        Ledger(Deaf(world.root), CASE).append(kit.make_scribe(), AUTHORITY, note)


def test_a_key_that_the_case_does_not_allow_writes_nothing(world):
    with pytest.raises(SigningKeyError, match="may not sign"):
        Ledger(world.store.backend, CASE).append(kit.make_scribe(STRANGER), AUTHORITY, note)
    assert not world.entry(1).exists()


def test_a_closed_case_takes_only_what_concerns_its_keeping(world):
    world.case.record(lambda: Draft("case.sealed"))
    with pytest.raises(CaseClosedError):
        world.case.record(lambda: Draft("item.identified", {"item": "E0001"}))
    with pytest.raises(CaseClosedError):
        world.case.ingest("disk", kit.FakeImage(b"x"), segment_size=kit.SEGMENT)
    world.case.record(lambda: Draft("item.accessed", {"note": "looked"}))
    assert world.verify().findings == []
    assert world.case.state.sealed


def test_a_case_cannot_be_opened_twice(world):
    with pytest.raises(AlreadyExistsError):
        kit.make_world(world.root)
    with pytest.raises(ValueError, match="first entry"):
        world.case.record(lambda: Draft("case.opened", {"keys": []}))
    assert not world.entry(1).exists()


# -- keys ------------------------------------------------------------------------------------------


def add_key(world, signer=SECOND, name="local/second"):
    key = f"cases/{CASE}/keys/{signer.public.kid}.pem"
    world.store.backend.create(key, signer.public.pem())
    keys = [allowed(signer.public, name, "entry")]
    world.case.record(lambda: Draft("key.added", {"keys": keys}))


def test_an_added_key_signs_and_a_revoked_one_no_longer(world):
    add_key(world)
    second = Case(Store(LocalBackend(world.root), kit.make_scribe(SECOND, "s")), CASE)
    second.record(note)
    keys = [allowed(SECOND.public, "local/second", "entry")]
    world.case.record(lambda: Draft("key.revoked", {"keys": keys}))
    with pytest.raises(SigningKeyError):
        second.record(note)
    assert world.verify().findings == []
    signers = [logged.signed_by for logged in Case(world.store, CASE).ledger.sync()]
    assert signers == [k.public.kid for k in (ENTRY, ENTRY, SECOND, ENTRY)]


def test_what_nobody_could_read_is_not_written(world):
    unknown = [allowed(SECOND.public, "local/second", "entry")]
    with pytest.raises(ValueError, match=r"\.pem is missing"):
        world.case.record(lambda: Draft("key.added", {"keys": unknown}))
    wrong = [allowed(ENTRY.public, NAME, "entry").model_copy(update={"sha256": "0" * 64})]
    with pytest.raises(ValueError, match="not the key that was listed"):
        world.case.record(lambda: Draft("key.added", {"keys": wrong}))
    world.note()
    assert world.verify().findings == []


def test_a_revoked_key_cannot_be_added_again(world):
    add_key(world)
    keys = [allowed(SECOND.public, "local/second", "entry")]
    world.case.record(lambda: Draft("key.revoked", {"keys": keys}))
    with pytest.raises(ValueError, match="revoked"):
        world.case.record(lambda: Draft("key.added", {"keys": keys}))
    world.note()


# -- torn last entries -----------------------------------------------------------------------------


def tear(world, seq=2):
    """Leave the front of a valid entry `seq`, as an interrupted write in place would."""
    other = world.copy(world.root.parent / "other")
    other.note("was being written")
    raw = other.entry(seq).read_bytes()
    world.entry(seq).write_bytes(raw[: len(raw) // 2])
    return raw[: len(raw) // 2]


@pytest.fixture
def no_links(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)


def test_without_hard_links_a_torn_last_entry_is_set_aside_and_recorded(tmp_path, no_links):
    world = kit.make_world(tmp_path / "store")
    world.note()
    torn = tear(world)
    case = Case(Store(LocalBackend(world.root), kit.make_scribe(seed="again")), CASE)
    case.ledger.append(kit.make_scribe(seed="new"), AUTHORITY, lambda: note("after"))
    events = Ledger(LocalBackend(world.root), CASE).sync()
    assert [e.event.action for e in events][2:] == ["recovery.noted", "review.noted"]
    data = events[2].event.data
    assert (world.root / data["moved_to"]).read_bytes() == torn
    assert data["sha256"] == hashlib.sha256(torn).hexdigest()
    assert world.verify().findings == []


def test_without_hard_links_only_a_torn_last_entry_is_set_aside(tmp_path, no_links):
    world = kit.make_world(tmp_path / "store")
    for _ in range(3):
        world.note()
    whole = world.entry(2).read_bytes()
    for at, body in ((2, whole[:99]), (3, whole)):
        damaged = world.copy(tmp_path / f"d{at}")
        kit.rewrite(damaged.entry(at), body)
        with pytest.raises(LedgerError):
            damaged.case.ledger.append(kit.make_scribe(), AUTHORITY, note)
        assert damaged.entry(at).read_bytes() == body


@pytest.mark.parametrize("size", [0, 1, 300])
@pytest.mark.parametrize("what", ["entry 0", "entry key", "checkpoint key", "store.json"])
def test_without_hard_links_a_case_whose_opening_was_torn_can_be_opened(
    tmp_path, no_links, what, size
):
    whole = kit.make_world(tmp_path / "whole")
    keys = f"cases/{CASE}/keys"
    order = ["store.json", f"{keys}/{ENTRY.public.kid}.pem", f"{keys}/{CHECKPOINT.public.kid}.pem",
             f"cases/{CASE}/ledger/{0:016d}.note"]  # fmt: skip
    at = ["store.json", "entry key", "checkpoint key", "entry 0"].index(what)
    for name in order[: at + 1]:
        body = (whole.root / name).read_bytes()
        path = tmp_path / "store" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        torn = body[: min(size, len(body) - 1)]
        path.write_bytes(torn if name == order[at] else body)
    world = kit.make_world(tmp_path / "store", scribe=kit.make_scribe(seed="again"))
    opened, noted = (logged.event for logged in Ledger(LocalBackend(world.root), CASE).sync())
    assert (opened.action, noted.action) == ("case.opened", "recovery.noted")
    assert (world.root / noted.data["moved_to"]).read_bytes() == torn
    assert noted.data["sha256"] == hashlib.sha256(torn).hexdigest()
    assert noted.data["moved_to"].endswith(order[at])
    assert world.verify().findings == []


def test_without_hard_links_only_what_is_torn_is_set_aside_when_a_case_is_opened(
    tmp_path, no_links
):
    """A store.json that a case relies on, another key, an entry 0 that is whole or followed."""

    def refused(damage, error, match):
        world = kit.make_world(tmp_path / "store")
        world.note()
        damage(world)
        before = kit.tree(world.root)
        with pytest.raises(error, match=match):
            kit.make_world(world.root, scribe=kit.make_scribe(seed="again"))
        assert kit.tree(world.root) == before
        shutil.rmtree(world.root)

    def tear_off(path):
        kit.rewrite(path, path.read_bytes()[:20])

    def other_key(world):
        world.entry(1).unlink()
        world.entry(0).unlink()
        kit.rewrite(world.folder / "keys" / f"{ENTRY.public.kid}.pem", SECOND.public.pem())

    refused(lambda _world: None, AlreadyExistsError, "exists in")
    refused(lambda w: tear_off(w.root / "store.json"), IntegrityError, "store.json is malformed")
    refused(lambda w: tear_off(w.entry(0)), LedgerError, "ledger entry 0")
    refused(other_key, IntegrityError, "holds the key")


def test_with_hard_links_a_torn_entry_0_is_an_error_and_stays(world):
    kit.rewrite(world.entry(0), world.entry(0).read_bytes()[:100])
    with pytest.raises(LedgerError):
        kit.make_world(world.root)
    assert len(world.entry(0).read_bytes()) == 100


def test_with_hard_links_a_torn_entry_is_an_error_and_stays(world):
    world.note()
    torn = tear(world)
    with pytest.raises(LedgerError) as caught:
        Case(world.store, CASE).ledger.append(kit.make_scribe(), AUTHORITY, note)
    assert caught.value.position == 2
    assert world.entry(2).read_bytes() == torn
    assert world.verify().outcome == "broken"


@pytest.mark.chaos
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_on_a_real_file_system_without_hard_links(tmp_path, need_tool):
    image, place = tmp_path / "fs.img", tmp_path / "mnt"
    place.mkdir()
    with image.open("wb") as f:
        f.truncate(64 << 20)
    subprocess.run([need_tool("mkfs.vfat"), image], check=True, capture_output=True)
    mounted = subprocess.run(
        [need_tool("mount"), "-t", "vfat", "-o", "loop", image, place],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip(f"this kernel mounts no vfat: {mounted.stderr.splitlines()[0]}")
    try:
        world = kit.make_world(place / "store")
        assert not world.store.backend.atomic_create
        world.note()
        raw = world.entry(1).read_bytes()
        world.entry(2).write_bytes(raw[:200])
        Ledger(LocalBackend(world.root), CASE).append(kit.make_scribe(seed="n"), AUTHORITY, note)
        kit.fill(world)
        assert world.verify().findings == []
        actions = [e.action for e in world.case.ledger.events]
        assert actions[2] == "recovery.noted"
        assert len(list((place / "store" / "quarantine").iterdir())) == 1
    finally:
        subprocess.run(["umount", place], check=True)


# -- what a key folder may hold --------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [lambda pem: pem + b"\n", lambda pem: b"# mine\n" + pem,
     lambda pem: pem.replace(b"\n", b"\r\n"), lambda pem: pem + b"x" * 5000,
     lambda _pem: SECOND.public.pem(), lambda _pem: b""],
    ids=["newline", "comment", "crlf", "large", "substituted", "empty"],
)  # fmt: skip
def test_a_key_file_that_is_not_canonical_is_an_integrity_error(world, change):
    path = world.folder / "keys" / f"{CHECKPOINT.public.kid}.pem"
    kit.rewrite(path, change(path.read_bytes()))
    with pytest.raises(IntegrityError, match="keys/"):
        Ledger(world.store.backend, CASE).sync()


def test_one_junk_file_among_the_keys_stops_no_command_but_verify_names_it(world):
    (world.folder / "keys" / "a.pem").write_text("x")
    world.note()
    case = Store(LocalBackend(world.root), world.scribe).case(kit.CASE)
    assert len(case.ledger.entries) == 2
    assert "keys/a.pem" in str(world.verify().findings[0])
