# SPDX-License-Identifier: Apache-2.0
"""Memory of Windows by script: page tables, a kernel's image, processes and drivers in pools.

The layouts are small ones of our own (`LAYOUT`), or those of any ISF. The same layouts are C source
(`c_source`), from which a compiler makes an executable and a PDB.
"""

from __future__ import annotations

import random
import re
import struct
from dataclasses import dataclass

from analysis.ram import Ram, Range
from analysis.symbols.windows import SHARED, Pdb, Tables
from tests.analysis.conftest import ImageBytes

PAGE = 4096
BASE = 0xFFFFF804_12200000
ROOTKIT = 0xFFFFF804_14000000
POOL = 0xFFFFA401_00000000
TOP = 0x1AD000
SELF = 0x1ED
PDB = Pdb("ntkrnlmp.pdb", "0F1E2D3C4B5A69788796A5B4C3D2E1F0", 1)
BOOT = 133_500_000_000_000_000  # FILETIME: 2024-01-17
BUILD = 19041

_LIST, _TEXT = "_LIST_ENTRY", "_UNICODE_STRING"
LAYOUT = {
    "_LIST_ENTRY": [("Flink", "*_LIST_ENTRY"), ("Blink", "*_LIST_ENTRY")],
    "_UNICODE_STRING": [("Length", "u16"), ("MaximumLength", "u16"), ("Buffer", "*u16")],
    "_LARGE_INTEGER": [("QuadPart", "i64")],
    "_EX_FAST_REF": [("Object", "*void")],
    "_KSYSTEM_TIME": [("LowPart", "u32"), ("High1Time", "i32"), ("High2Time", "i32")],
    "_KUSER_SHARED_DATA": [
        ("TickCountLowDeprecated", "u32"), ("TickCountMultiplier", "u32"),
        ("InterruptTime", "_KSYSTEM_TIME"), ("SystemTime", "_KSYSTEM_TIME"),
        ("TimeZoneBias", "_KSYSTEM_TIME"), ("ImageNumberLow", "u16"), ("ImageNumberHigh", "u16"),
        ("NtSystemRoot", "u16[260]"), ("Reserved", "u32[10]"), ("NtBuildNumber", "u32"),
        ("NtProductType", "e_NT_PRODUCT_TYPE"), ("ProductTypeIsValid", "n"),
        ("NtMajorVersion", "u32"), ("NtMinorVersion", "u32"),
    ],
    "_DBGKD_GET_VERSION64": [
        ("MajorVersion", "u16"), ("MinorVersion", "u16"), ("ProtocolVersion", "u16"),
        ("Flags", "u16"), ("MachineType", "u16"),
    ],
    "_POOL_HEADER": [
        ("PreviousSize", "u8"), ("PoolIndex", "u8"), ("BlockSize", "u8"), ("PoolType", "u8"),
        ("PoolTag", "u32"), ("ProcessBilled", "*void"),
    ],
    "_POOL_TRACKER_BIG_PAGES": [
        ("Va", "u64"), ("Key", "u32"), ("PoolType", "u32"), ("NumberOfBytes", "u64"),
    ],
    "_OBJECT_HEADER": [
        ("PointerCount", "i64"), ("HandleCount", "i64"), ("Lock", "u64"), ("TypeIndex", "u8"),
        ("TraceFlags", "u8"), ("InfoMask", "u8"), ("Flags", "u8"), ("ObjectCreateInfo", "*void"),
        ("SecurityDescriptor", "*void"), ("Body", "u64"),
    ],
    "_OBJECT_HEADER_CREATOR_INFO": [("TypeList", _LIST), ("CreatorUniqueProcess", "u64[2]")],
    "_OBJECT_HEADER_NAME_INFO": [("Directory", "*void"), ("Name", _TEXT), ("References", "u64")],
    "_OBJECT_TYPE": [("TypeList", _LIST), ("Name", _TEXT), ("Index", "u8")],
    "_HANDLE_TABLE": [("NextHandleNeedingPool", "u32"), ("ExtraInfoPages", "i32"),
                      ("TableCode", "u64")],
    "_DISPATCHER_HEADER": [("Type", "u32"), ("SignalState", "i32"), ("WaitListHead", _LIST)],
    "_KPROCESS": [("Header", "_DISPATCHER_HEADER"), ("DirectoryTableBase", "u64")],
    "_RTL_BALANCED_NODE": [("Left", "*_RTL_BALANCED_NODE"), ("Right", "*_RTL_BALANCED_NODE"),
                           ("ParentValue", "u64")],
    "_RTL_AVL_TREE": [("Root", "*_RTL_BALANCED_NODE")],
    "_MMVAD_FLAGS": [("VadType", "u8"), ("Protection", "u8"), ("PrivateMemory", "u8")],
    "_MMVAD_U": [("VadFlags", "_MMVAD_FLAGS")],
    "_MMVAD_SHORT": [
        ("VadNode", "_RTL_BALANCED_NODE"), ("StartingVpn", "u32"), ("EndingVpn", "u32"),
        ("CommitCharge", "u32"), ("u", "_MMVAD_U"),
    ],
    "_MMVAD": [("Core", "_MMVAD_SHORT")],
    "_DRIVER_EXTENSION": [("DriverObject", "*void"), ("ServiceKeyName", _TEXT)],
    "_DRIVER_OBJECT": [
        ("DeviceObject", "*void"), ("DriverStart", "*void"), ("DriverSize", "u32"),
        ("DriverExtension", "*_DRIVER_EXTENSION"), ("DriverName", _TEXT), ("Reserved", "u64[28]"),
    ],
    "_EPROCESS": [
        ("Pcb", "_KPROCESS"), ("UniqueProcessId", "*void"), ("ActiveProcessLinks", _LIST),
        ("CreateTime", "_LARGE_INTEGER"), ("ExitTime", "_LARGE_INTEGER"),
        ("InheritedFromUniqueProcessId", "*void"), ("Peb", "*_PEB"), ("Session", "*void"),
        ("ObjectTable", "*_HANDLE_TABLE"), ("Token", "_EX_FAST_REF"), ("WoW64Process", "*void"),
        ("ImageFileName", "c[15]"), ("PriorityClass", "u8"), ("ThreadListHead", _LIST),
        ("ActiveThreads", "u32"), ("ExitStatus", "i32"), ("VadRoot", "_RTL_AVL_TREE"),
        ("Reserved", "u64[48]"),
    ],
    "_KTHREAD": [("Header", "_DISPATCHER_HEADER")],
    "_ETHREAD": [("Tcb", "_KTHREAD"), ("ThreadListEntry", _LIST)],
    "_RTL_USER_PROCESS_PARAMETERS": [
        ("MaximumLength", "u32"), ("Length", "u32"), ("ImagePathName", _TEXT),
        ("CommandLine", _TEXT), ("Environment", "*void"), ("EnvironmentSize", "u64"),
    ],
    "_PEB_LDR_DATA": [
        ("Length", "u32"), ("Initialized", "u8"), ("InLoadOrderModuleList", _LIST),
        ("InMemoryOrderModuleList", _LIST), ("InInitializationOrderModuleList", _LIST),
    ],
    "_PEB": [
        ("Flags", "u64"), ("Mutant", "*void"), ("ImageBaseAddress", "*void"),
        ("Ldr", "*_PEB_LDR_DATA"), ("ProcessParameters", "*_RTL_USER_PROCESS_PARAMETERS"),
    ],
    "_LDR_DATA_TABLE_ENTRY": [
        ("InLoadOrderLinks", _LIST), ("InMemoryOrderLinks", _LIST),
        ("InInitializationOrderLinks", _LIST), ("DllBase", "*void"), ("EntryPoint", "*void"),
        ("SizeOfImage", "u32"), ("FullDllName", _TEXT), ("BaseDllName", _TEXT), ("Flags", "u32"),
        ("ObsoleteLoadCount", "u16"), ("TlsIndex", "u16"), ("LoadTime", "_LARGE_INTEGER"),
    ],
    # A table must have these, though nothing here reads them.
    **{name: [("Reserved", "u64")] for name in (
        "_ERESOURCE", "_TOKEN", "_FILE_OBJECT", "_DEVICE_OBJECT", "_CM_KEY_BODY", "_CMHIVE",
        "_CM_KEY_NODE", "_CM_KEY_VALUE", "_HMAP_ENTRY", "_KMUTANT", "_OBJECT_SYMBOLIC_LINK",
        "_CONTROL_AREA", "_SHARED_CACHE_MAP", "_VACB", "_IMAGE_DOS_HEADER", "_KTIMER")},
}  # fmt: skip
SYMBOLS = {
    "PsActiveProcessHead": 16, "PsLoadedModuleList": 16, "KdDebuggerDataBlock": 0x400,
    "KdVersionBlock": 16, "KeNumberProcessors": 4, "ObTypeIndexTable": 128, "ObHeaderCookie": 4,
    "ObpInfoMaskToOffset": 256, "MmSystemRangeStart": 8, "KdCopyDataBlock": 16,
    "KiServiceTable": 64, "KiServiceLimit": 4, "MmProtectToValue": 128, "NtOpenFile": 16,
}  # fmt: skip
_BASES = {"u8": ("unsigned char", 1), "c": ("char", 1), "u16": ("unsigned short", 2),
          "n": ("unsigned int", 4), "i32": ("long", 4), "u32": ("unsigned long", 4),
          "i64": ("long long", 8), "u64": ("unsigned long long", 8),
          "void": ("void", 0)}  # fmt: skip
