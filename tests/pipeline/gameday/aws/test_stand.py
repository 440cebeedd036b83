# SPDX-License-Identifier: Apache-2.0
"""Accounts, the server's life, and what the extension leaves alone."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.gameday.aws import call
from pipeline.gameday.aws.accounts import (
    AUDIT,
    LOG_ARCHIVE,
    MEMBER,
    RESPONDER_ROLE,
    AccountError,
)
from pipeline.gameday.aws.stand import InProcess, ServerProcess, StandError


def test_every_account_is_itself(aws):
    """STS API reference, GetCallerIdentity: account and assumed-role ARN of the session."""
    for account in (MEMBER, LOG_ARCHIVE, AUDIT):
        identity = aws.client("sts", account).get_caller_identity()
        assert identity["Account"] == account
        assert identity["Arn"].endswith(f":assumed-role/{RESPONDER_ROLE}/gameday")


def test_accounts_do_not_see_each_other(aws):
    aws.client("sqs", MEMBER).create_queue(QueueName="of-member")
    assert "QueueUrls" not in aws.client("sqs", AUDIT).list_queues()
    assert len(aws.client("sqs", MEMBER).list_queues()["QueueUrls"]) == 1


def test_one_account_for_all_is_refused(aws_in_process, monkeypatch):
    monkeypatch.setenv("MOTO_ACCOUNT_ID", AUDIT)
    with pytest.raises(AccountError, match="MOTO_ACCOUNT_ID"):
        aws_in_process.credentials(MEMBER)


def test_a_session_in_the_wrong_account_is_noticed(aws_in_process, monkeypatch):
    """moto takes an unknown key for account 123456789012; nobody must act there unawares."""
    from pipeline.gameday.aws import call as module

    monkeypatch.setattr(module, "get_account_id_from", lambda _key: "123456789012")
    monkeypatch.setattr("moto.core.responses.BaseResponse.get_current_account", lambda _: AUDIT)
    with pytest.raises(AccountError, match="not arn:aws:sts::222222222222"):
        aws_in_process.credentials(MEMBER)


def test_reset(aws):
    aws.client("s3").create_bucket(
        Bucket="evidence", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
    )
    aws.reset()
    assert aws.calls() == []
    assert aws.client("s3").list_buckets()["Buckets"] == []


def test_another_moto_is_refused(monkeypatch):
    monkeypatch.setattr(call, "_installed", False)
    monkeypatch.setattr("moto.__version__", "99.0")
    with pytest.raises(call.MotoVersionError, match=call.MOTO_VERSION.replace(".", r"\.")):
        call.install()


def test_nothing_is_patched_before_install():
    """Importing moto and the extension changes nothing."""
    code = (
        "from moto.core.base_backend import BaseBackend as B; before = B.urls, B.url_paths\n"
        "import pipeline.gameday.aws.server, pipeline.gameday.aws.stand\n"
        "assert (B.urls, B.url_paths) == before\n"
        "from pipeline.gameday.aws.call import install; install()\n"
        "assert B.urls != before[0]; patched = B.urls\n"
        "install(); assert B.urls is patched\n"
    )
    subprocess.run([sys.executable, "-I", "-c", code], check=True)


def test_the_command_line_does_not_load_it():
    code = (
        "import sys; from pipeline.cli.base import run; run(['--version'])\n"
        "import pipeline.gameday, pipeline.cli.gameday\n"
        "assert not {'moto', 'boto3', 'pipeline.gameday.aws'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-I", "-c", code], check=True, stdout=subprocess.DEVNULL)


def running(pid):
    """Whether the process lives (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def gone(pid, seconds=10.0):
    end = time.monotonic() + seconds
    while running(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not running(pid)


def test_server_ends_with_its_user():
    with ServerProcess() as server:
        pid = server.pid
        assert running(pid)
    assert gone(pid)
    with pytest.raises(StandError, match="not running"):
        _ = server.pid
    server.stop()  # once more is nothing


def test_server_dies_with_its_parent():
    """Also when the parent is killed and can say nothing."""
    code = (
        "import time\n"
        "from pipeline.gameday.aws.stand import ServerProcess\n"
        "with ServerProcess() as s:\n"
        "    print(s.pid, flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-I", "-c", code], stdout=subprocess.PIPE)
    with parent:
        pid = int(parent.stdout.readline())
        parent.kill()
    assert gone(pid)


def test_server_that_does_not_start(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(StandError, match="did not start"), ServerProcess():
        pass


def test_server_ends_on_sigterm():
    with ServerProcess() as server:
        os.kill(server.pid, signal.SIGTERM)
        assert server.wait(10)


def test_settings_of_the_user_do_not_reach_the_server(monkeypatch):
    monkeypatch.setenv("MOTO_S3_ALLOW_CROSSACCOUNT_ACCESS", "false")
    with ServerProcess() as server:
        environ = Path(f"/proc/{server.pid}/environ").read_bytes()
    assert b"MOTO_S3_ALLOW" not in environ


def asked(server, method, path, headers):
    connection = http.client.HTTPConnection(server.endpoint.removeprefix("http://"), timeout=10)
    try:
        connection.request(method, path, body="{}", headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/impound-sim/reset", {}),
        ("/impound-sim/functions", {"X-Impound-Secret": "0" * 32}),
        ("/", {"Origin": "http://evil.example"}),
        ("/", {"Host": "rebound.example"}),
        ("/moto-api/reset", {}),
    ],
)
def test_strangers_are_not_served(aws_server, path, headers):
    """Any program or web page on this machine can reach the port; registering is running code."""
    assert asked(aws_server, "POST", path, headers) == 403


def test_no_web_page_may_read_answers(aws_server):
    connection = http.client.HTTPConnection(aws_server.endpoint.removeprefix("http://"))
    try:
        connection.request("GET", "/")
        answer = connection.getresponse()
        answer.read()
        assert "Access-Control-Allow-Origin" not in answer.headers
    finally:
        connection.close()


def test_state_outlives_its_users(aws_server):
    """What kill tests need: the client dies, AWS does not."""
    region = {"LocationConstraint": "eu-central-1"}
    aws_server.client("s3").create_bucket(Bucket="bbb", CreateBucketConfiguration=region)
    code = (
        "import boto3, os, sys; c = boto3.client('s3'); c.put_object(Bucket='bbb', Key='k')\n"
        "os.kill(os.getpid(), 9)\n"
    )
    env = os.environ | aws_server.credentials().environment()
    done = subprocess.run(
        [sys.executable, "-c", code], env=env | {"AWS_ENDPOINT_URL": aws_server.endpoint},
        check=False,
    )  # fmt: skip
    assert done.returncode == -9
    assert aws_server.client("s3").list_objects_v2(Bucket="bbb")["KeyCount"] == 1


def test_in_process_leaves_no_mock_behind():
    from botocore.config import Config
    from botocore.exceptions import EndpointConnectionError

    with InProcess() as stand:
        credentials = stand.credentials()
    once = Config(retries={"total_max_attempts": 1})
    client = credentials.session().client("sts", endpoint_url="http://127.0.0.1:9", config=once)
    with pytest.raises(EndpointConnectionError):
        client.get_caller_identity()
