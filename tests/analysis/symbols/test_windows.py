# SPDX-License-Identifier: Apache-2.0
"""A Windows kernel is recognised from its memory alone, and what looks like one is not."""

from __future__ import annotations

import struct

import pytest

from analysis.errors import SymbolsError
from analysis.ram import Ram, Range, open_ram
from analysis.symbols import windows
from analysis.symbols.windows import Pdb, Tables, find_kernel, guid, records, tops
from tests.analysis.conftest import ImageBytes
from tests.analysis.kernel_image import avml, lime
from tests.analysis.windows_image import (
    BASE,
    PAGE,
    PDB,
    TOP,
    Windows,
    crash_dump,
    executable,
    record,
    usual,
)


@pytest.fixture(scope="module")
def machine():
    return usual()


def found(data):
    ram = open_ram(ImageBytes(data))
    return find_kernel(ram, records(ram))


def refused(ram):
    with pytest.raises(SymbolsError) as caught:
        find_kernel(ram, records(ram))
    return str(caught.value)


@pytest.mark.parametrize(
    "form",
    [bytes, crash_dump, lambda data: crash_dump(data, 5), lambda data: crash_dump(data, 5, top=0)],
    ids=["raw", "full dump", "bitmap dump", "dump that names no page table"],
)
def test_kernel_is_recognised_in_each_format(machine, form):
    kernel = found(form(machine if form is not bytes else machine.bytes))
    assert (kernel.pdb, kernel.base, kernel.page_table) == (PDB, BASE, TOP)
    assert kernel.version == "10.0 build 19041"
    assert kernel.address == Tables(machine.ram(), TOP).physical(BASE)


@pytest.mark.parametrize("make", [lime, avml])
def test_kernel_is_recognised_where_memory_has_holes(machine, make):
    data = bytes(machine.bytes)
    assert found(make([(0x1000, data[0x1000:0xF0000]), (0x100000, data[0x100000:])])).pdb == PDB


def test_guid_and_path_are_as_symbol_servers_write_them():
    raw = struct.pack("<IHH", 0x0F1E2D3C, 0x4B5A, 0x6978) + bytes.fromhex(PDB.guid[16:])
    assert guid(raw) == PDB.guid
    assert Pdb("a.pdb", PDB.guid, 26).path == f"a.pdb/{PDB.guid}1a/a.pdb"
    assert PDB.url.startswith("https://msdl.microsoft.com/download/symbols/ntkrnlmp.pdb/")


def test_kernel_of_large_pages_is_recognised():
    machine = Windows(size=16 << 20)
    image = machine.base + (1 << 30)
    place = 8 << 20
    other = Pdb("ntoskrnl.pdb", "AB" * 16, 3)
    machine.bytes[place : place + 0x8000] = executable(other)
    # The one of small pages is gone.
    at = Tables(machine.ram(), TOP).physical(machine.base)
    machine.bytes[at : at + 2] = b"\0\0"
    machine.kernel.map(image, place, large=True)
    kernel = find_kernel(machine.ram(), records(machine.ram()))
    assert (kernel.pdb, kernel.base, kernel.address) == (other, image, place)


def test_record_of_an_update_in_the_cache_is_not_taken_for_the_kernel(machine):
    data = bytearray(machine.bytes)
    newer = Pdb("ntkrnlmp.pdb", "11" * 16, 1)
    data[0x50000 : 0x50000 + 64] = record(newer)
    data[0x60000:0x68000] = executable(newer)
    ram = open_ram(ImageBytes(data))
    assert {r.pdb for r in records(ram)} == {newer, PDB}
    assert find_kernel(ram, records(ram)).pdb == PDB


def test_kernels_record_without_page_tables_says_which_pdb_and_why():
    data = bytearray(1 << 20)
    data[0x10000:0x18000] = executable()
    said = refused(open_ram(ImageBytes(data)))
    assert f"ntkrnlmp.pdb {PDB.key}" in said
    assert "none of 0 page tables of x86-64 maps it" in said


