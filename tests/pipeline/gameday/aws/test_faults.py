# SPDX-License-Identifier: Apache-2.0
"""Faults on demand, in both modes."""

from __future__ import annotations

import time

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    IncompleteReadError,
    ResponseStreamingError,
)

from pipeline.gameday.aws.accounts import AUDIT, LOG_ARCHIVE
from pipeline.gameday.aws.faults import ERRORS, Fault
from pipeline.gameday.aws.stand import StandError


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("ConditionalRequestConflict", 409),
        ("SlowDown", 503),
        ("InternalError", 500),
        ("ExpiredToken", 400),
        ("RequestTimeTooSkewed", 403),
        ("AccessDenied", 403),
    ],
)
def test_s3_error(aws, s3, bucket, refused, code, status):
    """S3 API reference, Error responses: the code, its status, and nothing was done."""
    aws.faults.add(Fault("error", service="s3", operation="PutObject", code=code))
    with refused(code, status) as caught:
        s3.put_object(Bucket=bucket, Key="k", Body=b"")
    assert caught.value.response["Error"]["Message"].startswith(ERRORS[code][1])
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0
    s3.put_object(Bucket=bucket, Key="k", Body=b"")


@pytest.mark.parametrize(
    ("service", "operation", "call"),
    [
        ("kms", "ListKeys", lambda c: c.list_keys()),
        ("ec2", "DescribeInstances", lambda c: c.describe_instances()),
        ("sts", "GetCallerIdentity", lambda c: c.get_caller_identity()),
        ("ebs", "ListSnapshotBlocks", lambda c: c.list_snapshot_blocks(SnapshotId="snap-1")),
        ("sqs", "ListQueues", lambda c: c.list_queues()),
        ("lambda", "ListFunctions", lambda c: c.list_functions()),
    ],
)
def test_any_service(aws, refused, service, operation, call):
    """Every protocol (JSON, EC2, query, REST JSON) in its own form of error."""
    client = aws.client(service)
    aws.faults.add(
        Fault("error", service=service, operation=operation, code="ExpiredTokenException")
    )
    with refused("ExpiredTokenException", 400):
        call(client)


def test_denied(aws, refused):
    """EC2 API reference, Error codes, UnauthorizedOperation; EBS direct has 403 for a denial."""
    aws.faults.add(
        Fault("error", service="ec2", code="UnauthorizedOperation"),
        Fault("error", service="ebs", code="AccessDeniedException", status=403),
    )
    with refused("UnauthorizedOperation", 403):
        aws.client("ec2").describe_snapshots()
    with refused("AccessDeniedException", 403):
        aws.client("ebs").list_snapshot_blocks(SnapshotId="snap-1")


def test_retries_of_the_client(aws, bucket):
    """AWS SDKs guide, Retry behavior: the client tries again after 503."""
    aws.faults.add(Fault("error", operation="PutObject", code="SlowDown"))
    done = aws.client("s3", retries=2).put_object(Bucket=bucket, Key="k", Body=b"")
    assert done["ResponseMetadata"]["RetryAttempts"] == 1
    assert len(aws.faults.hits()) == 1


def test_answer_lost(aws, s3, bucket):
    """The object is there, but the client never hears of it."""
    aws.faults.add(Fault("lost-answer", operation="PutObject"))
    with pytest.raises(ConnectionClosedError):
        s3.put_object(Bucket=bucket, Key="k", Body=b"1")
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"1"


def test_answer_lost_and_tried_again(aws, bucket, refused):
    """A retry of a write-once PUT whose answer was lost finds its own object: 412."""
    aws.faults.add(Fault("lost-answer", operation="PutObject"))
    with refused("PreconditionFailed", 412):
        aws.client("s3", retries=2).put_object(Bucket=bucket, Key="k", Body=b"1", IfNoneMatch="*")


