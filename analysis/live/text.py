# SPDX-License-Identifier: Apache-2.0
"""Answers of a live response, line by line. Pure; their text is hostile.

Each function yields (number of a line, row), and None as the row of a line that is not of the
format. A process chooses its command line, its environment and names of files, a socket its path:
what is printed of them may hold line ends, and so forge lines. `ps` and the kernel's mountinfo and
stat escape them, other answers do not.

Rows have `collector`, and times as ns since 1970-01-01T00:00:00Z.

Source: proc(5); include/net/tcp_states.h; ss(8); ps(1); who(1) of coreutils; last(1) of util-linux;
crontab(5); systemctl(1); loginctl(1); docker-ps(1), crictl(1), ctr(1); the scripts in `COLLECTORS`
of acquisition/live.py.
"""

from __future__ import annotations

import calendar
import contextlib
import ipaddress
import itertools
import re
import time
from collections.abc import Iterator
from typing import Any

Row = dict[str, Any]
Lines = Iterator[tuple[int, Row | None]]

_TICK_NS = 10_000_000  # USER_HZ is 100 on x86-64
_HEAD = re.compile(r"== ([0-9]{1,10})")
_STAT = re.compile(r"([0-9]{1,10}) \((.{0,64})\) ([A-Za-z]) ([0-9]{1,10}) (.*)", re.DOTALL)
_STATUS = re.compile(r"(TracerPid|Uid|Gid|CapEff|Seccomp|Seccomp_filters):\s*([0-9a-f\t ]{1,80})")
_CGROUP = re.compile(r"[0-9]{1,4}:[^:]{0,200}:/.*")
_PS_COLUMNS = 19  # pid ppid … lstart of 5 words etimes rss wchan args
_DELETED = " (deleted)"


def boot_time(text: str) -> tuple[int | None, int | None]:
    r"""Return now and the time of boot, from `date +%s.%N` and /proc/uptime; None if not told.

    >>> boot_time("100.5\n40.25 80.00\n")
    (100500000000, 60250000000)
    """
    now, _, rest = text.partition("\n")
    match = re.fullmatch(r"([0-9]{1,10})\.([0-9]{1,9})", now.strip())
    up = re.match(r"([0-9]{1,10})\.([0-9]{2}) ", rest)
    if not match:
        return None, None
    at = int(match[1]) * 10**9 + int(match[2].ljust(9, "0"))
    return at, at - int(up[1] + up[2]) * _TICK_NS if up else None


def processes_proc(text: str, boot_ns: int | None) -> Lines:
    """Yield `processes.proc`: blocks of `== pid`, then stat, command line and more.

    Args:
        text: the answer.
        boot_ns: when the host booted; without, `started` is None.
    """
    lines = text.split("\n")
    starts: list[int] = []
    for number, (head, line) in enumerate(itertools.pairwise(lines)):
        if start := _HEAD.fullmatch(head):
            stat = _STAT.fullmatch(line)
            if stat and stat[1] == start[1]:
                starts.append(number)
            elif line and not _HEAD.fullmatch(line):  # else it ended before it was read
                yield number + 1, None
    for start_at, end in itertools.pairwise([*starts, len(lines)]):
        stat = _STAT.fullmatch(lines[start_at + 1])
        assert stat is not None  # noqa: S101
        ticks = stat[5].split(" ")
        # 22nd field of stat; four stand before the rest.
        began = ticks[17] if len(ticks) > 17 else ""
        started = None
        if boot_ns is not None and began.isdecimal() and len(began) < 16:
            started = boot_ns + int(began) * _TICK_NS
        row = {"pid": int(stat[1]), "ppid": int(stat[4]), "comm": stat[2], "state": stat[3],
               "started": started, "collector": "processes.proc"}  # fmt: skip
        yield start_at + 1, row | _of_process(lines[start_at + 2 : end])