@pytest.mark.parametrize(
    ("machine_type", "name", "says"),
    [(0x14C, "ntkrnlmp.pdb", "32-bit x86"), (0xAA64, "ntkrnlmp.pdb", "ARM64"),
     (0, "ntkrpamp.pdb", "32-bit x86")],
    ids=["by header", "ARM64", "by name"],
)  # fmt: skip
def test_other_machines_are_named(machine_type, name, says):
    data = bytearray(1 << 20)
    data[0x10000:0x18000] = executable(Pdb(name, "22" * 16, 1), machine=machine_type)
    assert f"it is of {says}: only x86-64 is analysed" in refused(open_ram(ImageBytes(data)))


def test_dump_of_arm64_is_named(machine):
    dump = bytearray(crash_dump(machine))
    struct.pack_into("<I", dump, 0x30, 0xAA64)
    assert "Windows on arm64" in refused(open_ram(ImageBytes(dump)))


def test_header_that_leads_to_another_record_is_no_kernel(machine):
    data = bytearray(machine.bytes)
    at = Tables(machine.ram(), TOP).physical(BASE + 0x1000)
    struct.pack_into("<I", data, at + 20, 0x2050)
    assert "maps it" in refused(open_ram(ImageBytes(data)))


@pytest.mark.parametrize("offset", [0x3C, 0x80, 0x84, 0x98, 0xD0, 0x98 + 160, 0x98 + 164])
def test_damaged_headers_are_no_kernel_and_no_crash(machine, offset):
    data = bytearray(machine.bytes)
    at = Tables(machine.ram(), TOP).physical(BASE)
    data[at + offset : at + offset + 4] = b"\xff\xff\xff\xff"
    assert "maps it" in refused(open_ram(ImageBytes(data)))


def test_page_tables_that_lead_into_themselves_end():
    """Every entry of the upper half but one leads to one table, each of whose leads to itself."""
    data = bytearray(4 << 20)
    data[0x300000:0x308000] = executable()
    loop = 0x200000
    for index in range(512):
        struct.pack_into("<Q", data, loop + 8 * index, loop | 0x63)
        if index >= 256:
            struct.pack_into("<Q", data, TOP + 8 * index, loop | 0x63)
    struct.pack_into("<Q", data, TOP + 8 * 0x1ED, TOP | 0x63)
    ram = open_ram(ImageBytes(data))
    assert list(tops(ram)) == [TOP]
    tables = Tables(ram, TOP, [5000])
    with pytest.raises(SymbolsError, match="no end"):
        for _ in tables.mappings(windows.SHARED, (1 << 64) - 1):
            pass


def test_hostile_page_tables_cost_a_bounded_search(monkeypatch):
    """As before, and the search for a kernel in it."""
    monkeypatch.setattr(windows, "_MAX_READS", 20_000)
    data = bytearray(4 << 20)
    data[0x300000:0x308000] = executable()
    loop = 0x200000
    for index in range(512):
        # The record's page again and again, and no header before it.
        struct.pack_into("<Q", data, loop + 8 * index, (loop if index < 256 else 0x302000) | 0x63)
        if index >= 256:
            struct.pack_into("<Q", data, TOP + 8 * index, loop | 0x63)
    struct.pack_into("<Q", data, TOP + 8 * 0x1ED, TOP | 0x63)
    said = refused(open_ram(ImageBytes(data)))
    assert "its page tables have no end" in said


def test_page_table_must_have_one_entry_for_itself():
    data = bytearray(1 << 20)
    struct.pack_into("<QQ", data, 0x10000 + 8 * 300, 0x10063, 0x10063)
    struct.pack_into("<Q", data, 0x11000 + 8 * 100, 0x11063)
    struct.pack_into("<Q", data, 0x12000 + 8 * 300, 0x120E3)
    struct.pack_into("<Q", data, 0x13000 + 8 * 300, 1 << 63 | 0x13063)
    assert list(tops(open_ram(ImageBytes(data)))) == [0x13000]


def test_many_records_are_cut():
    data = b"".join(record(PDB) for _ in range(1000))
    assert len(records(open_ram(ImageBytes(data)))) == windows._MAX_RECORDS


def test_record_at_the_end_of_memory_is_read(machine):
    data = bytes(PAGE) + record(PDB)[:40]
    assert [r.pdb for r in records(Ram("raw", [Range(0, len(data), 0, ImageBytes(data))], []))] == [
        PDB
    ]
