# SPDX-License-Identifier: Apache-2.0
"""Snapshots as EC2 has them: states, shares, copies under other keys, locks.

moto completes every snapshot at once, knows no snapshot of another account, and no lock. What a
snapshot holds is a reference to the content of its volume at the call.

Source: EC2 API Reference (CreateSnapshot(s), CopySnapshot, DescribeSnapshots,
ModifySnapshotAttribute, LockSnapshot, UnlockSnapshot, DescribeLockedSnapshots, DeleteSnapshot,
"Error codes"); EBS User Guide ("Copy a snapshot", "Share a snapshot", "Share the KMS key",
"Snapshot lock", "Quotas").
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from moto.core.responses import ActionResult, EmptyResult
from moto.ec2.exceptions import EC2ClientError, InvalidSnapshotInUse
from moto.ec2.models import EC2Backend, elastic_block_store
from moto.ec2.models import ec2_backends as _backends
from moto.ec2.models.elastic_block_store import EBSBackend, Snapshot
from moto.ec2.responses.elastic_block_store import ElasticBlockStore
from moto.ec2.utils import generic_filter, random_snapshot_id

from pipeline.gameday.aws import paging
from pipeline.gameday.aws.blocks import BLOCK, Content
from pipeline.gameday.aws.call import current
from pipeline.gameday.aws.conditions import conditions
from pipeline.gameday.aws.kms import find_key, unusable
from pipeline.gameday.aws.locks import Lock, moment, new_lock

PENDING_PER_VOLUME = 5
COPIES_AT_ONCE = 20
MANAGED_ALIAS = "alias/aws/ebs"
KEY_NOT_ACCESSIBLE = "Given key ID is not accessible"
_COPY_VOLUME = "vol-ffffffff"

# What the caller needs on the key it reads with, and on the key it writes with. The former is what
# "Share the KMS key" lists; whether AWS asks for all of it is unconfirmed.
READ_ACTIONS: tuple[str, ...] = (
    "DescribeKey", "CreateGrant", "Decrypt", "ReEncryptFrom", "GenerateDataKey",
    "GenerateDataKeyWithoutPlaintext",
)  # fmt: skip
WRITE_ACTIONS: tuple[str, ...] = (
    "DescribeKey",
    "CreateGrant",
    "GenerateDataKeyWithoutPlaintext",
    "ReEncryptTo",
)


@dataclass(frozen=True)
class Origin:
    """What moto takes for the volume of a snapshot that is a copy."""

    size: int
    content: Content
    lineage: str
    kms_key_id: str | None
    id: str = _COPY_VOLUME


class SimSnapshot(Snapshot):
    """A snapshot that takes time, may fail, may be locked, and holds blocks."""

    def __init__(
        self, ec2_backend: Any, snapshot_id: str, volume: Any, description: str,
        encrypted: bool = False, kms_key_id: str | None = None, owner_id: str | None = None,
        from_ami: str | None = None,
    ) -> None:  # fmt: skip
        self._state, self._message = "pending", ""
        super().__init__(
            ec2_backend, snapshot_id, volume, description, encrypted,
            kms_key_id or (volume.kms_key_id if encrypted else None), owner_id, from_ami,
        )  # fmt: skip
        self._state = "pending"  # moto has set it
        self.content: Content = volume.content
        self.lineage: str = volume.lineage
        self.size: int = volume.size
        self.copy = isinstance(volume, Origin)
        self.failure = ""  # what a pending copy will fail with
        self.lock: Lock | None = None
        self.completed: float | None = None
        self.began = conditions.now()
        self.start_time = moment(self.began)
        settings = conditions.settings
        self._polls: float = settings.snapshot_polls
        self._all_polls, self._seconds = settings.snapshot_polls, settings.snapshot_seconds
        conditions.born("snapshot", snapshot_id)

    @property
    def volume_size(self) -> int:
        """GiB, as of the call."""
        return self.size

    @property
    def status(self) -> str:
        """Pending until its polls and its time are over."""
        over = self._polls <= 0 and conditions.now() >= self.began + self._seconds
        if self._state == "pending" and over:
            self.become("error" if self.failure else "completed", self.failure)
        return self._state

    @status.setter
    def status(self, value: str) -> None:
        self._state = value

    @property
    def progress(self) -> str:
        """In percent."""
        if self.status == "completed":
            return "100%"
        parts = [0.99]
        if self._all_polls:
            parts.append(max(0.0, 1 - self._polls / (self._all_polls + 1)))
        if self._seconds:
            parts.append((conditions.now() - self.began) / self._seconds)
        return f"{int(100 * min(parts)) if len(parts) > 1 else 0}%"

    def become(self, state: str, message: str = "") -> None:
        """Take another state now. `pending`: until told otherwise. Raises: ValueError."""
        if state not in ("pending", "completed", "error"):
            raise ValueError("a snapshot is pending, completed or error")
        self._state, self._message = state, message
        if state == "pending":
            self._polls = math.inf
        elif state == "completed":
            self.completed = conditions.now()
            if self.lock and self.lock.began is None:
                self.lock = replace(self.lock, began=self.completed)

    def polled(self) -> None:
        """It was shown once more."""
        self._polls -= 1

    def gone(self) -> bool:
        """Whether it failed in the way that leaves nothing behind."""
        return self.status == "error" and bool(self.failure) and (
            conditions.settings.kms_denial == "gone"
        )  # fmt: skip

    def shared_with(self, account: str) -> bool:
        """Whether that account, not the owner, may use it."""
        return "all" in self.create_volume_permission_groups or (
            account in self.create_volume_permission_userids
            and conditions.visible("snapshot", f"{self.id} {account}")
        )

    def locked(self) -> bool:
        """Whether it cannot be deleted."""
        return self.lock is not None and self.lock.state(conditions.now()) != "expired"

    def document(self, account: str) -> dict[str, Any]:
        """As DescribeSnapshots shows it to that account: tags are the owner's."""
        state = self.status
        return {
            "SnapshotId": self.id,
            "VolumeId": self.volume_id,
            "State": state,
            "StateMessage": self._message or None,
            "StartTime": self.start_time,
            "Progress": self.progress,
            "OwnerId": self.owner_id,
            "Description": self.description or "",
            "VolumeSize": self.size,
            "Encrypted": self.encrypted,
            "KmsKeyId": self.kms_key_id,
            "StorageTier": self.storage_tier,
            "CompletionTime": self.completed and moment(self.completed),
            "FullSnapshotSizeInBytes": (
                self.content.count() * BLOCK if state == "completed" else None
            ),
            "Tags": self.tag_set if account == self.owner_id else [],
        }


