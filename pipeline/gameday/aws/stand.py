# SPDX-License-Identifier: Apache-2.0
"""The stand-in for whoever uses it: in this process, or as a process of its own.

with InProcess() as aws:                        # or ServerProcess()
    s3 = aws.client("s3", AUDIT)
    aws.faults.add(Fault("error", service="s3", operation="PutObject", code="SlowDown"))
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import secrets
import select
import subprocess
import sys
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self, cast

import boto3
from botocore.config import Config

from pipeline.gameday.aws import accounts
from pipeline.gameday.aws.accounts import AUDIT, RESPONDER_ROLE, Credentials
from pipeline.gameday.aws.faults import Fault, Hit, Seen

START_SECONDS = 60.0


class StandError(RuntimeError):
    """The server process did not start, or refused what it was told."""


class FaultRules(Protocol):
    """Fault rules of either mode."""

    def add(self, *faults: Fault) -> None:
        """Add rules."""

    def clear(self) -> None:
        """Forget rules and hits."""

    def hits(self) -> list[Hit]:
        """What was done, in order."""
        ...

    def rules(self) -> list[Fault]:
        """The rules, in order."""
        ...


class Stand(ABC):
    """What both modes share. Clients and credentials are kept until `reset`."""

    endpoint: str | None = None
    faults: FaultRules

    def __init__(self) -> None:
        self._credentials: dict[tuple[str, str, str], Credentials] = {}
        self._clients: dict[tuple[str, ...], Any] = {}
        self._making = threading.Lock()  # sessions are shared, and make one client at a time

    def credentials(
        self, account: str = AUDIT, role: str = RESPONDER_ROLE, session_name: str = "gameday"
    ) -> Credentials:
        """Return credentials of a role session; the identity was checked."""
        key = (account, role, session_name)
        if key not in self._credentials:
            self._credentials[key] = accounts.assume(*key, endpoint=self.endpoint)
        return self._credentials[key]

    def session(self, account: str = AUDIT, role: str = RESPONDER_ROLE) -> boto3.Session:
        """Return a boto3 session; in the server mode give its clients `endpoint`."""
        return self.credentials(account, role).session()

    def client(
        self, service: str, account: str = AUDIT, role: str = RESPONDER_ROLE, *,
        retries: int = 1, config: Config | None = None,
    ) -> Any:  # fmt: skip
        """Return a boto3 client.

        Args:
            service: boto3's name.
            account: where to act.
            role: as whom.
            retries: attempts in all; 1, so that a fault reaches the caller.
            config: merged over ours.
        """
        key = (service, account, role, str(retries), str(id(config) if config else ""))
        with self._making:
            if key not in self._clients:
                ours = Config(
                    retries={"total_max_attempts": retries, "mode": "standard"},
                    connect_timeout=10, read_timeout=30, ignore_configured_endpoint_urls=True,
                )  # fmt: skip
                self._clients[key] = self.session(account, role).client(
                    service, endpoint_url=self.endpoint,
                    config=ours.merge(config) if config else ours,
                )  # fmt: skip
            return self._clients[key]

    def reset(self) -> None:
        """Empty accounts, no faults, no functions; sessions end."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        self._credentials.clear()
        self._forget()

    @abstractmethod
    def calls(self) -> list[Seen]:
        """Every call so far."""

    def register(
        self, account: str, name: str, handler: str, role: str, *,
        invokers: tuple[str, ...] = (), timeout: float = 60.0,
        environment: dict[str, str] | None = None,
    ) -> str:  # fmt: skip
        """Make a Lambda function known; return its ARN. Arguments: `functions.Function`."""
        self._register({
            "account": account, "name": name, "handler": handler, "role": role,
            "invokers": invokers, "timeout": timeout,
            "environment": tuple((environment or {}).items()),
        })  # fmt: skip
        return f"arn:aws:lambda:{accounts.REGION}:{account}:function:{name}"

    def behave(self, **settings: Any) -> None:
        """Behave so from now on; what is not named is as by default. Fields: `Settings`."""
        self._perform({"settings": settings})

    def advance(self, seconds: float) -> None:
        """Let time pass in the stand-in: locks, tokens, pending snapshots, sessions."""
        self._perform({"advance": seconds})

    def fill(self, volume_id: str, content: Path | str | Mapping[int, Any]) -> None:
        """Say what a volume holds.

        Args:
            volume_id: of any account.
            content: path of a sparse file (which must not change any more), or blocks of 512 KiB by
                index: bytes, shorter ones filled with zeros, or in this process also functions
                that return them.
        """
        self._perform({"fill": volume_id, "content": content})

    def write(self, volume_id: str, blocks: Mapping[int, bytes]) -> None:
        """Write blocks to a volume, as its instance would; snapshots that exist stay as they are.

        Arguments as of `fill`.
        """
        self._perform({"write": volume_id, "content": blocks})

    def set_snapshot(self, snapshot_id: str, state: str, message: str = "") -> None:
        """Put a snapshot into a state: `pending` (until told otherwise), `completed`, `error`.

        Args:
            snapshot_id: of any account.
            state: see above.
            message: its StateMessage.
        """
        self._perform({"snapshot": snapshot_id, "state": state, "message": message})

    def attach(self, instance: str, ports: Mapping[int, int], keys: Path | str = "") -> None:
        """Put a machine behind an instance.

        Args:
            instance: of any account.
            ports: of the instance -> on 127.0.0.1.
            keys: folder for keys that EC2 Instance Connect pushes; see `network.Network.attach`.
        """
        self._perform({"attach": instance, "ports": dict(ports), "keys": os.fspath(keys)})

    def place(self, address: str, ports: Mapping[int, int]) -> None:
        """Put a machine at an address that is no instance's; `ports` as of `attach`."""
        self._perform({"place": address, "ports": dict(ports)})

    def vantage(self, address: str, via: str = "") -> int:
        """Return the port, on 127.0.0.1, of an HTTP CONNECT proxy for somebody at an address.

        Args:
            address: where the flows come from; that of an interface: from its instance.
            via: what they go through that always tracks them: `flows.ALWAYS_TRACKED`, or "".
        """
        return int(self._perform({"vantage": address, "via": via})["port"])

    @abstractmethod
    def flows(self) -> list[dict[str, Any]]:
        """Flows through the proxies that began and are not over; see `network.Network.flows`."""

    @abstractmethod
    def _forget(self) -> None:
        """Empty everything."""

    @abstractmethod
    def _perform(self, document: dict[str, Any]) -> dict[str, Any]:
        """Change a state; return what `server.perform` does."""

    @abstractmethod
    def _register(self, function: dict[str, Any]) -> None:
        """Make a function known."""


