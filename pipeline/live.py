# SPDX-License-Identifier: Apache-2.0
"""`acquire live` and its step in a response: volatile facts over the permitted port."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from pydantic import JsonValue

from acquisition.errors import AcquisitionError
from acquisition.live import COLLECTORS, Answer, Collection
from evidence_store.transfer import Progress
from pipeline import steps
from pipeline.hosts import Host

if TYPE_CHECKING:
    from pipeline.workflow import Did, Job


@dataclass
class Collected:
    """What became of one live response."""

    target: str
    item: str = ""
    answers: list[Answer] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    gaps: list[str] = field(default_factory=list)

    def document(self) -> dict[str, JsonValue]:
        """As JSON."""
        return {
            "target": self.target, "item": self.item or None,
            "outcomes": cast("JsonValue", self.counts),
            "collectors": [
                {"name": a.name, "outcome": a.outcome, "bytes": a.size, "why": a.why}
                for a in self.answers
            ],
            "gaps": list(self.gaps),
        }  # fmt: skip


def collect(
    host: Host, *, paths: Sequence[str] = (),
    progress: Callable[[str], Progress] = lambda _label: lambda _done, _total: None,
) -> Collected:  # fmt: skip
    """Ask a host for its volatile facts. Each time is an item of its own: they are of that moment.

    Raises: AcquisitionError, StoreError.
    """
    case, target = host.case, host.target
    if host.where.platform == "windows":
        raise AcquisitionError(f"{target.resource_id} runs Windows: its collectors are not written")
    begun = steps.begin(case, "live", target.arn)
    out = Collected(target.arn)
    try:
        with host.open("live") as remote:
            text = f"live facts of {target.resource_id}"
            collection = Collection(
                remote, COLLECTORS, text,
                {"type": "live response", "target": target.arn, "instance": target.resource_id,
                 "host_key": remote.host_key, "host_key_trust": remote.trust,
                 "login": remote.login, "root": remote.root is not None},
                paths=paths, deleted=True, say=host.say,
            )  # fmt: skip
            taken = case.ingest("live", collection, progress=progress(text))
            if remote.root is None:
                out.gaps.append(f"{remote.why_not_root}: it answered only what it may see")
    except AcquisitionError as e:
        if begun.done is None:
            steps.failed(case, begun, str(e))
        raise
    out.item, out.answers, out.counts = taken.item_id, collection.outcomes, collection.counts
    out.gaps += [f"{a.name}: {a.why}" for a in collection.outcomes if a.outcome == "failed"]
    counts = cast("JsonValue", dict(collection.counts))
    if begun.done is None:
        steps.done(case, begun, item=out.item, outcomes=counts)
    else:
        steps.note(case, "live", target.arn, item=out.item, outcomes=counts)
    return out


def live(job: Job) -> Did:
    """Ask the host for its volatile facts, unless it was asked in this case."""
    from pipeline.workflow import Did

    assert job.target is not None  # noqa: S101
    if job.target.kind != "instance":
        return Did((), {"nothing": "a volume has no processes"})
    done = steps.begin(job.case, "live", job.target.arn).done or {}
    if item := str(done.get("item", "")):
        return Did((), {"item": item})
    accounts = job.session.accounts(job.case.case_id)
    host = Host(job.case, accounts, job.session.settings, job.target, say=job.say)
    made = collect(host, progress=lambda _label: job.progress)
    return Did(tuple(made.gaps), {"item": made.item})
