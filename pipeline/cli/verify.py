# SPDX-License-Identifier: Apache-2.0
"""`impound verify`."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

import click

from evidence_store.ledger import Draft
from evidence_store.store import Case
from evidence_store.verify import Verdict, verify_case
from pipeline.cli.base import Command, Globals, human, pass_globals, receipt
from pipeline.cli.case import checked
from pipeline.errors import UsageError


@click.command(cls=Command)
@click.argument("case_id", metavar="CASE")
@click.option("--deep", is_flag=True, help="Hash all content, not only what describes it.")
@click.option("--record", is_flag=True, help="Record the verdict of each item in the ledger.")
@click.option("--expect", metavar="SIZE:ROOT", help="A receipt that the ledger must extend.")
@click.option("--expect-key", metavar="FINGERPRINT", help="Fingerprint of the case's first key.")
@pass_globals
def verify(
    options: Globals, case_id: str, deep: bool, record: bool, expect: str | None,
    expect_key: str | None,
) -> int:  # fmt: skip
    """Prove that nothing changed, or name what did.

    Exit 0: clean. 3: sound, with notes. 10: broken.
    """
    receipt_given = _receipt(expect)
    store = options.open_store(writing=record)
    case = store.case_unverified(checked(case_id))
    with options.progress(f"verify {case_id}") as progress:
        verdict = verify_case(
            case, deep=deep, workers=options.session.settings.workers, progress=progress,
            receipt=receipt_given, first_key=expect_key,
        )  # fmt: skip
    document = _document(verdict)
    if record and verdict.entries:
        _record(case, verdict)
        document["receipt"] = receipt(options.seal(case)) if not verdict.findings else None
    options.result(document, _lines(verdict))
    return verdict.exit_code


def _receipt(text: str | None) -> tuple[int, str] | None:
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
            "data": {"how": "deep" if verdict.deep else "quick", "problems": len(problems)},
        }  # fmt: skip
        case.record(lambda fields=fields: Draft("item.verified", fields))  # type: ignore[misc]


def _document(verdict: Verdict) -> dict[str, Any]:
    return {"message_type": "verdict", "case": verdict.case_id, "outcome": verdict.outcome,
            **{k: v for k, v in asdict(verdict).items() if k != "case_id"}}  # fmt: skip


def _lines(verdict: Verdict) -> list[str]:
    lines = [f"BROKEN  {finding}" for finding in verdict.findings]
    lines += [f"note    {note}" for note in verdict.notes]
    what = "ledger, checkpoints, manifests, presence and sizes"
    checked_what = f"{what}, all content" if verdict.deep else what
    lines += [
        f"{verdict.outcome}: case {verdict.case_id}, {verdict.entries} entries "
        f"({verdict.sealed} sealed), {verdict.items} items, {verdict.objects} objects",
        f"  checked: {checked_what} ({human(verdict.hashed_bytes)} hashed)",
    ]
    if not verdict.deep:
        lines.append("  not checked: content of images (--deep does)")
    if verdict.root:
        lines.append(f"  checkpoint {verdict.sealed}:{verdict.root}")
    if verdict.first_key:
        lines.append(f"  first key {verdict.first_key}")
    lines.append(
        "  a local store: one operator holds both keys. Compare checkpoint and key with the ticket."
    )
    return lines
