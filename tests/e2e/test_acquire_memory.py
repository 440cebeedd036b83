# SPDX-License-Identifier: Apache-2.0
"""Memory of `acquire volume`, the whole command as a process: it does not grow with the volume."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import pytest

from pipeline.gameday.aws.seed import seed
from tests.pipeline import landing_zone
from tests.pipeline.landing_zone import BLOCK, GIB

pytestmark = pytest.mark.chaos

MOST_MIB = 300
# Not ru_maxrss: that counts what the parent had when it forked.
COMMAND = """
import atexit, sys
from pathlib import Path
import acquisition.snapshot
acquisition.snapshot.PAUSE_S = 0.02
status = Path("/proc/self/status")
atexit.register(lambda: Path("peak").write_text(status.read_text().split("VmHWM:")[1].split()[0]))
from pipeline.cli import main
main()
"""


@pytest.mark.parametrize(
    ("gib", "stride", "per_segment"),
    [
        (16, 1, 4),  # 512 MiB written, in each of the 256 segments
        (1024, 64, 1),  # 128 MiB written, all over 1 TiB
    ],
    ids=["16 GiB", "1 TiB"],
)
def test_peak_of_a_large_volume(tmp_path, aws_server, gib, stride, per_segment):
    """Read and proved. The blocks have random bytes; what was never written is not in the list."""
    rng = random.Random(gib)
    in_segment = (64 << 20) // BLOCK
    blocks = {
        segment * in_segment + place: rng.randbytes(4096) * (BLOCK // 4096)
        for segment in range(0, gib * GIB // (64 << 20), stride)
        for place in rng.sample(range(in_segment), per_segment)
    }
    volume = landing_zone.image(tmp_path / "volume.img", gib * GIB, blocks)
    zone = seed(aws_server, "pipeline.sealer:handler", [volume])
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "pass").write_text("correct horse battery\n")
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8",
        "IMPOUND_PASSPHRASE_FILE": str(tmp_path / "pass"),
        **landing_zone.environment(home, zone, aws_server.endpoint),
    }  # fmt: skip

    def impound(*argv):
        done = subprocess.run(
            [sys.executable, "-I", "-c", COMMAND, "--json", *argv], cwd=tmp_path, env=environment,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done

    impound("case", "open", "T-1", "--contact", "soc@a.org")
    target = zone.estate.variables()["INSTANCE"]
    done = json.loads(impound("acquire", "volume", target, "--case", "T-1").stdout)
    peak = int((tmp_path / "peak").read_text()) >> 10
    assert peak < MOST_MIB
    print(f"{gib} GiB, {len(blocks)} blocks written: peak {peak} MiB")
    assert [v["proved"] for v in done["volumes"]] == [True]
    [item] = json.loads(impound("item", "list", "T-1").stdout)["items"]
    assert item["manifest"]["size"] == gib * GIB
    assert item["manifest"]["stored_objects"] == len({i // in_segment for i in blocks})
