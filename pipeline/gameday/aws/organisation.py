# SPDX-License-Identifier: Apache-2.0
"""A landing zone in which everything is in place before an incident, and defects to put into it.

    organise(stand, seeded)        what readiness looks for, on top of `seed`
    DEFECTS["guardduty"](made)     one thing that is wrong, named after the check that finds it

Everything through the interfaces that an administrator would use.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.gameday.aws.accounts import (
    AUDIT,
    EXECUTION_ROLE,
    LOG_ARCHIVE,
    MEMBER,
    REGION,
    RESPONDER_ROLE,
    role_arn,
)
from pipeline.gameday.aws.seed import (
    EVIDENCE_BUCKET,
    EXTERNAL_ID,
    Estate,
    Seeded,
    lend,
)
from pipeline.gameday.aws.stand import Stand

ACCOUNTS = (AUDIT, LOG_ARCHIVE, MEMBER)
LOGS = "logs-of-all-accounts"
NAMESPACE = "gameday"
CONTACT = "security@example.org"
PHONE = "+49 30 0000000"
FORENSICS_NETWORK = "10.99.0.0/24"
MEMBER_KEY = "alias/impound-ebs"
BUS, QUEUE, FORWARD = "impound", "impound-events", "impound-forward"
AMI_PARAMETER = "/impound/ami"
PROBE = "impound.readiness"
ENDPOINTS = ("ebs", "ec2", "kms", "lambda", "logs", "s3", "ssm", "ssmmessages", "sts")
_PAIRS = {
    "aws-controltower-AuditReadOnlyRole": "aws-controltower-ReadOnlyExecutionRole",
    "aws-controltower-AuditAdministratorRole": "aws-controltower-AdministratorExecutionRole",
}
_SAML = {"securityaudit": "SecurityAudit", "securityresponse": "AdministratorAccess"}
_TRAIL = "aws-controltower-BaselineCloudTrail"


@dataclass(frozen=True)
class Organisation:
    """What was made beside `seeded`. Networks as CIDR; ids as AWS gives them."""

    stand: Stand
    estate: Estate
    sources: tuple[str, ...]
    subnet: str
    endpoint_subnet: str
    snapshot_key: str
    log_key: str

    def client(self, service: str, account: str) -> Any:
        """A client in the Region of the landing zone."""
        return self.stand.client(service, account)

    def settings(self) -> list[str]:
        """Settings for it, TOML, all but the table `aws`."""
        return [
            "[readiness]",
            f'regions = ["{REGION}"]',
            f'namespace = "{NAMESPACE}"',
            f'contact_email = "{CONTACT}"',
            f'contact_phone = "{PHONE}"',
            f'subnets = ["{self.subnet}"]',
            f'flow_log_destination = "arn:aws:s3:::{LOGS}"',
        ]

    def aws_settings(self) -> list[str]:
        """Lines of the table `aws`."""
        quoted = ", ".join(f'"{s}"' for s in self.sources)
        return [f'member_key = "{MEMBER_KEY}"', f"isolation_sources = [{quoted}]"]


def organise(stand: Stand, seeded: Seeded, template: str = "") -> Organisation:
    """Put everything in place.

    Args:
        stand: as `seed` left it, with an estate.
        seeded: what `seed` made.
        template: of a forensics workstation, which was launched once; "": it never was.
    """
    if seeded.estate is None:
        raise ValueError("an organisation without an instance is not looked at")
    _more_roles(stand)
    log_key = _log_archive(stand)
    for account in ACCOUNTS:
        _watched(stand, account, log_key)
    subnet = _forensics(stand, template)
    _events(stand)
    sources, endpoint_subnet = _member(stand, seeded.estate)
    return Organisation(
        stand, seeded.estate, sources, subnet, endpoint_subnet, seeded.estate.copy_key, log_key
    )


def _more_roles(stand: Stand) -> None:
    """Every account is reached, federated roles and those of Control Tower are there."""
    iam = stand.client("iam", LOG_ARCHIVE)
    iam.create_role(RoleName=EXECUTION_ROLE, AssumeRolePolicyDocument=policy(
        _trust({"AWS": role_arn(AUDIT, RESPONDER_ROLE)}, {"sts:ExternalId": EXTERNAL_ID})
    ))  # fmt: skip
    for account in ACCOUNTS:
        iam = stand.client("iam", account)
        provider = iam.create_saml_provider(Name="idp", SAMLMetadataDocument="x" * 1024)
        for end, attached in _SAML.items():
            name = f"{NAMESPACE}-saml-{end}"
            trust = _trust({"Federated": provider["SAMLProviderArn"]}, {
                "SAML:aud": "https://signin.aws.amazon.com/saml"
            }, "sts:AssumeRoleWithSAML")  # fmt: skip
            iam.create_role(RoleName=name, AssumeRolePolicyDocument=policy(trust))
            iam.attach_role_policy(RoleName=name, PolicyArn=f"arn:aws:iam::aws:policy/{attached}")
        for first, second in _PAIRS.items():
            if account == AUDIT:
                trust = _trust({"Service": "lambda.amazonaws.com"})
                iam.create_role(RoleName=first, AssumeRolePolicyDocument=policy(trust))
            else:
                trust = _trust({"AWS": role_arn(AUDIT, first)})
                iam.create_role(RoleName=second, AssumeRolePolicyDocument=policy(trust))


def _log_archive(stand: Stand) -> str:
    stand.client("s3", LOG_ARCHIVE).create_bucket(
        Bucket=LOGS, CreateBucketConfiguration={"LocationConstraint": REGION}
    )
    made = stand.client("kms", LOG_ARCHIVE).create_key(
        Description="logs", Policy=policy(*_log_key_statements(), _reads_logs())
    )
    return str(made["KeyMetadata"]["Arn"])


def _log_key_statements() -> list[dict[str, Any]]:
    return [
        _allow({"AWS": f"arn:aws:iam::{LOG_ARCHIVE}:root"}, "kms:*"),
        _allow({"Service": "cloudtrail.amazonaws.com"}, "kms:GenerateDataKey*"),
    ]


def _reads_logs() -> dict[str, Any]:
    return _allow({"AWS": f"arn:aws:iam::{AUDIT}:root"}, "kms:Decrypt", "kms:DescribeKey")


def _watched(stand: Stand, account: str, log_key: str) -> None:
    """Contact, trail, detectors, recorder, flow logs."""
    stand.client("account", account).put_alternate_contact(
        AlternateContactType="SECURITY", Name="Security", Title="Incident response",
        EmailAddress=CONTACT, PhoneNumber=PHONE,
    )  # fmt: skip
    trail = stand.client("cloudtrail", account)
    trail.create_trail(
        Name=_TRAIL, S3BucketName=LOGS, IsMultiRegionTrail=True, EnableLogFileValidation=True,
        KmsKeyId=log_key,
    )  # fmt: skip
    trail.start_logging(Name=_TRAIL)
    stand.client("guardduty", account).create_detector(Enable=True)
    stand.client("securityhub", account).enable_security_hub()
    config = stand.client("config", account)
    config.put_configuration_recorder(ConfigurationRecorder={
        "name": "default", "roleARN": role_arn(account, "config"),
        "recordingGroup": {"allSupported": True, "includeGlobalResourceTypes": True},
    })  # fmt: skip
    config.put_delivery_channel(DeliveryChannel={"name": "default", "s3BucketName": LOGS})
    config.start_configuration_recorder(ConfigurationRecorderName="default")
    ec2 = stand.client("ec2", account)
    for vpc in ec2.describe_vpcs()["Vpcs"]:
        ec2.create_flow_logs(
            ResourceIds=[vpc["VpcId"]], ResourceType="VPC", TrafficType="ALL",
            LogDestinationType="s3", LogDestination=f"arn:aws:s3:::{LOGS}",
        )  # fmt: skip


def _forensics(stand: Stand, template: str) -> str:
    """Subnet with its endpoints, image, a rehearsed template; return the subnet."""
    ec2 = stand.client("ec2", AUDIT)
    subnet = ec2.describe_subnets()["Subnets"][0]
    name, vpc = subnet["SubnetId"], subnet["VpcId"]
    ec2.modify_subnet_attribute(SubnetId=name, MapPublicIpOnLaunch={"Value": False})
    for service in ENDPOINTS:
        kind = "Gateway" if service == "s3" else "Interface"
        ec2.create_vpc_endpoint(
            VpcId=vpc, ServiceName=f"com.amazonaws.{REGION}.{service}", VpcEndpointType=kind
        )
    key = stand.client("kms", AUDIT).create_key(Description="forensics AMI")
    started = ec2.run_instances(
        ImageId="ami-base", InstanceType="m6i.large", MinCount=1, MaxCount=1, SubnetId=name,
        BlockDeviceMappings=[{"DeviceName": "/dev/sda1", "Ebs": {
            "VolumeSize": 8, "Encrypted": True, "KmsKeyId": key["KeyMetadata"]["Arn"],
        }}],
    )["Instances"][0]["InstanceId"]  # fmt: skip
    image = ec2.create_image(InstanceId=started, Name="impound-forensics")["ImageId"]
    ec2.terminate_instances(InstanceIds=[started])
    stand.client("ssm", AUDIT).put_parameter(
        Name=AMI_PARAMETER, Value=image, Type="String", Overwrite=True
    )
    if template:
        cloudformation = stand.client("cloudformation", AUDIT)
        cloudformation.create_stack(StackName="impound-REHEARSAL", TemplateBody=template)
        cloudformation.delete_stack(StackName="impound-REHEARSAL")
    return str(name)


def _events(stand: Stand) -> None:
    events, sqs = stand.client("events", AUDIT), stand.client("sqs", AUDIT)
    bus = events.create_event_bus(Name=BUS)["EventBusArn"]
    url = sqs.create_queue(QueueName=QUEUE)["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]
    events.put_rule(Name="forwarded", EventBusName=BUS,
                    EventPattern=json.dumps({"source": [{"prefix": ""}]}))  # fmt: skip
    events.put_targets(Rule="forwarded", EventBusName=BUS,
                       Targets=[{"Id": "intake", "Arn": arn["QueueArn"]}])  # fmt: skip
    member = stand.client("events", MEMBER)
    pattern = {"source": ["aws.tag", "aws.ec2", PROBE]}
    member.put_rule(Name=FORWARD, EventPattern=json.dumps(pattern))
    member.put_targets(Rule=FORWARD, Targets=[{"Id": "audit", "Arn": bus}])


def _member(stand: Stand, estate: Estate) -> tuple[tuple[str, ...], str]:
    """Key, isolation group, endpoint; return the sources and the endpoint's subnet."""
    kms = stand.client("kms", MEMBER)
    own = _allow({"AWS": f"arn:aws:iam::{MEMBER}:root"}, "kms:*")
    made = kms.create_key(
        Description="impound: snapshots", Policy=policy(own, *lend(f"arn:aws:iam::{AUDIT}:root"))
    )
    kms.create_alias(AliasName=MEMBER_KEY, TargetKeyId=made["KeyMetadata"]["KeyId"])
    ec2 = stand.client("ec2", MEMBER)
    ec2.create_tags(Resources=[estate.instance],
                    Tags=[{"Key": "impound-login", "Value": "EC2 Instance Connect"}])  # fmt: skip
    subnet = ec2.describe_subnets()["Subnets"][0]
    sources = (FORENSICS_NETWORK, str(subnet["CidrBlock"]))
    for vpc in ec2.describe_vpcs()["Vpcs"]:
        group = ec2.create_security_group(
            GroupName="impound-isolation", Description="isolation", VpcId=vpc["VpcId"]
        )["GroupId"]
        everything = [{"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]
        ec2.revoke_security_group_egress(GroupId=group, IpPermissions=everything)
        ec2.authorize_security_group_egress(GroupId=group, IpPermissions=[
            {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "127.0.0.1/32"}]}
        ])  # fmt: skip
        ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[
            {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22,
             "IpRanges": [{"CidrIp": s} for s in sources]}
        ])  # fmt: skip
    ec2.create_instance_connect_endpoint(SubnetId=subnet["SubnetId"])
    return sources, str(subnet["SubnetId"])


