# SPDX-License-Identifier: Apache-2.0
"""The second way to a host's memory: AVML, which the operator supplies, run from tmpfs.

Used only where kcore cannot be read by what the host has, and only if a binary and its SHA-256 were
given. The binary is compared here and again on the host, put into tmpfs (never on a disk), run, and
removed; each of these is in the footprint. What it writes is taken as it comes.

Source: AVML README and src/bin/avml.rs (output to a path, LiME without --compress); tmpfs(5).
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from acquisition.closing import Closing
from acquisition.dump import recognise
from acquisition.errors import AcquisitionError
from acquisition.kcore import LIME_HEADER, PAGE, Piece, Plan, parse_iomem
from acquisition.remote import LostError, Output, Remote
from acquisition.verdict import Scan, Seen
from evidence_store.model import clean

if TYPE_CHECKING:
    from evidence_store.item import SegmentFile

_TMPFS = "/dev/shm"  # noqa: S108 (it is tmpfs that is wanted, and asked for)
_MOST_BYTES = 64 << 20
_SCAN_BYTES = 16 << 20


class AvmlError(AcquisitionError):
    """AVML cannot be used on this host, or is not what was pinned."""


@dataclass(frozen=True)
class Avml:
    """The operator's binary, compared with its digest."""

    body: bytes
    sha256: str

    @classmethod
    def load(cls, path: Path, sha256: str) -> Avml:
        """Read it and compare. Raises: AvmlError."""
        try:
            body = path.read_bytes()
        except OSError as e:
            raise AvmlError(f"cannot read {clean(str(path))}: {e.strerror}") from e
        found = hashlib.sha256(body).hexdigest()
        if found != sha256.lower():
            raise AvmlError(
                f"{clean(str(path))} has SHA-256 {found}, pinned is {clean(sha256, 64)}",
                hint="nothing was sent; compare it with the release it should be",
            )
        if len(body) > _MOST_BYTES:
            raise AvmlError(f"{clean(str(path))} has {len(body)} bytes: too many for tmpfs")
        return cls(body, found)


class AvmlCapture(Closing):
    """What AVML writes, as a stream. `open` puts it on the host; `close` removes it in any case."""

    identity = None
    method = "AVML from tmpfs on the running host, its output over SSH; not the state of one moment"
    digests: tuple[str, ...] = ()

    def __init__(self, remote: Remote, avml: Avml, text: str, about: Mapping[str, JsonValue]):
        self.text = text
        self._remote, self._avml = remote, avml
        self._path = f"{_TMPFS}/.impound-{secrets.token_hex(8)}"
        self._stack = ExitStack()
        self._output: Output | None = None
        self._put = False
        self.lost: list[str] = []
        self.facts: dict[str, JsonValue] = {
            "type": "linux memory", "format": "as avml writes it", **about,
            "avml_sha256": avml.sha256, "avml_path": self._path,
        }  # fmt: skip

    def open(self) -> None:
        """Put it into tmpfs, compare it there, start it. Raises: AvmlError, LostError."""
        remote, path = self._remote, self._path
        remote.need_root()
        kind = remote.run(f"stat -f -c %T {_TMPFS}", "is it tmpfs").out.strip()
        if kind != b"tmpfs":
            raise AvmlError(f"{_TMPFS} of the host is no tmpfs: AVML would touch a disk")
        self._put = True
        ran = remote.run(f"umask 077; cat > {path} && chmod 700 {path} && sha256sum {path}",
                         "AVML into tmpfs", stdin=self._avml.body)  # fmt: skip
        if ran.out[:64].decode("ascii", "replace") != self._avml.sha256:
            raise AvmlError(
                f"AVML did not arrive on the host as it was sent: {clean(ran.err, 200)}"
            )
        self._output = self._stack.enter_context(
            remote.stream(f"{path} /dev/stdout", "memory by AVML", root=True)
        )

    def readinto(self, view: memoryview) -> int:
        """See `StreamSource.readinto`."""
        assert self._output is not None  # noqa: S101
        try:
            data = self._output.read(len(view))
        except LostError as e:
            self.lost.append(str(e))
            raise OSError(str(e)) from e
        view[: len(data)] = data
        return len(data)

    def conclude(self, _content: Mapping[str, str] | None) -> list[str]:
        """See `Concluding`: an exit status is kept, the verdict does not rest on it."""
        said = self._output
        if said is not None and said.code != 0:
            self.lost.append(f"AVML ended with {said.code}: {clean(said.err, 200)}")
        return list(self.lost)

    def changes(self) -> list[str]:
        """See `Source.changes`."""
        return []

    def close(self) -> None:
        """Remove it from the host. Raises: AvmlError if it is still there, or nobody knows."""
        self._stack.close()
        if not self._put:
            return
        self._put = False
        with contextlib.suppress(LostError):
            ran = self._remote.run(f"rm -f {self._path}; test -e {self._path} || echo gone",
                                   "AVML out of tmpfs")  # fmt: skip
            if ran.out == b"gone\n":
                return
        raise AvmlError(
            f"AVML may still be at {self._path} of the host",
            hint="it is in tmpfs and goes with a reboot; remove it by hand",
        )


def seen(
    item: SegmentFile, size: int, iomem: str, banner: str, lost: tuple[str, ...],
    say: Callable[[str], None] = lambda _line: None,
) -> Seen:  # fmt: skip
    """Return what is observed of a capture that AVML wrote: its ranges, zeros and banner."""

    def read(offset: int, length: int) -> bytes:
        item.seek(offset)
        return item.read(length)

    dump = recognise(read, size)
    if dump.format != "lime":
        say(f"AVML wrote {dump.format}: only its ranges were looked at")
    pieces = [Piece(a, b + 1, 0) for a, b in dump.ranges]
    scan = Scan(Plan(tuple(pieces)), banner)
    at = 0
    for piece in pieces if dump.format == "lime" else []:
        at += LIME_HEADER.size
        for start in range(0, piece.size, _SCAN_BYTES):
            body = read(at + start, min(_SCAN_BYTES, piece.size - start))
            if body:
                scan.pages(memoryview(body), piece.start + start)
        at += piece.size
    got = scan.read if dump.format == "lime" else sum(p.size for p in pieces)
    ram = sum(b - a for a, b in parse_iomem(iomem)[0]) or got
    if 0 < ram - got <= PAGE * len(pieces):
        ram = got  # AVML leaves out the last bytes of each range
    return Seen(
        ram, got, scan.zero, lost=(*dump.problems, *lost),
        banner=scan.found if dump.format == "lime" else None,
    )  # fmt: skip
