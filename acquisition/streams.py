# SPDX-License-Identifier: Apache-2.0
"""How bytes of a host's memory come here: a compressed stream, or reads over SFTP.

What the host sends is hostile: it is decompressed as it comes, never more at once than was asked
for, and what does not decode is an error.

Source: LZ4 frame format 1.6; RFC 8878, 1952; draft-ietf-secsh-filexfer-02 (SFTP 3).
"""

from __future__ import annotations

import contextlib
import struct
import time
from contextlib import ExitStack
from typing import Any, Literal, Protocol

from pydantic import JsonValue

from acquisition.errors import AcquisitionError
from acquisition.kcore import KcoreError, Range
from acquisition.reach import UnreachableError
from acquisition.remote import LostError, Output, Remote
from evidence_store.model import clean

KCORE = "/proc/kcore"
COMPRESSORS = {"lz4": "lz4 -1 -B4 -c -q", "zstd": "zstd -1 --single-thread -c -q",
                "gzip": "gzip -1 -c"}  # fmt: skip
_SFTP_SERVERS = (
    "/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server",
    "/usr/libexec/sftp-server",
)  # fmt: skip
_IN_FLIGHT, _SFTP_BYTES = 32, 261120

Way = Literal["lz4", "zstd", "gzip", "raw", "sftp"]


class Reader(Protocol):
    """The bytes of one piece, in order."""

    def readinto(self, view: memoryview) -> int:
        """Fill some of `view`; 0 at the end. Raises: LostError, BrokenError."""


class BrokenError(AcquisitionError):
    """What the host sent does not decode."""


class Decoded:
    """A stream, decompressed as it comes; never more in memory than what was asked for."""

    def __init__(self, output: Output, way: Way) -> None:
        self._output = output
        self._way = way
        self._rest: memoryview = memoryview(b"")
        self._decoder: Any = None
        self._ended = False
        if way == "lz4":
            import lz4.frame

            self._decoder = lz4.frame.LZ4FrameDecompressor()
        elif way == "zstd":
            import zstandard

            self._decoder = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(
                _File(output),  # type: ignore[arg-type]
                read_size=1 << 17,
            )
        elif way == "gzip":
            import zlib

            self._decoder = zlib.decompressobj(31)

    def readinto(self, view: memoryview) -> int:
        """See `Reader`."""
        if not self._rest:
            self._rest = memoryview(self._more(len(view)))
        n = min(len(self._rest), len(view))
        view[:n] = self._rest[:n]
        self._rest = self._rest[n:]
        return n

    def _more(self, wanted: int) -> bytes:
        wanted = min(wanted, 1 << 20)
        if self._way == "raw":
            return self._output.read()
        try:
            if self._way == "zstd":
                return bytes(self._decoder.read(wanted))
            while True:
                data = b""
                if self._way == "lz4":
                    if self._decoder.eof:
                        return b""
                    data = self._output.read(1 << 17) if self._decoder.needs_input else b""
                    if self._decoder.needs_input and not data:
                        return b""
                    out = self._decoder.decompress(data, wanted)
                else:
                    if self._decoder.eof:
                        return b""
                    data = self._decoder.unconsumed_tail or self._output.read(1 << 17)
                    if not data:
                        return b""
                    out = self._decoder.decompress(data, wanted)
                if out:
                    return bytes(out)
        except (LostError, UnreachableError):
            raise
        except Exception as e:  # each library has errors of its own
            raise BrokenError(f"what {self._way} sent does not decode: {clean(str(e), 120)}") from e


