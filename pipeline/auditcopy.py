# SPDX-License-Identifier: Apache-2.0
"""The copy of a snapshot in the Audit account: keys, share, copy under the Audit key, lock.

What cannot be shared (encrypted by the key that AWS manages for EBS, or another owner's) is first
copied inside the member account under a key of its own that can be (`aws.member_key`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pydantic import JsonValue

from acquisition.errors import AcquisitionError
from acquisition.snapshot import Ec2, KeyDeniedError, ManagedKeyError, Snapshot, check_key
from acquisition.target import Target
from pipeline import steps
from pipeline.run import Run


@dataclass(frozen=True)
class AuditCopy:
    """Makes copies of snapshots of one target's account and Region."""

    run: Run
    target: Target

    def make(self, snapshot_id: str, label: str) -> str:
        """Return the id of the Audit snapshot, made unless the ledger has it, when it is complete.

        Raises: AcquisitionError, AccountError; Stopped.
        """
        run, region = self.run, self.target.region
        aws = run.settings.aws
        snapshot = run.ec2(self.target.account, region).completed(snapshot_id)
        made = self._copied(
            "copy", snapshot, lambda: self._shared(snapshot), run.ec2(aws.audit_account, region),
            aws.snapshot_key, lambda copy: f"{label}: waiting for the copy {copy}",
            to=aws.audit_account,
        )  # fmt: skip
        return made.snapshot_id

    def _copied(
        self, step: str, snapshot: Snapshot, source: Callable[[], Snapshot], there: Ec2,
        encrypts: str, say: Callable[[str], str], **intent: JsonValue,
    ) -> Snapshot:  # fmt: skip
        """Return the copy of a snapshot, when it is complete: found, or made and locked.

        Args:
            step: what the ledger calls it.
            snapshot: the original.
            source: gives what is copied, asked only if the copy has to be made.
            there: where to.
            encrypts: key of the copy.
            say: makes a line of its id.
            intent: facts of the intent.
        """
        run, snapshot_id = self.run, snapshot.snapshot_id
        begun = steps.begin(run.case, step, snapshot_id, **intent)
        try:
            given = snapshot if begun.done is not None else source()
            made = there.copy(
                given, self.target.region, encrypts, run.tags, run.mark(step, snapshot_id),
                begun.since, resumed=begun.resumed, make=begun.done is None,
            )  # fmt: skip
            run.say(say(made))
            facts: dict[str, JsonValue] = {"copy": made, "kms_key": encrypts}
            if given.snapshot_id != snapshot_id:
                facts["through"] = given.snapshot_id
            if run.lock and begun.done is None:
                facts["lock"] = dict(there.lock(made, run.lock))
            complete = there.completed(made)
        except AcquisitionError as e:
            if begun.done is None:
                steps.failed(run.case, begun, str(e))
            raise
        if begun.done is None:
            steps.done(run.case, begun, **facts)
        return complete

    def _shared(self, snapshot: Snapshot) -> Snapshot:
        """Return what the Audit account can copy: the snapshot, or a copy of it that it may use."""
        run, target = self.run, self.target
        audit = run.settings.aws.audit_account
        if snapshot.owner != target.account:
            if run.ec2(audit, target.region).describe(snapshot.snapshot_id):
                return snapshot
            why = (
                f"{snapshot.snapshot_id} is {snapshot.owner}'s and not shared with {audit}; only "
                "its owner can share it"
            )
            return self._share(self._own_copy(snapshot, why))
        if snapshot.kms_key:
            owner = snapshot.kms_key.split(":")[4] or target.account
            kms = run.accounts.client("kms", owner, target.region)
            try:
                check_key(kms, snapshot.kms_key, audit, target.partition)
            except ManagedKeyError as e:
                return self._share(self._own_copy(snapshot, str(e)))
        return self._share(snapshot)

    def _share(self, snapshot: Snapshot) -> Snapshot:
        run, audit = self.run, self.run.settings.aws.audit_account
        ec2 = run.ec2(self.target.account, self.target.region)
        before = steps.events_of(run.case, "share", snapshot.snapshot_id)
        if not before and ec2.shared(snapshot.snapshot_id, audit):
            return snapshot  # by somebody else, for whom it stays
        begun = steps.begin(run.case, "share", snapshot.snapshot_id, to=audit)
        try:
            ec2.share(snapshot.snapshot_id, audit)
        except AcquisitionError as e:
            if begun.done is None:
                steps.failed(run.case, begun, str(e))
            raise
        if begun.done is None:
            steps.done(run.case, begun, to=audit)
        return snapshot

    def _own_copy(self, snapshot: Snapshot, why: str) -> Snapshot:
        """Copy inside the member account, under a key that can be shared."""
        run, target = self.run, self.target
        key = run.settings.member_key(target.account)
        if not key:
            raise KeyDeniedError(
                f"no copy for the Audit account: {why}",
                hint=f"set member_key in the table [aws], or snapshot_key in "
                f"[accounts.{target.account}]; until then the item rests on the source alone",
            )
        kms = run.accounts.client("kms", target.account, target.region)
        key = check_key(kms, key, run.settings.aws.audit_account, target.partition)
        return self._copied(
            "reencrypt", snapshot, lambda: snapshot, run.ec2(target.account, target.region), key,
            lambda copy: f"{snapshot.snapshot_id}: copied in {target.account} as {copy}, {key}",
            key=key,
        )  # fmt: skip
