# SPDX-License-Identifier: Apache-2.0
"""What a file of memory is (raw, LiME, AVML, Windows crash dump), and whether it is whole.

Only headers are read, by lengths that they state and that are checked. What does not fit is told,
never mended: the file is taken byte for byte as it is, and a truncated one is a gap.

Source: LiME, doc/README (format v1); AVML, src/image.rs (version 2) and Snappy framing_format.txt;
Windows crash dumps: _DUMP_HEADER, _DUMP_HEADER64 and bitmap headers as described by Rekall and
volatility3 (`crash.json`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

from acquisition.closing import Closing
from evidence_store.transfer import ImageSource

Read = Callable[[int, int], bytes]  # offset, length -> bytes, fewer at the end

_HEADER = struct.Struct("<IIQQQ")
_LIME, _AVML = 0x4C694D45, 0x4C4D5641
_MOST_RANGES = 65536
_LISTED = 200
_PAGE = 4096
_FULL, _KERNEL, _BITMAP_FULL, _BITMAP_KERNEL = 1, 2, 5, 6


@dataclass
class Dump:
    """What a file of memory says of itself. Ranges are physical: (first, last) byte."""

    format: str
    ranges: list[tuple[int, int]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    details: dict[str, JsonValue] = field(default_factory=dict)

    @property
    def facts(self) -> dict[str, JsonValue]:
        """For the manifest."""
        listed: dict[str, JsonValue] = {}
        if self.ranges:
            listed = {"ranges": [f"{a:x}-{b:x}" for a, b in self.ranges[:_LISTED]],
                      "ram_bytes": sum(b - a + 1 for a, b in self.ranges)}  # fmt: skip
        return {"format": self.format, **listed, **self.details}


def recognise(read: Read, size: int) -> Dump:
    """Return what a file of memory is. Pure but for `read`. Raises: OSError."""
    head = read(0, _PAGE)
    if len(head) >= _HEADER.size and _HEADER.unpack_from(head)[0] in (_LIME, _AVML):
        return _ranges(read, size, head)
    if head[:8] == b"PAGEDU64":
        return _windows(read(0, 2 * _PAGE), read, size, bits=64)
    if head[:8] == b"PAGEDUMP":
        return _windows(head, read, size, bits=32)
    if head[:4] == b"\x7fELF":
        return Dump("elf core")
    if head[:4] in (b"hibr", b"HIBR", b"wake", b"WAKE"):
        return Dump("windows hibernation file", problems=["its content is compressed: not read"])
    return Dump("raw", problems=[] if size % _PAGE == 0 else ["its size is not a whole page"])


def _ranges(read: Read, size: int, head: bytes) -> Dump:
    made = Dump("avml" if _HEADER.unpack_from(head)[0] == _AVML else "lime")
    at, last = 0, -1
    while at < size:
        raw = read(at, _HEADER.size)
        if len(raw) < _HEADER.size:
            made.problems.append(f"truncated: a header is cut at byte {at}")
            return made
        magic, version, start, end, _ = _HEADER.unpack(raw)
        if (magic, version) not in ((_LIME, 1), (_AVML, 2)):
            made.problems.append(f"at byte {at} there is no range header")
            return made
        if end < start or end >= 1 << 52:
            made.problems.append(f"the range at byte {at} is impossible: {start:x}-{end:x}")
            return made
        if start <= last:
            made.problems.append(f"the range {start:x}-{end:x} overlaps one before it")
        if len(made.ranges) >= _MOST_RANGES:
            made.problems.append(f"more than {_MOST_RANGES} ranges")
            return made
        made.ranges.append((start, end))
        last = max(last, end)
        at += _HEADER.size
        if magic == _LIME:
            at += end - start + 1
        else:
            made.format = "avml"
            at = _snappy(read, size, at, end - start + 1, made)
        if at > size or (made.problems and made.problems[-1].startswith("truncated")):
            if not made.problems or not made.problems[-1].startswith("truncated"):
                made.problems.append(
                    f"truncated: {at - size} bytes of the range {start:x}-{end:x} are missing"
                )
            return made
    return made


def _snappy(read: Read, size: int, at: int, wanted: int, made: Dump) -> int:
    """Walk the chunks of one range by their headers; return where the next range begins."""
    got = 0
    while got < wanted:
        raw = read(at, 14)
        if len(raw) < 4:
            made.problems.append(f"truncated: the compressed range ends at byte {size}")
            return size
        kind, length = raw[0], int.from_bytes(raw[1:4], "little")
        if kind == 1:
            got += max(0, length - 4)
        elif kind == 0:
            got += _varint(raw[8:])
        elif kind < 0x80:
            made.problems.append(f"truncated: no Snappy chunk at byte {at}")
            return size
        at += 4 + length
        if at > size:
            made.problems.append(f"truncated: a chunk is cut at byte {size}")
            return size
    return at + 8  # the trailer: how many bytes the range took


def _varint(raw: bytes) -> int:
    value = shift = 0
    for byte in raw[:5]:
        value |= (byte & 127) << shift
        if byte < 128:
            break
        shift += 7
    return value


def _windows(head: bytes, read: Read, size: int, *, bits: int) -> Dump:
    made = Dump(f"windows crash dump ({bits}-bit)")
    header = 2 * _PAGE if bits == 64 else _PAGE
    if len(head) < header:
        made.problems.append("truncated: its header is cut")
        return made
    (kind,) = struct.unpack_from("<I", head, 0xF98 if bits == 64 else 0xF88)
    names = {_FULL: "full", _KERNEL: "kernel", _BITMAP_FULL: "full, by bitmap",
             _BITMAP_KERNEL: "kernel, by bitmap"}  # fmt: skip
    made.details["dump_type"] = names.get(kind, f"type {kind}")
    if kind == _FULL:
        _runs(made, head, bits)
        expected = header + sum(b - a + 1 for a, b in made.ranges)
    elif kind in (_BITMAP_FULL, _BITMAP_KERNEL) and bits == 64:
        raw = read(header, 0x38)
        if len(raw) < 0x38 or raw[:4] not in (b"SDMP", b"FDMP") or raw[4:8] != b"DUMP":
            made.problems.append("truncated or damaged: its bitmap header is not there")
            return made
        first, present, _ = struct.unpack_from("<QQQ", raw, 0x20)
        made.details["pages"] = min(present, 1 << 50)
        expected = first + present * _PAGE
    else:
        made.problems.append("what this kind of dump should hold was not checked")
        return made
    if expected > size:
        made.problems.append(f"truncated: {expected - size} of {expected} bytes are missing")
    return made


def _runs(made: Dump, head: bytes, bits: int) -> None:
    form, at = (("<QQ", 0x98), ("<II", 0x6C))[bits == 32]
    (count,) = struct.unpack_from("<I", head, 0x88 if bits == 64 else 0x64)
    if count > 42 + 44 * (bits == 32):
        made.problems.append(f"damaged: it states {count} runs of memory")
        return
    for index in range(count):
        base, pages = struct.unpack_from(form, head, at + index * struct.calcsize(form))
        if not pages or base + pages > 1 << 40:
            made.problems.append(f"damaged: run {index} is impossible")
            return
        made.ranges.append((base * _PAGE, (base + pages) * _PAGE - 1))


class MemoryDump(Closing):
    """A file of memory: its bytes as they are, with what it says of itself."""

    digests: tuple[str, ...] = ()

    def __init__(self, inner: ImageSource) -> None:
        self._inner = inner
        self._dump = recognise(self._read, inner.size)
        self.text, self.size, self.method = inner.text, inner.size, inner.method
        self.identity = inner.identity
        self.facts: Mapping[str, JsonValue] = {**inner.facts, **self._dump.facts}
        self.readinto, self.next_data = inner.readinto, inner.next_data
        self.changes = inner.changes

    def _read(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, self._inner.size - offset))
        view = memoryview(bytearray(length))
        at = 0
        while at < length:
            n = self._inner.readinto(view[at:], offset + at)
            if n == 0:
                break
            at += n
        return bytes(view[:at])

    def conclude(self, _content: Mapping[str, str] | None) -> list[str]:
        """See `Concluding`: what is wrong with it makes the item partial."""
        return [f"{self._dump.format}: {problem}" for problem in self._dump.problems]

    def close(self) -> None:
        """See `Closing.close`."""
        if isinstance(self._inner, Closing):
            self._inner.close()
