# SPDX-License-Identifier: Apache-2.0
"""`impound completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from pipeline.cli.base import Command, Globals, cli, pass_globals
from pipeline.errors import UsageError


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@pass_globals
def completion(options: Globals, shell: str) -> None:
    """Print a completion script.

    \b
    bash: eval "$(impound completion bash)"
    zsh:  eval "$(impound completion zsh)"
    fish: impound completion fish | source
    """  # noqa: D301 (click wants the character)
    found = get_completion_class(shell)
    if found is None:
        raise UsageError(f"no completion for {shell}")
    script = found(cli, {}, "impound", "_IMPOUND_COMPLETE").source()
    if options.as_json:
        options.result({"shell": shell, "script": script}, [])
    else:
        click.echo(script)
