# SPDX-License-Identifier: Apache-2.0
"""The child of a triage, over images of file systems that TSK reads."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import pytest

from analysis import triage
from tests.analysis.conftest import ImageFile


class Channel:
    """What a child has, in this process."""

    def __init__(self, image, patterns, **more):
        self.request = {"item": "s", "patterns": patterns, "take": True, "max_file": 1 << 20,
                        "max_total": 1 << 21, **more}  # fmt: skip
        self._image = image
        self.sent = []

    def image(self, _item):
        return contextlib.nullcontext(self._image)

    def send(self, kind, **fields):
        self.sent.append((kind, fields))

    def of(self, kind):
        return [fields for one, fields in self.sent if one == kind]


@pytest.fixture
def look(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(image, *patterns, **more):
        channel = Channel(ImageFile(image), list(patterns), **more)
        triage.main(channel)
        return channel

    return run


@pytest.mark.parametrize("size", [20, 300_000])  # resident, and in runs
def test_ntfs_by_any_case(look, make, tmp_path, size):
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    (tmp_path / "body").write_bytes(body)
    image = make.ntfs()
    make.run("ntfscp", "-q", image, tmp_path / "body", "/SAM.log")
    channel = look(image, "/sam.*", "/nothing")
    [found] = channel.of("found")
    assert (found["path"], found["fs"]) == ("/SAM.log", "ntfs")
    assert found["sha256"] == hashlib.sha256(body).hexdigest()
    assert Path("out/files/00000000").read_bytes() == body
    assert channel.of("matched") == [{"patterns": [0]}]


def test_fat(look, make, tmp_path):
    (tmp_path / "grub.cfg").write_bytes(b"set x=1\n")
    channel = look(make.fat(12, 1 << 20, tmp_path / "grub.cfg"), "/GRUB.*")
    [found] = channel.of("found")
    assert found["sha256"] == hashlib.sha256(b"set x=1\n").hexdigest()
    assert found["mode"] is None


def test_inline_data_of_ext4(look, make, tree):
    (tree / "small").write_bytes(b"tiny")
    image = make.ext(tree, options=("-O", "inline_data", "-I", "256"))
    [found] = look(image, "/small").of("found")
    assert found["sha256"] == hashlib.sha256(b"tiny").hexdigest()


def test_limits(look, make, tree):
    for name in "abc":
        (tree / name).write_bytes(bytes([ord(name)]) * (900 << 10))
    (tree / "d").write_bytes(b"d" * (2 << 20))
    channel = look(make.ext(tree), "/?")
    taken = {f["path"] for f in channel.of("found") if "object" in f}
    assert taken == {"/a", "/b"}
    reasons = [row["row"]["reason"] for row in channel.of("coverage")]
    assert sum("--max-total" in reason for reason in reasons) >= 1
    assert sum("too large" in reason for reason in reasons) == 2
