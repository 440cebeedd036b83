# SPDX-License-Identifier: Apache-2.0
"""Snapshots of a target's volumes: observe, freeze, lock, share, copy under the Audit key.

Every step looks for what it would make before it makes it, by a nonce tag that case and step
decide. EC2 takes no client token for snapshots, so the calls that make one are never repeated
blindly: after a lost answer the nonce is looked for, for as long as a new resource may stay
invisible.

Source: EC2 API Reference, CreateSnapshots, CopySnapshot, LockSnapshot, ModifySnapshotAttribute;
EBS User Guide, "Share a KMS key used to encrypt a snapshot", "Amazon EBS snapshot lock".
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeVar

from acquisition.errors import AcquisitionError
from evidence_store.aws import Failure, failures
from evidence_store.model import clean

T = TypeVar("T")

GIB = 1 << 30
NONCE_TAG = "impound-nonce"
# What the copying account needs on the source's key (KMS-1). All of them, or EC2 fails later.
COPY_ACTIONS = (
    "kms:DescribeKey", "kms:CreateGrant", "kms:GenerateDataKey",
    "kms:GenerateDataKeyWithoutPlaintext", "kms:ReEncryptFrom", "kms:ReEncryptTo", "kms:Decrypt",
)  # fmt: skip
_VISIBLE_S = 60.0
_FLAPS = 60  # failed looks in a row, about a quarter of an hour
PAUSE_S = 2.0  # between looks
_CLOCK = timedelta(minutes=5)
# A quota is full for now; nothing was made. Waiting mends it.
_FULL = {
    "ConcurrentSnapshotLimitExceeded", "RequestLimitExceeded", "ResourceLimitExceeded",
    "SnapshotCreationPerVolumeRateExceeded",
}  # fmt: skip
_FULL_S = 24 * 3600.0
_LONGEST_PAUSES = 15
_GONE = {"InvalidSnapshot.NotFound", "InvalidSnapshotID.NotFound"}


class KeyDeniedError(AcquisitionError):
    """A KMS key does not let a snapshot be shared or copied."""


class ManagedKeyError(KeyDeniedError):
    """The key that AWS manages for EBS: what it encrypts cannot be shared."""


class UnreachableError(AcquisitionError):
    """AWS gave no answer, or was busy: nothing is known by it."""


class SnapshotFailedError(AcquisitionError):
    """AWS says that a snapshot failed."""


@dataclass(frozen=True)
class Volume:
    """An EBS volume as observed. `size` in bytes; `kms_key` is "" if it is not encrypted."""

    volume_id: str
    size: int
    device: str = ""
    kms_key: str = ""
    zone: str = ""
    kind: str = ""

    @property
    def facts(self) -> dict[str, str | int]:
        """For ledger and manifest."""
        return {"volume": self.volume_id, "size": self.size, "device": self.device,
                "kms_key": self.kms_key, "zone": self.zone, "type": self.kind}  # fmt: skip


@dataclass(frozen=True)
class Observed:
    """A target's volumes. `gaps`: what cannot be taken by snapshot, in words."""

    volumes: tuple[Volume, ...]
    gaps: tuple[str, ...] = ()
    instance: str = ""
    state: str = ""


@dataclass(frozen=True)
class Snapshot:
    """A snapshot as AWS describes it. `kms_key` is "" if it is not encrypted; `mark`: its nonce."""

    snapshot_id: str
    volume_id: str
    owner: str
    size: int
    state: str
    kms_key: str
    started: datetime
    message: str = ""
    mark: str = ""

    @property
    def facts(self) -> dict[str, str | int]:
        """For ledger and manifest."""
        return {
            "snapshot": self.snapshot_id, "owner": self.owner, "size": self.size,
            "kms_key": self.kms_key, "started": _utc(self.started),
        }  # fmt: skip


@dataclass(frozen=True)
class Lock:
    """How snapshots are locked against deletion. Compliance cannot be taken back by anybody."""

    mode: Literal["governance", "compliance"] = "compliance"
    days: int = 3


