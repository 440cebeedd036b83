# SPDX-License-Identifier: Apache-2.0
"""One SSH connection to a host under investigation: commands and streams, told as they are.

    remote = Remote(Place("10.0.0.5", "admin"), direct("10.0.0.5", 22), logins, HostKeys())
    remote.open()                      connect, log in, look what the account may do
    remote.run("uname -a", "kernel")   small answers
    with remote.stream("dd if=/proc/kcore …", "memory", root=True) as s:
        while chunk := s.read(): ...

An end of a stream is believed only with its exit status; silence is a stall, a dead connection is
lost: three errors, never a short answer. Nothing is written on the host, no terminal is asked for
(it would change binary bytes), one session at a time (a host may permit no more). Every connection,
command, count of bytes and exit code stands in the footprint.

Facts that shape it: GCM first (paramiko offers it last, and it is the fastest); windows of 8 MiB (2
MiB cap a link of 50 ms at 37 MB/s); no rekey before 32 GiB (paramiko's own at 512 MiB stalled or
failed in 7 of 22 transfers); a rekey that the host wants and that stalls is a stall like any other.

Source: RFC 4253, 4254 (channels, exit-status), 4344; sudo(8), sudoers(5) requiretty; sshd_config(5)
MaxSessions, ForceCommand; paramiko issues 49, 175, 926, 2438.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from acquisition.closing import Closing
from acquisition.errors import AcquisitionError
from acquisition.footprint import Footprint
from acquisition.login import HostKeyError, HostKeys, Login, LoginError, Trust, fingerprint
from acquisition.reach import Dial, UnreachableError
from evidence_store.model import clean

if TYPE_CHECKING:
    from paramiko import Channel, Transport

WINDOW_BYTES = 8 << 20
REKEY_BYTES = 1 << 35
STALL_SECONDS = 30.0
READ_BYTES = 1 << 20
_WITHIN_SECONDS = 120.0  # a small answer
_STATUS_SECONDS = 10.0  # exit status after the end of the data
_SLICE_SECONDS = 0.1  # of waiting for output, between looks at standard error
_MAX_ERR_BYTES = 64 << 10
_CIPHERS = (
    "aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr",
)  # fmt: skip
_OPENINGS = (0.0, 0.05, 0.2, 0.5, 1.0, 2.0)  # waits: a session that just closed may still count

log = logging.getLogger(__name__)
# What fails in a connection is raised here; its own threads would print it too, with a traceback.
logging.getLogger("paramiko").addHandler(logging.NullHandler())


class LostError(AcquisitionError):
    """The connection is gone; what came before stands. It can be opened again."""


class StalledError(LostError):
    """No byte came for `STALL_SECONDS`, and nobody said that there is an end."""


class ShellError(AcquisitionError):
    """The account gives no usable shell: a forced command, text printed before each answer."""


class SudoError(AcquisitionError):
    """The account may not become root, or not without a password or terminal."""


@dataclass(frozen=True)
class Place:
    """Whom we log in to, for messages and footprint."""

    host: str
    user: str
    port: int = 22

    def __str__(self) -> str:
        return f"{self.user}@{self.host}" + (f":{self.port}" if self.port != 22 else "")


@dataclass(frozen=True)
class Ran:
    """What a command came to.

    Attributes:
        out: standard output, the first bytes of it.
        err: standard error as text, the first of it.
        code: exit status; None if a signal ended it, or it was cut.
        cut: there was more output than wanted; the command was ended.
    """

    out: bytes
    err: str
    code: int | None
    cut: bool = False


@dataclass
class Remote(Closing):
    """One host. Not for several threads at once.

    Attributes:
        place: host and user.
        dial: makes a connection to it.
        logins: in the order to try.
        host_keys: whom we expect.
        sudo_password: for `sudo`; goes by standard input, is written nowhere.
        stall_s: silence that counts as a stall.
        stop: set, it ends waits for the host.
        trust, host_key, login, cipher: of the connection that is open.
        root: "" is root already, `sudo`, or None: the account cannot become root (`why_not_root`).
    """

    place: Place
    dial: Dial
    logins: Sequence[Login]
    host_keys: HostKeys
    footprint: Footprint = field(default_factory=Footprint)
    sudo_password: str | None = field(default=None, repr=False)
    stall_s: float = STALL_SECONDS
    trust: Trust | None = None
    host_key: str = ""
    login: str = ""
    cipher: str = ""
    root: str | None = None
    why_not_root: str = ""
    connections: int = 0
    stop: threading.Event = field(default_factory=threading.Event, repr=False)
    _transport: Transport | None = field(default=None, repr=False)

    # -- connection ------------------------------------------------------------------------------

    def open(self) -> Self:
        """Connect, log in, and look what the account may do.

        Raises: UnreachableError, HostKeyError, LoginError, ShellError, LostError.
        """
        self.ensure()
        self._check_shell()
        self._look_for_root()
        return self

    def ensure(self) -> None:
        """Connect and log in, unless that holds. Raises: as `open`."""
        if self._transport is not None and self._transport.is_active():
            return
        self.close()
        act = self.footprint.begin("connect", to=str(self.place))
        try:
            transport = self._connect()
        except AcquisitionError as e:
            self.footprint.end(act, outcome="failed", error=str(e))
            raise
        self._transport = transport
        self.connections += 1
        self.footprint.end(
            act, outcome="connected", login=self.login, host_key=fingerprint(self.host_key),
            trust=self.trust, cipher=self.cipher, server=clean(transport.remote_version, 200),
        )  # fmt: skip

    def _connect(self) -> Transport:
        from paramiko import SSHException, Transport

        stream = self.dial()
        try:
            transport = Transport(stream, default_window_size=WINDOW_BYTES)  # type: ignore[arg-type]
            transport.packetizer.REKEY_BYTES = REKEY_BYTES
            options = transport.get_security_options()
            options.ciphers = [c for c in _CIPHERS if c in transport._cipher_info]  # type: ignore[attr-defined]
            if wanted := self.host_keys.algorithms():
                options.key_types = list(wanted)
            try:
                transport.start_client(timeout=self.stall_s)
                self._judge(transport)
                self._log_in(transport)
            except (SSHException, EOFError, OSError) as e:
                said = clean(str(e) or type(e).__name__, 200)
                raise UnreachableError(
                    f"no SSH connection to {self.place}: {said}",
                    hint="an sshd that answers, with AES ciphers and a modern key exchange?",
                ) from e
        except BaseException:
            with contextlib.suppress(UnboundLocalError):
                transport.close()
            stream.close()
            raise
        transport.set_keepalive(15)
        self.cipher = str(transport.remote_cipher)  # type: ignore[attr-defined]
        return transport

    def _judge(self, transport: Transport) -> None:
        key = transport.get_remote_server_key()
        offered = f"{key.get_name()} {key.get_base64()}"
        if self.host_key and offered != self.host_key:
            raise HostKeyError(
                f"{self.place} showed {fingerprint(self.host_key)} before, and now "
                f"{fingerprint(offered)}",
                hint="somebody may answer in its place: nothing more was sent",
            )
        trust = self.host_keys.judge(offered)
        self.trust, self.host_key = self.trust or trust, offered

    def _log_in(self, transport: Transport) -> None:
        from paramiko import AuthenticationException, BadAuthenticationType

        failed = []
        for login in self.logins:
            if not transport.is_active():
                failed.append("the host closed the connection: too many attempts")
                break
            try:
                key = login.key(self.place.user)
                if transport.auth_publickey(self.place.user, key):
                    failed.append(f"{login.name}: the host wants a second factor")
                    continue
            except BadAuthenticationType as e:
                failed.append(f"{login.name}: the host takes only {', '.join(e.allowed_types)}")
            except AuthenticationException:
                failed.append(f"{login.name}: refused")
            except LoginError as e:
                failed.append(f"{login.name}: {e}")
            else:
                self.login = login.name
                return
        said = "; ".join(failed) or "no login method is set"
        raise LoginError(
            f"cannot log in as {self.place}: {said}",
            hint="methods: EC2 Instance Connect on the instance, ssh.ca_key, --key; user: --user",
        )

    def close(self) -> None:
        """Close the connection."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()

    def forward(self, host: str, port: int) -> Channel:
        """Let this host connect to another. Raises: UnreachableError."""
        from paramiko import SSHException

        act = self.footprint.begin("forward", to=f"{host}:{port}")
        try:
            made = self._live().open_channel(
                "direct-tcpip", (host, port), ("127.0.0.1", 0), window_size=WINDOW_BYTES,
                timeout=self.stall_s,
            )  # fmt: skip
        except (SSHException, EOFError) as e:
            self.footprint.end(act, outcome="failed", error=str(e))
            raise UnreachableError(
                f"{self.place} does not connect to {host} port {port}: {clean(str(e), 200)}",
                hint="AllowTcpForwarding on the jump host, and the groups from there",
            ) from e
        self.footprint.end(act, outcome="connected")
        return made

    def _live(self) -> Transport:
        if self._transport is None or not self._transport.is_active():
            raise LostError(f"the connection to {self.place} is lost")
        return self._transport

    # -- what the account may do -----------------------------------------------------------------

    def _check_shell(self) -> None:
        word = secrets.token_hex(8)
        ran = self.run(f"echo {word}", "does the account run commands, and nothing else")
        if ran.out == f"{word}\n".encode() and ran.code == 0:
            return
        if word.encode() in ran.out:
            raise ShellError(
                f"the shell of {self.place} prints text before each answer",
                hint="its start-up files write to non-interactive sessions; use another account",
            )
        said = clean((ran.out or ran.err.encode()).decode("utf-8", "replace"), 120)
        raise ShellError(
            f"{self.place} does not run commands (a forced command, or no shell): {said!r}",
            hint="use a key or account without command=, ForceCommand or nologin",
        )

    def _look_for_root(self) -> None:
        if self.run("id -u", "is the account root").out.strip() == b"0":
            self.root, self.why_not_root = "", ""
            return
        self.root = "sudo"
        ran = self.run("true", "may the account become root", root=True)
        if ran.code == 0:
            return
        self.root = None
        said = clean(ran.err, 200)
        self.why_not_root = f"{self.place} may not become root: {said or f'exit {ran.code}'}"

    def need_root(self) -> None:
        """Raises: SudoError unless commands can be run as root."""
        if self.root is not None:
            return
        said = self.why_not_root
        if "must have a tty" in said or "no tty present" in said:
            hint = "sudo demands a terminal, which changes binary bytes: Defaults:USER !requiretty"
        elif "password" in said and self.sudo_password is None:
            hint = "give its sudo password by --sudo-password or --sudo-password-fd"
        elif "password" in said or "try again" in said:
            hint = "the sudo password is wrong; it was tried once"
        else:
            hint = "sudo -n for this account, or log in as root with --user root"
        raise SudoError(said, hint=hint)

    # -- commands --------------------------------------------------------------------------------

    def run(
        self, command: str, why: str, *, root: bool = False, limit: int = READ_BYTES,
        stdin: bytes = b"", within_s: float = _WITHIN_SECONDS,
    ) -> Ran:  # fmt: skip
        """Run a command to its end and return the first `limit` bytes of what it says.

        Args:
            command: for the account's shell.
            why: for the footprint.
            root: prefix it by sudo, where that is needed; it must be one simple command.
            limit: bytes of output after which it is cut.
            stdin: its standard input; not kept in the footprint.
            within_s: seconds after which it is cut, however much it still says.

        Raises: LostError, StalledError, SudoError.
        """
        parts: list[bytes] = []
        size, deadline = 0, time.monotonic() + within_s
        with self.stream(command, why, root=root, stdin=stdin) as s:
            while size <= limit and time.monotonic() < deadline:
                chunk = s.read()
                if not chunk:
                    return Ran(b"".join(parts), s.err, s.code)
                parts.append(chunk)
                size += len(chunk)
            s.cut()
            return Ran(b"".join(parts)[:limit], s.err, None, cut=True)

    @contextlib.contextmanager
    def stream(
        self, command: str, why: str, *, root: bool = False, pipe: str = "", stdin: bytes = b"",
    ) -> Iterator[Output]:  # fmt: skip
        """Run a command and read what it says as it comes. It ends with the `with`.

        `pipe`: a command (not as root) that its output goes through. Otherwise as `run`.

        Raises: LostError, SudoError.
        """
        text = self._text(command, root=root, pipe=pipe)
        act = self.footprint.begin("command", command=text, why=why, root=root)
        made: Output | None = None
        try:
            channel = self._session()
            made = Output(self, channel, self.stall_s)
            self._start(channel, text, root=root, stdin=stdin)
            yield made
        except BaseException as e:
            ended = made.ended if made else ""
            self.footprint.end(act, outcome=ended or "broken", error=clean(
                f"{type(e).__name__}: {e}", 200), **(made.counts if made else {}))  # fmt: skip
            raise
        else:
            self.footprint.end(act, outcome=made.ended or "cut", code=made.code, **made.counts)
        finally:
            if made:
                made.close()

    def _text(self, command: str, *, root: bool, pipe: str) -> str:
        if root and self.root is None:
            self.need_root()
        sudo = ""
        if root and self.root:
            sudo = "sudo -n " if self.sudo_password is None else "sudo -S -p '' "
        return sudo + command + (f" | {pipe}" if pipe else "")

    def _start(self, channel: Channel, text: str, *, root: bool, stdin: bytes) -> None:
        from paramiko import SSHException

        try:
            channel.exec_command(text)
            if root and self.root and self.sudo_password is not None:
                stdin = self.sudo_password.encode() + b"\n" + stdin
            if stdin:
                channel.sendall(stdin)
            channel.shutdown_write()
        except (SSHException, EOFError, OSError) as e:
            if not self._alive():
                raise LostError(f"the connection to {self.place} is lost") from e
            raise ShellError(f"{self.place} runs no commands: {clean(str(e), 200)}") from e

    def _session(self) -> Channel:
        from paramiko import ChannelException, SSHException

        error: Exception | None = None
        for wait in _OPENINGS:
            time.sleep(wait)
            try:
                made = self._live().open_session(window_size=WINDOW_BYTES, timeout=self.stall_s)
            except ChannelException as e:
                error = e
            except (SSHException, EOFError, OSError) as e:
                if self._alive():
                    raise StalledError(
                        f"{self.place} opens no session: {clean(str(e), 200)}"
                    ) from e
                raise LostError(f"the connection to {self.place} is lost") from e
            else:
                return made
        raise ShellError(
            f"{self.place} opens no session: {clean(str(error), 200)}",
            hint="MaxSessions of its sshd permits none",
        ) from error

    def _alive(self) -> bool:
        return self._transport is not None and self._transport.is_active()

    def duplex(self, command: str, why: str, *, root: bool = False) -> Duplex:
        """Run a command that is spoken to while it runs (a server). Close it."""
        text = self._text(command, root=root, pipe="")
        act = self.footprint.begin("command", command=text, why=why, root=root)
        channel = self._session()
        made = Duplex(self, channel, self.stall_s, act)
        from paramiko import SSHException

        try:
            channel.exec_command(text)
            if root and self.root and self.sudo_password is not None:
                channel.sendall(self.sudo_password.encode() + b"\n")
        except (SSHException, EOFError, OSError) as e:
            made.close()
            raise LostError(f"the connection to {self.place} is lost") from e
        return made


