# SPDX-License-Identifier: Apache-2.0
"""A case, or some of its items, into a bag.

    export-unfinished.json      what this export is; while it is there, there is no bag
    data/cases/<case>/items/…   each object hashed against the segment list on its way
    item.exported, checkpoint   in the store's ledger
    data/store.json, ledger, keys, checkpoints, tag files, bag.note
    bagit.txt                   last

A run that dies can be repeated with the same folder: what is there is hashed and kept. Every file
is written beside its place, synced and renamed, so that a name in the bag is whole or absent.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from evidence_store.backend import (
    LocalBackend,
    exclusive_file,
    parts_of_fd,
    sha256_of_fd,
    translate,
)
from evidence_store.bag import layout, tags
from evidence_store.checkpoint import Checkpoint, checkpoint_sizes, folder, read_checkpoint
from evidence_store.digest import LinearDigest, SegmentList
from evidence_store.errors import (
    AlreadyExistsError,
    BusyError,
    IntegrityError,
    ItemNotFoundError,
    StoreError,
    StoreFullError,
)
from evidence_store.item import Manifest
from evidence_store.ledger import Draft, Logged, entry_name
from evidence_store.model import canonical, clean
from evidence_store.sign import MAX_NOTE_BYTES, sign_note
from evidence_store.store import Case
from evidence_store.transfer import Progress
from evidence_store.verify import Remark, verify_case

_BUFFER = 4 << 20
_OURS = re.compile(r"lock|[0-9]+-[0-9a-f]{32}")
_AGAIN = "run the same command again; it continues"


@dataclass(frozen=True)
class Exported:
    """What an export made. `unsealed`: entries in the bag that no checkpoint covers."""

    folder: Path
    export_id: str
    items: list[str]
    left_out: list[str]
    files: int
    size: int
    entries: int
    checkpoint: Checkpoint | None
    unsealed: int
    notes: list[Remark]


def export_case(
    case: Case,
    destination: Path,
    seal: Callable[[Case], Checkpoint | None],
    *,
    items: Iterable[str] | None = None,
    raw: bool = False,
    recipient: str = "",
    workers: int = 2,
    progress: Progress = lambda _done, _total: None,
) -> Exported:
    """Write a bag of `case` into a new folder, and record `item.exported`.

    Args:
        case: the case, of a store opened for writing.
        destination: folder; absent, empty, or left by an export of the same that did not end.
        seal: makes the checkpoint after the entry; returns None if it cannot be made here.
        items: ids whose data go along; None: all. The ledger goes along whole.
        raw: write each image once more as one sparse file.
        recipient: for whom it is.
        workers: objects in work at once; memory is about workers * 4 MiB.
        progress: called with (bytes done, bytes in all).

    Raises: IntegrityError if the case, or an object on its way, is not what was recorded;
    ItemNotFoundError; AlreadyExistsError for a folder that holds something else; BusyError;
    StoreFullError, StoreError. Until `item.exported`, nothing in the store is changed.
    """
    wanted = None if items is None else sorted(set(items))
    return _Export(case, destination, seal, wanted, raw, clean(recipient, 200), workers,
                   progress).run()  # fmt: skip


@dataclass
class _Export:
    case: Case
    destination: Path
    seal: Callable[[Case], Checkpoint | None]
    wanted: list[str] | None
    raw: bool
    recipient: str
    workers: int
    progress: Progress
    export_id: str = ""
    payload: dict[str, tuple[str, int]] = field(default_factory=dict)
    tag_files: dict[str, str] = field(default_factory=dict)
    total: int = 0
    done: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self) -> Exported:
        self._check()
        verdict = verify_case(self.case, workers=self.workers)
        if verdict.findings:
            raise IntegrityError(
                f"case {self.case.case_id} is broken and is not exported: {verdict.findings[0]}",
                hint=f"impound verify {self.case.case_id} --deep names everything that differs",
            )
        chosen = self._choose()
        try:
            self._begin()
            with exclusive_file(self.destination / layout.PARTIAL, "lock"):
                notes = [n for n in verdict.notes if n.about != "ledger"]  # sealed below, or told
                return self._write(chosen, notes)
        except OSError as e:
            raise translate(e, f"cannot write the bag to {self.destination}") from e

    # -- before the first byte -------------------------------------------------------------------

    def _check(self) -> None:
        self.case.refresh()
        backend = self.case.store.backend
        if self.case.state.received is not None:
            raise StoreError(
                f"case {self.case.case_id} came in a bag; it is not exported again",
                hint="hand on the bag itself, and the report of this case",
            )
        real = self.destination.resolve()
        if isinstance(backend, LocalBackend) and real.is_relative_to(backend.root.resolve()):
            raise StoreError(
                f"{self.destination} lies inside the evidence store", hint="name a folder elsewhere"
            )
        self.case.ledger.check_may_sign(self.case.store.require_scribe().signer.public)

    def _choose(self) -> list[str]:
        stored = self._stored()
        if self.wanted is None:
            return stored
        for item in self.wanted:
            record = self.case.item(item)
            if item not in stored:
                raise ItemNotFoundError(
                    f"item {item} is {record.state}; it cannot be exported",
                    hint=f"impound item list {self.case.case_id} shows which are complete",
                )
        return self.wanted

    def _stored(self) -> list[str]:
        records = self.case.state.items.values()
        return [r.item_id for r in records if r.acquired is not None and not r.disposed]

    def _begin(self) -> None:
        """Make the folder, or take up one that the same export left."""
        binding = self.case.ledger.entries[0].event.store
        same = {
            "v": 1, "origin": self.case.ledger.origin, "store_id": binding and binding.store_id,
            "items": self.wanted, "raw": self.raw, "recipient": self.recipient,
        }  # fmt: skip
        place = self.destination
        plan = place / layout.PLAN
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            raise AlreadyExistsError(f"{place} is not a folder", hint="name a new folder")
        if place.is_dir() and not _is_new(place):
            if not plan.is_file() or plan.is_symlink():
                raise AlreadyExistsError(
                    f"{place} is not empty; an export writes only into a new folder",
                    hint="name a new folder, or remove this one if it is of no use",
                )
            found = _read_plan(plan)
            self.export_id = str(found.pop("export_id", ""))
            if found != same or not self.export_id:
                raise AlreadyExistsError(
                    f"{place} holds another export, not finished",
                    hint="give the same options as then, or name a new folder",
                )
            return
        place.mkdir(parents=True, exist_ok=True)
        self.export_id = self.case.store.require_scribe().new_id()
        (place / layout.PARTIAL).mkdir(exist_ok=True)
        body = canonical({**same, "export_id": self.export_id}) + b"\n"
        self._put(layout.PLAN, body)

    # -- the work --------------------------------------------------------------------------------

    def _write(self, chosen: list[str], notes: list[Remark]) -> Exported:
        manifests = {i: self.case.manifest(i) for i in self._stored()}
        lists = {i: self.case.segments(m) for i, m in manifests.items()}
        images = [i for i in chosen if self.raw and manifests[i].layout == "image"]
        self._check_space(manifests, chosen, images)
        self._parallel(self._item_jobs(manifests, lists, set(chosen)))
        self._parallel(partial(self._raw, manifests[i], lists[i]) for i in images)
        exported = self._record(chosen)
        checkpoint = self.seal(self.case)
        size = self._ledger(exported, checkpoint)
        skipped = [i for i in self._stored() if i not in chosen]
        latest = [s for s in checkpoint_sizes(self.case) if s <= size]
        newest = read_checkpoint(self.case, latest[-1]) if latest else None
        self._tags(manifests, size, newest, chosen, skipped)
        self._finish()
        return Exported(
            self.destination, self.export_id, chosen, skipped, len(self.payload),
            sum(s for _, s in self.payload.values()), size, newest,
            size - (newest.size if newest else 0), notes,
        )  # fmt: skip

    def _check_space(
        self, manifests: Mapping[str, Manifest], chosen: list[str], images: list[str]
    ) -> None:
        self.total = sum(manifests[i].stored_bytes for i in chosen)
        self.total += sum(manifests[i].stored_bytes for i in images)
        here = os.statvfs(self.destination)
        free = here.f_bavail * here.f_frsize
        begun = (self.destination / "data").exists()
        if not begun and free < self.total:
            raise StoreFullError(
                f"the bag takes {self.total} bytes and {self.destination} has {free}",
                hint="choose a larger disk, or fewer items with --items",
            )

    def _parallel(self, jobs: Iterable[Callable[[], None]]) -> None:
        running: set[Future[None]] = set()
        with ThreadPoolExecutor(self.workers, thread_name_prefix="export") as pool:
            try:
                for job in jobs:
                    running.add(pool.submit(job))
                    if len(running) >= 4 * self.workers:
                        finished, running = wait(running, return_when=FIRST_COMPLETED)
                        for future in finished:
                            future.result()
                for future in running:
                    future.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _item_jobs(
        self, manifests: Mapping[str, Manifest], lists: Mapping[str, SegmentList], chosen: set[str]
    ) -> Iterator[Callable[[], None]]:
        for item, manifest in manifests.items():
            prefix = self.case.item_prefix(item)
            recorded = self.case.item(item).manifest_sha256 or ""
            files = {"manifest.json": recorded, "segments.sha256": manifest.image_root}
            if item in chosen:
                if manifest.members is not None:
                    files["members.jsonl"] = manifest.members.sha256
                files |= {f"data/{name}": sha256 for name, sha256 in lists[item].digests.items()}
            for name, sha256 in files.items():
                key = f"{prefix}/{name}"
                yield partial(self._copy, key, sha256)

    def _copy(self, key: str, expected: str) -> None:
        """Copy one object, hashed on the way; keep what an earlier run copied."""
        name = f"data/{key}"
        if (size := self._kept(name, expected)) is None:
            fd = self.case.store.backend.open_fd(key)
            try:
                with self._new(name) as out:
                    digest, size = LinearDigest(), 0
                    with memoryview(bytearray(_BUFFER)) as view:
                        for part in parts_of_fd(fd, lambda: view):
                            if isinstance(part, int):
                                digest.zeros(part)
                                size += part
                            else:
                                digest.update(part)
                                _write_at(out, part, size)
                                size += len(part)
                    os.ftruncate(out, size)
                    if (actual := digest.results()["sha256"]) != expected:
                        raise IntegrityError(
                            f"{key} is not what was recorded (SHA-256 {actual}, recorded "
                            f"{expected}); nothing was exported",
                            hint=f"impound verify {self.case.case_id} --deep names what differs",
                        )
            finally:
                os.close(fd)
        self._note(name, expected, size)

    def _kept(self, name: str, expected: str | None) -> int | None:
        """Return the size of a file that an earlier run wrote, if it is what it must be."""
        if not os.path.lexists(self.destination / name):
            return None
        fd = layout.open_file(self.destination, name)
        try:
            actual, size = sha256_of_fd(fd)
        finally:
            os.close(fd)
        if actual != expected:
            raise IntegrityError(
                f"{name} in {self.destination} is not what this export wrote there",
                hint="the disk fails or somebody changed it; remove the folder, begin anew",
            )
        return size

    def _note(self, name: str, sha256: str, size: int) -> None:
        with self.lock:
            self.payload[name] = sha256, size
            if "/items/" in name or name.startswith(layout.RAW):
                self.done += size
                self.progress(min(self.done, self.total), self.total)

    def _raw(self, manifest: Manifest, segments: SegmentList) -> None:
        """Write an image as one sparse file, from the copies, which are read back that way."""
        name = f"{layout.RAW}/{manifest.item}/disk.raw"
        stated = (manifest.content or {}).get("sha256")
        if stated and (size := self._kept(name, stated)) is not None:
            self._note(name, stated, size)
            return
        whole, at = LinearDigest(), 0
        with self._new(name) as out:
            for segment, expected in segments.digests.items():
                start = int(segment, 16) * segments.segment_size
                whole.zeros(start - at)
                key = f"data/{self.case.item_prefix(manifest.item)}/data/{segment}"
                at = self._raw_segment(out, key, expected, whole, start)
            whole.zeros(segments.size - at)
            os.ftruncate(out, segments.size)
            actual = whole.results()["sha256"]
            if stated and actual != stated:
                raise IntegrityError(
                    f"the bytes of {manifest.item} in order have SHA-256 {actual}, recorded "
                    f"{stated}",
                    hint=f"impound verify {self.case.case_id} --linear",
                )
        self._note(name, actual, segments.size)

    def _raw_segment(
        self, out: int, key: str, expected: str, whole: LinearDigest, start: int
    ) -> int:
        own, at = LinearDigest(), start
        fd = layout.open_file(self.destination, key)
        try:
            with memoryview(bytearray(_BUFFER)) as view:
                for part in parts_of_fd(fd, lambda: view):
                    if isinstance(part, int):
                        own.zeros(part)
                        whole.zeros(part)
                        at += part
                    else:
                        own.update(part)
                        whole.update(part)
                        _write_at(out, part, at)
                        at += len(part)
        finally:
            os.close(fd)
        if own.results()["sha256"] != expected:
            raise IntegrityError(f"{key} in {self.destination} does not read back",
                                 hint="the disk fails; use another")  # fmt: skip
        return at

    # -- the ledger ------------------------------------------------------------------------------

    def _record(self, chosen: list[str]) -> Logged:
        case = self.case

        def build() -> Draft | None:
            others = [i for i in self._stored() if i not in chosen]
            if self.wanted is None and others:
                raise BusyError(
                    f"item {others[0]} was acquired while the bag was written", hint=_AGAIN
                )
            size = len(case.ledger.entries)
            last = case.ledger.entries[-1].event
            data: dict[str, Any] = {
                "export_id": self.export_id, "items": layout.encode_items(chosen),
                "left_out": layout.encode_items(others), "raw": self.raw,
                "recipient": self.recipient, "size": size,
                "root": Checkpoint(size, case.ledger.roots[size], "").root_text,
            }  # fmt: skip
            told = {k: v for k, v in (last.data or {}).items() if k not in ("size", "root")}
            if last.action == "item.exported" and told == {
                k: v for k, v in data.items() if k not in ("size", "root")
            }:
                return None
            return Draft("item.exported", {"data": data})

        case.record(build)
        found = [e for e in case.ledger.entries if e.event.action == "item.exported"
                 and (e.event.data or {}).get("export_id") == self.export_id]  # fmt: skip
        return found[-1]

    def _ledger(self, exported: Logged, checkpoint: Checkpoint | None) -> int:
        """Copy ledger, keys and checkpoints; return how many entries the bag has."""
        case = self.case
        seq = exported.event.seq
        size = checkpoint.size if checkpoint else seq + 1
        if any(e.event.action == "item.acquired" for e in case.ledger.entries[seq + 1 : size]):
            raise BusyError("an item was acquired while the bag was written", hint=_AGAIN)
        backend, prefix = case.store.backend, case.prefix
        self._keep("data/store.json", case.store.identity.encode())
        for listed in case.listed_keys:
            pem = case.ledger.ring.pems[listed.allowed.kid].pem()
            if listed.since < size:
                self._keep(f"data/{prefix}/keys/{listed.allowed.kid}.pem", pem)
                self._tag(f"keys/{listed.allowed.kid}.pem", pem)
        for n in range(size):
            key = f"{prefix}/ledger/{entry_name(n)}"
            body = backend.read(key, MAX_NOTE_BYTES)
            if hashlib.sha256(body).hexdigest() != case.ledger.entries[n].sha256:
                raise IntegrityError(f"{key} changed while it was exported")
            self._keep(f"data/{key}", body)
        for n in checkpoint_sizes(case):
            if n <= size:
                read_checkpoint(case, n)
                for name in ("last.proof", "log.note"):
                    key = f"{prefix}/{folder(n)}/{name}"
                    self._keep(f"data/{key}", backend.read(key, 1 << 20))
        return size

    # -- tag files -------------------------------------------------------------------------------

    def _tags(
        self, manifests: Mapping[str, Manifest], size: int, newest: Checkpoint | None,
        chosen: list[str], skipped: list[str],
    ) -> None:  # fmt: skip
        case, scribe = self.case, self.case.store.require_scribe()
        about = tags.About(
            case, case.ledger.entries[:size], manifests, self.export_id, self.recipient, newest,
            chosen, skipped, self.raw, len(self.payload),
            sum(s for _, s in self.payload.values()),
        )  # fmt: skip
        listing = b"".join(
            layout.encode_listing({name: sha256 for name, (sha256, _) in self.payload.items()})
        )
        self._tag(layout.MANIFEST, listing)
        self._tag(layout.INFO, layout.encode_info(about.info()))
        self._tag("VERIFY.txt", about.instructions())
        self._tag("custody.csv", about.table())
        self._tag("custody.html", about.page())
        self._tag("case.jsonld", about.graph())
        self._tag("verify.sh", resources.files("evidence_store").joinpath("verify.sh").read_bytes())
        self.tag_files[layout.DECLARATION] = hashlib.sha256(layout.BAGIT).hexdigest()
        body = b"".join(layout.encode_listing(self.tag_files))
        self._put(layout.TAG_MANIFEST, body)
        text = layout.bag_text(self.export_id, hashlib.sha256(body).hexdigest())
        name = case.ledger.check_may_sign(scribe.signer.public)
        self._put(layout.NOTE, sign_note(text, name, scribe.signer))

    def _finish(self) -> None:
        for path in (self.destination / "data", self.destination):
            _sync(path)
        self._put(layout.DECLARATION, layout.BAGIT)
        (self.destination / layout.PLAN).unlink()
        for path in (self.destination / layout.PARTIAL).iterdir():
            if _OURS.fullmatch(path.name):
                path.unlink()
        (self.destination / layout.PARTIAL).rmdir()
        _sync(self.destination)

    def _tag(self, name: str, body: bytes) -> None:
        self._put(name, body)
        self.tag_files[name] = hashlib.sha256(body).hexdigest()

    def _keep(self, name: str, body: bytes) -> None:
        """Write a file of the payload, unless an earlier run did."""
        sha256 = hashlib.sha256(body).hexdigest()
        if self._kept(name, sha256) is None:
            self._put(name, body)
        self._note(name, sha256, len(body))

    def _put(self, name: str, body: bytes) -> None:
        with self._new(name) as out:
            _write_at(out, memoryview(body), 0)

    @contextlib.contextmanager
    def _new(self, name: str) -> Iterator[int]:
        """Give a descriptor; what was written takes its name once it is whole and on disk."""
        final = self.destination / name
        temporary = self.destination / layout.PARTIAL / f"{os.getpid()}-{uuid.uuid4().hex}"
        mode = 0o555 if name == "verify.sh" else 0o444
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            try:
                yield fd
                os.fsync(fd)
            finally:
                os.close(fd)
            final.parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(final)
        except OSError as e:
            hint = _AGAIN if e.errno in (errno.ENOSPC, errno.EDQUOT) else ""
            failure = translate(e, f"cannot write {name} to {self.destination}")
            raise type(failure)(str(failure), hint=hint or failure.hint) from e
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()


def _is_new(place: Path) -> bool:
    """Tell whether a folder holds nothing, or what a run left that died before its first file."""
    names = [path.name for path in place.iterdir()]
    partial = place / layout.PARTIAL
    return names == [] or (
        names == [layout.PARTIAL]
        and not partial.is_symlink()
        and all(_OURS.fullmatch(path.name) for path in partial.iterdir())
    )


def _read_plan(plan: Path) -> dict[str, Any]:
    try:
        found = json.loads(plan.read_bytes()[:65536])
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_at(fd: int, view: memoryview, offset: int) -> None:
    at = 0
    while at < len(view):
        at += os.pwrite(fd, view[at:], offset + at)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