class InProcess(Stand):
    """The stand-in in this process: fast; dies with it; one at a time."""

    def __enter__(self) -> Self:
        from moto import mock_aws

        from pipeline.gameday.aws import call

        call.install()
        self.faults = call.faults
        self._mock = mock_aws()
        self._mock.start()
        self._forget()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.reset()
        self._mock.stop()

    def calls(self) -> list[Seen]:
        """Every call so far."""
        from pipeline.gameday.aws import call

        return list(call.calls)

    def _forget(self) -> None:
        from pipeline.gameday.aws import server

        server.reset()

    def flows(self) -> list[dict[str, Any]]:
        """See `Stand`."""
        from pipeline.gameday.aws.network import network

        return network.flows()

    def _perform(self, document: dict[str, Any]) -> dict[str, Any]:
        from pipeline.gameday.aws import server

        try:
            return server.perform(document)
        except ValueError as e:
            raise StandError(str(e)) from e

    def _register(self, function: dict[str, Any]) -> None:
        from pipeline.gameday.aws import functions

        functions.register(functions.Function(**function))


class RemoteFaults:
    """`faults.Faults` of a server process."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server

    def add(self, *faults: Fault) -> None:
        """Add rules."""
        self._server.control("POST", "faults", [f.document() for f in faults])

    def clear(self) -> None:
        """Forget rules and hits."""
        self._server.control("DELETE", "faults")

    def hits(self) -> list[Hit]:
        """What was done, in order."""
        return [Hit(**h) for h in self._server.control("GET", "faults")["hits"]]

    def rules(self) -> list[Fault]:
        """The rules, in order."""
        return [Fault(**f) for f in self._server.control("GET", "faults")["rules"]]


class ServerProcess(Stand):
    """The stand-in as a process on 127.0.0.1; it ends with this object, or with this process."""

    endpoint: str

    def __init__(self) -> None:
        super().__init__()
        self.faults = RemoteFaults(self)
        self._process: subprocess.Popen[bytes] | None = None
        self._secret = secrets.token_hex(16)
        self._log: IO[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        if self._process is None:
            raise StandError("the server is not running")
        return self._process.pid

    def __enter__(self) -> Self:
        """Start it; returns when it takes requests. Raises: StandError."""
        kept = {
            n: v for n, v in os.environ.items() if not n.startswith(("AWS_", "MOTO_", "FLASK_"))
        }
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-m", "pipeline.gameday.aws.server"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
            env=kept | {"MOTO_DISABLE_GLOBAL_CORS": "true"},
        )  # fmt: skip
        try:
            self._tell(self._process)
            self.endpoint = self._ready(self._process)["endpoint"]
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.stop()

    def _tell(self, process: subprocess.Popen[bytes]) -> None:
        into = cast(IO[bytes], process.stdin)
        with contextlib.suppress(BrokenPipeError):  # it ended at once; `_ready` says why
            into.write(f"{self._secret}\n".encode())
            into.flush()

    def _ready(self, process: subprocess.Popen[bytes]) -> dict[str, str]:
        out = cast(IO[bytes], process.stdout)
        readable, _, _ = select.select([out], [], [], START_SECONDS)
        line = out.readline() if readable else b""
        if not line:
            why = self.log().strip().splitlines()[-1:]
            raise StandError(
                f"the AWS stand-in did not start: {' '.join(why) or 'no reason given'}"
            )
        document: dict[str, str] = json.loads(line)
        return document

    def log(self) -> str:
        """What it wrote on stderr."""
        if self._log is None:
            return ""
        return os.pread(self._log.fileno(), 1 << 20, 0).decode("utf-8", "replace")

    def stop(self) -> None:
        """End it and wait for it; nothing if it does not run."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(BrokenPipeError):
                cast(IO[bytes], process.stdin).close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            cast(IO[bytes], process.stdout).close()
        if self._log is not None:
            self._log.close()
            self._log = None

    def wait(self, seconds: float) -> bool:
        """Wait; True if it has ended by itself."""
        if self._process is None:
            return True
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def control(self, method: str, what: str, document: Any = None) -> Any:
        """Ask the control endpoint. Raises: StandError with its answer."""
        with self._connection() as connection:
            connection.request(
                method, f"/impound-sim/{what}", body=json.dumps(document),
                headers={"Content-Type": "application/json", "X-Impound-Secret": self._secret},
            )  # fmt: skip
            answer = connection.getresponse()
            body = json.loads(answer.read())
        if answer.status != 200:
            raise StandError(str(body["error"]))
        return body

    @contextlib.contextmanager
    def _connection(self) -> Iterator[http.client.HTTPConnection]:
        host = self.endpoint.removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=30)
        try:
            yield connection
        finally:
            connection.close()

    def calls(self) -> list[Seen]:
        """Every call so far."""
        return [
            Seen(**(c | {"resources": tuple(c["resources"])})) for c in self.control("GET", "calls")
        ]

    def _forget(self) -> None:
        self.control("POST", "reset")

    def flows(self) -> list[dict[str, Any]]:
        """See `Stand`."""
        found: list[dict[str, Any]] = self.control("GET", "flows")
        return found

    def _perform(self, document: dict[str, Any]) -> dict[str, Any]:
        content = document.get("content")
        if isinstance(content, Mapping):
            if not all(isinstance(b, bytes) for b in content.values()):
                raise StandError("functions cannot be handed to another process")
            content = {str(i): base64.b64encode(b).decode() for i, b in content.items()}
        elif content is not None:
            content = os.fspath(Path(content).absolute())
        given = {} if content is None else {"content": content}
        done: dict[str, Any] = self.control("POST", "storage", document | given)
        return done

    def _register(self, function: dict[str, Any]) -> None:
        self.control("POST", "functions", function)
