# SPDX-License-Identifier: Apache-2.0
"""`impound isolate` and `impound release` as a responder uses them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from pipeline.gameday.aws.accounts import MEMBER
from pipeline.gameday.aws.faults import Fault
from pipeline.gameday.aws.seed import WEB


@pytest.fixture
def images(tmp_path):
    """One small volume: what is in it is not of interest here."""
    image = tmp_path / "root.img"
    image.write_bytes(bytes(4096))
    return [image]


@pytest.fixture
def cloud(cloud, settings):
    settings('isolation_sources = ["10.9.0.0/24"]\n')
    return cloud


@pytest.fixture
def target(zone):
    return zone.estate.variables()["INSTANCE"]


def groups(aws_server):
    """Of every interface that an instance has."""
    found = aws_server.client("ec2", MEMBER).describe_network_interfaces()["NetworkInterfaces"]
    return [g["GroupName"] for n in found for g in n["Groups"] if n.get("Attachment")]


def entries(cloud):
    return len(cloud("--json", "case", "show", "T-1").json["entries"])


def test_the_whole_way(cloud, target, aws_server):
    planned = cloud("--json", "isolate", target, "--case", "T-1", "--dry-run")
    assert planned.code == 0, planned.err
    assert (planned.json["message_type"], entries(cloud)) == ("plan", 1)
    done = cloud("--json", "isolate", target, "--case", "T-1")
    assert done.code == 3, done.err
    assert done.json["verdict"] == "groups applied, not probed"
    assert [c["attribute"] for c in done.json["changes"]] == [
        c["attribute"] for c in planned.json["changes"]
    ]
    again = cloud("isolate", target, "--case", "T-1", "--dry-run")
    assert again.code == 0
    assert "isolation-group" not in again.out
    size = entries(cloud)
    waiting = cloud("--json", "release", target, "--case", "T-1")
    assert waiting.code == 4
    assert entries(cloud) == size
    assert "impound-isolation" in groups(aws_server)
    dry = cloud("--json", "release", target, "--case", "T-1", "--dry-run")
    assert (dry.code, {a["what"] for a in dry.json["attributes"]}) == (0, {"restore"})
    released = cloud("--yes", "--json", "release", target, "--case", "T-1")
    assert released.code == 0, released.err
    assert {a["restored"] for a in released.json["attributes"]} == {"exact", "new id"}
    assert "impound-isolation" not in groups(aws_server)
    shown = cloud("case", "show", "T-1").out
    assert "target.restored" in shown
    assert "restore i-" in shown
    assert cloud("verify", "T-1").code == 0
    nothing = cloud("--yes", "release", target, "--case", "T-1")
    assert (nothing.code, "changed nothing" in nothing.out) == (0, True)


@pytest.mark.parametrize("command", ["isolate", "release"])
def test_what_is_no_instance(cloud, command, zone):
    volume = zone.estate.variables()["VOLUMES"].split()[0]
    done = cloud(command, volume, "--case", "T-1")
    assert (done.code, "is no instance" in done.err) == (2, True)


@pytest.mark.parametrize("command", ["isolate", "release"])
def test_a_case_that_is_not_there(cloud, command, target, tmp_path):
    done = cloud("--yes", command, target, "--case", "T-2")
    assert (done.code, "no case T-2" in done.err) == (11, True)
    assert not list(tmp_path.rglob("spool"))


def test_a_peer_that_is_no_address(cloud, target):
    done = cloud("isolate", target, "--case", "T-1", "--peer", "evil.example.org")
    assert done.code == 2


@pytest.mark.parametrize("key", ["ASIAIOSFODNN7EXAMPLE", "root", "AKIA"])
def test_a_key_that_is_no_users(cloud, target, key):
    done = cloud("isolate", target, "--case", "T-1", "--user-key", key)
    assert done.code == 2
    assert "AKIA" in done.err


@pytest.mark.chaos
def test_role_wide_waits_for_an_approval_and_names_whom_it_breaks(cloud, target, aws_server):
    other = aws_server.client("ec2", MEMBER).run_instances(
        ImageId="ami-gameday", InstanceType="m6i.large", MinCount=1, MaxCount=1,
        IamInstanceProfile={"Name": WEB},
    )["Instances"][0]["InstanceId"]  # fmt: skip
    planned = cloud("--json", "isolate", target, "--case", "T-1", "--role-wide", "--dry-run")
    assert planned.json["breaks"] == [other]
    done = cloud("isolate", target, "--case", "T-1", "--role-wide")
    assert done.code == 4
    assert other in done.out
    assert "impound-isolation" in groups(aws_server)
    done = cloud("--yes", "isolate", target, "--case", "T-1", "--role-wide")
    assert done.code == 3
    assert f"BREAKS: {other}" in done.out


def test_waits_for_an_approval(cloud, target, aws_server):
    for operation in ("DetachInstances", "EnterStandby"):
        aws_server.faults.add(Fault("error", service="autoscaling", operation=operation,
                                    code="AccessDenied", times=None))  # fmt: skip
    done = cloud("isolate", target, "--case", "T-1")
    assert (done.code, "WAITS:" in done.out) == (4, True)
    assert "impound-isolation" not in groups(aws_server)
    assert cloud("--yes", "isolate", target, "--case", "T-1").code == 3


def test_terminated(cloud, target, aws_server, zone):
    aws_server.client("autoscaling", MEMBER).detach_instances(
        AutoScalingGroupName="web-server", InstanceIds=[zone.estate.instance],
        ShouldDecrementDesiredCapacity=False,
    )  # fmt: skip
    aws_server.client("ec2", MEMBER).terminate_instances(InstanceIds=[zone.estate.instance])
    done = cloud("isolate", target, "--case", "T-1")
    assert (done.code, "nothing to isolate" in done.err) == (12, True)


@pytest.mark.chaos
@pytest.mark.parametrize(
    "operation", ["DetachInstances", "AuthorizeSecurityGroupIngress", "PutRolePolicy"]
)
def test_killed_and_run_again(cloud, target, aws_server, operation):
    """By kill -9, while a change is under way."""
    aws_server.faults.add(Fault("delay", operation=operation, seconds=3.0))
    command = [sys.executable, "-c", "import sys; from pipeline.cli.base import run; "
               "sys.exit(run(sys.argv[1:]))", "isolate", target, "--case", "T-1"]  # fmt: skip
    process = subprocess.Popen(
        command, env=os.environ.copy(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for _ in range(600):
        if aws_server.faults.hits():
            break
        time.sleep(0.05)
    assert aws_server.faults.hits()
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    aws_server.faults.clear()
    done = cloud("--json", "isolate", target, "--case", "T-1")
    assert done.json["verdict"] == "groups applied, not probed"
    assert len(done.json["gaps"]) == 1
    released = cloud("--yes", "--json", "release", target, "--case", "T-1")
    assert released.code == 0, released.out
    assert cloud("verify", "T-1").code == 0
