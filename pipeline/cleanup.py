# SPDX-License-Identifier: Apache-2.0
"""Delete the snapshots that a case made in member accounts, once their Audit copies are proved.

A snapshot is deleted if all of this holds at that moment:

    the ledger says that this case made it, and it carries the tag of that step
    the ledger says that its Audit copy was read whole and is equal to the item
    the Audit copy is there, complete, and carries its own tag
    the item's stored content verifies
    no lock is in force on it

Never the Audit copy, never what was there before. Shares that this case added are taken back, also
of snapshots that were there before. Each is an intent and an outcome in the ledger.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from pydantic import JsonValue

from acquisition.errors import AcquisitionError
from acquisition.snapshot import Ec2
from acquisition.target import parse_target
from evidence_store.content import check_content
from evidence_store.errors import Error
from pipeline import baseline, steps
from pipeline.baseline import Held
from pipeline.errors import PipelineError
from pipeline.freeze import outcome_of
from pipeline.run import Run


@dataclass(frozen=True)
class Made:
    """A snapshot of a member account that belongs to a source.

    Attributes:
        snapshot: its id.
        source: the snapshot that was read; the same, or what this is a copy of.
        account: whose.
        mark: nonce that it must carry; "" if the case did not make it.
    """

    snapshot: str
    source: str
    account: str
    region: str
    mark: str


@dataclass
class Judged:
    """What is to become of one. `why`: what stands against deletion; `until`: its lock's end."""

    made: Made
    copy: str = ""
    item: str = ""
    why: str = ""
    until: str = ""
    shared: bool = False
    deleted: bool = False
    gone: bool = False

    def document(self) -> dict[str, JsonValue]:
        """As JSON."""
        return {
            "snapshot": self.made.snapshot, "source": self.made.source,
            "account": self.made.account, "region": self.made.region, "copy": self.copy or None,
            "item": self.item or None, "deleted": self.deleted, "shared": self.shared,
            "kept_because": self.why or None, "locked_until": self.until or None,
        }  # fmt: skip


