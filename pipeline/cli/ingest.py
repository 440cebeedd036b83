# SPDX-License-Identifier: Apache-2.0
"""`impound ingest`."""

from __future__ import annotations

from typing import cast

import click

from acquisition.source import open_source
from evidence_store.ingest import Ingested
from evidence_store.item import Manifest
from evidence_store.model import Kind
from pipeline.cli.base import Command, Globals, human, pass_globals, receipt
from pipeline.cli.case import checked


@click.command(cls=Command)
@click.argument("case_id", metavar="CASE")
@click.argument("path", metavar="PATH|-")
@click.option("--kind", type=click.Choice(["disk", "memory", "logs", "record"]), required=True,
              help="What it is: an image (disk, memory) or files (logs, record).")  # fmt: skip
@click.option("--source", "text", default="", help="What it is called (default: its path).")
@click.option("--linear/--no-linear", default=None,
              help="SHA-256 of all bytes in order (default: up to 256 GiB).")  # fmt: skip
@click.option("--digest", "digests", type=click.Choice(["md5", "sha1"]), multiple=True,
              help="Another digest of all bytes, for old tools.")  # fmt: skip
@click.option("--again", is_flag=True, help="Make a new item even if this source was taken before.")
@click.option("--read-back/--no-read-back", default=True, help="Read everything back afterwards.")
@pass_globals
def ingest(
    options: Globals,
    case_id: str,
    path: str,
    kind: str,
    text: str,
    linear: bool | None,
    digests: tuple[str, ...],
    again: bool,
    read_back: bool,
) -> int:
    """Take a file, split image (first part), container, device, directory or standard input.

    Of a container (E01, Ex01, qcow2, VMDK, VHD, VHDX) the disk inside is taken, with --kind disk.

    Interrupted? The same command again continues where it stopped.
    """
    checked(case_id)
    session = options.session
    case = options.open_store(writing=True).case(case_id)
    with (
        open_source(path, kind, text=text, store=session.local_root()) as source,
        options.progress(f"{case_id} {source.text}") as progress,
    ):
        done = case.ingest(
            cast("Kind", kind), source, again=again, linear=linear, digests=digests,
            workers=session.settings.workers, read_back=read_back, progress=progress,
        )  # fmt: skip
    checkpoint = options.seal(case)
    options.result(
        {"message_type": "ingest", "case": case_id, "item": done.item_id,
         "existing": done.existing, "resumed": done.resumed, "read_back": done.read_back,
         "manifest": done.manifest.model_dump(), "receipt": receipt(checkpoint)},
        _lines(case_id, done),
    )  # fmt: skip
    return 0 if done.existing or done.manifest.result == "ok" else 3


def _lines(case_id: str, done: Ingested) -> list[str]:
    m = done.manifest
    if done.existing:
        return [
            f"{done.item_id} is this source, complete since {m.ended}; nothing was stored",
            "  (--again takes it as a new item)",
        ]
    how = "continued and completed" if done.resumed else "acquired"
    lines = [
        f"{done.item_id} {m.kind} {how}: {m.source['text']}",
        f"  {human(m.size)} ({m.size} bytes), {human(m.stored_bytes)} in {m.stored_objects} objects"
        + (f", {human(m.holes_bytes)} zero" if m.holes_bytes else ""),
        f"  image root {m.image_root}",
        *[f"  {name} {value}" for name, value in (m.content or {}).items()],
    ]
    if m.kind == "memory" and (form := m.source.get("format")):
        ranges = m.source.get("ranges")
        count = f", {len(ranges)} ranges" if isinstance(ranges, list) else ""
        lines.append(f"  format {form}{count}")
    lines += _container_digests(m)
    if m.content is None:
        lines.append(f"  no digest of all bytes: {m.content_absent}")
    lines.append(f"  {'read back and equal' if done.read_back else 'not read back'}")
    return [*lines, *_gaps(case_id, m)]


def _container_digests(m: Manifest) -> list[str]:
    found = {name: m.source.get(f"container_{name}") for name in ("md5", "sha1")}
    return [
        f"  equal to the {name} stored in the container"
        for name, compared in found.items()
        if isinstance(compared, dict) and compared.get("match")
    ]


def _gaps(case_id: str, m: Manifest) -> list[str]:
    lines: list[str] = []
    if m.unreadable_bytes:
        lines.append(
            f"  GAP: {m.unreadable_bytes} bytes in {m.unreadable_ranges} ranges unreadable"
        )
        lines += [f"    at {g.offset}, {g.length} bytes: {g.error}" for g in m.unreadable[:10]]
    lines += [f"  GAP: the source {change}" for change in m.source_changes[:10]]
    lines += [f"  GAP: {note}" for note in m.notes[:10]]
    more = max(0, len(m.unreadable) - 10) + max(0, len(m.source_changes) - 10)
    if more + max(0, len(m.notes) - 10):
        lines.append(f"  all of them: impound --json item list {case_id}")
    return lines
