# SPDX-License-Identifier: Apache-2.0
"""Images built by script, and a sink that keeps what a walk finds."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest

from analysis.schema import COVERAGE_WHAT, FILES
from analysis.walk import walk_image


class ImageFile:
    """A file as a Readable; counts what is read."""

    def __init__(self, path):
        self._fd = os.open(path, os.O_RDONLY)
        self.size = os.lseek(self._fd, 0, os.SEEK_END)

    def pread(self, length, offset):
        return os.pread(self._fd, length, offset)

    def __del__(self):
        os.close(self._fd)


class ImageBytes:
    """Bytes as a Readable; ranges in `bad` cannot be read."""

    def __init__(self, data, bad=()):
        self._data = data
        self.size = len(data)
        self.bad = bad

    def pread(self, length, offset):
        for start, end in self.bad:
            if offset < end and start < offset + length:
                raise OSError(5, "Input/output error")
        return bytes(self._data[offset : offset + length])


class Kept:
    """A sink that keeps everything, and holds each row against the schema's promises."""

    def __init__(self):
        self.batches, self.gaps, self.steps = [], [], []

    def rows(self, table, batch):
        assert table == "files"
        assert batch.schema.equals(FILES, check_metadata=True)
        batch.validate(full=True)
        self.batches.append(batch)

    def coverage(self, **fields):
        assert fields["what"] in COVERAGE_WHAT
        assert fields["count"] >= 1
        assert fields["reason"]
        self.gaps.append(fields)

    def progress(self, done, total):
        self.steps.append((done, total))

    def table(self):
        return pa.Table.from_batches(self.batches, FILES)

    def what(self):
        return {gap["what"] for gap in self.gaps}

    def reasons(self):
        return "\n".join(f"{gap['what']}: {gap['reason']}" for gap in self.gaps)


class Walked(Kept):
    """A walk that was done: rows by path (and stream), and coverage."""

    def __init__(self, image):
        super().__init__()
        self.summary = walk_image(image, item="E0001", item_digest="ab" * 32, sink=self)
        self.all = self.table().to_pylist()
        assert self.summary.entries == len(self.all)
        for row in self.all:
            assert (row["sha256"] is not None) == (row["sha256_state"] == "ok"), row
        self.rows_of = {}
        for row in self.all:
            self.rows_of.setdefault((row["path"], row["stream"]), []).append(row)

    def __getitem__(self, key):
        path, stream = key if isinstance(key, tuple) else (key, None)
        (row,) = self.rows_of[path, stream]
        return row


@pytest.fixture
def walk():
    """Walk an image given by path, bytes or Readable."""

    def run(image):
        if isinstance(image, bytes | bytearray):
            image = ImageBytes(image)
        elif isinstance(image, str | Path):
            image = ImageFile(image)
        return Walked(image)

    return run


class Maker:
    """Makes images in a temporary directory with the tools that are installed."""

    def __init__(self, need_tool, where):
        self.tool = need_tool
        self.where = where

    def run(self, tool, *arguments, data=None):
        """Run a tool; return its stdout."""
        done = subprocess.run(
            [self.tool(tool), *map(str, arguments)],
            check=True,
            capture_output=True,
            input=data,
            cwd=self.where,
            env={**os.environ, "MTOOLS_SKIP_CHECK": "1", "LC_ALL": "C"},
        )
        return done.stdout

    def blank(self, size, name="image"):
        path = self.where / name
        with path.open("wb") as file:
            file.truncate(size)
        return path

    def ext(self, tree=None, *, kind="ext4", size=16 << 20, options=(), name="image"):
        path = self.blank(size, name)
        source = ("-d", tree) if tree else ()
        self.run("mke2fs", "-q", "-F", "-t", kind, *options, *source, path)
        return path

    def debugfs(self, path, *commands):
        self.run("debugfs", "-w", "-f", "-", path, data="\n".join(commands).encode())

    def xfs(self, proto, size=300 << 20, options=()):
        path = self.blank(size)
        (self.where / "proto").write_bytes(proto)
        self.run("mkfs.xfs", "-q", "-f", *options, "-p", "proto", path)
        return path

    def ntfs(self, size=8 << 20, cluster=4096):
        path = self.blank(size)
        self.run("mkntfs", "-Q", "-F", "-q", "-c", cluster, path)
        return path

    @contextmanager
    def mounted(self, image, *mount):
        """Give a directory in which an image is mounted by a command (…, device, directory)."""
        if os.geteuid() != 0 or not Path("/dev/fuse").exists():
            pytest.skip("mounting needs root and FUSE")
        point = self.where / "mounted"
        point.mkdir(exist_ok=True)
        done = subprocess.run([self.tool("losetup"), "--find", "--show", image], check=False,
                              capture_output=True, text=True)  # fmt: skip
        if done.returncode:
            pytest.skip(f"no loop device: {done.stderr.strip()}")
        device = done.stdout.strip()
        try:
            self.run(*mount, device, point)
            try:
                yield point
            finally:
                self.run("umount", point)
        finally:
            self.run("losetup", "--detach", device)

    def fat(self, bits, size, *names):
        path = self.where / "image"
        self.run("mkfs.vfat", "-F", bits, "-C", path, size >> 10)
        for name in names:
            self.run("mcopy", "-i", path, name, "::/")
        return path


@pytest.fixture
def make(need_tool, tmp_path):
    """A Maker in this test's directory."""
    return Maker(need_tool, tmp_path)


@pytest.fixture
def tree(tmp_path):
    """An empty directory to fill."""
    path = tmp_path / "tree"
    path.mkdir()
    return path
