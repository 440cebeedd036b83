# SPDX-License-Identifier: Apache-2.0
"""What the children of `test_child` run: one `main` that does as the request says."""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from zoneinfo import ZoneInfo

from evidence_store.child import Channel


def host_pid() -> int:
    """Our pid as the test knows it: /proc is that of the test, also in a PID namespace."""
    return int(Path("/proc/self").readlink().name)


def main(channel: Channel) -> None:
    globals()[channel.request["do"]](channel)


def read(channel: Channel) -> None:
    with channel.image("E0001") as image:
        for offset, length in channel.request["ranges"]:
            channel.send("data", hex=image.pread(length, offset).hex())


def read_other(channel: Channel) -> None:
    channel.open_object("E0002", "0" * 16)


def use_memory(_channel: Channel) -> None:
    _ = bytearray(1 << 30)


def use_cpu(_channel: Channel) -> None:
    while True:
        pass


def fill_disk(_channel: Channel) -> None:
    with Path("big").open("wb") as f:
        while True:
            f.write(bytes(1 << 20))
            f.flush()


def wait_forever(channel: Channel) -> None:
    channel.send("alive", pid=host_pid())
    time.sleep(3600)


def ignore_sigterm(channel: Channel) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    wait_forever(channel)


def _start(channel: Channel, *, new_session: bool) -> None:
    if os.fork() == 0:
        if new_session:
            os.setsid()
        channel.send("alive", pid=host_pid())
        channel._sock.close()
        time.sleep(3600)
        os._exit(0)


def spawn_in_new_session(channel: Channel) -> None:
    _start(channel, new_session=True)
    select.select([], [], [], channel.request["stay_s"])


def spawn_and_wait(channel: Channel) -> None:
    _start(channel, new_session=False)
    time.sleep(3600)


def network(channel: Channel) -> None:
    def connect(family: socket.AddressFamily, address: object) -> None:
        with socket.socket(family) as s:
            s.settimeout(5)
            s.connect(address)

    _try(channel, "tcp", lambda: connect(socket.AF_INET, ("127.0.0.1", channel.request["port"])))
    _try(channel, "abstract", lambda: connect(socket.AF_UNIX, "\0" + channel.request["name"]))
    _try(channel, "path", lambda: connect(socket.AF_UNIX, channel.request["path"]))


def _try(channel: Channel, what: str, act: Callable[[], object]) -> None:
    try:
        act()
    except OSError as e:
        channel.send("tried", what=what, error=type(e).__name__)
    else:
        channel.send("tried", what=what, error="")


def read_files(channel: Channel) -> None:
    for path in channel.request["paths"]:
        _try(channel, path, lambda path=path: Path(path).read_bytes())


def list_folders(channel: Channel) -> None:
    for path in channel.request["paths"]:
        _try(channel, path, lambda path=path: list(Path(path).iterdir()))


def write_files(channel: Channel) -> None:
    folder, victim = Path(channel.request["folder"]), Path(channel.request["victim"])
    Path("mine").write_text("x")
    for what, act in {
        "create": lambda: (folder / "new").write_text("x"),
        "mkdir": lambda: (folder / "folder").mkdir(),
        "symlink": lambda: (folder / "link").symlink_to("/"),
        "overwrite": lambda: victim.write_text("x"),
        "append": lambda: victim.open("a"),
        "truncate": lambda: os.truncate(victim, 0),
        "remove": victim.unlink,
        "rename": lambda: victim.rename(folder / "other"),
        "move in": lambda: victim.rename("taken"),
        "move out": lambda: Path("mine").rename(folder / "mine"),
        "hard link": lambda: os.link(victim, "hard"),
        "through a link": lambda: (Path("way").symlink_to(victim), Path("way").write_text("x")),
        "device": lambda: os.mknod("null", 0o600 | stat.S_IFCHR, os.makedev(1, 3)),
    }.items():
        _try(channel, what, act)


def write_in_own_folder(_channel: Channel) -> None:
    Path("a/b").mkdir(parents=True)
    Path("a/b/one").write_text("1")
    Path("a/b/one").rename("a/two")
    os.truncate("a/two", 0)
    os.link("a/two", "three")
    Path("a/two").unlink()
    Path("a/b").rmdir()


def execute_own_file(channel: Channel) -> None:
    Path("tool").write_bytes(Path("/bin/true").read_bytes())
    Path("tool").chmod(0o700)
    _try(channel, "own", lambda: os.waitpid(os.posix_spawn("tool", ["tool"], {}), 0))
    _try(channel, "system", lambda: os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0))


def reopen_segment(channel: Channel) -> None:
    fd = channel.open_object("E0001", "0" * 16)
    _try(channel, "read", lambda: os.open(f"/proc/self/fd/{fd}", os.O_RDONLY))
    _try(channel, "write", lambda: os.open(f"/proc/self/fd/{fd}", os.O_RDWR))


def raise_limits(channel: Channel) -> None:
    which = resource.RLIMIT_NOFILE
    soft, hard = resource.getrlimit(which)
    try:
        resource.setrlimit(which, (soft, hard + 1))
    except ValueError as e:
        channel.send("tried", what="raise", error=str(e))
    else:
        channel.send("tried", what="raise", error="")


def say_hello_again(channel: Channel) -> None:
    channel.send("hello", network="none", files="own folder only", processes="ended with it")


def use_libraries(channel: Channel) -> None:
    import duckdb
    import matplotlib as mpl
    import pyarrow as pa
    import pyarrow.parquet as pq
    import pytsk3

    mpl.use("svg")
    from matplotlib import pyplot

    pq.write_table(pa.table({"a": [1, 2]}), "a.parquet")
    rows = duckdb.sql("SELECT sum(a) FROM 'a.parquet'").fetchall()
    figure, axes = pyplot.subplots()
    axes.set_title("t")
    figure.savefig("a.svg")
    zone = str(ZoneInfo("Europe/Berlin"))
    channel.send("done", rows=rows, zone=zone, tsk=bool(pytsk3.get_version()),
                 cpus=bool(os.cpu_count()))  # fmt: skip


def limits(channel: Channel) -> None:
    channel.send(
        "limits",
        files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        core=resource.getrlimit(resource.RLIMIT_CORE)[0],
        cwd=str(Path.cwd()),
        path=sys.path,
        environment=sorted(os.environ),
    )


def crash(channel: Channel) -> None:
    channel.send("before")
    os.kill(os.getpid(), 11)


def complain(_channel: Channel) -> None:
    sys.stderr.write("\x1b[2Jbad \u202e news\n")
    raise SystemExit(3)


def malformed(channel: Channel) -> None:
    channel._sock.send(b"{[")
    time.sleep(3600)


def nested(channel: Channel) -> None:
    channel._sock.send(b"[" * 100_000)
    time.sleep(3600)
