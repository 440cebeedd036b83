# SPDX-License-Identifier: Apache-2.0
"""`impound symbols …`: symbol tables for labs without a network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from analysis.query import query, results
from pipeline.cli.base import Globals, Group, pass_globals, table
from pipeline.cli.case import checked
from pipeline.symbols import library, take

_HOW = (
    "On a machine with a network: the kernel's debug package (its release stands above), then",
    "  dwarf2json linux --elf vmlinux > RELEASE.json",
    "or, on a machine that runs this kernel, copy /sys/kernel/btf/vmlinux to DIR/btf and, as root,",
    "/proc/kallsyms to DIR/kallsyms. Here:",
    "  impound symbols import RELEASE.json          (then analyse again)",
    "  impound analyse CASE --jobs memory --symbols DIR",
)
_HOW_WINDOWS = (
    "On a machine with a network (this one asks no server), each of the addresses above:",
    "  curl --location --remote-name ADDRESS",
    "Here, on the files, with the names they have:",
    "  impound symbols import ntkrnlmp.pdb          (then analyse again)",
)


@click.group(cls=Group)
def symbols() -> None:
    """Symbol tables of kernels: which are wanted, and bringing them in."""


@symbols.command()
@click.argument("case_id", metavar="CASE")
@pass_globals
def kit(options: Globals, case_id: str) -> int:
    """Say of which memory images no symbols could be made, and how to get them.

    Exit 3 if there are such; run analyse --jobs symbols first.
    """
    case = options.read_case(checked(case_id))
    memory = [r.item_id for r in case.state.items.values() if r.acquired and r.kind == "memory"]
    tried = {item for job, item in results(case) if job == "symbols"}
    sql = "SELECT item, reason FROM coverage WHERE job = 'symbols' AND what = 'symbols' ORDER BY 1"
    wanted: list[dict[str, Any]] = [
        {"item": item, "reason": reason} for item, reason in query(case, sql).rows
    ]
    wanted += [{"item": item, "reason": "the job symbols was not run on it"}
               for item in memory if item not in tried]  # fmt: skip
    columns = ("item", "pdb", "guid", "age", "url", "used_by")
    sql = f"SELECT {', '.join(columns)} FROM pdbs WHERE object IS NULL ORDER BY ALL"  # noqa: S608
    lacking = [dict(zip(columns, row, strict=True)) for row in query(case, sql).rows]
    kernels = {one["item"]: one for one in lacking if one["used_by"] == "kernel"}
    for one in wanted:
        one |= {key: kernels[one["item"]][key] for key in columns[1:5]
                if one["item"] in kernels}  # fmt: skip
    useful = [one for one in lacking if one["used_by"] != "kernel"]
    options.result(
        {"message_type": "symbols_kit", "case": case_id, "wanted": wanted, "useful": useful},
        list(_kit_lines(wanted, useful)),
    )
    return 3 if wanted else 0


def _kit_lines(wanted: list[dict[str, Any]], useful: list[dict[str, Any]]) -> Iterator[str]:
    for one in wanted:
        yield f"{one['item']}: {one['reason']}"
        if "url" in one:
            yield f"  {one['url']}"
    for one in useful:
        yield f"{one['item']}: {one['pdb']} would serve {one['used_by']}"
        yield f"  {one['url']}"
    if not wanted:
        yield "no symbols are wanting" + (" but those" if useful else "")
    if any("url" not in one for one in wanted):
        yield from ("", *_HOW)
    if useful or any("url" in one for one in wanted):
        yield from ("", *_HOW_WINDOWS)


@symbols.command(name="import")
@click.argument("paths", metavar="FILE...", nargs=-1, required=True,
                type=click.Path(exists=True, dir_okay=False, path_type=Path))  # fmt: skip
@pass_globals
def import_(options: Globals, paths: tuple[Path, ...]) -> None:
    """Check ISF files of kernels, or PDBs of Windows, and keep them for analyse to try."""
    taken = take(paths)
    options.result(
        {"message_type": "symbols_import", "library": str(library()), "tables": taken},
        table(("RELEASE", "FILE"), [(one["release"], one["file"]) for one in taken]),
    )
