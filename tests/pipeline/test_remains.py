# SPDX-License-Identifier: Apache-2.0
"""`acquire remains` over three accounts: what is left is found, held, taken; the rest is said."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from acquisition.remains import Piece
from acquisition.snapshot import NONCE_TAG, Lock, nonce
from pipeline.gameday.aws.accounts import MEMBER, REGION
from pipeline.gameday.aws.faults import Fault
from pipeline.remains import lock_of
from tests.evidence_store.kit import pattern
from tests.pipeline import landing_zone

GIB = 1 << 30
MAKING = {
    "CreateSnapshot", "CreateSnapshots", "CopySnapshot", "LockSnapshot", "CreateTags",
    "GetSnapshotBlock", "RestoreSnapshotFromRecycleBin", "RestoreVolumeFromRecycleBin",
    "RestoreImageFromRecycleBin",
}  # fmt: skip
DESTROYING = {"DeleteSnapshot", "DeleteVolume", "DeregisterImage", "TerminateInstances",
              "DeleteTags", "UnlockSnapshot"}  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two volumes of 1 GiB with a block of data each; nothing writes to them."""
    made = []
    for number in range(2):
        path = tmp_path_factory.mktemp("images") / f"volume{number}.img"
        with path.open("wb") as f:
            f.truncate(GIB)
            os.pwrite(f.fileno(), pattern(1 << 19, number + 1), number << 20)
        made.append(path)
    return made


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr("acquisition.remains.PAUSE_S", 0.01)


@pytest.fixture
def ec2(aws_server, zone):
    return aws_server.client("ec2", MEMBER)


@pytest.fixture
def instance(zone):
    return zone.estate.instance


@pytest.fixture
def volumes(zone):
    return zone.estate.volumes


@pytest.fixture
def rescue(cloud, zone):
    target = zone.estate.variables()["INSTANCE"]
    return lambda *more: cloud("--json", "acquire", "remains", target, "--case", "T-1", *more)


@pytest.fixture
def ends_with(ec2, instance):
    """Say which devices end with the instance, and end it."""

    def end(*devices):
        ec2.modify_instance_attribute(InstanceId=instance, BlockDeviceMappings=[
            {"DeviceName": d, "Ebs": {"DeleteOnTermination": d in devices}}
            for d in ("/dev/sda1", "/dev/sdf")
        ])  # fmt: skip
        ec2.terminate_instances(InstanceIds=[instance])

    return end


def deny(aws_server, operation, service="ec2"):
    aws_server.faults.add(
        Fault("error", service=service, operation=operation, times=None, status=403,
              code="UnauthorizedOperation" if service == "ec2" else "AccessDeniedException")
    )  # fmt: skip


def stored(cloud):
    items = cloud("--json", "item", "list", "T-1").json["items"]
    return {i["manifest"]["content"]["sha256"] for i in items if i["kind"] == "disk"}


def made_since(aws_server, calls):
    return {s.operation for s in aws_server.calls()[calls:]}


def locked(aws_server, account=MEMBER):
    found = aws_server.client("ec2", account).describe_locked_snapshots()["Snapshots"]
    return {s["SnapshotId"] for s in found}


BOTH = ("/dev/sda1", "/dev/sdf")


def test_only_a_volume_is_left(rescue, cloud, ec2, ends_with, images, volumes, zone, aws_server):
    aws_server.behave(config_recorder=1)
    ec2.delete_snapshot(SnapshotId=zone.estate.snapshot)
    ends_with("/dev/sda1")
    calls = len(aws_server.calls())
    done = rescue()
    assert done.code == 3, done.err
    assert [v["volume"] for v in done.json["lost"]] == [volumes[0]]
    assert stored(cloud) == {landing_zone.sha256(images[1])}
    [taken] = done.json["taken"]
    assert (taken["from"], taken["proved"]) == (volumes[1], True)
    [tags] = [v["Tags"] for v in ec2.describe_volumes(VolumeIds=[volumes[1]])["Volumes"]]
    assert {"Key": "incident-response", "Value": "quarantine:T-1"} in tags
    assert not made_since(aws_server, calls) & DESTROYING
    assert cloud("verify", "T-1", "--deep").code in (0, 3)


