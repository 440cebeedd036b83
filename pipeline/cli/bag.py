# SPDX-License-Identifier: Apache-2.0
"""`impound export` and `impound import`."""

from __future__ import annotations

import re
from pathlib import Path

import click

from evidence_store.bag import export_case, import_bag
from pipeline.cli.base import Command, Globals, human, pass_globals, receipt
from pipeline.cli.case import checked, offer_keys
from pipeline.cli.verify import bag_document, receipt_of
from pipeline.errors import UsageError


@click.command(cls=Command)
@click.argument("case_id", metavar="CASE")
@click.argument("destination", metavar="DEST", type=click.Path(path_type=Path))
@click.option("--items", metavar="ITEM[,ITEM]…", help="Only these items' data (default: all).")
@click.option("--raw", is_flag=True, help="Write each image once more as one sparse file.")
@click.option("--recipient", default="", metavar="TEXT", help="For whom it is.")
@pass_globals
def export(
    options: Globals, case_id: str, destination: Path, items: str | None, raw: bool, recipient: str
) -> int:
    """Write a case into a bag: a folder for somebody else, verifiable without impound.

    Interrupted: the same command continues. Exit 3: the bag is sound and something should be known.
    """
    case = options.open_store(writing=True).case(checked(case_id))
    with options.progress(f"export {case_id}") as progress:
        done = export_case(
            case, destination, options.seal, items=_items(items), raw=raw, recipient=recipient,
            workers=options.session.settings.workers, progress=progress,
        )  # fmt: skip
    if done.unsealed:
        options.warn(f"{done.unsealed} entries in the bag are not sealed by a checkpoint")
    for note in done.notes:
        options.say(f"note    {note}")
    if done.left_out:
        options.say(f"note    not in this bag: {' '.join(done.left_out)}")
    options.result(
        {"message_type": "export", "case": case_id, "bag": str(done.folder),
         "export_id": done.export_id, "items": done.items, "left_out": done.left_out,
         "files": done.files, "bytes": done.size, "entries": done.entries,
         "unsealed": done.unsealed, "notes": [str(n) for n in done.notes],
         "first_key": case.ledger.ring.first, "receipt": receipt(done.checkpoint)},
        [f"case {case_id} exported to {done.folder}",
         f"  export {done.export_id}, {done.files} files ({human(done.size)}), "
         f"{len(done.items)} items, {done.entries} entries",
         f"  checkpoint {done.checkpoint or 'none'}",
         f"  first key {case.ledger.ring.first}",
         "  give the recipient these two lines by another way than the disk",
         f"  sh {destination}/verify.sh    or    impound verify --bag {destination}"],
    )  # fmt: skip
    return 3 if done.unsealed or done.notes else 0


def _items(text: str | None) -> list[str] | None:
    if text is None:
        return None
    names = [name for name in re.split(r"[,\s]+", text) if name]
    if not names:
        raise UsageError("--items names no item", hint="for example --items E0001,E0003")
    return names


@click.command("import", cls=Command)
@click.argument("bag", metavar="BAG", type=click.Path(path_type=Path))
@click.option("--expect", metavar="SIZE:ROOT", help="A receipt that the bag's ledger must extend.")
@click.option("--expect-key", metavar="FINGERPRINT", help="Fingerprint of the first key in it.")
@pass_globals
def import_(options: Globals, bag: Path, expect: str | None, expect_key: str | None) -> int:
    """Verify a bag and take its case into the store; its ledger is continued by one of your own.

    Interrupted: the same command continues. Exit 3: taken in, and something should be known.
    """
    expected = receipt_of(expect)
    session = options.session
    offer_keys(options, options.session.local_key_uses)
    with options.progress(f"import {bag.name}") as progress:
        done = import_bag(
            session.open_store(writing=True), bag, deployment=session.settings.deployment,
            checkpoint_key=session.checkpoint_public, workers=session.settings.workers,
            progress=progress, receipt=expected, first_key=expect_key,
        )  # fmt: skip
    case = done.case
    sealed = case.latest_checkpoint() if done.existing else options.seal(case)
    for note in done.verdict.notes:
        options.say(f"note    {note}")
    inner = done.verdict.case
    assert inner is not None  # noqa: S101
    said = "was imported before; nothing was changed" if done.existing else (
        f"imported into {case.store.backend.uri}")  # fmt: skip
    options.result(
        {"message_type": "import", "case": case.case_id, "existing": done.existing,
         "items": done.items, "bag": bag_document(done.verdict),
         "first_key": case.ledger.ring.first, "receipt": receipt(sealed)},
        [f"case {case.case_id} {said}",
         f"  export {done.verdict.export_id}, {len(done.items)} items",
         f"  received: {inner.entries} entries, checkpoint {inner.sealed}:{inner.root or 'none'}",
         f"  their first key {inner.first_key}",
         f"  first key here  {case.ledger.ring.first}"],
    )  # fmt: skip
    return done.verdict.exit_code
