# SPDX-License-Identifier: Apache-2.0
"""`impound triage …`: look inside before anything is copied."""

from __future__ import annotations

from typing import Any

import click

from analysis.errors import AnalysisError
from pipeline.cli.acquire import parsed, target_options
from pipeline.cli.base import Command, Globals, Group, human, pass_globals, receipt, table
from pipeline.cli.case import checked
from pipeline.errors import UsageError

_SHOWN = 20


@click.group(cls=Group)
def triage() -> None:
    """Take single files out of what is not in custody yet."""


class _Lists(Command):
    """A command whose --paths and --artifacts may be followed by several words."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat the option before each word."""
        spread: list[str] = []
        option = ""
        for word in args:
            if word in ("--paths", "--artifacts"):
                option = word
                spread.append(word)
                continue
            if option and spread[-1] != option and _continues(option, word):
                spread.append(option)
            elif not (option and spread[-1] == option):
                option = ""
            spread.append(word)
        return super().parse_args(ctx, spread)


def _continues(option: str, word: str) -> bool:
    """Whether a word goes on with a list; a snapshot or an option does not."""
    if option == "--paths":
        return word.startswith("/")
    return not word.startswith(("-", "arn:", "snap-"))


@triage.command(cls=_Lists)
@target_options
@click.option("--paths", multiple=True, metavar="PATTERN...",
              help="Absolute paths; * ? [...] in a name, ** for any directories.")  # fmt: skip
@click.option("--artifacts", "names", multiple=True, metavar="NAME...",
              help="ForensicArtifacts definitions (impound triage artifacts).")  # fmt: skip
@click.option("--list", "only_list", is_flag=True, help="Say what there is; take nothing.")
@click.option("--max-file", type=click.IntRange(1), metavar="MIB", default=256, show_default=True,
              help="Largest file taken.")  # fmt: skip
@click.option("--max-total", type=click.IntRange(1), metavar="MIB", default=2048, show_default=True,
              help="Most taken in all.")  # fmt: skip
@click.option("--again", is_flag=True, help="Also if the same was done before.")
@pass_globals
def snapshot(
    options: Globals, target: str, case_id: str, account: str, region: str,
    paths: tuple[str, ...], names: tuple[str, ...], only_list: bool,
    max_file: int, max_total: int, again: bool,
) -> int:  # fmt: skip
    """Take files out of an EBS snapshot, fetching only the blocks that are needed.

    TARGET is a completed snapshot. Exit 3: a pattern matched nothing, or something was not seen.
    """
    from pipeline import artifacts
    from pipeline.triage import Request, SnapshotTriage

    where = parsed(options, target, account, region)
    if where.kind != "snapshot":
        raise UsageError(f"{where.resource_id} is no snapshot", hint="acquire volume makes one")
    if bool(paths) == bool(names):
        raise UsageError("name files by --paths, or artifacts by --artifacts; not both",
                         hint="for example --paths /etc/passwd '/root/.ssh/*'")  # fmt: skip
    _check(paths)
    request = Request(
        tuple(dict.fromkeys(paths)), max_file << 20, max_total << 20, artifacts.check(names)
    )
    case = options.open_store(writing=True).case(checked(case_id))
    with options.progress(where.resource_id) as progress:
        done = SnapshotTriage(
            case, options.session.accounts(case_id), where, options.say, progress
        ).run(request, take=not only_list, again=again)
    checkpoint = options.seal(case)
    options.result(
        {**_document(done), "message_type": "triage", "case": case_id,
         "receipt": receipt(checkpoint)},
        _lines(case_id, done, only_list=only_list),
    )  # fmt: skip
    if done.looked.died:
        kept = f"; what it found before is {done.item}" if done.item else ""
        raise AnalysisError(f"the reader ended early: {done.looked.died}{kept}",
                            hint="run the same command again for the rest")  # fmt: skip
    return 3 if done.gaps or done.partial else 0


