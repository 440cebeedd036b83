# SPDX-License-Identifier: Apache-2.0
"""Volumes, instances and tags as EC2 has them: content, keys, attachments, pages, idempotency.

Source: EC2 API Reference (CreateVolume, AttachVolume, DetachVolume, DescribeVolumes,
DescribeInstances, RunInstances, "Ensuring idempotency", "Eventual consistency", "Error codes");
EBS User Guide ("EBS encryption", "Encryption by default").
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

from moto.core.responses import ActionResult
from moto.ec2.exceptions import EC2ClientError, InvalidInstanceIdError, InvalidVolumeIdError
from moto.ec2.models import EC2Backend, ec2_backends, elastic_block_store
from moto.ec2.models.elastic_block_store import EBSBackend, Volume
from moto.ec2.models.tags import TagBackend
from moto.ec2.responses.elastic_block_store import ElasticBlockStore
from moto.ec2.responses.instances import InstanceResponse

from pipeline.gameday.aws import paging, snapshots
from pipeline.gameday.aws.blocks import (
    BLOCK,
    EMPTY,
    GIB,
    Block,
    Content,
    ContentError,
    FileContent,
    Layered,
    MapContent,
)
from pipeline.gameday.aws.call import Call, before, current
from pipeline.gameday.aws.conditions import conditions
from pipeline.gameday.aws.kms import unusable


class SimVolume(Volume):
    """A volume with content. `lineage`: shared by those whose blocks can be compared."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.content: Content = EMPTY
        self.lineage: str = self.id
        self.phase = "creating"
        self.product_codes: list[dict[str, str]] = []
        self.gone = False  # its key may not be used: it ends before anybody has seen it
        self._polls = conditions.settings.volume_polls
        self.settle()
        conditions.born("volume", self.id)

    @property
    def status(self) -> str:
        """As the API names it."""
        if self.phase == "creating":
            return "creating"
        return "in-use" if self.attachment else "available"

    def begin(self, phase: str) -> None:
        """Enter `attaching` or `detaching`."""
        self.phase, self._polls = phase, conditions.settings.volume_polls
        if self.attachment:
            self.attachment.status = phase
        self.settle()

    def settle(self) -> None:
        """Leave the phase if it was shown often enough."""
        if self._polls > 0 or not self.phase:
            return
        phase, self.phase = self.phase, ""
        if self.attachment is None:
            return
        if phase == "detaching":
            held = self.attachment
            self.ec2_backend.detach_volume(self.id, held.instance.id, held.device)
        else:
            self.attachment.status = "attached"

    def polled(self) -> None:
        """It was shown once more."""
        self._polls -= 1

    def hold(self, content: Content) -> None:
        """Have other content from now on. Raises: ContentError if it is too large."""
        if content.end() * BLOCK > self.size * GIB:
            raise ContentError(f"{self.id} has {self.size} GiB, its content is larger")
        self.content = content


def _of(volume_id: str) -> SimVolume:
    """A volume of whichever account. Raises: KeyError."""
    for regions in list(ec2_backends.values()):
        for backend in list(regions.values()):
            if isinstance(found := backend.volumes.get(volume_id), SimVolume):
                return found
    raise KeyError(f"no such volume: {volume_id}")


def fill(volume_id: str, content: Content) -> None:
    """Give a volume its content. Raises: KeyError; ContentError."""
    _of(volume_id).hold(content)


def write(volume_id: str, blocks: dict[int, Block]) -> None:
    """Write blocks over it; snapshots that exist do not change. Raises: KeyError; ContentError."""
    volume = _of(volume_id)
    volume.hold(Layered(volume.content, blocks))


def content_of(given: Any) -> Content:
    """Read a content as `stand.Stand.fill` takes it. Raises: ContentError."""
    if isinstance(given, Content):
        return given
    if isinstance(given, dict):
        return MapContent(given)
    return FileContent(given)


def _refuse(code: str, message: str) -> EC2ClientError:
    return EC2ClientError(code, message)


# -- what moto makes


