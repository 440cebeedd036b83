# SPDX-License-Identifier: Apache-2.0
"""Snapshots: states, shares, copies under other keys, locks; one test a behaviour, both modes."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from pipeline.gameday.aws.accounts import AUDIT, LOG_ARCHIVE, MEMBER, REGION
from pipeline.gameday.aws.faults import Fault
from pipeline.gameday.aws.stand import StandError

DAY = 86_400


def one(ec2, snapshot_id):
    [found] = ec2.describe_snapshots(SnapshotIds=[snapshot_id])["Snapshots"]
    return found


def share(ec2, snapshot_id, account=AUDIT):
    ec2.modify_snapshot_attribute(
        SnapshotId=snapshot_id, Attribute="createVolumePermission", OperationType="add",
        UserIds=[account],
    )  # fmt: skip


def copied(ec2, snapshot_id, **more):
    return ec2.copy_snapshot(SourceSnapshotId=snapshot_id, SourceRegion=REGION, **more)[
        "SnapshotId"
    ]


# -- states


def test_pending_then_completed_by_polls(aws, member, volume):
    """EC2 API reference, CreateSnapshot and Snapshot: pending with a progress, then completed."""
    aws.behave(snapshot_polls=2)
    made = member.create_snapshot(VolumeId=volume({0: b"a"}), Description="d")
    assert (made["State"], made["OwnerId"], made["Description"]) == ("pending", MEMBER, "d")
    seen = [one(member, made["SnapshotId"]) for _ in range(3)]
    assert [(s["State"], s["Progress"]) for s in seen] == [
        ("pending", "33%"),
        ("pending", "66%"),
        ("completed", "100%"),
    ]
    assert "CompletionTime" in seen[2]
    assert seen[2]["FullSnapshotSizeInBytes"] == 524288


def test_pending_then_completed_by_time(aws, member, snapshot):
    """The same, by the clock of the stand-in."""
    aws.behave(snapshot_seconds=3600)
    made = snapshot()
    aws.advance(1800)
    seen = one(member, made)
    assert (seen["State"], seen["Progress"]) == ("pending", "50%")
    aws.advance(1801)
    assert one(member, made)["State"] == "completed"


def test_state_by_hand(aws, member, snapshot):
    """EC2 API reference, Snapshot: StateMessage tells why a snapshot is in error."""
    aws.behave(snapshot_polls=1)
    made = snapshot()
    aws.set_snapshot(made, "pending")
    for _ in range(3):
        assert (one(member, made)["State"], one(member, made)["Progress"]) == ("pending", "0%")
    aws.set_snapshot(made, "error", "Something failed")
    assert (one(member, made)["State"], one(member, made)["StateMessage"]) == (
        "error",
        "Something failed",
    )
    with pytest.raises(StandError, match="pending, completed or error"):
        aws.set_snapshot(made, "tired")
    with pytest.raises(StandError, match="no such snapshot"):
        aws.set_snapshot("snap-0", "error")


def test_five_pending_snapshots_of_a_volume(aws, member, volume, refused):
    """EBS User Guide, Quotas: 5 concurrent snapshots of a gp2 volume, 1 of an sc1 volume."""
    aws.behave(snapshot_polls=1)
    one_volume, other = volume(), volume()
    for _ in range(5):
        member.create_snapshot(VolumeId=one_volume)
    with refused("ConcurrentSnapshotLimitExceeded", 400):
        member.create_snapshot(VolumeId=one_volume)
    member.create_snapshot(VolumeId=other)
    member.describe_snapshots()
    member.create_snapshot(VolumeId=one_volume)  # the others are complete
    cold = volume(VolumeType="sc1", Size=125)
    member.create_snapshot(VolumeId=cold)
    with refused("ConcurrentSnapshotLimitExceeded", 400):
        member.create_snapshot(VolumeId=cold)


def test_twenty_copies_at_once(aws, member, snapshot, refused):
    """EBS User Guide, Quotas: 20 concurrent copies to a destination Region."""
    made = snapshot()
    aws.behave(snapshot_polls=1)
    for _ in range(20):
        copied(member, made)
    with refused("ResourceLimitExceeded", 400):
        copied(member, made)


# -- several volumes


def test_all_volumes_of_an_instance(aws, member, instance, blocks, padded, cmk):
    """EC2 API reference, CreateSnapshots: one point in time, one snapshot a volume."""
    key = cmk()
    i, (root, data) = instance(1, 2, key=key)
    aws.fill(root, {0: b"root"})
    aws.fill(data, {3: b"data"})
    made = member.create_snapshots(
        InstanceSpecification={"InstanceId": i}, Description="d",
        TagSpecifications=[{"ResourceType": "snapshot", "Tags": [{"Key": "case", "Value": "T"}]}],
    )["Snapshots"]  # fmt: skip
    assert [(s["VolumeId"], s["State"], s["VolumeSize"]) for s in made] == [
        (root, "pending", 1),
        (data, "pending", 2),
    ]
    assert len({s["StartTime"] for s in made}) == 1
    for each in made:
        seen = one(member, each["SnapshotId"])
        assert (seen["KmsKeyId"], seen["Tags"]) == (key, [{"Key": "case", "Value": "T"}])
    assert blocks(made[1]["SnapshotId"]) == {3: padded(b"data")}


def test_volumes_left_out(aws, member, instance, refused):
    """EC2 API reference, InstanceSpecification: ExcludeBootVolume, ExcludeDataVolumeIds."""
    i, (root, one_volume, other) = instance(1, 1, 1)
    without = {"InstanceId": i, "ExcludeDataVolumeIds": [other]}
    made = member.create_snapshots(InstanceSpecification=without)["Snapshots"]
    assert [s["VolumeId"] for s in made] == [root, one_volume]
    made = member.create_snapshots(InstanceSpecification={**without, "ExcludeBootVolume": True})
    assert [s["VolumeId"] for s in made["Snapshots"]] == [one_volume]
    with refused("InvalidParameterValue", 400):
        member.create_snapshots(
            InstanceSpecification={"InstanceId": i, "ExcludeDataVolumeIds": [root]}
        )


def test_tags_of_the_source(aws, member, instance):
    """EC2 API reference, CreateSnapshots, CopyTagsFromSource."""
    i, [root] = instance()
    member.create_tags(Resources=[root], Tags=[{"Key": "a", "Value": "1"}])
    spec = {"InstanceId": i}
    for more, expected in (
        ({}, []),
        ({"CopyTagsFromSource": "volume"}, [{"Key": "a", "Value": "1"}]),
    ):
        made = member.create_snapshots(InstanceSpecification=spec, **more)["Snapshots"]
        assert made[0]["Tags"] == expected


def test_all_or_none(aws, member, instance, refused):
    """One volume at its limit refuses the set, and nothing is left of it."""
    i, (_, data) = instance(1, 1)
    aws.behave(snapshot_polls=9)
    for _ in range(5):
        member.create_snapshot(VolumeId=data)
    with refused("ConcurrentSnapshotLimitExceeded", 400):
        member.create_snapshots(InstanceSpecification={"InstanceId": i})
    assert len(member.describe_snapshots(OwnerIds=["self"])["Snapshots"]) == 5


# -- sharing


@pytest.mark.parametrize("form", ["operation", "permission"])
def test_share_and_take_back(aws, member, audit, snapshot, refused, form):
    """EC2 API reference, ModifySnapshotAttribute: in both forms of the request."""
    made = snapshot()

    def modify(kind):
        if form == "operation":
            how = {"OperationType": kind, "UserIds": [AUDIT]}
        else:
            how = {"CreateVolumePermission": {kind.title(): [{"UserId": AUDIT}]}}
        member.modify_snapshot_attribute(SnapshotId=made, Attribute="createVolumePermission", **how)

    with refused("InvalidSnapshot.NotFound", 400):
        one(audit, made)
    modify("add")
    assert one(audit, made)["OwnerId"] == MEMBER
    got = member.describe_snapshot_attribute(SnapshotId=made, Attribute="createVolumePermission")
    assert got["CreateVolumePermissions"] == [{"UserId": AUDIT}]
    modify("remove")
    with refused("InvalidSnapshot.NotFound", 400):
        one(audit, made)


def test_shared_is_not_owned(aws, member, audit, snapshot, refused):
    """EBS User Guide, Share a snapshot: others use it, they do not change it; tags stay at home."""
    made = snapshot()
    member.create_tags(Resources=[made], Tags=[{"Key": "a", "Value": "1"}])
    share(member, made)
    assert one(audit, made).get("Tags", []) == []
    for operation in (
        lambda: audit.delete_snapshot(SnapshotId=made),
        lambda: audit.lock_snapshot(SnapshotId=made, LockMode="governance", LockDuration=1),
        lambda: share(audit, made, LOG_ARCHIVE),
    ):
        with refused("OperationNotPermitted", 400):
            operation()


def test_scopes(aws, member, audit, snapshot):
    """EC2 API reference, DescribeSnapshots: OwnerIds and RestorableByUserIds."""
    shared, own = snapshot(), snapshot()
    foreign = snapshot(account=AUDIT)
    share(member, shared)

    def seen(ec2, **scope):
        return {s["SnapshotId"] for s in ec2.describe_snapshots(**scope)["Snapshots"]}

    assert seen(audit) == {shared, foreign}
    assert seen(audit, OwnerIds=["self"]) == {foreign}
    assert seen(audit, OwnerIds=[MEMBER]) == {shared}
    assert seen(audit, RestorableByUserIds=["self"]) == {shared, foreign}
    assert seen(member, RestorableByUserIds=[AUDIT]) == {shared}
    assert seen(member, OwnerIds=["self"]) == {shared, own}
    assert seen(member, Filters=[{"Name": "status", "Values": ["completed"]}]) == {shared, own}


def test_default_key_is_not_shared(aws, member, snapshot, refused):
    """EBS User Guide, Share a snapshot: not under aws/ebs; encrypted ones never with all."""
    managed = snapshot(Encrypted=True)
    assert one(member, managed)["KmsKeyId"].startswith(f"arn:aws:kms:{REGION}:{MEMBER}:key/")
    with refused("OperationNotPermitted", 400) as caught:
        share(member, managed)
    assert "default key" in str(caught.value)


def test_public_snapshots(aws, member, audit, snapshot, cmk, refused):
    """EBS User Guide, Share a snapshot, Block public access: all, unless encrypted or blocked."""
    plain, secret = snapshot(), snapshot(KmsKeyId=cmk())
    public = {"CreateVolumePermission": {"Add": [{"Group": "all"}]}}
    with refused("OperationNotPermitted", 400):
        member.modify_snapshot_attribute(SnapshotId=secret, **public)
    assert member.get_snapshot_block_public_access_state()["State"] == "unblocked"
    member.enable_snapshot_block_public_access(State="block-new-sharing")
    assert member.get_snapshot_block_public_access_state()["State"] == "block-new-sharing"
    with refused("OperationNotPermitted", 400):
        member.modify_snapshot_attribute(SnapshotId=plain, **public)
    member.disable_snapshot_block_public_access()
    member.modify_snapshot_attribute(SnapshotId=plain, **public)
    seen = audit.describe_snapshots(RestorableByUserIds=["all"])["Snapshots"]
    assert [s["SnapshotId"] for s in seen] == [plain]


# -- copies


def test_copy_across_accounts(aws, member, audit, snapshot, lent, cmk, blocks, padded):
    """EBS User Guide, Copy a snapshot: share, source key, own key; re-encrypted, tags anew."""
    made = snapshot({0: b"a", 7: b"b"}, KmsKeyId=lent)
    share(member, made)
    own = cmk(account=AUDIT)
    copy = copied(
        audit, made, KmsKeyId=own, Encrypted=True, Description="d",
        TagSpecifications=[{"ResourceType": "snapshot", "Tags": [{"Key": "case", "Value": "T"}]}],
    )  # fmt: skip
    seen = one(audit, copy)
    assert (seen["State"], seen["OwnerId"], seen["KmsKeyId"]) == ("completed", AUDIT, own)
    assert (seen["VolumeId"], seen["VolumeSize"]) == ("vol-ffffffff", 1)
    assert (seen["Description"], seen["Tags"]) == ("d", [{"Key": "case", "Value": "T"}])
    assert blocks(copy, AUDIT) == {0: padded(b"a"), 7: padded(b"b")}
    member.delete_snapshot(SnapshotId=made)
    assert blocks(copy, AUDIT)[0] == padded(b"a")


def test_copy_needs_the_share(aws, member, audit, snapshot, lent, refused):
    """The same: what is not shared is not there."""
    made = snapshot(KmsKeyId=lent)
    with refused("InvalidSnapshot.NotFound", 400):
        copied(audit, made)


@pytest.mark.parametrize("missing", range(6))
def test_every_right_on_the_source_key(
    aws, member, audit, snapshot, cmk, allow, read_actions, missing
):
    """EBS User Guide, Share the KMS key: one right less, and the accepted copy ends in error."""
    del read_actions[missing]
    made = snapshot(KmsKeyId=cmk(allow(f"arn:aws:iam::{AUDIT}:root", *read_actions)))
    share(member, made)
    assert one(audit, copied(audit, made))["State"] == "error"


@pytest.mark.parametrize(
    "missing", ["DescribeKey", "GenerateDataKeyWithoutPlaintext", "ReEncryptTo", "CreateGrant"]
)
def test_every_right_on_the_destination_key(aws, member, audit, snapshot, allow, missing):
    """EBS User Guide, Copy a snapshot: the same for the key of the copy."""
    rights = {"DescribeKey", "GenerateDataKeyWithoutPlaintext", "ReEncryptTo", "CreateGrant"}
    root = f"arn:aws:iam::{AUDIT}:root"
    policy = {"Statement": [allow(root, *rights - {missing}, "PutKeyPolicy")]}
    key = aws.client("kms", AUDIT).create_key(Policy=json.dumps(policy))["KeyMetadata"]["Arn"]
    made = snapshot()
    share(member, made)
    assert one(audit, copied(audit, made, KmsKeyId=key, Encrypted=True))["State"] == "error"


def test_copy_without_the_source_key(aws, member, audit, snapshot, cmk):
    """EBS User Guide, Copy a snapshot: it fails silently, Given key ID is not accessible."""
    aws.behave(snapshot_polls=1)
    made = snapshot(KmsKeyId=cmk())
    share(member, made)
    aws.set_snapshot(made, "completed")
    copy = copied(audit, made)
    assert one(audit, copy)["State"] == "pending"
    seen = one(audit, copy)
    assert (seen["State"], seen["StateMessage"]) == ("error", "Given key ID is not accessible")


def test_copy_that_leaves_nothing_behind(aws, member, audit, snapshot, cmk, refused):
    """A KMS denial shown as NotFound (aws-ebs-csi-driver 2685)."""
    made = snapshot(KmsKeyId=cmk())
    share(member, made)
    aws.behave(snapshot_polls=1, kms_denial="gone")
    copy = copied(audit, made)
    assert one(audit, copy)["State"] == "pending"
    with refused("InvalidSnapshot.NotFound", 400):
        one(audit, copy)


@pytest.mark.parametrize("how", ["bogus", "disabled", "foreign", "signing"])
def test_copy_under_a_key_that_is_none(aws, member, audit, snapshot, cmk, how):
    """EC2 API reference, CopySnapshot, KmsKeyId: authenticated asynchronously."""
    made = snapshot()
    share(member, made)
    kms = aws.client("kms", AUDIT)
    key = {"bogus": "alias/none", "foreign": cmk(account=MEMBER)}.get(how)
    if how == "signing":
        made_key = kms.create_key(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY")
        key = made_key["KeyMetadata"]["Arn"]
    if how == "disabled":
        key = cmk(account=AUDIT)
        kms.disable_key(KeyId=key)
    copy = copied(audit, made, KmsKeyId=key, Encrypted=True)
    assert one(audit, copy)["StateMessage"] == "Given key ID is not accessible"


def test_copy_by_grant(aws, member, audit, snapshot, cmk, read_actions):
    """KMS Developer Guide, Grants: the key's owner can lend it without its policy."""
    key = cmk()
    made = snapshot(KmsKeyId=key)
    share(member, made)
    assert one(audit, copied(audit, made))["State"] == "error"
    aws.client("kms", MEMBER).create_grant(
        KeyId=key, GranteePrincipal=f"arn:aws:iam::{AUDIT}:root",
        Operations=read_actions,
    )  # fmt: skip
    assert one(audit, copied(audit, made))["State"] == "completed"