def _of_process(lines: list[str]) -> Row:
    """Return what follows stat: command line, a part of status, exe, cwd and root, cgroups."""
    at = max((n for n, line in enumerate(lines) if line.startswith("TracerPid:")), default=None)
    if at is None:
        return {"args": (lines[0].rstrip(" ") or None) if lines else None}
    row: Row = {"args": "\n".join(lines[:at]).rstrip(" \n") or None}
    while at < len(lines) and (match := _STATUS.fullmatch(lines[at])):
        row[match[1]] = match[2].split()
        at += 1
    paths = list(itertools.takewhile(lambda line: not _CGROUP.fullmatch(line), lines[at:]))
    groups = list(itertools.takewhile(_CGROUP.fullmatch, lines[at + len(paths) :]))
    if len(paths) == 3:
        row["exe"] = paths[0]
    if len(paths) in (2, 3):  # a thread of the kernel has no exe
        row["cwd"], row["root"] = paths[-2:]
    ids = {name: row.pop(name, []) for name in ("Uid", "Gid", "TracerPid", "CapEff", "Seccomp")}
    row.pop("Seccomp_filters", None)
    row["uid"], row["euid"] = (number(ids["Uid"][n]) if len(ids["Uid"]) == 4 else None
                               for n in (0, 1))  # fmt: skip
    row["gid"] = number(ids["Gid"][0]) if ids["Gid"] else None
    row["tracer"] = number(ids["TracerPid"][0]) if ids["TracerPid"] else None
    row["seccomp"] = number(ids["Seccomp"][0]) if ids["Seccomp"] else None
    row["capabilities"] = ids["CapEff"][0] if ids["CapEff"] else None
    row["cgroup"] = "\n".join(groups) or None
    return row


def processes(text: str) -> Lines:
    """Yield `processes`, as ps printed them."""
    for at, line in numbered(text):
        parts = line.split(None, _PS_COLUMNS - 1)
        if len(parts) == _PS_COLUMNS and (parts[0] + parts[1]).isdecimal():
            name = parts[-1].split(" ")[0]
            short = name.strip("[]") if name.startswith("[") else name.rpartition("/")[2]
            yield at, {"pid": int(parts[0][:10]), "ppid": int(parts[1][:10]), "comm": short[:15],
                       "tty": None if parts[4] == "?" else parts[4], "user": parts[5],
                       "uid": number(parts[6]), "euid": number(parts[7]), "state": parts[9],
                       "args": parts[-1], "collector": "processes"}  # fmt: skip
        elif parts[:2] != ["PID", "PPID"]:
            yield at, None


_EXECUTABLE = re.compile(r"([0-9]{1,10}) ([0-9]{1,20}:[0-9]{1,20}) ([0-9a-f]{64})? ?(/.*)")


def executables(text: str) -> Lines:
    """Yield `executables`; `sha256` also where an earlier line of the same inode has it."""
    known: dict[str, str] = {}
    for at, line in numbered(text):
        if not (match := _EXECUTABLE.fullmatch(line)):
            yield at, None
            continue
        if match[3]:
            known[match[2]] = match[3]
        path, gone = undeleted(match[4])
        yield at, {"pid": int(match[1]), "sha256": known.get(match[2]), "exe": path,
                   "exe_deleted": gone, "collector": "executables"}  # fmt: skip


def undeleted(path: str) -> tuple[str, bool]:
    """Return a path without the mark that the kernel puts on one that is gone; whether it had it.

    >>> undeleted("/tmp/x (deleted)")
    ('/tmp/x', True)
    """
    return path.removesuffix(_DELETED), path.endswith(_DELETED)


_VARIABLE = re.compile(r"([^=\s\x00-\x1f]{1,4096})=(.*)", re.DOTALL)