def _missing(snapshot_id: str) -> EC2ClientError:
    return EC2ClientError(
        "InvalidSnapshot.NotFound", f"The snapshot '{snapshot_id}' does not exist."
    )


def _refuse(code: str, message: str) -> EC2ClientError:
    return EC2ClientError(code, message)


def find(snapshot_id: str, account: str, region: str, *, own: bool = False) -> SimSnapshot:
    """Return a snapshot that the account owns or that is shared with it.

    Raises: EC2ClientError InvalidSnapshot.NotFound; OperationNotPermitted if it is not the
    owner's to do (`own`).
    """
    for each in usable(account, region):
        if each.id == snapshot_id and conditions.visible("snapshot", snapshot_id):
            if own and each.owner_id != account:
                raise _refuse("OperationNotPermitted", f"You do not own {snapshot_id}.")
            return each
    raise _missing(snapshot_id)


def usable(account: str, region: str) -> list[SimSnapshot]:
    """Return all snapshots that the account owns or may use; those that are gone are forgotten."""
    found: list[SimSnapshot] = []
    for owner in list(_backends):
        if region not in _backends[owner]:
            continue
        backend = _backends[owner][region]
        for each in list(backend.snapshots.values()):
            assert isinstance(each, SimSnapshot)  # noqa: S101 (moto makes ours, see install)
            if each.gone():
                del backend.snapshots[each.id]
            elif owner == account or each.shared_with(account):
                found.append(each)
    return found


def anywhere(snapshot_id: str) -> SimSnapshot:
    """Return a snapshot of whichever account. Raises: KeyError."""
    for regions in list(_backends.values()):
        for backend in list(regions.values()):
            if isinstance(found := backend.snapshots.get(snapshot_id), SimSnapshot):
                return found
    raise KeyError(f"no such snapshot: {snapshot_id}")


