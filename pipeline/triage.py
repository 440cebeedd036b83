# SPDX-License-Identifier: Apache-2.0
"""`triage snapshot`: the files that patterns name, out of a snapshot, by the blocks they lie in.

The blocks are those of `acquisition`, the file systems those of `analysis`; only here do they meet.
A limited child reads the snapshot over the item channel, block by block; what it wrote is taken
into custody as one file set. A snapshot does not change, so a triage that is done stays done.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import JsonValue

from acquisition.blocks import SnapshotImage, snapshot_facts
from acquisition.demand import PAGE_BLOCKS, BlockObjects
from acquisition.ebs import BLOCK_BYTES, EbsDirect, Endpoint
from acquisition.target import Target
from analysis.errors import AnalysisError, UnsupportedImageError
from analysis.jobs import open_part
from analysis.triage import FILES
from evidence_store.child import Child, Limits, Outcome
from evidence_store.errors import Error
from evidence_store.model import clean
from evidence_store.store import Case
from evidence_store.transfer import Member, Progress
from pipeline import artifacts, steps
from pipeline.accounts import Accounts
from pipeline.errors import UsageError

MAX_FILE = 256 << 20
MAX_TOTAL = 2 << 30
MAX_PATTERNS = 2000
_ITEM = "snapshot"
_MAX_ROWS = 5000
_MAX_FOUND = 200_000
_IN_MANIFEST = 200
_CHUNK = 1 << 20
_LIMITS = Limits(cpu_s=1800, wall_s=3600)
_SYSTEMS = {"ext": "Linux", "xfs": "Linux", "ntfs": "Windows", "fat": "", "exfat": ""}
_TYPES = {"dir": "directory"}
_NUMBERS = ("inode", "size", "mode", "uid", "gid", "links")
_TIMES = ("mtime", "atime", "ctime", "btime")


@dataclass(frozen=True)
class Request:
    """What is looked for. Sizes in bytes.

    Attributes:
        patterns: as `analysis.walk.paths.parse` takes them.
        artifacts: names in the place of patterns, which follow from what the snapshot holds.
        origins: of each pattern, the artifact that it is of.
    """

    patterns: tuple[str, ...]
    max_file: int = MAX_FILE
    max_total: int = MAX_TOTAL
    artifacts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """The same for the same request."""
        asked = [sorted(self.patterns), sorted(self.artifacts), self.max_file, self.max_total]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


@dataclass
class Looked:
    """What a child told. `found`: as members; `coverage`: rows as in the table of that name."""

    found: list[dict[str, Any]] = field(default_factory=list)
    volumes: list[dict[str, Any]] = field(default_factory=list)
    coverage: list[dict[str, Any]] = field(default_factory=list)
    followed: list[dict[str, str]] = field(default_factory=list)
    matched: set[int] = field(default_factory=set)
    outcome: Outcome | None = None

    @property
    def died(self) -> str:
        """Why the child ended early, or ""."""
        return self.outcome.reason if self.outcome and not self.outcome.ok else ""

    def take(self, message: Mapping[str, Any]) -> None:
        """Take one message. Raises: TypeError, KeyError, ValueError for a bad one."""
        kind = message["message_type"]
        if kind == "found" and len(self.found) < _MAX_FOUND:
            self.found.append(_member(message))
        elif kind == "coverage" and len(self.coverage) < _MAX_ROWS:
            self.coverage.append(_row(message["row"]))
        elif kind == "volume" and len(self.volumes) < 1000:
            self.volumes.append({
                "name": clean(str(message["name"]), 40), "offset": int(message["offset"]),
                "length": int(message["length"]), "kind": clean(str(message["holds"]), 40),
                "reason": clean(str(message["reason"]), 200), "fs": "",
            })  # fmt: skip
        elif kind == "walked":
            for volume in self.volumes:
                if volume["offset"] == message["offset"]:
                    volume["fs"] = clean(str(message["fs"]), 20)
        elif kind == "followed" and len(self.followed) < 1000:
            link = {name: clean(str(message[name]), 400) for name in ("path", "target")}
            self.followed.append(link)
        elif kind == "matched":
            self.matched |= {int(n) for n in message["patterns"][:MAX_PATTERNS]}
        else:
            raise ValueError("a message of no known type, or too many")


@dataclass
class Triage:
    """What a triage came to.

    Attributes:
        item: the item that holds what was found; "" if nothing was.
        existing: it had been done before, and nothing was done now.
        unmatched: patterns that named nothing.
        fetched, blocks: bytes and blocks read of the snapshot; `lists`: pages of its list.
        died: why the reader ended early, or "".
    """

    target: Target
    request: Request
    size: int = 0
    item: str = ""
    existing: bool = False
    unmatched: list[str] = field(default_factory=list)
    looked: Looked = field(default_factory=Looked)
    fetched: int = 0
    blocks: int = 0
    facts: dict[str, JsonValue] = field(default_factory=dict)
    partial: bool = False

    @property
    def gaps(self) -> list[str]:
        """What was not seen, in words; what the method never sees is not among it."""
        return [
            *(f"nothing matches {clean(p, 200)}" for p in self.unmatched),
            *(_words(row) for row in self.looked.coverage if row["level"] != "limit"),
            *([f"the reader ended early: {self.looked.died}"] if self.looked.died else []),
        ]

    @property
    def limits(self) -> list[str]:
        """What the method does not see, in words."""
        return [_words(row) for row in self.looked.coverage if row["level"] == "limit"]

    @property
    def share(self) -> float:
        """Part of the volume's bytes that was fetched."""
        return self.fetched / self.size if self.size else 0.0


