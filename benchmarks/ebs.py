# SPDX-License-Identifier: Apache-2.0
"""A snapshot by EBS direct: the same blocks from the same server by `Case.ingest` and by `dsnap`.

    python benchmarks/ebs.py DIR [--runs N] [--written-mib M] [--latency S] [--json]

The server is `ebs_server.py` on 127.0.0.1: 20 ms before each answer, no limit of its own. The
snapshot has 4 GiB, of which 1 GiB was written, in runs of 1 MiB. dsnap (PyPI) runs with its own
defaults (50 threads) as a process in an environment that is made in DIR; it writes a sparse file.

Ours is a process too, timed as a whole like dsnap, interpreter and imports included. It is measured
three times. "impound": into custody as it is: beside the bytes it hashes all 4 GiB in order and by
segment, stores segments durably, signs its ledger, and keeps to the 1,000 blocks a second that AWS
gives an account; nothing is read back. "reading": only what dsnap does, verified blocks into a
sparse file, at that pace; "reading, unpaced": the same with the pace lifted, which is the client
alone. The runs alternate; medians; the ratio is dsnap's time over ours. RSS is each process's peak.
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
import venv
from pathlib import Path

MIB = 1 << 20
HERE = Path(__file__).parent
SIZE = 4 << 30
# The peak is read at the end: ru_maxrss would count what the parent had when it forked.
PEAK = """
import sys
from pathlib import Path
def peak():
    said = Path("/proc/self/status").read_text()
    print(int(said.split("VmHWM:")[1].split()[0]) // 1024, file=sys.stderr)
"""
OURS = (
    PEAK
    + """
from botocore.credentials import Credentials
from acquisition.blocks import SnapshotImage
from acquisition.ebs import BLOCKS_PER_SECOND, EbsDirect, Endpoint
from evidence_store.backend import LocalBackend
from evidence_store.ledger import Scribe
from evidence_store.model import Actor, Authority, Tool
from evidence_store.sign import LocalSigner
from evidence_store.store import Store

url, snapshot, folder, pace = sys.argv[1:]
entry, seal = LocalSigner.generate(), LocalSigner.generate()
actor = Actor(asserted={"user": "bench"}, host={"name": "bench"})
store = Store(LocalBackend(Path(folder)), Scribe(actor, Tool(name="impound", version="0"), entry))
case = store.create_case(
    "BENCH", Authority(ticket="BENCH"), deployment="bench", checkpoint_key=seal.public
)
rate = BLOCKS_PER_SECOND if pace == "paced" else 1e6
endpoint = Endpoint(url, "eu-central-1", "1", Credentials("key", "secret"))
with EbsDirect(endpoint, blocks_per_second=rate) as service:
    case.ingest("disk", SnapshotImage(service, snapshot), read_back=False)
peak()
"""
)
READING = (
    PEAK
    + """
import os, queue, threading
from concurrent.futures import ThreadPoolExecutor
from botocore.credentials import Credentials
from acquisition.blocks import SnapshotImage
from acquisition.ebs import BLOCKS_PER_SECOND, EbsDirect, Endpoint

url, snapshot, folder, pace = sys.argv[1:]
rate = BLOCKS_PER_SECOND if pace == "paced" else 1e6
endpoint = Endpoint(url, "eu-central-1", "1", Credentials("key", "secret"))
PIECE = 32 << 20
with EbsDirect(endpoint, blocks_per_second=rate) as service, \\
        open(f"{folder}/{snapshot}.img", "wb") as out:
    image = SnapshotImage(service, snapshot)
    out.truncate(image.size)
    buffers = queue.SimpleQueue()
    for _ in range(3):
        buffers.put(memoryview(bytearray(PIECE)))
    def piece(offset):
        view = buffers.get()
        runs, gaps = image.fill(view, offset, threading.Event())
        assert not gaps
        for start, end in runs:
            os.pwrite(out.fileno(), view[start:end], offset + start)
        buffers.put(view)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(piece, range(0, image.size, PIECE)))
peak()
"""
)
DSNAP = (
    PEAK
    + """
