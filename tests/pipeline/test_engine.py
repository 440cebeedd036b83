# SPDX-License-Identifier: Apache-2.0
"""The engine under kills, locks, a full disk, other versions: nothing lost, nothing made twice."""

from __future__ import annotations

import collections
import contextlib
import json
import random
import signal
import sqlite3
import time
from pathlib import Path

import pytest

from evidence_store.errors import BusyError
from pipeline.board import ENDED, RUN, SERIALIZER, VERSION, Board, Place, is_locked
from pipeline.workflow import STEPS
from tests.pipeline.engine_driver import place_of

DRIVER = Path(__file__).with_name("engine_driver.py")
TARGET_STEPS = [s.name for s in STEPS if s.scope == "target"]
JOBS_OF_A_RUN = sum(2 if s.units else 1 for s in STEPS)


def ended(process, seconds=60):
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def acts(log):
    found = collections.Counter(tuple(line.split()[:2]) for line in log.read_text().splitlines())
    return {act: {j: n for (a, j), n in found.items() if a == act} for act in ("begin", "made")}


def once(log, runs=1):
    """Every effect was made, and once."""
    made = acts(log)["made"]
    assert len(made) == runs * JOBS_OF_A_RUN, made
    assert set(made.values()) == {1}


def until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


def test_a_run_to_its_end(driver, log, place):
    code, out, err = ended(driver("--start", 1))
    assert (code, out.split()[-1]) == (0, "SUCCESS:ok"), err
    assert err == ""
    once(log)
    assert not acts(log)["begin"].keys() - acts(log)["made"].keys() - {"run"}
    order = [line.split("/")[4].split("~")[0] for line in log.read_text().splitlines()
             if line.startswith("made") and "/-/" not in line]  # fmt: skip
    assert list(dict.fromkeys(order))[:6] == TARGET_STEPS[:6]
    assert set(order[-2:]) == {"verify"}


@pytest.mark.chaos
def test_its_files_are_for_their_owner_only_and_in_wal_mode(driver, place):
    ended(driver("--start", 1))
    home = Path(place)
    assert home.stat().st_mode & 0o777 == 0o700
    assert all(p.stat().st_mode & 0o077 == 0 for p in home.iterdir())
    with contextlib.closing(sqlite3.connect(home / "engine.sqlite")) as c:
        assert c.execute("pragma journal_mode").fetchone() == ("wal",)


@pytest.mark.chaos
@pytest.mark.parametrize("step", [s.name for s in STEPS])
def test_killed_after_an_effect_and_before_its_outcome(driver, log, step):
    first = driver("--start", 1, "--die", step)
    assert ended(first)[0] == -signal.SIGKILL
    code, out, err = ended(driver())
    assert (code, out.split()[-1]) == (0, "SUCCESS:ok"), err
    once(log)
    again = {j for j, n in acts(log)["begin"].items() if n > 1}
    assert {j.split("/")[4] for j in again} <= {step, "copy", "read"}  # those at work beside it


@pytest.mark.chaos
def test_killed_in_the_freeze_only_the_freeze_is_begun_again(driver, log):
    assert ended(driver("--start", 1, "--die", "freeze"))[0] == -signal.SIGKILL
    code, _, err = ended(driver())
    assert code == 0, err
    once(log)
    assert [j.split("/")[4] for j, n in acts(log)["begin"].items() if n > 1] == ["freeze"]


@pytest.mark.chaos
def test_fifteen_random_kills_lose_and_double_nothing(driver, log, place):
    runs, chance = 6, random.Random(7)
    process = driver("--start", runs, "--seconds", 0.1)
    kills = 0
    while kills < 15:
        time.sleep(chance.uniform(0.8, 2.5))
        if process.poll() is not None:
            break
        process.kill()
        process.communicate()
        kills += 1
        process = driver("--start", runs, "--seconds", 0.1)
    code, out, err = ended(process, 120)
    assert code == 0, err
    assert out.split()[-runs:] == ["SUCCESS:ok"] * runs
    once(log, runs)
    with contextlib.closing(sqlite3.connect(Path(place) / "engine.sqlite")) as c:
        assert c.execute("pragma integrity_check").fetchone() == ("ok",)


@pytest.mark.chaos
def test_a_second_executor_of_the_same_place_is_refused(driver, log, place):
    first = driver("--start", 1, "--seconds", 0.5)
    until(lambda: Path(place, "executor.lock").exists() and is_locked(place_of(place)))
    code, _, err = ended(driver())
    assert code == 1
    assert "BusyError" in err
    assert ended(first)[0] == 0
    once(log)
    assert set(acts(log)["begin"].values()) == {1}


def test_the_lock_is_gone_with_its_process(driver, place):
    first = driver("--serve")
    until(lambda: Path(place, "executor.lock").exists() and is_locked(place_of(place)))
    first.kill()
    first.communicate()
    assert not is_locked(place_of(place))


