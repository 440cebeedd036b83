# SPDX-License-Identifier: Apache-2.0
"""Intake as a Lambda function: what arrives on the queue of events is taken into custody.

    event    a batch of Amazon SQS; each body is an event of EventBridge, or whatever somebody sent
    answer   {"case", "item", "kept", "existing", "sealed"}

A batch is one item of kind `record`, a file for each message, byte for byte as it came. It lies in
the reserved case `_intake-<day>`: one for each day (UTC), so that a ledger stays short. What cannot
be kept is raised, and the queue gives the batch again; the same batch twice is one item.

Environment: `IMPOUND_SETTINGS` (settings as text), `XDG_STATE_HOME` and `XDG_CACHE_HOME` (folders
below `/tmp`). Needs boto3, cryptography, pydantic and rfc8785, nothing else.

Source: Lambda Developer Guide, "Using Lambda with Amazon SQS"; EventBridge User Guide, "Event
structure".
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from pydantic import JsonValue

from evidence_store.errors import IntegrityError, StoreError
from evidence_store.model import clean
from evidence_store.transfer import Member
from pipeline.config import load
from pipeline.errors import UsageError
from pipeline.handler import case_of
from pipeline.session import Passphrase, Session

_log = logging.getLogger("pipeline.intake")
_log.setLevel(logging.INFO)  # Lambda's own handler takes warnings only, unless a logger says so
_NAMED = ("source", "detail-type", "account", "region", "time", "id")


def handler(event: Mapping[str, Any], _context: object) -> dict[str, JsonValue]:
    """Keep a batch. Raises: UsageError, StoreError, IntegrityError, and those of settings."""
    batch = Batch(messages(event))
    settings = load().settings
    session = Session(settings, settings.store, Passphrase(interactive=False))
    day = f"{datetime.now(UTC):%Y-%m-%d}"
    case = case_of(session, f"_intake-{day}", {"title": f"events of {day}"})
    done = case.ingest("record", batch)
    # What `impound readiness` looks for: that an event came as far as here.
    _log.info("kept %s", [m.facts["id"] for m in batch.messages if "id" in m.facts])
    sealed = False
    if settings.signing.sealer and session.in_aws:
        try:
            session.ask_sealer(case)
            sealed = True
        except (StoreError, IntegrityError) as e:  # the next batch, or a person, seals this too
            _log.warning("not sealed: %s", clean(str(e), 500))
    return {
        "case": case.case_id, "item": done.item_id, "kept": len(batch.messages),
        "existing": done.existing, "sealed": sealed,
    }  # fmt: skip


@dataclass(frozen=True)
class Message:
    """One message: its name, its bytes, and what it says of itself."""

    name: str
    body: bytes
    facts: Mapping[str, JsonValue]


def messages(event: Mapping[str, Any]) -> list[Message]:
    """Return the messages of a batch, in the order of their names. Pure.

    Raises: UsageError if this is no batch.
    """
    records = event.get("Records") if isinstance(event, Mapping) else None
    if not isinstance(records, Sequence) or isinstance(records, str) or not records:
        raise UsageError("the event is no batch of SQS: it has no Records")
    found: dict[str, Message] = {}
    for record in records:
        body = record.get("body") if isinstance(record, Mapping) else None
        if not isinstance(body, str):
            raise UsageError("a record of the batch has no body")
        raw = body.encode("utf-8", "surrogatepass")
        name = hashlib.sha256(raw).hexdigest()
        found[name] = Message(name, raw, {"type": "file", **_said(body), **_came(record)})
    return [found[name] for name in sorted(found)]


def _said(body: str) -> dict[str, JsonValue]:
    """What an event says of itself; nothing if it is none. Whoever sent it chose this."""
    try:
        event = json.loads(body)
    except (ValueError, RecursionError):
        return {"event": "unreadable"}
    if not isinstance(event, dict):
        return {"event": "none"}
    return {n: clean(event[n], 200) for n in _NAMED if isinstance(event.get(n), str)}


def _came(record: Mapping[str, Any]) -> dict[str, JsonValue]:
    attributes = record.get("attributes")
    sent = attributes.get("SentTimestamp") if isinstance(attributes, Mapping) else None
    return {
        "message": clean(str(record.get("messageId", "")), 100),
        "queue": clean(str(record.get("eventSourceARN", "")), 200),
        "sent_ms": clean(str(sent or ""), 20),
    }


class Batch:
    """Messages as one source. See `SetSource`."""

    def __init__(self, messages: Sequence[Message]) -> None:
        self.messages = messages
        names = "\n".join(m.name for m in messages)
        digest = hashlib.sha256(names.encode()).hexdigest()
        self.text = f"{len(messages)} events {digest[:16]}"
        self.identity: Mapping[str, JsonValue] | None = {"messages": digest}
        self.facts: Mapping[str, JsonValue] = {"type": "events", "messages": len(messages)}

    @property
    def method(self) -> str:
        """How it is read."""
        return "the messages of one batch of Amazon SQS, byte for byte"

    def members(self) -> Iterator[Member]:
        """See `SetSource.members`."""
        for each in self.messages:
            yield Member(f"{each.name}.json".encode(), each.facts, partial(iter, (each.body,)))

    def skipped(self) -> list[str]:
        """None: all of a batch is kept."""
        return []

    def changes(self) -> list[str]:
        """None: a message does not change."""
        return []
