# SPDX-License-Identifier: Apache-2.0
"""`impound workstation …`: the forensics workstation of a case, and volumes on it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.base import Globals, Group, human, pass_globals, receipt, table
from pipeline.cli.case import checked
from pipeline.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from acquisition.workstation import Station
    from pipeline.workstation import Bench, Volume


@click.group(cls=Group)
def workstation() -> None:
    """Launch, list and end forensics workstations in the Audit account."""


def _options(*, required: bool) -> Callable[..., Any]:
    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in (
            click.option("--case", "case_id", required=required, default="", metavar="CASE",
                         help="Case it is for."),
            click.option("--region", default="", help="Region (default: that of the session)."),
        ):  # fmt: skip
            command = option(command)
        return command

    return add


@workstation.command()
@_options(required=True)
@click.option("--target", default="", metavar="ADDRESS|SG",
              help="What it may reach: an address, or an isolation group "
              "(default: the instance of the case).")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the stack's parameters and do nothing.")
@pass_globals
def launch(options: Globals, case_id: str, region: str, target: str, dry_run: bool) -> int:
    """Launch the case's workstation from forensics.yaml, and check that it is what that says."""
    _check_target(target)
    with _bench(options, case_id, region, writing=not dry_run) as bench:
        if dry_run:
            return _show_parameters(options, bench, target)
        made = bench.launch(target)
        checkpoint = options.seal(bench.case)
    options.result(
        {"message_type": "workstation", "case": case_id, **made.facts,
         "receipt": receipt(checkpoint)},
        [
            f"{made.instance} runs in {made.zone}, as the template says (stack {made.stack})",
            f"  aws ssm start-session --target {made.instance}",
            f"  impound workstation attach E0001 --case {case_id}",
        ],
    )  # fmt: skip
    return 0


def _show_parameters(options: Globals, bench: Bench, target: str) -> int:
    from pipeline.workstation import parameters

    state = bench.case.state
    asked = parameters(
        bench.run.settings, bench.store_uri, bench.case.case_id, state.ticket, state.contact,
        target or bench.target(),
    )  # fmt: skip
    options.result(
        {"message_type": "workstation_plan", "parameters": asked},
        table(("PARAMETER", "VALUE"), sorted(asked.items())),
    )
    return 0


@workstation.command("list")
@_options(required=False)
@pass_globals
def list_(options: Globals, case_id: str, region: str) -> int:
    """List workstations, of one case or of all."""
    found = _there(options, case_id, region)
    options.result(
        {"message_type": "workstations",
         "workstations": [{"case": s.case, **s.facts} for s in found]},
        table(("CASE", "INSTANCE", "STATE", "ZONE", "ADDRESS", "LAUNCHED", "STACK"),
              [(s.case, s.instance or "-", s.state or s.status, s.zone or "-", s.address or "-",
                s.launched or "-", s.stack) for s in found]) if found else ["no workstation"],
    )  # fmt: skip
    return 0


@workstation.command()
@click.argument("name", metavar="SNAPSHOT|ITEM")
@_options(required=True)
@click.option("--no-mount", is_flag=True, help="Make it read-only, but do not mount it.")
@pass_globals
def attach(options: Globals, name: str, case_id: str, region: str, no_mount: bool) -> int:
    """Attach a volume of an Audit snapshot to the case's workstation, read-only.

    Run on the workstation itself, it finds the device by its serial number, makes it read-only at
    block level and mounts what it knows (ext, XFS) without replaying a journal.
    """
    with _bench(options, case_id, region) as bench:
        made = bench.attach(name, mounting=not no_mount)
        checkpoint = options.seal(bench.case)
    options.result(
        {"message_type": "attached", "case": case_id, **made.document(),
         "receipt": receipt(checkpoint)},
        _attached(made, case_id, name),
    )  # fmt: skip
    return 3 if made.gaps else 0