def environment(text: str) -> Lines:
    """Yield `environment`. A line that begins no variable continues the one before it.

    Where none is before it, its name is "": a process may write its title over its environment.
    """
    waiting: tuple[int, Row] | None = None
    for at, pid, line in _by_pid(text):
        if match := _VARIABLE.fullmatch(line):
            if waiting:
                yield waiting
            row = {"pid": pid, "name": match[1], "value": match[2], "collector": "environment"}
            waiting = at, row
        elif waiting and waiting[1]["pid"] == pid:
            waiting[1]["value"] += f"\n{line}"
        elif line and pid:
            if waiting:
                yield waiting
            waiting = at, {"pid": pid, "name": "", "value": line, "collector": "environment"}
        elif line:
            yield at, None
    if waiting:
        yield waiting


_MAPPING = re.compile(
    r"([0-9a-f]{1,16})-([0-9a-f]{1,16}) ([rwxsp-]{4}) ([0-9a-f]{1,16}) ([0-9a-f:]{1,20}) "
    r"([0-9]{1,20}) *(.*)"
)


def maps(text: str) -> Lines:
    """Yield `maps`: mappings that can be written and run, of deleted files, of memory files."""
    for at, pid, line in _by_pid(text):
        if match := _MAPPING.fullmatch(line):
            path, gone = undeleted(match[7])
            yield at, {"pid": pid, "start": _address64(match[1]), "end": _address64(match[2]),
                       "protection": match[3], "offset": _address64(match[4]),
                       "inode": number(match[6]), "path": path or None, "deleted": gone,
                       "collector": "maps"}  # fmt: skip
        elif line:
            yield at, None


def _address64(text: str) -> int:
    value = int(text, 16)
    return value - (1 << 64) if value >> 63 else value


_DESCRIPTOR = re.compile(
    r"l([r-])([w-])\S{1,12} +[0-9]{1,10} +[0-9]{1,10} +[0-9]{1,10} +[0-9]{1,20} "
    r".{1,40}? ([0-9]{1,10})(?: -> (.*))?"
)
_INODE = re.compile(r"socket:\[([0-9]{1,20})\]")


def open_files(text: str) -> Lines:
    """Yield `open_files`: `ls -lan /proc/<pid>/fd`."""
    for at, pid, line in _by_pid(text):
        if match := _DESCRIPTOR.fullmatch(line):
            path, gone = undeleted(match[4] or "")
            socket = _INODE.fullmatch(path)
            yield at, {"pid": pid, "fd": int(match[3]), "mode": match[1] + match[2],
                       "target": path or None, "deleted": gone,
                       "socket": int(socket[1]) if socket else None,
                       "collector": "open_files"}  # fmt: skip
        elif line and not re.match(r"total [0-9]|d[rwx-]{9}", line):
            yield at, None


_STATES = ("ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT", "CLOSE",
           "CLOSE_WAIT", "LAST_ACK", "LISTEN", "CLOSING", "NEW_SYN_RECV")  # fmt: skip
_SOCKET = re.compile(
    r"\s*[0-9]+: ([0-9A-F]{8}|[0-9A-F]{32}):([0-9A-F]{4}) ([0-9A-F]{8}|[0-9A-F]{32}):"
    r"([0-9A-F]{4}) ([0-9A-F]{2}) (.*)"
)


def sockets_proc(text: str) -> Lines:
    """Yield TCP, UDP and raw sockets of `sockets.proc`."""
    protocol = ""
    for at, line in numbered(text):
        if line.startswith("== "):
            protocol = line[3:].removesuffix("6").upper()
            if protocol not in ("TCP", "UDP", "RAW"):
                return  # paths of Unix sockets follow, which may look like anything
        elif match := _SOCKET.fullmatch(line):
            number_of = int(match[5], 16)
            state = _STATES[number_of - 1] if 0 < number_of <= len(_STATES) else None
            if protocol != "TCP" and state == "CLOSE":
                state = "UNCONNECTED"
            more = match[6].split()  # queues, timer, retransmissions, uid, timeout, inode
            local, remote = _address(match[1]), _address(match[3])
            yield at, {"protocol": protocol, "state": state, "type": None,
                       "family": "AF_INET" if len(match[1]) == 8 else "AF_INET6",
                       "local_address": local, "local_port": int(match[2], 16),
                       "remote_address": remote, "remote_port": int(match[4], 16),
                       "uid": number(more[3]) if len(more) > 5 else None,
                       "inode": number(more[5]) if len(more) > 5 else None,
                       "users": [], "collector": "sockets.proc"}  # fmt: skip
        elif not line.lstrip().startswith("sl "):
            yield at, None


