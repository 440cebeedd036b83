# SPDX-License-Identifier: Apache-2.0
"""Live response over a real sshd: outcomes, deleted programs, hostile answers, lost links."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from acquisition.live import COLLECTORS, OUTCOMES, SIDECARS, Collection, Collector


@pytest.fixture
def remote(sshd):
    with sshd.remote().open() as made:
        yield made


def ask(script, name="x", **how):
    return Collector(name, script, "test", "nothing", **how)


def take(world, remote, *collectors, **how):
    source = Collection(remote, collectors, "live facts of i-1", {"type": "live"}, **how)
    taken = world.case.ingest("live", source)
    return source, taken


def read(world, taken, name):
    fd = world.case.open_member(taken.item_id, name)
    with os.fdopen(fd, "rb") as f:
        return f.read()


@pytest.mark.parametrize(("script", "outcome"), [
    ("echo a", "success"), ("true", "empty"), ("no-such-program", "missing"),
    ("cat /no/such/file", "missing"), ("exit 3", "failed"), ("echo a; exit 3", "failed"),
    ("echo a; no-such-program", "success"), ("kill -9 $$", "failed"),
    ("echo 'not found' >&2", "empty"),
])  # fmt: skip
def test_outcome_of_each_collector(world, remote, script, outcome):
    source, _ = take(world, remote, ask(script))
    assert [a.outcome for a in source.outcomes] == [outcome]


def test_answers_and_outcomes_are_files_of_the_item(world, remote):
    source, taken = take(world, remote, ask("printf abc", "one"), ask("exit 1", "two"))
    assert read(world, taken, "one") == b"abc"
    lines = [json.loads(li) for li in read(world, taken, OUTCOMES).splitlines()]
    assert [(li["name"], li["outcome"], li["size"]) for li in lines] == [
        ("one", "success", 3), ("two", "failed", 0)]  # fmt: skip
    assert lines[0]["script"] == "printf abc"
    assert lines[0]["touches"] == "nothing"
    assert taken.manifest.result == "partial"
    assert any("two" in note for note in taken.manifest.notes)
    assert source.counts == {"success": 1, "empty": 0, "missing": 0, "failed": 1}


def test_missing_and_empty_are_no_failure(world, remote):
    _, taken = take(world, remote, ask("true", "one"), ask("no-such-program", "two"))
    assert taken.manifest.result == "ok"


def test_hostile_endless_answer_is_cut_and_kept_to_its_limit(world, remote):
    source, taken = take(world, remote, ask("yes", limit=1000))
    assert source.outcomes[0].outcome == "failed"
    assert "limit" in source.outcomes[0].why
    assert len(read(world, taken, "x")) == 1000


def test_hostile_slow_answer_is_cut_in_time(world, remote):
    source, _ = take(world, remote, ask("while :; do echo; sleep 0.05; done", within_s=0.3))
    assert source.outcomes[0].outcome == "failed"


def test_hostile_bytes_are_kept_as_they_are_and_printed_clean(world, remote):
    source, taken = take(
        world, remote, ask(r"printf '\033[31m\000\377'; printf '\033]0;x\007' >&2")
    )
    assert read(world, taken, "x") == b"\x1b[31m\x00\xff"
    assert "\x1b" not in source.outcomes[0].line().decode()


def test_deleted_program_is_taken_from_memory(world, remote, tmp_path):
    program = tmp_path / "evil name"
    shutil.copy(shutil.which("sleep") or "", program)
    expected = program.read_bytes()
    with subprocess.Popen([str(program), "300"]) as running:
        try:
            program.unlink()
            source, taken = take(world, remote, deleted=True)
        finally:
            running.kill()
    assert read(world, taken, f"deleted/{running.pid}") == expected
    found = next(a for a in source.outcomes if a.name == f"deleted/{running.pid}")
    assert found.outcome == "success"
    assert str(found.facts["path"]).endswith("evil name (deleted)")


def test_paths_are_taken_whole_and_a_missing_one_is_said(world, remote, tmp_path):
    (tmp_path / "it's here").write_bytes(b"tmpfs" * 1000)
    source, taken = take(world, remote, paths=[str(tmp_path / "it's here"), "/no/such"])
    assert read(world, taken, "paths/0000") == b"tmpfs" * 1000
    assert [a.outcome for a in source.outcomes] == ["success", "missing"]


def test_large_file_is_cut_and_said(world, remote, tmp_path):
    (tmp_path / "big").write_bytes(bytes(100_000))
    source, taken = take(world, remote, paths=[str(tmp_path / "big")], file_bytes=70_000)
    assert len(read(world, taken, "paths/0000")) == 70_000
    assert "cut" in source.outcomes[0].why
    assert taken.manifest.result == "partial"


def test_lost_link_costs_one_answer_and_the_rest_goes_on(world, sshd, remote):
    source = Collection(
        remote, [ask("echo a", "one"), ask("kill -9 $PPID", "two"), ask("echo c", "three")],
        "x", {},
    )  # fmt: skip
    taken = world.case.ingest("live", source)
    assert [a.outcome for a in source.outcomes] == ["success", "failed", "success"]
    assert read(world, taken, "three") == b"c\n"


def test_host_that_is_gone_fails_each_that_is_left(world, sshd, remote):
    source = Collection(remote, [ask("echo a", "one"), ask("echo b", "two")], "x", {})
    source.say = lambda _line: sshd.stop()
    world.case.ingest("live", source)
    assert [a.outcome for a in source.outcomes] == ["success", "failed"]


def test_without_root_it_answers_what_it_may_see(world, sshd):
    sshd.unprivileged()
    (sshd.room / "never").touch()
    with sshd.remote().open() as r:
        source, _ = take(world, r, ask("echo a"))
    assert source.outcomes[0].outcome == "success"


def test_every_collector_is_a_valid_script_and_says_what_it_touches():
    names = [c.name for c in COLLECTORS]
    assert len(set(names)) == len(names)
    for collector in (*COLLECTORS, *SIDECARS):
        subprocess.run(["sh", "-n", "-c", collector.script], check=True)
        assert collector.why
        assert collector.touches
    assert names.index("sockets") < names.index("processes") < names.index("journal")


WRITES = (" > ", ">>", "tee ", "touch ", "mkdir", "mktemp", "rm ", "chmod", "mount -", "insmod")


def test_no_collector_writes_on_the_host():
    for collector in (*COLLECTORS, *SIDECARS):
        said = collector.script.replace("2>/dev/null", "")
        assert not [w for w in WRITES if w in said], collector.name


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel of this machine")
def test_collectors_of_processes_see_this_process(world, remote):
    wanted = ("sockets.proc", "processes.proc", "clock")
    source, taken = take(world, remote, *[c for c in COLLECTORS if c.name in wanted])
    assert {a.outcome for a in source.outcomes} == {"success"}
    assert f"== {os.getpid()}\n".encode() in read(world, taken, "processes.proc")
    assert Path("/proc/net/tcp").read_text()[:20].encode() in read(world, taken, "sockets.proc")
