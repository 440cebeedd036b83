# SPDX-License-Identifier: LicenseRef-VSL-1.0
"""Plugins that raise, hang, crash, flood: each a fact, none the end of the others."""

from __future__ import annotations

import doctest
import os
import signal
import socket
import struct
import time

import pytest
from volatility3.framework import contexts, exceptions, renderers
from volatility3.framework.renderers import format_hints

from analysis.memory import extract
from analysis.memory import run as module
from analysis.memory.kernel import FiveLevels, RamLayer
from analysis.memory.linux import Linux
from analysis.memory.profiles import GATE, PROFILES, Plugin
from analysis.memory.run import Result, SharedChannel, plain, run_all
from analysis.memory.tables import ns, signed
from analysis.output import fitted
from analysis.ram import open_ram
from tests.analysis.conftest import ImageBytes


class Fake:
    """A plugin whose rows are what `body` yields."""

    def __init__(self, body):
        self.body = body

    def run(self):
        return renderers.TreeGrid([("PID", int), ("COMM", str)],
                                  ((0, row) for row in self.body()))  # fmt: skip


def good():
    yield 1, "init"
    yield 2, renderers.NotAvailableValue()


def raises():
    yield 1, "init"
    raise RuntimeError("page fault in hostile memory")


def hangs():
    yield 1, "init"
    while True:
        time.sleep(1)


def crashes():
    yield 1, "init"
    os.kill(os.getpid(), signal.SIGKILL)
    yield 2, "never"


def floods():
    for n in range(10**9):
        yield n, "x"


@pytest.fixture
def outcome(monkeypatch, tmp_path):
    def run(bodies, seconds=30, at_once=2):
        monkeypatch.setattr(module, "construct", lambda _c, kind, _p: Fake(kind))
        results = {}
        wanted = [Plugin(name, seconds) for name in bodies]
        run_all(None, {k: v for k, v in bodies.items() if v}, wanted, tmp_path / "rows",
                lambda r: results.__setitem__(r.plugin, r), at_once)  # fmt: skip
        return results

    return run


def test_one_that_raises_and_one_that_crashes_do_not_harm_the_others(outcome):
    made = outcome({"a": good, "b": raises, "c": crashes, "d": good, "gone": None})
    assert list(made["a"].rows()) == [{"PID": 1, "COMM": "init"}, {"PID": 2, "COMM": None}]
    assert made["a"].problem == made["d"].problem == ""
    assert "page fault in hostile memory" in made["b"].problem
    assert [row["PID"] for row in made["b"].rows()] == [1], "what came before is kept"
    assert made["c"].problem == "it died (signal 9)"
    assert "does not have it" in made["gone"].problem


def test_one_that_hangs_is_ended(outcome):
    made = outcome({"h": hangs, "a": good}, seconds=1)
    assert made["h"].problem == "it was ended after 1 s"
    assert made["a"].problem == ""


def test_one_that_floods_is_cut(outcome, monkeypatch):
    monkeypatch.setattr(module, "MAX_ROWS", 500)
    made = outcome({"f": floods})
    assert made["f"].cut
    assert sum(1 for _ in made["f"].rows()) == 500


def test_values_become_json():
    assert plain(format_hints.Hex(16)) == 16
    assert plain(renderers.UnreadableValue()) is None
    assert plain(b"\x00\xff") == "00ff"
    assert plain(format_hints.HexBytes(b"ab")) == "6162"


def test_answer_of_a_fork_that_died_is_not_taken_for_anothers(tmp_path):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    class Asked:
        _sock = theirs

        def open_object(self, item, name):
            theirs.send(name.encode())
            return theirs.recv(100)

    shared = SharedChannel(Asked(), tmp_path / "lock")
    (tmp_path / "lock").write_bytes(b"1")  # somebody died between question and answer
    for answer in (b"\x00stale", b"\x02not an item of this job", b"mine"):
        ours.send(answer)
    assert shared.open_object("E0001", "one") == b"mine"
    assert (tmp_path / "lock").read_bytes() == b"0"
    ours.close()
    theirs.close()


def results(tmp_path, tasks, boots, problem=""):
    made = []
    for name, columns, rows in ((GATE[0], ["PID"], tasks), (GATE[1], ["Boot Time"], boots)):
        path = tmp_path / f"{name}.jsonl"
        lines = [columns, *({"d": 0, "v": [row]} for row in rows)]
        path.write_text("".join(module.json.dumps(line) + "\n" for line in lines))
        made.append(Result(name, path, columns, problem))
    return Linux(None, {}, (0, 1), held=made)


@pytest.mark.parametrize(
    ("tasks", "boots", "says"),
    [
        ([1, 2], ["2026-01-01T00:00:00+00:00"], ""),
        ([], ["2026-01-01T00:00:00+00:00"], "list of tasks is empty"),
        ([2, 3], ["2026-01-01T00:00:00+00:00"], "no process 1 among 2"),
        ([1], [], "no time of boot"),
        ([1], ["1971-01-01T00:00:00+00:00"], "boot would be 1971"),
        ([1], ["2999-01-01T00:00:00+00:00"], "boot would be 2999"),
    ],
)
def test_gate(tmp_path, tasks, boots, says):
    why = results(tmp_path, tasks, boots).untrusted()
    assert says in why
    assert bool(why) == bool(says)


def test_torn_last_line_is_left_out(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b'["PID"]\n{"d": 0, "v": [1]}\n{"d": 0, "v')
    assert list(Result("x", path, ["PID"]).rows()) == [{"PID": 1}]


