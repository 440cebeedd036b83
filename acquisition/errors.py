# SPDX-License-Identifier: Apache-2.0
"""The acquisition branch of the error tree (exit 12)."""

from __future__ import annotations

from evidence_store.errors import Error


class AcquisitionError(Error):
    """A source could not be read as evidence."""

    exit_code = 12


class SourceNotFoundError(AcquisitionError):
    """There is nothing at this path."""


class UnsupportedSourceError(AcquisitionError):
    """Something is there, but not of a kind that can be taken as asked."""
