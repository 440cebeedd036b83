# SPDX-License-Identifier: Apache-2.0
"""The command line, with a kill -9 of itself at a chosen point.

IMPOUND_TEST_KILL=STEP:after      after STEP did its work, before the engine knows
IMPOUND_TEST_KILL=STEP:outcome    after STEP's effect, before the ledger says so
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys

import acquisition.snapshot
from pipeline import steps, workflow


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def killing(step):
    def run(job):
        if (function := step.function()) is not None:
            function(job)
        die()

    return dataclasses.replace(step, run=run)


def main():
    acquisition.snapshot.PAUSE_S = 0.01
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
    name, _, when = os.environ.get("IMPOUND_TEST_KILL", "").partition(":")
    if when == "after":
        workflow.STEPS = tuple(killing(s) if s.name == name else s for s in workflow.STEPS)
        workflow.BY_NAME = {s.name: s for s in workflow.STEPS}
    elif when == "outcome":
        recorded = steps.done

        def done(case, begun, **facts):
            if begun.name == name:
                die()
            recorded(case, begun, **facts)

        steps.done = done
    from pipeline.cli import main as command_line

    command_line(sys.argv[1:])


if __name__ == "__main__":
    main()
