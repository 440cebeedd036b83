# SPDX-License-Identifier: Apache-2.0
"""What a check is, and what it found. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import JsonValue

Status = Literal["ok", "warning", "gap", "unknown", "failed"]
Scope = Literal["installation", "audit", "account", "member"]

# The worst first, as they are shown.
STATUSES: tuple[Status, ...] = ("failed", "unknown", "gap", "warning", "ok")


@dataclass(frozen=True)
class Check:
    """One thing that must be so before an incident.

    Attributes:
        name: as `--fix` takes it.
        row: rows of the organisation's design that ask for it.
        title: what is so when it passes.
        scope: where it is looked at: here, in the Audit account, in every account but the
            management account, or in those that are neither Audit nor Log Archive.
        regional: in every Region looked at, not once an account.
        mends: whether `--fix` can do something.
    """

    name: str
    row: str
    title: str
    scope: Scope
    regional: bool = False
    mends: bool = False


@dataclass(frozen=True)
class Place:
    """Where a check was made. Both empty: on this machine; no Region: the whole account."""

    account: str = ""
    region: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.account, self.region) if part) or "here"


@dataclass(frozen=True)
class Unseen:
    """A fact that could not be read, and why. It says nothing of what is so."""

    why: str


@dataclass(frozen=True)
class Observation:
    """One fact, or why there is none. `fact`: as JSON."""

    check: Check
    place: Place
    fact: Any


@dataclass(frozen=True)
class Fault:
    """What a check does not find as it must be.

    Attributes:
        what: in words, with the resource.
        fix: what to do about it.
        status: how bad.
        mend: what `--fix` needs to know; None: not ours to do.
    """

    what: str
    fix: str = ""
    status: Status = "failed"
    mend: dict[str, JsonValue] | None = None


@dataclass(frozen=True)
class Finding:
    """The verdict on one check in one place."""

    check: Check
    place: Place
    status: Status
    what: str = ""
    fix: str = ""
    mend: dict[str, JsonValue] | None = None

    def document(self) -> dict[str, JsonValue]:
        """As JSON."""
        return {
            "check": self.check.name, "row": self.check.row, "account": self.place.account,
            "region": self.place.region, "status": self.status, "what": self.what, "fix": self.fix,
            "mends": self.mend is not None,
        }  # fmt: skip


def exit_code(findings: Iterable[Finding]) -> int:
    """Return 14 if a check failed, 3 if something is not known or stays a gap, else 0.

    >>> exit_code([])
    3
    """
    found = {f.status for f in findings}
    if "failed" in found:
        return 14
    return 3 if not found or found & {"unknown", "gap"} else 0
