# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from analysis.walk import walk_image
from tests.analysis.conftest import ImageFile, Kept
from tests.analysis.walk.kit import BLOB, MIB, SECOND, digest, fill


def test_partitions_are_walked_and_the_rest_is_covered(make, tree, walk):
    (tree / "f").write_bytes(BLOB)
    ext = make.ext(tree, name="part").read_bytes()
    path = make.blank(64 * MIB, "disk")
    make.run("sfdisk", "-q", "--no-reread", path, data=b"label: gpt\nstart=2048,size=32768\n"
             b"start=40960,size=32768\nstart=81920,size=8192\n")  # fmt: skip
    data = bytearray(path.read_bytes())
    data[MIB : MIB + len(ext)] = ext
    data[20 * MIB : 20 * MIB + len(ext)] = ext
    data[40 * MIB + 512 : 40 * MIB + 520] = b"LABELONE"
    walked = walk(data)
    assert [row["volume"] for row in walked.all if row["path"] == "/f"] == ["p1", "p2"]
    assert [row["sha256"] for row in walked.all if row["path"] == "/f"] == [digest(BLOB)] * 2
    assert {row["volume_offset"] for row in walked.all} == {MIB, 20 * MIB}
    assert any(gap["volume"] == "p3" and "LVM" in gap["reason"] for gap in walked.gaps)
    assert "unallocated" in walked.what()


def test_recognised_but_empty_is_told(walk):
    for offset, magic in ((1080, b"\x53\xef"), (0, b"XFSB"), (3, b"NTFS    ")):
        data = bytearray(MIB)
        data[offset : offset + len(magic)] = magic
        assert "file-system" in walk(data).what()


def test_nothing_at_all_is_told(walk):
    assert "image" in walk(b"").what()
    assert "volume" in walk(bytes(MIB)).what()


def test_error_of_the_sink_is_not_taken_for_bad_evidence(make, tree):
    class Full(Kept):
        def rows(self, table, batch):
            raise OSError(28, "No space left on device")

    fill(tree)
    with pytest.raises(OSError, match="No space"):
        walk_image(ImageFile(make.ext(tree)), item="E0001", item_digest="ab", sink=Full())


def test_integrity_error_of_the_reader_passes(make, tree):
    class Tampered(ImageFile):
        def pread(self, length, offset):
            if offset > MIB:
                raise LookupError("digest differs")
            return super().pread(length, offset)

    fill(tree)
    with pytest.raises(LookupError, match="digest differs"):
        walk_image(Tampered(make.ext(tree)), item="E0001", item_digest="ab", sink=Kept())


SAMPLES = os.environ.get("IMPOUND_SAMPLES")


@pytest.mark.skipif(not SAMPLES, reason="IMPOUND_SAMPLES is not set")
@pytest.mark.parametrize("name", ["host_ext4", "host_xfs", "host_btrfs"])
def test_samples_from_a_real_kernel(walk, tmp_path, need_tool, name):
    source = Path(SAMPLES) / "generated_disk"
    image = tmp_path / "image"
    subprocess.run([need_tool("zstd"), "-dq", source / f"{name}.raw.zst", "-o", image], check=True)
    walked = walk(image)
    if name == "host_btrfs":
        assert "btrfs" in walked.reasons()
        return
    letter = {"host_ext4": "e", "host_xfs": "x"}[name]  # recipes: keep files stay, others go
    for n in range(1, 6):
        row = walked[f"/home/alice/keep{n}.txt"]
        assert row["sha256"] == digest(f"keep {letter} {n}\n".encode())
    assert walked["/etc/cron.d/sysupd"]["mtime"] == 1_420_074_060 * SECOND
    assert walked["/home/alice/keep1.txt"]["btime"] % SECOND  # real nanoseconds


@pytest.mark.skipif(not SAMPLES, reason="IMPOUND_SAMPLES is not set")
def test_sample_volume_system_and_syslog_image(walk):
    walked = walk(Path(SAMPLES) / "disk/tsk_volume_system.raw")
    assert walked["/lost+found"]["volume"] == "p5"
    assert any(gap["volume"] == "p1" for gap in walked.gaps)
    walked = walk(Path(SAMPLES) / "linux/syslog_image.dd")
    assert any(row["sha256"] for row in walked.all)
