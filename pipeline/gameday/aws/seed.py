# SPDX-License-Identifier: Apache-2.0
"""What a game day finds in the accounts: keys, evidence bucket, anchor bucket, sealer.

Made through the same interfaces as in production, so that a rule of the stand-in that forbids it
shows here first.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.gameday.aws.accounts import (
    AUDIT,
    EXECUTION_ROLE,
    LOG_ARCHIVE,
    MEMBER,
    REGION,
    RESPONDER_ROLE,
    SEALER_ROLE,
    Credentials,
    role_arn,
)
from pipeline.gameday.aws.conditions import conditions
from pipeline.gameday.aws.stand import Stand

EVIDENCE_BUCKET = "evidence"
ANCHOR_BUCKET = "anchor"
SEALER = "impound-sealer"
CUSTODIAN_ROLE = "impound-custodian"
ANCHOR_YEARS = 10
EXTERNAL_ID = "impound-gameday"
WEB = "web-server"
WORKSTATION = "impound-workstation"
IMAGE = "ami-0123456789abcdef0"
FLOW_LOGS = "/vpc/flow-logs"
CALLED, SERVED = "203.0.113.66", "198.51.100.20"  # peers of the instance: the first it called
_DEVICES = ("/dev/sda1", "/dev/sdf", "/dev/sdg", "/dev/sdh")
_GIB = 1 << 30

# moto treats a conditional Deny as a full one, so these stay out of the bucket policy.
LEFT_OUT = (
    "bucket policy: deny without TLS",
    "bucket policy: deny PutObject without if-none-match, the key or a lock mode",
    "bucket policy: deny tag changes of objects tagged `case`",
    "bucket policy: deny PutObjectLegalHold unless ON or custodian",
    "identity policies: every role may do everything in its own account",
)


@dataclass(frozen=True)
class Estate:
    """What a member account has: an instance, its volumes in the order of `images`, a snapshot.

    The instance has two interfaces, an Elastic IP and a role, and is the member of an Auto Scaling
    group of at least one, whose load balancer wants to reach it.

    `member_key` encrypts the volumes, `copy_key` of Audit is for copies; both by ARN.
    """

    instance: str
    volumes: tuple[str, ...]
    snapshot: str
    images: tuple[str, ...]
    member_key: str
    copy_key: str
    execution_role: str
    external_id: str

    def variables(self) -> dict[str, str]:
        """For a shell."""
        return {
            "INSTANCE": _arn("instance", self.instance),
            "VOLUMES": " ".join(_arn("volume", v) for v in self.volumes),
            "SNAPSHOT": _arn("snapshot", self.snapshot), "IMAGES": " ".join(self.images),
            "MEMBER_ACCOUNT": MEMBER, "MEMBER_KEY": self.member_key, "COPY_KEY": self.copy_key,
            "EXECUTION_ROLE": self.execution_role, "EXTERNAL_ID": self.external_id,
        }  # fmt: skip


def _arn(kind: str, name: str) -> str:
    """With the account, which AWS leaves out of a snapshot's: so that it says where it lies."""
    return f"arn:aws:ec2:{REGION}:{MEMBER}:{kind}/{name}"


@dataclass(frozen=True)
class Seeded:
    """What was made. Keys and the function by ARN; `estate` if there were images for it.

    `workstation`: settings of that table, name -> value.
    """

    bucket: str
    anchor: str
    store_key: str
    entry_key: str
    checkpoint_key: str
    sealer: str
    responder: Credentials
    estate: Estate | None = None
    workstation: Mapping[str, str] = field(default_factory=dict)

    @property
    def store(self) -> str:
        """Address of the store."""
        return f"s3://{self.bucket}"


