# SPDX-License-Identifier: Apache-2.0
"""What S3 checks and moto does not: digests, locks, versioning, metadata size, keys, owners.

Not modelled: bucket policies with conditions (moto treats a conditional Deny as a full Deny),
identity policies (any account may write to any bucket unless a bucket policy denies it), lock
headers of multipart uploads, composite checksums, CRC32C and CRC64NVME (refused as NotImplemented).

Source: S3 User Guide "Checking object integrity", "How S3 Object Lock works", "Protecting data
using SSE-KMS"; API reference of each operation; "Error responses".
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import zlib
from collections.abc import Callable
from datetime import UTC, datetime

from moto.kms.models import Key
from moto.s3.exceptions import S3ClientError
from moto.s3.models import FakeBucket, FakeKey, s3_backends

from pipeline.gameday.aws import kms
from pipeline.gameday.aws.call import Answer, Call, after, before

METADATA_LIMIT = 2048

# name in the header -> (digest of bytes, its length)
_DIGESTS: dict[str, tuple[Callable[[bytes], bytes], int]] = {
    "sha256": (lambda b: hashlib.sha256(b).digest(), 32),
    "sha1": (lambda b: hashlib.sha1(b, usedforsecurity=False).digest(), 20),
    "crc32": (lambda b: zlib.crc32(b).to_bytes(4, "big"), 4),
}
_NOT_DIGESTS = ("algorithm", "mode", "type")  # x-amz-checksum-… that is no digest
_CHECKSUM = "x-amz-checksum-"
_WITH_BODY = (
    "PutObject", "UploadPart", "PutObjectRetention", "PutObjectLegalHold", "PutObjectTagging",
    "PutBucketPolicy", "PutBucketVersioning", "PutObjectLockConfiguration", "DeleteObjects",
    "PutBucketEncryption", "PutPublicAccessBlock",
)  # fmt: skip
_XMLNS = "http://s3.amazonaws.com/doc/2006-03-01/"


def _bucket(call: Call) -> FakeBucket | None:
    try:
        bucket: FakeBucket = s3_backends[call.account]["aws"].get_bucket(call.parameters["Bucket"])
        return bucket
    except (S3ClientError, KeyError):
        return None  # moto says what is wrong


def _object(call: Call) -> FakeKey | None:
    try:
        found = s3_backends[call.account]["aws"].get_object(
            call.parameters["Bucket"], call.parameters["Key"], call.parameters.get("versionId")
        )
    except (S3ClientError, KeyError):
        return None
    return found if isinstance(found, FakeKey) else None


@before("s3", "*")
def expected_owner(call: Call) -> Answer | None:
    """`x-amz-expected-bucket-owner`: 403 unless the bucket is that account's."""
    expected = call.headers.get("x-amz-expected-bucket-owner")
    known = s3_backends.bucket_accounts.get(str(call.parameters.get("Bucket")))
    if expected and known and known[1] != expected:
        return call.error(403, "AccessDenied", "Access Denied")
    return None


# -- digests -------------------------------------------------------------------------------------


@before("s3", *_WITH_BODY)
def digests(call: Call) -> Answer | None:
    """Content-MD5, x-amz-content-sha256 and x-amz-checksum-*, in header or trailer."""
    sent = {
        name.lower()[len(_CHECKSUM) :]: value
        for name, value in call.headers.items()
        if name.lower().startswith(_CHECKSUM)
    }
    body = call.body()
    signed = call.headers.get("x-amz-content-sha256", "")
    if signed.startswith("STREAMING-"):
        body, trailers = _dechunk(body)
        sent |= {n[len(_CHECKSUM) :]: v for n, v in trailers.items() if n.startswith(_CHECKSUM)}
        call.set_body(body)
        for name in ("x-amz-trailer", "x-amz-decoded-content-length", "content-encoding"):
            call.set_header(name, None)
        call.set_header("x-amz-content-sha256", "UNSIGNED-PAYLOAD")
    elif len(signed) == 64 and signed != hashlib.sha256(body).hexdigest():
        return call.error(
            400, "XAmzContentSHA256Mismatch",
            "The provided 'x-amz-content-sha256' header does not match what was computed.",
        )  # fmt: skip
    if md5 := call.headers.get("content-md5"):
        given = _decode(md5)
        if given is None or len(given) != 16:
            return call.error(400, "InvalidDigest", "The Content-MD5 you specified was invalid.")
        if given != hashlib.md5(body, usedforsecurity=False).digest():
            return call.error(
                400, "BadDigest", "The Content-MD5 you specified did not match what we received."
            )
    given_checksums = {n: v for n, v in sent.items() if n not in _NOT_DIGESTS}
    return _checksums(call, given_checksums, body)


