# SPDX-License-Identifier: Apache-2.0
"""Lambda Invoke of Python functions, in both modes."""

from __future__ import annotations

import json
import time

import pytest

from pipeline.gameday.aws.accounts import AUDIT, LOG_ARCHIVE, MEMBER, SEALER_ROLE


@pytest.fixture
def function(aws):
    """Register a handler of `handlers.py`; return its ARN."""

    def make(name, **more):
        handler = f"tests.pipeline.gameday.aws.handlers:{name}"
        return aws.register(LOG_ARCHIVE, "f", handler, SEALER_ROLE, invokers=(AUDIT,), **more)

    return make


def payload(answer):
    return json.loads(answer["Payload"].read())


def test_it_runs_as_its_own_role(aws, function):
    """Lambda Developer Guide, Execution role: not as who invokes it; across accounts by ARN."""
    arn = function("who", environment={"SETTING": "x"})
    answer = aws.client("lambda", AUDIT).invoke(FunctionName=arn, Payload=b'{"a": 1}')
    assert "FunctionError" not in answer
    assert (answer["StatusCode"], answer["ExecutedVersion"]) == (200, "$LATEST")
    assert payload(answer) == {
        "event": {"a": 1}, "account": LOG_ARCHIVE, "name": "f", "setting": "x",
        "arn": f"arn:aws:sts::{LOG_ARCHIVE}:assumed-role/{SEALER_ROLE}/f-",
    }  # fmt: skip


def test_name_partial_arn_and_qualifier(aws, function):
    """Lambda API reference, Invoke, FunctionName: name, partial ARN, ARN, each with a version."""
    arn = function("who")
    owner = aws.client("lambda", LOG_ARCHIVE)
    for name in ("f", f"{LOG_ARCHIVE}:function:f", arn, f"{arn}:live"):
        assert payload(owner.invoke(FunctionName=name))["account"] == LOG_ARCHIVE


def test_only_who_may_invokes_it(aws, function, refused):
    """Lambda Developer Guide, Resource-based policies: other accounts need to be allowed."""
    arn = function("who")
    with refused("AccessDeniedException", 403):
        aws.client("lambda", MEMBER).invoke(FunctionName=arn)


def test_what_it_raises(aws, function):
    """Lambda Developer Guide, Python errors: 200, FunctionError, errorMessage and errorType."""
    answer = aws.client("lambda").invoke(FunctionName=function("raises"))
    assert (answer["StatusCode"], answer["FunctionError"]) == (200, "Unhandled")
    body = payload(answer)
    assert (body["errorType"], body["errorMessage"]) == ("LookupError", "no such case")


def test_an_answer_that_is_no_json(aws, function):
    """Lambda Developer Guide, Python handler: what cannot be serialised is an error."""
    answer = aws.client("lambda").invoke(FunctionName=function("not_json"))
    assert answer["FunctionError"] == "Unhandled"
    assert payload(answer)["errorType"] == "TypeError"


def test_invocation_types(aws, function):
    """Lambda API reference, Invoke: Event answers 202 at once, DryRun 204."""
    arn = function("who")
    client = aws.client("lambda")
    assert client.invoke(FunctionName=arn, InvocationType="DryRun")["StatusCode"] == 204
    before = len(aws.calls())
    assert client.invoke(FunctionName=arn, InvocationType="Event")["StatusCode"] == 202
    end = time.monotonic() + 20
    while not any(c.operation == "GetCallerIdentity" for c in aws.calls()[before + 3 :]):
        assert time.monotonic() < end, "the function never ran"
        time.sleep(0.05)


def test_a_handler_that_ends_its_process(aws_server):
    """Lambda Developer Guide, Runtime errors: Runtime.ExitError."""
    arn = aws_server.register(AUDIT, "f", "tests.pipeline.gameday.aws.handlers:ends", SEALER_ROLE)
    answer = aws_server.client("lambda").invoke(FunctionName=arn)
    assert payload(answer)["errorType"] == "Runtime.ExitError"


def test_a_handler_that_takes_too_long(aws_server):
    """Lambda Developer Guide, Timeouts: Sandbox.Timedout."""
    arn = aws_server.register(
        AUDIT, "f", "tests.pipeline.gameday.aws.handlers:sleeps", SEALER_ROLE, timeout=0.5
    )
    answer = aws_server.client("lambda").invoke(FunctionName=arn)
    assert payload(answer)["errorType"] == "Sandbox.Timedout"


def test_unknown_function(aws, refused):
    """Lambda API reference, Invoke: ResourceNotFoundException."""
    with refused("ResourceNotFoundException", 404):
        aws.client("lambda").invoke(FunctionName="none")
