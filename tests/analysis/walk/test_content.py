# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from tests.analysis.conftest import ImageBytes
from tests.analysis.walk.kit import MIB, digest


def test_huge_sparse_file_is_not_hashed_for_ever(make, tree, walk):
    image = make.ext()
    (tree / "f").write_bytes(b"x" * 5000)
    make.debugfs(image, f"write {tree / 'f'} f", f"sif f size {1 << 60}", f"write {tree / 'f'} g")
    walked = walk(image)
    assert walked["/f"]["size"] == 1 << 60
    assert walked["/f"]["sha256_state"] == "too-large"
    assert walked["/g"]["sha256"] == digest(b"x" * 5000)
    (gap,) = [gap for gap in walked.gaps if gap["what"] == "content"]
    assert gap["path"] == "/f"


def test_many_large_sparse_files_share_one_budget(make, tree, walk):
    for n in range(12):
        with (tree / f"f{n}").open("wb") as file:
            file.truncate(60 * MIB)
    walked = walk(make.ext(tree))
    states = [walked[f"/f{n}"]["sha256_state"] for n in range(12)]
    assert states.count("ok") == 4
    assert states.count("too-large") == 8


def test_unreadable_sector_costs_only_the_file_it_is_in(make, tree, walk):
    for n in range(20):
        (tree / f"f{n}").write_bytes(bytes([n + 1]) * 4096)
    image = make.ext(tree)
    data = image.read_bytes()
    at = data.index(bytes([8]) * 4096)
    walked = walk(ImageBytes(data, bad=[(at, at + 512)]))
    assert walked["/f7"]["sha256_state"] == "unreadable"
    for n in set(range(20)) - {7}:
        assert walked[f"/f{n}"]["sha256"] == digest(bytes([n + 1]) * 4096)
