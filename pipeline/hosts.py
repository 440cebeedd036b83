# SPDX-License-Identifier: Apache-2.0
"""From an instance to a connection: where it is, whether its groups let us in, who we are to it.

    host = Host(case, accounts, settings, target)
    host.plan()                     nothing is sent to the host
    with host.open() as remote: …   the port is judged first; the footprint is kept whatever happens

The footprint of a session is an item of its own, and `session.recorded` names it. One that a killed
process left behind is adopted by the next session on the same host.

Source: EC2 API Reference, DescribeInstances, DescribeSecurityGroupRules,
DescribeInstanceConnectEndpoints; docs/design.md.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from acquisition.containment.aws import rule_text
from acquisition.errors import AcquisitionError
from acquisition.footprint import Footprint, FootprintFiles, acts
from acquisition.login import (
    HostKeys,
    Login,
    Passphrase,
    fingerprint,
    instance_connect,
    key_file,
    parse_host_keys,
    run_key,
)
from acquisition.reach import (
    Dial,
    Permit,
    direct,
    endpoint,
    own_address,
    permitted,
    through,
)
from acquisition.remote import Place, Remote
from acquisition.target import Target
from evidence_store.aws import Failure, failures
from evidence_store.ledger import Draft
from evidence_store.model import clean
from evidence_store.store import Case
from pipeline import steps
from pipeline.accounts import Accounts
from pipeline.config import Settings, SshSettings, state_home
from pipeline.errors import ConfigError, PipelineError

HOST_KEY = "host key"  # the step under which the ledger keeps what a host showed


@dataclass(frozen=True)
class Access:
    """What a person gives beside the settings. Secrets are asked for when they are needed."""

    user: str = ""
    port: int = 0
    key: str = ""
    host_keys: tuple[str, ...] = ()
    strict: bool = False
    passphrase: Passphrase | None = None
    sudo_password: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Whereabouts:
    """What EC2 says of an instance that is to be logged in to."""

    state: str
    platform: str
    address: str
    zone: str
    vpc: str
    rules: tuple[str, ...]
    memory_bytes: int = 0


@dataclass(frozen=True)
class Way:
    """How a host will be reached; nothing was sent to it yet."""

    where: Whereabouts
    place: Place
    path: str
    source: str
    permit: Permit | None
    refused: str
    logins: tuple[str, ...]
    host_key: str

    def document(self) -> dict[str, JsonValue]:
        """As JSON."""
        return {
            "address": self.where.address, "user": self.place.user, "port": self.place.port,
            "path": self.path, "source": self.source,
            "rule": self.permit.rule if self.permit else None, "refused": self.refused or None,
            "logins": list(self.logins), "host_key": self.host_key,
        }  # fmt: skip

    @property
    def gaps(self) -> list[str]:
        """What is known to be missing."""
        found = [self.refused] if self.refused else []
        if not self.logins:
            found.append("there is no login method")
        if self.where.platform == "windows":
            found.append("Windows gives no memory without an agent")
        return found


@dataclass
class Host:
    """One instance as somewhere to log in to."""

    case: Case
    accounts: Accounts
    settings: Settings
    target: Target
    access: Access = Access()
    say: Callable[[str], None] = lambda _line: None

    @property
    def _ssh(self) -> SshSettings:
        return self.settings.ssh

    def _client(self, service: str) -> Any:
        return self.accounts.client(service, self.target.account, self.target.region)

    @cached_property
    def where(self) -> Whereabouts:
        """Look the instance up. Raises: AcquisitionError, AccountError."""
        if self.target.kind != "instance":
            raise AcquisitionError(f"{self.target.resource_id} is no instance: nobody can log in")
        ec2 = self._client("ec2")
        try:
            found = ec2.describe_instances(InstanceIds=[self.target.resource_id])
            instance = found["Reservations"][0]["Instances"][0]
            address = instance.get("PrivateIpAddress", "")
            groups = {
                g["GroupId"] for i in instance.get("NetworkInterfaces", [])
                if i.get("PrivateIpAddress") == address for g in i["Groups"]
            } or {g["GroupId"] for g in instance.get("SecurityGroups", [])}  # fmt: skip
            pages = ec2.get_paginator("describe_security_group_rules").paginate(
                Filters=[{"Name": "group-id", "Values": sorted(groups)}]
            )
            rules = tuple(sorted(rule_text(r) for p in pages for r in p["SecurityGroupRules"]))
        except LookupError as e:
            raise AcquisitionError(f"there is no instance {self.target.resource_id}") from e
        except failures() as e:
            error = Failure(e).error(f"cannot look at {self.target.resource_id}")
            raise AcquisitionError(clean(str(error), 400), hint=error.hint) from e
        return Whereabouts(
            instance["State"]["Name"], instance.get("Platform", "linux"),
            address, instance["Placement"]["AvailabilityZone"],
            instance.get("VpcId", ""), rules,
        )  # fmt: skip

    @property
    def place(self) -> Place:
        """Whom we log in to."""
        host, port = self._at()
        return Place(host, self.access.user or self._ssh.user, port)

    def _at(self) -> tuple[str, int]:
        port = self.access.port or self._ssh.port
        if said := self._ssh.at.get(self.target.resource_id):
            host, _, own = said.rpartition(":")
            if not host or not own.isdigit():
                raise ConfigError(f"ssh.at: {said!r} is not host:port")
            return host, int(own)
        return self.where.address, port

    def plan(self) -> Way:
        """Return how it will be reached. Sends nothing to it. Raises: AcquisitionError."""
        where = self.where
        path, source, _ = self._path(dial=False)
        permit, refused = None, ""
        try:
            permit = permitted(where.rules, source, self.access.port or self._ssh.port)
        except AcquisitionError as e:
            refused = f"{e} ({e.hint})"
        keys = self.host_keys()
        trust = "pinned" if keys.pinned else "known" if keys.known else "first use"
        return Way(
            where, self.place, path, source, permit, refused,
            tuple(login.name for login in self.logins()), trust,
        )  # fmt: skip

    # -- who is who ------------------------------------------------------------------------------

    def host_keys(self) -> HostKeys:
        """What is known of its host keys. Raises: ConfigError."""
        given = list(self.access.host_keys)
        if not given and self._ssh.host_keys:
            given = self._inventory()
        try:
            pinned = parse_host_keys(given)
        except ValueError as e:
            raise ConfigError(str(e)) from e
        known = [
            str((e.data or {}).get("key", ""))
            for e in steps.events_of(self.case, HOST_KEY, self.target.arn)
        ]
        return HostKeys(pinned, known[-1] if known else "",
                        self.access.strict or self._ssh.strict_host_keys)  # fmt: skip

    def _inventory(self) -> list[str]:
        """Lines of the inventory that begin with the instance's id or address."""
        try:
            lines = Path(self._ssh.host_keys).expanduser().read_text().splitlines()
        except (OSError, UnicodeDecodeError) as e:
            raise ConfigError(f"cannot read ssh.host_keys {self._ssh.host_keys}: {e}") from e
        names = (self.target.resource_id, self.where.address)
        return [line for line in lines if line.split(" ")[0] in names]

    def logins(self) -> list[Login]:
        """The ladder: EC2 Instance Connect, the certificate, the operator's key."""
        ssh, found = self._ssh, []
        if ssh.instance_connect:
            client = self._client("ec2-instance-connect")
            found.append(
                instance_connect(client, self.target.resource_id, self.where.zone, self._run_key)
            )
        if ssh.ca_key and ssh.ca_certificate:
            found.append(key_file(Path(ssh.ca_key).expanduser(), self.access.passphrase,
                                  Path(ssh.ca_certificate).expanduser()))  # fmt: skip
        if key := self.access.key or ssh.key:
            found.append(key_file(Path(key).expanduser(), self.access.passphrase))
        return found

    @cached_property
    def _run_key(self) -> Any:
        return run_key()

    # -- the path --------------------------------------------------------------------------------

    def _path(self, *, dial: bool) -> tuple[str, str, Dial | None]:
        """Return (how, the address that the host sees, what connects)."""
        ssh = self._ssh
        host, port = self._at()
        if ssh.endpoint:
            found = self._endpoint()
            return f"endpoint {found['InstanceConnectEndpointId']}", ssh.source or self._address_of(
                found
            ), endpoint(
                self.accounts.session(self.target.account), self.target.region,
                found["InstanceConnectEndpointId"], found["DnsName"], self.where.address, port,
            ) if dial else None  # fmt: skip
        if ssh.jump:
            user, _, rest = ssh.jump.partition("@")
            jump, _, jump_port = rest.partition(":")
            place = Place(jump, user, int(jump_port or 22))
            if not ssh.source:
                raise ConfigError("ssh.jump needs ssh.source: the jump host's address in the VPC")
            keys = [x for x in self.logins() if x.name != "EC2 Instance Connect"]
            remote = Remote(place, direct(place.host, place.port), keys, self._jump_keys(jump))
            return f"jump host {place}", ssh.source, through(remote, host, port) if dial else None
        first = ssh.proxy.rpartition(":")[0].strip("[]") or self.where.address or host
        path = f"proxy {ssh.proxy}" if ssh.proxy else "direct"
        dialled = direct(host, port, ssh.proxy) if dial else None
        return path, ssh.source or own_address(first), dialled

    def _jump_keys(self, jump: str) -> HostKeys:
        if not self._ssh.host_keys:
            return HostKeys(strict=self.access.strict or self._ssh.strict_host_keys)
        text = Path(self._ssh.host_keys).expanduser().read_text()
        lines = [line for line in text.splitlines() if line.split(" ")[0] == jump]
        return HostKeys(parse_host_keys(lines))

    def _endpoint(self) -> dict[str, Any]:
        ec2, wanted = self._client("ec2"), self._ssh.endpoint
        filters = [{"Name": "vpc-id", "Values": [self.where.vpc]}]
        how: dict[str, Any] = (
            {"Filters": filters} if wanted == "auto" else {"InstanceConnectEndpointIds": [wanted]}
        )
        try:
            found = ec2.describe_instance_connect_endpoints(**how)["InstanceConnectEndpoints"]
        except failures() as e:
            error = Failure(e).error("cannot look for Instance Connect Endpoints")
            raise PipelineError(str(error), hint=error.hint) from e
        if not found:
            raise ConfigError(f"{self.where.vpc} has no EC2 Instance Connect Endpoint",
                              hint="make one, or set ssh.jump")  # fmt: skip
        return dict(found[0])

    def _address_of(self, found: dict[str, Any]) -> str:
        missing = ConfigError("the endpoint's address cannot be seen", hint="set ssh.source to it")
        try:
            interfaces = self._client("ec2").describe_network_interfaces(
                NetworkInterfaceIds=found["NetworkInterfaceIds"]
            )["NetworkInterfaces"]
            return str(interfaces[0]["PrivateIpAddress"])
        except LookupError as e:
            raise missing from e
        except failures() as e:
            raise missing from e

    # -- a session -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def open(self, what: str) -> Iterator[Remote]:
        """Log in; at the end record what was done there. `what`: the step it is for.

        Raises: PortClosedError before a packet leaves; AcquisitionError, StoreError.
        """
        where = self.where
        if where.state != "running":
            raise AcquisitionError(
                f"{self.target.resource_id} is {where.state}: its memory is gone",
                hint="disks are left: impound acquire volume",
            )
        path, source, dial = self._path(dial=True)
        permit = permitted(where.rules, source, self.access.port or self._ssh.port)
        if permit.note:
            self.say(f"permitted by {permit.rule}: {permit.note}")
        assert dial is not None  # noqa: S101
        folder = state_home() / "footprints" / self.case.store.identity.store_id / self.case.case_id
        name = hashlib.sha256(self.target.arn.encode()).hexdigest()[:16]
        remote = Remote(
            self.place, dial, self.logins(), self.host_keys(),
            Footprint(folder / f"{name}-{secrets.token_hex(8)}.jsonl"),
            self.access.sudo_password,
        )  # fmt: skip
        remote.footprint.begin(
            "session", target=self.target.arn, step=what, path=path, source=source,
            rule=permit.rule, case=self.case.case_id,
        )  # fmt: skip
        try:
            remote.open()
            steps.note(self.case, HOST_KEY, self.target.arn, key=remote.host_key)
            self.say(
                f"logged in as {remote.place} by {remote.login}, host key "
                f"{fingerprint(remote.host_key)} ({remote.trust})"
            )
            yield remote
        finally:
            remote.close()
            self._record(remote, folder, name, what)

    def _record(self, remote: Remote, folder: Path, name: str, what: str) -> None:
        """Take the footprint into custody, with those that killed sessions left."""
        with contextlib.ExitStack() as stack:
            stack.callback(remote.footprint.close)  # from then on another session may adopt it
            records: dict[str, bytes] = {}
            left: list[Path] = []
            own = remote.footprint.path
            for path in sorted(folder.glob(f"{name}-*.jsonl")):
                if path == own:
                    continue
                fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                stack.callback(os.close, fd)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue  # of a session that is at work
                records[f"earlier-{len(left)}.jsonl"] = path.read_bytes()
                left.append(path)
            records["footprint.jsonl"] = b"".join(remote.footprint.lines)
            done = acts(remote.footprint.lines)
            commands = [a for a in done if a["what"] == "command"]
            facts: dict[str, JsonValue] = {
                "type": "footprint", "target": self.target.arn, "step": what,
                "commands": len(commands), "earlier": len(left),
                "bytes": sum(int(a.get("out_bytes", 0)) for a in commands),
            }  # fmt: skip
            text = f"footprint of {what} on {self.target.resource_id}"
            taken = self.case.ingest("record", FootprintFiles(text, records, facts))
            data: dict[str, JsonValue] = {
                "target": self.target.arn, "step": what, "commands": facts["commands"],
                "bytes": facts["bytes"], "login": remote.login, "connections": remote.connections,
                "host_key": fingerprint(remote.host_key) if remote.host_key else "",
                "trust": remote.trust or "",
            }  # fmt: skip
            self.case.record(
                lambda: Draft("session.recorded", {"item": taken.item_id, "data": data})
            )
            for path in left:
                path.unlink(missing_ok=True)
            remote.footprint.done()
