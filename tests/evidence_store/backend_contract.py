# SPDX-License-Identifier: Apache-2.0
"""What every backend must do. A test module takes it over with one fixture:

class TestLocal(BackendContract):
    @pytest.fixture
    def backend(self, tmp_path): return LocalBackend(tmp_path)
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from evidence_store.backend import ObjectNotFoundError, Stored, UnfitObjectError
from evidence_store.errors import AlreadyExistsError, BusyError
from tests.evidence_store.kit import pattern


class BackendContract:
    """Needs a fixture `backend`: an empty one."""

    def test_what_was_created_is_read_back(self, backend):
        assert backend.create("a/b", b"bytes") == Stored("a/b", 5)
        assert backend.read("a/b", 5) == b"bytes"

    @pytest.mark.parametrize("body", [b"", b"x", bytearray(b"yy"), memoryview(b"zzz")])
    def test_bodies_of_every_kind(self, backend, body):
        backend.create("k", body)
        assert backend.read("k", 10) == bytes(body)

    def test_a_body_may_come_in_parts(self, backend):
        assert backend.create("k", iter([b"ab", b"", b"c"])) == Stored("k", 3)
        assert backend.read("k", 10) == b"abc"
        assert backend.create("none", iter(())) == Stored("none", 0)

    def test_large_bodies_with_zero_runs(self, backend):
        body = pattern(1 << 20) + bytes(2 << 20) + pattern(100_001) + bytes(70_000)
        backend.create("k", body)
        backend.create("z", bytes(2 << 20))
        assert backend.read("k", 1 << 23) == body
        assert backend.read("z", 1 << 23) == bytes(2 << 20)

    def test_a_taken_name_is_refused_and_nothing_changes(self, backend):
        backend.create("k", b"first")
        for body in (b"first", b"second"):
            with pytest.raises(AlreadyExistsError):
                backend.create("k", body)
        assert backend.read("k", 10) == b"first"

    def test_one_of_many_writers_wins(self, backend):
        gate = threading.Barrier(8)

        def write(n):
            gate.wait()
            try:
                backend.create("k", b"%d" % n)
            except AlreadyExistsError:
                return None
            return b"%d" % n

        with ThreadPoolExecutor(8) as pool:
            won = [body for body in pool.map(write, range(8)) if body is not None]
        assert len(won) == 1
        assert backend.read("k", 10) == won[0]

    def test_a_body_that_breaks_off_leaves_nothing(self, backend):
        def body():
            yield b"begun"
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            backend.create("a/k", body())
        assert list(backend.list("a")) == []
        assert list(backend.strays("a")) == []
        backend.create("a/k", b"whole")

    def test_what_is_missing_says_so(self, backend):
        backend.create("a/k", b"x")
        for key in ("none", "a/none", "a/k/below", "no/where"):
            with pytest.raises(ObjectNotFoundError):
                backend.read(key, 10)
            with pytest.raises(ObjectNotFoundError):
                backend.open_fd(key)

    def test_more_than_the_limit_is_not_read(self, backend):
        backend.create("k", b"12345")
        with pytest.raises(UnfitObjectError):
            backend.read("k", 4)

    def test_open_fd_reads_at_any_place(self, backend):
        backend.create("k", b"0123456789")
        fd = backend.open_fd("k")
        try:
            assert os.pread(fd, 3, 4) == b"456"
            with pytest.raises(OSError, match="file descriptor"):
                os.write(fd, b"x")
        finally:
            os.close(fd)

    def test_digest_of_an_object(self, backend):
        import hashlib

        body = pattern(9 << 20)[: (9 << 20) - 5] + bytes(1 << 20)
        backend.create("k", body)
        assert backend.sha256("k") == (hashlib.sha256(body).hexdigest(), len(body))

    def test_list_is_sorted_by_whole_key_and_knows_sizes(self, backend):
        keys = ["p/a/x", "p/a/y/z", "p/a-b/x", "p/a.b", "p/A", "p/b", "pp/x", "p2"]
        for n, key in enumerate(keys):
            backend.create(key, b"." * n)
        wanted = sorted(Stored(key, n) for n, key in enumerate(keys) if key.startswith("p/"))
        assert list(backend.list("p")) == wanted
        assert list(backend.list("p/a")) == [s for s in wanted if s.key.startswith("p/a/")]
        assert list(backend.list("nothing")) == []
        assert list(backend.list("p/b")) == []

    def test_folders_are_the_immediate_ones_in_the_order_of_list(self, backend):
        for key in ("c/b/x/y", "c/b/z", "c/a-b/x", "c/a/x", "c/file", "cc/d/x"):
            backend.create(key, b"x")
        assert list(backend.folders("c")) == ["a-b", "a", "b"]
        assert list(backend.folders("c/b")) == ["x"]
        assert list(backend.folders("c/a")) == []
        assert list(backend.folders("c/file")) == []
        assert list(backend.folders("nothing")) == []

    @pytest.mark.parametrize(
        "key", ["", "/", "/a", "a/", "a//b", ".", "..", "a/../b", ".a", "a/.b", "a b", "a\nb", "é",
                "a\0b", "a\\b", "x" * 513],
    )  # fmt: skip
    def test_keys_out_of_form_are_refused(self, backend, key):
        for use in (lambda: backend.create(key, b""), lambda: backend.read(key, 1),
                    lambda: backend.open_fd(key), lambda: list(backend.list(key)),
                    lambda: list(backend.folders(key))):  # fmt: skip
            with pytest.raises(ValueError, match="not an object key"):
                use()

    def test_exclusive_is_for_one_at_a_time(self, backend):
        with backend.exclusive("T-1.E0001"):
            with pytest.raises(BusyError), backend.exclusive("T-1.E0001"):
                pass
            with backend.exclusive("T-1.E0002"):
                pass
        with backend.exclusive("T-1.E0001"):
            pass