@dataclass
class Cleanup:
    """Looks, then deletes."""

    run: Run
    _verified: dict[str, str] = field(default_factory=dict, init=False)

    def look(self) -> list[Judged]:
        """Return what the case made or shared, judged; `gone` too. Changes nothing.

        Raises: StoreError, IntegrityError.
        """
        items = baseline.held(self.run.case)
        return [self._judge(made, items) for made in self._all()]

    def delete(self, judged: Judged) -> None:
        """Take the share back, and delete the snapshot if nothing stands against it, looked anew.

        What AWS refuses stands against it too. Raises: StoreError.
        """
        try:
            self._delete(judged)
        except (AcquisitionError, PipelineError) as e:
            judged.why = _said(e)

    def _delete(self, judged: Judged) -> None:
        run, made = self.run, judged.made
        fresh = self._judge(made, baseline.held(run.case))
        judged.why, judged.until, judged.gone = fresh.why, fresh.until, fresh.gone
        if judged.gone:
            self._settle(made)
            return
        ec2 = run.ec2(made.account, made.region)
        if fresh.shared and fresh.copy and (not fresh.why or not made.mark or fresh.until):
            self._unshare(ec2, judged)
        if judged.why:
            return
        begun = steps.begin(run.case, "delete", made.snapshot, copy=fresh.copy, item=fresh.item)
        try:
            ec2.delete(made.snapshot)
        except AcquisitionError as e:
            if begun.done is None:
                steps.failed(run.case, begun, str(e))
            raise
        if begun.done is None:
            steps.done(run.case, begun, copy=fresh.copy, item=fresh.item)
        judged.deleted = True

    def _settle(self, made: Made) -> None:
        """Give a deletion that was interrupted after its call its outcome."""
        events = steps.events_of(self.run.case, "delete", made.snapshot)
        if events and events[-1].action == "step.started":
            steps.done(self.run.case, steps.begin(self.run.case, "delete", made.snapshot))

    def _unshare(self, ec2: Ec2, judged: Judged) -> None:
        run, snapshot = self.run, judged.made.snapshot
        audit = run.settings.aws.audit_account
        begun = steps.begin(run.case, "unshare", snapshot, to=audit)
        ec2.unshare(snapshot, audit)
        if begun.done is None:
            steps.done(run.case, begun, to=audit)
        judged.shared = False

    def _all(self) -> Iterator[Made]:
        """What the ledger says that the case made or shared in member accounts."""
        run = self.run
        seen: dict[str, Made] = {}
        targets: dict[str, tuple[str, str]] = {}
        for event in run.case.ledger.events:
            data = event.data or {}
            if event.action != "step.done":
                continue
            step, of = data.get("step"), str(data.get("target"))
            if step == "snapshot":
                freeze, snapshot = str(data.get("of")), str(data.get("snapshot"))
                target = parse_target(freeze.partition(" ")[0])
                targets[snapshot] = (target.account, target.region)
                mark = run.mark("freeze", freeze)
                seen[snapshot] = Made(snapshot, snapshot, target.account, target.region, mark)
            elif step == "observe" and ":snapshot/" in of and "account" in data:
                snapshot = of.rpartition("/")[2]
                targets[snapshot] = (str(data["account"]), of.split(":")[3])
            elif step == "reencrypt" and of in targets:
                copy = str(data.get("copy"))
                seen[copy] = Made(copy, of, *targets[of], run.mark("reencrypt", of))
            elif step == "share" and of in targets and of not in seen:
                seen[of] = Made(of, of, *targets[of], "")
        # Copies before what they are copies of: the source is the last to go.
        yield from sorted(seen.values(), key=lambda m: (m.source, m.snapshot == m.source))

    def _judge(self, made: Made, items: dict[str, Held]) -> Judged:
        found = Judged(made)
        try:
            self._look_at(found, items)
        except (AcquisitionError, PipelineError) as e:
            found.why = _said(e)
        return found

    def _look_at(self, found: Judged, items: dict[str, Held]) -> None:
        run, made = self.run, found.made
        ec2 = run.ec2(made.account, made.region)
        there = ec2.describe(made.snapshot)
        if there is None:
            found.gone = True
            return
        copied = outcome_of(run.case, "copy", made.source) or {}
        found.copy = str(copied.get("copy") or "")
        held = items.get(made.source)
        found.item = held.item if held else ""
        audit = run.settings.aws.audit_account
        if there.owner == made.account and outcome_of(run.case, "share", made.snapshot):
            found.shared = ec2.shared(made.snapshot, audit)
        if not made.mark:
            found.why = "it was there before the case"
        elif there.owner != made.account:
            found.why = f"it is {there.owner}'s"
        elif there.mark != made.mark:
            found.why = "it does not carry the tag of the step that made it"
        else:
            found.why = self._against(found, held)
            if not found.why and (lock := ec2.locked(made.snapshot)):
                found.until = lock["until"]
                found.why = f"it is locked ({lock['state']}) until {lock['until'] or 'then'}"

    def _against(self, found: Judged, held: Held | None) -> str:
        run, made = self.run, found.made
        if held is None:
            return "no complete item of the case holds it"
        if not found.copy:
            return "it has no copy in the Audit account"
        proved = f"{found.copy} {run.case.manifest(held.item).image_root}"
        if outcome_of(run.case, "prove", proved) is None:
            return f"its copy {found.copy} is not proved equal to {held.item}"
        copy = run.ec2(run.settings.aws.audit_account, made.region).describe(found.copy)
        if copy is None:
            return f"its copy {found.copy} is not there any more: this is the last"
        if copy.state != "completed" or copy.owner != run.settings.aws.audit_account:
            return f"its copy {found.copy} is {copy.state}, of {copy.owner}"
        if copy.mark != run.mark("copy", made.source):
            return f"its copy {found.copy} does not carry the tag of the step that made it"
        return self._wrong_with(held.item)

    def _wrong_with(self, item: str) -> str:
        """Hash the item's stored content, once."""
        if item not in self._verified:
            try:
                problems = check_content(
                    self.run.case, self.run.case.manifest(item), self.run.settings.workers
                )
            except Error as e:
                problems = [_said(e)]
            self._verified[item] = f"{item} does not verify: {problems[0]}" if problems else ""
        return self._verified[item]


def _said(e: Error) -> str:
    return f"{e}" + (f" ({e.hint})" if e.hint else "")
