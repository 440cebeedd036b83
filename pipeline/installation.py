# SPDX-License-Identifier: Apache-2.0
"""Whether what is installed is what was installed: files against the wheel's RECORD.

Whoever can change the program can change RECORD too. So this finds damage and careless edits, and
`record_sha256` is what to compare with another machine, or with what the wheel was published with.

Source: Python Packaging User Guide, "Recording installed projects" (RECORD, direct_url.json).
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import JsonValue

PACKAGES = ("acquisition", "analysis", "evidence_store", "pipeline")
_NAME = "impound"

State = Literal["equal", "different", "editable", "unknown"]


@dataclass(frozen=True)
class Installation:
    """What was found.

    Attributes:
        state: `equal`: every file of RECORD has its digest, and the packages hold no other;
            `editable`: a working tree is installed, whose files RECORD does not name; `unknown`:
            there is nothing to compare with.
        why: of `unknown` and `editable`, in words.
        files: how many had the digest of RECORD.
        changed, missing, extra: names as of RECORD, in order.
        record_sha256: digest of RECORD, lower-case hex, or "".
    """

    state: State
    why: str = ""
    files: int = 0
    changed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    record_sha256: str = ""

    def document(self) -> dict[str, JsonValue]:
        """As JSON."""
        return {
            "state": self.state, "why": self.why, "files": self.files,
            "changed": list(self.changed), "missing": list(self.missing),
            "extra": list(self.extra), "record_sha256": self.record_sha256,
        }  # fmt: skip


def check(distribution: metadata.Distribution | None = None) -> Installation:
    """Compare the installed files with RECORD.

    Args:
        distribution: of impound; None: the one that is installed here.
    """
    if distribution is None:
        try:
            distribution = metadata.distribution(_NAME)
        except metadata.PackageNotFoundError:
            return Installation("unknown", "impound is not installed as a package here")
    if (text := distribution.read_text("RECORD")) is None:
        return Installation("unknown", "the installed package has no RECORD")
    digest = hashlib.sha256(text.encode()).hexdigest()
    if where := _editable(distribution):
        why = f"a working tree is installed ({where}), not a wheel"
        return Installation("editable", why, record_sha256=digest)
    root = Path(str(distribution.locate_file("")))
    if (running := Path(__file__).resolve().parents[1]) != root.resolve():
        why = f"the code that runs lies in {running}, the installed package in {root}"
        return Installation("unknown", why, record_sha256=digest)
    return compare(root, text)


def compare(root: Path, record: str) -> Installation:
    """Compare files with a RECORD.

    Args:
        root: directory that its names start from.
        record: its text.
    """
    equal, changed, missing = 0, [], []
    named = set()
    for row in csv.reader(record.splitlines()):
        if not row:
            continue
        name, wanted = row[0], row[1] if len(row) > 1 else ""
        named.add(name)
        algorithm, _, expected = wanted.partition("=")
        if not wanted and name.endswith((".pyc", "/RECORD")):
            continue  # made here; RECORD cannot name itself
        if algorithm != "sha256":
            changed.append(name)  # without a digest nothing proves it
            continue
        try:
            found = hashlib.sha256((root / name).read_bytes()).digest()
        except OSError:
            missing.append(name)
            continue
        if base64.urlsafe_b64encode(found).rstrip(b"=").decode() == expected:
            equal += 1
        else:
            changed.append(name)
    extra = sorted(_present(root) - named)
    if not any(name.partition("/")[0] in PACKAGES for name in named):
        missing += PACKAGES  # a list that names none of them
    state: State = "different" if changed or missing or extra else "equal"
    return Installation(
        state, "", equal, tuple(sorted(changed)), tuple(sorted(missing)), tuple(extra),
        hashlib.sha256(record.encode()).hexdigest(),
    )  # fmt: skip


def _present(root: Path) -> set[str]:
    """What the packages hold, as RECORD names it; compiled files of the interpreter aside."""
    return {
        str(PurePosixPath(path.relative_to(root)))
        for package in PACKAGES for path in (root / package).rglob("*")
        if not path.is_dir() and not (
            path.suffix == ".pyc" and path.parent.name == "__pycache__"
            and f".{sys.implementation.cache_tag}." in path.name
        )
    }  # fmt: skip


def _editable(distribution: metadata.Distribution) -> str:
    """Where the working tree lies if one is installed, else "".

    Source: PEP 610.
    """
    try:
        told = json.loads(distribution.read_text("direct_url.json") or "{}")
    except ValueError:
        return ""
    if isinstance(told, dict) and (told.get("dir_info") or {}).get("editable"):
        return str(told.get("url", "?"))
    return ""
