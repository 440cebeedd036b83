# SPDX-License-Identifier: Apache-2.0
"""The sealer: what it signs, and that it never goes backwards."""

from __future__ import annotations

import json
import shutil
import uuid

import pytest

from evidence_store.backend import LocalBackend
from evidence_store.checkpoint import Checkpoint, verify_checkpoint
from evidence_store.errors import IntegrityError, StoreError
from evidence_store.model import canonical
from pipeline.errors import UsageError
from pipeline.gameday.aws.accounts import LOG_ARCHIVE
from pipeline.gameday.aws.faults import Fault
from pipeline.gameday.aws.seed import ANCHOR_BUCKET, seed
from pipeline.sealer import Anchor, Order, parse_event, seal
from tests.evidence_store import kit

ENVIRONMENT = {"IMPOUND_EVIDENCE_STORE": "s3://evidence/a"}


@pytest.fixture
def world(tmp_path):
    return kit.make_world(tmp_path / "store")


@pytest.fixture
def s3(aws_in_process):
    seed(aws_in_process, "no.such:handler")
    return aws_in_process.client("s3", LOG_ARCHIVE)


@pytest.fixture
def anchor(s3):
    return Anchor(s3, ANCHOR_BUCKET)


def sealed(world, anchor, root=None):
    return seal(LocalBackend(root or world.root), kit.CHECKPOINT, anchor, kit.CASE)


def anchors(s3):
    found = s3.list_object_versions(Bucket=ANCHOR_BUCKET).get("Versions", [])
    return [v["Key"].rpartition("/")[2] for v in found]


def test_it_signs_and_anchors(world, s3, anchor):
    answer = sealed(world, anchor)
    ledger = world.case.ledger
    checkpoint = verify_checkpoint(
        answer["note"].encode(), ledger.origin, ledger.ring.checkpoint_keys(answer["size"])
    )
    assert (checkpoint.origin, checkpoint.size, checkpoint.root_text) == (
        answer["origin"], answer["size"], answer["root"],
    )  # fmt: skip
    assert anchors(s3) == ["0000000000000001.json"]
    [head] = [
        s3.head_object(Bucket=ANCHOR_BUCKET, Key=v["Key"])
        for v in s3.list_object_versions(Bucket=ANCHOR_BUCKET)["Versions"]
    ]
    assert head["ObjectLockMode"] == "COMPLIANCE"


def test_again_is_the_same(world, s3, anchor):
    first = sealed(world, anchor)
    again = sealed(world, anchor)
    assert first | {"note": ""} == again | {"note": ""}  # two ECDSA signatures differ
    world.note()
    assert sealed(world, anchor)["size"] == first["size"] + 1
    assert anchors(s3) == ["0000000000000001.json", "0000000000000002.json"]


def test_a_ledger_that_was_cut_off(world, s3, anchor, tmp_path):
    """Ledger and checkpoints rolled back together: only the anchor knows better."""
    shutil.copytree(world.root, tmp_path / "old")
    world.note()
    sealed(world, anchor)
    with pytest.raises(IntegrityError, match="the end was removed"):
        sealed(world, anchor, tmp_path / "old")
    assert len(anchors(s3)) == 1


def test_a_ledger_that_was_rewritten(world, anchor, tmp_path):
    """The same size, another history, signed by the right key."""
    shutil.copytree(world.root, tmp_path / "other")
    world.note("as it was")
    sealed(world, anchor)
    other = kit.Store(LocalBackend(tmp_path / "other"), world.scribe).case(kit.CASE)
    other.record(lambda: kit.Draft("review.noted", {"note": "as it should have been"}))
    with pytest.raises(IntegrityError, match="not those that were sealed"):
        sealed(world, anchor, tmp_path / "other")


def test_a_fork_under_another_store_id_is_not_sealed(world, anchor, tmp_path):
    """Whoever writes the bucket writes store.json too; one origin has one history."""
    shutil.copytree(world.root, tmp_path / "fork")
    world.note("as it was")
    sealed(world, anchor)
    identity = tmp_path / "fork" / "store.json"
    body = json.loads(identity.read_bytes())
    kit.rewrite(identity, canonical(body | {"store_id": str(uuid.uuid4())}) + b"\n")
    with pytest.raises(IntegrityError, match=r"store\.json"):
        sealed(world, anchor, tmp_path / "fork")


