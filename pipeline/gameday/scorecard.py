# SPDX-License-Identifier: Apache-2.0
"""What a game day showed: each step with its outcome and seconds, each planted trace."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from evidence_store.errors import Error
from evidence_store.model import clean


@dataclass
class Step:
    """One step. `detail`: what it showed, or why it failed."""

    name: str
    outcome: Literal["ok", "failed"]
    seconds: float
    detail: str = ""


@dataclass
class Planted:
    """One trace that was planted, and where it was found ("" if it was not)."""

    name: str
    found: bool
    where: str = ""


class StepFailedError(Error):
    """A step did not show what it must show; the rest that depends on it does not run."""


@dataclass
class Scorecard:
    """The record of one game day."""

    scenario: str
    seed: int
    folder: str
    steps: list[Step] = field(default_factory=list)
    planted: list[Planted] = field(default_factory=list)
    not_rehearsed: list[str] = field(default_factory=list)
    report: str = ""
    verdict: str = ""
    on_step: Callable[[Step], None] = lambda _step: None

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Time a step and keep its outcome; what it raises is its failure, and is raised on."""
        step = Step(name, "failed", 0.0)
        started = time.monotonic()
        try:
            yield step
            step.outcome = "ok"
        except Exception as e:
            kind = "" if isinstance(e, Error) else f"{type(e).__name__}: "
            step.detail = clean(f"{kind}{e}", 400)
            raise
        finally:
            step.seconds = round(time.monotonic() - started, 3)
            self.steps.append(step)
            self.on_step(step)

    @property
    def passed(self) -> bool:
        """Whether every step passed and every planted trace was found."""
        return all(s.outcome == "ok" for s in self.steps) and all(p.found for p in self.planted)

    def document(self) -> dict[str, Any]:
        """Return the scorecard as JSON."""
        body = {k: v for k, v in self.__dict__.items() if k not in ("on_step", "steps", "planted")}
        return {**body, "passed": self.passed,
                "steps": [asdict(s) for s in self.steps],
                "planted": [asdict(p) for p in self.planted]}  # fmt: skip


def must(condition: object, message: str) -> None:
    """Raise StepFailedError unless `condition` holds."""
    if not condition:
        raise StepFailedError(message)


def write_scorecard(card: Scorecard) -> Path:
    """Write `scorecard.json` into the game day's folder; return its path."""
    path = Path(card.folder) / "scorecard.json"
    path.write_text(json.dumps(card.document(), indent=1) + "\n")
    return path
