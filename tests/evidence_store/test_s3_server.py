# SPDX-License-Identifier: Apache-2.0
"""The S3 backend against a real S3 server: SeaweedFS, whose KMS is the AWS stand-in.

What it has and moto has not: it encrypts, it checks the digest of what arrives, it keeps a
COMPLIANCE lock from being shortened, and it is a process with sockets and a disk.

Where SeaweedFS 4.48 is not AWS
    - A wrong SHA-256 is BadDigest as on AWS, but its message speaks of Content-Md5.
    - An unknown CMK is 500 InternalError, so that the write is called ambiguous; AWS names the key
      (KMS.NotFoundException; `test_s3` has that).
    - PutPublicAccessBlock is not implemented; nothing here needs it.
    - Bucket keys are accepted and not reported; each object has a data key of its own.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import os
import random
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from botocore.exceptions import ClientError

from evidence_store.backend import UnfitObjectError
from evidence_store.errors import StoreError
from evidence_store.ledger import Draft
from evidence_store.s3 import Protection, S3Backend
from evidence_store.store import Case, Store
from evidence_store.verify import verify_case
from pipeline.gameday.aws.accounts import AUDIT
from tests.evidence_store.backend_contract import BackendContract
from tests.evidence_store.kit import (
    CASE,
    CHECKPOINT,
    SEGMENT,
    fill,
    make_scribe,
    make_world,
    pattern,
)

pytestmark = [pytest.mark.s3server, pytest.mark.xdist_group("s3server")]

BUCKET = "evidence"
MIB = 1 << 20

# What a process needs to use the store that this one uses; the first line of its stdin is `place`.
OPEN = """
import datetime, json, os, sys
from pathlib import Path
import boto3
from botocore.config import Config
from evidence_store.s3 import Protection, S3Backend
from evidence_store.store import Store
from tests.evidence_store import kit
place = json.loads(sys.stdin.readline())
client = boto3.Session(place["access_key"], place["secret_key"], region_name="eu-central-1").client(
    "s3", endpoint_url=place["endpoint"], config=Config(ignore_configured_endpoint_urls=True))
backend = S3Backend(client, place["bucket"], place["prefix"], Protection(place["kms_key"]),
                    Path(place["scratch"]))
