# SPDX-License-Identifier: Apache-2.0
"""What each policy statement is for, as requests that are allowed and requests that are not."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.gameday.aws.accounts import AUDIT, LOG_ARCHIVE, MEMBER, REGION
from tests.infra.judge import ATTACKER, Case, admin, role
from tests.infra.kit import CONTAINMENT, CUSTODIAN, ORGANIZATION, SECRET

OTHER = "555555555555"
WORKSTATION = role(AUDIT, "impound-workstation")
INTAKE = role(AUDIT, "impound-intake")
EXECUTION = role(MEMBER, "impound-ExecutionRole")
SEALER = role(LOG_ARCHIVE, "impound-sealer")
GROUPS = role(MEMBER, "IsolationGroupsRole")
FORWARD = role(MEMBER, "ForwardRole")
PERSON = role(AUDIT, "acme-saml-securityresponse")
RESPONDER = role(MEMBER, "acme-saml-securityresponse")

EVIDENCE = "arn:aws:s3:::evidence"
OBJECT = f"{EVIDENCE}/cases/T-1/ledger/0000000000000000.note"
STORE = f"{EVIDENCE}/store.json"
ANCHORS, TRAIL = "arn:aws:s3:::anchorbucket", f"arn:aws:s3:::impound-trail-{LOG_ARCHIVE}-{REGION}"
LOGS = "arn:aws:s3:::accesslogbucket"


def key(account: str, name: str) -> str:
    return f"arn:aws:kms:{REGION}:{account}:key/{name}"


EVIDENCE_KEY, ENTRY_KEY, COPY_KEY, TOPIC_KEY = (
    key(AUDIT, n) for n in ("EvidenceKey", "EntryKey", "CopyKey", "TopicKey")
)
CHECKPOINT_KEY, EBS_KEY = key(LOG_ARCHIVE, "CheckpointKey"), key(MEMBER, "EbsKey")
VOLUME_KEY = key(MEMBER, "volumes")  # the account's own, whose policy names its root
QUEUE = f"arn:aws:sqs:{REGION}:{AUDIT}:impound-events"
TOPIC = f"arn:aws:sns:{REGION}:{AUDIT}:impound"
BUS = f"arn:aws:events:{REGION}:{AUDIT}:event-bus/impound"
SEALER_FUNCTION = f"arn:aws:lambda:{REGION}:{LOG_ARCHIVE}:function:impound-sealer"
EC2, EC2_MEMBER = f"arn:aws:ec2:{REGION}:{AUDIT}", f"arn:aws:ec2:{REGION}:{MEMBER}"
SNAPSHOT = f"arn:aws:ec2:{REGION}::snapshot/snap-0123456789abcdef0"
IMAGE = f"arn:aws:ec2:{REGION}::image/ami-0123456789abcdef0"


def ec2(account: str, kind: str) -> str:
    return f"arn:aws:ec2:{REGION}:{account}:{kind}/{kind}-0123456789abcdef0"


TLS = {"aws:SecureTransport": "true"}
PUT = {
    **TLS, "s3:if-none-match": "*", "s3:object-lock-mode": "COMPLIANCE",
    "s3:x-amz-server-side-encryption-aws-kms-key-id": EVIDENCE_KEY,
}  # fmt: skip
ON = {**TLS, "s3:object-lock-legal-hold": "ON"}
OFF = {**TLS, "s3:object-lock-legal-hold": "OFF"}
BY_EC2 = {"kms:ViaService": f"ec2.{REGION}.amazonaws.com"}
GRANT = {**BY_EC2, "kms:GrantIsForAWSResource": "true"}
QUARANTINED = {"aws:ResourceTag/incident-response": "quarantine:T-1"}
GROUP = {"aws:ResourceTag/Name": "impound-isolation"}
NONCE = {"aws:ResourceTag/impound-nonce": "0123"}


def _ask(
    expected: bool, who: str, actions: str, resource: str, *contexts: dict[str, object],
    **how: bool,
) -> Iterator[Case]:  # fmt: skip
    merged: dict[str, object] = {}
    for context in contexts:
        merged |= context
    frozen = tuple(sorted((k, tuple(v) if isinstance(v, list) else v) for k, v in merged.items()))
    for action in actions.split():
        yield Case(who, action, resource, expected, frozen, **how)  # type: ignore[arg-type]


def may(who: str, actions: str, resource: str, *contexts: dict, **how: bool) -> Iterator[Case]:
    return _ask(True, who, actions, resource, *contexts, **how)


def may_not(who: str, actions: str, resource: str, *contexts: dict, **how: bool) -> Iterator[Case]:
    return _ask(False, who, actions, resource, *contexts, **how)


def bucket() -> Iterator[Case]:
    """The evidence bucket, against whoever may do everything in its account."""
    boss = admin(AUDIT)
    yield from may(boss, "s3:PutObject", OBJECT, PUT, admin=True)
    yield from may_not(boss, "s3:PutObject s3:GetObject", OBJECT,
                       PUT | {"aws:SecureTransport": "false"}, admin=True)  # fmt: skip
    for missing in ("s3:if-none-match", "s3:object-lock-mode",
                    "s3:x-amz-server-side-encryption-aws-kms-key-id"):  # fmt: skip
        less = {k: v for k, v in PUT.items() if k != missing}
        yield from may_not(boss, "s3:PutObject", OBJECT, less, admin=True)
    yield from may_not(boss, "s3:PutObject", OBJECT, PUT,
                       {"s3:object-lock-mode": "GOVERNANCE"}, admin=True)  # fmt: skip
    yield from may_not(boss, "s3:PutObject", OBJECT, PUT, {
        "s3:x-amz-server-side-encryption-aws-kms-key-id": COPY_KEY}, admin=True)  # fmt: skip
    for who in (boss, CUSTODIAN):
        yield from may_not(who, "s3:DeleteObject s3:DeleteObjectVersion"
                           " s3:BypassGovernanceRetention", OBJECT, TLS, admin=True)  # fmt: skip
        yield from may_not(who, "s3:DeleteBucket s3:PutLifecycleConfiguration", EVIDENCE, TLS,
                           admin=True)  # fmt: skip
    tagged = {**TLS, "s3:ExistingObjectTag/case": "T-1"}
    yield from may(boss, "s3:PutObjectTagging", OBJECT, TLS, admin=True)
    yield from may_not(boss, "s3:PutObjectTagging s3:PutObjectVersionTagging"
                       " s3:DeleteObjectTagging s3:DeleteObjectVersionTagging", OBJECT, tagged,
                       admin=True)  # fmt: skip
    yield from may(boss, "s3:PutObjectLegalHold", OBJECT, ON, admin=True)
    yield from may(CUSTODIAN, "s3:PutObjectLegalHold", OBJECT, OFF, admin=True)
    yield from may_not(boss, "s3:PutObjectLegalHold", OBJECT, OFF, admin=True)
    for who in (ATTACKER, admin(LOG_ARCHIVE)):
        yield from may_not(who, "s3:GetObject s3:PutObject", OBJECT, PUT, admin=True)
    yield from may("logging.s3.amazonaws.com", "s3:PutObject", f"{LOGS}/evidence/x",
                   TLS, {"aws:SourceAccount": AUDIT})  # fmt: skip
    yield from may_not("logging.s3.amazonaws.com", "s3:PutObject", f"{LOGS}/evidence/x",
                       TLS, {"aws:SourceAccount": OTHER})  # fmt: skip
    yield from may_not(boss, "s3:GetObject", f"{LOGS}/evidence/x",
                       {"aws:SecureTransport": "false"}, admin=True)  # fmt: skip


_WRITE = "s3:PutObjectLegalHold s3:PutObjectRetention s3:PutObjectTagging"
_LIST = "s3:GetBucketObjectLockConfiguration s3:GetBucketVersioning s3:ListBucketVersions"


def writers() -> Iterator[Case]:
    """Workstation, intake, containment: what each keeps evidence with."""
    for who in (WORKSTATION, INTAKE, CONTAINMENT):
        for place in (OBJECT, STORE):
            yield from may(who, f"s3:PutObject {_WRITE}", place, PUT, ON)
            yield from may(who, "s3:GetObject s3:GetObjectVersion", place, TLS)
        yield from may(who, _LIST, EVIDENCE, TLS)
        yield from may_not(who, "s3:PutObject s3:GetObject", f"{EVIDENCE}/elsewhere", PUT)
        yield from may_not(who, "s3:PutBucketPolicy s3:PutBucketObjectLockConfiguration",
                           EVIDENCE, TLS)  # fmt: skip
        yield from may(who, "kms:Decrypt kms:GenerateDataKey", EVIDENCE_KEY)
        yield from may_not(who, "kms:Encrypt kms:PutKeyPolicy", EVIDENCE_KEY)
        yield from may(who, "kms:Sign kms:GetPublicKey", ENTRY_KEY)
        yield from may_not(who, "kms:Sign", CHECKPOINT_KEY)
    for who in (WORKSTATION, INTAKE):
        yield from may(who, "kms:GetPublicKey", CHECKPOINT_KEY)
    yield from may(WORKSTATION, "s3:GetObjectTagging", OBJECT, TLS)
    case = {"aws:PrincipalTag/case": "T-1"}
    yield from may(WORKSTATION, "s3:PutObject", OBJECT, PUT, case)
    yield from may(WORKSTATION, "s3:PutObject", STORE, PUT, case)
    yield from may_not(WORKSTATION, "s3:PutObject s3:GetObject s3:GetObjectVersion",
                       f"{EVIDENCE}/cases/T-2/x", PUT, case)  # fmt: skip
    yield from may(WORKSTATION, "secretsmanager:GetSecretValue", SECRET)
    yield from may_not(WORKSTATION, "secretsmanager:GetSecretValue", f"{SECRET}x")
    yield from may(INTAKE, "sqs:ReceiveMessage sqs:DeleteMessage sqs:GetQueueAttributes", QUEUE,
                   TLS)  # fmt: skip
    yield from may_not(INTAKE, "sqs:SendMessage", QUEUE, TLS)
    for who, account, name in ((INTAKE, AUDIT, "impound-intake"),
                               (SEALER, LOG_ARCHIVE, "impound-sealer"),
                               (GROUPS, MEMBER, "impound-isolation-groups")):  # fmt: skip
        stream = f"arn:aws:logs:{REGION}:{account}:log-group:/aws/lambda/{name}:log-stream:x"
        yield from may(who, "logs:CreateLogStream logs:PutLogEvents", stream)
        yield from may_not(who, "logs:PutLogEvents", stream.replace(name, "other"))


def acquisition() -> Iterator[Case]:
    """The workstation's work with snapshots and volumes of the Audit account."""
    yield from may(WORKSTATION, "sts:AssumeRole sts:SetSourceIdentity", EXECUTION,
                   {"sts:ExternalId": "impound-x", "aws:PrincipalArn": WORKSTATION})  # fmt: skip
    yield from may_not(WORKSTATION, "sts:AssumeRole", role(OTHER, "administrator"))
    yield from may(WORKSTATION, "ec2:DescribeInstances ec2:DescribeLockedSnapshots"
                   " ec2:DescribeSnapshots ec2:DescribeVolumes", "*")  # fmt: skip
    yield from may(WORKSTATION, "ec2:CopySnapshot ec2:LockSnapshot ec2:CreateVolume", SNAPSHOT)
    yield from may(WORKSTATION, "ec2:CreateVolume", ec2(AUDIT, "volume"))
    yield from may_not(WORKSTATION, "ec2:UnlockSnapshot ec2:DeleteSnapshot", SNAPSHOT)
    yield from may(WORKSTATION, "ec2:CreateTags", SNAPSHOT, {"ec2:CreateAction": "CopySnapshot"})
    yield from may(WORKSTATION, "ec2:CreateTags", ec2(AUDIT, "volume"),
                   {"ec2:CreateAction": "CreateVolume"})  # fmt: skip
    yield from may_not(WORKSTATION, "ec2:CreateTags", SNAPSHOT)
    for kind in ("instance", "volume"):
        yield from may(WORKSTATION, "ec2:AttachVolume ec2:DetachVolume", ec2(AUDIT, kind),
                       QUARANTINED)  # fmt: skip
        yield from may_not(WORKSTATION, "ec2:AttachVolume", ec2(AUDIT, kind))
    yield from may(WORKSTATION, "ebs:GetSnapshotBlock ebs:ListChangedBlocks"
                   " ebs:ListSnapshotBlocks", SNAPSHOT)  # fmt: skip
    use = ("kms:Decrypt kms:DescribeKey kms:GenerateDataKey kms:GenerateDataKeyWithoutPlaintext"
           " kms:ReEncryptFrom kms:ReEncryptTo")  # fmt: skip
    for each in (COPY_KEY, EBS_KEY):
        yield from may(WORKSTATION, use, each, BY_EC2)
        yield from may_not(WORKSTATION, "kms:Decrypt", each)
        yield from may(WORKSTATION, "kms:CreateGrant", each, GRANT)
        yield from may_not(WORKSTATION, "kms:CreateGrant", each, BY_EC2)
    for each in (VOLUME_KEY, EBS_KEY):
        yield from may(EXECUTION, use, each, BY_EC2)
        yield from may(EXECUTION, "kms:GetKeyPolicy kms:DescribeKey", each)
        yield from may_not(EXECUTION, "kms:Decrypt", each)
        yield from may(EXECUTION, "kms:CreateGrant", each, GRANT)
        yield from may_not(EXECUTION, "kms:CreateGrant", each, BY_EC2)
    yield from may_not(EXECUTION, "kms:GetKeyPolicy", key(OTHER, "x"))


