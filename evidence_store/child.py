# SPDX-License-Identifier: Apache-2.0
"""Parsers of hostile evidence run in a limited child; it sees items through one socket.

The child
    - is `python -I` of its own, limited in address space, CPU time, wall clock, file size and open
      files; makes no sockets, and has a network namespace of its own where the kernel lets us
      unshare it; gains no privileges, and has none of root's but to read; reads only what an
      interpreter needs and writes only below the temporary directory it works in, where the kernel
      has Landlock; ends with its parent and takes all it started along, out of its process group
      too where the kernel gives a PID namespace. What could not be taken away stands in the
      `Outcome`.
    - asks for a segment of an item and gets a read-only descriptor of it, or "not stored" (zeros).
      The parent checks the segment's digest before it hands the descriptor over, whatever the
      backend (`VerifiedSegments` says when again), so reading costs one pread(2). Whoever can write
      to the store can change a segment under a descriptor that is out; the child then sees that.
    - tells what it did in messages of JSON. What it says is data, never trusted: only the parent
      stores anything.
    - either runs a job to its end (`Child.run`), or answers requests one at a time over descriptors
      that the parent opened for it (`Child.start`).

With a PID namespace there are three processes: the supervisor, which the parent knows; its child,
which is pid 1 of the namespace, so that the kernel kills all in it when it ends; and the worker,
which alone sees evidence, and cannot reach the other two. Status 128 + n is death by signal n.

Source: unix(7) SCM_RIGHTS and SOCK_SEQPACKET; prctl(2) PR_SET_PDEATHSIG; unshare(2);
pid_namespaces(7); capset(2); landlock.py; seccomp.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, Protocol

from evidence_store import landlock, seccomp
from evidence_store.errors import ChildError, Error, IntegrityError
from evidence_store.item import SegmentFile
from evidence_store.model import clean
from evidence_store.transfer import UnreadableError

_MESSAGE = 128 << 10
_STDERR_TAIL = 4000
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
_CAPABILITY_VERSION_3, _CAP_DAC_READ_SEARCH = 0x20080522, 1 << 2
_END_S = 5
# What an interpreter, its libraries, fonts and time zones read outside Python's own folders.
# DuckDB looks up its CPU limit in the cgroup tree, and crashes where it may not.
_READABLE = (
    "/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime", "/etc/timezone",
    "/etc/fonts", "/etc/mime.types", "/etc/ssl/openssl.cnf", "/proc/self",
    "/sys/devices/system/cpu", "/sys/fs/cgroup", "/dev/null", "/dev/urandom",
)  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What a child may use. Bytes and seconds."""

    address_space: int = 4 << 30
    cpu_s: int = 4 * 3600
    wall_s: float = 8 * 3600
    file_bytes: int = 8 << 30
    open_files: int = 256


class Objects(Protocol):
    """Opens the objects of one item, verified: `evidence_store.item.VerifiedSegments`."""

    def open_object(self, name: str) -> int | None:
        """Return a read-only descriptor, or None if the object is not stored.

        Raises: UnreadableError for what its source does not give; the child sees EIO.
        """


@dataclass(frozen=True)
class Outcome:
    """How a child ended.

    Attributes:
        ok: it ended by itself, with status 0.
        reason: in words, why not; "" if ok.
        stderr: the end of what it printed, escaped.
        network: "none" if it had no network (by namespace, or because it could make no socket),
            else why it could not be taken away.
        files: "own folder only" if it could read nothing but what an interpreter needs, and write
            only in its folder; else what was open to it, and why.
        processes: "ended with it" if nothing that it started can have outlived it; else why.
        seconds: wall clock.
        max_rss: peak resident bytes as the child says, 0 if it died before it could.
    """

    ok: bool
    reason: str
    stderr: str
    network: str
    files: str
    processes: str
    seconds: float
    max_rss: int


