# SPDX-License-Identifier: Apache-2.0
"""`impound acquire …`: one acquisition alone."""

from __future__ import annotations

import contextlib
import sys
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


def target_options(count: int, metavar: str) -> Callable[..., Any]:
    """The argument TARGET and where it lies; -1: one or more."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in (
            click.argument("targets", metavar=metavar, nargs=count, required=True),
            click.option("--case", "case_id", required=True, metavar="CASE",
                         help="Case it is for."),
            click.option("--account", default="", help="Account, where it is named by an id."),
            click.option("--region", default="", help="Region, where it is named by an id."),
        ):  # fmt: skip
            command = option(command)
        return command

    return add


def parsed(
    options: Globals, target: str, account: str, region: str, *, snapshot: bool | None = None
) -> Target:
    """Return TARGET; the Region of the session stands in for one that is not given.

    It must be a snapshot, or must not, as `snapshot` says; None: either.

    Raises: UsageError.
    """
    default = "" if target.startswith("arn:") else options.session.region
    try:
        found = parse_target(target, account=account, region=region or default)
    except ValueError as e:
        raise UsageError(
            str(e), hint="TARGET is an ARN, or an id with --account and --region"
        ) from e
    if snapshot and found.kind != "snapshot":
        raise UsageError(f"{target} is no snapshot", hint="acquire volume takes it")
    if snapshot is False and found.kind == "snapshot":
        raise UsageError(f"{target} is no volume", hint="acquire snapshot takes it")
    return found


NO_COPY = click.option("--no-copy", is_flag=True, help="Leave the Audit copy and its proof out.")
_SINCE = click.option(
    "--since", multiple=True, metavar="SNAPSHOT|ITEM|last",
    help="Fetch only what changed since this item of the case; last: the newest of each volume.",
)  # fmt: skip
_DRY = click.option("--dry-run", is_flag=True, help="Print the plan and do nothing.")


@acquire.command()
@target_options(-1, "TARGET...")
@NO_COPY
@click.option("--again", is_flag=True, help="Freeze anew what was frozen and read before.")
@_SINCE
@click.option("--via", type=click.Choice(["direct", "volume"]), default="direct",
              help="How it is read: EBS direct, or a volume of the Audit copy on this "
              "workstation.")  # fmt: skip
@_DRY
@pass_globals
def volume(
    options: Globals, targets: tuple[str, ...], case_id: str, account: str, region: str,
    no_copy: bool, dry_run: bool, again: bool, since: tuple[str, ...], via: str,
) -> int:  # fmt: skip
    """Take the volumes of instances, or single volumes, into custody.

    Each TARGET is frozen by one snapshot call, all of them before anything is read; then read block
    by block, and copied under the Audit account's key; the copies are read again and compared. The
    same command again goes on where it stopped.
    """
    if len(targets) > 1 and any(each != "last" for each in since):
        raise UsageError("with several targets, --since takes only last")
    if via == "volume" and (no_copy or since):
        raise UsageError(
            "--via volume reads a whole Audit copy: neither --no-copy nor --since go with it"
        )
    found = [parsed(options, t, account, region, snapshot=False) for t in targets]
    return _take(options, case_id, found, copy=not no_copy, dry_run=dry_run, again=again,
                 since=since, through_volume=via == "volume")  # fmt: skip


@acquire.command()
@target_options(1, "SNAPSHOT")
@NO_COPY
@_SINCE
@_DRY
@pass_globals
def snapshot(
    options: Globals, targets: str, case_id: str, account: str, region: str, no_copy: bool,
    dry_run: bool, since: tuple[str, ...],
) -> int:  # fmt: skip
    """Take a snapshot that is there already into custody.

    Locked, read, copied and proved like one that `acquire volume` makes. One of another owner, that
    is shared or public, cannot be locked: a gap.
    """
    found = [parsed(options, targets, account, region, snapshot=True)]
    return _take(options, case_id, found, copy=not no_copy, dry_run=dry_run, again=False,
                 since=since)  # fmt: skip


def _take(
    options: Globals, case_id: str, targets: list[Target], *, copy: bool, dry_run: bool,
    again: bool, since: tuple[str, ...], through_volume: bool = False,
) -> int:  # fmt: skip
    from pipeline.acquire import Acquisition, missing_settings

    if dry_run:
        from pipeline.cli.plan import show

        return show(options, checked(case_id), targets, copy=copy)
    session = options.session
    if copy and (missing := missing_settings(session.settings)):
        raise ConfigError(
            f"the Audit copy needs {' and '.join(missing)}",
            hint="set them in the table [aws], or leave the copy out with --no-copy",
        )
    case = options.open_store(writing=True).case(checked(case_id))
    with _bars(options) as progress:
        accounts = session.accounts(case_id)
        work = Acquisition(
            case, accounts, session.settings, targets[0], copy=copy,
            say=options.say, progress=progress, more=targets[1:], again=again, since=since,
        )  # fmt: skip
        if through_volume:
            from pipeline.run import Run
            from pipeline.workstation import Bench

            run = Run(case, accounts, session.settings, options.say, ending=work.ending)
            work.via = Bench(run, targets[0].region, session.store_uri).opened
        outcomes = work.run_all()
    checkpoint = options.seal(case)
    documents = [outcome.document() for outcome in outcomes]
    options.result(
        {"case": case_id, "target": targets[0].arn if len(targets) == 1 else None,
         "targets": documents,
         "volumes": [v.document() for o in outcomes for v in o.volumes],
         "gaps": [gap for o in outcomes for gap in o.gaps], "receipt": receipt(checkpoint)},
        [
            *table(("TARGET", "VOLUME", "DEVICE", "SIZE", "FETCHED", "SNAPSHOT", "COPY", "PROVED",
                    "ITEM"),
                   [(o.target.resource_id, v.volume.volume_id, v.volume.device or "-",
                     human(v.volume.size), human(v.fetched), v.snapshot or "-", v.copy or "-",
                     "yes" if v.proved else "no", v.item or "-")
                    for o in outcomes for v in o.volumes]),
            *(f"  {v.item} sha256 {v.sha256}" for o in outcomes for v in o.volumes if v.sha256),
            *(f"  {o.target.resource_id}: {note}" for o in outcomes for note in o.notes),
            *(f"  {v.volume.volume_id}: {note}"
              for o in outcomes for v in o.volumes for note in v.notes),
            *(f"  GAP: {o.target.resource_id}: {gap}" for o in outcomes for gap in o.gaps),
            *(f"  GAP: {v.volume.volume_id}: {gap}"
              for o in outcomes for v in o.volumes for gap in v.gaps),
        ],
    )  # fmt: skip
    if any(o.broken for o in outcomes):
        return 10
    return 0 if all(o.complete for o in outcomes) else 3


@acquire.command()
@click.argument("case_id", metavar="CASE")
@_DRY
@pass_globals
def cleanup(options: Globals, case_id: str, dry_run: bool) -> int:
    """Delete what CASE made in member accounts and no longer needs.

    Only snapshots that this case made, whose Audit copy is proved equal and there, whose item
    verifies, and whose lock has ended. Shares with the Audit account are taken back.
    """
    from pipeline.cleanup import Cleanup
    from pipeline.run import Run

    session = options.session
    if not session.settings.aws.audit_account:
        raise ConfigError("cleanup needs aws.audit_account", hint="set it in the table [aws]")
    case = options.open_store(writing=not dry_run).case(checked(case_id))
    with contextlib.closing(
        Run(case, session.accounts(case_id), session.settings, options.say)
    ) as run:
        work = Cleanup(run)
        judged = work.look()
        free = [each.made.snapshot for each in judged if not each.gone and not each.why]
        checkpoint = None
        if not dry_run:
            if free:
                _confirm(options, free)
            for each in judged:
                work.delete(each)
                if each.deleted:
                    options.say(f"{each.made.snapshot} deleted")
            checkpoint = options.seal(case)
    shown = [each for each in judged if each.deleted or not each.gone]
    options.result(
        {"case": case_id, "snapshots": [each.document() for each in shown],
         "would_delete": free if dry_run else [],
         "receipt": receipt(checkpoint) if checkpoint else None},
        table(("SNAPSHOT", "ACCOUNT", "COPY", "ITEM", "WHAT"),
              [(j.made.snapshot, j.made.account, j.copy or "-", j.item or "-",
                "deleted" if j.deleted else f"kept: {j.why}" if j.why else "to be deleted")
               for j in shown]) if shown else ["nothing to clean up"],
    )  # fmt: skip
    return 3 if any(each.why and each.made.mark for each in shown) else 0


def _confirm(options: Globals, snapshots: list[str]) -> None:
    """Ask, unless --yes answers. Raises: UsageError if there is nobody to ask."""
    if options.yes:
        return
    options.say("to be deleted: " + " ".join(snapshots))
    if not sys.stdin.isatty():
        raise UsageError("nobody is there to confirm this", hint="look with --dry-run, then --yes")
    click.confirm(f"Delete {len(snapshots)} snapshots in member accounts?", abort=True, err=True)


@contextlib.contextmanager
def _bars(options: Globals) -> Iterator[Callable[[str], Progress]]:
    """Give a progress callback for each label, one bar after another."""
    with contextlib.ExitStack() as stack:

        def bar(label: str) -> Progress:
            stack.close()
            return stack.enter_context(options.progress(label))

        yield bar


from pipeline.cli import host as _host  # noqa: E402, F401 (commands of this group)
from pipeline.cli import remains as _remains  # noqa: E402, F401
