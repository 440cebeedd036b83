# SPDX-License-Identifier: Apache-2.0
"""What S3 refuses and keeps, one test a behaviour, in both modes."""

from __future__ import annotations

import base64
import hashlib
import threading
from datetime import UTC, datetime, timedelta

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from pipeline.gameday.aws.accounts import AUDIT, LOG_ARCHIVE, MEMBER

BODY = b"evidence" * 1000


TODAY = datetime.now(UTC).replace(microsecond=0)


def days(n):
    return TODAY + timedelta(days=n)


@pytest.fixture
def locked(s3, bucket):
    """An object under COMPLIANCE for ten days; its version."""

    def make(mode="COMPLIANCE", key="locked"):
        done = s3.put_object(
            Bucket=bucket, Key=key, Body=BODY, ChecksumAlgorithm="SHA256",
            ObjectLockMode=mode, ObjectLockRetainUntilDate=days(10),
        )  # fmt: skip
        return {"Bucket": bucket, "Key": key, "VersionId": done["VersionId"]}

    return make


def test_wrong_sha256(s3, bucket, sha256, refused):
    """S3 User Guide, Checking object integrity: a mismatch is BadDigest, nothing is stored."""
    with refused("BadDigest", 400) as caught:
        s3.put_object(Bucket=bucket, Key="k", Body=BODY, ChecksumSHA256=sha256(b"other"))
    assert "The SHA256 you specified did not match the calculated checksum." in caught.value.args[0]
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_malformed_sha256(s3, bucket, refused):
    """S3 API reference, PutObject: a checksum of the wrong length is InvalidRequest."""
    with refused("InvalidRequest", 400):
        s3.put_object(Bucket=bucket, Key="k", Body=BODY, ChecksumSHA256="AAAA")


def test_wrong_md5(s3, bucket, refused):
    """S3 API reference, Error responses: BadDigest for Content-MD5."""
    wrong = base64.b64encode(hashlib.md5(b"other").digest()).decode()
    with refused("BadDigest", 400):
        s3.put_object(Bucket=bucket, Key="k", Body=BODY, ContentMD5=wrong)


def test_malformed_md5(s3, bucket, refused):
    """S3 API reference, Error responses: InvalidDigest."""
    with refused("InvalidDigest", 400):
        s3.put_object(Bucket=bucket, Key="k", Body=BODY, ContentMD5="AAAA")


def test_wrong_part(s3, bucket, sha256, refused):
    """S3 API reference, UploadPart: the checksum of a part is checked as well."""
    upload = s3.create_multipart_upload(Bucket=bucket, Key="k")["UploadId"]
    with refused("BadDigest", 400):
        s3.upload_part(Bucket=bucket, Key="k", UploadId=upload, PartNumber=1, Body=BODY,
                       ChecksumSHA256=sha256(b"other"))  # fmt: skip


def test_sha256_alone_is_kept(s3, bucket, sha256):
    """S3 User Guide, Checking object integrity: stored, returned with ChecksumMode=ENABLED."""
    done = s3.put_object(Bucket=bucket, Key="k", Body=BODY, ChecksumSHA256=sha256(BODY))
    assert done["ChecksumSHA256"] == sha256(BODY)
    head = s3.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert head["ChecksumSHA256"] == sha256(BODY)
    got = s3.get_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert got["ChecksumSHA256"] == sha256(BODY)
    assert got["Body"].read() == BODY


def test_sha256_in_a_trailer(aws, s3, bucket, sha256):
    """S3 User Guide, Trailing checksums: computed while sending, checked and kept the same."""

    class Stream:
        """A body of unknown digest: the SDK sends it in chunks, the digest at the end."""

        def __init__(self):
            self.left = BODY

        def read(self, n=-1):
            n = len(self.left) if n is None or n < 0 else n
            out, self.left = self.left[:n], self.left[n:]
            return out

        def seek(self, at, whence=0):
            self.left = BODY[at:] if whence == 0 else b""

        def tell(self):
            return len(BODY) - len(self.left)

    s3.put_object(Bucket=bucket, Key="k", Body=Stream(), ChecksumAlgorithm="SHA256")
    head = s3.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert head["ChecksumSHA256"] == sha256(BODY)
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == BODY