def _address(text: str) -> str:
    """Return an address of /proc/net: words of 32 bits, each little-endian; IPv4 as such.

    >>> _address("0100007F")
    '127.0.0.1'
    """
    words = (bytes.fromhex(text[i : i + 8])[::-1] for i in range(0, len(text), 8))
    return _plain(b"".join(words))


def _plain(address: bytes | str) -> str:
    found = ipaddress.ip_address(address)
    return str(getattr(found, "ipv4_mapped", None) or found)


_SS = re.compile(r"(\S{1,12})\s+(\S{1,20})\s+[0-9]+\s+[0-9]+\s+(\S+)\s+(\S+)(.*)")
_SS_UNIX = re.compile(
    r"(u_\w{1,8})\s+(\S{1,20})\s+[0-9]+\s+[0-9]+\s+(.{1,400}?) ([0-9]{1,20})\s+"
    r"(.{1,400}?) ([0-9]{1,20})((?:\s.*)?)"
)
_SS_USERS = re.compile(r'\("(.{0,64}?)",pid=([0-9]{1,10}),fd=([0-9]{1,10})\)')
_SS_INODE, _SS_UID = re.compile(r" ino:([0-9]{1,20})"), re.compile(r" uid:([0-9]{1,10})")
_SS_STATES = {"ESTAB": "ESTABLISHED", "UNCONN": "UNCONNECTED", "FIN-WAIT-1": "FIN_WAIT1",
              "FIN-WAIT-2": "FIN_WAIT2", "CLOSED": "CLOSE"}  # fmt: skip
_INET = ("tcp", "udp", "raw", "icmp", "icmp6", "sctp", "dccp", "mptcp")
_FAMILIES = {"u_": "AF_UNIX", "nl": "AF_NETLINK", "p_": "AF_PACKET", "v_": "AF_VSOCK",
             "ti": "AF_TIPC", "xd": "AF_XDP"}  # fmt: skip
_TYPES = {"str": "STREAM", "dgr": "DGRAM", "seq": "SEQPACKET", "raw": "RAW"}


def sockets(text: str) -> Lines:
    """Yield `sockets`, as ss printed them; netstat, which stands in for it, is not read."""
    for at, line in numbered(text):
        if line.startswith(("Netid ", "\t", " ")):
            continue  # the head, or more about the socket before, of an ss without -O
        unix = _SS_UNIX.fullmatch(line)
        match = unix or _SS.fullmatch(line)
        if not match or not (match[1] in _INET or match[1][:2] in _FAMILIES):
            yield at, None
            continue
        state = _SS_STATES.get(match[2], match[2].replace("-", "_"))
        row: Row = {"state": state, "inode": None, "uid": None, "collector": "sockets"}
        more = match[7] if unix else match[5]
        row["users"] = [
            (int(pid), int(fd), comm) for comm, pid, fd in _SS_USERS.findall(more[:1_000_000])
        ]
        if match[1] in _INET:
            row |= {"protocol": match[1].upper(), "type": None}
            (row["local_address"], row["local_port"]) = _end(match[3])
            (row["remote_address"], row["remote_port"]) = _end(match[4])
            host = match[3].rpartition(":")[0]
            # `*` is every address of IPv6, and mostly of IPv4 too.
            row["family"] = "AF_INET6" if ":" in host or host.startswith("*") else "AF_INET"
            if inode := _SS_INODE.search(more):
                uid = _SS_UID.search(more)
                row |= {"inode": int(inode[1]) or None, "uid": int(uid[1]) if uid else 0}
        else:
            kind = _TYPES.get(match[1][2:])
            row |= {"protocol": None, "family": _FAMILIES[match[1][:2]], "type": kind}
            row |= {"local_address": match[3], "local_port": None,
                    "remote_address": match[5 if unix else 4], "remote_port": None}  # fmt: skip
            if unix:
                row["inode"] = int(match[4]) or None
        yield at, row


