# SPDX-License-Identifier: Apache-2.0
"""What a bag says of itself beside the evidence: facts for people and for other tools.

All of it is derived from the ledger and the manifests, and signed by `bag.note`. A reader who
doubts it reads the ledger.
"""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from evidence_store.bag import layout, uco
from evidence_store.checkpoint import Checkpoint
from evidence_store.item import Manifest
from evidence_store.ledger import Logged
from evidence_store.store import Case

_COLUMNS = (
    "seq", "time", "action", "item", "result", "who", "host", "ticket", "tool", "note",
    "sha256 of entry", "key",
)  # fmt: skip
_STYLE = (
    "body{font:15px sans-serif;margin:2em}table{border-collapse:collapse}"
    "td,th{border:1px solid #999;padding:.2em .5em;text-align:left;vertical-align:top;"
    "overflow-wrap:anywhere}"
)


@dataclass(frozen=True)
class About:
    """Everything that the tag files of one export are made from."""

    case: Case
    entries: Sequence[Logged]
    manifests: Mapping[str, Manifest]
    export_id: str
    recipient: str
    newest: Checkpoint | None
    items: list[str]
    left_out: list[str]
    raw: bool
    files: int
    size: int

    def info(self) -> Iterator[tuple[str, str]]:
        """Yield the fields of `bag-info.txt`."""
        last, binding = self.entries[-1].event, self.entries[0].event.store
        yield "Source-Organization", binding.deployment if binding else ""
        yield "External-Identifier", last.origin
        yield "External-Description", f"case {self.case.case_id}: {self.case.state.title}"
        yield "Bagging-Date", last.time[:10]
        yield "Bag-Software-Agent", f"{last.tool.name} {last.tool.version}"
        yield "Payload-Oxum", f"{self.size}.{self.files}"
        yield "Impound-Case", self.case.case_id
        yield "Impound-Export-Id", self.export_id
        if self.recipient:
            yield "Impound-Recipient", self.recipient
        yield "Impound-Items", layout.encode_items(self.items) or "none"
        if self.left_out:
            yield "Impound-Left-Out", layout.encode_items(self.left_out)
        yield "Impound-Entries", str(len(self.entries))
        if self.newest:
            yield "Impound-Checkpoint-Size", str(self.newest.size)
            yield "Impound-Checkpoint-Root", self.newest.root_text
        yield "Impound-First-Key", self.case.ledger.ring.first

    def instructions(self) -> bytes:
        """Return `VERIFY.txt`."""
        receipt = str(self.newest) if self.newest else "SIZE:ROOT"
        first = self.case.ledger.ring.first
        left = layout.encode_items(self.left_out)
        lines = [
            f"Case {self.case.case_id}, export {self.export_id}",
            "",
            "1. Compare these two with what the sender told you by another way (paper, phone).",
            "   They are worth nothing if you only have them from this disk.",
            f"     first key   {first}",
            f"     checkpoint  {receipt if self.newest else 'none: this bag is not sealed'}",
            "",
            "2. With standard tools (shell, GNU coreutils and findutils, grep, sed, openssl):",
            f"     sh verify.sh -k {first}" + (f" -r {receipt}" if self.newest else ""),
            "   Better, run a copy of verify.sh that you trust more than this disk:",
            f"     sh /elsewhere/verify.sh -k {first}"
            + (f" -r {receipt}" if self.newest else "") + " FOLDER_OF_THE_BAG",
            "   The last line says OK or BROKEN; lines before it say what was not checked.",
            "",
            "3. With impound, which checks more:",
            f"     impound verify --bag FOLDER --expect-key {first}"
            + (f" --expect {receipt}" if self.newest else ""),
            "     impound import FOLDER",
            "",
            "An image lies in equal segments in data/cases/…/items/<item>/data; those that are",
            "not there were read and are all zero (segments.sha256 lists them).",
            *(["The same bytes in one file: data/raw/<item>/disk.raw."] if self.raw else []),
            "Open copies, read-only.",
        ]  # fmt: skip
        if left:
            lines += ["", f"Not in this bag: {left}. Their manifests are, their data are not."]
        return ("\n".join(lines) + "\n").encode()

    def _rows(self) -> Iterator[list[str]]:
        for logged in self.entries:
            e = logged.event
            said = e.actor.asserted
            yield [
                str(e.seq), e.time, e.action, e.item or "", e.result,
                str(said.get("responder") or said.get("user") or ""),
                str(e.actor.host.get("name", "")), e.authority.ticket,
                f"{e.tool.name} {e.tool.version}", e.note or "", logged.sha256, logged.signed_by,
            ]  # fmt: skip

    def table(self) -> bytes:
        """Return `custody.csv`; what a spreadsheet would take for a formula is quoted (')."""
        out = io.StringIO()
        writer = csv.writer(out)
        writer.writerow(_COLUMNS)
        for row in self._rows():
            writer.writerow(f"'{cell}" if cell[:1] in "=+-@" and cell else cell for cell in row)
        return out.getvalue().encode()

    def page(self) -> bytes:
        """Return `custody.html`: the same table, escaped, no script, nothing loaded."""
        title = html.escape(f"Chain of custody, case {self.case.case_id}")
        head = "".join(f"<th>{html.escape(column)}</th>" for column in _COLUMNS)
        rows = "\n".join(
            "<tr>" + "".join(f"<td><bdi>{html.escape(cell)}</bdi></td>" for cell in row) + "</tr>"
            for row in self._rows()
        )
        policy = "default-src 'none'; style-src 'unsafe-inline'"
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
            f"<title>{title}</title><style>{_STYLE}</style></head><body>\n<h1>{title}</h1>\n"
            f"<p>Export {html.escape(self.export_id)}. Who acted is as asserted. VERIFY.txt says "
            f"how to check this.</p>\n<table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n"
            "</tbody></table></body></html>\n"
        ).encode()

    def graph(self) -> bytes:
        """Return `case.jsonld`."""
        events = [logged.event for logged in self.entries]
        return uco.graph(self.case.case_id, self.case.state.title, events, self.manifests)
