# SPDX-License-Identifier: Apache-2.0
"""Calls that were made, against the actions that the caller's role is granted.

Source: Service Authorization Reference, "Actions, resources, and condition keys" of each service.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache

from pipeline.gameday.aws.faults import Seen
from tests.infra.kit import ROOT, world

# Role -> what the code calls under it. A call that is not in it fails the test that made it.
CALLS: dict[str, list[str]] = json.loads((ROOT / "tests/infra/calls.json").read_text())

# A call whose right has another name; any other is `service:Operation`.
NAMES = {
    "s3:HeadObject": ("s3:GetObject", "s3:GetObjectVersion"),
    "s3:GetObject": ("s3:GetObject", "s3:GetObjectVersion"),
    # Each PUT carries a lock, a hold and tags.
    "s3:PutObject": ("s3:PutObject", "s3:PutObjectLegalHold", "s3:PutObjectRetention",
                     "s3:PutObjectTagging"),
    "s3:ListObjectVersions": ("s3:ListBucketVersions",),
    "s3:ListObjectsV2": ("s3:ListBucket",),
    "s3:GetObjectLockConfiguration": ("s3:GetBucketObjectLockConfiguration",),
    "lambda:Invoke": ("lambda:InvokeFunction",),
    "sts:GetCallerIdentity": (),  # needs none
}  # fmt: skip
PREFIX = {"ec2instanceconnect": "ec2-instance-connect"}
# What AWS asks for behind a call: tags given with it, a key, a role passed on.
BEHIND = {
    "ec2:CreateSnapshots": ("ec2:CreateTags",),
    "ec2:CreateSecurityGroup": ("ec2:CreateTags",),
    "ec2:CopySnapshot": (
        "ec2:CreateTags", "kms:CreateGrant", "kms:Decrypt", "kms:DescribeKey",
        "kms:GenerateDataKey", "kms:GenerateDataKeyWithoutPlaintext", "kms:ReEncryptFrom",
        "kms:ReEncryptTo",
    ),
    "ebs:GetSnapshotBlock": ("kms:Decrypt",),
    "ec2:AssociateIamInstanceProfile": ("iam:PassRole",),
    "s3:PutObject": ("kms:Decrypt", "kms:GenerateDataKey"),
    "s3:GetObject": ("kms:Decrypt",),
}  # fmt: skip
# Anchors have no tags, no hold, and the bucket's lock; of logs no version is named.
SEALER, EXECUTION = "impound-sealer", "impound-ExecutionRole"


def needed(service: str, operation: str, role: str = "") -> set[str]:
    """The actions that a call needs.

    >>> sorted(needed("s3", "HeadObject"))
    ['kms:Decrypt', 's3:GetObject', 's3:GetObjectVersion']
    """
    call = f"{service}:{operation}"
    if role == SEALER and call == "s3:PutObject":
        return {"s3:PutObject"}
    if role == EXECUTION and call == "s3:GetObject":
        return {"s3:GetObject", "kms:Decrypt"}
    behind = BEHIND["s3:GetObject"] if call == "s3:HeadObject" else BEHIND.get(call, ())
    return {*NAMES.get(call, (call,)), *behind}


@cache
def granted() -> dict[str, frozenset[str]]:
    """Role ARN -> actions that its own policies, or those of what it uses, allow."""
    found: dict[str, set[str]] = {}
    for document in world():
        for statement in document.body["Statement"]:
            if statement["Effect"] != "Allow" or document.kind == "trust":
                continue
            actions = statement["Action"]
            named = {actions} if isinstance(actions, str) else set(actions)
            if document.kind == "identity":
                found.setdefault(document.owner, set()).update(named)
            principal = statement.get("Principal", {})
            who = principal.get("AWS", "") if isinstance(principal, dict) else ""
            if ":role/" in str(who):
                found.setdefault(who, set()).update(named)
    return {role: frozenset(actions) for role, actions in found.items()}


def _call(seen: Seen) -> str:
    return f"{PREFIX.get(seen.service, seen.service)}:{seen.operation}"


def unlisted(calls: Iterable[Seen]) -> list[str]:
    """Return what roles of the templates called that stands not in `CALLS`."""
    made = {(c.role.rpartition("/")[2], _call(c)) for c in calls}
    return sorted(f"{n}: {c}" for n, c in made if n in CALLS and c not in CALLS[n])


def refused(calls: Iterable[Seen]) -> list[str]:
    """Return what roles of the templates called without the right to it."""
    wrong = set()
    for seen in calls:
        name = seen.role.rpartition("/")[2]
        if seen.role in granted():
            missing = needed(*_call(seen).split(":"), name) - granted()[seen.role]
            wrong |= {f"{name}: {seen.service}:{seen.operation} needs {m}" for m in missing}
    return sorted(wrong)
