# SPDX-License-Identifier: Apache-2.0
"""What the children of `test_container` run: the real reader, gone wrong in one way each."""

from __future__ import annotations

import os
import time

from acquisition.container import reader
from evidence_store.child import Channel

AT = 5 << 20


def main(channel: Channel) -> None:
    globals()[channel.request["as"]](channel)


def _opened(channel: Channel, **more: object) -> None:
    next(channel.requests())
    said = {"size": 24 << 20, "sparse": False, "facts": {}, "hashes": {}, "remarks": []}
    channel.answer(**{**said, **more})
    next(channel.requests())


def dies_at_5_mib(channel: Channel) -> None:
    real = reader._read

    def read(channel, disk, view, offset):
        if offset <= AT < offset + len(view):
            os.kill(os.getpid(), 11)
        real(channel, disk, view, offset)

    reader._read = read
    reader.main(channel)


def dies(channel: Channel) -> None:
    _opened(channel)
    os.kill(os.getpid(), 11)


def hangs(channel: Channel) -> None:
    _opened(channel)
    time.sleep(3600)


def lies(channel: Channel) -> None:
    _opened(channel)
    channel.answer(filled=1 << 40)
    time.sleep(3600)


def garbage(channel: Channel) -> None:
    _opened(channel)
    channel._sock.send(b"{[")
    time.sleep(3600)


def wrong_type(channel: Channel) -> None:
    _opened(channel)
    channel.send("part", name="x")
    time.sleep(3600)


def cuts_the_memory(channel: Channel) -> None:
    _opened(channel)
    try:
        os.ftruncate(channel.request["buffer"][0], 0)
    except OSError as e:
        channel.answer(lost=1, why=str(e.strerror))
    time.sleep(3600)


def talks(channel: Channel) -> None:
    facts = {f"{i}": [["x" * 100] * 50] for i in range(10)} | {"n": 1.5, "big": 1 << 60}
    _opened(channel, facts=facts, hashes={"md5": "z" * 32, "sha1": 7, "other": "00"})


def floods(channel: Channel) -> None:
    _opened(channel, facts={f"{i}": ["x" * 900] * 10 for i in range(12)})


def eats_memory(channel: Channel) -> None:
    _opened(channel)
    channel.kept = bytearray(3 << 30)
