# SPDX-License-Identifier: Apache-2.0
"""The command line: parse, call, print, exit code. No logic.

Importing this loads click and nothing heavier; a command's module is imported when it runs.
"""

from __future__ import annotations

import os
import sys
import threading


def main(argv: list[str] | None = None) -> None:
    """Entry point of the script `impound`."""
    from pipeline.cli.base import run

    code = run(sys.argv[1:] if argv is None else argv)
    own = threading.main_thread()
    if any(t is not own and not t.daemon for t in threading.enumerate()):
        # An interrupted job may wait for AWS for long; it is resumable wherever it stands.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
