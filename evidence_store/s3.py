# SPDX-License-Identifier: Apache-2.0
"""Objects in S3, under Object Lock and one CMK.

What is added to the contract of `evidence_store.backend`
    - One PUT for each object, never multipart: S3 itself checks the SHA-256 of every whole object,
      and lock, key and tags come into being with it.
    - `If-None-Match: *` is the create. Each PUT carries a nonce of its own, so that a lost answer
      is settled by looking: our nonce means that it happened.
    - After each PUT the object is looked at again: checksum, size, key, lock, legal hold.
    - Versions are read, not keys: a delete marker hides nothing, a second version is seen.

The client is handed in, so that this module needs no AWS library until it is used.

Source: Amazon S3 User Guide, "How to prevent object overwrites with conditional writes", "Checking
object integrity", "Locking objects with Object Lock", "Deleting object versions from a
versioning-enabled bucket".
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlencode

from evidence_store.ahead import in_order
from evidence_store.aws import Failure, failures
from evidence_store.backend import (
    AmbiguousWriteError,
    Body,
    Buffer,
    ObjectNotFoundError,
    SparseBody,
    Stored,
    UnfitObjectError,
    check_key,
    exclusive_file,
    translate,
)
from evidence_store.errors import (
    AlreadyExistsError,
    StoreError,
    StoreNotFoundError,
    StoreUnavailableError,
)

MAX_OBJECT_BYTES = 5 << 30
_CHUNK = 1 << 20
_CONFLICT_TRIES = 6
_READ_TRIES = 5
_TAG = re.compile(r"[^\w +\-=.:/@]", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NEVER = datetime.min.replace(tzinfo=UTC)
_CONFLICT = {"ConditionalRequestConflict", "OperationAborted"}
_ABSENT = {"NoSuchKey", "NotFound", "404", "NoSuchVersion", "MethodNotAllowed", "405"}


@dataclass(frozen=True)
class Protection:
    """How objects are protected.

    Attributes:
        kms_key: full ARN of the CMK.
        item_days: COMPLIANCE retention of evidence, days.
        record_days: the same of ledger, checkpoints and keys.
        legal_hold: whether every object is held until a custodian releases it.
    """

    kms_key: str
    item_days: int = 90
    record_days: int = 3650
    legal_hold: bool = True


@dataclass(frozen=True)
class _Version:
    size: int
    version_id: str
    marker: bool


_Versions = list[_Version]
T = TypeVar("T")


@dataclass
class _Payload:
    """What a PUT sends: a seekable file, its size, its SHA-256 (hex)."""

    body: io.RawIOBase | BinaryIO
    size: int
    sha256: str


@dataclass
class S3Backend:
    """Objects below `prefix` of one bucket.

    Attributes:
        client: an S3 client (boto3), whose credentials renew themselves.
        bucket: its name.
        prefix: key prefix, without slashes at the ends; "" for the whole bucket.
        protection: of what is written; None for reading only.
        scratch: local folder for downloads (unlinked at once) and advisory locks.
        workers: requests at once where many objects are looked at; `client` should keep as many
            connections (`max_pool_connections`), and need not sign payloads
            (`s3={"payload_signing_enabled": False}`): each PUT states and signs its SHA-256, and
            another pass over the bytes would tell nothing more.
        at_once: see `Backend.at_once`.
    """

    client: Any
    bucket: str
    prefix: str
    protection: Protection | None
    scratch: Path
    workers: int = 16
    at_once: int = 8
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    sleep: Callable[[float], None] = time.sleep
    server_date: str | None = field(default=None, init=False)
    _labels: dict[str, dict[str, str]] = field(default_factory=dict, init=False)

    @property
    def uri(self) -> str:
        """`s3://bucket/prefix`."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    # -- writing ---------------------------------------------------------------------------------

    def check_fit(self) -> None:
        """Check that the bucket can hold evidence: versioned, with Object Lock.

        Raises: StoreNotFoundError, StoreError.
        """
        with self._failing("look at the bucket"):
            versioning = self._call("get_bucket_versioning").get("Status")
        if versioning != "Enabled":
            raise StoreError(
                f"bucket {self.bucket} is not versioned; evidence in it could be overwritten",
                hint="use a bucket made with Object Lock (cfn/audit.yaml makes one)",
            )
        try:
            lock = self._call("get_object_lock_configuration")
        except failures() as e:
            failure = Failure(e)
            if failure.code != "ObjectLockConfigurationNotFoundError":
                raise self._error(failure, "look at the bucket") from e
            lock = {}
        enabled = lock.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled")
        if enabled != "Enabled":
            raise StoreError(
                f"bucket {self.bucket} has no Object Lock; evidence in it could be deleted",
                hint="Object Lock is set when a bucket is made (cfn/audit.yaml makes one)",
            )

    def label(self, prefix: str, facts: Mapping[str, str]) -> None:
        """Tag what is created below `prefix` from now on; longer prefixes add to shorter ones."""
        self._labels[check_key(prefix)] = {
            key: _TAG.sub("_", value)[:256] for key, value in facts.items() if value
        }

    def tags(self, key: str) -> dict[str, str]:
        """Return the tags that an object under `key` must have."""
        out: dict[str, str] = {}
        for prefix in sorted(self._labels):
            if key.startswith(f"{prefix}/"):
                out |= self._labels[prefix]
        return out

    def create(self, key: str, body: Body, *, sha256: str | None = None) -> Stored:
        """See `Backend.create`."""
        full = self._key(key)
        if self.protection is None:
            raise RuntimeError("this store was opened for reading only")
        nonce = secrets.token_hex(8)
        with _payload(body, sha256, self.scratch) as payload:
            request = self._put_request(key, payload, nonce, self.protection)
            for attempt in range(_CONFLICT_TRIES):
                payload.body.seek(0)
                try:
                    answer = self._call("put_object", Key=full, **request)
                    break
                except failures() as e:
                    failure = Failure(e)
                    if failure.code in _CONFLICT and attempt + 1 < _CONFLICT_TRIES:
                        self.sleep(0.05 * 2**attempt)
                        continue
                    answer = self._settle(key, nonce, failure)
                    break
            self._confirm(key, answer.get("VersionId"), payload, self.protection)
        return Stored(key, payload.size)

    def _put_request(
        self, key: str, payload: _Payload, nonce: str, protection: Protection
    ) -> dict[str, Any]:
        days = protection.item_days if "/items/" in key else protection.record_days
        tags = self.tags(key)
        request: dict[str, Any] = {
            "Body": payload.body,
            "ContentLength": payload.size,
            "ChecksumAlgorithm": "SHA256",
            "ChecksumSHA256": _in_base64(payload.sha256),
            "IfNoneMatch": "*",
            "ServerSideEncryption": "aws:kms",
            "SSEKMSKeyId": protection.kms_key,
            "BucketKeyEnabled": True,
            "ObjectLockMode": "COMPLIANCE",
            "ObjectLockRetainUntilDate": self.clock() + timedelta(days=days),
            "Metadata": {"sha256": payload.sha256, "write": nonce},
        }
        if protection.legal_hold:
            request["ObjectLockLegalHoldStatus"] = "ON"
        if tags:
            request["Tagging"] = urlencode(tags)
        return request

    def _settle(self, key: str, nonce: str, failure: Failure) -> dict[str, Any]:
        """A PUT was refused or not answered: find out what happened; return it if it is ours."""
        if failure.code != "PreconditionFailed" and not failure.may_have_happened:
            raise self._error(failure, f"store {key}")
        try:
            found = self._call("head_object", Key=self._key(key))
        except failures() as e:
            if failure.code == "NoSuchBucket" or Failure(e).code == "NoSuchBucket":
                raise self._error(failure, f"store {key}") from e
            raise AmbiguousWriteError(
                f"cannot store {key} in {self.uri}: {failure.message} ({failure.code})",
                hint=failure.hint or "run the same command again; it continues",
            ) from e
        if found.get("Metadata", {}).get("write") == nonce:
            return found
        raise AlreadyExistsError(f"{key} exists and is not overwritten")

    def _confirm(
        self, key: str, version: str | None, payload: _Payload, protection: Protection
    ) -> None:
        with self._failing(f"look at {key} again"):
            found = self._head(key, version)
        wrong = drift(found, protection, self.clock())
        if found.get("ContentLength") != payload.size:
            wrong.append(f"it has {found.get('ContentLength')} bytes, not {payload.size}")
        if (checksum := found.get("ChecksumSHA256")) is None:
            wrong.append("it has no SHA-256 checksum")
        elif checksum != _in_base64(payload.sha256):
            wrong.append("its checksum is another one")
        if wrong:
            raise StoreError(
                f"{key} was stored, but not as asked: {'; '.join(wrong)}",
                hint="check the bucket's settings and the writer's rights, then run it again",
            )

    @contextlib.contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        """See `Backend.exclusive`. Only processes of this machine: S3 has no locks."""
        place = hashlib.sha256(self.uri.encode()).hexdigest()[:16]
        with exclusive_file(self.scratch / "locks" / place, name):
            yield

    # -- reading ---------------------------------------------------------------------------------

    def read(self, key: str, limit: int) -> bytes:
        """See `Backend.read`."""
        return self._read(key, limit, None)

    def read_run(self, keys: Iterator[str], limit: int) -> Iterator[bytes]:
        """See `Backend.read_run`; one listing, then many reads at once."""
        first = next(keys)
        folder = first[: first.rfind("/") + 1]
        with self._failing(f"list {folder}"):
            listed = dict(self._versions(folder, before=first))
        wanted: list[str] = []
        key = first
        while key in listed:
            wanted.append(key)
            key = next(keys)
        with ThreadPoolExecutor(self.workers, thread_name_prefix="s3-read") as pool:
            yield from in_order(
                pool, lambda k: self._read(k, limit, self._only(k, listed[k])), wanted
            )

    def _read(self, key: str, limit: int, version: str | None) -> bytes:
        def take(answer: dict[str, Any]) -> bytes:
            if answer["ContentLength"] > limit:
                raise UnfitObjectError(
                    f"{key} has {answer['ContentLength']} bytes, more than the {limit} it may have"
                )
            body: bytes = answer["Body"].read()
            return body

        return self._get(key, version, take)

    def sha256(self, key: str) -> tuple[str, int]:
        """See `Backend.sha256`; the bytes come over the network, whatever S3 says of them."""

        def take(answer: dict[str, Any]) -> tuple[str, int]:
            digest, size = hashlib.sha256(), 0
            for chunk in answer["Body"].iter_chunks(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
            return digest.hexdigest(), size

        return self._get(key, None, take)

    def open_fd(self, key: str) -> int:
        """See `Backend.open_fd`; a copy in an unlinked file of `scratch`."""

        def take(answer: dict[str, Any]) -> int:
            with _spool(self.scratch) as copy:
                for chunk in answer["Body"].iter_chunks(_CHUNK):
                    copy.write(chunk)
                return os.open(f"/proc/self/fd/{copy.fileno()}", os.O_RDONLY | os.O_CLOEXEC)

        return self._get(key, None, take)

    def _get(self, key: str, version: str | None, take: Callable[[dict[str, Any]], T]) -> T:
        """GET and take the body; what breaks off or arrives corrupted is asked for again."""
        full = self._key(key)
        for attempt in range(_READ_TRIES):
            try:
                answer = self._call("get_object", Key=full, ChecksumMode="ENABLED",
                                    **({"VersionId": version} if version else {}))  # fmt: skip
                with contextlib.closing(answer["Body"]):
                    return take(answer)
            except failures() as e:
                failure = Failure(e)
                if failure.code in _ABSENT:
                    raise self._absent(key) from e
                if not failure.in_the_body or attempt + 1 == _READ_TRIES:
                    raise self._error(failure, f"read {key}") from e
        raise AssertionError

    def _absent(self, key: str) -> StoreError:
        with self._failing(f"list {key}"):
            hidden = any(found == key for found, _ in self._versions(key))
        if hidden:
            return UnfitObjectError(f"{key} is hidden by a delete marker")
        return ObjectNotFoundError(f"{key} is missing from {self.uri}")

    def list(self, prefix: str) -> Iterator[Stored]:
        """See `Backend.list`; what lies under a delete marker is not listed: see `anomalies`."""
        with self._failing(f"list {prefix}"):
            for key, versions in self._versions(f"{check_key(prefix)}/"):
                if not versions[0].marker and _in_form(key):
                    yield Stored(key, versions[0].size)

    def folders(self, prefix: str) -> Iterator[str]:
        """See `Backend.folders`."""
        start = self._key(f"{check_key(prefix)}/x")[:-1]
        found: set[str] = set()
        with self._failing(f"list {prefix}"):
            for page in self._pages(Prefix=start, Delimiter="/"):
                found |= {e["Prefix"].removeprefix(start) for e in page.get("CommonPrefixes", ())}
        return (name[:-1] for name in sorted(found) if _in_form(name[:-1]))

    def strays(self, prefix: str) -> Iterator[str]:
        """See `Backend.strays`."""
        with self._failing(f"list {prefix}"):
            for key, _ in self._versions(f"{check_key(prefix)}/"):
                if not _in_form(key):
                    yield key

    def anomalies(self, prefix: str) -> Iterator[tuple[str, str]]:
        """See `Backend.anomalies`: delete markers, versions, lock, key, tags and metadata."""
        protection = self.protection

        def look(key: str) -> list[str]:
            found = self._head(key)
            wrong = drift(found, protection, self.clock())
            said = found.get("Metadata", {}).get("sha256")
            checksum = found.get("ChecksumSHA256")
            if checksum is None:
                wrong.append("it has no SHA-256 checksum")
            elif said is None or checksum != _in_base64(said):
                wrong.append("its metadata were changed")
            answer = self._call("get_object_tagging", Key=self._key(key))
            if "TagSet" not in answer:
                raise self._nothing(f"the tags of {key}")
            tags = {tag["Key"]: tag["Value"] for tag in answer["TagSet"]}
            if tags != (want := self.tags(key)):
                changed = sorted(t for t in {*tags, *want} if tags.get(t) != want.get(t))
                wrong.append(f"its tags differ: {', '.join(changed)}")
            return wrong

        whole = []
        with self._failing(f"look at {prefix}"):
            for key, versions in self._versions(f"{check_key(prefix)}/"):
                stored = [v for v in versions if not v.marker]
                if len(stored) < len(versions):
                    yield key, "has a delete marker over it"
                if len(stored) > 1:
                    yield key, f"has {len(stored)} versions; one was written"
                elif stored == versions:
                    whole.append(key)
            with ThreadPoolExecutor(self.workers, thread_name_prefix="s3-look") as pool:
                for key, wrong in zip(whole, in_order(pool, look, whole), strict=True):
                    if wrong:
                        yield key, "; ".join(wrong)

    def _versions(
        self, prefix: str, *, before: str | None = None
    ) -> Iterator[tuple[str, _Versions]]:
        """Yield (key, versions, newest first) of all keys that start with `prefix`, in order.

        `before`: begin at this key.
        """
        top = f"{self.prefix}/" if self.prefix else ""
        start: dict[str, str] = {}
        if before is not None:  # KeyMarker is exclusive: the greatest string below `before`
            start = {"KeyMarker": top + before[:-1] + chr(ord(before[-1]) - 1) + "~"}
        key = ""
        versions: _Versions = []
        for page in self._pages(Prefix=top + prefix, **start):
            found = [
                (entry["Key"].removeprefix(top), not entry["IsLatest"], -_stamp(entry), n,
                 _Version(entry.get("Size", 0), entry["VersionId"], marker))
                for marker, name in ((False, "Versions"), (True, "DeleteMarkers"))
                for n, entry in enumerate(page.get(name, ()))
            ]  # fmt: skip
            for at, _, _, _, version in sorted(found, key=lambda f: f[:4]):
                if at != key and versions:
                    yield key, versions
                    versions = []
                key = at
                versions.append(version)
        if versions:
            yield key, versions

    def _pages(self, **arguments: str) -> Iterator[dict[str, Any]]:
        """Yield the pages of a listing of versions. An answer that is none is not an empty one."""
        pages = self.client.get_paginator("list_object_versions").paginate(
            Bucket=self.bucket, **arguments
        )
        for page in pages:
            if "IsTruncated" not in page:
                raise self._nothing("the listing")
            self._note_date(page)
            yield page

    def _only(self, key: str, versions: _Versions) -> str:
        """The id of the one version that there may be. Raises: UnfitObjectError."""
        if versions[0].marker:
            raise UnfitObjectError(f"{key} is hidden by a delete marker")
        if len(versions) > 1:
            raise UnfitObjectError(f"{key} has {len(versions)} versions; one was written")
        return versions[0].version_id

    # -- calls -----------------------------------------------------------------------------------

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{check_key(key)}" if self.prefix else check_key(key)

    def _call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        answer: dict[str, Any] = getattr(self.client, operation)(Bucket=self.bucket, **arguments)
        self._note_date(answer)
        return answer

    def _head(self, key: str, version: str | None = None) -> dict[str, Any]:
        """HEAD with the checksum. Where it fails without saying why, a GET is asked for the why."""
        what = {"Key": self._key(key), "ChecksumMode": "ENABLED",
                **({"VersionId": version} if version else {})}  # fmt: skip
        try:
            return self._call("head_object", **what)
        except failures() as e:
            code = Failure(e).code
            if not code.isdigit() or code in _ABSENT:
                raise
        try:
            self._call("get_object", Range="bytes=0-0", **what)["Body"].close()
        except failures() as e:
            if Failure(e).status != 416:  # an empty object has no such range
                raise
        return self._call("head_object", **what)

    def _note_date(self, answer: Mapping[str, Any]) -> None:
        date = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
        if date:
            with contextlib.suppress(ValueError):
                self.server_date = f"{parsedate_to_datetime(date):%Y-%m-%dT%H:%M:%SZ}"

    @contextlib.contextmanager
    def _failing(self, what: str) -> Iterator[None]:
        try:
            yield
        except failures() as e:
            raise self._error(Failure(e), what) from e

    def _nothing(self, what: str) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"{self.uri} answered, but not with {what}",
            hint="check the network and the endpoint, then run the same command again",
        )

    def _error(self, failure: Failure, what: str) -> StoreError:
        if failure.code == "NoSuchBucket":
            return StoreNotFoundError(
                f"there is no bucket {self.bucket}",
                hint="check --store; cfn/audit.yaml makes the evidence bucket",
            )
        return failure.error(f"cannot {what} in {self.uri}")