def managed(kms_key_id: str | None) -> bool:
    """Whether it is the key that AWS manages for EBS."""
    key = kms_key_id and find_key(kms_key_id, "", "")
    return bool(key and getattr(key, "key_manager", "") == "AWS")


def key_arn(backend: EC2Backend, reference: str | None) -> str:
    """Return the ARN of a key, or of the account's default; what is no key stays as it is."""
    if not reference:
        default: str = backend.default_kms_key_id or backend._create_default_encryption_key()
        return default
    key = find_key(reference, backend.account_id, backend.region_name)
    return str(key.arn) if key else reference


def pending_limit(backend: EC2Backend, volume_ids: list[str]) -> None:
    """Raises: EC2ClientError ConcurrentSnapshotLimitExceeded."""
    for volume in volume_ids:
        made = [s for s in backend.snapshots.values() if s.volume_id == volume]
        kind = backend.volumes[volume].volume_type if volume in backend.volumes else ""
        limit = 1 if kind in ("sc1", "st1") else PENDING_PER_VOLUME
        if sum(s.status == "pending" for s in made) >= limit:
            raise _refuse(
                "ConcurrentSnapshotLimitExceeded",
                f"Maximum allowed in-progress snapshots for a single volume exceeded: {volume}.",
            )


# -- operations: methods of moto's response class


def create_snapshot(self: ElasticBlockStore) -> ActionResult:
    """CreateSnapshot."""
    self.error_on_dryrun()
    backend, volume_id = self.ec2_backend, self._get_param("VolumeId")
    volume = backend.get_volume(volume_id)
    pending_limit(backend, [volume.id])
    tags = self._parse_tag_specification().get("snapshot", {})
    made = backend.create_snapshot(volume_id, self._get_param("Description", ""))
    made.add_tags(tags)
    return ActionResult(_begun(made))


def create_snapshots(self: ElasticBlockStore) -> ActionResult:
    """CreateSnapshots: one point in time for all, or none."""
    self.error_on_dryrun()
    backend, given = self.ec2_backend, self._get_param("InstanceSpecification", {})
    instance = backend.get_instance(given["InstanceId"])
    if instance.state in ("terminated", "shutting-down"):
        raise _refuse(
            "IncorrectState", f"The instance '{instance.id}' is not in a valid state for this."
        )
    attached = {m.volume_id: device for device, m in instance.get_block_device_mapping}
    without = set(given.get("ExcludeDataVolumeIds", []))
    boot = {v for v, device in attached.items() if device == instance.root_device_name}
    if without - set(attached) or without & boot:
        raise _refuse(
            "InvalidParameterValue", "ExcludeDataVolumeIds names no data volume of the instance."
        )
    if given.get("ExcludeBootVolume"):
        without |= boot
    chosen = [v for v in attached if v not in without]
    if not chosen:
        raise _refuse("InvalidParameterValue", "No volumes are left to snapshot.")
    pending_limit(backend, chosen)
    tags = self._parse_tag_specification().get("snapshot", {})
    made = [backend.create_snapshot(v, self._get_param("Description", "")) for v in chosen]
    for each in made:
        each.began, each.start_time = made[0].began, made[0].start_time
        if self._get_param("CopyTagsFromSource") == "volume":
            copied = {t["key"]: t["value"] for t in backend.get_volume(each.volume_id).get_tags()}
            each.add_tags({k: v for k, v in copied.items() if not k.startswith("aws:")})
        each.add_tags(tags)
    return ActionResult({"Snapshots": [_begun(each) for each in made]})


def _begun(made: SimSnapshot) -> dict[str, Any]:
    """The answer to a call that starts a snapshot: it is pending, however fast."""
    return made.document(made.owner_id) | {
        "State": "pending", "Progress": "", "CompletionTime": None, "FullSnapshotSizeInBytes": None,
    }  # fmt: skip


