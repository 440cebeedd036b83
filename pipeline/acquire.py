# SPDX-License-Identifier: Apache-2.0
"""`acquire volume` and `acquire snapshot`: EBS into custody, without a host in between.

    observe → freeze (one CreateSnapshots) → lock → read by EBS direct ────────────→ prove
                                              └→ check keys → share → copy → lock ──┘

All targets are frozen before anything is read: evidence is fleeting. Each step is an intent and an
outcome in the ledger. A target or volume that cannot go on is a gap; the others do. The read in the
member account begins as soon as a snapshot is complete, beside the copies; that an Audit copy holds
the same bytes is proved by reading it whole and comparing.

Volumes are read one after the other, in the order in which their snapshots complete: one fills the
quota, and memory stays that of one. At most `COPIES` copies are under way (EBS-2).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial

from pydantic import JsonValue

from acquisition.blocks import Base, DeltaImage, SnapshotImage, snapshot_facts
from acquisition.errors import AcquisitionError
from acquisition.snapshot import SnapshotFailedError
from acquisition.target import Target
from evidence_store.errors import Error, IntegrityError, SourceChangedError
from evidence_store.ingest import Ingested
from evidence_store.item import Manifest
from evidence_store.ledger import Draft
from evidence_store.model import clean
from evidence_store.store import Case
from evidence_store.transfer import ImageSource, Progress
from evidence_store.transfer.recheck import differences
from pipeline import baseline, steps
from pipeline.accounts import Accounts
from pipeline.auditcopy import AuditCopy
from pipeline.baseline import Held
from pipeline.config import Settings
from pipeline.errors import PipelineError
from pipeline.freeze import Freeze, Outcome, Result
from pipeline.run import Run, Say

COPIES = 20  # at once into one Region of an account; not adjustable
_FREEZES = 8
_WAITS = 32


@dataclass
class Taking:
    """One target under way: how it was frozen, and what became of it until now."""

    freeze: Freeze
    outcome: Outcome

    @property
    def target(self) -> Target:
        """The target."""
        return self.freeze.target


Via = Callable[[str, str, str, Mapping[str, JsonValue]], AbstractContextManager[ImageSource]]


@dataclass
class Acquisition:
    """One run over one target, or over many.

    Attributes:
        copy: make the Audit copies and prove them; without, items rest on the locked sources alone.
        more: further targets.
        again: freeze anew what was frozen and read before.
        since: items or snapshots, or `last`: only what changed since is fetched.
        ending: set, it ends all waits: they can last a day.
        via: gives the device of a volume of an Audit copy, in place of EBS direct; arguments are
            copy, snapshot that it is a copy of, text, facts. The copy is made before the read then.

    `run` does it all. What does the steps one by one uses `taking`, `complete`, `read`, `copied`
    and `prove`, and then `close`.
    """

    case: Case
    accounts: Accounts
    settings: Settings
    target: Target
    copy: bool = True
    say: Say = lambda _line: None
    progress: Callable[[str], Progress] = lambda _label: lambda _done, _total: None
    more: Sequence[Target] = ()
    again: bool = False
    since: Sequence[str] = ()
    ending: threading.Event = field(default_factory=threading.Event)
    via: Via | None = None
    _run: Run = field(init=False)

    def __post_init__(self) -> None:
        self._run = Run(
            self.case, self.accounts, self.settings, self.say, self.progress, self.ending
        )

    def close(self) -> None:
        """Close what was opened to read."""
        self._run.close()

    @cached_property
    def items(self) -> Mapping[str, Held]:
        """Snapshots that are in the case already."""
        return baseline.held(self.case)

    def taking(self, target: Target) -> Taking:
        """Return a target that nothing became of yet."""
        freeze = Freeze(self._run, target, self.again, self.since)
        return Taking(freeze, Outcome(target, [], []))

    def run(self) -> Outcome:
        """Do it for the first target. Raises: as `run_all`."""
        return self.run_all()[0]

    def run_all(self) -> list[Outcome]:
        """Do it, or go on with it; return what became of each target.

        Raises: StoreError; if nothing could be frozen: AcquisitionError, AccountError, ConfigError.
        """
        with ExitStack() as stack:
            stack.callback(self.close)
            stack.push(self._stop_waiting)
            outcomes, taking = self._freeze_all()
            self._take(taking)
        return outcomes

    def _stop_waiting(self, kind: object, _error: object, _trace: object) -> None:
        """What ends a run ends the waits of its threads too."""
        if kind is not None:
            self._run.stop()

    def _freeze_all(self) -> tuple[list[Outcome], list[Taking]]:
        freezes = [
            Freeze(self._run, target, self.again, self.since)
            for target in {t.arn: t for t in (self.target, *self.more)}.values()
        ]
        outcomes: list[Outcome] = []
        taking: list[Taking] = []
        errors: list[Error] = []
        with self._pool(_FREEZES, "freeze") as pool:
            made = [pool.submit(freeze.take, self.items) for freeze in freezes]
            for freeze, future in zip(freezes, made, strict=True):
                try:
                    outcome = future.result()
                except (AcquisitionError, PipelineError) as e:
                    errors.append(e)
                    outcome = Outcome(freeze.target, [], [])
                    self._say_gap(outcome.gaps, freeze.target.resource_id, e)
                else:
                    taking.append(Taking(freeze, outcome))
                outcomes.append(outcome)
            if errors and not taking:
                raise errors[0]
            locks = [
                pool.submit(self._try, each, result, partial(each.freeze.hold, result))
                for each in taking for result in each.outcome.volumes if not result.gone
            ]  # fmt: skip
            for lock in locks:
                lock.result()
        return outcomes, taking

    def _pool(self, threads: int, named: str) -> _Pool:
        return _Pool(self._run, threads, named)

    def _take(self, taking: list[Taking]) -> None:
        found = [(t, r) for t in taking for r in t.outcome.volumes if not r.gone]
        copies: dict[int, Future[bool]] = {}
        with self._pool(COPIES, "copy") as copying, self._pool(_WAITS, "wait") as waiting:

            def complete(each: Taking, result: Result) -> bool:
                if not self._try(each, result, partial(self.complete, each, result)):
                    return False
                if self.copy and self.via is None:
                    work = partial(self.copied, each, result)
                    copies[id(result)] = copying.submit(self._try, each, result, work)
                return True

            waits = {waiting.submit(complete, t, r): (t, r) for t, r in found}
            for future in as_completed(waits):
                each, result = waits[future]
                read = future.result() and self._try(each, result, partial(self.read, each, result))
                if read and self.via is not None:
                    self._try(each, result, partial(self.prove, each, result))
            copied = {copies[id(r)]: (t, r) for t, r in found if id(r) in copies}
            for future_of_copy in as_completed(copied):
                each, result = copied[future_of_copy]
                future_of_copy.result()
                if result.copy:
                    self._try(each, result, partial(self.prove, each, result))

    def _try(self, each: Taking, result: Result, work: Callable[[], None]) -> bool:
        """Do one thing for one volume; what fails is its gap, and the others go on."""
        try:
            work()
        except IntegrityError as e:
            each.outcome.broken = True
            self._say_gap(result.gaps, result.volume.volume_id, e)
        except (AcquisitionError, PipelineError, SourceChangedError) as e:
            self._say_gap(result.gaps, result.volume.volume_id, e)
        else:
            return True
        return False

    def _say_gap(self, gaps: list[str], about: str, e: Error) -> None:
        text = f"{e}" + (f" ({e.hint})" if e.hint else "")
        gaps.append(text)
        self.say(f"{about}: {text}")

    # -- the steps -------------------------------------------------------------------------------

    def complete(self, each: Taking, result: Result) -> None:
        """Wait until a snapshot is complete. Raises: AcquisitionError, Stopped."""
        target = each.target
        self.say(f"{result.volume.volume_id}: waiting for {result.snapshot}")
        try:
            found = self._run.ec2(target.account, target.region).completed(result.snapshot)
        except SnapshotFailedError as e:
            steps.skipped(self.case, "lost", result.snapshot, str(e))
            raise
        if not found.kms_key:
            steps.note(self.case, "source", result.snapshot, encrypted=False)
            result.notes.append(f"{result.snapshot} is not encrypted")

    def read(self, each: Taking, result: Result) -> None:
        """Read a snapshot into the case, unless it is there; with `via`, copy it first.

        Raises: AcquisitionError, StoreError, SourceChangedError.
        """
        if self.via is not None:
            self.copied(each, result)
        if known := self.items.get(result.snapshot):
            result.item = known.item
            result.sha256 = _sha256(self.case.manifest(known.item))
            self.say(f"{result.volume.volume_id} is complete already as {known.item}")
            self._say_unreadable(result, known.unreadable)
            return
        target = each.target
        base = baseline.base_of(
            self.case, self.items, self.since, each.freeze.arn(result.volume.volume_id),
            result.snapshot,
        )  # fmt: skip
        client = self.accounts.client("ec2", target.account, target.region)
        facts = {
            **snapshot_facts(client, result.snapshot),
            "lineage": _lineage(each, result), "volume_device": result.volume.device,
        }  # fmt: skip
        text = result.snapshot
        if target.kind != "snapshot":
            text = f"{result.volume.volume_id} of {target.resource_id}"
        if self.via is not None:
            with self.via(result.copy, result.snapshot, text, facts) as device:
                taken = self.case.ingest(
                    "disk", device, workers=self.settings.workers,
                    progress=self.progress(result.volume.volume_id),
                )  # fmt: skip
                result.fetched = device.size
            self._taken(result, taken)
            return
        reader = self._run.reader(target.account, target.region)
        with ExitStack() as stack:
            image = SnapshotImage(reader, result.snapshot, text=text, facts=facts)
            source: SnapshotImage | DeltaImage = stack.enter_context(image)
            if base:
                baseline.check_size(base, image.size)
                source = stack.enter_context(DeltaImage(image, Base.of(self.case, base.item)))
                result.since = base.item
            elif self.since:
                result.notes.append("no item of this volume to begin from: read whole")
            taken = self.case.ingest(
                "disk", source, workers=self.settings.workers,
                parents=[base.item] if base else [],
                progress=self.progress(result.volume.volume_id),
            )  # fmt: skip
            result.fetched = image.received.bytes
        self._taken(result, taken)

    def _taken(self, result: Result, taken: Ingested) -> None:
        result.item = taken.item_id
        result.sha256 = _sha256(taken.manifest)
        said = "is complete already as" if taken.existing else "acquired as"
        how = f", {result.fetched} bytes fetched" if not taken.existing else ""
        how += f", the rest as in {result.since}" if result.since else ""
        self.say(f"{result.volume.volume_id} {said} {taken.item_id}{how}")
        self._say_unreadable(result, taken.manifest.unreadable_bytes)

    def _say_unreadable(self, result: Result, count: int) -> None:
        if count:
            result.gaps.append(f"{count} bytes of {result.snapshot} are unreadable")

    def copied(self, each: Taking, result: Result) -> None:
        """Have a snapshot copied under the Audit key. Raises: AcquisitionError, AccountError."""
        copier = AuditCopy(self._run, each.target)
        result.copy = copier.make(result.snapshot, result.volume.volume_id)

    def prove(self, each: Taking, result: Result) -> None:
        """Read the Audit copy whole and compare it with the item."""
        if not result.item:
            return
        made = result.copy
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
        reader = self._run.reader(self.settings.aws.audit_account, each.target.region)
        with SnapshotImage(reader, made, text=made) as image:
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
        self.say(f"{result.volume.volume_id}: {made} holds the same as {result.item}")


class _Pool:
    """Threads that what ends a run ends too: nothing that waits in the queue is begun then."""

    def __init__(self, run: Run, threads: int, named: str) -> None:
        self._run = run
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=named)

    def __enter__(self) -> ThreadPoolExecutor:
        return self._pool

    def __exit__(self, kind: object, _error: object, _trace: object) -> None:
        if kind is not None:
            self._run.stop()
        self._pool.shutdown(cancel_futures=kind is not None)


_COPIED = "vol-ffffffff"  # what EC2 shows for the volume of a copied snapshot


def _lineage(each: Taking, result: Result) -> list[JsonValue]:
    """Our own: the volume id of a copied snapshot is arbitrary (EBS-3)."""
    target = each.target
    snapshot = f"arn:{target.partition}:ec2:{target.region}::snapshot/{result.snapshot}"
    if target.kind == "snapshot" and (
        result.owner != target.account or result.volume.volume_id == _COPIED
    ):
        return [snapshot]
    return [each.freeze.arn(result.volume.volume_id), snapshot]


def _sha256(manifest: Manifest) -> str:
    return (manifest.content or {}).get("sha256", "")


def missing_settings(settings: Settings) -> Mapping[str, str]:
    """Return what the Audit copy needs and the settings do not say: name -> meaning."""
    needed = {
        "aws.audit_account": settings.aws.audit_account,
        "aws.snapshot_key": settings.aws.snapshot_key,
    }
    means = {name: about for name, _, about in settings.flat()}
    return {name: means[name] for name, value in needed.items() if not value}