def drift(found: Mapping[str, Any], protection: Protection | None, now: datetime) -> list[str]:
    """Return in what an object, as HeadObject shows it, is not protected as it must be. Pure.

    Retention that has ended is right while the legal hold stands.
    """
    wrong = []
    held = found.get("ObjectLockLegalHoldStatus") == "ON"
    if found.get("ObjectLockMode") != "COMPLIANCE":
        wrong.append("it is not under COMPLIANCE retention")
    elif (until := found.get("ObjectLockRetainUntilDate", _NEVER)) < now and not held:
        wrong.append(f"its retention ended {until:%Y-%m-%d} and it has no legal hold")
    if protection is None:
        return wrong
    if protection.legal_hold and not held:
        wrong.append("it has no legal hold")
    if found.get("ServerSideEncryption") != "aws:kms":
        wrong.append("it is not encrypted with a CMK")
    elif found.get("SSEKMSKeyId") != protection.kms_key:
        wrong.append(f"it is encrypted with {found.get('SSEKMSKeyId')}")
    return wrong


def _in_base64(sha256: str) -> str:
    """A digest as S3 writes it; "" for what is no SHA-256 in hex (metadata say anything)."""
    return base64.b64encode(bytes.fromhex(sha256)).decode() if _SHA256.fullmatch(sha256) else ""


