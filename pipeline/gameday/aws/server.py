# SPDX-License-Identifier: Apache-2.0
"""The stand-in as a process: moto's server on 127.0.0.1, with the extension and a control endpoint.

Started by `stand.ServerProcess`, never by hand. It reads a secret from the first line of stdin,
prints one line of JSON, {"endpoint": URL}, when it takes requests, and ends when its stdin ends:
with its parent, however that one dies.

Whoever may register a function runs code here. So the control endpoint wants the secret in the
header `X-Impound-Secret`, and nothing is answered to what a browser sends, or by another name than
127.0.0.1 (DNS rebinding).

    POST   /impound-sim/faults      add one fault, or a list of them (fields of faults.Fault)
    GET    /impound-sim/faults      {"rules": […], "hits": […]}
    DELETE /impound-sim/faults      forget them
    GET    /impound-sim/flows       what `network.Network.flows` returns
    GET    /impound-sim/calls       [{"service", "operation", "account", "resources"}, …]
    POST   /impound-sim/functions   register a function (fields of functions.Function)
    POST   /impound-sim/storage     what `perform` takes; contents as a path, or blocks in Base64
    POST   /impound-sim/reset       empty accounts, no faults, no functions
"""

from __future__ import annotations

import base64
import hmac
import json
import os
import signal
import socket
import struct
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from types import FrameType
from typing import Any

from moto.moto_api._internal.models import moto_api_backend
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

from pipeline.gameday.aws import call, functions
from pipeline.gameday.aws.conditions import conditions
from pipeline.gameday.aws.faults import Fault

CONTROL = "/impound-sim/"


def reset() -> None:
    """Forget everything: accounts, faults, calls, functions."""
    moto_api_backend.reset()
    call.faults.clear()
    call.calls.clear()
    functions.clear()
    from pipeline.gameday.aws import backup, ended, landing, scaling, sessions, trail, volumes
    from pipeline.gameday.aws.network import network

    conditions.reset()
    network.reset()
    for extension in (scaling, sessions, volumes, trail, ended, backup, landing):
        extension.reset()


def perform(document: dict[str, Any]) -> dict[str, Any]:
    """Change how the stand-in behaves, what its volumes hold, or who is where in its network.

    Args:
        document: {"settings": fields of conditions.Settings}, {"advance": seconds},
            {"fill": volume, "content": path or blocks}, {"write": volume, "content": blocks},
            {"snapshot": id, "state", "message"}, {"attach": instance, "ports", "keys"},
            {"place": address, "ports"}, {"vantage": address, "via"}.

    Returns: {"port": …} for a vantage, otherwise nothing.

    Raises: ValueError.
    """
    from pipeline.gameday.aws import snapshots, volumes
    from pipeline.gameday.aws.network import network

    what, subject = next(iter(document.items()))
    try:
        if what == "settings":
            conditions.change(subject)
        elif what == "advance":
            conditions.advance(subject)
        elif what == "fill":
            volumes.fill(subject, volumes.content_of(document["content"]))
        elif what == "write":
            volumes.write(subject, document["content"])
        elif what == "snapshot":
            snapshots.anywhere(subject).become(document["state"], document["message"])
        elif what in ("attach", "place"):
            ports = {int(k): int(v) for k, v in document["ports"].items()}
            if what == "place":
                network.place(subject, ports)
            else:
                network.attach(subject, ports, document.get("keys", ""))
        elif what == "vantage":
            return {"port": network.vantage(subject, document.get("via", ""))}
        else:
            raise ValueError(f"no such thing to do: {what}")
    except (KeyError, TypeError) as e:
        raise ValueError(str(e.args[0])) from e
    return {}


