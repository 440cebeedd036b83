# SPDX-License-Identifier: Apache-2.0
"""Instances that have ended: listed for an hour, remembered by AWS Config where it records.

Source: EC2 User Guide, "Terminate your instance" ("remains visible … for a short while"; an hour is
assumed); AWS Config API Reference, GetResourceConfigHistory; AWS Config Developer Guide,
"Components of a configuration item".
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from moto.config.responses import ConfigResponse
from moto.core.exceptions import JsonRESTError
from moto.core.responses import ActionResult
from moto.ec2.models.instances import Instance
from moto.ec2.responses.instances import InstanceResponse

from pipeline.gameday.aws.conditions import conditions

LISTED_SECONDS = 3600.0

_items: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)


def reset() -> None:
    """Forget what was recorded."""
    _items.clear()


def _terminate(plain: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def terminate(self: Any) -> Any:
        if getattr(self, "ended", None) is None:
            self.ended = conditions.now()
            if conditions.settings.config_recorder:
                _record(self)
        return plain(self)

    return terminate


def _record(instance: Any) -> None:
    held = instance.get_block_device_mapping
    mappings = [
        {"deviceName": device, "ebs": {"volumeId": m.volume_id, "status": "attached",
                                       "deleteOnTermination": bool(m.delete_on_termination)}}
        for device, m in held
    ]  # fmt: skip
    common = {"resourceType": "AWS::EC2::Instance", "resourceId": instance.id,
              "configurationItemCaptureTime": instance.ended}  # fmt: skip
    backend = instance.ec2_backend
    # Newest first, as it is asked for.
    _items[backend.account_id, backend.region_name, instance.id] = [
        common | {"configurationItemStatus": "ResourceDeleted", "relationships": []},
        common | {
            "configurationItemStatus": "OK",
            "configuration": json.dumps({"instanceId": instance.id,
                                         "blockDeviceMappings": mappings}),
            "relationships": [
                {"resourceType": "AWS::EC2::Volume", "resourceId": m.volume_id,
                 "relationshipName": "Is attached to Volume"} for _, m in held
            ],
        },
    ]  # fmt: skip


def get_resource_config_history(self: ConfigResponse) -> str:
    """GetResourceConfigHistory of instances that have ended."""
    found = _items.get(
        (self.current_account, self.region, str(self._get_param("resourceId"))), []
    )  # fmt: skip
    if not found or self._get_param("resourceType") != "AWS::EC2::Instance":
        raise JsonRESTError(
            "ResourceNotDiscoveredException", "Resource is not recorded by AWS Config."
        )
    return json.dumps({"configurationItems": found})


def _describe(
    plain: Callable[[InstanceResponse], ActionResult],
) -> Callable[[InstanceResponse], ActionResult]:
    def describe_instances(self: InstanceResponse) -> ActionResult:
        over = conditions.now() - LISTED_SECONDS
        for reservation in self.ec2_backend.reservations.values():
            reservation.instances = [
                i for i in reservation.instances
                if getattr(i, "ended", None) is None or i.ended > over
            ]  # fmt: skip
        return plain(self)

    return describe_instances


def install() -> None:
    """Let moto forget them. After `volumes.install()`."""
    Instance.terminate = _terminate(Instance.terminate)  # type: ignore[method-assign, assignment]
    InstanceResponse.describe_instances = _describe(InstanceResponse.describe_instances)  # type: ignore[method-assign, assignment]
    ConfigResponse.get_resource_config_history = get_resource_config_history  # type: ignore[method-assign]
