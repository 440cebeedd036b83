# SPDX-License-Identifier: Apache-2.0
"""RAM of a running Linux host, pulled over SSH: nothing is put on it, nothing is written there.

    capture = KcoreCapture(remote, look(remote), …)     a source: `case.ingest("memory", capture)`
    verdict.judge(capture.seen)                          complete, partial or unusable

Ways, in order: `dd` of /proc/kcore through a compressor (the measured link decides which), then
read-only SFTP with reads of our own in flight where there is no usable dd. Streams are pieces of at
most 256 MiB; what came of a broken one stands, the next begins where it broke. A page that cannot
be read is an unreadable range of the item, never zeros.

A capture is not of one moment: pages change while it runs. Two captures of one host differ; so a
segment that is stored is not read again when a capture goes on, as long as the host did not reboot.

Source: Linux fs/proc/kcore.c, Documentation/admin-guide/kernel-parameters (lockdown); dd(1) of GNU
coreutils and busybox; docs/design.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import JsonValue

from acquisition.closing import Closing
from acquisition.errors import AcquisitionError
from acquisition.kcore import HEAD_BYTES, PAGE, KcoreError, Plan, Range, parse_head, plan
from acquisition.reach import UnreachableError
from acquisition.remote import LostError, Remote, StalledError, shell
from acquisition.streams import KCORE, BrokenError, Sftp, Stream, Way, dd
from acquisition.verdict import Scan, Seen
from evidence_store.backend import Runs
from evidence_store.digest import Range as ImageRange
from evidence_store.item import Gap
from evidence_store.model import clean
from evidence_store.transfer.image import join_gaps

SEGMENT_BYTES = 32 << 20  # of the item: a capture has two or three in memory, and little else
PIECE_BYTES = 256 << 20
PROBE_BYTES = 16 << 20  # the first piece: raw, it measures the link
FAST_BYTES_PER_SECOND = 150_000_000  # above it compressing costs more than it saves
SLOW_BYTES_PER_SECOND = 30_000_000  # below it even gzip pays
PATIENCE_SECONDS = 120.0

_LONGEST_SKIP = 64 << 20
_FINE_BYTES = 2 << 20  # read page by page, once a larger block failed
_MOST_CONNECTIONS = 500
_TURN_SECONDS = 0.5


class LockedDownError(AcquisitionError):
    """The kernel gives nobody its memory (lockdown=confidentiality)."""


# -- before the capture ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """What a host says before its memory is read.

    Attributes:
        plan: which ranges stand where.
        banner: first line of /proc/version; it must be found in the memory.
        boot_id: of this boot.
        tools: which of dd and the compressors are there.
        head, iomem: as they were read.
    """

    plan: Plan
    banner: str
    boot_id: str
    tools: frozenset[str]
    head: bytes = field(repr=False, default=b"")
    iomem: bytes = field(repr=False, default=b"")
    facts: Mapping[str, JsonValue] = field(default_factory=dict)


def look(remote: Remote) -> Look:
    """Look at a host and plan its capture. Some small commands.

    Raises: SudoError, LockedDownError, KcoreError, LostError.
    """
    remote.need_root()
    said = remote.run(
        "cat /proc/version /proc/sys/kernel/random/boot_id; "
        "for t in dd lz4 zstd gzip; do command -v $t >/dev/null 2>&1 && echo tool $t; done; "
        "echo kptr $(cat /proc/sys/kernel/kptr_restrict); "
        "cat /sys/kernel/security/lockdown 2>/dev/null; true",
        "kernel, boot, tools, size of memory",
    ).out.decode("utf-8", "replace")  # fmt: skip
    lines = said.split("\n")
    banner, boot = lines[0], lines[1] if len(lines) > 1 else ""
    tools = frozenset(line[5:] for line in lines if line.startswith("tool "))
    kptr = next((line[5:] for line in lines if line.startswith("kptr ")), "")
    lockdown = next((line for line in lines if "[" in line and "none" in line), "")
    head = _head(remote, tools, lockdown)
    iomem = remote.run("cat /proc/iomem", "which ranges are RAM", root=True).out
    made = plan(parse_head(head), iomem.decode("ascii", "replace"))
    return Look(
        made, clean(banner, 400), clean(boot, 64), tools, head, iomem,
        {"kernel": clean(banner, 400), "boot_id": clean(boot, 64), "lockdown": clean(lockdown, 80),
         "tools": [*sorted(tools)], "machine": made.machine, "paging_levels": made.levels,
         "kptr_restrict": clean(kptr, 8)},
    )  # fmt: skip


def _head(remote: Remote, tools: Iterable[str], lockdown: str) -> bytes:
    command = f"head -c {HEAD_BYTES} {KCORE}"
    if "dd" in tools:
        command = f"dd if={KCORE} bs={PAGE} count={HEAD_BYTES // PAGE} status=none"
    ran = remote.run(command, "head of kcore", root=True, limit=HEAD_BYTES)
    if ran.out:
        return ran.out
    said = clean(ran.err, 200)
    if "not permitted" in said or "[confidentiality]" in lockdown:
        raise LockedDownError(
            f"the kernel gives nobody its memory ({said or lockdown}): lockdown=confidentiality",
            hint="memory is out of reach; disk, swap and live facts are what is left",
        )
    raise KcoreError(
        f"/proc/kcore cannot be read: {said or f'exit {ran.code}'}",
        hint="a container or a kernel without CONFIG_PROCKCORE; the next way is --avml",
    )


def choose(tools: Iterable[str], rate: float) -> Way:
    """Return how pieces are sent, from what the host has and bytes per second of the link. Pure.

    >>> choose({"dd", "lz4"}, 20e6), choose({"dd", "gzip"}, 90e6), choose({"dd", "lz4"}, 400e6)
    ('lz4', 'raw', 'raw')
    """
    have = set(tools)
    if "dd" not in have:
        return "sftp"
    if rate >= FAST_BYTES_PER_SECOND:
        return "raw"
    if "lz4" in have:
        return "lz4"
    if "zstd" in have:
        return "zstd"
    return "gzip" if "gzip" in have and rate < SLOW_BYTES_PER_SECOND else "raw"


# -- the source ------------------------------------------------------------------------------------


@dataclass
class KcoreCapture(Closing):
    """The memory of one boot of one host, as a LiME image that is read in order.

    Attributes:
        remote: an open connection.
        look: what the host said.
        text: what people call it.
        way: None: the first piece measures the link.
        patience_s: how long a lost connection is opened again, until the rest is given up.
        gave_up: why the rest was not read, or "".
        log: one line a stream: when, which range, how, how many bytes.
    """

    remote: Remote
    look: Look
    text: str
    about: Mapping[str, JsonValue] = field(default_factory=dict)
    way: Way | None = None
    patience_s: float = PATIENCE_SECONDS
    say: Callable[[str], None] = lambda _line: None
    clock: Callable[[], float] = time.monotonic
    piece_bytes: int = PIECE_BYTES
    gave_up: str = ""
    log: list[dict[str, JsonValue]] = field(default_factory=list)
    immutable: bool = True  # what is stored stands: a page that was captured is not captured again

    def __post_init__(self) -> None:
        self._layout = self.look.plan.image
        self.size = self._layout.size
        self.scan = Scan(self.look.plan, self.look.banner)
        self._turn = threading.Condition()
        self._piece: Stream | None = None
        self._sftp: Sftp | None = None
        self._stalls = 0
        self._again = (0, 0)  # same and sampled, once read again
        self._fine_until = 0
        self._next = 0
        self.lost: list[str] = []
        self.scanned: set[int] = set()  # offsets of the image that `fill` saw
        self.identity: Mapping[str, JsonValue] = {
            "host_key": self.remote.host_key, "boot_id": self.look.boot_id,
            "layout": self.look.plan.digest, "size": self.size,
        }  # fmt: skip
        self.facts: dict[str, JsonValue] = {
            "type": "linux memory", "format": "lime", "size": self.size,
            "ram_bytes": self.look.plan.ram, **self.look.facts, **self.about,
            "ranges": [f"{p.start:x}-{p.end - 1:x}" for p in self.look.plan.pieces[:200]],
            "missing": [f"{a:x}-{b - 1:x}" for a, b in self.look.plan.missing[:200]],
            "host_key": self.remote.host_key, "host_key_trust": self.remote.trust,
            "login": self.remote.login,
        }  # fmt: skip

    @property
    def method(self) -> str:
        """See `Source.method`."""
        return (
            "/proc/kcore of the running host, read over SSH in pieces by dd or SFTP, laid out as a "
            "LiME image; pages change while it runs, so it is not the state of one moment"
        )

    def restart(self) -> None:
        """Begin anew: nothing of what was read counts."""
        self._close_piece()
        self.scan = Scan(self.look.plan, self.look.banner)
        self.scanned.clear()
        self.log.clear()
        self.lost.clear()
        self._next = 0

    def next_data(self, offset: int) -> int:
        """Every page is read; zeros are recognised afterwards."""
        return offset

    def readinto(self, view: memoryview, offset: int) -> int:
        """See `ImageSource.readinto`."""
        _, gaps = self.fill(view, offset, threading.Event())
        if gaps:
            raise OSError(gaps[0].error)
        return len(view)

    def fill(self, view: memoryview, offset: int, stop: threading.Event) -> tuple[Runs, list[Gap]]:
        """See `BulkSource.fill`. One at a time, in the order in which they are asked for."""
        runs: Runs = []
        gaps: list[Gap] = []
        with self._turn:
            # Two workers ask at almost the same time, and a stream is read in order. What lies
            # between may be stored already: then nobody asks for it.
            self._turn.wait_for(lambda: offset <= self._next, _TURN_SECONDS)
            self.remote.stop = stop
            for start, end, what in self._layout.parts(offset, len(view)):
                if isinstance(what, bytes):
                    view[start:end] = what
                    runs.append((start, end))
                    continue
                for at, size in self._take(view[start:end], what[0], stop, gaps, offset + start):
                    part = view[start + at : start + at + size]
                    runs += [
                        (start + at + a, start + at + b)
                        for a, b in self.scan.pages(part, what[0] + at)
                    ]  # fmt: skip
            self.scanned.add(offset)
            self._next = offset + len(view)
            self._turn.notify_all()
        return _joined(runs), join_gaps(gaps)

    def _take(
        self, view: memoryview, physical: int, stop: threading.Event, gaps: list[Gap], image: int,
    ) -> list[Range]:  # fmt: skip
        """Read RAM from `physical` on into `view`; return what was read as (from, size)."""
        found: list[Range] = []
        at = 0
        while at < len(view):
            if stop.is_set():
                return []
            if self.gave_up:
                gaps.append(Gap(offset=image + at, length=len(view) - at, error=self.gave_up))
                break
            n = self._patiently(view[at:], physical + at, stop)
            if n:
                found.append((at, n))
                at += n
                continue
            if self.gave_up or stop.is_set():
                continue
            if physical + at >= self._fine_until:
                self._fine_until = physical + at + _FINE_BYTES  # dd drops the block that fails
                continue
            bad = self._bad(physical + at, len(view) - at, stop)
            why = "the kernel does not give this page"
            self.note_lost(f"{bad} bytes at {physical + at:#x}: {why}")
            gaps.append(Gap(offset=image + at, length=bad, error=why))
            at += bad
        return _whole_pages(found)

    def note_lost(self, why: str) -> None:
        """Keep why bytes could not be read, for the verdict."""
        if len(self.lost) < 100:
            self.lost.append(why)

    def _patiently(self, view: memoryview, physical: int, stop: threading.Event) -> int:
        """Read on; a lost connection is opened again. 0: this page cannot be read."""
        since: float | None = None
        wait = 0.1
        while True:
            try:
                if since is not None:
                    self._reconnect()
                return self._some(view, physical)
            except (LostError, UnreachableError) as e:
                self._stalls += isinstance(e, StalledError)
                self._drop()
                now = self.clock()
                since = now if since is None else since
                if stop.is_set():
                    return 0
                many = self.remote.connections >= _MOST_CONNECTIONS
                if many or now - since >= self.patience_s:
                    self._give_up(f"the connection was lost: {e}")
                    return 0
                self.say(f"{e}; going on at {physical:#x}")
                stop.wait(min(wait, self.patience_s))
                wait = min(wait * 2, 15.0)
            except RebootedError as e:
                self._give_up(str(e))
                return 0

    def _give_up(self, why: str) -> None:
        if not self.scan.read:
            raise LostError(why, hint="the same command again begins anew")
        self.gave_up = clean(why, 200)
        self.note_lost(self.gave_up)
        self.say(f"{why}; what was read until now is kept")

    def _reconnect(self) -> None:
        self.remote.ensure()
        ran = self.remote.run("cat /proc/sys/kernel/random/boot_id", "is it the same boot")
        if (now := ran.out.decode("ascii", "replace").strip()) != self.look.boot_id:
            raise RebootedError(f"the host rebooted during the capture (boot {clean(now, 40)})")

    def _drop(self) -> None:
        self._close_piece()
        self.remote.close()

    # -- one stream ------------------------------------------------------------------------------

    def _some(self, view: memoryview, physical: int) -> int:
        """Read some bytes from `physical` on, by the stream that is there or a new one."""
        if self.way == "sftp" or "dd" not in self.look.tools:
            return self._by_sftp(view, physical)
        fresh = self._piece is None or self._piece.at != physical or self._piece.done
        if fresh:
            self._open_piece(physical)
        piece = self._piece
        assert piece is not None  # noqa: S101
        at = 0
        try:
            while at < len(view) and not piece.done:
                n = piece.readinto(view[at:])
                if n == 0:
                    break
                at += n
        except BrokenError as e:
            self._close_piece()
            if at == 0 and self.way == "raw":
                raise
            self.say(f"{e}; sending it raw")
            self.way = "raw"
            return at or self._some(view, physical)
        except (LostError, UnreachableError):
            if at:  # what came stands; the next read meets the loss
                piece.broken = True
                return at
            raise
        if piece.done:
            self._close_piece()
        elif at < len(view):  # the stream ended before its end
            self._close_piece()
            if at == 0 and not fresh:
                return self._some(view, physical)
        return at

    def _open_piece(self, physical: int) -> None:
        self._close_piece()
        left = self._layout.piece_end(physical) - physical
        probing = self.way is None
        way: Way = self.way or "raw"
        length, block = min(PROBE_BYTES if probing else self.piece_bytes, left), "1M"
        if physical < self._fine_until:
            length, block = min(length, self._fine_until - physical), str(PAGE)
        command = dd(self._layout.kcore_offset(physical), length, block)
        self._piece = Stream(self.remote, command, physical, length, way)

    def _close_piece(self) -> None:
        piece, self._piece = self._piece, None
        if piece is None:
            return
        piece.close()
        self.log.append(piece.document())
        if self.way is None and piece.done:
            self.way = choose(self.look.tools, piece.rate)
            self.say(f"the link carries {piece.rate / 1e6:.0f} MB/s: sending {self.way}")

    def _by_sftp(self, view: memoryview, physical: int) -> int:
        most = PAGE if physical < self._fine_until else 8 << 20
        length = min(len(view), most, self._layout.piece_end(physical) - physical)
        try:
            if self._sftp is None:
                self._sftp = Sftp(self.remote)
            return self._sftp.read_range(self._layout.kcore_offset(physical), view[:length])
        except (LostError, BrokenError):
            sftp, self._sftp = self._sftp, None
            if sftp:
                sftp.close()
            raise

    def _bad(self, physical: int, left: int, stop: threading.Event) -> int:
        """Return how many bytes from here on cannot be read: probe further and further away."""
        step = PAGE
        good = left  # nearest offset known to be readable, or the end
        bad = 0
        while step < left and not stop.is_set():
            if self._readable(physical + step):
                good = step
                break
            bad = step
            step = min(step * 2, step + _LONGEST_SKIP)
        while good - bad > PAGE:
            middle = (bad + good) // 2 // PAGE * PAGE
            if self._readable(physical + middle):
                good = middle
            else:
                bad = middle
        return good

    def _readable(self, physical: int) -> bool:
        page = memoryview(bytearray(PAGE))
        with contextlib.suppress(ValueError):
            return self._page(page, physical)
        return False

    def _page(self, page: memoryview, physical: int) -> bool:
        if self.way == "sftp" or "dd" not in self.look.tools:
            return self._patiently(page, physical, threading.Event()) == PAGE
        offset = self._layout.kcore_offset(physical)
        try:
            ran = self.remote.run(dd(offset, PAGE), "is this page readable", root=True)
        except LostError:
            self._drop()
            self.remote.ensure()
            ran = self.remote.run(dd(offset, PAGE), "is this page readable", root=True)
        return len(ran.out) == PAGE

    # -- the end ---------------------------------------------------------------------------------

    @property
    def digests(self) -> tuple[str, ...]:
        """See `Concluding`: none but SHA-256."""
        return ()

    def conclude(self, _content: Mapping[str, str] | None) -> list[str]:
        """Say in the manifest what was not read."""
        self._close_piece()
        notes = [self.gave_up] if self.gave_up else []
        if self.look.plan.missing:
            notes.append(f"{len(self.look.plan.missing)} ranges of RAM are not shown by kcore")
        self.facts["streams"] = len(self.log)
        self.facts["sent"] = self.way or "raw"
        return [*notes, *self.look.plan.notes]

    def read_again(self) -> None:
        """Read the sampled pages a second time. A connection that is gone leaves it undone."""
        spots = [s for s in self.scan.spots if s in self.scan.samples]
        if not spots or self.gave_up or "dd" not in self.look.tools:
            return
        offsets = " ".join(str(self._layout.kcore_offset(s)) for s in spots)
        script = (
            f"for o in {offsets}; do dd if={KCORE} bs={PAGE} iflag=skip_bytes,count_bytes skip=$o "
            f"count={PAGE} status=none; done"
        )
        try:
            self.remote.ensure()
            ran = self.remote.run(shell(script), "sampled pages again", root=True,
                                  limit=PAGE * (len(spots) + 1))  # fmt: skip
        except (LostError, UnreachableError) as e:
            self.say(f"sampled pages were not read again: {e}")
            return
        if len(ran.out) != PAGE * len(spots):
            return
        pages = [ran.out[i : i + PAGE] for i in range(0, len(ran.out), PAGE)]
        same = sum(
            hashlib.sha256(page).hexdigest() == self.scan.samples[spot]
            for page, spot in zip(pages, spots, strict=True)
        )
        self._again = same, len(spots)

    @property
    def seen(self) -> Seen:
        """What was observed."""
        same, sampled = self._again
        made = self.look.plan
        return Seen(
            made.ram, self.scan.read, self.scan.zero, made.missing, tuple(self.lost),
            self.scan.found, sampled, same, self._stalls, self.remote.connections,
        )  # fmt: skip

    def changes(self) -> list[str]:
        """See `Source.changes`; that memory changes is in the method."""
        return []

    def close(self) -> None:
        """End the stream; the connection is its owner's."""
        self._close_piece()
        sftp, self._sftp = self._sftp, None
        if sftp:
            sftp.close()


