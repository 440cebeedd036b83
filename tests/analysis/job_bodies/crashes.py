# SPDX-License-Identifier: Apache-2.0
"""Writes one part, begins another, crashes."""

from __future__ import annotations

import os
from pathlib import Path

from analysis.output import ParquetSink
from tests.analysis.job_bodies.rows import two_files


def main(channel):
    sink = ParquetSink(channel)
    sink.rows("files", two_files())
    sink.close()
    Path("out/files/00000001.part").write_bytes(b"PAR1 torn")
    os.kill(os.getpid(), 11)
