# SPDX-License-Identifier: Apache-2.0
"""A process that runs responses whose steps only write down that they were done.

    python engine_driver.py PLACE LOG [OPTION…]

PLACE is a folder, or a PostgreSQL URL. Each line of LOG is one act: `begin JOB`, `made JOB` (the
effect that must never happen twice: looked for first, as a step does with AWS), `end JOB`.

    --start N       start N runs of one target each, then serve
    --serve         serve until killed (else until all runs are over)
    --seconds S     how long a step takes
    --die STEP      kill -9 of itself in STEP, after its effect and before it returns
    --child STEP    in STEP, run a process that would last for ever
    --full STEP     in STEP, take away what the engine's disk has left
    --comment       put a comment into every workflow body first
    --insert        put a new step before all others first
    --no-network    every socket but the engine's own wake-up pair ends the process with 99
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from pipeline import workflow
from pipeline.board import RUN, Board, EngineError, Place, prepare
from pipeline.workflow import CancelledError, Step


def place_of(text: str) -> Place:
    if text.startswith("postgres"):
        return Place(text)
    return Place(f"sqlite:///{text}/engine.sqlite", Path(text))


class FakeDesk(workflow.Desk):
    """Does nothing, and writes down that it did."""

    def __init__(self, log: Path, asked: argparse.Namespace) -> None:
        super().__init__(session=None, seal=lambda _case: None)
        self.log = log
        self.asked = asked

    def write(self, act: str, job: str) -> None:
        with self.log.open("a") as f:
            f.write(f"{act} {job}\n")

    def begin(self, params):
        self.write("begin", "run")

    def finish(self, params, outcomes):
        self.write("end", "run")

    def units(self, step: Step, params):
        return ["one", "two"]

    def give_up(self, step: Step, params, why):
        return {"result": "gap", "gaps": [why], "facts": {}}

    def perform(self, step: Step, params):
        job = params["id"]
        with self._at_work(job) as token:
            self.write("begin", job)
            if step.name == self.asked.child:
                child = subprocess.Popen(["sleep", "600"])
                self.write("child", str(child.pid))
                try:
                    while not token.wait(0.1):
                        pass
                finally:
                    child.kill()
                    child.wait()
                raise CancelledError
            if step.name == self.asked.full:
                size = sum(p.stat().st_size for p in Path(self.asked.place).iterdir())
                resource.setrlimit(resource.RLIMIT_FSIZE, (size // 100, resource.RLIM_INFINITY))
            if token.wait(self.asked.seconds):
                raise CancelledError
            if f"made {job}\n" not in self.log.read_text():
                self.write("made", job)
            if step.name == self.asked.die:
                os.kill(os.getpid(), signal.SIGKILL)
            self.write("end", job)
        return {"result": "ok", "gaps": [], "facts": {}}


def params(number: int) -> dict:
    arn = f"arn:aws:ec2:eu-central-1:222222222222:instance/i-{number:017x}"
    return {
        "store": "none", "case": "T-1", "targets": [arn], "report": "none", "host": "",
        "steps": [step.name for step in workflow.STEPS],
    }  # fmt: skip


def no_network() -> None:
    def audit(event: str, args: tuple) -> None:
        if event in ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto"):
            sys.stderr.write(f"{event} {args}\n")
            sys.stderr.flush()
            os._exit(99)

    sys.addaudithook(audit)


def commented() -> None:
    """Load the engine from source with a comment in each workflow body."""
    import types

    import pipeline

    path = Path(pipeline.__file__).with_name("engine.py")
    lines = []
    for line in path.read_text().splitlines():
        lines.append(line)
        if line.strip() in ("def target(params: Params) -> Params:",
                            "def respond(params: Params) -> Params:",
                            "def job(params: Params) -> Params:"):  # fmt: skip
            lines.append(" " * (len(line) - len(line.lstrip()) + 4) + "# as it was, only newer")
    assert len(lines) == len(path.read_text().splitlines()) + 3
    module = types.ModuleType("pipeline.engine")
    module.__file__ = str(path)
    sys.modules["pipeline.engine"] = module
    exec(compile("\n".join(lines), str(path), "exec"), module.__dict__)  # our own source


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("place")
    parser.add_argument("log", type=Path)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--seconds", type=float, default=0.0)
    for name in ("die", "child", "full"):
        parser.add_argument(f"--{name}", default="")
    for name in ("comment", "insert", "no-network"):
        parser.add_argument(f"--{name}", action="store_true")
    asked = parser.parse_args()
    asked.log.touch()
    if asked.insert:
        first = Step("prepare", "new", lambda _job: workflow.Did())
        workflow.STEPS = (first, *workflow.STEPS)
        workflow.BY_NAME = {s.name: s for s in workflow.STEPS}
    if asked.no_network:
        no_network()
    if asked.comment:
        commented()
    from pipeline import engine
    from pipeline.engine import Client, Executor

    engine.STALL_S = 3
    place = place_of(asked.place)
    if place.home:
        prepare(place.home, None)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with Executor(place, FakeDesk(asked.log, asked), slots=4) as executor:
        with Client(place) as client:
            for number in range(asked.start):
                client.start(f"00000000/T-1/{number:06x}-1", params(number))
        print("ready", executor.executor_id, flush=True)
        board = Board(place)
        while not stop.wait(0.1) and not executor.fenced.is_set():
            try:
                runs = [r for r in board.rows() if r.name == RUN]
            except EngineError as e:  # the server is away
                print(e, file=sys.stderr, flush=True)
                continue
            if not asked.serve and runs and all(r.over for r in runs):
                print(*(f"{r.status}:{r.outcome}" for r in runs), flush=True)
                break
            if executor.stalled.is_set():
                print("stalled", flush=True)
                os._exit(97)
            time.sleep(0.1)
        if executor.fenced.is_set():
            sys.exit(98)
        executor.leave(10)
    os._exit(0)


if __name__ == "__main__":
    main()
