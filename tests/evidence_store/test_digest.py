# SPDX-License-Identifier: Apache-2.0
"""Segment lists: canonical, complete, readable by sha256sum; digests of holes without reading."""

from __future__ import annotations

import hashlib
import subprocess
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evidence_store.digest import (
    LinearDigest,
    Range,
    SegmentList,
    hole_ranges,
    merge,
    parse_segments,
    segment_name,
)
from evidence_store.errors import IntegrityError

DIGEST = hashlib.sha256(b"x").hexdigest()


@st.composite
def images(draw):
    """A segment list whose every segment is stored, a hole, or unreadable as a whole."""
    segment_size = draw(st.sampled_from([1, 4, 4096]))
    kinds = draw(st.lists(st.sampled_from("shu"), max_size=12))
    last = draw(st.integers(1, segment_size)) if kinds else 0
    size = max(0, len(kinds) - 1) * segment_size + last

    def length(i):
        return min(segment_size, size - i * segment_size)

    gaps = [Range(i * segment_size, length(i)) for i, k in enumerate(kinds) if k == "u"]
    return SegmentList(
        size, segment_size,
        {segment_name(i): DIGEST for i, k in enumerate(kinds) if k == "s"},
        hole_ranges(i for i, k in enumerate(kinds) if k == "h"),
        merge(gaps),
    )  # fmt: skip


@given(images())
def test_encode_parse_round_trip(made):
    parsed = parse_segments(made.encode())
    assert parsed == made
    assert parsed.root == hashlib.sha256(made.encode()).hexdigest()


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9))))
def test_merge_covers_the_same_bytes_with_ranges_that_do_not_touch(pairs):
    merged = merge(Range(a, n) for a, n in pairs)
    assert {b for r in merged for b in range(r.offset, r.end)} == {
        b for a, n in pairs for b in range(a, a + n)
    }
    assert all(a.end < b.offset for a, b in pairwise(merged))


@given(st.sets(st.integers(0, 40)))
def test_hole_ranges_cover_the_same_segments(indices):
    runs = hole_ranges(indices)
    assert [i for first, n in runs for i in range(first, first + n)] == sorted(indices)


LINES = st.lists(
    st.sampled_from(
        ["# impound segments 1", "# size 8", "# segment-size 4", "# segment-size 0",
         f"{DIGEST}  data/{segment_name(0)}", f"{DIGEST}  data/{segment_name(1)}",
         f"{DIGEST}  data/../../x", f"{DIGEST}  data/x", f"# hole {segment_name(0)} 2",
         f"# hole {'f' * 16} 99999999999999999999", "# unreadable 0 8", "# unreadable 4 4", "x"]
    )
).map(lambda lines: ("\n".join(lines) + "\n").encode())  # fmt: skip


@given(st.binary(max_size=200) | LINES)
def test_arbitrary_bytes_parse_or_raise_integrity_error(raw):
    with suppress(IntegrityError):
        assert parse_segments(raw).encode() == raw


def listing(*lines, size=8, segment_size=4):
    head = f"# impound segments 1\n# size {size}\n# segment-size {segment_size}\n"
    return (head + "".join(f"{line}\n" for line in lines)).encode()


ZERO, ONE = (f"{DIGEST}  data/{segment_name(i)}" for i in (0, 1))


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (listing(ZERO), "account for segment 1"),
        (listing(ONE), "account for segment 0"),
        (listing(ZERO, ZERO, ONE), "canonical"),
        (listing(ONE, ZERO), "canonical"),
        (listing(f"# hole {segment_name(0)} 2", ZERO), "twice"),
        (listing(ZERO, ONE, f"# hole {segment_name(2)} 1"), "beyond"),
        (listing(ZERO, "# unreadable 5 3"), "account for segment 1"),
        (listing(ZERO, ONE, "# unreadable 4 2", "# unreadable 6 2"), "canonical"),
        (listing(ZERO, ONE, f"{DIGEST}  data/readme"), "no segment"),
        (listing(f"{DIGEST}  data/../x", segment_size=0), "no known form"),
        (listing(f"{DIGEST}  data//x", segment_size=0), "no known form"),
        (listing(size=-1, segment_size=0), "canonical"),
        (listing(size=10**30), "account"),
        (listing(f"# hole {'f' * 16} 1", size=10**30), "account"),
        (listing(ZERO, ONE)[:-1], "end"),
        (listing(ZERO, ONE, ""), "form"),
        (b"", "header"),
    ],
    ids=range(17),
)
def test_a_list_that_is_not_canonical_or_not_complete_is_refused(raw, why):
    with pytest.raises(IntegrityError, match=why):
        parse_segments(raw)


def test_sha256sum_reads_it(tmp_path, need_tool):
    made = SegmentList(
        12, 4, {segment_name(0): hashlib.sha256(b"abcd").hexdigest()}, [(1, 1)], [Range(8, 4)]
    )
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / segment_name(0)).write_bytes(b"abcd")
    (tmp_path / "segments.sha256").write_bytes(made.encode())
    command = [need_tool("sha256sum"), "-c", "--strict", "--quiet", "segments.sha256"]
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 0
    (tmp_path / "data" / segment_name(0)).write_bytes(b"abcx")
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True)
    assert done.returncode == 1


@given(st.lists(st.binary(max_size=9) | st.integers(0, 3 << 20), max_size=4))
def test_linear_digest_is_hashlib_s(parts):
    digest, whole = LinearDigest(["sha256", "md5", "sha1"]), b""
    for part in parts:
        if isinstance(part, int):
            digest.zeros(part)
            whole += bytes(part)
        else:
            digest.update(part)
            whole += part
    assert digest.results() == {n: hashlib.new(n, whole).hexdigest() for n in
                                ("sha256", "md5", "sha1")}  # fmt: skip


@pytest.mark.parametrize("before", [b"", b"x"])
@pytest.mark.parametrize(
    "zeros", [0, 1, (1 << 20) - 1, 1 << 20, (5 << 20) + 7, 65 << 20, 130 << 20]
)
def test_zeros_count_wherever_they_stand(before, zeros):
    """Also from the states that are kept, and twice in a row: a kept state is never changed."""
    for _ in range(2):
        digest = LinearDigest(("sha256", "md5"))
        digest.update(b"")
        digest.update(before)
        digest.zeros(zeros)
        digest.update(b"end")
        body = before + bytes(zeros) + b"end"
        assert digest.results() == {
            "sha256": hashlib.sha256(body).hexdigest(), "md5": hashlib.md5(body).hexdigest(),
        }  # fmt: skip
