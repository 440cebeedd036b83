# SPDX-License-Identifier: Apache-2.0
"""A host whose memory is a file: a real sshd, and `dd` and `cat` that read it as /proc/kcore.

The program headers are those of x86-64 kernels with address randomisation: a direct map that begins
anywhere, the kernel's text at another address over the same pages, and areas without an address.
"""

from __future__ import annotations

import os
import random
import shutil
import struct
from functools import cache
from pathlib import Path

from acquisition.kcore import Range
from tests.sshd import Sshd

MIB = 1 << 20
PAGE = 4096
BANNER = "Linux version 6.1.0-99-cloud-amd64 (debian@example) (gcc-12) #1 SMP Debian 6.1.99-1"
RAM: tuple[Range, ...] = ((0x1000, 0x9F000), (MIB, 13 * MIB), (4096 * MIB, 4099 * MIB))
CODE: Range = (7 * MIB, 8 * MIB)
_NO_ADDRESS = (1 << 64) - 1
_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")


def head(ram=RAM, *, levels: int = 4, text: bool = True, base: int | None = None) -> bytes:
    """The first 64 KiB of a kcore; memory at physical P is read at offset `data(P)`."""
    base = base if base is not None else {4: 0xFFFF8A7E40000000, 5: 0xFF11000000000000}[levels]
    loads = [(0xFFFFFFFFC0000000, _NO_ADDRESS, 1 << 40, 1 << 30)]  # modules
    if text:
        loads.append((0xFFFFFFFF81000000, CODE[0], 1 << 41, CODE[1] - CODE[0]))
    loads.append((0xFFFFC90000000000, _NO_ADDRESS, 1 << 42, 1 << 45))  # vmalloc
    loads += [(base + start, start, data(start), end - start) for start, end in ram]
    info = (
        f"OSRELEASE=6.1.0-99\nPAGESIZE=4096\nKERNELOFFSET=3a00000\n"
        f"NUMBER(pgtable_l5_enabled)={int(levels == 5)}\n"
    ).encode()
    note = struct.pack("<III", 11, len(info), 0) + b"VMCOREINFO\0\0" + info
    count = len(loads) + 1
    body = _EHDR.pack(b"\x7fELF\x02\x01\x01" + bytes(9), 4, 62, 1, 0, 64, 0, 0, 64, 56, count, 0,
                      0, 0)  # fmt: skip
    body += _PHDR.pack(4, 0, 64 + 56 * count, 0, 0, len(note), 0, 0)
    for vaddr, paddr, offset, size in loads:
        body += _PHDR.pack(1, 7, offset, vaddr, paddr, size, size, 4096)
    return (body + note).ljust(65536, b"\0")


def data(physical: int) -> int:
    """Where in the file a physical address is read."""
    return 1 * MIB + physical


def iomem(ram=RAM, *, hidden: bool = False) -> str:
    """What /proc/iomem says."""
    lines = ["00000000-00000fff : Reserved"]
    for start, end in ram:
        lines.append(f"{start:08x}-{end - 1:08x} : System RAM")
        if start <= CODE[0] < end:
            lines += [f"  {CODE[0]:08x}-{CODE[1] - 1:08x} : Kernel code"]
    lines.append("fee00000-fee00fff : Local APIC")
    text = "\n".join(lines) + "\n"
    if hidden:
        text = "\n".join("00000000-00000000" + li[li.index(" : ") :] for li in lines) + "\n"
    return text


@cache
def memory(ram=RAM, seed: int = 1, *, banner: bool = True, zero: bool = False) -> dict[int, bytes]:
    """What stands in each range: random pages, some of zeros, the banner in the kernel's code."""
    rng = random.Random(seed)
    found = {}
    for start, end in ram:
        body = bytearray(end - start)
        if not zero:
            for at in range(0, len(body), 64 << 10):
                if rng.random() < 0.6:
                    body[at : at + (64 << 10)] = rng.randbytes(min(64 << 10, len(body) - at))
            if start <= CODE[0] < end:
                at = CODE[0] - start
                body[at : at + CODE[1] - CODE[0]] = rng.randbytes(CODE[1] - CODE[0])
                if banner:
                    text = BANNER.encode() + b"\n\0"
                    body[at + 5000 : at + 5000 + len(text)] = text
        found[start] = bytes(body)
    return found


