# SPDX-License-Identifier: Apache-2.0
"""A PostgreSQL of its own on 127.0.0.1, without root's rights: Debian's binaries, an empty cluster.

with Postgres(folder) as server:
    psycopg.connect(server.url)
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self


def find_postgres() -> Path | None:
    """Folder of the newest server's programs, or None."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"),
                   key=lambda p: int(p.parent.parent.name))  # fmt: skip
    if found:
        return found[-1].parent
    path = shutil.which("postgres")
    return Path(path).resolve().parent if path else None


class Postgres:
    """One server process. It refuses to run as root, so root runs it as `nobody`."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._folder = Path(tempfile.mkdtemp(prefix="impound-pg-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._who: dict[str, Any] = {}
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self._folder, nobody.pw_uid, nobody.pw_gid)
            self._who = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.url = f"postgresql://impound@127.0.0.1:{self.port}/postgres"

    def __enter__(self) -> Self:
        subprocess.run(
            [self._programs / "initdb", "-D", self._folder / "data", "-U", "impound", "-A", "trust",
             "--no-sync", "--locale=C", "-E", "UTF8"],
            check=True, capture_output=True, cwd=self._folder, env=_ENV, **self._who,
        )  # fmt: skip
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.stop()
        shutil.rmtree(self._folder)

    def start(self) -> None:
        """Start it and wait until it answers."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._folder / "data", "-p", str(self.port),
                 "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=",
                 "-c", "fsync=off", "-c", "max_connections=200"],
                stdout=log, stderr=log, cwd=self._folder, env=_ENV, **self._who,
            )  # fmt: skip
        end = time.monotonic() + 60
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError((self._folder / "log").read_text())
            time.sleep(0.1)

    def _answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        """Stop it at once, as a crash would (`immediate`)."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(30)

    def empty(self) -> None:
        """Forget all that it holds."""
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as c:
            c.execute("drop schema if exists dbos cascade")
            c.execute("drop schema if exists impound cascade")


_ENV = {"PATH": "/usr/bin:/bin", "LANG": "C", "LC_ALL": "C"}