def _checksums(call: Call, sent: dict[str, str], body: bytes) -> Answer | None:
    if len(sent) > 1:
        return call.error(
            400, "InvalidRequest", "Expecting a single x-amz-checksum- header."
            " Multiple checksum Types are not allowed.",
        )  # fmt: skip
    for name, value in sent.items():
        if name not in _DIGESTS:
            return call.error(501, "NotImplemented", f"The simulator does not compute {name}.")
        digest, length = _DIGESTS[name]
        given = _decode(value)
        if given is None or len(given) != length:
            return call.error(
                400, "InvalidRequest", f"Value for {_CHECKSUM}{name} header is invalid."
            )
        if given != digest(body):
            return call.error(
                400, "BadDigest",
                f"The {name.upper()} you specified did not match the calculated checksum.",
            )  # fmt: skip
        # moto keeps a checksum only if the SDK's own header names the algorithm.
        call.set_header("x-amz-sdk-checksum-algorithm", name.upper())
        call.set_header(f"{_CHECKSUM}{name}", value)
    return None


def _decode(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def _dechunk(raw: bytes) -> tuple[bytes, dict[str, str]]:
    """Undo aws-chunked: return (content, trailers)."""
    body, at = bytearray(), 0
    while True:
        end = raw.index(b"\r\n", at)
        size = int(raw[at:end].split(b";")[0], 16)
        at = end + 2
        if size == 0:
            break
        body += raw[at : at + size]
        at += size + 2
    trailers = {}
    for line in raw[at:].decode("latin-1").split("\r\n"):
        name, _, value = line.partition(":")
        if value:
            trailers[name.strip().lower()] = value.strip()
    return bytes(body), trailers


@after("s3", "PutObject")
def no_checksum_of_moto(call: Call, answer: Answer) -> Answer:
    """A PUT without a checksum gets none that the client could take for a verified one."""
    if answer.status == 200 and not any(f"{_CHECKSUM}{n}" in call.headers for n in _DIGESTS):
        headers = {n: v for n, v in answer.headers.items() if not n.startswith(_CHECKSUM)}
        return Answer(answer.status, headers, answer.body)
    return answer


@after("s3", "GetObject")
def no_checksum_of_a_range(_call: Call, answer: Answer) -> Answer:
    """A part of an object comes without the checksum of the whole."""
    if answer.status == 206:
        headers = {n: v for n, v in answer.headers.items() if not n.startswith(_CHECKSUM)}
        return Answer(answer.status, headers, answer.body)
    return answer


# -- metadata ------------------------------------------------------------------------------------


@before("s3", "PutObject", "CreateMultipartUpload", "CopyObject")
def metadata_size(call: Call) -> Answer | None:
    """User metadata: names and values, 2 KB together."""
    size = sum(
        len(name.encode()) - len("x-amz-meta-") + len(value.encode())
        for name, value in call.headers.items()
        if name.lower().startswith("x-amz-meta-")
    )
    if size > METADATA_LIMIT:
        return call.error(
            400, "MetadataTooLarge",
            "Your metadata headers exceed the maximum allowed metadata size",
        )  # fmt: skip
    return None


# -- locks ---------------------------------------------------------------------------------------


def _when(text: str | None) -> datetime | None:
    try:
        return datetime.fromisoformat(str(text)).astimezone(UTC)
    except ValueError:
        return None


@before("s3", "PutObject")
def lock_headers(call: Call) -> Answer | None:
    """Mode and date come together, and the date lies ahead."""
    mode = call.headers.get("x-amz-object-lock-mode")
    until = call.headers.get("x-amz-object-lock-retain-until-date")
    if bool(mode) != bool(until):
        return call.error(
            400, "InvalidArgument", "x-amz-object-lock-retain-until-date and"
            " x-amz-object-lock-mode must both be supplied",
        )  # fmt: skip
    if until:
        when = _when(until)
        if when is None or when <= datetime.now(UTC):
            return call.error(
                400, "InvalidArgument", "The retain until date must be in the future!"
            )
    return None


@before("s3", "PutObjectRetention")
def retention_only_grows(call: Call) -> Answer | None:
    """COMPLIANCE is never shortened, lowered or lifted; GOVERNANCE only by who may bypass."""
    if (key := _object(call)) is None:
        return None
    text = call.body().decode("utf-8", "replace")
    mode = _element(text, "Mode")
    when = _when(_element(text, "RetainUntilDate"))
    if (mode is None) != (when is None):
        return call.error(400, "MalformedXML", "The XML you provided was not well-formed.")
    now = datetime.now(UTC)
    until = _when(key.lock_until)
    if key.lock_mode and until and until > now:
        weaker = when is None or when < until or (key.lock_mode, mode) == (
            "COMPLIANCE", "GOVERNANCE")  # fmt: skip
        bypass = call.headers.get("x-amz-bypass-governance-retention", "").lower() == "true"
        if weaker and not (key.lock_mode == "GOVERNANCE" and bypass):
            return call.error(
                403, "AccessDenied", "Access Denied because object protected by object lock."
            )
    if when is not None and when <= now:
        return call.error(400, "InvalidArgument", "The retain until date must be in the future!")
    return None


def _element(text: str, name: str) -> str | None:
    found = re.search(rf"<{name}>\s*([^<]+?)\s*</{name}>", text)
    return found.group(1) if found else None


@before("s3", "GetObjectRetention")
def get_retention(call: Call) -> Answer | None:
    """The whole operation: moto has none."""
    if (bucket := _bucket(call)) is None:
        return call.error(404, "NoSuchBucket", "The specified bucket does not exist")
    if not bucket.object_lock_enabled:
        return call.error(400, "InvalidRequest", "Bucket is missing Object Lock Configuration")
    if (key := _object(call)) is None:
        return call.error(404, "NoSuchKey", "The specified key does not exist.")
    if not key.lock_mode:
        return call.error(
            404, "NoSuchObjectLockConfiguration",
            "The specified object does not have a ObjectLock configuration",
        )  # fmt: skip
    text = (
        f'<Retention xmlns="{_XMLNS}"><Mode>{key.lock_mode}</Mode>'
        f"<RetainUntilDate>{key.lock_until}</RetainUntilDate></Retention>"
    )
    return Answer(200, {"content-type": "application/xml"}, text.encode())


@before("s3", "PutBucketVersioning")
def versioning_stays(call: Call) -> Answer | None:
    """Versioning of a bucket with Object Lock cannot be suspended."""
    bucket = _bucket(call)
    if (
        bucket is not None
        and bucket.object_lock_enabled
        and _element(call.body().decode("utf-8", "replace"), "Status") != "Enabled"
    ):
        return call.error(
            409, "InvalidBucketState", "An Object Lock configuration is present on this bucket,"
            " so the versioning state cannot be changed.",
        )  # fmt: skip
    return None


# -- keys ----------------------------------------------------------------------------------------


@before("s3", "PutObject", "CreateMultipartUpload", "CopyObject")
def encrypting_key(call: Call) -> Answer | None:
    """The key of the request, or else of the bucket, exists, is enabled and may be used."""
    algorithm = call.headers.get("x-amz-server-side-encryption")
    named = call.headers.get("x-amz-server-side-encryption-aws-kms-key-id")
    bucket = _bucket(call)
    owner = bucket.account_id if bucket is not None else call.account
    if algorithm is None and bucket is not None and bucket.encryption:
        default = bucket.encryption["Rule"]["ApplyServerSideEncryptionByDefault"]
        algorithm, named = default["SSEAlgorithm"], default.get("KMSMasterKeyID")
    if algorithm not in ("aws:kms", "aws:kms:dsse") or not named:
        return None
    # A bare id or alias means a key of the caller's account in a request, of the bucket's owner in
    # the bucket's settings.
    explicit = call.headers.get("x-amz-server-side-encryption-aws-kms-key-id")
    key = kms.find_key(named, call.account if explicit else owner, call.region)
    if refused := _refused(call, key, named, "kms:GenerateDataKey"):
        return refused
    if key is not None:
        call.set_header("x-amz-server-side-encryption", algorithm)
        call.set_header("x-amz-server-side-encryption-aws-kms-key-id", key.arn)
    return None


@before("s3", "GetObject", "HeadObject")
def decrypting_key(call: Call) -> Answer | None:
    """Content, and the checksum of content, of an encrypted object need its key."""
    if call.operation == "HeadObject" and call.headers.get("x-amz-checksum-mode") != "ENABLED":
        return None
    stored = _object(call)
    if stored is None or not stored.kms_key_id:
        return None
    key = kms.find_key(stored.kms_key_id, stored.account_id, call.region)
    return _refused(call, key, stored.kms_key_id, "kms:Decrypt")


def _refused(call: Call, key: Key | None, named: str, action: str) -> Answer | None:
    if key is None:
        shown = f"Key '{named}' does not exist" if ":" in named else f"Invalid keyId '{named}'"
        return call.error(400, "KMS.NotFoundException", shown)
    if key.key_state == "PendingDeletion":
        return call.error(400, "KMS.KMSInvalidStateException", f"{key.arn} is pending deletion.")
    if not key.enabled:
        return call.error(400, "KMS.DisabledException", f"{key.arn} is disabled.")
    if not kms.allowed(key, action, call.caller):
        return call.error(
            403, "AccessDenied", f"User: {call.caller.arn} is not authorized to perform: {action}"
            f" on resource: {key.arn}",
        )  # fmt: skip
    return None
