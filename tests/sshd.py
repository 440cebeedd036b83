# SPDX-License-Identifier: Apache-2.0
"""A real sshd on loopback, with programs of the test first on its PATH; nothing of it is faked.

Runs as whoever runs the tests: root, or an ordinary user who may log in as themselves.
"""

from __future__ import annotations

import getpass
import os
import signal
import socket
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

from acquisition.login import HostKeys, Login, key_file
from acquisition.reach import direct
from acquisition.remote import Place, Remote
from tests.conftest import need_tool

USER = getpass.getuser()

# `sudo` that does what it is told, as far as impound speaks to it; what it would refuse, by a file.
SUDO = """#!/bin/sh
echo "$@" >> "$ROOM/sudo.log"
if [ -e "$ROOM/requiretty" ]; then
  echo "sudo: sorry, you must have a tty to run sudo" >&2; exit 1
fi
if [ -e "$ROOM/never" ]; then echo "sudo: a password is required" >&2; exit 1; fi
if [ "$1" = -n ]; then
  if [ -e "$ROOM/password" ]; then echo "sudo: a password is required" >&2; exit 1; fi
  shift; exec "$@"
fi
[ "$1 $2 $3" = "-S -p " ] || exit 64
shift 3
IFS= read -r said
if [ "$said" != "$(cat "$ROOM/password")" ]; then
  echo "Sorry, try again." >&2; echo "sudo: no password was provided" >&2; exit 1
fi
exec "$@"
"""


class Sshd:
    """One sshd: `port`, `host_key`, `room` (a folder that its programs see as $ROOM)."""

    def __init__(self, home: Path, *more: str) -> None:
        self.binary = need_tool("sshd")
        need_tool("ssh-keygen")
        self.home = home
        self.room = home / "room"
        self.programs = home / "bin"
        for folder in (home, self.room, self.programs):
            folder.mkdir(exist_ok=True)
        for name in ("host", "user"):
            if not (home / name).exists():
                subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", home / name],
                               check=True)  # fmt: skip
        (home / "authorized").write_text((home / "user.pub").read_text())
        self.host_key = " ".join((home / "host.pub").read_text().split()[:2])
        self.more = list(more)
        self.path = f"{self.programs}:/usr/sbin:/usr/bin:/sbin:/bin"
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def program(self, name: str, script: str) -> None:
        """Put a program before the system's."""
        path = self.programs / name
        path.write_text(script)
        path.chmod(0o755)

    def unprivileged(self) -> None:
        """Have the account look like one that needs sudo."""
        self.program("id", "#!/bin/sh\necho 1000\n")
        self.program("sudo", SUDO)

    def start(self) -> Sshd:
        """Start it on a free port, or again on the same one."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        if not self.port:
            with socket.socket() as s:
                s.bind(("127.0.0.1", 0))
                self.port = s.getsockname()[1]
        config = self.home / "config"
        config.write_text("\n".join([
            "ListenAddress 127.0.0.1", f"Port {self.port}", f"HostKey {self.home / 'host'}",
            f"AuthorizedKeysFile {self.home / 'authorized'}", "PidFile none", "UsePAM no",
            "StrictModes no", "PasswordAuthentication no", "KbdInteractiveAuthentication no",
            "PermitRootLogin prohibit-password", "LogLevel ERROR",
            f"SetEnv PATH={self.path} ROOM={self.room}"
            f" HOME={self.home}",  # nobody's start-up files
            *self.more, "",
        ]))  # fmt: skip
        with (self.home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.binary, "-D", "-e", "-f", str(config)], stdin=subprocess.DEVNULL, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        for _ in range(200):
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return self
            if self._process.poll() is not None:
                break
            threading.Event().wait(0.02)
        raise RuntimeError((self.home / "log").read_text())

    def stop(self) -> None:
        """End it with all its connections."""
        process, self._process = self._process, None
        if process is not None:
            for pid in self.children(process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.kill()
            process.wait()

    def drop(self) -> int:
        """Cut all connections; it goes on to take new ones. Return how many."""
        assert self._process
        pids = self.children(self._process.pid)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(pids)

    @staticmethod
    def children(pid: int) -> list[int]:
        """All processes below one, deepest first."""
        found: list[int] = []
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            for path in Path(f"/proc/{pid}/task").glob("*/children"):
                for child in map(int, path.read_text().split()):
                    found += [*Sshd.children(child), child]
        return found

    def login(self, name: str = "user") -> Login:
        return key_file(self.home / name)

    def remote(self, **how: object) -> Remote:
        """A connection to it that is not open yet."""
        given: dict[str, object] = {
            "place": Place("127.0.0.1", USER, self.port), "dial": direct("127.0.0.1", self.port),
            "logins": [self.login()], "host_keys": HostKeys((self.host_key,)), **how,
        }  # fmt: skip
        return Remote(**given)  # type: ignore[arg-type]