def copy_snapshot(self: ElasticBlockStore) -> ActionResult:
    """CopySnapshot: from an account that shares it, under a key of one's own.

    Keys are looked at after the answer: the copy then ends in `error`.
    """
    self.error_on_dryrun()
    backend, account = self.ec2_backend, self.current_account
    source_id, region = self._get_param("SourceSnapshotId"), self._get_param("SourceRegion")
    if region not in _backends[account]:
        raise _refuse("InvalidParameterValue", f"Invalid source region: {region}")
    source = find(source_id, account, region)
    if source.status != "completed":
        raise _refuse("IncorrectState", f"Snapshot is in invalid state - {source.status}")
    asked, encrypted = self._get_param("KmsKeyId"), self._get_param("Encrypted")
    if asked and not (encrypted or source.encrypted or backend.ebs_encryption_by_default):
        raise _refuse("InvalidParameterDependency", "KmsKeyId needs Encrypted.")
    if encrypted is False and source.encrypted:
        raise _refuse("InvalidParameterValue", "A copy of an encrypted snapshot is encrypted.")
    encrypted = bool(encrypted or source.encrypted or backend.ebs_encryption_by_default)
    if sum(s.copy and s.status == "pending" for s in backend.snapshots.values()) >= COPIES_AT_ONCE:
        raise _refuse(
            "ResourceLimitExceeded",
            f"Too many snapshot copies in progress. The limit is {COPIES_AT_ONCE} for this"
            " destination region.",
        )
    tags = self._parse_tag_specification().get("snapshot", {})
    key = key_arn(backend, asked) if encrypted else None
    lineage = f"{source.lineage} {account} {self.region} {key}"
    made = SimSnapshot(
        backend, random_snapshot_id(), Origin(source.size, source.content, lineage, key),
        self._get_param("Description", ""), encrypted=encrypted,
    )  # fmt: skip
    made.failure = _denial(source, made, region)
    backend.snapshots[made.id] = made
    made.add_tags(tags)
    return ActionResult({"SnapshotId": made.id, "Tags": made.tag_set})


def _denial(source: SimSnapshot, made: SimSnapshot, region: str) -> str:
    caller = current.get().caller
    for key, where, actions, volume in (
        (source.kms_key_id, region, READ_ACTIONS, source.volume_id),
        (made.kms_key_id, made.ec2_backend.region_name, WRITE_ACTIONS, made.volume_id),
    ):
        context = {"aws:ebs:id": volume}
        if key and unusable(key, caller.account, where, caller, actions, context):
            return KEY_NOT_ACCESSIBLE
    return ""


def describe_snapshots(self: ElasticBlockStore) -> ActionResult:
    """DescribeSnapshots: one's own, shared and public ones; scopes, filters, pages."""
    self.error_on_dryrun()
    account = self.current_account
    visible = [s for s in usable(account, self.region) if conditions.visible("snapshot", s.id)]
    ids = self._get_param("SnapshotIds", [])
    for each in ids:
        if each not in {s.id for s in visible}:
            raise _missing(each)
    if ids:
        visible = [s for s in visible if s.id in ids]
    if owners := self._get_param("OwnerIds", []):
        owners = {account if o == "self" else o for o in owners}
        visible = [s for s in visible if s.owner_id in owners]
    if users := self._get_param("RestorableByUserIds", []):
        users = {account if u == "self" else u for u in users}
        visible = [s for s in visible if _restorable(s, account, users)]
    filters = self._filters_from_querystring()
    if any(name.startswith("tag") for name in filters):
        visible = [s for s in visible if s.owner_id == account]
    visible = generic_filter(filters, visible)
    visible.sort(key=lambda s: (s.began, s.id))
    page, token = paging.page(self, visible, 5, 1000)
    shown = [s.document(account) for s in page]
    for each in page:
        each.polled()
    return ActionResult({"Snapshots": shown, "NextToken": token})


def _restorable(snapshot: SimSnapshot, account: str, users: set[str]) -> bool:
    named = snapshot.create_volume_permission_userids & users
    if "all" in users and "all" in snapshot.create_volume_permission_groups:
        return True
    return bool(named) or (account in users and snapshot.owner_id == account)


def delete_snapshot(self: ElasticBlockStore) -> ActionResult:
    """DeleteSnapshot: not a locked one, not one of an image, not another account's."""
    self.error_on_dryrun()
    backend = self.ec2_backend
    found = find(self._get_param("SnapshotId"), self.current_account, self.region, own=True)
    if found.locked():
        raise _refuse("OperationNotPermitted", f"The snapshot {found.id} is locked.")
    if found.from_ami and found.from_ami in backend.amis:
        raise InvalidSnapshotInUse(found.id, found.from_ami)
    del backend.snapshots[found.id]
    return EmptyResult()


