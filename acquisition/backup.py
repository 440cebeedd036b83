# SPDX-License-Identifier: Apache-2.0
"""Recovery points of AWS Backup: which there are of a volume or an instance, and a legal hold.

A recovery point of a volume is a snapshot, one of an instance an image; they are read as such. What
keeps AWS Backup from deleting them, by its lifecycle or on request, is a legal hold: it covers all
recovery points of a resource in this account and Region until somebody cancels it. Copies in other
accounts and Regions are not listed here, and not held.

Source: AWS Backup API Reference (ListRecoveryPointsByResource, CreateLegalHold, ListLegalHolds,
GetLegalHold); AWS Backup Developer Guide, "Legal holds".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from acquisition.errors import AcquisitionError
from evidence_store.aws import Failure, failures
from evidence_store.model import clean

PAUSE_S = 1.0
_PATIENCE_S = 30.0


@dataclass(frozen=True)
class Point:
    """A recovery point. `until`: when its lifecycle deletes it."""

    arn: str
    vault: str
    status: str
    at: datetime | None = None
    until: datetime | None = None


def points(client: Any, resource: str) -> list[Point]:
    """Return the recovery points of a resource (ARN). Raises what the client raises."""
    pages = client.get_paginator("list_recovery_points_by_resource").paginate(ResourceArn=resource)
    return [
        Point(
            clean(str(p["RecoveryPointArn"]), 200), clean(str(p.get("BackupVaultName", "?")), 60),
            clean(str(p.get("Status", "?")), 20), p.get("CreationDate"),
            (p.get("CalculatedLifecycle") or {}).get("DeleteAt"),
        )
        for page in pages for p in page["RecoveryPoints"]
    ]  # fmt: skip


@dataclass
class Vaults:
    """Holds recovery points."""

    client: Any
    sleep: Callable[[float], None] = time.sleep

    def hold(self, title: str, token: str, resources: Sequence[str]) -> dict[str, str]:
        """Hold all recovery points of these resources, unless that is done; see that it stands.

        Args:
            title: of the hold; one that is there with it is taken.
            token: lets the call be made again.
            resources: ARNs.

        Returns: {"hold": id, "status": "ACTIVE"}.

        Raises: AcquisitionError.
        """
        try:
            found = self._found(title) or str(self.client.create_legal_hold(
                Title=title, Description="evidence of an investigation; see the case in the title",
                IdempotencyToken=token,
                RecoveryPointSelection={"ResourceIdentifiers": list(resources)},
            )["LegalHoldId"])  # fmt: skip
            waited, status = 0.0, ""
            while (status := self._status(found)) == "CREATING" and waited < _PATIENCE_S:
                self.sleep(PAUSE_S)
                waited += PAUSE_S
        except failures() as e:
            error = Failure(e).error("cannot hold its recovery points in AWS Backup")
            raise AcquisitionError(str(error), hint=error.hint) from e
        if status != "ACTIVE":
            raise AcquisitionError(
                f"the legal hold {found} is {status}, so its recovery points may go",
                hint="run the same command again; it looks for the hold first",
            )
        return {"hold": found, "status": status}

    def _found(self, title: str) -> str:
        for page in self.client.get_paginator("list_legal_holds").paginate():
            for hold in page["LegalHolds"]:
                if hold.get("Title") == title and hold.get("Status") in ("ACTIVE", "CREATING"):
                    return str(hold["LegalHoldId"])
        return ""

    def _status(self, hold: str) -> str:
        return clean(str(self.client.get_legal_hold(LegalHoldId=hold)["Status"]), 20)
