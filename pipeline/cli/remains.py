# SPDX-License-Identifier: Apache-2.0
"""`impound acquire remains`: what is left of a target that is terminated already."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pipeline.cli.acquire import NO_COPY, _bars, acquire, parsed, target_options
from pipeline.cli.base import Globals, human, pass_globals, receipt, table
from pipeline.cli.case import checked
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.remains import Rescue


@acquire.command()
@target_options(1, "TARGET")
@NO_COPY
@click.option("--dry-run", is_flag=True, help="Search, say what would be done, and do nothing.")
@pass_globals
def remains(
    options: Globals, targets: str, case_id: str, account: str, region: str, no_copy: bool,
    dry_run: bool,
) -> int:  # fmt: skip
    """Find, hold and take what is left of a terminated instance or a deleted volume.

    Volumes, snapshots, images, the Recycle Bin, CloudTrail and AWS Config are searched. What lies
    in the bin is taken out of it, snapshots are locked, and of each volume the most valuable that
    is left is taken as `acquire volume` would. Nothing is deleted. What is lost is said, and why.
    """
    from pipeline.acquire import missing_settings
    from pipeline.remains import look
    from pipeline.remains import remains as rescue_remains

    where = parsed(options, targets, account, region, snapshot=False)
    session = options.session
    name = checked(case_id)
    if dry_run:
        case = options.open_store().case(name)
        planned = look(case, session.accounts(name), where)
        _show(options, {"message_type": "plan", "case": name, **planned.document()}, planned)
        if error := planned.nothing(planned=True):
            raise error
        return 0 if planned.complete else 3
    if not no_copy and (missing := missing_settings(session.settings)):
        raise ConfigError(
            f"the Audit copy needs {' and '.join(missing)}",
            hint="set them in the table [aws], or leave the copy out with --no-copy",
        )
    case = options.open_store(writing=True).case(name)
    with _bars(options) as progress:
        rescue = rescue_remains(
            case, session.accounts(name), session.settings, where, copy=not no_copy,
            say=options.say, progress=progress,
        )  # fmt: skip
    checkpoint = options.seal(case)
    _show(options, {"case": name, **rescue.document(), "receipt": receipt(checkpoint)}, rescue)
    if rescue.broken:
        return 10
    if error := rescue.nothing():
        raise error
    return 0 if rescue.complete else 3


def _show(options: Globals, document: dict[str, object], rescue: Rescue) -> None:
    taken = {piece: result.item or "-" for piece, result in rescue.taken.items()}
    found = rescue.found
    left = [
        (p.kind, p.resource_id, p.volume_id or "-", human(p.size) if p.size else "-",
         f"{p.at:%Y-%m-%dT%H:%M:%SZ}" if p.at else "-", taken.get(p.resource_id, "-"))
        for p in found.pieces
    ]  # fmt: skip
    options.result(
        document,
        [
            f"{rescue.target.arn}: {found.state or 'not known to EC2'}",
            *(f"  ended: {deed.text}" for deed in rescue.ended),
            *(f"  looked at {look.place}: {look.found}" for look in found.looks if not look.why),
            *(table(("LEFT", "ID", "OF VOLUME", "SIZE", "AS OF", "ITEM"), left) if left else ()),
            *(f"  {action}: {name}" for action, name in rescue.kept),
            *(f"  taken, frozen before: {name} as {result.item or '-'}"
              for name, result in rescue.taken.items()
              if name not in {p.resource_id for p in found.pieces}),
            *(f"  LOST: {volume}: {why}" for volume, why in rescue.decision.lost.items()),
            *(f"  GAP: {gap}" for gap in rescue.gaps),
            *(f"  GAP: {r.volume.volume_id}: {gap}" for r in rescue.taken.values()
              for gap in r.gaps),
        ],
    )  # fmt: skip
