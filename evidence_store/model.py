# SPDX-License-Identifier: Apache-2.0
"""Custody events as data: frozen, pure, one canonical byte form.

Invariants
    - The text of an event is one line of RFC 8785 (JCS) JSON and a newline, at most 4,096 bytes.
    - Integers are below 2**53, there are no floats, strings are NFC without control characters.
    - The schema of a version `v` is closed: an unknown field is an error, not an extension.
      `data` holds what belongs to one action only.
    - Readers hash and check bytes as stored; canonical form only makes writers agree.

Source: RFC 8785; the field list stands in docs/format.md.
"""

from __future__ import annotations

import json
import re
import unicodedata
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import rfc8785
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from evidence_store.errors import IntegrityError

MAX_TEXT_BYTES = 4096
MAX_NOTE_CHARS = 512
ZERO_DIGEST = "0" * 64

CASE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
ITEM_ID = re.compile(r"E[0-9]{4,9}")

Action = Literal[
    "case.opened", "case.sealed",
    "key.added", "key.revoked",
    "item.identified", "item.acquired", "item.verified", "item.accessed", "item.exported",
    "item.transferred", "item.received", "item.disposed",
    "acquire.started", "acquire.failed",
    "analysis.completed",
    "hold.set", "hold.released", "retention.extended", "tags.changed",
    "correction", "recovery.noted",
    "step.started", "step.done", "step.failed", "step.skipped",
    "approval.given", "target.changed", "target.restored", "notice.sent", "session.recorded",
    "review.noted",
]  # fmt: skip

_TIME = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z$"

Kind = Literal["disk", "memory", "logs", "record", "live", "result"]


def _clean_text(value: str) -> str:
    if not unicodedata.is_normalized("NFC", value):
        raise ValueError("text is not in Unicode form NFC")
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in value):
        raise ValueError("text holds a control character or a lone surrogate")
    return value


def _clean_json(value: JsonValue) -> JsonValue:
    if isinstance(value, str):
        return _clean_text(value)
    if isinstance(value, float):
        # Not a TypeError: pydantic turns only ValueError into a finding about the record.
        raise ValueError("floats have no canonical form here; use a smaller unit")  # noqa: TRY004
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**53:
        raise ValueError("integer at or above 2**53")
    if isinstance(value, list):
        for part in value:
            _clean_json(part)
    if isinstance(value, dict):
        for name, part in value.items():
            _clean_text(name)
            _clean_json(part)
    return value


def _real_time(value: str) -> str:
    parse_time(value)
    return value


