# SPDX-License-Identifier: Apache-2.0
"""Activity over time: calendar bins in UTC, and the picture and table made from them."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pipeline.errors import PipelineError

MAX_BINS = 60
STAMPS = {
    "mtime": "mtime: content changed",
    "ctime": "ctime: metadata changed",
    "btime": "btime: created",
    "atime": "atime: read",
}
_DAY = 86400
_UNITS = {  # about how many seconds each has
    "second": 1, "minute": 60, "hour": 3600, "day": _DAY, "week": 7 * _DAY, "month": 30 * _DAY,
    "quarter": 91 * _DAY, "year": 365 * _DAY, "decade": 3652 * _DAY,
}  # fmt: skip
_FORMAT = {
    "second": "%Y-%m-%d %H:%M:%S", "minute": "%Y-%m-%d %H:%M", "hour": "%Y-%m-%d %H:00",
    "month": "%Y-%m",
}  # fmt: skip
_TIMEOUT_S = 180


def unit_for(first: datetime, last: datetime) -> str:
    """Return the finest calendar unit that needs at most about `MAX_BINS` bins."""
    span = (last - first).total_seconds()
    return next((u for u, seconds in _UNITS.items() if span / seconds <= MAX_BINS - 2), "decade")


def floor(moment: datetime, unit: str) -> datetime:
    """Return the start of the bin of `moment`; weeks begin on Monday, as in DuckDB's date_trunc."""
    if unit == "second":
        return moment.replace(microsecond=0)
    if unit == "minute":
        return moment.replace(second=0, microsecond=0)
    if unit == "hour":
        return moment.replace(minute=0, second=0, microsecond=0)
    day = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    if unit == "day":
        return day
    if unit == "week":
        return day - timedelta(days=day.weekday())
    month = day.replace(day=1)
    if unit == "month":
        return month
    if unit == "quarter":
        return month.replace(month=(month.month - 1) // 3 * 3 + 1)
    year = month.replace(month=1)
    return year if unit == "year" else year.replace(year=year.year // 10 * 10)


def _next(start: datetime, unit: str) -> datetime:
    if unit in ("second", "minute", "hour", "day", "week"):
        return start + timedelta(seconds=_UNITS[unit])
    months = {"month": 1, "quarter": 3, "year": 12, "decade": 120}[unit]
    at = start.year * 12 + start.month - 1 + months
    return datetime(at // 12, at % 12 + 1, 1, tzinfo=UTC)


def bins(first: datetime, last: datetime, unit: str) -> list[datetime]:
    """Return the starts of all bins from that of `first` to that of `last`, empty ones too."""
    out = [floor(first, unit)]
    while (following := _next(out[-1], unit)) <= last:
        out.append(following)
    return out


def label(start: datetime, unit: str) -> str:
    """Return what a bin is called.

    >>> label(datetime(2026, 4, 1, tzinfo=UTC), "quarter")
    '2026 Q2'
    """
    if unit == "quarter":
        return f"{start.year} Q{start.month // 3 + 1}"
    if unit in ("year", "decade"):
        return f"{start.year}" if unit == "year" else f"{start.year}s"
    return start.strftime(_FORMAT.get(unit, "%Y-%m-%d"))


@dataclass(frozen=True)
class Chart:
    """A histogram of time stamps.

    Attributes:
        title: what it shows.
        unit: of a bin.
        starts: of all bins.
        counts: stamp -> one count a bin.
    """

    title: str
    unit: str
    starts: Sequence[datetime]
    counts: Mapping[str, Sequence[int]]

    @property
    def coarse(self) -> bool:
        """Whether a bin is longer than a day."""
        return _UNITS[self.unit] > _DAY

    @property
    def rows(self) -> list[tuple[str, list[int]]]:
        """Label and counts of every bin that is not empty, in order."""
        return [
            (label(start, self.unit), [self.counts[name][i] for name in STAMPS])
            for i, start in enumerate(self.starts)
            if any(self.counts[name][i] for name in STAMPS)
        ]

    @property
    def alt(self) -> str:
        """What the picture says, in words."""
        busiest = max(self.rows, key=lambda row: sum(row[1]))
        return (
            f"Histogram: {self.title}. {len(self.rows)} of {len(self.starts)} bins hold time "
            f"stamps, from {label(self.starts[0], self.unit)} to "
            f"{label(self.starts[-1], self.unit)}; the most, {sum(busiest[1])}, fall in "
            f"{busiest[0]}. The table below gives every number."
        )

    def request(self) -> dict[str, object]:
        """What `draw.py` needs."""
        count = len(self.starts)
        every = max(1, -(-count // (5 if self.unit in ("second", "minute", "hour") else 7)))
        return {
            "series": [[text, list(self.counts[name])] for name, text in STAMPS.items()],
            "ticks": [[i, label(self.starts[i], self.unit)] for i in range(0, count, every)],
            "x": f"start of each bin (1 {self.unit}), UTC",
            "y": "number of names, logarithmic scale",
        }


def at_bins(
    title: str,
    unit: str,
    first: datetime,
    last: datetime,
    counted: Mapping[str, Mapping[datetime, int]],
) -> Chart:
    """Return a chart of counts by the start of their bin."""
    starts = bins(first, last, unit)
    return Chart(
        title, unit, starts,
        {name: [counted[name].get(start, 0) for start in starts] for name in STAMPS},
    )  # fmt: skip


def pictures(charts: Sequence[Chart]) -> list[str]:
    """Return each chart as a `data:` address of an SVG picture.

    Raises: PipelineError if the drawing process fails.
    """
    if not charts:
        return []
    keep = ("HOME", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
    environment = {name: os.environ[name] for name in keep if name in os.environ}
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(Path(__file__).with_name("draw.py").absolute())],
            input=json.dumps([chart.request() for chart in charts]),
            capture_output=True, text=True, encoding="utf-8", check=True, cwd="/",
            env={**environment, "LC_ALL": "C.UTF-8", "MPLBACKEND": "svg"}, timeout=_TIMEOUT_S,
        )  # fmt: skip
        drawn = json.loads(done.stdout)
    except subprocess.CalledProcessError as e:
        said = (e.stderr or "").strip().splitlines() or ["no message"]
        raise PipelineError(f"the pictures of the report cannot be drawn: {said[-1]}") from e
    except (OSError, ValueError, subprocess.TimeoutExpired) as e:
        raise PipelineError(f"the pictures of the report cannot be drawn: {e}") from e
    return [f"data:image/svg+xml;base64,{base64.b64encode(s.encode()).decode()}" for s in drawn]
