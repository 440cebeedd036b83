# SPDX-License-Identifier: Apache-2.0
"""Symbols of a kernel from its memory: our own kernel by script, hostile ones, and a real one."""

from __future__ import annotations

import base64
import contextlib
import json
import lzma
import os
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.errors import SymbolsError
from analysis.ram import Ram, open_ram
from analysis.symbols.btf import VOID, Btf
from analysis.symbols.isf import GLOBALS, from_given, from_image, from_side_cars, read_isf
from analysis.symbols.kernel import kernels, parse_kallsyms, parse_note, read_names
from tests.analysis.conftest import ImageBytes, ImageFile
from tests.analysis.kernel_image import (
    ARRAY,
    BANNER,
    CONST,
    FWD,
    PTR,
    RELEASE,
    TEXT,
    TYPEDEF,
    UNION,
    Memory,
    Types,
    kernel_types,
    lime,
)

SAMPLES = os.environ.get("IMPOUND_SAMPLES")
PRODUCER = ("impound", "test")


def ram_of(memory: Memory) -> Ram:
    return open_ram(ImageBytes(bytes(memory.bytes)))


def isf_of(memory: Memory):
    return from_image(ram_of(memory), PRODUCER)


def test_symbols_from_the_image_alone():
    memory = Memory()
    kernel, isf = isf_of(memory)
    assert (kernel.release, kernel.levels, kernel.build_id) == (RELEASE, 4, "ab" * 20)
    symbols = isf["symbols"]
    assert symbols["_text"]["address"] == TEXT
    assert symbols["init_task"] == {
        "address": TEXT + 0x2000, "type": {"kind": "struct", "name": "task_struct"},
    }  # fmt: skip
    assert base64.b64decode(symbols["linux_banner"]["constant_data"]) == BANNER
    assert isf["user_types"]["task_struct"]["fields"]["tasks"]["offset"] == 8


def test_offsets_of_percpu_symbols_are_not_shifted():
    assert isf_of(Memory())[1]["symbols"]["per_cpu_thing"]["address"] == 0x1A000


def test_global_symbol_goes_before_local_ones_of_its_name():
    assert isf_of(Memory())[1]["symbols"]["twice"]["address"] == TEXT + 0x200


def test_markers_of_kallsyms_are_found_though_nothing_names_them():
    memory = Memory()
    found = isf_of(memory)[1]["symbols"]["kallsyms_markers"]["address"]
    assert found == memory.markers_at
    assert "kallsyms_markers" not in isf_of(Memory(markers=False))[1]["symbols"]


def test_names_longer_than_127_bytes():
    long = "x" * 300
    assert long in isf_of(Memory(extra=(("T", long, TEXT + 0x500),)))[1]["symbols"]


def test_five_levels_are_seen():
    assert isf_of(Memory(levels=5))[0].levels == 5


def test_image_in_pieces_of_lime():
    data = bytes(Memory().bytes)
    image = lime([(0, data[:0x9000]), (0x9000, data[0x9000:])])
    assert from_image(open_ram(ImageBytes(image)), PRODUCER)[0].release == RELEASE


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"note": {"KERNELOFFSET": "0"}}, "linked at"),
        ({"note": {"KERNELOFFSET": None}}, "has no 'KERNELOFFSET'"),
        ({"note": {"NUMBER(phys_base)": "-99999999999"}}, "does not lie in the image"),
        ({"note": {"SYMBOL(kallsyms_names)": None}}, "older than 6.0"),
        ({"note": {"NUMBER(kimage_voffset)": "1", "NUMBER(VA_BITS)": "48"}}, "arm64"),
        ({"banner": BANNER.replace(b"6.1.0", b"5.9.9")}, "of another kernel"),
        ({"banner": b"nothing"}, "does not hold the kernel's version"),
        ({"types": Types().blob()}, "no struct task_struct"),
        ({"types": b"\x9f\xebgarbage and more of it, so that it is long enough"}, "BTF"),
        ({"types": kernel_types().blob()[:-3]}, "longer than the kernel says"),
    ],
)
def test_wrong_or_missing_facts_are_named(change, says):
    with pytest.raises(SymbolsError, match=re.escape(says) if "(" in says else says):
        isf_of(Memory(**change))


