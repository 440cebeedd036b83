# SPDX-License-Identifier: Apache-2.0
"""A network to the in-process S3 that fails by a seed: what arrives, what is answered, what breaks.

It stands where urllib3's connection pool stands, so that everything above it is the real thing:
botocore signs, retries, translates errors and checks digests; urllib3 reads the bodies. What fails
depends on the seed, the operation, the key and how often that was asked, not on threads.

A listing that arrives whole and says something else is not among the faults: S3 gives no digest of
it, TLS is what protects it.
"""

from __future__ import annotations

import http.client
import io
import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

import urllib3.exceptions
from botocore.awsrequest import AWSPreparedRequest
from moto.core.models import botocore_stubber
from urllib3 import HTTPHeaderDict, HTTPResponse

_XML = (
    '<?xml version="1.0" encoding="UTF-8"?>'
    "<Error><Code>{}</Code><Message>no reason</Message></Error>"
)
_HTML = "<html><body><h1>502 Bad Gateway</h1></body></html>"
_ERRORS = {
    "InternalError": 500, "ServiceUnavailable": 503, "SlowDown": 503, "RequestTimeout": 400,
    "ConditionalRequestConflict": 409, "OperationAborted": 409, "AccessDenied": 403,
}  # fmt: skip

# What can happen to a call. "after": it has its effect, then this.
BEFORE = ["refused", "connect timeout", "reset", "hung up", "read timeout", "gateway", "SlowDown",
          "InternalError", "ServiceUnavailable"]  # fmt: skip
FAULTS = {
    "PUT": [*BEFORE, "ConditionalRequestConflict", "OperationAborted", "RequestTimeout",
            "AccessDenied", "corrupt request", "cut request", "late", "after: reset",
            "after: hung up", "after: read timeout", "after: gateway", "after: InternalError",
            "after: reset", "after: read timeout"],
    "GET": [*BEFORE, "RequestTimeout", "AccessDenied", "truncated", "short", "flipped", "flipped",
            "body reset", "body timeout", "body ends"],
    "HEAD": [*BEFORE, "RequestTimeout", "AccessDenied"],
    "LIST": [*BEFORE, "AccessDenied", "truncated", "flipped", "empty", "body reset",
             "body timeout"],
    "TAGS": [*BEFORE, "truncated", "flipped", "empty", "body reset"],
}  # fmt: skip