def execution() -> Iterator[Case]:
    """The role in member accounts."""
    yield from may(
        EXECUTION,
        "autoscaling:DescribeAutoScalingGroups autoscaling:DescribeAutoScalingInstances"
        " cloudtrail:LookupEvents config:GetResourceConfigHistory ec2:DescribeAddresses"
        " ec2:DescribeIamInstanceProfileAssociations ec2:DescribeImages ec2:DescribeInstances"
        " ec2:DescribeInstanceStatus ec2:DescribeInstanceTypes ec2:DescribeLockedSnapshots"
        " ec2:DescribeNetworkAcls ec2:DescribeNetworkInterfaces ec2:DescribeSecurityGroupRules"
        " ec2:DescribeSecurityGroups ec2:DescribeSnapshots ec2:DescribeTags ec2:DescribeVolumes",
        "*",
    )
    yield from may(EXECUTION, "ec2:DescribeInstanceAttribute", ec2(MEMBER, "instance"))
    yield from may(EXECUTION, "ec2:DescribeSnapshotAttribute", SNAPSHOT)
    yield from may(EXECUTION, "ec2:ListImagesInRecycleBin ec2:ListSnapshotsInRecycleBin"
                   " ec2:ListVolumesInRecycleBin", "*")  # fmt: skip
    yield from may_not(EXECUTION, "ec2:RunInstances ec2:TerminateInstances",
                       ec2(MEMBER, "instance"))  # fmt: skip
    web = role(MEMBER, "web-server")
    yield from may(EXECUTION, "iam:GetInstanceProfile",
                   f"arn:aws:iam::{MEMBER}:instance-profile/web-server")  # fmt: skip
    yield from may(EXECUTION, "iam:GetRolePolicy iam:PutRolePolicy iam:DeleteRolePolicy", web)
    yield from may(EXECUTION, "iam:PassRole", web, {"iam:PassedToService": "ec2.amazonaws.com"})
    yield from may_not(EXECUTION, "iam:PassRole", web,
                       {"iam:PassedToService": "lambda.amazonaws.com"})  # fmt: skip
    user = f"arn:aws:iam::{MEMBER}:user/build"
    yield from may(EXECUTION, "iam:GetUserPolicy iam:PutUserPolicy iam:DeleteUserPolicy"
                   " iam:ListAccessKeys iam:UpdateAccessKey iam:GetAccessKeyLastUsed",
                   user)  # fmt: skip
    yield from may_not(EXECUTION, "iam:CreateAccessKey iam:AttachUserPolicy", user)
    yield from may(EXECUTION, "iam:ListInstanceProfilesForRole", web)
    yield from may(EXECUTION, "ec2:DescribeFlowLogs ec2:DescribeInstanceConnectEndpoints"
                   " sts:GetAccessKeyInfo backup:ListLegalHolds", "*")  # fmt: skip
    yield from may(EXECUTION, "backup:CreateLegalHold", "*")
    yield from may(EXECUTION, "backup:GetLegalHold",
                   f"arn:aws:backup:{REGION}:{MEMBER}:legal-hold:0123")  # fmt: skip
    yield from may_not(EXECUTION, "backup:CancelLegalHold",
                       f"arn:aws:backup:{REGION}:{MEMBER}:legal-hold:0123")  # fmt: skip
    yield from may(EXECUTION, "logs:FilterLogEvents",
                   f"arn:aws:logs:{REGION}:{MEMBER}:log-group:flow")  # fmt: skip
    flows = f"arn:aws:s3:::flows/AWSLogs/{MEMBER}/vpcflowlogs/x.gz"
    ours, theirs = {"aws:ResourceAccount": MEMBER}, {"aws:ResourceAccount": OTHER}
    yield from may(EXECUTION, "s3:GetObject", flows, ours)
    yield from may_not(EXECUTION, "s3:GetObject s3:PutObject", flows, theirs)
    yield from may_not(EXECUTION, "s3:GetObject", "arn:aws:s3:::flows/customers.csv", ours)
    yield from may(EXECUTION, "s3:ListBucket", "arn:aws:s3:::flows", ours)
    yield from may_not(EXECUTION, "s3:ListBucket", "arn:aws:s3:::flows", theirs)
    yield from may(EXECUTION, "kms:Decrypt", VOLUME_KEY,
                   {"kms:ViaService": f"s3.{REGION}.amazonaws.com"})  # fmt: skip
    yield from may(EXECUTION, "ec2-instance-connect:SendSSHPublicKey", ec2(MEMBER, "instance"))
    # OpenTunnel is in the same statement; the judge cannot tell its two kinds of resources apart.
    for name in ("impound-ExecutionRole", "aws-controltower-AdministratorExecutionRole",
                 "AWSControlTowerExecution", "acme-saml-securityresponse",
                 "aws-reserved/sso.amazonaws.com/AWSReservedSSO_Admin_0123"):  # fmt: skip
        yield from may_not(EXECUTION, "iam:PutRolePolicy iam:DeleteRolePolicy",
                           role(MEMBER, name))  # fmt: skip
        yield from may_not(EXECUTION, "iam:PassRole", role(MEMBER, name),
                           {"iam:PassedToService": "ec2.amazonaws.com"})  # fmt: skip
    yield from may_not(EXECUTION, "iam:AttachRolePolicy iam:CreateRole", web)
    for place in (SNAPSHOT, ec2(MEMBER, "instance"), ec2(MEMBER, "volume")):
        yield from may(EXECUTION, "ec2:CreateSnapshots", place)
    for place in (SNAPSHOT, ec2(MEMBER, "volume")):
        yield from may(EXECUTION, "ec2:CreateSnapshot ec2:CreateTags", place)
    yield from may(EXECUTION, "ec2:CopySnapshot ec2:LockSnapshot ec2:ModifySnapshotAttribute"
                   " ebs:GetSnapshotBlock ebs:ListChangedBlocks ebs:ListSnapshotBlocks"
                   " ec2:RestoreSnapshotFromRecycleBin", SNAPSHOT)  # fmt: skip
    yield from may(EXECUTION, "ec2:RestoreImageFromRecycleBin", IMAGE)
    yield from may(EXECUTION, "ec2:RestoreVolumeFromRecycleBin", ec2(MEMBER, "volume"))
    yield from may(EXECUTION, "ec2:DeleteSnapshot", SNAPSHOT, NONCE)
    yield from may_not(EXECUTION, "ec2:DeleteSnapshot ec2:UnlockSnapshot", SNAPSHOT)
    yield from may_not(EXECUTION, "ec2:CreateTags", ec2(MEMBER, "instance"))
    yield from may(EXECUTION, "ec2:ModifyInstanceAttribute ec2:AssociateIamInstanceProfile"
                   " ec2:DisassociateIamInstanceProfile", ec2(MEMBER, "instance"))  # fmt: skip
    yield from may(EXECUTION, "ec2:ModifyNetworkInterfaceAttribute ec2:AssociateAddress"
                   " ec2:DisassociateAddress", ec2(MEMBER, "network-interface"))  # fmt: skip
    yield from may(EXECUTION, "ec2:ModifyNetworkInterfaceAttribute",
                   ec2(MEMBER, "security-group"))  # fmt: skip
    yield from may(EXECUTION, "ec2:AssociateAddress", ec2(MEMBER, "elastic-ip"))
    yield from may(EXECUTION, "ec2:CreateNetworkAclEntry ec2:DeleteNetworkAclEntry",
                   ec2(MEMBER, "network-acl"))  # fmt: skip
    scaling = (f"arn:aws:autoscaling:{REGION}:{MEMBER}:autoScalingGroup:"
               "0123:autoScalingGroupName/web")  # fmt: skip
    yield from may(EXECUTION, "autoscaling:AttachInstances autoscaling:DetachInstances"
                   " autoscaling:EnterStandby autoscaling:ExitStandby"
                   " autoscaling:SetInstanceProtection", scaling)  # fmt: skip
    yield from may_not(EXECUTION, "autoscaling:DeleteAutoScalingGroup", scaling)
    group = ec2(MEMBER, "security-group")
    for who in (EXECUTION, GROUPS):
        yield from may(who, "ec2:CreateSecurityGroup", group)
        yield from may(who, "ec2:CreateSecurityGroup", ec2(MEMBER, "vpc"))
        yield from may(who, "ec2:CreateTags", group, {"ec2:CreateAction": "CreateSecurityGroup"})
        yield from may_not(who, "ec2:CreateTags", group)
        yield from may(who, "ec2:AuthorizeSecurityGroupEgress ec2:AuthorizeSecurityGroupIngress"
                       " ec2:RevokeSecurityGroupEgress", group, GROUP)  # fmt: skip
        yield from may_not(who, "ec2:AuthorizeSecurityGroupIngress ec2:DeleteSecurityGroup", group,
                           {"aws:ResourceTag/Name": "web"})  # fmt: skip
    yield from may(EXECUTION, "ec2:RevokeSecurityGroupIngress", group, GROUP)
    yield from may(GROUPS, "ec2:DescribeSecurityGroups ec2:DescribeVpcs", "*")
    yield from may(FORWARD, "events:PutEvents", BUS, {"aws:PrincipalOrgID": ORGANIZATION})
    yield from may_not(FORWARD, "events:PutEvents", BUS, {"aws:PrincipalOrgID": "o-0000000000"})


