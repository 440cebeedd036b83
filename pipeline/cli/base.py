# SPDX-License-Identifier: Apache-2.0
"""What every command shares: global options, output, progress, errors to exit codes."""

from __future__ import annotations

import contextlib
import importlib
import json
import keyword
import logging
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from pipeline import __version__

if TYPE_CHECKING:
    from evidence_store.checkpoint import Checkpoint
    from evidence_store.store import Case, Store
    from pipeline.session import Session

EXIT_CODES = {
    0: "done",
    1: "error",
    2: "usage",
    3: "done with gaps",
    4: "waits for approval",
    10: "integrity",
    11: "store",
    12: "acquisition",
    13: "analysis",
    14: "not ready, configuration, missing extra",
    130: "interrupted, resumable",
}

# command -> (module, help of its group or command as shown in the list)
COMMANDS: dict[str, tuple[str, str]] = {
    "case": ("pipeline.cli.case", "Open, list, show and close cases."),
    "key": ("pipeline.cli.key", "Signing keys: make, show, allow, revoke."),
    "seal": ("pipeline.cli.case", "Sign a checkpoint over a case's ledger."),
    "acquire": ("pipeline.cli.acquire", "Acquire volumes from AWS into custody."),
    "triage": ("pipeline.cli.triage", "Take single files out of a snapshot."),
    "isolate": ("pipeline.cli.contain", "Cut an instance off, so that it can be undone."),
    "release": ("pipeline.cli.contain", "Put back what isolate changed."),
    "plan": ("pipeline.cli.plan", "Say what a response or an acquisition would do."),
    "respond": ("pipeline.cli.respond", "Respond to incidents: every step for every target."),
    "status": ("pipeline.cli.respond", "Show how far responses are."),
    "resume": ("pipeline.cli.respond", "Go on with an interrupted response."),
    "cancel": ("pipeline.cli.respond", "Stop a response; it can be resumed."),
    "approve": ("pipeline.cli.respond", "Approve a step that waits."),
    "jobs": ("pipeline.cli.respond", "List the engine's jobs."),
    "worker": ("pipeline.cli.respond", "Do the jobs of a fleet."),
    "workstation": ("pipeline.cli.workstation", "Launch, list and end forensics workstations."),
    "ingest": ("pipeline.cli.ingest", "Take a file, device, directory or stream into custody."),
    "item": ("pipeline.cli.item", "List items and read them back."),
    "verify": ("pipeline.cli.verify", "Prove that nothing changed, or name what did."),
    "export": ("pipeline.cli.bag", "Write a case, or some items, into a bag for somebody else."),
    "import": ("pipeline.cli.bag", "Take the case in a bag into this store."),
    "analyse": ("pipeline.cli.analyse", "Run analysis jobs over items."),
    "symbols": ("pipeline.cli.symbols", "Symbol tables for labs without a network."),
    "query": ("pipeline.cli.query", "Ask SQL of what the jobs found."),
    "report": ("pipeline.cli.report", "Write the case's report as one HTML page."),
    "readiness": ("pipeline.cli.readiness", "Say whether all is in place before an incident."),
    "gameday": ("pipeline.cli.gameday", "Rehearse the whole job on evidence made for it."),
    "self-check": ("pipeline.cli.self_check", "Check this installation."),
    "config": ("pipeline.cli.config", "Show the settings and where they come from."),
    "completion": ("pipeline.cli.completion", "Print a shell completion script."),
}
ALIASES = {"analyze": "analyse"}


