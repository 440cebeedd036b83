# SPDX-License-Identifier: Apache-2.0
"""A snapshot as a disk image, read by EBS direct without volume or host.

    service = EbsDirect(Endpoint.of(session, client, account))      # acquisition.ebs
    image = SnapshotImage(service, "snap-…", facts=snapshot_facts(ec2, "snap-…"))
    case.ingest("disk", image)                                      # whole, resumable
    with SnapshotFile(image) as f: f.pread(4096, 0)                 # only the blocks needed
    case.ingest("disk", DeltaImage(image, base))                    # only what changed since `base`

A snapshot lists the 512 KiB blocks that were written; all others are zeros. The list is fetched a
page at a time where it is needed and not kept, so that memory does not grow with the snapshot
(64 TiB have 134 million blocks).

Source: EBS direct APIs reference; EBS user guide: only completed snapshots can be read, block
tokens are valid for 7 days and page tokens for 60 minutes, a page may be empty and yet not the
last, `StartingBlockIndex` names where a list begins.
"""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from acquisition.closing import Closing
from acquisition.ebs import (
    BLOCK_BYTES,
    Abandoned,
    BlockLostError,
    EbsDirect,
    Received,
    TokenRefusedError,
)
from acquisition.errors import AcquisitionError, SourceNotFoundError, UnsupportedSourceError
from evidence_store.aws import Failure, failures
from evidence_store.backend import Runs
from evidence_store.digest import SegmentList
from evidence_store.item import Gap, RandomAccess, SegmentFile
from evidence_store.model import clean, format_time
from evidence_store.transfer import UnreadableError
from evidence_store.transfer.image import join_gaps

if TYPE_CHECKING:
    from evidence_store.store import Case

PAGE_BLOCKS = 10_000  # the most that a page may have: 5 GiB of a full disk
_LEAST_PAGE = 100
_PAGES_KEPT = 4
_EMPTY_PAGES = 100_000
_RENEWALS = 3
_MAX_GIB = 65_536


@dataclass
class _Page:
    """What is listed in [first, end). A token of None: the block was given up, it is zeros."""

    first: int
    end: int
    indices: array[int]
    tokens: list[str | None]

    def at(self, index: int) -> int:
        return bisect_left(self.indices, index)


