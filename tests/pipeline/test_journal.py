# SPDX-License-Identifier: Apache-2.0
"""A recorder that keeps nobody waiting: spool, adoption, and what is no spool's business."""

from __future__ import annotations

import base64
import threading

import pytest

from evidence_store.errors import (
    CaseClosedError,
    CaseNotFoundError,
    IntegrityError,
    SigningKeyError,
    StoreUnavailableError,
)
from evidence_store.ledger import Draft
from evidence_store.sign import PublicKey, parse_note, verify_note
from evidence_store.store import Case
from pipeline import steps
from pipeline.journal import Journal
from tests.evidence_store.kit import make_scribe, make_world, verify


@pytest.fixture
def world(tmp_path):
    return make_world(tmp_path / "evidence")


class Told(list):
    """What was said, as text."""

    def __str__(self):
        return "\n".join(self)


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def journal(tmp_path, world, told):
    """A run of its own on the case; `open_case` may be what goes wrong."""
    scribe = make_scribe()

    def fresh():
        case = Case(world.store, world.case.case_id)
        case.refresh()
        return case

    def make(open_case=fresh, echo=lambda _line: None):
        return Journal(world.case.case_id, open_case, tmp_path / "spool", lambda: scribe.actor,
                       lambda: scribe.tool, warn=told.append, echo=echo)  # fmt: skip

    return make


def down(error=StoreUnavailableError):
    def fail():
        raise error("it is down")

    return fail


def act(journal, target="i-1"):
    begun = steps.begin(journal, "change", target, before=1)
    steps.changed(journal, begun, "target.changed", of=target)


def actions(world):
    world.case.refresh()
    return [e.action for e in world.case.ledger.events]


def test_a_case_that_can_be_had_is_written(journal, world, tmp_path):
    act(journal())
    assert actions(world) == ["case.opened", "step.started", "target.changed"]
    assert not (tmp_path / "spool").exists()


@pytest.mark.parametrize("error", [StoreUnavailableError, SigningKeyError, IntegrityError])
def test_a_case_that_cannot_be_had(journal, world, told, error):
    found = journal(down(error))
    act(found)
    assert found.spooled
    assert [e.action for e in found.events] == ["step.started", "target.changed"]
    assert actions(world) == ["case.opened"]
    assert "signed by" in str(told)


def test_the_next_run_adopts_it(journal, world, told):
    act(journal(down()))
    again = journal()
    assert not again.spooled
    assert actions(world) == ["case.opened", "step.started", "target.changed", "recovery.noted"]
    events = world.case.ledger.events
    kept = events[-1].data
    assert kept["entries"] == 3
    assert kept["key"] in str(told)
    assert [e.data["spooled"]["seq"] for e in events[1:3]] == [1, 2]
    assert events[1].data["before"] == 1
    assert verify(world.root).exit_code != 10
    journal()
    assert len(actions(world)) == 4


def test_a_step_begun_in_a_spool_is_known_afterwards(journal):
    begun = steps.begin(journal(down()), "freeze", "i-1")
    again = steps.begin(journal(), "freeze", "i-1")
    assert (begun.resumed, again.resumed) == (False, True)


def test_a_second_run_knows_what_the_first_spooled(journal):
    """The store is still down."""
    act(journal(down()))
    second = journal(down())
    assert [e.action for e in second.events] == ["step.started", "target.changed"]


def test_two_spools_are_adopted(journal, world):
    act(journal(down()), "i-1")
    act(journal(down()), "i-2")
    journal()
    world.case.refresh()
    targets = [e.data.get("of") for e in world.case.ledger.events if e.action == "target.changed"]
    assert sorted(targets) == ["i-1", "i-2"]
    assert actions(world).count("recovery.noted") == 2


def test_lost_in_the_middle(journal, world, monkeypatch, told):
    found = journal()
    begun = steps.begin(found, "change", "i-1")
    monkeypatch.setattr(found.case, "record", lambda _build: down()())
    steps.changed(found, begun, "target.changed")
    assert [e.action for e in found.events] == ["case.opened", "step.started", "target.changed"]
    assert "going on with a spool" in str(told)
    del found  # its run has ended
    journal()
    assert actions(world)[1:] == ["step.started", "target.changed", "recovery.noted"]


def test_a_store_that_never_answers(journal, world, monkeypatch):
    monkeypatch.setattr("pipeline.journal.OPEN_S", 0.1)
    forever = threading.Event()
    found = journal(lambda: forever.wait(60))
    act(found)
    forever.set()
    assert found.spooled
    assert len(found.events) == 2


def test_a_record_that_never_returns(journal, monkeypatch):
    monkeypatch.setattr("pipeline.journal.RECORD_S", 0.1)
    found = journal()
    forever = threading.Event()
    monkeypatch.setattr(found.case, "record", lambda _build: forever.wait(60))
    act(found)
    forever.set()
    assert found.spooled


@pytest.mark.parametrize("error", [CaseNotFoundError, CaseClosedError])
def test_a_mistake_is_not_hidden_in_a_spool(journal, tmp_path, error):
    with pytest.raises(error):
        journal(down(error))
    assert not (tmp_path / "spool").exists()


def test_a_case_that_was_closed_meanwhile(journal, world):
    found = journal()
    world.case.record(lambda: Draft("case.sealed"))
    with pytest.raises(CaseClosedError):
        act(found)


def test_every_entry_goes_to_the_log_signed(journal):
    lines = []
    act(journal(down(), echo=lines.append))
    key = PublicKey.from_pem(lines[0].partition(" key ")[2].encode().decode("unicode_escape")
                             .strip("'").encode())  # fmt: skip
    notes = [parse_note(base64.b64decode(line.rpartition(" ")[2])) for line in lines[1:]]
    assert len(notes) == 3
    for note in notes:
        verify_note(note, {key.kid: ("impound.spool/entry", key)})


def test_a_changed_spool_is_not_adopted(journal, world, tmp_path, told):
    act(journal(down()))
    [entry] = (tmp_path / "spool").glob("*/*/cases/*/ledger/0000000000000001.note")
    entry.chmod(0o600)
    entry.write_bytes(entry.read_bytes().replace(b'"before":1', b'"before":2'))
    journal()
    assert actions(world) == ["case.opened"]
    assert "cannot be read" in str(told)
    assert entry.exists()


def test_a_spool_in_use_is_left_alone(journal, world, told):
    first = journal(down())
    act(first)
    second = journal()
    assert actions(world) == ["case.opened"]
    assert "not adopted yet" in str(told)
    assert [e.action for e in second.events] == ["case.opened", "step.started", "target.changed"]