_PRODUCTS = {"NtProductWinNt": 1, "NtProductLanManNt": 2, "NtProductServer": 3}


def _shape(kind):
    """Return (size, alignment, ISF type) of a type as `LAYOUT` names it."""
    if match := re.fullmatch(r"(.+)\[(\d+)\]", kind):
        size, alignment, inner = _shape(match[1])
        count = int(match[2])
        return size * count, alignment, {"kind": "array", "count": count, "subtype": inner}
    if kind.startswith("*"):
        named = kind[1:]
        to = {"kind": "base", "name": _BASES[named][0]} if named in _BASES else {
            "kind": "struct", "name": named}  # fmt: skip
        return 8, 8, {"kind": "pointer", "subtype": to}
    if kind.startswith("e"):
        return 4, 4, {"kind": "enum", "name": kind[1:]}
    if kind in _BASES:
        name, size = _BASES[kind]
        return size, size, {"kind": "base", "name": name}
    alignment = max(_shape(inner)[1] for _, inner in LAYOUT[kind])
    return _fields(kind)[1], alignment, {"kind": "struct", "name": kind}


def _fields(name):
    fields, at, most = {}, 0, 1
    for field, kind in LAYOUT[name]:
        size, alignment, shape = _shape(kind)
        at = -(-at // alignment) * alignment
        fields[field] = {"offset": at, "type": shape}
        at += size
        most = max(most, alignment)
    return fields, -(-at // most) * most


def isf(pdb=PDB, **symbols):
    """The ISF of `LAYOUT`. `symbols`: address by name, instead of places of its own."""
    types = {}
    for name in LAYOUT:
        fields, size = _fields(name)
        types[name] = {"kind": "struct", "size": size, "fields": fields}
    places, at = {}, 0x3000
    for name, size in SYMBOLS.items():
        places[name] = {"address": at}
        at += -(-size // 16) * 16
    bases = {name: {"size": size, "signed": kind[0] in "ci", "endian": "little",
                    "kind": "void" if kind == "void" else "char" if size == 1 else "int"}
             for kind, (name, size) in _BASES.items()}  # fmt: skip
    pointer = {"size": 8, "signed": False, "kind": "int", "endian": "little"}
    return {
        "metadata": {
            "format": "6.1.0", "producer": {"name": "script", "version": "1"},
            "windows": {"pdb": {"GUID": pdb.guid, "age": pdb.age, "database": pdb.name,
                                "machine_type": 34404}},
        },
        "base_types": {**bases, "pointer": pointer, "int": {**bases["long"]}},
        "user_types": types,
        "enums": {"_NT_PRODUCT_TYPE": {"base": "int", "size": 4, "constants": _PRODUCTS}},
        "symbols": {**places, **{n: {"address": a} for n, a in symbols.items()}},
    }  # fmt: skip


def c_source():
    """C of `LAYOUT` and `SYMBOLS` for x86_64-pc-windows-msvc."""
    constants = ", ".join(f"{n} = {v}" for n, v in _PRODUCTS.items())
    lines = [f"enum _NT_PRODUCT_TYPE {{ {constants} }};"]
    lines += [f"struct {name};" for name in LAYOUT]
    for name, fields in LAYOUT.items():
        members = []
        for field, kind in fields:
            match = re.fullmatch(r"(\*?)(e?)([a-zA-Z0-9_]+)(\[\d+\])?", kind)
            of = _BASES[match[3]][0] if match[3] in _BASES else (
                f"{'enum' if match[2] else 'struct'} {match[3]}")  # fmt: skip
            members.append(f"{of} {match[1]}{field}{match[4] or ''};")
        lines.append(f"struct {name} {{ {' '.join(members)} }};")
        lines.append(f"struct {name} a{name} = {{0}};")
    lines += [f"__attribute__((aligned(16))) char {name}[{size}] = {{1}};"
              for name, size in SYMBOLS.items()]  # fmt: skip
    # volatility3's converter leaves out what is in the last section.
    last = '__attribute__((section(".zlast"))) int last = 1;'
    return "\n".join([*lines, last, "int _fltused; int entry(void) { return 0; }", ""])


def executable(pdb=PDB, size=0x8000, machine=0x8664):
    """The headers of an image of `size` bytes as it lies in memory, and its CodeView record."""
    head = bytearray(size)
    head[:2] = b"MZ"
    struct.pack_into("<I", head, 0x3C, 0x80)
    head[0x80:0x84] = b"PE\0\0"
    struct.pack_into("<HHIIIHH", head, 0x84, machine, 1, 1_700_000_000, 0, 0, 240, 0x22)
    struct.pack_into("<H", head, 0x98, 0x20B)
    struct.pack_into("<HH", head, 0x98 + 40, 10, 0)
    struct.pack_into("<I", head, 0x98 + 56, size)
    struct.pack_into("<I", head, 0x98 + 108, 16)
    struct.pack_into("<II", head, 0x98 + 112 + 48, 0x1000, 28)
    struct.pack_into("<IIHHIIII", head, 0x1000, 0, 0, 0, 0, 2, 64, 0x2040, 0x2040)
    head[0x2040:0x2080] = record(pdb)
    return bytes(head)


def record(pdb):
    """A CodeView record, 64 bytes."""
    parts = (int(pdb.guid[a:b], 16) for a, b in ((0, 8), (8, 12), (12, 16)))
    raw = struct.pack("<IHH", *parts) + bytes.fromhex(pdb.guid[16:])
    return (b"RSDS" + raw + struct.pack("<I", pdb.age) + pdb.name.encode()).ljust(64, b"\0")


@dataclass
class Space:
    """An address space. `top`: physical address of its top page table."""

    machine: Windows
    top: int

    def map(self, virtual, physical, large=False):
        table = self.top
        for shift in (39, 30, 21)[: 2 if large else 3]:
            at = table + (virtual >> shift & 511) * 8
            (entry,) = struct.unpack_from("<Q", self.machine.bytes, at)
            if not entry:
                entry = self.machine.page() | 0x67
                struct.pack_into("<Q", self.machine.bytes, at, entry)
            table = entry & 0xFFFFFFFFF000
        shift = 21 if large else 12
        at = table + (virtual >> shift & 511) * 8
        struct.pack_into("<Q", self.machine.bytes, at, physical | (0xE3 if large else 0x63))

    def put(self, virtual, data):
        while data:
            room = PAGE - virtual % PAGE
            at = self.place(virtual)
            self.machine.bytes[at : at + len(data[:room])] = data[:room]
            virtual, data = virtual + room, data[room:]

    def place(self, virtual):
        at = Tables(self.machine.ram(), self.top).physical(virtual)
        assert at is not None, hex(virtual)
        return at

    def fill(self, virtual, data):
        """Map pages that are free for data, and put it there."""
        for at in range(virtual & -PAGE, virtual + len(data), PAGE):
            self.map(at, self.machine.page())
        self.put(virtual, data)


class Windows:
    """RAM of a machine that runs Windows."""

    def __init__(self, table=None, image=None, size=4 << 20, top=TOP, pdb=PDB, base=BASE):
        self.table, self.pdb, self.base = table or isf(pdb), pdb, base
        self.bytes = bytearray(size)
        free = [at for at in range(0x1B0000, size, PAGE) if at != top]
        random.Random(1).shuffle(free)
        self._free = free
        self.kernel = Space(self, top)
        self.bytes[top + SELF * 8 : top + SELF * 8 + 8] = struct.pack("<Q", top | 0x63)
        self.kernel.fill(base, image or executable(pdb))
        self._pool = self._end = POOL
        self._lists = {}
        self.kernel.fill(SHARED, bytes(PAGE))
        self.shared()
        self.types()

    def ram(self):
        return Ram("raw", [Range(0, len(self.bytes), 0, ImageBytes(self.bytes))], [])

    def page(self):
        return self._free.pop()

    def symbol(self, name):
        return self.base + self.table["symbols"][name]["address"]

    def field(self, kind, path):
        """Return (offset, ISF type) of a field of a struct, "A.B" for one in another."""
        at, shape = 0, {"kind": "struct", "name": kind}
        for name in path.split("."):
            found = self.table["user_types"][shape["name"]]["fields"][name]
            at, shape = at + found["offset"], found["type"]
        return at, shape

    def size(self, kind):
        return self.table["user_types"][kind]["size"]

    def pack(self, kind, **values):
        """Return a struct's bytes. `A__B` is field B of A."""
        data = bytearray(self.size(kind))
        for path, value in values.items():
            at, shape = self.field(kind, path.replace("__", "."))
            if isinstance(value, bytes):
                data[at : at + len(value)] = value
                continue
            if shape["kind"] == "bitfield":
                whole = self.table["base_types"][shape["type"]["name"]]["size"]
                held = int.from_bytes(data[at : at + whole], "little")
                value = held | value << shape["bit_position"]
            elif shape["kind"] == "base":
                whole = self.table["base_types"][shape["name"]]["size"]
            else:
                whole = 8
            data[at : at + whole] = (value % (1 << whole * 8)).to_bytes(whole, "little")
        return bytes(data)

    def shared(self):
        now = BOOT + 3600 * 10**7
        root = "C:\\Windows".encode("utf-16-le")
        self.kernel.put(SHARED, self.pack(
            "_KUSER_SHARED_DATA", SystemTime__LowPart=now & 0xFFFFFFFF,
            SystemTime__High1Time=now >> 32, SystemTime__High2Time=now >> 32, NtSystemRoot=root,
            NtBuildNumber=BUILD, NtProductType=struct.pack("<I", 1), NtMajorVersion=10,
        ))  # fmt: skip
        self.kernel.put(self.symbol("KdVersionBlock"), self.pack(
            "_DBGKD_GET_VERSION64", MajorVersion=15, MinorVersion=BUILD, MachineType=0x8664,
        ))  # fmt: skip
        self.kernel.put(self.symbol("KeNumberProcessors"), struct.pack("<I", 2))
        values = (1, 2, 0x10, 0x20, 4, 8, 0x40, 0x80)
        self.kernel.put(self.symbol("MmProtectToValue"), struct.pack("<8I", *values))
        self.kernel.put(self.symbol("MmSystemRangeStart"), struct.pack("<Q", 0xFFFF8000_00000000))

    def types(self):
        """The kernel's table of types of objects: none of them, then Process."""
        process, driver = (
            self.allocate(b"ObjT", self.pack("_OBJECT_TYPE", **self.named("Name", *name)))
            for name in (self.text("Process"), self.text("Driver"))
        )
        table = struct.pack("<QQQQQ", 0, process, process, driver, 0)
        self.kernel.put(self.symbol("ObTypeIndexTable"), table)
        self.kernel.put(self.symbol("ObHeaderCookie"), bytes(4))

    def named(self, field, at, length):
        return {f"{field}__Buffer": at, f"{field}__Length": length,
                f"{field}__MaximumLength": length + 2}  # fmt: skip

    def text(self, text, space=None, at=None):
        """Put a string; return (address, bytes)."""
        data = text.encode("utf-16-le")
        if space is None:
            return self.allocate(b"Text", data), len(data)
        space.put(at, data)
        return at, len(data)

    def allocate(self, tag, body, kind=2):
        """Put bytes in a pool, behind a header with this tag; return their address."""
        head = self.size("_POOL_HEADER")
        size = -(-(head + len(body)) // 16) * 16
        at = self._pool
        if at % PAGE + size > PAGE:
            at = -(-at // PAGE) * PAGE
        for page in range(at & -PAGE, at + size, PAGE):
            if page >= self._end:
                self.kernel.map(page, self.page())
                self._end = page + PAGE
        self._pool = at + size
        header = self.pack("_POOL_HEADER", BlockSize=size // 16, PoolType=kind,
                           PoolTag=int.from_bytes(tag, "little"))  # fmt: skip
        self.kernel.put(at, header + body)
        return at + head

    def link(self, head, at):
        """Put an entry of a list at the end of the list."""
        entries = self._lists.setdefault(head, [])
        entries.append(at)
        ring = [head, *entries]
        for n, entry in enumerate(ring):
            pair = struct.pack("<QQ", ring[(n + 1) % len(ring)], ring[n - 1])
            self.kernel.put(entry, pair)

    def process(self, pid, ppid, name, *, hidden=False, ended=0, command=None, dlls=(),
                code=False):  # fmt: skip
        """Make a process, `code`: with an area that malfind finds; return its _EPROCESS."""
        handles = self.allocate(b"Obtb", self.pack("_HANDLE_TABLE"))
        space, peb = self._user(command, dlls) if command else (self.kernel, 0)
        area = self.injected(space) if code else 0
        body = self.pack("_OBJECT_HEADER", PointerCount=5, HandleCount=2)
        inner = self.field("_OBJECT_HEADER", "Body")[0]
        made = self.pack(
            "_EPROCESS", Pcb__DirectoryTableBase=space.top, UniqueProcessId=pid,
            InheritedFromUniqueProcessId=ppid, ImageFileName=name.encode(), Peb=peb,
            CreateTime__QuadPart=BOOT + pid * 10**7, ExitTime__QuadPart=ended,
            ActiveThreads=0 if ended else 3, ObjectTable=0 if ended else handles,
            VadRoot__Root=area)  # fmt: skip
        at = self.allocate(b"Proc", body[:inner] + made) + inner
        threads = at + self.field("_EPROCESS", "ThreadListHead")[0]
        self.kernel.put(threads, struct.pack("<QQ", threads, threads))
        if not hidden:
            links = at + self.field("_EPROCESS", "ActiveProcessLinks")[0]
            self.link(self.symbol("PsActiveProcessHead"), links)
        return at

    def _user(self, command, dlls):
        """Make the address space of a process, and its PEB at 0x10000."""
        space = Space(self, self.page())
        upper = self.bytes[self.kernel.top + 2048 : self.kernel.top + PAGE]
        self.bytes[space.top + 2048 : space.top + PAGE] = upper
        struct.pack_into("<Q", self.bytes, space.top + SELF * 8, space.top | 0x63)
        space.fill(0x10000, bytes(4 * PAGE))
        space.put(0x10000, self.pack("_PEB", ImageBaseAddress=0x400000, Ldr=0x11800,
                                     ProcessParameters=0x11000))  # fmt: skip
        line, path = self.text(command, space, 0x12000), self.text("C:\\x.exe", space, 0x12800)
        space.put(0x11000, self.pack("_RTL_USER_PROCESS_PARAMETERS",
                                     **self.named("CommandLine", *line),
                                     **self.named("ImagePathName", *path)))  # fmt: skip
        head = 0x11800 + self.field("_PEB_LDR_DATA", "InLoadOrderModuleList")[0]
        space.put(0x11800, self.pack("_PEB_LDR_DATA", Length=64))
        ring = [head]
        for n, dll in enumerate(dlls):
            at, words = 0x13000 + n * 0x400, self.text(dll, space, 0x13000 + n * 0x400 + 0x200)
            full = self.text(f"C:\\{dll}", space, 0x13000 + n * 0x400 + 0x280)
            space.put(at, self.pack("_LDR_DATA_TABLE_ENTRY", DllBase=0x400000 + n * 0x100000,
                                    SizeOfImage=0x5000, **self.named("BaseDllName", *words),
                                    **self.named("FullDllName", *full)))  # fmt: skip
            ring.append(at)
        for n, entry in enumerate(ring):
            space.put(entry, struct.pack("<QQ", ring[(n + 1) % len(ring)], ring[n - 1]))
        return space, 0x10000

    def injected(self, space):
        """Map a page that can be written and executed at 0x700000; return the area's address."""
        space.fill(0x700000, b"\x55\x48" + b"\x90" * 100)
        return self.allocate(b"VadS", self.pack(
            "_MMVAD_SHORT", StartingVpn=0x700, EndingVpn=0x700, u__VadFlags__Protection=6,
            u__VadFlags__PrivateMemory=1))  # fmt: skip

    def calls(self, *targets):
        """Fill the table of system calls with these addresses."""
        table = self.symbol("KiServiceTable")
        entries = [(at - table) << 4 for at in targets]
        self.kernel.put(table, struct.pack(f"<{len(entries)}i", *entries))
        self.kernel.put(self.symbol("KiServiceLimit"), struct.pack("<I", len(entries)))

    def driver_object(self, name, base):
        """Make the object of a driver, beside its module."""
        path = self.text(f"\\Driver\\{name}")
        made = self.pack("_DRIVER_OBJECT", DriverStart=base, DriverSize=0x9000,
                         **self.named("DriverName", *path))  # fmt: skip
        header = self.pack("_OBJECT_HEADER", PointerCount=2)
        inner = self.field("_OBJECT_HEADER", "Body")[0]
        at = self.allocate(b"Driv", header[:inner] + made)
        kind = self.field("_OBJECT_HEADER", "TypeIndex")[0]
        self.kernel.put(at + kind, bytes([3 ^ at >> 8 & 0xFF]))  # the third, hidden by its address

    def driver(self, name, base, *, hidden=False):
        """Make a module of the kernel; return the address of its entry."""
        path = self.text(f"\\SystemRoot\\{name}")
        made = self.pack("_LDR_DATA_TABLE_ENTRY", DllBase=base, SizeOfImage=0x9000,
                         **self.named("BaseDllName", *self.text(name)),
                         **self.named("FullDllName", *path))  # fmt: skip
        at = self.allocate(b"MmLd", made)
        if not hidden:
            self.link(self.symbol("PsLoadedModuleList"), at)
        return at


def usual(**options):
    """A machine with a few processes and drivers.

    hidden.exe and rootkit.sys are unlinked, gone.exe has ended, old.sys is unloaded; evil.exe has
    code in memory of its own, and a system call leads into rootkit.sys.
    """
    machine = Windows(**options)
    machine.process(4, 0, "System")
    machine.process(92, 4, "Registry")
    machine.process(404, 4, "smss.exe", command="\\SystemRoot\\smss.exe", dlls=["ntdll.dll"])
    machine.process(1200, 404, "evil.exe", command='"C:\\evil.exe" -c 192.0.2.7',
                    dlls=["evil.exe", "ntdll.dll"], code=True)  # fmt: skip
    machine.process(1300, 404, "hidden.exe", hidden=True)
    machine.process(1400, 404, "gone.exe", hidden=True, ended=BOOT + 2000 * 10**7)
    machine.driver("ntoskrnl.exe", machine.base)
    machine.driver("tcpip.sys", 0xFFFFF804_20000000)
    machine.driver("rootkit.sys", ROOTKIT, hidden=True)
    machine.driver("old.sys", 0xFFFFF804_31000000, hidden=True)
    machine.driver_object("rootkit", ROOTKIT)
    machine.calls(machine.symbol("NtOpenFile"), ROOTKIT + 0x10)
    return machine


def crash_dump(machine, kind=1, *, top=True):
    """The machine's memory as a 64-bit crash dump: 1 full (two runs), 5 by bitmap."""
    head = bytearray(b"PAGE" * 2048)
    head[:8] = b"PAGEDU64"
    struct.pack_into("<Q", head, 0x10, machine.kernel.top | 2 if top else 0)
    struct.pack_into("<I", head, 0x30, 0x8664)
    struct.pack_into("<I", head, 0xF98, kind)
    pages = len(machine.bytes) // PAGE
    if kind == 1:
        struct.pack_into("<IIQQQQQ", head, 0x88, 2, 0, pages - 1, 0, 16, 17, pages - 17)
        return bytes(head) + bytes(machine.bytes[: 16 * PAGE]) + bytes(machine.bytes[17 * PAGE :])
    used = [n for n in range(pages) if any(machine.bytes[n * PAGE : (n + 1) * PAGE])]
    bitmap = bytearray(-(-pages // 8))
    for n in used:
        bitmap[n // 8] |= 1 << n % 8
    first = 2 * PAGE + -(-(0x38 + len(bitmap)) // PAGE) * PAGE
    summary = b"SDMPDUMP" + bytes(24) + struct.pack("<QQQ", first, len(used), pages)
    body = b"".join(machine.bytes[n * PAGE : (n + 1) * PAGE] for n in used)
    return bytes(head) + (summary + bytes(bitmap)).ljust(first - 2 * PAGE, b"\0") + body
