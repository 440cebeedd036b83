# SPDX-License-Identifier: Apache-2.0
"""Taking bytes: holes, zeros and unreadable ranges stay three things; nothing is overwritten."""

from __future__ import annotations

import hashlib
import random
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evidence_store.backend import LocalBackend, SparseBody
from evidence_store.digest import LinearDigest, Range, parse_segments, segment_name
from evidence_store.errors import SourceChangedError, StoreError
from evidence_store.transfer.fileset import take_set
from evidence_store.transfer.image import is_zero, read_runs, take_image
from tests.evidence_store.kit import SEGMENT, FakeImage, FakeSet, FakeStream, pattern

PREFIX = "cases/T-1/items/E0001"


@pytest.fixture
def backend(tmp_path):
    return LocalBackend(tmp_path / "store")


def take(backend, source, **options):
    return take_image(
        backend, PREFIX, source, linear=True, segment_size=SEGMENT, **options
    )  # fmt: skip


def stored(backend):
    return {s.key.rpartition("/")[2]: backend.read(s.key, 1 << 30)
            for s in backend.list(f"{PREFIX}/data")}  # fmt: skip


def test_holes_zero_blocks_and_data_are_told_apart(backend):
    data = pattern(SEGMENT) + bytes(3 * SEGMENT) + pattern(100)
    source = FakeImage(data, holes=[(SEGMENT, SEGMENT)])  # reading it would fail; the rest is read
    taken = take(backend, source)
    assert taken.segments.holes == [(1, 3)]
    assert taken.holes_bytes == 3 * SEGMENT
    assert taken.gaps == []
    assert set(stored(backend)) == {segment_name(0), segment_name(4)}
    assert taken.content == {"sha256": hashlib.sha256(data).hexdigest()}
    assert parse_segments(taken.segments.encode()) == taken.segments


def test_a_hole_smaller_than_a_segment_is_zeros_inside_it(backend):
    data = pattern(4096) + bytes(8192) + pattern(SEGMENT - 12288)
    taken = take(backend, FakeImage(data, holes=[(4096, 8192)]))
    assert taken.segments.holes == []
    assert stored(backend) == {segment_name(0): data}


def test_a_hole_behind_data_does_not_keep_what_lay_in_the_buffer(backend):
    data = b"".join(pattern(4096, n + 1) + bytes(SEGMENT - 4096) for n in range(9))
    holes = [(n * SEGMENT + 4096, SEGMENT - 4096) for n in range(9)]
    taken = take(backend, FakeImage(pattern(SEGMENT) * 4 + data, holes=[
        (4 * SEGMENT + a, n) for a, n in holes]))  # fmt: skip
    assert taken.content["sha256"] == hashlib.sha256(pattern(SEGMENT) * 4 + data).hexdigest()


@pytest.mark.parametrize(
    ("bad", "gaps"),
    [
        ([(5000, 1)], [(4096, 4096)]),
        ([(0, 1)], [(0, 4096)]),
        ([(3 * SEGMENT - 1, 2)], [(3 * SEGMENT - 4096, 8192)]),
        ([(SEGMENT, SEGMENT)], [(SEGMENT, SEGMENT)]),
        ([(0, 99 * SEGMENT)], [(0, 4 * SEGMENT + 1000)]),
        ([(4 * SEGMENT + 999, 1)], [(4 * SEGMENT, 1000)]),
        ([(8192, 4096), (16384, 4096)], [(8192, 4096), (16384, 4096)]),
    ],
    ids=range(7),
)
def test_unreadable_ranges_are_narrowed_to_4_kib(backend, bad, gaps):
    data = pattern(4 * SEGMENT + 1000)
    taken = take(backend, FakeImage(data, bad=bad))
    assert taken.segments.unreadable == [Range(*gap) for gap in gaps]
    assert [(g.offset, g.length) for g in taken.gaps] == gaps
    assert {g.error for g in taken.gaps} == {"Input/output error"}
    shown = bytearray(data)
    for offset, length in gaps:
        shown[offset : offset + length] = bytes(length)
    assert taken.content["sha256"] == hashlib.sha256(shown).hexdigest()
    for name, body in stored(backend).items():
        start = int(name, 16) * SEGMENT
        assert body == shown[start : start + SEGMENT]
    ends = [min((i + 1) * SEGMENT, len(data)) for i in range(5)]
    kept = [i for i in range(5) if not any(o <= i * SEGMENT and ends[i] <= o + n for o, n in gaps)]
    assert set(stored(backend)) == {segment_name(i) for i in kept}
    assert parse_segments(taken.segments.encode()) == taken.segments


