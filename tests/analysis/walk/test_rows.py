# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os

from analysis.walk import content, rows, walk_image
from tests.analysis.conftest import ImageBytes, ImageFile, Kept
from tests.analysis.walk.kit import BLOB, digest, fill, find_xfs_inode


def test_time_that_does_not_fit_is_null_and_counted(make, tree, walk, monkeypatch):
    proto = b"/x\n0 0\nd--755 0 0\nf ---644 0 0 /dev/null\n$\n$\n"
    data = bytearray(make.xfs(proto).read_bytes())
    walked = walk(data)
    at = find_xfs_inode(data, walked["/f"]["inode"])
    assert data[at + 120 + 7] & 8  # bigtime
    data[at + 40 : at + 48] = b"\xff" * 8
    walked = walk(data)
    assert walked["/f"]["mtime"] is None
    assert walked["/f"]["atime"] is not None
    assert any(gap["what"] == "value" and "mtime" in gap["reason"] for gap in walked.gaps)


def test_hard_links_are_hashed_once_and_listed_each(make, tree, walk, monkeypatch):
    (tree / "one").write_bytes(BLOB)
    (tree / "d").mkdir()
    os.link(tree / "one", tree / "d/two")
    hashed = []
    original = content.Hasher.hash_all
    monkeypatch.setattr(
        content.Hasher, "hash_all", lambda self, all_: hashed.extend(all_) or original(self, all_)
    )
    monkeypatch.setattr(rows, "BATCH", 2)  # the names come in different batches
    walked = walk(make.ext(tree))
    assert walked["/one"]["inode"] == walked["/d/two"]["inode"]
    assert walked["/one"]["links"] == 2
    assert walked["/one"]["sha256"] == walked["/d/two"]["sha256"] == digest(BLOB)
    assert len(hashed) == 1


def test_gaps_of_one_kind_are_counted_not_listed(make, tree, walk):
    for n in range(300):
        (tree / f"f{n}").write_bytes(b"x" * 2000)
    image = make.ext(tree, kind="ext2")
    data = image.read_bytes()
    first = data.index(b"x" * 2000)
    walked = walk(ImageBytes(data, bad=[(first, len(data))]))
    gaps = [gap for gap in walked.gaps if gap["what"] == "content"]
    assert len(gaps) == 201
    assert sum(gap["count"] for gap in gaps) == 300


def test_batches_and_progress(make, tree, monkeypatch):
    monkeypatch.setattr(rows, "BATCH", 16)
    fill(tree)
    sink = Kept()
    summary = walk_image(ImageFile(make.ext(tree)), item="E0001", item_digest="ab", sink=sink)
    assert max(batch.num_rows for batch in sink.batches) == 16
    assert sink.table().num_rows == summary.entries
    assert [done for done, _ in sink.steps] == sorted(done for done, _ in sink.steps)
    assert sink.steps[-1][0] == summary.entries
