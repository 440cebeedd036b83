# SPDX-License-Identifier: Apache-2.0
"""What a PDB says it is: the head of a multi-stream file, and no more.

Source: https://llvm.org/docs/PDB/MsfFile.html, PdbStream.html and DbiStream.html.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

from analysis.errors import SymbolsError
from analysis.symbols.windows import guid

MAGIC = b"Microsoft C/C++ MSF 7.00\r\n\x1aDS\0\0\0"
_OTHERS = {b"Microsoft C/C++ pro": "a PDB of the format 2.00, of before 2002",
           b"BSJB": "a portable PDB, of .NET code", b"MSCF": "compressed (CAB): expand it first",
           b"MZ": "an executable, not its PDB",
           b"<": "text, such as the page of an error"}  # fmt: skip
_SIZES = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
_INFO, _DBI = 1, 3
_MAX_DIRECTORY = 64 << 20
_MAX_STREAMS = 1 << 16


def header(file: BinaryIO) -> tuple[str, int]:
    """Return GUID and age of a PDB, as an executable that it belongs to has them.

    The age is that of the stream DBI, which the linker writes into the executable.

    Raises: SymbolsError if it is none, or ends too early.
    """
    head = file.read(56)
    if not head.startswith(MAGIC):
        what = next((w for start, w in _OTHERS.items() if head.startswith(start)), "not a PDB")
        raise SymbolsError(f"it is {what}")
    if len(head) < 56:
        raise SymbolsError("it ends inside its first block")
    size, _, count, length, _, map_at = struct.unpack_from("<6I", head, 32)
    if size not in _SIZES or not 0 < length <= _MAX_DIRECTORY:
        raise SymbolsError(f"its blocks would have {size} bytes, its directory {length}")
    blocks = -(-length // size)
    listed = _read(file, map_at * size, 4 * blocks)
    directory = _stream(file, struct.unpack(f"<{blocks}I", listed), size, count, length)
    (streams,) = struct.unpack_from("<I", directory)
    if not _DBI < streams <= _MAX_STREAMS or 4 + 4 * streams > len(directory):
        raise SymbolsError(f"it would have {streams} streams")
    lengths = [0 if n == 0xFFFFFFFF else n
               for n in struct.unpack_from(f"<{streams}I", directory, 4)]  # fmt: skip
    at = 4 + 4 * streams
    found = {}
    for number, stream_length in enumerate(lengths[: _DBI + 1]):
        blocks = -(-stream_length // size)
        if at + 4 * blocks > len(directory):
            raise SymbolsError("its directory ends inside the blocks of a stream")
        if number in (_INFO, _DBI):
            held = struct.unpack_from(f"<{min(blocks, 1)}I", directory, at)
            found[number] = _stream(file, held, size, count, min(stream_length, size, 64))
        at += 4 * blocks
    if len(found[_INFO]) < 28 or len(found[_DBI]) < 12:
        raise SymbolsError("its streams do not say what it is")
    (age,) = struct.unpack_from("<I", found[_DBI], 8)
    return guid(found[_INFO][12:28]), age


def _stream(file: BinaryIO, blocks: tuple[int, ...], size: int, count: int, length: int) -> bytes:
    if any(block >= count for block in blocks):
        raise SymbolsError("a block lies behind its end")
    parts = [_read(file, block * size, min(size, length - n * size))
             for n, block in enumerate(blocks)]  # fmt: skip
    return b"".join(parts)


def _read(file: BinaryIO, at: int, length: int) -> bytes:
    file.seek(at)
    data = file.read(length)
    if len(data) < length:
        raise SymbolsError("it ends before what its head names")
    return data
