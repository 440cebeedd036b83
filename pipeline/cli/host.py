# SPDX-License-Identifier: Apache-2.0
"""`impound acquire memory` and `acquire live`, and their plans: a running host over SSH."""

from __future__ import annotations

import contextlib
import getpass
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.acquire import _bars, acquire, parsed, target_options
from pipeline.cli.base import Globals, human, pass_globals, receipt, table
from pipeline.cli.case import checked
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from evidence_store.transfer import Progress
    from pipeline.hosts import Access, Host


def access_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How to log in, where it differs from the settings."""
    for option in (
        click.option("--user", default="", help="Account on the host (setting ssh.user)."),
        click.option("--port", type=int, default=0, help="Port of its sshd (setting ssh.port)."),
        click.option("--key", default="", metavar="FILE", help="Private key, tried last."),
        click.option("--host-key", "host_keys", multiple=True, metavar="KEY",
                     help="Host key that must be met: SHA256:…, or ssh-ed25519 AAAA…."),
        click.option("--strict-host-key", is_flag=True,
                     help="Refuse a host key that nobody vouched for."),
        click.option("--sudo-password", is_flag=True,
                     help="Ask for the sudo password; it is never stored."),
        click.option("--sudo-password-fd", type=int, metavar="N",
                     help="Descriptor to read it from."),
    ):  # fmt: skip
        command = option(command)
    return command


@acquire.command()
@target_options(1, "TARGET")
@access_options
@click.option("--again", is_flag=True, help="Capture anew what was captured of this boot.")
@click.option("--avml", default="", metavar="FILE",
              help="AVML binary to run from tmpfs, where kcore cannot be read.")  # fmt: skip
@click.option("--avml-sha256", default="", metavar="HEX", help="SHA-256 that it must have.")
@click.option("--dry-run", is_flag=True, help="Print the plan and send nothing to the host.")
@pass_globals
def memory(
    options: Globals, /, targets: str, case_id: str, account: str, region: str, again: bool,
    avml: str, avml_sha256: str, dry_run: bool, **how: Any,
) -> int:  # fmt: skip
    """Capture the memory of a running Linux instance over SSH.

    Nothing is put on the host. Its groups are looked at before a packet leaves. The same command
    again goes on where it stopped. Exit 0: complete; 3: partial; 12: unusable.
    """
    if dry_run:
        return show_plan(options, case_id, targets, account, region, "memory", **how)
    from acquisition.avml import Avml
    from acquisition.verdict import exit_code
    from pipeline.memory import capture

    if bool(avml) != bool(avml_sha256):
        raise UsageError("--avml and --avml-sha256 belong together",
                         hint="pin the binary that you mean")  # fmt: skip
    tool = Avml.load(Path(avml), avml_sha256) if avml else None
    with _host(options, case_id, targets, account, region, how) as (host, progress):
        done = capture(host, again=again, avml=tool, progress=progress)
        checkpoint = options.seal(host.case)
    found = done.verdict
    assert found is not None  # noqa: S101
    rate = human(int(done.read / done.seconds)) if done.seconds > 0 and done.read else ""
    options.result(
        {"case": case_id, **done.document(), "receipt": receipt(checkpoint)},
        [
            f"{done.item}  memory of {targets}: {found.word}"
            + (f"  {human(done.read)} in {done.seconds:.0f} s, {rate}/s, sent {done.way}"
               if rate else ""),
            *([f"  sha256 {done.sha256}"] if done.sha256 else []),
            *([f"  side-cars {done.sidecars}"] if done.sidecars else []),
            *(f"  {remark}" for remark in done.remarks),
            *(f"  GAP: {gap}" for gap in done.gaps),
        ],
    )  # fmt: skip
    return exit_code(found.word) or (3 if done.gaps else 0)


@acquire.command()
@target_options(1, "TARGET")
@access_options
@click.option("--path", "paths", multiple=True, metavar="PATH",
              help="Also take this file or device of the host whole.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the plan and send nothing to the host.")
@pass_globals
def live(
    options: Globals, /, targets: str, case_id: str, account: str, region: str,
    paths: tuple[str, ...], dry_run: bool, **how: Any,
) -> int:  # fmt: skip
    """Ask a running Linux instance for its volatile facts over SSH.

    Processes, sockets, logins, modules, deleted programs and more, in the order of volatility.
    Nothing is written on the host. Exit 3 if a collector failed.
    """
    if dry_run:
        return show_plan(options, case_id, targets, account, region, "live", **how)
    from pipeline.live import collect

    with _host(options, case_id, targets, account, region, how) as (host, progress):
        done = collect(host, paths=paths, progress=progress)
        checkpoint = options.seal(host.case)
    options.result(
        {"case": case_id, **done.document(), "receipt": receipt(checkpoint)},
        [
            f"{done.item}  live facts of {targets}: "
            + ", ".join(f"{count} {word}" for word, count in done.counts.items()),
            *table(("COLLECTOR", "OUTCOME", "SIZE", "WHY"),
                   [(a.name, a.outcome, human(a.size), a.why or "-") for a in done.answers]),
            *(f"  GAP: {gap}" for gap in done.gaps),
        ],
    )  # fmt: skip
    return 3 if done.gaps else 0


def show_plan(
    options: Globals, case_id: str, target: str, account: str, region: str, what: str, **how: Any
) -> int:
    """Print how a host would be reached and what would be run; nothing is sent to it."""
    from acquisition.live import COLLECTORS, SIDECARS

    host = _made(options, case_id, target, account, region, how, writing=False)
    way = host.plan()
    collectors = COLLECTORS if what == "live" else SIDECARS
    options.result(
        {"message_type": "plan", "case": case_id, "target": host.target.arn, "step": what,
         **way.document(), "gaps": way.gaps,
         "commands": [{"name": c.name, "script": c.script, "why": c.why, "touches": c.touches}
                      for c in collectors]},
        [
            f"{host.target.arn} is {way.where.state}, {way.where.address}",
            f"  way       {way.path}, seen there as {way.source}",
            f"  rule      {way.permit.rule if way.permit else 'none permits it'}",
            f"  login     {way.place}: {', then '.join(way.logins) or 'none'}",
            f"  host key  {way.host_key}",
            *(["  reads     /proc/kcore by dd through lz4, zstd or gzip, or by read-only SFTP"]
              if what == "memory" else []),
            *(f"  {c.name:<16} {c.why}; {c.touches}" for c in collectors),
            *(f"  GAP: {gap}" for gap in way.gaps),
        ],
    )  # fmt: skip
    return 3 if way.gaps else 0


@contextlib.contextmanager
def _host(
    options: Globals, case_id: str, target: str, account: str, region: str, how: dict[str, Any]
) -> Iterator[tuple[Host, Callable[[str], Progress]]]:
    host = _made(options, case_id, target, account, region, how, writing=True)
    with _bars(options) as progress:
        yield host, progress


def _made(
    options: Globals, case_id: str, target: str, account: str, region: str, how: dict[str, Any],
    *, writing: bool,
) -> Host:  # fmt: skip
    from pipeline.hosts import Host

    where = parsed(options, target, account, region, snapshot=False)
    if where.kind != "instance":
        raise UsageError(f"{target} is no instance", hint="acquire volume takes volumes")
    case = options.open_store(writing=writing).case(checked(case_id))
    session = options.session
    return Host(
        case, session.accounts(case_id), session.settings, where, _access(asking=writing, **how),
        options.say,
    )  # fmt: skip


def _access(
    *, asking: bool, user: str, port: int, key: str, host_keys: tuple[str, ...],
    strict_host_key: bool, sudo_password: bool, sudo_password_fd: int | None,
) -> Access:  # fmt: skip
    from acquisition.login import LoginError
    from pipeline.hosts import Access

    def passphrase() -> str:
        if not sys.stdin.isatty():
            raise LoginError("the key needs its passphrase and there is no terminal to ask for it")
        return getpass.getpass("passphrase of the SSH key: ", stream=sys.stderr)

    return Access(
        user, port, key, host_keys, strict_host_key, passphrase,
        _sudo_password(sudo_password_fd, ask=sudo_password) if asking else None,
    )  # fmt: skip


def _sudo_password(descriptor: int | None, *, ask: bool) -> str | None:
    """Return it from a descriptor or a prompt; None if neither is wanted. Raises: UsageError."""
    if descriptor is not None:
        try:
            with os.fdopen(os.dup(descriptor), "rb") as f:
                return f.readline(4096).rstrip(b"\r\n").decode()
        except (OSError, UnicodeDecodeError) as e:
            raise UsageError(f"cannot read the sudo password from descriptor {descriptor}") from e
    if not ask:
        return None
    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask for the sudo password",
                         hint="give it by --sudo-password-fd")  # fmt: skip
    return getpass.getpass("sudo password on the host: ", stream=sys.stderr)