def _create_volume(plain: Callable[..., Volume]) -> Callable[..., Volume]:
    def create_volume(
        self: EC2Backend, size: int | None, zone_name: str, snapshot_id: str | None = None,
        encrypted: bool = False, kms_key_id: str | None = None, **more: Any,
    ) -> Volume:  # fmt: skip
        source = None
        if snapshot_id:
            source = snapshots.find(snapshot_id, self.account_id, self.region_name)
            if source.status != "completed":
                raise _refuse("IncorrectState", f"Snapshot '{snapshot_id}' is '{source.status}'.")
            size = size or source.size
            if size < source.size:
                raise _refuse(
                    "InvalidParameterValue",
                    f"Volume of size {size}GiB is smaller than snapshot '{snapshot_id}',"
                    f" expect size >= {source.size}GiB",
                )
            encrypted = encrypted or source.encrypted
            if not kms_key_id and source.owner_id == self.account_id:
                kms_key_id = source.kms_key_id
        encrypted = encrypted or self.ebs_encryption_by_default
        if encrypted:
            kms_key_id = snapshots.key_arn(self, kms_key_id)
        made = plain(
            self, size=size, zone_name=zone_name, encrypted=encrypted, kms_key_id=kms_key_id, **more
        )
        if source and isinstance(made, SimVolume):
            made.snapshot_id = snapshot_id
            made.content, made.lineage = source.content, source.lineage
            made.product_codes = getattr(source, "product_codes", [])
        return made

    return create_volume


def _describe_tags(
    plain: Callable[..., list[dict[str, str]]],
) -> Callable[..., list[dict[str, str]]]:
    def describe_tags(self: TagBackend, filters: Any = None) -> list[dict[str, str]]:
        shown = []
        for tag in plain(self, filters):
            name = f"{tag['resource_id']} {tag['key']}"
            if conditions.visible("tag", name):
                shown.append(tag)
            elif (old := _old_tags.get(name)) is not None:
                shown.append(tag | {"value": old})
        return shown

    return describe_tags


_old_tags: dict[str, str | None] = {}


@before("ec2", "CreateTags")
def tags_are_seen_later(call: Call) -> None:
    """A tag on something that exists is seen by later requests only."""
    given = call.parameters
    keys = [v for k, v in given.items() if k.startswith("Tag.") and k.endswith(".Key")]
    backend = ec2_backends[call.account][call.region]
    for resource in (v for k, v in given.items() if k.startswith("ResourceId.")):
        for key in keys:
            name = f"{resource} {key}"
            if conditions.visible("tag", name):
                _old_tags[name] = backend.tags.get(resource, {}).get(key)
            conditions.born("tag", name)


_ASKS_FOR = {
    "DescribeInstances": ("instance", "tag"),
    "DescribeVolumes": ("volume", "tag"),
    "DescribeSnapshots": ("snapshot", "tag"),
    "DescribeTags": ("tag",),
}


@before("ec2", "*")
def requests_are_counted(call: Call) -> None:
    """What is new is seen after so many requests that ask for it."""
    kinds = _ASKS_FOR.get(call.operation, ())
    if not kinds and any(v.startswith("snap-") for v in call.resources):
        kinds = ("snapshot",)
    for kind in kinds:
        conditions.tick(kind)


# -- operations: methods of moto's response classes

_made: dict[tuple[str, str, str, str], tuple[str, Any]] = {}


def reset() -> None:
    """Forget tokens and tags of an earlier stand-in."""
    _made.clear()
    _old_tags.clear()


def _once(
    response: InstanceResponse | ElasticBlockStore, make: Callable[[], ActionResult]
) -> ActionResult:
    """Make it, or return what the same ClientToken made. Raises: IdempotentParameterMismatch."""
    token = response._get_param("ClientToken")
    if not token:
        return make()
    asked = json.dumps(
        {k: v for k, v in response._get_params().items() if k != "DryRun"},
        sort_keys=True, default=str,
    )  # fmt: skip
    place = (response.current_account, response.region, response._get_action(), token)
    if place in _made:
        before_this, result = _made[place]
        if before_this != asked:
            raise _refuse(
                "IdempotentParameterMismatch",
                "The request uses the same client token as a previous, but non-identical request.",
            )
        return ActionResult(result)
    done = make()
    _made[place] = asked, done.result
    return done