@pytest.mark.chaos
def test_a_comment_in_the_workflow_strands_nothing(driver, log):
    assert ended(driver("--start", 1, "--die", "isolate"))[0] == -signal.SIGKILL
    code, out, err = ended(driver("--comment"))
    assert (code, out.split()[-1]) == (0, "SUCCESS:ok"), err
    once(log)


@pytest.mark.chaos
def test_a_step_inserted_before_finished_ones_is_not_taken_for_them(driver, log, place):
    """A run keeps the steps that it was started with: its plan names them."""
    assert ended(driver("--start", 1, "--die", "isolate"))[0] == -signal.SIGKILL
    code, out, err = ended(driver("--insert"))
    assert (code, out.split()[-1]) == (0, "SUCCESS:ok"), err
    once(log)
    assert not any("/prepare" in job for job in acts(log)["made"])


@pytest.mark.chaos
def test_a_row_of_another_version_is_not_run(driver, log, place):
    """It waits, and whoever looks can see why: pipeline.response replaces it."""
    assert ended(driver("--start", 1, "--die", "freeze"))[0] == -signal.SIGKILL
    with contextlib.closing(sqlite3.connect(Path(place) / "engine.sqlite")) as c, c:
        c.execute("update workflow_status set application_version = 'respond-0' "
                  "where status = 'PENDING'")  # fmt: skip
    begun = acts(log)["begin"]
    process = driver("--serve")
    assert process.stdout.readline().startswith("ready")
    time.sleep(2)
    process.kill()
    process.communicate()
    assert acts(log)["begin"] == begun
    stale = [r for r in Board(place_of(place)).rows(over=False) if r.version != VERSION]
    assert {RUN, "step.freeze"} <= {r.name for r in stale}


@pytest.mark.chaos
def test_another_process_that_locks_the_database_is_waited_for(driver, log, place):
    process = driver("--start", 1, "--seconds", 0.1)
    until(lambda: "freeze" in log.read_text() if log.exists() else False)
    with contextlib.closing(sqlite3.connect(Path(place) / "engine.sqlite", timeout=30)) as c:
        c.execute("begin immediate")
        time.sleep(6)
        c.rollback()
    code, _, err = ended(process, 90)
    assert code == 0, err
    once(log)


@pytest.mark.chaos
def test_a_full_disk_stops_the_run_and_with_space_it_goes_on(driver, log, place):
    code, out, err = ended(driver("--start", 1, "--full", "memory"), 90)
    assert code == 97 or "ERROR" in out, err
    with contextlib.closing(sqlite3.connect(Path(place) / "engine.sqlite")) as c:
        assert c.execute("pragma integrity_check").fetchone() == ("ok",)
    code, out, err = ended(driver())  # there is space again
    assert code == 0, err
    if "SUCCESS" in out:
        once(log)


def test_no_socket_is_opened(driver, log):
    code, out, err = ended(driver("--start", 1, "--no-network"))
    assert (code, out.split()[-1]) == (0, "SUCCESS:ok"), err


