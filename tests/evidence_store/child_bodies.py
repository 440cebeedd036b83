# SPDX-License-Identifier: Apache-2.0
"""What the children of `test_child` run: one `main` that does as the request says."""

from __future__ import annotations

import os
import resource
import socket
import sys
import time
from pathlib import Path

from evidence_store.child import Channel


def main(channel: Channel) -> None:
    globals()[channel.request["do"]](channel)


def read(channel: Channel) -> None:
    with channel.image("E0001") as image:
        for offset, length in channel.request["ranges"]:
            channel.send("data", hex=image.pread(length, offset).hex())


def read_other(channel: Channel) -> None:
    channel.open_object("E0002", "0" * 16)


def use_memory(_channel: Channel) -> None:
    _ = bytearray(1 << 30)


def use_cpu(_channel: Channel) -> None:
    while True:
        pass


def fill_disk(_channel: Channel) -> None:
    with Path("big").open("wb") as f:
        while True:
            f.write(bytes(1 << 20))
            f.flush()


def wait_forever(channel: Channel) -> None:
    channel.send("alive", pid=os.getpid())
    time.sleep(3600)


def spawn_and_wait(channel: Channel) -> None:
    child = os.fork()
    if child == 0:
        time.sleep(3600)
    channel.send("alive", pid=child)
    time.sleep(3600)


def network(channel: Channel) -> None:
    try:
        socket.create_connection(("127.0.0.1", channel.request["port"]), timeout=5)
    except OSError as e:
        channel.send("refused", error=str(e))
    else:
        channel.send("connected")


def limits(channel: Channel) -> None:
    channel.send(
        "limits",
        files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        core=resource.getrlimit(resource.RLIMIT_CORE)[0],
        cwd=str(Path.cwd()),
        path=sys.path,
        environment=sorted(os.environ),
    )


def crash(channel: Channel) -> None:
    channel.send("before")
    os.kill(os.getpid(), 11)


def complain(_channel: Channel) -> None:
    sys.stderr.write("\x1b[2Jbad \u202e news\n")
    raise SystemExit(3)


def malformed(channel: Channel) -> None:
    channel._sock.send(b"{[")
    time.sleep(3600)


def nested(channel: Channel) -> None:
    channel._sock.send(b"[" * 100_000)
    time.sleep(3600)