def nonce(*parts: str) -> str:
    """Return the nonce of one step: the same wherever the same case does the same thing.

    >>> nonce("store", "T-1", "freeze", "i-1") == nonce("store", "T-1", "freeze", "i-1")
    True
    """
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def missing_actions(policy: str, account: str, partition: str = "aws") -> list[str]:
    """Return which of `COPY_ACTIONS` a key policy does not give to `account`. Pure.

    Conditions are taken as met, except on deny statements, which count only without one: this finds
    what is surely missing, not what a condition may refuse.
    """
    principals = {account, f"arn:{partition}:iam::{account}:root", "*"}

    def speaks(statement: Mapping[str, Any]) -> bool:
        said = statement.get("Principal", {})
        named = ["*"] if said == "*" else _listed(said.get("AWS", []))
        return any(p in principals or p.startswith(f"arn:{partition}:iam::{account}:")
                   for p in named)  # fmt: skip

    allowed: set[str] = set()
    denied: set[str] = set()
    for statement in _listed(json.loads(policy).get("Statement", [])):
        if not isinstance(statement, Mapping) or not speaks(statement):
            continue
        patterns = [str(p).lower() for p in _listed(statement.get("Action", []))]
        found = {a for a in COPY_ACTIONS if any(fnmatchcase(a.lower(), p) for p in patterns)}
        if statement.get("Effect") == "Allow":
            allowed |= found
        elif "Condition" not in statement:
            denied |= found
    return [a for a in COPY_ACTIONS if a not in allowed or a in denied]


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


