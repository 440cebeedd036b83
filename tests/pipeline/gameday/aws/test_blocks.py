# SPDX-License-Identifier: Apache-2.0
"""Contents of volumes by themselves."""

from __future__ import annotations

import os

import pytest

from pipeline.gameday.aws.blocks import (
    BLOCK,
    EMPTY,
    ContentError,
    FileContent,
    Layered,
    MapContent,
    Tokens,
    changed,
)


@pytest.fixture
def sparse(tmp_path):
    """A file with data in the given blocks."""

    def make(*indexes, size=1 << 30):
        path = tmp_path / "sparse"
        with path.open("wb") as f:
            f.truncate(size)
            for i in indexes:
                f.seek(i * BLOCK)
                f.write(b"%d" % i)
        return FileContent(path)

    return make


def test_extents(sparse):
    content = sparse(0, 1, 7, 2047)
    assert list(content.indexes()) == [0, 1, 7, 2047]
    assert list(content.indexes(1)) == [1, 7, 2047]
    assert list(content.indexes(2048)) == []
    assert (content.count(), content.end()) == (4, 2048)
    assert content.read(7).startswith(b"7")
    assert content.read(3) == bytes(BLOCK)
    assert content.checksum(3) == MapContent({0: bytes(BLOCK)}).checksum(0)


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1])
def test_sizes(tmp_path, size):
    path = tmp_path / "f"
    path.write_bytes(b"x" * size)
    content = FileContent(path)
    assert b"".join(map(content.read, content.indexes())).rstrip(b"\0") == b"x" * size


def test_a_hole_only(sparse):
    assert list(sparse().indexes()) == []
    assert sparse().end() == 0


def test_what_was_found_at_first_stays(sparse):
    content = sparse(1)
    path = content.path
    os.posix_fallocate(fd := os.open(path, os.O_RDWR), 9 * BLOCK, BLOCK)
    os.close(fd)
    assert list(content.indexes()) == [1]


def test_a_file_that_changed(sparse):
    content = sparse(1)
    with content.path.open("r+b") as f:
        f.truncate(5)
    with pytest.raises(ContentError, match="changed"):
        content.read(1)


def test_layers(sparse):
    below = sparse(0, 5)
    content = Layered(Layered(below, {5: b"a", 6: b"b"}), {6: b"c"})
    assert list(content.indexes()) == [0, 5, 6]
    assert [content.read(i)[:1] for i in (0, 5, 6)] == [b"0", b"a", b"c"]
    assert list(below.indexes()) == [0, 5]
    assert below.read(5)[:1] == b"5"


def test_what_is_shared_is_not_read_again(sparse, monkeypatch):
    below = sparse(0, 5)
    monkeypatch.setattr(FileContent, "_bytes", lambda *_: pytest.fail("it was read"))
    assert list(changed(below, Layered(below, {7: b"x"}))) == [(0, False), (5, False), (7, True)]


def test_equal_bytes_have_not_changed():
    one, other = MapContent({0: b"x", 1: b"y"}), MapContent({0: b"x", 1: b"z"})
    assert list(changed(one, other)) == [(0, False), (1, True)]
    assert list(changed(one, EMPTY)) == [(0, True), (1, True)]


@pytest.mark.parametrize("blocks", [{-1: b""}, {0: bytes(BLOCK + 1)}])
def test_blocks_that_cannot_be(blocks):
    with pytest.raises(ContentError):
        MapContent(blocks)


def test_a_token_of_another_process():
    token = Tokens().make("get snap-1", 3, 100)
    assert Tokens().index("get snap-1", token, 0) is None


def test_a_token_altered():
    tokens = Tokens()
    token = tokens.make("get snap-1", 3, 100)
    assert tokens.index("get snap-1", token, 0) == 3
    assert tokens.index("get snap-1", token, 100) is None
    assert tokens.index("get snap-2", token, 0) is None
    for bad in (token[:-4], token[::-1], "", "A" * 64, "é"):
        assert tokens.index("get snap-1", bad, 0) is None