@pytest.mark.chaos
def test_the_environment_cannot_make_the_library_talk(driver, monkeypatch):
    for name, value in {
        "DBOS__CLOUD": "true", "DBOS_CONDUCTOR_KEY": "x", "DBOS_SYSTEM_DATABASE_URL": "sqlite:///x",
        "DBOS__VMID": "other", "DBOS__APPVERSION": "other",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    code, out, err = ended(driver("--start", 1, "--no-network"))
    assert (code, out.split()[-1]) == (0, "SUCCESS:ok"), err
    assert "ready local" in out


@pytest.mark.chaos
def test_cancel_reaches_a_busy_child_process(driver, log, place):
    process = driver("--start", 1, "--child", "isolate", "--serve")
    until(lambda: log.exists() and "child" in log.read_text())
    child = int(next(line for line in log.read_text().splitlines() if "child" in line).split()[1])
    cancel(place)
    until(lambda: not Path(f"/proc/{child}").exists(), 10)
    until(lambda: all(r.status in ENDED for r in Board(place_of(place)).rows()), 10)
    process.terminate()
    code, _, err = ended(process)
    assert code == 0, err
    assert "Traceback" not in err
    assert not any("/memory" in job for job in acts(log)["begin"])


def cancel(place):
    from pipeline.engine import Client

    with Client(place_of(place)) as client:
        ids = [r.id for r in client.board.rows(over=False)]
        client.cancel(sorted(ids, key=lambda i: i.count("/")))


@pytest.mark.chaos
def test_told_to_end_it_lets_what_is_at_work_end(driver, log):
    process = driver("--start", 1, "--seconds", 1.5, "--serve")
    until(lambda: log.exists() and "begin 00000000" in log.read_text())
    process.terminate()
    code, _, err = ended(process)
    assert code == 0, err
    begun = acts(log)["begin"].keys() - {"run"}
    assert begun == acts(log)["made"].keys()
    code, _, err = ended(driver())
    assert code == 0, err
    once(log)
    assert set(acts(log)["begin"].values()) == {1}


# -- reading without the engine


@pytest.mark.chaos
def test_a_row_that_says_pickle_is_not_read(driver, place):
    ended(driver("--start", 1))
    with contextlib.closing(sqlite3.connect(Path(place) / "engine.sqlite")) as c, c:
        c.execute("update workflow_status set serialization = 'py_pickle'")
        c.execute("update workflow_output set output = 'gASVEwAAAAAAAACMBXBvc2l4lIwGc3lzdGVtlJOU'")
    rows = Board(place_of(place)).rows()
    assert rows
    assert all(r.params == {} and r.answer is None for r in rows)


@pytest.mark.chaos
def test_the_columns_that_are_read_are_those_of_this_version(driver, place):
    """Pinned exactly: a bump that moves what `status` reads fails here."""
    ended(driver("--start", 1))
    rows = Board(place_of(place)).rows()
    assert len(rows) == JOBS_OF_A_RUN + 2
    [run] = [r for r in rows if r.name == RUN]
    assert (run.status, run.outcome, run.executor, run.version) == (
        "SUCCESS", "ok", "local", VERSION,
    )  # fmt: skip
    assert run.params["case"] == "T-1"
    assert run.created <= run.started <= run.ended
    with contextlib.closing(sqlite3.connect(Path(place) / "engine.sqlite")) as c:
        kinds = {r[0] for r in c.execute("select distinct serialization from workflow_status")}
    assert kinds == {SERIALIZER}


def test_progress_and_what_is_left(tmp_path):
    board = Board(Place(f"sqlite:///{tmp_path}/engine.sqlite", tmp_path))
    board.make()
    board.tell("a", 0, 100)
    time.sleep(0.05)
    board.tell("a", 50, 100)
    with contextlib.closing(sqlite3.connect(tmp_path / "engine.sqlite")) as c:
        [(done, total, first, first_done, at)] = c.execute(
            "select done, total, first, first_done, at from impound_progress"
        ).fetchall()
    assert (done, total, first_done) == (50, 100, 0)
    assert at > first
    board.forget("a")
    assert [board.begun("a"), board.begun("a"), board.begun("a", -1)] == [1, 2, 1]


def test_workflow_bodies_call_steps_and_the_engine_only():
    """A clock, chance or AWS in a body would make a replay differ from the first time."""
    import ast

    import pipeline.engine

    tree = ast.parse(Path(pipeline.engine.__file__).read_text())
    bodies = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and (
            node.name == "schedule"
            or any("DBOS.workflow" in ast.unparse(d) for d in node.decorator_list)
        ):
            bodies[node.name] = {
                ast.unparse(call.func) for call in ast.walk(node) if isinstance(call, ast.Call)
            }
    assert bodies.keys() == {"schedule", "target", "respond", "job"}
    called = set().union(*bodies.values())
    allowed = {
        "DBOS.wait_first", "DBOS.enqueue_workflow", "SetWorkflowID", "schedule", "start", "waits",
        "do", "begin", "finish", "now_approved", "units[step.name]", "_outcome_of", "_queue",
        "of_scope", "worst", "cast", "str", "list", "any", "dict", "isinstance",
        "DBOS.workflow", "set", "len",
    }  # fmt: skip
    methods = {"items", "values", "append", "pop", "remove", "discard", "get", "rpartition"}
    odd = {c for c in called - allowed if c.rpartition(".")[2] not in methods}
    assert not odd


def test_an_exception_is_kept_as_its_words():
    from pipeline.engine import Json

    row = Json().serialize(ValueError("no"))
    assert json.loads(row) == {"error": "ValueError: no"}
    assert str(Json().deserialize(row)) == "ValueError: no"
    with pytest.raises(TypeError):
        Json().serialize({"x": object()})


def test_a_place_inside_the_evidence_is_refused(tmp_path):
    from pipeline.board import prepare
    from pipeline.errors import ConfigError

    with pytest.raises(ConfigError, match="evidence store"):
        prepare(tmp_path / "evidence" / "engine", tmp_path / "evidence")


def test_a_network_file_system_is_refused(tmp_path, monkeypatch):
    from pipeline import board
    from pipeline.errors import ConfigError

    monkeypatch.setattr(board, "_file_system", lambda _path: "nfs4")
    with pytest.raises(ConfigError, match="nfs4"):
        board.prepare(tmp_path / "engine", None)


def test_a_busy_place_says_so(tmp_path):
    from pipeline.engine import _FileLock

    place = Place("sqlite:///x", tmp_path)
    held = _FileLock(place)
    with pytest.raises(BusyError):
        _FileLock(place)
    held.release()
    _FileLock(place).release()
