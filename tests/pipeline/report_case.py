# SPDX-License-Identifier: Apache-2.0
"""A small case for the tests of the report: real items, fabricated results, hostile names."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from functools import partial

import pyarrow as pa

from acquisition.source import open_source
from analysis.output import write_parquet
from analysis.schema import TABLES
from evidence_store.backend import LocalBackend
from evidence_store.ledger import Draft, Scribe
from evidence_store.model import Actor, Authority, Tool, clean
from evidence_store.sign import LocalSigner
from evidence_store.store import Store
from evidence_store.transfer import Member

SEGMENT = 65536
START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
DAY_NS = 86400 * 10**9
ACQUIRED_NS = int(START.timestamp()) * 10**9

HOSTILE = [
    "<script>alert(1)</script>",
    "\"onmouseover='alert(1)' x=\"",
    "</style></title><img src=http://evil.example/x onerror=alert(1)>",
    "line\nbreak\ttab\r",
    "\x1b[31mred\x1b[0m",
    "invoice\u202egpj.exe",
    "zero\x00byte",
    "bad-utf8-\\xff\\xfe",
    "x" * 255,
    "../../../../etc/passwd",
    "y" * 4000,
    "{{ 7 * 7 }}{% raw %}",
    "a\u0300\u0301\u0302\u0303\u0304b",
    "\u05e9\u05dc\u05d5\u05dd.txt",
    "&lt;b&gt;&amp;",
    "javascript:alert(1)",
    "space\u00a0\u3164\ufeffend",
]
LEDGER_SAFE = [clean(name, 300) for name in HOSTILE]


class Clock:
    """A second a tick."""

    def __init__(self):
        self.now = START

    def __call__(self):
        self.now += timedelta(seconds=1)
        return self.now


class Parts:
    """Tables made in a test, as a source to take into custody."""

    method = "fabricated"
    identity = None

    def __init__(self, folder, job, item, **tables):
        self.text = f"{job} of {item}"
        self.facts = {"type": "analysis", "job": job}
        self._places = {}
        for table, rows in tables.items():
            path = folder / f"{job}-{item}-{table}.parquet"
            write_parquet(pa.Table.from_pylist(rows, schema=TABLES[table]), path)
            self._places[f"{table}/00000000.parquet"] = path

    def members(self):
        for place, path in sorted(self._places.items()):
            yield Member(place.encode(), {"type": "file"}, partial(self._chunks, path), place=place)

    def _chunks(self, path):
        yield path.read_bytes()

    def skipped(self):
        return []

    def changes(self):
        return []


def file_row(item, n, path, **more):
    row = {
        "item": item, "item_digest": "0" * 64, "volume": "p1", "volume_offset": 1048576,
        "fs": "ext4", "path": path, "name": path.rpartition("/")[2], "inode": 12 + n,
        "type": "file", "size": n, "mode": 0o100644, "uid": 0, "gid": 0, "links": 1,
        "allocated": True, "name_state": "allocated",
        "sha256": hashlib.sha256(b"%d" % n).hexdigest(), "sha256_state": "ok",
        "mtime": ACQUIRED_NS - n * DAY_NS // 7, "ctime": ACQUIRED_NS - n * DAY_NS // 9,
        "atime": 0 if n % 5 == 0 else ACQUIRED_NS - n * DAY_NS, "btime": None,
        "tool": "test", "tool_version": "1",
    }  # fmt: skip
    return {**row, **more}


def gap_row(item, what, reason, count=1, **more):
    return {
        "item": item, "item_digest": "0" * 64, "job": "files", "volume": "", "what": what,
        "level": "gap", "reason": reason, "count": count, "tool": "test", "tool_version": "1",
        **more,
    }  # fmt: skip


class Made:
    """A store below `tmp`; `case` and the keys that write to it."""

    def __init__(self, tmp, *, title="A quiet case", case_id="T-1", authenticated=None):
        self.tmp = tmp
        self.root = tmp / "store"
        self.checkpoint_key = LocalSigner.generate()
        actor = Actor(
            asserted={"user": "examiner"}, authenticated=authenticated, host={"name": "lab-3"}
        )
        scribe = Scribe(actor, Tool(name="impound", version="0"), LocalSigner.generate(), Clock())
        self.store = Store(LocalBackend(self.root), scribe)
        authority = Authority(ticket="INC-7", basis="order of 2026-02-27", approved_by=["J. Doe"])
        self.case = self.store.create_case(
            case_id, authority, deployment="local", title=title, contact="soc@example.org",
            checkpoint_key=self.checkpoint_key.public,
        )  # fmt: skip

    def seal(self):
        return self.case.seal(self.checkpoint_key)

    def take(self, name, body, *, text="", kind="disk", read_back=True):
        path = self.tmp / name
        path.write_bytes(body)
        source = open_source(str(path), kind, text=text)
        return self.case.ingest(
            kind, source, segment_size=SEGMENT, read_back=read_back
        ).item_id  # fmt: skip

    def analysed(self, item, *, job="files", result="ok", note=None, **tables):
        source = Parts(self.tmp, job, item, **tables)
        taken = self.case.ingest("result", source, parents=[item], read_back=False)
        fields = {"item": taken.item_id, "result": result,
                  "data": {"job": job, "what": source.text, "rows": {}}}  # fmt: skip
        if note:
            fields["note"] = note
        self.case.record(lambda: Draft("analysis.completed", fields))
        return taken.item_id


def quiet(tmp):
    """A case in which nothing is known to be missing."""
    made = Made(tmp)
    body = b"\x01" * SEGMENT + bytes(3 * SEGMENT) + b"\x02" * SEGMENT + bytes(SEGMENT) + b"end"
    item = made.take("disk.raw", body, text="laptop 7")
    rows = [file_row(item, n, f"/home/u/file{n:03d}") for n in range(1, 60)]
    made.analysed(item, files=rows, coverage=[])
    made.seal()
    return made


def hostile(tmp):
    """A case whose every free text is hostile, and much is missing."""
    made = Made(tmp, title=LEDGER_SAFE[0] + " \u202e" + LEDGER_SAFE[1])
    item = made.take("disk.raw", b"\x03" * 5000, text=LEDGER_SAFE[2], read_back=False)
    made.take("memory.raw", b"\x04" * 100, text="memory \u202e" + LEDGER_SAFE[0], kind="memory")
    rows = [file_row(item, n, f"/{name}") for n, name in enumerate(HOSTILE, 1)]
    rows += [
        file_row(item, 900, "/gone", allocated=False, name_state="deleted", sha256=None,
                 sha256_state="deleted"),
        file_row(item, 901, "/future", mtime=ACQUIRED_NS + 900 * DAY_NS),
        file_row(item, 902, "/ancient", mtime=-DAY_NS * 365 * 90, volume="p'2\u202e", fs="<xfs>"),
    ]  # fmt: skip
    gaps = [gap_row(item, "content", f"not hashed: {name}", 3, path=f"/{name}") for name in HOSTILE]
    gaps.append(gap_row(item, HOSTILE[0], "unknown kind", offset=4096, length=512))
    made.analysed(item, result="partial", note=LEDGER_SAFE[0], files=rows, coverage=gaps)
    made.case.record(lambda: Draft("review.noted", {"note": LEDGER_SAFE[0] + "\u2066hidden"}))
    made.case.record(lambda: Draft("item.identified", {"item": made.case.state.next_item_id(),
                     "data": {"kind": "disk", "source": "</p>" + LEDGER_SAFE[1]}}))  # fmt: skip
    made.case.record(lambda: Draft("acquire.started", {"item": "E0004", "refs": [1]}))
    failed = {"item": "E0004", "refs": [len(made.case.ledger.entries) - 1], "result": "failed",
              "note": "cable <b>loose</b>"}  # fmt: skip
    made.case.record(lambda: Draft("acquire.failed", failed))
    made.seal()
    return made
