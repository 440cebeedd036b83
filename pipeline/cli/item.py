# SPDX-License-Identifier: Apache-2.0
"""`impound item …`."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from evidence_store.checkpoint import Checkpoint
from evidence_store.errors import IntegrityError, ItemNotFoundError, SigningKeyError
from evidence_store.ledger import Draft
from evidence_store.model import clean
from evidence_store.store import Case
from pipeline import nbd
from pipeline.cli.base import Globals, Group, human, pass_globals, receipt, shown, table
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
    if _can_record(options, item_id):
        data = {"how": "item cat", "range": span or "all", "member": clean(member or "", 200)}
        _record_access(options, case_id, item_id, data=data)
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


def _can_record(options: Globals, item_id: str) -> bool:
    """Whether an access can be recorded without asking; say so if not."""
    if options.session.signs_unasked:
        return True
    options.say(f"this reading of {item_id} is not recorded (no key, or no passphrase at hand)")
    return False


def _record_access(
    options: Globals, case_id: str, item_id: str, **fields: Any
) -> Checkpoint | None:
    try:
        case = options.session.open_store(writing=True).case(case_id)
        case.record(lambda: Draft("item.accessed", {"item": item_id, **fields}))
    except SigningKeyError as e:
        options.say(f"this reading of {item_id} is not recorded: {e}")
        return None
    return options.seal(case)


@item.command()
@click.argument("case_id", metavar="CASE")
@click.argument("item_id", metavar="ITEM")
@click.option("--port", type=click.IntRange(0, 65535), default=None,
              help="TCP port on 127.0.0.1 (default 10809; 0: a free one).")  # fmt: skip
@click.option("--socket", "path", type=click.Path(path_type=Path), metavar="PATH",
              help="Unix socket instead, for this user only.")  # fmt: skip
@click.option("--unreadable-zeros", is_flag=True,
              help="Zeros where the source could not be read (default: an I/O error).")  # fmt: skip
@pass_globals
def serve(
    options: Globals,
    case_id: str,
    item_id: str,
    port: int | None,
    path: Path | None,
    unreadable_zeros: bool,
) -> None:
    """Serve an image item read-only over NBD, each segment verified first, until interrupted.

    The session is recorded at its end if your signing key can be opened without asking.
    """
    if path is not None and port is not None:
        raise UsageError("--port and --socket exclude each other")
    case = options.read_case(checked(case_id))
    with case.open(item_id):  # says what is wrong with it before anything listens
        segments = case.segments(case.manifest(item_id))
    objects = case.objects(item_id)
    export = nbd.Export(item_id, segments, objects.open, unreadable_zeros=unreadable_zeros)
    recorded = _can_record(options, item_id)
    if lost := sum(gap.length for gap in segments.unreadable):
        how = "are served as zeros" if unreadable_zeros else "are I/O errors (--unreadable-zeros)"
        options.warn(f"{lost} bytes in {len(segments.unreadable)} unreadable ranges {how}")
    with nbd.listening(nbd.DEFAULT_PORT if port is None else port, path) as (listener, address):
        uri = nbd.uri(address, item_id)
        server = nbd.Server(export, listener)
        with _stopped_by_signals(server):
            options.result(
                {"message_type": "listening", "uri": uri, "case": case_id, "item": item_id,
                 "size": export.size},
                [f"serving {item_id} ({human(export.size)}, read-only) at {uri}"],
            )  # fmt: skip
            sys.stdout.flush()
            options.say(f"  nbdcopy '{uri}' disk.raw  |  qemu-img convert -O qcow2 '{uri}' d.qcow2")
            options.say(f"  nbdfuse DIR '{uri}'  |  end with Ctrl-C")
            served = server.serve()
    bad = list(served.bad.values())
    data = {"how": "item serve", "clients": served.clients, "bytes": served.bytes,
            "bad_segments": len(bad)}  # fmt: skip
    sealed = None
    if recorded and served.clients:
        result = "partial" if bad else "ok"
        sealed = _record_access(options, case_id, item_id, data=data, result=result)
    options.result(
        {"message_type": "served", "clients": served.clients, "bytes": served.bytes,
         "bad_segments": len(bad), "receipt": receipt(sealed)},
        [f"served {human(served.bytes)} to {served.clients} clients"],
    )  # fmt: skip
    if bad:
        raise IntegrityError(
            f"{len(bad)} segments of {item_id} were not served: {bad[0]}",
            hint="stop using this copy; impound verify --deep names everything that differs",
        )


@contextlib.contextmanager
def _stopped_by_signals(server: nbd.Server) -> Iterator[None]:
    before = {
        number: signal.signal(number, lambda _number, _frame: server.stop())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
