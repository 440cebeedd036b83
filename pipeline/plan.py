# SPDX-License-Identifier: Apache-2.0
"""What an acquisition will do, before it does it: steps, calls, bytes, minutes, money. Pure.

Upper bounds: how many blocks were ever written is only known once a snapshot can be listed, so
every block of a volume is counted. Prices are assumptions (docs/aws-assumptions.md), for orders of
magnitude.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from acquisition.snapshot import Observed
from acquisition.target import Target
from evidence_store.digest import SEGMENT_BYTES

BLOCK_BYTES = 512 << 10
LISTED_AT_ONCE = 10_000
BLOCKS_PER_SECOND = 1000.0  # quota of GetSnapshotBlock for a snapshot
COPY_BYTES_PER_SECOND = 100 << 20  # a cautious guess; AWS states none for plain copies
_GIB = 1 << 30

# USD; see docs/aws-assumptions.md.
PRICE_GET = 0.003 / 1000
PRICE_LIST = 0.0006 / 1000
PRICE_PUT = 0.005 / 1000
PRICE_SNAPSHOT_MONTH = 0.05  # a GiB
PRICE_STORED_MONTH = 0.023  # a GiB


@dataclass(frozen=True)
class Step:
    """One step, at most: calls by operation, bytes moved, USD once (`usd`) and each month."""

    name: str
    about: str
    calls: Mapping[str, int]
    size: int = 0
    seconds: float = 0.0
    usd: float = 0.0
    monthly: float = 0.0

    def document(self) -> dict[str, JsonValue]:
        """As JSON; money in USD, rounded to cents."""
        return {
            "step": self.name, "about": self.about, "calls": dict(self.calls), "bytes": self.size,
            "seconds": round(self.seconds), "usd": round(self.usd, 2),
            "usd_a_month": round(self.monthly, 2),
        }  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """Every step of an acquisition of volumes, in order."""

    target: Target
    observed: Observed
    steps: tuple[Step, ...]

    @property
    def seconds(self) -> float:
        """Wall clock, reading and copying beside each other."""
        by_name = {step.name: step.seconds for step in self.steps}
        beside = max(by_name.get("read", 0.0), by_name.get("copy", 0.0))
        return beside + sum(s for n, s in by_name.items() if n not in ("read", "copy"))

    def document(self) -> dict[str, JsonValue]:
        """As JSON."""
        return {
            "target": self.target.arn,
            "volumes": [dict(v.facts) for v in self.observed.volumes],
            "gaps": list(self.observed.gaps),
            "steps": [step.document() for step in self.steps],
            "calls": sum(sum(step.calls.values()) for step in self.steps),
            "bytes": sum(step.size for step in self.steps),
            "seconds": round(self.seconds),
            "usd": round(sum(step.usd for step in self.steps), 2),
            "usd_a_month": round(sum(step.monthly for step in self.steps), 2),
        }  # fmt: skip


def made(plans: Sequence[Plan]) -> dict[str, JsonValue]:
    """Return one plan as JSON; several as `plans`, with their sums. Pure."""
    documents = [each.document() for each in plans]
    if len(plans) == 1:
        return documents[0]
    steps = [step for each in plans for step in each.steps]
    return {
        "plans": list(documents),
        "calls": sum(sum(step.calls.values()) for step in steps),
        "bytes": sum(step.size for step in steps),
        "seconds": round(sum(each.seconds for each in plans)),
        "usd": round(sum(step.usd for step in steps), 2),
        "usd_a_month": round(sum(step.monthly for step in steps), 2),
    }


def plan_volumes(
    target: Target, observed: Observed, *, copy: bool = True, lock: bool = True, in_s3: bool = False
) -> Plan:
    """Return the plan of `acquire volume`, or of `acquire snapshot`. Pure.

    Args:
        target: what is acquired.
        observed: its volumes.
        copy: whether the Audit copy is made and proved.
        lock: whether snapshots are locked.
        in_s3: whether the store is in S3.
    """
    volumes = observed.volumes
    count, size = len(volumes), sum(v.size for v in volumes)
    blocks = size // BLOCK_BYTES
    lists = sum(-(-v.size // BLOCK_BYTES) // LISTED_AT_ONCE + 1 for v in volumes)
    segments = sum(-(-v.size // SEGMENT_BYTES) for v in volumes)
    gib = size / _GIB
    reading = max((v.size for v in volumes), default=0) // BLOCK_BYTES / BLOCKS_PER_SECOND
    read_calls = {"GetSnapshotBlock": blocks, "ListSnapshotBlocks": lists}
    read_usd = blocks * PRICE_GET + lists * PRICE_LIST
    if target.kind == "snapshot":
        steps = [Step("observe", "look at the snapshot", {"DescribeSnapshots": 1})]
    else:
        steps = [
            Step("observe", "look at the target and its volumes",
                 {"DescribeInstances": 1, "DescribeInstanceTypes": 1, "DescribeVolumes": 1}),
            Step("freeze", f"one snapshot call for {count} volumes at the same moment",
                 {"CreateSnapshots": 1, "DescribeSnapshots": 2},
                 monthly=gib * PRICE_SNAPSHOT_MONTH),
        ]  # fmt: skip
    if lock:
        steps.append(Step("lock", "against deletion, source and copy",
                          {"LockSnapshot": count * (1 + copy),
                           "DescribeLockedSnapshots": 2 * count * (1 + copy)}))  # fmt: skip
    steps.append(
        Step("read", "every written block by EBS direct, into the store",
             {**read_calls, **({"PutObject": segments, "HeadObject": segments} if in_s3 else {})},
             size, reading, read_usd + (segments * PRICE_PUT if in_s3 else 0),
             gib * PRICE_STORED_MONTH if in_s3 else 0)
    )  # fmt: skip
    if copy:
        largest = max((v.size for v in volumes), default=0)
        steps += [
            Step("copy", "share, copy under the Audit key, wait",
                 {"ModifySnapshotAttribute": count, "CopySnapshot": count}, size,
                 largest / COPY_BYTES_PER_SECOND, monthly=gib * PRICE_SNAPSHOT_MONTH),
            Step("prove", "the copy is read whole and compared with the item", read_calls, size,
                 size // BLOCK_BYTES / BLOCKS_PER_SECOND, read_usd),
        ]  # fmt: skip
    return Plan(target, observed, tuple(steps))