def test_grants_for_aws_resources_only(aws, member, audit, snapshot, cmk, allow, refused):
    """EBS User Guide, Share the KMS key: CreateGrant under kms:GrantIsForAWSResource suffices."""
    root = f"arn:aws:iam::{AUDIT}:root"
    key = cmk(
        allow(root, "DescribeKey", "Decrypt", "ReEncrypt*", "GenerateDataKey*"),
        allow(root, "CreateGrant", Bool={"kms:GrantIsForAWSResource": True}),
    )
    made = snapshot(KmsKeyId=key)
    share(member, made)
    assert one(audit, copied(audit, made))["State"] == "completed"
    with refused("AccessDeniedException", 400):
        aws.client("kms", AUDIT).create_grant(
            KeyId=key, GranteePrincipal=root, Operations=["Decrypt"]
        )


def test_rights_through_ec2_only(aws, member, audit, snapshot, cmk, allow, read_actions, refused):
    """KMS Developer Guide, kms:ViaService: EBS asks as ec2.REGION.amazonaws.com."""
    here = {"kms:ViaService": f"ec2.{REGION}.amazonaws.com"}
    root = f"arn:aws:iam::{AUDIT}:root"
    key = cmk(allow(root, *read_actions, StringEquals=here))
    made = snapshot(KmsKeyId=key)
    share(member, made)
    assert one(audit, copied(audit, made))["State"] == "completed"
    with refused("AccessDeniedException", 400):
        aws.client("kms", AUDIT).describe_key(KeyId=key)


