# SPDX-License-Identifier: Apache-2.0
"""`impound report`."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.base import Command, Globals, pass_globals
from pipeline.cli.case import checked


@click.command(cls=Command)
@click.argument("case_id", metavar="CASE")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR",
              help="Where to write index.html (default: CASE-report).")  # fmt: skip
@click.option("--as-of", type=int, metavar="SIZE", help="As of an earlier checkpoint.")
@pass_globals
def report(options: Globals, case_id: str, output: Path | None, as_of: int | None) -> None:
    """Write the case's report as one HTML page, as of a checkpoint: equal size, equal bytes."""
    from pipeline.report import render

    case = options.read_case(checked(case_id))
    page = render(case, output or Path(f"{case_id}-report"), as_of=as_of)
    options.result({"case": case_id, "report": str(page)}, [str(page)])
