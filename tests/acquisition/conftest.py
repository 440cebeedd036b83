# SPDX-License-Identifier: Apache-2.0
"""Settings of the acquisition tests."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

from tests.evidence_store import kit

settings.register_profile(
    "impound",
    deadline=None,
    database=None,
    max_examples=150,
    derandomize=os.environ.get("CI") == "true",
)
settings.load_profile("impound")


@pytest.fixture
def world(tmp_path):
    """A store with one open, empty case."""
    return kit.make_world(tmp_path / "store")