@pytest.mark.chaos
def test_a_response_to_what_has_ended_takes_what_is_left(
    cloud, ec2, ends_with, zone, images, aws_server
):
    aws_server.behave(config_recorder=1)
    ec2.delete_snapshot(SnapshotId=zone.estate.snapshot)
    ends_with("/dev/sda1")
    done = cloud("--json", "respond", "T-1", zone.estate.variables()["INSTANCE"])
    assert done.code == 3, done.err
    [line] = [x for x in done.json["steps"] if x["step"] == "remains"]
    assert any("is lost" in gap for gap in line["gaps"])
    assert stored(cloud) == {landing_zone.sha256(images[1])}
    assert {x["state"] for x in done.json["steps"] if x["step"] == "isolate"} == {"gap"}


def test_a_volume_that_only_the_moment_of_its_launch_names(
    rescue, cloud, ec2, ends_with, images, volumes, zone
):
    """Where AWS Config does not record: RunInstances names no volumes in CloudTrail."""
    ec2.delete_snapshot(SnapshotId=zone.estate.snapshot)
    ends_with("/dev/sda1")
    done = rescue("--no-copy")
    assert done.code == 3, done.err
    assert stored(cloud) == {landing_zone.sha256(images[1])}
    assert any(volumes[1] in g and "launch" in g for g in done.json["gaps"])


@pytest.mark.chaos
def test_only_an_old_snapshot_is_left(rescue, cloud, ends_with, images, volumes, zone, aws_server):
    aws_server.behave(config_recorder=1)
    ends_with(*BOTH)
    done = rescue()
    assert done.code == 3, done.err
    assert stored(cloud) == {landing_zone.sha256(images[0])}
    [taken] = done.json["taken"]
    assert (taken["from"], taken["volume"], taken["proved"]) == (
        zone.estate.snapshot, volumes[0], True
    )  # fmt: skip
    assert locked(aws_server) == {zone.estate.snapshot}
    [lost] = done.json["lost"]
    assert lost["volume"] == volumes[1]
    assert "DeleteOnTermination" in lost["why"]
    assert "TerminateInstances" in lost["why"]
    assert "gameday" in lost["why"]  # who


def test_the_newest_snapshot_is_taken_and_the_others_are_held(
    rescue, cloud, ec2, ends_with, images, volumes, zone, aws_server
):
    aws_server.behave(config_recorder=1)
    aws_server.write(volumes[0], {9: b"later"})
    aws_server.advance(1)  # moto answers whole seconds
    newest = ec2.create_snapshot(VolumeId=volumes[0])["SnapshotId"]
    ends_with(*BOTH)
    done = rescue("--no-copy")
    assert [t["from"] for t in done.json["taken"]] == [newest]
    assert locked(aws_server) == {zone.estate.snapshot, newest}


@pytest.mark.chaos
def test_only_an_image_is_left(rescue, cloud, ec2, ends_with, images, zone, instance):
    ec2.delete_snapshot(SnapshotId=zone.estate.snapshot)
    image = ec2.create_image(InstanceId=instance, Name="golden")["ImageId"]
    ends_with(*BOTH)
    done = rescue("--no-copy")
    assert done.code == 0, done.out + done.err
    assert stored(cloud) == {landing_zone.sha256(i) for i in images}
    assert {p["images"] for p in done.json["left"]} == {image}
    assert any(image in note.read_text() for note in Path("evidence").rglob("*.note"))


def test_what_may_be_anothers_is_locked_so_that_its_owner_can_take_it_back():
    wanted = Lock("compliance", 3)
    assert lock_of(Piece("snapshot", "snap-1"), wanted) == wanted
    assert lock_of(Piece("snapshot", "snap-2", doubt="by its name"), wanted).mode == "governance"


@pytest.fixture
def backed_up(aws_server, zone):
    """Recovery points of all volumes, or of the instance."""

    def make(*resources):
        aws_server.advance(1)  # moto answers whole seconds
        client = aws_server.client("backup", MEMBER)
        return [
            client.start_backup_job(
                BackupVaultName="daily", ResourceArn=r, IamRoleArn=f"arn:aws:iam::{MEMBER}:role/b"
            )["RecoveryPointArn"] for r in resources or zone.estate.variables()["VOLUMES"].split()
        ]  # fmt: skip

    return make