@dataclass
class Ec2:
    """EC2 in one Region of one account, as this module uses it.

    Attributes:
        client: makes no retries of its own for calls that create (`once`).
        once: the same client without retries.
        account: whose.
        sleep: between polls.
    """

    client: Any
    once: Any
    account: str
    region: str
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))

    def observe(self, kind: str, resource_id: str) -> Observed:
        """Return the volumes of an instance, or one volume.

        Raises: AcquisitionError if it is not there.
        """
        with failing(f"look at {resource_id}"):
            if kind == "volume":
                return Observed(tuple(self._volumes([resource_id], {})))
            pages = self.client.describe_instances(InstanceIds=[resource_id])["Reservations"]
            found = [i for page in pages for i in page["Instances"]]
        if not found:
            raise AcquisitionError(f"there is no instance {resource_id} in {self.account}")
        instance = found[0]
        devices = {
            m["Ebs"]["VolumeId"]: m["DeviceName"]
            for m in instance.get("BlockDeviceMappings", ()) if "Ebs" in m
        }  # fmt: skip
        gaps = []
        kind_of_host = str(instance.get("InstanceType", ""))
        with failing(f"look at instance type {kind_of_host}"):
            types = self.client.describe_instance_types(InstanceTypes=[kind_of_host])
        for described in types["InstanceTypes"]:
            if described.get("InstanceStorageSupported"):
                size = described.get("InstanceStorageInfo", {}).get("TotalSizeInGB", "?")
                gaps.append(
                    f"instance store of {resource_id} ({size} GB): no snapshot can be made of it; "
                    "it is lost when the instance stops"
                )
        with failing(f"look at the volumes of {resource_id}"):
            volumes = tuple(self._volumes(list(devices), devices)) if devices else ()
        if not volumes:
            gaps.append(f"{resource_id} has no EBS volume attached")
        return Observed(volumes, tuple(gaps), resource_id, str(instance["State"]["Name"]))

    def _volumes(self, ids: list[str], devices: Mapping[str, str]) -> Iterator[Volume]:
        found = self.client.describe_volumes(VolumeIds=ids)["Volumes"]
        for v in sorted(found, key=lambda v: devices.get(v["VolumeId"], v["VolumeId"])):
            yield Volume(
                v["VolumeId"], v["Size"] * GIB, devices.get(v["VolumeId"], ""),
                v.get("KmsKeyId", "") if v.get("Encrypted") else "", v["AvailabilityZone"],
                v.get("VolumeType", ""),
            )  # fmt: skip

    def describe(self, snapshot_id: str) -> Snapshot | None:
        """Return a snapshot, or None if AWS knows none of this id (yet, or any more)."""
        try:
            found = self.client.describe_snapshots(SnapshotIds=[snapshot_id])["Snapshots"]
        except failures() as e:
            if Failure(e).code in _GONE:
                return None
            raise aws_error(e, f"look at snapshot {snapshot_id}") from e
        return _snapshot(found[0]) if found else None

    def made_before(self, mark: str, since: datetime) -> list[Snapshot]:
        """Return own snapshots that carry a nonce and were begun after `since` (less a clock)."""
        with failing("look for earlier snapshots"):
            pages = self.client.get_paginator("describe_snapshots").paginate(
                OwnerIds=["self"], Filters=[{"Name": f"tag:{NONCE_TAG}", "Values": [mark]}]
            )
            found = [_snapshot(s) for page in pages for s in page["Snapshots"]]
        return [s for s in found if s.owner == self.account and s.started >= since - _CLOCK]

    def freeze(
        self, observed: Observed, tags: Mapping[str, str], mark: str, since: datetime, *,
        resumed: bool = False,
    ) -> dict[str, Snapshot]:  # fmt: skip
        """Return volume id -> snapshot of one moment, made unless it was made before.

        One CreateSnapshots for an instance is crash-consistent over its volumes; a single volume
        has a snapshot of its own.

        Args:
            observed: what to freeze.
            tags: for the snapshots.
            mark: nonce of this step.
            since: when the intent was recorded.
            resumed: an earlier run may have made them, and they may be invisible yet.

        Raises: AcquisitionError.
        """
        wanted = {v.volume_id for v in observed.volumes}
        if not wanted:
            raise AcquisitionError("there is no volume to freeze")
        found = self._await_earlier(mark, since, wanted, _VISIBLE_S) if resumed else None
        if found is None:
            made = self._create(observed, _tagged(tags, mark))
            found = (
                self._await_made(made) if made
                else self._await_earlier(mark, since, wanted, _VISIBLE_S)
            )  # fmt: skip
        if found is None or found.keys() != wanted:
            raise AcquisitionError(
                f"no snapshot of {', '.join(sorted(wanted - (found or {}).keys()))} appeared",
                hint="run the same command again; it looks for them first",
            )
        return found

    def _create(self, observed: Observed, specification: list[dict[str, Any]]) -> list[str]:
        """Make the snapshots; return their ids, or none if the answer was lost."""
        try:
            if observed.instance:
                answer = self._within_quota(
                    self.once.create_snapshots,
                    InstanceSpecification={"InstanceId": observed.instance},
                    TagSpecifications=specification,
                )  # fmt: skip
                return [one["SnapshotId"] for one in answer["Snapshots"]]
            answer = self._within_quota(
                self.once.create_snapshot, VolumeId=observed.volumes[0].volume_id,
                TagSpecifications=specification,
            )  # fmt: skip
            return [answer["SnapshotId"]]
        except failures() as e:
            if Failure(e).may_have_happened:
                return []
            raise aws_error(
                e, f"freeze {observed.instance or observed.volumes[0].volume_id}"
            ) from e

    def _within_quota(self, call: Callable[..., Any], **asked: Any) -> Any:
        """Make a call; while AWS says that a quota is full, wait longer and longer.

        AWS refuses so before it does anything, so the call may be made again.
        """
        waited, pauses = 0.0, 1
        while True:
            try:
                return call(**asked)
            except failures() as e:
                if Failure(e).code not in _FULL or waited >= _FULL_S:
                    raise
            self.sleep(pauses * PAUSE_S * random.uniform(0.5, 1))  # noqa: S311
            waited += pauses * 2
            pauses = min(_LONGEST_PAUSES, pauses * 2)

    def _await_made(self, ids: list[str]) -> dict[str, Snapshot]:
        """Return volume id -> snapshot of what a call made, as soon as all of it shows."""
        waited = 0.0
        while True:
            found = [s for s in map(self.describe, ids) if s is not None]
            if len(found) == len(ids) or waited >= _VISIBLE_S:
                return {s.volume_id: s for s in found}
            self.sleep(PAUSE_S)
            waited += 2

    def _await_earlier(
        self, mark: str, since: datetime, wanted: set[str], seconds: float
    ) -> dict[str, Snapshot] | None:
        waited = 0.0
        while True:
            # The earliest of each volume: a tag can be put onto a later snapshot by others.
            newest_first = sorted(self.made_before(mark, since), key=lambda s: s.started)[::-1]
            made = {s.volume_id: s for s in newest_first if s.state != "error"}
            if wanted <= made.keys():
                return {v: made[v] for v in wanted}
            if waited >= seconds:
                return None
            self.sleep(PAUSE_S)
            waited += 2

    def lock(self, snapshot_id: str, lock: Lock) -> dict[str, str]:
        """Lock a snapshot unless it is locked; return the lock's state as AWS shows it.

        Raises: AcquisitionError.
        """
        with failing(f"lock snapshot {snapshot_id}"):
            held = self._locked(snapshot_id)
            if not held:
                self._visible(lambda: self.client.lock_snapshot(
                    SnapshotId=snapshot_id, LockMode=lock.mode, LockDuration=lock.days
                ))  # fmt: skip
                held = self._shown(lambda: self._locked(snapshot_id))
        if not held:
            raise AcquisitionError(f"snapshot {snapshot_id} does not show as locked")
        return held

    def locked(self, snapshot_id: str) -> dict[str, str]:
        """Return the state and end of an own snapshot's lock, {} if it has none in force.

        Raises: AcquisitionError.
        """
        with failing(f"look at the lock of {snapshot_id}"):
            return self._locked(snapshot_id)

    def delete(self, snapshot_id: str) -> None:
        """Delete an own snapshot, and look that it is gone. Raises: AcquisitionError."""
        with failing(f"delete snapshot {snapshot_id}"):
            self.client.delete_snapshot(SnapshotId=snapshot_id)
        waited = 0.0
        while self.describe(snapshot_id) is not None:
            if waited >= _VISIBLE_S:
                raise AcquisitionError(f"snapshot {snapshot_id} is there still")
            self.sleep(PAUSE_S)
            waited += 2

    def _locked(self, snapshot_id: str) -> dict[str, str]:
        found = self._visible(
            lambda: self.client.describe_locked_snapshots(SnapshotIds=[snapshot_id])
        )["Snapshots"]
        states = [s for s in found if s["LockState"] in ("governance", "compliance",
                                                         "compliance-cooloff")]  # fmt: skip
        if not states:
            return {}
        until = states[0].get("LockExpiresOn")
        return {"state": states[0]["LockState"],
                "until": _utc(until) if until else ""}  # fmt: skip

    def completed(
        self, snapshot_id: str, progress: Callable[[str], None] = lambda _text: None,
        seconds: float = 24 * 3600,
    ) -> Snapshot:  # fmt: skip
        """Wait until a snapshot is complete; return it.

        Raises: SnapshotFailedError; KeyDeniedError if AWS took the order and dropped it: what is
        denied by a key shows as an error, or as a snapshot that is not there any more.
        """
        waited, seen, flaps = 0.0, False, 0
        while waited <= seconds:
            try:
                found = self.describe(snapshot_id)
            except UnreachableError:  # nothing is lost by waiting for it
                flaps += 1
                if flaps > _FLAPS:
                    raise
            else:
                flaps = 0
                if found is not None:
                    seen = True
                    progress(found.state)
                    if _is_complete(found):
                        return found
                elif seen or waited >= _VISIBLE_S:
                    raise _denied(snapshot_id, "it is not there any more")
            pauses = 1 if waited < 60 else 7
            self.sleep(pauses * PAUSE_S)
            waited += pauses * 2
        raise SnapshotFailedError(
            f"snapshot {snapshot_id} is not complete after {seconds / 3600:.0f} h",
            hint="run the same command again; it goes on waiting",
        )

    def share(self, snapshot_id: str, account: str) -> None:
        """Let another account use a snapshot, unless it may. Raises: AcquisitionError."""
        with failing(f"share snapshot {snapshot_id} with {account}"):
            if not self._is_shared(snapshot_id, account):
                self.client.modify_snapshot_attribute(
                    SnapshotId=snapshot_id, Attribute="createVolumePermission",
                    OperationType="add", UserIds=[account],
                )  # fmt: skip
                if not self._shown(lambda: self._is_shared(snapshot_id, account)):
                    raise AcquisitionError(
                        f"snapshot {snapshot_id} does not show as shared",
                        hint="run the same command again; it looks first",
                    )

    def _visible(self, call: Callable[[], T]) -> T:
        """Call until AWS knows the snapshot: nothing new, and no share, is seen at once by all."""
        waited = 0.0
        while True:
            try:
                return call()
            except failures() as e:
                if Failure(e).code not in _GONE or waited >= _VISIBLE_S:
                    raise
            self.sleep(PAUSE_S)
            waited += 2

    def _shown(self, look: Callable[[], T]) -> T:
        """Look until something shows, for as long as a change may stay invisible."""
        waited = 0.0
        while not (found := look()) and waited < _VISIBLE_S:
            self.sleep(PAUSE_S)
            waited += 2
        return found

    def shared(self, snapshot_id: str, account: str) -> bool:
        """Whether its owner lets another account use a snapshot. Raises: AcquisitionError."""
        with failing(f"look at the shares of {snapshot_id}"):
            return self._is_shared(snapshot_id, account)

    def unshare(self, snapshot_id: str, account: str) -> None:
        """Take a share back, if it stands. Raises: AcquisitionError."""
        with failing(f"take back the share of {snapshot_id} with {account}"):
            if self._is_shared(snapshot_id, account):
                self.client.modify_snapshot_attribute(
                    SnapshotId=snapshot_id, Attribute="createVolumePermission",
                    OperationType="remove", UserIds=[account],
                )  # fmt: skip
                if not self._shown(lambda: not self._is_shared(snapshot_id, account)):
                    raise AcquisitionError(f"snapshot {snapshot_id} shows as shared still")

    def _is_shared(self, snapshot_id: str, account: str) -> bool:
        said = self.client.describe_snapshot_attribute(
            SnapshotId=snapshot_id, Attribute="createVolumePermission"
        )
        return any(p.get("UserId") == account for p in said["CreateVolumePermissions"])

    def copy(
        self, source: Snapshot, source_region: str, kms_key: str, tags: Mapping[str, str],
        mark: str, since: datetime, *, resumed: bool = False, make: bool = True,
    ) -> str:  # fmt: skip
        """Return the id of a copy of `source` in this account under `kms_key`.

        The copy's own volume id is arbitrary (EBS-3): lineage is the caller's to keep.

        Raises: AcquisitionError; KeyDeniedError.
        """
        found = self._copy_made(mark, since, _VISIBLE_S if resumed else 0)
        if found:
            return found
        if not make:
            raise _lost(f"copy of {source.snapshot_id}")
        try:
            made = self._visible(lambda: self._within_quota(
                self.once.copy_snapshot, SourceSnapshotId=source.snapshot_id,
                SourceRegion=source_region, Encrypted=True, KmsKeyId=kms_key,
                TagSpecifications=_tagged(tags, mark),
                Description=f"evidence: copy of {source.snapshot_id} of {source.volume_id}",
            ))  # fmt: skip
            return str(made["SnapshotId"])
        except failures() as e:
            failure = Failure(e)
            if failure.code in _GONE or "kms" in failure.code.lower():
                raise _denied(source.snapshot_id, failure.message) from e
            if not failure.may_have_happened:
                raise aws_error(e, f"copy snapshot {source.snapshot_id}") from e
        found = self._copy_made(mark, since, _VISIBLE_S)
        if not found:
            raise AcquisitionError(
                f"the copy of {source.snapshot_id} did not appear",
                hint="run the same command again; it looks for it first",
            )
        return found

    def _copy_made(self, mark: str, since: datetime, seconds: float) -> str:
        waited = 0.0
        while True:
            made = [s for s in self.made_before(mark, since) if s.state != "error"]
            if made:
                return min(made, key=lambda s: (s.started, s.snapshot_id)).snapshot_id
            if waited >= seconds:
                return ""
            self.sleep(PAUSE_S)
            waited += 2