def trusts() -> Iterator[Case]:
    """Who may assume what."""
    for assumed in (INTAKE, SEALER, GROUPS, CONTAINMENT,
                    role(AUDIT, "aws-controltower-AuditReadOnlyRole")):  # fmt: skip
        yield from may("lambda.amazonaws.com", "sts:AssumeRole", assumed)
        yield from may_not("ec2.amazonaws.com", "sts:AssumeRole", assumed)
        yield from may_not(admin(AUDIT), "sts:AssumeRole", assumed, admin=True)
    yield from may("ec2.amazonaws.com", "sts:AssumeRole", WORKSTATION)
    tag = {"aws:RequestTag/case": "T-1", "aws:PrincipalArn": PERSON}
    yield from may(PERSON, "sts:AssumeRole sts:TagSession", WORKSTATION, tag, admin=True)
    yield from may_not(PERSON, "sts:AssumeRole", WORKSTATION, {"aws:PrincipalArn": PERSON},
                       admin=True)  # fmt: skip
    yield from may_not(admin(AUDIT), "sts:AssumeRole", WORKSTATION,
                       tag | {"aws:PrincipalArn": admin(AUDIT)}, admin=True)  # fmt: skip
    x = {"sts:ExternalId": "impound-x"}
    for who in (WORKSTATION, PERSON):
        named = {"aws:PrincipalArn": who}
        yield from may(who, "sts:AssumeRole", EXECUTION, x, named, admin=True)
        yield from may(who, "sts:SetSourceIdentity", EXECUTION, named, admin=True)
        yield from may_not(who, "sts:AssumeRole", EXECUTION, named, admin=True)
        yield from may_not(who, "sts:AssumeRole", EXECUTION, named, {"sts:ExternalId": "other"},
                           admin=True)  # fmt: skip
    for who in (admin(AUDIT), role(OTHER, "impound-workstation"), ATTACKER):
        yield from may_not(who, "sts:AssumeRole", EXECUTION, x, {"aws:PrincipalArn": who},
                           admin=True)  # fmt: skip
    for first, second in (("ReadOnly", "ReadOnly"), ("Administrator", "Administrator")):
        via = role(AUDIT, f"aws-controltower-Audit{first}Role")
        end = role(MEMBER, f"aws-controltower-{second}ExecutionRole")
        yield from may(via, "sts:AssumeRole", end)
        yield from may_not(WORKSTATION, "sts:AssumeRole", end, admin=True)
    yield from may_not(role(AUDIT, "aws-controltower-AuditReadOnlyRole"), "sts:AssumeRole",
                       role(MEMBER, "aws-controltower-AdministratorExecutionRole"))  # fmt: skip
    idp = f"arn:aws:iam::{MEMBER}:saml-provider/idp"
    for assumed in (RESPONDER, role(MEMBER, "acme-saml-securityaudit")):
        aud = {"SAML:aud": "https://signin.aws.amazon.com/saml"}
        yield from may(idp, "sts:AssumeRoleWithSAML", assumed, aud)
        yield from may_not(idp, "sts:AssumeRoleWithSAML", assumed, {"SAML:aud": "elsewhere"})
    yield from may("events.amazonaws.com", "sts:AssumeRole", FORWARD,
                   {"aws:SourceAccount": MEMBER})  # fmt: skip
    yield from may_not("events.amazonaws.com", "sts:AssumeRole", FORWARD,
                       {"aws:SourceAccount": OTHER})  # fmt: skip


