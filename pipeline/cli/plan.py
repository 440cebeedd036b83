# SPDX-License-Identifier: Apache-2.0
"""`impound plan …`: what a command would do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.acquire import NO_COPY, parsed, target_options
from pipeline.cli.base import Globals, Group, human, pass_globals, table
from pipeline.cli.case import checked
from pipeline.cli.host import access_options
from pipeline.cli.host import show_plan as show_host_plan
from pipeline.cli.respond import respond_options, show_plan

if TYPE_CHECKING:
    from acquisition.target import Target
    from pipeline.plan import Plan


@click.group(cls=Group)
def plan() -> None:
    """Say what a command would do, and do nothing."""


@plan.command()
@target_options(-1, "TARGET...")
@NO_COPY
@pass_globals
def volume(
    options: Globals, targets: tuple[str, ...], case_id: str, account: str, region: str,
    no_copy: bool,
) -> int:  # fmt: skip
    """Steps, calls, bytes, minutes and money of `acquire volume`; targets are only looked at."""
    found = [parsed(options, t, account, region, snapshot=False) for t in targets]
    return show(options, checked(case_id), found, copy=not no_copy)


@plan.command()
@target_options(1, "SNAPSHOT")
@NO_COPY
@pass_globals
def snapshot(
    options: Globals, targets: str, case_id: str, account: str, region: str, no_copy: bool
) -> int:
    """The same of `acquire snapshot`."""
    found = [parsed(options, targets, account, region, snapshot=True)]
    return show(options, checked(case_id), found, copy=not no_copy)


def _of_host(name: str) -> None:
    @plan.command(name=name, help=f"How `acquire {name}` reaches the host, and what it runs there.")
    @target_options(1, "TARGET")
    @access_options
    @pass_globals
    def command(
        options: Globals, /, targets: str, case_id: str, account: str, region: str, **how: Any
    ) -> int:
        return show_host_plan(options, case_id, targets, account, region, name, **how)


_of_host("memory")
_of_host("live")


@plan.command()
@respond_options
@pass_globals
def respond(
    options: Globals, case_id: str, targets: tuple[str, ...], account: str, region: str
) -> int:
    """The plan that `respond` executes: steps, calls, bytes, minutes, money, known gaps."""
    where = [parsed(options, t, account, region) for t in targets]
    return show_plan(options, checked(case_id), where)


def show(options: Globals, case_id: str, targets: Sequence[Target], *, copy: bool) -> int:
    """Print the plan of an acquisition; return the exit code."""
    from pipeline.plan import made

    plans = [_plan(options, case_id, target, copy=copy) for target in targets]
    whole = made(plans)
    options.result(
        {"message_type": "plan", "case": case_id, **whole},
        [
            line for each in plans for line in (
                f"{each.target.arn}: {len(each.observed.volumes)} volumes, at most",
                *table(("STEP", "CALLS", "BYTES", "MINUTES", "USD", "USD A MONTH", "WHAT"),
                       [(s.name, sum(s.calls.values()), human(s.size), f"{s.seconds / 60:.1f}",
                         f"{s.usd:.2f}", f"{s.monthly:.2f}", s.about) for s in each.steps]),
                *(f"  GAP: {gap}" for gap in each.observed.gaps),
            )
        ] + [
            f"in all {whole['calls']} calls, {math.ceil(sum(p.seconds for p in plans) / 60)} "
            f"minutes, {whole['usd']} USD and {whole['usd_a_month']} USD a month (assumed prices)",
        ],
    )  # fmt: skip
    return 3 if any(each.observed.gaps for each in plans) else 0


def _plan(options: Globals, case_id: str, where: Target, *, copy: bool) -> Plan:
    from acquisition.errors import AcquisitionError
    from acquisition.snapshot import Ec2, Observed, Volume
    from pipeline.plan import plan_volumes

    session = options.session
    client = session.accounts(case_id).client("ec2", where.account, where.region)
    ec2 = Ec2(client, client, where.account, where.region)
    lock = session.settings.aws.source_lock != "none"
    if where.kind == "snapshot":
        found = ec2.describe(where.resource_id)
        if found is None:
            raise AcquisitionError(
                f"{where.account} can see no snapshot {where.resource_id} in {where.region}",
                hint="check id, account and Region, or have its owner share it",
            )
        foreign = found.owner != where.account
        gaps = (f"{where.resource_id} is {found.owner}'s: it cannot be locked",) if foreign else ()
        observed = Observed((Volume(found.volume_id, found.size, kms_key=found.kms_key),), gaps)
        lock = lock and not foreign
    else:
        observed = ec2.observe(where.kind, where.resource_id)
    return plan_volumes(where, observed, copy=copy, in_s3=session.in_aws, lock=lock)
