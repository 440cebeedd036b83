# SPDX-License-Identifier: Apache-2.0
"""The command line: parse, call, print, exit code. No logic.

Importing this loads click and nothing heavier; a command's module is imported when it runs.
"""

from __future__ import annotations

import sys


def main(argv: list[str] | None = None) -> None:
    """Entry point of the script `impound`."""
    from pipeline.cli.base import run

    sys.exit(run(sys.argv[1:] if argv is None else argv))
