# SPDX-License-Identifier: Apache-2.0
"""The head of a PDB, whole and hostile."""

from __future__ import annotations

import io
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.errors import SymbolsError
from analysis.symbols.pdb import MAGIC, header

SIZE = 512
GUID = bytes(range(16))
TEXT = "030201000504070608090A0B0C0D0E0F"


def pdb(*, size=SIZE, lengths=(0, 40, 0, 64), blocks=(4, 5), directory=None, count=8, at=3):
    """A PDB of a few blocks: head, -, directory, its map, stream 1, stream 3."""
    if directory is None:
        directory = struct.pack(f"<I{len(lengths)}I", len(lengths), *lengths)
        directory += struct.pack(f"<{len(blocks)}I", *blocks)
    head = MAGIC + struct.pack("<6I", size, 1, count, len(directory), 0, at)
    info = struct.pack("<III", 20000404, 1, 7) + GUID
    dbi = struct.pack("<iII", -1, 19990903, 2)
    parts = [head, b"", directory, struct.pack("<I", 2), info, dbi, b"", b""]
    return b"".join(part.ljust(SIZE, b"\0") for part in parts)


def said(data):
    return header(io.BytesIO(data))


def test_guid_and_the_age_of_the_linker_are_read():
    assert said(pdb()) == (TEXT, 2)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"MZ" + bytes(99), "an executable"),
        (b"MSCF" + bytes(99), "expand it first"),
        (b"BSJB" + bytes(99), r"of \.NET code"),
        (b"<html>", "the page of an error"),
        (b"", "not a PDB"),
        (MAGIC, "inside its first block"),
        (pdb(size=0), "blocks would have 0 bytes"),
        (pdb(size=3 << 20), "blocks would have 3145728 bytes"),
        (pdb(at=1 << 20), "ends before"),
        (pdb(directory=b"\xff" * 400), "4294967295 streams"),
        (pdb(lengths=(0, 40)), "2 streams"),
        (pdb(lengths=(1 << 31, 40, 0, 64)), "ends inside the blocks"),
        (pdb(blocks=(4, 900)), "behind its end"),
        (pdb(count=2), "behind its end"),
        (pdb(lengths=(0, 12, 0, 64)), "do not say what it is"),
        (pdb(lengths=(0xFFFFFFFF, 0xFFFFFFFF, 0, 64)), "do not say what it is"),
        (pdb()[: SIZE * 5], "ends before"),
    ],
    ids=["executable", "cabinet", "portable", "page", "nothing", "cut head", "no blocks",
         "huge blocks", "map elsewhere", "endless streams", "few streams", "endless stream",
         "block elsewhere", "few blocks", "short stream", "no stream", "truncated"],
)  # fmt: skip
def test_what_is_no_pdb_says_so(data, says):
    with pytest.raises(SymbolsError, match=says):
        said(data)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, SIZE * 6), st.binary(min_size=1, max_size=60))
def test_arbitrary_bytes_never_crash(at, noise):
    data = bytearray(pdb())
    data[at : at + len(noise)] = noise
    try:
        guid, age = said(bytes(data))
    except SymbolsError:
        return
    assert len(guid) == 32
    assert 0 <= age < 1 << 32
