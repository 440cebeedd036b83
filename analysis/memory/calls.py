# SPDX-License-Identifier: LicenseRef-VSL-1.0
"""The table of system calls of Windows as a plugin, with the entries that lead into no module.

`windows.ssdt` names each entry by the module it leads into, and is silent on one that leads into
none: just what a driver that has unlinked itself makes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from volatility3.framework import exceptions, interfaces, renderers
from volatility3.framework.configuration import requirements
from volatility3.framework.renderers import format_hints
from volatility3.plugins.windows import modules

NAME = "impound.calls"
_MOST = 4096  # Windows 11 has about 500


class Calls(interfaces.plugins.PluginInterface):  # type: ignore[misc]
    """Index, address and module of each entry; no module if it leads into none that is listed."""

    _required_framework_version = (2, 0, 0)

    @classmethod
    def get_requirements(cls) -> list[Any]:
        """See PluginInterface."""
        return [requirements.ModuleRequirement(name="kernel", description="Windows kernel")]

    def run(self) -> Any:
        """See PluginInterface."""
        columns = [("Index", int), ("Address", format_hints.Hex), ("Module", str)]
        return renderers.TreeGrid(columns, ((0, row) for row in self._generator()))

    def _generator(self) -> Iterator[tuple[Any, ...]]:
        kernel = self.context.modules[self.config["kernel"]]
        layer = self.context.layers[kernel.layer_name]
        table = kernel.get_absolute_symbol_address("KiServiceTable")
        at = kernel.get_absolute_symbol_address("KiServiceLimit")
        (count,) = struct.unpack("<I", layer.read(at, 4))
        if not 0 < count <= _MOST:
            raise ValueError(f"the table of system calls would have {count} entries")
        listed = list(self._modules(layer.address_mask))
        # On x64 an entry is an offset from the table, shifted by four bits of arguments.
        for index, entry in enumerate(struct.unpack(f"<{count}i", layer.read(table, 4 * count))):
            address = table + (entry >> 4) & layer.address_mask
            name = next((name for first, last, name in listed if first <= address < last), None)
            found = renderers.NotAvailableValue() if name is None else name
            yield index, format_hints.Hex(address), found

    def _modules(self, mask: int) -> Iterator[tuple[int, int, str]]:
        for module in modules.Modules.list_modules(self.context, self.config["kernel"]):
            try:
                first = int(module.DllBase) & mask
                yield first, first + int(module.SizeOfImage), str(module.BaseDllName.get_string())
            except exceptions.InvalidAddressException:
                continue  # paged out: what leads into it has no name then
