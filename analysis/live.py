# SPDX-License-Identifier: Apache-2.0
"""What a live response says of processes, sockets and modules. Pure; its text is hostile.

A process chooses its command line, a socket its path: so a line of an answer may be forged. What
`ps` prints is escaped by it, what /proc gives is not: a forged process there is missing in `ps`,
which is a finding by itself. An answer that was cut or failed is left out as a whole, or all that
it lost would seem hidden.

Source: proc(5) (/proc/pid/stat, /proc/net/tcp, /proc/modules); ps(1); `COLLECTORS` of
acquisition/live.py, whose answers these are.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]
PROC, PS = "live", "live-ps"
_TICK_NS = 10_000_000  # USER_HZ is 100 on x86-64
_HEAD = re.compile(r"== ([0-9]{1,10})")
_STAT = re.compile(r"([0-9]{1,10}) \((.{0,64})\) [A-Za-z] ([0-9]{1,10}) (.*)", re.DOTALL)
_PS_COLUMNS = 19  # pid ppid … lstart of 5 words etimes rss wchan args
_SOCKET = re.compile(
    r"\s*[0-9]+: ([0-9A-F]{8}|[0-9A-F]{32}):([0-9A-F]{4}) ([0-9A-F]{8}|[0-9A-F]{32}):"
    r"([0-9A-F]{4}) ([0-9A-F]{2}) .*"
)
_STATES = {("tcp", "0A"): "LISTEN", ("tcp", "01"): "ESTABLISHED", ("udp", "07"): "UNCONNECTED",
           ("udp", "01"): "ESTABLISHED"}  # fmt: skip
_BOOT = re.compile(r"^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$", re.MULTILINE)


@dataclass
class Answers:
    """What a host said of itself.

    Attributes:
        views: method -> rows as `crossview.processes` wants them; only methods that answered whole.
        sockets: rows with `protocol`, `state`, `local`, `remote` (address, port); None if not told.
        modules: names; None if not told.
        at: when it was asked, by its own clock, ns since 1970; None if its clock is not known.
        ahead: ns that its clock is ahead of the examiner's.
        boot: its boot id, "" if not told.
        problems: what cannot be compared, and why.
    """

    views: dict[str, list[Row]] = field(default_factory=dict)
    sockets: list[Row] | None = None
    modules: list[str] | None = None
    at: int | None = None
    ahead: int = 0
    boot: str = ""
    problems: list[str] = field(default_factory=list)


def read(answer: Callable[[str], bytes | None]) -> Answers:
    """Return what the answers of a live response say.

    Args:
        answer: name of a collector -> what the host said, None if nothing.
    """
    outcomes = _outcomes(answer("collectors.jsonl") or b"")
    found = Answers()

    def text(name: str) -> str | None:
        outcome = outcomes.get(name, {}).get("outcome", "not asked")
        raw = answer(name) if outcome == "success" else None
        if raw is None:
            why = outcomes.get(name, {}).get("why") or outcome
            found.problems.append(f"the host's answer on {name} is not whole: {why}")
            return None
        return raw.decode("utf-8", "backslashreplace")

    boot_ns = None
    if clock := text("clock"):
        found.at, boot_ns = _clock(clock)
        began = outcomes["clock"].get("began_ns")
        if found.at is not None and str(began).isdecimal():
            found.ahead = found.at - int(str(began))
    if told := text("system"):
        # The first that looks like one: what comes before is no free text.
        found.boot = m[0] if (m := _BOOT.search(told)) else ""
    for name, view, parse in (
        ("processes.proc", PROC, lambda t: proc(t, boot_ns)), ("processes", PS, ps),
    ):  # fmt: skip
        if (told := text(name)) is None:
            continue
        rows = parse(told)
        if any(row["pid"] == 1 for row in rows):
            found.views[view] = rows
        else:
            found.problems.append(
                f"the host's answer on {name} has no process 1: the account saw only a part "
                "(hidepid), or it is no list of processes"
            )
    if (told := text("sockets.proc")) is not None:
        found.sockets = sockets(told)
    if (told := text("modules")) is not None:
        lines = told.partition("==\n")[0].split("\n")
        found.modules = [line.split(" ")[0] for line in lines if line]
    return found


def _outcomes(raw: bytes) -> dict[str, dict[str, Any]]:
    found = {}
    for line in raw.split(b"\n"):
        with contextlib.suppress(ValueError, RecursionError):
            one = json.loads(line)
            if isinstance(one, dict):
                found[str(one.get("name"))] = one
    return found


def _clock(text: str) -> tuple[int | None, int | None]:
    r"""Return now and the time of boot, ns since 1970, from `date +%s.%N` and /proc/uptime.

    >>> _clock("100.5\n40.25 80.00\n")
    (100500000000, 60250000000)
    """
    now, _, rest = text.partition("\n")
    match = re.fullmatch(r"([0-9]{1,10})\.([0-9]{9}|[0-9]{1,9})", now.strip())
    up = re.match(r"([0-9]{1,10})\.([0-9]{2}) ", rest)
    if not match:
        return None, None
    at = int(match[1]) * 10**9 + int(match[2].ljust(9, "0"))
    return at, at - int(up[1] + up[2]) * _TICK_NS if up else None


def proc(text: str, boot_ns: int | None) -> list[Row]:
    """Return rows of `processes.proc`: blocks of `== pid`, then stat, command line and more.

    Args:
        text: the answer.
        boot_ns: when the host booted; without, `started` is None.
    """
    rows: dict[int, Row] = {}
    lines = text.split("\n")
    for head, line in itertools.pairwise(lines):
        start, stat = _HEAD.fullmatch(head), _STAT.fullmatch(line)
        if not start or not stat or stat[1] != start[1]:
            continue
        ticks = stat[4].split(" ")
        # 22nd field of stat; four stand before the rest.
        began = ticks[17] if len(ticks) > 17 else ""
        started = None
        if boot_ns is not None and began.isdecimal() and len(began) < 16:
            started = boot_ns + int(began) * _TICK_NS
        pid = int(stat[1])
        row = {"pid": pid, "ppid": int(stat[3]), "comm": stat[2], "address": None, "state": None,
               "started": started, "view": PROC}  # fmt: skip
        rows.setdefault(pid, row)
    return list(rows.values())


def ps(text: str) -> list[Row]:
    """Return rows of `processes`, as ps printed them."""
    rows = []
    for line in text.split("\n"):
        parts = line.split(None, _PS_COLUMNS - 1)
        if len(parts) < _PS_COLUMNS or not (parts[0] + parts[1]).isdecimal():
            continue
        name = parts[-1].split(" ")[0]
        short = name.strip("[]") if name.startswith("[") else name.rpartition("/")[2]
        rows.append({"pid": int(parts[0][:10]), "ppid": int(parts[1][:10]), "comm": short[:15],
                     "address": None, "state": None, "started": None, "view": PS})  # fmt: skip
    return rows


def sockets(text: str) -> list[Row]:
    """Return listening and connected TCP and UDP sockets of `sockets.proc`."""
    rows = []
    protocol = ""
    for line in text.split("\n"):
        if line.startswith("== "):
            protocol = line[3:].removesuffix("6")
            if protocol not in ("tcp", "udp"):
                break  # paths of Unix sockets follow, which may look like anything
        elif match := _SOCKET.fullmatch(line):
            state = _STATES.get((protocol, match[5]))
            if state:
                rows.append({"protocol": protocol.upper(), "state": state,
                             "local": (_address(match[1]), int(match[2], 16)),
                             "remote": (_address(match[3]), int(match[4], 16))})  # fmt: skip
    return rows


def _address(text: str) -> str:
    """Return an address of /proc/net: words of 32 bits, each little-endian; IPv4 as such.

    >>> _address("0100007F")
    '127.0.0.1'
    """
    words = (bytes.fromhex(text[i : i + 8])[::-1] for i in range(0, len(text), 8))
    found = ipaddress.ip_address(b"".join(words))
    return str(getattr(found, "ipv4_mapped", None) or found)
