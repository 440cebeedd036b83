# SPDX-License-Identifier: Apache-2.0
"""A read-only NBD server for one image item: no byte leaves before its segment was verified.

One thread a connection. What a client sends is bounded before it is believed: 64 options of 8 KiB,
requests of 32 MiB, 8 clients. Data are sent in parts of 4 MiB, so memory does not grow with the
size of a request. NBD cannot say "not known": a read that touches an unreadable range, or a segment
that is not what was acquired, fails with EIO.

Source: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md (fixed newstyle,
structured replies, base:allocation).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import struct
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from evidence_store.backend import ObjectNotFoundError, UnfitObjectError
from evidence_store.digest import Range, SegmentList
from evidence_store.errors import Error, IntegrityError
from evidence_store.item import SegmentFile
from evidence_store.model import clean
from pipeline.errors import UsageError

DEFAULT_PORT = 10809
MAX_REQUEST = 32 << 20
_MAX_CLIENTS, _MAX_OPTIONS, _MAX_OPTION = 8, 64, 8192
_PART = 4 << 20
_HANDSHAKE_S = 30.0
_MAX_EXTENTS = 4096
_LOCKS = 16
_log = logging.getLogger(__name__)

_MAGIC, _OPTION_MAGIC, _REPLY_MAGIC = 0x4E42444D41474943, 0x49484156454F5054, 0x3E889045565A9
_REQUEST, _SIMPLE, _CHUNK = 0x25609513, 0x67446698, 0x668E33EF
_FIXED, _NO_ZEROES = 1, 2
_EXPORT_NAME, _ABORT, _LIST, _INFO, _GO, _STRUCTURED, _LIST_META, _SET_META = (
    1, 2, 3, 6, 7, 8, 9, 10,
)  # fmt: skip
_ACK, _REP_SERVER, _REP_INFO, _REP_META = 1, 2, 3, 4
_ERR_UNSUP, _ERR_INVALID, _ERR_UNKNOWN = 0x80000001, 0x80000003, 0x80000006
_INFO_EXPORT, _INFO_NAME, _INFO_BLOCK_SIZE = 0, 1, 3
_HAS_FLAGS, _READ_ONLY, _SEND_FLUSH, _SEND_DF, _MULTI, _SEND_CACHE = 1, 2, 4, 128, 256, 1024
_READ, _WRITE, _DISC, _FLUSH, _TRIM, _CACHE, _WRITE_ZEROES, _BLOCK_STATUS = range(8)
_DF, _REQ_ONE = 4, 8
_DONE, _OFFSET_DATA, _OFFSET_HOLE, _STATUS, _ERROR = 1, 1, 2, 5, 0x8001
_HOLE_ZERO = 3
_CONTEXT = b"base:allocation"


class _HangUp(Exception):
    """The client is done, or broke the protocol; the connection is closed."""


class Export:
    """One image as a server shows it.

    Args:
        name: of the export; the empty name means it too.
        segments: list of its segments, with holes and unreadable ranges.
        open_segment: as of `SegmentFile`; may be called by several threads for different segments.
        unreadable_zeros: whether ranges that the source refused are served as zeros.
    """

    def __init__(
        self,
        name: str,
        segments: SegmentList,
        open_segment: Callable[[int], int | None],
        *,
        unreadable_zeros: bool = False,
    ) -> None:
        self.name = name.encode()
        self.size = segments.size
        self._segments = segments
        self._open_segment = open_segment
        self._unreadable: list[Range] = [] if unreadable_zeros else segments.unreadable
        self._starts = [gap.offset for gap in self._unreadable]
        size = segments.segment_size
        self._holes = [(first * size, (first + count) * size) for first, count in segments.holes]
        self._hole_starts = [start for start, _ in self._holes]
        self._locks = [threading.Lock() for _ in range(_LOCKS)]
        self.bad: dict[int, str] = {}

    def open(self) -> SegmentFile:
        """Return the image for one connection."""
        return SegmentFile(self.size, self._segments.segment_size, self._open)

    def _open(self, index: int) -> int | None:
        with self._locks[index % _LOCKS]:  # clients read side by side; one hashes, the rest wait
            if index in self.bad:
                raise IntegrityError(self.bad[index])
            try:
                return self._open_segment(index)
            except (IntegrityError, ObjectNotFoundError, UnfitObjectError) as e:
                self.report(index * self._segments.segment_size, e)
                raise

    def report(self, offset: int, problem: Error) -> None:
        """Remember that the segment at `offset` is not what was acquired, and say so."""
        index = offset // self._segments.segment_size
        self.bad.setdefault(index, str(problem))
        _log.error("%s", clean(str(problem)))

    def check(self, image: SegmentFile, offset: int, length: int) -> str:
        """Verify every segment of a range; return why it cannot be read, "" if it can."""
        at = bisect_right(self._starts, offset + length - 1) - 1
        if at >= 0 and self._unreadable[at].end > offset:
            return "the source could not be read here"
        size = self._segments.segment_size
        try:
            for index in range(offset // size, (offset + length - 1) // size + 1):
                image.pread(1, index * size)
        except Error as e:
            return str(e)
        return ""

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        """Yield (length, whether it is a hole) from `offset` on."""
        end = offset + length
        while offset < end:
            at = bisect_right(self._hole_starts, offset) - 1
            if at >= 0 and offset < self._holes[at][1]:
                until, hole = self._holes[at][1], True
            else:
                until = self._hole_starts[at + 1] if at + 1 < len(self._holes) else end
                hole = False
            until = min(until, end)
            yield until - offset, hole
            offset = until


@contextlib.contextmanager
def listening(port: int, path: Path | None) -> Iterator[tuple[socket.socket, Path | int]]:
    """Give a listening socket on 127.0.0.1, or at `path` for this user only, and where it is.

    Raises: UsageError.
    """
    if path is None:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    else:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    bound = False
    with listener:
        before = os.umask(0o177)
        try:
            listener.bind(("127.0.0.1", port) if path is None else str(path))
            bound = True
            listener.listen(_MAX_CLIENTS)
        except OSError as e:
            raise UsageError(
                f"cannot listen at {clean(str(path)) if path else f'port {port}'}: "
                f"{e.strerror or e}",
                hint="--port 0 takes a free port" if path is None else "name a path that is free",
            ) from e
        finally:
            os.umask(before)
        try:
            yield listener, listener.getsockname()[1] if path is None else path.absolute()
        finally:
            if path is not None and bound:
                path.unlink(missing_ok=True)


def uri(address: Path | int, name: str) -> str:
    """Return the NBD URI of an export.

    >>> uri(10809, "E0001")
    'nbd://127.0.0.1:10809/E0001'
    >>> uri(Path("/run/a b"), "E0001")
    'nbd+unix:///E0001?socket=/run/a%20b'
    """
    if isinstance(address, int):
        return f"nbd://127.0.0.1:{address}/{name}"
    return f"nbd+unix:///{name}?socket={quote(str(address))}"


@dataclass
class Served:
    """What a session did."""

    clients: int = 0
    bytes: int = 0
    bad: dict[int, str] = field(default_factory=dict)


class Server:
    """Serves an export on a listening socket until `stop`."""

    def __init__(self, export: Export, listener: socket.socket) -> None:
        self._export = export
        self._listener = listener
        self._woken, self._wake = socket.socketpair()
        self._lock = threading.Lock()
        self._open: dict[socket.socket, threading.Thread] = {}
        self._served = Served(bad=export.bad)

    def stop(self) -> None:
        """Make `serve` return; may be called from a signal handler."""
        with contextlib.suppress(OSError):
            self._wake.send(b"x")

    def serve(self) -> Served:
        """Serve until stopped; return what was served. All connections are closed then."""
        try:
            while True:
                ready, _, _ = select.select([self._listener, self._woken], [], [])
                if self._woken in ready:
                    break
                self._accept()
        finally:
            with self._lock:
                threads = list(self._open.values())
                for sock in self._open:
                    with contextlib.suppress(OSError):
                        sock.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
            self._woken.close()
            self._wake.close()
        return self._served

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as e:
            _log.info("a client could not be taken: %s", e.strerror)
            select.select([self._woken], [], [], 0.1)  # no descriptor is free: do not spin
            return
        with self._lock:
            if len(self._open) >= _MAX_CLIENTS:
                sock.close()
                return
            self._served.clients += 1
            thread = threading.Thread(target=self._talk, args=(sock,), name="nbd", daemon=True)
            self._open[sock] = thread
        thread.start()

    def _talk(self, sock: socket.socket) -> None:
        connection = _Connection(sock, self._export)
        try:
            connection.run()
        except (_HangUp, OSError, struct.error) as e:
            _log.info("a client left: %s", clean(str(e) or type(e).__name__))
        finally:
            with self._lock:
                self._served.bytes += connection.sent
                del self._open[sock]
            sock.close()


class _Connection:
    """One client, from the greeting to the end."""

    def __init__(self, sock: socket.socket, export: Export) -> None:
        self._sock = sock
        self._export = export
        self._structured = False
        self._context = False
        self.sent = 0

    def run(self) -> None:
        if self._sock.family == socket.AF_INET:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock.settimeout(_HANDSHAKE_S)
        self._handshake()
        self._sock.settimeout(None)
        with self._export.open() as image:
            while self._request(image):
                pass

    def _receive(self, length: int) -> bytes:
        parts = []
        while length:
            part = self._sock.recv(min(length, 1 << 18))
            if not part:
                raise _HangUp("closed by the client")
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def _discard(self, length: int) -> None:
        while length:
            length -= len(self._receive(min(length, 1 << 18)))

    # -- handshake -------------------------------------------------------------------------------

    def _handshake(self) -> None:
        self._sock.sendall(struct.pack(">QQH", _MAGIC, _OPTION_MAGIC, _FIXED | _NO_ZEROES))
        (flags,) = struct.unpack(">I", self._receive(4))
        if not flags & _FIXED or flags & ~(_FIXED | _NO_ZEROES):
            raise _HangUp("unknown client flags")
        for _ in range(_MAX_OPTIONS):
            magic, option, length = struct.unpack(">QII", self._receive(16))
            if magic != _OPTION_MAGIC or length > _MAX_OPTION:
                raise _HangUp("not an option")
            if self._option(option, self._receive(length), bool(flags & _NO_ZEROES)):
                return
        raise _HangUp("too many options")

    def _option(self, option: int, body: bytes, no_zeroes: bool) -> bool:
        """Answer one option; return whether transmission begins."""
        if option == _EXPORT_NAME:
            if body not in (b"", self._export.name):
                raise _HangUp("no such export")
            zeros = b"" if no_zeroes else bytes(124)
            self._sock.sendall(struct.pack(">QH", self._export.size, self._flags()) + zeros)
            return True
        if option == _ABORT:
            self._reply(option, _ACK)
            raise _HangUp("aborted by the client")
        try:
            if option == _LIST and not body:
                name = self._export.name
                self._reply(option, _REP_SERVER, struct.pack(">I", len(name)) + name)
                self._reply(option, _ACK)
            elif option in (_INFO, _GO):
                return self._info(option, body)
            elif option == _STRUCTURED and not body:
                self._structured = True
                self._reply(option, _ACK)
            elif option in (_LIST_META, _SET_META):
                self._meta(option, body)
            else:
                known = option in (_LIST, _STRUCTURED)
                self._reply(option, _ERR_INVALID if known else _ERR_UNSUP)
        except struct.error:
            self._reply(option, _ERR_INVALID)
        return False

    def _reply(self, option: int, kind: int, body: bytes = b"") -> None:
        self._sock.sendall(struct.pack(">QIII", _REPLY_MAGIC, option, kind, len(body)) + body)

    def _flags(self) -> int:
        flags = _HAS_FLAGS | _READ_ONLY | _SEND_FLUSH | _MULTI | _SEND_CACHE
        return flags | (_SEND_DF if self._structured else 0)

    def _info(self, option: int, body: bytes) -> bool:
        name, rest = _text(body)
        (count,) = struct.unpack_from(">H", rest)
        wanted = struct.unpack(f">{count}H", rest[2:])
        if name not in (b"", self._export.name):
            self._reply(option, _ERR_UNKNOWN)
            return False
        size = struct.pack(">HQH", _INFO_EXPORT, self._export.size, self._flags())
        self._reply(option, _REP_INFO, size)
        if _INFO_NAME in wanted:
            self._reply(option, _REP_INFO, struct.pack(">H", _INFO_NAME) + self._export.name)
        if _INFO_BLOCK_SIZE in wanted:
            sizes = struct.pack(">HIII", _INFO_BLOCK_SIZE, 1, 1 << 20, MAX_REQUEST)
            self._reply(option, _REP_INFO, sizes)
        self._reply(option, _ACK)
        return option == _GO

    def _meta(self, option: int, body: bytes) -> None:
        name, rest = _text(body)
        (count,) = struct.unpack_from(">I", rest)
        rest, asked = rest[4:], []
        for _ in range(min(count, _MAX_OPTION)):
            query, rest = _text(rest)
            asked.append(query)
        if rest or not self._structured:
            self._reply(option, _ERR_INVALID)
            return
        if name not in (b"", self._export.name):
            self._reply(option, _ERR_UNKNOWN)
            return
        listing = option == _LIST_META
        found = _CONTEXT in asked or (listing and (not asked or b"base:" in asked))
        if not listing:
            self._context = found
        if found:
            self._reply(option, _REP_META, struct.pack(">I", 0 if listing else 1) + _CONTEXT)
        self._reply(option, _ACK)

    # -- transmission ----------------------------------------------------------------------------

    def _request(self, image: SegmentFile) -> bool:
        """Answer one request; return False if it was the last."""
        magic, flags, kind, cookie, offset, length = struct.unpack(
            ">IHHQQI", self._receive(28)
        )  # fmt: skip
        if magic != _REQUEST:
            raise _HangUp("not a request")
        if kind == _DISC:
            return False
        if kind == _WRITE:
            if length > MAX_REQUEST:
                raise _HangUp("a write that is too long")
            self._discard(length)
        if kind in (_WRITE, _TRIM, _WRITE_ZEROES):
            self._fail(cookie, errno.EPERM, "the export is read-only")
        elif kind == _FLUSH and not offset and not length:
            self._done(cookie)
        elif kind not in (_READ, _CACHE, _BLOCK_STATUS) or flags & ~self._known_flags(kind):
            self._fail(cookie, errno.EINVAL, "not a request that is understood")
        elif length == 0 or offset + length > self._export.size:
            self._fail(cookie, errno.EINVAL, "not a range of the export")
        elif kind == _BLOCK_STATUS:
            self._status(cookie, offset, length, one=bool(flags & _REQ_ONE))
        elif kind == _READ and length > MAX_REQUEST:
            self._fail(cookie, errno.EINVAL, "a read that is too long")
        elif why := self._export.check(image, offset, length):
            self._fail(cookie, errno.EIO, why)
        elif kind == _CACHE:
            self._done(cookie)
        else:
            self._read(image, cookie, offset, length)
        return True

    def _known_flags(self, kind: int) -> int:
        if kind == _BLOCK_STATUS:
            return _REQ_ONE
        return _DF if kind == _READ and self._structured else 0

    def _done(self, cookie: int) -> None:
        self._sock.sendall(struct.pack(">IIQ", _SIMPLE, 0, cookie))

    def _fail(self, cookie: int, code: int, why: str) -> None:
        if not self._structured:
            self._sock.sendall(struct.pack(">IIQ", _SIMPLE, code, cookie))
            return
        text = clean(why).encode()[:1000]
        self._chunk(cookie, _ERROR, struct.pack(">IH", code, len(text)) + text)

    def _chunk(self, cookie: int, kind: int, body: bytes, more: int = 0) -> None:
        """Send the one chunk of a reply; `more` bytes of it follow."""
        head = struct.pack(">IHHQI", _CHUNK, _DONE, kind, cookie, len(body) + more)
        self._sock.sendall(head + body)

    def _status(self, cookie: int, offset: int, length: int, *, one: bool) -> None:
        if not self._context:
            self._fail(cookie, errno.EINVAL, "no metadata context was chosen")
            return
        body = [struct.pack(">I", 1)]
        for part, hole in self._export.extents(offset, length):
            body.append(struct.pack(">II", part, _HOLE_ZERO if hole else 0))
            if one or len(body) > _MAX_EXTENTS:
                break
        self._chunk(cookie, _STATUS, b"".join(body))

    def _read(self, image: SegmentFile, cookie: int, offset: int, length: int) -> None:
        if self._structured:
            if next(self._export.extents(offset, length)) == (length, True):
                self._chunk(cookie, _OFFSET_HOLE, struct.pack(">QI", offset, length))
                self.sent += length
                return
            self._chunk(cookie, _OFFSET_DATA, struct.pack(">Q", offset), length)
        else:
            self._done(cookie)
        for at in range(offset, offset + length, _PART):
            try:
                part = image.pread(min(_PART, offset + length - at), at)
            except Error as e:  # success was said already; all that is left is to hang up
                self._export.report(at, e)
                raise _HangUp(str(e)) from e
            self._sock.sendall(part)
            self.sent += len(part)


def _text(body: bytes) -> tuple[bytes, bytes]:
    """Split off a string that its length precedes. Raises: struct.error."""
    (length,) = struct.unpack_from(">I", body)
    if 4 + length > len(body):
        raise struct.error("a string longer than its message")
    return body[4 : 4 + length], body[4 + length :]
