# SPDX-License-Identifier: Apache-2.0
"""One target: observe, freeze (one CreateSnapshots), lock; what the ledger says was frozen.

A target can be frozen several times: each is a *round*, with its own snapshots. A run goes on with
the newest; with `again` it begins another, once the bytes of the newest are in the case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import JsonValue

from acquisition.errors import AcquisitionError
from acquisition.snapshot import Observed, Snapshot, Volume
from acquisition.target import Target
from pipeline import baseline, steps
from pipeline.baseline import Held
from pipeline.run import Run
from pipeline.steps import Recorder


@dataclass
class Result:
    """What became of one volume.

    Attributes:
        copy: id of the Audit snapshot.
        proved: it holds the same as the item.
        since: item that a delta was read since.
        fetched: bytes that AWS was asked for in this run.
        owner: whose the snapshot is.
        gone: nothing more can be read: the snapshot was deleted.
        notes: what is worth knowing and no gap.
        sha256: of all bytes of the item in order, "" if it has none (very large volumes).
    """

    volume: Volume
    snapshot: str = ""
    copy: str = ""
    item: str = ""
    proved: bool = False
    gaps: list[str] = field(default_factory=list)
    since: str = ""
    fetched: int = 0
    owner: str = ""
    gone: bool = False
    notes: list[str] = field(default_factory=list)
    sha256: str = ""

    def document(self) -> dict[str, JsonValue]:
        """As JSON."""
        return {
            "volume": self.volume.volume_id, "size": self.volume.size,
            "device": self.volume.device, "snapshot": self.snapshot, "copy": self.copy,
            "item": self.item, "sha256": self.sha256 or None, "proved": self.proved,
            "since": self.since or None,
            "fetched": self.fetched, "gaps": list(self.gaps), "notes": list(self.notes),
        }  # fmt: skip


@dataclass
class Outcome:
    """What became of a target. `gaps`: of it as a whole; `broken`: evidence differs."""

    target: Target
    volumes: list[Result]
    gaps: list[str]
    broken: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return not self.gaps and not any(v.gaps for v in self.volumes)

    def document(self) -> dict[str, JsonValue]:
        """As JSON."""
        return {
            "target": self.target.arn, "volumes": [v.document() for v in self.volumes],
            "gaps": list(self.gaps), "notes": list(self.notes),
        }  # fmt: skip


@dataclass
class Freeze:
    """Freezes one target."""

    run: Run
    target: Target
    again: bool = False
    since: Sequence[str] = ()

    def take(self, items: Mapping[str, Held]) -> Outcome:
        """Freeze, unless the ledger says that it is frozen; return a result for each volume.

        Args:
            items: snapshots that are in the case already.

        Raises: AcquisitionError, StoreError, AccountError, ConfigError.
        """
        take = self._existing if self.target.kind == "snapshot" else self._frozen
        outcome = take(items)
        for gap in outcome.gaps:
            steps.skipped(self.run.recorder, "snapshot", self.target.arn, gap)
        return outcome

    def arn(self, volume_id: str) -> str:
        """Return the ARN of a volume in the target's account and Region."""
        target = self.target
        return f"arn:{target.partition}:ec2:{target.region}:{target.account}:volume/{volume_id}"

    def observe(self) -> Observed:
        """Look at the target, and record that it was. Raises: AcquisitionError, StoreError."""
        return self._observe(
            name(self.target.arn, max(newest(self.run.recorder, self.target.arn), 1))
        )

    def recorded(self) -> list[Result]:
        """Return the volumes of the newest freeze, as the ledger says; [] if it is not done."""
        case = self.run.recorder
        freeze = name(self.target.arn, newest(case, self.target.arn))
        found = []
        for event in case.ledger.events if frozen(case, freeze) else ():
            data = event.data or {}
            if data.get("step") == "snapshot" and data.get("of") == freeze:
                volume = Volume(
                    str(data["volume"]), int(str(data["size"])), str(data["device"]),
                    str(data["kms_key"]), str(data["zone"]), str(data["type"]),
                )  # fmt: skip
                found.append(Result(volume, str(data["snapshot"]), owner=self.target.account))
        return sorted(found, key=lambda r: (r.volume.device, r.volume.volume_id))

    def _frozen(self, items: Mapping[str, Held]) -> Outcome:
        number = newest(self.run.recorder, self.target.arn)
        recorded = frozen(self.run.recorder, name(self.target.arn, number))
        outcome = Outcome(self.target, [], [])
        if self.again and recorded and number:
            if all(s in items or _is_lost(self.run.recorder, s) for s in recorded.values()):
                number, recorded = number + 1, {}
            else:
                outcome.notes.append("the newest freeze is not read yet: this goes on with it")
        freeze = name(self.target.arn, max(number, 1))
        try:
            observed = self._observe(freeze)
        except AcquisitionError as e:
            if not recorded:
                raise
            observed = Observed(())
            outcome.notes.append(f"{e}; what was frozen before is taken")
        sizes = {self.arn(v.volume_id): v.size for v in observed.volumes}
        for volume_id, snapshot_id in recorded.items():
            if snapshot_id in items:
                sizes.setdefault(self.arn(volume_id), items[snapshot_id].size)
        baseline.check(self.run.case, items, self.since, sizes, recorded.values())
        if observed.volumes or not recorded:
            outcome.gaps += observed.gaps
        if not recorded and observed.volumes:
            recorded = {v: s.snapshot_id for v, s in self._freeze(freeze, observed).items()}
        self._fill(outcome, observed, recorded, items)
        return outcome

    def _observe(self, freeze: str) -> Observed:
        run, target = self.run, self.target
        observed = run.ec2(target.account, target.region).observe(target.kind, target.resource_id)
        begun = steps.begin(run.recorder, "observe", freeze)
        if begun.done is None:
            steps.done(
                run.recorder, begun, state=observed.state, volumes=len(observed.volumes),
                gaps=len(observed.gaps),
            )  # fmt: skip
        return observed

    def _freeze(self, freeze: str, observed: Observed) -> dict[str, Snapshot]:
        run, target = self.run, self.target
        begun = steps.begin(run.recorder, "freeze", freeze)
        run.pace(target.account, target.region)
        run.say(f"{target.resource_id}: freeze {len(observed.volumes)} volumes")
        try:
            made = run.ec2(target.account, target.region).freeze(
                observed, run.tags, run.mark("freeze", freeze), begun.since, resumed=begun.resumed
            )
        except AcquisitionError as e:
            steps.failed(run.recorder, begun, str(e))
            raise
        # One event for each: an instance may have more volumes than an event has room for. The
        # freeze is done when all of them stand.
        for volume in observed.volumes:
            steps.note(
                run.recorder, "snapshot", volume.volume_id, of=freeze, **volume.facts,
                snapshot=made[volume.volume_id].snapshot_id,
                started=made[volume.volume_id].facts["started"],
            )  # fmt: skip
        steps.done(run.recorder, begun, volumes=len(made))
        return made

    def _fill(
        self, outcome: Outcome, observed: Observed, recorded: Mapping[str, str],
        items: Mapping[str, Held],
    ) -> None:  # fmt: skip
        """One result for each frozen volume, attached still or not; what came later is a gap."""
        attached = {v.volume_id: v for v in observed.volumes}
        ec2 = self.run.ec2(self.target.account, self.target.region)
        for volume_id, snapshot_id in sorted(recorded.items()):
            found = ec2.describe(snapshot_id)
            size = found.size if found else 0
            result = Result(attached.get(volume_id) or Volume(volume_id, size), snapshot_id)
            result.owner = self.target.account
            outcome.volumes.append(result)
            if found is None:
                self._gone(result, items)
        if recorded:
            outcome.gaps += [
                f"{volume_id} was attached after the target was frozen; take it by itself, or all "
                "with --again"
                for volume_id in sorted(attached.keys() - recorded.keys())
            ]

    def _gone(self, result: Result, items: Mapping[str, Held]) -> None:
        case, snapshot = self.run.recorder, result.snapshot
        result.gone = True
        if outcome_of(case, "delete", snapshot) is not None and snapshot in items:
            result.item, result.proved = items[snapshot].item, True
            result.copy = str((outcome_of(case, "copy", snapshot) or {}).get("copy", ""))
            result.notes.append(f"{snapshot} was deleted by cleanup once its copy was proved")
            return
        lost = (
            f"snapshot {snapshot} of {result.volume.volume_id}, which the ledger records, is not "
            "there any more; find out who deleted it (CloudTrail: DeleteSnapshot)"
        )
        steps.skipped(case, "lost", snapshot, lost)
        result.gaps.append(lost)

    def _existing(self, items: Mapping[str, Held]) -> Outcome:
        """A snapshot that is there already: nothing is frozen."""
        run, target = self.run, self.target
        begun = steps.begin(run.recorder, "observe", target.arn)
        ec2, snapshot_id = run.ec2(target.account, target.region), target.resource_id
        found = ec2.describe(snapshot_id)
        outcome = Outcome(target, [], [])
        if found is None:
            result = Result(Volume("-", 0), snapshot_id)
            outcome.volumes.append(result)
            if begun.done is None:
                e = AcquisitionError(
                    f"{target.account} can see no snapshot {snapshot_id} in {target.region}",
                    hint="check id, account and Region, or have its owner share it",
                )
                steps.failed(run.recorder, begun, str(e))
                raise e
            self._gone(result, items)
            return outcome
        volume = Volume(found.volume_id, found.size, kms_key=found.kms_key)
        baseline.check(
            run.case, items, self.since, {self.arn(volume.volume_id): found.size}, [snapshot_id]
        )
        if begun.done is None:
            steps.done(
                run.recorder, begun, **found.facts, volume=found.volume_id, account=target.account
            )
        outcome.volumes.append(Result(volume, snapshot_id, owner=found.owner))
        return outcome

    def hold(self, result: Result) -> None:
        """Lock the source while it is still pending; if that is refused it is read all the same.

        Raises: AcquisitionError.
        """
        run, target = self.run, self.target
        if not run.lock:
            return
        if result.owner != target.account:
            raise AcquisitionError(
                f"{result.snapshot} is {result.owner}'s: it cannot be locked here and may go at any"
                " time"
            )
        begun = steps.begin(run.recorder, "lock", result.snapshot)
        held = run.ec2(target.account, target.region).lock(result.snapshot, run.lock)
        if begun.done is None:
            steps.done(run.recorder, begun, **held)


def name(arn: str, number: int) -> str:
    """Return what the ledger calls the freeze of a round."""
    return arn if number <= 1 else f"{arn} round {number}"


def newest(case: Recorder, arn: str) -> int:
    """Return the number of the newest round that was begun; 0 if none was."""
    number = 0
    while steps.events_of(case, "freeze", name(arn, number + 1)):
        number += 1
    return number


def frozen(case: Recorder, freeze: str) -> dict[str, str]:
    """Return volume id -> snapshot id of a round, as the ledger says; {} if it is not done."""
    if outcome_of(case, "freeze", freeze) is None:
        return {}
    listed = [event.data or {} for event in case.ledger.events]
    return {
        str(data["volume"]): str(data["snapshot"]) for data in listed
        if data.get("step") == "snapshot" and data.get("of") == freeze
    }  # fmt: skip


def outcome_of(case: Recorder, step: str, target: str) -> Mapping[str, JsonValue] | None:
    """Return what a step came to, or None if it is not done."""
    events = steps.events_of(case, step, target)
    return next((e.data for e in reversed(events) if e.action == "step.done"), None)


def _is_lost(case: Recorder, snapshot: str) -> bool:
    return bool(steps.events_of(case, "lost", snapshot))
