# SPDX-License-Identifier: Apache-2.0
"""Settings of the acquisition tests."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile(
    "impound",
    deadline=None,
    database=None,
    max_examples=150,
    derandomize=os.environ.get("CI") == "true",
)
settings.load_profile("impound")