def test_another_case_of_the_same_origin_is_not_sealed(world, anchor, tmp_path):
    """A new ledger with a store id of its own, signed by the right keys, under the same name."""
    sealed(world, anchor)
    other = kit.make_world(tmp_path / "other")
    with pytest.raises(IntegrityError, match="not those that were sealed"):
        sealed(other, anchor, other.root)


def test_two_sealers_at_once(world, s3, anchor, tmp_path):
    """Both looked before either wrote: the second must not sign another root of that size."""

    class Blind(Anchor):
        def get(self, store_id, case_id):
            return None

    shutil.copytree(world.root, tmp_path / "other")
    world.note("one")
    sealed(world, anchor)
    other = kit.Store(LocalBackend(tmp_path / "other"), world.scribe).case(kit.CASE)
    other.record(lambda: kit.Draft("review.noted", {"note": "two"}))
    with pytest.raises(IntegrityError, match="another checkpoint of size 2 was sealed"):
        sealed(world, Blind(s3, ANCHOR_BUCKET), tmp_path / "other")
    assert not list((tmp_path / "other").rglob("log.note"))


def test_nothing_is_signed_that_is_not_anchored(world, aws_in_process, anchor):
    aws_in_process.faults.add(
        Fault("error", operation="PutObject", resource="anchor/*", code="AccessDenied")
    )
    with pytest.raises(StoreError, match="cannot anchor"):
        sealed(world, anchor)
    assert not list(world.root.rglob("log.note"))
    assert sealed(world, anchor)["size"] == 1


def test_anchored_but_the_answer_was_lost(world, aws_in_process, anchor):
    """The next call finds its own anchor and signs."""
    aws_in_process.faults.add(Fault("lost-answer", operation="PutObject", resource="anchor/*"))
    with pytest.raises(StoreError):
        sealed(world, anchor)
    assert sealed(world, anchor)["size"] == 1


def test_another_first_key(world, anchor):
    """An anchor that names another first key: this is not the case that was sealed."""
    origin = world.case.ledger.origin
    anchor.put(origin, kit.CASE, Checkpoint(1, world.case.ledger.roots[1], origin), "0" * 64)
    with pytest.raises(IntegrityError, match="first key"):
        sealed(world, anchor)


def test_a_damaged_anchor(world, s3, anchor):
    sealed(world, anchor)
    [version] = s3.list_object_versions(Bucket=ANCHOR_BUCKET)["Versions"]
    s3.put_object(Bucket=ANCHOR_BUCKET, Key=version["Key"], Body=b"{}", ChecksumAlgorithm="SHA256")
    with pytest.raises(IntegrityError, match="is damaged"):
        sealed(world, anchor)


def test_anchor_out_of_reach(world, aws_in_process, anchor):
    aws_in_process.faults.add(Fault("error", operation="ListObjectsV2", code="AccessDenied"))
    with pytest.raises(StoreError, match="cannot read what was sealed"):
        sealed(world, anchor)


def test_event():
    assert parse_event({"store": "s3://evidence/a/", "case": "T-1"}, ENVIRONMENT) == Order(
        "evidence", "a", "T-1"
    )
    assert parse_event({"store": "s3://evidence/a/b/c", "case": "T-1"}, ENVIRONMENT) == Order(
        "evidence", "a/b/c", "T-1"
    )


@pytest.mark.parametrize(
    "event",
    [
        None,
        [],
        {},
        {"store": "s3://evidence/a"},
        {"store": "s3://evidence/a", "case": "T-1", "more": 1},
        {"store": "s3://evidence/ab", "case": "T-1"},
        {"store": "s3://other/a", "case": "T-1"},
        {"store": "s3://evidence", "case": "T-1"},
        {"store": "file:///etc", "case": "T-1"},
        {"store": 7, "case": "T-1"},
        {"store": "s3://evidence/a", "case": "../x"},
        {"store": "s3://evidence/a", "case": 7},
        {"store": "s3://evidence/a/../b", "case": "T-1"},
    ],
)
def test_malformed_or_foreign_event(event):
    with pytest.raises(UsageError):
        parse_event(event, ENVIRONMENT)


def test_no_store_is_allowed_by_default():
    with pytest.raises(UsageError, match="does not seal"):
        parse_event({"store": "s3://evidence/a", "case": "T-1"}, {})