def _words(row: Mapping[str, Any]) -> str:
    where = row["path"] or row["volume"]
    more = f" ({row['count']} times)" if row["count"] > 1 else ""
    return f"{where + ': ' if where else ''}{row['reason']}{more}"


@dataclass
class SnapshotTriage:
    """One snapshot looked into by one case.

    Attributes:
        limits: of the child.
    """

    case: Case
    accounts: Accounts
    target: Target
    say: Callable[[str], None] = lambda _line: None
    progress: Progress = lambda _done, _total: None
    temporary: Path | None = None
    limits: Limits = _LIMITS

    def run(
        self,
        request: Request,
        *,
        take: bool = True,
        again: bool = False,
    ) -> Triage:
        """Look for what is asked; with `take`, take it into custody.

        Args:
            request: what is looked for.
            take: whether to take it, or only to say what there is.
            again: do it even if it was done before.

        Raises: AcquisitionError, AnalysisError, StoreError, PipelineError.
        """
        step = "triage" if take else "triage-list"
        if take and not again and (done := self._done(step, request)):
            return done
        account, region = self.target.account, self.target.region
        facts = snapshot_facts(self.accounts.client("ec2", account, region), self._id)
        begun = steps.begin(self.case, step, self._key(request), patterns=_listed(request))
        if begun.done is not None:  # again
            steps.failed(self.case, begun, "done before; asked for again")
            begun = steps.begin(self.case, step, self._key(request), patterns=_listed(request))
        try:
            with ExitStack() as stack:
                triage = self._look(stack, request, facts, take=take)
                self._keep(triage, again=again, take=take)
        except Error as e:
            steps.failed(self.case, begun, str(e))
            raise
        outcome: dict[str, JsonValue] = {
            "item": triage.item, "found": len(triage.looked.found), "fetched": triage.fetched,
            "blocks": triage.blocks, "gaps": len(triage.gaps), "size": triage.size,
            "unmatched": len(triage.unmatched),
        }  # fmt: skip
        if triage.looked.died:
            steps.failed(self.case, begun, f"the reader ended early: {triage.looked.died}")
        else:
            steps.done(self.case, begun, **outcome)
        return triage

    @property
    def _id(self) -> str:
        return self.target.resource_id

    def _key(self, request: Request) -> str:
        return f"{self.target.arn} {request.digest}"

    def _done(self, step: str, request: Request) -> Triage | None:
        """Return what was done before, if it is still there."""
        events = steps.events_of(self.case, step, self._key(request))
        if not events or events[-1].action != "step.done":
            return None
        data = events[-1].data or {}
        item = str(data.get("item") or "")
        if item and self.case.item(item).disposed:
            return None
        done = Triage(self.target, request, _whole(data, "size"), item, existing=True)
        done.fetched, done.blocks = _whole(data, "fetched"), _whole(data, "blocks")
        done.partial = bool(_whole(data, "gaps"))
        if not item:
            done.unmatched = _unmatched(request, set())
        return done

    def _look(
        self, stack: ExitStack, request: Request, facts: dict[str, JsonValue], *, take: bool
    ) -> Triage:  # fmt: skip
        account, region = self.target.account, self.target.region
        session = self.accounts.session(account)
        client = self.accounts.client("ebs", account, region)
        reader = stack.enter_context(EbsDirect(Endpoint.of(session, client, account)))
        image = stack.enter_context(
            SnapshotImage(reader, self._id, facts=facts, page_blocks=PAGE_BLOCKS)
        )
        top = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="impound-", dir=self.temporary)
        )
        objects = BlockObjects(image)

        def look(wanted: Request, *, content: bool = True) -> tuple[Looked, Path]:
            folder = Path(tempfile.mkdtemp(dir=top))
            looked = Looked()
            child = Child(
                module="analysis.triage",
                request={"item": _ITEM, "patterns": list(wanted.patterns), "take": content,
                         "max_file": wanted.max_file, "max_total": wanted.max_total},
                items={_ITEM: (image.size, BLOCK_BYTES, objects)},
                folder=folder, limits=self.limits,
                on_message=lambda message: self._told(looked, message, image),
            )  # fmt: skip
            looked.outcome = child.run()
            return looked, folder / "out"

        left_out: list[str] = []
        if request.artifacts:
            first, folder = look(replace(request, patterns=(artifacts.USERS_FILE,)))
            systems = {_SYSTEMS[v["kind"]] for v in first.volumes if v["fs"]} - {""}
            there = artifacts.places(request.artifacts, systems, _passwd(first, folder))
            left_out = there.left_out
            if len(there.patterns) > MAX_PATTERNS:
                raise UsageError(f"these artifacts have more than {MAX_PATTERNS} places",
                                 hint="name fewer of them at a time")  # fmt: skip
            request = replace(request, patterns=tuple(there.patterns), origins=tuple(there.origins))
        looked, self._folder = look(request, content=take)
        looked.coverage += [
            {"volume": "", "level": "limit", "what": "content", "path": "", "count": 1,
             "reason": clean(why, 400)} for why in left_out
        ]  # fmt: skip
        triage = Triage(self.target, request, image.size, looked=looked)
        triage.fetched = image.received.bytes
        triage.blocks = image.received.checked + image.received.mismatched + image.received.lost
        triage.facts = {**image.facts, "fetched_blocks": triage.blocks}
        self._judge(triage)
        return triage

    def _told(self, looked: Looked, message: Mapping[str, Any], image: SnapshotImage) -> None:
        looked.take(message)
        self.progress(image.received.bytes, None)

    def _judge(self, triage: Triage) -> None:
        """Say what was not found. Raises: UnsupportedImageError; AnalysisError."""
        looked, request = triage.looked, triage.request
        if not any(volume["fs"] for volume in looked.volumes) and not looked.died:
            seen = "; ".join(
                f"{v['name'] or 'the whole'}: {v['reason'] or v['kind'] or 'not usable'}"
                for v in looked.volumes if v["kind"] != "unallocated"
            )  # fmt: skip
            raise UnsupportedImageError(
                f"{self._id} holds no file system that can be read ({clean(seen, 600)})",
                hint="encrypted, LVM and RAID volumes are not opened here; take the whole volume "
                "with impound acquire volume",
            )
        if looked.died and not looked.found:
            raise AnalysisError(
                f"the reader of {self._id} ended early and found nothing: {looked.died}",
                hint="run the same command again, or take the whole volume: impound acquire volume",
            )
        if not looked.died:
            triage.unmatched = _unmatched(request, looked.matched)
        looked.coverage += [*_remarks(looked)]

    def _keep(self, triage: Triage, *, again: bool, take: bool) -> None:
        if not take or not triage.looked.found:
            return
        source = _Files(triage, self._folder)
        taken = self.case.ingest("logs", source, again=again)
        triage.item = taken.item_id
        triage.partial = taken.manifest.result != "ok"


