# SPDX-License-Identifier: Apache-2.0
"""All Linux plugins over a memory image: one `vol` process a plugin against `impound analyse`.

    IMPOUND_SAMPLES=DIR python benchmarks/memory.py WORK [--runs N] [--json]

The image is memory-6.1/mem.lime of the samples (128 MiB), the symbol table the one that impound
made from it. The peer's cache is filled by one untimed run, so that it neither checks the table's
schema nor searches for it. Ours is timed from the command's start to its receipt: symbols made,
plugins run, Parquet written and taken into custody. Both run the plugins of the profile full. The
memory of ours is the highest sum of proportional set sizes (PSS) of all its processes, every 0.5 s.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

PROFILES = Path(__file__).parent.parent / "analysis/memory/profiles.py"
BIN = Path(sys.executable).parent


def plugins() -> list[str]:
    """Names as `vol` takes them, read without importing volatility3 here."""
    text = PROFILES.read_text().partition("NEED_ARGUMENTS")[0]
    return list(dict.fromkeys(re.findall(r'"(linux\.[\w.]+)"', text)))


def tree(pid: int) -> list[int]:
    found = [pid]
    for at in found:
        for task in Path(f"/proc/{at}/task").glob("*/children"):
            try:
                found += [int(child) for child in task.read_text().split()]
            except OSError:
                continue
    return found


def pss(pid: int) -> int:
    total = 0
    for one in tree(pid):
        try:
            text = Path(f"/proc/{one}/smaps_rollup").read_text()
        except OSError:
            continue
        total += int(text.partition("\nPss:")[2].split()[0]) if "\nPss:" in text else 0
    return total * 1024


class Watch(threading.Thread):
    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.highest, self.done = pid, 0, threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.5):
            self.highest = max(self.highest, pss(self.pid))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    samples = os.environ.get("IMPOUND_SAMPLES")
    if not samples:
        print(json.dumps({"skipped": "IMPOUND_SAMPLES is not set"}))
        return
    work = chosen.work / "memory"
    shutil.rmtree(work, ignore_errors=True)
    (work / "symbols/linux").mkdir(parents=True)
    image = work / "mem.lime"
    packed = Path(samples) / "memory-6.1/mem.lime.zst"
    subprocess.run(["zstd", "-dqf", packed, "-o", image], check=True)
    (work / "passphrase").write_text("benchmark\n")
    environment = {
        **os.environ, "IMPOUND_PASSPHRASE_FILE": str(work / "passphrase"),
        "XDG_CONFIG_HOME": str(work / "config"), "XDG_STATE_HOME": str(work / "state"),
        "XDG_CACHE_HOME": str(work / "cache"),
    }  # fmt: skip

    def impound(*arguments: str) -> tuple[float, int]:
        started = time.monotonic()
        command = [BIN / "impound", "--yes", "--quiet", "--no-progress", *arguments]
        with subprocess.Popen(command, cwd=work, env=environment, stdout=sys.stderr) as process:
            watch = Watch(process.pid)
            watch.start()
            code = process.wait()
            watch.done.set()
        if code not in (0, 3):
            raise SystemExit(f"impound {arguments[0]} ended with {code}")
        return time.monotonic() - started, watch.highest

    impound("case", "open", "T-1")
    impound("ingest", "T-1", str(image), "--kind", "memory")
    impound("analyse", "T-1", "--jobs", "symbols")
    isf = next((work / "evidence").rglob("symbols/00000000.json.gz"))
    shutil.copy(isf, work / "symbols/linux/kernel.json.gz")
    vol = [BIN / "vol", "-q", "--offline", "-r", "jsonl", "-s", work / "symbols", "-f", image]

    def peer() -> float:
        started = time.monotonic()
        for name in plugins():
            # One that fails takes its time too.
            subprocess.run([*vol, name], env=environment, cwd=work, check=False,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        return time.monotonic() - started

    subprocess.run([*vol, "linux.pslist.PsList"], env=environment, cwd=work, check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    theirs, ours, highest = [], [], 0
    for _ in range(chosen.runs):
        theirs.append(peer())
        seconds, used = impound("analyse", "T-1", "--jobs", "symbols,memory", "--profile", "full",
                                "--again")  # fmt: skip
        ours.append(seconds)
        highest = max(highest, used)
    result = {
        "plugins": len(plugins()), "vol_s": round(statistics.median(theirs), 1),
        "impound_s": round(statistics.median(ours), 1),
        "ratio": round(statistics.median(theirs) / statistics.median(ours), 2), "bar": 6,
        "impound_pss_mib": highest >> 20, "bar_mib": 1024,
    }  # fmt: skip
    print(json.dumps(result) if chosen.json else json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
