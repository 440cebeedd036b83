# SPDX-License-Identifier: Apache-2.0
"""Role sessions and events; one test a behaviour, both modes."""

from __future__ import annotations

import json
import time

import pytest

from pipeline.gameday.aws.accounts import AUDIT, MEMBER, role_arn

ROLE = "execution"


@pytest.fixture
def role(aws):
    """A role of the member account that Audit's responder may assume with an ExternalId."""
    trust = {
        "Effect": "Allow", "Action": "sts:AssumeRole",
        "Principal": {"AWS": role_arn(AUDIT, "impound-responder")},
        "Condition": {"StringEquals": {"sts:ExternalId": "xx"}},
    }  # fmt: skip
    aws.client("iam", MEMBER).create_role(
        RoleName=ROLE, AssumeRolePolicyDocument=json.dumps({"Statement": [trust]})
    )
    return role_arn(MEMBER, ROLE)


def test_trust(aws, role, refused):
    """IAM User Guide, ExternalId: the role named in the trust policy, and with the right id."""
    responder = aws.client("sts", AUDIT)
    how = {"RoleArn": role, "RoleSessionName": "T.me"}
    made = responder.assume_role(ExternalId="xx", **how)
    assert made["AssumedRoleUser"]["Arn"].endswith(f":assumed-role/{ROLE}/T.me")
    for client, more in (
        (responder, {}),
        (responder, {"ExternalId": "yy"}),
        (aws.client("sts", AUDIT, "somebody"), {"ExternalId": "xx"}),
    ):
        with refused("AccessDenied", 403):
            client.assume_role(**how, **more)


def test_a_chained_session_is_an_hour_at_most(aws, role, refused):
    """STS API reference, AssumeRole, DurationSeconds: role chaining."""
    responder = aws.client("sts", AUDIT)
    how = {"RoleArn": role, "RoleSessionName": "T.me", "ExternalId": "xx"}
    responder.assume_role(DurationSeconds=3600, **how)
    with refused("ValidationError", 400):
        responder.assume_role(DurationSeconds=3601, **how)


@pytest.mark.parametrize(
    ("service", "code", "ask"),
    [
        ("ec2", "RequestExpired", lambda c: c.describe_volumes()),
        ("s3", "ExpiredToken", lambda c: c.list_buckets()),
        ("kms", "ExpiredTokenException", lambda c: c.list_keys()),
        ("ebs", "ExpiredTokenException", lambda c: c.list_snapshot_blocks(SnapshotId="snap-1")),
    ],
)
def test_session_ends(aws, refused, service, code, ask):
    """IAM User Guide, Temporary credentials: each service's own code when they have expired."""
    client = aws.client(service, MEMBER)
    aws.behave(session_seconds=900)
    aws.advance(700)
    if service != "ebs":
        ask(client)
    aws.advance(201)
    with refused(code, 400):
        ask(client)
    aws.behave()
    if service != "ebs":
        ask(client)


def test_a_session_says_when_it_ends(aws):
    """STS API reference, Credentials, Expiration: what a client that renews them goes by."""
    aws.behave(session_seconds=900)
    made = aws.client("sts", AUDIT).assume_role(
        RoleArn=role_arn(MEMBER, "nobody-made-it"), RoleSessionName="T.me"
    )["Credentials"]
    assert 880 < made["Expiration"].timestamp() - time.time() < 901


def test_events_carry_their_account(aws):
    """EventBridge User Guide, Event structure: account."""
    events, sqs = aws.client("events", MEMBER), aws.client("sqs", MEMBER)
    url = sqs.create_queue(QueueName="q")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]
    events.put_rule(Name="r", EventPattern=json.dumps({"source": ["aws.ec2"]}))
    events.put_targets(Rule="r", Targets=[{"Id": "1", "Arn": arn["QueueArn"]}])
    events.put_events(Entries=[{"Source": "aws.ec2", "DetailType": "x", "Detail": "{}"}])
    [message] = sqs.receive_message(QueueUrl=url)["Messages"]
    body = json.loads(message["Body"])
    assert (body["account"], body["source"]) == (MEMBER, "aws.ec2")
