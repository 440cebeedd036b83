# SPDX-License-Identifier: Apache-2.0
"""Memory over SSH: the same bytes of a host's kcore by `acquire memory` and by `ssh host dd`.

    python benchmarks/ssh.py DIR [--runs N] [--mib M] [--json]

The host is an OpenSSH server on 127.0.0.1 whose kcore is a file of random bytes
(tests/acquisition/kcore_host.py), so both ends share this machine's processors and nothing
compresses. The peer is `ssh host dd … > file`, then a sync of that file. Ours is measured twice:
"capture": the LiME image into a file, with its sync, which is what the peer does; "impound": into
custody, which hashes each segment and the whole, writes durably and signs. The runs alternate;
medians; the ratio is the peer's time over ours. RSS is the peak of a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from tests.acquisition.kcore_host import BANNER, CODE, MIB, KcoreHost, data, head, iomem  # noqa: E402

OURS = """
import os, sys, threading
from pathlib import Path
from acquisition.memory import SEGMENT_BYTES, KcoreCapture, look
from tests.acquisition.kcore_host import KcoreHost
from tests.evidence_store.kit import make_world

home, out, what, port = sys.argv[1:]
host = KcoreHost(Path(home))
host.port = int(port)
with host.remote().open() as remote, KcoreCapture(remote, look(remote), "benchmark") as source:
    if what == "impound":
        make_world(Path(out)).case.ingest(
            "memory", source, segment_size=SEGMENT_BYTES, read_back=False
        )
    else:
        view = memoryview(bytearray(64 << 20))
        with open(f"{out}/image", "wb") as f:
            for at in range(0, source.size, len(view)):
                part = view[: min(len(view), source.size - at)]
                runs, gaps = source.fill(part, at, threading.Event())
                assert not gaps, gaps
                for a, b in runs:
                    os.pwrite(f.fileno(), part[a:b], at + a)
            f.truncate(source.size)
            os.fsync(f.fileno())
said = Path("/proc/self/status").read_text()
print(int(said.split("VmHWM:")[1].split()[0]) // 1024)
"""


def peer(host: KcoreHost, path: Path, mib: int) -> None:
    with path.open("wb") as f:
        subprocess.run(
            ["ssh", "-q", "-F", "none", "-o", "StrictHostKeyChecking=no", "-o",
             "UserKnownHostsFile=/dev/null", "-i", host.home / "user", "-p", str(host.port),
             "127.0.0.1", f"dd if=/proc/kcore bs=1M iflag=skip_bytes,count_bytes "
             f"skip={data(MIB)} count={mib * MIB} status=none"],
            check=True, stdin=subprocess.DEVNULL, stdout=f,
        )  # fmt: skip
        os.fsync(f.fileno())
    assert path.stat().st_size == mib * MIB


def measure(folder: Path, runs: int, mib: int) -> dict[str, object]:
    times: dict[str, list[float]] = {"capture": [], "impound": [], "ssh dd": []}
    peaks: dict[str, list[int]] = {"capture": [], "impound": []}
    ram = ((0x1000, 0x9F000), (MIB, MIB + mib * MIB))
    with tempfile.TemporaryDirectory(dir=folder) as place:
        host = KcoreHost(Path(place) / "host")
        with (host.room / "kcore").open("wb") as f:
            f.write(head(ram))
            f.seek(data(MIB))
            for _ in range(mib):
                f.write(os.urandom(MIB))
            f.seek(data(CODE[0]) + 5000)
            f.write(BANNER.encode())
        host.proc("iomem", iomem(ram))
        host.start()
        try:
            for run in range(runs + 1):  # the first warms caches and is not counted
                for name, taken in times.items():
                    with tempfile.TemporaryDirectory(dir=place) as out:
                        started = time.perf_counter()
                        if name == "ssh dd":
                            peer(host, Path(out) / "image", mib)
                        else:
                            done = subprocess.run(
                                [sys.executable, "-c", OURS, host.home, out, name, str(host.port)],
                                check=True, stdout=subprocess.PIPE, text=True, cwd=HERE.parent,
                            )  # fmt: skip
                            if run:
                                peaks[name].append(int(done.stdout))
                        if run:
                            taken.append(time.perf_counter() - started)
        finally:
            host.stop()
    median = {name: statistics.median(taken) for name, taken in times.items()}
    return {
        "mib": mib,
        "seconds": {n: round(t, 2) for n, t in median.items()},
        "MB/s": {n: round(mib * MIB / 1e6 / t) for n, t in median.items()},
        "peak RSS MiB (bar 200)": {n: max(p) for n, p in peaks.items()},
        "ssh dd / capture (bar 0.8)": round(median["ssh dd"] / median["capture"], 2),
        "ssh dd / impound (bar 0.8)": round(median["ssh dd"] / median["impound"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    found = measure(chosen.folder, chosen.runs, chosen.mib)
    print(json.dumps(found, indent=None if chosen.json else 1))


if __name__ == "__main__":
    main()
