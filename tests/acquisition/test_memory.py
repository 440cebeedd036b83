# SPDX-License-Identifier: Apache-2.0
"""Captures of a host's memory over a real sshd; its kcore is a file of the test."""

from __future__ import annotations

import threading

import pytest

from acquisition import memory, streams
from acquisition.errors import AcquisitionError
from acquisition.kcore import KcoreError
from acquisition.memory import KcoreCapture, LockedDownError, choose, look, recalled
from acquisition.remote import LostError, SudoError
from acquisition.streams import BrokenError, Decoded
from acquisition.verdict import Seen, exit_code, judge
from tests.acquisition.kcore_host import (
    BANNER,
    CODE,
    MIB,
    PAGE,
    RAM,
    KcoreHost,
    data,
    lime,
)
from tests.acquisition.kcore_host import memory as content_of

SEGMENT = 4 * MIB


@pytest.fixture
def host(tmp_path):
    made = KcoreHost(tmp_path / "host").start()
    yield made
    made.stop()


@pytest.fixture
def start(host):
    """Begin a capture of the host; `how` sets its attributes."""
    opened = []

    def begin(*, remote=None, **how):
        remote = remote or host.remote(stall_s=how.pop("stall_s", 30.0)).open()
        opened.append(remote)
        made = KcoreCapture(remote, look(remote), "memory of i-1", **how)
        opened.append(made)
        return made

    yield begin
    for each in reversed(opened):
        each.close()


def take(world, capture, **how):
    return world.case.ingest("memory", capture, segment_size=SEGMENT, **how)


def whole(world, item):
    with world.case.open(item) as f:
        return f.read()


def verdict(capture):
    capture.read_again()
    return judge(capture.seen)


@pytest.mark.parametrize("way", ["raw", "lz4", "zstd", "gzip", "sftp", None])
def test_every_way_gives_the_same_lime_image(world, host, start, way):
    content = host.load()
    if way == "sftp":
        host.program("sftp-server", "")  # not used: the real one is found
    capture = start(way=way)
    if way == "sftp":
        sftp_of_file(capture, host)
    taken = take(world, capture)
    assert whole(world, taken.item_id) == lime(content)
    assert taken.manifest.result == "ok"
    assert taken.manifest.source["format"] == "lime"
    found = verdict(capture)
    assert (found.word, found.reasons) == ("complete", ())
    assert exit_code(found.word) == 0
    if way != "sftp":
        assert capture.seen.same == capture.seen.sampled > 8


def sftp_of_file(capture, host):
    """An SFTP server cannot be told another /proc: it is asked for the file itself."""
    capture._sftp = streams.Sftp(capture.remote, str(host.room / "kcore"))


def test_first_piece_measures_the_link_and_the_link_decides(world, host, start, monkeypatch):
    host.load()
    monkeypatch.setattr(memory, "PROBE_BYTES", MIB)
    monkeypatch.setattr(memory, "FAST_BYTES_PER_SECOND", 1e15)
    said = []
    capture = start(say=said.append)
    take(world, capture)
    ways = [line["way"] for line in capture.log]
    assert ways[0] == "raw"
    assert set(ways[2:]) == {"lz4"}
    assert capture.log[0]["bytes"] <= MIB
    assert any("MB/s" in line for line in said)


@pytest.mark.parametrize(("tools", "rate", "way"), [
    (["dd", "lz4", "zstd", "gzip"], 10e6, "lz4"), (["dd", "zstd", "gzip"], 10e6, "zstd"),
    (["dd", "gzip"], 10e6, "gzip"), (["dd", "gzip"], 60e6, "raw"), (["dd"], 1e6, "raw"),
    (["dd", "lz4"], 500e6, "raw"), (["lz4"], 10e6, "sftp"),
])  # fmt: skip
def test_way_follows_from_tools_and_link(tools, rate, way):
    assert choose(tools, rate) == way


