# SPDX-License-Identifier: Apache-2.0
"""What a live response says. Pure; its text is hostile.

    read      what memory is compared with: processes, sockets, modules, clock and boot
    text      answers of the kernel, line by line; programs: those that were made for people
    job       all of it as tables, in a limited child

A line of an answer may be forged (`analysis.live.text` says by whom): a process that was forged in
what /proc gives is missing in `ps`, which is a finding by itself. An answer that was cut or failed
is left out of the comparison as a whole, or all that it lost would seem hidden.

Source: `COLLECTORS` of acquisition/live.py, whose answers these are.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from analysis.live import text as parse
from analysis.live.text import Lines, Row

PROC, PS = "live", "live-ps"
OUTCOMES = "collectors.jsonl"
_STATES = ("LISTEN", "ESTABLISHED", "UNCONNECTED")
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
    told = outcomes(answer(OUTCOMES) or b"")
    found = Answers()

    def text(name: str) -> str | None:
        outcome = told.get(name, {}).get("outcome", "not asked")
        raw = answer(name) if outcome == "success" else None
        if raw is None:
            why = told.get(name, {}).get("why") or outcome
            found.problems.append(f"the host's answer on {name} is not whole: {why}")
            return None
        return decoded(raw)

    boot_ns = None
    if clock := text("clock"):
        found.at, boot_ns = parse.boot_time(clock)
        found.ahead = ahead(found.at, told["clock"])
    if said := text("system"):
        found.boot = boot_id(said)
    for name, view, lines in (
        ("processes.proc", PROC, lambda t: parse.processes_proc(t, boot_ns)),
        ("processes", PS, parse.processes),
    ):
        if (said := text(name)) is None:
            continue
        rows = first_of_each(lines(said))
        if 1 in rows:
            found.views[view] = [
                {"pid": pid, "ppid": row["ppid"], "comm": row["comm"], "address": None,
                 "state": None, "started": row.get("started"), "view": view}
                for pid, (_, row) in rows.items()
            ]  # fmt: skip
        else:
            found.problems.append(partial(name))
    if (said := text("sockets.proc")) is not None:
        found.sockets = [
            {"protocol": row["protocol"], "state": row["state"],
             "local": (row["local_address"], row["local_port"]),
             "remote": (row["remote_address"], row["remote_port"])}
            for _, row in known(parse.sockets_proc(said))
            if row["protocol"] in ("TCP", "UDP") and row["state"] in _STATES
        ]  # fmt: skip
    if (said := text("modules")) is not None:
        rows_of = known(parse.modules(said))
        found.modules = [row["name"] for _, row in rows_of if row["view"] == "procfs"]
    return found


def outcomes(raw: bytes) -> dict[str, dict[str, Any]]:
    """Return the last outcome of each collector from `collectors.jsonl`, by its name."""
    found = {}
    for line in raw.split(b"\n"):
        with contextlib.suppress(ValueError, RecursionError):
            one = json.loads(line)
            if isinstance(one, dict):
                found[str(one.get("name"))] = one
    return found


def decoded(raw: bytes) -> str:
    """Return an answer as text; what is not UTF-8 stands as backslash-x-hex."""
    return raw.decode("utf-8", "backslashreplace")


def ahead(at: int | None, outcome: dict[str, Any]) -> int:
    """Return the ns that a clock which said `at` is ahead of the examiner's."""
    began = str(outcome.get("began_ns"))
    return at - int(began) if at is not None and began.isdecimal() and len(began) < 20 else 0


def boot_id(system: str) -> str:
    """Return the boot id in the answer on `system`, "" if there is none."""
    # The first that looks like one: what comes before is no free text.
    return match[0] if (match := _BOOT.search(system)) else ""


def partial(name: str) -> str:
    """Say that a list of processes is no list of all."""
    return (f"the host's answer on {name} has no process 1: the account saw only a part "
            "(hidepid), or it is no list of processes")  # fmt: skip


def known(lines: Lines) -> Iterable[tuple[int, Row]]:
    """Leave out lines that are not of the format."""
    return ((at, row) for at, row in lines if row is not None)


def first_of_each(lines: Lines) -> dict[int, tuple[int, Row]]:
    """Return pid -> (number of the line, row); the first of each, what is forged comes later."""
    found: dict[int, tuple[int, Row]] = {}
    for at, row in known(lines):
        found.setdefault(row["pid"], (at, row))
    return found
