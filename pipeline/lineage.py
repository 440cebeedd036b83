# SPDX-License-Identifier: Apache-2.0
"""Where an item read from a snapshot comes from, as ledger and manifest say. Pure.

    volume → snapshot (→ copy under a key that can be shared) → shared with → copy in the Audit
    account → item

The volume id that AWS states for a copied snapshot is arbitrary (EBS User Guide, "Copy an Amazon
EBS snapshot"), so lineage is read from what was recorded when each link was made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from evidence_store.model import CustodyEvent


@dataclass(frozen=True)
class Link:
    """One link of a chain.

    Attributes:
        what: `volume`, `snapshot`, `share`, `copy` or `item`.
        name: id of the resource, account that it is shared with, or item.
        about: what is known of it, in words.
        entry: sequence number of the custody event that says so; None: the manifest does.
    """

    what: str
    name: str
    about: str
    entry: int | None

    def document(self) -> dict[str, JsonValue]:
        """As JSON."""
        return {"what": self.what, "id": self.name, "about": self.about, "entry": self.entry}

    def __str__(self) -> str:
        about = f" ({self.about})" if self.about else ""
        what = "shared with" if self.what == "share" else self.what
        return f"{what} {self.name}{about}"


def lineage(
    item: str, source: Mapping[str, JsonValue], events: Iterable[CustodyEvent]
) -> list[Link]:
    """Return the chain of an item, from the volume on; [] if it was not read from a snapshot.

    Args:
        item: its id.
        source: `source` of its manifest.
        events: of the verified ledger, in order.
    """
    snapshot = source.get("snapshot")
    if not isinstance(snapshot, str):
        return []
    steps: dict[tuple[str, str, str], tuple[int, Mapping[str, JsonValue]]] = {}
    compared: dict[str, tuple[int, str]] = {}
    for event in events:
        data = event.data or {}
        if event.action in ("step.started", "step.done"):
            step = str(data.get("step"))
            # A volume may be frozen more than once: what tells them apart is what was made.
            of = str(data.get("snapshot" if step == "snapshot" else "target"))
            steps[event.action, step, of] = event.seq, data
        elif event.action == "item.verified" and event.item == item and data.get("snapshot"):
            compared[str(data["snapshot"])] = event.seq, event.result
    return [*_origin(source, snapshot, steps), *_copies(snapshot, steps, compared, item)]


_Steps = Mapping[tuple[str, str, str], tuple[int, Mapping[str, JsonValue]]]


def _origin(source: Mapping[str, JsonValue], snapshot: str, steps: _Steps) -> list[Link]:
    arns = source.get("lineage")
    known = [str(arn) for arn in arns] if isinstance(arns, list) else []
    volume = next((a.rpartition("/")[2] for a in known if ":volume/" in a), "")
    links = []
    if volume:
        seq, frozen = steps.get(("step.done", "snapshot", snapshot), (None, {}))
        of = str(frozen.get("of") or "").rpartition("/")[2]
        device = str(source.get("volume_device") or "")
        links.append(Link("volume", volume, _words(device, of if of != volume else ""), seq))
    seq, held = steps.get(("step.done", "lock", snapshot), (None, {}))
    about = _words(str(source.get("owner") or ""), f"begun {source.get('started')}", _lock(held))
    return [*links, Link("snapshot", snapshot, about, seq)]


def _copies(
    snapshot: str, steps: _Steps, compared: Mapping[str, tuple[int, str]], item: str
) -> list[Link]:
    seq, made = steps.get(("step.done", "copy", snapshot), (None, {}))
    copy = str(made.get("copy") or "")
    if not copy:
        return [Link("item", item, "read from it; no copy was made", None)]
    begun, intent = steps.get(("step.started", "copy", snapshot), (None, {}))
    account = str(intent.get("to") or "")
    links = []
    if through := str(made.get("through") or ""):  # what could not be shared, under a key that can
        own, copied = steps.get(("step.done", "reencrypt", snapshot), (None, {}))
        words = _words(_lock(copied.get("lock")), f"under {copied.get('kms_key')}")
        links.append(Link("copy", through, words, own))
    shared, _ = steps.get(("step.done", "share", through or snapshot), (begun, {}))
    lock = made.get("lock")
    about = _words(account, _lock(lock), f"under {made.get('kms_key')}")
    when, result = compared.get(copy, (None, ""))
    said = {"ok": "read whole and equal", "": "not compared"}.get(result, "NOT EQUAL")
    return [
        *links, Link("share", account, "", shared), Link("copy", copy, about, seq),
        Link("item", item, said, when),
    ]  # fmt: skip


def _lock(held: JsonValue | Mapping[str, JsonValue]) -> str:
    if not isinstance(held, Mapping) or not held:
        return "not locked"
    return f"locked ({held.get('state')}) until {held.get('until')}"


def _words(*parts: str) -> str:
    return ", ".join(part for part in parts if part)
