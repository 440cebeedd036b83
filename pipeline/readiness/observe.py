# SPDX-License-Identifier: Apache-2.0
"""One fact of this machine or the Audit account, as JSON, and what all observers share.

Absent is a fact; what cannot be read is raised as it comes.

Source: API References of the services named in each call.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evidence_store.aws import Failure, failures
from evidence_store.errors import CaseNotFoundError, StoreNotFoundError
from pipeline import installation as installed
from pipeline.errors import PipelineError
from pipeline.readiness.checks import (
    FORENSICS_STACK,
    QUOTAS,
    READINESS_CASE,
)
from pipeline.readiness.model import Place

if TYPE_CHECKING:
    from pipeline.config import Settings
    from pipeline.readiness.look import Estate

_NOT_THERE = {
    "NoSuchEntity", "NoSuchEntityException", "ResourceNotFoundException", "NotFoundException",
    "NoSuchBucketPolicy", "NoSuchPublicAccessBlockConfiguration", "ParameterNotFound",
    "ObjectLockConfigurationNotFoundError", "InvalidAMIID.NotFound", "InvalidSubnetID.NotFound",
    "ServerSideEncryptionConfigurationNotFoundError", "NoSuchBucket", "404",
    "AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist", "InvalidAccessException",
    "NoSuchResourceException", "InvalidAMIID.Malformed",
}  # fmt: skip


@dataclass(frozen=True)
class View:
    """What an observer looks through."""

    estate: Estate
    place: Place

    @property
    def settings(self) -> Settings:
        """Of this installation."""
        return self.estate.session.settings

    @property
    def region(self) -> str:
        """The Region, or the first one for what has none."""
        return self.place.region or self.estate.regions[0]

    def client(self, service: str, account: str = "", region: str = "") -> Any:
        """A client of this place, or of another account or Region."""
        return self.estate.client(service, account or self.place.account, region or self.region)

    def pages(self, client: Any, operation: str, key: str, **how: Any) -> list[Any]:
        """All of a listing."""
        pages = client.get_paginator(operation).paginate(**how)
        return [found for page in pages for found in page[key]]


def absent(call: Callable[..., Any], **how: Any) -> Any:
    """What a call answers; None if AWS says that the thing does not exist."""
    try:
        return call(**how)
    except failures() as e:
        failure = Failure(e)
        if failure.answered and failure.code in _NOT_THERE:
            return None
        raise


Observer = Callable[[View], Any]
OBSERVERS: dict[str, Observer] = {}


def observes(name: str) -> Callable[[Observer], Observer]:
    """Register the observer of a check."""

    def register(function: Observer) -> Observer:
        OBSERVERS[name] = function
        return function

    return register


# -- this machine ------------------------------------------------------------------------------


@observes("installation")
def installation(_view: View) -> Any:
    """As `installation.Installation.document`."""
    return installed.check().document()


@observes("clock")
def clock(view: View) -> Any:
    """{offset_s}: AWS less this machine, in seconds; the answer's date has whole ones."""
    from email.utils import parsedate_to_datetime

    before = view.estate.now()
    answer = view.estate.session.client("sts", view.region).get_caller_identity()
    after = view.estate.now()
    said = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
    middle = before + (after - before) / 2
    return {"offset_s": round((said - middle).total_seconds() + 0.5, 1)}


@observes("symbols")
def symbols(view: View) -> Any:
    """{directory, files}."""
    from pathlib import Path

    from pipeline.config import cache_home

    directory = Path(view.settings.readiness.symbols or cache_home() / "symbols")
    found = [p for p in directory.rglob("*") if p.name.endswith((".json", ".json.xz", ".json.gz"))]
    return {"directory": str(directory), "files": len(found)}


@observes("gameday")
def gameday(view: View) -> Any:
    """{last}: when the last game day was recorded in `_readiness`, or None."""
    try:
        case = view.estate.session.open_store().case(READINESS_CASE)
    except (CaseNotFoundError, StoreNotFoundError):
        return {"last": None}
    times = [
        e.at for e in case.ledger.events
        if e.action == "item.acquired" and e.item
        and case.state.items[e.item].source.startswith("game day")
    ]  # fmt: skip
    return {"last": max(times).isoformat() if times else None}


# -- the Audit account -------------------------------------------------------------------------


def _bucket(view: View) -> tuple[Any, str]:
    uri = view.estate.session.store_uri
    if not uri.startswith("s3://"):
        return None, ""
    bucket = uri.removeprefix("s3://").partition("/")[0]
    return view.client("s3", region=view.settings.s3.region), bucket


@observes("bucket-lock")
def bucket_lock(view: View) -> Any:
    """{bucket, locks, versions, key}; `bucket` is "" of a store that is not in S3."""
    s3, bucket = _bucket(view)
    if not bucket:
        return {"bucket": ""}
    versions = absent(s3.get_bucket_versioning, Bucket=bucket)
    if versions is None:
        return {"bucket": bucket, "exists": False}
    lock = absent(s3.get_object_lock_configuration, Bucket=bucket) or {}
    encryption = absent(s3.get_bucket_encryption, Bucket=bucket) or {}
    rules = encryption.get("ServerSideEncryptionConfiguration", {}).get("Rules", [{}])
    default = rules[0].get("ApplyServerSideEncryptionByDefault", {})
    return {
        "bucket": bucket, "exists": True, "versions": versions.get("Status") == "Enabled",
        "locks": lock.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") == "Enabled",
        "key": default.get("KMSMasterKeyID", ""),
    }  # fmt: skip


