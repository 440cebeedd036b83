# SPDX-License-Identifier: Apache-2.0
"""The analysis branch of the error tree (exit 13)."""

from __future__ import annotations

from evidence_store.errors import Error


class AnalysisError(Error):
    """An analysis job could not do its work."""

    exit_code = 13


class UnsupportedImageError(AnalysisError):
    """The image holds no volume or file system that this installation can read."""


class SymbolsError(AnalysisError):
    """A kernel's symbols cannot be had from what is there; the message says what is missing."""
