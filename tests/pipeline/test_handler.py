# SPDX-License-Identifier: Apache-2.0
"""The containment function: from an event to an isolated instance, with little installed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline.errors import UsageError
from pipeline.gameday.aws.accounts import AUDIT, MEMBER
from pipeline.gameday.aws.faults import Fault
from pipeline.handler import handler

HEAVY = ("paramiko", "pyarrow", "volatility3", "dfvfs", "pytsk3", "duckdb", "click", "rich",
         "jinja2", "matplotlib", "yara_x", "dbos", "moto")  # fmt: skip


@pytest.fixture
def images(tmp_path):
    """One small volume: what is in it is not of interest here."""
    image = tmp_path / "root.img"
    image.write_bytes(bytes(4096))
    return [image]


@pytest.fixture
def cloud(home, aws_server, zone, settings, responder, monkeypatch):
    """Everything in S3 and KMS, as a function has it."""
    path = settings('isolation_sources = ["10.9.0.0/24"]\n')
    path.write_text(
        f'store = "{zone.store}"\n{path.read_text()}[s3]\nkms_key = "{zone.store_key}"\n'
        f'[signing]\nentry_key = "{zone.entry_key}"\ncheckpoint_key = "{zone.checkpoint_key}"\n'
        f'sealer = "{zone.sealer}"\n'
    )
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    return aws_server


@pytest.fixture
def event(zone):
    return {"case": "T-9", "target": zone.estate.variables()["INSTANCE"],
            "peers": ["198.51.100.7"], "open": {"contact": "soc@a.org"}}  # fmt: skip


def test_an_event_contains(cloud, event, impound):
    answer = handler(event, None)
    assert (answer["code"], answer["verdict"]) == (3, "groups applied, not probed")
    assert answer["spooled"] is False
    assert len(answer["snapshots"]) == 1
    held = cloud.client("ec2", MEMBER).describe_snapshots(OwnerIds=["self"])["Snapshots"]
    [made] = [s for s in held if s["SnapshotId"] in answer["snapshots"].values()]
    tags = {t["Key"]: t["Value"] for t in made["Tags"]}
    assert (tags["incident-response"], tags["notification"]) == ("quarantine:T-9", "soc@a.org")
    done = impound("verify", "T-9")
    assert done.code == 0, done.out


def test_protect_then_freeze_then_cut(cloud, event):
    handler(event, None)
    asked = [c.operation for c in cloud.calls()]
    at = [asked.index(o) for o in ("DetachInstances", "CreateSnapshots",
                                   "ModifyNetworkInterfaceAttribute")]  # fmt: skip
    assert at == sorted(at)


@pytest.mark.chaos
def test_the_same_event_again_does_nothing_more(cloud, event):
    first = handler(event, None)
    seen = len(cloud.calls())
    again = handler(event, None)
    assert again["snapshots"] == first["snapshots"]
    assert again["changes"] == []
    made = {c.operation for c in cloud.calls()[seen:]}
    assert not made & {"CreateSnapshots", "ModifyNetworkInterfaceAttribute", "PutRolePolicy"}


@pytest.mark.chaos
def test_the_snapshot_is_the_one_that_acquire_takes(cloud, event, impound):
    made = set(handler(event, None)["snapshots"].values())
    done = impound("--json", "acquire", "volume", event["target"], "--case", "T-9", "--no-copy")
    assert {v["snapshot"] for v in done.json["volumes"]} == made


@pytest.mark.chaos
def test_the_snapshot_is_locked(cloud, event):
    made = list(handler(event, None)["snapshots"].values())
    held = cloud.client("ec2", MEMBER).describe_locked_snapshots(SnapshotIds=made)["Snapshots"]
    assert [s["SnapshotId"] for s in held] == made


@pytest.mark.chaos
def test_a_lock_that_is_refused_keeps_nothing_waiting(cloud, event):
    cloud.faults.add(Fault("error", service="ec2", operation="LockSnapshot", times=None,
                           code="UnauthorizedOperation"))  # fmt: skip
    answer = handler(event, None)
    assert [g for g in answer["gaps"] if "is not locked" in g]
    assert answer["verdict"] == "groups applied, not probed"


@pytest.mark.chaos
def test_frozen_or_not_it_is_cut_off(cloud, event):
    cloud.faults.add(Fault("error", service="ec2", operation="CreateSnapshots", times=None,
                           code="UnauthorizedOperation"))  # fmt: skip
    answer = handler(event, None)
    assert [g for g in answer["gaps"] if g.startswith("not frozen")]
    assert answer["verdict"] == "groups applied, not probed"


@pytest.mark.chaos
@pytest.mark.parametrize("service", ["s3", "kms"])
def test_containment_does_not_wait_for_the_store(
    cloud, event, impound, monkeypatch, caplog, service
):
    """The log has every entry, signed; the next run adopts what the disk kept."""
    monkeypatch.setattr("pipeline.journal.OPEN_S", 1.5)
    cloud.faults.add(Fault("error", service=service, operation="*", account=AUDIT, times=None,
                           code="ServiceUnavailable"))  # fmt: skip
    answer = handler(event, None)
    assert (answer["spooled"], answer["code"]) == (True, 3)
    assert answer["verdict"] == "groups applied, not probed"
    lines = [r.message for r in caplog.records if r.message.startswith("impound-spool T-9 ")]
    assert len(lines) > 20
    cloud.faults.clear()
    seen = len(cloud.calls())
    monkeypatch.setattr("pipeline.journal.OPEN_S", 30)
    again = handler(event, None)
    assert (again["spooled"], again["changes"]) == (False, [])
    assert again["snapshots"] == answer["snapshots"]
    assert "CreateSnapshots" not in {c.operation for c in cloud.calls()[seen:]}
    assert impound("verify", "T-9").code == 0
    assert impound("--yes", "release", event["target"], "--case", "T-9").code == 0


@pytest.mark.parametrize(
    "wrong",
    [{"case": ".."}, {"target": "i-1"}, {"peers": ["nowhere"]}, {"case": None},
     {"target": f"arn:aws:ec2:eu-central-1:{MEMBER}:volume/vol-0123456789abcdef0"}],
)  # fmt: skip
def test_an_event_that_makes_no_sense(event, wrong):
    asked = {k: v for k, v in (event | wrong).items() if v is not None}
    with pytest.raises(UsageError):
        handler(asked, None)


def test_little_is_needed():
    """A function with boto3, cryptography, pydantic and rfc8785 can import all of it."""
    code = (
        "import sys\n"
        "import acquisition.containment.aws, acquisition.snapshot, evidence_store.store\n"
        "import evidence_store.s3, pipeline.handler\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )  # fmt: skip
    assert done.stdout.strip() == "[]"
