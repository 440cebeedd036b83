# SPDX-License-Identifier: Apache-2.0
"""The filter of system calls by itself."""

from __future__ import annotations

import ctypes
import errno
import os
import socket

import pytest

from evidence_store import seccomp


def filtered(act) -> str:
    """Return the error of `act` behind the filter ("" if none), in a fork."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        error = "died"
        try:
            ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
            error = seccomp.refuse_sockets()
            if not error:
                act()
        except OSError as e:
            error = errno.errorcode[e.errno or 0]
        finally:
            os.write(writer, error.encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as f:
        error = f.read()
    os.waitpid(pid, 0)
    if error.startswith("no filter"):
        pytest.skip(error)
    return error


def io_uring():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(425, 1, ctypes.create_string_buffer(120)) < 0:
        raise OSError(ctypes.get_errno(), "io_uring_setup")


@pytest.mark.parametrize(
    "act",
    [
        lambda: socket.socket(socket.AF_UNIX),
        lambda: socket.socket(socket.AF_INET),
        lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
        socket.socketpair,
        io_uring,
    ],
    ids=["unix", "inet", "netlink", "pair", "io_uring"],
)
def test_new_sockets_are_refused(act):
    assert filtered(act) == "EPERM"


def test_an_open_socket_is_not_connected_anew(tmp_path):
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(tmp_path / "s"))
        server.listen()
        assert filtered(lambda: client.connect(str(tmp_path / "s"))) == "EPERM"


def test_open_sockets_and_descriptors_over_them_keep_working(tmp_path):
    (tmp_path / "f").write_text("x")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def act():
        _, fds, _, _ = socket.recv_fds(theirs, 10, 1)
        if os.pread(fds[0], 1, 0) != b"x":
            raise OSError(errno.EIO, "another file")

    with ours, theirs, (tmp_path / "f").open("rb") as f:
        socket.send_fds(ours, [b"1"], [f.fileno()])
        assert filtered(act) == ""


def test_machine_of_no_known_call_numbers_is_named(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "sparc64")
    assert seccomp.refuse_sockets() == "no filter of system calls for this sparc64"


def test_call_by_another_table_kills():
    pid = os.fork()
    if pid == 0:
        libc = ctypes.CDLL(None)
        libc.prctl(38, 1, 0, 0, 0)
        if seccomp.refuse_sockets():
            os._exit(99)
        libc.syscall(ctypes.c_long(0x40000000 + 39))  # getpid of x32
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code == 99:
        pytest.skip("no filter here")
    assert code == -31  # SIGSYS
