# SPDX-License-Identifier: Apache-2.0
"""Answers that programs of the host made for people: logins, timers, services, containers. Pure.

As in `analysis.live.text`, whose rules hold here. Times are told only where the program was asked
for UTC, or says that it is; otherwise they are null, and `said` has the line.
"""

from __future__ import annotations

import re

from analysis.live.text import Lines, Row, moment, number, numbered

_CTIME = r"[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4}"
_LAST = re.compile(
    rf"(?P<user>\S{{1,255}})\s{{1,40}}(?P<tty>system boot|system down|\(to lvl \S\)|\S{{1,32}})"
    rf"\s{{1,40}}(?P<host>\S{{0,512}})\s{{0,40}}(?P<at>{_CTIME})\s*(?P<end>.*)"
)
_UNTIL = re.compile(rf"- ({_CTIME})")
_BEGINS = re.compile(r"\S*?(wtmp|btmp)\S* begins .*")
_WHO = re.compile(
    r"(?P<user>\S{0,255})\s{1,40}(?:[-+?] )?\s{0,40}"
    r"(?P<tty>system boot|run-level \S|clock change|\S{1,32})\s{1,40}"
    r"(?P<at>\d{4}-\d\d-\d\d \d\d:\d\d|[A-Z][a-z]{2} [ \d]\d \d\d:\d\d)(?P<rest>(?:\s.*)?)"
)
_WHO_REST = re.compile(
    r"\s{1,40}(?:(?:[.?]|old|\d\d:\d\d)\s{1,40})?(\d{1,10})?(?:\s{0,40}\((.{1,512})\))?.*"
)
_LISTED = re.compile(r"No sessions\.|\d+ sessions? listed\.")
_KINDS = {"reboot": "boot", "shutdown": "shutdown", "runlevel": "runlevel", "LOGIN": "getty"}


def logins(text: str, *, utc: bool) -> Lines:
    """Yield `logins`: what who, last, lastb and loginctl printed.

    What w prints between them is not read: it is what who says, and what the processes are.
    """
    lines = list(numbered(text))
    # Which of the two files a line is from, says the line that ends the list.
    files: dict[int, str] = {}
    file = ""
    for at, line in reversed(lines):
        if match := _BEGINS.fullmatch(line):
            file = match[1]
        files[at] = file
    part = "who"
    for at, line in lines:
        row: Row | None = None
        if _BEGINS.fullmatch(line):
            part = "last"
            continue
        if re.match(r" \d\d:\d\d:\d\d up ", line) and part == "who":
            part = "w"
        elif line.split()[:2] == ["SESSION", "UID"]:
            part = "loginctl"
            continue
        elif _LISTED.fullmatch(line):
            continue
        if part == "loginctl":
            row = _session(line)
        elif match := _LAST.fullmatch(line):
            part = "last"
            row = _last(match, files[at], utc=utc)
        elif part == "w":
            continue
        elif part == "who" and (match := _WHO.fullmatch(line)):
            row = _who(match, utc=utc)
        yield at, row and {**row, "said": line, "collector": "logins"}


def _last(match: re.Match[str], file: str, *, utc: bool) -> Row | None:
    if not file:
        return None
    until = _UNTIL.match(match["end"])
    kind = "failed" if file == "btmp" else _KINDS.get(match["user"], "login")
    return {
        "kind": kind, "user": match["user"], "tty": match["tty"], "host": match["host"] or None,
        "at": moment(match["at"]) if utc else None,
        "until": moment(until[1]) if until and utc else None,
        "by": "lastb" if file == "btmp" else "last",
    }  # fmt: skip


def _who(match: re.Match[str], *, utc: bool) -> Row:
    tty = match["tty"]
    words = {"system boot": "boot", "clock change": "clock"}
    kind = words.get(tty) or ("runlevel" if tty.startswith("run-level") else "login")
    if kind == "login":
        ended = "exit=" in match["rest"]
        kind = "ended" if ended else _KINDS.get(match["user"], kind)
    rest = _WHO_REST.fullmatch(match["rest"])
    # Without a year, as in the C locale, the time is not certain.
    return {
        "kind": kind, "user": match["user"] or None, "tty": tty, "by": "who",
        "at": moment(match["at"], "%Y-%m-%d %H:%M") if utc else None, "until": None,
        "pid": number(rest[1]) if rest and rest[1] else None,
        "host": rest[2] if rest and rest[2] else None,
    }  # fmt: skip


def _session(line: str) -> Row | None:
    parts = line.split()
    if len(parts) < 3 or not parts[1].isdecimal():
        return None
    more = parts[3:]  # seat, (leader, class since systemd 256,) tty, ...; absent is "-" or nothing
    tty = next((p for p in more if p.startswith(("tty", "pts/"))), None)
    return {"kind": "session", "user": parts[2], "uid": number(parts[1]), "session": parts[0],
            "tty": tty, "at": None, "until": None, "by": "loginctl"}  # fmt: skip


