# SPDX-License-Identifier: Apache-2.0
"""`impound acquire …`: one acquisition alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from acquisition.target import Target, parse_target
from pipeline.cli.base import Globals, Group, human, pass_globals, receipt, table
from pipeline.cli.case import checked
from pipeline.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from evidence_store.transfer import Progress


@click.group(cls=Group)
def acquire() -> None:
    """Acquire from AWS into a case."""


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The argument TARGET and where it lies."""
    for option in (
        click.argument("target", metavar="TARGET"),
        click.option("--case", "case_id", required=True, metavar="CASE", help="Case it is for."),
        click.option("--account", default="", help="Account of TARGET, if it is an id."),
        click.option("--region", default="", help="Region of TARGET, if it is an id."),
    ):
        command = option(command)
    return command


def parsed(options: Globals, target: str, account: str, region: str) -> Target:
    """Return TARGET; the Region of the session stands in for one that is not given.

    Raises: UsageError.
    """
    default = "" if target.startswith("arn:") else options.session.region
    try:
        return parse_target(target, account=account, region=region or default)
    except ValueError as e:
        raise UsageError(
            str(e), hint="TARGET is an ARN, or an id with --account and --region"
        ) from e


@acquire.command()
@target_options
@click.option("--no-copy", is_flag=True, help="Leave the Audit copy and its proof out.")
@click.option("--dry-run", is_flag=True, help="Print the plan and do nothing.")
@pass_globals
def volume(
    options: Globals, target: str, case_id: str, account: str, region: str, no_copy: bool,
    dry_run: bool,
) -> int:  # fmt: skip
    """Take the volumes of an instance, or one volume, into custody.

    TARGET is frozen by one snapshot call, read block by block, and copied under the Audit account's
    key; the copy is read again and compared. The same command again goes on where it stopped.
    """
    from pipeline.acquire import Acquisition, missing_settings

    where = parsed(options, target, account, region)
    if where.kind == "snapshot":
        raise UsageError("a snapshot is no volume", hint="name an instance or a volume")
    if dry_run:
        from pipeline.cli.plan import show

        return show(options, checked(case_id), where, copy=not no_copy)
    session = options.session
    if not no_copy and (missing := missing_settings(session.settings)):
        raise ConfigError(
            f"the Audit copy needs {' and '.join(missing)}",
            hint="set them in the table [aws], or leave the copy out with --no-copy",
        )
    case = options.open_store(writing=True).case(checked(case_id))
    with _bars(options) as progress:
        outcome = Acquisition(
            case, session.accounts(case_id), session.settings, where, copy=not no_copy,
            say=options.say, progress=progress,
        ).run()  # fmt: skip
    checkpoint = options.seal(case)
    rows = [v.document() for v in outcome.volumes]
    options.result(
        {"case": case_id, "target": where.arn, "volumes": rows, "gaps": outcome.gaps,
         "receipt": receipt(checkpoint)},
        [
            *table(("VOLUME", "DEVICE", "SIZE", "SNAPSHOT", "COPY", "PROVED", "ITEM"),
                   [(v.volume.volume_id, v.volume.device or "-", human(v.volume.size),
                     v.snapshot or "-", v.copy or "-", "yes" if v.proved else "no", v.item or "-")
                    for v in outcome.volumes]),
            *(f"  GAP: {gap}" for gap in outcome.gaps),
            *(f"  GAP: {v.volume.volume_id}: {gap}" for v in outcome.volumes for gap in v.gaps),
        ],
    )  # fmt: skip
    if outcome.broken:
        return 10
    return 0 if outcome.complete else 3


@contextlib.contextmanager
def _bars(options: Globals) -> Iterator[Callable[[str], Progress]]:
    """Give a progress callback for each label, one bar after another."""
    with contextlib.ExitStack() as stack:

        def bar(label: str) -> Progress:
            stack.close()
            return stack.enter_context(options.progress(label))

        yield bar
