# SPDX-License-Identifier: Apache-2.0
"""Whether the host that answered over SSH is the one whose disk was frozen.

A host key that was taken at first use says nothing about who shows it. The frozen disk does: it is
read from its snapshot, past the host, so that neither a machine in between nor the host itself can
choose the answer.

Source: AWS decision A6 (docs/design.md); sshd(8), FILES, ssh_host_*_key.pub.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from pydantic import JsonValue

from acquisition.errors import AcquisitionError
from acquisition.login import fingerprint, parse_host_keys
from analysis.errors import AnalysisError
from evidence_store.model import clean
from pipeline import steps

if TYPE_CHECKING:
    from acquisition.target import Target
    from evidence_store.store import Case
    from pipeline.accounts import Accounts
    from pipeline.workflow import Did, Job

STEP = "hostkeys"
PUBLIC_KEYS = "/etc/ssh/ssh_host_*_key.pub"
KINDS = "memory", "live"
"""Kinds of items that are taken over SSH and stand for a host."""
_MAX_KEY = 16 << 10

Outcome = Literal["same", "differs", "not compared"]


@dataclass(frozen=True)
class Shown:
    """The key that a host showed when an item was taken from it, as OpenSSH writes one."""

    item: str
    key: str


def shown(case: Case, target: str) -> list[Shown]:
    """Return what was taken from a target, by its ARN, over SSH and not by a pinned key.

    Raises: IntegrityError, StoreError.
    """
    found = []
    for record in case.state.items.values():
        if record.kind in KINDS and record.acquired and not record.disposed:
            source = case.manifest(record.item_id).source
            pinned = source.get("host_key_trust") == "pinned"
            if source.get("target") == target and source.get("host_key") and not pinned:
                found.append(Shown(record.item_id, str(source["host_key"])))
    return found


def judge(
    taken: Iterable[Shown], held: Mapping[str, str], unread: Iterable[str] = ()
) -> tuple[Outcome, list[str]]:
    """Return whether the keys that were shown are among those of the disk, and what to tell. Pure.

    Args:
        taken: what was shown.
        held: keys that the disk holds -> where.
        unread: why a part of the disk could not be looked into.
    """
    if not held:
        why = "; ".join(unread) or f"no volume holds {PUBLIC_KEYS}"
        return "not compared", [
            f"source not authenticated: {', '.join(s.item for s in taken)} came from a host whose "
            f"key nothing confirms: {clean(why, 300)}"
        ]
    strange = [s for s in taken if _bare(s.key) not in {_bare(key) for key in held}]
    there = ", ".join(sorted(_said(key) for key in held))
    return ("differs" if strange else "same"), [
        f"source not authenticated: {s.item} came from a host that showed {_said(s.key)}, and the "
        f"disk holds {clean(there, 400)}: another machine answered, or HostKey in its sshd_config "
        "names a file elsewhere" for s in strange
    ]  # fmt: skip


def _bare(key: str) -> tuple[str, ...]:
    """Return a key without its comment."""
    return tuple(key.split()[:2])


def _said(key: str) -> str:
    return f"{clean(key.split()[0], 40)} {fingerprint(key)}"


def held(case: Case, item: str) -> dict[str, str]:
    """Return the keys that a triage took -> where they lay. What is no key is left out.

    Raises: IntegrityError, StoreError.
    """
    found: dict[str, str] = {}
    objects = case.objects(item)
    for member in case.members(item):
        fd = objects.open_object(member["object"]) if member["object"] else None
        if fd is None:
            continue
        with os.fdopen(fd, "rb") as f:
            text = f.read(_MAX_KEY).decode("utf-8", "replace")
        for line in text.splitlines():
            with contextlib.suppress(ValueError):  # a host may have written anything there
                keys = [key for key in parse_host_keys([line]) if " " in key]
                found.update(dict.fromkeys(keys, clean(str(member["name"]), 300)))
    return found


@dataclass(frozen=True)
class Compared:
    """What a comparison came to. `gaps`: in words; `keys`: how many the disk holds."""

    outcome: Outcome
    gaps: tuple[str, ...]
    keys: int


def compare(
    case: Case, accounts: Accounts, target: Target, snapshots: Iterable[str], *,
    say: Callable[[str], None] = lambda _line: None, check: Callable[[], None] = lambda: None,
) -> Compared | None:  # fmt: skip
    """Compare the keys that a host showed with those that its frozen disk holds, and record it.

    The files go into custody. None: nothing was taken from the host at first use.

    Raises: IntegrityError, StoreError, PipelineError.
    """
    from pipeline.triage import Request, SnapshotTriage

    taken = shown(case, target.arn)
    if not taken:
        return None
    keys: dict[str, str] = {}
    unread: list[str] = []
    looked: list[JsonValue] = []
    for name in snapshots:
        check()
        snapshot = replace(target, kind="snapshot", resource_id=name)
        try:
            done = SnapshotTriage(case, accounts, snapshot, say, lambda _done, _total: check()).run(
                Request((PUBLIC_KEYS,))
            )
        except (AcquisitionError, AnalysisError) as e:
            unread.append(f"{name}: {clean(str(e), 200)}")
            continue
        if done.item:
            looked.append(done.item)
            keys.update(held(case, done.item))
    outcome, gaps = judge(taken, keys, unread)
    items: list[JsonValue] = [s.item for s in taken]
    steps.note(case, STEP, target.arn, outcome=outcome, items=items, keys=looked)
    return Compared(outcome, tuple(gaps), len(keys))


def hostkeys(job: Job) -> Did:
    """Compare the keys that the target showed over SSH with those of its frozen disk."""
    from pipeline.workflow import Did, frozen

    assert job.target is not None  # noqa: S101
    done = compare(
        job.case, job.session.accounts(job.case.case_id), job.target,
        (result.snapshot for result in frozen(job)), say=job.say, check=job.check,
    )  # fmt: skip
    if done is None:
        return Did((), {"nothing": "nothing was taken over SSH at first use"})
    return Did(done.gaps, {"outcome": done.outcome, "keys": done.keys})