class Listing:
    """The written blocks of a snapshot; or those that differ from an earlier one (`since`).

    At most four pages are kept. For use by several threads at once.
    """

    def __init__(
        self, service: EbsDirect, snapshot: str, *, since: str = "", page_blocks: int = PAGE_BLOCKS
    ) -> None:
        self._service = service
        self._snapshot = snapshot
        self._since = since
        self._page_blocks = min(max(page_blocks, _LEAST_PAGE), PAGE_BLOCKS)
        self._pages: list[_Page] = []
        self._lock = threading.RLock()
        self._volume_gib = 0
        self._page(0)

    @property
    def size(self) -> int:
        """Bytes of the volume."""
        return self._volume_gib << 30

    @property
    def blocks(self) -> int:
        """Blocks of the volume, written or not."""
        return self.size // BLOCK_BYTES

    def next(self, index: int) -> int:
        """Return the first listed block >= `index`, or `blocks` if there is none."""
        while index < self.blocks:
            page = self._page(index)
            at = page.at(index)
            if at < len(page.indices):
                return page.indices[at]
            index = page.end
        return self.blocks

    def between(self, first: int, end: int) -> list[tuple[int, str | None]]:
        """Return (index, token) of the blocks listed in [first, end)."""
        found: list[tuple[int, str | None]] = []
        end = min(end, self.blocks)
        while first < end:
            page = self._page(first)
            a, b = page.at(first), page.at(end)
            found += zip(page.indices[a:b], page.tokens[a:b], strict=True)
            first = page.end
        return found

    def count(self) -> int:
        """Return how many blocks are listed; asks for every page once."""
        n = index = 0
        while index < self.blocks:
            page = self._page(index)
            n += len(page.indices) - page.at(index)
            index = page.end
        return n

    def alone(self) -> AbstractContextManager[bool]:
        """Keep other threads from listing meanwhile."""
        return self._lock

    def renew(self, index: int, token: str | None = None) -> str:
        """Return another token for a block whose `token` was refused; None: list it anew.

        Raises: ServiceError; AcquisitionError if the block is not listed any more.
        """
        with self._lock:
            page = self._page(index)
            if token and (found := _token(page, index)) and found != token:
                return found  # listed anew meanwhile
            self._pages = [p for p in self._pages if not p.first <= index < p.end]
            if found := _token(self._page(index), index):
                return found
        raise AcquisitionError(
            f"block {index} of {clean(self._snapshot)} was listed and is not any more",
            hint="a snapshot does not change: check what answers at this endpoint",
        )

    def _page(self, index: int) -> _Page:
        with self._lock:
            for page in self._pages:
                if page.first <= index < page.end:
                    self._pages.remove(page)
                    self._pages.append(page)
                    return page
            page = self._fetch(index)
            self._pages = [*self._pages[1 - _PAGES_KEPT :], page]
            return page

    def _fetch(self, first: int) -> _Page:
        """List from `first`, over empty pages, to a page with blocks or the end."""
        token, restarts = "", 0
        for _ in range(_EMPTY_PAGES):
            try:
                answer = self._service.list_blocks(
                    self._snapshot, start=first, limit=self._page_blocks, since=self._since,
                    page=token,
                )  # fmt: skip
            except TokenRefusedError:
                restarts += 1
                if not token or restarts > _RENEWALS:
                    raise
                token = ""
                continue
            following = answer.get("NextToken")
            page = self._parse(answer, first, last=not following)
            if page.indices or not following:
                return page
            token = str(following)
        raise self._nonsense(f"{_EMPTY_PAGES} pages in a row are empty")

    def _parse(self, answer: Mapping[str, Any], first: int, *, last: bool) -> _Page:
        gib, block = answer.get("VolumeSize"), answer.get("BlockSize")
        if block != BLOCK_BYTES:
            raise self._nonsense(f"blocks have {clean(str(block), 40)} bytes, not {BLOCK_BYTES}")
        if type(gib) is not int or not 0 < gib <= _MAX_GIB or self._volume_gib not in (0, gib):
            raise self._nonsense(f"the volume has {clean(str(gib), 40)} GiB")
        self._volume_gib = gib
        indices: array[int] = array("q")
        tokens: list[str | None] = []
        name = "SecondBlockToken" if self._since else "BlockToken"
        listed = answer.get("ChangedBlocks" if self._since else "Blocks") or []
        before = first - 1
        for entry in listed if isinstance(listed, list) else [None]:
            index = entry.get("BlockIndex") if isinstance(entry, dict) else None
            token = entry.get(name) if isinstance(entry, dict) else None
            if type(index) is not int or not before < index < self.blocks:
                raise self._nonsense(f"block {clean(str(index), 40)} is listed after {before}")
            if not isinstance(token, str) and (token is not None or not self._since):
                raise self._nonsense(f"block {index} has no token")
            indices.append(index)
            tokens.append(token)
            before = index
        return _Page(first, self.blocks if last else before + 1, indices, tokens)

    def _nonsense(self, what: str) -> AcquisitionError:
        return AcquisitionError(
            f"the list of blocks of {clean(self._snapshot)} makes no sense: {what}",
            hint="check what answers at this endpoint; nothing of it was taken",
        )


def _token(page: _Page, index: int) -> str | None:
    at = page.at(index)
    return page.tokens[at] if at < len(page.indices) and page.indices[at] == index else None


