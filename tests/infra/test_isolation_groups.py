# SPDX-License-Identifier: Apache-2.0
"""The function of member.yaml that keeps isolation groups, run as it stands in the template."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from acquisition.containment.aws import Aws
from acquisition.containment.state import Attribute, Wanted
from pipeline.gameday.aws.accounts import MEMBER
from pipeline.gameday.aws.faults import Fault
from tests.infra.kit import stacks

SOURCES = ("10.9.0.0/24", "10.9.1.0/24")


@pytest.fixture
def function(aws_in_process, monkeypatch):
    """Its handler, under its own role."""
    [p] = [p for k, p in stacks()["member"].of("AWS::Lambda::Function")]
    assert p["Handler"] == "index.handler"
    credentials = aws_in_process.credentials(MEMBER, "IsolationGroupsRole")
    for name, value in (credentials.environment() | p["Environment"]["Variables"]).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)  # a function has a process of its own
    module: dict = {"__name__": "index"}
    exec(compile(p["Code"]["ZipFile"], "index.py", "exec"), module)
    return module["handler"]


@pytest.fixture
def ec2(aws_in_process):
    return aws_in_process.client("ec2", MEMBER)


@pytest.fixture
def answers():
    """Where a custom resource answers: a URL, and what came."""
    came: list[tuple[str, dict]] = []

    class Catch(BaseHTTPRequestHandler):
        def do_PUT(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            came.append((self.headers.get("Content-Type", ""), json.loads(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Catch) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/x", came
        server.shutdown()
        thread.join()


def order(url, kind="Create", **more):
    return {"RequestType": kind, "ResponseURL": url, "StackId": "s", "RequestId": "r",
            "LogicalResourceId": "IsolationGroups", **more}  # fmt: skip


def vpcs(ec2):
    return [v["VpcId"] for v in ec2.describe_vpcs()["Vpcs"]]


def held(ec2, vpc):
    """As `isolate` reads it."""
    return Aws(ec2, None, None, "i-0").read(Attribute("isolation-group", vpc))


def new_vpc(vpc):
    return {"detail": {"eventName": "CreateVpc", "responseElements": {"vpc": {"vpcId": vpc}}}}


def test_each_vpc_has_the_group_that_isolate_wants(function, ec2, answers):
    url, came = answers
    second = ec2.create_vpc(CidrBlock="10.77.0.0/16")["Vpc"]["VpcId"]
    function(order(url), None)
    [(content_type, said)] = came
    assert (said["Status"], said["Data"], content_type) == ("SUCCESS", {"Groups": "2"}, "")
    assert second in vpcs(ec2)
    for vpc in vpcs(ec2):
        assert held(ec2, vpc)["rules"] == Wanted(SOURCES).rules


def test_again_it_changes_nothing(function, ec2, answers, aws_in_process):
    url, came = answers
    function(order(url), None)
    before = {v: held(ec2, v) for v in vpcs(ec2)}
    function(order(url, "Update", PhysicalResourceId="impound-isolation"), None)
    assert {v: held(ec2, v) for v in vpcs(ec2)} == before
    assert came[-1][1]["PhysicalResourceId"] == "impound-isolation"


def test_a_new_vpc_gets_one(function, ec2):
    made = ec2.create_vpc(CidrBlock="10.78.0.0/16")["Vpc"]["VpcId"]
    assert function(new_vpc(made), None).keys() == {made}
    assert held(ec2, made)["rules"] == Wanted(SOURCES).rules
    assert [v for v in vpcs(ec2) if v != made and held(ec2, v)] == []


def test_ways_out_are_shut_and_ways_in_left(function, ec2):
    """A case may have opened a port, which `isolate` looks after; nothing opens the way out."""
    [vpc] = vpcs(ec2)
    group = function(new_vpc(vpc), None)[vpc]
    ec2.authorize_security_group_egress(GroupId=group, IpPermissions=[
        {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]},
        {"IpProtocol": "tcp", "FromPort": 443, "ToPort": 443,
         "IpRanges": [{"CidrIp": "203.0.113.0/24"}]},
    ])  # fmt: skip
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[
        {"IpProtocol": "tcp", "FromPort": 4445, "ToPort": 4445,
         "IpRanges": [{"CidrIp": "10.9.0.0/24"}]},
    ])  # fmt: skip
    function(new_vpc(vpc), None)
    assert held(ec2, vpc)["rules"] == Wanted((*SOURCES,)).rules[:1] + sorted(
        [*Wanted(SOURCES).rules[1:], "ingress tcp 4445 10.9.0.0/24"]
    )


def test_groups_stay_when_the_stack_goes(function, ec2, answers):
    url, came = answers
    function(order(url), None)
    function(order(url, "Delete"), None)
    assert [said.get("Reason", said["Status"]) for _, said in came] == ["SUCCESS", "SUCCESS"]
    assert all(held(ec2, v) for v in vpcs(ec2))


def test_a_failure_is_told_to_the_stack(function, answers, aws_in_process):
    """Else the stack would wait for an hour."""
    url, came = answers
    aws_in_process.faults.add(Fault("error", service="ec2", operation="DescribeVpcs", times=None,
                                    code="UnauthorizedOperation"))  # fmt: skip
    function(order(url), None)
    assert came[-1][1]["Status"] == "FAILED"
    assert "UnauthorizedOperation" in came[-1][1]["Reason"]


def test_only_what_its_role_is_granted(function, ec2, answers, aws_in_process):
    from tests.infra.calls import refused

    made = ec2.create_vpc(CidrBlock="10.79.0.0/16")["Vpc"]["VpcId"]
    function(order(answers[0]), None)
    function(new_vpc(made), None)
    assert refused(aws_in_process.calls()) == []
