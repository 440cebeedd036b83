# SPDX-License-Identifier: Apache-2.0
"""EBS direct, reading: who may, and the answers of `blocks`.

Source: EBS direct APIs reference; EBS User Guide, "Control access to EBS direct APIs" (kms:Decrypt
on the snapshot's key) and "EBS direct APIs FAQ" (completed snapshots only). Unconfirmed: which
reason is given for a pending snapshot and for a disabled key.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from moto.ec2.exceptions import EC2ClientError

from pipeline.gameday.aws import blocks, snapshots
from pipeline.gameday.aws.blocks import BlockError, ContentError, Readable
from pipeline.gameday.aws.call import Answer, Call, before
from pipeline.gameday.aws.conditions import conditions
from pipeline.gameday.aws.kms import find_key, unusable

tokens = blocks.Tokens()


def _readable(call: Call, snapshot_id: str) -> Readable:
    """The snapshot, if the caller may read it. Raises: BlockError."""
    conditions.tick("snapshot")
    return _opened(call, snapshot_id)[0]


def _opened(call: Call, snapshot_id: str) -> tuple[Readable, str]:
    try:
        found = snapshots.find(snapshot_id, call.account, call.region)
    except EC2ClientError:
        raise BlockError(
            404, "ResourceNotFoundException", f"The snapshot '{snapshot_id}' does not exist.",
            "SNAPSHOT_NOT_FOUND",
        ) from None  # fmt: skip
    if found.status != "completed":
        raise BlockError(
            400, "ValidationException",
            f"The snapshot '{snapshot_id}' is {found.status}; it must be completed.",
            "INVALID_SNAPSHOT_ID",
        )  # fmt: skip
    if found.kms_key_id:
        key = find_key(found.kms_key_id, call.account, call.region)
        if key is None or not key.enabled or key.key_state != "Enabled":
            raise BlockError(
                400, "ValidationException", f"The KMS key {found.kms_key_id} is not enabled.",
                "INVALID_CUSTOMER_KEY",
            )  # fmt: skip
        context = {"aws:ebs:id": found.volume_id}
        if why := unusable(
            found.kms_key_id, call.account, call.region, call.caller, ("Decrypt",), context
        ):
            raise BlockError(403, "AccessDeniedException", why, "DEPENDENCY_ACCESS_DENIED")
    return Readable(found.id, found.content, found.size), found.lineage


def _answered(call: Call, answer: Callable[[], Answer]) -> Answer:
    try:
        return answer()
    except BlockError as e:
        return call.error(e.status, e.code, e.message, e.reason)
    except ContentError as e:
        return call.error(500, "InternalServerException", str(e))


def _document(answer: dict[str, Any]) -> Answer:
    return Answer(200, {"content-type": "application/json"}, json.dumps(answer).encode())


@before("ebs", "ListSnapshotBlocks")
def list_snapshot_blocks(call: Call) -> Answer:
    """ListSnapshotBlocks."""
    return _answered(call, lambda: _document(blocks.list_blocks(
        tokens, conditions.now(), call.parameters, _readable(call, call.parameters["snapshotId"]),
        conditions.settings.block_page_limit,
    )))  # fmt: skip


@before("ebs", "ListChangedBlocks")
def list_changed_blocks(call: Call) -> Answer:
    """ListChangedBlocks: of one lineage; without the first snapshot, all of the second."""

    def answer() -> Answer:
        conditions.tick("snapshot")
        second, lineage = _opened(call, call.parameters["secondSnapshotId"])
        first = None
        if name := call.parameters.get("firstSnapshotId"):
            first, other = _opened(call, name)
            if other != lineage:
                raise BlockError(
                    400, "ValidationException", "The snapshots are not of the same lineage.",
                    "UNRELATED_SNAPSHOTS",
                )  # fmt: skip
        return _document(blocks.list_changed(
            tokens, conditions.now(), call.parameters, first, second,
            conditions.settings.block_page_limit,
        ))  # fmt: skip

    return _answered(call, answer)


@before("ebs", "GetSnapshotBlock")
def get_snapshot_block(call: Call) -> Answer:
    """GetSnapshotBlock."""

    def answer() -> Answer:
        headers, body = blocks.get_block(
            tokens, conditions.now(), _readable(call, call.parameters["snapshotId"]),
            call.parameters["blockIndex"], str(call.parameters.get("blockToken", "")),
        )  # fmt: skip
        return Answer(200, headers | {"content-length": str(len(body))}, body)

    return _answered(call, answer)