def _attached(made: Volume, case_id: str, name: str) -> list[str]:
    held = made.attached
    lines = [
        f"{held.volume} of {held.snapshot}, {human(held.size)}, is attached to {held.instance}"
        f" as {held.device}"
    ]
    if not made.device:
        return [*lines, f"  there: impound workstation attach {name} --case {case_id}"
                " makes it read-only and mounts it"]  # fmt: skip
    lines.append(f"  {made.device} is read-only at block level")
    lines += [f"  {m['device']} is mounted at {m['at']}" for m in made.mounts]
    return [*lines, *(f"  GAP: {gap}" for gap in made.gaps)]


@workstation.command()
@click.argument("volume", metavar="VOLUME")
@_options(required=True)
@pass_globals
def detach(options: Globals, volume: str, case_id: str, region: str) -> int:
    """Unmount, detach and delete a volume that attach made; its snapshot stays."""
    with _bench(options, case_id, region) as bench:
        found = [v for v in bench.stations.volumes(case_id) if v.volume == volume]
        if not found:
            raise UsageError(
                f"{volume!r} is no volume that was made for case {case_id}",
                hint="impound workstation list; impound case show",
            )
        bench.release(found[0])
        checkpoint = options.seal(bench.case)
    options.result(
        {"message_type": "detached", "case": case_id, "volume": volume,
         "snapshot": found[0].snapshot, "receipt": receipt(checkpoint)},
        [f"{volume} is detached and deleted; {found[0].snapshot} stays"],
    )  # fmt: skip
    return 0


@workstation.command()
@_options(required=False)
@pass_globals
def terminate(options: Globals, case_id: str, region: str) -> int:
    """End a workstation: the only one there is, or that of a case. Never evidence.

    Volumes that attach made are detached and deleted, if their snapshots are there.
    """
    found = _only(options, case_id, region)
    if not options.yes and sys.stdin.isatty():
        click.confirm(f"End {found.instance or found.stack} of case {found.case}?", abort=True,
                      err=True)  # fmt: skip
    with _bench(options, found.case, region) as bench:
        gaps = bench.terminate(found)
        checkpoint = options.seal(bench.case)
    options.result(
        {"message_type": "terminated", "case": found.case, **found.facts, "gaps": gaps,
         "receipt": receipt(checkpoint)},
        [f"{found.instance or found.stack} of case {found.case} is gone; snapshots and items stay",
         *(f"  GAP: {gap}" for gap in gaps)],
    )  # fmt: skip
    return 3 if gaps else 0


def _there(options: Globals, case_id: str, region: str) -> list[Station]:
    from pipeline.workstation import workstations

    accounts = options.session.accounts(case_id or "workstation")
    found = workstations(accounts, _audit(options), _region(options, region))
    return found.there(checked(case_id) if case_id else "")


def _only(options: Globals, case_id: str, region: str) -> Station:
    found = _there(options, case_id, region)
    if len(found) != 1:
        of = f" of case {case_id}" if case_id else ""
        raise UsageError(
            f"there are {len(found)} workstations{of}",
            hint="impound workstation list; name one with --case" if found else
            "impound workstation list shows all",
        )  # fmt: skip
    return found[0]


def _check_target(target: str) -> None:
    import re
    from ipaddress import AddressValueError, IPv4Address

    if not target or re.fullmatch(r"sg-[0-9a-f]{8,17}", target):
        return
    try:
        IPv4Address(target)
    except AddressValueError as e:
        raise UsageError(f"not an address or a security group: {target!r}",
                         hint="--target 10.0.0.5, or sg-…") from e  # fmt: skip


def _audit(options: Globals) -> str:
    if account := options.session.settings.aws.audit_account:
        return account
    raise ConfigError("workstations need aws.audit_account", hint="set it in the table [aws]")


def _region(options: Globals, region: str) -> str:
    if where := region or options.session.region:
        return where
    raise UsageError("no Region is known", hint="name it with --region")


@contextlib.contextmanager
def _bench(
    options: Globals, case_id: str, region: str, *, writing: bool = True
) -> Iterator[Bench]:  # fmt: skip
    from pipeline.run import Run
    from pipeline.workstation import Bench

    session = options.session
    case = options.open_store(writing=writing).case(checked(case_id))
    with contextlib.closing(
        Run(case, session.accounts(case_id), session.settings, options.say)
    ) as run:
        yield Bench(run, _region(options, region), session.store_uri)