def test_image_without_a_kernel_says_so():
    with pytest.raises(SymbolsError, match="no VMCOREINFO"):
        from_image(open_ram(ImageBytes(bytes(1 << 16))), PRODUCER)


def test_huge_symbol_count_is_refused_before_it_is_read():
    memory = Memory()
    memory.put(memory.where["num_syms"], b"\xff\xff\xff\xff")
    with pytest.raises(SymbolsError, match="claims 4294967295"):
        isf_of(memory)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["names", "token_table", "token_index", "offsets", "num_syms"]),
       st.integers(0, 400), st.binary(min_size=1, max_size=40))  # fmt: skip
def test_corrupt_kallsyms_end_in_symbols_or_one_error(table, at, noise):
    memory = Memory()
    memory.put(memory.where[table] + at, noise)
    ram = ram_of(memory)
    with contextlib.suppress(SymbolsError):
        read_names(ram, next(kernels(ram)))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_corrupt_btf_ends_in_types_or_one_error(data):
    blob = bytearray(kernel_types().blob())
    for _ in range(data.draw(st.integers(1, 6))):
        blob[data.draw(st.integers(24, len(blob) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(SymbolsError):
        json.dumps({"t": Btf(bytes(blob)).user_types})


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_note_is_read_or_none(text):
    parse_note(b"OSRELEASE=" + text)
    parse_note(text)


def test_btf_loops_end():
    t = kernel_types()
    here = len(t.types) + 1
    t.add(PTR, value=here)  # points to itself
    t.add(TYPEDEF, "round", here + 2)
    t.add(CONST, value=here + 1)  # typedef of const of that typedef
    t.add(ARRAY, tail=struct.pack("<III", here + 3, 1, 2))  # array of itself
    t.struct("looped", 8, [("a", here, 0), ("b", here + 1, 0), ("c", here + 3, 0)])
    fields = Btf(t.blob()).user_types["looped"]["fields"]
    assert fields["b"]["type"] == {"kind": "base", "name": "void"}
    assert len(json.dumps(fields)) < 10_000


def test_btf_of_everything_that_has_a_trap():
    t = Types()
    u32 = t.int("unsigned int", 4)
    anonymous = t.struct("", 4, [("counter", u32, 0)])
    t.add(TYPEDEF, "atomic_t", anonymous)
    first = t.struct("same", 4, [("a", u32, 0)])
    second = t.struct("same", 8, [("b", u32, 0), ("c", u32, 32)])
    inner = t.struct("", 4, [("low", u32, 0)], kind=UNION)
    only_declared = t.add(FWD, "secret")
    pointer = t.add(PTR, value=only_declared)
    spin = t.struct("spinlock", 4, [("raw", u32, 0)])
    t.add(TYPEDEF, "spinlock_t", spin)
    t.enum("zone", [("LOW", -1), ("HIGH", 7)])
    bits = t.struct("user", 16, [
        ("x", u32, 3 << 24 | 37), ("", inner, 64), ("p", pointer, 96)], flag=True)  # fmt: skip
    t.struct("wide", 24, [("one", second, 0), ("two", second, 64), ("n", anonymous, 128)])
    made = Btf(t.blob())
    assert made.user_types["atomic_t"]["fields"]["counter"]["offset"] == 0
    assert made.user_types["wide"]["fields"]["n"]["type"]["name"] == "atomic_t"
    assert made.user_types["same"]["size"] == 8, "the one that others refer to keeps the name"
    assert made.user_types[f"same__btf{first}"]["size"] == 4
    assert made.user_types["secret"]["size"] == 0
    assert made.user_types["spinlock_t"] == made.user_types["spinlock"]
    assert made.enums["zone"]["constants"] == {"LOW": -1, "HIGH": 7}
    fields = made.user_types["user"]["fields"]
    assert fields["x"] == {
        "offset": 4,
        "type": {"kind": "bitfield", "bit_position": 5, "bit_length": 3,
                 "type": {"kind": "base", "name": "unsigned int"}},
    }  # fmt: skip
    assert fields["unnamed_field_0"]["anonymous"] is True
    assert bits


def test_side_cars_of_an_older_kernel():
    memory = Memory(note={"SYMBOL(kallsyms_names)": None})
    text = "".join(
        f"{a + memory.kaslr if a >= TEXT else a:016x} {k} {n}\n" for k, n, a in memory.symbols
    )
    text += "ffffffffc0000000 t in_a_module\t[dummy]\n"
    kernel, isf = from_side_cars(
        ram_of(memory), btf=memory.types, kallsyms=text.encode(), producer=PRODUCER
    )
    assert kernel.release == RELEASE
    assert isf["symbols"]["init_task"]["address"] == TEXT + 0x2000
    assert "in_a_module" not in isf["symbols"]


def test_table_that_was_given_is_chosen_by_its_banner():
    memory = Memory()
    _, isf = isf_of(memory)
    other = json.loads(json.dumps(isf))
    other["symbols"]["linux_banner"]["constant_data"] = base64.b64encode(
        BANNER.replace(b"#1", b"#2")
    ).decode()
    ram = ram_of(Memory(note={"SYMBOL(kallsyms_names)": None}))
    tables = [("noise", b"\x1f\x8bnoise"), ("other", json.dumps(other).encode()),
              ("right", lzma.compress(json.dumps(isf).encode()))]  # fmt: skip
    kernel, found = from_given(ram, tables)
    assert (kernel.release, found) == (RELEASE, isf)
    with pytest.raises(SymbolsError, match=r"noise: not the ISF.*other is of another kernel"):
        from_given(ram, tables[:2])


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_no_isf(noise):
    with pytest.raises(SymbolsError):
        read_isf(noise)


def test_hidden_kallsyms_are_refused():
    with pytest.raises(SymbolsError, match="kptr_restrict"):
        parse_kallsyms(b"0000000000000000 T _text\n0000000000000000 D init_task\n")
    with pytest.raises(SymbolsError, match="no line"):
        parse_kallsyms(b"\x00\xff not kallsyms")


def test_table_of_globals_has_every_symbol_that_volatility3_dereferences():
    import volatility3

    root = Path(volatility3.__path__[0]) / "framework"
    sources = [*root.glob("plugins/linux/**/*.py"), *root.glob("symbols/linux/**/*.py")]
    assert len(sources) > 60
    named = {
        name
        for path in sources
        for name in re.findall(
            r'object_from_symbol\(\s*(?:symbol_name=)?"(\w+)"', path.read_text(encoding="utf-8")
        )
    }
    assert len(named) > 25
    assert named - set(GLOBALS) - {"tk_core"} == set()


@pytest.mark.skipif(not SAMPLES, reason="IMPOUND_SAMPLES is not set")
def test_real_kernel_equals_the_table_made_from_its_debug_symbols(tmp_path):
    import zstandard

    folder = Path(SAMPLES) / "memory-6.1"
    image = tmp_path / "mem.lime"
    with (folder / "mem.lime.zst").open("rb") as packed, image.open("wb") as out:
        zstandard.ZstdDecompressor().copy_stream(packed, out)
    kernel, isf = from_image(open_ram(ImageFile(image)), PRODUCER)
    reference = json.loads(lzma.decompress((folder / "isf-dwarf2json.json.xz").read_bytes()))
    assert kernel.release == "6.1.0-56-cloud-amd64"
    compared = homonyms = 0
    for name, theirs in reference["user_types"].items():
        if name.startswith("unnamed_"):
            continue
        ours = isf["user_types"][name]
        if ours["size"] != theirs["size"]:
            homonyms += 1
            continue
        for field, expected in theirs["fields"].items():
            if not field.startswith("unnamed_field"):
                assert _shape(ours["fields"][field]) == _shape(expected), (name, field)
                compared += 1
    assert compared > 46_000
    assert homonyms <= 5, "structs of one name and several sizes"
    for name in GLOBALS:
        # Nothing in a 6.1 kernel says where this one is.
        if name in reference["symbols"] and name != "kallsyms_seqs_of_names":
            assert isf["symbols"][name]["address"] == reference["symbols"][name]["address"], name
            assert isf["symbols"][name]["type"] != VOID, name


def _shape(field):
    kind, at = field["type"], field["offset"] * 8
    if kind["kind"] == "bitfield":
        return "bits", at + kind["bit_position"], kind["bit_length"]
    if kind["kind"] == "array":
        count = 1
        while kind["kind"] == "array":  # BTF has no arrays of arrays
            count, kind = count * kind["count"], kind["subtype"]
        return "array", at, count, kind["kind"]
    return kind["kind"], at
