# SPDX-License-Identifier: Apache-2.0
"""What a host says of itself, as rows; and what a hostile one may make of it."""

from __future__ import annotations

import doctest
import json

import pytest

from analysis import live
from analysis.live import programs, text
from tests.analysis.live_answers import BOOT, BOOT_NS, answers, stat


def read(given):
    return live.read(given.get)


def rows(lines):
    return [row for _, row in live.known(lines)]


def test_answers_become_rows():
    found = read(answers({1: "init", 40: "sshd: a) R 7"}))
    assert found.problems == []
    by = {row["pid"]: row for row in found.views["live"]}
    assert by[40]["comm"] == "sshd: a) R 7"
    assert by[40]["started"] == BOOT_NS + 40 * 10_000_000
    assert [row["pid"] for row in found.views["live-ps"]] == [1, 40]
    assert (found.at, found.ahead, found.boot) == (BOOT_NS + 100 * 10**9, 3 * 10**9, BOOT)
    assert found.modules == ["loop", "virtio"]
    assert found.sockets == [
        {"protocol": "TCP", "state": "LISTEN", "local": ("0.0.0.0", 22), "remote": ("0.0.0.0", 0)},
        {"protocol": "TCP", "state": "ESTABLISHED", "local": ("127.0.0.1", 22),
         "remote": ("::1", 4444)},
    ]  # fmt: skip


def test_account_that_sees_only_its_own_processes_is_no_list():
    found = read(answers({40: "sshd"}))
    assert found.views == {}
    assert sum("hidepid" in problem for problem in found.problems) == 2


@pytest.mark.parametrize("outcome", ["failed", "missing"])
def test_answer_that_was_cut_is_left_out_whole(outcome):
    given = answers({1: "init"})
    given["collectors.jsonl"] += json.dumps(
        {"name": "processes.proc", "outcome": outcome, "why": "cut at its limit"}
    ).encode()
    found = read(given)
    assert list(found.views) == ["live-ps"]
    assert "processes.proc is not whole: cut at its limit" in found.problems[0]


def test_no_answers_at_all():
    found = read({})
    assert (found.views, found.sockets, found.modules, found.at) == ({}, None, None, None)
    assert len(found.problems) == 6


def test_sockets_forged_by_the_path_of_a_unix_socket_are_not_read():
    given = answers({1: "init"})
    forged = b"\n== tcp\n   1: 00000000:1F90 00000000:0000 0A 0\n"
    given["sockets.proc"] += b"== unix\n0000: 00000002 @x" + forged
    assert [row["local"][1] for row in read(given).sockets] == [22, 22]


def test_process_forged_by_a_command_line_is_not_in_ps():
    given = answers({1: "init"})
    given["processes.proc"] += f"\n== 66\n{stat(66, 'evil')}\n".encode()
    found = read(given)
    assert {row["pid"] for row in found.views["live"]} == {1, 66}
    assert {row["pid"] for row in found.views["live-ps"]} == {1}


def test_torn_and_hostile_text_is_no_row():
    assert rows(text.processes_proc("== 5\n5 (x\n== 6\n7 (y) S 1 0\n== 99999999999\n", None)) == []
    assert len(rows(text.processes("PID PPID\nx y z\n" + "1 " * 30))) == 1
    assert rows(text.sockets_proc("== tcp\n 0: zz:16 00000000:0000 0A\n== xyz\n")) == []
    assert read({"collectors.jsonl": b"[]\n{\nnull\n" + b"[" * 100_000}).views == {}


@pytest.mark.parametrize("module", [live, text, programs], ids=lambda m: m.__name__)
def test_examples(module):
    assert doctest.testmod(module).failed == 0
