# SPDX-License-Identifier: Apache-2.0
"""A fault at every system call of the write path: the store stays whole and the work goes on.

The calls are not listed here: a first run under strace tells which ones touch the store.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from evidence_store.backend import LocalBackend
from evidence_store.ledger import Draft
from evidence_store.store import Store
from tests.evidence_store import kit
from tests.evidence_store.kit import CASE, SEGMENT

WRITE_PATH = (
    "openat,mkdir,mkdirat,link,linkat,unlink,unlinkat,rename,renameat,renameat2,"
    "write,pwrite64,ftruncate,fsync,fdatasync,flock"
)
FAULTS = ("signal=KILL", "error=EIO", "error=ENOSPC")

# The work is done after a fork, so that strace counts its calls from one. Imports open files too:
# there a fault is aimed by path, for which names of temporary files must repeat.
CHILD = """
import itertools, os, secrets, sys
from pathlib import Path
from evidence_store.backend import LocalBackend
from evidence_store.errors import Error
from evidence_store.ledger import Draft
from evidence_store.store import Store
from tests.evidence_store import kit
child = os.fork()
if child:
    status = os.waitpid(child, 0)[1]
    os._exit(os.waitstatus_to_exitcode(status) % 256)
count = itertools.count()
secrets.token_hex = lambda n: f"{next(count):0{2 * n}x}"
os.getpid = lambda: 1
try:
    case = Store(LocalBackend(Path(sys.argv[1])), kit.make_scribe(seed="child")).case(kit.CASE)
    case.record(lambda: Draft("review.noted", {"note": "one entry"}))
    case.ingest("disk", kit.FakeImage(kit.pattern(kit.SEGMENT + 10)), segment_size=kit.SEGMENT,
                workers=1)
    case.seal(kit.CHECKPOINT)
except Error as e:
    print(type(e).__name__, e)
    sys.stdout.flush()
    os._exit(e.exit_code)
except BaseException:
    import traceback
    traceback.print_exc()
    os._exit(99)
os._exit(0)
"""


def trace(strace, root, *options):
    """Run the child under strace; return (result, lines of the trace).

    Without --seccomp-bpf: with it, strace 6.1 injects no signals.
    """
    log = root.with_suffix(".trace")
    done = subprocess.run(
        [strace, "-f", "-y", "-o", str(log), *options,
         sys.executable, "-c", CHILD, str(root)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    return done, log.read_text(errors="replace").splitlines()


def calls(lines, root):
    """Return the calls that write to the store: (call, ordinal in its thread, path or "")."""
    seen: dict[tuple[str, str, str], int] = {}
    found = []
    for line in lines:
        match = re.match(r"(\d+) +(\w+)\((.*)", line)
        if match is None:
            continue
        pid, call, rest = match.groups()
        path = rest.split('"')[1] if call == "openat" else ""
        seen[pid, call, path] = seen.get((pid, call, path), 0) + 1
        writes = call != "openat" or "O_CREAT" in rest or "O_DIRECTORY" in rest
        if str(root) in rest and writes:
            found.append((call, seen[pid, call, path], path.removeprefix(str(root))))
    return sorted(set(found))


def finish(root):
    """What a person does next: look, append, run the same command again, seal."""
    verdict = kit.verify(root)
    assert verdict.findings == []
    scribe = kit.make_scribe(seed="next")
    scribe.clock.now += timedelta(hours=1)
    case = Store(LocalBackend(root), scribe).case(CASE)
    case.record(lambda: Draft("review.noted", {"note": "next"}))
    data = kit.pattern(SEGMENT + 10)
    taken = case.ingest("disk", kit.FakeImage(data), segment_size=SEGMENT)
    assert taken.item_id == "E0001"
    case.seal(kit.CHECKPOINT)
    with case.open("E0001") as image:
        assert image.read() == data
    verdict = kit.verify(root)
    assert verdict.findings == []
    # An interrupted checkpoint of a smaller size is never finished: a larger one covers it.
    left = {n.text for n in verdict.notes} - {"a checkpoint was begun and not finished"}
    assert left == set()
    noted = [e.note for e in case.ledger.events]
    assert noted.count("one entry") <= 1
    assert noted.count("next") == 1


@pytest.mark.chaos
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_any_write_leaves_a_store_that_verifies_and_goes_on(tmp_path, need_tool, fault):
    strace = need_tool("strace")
    base = kit.make_world(tmp_path / "base").root
    plain = tmp_path / "plain"
    shutil.copytree(base, plain)
    done, lines = trace(strace, plain, "-e", f"trace={WRITE_PATH}")
    assert done.returncode == 0, done.stderr
    points = calls(lines, plain)
    assert {"fsync", "pwrite64", "openat", "flock"} <= {call for call, _, _ in points}
    assert len(points) >= 20
    finish(plain)

    def attempt(numbered):
        number, (call, when, path) = numbered
        root = tmp_path / f"run{number}"
        shutil.copytree(base, root)
        only = ["-P", f"{root}{path}"] if call == "openat" else []
        done, lines = trace(
            strace, root, "-e", f"trace={call}", "-e", f"inject={call}:{fault}:when={when}", *only
        )
        try:
            assert done.returncode != 99, done.stderr  # every error is one of ours
            if fault == "signal=KILL":
                assert done.returncode == 256 - signal.SIGKILL
            else:
                assert any("(INJECTED)" in line for line in lines)
                assert done.returncode in (0, 11), (done.returncode, done.stdout, done.stderr)
            finish(root)
        except AssertionError as e:
            return f"{call} {when} {path}: {e}"
        except Exception as e:
            return f"{call} {when} {path}: {type(e).__name__}: {e}"
        shutil.rmtree(root)
        return ""

    with ThreadPoolExecutor(2) as pool:
        problems = [problem for problem in pool.map(attempt, enumerate(points)) if problem]
    assert problems == []