@observes("bucket-policy")
def bucket_policy(view: View) -> Any:
    """{bucket, policy}: as JSON, or None."""
    s3, bucket = _bucket(view)
    if not bucket:
        return {"bucket": ""}
    said = absent(s3.get_bucket_policy, Bucket=bucket)
    return {"bucket": bucket, "policy": json.loads(said["Policy"]) if said else None}


@observes("bucket-public")
def bucket_public(view: View) -> Any:
    """{bucket, blocks}: the four switches."""
    s3, bucket = _bucket(view)
    if not bucket:
        return {"bucket": ""}
    said = absent(s3.get_public_access_block, Bucket=bucket) or {}
    return {"bucket": bucket, "blocks": said.get("PublicAccessBlockConfiguration", {})}


@observes("keys")
def keys(view: View) -> Any:
    """{setting: {arn, state, spec, usage}}; state is "absent" of a key that is not there."""
    s = view.settings
    named = {
        "s3.kms_key": s.s3.kms_key, "signing.entry_key": s.signing.entry_key,
        "signing.checkpoint_key": s.signing.checkpoint_key, "aws.snapshot_key": s.aws.snapshot_key,
    }  # fmt: skip
    found: dict[str, Any] = {}
    for setting, arn in named.items():
        if not arn:
            found[setting] = {"arn": ""}
            continue
        kms = view.client("kms", region=arn.split(":")[3])
        said = absent(kms.describe_key, KeyId=arn)
        key = said["KeyMetadata"] if said else {}
        found[setting] = {
            "arn": arn, "state": key.get("KeyState", "absent"), "spec": key.get("KeySpec", ""),
            "usage": key.get("KeyUsage", ""),
        }  # fmt: skip
    return found


@observes("subnet")
def subnet(view: View) -> Any:
    """{subnets: [{id, vpc, cidr, free, public}], endpoints: {vpc: [service]}}."""
    ec2 = view.client("ec2")
    ids = list(view.settings.readiness.subnets)
    found = [s for s in view.pages(ec2, "describe_subnets", "Subnets")
             if s["SubnetId"] in ids] if ids else []  # fmt: skip
    vpcs = {s["VpcId"] for s in found}
    ends = view.pages(ec2, "describe_vpc_endpoints", "VpcEndpoints") if vpcs else []
    return {
        "wanted": ids,
        "subnets": [
            {"id": s["SubnetId"], "vpc": s["VpcId"], "cidr": s["CidrBlock"],
             "free": s["AvailableIpAddressCount"], "public": s.get("MapPublicIpOnLaunch", False)}
            for s in found
        ],
        "endpoints": {
            vpc: sorted(e["ServiceName"].rpartition(f"{view.region}.")[2] for e in ends
                        if e["VpcId"] == vpc and e["State"].lower() == "available")
            for vpc in sorted(vpcs)
        },
    }  # fmt: skip


@observes("ami")
def ami(view: View) -> Any:
    """{parameter, image, created, state, encrypted}; `image` None: no parameter."""
    name = view.settings.readiness.ami_parameter
    said = absent(view.client("ssm").get_parameter, Name=name)
    if said is None:
        return {"parameter": name, "image": None}
    image = said["Parameter"]["Value"]
    ec2 = view.client("ec2")
    listed = (absent(ec2.describe_images, ImageIds=[image]) or {"Images": []})["Images"]
    if not listed:
        return {"parameter": name, "image": image, "state": "absent"}
    disks = [m["Ebs"] for m in listed[0]["BlockDeviceMappings"] if "Ebs" in m]
    owned = [d["SnapshotId"] for d in disks if d.get("SnapshotId")]
    held = ec2.describe_snapshots(SnapshotIds=owned)["Snapshots"] if owned else []
    return {
        "parameter": name, "image": image, "created": listed[0]["CreationDate"],
        "state": listed[0]["State"], "encrypted": bool(held) and all(s["Encrypted"] for s in held),
    }  # fmt: skip


@observes("template")
def template(view: View) -> Any:
    """{refused, last}: what CloudFormation says of the template, the last launch it remembers.

    It remembers deleted stacks for 90 days.
    """
    from pipeline.templates import template as text

    cloudformation = view.client("cloudformation")
    refused = ""
    try:
        body = text("forensics")
    except PipelineError as e:
        return {"refused": str(e), "last": None}
    try:
        cloudformation.validate_template(TemplateBody=body)
    except failures() as e:
        if Failure(e).code != "ValidationError":
            raise
        refused = Failure(e).message
    stacks = view.pages(cloudformation, "list_stacks", "StackSummaries")
    times = [
        s["CreationTime"] for s in stacks
        if s.get("TemplateDescription", "").startswith(FORENSICS_STACK)
        and s["StackStatus"] in ("CREATE_COMPLETE", "UPDATE_COMPLETE", "DELETE_COMPLETE")
    ]  # fmt: skip
    return {"refused": refused, "last": max(times).isoformat() if times else None}


@observes("quotas")
def quotas(view: View) -> Any:
    """{code: value or None}."""
    client = view.client("service-quotas")
    found: dict[str, Any] = {}
    for service, code, _, _ in QUOTAS:
        said = absent(client.get_service_quota, ServiceCode=service, QuotaCode=code)
        found[code] = said["Quota"]["Value"] if said else None
    return found