def test_copy_of_a_pending_snapshot(aws, member, volume, refused):
    """EC2 API reference, Error codes, IncorrectState."""
    aws.behave(snapshot_polls=1)
    made = member.create_snapshot(VolumeId=volume())["SnapshotId"]
    with refused("IncorrectState", 400):
        copied(member, made)


def test_encryption_of_a_copy(aws, member, snapshot, cmk, refused):
    """EBS User Guide, Encryption and snapshot copying: key, default key, never less encrypted."""
    plain, key = snapshot(), cmk()
    assert one(member, copied(member, plain))["Encrypted"] is False
    with refused("InvalidParameterDependency", 400):
        copied(member, plain, KmsKeyId=key)
    secret = copied(member, plain, KmsKeyId=key, Encrypted=True)
    assert one(member, secret)["KmsKeyId"] == key
    with refused("InvalidParameterValue", 400):
        copied(member, secret, Encrypted=False)
    default = member.modify_ebs_default_kms_key_id(KmsKeyId=key)["KmsKeyId"]
    member.enable_ebs_encryption_by_default()
    assert one(member, copied(member, plain))["KmsKeyId"] == default == key


def test_default_key(aws, member, cmk):
    """EC2 API reference, GetEbsDefaultKmsKeyId: alias/aws/ebs until modified, and after reset."""
    assert member.get_ebs_default_kms_key_id()["KmsKeyId"] == "alias/aws/ebs"
    key = cmk()
    member.modify_ebs_default_kms_key_id(KmsKeyId=key)
    assert member.get_ebs_default_kms_key_id()["KmsKeyId"] == key
    assert member.reset_ebs_default_kms_key_id()["KmsKeyId"] == "alias/aws/ebs"