def modify_snapshot_attribute(self: ElasticBlockStore) -> ActionResult:
    """ModifySnapshotAttribute, in both forms of asking."""
    self.error_on_dryrun()
    found = find(self._get_param("SnapshotId"), self.current_account, self.region, own=True)
    given = self._get_param("CreateVolumePermission", {})
    changes: dict[str, tuple[set[str], set[str]]] = {
        name.lower(): ({e["UserId"] for e in entries if e.get("UserId")},
                       {e["Group"] for e in entries if e.get("Group")})
        for name, entries in given.items()
    }  # fmt: skip
    if operation := self._get_param("OperationType"):
        changes[operation] = (
            set(self._get_param("UserIds", [])), set(self._get_param("GroupNames", []))
        )  # fmt: skip
    if len(changes) != 1 or not any(next(iter(changes.values()))):
        raise _refuse("InvalidParameterCombination", "Add or remove permissions, one of both.")
    users, groups = changes.get("add", (set(), set()))
    if groups - {"all"}:
        raise _refuse("InvalidParameterValue", f"Invalid groups: {sorted(groups)}")
    if (users or groups) and managed(found.kms_key_id):
        raise _refuse(
            "OperationNotPermitted",
            "Encrypted snapshots with EBS default key cannot be shared",
        )
    if groups and found.encrypted:
        raise _refuse("OperationNotPermitted", "Encrypted snapshots cannot be made public")
    if groups and _blocked(self.ec2_backend) != "unblocked":
        raise _refuse("OperationNotPermitted", "Public access to snapshots is blocked.")
    for user in users - found.create_volume_permission_userids:
        conditions.born("snapshot", f"{found.id} {user}")
    found.create_volume_permission_userids |= users
    found.create_volume_permission_groups |= groups
    users, groups = changes.get("remove", (set(), set()))
    found.create_volume_permission_userids -= users
    found.create_volume_permission_groups -= groups
    return EmptyResult()


def describe_snapshot_attribute(self: ElasticBlockStore) -> ActionResult:
    """DescribeSnapshotAttribute: the owner's only."""
    self.error_on_dryrun()
    found = find(self._get_param("SnapshotId"), self.current_account, self.region, own=True)
    if self._get_param("Attribute") == "productCodes":
        codes = getattr(found, "product_codes", [])
        return ActionResult({"SnapshotId": found.id, "ProductCodes": codes})
    permissions = [{"Group": g} for g in sorted(found.create_volume_permission_groups)]
    permissions += [
        {"UserId": u} for u in sorted(found.create_volume_permission_userids)
        if conditions.visible("snapshot", f"{found.id} {u}")
    ]  # fmt: skip
    return ActionResult({"SnapshotId": found.id, "CreateVolumePermissions": permissions})


# -- locks


def lock_snapshot(self: ElasticBlockStore) -> ActionResult:
    """LockSnapshot: of a pending one too; a lock in force is only made longer."""
    self.error_on_dryrun()
    found = find(self._get_param("SnapshotId"), self.current_account, self.region, own=True)
    now = conditions.now()
    began = now if found.status == "completed" else None
    found.lock = new_lock(self._get_params(), found.lock, began, now)
    return ActionResult(_lock_document(found, found.lock))


def _lock_document(snapshot: SimSnapshot, lock: Lock) -> dict[str, Any]:
    document = lock.document(conditions.now())
    return document | {"OwnerId": snapshot.owner_id, "SnapshotId": snapshot.id}


def unlock_snapshot(self: ElasticBlockStore) -> ActionResult:
    """UnlockSnapshot: governance, or compliance in its cooling-off period."""
    self.error_on_dryrun()
    found = find(self._get_param("SnapshotId"), self.current_account, self.region, own=True)
    if not found.locked() or found.lock is None:
        raise _refuse("IncorrectState", f"The snapshot {found.id} is not locked.")
    if found.lock.state(conditions.now()) == "compliance":
        raise _refuse("OperationNotPermitted", f"The compliance lock of {found.id} stands.")
    found.lock = None
    return ActionResult({"SnapshotId": found.id})


