# SPDX-License-Identifier: Apache-2.0
"""Settings: where they come from, validated once, frozen.

Later wins: built in, `/etc/impound/config.toml`, `$XDG_CONFIG_HOME/impound/config.toml`, the file
in `$IMPOUND_CONFIG`, the text in `$IMPOUND_SETTINGS` (a function has no file), `--config`. Never
the working directory: it may hold evidence.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import ConfigError

_KMS_KEY = r"^(|arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:(key|alias)/[A-Za-z0-9/_-]{1,250})$"
_MEMBER_KEY = _KMS_KEY.replace("^(|", "^(|alias/[A-Za-z0-9/_-]{1,250}|")
_FUNCTION = (
    r"^(|(arn:aws[a-z-]*:lambda:[a-z0-9-]+:[0-9]{12}:function:)?[A-Za-z0-9_-]{1,64}"
    r"(:[A-Za-z0-9_$-]{1,128})?)$"
)


class S3Settings(BaseModel):
    """Stores in S3."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kms_key: str = Field(
        default="",
        pattern=_KMS_KEY,
        description="ARN of the KMS key that encrypts what is stored in S3",
    )
    retention_days: int = Field(
        default=90, ge=1, le=36500, description="COMPLIANCE retention of evidence in S3, days"
    )
    record_days: int = Field(
        default=3650, ge=1, le=36500, description="the same of ledgers, checkpoints and keys"
    )
    legal_hold: bool = Field(
        default=True, description="hold every object until a custodian releases it"
    )
    profile: str = Field(
        default="", description="AWS profile for the store (default: the environment)"
    )
    region: str = Field(
        default="", description="Region of the store (default: that of the profile)"
    )


class SigningSettings(BaseModel):
    """Keys in KMS, and the function that seals."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    entry_key: str = Field(
        default="", pattern=_KMS_KEY, description="ARN of the KMS key that signs ledger entries"
    )
    checkpoint_key: str = Field(
        default="", pattern=_KMS_KEY, description="ARN of the KMS key that signs checkpoints"
    )
    sealer: str = Field(
        default="", pattern=_FUNCTION, description="Lambda function that seals cases (name or ARN)"
    )


_ACCOUNT = r"^(|[0-9]{12})$"


def _network(text: str) -> str:
    if ":" in text:
        raise ValueError("only IPv4 networks are permitted to reach an isolated instance")
    return str(ip_network(text))


class AwsSettings(BaseModel):
    """The landing zone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    audit_account: str = Field(
        default="", pattern=_ACCOUNT, description="the Audit (security) account"
    )
    log_archive_account: str = Field(
        default="", pattern=_ACCOUNT, description="the Log Archive account"
    )
    management_account: str = Field(
        default="", pattern=_ACCOUNT, description="the management account: never acted in"
    )
    external_id: str = Field(
        default="", max_length=1224, description="ExternalId for roles in member accounts"
    )
    snapshot_key: str = Field(
        default="", pattern=_KMS_KEY,
        description="ARN of the Audit account's KMS key for copies of snapshots",
    )  # fmt: skip
    member_key: str = Field(
        default="", pattern=_MEMBER_KEY,
        description="alias of a KMS key in each member account, for snapshots that cannot be"
        " shared as they are",
    )  # fmt: skip
    source_lock: Literal["compliance", "governance", "none"] = Field(
        default="compliance", description="how snapshots are locked against deletion"
    )
    source_lock_days: int = Field(
        default=3, ge=1, le=36500, description="for how many days snapshots are locked"
    )
    isolation_sources: tuple[Annotated[str, AfterValidator(_network)], ...] = Field(
        default=(),
        max_length=19,
        description="networks (CIDR) that still reach an isolated instance, port 22",
    )
    peer_minutes: int = Field(
        default=60, ge=0, le=1440,
        description="how far back flow logs are searched for peers to cut, minutes (0: not)",
    )  # fmt: skip
    session_hours: int = Field(
        default=12, ge=0, le=2160,
        description="how far back CloudTrail is searched for sessions to end, hours (0: not)",
    )  # fmt: skip
    access: Literal["role", "chain"] = Field(
        default="role", description="how accounts are reached that have no table of their own"
    )
    source_identity: bool = Field(
        default=False, description="send SourceIdentity; every trust policy must allow it"
    )