@dataclass
class Child:
    """One run of a child.

    Attributes:
        module: `module.main(channel)` is what it runs.
        request: JSON for it.
        items: what it may read, by item id: (size, segment size, objects).
        folder: its working directory, where it leaves what it makes.
        limits: what it may use.
        on_message: called with each message, in order.
        descriptors: that it inherits, under the same numbers.
        program: what `python -I -m` starts; it calls `main` of this module.
        check: called every second while it runs; what it raises ends the child.
    """

    module: str
    request: Mapping[str, Any]
    items: Mapping[str, tuple[int, int, Objects]]
    folder: Path
    limits: Limits = field(default_factory=Limits)
    on_message: Callable[[dict[str, Any]], None] = lambda _message: None
    descriptors: tuple[int, ...] = ()
    program: str = "evidence_store.child"
    check: Callable[[], None] = lambda: None
    _hello: dict[str, str] = field(default_factory=dict, init=False)
    _max_rss: int = field(default=0, init=False)

    def run(self) -> Outcome:
        """Run it to its end, whatever that is.

        Raises: IntegrityError if a segment it asked for is not what was recorded; StoreError. The
        child is dead in any case when this returns.
        """
        started = time.monotonic()
        with (self.folder / ".stderr").open("w+b") as stderr:
            process, ours = self._spawn(stderr)
            problem = "it was interrupted"
            try:
                with ours:
                    ours.send(json.dumps(self._opening()).encode())
                    problem = self._serve(ours, started + self.limits.wall_s)
            except (BrokenPipeError, ConnectionResetError):
                problem = "it closed its channel"
            finally:
                _end(process, grace_s=0 if problem else _END_S)
            said = _tail(stderr)
        return Outcome(
            ok=process.returncode == 0 and not problem,
            reason=_reason(process.returncode, problem, said),
            stderr=said,
            network=self._hello.get("network", "unknown"),
            files=self._hello.get("files", "unknown"),
            processes=self._hello.get("processes", "unknown"),
            seconds=time.monotonic() - started,
            max_rss=self._max_rss,
        )

    def start(self) -> RunningChild:
        """Start it to answer requests. Raises: ChildError if it cannot even be spoken to."""
        stderr = (self.folder / ".stderr").open("w+b")
        try:
            process, sock = self._spawn(stderr)
        except BaseException:
            stderr.close()
            raise
        running = RunningChild(process, sock, stderr)
        try:
            running.send(self._opening())
        except BaseException:
            running.close()
            raise
        return running

    def _spawn(self, stderr: BinaryIO) -> tuple[subprocess.Popen[bytes], socket.socket]:
        """Start the process; return it and our end of its channel."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-I", "-m", self.program,
                   str(theirs.fileno()), str(os.getpid())]  # fmt: skip
        try:
            with theirs:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr,
                    pass_fds=(theirs.fileno(), *self.descriptors), cwd=self.folder, close_fds=True,
                    env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": str(self.folder),
                         "TMPDIR": str(self.folder), "MPLCONFIGDIR": str(self.folder)},
                    start_new_session=True,
                )  # fmt: skip
        except BaseException:
            ours.close()
            raise
        return process, ours

    def _opening(self) -> dict[str, Any]:
        items = {name: (size, segment) for name, (size, segment, _) in self.items.items()}
        return {
            "module": self.module, "request": dict(self.request), "items": items,
            "limits": asdict(self.limits),
        }  # fmt: skip

    def _serve(self, sock: socket.socket, deadline: float) -> str:
        """Answer until the child closes its end; return what went wrong or ""."""
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                return f"it was ended after {self.limits.wall_s:.0f} s of wall clock"
            self.check()
            if not poll.poll(min(left, 1.0) * 1000):
                continue
            packet = sock.recv(_MESSAGE)
            if not packet:
                return ""
            try:
                message = json.loads(packet)
                kind = message.pop("message_type")
                if kind == "open":
                    self._open(sock, str(message["item"]), str(message["object"]))
                elif kind == "hello" and not self._hello:
                    # The first comes from us, before the child has seen a byte of evidence.
                    self._hello = {k: clean(str(v), 200) for k, v in message.items()}
                elif kind == "usage":
                    self._max_rss = min(int(message["max_rss"]), 1 << 48)
                else:
                    self.on_message({"message_type": kind, **message})
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
                return f"it sent a malformed message ({clean(str(e), 100)})"

    def _open(self, sock: socket.socket, item: str, name: str) -> None:
        if item not in self.items:
            sock.send(b"\x02not an item of this job")
            return
        try:
            fd = self.items[item][2].open_object(name)
        except UnreadableError as e:
            sock.send(b"\x03" + clean(e.strerror or "unreadable", 1000).encode())
            return
        if fd is None:
            sock.send(b"\x01")
            return
        try:
            socket.send_fds(sock, [b"\x00"], [fd])
        finally:
            os.close(fd)


class RunningChild:
    """A child that answers one request at a time. Not for use by several threads at once.

    Attributes:
        hello: what was taken away from it: `network`, `files`, `processes`, as in `Outcome`.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], sock: socket.socket, stderr: BinaryIO
    ) -> None:
        self._process = process
        self._sock = sock
        self._stderr = stderr
        self.hello: dict[str, str] = {}
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def call(self, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send a request, return the answer (`Channel.answer`).

        Raises: ChildError, with the reason, if it died, gave no answer in time, or broke the
        protocol. It is dead then.
        """
        self.send(request)
        deadline = time.monotonic() + timeout_s
        while True:
            left = max(0.0, deadline - time.monotonic())
            if not self._poll.poll(left * 1000):
                raise self._died(f"it gave no answer in {timeout_s:.0f} s")
            try:
                packet = self._sock.recv(_MESSAGE)
                message = json.loads(packet) if packet else None
            except ConnectionResetError:
                message = None
            except (ValueError, RecursionError) as e:
                problem = f"it sent a malformed message ({clean(str(e), 100)})"
                raise self._died(problem) from e
            if message is None:
                raise self._died("")
            if not isinstance(message, dict):
                raise self._died("it sent a malformed message")
            kind = message.pop("message_type", None)
            if kind == "answer":
                return message
            if kind == "hello" and not self.hello:
                self.hello = {k: clean(str(v), 200) for k, v in message.items()}
            else:
                raise self._died("it sent a message of no known type")

    def send(self, message: Mapping[str, Any]) -> None:
        """Send it something. Raises: ChildError."""
        try:
            self._sock.send(json.dumps(dict(message)).encode())
        except (BrokenPipeError, ConnectionResetError) as e:
            raise self._died("") from e

    def _died(self, problem: str) -> ChildError:
        _end(self._process, grace_s=0 if problem else _END_S)
        reason = _reason(self._process.returncode, problem, _tail(self._stderr))
        self.close()
        return ChildError(reason or "it ended early")

    def close(self) -> None:
        """End it, whatever it is doing."""
        self._sock.close()
        if not self._stderr.closed:
            _end(self._process, grace_s=0)
            self._stderr.close()


def _tail(stderr: BinaryIO) -> str:
    stderr.seek(max(0, stderr.seek(0, os.SEEK_END) - _STDERR_TAIL))
    return clean(stderr.read().decode("utf-8", "backslashreplace"))


def _end(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """Make sure it and all it started are gone."""
    if process.returncode is not None:
        return
    try:
        fd = os.pidfd_open(process.pid)
        try:
            # Without a problem it closed its end, so it is about to exit by itself.
            # Not select(2): a set of many files may have taken all numbers below 1024.
            ended = select.poll()
            ended.register(fd, select.POLLIN)
            if not ended.poll(grace_s * 1000):
                # The supervisor ends the namespace and waits until all in it are gone.
                signal.pidfd_send_signal(fd, signal.SIGTERM)
                ended.poll(_END_S * 1000)
        finally:
            os.close(fd)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _reason(code: int, problem: str, said: str) -> str:
    if problem:
        return problem
    if code == 0:
        return ""
    if code > 128:
        code = 128 - code
    last = said.replace("\\x0a", "\n").strip().splitlines()[-1:] or [""]
    if code < 0:
        names = {
            signal.SIGXCPU: "it used up its CPU time",
            signal.SIGXFSZ: "a file it wrote grew over its limit",
            signal.SIGKILL: "it was killed (out of memory, or CPU time)",
            signal.SIGSEGV: "it crashed (SIGSEGV)",
        }
        with contextlib.suppress(ValueError):
            return names.get(signal.Signals(-code), f"signal {signal.Signals(-code).name}")
    if "MemoryError" in last[0] or "bad_alloc" in said:
        return "it ran out of the memory it may use"
    return f"it failed: {last[0][:300]}" if last[0] else f"it ended with status {code}"


# -- inside the child ------------------------------------------------------------------------------


class Channel:
    """The child's end. `request` is what the parent asked."""

    def __init__(self, sock: socket.socket, opening: Mapping[str, Any]) -> None:
        self._sock = sock
        self._items: dict[str, tuple[int, int]] = {
            name: (size, segment) for name, (size, segment) in opening["items"].items()
        }
        self.request: dict[str, Any] = dict(opening["request"])

    def image(self, item: str) -> SegmentFile:
        """Return an image item as one seekable file."""
        size, segment_size = self._items[item]
        return SegmentFile(
            size, segment_size, lambda index: self.open_object(item, f"{index:016x}")
        )

    def open_object(self, item: str, name: str) -> int | None:
        """Return a descriptor of a verified object, None if it is not stored.

        Raises: IntegrityError if the parent refuses; OSError if its source cannot be read.
        """
        self._send({"message_type": "open", "item": item, "object": name})
        answer, fds, _, _ = socket.recv_fds(self._sock, 4096, 1)
        if answer[:1] == b"\x00" and fds:
            os.set_inheritable(fds[0], False)
            return fds[0]
        if answer[:1] == b"\x01":
            return None
        if answer[:1] == b"\x03":
            raise OSError(errno.EIO, answer[1:].decode("utf-8", "replace"))
        raise IntegrityError(answer[1:].decode("utf-8", "replace") or "the channel is closed")

    def read_object(self, item: str, name: str, limit: int) -> bytes | None:
        """Return a verified object, its first `limit` bytes; None if it is not stored.

        Raises: as `open_object`.
        """
        fd = self.open_object(item, name)
        if fd is None:
            return None
        with os.fdopen(fd, "rb") as f:
            return f.read(limit)

    def send(self, kind: str, **fields: Any) -> None:
        """Tell the parent something; at most 128 KiB."""
        self._send({"message_type": kind, **fields})

    def requests(self) -> Iterator[dict[str, Any]]:
        """Yield what the parent asks, until it is done with us; `answer` each."""
        while packet := self._sock.recv(_MESSAGE):
            yield json.loads(packet)

    def answer(self, **fields: Any) -> None:
        """Answer a request."""
        self.send("answer", **fields)

    def _send(self, message: dict[str, Any]) -> None:
        self._sock.send(json.dumps(message).encode())


def _limit(limits: Mapping[str, Any]) -> None:
    for which, value in (
        (resource.RLIMIT_AS, int(limits["address_space"])),
        (resource.RLIMIT_CPU, int(limits["cpu_s"])),
        (resource.RLIMIT_FSIZE, int(limits["file_bytes"])),
        (resource.RLIMIT_NOFILE, int(limits["open_files"])),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(which)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))


