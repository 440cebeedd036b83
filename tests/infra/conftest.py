# SPDX-License-Identifier: Apache-2.0
"""The command line as in the tests of `pipeline`."""

from __future__ import annotations

from tests.pipeline.conftest import home, impound

__all__ = ["home", "impound"]
