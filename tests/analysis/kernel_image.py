# SPDX-License-Identifier: Apache-2.0
"""A kernel's memory by script: BTF, kallsyms, VMCOREINFO and banner, at their places in RAM."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST = range(1, 11)
FUNC, PROTO, VAR, DATASEC, FLOAT, ENUM64 = 12, 13, 14, 15, 16, 19
MAP = 0xFFFFFFFF80000000
TEXT = 0xFFFFFFFF81000000
RELEASE = "6.1.0-test"
BANNER = f"Linux version {RELEASE} (root@build) (gcc 12) #1 SMP test\n\0".encode()


class Types:
    """Makes BTF; each method returns the number of the type."""

    def __init__(self):
        self.strings = b"\0"
        self.types = []

    def string(self, text):
        at = len(self.strings)
        self.strings += text.encode() + b"\0"
        return at if text else 0

    def add(self, kind, name="", value=0, count=0, tail=b"", flag=False):
        info = int(flag) << 31 | kind << 24 | count
        self.types.append(struct.pack("<III", self.string(name), info, value) + tail)
        return len(self.types)

    def int(self, name, size, *, signed=False, bits=None):
        detail = int(signed) << 24 | (size * 8 if bits is None else bits)
        return self.add(INT, name, size, tail=struct.pack("<I", detail))

    def array(self, of, count):
        return self.add(ARRAY, tail=struct.pack("<III", of, 1, count))

    def struct(self, name, size, members, *, kind=STRUCT, flag=False):
        tail = b"".join(struct.pack("<III", self.string(n), t, o) for n, t, o in members)
        return self.add(kind, name, size, len(members), tail, flag)

    def enum(self, name, constants, *, size=4):
        tail = b"".join(struct.pack("<Ii", self.string(n), v) for n, v in constants)
        return self.add(ENUM, name, size, len(constants), tail, True)

    def blob(self):
        types = b"".join(self.types)
        head = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types),
                           len(self.strings))  # fmt: skip
        return head + types + self.strings


def kernel_types():
    """The few structs that a kernel must have."""
    t = Types()
    u32 = t.int("unsigned int", 4)
    t.int("char", 1, signed=True)
    t.int("long unsigned int", 8)
    t.int("int", 4, signed=True)
    pointer = t.add(PTR, value=5 + 1)  # the next type
    t.struct("list_head", 16, [("next", pointer, 0), ("prev", pointer, 64)])
    t.struct("task_struct", 64, [("pid", u32, 0), ("tasks", pointer + 1, 64)])
    t.struct("mm_struct", 8, [("pgd", pointer, 0)])
    t.struct("module", 8, [("state", u32, 0)])
    return t


@dataclass
class Memory:
    """RAM of `size` bytes with one kernel in it. `symbols`: (type letter, name, link address)."""

    size: int = 1 << 20
    kaslr: int = 0x1E000000
    phys_base: int = -0x1D000000 - 0x1E000000 + 0x1C040000
    types: bytes = field(default_factory=lambda: kernel_types().blob())
    extra: tuple = ()
    levels: int = 4
    note: dict = field(default_factory=dict)
    banner: bytes = BANNER
    markers: bool = True

    def __post_init__(self):
        self.bytes = bytearray(self.size)
        self.build()

    def place(self, link):
        return link + self.kaslr - MAP + self.phys_base

    def put(self, link, data):
        at = self.place(link)
        assert at >= 0
        assert at + len(data) <= self.size
        self.bytes[at : at + len(data)] = data

    def build(self):
        btf = TEXT + 0x60000
        symbols = [
            ("A", "per_cpu_thing", 0x1A000), ("T", "_text", TEXT), ("T", "_stext", TEXT),
            ("t", "twice", TEXT + 0x100), ("T", "twice", TEXT + 0x200),
            ("t", "twice", TEXT + 0x300),
            ("T", "_etext", TEXT + 0x800), ("D", "linux_banner", TEXT + 0x1000),
            ("D", "__start_BTF", btf), ("D", "__stop_BTF", btf + len(self.types)),
            ("D", "init_task", TEXT + 0x2000), ("D", "modules", TEXT + 0x2100),
            ("D", "init_top_pgt", TEXT + 0x3000), *self.extra,
            *[("t", f"filler_{n}", TEXT + 0x400 + n) for n in range(600)],
            ("B", "_end", TEXT + 0x90000),
        ]  # fmt: skip
        self.symbols = symbols
        self.put(TEXT + 0x1000, self.banner)
        self.put(btf, self.types)
        names, starts = b"", []
        for n, (kind, name, _) in enumerate(symbols):
            if n % 256 == 0:
                starts.append(len(names))
            text = (kind + name).encode()
            head = bytes([len(text)]) if len(text) < 0x80 else bytes(
                [len(text) & 0x7F | 0x80, len(text) >> 7])  # fmt: skip
            names += head + text
        tables = ("names", "token_table", "token_index", "offsets", "relative_base", "num_syms")
        where = {name: TEXT + 0x10000 + n * 0x8000 for n, name in enumerate(tables)}
        base = TEXT + self.kaslr
        offsets = [a if a < MAP else base - 1 - (a + self.kaslr) for _, _, a in symbols]
        self.put(where["names"], names)
        if self.markers:
            at = where["names"] + (len(names) + 7) // 8 * 8
            self.put(at, struct.pack(f"<{len(starts)}I", *starts))
            self.markers_at = at
        table, index = b"", []
        for byte in range(256):
            index.append(len(table))
            table += (chr(byte).encode("latin-1") if 32 < byte < 127 else b"?") + b"\0"
        self.put(where["token_table"], table)
        self.put(where["token_index"], struct.pack("<256H", *index))
        self.put(where["offsets"], struct.pack(f"<{len(offsets)}i", *offsets))
        self.put(where["relative_base"], struct.pack("<Q", base))
        self.put(where["num_syms"], struct.pack("<I", len(symbols)))
        self.where = where
        values = {
            "OSRELEASE": RELEASE, "BUILD-ID": "ab" * 20, "PAGESIZE": "4096",
            "NUMBER(phys_base)": str(self.phys_base), "KERNELOFFSET": f"{self.kaslr:x}",
            "NUMBER(pgtable_l5_enabled)": str(int(self.levels == 5)),
            "SYMBOL(swapper_pg_dir)": f"{TEXT + 0x3000 + self.kaslr:x}",
            **{f"SYMBOL(kallsyms_{n})": f"{a + self.kaslr:x}" for n, a in where.items()},
            **self.note,
        }  # fmt: skip
        text = "".join(f"{k}={v}\n" for k, v in values.items() if v is not None).encode()
        # First a false one, as printk's own template is.
        self.bytes[0x100:0x110] = b"VMCOREINFO\0junk\0"
        note = struct.pack("<III", 11, len(text), 0) + b"VMCOREINFO\0\0" + text
        self.bytes[0x800 : 0x800 + len(note)] = note


def lime(parts):
    """A LiME file of (start, bytes)."""
    return b"".join(
        struct.pack("<IIQQQ", 0x4C694D45, 1, start, start + len(data) - 1, 0) + data
        for start, data in parts
    )


def elf_core(parts, machine=62):
    """An ELF core of (physical, bytes), and a load segment without a physical address."""
    loads = [(p, d) for p, d in parts] + [((1 << 64) - 1, b"vmalloc")]
    at = 64 + 56 * len(loads)
    headers = body = b""
    for physical, data in loads:
        headers += struct.pack("<IIQQQQQQ", 1, 7, at + len(body), 0, physical, len(data),
                               len(data), 0)  # fmt: skip
        body += data
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack(
        "<HHIQQQIHHHHHH", 4, machine, 1, 0, 64, 0, 0, 64, 56, len(loads), 0, 0, 0)  # fmt: skip
    return head + headers + body


def avml(parts):
    """An AVML (version 2) file of (start, bytes)."""
    import cramjam

    out = b""
    for start, data in parts:
        frames = bytes(cramjam.snappy.compress(data))
        out += struct.pack("<IIQQQ", 0x4C4D5641, 2, start, start + len(data) - 1, 0)
        out += frames + struct.pack("<Q", len(frames))
    return out