@settings(max_examples=60)
@given(st.data())
def test_what_lay_in_a_buffer_never_shows_whatever_fails(data):
    size = data.draw(st.integers(1, 40_000))
    ranges = st.lists(st.tuples(st.integers(0, 40_000), st.integers(1, 9000)), max_size=3)
    bad, holes = data.draw(ranges), data.draw(ranges)
    content = bytearray(pattern(size))
    for offset, length in holes:
        content[offset : min(offset + length, size)] = bytes(max(0, min(length, size - offset)))
    source = FakeImage(bytes(content), bad=bad)
    source.next_data = lambda at: _after_holes(at, holes, size)
    buffer = bytearray(b"\xaa" * size)
    digest = LinearDigest()
    runs, gaps = read_runs(source, memoryview(buffer), 0, digest)
    again = LinearDigest()
    again.sparse(memoryview(buffer), runs)
    SparseBody(memoryview(buffer), runs).whole()
    assert digest.results() == again.results()
    assert digest.results()["sha256"] == hashlib.sha256(buffer).hexdigest()
    for gap in gaps:
        content[gap.offset : gap.offset + gap.length] = bytes(gap.length)
    assert buffer == content
    assert all(gap.length <= size for gap in gaps)
    for gap in gaps:  # nothing readable is given up beyond its own 4 KiB
        assert any(o < gap.offset + gap.length and gap.offset < o + n for o, n in bad)


def _after_holes(at, holes, size):
    while True:
        ends = [o + n for o, n in holes if o <= at < o + n]
        if not ends:
            return min(at, size)
        at = max(ends)


def test_a_source_that_ends_early_leaves_a_gap(backend):
    source = FakeImage(pattern(3 * SEGMENT))
    short = source.data[: SEGMENT + 100]
    source.readinto = lambda view, offset: _copy(view, short[offset : offset + len(view)])
    taken = take(backend, source)
    assert taken.segments.unreadable == [Range(SEGMENT + 100, 2 * SEGMENT - 100)]
    assert taken.gaps[0].error == "source ended early"


def _copy(view, part):
    view[: len(part)] = part
    return len(part)


@pytest.mark.parametrize("size", [0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 5 * SEGMENT + 77])
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_any_number_of_workers_gives_the_same_item(tmp_path, size, workers):
    data = bytearray(pattern(size))
    data[2 * SEGMENT : 3 * SEGMENT] = bytes(len(data[2 * SEGMENT : 3 * SEGMENT]))
    data = bytes(data)
    backend = LocalBackend(tmp_path)
    delays = random.Random(size)
    gate = threading.Lock()

    def shuffle(_offset):
        with gate:
            for _ in range(delays.randrange(2000)):
                pass

    taken = take(backend, FakeImage(data, on_read=shuffle), workers=workers, digests=["md5"])
    assert taken.content == {n: hashlib.new(n, data).hexdigest() for n in ("sha256", "md5")}
    assert taken.segments.size == size
    for name, body in stored(backend).items():
        start = int(name, 16) * SEGMENT
        assert body == data[start : start + SEGMENT]
        assert taken.segments.digests[name] == hashlib.sha256(body).hexdigest()
    one = take_image(LocalBackend(tmp_path / "one"), PREFIX, FakeImage(data), linear=False,
                     workers=1, segment_size=SEGMENT)  # fmt: skip
    assert one.segments.root == taken.segments.root
    assert one.content is None


@pytest.mark.parametrize("size", [0, 5, SEGMENT, 3 * SEGMENT, 3 * SEGMENT + 5])
def test_a_stream_gives_the_same_segments_as_a_file(tmp_path, size):
    data = pattern(size)
    from_stream = take(LocalBackend(tmp_path / "a"), FakeStream(data))
    from_file = take(LocalBackend(tmp_path / "b"), FakeImage(data))
    assert from_stream.segments == from_file.segments
    assert from_stream.content == from_file.content


