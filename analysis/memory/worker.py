# SPDX-License-Identifier: LicenseRef-VSL-1.0
"""The job `memory`: plugins over one kernel, their rows as tables. Runs in a process of its own.

No row of any plugin is believed before the gate: with wrong symbols volatility3 gives empty tables
and says nothing. The kernel's list of tasks must have pid 1 and a boot time must be possible, or
there are no rows at all, and `coverage` says why.
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from analysis import crossview, live
from analysis.crossview import Claim
from analysis.errors import AnalysisError
from analysis.memory import rules
from analysis.memory.kernel import MODULE, load, plugins
from analysis.memory.profiles import GATE, NEED_ARGUMENTS, PROFILES, Plugin
from analysis.memory.run import UNUSABLE, VERSION, Result, SharedChannel, run_all
from analysis.output import ParquetSink
from analysis.ram import Ram, open_ram
from analysis.rules import compile_rules
from analysis.schema import TABLES
from evidence_store.child import Channel
from evidence_store.item import SegmentFile

_ISF = "symbols/00000000.json.gz"
_KERNELS = "kernels/00000000.parquet"
_SOCKSTAT = "linux.sockstat.Sockstat"
_BATCH = 20_000
_MAX_ISF = 512 << 20
_MAX_ANSWER = 64 << 20
_ADDRESSES = ("OFFSET (V)", "OFFSET (P)", "OFFSET", "Offset", "Sock Offset", "Start", "Address",
              "Handler Address", "CredVAddr", "InodeAddr", "Addr", "LoadAddress",
              "tracepoint address", "ftrace_ops address")  # fmt: skip
_PIDS = ("PID", "Pid", "TID")
_NAMES = ("COMM", "Comm", "Process", "Process Name", "Thread Name")
_FIRST_BOOT = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)


def main(channel: Channel) -> None:
    """Run the profile that the request names over its item."""
    request = channel.request
    sink = ParquetSink(channel)
    said = _live(channel, sink)
    with channel.image(request["item"]) as image:
        if kernel := trusted(channel, sink, image):
            context, known, made = kernel
            made.live = said
            _profile(context, known, made, request)
    sink.close()


def gap(sink: ParquetSink, what: str, reason: str, *, level: str = "gap", **more: Any) -> None:
    """Tell what was not seen."""
    sink.coverage(job=sink.job, what=what, reason=reason, count=1, level=level, **more)


def _symbols(channel: Channel, sink: ParquetSink) -> dict[str, Any] | None:
    """Put the symbol table where it can be read; return the row of `kernels`."""
    for item in channel.request["needed"]:
        rows, isf = _table(channel, item, _KERNELS), channel.open_object(item, _ISF)
        if isf is not None:
            with open(isf, "rb") as f:  # noqa: PTH123
                Path("symbols").mkdir()
                Path("symbols/kernel.json.gz").write_bytes(f.read(_MAX_ISF))
            if rows and rows[0]["page_table"] is not None:
                return dict(rows[0])
    whose = "this kernel"
    for item in channel.request["needed"]:
        for row in _table(channel, item, _KERNELS):
            if row["system"] == "windows":
                whose = f"Windows {row['release']} ({row['banner']} {row['build_id']})"
    gap(sink, "symbols", f"no symbols of {whose} could be made: the coverage of the job "
         "symbols says why. Without them its memory is not explained")  # fmt: skip
    return None


def _table(channel: Channel, item: str, name: str) -> list[dict[str, Any]]:
    """Return the rows of a part that the job symbols made; none if it did not make it."""
    fd = channel.open_object(item, name)
    if fd is None:
        return []
    with open(fd, "rb") as f:  # noqa: PTH123
        return list(pq.read_table(f).to_pylist())


def _live(channel: Channel, sink: ParquetSink) -> live.Answers | None:
    """Return what the live response beside the image says; None if there is none of that boot."""
    beside = channel.request["beside"]
    if not beside:
        gap(sink, "live", "the case has no live response of the same host beside this memory: its "
             "lists are compared with each other only", level="limit")  # fmt: skip
        return None

    def answer(name: str) -> bytes | None:
        fd = channel.open_object(beside["item"], beside["objects"].get(name, ""))
        if fd is None:
            return None
        with open(fd, "rb") as f:  # noqa: PTH123
            return f.read(_MAX_ANSWER)

    found = live.read(answer)
    booted = channel.request["boot_id"]
    if booted and found.boot and booted != found.boot:
        gap(sink, "live", f"the host was booted anew between this memory and {beside['item']}: "
             "they are not compared")  # fmt: skip
        return None
    for problem in found.problems:
        gap(sink, "live", f"{beside['item']}: {problem}")
    return found


def trusted(
    channel: Channel, sink: ParquetSink, image: SegmentFile
) -> tuple[Any, dict[str, Any], Made] | None:
    """Return the kernel of an image whose symbols passed their test, the plugins, and their sink.

    None, and a gap, if there is no such.
    """
    SharedChannel(channel, Path("lock"))
    try:
        ram = open_ram(image)
    except AnalysisError as e:
        gap(sink, "memory", str(e))
        return None
    for problem in ram.problems:
        gap(sink, "memory", problem.reason, offset=problem.offset, length=problem.length)
    facts = _symbols(channel, sink)
    if facts is None:
        return None
    known, missing = plugins()
    try:
        context = load(
            ram, Path("symbols/kernel.json.gz"),
            {"kernel_offset": facts["kernel_offset"], "levels": facts["levels"],
             "top": facts["page_table"]},
        )  # fmt: skip
    except UNUSABLE as e:
        why = f"the symbol table cannot be loaded: {type(e).__name__}: {str(e)[:300]}"
        gap(sink, "symbols", why)
        return None
    module = context.modules[MODULE]
    first, last = (module.get_absolute_symbol_address(name) for name in ("_text", "_end"))
    made = Made(sink, channel.request, (first, last), ram=ram, missing=missing)
    run_all(context, known, [Plugin(name) for name in GATE], Path("rows"), made.hold)
    if why := made.untrusted():
        gap(sink, "symbols", f"the symbols of {facts['release']} failed their test: {why}")
        return None
    return context, known, made


def _profile(context: Any, known: dict[str, Any], made: Made, request: dict[str, Any]) -> None:
    sink, profile = made.sink, request["options"].get("profile", "quick")
    total = len(GATE) + len(PROFILES[profile])
    for result in made.held:
        made.take(result)

    def done(result: Result) -> None:
        made.take(result)
        sink.progress(len(made.taken), total)

    wanted = [*PROFILES[profile], *_rules(made.ram, known, sink, request["given"])]
    run_all(context, known, wanted, Path("rows"), done)
    made.finish()
    _left_out(sink, profile, made.missing)


def _rules(ram: Ram, known: dict[str, Any], sink: ParquetSink, given: list[str]) -> list[Plugin]:
    """Compile the rules that were given; return the plugin that applies them, if there are any."""
    if not given:
        return []
    try:
        compiled, ignored = compile_rules({name: Path(name).read_bytes() for name in given})
    except AnalysisError as e:
        gap(sink, "rules", str(e))
        return []
    for why in ignored:
        gap(sink, "rules", f"ignored: {why}")
    gap(sink, "rules", "rules are judged on 16 MiB of physical memory at a time; what lies "
         "scattered over pages is not seen together", level="limit")  # fmt: skip
    known[rules.NAME] = type("Rules", (rules.Rules,), {"ram": ram, "compiled": compiled})
    return [Plugin(rules.NAME, 3600)]


def _left_out(sink: ParquetSink, profile: str, missing: list[str]) -> None:
    run = {*GATE, *(plugin.name for plugin in PROFILES[profile])}
    more = [plugin.name for plugin in PROFILES["full"] if plugin.name not in run]
    if more:
        gap(sink, "plugin", f"the profile {profile} leaves out {len(more)} plugins that the "
             f"profile full has: {', '.join(more)}", level="limit")  # fmt: skip
    gap(sink, "plugin", f"need arguments and do not run: {', '.join(NEED_ARGUMENTS)}",
         level="limit")  # fmt: skip
    if linux := [name for name in missing if ".linux." in name]:
        gap(sink, "plugin", f"could not be imported: {', '.join(linux)}")


@dataclass
class Made:
    """Turns results of plugins into tables."""

    sink: ParquetSink
    request: dict[str, Any]
    image: tuple[int, int]
    live: live.Answers | None = None
    ram: Ram = field(default_factory=lambda: Ram("raw", [], []))
    missing: list[str] = field(default_factory=list)
    held: list[Result] = field(default_factory=list)
    taken: dict[str, Result] = field(default_factory=dict)

    def hold(self, result: Result) -> None:
        """Keep a result of the gate until it has been judged."""
        self.held.append(result)

    def untrusted(self) -> str:
        """Return why the symbols cannot be trusted, "" if they can."""
        results = {result.plugin: result for result in self.held}
        tasks = results[GATE[0]]
        pids = {row["PID"] for row in tasks.rows()}
        if not pids:
            return f"the kernel's list of tasks is empty{_because(tasks)}"
        if 1 not in pids:
            return f"there is no process 1 among {len(pids)} tasks"
        boots = [row["Boot Time"] for row in results[GATE[1]].rows()]
        if not boots:
            return f"no time of boot can be read{_because(results[GATE[1]])}"
        limit = datetime.datetime.fromtimestamp(time.time() + 2 * 86400, datetime.UTC)
        boot = _time(boots[0])
        if boot is None or not _FIRST_BOOT < boot < limit:
            return f"the time of boot would be {boots[0]}"
        return ""

    def take(self, result: Result) -> None:
        """Write the rows of a plugin, and what is missing of them."""
        self.taken[result.plugin] = result
        if result.problem:
            gap(self.sink, "plugin", f"{result.plugin}: {result.problem}")
        if result.cut:
            gap(self.sink, "rows-cut", f"{result.plugin} gave more than is kept")
        self.write("memory", self._generic(result))
        self.write("timeline", self._timeline(result))
        if maker := _TABLES.get(result.plugin):
            table, make = maker
            self.write(table, (row for r in result.rows() if (row := make(r))))

    def finish(self) -> None:
        """Write the tables that need several plugins."""
        rows = self._rows
        views: dict[str, list[dict[str, Any]]] = {}
        for name, plugin, column in (
            ("pslist", GATE[0], "OFFSET (V)"),
            ("pidhashtable", "linux.pidhashtable.PIDHashTable", "OFFSET"),
            ("psscan", "linux.psscan.PsScan", "OFFSET (P)"),
        ):
            if (result := self.taken.get(plugin)) and not result.problem:
                views[name] = [
                    {"pid": row["PID"], "ppid": row["PPID"], "comm": row["COMM"],
                     "address": _signed(row[column]), "state": row.get("EXIT_STATE"), "view": name,
                     "started": _ns(row.get("CREATION TIME"))}
                    for row in rows(plugin) if row["PID"] == row["TID"]
                ]  # fmt: skip
        times = None
        if self.live:
            beside = self.request["beside"]
            source = {"item": beside["item"], "item_digest": beside["digest"], "tool": "impound",
                      "tool_version": self.request["version"]}  # fmt: skip
            for name, view in self.live.views.items():
                views[name] = [{**row, **source} for row in view]
            if self.live.at is not None:
                first, last = (at + self.live.ahead for at in self.request["taken"])
                times = crossview.Times(self.live.at, (first, last))
        self.write("process_views", (row for view in views.values() for row in view))
        self.write("processes", self._processes(views))
        self.write("modules", self._modules())
        claims = [*crossview.processes(views, times), *self._claims(), *self._live_claims()]
        self.write("findings", (claim.row() for claim in claims))

    def _rows(self, plugin: str) -> list[dict[str, Any]]:
        result = self.taken.get(plugin)
        return list(result.rows()) if result else []

    def _claims(self) -> Iterator[Claim]:
        malware = "linux.malware"
        yield from crossview.modules(self._rows(f"{malware}.modxview.Modxview"))
        yield from crossview.sockets(self._rows(_SOCKSTAT), self._rows("linux.sockscan.Sockscan"))
        for name, plugin in (
            ("syscall", "check_syscall.Check_syscall"), ("idt", "check_idt.Check_idt"),
            ("afinfo", "check_afinfo.Check_afinfo"), ("tty", "tty_check.Tty_Check"),
            ("netfilter", "netfilter.Netfilter"),
            ("keyboard", "keyboard_notifiers.Keyboard_notifiers"),
        ):  # fmt: skip
            yield from crossview.hooks(name, self._rows(f"{malware}.{plugin}"), self.image)
        yield from crossview.injected(self._rows(f"{malware}.malfind.Malfind"))
        yield from crossview.matched(self._rows(rules.NAME))
        yield from crossview.spoofed(self._rows(f"{malware}.process_spoofing.ProcessSpoofing"))

    def _live_claims(self) -> Iterator[Claim]:
        if self.live and self.live.sockets is not None:
            yield from crossview.live_sockets(self._rows(_SOCKSTAT), self.live.sockets)
        lsmod = self.taken.get("linux.lsmod.Lsmod")
        if self.live and self.live.modules is not None and lsmod and not lsmod.problem:
            held = {row["Module Name"] for row in lsmod.rows()}
            yield from crossview.live_modules(held, self.live.modules)

    def _processes(self, views: dict[str, list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
        arguments = {row["PID"]: row["ARGS"] for row in self._rows("linux.psaux.PsAux")}
        seen: dict[int, list[str]] = {}
        for name, view in views.items():
            for row in view:
                seen.setdefault(row["pid"], []).append(name)
        for row in self._rows(GATE[0]):
            yield {
                "pid": row["PID"], "ppid": row["PPID"], "comm": row["COMM"], "uid": row["UID"],
                "gid": row["GID"], "euid": row["EUID"], "started": _ns(row["CREATION TIME"]),
                "args": arguments.get(row["PID"]), "address": _signed(row["OFFSET (V)"]),
                "views": ",".join(dict.fromkeys(seen.get(row["PID"], ()))),
            }  # fmt: skip

    def _modules(self) -> Iterator[dict[str, Any]]:
        names = {"In procfs": "procfs", "In sysfs": "sysfs", "In scan": "scan"}
        views: dict[int, list[str]] = {}
        for row in self._rows("linux.malware.modxview.Modxview"):
            views[row["Address"]] = [short for name, short in names.items() if row.get(name)]
        for row in self._rows("linux.lsmod.Lsmod"):
            at = row["Offset"]
            yield {"name": row["Module Name"], "size": row["Code Size"], "taints": row["Taints"],
                   "parameters": row["Load Arguments"], "address": _signed(at),
                   "views": ",".join(["lsmod", *views.pop(at, [])])}  # fmt: skip
        for row in self._rows("linux.malware.modxview.Modxview"):
            if row["Address"] in views:
                yield {"name": row["Name"], "size": None, "taints": row["Taints"],
                       "parameters": None, "address": _signed(row["Address"]),
                       "views": ",".join(views[row["Address"]])}  # fmt: skip

    def _generic(self, result: Result) -> Iterator[dict[str, Any]]:
        at = next((c for c in _ADDRESSES if c in result.columns), None)
        pid = next((c for c in _PIDS if c in result.columns), None)
        name = next((c for c in _NAMES if c in result.columns), None)
        number = 0
        for line in result.lines():
            if "v" not in line:
                continue
            row = dict(zip(result.columns, line["v"], strict=False))
            yield {
                "plugin": result.plugin, "row": number, "depth": line["d"],
                "pid": row[pid] if pid and isinstance(row[pid], int) else None,
                "comm": row[name] if name else None,
                "address": _signed(row[at]) if at and isinstance(row[at], int) else None,
                "data": json.dumps(row),
            }  # fmt: skip
            number += 1

    def _timeline(self, result: Result) -> Iterator[dict[str, Any]]:
        for line in result.lines():
            at = _time(line["t"]) if "t" in line else None
            if at is not None:
                micro = _ns(line["t"]) or 0
                yield {"message": line["e"], "datetime": at.isoformat(timespec="microseconds"),
                       "timestamp": micro // 1000, "timestamp_desc": line["k"],
                       "source": result.plugin}  # fmt: skip

    def write(self, table: str, rows: Iterable[dict[str, Any]]) -> None:
        """Write rows; what names evidence and tool is added where a row has it not."""
        common = {"item": self.request["item"], "item_digest": self.request["item_digest"],
                  "tool": "volatility3", "tool_version": VERSION}  # fmt: skip
        rows = iter(rows)
        while batch := [_fit(table, {**common, **row}) for row in islice(rows, _BATCH)]:
            self.sink.rows(table, pa.Table.from_pylist(batch, schema=TABLES[table]))


def _fit(table: str, row: dict[str, Any]) -> dict[str, Any]:
    """Return a row that the schema takes: what is no number there is null, an absent text ""."""
    for column in TABLES[table]:
        value = row.get(column.name)
        if pa.types.is_integer(column.type):
            whole = isinstance(value, int) and -(1 << 63) <= value < 1 << 63
            row[column.name] = value if whole else None if column.nullable else 0
        elif value is not None or not column.nullable:
            text = "" if value is None else str(value)
            row[column.name] = text.encode("utf-8", "backslashreplace").decode()
    return row


def _because(result: Result) -> str:
    return f" ({result.problem})" if result.problem else ""


def _signed(address: Any) -> int | None:
    """Return an address as the processor has it: the highest bit of 48 (57) extended, signed."""
    if not isinstance(address, int):
        return None
    if address >> 63:
        return address - (1 << 64)
    for bits in (48, 57):
        if 1 << (bits - 1) <= address < 1 << bits:
            return address - (1 << bits)
    return address


def _time(text: Any) -> datetime.datetime | None:
    try:
        at = datetime.datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return at if at.tzinfo else at.replace(tzinfo=datetime.UTC)


def _ns(text: Any) -> int | None:
    at = _time(text)
    if at is None:
        return None
    since = at - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000_000 + since.microseconds * 1000


def _number(value: Any) -> int | None:
    return int(value) if isinstance(value, int) or str(value).isdecimal() else None


def _socket(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "pid": row["PID"], "comm": row["Process Name"], "fd": row["FD"], "netns": row["NetNS"],
        "family": row["Family"], "type": row["Type"], "protocol": row["Proto"],
        "local_address": row["Source Addr"], "local_port": _number(row["Source Port"]),
        "remote_address": row["Destination Addr"],
        "remote_port": _number(row["Destination Port"]), "state": row["State"],
        "address": _signed(row["Sock Offset"]),
    }  # fmt: skip


def _match(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "rule": row["Rule"], "namespace": row["Namespace"], "pattern": row["Pattern"],
        "physical": row["Physical"], "offset": row["Offset"], "length": row["Length"],
        "pid": row["PID"], "comm": row["Process"], "virtual": _signed(row["Virtual"]),
        "data": row["Data"],
    }  # fmt: skip


_TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], dict[str, Any] | None]]] = {
    _SOCKSTAT: ("sockets", _socket),
    rules.NAME: ("matches", _match),
}
