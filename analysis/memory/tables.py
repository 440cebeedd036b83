# SPDX-License-Identifier: LicenseRef-VSL-1.0
"""Results of plugins as tables: what is the same for every system, and where its own begins."""

from __future__ import annotations

import datetime
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

from analysis import live
from analysis.memory import rules
from analysis.memory.profiles import Plugin
from analysis.memory.run import VERSION, Result
from analysis.output import ParquetSink
from analysis.ram import Ram

_ADDRESSES = ("OFFSET (V)", "OFFSET (P)", "OFFSET", "Offset", "Sock Offset", "Start", "Address",
              "Handler Address", "CredVAddr", "InodeAddr", "Addr", "LoadAddress",
              "tracepoint address", "ftrace_ops address", "Offset(V)", "Offset(P)", "Offset (V)",
              "Start VPN", "Base", "Callback")  # fmt: skip
_PIDS = ("PID", "Pid", "TID")
_NAMES = ("COMM", "Comm", "Process", "Process Name", "Thread Name", "ImageFileName", "Owner")
_FIRST = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)

Row = dict[str, Any]


def gap(sink: ParquetSink, what: str, reason: str, *, level: str = "gap", **more: Any) -> None:
    """Tell what was not seen."""
    sink.coverage(job=sink.job, what=what, reason=reason, count=1, level=level, **more)


@dataclass
class Made(ABC):
    """Turns results of plugins into tables. Of each system there is a subclass.

    Attributes:
        image: first and last address of the kernel's image, as rows have addresses.
        live: what the running system said of itself.
        clock: what the kernel's clock said in this memory, ns since 1970.
        missing: modules of plugins that could not be imported.
        lacking: rows of `pdbs` whose tables were not given.
        held: results of the gate, before they were judged.
        taken: all others, by plugin.
    """

    system: ClassVar[str]
    gate: ClassVar[tuple[str, ...]]
    profiles: ClassVar[Mapping[str, tuple[Plugin, ...]]]
    limits: ClassVar[tuple[str, ...]]
    own: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    never_empty: ClassVar[frozenset[str]] = frozenset()
    rules_kind: ClassVar[type[rules.Rules]]
    tables: ClassVar[Mapping[str, tuple[str, Callable[[Row], Row | None]]]]

    sink: ParquetSink
    request: dict[str, Any]
    image: tuple[int, int]
    live: live.Answers | None = None
    clock: int | None = None
    ram: Ram = field(default_factory=lambda: Ram("raw", [], []))
    missing: list[str] = field(default_factory=list)
    lacking: list[Row] = field(default_factory=list)
    held: list[Result] = field(default_factory=list)
    taken: dict[str, Result] = field(default_factory=dict)

    @classmethod
    def misses(cls, module: str) -> bool:
        """Return whether a module that could not be imported is one of this system's."""
        return f".{cls.system}." in module

    def hold(self, result: Result) -> None:
        """Keep a result of the gate until it has been judged."""
        self.held.append(result)

    @abstractmethod
    def untrusted(self) -> str:
        """Return why the symbols cannot be trusted, "" if they can."""

    @abstractmethod
    def finish(self) -> None:
        """Write the tables that need several plugins."""

    def take(self, result: Result) -> None:
        """Write the rows of a plugin, and what is missing of them."""
        self.taken[result.plugin] = result
        if result.problem:
            gap(self.sink, "plugin", f"{result.plugin}: {result.problem}")
        elif result.plugin in self.never_empty and not any(True for _ in result.rows()):
            gap(self.sink, "plugin", f"{result.plugin} gave no rows, though every running system "
                "has some: its symbols or this build are not what it knows")  # fmt: skip
        if result.cut:
            gap(self.sink, "rows-cut", f"{result.plugin} gave more than is kept")
        self.write("memory", self._generic(result))
        self.write("timeline", self._timeline(result))
        if maker := self.tables.get(result.plugin):
            table, make = maker
            self.write(table, (row for r in result.rows() if (row := make(r))))

    def rows(self, plugin: str) -> list[Row]:
        """Return the rows of a plugin; none if it did not run."""
        result = self.taken.get(plugin)
        return list(result.rows()) if result else []

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
                "address": signed(row[at]) if at and isinstance(row[at], int) else None,
                "data": json.dumps(row),
            }  # fmt: skip
            number += 1

    def _timeline(self, result: Result) -> Iterator[dict[str, Any]]:
        for line in result.lines():
            at = time_of(line["t"]) if "t" in line else None
            if at is not None:
                micro = ns(line["t"]) or 0
                yield {"message": line["e"], "datetime": at.isoformat(timespec="microseconds"),
                       "timestamp": micro // 1000, "timestamp_desc": line["k"],
                       "source": result.plugin}  # fmt: skip

    def write(self, table: str, rows: Iterable[dict[str, Any]]) -> None:
        """Write rows; what names evidence and tool is added where a row has it not."""
        common = {"item": self.request["item"], "item_digest": self.request["item_digest"],
                  "tool": "volatility3", "tool_version": VERSION}  # fmt: skip
        self.sink.write(table, rows, common)


def impossible(at: datetime.datetime | None) -> bool:
    """Return whether no system that is examined today can have been started at this time."""
    limit = datetime.datetime.fromtimestamp(time.time() + 2 * 86400, datetime.UTC)
    return at is None or not _FIRST < at < limit


def because(result: Result) -> str:
    """Return what to add to a sentence on a result that is not whole."""
    return f" ({result.problem})" if result.problem else ""


def signed(address: Any) -> int | None:
    """Return an address as the processor has it: the highest bit of 48 (57) extended, signed."""
    if not isinstance(address, int):
        return None
    if address >> 63:
        return address - (1 << 64)
    for bits in (48, 57):
        if 1 << (bits - 1) <= address < 1 << bits:
            return address - (1 << bits)
    return address


def time_of(text: Any) -> datetime.datetime | None:
    """Return a time that was written as ISO 8601; UTC if it says no zone. None if it is none."""
    try:
        at = datetime.datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return at if at.tzinfo else at.replace(tzinfo=datetime.UTC)


def ns(text: Any) -> int | None:
    """Return such a time as ns since 1970."""
    at = time_of(text)
    if at is None:
        return None
    since = at - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000_000 + since.microseconds * 1000


def number(value: Any) -> int | None:
    """Return a whole number, of text too; None if it is none."""
    return int(value) if isinstance(value, int) or str(value).isdecimal() else None


def match(row: Row) -> Row:
    """Return the row of `matches` for a row of the rules' plugin."""
    return {
        "rule": row["Rule"], "namespace": row["Namespace"], "pattern": row["Pattern"],
        "physical": row["Physical"], "offset": row["Offset"], "length": row["Length"],
        "pid": row["PID"], "comm": row["Process"], "virtual": signed(row["Virtual"]),
        "data": row["Data"],
    }  # fmt: skip
