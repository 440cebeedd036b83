# SPDX-License-Identifier: Apache-2.0
"""`impound verify`."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evidence_store.backend import Stored
from evidence_store.ledger import Draft
from evidence_store.store import Case
from evidence_store.verify import Verdict, verify_case
from pipeline.cli.base import Command, Globals, human, pass_globals, receipt
from pipeline.cli.case import checked
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from evidence_store.bag import BagVerdict


@click.command(cls=Command)
@click.argument("case_id", metavar="CASE", required=False)
@click.option(
    "--bag",
    "bag",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="A bag instead of a case of the store; everything in it is hashed.",
)
@click.option("--deep", is_flag=True, help="Hash all content, not only what describes it.")
@click.option(
    "--linear",
    is_flag=True,
    help="Like --deep, and recompute the digest of all bytes in order, where one is stated.",
)
@click.option("--record", is_flag=True, help="Record the verdict of each item in the ledger.")
@click.option("--expect", metavar="SIZE:ROOT", help="A receipt that the ledger must extend.")
@click.option("--expect-key", metavar="FINGERPRINT", help="Fingerprint of the case's first key.")
@pass_globals
def verify(
    options: Globals, case_id: str | None, bag: Path | None, deep: bool, linear: bool, record: bool,
    expect: str | None, expect_key: str | None,
) -> int:  # fmt: skip
    """Prove that nothing changed in a case, or in a bag (--bag DIR), or name what did.

    Exit 0: clean. 3: sound, with notes. 10: broken.
    """
    receipt_given = receipt_of(expect)
    if (case_id is None) == (bag is None):
        raise UsageError("name a case, or a bag with --bag")
    if bag is not None:
        if record:
            raise UsageError("a bag is only read", hint="impound import takes it into a store")
        return _bag(options, bag, linear, receipt_given, expect_key)
    assert case_id is not None  # noqa: S101
    store = options.open_store(writing=record)
    case = store.case_unverified(checked(case_id))
    with options.progress(f"verify {case_id}") as progress:
        verdict = verify_case(
            case, deep=deep, linear=linear, workers=options.session.settings.workers,
            progress=progress, receipt=receipt_given, first_key=expect_key,
        )  # fmt: skip
    document = _document(verdict)
    if record and verdict.entries:
        _record(case, verdict)
        document["receipt"] = receipt(options.seal(case)) if not verdict.findings else None
    options.result(document, _lines(verdict, in_aws=options.session.in_aws))
    return verdict.exit_code


def _bag(
    options: Globals, folder: Path, linear: bool, expect: tuple[int, str] | None, key: str | None
) -> int:
    from evidence_store.bag import verify_bag

    with options.progress(f"verify {folder.name}") as progress:
        verdict = verify_bag(
            folder, linear=linear, workers=options.session.settings.workers, progress=progress,
            receipt=expect, first_key=key,
        )  # fmt: skip
    options.result(bag_document(verdict), bag_lines(verdict))
    return verdict.exit_code


def bag_document(verdict: BagVerdict) -> dict[str, Any]:
    """Return the verdict on a bag as JSON."""
    inner = verdict.case
    said = (verdict.export.data or {}) if verdict.export else {}
    return {
        "message_type": "verdict", "bag": str(verdict.folder), "outcome": verdict.outcome,
        "case": inner.case_id if inner else None, "export_id": verdict.export_id or None,
        "recipient": said.get("recipient"), "items": said.get("items"),
        "left_out": said.get("left_out"), "raw": said.get("raw"),
        "findings": [asdict(f) for f in verdict.findings],
        "notes": [asdict(n) for n in verdict.notes],
        "files": verdict.files, "bytes": verdict.size,
        "entries": inner.entries if inner else 0, "sealed": inner.sealed if inner else 0,
        "root": inner.root if inner else "", "first_key": inner.first_key if inner else "",
        "covered": inner.covered if inner else [],
        "not_covered": inner.not_covered if inner else [],
    }  # fmt: skip


def bag_lines(verdict: BagVerdict) -> list[str]:
    """Return the verdict on a bag for people."""
    lines = [f"BROKEN  {finding}" for finding in verdict.findings]
    lines += [f"note    {note}" for note in verdict.notes]
    inner = verdict.case
    if inner is None:
        return [*lines, f"{verdict.outcome}: {verdict.folder}; the case in it was not looked at"]
    lines += [
        f"{verdict.outcome}: bag of case {inner.case_id}, export {verdict.export_id or 'unknown'}, "
        f"{verdict.files} files ({human(verdict.size)}, all hashed), {inner.entries} entries "
        f"({inner.sealed} sealed), {inner.items} items",
        f"  checked: file lists, bag signature, {', '.join(inner.covered)}",
    ]
    lines += _known_by(inner)
    lines.append("  Compare both with what the sender told you by another way than this disk.")
    return lines


def receipt_of(text: str | None) -> tuple[int, str] | None:
    """Return (size, root) of a receipt as it is typed. Raises: UsageError."""
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,15}):([A-Za-z0-9+/]{43}=)", text)
    if match is None:
        raise UsageError("not a receipt", hint="it looks like 12:mWq3…= (size:root)")
    return int(match[1]), match[2]


def _record(case: Case, verdict: Verdict) -> None:
    for item in case.state.items.values():
        if item.acquired is None:
            continue
        problems = [f for f in verdict.findings if f.about == f"item {item.item_id}"]
        fields: dict[str, Any] = {
            "item": item.item_id, "result": "failed" if problems else "ok",
            "refs": [item.acquired.seq],
            "data": {"how": _how(verdict), "problems": len(problems)},
        }  # fmt: skip
        case.record(lambda fields=fields: Draft("item.verified", fields))  # type: ignore[misc]


def _how(verdict: Verdict) -> str:
    return "linear" if verdict.linear else "deep" if verdict.deep else "quick"


def _document(verdict: Verdict) -> dict[str, Any]:
    left = verdict.leftovers
    facts = asdict(replace(verdict, leftovers=None, received=None))
    del facts["case_id"]
    inner = verdict.received
    return {
        "message_type": "verdict", "case": verdict.case_id, "outcome": verdict.outcome, **facts,
        "received": inner and {
            "entries": inner.entries, "sealed": inner.sealed, "root": inner.root,
            "first_key": inner.first_key,
        },
        "covered": verdict.covered, "not_covered": verdict.not_covered,
        "leftovers": left and {
            "temporary": _sum(left.temporary), "quarantine": _sum(left.quarantine),
        },
    }  # fmt: skip


def _sum(objects: list[Stored]) -> dict[str, int]:
    return {"files": len(objects), "bytes": sum(stored.size for stored in objects)}


def _known_by(verdict: Verdict) -> list[str]:
    """What was left out, and what others compare."""
    lines = []
    if verdict.not_covered:
        lines.append(f"  not checked: {', '.join(verdict.not_covered)}")
    if verdict.root:
        lines.append(f"  checkpoint {verdict.sealed}:{verdict.root}")
    if verdict.first_key:
        lines.append(f"  first key {verdict.first_key}")
    return lines


def _lines(verdict: Verdict, *, in_aws: bool) -> list[str]:
    lines = [f"BROKEN  {finding}" for finding in verdict.findings]
    lines += [f"note    {note}" for note in verdict.notes]
    lines += [
        f"{verdict.outcome}: case {verdict.case_id}, {verdict.entries} entries "
        f"({verdict.sealed} sealed), {verdict.items} items, {verdict.objects} objects",
        f"  checked: {', '.join(verdict.covered)} ({human(verdict.hashed_bytes)} hashed)",
    ]
    lines += _known_by(verdict)
    if verdict.received:
        inner = verdict.received
        lines += [
            f"  received with {inner.entries} entries ({inner.sealed} sealed), verified too",
            f"    checkpoint {inner.sealed}:{inner.root or 'none'}",
            f"    first key {inner.first_key}",
        ]
    lines += _left_over(verdict)
    lines += [
        f"  {o.item}, another identity verified it: {o.by} ({o.how}, {o.result}, entry {o.entry})"
        for o in verdict.opinions
    ]
    lines.append(
        "  Compare checkpoint and key with the ticket." if in_aws
        else "  a local store: one operator holds both keys. Compare checkpoint and key with the "
        "ticket."
    )  # fmt: skip
    return lines


def _left_over(verdict: Verdict) -> list[str]:
    """What lies in the store and belongs to no case: no fault, so no note."""
    left = verdict.leftovers
    if left is None:
        return []
    lines = []
    if left.temporary:
        found = _sum(left.temporary)
        lines.append(
            f"  left over in tmp/ of the store: {found['files']} of interrupted writes "
            f"({human(found['bytes'])}), no evidence; rm them when no machine writes to the store"
        )
    if left.quarantine:
        found = _sum(left.quarantine)
        lines.append(
            f"  set aside in quarantine/ of the store: {found['files']} torn "
            f"({human(found['bytes'])}); recovery.noted in a ledger tells of each; keep them"
        )
    return lines