class _Blocks:
    """Reads listed blocks of a snapshot, many at once, each with a token that is valid."""

    def __init__(
        self, service: EbsDirect, snapshot: str, listing: Listing, received: Received
    ) -> None:
        self.service = service
        self.snapshot = snapshot
        self.listing = listing
        self.received = received

    def read(
        self, wanted: Iterable[tuple[int, str, memoryview]], outer: threading.Event | None = None
    ) -> dict[int, str]:
        """Read each (index, token) into its view; return index -> reason of those that are lost.

        Raises: AcquisitionError; Abandoned once `outer` is set; when none of them is under way any
        more.
        """
        stop = threading.Event()
        running: dict[Future[None], int] = {
            self.service.threads.submit(self._one, index, token, view, stop): index
            for index, token, view in wanted
        }
        lost: dict[int, str] = {}
        failed: BaseException | None = None
        try:
            pending = set(running)
            while pending:
                done, pending = wait(pending, 0.25, return_when=FIRST_EXCEPTION)
                if outer is not None and outer.is_set():
                    failed = failed or Abandoned()
                for future in done:
                    error = None if future.cancelled() else future.exception()
                    if isinstance(error, BlockLostError):
                        lost[running[future]] = clean(str(error), 200)
                    elif error is not None and not isinstance(error, Abandoned):
                        failed = failed or error
                if failed:
                    stop.set()
                    for future in pending:
                        future.cancel()
        except BaseException:
            stop.set()
            for future in running:
                future.cancel()
            wait(running)  # they write into memory that is about to be used for something else
            raise
        if failed:
            raise failed
        return lost

    def _one(self, index: int, token: str, view: memoryview, stop: threading.Event) -> None:
        for _ in range(_RENEWALS):
            try:
                self.service.read_block(self.snapshot, index, token, view, self.received, stop)
                return
            except TokenRefusedError:
                token = self.listing.renew(index, token)
        with self.listing.alone():  # where a list refuses the tokens of the one before
            token = self.listing.renew(index)
            self.service.read_block(self.snapshot, index, token, view, self.received, stop)

    def fill(
        self, view: memoryview, offset: int, listed: list[tuple[int, str | None]],
        stop: threading.Event | None = None,
    ) -> tuple[Runs, list[Gap]]:  # fmt: skip
        """Read listed blocks, all of which lie whole in `view` at `offset`; see `BulkSource`."""
        if offset % BLOCK_BYTES or len(view) % BLOCK_BYTES:
            raise ValueError("segments must begin and end with blocks of 512 KiB")
        at = {index: index * BLOCK_BYTES - offset for index, token in listed if token is not None}
        wanted = (
            (index, token, view[at[index] : at[index] + BLOCK_BYTES])
            for index, token in listed if token is not None
        )  # fmt: skip
        try:
            lost = self.read(wanted, stop)
        except Abandoned:
            return [], []
        runs: Runs = []
        for index in at:
            if index not in lost:
                _append(runs, at[index], at[index] + BLOCK_BYTES)
        gaps = [Gap(offset=i * BLOCK_BYTES, length=BLOCK_BYTES, error=lost[i]) for i in lost]
        return runs, gaps


def _append(runs: Runs, start: int, end: int) -> None:
    if runs and runs[-1][1] == start:
        runs[-1] = (runs[-1][0], end)
    elif end > start:
        runs.append((start, end))