class RebootedError(AcquisitionError):
    """The host runs another boot than the one that was captured."""


def _joined(runs: Runs) -> Runs:
    out: Runs = []
    for start, end in runs:
        if out and out[-1][1] == start:
            out[-1] = out[-1][0], end
        else:
            out.append((start, end))
    return out


def _whole_pages(found: list[Range]) -> list[Range]:
    """Join what touches; (from, size)."""
    out: list[Range] = []
    for at, size in found:
        if out and out[-1][0] + out[-1][1] == at:
            out[-1] = out[-1][0], out[-1][1] + size
        else:
            out.append((at, size))
    return out


def recalled(
    capture: KcoreCapture, read: Callable[[int, int], bytes], segment: int,
    unreadable: Sequence[ImageRange] = (),
) -> Seen:  # fmt: skip
    """Add what an earlier run captured to what is seen: read it from the item.

    Args:
        capture: whose `fill` did not see those segments.
        read: (offset, length) of the image.
        segment: bytes of one.
        unreadable: ranges of the image that stand as zeros for what no run could read, in order.
    """
    for offset in range(0, capture.size, segment):
        if offset in capture.scanned:
            continue
        body = memoryview(read(offset, min(segment, capture.size - offset)))
        for start, end, what in capture.look.plan.image.parts(offset, len(body)):
            if isinstance(what, bytes):
                continue
            at = start
            for lost in [*unreadable, ImageRange(offset + end, 0)]:
                low, high = max(at, lost.offset - offset), min(end, lost.end - offset)
                if low > high:
                    continue
                if low > at:
                    capture.scan.pages(body[at:low], what[0] + at - start)
                if high > low:
                    capture.note_lost(f"{high - low} bytes at {what[0] + low - start:#x}: see item")
                at = high
        capture.scanned.add(offset)
    return capture.seen
