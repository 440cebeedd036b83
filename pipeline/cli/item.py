# SPDX-License-Identifier: Apache-2.0
"""`impound item …`."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import click

from evidence_store.errors import ItemNotFoundError, SigningKeyError
from evidence_store.ledger import Draft
from evidence_store.model import clean
from evidence_store.store import Case
from pipeline.cli.base import Globals, Group, pass_globals, shown, table
from pipeline.cli.case import checked, size_cell
from pipeline.errors import UsageError

_CHUNK = 4 << 20


@click.group(cls=Group)
def item() -> None:
    """List items and read them back."""


@item.command("list")
@click.argument("case_id", metavar="CASE")
@pass_globals
def list_(options: Globals, case_id: str) -> None:
    """List the items of a case."""
    case = options.read_case(checked(case_id))
    rows: list[dict[str, Any]] = []
    for record in case.state.items.values():
        manifest = case.manifest(record.item_id) if record.acquired else None
        rows.append({
            "item": record.item_id, "kind": record.kind, "state": record.state,
            "size": manifest.size if manifest else record.size, "source": record.source,
            "image_root": record.image_root, "parents": record.parents,
            "manifest": manifest.model_dump() if manifest else None,
        })  # fmt: skip
    options.result(
        {"case": case_id, "items": rows},
        table(("ITEM", "KIND", "STATE", "SIZE", "ROOT", "PARENTS", "SOURCE"),
              [(r["item"], r["kind"], r["state"], size_cell(r["size"]),
                (r["image_root"] or "-")[:16], ",".join(r["parents"]) or "-", r["source"])
               for r in rows]),
    )  # fmt: skip


@item.command()
@click.argument("case_id", metavar="CASE")
@click.argument("item_id", metavar="ITEM")
@click.option("--range", "span", metavar="A-B", help="Bytes A to B, both included (as in HTTP).")
@click.option("--member", metavar="NAME", help="File of a file set, by its original name.")
@pass_globals
def cat(options: Globals, case_id: str, item_id: str, span: str | None, member: str | None) -> None:
    """Write an item's bytes to standard output, each segment verified first.

    The access is recorded if your signing key can be opened without asking.
    """
    if sys.stdout.isatty():
        raise UsageError(
            "evidence is not written to a terminal", hint="send it to a file or another program"
        )
    first, last = _span(span)
    case = options.read_case(checked(case_id))
    chunks = (
        _image(case, item_id, first, last)
        if member is None and case.manifest(item_id).layout == "image"
        else _member(case, item_id, member, first, last)
    )
    start = next(chunks, b"")  # what cannot be opened fails before it is called an access
    _record_access(options, case_id, item_id, span, member)
    out = sys.stdout.buffer
    out.write(start)
    for chunk in chunks:
        out.write(chunk)
    out.flush()


def _span(span: str | None) -> tuple[int, int | None]:
    if span is None:
        return 0, None
    match = re.fullmatch(r"([0-9]{1,18})-([0-9]{1,18})?", span)
    if match is None or (match[2] and int(match[2]) < int(match[1])):
        raise UsageError(f"not a range: {shown(span)}", hint="for example --range 0-511")
    return int(match[1]), int(match[2]) if match[2] else None


def _image(case: Case, item_id: str, first: int, last: int | None) -> Iterator[bytes]:
    with case.open(item_id) as image:
        end = image.size if last is None else min(image.size, last + 1)
        for at in range(first, end, _CHUNK):
            yield image.pread(min(_CHUNK, end - at), at)


def _member(
    case: Case, item_id: str, member: str | None, first: int, last: int | None
) -> Iterator[bytes]:
    fd = case.open_member(item_id, member)
    try:
        end = os.fstat(fd).st_size if last is None else last + 1
        for at in range(first, end, _CHUNK):
            chunk = os.pread(fd, min(_CHUNK, end - at), at)
            if not chunk:
                return
            yield chunk
    finally:
        os.close(fd)


def _record_access(
    options: Globals, case_id: str, item_id: str, span: str | None, member: str | None
) -> None:
    if not options.session.passphrase.unattended or options.session.missing_keys():
        options.say(f"this reading of {item_id} is not recorded (no key, or no passphrase at hand)")
        return
    data = {"how": "item cat", "range": span or "all", "member": clean(member or "", 200)}
    fields: dict[str, Any] = {"item": item_id, "data": data}
    try:
        case = options.session.open_store(writing=True).case(case_id)
        case.record(lambda: Draft("item.accessed", fields))
    except SigningKeyError as e:
        options.say(f"this reading of {item_id} is not recorded: {e}")
        return
    options.seal(case)


@item.command()
@click.argument("case_id", metavar="CASE")
@click.argument("item_id", metavar="ITEM")
@pass_globals
def members(options: Globals, case_id: str, item_id: str) -> None:
    """List the files of a file set, with their original names."""
    case = options.read_case(checked(case_id))
    if case.manifest(item_id).members is None:
        raise ItemNotFoundError(f"item {item_id} is an image, not a file set")
    rows = list(case.members(item_id))
    options.result(
        {"case": case_id, "item": item_id, "members": rows},
        table(("TYPE", "SIZE", "SHA256", "NAME"),
              [(r.get("type", "-"), r.get("size", "-"), str(r.get("sha256") or "-")[:16], r["name"])
               for r in rows]),
    )  # fmt: skip