import boto3, botocore.config
from dsnap.snapshot import LocalSnapshot

url, snapshot, folder, _ = sys.argv[1:]
class At(boto3.session.Session):
    def client(self, *names, **options):
        return super().client(*names, endpoint_url=url, **options)
session = At(aws_access_key_id="key", aws_secret_access_key="secret", region_name="eu-central-1")
LocalSnapshot(folder, snapshot, session).fetch()
peak()
"""
)


def build(path: Path, written: int) -> Path:
    """A sparse image whose data lies all over it, random, in runs of 1 MiB."""
    if not path.exists():
        rng = random.Random(4)
        with path.open("wb") as f:
            f.truncate(SIZE)
            for place in sorted(rng.sample(range(SIZE // MIB), written // MIB)):
                os.pwrite(f.fileno(), rng.randbytes(MIB), place * MIB)
    return path


def peer(folder: Path) -> Path:
    """Return the interpreter of an environment that has dsnap."""
    python = folder / "dsnap" / "bin" / "python"
    if not python.exists():
        venv.create(python.parents[1], with_pip=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "dsnap"], check=True, stdout=sys.stderr
        )
    return python


def equal(one: Path, other: Path, written: int) -> bool:
    """Whether two sparse files hold the same."""
    places = sorted(random.Random(4).sample(range(SIZE // MIB), written // MIB))
    with one.open("rb") as a, other.open("rb") as b:
        return one.stat().st_size == other.stat().st_size and all(
            os.pread(a.fileno(), MIB, p * MIB) == os.pread(b.fileno(), MIB, p * MIB) for p in places
        )


def measure(folder: Path, runs: int, written: int, latency: float) -> dict[str, object]:
    image = build(folder / f"ebs-{written // MIB}.img", written)
    tools = {
        "impound": (Path(sys.executable), OURS, "paced"),
        "reading": (Path(sys.executable), READING, "paced"),
        "reading, unpaced": (Path(sys.executable), READING, "unpaced"),
        "dsnap": (peer(folder), DSNAP, ""),
    }
    clean = {n: v for n, v in os.environ.items() if not n.startswith("AWS_")}
    times: dict[str, list[float]] = {name: [] for name in tools}
    peaks: dict[str, list[int]] = {name: [] for name in tools}
    server = subprocess.Popen(
        [sys.executable, HERE / "ebs_server.py", image, "--latency", str(latency)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdout
    try:
        told = json.loads(server.stdout.readline())
        for run in range(runs + 1):  # the first warms caches and is not counted
            for name, (python, code, pace) in tools.items():
                out = folder / "ebs-out"
                shutil.rmtree(out, ignore_errors=True)
                out.mkdir()
                started = time.perf_counter()
                done = subprocess.run(
                    [python, "-c", code, told["endpoint"], told["snapshot"], out, pace],
                    check=True, env=clean, capture_output=True, text=True,
                )  # fmt: skip
                took = time.perf_counter() - started
                if name != "impound" and not run:
                    assert equal(image, out / f"{told['snapshot']}.img", written)
                if run:
                    times[name].append(took)
                    peaks[name].append(int(done.stderr.split()[-1]))
        shutil.rmtree(out)
    finally:
        server.terminate()
        server.wait()
    median = {name: statistics.median(taken) for name, taken in times.items()}
    return {
        "blocks": told["blocks"], "latency": latency,
        "seconds": {n: round(t, 2) for n, t in median.items()},
        "all_runs": {n: [round(t, 2) for t in taken] for n, taken in times.items()},
        "blocks/s": {n: round(told["blocks"] / t) for n, t in median.items()},
        "peak RSS MiB (bar 300)": {n: max(p) for n, p in peaks.items()},
        **{
            f"dsnap / {name}": round(median["dsnap"] / median[name], 2)
            for name in tools if name != "dsnap"
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--written-mib", type=int, default=1024)
    parser.add_argument("--latency", type=float, default=0.02)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    found = measure(chosen.folder, chosen.runs, chosen.written_mib * MIB, chosen.latency)
    print(json.dumps(found, indent=None if chosen.json else 1))


if __name__ == "__main__":
    main()