def keys() -> Iterator[Case]:
    """Keys stay, and who signs."""
    for each in (EVIDENCE_KEY, ENTRY_KEY, COPY_KEY):
        yield from may_not(admin(AUDIT), "kms:ScheduleKeyDeletion kms:DisableKey", each,
                           admin=True)  # fmt: skip
        yield from may(CUSTODIAN, "kms:ScheduleKeyDeletion kms:DisableKey", each, admin=True)
        yield from may(admin(AUDIT), "kms:DescribeKey", each, admin=True)
        yield from may_not(admin(OTHER), "kms:Decrypt kms:Sign", each, admin=True)
    yield from may(admin(AUDIT), "kms:DescribeKey", TOPIC_KEY, admin=True)
    yield from may("cloudwatch.amazonaws.com", "kms:Decrypt kms:GenerateDataKey", TOPIC_KEY,
                   {"aws:SourceAccount": AUDIT})  # fmt: skip
    yield from may_not("cloudwatch.amazonaws.com", "kms:Decrypt", TOPIC_KEY,
                       {"aws:SourceAccount": OTHER})  # fmt: skip
    yield from may(admin(MEMBER), "kms:DescribeKey", EBS_KEY, admin=True)
    yield from may_not(admin(OTHER), "kms:Decrypt", EBS_KEY, BY_EC2, admin=True)
    yield from may(admin(LOG_ARCHIVE), "kms:DescribeKey kms:PutKeyPolicy", CHECKPOINT_KEY,
                   admin=True)  # fmt: skip
    for who in (admin(LOG_ARCHIVE), admin(AUDIT), CUSTODIAN):
        yield from may_not(who, "kms:Sign kms:ScheduleKeyDeletion kms:DisableKey", CHECKPOINT_KEY,
                           admin=True)  # fmt: skip
    yield from may(admin(AUDIT), "kms:GetPublicKey kms:Verify kms:DescribeKey", CHECKPOINT_KEY,
                   admin=True)  # fmt: skip


