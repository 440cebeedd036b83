# SPDX-License-Identifier: Apache-2.0
"""Both backends and a dict, side by side: the same operations, equal results.

Source: Bornholt et al., "Using Lightweight Formal Methods to Validate a Key-Value Storage Node in
Amazon S3" (SOSP 2021): a reference model as the oracle.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from evidence_store.backend import LocalBackend, ObjectNotFoundError, Stored, UnfitObjectError
from evidence_store.errors import AlreadyExistsError
from evidence_store.s3 import Protection, S3Backend
from pipeline.gameday.aws.accounts import AUDIT, REGION
from tests.evidence_store.kit import CASE, fill, make_world

BUCKET = "evidence"

# A name is a folder (lower case) or an object (upper case): S3 would let it be both.
folders = st.lists(st.sampled_from(["a", "b", "a-b", "a.b"]), max_size=3)
objects = st.sampled_from(["A", "B", "A-B", "A.B", "A0"])
keys = st.builds(lambda f, o: "/".join([*f, o]), folders, objects)
prefixes = st.builds("/".join, st.lists(st.sampled_from(["a", "b", "a-b", "A"]), min_size=1))
bodies = st.one_of(
    st.binary(max_size=20), st.integers(0, 300_000).map(bytes),
    st.integers(1, 50_000).map(lambda n: b"evidence" * n),
)  # fmt: skip


@pytest.fixture
def s3(aws_in_process):
    """A function that gives an empty S3 backend."""
    key = aws_in_process.client("kms", AUDIT).create_key()["KeyMetadata"]["Arn"]
    client = aws_in_process.client("s3", AUDIT)
    client.create_bucket(
        Bucket=BUCKET, ObjectLockEnabledForBucket=True,
        CreateBucketConfiguration={"LocationConstraint": REGION},
    )  # fmt: skip
    made = []

    def make(folder):
        made.append(folder)
        return S3Backend(client, BUCKET, f"store{len(made)}", Protection(key), folder, workers=2)

    return make


def outcome(work):
    """What `work` gives, or how it fails."""
    try:
        return work()
    except (AlreadyExistsError, ObjectNotFoundError, UnfitObjectError) as e:
        return type(e)


def content(backend, key):
    fd = backend.open_fd(key)
    try:
        return os.pread(fd, 1 << 20, 0)
    finally:
        os.close(fd)


def machine(make_s3):
    class Machine(RuleBasedStateMachine):
        @initialize()
        def start(self):
            self.folder = tempfile.TemporaryDirectory()
            root = Path(self.folder.name)
            self.backends = [LocalBackend(root / "store"), make_s3(root / "scratch")]
            self.model = {}

        def teardown(self):
            if hasattr(self, "folder"):
                self.folder.cleanup()

        def both(self, work, expected):
            for backend in self.backends:
                assert outcome(lambda backend=backend: work(backend)) == expected, backend.uri

        @rule(key=keys, body=bodies, parts=st.booleans(), known=st.booleans())
        def create(self, key, body, parts, known):
            taken = key in self.model
            self.model.setdefault(key, body)
            self.both(
                lambda b: b.create(
                    key,
                    iter([body[:7], body[7:]]) if parts else body,
                    sha256=hashlib.sha256(body).hexdigest() if known else None,
                ),
                AlreadyExistsError if taken else Stored(key, len(body)),
            )

        @rule(key=keys, limit=st.sampled_from([0, 10, 1 << 20]))
        def read(self, key, limit):
            body = self.model.get(key)
            expected = ObjectNotFoundError if body is None else body
            if body is not None and len(body) > limit:
                expected = UnfitObjectError
            self.both(lambda b: b.read(key, limit), expected)

        @rule(key=keys)
        def digest_and_content(self, key):
            body = self.model.get(key)
            if body is None:
                self.both(lambda b: b.sha256(key), ObjectNotFoundError)
                self.both(lambda b: content(b, key), ObjectNotFoundError)
            else:
                digest = hashlib.sha256(body).hexdigest()
                self.both(lambda b: b.sha256(key), (digest, len(body)))
                self.both(lambda b: content(b, key), body)

        @rule(prefix=prefixes)
        def listings(self, prefix):
            under = {k: v for k, v in self.model.items() if k.startswith(f"{prefix}/")}
            self.both(lambda b: list(b.list(prefix)),
                      sorted(Stored(k, len(v)) for k, v in under.items()))  # fmt: skip
            below = {k.removeprefix(f"{prefix}/") for k in under}
            names = {f"{k.partition('/')[0]}/" for k in below if "/" in k}
            self.both(lambda b: list(b.folders(prefix)), [n[:-1] for n in sorted(names)])
            self.both(lambda b: list(b.strays(prefix)), [])
            self.both(lambda b: list(b.anomalies(prefix)), [])

        @rule(folder=folders, start=st.integers(0, 3))
        def run(self, folder, start):
            names = ["/".join([*folder, name]) for name in ("A", "A-B", "A.B", "A0", "B", "C")]
            expected = []
            for name in names[start:]:
                if name not in self.model:
                    break
                expected.append(self.model[name])
            self.both(lambda b: list(b.read_run(iter(names[start:]), 1 << 20)), expected)

    return Machine


@pytest.mark.chaos
def test_any_operations_give_what_the_model_gives(s3):
    run_state_machine_as_test(
        lambda: machine(s3)(), settings=settings(max_examples=20, stateful_step_count=25)
    )


def test_a_case_is_the_same_objects_in_both(s3, tmp_path):
    seen = []
    for backend in (LocalBackend(tmp_path / "store"), s3(tmp_path / "scratch")):
        world = make_world(tmp_path / "store", backend=backend)
        fill(world)
        told = [
            (e.action, e.item, e.refs, e.result, e.note,
             [(o.uri, o.as_) for o in e.objects or []])
            for e in world.case.ledger.events
        ]  # fmt: skip
        lists = [backend.read(f"cases/{CASE}/items/{i}/segments.sha256", 1 << 20)
                 for i in ("E0001", "E0002")]  # fmt: skip
        members = backend.read(f"cases/{CASE}/items/E0002/members.jsonl", 1 << 20)
        seen.append((told, lists, members, [s.key for s in backend.list("cases")]))
    assert seen[0] == seen[1]