def test_body_cut_off(aws, s3, bucket):
    """Half of the body under its full length: the reader must notice."""
    s3.put_object(Bucket=bucket, Key="k", Body=b"x" * 100_000)
    aws.faults.add(Fault("truncate", operation="GetObject"))
    body = s3.get_object(Bucket=bucket, Key="k")["Body"]
    with pytest.raises((IncompleteReadError, ResponseStreamingError)):
        body.read()


def test_body_damaged(aws, s3, bucket):
    """One byte is another, and no header says so."""
    s3.put_object(Bucket=bucket, Key="k", Body=b"x" * 999)
    aws.faults.add(Fault("corrupt", operation="GetObject"))
    got = s3.get_object(Bucket=bucket, Key="k", Range="bytes=0-998")["Body"].read()
    assert got == b"x" * 499 + b"\x87" + b"x" * 499
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"x" * 999


def test_delay(aws, s3, bucket):
    """The call takes longer, and is done."""
    aws.faults.add(Fault("delay", operation="PutObject", seconds=0.3))
    began = time.monotonic()
    s3.put_object(Bucket=bucket, Key="k", Body=b"")
    assert time.monotonic() - began >= 0.3


def test_which_calls(aws, s3, bucket, refused):
    """`skip`, `times` and patterns of account and resource."""
    aws.faults.add(
        Fault("error", account=LOG_ARCHIVE, code="SlowDown", times=None),
        Fault("error", resource="evidence/cases/*/log", code="InternalError", skip=1, times=1),
    )
    s3.put_object(Bucket=bucket, Key="cases/T/log", Body=b"")  # skipped
    s3.put_object(Bucket=bucket, Key="cases/T/other", Body=b"")  # another resource
    with refused("InternalError", 500):
        s3.put_object(Bucket=bucket, Key="cases/T/log", Body=b"")
    s3.put_object(Bucket=bucket, Key="cases/T/log", Body=b"")  # spent
    assert [(h.rule, h.account, h.resource) for h in aws.faults.hits()] == [
        (1, AUDIT, "evidence/cases/T/log")
    ]
    aws.faults.clear()
    assert aws.faults.rules() == []
    assert aws.faults.hits() == []


def test_calls_are_kept(aws, s3, bucket):
    """So that a test can say what was never asked."""
    s3.put_object(Bucket=bucket, Key="k", Body=b"")
    seen = [(c.service, c.operation, c.account, c.resources) for c in aws.calls()]
    assert seen[-1] == ("s3", "PutObject", AUDIT, ("evidence/k",))
    assert ("s3", "CreateBucket", AUDIT, ("evidence",)) in seen


@pytest.mark.parametrize(
    "bad",
    [
        {"kind": "explode"},
        {"kind": "error"},
        {"kind": "error", "code": "NoSuchCode"},
        {"kind": "delay"},
        {"kind": "corrupt", "times": 0},
        {"kind": "corrupt", "skip": -1},
        {"kind": "corrupt", "colour": "red"},
        {"code": "SlowDown"},
    ],
)
def test_malformed_rule(bad):
    with pytest.raises(ValueError):
        Fault.from_document(bad)


def test_malformed_rule_at_the_control_endpoint(aws_server):
    with pytest.raises(StandError, match="no such kind"):
        aws_server.control("POST", "faults", {"kind": "explode"})
    with pytest.raises(StandError, match="no such control"):
        aws_server.control("GET", "weather")


def test_error_of_its_own():
    fault = Fault("error", code="Custom", status=418)
    assert fault.answer == (418, "Custom", "Custom")


def test_a_refused_call_has_no_effect(aws, s3, bucket):
    """Errors are answered in front of moto: a throttled call is not executed."""
    aws.faults.add(Fault("error", operation="DeleteObject", code="SlowDown"))
    s3.put_object(Bucket=bucket, Key="k", Body=b"")
    with pytest.raises(ClientError):
        s3.delete_object(Bucket=bucket, Key="k")
    assert "DeleteMarkers" not in s3.list_object_versions(Bucket=bucket)
