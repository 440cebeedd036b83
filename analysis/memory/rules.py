# SPDX-License-Identifier: LicenseRef-VSL-1.0
"""YARA-X over memory as a plugin: matches, and which processes have the page mapped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yara_x
from volatility3.framework import exceptions, interfaces, renderers
from volatility3.framework.configuration import requirements
from volatility3.framework.renderers import format_hints
from volatility3.plugins.linux import pslist
from volatility3.plugins.windows import pslist as windows_pslist

from analysis import rules as yara
from analysis.ram import Ram

_MAX_HITS = 100_000


class Rules(interfaces.plugins.PluginInterface):  # type: ignore[misc]
    """Matches of rules that were compiled before; set `ram` and `compiled` on a subclass."""

    _required_framework_version = (2, 0, 0)
    name = "impound.rules"
    ram: Ram
    compiled: yara_x.Rules

    @classmethod
    def get_requirements(cls) -> list[Any]:
        """See PluginInterface."""
        return [requirements.ModuleRequirement(name="kernel", description="kernel")]

    def run(self) -> Any:
        """See PluginInterface."""
        address = format_hints.Hex
        columns = [
            ("Rule", str), ("Namespace", str), ("Pattern", str), ("Physical", address),
            ("Offset", address), ("Length", int), ("PID", int), ("Process", str),
            ("Virtual", address), ("Data", str),
        ]  # fmt: skip
        return renderers.TreeGrid(columns, ((0, row) for row in self._generator()))

    def _generator(self) -> Iterator[tuple[Any, ...]]:
        problems: list[str] = []
        pages: dict[int, list[yara.Hit]] = {}
        hits: list[yara.Hit] = []
        for hit in yara.scan(self.ram, self.compiled, problems):
            hits.append(hit)
            pages.setdefault(hit.address >> 12, []).append(hit)
            if len(hits) >= _MAX_HITS:
                problems.append(f"only {_MAX_HITS} matches are kept")
                break
        owned: set[int] = set()
        if hits:
            try:
                for pid, comm, virtual, page in self._mapped(pages):
                    for hit in pages[page]:
                        owned.add(id(hit))
                        inner = hit.address & 0xFFF
                        yield self._row(hit, pid, comm, format_hints.Hex(virtual + inner))
            except MemoryError:
                raise
            # Hostile memory raises anything. A match counts, whoever maps it.
            except Exception as e:
                problems.append(f"not all owners of pages are known: {type(e).__name__}: {e}")
        absent = renderers.NotApplicableValue()
        for hit in hits:
            if id(hit) not in owned:
                yield self._row(hit, absent, absent, absent)
        if problems:
            raise exceptions.PluginRequirementException("; ".join(problems[:10]))

    def _row(self, hit: yara.Hit, pid: Any, comm: Any, virtual: Any) -> tuple[Any, ...]:
        offset = self.ram.offset_of(hit.address)
        return (hit.rule, hit.namespace, hit.pattern, format_hints.Hex(hit.address),
                renderers.NotAvailableValue() if offset is None else format_hints.Hex(offset),
                hit.length, pid, comm, virtual, hit.data.hex())  # fmt: skip

    def _mapped(self, pages: dict[int, Any]) -> Iterator[tuple[int, str, int, int]]:
        """Yield (pid, comm, virtual address, physical page) of these pages that processes map."""
        for pid, comm, layer, areas in self._processes():
            try:
                for start, size in areas:
                    for at, length, mapped, _, _ in layer.mapping(start, size, ignore_errors=True):
                        for page in range(mapped >> 12, (mapped + length - 1 >> 12) + 1):
                            if page in pages:
                                yield pid, comm, at + (page << 12) - (mapped & ~0xFFF), page
            except exceptions.InvalidAddressException:
                continue  # memory was read while the process changed: its other pages are lost

    def _processes(self) -> Iterator[tuple[int, str, Any, Iterator[tuple[int, int]]]]:
        """Yield (pid, comm, layer, areas) of processes; an area is (address, bytes)."""
        for task in pslist.PsList.list_tasks(self.context, self.config["kernel"]):
            try:
                name = task.add_process_layer()
                if not name:
                    continue
                comm = task.comm.cast("string", max_length=16, errors="replace")
                areas = (
                    (int(area.vm_start), int(area.vm_end) - int(area.vm_start))
                    for area in task.mm.get_vma_iter()
                )
                yield int(task.pid), str(comm), self.context.layers[name], areas
            except exceptions.InvalidAddressException:
                continue  # as above


class WindowsRules(Rules):
    """The same over Windows."""

    def _processes(self) -> Iterator[tuple[int, str, Any, Iterator[tuple[int, int]]]]:
        kernel = self.config["kernel"]
        for process in windows_pslist.PsList.list_processes(self.context, kernel):
            try:
                layer = self.context.layers[process.add_process_layer()]
                comm = process.ImageFileName.cast("string", max_length=15, errors="replace")
                areas = (
                    (int(vad.get_start()), int(vad.get_size()))
                    for vad in process.get_vad_root().traverse()
                )
                yield int(process.UniqueProcessId), str(comm), layer, areas
            except exceptions.InvalidAddressException:
                continue  # as above
