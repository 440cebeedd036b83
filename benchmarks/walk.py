# SPDX-License-Identifier: Apache-2.0
"""List and hash every file of a 70,000-file ext4 image: `fiwalk` against `walk_image`.

    python benchmarks/walk.py DIR [--runs N] [--json]

The image is built once in DIR (3 GiB apparent, 1.3 GiB of data; mke2fs -d): sizes 0 to 64 KiB, most
of them small, as on a root volume, and about a hundred files of 1 to 4 MiB.

Both run alternately, over the same warm page cache, in wall seconds. fiwalk (sleuthkit) computes
MD5 and SHA-1 of each file, its only choice, and writes DFXML to /dev/null; it is a process of its
own. Ours computes SHA-256, fills Arrow columns, and runs in this process: its imports are not
timed (about 0.2 s). `fiwalk -z` (no hash at all) is printed for scale.
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
from pathlib import Path

from analysis.walk import walk_image

FILES = 70_000
PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


class Image:
    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self._fd).st_size

    def pread(self, length: int, offset: int) -> bytes:
        return os.pread(self._fd, length, offset)


class Sink:
    def __init__(self) -> None:
        self.hashed = 0
        self.gaps: list[str] = []

    def rows(self, _table, batch) -> None:
        self.hashed += batch.num_rows - batch.column("sha256").null_count

    def coverage(self, **fields) -> None:
        self.gaps.append(fields["reason"])

    def progress(self, done, total) -> None:
        pass


def build(where: Path) -> Path:
    """Return the image, made if it is not there."""
    image, tree = where / "walk-70k.ext4", where / "walk-70k-tree"
    if image.exists():
        return image
    shutil.rmtree(tree, ignore_errors=True)
    rng = random.Random(7)
    blob = rng.randbytes(4 << 20)
    for n in range(FILES):
        folder = tree / f"d{n // 5000:02}" / f"d{n // 100:04}"
        if n % 100 == 0:
            folder.mkdir(parents=True)
        size = 0 if rng.random() < 0.02 else int((64 << 10) * rng.random() ** 4)
        if rng.random() < 0.0015:
            size = rng.randrange(1 << 20, 4 << 20)
        start = rng.randrange(len(blob) - size + 1)
        (folder / f"f{n % 100:03}.dat").write_bytes(blob[start : start + size])
    part = image.with_suffix(".part")
    with part.open("wb") as file:
        file.truncate(3 << 30)
    mke2fs = shutil.which("mke2fs", path=PATH)
    subprocess.run([mke2fs, "-q", "-F", "-t", "ext4", "-d", tree, part], check=True)
    part.rename(image)
    shutil.rmtree(tree)
    return image


def fiwalk(image: Path, *options: str) -> float:
    start = time.perf_counter()
    subprocess.run(["fiwalk", *options, "-x", image], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def ours(image: Path) -> float:
    sink = Sink()
    start = time.perf_counter()
    walk_image(Image(image), item="E0001", item_digest="00" * 32, sink=sink)
    seconds = time.perf_counter() - start
    if sink.hashed != FILES or sink.gaps:
        sys.exit(f"{sink.hashed} of {FILES} files hashed; {sink.gaps[:3]}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dir", type=Path, help="where the image is built and kept")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    chosen.dir.mkdir(parents=True, exist_ok=True)
    image = build(chosen.dir)
    fiwalk(image)  # warms the page cache
    ours(image)
    peers, mine = [], []
    for _ in range(chosen.runs):
        peers.append(fiwalk(image))
        mine.append(ours(image))
    peer, own = statistics.median(peers), statistics.median(mine)
    found = {
        "benchmark": "walk",
        "files": FILES,
        "runs": chosen.runs,
        "fiwalk_s": round(peer, 3),
        "fiwalk_without_hash_s": round(fiwalk(image, "-z"), 3),
        "impound_s": round(own, 3),
        "ratio": round(peer / own, 2),
        "target": 4.0,
        "met": peer / own >= 4,
        "all_fiwalk_s": [round(one, 3) for one in peers],
        "all_impound_s": [round(one, 3) for one in mine],
    }
    if chosen.json:
        print(json.dumps(found))
    else:
        print(
            f"fiwalk (MD5, SHA-1)  {peer:6.2f} s, {found['fiwalk_without_hash_s']} s without them"
        )
        print(f"walk_image (SHA-256) {own:6.2f} s   ratio {found['ratio']} (target 4)")


if __name__ == "__main__":
    main()
