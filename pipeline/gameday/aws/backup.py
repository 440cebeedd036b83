# SPDX-License-Identifier: Apache-2.0
"""AWS Backup: recovery points of volumes and instances, legal holds; moto has vaults and plans.

A job is done at once. DeleteSnapshot and DeregisterImage leave what Backup made.

Source: AWS Backup API Reference (StartBackupJob, ListRecoveryPointsByResource, CreateLegalHold,
ListLegalHolds, GetLegalHold); EBS User Guide, "Delete an Amazon EBS snapshot".
"""

from __future__ import annotations

import json
import uuid
from collections import defaultdict
from typing import Any
from urllib.parse import unquote

import moto.backup.urls
from moto.backup.responses import BackupResponse
from moto.core.exceptions import JsonRESTError
from moto.ec2.models import ec2_backends

from pipeline.gameday.aws.call import Answer, Call, before
from pipeline.gameday.aws.conditions import conditions

_points: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
_holds: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)


def reset() -> None:
    """Forget all of it."""
    _points.clear()
    _holds.clear()


def _where(response: BackupResponse) -> tuple[str, str]:
    return response.current_account, response.region


def _last(response: BackupResponse, after: str) -> str:
    """What stands in the path after a word."""
    return unquote(response.uri.partition("?")[0].partition(f"/{after}/")[2]).strip("/")


def start_backup_job(self: BackupResponse) -> str:
    """StartBackupJob."""
    given = json.loads(self.body)
    account, region = _where(self)
    resource = str(given["ResourceArn"])
    name = resource.rpartition("/")[2]
    backend = ec2_backends[account][region]
    about = "This {} is created by the AWS Backup service."
    if name.startswith("vol-"):
        made = f"snapshot/{backend.create_snapshot(name, about.format('snapshot')).id}"
    else:
        image = backend.create_image(name, f"AwsBackup_{name}", about.format("image"), [])
        made = f"image/{image.id}"
    arn = f"arn:aws:ec2:{region}::{made}"
    _points[account, region].append({
        "RecoveryPointArn": arn, "BackupVaultName": given["BackupVaultName"], "Status": "COMPLETED",
        "CreationDate": conditions.now(), "ResourceArn": resource,
    })  # fmt: skip
    return json.dumps({"BackupJobId": str(uuid.uuid4()), "RecoveryPointArn": arn})


def list_recovery_points_by_resource(self: BackupResponse) -> str:
    """ListRecoveryPointsByResource."""
    resource = _last(self, "resources").removesuffix("/recovery-points")
    found = [p for p in _points[_where(self)] if p["ResourceArn"] == resource]
    return json.dumps({"RecoveryPoints": found})


def create_legal_hold(self: BackupResponse) -> str:
    """CreateLegalHold; the same token is the same hold."""
    given = json.loads(self.body)
    holds = _holds[_where(self)]
    token = given.get("IdempotencyToken")
    for hold in holds:
        if token and hold["token"] == token:
            return json.dumps(_shown(hold))
    hold = {
        "Title": given["Title"], "Description": given["Description"], "Status": "ACTIVE",
        "LegalHoldId": str(uuid.uuid4()), "CreationDate": conditions.now(), "token": token,
        "RecoveryPointSelection": given.get("RecoveryPointSelection", {}),
    }  # fmt: skip
    holds.append(hold)
    return json.dumps(_shown(hold))


def _shown(hold: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in hold.items() if k != "token"}


def list_legal_holds(self: BackupResponse) -> str:
    """ListLegalHolds."""
    return json.dumps({"LegalHolds": [_shown(h) for h in _holds[_where(self)]]})


def get_legal_hold(self: BackupResponse) -> str:
    """GetLegalHold."""
    wanted = _last(self, "legal-holds")
    for hold in _holds[_where(self)]:
        if hold["LegalHoldId"] == wanted:
            return json.dumps(_shown(hold))
    raise JsonRESTError("ResourceNotFoundException", "Legal hold not found")


@before("ec2", "DeleteSnapshot", "DeregisterImage")
def backup_deletes_what_it_made(call: Call) -> Answer | None:
    """Only through AWS Backup."""
    name = str(call.parameters.get("SnapshotId") or call.parameters.get("ImageId"))
    made = {p["RecoveryPointArn"].rpartition("/")[2] for p in _points[call.account, call.region]}
    if name not in made:
        return None
    return call.error(
        400, "InvalidParameterValue",
        f"This resource ({name}) is managed by AWS Backup and cannot be deleted via EC2 APIs.",
    )  # fmt: skip


def install() -> None:
    """Let moto answer them."""
    for operation in (
        start_backup_job, list_recovery_points_by_resource, create_legal_hold, list_legal_holds,
        get_legal_hold,
    ):  # fmt: skip
        setattr(BackupResponse, operation.__name__, operation)
    for path in ("backup-jobs/?", "legal-holds/?", "legal-holds/(?P<hold>[^/]+)/",
                 "resources/(?P<resource>.+)/recovery-points/"):  # fmt: skip
        moto.backup.urls.url_paths["{0}/" + path + "$"] = BackupResponse.dispatch
