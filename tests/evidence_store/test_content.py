# SPDX-License-Identifier: Apache-2.0
"""What describes an item must agree with its bytes and with itself."""

from __future__ import annotations

import hashlib
import threading
import time

import pytest

from evidence_store.digest import LinearDigest
from evidence_store.verify import verify_case
from tests.evidence_store import kit
from tests.evidence_store.kit import SEGMENT

SEGMENT_0 = f"items/E0001/data/{0:016x}"


@pytest.fixture
def full(filled, tmp_path):
    return filled.copy(tmp_path / "full")


# -- what describes an item, signed again by somebody who has the keys -----------------------------


@pytest.mark.parametrize("lie", kit.LIES)
def test_an_item_whose_descriptions_contradict_each_other_is_found(full, lie):
    item, how, why, _ = kit.LIES[lie]
    kit.forge_item(full, item, **how)
    verdict = kit.assert_broken(full, why, deep=False)
    assert {f.about for f in verdict.findings} == {f"item {item}"}, verdict.findings


def test_an_item_signed_again_as_it_was_is_clean(full):
    """So that the lies above are found by what they say, not by how they are told."""
    kit.forge_item(full, "E0001")
    kit.forge_item(full, "E0002", members=lambda body: body)
    assert full.verify().outcome == "clean"


def test_a_file_set_without_files_is_clean(world):
    world.case.ingest("logs", kit.FakeSet({}))
    assert world.verify().findings == []


def test_folders_links_and_failed_files_of_a_set_name_no_object(world):
    world.case.ingest("logs", kit.FakeSet({b"a": b"1", b"b": OSError(5, "Input/output error")}))
    assert world.verify().findings == []


def test_a_line_of_members_without_end_is_a_few_findings(world, monkeypatch):
    """No line is read further than a line may be long, however long it is."""
    world.case.ingest("logs", kit.FakeSet({b"a": b"1"}))
    world.seal()
    monkeypatch.setattr("evidence_store.content.MAX_MEMBER_BYTES", 1000)
    monkeypatch.setattr("evidence_store.item.MAX_MEMBER_BYTES", 1000)
    kit.forge_item(world, "E0001", members=lambda _: b"x" * 100_000)
    verdict = kit.assert_broken(world, "line 1: is longer than 1000 bytes")
    assert any("more lines are wrong" in str(f) for f in verdict.findings)
    assert len(verdict.findings) < 15


def test_a_member_nested_without_end_is_a_finding(full):
    nested = b'{"name": ' + b"[" * 200_000 + b"}\n"
    kit.forge_item(full, "E0002", members=lambda body: body + nested)
    kit.assert_broken(full, "line 4: is not JSON")


# -- linear digests --------------------------------------------------------------------------------


def take(world, data, *, holes=(), bad=(), digests=()):
    source = kit.FakeImage(data, holes=list(holes), bad=list(bad))
    world.case.ingest("disk", source, segment_size=SEGMENT, digests=digests)
    world.seal()


def test_linear_recomputes_every_stated_digest_over_holes_and_gaps(full):
    verdict = full.verify(linear=True)
    assert (verdict.outcome, verdict.deep, verdict.linear_items) == ("clean", True, 1)
    assert verdict.hashed_bytes == full.verify(deep=True).hashed_bytes
    assert verdict.not_covered == []


@pytest.mark.parametrize(
    ("size", "hole"),
    [(0, None), (1, None), (SEGMENT, None), (3 * SEGMENT + 1, 3 * SEGMENT), (9 << 20, 1 << 20),
     (5 * SEGMENT, 0), (5 * SEGMENT, 4 * SEGMENT)],
)  # fmt: skip
def test_linear_of_images_of_many_forms(world, size, hole):
    data = kit.pattern(size)
    holes = []
    if hole is not None:
        length = min(SEGMENT, size - hole)
        data = data[:hole] + bytes(length) + data[hole + length :]
        holes = [(hole, length)]
    source = kit.FakeImage(data, holes=holes)
    segment = SEGMENT if size < 1 << 20 else 5 << 20  # more than one part a segment
    world.case.ingest("disk", source, segment_size=segment, digests=["md5", "sha1"])
    world.seal()
    verdict = world.verify(linear=True)
    assert (verdict.outcome, verdict.linear_items) == ("clean", 1)


def test_linear_with_a_segment_that_was_unreadable_as_a_whole(world):
    take(world, kit.pattern(4 * SEGMENT), bad=[(SEGMENT, 2 * SEGMENT)])
    assert world.verify(linear=True).outcome == "clean"


@pytest.mark.parametrize("name", ["sha256", "md5", "sha1"])
def test_a_false_linear_digest_is_found_by_linear_only(world, name):
    take(world, kit.pattern(2 * SEGMENT + 5), holes=[], digests=["md5", "sha1"])
    false = "0" * len(hashlib.new(name).hexdigest())
    kit.forge_item(world, "E0001", lambda m: m["content"].update({name: false}),
                   content=false if name == "sha256" else None)  # fmt: skip
    assert world.verify(deep=True).outcome == "clean"
    verdict = kit.assert_broken(world, f"its bytes in order have {name}", linear=True)
    assert len(verdict.findings) == 1


def test_a_linear_digest_of_an_unknown_kind_is_a_note(world):
    take(world, kit.pattern(SEGMENT))
    kit.forge_item(world, "E0001", lambda m: m["content"].update(crc32="00000000"))
    verdict = world.verify(linear=True)
    assert (verdict.outcome, verdict.linear_items) == ("notes", 1)
    assert "crc32" in str(verdict.notes[0])


@pytest.mark.parametrize("how", ["flip", "missing", "short", "long"])
def test_linear_names_the_segment_and_not_what_follows_from_it(full, how):
    path = full.folder / SEGMENT_0
    body = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        changed = bytes([body[0] ^ 1]) + body[1:]
        kit.rewrite(path, {"flip": changed, "short": body[:-1], "long": body + b"x"}[how])
    verdict = kit.assert_broken(full, "segment 0", linear=True)
    assert all("segment 0" in f.text for f in verdict.findings)
    assert verdict.linear_items == 0


def test_linear_tells_its_progress_through_holes(world):
    data = bytes(70 << 20)
    world.case.ingest("disk", kit.FakeImage(data, holes=[(0, len(data))]), segment_size=1 << 20)
    seen = []
    verify_case(world.case, linear=True, progress=lambda done, _total: seen.append(done))
    assert seen == [64 << 20, 70 << 20]


def test_linear_holds_few_buffers_however_slow_the_digest_is(world, monkeypatch):
    """Reading waits for the thread that digests in order, and no buffer is used too early."""
    monkeypatch.setattr("evidence_store.content._PART", 4096)
    take(world, kit.pattern(5 * SEGMENT))
    update = LinearDigest.update

    def slow(self, data):
        if threading.current_thread().name.startswith("linear"):
            time.sleep(0.001)
        update(self, data)

    monkeypatch.setattr(LinearDigest, "update", slow)
    assert world.verify(linear=True).outcome == "clean"


def test_a_verdict_says_what_it_did_not_cover(full):
    assert full.verify(deep=False).not_covered == [
        "content of images and large file sets (--deep does)", "linear digests (--linear does)",
    ]  # fmt: skip
    deep = full.verify(deep=True)
    assert "every object" in deep.covered
    assert deep.not_covered == ["linear digests (--linear does)"]
