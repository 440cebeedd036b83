# SPDX-License-Identifier: Apache-2.0
"""EC2 Instance Connect Endpoints: one for each VPC, complete at once; `network` takes the tunnels.

Source: EC2 API Reference (CreateInstanceConnectEndpoint, DescribeInstanceConnectEndpoints,
DeleteInstanceConnectEndpoint).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moto.core.responses import ActionResult
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models import ec2_backends
from moto.ec2.responses.elastic_block_store import ElasticBlockStore

from pipeline.gameday.aws.network import network


def _held(self: ElasticBlockStore) -> dict[str, dict[str, Any]]:
    """Those of the account and Region."""
    return {
        n: e for n, e in network.endpoints.items()
        if (e["OwnerId"], e["_region"]) == (self.current_account, self.region)
    }  # fmt: skip


def _described(endpoint: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in endpoint.items() if not k.startswith("_")}


def _not_found(name: str) -> EC2ClientError:
    return EC2ClientError("InvalidInstanceConnectEndpointId.NotFound", f"{name} does not exist")


def create_instance_connect_endpoint(self: ElasticBlockStore) -> ActionResult:
    """CreateInstanceConnectEndpoint: it takes tunnels at once."""
    self.error_on_dryrun()
    backend = ec2_backends[self.current_account][self.region]
    subnet = backend.get_subnet(self._get_param("SubnetId"))
    if any(e["VpcId"] == subnet.vpc_id for e in _held(self).values()):
        raise EC2ClientError("InstanceConnectEndpointLimitExceeded", "there is one in the VPC")
    groups = list(self._get_param("SecurityGroupIds") or [])
    eni = backend.create_network_interface(subnet, "", group_ids=groups)
    name = f"eice-{eni.id.removeprefix('eni-')}"
    address = str(eni.private_ip_address)
    port = network.open_endpoint(name, address, self.current_account, subnet.vpc_id)
    network.endpoints[name] = {
        "InstanceConnectEndpointId": name, "OwnerId": self.current_account,
        "State": "create-complete", "DnsName": f"127.0.0.1:{port}", "VpcId": subnet.vpc_id,
        "SubnetId": subnet.id, "NetworkInterfaceIds": [eni.id], "SecurityGroupIds": groups,
        "PreserveClientIp": False, "_region": self.region,
    }  # fmt: skip
    return ActionResult({"InstanceConnectEndpoint": _described(network.endpoints[name])})


def describe_instance_connect_endpoints(self: ElasticBlockStore) -> ActionResult:
    """DescribeInstanceConnectEndpoints: those of the account and Region; filter `vpc-id`."""
    wanted = self._get_param("InstanceConnectEndpointIds") or []
    held = _held(self)
    if lost := [n for n in wanted if n not in held]:
        raise _not_found(lost[0])
    filters = {f["Name"]: f["Values"] for f in self._get_param("Filters") or []}
    return ActionResult({"InstanceConnectEndpoints": [
        _described(e) for n, e in held.items()
        if (not wanted or n in wanted)
        and ("vpc-id" not in filters or e["VpcId"] in filters["vpc-id"])
    ]})  # fmt: skip


def delete_instance_connect_endpoint(self: ElasticBlockStore) -> ActionResult:
    """DeleteInstanceConnectEndpoint: gone at once, with its interface."""
    self.error_on_dryrun()
    name = str(self._get_param("InstanceConnectEndpointId"))
    gone = _held(self).get(name)
    if gone is None:
        raise _not_found(name)
    del network.endpoints[name]
    for eni in gone["NetworkInterfaceIds"]:
        ec2_backends[self.current_account][self.region].delete_network_interface(eni)
    return ActionResult({"InstanceConnectEndpoint": _described(gone)})


def install() -> None:
    """Let EC2 have them."""
    for operation in (
        create_instance_connect_endpoint, describe_instance_connect_endpoints,
        delete_instance_connect_endpoint,
    ):  # fmt: skip
        setattr(ElasticBlockStore, operation.__name__, operation)
