# SPDX-License-Identifier: Apache-2.0
"""Custody events: one canonical byte form, a closed schema, and one error for everything else."""

from __future__ import annotations

import json
import unicodedata
from contextlib import suppress
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evidence_store.errors import IntegrityError
from evidence_store.model import (
    Actor,
    Authority,
    Clock,
    CustodyEvent,
    Tool,
    canonical,
    clean,
    format_time,
    parse_event,
    parse_time,
)


def event(**changes):
    fields = {
        "origin": "local/cases/T-1", "seq": 3, "prev": "0" * 64,
        "id": "12345678-1234-4234-8234-123456789abc", "time": "2026-01-02T03:04:05.678Z",
        "clock": Clock(source="system"), "action": "review.noted",
        "actor": Actor(asserted={"user": "x"}, host={}), "authority": Authority(ticket="T"),
        "tool": Tool(name="impound", version="0"), **changes,
    }  # fmt: skip
    return CustodyEvent(**fields)


def text(**changes):
    """The canonical text of an event with raw JSON fields replaced, unchecked."""
    body = json.loads(event().text())
    body.update(changes)
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def test_text_is_one_canonical_line_and_parses_back():
    made = event(note="naïve", data={"b": [1, {"c": None}], "a": True}, refs=[0, 2])
    assert made.text().count(b"\n") == 1
    assert canonical(json.loads(made.text())) + b"\n" == made.text()
    assert parse_event(made.text()) == made


def test_text_is_at_most_4096_bytes():
    room = 4096 - len(event(data={"x": ""}).text())
    assert len(event(data={"x": "a" * room}).text()) == 4096
    with pytest.raises(ValueError, match="4096"):
        event(data={"x": "a" * (room + 1)}).text()
    with pytest.raises(IntegrityError, match="4096"):
        parse_event(b"x" * 4097)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (text(surprise=1) + b"\n", "surprise"),
        (text(), "one line"),
        (text() + b"\n\n", "one line"),
        (text().replace(b'"seq":3', b'"seq": 3') + b"\n", "canonical"),
        (text().replace(b'"seq":3', b'"seq":3,"seq":3') + b"\n", "canonical|Extra|dup"),
        (text(data={"x": 1.5}) + b"\n", "float"),
        (text(actor={"asserted": {"x": [1.5]}, "host": {}}) + b"\n", "float"),
        (text(data={"x": 2**53}) + b"\n", "2\\*\\*53"),
        (text(data={"x": 1}).replace(b'"x":1', b'"x":NaN') + b"\n", None),
        (text(data={"x": 1}).replace(b'"x":1', b'"x":' + b"[" * 1500 + b"]" * 1500) + b"\n", None),
        (text(note="a\x1b[31m") + b"\n", "control|canonical"),
        (text(note="e\u0301") + b"\n", "NFC"),
        (text(time="2026-13-40T25:61:61.000Z") + b"\n", "time"),
        (text(time="२०२६-01-02T03:04:05.678Z") + b"\n", "time"),
        (text(action="case.burnt") + b"\n", "action"),
        (text(seq="3") + b"\n", "seq"),
        (text(seq=-1) + b"\n", "seq"),
        (text(prev="0" * 63 + "G") + b"\n", "prev"),
        (text(prev="0" * 64 + "\n") + b"\n", "prev|one line"),
        (text(v=2) + b"\n", "v"),
        (text(v=True) + b"\n", "v"),
        (text(item="E1") + b"\n", "item"),
        (b"\xff\xfe\n", None),
        (b"[]\n", None),
        (b"null\n", None),
    ],
    ids=range(25),
)
def test_what_is_not_canonical_and_within_the_schema_is_refused(raw, why):
    with pytest.raises(IntegrityError, match=why):
        parse_event(raw)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.binary(max_size=300) | st.dictionaries(st.text(), JSON).map(
    lambda body: json.dumps(body).encode() + b"\n"))  # fmt: skip
def test_arbitrary_bytes_raise_nothing_but_integrity_error(raw):
    with pytest.raises(IntegrityError):
        parse_event(raw)


@given(st.sampled_from(sorted(json.loads(event().text()))), JSON)
def test_an_event_with_one_field_replaced_parses_or_is_an_integrity_error(name, value):
    body = json.loads(event().text())
    body[name] = value
    raw = json.dumps(body, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    with suppress(IntegrityError):
        assert parse_event(raw).text() == raw


@given(st.data())
def test_a_flipped_bit_parses_or_is_an_integrity_error(data):
    raw = bytearray(event(note="naïve", data={"k": [1, "x"]}).text())
    at = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[at // 8] ^= 1 << at % 8
    with suppress(IntegrityError):
        assert parse_event(bytes(raw)).text() == raw


ANY_TEXT = st.text(st.characters(exclude_categories=())) | st.binary().map(
    lambda raw: raw.decode("utf-8", "surrogateescape")
)


@given(ANY_TEXT, st.none() | st.integers(1, 20))
def test_clean_gives_text_that_an_event_takes(raw, limit):
    cleaned = clean(raw, limit)
    assert unicodedata.is_normalized("NFC", cleaned)
    assert not any(unicodedata.category(c) in ("Cc", "Cs") for c in cleaned)
    assert limit is None or len(cleaned) <= limit
    assert clean(cleaned) == cleaned
    assert event(authority=Authority(ticket=cleaned[:500])).text()


def test_clean_of_an_accent_after_an_escape_stays_normal():
    assert unicodedata.is_normalized("NFC", clean("\n\u0301"))


def test_clean_shows_raw_bytes_and_controls_and_cuts():
    assert clean("a\udcffb\x00\x7f\u0085\ud800") == "a\\xffb\\x00\\x7f\\x85\\ud800"
    assert clean("x" * 30, 10) == "x" * 9 + "…"


@given(st.datetimes(min_value=datetime(1000, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001
def test_time_round_trip_cuts_to_milliseconds(moment):
    back = parse_time(format_time(moment))
    assert back == moment.replace(microsecond=moment.microsecond // 1000 * 1000)
