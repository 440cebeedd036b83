# SPDX-License-Identifier: Apache-2.0
"""A small kernel's executable and PDB, made by a real compiler and linker."""

from __future__ import annotations

import struct
import subprocess

from tests.analysis.windows_image import PAGE, c_source


def link(need_tool, folder, name="ntkrnlmp.pdb", source=None):
    """Compile and link `source` (the layouts); return the paths of executable and PDB."""
    code, made, image, pdb = (folder / n for n in ("kernel.c", "kernel.obj", "kernel.exe", name))
    code.write_text(source or c_source())
    subprocess.run([need_tool("clang"), "--target=x86_64-pc-windows-msvc", "-g", "-gcodeview",
                    "-ffreestanding", "-c", code, "-o", made], check=True)  # fmt: skip
    subprocess.run([need_tool("lld-link"), "/nodefaultlib", "/entry:entry", "/subsystem:native",
                    "/debug", f"/pdb:{pdb}", f"/pdbaltpath:{name}", f"/out:{image}", made],
                   check=True)  # fmt: skip
    return image, pdb


def loaded(path):
    """An executable's bytes as they lie in memory, section by section."""
    data = path.read_bytes()
    (at,) = struct.unpack_from("<I", data, 0x3C)
    count, optional = (struct.unpack_from("<H", data, at + n)[0] for n in (6, 20))
    size, headers = struct.unpack_from("<II", data, at + 24 + 56)
    image = bytearray(-(-size // PAGE) * PAGE)
    image[:headers] = data[:headers]
    for n in range(count):
        place = at + 24 + optional + 40 * n
        virtual, where, held, begin = struct.unpack_from("<IIII", data, place + 8)
        held = min(held, virtual)
        image[where : where + held] = data[begin : begin + held]
    return bytes(image)
