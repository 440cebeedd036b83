# SPDX-License-Identifier: Apache-2.0
"""`impound symbols …`: symbol tables for labs without a network."""

from __future__ import annotations

from pathlib import Path

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
    wanted = [{"item": item, "reason": reason} for item, reason in query(case, sql).rows]
    wanted += [{"item": item, "reason": "the job symbols was not run on it"}
               for item in memory if item not in tried]  # fmt: skip
    lines = [f"{one['item']}: {one['reason']}" for one in wanted]
    if wanted:
        lines += ["", *_HOW]
    else:
        lines = ["no symbols are wanting"]
    options.result({"message_type": "symbols_kit", "case": case_id, "wanted": wanted}, lines)
    return 3 if wanted else 0


@symbols.command(name="import")
@click.argument("paths", metavar="FILE...", nargs=-1, required=True,
                type=click.Path(exists=True, dir_okay=False, path_type=Path))  # fmt: skip
@pass_globals
def import_(options: Globals, paths: tuple[Path, ...]) -> None:
    """Check ISF files of Linux kernels and keep them; analyse tries them where it can make none."""
    taken = take(paths)
    options.result(
        {"message_type": "symbols_import", "library": str(library()), "tables": taken},
        table(("RELEASE", "FILE"), [(one["release"], one["file"]) for one in taken]),
    )
