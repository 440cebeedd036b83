# SPDX-License-Identifier: Apache-2.0
"""`impound plan …`: what a command would do."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import click

from pipeline.cli.acquire import parsed, target_options
from pipeline.cli.base import Globals, Group, human, pass_globals, table
from pipeline.cli.case import checked
from pipeline.cli.respond import respond_options, show_plan
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from acquisition.target import Target


@click.group(cls=Group)
def plan() -> None:
    """Say what a command would do, and do nothing."""


@plan.command()
@target_options
@click.option("--no-copy", is_flag=True, help="Leave the Audit copy and its proof out.")
@pass_globals
def volume(
    options: Globals, target: str, case_id: str, account: str, region: str, no_copy: bool
) -> int:
    """Steps, calls, bytes, minutes and money of `acquire volume`; the target is only looked at."""
    where = parsed(options, target, account, region)
    return show(options, checked(case_id), where, copy=not no_copy)


@plan.command()
@respond_options
@pass_globals
def respond(
    options: Globals, case_id: str, targets: tuple[str, ...], account: str, region: str
) -> int:
    """The plan that `respond` executes: steps, calls, bytes, minutes, money, known gaps."""
    where = [parsed(options, t, account, region) for t in targets]
    return show_plan(options, checked(case_id), where)


def show(options: Globals, case_id: str, where: Target, *, copy: bool) -> int:
    """Print the plan of `acquire volume`; return the exit code."""
    from acquisition.snapshot import Ec2
    from pipeline.plan import plan_volumes

    if where.kind == "snapshot":
        raise UsageError("a snapshot is no volume", hint="name an instance or a volume")
    session = options.session
    client = session.accounts(case_id).client("ec2", where.account, where.region)
    observed = Ec2(client, client, where.account, where.region).observe(
        where.kind, where.resource_id
    )
    made = plan_volumes(where, observed, copy=copy, in_s3=session.in_aws,
                        lock=session.settings.aws.source_lock != "none")  # fmt: skip
    document = made.document()
    options.result(
        {"message_type": "plan", "case": case_id, **document},
        [
            f"{where.arn}: {len(observed.volumes)} volumes, at most",
            *table(("STEP", "CALLS", "BYTES", "MINUTES", "USD", "USD A MONTH", "WHAT"),
                   [(s.name, sum(s.calls.values()), human(s.size), f"{s.seconds / 60:.1f}",
                     f"{s.usd:.2f}", f"{s.monthly:.2f}", s.about) for s in made.steps]),
            f"in all {document['calls']} calls, {math.ceil(made.seconds / 60)} minutes, "
            f"{document['usd']} USD and {document['usd_a_month']} USD a month (assumed prices)",
            *(f"  GAP: {gap}" for gap in observed.gaps),
        ],
    )  # fmt: skip
    return 3 if observed.gaps else 0
