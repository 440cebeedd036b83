# SPDX-License-Identifier: Apache-2.0
"""Several workers over one PostgreSQL: one dies, the server goes away, a job kills its workers."""

from __future__ import annotations

import json
import signal
import time

import pytest

from pipeline.board import RUN, SLOTS, Board, Place, host_id, lock_number
from tests.pipeline.test_engine import acts, ended, once, until
from tests.pipeline.test_respond import made_once

pytestmark = [pytest.mark.postgres, pytest.mark.xdist_group("postgres")]


@pytest.fixture
def board(postgres):
    return Board(Place(postgres.url))


@pytest.fixture
def workers(driver, postgres):
    def start(count, *more, runs=0):
        made = []
        for number in range(count):
            first = ("--start", runs) if number == 0 and runs else ()
            one = driver("--serve", *first, *more, where=postgres.url)
            assert one.stdout.readline().startswith("ready"), one.stderr.read()
            made.append(one)
        return made

    return start


def runs_of(board):
    return [r for r in board.rows() if r.name == RUN]


def all_over(board, count):
    def over():
        found = runs_of(board)
        return len(found) == count and all(r.over for r in found)

    return over


def test_three_workers_share_the_work_and_none_does_a_job_twice(workers, board, log):
    workers(3, "--seconds", 0.2, runs=4)
    until(all_over(board, 4), 120)
    assert [r.outcome for r in runs_of(board)] == ["ok"] * 4
    once(log, 4)
    assert set(acts(log)["begin"].values()) == {1, 4}  # 4: `begin run`
    assert {r.executor for r in board.rows()} == {f"{host_id()}-{n}" for n in (1, 2, 3)}


def test_the_work_of_a_killed_worker_is_taken_over(workers, board, log):
    made = workers(3, "--seconds", 0.5, runs=6)
    time.sleep(4)
    made[0].kill()
    until(all_over(board, 6), 180)
    assert [r.outcome for r in runs_of(board)] == ["ok"] * 6
    once(log, 6)


@pytest.mark.chaos
def test_workers_that_are_killed_again_and_again(workers, board, log):
    made = workers(3, "--seconds", 0.3, runs=8)
    for number in range(3):
        time.sleep(4)
        made[number].kill()
        made += workers(1, "--seconds", 0.3)
    until(all_over(board, 8), 240)
    assert [r.outcome for r in runs_of(board)] == ["ok"] * 8
    once(log, 8)


@pytest.mark.parametrize("seconds", [6, pytest.param(60, marks=pytest.mark.chaos)])
def test_the_server_goes_away_for_a_while(workers, board, log, postgres, seconds):
    workers(2, "--seconds", 0.5, runs=2)
    time.sleep(3)
    postgres.stop()
    time.sleep(seconds)
    postgres.start()
    until(all_over(board, 2), 180)
    assert [r.outcome for r in runs_of(board)] == ["ok"] * 2
    once(log, 2)


def test_a_job_that_kills_its_workers_is_given_up(driver, board, log):
    """The rest of the run goes on."""
    first = ("--start", 1)
    while not all_over(board, 1)():
        one = driver("--serve", "--die", "isolate", *first, where=board.place.url)
        first = ()
        until(lambda: one.poll() is not None or all_over(board, 1)(), 90)  # noqa: B023
    until(all_over(board, 1), 60)
    [run] = runs_of(board)
    assert (run.status, run.outcome) == ("SUCCESS", "gap")
    begun = {j.split("/")[4]: n for j, n in acts(log)["begin"].items() if j != "run"}
    assert begun["isolate"] == 4  # once, and three times taken over
    assert begun["report"] == 1


def test_a_worker_whose_id_was_taken_over_ends(workers, board, postgres):
    import psycopg

    [one] = workers(1)
    me = f"{host_id()}-1"
    number = lock_number(me)
    with psycopg.connect(postgres.url, autocommit=True) as c:
        assert board.live([me, "other"]) == {me}
        assert board.workers() == 1
        # Its connection dies, and somebody has its lock before it is back.
        c.execute("select pg_terminate_backend(pid) from pg_stat_activity "
                  "where application_name = 'impound-executor'")  # fmt: skip
        end = time.monotonic() + 5
        while not c.execute("select pg_try_advisory_lock(%s)", (number,)).fetchone()[0]:
            assert time.monotonic() < end
        code, _, err = ended(one)
    assert code in (1, 98)
    assert "took over" in err