def test_a_stream_that_fails_keeps_what_came_and_says_so(backend):
    taken = take(backend, FakeStream(pattern(5 * SEGMENT), piece=1000, fails_at=SEGMENT + 7000))
    assert taken.segments.size == SEGMENT + 7000
    assert taken.notes == [f"the stream failed at byte {SEGMENT + 7000}: Input/output error"]
    assert len(stored(backend)) == 2


def test_what_is_stored_is_compared_and_not_stored_again(backend):
    data = pattern(4 * SEGMENT)
    first = take(backend, FakeImage(data))
    assert (first.existing_objects, first.stored_objects) == (0, 4)
    before = stored(backend)
    again = take(backend, FakeImage(data))
    assert again.existing_objects == 4
    assert again.segments == first.segments
    other = data[:-1] + b"!"
    with pytest.raises(SourceChangedError, match="nothing was overwritten"):
        take(backend, FakeImage(other))
    with pytest.raises(SourceChangedError, match="no longer exist"):
        take(backend, FakeImage(data[: 2 * SEGMENT]))
    with pytest.raises(SourceChangedError, match="no longer exist"):
        take(backend, FakeImage(bytes(4 * SEGMENT)))
    assert stored(backend) == before


def test_the_error_of_a_worker_is_the_one_reported(tmp_path):
    class Failing(LocalBackend):
        def create(self, key, body, **options):
            if key.endswith(segment_name(7)):
                raise StoreError("the disk died")
            return super().create(key, body, **options)

    for workers in (1, 3):
        with pytest.raises(StoreError, match="the disk died"):
            take(
                Failing(tmp_path / str(workers)), FakeImage(pattern(40 * SEGMENT)), workers=workers
            )


def test_progress_ends_at_the_size(backend):
    seen = []
    data = pattern(SEGMENT) + bytes(2 * SEGMENT) + pattern(10)
    take(backend, FakeImage(data, holes=[(SEGMENT, 2 * SEGMENT)]), workers=1,
         progress=lambda done, total: seen.append((done, total)))  # fmt: skip
    assert max(seen) == (len(data), len(data))


@given(st.integers(0, 5000), st.integers(0, 5000))
def test_is_zero(size, at):
    body = bytearray(size)
    assert is_zero(memoryview(body))
    if at < size:
        body[at] = 1
        assert not is_zero(memoryview(body))


# -- file sets -------------------------------------------------------------------------------------


def test_a_file_set_keeps_names_and_reports_what_it_could_not_read(backend):
    files = {b"a": b"1", b"b\xff\n": b"", b"c": OSError(5, "Input/output error"), b"d": b"4" * 2500}
    taken = take_set(backend, PREFIX, FakeSet(files, left_out=["e: a pipe"]))
    assert taken.segments.segment_size == 0
    assert [hashlib.sha256(b).hexdigest() for b in (b"1", b"", b"4" * 2500)] == list(
        taken.segments.digests.values()
    )
    assert taken.segments.size == 2501
    assert taken.members.count == 4
    assert taken.notes == ["c: Input/output error", "e: a pipe"]
    lines = backend.read(f"{PREFIX}/members.jsonl", 1 << 20).splitlines()
    assert len(lines) == 4
    assert b'"name_hex": "62ff0a"' in lines[1]
    assert b'"error": "Input/output error"' in lines[2]
    assert sorted(stored(backend)) == [segment_name(i) for i in range(3)]


def test_a_set_is_resumed_file_by_file_and_a_changed_file_is_refused(backend):
    files = {b"a": b"1" * 3000, b"b": b"2", b"c": b"3"}
    backend.create(f"{PREFIX}/data/{segment_name(0)}", b"1" * 3000)
    taken = take_set(backend, PREFIX, FakeSet(files))
    assert (taken.existing_objects, taken.stored_objects) == (1, 3)
    before = stored(backend)
    with pytest.raises(SourceChangedError):
        take_set(backend, PREFIX, FakeSet({**files, b"b": b"X"}))
    with pytest.raises(SourceChangedError, match="no longer in the source"):
        take_set(backend, PREFIX, FakeSet({b"a": b"1" * 3000, b"b": b"2"}))
    with pytest.raises(SourceChangedError):
        take_set(backend, PREFIX, FakeSet({**files, b"c": OSError(5, "Input/output error")}))
    assert stored(backend) == before
