# SPDX-License-Identifier: Apache-2.0
"""One fact of any account, as JSON; what cannot be read is raised as it comes.

Source: API References of the services named in each call.
"""

from __future__ import annotations

from typing import Any

from evidence_store.aws import Failure, failures
from pipeline.accounts import AccountError
from pipeline.readiness.checks import PAIRS, SAML_ROLES
from pipeline.readiness.observe import View, absent, observes


@observes("way")
def way(view: View) -> Any:
    """{refused}: why the account is not reached, or "". A busy service is no refusal."""
    try:
        view.client("sts").get_caller_identity()
    except AccountError as e:
        cause = e.__cause__
        if isinstance(cause, failures()):
            failure = Failure(cause)
            if failure.passing or not failure.unavailable or failure.status != 403:
                raise
        return {"refused": str(e)}
    return {"refused": ""}


@observes("automation-roles")
def automation_roles(view: View) -> Any:
    """{roles: {name: trust or None}, walked: {name: "" or refusal or None}}.

    A pair is walked by AssumeRole twice where the caller may take the first step; a Lambda function
    alone may, as Control Tower makes them: then `walked` is None.
    """
    here = view.place.account
    own = here == view.estate.audit
    iam = view.client("iam")
    names = [first if own else second for first, second in PAIRS]
    roles = {}
    for name in names:
        said = absent(iam.get_role, RoleName=name)
        roles[name] = said["Role"]["AssumeRolePolicyDocument"] if said else None
    walked: dict[str, Any] = {}
    if not own:
        partition = view.client("sts").meta.partition
        for first, second in PAIRS:
            walked[second] = _walk(view, partition, first, second)
    return {"roles": roles, "walked": walked}


def _walk(view: View, partition: str, first: str, second: str) -> str | None:
    import boto3

    def arn(account: str, role: str) -> str:
        return f"arn:{partition}:iam::{account}:role/{role}"

    sts, name = view.client("sts", view.estate.audit), "readiness"
    try:
        got = sts.assume_role(RoleArn=arn(view.estate.audit, first), RoleSessionName=name)
    except failures() as e:
        if Failure(e).answered and Failure(e).status == 403:
            return None
        raise
    made = got["Credentials"]
    through = boto3.session.Session(
        made["AccessKeyId"], made["SecretAccessKey"], made["SessionToken"], view.region
    ).client("sts", config=sts.meta.config)
    try:
        through.assume_role(RoleArn=arn(view.place.account, second), RoleSessionName=name)
    except failures() as e:
        if Failure(e).answered and Failure(e).status == 403:
            return Failure(e).message
        raise
    return ""


@observes("contact")
def contact(view: View) -> Any:
    """{email}, or None without a security contact."""
    client = view.client("account", region="us-east-1")
    said = absent(client.get_alternate_contact, AlternateContactType="SECURITY")
    return {"email": said["AlternateContact"]["EmailAddress"]} if said else None


@observes("saml-roles")
def saml_roles(view: View) -> Any:
    """{providers, roles: {end of name: {name, trust, policies} or None}}."""
    iam = view.client("iam")
    every = view.pages(iam, "list_roles", "Roles")
    space = view.settings.readiness.namespace
    roles: dict[str, Any] = {}
    for end in SAML_ROLES:
        name = f"{space}-saml-{end}"
        held = [r for r in every if (
            r["RoleName"] == name if space else r["RoleName"].endswith(name)
        )]  # fmt: skip
        roles[end] = (held and {
            "name": held[0]["RoleName"], "trust": held[0]["AssumeRolePolicyDocument"],
            "policies": [p["PolicyName"] for p in view.pages(
                iam, "list_attached_role_policies", "AttachedPolicies", RoleName=held[0]["RoleName"]
            )],
        }) or None  # fmt: skip
    providers = iam.list_saml_providers()["SAMLProviderList"]
    return {"providers": [p["Arn"] for p in providers], "roles": roles}


@observes("cloudtrail")
def cloudtrail(view: View) -> Any:
    """[{name, arn, home, everywhere, validates, logging, error, bucket}]."""
    client = view.client("cloudtrail")
    found = []
    for trail in client.describe_trails()["trailList"]:
        home = view.client("cloudtrail", region=trail["HomeRegion"])
        status = home.get_trail_status(Name=trail["TrailARN"])
        found.append({
            "arn": trail["TrailARN"], "home": trail["HomeRegion"],
            "everywhere": trail.get("IsMultiRegionTrail", False),
            "validates": trail.get("LogFileValidationEnabled", False),
            "logging": status["IsLogging"], "error": status.get("LatestDeliveryError", ""),
            "bucket": trail.get("S3BucketName", ""),
        })  # fmt: skip
    return found


@observes("log-key")
def log_key(view: View) -> Any:
    """{arn: {owner, policy}} of the keys that encrypt trails."""
    trails = view.client("cloudtrail").describe_trails()["trailList"]
    found = {}
    for arn in sorted({t["KmsKeyId"] for t in trails if t.get("KmsKeyId")}):
        owner, region = arn.split(":")[4], arn.split(":")[3]
        kms = view.client("kms", owner, region)
        found[arn] = {"policy": kms.get_key_policy(KeyId=arn, PolicyName="default")["Policy"]}
    return found


@observes("guardduty")
def guardduty(view: View) -> Any:
    """{detector, on}."""
    client = view.client("guardduty")
    ids = client.list_detectors()["DetectorIds"]
    return {
        "detector": ids[0] if ids else "",
        "on": bool(ids) and client.get_detector(DetectorId=ids[0])["Status"] == "ENABLED",
    }  # fmt: skip


@observes("securityhub")
def securityhub(view: View) -> Any:
    """{on}."""
    return {"on": absent(view.client("securityhub").describe_hub) is not None}


@observes("config")
def config(view: View) -> Any:
    """{recorders: [{name, recording, error}], channels}."""
    client = view.client("config")
    return {
        "recorders": [
            {"name": s["name"], "recording": s["recording"], "error": s.get("lastErrorCode", "")}
            for s in client.describe_configuration_recorder_status()["ConfigurationRecordersStatus"]
        ],
        "channels": [c["name"] for c in client.describe_delivery_channels()["DeliveryChannels"]],
    }  # fmt: skip


@observes("flow-logs")
def flow_logs(view: View) -> Any:
    """{vpc: [{id, traffic, active, delivered, destination}]}."""
    ec2 = view.client("ec2")
    vpcs = [v["VpcId"] for v in view.pages(ec2, "describe_vpcs", "Vpcs")]
    logs = view.pages(ec2, "describe_flow_logs", "FlowLogs")
    return {
        vpc: [
            {"id": f["FlowLogId"], "traffic": f["TrafficType"],
             "active": f["FlowLogStatus"] == "ACTIVE",
             "error": f.get("DeliverLogsErrorMessage", "")
             or ("" if f.get("DeliverLogsStatus", "SUCCESS") == "SUCCESS" else "not delivered"),
             "destination": f.get("LogDestination", f.get("LogGroupName", ""))}
            for f in logs if f["ResourceId"] == vpc
        ] for vpc in sorted(vpcs)
    }  # fmt: skip
