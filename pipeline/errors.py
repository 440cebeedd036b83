# SPDX-License-Identifier: Apache-2.0
"""The pipeline branch of the error tree (exit 14), and usage errors (exit 2)."""

from __future__ import annotations

from evidence_store.errors import Error


class PipelineError(Error):
    """Something around the evidence is not in order: settings, set-up, a missing extra."""

    exit_code = 14


class ConfigError(PipelineError):
    """Settings cannot be read or do not make sense."""


class UsageError(Error):
    """The command was given something it cannot mean."""

    exit_code = 2
