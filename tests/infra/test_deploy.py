# SPDX-License-Identifier: Apache-2.0
"""The templates launched in the stand-in, one after the other, with real resources.

moto's CloudFormation ignores egress rules, groups and metadata options of instances, bucket and
queue policies, and conditions of parameters: those are asserted on the template, in
test_templates.py and test_policies.py.
"""

from __future__ import annotations

import base64
import json
import re
import tomllib

import pytest
import yaml
from moto.sqs.models import sqs_backends

from pipeline.config import Settings
from pipeline.gameday.aws.accounts import AUDIT, LOG_ARCHIVE, MEMBER, REGION
from pipeline.templates import template
from tests.infra.kit import ACCOUNTS, PARAMETERS

pytestmark = pytest.mark.filterwarnings("ignore:Tried to parse")


@pytest.fixture
def launch(aws_in_process):
    """Launch a template with the parameters of `kit`, or others; return outputs and resources."""
    # The package of the functions, where the parameters say.
    for account in (AUDIT, LOG_ARCHIVE):
        name = f"code-{account}"
        s3 = aws_in_process.client("s3", account)
        s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
        s3.put_object(Bucket=name, Key="impound.zip", Body=b"PK\x05\x06" + bytes(18))

    def go(name, **more):
        account = ACCOUNTS[name]
        cloud = aws_in_process.client("cloudformation", account)
        given = PARAMETERS[name] | more
        if "CodeBucket" in given:
            given["CodeBucket"] = f"code-{account}"
        # moto cannot run what a custom resource calls; test_isolation_groups.py does.
        body = re.sub(r"(?ms)^  IsolationGroups:$.*?^(?=  \w)", "", template(name))
        cloud.create_stack(
            StackName=f"impound-{name}", TemplateBody=body,
            Parameters=[{"ParameterKey": k, "ParameterValue": v} for k, v in given.items()],
            Capabilities=["CAPABILITY_NAMED_IAM"],
        )  # fmt: skip
        [stack] = cloud.describe_stacks(StackName=f"impound-{name}")["Stacks"]
        assert stack["StackStatus"] == "CREATE_COMPLETE"
        return {o["OutputKey"]: o["OutputValue"] for o in stack.get("Outputs", [])}

    return go


def drop(aws, name):
    aws.client("cloudformation", ACCOUNTS[name]).delete_stack(StackName=f"impound-{name}")


def policy_sids(kms, key):
    said = kms.get_key_policy(KeyId=key, PolicyName="default")["Policy"]
    return {s["Sid"] for s in json.loads(said)["Statement"]}


def test_seal(launch, aws_in_process):
    made = launch("seal")
    kms, iam, s3 = (aws_in_process.client(s, LOG_ARCHIVE) for s in ("kms", "iam", "s3"))
    found = kms.describe_key(KeyId=made["CheckpointKey"])["KeyMetadata"]
    assert (found["KeySpec"], found["KeyUsage"]) == ("ECC_NIST_P256", "SIGN_VERIFY")
    wanted = {"AccountAdministers", "SealerSigns", "AuditVerifies"}
    assert policy_sids(kms, made["CheckpointKey"]) == wanted
    trust = iam.get_role(RoleName="impound-sealer")["Role"]["AssumeRolePolicyDocument"]
    assert trust["Statement"][0]["Principal"] == {"Service": "lambda.amazonaws.com"}
    s3.head_bucket(Bucket=made["TrailBucket"])
    function = aws_in_process.client("lambda", LOG_ARCHIVE).get_function(
        FunctionName="impound-sealer"
    )["Configuration"]
    assert function["Handler"] == "pipeline.sealer.handler"
    assert function["Environment"]["Variables"]["IMPOUND_CHECKPOINT_KEY"] == made["CheckpointKey"]


