# SPDX-License-Identifier: Apache-2.0
"""What a game day finds in the accounts: keys, evidence bucket, anchor bucket, sealer.

Made through the same interfaces as in production, so that a rule of the stand-in that forbids it
shows here first.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pipeline.gameday.aws.accounts import (
    AUDIT,
    LOG_ARCHIVE,
    REGION,
    RESPONDER_ROLE,
    SEALER_ROLE,
    Credentials,
    role_arn,
)
from pipeline.gameday.aws.stand import Stand

EVIDENCE_BUCKET = "evidence"
ANCHOR_BUCKET = "anchor"
SEALER = "impound-sealer"
CUSTODIAN_ROLE = "impound-custodian"
ANCHOR_YEARS = 10

# moto treats a conditional Deny as a full one, so these stay out of the bucket policy.
LEFT_OUT = (
    "bucket policy: deny without TLS",
    "bucket policy: deny PutObject without if-none-match, the key or a lock mode",
    "bucket policy: deny tag changes of objects tagged `case`",
    "bucket policy: deny PutObjectLegalHold unless ON or custodian",
    "identity policies: every role may do everything in its own account",
)


@dataclass(frozen=True)
class Seeded:
    """What was made. Keys and the function by ARN."""

    bucket: str
    anchor: str
    store_key: str
    entry_key: str
    checkpoint_key: str
    sealer: str
    responder: Credentials

    @property
    def store(self) -> str:
        """Address of the store."""
        return f"s3://{self.bucket}"


def seed(stand: Stand, handler: str) -> Seeded:
    """Make it all.

    Args:
        stand: an empty stand-in.
        handler: `module:function` of the sealer.
    """
    kms = stand.client("kms", AUDIT)
    store_key = _key(kms, "evidence", _policy(
        _allow(_root(AUDIT), "kms:*"),
        _allow(role_arn(LOG_ARCHIVE, SEALER_ROLE), "kms:Decrypt", "kms:DescribeKey"),
    ))  # fmt: skip
    signing = {"KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY"}
    entry_key = _key(kms, "ledger entries", _policy(
        _allow(_root(AUDIT), "kms:*"),
        _allow(role_arn(LOG_ARCHIVE, SEALER_ROLE), "kms:GetPublicKey", "kms:DescribeKey"),
    ), **signing)  # fmt: skip
    # Nobody but the sealer signs with it, the account's own administrators included.
    checkpoint_key = _key(
        stand.client("kms", LOG_ARCHIVE), "checkpoints", _policy(
            _allow(_root(LOG_ARCHIVE), "kms:DescribeKey", "kms:GetPublicKey", "kms:GetKeyPolicy",
                   "kms:Verify"),
            _allow(role_arn(LOG_ARCHIVE, SEALER_ROLE), "kms:Sign", "kms:GetPublicKey"),
            _allow(_root(AUDIT), "kms:DescribeKey", "kms:GetPublicKey", "kms:Verify"),
        ), **signing,
    )  # fmt: skip
    _evidence_bucket(stand.client("s3", AUDIT), store_key)
    _bucket(stand.client("s3", LOG_ARCHIVE), ANCHOR_BUCKET)
    stand.client("s3", LOG_ARCHIVE).put_object_lock_configuration(
        Bucket=ANCHOR_BUCKET, ObjectLockConfiguration={
            "ObjectLockEnabled": "Enabled",
            "Rule": {"DefaultRetention": {"Mode": "COMPLIANCE", "Years": ANCHOR_YEARS}},
        },
    )  # fmt: skip
    sealer = stand.register(
        LOG_ARCHIVE, SEALER, handler, SEALER_ROLE, invokers=(AUDIT,),
        environment={
            "IMPOUND_EVIDENCE_STORE": f"s3://{EVIDENCE_BUCKET}",
            "IMPOUND_ANCHOR_BUCKET": ANCHOR_BUCKET,
            "IMPOUND_CHECKPOINT_KEY": checkpoint_key,
        },
    )  # fmt: skip
    responder = stand.credentials(AUDIT, RESPONDER_ROLE, "GAMEDAY.responder")
    return Seeded(
        EVIDENCE_BUCKET, ANCHOR_BUCKET, store_key, entry_key, checkpoint_key, sealer, responder
    )


def _key(kms: Any, description: str, policy: str, **more: str) -> str:
    made = kms.create_key(
        Description=f"impound: {description}", Policy=policy,
        BypassPolicyLockoutSafetyCheck=True, **more,
    )  # fmt: skip
    arn: str = made["KeyMetadata"]["Arn"]
    return arn


def _bucket(s3: Any, name: str) -> None:
    s3.create_bucket(
        Bucket=name, ObjectLockEnabledForBucket=True,
        CreateBucketConfiguration={"LocationConstraint": REGION},
    )  # fmt: skip
    s3.put_public_access_block(Bucket=name, PublicAccessBlockConfiguration={
        "BlockPublicAcls": True, "IgnorePublicAcls": True, "BlockPublicPolicy": True,
        "RestrictPublicBuckets": True,
    })  # fmt: skip


def _evidence_bucket(s3: Any, key: str) -> None:
    _bucket(s3, EVIDENCE_BUCKET)
    rule = {
        "ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": key},
        "BucketKeyEnabled": True,
    }
    s3.put_bucket_encryption(
        Bucket=EVIDENCE_BUCKET, ServerSideEncryptionConfiguration={"Rules": [rule]}
    )
    bucket = f"arn:aws:s3:::{EVIDENCE_BUCKET}"
    s3.put_bucket_policy(Bucket=EVIDENCE_BUCKET, Policy=_policy(
        {"Sid": "NothingIsDeleted", "Effect": "Deny", "Principal": "*",
         "Action": ["s3:DeleteObject", "s3:DeleteObjectVersion"], "Resource": f"{bucket}/*"},
        {"Sid": "SealerReads", "Effect": "Allow",
         "Principal": {"AWS": role_arn(LOG_ARCHIVE, SEALER_ROLE)},
         "Action": ["s3:ListBucket", "s3:ListBucketVersions", "s3:GetObject",
                    "s3:GetObjectVersion"], "Resource": [bucket, f"{bucket}/*"]},
    ))  # fmt: skip


def _root(account: str) -> str:
    return f"arn:aws:iam::{account}:root"


def _allow(principal: str, *actions: str) -> dict[str, Any]:
    return {
        "Effect": "Allow", "Principal": {"AWS": principal}, "Action": list(actions),
        "Resource": "*",
    }  # fmt: skip


def _policy(*statements: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})
