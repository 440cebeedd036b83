# SPDX-License-Identifier: Apache-2.0
"""What AWS lets us put right. Each change is small, said beforehand, and looked at afterwards.

Nothing is deleted, and nothing that others set is taken away, but for rules of an isolation group
that are not its own: those let an attacker out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from acquisition.containment.aws import Aws
from acquisition.containment.state import NEW_GROUP, Attribute
from acquisition.errors import AcquisitionError
from evidence_store.aws import Failure, failures
from evidence_store.errors import Error
from evidence_store.model import clean
from pipeline import steps
from pipeline.errors import PipelineError
from pipeline.readiness.checks import PROBE
from pipeline.readiness.look import Estate
from pipeline.readiness.model import Finding
from pipeline.readiness.observe import View, absent
from pipeline.readiness.observe_member import containment
from pipeline.readiness.policies import gives

Mend = Mapping[str, Any]
Mender = Callable[[View, Mend], None]
MENDERS: dict[str, Mender] = {}


class MendError(PipelineError):
    """AWS did not let us put something right."""


def mends(name: str) -> Callable[[Mender], Mender]:
    """Register what puts a check right."""

    def register(function: Mender) -> Mender:
        MENDERS[name] = function
        return function

    return register


def apply(estate: Estate, finding: Finding, recorder: steps.Recorder) -> str:
    """Put one finding right: an intent in the ledger, the change, its outcome.

    Returns: why it could not be done, or "".

    Raises: StoreError if it cannot be recorded.
    """
    name, place = finding.check.name, finding.place
    facts = {"mend": clean(finding.fix, 200), "what": clean(finding.what, 500)}
    begun = steps.begin(recorder, f"readiness {name}", str(place), **facts)
    if begun.done is not None:  # put right before, and wrong again
        begun = _again(recorder, f"readiness {name}", str(place), facts)
    try:
        MENDERS[name](View(estate, place), finding.mend or {})
    except failures() as e:
        why = f"{Failure(e).message} ({Failure(e).code})"
    except (Error, AcquisitionError) as e:
        why = str(e)
    else:
        steps.done(recorder, begun, **facts)
        return ""
    steps.failed(recorder, begun, why)
    return clean(why, 300)


def _again(
    recorder: steps.Recorder, name: str, target: str, facts: Mapping[str, str]
) -> steps.Begun:
    from evidence_store.ledger import Draft

    logged = recorder.record(
        lambda: Draft("step.started", {"data": {"step": name, "target": target, **facts}})
    )
    if logged is None:
        raise PipelineError(f"the intent of {name} was not recorded")
    return steps.Begun(name, target, logged.event.seq, logged.event.at, resumed=False)


def _document(*statements: Mapping[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})


# -- the Audit account -------------------------------------------------------------------------


@mends("bucket-lock")
def bucket_lock(view: View, mend: Mend) -> None:
    """Versions first, which a lock needs; or the default key."""
    s3, bucket = view.client("s3", region=view.settings.s3.region), mend["bucket"]
    if mend["what"] == "lock":
        s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        s3.put_object_lock_configuration(
            Bucket=bucket, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled"}
        )
        return
    rule = {
        "ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms",
                                               "KMSMasterKeyID": mend["key"]},
        "BucketKeyEnabled": True,
    }  # fmt: skip
    s3.put_bucket_encryption(Bucket=bucket, ServerSideEncryptionConfiguration={"Rules": [rule]})


@mends("bucket-policy")
def bucket_policy(view: View, mend: Mend) -> None:
    """Add the denial to what is there."""
    s3, bucket = view.client("s3", region=view.settings.s3.region), mend["bucket"]
    said = absent(s3.get_bucket_policy, Bucket=bucket)
    policy = json.loads(said["Policy"]) if said else {"Version": "2012-10-17", "Statement": []}
    arn = f"arn:{s3.meta.partition}:s3:::{bucket}"
    _add(policy, {"Effect": "Deny", "Principal": "*", "Resource": f"{arn}/*",
                  "Action": ["s3:DeleteObject", "s3:DeleteObjectVersion"]})  # fmt: skip
    s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))


@mends("bucket-public")
def bucket_public(view: View, mend: Mend) -> None:
    """All four switches."""
    from pipeline.readiness.judge import PUBLIC_BLOCKS

    view.client("s3", region=view.settings.s3.region).put_public_access_block(
        Bucket=mend["bucket"],
        PublicAccessBlockConfiguration=dict.fromkeys(PUBLIC_BLOCKS, True),
    )


@mends("keys")
def keys(view: View, mend: Mend) -> None:
    """Cancel a deletion, enable."""
    parts = mend["arn"].split(":")
    owner = parts[4] if parts[4] in view.estate.everywhere else ""
    kms = view.client("kms", owner, parts[3])
    if mend["state"] == "PendingDeletion":
        kms.cancel_key_deletion(KeyId=mend["arn"])
    kms.enable_key(KeyId=mend["arn"])


@mends("subnet")
def subnet(view: View, mend: Mend) -> None:
    """No public addresses; interface endpoints that the whole VPC may use."""
    ec2 = view.client("ec2")
    if "services" not in mend:
        ec2.modify_subnet_attribute(SubnetId=mend["subnet"], MapPublicIpOnLaunch={"Value": False})
        return
    for service in mend["services"]:
        name = f"com.amazonaws.{view.region}.{service}"
        if service == "s3":
            tables = view.pages(ec2, "describe_route_tables", "RouteTables", Filters=[
                {"Name": "vpc-id", "Values": [mend["vpc"]]}
            ])  # fmt: skip
            ids = [t["RouteTableId"] for t in tables]
            more: dict[str, Any] = {"VpcEndpointType": "Gateway", "RouteTableIds": ids}
        else:
            more = {"VpcEndpointType": "Interface", "SubnetIds": [mend["subnet"]],
                    "PrivateDnsEnabled": True}  # fmt: skip
        ec2.create_vpc_endpoint(VpcId=mend["vpc"], ServiceName=name, **more)


@mends("quotas")
def quotas(view: View, mend: Mend) -> None:
    """AWS grants it, now or later."""
    view.client("service-quotas").request_service_quota_increase(
        ServiceCode=mend["service"], QuotaCode=mend["code"], DesiredValue=float(mend["value"])
    )


# -- every account -----------------------------------------------------------------------------


@mends("automation-roles")
def automation_roles(view: View, mend: Mend) -> None:
    """Make the role, or let it trust whom it must; what it trusts already it goes on trusting."""
    iam, name, first = view.client("iam"), mend["role"], mend["first"]
    partition, audit = iam.meta.partition, view.estate.audit
    own = view.place.account == audit
    principal = (
        {"Service": "lambda.amazonaws.com"} if own
        else {"AWS": f"arn:{partition}:iam::{audit}:role/{first}"}
    )  # fmt: skip
    trust = {"Effect": "Allow", "Principal": principal, "Action": "sts:AssumeRole"}
    if mend.get("exists"):
        policy = iam.get_role(RoleName=name)["Role"]["AssumeRolePolicyDocument"]
        _add(policy, trust)
        iam.update_assume_role_policy(RoleName=name, PolicyDocument=json.dumps(policy))
        return
    iam.create_role(RoleName=name, AssumeRolePolicyDocument=_document(trust))
    if own:
        second = name.replace("Audit", "").replace("Role", "ExecutionRole")
        iam.put_role_policy(RoleName=name, PolicyName="AssumeRole", PolicyDocument=_document({
            "Effect": "Allow", "Action": "sts:AssumeRole",
            "Resource": f"arn:{partition}:iam::*:role/{second}",
        }))  # fmt: skip
        policies = ["AWSLambdaExecute"]
    else:
        policies = ["ReadOnlyAccess" if "ReadOnly" in name else "AdministratorAccess"]
    for policy_name in policies:
        iam.attach_role_policy(
            RoleName=name, PolicyArn=f"arn:{partition}:iam::aws:policy/{policy_name}"
        )


@mends("contact")
def contact(view: View, mend: Mend) -> None:
    """The account's own alternate contact."""
    view.client("account", region="us-east-1").put_alternate_contact(
        AlternateContactType="SECURITY", EmailAddress=mend["email"], Name="Security",
        Title="Incident response", PhoneNumber=view.settings.readiness.contact_phone,
    )  # fmt: skip


