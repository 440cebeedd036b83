# SPDX-License-Identifier: Apache-2.0
"""What a resume need not read again, and what it must."""

from __future__ import annotations

import json

import pytest

from evidence_store.digest import LinearDigest, segment_name
from evidence_store.errors import IntegrityError, SourceChangedError
from evidence_store.item import Gap
from evidence_store.model import canonical
from evidence_store.transfer.resume import Noted, ResumeRecord
from tests.evidence_store.kit import SEGMENT, FakeImage, make_world, pattern

ABOUT = {"key": "k", "segment_size": 1}
NOTED = Noted("a" * 64, [Gap(offset=1, length=2, error="bad")])


class Steady(FakeImage):
    """An image that cannot change, filled at once; fails at segment `until` and beyond."""

    immutable = True

    def __init__(self, data, until=1 << 30):
        super().__init__(data)
        self.until = until
        self.filled = []

    def fill(self, view, offset, stop):
        index = offset // SEGMENT
        if index >= self.until:
            raise ConnectionError("gone")
        self.filled.append(index)
        view[:] = self.data[offset : offset + len(view)]
        return [(0, len(view))], []


@pytest.fixture
def world(tmp_path):
    world = make_world(tmp_path / "store")
    world.store.resume = tmp_path / "resume"
    return world


def take(world, source):
    return world.case.ingest("disk", source, segment_size=SEGMENT, workers=1, linear=True)


DATA = pattern(5 * SEGMENT + 100)


def test_a_source_that_cannot_change_is_read_once(world):
    with pytest.raises(ConnectionError):
        take(world, Steady(DATA, until=3))
    second = Steady(DATA)
    taken = take(world, second)
    assert second.filled == [3, 4, 5]
    digest = LinearDigest()
    digest.update(DATA)
    assert taken.manifest.content == digest.results()
    assert [e.event.data["reused_objects"] for e in world.case.ledger.entries
            if e.event.action == "item.acquired"] == [3]  # fmt: skip


@pytest.mark.parametrize("ledger", ["says the size", "was begun when there was one size"])
def test_what_was_begun_goes_on_in_the_segments_it_was_begun_with(world, monkeypatch, ledger):
    if ledger != "says the size":
        monkeypatch.setattr("evidence_store.case.SEGMENT_BYTES", SEGMENT)
        monkeypatch.setattr("evidence_store.ingest.SEGMENT_BYTES", SEGMENT)
    with pytest.raises(ConnectionError):
        take(world, Steady(DATA, until=3))
    entries = [e.event for e in world.case.ledger.entries]
    said = next(e.data for e in entries if e.action == "item.identified")
    assert ("segment_size" in said) == (ledger == "says the size")
    second = Steady(DATA)
    taken = world.case.ingest("disk", second, segment_size=SEGMENT // 2, workers=1)
    assert taken.resumed
    assert second.filled == [3, 4, 5]
    assert taken.manifest.segment_size == SEGMENT
    anew = world.case.ingest("disk", Steady(DATA), segment_size=SEGMENT // 2, again=True)
    assert anew.manifest.segment_size == SEGMENT // 2
    assert anew.manifest.content == taken.manifest.content


def test_a_source_that_may_change_is_read_again_and_compared(world):
    class Changing(Steady):
        immutable = False

    with pytest.raises(ConnectionError):
        take(world, Changing(DATA, until=3))
    assert not world.store.resume.exists()
    second = Changing(DATA)
    take(world, second)
    assert second.filled == [0, 1, 2, 3, 4, 5]


def test_a_store_that_keeps_no_notes_reads_again(world):
    world.store.resume = None
    with pytest.raises(ConnectionError):
        take(world, Steady(DATA, until=3))
    second = Steady(DATA)
    take(world, second)
    assert second.filled == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("change", [lambda b: bytes(len(b)), lambda b: b[:-1], lambda b: b + b"x"])
def test_a_stored_segment_that_differs_from_its_note_is_read_again_and_compared(world, change):
    with pytest.raises(ConnectionError):
        take(world, Steady(DATA, until=3))
    path = world.folder / "items/E0001/data" / segment_name(1)
    path.chmod(0o600)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(SourceChangedError, match=segment_name(1)):
        take(world, Steady(DATA))


def test_a_segment_whose_note_was_written_and_whose_store_was_not_is_read(world):
    with pytest.raises(ConnectionError):
        take(world, Steady(DATA, until=3))
    (world.folder / "items/E0001/data" / segment_name(2)).unlink()
    second = Steady(DATA)
    take(world, second)
    assert second.filled == [2, 3, 4, 5]


def test_a_store_cannot_choose_where_notes_are_written(world, tmp_path):
    path = world.root / "store.json"
    said = json.loads(path.read_bytes())
    path.chmod(0o600)
    path.write_bytes(canonical(said | {"store_id": "../elsewhere"}) + b"\n")
    with pytest.raises(IntegrityError, match="store id"):
        take(world, Steady(DATA))
    assert not (tmp_path / "elsewhere").exists()


def test_notes_come_back_as_they_were_made(tmp_path):
    path = tmp_path / "a" / "b.jsonl"
    record = ResumeRecord(path, ABOUT)
    record.add(segment_name(7), NOTED)
    record.close(done=False)
    assert path.stat().st_mode & 0o777 == 0o600
    again = ResumeRecord(path, ABOUT)
    assert again.get(segment_name(7)) == NOTED
    again.close(done=False)
    assert ResumeRecord(path, ABOUT).get(segment_name(7)) == NOTED


@pytest.mark.parametrize("about", [{"key": "other", "segment_size": 1}, {}])
def test_notes_about_another_source_are_dropped(tmp_path, about):
    path = tmp_path / "b.jsonl"
    record = ResumeRecord(path, ABOUT)
    record.add(segment_name(7), NOTED)
    record.close(done=False)
    assert ResumeRecord(path, about).get(segment_name(7)) is None
    assert ResumeRecord(path, ABOUT).get(segment_name(7)) is None


@pytest.mark.parametrize(
    "line",
    [
        b"", b"\xff", b"[]", b"{}", b"[" * 100_000, b'{"name": "../x", "sha256": "", "gaps": []}',
        b'{"name": "0000000000000007", "sha256": "zz", "gaps": []}',
        b'{"name": "0000000000000007", "sha256": "%s", "gaps": [{"offset": -1}]}' % (b"a" * 64),
        b'{"name": "0000000000000007", "sha256": "%s"}' % (b"a" * 64),
    ],
    ids=range(9),
)  # fmt: skip
def test_malformed_notes_are_of_no_effect(tmp_path, line):
    path = tmp_path / "b.jsonl"
    record = ResumeRecord(path, ABOUT)
    record.add(segment_name(8), NOTED)
    record.close(done=False)
    path.write_bytes(path.read_bytes() + line + b"\n" + line)
    again = ResumeRecord(path, ABOUT)
    assert again.get(segment_name(7)) is None
    assert again.get(segment_name(8)) == NOTED


def test_a_place_that_cannot_be_written_keeps_no_notes(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    record = ResumeRecord(tmp_path / "file" / "b.jsonl", ABOUT)
    record.add(segment_name(7), NOTED)
    assert record.get(segment_name(7)) is None
    record.close(done=True)


def test_a_link_in_its_place_is_not_followed(tmp_path):
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    (tmp_path / "b.jsonl").symlink_to(target)
    ResumeRecord(tmp_path / "b.jsonl", ABOUT).close(done=False)
    assert target.read_bytes() == b"precious"