scribe = kit.make_scribe(seed=place["seed"])
scribe.clock = lambda: datetime.datetime.now(datetime.UTC)
case = Store(backend, scribe).case(kit.CASE)
"""


@pytest.fixture(scope="module")
def kms_key(s3_server):
    made = s3_server.kms.client("kms", AUDIT).create_key(Description="evidence")
    return made["KeyMetadata"]["Arn"]


@pytest.fixture(scope="module")
def client(s3_server):
    s3 = s3_server.client()
    s3.create_bucket(Bucket=BUCKET, ObjectLockEnabledForBucket=True)
    return s3


@pytest.fixture
def backend(client, kms_key, tmp_path):
    """An empty place in the bucket that all tests share."""
    return S3Backend(client, BUCKET, uuid.uuid4().hex, Protection(kms_key), tmp_path / "scratch")


@pytest.fixture
def world(backend, tmp_path):
    return make_world(tmp_path, backend=backend)


class TestServer(BackendContract):
    pass


def verdict(backend, **options):
    return verify_case(Case(Store(backend), CASE), **options)


def at(backend, key):
    return {"Bucket": BUCKET, "Key": f"{backend.prefix}/{key}"}


def start(s3_server, backend, code, seed):
    child = subprocess.Popen(
        [sys.executable, "-c", OPEN + code],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    place = {
        "access_key": s3_server.access_key, "secret_key": s3_server.secret_key,
        "endpoint": s3_server.endpoint, "bucket": BUCKET, "prefix": backend.prefix,
        "kms_key": backend.protection.kms_key, "scratch": str(backend.scratch), "seed": seed,
    }  # fmt: skip
    child.stdin.write(json.dumps(place) + "\n")
    child.stdin.flush()
    return child


# -- what the server does --------------------------------------------------------------------------


def test_the_bucket_is_fit_for_evidence(backend, client):
    backend.check_fit()
    client.create_bucket(Bucket="no-lock-here")
    backend.bucket = "no-lock-here"
    with pytest.raises(StoreError, match="not versioned"):
        backend.check_fit()


def test_an_object_is_locked_held_encrypted_and_tagged_and_says_so(backend, client, kms_key):
    backend.label("a", {"case": "T-1", "incident-response": "quarantine:IR 7"})
    backend.create("a/k", b"bytes")
    found = client.head_object(**at(backend, "a/k"), ChecksumMode="ENABLED")
    assert (found["ObjectLockMode"], found["ObjectLockLegalHoldStatus"]) == ("COMPLIANCE", "ON")
    assert (found["ServerSideEncryption"], found["SSEKMSKeyId"]) == ("aws:kms", kms_key)
    assert base64.b64decode(found["ChecksumSHA256"]) == hashlib.sha256(b"bytes").digest()
    assert client.get_object_tagging(**at(backend, "a/k"))["TagSet"] == [
        {"Key": "case", "Value": "T-1"},
        {"Key": "incident-response", "Value": "quarantine:IR 7"},
    ]
    assert list(backend.anomalies("a")) == []


def test_a_wrong_digest_is_refused_and_leaves_nothing(backend):
    with pytest.raises(StoreError, match="BadDigest"):
        backend.create("a/k", b"bytes", sha256=hashlib.sha256(b"others").hexdigest())
    assert list(backend.list("a")) == []
    backend.create("a/k", b"bytes")


def test_a_lock_cannot_be_shortened_lowered_or_lifted(backend, client):
    backend.create("k", b"bytes")
    version = client.head_object(**at(backend, "k"))["VersionId"]
    soon = datetime.now(UTC) + timedelta(days=1)
    for weaker in (
        {"Mode": "COMPLIANCE", "RetainUntilDate": soon},
        {"Mode": "GOVERNANCE", "RetainUntilDate": soon + timedelta(days=9999)},
    ):
        with pytest.raises(ClientError, match="AccessDenied"):
            client.put_object_retention(**at(backend, "k"), Retention=weaker)
    for bypass in ({}, {"BypassGovernanceRetention": True}):
        with pytest.raises(ClientError, match="AccessDenied"):
            client.delete_object(**at(backend, "k"), VersionId=version, **bypass)
    assert backend.read("k", 10) == b"bytes"
    assert list(backend.anomalies("k")) == []


def test_a_key_that_does_not_exist_stores_nothing(backend, kms_key):
    stranger = S3Backend(
        backend.client, BUCKET, backend.prefix, Protection(kms_key[:-4] + "0000"), backend.scratch
    )
    with pytest.raises(StoreError):
        stranger.create("a/k", b"bytes")
    assert list(backend.list("a")) == []


def test_a_key_that_was_disabled_hides_the_bytes_and_is_said(s3_server, backend):
    kms = s3_server.kms.client("kms", AUDIT)
    own = kms.create_key(Description="to be disabled")["KeyMetadata"]["Arn"]
    backend.protection = Protection(own)
    backend.create("k", pattern(100_000))
    kms.disable_key(KeyId=own)
    with pytest.raises(StoreError, match="read k"):
        backend.read("k", MIB)
    kms.enable_key(KeyId=own)
    assert backend.read("k", MIB) == pattern(100_000)


def test_refused_credentials_say_what_to_do(s3_server, backend):
    secret, s3_server.secret_key = s3_server.secret_key, "0" * 40
    try:
        backend.client = s3_server.client()
    finally:
        s3_server.secret_key = secret
    for use in (lambda: backend.create("k", b"x"), lambda: backend.read("k", 1),
                lambda: list(backend.list("k"))):  # fmt: skip
        with pytest.raises(StoreError) as caught:
            use()
        assert caught.value.hint


# -- a case ----------------------------------------------------------------------------------------


def test_a_case_from_opening_to_deep_verification(world, backend):
    fill(world)
    found = verdict(backend, deep=True, linear=True)
    assert (found.findings, [str(n) for n in found.notes]) == ([], [])
    assert (found.items, found.linear_items) == (2, 1)
    assert Store(backend).case_ids() == [CASE]
    with world.case.open("E0001") as image:
        assert image.pread(100, 0) == pattern(SEGMENT)[:100]


def test_a_second_version_of_a_segment_is_found(world, backend, client):
    fill(world)
    key = f"cases/{CASE}/items/E0001/data/{0:016x}"
    client.put_object(**at(backend, key), Body=b"z" * SEGMENT)
    assert any("2 versions" in str(f) for f in verdict(backend).findings)
    assert any("SHA-256" in str(f) for f in verdict(backend, deep=True).findings)


def test_a_delete_marker_over_a_segment_is_found(world, backend, client):
    fill(world)
    client.delete_object(**at(backend, f"cases/{CASE}/items/E0001/data/{0:016x}"))
    said = " ".join(map(str, verdict(backend).findings))
    assert "delete marker" in said
    assert "missing" in said


def test_a_delete_marker_over_the_last_entry_is_found_and_nothing_is_written_over_it(
    world, backend, client
):
    fill(world)
    last = len(world.case.ledger.entries) - 1
    client.delete_object(**at(backend, f"cases/{CASE}/ledger/{last:016d}.note"))
    assert any("delete marker" in str(f) for f in verdict(backend).findings)
    with pytest.raises(Exception, match="delete marker"):
        world.store.case(CASE).record(lambda: pytest.fail("nothing is written over a marker"))


def test_a_run_stops_at_what_was_replaced_or_hidden(backend, client):
    names = [f"f/{n:04d}.note" for n in range(30)]
    for name in names[:25]:
        backend.create(name, name.encode())
    assert list(backend.read_run(iter(names), 99)) == [n.encode() for n in names[:25]]
    assert list(backend.read_run(iter(names[20:]), 99)) == [n.encode() for n in names[20:25]]
    assert list(backend.read_run(iter(names[25:]), 99)) == []
    client.put_object(**at(backend, names[9]), Body=b"another")
    with pytest.raises(UnfitObjectError, match="2 versions"):
        list(backend.read_run(iter(names), 99))
    client.delete_object(**at(backend, names[22]))
    with pytest.raises(UnfitObjectError, match="delete marker"):
        list(backend.read_run(iter(names[20:]), 99))


def test_listings_of_many_pages_keep_versions_of_one_key_together(s3_server, backend):
    backend.client = s3_server.client()
    backend.client.meta.events.register(
        "before-parameter-build.s3.ListObjectVersions",
        lambda params, **_: params.setdefault("MaxKeys", 3),
    )
    for n in range(10):
        backend.create(f"f/{n}", b"x")
    for _ in range(4):
        backend.client.put_object(**at(backend, "f/4"), Body=b"y")
    assert [s.key for s in backend.list("f")] == [f"f/{n}" for n in range(10)]
    assert dict(backend.anomalies("f")) == {"f/4": "has 5 versions; one was written"}


def test_changed_tags_and_a_lifted_hold_are_found(backend, client):
    backend.label("f", {"case": "T-1"})
    backend.create("f/k", b"x")
    backend.create("f/l", b"x")
    tags = {"TagSet": [{"Key": "case", "Value": "T-2"}]}
    client.put_object_tagging(**at(backend, "f/k"), Tagging=tags)
    client.put_object_legal_hold(**at(backend, "f/l"), LegalHold={"Status": "OFF"})
    assert dict(backend.anomalies("f")) == {
        "f/k": "its tags differ: case", "f/l": "it has no legal hold",
    }  # fmt: skip


# -- kills and crowds ------------------------------------------------------------------------------

INGEST = """
data = kit.pattern(24 * kit.SEGMENT)
def progress(done, total):
    os.write(1, b"%d\\n" % done)