def test_pieces_are_small_and_every_command_is_in_the_footprint(world, host, start):
    host.load()
    capture = start(way="raw", piece_bytes=2 * MIB)
    take(world, capture)
    commands = [a for a in capture.remote.footprint.acts if a.get("why") == "memory"]
    assert len(commands) == len(capture.log) == 9
    assert all(a["code"] == 0 and a["out_bytes"] <= 2 * MIB for a in commands)
    assert sum(a["out_bytes"] for a in commands) == sum(b - a for a, b in RAM)


def test_zero_pages_are_holes_and_are_counted(world, host, start):
    content = host.load()
    capture = start(way="raw")
    taken = take(world, capture)
    zero = sum(
        PAGE for body in content.values() for at in range(0, len(body), PAGE)
        if body[at : at + PAGE] == bytes(PAGE)
    )  # fmt: skip
    assert abs(capture.seen.zero - zero) < zero * 0.05  # headers of 32 bytes shift the pages
    assert taken.manifest.stored_bytes == taken.manifest.size


def test_nothing_is_written_on_the_host(world, host, start):
    host.load()
    before = {p: p.stat().st_mtime_ns for p in host.home.rglob("*") if p.is_file()}
    take(world, start(way="lz4"))
    after = {p: p.stat().st_mtime_ns for p in host.home.rglob("*") if p.is_file()}
    logs = {host.room / "dd.log", host.room / "sudo.log", host.home / "log"}
    assert {p for p in after if after[p] != before.get(p)} - logs == set()


# -- what the host lacks or refuses


def test_lockdown_is_named(host, start):
    host.load()
    (host.room / "locked").touch()
    with pytest.raises(LockedDownError, match="lockdown=confidentiality"):
        start()


def test_no_kcore_is_named_with_the_next_way(host, start):
    host.proc("iomem", "")
    with pytest.raises(KcoreError) as e:
        start()
    assert "--avml" in e.value.hint


def test_container_without_a_real_kcore(host, start):
    host.load()
    (host.room / "kcore").write_bytes(b"")
    with pytest.raises(KcoreError):
        start()


def test_without_sudo_nothing_is_read(host, start):
    host.load()
    (host.room / "never").touch()
    with pytest.raises(SudoError):
        start()


def test_hidden_iomem_still_gives_all_ram(world, host, start):
    content = host.load(hidden=True)
    capture = start(way="raw")
    taken = take(world, capture)
    assert whole(world, taken.item_id) == lime(content)
    assert any("iomem is hidden" in note for note in taken.manifest.notes)


def test_host_without_compressors_sends_raw(world, host, start, monkeypatch):
    monkeypatch.setattr(memory, "FAST_BYTES_PER_SECOND", 1e15)
    content = host.load()
    host.without("lz4", "zstd", "gzip")
    capture = start()
    assert capture.look.tools == {"dd"}
    taken = take(world, capture)
    assert whole(world, taken.item_id) == lime(content)
    assert capture.way == "raw"


def test_host_without_dd_is_read_by_sftp(host, start):
    content = host.load()
    capture = start(way="raw")
    object.__setattr__(capture.look, "tools", frozenset({"lz4"}))
    sftp_of_file(capture, host)
    view = memoryview(bytearray(MIB))
    runs, gaps = capture.fill(view, 0, threading.Event())
    assert not gaps
    assert bytes(view) == lime(content)[:MIB]
    assert runs[0][0] == 0


# -- memory that is not what it should be


def test_all_zero_memory_is_unusable_and_never_a_success(world, host, start):
    host.load(content=content_of(zero=True))
    capture = start(way="raw")
    taken = take(world, capture)
    found = verdict(capture)
    assert found.word == "unusable"
    assert exit_code(found.word) == 12
    assert "zero" in found.reasons[0]
    assert taken.item_id


def test_memory_without_the_kernels_banner_is_unusable(world, host, start):
    host.load(content=content_of(banner=False))
    capture = start(way="raw")
    take(world, capture)
    assert verdict(capture).word == "unusable"


