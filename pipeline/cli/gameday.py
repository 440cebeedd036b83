# SPDX-License-Identifier: Apache-2.0
"""`impound gameday`."""

from __future__ import annotations

import contextlib
import shlex
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import click

from pipeline.cli.base import Command, Globals, pass_globals, table
from pipeline.errors import UsageError
from pipeline.gameday.scorecard import Scorecard, Step

SCENARIOS = ("all", "offline", "response")


@click.command(cls=Command)
@click.argument("scenario", type=click.Choice(SCENARIOS), default="all")
@click.option("--seed", type=int, default=1, show_default=True, help="For the traces.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR",
              help="Where to work (default: gameday/<UTC time>).")  # fmt: skip
@click.option("--serve", is_flag=True,
              help="Run a practice landing zone on this machine until interrupted.")  # fmt: skip
@click.option("--env-file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="With --serve: variables for a shell, there when all is ready.")  # fmt: skip
@click.option("--guest", is_flag=True, help="Put a machine (QEMU) behind the instance.")
@click.option("--organisation", is_flag=True,
              help="With --serve: all that `readiness` looks for is in place.")  # fmt: skip
@click.option("--defect", "defects", multiple=True, metavar="CHECK|all",
              help="With --organisation: but for what this check finds; `all`: all that --fix"
              " mends.")  # fmt: skip
@pass_globals
def gameday(
    options: Globals, scenario: str, seed: int, output: Path | None, serve: bool,
    env_file: Path | None, guest: bool, organisation: bool, defects: tuple[str, ...],
) -> int:  # fmt: skip
    """Rehearse the whole job on evidence made for it; end with a scorecard.

    offline: disk images into custody, analysed, reported, verified, attacked. response: an instance
    is compromised in a practice landing zone, and `respond` acts. all (default): both.

    Uses keys and a store of its own; nothing of yours is touched. Exit 0 when every step that can
    be rehearsed here passed.

    With --guest: a practice machine, made of Debian packages in a minute and cached, stands behind
    the instance; what the instance's groups do not let through does not reach it. Where it cannot
    be made, that is said, and the rest is rehearsed.

    With --serve: AWS stood in for by a process on 127.0.0.1, three accounts with keys, an evidence
    bucket, a sealer, and an instance with two encrypted volumes. Ends with SIGINT or SIGTERM, exit
    0.
    """
    if serve and output:
        raise UsageError("--output does not go with --serve, which keeps nothing")
    if (organisation and not serve) or (defects and not organisation):
        raise UsageError("--organisation goes with --serve, --defect with --organisation")
    if organisation and guest:
        raise UsageError("--guest does not go with --organisation: their networks differ")
    if serve:
        wanted = _defects(defects) if organisation else None
        return _serve(options, env_file, wanted, guest=guest)
    if env_file:
        raise UsageError("--env-file goes with --serve")
    from pipeline.gameday.offline import OfflineGameDay
    from pipeline.gameday.response import ResponseGameDay
    from pipeline.gameday.scorecard import write_scorecard

    folder = output or Path("gameday") / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    if folder.exists():
        raise UsageError(f"{folder} exists", hint="name a new folder with --output")

    def told(step: Step) -> None:
        options.say(f"{step.outcome:6} {step.seconds:7.2f} s  {step.name}  {step.detail}")

    def progress(_label: str) -> Callable[[int, int | None], None]:
        return lambda _done, _total: None

    card = Scorecard(scenario, seed, str(folder), on_step=told)
    if scenario != "response":
        OfflineGameDay(folder / "offline", options.session, seed, progress, card).run()
    if scenario != "offline":
        ResponseGameDay(folder / "response", seed, card, options.say, guest=guest).run()
    else:
        card.not_rehearsed.append("AWS (impound gameday response)")
    path = write_scorecard(card)
    options.result({"message_type": "gameday", "scorecard": card.document()}, _lines(card, path))
    return 0 if card.passed else 1


def _defects(names: tuple[str, ...]) -> list[str]:
    """Names of defects, in order. Raises: UsageError."""
    try:
        from pipeline.gameday.aws.organisation import DEFECTS, FOR_PEOPLE
    except ImportError:
        return []  # the stand-in is not installed; `serving` says so
    mended = [n for n in DEFECTS if n not in FOR_PEOPLE]
    for name in names:
        if name not in DEFECTS and name != "all":
            raise UsageError(f"no defect is called {name}", hint=f"all: {', '.join(DEFECTS)}")
    wanted = set(names) | (set(mended) if "all" in names else set())
    return [n for n in DEFECTS if n in wanted]


def _serve(
    options: Globals, env_file: Path | None, defects: list[str] | None, *, guest: bool
) -> int:  # fmt: skip
    from pipeline.gameday.serve import serving

    with contextlib.ExitStack() as stack:
        if env_file is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="impound-"))
            env_file = Path(folder) / "env"
        options.say("starting AWS on this machine ...")
        now, wait = stack.enter_context(serving(env_file, defects, guest=guest, say=options.say))
        where = str(env_file.absolute())
        made = {
            "endpoint": now.server.endpoint, "env_file": where, "store": now.seeded.store,
            "anchor": f"s3://{now.seeded.anchor}", "store_key": now.seeded.store_key,
            "entry_key": now.seeded.entry_key, "checkpoint_key": now.seeded.checkpoint_key,
            "sealer": now.seeded.sealer,
        }  # fmt: skip
        if estate := now.seeded.estate:
            made |= {
                "instance": estate.instance, "volumes": " ".join(estate.volumes),
                "snapshot": estate.snapshot, "images": " ".join(estate.images),
            }  # fmt: skip
        if now.guest:
            made |= {"guest": f"{now.variables['GUEST_USER']}@{now.variables['GUEST_ADDRESS']}",
                     "guest_proxy": now.variables["GUEST_PROXY"]}  # fmt: skip
        options.result(
            {"message_type": "serving", **made, "not_rehearsed": list(now.left_out)},
            [
                *(f"{name.replace('_', ' '):15}{value}" for name, value in made.items()),
                "", "not as on AWS:", *(f"  {what}" for what in now.left_out), "",
                f"in a shell: . {shlex.quote(where)}", "ends with Ctrl-C",
            ],
        )  # fmt: skip
        wait()
    options.say("stopped")
    return 0


def _lines(card: Scorecard, path: Path) -> list[str]:
    failed = [s for s in card.steps if s.outcome != "ok"]
    return [
        "",
        *table(("STEP", "OUTCOME", "SECONDS"),
               [(s.name, s.outcome, f"{s.seconds:.2f}") for s in card.steps]),
        "",
        *table(("PLANTED TRACE", "FOUND", "WHERE"),
               [(p.name, "yes" if p.found else "MISSED", p.where) for p in card.planted]),
        "",
        "not rehearsed here:",
        *[f"  {what}" for what in card.not_rehearsed],
        "",
        *[f"FAILED {s.name}: {s.detail}" for s in failed],
        f"scorecard {path}",
        f"report    {card.report or 'none'}",
        f"game day {'passed' if card.passed else 'FAILED'}: "
        f"{len(card.steps) - len(failed)} of {len(card.steps)} steps, "
        f"{sum(p.found for p in card.planted)} of {len(card.planted)} traces, "
        f"custody verdict {card.verdict or 'none'}",
    ]  # fmt: skip
