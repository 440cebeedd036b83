# SPDX-License-Identifier: Apache-2.0
"""What a landing zone is asked for and moto has not: accounts, endpoints, quotas, AWS's policies.

An increase of a quota is granted at once, to whatever is asked for.

Source: Organizations API Reference, ListAccounts; EC2 API Reference,
CreateInstanceConnectEndpoint, DescribeInstanceConnectEndpoints; Service Quotas API Reference,
GetServiceQuota, RequestServiceQuotaIncrease.
"""

from __future__ import annotations

import json
import secrets
from datetime import UTC, datetime
from typing import Any
from xml.sax.saxutils import escape

from moto.ec2.models import ec2_backends
from moto.iam.models import AWSManagedPolicy, iam_backends

from pipeline.gameday.aws.accounts import AUDIT, LOG_ARCHIVE, MEMBER
from pipeline.gameday.aws.call import Answer, Call, before

QUOTAS = {"L-1216C47A": 256.0, "L-309BACF6": 100_000.0}
_ACCOUNTS = {AUDIT: "Audit", LOG_ARCHIVE: "Log Archive", MEMBER: "workload"}
_EVERYTHING = {"Version": "2012-10-17", "Statement": [
    {"Effect": "Allow", "Action": "*", "Resource": "*"}
]}  # fmt: skip
_EC2 = "http://ec2.amazonaws.com/doc/2016-11-15/"

_endpoints: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
_quotas: dict[tuple[str, str, str], float] = {}


def reset() -> None:
    """Forget it all."""
    _endpoints.clear()
    _quotas.clear()


def _json(document: Any) -> Answer:
    headers = {"content-type": "application/x-amz-json-1.1"}
    return Answer(200, headers, json.dumps(document).encode())


@before("organizations", "ListAccounts")
def list_accounts(_call: Call) -> Answer:
    """Those of the practice landing zone; moto would invent their numbers."""
    return _json({"Accounts": [
        {"Id": number, "Name": name, "Status": "ACTIVE",
         "Arn": f"arn:aws:organizations::999999999999:account/o-gameday/{number}"}
        for number, name in _ACCOUNTS.items()
    ]})  # fmt: skip


@before("iam", "AttachRolePolicy")
def policies_of_aws_exist(call: Call) -> None:
    """Moto loads a thousand of them or none; here each appears when it is attached."""
    arn = str(call.parameters.get("PolicyArn", ""))
    held = iam_backends[call.account]["aws"].managed_policies
    if arn.startswith("arn:aws:iam::aws:policy/") and arn not in held:
        now = datetime.now(UTC).isoformat()
        held[arn] = AWSManagedPolicy.from_data(arn.rpartition("/")[2], call.account, call.region, {
            "DefaultVersionId": "v1", "Path": "/", "CreateDate": now, "UpdateDate": now,
            "Document": _EVERYTHING,
        })  # fmt: skip


# -- EC2 Instance Connect Endpoints


@before("ec2", "CreateInstanceConnectEndpoint")
def create_endpoint(call: Call) -> Answer:
    """Complete at once; one for each VPC."""
    held = _endpoints.setdefault((call.account, call.region), {})
    name = str(call.parameters["SubnetId"])
    subnet = next(
        (s[name] for s in ec2_backends[call.account][call.region].subnets.values() if name in s),
        None,
    )
    if subnet is None:
        return call.error(400, "InvalidSubnetID.NotFound", f"{name} does not exist")
    if any(e["vpcId"] == subnet.vpc_id for e in held.values()):
        return call.error(400, "InstanceConnectEndpointLimitExceeded", "there is one in the VPC")
    made = f"eice-{secrets.token_hex(8)}0"
    held[made] = {
        "ownerId": call.account, "instanceConnectEndpointId": made, "subnetId": name,
        "vpcId": subnet.vpc_id, "state": "create-complete",
    }  # fmt: skip
    inner = f"<instanceConnectEndpoint>{_fields(held[made])}</instanceConnectEndpoint>"
    return _xml("CreateInstanceConnectEndpoint", inner)


@before("ec2", "DescribeInstanceConnectEndpoints")
def describe_endpoints(call: Call) -> Answer:
    """All of the Region."""
    held = _endpoints.get((call.account, call.region), {})
    items = "".join(f"<item>{_fields(e)}</item>" for e in held.values())
    return _xml("DescribeInstanceConnectEndpoints",
                f"<instanceConnectEndpointSet>{items}</instanceConnectEndpointSet>")  # fmt: skip


@before("ec2", "DeleteInstanceConnectEndpoint")
def delete_endpoint(call: Call) -> Answer:
    """Gone at once."""
    held = _endpoints.get((call.account, call.region), {})
    gone = held.pop(str(call.parameters["InstanceConnectEndpointId"]), None)
    if gone is None:
        return call.error(400, "InvalidInstanceConnectEndpointId.NotFound", "does not exist")
    return _xml("DeleteInstanceConnectEndpoint",
                f"<instanceConnectEndpoint>{_fields(gone)}</instanceConnectEndpoint>")  # fmt: skip


def _fields(of: dict[str, str]) -> str:
    return "".join(f"<{k}>{escape(v)}</{k}>" for k, v in of.items())


def _xml(operation: str, inner: str) -> Answer:
    body = (f'<{operation}Response xmlns="{_EC2}"><requestId>simulator</requestId>{inner}'
            f"</{operation}Response>")  # fmt: skip
    return Answer(200, {"content-type": "text/xml"}, body.encode())


# -- quotas


@before("servicequotas", "GetServiceQuota")
def get_quota(call: Call) -> Answer:
    """As granted, or as every account has it."""
    code = str(call.parameters["QuotaCode"])
    if code not in QUOTAS:
        body = json.dumps({"__type": "NoSuchResourceException", "message": code})
        return Answer(400, {"content-type": "application/x-amz-json-1.1"}, body.encode())
    value = _quotas.get((call.account, call.region, code), QUOTAS[code])
    return _json({"Quota": {"QuotaCode": code, "Value": value, "Adjustable": True}})


@before("servicequotas", "RequestServiceQuotaIncrease")
def request_quota(call: Call) -> Answer:
    """Granted."""
    code, value = str(call.parameters["QuotaCode"]), float(call.parameters["DesiredValue"])
    _quotas[call.account, call.region, code] = value
    return _json({"RequestedQuota": {"QuotaCode": code, "DesiredValue": value,
                                     "Status": "APPROVED"}})  # fmt: skip
