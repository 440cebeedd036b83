# SPDX-License-Identifier: Apache-2.0
"""Volatile facts of a running Linux host, pulled over SSH: collectors declared as data.

    collection = Collection(remote, COLLECTORS, …)     a source: `case.ingest("live", collection)`
    collection.outcomes                                 one for each collector

In the order of volatility (RFC 3227). Each collector says what it runs, why, and what it touches;
nothing is written on the host, no file is put there. What a collector came to is one of four:

    success   it said something, and ended well
    empty     it ended well and said nothing
    missing   the host has no such program or file
    failed    it ended badly, was cut at its limit, or the connection was lost: the reason is kept

What the host says is hostile: each answer is bounded in bytes and time, names from it are only
names of our own making.

Source: RFC 3227 §2.1; proc(5), ss(8), systemctl(1), journalctl(1); docs/design.md.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import JsonValue

from acquisition.closing import Closing
from acquisition.reach import UnreachableError
from acquisition.remote import LostError, Remote, shell
from evidence_store.model import clean
from evidence_store.transfer import Member

ANSWER_BYTES = 16 << 20
FILE_BYTES = 128 << 20
DELETED_AT_MOST = 200
OUTCOMES = "collectors.jsonl"

Outcome = Literal["success", "empty", "missing", "failed"]

_DELETED = re.compile(rb"([0-9]{1,10}) ([0-9a-f]{1,16}:[0-9]{1,20}) ([0-9]{1,18}) (.*)")
_MISSING = ("not found", "no such file", "not a directory")


@dataclass(frozen=True)
class Collector:
    """One question to a host.

    Attributes:
        name: of the file that its answer becomes.
        script: for `sh`.
        why: what it is good for.
        touches: what it reads or disturbs on the host.
        root: whether it needs root.
        limit: bytes of answer kept.
        within_s: seconds it may take.
    """

    name: str
    script: str
    why: str
    touches: str
    root: bool = True
    limit: int = ANSWER_BYTES
    within_s: float = 60.0


def _cat(name: str, path: str, why: str, limit: int = ANSWER_BYTES) -> Collector:
    return Collector(name, f"cat {path}", why, f"reads {path}", limit=limit)


_PROC = "for p in /proc/[0-9]*; do "
# Else a time would need the host's time zone, of then; and who leaves out the year.
_IN_UTC = "export TZ=UTC0 LC_ALL=C.UTF-8; "
_HISTORIES = (
    "for h in $(cut -d: -f6 /etc/passwd | sort -u); do for f in .bash_history .zsh_history "
    ".ash_history .sh_history .python_history .mysql_history .psql_history .viminfo .lesshst; do "
    'if [ -f "$h/$f" ]; then echo "== $h/$f $(stat -c \'%s %Y %U\' "$h/$f")"; '
    'head -c 1048576 "$h/$f"; echo; fi; done; done'
)
_KEYS = (
    'for h in $(cut -d: -f6 /etc/passwd | sort -u); do for f in "$h"/.ssh/authorized_keys '
    '"$h"/.ssh/authorized_keys2 "$h"/.ssh/known_hosts "$h"/.ssh/config "$h"/.ssh/*.pub; do '
    'if [ -f "$f" ]; then echo "== $f $(stat -c \'%s %Y %U\' "$f")"; head -c 262144 "$f"; '
    'echo; fi; done; done; for f in /etc/ssh/ssh_host_*.pub; do [ -f $f ] && echo "== $f" && '
    "cat $f; done; true"
)

# In the order of volatility: the network first, then processes, then what is slower to change.
COLLECTORS: tuple[Collector, ...] = (
    Collector("clock", "date -u +%s.%N; cat /proc/uptime; timedatectl show 2>/dev/null; "
              "chronyc -n tracking 2>/dev/null; true",
              "offset of the host's clock", "reads the clock", root=False),
    Collector("sockets", "ss -anpeimoO 2>/dev/null || ss -anpei || netstat -anp",
              "who talks to whom, by which process", "asks the kernel by netlink"),
    Collector("sockets.proc", "for f in tcp tcp6 udp udp6 raw raw6 unix packet; do "
              "echo \"== $f\"; cat /proc/net/$f; done", "the same without a program of the host",
              "reads /proc/net"),
    Collector("neighbours", "ip -s neigh 2>/dev/null || cat /proc/net/arp", "who was spoken to",
              "reads the ARP cache", root=False),
    Collector("routes", "ip route show table all; ip -6 route show table all; ip rule",
              "ways, and ways that were added", "asks the kernel", root=False),
    Collector("addresses", "ip -s -d addr", "addresses, promiscuous interfaces", "asks the kernel",
              root=False),
    Collector("firewall", "nft list ruleset 2>/dev/null; iptables-save 2>/dev/null; "
              "ip6tables-save 2>/dev/null; true", "rules, redirections", "asks the kernel; "
              "iptables may load its module"),
    Collector("conntrack", "cat /proc/net/nf_conntrack", "flows that were tracked",
              "reads /proc/net"),
    Collector("processes", "ps -eww -o "
              "pid,ppid,pgid,sid,tty,user,uid,euid,nlwp,stat,lstart,etimes,rss,wchan:32,args",
              "what runs, since when, by whom", "reads /proc"),
    Collector("processes.proc", _PROC + "echo \"== ${p#/proc/}\"; cat $p/stat; "
              "tr '\\0' ' ' < $p/cmdline; echo; grep -E '^(Uid|Gid|TracerPid|Seccomp|CapEff)' "
              "$p/status; readlink $p/exe $p/cwd $p/root; cat $p/cgroup; done 2>/dev/null; true",
              "the same without ps; what is hidden from it", "reads /proc"),
    Collector("executables", "seen=; " + _PROC + "e=$(readlink $p/exe) || continue; "
              "i=$(stat -L -c %d:%i $p/exe) || continue; case \" $seen \" in *\" $i \"*) h=;; *) "
              "seen=\"$seen $i\"; h=$(sha256sum < $p/exe | cut -d' ' -f1);; esac; "
              "echo \"${p#/proc/} $i $h $e\"; done 2>/dev/null; true",
              "digest of each program that runs (once for each inode)",
              "reads the executables of all processes", within_s=300.0),
    Collector("environment", _PROC + "echo \"== ${p#/proc/}\"; tr '\\0' '\\n' < $p/environ; "
              "done 2>/dev/null; true", "preloads, credentials in use", "reads /proc"),
    Collector("maps", _PROC + "echo \"== ${p#/proc/}\"; grep -E 'rwx|deleted|memfd' $p/maps; "
              "done 2>/dev/null; true", "injected and deleted code", "reads /proc"),
    Collector("open_files", _PROC + "echo \"== ${p#/proc/}\"; ls -lan $p/fd; done 2>/dev/null; "
              "true", "files in use, deleted ones too", "reads /proc"),
    Collector("logins", _IN_UTC + "who -a; w; last -wFn 500; lastb -wFn 500 2>/dev/null; "
              "loginctl list-sessions 2>/dev/null; true", "who is and was logged in",
              "reads utmp, wtmp, btmp"),
    Collector("modules", "cat /proc/modules; echo ==; ls /sys/module; echo ==; "
              "cat /proc/sys/kernel/tainted", "drivers, and what taints the kernel",
              "reads /proc and /sys"),
    Collector("bpf", "bpftool -j prog show; bpftool -j link show", "programs in the kernel",
              "asks the kernel"),
    _cat("mounts", "/proc/1/mountinfo", "file systems"),
    Collector("usage", "df -PT; swapon --show; cat /proc/meminfo", "space, swap", "stats mounts",
              root=False),
    Collector("tmpfs", "for m in /dev/shm /run /tmp /var/tmp; do find $m -xdev -ls; done "
              "2>/dev/null | head -n 200000; true", "files that a reboot takes",
              "reads folders of /dev/shm, /run, /tmp"),
    Collector("timers", _IN_UTC + "systemctl list-timers --all --no-pager; "
              "for d in /etc/crontab /etc/cron.d /var/spool/cron; do find $d -type f -exec sh -c "
              "'echo \"== $1\"; head -c 65536 \"$1\"; echo' - {} \\;; done; "
              "at -l 2>/dev/null; true", "what will run", "reads cron's files"),
    Collector("services", "systemctl list-units --all --no-pager --no-legend; "
              "systemctl list-unit-files --no-pager --no-legend", "services", "asks systemd"),
    Collector("containers", "docker ps -a --no-trunc; podman ps -a --no-trunc; "
              "crictl ps -a; ctr -n k8s.io c ls; ctr c ls", "containers and their images",
              "asks the daemons"),
    Collector("histories", _HISTORIES, "what was typed", "reads files of all users"),
    Collector("keys", _KEYS, "who may log in; host keys", "reads public keys only"),
    Collector("accounts", "for f in /etc/passwd /etc/group /etc/sudoers; do echo \"== $f\"; "
              "cat $f; done; for f in /etc/sudoers.d/*; do echo \"== $f\"; cat \"$f\"; done; "
              "true", "who may do what", "reads account files, no password hashes"),
    Collector("journal", "journalctl --no-pager -o export -n 20000", "what was logged last",
              "reads the journal", limit=64 << 20, within_s=120.0),
    Collector("kernel_log", "dmesg", "what the kernel said", "reads the kernel's ring buffer"),
    Collector("system", "uname -a; cat /etc/os-release /etc/machine-id /proc/cmdline /proc/sys/"
              "kernel/random/boot_id; sysctl -a 2>/dev/null | head -n 5000",
              "which system it is", "reads /proc and /etc"),
)  # fmt: skip

# What symbols are made of, beside a memory image.
SIDECARS: tuple[Collector, ...] = (
    _cat("proc_version", "/proc/version", "kernel of the image"),
    _cat("kallsyms", "/proc/kallsyms", "addresses of symbols", 64 << 20),
    _cat("btf.vmlinux", "/sys/kernel/btf/vmlinux", "types of the kernel", 64 << 20),
    Collector(
        "meminfo",
        "cat /proc/meminfo /proc/cmdline /proc/modules",
        "the host at the time",
        "reads /proc",
    ),
)

_LIST_DELETED = _PROC + (
    "e=$(readlink $p/exe) || continue; case \"$e\" in *' (deleted)') "
    "i=$(stat -L -c '%d:%i %s' $p/exe) && echo \"${p#/proc/} $i $e\";; esac; done 2>/dev/null; true"
)  # fmt: skip


@dataclass
class Answer:
    """What one collector came to."""

    name: str
    outcome: Outcome
    why: str = ""
    size: int = 0
    code: int | None = None
    sha256: str = ""
    facts: Mapping[str, JsonValue] = field(default_factory=dict)

    def line(self) -> bytes:
        """As a line of `collectors.jsonl`."""
        made = {k: v for k, v in self.__dict__.items() if k != "facts"} | dict(self.facts)
        return json.dumps(made, sort_keys=True).encode() + b"\n"


@dataclass
class Collection(Closing):
    """The answers of a host, as a set of files.

    Attributes:
        remote: an open connection.
        collectors: in their order.
        text: what people call it.
        paths: files or devices of the host to take whole (instance store, tmpfs).
        before: files that are there already, by name.
        deleted: also take running programs whose file was deleted.
        outcomes: filled while it is read.
    """

    remote: Remote
    collectors: Sequence[Collector]
    text: str
    facts: Mapping[str, JsonValue]
    paths: Sequence[str] = ()
    before: Mapping[str, bytes] = field(default_factory=dict)
    deleted: bool = False
    file_bytes: int = FILE_BYTES
    identity: None = None
    method: str = "commands and files of the running host, over SSH, in the order of volatility"
    say: Callable[[str], None] = lambda _line: None
    now: Callable[[], int] = time.time_ns
    outcomes: list[Answer] = field(default_factory=list)
    gone: str = ""

    def members(self) -> Iterator[Member]:
        """See `SetSource.members`."""
        for name, body in self.before.items():
            yield _member(name, body, {"type": "file"})
        for collector in self.collectors:
            yield from self._ask(collector)
        if self.deleted:
            yield from self._deleted_programs()
        for number, path in enumerate(self.paths):
            yield from self._file(f"paths/{number:04}", path, {"path": clean(path, 400)})
        index = b"".join(answer.line() for answer in self.outcomes)
        yield _member(OUTCOMES, index, {"type": "outcomes"})

    def _ask(self, collector: Collector) -> Iterator[Member]:
        began = self.now()
        try:
            self._ready()
            ran = self.remote.run(
                shell(collector.script), collector.why, root=collector.root and self.may_root,
                limit=collector.limit, within_s=collector.within_s,
            )  # fmt: skip
        except (LostError, UnreachableError) as e:
            self._lost(collector.name, e)
            return
        answer = Answer(
            collector.name, _outcome(ran.out, ran.err, ran.code, cut=ran.cut), size=len(ran.out),
            code=ran.code, sha256=hashlib.sha256(ran.out).hexdigest(),
            facts={"script": collector.script, "for": collector.why,
                   "touches": collector.touches, "began_ns": str(began),
                   "said": clean(ran.err, 500)},
        )  # fmt: skip
        if answer.outcome == "failed":
            answer.why = (
                "cut at its limit" if ran.cut else clean(ran.err, 200) or f"exit {ran.code}"
            )
        self.outcomes.append(answer)
        self.say(f"{collector.name}: {answer.outcome}")
        if ran.out:
            facts: dict[str, JsonValue] = {"type": "answer", "outcome": answer.outcome}
            yield _member(collector.name, ran.out, facts)

    @property
    def may_root(self) -> bool:
        """Whether the account can become root; without, it answers what it may see."""
        return self.remote.root is not None

    def _ready(self) -> None:
        if self.gone:
            raise LostError(self.gone)
        self.remote.ensure()

    def _lost(self, name: str, e: Exception) -> None:
        self.outcomes.append(Answer(name, "failed", clean(str(e), 200)))
        self.say(f"{name}: {e}")
        try:
            self.remote.close()
            self.remote.ensure()
        except (LostError, UnreachableError) as again:
            self.gone = f"the connection was lost: {clean(str(again), 200)}"

    def _deleted_programs(self) -> Iterator[Member]:
        """Programs that run and whose file is gone, each inode once."""
        try:
            self._ready()
            ran = self.remote.run(shell(_LIST_DELETED), "running programs that were deleted",
                                  root=self.may_root)  # fmt: skip
        except (LostError, UnreachableError) as e:
            self._lost("deleted", e)
            return
        found = [m for line in ran.out.split(b"\n") if (m := _DELETED.fullmatch(line))]
        self.outcomes.append(Answer("deleted", "success" if found else "empty", size=len(found)))
        seen: set[bytes] = set()
        for match in found:
            pid, inode, path = match[1].decode(), match[2], match[4].decode("utf-8", "replace")
            if inode in seen:
                continue
            seen.add(inode)
            if len(seen) > DELETED_AT_MOST:
                self.outcomes.append(Answer("deleted", "failed", f"more than {DELETED_AT_MOST}"))
                return
            about: dict[str, JsonValue] = {"pid": int(pid), "path": clean(path, 400)}
            yield from self._file(f"deleted/{pid}", f"/proc/{pid}/exe", about)

    def _file(self, name: str, path: str, about: dict[str, JsonValue]) -> Iterator[Member]:
        answer = Answer(name, "failed", "not read", facts=about)
        self.outcomes.append(answer)
        yield Member(
            name.encode(), {"type": "file of the host", **about},
            lambda: self._content(answer, path),
        )  # fmt: skip

    def _content(self, answer: Answer, path: str) -> Iterator[bytes]:
        """Read a file of the host as it comes. Raises: OSError, which spoils only this file."""
        from shlex import quote

        digest = hashlib.sha256()
        try:
            self._ready()
            with self.remote.stream(f"cat -- {quote(path)}", f"content of {path}",
                                    root=self.may_root) as s:  # fmt: skip
                while chunk := s.read():
                    room = self.file_bytes - answer.size
                    digest.update(chunk[:room])
                    answer.size += len(chunk[:room])
                    yield chunk[:room]
                    if len(chunk) > room:
                        s.cut()
                        answer.why = f"cut at {self.file_bytes} bytes"
                        return
                answer.code, said = s.code, s.err
        except (LostError, UnreachableError) as e:
            answer.why = clean(str(e), 200)
            raise OSError(answer.why) from e
        answer.sha256 = digest.hexdigest()
        answer.outcome = _outcome(b"x" if answer.size else b"", said, answer.code, cut=False)
        answer.why = clean(said, 200) if answer.outcome in ("failed", "missing") else ""

    def skipped(self) -> list[str]:
        """See `SetSource.skipped`: what failed, so that the item is partial."""
        return [f"{a.name}: {a.why or a.outcome}" for a in self.outcomes if a.outcome == "failed"]

    def changes(self) -> list[str]:
        """See `Source.changes`; that facts change is their nature."""
        return []

    @property
    def counts(self) -> dict[str, int]:
        """How many collectors came to what."""
        found = dict.fromkeys(("success", "empty", "missing", "failed"), 0)
        for answer in self.outcomes:
            found[answer.outcome] += 1
        return found


def _outcome(out: bytes, err: str, code: int | None, *, cut: bool) -> Outcome:
    """What an answer is. Pure.

    >>> _outcome(b"", "sh: 1: bpftool: not found", 127, cut=False)
    'missing'
    """
    if cut:
        return "failed"
    if out:
        return "success" if code == 0 or _absent(err, code) else "failed"
    if _absent(err, code):
        return "missing"
    return "empty" if code == 0 else "failed"


def _absent(err: str, code: int | None) -> bool:
    lower = err.lower()
    return code == 127 or (code != 0 and any(said in lower for said in _MISSING))


def _member(name: str, body: bytes, facts: Mapping[str, JsonValue]) -> Member:
    return Member(name.encode(), facts, lambda: iter([body] if body else []))
