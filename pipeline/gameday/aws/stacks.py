# SPDX-License-Identifier: Apache-2.0
"""What CloudFormation makes of groups and instances, as EC2 has them; moto leaves most of it out.

Source: CloudFormation Template Reference, AWS::EC2::SecurityGroup (`SecurityGroupEgress`: without
any, all is allowed), AWS::EC2::Instance (`SecurityGroupIds`, `MetadataOptions`,
`PropagateTagsToVolumeOnCreation`); "Pseudo parameters" (`AWS::NoValue` in a list removes the item).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from moto.cloudformation import parsing
from moto.cloudformation.exceptions import ValidationError
from moto.ec2.models import ec2_backends
from moto.ec2.models.instances import Instance
from moto.ec2.models.security_groups import SecurityGroup
from moto.ssm.models import ssm_backends

_SSM = re.compile(r"\{\{resolve:ssm:([A-Za-z0-9_./-]+)\}\}")
_SHUTDOWN = "InstanceInitiatedShutdownBehavior"


def _clean(plain: Callable[..., Any]) -> Callable[..., Any]:
    def clean_json(given: Any, resources: Any) -> Any:
        cleaned = plain(given, resources)
        if isinstance(given, list) and isinstance(cleaned, list):
            return [
                made for source, made in zip(given, cleaned, strict=True)
                if made is not None or source is None
            ]  # fmt: skip
        return cleaned

    return clean_json


def _condition(plain: Callable[..., Any]) -> Callable[..., Any]:
    """Values are compared as text: a parameter of type Number too."""

    def parse_condition(condition: Any, resources: Any, conditions: Any) -> Any:
        if isinstance(condition, dict) and list(condition) == ["Fn::Equals"]:
            values = [
                conditions[v["Condition"]] if isinstance(v, dict) and "Condition" in v
                else parsing.clean_json(v, resources) for v in condition["Fn::Equals"]
            ]  # fmt: skip
            if not any(isinstance(value, bool) for value in values):
                return str(values[0]) == str(values[1])
        return plain(condition, resources, conditions)

    return parse_condition


def _resolved(text: str, account: str, region: str) -> str:
    """A dynamic reference to an SSM parameter, resolved."""
    if found := _SSM.fullmatch(text):
        held = ssm_backends[account][region].get_parameter(found[1])
        if held is None:
            raise ValidationError(f"Parameters: [ssm:{found[1]}] cannot be found.")
        return str(held.value)
    return text


def _rule(said: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `authorize_security_group_…` for one rule of a template."""
    group = said.get("DestinationSecurityGroupId") or said.get("SourceSecurityGroupId")
    prefixes, address = said.get("DestinationPrefixListId"), said.get("CidrIp")
    about = {"Description": str(said.get("Description", ""))}
    return {
        "ip_protocol": str(said["IpProtocol"]), "from_port": str(said.get("FromPort", "-1")),
        "to_port": str(said.get("ToPort", "-1")),
        "ip_ranges": [{"CidrIp": address, **about}] if address else [],
        "source_groups": [{"GroupId": group, **about}] if group else [],
        "prefix_list_ids": [{"PrefixListId": prefixes, **about}] if prefixes else [],
    }  # fmt: skip


def _create_group(plain: Callable[..., SecurityGroup]) -> Callable[..., SecurityGroup]:
    def create(
        _cls: type[SecurityGroup], resource_name: str, cloudformation_json: Any, account_id: str,
        region_name: str, **more: Any,
    ) -> SecurityGroup:  # fmt: skip
        given = cloudformation_json["Properties"]
        without = {k: v for k, v in given.items() if not k.startswith("SecurityGroup")}
        made = plain(resource_name, {**cloudformation_json, "Properties": without}, account_id,
                     region_name, **more)  # fmt: skip
        backend = ec2_backends[account_id][region_name]
        for said in given.get("SecurityGroupIngress", []):
            backend.authorize_security_group_ingress(
                group_name_or_id=made.id, vpc_id=made.vpc_id, **_rule(said)
            )
        if leaving := given.get("SecurityGroupEgress"):
            made.egress_rules.clear()
            for said in leaving:
                backend.authorize_security_group_egress(
                    group_name_or_id=made.id, vpc_id=made.vpc_id, **_rule(said)
                )
        return made

    return create


def _create_instance(
    _cls: type[Instance], _resource_name: str, cloudformation_json: Any, account_id: str,
    region_name: str, **_more: Any,
) -> Instance:  # fmt: skip
    given = cloudformation_json["Properties"]
    backend = ec2_backends[account_id][region_name]
    tags = {t["Key"]: t["Value"] for t in given.get("Tags", [])}
    volumes = tags if given.get("PropagateTagsToVolumeOnCreation") else {}
    kind = given.get("InstanceType", "m1.small")
    made: Instance = backend.run_instances(
        image_id=_resolved(given["ImageId"], account_id, region_name), count=1,
        user_data=given.get("UserData"),
        security_group_names=[], security_group_ids=given.get("SecurityGroupIds", []),
        instance_type=kind, is_instance_type_default=False, region_name=region_name,
        subnet_id=given.get("SubnetId"), key_name=given.get("KeyName"),
        private_ip=given.get("PrivateIpAddress"),
        block_device_mappings=given.get("BlockDeviceMappings", []),
        metadata_options=given.get("MetadataOptions", {}),
        instance_initiated_shutdown_behavior=given.get(_SHUTDOWN) or "stop",
        tags={"instance": tags, "volume": volumes},
    ).instances[0]  # fmt: skip
    if profile := given.get("IamInstanceProfile"):
        backend.associate_iam_instance_profile(
            instance_id=made.id, iam_instance_profile_name=profile
        )
    return made


def _delete_instance(
    _cls: type[Instance], resource_name: str, _cloudformation_json: Any, account_id: str,
    region_name: str,
) -> None:  # fmt: skip
    """Only that of this stack: moto takes any whose logical name is the same."""
    for instance in ec2_backends[account_id][region_name].all_instances():
        tags = {t["key"]: t["value"] for t in instance.get_tags()}
        named = "-".join(
            tags.get(f"aws:cloudformation:{name}", "") for name in ("stack-name", "logical-id")
        )
        if instance.id == resource_name or (
            len(named) > 1 and resource_name.startswith(f"{named}-")
        ):
            instance.delete(account_id, region_name)


def install() -> None:
    """Let moto make them so."""
    parsing.clean_json = _clean(parsing.clean_json)
    parsing.parse_condition = _condition(parsing.parse_condition)
    SecurityGroup.create_from_cloudformation_json = classmethod(  # type: ignore[method-assign, assignment]
        _create_group(SecurityGroup.create_from_cloudformation_json)
    )
    for name, made in (("create", _create_instance), ("delete", _delete_instance)):
        setattr(Instance, f"{name}_from_cloudformation_json", classmethod(made))
