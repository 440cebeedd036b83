# SPDX-License-Identifier: Apache-2.0
"""The second way, with a stand-in for AVML: a script that writes a LiME image to its argument."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from acquisition.avml import Avml, AvmlCapture, AvmlError, seen
from acquisition.verdict import judge
from tests.acquisition.kcore_host import BANNER, iomem, lime, memory

STAND_IN = b'#!/bin/sh\nexec cat "%s" > "$1"\n'


@pytest.fixture
def binary(tmp_path):
    (tmp_path / "image").write_bytes(lime(memory()))
    path = tmp_path / "avml"
    path.write_bytes(STAND_IN % str(tmp_path / "image").encode())
    return Avml.load(path, hashlib.sha256(path.read_bytes()).hexdigest())


def left(facts):
    """Whether this capture's AVML is still in /dev/shm, which other tests use too."""
    path = Path(facts["avml_path"])
    assert path.parent == Path("/dev/shm")
    return path.exists()


def take(world, remote, binary):
    with AvmlCapture(remote, binary, "memory of i-1", {}) as source:
        source.open()
        taken = world.case.ingest("memory", source)
    with world.case.open(taken.item_id) as f:
        found = seen(f, taken.manifest.size, iomem(), BANNER, tuple(source.lost))
        f.seek(0)
        return taken, judge(found), f.read()


def test_capture_is_taken_and_nothing_is_left(world, sshd, binary):
    with sshd.remote().open() as remote:
        taken, verdict, body = take(world, remote, binary)
    assert body == lime(memory())
    assert (verdict.word, verdict.reasons) == ("complete", ())
    assert taken.manifest.source["avml_sha256"] == binary.sha256
    assert not left(taken.manifest.source)
    whys = [a.get("why") for a in remote.footprint.acts]
    assert whys[-4:] == ["is it tmpfs", "AVML into tmpfs", "memory by AVML", "AVML out of tmpfs"]


def test_binary_that_is_not_the_pinned_one_is_never_sent(tmp_path):
    (tmp_path / "avml").write_bytes(b"other")
    with pytest.raises(AvmlError, match="pinned"):
        Avml.load(tmp_path / "avml", "0" * 64)


def test_truncated_output_and_a_bad_exit_are_partial(world, sshd, binary, tmp_path):
    body = (tmp_path / "image").read_bytes()
    (tmp_path / "image").write_bytes(body[:-5000])
    script = b"#!/bin/sh\ncat " + str(tmp_path / "image").encode() + b'> "$1"; exit 9\n'
    failing = Avml(script, hashlib.sha256(script).hexdigest())
    with sshd.remote().open() as remote:
        taken, verdict, _ = take(world, remote, failing)
    assert verdict.word == "partial"
    assert taken.manifest.result == "partial"
    assert any("ended with 9" in note for note in taken.manifest.notes)
    assert not left(taken.manifest.source)


def test_it_is_removed_when_the_capture_fails(world, sshd, binary):
    with sshd.remote().open() as remote, AvmlCapture(remote, binary, "x", {}) as source:
        source.open()
    assert not left(source.facts)


def test_binary_changed_on_its_way_is_not_run(sshd, binary):
    changed = Avml(binary.body + b"#", binary.sha256)
    remote = sshd.remote().open()
    with remote, AvmlCapture(remote, changed, "x", {}) as s, pytest.raises(AvmlError, match="did"):
        s.open()
    assert not left(s.facts)