def seed(stand: Stand, handler: str, images: Sequence[Path] = ()) -> Seeded:
    """Make it all.

    Args:
        stand: an empty stand-in.
        handler: `module:function` of the sealer.
        images: sparse files, the content of the volumes of an instance in the member account, four
            at most; they must not change any more. A volume has whole GiB: zeros follow.
    """
    kms = stand.client("kms", AUDIT)
    store_key = _key(kms, "evidence", _policy(
        _allow(_root(AUDIT), "kms:*"),
        _allow(role_arn(LOG_ARCHIVE, SEALER_ROLE), "kms:Decrypt", "kms:DescribeKey"),
    ))  # fmt: skip
    signing = {"KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY"}
    entry_key = _key(kms, "ledger entries", _policy(
        _allow(_root(AUDIT), "kms:*"),
        _allow(role_arn(LOG_ARCHIVE, SEALER_ROLE), "kms:GetPublicKey", "kms:DescribeKey"),
    ), **signing)  # fmt: skip
    # Nobody but the sealer signs with it, the account's own administrators included.
    checkpoint_key = _key(
        stand.client("kms", LOG_ARCHIVE), "checkpoints", _policy(
            _allow(_root(LOG_ARCHIVE), "kms:DescribeKey", "kms:GetPublicKey", "kms:GetKeyPolicy",
                   "kms:Verify"),
            _allow(role_arn(LOG_ARCHIVE, SEALER_ROLE), "kms:Sign", "kms:GetPublicKey"),
            _allow(_root(AUDIT), "kms:DescribeKey", "kms:GetPublicKey", "kms:Verify"),
        ), **signing,
    )  # fmt: skip
    _evidence_bucket(stand.client("s3", AUDIT), store_key)
    _bucket(stand.client("s3", LOG_ARCHIVE), ANCHOR_BUCKET)
    stand.client("s3", LOG_ARCHIVE).put_object_lock_configuration(
        Bucket=ANCHOR_BUCKET, ObjectLockConfiguration={
            "ObjectLockEnabled": "Enabled",
            "Rule": {"DefaultRetention": {"Mode": "COMPLIANCE", "Years": ANCHOR_YEARS}},
        },
    )  # fmt: skip
    sealer = stand.register(
        LOG_ARCHIVE, SEALER, handler, SEALER_ROLE, invokers=(AUDIT,),
        environment={
            "IMPOUND_EVIDENCE_STORE": f"s3://{EVIDENCE_BUCKET}",
            "IMPOUND_ANCHOR_BUCKET": ANCHOR_BUCKET,
            "IMPOUND_CHECKPOINT_KEY": checkpoint_key,
        },
    )  # fmt: skip
    responder = stand.credentials(AUDIT, RESPONDER_ROLE, "GAMEDAY.responder")
    _roles(stand)
    return Seeded(
        EVIDENCE_BUCKET, ANCHOR_BUCKET, store_key, entry_key, checkpoint_key, sealer, responder,
        estate(stand, images) if images else None, _workstation(stand, store_key),
    )  # fmt: skip


def _workstation(stand: Stand, volume_key: str) -> dict[str, str]:
    """What `audit.yaml` and the account have for workstations."""
    ec2, iam, ssm = (stand.client(name, AUDIT) for name in ("ec2", "iam", "ssm"))
    subnet = ec2.describe_subnets(
        Filters=[{"Name": "availability-zone", "Values": [f"{REGION}b"]}]
    )["Subnets"][0]
    group = ec2.create_security_group(
        GroupName="endpoints", Description="endpoints", VpcId=subnet["VpcId"]
    )["GroupId"]
    prefixes = ec2.create_managed_prefix_list(
        PrefixListName="s3", MaxEntries=1, AddressFamily="IPv4"
    )["PrefixList"]["PrefixListId"]
    iam.create_instance_profile(InstanceProfileName=WORKSTATION)
    for name, value in (("ami", IMAGE), ("settings", "# settings")):
        ssm.put_parameter(Name=f"/impound/{name}", Value=value, Type="String")
    return {
        "vpc": subnet["VpcId"], "subnet": subnet["SubnetId"], "endpoint_group": group,
        "s3_prefix_list": prefixes, "volume_key": volume_key,
    }  # fmt: skip


def _roles(stand: Stand) -> None:
    """The execution role is assumed by responders with the ExternalId, the others by accounts."""
    responder = {"AWS": role_arn(AUDIT, RESPONDER_ROLE)}
    for account, name, principal, condition in (
        (AUDIT, RESPONDER_ROLE, {"AWS": _root(AUDIT)}, {}),
        (LOG_ARCHIVE, SEALER_ROLE, {"Service": "lambda.amazonaws.com"}, {}),
        (MEMBER, EXECUTION_ROLE, responder, {"StringEquals": {"sts:ExternalId": EXTERNAL_ID}}),
    ):
        trust = {"Effect": "Allow", "Principal": principal, "Action": "sts:AssumeRole",
                 "Condition": condition}  # fmt: skip
        stand.client("iam", account).create_role(
            RoleName=name, AssumeRolePolicyDocument=_policy(trust)
        )


def lend(principal: str) -> list[dict[str, Any]]:
    """Return the least that another account needs of a key to copy and read what it encrypts.

    Source: EBS User Guide, "Share the KMS key that was used to encrypt a shared snapshot".
    """
    grant = _allow(principal, "kms:CreateGrant")
    return [
        _allow(principal, "kms:DescribeKey", "kms:Decrypt", "kms:ReEncrypt*",
               "kms:GenerateDataKey*"),
        grant | {"Condition": {"Bool": {"kms:GrantIsForAWSResource": True}}},
    ]  # fmt: skip


