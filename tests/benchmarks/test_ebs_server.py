# SPDX-License-Identifier: Apache-2.0
"""The server that benchmarks of EBS direct read from, as boto3 sees it."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

SERVER = Path(__file__).parents[2] / "benchmarks" / "ebs_server.py"


@pytest.fixture
def serve(tmp_path):
    """Start it over a sparse image of 1 GiB; return a client and what it printed."""
    started = []

    def start(*options):
        image = tmp_path / "image"
        with image.open("wb") as f:
            f.truncate(1 << 30)
            for i in (0, 3, 2047):
                f.seek(i << 19)
                f.write(b"%d" % i)
        process = subprocess.Popen(
            [sys.executable, SERVER, image, *options], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        told = json.loads(process.stdout.readline())
        client = boto3.Session("key", "secret", region_name="eu-central-1").client(
            "ebs", endpoint_url=told["endpoint"],
            config=Config(retries={"total_max_attempts": 1}, ignore_configured_endpoint_urls=True),
        )  # fmt: skip
        return client, told

    yield start
    for process in started:
        process.terminate()
        assert process.wait(20) in (0, -15)
        process.stdout.close()


def test_it_speaks_ebs_direct(serve):
    ebs, told = serve("--latency", "0")
    assert (told["blocks"], told["size"]) == (3, 1 << 30)
    listed = ebs.list_snapshot_blocks(SnapshotId=told["snapshot"])
    assert [b["BlockIndex"] for b in listed["Blocks"]] == [0, 3, 2047]
    for block in listed["Blocks"]:
        got = ebs.get_snapshot_block(SnapshotId=told["snapshot"], **block)
        body = got["BlockData"].read()
        assert body == (b"%d" % block["BlockIndex"]).ljust(1 << 19, b"\0")
        assert got["DataLength"] == len(body)
        assert got["Checksum"] == base64.b64encode(hashlib.sha256(body).digest()).decode()
    with pytest.raises(ClientError, match="ValidationException"):
        ebs.get_snapshot_block(SnapshotId=told["snapshot"], BlockIndex=0, BlockToken="aaaa")
    with pytest.raises(ClientError, match="ResourceNotFoundException"):
        ebs.list_snapshot_blocks(SnapshotId="snap-1")


def test_latency_and_rate(serve):
    ebs, told = serve("--latency", "0.1", "--rate", "0.001", "--burst", "2")
    began = time.monotonic()
    for _ in range(2):
        ebs.list_snapshot_blocks(SnapshotId=told["snapshot"])
    assert time.monotonic() - began >= 0.2
    with pytest.raises(ClientError) as caught:
        ebs.list_snapshot_blocks(SnapshotId=told["snapshot"])
    assert caught.value.response["Error"]["Code"] == "RequestThrottledException"
    assert caught.value.response["Reason"] == "RESOURCE_LEVEL_THROTTLE"
