# SPDX-License-Identifier: Apache-2.0
"""`impound config`."""

from __future__ import annotations

import click

from pipeline.cli.base import Command, Globals, pass_globals, table
from pipeline.config import load


@click.command(cls=Command)
@click.option("--explain", is_flag=True, help="Say what each setting means and where it was set.")
@pass_globals
def config(options: Globals, explain: bool) -> None:
    """Show the settings in force."""
    loaded = load(options.config)
    given = {"store": options.store} if options.store else {}
    rows = [
        (name, given.get(name, value),
         "--store" if name in given else loaded.origin.get(name, "built in"), means)
        for name, value, means in loaded.settings.flat()
    ]  # fmt: skip
    values = {name: value for name, value, _, _ in rows}
    document = {
        "settings": values,
        "explained": [dict(zip(("name", "value", "from", "means"), row, strict=True))
                      for row in rows],
        "files": list(loaded.looked_at),
    }  # fmt: skip
    if explain:
        lines = [*table(("SETTING", "VALUE", "FROM", "MEANS"), rows), "",
                 "files, later ones win: " + ", ".join(loaded.looked_at)]  # fmt: skip
    else:
        lines = [f"{name} = {value!r}" for name, value in values.items()]
    options.result(document, lines)