# -- defects -----------------------------------------------------------------------------------


def _bucket_lock(made: Organisation) -> None:
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
    made.client("s3", AUDIT).put_bucket_encryption(
        Bucket=EVIDENCE_BUCKET, ServerSideEncryptionConfiguration={"Rules": [rule]}
    )


def _bucket_policy(made: Organisation) -> None:
    made.client("s3", AUDIT).delete_bucket_policy(Bucket=EVIDENCE_BUCKET)


def _bucket_public(made: Organisation) -> None:
    made.client("s3", AUDIT).put_public_access_block(
        Bucket=EVIDENCE_BUCKET, PublicAccessBlockConfiguration={
            "BlockPublicAcls": True, "IgnorePublicAcls": True, "BlockPublicPolicy": False,
            "RestrictPublicBuckets": True,
        },
    )  # fmt: skip


def _keys(made: Organisation) -> None:
    made.client("kms", AUDIT).schedule_key_deletion(KeyId=made.snapshot_key, PendingWindowInDays=30)


def _subnet(made: Organisation) -> None:
    ec2 = made.client("ec2", AUDIT)
    ends = ec2.describe_vpc_endpoints()["VpcEndpoints"]
    gone = [e["VpcEndpointId"] for e in ends if e["ServiceName"].endswith((".kms", ".sts"))]
    ec2.delete_vpc_endpoints(VpcEndpointIds=gone)


