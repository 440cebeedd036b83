# SPDX-License-Identifier: Apache-2.0
"""Custody numbers: a sparse disk into the store, deep verification, one appended event.

    python benchmarks/custody.py DIR [--runs N] [--json]

The disk is 8 GiB with 1.6 GiB of data in runs of 1 to 64 MiB, as volumes look; it is made once in
DIR. Peers read the same file from the same warm page cache:

- `ewfacquire -c fast -d sha256` and `dc3dd hash=sha256` write a copy, hash all bytes. Ours hashes
  all bytes in order and every stored segment, syncs each segment to disk, and is timed from start
  of `Case.ingest` to the entry `item.acquired` (the read-back after it is printed beside).
- `sha256sum` hashes the same stored files that `verify --deep` hashes, in one process.
- An event is appended to a ledger of 1,000 entries, signed and synced; no peer, a limit in ms.

Peak memory is that of a process that takes the 8 GiB disk, and one that takes 1 TiB sparse.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from acquisition.source import open_source
from evidence_store.backend import LocalBackend
from evidence_store.ledger import Draft, Scribe
from evidence_store.model import Actor, Authority, Tool
from evidence_store.sign import LocalSigner
from evidence_store.store import Case, Store
from evidence_store.verify import verify_case

GIB, MIB = 1 << 30, 1 << 20
SIZE, DATA = 8 * GIB, int(1.6 * GIB)


def build(folder: Path) -> Path:
    """Return the disk; equal bytes on every machine."""
    disk = folder / "sparse-8g.img"
    if disk.exists():
        return disk
    rng = random.Random(8)
    making = disk.with_suffix(".part")
    with making.open("wb") as f:
        f.truncate(SIZE)
        left, at = DATA, 0
        while left > 0:
            run = min(left, rng.choice((1, 2, 4, 8, 16, 32, 64)) * MIB)
            gap = rng.randrange(0, 2 * (SIZE - at - left) * run // left + 4096) // 4096 * 4096
            at = min(at + gap, SIZE - left)
            f.seek(at)
            for _ in range(run // MIB):
                f.write(rng.randbytes(MIB))
            at, left = at + run, left - run
    making.rename(disk)
    return disk


def new_case(folder: Path) -> Case:
    entry, seal = LocalSigner.generate(), LocalSigner.generate()
    scribe = Scribe(
        Actor(asserted={"user": "bench"}, host={"name": "bench"}),
        Tool(name="impound", version="0"), entry,
    )  # fmt: skip
    store = Store(LocalBackend(folder), scribe)
    return store.create_case(
        "BENCH", Authority(ticket="BENCH"), deployment="bench", checkpoint_key=seal.public
    )


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def acquire(disk: Path, folder: Path) -> tuple[float, float]:
    """Return (seconds to item.acquired, seconds of the read-back after it)."""
    case = new_case(folder)
    took = timed(lambda: case.ingest("disk", open_source(str(disk), "disk"), read_back=False))
    back = timed(lambda: must(verify_case(case, deep=True).findings == []))
    return took, back


def must(condition: bool) -> None:
    if not condition:
        raise SystemExit("the run did not do its work")


def peer(*command: str) -> float:
    return timed(lambda: subprocess.run(command, check=True, capture_output=True))


def in_child(disk: Path, folder: Path) -> int:
    """Peak RSS in MiB of a process that takes `disk`."""
    done = subprocess.run(
        [sys.executable, __file__, str(folder), "--child", str(disk)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return int(done.stdout)


def append_ms(folder: Path) -> float:
    case = new_case(folder)
    for _ in range(1000):
        case.record(lambda: Draft("review.noted", {"note": "x"}))
    times = [
        timed(lambda: case.record(lambda: Draft("review.noted", {"note": "y"}))) for _ in range(200)
    ]
    return statistics.median(times) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", type=Path)
    chosen = parser.parse_args()
    folder = chosen.folder
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    if chosen.child:
        new_case(scratch).ingest("disk", open_source(str(chosen.child), "disk"), read_back=False)
        print(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024)
        shutil.rmtree(scratch)
        return
    print(json.dumps(measure(folder, scratch, chosen.runs), indent=None if chosen.json else 1))


def measure(folder: Path, scratch: Path, runs: int) -> dict[str, object]:
    disk = build(folder)
    peer("sha256sum", str(disk))  # into the page cache
    rows: dict[str, list[float]] = {
        k: [] for k in ("impound", "read_back", "ewfacquire", "dc3dd", "sha256sum", "deep")
    }
    for _ in range(runs):
        took, back = acquire(disk, scratch)
        rows["impound"].append(took)
        rows["read_back"].append(back)
        stored = sorted(map(str, (scratch / "cases/BENCH/items/E0001/data").iterdir()))
        rows["sha256sum"].append(peer("sha256sum", *stored))
        case = Store(LocalBackend(scratch)).case("BENCH")
        rows["deep"].append(
            timed(lambda case=case: must(not verify_case(case, deep=True).findings))
        )
        shutil.rmtree(scratch)
        os.sync()
        scratch.mkdir()
        rows["dc3dd"].append(peer("dc3dd", "hash=sha256", f"if={disk}", f"of={scratch}/copy"))
        shutil.rmtree(scratch)
        os.sync()
        scratch.mkdir()
        rows["ewfacquire"].append(
            peer("ewfacquire", "-u", "-q", "-c", "fast", "-d", "sha256", "-t", f"{scratch}/copy",
                 str(disk))
        )  # fmt: skip
        shutil.rmtree(scratch)
        os.sync()
    median = {name: statistics.median(times) for name, times in rows.items()}
    huge = folder / "huge-1t.img"
    with huge.open("wb") as f:
        f.truncate(1 << 40)
        f.seek(700 * GIB)
        f.write(os.urandom(3 * MIB))
    appended = append_ms(scratch)
    shutil.rmtree(scratch)
    found: dict[str, object] = {
        "seconds": {name: round(value, 2) for name, value in median.items()},
        "all_runs": {name: [round(t, 2) for t in times] for name, times in rows.items()},
        "ewfacquire / impound (bar 6)": round(median["ewfacquire"] / median["impound"], 2),
        "dc3dd / impound (bar 4)": round(median["dc3dd"] / median["impound"], 2),
        "sha256sum / verify --deep (bar 2)": round(median["sha256sum"] / median["deep"], 2),
        "append ms (bar 5)": round(appended, 2),
        "peak MiB, 8 GiB disk (bar 300)": in_child(disk, folder),
        "peak MiB, 1 TiB sparse (bar 300)": in_child(huge, folder),
    }
    huge.unlink()
    return found


if __name__ == "__main__":
    main()