class Output:
    """What a running command says."""

    def __init__(self, remote: Remote, channel: Channel, stall_s: float) -> None:
        self._remote = remote
        self._channel = channel
        self._stall_s = stall_s
        self._err = bytearray()
        self._err_bytes = 0
        self.received = 0
        self.code: int | None = None
        self.ended = ""

    @property
    def err(self) -> str:
        """Standard error so far, as text."""
        self._drain()
        return self._err.decode("utf-8", "replace")

    @property
    def counts(self) -> dict[str, Any]:
        """Bytes received, for the footprint."""
        return {"out_bytes": self.received, "err_bytes": self._err_bytes}

    def read(self, size: int = READ_BYTES) -> bytes:
        """Return the next bytes; b"" at the end, with `code` set.

        Raises: StalledError, LostError.
        """
        if self.ended:
            return b""
        data = self._receive(size)
        self._drain()
        self.received += len(data)
        if not data:
            self._end()
        return data

    def _receive(self, size: int) -> bytes:
        """Wait for output. What comes on standard error is taken, and is a sign of life."""
        until = time.monotonic() + self._stall_s
        while True:
            self._channel.settimeout(_SLICE_SECONDS)
            with self._sending(), contextlib.suppress(TimeoutError):
                return self._channel.recv(size)
            if self._remote.stop.is_set():
                self.ended = "cut"
                raise LostError("this run was ended")
            if self._drain():
                until = time.monotonic() + self._stall_s
            elif time.monotonic() >= until:
                break
        self.ended = "stalled"
        if not self._remote._alive():
            raise LostError(f"the connection to {self._remote.place} is lost")
        raise StalledError(f"{self._remote.place} said nothing for {self._stall_s:.0f} s")

    @contextlib.contextmanager
    def _sending(self) -> Iterator[None]:
        """Say plainly that the connection is lost: to read is also to send (the window grows)."""
        from paramiko import SSHException

        try:
            yield
        except (SSHException, EOFError, OSError) as e:
            self.ended = "lost"
            raise LostError(f"the connection to {self._remote.place} is lost") from e

    def _end(self) -> None:
        """Tell the end of a command from the end of the connection."""
        channel = self._channel
        if not channel.status_event.wait(_STATUS_SECONDS) or channel.exit_status == -1:
            if not self._remote._alive() or not channel.eof_received:
                self.ended = "lost"
                raise LostError(f"the connection to {self._remote.place} is lost")
            self.ended = "no exit status"
            self._drain()
            return
        self.code = channel.exit_status
        self.ended = "ended"
        self._drain()

    def _drain(self) -> bool:
        """Take what came on standard error, so that it cannot fill the window; tell if any did."""
        before = self._err_bytes
        while self._channel.recv_stderr_ready():
            with self._sending():
                data = self._channel.recv_stderr(READ_BYTES)
            if not data:
                break
            self._err_bytes += len(data)
            self._err += data[: max(0, _MAX_ERR_BYTES - len(self._err))]
        return self._err_bytes > before

    def cut(self) -> None:
        """End the command: no more is wanted."""
        self.ended = self.ended or "cut"
        self.close()

    def close(self) -> None:
        """Close the session; one whose connection is lost is closed."""
        from paramiko import SSHException

        with contextlib.suppress(SSHException, EOFError, OSError):
            self._channel.close()