def _id(prefix: str) -> str:
    return rf"^(|{prefix}-[0-9a-f]{{8,17}})$"


class WorkstationSettings(BaseModel):
    """Where workstations are launched, in the Audit account."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    vpc: str = Field(default="", pattern=_id("vpc"), description="VPC of workstations")
    subnet: str = Field(
        default="", pattern=_id("subnet"), description="its subnet, without a public address"
    )
    endpoint_group: str = Field(
        default="", pattern=_id("sg"), description="security group of its interface endpoints"
    )
    s3_prefix_list: str = Field(
        default="", pattern=_id("pl"), description="prefix list of S3 in its Region"
    )
    volume_key: str = Field(
        default="", pattern=_KMS_KEY,
        description="ARN of the KMS key of its root volume (default: aws.snapshot_key)",
    )  # fmt: skip
    ami: str = Field(
        default="", pattern=_id("ami"), description="its image (default: ami_parameter names it)"
    )
    ami_parameter: str = Field(
        default="/impound/ami", pattern=r"^/[A-Za-z0-9_./-]{1,500}$",
        description="SSM parameter that holds the id of its image",
    )  # fmt: skip
    instance_type: str = Field(
        default="m6i.xlarge", pattern=r"^[a-z0-9-]+\.[a-z0-9]+$", description="its instance type"
    )
    profile: str = Field(
        default="impound-workstation", pattern=r"^[A-Za-z0-9+=,.@_-]{1,128}$",
        description="its instance profile",
    )  # fmt: skip
    database_group: str = Field(
        default="", pattern=_id("sg"), description="security group of the engine's PostgreSQL"
    )
    engine_secret: str = Field(
        default="", pattern=r"^(|arn:aws[a-z-]*:secretsmanager:[A-Za-z0-9:/_+=.@-]+)$",
        description="ARN of the secret that holds the engine's URL",
    )  # fmt: skip


class SshSettings(BaseModel):
    """How hosts under investigation are reached and logged in to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    user: str = Field(
        default="ec2-user", pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$",
        description="account on the hosts",
    )  # fmt: skip
    port: int = Field(default=22, ge=1, le=65535, description="port of sshd")
    instance_connect: bool = Field(
        default=True, description="first push a key of the run by EC2 Instance Connect"
    )
    ca_key: str = Field(
        default="", description="private key whose certificate golden images trust (file)"
    )
    ca_certificate: str = Field(default="", description="its certificate (file)")
    key: str = Field(default="", description="the operator's private key, tried last (file)")
    host_keys: str = Field(
        default="", description="file of host keys that must be met, one a line (inventory)"
    )
    strict_host_keys: bool = Field(
        default=False, description="refuse a host whose key nobody vouched for"
    )
    source: str = Field(
        default="", description="address that hosts see us come from (default: our route to them)"
    )
    proxy: str = Field(
        default="", pattern=r"^(|([A-Za-z0-9.-]{1,253}|\[[0-9a-f:.]+\]):[0-9]{1,5})$",
        description="HTTP proxy (host:port, CONNECT) that reaches hosts in our place",
    )  # fmt: skip
    jump: str = Field(
        default="", pattern=r"^(|[^@\s]+@[^@\s]+)$", description="jump host, user@host[:port]"
    )
    endpoint: str = Field(
        default="", pattern=r"^(|auto|eice-[0-9a-f]{8,17})$",
        description="EC2 Instance Connect Endpoint to go through, or auto: that of the VPC",
    )  # fmt: skip
    at: dict[Annotated[str, Field(pattern=r"^i-[0-9a-f]{8,17}$")], str] = Field(
        default={}, description="host:port where single instances answer, if not at their address"
    )
    patience_s: int = Field(
        default=120, ge=0, le=86400, description="seconds that a lost host is tried again"
    )


