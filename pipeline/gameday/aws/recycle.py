# SPDX-License-Identifier: Apache-2.0
"""The Recycle Bin: what a retention rule keeps of deleted volumes, snapshots and images.

Rules are settings of the stand-in (`conditions.Settings.recycle_…_days`), not resources.

Source: EBS User Guide, "Recycle Bin" ("Considerations", "Recover deleted EBS volumes", "… EBS
snapshots", "… EBS-backed AMIs"); EC2 API Reference, List…InRecycleBin, Restore…FromRecycleBin. Not
in these, so unconfirmed: the codes of errors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moto.core.responses import ActionResult
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models import EC2Backend
from moto.ec2.models.amis import AmiBackend
from moto.ec2.models.elastic_block_store import EBSBackend, Volume
from moto.ec2.responses.amis import AmisResponse
from moto.ec2.responses.elastic_block_store import ElasticBlockStore

from pipeline.gameday.aws import paging
from pipeline.gameday.aws.conditions import conditions
from pipeline.gameday.aws.locks import moment

_CODES = {
    "volume": ("InvalidVolume.NotFound", "volume"),
    "snapshot": ("InvalidSnapshot.NotFound", "snapshot"),
    "image": ("InvalidAMIID.NotFound", "image"),
}


@dataclass(frozen=True)
class Binned:
    """Something deleted that is kept for a while."""

    kind: str
    resource: Any
    entered: float
    exits: float


def _bin(backend: EC2Backend) -> dict[str, Binned]:
    kept: dict[str, Binned] | None = getattr(backend, "recycle_bin", None)
    if kept is None:
        kept = {}
        backend.recycle_bin = kept  # type: ignore[attr-defined]
    for name in [n for n, b in kept.items() if b.exits <= conditions.now()]:
        del kept[name]
    return kept


def keep(backend: EC2Backend, kind: str, name: str, resource: Any) -> None:
    """Take in what was deleted, if a rule of its kind says so."""
    days = getattr(conditions.settings, f"recycle_{kind}s_days")
    if days:
        now = conditions.now()
        _bin(backend)[name] = Binned(kind, resource, now, now + days * 86_400)


def forget(backend: EC2Backend, name: str) -> None:
    """Let go of it at once."""
    _bin(backend).pop(name, None)


def _listed(self: Any, kind: str, parameter: str) -> tuple[list[tuple[str, Binned]], str | None]:
    self.error_on_dryrun()
    ids = self._get_param(parameter, [])
    found = sorted((n, b) for n, b in _bin(self.ec2_backend).items()
                   if b.kind == kind and (not ids or n in ids))  # fmt: skip
    return paging.page(self, found, 5, 1000)


def _times(binned: Binned) -> dict[str, Any]:
    return {"RecycleBinEnterTime": moment(binned.entered),
            "RecycleBinExitTime": moment(binned.exits)}  # fmt: skip


def list_snapshots_in_recycle_bin(self: ElasticBlockStore) -> ActionResult:
    """ListSnapshotsInRecycleBin."""
    page, token = _listed(self, "snapshot", "SnapshotIds")
    shown = [
        {"SnapshotId": n, "VolumeId": b.resource.volume_id,
         "Description": b.resource.description or "", **_times(b)} for n, b in page
    ]  # fmt: skip
    return ActionResult({"Snapshots": shown, "NextToken": token})


def list_volumes_in_recycle_bin(self: ElasticBlockStore) -> ActionResult:
    """ListVolumesInRecycleBin."""
    page, token = _listed(self, "volume", "VolumeIds")
    shown = [{"VolumeId": n, "Size": b.resource.size, "State": "recycle-bin",
              "VolumeType": b.resource.volume_type,
              "AvailabilityZone": b.resource.availability_zone, **_times(b)}
             for n, b in page]  # fmt: skip
    return ActionResult({"Volumes": shown, "NextToken": token})


def list_images_in_recycle_bin(self: AmisResponse) -> ActionResult:
    """ListImagesInRecycleBin."""
    page, token = _listed(self, "image", "ImageIds")
    shown = [{"ImageId": n, "Name": b.resource.name, "Description": b.resource.description or "",
              **_times(b)} for n, b in page]  # fmt: skip
    return ActionResult({"Images": shown, "NextToken": token})


def _restored(self: Any, kind: str, parameter: str) -> Any:
    self.error_on_dryrun()
    name = self._get_param(parameter)
    found = _bin(self.ec2_backend).get(name)
    if found is None or found.kind != kind:
        code, word = _CODES[kind]
        raise EC2ClientError(code, f"The {word} '{name}' is not in the Recycle Bin.")
    del _bin(self.ec2_backend)[name]
    conditions.born(kind, name)
    return found.resource


def restore_snapshot_from_recycle_bin(self: ElasticBlockStore) -> ActionResult:
    """RestoreSnapshotFromRecycleBin."""
    found = _restored(self, "snapshot", "SnapshotId")
    self.ec2_backend.snapshots[found.id] = found
    return ActionResult(found.document(self.current_account))


def restore_volume_from_recycle_bin(self: ElasticBlockStore) -> ActionResult:
    """RestoreVolumeFromRecycleBin."""
    found = _restored(self, "volume", "VolumeId")
    self.ec2_backend.volumes[found.id] = found
    return ActionResult({"Return": True})


def restore_image_from_recycle_bin(self: AmisResponse) -> ActionResult:
    """RestoreImageFromRecycleBin: its snapshots must be there."""
    name = self._get_param("ImageId")
    waiting = _bin(self.ec2_backend).get(name)
    needed = getattr(waiting.resource, "snapshots", {}) if waiting else {}
    if any(s.id not in self.ec2_backend.snapshots for s in needed.values()):
        raise EC2ClientError(
            "InvalidSnapshot.NotFound", f"A snapshot of the image '{name}' must be restored first."
        )
    found = _restored(self, "image", "ImageId")
    self.ec2_backend.amis[found.id] = found
    if found.id in self.ec2_backend.deleted_amis:
        self.ec2_backend.deleted_amis.remove(found.id)
    return ActionResult({"Return": True})


def _delete_volume(plain: Callable[..., Volume]) -> Callable[..., Volume]:
    def delete_volume(self: EC2Backend, volume_id: str) -> Volume:
        gone = plain(self, volume_id)
        keep(self, "volume", volume_id, gone)
        return gone

    return delete_volume


def _deregister(plain: Callable[..., None]) -> Callable[..., None]:
    def deregister_image(self: EC2Backend, ami_id: str) -> None:
        found = self.amis.get(ami_id)
        plain(self, ami_id)
        keep(self, "image", ami_id, found)

    return deregister_image


def _delete_snapshot(
    plain: Callable[[ElasticBlockStore], ActionResult],
) -> Callable[[ElasticBlockStore], ActionResult]:
    def delete_snapshot(self: ElasticBlockStore) -> ActionResult:
        name = self._get_param("SnapshotId")
        found = self.ec2_backend.snapshots.get(name)
        done = plain(self)
        keep(self.ec2_backend, "snapshot", name, found)
        return done

    return delete_snapshot


_OPERATIONS: tuple[tuple[type[Any], Callable[..., ActionResult]], ...] = (
    (ElasticBlockStore, list_snapshots_in_recycle_bin),
    (ElasticBlockStore, list_volumes_in_recycle_bin),
    (ElasticBlockStore, restore_snapshot_from_recycle_bin),
    (ElasticBlockStore, restore_volume_from_recycle_bin),
    (AmisResponse, list_images_in_recycle_bin),
    (AmisResponse, restore_image_from_recycle_bin),
)


def install() -> None:
    """Let deletions go through it. After `snapshots.install()`."""
    EBSBackend.delete_volume = _delete_volume(EBSBackend.delete_volume)  # type: ignore[method-assign]
    AmiBackend.deregister_image = _deregister(AmiBackend.deregister_image)  # type: ignore[method-assign]
    ElasticBlockStore.delete_snapshot = _delete_snapshot(ElasticBlockStore.delete_snapshot)  # type: ignore[method-assign, assignment]
    for response, operation in _OPERATIONS:
        setattr(response, operation.__name__, operation)
