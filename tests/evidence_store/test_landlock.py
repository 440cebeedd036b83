# SPDX-License-Identifier: Apache-2.0
"""Landlock by itself, without the namespaces that would refuse the same things in a child."""

from __future__ import annotations

import errno
import os
import signal
import socket

import pytest

from evidence_store import landlock


def restricted(act) -> tuple[str, str]:
    """Return what `restrict` said, and the error of `act` after it ("" if none), in a fork."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        said, error = "?", ""
        try:
            # no_new_privs, without which only root may restrict itself.
            landlock.ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
            said = landlock.restrict(["/usr", "/nowhere", "/etc/localtime"], ".")
            act()
        except OSError as e:
            error = errno.errorcode[e.errno or 0]
        finally:
            os.write(writer, f"{said}|{error}".encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as f:
        said, error = f.read().split("|")
    os.waitpid(pid, 0)
    if said.startswith("not limited"):
        pytest.skip(said)
    return said, error


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def abi() -> int:
    return landlock._call(444, None, 0, 1)


def test_tcp_is_refused_even_with_a_network():
    with socket.create_server(("127.0.0.1", 0)) as server:
        _, error = restricted(lambda: socket.create_connection(server.getsockname()))
    assert error == "EACCES" or abi() < 4


def test_listening_on_a_tcp_port_is_refused():
    _, error = restricted(lambda: socket.create_server(("127.0.0.1", 0)))
    assert error == "EACCES" or abi() < 4


def test_abstract_socket_of_another_is_refused():
    name = f"\0impound-landlock-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(name)
        server.listen()
        _, error = restricted(lambda: client.connect(name))
    assert error == "EPERM" or abi() < 6


def test_signal_to_another_is_refused():
    _, error = restricted(lambda: os.kill(os.getppid(), signal.SIGCONT))
    assert error == "EPERM" or abi() < 6


def test_open_descriptors_keep_working(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "own").mkdir()
    path = tmp_path / "outside/file"
    path.write_text("x")
    os.chdir(tmp_path / "own")
    with path.open("r+b") as f:
        assert restricted(lambda: os.pread(f.fileno(), 1, 0))[1] == ""
        assert restricted(lambda: os.open(path, os.O_RDONLY))[1] == "EACCES"


def test_kernel_without_landlock_is_named(monkeypatch):
    def refuse(*_arguments):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(landlock, "_call", refuse)
    assert landlock.restrict([], ".") == "not limited: no Landlock (Function not implemented)"


@pytest.mark.parametrize(
    ("version", "handled", "ports", "scopes", "said"),
    [
        (1, 0x1FFF, 0, 0, "own folder only, but any file can be truncated (Landlock ABI 1)"),
        (3, 0x7FFF, 0, 0, "own folder only"),
        (4, 0x7FFF, 3, 0, "own folder only"),
        (7, 0xFFFF, 3, 3, "own folder only"),
        (99, 0x1FFFF, 3, 3, "own folder only"),
    ],
)
def test_asks_of_each_kernel_what_it_knows(monkeypatch, version, handled, ports, scopes, said):
    asked = []

    def call(number, *arguments):
        if number == 444 and arguments[2] == 1:
            return version
        asked.append((number, *arguments))
        return os.open("/dev/null", os.O_RDONLY) if number == 444 else 0

    monkeypatch.setattr(landlock, "_call", call)
    assert landlock.restrict(["/usr"], ".") == said
    assert landlock.struct.unpack("=QQQ", asked[0][1]) == (handled, ports, scopes)
    for _, _, _, rule, _ in asked[1:-1]:
        rights, _ = landlock.struct.unpack("=Qi", rule)
        assert rights & ~handled == 0