def lime(content: dict[int, bytes]) -> bytes:
    """The LiME image of it."""
    return b"".join(
        struct.pack("<IIQQQ", 0x4C694D45, 1, start, start + len(body) - 1, 0) + body
        for start, body in sorted(content.items())
    )


# As the kernel does: offsets in bytes, an error for the pages that are listed in `bad`; a block in
# which an error lies is lost whole, as dd loses it.
DD = """#!/bin/sh
echo "$*" >> "$ROOM/dd.log"
if [ -e "$ROOM/locked" ]; then echo "dd: failed to open '/proc/kcore': Operation not permitted" >&2; exit 1; fi
if [ -e "$ROOM/slow" ]; then sleep "$(cat "$ROOM/slow")"; fi
if [ -e "$ROOM/bad" ]; then exec python3 -I "$ROOM/dd.py" "$@"; fi
for a in "$@"; do
  shift
  case "$a" in if=/proc/kcore) a="if=$ROOM/kcore";; esac
  set -- "$@" "$a"
done
exec /usr/bin/dd "$@"
"""  # noqa: E501

BAD_DD = """
import os, sys
room = os.environ["ROOM"]
args = dict(a.split("=", 1) for a in sys.argv[1:])
block = {"1M": 1 << 20}.get(args["bs"]) or int(args["bs"])
at, left = int(args.get("skip", 0)), int(args["count"])
if "skip_bytes" not in args.get("iflag", ""):
    at, left = at * block, left * block
bad = [tuple(map(int, l.split())) for l in open(room + "/bad")]
fd = os.open(room + "/kcore", os.O_RDONLY)
while left:
    n = min(block, left)
    if any(at < end and at + n > start for start, end in bad):
        sys.stderr.write("dd: error reading '/proc/kcore': Bad address\\n")
        sys.exit(1)
    body = os.pread(fd, n, at)
    if not body:
        break
    while body:
        body = body[os.write(1, body):]
    at, left = at + n, left - n
"""

CAT = """#!/bin/sh
[ $# = 0 ] && exec /bin/cat
for a in "$@"; do
  if [ -e "$ROOM$a" ]; then /bin/cat "$ROOM$a"; else /bin/cat "$a"; fi
done
"""


class KcoreHost(Sshd):
    """An sshd of a host with this memory."""

    def __init__(self, home: Path, *more: str) -> None:
        super().__init__(home, *more)
        self.unprivileged()
        self.program("dd", DD)
        self.program("cat", CAT)
        (self.room / "dd.py").write_text(BAD_DD)
        self.proc("version", BANNER + "\n")
        self.proc("sys/kernel/random/boot_id", "5f1d6a3e-0000-4000-8000-000000000001\n")

    def proc(self, name: str, text: str) -> None:
        """Have /proc/NAME read like this."""
        path = self.room / "proc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def load(self, ram=RAM, *, content: dict[int, bytes] | None = None, hidden: bool = False,
             **how) -> dict[int, bytes]:  # fmt: skip
        """Give it memory; return what stands where."""
        content = memory(ram) if content is None else content
        with (self.room / "kcore").open("wb") as f:
            f.write(head(ram, **how))
            for start, body in content.items():
                os.pwrite(f.fileno(), body, data(start))
        self.proc("iomem", iomem(ram, hidden=hidden))
        return content

    def without(self, *programs: str) -> None:
        """Take programs away: the account's shell no longer finds them."""
        for name in ("sh", "grep", "head", "python3", "lz4", "zstd", "gzip", "sleep", "true"):
            found = shutil.which(name, path="/usr/bin:/bin:/usr/local/bin")
            if found and not (self.programs / name).exists():
                (self.programs / name).symlink_to(found)
        for name in programs:
            (self.programs / name).unlink(missing_ok=True)
        self.stop()
        self.path = str(self.programs)
        self.start()