def test_no_checksum_was_given(aws, bucket):
    """A PUT without a checksum does not come back with a SHA-256 that nobody asked for."""
    plain = aws.client("s3", config=Config(request_checksum_calculation="when_required"))
    assert "ChecksumSHA256" not in plain.put_object(Bucket=bucket, Key="k", Body=BODY)
    head = plain.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert "ChecksumSHA256" not in head


def test_a_range_has_no_checksum(s3, bucket, sha256):
    """S3 API reference, GetObject: the checksum is that of the whole object."""
    s3.put_object(Bucket=bucket, Key="k", Body=BODY, ChecksumSHA256=sha256(BODY))
    got = s3.get_object(Bucket=bucket, Key="k", Range="bytes=8-15", ChecksumMode="ENABLED")
    assert got["Body"].read() == BODY[8:16]
    assert "ChecksumSHA256" not in got


def test_unknown_checksum_is_not_taken_on_trust(s3, bucket, refused):
    """The simulator says so instead of accepting what it cannot check."""
    with refused("NotImplemented", 501):
        s3.put_object(Bucket=bucket, Key="k", Body=BODY, ChecksumCRC32C="AAAAAA==")


def test_write_once(s3, bucket, refused):
    """S3 User Guide, Conditional writes: If-None-Match: * on a taken key is 412."""
    s3.put_object(Bucket=bucket, Key="k", Body=b"1", IfNoneMatch="*")
    with refused("PreconditionFailed", 412):
        s3.put_object(Bucket=bucket, Key="k", Body=b"2", IfNoneMatch="*")
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"1"


