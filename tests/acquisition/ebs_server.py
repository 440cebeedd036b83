# SPDX-License-Identifier: Apache-2.0
"""A small EBS direct server that can fail in every way that tests ask for."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

BLOCK = 512 << 10

Blocks = dict[int, bytes]


def block(seed: int) -> bytes:
    """A block that differs for each seed and in every 4 KiB."""
    return b"".join(b"%016x" % (seed * 1000 + n) + bytes(4080) for n in range(BLOCK // 4096))


@dataclass
class Fault:
    """What happens to a request: `kind`, to the first `times` that match, or to all."""

    kind: str
    match: Callable[[str], bool] = lambda path: True
    times: int = 1 << 30
    value: str = ""


@dataclass
class EbsServer:
    """Snapshots by id; faults in order, the first that matches and is not used up strikes."""

    snapshots: dict[str, Blocks] = field(repr=False)
    gib: int = 1
    page_limit: int = 10_000
    empty_pages: int = 0
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    connections: int = 0
    generation: int = 0
    expire_on_list: bool = False
    tls: ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 1 << 20

            def setup(self) -> None:
                super().setup()
                self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with outer.lock:
                    outer.connections += 1

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                outer.answer(self)

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                pass  # clients that hang up are part of the tests

        self.http = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        if self.tls:
            self.http.socket = self.tls.wrap_socket(self.http.socket, server_side=True)
            self.url = self.url.replace("http:", "https:")
        self.thread = threading.Thread(
            target=lambda: self.http.serve_forever(poll_interval=0.01), daemon=True
        )
        self.thread.start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def fail(self, kind: str, part: str = "", times: int = 1 << 30, value: str = "") -> None:
        self.faults.append(Fault(kind, lambda path: part in path, times, value))

    def gets(self) -> list[int]:
        """Indices of the blocks asked for, in order."""
        parts = [urlsplit(path).path.split("/") for path in self.requests]
        return [int(p[4]) for p in parts if len(p) == 5]

    # -- answers ---------------------------------------------------------------------------------

    def token(self, snapshot: str, index: int) -> str:
        return base64.b64encode(f"{snapshot}/{index}/{self.generation}+?&".encode()).decode()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        with self.lock:
            self.requests.append(handler.path)
            self.headers.append(dict(handler.headers.items()))
            fault = next((f for f in self.faults if f.times > 0 and f.match(handler.path)), None)
            if fault:
                fault.times -= 1
        kind, value = (fault.kind, fault.value) if fault else ("", "")
        if kind == "hang up":
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        if kind == "delay":
            time.sleep(float(value))
        if kind == "error":
            self.refuse(handler, *value.split(" ", 2))
            return
        if kind == "text":
            send(handler, 200, value.encode())
            return
        address = urlsplit(handler.path)
        query = {k: v[0] for k, v in parse_qs(address.query).items()}
        parts = address.path.split("/")
        if len(parts) < 4 or parts[2] not in self.snapshots:
            self.refuse(handler, "404", "ResourceNotFoundException", "SNAPSHOT_NOT_FOUND")
        elif len(parts) == 5:
            self.get(handler, parts[2], int(parts[4]), query, kind)
        else:
            self.list(handler, parts[2], query, changed=parts[3] == "changedblocks")

    def refuse(
        self, handler: BaseHTTPRequestHandler, status: str, code: str, reason: str = ""
    ) -> None:
        extra = {"x-amzn-ErrorType": f"{code}:http://internal.amazon.com/"}
        if reason.startswith("after="):
            extra["Retry-After"] = reason.removeprefix("after=")
        if reason.startswith("date="):
            extra["Date"] = reason.removeprefix("date=")
        body = json.dumps({"Message": f"refused: {reason}", "Reason": reason}).encode()
        send(handler, int(status), body, extra)

    def get(
        self, handler: BaseHTTPRequestHandler, snapshot: str, index: int, query: dict[str, str],
        kind: str,
    ) -> None:  # fmt: skip
        body = self.snapshots[snapshot].get(index)
        if body is None or query.get("blockToken") != self.token(snapshot, index):
            self.refuse(handler, "400", "ValidationException", "INVALID_BLOCK_TOKEN")
            return
        headers = {
            "x-amz-Data-Length": str(len(body)), "x-amz-Checksum-Algorithm": "SHA256",
            "x-amz-Checksum": base64.b64encode(hashlib.sha256(body).digest()).decode(),
        }  # fmt: skip
        if kind == "no checksum":
            del headers["x-amz-Checksum"]
        if kind == "wrong length":
            headers["x-amz-Data-Length"] = "512"
        if kind == "corrupt":
            body = body[:5000] + bytes([body[5000] ^ 1]) + body[5001:]
        if kind == "short":
            body = body[:-1]
        if kind == "long":
            body += b"x"
        send(handler, 200, body, headers, cut=kind == "truncate")

    def list(
        self, handler: BaseHTTPRequestHandler, snapshot: str, query: dict[str, str], *,
        changed: bool,
    ) -> None:  # fmt: skip
        if self.expire_on_list:
            with self.lock:
                self.generation += 1
        first = int(query.get("startingBlockIndex", 0))
        empty = self.empty_pages
        if "pageToken" in query:
            first, empty = map(int, query["pageToken"].split("/"))
        ours = self.snapshots[snapshot]
        if changed:
            before = self.snapshots[query["firstSnapshotId"]]
            differ = sorted(
                i for i in {*ours, *before} if ours.get(i) != before.get(i) and i >= first
            )
            listed = [
                {"BlockIndex": i}
                | ({"FirstBlockToken": "x"} if i in before else {})
                | ({"SecondBlockToken": self.token(snapshot, i)} if i in ours else {})
                for i in differ
            ]
        else:
            listed = [
                {"BlockIndex": i, "BlockToken": self.token(snapshot, i)}
                for i in sorted(ours)
                if i >= first
            ]
        limit = 0 if empty else min(self.page_limit, int(query["maxResults"]))
        more, listed = listed[limit:], listed[:limit]
        answer = {
            "ChangedBlocks" if changed else "Blocks": listed, "VolumeSize": self.gib,
            "BlockSize": BLOCK, "ExpiryTime": 1.7e9,
        }  # fmt: skip
        if more:
            answer["NextToken"] = f"{more[0]['BlockIndex']}/{max(0, empty - 1)}"
        send(handler, 200, json.dumps(answer).encode())


def send(
    handler: BaseHTTPRequestHandler, status: int, body: bytes, extra: dict[str, str] | None = None,
    *, cut: bool = False,
) -> None:  # fmt: skip
    extra = extra or {}
    handler.send_response_only(status)
    handler.send_header("Date", extra.pop("Date", handler.date_time_string()))
    handler.send_header("Content-Length", str(len(body)))
    for name, value in extra.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2] if cut else body)
    handler.wfile.flush()
    if cut:
        handler.close_connection = True


def image(blocks: Blocks, indices: Iterable[int]) -> bytes:
    """What a snapshot holds at these blocks."""
    return b"".join(blocks.get(i, bytes(BLOCK)) for i in indices)
