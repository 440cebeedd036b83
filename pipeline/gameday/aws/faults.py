# SPDX-License-Identifier: Apache-2.0
"""Faults on demand: which call shall fail, how, and how often. Any service, standard library only.

    Fault("error", service="s3", operation="PutObject", resource="evidence/*", code="SlowDown")

A rule speaks of calls by service, operation, account and resource (shell patterns). Of the calls it
matches it lets `skip` through, then acts on `times` of them. Rules are asked in the order they were
added; delays add up, of the others the first that acts decides.

Codes and statuses: S3 "Error responses", EC2 "Error codes", KMS and EBS direct "Common errors".
"""

from __future__ import annotations

import fnmatch
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

Kind = Literal["error", "lost-answer", "delay", "truncate", "corrupt"]
KINDS: tuple[Kind, ...] = ("error", "lost-answer", "delay", "truncate", "corrupt")

# code -> (HTTP status, message as the service words it)
ERRORS: dict[str, tuple[int, str]] = {
    "AccessDenied": (403, "Access Denied"),
    "AccessDeniedException": (400, "You do not have sufficient access to perform this action."),
    "ConditionalRequestConflict": (
        409, "The conditional request cannot succeed due to a conflicting operation against this"
        " resource."),
    "ExpiredToken": (400, "The provided token has expired."),
    "ExpiredTokenException": (400, "The security token included in the request is expired"),
    "InternalError": (500, "We encountered an internal error. Please try again."),
    "InternalServerException": (500, "An internal error has occurred."),
    "RequestLimitExceeded": (503, "Request limit exceeded."),
    "RequestThrottledException": (400, "The request was throttled."),
    "RequestTimeTooSkewed": (
        403, "The difference between the request time and the current time is too large."),
    "RequestTimeout": (
        400, "Your socket connection to the server was not read from or written to within the"
        " timeout period."),
    "ServiceUnavailable": (503, "Service is unable to handle request."),
    "SlowDown": (503, "Please reduce your request rate."),
    "ThrottlingException": (400, "Rate exceeded"),
    "UnauthorizedOperation": (403, "You are not authorized to perform this operation."),
}  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """One rule.

    `kind`
        `error`: answer `code`; the call has no effect. `lost-answer`: the call has its effect, then
        the connection is reset. `delay`: `seconds` before the call. `truncate`: half of the body
        under its full Content-Length. `corrupt`: one byte in the middle of the body is another.
    `service`, `operation`, `account`, `resource`
        Shell patterns: `s3`, `PutObject`, twelve digits, `bucket/key` (S3), `snapshot/index`
        (GetSnapshotBlock), or any id or ARN that the call names.
    `times`
        How many calls it acts on; None: all.
    `status`
        Needed for a code that is not in `ERRORS`.
    `reason`
        The `Reason` of an error of EBS direct (`RESOURCE_LEVEL_THROTTLE`).
    """

    kind: Kind
    service: str = "*"
    operation: str = "*"
    account: str = "*"
    resource: str = "*"
    skip: int = 0
    times: int | None = 1
    code: str = ""
    status: int = 0
    message: str = ""
    reason: str = ""
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no such kind of fault: {self.kind!r} ({', '.join(KINDS)})")
        if self.kind == "error" and not self.code:
            raise ValueError("an error needs a code")
        if self.kind == "error" and self.code not in ERRORS and not self.status:
            raise ValueError(f"unknown code {self.code!r}: give its status too")
        if self.kind == "delay" and self.seconds <= 0:
            raise ValueError("a delay needs seconds")
        if self.skip < 0 or (self.times is not None and self.times < 1):
            raise ValueError("skip is at least 0, times at least 1")

    @property
    def answer(self) -> tuple[int, str, str]:
        """(status, code, message) of an error."""
        status, message = ERRORS.get(self.code, (self.status, self.code))
        return self.status or status, self.code, self.message or message

    def matches(self, service: str, operation: str, account: str, resources: Iterable[str]) -> bool:
        """Whether it speaks of this call."""
        match = fnmatch.fnmatchcase
        return (
            match(service, self.service)
            and match(operation, self.operation)
            and match(account, self.account)
            and (self.resource == "*" or any(match(r, self.resource) for r in resources))
        )

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Fault:
        """Read one from JSON. Raises: ValueError."""
        unknown = set(document) - {f.name for f in fields(cls)}
        if unknown or "kind" not in document:
            raise ValueError(f"not a fault: unknown {sorted(unknown)} or no kind")
        return cls(**document)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Hit:
    """A fault acted: number of the rule in the order it was added, and the call."""

    rule: int
    kind: str
    service: str
    operation: str
    account: str
    resource: str


@dataclass(frozen=True)
class Seen:
    """One call that was made. `role`: ARN of the role that its caller has, or ""."""

    service: str
    operation: str
    account: str
    resources: tuple[str, ...]
    role: str = ""


class Faults:
    """The rules of one stand-in, and what they did. Safe between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rules: list[Fault] = []
        self._seen: list[int] = []
        self._hits: list[Hit] = []

    def add(self, *faults: Fault) -> None:
        """Add rules."""
        with self._lock:
            self._rules += faults
            self._seen += [0] * len(faults)

    def clear(self) -> None:
        """Forget rules and hits."""
        with self._lock:
            self._rules, self._seen, self._hits = [], [], []

    def hits(self) -> list[Hit]:
        """What was done, in order."""
        with self._lock:
            return list(self._hits)

    def rules(self) -> list[Fault]:
        """The rules, in order."""
        with self._lock:
            return list(self._rules)

    def take(
        self, service: str, operation: str, account: str, resources: Iterable[str]
    ) -> list[Fault]:
        """Return what shall happen to this call: delays, then at most one other."""
        resources = list(resources)
        found: list[Fault] = []
        with self._lock:
            for i, rule in enumerate(self._rules):
                if not rule.matches(service, operation, account, resources):
                    continue
                if rule.kind != "delay" and any(f.kind != "delay" for f in found):
                    continue
                self._seen[i] += 1
                acted = self._seen[i] - rule.skip
                if acted < 1 or (rule.times is not None and acted > rule.times):
                    continue
                found.append(rule)
                where = next(iter(resources), "")
                self._hits.append(Hit(i, rule.kind, service, operation, account, where))
        return sorted(found, key=lambda f: f.kind != "delay")
