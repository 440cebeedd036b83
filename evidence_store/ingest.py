# SPDX-License-Identifier: Apache-2.0
"""How a source becomes an item: the order of ledger entries and bytes behind `Case.ingest`.

    item.identified   claims the id            (unless an unfinished item of this source exists)
    acquire.started   before the first byte    (`refs` name an intent that is taken up again)
    data/…            `evidence_store.transfer`
    segments.sha256, manifest.json
    item.acquired     with their digests       or acquire.failed, with the reason
    item.verified     after reading everything back

A run that dies in between leaves an intent without an end; the next run of the same source finds it
by kind, source text and the source's own identity, and continues.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from evidence_store.case import ItemRecord
from evidence_store.content import check_content
from evidence_store.digest import SEGMENT_BYTES
from evidence_store.errors import AlreadyExistsError, IntegrityError, StoreError
from evidence_store.item import MAX_LISTED_GAPS, MAX_MANIFEST_BYTES, Manifest, parse_manifest
from evidence_store.ledger import Draft
from evidence_store.model import Kind, StoredObject, canonical, clean, format_time
from evidence_store.transfer import (
    Concluding,
    ImageSource,
    Immutable,
    Progress,
    SetSource,
    StreamSource,
    Taken,
    put_once,
)
from evidence_store.transfer.fileset import take_set
from evidence_store.transfer.image import take_image
from evidence_store.transfer.resume import ResumeRecord

if TYPE_CHECKING:
    from evidence_store.store import Case

LINEAR_LIMIT = 256 << 30


@dataclass(frozen=True)
class Ingested:
    """What an ingest did. `existing`: the item was complete already and nothing was stored."""

    item_id: str
    manifest: Manifest
    existing: bool = False
    resumed: bool = False
    read_back: bool = False


@dataclass
class Ingest:
    """One run of `Case.ingest`."""

    case: Case
    kind: Kind
    source: ImageSource | StreamSource | SetSource
    digests: list[str]
    parents: list[str]
    again: bool
    linear: bool | None
    workers: int
    segment_size: int
    read_back: bool
    facts: dict[str, JsonValue]
    progress: Progress

    def run(self) -> Ingested:
        """Do it. Raises: as `Case.ingest`."""
        key = self._key()
        if not self.again and (done := self._complete(key)):
            return Ingested(done.item_id, self.case.manifest(done.item_id), existing=True)
        item_id = self._claim(key)
        with self.case.store.backend.exclusive(f"{self.case.case_id}.{item_id}"):
            self.case.refresh()
            record = self.case.item(item_id)
            if record.acquired:
                return Ingested(item_id, self.case.manifest(item_id), existing=True)
            # What was begun goes on as it was begun, whatever size is asked for today.
            self.segment_size = record.segment_size
            intent = self._intend(record)
            resumed = bool(record.intents)
            try:
                with self._notes(item_id, key) as notes:
                    taken, started = self._take(item_id, notes)
                    manifest = self._finish(item_id, intent, taken, started)
            except Exception as e:
                self._failed(item_id, intent, e)
                raise
            if self.read_back:
                self._read_back(item_id, manifest)
        return Ingested(item_id, manifest, resumed=resumed, read_back=self.read_back)

    def _key(self) -> str | None:
        if self.source.identity is None:
            return None
        identity = {
            "kind": self.kind, "text": clean(self.source.text), **self.source.identity,
        }  # fmt: skip
        return hashlib.sha256(canonical(identity)).hexdigest()

    def _known(self, key: str | None) -> list[ItemRecord]:
        if key is None:
            return []
        return [i for i in self.case.state.items.values() if i.key == key and not i.disposed]

    def _complete(self, key: str | None) -> ItemRecord | None:
        """Return the item that is this source as it stands now, by its stamp where it has one."""
        return next((i for i in self._taken_before(key) if not self._changed_since(i)), None)

    def _taken_before(self, key: str | None) -> list[ItemRecord]:
        return [i for i in self._known(key) if i.acquired]

    def _changed_since(self, record: ItemRecord) -> bool:
        then = self.case.manifest(record.item_id).source.get("stamp")
        return then != self.source.facts.get("stamp")

    def _open(self, key: str | None) -> ItemRecord | None:
        return next((i for i in self._known(key) if not i.acquired), None)

    def _claim(self, key: str | None) -> str:
        """Return the item to fill: an unfinished one of this source, or a newly identified one."""
        claimed: list[str] = []

        def build() -> Draft | None:
            claimed.clear()
            if not self.again and (unfinished := self._open(key)):
                claimed.append(unfinished.item_id)
                return None
            if not self.again and (done := self._complete(key)):
                claimed.append(done.item_id)
                return None
            claimed.append(self.case.state.next_item_id())
            data: dict[str, JsonValue] = {
                "kind": self.kind, "source": clean(self.source.text, 400),
            }  # fmt: skip
            if key is not None:
                data["key"] = key
            if (size := getattr(self.source, "size", None)) is not None:
                data["size"] = size
            if self.segment_size != SEGMENT_BYTES:
                data["segment_size"] = self.segment_size
            if self.parents:
                data["parents"] = list(self.parents)
            return Draft("item.identified", {"item": claimed[0], "data": data})

        self.case.record(build)
        return claimed[0]

    def _intend(self, record: ItemRecord) -> int:
        unfinished = [i.seq for i in record.intents if i.outcome in ("open", "failed")]
        fields: dict[str, Any] = {"item": record.item_id, "refs": [record.identified, *unfinished]}
        before = [i.item_id for i in self._taken_before(record.key) if i is not record]
        if unfinished:
            fields["note"] = "continues an acquisition that did not end"
        elif before and not self.again:
            fields["note"] = self._since(before[-1])
        logged = self.case.record(lambda: Draft("acquire.started", fields))
        assert logged is not None  # noqa: S101
        return logged.event.seq

    def _since(self, before: str) -> str:
        if self.source.facts.get("type") != "block device":
            return f"this source was taken as {before} and has changed since"
        # The counters in a device's stamp begin anew with each boot: they cannot tell more.
        then, now = self.case.manifest(before).source.get("stamp"), self.source.facts.get("stamp")
        return clean(
            f"this device was taken as {before} and may have been written to since; its stamp was "
            f"{then}; is {now}",
            512,
        )

    @contextlib.contextmanager
    def _notes(self, item_id: str, key: str | None) -> Iterator[ResumeRecord | None]:
        """What is noted of an item for a resume, where its source cannot change."""
        store, source = self.case.store, self.source
        vouched = isinstance(source, Immutable) and source.immutable
        if not vouched or key is None or store.resume is None:
            yield None
            return
        store_id = store.identity.store_id
        if "/" in store_id or store_id.startswith("."):
            raise IntegrityError(f"store id is not a name: {store_id!r}")
        place = store.resume / store_id / self.case.case_id / f"{item_id}.jsonl"
        odd = self.segment_size if self.segment_size != SEGMENT_BYTES else 0
        notes = ResumeRecord(place, {"key": key, "segment_size": odd})
        done = False
        try:
            yield notes
            done = True
        finally:
            notes.close(done=done)

    def _take(self, item_id: str, notes: ResumeRecord | None) -> tuple[Taken, str]:
        backend, prefix = self.case.store.backend, self.case.item_prefix(item_id)
        started = self._now()
        if isinstance(self.source, SetSource):
            return take_set(backend, prefix, self.source, progress=self.progress), started
        size = getattr(self.source, "size", None)
        wanted = self.source.digests if isinstance(self.source, Concluding) else ()
        linear = self.linear
        if linear is None:
            linear = bool(wanted) or (size or 0) <= LINEAR_LIMIT
        digests = list(dict.fromkeys([*self.digests, *wanted]))
        taken = take_image(
            backend, prefix, self.source, linear=linear, digests=digests,
            workers=self.workers, segment_size=self.segment_size, resume=notes,
            progress=self.progress,
        )  # fmt: skip
        return taken, started

    def _finish(self, item_id: str, intent: int, taken: Taken, started: str) -> Manifest:
        manifest = self._manifest(item_id, taken, started)
        backend, prefix = self.case.store.backend, self.case.item_prefix(item_id)
        listing = taken.segments.encode()
        body = manifest.encode()
        put_once(backend, f"{prefix}/segments.sha256", listing, manifest.image_root)
        try:
            backend.create(f"{prefix}/manifest.json", body)
        except AlreadyExistsError:
            # An earlier run wrote it and died before it was recorded; the facts must be the same.
            body = backend.read(f"{prefix}/manifest.json", MAX_MANIFEST_BYTES)
            earlier = parse_manifest(body)
            same = ("image_root", "size", "content", "case", "item", "kind")
            if any(getattr(earlier, name) != getattr(manifest, name) for name in same):
                raise IntegrityError(
                    f"{prefix}/manifest.json was written by an interrupted run and differs from "
                    "what the source gives now",
                    hint="take the source as a new item with --again",
                ) from None
            manifest = earlier
        objects = [
            _object(f"items/{item_id}/manifest.json", len(body), hashlib.sha256(body).hexdigest()),
            _object(f"items/{item_id}/segments.sha256", len(listing), manifest.image_root),
        ]
        if manifest.content:
            objects.append(
                _object(f"items/{item_id}", manifest.size, manifest.content["sha256"], "content")
            )
        data: dict[str, JsonValue] = {
            "unreadable_bytes": manifest.unreadable_bytes,
            "stored_objects": manifest.stored_objects,
            "reused_objects": taken.existing_objects,
        }
        fields = {
            "item": item_id, "refs": [intent], "objects": objects, "data": data,
            "result": manifest.result,
        }  # fmt: skip
        self.case.record(lambda: Draft("item.acquired", fields))
        return manifest

    def _manifest(self, item_id: str, taken: Taken, started: str) -> Manifest:
        scribe = self.case.store.require_scribe()
        changes = self.source.changes()
        segments = taken.segments
        absent = None
        if taken.content is None:
            absent = (
                "a file set; every object has its own digest" if taken.members is not None
                else "not taken for an image of this size; --linear takes it"
            )  # fmt: skip
        notes = list(taken.notes)
        if isinstance(self.source, Concluding):
            notes += self.source.conclude(taken.content)
        if segments.size == 0 and not (taken.members and taken.members.count):
            notes.append("the source is empty")
        elif segments.size and taken.holes_bytes == segments.size:
            notes.append("every byte of the source is zero")
        partial = bool(taken.gaps or changes or notes)
        return Manifest(
            case=self.case.case_id,
            item=item_id,
            kind=self.kind,
            layout="set" if taken.members is not None else "image",
            source={"text": clean(self.source.text), **self.source.facts},
            parents=self.parents,
            method=self.source.method,
            parameters={
                "workers": self.workers, "read_back": self.read_back, **self.facts,
            },
            tool=scribe.tool,
            host={"name": clean(platform.node(), 100), "kernel": clean(platform.release(), 100),
                  "pid": os.getpid()},
            started=started,
            ended=self._now(),
            size=segments.size,
            segment_size=segments.segment_size,
            image_root=segments.root,
            content=taken.content,
            content_absent=absent,
            holes_bytes=taken.holes_bytes,
            unreadable_bytes=sum(gap.length for gap in taken.gaps),
            unreadable_ranges=len(taken.gaps),
            unreadable=taken.gaps[:MAX_LISTED_GAPS],
            stored_objects=taken.stored_objects,
            stored_bytes=taken.stored_bytes,
            source_changes=_some(changes),
            members=taken.members,
            notes=_some(notes),
            result="partial" if partial else "ok",
        )  # fmt: skip

    def _failed(self, item_id: str, intent: int, error: Exception) -> None:
        """Record why, if the store can still take it; the intent stays open otherwise."""
        fields = {
            "item": item_id, "refs": [intent], "result": "failed",
            "note": clean(f"{type(error).__name__}: {error}", 500),
        }  # fmt: skip

        def build() -> Draft | None:
            # What failed may have been the answer to a write that did happen.
            return None if self.case.item(item_id).acquired else Draft("acquire.failed", fields)

        with contextlib.suppress(StoreError, IntegrityError):
            self.case.record(build)

    def _read_back(self, item_id: str, manifest: Manifest) -> None:
        findings = check_content(self.case, manifest)
        result = "failed" if findings else "ok"
        fields: dict[str, Any] = {
            "item": item_id, "result": result,
            "objects": [_object(f"items/{item_id}/segments.sha256",
                                len(self.case.segments(manifest).encode()), manifest.image_root)],
            "data": {"how": "read back after acquisition"},
        }  # fmt: skip
        self.case.record(lambda: Draft("item.verified", fields))
        if findings:
            raise IntegrityError(
                f"item {item_id} does not read back as it was stored: {findings[0]}",
                hint="the disk or its controller is failing; keep the source and use another store",
            )

    def _now(self) -> str:
        return format_time(self.case.store.require_scribe().clock())


def _some(remarks: list[str], limit: int = 200) -> list[str]:
    """Return remarks fit for a manifest; how many were left out is the last of them."""
    shown = [clean(remark, 400) for remark in remarks[:limit]]
    return [*shown, f"and {len(remarks) - limit} more"] if len(remarks) > limit else shown


def _object(uri: str, size: int, sha256: str, as_: str = "stored") -> StoredObject:
    return StoredObject.model_validate({"uri": uri, "size": size, "sha256": sha256, "as": as_})
