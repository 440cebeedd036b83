# SPDX-License-Identifier: Apache-2.0
"""Items from identification to read-back: gaps, changes, interruptions, full disks, wrong hands."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from acquisition.source import open_source
from evidence_store.backend import LocalBackend
from evidence_store.checkpoint import LastSeen
from evidence_store.digest import Range, segment_name
from evidence_store.errors import (
    BusyError,
    CaseNotFoundError,
    IntegrityError,
    ItemNotFoundError,
    SourceChangedError,
    StoreError,
    StoreFullError,
    StoreNotFoundError,
)
from evidence_store.ledger import Draft
from evidence_store.store import Case, Store, check_case_id, read_store_id
from tests.evidence_store import kit
from tests.evidence_store.kit import CASE, SEGMENT, FakeImage, FakeSet, FakeStream, pattern


def ingest(world, source, kind="disk", **options):
    return world.case.ingest(kind, source, segment_size=SEGMENT, **options)


def actions(world):
    return [logged.event.action for logged in Case(world.store, CASE).ledger.sync()]


def data_files(world, item="E0001"):
    return kit.tree(world.folder / "items" / item / "data")


# -- the whole way ---------------------------------------------------------------------------------


def test_an_image_is_identified_started_acquired_verified(world):
    data = pattern(3 * SEGMENT + 5)
    taken = ingest(world, FakeImage(data), digests=["md5"], facts={"why": "theft"})
    assert (taken.item_id, taken.existing, taken.resumed, taken.read_back) == (
        "E0001", False, False, True)  # fmt: skip
    assert actions(world) == [
        "case.opened", "item.identified", "acquire.started", "item.acquired", "item.verified",
    ]  # fmt: skip
    manifest = taken.manifest
    assert manifest.result == "ok"
    assert manifest.content == {n: hashlib.new(n, data).hexdigest() for n in ("sha256", "md5")}
    assert manifest.source == {"text": "laptop 7", "type": "fake", "serial": "S1"}
    assert manifest.parameters["why"] == "theft"
    with world.store.case(CASE).open("E0001") as image:
        assert image.read() == data
        image.seek(-7, os.SEEK_END)
        assert image.read(3) == data[-7:-4]
    world.seal()
    assert world.verify().outcome == "clean"


def test_the_recorded_digests_are_those_of_the_files(world):
    ingest(world, FakeImage(pattern(SEGMENT)))
    acquired = next(e for e in world.case.ledger.events if e.action == "item.acquired")
    for stored in acquired.objects:
        if stored.as_ == "stored":
            body = (world.folder / stored.uri).read_bytes()
            assert (stored.size, stored.sha256) == (len(body), hashlib.sha256(body).hexdigest())


def test_a_file_set_is_read_back_by_name(world):
    taken = ingest(world, FakeSet({b"a": b"1", b"b": b"22"}), "logs")
    assert taken.manifest.layout == "set"
    assert taken.manifest.content is None
    assert "own digest" in taken.manifest.content_absent
    objects = world.case.objects("E0001")
    fd = objects.open_object(segment_name(1))
    assert os.pread(fd, 10, 0) == b"22"
    os.close(fd)
    with pytest.raises(ItemNotFoundError, match="file set"):
        world.case.open("E0001")
    assert world.verify().findings == []


def test_a_large_file_of_a_set_is_given_from_its_start(world):
    """It is hashed in pieces of 4 MiB; what is read next is the whole, not its last piece."""
    body = pattern(9 << 20)
    ingest(world, FakeSet({b"large": body}), "logs")
    with os.fdopen(world.case.open_member("E0001", "large"), "rb") as f:
        assert f.read() == body


def flip(path, at):
    path.chmod(0o600)
    with path.open("r+b") as f:
        byte = os.pread(f.fileno(), 1, at)[0]
        os.pwrite(f.fileno(), bytes([byte ^ 1]), at)


def test_a_segment_changed_after_its_first_reading_is_refused_when_opened_again(world):
    small = 4096
    world.case.ingest("disk", FakeImage(pattern(66 * small)), segment_size=small)
    segment = world.folder / "items/E0001/data" / segment_name(0)
    with world.case.open("E0001") as image:
        assert image.pread(10, 0) == pattern(10)
        for index in range(1, 66):  # more than stay open, so that the first is closed
            image.pread(1, index * small)
        flip(segment, 5)
        with pytest.raises(IntegrityError, match=f"E0001/data/{segment_name(0)} is not what was"):
            image.pread(10, 0)


def test_a_replaced_object_is_hashed_again_and_a_touched_one_stays_good(world):
    ingest(world, FakeImage(pattern(SEGMENT)))
    segment = world.folder / "items/E0001/data" / segment_name(0)
    objects = world.case.objects("E0001")
    os.close(objects.open(0))
    os.utime(segment, ns=(1, 1))
    os.close(objects.open(0))
    body = bytearray(segment.read_bytes())
    body[7] ^= 1
    segment.rename(segment.with_suffix(".old"))
    segment.write_bytes(body)
    os.utime(segment, ns=(1, 1))
    with pytest.raises(IntegrityError, match="is not what was acquired"):
        objects.open(0)


def test_an_unchanged_object_is_hashed_once(world, monkeypatch):
    ingest(world, FakeImage(pattern(SEGMENT)))
    objects = world.case.objects("E0001")
    os.close(objects.open(0))
    monkeypatch.setattr("evidence_store.item.sha256_of_fd", lambda _fd: pytest.fail("hashed again"))
    os.close(objects.open(0))


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (FakeImage(b""), "the source is empty"),
        (FakeImage(bytes(3 * SEGMENT)), "every byte of the source is zero"),
        (FakeImage(bytes(9), holes=[(0, 9)]), "every byte of the source is zero"),
        (FakeStream(b""), "the source is empty"),
        (FakeSet({}), "the source is empty"),
    ],
    ids=["empty", "zeros", "hole", "stream", "set"],
)
def test_a_source_of_nothing_is_partial_with_a_note(world, source, why):
    taken = ingest(world, source)
    assert taken.manifest.result == "partial"
    assert taken.manifest.notes == [why]
    assert world.case.state.items["E0001"].state == "partial"
    world.seal()
    assert world.verify().outcome == "clean"


def test_unreadable_ranges_are_in_manifest_and_ledger(world):
    taken = ingest(world, FakeImage(pattern(4 * SEGMENT), bad=[(SEGMENT, SEGMENT), (9, 1)]))
    manifest = taken.manifest
    assert manifest.result == "partial"
    assert (manifest.unreadable_bytes, manifest.unreadable_ranges) == (SEGMENT + 4096, 2)
    assert [g.model_dump() for g in manifest.unreadable] == [
        {"offset": 0, "length": 4096, "error": "Input/output error"},
        {"offset": SEGMENT, "length": SEGMENT, "error": "Input/output error"},
    ]
    acquired = next(e for e in world.case.ledger.events if e.action == "item.acquired")
    assert acquired.result == "partial"
    assert acquired.data["unreadable_bytes"] == SEGMENT + 4096
    assert segment_name(1) not in data_files(world)
    assert world.case.segments(manifest).unreadable == [Range(0, 4096), Range(SEGMENT, SEGMENT)]
    assert world.verify().findings == []


def overwrite(path):
    with path.open("r+b") as f:
        f.write(b"!")


def test_a_source_written_shortened_or_replaced_while_read_is_partial(world, tmp_path):
    for n, (disturb, why) in enumerate(
        [
            (overwrite, "was written to while it was read"),
            (lambda p: os.truncate(p, SEGMENT + 10), "size was"),
            (lambda p: (p.rename(p.with_suffix(".old")), p.write_bytes(b"other")),
             "another file stands at its path"),
            (lambda p: p.unlink(), "is no longer at its path"),
        ]
    ):  # fmt: skip
        path = tmp_path / f"disk{n}.img"
        path.write_bytes(pattern(4 * SEGMENT))
        os.utime(path, (1, 1))
        source = open_source(str(path), "disk")
        real, once = source.readinto, []

        def readinto(view, offset, real=real, once=once, path=path, disturb=disturb):
            if offset >= SEGMENT and not once:
                once.append(1)
                disturb(path)
            return real(view, offset)

        source.readinto = readinto
        taken = ingest(world, source, workers=1)
        assert taken.manifest.result == "partial"
        assert why in " ".join(taken.manifest.source_changes)
        if "size" in why:
            assert taken.manifest.unreadable_bytes == 3 * SEGMENT - 10
    assert world.verify().findings == []


def test_parents_and_next_ids(world):
    ingest(world, FakeImage(b"1"))
    taken = ingest(world, FakeSet({b"x": b"y"}), "result", parents=["E0001"])
    assert taken.item_id == "E0002"
    assert world.case.state.items["E0002"].parents == ["E0001"]
    world.case.record(lambda: Draft("item.identified", {"item": "E0007", "data": {"kind": "disk"}}))
    assert ingest(world, FakeImage(b"2", serial="S2")).item_id == "E0008"


def test_a_later_entry_cannot_hide_or_replace_an_item(world):
    ingest(world, FakeImage(pattern(SEGMENT)))
    kept = world.case.item("E0001").manifest_sha256
    world.case.record(lambda: Draft("item.identified", {"item": "E0001", "data": {"kind": "logs"}}))
    world.case.record(lambda: Draft("item.acquired", {"item": "E0001", "objects": []}))
    record = world.store.case(CASE).item("E0001")
    assert (record.kind, record.manifest_sha256, record.state) == ("disk", kept, "complete")


# -- again, existing, at once ----------------------------------------------------------------------


def test_a_source_that_is_complete_is_not_taken_twice_unless_asked(world):
    source = FakeImage(pattern(2 * SEGMENT))
    first = ingest(world, source)
    before, size = kit.tree(world.root), len(world.case.ledger.entries)
    second = ingest(world, source)
    assert (second.existing, second.item_id, second.manifest) == (True, "E0001", first.manifest)
    assert kit.tree(world.root) == before
    assert len(world.case.ledger.entries) == size
    third = ingest(world, source, again=True)
    assert (third.existing, third.item_id) == (False, "E0002")
    assert third.manifest.image_root == first.manifest.image_root
    assert ingest(world, FakeImage(pattern(2 * SEGMENT), text="other")).item_id == "E0003"
    assert world.verify().findings == []


def test_a_stream_is_always_a_new_item(world):
    assert ingest(world, FakeStream(b"x")).item_id == "E0001"
    assert ingest(world, FakeStream(b"x")).item_id == "E0002"


def test_two_ingests_of_one_source_at_once(world):
    started, go_on = threading.Event(), threading.Event()

    def hold(_offset):
        started.set()
        go_on.wait(20)

    slow = threading.Thread(
        target=ingest, args=(world, FakeImage(pattern(SEGMENT), on_read=hold)), daemon=True
    )
    slow.start()
    assert started.wait(20)
    other = Case(Store(LocalBackend(world.root), kit.make_scribe(seed="other")), CASE)
    try:
        with pytest.raises(BusyError, match="another process"):
            other.ingest("disk", FakeImage(pattern(SEGMENT)), segment_size=SEGMENT)
    finally:
        go_on.set()
        slow.join()
    found = other.ingest("disk", FakeImage(pattern(SEGMENT)), segment_size=SEGMENT)
    assert (found.existing, found.item_id) == (True, "E0001")
    assert actions(world).count("acquire.started") == 1


# -- interruptions ---------------------------------------------------------------------------------

CHILD = """
import os, sys
from pathlib import Path
from evidence_store.backend import LocalBackend
from evidence_store.store import Store
from acquisition.source import open_source
from tests.evidence_store import kit
class Dying(LocalBackend):
    def create(self, key, body, **options):
        if key.endswith(sys.argv[3]):
            os.kill(os.getpid(), 9)
        return super().create(key, body, **options)