@mends("saml-roles")
def saml_roles(view: View, mend: Mend) -> None:
    """Make the role, or give it what it lacks."""
    iam, name = view.client("iam"), mend["role"]
    trust = {
        "Effect": "Allow", "Principal": {"Federated": mend["provider"]},
        "Action": "sts:AssumeRoleWithSAML",
        "Condition": {"StringEquals": {"SAML:aud": "https://signin.aws.amazon.com/saml"}},
    }  # fmt: skip
    if not mend["exists"]:
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=_document(trust))
    else:
        policy = iam.get_role(RoleName=name)["Role"]["AssumeRolePolicyDocument"]
        if not any(
            s.get("Principal", {}).get("Federated") == mend["provider"] for s in policy["Statement"]
        ):
            _add(policy, trust)
            iam.update_assume_role_policy(RoleName=name, PolicyDocument=json.dumps(policy))
    iam.attach_role_policy(
        RoleName=name, PolicyArn=f"arn:{iam.meta.partition}:iam::aws:policy/{mend['policy']}"
    )


@mends("cloudtrail")
def cloudtrail(view: View, mend: Mend) -> None:
    """Digests and logging on, where the trail lives."""
    client = view.client("cloudtrail", region=mend["home"])
    client.update_trail(Name=mend["arn"], EnableLogFileValidation=True)
    client.start_logging(Name=mend["arn"])


