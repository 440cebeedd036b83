# SPDX-License-Identifier: Apache-2.0
"""How the rehearsal of a response judges what its commands say. (`make gameday` runs the whole.)"""

from __future__ import annotations

import pytest

from pipeline.gameday.disks import find, traces
from pipeline.gameday.response import ResponseGameDay, detection
from pipeline.gameday.scorecard import Scorecard, StepFailedError
from pipeline.gameday.serve import Zone

INSTANCE = "arn:aws:ec2:eu-central-1:222222222222:instance/i-0abc"


@pytest.fixture
def day(tmp_path):
    made = ResponseGameDay(tmp_path, 1, Scorecard("response", 1, str(tmp_path)))
    made._zone = Zone(None, {}, None, ())
    return made


@pytest.fixture
def with_machine(day):
    day._zone = Zone(None, {}, None, (), guest=object())
    return day


def line(state="ok", *gaps, unit=""):
    return {"step": "x", "unit": unit, "state": state, "gaps": list(gaps)}


def judged(day, name, *lines, spans=()):
    day._judge(name, lines, list(spans))
    return day.card


def test_seconds_of_pieces_that_ran_beside_each_other(day):
    card = judged(day, "read", line(unit="a"), line(unit="b"), spans=[(10.0, 14.5), (11.0, 16.0)])
    assert [(s.name, s.outcome, s.seconds) for s in card.steps] == [("respond: read", "ok", 6.0)]


def test_a_gap_that_nobody_expects_fails_the_day(day):
    card = judged(day, "copy", line("gap", "the key was refused"))
    assert card.steps[0].outcome == "failed"
    assert "the key was refused" in card.steps[0].detail
    assert not card.passed


def test_a_gap_that_cannot_be_closed_here_is_said_and_passes(day):
    card = judged(day, "isolate", line("gap", "groups applied, not probed"))
    assert card.steps[0].outcome == "ok"
    assert "not probed" in card.steps[0].detail


def test_an_expected_gap_does_not_hide_another(day):
    card = judged(day, "isolate", line("gap", "groups applied, not probed", "no right to detach"))
    assert card.steps[0].outcome == "failed"
    assert card.steps[0].detail == "no right to detach"


@pytest.mark.parametrize("state", ["broken", "stopped", "waiting", "error", "lost", "waits"])
def test_a_piece_that_did_not_end_well_fails(day, state):
    assert judged(day, "read", line(), line(state, unit="b")).steps[0].outcome == "failed"


def test_a_step_that_is_not_there_is_no_success(day):
    card = judged(day, "memory", line("gap", "memory is not part of this version"))
    assert card.steps == []
    assert card.not_rehearsed == ["memory: not there yet"]


def test_without_a_machine_nobody_logged_in(day):
    card = judged(day, "memory", line("gap", "the groups of the target do not permit it"))
    assert card.steps == []
    assert card.not_rehearsed == ["memory: no machine stands behind the instance"]


def test_with_a_machine_its_steps_are_judged(with_machine):
    card = judged(with_machine, "memory", line("gap", "3 ranges are missing"))
    assert (card.steps[0].outcome, card.steps[0].detail) == ("failed", "3 ranges are missing")


def test_with_a_machine_isolation_has_to_be_probed(with_machine):
    card = judged(with_machine, "isolate", line("gap", "groups applied, not probed"))
    assert card.steps[0].outcome == "failed"


def test_a_command_that_fails_ends_the_day_with_what_it_said(day, tmp_path):
    day._zone = Zone(None, {"IMPOUND_CONFIG": str(tmp_path / "none.toml")}, None, ())
    with pytest.raises(StepFailedError, match=r"impound verify ended with 14: .*none\.toml"):
        day._impound("verify", "T-1")
    assert "none.toml" in (tmp_path / "commands.log").read_text()


def test_the_detection_names_the_instance():
    event = detection(INSTANCE)
    assert event["account"] == "222222222222"
    assert event["region"] == "eu-central-1"
    assert event["detail"]["resource"]["instanceDetails"]["instanceId"] == "i-0abc"


def test_a_trace_with_other_content_is_not_found():
    planted = traces(1)
    rows = [("E0001", f"/{t.path}", "0" * 64, True, t.path) for t in planted]
    assert not any(p.found for p in find(planted, rows))


def test_a_deleted_trace_is_found_by_its_name_where_it_is_deleted():
    deleted = [t for t in traces(1) if t.deleted]
    name = deleted[0].path.rpartition("/")[2]
    assert find(deleted, [("E0001", "/tmp/x", None, False, name)])[0].found
    assert not find(deleted, [("E0001", "/tmp/x", None, True, name)])[0].found
