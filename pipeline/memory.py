# SPDX-License-Identifier: Apache-2.0
"""`acquire memory` and its step in a response: RAM of an instance over the permitted port.

    log in → look → capture (resumed by segment) → read samples again → side-cars → verdict

What a capture came to is in the ledger: `step.done` with the item and the verdict. The side-cars
(head of kcore, iomem, version, kallsyms, BTF, streams, verdict) are an item of kind record whose
parent is the capture. An unusable capture is kept, and is exit 12.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import JsonValue

from acquisition.avml import Avml, AvmlCapture, seen
from acquisition.errors import AcquisitionError
from acquisition.kcore import KcoreError
from acquisition.live import SIDECARS, Collection
from acquisition.login import fingerprint
from acquisition.memory import SEGMENT_BYTES, KcoreCapture, look, recalled
from acquisition.verdict import Verdict, judge
from evidence_store.errors import SourceChangedError
from evidence_store.store import Case
from evidence_store.transfer import Progress
from pipeline import steps
from pipeline.hosts import Host

if TYPE_CHECKING:
    from acquisition.remote import Remote
    from evidence_store.ingest import Ingested
    from pipeline.workflow import Did, Job

WORKERS = 2


@dataclass
class Captured:
    """What became of one capture.

    Attributes:
        item, sidecars: ids, or "".
        existing: this boot was captured before; nothing was read.
        seconds: of reading.
    """

    target: str
    item: str = ""
    verdict: Verdict | None = None
    sidecars: str = ""
    existing: bool = False
    resumed: bool = False
    read: int = 0
    seconds: float = 0.0
    way: str = ""
    sha256: str = ""
    gaps: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def document(self) -> dict[str, JsonValue]:
        """As JSON."""
        found = self.verdict
        return {
            "target": self.target, "item": self.item or None, "sidecars": self.sidecars or None,
            "verdict": found.word if found else None, "existing": self.existing,
            "resumed": self.resumed, "read_bytes": self.read, "seconds": round(self.seconds, 1),
            "sent": self.way, "sha256": self.sha256 or None, "gaps": list(self.gaps),
            "remarks": list(self.remarks),
        }  # fmt: skip


def capture(
    host: Host, *, again: bool = False, avml: Avml | None = None,
    progress: Callable[[str], Progress] = lambda _label: lambda _done, _total: None,
) -> Captured:  # fmt: skip
    """Capture the memory of a host, or go on with a capture of the same boot.

    Raises: AcquisitionError, StoreError. What was stored stays.
    """
    case, target = host.case, host.target
    if host.where.platform == "windows":
        raise AcquisitionError(
            f"{target.resource_id} runs Windows: its memory cannot be read without an agent",
            hint="take a dump there by hand, then: impound ingest CASE FILE --kind memory",
        )
    begun = steps.begin(case, "memory", target.arn)
    out = Captured(target.arn)
    try:
        with host.open("memory") as remote:
            try:
                _capture(host, remote, out, again, progress)
            except KcoreError as e:
                if avml is None:
                    raise
                out.remarks.append(f"kcore: {e}")
                host.say(f"{e}; taking AVML")
                _by_avml(host, remote, out, avml, progress)
    except AcquisitionError as e:
        if begun.done is None:
            steps.failed(case, begun, str(e))
        raise
    assert out.verdict is not None  # noqa: S101
    if begun.done is None or not out.existing:
        steps.note(
            case, "memory verdict", target.arn, item=out.item, sidecars=out.sidecars,
            verdict=out.verdict.word, reasons=[r[:200] for r in out.verdict.reasons[:5]],
            remarks=[r[:200] for r in out.remarks[:5]],
        )  # fmt: skip
    if begun.done is None:
        steps.done(case, begun, item=out.item, verdict=out.verdict.word)
    return out


def _capture(
    host: Host, remote: Remote, out: Captured, again: bool, progress: Callable[[str], Progress]
) -> None:
    case, target = host.case, host.target
    looked = look(remote)
    plan = looked.plan
    host.say(
        f"{target.resource_id}: {len(plan.pieces)} ranges, {plan.readable} bytes of RAM"
        + (f", {len(plan.missing)} ranges that kcore does not show" if plan.missing else "")
    )
    for piece in plan.pieces[:50]:
        host.say(f"  {piece.start:#014x}-{piece.end - 1:#014x}  {piece.size} bytes")
    about: dict[str, JsonValue] = {"instance": target.resource_id, "target": target.arn}
    text = f"memory of {target.resource_id}"
    source = KcoreCapture(
        remote, looked, text, about, patience_s=host.settings.ssh.patience_s, say=host.say
    )
    with source:
        began = time.monotonic()
        taken = _ingest(case, source, again, progress(text), host.say)
        out.seconds = time.monotonic() - began
        out.item, out.existing, out.resumed = taken.item_id, taken.existing, taken.resumed
        out.sha256 = (taken.manifest.content or {}).get("sha256", "")
        if taken.existing:
            host.say(f"this boot was captured before, as {out.item}; --again captures it anew")
            if _earlier(case, target.arn, out):
                return
            host.say("what it is worth was not recorded: that run was interrupted; judging it now")
        recalled(
            source, lambda at, size: _read(case, out.item, at, size), taken.manifest.segment_size,
            case.segments(taken.manifest).unreadable,
        )  # fmt: skip
        source.read_again()
        found = source.seen
        out.read, out.way = found.read, str(taken.manifest.source.get("sent", ""))
        out.verdict = judge(found)
        facts: dict[str, JsonValue] = {
            **found.document(), "verdict": out.verdict.word, "item": out.item,
            "reasons": list(out.verdict.reasons), "remarks": list(out.verdict.remarks),
        }  # fmt: skip
        out.gaps += out.verdict.reasons
        out.remarks += out.verdict.remarks
        if remote.trust == "first-use":
            out.remarks.append(
                f"the host key {fingerprint(remote.host_key)} was taken at first use: respond "
                "compares it with the frozen disk (step hostkeys)"
            )
        if looked.facts.get("kptr_restrict") == "2":
            out.remarks.append("kallsyms hides addresses (kptr_restrict=2); the image has them")
        _sidecars(host, remote, source, out, facts)


def _by_avml(
    host: Host, remote: Remote, out: Captured, avml: Avml, progress: Callable[[str], Progress]
) -> None:
    case, text = host.case, f"memory of {host.target.resource_id}"
    about: dict[str, JsonValue] = {
        "instance": host.target.resource_id, "target": host.target.arn,
        "host_key": remote.host_key, "host_key_trust": remote.trust, "login": remote.login,
    }  # fmt: skip
    banner = remote.run("cat /proc/version", "kernel").out.decode("utf-8", "replace")
    iomem = remote.run("cat /proc/iomem", "which ranges are RAM", root=True).out
    began = time.monotonic()
    with AvmlCapture(remote, avml, text, about) as source:
        source.open()
        taken = case.ingest("memory", source, segment_size=SEGMENT_BYTES, progress=progress(text))
    out.item, out.seconds, out.way = taken.item_id, time.monotonic() - began, "avml"
    out.sha256 = (taken.manifest.content or {}).get("sha256", "")
    with case.open(out.item) as f:
        found = seen(
            f, taken.manifest.size, iomem.decode("ascii", "replace"), banner.split("\n")[0],
            tuple(source.lost), host.say,
        )  # fmt: skip
    out.read, out.verdict = found.read, judge(found)
    out.gaps += out.verdict.reasons


def _ingest(
    case: Case, source: KcoreCapture, again: bool, progress: Progress, say: Callable[[str], None]
) -> Ingested:
    def take(again: bool) -> Ingested:
        return case.ingest(
            "memory", source, workers=WORKERS, segment_size=SEGMENT_BYTES, again=again,
            progress=progress,
        )  # fmt: skip

    try:
        return take(again)
    except SourceChangedError:
        # Begun on another machine, or its notes are lost: memory is another now, so what is stored
        # of it cannot be continued.
        if source.scan.read == 0:
            raise
        say("the capture that was begun before cannot be continued here; it is taken anew")
        source.restart()
        return take(True)


def _read(case: Case, item: str, offset: int, size: int) -> bytes:
    with case.open(item) as f:
        f.seek(offset)
        return f.read(size)


def _earlier(case: Case, arn: str, out: Captured) -> bool:
    """Take over what the ledger says of a capture that is there already; False if it does not."""
    for event in steps.events_of(case, "memory verdict", arn):
        data = event.data or {}
        if data.get("item") == out.item:
            reasons = tuple(map(str, data.get("reasons", [])))  # type: ignore[arg-type]
            word = str(data["verdict"])
            out.verdict = Verdict(word, reasons)  # type: ignore[arg-type]
            out.sidecars = str(data.get("sidecars", ""))
            out.gaps += reasons
    return out.verdict is not None


def _sidecars(
    host: Host, remote: Remote, source: KcoreCapture, out: Captured, verdict: dict[str, JsonValue]
) -> None:
    looked = source.look
    collection = Collection(
        remote, SIDECARS, f"side-cars of {out.item}",
        {"type": "memory side-cars", "target": host.target.arn, "verdict": str(verdict["verdict"])},
        before={
            "kcore.head": looked.head, "iomem": looked.iomem,
            "streams.jsonl": b"".join(json.dumps(s).encode() + b"\n" for s in source.log),
            "verdict.json": json.dumps(verdict, indent=1, sort_keys=True).encode() + b"\n",
        },
    )  # fmt: skip
    if source.gave_up:
        collection.gone = source.gave_up
    taken = host.case.ingest("record", collection, parents=[out.item])
    out.sidecars = taken.item_id
    for answer in collection.outcomes:
        if answer.outcome == "failed":
            out.gaps.append(f"side-car {answer.name}: {answer.why}")


def memory(job: Job) -> Did:
    """Capture RAM over the permitted port."""
    from pipeline.workflow import Did

    assert job.target is not None  # noqa: S101
    if job.target.kind != "instance":
        return Did((), {"nothing": "a volume has no memory"})
    accounts = job.session.accounts(job.case.case_id)
    host = Host(job.case, accounts, job.session.settings, job.target, say=job.say)
    done = capture(host, progress=lambda _label: job.progress)
    assert done.verdict is not None  # noqa: S101
    gaps = tuple(f"memory is {done.verdict.word}: {gap}" for gap in done.gaps)
    return Did(gaps, {"item": done.item, "verdict": done.verdict.word})