def memory_of_five_levels():
    """A page at 0xff11000012345000 (five levels) is at physical 0x6000."""
    virtual, data = 0xFF11000012345000, bytearray(0x8000)
    for level, table in enumerate((0x1000, 0x2000, 0x3000, 0x4000, 0x5000)):
        index = virtual >> (12 + 9 * (4 - level)) & 511
        struct.pack_into("<Q", data, table + index * 8, table + 0x1000 | 0x63)
    data[0x6000:0x6004] = b"five"
    return virtual, bytes(data)


def test_five_level_page_tables():
    virtual, data = memory_of_five_levels()
    context = contexts.Context()
    context.add_layer(RamLayer(context, "ram", "ram", open_ram(ImageBytes(data))))
    context.config["top.memory_layer"] = "ram"
    context.config["top.page_map_offset"] = 0x1000
    layer = FiveLevels(context, config_path="top", name="top", metadata={"os": "Linux"})
    assert layer.read(virtual & layer.address_mask, 4) == b"five"
    assert layer.translate(virtual & layer.address_mask)[0] == 0x6000
    assert not layer.is_valid((virtual + 0x1000) & layer.address_mask)
    assert layer.canonicalize(virtual & layer.address_mask) == virtual


def test_addresses_are_as_the_processor_has_them():
    assert signed(0xFFFFB2B98060) == 0xFFFFFFFFB2B98060 - (1 << 64)
    assert signed(0x8A7E43000000) == 0xFFFF8A7E43000000 - (1 << 64)
    assert signed(0x7F0000001000) == 0x7F0000001000
    assert signed(None) is None


def test_rows_fit_their_schema_whatever_they_are():
    row = {
        "plugin": "p\ud800", "row": 1 << 70, "pid": "x", "comm": None, "address": -1, "data": "{}",
    }  # fmt: skip
    row = fitted("memory", row)
    assert (row["row"], row["pid"], row["comm"]) == (0, None, None)
    row["plugin"].encode()


def test_times_are_exact():
    assert ns("2026-11-24T02:27:16.732001+00:00") == 1795487236732001000
    assert ns("no time") is None


class Inode:
    """A cached file whose pages are `contents`."""

    def __init__(self, size, contents):
        self.i_size, self.i_ino, self.contents = size, 7, contents
        self.vol = type("vol", (), {"offset": 4096})

    def get_contents(self):
        for one in self.contents:
            if isinstance(one, Exception):
                raise one
            yield one


@pytest.fixture
def take(tmp_path):
    made = object.__new__(extract.Extract)
    made.folder, made.made, made.bytes = tmp_path, 0, 0

    def run(inode, path="/a"):
        row = made._file("file", None, None, path, inode)
        names = ("size", "held", "digest", "absent", "name", "at", "problem")
        return dict(zip(names, map(plain, row[5:]), strict=True))

    run.made = made
    return run


def test_what_memory_lacks_of_a_file_is_told(take, tmp_path):
    page = b"x" * 4096
    found = take(
        Inode(3 * 4096 + 5, [(0, page), (2, page), (2, b"y" * 4096), (9, page), (-1, page)])
    )
    assert (found["held"], found["absent"]) == (8192, "[[4096, 8192], [12288, 12293]]")
    assert "4101 of its 12293 bytes" in found["problem"]
    assert (tmp_path / found["name"]).read_bytes() == page + bytes(4096) + page + bytes(5)


def test_whole_file_ends_where_its_size_says(take, tmp_path):
    found = take(Inode(5, [(0, b"hello" + bytes(4091))]), "../../etc/passwd\n")
    assert (found["held"], found["absent"], found["problem"]) == (5, "[]", "")
    assert (tmp_path / found["name"]).read_bytes() == b"hello"
    assert [p.name for p in tmp_path.iterdir()] == ["00000000.bin"], "never named by its path"


def test_files_are_bounded(take, tmp_path, monkeypatch):
    monkeypatch.setattr(extract, "MAX_BYTES", 6000)
    monkeypatch.setattr(extract, "MAX_FILES", 2)
    assert "would have 1099511627776 bytes" in take(Inode(1 << 40, []))["problem"]
    assert "would have -1 bytes" in take(Inode(-1, []))["problem"]
    assert take(Inode(4096, [(0, bytes(4096))]))["problem"] == ""
    assert "all files together" in take(Inode(4096, [(0, bytes(4096))]))["problem"]
    take.made.made = 2
    assert "only 2 files" in take(Inode(1, [(0, bytes(4096))]))["problem"]
    assert len(list(tmp_path.iterdir())) == 1


def test_file_of_which_nothing_is_there_leaves_no_zeros(take, tmp_path):
    assert take(Inode(4096, []))["problem"] == "none of it is in memory"
    torn = Inode(8192, [(0, bytes(4096)), exceptions.LinuxPageCacheException("torn")])
    assert "read only in part" in take(torn)["problem"]
    assert len(list(tmp_path.iterdir())) == 1, "what came before is kept"


def test_examples():
    assert doctest.testmod(extract).failed == 0


def test_every_plugin_of_the_profiles_exists():
    from analysis.memory.kernel import plugins

    known, failed = plugins()
    named = {*GATE, *(p.name for profile in PROFILES.values() for p in profile)}
    assert named - set(known) == set()
    assert [name for name in failed if ".linux." in name] == []
