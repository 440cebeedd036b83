# SPDX-License-Identifier: Apache-2.0
"""What tests of every package share."""

from __future__ import annotations

import os
import shutil

import pytest

_SBIN = "/usr/sbin:/sbin"


def need_tool(name: str) -> str:
    """Return the path of a program; without it skip the test, or fail it where CI=true."""
    found = shutil.which(name) or shutil.which(name, path=_SBIN)
    if found:
        return found
    if os.environ.get("CI") == "true":
        pytest.fail(f"{name} is not installed (make deps)")
    pytest.skip(f"{name} is not installed")


@pytest.fixture(name="need_tool")
def _need_tool():
    return need_tool
