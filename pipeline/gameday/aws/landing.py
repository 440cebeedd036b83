# SPDX-License-Identifier: Apache-2.0
"""What a landing zone is asked for and moto has not: accounts, quotas, AWS's policies.

An increase of a quota is granted at once, to whatever is asked for.

Source: Organizations API Reference, ListAccounts; Service Quotas API Reference, GetServiceQuota,
RequestServiceQuotaIncrease.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from moto.iam.models import AWSManagedPolicy, iam_backends

from pipeline.gameday.aws.accounts import AUDIT, LOG_ARCHIVE, MEMBER
from pipeline.gameday.aws.call import Answer, Call, before

QUOTAS = {"L-1216C47A": 256.0, "L-309BACF6": 100_000.0}
_ACCOUNTS = {AUDIT: "Audit", LOG_ARCHIVE: "Log Archive", MEMBER: "workload"}
_EVERYTHING = {"Version": "2012-10-17", "Statement": [
    {"Effect": "Allow", "Action": "*", "Resource": "*"}
]}  # fmt: skip

_quotas: dict[tuple[str, str, str], float] = {}


def reset() -> None:
    """Forget it all."""
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
