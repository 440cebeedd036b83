# SPDX-License-Identifier: Apache-2.0
"""One thing seen by several methods: what only some of them see, and what may explain it.

Pure: rows in, findings out. Memory is read while a machine runs, and a rootkit hides; both make
methods disagree. A finding says which is more likely and never hides the other.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]
MAX_ROWS = 20
_MAX_ROWS_TEXT = 8000
_DEAD = ("EXIT_DEAD", "EXIT_ZOMBIE", "EXIT_TRACE", "TASK_DEAD", "exited")


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


@dataclass(frozen=True)
class Times:
    """When the host was asked what runs, and when its memory was read; ns since 1970, its clock.

    `began`: whether it is known when reading began; else `read` is one moment of it.
    """

    asked: int
    read: tuple[int, int]
    began: bool = True

    @property
    def live_first(self) -> bool:
        """Whether it was asked before its memory was read to the end."""
        return self.asked < self.read[1]


def processes(views: Mapping[str, Sequence[Row]], times: Times | None = None) -> list[Claim]:
    """Return what the methods that list processes disagree on.

    Args:
        views: method -> rows with `pid`, `comm`, `address`, and `state` where it tells that. The
            methods: `pslist` (the kernel's list), `pidhashtable` (what finds a pid), `psscan`
            (every task in memory, freed ones too), `live` and `live-ps` (what the running system
            answered, from /proc and by ps). One that failed must be left out, or all would seem
            hidden from it. `started`: ns, where it is known.
        times: without, nobody can tell what changed in between.
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
                "Its structure is still in memory and says that it has exited.",
                "exit", row["pid"], row.get("address"), (row,)))  # fmt: skip
        elif "pslist" in views:
            claims.append(_hidden(row, "the kernel's lists", "a scan of all memory"))
    claims += _beside_live(views, listed, hashed, times)
    return claims


_MARGIN_NS = 5 * 10**9  # clocks are compared, and a list takes a while to make


def _beside_live(
    views: Mapping[str, Sequence[Row]], listed: Mapping[int, Row], hashed: Mapping[int, Row],
    times: Times | None,
) -> list[Claim]:  # fmt: skip
    """Return what the running system said otherwise than its memory, and than itself."""
    claims: list[Claim] = []
    proc, ps = ({row["pid"]: row for row in views.get(v, ())} for v in ("live", "live-ps"))
    live, known = {**ps, **proc}, listed.keys() | hashed.keys()
    if live and "pslist" in views:
        claims += [_only_live(live[pid]) for pid in sorted(live.keys() - known)]
        claims += [
            _not_live(listed.get(pid) or hashed[pid], times) for pid in sorted(known - live.keys())
        ]
    if proc and ps:
        for pid in sorted(proc.keys() - ps.keys()):
            row = proc[pid]
            if times and (row.get("started") or 0) > times.asked - _MARGIN_NS:
                continue  # the examiner's own shells, mostly
            claims.append(Claim(
                "process.not-in-ps", "medium", f"ps did not list process {pid} {row['comm']}",
                "A moment later /proc showed it, and it had not just started. A ps that was "
                "replaced leaves processes out; a process that fills /proc with text of its own "
                "looks so too.", "hidden or forged", pid, None, (row,)))  # fmt: skip
    return claims


def _only_live(row: Row) -> Claim:
    return Claim(
        "process.only-live", "info", f"process {row['pid']} {row['comm']} is not in memory",
        "The running system listed it and memory does not: it ended or started in between, or it "
        "was one of the commands of the examiner (see the footprint).",
        "exit", row["pid"], None, (row,))  # fmt: skip


def _not_live(row: Row, times: Times | None) -> Claim:
    """Judge a process that memory holds and the running system did not list."""
    started = row.get("started")
    severity, explanation = "high", "race or hidden"
    why = "It started in between (compare `started`), or what lists processes there was made to "
    why += "leave it out."
    if times is not None and started is not None:
        if times.live_first and started > times.asked - _MARGIN_NS:
            severity, explanation = "info", "race"
            why = "It started when the system had been asked, or at that moment."
        elif times.live_first:
            explanation = "hidden"
            why = "It had started before the system was asked and was there when memory was read: "
            why += "what lists processes there was made to leave it out."
            if not times.began:
                explanation = "hidden or exit"
                why += " When the reading of memory began is not known: it may also have ended "
                why += "before the system was asked."
        elif started > times.read[0] - _MARGIN_NS:
            severity, explanation = "info", "exit"
            why = "It started while memory was being read, as the examiner's own commands do, and "
            why += "the system was asked after that: it had ended."
        else:
            severity, explanation = "medium", "exit or hidden"
            why = "The system was asked after its memory was read: it ended in between, or what "
            why += "lists processes there was made to leave it out."
    pid = row["pid"]
    return Claim("process.not-live", severity,
                 f"the system did not list process {pid} {row['comm']}",
                 f"Memory holds it and the running system's own list did not. {why}",
                 explanation, pid, row.get("address"), (row,))  # fmt: skip


