# SPDX-License-Identifier: Apache-2.0
"""One fact of a member account, as JSON; what cannot be read is raised as it comes.

Nothing is changed, but for one event of our own that `events` sends and takes out again.

Source: API References of the services named in each call.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from acquisition.containment.aws import Aws
from acquisition.containment.state import Attribute
from evidence_store.aws import Failure, failures
from pipeline.errors import PipelineError
from pipeline.readiness.checks import PROBE
from pipeline.readiness.observe import View, absent, observes

PROBE_S = 20.0


def _key(view: View, reference: str) -> Mapping[str, Any] | None:
    """{arn, manager, state, policy} of a key, None if it does not exist."""
    owner = reference.split(":")[4] if reference.startswith("arn:") else view.place.account
    if owner != view.place.account and owner not in view.estate.everywhere:
        return {"arn": reference, "manager": "FOREIGN", "state": "", "policy": ""}
    kms = view.client("kms", owner)
    said = absent(kms.describe_key, KeyId=reference)
    if said is None:
        return None
    key = said["KeyMetadata"]
    policy = ""
    if key.get("KeyManager") != "AWS":
        policy = kms.get_key_policy(KeyId=key["Arn"], PolicyName="default")["Policy"]
    return {"arn": key["Arn"], "manager": key.get("KeyManager", "CUSTOMER"),
            "state": key["KeyState"], "policy": policy}  # fmt: skip


@observes("member-key")
def member_key(view: View) -> Any:
    """{reference, key}: the setting, and the key as of `_key`."""
    reference = view.settings.member_key(view.place.account)
    return {"reference": reference, "key": _key(view, reference) if reference else None}


@observes("volumes")
def volumes(view: View) -> Any:
    """{member_key: whether one is set, keys: [{volumes, arn, manager, state, policy}]}."""
    by_key: dict[str, list[str]] = {}
    for volume in view.pages(view.client("ec2"), "describe_volumes", "Volumes"):
        if volume.get("Encrypted"):
            by_key.setdefault(volume.get("KmsKeyId") or "alias/aws/ebs", []).append(
                volume["VolumeId"]
            )
    found = []
    for reference, ids in sorted(by_key.items()):
        try:
            key = _key(view, reference)
        except failures() as e:
            key = {"arn": reference, "unseen": Failure(e).message}
        found.append({"volumes": sorted(ids),
                      **(key or {"arn": reference, "manager": "", "state": "absent"})})  # fmt: skip
    return {"member_key": bool(view.settings.member_key(view.place.account)), "keys": found}


def containment(view: View) -> Aws:
    """What reads and writes isolation groups."""
    return Aws(view.client("ec2"), None, None, "")


@observes("isolation-group")
def isolation_group(view: View) -> Any:
    """{vpc: {id, rules} or None}."""
    aws = containment(view)
    vpcs = view.pages(view.client("ec2"), "describe_vpcs", "Vpcs")
    return {v: aws.read(Attribute("isolation-group", v)) for v in sorted(x["VpcId"] for x in vpcs)}


@observes("path")
def path(view: View) -> Any:
    """{vpc: {cidrs, routes, shared, endpoints, subnets}} of VPCs that hold an instance.

    routes: [destination, through] that are active and lead to other VPCs; shared: CIDRs of its
    subnets that Audit sees; endpoints: CIDRs of the subnets of Instance Connect Endpoints;
    subnets: {id: cidr}.
    """
    ec2 = view.client("ec2")
    used = {
        i["VpcId"] for r in view.pages(ec2, "describe_instances", "Reservations")
        for i in r["Instances"] if i.get("VpcId") and i["State"]["Name"] != "terminated"
    }  # fmt: skip
    if not used:
        return {}
    tables = view.pages(ec2, "describe_route_tables", "RouteTables")
    subnets = view.pages(ec2, "describe_subnets", "Subnets")
    ends = view.pages(ec2, "describe_instance_connect_endpoints", "InstanceConnectEndpoints")
    audit = view.client("ec2", view.estate.audit)
    shared = view.pages(audit, "describe_subnets", "Subnets")
    cidr = {s["SubnetId"]: s["CidrBlock"] for s in subnets}
    return {
        vpc: {
            "routes": [
                [r["DestinationCidrBlock"], through]
                for t in tables if t["VpcId"] == vpc for r in t["Routes"]
                if r.get("State") == "active" and r.get("DestinationCidrBlock")
                and (through := r.get("VpcPeeringConnectionId") or r.get("TransitGatewayId"))
            ],
            "shared": sorted(s["CidrBlock"] for s in shared if s["VpcId"] == vpc),
            "endpoints": sorted(
                cidr.get(e["SubnetId"], "") for e in ends
                if e["VpcId"] == vpc and e["State"] == "create-complete"
            ),
            "subnets": {s["SubnetId"]: s["CidrBlock"] for s in subnets if s["VpcId"] == vpc},
        } for vpc in sorted(used)
    }  # fmt: skip


@observes("login")
def login(view: View) -> Any:
    """[{instance, platform, image, image_name, owner, key, metadata}] of those that run."""
    ec2 = view.client("ec2")
    running = [
        i for r in view.pages(ec2, "describe_instances", "Reservations") for i in r["Instances"]
        if i["State"]["Name"] in ("running", "pending")
    ]  # fmt: skip
    ids = sorted({i["ImageId"] for i in running})
    images: dict[str, Any] = {}
    for at in range(0, len(ids), 100):
        chosen = [{"Name": "image-id", "Values": ids[at : at + 100]}]
        images |= {i["ImageId"]: i for i in ec2.describe_images(Filters=chosen)["Images"]}
    return [
        {
            "instance": i["InstanceId"], "platform": i.get("Platform", ""), "image": i["ImageId"],
            "image_name": images.get(i["ImageId"], {}).get("Name", ""),
            "owner": images.get(i["ImageId"], {}).get("ImageOwnerAlias", ""),
            "key": i.get("KeyName", ""),
            "metadata": i.get("MetadataOptions", {}).get("HttpEndpoint", "enabled") == "enabled",
            "tags": {t["Key"]: t["Value"] for t in i.get("Tags", [])},
        } for i in running
    ]  # fmt: skip


@observes("events")
def events(view: View) -> Any:
    """{bus, queue, rules, arrived}: what leads from this account to Audit's queue.

    arrived: whether an event of ours came out of the queue, was seen in the log of the function
    that reads it, or None if that cannot be told.
    """
    s, audit = view.settings.readiness, view.estate.audit
    target = view.client("events", audit)
    bus = absent(target.describe_event_bus, Name=s.event_bus)
    sqs = view.client("sqs", audit)
    queue = absent(sqs.get_queue_url, QueueName=s.event_queue)
    fact: dict[str, Any] = {
        "bus": bus["Arn"] if bus else "", "queue": s.event_queue if queue else "", "rules": {},
        "arrived": False,
    }  # fmt: skip
    if not bus or not queue:
        return fact
    here = view.client("events")
    for name in here.list_rule_names_by_target(TargetArn=bus["Arn"])["RuleNames"]:
        rule = here.describe_rule(Name=name)
        fact["rules"][name] = {"on": rule["State"] == "ENABLED",
                               "pattern": rule.get("EventPattern", "")}  # fmt: skip
    url, nonce = queue["QueueUrl"], secrets.token_hex(12)
    readers, waiting = _readers(view, sqs, url)
    said = here.put_events(Entries=[{
        "Source": PROBE, "DetailType": "impound readiness probe",
        "Detail": json.dumps({"nonce": nonce}),
    }])  # fmt: skip
    if said["FailedEntryCount"]:
        raise PipelineError(f"the event bus refused the probe: {said['Entries'][0]}")
    through = any(r["on"] and PROBE in r["pattern"] for r in fact["rules"].values())
    wait_s = PROBE_S if through else 0.0
    names = (nonce, said["Entries"][0]["EventId"])
    if readers:
        fact["arrived"] = _until(wait_s, lambda: _logged(view, readers, names)) or (
            None if wait_s else False
        )
    elif waiting:  # each look counts towards its dead letters
        fact["arrived"] = None if wait_s else False
    else:
        fact["arrived"] = _until(wait_s, lambda: _taken(sqs, url, nonce))
    return fact


def _until(seconds: float, look: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not (found := look()) and time.monotonic() < end:
        time.sleep(0.5)
    return found


def _taken(sqs: Any, queue: str, nonce: str) -> bool:
    """Take our event out of a queue that nobody reads and that was empty; leave any other."""
    got = sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10, VisibilityTimeout=0)
    for message in got.get("Messages", []):
        if nonce in message["Body"]:
            sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
            return True
    return False


def _readers(view: View, sqs: Any, queue: str) -> tuple[list[str], int]:
    """Names of the functions that take from the queue; how many messages lie in it."""
    said = sqs.get_queue_attributes(
        QueueUrl=queue, AttributeNames=["QueueArn", "ApproximateNumberOfMessages"]
    )["Attributes"]
    mappings = view.client("lambda", view.estate.audit).list_event_source_mappings(
        EventSourceArn=said["QueueArn"]
    )["EventSourceMappings"]
    names = [m["FunctionArn"].split(":")[6] for m in mappings]
    return names, int(said["ApproximateNumberOfMessages"])


def _logged(view: View, functions: list[str], names: tuple[str, ...]) -> bool:
    """Whether a function that reads the queue logged our event."""
    logs, began = view.client("logs", view.estate.audit), int(time.time() - 300) * 1000
    pattern = " ".join(f'?"{name}"' for name in names)
    return any(
        (absent(logs.filter_log_events, logGroupName=f"/aws/lambda/{function}", startTime=began,
                filterPattern=pattern) or {"events": []})["events"]
        for function in functions
    )  # fmt: skip