def test_answer_to_a_copy_is_lost(aws, member, snapshot):
    """CopySnapshot has no ClientToken: a lost answer leaves a copy that only its tags tell."""
    from botocore.exceptions import ConnectionClosedError

    made = snapshot()
    aws.faults.add(Fault("lost-answer", operation="CopySnapshot"))
    with pytest.raises(ConnectionClosedError):
        copied(member, made)
    assert len(member.describe_snapshots(OwnerIds=["self"])["Snapshots"]) == 2


# -- locks


def locked(ec2, snapshot_id):
    [found] = ec2.describe_locked_snapshots(SnapshotIds=[snapshot_id])["Snapshots"]
    return found


def test_governance_lock(aws, member, snapshot, refused):
    """EBS User Guide, Snapshot lock: no deletion; unlocked or expired it goes."""
    made, other = snapshot(), snapshot()
    for each in (made, other):
        done = member.lock_snapshot(SnapshotId=each, LockMode="governance", LockDuration=2)
        assert (done["LockState"], done["LockDuration"]) == ("governance", 2)
        with refused("OperationNotPermitted", 400):
            member.delete_snapshot(SnapshotId=each)
    member.unlock_snapshot(SnapshotId=made)
    assert member.describe_locked_snapshots(SnapshotIds=[made])["Snapshots"] == []
    member.delete_snapshot(SnapshotId=made)
    aws.advance(2 * DAY + 1)
    assert locked(member, other)["LockState"] == "expired"
    member.delete_snapshot(SnapshotId=other)


