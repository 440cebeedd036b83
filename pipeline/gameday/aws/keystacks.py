# SPDX-License-Identifier: Apache-2.0
"""What CloudFormation makes of keys and parameters; moto makes every key symmetric.

Source: CloudFormation Template Reference, AWS::KMS::Key (`KeySpec`, `KeyUsage`, `KeyPolicy`),
AWS::SSM::Parameter ("Return values").
"""

from __future__ import annotations

import json
from typing import Any

from moto.kms.models import Key, kms_backends
from moto.ssm.models import Parameter


def _key(
    _cls: type[Key], /, resource_name: str, cloudformation_json: Any,
    account_id: str, region_name: str, **_more: Any,
) -> Key:  # fmt: skip
    """As `Key.create_from_cloudformation_json`; a key has no name of its own."""
    del resource_name
    given = cloudformation_json["Properties"]
    key = kms_backends[account_id][region_name].create_key(
        policy=json.dumps(given["KeyPolicy"]), key_usage=given.get("KeyUsage", "ENCRYPT_DECRYPT"),
        key_spec=given.get("KeySpec", "SYMMETRIC_DEFAULT"),
        description=given.get("Description", ""), tags=given.get("Tags", []),
    )  # fmt: skip
    key.key_rotation_status = bool(given.get("EnableKeyRotation", False))
    return key


def _attribute(self: Parameter, name: str) -> str:
    return str({"Value": self.value, "Type": self.parameter_type}[name])


def install() -> None:
    """Let CloudFormation use them."""
    Key.create_from_cloudformation_json = classmethod(_key)  # type: ignore[method-assign, assignment]
    Parameter.get_cfn_attribute = _attribute  # type: ignore[attr-defined]
    Parameter.has_cfn_attr = classmethod(  # type: ignore[method-assign, assignment]
        lambda _cls, name: name in ("Value", "Type")
    )