def sealing() -> Iterator[Case]:
    """The sealer, its anchors, the trail."""
    yield from may(SEALER, "kms:Sign kms:GetPublicKey", CHECKPOINT_KEY)
    for place in (OBJECT, STORE):
        yield from may(SEALER, "s3:GetObject s3:GetObjectVersion", place, TLS)
    yield from may_not(SEALER, "s3:PutObject", OBJECT, PUT)
    yield from may(SEALER, "s3:ListBucketVersions", EVIDENCE, TLS)
    yield from may(SEALER, "kms:Decrypt", EVIDENCE_KEY,
                   {"kms:ViaService": f"s3.{REGION}.amazonaws.com"})  # fmt: skip
    yield from may_not(SEALER, "kms:Decrypt", EVIDENCE_KEY, BY_EC2)
    yield from may_not(SEALER, "kms:Sign", ENTRY_KEY)
    named = {**TLS, "aws:PrincipalArn": SEALER}
    yield from may(SEALER, "s3:ListBucket", ANCHORS, named)
    yield from may(SEALER, "s3:GetObject s3:PutObject", f"{ANCHORS}/o/T-1/1.json", named)
    boss = {**TLS, "aws:PrincipalArn": admin(LOG_ARCHIVE)}
    yield from may(admin(LOG_ARCHIVE), "s3:GetObject", f"{ANCHORS}/o/x", boss, admin=True)
    yield from may_not(admin(LOG_ARCHIVE), "s3:PutObject", f"{ANCHORS}/o/x", boss, admin=True)
    yield from may_not(admin(LOG_ARCHIVE), "s3:DeleteObject s3:DeleteObjectVersion",
                       f"{ANCHORS}/o/x", boss, admin=True)  # fmt: skip
    plain = {**boss, "aws:SecureTransport": "false"}
    yield from may_not(admin(LOG_ARCHIVE), "s3:GetObject", f"{ANCHORS}/o/x", plain, admin=True)
    yield from may_not(admin(LOG_ARCHIVE), "s3:GetObject", f"{TRAIL}/x", plain, admin=True)
    ours = {**TLS, "aws:SourceArn": f"arn:aws:cloudtrail:{REGION}:{AUDIT}:trail/impound"}
    theirs = {**TLS, "aws:SourceArn": f"arn:aws:cloudtrail:{REGION}:{OTHER}:trail/impound"}
    yield from may("cloudtrail.amazonaws.com", "s3:GetBucketAcl", TRAIL, ours)
    yield from may("cloudtrail.amazonaws.com", "s3:PutObject", f"{TRAIL}/AWSLogs/{AUDIT}/x", ours)
    yield from may_not("cloudtrail.amazonaws.com", "s3:PutObject", f"{TRAIL}/AWSLogs/{AUDIT}/x",
                       theirs)  # fmt: skip
    yield from may_not("cloudtrail.amazonaws.com", "s3:GetBucketAcl", TRAIL, theirs)
    for who in (WORKSTATION, INTAKE):
        yield from may(who, "lambda:InvokeFunction", SEALER_FUNCTION)
        yield from may_not(who, "lambda:UpdateFunctionCode", SEALER_FUNCTION)