def test_kernel_code_that_is_another_on_second_reading_is_unusable(world, host, start):
    host.load()
    capture = start(way="raw")
    take(world, capture)
    with (host.room / "kcore").open("r+b") as f:
        f.seek(data(CODE[0]))
        f.write(bytes(CODE[1] - CODE[0]))
    found = verdict(capture)
    assert found.word == "unusable"
    assert "read again differ" in found.reasons[0]


def test_missing_range_makes_it_partial(world, host, start):
    host.load()
    from tests.acquisition.kcore_host import iomem

    host.proc("iomem", iomem((*RAM, (8192 * MIB, 8193 * MIB))))
    capture = start(way="raw")
    taken = take(world, capture)
    found = verdict(capture)
    assert found.word == "partial"
    assert exit_code(found.word) == 3
    assert taken.manifest.result == "partial"


@pytest.mark.parametrize(("way", "bad"), [
    ("raw", (5 * MIB + 3 * PAGE, 1)), ("lz4", (6 * MIB, 100)), ("raw", (13 * MIB - PAGE, 1)),
])  # fmt: skip
def test_unreadable_pages_are_gaps_and_all_others_are_there(world, host, start, way, bad):
    content = host.load()
    first, count = bad
    (host.room / "bad").write_text(f"{data(first)} {data(first) + count * PAGE}\n")
    capture = start(way=way)
    taken = take(world, capture)
    got, expected = whole(world, taken.item_id), lime(content)
    at = capture.look.plan.image.image_offset(first)
    size = count * PAGE
    assert got[: at - PAGE] == expected[: at - PAGE]
    assert got[at + size + PAGE :] == expected[at + size + PAGE :]
    assert size <= taken.manifest.unreadable_bytes <= size + 2 * PAGE
    assert verdict(capture).word == "partial"


# -- links that fail


def test_cut_connections_lose_nothing(world, host, start):
    content = host.load()
    capture = start(way="raw", piece_bytes=4 * MIB)
    seen = []

    def cut(done, _total):
        if done and len(seen) < 3:
            seen.append(host.drop())

    taken = take(world, capture, workers=1, progress=cut)
    assert whole(world, taken.item_id) == lime(content)
    found = verdict(capture)
    assert found.word == "complete"
    assert capture.seen.connections >= 2
    assert any("connections" in remark for remark in found.remarks)


def test_stall_is_met_by_a_new_connection(world, host, start):
    content = host.load()
    capture = start(way="raw", stall_s=0.3)
    (host.room / "slow").write_text("20")

    def speed_up(text):
        (host.room / "slow").unlink(missing_ok=True)

    capture.say = speed_up
    taken = take(world, capture, workers=1)
    assert whole(world, taken.item_id) == lime(content)
    assert capture.seen.stalls == 1


def test_host_that_never_comes_back_leaves_an_honest_partial(world, host, start):
    content = host.load()
    capture = start(way="raw", piece_bytes=2 * MIB, patience_s=0.2)

    def die(done, _total):
        if done:
            host.stop()

    taken = take(world, capture, workers=1, progress=die)
    found = verdict(capture)
    assert found.word == "partial"
    assert taken.manifest.result == "partial"
    assert taken.manifest.unreadable_bytes > 0
    got, expected = whole(world, taken.item_id), lime(content)
    first = taken.manifest.unreadable[0].offset
    assert got[:first] == expected[:first]
    assert first >= SEGMENT


def test_host_that_is_gone_before_the_first_byte_is_an_error(world, host, start):
    host.load()
    capture = start(way="raw", patience_s=0.1)
    host.stop()
    with pytest.raises(AcquisitionError):
        take(world, capture)


def test_reboot_during_the_capture_ends_it_as_partial(world, host, start):
    host.load()
    capture = start(way="raw", piece_bytes=2 * MIB)

    def reboot(done, _total):
        if done == SEGMENT:
            host.proc("sys/kernel/random/boot_id", "another\n")
            host.drop()

    taken = take(world, capture, workers=1, progress=reboot)
    assert verdict(capture).word == "partial"
    assert any("rebooted" in note for note in taken.manifest.notes)


