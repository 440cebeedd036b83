# SPDX-License-Identifier: Apache-2.0
"""The tool manifest of a forensics workstation: what is on it, by path, version and SHA-256.

The image's build writes it once (`ami/provision.sh`). Custody events then name its digest as their
tool, and `impound self-check` compares it with what is there.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from evidence_store.model import Sha256
from pipeline import __version__
from pipeline.errors import ConfigError

MANIFEST = Path("/etc/impound/tools.json")
PACKAGES = ("acquisition", "analysis", "evidence_store", "pipeline")
_MAX_BYTES = 16 << 20
_PROGRAMS = ("/usr/bin/", "/usr/sbin/", "/bin/", "/sbin/")


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class File(_Record):
    """One program. `package` and `version`: of Debian."""

    path: Annotated[str, Field(pattern=r"^/")]
    package: str
    version: str
    sha256: Sha256


class Impound(_Record):
    """This program: digest of its installed files, and of the list that its wheel brought."""

    version: str
    sha256: Sha256
    record_sha256: Sha256


class Manifest(_Record):
    """All of it. `python`: packages beside impound, name -> version."""

    format: Literal[1]
    made: str
    system: str
    impound: Impound
    tools: tuple[File, ...]
    python: dict[str, str]


@dataclass(frozen=True)
class Read:
    """A manifest as read, and the SHA-256 of its bytes."""

    manifest: Manifest
    sha256: str


def read(path: Path = MANIFEST) -> Read | None:
    """Return the manifest, or None if there is none. Raises: ConfigError if it cannot be read."""
    try:
        with path.open("rb") as f:
            data = f.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as e:
        raise ConfigError(f"cannot read the tool manifest {path}: {e.strerror}") from e
    try:
        if len(data) > _MAX_BYTES:
            raise ValueError("it is too large")
        manifest = Manifest.model_validate_json(data)
    except (ValidationError, ValueError) as e:
        raise ConfigError(
            f"the tool manifest {path} is damaged: {str(e).splitlines()[0]}",
            hint="build the image again; without that file impound names only itself",
        ) from e
    return Read(manifest, hashlib.sha256(data).hexdigest())


def installed_digest() -> str:
    """Return the SHA-256 over the list of this program's installed files."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        root = Path(str(resources.files(package)))
        for path in sorted(root.rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                body = file_digest(path)
                digest.update(f"{body}  {package}/{path.relative_to(root).as_posix()}\n".encode())
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file. Raises: OSError."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def record_path() -> Path | None:
    """Return the list of files that this program's wheel brought; None if there is none."""
    for file in importlib.metadata.files("impound") or ():
        if file.name == "RECORD" and file.parent.name.endswith(".dist-info"):
            return Path(str(file.locate()))
    return None


def make(packages: Sequence[str]) -> Manifest:
    """Look at this machine: programs of the Debian packages named, impound, its Python packages.

    Raises: ConfigError if impound was not installed from a wheel, or a package is missing.
    """
    record = record_path()
    if record is None:
        raise ConfigError("impound was not installed from a wheel: it has no list of its files")
    return Manifest(
        format=1,
        made=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        system=_system(),
        impound=Impound(
            version=__version__, sha256=installed_digest(), record_sha256=file_digest(record)
        ),
        tools=tuple(tool for package in packages for tool in _programs(package)),
        python={
            str(d.metadata["Name"]): str(d.version)
            for d in sorted(
                importlib.metadata.distributions(), key=lambda d: str(d.metadata["Name"]).lower()
            )
            if str(d.metadata["Name"]) != "impound"
        },
    )


def _system() -> str:
    try:
        lines = Path("/etc/os-release").read_text("utf-8", "replace").splitlines()
    except OSError:
        return "unknown"
    said = dict(line.split("=", 1) for line in lines if "=" in line)
    return said.get("PRETTY_NAME", "unknown").strip('"')


def _programs(package: str) -> Iterator[File]:
    version = _dpkg("dpkg-query", "-W", "-f", "${Version}", package).strip()
    for name in sorted(_dpkg("dpkg-query", "-L", package).splitlines()):
        path = Path(name)
        if name.startswith(_PROGRAMS) and path.is_file() and os.access(path, os.X_OK):
            yield File(path=name, package=package, version=version, sha256=file_digest(path))


def _dpkg(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as e:
        raise ConfigError(f"cannot ask Debian for {command[-1]}: {e}") from e
    return done.stdout


def main(arguments: Sequence[str]) -> int:
    """Write the manifest of this machine: PATH PACKAGE… . The build of the image calls it."""
    path, *packages = arguments
    text = make(packages).model_dump_json(indent=1) + "\n"
    with Path(path).open("x") as f:
        f.write(text)
        os.fchmod(f.fileno(), 0o444)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
