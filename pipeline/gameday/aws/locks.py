# SPDX-License-Identifier: Apache-2.0
"""Locks of snapshots.

Source: EC2 API Reference (LockSnapshot, LockedSnapshotsInfo); EBS User Guide, "Snapshot lock". Not
in these, so unconfirmed: the error codes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from moto.ec2.exceptions import EC2ClientError

_DAY, _HOUR = 86_400.0, 3_600.0
MOST_DAYS, MOST_HOURS = 36_500, 72


@dataclass(frozen=True)
class Lock:
    """A lock. Days or an expiry; `began` when the duration started (None: not yet)."""

    mode: str
    created: float
    began: float | None
    days: int | None
    expires: float | None
    cool_off_hours: int | None

    @property
    def ends(self) -> float:
        """When it expires; infinity while the duration has not begun."""
        if self.expires is not None:
            return self.expires
        return math.inf if self.began is None else self.began + (self.days or 0) * _DAY

    @property
    def cool_off_ends(self) -> float:
        """Until when it can be taken back."""
        return self.created + (self.cool_off_hours or 0) * _HOUR

    def state(self, now: float) -> str:
        """As the API names it."""
        if now >= self.ends:
            return "expired"
        if self.mode == "compliance" and now < self.cool_off_ends:
            return "compliance-cooloff"
        return self.mode

    def document(self, now: float) -> dict[str, Any]:
        """As the API shows it."""
        return {
            "LockState": self.state(now),
            "LockDuration": self.days,
            "CoolOffPeriod": self.cool_off_hours,
            "CoolOffPeriodExpiresOn": moment(self.cool_off_ends) if self.cool_off_hours else None,
            "LockCreatedOn": moment(self.created),
            "LockDurationStartTime": None if self.began is None else moment(self.began),
            "LockExpiresOn": None if self.ends == math.inf else moment(self.ends),
        }


def moment(seconds: float) -> datetime:
    """Return a time as moto takes it: UTC, naive."""
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)


def new_lock(asked: Mapping[str, Any], old: Lock | None, began: float | None, now: float) -> Lock:
    """Return the lock that LockSnapshot makes.

    Args:
        asked: the request's parameters.
        old: the lock there is.
        began: when the duration starts; None if the snapshot is pending.
        now: seconds since the epoch.

    Raises: EC2ClientError.
    """
    mode, hours = asked.get("LockMode"), asked.get("CoolOffPeriod")
    days, expires = asked.get("LockDuration"), _seconds(asked.get("ExpirationDate"))
    if mode not in ("governance", "compliance") or (hours is not None and mode == "governance"):
        raise EC2ClientError(
            "InvalidParameterCombination", "LockMode and CoolOffPeriod do not fit."
        )
    if (days is None) == (expires is None):
        raise EC2ClientError(
            "InvalidParameterCombination", "LockDuration or ExpirationDate, one of both."
        )
    if (
        (days is not None and not 1 <= days <= MOST_DAYS)
        or (hours is not None and not 1 <= hours <= MOST_HOURS)
        or (expires is not None and expires <= now)
    ):
        raise EC2ClientError(
            "InvalidParameterValue", "LockDuration, ExpirationDate or CoolOffPeriod."
        )
    made = Lock(mode, now, began, days, expires, hours)
    if old is None or old.state(now) != "compliance":
        return made
    if mode != "compliance" or hours is not None or made.ends < old.ends:
        raise EC2ClientError("OperationNotPermitted", "A compliance lock can only be extended.")
    return replace(made, created=old.created, cool_off_hours=old.cool_off_hours)


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, str):
        value = datetime.fromisoformat(value.replace("Z", "+00:00"))
    read: datetime = value if value.tzinfo else value.replace(tzinfo=UTC)
    return read.timestamp()
