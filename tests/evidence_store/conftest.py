# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the store tests. What they are made of stands in `kit`."""

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


@pytest.fixture(scope="session")
def filled(tmp_path_factory):
    """A sealed case with two items. Never change it: `world.copy(tmp_path / ...)` first."""
    world = kit.make_world(tmp_path_factory.mktemp("filled") / "store")
    kit.fill(world)
    return world


@pytest.fixture
def as_nobody():
    """A wrapper that makes a command run without root's powers; skips where that is impossible."""
    if os.geteuid() != 0:
        return []
    return ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]
