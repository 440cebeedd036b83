# SPDX-License-Identifier: Apache-2.0
"""Game days: the whole job, rehearsed on evidence made for it, with a scorecard at the end."""

from pipeline.gameday.scorecard import Planted, Scorecard, Step

__all__ = ["Planted", "Scorecard", "Step"]