_STAMP = r"(?:[A-Z][a-z]{2} \d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S{1,6})"
_TIMER = re.compile(
    rf"(?P<next>{_STAMP}|-|n/a)\s{{1,40}}(?P<left>.{{1,40}}?)\s{{1,40}}"
    rf"(?P<last>{_STAMP}|-|n/a)\s{{1,40}}(?P<passed>.{{1,40}}?)\s{{1,40}}"
    r"(?P<unit>\S{1,300}\.timer)(?:\s{1,300}(?P<activates>\S{1,300}))?\s*"
)
_CRON = re.compile(r"(@\w{1,20}|(?:[-*/,0-9A-Za-z~]{1,200}\s+){4}[-*/,0-9A-Za-z~]{1,200})\s+(.+)")
_AT = re.compile(r"(\d{1,10})\t(\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4}) (\S) (\S+)")
_PER_USER = "/var/spool/cron/"


def schedule(text: str, *, utc: bool) -> Lines:
    """Yield `timers`: timers of systemd, lines of crontabs, jobs of at."""
    file = ""
    for at, line in numbered(text):
        row: Row | None = None
        if line.startswith("== /"):
            file = line[3:]
            continue
        if match := _AT.fullmatch(line):
            row = {"kind": "at", "name": match[1], "user": match[4],
                   "next": moment(match[2]) if utc else None}  # fmt: skip
        elif file:
            stripped = line.strip()
            if stripped.startswith("#") or re.match(r"[A-Za-z_][A-Za-z0-9_]*\s*=", stripped):
                continue  # a comment, a variable
            row = _cron(file, stripped)
        elif line.startswith("NEXT ") or re.match(r"\d+ timers? listed|Pass --all", line):
            continue
        elif match := _TIMER.fullmatch(line):
            row = {"kind": "timer", "name": match["unit"], "command": match["activates"],
                   "next": _stamp(match["next"]), "last": _stamp(match["last"])}  # fmt: skip
        yield at, row and {**row, "said": line, "collector": "timers"}


def _cron(file: str, line: str) -> Row | None:
    if not (match := _CRON.fullmatch(line)):
        return None
    user, command = file.rpartition("/")[2], match[2]
    if not file.startswith(_PER_USER):  # there the sixth field is the user
        user, _, command = match[2].replace("\t", " ").partition(" ")
    return {"kind": "cron", "name": file, "schedule": " ".join(match[1].split()), "user": user,
            "command": command.strip()}  # fmt: skip


def _stamp(text: str) -> int | None:
    return moment(text[:-4], "%a %Y-%m-%d %H:%M:%S") if text.endswith(" UTC") else None


_UNIT = re.compile(r"\S{1,300}\.(?:service|socket|target|device|mount|automount|swap|path|timer|"
                   r"slice|scope)")  # fmt: skip
_MARKS = "●○↻×*"


def services(text: str) -> Lines:
    """Yield `services`: units as they are, then unit files (`enabled`, `preset`)."""
    for at, line in numbered(text):
        parts = line.lstrip(" " + _MARKS).split(None, 4)
        if not parts or not _UNIT.fullmatch(parts[0]) or len(parts) < 2:
            yield at, None
        elif len(parts) > 3:
            yield at, {"name": parts[0], "load": parts[1], "active": parts[2], "sub": parts[3],
                       "description": parts[4].strip() if len(parts) > 4 else None,
                       "collector": "services"}  # fmt: skip
        else:
            preset = parts[2] if len(parts) > 2 and parts[2] != "-" else None
            yield at, {"name": parts[0], "enabled": parts[1], "preset": preset,
                       "collector": "services"}  # fmt: skip


_COLUMNS = {
    "CONTAINER ID": "container", "CONTAINER": "container", "IMAGE": "image", "COMMAND": "command",
    "CREATED": "created", "STATUS": "status", "STATE": "status", "PORTS": "ports", "NAMES": "name",
    "NAME": "name", "POD ID": "pod", "RUNTIME": "runtime",
}  # fmt: skip
_HEADINGS = re.compile(r"[A-Z]+(?: [A-Z]+)?")


def containers(text: str) -> Lines:
    """Yield `containers`: tables of docker, podman, crictl and ctr, told apart by their heads."""
    heads: list[tuple[str, int]] = []
    by = ""
    for at, line in numbered(text):
        if line.startswith("CONTAINER"):
            heads = [(match[0], match.start()) for match in _HEADINGS.finditer(line)]
            names = {name for name, _ in heads}
            by = ("docker or podman" if "NAMES" in names else "crictl" if "STATE" in names
                  else "ctr")  # fmt: skip
            continue
        ends = [start for _, start in heads[1:]] + [len(line)]
        cells = {_COLUMNS[name]: line[start:end].strip() or None
                 for (name, start), end in zip(heads, ends, strict=False)
                 if name in _COLUMNS}  # fmt: skip
        if not cells.get("container") or " " in str(cells["container"]):
            yield at, None
        else:
            yield at, {**cells, "by": by, "collector": "containers"}