@dataclass
class Network:
    """The faults of one seed, or those of a script.

    Attributes:
        seed: which faults.
        rate: share of calls that fail.
        script: operation -> its faults, one for each call; "" for none.
        happened: fault -> how often it did.
    """

    seed: str = ""
    rate: float = 0.0
    script: dict[str, list[str]] = field(default_factory=dict)
    happened: Counter[str] = field(default_factory=Counter)
    _asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    _late: list[tuple[int, AWSPreparedRequest]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def attach(self, client: Any) -> None:
        """Put it below a client that was made while the in-process stand-in is up."""
        client.meta.events.unregister("before-send", botocore_stubber)
        client._endpoint.http_session._get_connection_manager = lambda *_: self

    def connection_from_url(self, url: str) -> _Connection:
        return _Connection(self, url)

    def arrive_late(self, *, all_of_it: bool = False) -> None:
        """Let PUTs that were given up for lost arrive now."""
        with self._lock:
            due = [r for n, r in self._late if n <= 0 or all_of_it]
            self._late = [(n - 1, r) for n, r in self._late if n > 0 and not all_of_it]
        for request in due:
            _do(request)

    def call(self, request: AWSPreparedRequest) -> HTTPResponse:
        parts = urlsplit(request.url)
        what = {"versions": "LIST", "tagging": "TAGS"}.get(
            parts.query.partition("&")[0].partition("=")[0], request.method
        )
        self.arrive_late()
        with self._lock:
            self._asked[what, parts.path] += 1
            number = self._asked[what, parts.path]
        rng = random.Random(f"{self.seed} {what} {unquote(parts.path)} {number}")
        fault = rng.choice(FAULTS[what]) if rng.random() < self.rate and what in FAULTS else ""
        with self._lock:
            if self.script.get(what):
                fault = self.script[what].pop(0)
            self.happened[f"{what} {fault}"] += bool(fault)
        return self._fail(fault, request, rng) if fault else _answer(*_do(request))

    def _fail(self, fault: str, request: AWSPreparedRequest, rng: random.Random) -> HTTPResponse:
        if fault == "late":
            with self._lock:
                self._late.append((rng.randrange(6), request_of(request, _bytes(request))))
            fault = "read timeout"
        elif fault == "cut request":
            request.body.read(rng.randrange(1 + int(request.headers["Content-Length"]) // 2))
            fault = "reset"
        elif fault == "corrupt request":
            return _answer(*_do(request_of(request, _flip(_bytes(request), rng))))
        elif fault.startswith("after: "):
            fault = fault.removeprefix("after: ")
            _do(request)
        if fault in _BREAKS:
            raise _BREAKS[fault](request)
        if fault == "gateway":
            return _answer(502, {"content-type": "text/html"}, _HTML.encode(), request.method)
        if fault in _ERRORS:
            headers = {"content-type": "application/xml"}
            return _answer(_ERRORS[fault], headers, _XML.format(fault).encode(), request.method)
        return _damaged(fault, *_do(request), rng)


class _Connection:
    def __init__(self, network: Network, url: str) -> None:
        self._network = network
        self._url = url

    def urlopen(self, *, method: str, body: Any, headers: Any, **_: Any) -> HTTPResponse:
        return self._network.call(AWSPreparedRequest(method, self._url, headers, body, False))


_BREAKS: dict[str, Callable[[AWSPreparedRequest], Exception]] = {
    "refused": lambda r: urllib3.exceptions.NewConnectionError(_pool(r), "Connection refused"),
    "connect timeout": lambda r: urllib3.exceptions.ConnectTimeoutError(_pool(r), "timed out"),
    "read timeout": lambda r: urllib3.exceptions.ReadTimeoutError(_pool(r), r.url, "timed out"),
    "reset": lambda _: urllib3.exceptions.ProtocolError(
        "Connection aborted.", ConnectionResetError(104, "Connection reset by peer")),
    "hung up": lambda _: urllib3.exceptions.ProtocolError(
        "Connection aborted.", http.client.RemoteDisconnected("closed without response")),
}  # fmt: skip


def _pool(request: AWSPreparedRequest) -> Any:
    return urllib3.HTTPConnectionPool(urlsplit(request.url).hostname or "s3")


def request_of(request: AWSPreparedRequest, body: bytes) -> AWSPreparedRequest:
    """The same request with another body."""
    return AWSPreparedRequest(request.method, request.url, request.headers, body, False)


def _bytes(request: AWSPreparedRequest) -> bytes:
    body = request.body
    whole: bytes = body.read() if hasattr(body, "read") else bytes(body or b"")
    return whole


def _flip(body: bytes, rng: random.Random) -> bytes:
    out = bytearray(body or b"\0")
    out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def _do(request: AWSPreparedRequest) -> tuple[int, dict[str, str], bytes, str]:
    found = botocore_stubber.process_request(request)
    assert found is not None
    status, headers, body = found
    return status, headers, body.encode() if isinstance(body, str) else body, request.method


def _answer(
    status: int, headers: dict[str, str], body: bytes | io.RawIOBase, method: str = "GET"
) -> HTTPResponse:
    if isinstance(body, bytes):
        body = io.BytesIO(b"" if method == "HEAD" else body)  # type: ignore[assignment]
    return HTTPResponse(
        body, HTTPHeaderDict({k: str(v) for k, v in headers.items()}), status,
        preload_content=False, decode_content=False, enforce_content_length=False,
        request_method=method,
    )  # fmt: skip


class _Breaking(io.RawIOBase):
    """Some bytes, then an error."""

    def __init__(self, body: bytes, error: Exception) -> None:
        self._body = io.BytesIO(body)
        self._error = error

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        n = self._body.readinto(buffer)
        if n == 0:
            raise self._error
        return n


def _damaged(
    fault: str, status: int, headers: dict[str, str], body: bytes, method: str,
    rng: random.Random,
) -> HTTPResponse:  # fmt: skip
    headers = {k.lower(): v for k, v in headers.items()}
    half = body[: rng.randrange(len(body))] if body else b""
    if fault == "truncated":
        return _answer(status, headers, half)
    if fault == "short":
        return _answer(status, headers | {"content-length": str(len(half))}, half)
    if fault == "empty":
        return _answer(status, headers | {"content-length": "0"}, b"")
    if fault == "flipped":
        if body.startswith(b"<"):  # a listing: see the module's docstring
            at = rng.randrange(len(body))
            return _answer(status, headers, body[:at] + b"\0" + body[at + 1 :])
        return _answer(status, headers, _flip(body, rng))
    error = {
        "body reset": ConnectionResetError(104, "Connection reset by peer"),
        "body timeout": TimeoutError("timed out"),
        "body ends": http.client.IncompleteRead(half, len(body) - len(half)),
    }[fault]
    return _answer(status, headers, _Breaking(half, error))
