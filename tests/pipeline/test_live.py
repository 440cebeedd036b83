# SPDX-License-Identifier: Apache-2.0
"""The picture of a response under way fits the terminal, whatever there is to show."""

from __future__ import annotations

import pytest

from pipeline.cli.live import picture
from pipeline.response import Line

STEPS = ("observe", "protect", "freeze", "isolate", "memory", "read", "verify")


def rows(*targets, at=3, what="", pieces=1):
    found = []
    for target in targets:
        for n, step in enumerate(STEPS):
            state = "ok" if n < at else "running" if n == at else "waits"
            for piece in range(pieces if step == "read" else 1):
                unit = f"snap-{piece:017x}" if step == "read" else ""
                line = Line(f"arn:aws:ec2:r:1:instance/{target}", step, unit, state, what)
                found.append((line, (step, unit or "-", state, what)))
    return found


def test_each_target_is_named_once():
    lines = picture(rows("i-1", "i-2"), 80, 24)
    assert [text for text in lines if not text.startswith(" ")] == ["i-1", "i-2"]
    assert len(lines) == 2 + 2 * len(STEPS)


@pytest.mark.parametrize("width", [20, 80, 120])
def test_no_line_is_too_long(width):
    lines = picture(rows("i-0123456789abcdef0", what="x" * 300), width, 24)
    assert max(map(len, lines)) == width
    assert len(lines) == 1 + len(STEPS)


def test_pieces_are_not_cut_at_80_columns():
    lines = picture(rows("i-1", what="6 % of 1.0 GiB, 12 min left"), 80, 24)
    assert any("snap-00000000000000000" in text and "12 min left" in text for text in lines)


def test_what_ended_well_and_what_waits_is_folded():
    lines = picture(rows("i-1", "i-2", "i-3"), 80, 14)
    assert lines[:4] == ["i-1", "  ok: observe, protect, freeze", "  isolate  -  running",
                         "  waits: memory, read, verify"]  # fmt: skip
    assert len(lines) == 12


def test_a_line_for_each_target_where_there_is_no_more_room():
    lines = picture(rows(*(f"i-{n}" for n in range(10)), what="on h"), 80, 12)
    assert lines[0] == "i-0: isolate running on h; 3 ok, 3 waits"
    assert len(lines) == 10


def test_what_there_is_no_room_for_is_counted():
    lines = picture(rows(*(f"i-{n}" for n in range(100))), 80, 10)
    assert len(lines) == 10
    assert lines[-1] == "… and 91 more"


def test_nothing_to_show():
    assert picture([], 80, 24) == []