def check_key(kms: Any, kms_key: str, copier: str, partition: str = "aws") -> str:
    """Check that a source's key can be used by the copying account, before anything is made.

    Args:
        kms: KMS of the account that owns the key.
        kms_key: ARN, or `alias/…`.
        copier: the copying account.
        partition: of both.

    Returns: the key's ARN.

    Raises: KeyDeniedError naming what is missing; AcquisitionError if the key cannot be looked at.
    """
    with failing(f"look at key {kms_key}"):
        described = kms.describe_key(KeyId=kms_key)["KeyMetadata"]
        if described.get("KeyManager") == "AWS":
            raise ManagedKeyError(
                f"{kms_key} is the AWS managed key of EBS; snapshots under it cannot be shared",
                hint="a copy under a key of the member account can: set one in the settings",
            )
        if described.get("KeyState") != "Enabled":
            raise KeyDeniedError(
                f"key {kms_key} is {described.get('KeyState')}",
                hint="enable it, or cancel its deletion, in the account that owns it",
            )
        arn = str(described["Arn"])
        policy = kms.get_key_policy(KeyId=arn, PolicyName="default")["Policy"]
        missing = missing_actions(policy, copier, partition)
    if missing:
        raise KeyDeniedError(
            f"key {kms_key} does not give {copier} {', '.join(missing)}",
            hint=f"add them to its policy for arn:{partition}:iam::{copier}:root",
        )
    return arn