class Application:
    """The WSGI application: control endpoint, moto, lost answers."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()
        self._moto = DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Serve one request."""
        refusal = self._refusal(environ)
        if refusal:
            return _json({"error": refusal}, 403)(environ, start_response)
        if environ["PATH_INFO"].startswith(CONTROL):
            return _control(Request(environ))(environ, start_response)
        damage: list[str] = []
        environ[call.DAMAGE] = damage.append
        answer: Iterable[bytes] = self._moto(environ, start_response)
        return _damaged(environ, answer, damage[0]) if damage else answer

    def _refusal(self, environ: dict[str, Any]) -> str:
        path = environ["PATH_INFO"]
        if "HTTP_ORIGIN" in environ:
            return "not for browsers"
        if environ.get("HTTP_HOST") != f"127.0.0.1:{environ['SERVER_PORT']}":
            return "not by this name"
        if path.startswith("/moto-api"):
            return "moto's own interface is closed"
        given = environ.get("HTTP_X_IMPOUND_SECRET", "").encode()
        if path.startswith(CONTROL) and not hmac.compare_digest(given, self._secret):
            return "the secret is wrong"
        return ""


def _damaged(environ: dict[str, Any], answer: Iterable[bytes], kind: str) -> Iterator[bytes]:
    """Half of the body, or not even a status line; then the connection is reset."""
    if kind == "truncate":
        body = b"".join(answer)
        yield body[: len(body) // 2]
    connection: socket.socket = environ["werkzeug.socket"]
    if kind == "lost-answer":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.shutdown(socket.SHUT_RDWR)
    raise ConnectionResetError


def _control(request: Request) -> Response:
    what = (request.method, request.path.removeprefix(CONTROL))
    try:
        given = json.loads(request.get_data() or b"null")
        if what == ("POST", "faults"):
            found = given if isinstance(given, list) else [given]
            call.faults.add(*(Fault.from_document(f) for f in found))
        elif what == ("DELETE", "faults"):
            call.faults.clear()
        elif what == ("POST", "functions"):
            lists = {k: tuple(map(tuple, v)) if k == "environment" else tuple(v)
                     for k, v in given.items() if isinstance(v, list)}  # fmt: skip
            functions.register(functions.Function(**(given | lists)))
        elif what == ("POST", "storage"):
            if isinstance(blocks := given.get("content"), dict):
                given["content"] = {int(i): base64.b64decode(b) for i, b in blocks.items()}
            return _json(perform(given))
        elif what == ("POST", "reset"):
            reset()
        elif what == ("GET", "faults"):
            return _json({
                "rules": [f.document() for f in call.faults.rules()],
                "hits": [asdict(h) for h in call.faults.hits()],
            })  # fmt: skip
        elif what == ("GET", "flows"):
            from pipeline.gameday.aws.network import network

            return _json(network.flows())
        elif what == ("GET", "calls"):
            return _json([asdict(c) for c in list(call.calls)])
        else:
            return _json({"error": f"no such control: {' '.join(what)}"}, 404)
    except (ValueError, TypeError, AttributeError) as e:
        return _json({"error": str(e)}, 400)
    return _json({})


def _json(document: Any, status: int = 200) -> Response:
    return Response(json.dumps(document), status, content_type="application/json")


class _Handler(MotoRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002
        """Say nothing; `calls` knows what was asked."""


def main() -> None:
    """Serve until stdin ends or SIGTERM."""
    secret = sys.stdin.readline().strip()
    if not secret:
        raise SystemExit("no secret on stdin")
    call.install()
    server = make_server(
        "127.0.0.1", 0, Application(secret), threaded=True, request_handler=_Handler
    )  # fmt: skip
    functions.endpoint = f"http://127.0.0.1:{server.server_address[1]}"

    def end(_signal: int = 0, _frame: FrameType | None = None) -> None:
        functions.stop_children()
        os._exit(0)

    def with_parent() -> None:
        sys.stdin.buffer.read()
        end()

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the parent too
    signal.signal(signal.SIGTERM, end)
    threading.Thread(target=with_parent, daemon=True).start()
    print(json.dumps({"endpoint": functions.endpoint}), flush=True)  # noqa: T201
    server.serve_forever()


if __name__ == "__main__":
    main()
