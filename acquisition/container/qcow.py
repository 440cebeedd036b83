# SPDX-License-Identifier: Apache-2.0
"""QCOW2, versions 2 and 3: the active layer.

Source: https://gitlab.com/qemu-project/qemu/-/blob/master/docs/interop/qcow2.rst
"""

from __future__ import annotations

import struct
from collections.abc import Hashable

from acquisition.container.disk import (
    Cache,
    DamagedError,
    Disk,
    File,
    RefusedError,
    Run,
    check_distinct,
    inflate,
)

_MAX_L1_BYTES = 32 << 20  # as QEMU
_OFFSET = 0x00FF_FFFF_FFFF_FE00
_COMPRESSED, _ZERO = 1 << 62, 1
_DIRTY, _CORRUPT, _EXTERNAL, _COMPRESSION, _EXTENDED = 1, 2, 4, 8, 16
_CONVERT = "turn it into a raw image first: qemu-img convert -O raw"


class Qcow(Disk):
    """One qcow2 file."""

    def __init__(self, file: File) -> None:
        (version, backing, _, bits, size, crypt, l1_size, l1_at, _, _, snapshots, _) = file.unpack(
            ">IQIIQIIQQIIQ", 4
        )
        if version not in (2, 3):
            raise RefusedError(f"it is QCOW version {version}; 2 and 3 are read", _CONVERT)
        incompatible = file.unpack(">Q", 72)[0] if version == 3 else 0
        if backing:
            raise RefusedError(
                "it holds only what differs from a backing file",
                "bring both together first: qemu-img convert -O raw",
            )
        if crypt:
            raise RefusedError("it is encrypted", "decrypt it first: qemu-img convert --object …")
        unknown = incompatible & ~(_DIRTY | _CORRUPT | _COMPRESSION | _EXTENDED)
        if incompatible & _EXTERNAL:
            raise RefusedError("its data lie in another file", _CONVERT)
        if unknown:
            raise RefusedError(f"it uses unknown features ({unknown:#x})", _CONVERT)
        if incompatible & _COMPRESSION and file.read(104, 1) != b"\0":
            raise RefusedError("its clusters are compressed with zstd", _CONVERT)
        if not 9 <= bits <= 21 or (incompatible & _EXTENDED and bits < 14):
            raise DamagedError(f"clusters of 2^{bits} bytes")
        super().__init__(size)
        self._file = file
        self._bits = bits
        self._entry = 16 if incompatible & _EXTENDED else 8
        self._per_table = (1 << bits) // self._entry
        self._covers = self._per_table << bits
        if l1_size * 8 > _MAX_L1_BYTES or l1_size < -(-size // self._covers):
            raise DamagedError(f"a first table of {l1_size} entries for {size} bytes")
        self._l1 = struct.unpack(f">{l1_size}Q", file.read(l1_at, 8 * l1_size))
        check_distinct([at & _OFFSET for at in self._l1 if at & _OFFSET])
        self._table = Cache(self._read_table, 64)
        self.facts = {
            "version": version, "cluster_size": 1 << bits, "snapshots": snapshots,
            **({"layer": "active; snapshots inside are not taken"} if snapshots else {}),
        }  # fmt: skip
        if incompatible & _DIRTY:
            self.facts["dirty"] = True
        if incompatible & _CORRUPT:
            self.remarks.append("it is marked as corrupt by the program that wrote it")

    def _read_table(self, at: int) -> bytes:
        table = self._file.read(at, 1 << self._bits)
        entries = struct.unpack(f">{len(table) // 8}Q", table)[:: self._entry // 8]
        check_distinct([e & _OFFSET for e in entries if e & _OFFSET and not e & _COMPRESSED])
        return table if any(entries) else b""

    def run(self, offset: int) -> Run:
        """See `Disk.run`."""
        index, inner = divmod(offset, self._covers)
        table_at = self._l1[index] & _OFFSET
        try:
            table = self._table(table_at) if table_at else b""
        except DamagedError as e:
            raise DamagedError(str(e), self._covers - inner) from e
        if not table:
            return Run(self._covers - inner, "zero")
        number, inner = divmod(inner, 1 << self._bits)
        left = (1 << self._bits) - inner
        (entry,) = struct.unpack_from(">Q", table, number * self._entry)
        if entry & _COMPRESSED:
            return Run(left, "packed", at=inner, unit=entry & (_COMPRESSED - 1))
        at = entry & _OFFSET
        if self._entry == 16:
            (bitmap,) = struct.unpack_from(">Q", table, number * 16 + 8)
            part = 1 << (self._bits - 5)
            which = inner // part
            left = part - inner % part
            zero = bitmap >> (32 + which) & 1 or not bitmap >> which & 1
        else:
            zero = entry & _ZERO or not at
        if zero:
            return Run(left, "zero")
        if not at:
            raise DamagedError("a table entry says that data are there, and not where", left)
        return Run(left, "data", self._file, at + inner)

    def unpack(self, unit: Hashable) -> bytes:
        """See `Disk.unpack`: the descriptor of a compressed cluster."""
        assert isinstance(unit, int)  # noqa: S101
        shift = 62 - (self._bits - 8)
        at = unit & ((1 << shift) - 1)
        length = ((unit >> shift) + 1) * 512 - at % 512
        packed = self._file.read(at, min(length, max(0, self._file.size - at)))
        return inflate(packed, 1 << self._bits, -15)