def live_sockets(rows: Iterable[Row], live: Sequence[Row]) -> list[Claim]:
    """Return sockets of the host's own network that it did not list.

    Args:
        rows: of sockstat's columns. The first network namespace has the lowest number; that is the
            one that a login sees.
        live: `analysis.live.Answers.sockets`.
    """
    rows = [r for r in rows if r.get("Family") in ("AF_INET", "AF_INET6")]
    first = min((r["NetNS"] for r in rows if isinstance(r.get("NetNS"), int)), default=None)
    known = {_key(r["protocol"], r["state"], _end(*r["local"]), _end(*r["remote"])) for r in live}
    claims = []
    seen: set[tuple[Any, ...]] = set()
    for row in rows:
        if row.get("NetNS") != first or row.get("State") not in ("LISTEN", "ESTABLISHED"):
            continue
        local = _end(row.get("Source Addr"), row.get("Source Port"))
        remote = _end(row.get("Destination Addr"), row.get("Destination Port"))
        key = _key(row.get("Proto"), row["State"], local, remote)
        if row.get("Proto") not in ("TCP", "UDP") or key in known or key in seen:
            continue
        seen.add(key)
        what = f"{row['Proto']} {local[0]}:{local[1]}"
        listens = row["State"] == "LISTEN"
        claims.append(Claim(
            "socket.not-live", "medium" if listens else "low",
            f"the system did not list {what}, {row['State']} in process {row.get('PID')}",
            "Memory holds the socket and /proc/net of the running system did not. Connections come "
            "and go (race, exit)" + ("; one that listens mostly stays: " if listens else "; ")
            + "a rootkit leaves its own out of that list.",
            "race or hidden", row.get("PID"), row.get("Sock Offset"), (row,)))  # fmt: skip
    return claims


def _key(protocol: Any, state: str, local: Any, remote: Any) -> tuple[Any, ...]:
    return (protocol, state, local) if state == "LISTEN" else (protocol, state, local, remote)


def _end(address: Any, port: Any) -> tuple[str, int]:
    try:
        found = ipaddress.ip_address(str(address))
    except ValueError:
        return str(address), -1
    mapped = getattr(found, "ipv4_mapped", None)
    return str(mapped or found), int(port) if str(port).isdecimal() else 0


def live_modules(held: Iterable[str], live: Iterable[str]) -> list[Claim]:
    """Return modules of the kernel that it did not list, and those that it listed without them."""
    held, live = set(held), set(live)
    return [
        *(Claim("module.not-live", "high", f"the system did not list module {name}",
                "Memory holds it and /proc/modules of the running system did not have it. A module "
                "that was loaded or removed in between looks so (race); one that hides itself does "
                "just this.", "hidden or race", None, None, ({"name": name},))
          for name in sorted(held - live)),
        *(Claim("module.only-live", "info", f"module {name} is not in memory",
                "The running system listed it and memory does not: it was loaded or removed in "
                "between.", "race", None, None, ({"name": name},))
          for name in sorted(live - held)),
    ]  # fmt: skip


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


def drivers(
    listed: Iterable[Row], scanned: Iterable[Row], objects: Iterable[Row]
) -> list[Claim]:  # fmt: skip
    """Return drivers of Windows that the kernel's list of modules leaves out.

    Args:
        listed: of the list: `Base`, `Size`, `Name`, `Offset`.
        scanned: of a scan of memory, likewise; an unloaded one may still be found.
        objects: driver objects, `Start` and names: one that starts there was not unloaded.
    """
    known = {row.get("Base") for row in listed}
    starts = {
        row.get("Start"): row.get("Driver Name") or row.get("Name") or "without a name"
        for row in objects
    }
    claims = []
    for row in scanned:
        base = row.get("Base")
        if not base or base in known:
            continue
        known.add(base)
        name, of = row.get("Name"), starts.get(base)
        claims.append(Claim(
            "module.hidden", "medium" if of is None else "high",
            f"module {name} is not in the kernel's list",
            "A scan of memory finds it, the kernel's list of loaded modules has it not. "
            + ("One that was unloaded looks so until its memory is used again; a rootkit that "
               "unlinks itself does too." if of is None else
               f"The driver object {of} still starts in it, so it was not unloaded: a rootkit that "
               "unlinks itself does just this; so does one that was being loaded (race)."),
            "unloaded or hidden" if of is None else "hidden or race",
            None, base, (row,)))  # fmt: skip
    return claims


def unlinked(rows: Iterable[Row]) -> list[Claim]:
    """Return executables mapped in processes that none of the loader's lists has (ldrmodules)."""
    lists = ("InLoad", "InInit", "InMem")
    return [
        Claim("image.unlinked", "low",
              f"process {row.get('Pid')} {row.get('Process')} maps {row['MappedPath']} unlisted",
              "Its memory maps the file as an executable, and none of the three lists of its "
              "loader has it. Files that are mapped for their resources alone look so; a library "
              "that unlinked itself does too.",
              "data or hidden", row.get("Pid"), row.get("Base"), (row,))
        for row in rows
        if row.get("MappedPath") and not any(row.get(name) for name in lists)
    ]  # fmt: skip


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
