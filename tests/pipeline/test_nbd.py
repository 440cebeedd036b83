# SPDX-License-Identifier: Apache-2.0
"""NBD: what a client is told, what it may read, and what it cannot do to the server."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading

import pytest

from pipeline import nbd
from pipeline.errors import UsageError
from tests.evidence_store import kit
from tests.evidence_store.kit import SEGMENT, pattern

GO, INFO, EXPORT, ABORT, LIST, TLS, STRUCTURED, LIST_META, SET_META = 7, 6, 1, 2, 3, 5, 8, 9, 10
ACK, UNSUP, INVALID, UNKNOWN = 1, 0x80000001, 0x80000003, 0x80000006
READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
# Segments: data, hole, data, two holes, a short one.
DATA = pattern(SEGMENT) + bytes(SEGMENT) + pattern(SEGMENT, 5) + bytes(2 * SEGMENT) + b"end"


class Client:
    """As little of a client as shows every byte."""

    def __init__(self, port: int, flags: int = 3) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=10)
        try:
            assert self.take(18) == b"NBDMAGICIHAVEOPT\x00\x03"
        except (EOFError, ConnectionError):
            self.sock.close()
            raise
        self.sock.sendall(struct.pack(">I", flags))

    def take(self, length: int) -> bytes:
        out = b""
        while len(out) < length:
            part = self.sock.recv(length - len(out))
            if not part:
                raise EOFError
            out += part
        return out

    def option(self, number: int, body: bytes = b"") -> list[tuple[int, bytes]]:
        self.sock.sendall(b"IHAVEOPT" + struct.pack(">II", number, len(body)) + body)
        replies = []
        while True:
            magic, option, kind, length = struct.unpack(">QIII", self.take(20))
            assert (magic, option) == (0x3E889045565A9, number)
            replies.append((kind, self.take(length)))
            if kind == ACK or kind >> 31:
                return replies

    def go(self, name: bytes = b"", number: int = GO, infos: tuple[int, ...] = ()):
        body = struct.pack(">I", len(name)) + name + struct.pack(">H", len(infos))
        return self.option(number, body + struct.pack(f">{len(infos)}H", *infos))

    def send(self, kind, offset=0, length=0, flags=0, cookie=77, payload=b""):
        head = struct.pack(">IHHQQI", 0x25609513, flags, kind, cookie, offset, length)
        self.sock.sendall(head + payload)

    def simple(self, kind, offset=0, length=0, **more) -> tuple[int, bytes]:
        self.send(kind, offset, length, **more)
        magic, error, cookie = struct.unpack(">IIQ", self.take(16))
        assert (magic, cookie) == (0x67446698, 77)
        return error, self.take(length) if kind == READ and not error else b""

    def chunk(self, kind, offset=0, length=0, **more) -> tuple[int, bytes]:
        self.send(kind, offset, length, **more)
        magic, flags, what, cookie, size = struct.unpack(">IHHQI", self.take(20))
        assert (magic, flags, cookie) == (0x668E33EF, 1, 77)
        return what, self.take(size)

    @property
    def closed(self) -> bool:
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True


@pytest.fixture
def world(tmp_path):
    """A store with one open, empty case."""
    return kit.make_world(tmp_path / "store")


@pytest.fixture
def serve(world):
    """Serve an item; give a function that connects."""
    with contextlib.ExitStack() as stack:

        def start(source=None, **options):
            source = source or kit.FakeImage(DATA)
            world.case.ingest("disk", source, segment_size=SEGMENT)
            segments = world.case.segments(world.case.manifest("E0001"))
            opener = world.case.objects("E0001").open
            export = nbd.Export("E0001", segments, opener, **options)
            listener, port = stack.enter_context(nbd.listening(0, None))
            server = nbd.Server(export, listener)
            found = []
            thread = threading.Thread(target=lambda: found.append(server.serve()))
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.stop)

            def connect(**more) -> Client:
                client = Client(port, **more)
                stack.callback(client.sock.close)
                return client

            def end():
                server.stop()
                thread.join()
                return found[0]

            connect.end, connect.port = end, port
            return connect

        yield start


# -- handshake -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [b"", b"E0001"])
def test_go_tells_size_and_flags(serve, name):
    client = serve()(flags=3)
    info, named, blocks, ack = client.go(name, infos=(1, 3))
    size, flags = struct.unpack(">xxQH", info[1])
    assert size == len(DATA)
    assert flags == 1 | 2 | 4 | 256 | 1024  # read-only, flush, many connections, cache
    assert named == (3, b"\0\1E0001")
    assert struct.unpack(">HIII", blocks[1]) == (3, 1, 1 << 20, 32 << 20)
    assert ack == (ACK, b"")
    assert client.simple(READ, 0, 10) == (0, DATA[:10])


def test_info_leaves_the_handshake_open(serve):
    client = serve()()
    assert client.go(number=INFO)[-1][0] == ACK
    assert client.go(b"other") == [(UNKNOWN, b"")]
    assert client.option(LIST) == [(2, b"\0\0\0\x05E0001"), (ACK, b"")]
    assert client.option(TLS) == [(UNSUP, b"")]
    assert client.option(1000, b"x") == [(UNSUP, b"")]
    assert client.option(LIST, b"x") == [(INVALID, b"")]
    assert client.option(STRUCTURED, b"x") == [(INVALID, b"")]
    assert client.go()[-1][0] == ACK


@pytest.mark.parametrize(("flags", "zeros"), [(3, 0), (1, 124)])
def test_the_old_way_in(serve, flags, zeros):
    client = serve()(flags=flags)
    client.sock.sendall(b"IHAVEOPT" + struct.pack(">II", EXPORT, 5) + b"E0001")
    size, _ = struct.unpack(">QH", client.take(10))
    assert client.take(zeros) == bytes(zeros)
    assert size == len(DATA)
    assert client.simple(READ, SEGMENT - 1, 2) == (0, DATA[SEGMENT - 1 : SEGMENT + 1])


def test_another_name_or_an_abort_ends_it(serve):
    connect = serve()
    client = connect()
    client.sock.sendall(b"IHAVEOPT" + struct.pack(">II", EXPORT, 5) + b"other")
    assert client.closed
    client = connect()
    assert client.option(ABORT) == [(ACK, b"")]
    assert client.closed


def meta(*queries: bytes, name: bytes = b"") -> bytes:
    parts = [struct.pack(">I", len(q)) + q for q in queries]
    return struct.pack(">I", len(name)) + name + struct.pack(">I", len(queries)) + b"".join(parts)


def test_metadata_contexts(serve):
    client = serve()()
    assert client.option(SET_META, meta(b"base:allocation")) == [(INVALID, b"")]  # not structured
    client.option(STRUCTURED)
    assert client.option(LIST_META, meta()) == [(4, b"\0\0\0\0base:allocation"), (ACK, b"")]
    assert client.option(SET_META, meta(b"qemu:dirty-bitmap:x")) == [(ACK, b"")]
    assert client.option(SET_META, meta(b"base:allocation", name=b"zz")) == [(UNKNOWN, b"")]
    assert client.option(SET_META, meta(b"base:allocation")[:-1]) == [(INVALID, b"")]
    assert client.option(SET_META, meta(b"x", b"base:allocation")) == [
        (4, b"\0\0\0\1base:allocation"), (ACK, b"")]  # fmt: skip


# -- transmission ----------------------------------------------------------------------------------


def test_every_range_reads_as_it_is(serve):
    client = serve()()
    client.go()
    for offset, length in ((0, 1), (0, len(DATA)), (SEGMENT - 3, SEGMENT + 6), (len(DATA) - 3, 3)):
        assert client.simple(READ, offset, length) == (0, DATA[offset : offset + length])


def test_structured_replies_tell_holes(serve):
    client = serve()()
    client.option(STRUCTURED)
    client.option(SET_META, meta(b"base:allocation"))
    client.go()
    assert client.chunk(READ, 5, 20) == (1, struct.pack(">Q", 5) + DATA[5:25])
    assert client.chunk(READ, 5, 20, flags=4) == (1, struct.pack(">Q", 5) + DATA[5:25])
    assert client.chunk(READ, SEGMENT, SEGMENT) == (2, struct.pack(">QI", SEGMENT, SEGMENT))
    what, body = client.chunk(STATUS, 0, len(DATA))
    assert what == 5
    runs = list(struct.iter_unpack(">II", body[4:]))
    assert body[:4] == b"\0\0\0\1"
    assert runs == [(SEGMENT, 0), (SEGMENT, 3), (SEGMENT, 0), (2 * SEGMENT, 3), (3, 0)]
    _, body = client.chunk(STATUS, SEGMENT + 10, SEGMENT, flags=8)
    assert list(struct.iter_unpack(">II", body[4:])) == [(SEGMENT - 10, 3)]
    what, body = client.chunk(READ, len(DATA), 1)
    assert (what, body[:4]) == (0x8001, struct.pack(">I", errno.EINVAL))


@pytest.mark.parametrize("kind", [WRITE, TRIM, ZEROES])
def test_nothing_can_be_written(serve, world, kind):
    client = serve()()
    client.go()
    payload = b"x" * 100 if kind == WRITE else b""
    assert client.simple(kind, 0, 100, payload=payload)[0] == errno.EPERM
    assert client.simple(READ, 0, 100) == (0, DATA[:100])


def test_other_requests(serve):
    client = serve()()
    client.go()
    assert client.simple(FLUSH) == (0, b"")
    assert client.simple(CACHE, 0, len(DATA)) == (0, b"")
    assert client.simple(STATUS, 0, 10)[0] == errno.EINVAL
    for kind, offset, length, flags in (
        (READ, 0, 0, 0), (READ, len(DATA), 1, 0), (READ, 1 << 63, 1 << 31, 0),
        (READ, 0, 10, 1 << 15), (READ, 0, 10, 4), (99, 0, 10, 0), (FLUSH, 1, 0, 0),
    ):  # fmt: skip
        client.send(kind, offset, length, flags=flags)
        assert struct.unpack(">IIQ", client.take(16))[1] == errno.EINVAL
    client.send(DISC)
    assert client.closed


def test_a_read_over_the_bound_is_refused(serve):
    source = kit.FakeImage(b"x" + bytes((34 << 20) - 1))
    client = serve(source)()
    client.go()
    assert client.simple(READ, 0, 32 << 20)[0] == 0
    client.send(READ, 0, (32 << 20) + 1)
    assert struct.unpack(">IIQ", client.take(16))[1] == errno.EINVAL


def test_unreadable_ranges_are_errors_not_zeros(serve):
    source = kit.FakeImage(DATA, bad=[(8192, 4096)])
    client = serve(source)()
    client.option(STRUCTURED)
    client.option(SET_META, meta(b"base:allocation"))
    client.go()
    for offset, length in ((8192, 1), (8191, 2), (12287, 1), (0, SEGMENT)):
        what, body = client.chunk(READ, offset, length)
        assert what == 0x8001, (offset, length)
        assert body[:4] == struct.pack(">I", errno.EIO)
        assert b"could not be read" in body
    assert client.chunk(READ, 0, 8192)[0] == 1
    assert client.chunk(READ, 12288, 10)[0] == 1
    _, body = client.chunk(STATUS, 0, SEGMENT)
    assert list(struct.iter_unpack(">II", body[4:])) == [(SEGMENT, 0)]  # never told to be zero


def test_unreadable_ranges_are_zeros_where_that_was_asked_for(serve):
    source = kit.FakeImage(DATA, bad=[(8192, 4096)])
    client = serve(source, unreadable_zeros=True)()
    client.go()
    assert client.simple(READ, 8190, 10) == (0, DATA[8190:8192] + bytes(8))


@pytest.mark.parametrize("how", ["changed", "gone", "link"])
def test_a_bad_segment_is_never_served(serve, world, how):
    connect = serve()
    path = world.folder / "items/E0001/data" / f"{2:016x}"
    path.chmod(0o600)
    if how == "changed":
        body = bytearray(path.read_bytes())
        body[-1] ^= 1
        path.write_bytes(body)
    else:
        path.unlink()
        if how == "link":
            path.symlink_to("/etc/passwd")
    for _ in range(2):
        client = connect()
        client.go()
        assert client.simple(READ, 2 * SEGMENT, 1)[0] == errno.EIO
        assert client.simple(READ, 0, 3 * SEGMENT)[0] == errno.EIO
        assert client.simple(CACHE, 0, 3 * SEGMENT)[0] == errno.EIO
        assert client.simple(READ, 0, 2 * SEGMENT) == (0, DATA[: 2 * SEGMENT])
    served = connect.end()
    assert list(served.bad) == [2]
    assert served.clients == 2
    assert served.bytes == 4 * SEGMENT


def test_clients_at_once(serve):
    connect = serve()
    results = []

    def copy():
        client = connect()
        client.go()
        results.append(b"".join(client.simple(READ, at, min(1000, len(DATA) - at))[1]
                                for at in range(0, len(DATA), 1000)))  # fmt: skip

    threads = [threading.Thread(target=copy) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [DATA] * 4


def test_only_so_many_clients(serve):
    connect = serve()
    held = [connect() for _ in range(nbd._MAX_CLIENTS)]
    with pytest.raises((EOFError, ConnectionResetError)):
        connect()
    held[0].sock.close()
    for _ in range(100):
        with contextlib.suppress(EOFError, ConnectionResetError):
            assert connect().go()[-1][0] == ACK
            return
        threading.Event().wait(0.05)
    pytest.fail("a place that became free was not given away")


# -- hostile clients -------------------------------------------------------------------------------


def test_hostile_handshakes_end(serve):
    connect = serve()
    for flags in (0, 2, 1 << 31 | 1):
        assert connect(flags=flags).closed
    client = connect()
    client.sock.sendall(b"IHAVEOPT" + struct.pack(">II", GO, 1 << 31))
    assert client.closed
    client = connect()
    client.sock.sendall(b"x" * 16)
    assert client.closed
    client = connect()
    for _ in range(nbd._MAX_OPTIONS):
        client.option(LIST)
    assert client.closed
    client = connect()
    assert client.option(GO, b"\xff\xff\xff\xff") == [(INVALID, b"")]
    assert client.option(SET_META, b"\0\0\0\0\xff\xff\xff\xff") == [(INVALID, b"")]
    assert client.go()[-1][0] == ACK


def test_hostile_requests_end(serve):
    connect = serve()
    client = connect()
    client.go()
    client.send(WRITE, 0, 0xFFFFFFFF)
    assert client.closed
    client = connect()
    client.go()
    client.sock.sendall(bytes(28))
    assert client.closed
    client = connect()
    client.go()
    for _ in range(200):  # asks, and never takes the answers
        client.send(READ, 0, len(DATA))
    client.sock.close()
    client = connect()
    client.go()
    assert client.simple(READ, 0, 5) == (0, DATA[:5])


def test_arbitrary_bytes_do_no_harm(serve):
    connect = serve()
    chance = random.Random(11)
    for turn in range(150):
        client = connect()
        if turn % 2:
            client.option(STRUCTURED)
            client.go()
            head = struct.pack(">IHH", 0x25609513, chance.choice((0, 4, 8)), chance.randrange(9))
            offset, length = chance.choice((0, 5, 1 << 63)), chance.choice((0, 1, 1 << 20, 1 << 31))
            body = head + chance.randbytes(8) + struct.pack(">QI", offset, length)
        else:
            body = b"IHAVEOPT" + struct.pack(">II", chance.randrange(12), chance.randrange(40))
        with contextlib.suppress(OSError):  # the server may hang up at any byte
            client.sock.sendall(body + chance.randbytes(chance.randrange(80)))
            client.sock.shutdown(socket.SHUT_WR)
            while client.sock.recv(65536):
                pass
        client.sock.close()
    client = connect()
    client.go()
    assert client.simple(READ, 0, len(DATA)) == (0, DATA)
    assert connect.end().bad == {}


# -- listening -------------------------------------------------------------------------------------


def test_a_taken_port_or_path_is_refused(tmp_path):
    with (
        nbd.listening(0, None) as (_, port),
        pytest.raises(UsageError, match="cannot listen"),
        nbd.listening(port, None),
    ):
        pass
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="cannot listen"), nbd.listening(0, tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "mine"


def test_a_unix_socket_is_for_this_user_and_goes_away(tmp_path):
    path = tmp_path / "s"
    with nbd.listening(0, path) as (_, address):
        assert address == path
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


# -- the command, with clients of other people -----------------------------------------------------


@pytest.fixture
def served(opened, tmp_path):
    """Ingest an image and serve it in a process of its own; give its URI and how to end it."""
    image = tmp_path / "disk.raw"
    with image.open("wb") as f:
        f.write(os.urandom(3 << 20))
        f.truncate(200 << 20)
        f.seek((199 << 20) + 17)
        f.write(os.urandom(4000))
    running = []

    def start(*options: str, prepare=lambda: None):
        assert opened("ingest", "T-1001", image, "--kind", "disk").code == 0
        prepare()
        code = "import sys; from pipeline.cli.base import run; sys.exit(run(sys.argv[1:]))"
        process = subprocess.Popen(
            [sys.executable, "-c", code, "--json", "item", "serve", "T-1001", "E0001", *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        running.append(process)
        line = json.loads(process.stdout.readline())
        assert line["message_type"] == "listening"

        def end(number=signal.SIGTERM):
            process.send_signal(number)
            out, err = process.communicate(timeout=30)
            return process.returncode, json.loads(out), err

        return line["uri"], end

    start.image = image
    yield start
    for process in running:
        process.kill()
        process.wait()


def copy(*argv) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(a) for a in argv], capture_output=True, text=True, timeout=120)


def digest(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.chaos
@pytest.mark.parametrize("where", ["tcp", "unix"])
def test_nbdcopy_gets_the_very_bytes(served, opened, tmp_path, need_tool, where):
    need_tool("nbdcopy")
    socket_path = tmp_path / "s p"
    options = ("--port", "0") if where == "tcp" else ("--socket", str(socket_path))
    uri, end = served(*options)
    done = copy("nbdcopy", uri, tmp_path / "copy")
    assert done.returncode == 0, done.stderr
    assert digest(tmp_path / "copy") == digest(served.image)
    info = json.loads(copy("nbdinfo", "--json", uri).stdout)["exports"][0]
    assert info["is_read_only"]
    assert info["export-size"] == 200 << 20
    mapped = json.loads(copy("nbdinfo", "--map", "--json", uri).stdout)
    assert [(m["offset"], m["length"], m["type"]) for m in mapped] == [
        (0, 64 << 20, 0), (64 << 20, 128 << 20, 3), (192 << 20, 8 << 20, 0)]  # fmt: skip
    code, said, _ = end(signal.SIGINT if where == "tcp" else signal.SIGTERM)
    assert code == 0
    assert said["clients"] >= 3
    assert said["bad_segments"] == 0
    assert said["receipt"]["size"]
    assert not socket_path.exists()
    entry = opened("--json", "case", "show", "T-1001").json["entries"][-1]
    assert entry["action"] == "item.accessed"
    assert opened("verify", "T-1001").code == 0


def test_qemu_img_gets_the_very_bytes(served, tmp_path, need_tool):
    need_tool("qemu-img")
    uri, end = served("--port", "0")
    done = copy("qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri, tmp_path / "d.qcow2")
    assert done.returncode == 0, done.stderr
    done = copy("qemu-img", "compare", "-f", "qcow2", "-F", "raw", tmp_path / "d.qcow2",
                served.image)  # fmt: skip
    assert done.returncode == 0, done.stdout
    done = copy("qemu-io", "-f", "raw", "-c", "write 0 512", uri)
    assert done.returncode != 0
    assert end()[0] == 0


def test_a_copy_of_a_tampered_item_fails(served, opened, tmp_path, need_tool):
    need_tool("nbdcopy")

    def tamper():
        path = next((tmp_path / "work").glob(f"evidence/cases/*/items/E0001/data/{3:016x}"))
        path.chmod(0o600)
        body = bytearray(path.read_bytes())
        body[12345] ^= 1
        path.write_bytes(body)

    uri, end = served("--port", "0", prepare=tamper)
    assert copy("nbdcopy", uri, tmp_path / "copy").returncode != 0
    code, said, err = end()
    assert code == 10
    assert said["bad_segments"] == 1
    assert f"{3:016x} is not what was acquired" in err
    assert '"code": 10' in err
    entry = opened("--json", "case", "show", "T-1001").json["entries"][-1]
    assert (entry["action"], entry["result"]) == ("item.accessed", "partial")


@pytest.mark.chaos
def test_unreadable_ranges_are_told_and_fail_a_copy(served, opened, tmp_path, need_tool):
    need_tool("nbdcopy")
    need_tool("ewfacquire")
    path = tmp_path / "d.E01"
    copy("ewfacquire", "-u", "-q", "-c", "none", "-t", path.with_suffix(""), served.image)
    body = bytearray(path.read_bytes())
    body[500_000] ^= 1
    path.write_bytes(body)
    assert opened("ingest", "T-1001", path, "--kind", "disk").code == 3
    for options, ok in (((), False), (("--unreadable-zeros",), True)):
        uri, end = served("--port", "0", *options)
        assert (copy("nbdcopy", uri, tmp_path / "copy").returncode == 0) is ok
        code, _, err = end()
        assert code == 0
        assert "32768 bytes in 1 unreadable ranges" in err


def test_a_session_without_a_client_is_no_access(served, opened):
    before = len(opened("--json", "case", "show", "T-1001").json["entries"])
    _, end = served("--port", "0")
    code, said, _ = end()
    assert (code, said["clients"], said["receipt"]) == (0, 0, None)
    entries = opened("--json", "case", "show", "T-1001").json["entries"][before:]
    assert "item.accessed" not in [entry["action"] for entry in entries]


def test_what_cannot_be_served_is_said_at_once(opened, tmp_path):
    (tmp_path / "log").write_text("x")
    assert opened("ingest", "T-1001", tmp_path / "log", "--kind", "logs").code == 0
    assert opened("item", "serve", "T-1001", "E0001").code == 11
    assert opened("item", "serve", "T-1001", "E0009").code == 11
    assert opened("item", "serve", "T-1001", "E0001", "--port", "1", "--socket", "x").code == 2