def _snapshot(said: Mapping[str, Any]) -> Snapshot:
    return Snapshot(
        snapshot_id=said["SnapshotId"], volume_id=said.get("VolumeId", ""),
        owner=said.get("OwnerId", ""), size=int(said.get("VolumeSize", 0)) * GIB,
        state=said["State"], kms_key=said.get("KmsKeyId", "") if said.get("Encrypted") else "",
        started=said["StartTime"], message=said.get("StateMessage", ""),
        mark=next((t["Value"] for t in said.get("Tags", ()) if t["Key"] == NONCE_TAG), ""),
    )  # fmt: skip


def _is_complete(found: Snapshot) -> bool:
    """Whether it is. Raises: SnapshotFailedError, KeyDeniedError."""
    if found.state == "error":
        said = clean(found.message, 300) or "no reason given"
        if "key" in said.lower():
            raise _denied(found.snapshot_id, said)
        raise SnapshotFailedError(
            f"snapshot {found.snapshot_id} failed: {said}",
            hint="take the volume by itself: that makes a new one",
        )
    return found.state == "completed"


def _utc(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _tagged(tags: Mapping[str, str], mark: str) -> list[dict[str, Any]]:
    pairs = [{"Key": k, "Value": v[:256]} for k, v in {**tags, NONCE_TAG: mark}.items() if v]
    return [{"ResourceType": "snapshot", "Tags": pairs}]


def _lost(what: str) -> AcquisitionError:
    return AcquisitionError(
        f"the {what} that the ledger records is not there any more",
        hint="find out who deleted it (CloudTrail: DeleteSnapshot); nothing was made in its place",
    )


def _denied(snapshot_id: str, why: str) -> KeyDeniedError:
    return KeyDeniedError(
        f"snapshot {snapshot_id} was refused, most likely by a key: {clean(why, 300)}",
        hint="the copying account needs on the source's key: " + ", ".join(COPY_ACTIONS),
    )


@contextlib.contextmanager
def failing(what: str) -> Iterator[None]:
    """Turn what a call to EC2 fails with into an error that says what could not be done.

    Raises: AcquisitionError, UnreachableError.
    """
    try:
        yield
    except failures() as e:
        raise aws_error(e, what) from e
    except (KeyError, ValueError) as e:  # botocore takes half of a JSON answer for an empty one
        raise UnreachableError(
            f"cannot {what}: the answer is damaged",
            hint="check the network and the endpoint, then run the same command again",
        ) from e


def aws_error(e: Exception, what: str) -> AcquisitionError:
    """Return a failed call as an error: what could not be done, why, and what to do next."""
    failure = Failure(e)
    error = failure.error(f"cannot {what}")
    kind = UnreachableError if failure.passing else AcquisitionError
    return kind(str(error), hint=error.hint)
