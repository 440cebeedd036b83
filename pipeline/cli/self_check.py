# SPDX-License-Identifier: Apache-2.0
"""`impound self-check`: this installation."""

from __future__ import annotations

import click

from pipeline.cli.base import Command, Globals, pass_globals, table


@click.command("self-check", cls=Command)
@pass_globals
def self_check(options: Globals) -> int:
    """Check files, tools, hardening and clock of this installation. Exit 14 if one is not right.

    A check that cannot be made here is "unknown", and exit 3.
    """
    from pipeline.selfcheck import exit_code, look

    checks = look()
    code = exit_code(checks)
    words = {0: "this installation is as it should be", 3: "not everything was checked",
             14: "this installation is NOT as it should be"}  # fmt: skip
    options.result(
        {"message_type": "self_check", "ready": code != 14,
         "checks": [c.document() for c in checks]},
        [
            *table(("STATE", "CHECK", "WHAT"), [(c.state, c.name, c.text) for c in checks]),
            *(f"  {c.name}: {c.fix}" for c in checks if c.fix and c.state != "ok"),
            words[code],
        ],
    )  # fmt: skip
    return code
