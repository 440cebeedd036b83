# SPDX-License-Identifier: Apache-2.0
"""Items of a case that explain another one: taken from the same host, read beside it by its job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from evidence_store.child import Objects
from evidence_store.item import Manifest
from evidence_store.store import Case

LIVE, SIDE_CARS = "live response", "memory side-cars"
"""What `type` in the source of such an item says."""

_WANTED: Mapping[str, tuple[str, ...]] = {
    LIVE: ("clock", "processes", "processes.proc", "sockets.proc", "modules", "system",
           "collectors.jsonl"),
    SIDE_CARS: ("btf.vmlinux", "kallsyms"),
}  # fmt: skip
MAX_ANSWERS = 500  # a request has 128 KiB
_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


@dataclass(frozen=True)
class Beside:
    """An item beside another.

    Attributes:
        type: `LIVE` or `SIDE_CARS`.
        item: its id; `digest`: what identifies it.
        objects: names of the answers that a job reads -> objects that hold them.
    """

    type: str
    item: str
    digest: str
    objects: Mapping[str, str]

    def request(self) -> dict[str, Any]:
        """As JSON for the child."""
        return {"item": self.item, "digest": self.digest, "objects": dict(self.objects)}


def find(case: Case, manifest: Manifest, kind: str) -> Beside | None:
    """Return what stands beside an item, None if the case has nothing.

    Side-cars have the item as their parent; of several the last counts. A live response is of the
    same target; of several the one that was taken nearest in time.

    Raises: IntegrityError, StoreError.
    """
    found: list[tuple[timedelta, Manifest]] = []
    target = manifest.source.get("target")
    for record in case.state.items.values():
        if record.acquired is None or record.disposed:
            continue
        if kind == SIDE_CARS and manifest.item not in record.parents:
            continue
        if record.kind != ("live" if kind == LIVE else "record"):
            continue
        other = case.manifest(record.item_id)
        if other.source.get("type") != kind or other.members is None:
            continue
        if kind == LIVE and (target is None or other.source.get("target") != target):
            continue
        away = abs(datetime.fromisoformat(other.started) - datetime.fromisoformat(manifest.ended))
        found.append((away, other))
    if not found:
        return None
    nearest = min(found, key=lambda f: f[0])[1] if kind == LIVE else found[-1][1]
    objects = {n: o for n, o in answers(case, nearest.item).items() if n in _WANTED[kind]}
    return Beside(kind, nearest.item, nearest.image_root, objects)


def answers(case: Case, item: str) -> dict[str, str]:
    """Return the answers of a live response, or side-cars: name -> object that holds it.

    Files that were taken beside them are left out: their names have a "/".

    Raises: IntegrityError, StoreError.
    """
    names = ((str(m["name"]), str(m["object"])) for m in case.members(item) if m["object"])
    small = ((name, held) for name, held in names if "/" not in name and len(name) <= 64)
    return dict(islice(small, MAX_ANSWERS))


def taken_ns(manifest: Manifest) -> tuple[int, int]:
    """Return when an item was taken, begin and end, by the examiner's clock; ns since 1970."""
    first, last = (
        (datetime.fromisoformat(text) - _EPOCH) // timedelta(microseconds=1) * 1000
        for text in (manifest.started, manifest.ended)
    )
    return first, last


@dataclass
class Watched:
    """Objects of an item, and whether any was read: only then is it a parent of the result."""

    objects: Objects
    read: bool = False

    def open_object(self, name: str) -> int | None:
        """See `evidence_store.child.Objects`."""
        self.read = True
        return self.objects.open_object(name)