def estate(stand: Stand, images: Sequence[Path]) -> Estate:
    """Make an instance in the member account, its volumes under a key lent to Audit, a snapshot.

    Arguments: as of `seed`.
    """
    responder = role_arn(AUDIT, RESPONDER_ROLE)
    member_key = _key(stand.client("kms", MEMBER), "volumes", _policy(
        _allow(_root(MEMBER), "kms:*"), *lend(responder)
    ))  # fmt: skip
    copy_key = _key(stand.client("kms", AUDIT), "copies of volumes", _policy(
        _allow(_root(AUDIT), "kms:*")
    ))  # fmt: skip
    ec2 = stand.client("ec2", MEMBER)
    mappings: list[dict[str, Any]] = [
        {"DeviceName": device, "Ebs": {
            "VolumeSize": max(1, -(-image.stat().st_size // _GIB)), "VolumeType": "gp3",
            "Encrypted": True, "KmsKeyId": member_key, "DeleteOnTermination": device == _DEVICES[0],
        }} for device, image in zip(_DEVICES, images, strict=False)
    ]  # fmt: skip
    instance = _instance(stand, ec2, mappings)
    held = ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]
    volumes = {m["DeviceName"]: m["Ebs"]["VolumeId"] for m in held["BlockDeviceMappings"]}
    for device, image in zip(_DEVICES, images, strict=False):
        stand.fill(volumes[device], image)
    snapshot = ec2.create_snapshot(
        VolumeId=volumes[_DEVICES[0]], Description="nightly"
    )["SnapshotId"]  # fmt: skip
    ec2.get_waiter("snapshot_completed").wait(SnapshotIds=[snapshot])
    return Estate(
        instance, tuple(volumes[d] for d in _DEVICES if d in volumes), snapshot,
        tuple(str(i.absolute()) for i in images), member_key, copy_key,
        role_arn(MEMBER, EXECUTION_ROLE), EXTERNAL_ID,
    )  # fmt: skip


def _instance(stand: Stand, ec2: Any, mappings: list[dict[str, Any]]) -> str:
    """A web server: two interfaces, an address, a role; all that a group of one or more has."""
    iam = stand.client("iam", MEMBER)
    trust = {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"},
             "Action": "sts:AssumeRole"}  # fmt: skip
    iam.create_role(RoleName=WEB, AssumeRolePolicyDocument=_policy(trust))
    iam.create_instance_profile(InstanceProfileName=WEB)
    iam.add_role_to_instance_profile(InstanceProfileName=WEB, RoleName=WEB)
    subnet = ec2.describe_subnets(
        Filters=[{"Name": "availability-zone", "Values": [f"{REGION}a"]}]
    )["Subnets"][0]
    groups = [
        _group(ec2, subnet["VpcId"], name, port) for name, port in (("web", 443), ("admin", 22))
    ]
    made: str = ec2.run_instances(
        ImageId="ami-gameday", InstanceType="m6i.large", MinCount=1, MaxCount=1,
        SubnetId=subnet["SubnetId"], SecurityGroupIds=groups, IamInstanceProfile={"Name": WEB},
        InstanceInitiatedShutdownBehavior="terminate", BlockDeviceMappings=mappings,
        TagSpecifications=[{"ResourceType": "instance", "Tags": [
            {"Key": "Name", "Value": "web-1"},
            {"Key": "notification", "Value": "web-team@example.org"},
        ]}],
    )["Instances"][0]["InstanceId"]  # fmt: skip
    second = ec2.create_network_interface(SubnetId=subnet["SubnetId"], Groups=groups[1:])
    interface = second["NetworkInterface"]["NetworkInterfaceId"]
    ec2.attach_network_interface(InstanceId=made, NetworkInterfaceId=interface, DeviceIndex=1)
    address = ec2.allocate_address(Domain="vpc")["AllocationId"]
    ec2.associate_address(AllocationId=address, NetworkInterfaceId=interface)
    ec2.create_launch_template(LaunchTemplateName=WEB, LaunchTemplateData={
        "ImageId": "ami-gameday", "InstanceType": "m6i.large", "SecurityGroupIds": groups,
    })  # fmt: skip
    _flow_logs(stand, ec2, subnet["VpcId"], made)
    scaling = stand.client("autoscaling", MEMBER)
    scaling.create_auto_scaling_group(
        AutoScalingGroupName=WEB, LaunchTemplate={"LaunchTemplateName": WEB}, MinSize=0, MaxSize=2,
        DesiredCapacity=0, VPCZoneIdentifier=subnet["SubnetId"], HealthCheckType="ELB",
    )  # fmt: skip
    scaling.attach_instances(AutoScalingGroupName=WEB, InstanceIds=[made])
    scaling.update_auto_scaling_group(AutoScalingGroupName=WEB, MinSize=1)
    return made


def _flow_logs(stand: Stand, ec2: Any, vpc: str, instance: str) -> None:
    """The VPC logs its flows; the instance has called somebody, and served somebody."""
    logs = stand.client("logs", MEMBER)
    logs.create_log_group(logGroupName=FLOW_LOGS)
    ec2.create_flow_logs(
        ResourceType="VPC", ResourceIds=[vpc], TrafficType="ALL", LogGroupName=FLOW_LOGS,
        DeliverLogsPermissionArn=role_arn(MEMBER, "flow-logs"),
    )  # fmt: skip
    held = ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]
    interface = next(n for n in held["NetworkInterfaces"] if n["Attachment"]["DeviceIndex"] == 0)
    own = interface["PrivateIpAddress"]
    flow(logs, interface["NetworkInterfaceId"], own, CALLED, 49_152, 443)
    flow(logs, interface["NetworkInterfaceId"], SERVED, own, 50_000, 443)


