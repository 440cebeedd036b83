# SPDX-License-Identifier: Apache-2.0
r"""How values become text on the page. Everything printed goes through `visible`.

Evidence and people choose names; a name may hold markup, terminal codes, or characters that turn
the reading order round. Markup is the template engine's business (autoescape); what the eye cannot
see, or sees wrongly, is shown here as `\xNN` or `\uNNNN`, set apart from a literal backslash by the
class `esc`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from markupsafe import Markup, escape

_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
# Letters and marks that draw nothing, or a gap: Unicode's Default_Ignorable beyond Cf, and blanks.
_BLANK = {0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0}
_RIGHT_TO_LEFT = {"R", "AL", "AN"}
_MAX_MARKS = 2  # combining marks on one letter; more than any living script needs is a tower
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _hidden(c: str) -> bool:
    if " " <= c <= "~":
        return False
    code, category = ord(c), unicodedata.category(c)
    if category in _UNSEEN or code in _BLANK or (category == "Zs" and c != " "):
        return True
    return 0xFE00 <= code <= 0xFE0F or 0x180B <= code <= 0x180F or 0xE0000 <= code <= 0xE0FFF


def _escape(c: str) -> str:
    code = ord(c)
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape: one raw byte of a name
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _pieces(text: str) -> list[tuple[bool, str]]:
    """Return `text` as (is an escape, piece)."""
    out: list[tuple[bool, str]] = []
    marks = 0
    for c in text:
        marks = marks + 1 if unicodedata.category(c) in ("Mn", "Me") else 0
        hidden = marks > _MAX_MARKS or _hidden(c)
        piece = _escape(c) if hidden else c
        if out and out[-1][0] == hidden:
            out[-1] = (hidden, out[-1][1] + piece)
        else:
            out.append((hidden, piece))
    return out


def visible_text(value: object) -> str:
    r"""Return a value as plain text with nothing hidden in it; for attributes.

    >>> visible_text("a\u202eb\n")
    'a\\u202eb\\x0a'
    """
    return "".join(piece for _, piece in _pieces("" if value is None else str(value)))


def visible(value: object) -> str:
    r"""Return a value for the page: None is nothing, markup of our own stays, the rest is shown.

    >>> visible("<b>\x1b[1m")
    Markup('&lt;b&gt;<span class="esc">\\x1b</span>[1m')
    """
    if hasattr(value, "__html__"):
        return value  # type: ignore[return-value]
    text = "" if value is None else str(value)
    if text.isascii() and text.isprintable():
        return text
    page = Markup("").join(
        Markup('<span class="esc">{}</span>').format(piece) if hidden else escape(piece)
        for hidden, piece in _pieces(text)
    )
    if any(unicodedata.bidirectional(c) in _RIGHT_TO_LEFT for c in text):
        return Markup('<bdi dir="ltr">{}</bdi>').format(page)
    return page


def shorten(text: str | None, limit: int = 400) -> str:
    """Return at most `limit` characters of `text`, saying how many there are in all."""
    if text is None or len(text) <= limit:
        return text or ""
    return f"{text[:limit]} … ({len(text)} characters in all)"


def size(count: int | None) -> str:
    """Return bytes for people.

    >>> size(1536), size(7), size(None)
    ('1.5 KiB', '7 bytes', 'not known')
    """
    if count is None:
        return "not known"
    if count < 1024:
        return f"{count} byte{'' if count == 1 else 's'}"
    value = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        value /= 1024
        if value < 1023.95 or unit == "PiB":
            break
    return f"{value:.1f} {unit}"


def number(count: int | None) -> str:
    """Return a count with separators.

    >>> number(1234567)
    '1,234,567'
    """
    return "" if count is None else f"{count:,}"


def plural(count: int, one: str, many: str = "") -> str:
    """Return a count and its noun.

    >>> plural(1, "entry", "entries"), plural(2, "item")
    ('1 entry', '2 items')
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def moment(time: str) -> str:
    """Return a ledger time for people.

    >>> moment("2026-01-02T03:04:05.678Z")
    '2026-01-02 03:04:05.678 UTC'
    """
    return time.replace("T", " ").replace("Z", " UTC")


def at(ns: int) -> datetime:
    """Return nanoseconds since the epoch as an aware time, cut to microseconds."""
    return _EPOCH + timedelta(microseconds=ns // 1000)


def stamp(ns: int | None) -> str:
    """Return a time stamp of a file system, to the nanosecond.

    >>> stamp(1), stamp(None)
    ('1970-01-01 00:00:00.000000001 UTC', '')
    """
    if ns is None:
        return ""
    fraction = f".{ns % 10**9:09d}".rstrip("0").rstrip(".")
    return f"{at(ns):%Y-%m-%d %H:%M:%S}{fraction} UTC"


def groups(digest: str, width: int = 8) -> Markup:
    """Return a digest in groups to be read aloud; copying it gives it without gaps."""
    parts = [digest[i : i + width] for i in range(0, len(digest), width)]
    return Markup("").join(Markup('<span class="g">{}</span>').format(part) for part in parts)


def facts(data: Mapping[str, Any] | None) -> str:
    """Return recorded facts as one line, sorted by name.

    >>> facts({"user": "root", "n": 2, "more": {"x": None}})
    'more.x: null; n: 2; user: root'
    >>> facts({"name": "lab-3"})
    'lab-3'
    """
    pairs = flat(data or {})
    if len(pairs) == 1 and pairs[0][0] == "name":
        return pairs[0][1]
    return "; ".join(f"{name}: {value}" for name, value in pairs)


def without(data: Mapping[str, Any] | None, *names: str) -> dict[str, Any]:
    """Return facts without those that are told elsewhere."""
    return {name: value for name, value in (data or {}).items() if name not in names}


def flat(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested facts as (dotted name, text) pairs, sorted by name; `…_ns` as a time."""
    out: list[tuple[str, str]] = []
    for name in sorted(data):
        value = data[name]
        if isinstance(value, Mapping):
            out += flat(value, f"{prefix}{name}.") or [(f"{prefix}{name}", "none")]
        elif name.endswith("_ns") and type(value) is int and abs(value) < 2**63:
            out.append((f"{prefix}{name.removesuffix('_ns')}", stamp(value)))
        elif isinstance(value, list):
            out.append((f"{prefix}{name}", ", ".join(_plain(part) for part in value) or "none"))
        else:
            out.append((f"{prefix}{name}", _plain(value)))
    return out


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return facts(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "null" if value is None else str(value)
