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

from analysis import rules as yara
from analysis.ram import Ram

NAME = "impound.rules"
_MAX_HITS = 100_000


class Rules(interfaces.plugins.PluginInterface):  # type: ignore[misc]
    """Matches of rules that were compiled before; set `ram` and `compiled` on a subclass."""

    _required_framework_version = (2, 0, 0)
    ram: Ram
    compiled: yara_x.Rules

    @classmethod
    def get_requirements(cls) -> list[Any]:
        """See PluginInterface."""
        return [requirements.ModuleRequirement(name="kernel", description="Linux kernel")]

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
            for pid, comm, virtual, page in self._mapped(pages):
                for hit in pages[page]:
                    owned.add(id(hit))
                    inner = hit.address & 0xFFF
                    yield self._row(hit, pid, comm, format_hints.Hex(virtual + inner))
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
        """Yield (pid, comm, virtual address, physical page) of pages that processes map."""
        for task in pslist.PsList.list_tasks(self.context, self.config["kernel"]):
            try:
                name = task.add_process_layer()
                if not name:
                    continue
                layer, pid = self.context.layers[name], int(task.pid)
                comm = task.comm.cast("string", max_length=16, errors="replace")
                for area in task.mm.get_vma_iter():
                    start, size = int(area.vm_start), int(area.vm_end) - int(area.vm_start)
                    for at, length, mapped, _, _ in layer.mapping(start, size, ignore_errors=True):
                        for page in range(mapped >> 12, (mapped + length - 1 >> 12) + 1):
                            if page in pages:
                                yield pid, str(comm), at + (page << 12) - (mapped & ~0xFFF), page
            except exceptions.InvalidAddressException:
                continue  # memory was read while the process changed: its other pages are lost