def test_ids_are_those_of_the_host_and_the_first_free_one(workers, board):
    made = workers(2)
    assert len(made) < SLOTS
    made[0].kill()
    made[0].communicate()
    until(lambda: board.live([f"{host_id()}-1"]) == set())
    third = workers(1)
    assert board.live([f"{host_id()}-{n}" for n in (1, 2, 3)]) == {
        f"{host_id()}-1", f"{host_id()}-2",
    }  # fmt: skip
    assert third[0].poll() is None


def test_a_server_that_is_not_there_is_one_clear_error(cloud, target, monkeypatch):
    monkeypatch.setenv("IMPOUND_ENGINE_URL", "postgresql://impound@127.0.0.1:1/postgres")
    done = cloud("respond", "T-1", target)
    assert done.code == 14
    assert "engine's database" in done.err
    assert "Traceback" not in done.err
    assert cloud("worker").code == 14
    monkeypatch.setenv("IMPOUND_ENGINE_URL", "sqlite:///x")
    assert cloud("respond", "T-1", target).code == 14


def test_three_workers_one_killed_and_a_response(
    cloud,
    target,
    aws_server,
    process,
    postgres,
    monkeypatch,
):
    """As by hand: the command line only."""
    monkeypatch.setenv("IMPOUND_ENGINE_URL", postgres.url)
    made = [process("worker") for _ in range(3)]
    until(lambda: Board(Place(postgres.url)).workers() == 3)
    run = process("--json", "respond", "T-1", target)
    board = Board(Place(postgres.url))
    until(lambda: any(r.name == "step.copy" and r.status == "PENDING" for r in board.rows()), 120)
    busy = next(r.executor for r in board.rows() if r.name == "step.copy")
    number = int(busy.rpartition("-")[2])
    victim = next(w for w in made if executor_of(w, board, number))
    victim.kill()
    out, err = run.communicate(timeout=240)
    assert run.returncode == 3, err
    assert json.loads(out)["outcome"] == "gap"
    made_once(aws_server, cloud)
    others = [w for w in made if w is not victim]
    for one in others:
        one.send_signal(signal.SIGTERM)
    assert [one.wait(60) for one in others] == [0, 0]


def executor_of(worker, board, number):
    """Whether this process holds the lock of the host's executor `number`: it said so."""
    del board
    line = worker.stderr.readline()
    return f"{host_id()}-{number} serves" in line


def test_an_approval_lets_the_fleet_go_on(
    cloud,
    target,
    aws_server,
    process,
    postgres,
    settings,
    monkeypatch,
):
    settings('[engine]\napprove = ["isolate"]\n')
    monkeypatch.setenv("IMPOUND_ENGINE_URL", postgres.url)
    process("worker")
    done = cloud("--json", "respond", "T-1", target)
    assert done.code == 4, done.err
    assert cloud("approve", "T-1", "isolate").code == 0
    board = Board(Place(postgres.url))
    until(lambda: len(runs_of(board)) == 2 and all(r.over for r in runs_of(board)), 120)
    assert [r.outcome for r in runs_of(board)] == ["waiting", "gap"]
    made_once(aws_server, cloud)


def test_a_worker_needs_keys_that_ask_nobody(cloud, postgres, monkeypatch):
    monkeypatch.setenv("IMPOUND_ENGINE_URL", postgres.url)
    monkeypatch.delenv("IMPOUND_PASSPHRASE_FILE")
    done = cloud("worker")
    assert done.code == 14
    assert "sign without asking" in done.err


def test_the_settings_take_no_password(home, impound):
    path = home / "impound.toml"
    path.write_text('[engine]\nurl = "postgresql://me:secret@db/impound"\n')
    done = impound("--config", path, "config")
    assert done.code == 14
    assert "engine.url" in done.err
    assert "secret" not in done.err + done.out
    path.write_text('[engine]\nurl = "postgresql://me@db/impound"\n')
    assert impound("--config", path, "config").code == 0