def create_volume(self: ElasticBlockStore) -> ActionResult:
    """CreateVolume: once a ClientToken; a key that may not be used shows as NotFound later."""
    self.error_on_dryrun()

    def make() -> ActionResult:
        get, backend = self._get_param, self.ec2_backend
        made = backend.create_volume(
            size=get("Size"), zone_name=get("AvailabilityZone"), snapshot_id=get("SnapshotId"),
            encrypted=self._get_bool_param("Encrypted", False), kms_key_id=get("KmsKeyId"),
            volume_type=get("VolumeType"), iops=get("Iops"), throughput=get("Throughput"),
            multi_attach_enabled=get("MultiAttachEnabled"),
        )  # fmt: skip
        made.add_tags(self._parse_tag_specification().get("volume", {}))
        made.gone = _denied(self, made)
        return ActionResult(made)

    return _once(self, make)


def _denied(response: ElasticBlockStore, made: SimVolume) -> bool:
    caller = current.get().caller
    account, region = response.current_account, response.region
    needed: list[tuple[str | None, tuple[str, ...], str]] = []
    if made.encrypted:
        needed.append((made.kms_key_id, snapshots.WRITE_ACTIONS, made.id))
    if made.snapshot_id:
        source = snapshots.find(made.snapshot_id, account, region)
        if source.kms_key_id:
            needed.append((source.kms_key_id, snapshots.READ_ACTIONS, source.volume_id))
    return any(
        unusable(key or "", account, region, caller, actions, {"aws:ebs:id": volume})
        for key, actions, volume in needed
    )


def describe_volumes(self: ElasticBlockStore) -> ActionResult:
    """DescribeVolumes: what is seen by now, in pages."""
    self.error_on_dryrun()
    backend, ids = self.ec2_backend, self._get_param("VolumeIds", [])
    if ids and self._get_param("MaxResults") is not None:
        raise _refuse(
            "InvalidParameterCombination",
            "The parameter volumeSet cannot be used with the parameter maxResults",
        )
    for volume in list(backend.volumes.values()):
        if volume.gone:
            del backend.volumes[volume.id]
        else:
            volume.settle()
    for each in ids:
        if each not in backend.volumes or not conditions.visible("volume", each):
            raise InvalidVolumeIdError(each)
    found = backend.describe_volumes(ids, self._filters_from_querystring())
    page, token = paging.page(
        self, [v for v in found if conditions.visible("volume", v.id)], 5, 500
    )
    for volume in page:
        volume.polled()
    return ActionResult({"Volumes": page, "NextToken": token})


def attach_volume(self: ElasticBlockStore) -> ActionResult:
    """AttachVolume: one instance, the same zone, a free device name."""
    self.error_on_dryrun()
    backend, device = self.ec2_backend, self._get_param("Device")
    volume = backend.get_volume(self._get_param("VolumeId"))
    instance = backend.get_instance(self._get_param("InstanceId"))
    if volume.gone:
        raise InvalidVolumeIdError(volume.id)
    if volume.attachment:
        raise _refuse("VolumeInUse", f"{volume.id} is already attached to an instance")
    if volume.status != "available":
        raise _refuse("IncorrectState", f"{volume.id} is not 'available'.")
    if instance.state not in ("running", "stopped"):
        raise _refuse("IncorrectState", f"Instance '{instance.id}' is not 'running'.")
    if volume.availability_zone != instance.availability_zone:
        raise _refuse(
            "InvalidVolume.ZoneMismatch",
            f"The volume '{volume.id}' is not in the same availability zone as instance"
            f" '{instance.id}'",
        )
    if device in instance.block_device_mapping:
        raise _refuse(
            "InvalidParameterValue",
            f"Invalid value '{device}' for unixDevice. Attachment point {device} is already in use",
        )
    made = backend.attach_volume(volume.id, instance.id, device)
    answer = _attachment(made, "attaching")
    volume.begin("attaching")
    return ActionResult(answer)


