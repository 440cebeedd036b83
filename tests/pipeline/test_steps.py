# SPDX-License-Identifier: Apache-2.0
"""Steps in the ledger: done once, taken up again, and never younger than what they made."""

from __future__ import annotations

import pytest

from pipeline import steps
from tests.evidence_store import kit


@pytest.fixture
def case(tmp_path):
    return kit.make_world(tmp_path).case


def test_a_step_is_an_intent_and_an_outcome(case):
    begun = steps.begin(case, "freeze", "i-1", why="x")
    assert (begun.resumed, begun.done) == (False, None)
    steps.done(case, begun, made="snap-1")
    first, last = steps.events_of(case, "freeze", "i-1")
    assert (first.action, last.action, last.refs) == ("step.started", "step.done", [first.seq])
    assert last.data == {"step": "freeze", "target": "i-1", "made": "snap-1"}


def test_what_is_done_is_not_begun_again_and_keeps_its_first_time(case):
    begun = steps.begin(case, "freeze", "i-1")
    steps.done(case, begun, made="snap-1")
    again = steps.begin(case, "freeze", "i-1")
    assert again.done == {"step": "freeze", "target": "i-1", "made": "snap-1"}
    assert (again.seq, again.since, again.resumed) == (begun.seq, begun.since, True)
    assert len(steps.events_of(case, "freeze", "i-1")) == 2


def test_an_interrupted_step_is_taken_up_not_begun_twice(case):
    begun = steps.begin(case, "freeze", "i-1")
    again = steps.begin(case, "freeze", "i-1")
    assert (again.seq, again.since, again.resumed) == (begun.seq, begun.since, True)
    assert len(steps.events_of(case, "freeze", "i-1")) == 1


def test_after_a_failure_it_looks_back_to_the_first_intent(case):
    """What the failed attempt made is older than the new intent."""
    begun = steps.begin(case, "copy", "snap-1")
    steps.failed(case, begun, "throttled")
    again = steps.begin(case, "copy", "snap-1")
    assert again.seq > begun.seq
    assert (again.since, again.resumed, again.done) == (begun.since, True, None)


def test_steps_of_other_targets_are_other_steps(case):
    steps.done(case, steps.begin(case, "lock", "snap-1"))
    assert steps.begin(case, "lock", "snap-2").done is None


def test_a_skip_is_said_once(case):
    for why in ("no right", "no right", "no code"):
        steps.skipped(case, "memory", "i-1", why)
    assert [e.note for e in steps.events_of(case, "memory", "i-1")] == ["no right", "no code"]


def test_a_fact_is_noted_once(case):
    for size in (1, 1, 2):
        steps.note(case, "snapshot", "vol-1", size=size)
    assert [e.data["size"] for e in steps.events_of(case, "snapshot", "vol-1")] == [1, 2]