def _ami(made: Organisation) -> None:
    made.client("ssm", AUDIT).delete_parameter(Name=AMI_PARAMETER)


def _quotas(made: Organisation) -> None:
    made.client("service-quotas", AUDIT).request_service_quota_increase(
        ServiceCode="ec2", QuotaCode="L-1216C47A", DesiredValue=5.0
    )


def _way(made: Organisation) -> None:
    made.client("iam", MEMBER).update_assume_role_policy(
        RoleName=EXECUTION_ROLE,
        PolicyDocument=policy(_trust({"AWS": role_arn(AUDIT, "another")})),
    )


def _automation_roles(made: Organisation) -> None:
    iam, name = made.client("iam", MEMBER), "aws-controltower-ReadOnlyExecutionRole"
    for attached in iam.list_attached_role_policies(RoleName=name)["AttachedPolicies"]:
        iam.detach_role_policy(RoleName=name, PolicyArn=attached["PolicyArn"])
    iam.delete_role(RoleName=name)


def _contact(made: Organisation) -> None:
    made.client("account", MEMBER).delete_alternate_contact(AlternateContactType="SECURITY")


def _saml_roles(made: Organisation) -> None:
    made.client("iam", MEMBER).detach_role_policy(
        RoleName=f"{NAMESPACE}-saml-securityaudit",
        PolicyArn="arn:aws:iam::aws:policy/SecurityAudit",
    )