def describe_locked_snapshots(self: ElasticBlockStore) -> ActionResult:
    """DescribeLockedSnapshots."""
    self.error_on_dryrun()
    account = self.current_account
    ids = self._get_param("SnapshotIds", [])
    found = [find(i, account, self.region, own=True) for i in ids] or [
        s for s in usable(account, self.region)
        if s.owner_id == account and conditions.visible("snapshot", s.id)
    ]  # fmt: skip
    states = self._filters_from_querystring().get("lock-state")
    found.sort(key=lambda s: (s.began, s.id))
    for each in found:
        _ = each.status  # a duration begins when the snapshot is complete
    shown = [_lock_document(s, s.lock) for s in found if s.lock]
    shown = [d for d in shown if not states or d["LockState"] in states]
    page, token = paging.page(self, shown, 5, 1000)
    return ActionResult({"Snapshots": page, "NextToken": token})


# -- public access


def _blocked(backend: EC2Backend) -> str:
    return str(getattr(backend, "snapshot_public_access", "unblocked"))


def get_snapshot_block_public_access_state(self: ElasticBlockStore) -> ActionResult:
    """GetSnapshotBlockPublicAccessState."""
    self.error_on_dryrun()
    return ActionResult({"State": _blocked(self.ec2_backend), "ManagedBy": "account"})


def enable_snapshot_block_public_access(self: ElasticBlockStore) -> ActionResult:
    """EnableSnapshotBlockPublicAccess."""
    self.error_on_dryrun()
    self.ec2_backend.snapshot_public_access = self._get_param("State")
    return ActionResult({"State": _blocked(self.ec2_backend)})


def disable_snapshot_block_public_access(self: ElasticBlockStore) -> ActionResult:
    """DisableSnapshotBlockPublicAccess."""
    self.error_on_dryrun()
    self.ec2_backend.snapshot_public_access = "unblocked"
    return ActionResult({"State": "unblocked"})


# -- default key


def get_ebs_default_kms_key_id(self: ElasticBlockStore) -> ActionResult:
    """GetEbsDefaultKmsKeyId."""
    self.error_on_dryrun()
    key = self.ec2_backend.default_kms_key_id
    return ActionResult({"KmsKeyId": MANAGED_ALIAS if not key or managed(key) else key})


def reset_ebs_default_kms_key_id(self: ElasticBlockStore) -> ActionResult:
    """ResetEbsDefaultKmsKeyId."""
    self.error_on_dryrun()
    self.ec2_backend.default_kms_key_id = ""
    return ActionResult({"KmsKeyId": MANAGED_ALIAS})


def _managed_key(plain: Callable[[EBSBackend], str]) -> Callable[[EBSBackend], str]:
    def create(self: EBSBackend) -> str:
        arn = plain(self)
        key: Any = find_key(arn, "", "")
        through = {"kms:CallerAccount": key.account_id,
                   "kms:ViaService": f"ec2.{key.region}.amazonaws.com"}  # fmt: skip
        key.key_manager = "AWS"
        key.policy = json.dumps({"Statement": [
            {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": [
                "kms:Encrypt", "kms:Decrypt", "kms:ReEncrypt*", "kms:GenerateDataKey*",
                "kms:CreateGrant", "kms:DescribeKey",
            ], "Resource": "*", "Condition": {"StringEquals": through}},
            {"Effect": "Allow", "Principal": {"AWS": f"arn:aws:iam::{key.account_id}:root"},
             "Action": ["kms:Describe*", "kms:Get*", "kms:List*"], "Resource": "*"},
        ]})  # fmt: skip
        return arn

    return create


_OPERATIONS = (
    create_snapshot, create_snapshots, copy_snapshot, describe_snapshots, delete_snapshot,
    modify_snapshot_attribute, describe_snapshot_attribute, lock_snapshot, unlock_snapshot,
    describe_locked_snapshots, get_snapshot_block_public_access_state,
    enable_snapshot_block_public_access, disable_snapshot_block_public_access,
    get_ebs_default_kms_key_id, reset_ebs_default_kms_key_id,
)  # fmt: skip


def install() -> None:
    """Let moto make our snapshots and answer with these."""
    elastic_block_store.Snapshot = SimSnapshot  # type: ignore[misc]
    EBSBackend._create_default_encryption_key = _managed_key(  # type: ignore[method-assign, assignment]
        EBSBackend._create_default_encryption_key
    )
    for operation in _OPERATIONS:
        setattr(ElasticBlockStore, operation.__name__, operation)