case.ingest("disk", kit.FakeImage(data), segment_size=kit.SEGMENT, progress=progress)
os.write(1, b"end\\n")
"""


def test_an_ingest_that_is_killed_again_and_again_ends_whole(s3_server, world, backend):
    rng = random.Random(7)
    kills = 0
    for attempt in itertools.count():
        child = start(s3_server, backend, INGEST, f"attempt {attempt}")
        with child:
            for _ in range(rng.randrange(2, 6) + 5 * attempt):
                line = child.stdout.readline()
                if line in ("end\n", ""):
                    break
            else:
                child.kill()
                kills += 1
        if line == "end\n":
            break
        assert line, "the child failed by itself"
        assert attempt < 9
    assert kills >= 2
    world.case.refresh()
    data = pattern(24 * SEGMENT)
    manifest = world.case.manifest("E0001")
    assert manifest.content == {"sha256": hashlib.sha256(data).hexdigest()}
    assert manifest.stored_objects == 24
    assert [i.outcome for i in world.case.item("E0001").intents][-1] == "acquired"
    world.seal()
    found = verdict(backend, deep=True)
    assert ([str(f) for f in found.findings], [str(n) for n in found.notes]) == ([], [])
    assert list(backend.anomalies("cases")) == []


def test_eight_writers_of_one_ledger_lose_nothing_and_write_nothing_twice(
    s3_server, world, backend
):
    def write(n):
        own = S3Backend(s3_server.client(), BUCKET, backend.prefix, backend.protection,
                        backend.scratch)  # fmt: skip
        scribe = make_scribe(seed=f"writer {n}")
        scribe.clock = lambda: datetime.now(UTC)
        case = Store(own, scribe).case(CASE)
        for k in range(8):
            case.record(lambda k=k: Draft("review.noted", {"note": f"{n} {k}"}))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    world.case.refresh()
    notes = [e.note for e in world.case.ledger.events if e.action == "review.noted"]
    assert sorted(notes) == sorted(f"{n} {k}" for n in range(8) for k in range(8))
    assert len({e.id for e in world.case.ledger.events}) == len(world.case.ledger.events)
    for n in range(8):
        own = [note for note in notes if note.startswith(f"{n} ")]
        assert own == [f"{n} {k}" for k in range(8)]
    assert list(backend.anomalies("cases")) == []
    world.case.seal(CHECKPOINT)
    assert verdict(backend, deep=True).outcome == "clean"


# -- memory ----------------------------------------------------------------------------------------

LARGE = """
from acquisition.source import open_source
case.ingest("disk", open_source(place["seed"], "disk"))
status = Path("/proc/self/status").read_text()
print(int(status.split("VmHWM:")[1].split()[0]) // 1024)
"""


def test_memory_stays_small_whatever_the_size(s3_server, world, backend, tmp_path):
    """8 GiB with 512 MiB of data in nine segments, read back after it."""
    disk = tmp_path / "disk.img"
    with disk.open("wb") as f:
        f.truncate(8 << 30)
        for n in range(8):
            f.seek((n << 30) + (n << 20))
            f.write(os.urandom(64 << 20))
    child = start(s3_server, backend, LARGE, str(disk))
    out, _ = child.communicate()
    assert child.returncode == 0
    assert int(out) < 300, f"{out.strip()} MiB"
    world.case.refresh()
    manifest = world.case.manifest("E0001")
    assert manifest.size == 8 << 30
    assert manifest.stored_objects >= 8