class ReadinessSettings(BaseModel):
    """What `impound readiness` looks at, and what `--fix` sets."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    accounts: tuple[Annotated[str, Field(pattern=r"^[0-9]{12}$")], ...] = Field(
        default=(), description="accounts to look at (default: those of the organisation)"
    )
    regions: tuple[Annotated[str, Field(pattern=r"^[a-z0-9-]{5,30}$")], ...] = Field(
        default=(), description="Regions to look at (default: that of the session)"
    )
    namespace: str = Field(
        default="", pattern=r"^[A-Za-z0-9+=,.@_-]{0,30}$",
        description="the federated roles are called <namespace>-saml-… (default: any)",
    )  # fmt: skip
    contact_email: str = Field(
        default="", pattern=r"^(|[^@\s]{1,60}@[^@\s]{1,190})$",
        description="security contact of every account, a distribution list",
    )  # fmt: skip
    contact_phone: str = Field(
        default="", pattern=r"^[0-9+() -]{0,25}$", description="its telephone number"
    )
    subnets: tuple[Annotated[str, Field(pattern=r"^subnet-[0-9a-f]{8,17}$")], ...] = Field(
        default=(), description="subnets of the Audit account in which workstations start"
    )
    ami_parameter: str = Field(
        default="/impound/ami", pattern=r"^/[A-Za-z0-9_./-]{1,500}$",
        description="SSM parameter that holds the id of the forensics AMI",
    )  # fmt: skip
    ami_days: int = Field(
        default=90, ge=1, le=3650, description="age from which the forensics AMI is too old, days"
    )
    ca_images: tuple[Annotated[str, Field(pattern=r"^ami-[0-9a-f]{8,17}$")], ...] = Field(
        default=(), description="golden images that trust the SSH authority of the responders"
    )
    event_bus: str = Field(
        default="impound", pattern=r"^[A-Za-z0-9._-]{1,256}$",
        description="event bus of the Audit account",
    )  # fmt: skip
    event_queue: str = Field(
        default="impound-events", pattern=r"^[A-Za-z0-9._-]{1,80}$",
        description="queue that its events end in",
    )  # fmt: skip
    flow_log_destination: str = Field(
        default="", pattern=r"^(|arn:aws[a-z-]*:s3:::[a-z0-9][A-Za-z0-9._/-]{1,300})$",
        description="ARN of the bucket that new flow logs go to",
    )  # fmt: skip
    symbols: str = Field(
        default="", description="directory of kernel symbols (default: in the cache directory)"
    )


class EngineSettings(BaseModel):
    """Where responses are kept while they run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(
        default="", pattern=r"^(|postgres(ql)?://([^:@/\s]+@)?[^@\s]+)$",
        description="PostgreSQL of a fleet, without its password (default: a file of this machine)",
    )  # fmt: skip
    approve: tuple[Annotated[str, Field(pattern=r"^[a-z]+$")], ...] = Field(
        default=(), description="steps of a response that wait for approval"
    )
    slots: int = Field(
        default=0, ge=0, le=256, description="analysis jobs at once (default: one a processor)"
    )