def test_compliance_lock(aws, member, snapshot, refused):
    """EC2 API reference, LockSnapshot: within the cooling-off it is undone, then only extended."""
    made = snapshot()
    how = {"SnapshotId": made, "LockMode": "compliance"}
    done = member.lock_snapshot(LockDuration=3, CoolOffPeriod=1, **how)
    assert done["LockState"] == "compliance-cooloff"
    assert done["CoolOffPeriodExpiresOn"] - done["LockCreatedOn"] == timedelta(hours=1)
    member.unlock_snapshot(SnapshotId=made)
    member.lock_snapshot(LockDuration=3, CoolOffPeriod=1, **how)
    aws.advance(3601)
    assert locked(member, made)["LockState"] == "compliance"
    for operation in (
        lambda: member.unlock_snapshot(SnapshotId=made),
        lambda: member.delete_snapshot(SnapshotId=made),
        lambda: member.lock_snapshot(SnapshotId=made, LockMode="governance", LockDuration=9),
        lambda: member.lock_snapshot(LockDuration=1, **how),
    ):
        with refused("OperationNotPermitted", 400):
            operation()
    assert member.lock_snapshot(LockDuration=9, **how)["LockState"] == "compliance"
    aws.advance(10 * DAY)
    member.delete_snapshot(SnapshotId=made)