@triage.command("artifacts")
@click.argument("word", default="", metavar="[WORD]")
@pass_globals
def artifacts_(options: Globals, word: str) -> None:
    """List the artifacts that have files, those with WORD in their names."""
    from pipeline.artifacts import VERSION, names

    found = [name for name in names() if word.lower() in name.lower()]
    options.result({"version": VERSION, "artifacts": found}, found)


def _check(paths: tuple[str, ...]) -> None:
    from analysis.walk.paths import parse
    from pipeline.triage import MAX_PATTERNS

    if len(paths) > MAX_PATTERNS:
        raise UsageError(f"more than {MAX_PATTERNS} patterns")
    for path in paths:
        try:
            parse(path)
        except ValueError as e:
            raise UsageError(f"--paths {path!r} {e}", hint="for example '/root/.ssh/*'") from e


def _document(done: Any) -> dict[str, Any]:
    looked = done.looked
    return {
        "snapshot": done.target.arn, "item": done.item or None, "existing": done.existing,
        "patterns": list(done.request.patterns), "artifacts": list(done.request.artifacts),
        "unmatched": done.unmatched, "size": done.size, "fetched": done.fetched,
        "blocks": done.blocks, "percent": round(100 * done.share, 4),
        "volumes": looked.volumes, "links_followed": looked.followed, "gaps": done.gaps,
        "limits": done.limits,
        "found": [_found(member) for member in looked.found],
    }  # fmt: skip


def _found(member: dict[str, Any]) -> dict[str, Any]:
    names = ("path", "stream", "volume", "fs", "type", "size", "mode", "uid", "gid", "inode",
             "mtime", "atime", "ctime", "btime", "target")  # fmt: skip
    return {name: member[name] for name in names} | {"sha256": member.get("sha256")}


def _lines(case_id: str, done: Any, *, only_list: bool) -> list[str]:
    looked = done.looked
    cost = (
        f"{human(done.fetched)} in {done.blocks} blocks fetched, {100 * done.share:.3f} % of "
        f"{human(done.size)}"
    )
    if done.existing:
        was = f"complete already as {done.item}" if done.item else "done already; nothing matched"
        return [
            f"{was} ({cost} then); nothing was fetched",
            "  (--again does it again)",
            *(f"  GAP: {gap}" for gap in done.gaps),
            *([f"  GAP: impound --json item list {case_id} says what was not seen"]
              if done.partial and done.item else []),
        ]  # fmt: skip
    lines: list[str] = []
    if only_list:
        lines += table(("TYPE", "MODE", "UID", "GID", "SIZE", "PATH"),
                       [(m["type"], "-" if m["mode"] is None else f"{m['mode'] & 0o7777:04o}",
                         _or_dash(m["uid"]), _or_dash(m["gid"]), _or_dash(m["size"]), _named(m))
                        for m in looked.found])  # fmt: skip
        lines.append(f"{len(looked.found)} found, nothing taken; {cost}")
    else:
        files = sum(m["object"] is not None for m in looked.found)
        lines.append(f"{done.item or 'nothing'}: {files} files taken, {len(looked.found)} names; "
                     f"{cost}")  # fmt: skip
        if done.item:
            lines.append(f"  (impound item members {case_id} {done.item})")
    lines += [f"  link followed: {link['path']} -> {link['target']}" for link in looked.followed]
    lines += [f"  GAP: {gap}" for gap in done.gaps[:_SHOWN]]
    if len(done.gaps) > _SHOWN:
        lines.append(f"  and {len(done.gaps) - _SHOWN} more gaps (--json)")
    lines += [f"  note: {limit}" for limit in done.limits[:_SHOWN]]
    return lines


def _named(member: dict[str, Any]) -> str:
    stream = f":{member['stream']}" if member["stream"] is not None else ""
    target = f" -> {member['target']}" if member["target"] is not None else ""
    return f"{member['path']}{stream}{target}"


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)
