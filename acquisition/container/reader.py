# SPDX-License-Identifier: Apache-2.0
"""The limited child that reads one container: opens it, then fills shared memory as asked."""

from __future__ import annotations

import json
import mmap
import struct
import zlib
from typing import Any

from acquisition.container.disk import DamagedError, Disk, File, RefusedError
from acquisition.container.ewf import Ewf
from acquisition.container.ewf2 import Ewf2
from acquisition.container.qcow import Qcow
from acquisition.container.vhd import Vhd, Vhdx
from acquisition.container.vmdk import Descriptor, Extent, Vmdk
from evidence_store.child import Channel

_BROKEN = (DamagedError, struct.error, zlib.error, ValueError, IndexError, OverflowError)


def main(channel: Channel) -> None:
    """Answer `open` once, then `read` and `next`, until the parent has enough."""
    fd, room = channel.request["buffer"]
    disk: Disk | None = None
    with mmap.mmap(fd, room) as shared, memoryview(shared) as view:
        for request in channel.requests():
            if request["do"] == "open":
                disk = _open(channel, json.loads(shared[: request["length"]]))
            elif disk is None:
                return
            elif request["do"] == "next":
                channel.answer(offset=disk.next_data(request["offset"]))
            else:
                _read(channel, disk, view[: request["length"]], request["offset"])


def _open(channel: Channel, request: dict[str, Any]) -> Disk | None:
    try:
        disk = _disk(request)
    except RefusedError as e:
        channel.answer(refused=str(e), hint=e.hint)
    except _BROKEN as e:
        channel.answer(damaged=str(e) or type(e).__name__)
    else:
        channel.answer(
            size=disk.size, sparse=disk.sparse, facts=disk.facts, hashes=disk.hashes,
            remarks=disk.remarks[:100],
        )  # fmt: skip
        return disk
    return None


def _disk(request: dict[str, Any]) -> Disk:
    files = [File(*fields) for fields in request["files"]]
    match request["format"]:
        case "E01":
            return Ewf(files)
        case "Ex01":
            return Ewf2(files)
        case "qcow2":
            return Qcow(files[0])
        case "VHD":
            return Vhd(files[0])
        case "VHDX":
            return Vhdx(files[0])
        case "VMDK":
            extents = [Extent(size, kind, "", at) for size, kind, at, _ in request["extents"]]
            parts = [None if i is None else files[i] for *_, i in request["extents"]]
            return Vmdk(Descriptor(extents, request["settings"]), parts)
    raise RefusedError("it is of no known format")


def _read(channel: Channel, disk: Disk, view: memoryview, offset: int) -> None:
    try:
        channel.answer(filled=disk.fill(view, offset))
    except DamagedError as e:
        channel.answer(lost=e.length, why=str(e))