def test_lock_of_a_pending_snapshot(aws, member, volume, refused):
    """EC2 API reference, LockDurationStartTime: it starts once the snapshot is completed."""
    aws.behave(snapshot_seconds=3600)
    made = member.create_snapshot(VolumeId=volume())["SnapshotId"]
    member.lock_snapshot(SnapshotId=made, LockMode="compliance", LockDuration=1)
    assert "LockDurationStartTime" not in locked(member, made)
    with refused("OperationNotPermitted", 400):
        member.delete_snapshot(SnapshotId=made)
    aws.advance(DAY)
    seen = locked(member, made)
    assert seen["LockState"] == "compliance"
    assert seen["LockExpiresOn"] - seen["LockDurationStartTime"] == timedelta(days=1)
    assert seen["LockDurationStartTime"] > seen["LockCreatedOn"]


def test_lock_until_a_date(aws, member, snapshot):
    """EC2 API reference, LockSnapshot, ExpirationDate; DescribeLockedSnapshots, lock-state."""
    made = snapshot()
    until = datetime.now(UTC) + timedelta(days=2)
    member.lock_snapshot(SnapshotId=made, LockMode="governance", ExpirationDate=until)
    assert abs(locked(member, made)["LockExpiresOn"] - until) < timedelta(seconds=1)
    for state, found in (("governance", 1), ("compliance", 0)):
        filters = [{"Name": "lock-state", "Values": [state]}]
        assert len(member.describe_locked_snapshots(Filters=filters)["Snapshots"]) == found