class Duplex(Output):
    """A command that is spoken to while it runs."""

    def __init__(self, remote: Remote, channel: Channel, stall_s: float, act: int) -> None:
        super().__init__(remote, channel, stall_s)
        self._act = act
        self._open = True

    def write(self, data: bytes) -> None:
        """Send it all. Raises: LostError."""
        with self._sending():
            self._channel.sendall(data)

    def exactly(self, size: int) -> bytes:
        """Return that many bytes. Raises: LostError, StalledError; also if it ends before."""
        parts, left = [], size
        while left:
            data = self.read(left)
            if not data:
                said = clean(self.err, 200)
                raise LostError(f"the command on {self._remote.place} ended early: {said}")
            parts.append(data)
            left -= len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Close the session, and note what passed."""
        super().close()
        if self._open:
            self._open = False
            self._remote.footprint.end(
                self._act, outcome=self.ended or "closed", code=self.code, **self.counts
            )


def shell(script: str) -> str:
    """Return a shell script as one simple command, for `root=True`.

    >>> shell("ls /proc | wc -l")
    "sh -c 'ls /proc | wc -l'"
    """
    return f"sh -c {shlex.quote(script)}"


def again(
    remote: Remote, work: Callable[[], Any], *, patience_s: float,
    sleep: Callable[[float], None] = time.sleep, clock: Callable[[], float] = time.monotonic,
    say: Callable[[str], None] = lambda _line: None,
) -> Any:  # fmt: skip
    """Do `work`; if the connection is lost, open it anew and do it again, for so many seconds.

    Raises: LostError or UnreachableError once patience ends; what else `work` raises.
    """
    since: float | None = None
    wait = 0.5
    while True:
        try:
            remote.ensure()
            return work()
        except (LostError, UnreachableError) as e:
            now = clock()
            since = now if since is None else since
            if now - since >= patience_s:
                raise
            say(f"{e}; trying again")
            remote.close()
            sleep(min(wait, max(0.0, patience_s - (now - since))))
            wait = min(wait * 2, 15.0)
