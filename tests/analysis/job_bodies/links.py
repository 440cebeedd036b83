# SPDX-License-Identifier: Apache-2.0
"""Leaves links to foreign files where its parts and coverage should be."""

from __future__ import annotations

import os
from pathlib import Path

from analysis.output import ParquetSink
from tests.analysis.job_bodies.rows import two_files


def main(channel):
    sink = ParquetSink(channel)
    sink.rows("files", two_files())
    sink.close()
    Path("out/files/00000001.parquet").symlink_to("/etc/hostname")
    channel.send("part", table="files", name="files/00000001.parquet", rows=5)
    os.mkfifo("out/files/00000002.parquet")
    channel.send("part", table="files", name="files/00000002.parquet", rows=5)
    channel.send("part", table="files", name="files/00000003.parquet", rows=5)
    Path("out/coverage").mkdir()
    Path("out/coverage/00000000.parquet").symlink_to(Path("victim").absolute())
    Path("victim").write_bytes(b"untouched")