@mends("log-key")
def log_key(view: View, mend: Mend) -> None:
    """Add the statement to the key's policy."""
    parts = mend["arn"].split(":")
    _lend(view.client("kms", parts[4], parts[3]), mend)


@mends("guardduty")
def guardduty(view: View, mend: Mend) -> None:
    """On."""
    client = view.client("guardduty")
    if mend["detector"]:
        client.update_detector(DetectorId=mend["detector"], Enable=True)
    else:
        client.create_detector(Enable=True)


@mends("securityhub")
def securityhub(view: View, _mend: Mend) -> None:
    """On; which standards is for others to say."""
    view.client("securityhub").enable_security_hub(EnableDefaultStandards=False)


@mends("config")
def config(view: View, mend: Mend) -> None:
    """Start the recorder."""
    view.client("config").start_configuration_recorder(ConfigurationRecorderName=mend["recorder"])


@mends("flow-logs")
def flow_logs(view: View, mend: Mend) -> None:
    """A flow log of all traffic."""
    said = view.client("ec2").create_flow_logs(
        ResourceIds=[mend["vpc"]], ResourceType="VPC", TrafficType="ALL",
        LogDestinationType="s3", LogDestination=mend["destination"],
    )  # fmt: skip
    for refused in said.get("Unsuccessful", []):
        raise MendError(f"no flow log of {mend['vpc']}: {refused['Error']['Message']}")


# -- member accounts ---------------------------------------------------------------------------


@mends("member-key")
def member_key(view: View, mend: Mend) -> None:
    """Make it with its alias, or mend it."""
    kms = view.client("kms")
    if "alias" not in mend:
        _mend_key(view, mend)
        return
    partition, account = kms.meta.partition, view.place.account
    policy = {"Version": "2012-10-17", "Statement": [{
        "Effect": "Allow", "Principal": {"AWS": f"arn:{partition}:iam::{account}:root"},
        "Action": "kms:*", "Resource": "*",
    }]}  # fmt: skip
    for statement in _loan(partition, mend["audit"]):
        _add(policy, statement)
    made = kms.create_key(
        Description="impound: snapshots that Audit copies", Policy=json.dumps(policy)
    )
    kms.create_alias(AliasName=mend["alias"], TargetKeyId=made["KeyMetadata"]["KeyId"])


@mends("volumes")
def volumes(view: View, mend: Mend) -> None:
    """Lend the key, or enable it."""
    _mend_key(view, mend)


def _mend_key(view: View, mend: Mend) -> None:
    if "state" in mend:
        keys(view, mend)
    else:
        _lend(view.client("kms", mend["arn"].split(":")[4]), mend)


