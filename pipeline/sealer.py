# SPDX-License-Identifier: Apache-2.0
"""The sealer: signs checkpoints where the people who write the evidence cannot.

It runs as a Lambda function in the Log Archive account, reads the evidence bucket of the Audit
account, signs with a KMS key of its own account, and never goes backwards: before a signature
leaves, what it says stands in an anchor bucket, write-once for each size, under Object Lock.

    event    {"store": "s3://bucket/prefix", "case": "T-1001"}
    answer   {"origin", "size", "root", "note"}: the checkpoint, and its signed note as text

It writes nothing into the evidence bucket: whoever asked stores the note, which anybody can check.

Environment: `IMPOUND_EVIDENCE_STORE` (the store it may seal, or a prefix of it),
`IMPOUND_ANCHOR_BUCKET`, `IMPOUND_CHECKPOINT_KEY` (ARN).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from evidence_store.aws import KmsSigner
from evidence_store.backend import Backend
from evidence_store.checkpoint import (
    Checkpoint,
    LastSeen,
    Sealer,
    compare_with_checkpoint,
    parse_checkpoint,
)
from evidence_store.errors import IntegrityError, StoreError
from evidence_store.model import CASE_ID, canonical
from evidence_store.s3 import S3Backend
from evidence_store.sign import PublicKey, Signer, parse_note
from evidence_store.store import Store
from pipeline.errors import UsageError

_STORE = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9_-][A-Za-z0-9._-]*)*/?")


class Anchor(LastSeen):
    """What was sealed, in a bucket that its writers cannot change: `<origin>/<case>/<size>.json`.

    Create-once for each size, so of two sealers at the same time one signs, and the other only if
    it would say the same.

    Source: S3 User Guide "Conditional writes", "Object Lock"; C2SP witness rule.
    """

    def __init__(self, s3: Any, bucket: str) -> None:
        self._s3, self._bucket = s3, bucket

    def get(self, store_id: str, case_id: str) -> tuple[Checkpoint, str] | None:
        """Return (newest checkpoint, fingerprint of the case's first key), or None.

        Raises: IntegrityError if an anchor is damaged; StoreError.
        """
        prefix = f"{store_id}/{case_id}/"
        try:
            pages = self._s3.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=prefix
            )
            keys = [found["Key"] for page in pages for found in page.get("Contents", [])]
            if not keys:
                return None
            return self._read(max(keys))
        except (BotoCoreError, ClientError) as e:
            raise StoreError(f"cannot read what was sealed of {case_id}: {e}") from e

    def put(self, store_id: str, case_id: str, checkpoint: Checkpoint, key: str) -> None:
        """Write the anchor of this size, unless it stands.

        Raises: IntegrityError if another checkpoint of this size was sealed; StoreError.
        """
        name = f"{store_id}/{case_id}/{checkpoint.size:016d}.json"
        body = canonical({
            "key": key, "origin": checkpoint.origin, "root": checkpoint.root_text,
            "size": checkpoint.size,
        })  # fmt: skip
        digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
        try:
            self._s3.put_object(
                Bucket=self._bucket, Key=name, Body=body, IfNoneMatch="*",
                ChecksumAlgorithm="SHA256", ChecksumSHA256=digest,
            )  # fmt: skip
            return
        except ClientError as e:
            if e.response["ResponseMetadata"]["HTTPStatusCode"] not in (409, 412):
                raise StoreError(f"cannot anchor {name}: {e}") from e
        except BotoCoreError as e:
            raise StoreError(f"cannot anchor {name}: {e}") from e
        try:
            standing = self._read(name)
        except (BotoCoreError, ClientError) as e:
            raise StoreError(f"cannot read the anchor {name}: {e}") from e
        if standing != (checkpoint, key):
            raise IntegrityError(f"another checkpoint of size {checkpoint.size} was sealed: {name}")

    def _read(self, name: str) -> tuple[Checkpoint, str]:
        answer = self._s3.get_object(Bucket=self._bucket, Key=name)
        with answer["Body"] as stream:
            raw = stream.read(1 << 16)
        try:
            body = json.loads(raw)
            root = base64.b64decode(body["root"], validate=True)
            return Checkpoint(int(body["size"]), root, str(body["origin"])), str(body["key"])
        except (ValueError, KeyError, TypeError) as e:
            raise IntegrityError(f"the anchor {name} is damaged: {e}") from e


@dataclass
class _AnchoredSigner:
    """Signs a checkpoint only after it is anchored."""

    signer: Signer
    anchor: Anchor
    origin: str
    case_id: str
    first_key: str

    @property
    def public(self) -> PublicKey:
        return self.signer.public

    def sign(self, text: bytes) -> bytes:
        checkpoint = parse_checkpoint(text)
        self.anchor.put(self.origin, self.case_id, checkpoint, self.first_key)
        return self.signer.sign(text)


def seal(backend: Backend, signer: Signer, anchor: Anchor, case_id: str) -> dict[str, Any]:
    """Verify a case's ledger against everything sealed before, and seal it as it is now.

    Returns: origin, size, root (base64) and the signed note as text.

    Raises: IntegrityError if the ledger does not begin with what was sealed, or has another first
    key; StoreError; CaseNotFoundError.
    """
    case = Store(backend, None, None).case(case_id)
    # What is signed is the origin, so that is what there may be one history of: not the store id,
    # which whoever writes the bucket can change.
    origin, first = case.ledger.origin or "", case.ledger.ring.first
    if known := anchor.get(origin, case_id):
        compare_with_checkpoint(case.ledger, known[0], "the anchored checkpoint")
        if known[1] != first:
            raise IntegrityError(f"the first key of {case_id} is not the one it was sealed with")
    note = Sealer(_AnchoredSigner(signer, anchor, origin, case_id, first)).sign(case)
    checkpoint = parse_checkpoint(parse_note(note).text)
    anchor.put(origin, case_id, checkpoint, first)
    return {
        "origin": checkpoint.origin, "size": checkpoint.size, "root": checkpoint.root_text,
        "note": note.decode(),
    }  # fmt: skip


@dataclass(frozen=True)
class Order:
    """A checked event."""

    bucket: str
    prefix: str
    case_id: str


def parse_event(event: Any, environment: Mapping[str, str]) -> Order:
    """Check what was asked, and that it is the store that this function is for.

    Raises: UsageError.
    """
    if not isinstance(event, dict) or set(event) != {"store", "case"}:
        raise UsageError('the event is {"store": "s3://…", "case": "…"}')
    store, case_id = event["store"], event["case"]
    if not isinstance(store, str) or not _STORE.fullmatch(store):
        raise UsageError("the store is s3://bucket/prefix")
    if not isinstance(case_id, str) or not CASE_ID.fullmatch(case_id):
        raise UsageError("this is not a case id")
    mine = environment.get("IMPOUND_EVIDENCE_STORE", "").rstrip("/")
    store = store.rstrip("/")
    if not mine or (store != mine and not store.startswith(f"{mine}/")):
        raise UsageError(f"this function does not seal {store}")
    bucket, _, prefix = store.removeprefix("s3://").partition("/")
    return Order(bucket, prefix, case_id)


def handler(event: Any, _context: Any) -> dict[str, Any]:
    """Entry of the Lambda function; see the module. Raises: as `seal`, UsageError."""
    order = parse_event(event, os.environ)
    session = boto3.session.Session()
    s3 = session.client("s3")
    backend = S3Backend(s3, order.bucket, order.prefix, None, Path(tempfile.gettempdir()))
    signer = KmsSigner(session.client("kms"), os.environ["IMPOUND_CHECKPOINT_KEY"])
    return seal(backend, signer, Anchor(s3, os.environ["IMPOUND_ANCHOR_BUCKET"]), order.case_id)