def _passwd(looked: Looked, folder: Path) -> bytes:
    """Return the passwd(5) of the evidence, each if there are several; up to 1 MiB of it."""
    found = b""
    for member in looked.found:
        if member["object"] is not None:
            with open(open_part(folder, f"{FILES}/{member['object']:08d}"), "rb") as f:  # noqa: PTH123
                found += f.read(1 << 20) + b"\n"
    return found


def _unmatched(request: Request, matched: set[int]) -> list[str]:
    """Return the patterns that named nothing; of an artifact, only if none of its did."""
    if not request.artifacts:
        return [p for n, p in enumerate(request.patterns) if n not in matched]
    hit = {request.origins[n] for n in matched if n < len(request.origins)}
    return [f"artifact {name}" for name in request.artifacts if name not in hit]


def _remarks(looked: Looked) -> Iterator[dict[str, Any]]:
    """What people may think was taken, and was not: links are not followed, folders not entered."""
    base = {"volume": "", "level": "limit", "what": "content", "count": 1}
    below = {member["path"].rpartition("/")[0] for member in looked.found}
    for member in looked.found:
        path = member["path"]
        if member["type"] == "symlink" and member["patterns"]:
            target = clean(str(member["target"]), 200)
            yield {**base, "path": path, "reason": f"is a link to {target}, which was not followed"}
        if member["type"] == "directory" and member["patterns"] and path not in below:
            yield {**base, "path": path, "reason": f"is a directory; {path.rstrip('/')}/** takes "
                   "what is in it"}  # fmt: skip


