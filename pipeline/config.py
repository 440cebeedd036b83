# SPDX-License-Identifier: Apache-2.0
"""Settings: where they come from, validated once, frozen.

Later wins: built in, `/etc/impound/config.toml`, `$XDG_CONFIG_HOME/impound/config.toml`, the file
in `$IMPOUND_CONFIG`, `--config`. Never the working directory: it may hold evidence.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import ConfigError


class Settings(BaseModel):
    """What can be set. Unknown names are an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    store: str = Field("./evidence", description="where evidence is kept (directory)")
    deployment: str = Field(
        "impound.local",
        pattern=r"^[A-Za-z0-9._-]{1,100}$",
        description="name of this installation, first part of every ledger's origin",
    )
    responder: str = Field("", description="your name as the custody log should have it")
    workers: int = Field(2, ge=1, le=64, description="segments in work at once, 64 MiB each")


@dataclass(frozen=True)
class Loaded:
    """Settings, and for each the file it came from ("" for a built-in value)."""

    settings: Settings
    origin: Mapping[str, str]
    looked_at: tuple[str, ...]


def config_home() -> Path:
    """`$XDG_CONFIG_HOME/impound`."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "impound"


def state_home() -> Path:
    """`$XDG_STATE_HOME/impound`."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "impound"


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
            merged[name], origin[name] = value, str(path)
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"setting {name!r} in {origin.get(name.partition('.')[0], '?')}: {first['msg']}",
            hint="impound config --explain lists all settings",
        ) from e
    return Loaded(settings, origin, tuple(str(path) for path, _ in places))


def _read(path: Path, *, required: bool) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError as e:
        if required:
            raise ConfigError(f"no settings file {path}") from e
        return {}
    except (OSError, ValueError) as e:
        raise ConfigError(f"cannot read the settings file {path}: {e}") from e
