# SPDX-License-Identifier: Apache-2.0
"""The job `live` as it runs: the answers of a host become tables, and what is missing is said."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from acquisition.live import COLLECTORS, Collection
from analysis.jobs import JOBS, run_job
from analysis.query import query
from analysis.schema import TABLES
from tests.analysis.live.test_programs import CONTAINERS, LOGINS, SCHEDULE
from tests.analysis.live_answers import BOOT, BOOT_NS, Asked, answers, outcome
from tests.evidence_store import kit

LIVE = JOBS["live"]
DIGEST = "a" * 64
MORE = {
    "executables": f"1 8:1 {DIGEST} /bin/init\n66 8:2  /tmp/evil (deleted)\n",
    "environment": "== 66\nLD_PRELOAD=/tmp/x.so\n", "maps": "== 66\n1000-2000 rwxp 0 00:00 0\n",
    "open_files": "== 66\nlrwx------ 1 0 0 64 Nov 24 02:30 5 -> socket:[77]\n",
    "mounts": "25 1 254:0 / / rw - ext4 /dev/vda rw\n", "logins": LOGINS, "timers": SCHEDULE,
    "services": "sshd.service loaded active running sshd\nsshd.service enabled enabled\n",
    "containers": CONTAINERS, "sockets": 'tcp LISTEN 0 1 0.0.0.0:22 0.0.0.0:* users:(("sshd",'
    "pid=40,fd=3)) ino:5 sk:1\n",
}  # fmt: skip


@pytest.fixture
def world(tmp_path):
    return kit.make_world(tmp_path / "store")


def take(world, processes, *, asked=None, outcomes=b"", **how):
    given = answers(processes, **how)
    given["collectors.jsonl"] += outcomes
    world.case.ingest("live", Asked(given, **(asked or {})))
    return run_job(world.case, LIVE, "E0001")


def ask(world, sql):
    return query(world.case, sql).rows


def said(world):
    return [f"{level} {reason}" for level, reason in
            ask(world, "SELECT level, reason FROM coverage ORDER BY ALL")]  # fmt: skip


def test_every_table_of_a_live_response_is_of_this_job():
    assert {name for name in TABLES if name.startswith("live_")} == set(LIVE.tables) - {"timeline"}


def test_answers_become_tables(world):
    tcp = ("   1: 00000000:115C 00000000:0000 0A 0:0 0:0 0 1000 0 77 1\n",
           "   2: 00000000:0016 00000000:0000 0A 0:0 0:0 0 0 0 5 1\n")  # fmt: skip
    utc = outcome("logins", script="export TZ=UTC0; who -a")
    result = take(world, {1: "init", 40: "sshd", 66: "evil"}, more=MORE, tcp=tcp, outcomes=utc)
    assert said(world) == ["gap timers: 1 lines are not of the format that is read, the first is "
                           "line 14"]  # fmt: skip
    assert set(result.rows) == {*LIVE.tables, "coverage"}
    assert ask(world, "SELECT pid, ppid, comm, uid, args, exe, exe_deleted, exe_sha256, started, "
               "views, collector, line FROM live_processes WHERE pid = 66") == [
        (66, 65, "evil", 0, "/bin/evil -a", "/tmp/evil", True, None, BOOT_NS + 66 * 10**7,
         "processes.proc,processes", "processes.proc", 11)]  # fmt: skip
    assert ask(world, "SELECT exe_sha256 FROM live_processes WHERE pid = 1") == [(DIGEST,)]
    assert ask(world, "SELECT local_port, pid, comm, fd, uid, views FROM live_sockets "
               "WHERE state = 'LISTEN' AND inode IS NOT NULL ORDER BY ALL") == [
        (22, 40, "sshd", 3, 0, "sockets.proc,sockets"), (4444, 66, "evil", 5, 1000, "sockets.proc"),
    ]  # fmt: skip
    assert ask(world, "SELECT name, value FROM live_environment") == [("LD_PRELOAD", "/tmp/x.so")]
    assert ask(world, "SELECT boot_id, name, booted, ahead FROM live_host") == [
        (BOOT, "host", BOOT_NS, 3 * 10**9)]  # fmt: skip
    assert ask(world, "SELECT name, active, enabled FROM live_services") == [
        ("sshd.service", "active", "enabled")]  # fmt: skip
    assert ask(world, "SELECT count(*) FROM live_outcomes WHERE outcome = 'success'") == [(16,)]
    assert ask(world, "SELECT timestamp_desc, count(*) FROM timeline GROUP BY 1 ORDER BY 1") == [
        ("boot", 2), ("created", 3), ("failed", 1), ("login", 4), ("logout", 1),
        ("shutdown", 1)]  # fmt: skip
    assert ask(world, "SELECT datetime FROM timeline WHERE message LIKE 'process 66 evil %'") == [
        ("2026-11-24T02:23:20.660000+00:00",)]  # fmt: skip
    assert ask(world, "SELECT count(*) FROM processes") == [(0,)], "those are of memory"


def test_collector_that_failed_is_a_gap_and_what_it_said_is_kept(world):
    cut = outcome("maps", "failed", why="cut at its limit")
    more = {**MORE, "timers": "", "maps": "== 66\n1000-2000 rwxp 0 00:00 0\n3000-40"}
    result = take(world, {1: "init"}, more=more, outcomes=cut)
    assert result.result == "partial"
    assert said(world) == ["gap maps: cut at its limit"]
    assert ask(world, "SELECT count(*) FROM live_mappings") == [(1,)], "the torn line is none"
    assert ask(world, "SELECT outcome, why FROM live_outcomes WHERE name = 'maps'") == [
        ("failed", "cut at its limit")]  # fmt: skip


def test_program_that_a_host_has_not_is_no_gap_and_a_list_of_the_kernel_is(world):
    missing = outcome("containers", "missing") + outcome("mounts", "missing")
    take(world, {1: "init"}, more={**MORE, "timers": "", "containers": "", "mounts": ""},
         outcomes=missing)  # fmt: skip
    assert said(world) == ["gap mounts: the host has no such program or file",
                           "limit containers: the host has no such program or file"]  # fmt: skip


def test_what_was_not_asked_or_not_wholly_answered_is_a_gap(world):
    take(world, {9: "x"}, asked={"root": False})
    text = "\n".join(said(world))
    assert "gap the account was not root" in text
    assert "gap executables: the host was not asked" in text
    assert "gap the host's answer on processes.proc has no process 1" in text


def test_no_answers_at_all_is_a_failure(world):
    world.case.ingest("live", Asked({"collectors.jsonl": b"[]\n{\n" + b"[" * 100_000}))
    result = run_job(world.case, LIVE, "E0001")
    assert (result.result, set(result.rows)) == ("failed", {"coverage"})


def test_answers_without_end_and_bytes_that_are_no_text_do_not_end_the_job(world):
    noise = bytes(range(256)) * 4000
    names = (*MORE, "system", "clock", "modules", "processes", "processes.proc", "sockets.proc")
    given = dict.fromkeys(names, noise)
    given["collectors.jsonl"] = b"".join(outcome(name, size=2**70, code="x") for name in names)
    world.case.ingest("live", Asked(given))
    result = run_job(world.case, LIVE, "E0001")
    assert result.outcome.ok, result.outcome
    assert ask(world, "SELECT DISTINCT size, code FROM live_outcomes") == [(None, None)]
    assert sum("not of the format" in line for line in said(world)) > 10


def test_facts_of_a_running_host_are_read_without_a_line_left_over(world, sshd, tmp_path):
    """Of what runs the tests, by its own programs; environments of strangers are not taken."""
    program = tmp_path / "gone"
    shutil.copy(shutil.which("sleep") or "", program)
    asked = [c for c in COLLECTORS if c.name in ("clock", "processes", "processes.proc", "system",
             "executables", "maps", "sockets", "sockets.proc", "modules", "mounts", "logins",
             "timers", "services")]  # fmt: skip
    with subprocess.Popen([str(program), "300"]) as running:
        try:
            program.unlink()
            with sshd.remote().open() as remote:
                facts = {"type": "live response", "root": remote.root is not None}
                world.case.ingest("live", Collection(remote, asked, "facts", facts))
        finally:
            running.kill()
    run_job(world.case, LIVE, "E0001")
    assert [line for line in said(world) if "not of the format" in line] == []
    assert ask(world, "SELECT comm, exe, exe_deleted, length(exe_sha256), views FROM "
               f"live_processes WHERE pid = {running.pid}") == [
        ("gone", str(program), True, 64, "processes.proc,processes")]  # fmt: skip
    assert ask(
        world,
        "SELECT DISTINCT views FROM live_sockets WHERE protocol = 'TCP' AND "
        f"local_port = {sshd.port} AND state = 'LISTEN'",
    ) == [("sockets.proc,sockets",)]
    assert ask(world, "SELECT count(*) FROM live_mounts WHERE path = '/proc'")[0] >= (1,)
