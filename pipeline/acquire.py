# SPDX-License-Identifier: Apache-2.0
"""`acquire volume`: the volumes of a target into custody, without a host in between.

    observe → freeze (one CreateSnapshots) → lock → read by EBS direct ────────────→ prove
                                              └→ check keys → share → copy → lock ──┘

Each step is an intent and an outcome in the ledger. A volume that cannot go on is a gap; the others
do. The read in the member account begins as soon as the snapshot is complete, beside the copy; that
the Audit copy holds the same bytes is proved by reading it whole and comparing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

from pydantic import JsonValue

from acquisition.blocks import SnapshotImage, snapshot_facts
from acquisition.ebs import EbsDirect, Endpoint
from acquisition.errors import AcquisitionError
from acquisition.snapshot import Ec2, Lock, Observed, Snapshot, Volume, check_key, nonce
from acquisition.target import Target
from evidence_store.errors import Error, IntegrityError, SourceChangedError
from evidence_store.ingest import Ingested
from evidence_store.ledger import Draft
from evidence_store.model import clean
from evidence_store.store import Case, case_tags
from evidence_store.transfer import Progress
from evidence_store.transfer.recheck import differences
from pipeline import steps
from pipeline.accounts import AccountError, Accounts
from pipeline.config import Settings

Say = Callable[[str], None]


class Stopped(Exception):
    """The run ended while this was waiting; its step stays open, for the next run."""


@dataclass
class Result:
    """What became of one volume. `copy`: id of the Audit snapshot; `proved`: it holds the same."""

    volume: Volume
    snapshot: str = ""
    copy: str = ""
    item: str = ""
    proved: bool = False
    gaps: list[str] = field(default_factory=list)

    def document(self) -> dict[str, JsonValue]:
        """As JSON."""
        return {
            "volume": self.volume.volume_id, "size": self.volume.size,
            "device": self.volume.device, "snapshot": self.snapshot, "copy": self.copy,
            "item": self.item, "proved": self.proved, "gaps": list(self.gaps),
        }  # fmt: skip


@dataclass
class Outcome:
    """What `acquire` did. `gaps`: of the target as a whole; `broken`: evidence differs."""

    target: Target
    volumes: list[Result]
    gaps: list[str]
    broken: bool = False

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return not self.gaps and not any(v.gaps for v in self.volumes)


@dataclass
class Acquisition:
    """One run over one target.

    Attributes:
        copy: make the Audit copy and prove it; without, the item rests on the locked source alone.
    """

    case: Case
    accounts: Accounts
    settings: Settings
    target: Target
    copy: bool = True
    say: Say = lambda _line: None
    progress: Callable[[str], Progress] = lambda _label: lambda _done, _total: None
    _stop: threading.Event = field(default_factory=threading.Event, init=False)

    def run(self) -> Outcome:
        """Do it, or go on with it. Raises: AcquisitionError, StoreError, ConfigError."""
        recorded = self._recorded()
        try:
            observed = self._observe()
        except AcquisitionError as e:
            if not recorded:
                raise
            observed = Observed((), (f"{e}; only what was frozen before is taken",))
        outcome = Outcome(self.target, [], list(observed.gaps))
        if recorded or observed.volumes:
            frozen = recorded or {v: s.snapshot_id for v, s in self._freeze(observed).items()}
            self._fill(outcome, observed, frozen)
        for gap in outcome.gaps:
            steps.skipped(self.case, "snapshot", self.target.arn, gap)
        found = [r for r in outcome.volumes if not r.gaps]
        for result in found:
            self._try(outcome, result, partial(self._hold, result))
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(8, thread_name_prefix="copy"))
            stack.push(self._stop_waiting)
            reader = stack.enter_context(self._reader(self.target.account))
            copies = {}
            ready = []
            for result in found:
                if self._try(outcome, result, partial(self._complete, result)):
                    ready.append(result)
                    if self.copy:
                        copies[result.snapshot] = pool.submit(self._copied, result)
            for result in ready:
                self._try(outcome, result, partial(self._read, result, reader))
            for result in ready:
                if (made := copies.get(result.snapshot)) is not None:
                    prove = partial(self._proved_by, result, made)
                    self._try(outcome, result, prove)
        return outcome

    def _stop_waiting(self, kind: object, _error: object, _trace: object) -> None:
        """What ends a run ends the waits of its threads too: they can last a day."""
        if kind is not None:
            self._stop.set()

    def _sleep(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise Stopped

    def _recorded(self) -> dict[str, str]:
        """Volume id -> snapshot id, as the ledger says it was frozen; {} if not yet."""
        events = steps.events_of(self.case, "freeze", self.target.arn)
        if not any(event.action == "step.done" for event in events):
            return {}
        listed = [event.data or {} for event in self.case.ledger.events]
        return {
            str(data["volume"]): str(data["snapshot"]) for data in listed
            if data.get("step") == "snapshot" and data.get("of") == self.target.arn
        }  # fmt: skip

    def _fill(self, outcome: Outcome, observed: Observed, frozen: Mapping[str, str]) -> None:
        """One result for each frozen volume, attached still or not; what came later is a gap."""
        attached = {v.volume_id: v for v in observed.volumes}
        ec2 = self._ec2(self.target.account)
        for volume_id, snapshot_id in sorted(frozen.items()):
            found = ec2.describe(snapshot_id)
            size = found.size if found else 0
            result = Result(attached.get(volume_id) or Volume(volume_id, size), snapshot_id)
            outcome.volumes.append(result)
            if found is None:
                result.gaps.append(
                    f"snapshot {snapshot_id} of {volume_id}, which the ledger records, is not "
                    "there any more; find out who deleted it (CloudTrail: DeleteSnapshot)"
                )
        outcome.gaps += [
            f"{volume_id} was attached after the target was frozen; take it by itself"
            for volume_id in sorted(attached.keys() - frozen.keys())
        ]

    def _try(self, outcome: Outcome, result: Result, work: Callable[[], None]) -> bool:
        """Do one thing for one volume; what fails is its gap, and the others go on."""
        try:
            work()
        except IntegrityError as e:
            outcome.broken = True
            self._gap(result, e)
        except (AcquisitionError, AccountError, SourceChangedError) as e:
            self._gap(result, e)
        else:
            return True
        return False

    def _gap(self, result: Result, e: Error) -> None:
        text = f"{e}" + (f" ({e.hint})" if e.hint else "")
        result.gaps.append(text)
        self.say(f"{result.volume.volume_id}: {text}")

    # -- the steps -------------------------------------------------------------------------------

    def _ec2(self, account: str) -> Ec2:
        region = self.target.region
        return Ec2(
            self.accounts.client("ec2", account, region),
            self.accounts.client("ec2", account, region, once=True), account, region, self._sleep,
        )  # fmt: skip

    def _mark(self, step: str, target: str) -> str:
        return nonce(self.case.store.identity.store_id, self.case.case_id, step, target)

    @property
    def _tags(self) -> dict[str, str]:
        state = self.case.state
        return case_tags(self.case.case_id, state.ticket, state.contact)

    @property
    def _lock(self) -> Lock | None:
        aws = self.settings.aws
        return None if aws.source_lock == "none" else Lock(aws.source_lock, aws.source_lock_days)

    def _observe(self) -> Observed:
        observed = self._ec2(self.target.account).observe(
            self.target.kind, self.target.resource_id
        )  # fmt: skip
        begun = steps.begin(self.case, "observe", self.target.arn)
        if begun.done is None:
            steps.done(
                self.case, begun, state=observed.state, volumes=len(observed.volumes),
                gaps=len(observed.gaps),
            )  # fmt: skip
        return observed

    def _freeze(self, observed: Observed) -> dict[str, Snapshot]:
        begun = steps.begin(self.case, "freeze", self.target.arn)
        self.say(f"freeze {self.target.resource_id}: {len(observed.volumes)} volumes")
        try:
            made = self._ec2(self.target.account).freeze(
                observed, self._tags, self._mark("freeze", self.target.arn), begun.since,
                resumed=begun.resumed,
            )  # fmt: skip
        except AcquisitionError as e:
            steps.failed(self.case, begun, str(e))
            raise
        # One event for each: an instance may have more volumes than an event has room for. The
        # freeze is done when all of them stand.
        for volume in observed.volumes:
            steps.note(
                self.case, "snapshot", volume.volume_id, of=self.target.arn, **volume.facts,
                snapshot=made[volume.volume_id].snapshot_id,
                started=made[volume.volume_id].facts["started"],
            )  # fmt: skip
        steps.done(self.case, begun, volumes=len(made))
        return made

    def _hold(self, result: Result) -> None:
        """Lock the source while it is still pending; if that is refused it is read all the same."""
        if not self._lock:
            return
        begun = steps.begin(self.case, "lock", result.snapshot)
        held = self._ec2(self.target.account).lock(result.snapshot, self._lock)
        if begun.done is None:
            steps.done(self.case, begun, **held)

    def _complete(self, result: Result) -> None:
        self.say(f"{result.volume.volume_id}: waiting for {result.snapshot}")
        self._ec2(self.target.account).completed(result.snapshot)

    def _read(self, result: Result, reader: EbsDirect) -> None:
        client = self.accounts.client("ec2", self.target.account, self.target.region)
        facts = {
            **snapshot_facts(client, result.snapshot),
            "lineage": self._lineage(result), "volume_device": result.volume.device,
        }  # fmt: skip
        text = f"{result.volume.volume_id} of {self.target.resource_id}"
        with SnapshotImage(reader, result.snapshot, text=text, facts=facts) as image:
            taken = self.case.ingest(
                "disk", image, workers=self.settings.workers,
                progress=self.progress(result.volume.volume_id),
            )  # fmt: skip
        self._taken(result, taken)

    def _taken(self, result: Result, taken: Ingested) -> None:
        result.item = taken.item_id
        said = "is complete already as" if taken.existing else "acquired as"
        self.say(f"{result.volume.volume_id} {said} {taken.item_id}")
        if taken.manifest.result != "ok":
            result.gaps.append(
                f"{taken.manifest.unreadable_bytes} bytes of {result.snapshot} are unreadable"
            )

    def _lineage(self, result: Result) -> list[JsonValue]:
        """Our own: the volume id of a copied snapshot is arbitrary (EBS-3)."""
        return [
            f"arn:{self.target.partition}:ec2:{self.target.region}:{self.target.account}:volume/"
            f"{result.volume.volume_id}",
            f"arn:{self.target.partition}:ec2:{self.target.region}::snapshot/{result.snapshot}",
        ]

    def _copied(self, result: Result) -> str:
        """Share, copy, lock and wait; return the id of the Audit snapshot."""
        aws = self.settings.aws
        snapshot = self._ec2(self.target.account).completed(result.snapshot)
        audit = aws.audit_account
        begun = steps.begin(self.case, "copy", snapshot.snapshot_id, to=audit)
        try:
            if snapshot.kms_key:
                owner = snapshot.kms_key.split(":")[4] or self.target.account
                kms = self.accounts.client("kms", owner, self.target.region)
                check_key(kms, snapshot.kms_key, audit, self.target.partition)
            self._ec2(self.target.account).share(snapshot.snapshot_id, audit)
            there = self._ec2(audit)
            made = there.copy(
                snapshot, self.target.region, aws.snapshot_key, self._tags,
                self._mark("copy", snapshot.snapshot_id), begun.since, resumed=begun.resumed,
                make=begun.done is None,
            )  # fmt: skip
            self.say(f"{result.volume.volume_id}: waiting for the copy {made}")
            facts: dict[str, JsonValue] = {"copy": made, "kms_key": aws.snapshot_key}
            if self._lock:
                facts["lock"] = dict(there.lock(made, self._lock))
            there.completed(made)
        except AcquisitionError as e:
            if begun.done is None:
                steps.failed(self.case, begun, str(e))
            raise
        if begun.done is None:
            steps.done(self.case, begun, **facts)
        return made

    def _proved_by(self, result: Result, copy: Future[str]) -> None:
        self._prove(result, copy.result())

    def _prove(self, result: Result, made: str) -> None:
        """Read the Audit copy whole and compare it with the item."""
        result.copy = made
        if not result.item:
            return
        manifest = self.case.manifest(result.item)
        if manifest.unreadable_bytes:
            raise AcquisitionError(
                f"{result.item} has unreadable ranges, so {made} cannot be proved equal to it"
            )
        begun = steps.begin(self.case, "prove", f"{made} {manifest.image_root}", item=result.item)
        if begun.done is not None:
            result.proved = True
            return
        self.say(f"{result.volume.volume_id}: comparing the copy {made} with {result.item}")
        with (
            self._reader(self.settings.aws.audit_account) as reader,
            SnapshotImage(reader, made, text=made) as image,
        ):
            wrong = differences(
                image, self.case.segments(manifest), progress=self.progress(f"prove {made}")
            )
        fields: dict[str, object] = {
            "item": result.item, "refs": [begun.seq], "result": "failed" if wrong else "ok",
            "data": {"how": "the Audit copy was read whole and compared", "snapshot": made,
                     "different": len(wrong)},
        }  # fmt: skip
        self.case.record(lambda: Draft("item.verified", fields))
        if wrong:
            steps.failed(self.case, begun, f"{len(wrong)} segments differ, the first is {wrong[0]}")
            raise IntegrityError(
                f"the copy {made} differs from {result.item}: {clean(wrong[0], 200)}",
                hint="keep both; the source snapshot can be read again",
            )
        steps.done(self.case, begun, compared=manifest.size)
        result.proved = True

    def _reader(self, account: str) -> EbsDirect:
        session = self.accounts.session(account)
        client = self.accounts.client("ebs", account, self.target.region)
        return EbsDirect(Endpoint.of(session, client, account))


def missing_settings(settings: Settings) -> Mapping[str, str]:
    """Return what the Audit copy needs and the settings do not say: name -> meaning."""
    needed = {
        "aws.audit_account": settings.aws.audit_account,
        "aws.snapshot_key": settings.aws.snapshot_key,
    }
    means = {name: about for name, _, about in settings.flat()}
    return {name: means[name] for name, value in needed.items() if not value}
