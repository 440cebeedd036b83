# SPDX-License-Identifier: Apache-2.0
"""Lists, fields and sets of items as a bag has them: what is written is read, nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evidence_store.bag import layout
from evidence_store.errors import IntegrityError

DIGEST = "a" * 64


def read(tmp_path, body, most=100):
    (tmp_path / "m").write_bytes(body)
    return layout.read_listing(tmp_path, "m", lambda name: name.startswith("data/"), most)


def test_a_list_is_read_back(tmp_path):
    listed = {"data/b": DIGEST, "data/a/x-1.note": "b" * 64}
    assert read(tmp_path, b"".join(layout.encode_listing(listed))) == listed


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\n", f"{DIGEST}  data/a".encode(), f"{DIGEST} data/a\n".encode(),
        f"{DIGEST}  *data/a\n".encode(), f"{'A' * 64}  data/a\n".encode(),
        f"{DIGEST}  ../data/a\n".encode(), f"{DIGEST}  data/../../etc/passwd\n".encode(),
        f"{DIGEST}  /etc/passwd\n".encode(), f"{DIGEST}  data//a\n".encode(),
        f"{DIGEST}  data/a\r\n".encode(), f"{DIGEST}  data/a%0Ab\n".encode(),
        f"{DIGEST}  data/\x1b[2J\n".encode(), f"{DIGEST}  tag\n".encode(),
        f"{DIGEST}  data/a\n".encode() * 2, f"{DIGEST}  data/a\n{DIGEST}  data/A\n".encode(),
        f"{DIGEST}  data/{'a' * (1 << 20)}\n".encode(), b"\0" * 5000,
        f"{DIGEST}  data/{'a/' * 300}a\n".encode(),
    ],
)  # fmt: skip
def test_hostile_lists(tmp_path, body):
    with pytest.raises(IntegrityError) as caught:
        read(tmp_path, body)
    assert str(caught.value).isprintable()


def test_a_list_of_more_than_there_can_be(tmp_path):
    body = b"".join(f"{DIGEST}  data/{n}\n".encode() for n in range(101))
    with pytest.raises(IntegrityError, match="more than 100"):
        read(tmp_path, body)


@given(st.sets(st.integers(1, 10**9 - 1), max_size=30), st.integers(1, 10**9 - 1))
def test_sets_of_items(numbers, other):
    text = layout.encode_items(f"E{n:04d}" for n in numbers)
    includes = layout.decode_items(text)
    assert all(includes(f"E{n:04d}") for n in numbers)
    assert includes(f"E{other:04d}") == (other in numbers)


@pytest.mark.parametrize("text", ["E1", "E0001,E0002", "E0001--E0002", "x", " ", "E0001 "])
def test_malformed_sets_of_items(text):
    with pytest.raises(IntegrityError):
        layout.decode_items(text)


@pytest.mark.parametrize(
    "raw", [b"A: b", b"A: b\nA: c\n", b"A b\n", b"\xff: x\n", b"A: \x1b\n", b"A: b\r\n"]
)
def test_malformed_bag_info(raw):
    with pytest.raises(IntegrityError):
        layout.parse_info(raw)


def test_bag_info_is_one_line_a_field():
    raw = layout.encode_info([("External-Description", "a\nImpound-Case: x"), ("B", "é")])
    assert layout.parse_info(raw) == {"External-Description": "a\\x0aImpound-Case: x", "B": "é"}