class SnapshotImage(Closing):
    """A whole snapshot: an `ImageSource` whose segments are filled many blocks at once.

    A block that AWS does not give as it says it is becomes an unreadable range of 512 KiB.

    **Taken up again.** A snapshot does not change (EBS user guide, "Amazon EBS snapshots"), so its
    id stands for its content: `immutable`. A segment stored by an interrupted run is not fetched
    again if this user's own record of that run (`evidence_store.transfer.resume`) has its digest
    and the stored object has that digest still. Otherwise it is fetched and compared, as ever.
    AWS lists no digest of a block without its bytes, so there is nothing else to compare with.
    """

    immutable = True
    method = (
        "EBS direct: ListSnapshotBlocks; GetSnapshotBlock of each listed block, its SHA-256 "
        "compared with the checksum that AWS states; blocks not listed are zeros"
    )

    def __init__(
        self, service: EbsDirect, snapshot_id: str, *, text: str = "",
        facts: Mapping[str, JsonValue] | None = None, page_blocks: int = PAGE_BLOCKS,
    ) -> None:  # fmt: skip
        """List the first blocks.

        Args:
            service: of the account and Region that reads; the caller closes it.
            snapshot_id: a completed snapshot of that Region, own or shared.
            text: what people call it; the id if empty.
            facts: what was observed of it (`snapshot_facts`).
            page_blocks: blocks of one page of the list, 100 to 10,000; small for triage.

        Raises: ServiceError, AcquisitionError.
        """
        self.text = text or clean(snapshot_id)
        self.snapshot_id = snapshot_id
        self.service = service
        self.listing = Listing(service, snapshot_id, page_blocks=page_blocks)
        self.size = self.listing.size
        self.received = Received()
        self.blocks = _Blocks(service, snapshot_id, self.listing, self.received)
        self._observed = dict(facts or {})

    @property
    def identity(self) -> Mapping[str, JsonValue]:
        """See `Source.identity`."""
        return {"snapshot": clean(self.snapshot_id), "size": self.size}

    @property
    def facts(self) -> Mapping[str, JsonValue]:
        """See `Source.facts`; `source_checksums` counts what this run has read until now."""
        return {
            "type": "EBS snapshot", **self._observed, "snapshot": clean(self.snapshot_id),
            "size": self.size,
            "read_by": {
                "account": self.service.endpoint.account, "region": self.service.endpoint.region,
                "endpoint": clean(self.service.endpoint.url, 200),
            },
            "source_checksums": {
                "algorithm": "SHA256", "block_size": BLOCK_BYTES,
                "checked": self.received.checked, "mismatched": self.received.mismatched,
                "unreadable": self.received.lost,
            },
            "fetched_bytes": self.received.bytes,
        }  # fmt: skip

    def readinto(self, view: memoryview, offset: int) -> int:
        """See `ImageSource.readinto`; reads within one block."""
        if offset >= self.size:
            return 0
        index, inner = divmod(offset, BLOCK_BYTES)
        length = min(len(view), BLOCK_BYTES - inner, self.size - offset)
        listed = self.listing.between(index, index + 1)
        if not listed:
            view[:length] = bytes(length)
            return length
        block = memoryview(bytearray(BLOCK_BYTES))
        _, gaps = self.blocks.fill(block, index * BLOCK_BYTES, listed)
        if gaps:
            raise UnreadableError(gaps[0].error, BLOCK_BYTES - inner)
        view[:length] = block[inner : inner + length]
        return length

    def fill(self, view: memoryview, offset: int, stop: threading.Event) -> tuple[Runs, list[Gap]]:
        """See `BulkSource.fill`."""
        first = offset // BLOCK_BYTES
        listed = self.listing.between(first, first + len(view) // BLOCK_BYTES)
        return self.blocks.fill(view, offset, listed, stop)

    def next_data(self, offset: int) -> int:
        """See `ImageSource.next_data`; from the list."""
        return min(self.size, max(offset, self.listing.next(offset // BLOCK_BYTES) * BLOCK_BYTES))

    def changes(self) -> list[str]:
        """None: a snapshot does not change."""
        return []


@dataclass(frozen=True)
class Base:
    """An item of the same case that holds an earlier snapshot of the same volume.

    Attributes:
        item: its id.
        snapshot: the snapshot that it was read from.
        segments: its list.
        open: gives a file over it, each segment verified when it is first read; for one thread.
    """

    item: str
    snapshot: str
    segments: SegmentList
    open: Callable[[], SegmentFile]

    @classmethod
    def of(cls, case: Case, item_id: str) -> Base:
        """Return an item as base.

        Raises: UnsupportedSourceError if it holds no snapshot; ItemNotFoundError, IntegrityError.
        """
        manifest = case.manifest(item_id)
        snapshot = manifest.source.get("snapshot")
        if manifest.layout != "image" or not isinstance(snapshot, str):
            raise UnsupportedSourceError(
                f"item {item_id} was not read from a snapshot",
                hint=f"impound item list {case.case_id} shows which items were",
            )
        segments, objects = case.segments(manifest), case.objects(item_id)
        return cls(
            item_id, snapshot, segments,
            lambda: SegmentFile(manifest.size, manifest.segment_size, objects.open),
        )  # fmt: skip


class DeltaImage(Closing):
    """A snapshot of which only what changed since an item is fetched; the rest is that item.

    What ListChangedBlocks does not list is copied from the base item inside the store, whose
    segments are verified on the way, so that the new item is whole by itself. It is the same
    snapshot as `SnapshotImage` reads, has the same identity, and gives the same bytes. That blocks
    which are not listed did not change is AWS's word; `method` says so.

    What is unreadable in the base is fetched.
    """

    immutable = True
    method = (
        "EBS direct: ListChangedBlocks since the snapshot of a base item; GetSnapshotBlock of each "
        "block listed, its SHA-256 compared with the checksum that AWS states; all else from the "
        "base item, verified, on AWS's word that it did not change"
    )

    def __init__(self, image: SnapshotImage, base: Base) -> None:
        """List the first changed blocks.

        Raises: ServiceError, also if AWS does not take the two as snapshots of one volume;
        AcquisitionError.
        """
        self.text = image.text
        self.size = image.size
        self.identity = image.identity
        self._image = image
        self._base = base
        changed = Listing(image.service, image.snapshot_id, since=base.snapshot)
        if changed.size != image.size:
            raise AcquisitionError("AWS states two sizes of one snapshot")
        self._changed = _Blocks(image.service, image.snapshot_id, changed, image.received)
        self._files = threading.local()
        self._opened: list[SegmentFile] = []
        self._hole_starts = [first for first, _ in base.segments.holes]
        self._base_root = base.segments.root
        self._copied = 0
        self._lock = threading.Lock()

    @property
    def facts(self) -> Mapping[str, JsonValue]:
        """See `Source.facts`: those of the snapshot, and from which item the rest was taken."""
        return {
            **self._image.facts, "base_item": self._base.item, "base_snapshot": self._base.snapshot,
            "base_image_root": self._base_root, "base_bytes": self._copied,
        }  # fmt: skip

    def close(self) -> None:
        """See `Closing.close`."""
        with self._lock:
            opened, self._opened = self._opened, []
        for file in opened:
            file.close()

    def readinto(self, view: memoryview, offset: int) -> int:
        """See `ImageSource.readinto`; reads within one block."""
        if offset >= self.size:
            return 0
        index, inner = divmod(offset, BLOCK_BYTES)
        length = min(len(view), BLOCK_BYTES - inner, self.size - offset)
        block = memoryview(bytearray(BLOCK_BYTES))
        _, gaps = self.fill(block, index * BLOCK_BYTES, threading.Event())
        if gaps:
            raise UnreadableError(gaps[0].error, BLOCK_BYTES - inner)
        view[:length] = block[inner : inner + length]
        return length

    def next_data(self, offset: int) -> int:
        """See `ImageSource.next_data`."""
        changed = self._changed.listing.next(offset // BLOCK_BYTES) * BLOCK_BYTES
        return min(self.size, max(offset, min(changed, self._base_data(offset))))

    def fill(self, view: memoryview, offset: int, stop: threading.Event) -> tuple[Runs, list[Gap]]:
        """See `BulkSource.fill`."""
        first, end = offset // BLOCK_BYTES, (offset + len(view)) // BLOCK_BYTES
        changed = self._changed.listing.between(first, end)
        elsewhere = {index for index, _ in changed}
        again = [
            block
            for gap in self._base.segments.unreadable
            if gap.offset < offset + len(view) and offset < gap.end
            for block in self._image.listing.between(
                max(first, gap.offset // BLOCK_BYTES), min(end, -(-gap.end // BLOCK_BYTES))
            )
            if block[0] not in elsewhere
        ]
        again = sorted(dict(again).items())
        runs, gaps = self._changed.fill(view, offset, changed, stop)
        more, further = self._image.blocks.fill(view, offset, again, stop)
        elsewhere |= {index for index, _ in again}
        copied = self._copy(view, offset, elsewhere, stop)
        joined: Runs = []
        for start, past in sorted([*runs, *more, *copied]):
            _append(joined, start, past)
        return joined, join_gaps([*gaps, *further])

    def _copy(
        self, view: memoryview, offset: int, elsewhere: set[int], stop: threading.Event
    ) -> Runs:
        """Copy what the base holds as data, but for the blocks that come from elsewhere."""
        runs: Runs = []
        at, end = offset, min(offset + len(view), self._base.segments.size)
        while (at := self._base_data(at)) < end and not stop.is_set():
            past = min(end, self._base_hole(at), (at // BLOCK_BYTES + 1) * BLOCK_BYTES)
            if at // BLOCK_BYTES not in elsewhere:
                view[at - offset : past - offset] = self._file().pread(past - at, at)
                _append(runs, at - offset, past - offset)
            at = past
        with self._lock:
            self._copied += sum(end - start for start, end in runs)
        return runs

    def _file(self) -> SegmentFile:
        file: SegmentFile | None = getattr(self._files, "file", None)
        if file is None or file.closed:
            file = self._files.file = self._base.open()
            with self._lock:
                self._opened.append(file)
        return file

    def _base_data(self, offset: int) -> int:
        """First offset >= `offset` that is in no hole of the base; the end of all if none is."""
        if offset >= self._base.segments.size:
            return self.size
        segment = self._base.segments.segment_size
        at = bisect_right(self._hole_starts, offset // segment) - 1
        if at >= 0:
            past = sum(self._base.segments.holes[at]) * segment
            if offset < past:
                return past if past < self._base.segments.size else self.size
        return offset

    def _base_hole(self, offset: int) -> int:
        """Where the next hole of the base begins."""
        segment = self._base.segments.segment_size
        at = bisect_right(self._hole_starts, offset // segment)
        starts = self._hole_starts
        return starts[at] * segment if at < len(starts) else self._base.segments.size

    def changes(self) -> list[str]:
        """None: a snapshot does not change."""
        return []


class SnapshotFile(RandomAccess):
    """A snapshot as one seekable read-only file that fetches the blocks that are asked for.

    Blocks are kept, the least recently used dropped first. A block that is lost raises
    `UnreadableError` wherever it is touched: here nothing would tell zeros from it.

    `image.received.bytes` counts what was fetched.
    """

    def __init__(
        self, image: SnapshotImage, *, cache_bytes: int = 64 << 20, readahead: int = 2
    ) -> None:
        """Fetch nothing yet.

        Args:
            image: the snapshot; with a small `page_blocks` its list stays small too.
            cache_bytes: most memory for blocks, at least one.
            readahead: blocks fetched beyond those asked for, where reading goes on in order.
        """
        super().__init__(image.size)
        self._image = image
        self._most = max(1, cache_bytes // BLOCK_BYTES)
        self._ahead = min(readahead, self._most // 2)
        self._blocks: OrderedDict[int, bytearray] = OrderedDict()
        self._lost: dict[int, str] = {}
        self._next = -1
        self._lock = threading.Lock()

    def pread(self, length: int, offset: int) -> bytes:
        """Return bytes at `offset`; fewer than `length` only at the end.

        Raises: UnreadableError for what is lost; ServiceError, AcquisitionError.
        """
        end = min(offset + length, self.size)
        if offset < 0 or offset >= end:
            return b""
        parts = []
        with self._lock:
            while offset < end:
                first = offset // BLOCK_BYTES
                last = min(-(-end // BLOCK_BYTES), first + max(1, self._most // 2))
                self._load(first, last)
                for index in range(first, last):
                    if index in self._lost:
                        start = max(offset, index * BLOCK_BYTES)
                        raise UnreadableError(self._lost[index], (index + 1) * BLOCK_BYTES - start)
                    inner = offset - index * BLOCK_BYTES
                    want = min(end - offset, BLOCK_BYTES - inner)
                    block = self._blocks.get(index)
                    parts.append(bytes(want) if block is None else block[inner : inner + want])
                    offset += want
        return b"".join(parts)

    def _load(self, first: int, end: int) -> None:
        """Have the listed blocks of [first, end) in the cache."""
        ahead = self._ahead if first == self._next else 0
        self._next = end
        wanted: list[tuple[int, str, memoryview]] = []
        for index, token in self._listed(first, end, ahead):
            if index in self._blocks:
                self._blocks.move_to_end(index)
            elif token is not None and index not in self._lost:
                wanted.append((index, token, memoryview(bytearray(BLOCK_BYTES))))
        lost = self._image.blocks.read(wanted)
        self._lost |= lost
        for index, _, view in wanted:
            if index not in lost:
                assert isinstance(view.obj, bytearray)  # noqa: S101
                self._blocks[index] = view.obj
        while len(self._blocks) > self._most:
            self._blocks.popitem(last=False)

    def _listed(self, first: int, end: int, ahead: int) -> list[tuple[int, str | None]]:
        if ahead == 0 and all(i in self._blocks for i in range(first, end)):
            return [(i, None) for i in range(first, end)]
        return self._image.listing.between(first, end + ahead)


def snapshot_facts(ec2: Any, snapshot_id: str) -> dict[str, JsonValue]:
    """Return what EC2 tells of a snapshot that can be read now.

    `arn`, `owner`, `volume`, `volume_gib`, `encrypted`, `kms_key`, `started`, `region`, `lock`.
    The volume of a copied snapshot is arbitrary, EC2 says; lineage is for the case to keep.

    Raises: AcquisitionError if it is not there, not to be seen, or not completed.
    """
    name = clean(snapshot_id)
    try:
        found = ec2.describe_snapshots(SnapshotIds=[snapshot_id])["Snapshots"]
    except failures() as e:
        failure = Failure(e)
        raise AcquisitionError(
            f"cannot look at snapshot {name}: {failure.message} ({failure.code})", hint=failure.hint
        ) from e
    if len(found) != 1:
        raise SourceNotFoundError(f"no snapshot {name}", hint="check id, account and Region")
    said = found[0]
    if said.get("State") != "completed":
        raise AcquisitionError(
            f"snapshot {name} is {clean(str(said.get('State')), 40)} "
            f"({clean(str(said.get('StateMessage') or said.get('Progress')), 200)})",
            hint="it can be read once it is completed; run the same command again then",
        )
    region, started = ec2.meta.region_name, said.get("StartTime")
    return {
        "arn": f"arn:{ec2.meta.partition}:ec2:{region}::snapshot/{name}", "region": region,
        "owner": clean(str(said.get("OwnerId", "")), 20),
        "volume": clean(str(said.get("VolumeId", "")), 60), "volume_gib": said.get("VolumeSize"),
        "encrypted": bool(said.get("Encrypted")), "kms_key": clean(said.get("KmsKeyId") or "", 300),
        "started": format_time(started) if isinstance(started, datetime) else None,
        "lock": _lock_state(ec2, snapshot_id),
    }  # fmt: skip


def _lock_state(ec2: Any, snapshot_id: str) -> JsonValue:
    try:
        locked = ec2.describe_locked_snapshots(SnapshotIds=[snapshot_id])["Snapshots"]
    except failures() as e:
        return f"not known: {clean(Failure(e).code, 80)}"
    if not locked:
        return "not locked"
    until = locked[0].get("LockExpiresOn")
    return {
        "state": clean(str(locked[0].get("LockState", "")), 60),
        "until": format_time(until) if isinstance(until, datetime) else None,
    }