def _enclose(parent: int, sock: socket.socket) -> tuple[str, str]:
    """Leave the network and the process table, tie our life to the parent's.

    Only the worker returns, with `Outcome.network` and `Outcome.processes`.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def unshare(flag: int) -> str:
        return os.strerror(ctypes.get_errno()) if libc.unshare(flag) else ""

    network = unshare(_CLONE_NEWNET)
    if network and not unshare(_CLONE_NEWUSER):
        network = unshare(_CLONE_NEWNET)
    network = f"not taken away: {network}" if network else "none"
    no_pids = unshare(_CLONE_NEWPID)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # After unshare: a change of credentials clears it.
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    if no_pids:
        return network, f"only its process group was ended: {no_pids}"
    supervisor = os.pidfd_open(os.getpid())
    if init := os.fork():
        sock.close()
        signal.signal(signal.SIGTERM, lambda *_: os.kill(init, signal.SIGKILL))
        _exit_as(init)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if select.select([supervisor], [], [], 0)[0]:
        os._exit(1)
    os.close(supervisor)
    if worker := os.fork():
        sock.close()
        _exit_as(worker)
    return network, "ended with it"


def _exit_as(pid: int) -> NoReturn:
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os._exit(code if code >= 0 else 128 - code)


def _drop_capabilities() -> None:
    """Keep of root's privileges only that of reading, which Landlock narrows.

    Raises: OSError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()
    if libc.capget(header, data) == 0:
        keep = data[1] & _CAP_DAC_READ_SEARCH  # effective, permitted, inheritable; twice 32 bits
        if libc.capset(header, (ctypes.c_uint32 * 6)(keep, keep)) == 0:
            return
    code = ctypes.get_errno()
    raise OSError(code, os.strerror(code))


def main() -> None:
    """Entry of the child: `python -I -m evidence_store.child FD PARENT_PID`."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    network, processes = _enclose(int(sys.argv[2]), sock)
    opening = json.loads(sock.recv(_MESSAGE))
    _limit(opening["limits"])
    # Opened now: the rule for /proc/self holds only while the kernel keeps that entry in memory.
    status = Path("/proc/self/status").open()  # noqa: SIM115
    files = landlock.restrict([*_READABLE, sys.prefix, sys.base_prefix, *sys.path], ".")
    _drop_capabilities()
    if why := seccomp.refuse_sockets():
        files = f"{files}, but sockets of other programs can be reached ({why})"
    else:
        network = "none"
    channel = Channel(sock, opening)
    channel.send("hello", network=network, files=files, processes=processes)
    try:
        importlib.import_module(opening["module"]).main(channel)
        # Not ru_maxrss, which counts what the parent had when it forked.
        peak = status.read().split("VmHWM:")[1].split()[0]
        channel.send("usage", max_rss=int(peak) * 1024)
    except Error as e:
        sys.stderr.write(f"{type(e).__name__}: {e}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
