# SPDX-License-Identifier: Apache-2.0
"""BTF: the compact type information that a kernel carries, as tables of the ISF.

BTF is a list of types that name each other by number. ISF names structs, unions and enums, and has
no typedefs. So:

* an anonymous struct takes the name of the first typedef of it; any other typedef of a struct is
  an alias (a copy) under its name; what refers to it names the struct itself;
* where two structs have one name, the one that others refer to most keeps it, the rest are
  `name__btf<number>`;
* a struct that is only declared is a stub of size 0.

Source: https://docs.kernel.org/bpf/btf.html; include/uapi/linux/btf.h. ISF:
https://github.com/volatilityfoundation/volatility3/tree/develop/volatility3/schemas (6.2.0).
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass
from typing import Any

from analysis.errors import SymbolsError

_MAGIC = 0xEB9F
_MAX_TYPES = 1 << 21
_MAX_DEPTH = 64  # of pointers to arrays of pointers ...; the kernel's deepest is 6
(_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM, _FWD, _TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _FUNC,
 _PROTO, _VAR, _DATASEC, _FLOAT, _DECL_TAG, _TYPE_TAG, _ENUM64) = range(1, 20)  # fmt: skip
_QUALIFIERS = (_VOLATILE, _CONST, _RESTRICT, _TYPE_TAG)
_TAIL = {_INT: 4, _ARRAY: 12, _VAR: 4, _DECL_TAG: 4}
_EACH = {_STRUCT: 12, _UNION: 12, _ENUM: 8, _PROTO: 8, _DATASEC: 12, _ENUM64: 12}

Type = dict[str, Any]
VOID: Type = {"kind": "base", "name": "void"}


@dataclass
class _Entry:
    name: str
    kind: int
    flag: bool
    count: int
    value: int  # size or type, by kind
    at: int  # where what follows the common part starts


class Btf:
    """The types of one BTF blob.

    Attributes:
        base_types, user_types, enums: as in an ISF.
    """

    def __init__(self, blob: bytes) -> None:
        """Read all types. Raises: SymbolsError, saying where, if it is not BTF to the end."""
        self._blob = blob
        self._strings = b""
        self._entries = [_Entry("void", 0, False, 0, 0, 0)]
        try:
            self._index()
            self._name()
            self.base_types: dict[str, Type] = {
                "void": {"size": 0, "signed": False, "kind": "void", "endian": "little"},
                "pointer": {"size": 8, "signed": False, "kind": "int", "endian": "little"},
            }
            self.user_types: dict[str, Type] = {}
            self.enums: dict[str, Type] = {}
            self._types: dict[int, Type] = {0: VOID}
            self._emit()
        except (struct.error, IndexError) as e:
            raise SymbolsError(f"the BTF is damaged: {e}") from e

    def _index(self) -> None:
        magic, version, _, length, type_off, type_len, str_off, str_len = struct.unpack_from(
            "<HBBIIIII", self._blob
        )
        if magic != _MAGIC or version != 1:
            raise SymbolsError("no BTF of version 1 where the kernel says it is")
        at, end = length + type_off, length + type_off + type_len
        names = length + str_off
        if end > len(self._blob) or names + str_len > len(self._blob):
            raise SymbolsError("the BTF is longer than the kernel says")
        self._strings = self._blob[names : names + str_len]
        if not self._strings.endswith(b"\0"):
            raise SymbolsError("the strings of the BTF have no end")
        common = struct.Struct("<III")
        while at < end:
            name, info, value = common.unpack_from(self._blob, at)
            kind, count = info >> 24 & 31, info & 0xFFFF
            if not _INT <= kind <= _ENUM64 or len(self._entries) > _MAX_TYPES:
                raise SymbolsError(f"the BTF has a type of unknown kind {kind} at byte {at}")
            self._entries.append(_Entry(self._string(name), kind, bool(info >> 31), count, value,
                                        at + 12))  # fmt: skip
            at += 12 + _TAIL.get(kind, 0) + _EACH.get(kind, 0) * count
        if at != end:
            raise SymbolsError("the last type of the BTF runs past its end")

    def _string(self, offset: int) -> str:
        end = self._strings.index(b"\0", offset) if offset < len(self._strings) else -1
        if end < 0:
            raise SymbolsError("the BTF names a string that it does not have")
        return self._strings[offset:end].decode("ascii", "backslashreplace")

    def _plain(self, number: int) -> int:
        """Return the type behind const, volatile, typedef and the like; 0 if they go round."""
        for _ in range(_MAX_DEPTH):
            entry = self._entries[number]
            if entry.kind not in (*_QUALIFIERS, _TYPEDEF):
                return number
            number = entry.value
        return 0

    def _members(self, entry: _Entry) -> list[tuple[str, int, int]]:
        return [
            (self._string(name), kind, offset)
            for name, kind, offset in struct.iter_unpack(
                "<III", self._blob[entry.at : entry.at + 12 * entry.count]
            )
        ]

    def _name(self) -> None:
        """Give each struct, union and enum its one name."""
        references: Counter[int] = Counter()
        self._alias: list[tuple[str, int]] = []
        typedefs: dict[int, str] = {}
        for entry in self._entries[1:]:
            if entry.kind in (_STRUCT, _UNION):
                references.update(kind for _, kind, _ in self._members(entry))
            elif entry.kind == _ARRAY:
                references[struct.unpack_from("<I", self._blob, entry.at)[0]] += 1
            elif entry.kind in (_PTR, _TYPEDEF, *_QUALIFIERS):
                references[entry.value] += 1
            if entry.kind == _TYPEDEF and entry.name:
                target = self._plain(entry.value)
                if self._entries[target].kind in (_STRUCT, _UNION, _ENUM, _ENUM64):
                    typedefs.setdefault(target, entry.name)
                    self._alias.append((entry.name, target))
        named: dict[str, list[int]] = {}
        self.names: dict[int, str] = {}
        for number, entry in enumerate(self._entries):
            if entry.kind in (_STRUCT, _UNION, _ENUM, _ENUM64):
                name = entry.name or typedefs.get(number) or f"unnamed_{number}"
                named.setdefault(name, []).append(number)
        for name, numbers in named.items():
            # A tag of its own goes before a name that a typedef lent.
            numbers.sort(key=lambda n: (not self._entries[n].name, -references[n], n))
            for place, number in enumerate(numbers):
                self.names[number] = name if place == 0 else f"{name}__btf{number}"

    def type_of(self, number: int, depth: int = 0) -> Type:
        """Return how an ISF refers to a type."""
        if (known := self._types.get(number)) is not None:
            return known
        if number >= len(self._entries):
            raise SymbolsError(f"the BTF refers to a type {number} that it does not have")
        plain = self._plain(number)
        entry = self._entries[plain]
        made: Type
        if depth >= _MAX_DEPTH:
            return VOID
        if entry.kind in (_INT, _FLOAT):
            made = {"kind": "base", "name": entry.name}
        elif entry.kind == _PTR:
            made = {"kind": "pointer", "subtype": self.type_of(entry.value, depth + 1)}
        elif entry.kind == _ARRAY:
            inner, _, count = struct.unpack_from("<III", self._blob, entry.at)
            made = {"kind": "array", "count": count, "subtype": self.type_of(inner, depth + 1)}
        elif entry.kind in (_STRUCT, _UNION):
            kind = "struct" if entry.kind == _STRUCT else "union"
            made = {"kind": kind, "name": self.names[plain]}
        elif entry.kind in (_ENUM, _ENUM64):
            made = {"kind": "enum", "name": self.names[plain]}
        elif entry.kind == _FWD:
            kind = "union" if entry.flag else "struct"
            made = {"kind": kind, "name": entry.name}
            if entry.name not in self.user_types:
                self.user_types[entry.name] = {"size": 0, "kind": kind, "fields": {}}
        elif entry.kind in (_FUNC, _PROTO):
            made = {"kind": "function"}
        else:
            made = VOID
        self._types[number] = made
        return made

    def _emit(self) -> None:
        for number, entry in enumerate(self._entries):
            if entry.kind == _INT:
                encoding = struct.unpack_from("<I", self._blob, entry.at)[0] >> 24 & 15
                kind = "bool" if encoding & 4 else "char" if entry.value == 1 else "int"
                # A bit-field of an old pahole has an int of its own, of the same name.
                self.base_types.setdefault(entry.name, {
                    "size": entry.value, "signed": bool(encoding & 1), "kind": kind,
                    "endian": "little"})  # fmt: skip
            elif entry.kind == _FLOAT:
                self.base_types.setdefault(entry.name, {
                    "size": entry.value, "signed": True, "kind": "float", "endian": "little"
                })  # fmt: skip
            elif entry.kind in (_STRUCT, _UNION):
                self.user_types[self.names[number]] = self._struct(entry)
            elif entry.kind in (_ENUM, _ENUM64):
                self.enums[self.names[number]] = self._enum(entry)
        for name, target in self._alias:
            table = (
                self.enums if self._entries[target].kind in (_ENUM, _ENUM64) else self.user_types
            )
            if self.names[target] != name and name not in table:
                table[name] = table[self.names[target]]

    def _struct(self, entry: _Entry) -> Type:
        fields: dict[str, Type] = {}
        unnamed = 0
        for name, number, offset in self._members(entry):
            bits = offset >> 24 if entry.flag else 0
            offset = offset & 0xFFFFFF if entry.flag else offset
            plain = self._plain(number)
            inner = self._entries[plain]
            kind = self.type_of(number)
            if not bits and inner.kind == _INT:
                (detail,) = struct.unpack_from("<I", self._blob, inner.at)
                if (own := detail & 0xFF) and own != inner.value * 8:
                    bits, offset = own, offset + (detail >> 16 & 0xFF)
            field: Type
            if bits:
                unit = max(1, inner.value if inner.kind in (_INT, _ENUM, _ENUM64) else 4) * 8
                field = {
                    "offset": offset // unit * unit // 8,
                    "type": {"kind": "bitfield", "bit_position": offset % unit,
                             "bit_length": bits, "type": kind},
                }  # fmt: skip
            else:
                field = {"offset": offset // 8, "type": kind}
            if not name:
                if inner.kind not in (_STRUCT, _UNION):
                    continue
                name, field["anonymous"] = f"unnamed_field_{unnamed}", True
                unnamed += 1
            fields[name] = field
        kind_name = "struct" if entry.kind == _STRUCT else "union"
        return {"size": entry.value, "kind": kind_name, "fields": fields}

    def _enum(self, entry: _Entry) -> Type:
        constants: dict[str, int] = {}
        for n in range(entry.count):
            if entry.kind == _ENUM:
                name, low = struct.unpack_from("<Ii" if entry.flag else "<II", self._blob,
                                               entry.at + n * 8)  # fmt: skip
            else:
                name, low, high = struct.unpack_from("<III", self._blob, entry.at + n * 12)
                low |= high << 32
                if entry.flag and low >> 63:
                    low -= 1 << 64
            constants[self._string(name)] = low
        base = {1: "unsigned char", 2: "short unsigned int", 8: "long unsigned int"}.get(
            entry.value, "unsigned int"
        )
        if entry.flag:
            base = {"unsigned int": "int", "long unsigned int": "long int"}.get(base, base)
        if base not in self.base_types:
            self.base_types[base] = {"size": entry.value or 4, "signed": entry.flag, "kind": "int",
                                     "endian": "little"}  # fmt: skip
        return {"size": entry.value, "base": base, "constants": constants}