def _cloudtrail(made: Organisation) -> None:
    made.client("cloudtrail", MEMBER).stop_logging(Name=_TRAIL)


def _log_key(made: Organisation) -> None:
    made.client("kms", LOG_ARCHIVE).put_key_policy(
        KeyId=made.log_key, PolicyName="default", Policy=policy(*_log_key_statements())
    )


def _guardduty(made: Organisation) -> None:
    client = made.client("guardduty", MEMBER)
    client.update_detector(DetectorId=client.list_detectors()["DetectorIds"][0], Enable=False)


def _securityhub(made: Organisation) -> None:
    made.client("securityhub", MEMBER).disable_security_hub()


def _config(made: Organisation) -> None:
    made.client("config", MEMBER).stop_configuration_recorder(ConfigurationRecorderName="default")


def _flow_logs(made: Organisation) -> None:
    ec2 = made.client("ec2", MEMBER)
    ec2.delete_flow_logs(FlowLogIds=[f["FlowLogId"] for f in ec2.describe_flow_logs()["FlowLogs"]])


def _member_key(made: Organisation) -> None:
    own = _allow({"AWS": f"arn:aws:iam::{MEMBER}:root"}, "kms:*")
    kms = made.client("kms", MEMBER)
    arn = kms.describe_key(KeyId=MEMBER_KEY)["KeyMetadata"]["Arn"]
    kms.put_key_policy(KeyId=arn, PolicyName="default", Policy=policy(own))


