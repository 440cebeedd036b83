# SPDX-License-Identifier: LicenseRef-VSL-1.0
"""Linux: its gate, and its tables from several plugins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from analysis import crossview
from analysis.crossview import Claim
from analysis.memory import rules
from analysis.memory.profiles import GATE, NEED_ARGUMENTS, PROFILES
from analysis.memory.tables import Made, because, impossible, match, ns, number, signed, time_of

_SOCKSTAT = "linux.sockstat.Sockstat"


def _socket(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "pid": row["PID"], "comm": row["Process Name"], "fd": row["FD"], "netns": row["NetNS"],
        "family": row["Family"], "type": row["Type"], "protocol": row["Proto"],
        "local_address": row["Source Addr"], "local_port": number(row["Source Port"]),
        "remote_address": row["Destination Addr"],
        "remote_port": number(row["Destination Port"]), "state": row["State"],
        "address": signed(row["Sock Offset"]),
    }  # fmt: skip


class Linux(Made):
    """Linux memory."""

    system = "linux"
    gate = GATE
    profiles = PROFILES
    limits = (f"need arguments and do not run: {', '.join(NEED_ARGUMENTS)}",)
    rules_kind = rules.Rules
    tables = {_SOCKSTAT: ("sockets", _socket), rules.Rules.name: ("matches", match)}  # noqa: RUF012

    def untrusted(self) -> str:
        """Return why the symbols cannot be trusted, "" if they can."""
        results = {result.plugin: result for result in self.held}
        tasks = results[GATE[0]]
        pids = {row["PID"] for row in tasks.rows()}
        if not pids:
            return f"the kernel's list of tasks is empty{because(tasks)}"
        if 1 not in pids:
            return f"there is no process 1 among {len(pids)} tasks"
        boots = [row["Boot Time"] for row in results[GATE[1]].rows()]
        if not boots:
            return f"no time of boot can be read{because(results[GATE[1]])}"
        if impossible(time_of(boots[0])):
            return f"the time of boot would be {boots[0]}"
        return ""

    def finish(self) -> None:
        """Write the tables that need several plugins."""
        rows = self.rows
        views: dict[str, list[dict[str, Any]]] = {}
        for name, plugin, column in (
            ("pslist", GATE[0], "OFFSET (V)"),
            ("pidhashtable", "linux.pidhashtable.PIDHashTable", "OFFSET"),
            ("psscan", "linux.psscan.PsScan", "OFFSET (P)"),
        ):
            if (result := self.taken.get(plugin)) and not result.problem:
                views[name] = [
                    {"pid": row["PID"], "ppid": row["PPID"], "comm": row["COMM"],
                     "address": signed(row[column]), "state": row.get("EXIT_STATE"), "view": name,
                     "started": ns(row.get("CREATION TIME"))}
                    for row in rows(plugin) if row["PID"] == row["TID"]
                ]  # fmt: skip
        times = None
        if self.live:
            beside = self.request["beside"]
            source = {"item": beside["item"], "item_digest": beside["digest"], "tool": "impound",
                      "tool_version": self.request["version"]}  # fmt: skip
            for name, view in self.live.views.items():
                views[name] = [{**row, **source} for row in view]
            if self.live.at is not None and self.request["taken"]:
                first, last = (at + self.live.ahead for at in self.request["taken"])
                times = crossview.Times(self.live.at, (first, last))
            elif self.live.at is not None and self.clock is not None:
                times = crossview.Times(self.live.at, (self.clock, self.clock), began=False)
        self.write("process_views", (row for view in views.values() for row in view))
        self.write("processes", self._processes(views))
        self.write("modules", self._modules())
        claims = [*crossview.processes(views, times), *self._claims(), *self._live_claims()]
        self.write("findings", (claim.row() for claim in claims))

    def _claims(self) -> Iterator[Claim]:
        malware = "linux.malware"
        yield from crossview.modules(self.rows(f"{malware}.modxview.Modxview"))
        yield from crossview.sockets(self.rows(_SOCKSTAT), self.rows("linux.sockscan.Sockscan"))
        for name, plugin in (
            ("syscall", "check_syscall.Check_syscall"), ("idt", "check_idt.Check_idt"),
            ("afinfo", "check_afinfo.Check_afinfo"), ("tty", "tty_check.Tty_Check"),
            ("netfilter", "netfilter.Netfilter"),
            ("keyboard", "keyboard_notifiers.Keyboard_notifiers"),
        ):  # fmt: skip
            yield from crossview.hooks(name, self.rows(f"{malware}.{plugin}"), self.image)
        yield from crossview.injected(self.rows(f"{malware}.malfind.Malfind"))
        yield from crossview.matched(self.rows(rules.Rules.name))
        yield from crossview.spoofed(self.rows(f"{malware}.process_spoofing.ProcessSpoofing"))

    def _live_claims(self) -> Iterator[Claim]:
        if self.live and self.live.sockets is not None:
            yield from crossview.live_sockets(self.rows(_SOCKSTAT), self.live.sockets)
        lsmod = self.taken.get("linux.lsmod.Lsmod")
        if self.live and self.live.modules is not None and lsmod and not lsmod.problem:
            held = {row["Module Name"] for row in lsmod.rows()}
            yield from crossview.live_modules(held, self.live.modules)

    def _processes(self, views: dict[str, list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
        arguments = {row["PID"]: row["ARGS"] for row in self.rows("linux.psaux.PsAux")}
        seen: dict[int, list[str]] = {}
        for name, view in views.items():
            for row in view:
                seen.setdefault(row["pid"], []).append(name)
        for row in self.rows(GATE[0]):
            yield {
                "pid": row["PID"], "ppid": row["PPID"], "comm": row["COMM"], "uid": row["UID"],
                "gid": row["GID"], "euid": row["EUID"], "started": ns(row["CREATION TIME"]),
                "args": arguments.get(row["PID"]), "address": signed(row["OFFSET (V)"]),
                "views": ",".join(dict.fromkeys(seen.get(row["PID"], ()))),
            }  # fmt: skip

    def _modules(self) -> Iterator[dict[str, Any]]:
        names = {"In procfs": "procfs", "In sysfs": "sysfs", "In scan": "scan"}
        views: dict[int, list[str]] = {}
        for row in self.rows("linux.malware.modxview.Modxview"):
            views[row["Address"]] = [short for name, short in names.items() if row.get(name)]
        for row in self.rows("linux.lsmod.Lsmod"):
            at = row["Offset"]
            yield {"name": row["Module Name"], "size": row["Code Size"], "taints": row["Taints"],
                   "parameters": row["Load Arguments"], "address": signed(at),
                   "views": ",".join(["lsmod", *views.pop(at, [])])}  # fmt: skip
        for row in self.rows("linux.malware.modxview.Modxview"):
            if row["Address"] in views:
                yield {"name": row["Name"], "size": None, "taints": row["Taints"],
                       "parameters": None, "address": signed(row["Address"]),
                       "views": ",".join(views[row["Address"]])}  # fmt: skip