def test_recovery_points_are_held_and_taken_as_snapshots(
    rescue, ends_with, backed_up, aws_server, zone, volumes
):
    aws_server.behave(config_recorder=1)
    points = backed_up()
    ends_with("/dev/sda1", "/dev/sdf")
    for _ in range(2):
        done = rescue("--no-copy")
        assert {p["id"] for p in done.json["left"] if p["kind"] == "recovery-point"} == set(points)
        assert {k["id"] for k in done.json["kept"] if k["action"] == "hold"} == set(points)
        assert {t["snapshot"] for t in done.json["taken"]} == {
            p.rpartition("/")[2] for p in points
        }  # fmt: skip
        vaults = aws_server.client("backup", MEMBER)
        [listed] = vaults.list_legal_holds()["LegalHolds"]
        hold = vaults.get_legal_hold(LegalHoldId=listed["LegalHoldId"])
        assert (hold["Status"], zone.estate.instance in hold["Title"]) == ("ACTIVE", True)
        assert len(hold["RecoveryPointSelection"]["ResourceIdentifiers"]) == len(volumes)


@pytest.mark.chaos
def test_a_recovery_point_of_the_instance(rescue, ends_with, backed_up, zone, volumes):
    [point] = backed_up(zone.estate.variables()["INSTANCE"])
    ends_with("/dev/sda1", "/dev/sdf")
    done = rescue("--no-copy")
    assert [k["id"] for k in done.json["kept"] if k["action"] == "hold"] == [point]
    assert len(done.json["taken"]) == len(volumes)


@pytest.mark.chaos
@pytest.mark.parametrize("operation", ["CreateLegalHold", "ListRecoveryPointsByResource"])
def test_without_a_right_in_aws_backup(rescue, ends_with, backed_up, aws_server, operation):
    aws_server.behave(config_recorder=1)
    backed_up()
    ends_with("/dev/sda1", "/dev/sdf")
    aws_server.faults.add(Fault("error", service="backup", operation=operation, account=MEMBER,
                                code="AccessDeniedException", times=None))  # fmt: skip
    done = rescue("--no-copy")
    assert done.code == 3
    assert len(done.json["taken"]) == 2
    assert [g for g in done.json["gaps"] if "recovery points" in g]


def test_everything_is_gone(rescue, cloud, ec2, ends_with, zone, aws_server, instance):
    ec2.delete_snapshot(SnapshotId=zone.estate.snapshot)
    ends_with(*BOTH)
    done = rescue()
    assert done.code == 12
    assert "nothing of" in done.err
    assert "Recycle Bin" in done.err
    assert "NOT looked at" not in done.err
    assert done.json["taken"] == []
    assert done.json["ended"][-1]["call"] == "TerminateInstances"
    assert cloud("verify", "T-1").code in (0, 3)
    dry = rescue("--dry-run")
    assert dry.code == 12


def test_gone_and_not_allowed_to_look_are_told_apart(rescue, ec2, ends_with, zone, aws_server):
    ec2.delete_snapshot(SnapshotId=zone.estate.snapshot)
    ends_with(*BOTH)
    deny(aws_server, "ListSnapshotsInRecycleBin")
    done = rescue()
    assert done.code == 12
    assert "NOT looked at: snapshots in the Recycle Bin" in done.err
    [denied] = [s for s in done.json["searched"] if s["denied"]]
    assert "ListSnapshotsInRecycleBin" in denied["place"]
    assert any("not allowed to look at snapshots in the Recycle" in g for g in done.json["gaps"])


@pytest.mark.chaos
def test_a_snapshot_in_the_recycle_bin(rescue, cloud, ec2, ends_with, images, zone, aws_server):
    aws_server.behave(recycle_snapshots_days=7, config_recorder=1)
    ec2.delete_snapshot(SnapshotId=zone.estate.snapshot)
    ends_with(*BOTH)
    done = rescue()
    assert done.code == 3, done.err
    assert stored(cloud) == {landing_zone.sha256(images[0])}
    assert {"action": "restore", "id": zone.estate.snapshot} in done.json["kept"]
    assert locked(aws_server) == {zone.estate.snapshot}
    assert any(e["call"] == "DeleteSnapshot" for e in done.json["ended"])