class AccountSettings(BaseModel):
    """How one account is reached."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    access: Literal["role", "chain", "profile"] = Field(
        default="role", description="how the account is reached"
    )
    role: str = Field(default="", description="role to assume in it, name or ARN")
    via: str = Field(default="", description="chain: the role before that one, name or ARN")
    profile: str = Field(default="", description="profile: its name")
    external_id: str = Field(default="", max_length=1224, description="ExternalId of the role")
    snapshot_key: str = Field(
        default="", pattern=_MEMBER_KEY, description="KMS key of it in place of aws.member_key"
    )


class Settings(BaseModel):
    """What can be set. Unknown names are an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    store: str = Field(
        "./evidence", description="where evidence is kept (directory, or s3://bucket/prefix)"
    )
    deployment: str = Field(
        "impound.local",
        pattern=r"^[A-Za-z0-9._-]{1,100}$",
        description="name of this installation, first part of every ledger's origin",
    )
    responder: str = Field("", description="your name as the custody log should have it")
    workers: int = Field(2, ge=1, le=64, description="segments in work at once, 64 MiB each")
    s3: S3Settings = Field(S3Settings(), description="stores in S3")
    signing: SigningSettings = Field(SigningSettings(), description="keys in KMS")
    aws: AwsSettings = Field(AwsSettings(), description="the landing zone")
    ssh: SshSettings = Field(SshSettings(), description="hosts under investigation")
    engine: EngineSettings = Field(EngineSettings(), description="responses")
    workstation: WorkstationSettings = Field(WorkstationSettings(), description="workstations")
    readiness: ReadinessSettings = Field(ReadinessSettings(), description="checks before incidents")
    accounts: dict[Annotated[str, Field(pattern=r"^[0-9]{12}$")], AccountSettings] = Field(
        {}, description="how single accounts are reached, by account id"
    )

    def member_key(self, account: str) -> str:
        """Return the key of a member account for snapshots that cannot be shared, or ""."""
        own = self.accounts.get(account)
        return (own and own.snapshot_key) or self.aws.member_key

    def flat(self) -> Iterator[tuple[str, Any, str]]:
        """Yield (name, value, meaning); settings of a table as `table.name`."""
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            tables = {name: value}
            if isinstance(value, dict):
                tables = {f"{name}.{inner}": table for inner, table in value.items()}
            for table, found in tables.items():
                if isinstance(found, BaseModel):
                    for inner, about in type(found).model_fields.items():
                        yield f"{table}.{inner}", getattr(found, inner), str(about.description)
                else:
                    yield table, found, str(field.description)


@dataclass(frozen=True)
class Loaded:
    """Settings, and for each (`name` or `table.name`) the file it came from, if from one."""

    settings: Settings
    origin: Mapping[str, str]
    looked_at: tuple[str, ...]


def config_home() -> Path:
    """`$XDG_CONFIG_HOME/impound`."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "impound"


def data_home() -> Path:
    """`$XDG_DATA_HOME/impound`: what was brought from elsewhere, such as symbol tables."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "impound"


def state_home() -> Path:
    """`$XDG_STATE_HOME/impound`."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "impound"


def cache_home() -> Path:
    """`$XDG_CACHE_HOME/impound`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "impound"


def load(explicit: str | None = None) -> Loaded:
    """Read and merge all settings files.

    Args:
        explicit: `--config`; it must exist.

    Raises: ConfigError naming the file and the setting.
    """
    places = [(Path("/etc/impound/config.toml"), False), (config_home() / "config.toml", False)]
    if named := os.environ.get("IMPOUND_CONFIG"):
        places.append((Path(named), True))
    said = [(str(path), _read(path, required=required)) for path, required in places]
    if text := os.environ.get("IMPOUND_SETTINGS"):
        said.append(("$IMPOUND_SETTINGS", _parsed(text, "the settings in $IMPOUND_SETTINGS")))
    if explicit:
        said.append((explicit, _read(Path(explicit), required=True)))
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for place, read in said:
        for name, value in read.items():
            if isinstance(value, dict) and isinstance(merged.get(name), dict):
                merged[name] = merged[name] | value
            else:
                merged[name] = value
            origin |= dict.fromkeys(_names(name, value), place)
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        table = name.partition(".")[0]
        raise ConfigError(
            f"setting {name!r} in {origin.get(name) or origin.get(table, '?')}: {first['msg']}",
            hint="impound config --explain lists all settings",
        ) from e
    return Loaded(settings, origin, tuple(place for place, _ in said))


def _names(name: str, value: object) -> Iterator[str]:
    yield name
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _names(f"{name}.{key}", inner)


def _read(path: Path, *, required: bool) -> dict[str, Any]:
    try:
        text = path.read_text()
    except FileNotFoundError as e:
        if required:
            raise ConfigError(f"no settings file {path}") from e
        return {}
    except (OSError, ValueError) as e:
        raise ConfigError(f"cannot read the settings file {path}: {e}") from e
    return _parsed(text, f"the settings file {path}")


def _parsed(text: str, what: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except ValueError as e:
        raise ConfigError(f"cannot read {what}: {e}") from e