def _loan(partition: str, audit: str, actions: list[str] | None = None) -> list[dict[str, Any]]:
    """Statements that lend a key to an account.

    Source: EBS User Guide, "Share the KMS key that was used to encrypt a shared snapshot".
    """
    plain = actions or [
        "kms:DescribeKey", "kms:Decrypt", "kms:ReEncryptFrom", "kms:ReEncryptTo",
        "kms:GenerateDataKey", "kms:GenerateDataKeyWithoutPlaintext", "kms:CreateGrant",
    ]  # fmt: skip
    whom = {"AWS": f"arn:{partition}:iam::{audit}:root"}
    found: list[dict[str, Any]] = []
    if others := [a for a in plain if a != "kms:CreateGrant"]:
        found.append({"Effect": "Allow", "Principal": whom, "Action": others, "Resource": "*"})
    if "kms:CreateGrant" in plain:
        found.append({"Effect": "Allow", "Principal": whom, "Action": "kms:CreateGrant",
                      "Resource": "*",
                      "Condition": {"Bool": {"kms:GrantIsForAWSResource": "true"}}})  # fmt: skip
    return found


def _lend(kms: Any, mend: Mend) -> None:
    policy = json.loads(kms.get_key_policy(KeyId=mend["arn"], PolicyName="default")["Policy"])
    missing = [a for a in mend["actions"] if not gives(policy, mend["audit"], a)]
    if not missing:
        return  # another finding was about the same key
    for statement in _loan(kms.meta.partition, mend["audit"], missing):
        _add(policy, statement)
    kms.put_key_policy(KeyId=mend["arn"], PolicyName="default", Policy=json.dumps(policy))


@mends("isolation-group")
def isolation_group(view: View, mend: Mend) -> None:
    """As `isolate` would mend it in an incident."""
    aws: Aws = containment(view)
    attribute = Attribute("isolation-group", mend["vpc"])
    aws.write(attribute, {"id": mend["id"] or NEW_GROUP, "rules": list(mend["rules"])})


@mends("path")
def path(view: View, mend: Mend) -> None:
    """An EC2 Instance Connect Endpoint in a subnet that the isolation group lets in."""
    view.client("ec2").create_instance_connect_endpoint(
        SubnetId=mend["subnet"], PreserveClientIp=False
    )


@mends("events")
def events(view: View, mend: Mend) -> None:
    """Enable the rule, or make one that forwards what impound acts upon."""
    client = view.client("events")
    if "enable" in mend:
        client.enable_rule(Name=mend["enable"])
        return
    probe = mend["rule"] == "impound-readiness"
    source = [PROBE] if probe else ["aws.tag", "aws.ec2", "aws.cloudwatch", PROBE]
    client.put_rule(
        Name=mend["rule"], Description="events that incident response acts upon",
        EventPattern=json.dumps({"source": source}),
    )  # fmt: skip
    target = {"Id": "audit", "Arn": mend["bus"], "RoleArn": _forwarder(view, mend["bus"])}
    said = client.put_targets(Rule=mend["rule"], Targets=[target])
    for refused in said.get("FailedEntries", []):
        raise MendError(f"events are not forwarded: {refused.get('ErrorMessage', '')}")


def _forwarder(view: View, bus: str) -> str:
    """The role by which rules put events on a bus that trusts the organisation.

    Source: EventBridge User Guide, "Sending and receiving events between AWS accounts".
    """
    iam, name = view.client("iam"), "impound-forward"
    trust = {"Effect": "Allow", "Principal": {"Service": "events.amazonaws.com"},
             "Action": "sts:AssumeRole"}  # fmt: skip
    held = absent(iam.get_role, RoleName=name) or iam.create_role(
        RoleName=name, AssumeRolePolicyDocument=_document(trust)
    )
    iam.put_role_policy(RoleName=name, PolicyName="forward", PolicyDocument=_document({
        "Effect": "Allow", "Action": "events:PutEvents", "Resource": bus,
    }))  # fmt: skip
    return str(held["Role"]["Arn"])


def _add(policy: dict[str, Any], statement: Mapping[str, Any]) -> None:
    said = policy.get("Statement", [])
    policy["Statement"] = [*(said if isinstance(said, list) else [said]), dict(statement)]