@pytest.mark.chaos
def test_a_volume_in_the_recycle_bin_is_worth_more_than_its_snapshot(
    rescue, cloud, ends_with, images, volumes, aws_server
):
    aws_server.behave(recycle_volumes_days=7, config_recorder=1)
    ends_with(*BOTH)
    done = rescue("--no-copy")
    assert done.code == 0, done.out + done.err
    assert stored(cloud) == {landing_zone.sha256(i) for i in images}
    assert {t["from"] for t in done.json["taken"]} == set(volumes)


@pytest.mark.chaos
def test_an_image_and_its_snapshots_in_the_recycle_bin(
    rescue, cloud, ec2, ends_with, images, zone, instance, aws_server
):
    ec2.delete_snapshot(SnapshotId=zone.estate.snapshot)
    aws_server.behave(recycle_snapshots_days=7, recycle_images_days=7)
    image = ec2.create_image(InstanceId=instance, Name="golden")["ImageId"]
    [said] = ec2.describe_images(ImageIds=[image])["Images"]
    ec2.deregister_image(ImageId=image)
    for mapping in said["BlockDeviceMappings"]:
        ec2.delete_snapshot(SnapshotId=mapping["Ebs"]["SnapshotId"])
    ends_with(*BOTH)
    done = rescue("--no-copy")
    assert done.code == 0, done.out + done.err
    assert stored(cloud) == {landing_zone.sha256(i) for i in images}
    kept = [k["id"] for k in done.json["kept"] if k["action"] == "restore"]
    assert kept[-1] == image
    assert len(kept) == 3


@pytest.mark.chaos
def test_a_restored_snapshot_is_seen_late(rescue, cloud, ec2, ends_with, images, zone, aws_server):
    aws_server.behave(recycle_snapshots_days=7, config_recorder=1)
    ec2.delete_snapshot(SnapshotId=zone.estate.snapshot)
    ends_with(*BOTH)
    aws_server.behave(recycle_snapshots_days=7, config_recorder=1, visibility=6)
    done = rescue("--no-copy")
    assert done.code == 3, done.err
    assert stored(cloud) == {landing_zone.sha256(images[0])}


@pytest.mark.chaos
@pytest.mark.parametrize(
    "operation", ["RestoreSnapshotFromRecycleBin", "LockSnapshot", "CreateTags", "CreateSnapshot"]
)
def test_a_lost_answer(rescue, cloud, ec2, ends_with, images, zone, aws_server, volumes, operation):
    aws_server.behave(recycle_snapshots_days=7, config_recorder=1)
    ec2.delete_snapshot(SnapshotId=zone.estate.snapshot)
    ends_with("/dev/sda1")
    aws_server.faults.add(Fault("lost-answer", service="ec2", operation=operation))
    done = rescue("--no-copy")
    assert done.code == 0, done.out + done.err
    assert [h.operation for h in aws_server.faults.hits()] == [operation]
    assert stored(cloud) == {landing_zone.sha256(i) for i in images}
    made = ec2.describe_snapshots(
        OwnerIds=["self"], Filters=[{"Name": "volume-id", "Values": [volumes[1]]}]
    )["Snapshots"]
    assert len(made) == 1


@pytest.mark.chaos
def test_cloudtrail_denied_is_a_gap_and_the_others_go_on(
    rescue, cloud, ends_with, images, volumes, aws_server
):
    aws_server.behave(config_recorder=1)
    ends_with("/dev/sda1")
    deny(aws_server, "LookupEvents", "cloudtrail")
    done = rescue("--no-copy")
    assert done.code == 3
    assert stored(cloud) == {landing_zone.sha256(i) for i in images}
    assert [s["place"] for s in done.json["searched"] if s["denied"]] == [
        "CloudTrail event history (LookupEvents)"
    ]
    assert sum("not allowed to look at CloudTrail" in g for g in done.json["gaps"]) == 1


