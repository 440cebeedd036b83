# SPDX-License-Identifier: Apache-2.0
"""Gives coverage with a path as long as evidence can make one."""

from __future__ import annotations

from analysis.output import ParquetSink
from tests.analysis.job_bodies.rows import two_files


def main(channel):
    sink = ParquetSink(channel)
    sink.rows("files", two_files())
    sink.coverage(what="directory", reason="\U0001f4a9" * 40_000, path="\U0001f4a9" * 32_768)
    sink.close()
