# SPDX-License-Identifier: Apache-2.0
"""`acquire volume` with each AWS call of its path failing in each way that a call can fail.

Success or one clear error; and the same command again completes it, with nothing made twice.
"""

from __future__ import annotations

import json
import os
import random
import threading
import types

import pytest

from pipeline.gameday.aws.accounts import AUDIT, MEMBER
from pipeline.gameday.aws.faults import Fault
from pipeline.gameday.aws.seed import seed
from tests.evidence_store.kit import pattern
from tests.pipeline import landing_zone
from tests.pipeline.landing_zone import BLOCK, GIB

CALLS = (
    ("sts", "AssumeRole"), ("sts", "GetCallerIdentity"),
    ("ec2", "DescribeInstances"), ("ec2", "DescribeInstanceTypes"), ("ec2", "DescribeVolumes"),
    ("ec2", "CreateSnapshots"), ("ec2", "DescribeSnapshots"),
    ("ec2", "LockSnapshot"), ("ec2", "DescribeLockedSnapshots"),
    ("ec2", "ModifySnapshotAttribute"), ("ec2", "DescribeSnapshotAttribute"),
    ("ec2", "CopySnapshot"),
    ("kms", "DescribeKey"), ("kms", "GetKeyPolicy"),
    ("ebs", "ListSnapshotBlocks"), ("ebs", "GetSnapshotBlock"),
)  # fmt: skip
# What is made anew each time, and so must not be asked for again blindly.
MAKES = ("CreateSnapshots", "CopySnapshot")
_THROTTLED = {
    "sts": "ThrottlingException", "ec2": "RequestLimitExceeded", "kms": "ThrottlingException",
    "ebs": "RequestThrottledException",
}  # fmt: skip
_DENIED = {
    "sts": "AccessDenied", "ec2": "UnauthorizedOperation", "kms": "AccessDeniedException",
    "ebs": "AccessDeniedException",
}  # fmt: skip
# name -> (fields of the fault, how often: None is always)
KINDS = {
    "throttled once": ({"kind": "error", "code": _THROTTLED}, 1),
    "throttled": ({"kind": "error", "code": _THROTTLED}, None),
    "denied": ({"kind": "error", "code": _DENIED}, None),
    "failing": ({"kind": "error", "code": dict.fromkeys(_DENIED, "InternalError")}, None),
    "delayed": ({"kind": "delay", "seconds": 0.3}, None),
    "cut once": ({"kind": "truncate"}, 1),
    "cut": ({"kind": "truncate"}, None),
    "corrupted once": ({"kind": "corrupt"}, 1),
    "corrupted": ({"kind": "corrupt"}, None),
    "answered but lost once": ({"kind": "lost-answer"}, 1),
    "answered but lost": ({"kind": "lost-answer"}, None),
}


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    """One volume of 1 GiB and its SHA-256; its data is at the end, so that it is soon hashed."""
    path = landing_zone.image(
        tmp_path_factory.mktemp("faults") / "volume.img", GIB,
        {2040: pattern(BLOCK, 1), 2047: pattern(BLOCK, 2)},
    )  # fmt: skip
    return path, landing_zone.sha256(path)


@pytest.fixture
def zone(aws_server, volume):
    return seed(aws_server, "pipeline.sealer:handler", [volume[0]])


@pytest.fixture
def take(home, impound, aws_server, zone, monkeypatch):
    """The command, with all its pauses cut short; what is made by it is of this case."""
    for name, value in landing_zone.environment(home, zone, aws_server.endpoint).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("acquisition.snapshot.PAUSE_S", 0.001)
    monkeypatch.setattr("acquisition.ebs._FIRST_WAIT", 0.001)
    monkeypatch.setattr("acquisition.ebs._LONGEST_WAIT", 0.001)
    monkeypatch.setattr("botocore.endpoint.time", types.SimpleNamespace(sleep=lambda _s: None))
    assert impound("case", "open", "T-1", "--contact", "soc@a.org").code == 0
    target = zone.estate.variables()["INSTANCE"]
    return lambda: impound("--json", "acquire", "volume", target, "--case", "T-1")


def test_these_are_all_calls_of_the_path(take, aws_server):
    """A call that is new here has to be added, and is then tried in every way."""
    calls = len(aws_server.calls())
    assert take().code == 0
    made = {(c.service, c.operation) for c in aws_server.calls()[calls:]}
    assert made == set(CALLS)


def cases():
    """Every call in every way with IMPOUND_ACQUIRE_FAULTS=all; else so many, each call at least."""
    every = [(service, operation, kind) for service, operation in CALLS for kind in KINDS]
    wanted = os.environ.get("IMPOUND_ACQUIRE_FAULTS", "16")
    if wanted == "all":
        return every
    rng = random.Random(int(os.environ.get("IMPOUND_SEED", "1")))
    some = [(service, operation, rng.choice(list(KINDS))) for service, operation in CALLS]
    more = rng.sample([c for c in every if c not in some], max(0, int(wanted) - len(some)))
    return [*some, *more]


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("service", "operation", "kind"), cases(), ids=lambda value: str(value).replace(" ", "-")
)
def test_success_or_one_clear_error_and_a_second_run_completes_it(
    take, impound, aws_server, volume, service, operation, kind
):
    given, times = KINDS[kind]
    code = given.get("code")
    aws_server.faults.add(Fault(
        **{**given, "code": code[service] if code else ""}, service=service, operation=operation,
        times=times,
    ))  # fmt: skip
    done = take()
    assert aws_server.faults.hits(), "the fault did not strike"
    aws_server.faults.clear()
    assert "Traceback" not in done.err
    assert threading.active_count() < 40, "threads are left"
    assert "<?xml" not in done.out + done.err, "an answer of AWS may hold credentials"
    # An account that cannot be reached is not ready; nothing was begun.
    check_answer(done, 14 if service == "sts" else 12)
    if kind in ("delayed", "throttled once", "answered but lost once") and (operation not in MAKES):
        assert done.code == 0, done.out + done.err
    if (operation, kind) == ("GetSnapshotBlock", "corrupted"):
        # The item is complete with unreadable ranges, and says so for good.
        assert (done.code, take().code) == (3, 3)
        assert impound("verify", "T-1", "--deep").code == 0
        return
    if done.code:
        done = take()
        assert done.code == 0, done.out + done.err
    assert all(v["proved"] for v in done.json["volumes"])
    listed = impound("--json", "item", "list", "T-1").json["items"]
    assert [i["manifest"]["content"]["sha256"] for i in listed] == [volume[1]]
    for account in (MEMBER, AUDIT):
        assert len(landing_zone.snapshots(aws_server, account)) == 1
    assert impound("verify", "T-1", "--deep").code == 0


def check_answer(done, code):
    """Done; done with gaps, each a sentence; or one error with the next thing to do."""
    assert done.code in (0, 3, code), done.out + done.err
    if done.code == code:
        [last] = [json.loads(e) for e in done.err.splitlines() if e.startswith("{")]
        assert last["message_type"] == "exit_error"
        assert last["message"]
        assert last["hint"], last
        assert not done.out
    else:
        gaps = [g for v in done.json["volumes"] for g in v["gaps"]] + done.json["gaps"]
        assert bool(gaps) == (done.code == 3), done.out
        assert all(gap and "\n" not in gap for gap in gaps)