def test_write_once_has_one_winner(s3, bucket):
    """The same, of eight at once."""
    won, codes, barrier = [], [], threading.Barrier(8)

    def put(i):
        barrier.wait()
        try:
            s3.put_object(Bucket=bucket, Key="race", Body=b"%d" % i, IfNoneMatch="*")
        except ClientError as e:
            codes.append(e.response["Error"]["Code"])
        else:
            won.append(i)

    threads = [threading.Thread(target=put, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == ["PreconditionFailed"] * 7
    assert s3.get_object(Bucket=bucket, Key="race")["Body"].read() == b"%d" % won[0]


# -- locks


def test_compliance_is_not_shortened(s3, locked, refused):
    """S3 User Guide, Object Lock retention modes: a COMPLIANCE period can only grow."""
    where = locked()
    for retention in (
        {"Mode": "COMPLIANCE", "RetainUntilDate": days(9)},
        {"Mode": "GOVERNANCE", "RetainUntilDate": days(20)},
        {"Mode": "COMPLIANCE", "RetainUntilDate": days(-1)},
        {},
    ):
        with refused("AccessDenied", 403):
            s3.put_object_retention(**where, Retention=retention, BypassGovernanceRetention=True)
    s3.put_object_retention(**where, Retention={"Mode": "COMPLIANCE", "RetainUntilDate": days(20)})
    assert s3.head_object(**where)["ObjectLockRetainUntilDate"] == days(20)


def test_governance_needs_the_bypass(s3, locked, refused):
    """S3 User Guide, Object Lock retention modes: shortened only with the bypass header."""
    where = locked("GOVERNANCE")
    shorter = {"Mode": "GOVERNANCE", "RetainUntilDate": days(1)}
    with refused("AccessDenied", 403):
        s3.put_object_retention(**where, Retention=shorter)
    s3.put_object_retention(**where, Retention=shorter, BypassGovernanceRetention=True)
    assert s3.get_object_retention(**where)["Retention"]["RetainUntilDate"] == days(1)


def test_retention_is_read(s3, bucket, locked, refused):
    """S3 API reference, GetObjectRetention."""
    where = locked()
    assert s3.get_object_retention(**where)["Retention"] == {
        "Mode": "COMPLIANCE", "RetainUntilDate": days(10),
    }  # fmt: skip
    s3.put_object(Bucket=bucket, Key="free", Body=b"")
    with refused("NoSuchObjectLockConfiguration", 404):
        s3.get_object_retention(Bucket=bucket, Key="free")
    with refused("NoSuchKey", 404):
        s3.get_object_retention(Bucket=bucket, Key="none")
    with refused("NoSuchBucket", 404):
        s3.get_object_retention(Bucket="no-such-bucket", Key="none")


def test_lock_dates_lie_ahead(s3, bucket, refused):
    """S3 API reference, PutObject: The retain until date must be in the future."""
    with refused("InvalidArgument", 400):
        s3.put_object(Bucket=bucket, Key="k", Body=b"", ChecksumAlgorithm="SHA256",
                      ObjectLockMode="COMPLIANCE", ObjectLockRetainUntilDate=days(-1))  # fmt: skip
    with refused("InvalidArgument", 400):
        s3.put_object(Bucket=bucket, Key="k", Body=b"", ChecksumAlgorithm="SHA256",
                      ObjectLockMode="COMPLIANCE")  # fmt: skip


def test_locked_version_stays(s3, locked, refused):
    """S3 User Guide, How Object Lock works: the version cannot be deleted, bypass or not."""
    where = locked()
    with refused("AccessDenied", 403):
        s3.delete_object(**where)
    with refused("AccessDenied", 403):
        s3.delete_object(**where, BypassGovernanceRetention=True)
    assert s3.get_object(**where)["Body"].read() == BODY


def test_versioning_of_a_lock_bucket_stays(s3, bucket, refused):
    """S3 User Guide, Object Lock considerations: versioning cannot be suspended."""
    with refused("InvalidBucketState", 409):
        s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Suspended"})
    assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"


# -- metadata, owner


def test_metadata_limit(s3, bucket, refused):
    """S3 User Guide, Working with object metadata: user metadata is limited to 2 KB."""
    s3.put_object(Bucket=bucket, Key="k", Body=b"", Metadata={"a": "x" * 2047})
    with refused("MetadataTooLarge", 400):
        s3.put_object(Bucket=bucket, Key="k", Body=b"", Metadata={"a": "x" * 2048})


def test_bucket_owner(aws, s3, bucket, refused):
    """S3 User Guide, Verifying bucket ownership: 403 if the owner is another account."""
    s3.put_object(Bucket=bucket, Key="k", Body=b"", ExpectedBucketOwner=AUDIT)
    for account in (AUDIT, LOG_ARCHIVE):
        with refused("AccessDenied", 403):
            aws.client("s3", account).get_object(Bucket=bucket, Key="k", ExpectedBucketOwner=MEMBER)


# -- keys


@pytest.fixture
def cmk(kms):
    return kms.create_key()["KeyMetadata"]["Arn"]


def with_key(cmk):
    return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": cmk}


def test_key_of_the_object_is_named_by_arn(s3, bucket, cmk):
    """S3 API reference, PutObject: x-amz-server-side-encryption-aws-kms-key-id is the ARN."""
    done = s3.put_object(Bucket=bucket, Key="k", Body=BODY, **with_key(cmk.split("/")[1]))
    assert done["SSEKMSKeyId"] == cmk
    assert s3.head_object(Bucket=bucket, Key="k")["SSEKMSKeyId"] == cmk


def test_unknown_key(s3, bucket, cmk, refused):
    """S3 API reference, Error responses: KMS.NotFoundException."""
    with refused("KMS.NotFoundException", 400):
        s3.put_object(Bucket=bucket, Key="k", Body=BODY, **with_key(cmk[:-4] + "0000"))


def test_disabled_key(s3, kms, bucket, cmk, refused):
    """S3 API reference, Error responses: KMS.DisabledException, writing and reading."""
    s3.put_object(Bucket=bucket, Key="k", Body=BODY, **with_key(cmk))
    kms.disable_key(KeyId=cmk)
    with refused("KMS.DisabledException", 400):
        s3.put_object(Bucket=bucket, Key="k2", Body=BODY, **with_key(cmk))
    with refused("KMS.DisabledException", 400):
        s3.get_object(Bucket=bucket, Key="k")
    assert s3.head_object(Bucket=bucket, Key="k")["ContentLength"] == len(BODY)
    with refused("400", 400):  # a checksum of encrypted content needs the key; HEAD has no body
        s3.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    kms.enable_key(KeyId=cmk)
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == BODY


def test_default_key_of_the_bucket(s3, kms, bucket, cmk, refused):
    """S3 User Guide, Default encryption: the bucket's key is used, and must be usable."""
    rule = {"ApplyServerSideEncryptionByDefault": {
        "SSEAlgorithm": "aws:kms", "KMSMasterKeyID": cmk}, "BucketKeyEnabled": True}  # fmt: skip
    s3.put_bucket_encryption(Bucket=bucket, ServerSideEncryptionConfiguration={"Rules": [rule]})
    assert s3.put_object(Bucket=bucket, Key="k", Body=BODY)["SSEKMSKeyId"] == cmk
    kms.disable_key(KeyId=cmk)
    with refused("KMS.DisabledException", 400):
        s3.put_object(Bucket=bucket, Key="k2", Body=BODY)


def test_key_of_another_account(aws, s3, bucket, cmk, refused):
    """S3 User Guide, SSE-KMS cross account: reading needs kms:Decrypt from the key's policy."""
    s3.put_object(Bucket=bucket, Key="k", Body=BODY, **with_key(cmk))
    with refused("AccessDenied", 403):
        aws.client("s3", LOG_ARCHIVE).get_object(Bucket=bucket, Key="k")


def test_evidence_as_it_is_written(s3, bucket, cmk, sha256, refused):
    """S3 API reference, PutObject: lock, hold, tags, key, checksum and metadata in one request."""
    s3.put_object(
        Bucket=bucket, Key="cases/T/items/E0001/data/0", Body=BODY, IfNoneMatch="*",
        ChecksumAlgorithm="SHA256", ChecksumSHA256=sha256(BODY), ObjectLockMode="COMPLIANCE",
        ObjectLockRetainUntilDate=days(90), ObjectLockLegalHoldStatus="ON",
        Tagging="case=T&kind=disk", Metadata={"sha256": sha256(BODY)}, BucketKeyEnabled=True,
        **with_key(cmk),
    )  # fmt: skip
    where = {"Bucket": bucket, "Key": "cases/T/items/E0001/data/0"}
    head = s3.head_object(**where, ChecksumMode="ENABLED")
    assert head["ChecksumSHA256"] == head["Metadata"]["sha256"] == sha256(BODY)
    assert (head["ObjectLockMode"], head["ObjectLockLegalHoldStatus"]) == ("COMPLIANCE", "ON")
    assert head["ObjectLockRetainUntilDate"] == days(90)
    assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", cmk)
    assert head["BucketKeyEnabled"]
    assert {t["Key"]: t["Value"] for t in s3.get_object_tagging(**where)["TagSet"]} == {
        "case": "T", "kind": "disk",
    }  # fmt: skip
    with refused("AccessDenied", 403):
        s3.delete_object(**where, VersionId=head["VersionId"], BypassGovernanceRetention=True)


def test_lock_on_a_bucket_without_lock(s3, refused):
    """S3 API reference, PutObject: a bucket without Object Lock refuses lock headers."""
    s3.create_bucket(
        Bucket="plain", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
    )
    with refused("InvalidRequest", 400):
        s3.put_object(
            Bucket="plain", Key="k", Body=b"", ChecksumAlgorithm="SHA256",
            ObjectLockMode="COMPLIANCE", ObjectLockRetainUntilDate=days(1),
        )  # fmt: skip
