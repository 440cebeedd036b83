# SPDX-License-Identifier: Apache-2.0
"""What the ledger tells of a response, and what it does not."""

from __future__ import annotations

import pytest

from pipeline import chronicle, steps
from pipeline.workflow import STEPS, approve
from tests.evidence_store.kit import make_world

ARN = "arn:aws:ec2:eu-central-1:222222222222:instance/i-0123456789abcdef0"


@pytest.fixture
def case(tmp_path):
    return make_world(tmp_path / "evidence").case


def told(case, *waiting):
    return {(line.step, line.unit): line for line in chronicle.lines(case, ARN, waiting)}


def test_of_nothing_recorded_nothing_is_claimed(case):
    found = told(case)
    assert {line.state for line in found.values()} == {"unrecorded"}
    assert [step for step, _ in found] == [s.name for s in STEPS if s.scope == "target"]


def test_an_intent_without_an_outcome_is_not_called_running(case):
    steps.begin(case, "freeze", ARN)
    line = told(case)["freeze", ""]
    assert line.state == "begun"
    assert "not known here" in line.detail


def test_done_failed_and_gap(case):
    steps.done(case, steps.begin(case, "observe", ARN), state="running", volumes=2)
    steps.failed(case, steps.begin(case, "freeze", ARN), "no right")
    steps.skipped(case, "respond.memory", ARN, "no login")
    steps.note(case, "prove", ARN, verdict="not isolated")
    found = told(case)
    assert (found["observe", ""].state, found["observe", ""].detail) == (
        "ok", "state running, volumes 2",
    )  # fmt: skip
    assert (found["freeze", ""].state, found["freeze", ""].detail) == ("failed", "no right")
    assert (found["memory", ""].state, found["memory", ""].gaps) == ("gap", ("no login",))
    assert found["isolate", ""].detail == "verdict not isolated"


def test_each_frozen_snapshot_is_a_piece(case):
    begun = steps.begin(case, "freeze", ARN)
    for n in "12":
        steps.note(case, "snapshot", f"vol-{n}", of=ARN, volume=f"vol-{n}", snapshot=f"snap-{n}")
    steps.done(case, begun)
    steps.done(case, steps.begin(case, "copy", "snap-1"), copy="snap-9")
    steps.done(case, steps.begin(case, "prove", "snap-9 root"), item="E0001")
    found = told(case)
    assert found["copy", "snap-1"].detail == "copy snap-9"
    assert found["copy", "snap-2"].state == "unrecorded"
    assert found["verify", "snap-1"].state == "ok"
    assert found["verify", "snap-2"].state == "unrecorded"


def test_what_waits_for_an_approval(case):
    assert told(case, "isolate")["isolate", ""].state == "waiting"
    approve(case, "isolate", ARN)
    assert told(case, "isolate")["isolate", ""].state == "unrecorded"


def test_long_words_in_the_ledger(case):
    steps.done(case, steps.begin(case, "observe", ARN), state="y" * 500)
    assert len(told(case)["observe", ""].detail) <= 140


def test_the_last_entry(case):
    steps.begin(case, "respond", ARN)
    assert chronicle.last(case)["action"] == "step.started"
