# SPDX-License-Identifier: Apache-2.0
"""A run as an item of the reserved case `_readiness`: what was observed, and the verdicts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic import JsonValue

from evidence_store.errors import CaseNotFoundError, StoreNotFoundError
from evidence_store.model import Authority
from evidence_store.store import Case, Store
from evidence_store.transfer import Member
from pipeline.readiness.checks import READINESS_CASE
from pipeline.readiness.model import Finding, Observation, Unseen, exit_code
from pipeline.session import Session


class Run:
    """One run as a set of two files: `readiness.json`, `readiness.html`."""

    method = "AWS APIs, read by the role of this run; see the call names in `pipeline.readiness`"
    identity: Mapping[str, JsonValue] | None = None

    def __init__(
        self, seen: Sequence[Observation], found: Sequence[Finding], at: datetime, page: str
    ) -> None:
        self.text = f"readiness {at:%Y-%m-%dT%H:%M:%SZ}"
        self.facts: Mapping[str, JsonValue] = {"type": "readiness", "exit_code": exit_code(found)}
        document = {
            "at": at.isoformat(), "findings": [f.document() for f in found],
            "observations": [_observed(o) for o in seen],
        }  # fmt: skip
        self._files = {
            b"readiness.json": json.dumps(document, indent=1, default=str).encode(),
            b"readiness.html": page.encode(),
        }

    def members(self) -> Iterator[Member]:
        """See `SetSource.members`."""
        for name, body in self._files.items():
            yield Member(name, {"type": "file"}, lambda body=body: iter((body,)))  # type: ignore[misc]

    def skipped(self) -> list[str]:
        """Nothing."""
        return []

    def changes(self) -> list[str]:
        """None: it is in memory."""
        return []


def _observed(seen: Observation) -> dict[str, Any]:
    lost = isinstance(seen.fact, Unseen)
    return {
        "check": seen.check.name, "account": seen.place.account, "region": seen.place.region,
        "fact": None if lost else seen.fact, "unseen": seen.fact.why if lost else "",
    }  # fmt: skip


def readiness_case(session: Session, store: Store) -> Case:
    """Return the reserved case, opened on first use.

    Raises: SigningKeyError, StoreError.
    """
    try:
        return store.case(READINESS_CASE)
    except (CaseNotFoundError, StoreNotFoundError):
        settings = session.settings
        return store.create_case(
            READINESS_CASE, Authority(ticket=READINESS_CASE, basis="standing order"),
            deployment=settings.deployment, title="readiness and game days",
            contact=settings.readiness.contact_email, checkpoint_key=session.checkpoint_public,
        )  # fmt: skip