def _volumes(made: Organisation) -> None:
    own = _allow({"AWS": f"arn:aws:iam::{MEMBER}:root"}, "kms:*")
    made.client("kms", MEMBER).put_key_policy(
        KeyId=made.estate.member_key, PolicyName="default", Policy=policy(own)
    )


def _isolation_group(made: Organisation) -> None:
    ec2 = made.client("ec2", MEMBER)
    [group] = ec2.describe_security_groups(
        Filters=[{"Name": "group-name", "Values": ["impound-isolation"]}]
    )["SecurityGroups"]
    ec2.authorize_security_group_egress(GroupId=group["GroupId"], IpPermissions=[
        {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
    ])  # fmt: skip


def _path(made: Organisation) -> None:
    ec2 = made.client("ec2", MEMBER)
    for end in ec2.describe_instance_connect_endpoints()["InstanceConnectEndpoints"]:
        ec2.delete_instance_connect_endpoint(
            InstanceConnectEndpointId=end["InstanceConnectEndpointId"]
        )


def _login(made: Organisation) -> None:
    made.client("ec2", MEMBER).delete_tags(
        Resources=[made.estate.instance], Tags=[{"Key": "impound-login"}]
    )


def _rule_is_off(made: Organisation) -> None:
    made.client("events", MEMBER).disable_rule(Name=FORWARD)


DEFECTS: Mapping[str, Callable[[Organisation], None]] = {
    "bucket-lock": _bucket_lock, "bucket-policy": _bucket_policy, "bucket-public": _bucket_public,
    "keys": _keys, "subnet": _subnet, "ami": _ami, "quotas": _quotas, "way": _way,
    "automation-roles": _automation_roles, "contact": _contact, "saml-roles": _saml_roles,
    "cloudtrail": _cloudtrail, "log-key": _log_key, "guardduty": _guardduty,
    "securityhub": _securityhub, "config": _config, "flow-logs": _flow_logs,
    "member-key": _member_key, "volumes": _volumes, "isolation-group": _isolation_group,
    "path": _path, "login": _login, "events": _rule_is_off,
}  # fmt: skip
# What `--fix` cannot put right: somebody has to build an image, deploy a stack, change an image.
FOR_PEOPLE = ("ami", "way", "login")


def _trust(principal: dict[str, str], condition: dict[str, str] | None = None,
           action: str = "sts:AssumeRole") -> dict[str, Any]:  # fmt: skip
    made: dict[str, Any] = {"Effect": "Allow", "Principal": principal, "Action": action}
    if condition:
        made["Condition"] = {"StringEquals": condition}
    return made


def _allow(principal: dict[str, str], *actions: str) -> dict[str, Any]:
    return {"Effect": "Allow", "Principal": principal, "Action": list(actions), "Resource": "*"}


def policy(*statements: dict[str, Any]) -> str:
    """A policy document as text."""
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})
