# SPDX-License-Identifier: Apache-2.0
"""SSH against a real sshd: what it refuses, how it fails, and what the footprint says of it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading

import pytest
from paramiko import SSHException

from acquisition import remote as module
from acquisition.footprint import Footprint, acts
from acquisition.login import HostKeyError, HostKeys, LoginError, fingerprint, key_file
from acquisition.reach import UnreachableError, direct, through
from acquisition.remote import (
    LostError,
    Place,
    ShellError,
    StalledError,
    SudoError,
    again,
    shell,
)
from tests.sshd import USER, Sshd


@pytest.fixture
def host(sshd):
    """A connection that is open."""
    with sshd.remote().open() as made:
        yield made


def test_command_output_error_and_exit_code_are_told(host):
    ran = host.run("printf a; printf b >&2; exit 7", "test")
    assert (ran.out, ran.err, ran.code, ran.cut) == (b"a", "b", 7, False)


def test_gcm_is_the_cipher_and_no_rekey_comes_before_32_gib(host):
    assert host.cipher == "aes128-gcm@openssh.com"
    assert host._transport.packetizer.REKEY_BYTES == 1 << 35


def test_binary_bytes_pass_unchanged(host, sshd):
    body = bytes(range(256)) * 4096
    (sshd.room / "x").write_bytes(body)
    with host.stream("cat $ROOM/x", "test") as s:
        got = b"".join(iter(s.read, b""))
        assert s.code == 0
    assert got == body


def test_endless_output_is_cut(host):
    ran = host.run("yes", "test", limit=10_000)
    assert ran.cut
    assert len(ran.out) == 10_000
    assert host.run("echo on", "test").out == b"on\n"


def test_slow_drip_is_cut_in_time(host):
    ran = host.run("while :; do echo; sleep 0.05; done", "test", within_s=0.3)
    assert ran.cut


def test_flood_of_errors_neither_blocks_nor_fills_memory(host):
    ran = host.run("head -c 30000000 /dev/zero >&2; echo done", "test")
    assert ran.out == b"done\n"
    assert len(ran.err) <= 64 << 10
    assert host.footprint.acts[-1]["err_bytes"] == 30_000_000


def test_standard_input_reaches_the_command_and_not_the_footprint(host):
    assert host.run("cat", "test", stdin=b"secret").out == b"secret"
    assert b"secret" not in b"".join(host.footprint.lines)


# -- who the host is


def test_pinned_key_is_trusted_and_stated(sshd):
    with sshd.remote().open() as r:
        assert r.trust == "pinned"
    with sshd.remote(host_keys=HostKeys((fingerprint(sshd.host_key),))).open() as r:
        assert r.trust == "pinned"


def test_first_use_is_stated_and_remembered(sshd):
    with sshd.remote(host_keys=HostKeys()).open() as r:
        assert (r.trust, r.host_key) == ("first-use", sshd.host_key)


def test_changed_host_key_stops_before_login(sshd, tmp_path):
    other = Sshd(tmp_path / "other")
    with (
        pytest.raises(HostKeyError, match="pinned is"),
        sshd.remote(host_keys=HostKeys((other.host_key,))) as r,
    ):
        r.open()
    with (
        pytest.raises(HostKeyError, match="changed"),
        sshd.remote(host_keys=HostKeys(known=other.host_key)) as r,
    ):
        r.open()
    said = r.footprint.acts
    assert [a["outcome"] for a in said] == ["failed"]


def test_unknown_host_key_stops_where_strict(sshd):
    with (
        pytest.raises(HostKeyError, match="unknown"),
        sshd.remote(host_keys=HostKeys(strict=True)) as r,
    ):
        r.open()


def test_another_key_at_a_reconnect_stops(sshd, tmp_path):
    with sshd.remote(host_keys=HostKeys()).open() as r:
        sshd.stop()
        for name in ("host", "host.pub"):
            (sshd.home / name).unlink()
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", sshd.home / "host"],
                       check=True)  # fmt: skip
        sshd.start()
        with pytest.raises(HostKeyError, match="before"):
            r.ensure()


# -- who we are


def test_ladder_names_what_each_rung_failed_with(sshd, tmp_path):
    wrong = tmp_path / "wrong"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", wrong], check=True)
    logins = [key_file(tmp_path / "none"), key_file(wrong)]
    with pytest.raises(LoginError) as e, sshd.remote(logins=logins) as r:
        r.open()
    assert "No such file" in str(e.value)
    assert "refused" in str(e.value)
    with sshd.remote(logins=[*logins, sshd.login()]).open() as r:
        assert r.login == "key"


def test_key_with_a_passphrase_asks_for_it(sshd):
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", "open sesame", "-f", sshd.home / "user"],
                   check=True)  # fmt: skip
    with pytest.raises(LoginError, match="passphrase"), sshd.remote() as r:
        r.open()
    login = key_file(sshd.home / "user", lambda: "open sesame")
    with sshd.remote(logins=[login]).open() as r:
        assert r.login == "key"


def test_certificate_of_a_trusted_authority_logs_in(sshd, tmp_path):
    authority, key = tmp_path / "ca", tmp_path / "ir"
    for path in (authority, key):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    subprocess.run(["ssh-keygen", "-q", "-s", authority, "-I", "ir", "-n", USER, f"{key}.pub"],
                   check=True)  # fmt: skip
    login = key_file(key, certificate=tmp_path / "ir-cert.pub")
    with pytest.raises(LoginError), sshd.remote(logins=[login]) as r:
        r.open()
    sshd.stop()
    sshd.more.append(f"TrustedUserCAKeys {authority}.pub")
    sshd.start()
    with sshd.remote(logins=[login]).open() as r:
        assert r.login == "certificate"


# -- what the account may do


@pytest.fixture
def ordinary(sshd):
    sshd.unprivileged()
    return sshd


def test_sudo_without_password(ordinary):
    with ordinary.remote().open() as r:
        assert r.root == "sudo"
        assert r.run("echo x", "test", root=True).out == b"x\n"
        assert r.run(shell("echo a | wc -l"), "test", root=True).out.strip() == b"1"


def test_sudo_password_is_used_and_written_nowhere(ordinary):
    (ordinary.room / "password").write_text("tr0ub4dor")
    with ordinary.remote().open() as r, pytest.raises(SudoError, match="password") as e:
        r.need_root()
    assert "--sudo-password" in e.value.hint
    with ordinary.remote(sudo_password="tr0ub4dor").open() as r:
        assert r.run("cat", "test", root=True, stdin=b"rest").out == b"rest"
        assert b"tr0ub4dor" not in b"".join(r.footprint.lines)
        assert "tr0ub4dor" not in repr(r)
    assert "tr0ub4dor" not in (ordinary.room / "sudo.log").read_text()


def test_wrong_sudo_password_is_tried_once(ordinary):
    (ordinary.room / "password").write_text("right")
    with ordinary.remote(sudo_password="wrong").open() as r:
        for _ in range(3):
            with pytest.raises(SudoError) as e:
                r.run("true", "test", root=True)
            assert "tried once" in e.value.hint
    assert len((ordinary.room / "sudo.log").read_text().splitlines()) == 1


def test_requiretty_is_refused_with_the_reason(ordinary):
    (ordinary.room / "requiretty").touch()
    with ordinary.remote().open() as r, pytest.raises(SudoError) as e:
        r.need_root()
    assert "requiretty" in e.value.hint


def test_forced_command_is_recognised(sshd):
    key = (sshd.home / "user.pub").read_text()
    (sshd.home / "authorized").write_text(f'command="echo rsync only" {key}')
    with pytest.raises(ShellError, match="forced command"), sshd.remote() as r:
        r.open()


def test_shell_that_prints_a_greeting_is_recognised(sshd):
    (sshd.home / ".bashrc").write_text("echo welcome\n")
    sshd.stop()
    sshd.more.append(f'ForceCommand echo welcome; eval "$SSH_ORIGINAL_COMMAND"')  # noqa: F541
    sshd.start()
    with pytest.raises(ShellError, match="prints text"), sshd.remote() as r:
        r.open()


def test_one_session_at_a_time_is_enough(sshd):
    sshd.stop()
    sshd.more.append("MaxSessions 1")
    sshd.start()
    with sshd.remote().open() as r:
        for _ in range(10):
            assert r.run("echo x", "test").code == 0


def test_no_session_at_all_is_said(sshd, monkeypatch):
    monkeypatch.setattr(module, "_OPENINGS", (0.0, 0.01))
    sshd.stop()
    sshd.more.append("MaxSessions 0")
    sshd.start()
    with pytest.raises(ShellError) as e, sshd.remote() as r:
        r.open()
    assert "MaxSessions" in e.value.hint


# -- links that fail


def test_closed_port_is_named(sshd):
    sshd.stop()
    with pytest.raises(UnreachableError, match="refuses"), sshd.remote() as r:
        r.open()


def test_what_is_no_ssh_server_is_said():
    with socket.create_server(("127.0.0.1", 0)) as s:

        def serve() -> None:
            c, _ = s.accept()
            with c:
                c.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 100)

        thread = threading.Thread(target=serve)
        thread.start()
        port = s.getsockname()[1]
        r = module.Remote(Place("127.0.0.1", "x", port), direct("127.0.0.1", port), [], HostKeys())
        with pytest.raises(UnreachableError, match="no SSH connection"):
            r.open()
        thread.join()


def test_cut_connection_is_lost_never_an_end(host, sshd):
    def read():
        with host.stream("cat /dev/zero", "test") as s:
            s.read()
            sshd.drop()
            while s.read():
                pass

    with pytest.raises(LostError):
        read()
    act = host.footprint.acts[-1]
    assert act["outcome"] == "lost"
    assert act["out_bytes"] > 0


@pytest.mark.parametrize("error", [EOFError(), OSError("reset"), SSHException("gone")])
@pytest.mark.parametrize("call", ["recv", "recv_stderr", "sendall", "close"])
def test_connection_lost_while_the_window_grows(host, monkeypatch, error, call):
    """To read is also to send (RFC 4254 §5.2), so that reading fails as sending does."""

    def fail(*_args):
        raise error

    with contextlib.closing(host.duplex("cat", "test")) as s:
        s.write(b"b")
        assert s.read(1) == b"b"
        monkeypatch.setattr(s._channel, call, fail)
        monkeypatch.setattr(s._channel, "recv_stderr_ready", lambda: call == "recv_stderr")
        if call == "close":
            return
        with pytest.raises(LostError):
            {"recv": s.read, "sendall": lambda: s.write(b"c")}.get(call, lambda: s.err)()
    assert host.footprint.acts[-1]["outcome"] == "lost"


def test_silence_is_a_stall_never_an_end(sshd):
    with sshd.remote(stall_s=0.2) as r:
        r.ensure()
        with pytest.raises(StalledError):
            r.run("echo a; sleep 60", "test")
    assert r.footprint.acts[-1]["outcome"] == "stalled"


def test_killed_command_has_no_exit_code(host):
    ran = host.run("kill -9 $$", "test")
    assert ran.code is None
    assert not ran.cut


def test_lost_connection_is_opened_again(host, sshd):
    seen = []

    def work():
        if not seen:
            seen.append(1)
            sshd.drop()
        return host.run("echo x", "test").out

    assert again(host, work, patience_s=10, sleep=lambda _s: None) == b"x\n"
    assert host.connections == 2


def test_patience_with_a_lost_host_ends(host, sshd):
    sshd.stop()
    now = iter(range(0, 1000, 4))
    with pytest.raises((LostError, UnreachableError)):
        again(host, lambda: host.run("true", "x"), patience_s=20, sleep=lambda _s: None,
              clock=lambda: next(now))  # fmt: skip


def test_slow_link_and_a_rekey_by_the_host_lose_nothing(sshd):
    """The host wants new keys every few MiB: `RekeyLimit`, as some hardened images have it."""
    sshd.stop()
    sshd.more.append("RekeyLimit 4M")
    sshd.start()
    with sshd.remote().open() as r, r.stream("head -c 40000000 /dev/zero", "test") as s:
        assert sum(len(c) for c in iter(s.read, b"")) == 40_000_000
        assert s.code == 0


def test_jump_host_carries_what_it_cannot_read(sshd, tmp_path):
    inner = Sshd(tmp_path / "inner").start()
    try:
        with sshd.remote() as jump, inner.remote(dial=through(jump, "127.0.0.1", inner.port)) as r:
            r.open()
            assert r.run("cat $HOME/host.pub", "test").out.startswith(b"ssh-ed25519")
            assert r.host_key == inner.host_key
            assert jump.footprint.acts[-1]["what"] == "forward"
    finally:
        inner.stop()


# -- the footprint


def test_footprint_survives_a_kill(tmp_path):
    path = tmp_path / "f" / "one.jsonl"
    kept = Footprint(path)
    kept.begin("command", command="dd", why="test")
    kept.close()
    os.truncate(path, path.stat().st_size)
    with path.open("ab") as f:
        f.write(b'{"torn')
    found = acts(path.read_bytes().splitlines())
    assert [a["command"] for a in found] == ["dd"]
    assert "outcome" not in found[0]
    kept.done()
    assert not path.exists()


def test_every_command_its_bytes_and_exit_code_are_in_the_footprint(host):
    host.run("echo abc; exit 3", "the reason")
    act = host.footprint.acts[-1]
    assert (act["command"], act["why"], act["out_bytes"], act["code"]) == (
        "echo abc; exit 3", "the reason", 4, 3)  # fmt: skip
