# SPDX-License-Identifier: Apache-2.0
"""`acquire volume` over three accounts: what is stored, what is made once, what fails how."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from acquisition.snapshot import Observed, Snapshot, Volume
from acquisition.target import parse_target
from pipeline import freeze
from pipeline.acquire import Acquisition
from pipeline.config import Settings
from pipeline.freeze import Freeze
from pipeline.gameday.aws.accounts import AUDIT, MEMBER, REGION
from pipeline.gameday.aws.faults import Fault
from pipeline.run import Run, Stopped
from tests.evidence_store.kit import make_world
from tests.pipeline import landing_zone

GIB = 1 << 30


def own(aws_server, account):
    """Snapshots in an account that this case made."""
    found = aws_server.client("ec2", account).describe_snapshots(OwnerIds=["self"])["Snapshots"]
    return [s for s in found if any(t["Key"] == "impound-nonce" for t in s.get("Tags", []))]


def digests(images):
    return {landing_zone.sha256(path) for path in images}


def stored(cloud):
    items = cloud("--json", "item", "list", "T-1").json["items"]
    return {i["manifest"]["content"]["sha256"] for i in items}


def test_an_instance_with_two_volumes(take, cloud, images, aws_server, zone):
    done = take()
    assert done.code == 0, done.err + done.out
    assert stored(cloud) == digests(images)
    rows = done.json["volumes"]
    assert {r["sha256"] for r in rows} == digests(images)
    assert all(r["proved"] and r["copy"] and r["item"] for r in rows)
    assert cloud("verify", "T-1", "--deep").code == 0
    for account in (MEMBER, AUDIT):
        made = own(aws_server, account)
        assert len(made) == 2
        for snapshot in made:
            tags = {t["Key"]: t["Value"] for t in snapshot["Tags"]}
            assert tags["incident-response"] == "quarantine:T-1"
            assert tags["notification"] == "soc@a.org"
    assert {s["KmsKeyId"] for s in own(aws_server, AUDIT)} == {zone.estate.copy_key}
    locked = aws_server.client("ec2", AUDIT).describe_locked_snapshots()["Snapshots"]
    assert {s["SnapshotId"] for s in locked} == {r["copy"] for r in rows}


def test_case_show_tells_where_an_item_comes_from(take, cloud):
    (row, _) = take().json["volumes"]
    chain = next(
        i["lineage"] for i in cloud("--json", "case", "show", "T-1").json["items"]
        if i["item"] == row["item"]
    )  # fmt: skip
    assert [(link["what"], link["id"]) for link in chain] == [
        ("volume", row["volume"]), ("snapshot", row["snapshot"]), ("share", AUDIT),
        ("copy", row["copy"]), ("item", row["item"]),
    ]  # fmt: skip
    assert all(isinstance(link["entry"], int) for link in chain)
    assert chain[0]["about"].startswith(f"{row['device']}, i-")
    assert "locked (governance) until " in chain[1]["about"]
    assert chain[-1]["about"] == "read whole and equal"
    shown = cloud("case", "show", "T-1").out
    assert f"→ copy {row['copy']} ({AUDIT}, locked (governance) until " in shown


def test_again_makes_nothing_and_reads_nothing(take, cloud, aws_server):
    take()
    calls = len(aws_server.calls())
    again = take()
    assert again.code == 0
    made = {s.operation for s in aws_server.calls()[calls:]}
    assert not made & {"CreateSnapshots", "CopySnapshot", "GetSnapshotBlock", "LockSnapshot"}
    assert len(cloud("--json", "item", "list", "T-1").json["items"]) == 2


def test_another_machine_finds_what_was_made(take, aws_server, monkeypatch, tmp_path):
    take()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other-state"))
    assert take().code == 0
    assert len(own(aws_server, MEMBER)) == len(own(aws_server, AUDIT)) == 2


def test_a_snapshot_that_was_deleted_since_is_not_made_anew(take, cloud, aws_server, zone):
    take("--no-copy")
    ec2 = aws_server.client("ec2", MEMBER)
    aws_server.advance(2 * 86400)  # the lock has ended
    for snapshot in own(aws_server, MEMBER):
        ec2.delete_snapshot(SnapshotId=snapshot["SnapshotId"])
    done = take("--no-copy")
    assert done.code == 3
    assert "not there any more" in done.out
    assert own(aws_server, MEMBER) == []


def test_a_volume_detached_after_the_freeze_is_still_taken(take, cloud, aws_server, zone, images):
    aws_server.faults.add(
        Fault("error", service="ebs", operation="ListSnapshotBlocks", status=403, times=None,
              code="AccessDeniedException", message="no")
    )  # fmt: skip
    assert take("--no-copy").code == 3
    aws_server.faults.clear()
    volume = zone.estate.volumes[1]
    aws_server.client("ec2", MEMBER).detach_volume(VolumeId=volume, Force=True)
    done = take("--no-copy")
    assert done.code == 0, done.out
    assert {r["volume"] for r in done.json["volumes"]} == set(zone.estate.volumes)
    assert stored(cloud) == digests(images)


@pytest.mark.chaos
def test_a_refused_lock_is_a_gap_and_the_bytes_are_taken(take, cloud, aws_server, images):
    aws_server.faults.add(
        Fault("error", service="ec2", operation="LockSnapshot", code="UnauthorizedOperation",
              status=403, message="no", times=None)
    )  # fmt: skip
    assert take("--no-copy").code == 3
    assert stored(cloud) == digests(images)


def test_one_volume_alone(cloud, zone, aws_server):
    target = zone.estate.variables()["VOLUMES"].split()[1]
    done = cloud("--json", "acquire", "volume", target, "--case", "T-1")
    assert done.code == 0, done.err
    assert len(own(aws_server, MEMBER)) == 1


def test_without_a_copy(take, aws_server):
    done = take("--no-copy")
    assert done.code == 0
    assert own(aws_server, AUDIT) == []
    assert not any(r["proved"] for r in done.json["volumes"])


@pytest.mark.chaos
@pytest.mark.parametrize("operation", ["CreateSnapshots", "CopySnapshot"])
def test_a_lost_answer_makes_no_second_snapshot(take, cloud, aws_server, images, operation):
    aws_server.faults.add(Fault("lost-answer", service="ec2", operation=operation))
    done = take()
    assert done.code == 0, done.err
    assert len(own(aws_server, MEMBER)) == len(own(aws_server, AUDIT)) == 2
    assert stored(cloud) == digests(images)


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("service", "operation", "code"),
    [
        ("ec2", "DescribeInstances", "UnauthorizedOperation"),
        ("ec2", "CreateSnapshots", "UnauthorizedOperation"),
        ("ec2", "LockSnapshot", "UnauthorizedOperation"),
        ("ec2", "ModifySnapshotAttribute", "UnauthorizedOperation"),
        ("ec2", "CopySnapshot", "UnauthorizedOperation"),
        ("kms", "GetKeyPolicy", "AccessDeniedException"),
        ("ebs", "ListSnapshotBlocks", "AccessDeniedException"),
    ],
)
def test_a_denial_is_one_clear_error_and_a_second_run_completes_it(
    take, cloud, aws_server, images, service, operation, code
):
    aws_server.faults.add(
        Fault("error", service=service, operation=operation, code=code, status=403,
              message="You are not authorized.", times=None)
    )  # fmt: skip
    done = take()
    assert done.code in (3, 12)
    assert "not authorized" in done.out + done.err
    assert "Traceback" not in done.err
    aws_server.faults.clear()
    again = take()
    assert again.code == 0, again.out + again.err
    assert stored(cloud) == digests(images)
    assert len(own(aws_server, MEMBER)) == len(own(aws_server, AUDIT)) == 2
    assert cloud("verify", "T-1").code in (0, 3)


@pytest.mark.chaos
def test_throttling_is_waited_out(take, cloud, aws_server, images):
    for service, operation, code in (
        ("ec2", "*", "RequestLimitExceeded"), ("ebs", "GetSnapshotBlock",
                                               "RequestThrottledException"),
    ):  # fmt: skip
        aws_server.faults.add(
            Fault("error", service=service, operation=operation, code=code, skip=2, times=2)
        )
    done = take()
    if done.code != 0:  # CreateSnapshots is never repeated blindly
        assert "RequestLimitExceeded" in done.err
        done = take()
    assert done.code == 0, done.out + done.err
    assert stored(cloud) == digests(images)


@pytest.mark.chaos
def test_a_corrupted_block_is_read_again(take, cloud, aws_server, images):
    aws_server.faults.add(Fault("corrupt", service="ebs", operation="GetSnapshotBlock", times=1))
    assert take().code == 0
    assert stored(cloud) == digests(images)


def test_a_block_that_stays_corrupted_is_a_gap_of_512_kib(take, cloud, aws_server, images):
    aws_server.faults.add(
        Fault("corrupt", service="ebs", operation="GetSnapshotBlock", account=MEMBER, times=None)
    )
    done = take()
    assert done.code == 3
    items = cloud("--json", "item", "list", "T-1").json["items"]
    assert {i["manifest"]["unreadable_bytes"] for i in items} == {3 << 19, 1 << 19}
    assert any("cannot be proved" in g for v in done.json["volumes"] for g in v["gaps"])


def test_a_key_without_grants_is_named_and_the_bytes_are_still_read(take, cloud, aws_server, zone,
                                                                    images):  # fmt: skip
    kms = aws_server.client("kms", MEMBER)
    kms.put_key_policy(
        KeyId=zone.estate.member_key, PolicyName="default",
        Policy='{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":'
        f'"arn:aws:iam::{MEMBER}:root"}},"Action":"kms:*","Resource":"*"}}]}}',
    )  # fmt: skip
    done = take()
    assert done.code == 3
    assert "kms:CreateGrant" in done.out
    assert stored(cloud) == digests(images)
    assert own(aws_server, AUDIT) == []


@pytest.mark.parametrize(
    ("target", "code", "word"),
    [
        ("i-0123456789abcdef0", 2, "ambiguous"),
        ("nonsense", 2, "not an instance"),
        ("arn:aws:ec2:eu-central-1::snapshot/snap-0123456789abcdef0", 2, "account"),
        ("arn:aws:ec2:eu-central-1:222222222222:instance/i-0123456789abcdef0", 12, "not exist"),
    ],
)
def test_wrong_targets(cloud, target, code, word):
    done = cloud("acquire", "volume", target, "--case", "T-1")
    assert done.code == code, done.err
    assert word in done.err


def test_settings_that_are_missing_are_said_before_anything_is_made(cloud, zone, home, aws_server):
    (home / "impound.toml").write_text("")
    done = cloud("acquire", "volume", zone.estate.variables()["INSTANCE"], "--case", "T-1")
    assert done.code == 14
    assert "aws.audit_account and aws.snapshot_key" in done.err
    assert own(aws_server, MEMBER) == []


def test_a_plan_only_looks_and_a_dry_run_prints_the_same(cloud, zone, aws_server):
    target = zone.estate.variables()["INSTANCE"]
    calls = len(aws_server.calls())
    planned = cloud("--json", "plan", "volume", target, "--case", "T-1")
    dry = cloud("--json", "acquire", "volume", target, "--case", "T-1", "--dry-run")
    assert (planned.code, planned.json) == (0, dry.json)
    made = {s.operation for s in aws_server.calls()[calls:]}
    assert not any(o.startswith(("Create", "Copy", "Lock", "Modify")) for o in made)
    steps = {s["step"]: s for s in planned.json["steps"]}
    assert list(steps) == ["observe", "freeze", "lock", "read", "copy", "prove"]
    assert steps["read"]["calls"]["GetSnapshotBlock"] == 2 * GIB // (512 << 10)
    assert steps["read"]["bytes"] == 2 * GIB
    assert planned.json["usd"] > 0
    assert "USD" in cloud("plan", "volume", target, "--case", "T-1", "--no-copy").out
    assert cloud("case", "show", "T-1").code == 0


class ManyVolumes:
    """An instance with 60 volumes, frozen at once."""

    observed = Observed(
        tuple(Volume(f"vol-{n:017x}", GIB, f"/dev/xvd{n}", "arn:aws:kms:" + "k" * 70, "z", "gp3")
              for n in range(60)),
        instance="i-0123456789abcdef0", state="running",
    )  # fmt: skip

    def observe(self, *_):
        return self.observed

    def describe(self, snapshot_id):
        return self.freeze()[snapshot_id.replace("snap", "vol")]

    def freeze(self, *_, **__):
        return {
            v.volume_id: Snapshot(
                v.volume_id.replace("vol", "snap"), v.volume_id, MEMBER, GIB, "completed", "",
                datetime(2026, 1, 1, tzinfo=UTC),
            )
            for v in self.observed.volumes
        }  # fmt: skip


def test_an_instance_with_many_volumes_fits_the_ledger(tmp_path, monkeypatch):
    case = make_world(tmp_path).case
    target = parse_target(f"arn:aws:ec2:{REGION}:{MEMBER}:instance/i-0123456789abcdef0")
    run = Run(case, None, Settings())
    monkeypatch.setattr(run, "ec2", lambda _account, _region: ManyVolumes())
    Freeze(run, target).take({})
    recorded = freeze.frozen(case, target.arn)
    assert len(recorded) == 60
    assert recorded["vol-" + "0" * 17] == "snap-" + "0" * 17


def test_what_ends_a_run_ends_the_waits_of_its_copies(tmp_path):
    case = make_world(tmp_path).case
    target = parse_target(f"arn:aws:ec2:{REGION}:{MEMBER}:instance/i-0123456789abcdef0")
    run = Acquisition(case, None, Settings(), target)
    run._run.sleep(0)
    run._stop_waiting(KeyboardInterrupt, None, None)
    with pytest.raises(Stopped):
        run._run.sleep(3600)
