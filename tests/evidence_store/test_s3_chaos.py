# SPDX-License-Identifier: Apache-2.0
"""Random faults of the network to S3: nothing is lost, written twice, or quietly wrong.

Each run takes an image and a file set into a case, starting again after each failure as a person
would, then seals and verifies it; at the end a clean client compares what is stored with what must
be. IMPOUND_S3_RUNS: how many seeds; IMPOUND_S3_SEED: only this one.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections import Counter
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from evidence_store.errors import CaseNotFoundError, StoreError, StoreNotFoundError
from evidence_store.ledger import Draft
from evidence_store.s3 import Protection, S3Backend
from evidence_store.store import Case, Store
from evidence_store.verify import verify_case
from pipeline.gameday.aws.accounts import AUDIT, REGION
from pipeline.gameday.aws.stand import InProcess
from tests.evidence_store.flaky_s3 import FAULTS, Network
from tests.evidence_store.kit import (
    AUTHORITY,
    CASE,
    CHECKPOINT,
    FakeImage,
    FakeSet,
    make_scribe,
    pattern,
)

pytestmark = pytest.mark.chaos

SEGMENT = 16384
TRIES = 40
# (share of calls that fail, attempts of botocore)
STRENGTHS = [(0.005, 1), (0.02, 1), (0.05, 2), (0.1, 3), (0.2, 4)]

IMAGE = pattern(SEGMENT) + bytes(SEGMENT) + pattern(3 * SEGMENT // 2, 7)
FILES = {b"empty": b"", b"var/log/syslog": pattern(5000, 3)}


def seeds():
    if "IMPOUND_S3_SEED" in os.environ:
        return [int(os.environ["IMPOUND_S3_SEED"])]
    return range(int(os.environ.get("IMPOUND_S3_RUNS", "50")))


@pytest.fixture(scope="module")
def s3():
    """The stand-in with a bucket and a key; clients by how often botocore tries."""
    with InProcess() as aws:
        key = aws.client("kms", AUDIT).create_key()["KeyMetadata"]["Arn"]
        clean = aws.client("s3", AUDIT)
        flaky = {n: aws.client("s3", AUDIT, retries=n, role="flaky") for n in (1, 2, 3, 4)}
        yield SimpleNamespace(key=key, clean=clean, flaky=flaky)


@pytest.fixture(autouse=True)
def nobody_waits(monkeypatch):
    monkeypatch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=lambda _: None))
    monkeypatch.setattr("evidence_store.ledger.time", SimpleNamespace(sleep=lambda _: None))


class Run:
    """One seed."""

    def __init__(self, s3, seed, folder):
        rate, tries = random.Random(seed).choice(STRENGTHS)
        self.s3 = s3
        self.network = Network(str(seed), rate)
        self.network.attach(s3.flaky[tries])
        self.bucket = f"evidence-{seed}"
        s3.clean.create_bucket(
            Bucket=self.bucket, ObjectLockEnabledForBucket=True,
            CreateBucketConfiguration={"LocationConstraint": REGION},
        )  # fmt: skip
        self.folder = folder
        self.client = s3.flaky[tries]
        self.failures = Counter()
        self.starts = 0

    def backend(self, client):
        return S3Backend(
            client, self.bucket, "", Protection(self.s3.key), self.folder, workers=2,
            sleep=lambda _: None,
        )  # fmt: skip

    def store(self):
        """A store as a new process opens it."""
        self.starts += 1
        scribe = make_scribe(seed=f"start {self.starts}")
        scribe.clock = lambda: datetime.now(UTC)
        return Store(self.backend(self.client), scribe)

    def until_done(self, work):
        """Run a command again until it succeeds; return (its result, how often it was run)."""
        for attempt in range(TRIES):
            if attempt == TRIES // 2:
                self.network.rate /= 4
            try:
                return work(), attempt + 1
            except StoreError as e:  # an IntegrityError would accuse evidence that is whole
                if not str(e).strip():
                    raise AssertionError("a failure says nothing") from e
                self.failures[type(e).__name__] += 1
        raise AssertionError(f"not done in {TRIES} attempts")

    def open_case(self):
        store = self.store()
        try:
            return store.case(CASE)
        except (StoreNotFoundError, CaseNotFoundError):
            return store.create_case(
                CASE, AUTHORITY, deployment="local", checkpoint_key=CHECKPOINT.public
            )

    def verify(self):
        found = verify_case(Case(Store(self.backend(self.client)), CASE), deep=True)
        assert ([str(f) for f in found.findings], [str(n) for n in found.notes]) == ([], [])

    def do(self):
        image, files = FakeImage(IMAGE, holes=[(SEGMENT, SEGMENT)]), FakeSet(FILES)
        self.until_done(self.open_case)
        self.until_done(lambda: self.store().case(CASE).ingest("disk", image, segment_size=SEGMENT))
        noted = self.until_done(
            lambda: self.store().case(CASE).record(lambda: Draft("review.noted", {"note": "x"}))
        )[1]
        self.until_done(lambda: self.store().case(CASE).ingest("logs", files))
        self.until_done(lambda: self.store().case(CASE).seal(CHECKPOINT))
        self.until_done(self.verify)
        self.network.arrive_late(all_of_it=True)
        self.check(noted)

    def check(self, noted):
        stored = self.stored()
        case = Store(self.backend(self.s3.clean)).case(CASE)
        actions = Counter(e.action for e in case.ledger.events)
        assert actions["case.opened"] == 1
        assert actions["item.identified"] == actions["item.acquired"] == 2
        assert 1 <= actions["review.noted"] <= noted
        assert len({e.id for e in case.ledger.events}) == len(case.ledger.events)
        data = f"cases/{CASE}/items"
        expected = {
            f"{data}/E0001/data/{0:016x}": IMAGE[:SEGMENT],
            f"{data}/E0001/data/{2:016x}": IMAGE[2 * SEGMENT : 3 * SEGMENT],
            f"{data}/E0001/data/{3:016x}": IMAGE[3 * SEGMENT :],
            **{f"{data}/E0002/data/{n:016x}": FILES[name] for n, name in enumerate(sorted(FILES))},
        }
        for key, body in expected.items():
            assert stored.pop(key) == body, key
        for seq, entry in enumerate(case.ledger.entries):
            body = stored.pop(f"cases/{CASE}/ledger/{seq:016d}.note")
            assert hashlib.sha256(body).hexdigest() == entry.sha256
        for name in ("E0001/manifest.json", "E0001/segments.sha256", "E0002/manifest.json",
                     "E0002/segments.sha256", "E0002/members.jsonl"):  # fmt: skip
            stored.pop(f"{data}/{name}")
        size = len(case.ledger.entries)
        for name in (f"checkpoints/{size:016d}/log.note", f"checkpoints/{size:016d}/last.proof"):
            stored.pop(f"cases/{CASE}/{name}")
        stored.pop("store.json")
        assert {k.rpartition("/")[0] for k in stored} <= {f"cases/{CASE}/keys"}
        assert len(stored) == 2

    def stored(self):
        """Every object by key, read without any of our code; each has one version, and no more."""
        out = {}
        pages = self.s3.clean.get_paginator("list_object_versions")
        for page in pages.paginate(Bucket=self.bucket):
            assert not page.get("DeleteMarkers")
            for entry in page["Versions"]:
                key = entry["Key"]
                assert key not in out, f"{key} has two versions"
                answer = self.s3.clean.get_object(Bucket=self.bucket, Key=key)
                out[key] = answer["Body"].read()
                assert hashlib.sha256(out[key]).hexdigest() == answer["Metadata"]["sha256"]
        return out


@pytest.mark.parametrize("half", [0, 1])
def test_seeded_runs_over_a_network_that_fails(s3, tmp_path, half):
    happened, failures, started = Counter(), Counter(), time.monotonic()
    mine = seeds()[half::2]
    for seed in mine:
        run = Run(s3, seed, tmp_path)
        try:
            run.do()
        except BaseException:
            print(f"IMPOUND_S3_SEED={seed} repeats this run; its faults: {run.network.happened}")
            raise
        happened += run.network.happened
        failures += run.failures
    took = time.monotonic() - started
    print(f"{len(mine)} runs in {took:.0f} s, {sum(happened.values())} faults,"
          f" {sum(failures.values())} failures: {dict(failures)}")  # fmt: skip
    if len(mine) >= 20:
        assert {fault.partition(" ")[0] for fault in happened} == set(FAULTS)