@pytest.mark.parametrize(
    "bad",
    [
        {"LockMode": "governance"},
        {"LockMode": "governance", "LockDuration": 1, "CoolOffPeriod": 1},
        {"LockMode": "governance", "LockDuration": 36501},
        {"LockMode": "compliance", "LockDuration": 1, "CoolOffPeriod": 73},
        {"LockMode": "governance", "ExpirationDate": datetime(2020, 1, 1, tzinfo=UTC)},
    ],
)
def test_lock_that_cannot_be(aws_in_process, bad):
    """EC2 API reference, LockSnapshot: days 1 to 36500, hours 1 to 72, one way to say the end."""
    from botocore.exceptions import ClientError

    member = aws_in_process.client("ec2", MEMBER)
    volume = member.create_volume(Size=1, AvailabilityZone=f"{REGION}a")["VolumeId"]
    made = member.create_snapshot(VolumeId=volume)["SnapshotId"]
    with pytest.raises(ClientError, match="InvalidParameter"):
        member.lock_snapshot(SnapshotId=made, **bad)


def test_policies_are_seen_later(aws, member, audit, snapshot, cmk, allow):
    """KMS Developer Guide, Eventual consistency: a new key policy is not in force at once."""
    key = cmk()
    made = snapshot(KmsKeyId=key)
    share(member, made)
    aws.behave(visibility=2)
    statements = [
        allow(f"arn:aws:iam::{MEMBER}:root", "*"),
        allow(f"arn:aws:iam::{AUDIT}:root", "DescribeKey"),
    ]
    aws.client("kms", MEMBER).put_key_policy(
        KeyId=key, PolicyName="default", Policy=json.dumps({"Statement": statements})
    )
    from botocore.exceptions import ClientError

    for _ in range(2):
        with pytest.raises(ClientError, match="AccessDenied"):
            aws.client("kms", AUDIT).describe_key(KeyId=key)
    assert aws.client("kms", AUDIT).describe_key(KeyId=key)


def test_copy_to_another_region(aws, member, snapshot, cmk):
    """EC2 API reference, CopySnapshot, SourceRegion: a key of the Region that it goes to."""
    made = snapshot({0: b"x"})
    there = aws.session(MEMBER).client("ec2", region_name="eu-west-1", endpoint_url=aws.endpoint)
    copy = copied(there, made, Encrypted=True)
    seen = one(there, copy)
    assert (seen["State"], seen["KmsKeyId"].split(":")[3]) == ("completed", "eu-west-1")
    wrong = copied(there, made, Encrypted=True, KmsKeyId=cmk())
    assert one(there, wrong)["State"] == "error"
    assert len(member.describe_snapshots(OwnerIds=["self"])["Snapshots"]) == 1
