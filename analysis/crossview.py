# SPDX-License-Identifier: Apache-2.0
"""One thing seen by several methods: what only some of them see, and what may explain it.

Pure: rows in, findings out. Memory is read while a machine runs, and a rootkit hides; both make
methods disagree. A finding says which is more likely and never hides the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]
MAX_ROWS = 20
_MAX_ROWS_TEXT = 8000
_DEAD = ("EXIT_DEAD", "EXIT_ZOMBIE", "EXIT_TRACE", "TASK_DEAD")


@dataclass(frozen=True)
class Claim:
    """A finding before its evidence is named. Fields as in `analysis.schema.FINDINGS`."""

    rule: str
    severity: str
    title: str
    reason: str
    explanation: str
    pid: int | None = None
    address: int | None = None
    rows: Sequence[Row] = field(default=())

    def row(self) -> dict[str, Any]:
        """Return the columns that the evidence's own do not give."""
        text = json.dumps(list(self.rows)[:MAX_ROWS], sort_keys=True)
        if len(text) > _MAX_ROWS_TEXT:
            text = json.dumps({"cut": text[:_MAX_ROWS_TEXT]})
        return {
            "rule": self.rule, "severity": self.severity, "title": self.title,
            "reason": self.reason, "explanation": self.explanation, "pid": self.pid,
            "address": self.address, "rows": text,
        }  # fmt: skip


def processes(views: Mapping[str, Sequence[Row]]) -> list[Claim]:
    """Return what the methods that list processes disagree on.

    Args:
        views: method -> rows with `pid`, `comm`, `address`, and `state` where it tells that. The
            methods: `pslist` (the kernel's list), `pidhashtable` (what finds a pid), `psscan`
            (every task in memory, freed ones too), `live` (what the running system answered).
            One that failed must be left out, or all would seem hidden from it.
    """
    claims: list[Claim] = []
    listed = {row["pid"]: row for row in views.get("pslist", ())}
    hashed = {row["pid"]: row for row in views.get("pidhashtable", ())}
    known = listed.keys() | hashed.keys()
    if "pslist" in views and "pidhashtable" in views:
        claims += [
            _hidden(hashed[pid], "the kernel's list of tasks", "its table of pids")
            for pid in sorted(hashed.keys() - listed.keys())
        ]
        for pid in sorted(listed.keys() - hashed.keys()):
            row = listed[pid]
            claims.append(Claim(
                "process.unhashed", "medium", f"process {pid} {row['comm']} cannot be found by pid",
                "It is in the kernel's list of tasks and not in its table of pids. A process that "
                "was about to end while memory was read looks so (race); so does one whose pid "
                "entry was removed so that kill and ptrace do not find it.",
                "race or hidden", pid, row.get("address"), (row,)))  # fmt: skip
    for row in views.get("psscan", ()):
        if row["pid"] in known or not row["pid"]:
            continue
        if row.get("state") in _DEAD:
            claims.append(Claim(
                "process.ended", "info", f"process {row['pid']} {row['comm']} has ended",
                "Its task structure is still in memory and says that it has exited.",
                "exit", row["pid"], row.get("address"), (row,)))  # fmt: skip
        elif "pslist" in views:
            claims.append(_hidden(row, "the kernel's lists", "a scan of all memory"))
    for pid, row in ((r["pid"], r) for r in views.get("live", ()) if "pslist" in views):
        if pid not in known:
            claims.append(Claim(
                "process.only-live", "info", f"process {pid} {row['comm']} is not in memory",
                "The running system listed it and memory does not: it ended in between, or it was "
                "one of the commands of the examiner (see the footprint).",
                "exit", pid, None, (row,)))  # fmt: skip
    if "live" in views and "pslist" in views:
        live = {row["pid"] for row in views["live"]}
        for pid in sorted(known - live):
            row = listed.get(pid) or hashed[pid]
            claims.append(Claim(
                "process.not-live", "high", f"the system did not list process {pid} {row['comm']}",
                "Memory holds it and the running system's own list did not. It started in between "
                "(compare `started`), or what lists processes there was made to leave it out.",
                "race or hidden", pid, row.get("address"), (row,)))  # fmt: skip
    return claims


def _hidden(row: Row, missing: str, found: str) -> Claim:
    return Claim(
        "process.hidden", "high", f"process {row['pid']} {row['comm']} is not in {missing}",
        f"{found[0].upper()}{found[1:]} has it, {missing} has not. A process that was starting or "
        "ending while memory was read looks so (race), and so does a copy of a structure that was "
        "freed; a rootkit that unlinks its processes does just this.",
        "hidden or race", row["pid"], row.get("address"), (row,),
    )  # fmt: skip


def modules(rows: Iterable[Row]) -> list[Claim]:
    """Return modules that some of the kernel's own lists leave out.

    Args:
        rows: `Name`, `Address`, `In procfs`, `In sysfs`, `In scan` (volatility3's modxview).
    """
    claims = []
    for row in rows:
        seen = [name for name in ("In procfs", "In sysfs", "In scan") if row.get(name)]
        if row.get("In procfs") and row.get("In sysfs"):
            continue
        where = ", ".join(name[3:] for name in seen) or "nothing"
        claims.append(Claim(
            "module.hidden", "high", f"module {row['Name']} is hidden from part of the kernel",
            f"Of the list that lsmod shows (procfs), sysfs and a scan of the memory of modules, "
            f"only these have it: {where}. A module that was being loaded or unloaded looks so "
            "(race); a rootkit that unlinks itself does just this.",
            "hidden or race", None, row.get("Address"), (row,)))  # fmt: skip
    return claims