Text = Annotated[str, AfterValidator(_clean_text)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Kid = Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Version = Annotated[int, Field(ge=1, le=1)]  # not Literal[1], which takes true
Data = Annotated[dict[str, JsonValue], AfterValidator(_clean_json)]


class Closed(BaseModel):
    """Base of every stored record: closed, frozen, strict."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


class Clock(Closed):
    """Where `time` came from. `offset_ms`: measured error of the writer's clock, if known."""

    source: Text
    offset_ms: int | None = None
    server_date: Text | None = None


class Actor(Closed):
    """Who acted. `authenticated`: vouched for by a third party; `asserted`: the actor's own words.

    A local store has nobody to vouch for its operator, so `authenticated` is null there.
    """

    authenticated: Data | None = None
    asserted: Data
    host: Data


class Authority(Closed):
    """By what right: ticket, legal basis, approvers."""

    ticket: Text
    basis: Text = ""
    approved_by: list[Text] = []


class StoredObject(Closed):
    """One object an event speaks of. `as_`: `stored` bytes or logical `content` of an item."""

    uri: Text
    size: Count
    sha256: Sha256
    as_: Literal["stored", "content"] = Field(alias="as")
    version_id: Text | None = None


class Tool(Closed):
    """The program that acted; `sha256` is the digest of its installed files."""

    name: Text
    version: Text
    sha256: Sha256 | None = None


class AllowedKey(Closed):
    """A public key that may sign in this case. `sha256` is of its DER SubjectPublicKeyInfo."""

    kid: Kid
    sha256: Sha256
    name: Text
    use: Literal["entry", "checkpoint"]


class StoreBinding(Closed):
    """What `case.opened` binds the case to, so that a changed `store.json` is noticed."""

    store_id: Text
    deployment: Text
    layout: int


class CustodyEvent(Closed):
    """One custody event, as it stands in the ledger."""

    v: Version = 1
    origin: Text
    seq: Count
    prev: Sha256
    id: Annotated[str, Field(pattern=r"^[0-9a-f-]{36}$")]
    time: Annotated[str, Field(pattern=_TIME), AfterValidator(_real_time)]
    clock: Clock
    action: Action
    actor: Actor
    authority: Authority
    tool: Tool
    item: Annotated[str, Field(pattern=r"^E[0-9]{4,9}$")] | None = None
    refs: list[Count] | None = None
    objects: Annotated[list[StoredObject], Field(max_length=8)] | None = None
    keys: list[AllowedKey] | None = None
    store: StoreBinding | None = None
    aws: Data | None = None
    transfer: Data | None = None
    data: Data | None = None
    result: Literal["ok", "failed", "partial"] = "ok"
    note: Annotated[Text, Field(max_length=MAX_NOTE_CHARS)] | None = None

    @property
    def at(self) -> datetime:
        """The event's time, aware, UTC."""
        return parse_time(self.time)

    def text(self) -> bytes:
        """Return the signed text: one line of canonical JSON and a newline.

        Raises: ValueError if it is longer than 4,096 bytes.
        """
        body = canonical(self.model_dump(by_alias=True, exclude_none=True)) + b"\n"
        if len(body) > MAX_TEXT_BYTES:
            raise ValueError(
                f"a custody event is at most {MAX_TEXT_BYTES} bytes, this one has {len(body)}; "
                "put the bulk into a manifest and name its digest"
            )
        return body


def parse_event(text: bytes) -> CustodyEvent:
    """Return the event in `text`, which must be canonical and within the schema.

    Raises: IntegrityError, saying what is wrong.
    """
    if len(text) > MAX_TEXT_BYTES:
        raise IntegrityError(f"longer than {MAX_TEXT_BYTES} bytes")
    if not text.endswith(b"\n") or text.count(b"\n") != 1:
        raise IntegrityError("not exactly one line")
    try:
        event = CustodyEvent.model_validate_json(text)
        if canonical(json.loads(text)) + b"\n" != text:
            raise IntegrityError("not in canonical form (RFC 8785)")
    except ValidationError as e:
        first = e.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(p) for p in first["loc"]) or "event"
        raise IntegrityError(f"{where}: {first['msg']}") from e
    except (ValueError, RecursionError) as e:
        raise IntegrityError(str(e)) from e
    return event


def canonical(value: Any) -> bytes:
    """Return RFC 8785 bytes of a JSON value without floats.

    >>> canonical({"b": 1, "a": ["x", None]})
    b'{"a":["x",null],"b":1}'
    """
    return rfc8785.dumps(value)


def clean(text: str, limit: int | None = None) -> str:
    r"""Return `text` fit for the ledger: NFC, control characters and raw bytes escaped.

    >>> clean("a\nb\x1b[31m")
    'a\\x0ab\\x1b[31m'
    """
    out = []
    for c in unicodedata.normalize("NFC", text):
        code = ord(c)
        if 0xDC80 <= code <= 0xDCFF:  # surrogateescape: one raw byte of a file name
            out.append(f"\\x{code - 0xDC00:02x}")
        elif unicodedata.category(c) in ("Cc", "Cs"):
            out.append(f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")
        else:
            out.append(c)
    cleaned = unicodedata.normalize("NFC", "".join(out))  # an accent may follow an escape
    if limit is not None and len(cleaned) > limit:
        cleaned = cleaned[: limit - 1] + "…"
    return cleaned


def format_time(moment: datetime) -> str:
    """Return UTC in the ledger's form, milliseconds cut (not rounded).

    >>> format_time(datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC))
    '2026-01-02T03:04:05.678Z'
    """
    moment = moment.astimezone(UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def parse_time(text: str) -> datetime:
    """Return the aware UTC time written by `format_time`."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