def flow(
    logs: Any, interface: str, source: str, target: str, port: int, other: int, *, size: int = 4096,
    age: float = 60.0, action: str = "ACCEPT",
) -> None:  # fmt: skip
    """Log one flow that ended `age` seconds ago, as VPC flow logs do by default."""
    end = int(conditions.now() - age)
    stream = f"{interface}-all"
    with contextlib.suppress(logs.exceptions.ResourceAlreadyExistsException):
        logs.create_log_stream(logGroupName=FLOW_LOGS, logStreamName=stream)
    line = (
        f"2 {MEMBER} {interface} {source} {target} {port} {other} 6 9 {size} {end - 60} {end} "
        f"{action} OK"
    )
    logs.put_log_events(
        logGroupName=FLOW_LOGS, logStreamName=stream,
        logEvents=[{"timestamp": end * 1000, "message": line}],
    )  # fmt: skip


def _group(ec2: Any, vpc: str, name: str, port: int) -> str:
    made: str = ec2.create_security_group(GroupName=name, Description=name, VpcId=vpc)["GroupId"]
    ec2.authorize_security_group_ingress(GroupId=made, IpPermissions=[{
        "IpProtocol": "tcp", "FromPort": port, "ToPort": port,
        "IpRanges": [{"CidrIp": "0.0.0.0/0"}],
    }])  # fmt: skip
    return made


def _key(kms: Any, description: str, policy: str, **more: str) -> str:
    made = kms.create_key(
        Description=f"impound: {description}", Policy=policy,
        BypassPolicyLockoutSafetyCheck=True, **more,
    )  # fmt: skip
    arn: str = made["KeyMetadata"]["Arn"]
    return arn


def _bucket(s3: Any, name: str) -> None:
    s3.create_bucket(
        Bucket=name, ObjectLockEnabledForBucket=True,
        CreateBucketConfiguration={"LocationConstraint": REGION},
    )  # fmt: skip
    s3.put_public_access_block(Bucket=name, PublicAccessBlockConfiguration={
        "BlockPublicAcls": True, "IgnorePublicAcls": True, "BlockPublicPolicy": True,
        "RestrictPublicBuckets": True,
    })  # fmt: skip


def _evidence_bucket(s3: Any, key: str) -> None:
    _bucket(s3, EVIDENCE_BUCKET)
    rule = {
        "ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": key},
        "BucketKeyEnabled": True,
    }
    s3.put_bucket_encryption(
        Bucket=EVIDENCE_BUCKET, ServerSideEncryptionConfiguration={"Rules": [rule]}
    )
    bucket = f"arn:aws:s3:::{EVIDENCE_BUCKET}"
    s3.put_bucket_policy(Bucket=EVIDENCE_BUCKET, Policy=_policy(
        {"Sid": "NothingIsDeleted", "Effect": "Deny", "Principal": "*",
         "Action": ["s3:DeleteObject", "s3:DeleteObjectVersion"], "Resource": f"{bucket}/*"},
        {"Sid": "SealerReads", "Effect": "Allow",
         "Principal": {"AWS": role_arn(LOG_ARCHIVE, SEALER_ROLE)},
         "Action": ["s3:ListBucket", "s3:ListBucketVersions", "s3:GetObject",
                    "s3:GetObjectVersion"], "Resource": [bucket, f"{bucket}/*"]},
    ))  # fmt: skip


def _root(account: str) -> str:
    return f"arn:aws:iam::{account}:root"


def _allow(principal: str, *actions: str) -> dict[str, Any]:
    return {
        "Effect": "Allow", "Principal": {"AWS": principal}, "Action": list(actions),
        "Resource": "*",
    }  # fmt: skip


def _policy(*statements: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})