def messages() -> Iterator[Case]:
    """Bus, queue, topic, new VPCs."""
    groups = f"arn:aws:lambda:{REGION}:{MEMBER}:function:impound-isolation-groups"
    for rule, ask in (("NewVpcRule", may), ("other", may_not)):
        source = {"aws:SourceArn": f"arn:aws:events:{REGION}:{MEMBER}:rule/{rule}"}
        yield from ask("events.amazonaws.com", "lambda:InvokeFunction", groups, source)
    for rule in ("impound", "FindingsRule", "ForwardedRule"):
        source = {**TLS, "aws:SourceArn": f"arn:aws:events:{REGION}:{AUDIT}:rule/{rule}"}
        ask = may_not if rule == "impound" else may
        yield from ask("events.amazonaws.com", "sqs:SendMessage", QUEUE, source)
    yield from may_not(admin(AUDIT), "sqs:ReceiveMessage", QUEUE,
                       {"aws:SecureTransport": "false"}, admin=True)  # fmt: skip
    yield from may("cloudwatch.amazonaws.com", "sns:Publish", TOPIC, {"aws:SourceAccount": AUDIT})
    yield from may_not("cloudwatch.amazonaws.com", "sns:Publish", TOPIC,
                       {"aws:SourceAccount": OTHER})  # fmt: skip