def _listed(request: Request) -> JsonValue:
    """The patterns as far as an entry of the ledger has room; the manifest has them all."""
    asked = request.artifacts or request.patterns
    shown: list[JsonValue] = []
    room = 2000
    for pattern in asked:
        text = clean(pattern, 300)
        room -= 6 * len(text)
        if room < 0:
            return [*shown, f"and {len(asked) - len(shown)} more"]
        shown.append(text)
    return shown


def _whole(data: Mapping[str, Any], name: str) -> int:
    value = data.get(name)
    return value if isinstance(value, int) else 0


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    level: Literal["gap", "limit"] = "limit" if row.get("level") == "limit" else "gap"
    return {
        "volume": clean(str(row.get("volume") or ""), 40), "level": level,
        "what": clean(str(row["what"]), 40), "path": clean(str(row.get("path") or ""), 400),
        "reason": clean(str(row["reason"]), 400), "count": int(row.get("count") or 1),
    }  # fmt: skip


def _member(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a child says of an entry, in types that a member may have."""
    member: dict[str, Any] = {
        "path": str(message["path"])[:40_000], "stream": None, "object": None,
        "type": _TYPES.get(message["type"], clean(str(message["type"]), 20)),
        "volume": clean(str(message["volume"]), 40), "offset": int(message["offset"]),
        "fs": clean(str(message["fs"]), 20), "target": None,
        "patterns": [int(n) for n in message["patterns"]][:100],
    }  # fmt: skip
    for name in (*_NUMBERS, *_TIMES):
        value = message[name]
        member[name] = None if value is None else int(value)
    for name, key in (("target", "link_target"), ("stream", "stream")):
        if message[key] is not None:
            member[name] = str(message[key])[:40_000]
    raw = message["raw"]
    whole = bytes.fromhex(raw) if raw is not None else member["path"].encode("utf-8", "replace")
    if member["stream"] is not None:
        whole += b":" + member["stream"].encode("utf-8", "replace")
    member["name"] = whole
    if message.get("object") is not None:
        number = int(message["object"])
        if not 0 <= number < _MAX_FOUND:
            raise ValueError("a file of no known number")
        member["object"] = number
        member["stored"], member["sha256"] = int(message["stored"]), str(message["sha256"])
    return member


class _Files:
    """What a child wrote, as a source to take into custody."""

    method = (
        "EBS direct: ListSnapshotBlocks; GetSnapshotBlock of the blocks that file systems needed, "
        "the SHA-256 of each compared with the checksum that AWS states; names, metadata and "
        "contents read from them by a limited child process"
    )

    def __init__(self, triage: Triage, folder: Path) -> None:
        self._folder = folder
        self._found = triage.looked.found
        self._gaps = triage.gaps
        request, looked = triage.request, triage.looked
        asked = ", ".join(request.artifacts or request.patterns)
        self.text = f"files of {triage.target.resource_id}: {clean(asked, 200)}"
        rows = looked.coverage[:_IN_MANIFEST]
        self.facts: Mapping[str, JsonValue] = {
            **triage.facts, "type": "files of an EBS snapshot", "arn": triage.target.arn,
            "patterns": [clean(p, 300) for p in request.patterns],
            "artifacts": list(request.artifacts), "artifacts_version": artifacts.VERSION,
            "unmatched": [clean(p, 300) for p in triage.unmatched],
            "max_file": request.max_file, "max_total": request.max_total,
            "volumes": looked.volumes[:_IN_MANIFEST],  # type: ignore[dict-item]
            "links_followed": looked.followed[:_IN_MANIFEST],  # type: ignore[dict-item]
            "coverage": rows, "coverage_rows": len(looked.coverage),  # type: ignore[dict-item]
        }  # fmt: skip
        told = "\n".join(
            f"{m['volume']} {m['name'].hex()} {m.get('sha256')} {m['size']} {m['mtime']}"
            for m in self._found
        )
        self.identity: Mapping[str, JsonValue] | None = {
            "snapshot": triage.target.arn, "request": request.digest,
            "members": hashlib.sha256(told.encode()).hexdigest(),
        }  # fmt: skip

    def members(self) -> Iterator[Member]:
        """See `SetSource.members`."""
        names: set[bytes] = set()
        for found in self._found:
            name = found["name"]
            if name in names:  # the same path in another volume
                name = f"{found['volume'] or found['offset']}:".encode() + name
            names.add(name)
            facts: dict[str, JsonValue] = {
                "type": found["type"], "volume": found["volume"],
                "volume_offset": found["offset"], "fs": found["fs"],
                **{n: found[n] for n in _NUMBERS if found[n] is not None},
                **{f"{n}_ns": str(found[n]) for n in _TIMES if found[n] is not None},
            }  # fmt: skip
            if found["target"] is not None:
                facts["target"] = found["target"]
            if found["stream"] is not None:
                facts |= {"type": "stream", "stream": found["stream"]}
            chunks = None if found["object"] is None else partial(self._chunks, found)
            yield Member(name, facts, chunks)

    def _chunks(self, found: Mapping[str, Any]) -> Iterator[bytes]:
        """Yield a file that the child wrote, which must be what it said. Raises: OSError."""
        digest = hashlib.sha256()
        with open(open_part(self._folder, f"{FILES}/{found['object']:08d}"), "rb") as f:  # noqa: PTH123
            while chunk := f.read(_CHUNK):
                digest.update(chunk)
                yield chunk
        if digest.hexdigest() != found["sha256"]:
            raise OSError("is not what the reader said that it wrote")

    def skipped(self) -> list[str]:
        """What was not seen, and why."""
        return self._gaps

    def changes(self) -> list[str]:
        """None: a snapshot does not change."""
        return []
