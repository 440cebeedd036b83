# SPDX-License-Identifier: Apache-2.0
"""Settings: where they come from, validated once, frozen.

Later wins: built in, `/etc/impound/config.toml`, `$XDG_CONFIG_HOME/impound/config.toml`, the file
in `$IMPOUND_CONFIG`, `--config`. Never the working directory: it may hold evidence.
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
    engine: EngineSettings = Field(EngineSettings(), description="responses")
    workstation: WorkstationSettings = Field(WorkstationSettings(), description="workstations")
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
    if explicit:
        places.append((Path(explicit), True))
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for path, required in places:
        for name, value in _read(path, required=required).items():
            if isinstance(value, dict) and isinstance(merged.get(name), dict):
                merged[name] = merged[name] | value
            else:
                merged[name] = value
            origin |= dict.fromkeys(_names(name, value), str(path))
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
    return Loaded(settings, origin, tuple(str(path) for path, _ in places))


def _names(name: str, value: object) -> Iterator[str]:
    yield name
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _names(f"{name}.{key}", inner)


def _read(path: Path, *, required: bool) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError as e:
        if required:
            raise ConfigError(f"no settings file {path}") from e
        return {}
    except (OSError, ValueError) as e:
        raise ConfigError(f"cannot read the settings file {path}: {e}") from e
