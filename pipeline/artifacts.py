# SPDX-License-Identifier: Apache-2.0
"""Names of artifacts as paths: the definitions of ForensicArtifacts (package `artifacts`).

A definition names files per operating system, with variables such as `%%users.homedir%%`. Those of
users are filled in from the /etc/passwd of the evidence itself; on Windows from where profiles lie
by default. A variable that is not known is told, not guessed.

Source: ForensicArtifacts, docs/Artifacts definition format and style guide.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

from analysis.walk.paths import parse
from pipeline.errors import UsageError

VERSION = version("artifacts")
USERS_FILE = "/etc/passwd"
_MAX_USERS = 500
_VARIABLE = re.compile(r"%%([^%]+)%%")
_DEPTH = re.compile(r"\*\*[0-9]+")
_WINDOWS: Mapping[str, tuple[str, ...]] = {
    "environ_systemroot": ("/Windows",),
    "environ_windir": ("/Windows",),
    "environ_systemdrive": ("",),
    "environ_programfiles": ("/Program Files",),
    "environ_programfilesx86": ("/Program Files (x86)",),
    "environ_allusersappdata": ("/ProgramData",),
    "environ_allusersprofile": ("/ProgramData",),
    "environ_programdata": ("/ProgramData",),
    "users.homedir": ("/Users/*",),
    "users.userprofile": ("/Users/*",),
    "users.appdata": ("/Users/*/AppData/Roaming",),
    "users.localappdata": ("/Users/*/AppData/Local",),
    "users.temp": ("/Users/*/AppData/Local/Temp",),
    "users.username": ("*",),
}


@dataclass
class Places:
    """Where artifacts lie. `patterns`, and of each the artifact; `left_out`: why some are not."""

    patterns: list[str] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


@functools.cache
def _registry() -> Any:
    import artifacts
    from artifacts import reader, registry

    found = registry.ArtifactDefinitionsRegistry()
    data = Path(str(artifacts.__file__)).parent / "data"
    found.ReadFromDirectory(reader.YamlArtifactsReader(), str(data))
    return found


def names(system: str = "") -> list[str]:
    """Return the names of all artifacts that have files; of one operating system, if given."""
    return sorted(
        definition.name
        for definition in _registry().GetDefinitions()
        if any(True for _ in _sources(definition, {system} if system else {"Linux", "Windows"}))
    )


def check(wanted: Iterable[str]) -> tuple[str, ...]:
    """Return names as they are defined. Raises: UsageError for one that is not, with close ones."""
    found = []
    for name in wanted:
        definition = _definition(name)
        if definition is None:
            close = difflib.get_close_matches(name, names(), 3, 0.5)
            hint = f"did you mean {' or '.join(close)}?" if close else "impound triage artifacts"
            raise UsageError(f"no artifact {name!r}", hint=hint)
        found.append(definition.name)
    return tuple(dict.fromkeys(found))


def _definition(name: str) -> Any:
    registry = _registry()
    return registry.GetDefinitionByName(name) or registry.GetDefinitionByAlias(name)


def _sources(
    definition: Any, systems: set[str], seen: frozenset[str] = frozenset()
) -> Iterator[Any]:
    """Yield the sources that name files; those of the artifacts of a group too."""
    for source in definition.sources:
        supported = source.supported_os or definition.supported_os
        if supported and not systems & {*supported}:
            continue
        if source.type_indicator in ("FILE", "PATH"):
            yield source
        elif source.type_indicator == "ARTIFACT_GROUP" and definition.name not in seen:
            for name in source.names:
                if (inner := _definition(name)) is not None:
                    yield from _sources(inner, systems, seen | {definition.name})


def places(wanted: Iterable[str], systems: set[str], passwd: bytes) -> Places:
    """Return where artifacts lie on systems ("Linux", "Windows") with the users of a passwd(5)."""
    homes = users(passwd)
    linux = {
        "users.homedir": tuple(homes.values()),
        "users.username": tuple(homes),
        "environ_systemdrive": ("",),
    }
    found = Places()
    for name in wanted:
        count = len(found.patterns)
        for source in _sources(_definition(name), systems):
            windows = source.separator == "\\"
            for path in source.paths:
                known = _WINDOWS if windows else linux
                text = path.replace("\\", "/") if windows else path
                found.left_out += _expand(text, known, name, found)
        if len(found.patterns) == count:
            where = " and ".join(sorted(systems)) or "any system"
            found.left_out.append(f"artifact {name} names no files on {where}")
    return found


def _expand(text: str, known: Mapping[str, tuple[str, ...]], name: str, found: Places) -> list[str]:
    """Add the patterns of one path to `found`; return why it could not be."""
    variables = list(dict.fromkeys(v.lower() for v in _VARIABLE.findall(text)))
    if missing := [v for v in variables if v not in known]:
        return [f"artifact {name}: {text} needs %%{missing[0]}%%, which is not known"]
    for values in product(*(known[v] for v in variables)):
        filled = dict(zip(variables, values, strict=True))
        path = _VARIABLE.sub(lambda match, f=filled: f[match[1].lower()], text)  # type: ignore[misc]
        path = _DEPTH.sub("**", re.sub(r"^[A-Za-z]:", "", path))
        path = path if path.startswith("/") else f"/{path}"
        try:
            parse(path)
        except ValueError as e:
            return [f"artifact {name}: {path} {e}"]
        found.patterns.append(path)
        found.origins.append(name)
    return []


def users(passwd: bytes) -> dict[str, str]:
    r"""Return user -> home, as patterns that match just these; hostile lines are left out.

    >>> users(b"root:x:0:0::/root:/bin/sh\nx:x:1:1::../etc:\n")
    {'root': '/root'}
    """
    homes: dict[str, str] = {"root": "/root"}
    for line in passwd.decode("utf-8", "surrogateescape").splitlines():
        parts = line.split(":")
        if len(parts) != 7 or len(homes) >= _MAX_USERS:
            continue
        name, home = (re.sub(r"([*?\[])", r"[\1]", parts[n]) for n in (0, 5))
        try:
            parse(home)
        except ValueError:
            continue  # "/" of a service, or no path at all
        if "/" not in name and "%%" not in home:
            homes[name] = home.rstrip("/")
    return homes
