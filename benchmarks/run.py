# SPDX-License-Identifier: Apache-2.0
"""Run every benchmark; keep the numbers in benchmarks/results/<UTC time>.json.

python benchmarks/run.py [--runs N] [--work DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).parent
SUITES = ("custody", "walk", "s3", "ebs", "memory", "ssh")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", default="3")
    parser.add_argument("--work", type=Path, help="folder for images (20 GiB), kept if named")
    chosen = parser.parse_args()
    results: dict[str, object] = {
        "at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "machine": {"cpus": os.cpu_count(), "kernel": platform.release()},
    }
    with tempfile.TemporaryDirectory(prefix="impound-bench-") as temporary:
        work = chosen.work or Path(temporary)
        for suite in SUITES:
            print(f"== {suite}", flush=True)
            done = subprocess.run(
                [sys.executable, str(HERE / f"{suite}.py"), str(work), "--runs", chosen.runs,
                 "--json"],
                check=True, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            results[suite] = json.loads(done.stdout)
            print(json.dumps(results[suite], indent=1), flush=True)
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    path = folder / f"{results['at']}.json".replace(":", "")
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