def describe_volume_attribute(self: ElasticBlockStore) -> ActionResult:
    """DescribeVolumeAttribute: the product codes, which a volume has from its snapshot."""
    self.error_on_dryrun()
    volume = self.ec2_backend.get_volume(self._get_param("VolumeId"))
    return ActionResult({"VolumeId": volume.id, "ProductCodes": volume.product_codes})


def detach_volume(self: ElasticBlockStore) -> ActionResult:
    """DetachVolume: not the root of a running instance."""
    self.error_on_dryrun()
    backend = self.ec2_backend
    volume = backend.get_volume(self._get_param("VolumeId"))
    held = volume.attachment
    named = self._get_param("InstanceId"), self._get_param("Device")
    if not held or volume.phase == "detaching":
        raise _refuse("IncorrectState", f"Volume '{volume.id}' is in the 'available' state.")
    if any(n and n != m for n, m in zip(named, (held.instance.id, held.device), strict=True)):
        raise _refuse(
            "InvalidAttachment.NotFound", f"The volume '{volume.id}' is not attached there."
        )
    if held.device == held.instance.root_device_name and held.instance.state == "running":
        raise _refuse(
            "OperationNotPermitted",
            f"Unable to detach root volume '{volume.id}' from instance '{held.instance.id}'",
        )
    answer = _attachment(held, "detaching")
    volume.begin("detaching")
    return ActionResult(answer)


def _attachment(held: Any, state: str) -> dict[str, Any]:
    return {
        "VolumeId": held.volume.id, "InstanceId": held.instance.id, "Device": held.device,
        "State": state, "AttachTime": held.attach_time,
    }  # fmt: skip


def describe_instances(self: InstanceResponse) -> ActionResult:
    """DescribeInstances: what is seen by now, in pages."""
    self.error_on_dryrun()
    backend, ids = self.ec2_backend, self._get_param("InstanceIds", [])
    if ids and self._get_param("MaxResults") is not None:
        raise _refuse(
            "InvalidParameterCombination",
            "The parameter instancesSet cannot be used with the parameter maxResults",
        )
    everything = {i.id for i in backend.all_instances()}
    for each in ids:
        if each not in everything or not conditions.visible("instance", each):
            raise InvalidInstanceIdError(each)
    found = backend.describe_instances(filters=self._filters_from_querystring())
    pairs = [
        (reservation, instance)
        for reservation in found
        for instance in reservation.instances
        if (not ids or instance.id in ids) and conditions.visible("instance", instance.id)
    ]
    page, token = paging.page(self, pairs, 5, 1000)
    shown: dict[str, Any] = {}
    for reservation, instance in page:
        if reservation.id not in shown:
            shown[reservation.id] = copy.copy(reservation)
            shown[reservation.id].instances = []
        shown[reservation.id].instances.append(instance)
    return ActionResult({"Reservations": list(shown.values()), "NextToken": token})


def _run_instances(
    plain: Callable[[InstanceResponse], ActionResult],
) -> Callable[[InstanceResponse], ActionResult]:
    def run_instances(self: InstanceResponse) -> ActionResult:
        def make() -> ActionResult:
            done = plain(self)
            reservation: Any = done.result
            for instance in reservation.instances:
                conditions.born("instance", instance.id)
            return done

        return _once(self, make)

    return run_instances


_OPERATIONS = (
    create_volume, describe_volumes, describe_volume_attribute, attach_volume, detach_volume,
)  # fmt: skip


def install() -> None:
    """Let moto make our volumes and answer with these."""
    elastic_block_store.Volume = SimVolume  # type: ignore[misc]
    EBSBackend.create_volume = _create_volume(EBSBackend.create_volume)  # type: ignore[method-assign]
    TagBackend.describe_tags = _describe_tags(TagBackend.describe_tags)  # type: ignore[method-assign]
    for operation in _OPERATIONS:
        setattr(ElasticBlockStore, operation.__name__, operation)
    InstanceResponse.describe_instances = describe_instances  # type: ignore[method-assign]
    InstanceResponse.run_instances = _run_instances(  # type: ignore[method-assign, assignment]
        InstanceResponse.run_instances
    )
