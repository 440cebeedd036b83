# SPDX-License-Identifier: Apache-2.0
"""The job `live`: the answers of a live response as tables. Runs in a limited child.

A collector that failed is a gap, and rows are made of what it did say. One that the host has not is
a gap where every Linux host must have it, a limit where it is a program that need not be there.
Lines that are not of the format are counted, by collector.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from analysis.live import (
    OUTCOMES,
    ahead,
    boot_id,
    decoded,
    first_of_each,
    outcomes,
    programs,
)
from analysis.live import partial as partial_list
from analysis.live import text as parse
from analysis.live.text import Lines, Row
from analysis.output import ParquetSink
from evidence_store.child import Channel

_MAX_ANSWER = 128 << 20
_UTC = ("UTC", "Etc/UTC", "Etc/UCT", "Etc/Universal", "Etc/Zulu", "Universal", "Zulu")
_EVERY_HOST = ("clock", "sockets.proc", "processes.proc", "executables", "environment", "maps",
               "open_files", "modules", "mounts", "system")  # fmt: skip
_OF_PROGRAMS = ("sockets", "processes", "logins", "timers", "services", "containers")
_EPOCH = datetime.fromtimestamp(0, UTC)


def main(channel: Channel) -> None:
    """Make tables of the answers that the request names; send parts and coverage."""
    request = channel.request
    sink = ParquetSink(channel)

    def answer(name: str) -> bytes | None:
        held = request["objects"].get(name, "")
        return channel.read_object(request["item"], held, _MAX_ANSWER)

    _Tables(sink, request, answer).make()
    sink.close()


@dataclass
class _Tables:
    sink: ParquetSink
    request: Mapping[str, Any]
    answer: Callable[[str], bytes | None]
    told: dict[str, dict[str, Any]] = field(default_factory=dict)
    unread: dict[str, list[int]] = field(default_factory=dict)  # collector -> lines

    def make(self) -> None:
        self.told = outcomes(self.answer(OUTCOMES) or b"")
        self.write("live_outcomes", map(_outcome, self.told.values()))
        self._outcomes()
        asked, booted = parse.boot_time(clock := self.text("clock"))
        zone = m[1] if (m := re.search(r"^Timezone=(\S{1,100})$", clock, re.MULTILINE)) else None
        held = self._open_files()
        names = self._processes(booted)
        self._sockets(held, names)
        tainted = self._modules()
        for table, name, lines in (
            ("live_mounts", "mounts", parse.mounts),
            ("live_mappings", "maps", parse.maps),
            ("live_environment", "environment", parse.environment),
            ("live_schedule", "timers", partial(programs.schedule, utc=self._utc("timers", zone))),
            ("live_containers", "containers", programs.containers),
        ):
            self.write(table, self._known(name, lines(self.text(name))))
        self.write("live_services", self._by_name("services", programs.services))
        logins = partial(programs.logins, utc=self._utc("logins", zone))
        sessions = list(self._known("logins", logins(self.text("logins"))))
        self.write("live_sessions", sessions)
        self.write("timeline", _sessions_in_time(sessions))
        self.write("live_host", self._host(asked, booted, zone, tainted))
        for name, lines_of in self.unread.items():
            self.gap(f"{name}: {len(lines_of)} lines are not of the format that is read, the first "
                     f"is line {lines_of[0]}", count=len(lines_of))  # fmt: skip

    def write(self, table: str, rows: Iterable[Row]) -> None:
        common = {"item": self.request["item"], "item_digest": self.request["item_digest"],
                  "tool": "impound", "tool_version": self.request["version"]}  # fmt: skip
        self.sink.write(table, rows, common)

    def gap(self, reason: str, *, level: str = "gap", count: int = 1) -> None:
        self.sink.coverage(job=self.sink.job, what="live", reason=reason, count=count, level=level)

    def _outcomes(self) -> None:
        """Tell which answers are not there, or not whole."""
        if self.request["root"] == "False":
            self.gap("the account was not root: the host answered only what that account may see")
        for name in (*_EVERY_HOST, *_OF_PROGRAMS):
            if name not in self.told:
                self.gap(f"{name}: the host was not asked")
        for name, one in self.told.items():
            if one.get("outcome") == "failed":
                self.gap(f"{name}: {one.get('why') or 'failed'}")
            elif one.get("outcome") == "missing":
                self.gap(f"{name}: the host has no such program or file",
                         level="gap" if name in _EVERY_HOST else "limit")  # fmt: skip
        read = {*_EVERY_HOST, *_OF_PROGRAMS}
        if rest := sorted(n for n in self.told if n not in read and "/" not in n):
            self.gap(f"kept as files of the item, and no rows are made of them: {', '.join(rest)}",
                     level="limit")  # fmt: skip

    def text(self, name: str) -> str:
        """Return what a collector said, "" if nothing; a last line that was cut is left out."""
        said = decoded(self.answer(name) or b"")
        if self.told.get(name, {}).get("outcome") == "success" or said.endswith("\n"):
            return said
        return said[: said.rfind("\n") + 1]

    def _known(self, name: str, lines: Lines) -> Iterator[Row]:
        """Yield rows with their line; count the lines that are not of the format."""
        for at, row in lines:
            if row is None:
                self.unread.setdefault(name, []).append(at)
            else:
                row["line"] = at
                yield row

    def _counted(self, name: str, lines: Lines) -> Lines:
        return ((row["line"], row) for row in self._known(name, lines))

    def _utc(self, name: str, zone: str | None) -> bool:
        """Whether what a program printed is in UTC: it was asked so, or the host is set so."""
        return "TZ=UTC0" in str(self.told.get(name, {}).get("script")) or zone in _UTC

    def _open_files(self) -> dict[int, list[tuple[int, int]]]:
        """Write the descriptors; return inode of a socket -> (pid, fd) of those who hold it."""
        held: dict[int, list[tuple[int, int]]] = {}

        def rows() -> Iterator[Row]:
            for row in self._known("open_files", parse.open_files(self.text("open_files"))):
                if row["socket"] is not None:
                    held.setdefault(row["socket"], []).append((row["pid"], row["fd"]))
                yield row

        self.write("live_open_files", rows())
        return held

    def _processes(self, booted: int | None) -> dict[int, str]:
        """Write the processes, each once; return their names."""
        views = {}
        for name, lines in (
            ("processes.proc", lambda text: parse.processes_proc(text, booted)),
            ("processes", parse.processes), ("executables", parse.executables),
        ):  # fmt: skip
            said = self.text(name)
            views[name] = first_of_each(self._counted(name, lines(said)))
            if said and name != "executables" and 1 not in views[name]:
                self.gap(partial_list(name))
        proc, ps, programs_of = views.values()
        rows = []
        for pid in sorted({*proc, *ps}):
            told = [view[pid][1] for view in (proc, ps) if pid in view]
            row = {**told[-1], **{k: v for k, v in told[0].items() if v is not None}}
            row["views"] = ",".join(one["collector"] for one in told)
            if row.get("exe"):
                row["exe"], row["exe_deleted"] = parse.undeleted(row["exe"])
            if pid in programs_of:
                program = programs_of[pid][1]
                row |= {"exe": program["exe"], "exe_deleted": program["exe_deleted"],
                        "exe_sha256": program["sha256"]}  # fmt: skip
            rows.append(row)
        self.write("live_processes", rows)
        self.write("timeline", (
            _event(row["started"], "created", "live_processes",
                   f"process {row['pid']} {row['comm']} of user {row.get('uid')} started: "
                   f"{(row.get('args') or '')[:300]}")
            for row in rows if row.get("started") is not None
        ))  # fmt: skip
        return {row["pid"]: row["comm"] for row in rows}

    def _sockets(self, held: Mapping[int, list[tuple[int, int]]], names: Mapping[int, str]) -> None:
        """Write the sockets: one row for each that has it open, one without if nobody has."""
        found: dict[tuple[Any, ...], Row] = {}
        for name, lines in (("sockets.proc", parse.sockets_proc), ("sockets", parse.sockets)):
            for row in self._known(name, lines(self.text(name))):
                ends = ("local_address", "local_port", "remote_address", "remote_port")
                key = (row["protocol"], row["inode"] or None, *(row[end] for end in ends))
                row["inode"] = row["inode"] or None
                first = found.setdefault(key, {**row, "views": []})
                first["views"].append(name)
                first["users"] = first["users"] or row["users"]
        self.write("live_sockets", (
            {**row, "views": ",".join(dict.fromkeys(row["views"])), "pid": pid, "fd": fd,
             "comm": comm}
            for row in found.values()
            for pid, fd, comm in row["users"]
            or [(pid, fd, names.get(pid)) for pid, fd in held.get(row["inode"], ())]
            or [(None, None, None)]
        ))  # fmt: skip

    def _modules(self) -> int | None:
        """Write the modules, each once; return what taints the kernel."""
        found: dict[str, Row] = {}
        tainted = None
        for row in self._known("modules", parse.modules(self.text("modules"))):
            if "tainted" in row:
                tainted = row["tainted"]
            else:
                first = found.setdefault(row["name"], {**row, "views": []})
                first["views"].append(row["view"])
        self.write("live_modules", (
            {**row, "views": ",".join(dict.fromkeys(row["views"]))} for row in found.values()
        ))  # fmt: skip
        return tainted

    def _by_name(self, name: str, lines: Callable[[str], Lines]) -> Iterable[Row]:
        found: dict[str, Row] = {}
        for row in self._known(name, lines(self.text(name))):
            found[row["name"]] = {**row, **found.get(row["name"], {})}
        return found.values()

    def _host(
        self, asked: int | None, booted: int | None, zone: str | None, tainted: int | None
    ) -> Iterator[Row]:
        said = self.text("system")
        if not said and asked is None:
            return
        lines = said.split("\n")
        uname = lines[0].split(" ")
        machine = next((n for n, line in enumerate(lines) if _MACHINE.fullmatch(line)), None)
        os = re.search(r'^PRETTY_NAME="?([^"\n]{0,200})', said, re.MULTILINE)
        yield {
            "boot_id": boot_id(said) or None, "kernel": lines[0].strip() or None,
            "name": uname[1] if len(uname) > 1 else None,
            "machine_id": None if machine is None else lines[machine],
            "cmdline": None if machine is None else "".join(lines[machine + 1 : machine + 2]),
            "os": os[1] if os else None, "tainted": tainted, "timezone": zone, "asked": asked,
            "booted": booted,
            "ahead": None if asked is None else ahead(asked, self.told.get("clock", {})),
        }  # fmt: skip


_MACHINE = re.compile(r"[0-9a-f]{32}")


def _outcome(one: Mapping[str, Any]) -> Row:
    began = str(one.get("began_ns"))
    return {
        "name": one.get("name"), "outcome": one.get("outcome"), "why": one.get("why") or None,
        "command": one.get("script"), "size": one.get("size"), "code": one.get("code"),
        "sha256": one.get("sha256") or None, "said": one.get("said") or None,
        "began": parse.number(began),
    }  # fmt: skip


def _sessions_in_time(sessions: Iterable[Row]) -> Iterator[Row]:
    """Yield what happened when, of those whose time is certain."""
    for row in sessions:
        where = f" from {row['host']}" if row.get("host") else ""
        who = f"{row.get('user')} on {row.get('tty')}{where}, as {row['by']} says"
        if row["kind"] in _HAPPENED and row["at"] is not None:
            yield _event(
                row["at"], row["kind"], "live_sessions", f"{_HAPPENED[row['kind']]}: {who}"
            )
        if row["kind"] == "login" and row["until"] is not None:
            yield _event(row["until"], "logout", "live_sessions", f"logout: {who}")


_HAPPENED = {"login": "login", "failed": "failed login", "boot": "boot", "shutdown": "shutdown"}


def _event(at: int, kind: str, table: str, message: str) -> Row:
    micro = at // 1000
    try:
        text = (_EPOCH + timedelta(microseconds=micro)).isoformat(timespec="microseconds")
    except OverflowError:  # a clock that nobody has
        text = ""
    return {"message": message.replace("\n", " "), "datetime": text, "timestamp": micro,
            "timestamp_desc": kind, "source": table}  # fmt: skip
