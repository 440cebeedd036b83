# SPDX-License-Identifier: Apache-2.0
"""The local backend: the contract, with and without hard links, and what a directory can hold."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evidence_store.backend import Below, LocalBackend, Stored, UnfitObjectError, translate
from evidence_store.errors import AlreadyExistsError, StoreError, StoreFullError
from tests.evidence_store.backend_contract import BackendContract


class TestLocal(BackendContract):
    @pytest.fixture
    def backend(self, tmp_path):
        return LocalBackend(tmp_path / "store")


class TestLocalWithoutHardLinks(BackendContract):
    @pytest.fixture
    def backend(self, tmp_path, monkeypatch):
        def refuse(*_args, **_kwargs):
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
        backend = LocalBackend(tmp_path / "store")
        assert not backend.atomic_create
        return backend


@pytest.fixture
def backend(tmp_path):
    return LocalBackend(tmp_path / "store")


def test_atomic_create_is_tried_with_a_real_link(backend):
    assert backend.atomic_create
    assert list((backend.root / "tmp").iterdir()) == []


def test_no_temporary_file_is_left(backend):
    backend.create("a", b"x")
    with pytest.raises(AlreadyExistsError):
        backend.create("a", b"y")
    assert list((backend.root / "tmp").iterdir()) == []


def test_stored_files_are_read_only(backend):
    backend.create("a/b", b"x")
    assert (backend.root / "a" / "b").stat().st_mode & 0o777 == 0o440


def test_zero_runs_become_file_holes(backend):
    backend.create("k", b"x" * 65536 + bytes(8 << 20))
    assert (backend.root / "k").stat().st_blocks * 512 < 1 << 20


def put_link(path: Path) -> None:
    path.symlink_to("target")
    (path.parent / "target").write_bytes(b"x")


def put_socket(path: Path) -> None:
    here = os.open(path.parent, os.O_RDONLY)  # a short name: socket paths end at 108 bytes
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


@pytest.mark.parametrize("put", [put_link, os.mkfifo, os.mkdir, put_socket],
                         ids=["link", "pipe", "folder", "socket"])  # fmt: skip
def test_what_is_no_regular_file_is_never_opened(backend, put):
    backend.create("f/k", b"x")
    put(backend.root / "f" / "odd")
    with pytest.raises(UnfitObjectError):
        backend.read("f/odd", 10)
    assert "f/odd" not in [s.key for s in backend.list("f")]
    if put is not os.mkdir:
        assert list(backend.strays("f")) == ["f/odd"]


def test_names_out_of_form_are_strays(backend):
    backend.create("f/k", b"x")
    for name in (b"new\nline", b".hidden", b"\xff", "é".encode(), b"sp ace"):
        Path(os.fsdecode(os.fsencode(backend.root) + b"/f/" + name)).write_bytes(b"")
    assert [s.key for s in backend.list("f")] == ["f/k"]
    assert len(list(backend.strays("f"))) == 5


def test_folders_out_of_form_and_links_to_folders_are_none(backend):
    backend.create("c/a/x", b"x")
    for name in (".hidden", "new\nline", "sp ace"):
        (backend.root / "c" / name).mkdir()
    (backend.root / "c" / "link").symlink_to(backend.root / "c" / "a")
    assert list(backend.folders("c")) == ["a"]


def test_folders_does_not_look_below(backend, monkeypatch):
    for n in range(3):
        backend.create(f"c/{n}/deep/x", b"x")
    looked, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: looked.append(path) or scandir(path))
    assert len(list(backend.folders("c"))) == 3
    assert looked == [backend.root / "c"]


def test_leftovers_are_old_or_of_dead_processes_and_nothing_is_removed(backend):
    with subprocess.Popen([sys.executable, "-c", ""]) as done:
        pass
    backend.create("cases/x", b"x")
    tmp = backend.root / "tmp"
    mine, dead = f"{os.getpid()}-{'0' * 16}", f"{done.pid}-{'1' * 16}"
    for name in (mine, dead, f"{os.getpid()}-{'2' * 16}", "99999999999999999999-x", "someone's"):
        (tmp / name).write_bytes(b"12345")
    old = time.time() - 25 * 3600
    os.utime(tmp / f"{os.getpid()}-{'2' * 16}", (old, old))
    os.utime(tmp / "someone's", (old, old))
    (tmp / "link").symlink_to(backend.root / "cases")
    backend.create("k", b"torn")
    moved = backend.set_aside("k")
    before = sorted(tmp.iterdir())
    left = backend.leftovers()
    assert {s.key for s in left.temporary} == {
        f"tmp/{dead}", f"tmp/{os.getpid()}-{'2' * 16}", "tmp/someone's"}  # fmt: skip
    assert sum(s.size for s in left.temporary) == 15
    assert left.quarantine == [Stored(moved, 4)]
    assert sorted(tmp.iterdir()) == before


def test_a_new_store_has_no_leftovers(backend):
    left = backend.leftovers()
    assert (left.temporary, left.quarantine) == ([], [])


def test_set_aside_moves_and_never_deletes(backend):
    backend.create("cases/x/ledger/0", b"torn")
    moved = backend.set_aside("cases/x/ledger/0")
    assert moved.startswith("quarantine/")
    assert backend.read(moved, 10) == b"torn"
    assert list(backend.list("cases")) == []
    backend.create("cases/x/ledger/0", b"whole")


@pytest.mark.parametrize(
    ("number", "kind", "hint"),
    [(errno.ENOSPC, StoreFullError, "space"), (errno.EDQUOT, StoreFullError, "space"),
     (errno.EACCES, StoreError, "owns"), (errno.EROFS, StoreError, "writable"),
     (errno.EIO, StoreError, "")],
)  # fmt: skip
def test_errors_of_the_system_say_what_to_do(number, kind, hint):
    made = translate(OSError(number, os.strerror(number)), "cannot store k")
    assert type(made) is kind
    assert os.strerror(number) in str(made)
    assert hint in made.hint


@pytest.mark.parametrize("call", ["fsync", "pwrite", "link", "ftruncate"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_failing_write_is_a_store_error_and_leaves_no_torn_object(
    backend, monkeypatch, call, number
):
    backend.create("warm", b"up")

    def fail(*_args, **_kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(StoreError) as caught:
        backend.create("a/k", b"x")
    monkeypatch.undo()
    assert isinstance(caught.value, StoreFullError) == (number == errno.ENOSPC)
    assert [s.key for s in backend.list("a")] == []
    assert list((backend.root / "tmp").iterdir()) == []


def test_a_lock_on_a_full_disk_is_still_held(backend, monkeypatch):
    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with backend.exclusive("x"):
        pass


def test_a_lock_ends_with_its_process(backend):
    code = (
        "import os,sys; from pathlib import Path; from evidence_store.backend import LocalBackend\n"
        "with LocalBackend(Path(sys.argv[1])).exclusive('x'): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(backend.root)], check=False)
    assert (backend.root / "locks" / "x").read_text().startswith("pid ")
    with backend.exclusive("x"):
        pass


def test_a_store_without_permission_says_so(tmp_path, as_nobody):
    folder = tmp_path / "store"
    folder.mkdir(mode=0o500)
    code = (
        "import sys; from pathlib import Path; from evidence_store.backend import LocalBackend\n"
        "from evidence_store.errors import StoreError\n"
        "try: LocalBackend(Path(sys.argv[1])).create('a/k', b'x')\n"
        "except StoreError as e: print(e, '|', e.hint)"
    )
    done = subprocess.run(
        [*as_nobody, sys.executable, "-c", code, str(folder)],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert "Permission denied | check who owns the store" in done.stdout, done.stderr


# -- a store within a store ------------------------------------------------------------------------


def test_below_shows_one_folder_and_writes_nothing(tmp_path):
    outer = LocalBackend(tmp_path)
    outer.create("cases/T/received/store.json", b"{}\n")
    outer.create("cases/T/received/cases/T/ledger/0.note", b"a")
    outer.create("cases/T/received/cases/T/ledger/1.note", b"b")
    outer.create("cases/T/ledger/0.note", b"other")
    (tmp_path / "cases/T/received/cases/T/ledger/link").symlink_to("0.note")
    inner = Below(outer, "cases/T/received")
    assert inner.uri == f"{outer.uri}/cases/T/received"
    assert inner.read("store.json", 10) == b"{}\n"
    assert [s.key for s in inner.list("cases")] == [
        "cases/T/ledger/0.note", "cases/T/ledger/1.note",
    ]  # fmt: skip
    assert list(inner.folders("cases")) == ["T"]
    assert list(inner.strays("cases/T")) == ["cases/T/ledger/link"]
    assert inner.sha256("cases/T/ledger/1.note") == outer.sha256(
        "cases/T/received/cases/T/ledger/1.note"
    )
    keys = (f"cases/T/ledger/{n}.note" for n in range(9))
    assert list(inner.read_run(keys, 10)) == [b"a", b"b"]
    with pytest.raises(ValueError, match="not an object key"):
        inner.read("../ledger/0.note", 10)
    with pytest.raises(RuntimeError):
        inner.create("x", b"y")
