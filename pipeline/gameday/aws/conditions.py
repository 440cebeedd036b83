# SPDX-License-Identifier: Apache-2.0
"""How the simulated AWS behaves: how long things take, when they are seen, what time it is there.

State of the stand-in, not of a client: it outlives a client that is killed.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Settings:
    """All defaults: nothing takes time, everything is seen at once, one page holds all.

    `snapshot_polls`, `snapshot_seconds`
        A snapshot stays pending for so many DescribeSnapshots that show it, and at least so long.
    `volume_polls`
        A volume stays `creating`, an attachment `attaching` or `detaching`, for so many
        DescribeVolumes.
    `visibility`
        New instances, volumes, snapshots, shares, tags, security groups, key policies, grants and
        inline policies of roles are not seen by the first so many requests that would need them.
    `page_limit`, `block_page_limit`
        Items a page of EC2 (where MaxResults is given), of EBS direct; 0: as asked.
    `kms_denial`
        What becomes of a copy whose key may not be used: it goes to `error`, or is `gone`.
    `health_checks`
        An unhealthy member of an Auto Scaling group is ended after so many requests more.
    `session_seconds`
        Role sessions end so long after they began; 0: never.
    `recycle_volumes_days`, `recycle_snapshots_days`, `recycle_images_days`
        A retention rule of the Recycle Bin; 0: none, what is deleted is gone.
    `trail_seconds`
        Events are seen by LookupEvents so long after they happened.
    `config_recorder`
        1: AWS Config records instances that end.
    """

    snapshot_polls: int = 0
    snapshot_seconds: float = 0.0
    volume_polls: int = 0
    visibility: int = 0
    page_limit: int = 0
    block_page_limit: int = 0
    kms_denial: str = "error"
    health_checks: int = 0
    session_seconds: float = 0.0
    recycle_volumes_days: float = 0.0
    recycle_snapshots_days: float = 0.0
    recycle_images_days: float = 0.0
    trail_seconds: float = 0.0
    config_recorder: int = 0

    def __post_init__(self) -> None:
        if self.kms_denial not in ("error", "gone"):
            raise ValueError("kms_denial is error or gone")
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name != "kms_denial" and (isinstance(value, str) or value < 0):
                raise ValueError(f"{each.name} is a number, at least 0")


class Conditions:
    """What holds now in one stand-in."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """As at the start."""
        self.settings = Settings()
        self._ahead = 0.0
        self._ticks: Counter[str] = Counter()
        self._hidden: dict[tuple[str, str], int] = {}

    def now(self) -> float:
        """Return the stand-in's time, seconds since the epoch."""
        return time.time() + self._ahead

    def advance(self, seconds: float) -> None:
        """Let time pass. Raises: ValueError."""
        if seconds < 0:
            raise ValueError("time goes forward")
        self._ahead += seconds

    def change(self, settings: dict[str, Any]) -> None:
        """Other settings from now on; the rest as by default. Raises: ValueError, TypeError."""
        self.settings = Settings(**settings)

    def born(self, kind: str, name: str) -> None:
        """Something came into being; `visibility` says from when on it is seen."""
        if self.settings.visibility:
            self._hidden[kind, name] = self._ticks[kind] + self.settings.visibility

    def tick(self, kind: str) -> None:
        """A request asks for things of this kind."""
        self._ticks[kind] += 1

    def visible(self, kind: str, name: str) -> bool:
        """Whether the request that ticked last may see it."""
        due = self._hidden.get((kind, name))
        if due is None:
            return True
        if self._ticks[kind] > due:
            del self._hidden[kind, name]
            return True
        return False


conditions = Conditions()
