# SPDX-License-Identifier: Apache-2.0
"""EBS direct for benchmarks: one sparse file as a snapshot, with latency and a rate limit.

    python benchmarks/ebs_server.py IMAGE [--latency 0.02] [--rate 1000] [--burst 1000]

Prints one line of JSON, {"endpoint", "snapshot", "blocks", "size"}, when it takes requests on
127.0.0.1, and ends with SIGTERM or SIGINT. Signatures are not looked at. Blocks, pages, tokens and
answers are those of the AWS stand-in (pipeline.gameday.aws.blocks); moto is not in the way, so that
what is measured is the client, or the latency asked for: never EBS.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import uvicorn

from pipeline.gameday.aws.blocks import (
    GIB,
    BlockError,
    FileContent,
    Readable,
    Tokens,
    get_block,
    list_blocks,
)

SNAPSHOT = "snap-0123456789abcdef0"
_PATH = re.compile(r"/snapshots/(?P<snapshot>[^/]+)/blocks(?:/(?P<index>[^/]+))?")
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Bucket:
    """A token bucket: `rate` requests a second, `burst` at once; 0: no limit."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate, self.burst, self.left, self.at = rate, burst, burst, time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        self.left = min(self.burst, self.left + (now - self.at) * self.rate)
        self.at = now
        if not self.rate:
            return True
        if self.left < 1:
            return False
        self.left -= 1
        return True


class Application:
    """ASGI: ListSnapshotBlocks and GetSnapshotBlock of one image."""

    def __init__(self, image: Path, latency: float = 0.02, rate: float = 0, burst: float = 0):
        content = FileContent(image)
        self.readable = Readable(SNAPSHOT, content, max(1, -(-content.size // GIB)))
        self.latency, self.bucket = latency, Bucket(rate, burst or rate)
        self.tokens = Tokens()

    async def __call__(self, scope: dict[str, Any], _receive: Any, send: Send) -> None:
        if scope["type"] != "http":
            return
        await asyncio.sleep(self.latency)
        try:
            status, (headers, body) = 200, self.answer(scope)
        except BlockError as e:
            status = e.status
            headers = {"content-type": "application/json", "x-amzn-errortype": e.code}
            body = json.dumps({"Message": e.message, "Reason": e.reason}).encode()
        headers["content-length"] = str(len(body))
        encoded = [(k.lower().encode(), v.encode()) for k, v in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": encoded})
        await send({"type": "http.response.body", "body": body})

    def answer(self, scope: dict[str, Any]) -> tuple[dict[str, str], bytes]:
        found = _PATH.fullmatch(scope["path"])
        if found is None or found["snapshot"] != SNAPSHOT:
            raise BlockError(
                404, "ResourceNotFoundException", "no such snapshot", "SNAPSHOT_NOT_FOUND"
            )
        if not self.bucket.take():
            raise BlockError(
                400, "RequestThrottledException", "slow down", "RESOURCE_LEVEL_THROTTLE"
            )
        query = dict(parse_qsl(scope["query_string"].decode()))
        now = time.time()
        if found["index"] is not None:
            token = query.get("blockToken", "")
            return get_block(self.tokens, now, self.readable, found["index"], token)
        answer = list_blocks(self.tokens, now, query, self.readable)
        return {"content-type": "application/json"}, json.dumps(answer).encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", type=Path)
    parser.add_argument("--latency", type=float, default=0.02, help="seconds before each answer")
    parser.add_argument("--rate", type=float, default=0, help="requests a second; 0: no limit")
    parser.add_argument("--burst", type=float, default=0, help="requests at once (default: rate)")
    chosen = parser.parse_args()
    application = Application(chosen.image, chosen.latency, chosen.rate, chosen.burst)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(
        application, log_level="error", access_log=False, lifespan="off",
    ))  # fmt: skip
    content = application.readable.content
    print(json.dumps({
        "endpoint": f"http://127.0.0.1:{listener.getsockname()[1]}", "snapshot": SNAPSHOT,
        "blocks": content.count(), "size": application.readable.size * GIB,
    }), flush=True)  # fmt: skip
    server.run(sockets=[listener])


if __name__ == "__main__":
    main()