def test_gaps_are_recorded_once(rescue, cloud, ec2, ends_with, zone, aws_server):
    ec2.delete_snapshot(SnapshotId=zone.estate.snapshot)
    ends_with(*BOTH)
    for operation in ("ListSnapshotsInRecycleBin", "ListVolumesInRecycleBin"):
        deny(aws_server, operation)
    rescue()
    before = cloud("--json", "case", "show", "T-1").json["entries"]
    assert sum("not allowed" in str(e) for e in before) == 2
    rescue()
    assert cloud("--json", "case", "show", "T-1").json["entries"] == before


@pytest.mark.chaos
def test_a_second_run_makes_nothing_and_reads_nothing(rescue, cloud, ends_with, aws_server):
    aws_server.behave(recycle_volumes_days=7, config_recorder=1)
    ends_with("/dev/sda1")
    first = rescue()
    before = cloud("--json", "case", "show", "T-1").json
    calls = len(aws_server.calls())
    again = rescue()
    assert again.code == first.code == 0, first.out + again.out
    assert not made_since(aws_server, calls) & (MAKING | DESTROYING)
    after = cloud("--json", "case", "show", "T-1").json
    assert after["entries"] == before["entries"]


def test_a_run_that_was_cut_off_after_the_restore_is_finished(
    rescue, cloud, ec2, ends_with, images, zone, aws_server
):
    aws_server.behave(recycle_snapshots_days=7, config_recorder=1)
    ec2.delete_snapshot(SnapshotId=zone.estate.snapshot)
    ends_with(*BOTH)
    deny(aws_server, "DescribeSnapshots")
    cut = rescue("--no-copy")
    assert cut.code == 12, cut.out
    aws_server.faults.clear()
    done = rescue("--no-copy")
    assert done.code == 3, done.err
    assert stored(cloud) == {landing_zone.sha256(images[0])}


@pytest.mark.chaos
def test_a_forged_nonce_on_a_foreign_snapshot_is_not_taken(
    rescue, cloud, ec2, ends_with, images, volumes, zone, aws_server
):
    """Someone who can tag makes another volume's snapshot look like ours."""
    aws_server.behave(config_recorder=1)
    ec2.delete_snapshot(SnapshotId=zone.estate.snapshot)
    ends_with("/dev/sda1")
    deny(aws_server, "CreateSnapshot")
    assert rescue("--no-copy").code == 12  # the intent is recorded
    aws_server.faults.clear()
    store_id = json.loads(Path("evidence/store.json").read_text())["store_id"]
    arn = f"arn:aws:ec2:{REGION}:{MEMBER}:volume/{volumes[1]}"
    foreign = ec2.create_volume(Size=1, AvailabilityZone=f"{REGION}a")["VolumeId"]
    forged = ec2.create_snapshot(VolumeId=foreign, TagSpecifications=[
        {"ResourceType": "snapshot", "Tags": [
            {"Key": NONCE_TAG, "Value": nonce(store_id, "T-1", "freeze", arn)}]},
    ])["SnapshotId"]  # fmt: skip
    done = rescue("--no-copy")
    assert done.json["taken"][0]["snapshot"] != forged
    assert stored(cloud) == {landing_zone.sha256(images[1])}


def test_a_volume_that_goes_while_it_is_taken_gives_way_to_its_snapshot(
    rescue, cloud, ends_with, images, zone, volumes, aws_server
):
    """Between the search and the freeze somebody deletes it."""
    aws_server.behave(config_recorder=1)
    ends_with("/dev/sdf")
    aws_server.faults.add(
        Fault("error", service="ec2", operation="CreateSnapshot", status=400, times=None,
              code="InvalidVolume.NotFound", message="The volume does not exist.")
    )  # fmt: skip
    done = rescue("--no-copy")
    assert done.code == 3, done.err
    assert [t["from"] for t in done.json["taken"]] == [zone.estate.snapshot]
    assert stored(cloud) == {landing_zone.sha256(images[0])}
    assert any(volumes[0] in g and "does not exist" in g for g in done.json["gaps"])