def sockets(listed: Iterable[Row], scanned: Iterable[Row]) -> list[Claim]:
    """Return sockets that a scan of memory finds and that no process has open.

    Both take rows of sockstat's and sockscan's columns; they are compared by their ends.
    """
    known = {_ends(row) for row in listed}
    return [
        Claim("socket.unowned", "low", _socket(row),
              "A scan of memory finds it, no process has it open: it was closed (exit), or its "
              "owner is hidden.", "exit or hidden", None, row.get("Sock Offset"), (row,))
        for row in scanned
        if row.get("State") in ("LISTEN", "ESTABLISHED") and _ends(row) not in known
    ]  # fmt: skip


def _ends(row: Row) -> tuple[Any, ...]:
    ends = ("Proto", "Source Addr", "Source Port", "Destination Addr", "Destination Port")
    return tuple(row.get(column) for column in ends)


def _socket(row: Row) -> str:
    return (
        f"{row.get('Proto')} {row.get('Source Addr')}:{row.get('Source Port')} -> "
        f"{row.get('Destination Addr')}:{row.get('Destination Port')} is open in no process"
    )


_UNKNOWN = ("", None, "UNKNOWN", "[unknown]", "HOOKED", "-")


def hooks(plugin: str, rows: Iterable[Row], image: tuple[int, int] | None = None) -> list[Claim]:
    """Return entries of a table of the kernel that lead out of it.

    Args:
        plugin: syscall, idt, afinfo, tty, keyboard or netfilter.
        rows: with `Handler Symbol` or `Symbol`, `Module` where the method tells it.
        image: first and last address of the kernel's own image, as rows have addresses.
    """
    claims = []
    for row in rows:
        if plugin == "netfilter":
            hooked = str(row.get("Is Hooked")) == "True"
        elif plugin == "afinfo":
            hooked = True  # that method only lists what leads elsewhere
        else:
            symbol = row.get("Handler Symbol", row.get("Symbol"))
            module = row.get("Module")
            hooked = symbol in _UNKNOWN or (module is not None and module in _UNKNOWN)
        if hooked:
            what = next((str(row[c]) for c in ("Index", "Symbol Name", "Name", "Proto", "Address")
                         if row.get(c) is not None), "?")  # fmt: skip
            at = row.get("Handler Address", row.get("Handler", row.get("Address")))
            if image and isinstance(at, int) and image[0] <= at <= image[1]:
                claims.append(Claim(
                    f"unnamed.{plugin}", "low", f"{plugin} entry {what} has no symbol",
                    "Its handler lies in the kernel's own image, where no symbol is known: code of "
                    "the boot that was freed, mostly; code that was patched in looks so too.",
                    "boot code or hook", None, at, (row,)))  # fmt: skip
                continue
            claims.append(Claim(
                f"hook.{plugin}", "high", f"{plugin} entry {what} leads out of the kernel",
                "Its handler is neither a symbol of the kernel nor of a module that it lists. A "
                "hook looks so; so does a table that changed while memory was read (race).",
                "hook", None, at if isinstance(at, int) else None, (row,)))  # fmt: skip
    return claims


def injected(rows: Iterable[Row]) -> list[Claim]:
    """Return memory of processes that is writable, executable and of no file (malfind)."""
    return [
        Claim("memory.injected", "medium",
              f"process {row.get('PID')} {row.get('Process')} has executable memory of its own",
              f"From {row.get('Start') or 0:#x} its pages are {row.get('Protection')} and of no "
              "file. Compilers at run time (JIT) do so; so does injected code.",
              "injected or JIT", row.get("PID"), row.get("Start"), (_short(row),))
        for row in rows
    ]  # fmt: skip


def spoofed(rows: Iterable[Row]) -> list[Claim]:
    """Return processes that call themselves what they are not (process_spoofing)."""
    claims = []
    for row in rows:
        signs = [text for column, text in (
            ("Comm_Spoofed", "its name is not that of its file"),
            ("Cmdline_Spoofed", "its command line does not name its file"),
            ("Exe_Deleted", "its file was deleted"),
        ) if str(row.get(column)) == "True"]  # fmt: skip
        if signs:
            deleted = "its file was deleted" in signs
            claims.append(Claim(
                "process.spoofed", "medium" if deleted else "low",
                f"process {row.get('PID')} {row.get('Comm')} is not what it calls itself",
                f"{'; '.join(signs).capitalize()}. Daemons change their titles and scripts run "
                "under their interpreter's file; malware hides so.",
                "disguise or title", row.get("PID"), None, (row,)))  # fmt: skip
    return claims


def matched(rows: Iterable[Row]) -> list[Claim]:
    """Return one claim for each rule and process (or none) whose memory it matched."""
    by: dict[tuple[Any, Any], list[Row]] = {}
    for row in rows:
        by.setdefault((row.get("Rule"), row.get("PID")), []).append(row)
    return [
        Claim("rule.matched", "medium",
              f"rule {rule} matches memory of "
              + (f"process {pid} {found[0].get('Process')}" if pid is not None else "no process"),
              f"{len(found)} matches. Memory of no process is that of the kernel, of files it "
              "caches, or freed; a scanner that ran there carries rules in its own memory.",
              "see the rule", pid, None, found)
        for (rule, pid), found in by.items()
    ]  # fmt: skip


def _short(row: Row) -> Row:
    return {k: v[:200] if isinstance(v, str) else v for k, v in row.items()}
