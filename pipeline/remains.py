# SPDX-License-Identifier: Apache-2.0
"""`acquire remains`: what is left of a terminated target is found, held and taken into custody.

    search → restore from the Recycle Bin → search again → tag, lock → take, volume by volume

What is taken goes the way of every acquisition: a volume that is left is frozen and read, a
snapshot is read as it is. If the best that is left of a volume cannot be read, the next best is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from pydantic import JsonValue

from acquisition.backup import Vaults
from acquisition.errors import AcquisitionError
from acquisition.remains import (
    Decision,
    Deed,
    Found,
    Keeper,
    NothingLeftError,
    Piece,
    Search,
    candidates,
    decide,
)
from acquisition.snapshot import Lock
from acquisition.target import Kind, Target
from evidence_store.errors import Error
from evidence_store.model import clean
from evidence_store.store import Case
from evidence_store.transfer import Progress
from pipeline import steps
from pipeline.accounts import Accounts
from pipeline.acquire import Acquisition
from pipeline.config import Settings
from pipeline.errors import PipelineError
from pipeline.freeze import Outcome, Result, frozen, name, newest
from pipeline.run import Run, Say

_ENDINGS = ("TerminateInstances", "DeleteVolume", "DeleteSnapshot", "DeregisterImage")
_ROUNDS = 3  # an image from the bin shows snapshots, which may lie in the bin too


def lock_of(piece: Piece, lock: Lock) -> Lock:
    """Return how a snapshot is locked. Pure.

    What may be another's is never locked so that its owner cannot take it back.
    """
    return replace(lock, mode="governance") if piece.doubt else lock


@dataclass
class Rescue:
    """What became of a search. `taken`: piece id -> result; `broken`: evidence differs.

    Attributes:
        kept: what was restored, locked or tagged, as (action, id).
        frozen: snapshots that this case had made before, if only planned.
        gaps: what was not seen, not held or not read, in words; volumes that are lost stand in
            `decision.lost`.
    """

    target: Target
    found: Found
    decision: Decision
    kept: list[tuple[str, str]] = field(default_factory=list)
    taken: dict[str, Result] = field(default_factory=dict)
    gaps: list[str] = field(default_factory=list)
    frozen: tuple[str, ...] = ()
    broken: bool = False

    @property
    def items(self) -> list[str]:
        """Ids of what is in custody now."""
        return [r.item for r in self.taken.values() if r.item]

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return not (
            self.gaps or self.decision.lost or any(r.gaps for r in self.taken.values())
        )  # fmt: skip

    @property
    def ended(self) -> list[Deed]:
        """The calls by which it was ended."""
        return _endings(self.found)

    def document(self) -> dict[str, JsonValue]:
        """As JSON."""
        return {
            "target": self.target.arn, "state": self.found.state, "reason": self.found.reason,
            "ended": [_event(d) for d in self.ended],
            "volumes": [{"volume": v, "device": d} for v, d in sorted(self.found.volumes.items())],
            "searched": [
                {"place": k.place, "found": k.found, "denied": k.denied, "why": k.why}
                for k in self.found.looks
            ],
            "left": [dict(p.facts) for p in self.found.pieces],
            "holds": [{"action": h.action, "id": h.piece.resource_id}
                      for h in self.decision.holds],
            "take": [p.resource_id for p in self.decision.take],
            "kept": [{"action": a, "id": i} for a, i in self.kept],
            "taken": [{"from": i, **r.document()} for i, r in self.taken.items()],
            "lost": [{"volume": v, "why": w} for v, w in self.decision.lost.items()],
            "gaps": list(self.gaps),
        }  # fmt: skip

    def nothing(self, *, planned: bool = False) -> NothingLeftError | None:
        """The error that this is, if nothing is in custody (or, if only planned, could be)."""
        if self.items or (planned and (self.decision.take or self.frozen)):
            return None
        looks = self.found.looks
        where = ", ".join(seen.place.partition(" (")[0] for seen in looks if not seen.why)
        unseen = [seen.place for seen in looks if seen.why]
        left = "was acquired" if self.found.pieces else "is left"
        return NothingLeftError(
            f"nothing of {self.target.resource_id} {left}; looked at: {where or 'nothing'}"
            + (f"; NOT looked at: {', '.join(unseen)}" if unseen else ""),
            hint="give the role these rights and run this again" if unseen else
            "look in the Audit account, in other Regions and in backup vaults for copies",
        )  # fmt: skip


def remains(
    case: Case, accounts: Accounts, settings: Settings, target: Target, *, copy: bool = True,
    say: Say = lambda _line: None,
    progress: Callable[[str], Progress] = lambda _label: lambda _done, _total: None,
) -> Rescue:  # fmt: skip
    """Find, hold and take what is left of a terminated instance or a deleted volume.

    What `acquire volume` froze before the target ended is taken first. Done again it makes nothing
    twice. The outcome may hold nothing at all: see `Rescue.nothing`.

    Args:
        case: where to.
        accounts: how they are reached.
        settings: of the installation.
        target: an instance or a volume.
        copy: whether Audit copies are made and proved.
        say: takes a line for the person.
        progress: makes a callback for (bytes done, bytes in all).

    Raises: AcquisitionError if the target is not terminated; AccountError, StoreError, ConfigError.
    """
    return _Rescue(case, accounts, settings, target, copy, say, progress).run()


def look(case: Case | None, accounts: Accounts, target: Target) -> Rescue:
    """Search and decide, and do nothing: what `remains` would begin with.

    Raises: AcquisitionError if the target is not terminated; AccountError, ConfigError.
    """
    found = _search(case, accounts, target)
    decision = decide(found)
    own = tuple(sorted(str(d.get("snapshot")) for d in _frozen_by(case, target)))
    return Rescue(target, found, decision, gaps=list(decision.gaps), frozen=own)


def _frozen_by(case: Case | None, target: Target) -> list[Mapping[str, JsonValue]]:
    """What the ledger says that this case froze of a target, in all rounds."""
    return [d for d in _notes(case) if d.get("step") == "snapshot"
            and str(d.get("of")).partition(" ")[0] == target.arn]  # fmt: skip


def _notes(case: Case | None) -> list[Mapping[str, JsonValue]]:
    return [e.data or {} for e in case.ledger.events] if case else []


def _search(case: Case | None, accounts: Accounts, target: Target) -> Found:
    """Look for what is left; what this case froze itself is not among it."""
    account, region = target.account, target.region
    search = Search(
        accounts.client("ec2", account, region), accounts.client("cloudtrail", account, region),
        accounts.client("config", account, region), account,
        accounts.client("backup", account, region),
        f"arn:{target.partition}:ec2:{region}:{account}",
    )  # fmt: skip
    known = [str(d["target"]) for d in _frozen_by(case, target)]
    found = search.run(target.kind, target.resource_id, known)
    if target.kind == "instance" and not found.is_over:
        raise AcquisitionError(
            f"{target.resource_id} is {found.state}: it is all there",
            hint=f"impound acquire volume {target.arn}",
        )
    own = {d.get(key) for d in _notes(case) for key in ("snapshot", "copy")
           if d.get("step") in ("snapshot", "copy", "reencrypt")}  # fmt: skip
    return replace(found, pieces=tuple(p for p in found.pieces if p.resource_id not in own))


@dataclass
class _Rescue:
    case: Case
    accounts: Accounts
    settings: Settings
    target: Target
    copy: bool
    say: Say
    progress: Callable[[str], Progress]

    def run(self) -> Rescue:
        begun = steps.begin(self.case, "search", self.target.arn)
        kept: list[tuple[str, str]] = []
        failed: dict[str, str] = {}
        self._finish_restores(kept, failed)
        found = self._see()
        for _ in range(_ROUNDS):
            waiting = [
                h.piece for h in decide(found).holds
                if h.action == "restore" and h.piece.resource_id not in failed
            ]  # fmt: skip
            if not waiting:
                break
            for piece in waiting:
                self._restore(piece, kept, failed)
            earlier, found = found.deeds, self._see()
            deeds = {d.event_id: d for d in (*earlier, *found.deeds)}.values()
            found = replace(found, deeds=tuple(sorted(deeds, key=lambda d: (d.at, d.event_id))))
        if begun.done is None:
            steps.done(
                self.case, begun, state=found.state, volumes=len(found.volumes),
                left=len(found.pieces),
            )  # fmt: skip
        # What stays in the bin cannot be read from there.
        there = replace(found, pieces=tuple(
            p for p in found.pieces if not p.kind.startswith("binned")
        ))  # fmt: skip
        decision = replace(decide(there), lost=decide(found).lost)
        rescue = Rescue(self.target, found, decision, kept, gaps=[*decision.gaps])
        rescue.gaps += [f"{what}: {why}" for what, why in failed.items()]
        self._hold(rescue)
        left = candidates(there)
        before = self._take_frozen(rescue, {pieces[0].volume_id for pieces in left})
        self._take(rescue, [pieces for pieces in left if pieces[0].volume_id not in before])
        lost = {v: why for v, why in decision.lost.items() if v not in before}
        rescue.decision = replace(decision, lost=lost)
        for volume_id, why in lost.items():
            steps.skipped(self.case, "remains", volume_id, why)
        told = {e.note for e in steps.events_of(self.case, "remains", self.target.arn)}
        for gap in rescue.gaps:
            if clean(gap, 500) not in told:
                steps.skipped(self.case, "remains", self.target.arn, gap)
        return rescue

    def _see(self) -> Found:
        """Search, and put into the ledger who ended what, what is left, and where was looked."""
        found = _search(self.case, self.accounts, self.target)
        for deed in _endings(found):
            steps.note(self.case, "ended", self.target.arn, **_event(deed))
        for piece in found.pieces:
            steps.note(
                self.case, "left", piece.resource_id, of=self.target.arn,
                volume=piece.volume_id, images=list(piece.images[:20]), doubt=piece.doubt,
            )  # fmt: skip
        for place in found.looks:
            if not place.why:
                steps.note(self.case, "looked", place.place, of=self.target.arn)
        return found

    # -- hold

    def _keeper(self) -> Keeper:
        account, region = self.target.account, self.target.region
        return Keeper(
            self.accounts.client("ec2", account, region),
            self.accounts.client("ec2", account, region, once=True),
        )

    def _finish_restores(self, kept: list[tuple[str, str]], failed: dict[str, str]) -> None:
        """Go on with what an earlier run was taking out of the bin."""
        meant = [
            data for event in self.case.ledger.events
            if (data := event.data or {}).get("step") == "restore"
            and data.get("of") == self.target.arn and event.action == "step.started"
        ]  # fmt: skip
        for data in meant:
            what = str(data["target"])
            if steps.events_of(self.case, "restore", what)[-1].action == "step.started":
                self._restore(Piece(data["kind"], what), kept, failed)  # type: ignore[arg-type]

    def _restore(self, piece: Piece, kept: list[tuple[str, str]], failed: dict[str, str]) -> None:
        facts: dict[str, JsonValue] = {"of": self.target.arn, "kind": piece.kind}
        begun = steps.begin(self.case, "restore", piece.resource_id, **facts)
        self.say(f"restore {piece.resource_id} from the Recycle Bin")
        try:
            self._keeper().restore(piece)
        except AcquisitionError as e:
            failed[piece.resource_id] = _said(e)
            self.say(f"{piece.resource_id}: {_said(e)}")
            steps.failed(self.case, begun, str(e))
        else:
            kept.append(("restore", piece.resource_id))
            if begun.done is None:
                steps.done(self.case, begun, **facts)

    def _hold(self, rescue: Rescue) -> None:
        """Lock and tag. What is refused is a gap; it is read all the same."""
        run = Run(self.case, self.accounts, self.settings)
        ec2, keeper = run.ec2(self.target.account, self.target.region), self._keeper()
        for hold in rescue.decision.holds:
            what = hold.piece.resource_id
            if hold.action in ("restore", "hold") or (hold.action == "lock" and run.lock is None):
                continue
            begun = steps.begin(self.case, hold.action, what)
            try:
                held: Mapping[str, JsonValue]
                if hold.action == "lock" and run.lock:
                    held = {**ec2.lock(what, lock_of(hold.piece, run.lock))}
                else:
                    held = {"tags": {**keeper.tag(what, run.tags)}}
            except AcquisitionError as e:
                rescue.gaps.append(f"{what}: {_said(e)}")
                if begun.done is None:
                    steps.failed(self.case, begun, str(e))
                continue
            rescue.kept.append((hold.action, what))
            if begun.done is None:
                steps.done(self.case, begun, **held)

        self._hold_points(rescue, run)

    def _hold_points(self, rescue: Rescue, run: Run) -> None:
        """One legal hold in AWS Backup for all recovery points."""
        held = [h.piece for h in rescue.decision.holds if h.action == "hold"]
        if not held:
            return
        target = self.target
        place = f"arn:{target.partition}:ec2:{target.region}:{target.account}"
        resources = sorted({
            f"{place}:volume/{p.volume_id}" if p.volume_id else target.arn for p in held
        })  # fmt: skip
        begun = steps.begin(self.case, "legal-hold", target.arn, points=len(held))
        vaults = Vaults(self.accounts.client("backup", target.account, target.region))
        title = f"impound {self.case.case_id} {target.resource_id}"
        try:
            facts = vaults.hold(title, run.mark("legal-hold", target.arn), resources)
        except AcquisitionError as e:
            rescue.gaps.append(_said(e))
            if begun.done is None:
                steps.failed(self.case, begun, str(e))
            return
        rescue.kept += [("hold", p.resource_id) for p in held]
        if begun.done is None:
            steps.done(self.case, begun, points=len(held), **facts)

    # -- take

    def _take_frozen(self, rescue: Rescue, left: set[str]) -> set[str]:
        """Take what this case froze before it was gone; return its volumes."""
        gone = sorted(rescue.found.volumes.keys() - left)
        taken: set[str] = set()
        for where in (self.target, *(self._place("volume", v) for v in gone)):
            round_ = name(where.arn, newest(self.case, where.arn))
            if where.resource_id in taken or not frozen(self.case, round_):
                continue
            [outcome] = self._outcomes([where])
            rescue.broken |= outcome.broken
            rescue.taken |= {r.snapshot: r for r in outcome.volumes}
            taken |= {r.volume.volume_id for r in outcome.volumes if r.item}
        return taken

    def _take(self, rescue: Rescue, left: list[list[Piece]]) -> None:
        """Read the most valuable of each volume, all of them frozen first; else the next."""
        while left:
            best = [pieces[0] for pieces in left]
            where = [
                self._place("volume" if p.kind == "volume" else "snapshot", p.resource_id)
                for p in best
            ]  # fmt: skip
            try:
                outcomes = self._outcomes(where)
            except (AcquisitionError, PipelineError) as e:
                rescue.gaps.append(f"{', '.join(p.resource_id for p in best)}: {_said(e)}")
                outcomes = [Outcome(target, [], []) for target in where]
            for piece, outcome in zip(best, outcomes, strict=True):
                rescue.broken |= outcome.broken
                rescue.gaps += [f"{piece.resource_id}: {gap}" for gap in outcome.gaps]
                if outcome.volumes:
                    rescue.taken[piece.resource_id] = outcome.volumes[0]
            read = [any(r.item for r in outcome.volumes) for outcome in outcomes]
            left = [pieces[1:] for pieces, done in zip(left, read, strict=True)
                    if not done and pieces[1:]]  # fmt: skip

    def _place(self, kind: Kind, resource_id: str) -> Target:
        return replace(self.target, kind=kind, resource_id=resource_id)

    def _outcomes(self, where: list[Target]) -> list[Outcome]:
        return Acquisition(
            self.case, self.accounts, self.settings, where[0], copy=self.copy, say=self.say,
            progress=self.progress, more=where[1:],
        ).run_all()  # fmt: skip


def _endings(found: Found) -> list[Deed]:
    return [d for d in found.deeds if d.name in _ENDINGS and not d.error]


def _event(deed: Deed) -> dict[str, JsonValue]:
    named = [*deed.volumes, *deed.snapshots, *deed.images]
    return {
        "call": deed.name, "at": f"{deed.at:%Y-%m-%dT%H:%M:%SZ}", "by": deed.who,
        "from": deed.source, "event": deed.event_id, "resources": list(named[:20]),
    }  # fmt: skip


def _said(e: Error) -> str:
    return clean(f"{e}" + (f" ({e.hint})" if e.hint else ""), 500)
