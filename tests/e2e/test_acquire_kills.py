# SPDX-License-Identifier: Apache-2.0
"""`acquire volume`, killed at moments spread over its whole run, against a server process.

    IMPOUND_ACQUIRE_KILLS=20 IMPOUND_SEED=… pytest -s -m chaos tests/e2e/test_acquire_kills.py

In AWS what is new stays invisible for a while and snapshots are pending for a while (A22): so here.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.gameday.aws.accounts import AUDIT, MEMBER
from pipeline.gameday.aws.faults import Fault
from pipeline.gameday.aws.seed import seed as seed_zone
from tests.pipeline import landing_zone
from tests.pipeline.landing_zone import BLOCK, GIB

pytestmark = pytest.mark.chaos

KILLS = int(os.environ.get("IMPOUND_ACQUIRE_KILLS", "5"))
# Looks follow each other sooner; how many there are is as ever.
IMPOUND = [
    sys.executable, "-I", "-c",
    "import acquisition.snapshot as s; s.PAUSE_S = 0.02\nfrom pipeline.cli import main; main()",
]  # fmt: skip


class World:
    """An empty AWS with an instance of two volumes, and a home with an open case."""

    def __init__(self, folder: Path, stand, images: list[Path]) -> None:
        self.folder, self.stand = folder, stand
        stand.reset()
        self.zone = seed_zone(stand, "pipeline.sealer:handler", images)
        stand.behave(visibility=3, snapshot_polls=4)
        # A network between us and AWS.
        stand.faults.add(Fault("delay", service="ebs", seconds=0.05, times=None))
        stand.faults.add(Fault("delay", service="ec2", seconds=0.03, times=None))
        home = folder / "home"
        home.mkdir(parents=True)
        (folder / "pass").write_text("correct horse battery\n")
        self.environment = {
            "PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8",
            "IMPOUND_PASSPHRASE_FILE": str(folder / "pass"),
            **landing_zone.environment(home, self.zone, stand.endpoint),
        }  # fmt: skip
        self.case = folder / "evidence/cases/T-1"
        assert self.run("case", "open", "T-1", "--contact", "soc@a.org").returncode == 0
        target = self.zone.estate.variables()["INSTANCE"]
        self.command = ("--json", "acquire", "volume", target, "--case", "T-1")

    def start(self, *argv: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*IMPOUND, *argv], cwd=self.folder, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*argv)
        out, err = process.communicate(timeout=300)
        assert "Traceback" not in err, err
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    def ledger(self) -> list[dict]:
        files = sorted((self.case / "ledger").glob("*.note"))
        return [json.loads(path.read_bytes().split(b"\n")[0]) for path in files]

    def stored(self) -> dict[str, tuple[int, int, int]]:
        """Every stored segment: inode, size, when it was written."""
        found = {str(p): p.stat() for p in self.case.glob("items/*/data/*")}
        return {name: (s.st_ino, s.st_size, s.st_mtime_ns) for name, s in found.items()}

    def begin(self) -> tuple[subprocess.Popen[str], float]:
        """Start the command; return when it has recorded its first intent, or has ended."""
        before = len(self.ledger())
        process = self.start(*self.command)
        while len(list((self.case / "ledger").glob("*.note"))) == before:
            if process.poll() is not None:
                break
            time.sleep(0.002)
        return process, time.monotonic()

    def kill_after(self, seconds: float) -> str:
        """Run the command and kill it; return the last thing that it recorded."""
        process, _ = self.begin()
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        _, err = process.communicate(timeout=60)
        assert process.returncode in (0, -signal.SIGKILL), err
        last = self.ledger()[-1]
        ended = "" if process.returncode else " (had ended)"
        return f"{last['action']} {(last.get('data') or {}).get('step', '')}".strip() + ended

    def check(self, digests: set[str]) -> None:
        """Nothing twice, nothing lost, all as it was in the volumes."""
        for account in (MEMBER, AUDIT):
            made = landing_zone.snapshots(self.stand, account)
            assert len(made) == 2, [s["SnapshotId"] for s in made]
        listed = json.loads(self.run("--json", "item", "list", "T-1").stdout)["items"]
        assert {i["manifest"]["content"]["sha256"] for i in listed} == digests
        assert len(listed) == 2
        deep = self.run("--json", "verify", "T-1", "--deep")
        assert deep.returncode == 0, deep.stdout + deep.stderr


@pytest.fixture
def images(tmp_path):
    """Two volumes of 1 GiB, data in eight segments of each."""
    rng = random.Random(7)
    return [
        landing_zone.image(
            tmp_path / f"volume{n}.img", GIB,
            {s * 128 + rng.randrange(120) + k: rng.randbytes(BLOCK)
             for s in range(n, 16, 2) for k in range(4)},
        )
        for n in range(2)
    ]  # fmt: skip


def test_kills_at_any_moment_make_nothing_twice_and_lose_nothing(tmp_path, aws_server, images):
    seed = int(os.environ.get("IMPOUND_SEED", "1" if os.environ.get("CI") else time.time_ns()))
    print("IMPOUND_SEED", seed)
    rng = random.Random(seed)
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in images}
    clean = World(tmp_path / "clean", aws_server, images)
    process, begun = clean.begin()
    _, err = process.communicate(timeout=300)
    whole = time.monotonic() - begun
    assert process.returncode == 0, err
    clean.check(digests)
    struck = []
    for number in range(KILLS):
        world = World(tmp_path / str(number), aws_server, images)
        moment = whole * (number + rng.random()) / KILLS
        where = [world.kill_after(moment)]
        kept = world.stored()
        sound = world.run("verify", "T-1", "--deep")
        assert sound.returncode in (0, 3), sound.stdout + sound.stderr
        if rng.random() < 0.5:
            where.append(world.kill_after(rng.uniform(0, whole)))
            kept |= world.stored()
        done = world.run(*world.command)
        print(f"kill {number} at {moment:.2f} of {whole:.2f} s: {', then '.join(where)}")
        assert done.returncode == 0, done.stdout + done.stderr
        world.check(digests)
        after = world.stored()
        assert {name: after.get(name) for name in kept} == kept
        struck.append(where[0])
    assert len(set(struck)) >= min(3, KILLS), struck
