# SPDX-License-Identifier: Apache-2.0
"""The report of a case: one page without scripts, as of a checkpoint.

    index = render(case, Path("out"))            # as of the newest checkpoint
    index = render(case, Path("out"), as_of=41)  # as of the checkpoint over 41 entries

Equal checkpoint, equal version of this program: equal bytes.
"""

from pipeline.report.render import render

__all__ = ["render"]