@dataclass
class Globals:
    """The global options as given, and what is built from them."""

    config: str | None = None
    store: str | None = None
    passphrase_fd: int | None = None
    as_json: bool = False
    quiet: bool = False
    verbose: int = 0
    no_progress: bool = False
    no_color: bool = False
    yes: bool = False
    unsealed: bool = False  # a sealer was asked, and did not
    _session: Session | None = None

    @property
    def session(self) -> Session:
        """Keys, settings and store of this run. Raises: ConfigError."""
        from pipeline.config import load
        from pipeline.session import Passphrase, Session

        if self._session is None:
            settings = load(self.config).settings
            self._session = Session(
                settings, self.store or settings.store, Passphrase(self.passphrase_fd)
            )
        return self._session

    # -- output ----------------------------------------------------------------------------------

    def result(self, document: dict[str, Any], lines: Iterable[str]) -> None:
        """Print the result: `document` as JSON with --json, else `lines`, escaped."""
        if self.as_json:
            click.echo(json.dumps(document, ensure_ascii=False, default=str))
        else:
            for line in lines:
                click.echo(shown(line))

    def say(self, line: str) -> None:
        """Tell the person something that is not the result (stderr)."""
        if not self.quiet:
            click.echo(shown(line), err=True)

    def warn(self, line: str) -> None:
        """Tell something that must not be missed."""
        click.echo(shown(f"warning: {line}"), err=True)

    @contextlib.contextmanager
    def progress(self, label: str) -> Iterator[Callable[[int, int | None], None]]:
        """Give a callback for (bytes done, bytes in all); a bar on a terminal, else nothing."""
        if self.quiet or self.as_json or self.no_progress or not sys.stderr.isatty():
            yield lambda _done, _total: None
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        console = Console(stderr=True, no_color=self.colorless, highlight=False)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(),
                   TransferSpeedColumn(), TimeRemainingColumn())  # fmt: skip
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(shown(label), total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)

    @property
    def colorless(self) -> bool:
        """Whether colours are off (--no-color, NO_COLOR)."""
        return self.no_color or bool(os.environ.get("NO_COLOR"))

    # -- what most commands do -------------------------------------------------------------------

    def read_case(self, case_id: str) -> Case:
        """Return a case for reading."""
        return self.open_store().case(case_id)

    def open_store(self, *, writing: bool = False) -> Store:
        """Return the store, with the entry key if `writing`."""
        if writing:
            _ = self.session.open_store().identity  # before a passphrase is asked for
        return self.session.open_store(writing=writing)

    def seal(self, case: Case) -> Checkpoint | None:
        """Make the checkpoint at the end of a command that changed a case, and print the receipt.

        A checkpoint key kept elsewhere, or a sealer that does not answer, is not an error: what was
        recorded stays recorded, and that it is unsealed is said. Of a sealer, by exit 3 too.
        """
        checkpoint = self.checkpoint(case)
        if checkpoint and not self.as_json:
            self.say(f"receipt {case.case_id} {checkpoint} (keep it with the ticket)")
        return checkpoint

    def checkpoint(self, case: Case) -> Checkpoint | None:
        """Make the checkpoint and say only what hinders it."""
        from evidence_store.errors import StoreError

        if self.session.settings.signing.sealer and self.session.in_aws:
            try:
                return self.session.ask_sealer(case)
            except StoreError as e:
                self.warn(f"{e}; case {case.case_id} is not sealed (impound seal {case.case_id})")
                self.unsealed = True
                return None
        if "checkpoint" in self.session.missing_keys():
            self.warn(f"no checkpoint key here; seal case {case.case_id} where it is kept")
            return None
        kid = self.session.public_key("checkpoint").kid
        if kid not in case.ledger.ring.checkpoint_keys(len(case.ledger.entries)):
            self.warn(
                f"your checkpoint key {kid} may not seal case {case.case_id}; ask who opened it"
            )
            return None
        return case.seal(self.session.signer("checkpoint"))


class Lazy(click.Group):
    """A group whose commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """All commands, in the order of the work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        """Import and return a command."""
        name = ALIASES.get(name, name)
        if name not in COMMANDS:
            return None
        attribute = f"{name}_" if keyword.iskeyword(name) else name.replace("-", "_")
        command: click.Command = getattr(importlib.import_module(COMMANDS[name][0]), attribute)
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, without importing any; then the exit codes."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), text) for code, text in EXIT_CODES.items()])


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Remember a global option wherever on the line it stands."""
    given = value is not None and value is not False
    if given and not (param.name == "verbose" and value == 0):
        setattr(ctx.ensure_object(Globals), str(param.name), value)
    return value


def _global_options() -> list[click.Option]:
    def option(*names: str, **more: Any) -> click.Option:
        return click.Option(names, expose_value=False, callback=_keep, **more)

    return [
        option("--config", metavar="FILE", help="Settings file, read last."),
        option("--store", metavar="URI", help="Evidence store (default ./evidence)."),
        option("--passphrase-fd", type=int, metavar="N",
               help="Descriptor to read the signing keys' passphrase from."),
        option("--json", "as_json", is_flag=True, help="Results as JSON."),
        option("--quiet", "-q", is_flag=True, help="Only results, warnings and errors."),
        option("--verbose", "-v", count=True, help="Diagnostics on stderr; twice for more."),
        option("--no-progress", is_flag=True, help="No progress bars."),
        option("--no-color", is_flag=True, help="No colours (also NO_COLOR)."),
        option("--yes", "-y", is_flag=True, help="Answer yes to every question."),
    ]  # fmt: skip


class Command(click.Command):
    """A command that takes the global options too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += _global_options()


