# SPDX-License-Identifier: Apache-2.0
"""Images of an instance hold snapshots of its volumes; moto gives them one of an empty volume.

Source: EC2 API Reference, CreateImage, DescribeImages (filters `source-instance-id`,
`block-device-mapping.snapshot-id`), DeregisterImage (`DeleteAssociatedSnapshots`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moto.ec2.models import EC2Backend
from moto.ec2.models.amis import Ami, AmiBackend

from pipeline.gameday.aws import recycle


def _create_image(plain: Callable[..., Ami]) -> Callable[..., Ami]:
    def create_image(self: EC2Backend, instance_id: str, *more: Any, **named: Any) -> Ami:
        made: Any = plain(self, instance_id, *more, **named)
        empty = made.ebs_snapshot
        recycle.forget(self, empty.volume_id)
        del self.snapshots[empty.id]
        made.snapshots = {
            device: self.create_snapshot(
                held.volume_id, f"Created by CreateImage({instance_id}) for {made.id}",
                from_ami=made.id,
            )
            for device, held in self.get_instance(instance_id).get_block_device_mapping
        }  # fmt: skip
        return made  # type: ignore[no-any-return]

    return create_image


def _mappings(
    plain: Callable[[Any], list[dict[str, Any]]],
) -> Callable[[Any], list[dict[str, Any]]]:
    def block_device_mappings(self: Any) -> list[dict[str, Any]]:
        if not hasattr(self, "snapshots"):
            return plain(self)
        return [
            {"DeviceName": device, "Ebs": {
                "SnapshotId": s.id, "VolumeSize": s.size, "DeleteOnTermination": True,
                "VolumeType": "gp3", "Encrypted": s.encrypted,
            }} for device, s in sorted(self.snapshots.items())
        ]  # fmt: skip

    return block_device_mappings


def _filter_value(plain: Callable[..., Any]) -> Callable[..., Any]:
    def get_filter_value(self: Any, filter_name: str, method_name: str | None = None) -> Any:
        if filter_name == "block-device-mapping.snapshot-id":
            return [m["Ebs"]["SnapshotId"] for m in self.block_device_mappings]
        return plain(self, filter_name, method_name)

    return get_filter_value


def install() -> None:
    """Let moto make them so. After `recycle.install()`."""
    AmiBackend.create_image = _create_image(AmiBackend.create_image)  # type: ignore[method-assign]
    plain: Any = Ami.block_device_mappings.fget  # type: ignore[attr-defined]
    Ami.block_device_mappings = property(_mappings(plain))  # type: ignore[method-assign, assignment]
    Ami.get_filter_value = _filter_value(Ami.get_filter_value)  # type: ignore[method-assign]
