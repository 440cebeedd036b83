# SPDX-License-Identifier: Apache-2.0
"""Gives rows, and coverage of the wrong types."""

from __future__ import annotations

from analysis.output import ParquetSink
from tests.analysis.job_bodies.rows import two_files


def main(channel):
    sink = ParquetSink(channel)
    sink.rows("files", two_files())
    sink.coverage(what="\x1b[2J", reason="x" * 9000, offset="far", count=2**70, stranger=[1])
    sink.close()