@pytest.mark.chaos
def test_what_was_frozen_before_the_end_is_taken_first(
    rescue, cloud, ends_with, images, zone, aws_server
):
    """The instance is terminated while `acquire volume` is at work."""
    target = zone.estate.variables()["INSTANCE"]
    deny(aws_server, "ListSnapshotBlocks", "ebs")
    assert cloud("acquire", "volume", target, "--case", "T-1", "--no-copy").code == 3
    aws_server.faults.clear()
    ends_with(*BOTH)
    aws_server.advance(4000)  # not even listed any more
    done = rescue("--no-copy")
    assert done.code == 0, done.out + done.err
    assert done.json["state"] == ""
    assert stored(cloud) == {landing_zone.sha256(i) for i in images}


@pytest.mark.chaos
def test_an_instance_that_ec2_does_not_know_any_more(
    rescue, cloud, ec2, ends_with, images, volumes, aws_server
):
    aws_server.behave(config_recorder=1)
    ends_with()
    aws_server.advance(4000)
    done = rescue("--no-copy")
    assert done.code == 0, done.out + done.err
    assert done.json["state"] == ""
    assert done.json["ended"][0]["call"] == "TerminateInstances"
    assert {t["from"] for t in done.json["taken"]} == set(volumes)
    assert stored(cloud) == {landing_zone.sha256(i) for i in images}


@pytest.mark.chaos
def test_events_that_are_not_seen_yet(rescue, cloud, ends_with, images, aws_server):
    """CloudTrail is minutes late; what is there is taken all the same."""
    aws_server.behave(config_recorder=1, trail_seconds=900)
    ends_with()
    done = rescue("--no-copy")
    assert done.code == 0, done.out + done.err
    assert done.json["ended"] == []
    assert stored(cloud) == {landing_zone.sha256(i) for i in images}


def test_a_running_instance_is_not_searched_for(rescue):
    done = rescue()
    assert done.code == 12
    assert "acquire volume" in done.err


def test_a_deleted_volume(cloud, ec2, zone, volumes, images, ends_with, instance):
    ends_with("/dev/sdf")
    ec2.delete_volume(VolumeId=volumes[0])
    target = zone.estate.variables()["VOLUMES"].split()[0]
    done = cloud("--json", "acquire", "remains", target, "--case", "T-1", "--no-copy")
    assert done.code == 0, done.out + done.err
    assert stored(cloud) == {landing_zone.sha256(images[0])}
    assert done.json["ended"][-1]["call"] == "DeleteVolume"


def test_a_dry_run_only_looks(rescue, cloud, ends_with, volumes, zone, aws_server):
    ends_with("/dev/sda1")
    calls = len(aws_server.calls())
    before = cloud("--json", "case", "show", "T-1").json["entries"]
    dry = rescue("--dry-run")
    assert dry.code in (0, 3)
    assert not made_since(aws_server, calls) & (MAKING | DESTROYING)
    assert cloud("--json", "case", "show", "T-1").json["entries"] == before
    assert volumes[1] in dry.json["take"]
    assert {"action": "tag", "id": volumes[1]} in dry.json["holds"]


def test_a_description_that_names_the_instance_is_told(
    rescue, cloud, ec2, ends_with, instance, zone, aws_server
):
    ec2.delete_snapshot(SnapshotId=zone.estate.snapshot)
    foreign = ec2.create_volume(Size=1, AvailabilityZone=f"{REGION}a")["VolumeId"]
    named = ec2.create_snapshot(VolumeId=foreign, Description=f"of {instance}")["SnapshotId"]
    ends_with(*BOTH)
    done = rescue("--dry-run")
    [piece] = [p for p in done.json["left"] if p["id"] == named]
    assert "description" in piece["doubt"]
    assert any(named in g and "another's" in g for g in done.json["gaps"])


@pytest.mark.chaos
def test_cleanup_leaves_what_was_there_before_the_case(
    rescue, cloud, ec2, ends_with, zone, aws_server
):
    aws_server.behave(config_recorder=1)
    ends_with(*BOTH)
    rescue()
    aws_server.advance(2 * 86_400)  # the lock has ended
    cloud("acquire", "cleanup", "T-1", "--yes")
    [left] = ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]
    assert left["SnapshotId"] == zone.estate.snapshot
