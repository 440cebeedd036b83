# SPDX-License-Identifier: Apache-2.0
"""The offline path as its user runs it: the `impound` script, real images, kills and faults."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

IMPOUND = str(Path(sys.executable).parent / "impound")


@pytest.fixture
def shell(tmp_path):
    """Run `impound …` in an own home; returns CompletedProcess."""
    (tmp_path / "pass").write_text("correct horse battery\n")
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "LANG": "C.UTF-8",
        "IMPOUND_PASSPHRASE_FILE": str(tmp_path / "pass"),
    }  # fmt: skip

    def call(*argv, prefix=(), check=None, popen=False):
        command = [*prefix, IMPOUND, *map(str, argv)]
        if popen:
            # As from a terminal: what a shell starts in the background ignores SIGINT, tests too.
            return subprocess.Popen(
                command, cwd=tmp_path, env=environment,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )  # fmt: skip
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert "Traceback" not in done.stderr, done.stderr
        if check is not None:
            assert done.returncode == check, done.stdout + done.stderr
        return done

    (tmp_path / "home").mkdir()
    call("key", "new", check=0)
    call("case", "open", "T-1001", "--title", "lab", "--contact", "soc@example.org", check=0)
    return call


@pytest.fixture
def disk(tmp_path, need_tool):
    """A real ext4 image with a few hundred files."""
    tree = tmp_path / "tree"
    for i in range(300):
        path = tree / f"d{i % 7}/f{i}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"file {i}\n" * i)
    image = tmp_path / "disk.img"
    command = [need_tool("mke2fs"), "-q", "-F", "-t", "ext4", "-d", str(tree), str(image), "200M"]
    subprocess.run(command, check=True)
    return image


@pytest.fixture
def interrupted(shell, tmp_path, need_tool):
    """Start an ingest of five segments, stop it by a signal once it has stored one.

    Each fsync takes half a second longer, so that it cannot be over before; `-D` leaves the process
    that we started to be impound, not strace.
    """
    slow = [need_tool("strace"), "-D", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync",
            "-e", "inject=fsync:delay_enter=500000"]  # fmt: skip
    image = tmp_path / "big.img"
    block = os.urandom(1 << 20)
    with image.open("wb") as f:
        for i in range(320):
            f.write(i.to_bytes(8, "big") + block[8:])
    data = tmp_path / "evidence/cases/T-1001/items/E0001/data"

    def stop(how):
        running = shell("ingest", "T-1001", image, "--kind", "disk", "-q", prefix=slow, popen=True)
        while not (data.is_dir() and any(data.iterdir())) and running.poll() is None:
            os.sched_yield()
        running.send_signal(how)
        code = running.wait()
        assert code != 0, "the ingest was over before it could be stopped"
        return code

    return stop, image, data


def test_must_show(shell, disk, tmp_path):
    shell("ingest", "T-1001", disk, "--kind", "disk", "--source", "laptop 7", check=0)
    shell("analyse", "T-1001", "--jobs", "files", check=0)
    sql = "select count(*) as n from files where type = 'file' and path like '/d%'"
    answer = json.loads(shell("--json", "query", "T-1001", sql, check=0).stdout)
    assert answer == {"columns": ["n"], "rows": [{"n": 300}]}
    shell("report", "T-1001", "-o", tmp_path / "out", check=0)
    assert "laptop 7" in (tmp_path / "out/index.html").read_text()
    shell("verify", "T-1001", "--deep", check=0)
    rebuilt = subprocess.run(
        [IMPOUND, "item", "cat", "T-1001", "E0001"], cwd=tmp_path, capture_output=True, check=True,
        env={"HOME": str(tmp_path / "home"), "PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert rebuilt.stdout == disk.read_bytes()


@pytest.mark.chaos
def test_kill_9_during_ingest_then_again(shell, interrupted):
    """Same digests, nothing stored twice, one intent shown as interrupted, resumed; verify 0."""
    stop, image, data = interrupted
    stop(signal.SIGKILL)
    first = {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in data.iterdir()}
    assert first
    shell("verify", "T-1001", check=3)
    again = json.loads(shell("--json", "ingest", "T-1001", image, "--kind", "disk", check=0).stdout)
    assert (again["item"], again["resumed"]) == ("E0001", True)
    after = {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in data.iterdir()}
    assert len(after) == 5
    assert {name: after[name] for name in first} == first
    shown = shell("case", "show", "T-1001", check=0).stdout
    assert re.search(r"E0001 .*interrupted, resumed, acquired", shown)
    shell("verify", "T-1001", "--deep", check=0)
    assert again["manifest"]["content"]["sha256"] == hashlib.sha256(image.read_bytes()).hexdigest()


@pytest.mark.chaos
def test_ctrl_c_is_130_and_resumable(shell, interrupted):
    stop, image, _ = interrupted
    assert stop(signal.SIGINT) == 130
    shell("ingest", "T-1001", image, "--kind", "disk", check=0)
    shell("verify", "T-1001", "--deep", check=0)


@pytest.mark.chaos
def test_source_that_fails_to_read_at_an_offset(shell, disk, need_tool):
    """The rest is taken, the gap is in the manifest, exit 3; analysis says what it did not see."""
    strace = need_tool("strace")
    # Each thread reads once; then a read of 4 MiB fails, and its halves, down to 4 KiB.
    prefix = [strace, "-f", "-qq", "-o", "/dev/null", "-P", str(disk),
              "-e", "trace=preadv,preadv2",
              "-e", "inject=preadv,preadv2:error=EIO:when=2..12"]  # fmt: skip
    done = shell("--json", "ingest", "T-1001", disk, "--kind", "disk", prefix=prefix)
    assert done.returncode == 3, done.stderr
    manifest = json.loads(done.stdout)["manifest"]
    assert manifest["result"] == "partial"
    assert manifest["unreadable"][0]["error"] == "Input/output error"
    assert manifest["unreadable_bytes"] % 4096 == 0
    assert manifest["size"] == disk.stat().st_size
    shell("analyse", "T-1001", "--jobs", "files", check=3)
    coverage = "select count(*) as n from coverage where what = 'unreadable'"
    assert json.loads(shell("--json", "query", "T-1001", coverage).stdout)["rows"][0]["n"] >= 1
    shell("verify", "T-1001", "--deep", check=0)


def test_stdin_and_closed_output(shell, tmp_path):
    body = os.urandom(300_000)
    done = subprocess.run(
        [IMPOUND, "--json", "ingest", "T-1001", "-", "--kind", "memory", "--source", "pipe"],
        cwd=tmp_path, input=body, capture_output=True, check=True,
        env={"HOME": str(tmp_path / "home"), "PATH": os.environ["PATH"],
             "IMPOUND_PASSPHRASE_FILE": str(tmp_path / "pass")},
    )  # fmt: skip
    assert json.loads(done.stdout)["manifest"]["size"] == len(body)
    piped = subprocess.run(
        f"{IMPOUND} item cat T-1001 E0001 | head -c 10 | wc -c", shell=True, cwd=tmp_path,
        capture_output=True, text=True, check=True,
        env={"HOME": str(tmp_path / "home"), "PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert piped.stdout.strip() == "10"
    assert "Traceback" not in piped.stderr


def test_hostile_working_directory_is_not_imported(shell, disk, tmp_path):
    for name in ("json", "click", "analysis", "pipeline", "socket"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the evidence')\n")
    shell("ingest", "T-1001", disk, "--kind", "disk", check=0)
    shell("analyse", "T-1001", check=0)


def test_gameday_passes(shell, tmp_path, need_tool):
    need_tool("mke2fs")
    done = shell("--json", "gameday", "offline", "-o", tmp_path / "gd")
    card = json.loads(done.stdout)["scorecard"]
    assert done.returncode == 0, card
    assert all(step["outcome"] == "ok" for step in card["steps"])
    assert {"name", "outcome", "seconds"} <= set(card["steps"][0])
    assert all(p["found"] and p["where"] for p in card["planted"])
    assert card["not_rehearsed"]
    assert Path(card["report"]).is_file()
    assert shell("gameday", "-o", tmp_path / "gd").returncode == 2
