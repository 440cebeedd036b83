# SPDX-License-Identifier: Apache-2.0
"""Snapshots: what is missing of a key policy, which snapshots are ours, and patience."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from acquisition.errors import AcquisitionError
from acquisition.snapshot import (
    COPY_ACTIONS,
    Ec2,
    KeyDeniedError,
    Lock,
    Observed,
    Snapshot,
    SnapshotFailedError,
    UnreachableError,
    Volume,
    missing_actions,
)

AUDIT = "444444444444"
THEN = datetime(2026, 1, 2, tzinfo=UTC)


def policy(*statements):
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})


def allow(actions, principal=f"arn:aws:iam::{AUDIT}:root", **more):
    return {"Effect": "Allow", "Principal": {"AWS": principal}, "Action": actions,
            "Resource": "*", **more}  # fmt: skip


# -- key policies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("actions", ["kms:*", "*", list(COPY_ACTIONS), ["KMS:*"]])
def test_a_policy_that_gives_everything(actions):
    assert missing_actions(policy(allow(actions)), AUDIT) == []


def test_what_is_missing_is_named():
    given = [a for a in COPY_ACTIONS if a != "kms:CreateGrant"]
    assert missing_actions(policy(allow(given)), AUDIT) == ["kms:CreateGrant"]
    assert missing_actions(policy(allow(["kms:ReEncrypt*", "kms:D*", "kms:G*"])), AUDIT) == [
        "kms:CreateGrant"
    ]
    assert missing_actions(policy(), AUDIT) == list(COPY_ACTIONS)


def test_rights_of_another_account_do_not_count():
    other = allow("kms:*", "arn:aws:iam::222222222222:root")
    assert missing_actions(policy(other), AUDIT) == list(COPY_ACTIONS)
    assert missing_actions(policy(allow("kms:*", AUDIT)), AUDIT) == []
    assert missing_actions(policy(allow("kms:*", f"arn:aws:iam::{AUDIT}:role/x")), AUDIT) == []


def test_a_denial_wins_and_one_with_a_condition_is_not_judged():
    deny = {**allow("kms:Decrypt"), "Effect": "Deny"}
    assert missing_actions(policy(allow("kms:*"), deny), AUDIT) == ["kms:Decrypt"]
    conditional = {**deny, "Condition": {"Bool": {"aws:SecureTransport": "false"}}}
    assert missing_actions(policy(allow("kms:*"), conditional), AUDIT) == []


# -- freezing --------------------------------------------------------------------------------------


class FakeEc2:
    """EC2 that holds snapshots; `made` is what its next create gives."""

    def __init__(self):
        self.snapshots = []
        self.created = 0
        self.lost = False
        self.failing = []

    def add(self, number, volume, state="completed", started=THEN):
        said = {"SnapshotId": f"snap-{number}", "VolumeId": volume, "OwnerId": "1", "State": state,
                "VolumeSize": 1, "StartTime": started}  # fmt: skip
        self.snapshots.append(said)
        return said

    def create_snapshots(self, **_):
        self.created += 1
        made = [self.add(100 * self.created + n, f"vol-{n}") for n in (1, 2)]
        if self.lost:
            raise reset()
        return {"Snapshots": made}

    def describe_snapshots(self, SnapshotIds):
        if self.failing:
            raise self.failing.pop()
        found = [s for s in self.snapshots if s["SnapshotId"] in SnapshotIds]
        if not found:
            raise ClientError({"Error": {"Code": "InvalidSnapshot.NotFound"}}, "DescribeSnapshots")
        return {"Snapshots": found}

    def get_paginator(self, _):
        return self

    def paginate(self, **_):
        return [{"Snapshots": list(self.snapshots)}]


def reset():
    """An answer that says nothing: HTTP 500."""
    said = {"Error": {"Code": "InternalError"}, "ResponseMetadata": {"HTTPStatusCode": 500}}
    return ClientError(said, "CreateSnapshots")


@pytest.fixture
def fake():
    return FakeEc2()


@pytest.fixture
def ec2(fake):
    return Ec2(fake, fake, "1", "eu-west-1", sleep=lambda _s: None)


OBSERVED = Observed((Volume("vol-1", 1 << 30), Volume("vol-2", 1 << 30)), instance="i-1")


def frozen(ec2, **options):
    made = ec2.freeze(OBSERVED, {}, "mark", THEN, **options)
    return {volume: snapshot.snapshot_id for volume, snapshot in made.items()}


def test_the_ids_of_the_answer_count_not_what_carries_the_tag(ec2, fake):
    """Somebody has put the tag onto another snapshot of the same volume."""
    fake.add(7, "vol-1", started=THEN - timedelta(minutes=1))
    assert frozen(ec2) == {"vol-1": "snap-101", "vol-2": "snap-102"}


def test_after_a_lost_answer_the_earliest_of_each_volume_counts(ec2, fake):
    fake.lost = True
    assert frozen(ec2) == {"vol-1": "snap-101", "vol-2": "snap-102"}
    fake.add(8, "vol-1", started=THEN + timedelta(hours=1))
    assert frozen(ec2, resumed=True) == {"vol-1": "snap-101", "vol-2": "snap-102"}
    assert fake.created == 1


def test_a_failed_snapshot_of_an_earlier_run_is_replaced(ec2, fake):
    fake.add(1, "vol-1", state="error")
    fake.add(2, "vol-2")
    assert frozen(ec2, resumed=True)["vol-1"] == "snap-101"


# -- what is new is not seen at once ---------------------------------------------------------------


class SlowEc2(FakeEc2):
    """A snapshot, its lock and its share are there, and for `unseen` looks nobody sees them."""

    def __init__(self, unseen):
        super().__init__()
        self.unseen = {"snapshot": unseen, "lock": unseen, "share": unseen, "copy": unseen}
        self.locks = self.shares = self.copies = 0

    def _seen(self, what):
        self.unseen[what] -= 1
        return self.unseen[what] < 0

    def _or_gone(self, what):
        if not self._seen(what):
            raise ClientError({"Error": {"Code": "InvalidSnapshot.NotFound", "Message": "?"}}, "x")

    def describe_locked_snapshots(self, SnapshotIds):
        self._or_gone("snapshot")
        held = self.locks and self._seen("lock")
        return {"Snapshots": [{"LockState": "governance"}] if held else []}

    def lock_snapshot(self, **_):
        self.locks += 1

    def describe_snapshot_attribute(self, **_):
        shown = self.shares and self._seen("share")
        return {"CreateVolumePermissions": [{"UserId": AUDIT}] if shown else []}

    def modify_snapshot_attribute(self, **_):
        self.shares += 1

    def copy_snapshot(self, **_):
        self._or_gone("copy")
        self.copies += 1
        return {"SnapshotId": "snap-9"}

    def paginate(self, **_):
        return [{"Snapshots": []}]

    def all(self):
        """What is done with a snapshot, in order."""
        ec2 = Ec2(self, self, "1", "eu-west-1", sleep=lambda _s: None)
        return {
            "lock": lambda: ec2.lock("snap-1", Lock("governance", 1)),
            "share": lambda: ec2.share("snap-1", AUDIT),
            "copy": lambda: ec2.copy(
                Snapshot("snap-1", "vol-1", "1", 1 << 30, "completed", "", THEN), "eu-west-1",
                "key", {}, "mark", THEN,
            ),
        }  # fmt: skip


def test_lock_share_and_copy_wait_for_what_is_not_seen_yet():
    slow = SlowEc2(5)
    done = {name: work() for name, work in slow.all().items()}
    assert done == {"lock": {"state": "governance", "until": ""}, "share": None, "copy": "snap-9"}
    assert (slow.locks, slow.shares, slow.copies) == (1, 1, 1)


@pytest.mark.parametrize("what", ["lock", "share", "copy"])
def test_what_never_shows_is_an_error(what):
    slow = SlowEc2(1000)
    with pytest.raises(AcquisitionError, match="snap-1"):
        slow.all()[what]()
    assert slow.unseen["snapshot" if what == "lock" else what] > 900, "it gave up in time"


# -- waiting ---------------------------------------------------------------------------------------


def test_a_network_that_is_down_for_a_while_ends_no_wait(ec2, fake):
    fake.add(1, "vol-1")
    fake.failing = [EndpointConnectionError(endpoint_url="x")] * 50
    assert ec2.completed("snap-1").snapshot_id == "snap-1"


def test_a_network_that_stays_down_does(ec2, fake):
    fake.failing = [EndpointConnectionError(endpoint_url="x")] * 500
    with pytest.raises(UnreachableError, match="look at snapshot snap-1"):
        ec2.completed("snap-1")


def test_a_denial_ends_it_at_once(ec2, fake):
    fake.failing = [ClientError({"Error": {"Code": "UnauthorizedOperation", "Message": "no"}}, "x")]
    with pytest.raises(AcquisitionError, match="no"):
        ec2.completed("snap-1")


def test_what_vanishes_or_never_shows_was_refused_by_a_key(ec2, fake):
    with pytest.raises(KeyDeniedError, match="not there any more"):
        ec2.completed("snap-1")


@pytest.mark.parametrize(
    ("message", "kind"),
    [("Given key ID is not accessible", KeyDeniedError), ("disk on fire", SnapshotFailedError)],
)
def test_a_snapshot_in_error_says_why(ec2, fake, message, kind):
    fake.add(1, "vol-1", state="error")["StateMessage"] = message
    with pytest.raises(kind, match=message):
        ec2.completed("snap-1")