def test_audit_then_a_workstation(launch, aws_in_process):
    made = launch("audit")
    settings = aws_in_process.client("ssm", AUDIT).get_parameter(Name="/impound/settings")
    read = Settings.model_validate(tomllib.loads(settings["Parameter"]["Value"]))
    assert read.s3.kms_key == made["EvidenceKey"]
    assert read.signing.entry_key == made["EntryKey"]
    assert read.aws.snapshot_key == made["CopyKey"]
    kms = aws_in_process.client("kms", AUDIT)
    assert {"AccountAdministers", "KeyStays"} <= policy_sids(kms, made["EvidenceKey"])
    profile = aws_in_process.client("iam", AUDIT).get_instance_profile(
        InstanceProfileName="impound-workstation"
    )["InstanceProfile"]
    assert [r["RoleName"] for r in profile["Roles"]] == ["impound-workstation"]
    bus = aws_in_process.client("events", AUDIT)
    assert [r["Name"] for r in bus.list_rules(EventBusName="impound")["Rules"]]

    ec2 = aws_in_process.client("ec2", AUDIT)
    subnet = ec2.describe_subnets()["Subnets"][0]
    endpoints = ec2.create_security_group(
        GroupName="endpoints", Description="of interface endpoints", VpcId=subnet["VpcId"]
    )["GroupId"]
    aws_in_process.client("ssm", AUDIT).put_parameter(
        Name="/impound/ami", Type="String", Value=ec2.register_image(Name="forensics")["ImageId"]
    )
    started = launch(
        "forensics", VpcId=subnet["VpcId"], SubnetId=subnet["SubnetId"], EndpointGroup=endpoints,
        EvidenceKey=made["EvidenceKey"], VolumeKey=made["CopyKey"],
    )  # fmt: skip
    [found] = ec2.describe_instances(InstanceIds=[started["Workstation"]])["Reservations"]
    [instance] = found["Instances"]
    assert instance["SubnetId"] == subnet["SubnetId"]
    assert instance["IamInstanceProfile"]["Arn"].endswith(":instance-profile/impound-workstation")
    assert "KeyName" not in instance
    assert started["AvailabilityZone"] == subnet["AvailabilityZone"]
    tags = {t["Key"]: t["Value"] for t in instance["Tags"]}
    assert tags["incident-response"] == "quarantine:T-1"
    assert tags["notification"] == "soc@example.org"
    [volume] = ec2.describe_volumes(Filters=[
        {"Name": "attachment.instance-id", "Values": [started["Workstation"]]}
    ])["Volumes"]  # fmt: skip
    assert (volume["Encrypted"], volume["KmsKeyId"]) == (True, made["CopyKey"])
    said = ec2.describe_instance_attribute(
        InstanceId=started["Workstation"], Attribute="userData"
    )["UserData"]["Value"]  # fmt: skip
    config = yaml.safe_load(base64.b64decode(said))
    assert config["runcmd"][0][-3:] == ["impound", "resume", "T-1"]
    first = tomllib.loads(base64.b64decode(config["write_files"][0]["content"]).decode())
    assert Settings.model_validate(first) == read

    drop(aws_in_process, "forensics")
    [found] = ec2.describe_instances(InstanceIds=[started["Workstation"]])["Reservations"]
    assert found["Instances"][0]["State"]["Name"] == "terminated"
    assert kms.describe_key(KeyId=made["EvidenceKey"])["KeyMetadata"]["KeyState"] == "Enabled"


def test_member_forwards_to_the_bus_of_the_audit_account(launch, aws_in_process):
    """A tag event goes from the member's rule over the bus into the queue; another does not."""
    launch("audit")
    launch("member")
    iam = aws_in_process.client("iam", MEMBER)
    trust = iam.get_role(RoleName="impound-ExecutionRole")["Role"]["AssumeRolePolicyDocument"]
    assert trust["Statement"][0]["Condition"]["StringEquals"]["sts:ExternalId"] == "impound-x"
    for name in ("look", "freeze", "isolate"):
        assert iam.get_role_policy(RoleName="impound-ExecutionRole", PolicyName=name)
    # The function behind the queue takes what comes; here it is looked at instead.
    queue = sqs_backends[AUDIT][REGION].queues["impound-events"]
    [source] = queue.lambda_event_source_mappings.values()
    assert source.function_arn.endswith(":function:impound-intake")
    queue.lambda_event_source_mappings.clear()
    events = aws_in_process.client("events", MEMBER)
    for keys in (["incident-response"], ["Name"]):
        events.put_events(Entries=[{
            "Source": "aws.tag", "DetailType": "Tag Change on Resource",
            "Detail": json.dumps({"service": "ec2", "resource-type": "instance",
                                  "changed-tag-keys": keys}),
        }])  # fmt: skip
    sqs = aws_in_process.client("sqs", AUDIT)
    url = sqs.get_queue_url(QueueName="impound-events")["QueueUrl"]
    came = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages", [])
    assert [json.loads(m["Body"])["detail"]["changed-tag-keys"] for m in came] == [
        ["incident-response"]
    ]
