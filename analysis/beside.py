# SPDX-License-Identifier: Apache-2.0
"""Items of a case that explain another one: taken from the same host, read beside it by its job."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from analysis.errors import AnalysisError
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
        named: somebody chose it, so that its boot may not be known to be the same.
    """

    type: str
    item: str
    digest: str
    objects: Mapping[str, str]
    named: bool = False

    def request(self) -> dict[str, Any]:
        """As JSON for the child."""
        return {"item": self.item, "digest": self.digest, "objects": dict(self.objects),
                "named": self.named}  # fmt: skip


def find(
    case: Case, manifest: Manifest, kind: str, *, boot: str = "",
    boot_of: Callable[[str], str] = lambda _item: "", named: str = "",
) -> Beside | None:  # fmt: skip
    """Return what stands beside an item, None if the case has nothing.

    Side-cars have the item as their parent; of several the last counts. A live response is the one
    that was named; else it is of the same target; where the item states no target, as memory that
    others took, of the same boot. Of several the one that was taken nearest in time.

    Args:
        case: where to look.
        manifest: of the item.
        kind: `LIVE` or `SIDE_CARS`.
        boot: id of the boot that the item is of, "" if it does not say.
        boot_of: item of a live response -> id of its boot, "" if it does not say.
        named: item of the live response that somebody chose.

    Raises: AnalysisError if what was named is no live response; ItemNotFoundError; IntegrityError,
    StoreError.
    """
    found: list[tuple[timedelta, Manifest]] = []
    target = manifest.source.get("target")
    for record in [case.item(named)] if named else case.state.items.values():
        if record.acquired is None or record.disposed:
            continue
        if kind == SIDE_CARS and manifest.item not in record.parents:
            continue
        if record.kind != ("live" if kind == LIVE else "record"):
            continue
        other = case.manifest(record.item_id)
        if other.source.get("type") != kind or other.members is None:
            continue
        if kind == LIVE and not named:
            if target is not None and other.source.get("target") != target:
                continue
            if target is None and not (boot and boot_of(other.item) == boot):
                continue
        away = abs(datetime.fromisoformat(other.started) - datetime.fromisoformat(manifest.ended))
        found.append((away, other))
    if named and not found:
        raise AnalysisError(
            f"{named} is no live response that is complete",
            hint=f"impound item list {case.case_id} shows the kinds",
        )
    if not found:
        return None
    nearest = min(found, key=lambda f: f[0])[1] if kind == LIVE else found[-1][1]
    objects = {n: o for n, o in answers(case, nearest.item).items() if n in _WANTED[kind]}
    return Beside(kind, nearest.item, nearest.image_root, objects, bool(named))


def alone(manifest: Manifest, boot: str) -> str:
    """Say why no live response stands beside memory."""
    if manifest.source.get("target") is not None:
        return "the case has no live response of the same host"
    if boot:
        return f"no live response of the case is of the same boot ({boot})"
    return (
        "the memory does not say of which boot it is: nobody had asked its kernel for the boot id, "
        "or its symbols do not name it; --beside ITEM names a live response"
    )


def answers(case: Case, item: str) -> dict[str, str]:
    """Return the answers of a live response, or side-cars: name -> object that holds it.

    Files that were taken beside them are left out: their names have a "/".

    Raises: IntegrityError, StoreError.
    """
    names = ((str(m["name"]), str(m["object"])) for m in case.members(item) if m["object"])
    small = ((name, held) for name, held in names if "/" not in name and len(name) <= 64)
    return dict(islice(small, MAX_ANSWERS))


def taken_ns(manifest: Manifest) -> tuple[int, int] | None:
    """Return when a host's memory was read, begin and end, by the examiner's clock; ns since 1970.

    None of memory that others took: its item only says when it came into the case.
    """
    if manifest.source.get("target") is None:
        return None
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