def test_interrupted_capture_goes_on_and_what_was_stored_stands(world, host, start, tmp_path):
    """Memory changes between the runs: stored segments stay as they were captured."""
    world.store.resume = tmp_path / "resume"
    before = host.load()
    capture = start(way="raw", piece_bytes=4 * MIB)

    class Killed(Exception):
        pass

    def kill(done, _total):
        if done >= 2 * SEGMENT:
            raise Killed

    with pytest.raises(Killed):
        take(world, capture, workers=1, progress=kill)
    capture.close()
    changed = {a: body[: len(body) // 2] + bytes(len(body) - len(body) // 2)
               for a, body in content_of(seed=2).items()}  # fmt: skip
    changed[MIB] = before[MIB]
    host.load(content=changed)
    second = start(way="raw", piece_bytes=4 * MIB)
    taken = take(world, second)
    assert taken.resumed
    got = whole(world, taken.item_id)
    assert got[:SEGMENT] == lime(before)[:SEGMENT]
    assert got[-MIB:] == lime(changed)[-MIB:]
    assert second.seen.read < second.seen.ram

    def read(offset, length):
        with world.case.open(taken.item_id) as f:
            f.seek(offset)
            return f.read(length)

    assert recalled(second, read, SEGMENT).read == second.seen.ram
    assert verdict(second).word == "complete"


def test_what_an_earlier_run_could_not_read_is_not_counted_as_read(world, host, start, tmp_path):
    world.store.resume = tmp_path / "resume"
    host.load()
    (host.room / "bad").write_text(f"{data(2 * MIB)} {data(2 * MIB) + 2 * PAGE}\n")
    capture = start(way="raw")

    def kill(done, _total):
        if done >= 2 * SEGMENT:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take(world, capture, workers=1, progress=kill)
    capture.close()
    second = start(way="raw")
    taken = take(world, second)
    assert taken.resumed
    assert not second.lost

    def read(offset, length):
        with world.case.open(taken.item_id) as f:
            f.seek(offset)
            return f.read(length)

    gaps = world.case.segments(taken.manifest).unreadable
    found = judge(recalled(second, read, SEGMENT, gaps))
    assert second.seen.read == second.seen.ram - 2 * PAGE
    assert found.word == "partial"
    assert any(f"{2 * MIB:#x}" in reason for reason in found.reasons)


# -- a host that lies


@pytest.mark.parametrize("way", ["lz4", "zstd", "gzip"])
def test_hostile_compressor_output_falls_back_to_raw(world, host, start, way):
    content = host.load()
    host.program(way, "#!/bin/sh\nhead -c 3000000 /dev/urandom\n")
    capture = start(way=way)
    taken = take(world, capture)
    assert whole(world, taken.item_id) == lime(content)
    assert capture.way == "raw"


@pytest.mark.parametrize("way", ["lz4", "zstd", "gzip"])
def test_hostile_bomb_is_read_only_as_far_as_wanted(host, way):
    host.load()
    program = {"lz4": "lz4 -1 -c -q", "zstd": "zstd -19 -c -q", "gzip": "gzip -9 -c"}[way]
    with host.remote().open() as r, r.stream(f"head -c 80000000 /dev/zero | {program}", "x") as s:
        decoded = Decoded(s, way)
        view = memoryview(bytearray(4 << 20))
        got = 0
        while got < 32 << 20:
            n = decoded.readinto(view)
            assert 0 < n <= 1 << 20
            got += n
        s.cut()


class Script:
    """A command whose output is written here."""

    def __init__(self, body):
        self.body = body

    def read(self, size=1 << 20):
        out, self.body = self.body[:size], self.body[size:]
        return out


def test_hostile_garbage_is_broken_and_never_data():
    for way in ("lz4", "zstd", "gzip"):
        with pytest.raises(BrokenError):
            Decoded(Script(b"\x01\x02\x03\x04" * 1000), way).readinto(memoryview(bytearray(10)))


class Server:
    """An SFTP server that answers what the test wants."""

    def __init__(self, *packets):
        self.out = b"".join(len(p).to_bytes(4) + p for p in packets)

    def write(self, data):
        pass

    def exactly(self, size):
        if len(self.out) < size:
            raise LostError("ended")
        out, self.out = self.out[:size], self.out[size:]
        return out

    def close(self):
        pass


HELLO = b"\x02" + (3).to_bytes(4)
HANDLE = b"\x66" + (1).to_bytes(4) + (1).to_bytes(4) + b"h"


def reply(asked, body, claim=None):
    return (b"\x67" + asked.to_bytes(4) + (len(body) if claim is None else claim).to_bytes(4)
            + body)  # fmt: skip


@pytest.mark.parametrize("packets", [
    [b"\x09abcdefgh"], [HELLO, HANDLE, reply(9, b"abcd")],
    [HELLO, HANDLE, reply(2, b"abcde")], [HELLO, HANDLE, reply(2, b"ab", claim=4)],
    [HELLO, HANDLE, reply(2, b"")], [HELLO, HANDLE, b"\x67"],
])  # fmt: skip
def test_hostile_sftp_server_is_broken(monkeypatch, packets):
    monkeypatch.setattr(streams, "next_server", lambda _remote: "x")
    remote = type("R", (), {"duplex": lambda *a, **k: Server(*packets)})()
    with pytest.raises((BrokenError, KcoreError)):
        streams.Sftp(remote).read_range(0, memoryview(bytearray(4)))


def test_sftp_asks_again_for_the_rest_of_a_short_reply(monkeypatch):
    monkeypatch.setattr(streams, "next_server", lambda _remote: "x")
    packets = [HELLO, HANDLE, reply(2, b"ab"), reply(3, b"cd")]
    remote = type("R", (), {"duplex": lambda *a, **k: Server(*packets)})()
    view = memoryview(bytearray(4))
    assert streams.Sftp(remote).read_range(0, view) == 4
    assert bytes(view) == b"abcd"


# -- the verdict, pure


@pytest.mark.parametrize(("seen", "word"), [
    (Seen(ram=100, read=100, zero=40, banner=True, sampled=8, same=8), "complete"),
    (Seen(ram=100, read=100, zero=40, banner=None), "complete"),
    (Seen(ram=100, read=100, zero=40, banner=True, stalls=3, connections=4), "complete"),
    (Seen(ram=100, read=100, zero=40, banner=True, sampled=32, same=30), "complete"),
    (Seen(ram=100, read=90, zero=40, banner=True), "partial"),
    (Seen(ram=100, read=90, zero=40, banner=False), "partial"),
    (Seen(ram=100, read=100, zero=1, banner=True, missing=((1, 2),)), "partial"),
    (Seen(ram=100, read=100, zero=1, banner=True, lost=("x",)), "partial"),
    (Seen(ram=100, read=0), "unusable"),
    (Seen(ram=10000, read=10000, zero=9995, banner=True), "unusable"),
    (Seen(ram=100, read=100, zero=40, banner=False), "unusable"),
    (Seen(ram=100, read=100, zero=40, banner=True, sampled=8, same=3), "unusable"),
])  # fmt: skip
def test_verdict(seen, word):
    found = judge(seen)
    assert found.word == word
    assert bool(found.reasons) == (word != "complete")


def test_banner_across_two_segments_is_found(world, host, start):
    """It lies where one buffer ends and the next begins."""
    content = content_of(banner=False)
    host.load(content=content)
    first = SEGMENT - 32 - (0x9F000 - 0x1000) - 32 - 20  # so that 20 bytes lie in the first one
    body = bytearray(content[MIB])
    body[first : first + len(BANNER)] = BANNER.encode()
    host.load(content={**content, MIB: bytes(body)})
    capture = start(way="raw")
    take(world, capture, workers=1)
    assert capture.seen.banner is True