class _File:
    """Output as a file to read from."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def read(self, size: int = -1) -> bytes:
        return self._output.read(size if size > 0 else 1 << 17)


class Stream:
    """One range of RAM as it comes; what became of it is a line of the record."""

    def __init__(self, remote: Remote, command: str, physical: int, length: int, way: Way) -> None:
        self.at = physical
        self.start = physical
        self.length = length
        self.way = way
        self.broken = False
        self._began_ns = time.time_ns()
        self._first = 0.0
        self._last = 0.0
        self._stack = ExitStack()
        self._output = self._stack.enter_context(
            remote.stream(command, "memory", root=True, pipe=COMPRESSORS.get(way, ""))
        )
        self._decoded = Decoded(self._output, way)

    @property
    def done(self) -> bool:
        """Whether all of the range came."""
        return self.at - self.start >= self.length

    @property
    def rate(self) -> float:
        """Bytes per second, from the first byte on."""
        return (self.at - self.start) / max(self._last - self._first, 1e-6)

    def readinto(self, view: memoryview) -> int:
        """See `Reader`."""
        if self.broken:
            raise LostError("the stream broke off")
        left = self.length - (self.at - self.start)
        n = self._decoded.readinto(view[:left])
        self._last = time.monotonic()
        self._first = self._first or self._last
        self.at += n
        return n

    def close(self) -> None:
        """End it; of one that came whole the exit status is waited for."""
        if self.done:
            with contextlib.suppress(LostError):
                if self._output.read():  # its end, with exit status, for the footprint
                    self._output.cut()
        self._stack.close()

    def document(self) -> dict[str, JsonValue]:
        """As JSON, for the record of streams."""
        return {
            "from": f"{self.start:x}", "bytes": self.at - self.start, "wanted": self.length,
            "way": self.way, "began_ns": str(self._began_ns), "ended_ns": str(time.time_ns()),
            "wire_bytes": self._output.received, "code": self._output.code,
            "said": clean(self._output.err, 200),
        }  # fmt: skip


def dd(offset: int, length: int, block: str = "1M") -> str:
    """Return the command that reads a range of kcore."""
    return (
        f"dd if={KCORE} bs={block} iflag=skip_bytes,count_bytes,fullblock skip={offset} "
        f"count={length} status=none"
    )


class Sftp:
    """Reads of our own over a read-only SFTP server, many in flight.

    Nothing is asked of the file but its bytes: kcore has a size of 128 TB.
    """

    def __init__(self, remote: Remote, path: str = KCORE) -> None:
        self._out = remote.duplex(
            next_server(remote) + " -R -l QUIET", "SFTP server, read-only", root=True
        )
        self._id = 0
        try:
            self._send(1, struct.pack(">I", 3))
            if self._packet()[0] != 2:
                raise BrokenError("the SFTP server does not answer as one")
            name = path.encode()
            self._request(3, struct.pack(">I", len(name)) + name + struct.pack(">II", 1, 0))
            kind, _, body = self._reply()
            if kind != 102:
                raise KcoreError(f"SFTP cannot open {path}: {_status(body)}")
            size = struct.unpack_from(">I", body)[0]
            self._handle = body[: 4 + size]
        except BaseException:
            self._out.close()
            raise

    def _send(self, kind: int, body: bytes) -> None:
        self._out.write(struct.pack(">IB", len(body) + 1, kind) + body)

    def _request(self, kind: int, body: bytes) -> int:
        self._id += 1
        self._send(kind, struct.pack(">I", self._id) + body)
        return self._id

    def _packet(self) -> tuple[int, bytes]:
        size, kind = struct.unpack(">IB", self._out.exactly(5))
        if not 1 <= size <= 1 << 20:
            raise BrokenError("the SFTP server sends packets of impossible size")
        return kind, self._out.exactly(size - 1)

    def _reply(self) -> tuple[int, int, bytes]:
        kind, body = self._packet()
        if len(body) < 8:
            raise BrokenError("the SFTP server sends packets that are too short")
        return kind, struct.unpack_from(">I", body)[0], body[4:]

    def read_range(self, offset: int, view: memoryview) -> int:
        """Fill `view` from `offset` of the file; return how many bytes from its begin are there.

        Raises: LostError, BrokenError.
        """
        waiting: dict[int, tuple[int, int]] = {}
        todo = [(at, min(_SFTP_BYTES, len(view) - at)) for at in range(0, len(view), _SFTP_BYTES)]
        todo.reverse()
        failed = len(view)
        done: list[Range] = []
        while todo or waiting:
            while todo and len(waiting) < _IN_FLIGHT:
                at, size = todo.pop()
                if at < failed:
                    asked = self._request(5, self._handle + struct.pack(">QI", offset + at, size))
                    waiting[asked] = at, size
            if not waiting:
                break
            kind, answered, body = self._reply()
            if answered not in waiting:
                raise BrokenError("the SFTP server answers what was not asked")
            at, size = waiting.pop(answered)
            if kind != 103:
                failed = min(failed, at)
                continue
            n = struct.unpack_from(">I", body)[0]
            if not 0 < n <= size or len(body) < 4 + n:
                raise BrokenError("the SFTP server sends more than was asked for")
            view[at : at + n] = body[4 : 4 + n]
            done.append((at, at + n))
            if n < size:
                todo.append((at + n, size - n))
        reached = 0
        for start, end in sorted(done):
            if start > reached:
                break
            reached = max(reached, end)
        return reached

    def close(self) -> None:
        """End the server."""
        self._out.close()


def next_server(remote: Remote) -> str:
    """Return the path of an SFTP server on the host. Raises: KcoreError."""
    tests = "; ".join(f"test -x {path} && echo {path}" for path in _SFTP_SERVERS)
    found = remote.run(tests, "is there an SFTP server").out.decode("ascii", "replace").split()
    if not found or found[0] not in _SFTP_SERVERS:
        raise KcoreError("the host has neither a usable dd nor an SFTP server",
                         hint="the next way is --avml")  # fmt: skip
    return found[0]


def _status(body: bytes) -> str:
    code = struct.unpack_from(">I", body)[0] if len(body) >= 4 else 0
    return {2: "no such file", 3: "permission denied", 4: "failure"}.get(code, f"status {code}")