def _in_form(key: str) -> bool:
    try:
        check_key(key)
    except ValueError:
        return False
    return True


def _stamp(entry: Mapping[str, Any]) -> float:
    modified: datetime = entry["LastModified"]
    return modified.timestamp()


class _ViewFile(io.RawIOBase):
    """A buffer as a file, so that a segment is sent without being copied."""

    def __init__(self, view: memoryview) -> None:
        super().__init__()
        self._view, self._at = view, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: len(self._view)}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        part = self._view[self._at : self._at + len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)


@contextlib.contextmanager
def _payload(body: Body, sha256: str | None, scratch: Path) -> Iterator[_Payload]:
    """Give a body as one PUT can send it. A body in parts is spooled to an unlinked file."""
    if isinstance(body, SparseBody):
        body = body.whole()
    if isinstance(body, (bytes, bytearray, memoryview)):
        with memoryview(body) as view:
            known = sha256 or hashlib.sha256(view).hexdigest()
            yield _Payload(_ViewFile(view), len(view), known)
        return
    with _spool(scratch) as spool:
        digest, size = hashlib.sha256(), 0
        for part in body:
            digest.update(part)
            size += spool.write(part)
            if size > MAX_OBJECT_BYTES:
                raise StoreError(
                    "a file of more than 5 GiB cannot be one object in S3",
                    hint="take it by itself as an image: impound ingest CASE FILE --kind disk",
                )
        yield _Payload(spool, size, digest.hexdigest())


class _Spool(io.FileIO):
    """An unlinked file whose writes are whole and fail as the store's errors."""

    def write(self, data: Buffer) -> int:  # type: ignore[override]
        """Write all of it. Raises: StoreError."""
        with memoryview(data) as view:
            at = 0
            try:
                while at < len(view):
                    at += super().write(view[at:])
            except OSError as e:
                raise translate(e, "cannot write to the scratch folder") from e
            return at


@contextlib.contextmanager
def _spool(scratch: Path) -> Iterator[_Spool]:
    try:
        scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(scratch, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise translate(e, f"cannot make a file in {scratch}") from e
    with _Spool(fd, "r+b") as spool:
        yield spool