store = Store(Dying(Path(sys.argv[1])), kit.make_scribe(seed=sys.argv[3]))
store.case(kit.CASE).ingest(sys.argv[4], open_source(sys.argv[2], sys.argv[4]), segment_size=65536,
                            workers=1)
"""


def run_and_die(world, source, at, kind="disk"):
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(world.root), str(source), at, kind], check=False
    )
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("kind", "at"),
    [("disk", segment_name(0)), ("disk", segment_name(5)), ("disk", "segments.sha256"),
     ("disk", "manifest.json"), ("disk", "0000000000000003.note"), ("logs", segment_name(1)),
     ("logs", "members.jsonl"), ("logs", "manifest.json")],
)  # fmt: skip
def test_after_a_kill_the_same_ingest_completes(world, tmp_path, kind, at):
    source = tmp_path / "source"
    if kind == "disk":
        source.write_bytes(pattern(8 * SEGMENT) + bytes(SEGMENT) + pattern(10))
    else:
        source.mkdir()
        for n in range(3):
            (source / f"{n}.log").write_bytes(pattern(2000, n + 1))
    run_and_die(world, source, at, kind)
    verdict = world.verify()
    assert verdict.findings == []
    assert any("no end recorded" in n.text for n in verdict.notes)
    already = {name: (world.folder / "items/E0001" / name).stat().st_ino
               for name in kit.tree(world.folder / "items" / "E0001")}  # fmt: skip
    world.case.refresh()
    taken = world.case.ingest(kind, open_source(str(source), kind), segment_size=SEGMENT)
    assert (taken.item_id, taken.resumed, taken.existing) == ("E0001", True, False)
    for name, inode in already.items():  # nothing was stored again
        assert (world.folder / "items/E0001" / name).stat().st_ino == inode
    record = world.case.item("E0001")
    assert [i.outcome for i in record.intents] == ["resumed", "acquired"]
    reused = record.acquired.data["reused_objects"]
    assert reused == sum(name.startswith("data/") for name in already)
    if kind == "disk":
        assert taken.manifest.content["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    fresh = kit.make_world(tmp_path / "fresh")
    whole = fresh.case.ingest(kind, open_source(str(source), kind), segment_size=SEGMENT)
    assert whole.manifest.image_root == taken.manifest.image_root
    world.seal()
    assert world.verify().outcome == "clean"


def test_a_resume_of_a_changed_source_overwrites_nothing(world, tmp_path):
    source = tmp_path / "disk.img"
    source.write_bytes(pattern(8 * SEGMENT))
    run_and_die(world, source, segment_name(5))
    before = data_files(world)
    with source.open("r+b") as f:
        f.write(b"changed")
    world.case.refresh()
    with pytest.raises(SourceChangedError, match="nothing was overwritten") as caught:
        ingest(world, open_source(str(source), "disk"))
    assert caught.value.exit_code == 12
    after = data_files(world)
    assert {name: after[name] for name in before} == before
    assert actions(world)[-1] == "acquire.failed"
    verdict = world.verify()
    assert verdict.findings == []
    assert any("acquisition failed" in n.text for n in verdict.notes)


def test_without_hard_links_a_torn_segment_is_set_aside_and_stored_again(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    world = kit.make_world(tmp_path / "store")
    source = tmp_path / "disk.img"
    source.write_bytes(pattern(4 * SEGMENT))
    run_and_die(world, source, segment_name(2))
    torn = world.folder / "items/E0001/data" / segment_name(1)
    torn.chmod(0o600)
    torn.write_bytes(pattern(4 * SEGMENT)[SEGMENT : SEGMENT + 1000])
    world.case.refresh()
    ingest(world, open_source(str(source), "disk"))
    world.seal()
    assert world.verify().outcome == "clean"
    (kept,) = (world.root / "quarantine").rglob(segment_name(1))
    assert kept.stat().st_size == 1000


def test_an_acquisition_that_failed_is_continued(world):
    class Sometimes(LocalBackend):
        def create(self, key, body, **options):
            if key.endswith(segment_name(2)):
                raise StoreFullError("cannot store: No space left on device")
            return super().create(key, body, **options)

    case = Case(Store(Sometimes(world.root), kit.make_scribe(seed="f")), CASE)
    with pytest.raises(StoreFullError):
        case.ingest("disk", FakeImage(pattern(4 * SEGMENT)), segment_size=SEGMENT)
    failed = case.ledger.events[-1]
    assert (failed.action, failed.result) == ("acquire.failed", "failed")
    assert "No space left" in failed.note
    world.case.refresh()
    assert ingest(world, FakeImage(pattern(4 * SEGMENT))).resumed
    assert world.case.item("E0001").state == "complete"


def test_an_error_after_the_last_entry_was_written_does_not_call_it_failed(world):
    class LostDirectory(LocalBackend):
        def create(self, key, body, **options):
            stored = super().create(key, body, **options)
            if key.endswith("0000000000000003.note"):
                raise StoreError("cannot sync the folder: Input/output error")
            return stored

    case = Case(Store(LostDirectory(world.root), kit.make_scribe(seed="f")), CASE)
    with pytest.raises(StoreError):
        case.ingest("disk", FakeImage(pattern(SEGMENT)), segment_size=SEGMENT)
    assert actions(world)[-1] == "item.acquired"
    world.case.refresh()
    assert ingest(world, FakeImage(pattern(SEGMENT))).existing


def test_what_does_not_read_back_is_an_integrity_error_and_recorded(world, monkeypatch):
    class Rotten(LocalBackend):
        def create(self, key, body, **options):
            stored = super().create(key, body, **options)
            if key.endswith(f"data/{segment_name(1)}"):
                kit.flip(self.root / key, 77)
            return stored

    case = Case(Store(Rotten(world.root), kit.make_scribe(seed="r")), CASE)
    with pytest.raises(IntegrityError, match="does not read back"):
        case.ingest("disk", FakeImage(pattern(3 * SEGMENT)), segment_size=SEGMENT)
    last = case.ledger.events[-1]
    assert (last.action, last.result) == ("item.verified", "failed")
    assert world.verify(deep=False).outcome == "notes"
    assert world.verify(deep=True).outcome == "broken"


def test_without_read_back_the_manifest_says_so(world):
    taken = ingest(world, FakeImage(b"x"), read_back=False)
    assert not taken.read_back
    assert taken.manifest.parameters["read_back"] is False
    assert "item.verified" not in actions(world)


@pytest.mark.chaos
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_on_a_full_disk_nothing_breaks_and_the_ingest_goes_on_after(tmp_path, need_tool):
    place = tmp_path / "small"
    place.mkdir()
    mount = [need_tool("mount"), "-t", "tmpfs", "-o"]
    subprocess.run([*mount, "size=1m", "tmpfs", place], check=True)
    try:
        world = kit.make_world(place / "store")
        data = pattern(40 * SEGMENT)
        with pytest.raises(StoreFullError) as caught:
            ingest(world, FakeImage(data))
        assert "space" in caught.value.hint
        assert world.verify().findings == []
        subprocess.run([*mount, "remount,size=16m", "tmpfs", place], check=True)
        case = Store(LocalBackend(place / "store"), kit.make_scribe(seed="n")).case(CASE)
        taken = case.ingest("disk", FakeImage(data), segment_size=SEGMENT)
        assert taken.manifest.content["sha256"] == hashlib.sha256(data).hexdigest()
        case.seal(kit.CHECKPOINT)
        assert world.verify().outcome == "clean"
    finally:
        subprocess.run(["umount", place], check=True)


def test_in_the_wrong_hands_a_store_refuses_and_stays_as_it_is(tmp_path, as_nobody, world):
    import shutil
    import tempfile

    if os.geteuid() != 0:
        pytest.skip("needs root to make a store of somebody else")
    shared = tempfile.mkdtemp()
    try:
        os.chmod(shared, 0o755)  # noqa: PTH101
        root = os.path.join(shared, "store")  # noqa: PTH118
        shutil.copytree(world.root, root)
        subprocess.run(["chmod", "-R", "a+rX,go-w", root], check=True)
        code = (
            "import sys; from pathlib import Path; from tests.evidence_store import kit\n"
            "from evidence_store.backend import LocalBackend\n"
            "from evidence_store.errors import StoreError\n"
            "from evidence_store.store import Store\n"
            "case = Store(LocalBackend(Path(sys.argv[1])), kit.make_scribe()).case(kit.CASE)\n"
            "try: case.ingest('disk', kit.FakeImage(b'x'))\n"
            "except StoreError as e: print(e, '|', e.hint)\n"
            "print(kit.verify(Path(sys.argv[1])).outcome)"
        )
        before = kit.tree(root)
        done = subprocess.run(
            [*as_nobody, sys.executable, "-B", "-c", code, root],
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert "Permission denied | check who owns the store" in done.stdout, done.stderr
        assert done.stdout.endswith("notes\n"), done.stderr
        assert kit.tree(root) == before
    finally:
        shutil.rmtree(shared)


def test_memory_stays_small_whatever_the_size(tmp_path):
    """1 TiB, sparse, with default segments; measured in a process of its own."""
    disk = tmp_path / "disk.img"
    with disk.open("wb") as f:
        f.truncate(1 << 40)
        for at in (0, 300 << 20, (1 << 39) + 5, (1 << 40) - 9):
            f.seek(at)
            f.write(b"evidence!")
    code = (
        "import sys; from pathlib import Path; from tests.evidence_store import kit\n"
        "from acquisition.source import open_source\n"
        "world = kit.make_world(Path(sys.argv[1]))\n"
        "taken = world.case.ingest('disk', open_source(sys.argv[2], 'disk'), linear=False)\n"
        "assert taken.manifest.size == 1 << 40 and taken.manifest.stored_objects == 4, taken\n"
        "assert taken.manifest.content_absent\n"
        "with world.case.open('E0001') as f:\n"
        "    assert f.pread(20, (1 << 40) - 9) == b'evidence!'\n"
        "    assert f.pread(9, (1 << 39) + 5) == b'evidence!'\n"
        # not ru_maxrss: that counts what the parent had when it forked
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "store"), str(disk)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert int(done.stdout) < 300 * 1024


# -- stores and cases ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"x", b"[]", b"null", b"{}", b"[" * 4000, b"\xff",
        b'{"deployment":"local","layout":1,"store_id":5}\n',
        b'{"deployment":"local","layout":1.0,"store_id":"a"}\n',
        b'{"deployment":"local","layout":1, "store_id":"a"}\n',
        b'{"deployment":"local","layout":1,"store_id":"\\ud800"}\n',
        b'{"deployment":"local","extra":1,"layout":1,"store_id":"a"}\n',
        b'{"deployment":"local","layout":' + b"9" * 50 + b',"store_id":"a"}\n',
    ],
    ids=range(13),
)  # fmt: skip
def test_a_damaged_store_json_is_an_integrity_error(world, raw):
    kit.rewrite(world.root / "store.json", raw)
    with pytest.raises(IntegrityError):
        read_store_id(world.store.backend)
    verdict = world.verify(last_seen=LastSeen(world.root.parent / "seen"))
    assert [f.about for f in verdict.findings][:1] == ["store.json"]


def test_a_store_of_another_layout_is_not_read(world):
    body = json.loads((world.root / "store.json").read_bytes()) | {"layout": 2}
    raw = json.dumps(body, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    kit.rewrite(world.root / "store.json", raw)
    with pytest.raises(StoreError, match="layout 2"):
        world.store.case(CASE)


def test_what_is_not_there_is_named(world, tmp_path):
    with pytest.raises(StoreNotFoundError):
        Store(LocalBackend(tmp_path / "none")).case_ids()
    with pytest.raises(CaseNotFoundError):
        world.store.case("T-9")
    with pytest.raises(ItemNotFoundError):
        world.case.item("E0001")
    world.case.record(lambda: Draft("item.identified", {"item": "E0001", "data": {"kind": "disk"}}))
    with pytest.raises(ItemNotFoundError, match="identified, not stored"):
        world.case.manifest("E0001")


def test_a_store_opened_for_reading_writes_nothing(world):
    with pytest.raises(RuntimeError, match="reading only"):
        Store(LocalBackend(world.root)).case(CASE).record(lambda: Draft("review.noted"))


@pytest.mark.parametrize("case_id", ["", ".", "..", "-x", "a/b", "a b", "x" * 65, "a\n", "é"])
def test_case_ids_out_of_form_are_refused(case_id):
    with pytest.raises(ValueError, match="not a case id"):
        check_case_id(case_id)


@pytest.mark.parametrize("deployment", ["", "two words", "a+b", "a\n"])
def test_a_deployment_that_no_key_name_can_carry_is_refused(tmp_path, deployment):
    with pytest.raises(ValueError, match="key name"):
        kit.make_world(tmp_path / "store", deployment=deployment)
    assert not (tmp_path / "store").exists()


def test_cases_are_listed(world):
    world.store.create_case(
        "A_1.x", kit.AUTHORITY, deployment="local", checkpoint_key=kit.CHECKPOINT.public
    )
    assert world.store.case_ids() == ["A_1.x", CASE]


def test_case_ids_read_one_entry_of_a_case_and_list_no_objects(world, monkeypatch):
    for n in range(5):
        world.note(str(n))
    (world.root / "cases" / "no-ledger" / "items").mkdir(parents=True)
    looked, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: looked.append(path) or scandir(path))
    assert world.store.case_ids() == [CASE]
    assert looked == [world.root / "cases"]


def test_a_case_whose_first_entry_is_no_file_is_not_hidden(world):
    world.entry(0).rename(world.root / "aside")
    world.entry(0).symlink_to(world.root / "aside")
    assert world.store.case_ids() == [CASE]


@pytest.mark.parametrize("damage", ["flip", "delete", "short"])
def test_reading_a_damaged_segment_is_an_error_that_names_it(world, damage):
    ingest(world, FakeImage(pattern(3 * SEGMENT)))
    path = world.folder / "items/E0001/data" / segment_name(1)
    if damage == "flip":
        kit.flip(path, 12345)
    elif damage == "short":
        kit.rewrite(path, path.read_bytes()[:-1])
    else:
        path.unlink()
    with world.store.case(CASE).open("E0001") as image:
        assert image.pread(10, 0) == pattern(10)
        with pytest.raises((IntegrityError, ItemNotFoundError), match=segment_name(1)):
            image.pread(10, SEGMENT)


@pytest.mark.parametrize("line", [b"[]\n", b"{}\n", b"\xff\n", b'{"name": "x", "object": 7}\n'])
def test_members_of_no_form_are_an_integrity_error(filled, tmp_path, line):
    world = filled.copy(tmp_path / "world")
    kit.forge_item(world, "E0002", members=lambda body: body + line)
    case = world.store.case(CASE)
    with pytest.raises(IntegrityError, match="jsonl line 4"):
        list(case.members("E0002"))
    with pytest.raises(IntegrityError, match="jsonl line 4"):
        case.open_member("E0002", "etc/hosts")
