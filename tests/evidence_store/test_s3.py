# SPDX-License-Identifier: Apache-2.0
"""The S3 backend: the contract against the stand-in, each fault and each attack by name."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
from datetime import UTC, datetime, timedelta

import pytest

from evidence_store.backend import (
    AmbiguousWriteError,
    ObjectNotFoundError,
    SparseBody,
    UnfitObjectError,
)
from evidence_store.bag import export_case, import_bag, verify_bag
from evidence_store.errors import (
    AlreadyExistsError,
    StoreError,
    StoreFullError,
    StoreNotFoundError,
    StoreUnavailableError,
)
from evidence_store.s3 import Protection, S3Backend, drift
from evidence_store.store import Case, Store
from evidence_store.verify import verify_case
from pipeline.gameday.aws.accounts import AUDIT, REGION
from pipeline.gameday.aws.faults import Fault
from tests.evidence_store.backend_contract import BackendContract
from tests.evidence_store.flaky_s3 import Network
from tests.evidence_store.kit import (
    CASE,
    CHECKPOINT,
    SECOND,
    SEGMENT,
    FakeImage,
    fill,
    make_scribe,
    make_world,
    pattern,
)

BUCKET = "evidence"


@pytest.fixture
def kms_key(aws):
    made = aws.client("kms", AUDIT).create_key(Description="evidence")
    return made["KeyMetadata"]["Arn"]


@pytest.fixture
def backend(aws, kms_key, tmp_path):
    s3 = aws.client("s3", AUDIT)
    s3.create_bucket(
        Bucket=BUCKET, ObjectLockEnabledForBucket=True,
        CreateBucketConfiguration={"LocationConstraint": REGION},
    )  # fmt: skip
    return S3Backend(
        s3, BUCKET, "store", Protection(kms_key), tmp_path / "scratch", sleep=lambda _s: None
    )


class TestS3(BackendContract):
    pass


def fault(aws, kind, operation, **more):
    aws.faults.add(Fault(kind, service="s3", operation=operation, **more))


def head(backend, key):
    return backend.client.head_object(Bucket=BUCKET, Key=f"store/{key}", ChecksumMode="ENABLED")


# -- what a PUT carries ----------------------------------------------------------------------------


def test_every_object_is_locked_encrypted_checked_and_tagged(backend, kms_key):
    backend.label("cases/T-1", {"case": "T-1", "incident-response": "quarantine:IR #7"})
    backend.label("cases/T-1/items/E0001", {"item": "E0001", "kind": "disk"})
    backend.create("cases/T-1/items/E0001/data/0", b"x" * 100)
    backend.create("cases/T-1/ledger/0", b"y")
    found = head(backend, "cases/T-1/items/E0001/data/0")
    assert found["ObjectLockMode"] == "COMPLIANCE"
    assert found["ObjectLockLegalHoldStatus"] == "ON"
    assert found["SSEKMSKeyId"] == kms_key
    assert found["ChecksumSHA256"]
    days = (found["ObjectLockRetainUntilDate"] - datetime.now(UTC)).total_seconds() / 86400
    assert 89 < days < 91
    long = head(backend, "cases/T-1/ledger/0")["ObjectLockRetainUntilDate"]
    assert long > datetime.now(UTC) + timedelta(days=3600)
    tags = backend.client.get_object_tagging(
        Bucket=BUCKET, Key="store/cases/T-1/items/E0001/data/0"
    )["TagSet"]
    assert {t["Key"]: t["Value"] for t in tags} == {
        "case": "T-1", "incident-response": "quarantine:IR _7", "item": "E0001", "kind": "disk",
    }  # fmt: skip


def test_a_sparse_body_arrives_with_its_zeros(backend):
    buffer = bytearray(b"\xaa" * 300_000)
    backend.create("k", SparseBody(memoryview(buffer)[:200_000], [(10, 20), (99_000, 99_001)]))
    want = bytearray(200_000)
    want[10:20] = b"\xaa" * 10
    want[99_000] = 0xAA
    assert backend.read("k", 1 << 20) == want


def test_the_digest_that_is_sent_is_checked_by_the_server(backend):
    with pytest.raises(StoreError, match="BadDigest"):
        backend.create("k", b"bytes", sha256=hashlib.sha256(b"others").hexdigest())
    assert list(backend.list("k")) == []


# -- faults ----------------------------------------------------------------------------------------


def test_a_lost_answer_to_a_put_is_settled_by_looking(aws, backend):
    fault(aws, "lost-answer", "PutObject", times=1)
    backend.create("k", b"bytes")
    assert backend.read("k", 10) == b"bytes"
    assert list(backend.anomalies("k")) == []


def test_a_put_that_never_arrived_is_ambiguous_not_done(aws, backend):
    fault(aws, "error", "PutObject", code="InternalError", times=1)
    with pytest.raises(AmbiguousWriteError):
        backend.create("k", b"bytes")
    backend.create("k", b"bytes")


def test_a_conflict_is_tried_again(aws, backend):
    fault(aws, "error", "PutObject", code="ConditionalRequestConflict", times=3)
    backend.create("k", b"bytes")
    assert len(aws.faults.hits()) == 3


def test_a_name_taken_behind_a_lost_answer_is_still_taken(aws, backend):
    backend.create("k", b"first")
    fault(aws, "lost-answer", "PutObject", times=1)
    with pytest.raises(AlreadyExistsError):
        backend.create("k", b"second")
    assert backend.read("k", 10) == b"first"


@pytest.mark.parametrize(
    ("code", "hint"),
    [("ExpiredToken", "renew the credentials"), ("RequestTimeTooSkewed", "clock"),
     ("AccessDenied", "lacks the right"), ("SlowDown", "busy")],
)  # fmt: skip
@pytest.mark.parametrize("operation", ["PutObject", "GetObject"])
def test_refusals_say_what_to_do(aws, backend, code, hint, operation):
    backend.create("there", b"x")
    fault(aws, "error", operation, code=code)
    use = {"GetObject": lambda: backend.read("there", 10),
           "PutObject": lambda: backend.create("k", b"bytes")}[operation]  # fmt: skip
    with pytest.raises(StoreError) as caught:
        use()
    assert hint in caught.value.hint or isinstance(caught.value, AmbiguousWriteError)


def test_what_cannot_be_looked_at_again_is_not_called_stored(aws, backend):
    fault(aws, "error", "HeadObject", code="AccessDenied", times=None)
    with pytest.raises(StoreError, match="look at k again"):
        backend.create("k", b"bytes")


def test_a_truncated_body_is_read_again(aws, backend):
    backend.create("k", pattern(100_000))
    fault(aws, "truncate", "GetObject", times=1)
    assert backend.read("k", 1 << 20) == pattern(100_000)
    fault(aws, "truncate", "GetObject", times=None)
    with pytest.raises(StoreError):
        backend.read("k", 1 << 20)


def test_a_corrupted_body_is_read_again(aws, backend):
    body = pattern(100_000)
    backend.create("k", body)
    fault(aws, "corrupt", "GetObject", times=1)
    assert backend.sha256("k") == (hashlib.sha256(body).hexdigest(), len(body))
    fault(aws, "corrupt", "GetObject", times=1)
    fd = backend.open_fd("k")
    assert os.pread(fd, 1 << 20, 0) == body
    os.close(fd)
    fault(aws, "corrupt", "GetObject", times=None)
    with pytest.raises(StoreError):
        backend.read("k", 1 << 20)


def test_no_bucket(aws, backend):
    backend.bucket = "no-such-bucket-here"
    for use in (lambda: backend.read("k", 1), lambda: backend.create("k", b""),
                lambda: list(backend.list("k")), backend.check_fit):  # fmt: skip
        with pytest.raises(StoreNotFoundError, match="no bucket"):
            use()


def test_a_bucket_without_object_lock_or_versioning(aws, backend):
    backend.check_fit()
    s3 = backend.client
    for name in ("plain", "versioned"):
        s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
    s3.put_bucket_versioning(Bucket="versioned", VersioningConfiguration={"Status": "Enabled"})
    backend.bucket = "plain"
    with pytest.raises(StoreError, match="not versioned"):
        backend.check_fit()
    backend.bucket = "versioned"
    with pytest.raises(StoreError, match="no Object Lock"):
        backend.check_fit()


def test_an_unknown_or_disabled_key_is_said(aws, backend, kms_key):
    backend.protection = Protection(kms_key[:-4] + "0000")
    with pytest.raises(StoreError) as caught:
        backend.create("k", b"x")
    assert "check the key" in caught.value.hint
    aws.client("kms", AUDIT).disable_key(KeyId=kms_key)
    backend.protection = Protection(kms_key)
    with pytest.raises(StoreError) as caught:
        backend.create("k", b"x")
    assert "check the key" in caught.value.hint


# -- attacks ---------------------------------------------------------------------------------------


def put_version(backend, key, body):
    backend.client.put_object(Bucket=BUCKET, Key=f"store/{key}", Body=body)


def delete(backend, key):
    backend.client.delete_object(Bucket=BUCKET, Key=f"store/{key}")


def test_what_lies_under_a_delete_marker_is_said_to_be_hidden(backend):
    backend.create("f/k", b"bytes")
    delete(backend, "f/k")
    for use in (lambda: backend.read("f/k", 10), lambda: backend.open_fd("f/k"),
                lambda: backend.sha256("f/k")):  # fmt: skip
        with pytest.raises(UnfitObjectError, match="delete marker"):
            use()
    assert list(backend.list("f")) == []
    assert list(backend.anomalies("f")) == [("f/k", "has a delete marker over it")]
    with pytest.raises(ObjectNotFoundError):
        backend.read("f/other", 10)


def test_a_run_stops_at_what_was_replaced_or_hidden(backend):
    names = [f"f/{n:04d}.note" for n in range(30)]
    for name in names[:25]:
        backend.create(name, name.encode())
    assert list(backend.read_run(iter(names), 99)) == [n.encode() for n in names[:25]]
    assert list(backend.read_run(iter(names[20:]), 99)) == [n.encode() for n in names[20:25]]
    assert list(backend.read_run(iter(names[25:]), 99)) == []
    put_version(backend, names[9], b"another")
    with pytest.raises(UnfitObjectError, match="2 versions"):
        list(backend.read_run(iter(names), 99))
    delete(backend, names[22])
    with pytest.raises(UnfitObjectError, match="delete marker"):
        list(backend.read_run(iter(names[20:]), 99))


def test_listings_of_many_pages_keep_versions_of_one_key_together(backend):
    backend.client.meta.events.register(
        "before-parameter-build.s3.ListObjectVersions",
        lambda params, **_: params.setdefault("MaxKeys", 3),
    )
    for n in range(10):
        backend.create(f"f/{n}", b"x")
    for _ in range(4):
        put_version(backend, "f/4", b"y")
    assert [s.key for s in backend.list("f")] == [f"f/{n}" for n in range(10)]
    assert dict(backend.anomalies("f")) == {"f/4": "has 5 versions; one was written"}


def test_changed_tags_are_found(backend):
    backend.label("f", {"case": "T-1"})
    backend.create("f/k", b"x")
    assert list(backend.anomalies("f")) == []
    backend.client.put_object_tagging(
        Bucket=BUCKET, Key="store/f/k", Tagging={"TagSet": [{"Key": "case", "Value": "T-2"}]}
    )
    assert list(backend.anomalies("f")) == [("f/k", "its tags differ: case")]


def test_a_lifted_legal_hold_is_found(backend):
    backend.create("f/k", b"x")
    backend.client.put_object_legal_hold(
        Bucket=BUCKET, Key="store/f/k", LegalHold={"Status": "OFF"}
    )
    assert list(backend.anomalies("f")) == [("f/k", "it has no legal hold")]


def test_drift_is_told_in_words():
    now = datetime(2026, 1, 1, tzinfo=UTC)
    good = {
        "ObjectLockMode": "COMPLIANCE", "ObjectLockRetainUntilDate": now + timedelta(1),
        "ObjectLockLegalHoldStatus": "ON", "ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "K",
    }  # fmt: skip
    want = Protection("K")
    assert drift(good, want, now) == []
    assert drift(good | {"ObjectLockRetainUntilDate": now - timedelta(1)}, want, now) == []
    for change, word in (
        ({"ObjectLockMode": "GOVERNANCE"}, "COMPLIANCE"),
        ({"ObjectLockMode": None}, "COMPLIANCE"),
        ({"ObjectLockLegalHoldStatus": "OFF"}, "legal hold"),
        ({"ServerSideEncryption": "AES256"}, "CMK"),
        ({"SSEKMSKeyId": "L"}, "encrypted with L"),
    ):
        assert word in drift(good | change, want, now)[0]
    ended = good | {
        "ObjectLockRetainUntilDate": now - timedelta(1), "ObjectLockLegalHoldStatus": "OFF",
    }  # fmt: skip
    assert "retention ended" in drift(ended, None, now)[0]


# -- a case ----------------------------------------------------------------------------------------


@pytest.fixture
def world(backend, tmp_path):
    return make_world(tmp_path, backend=backend)


def verdict(backend, **options):
    return verify_case(Case(Store(backend), CASE), **options)


def test_a_case_in_s3_from_opening_to_deep_verification(world, backend):
    fill(world)
    found = verdict(backend, deep=True)
    assert (found.findings, [str(n) for n in found.notes]) == ([], [])
    assert found.items == 2
    assert found.hashed_bytes > 2 * SEGMENT
    assert Store(backend).case_ids() == [CASE]
    with world.case.open("E0001") as image:
        assert image.pread(100, 0) == pattern(SEGMENT)[:100]


def test_a_segment_replaced_by_a_newer_version(world, backend):
    fill(world)
    key = f"cases/{CASE}/items/E0001/data/{0:016x}"
    put_version(backend, key, b"z" * SEGMENT)
    quick = verdict(backend)
    assert any("versions" in str(f) for f in quick.findings)
    assert any("SHA-256" in str(f) for f in verdict(backend, deep=True).findings)


def test_a_delete_marker_over_a_segment(world, backend):
    fill(world)
    delete(backend, f"cases/{CASE}/items/E0001/data/{0:016x}")
    assert {"delete marker", "missing"} <= {
        word for f in verdict(backend).findings for word in ("delete marker", "missing")
        if word in str(f)
    }  # fmt: skip


def test_delete_markers_over_the_end_of_the_ledger_hide_nothing(world, backend):
    fill(world)
    last = len(world.case.ledger.entries) - 1
    delete(backend, f"cases/{CASE}/ledger/{last:016d}.note")
    found = verdict(backend)
    assert any("delete marker" in str(f) for f in found.findings)
    with pytest.raises(Exception, match="delete marker"):
        world.store.case(CASE).record(lambda: pytest.fail("nothing is written over a marker"))


def test_an_interrupted_ingest_goes_on(world, backend, aws):
    data = pattern(5 * SEGMENT)
    fault(aws, "error", "PutObject", code="AccessDenied", times=None, resource=f"*{3:016x}*")
    with pytest.raises(StoreError):
        world.case.ingest("disk", FakeImage(data), segment_size=SEGMENT)
    aws.faults.clear()
    taken = world.case.ingest("disk", FakeImage(data), segment_size=SEGMENT)
    assert taken.resumed
    assert taken.manifest.content == {"sha256": hashlib.sha256(data).hexdigest()}
    world.seal()
    assert verdict(backend, deep=True).outcome == "clean"


def test_entries_carry_the_date_that_s3_gave(world, backend):
    assert backend.server_date
    assert datetime.fromisoformat(backend.server_date)


def test_reading_needs_no_key_of_ours(world, backend):
    fill(world)
    reader = S3Backend(backend.client, BUCKET, "store", None, backend.scratch)
    assert verdict(reader, deep=True).outcome == "clean"
    with pytest.raises(RuntimeError, match="reading only"):
        reader.create("k", b"")
    assert json.loads(reader.read("store.json", 4096))["layout"] == 1


# -- bags ------------------------------------------------------------------------------------------


def test_a_case_goes_out_of_s3_and_into_s3(backend, aws, kms_key, tmp_path):
    world = make_world(tmp_path, backend=backend)
    fill(world)
    export_case(world.case, tmp_path / "bag", lambda c: c.seal(CHECKPOINT), raw=True)
    assert verify_bag(tmp_path / "bag").outcome == "clean"
    lab = S3Backend(
        backend.client, BUCKET, "lab", Protection(kms_key), tmp_path / "lab", sleep=lambda _s: None
    )  # fmt: skip
    store = Store(lab, make_scribe(SECOND, "lab"))
    done = import_bag(
        store, tmp_path / "bag", deployment="lab", checkpoint_key=CHECKPOINT.public
    )  # fmt: skip
    done.case.seal(CHECKPOINT)
    verdict = verify_case(Case(Store(lab), CASE), deep=True)
    assert (verdict.findings, verdict.notes) == ([], [])
    assert verdict.received is not None


# -- a network that fails: each thing that random runs found ---------------------------------------


@pytest.fixture
def network(aws_in_process, tmp_path):
    """A store behind a network whose faults are told by `network.script`."""
    aws = aws_in_process
    key = aws.client("kms", AUDIT).create_key()["KeyMetadata"]["Arn"]
    s3 = aws.client("s3", AUDIT)
    s3.create_bucket(
        Bucket=BUCKET, ObjectLockEnabledForBucket=True,
        CreateBucketConfiguration={"LocationConstraint": REGION},
    )  # fmt: skip
    network = Network()
    network.attach(s3)
    network.backend = S3Backend(
        s3, BUCKET, "store", Protection(key), tmp_path / "scratch", sleep=lambda _s: None
    )
    return network


@pytest.mark.parametrize("fault", ["empty", "truncated", "flipped", "gateway", "body reset"])
def test_an_answer_that_is_no_listing_is_not_an_empty_one(network, fault):
    backend = network.backend
    backend.create("f/k", b"x")
    for use in (lambda: list(backend.list("f")), lambda: list(backend.folders("f")),
                lambda: list(backend.strays("f")), lambda: list(backend.anomalies("f")),
                lambda: list(backend.read_run(iter(["f/k", "f/l"]), 9))):  # fmt: skip
        network.script = {"LIST": [fault]}
        with pytest.raises(StoreUnavailableError):
            use()
        assert not network.script["LIST"]


@pytest.mark.parametrize(
    ("operation", "fault"),
    [("LIST", "reset"), ("LIST", "AccessDenied"), ("HEAD", "SlowDown"), ("HEAD", "refused"),
     ("TAGS", "gateway"), ("TAGS", "empty"), ("GET", "read timeout"), ("GET", "SlowDown"),
     ("GET", "AccessDenied")],
)  # fmt: skip
@pytest.mark.parametrize("when", [0, 7])
def test_what_could_not_be_looked_at_is_no_finding(network, operation, fault, when):
    fill(make_world(network.backend.scratch, backend=network.backend))
    network.script = {operation: [*[""] * when, *[fault] * 99]}
    with pytest.raises(StoreUnavailableError):
        verdict(network.backend, deep=True)
    network.script = {}
    assert verdict(network.backend, deep=True).outcome == "clean"


def test_a_head_that_is_refused_is_asked_for_the_reason(network):
    network.backend.create("f/k", b"x")
    network.backend.create("f/none", b"")
    network.script = {"HEAD": ["AccessDenied"], "GET": ["AccessDenied"]}
    with pytest.raises(StoreUnavailableError, match="AccessDenied"):
        list(network.backend.anomalies("f"))
    for _ in range(2):
        network.script = {"HEAD": ["RequestTimeout", "", "RequestTimeout", ""]}
        assert list(network.backend.anomalies("f")) == []


def test_a_network_that_fails_while_reading_back_accuses_nobody(network):
    world = make_world(network.backend.scratch, backend=network.backend)

    def progress(done, total):
        if done == total:
            # The new entry and the list are read; the segment is not.
            network.script = {"GET": ["", "", *["read timeout"] * 99]}

    with pytest.raises(StoreUnavailableError):
        world.case.ingest(
            "disk", FakeImage(pattern(SEGMENT)), segment_size=SEGMENT, progress=progress
        )
    network.script = {}
    world.case.refresh()
    assert "failed" not in [e.result for e in world.case.ledger.events]
    world.case.ingest("disk", FakeImage(pattern(SEGMENT)), segment_size=SEGMENT)
    world.seal()
    assert verdict(network.backend, deep=True).findings == []


@pytest.mark.parametrize("put", ["after: reset", "after: InternalError", "reset"])
@pytest.mark.parametrize("head", ["refused", "SlowDown", "AccessDenied"])
def test_a_put_that_cannot_be_looked_for_is_ambiguous(network, put, head):
    network.script = {"PUT": [put], "HEAD": [head]}
    with pytest.raises(AmbiguousWriteError):
        network.backend.create("k", b"bytes")


def test_an_event_whose_answer_and_look_up_were_lost_is_recorded_once(network):
    world = make_world(network.backend.scratch, backend=network.backend)
    network.script = {"PUT": ["after: reset"], "HEAD": ["refused"]}
    before = len(world.case.ledger.entries)
    world.note()
    assert len(world.case.ledger.entries) == before + 1
    world.seal()
    assert verdict(network.backend).findings == []


def test_a_put_that_arrives_late_overwrites_nothing(network):
    network.script = {"PUT": ["late"]}
    with pytest.raises(AmbiguousWriteError):
        network.backend.create("k", b"first")
    with contextlib.suppress(AlreadyExistsError):  # it may have arrived by then
        network.backend.create("k", b"second")
    network.arrive_late(all_of_it=True)
    assert network.backend.read("k", 10) in (b"first", b"second")
    assert list(network.backend.anomalies("k")) == []


def test_bytes_that_were_changed_on_the_way_are_refused(network):
    network.script = {"PUT": ["corrupt request"]}
    with pytest.raises(StoreError, match=r"BadDigest|XAmzContentSHA256Mismatch"):
        network.backend.create("f/k", pattern(1000))
    assert list(network.backend.list("f")) == []


@pytest.mark.parametrize("said", ["", "no digest", "0" * 64])
def test_objects_that_somebody_else_stored_are_said_whatever_they_say_of_themselves(backend, said):
    backend.create("f/k", b"x")
    backend.client.put_object(
        Bucket=BUCKET, Key="store/f/other", Body=b"y", Metadata={"sha256": said},
        ChecksumAlgorithm="SHA256",
    )  # fmt: skip
    found = dict(backend.anomalies("f"))
    assert set(found) == {"f/other"}
    assert "its metadata were changed" in found["f/other"]


def test_a_full_scratch_folder_is_said(backend):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    backend.create("there", pattern(100_000))
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        for use in (
            lambda: backend.open_fd("there"),
            lambda: backend.create("k", iter([b"x" * 99_999])),
        ):
            with pytest.raises(StoreFullError, match="scratch"):
                use()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(backend.list("k")) == []