def _end(text: str) -> tuple[str, int | None]:
    """Return address and port as /proc/net has them.

    >>> _end("[::ffff:10.0.0.1%eth0]:22"), _end("*:*")
    (('10.0.0.1', 22), ('::', 0))
    """
    address, _, port = text.rpartition(":")
    address = address.partition("%")[0].strip("[]")
    with contextlib.suppress(ValueError):  # a name: of an interface, or of no address
        address = _plain("::" if address == "*" else address)
    return address, 0 if port == "*" else number(port)


_MODULE = re.compile(
    r"(\S{1,100}) ([0-9]{1,20}) (\S{1,20}) (\S{1,8000}) (\S{1,20}) 0x([0-9a-f]{1,16})"
    r"(?: \((\S{1,40})\))?"
)


def modules(text: str) -> Lines:
    """Yield `modules`: those of /proc/modules, then names of /sys/module, then `tainted`."""
    part = 0
    for at, line in numbered(text):
        if line == "==":
            part += 1
        elif part == 0 and (match := _MODULE.fullmatch(line)):
            used = match[4].strip(",-")
            yield at, {"name": match[1], "size": number(match[2]), "references": number(match[3]),
                       "used_by": used or None, "state": match[5], "taints": match[7],
                       "address": _address64(match[6]) or None, "view": "procfs",
                       "collector": "modules"}  # fmt: skip
        elif part == 1:
            yield at, {"name": line, "view": "sysfs", "collector": "modules"}
        elif part == 2 and line.isdecimal():
            yield at, {"tainted": number(line), "view": "", "collector": "modules"}
        else:
            yield at, None


_MOUNT = re.compile(
    r"([0-9]{1,10}) ([0-9]{1,10}) ([0-9]{1,10}:[0-9]{1,10}) (\S+) (\S+) (\S+)(?: \S+)*? - "
    r"(\S+) (\S+) (\S+)"
)
_OCTAL = re.compile(r"\\([0-7]{3})")


def mounts(text: str) -> Lines:
    """Yield `mounts`: mountinfo of process 1."""
    for at, line in numbered(text):
        if match := _MOUNT.fullmatch(line):
            root, path, kind, device = (
                _OCTAL.sub(lambda octal: chr(int(octal[1], 8) & 0xFF), match[n])
                for n in (4, 5, 7, 8)
            )
            yield at, {"mount": int(match[1]), "parent": int(match[2]), "device_number": match[3],
                       "root": root, "path": path, "options": match[6], "type": kind,
                       "device": device, "fs_options": match[9],
                       "collector": "mounts"}  # fmt: skip
        else:
            yield at, None


def numbered(text: str) -> Iterator[tuple[int, str]]:
    """Yield lines that are not empty, with their numbers."""
    return ((at, line) for at, line in enumerate(text.split("\n"), 1) if line.strip())


def _by_pid(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield (number of the line, process, line) of blocks of `== pid`; their heads are left out."""
    pid = 0
    for at, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        if head := _HEAD.fullmatch(line):
            pid = int(head[1])
        else:
            yield at, pid, line


def number(text: str) -> int | None:
    """Return a decimal number that fits a column, None if it is none."""
    return int(text) if text.isdecimal() and len(text) < 19 else None


def moment(text: str, form: str = "%a %b %d %H:%M:%S %Y") -> int | None:
    """Return a time that a program printed in UTC.

    >>> moment("Tue Nov 24 02:27:16 2026")
    1795487236000000000
    """
    try:
        return calendar.timegm(time.strptime(text, form)) * 10**9
    except ValueError:
        return None
