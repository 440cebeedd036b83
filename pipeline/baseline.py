# SPDX-License-Identifier: Apache-2.0
"""Which item of a case holds which snapshot of which volume, and where a delta may begin."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from acquisition.errors import AcquisitionError
from evidence_store.model import clean
from evidence_store.store import Case

LAST = "last"


@dataclass(frozen=True)
class Held:
    """A complete item that was read from a snapshot.

    `volume`: ARN of the volume that was frozen, "" if it is not known; `started`: of the snapshot.
    """

    item: str
    snapshot: str
    volume: str
    size: int
    started: str
    unreadable: int


def held(case: Case) -> dict[str, Held]:
    """Return snapshot id -> the item that holds it, in the order of the items.

    Raises: StoreError, IntegrityError.
    """
    found: dict[str, Held] = {}
    for record in case.state.items.values():
        if record.kind != "disk" or record.acquired is None or record.disposed:
            continue
        manifest = case.manifest(record.item_id)
        source = manifest.source
        snapshot, lineage = source.get("snapshot"), source.get("lineage")
        if not isinstance(snapshot, str):
            continue
        volume = str(lineage[0]) if isinstance(lineage, list) and lineage else ""
        found.setdefault(snapshot, Held(
            record.item_id, snapshot, volume if ":volume/" in volume else "", manifest.size,
            str(source.get("started") or ""), manifest.unreadable_bytes,
        ))  # fmt: skip
    return found


def named(case: Case, items: Mapping[str, Held], text: str) -> Held:
    """Return the item that `text`, an item or a snapshot, names as the base of a delta.

    Raises: AcquisitionError if it is none, or not complete; ItemNotFoundError.
    """
    if text in items:
        return items[text]
    if text.startswith("snap-"):
        raise AcquisitionError(
            f"no complete item of case {case.case_id} holds {clean(text, 60)}",
            hint=f"impound acquire snapshot {clean(text, 60)} --case {case.case_id} takes it",
        )
    record = case.item(text)
    if record.acquired is None:
        raise AcquisitionError(
            f"item {text} is {record.state}, so nothing can be read since it",
            hint="let its acquisition complete first: run the command that began it again",
        )
    for each in items.values():
        if each.item == text:
            return each
    raise AcquisitionError(
        f"item {text} was not read from a snapshot",
        hint=f"impound item list {case.case_id} shows which items were",
    )


def base_of(
    case: Case, items: Mapping[str, Held], since: Sequence[str], volume: str, snapshot: str
) -> Held | None:
    """Return the item since which a snapshot of `volume` (its ARN) is read; None: read it whole.

    The newest of those that `since` names and that are of this volume; `last`: of all.

    Raises: as `named`.
    """
    chosen: list[Held] = []
    for text in since:
        chosen += items.values() if text == LAST else [named(case, items, text)]
    fitting = [h for h in chosen if h.volume == volume and h.snapshot != snapshot]
    return max(fitting, key=lambda h: h.started, default=None)


def check(
    case: Case, items: Mapping[str, Held], since: Sequence[str], volumes: Mapping[str, int],
    frozen: Iterable[str],
) -> None:  # fmt: skip
    """Check, before anything is made, that what `since` names can be a base.

    Args:
        case: whose items.
        items: those that hold snapshots.
        since: as given.
        volumes: ARN -> bytes of the target's volumes.
        frozen: snapshots that will be read, if they are known already.

    Raises: AcquisitionError.
    """
    for text in since:
        if text == LAST:
            continue
        base = named(case, items, text)
        if base.snapshot in set(frozen):
            raise AcquisitionError(
                f"{base.item} holds {base.snapshot}, the very snapshot that is to be read",
                hint="ask for a later point in time with --again",
            )
        if base.volume not in volumes:
            raise AcquisitionError(
                f"{base.item} is of {base.volume or 'a volume that is not known'}, "
                "which is none of the target's",
                hint=f"--since {LAST} takes the newest item of each volume",
            )
        check_size(base, volumes[base.volume])


def check_size(base: Held, size: int) -> None:
    """Raises: AcquisitionError if a volume is smaller than it was."""
    if base.size > size:
        raise AcquisitionError(
            f"the volume has {size} bytes, in {base.item} it has {base.size}: EBS volumes do not "
            "shrink",
            hint="take it whole, without --since, and find out what happened",
        )