def organisation() -> Iterator[Case]:
    """An administrator of a member account under the organisation's policies; and responders."""

    def asks(who: str, ask: object) -> Iterator[Case]:
        how = {"admin": True, "scp": True}
        me = {"aws:PrincipalArn": who}
        yield from ask(who, "ec2:CreateTags ec2:DeleteTags", ec2(MEMBER, "instance"), me,
                       {"aws:TagKeys": ["incident-response"]}, **how)  # fmt: skip
        yield from ask(who, "ec2:RevokeSecurityGroupIngress ec2:AuthorizeSecurityGroupEgress"
                       " ec2:DeleteSecurityGroup ec2:CreateTags", ec2(MEMBER, "security-group"),
                       me, GROUP, **how)  # fmt: skip
        yield from ask(who, "ec2:TerminateInstances ec2:ModifyInstanceAttribute"
                       " ec2:StartInstances", ec2(MEMBER, "instance"), me, QUARANTINED,
                       **how)  # fmt: skip
        yield from ask(who, "ec2:DeleteSnapshot", SNAPSHOT, me, QUARANTINED, **how)
        yield from ask(who, "ec2:UnlockSnapshot", SNAPSHOT, me, **how)
        yield from ask(who, "iam:PutRolePolicy iam:CreateRole iam:UpdateAssumeRolePolicy",
                       EXECUTION, me, **how)  # fmt: skip

    yield from asks(ATTACKER, may_not)
    yield from asks(RESPONDER, may)
    for who, ask in ((ATTACKER, may_not), (role(MEMBER, "stacksets-exec-0123"), may)):
        yield from ask(who, "kms:ScheduleKeyDeletion kms:PutKeyPolicy kms:DisableKey", EBS_KEY,
                       {"kms:ResourceAliases": ["alias/impound-ebs"], "aws:PrincipalArn": who},
                       admin=True, scp=True)  # fmt: skip
    me = {"aws:PrincipalArn": ATTACKER}
    yield from may(ATTACKER, "ec2:TerminateInstances", ec2(MEMBER, "instance"), me, admin=True,
                   scp=True)  # fmt: skip
    yield from may(ATTACKER, "ec2:CreateTags", ec2(MEMBER, "instance"), me,
                   {"aws:TagKeys": ["Name"]}, admin=True, scp=True)  # fmt: skip
    yield from may(ATTACKER, "kms:ScheduleKeyDeletion", VOLUME_KEY, me, admin=True, scp=True)
    yield from may(ATTACKER, "iam:PutRolePolicy", role(MEMBER, "web-server"), me, admin=True,
                   scp=True)  # fmt: skip


def cases() -> list[Case]:
    """All of them."""
    return [c for made in (bucket, writers, acquisition, execution, trusts, keys, sealing, messages,
                           organisation) for c in made()]  # fmt: skip
