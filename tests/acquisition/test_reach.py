# SPDX-License-Identifier: Apache-2.0
"""Which rule lets us in, and the tunnel of an Instance Connect Endpoint."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import socket
import struct
import threading
from urllib.parse import parse_qs, urlsplit

import pytest

from acquisition.reach import (
    PortClosedError,
    Tunnel,
    UnreachableError,
    connect,
    direct,
    endpoint,
    own_address,
    permitted,
    tunnel_url,
)

NOTHING_OUT = "egress -1 all 127.0.0.1/32"


@pytest.mark.parametrize("rule", [
    "ingress tcp 22 10.1.0.0/24", "ingress tcp 20-30 10.0.0.0/8", "ingress -1 all 10.1.0.5/32",
    "ingress tcp 0-65535 0.0.0.0/0",
])  # fmt: skip
def test_rule_that_lets_in(rule):
    assert permitted([NOTHING_OUT, rule], "10.1.0.5", 22).rule == rule


@pytest.mark.parametrize("rules", [
    [], [NOTHING_OUT], ["egress tcp 22 10.1.0.0/24"], ["ingress udp 22 10.1.0.0/24"],
    ["ingress tcp 4445 10.1.0.0/24"], ["ingress tcp 22 10.2.0.0/24"], ["ingress tcp 22 ::/0"],
    ["ingress tcp x 10.1.0.0/24"], ["ingress"], ["and 12 more"],
])  # fmt: skip
def test_closed_port_is_refused_with_the_exact_rule(rules):
    with pytest.raises(PortClosedError) as e:
        permitted(rules, "10.1.0.5", 22)
    assert e.value.hint.endswith("ingress tcp 22 10.1.0.5/32")


def test_tool_port_is_closed_unless_it_is_opened():
    rules = [NOTHING_OUT, "ingress tcp 22 10.1.0.0/24"]
    with pytest.raises(PortClosedError):
        permitted(rules, "10.1.0.5", 4445)


def test_rule_by_group_lets_in_and_says_what_was_not_checked():
    found = permitted(["ingress tcp 22 sg-0123"], "10.1.0.5", 22)
    assert "sg-0123" in found.note
    assert (
        permitted(["ingress tcp 22 sg-0", "ingress tcp 22 10.1.0.5/32"], "10.1.0.5", 22).note == ""
    )


def test_own_address_needs_no_packet():
    assert own_address("127.0.0.1") == "127.0.0.1"
    with pytest.raises(UnreachableError):
        own_address("no such host")


# -- endpoint


class Session:
    def get_credentials(self):
        from botocore.credentials import Credentials

        return Credentials("AKIA", "secret", "token")


def test_tunnel_url_is_signed_for_a_minute_and_names_target_and_port():
    url = urlsplit(tunnel_url(Session(), "eu-central-1", "eice-1", "eice-1.aws", "10.0.0.5", 22))
    query = {k: v[0] for k, v in parse_qs(url.query).items()}
    assert (url.scheme, url.netloc, url.path) == ("wss", "eice-1.aws", "/openTunnel")
    assert (query["instanceConnectEndpointId"], query["privateIpAddress"], query["remotePort"]) == (
        "eice-1", "10.0.0.5", "22")  # fmt: skip
    assert query["X-Amz-Expires"] == "60"
    assert "ec2-instance-connect" in query["X-Amz-Credential"]
    assert "secret" not in url.query
    assert query["X-Amz-Signature"]


class Endpoint:
    """Enough of RFC 6455 to carry one TCP connection in binary messages."""

    def __init__(self, port: int) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.server.getsockname()[1]}"
        self.target = port
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        with self.server, self.server.accept()[0] as client:
            head = b""
            while b"\r\n\r\n" not in head:
                head += client.recv(4096)
            lines = dict(li.split(": ", 1) for li in head.decode().split("\r\n")[1:] if ": " in li)
            accept = base64.b64encode(hashlib.sha1(
                (lines["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()
            ).digest()).decode()  # fmt: skip
            client.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                           b"Connection: Upgrade\r\nSec-WebSocket-Accept: " + accept.encode()
                           + b"\r\n\r\n")  # fmt: skip
            with socket.create_connection(("127.0.0.1", self.target)) as target:
                back = threading.Thread(target=self.back, args=(client, target), daemon=True)
                back.start()
                self.forth(client.makefile("rb"), target)
                target.shutdown(socket.SHUT_RDWR)
                back.join()

    def back(self, client, target) -> None:
        while data := target.recv(60000):
            size = bytes([len(data)]) if len(data) < 126 else b"\x7e" + struct.pack(">H", len(data))
            try:
                client.sendall(b"\x82" + size + data)
            except OSError:
                return

    def forth(self, client, target) -> None:
        while len(head := client.read(2)) == 2:
            size = head[1] & 127
            if size == 126:
                (size,) = struct.unpack(">H", client.read(2))
            elif size == 127:
                (size,) = struct.unpack(">Q", client.read(8))
            mask = client.read(4)
            body = client.read(size)
            if head[0] & 15 == 8:
                return
            whole = int.from_bytes((mask * (size // 4 + 1))[:size]) ^ int.from_bytes(body)
            target.sendall(whole.to_bytes(size))


def test_ssh_through_a_websocket_endpoint(sshd, monkeypatch):
    relay = Endpoint(sshd.port)
    monkeypatch.setattr(
        "acquisition.reach.tunnel_url", lambda *_, **__: f"ws://{relay.address}/openTunnel"
    )
    dial = endpoint(Session(), "eu-central-1", "eice-1", relay.address, "127.0.0.1", 22)
    with sshd.remote(dial=dial).open() as r, r.stream("head -c 3000000 /dev/zero", "test") as s:
        assert sum(len(c) for c in iter(s.read, b"")) == 3_000_000
    relay.thread.join(10)
    assert not relay.thread.is_alive()


def test_endpoint_that_refuses_is_said():
    dial = endpoint(Session(), "eu-central-1", "eice-1", "127.0.0.1:1", "10.0.0.5", 22)
    with pytest.raises(UnreachableError, match="eice-1 opens no tunnel"):
        dial()


def test_tunnel_gives_what_was_asked_for_and_ends():
    messages = [(2, b"abcdef"), (8, b"")]

    class Socket:
        def recv_data(self):
            return messages.pop(0)

        def close(self, timeout):
            raise OSError("gone")

    tunnel = Tunnel(Socket())
    assert (tunnel.recv(4), tunnel.recv(9), tunnel.recv(9)) == (b"abcd", b"ef", b"")
    open_, _ = tunnel._closed, tunnel.close()
    assert (open_, tunnel._closed) == (False, True)  # paramiko reads it of its socket


# -- an HTTP proxy


@pytest.fixture
def proxy():
    """Answer CONNECT as told; return (address, what was asked for)."""
    made = []

    def start(answer, then=b""):
        server, heard = socket.create_server(("127.0.0.1", 0)), []

        def serve():
            with server, server.accept()[0] as client, contextlib.suppress(OSError):
                heard.append(client.recv(4096))
                client.sendall(answer + then)
                client.recv(1)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        made.append(thread)
        return f"127.0.0.1:{server.getsockname()[1]}", heard

    yield start
    for thread in made:
        thread.join(10)


def test_a_proxy_connects_and_what_follows_is_the_hosts(proxy):
    where, heard = proxy(b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n", b"SSH-2.0-x\r\n")
    with connect("10.0.0.5", 22, where) as s:
        assert s.recv(100) == b"SSH-2.0-x\r\n"
    assert heard[0].startswith(b"CONNECT 10.0.0.5:22 HTTP/1.1\r\n")


@pytest.mark.parametrize(("answer", "error"), [
    (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", ConnectionRefusedError),
    (b"HTTP/1.1 504 Gateway Timeout\r\n\r\n", TimeoutError),
    (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", ConnectionAbortedError),
    (b"\r\n\r\n", ConnectionAbortedError), (b"220 mail ready\r\n\r\n", ConnectionAbortedError),
    (b"x" * 9000, ConnectionAbortedError),
])  # fmt: skip
def test_a_proxy_that_does_not_connect_is_told_apart(proxy, answer, error):
    where, _ = proxy(answer)
    with pytest.raises(error):
        connect("10.0.0.5", 22, where)


def test_a_proxy_that_is_silent_is_a_host_that_does_not_answer(proxy):
    where, _ = proxy(b"")
    with pytest.raises(TimeoutError):
        connect("10.0.0.5", 22, where, 0.1)


def test_what_a_proxy_says_is_said_of_the_host(proxy):
    where, _ = proxy(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
    with pytest.raises(UnreachableError, match="refuses connections to port 22"):
        direct("10.0.0.5", 22, where)()