class Group(click.Group):
    """A group of such commands."""

    command_class = Command

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += _global_options()


pass_globals = click.make_pass_decorator(Globals, ensure=True)


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="impound")
def cli() -> None:
    """Forensics acquisition, custody and analysis.

    \b
    impound case open T-1001 --title "lab" --contact soc@example.org
    impound ingest T-1001 disk.img --kind disk --source "laptop 7"
    impound analyse T-1001 && impound report T-1001 -o out
    impound verify T-1001 --deep
    """  # noqa: D301 (click wants the character)


cli.params += _global_options()


def run(argv: Sequence[str]) -> int:
    """Run one command line; return its exit code. The only place that maps errors to codes."""
    options = Globals(as_json="--json" in argv)
    try:
        with _logging(argv):
            code = cli.main(list(argv), prog_name="impound", standalone_mode=False, obj=options)
        sys.stdout.flush()
        code = code if isinstance(code, int) else 0
        return 3 if code == 0 and options.unsealed else code
    except BaseException as e:
        return _fail(e, options)


def _fail(e: BaseException, options: Globals) -> int:
    if isinstance(e, click.exceptions.Exit):
        return e.exit_code
    if isinstance(e, click.exceptions.NoArgsIsHelpError) and not options.as_json:
        click.echo(e.format_message(), err=True)  # our own help, not somebody's words
        return 2
    if isinstance(e, BrokenPipeError) or (isinstance(e, SystemExit) and e.code == 1):
        # Whoever read our output has gone; nothing more can be said to them. Click says so by exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    code, message, hint = explain(e)
    if options.verbose:
        logging.getLogger("pipeline").info("where it happened", exc_info=e)
    if options.as_json:
        body = {"message_type": "exit_error", "code": code, "message": message, "hint": hint}
        click.echo(json.dumps(body, ensure_ascii=False), err=True)
    else:
        click.echo(f"impound: {shown(message)}", err=True)
        if hint:
            click.echo(f"  {shown(hint)}", err=True)
    return code


def explain(e: BaseException) -> tuple[int, str, str]:
    """Return (exit code, message, hint) of whatever ended a command."""
    from evidence_store.errors import Error

    if isinstance(e, (click.Abort, KeyboardInterrupt)):
        return 130, "interrupted", "run the same command again; it continues where it stopped"
    if isinstance(e, click.ClickException):
        context = getattr(e, "ctx", None)
        hint = f"try: {context.command_path} --help" if context else ""
        return 2, e.format_message(), hint
    if isinstance(e, Error):
        return e.exit_code, str(e), e.hint
    if isinstance(e, MemoryError):
        return 1, "out of memory", "end other programs, or lower `workers` in the settings"
    if isinstance(e, OSError):
        return 1, str(e), ""
    return (
        1,
        f"internal error: {type(e).__name__}: {e}",
        "run it again with -v and report what it shows",
    )


@contextlib.contextmanager
def _logging(argv: Sequence[str]) -> Iterator[None]:
    """Send the packages' logs to stderr; never the root logger, which is other people's."""
    count = sum(a.count("v") for a in argv if a.startswith("-v") and set(a[1:]) == {"v"})
    count += sum(a == "--verbose" for a in argv)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    loggers = [
        logging.getLogger(n) for n in ("acquisition", "analysis", "evidence_store", "pipeline")
    ]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel({0: logging.WARNING, 1: logging.INFO}.get(count, logging.DEBUG))
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def shown(text: str) -> str:
    r"""Return text that is safe on a terminal: control, format and line separators escaped.

    >>> shown("a\x1b[2J\u202eb")
    'a\\x1b[2J\\u202eb'
    """
    if text.isascii() and text.isprintable():
        return text
    out = []
    for c in text:
        if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp", "Co", "Cn"):
            code = ord(c)
            out.append(f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")
        else:
            out.append(c)
    return "".join(out)


def human(size: int) -> str:
    """Return bytes as people say them.

    >>> human(8 * 2**30)
    '8.0 GiB'
    """
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return lines of aligned columns; cells are escaped before they are measured."""
    body = [[shown(str(cell)) for cell in row] for row in rows]
    cells = [list(header), *body]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def receipt(checkpoint: Checkpoint | None) -> dict[str, Any] | None:
    """Return a checkpoint as JSON."""
    if checkpoint is None:
        return None
    return {"origin": checkpoint.origin, "size": checkpoint.size, "root": checkpoint.root_text}
