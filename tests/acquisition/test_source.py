# SPDX-License-Identifier: Apache-2.0
"""Sources: what is taken is what was named, whole and in order, and nothing else is opened."""

from __future__ import annotations

import errno
import gc
import os
import random
import re
import string
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acquisition import source as module
from acquisition.errors import AcquisitionError, SourceNotFoundError, UnsupportedSourceError
from acquisition.source import (
    BlockDevice,
    Directory,
    RawFile,
    SplitImage,
    StandardInput,
    open_source,
    split_parts,
)
from tests.evidence_store import kit
from tests.evidence_store.kit import SEGMENT, pattern


def read_all(source):
    out, at, buffer = bytearray(), 0, bytearray(SEGMENT)
    while at < source.size:
        n = source.readinto(memoryview(buffer), at)
        assert n
        out += buffer[:n]
        at += n
    assert source.readinto(memoryview(buffer), source.size) == 0
    return bytes(out)


def put_parts(folder, stem, suffixes, size=1000):
    """Parts of different content and size; return the whole."""
    whole = b""
    for n, suffix in enumerate(suffixes):
        body = pattern(size + n, n % 250 + 1)
        (folder / f"{stem}.{suffix}").write_bytes(body)
        whole += body
    return whole


# -- single files ----------------------------------------------------------------------------------


def test_a_file_is_taken_byte_for_byte(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(pattern(3 * SEGMENT + 7))
    source = open_source(str(path), "disk", text="laptop 7")
    assert isinstance(source, RawFile)
    assert source.text == "laptop 7"
    assert read_all(source) == path.read_bytes()
    assert source.identity == {
        "size": 3 * SEGMENT + 7, "device": path.stat().st_dev, "inode": path.stat().st_ino,
    }  # fmt: skip
    assert source.facts["path"] == str(path)
    assert source.changes() == []


def test_holes_of_a_file_are_not_read(tmp_path):
    path = tmp_path / "disk.img"
    with path.open("wb") as f:
        f.write(b"begin")
        f.seek(64 << 20)
        f.write(b"end")
    source = open_source(str(path), "memory")
    assert source.next_data(0) == 0
    assert source.next_data(1 << 20) == 64 << 20
    assert source.next_data(64 << 20) == 64 << 20
    path = tmp_path / "empty.img"
    with path.open("wb") as f:
        f.truncate(1 << 30)
    assert open_source(str(path), "disk").next_data(0) == 1 << 30


def test_a_file_that_got_shorter_is_not_taken_for_a_hole(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(pattern(4 * SEGMENT))
    source = open_source(str(path), "disk")
    os.truncate(path, SEGMENT)
    assert source.next_data(2 * SEGMENT) == 2 * SEGMENT
    assert source.next_data(0) == 0
    assert "size was" in source.changes()[0]


def test_reading_leaves_no_trace_in_access_times(tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    for path in (tmp_path / "disk.img", folder / "a.log"):
        path.write_bytes(b"x" * 100)
        os.utime(path, (1000, 2000))
    read_all(open_source(str(tmp_path / "disk.img"), "disk"))
    taken = [b"".join(m.chunks()) for m in open_source(str(folder), "logs").members()]
    assert taken == [b"x" * 100]
    assert [p.stat().st_atime for p in (tmp_path / "disk.img", folder / "a.log")] == [1000, 1000]


def test_a_file_of_somebody_else_is_read_without_noatime(tmp_path, monkeypatch):
    path = tmp_path / "disk.img"
    path.write_bytes(b"x")
    real = os.open

    def refuse(target, flags, *rest, **named):
        if flags & os.O_NOATIME:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        return real(target, flags, *rest, **named)

    monkeypatch.setattr(os, "open", refuse)
    assert read_all(open_source(str(path), "disk")) == b"x"


def test_what_is_not_there_or_cannot_be_opened_says_so(tmp_path, monkeypatch):
    with pytest.raises(SourceNotFoundError, match="no such file") as caught:
        open_source(str(tmp_path / "no\x1b[31mne"), "disk")
    assert "\x1b" not in str(caught.value)
    assert caught.value.exit_code == 12
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(AcquisitionError, match="cannot look at"):
        open_source(str(tmp_path / "loop"), "disk")
    path = tmp_path / "x"
    path.write_bytes(b"x")

    def refuse(*_args, **_kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    gc.collect()  # what other tests left open is closed before nothing can be opened
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(AcquisitionError, match=r"cannot open .*Permission denied") as caught:
        open_source(str(path), "disk")
    assert "root" in caught.value.hint


@pytest.mark.parametrize("kind", ["disk", "logs"])
def test_a_pipe_is_refused_and_not_opened(tmp_path, kind):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnsupportedSourceError, match="neither a file"):
        open_source(str(tmp_path / "pipe"), kind)
    with pytest.raises(UnsupportedSourceError, match="neither a file"):
        open_source("/dev/null", kind)


@pytest.mark.parametrize(
    ("head", "name"),
    [(b"EVF\x09\x0d\x0a\xff\x00", "segment file 0"), (b"EVF2\x0d\x0a\x81\x00", "segment file 0"),
     (b"LVF\x09\x0d\x0a\xff\x00", "L01"), (b"QFI\xfb", "cannot be read: it is QCOW version 0"),
     (b"KDMV", "it is one extent"), (b"# Disk DescriptorFile\n", "names no extent"),
     (b"vhdxfile", "VHDX"), (b"conectix", "VHD")],
)  # fmt: skip
def test_a_container_is_not_taken_as_raw_but_as_a_record(tmp_path, head, name):
    path = tmp_path / "disk.bin"
    path.write_bytes(head + bytes(2000))
    with pytest.raises(AcquisitionError, match=name) as caught:
        open_source(str(path), "disk")
    assert caught.value.hint
    taken = open_source(str(path), "record")
    assert [b"".join(m.chunks()) for m in taken.members()] == [path.read_bytes()]


def test_a_fixed_vhd_is_known_by_its_end(tmp_path):
    path = tmp_path / "disk.vhd"
    path.write_bytes(bytes(4096) + b"conectix" + bytes(504))
    with pytest.raises(AcquisitionError, match="VHD"):
        open_source(str(path), "disk")


def test_store_and_source_may_not_overlap(tmp_path):
    store = tmp_path / "evidence" / "store"
    (store / "cases").mkdir(parents=True)
    (store / "cases" / "x").write_bytes(b"x")
    for place in (tmp_path, tmp_path / "evidence", store):
        with pytest.raises(UnsupportedSourceError, match="lies inside"):
            open_source(str(place), "logs", store=store)
    (tmp_path / "link").symlink_to(store)
    for place in (store / "cases", store / "cases" / "x", tmp_path / "link" / "cases"):
        with pytest.raises(UnsupportedSourceError, match="inside the evidence store"):
            open_source(str(place), "logs", store=store)
    other = tmp_path / "evidence" / "store2"
    other.mkdir()
    assert isinstance(open_source(str(other), "logs", store=store), Directory)


# -- split images ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "suffixes",
    [
        ["000", "001", "002"], ["001", "002", "003"], ["aa", "ab", "ac"], ["00", "01"],
        ["0001", "0002"], ["aaa", "aab"],
        [f"{n:03d}" for n in range(1, 12)],
        [f"{n:03d}" for n in range(1, 1003)],
        [f"{n:02d}" for n in range(90)] + ["9000", "9001"],
        [a + b for a in string.ascii_lowercase[:25] for b in string.ascii_lowercase]
        + ["zaaa", "zaab"],
    ],
    ids=["000", "001", "aa", "00", "0001", "aaa", "eleven", "thousand", "split -d", "split"],
)  # fmt: skip
def test_parts_are_read_in_order_as_one(tmp_path, suffixes):
    whole = put_parts(tmp_path, "disk", suffixes, size=10)
    (tmp_path / "disk.txt").write_bytes(b"notes")
    (tmp_path / "other.002").write_bytes(b"of another image")
    parts = split_parts(tmp_path / f"disk.{suffixes[0]}")
    assert [p.suffix[1:] for p in parts] == suffixes
    source = SplitImage([RawFile(p, "x") for p in parts[:20]], "x")
    assert read_all(source) == whole[: source.size]


def test_a_split_image_has_the_facts_of_its_parts(tmp_path):
    whole = put_parts(tmp_path, "disk", ["001", "002"], size=SEGMENT)
    source = open_source(str(tmp_path / "disk.001"), "disk")
    assert isinstance(source, SplitImage)
    assert source.size == len(whole)
    assert source.facts["part_sizes"] == [SEGMENT, SEGMENT + 1]
    assert read_all(source) == whole
    (tmp_path / "disk.002").write_bytes(b"other")
    assert any(change.startswith("disk.002: ") for change in source.changes())


def test_holes_and_empty_parts_of_a_split_image(tmp_path):
    for name in ("d.000", "d.002"):
        with (tmp_path / name).open("wb") as f:
            f.truncate(1 << 20)
    (tmp_path / "d.001").write_bytes(b"")
    (tmp_path / "d.003").write_bytes(b"data")
    source = open_source(str(tmp_path / "d.000"), "disk")
    assert source.next_data(5) == 2 << 20
    assert read_all(source) == bytes(2 << 20) + b"data"


def test_one_part_alone_is_that_file(tmp_path):
    (tmp_path / "disk.001").write_bytes(b"x")
    assert isinstance(open_source(str(tmp_path / "disk.001"), "disk"), RawFile)


@pytest.mark.parametrize(
    ("suffixes", "missing"),
    [(["001", "003"], "002"), (["000", "001", "003"], "002"), (["aa", "ac"], "ab"),
     (["000", "002"], "001")],
)  # fmt: skip
def test_a_missing_part_in_the_middle_is_refused(tmp_path, suffixes, missing):
    put_parts(tmp_path, "disk", suffixes)
    with pytest.raises(UnsupportedSourceError, match=f"lacks part disk.{missing}"):
        open_source(str(tmp_path / f"disk.{suffixes[0]}"), "disk")


@pytest.mark.parametrize(
    ("suffixes", "named"),
    [(["001", "002"], "002"), (["000", "001", "002"], "002"), (["000", "001"], "001"),
     (["001", "003"], "003"),
     (["aa", "ab"], "ab"), (["00", "01"], "01"), (["0001", "0002"], "0002")],
)  # fmt: skip
def test_naming_a_later_part_is_refused(tmp_path, suffixes, named):
    put_parts(tmp_path, "disk", suffixes)
    with pytest.raises(UnsupportedSourceError, match="later part") as caught:
        open_source(str(tmp_path / f"disk.{named}"), "disk")
    assert f"disk.{suffixes[0]}" in caught.value.hint


def test_a_part_that_gets_shorter_does_not_take_the_next_with_it(tmp_path):
    whole = put_parts(tmp_path, "disk", ["001", "002"], size=20_000)
    source = open_source(str(tmp_path / "disk.001"), "disk")
    os.truncate(tmp_path / "disk.001", 8192)
    world = kit.make_world(tmp_path / "store")
    taken = world.case.ingest("disk", source, segment_size=SEGMENT)
    assert [(g.offset, g.length) for g in taken.manifest.unreadable] == [(8192, 12288)]
    with world.case.open("E0001") as image:
        assert image.pread(30_000, 20_480) == whole[20_480:]  # narrowed to 4 KiB


@given(st.integers(0, 10**5), st.integers(2, 4))
def test_successor_of_numbers_counts(n, width):
    following = module._successor(str(n).zfill(width))
    assert following == str(n + 1).zfill(width)


@given(st.text(string.ascii_lowercase, min_size=2, max_size=4))
def test_successor_of_letters_is_the_next_in_order(suffix):
    following = module._successor(suffix)
    if suffix == "z" * len(suffix):
        assert following == ""
    else:
        assert len(following) == len(suffix)
        assert following > suffix
        assert module._ordinal(following) == module._ordinal(suffix) + 1


@pytest.mark.parametrize("options", [[], ["-d"], ["-a", "3"], ["-d", "-a", "3"]])
def test_names_are_those_of_split(tmp_path, need_tool, options):
    (tmp_path / "whole").write_bytes(pattern(710))
    subprocess.run([need_tool("split"), "-b", "1", *options, "whole", "disk."], cwd=tmp_path,
                   check=True)  # fmt: skip
    names = sorted(p for p in os.listdir(tmp_path) if p.startswith("disk."))  # noqa: PTH208
    assert [p.name for p in split_parts(tmp_path / names[0])] == names


def test_words_are_not_parts(tmp_path):
    for name in ("disk.aa", "disk.gz", "disk.md", "disk.dd", "disk.ab.sha256", "disk.log"):
        (tmp_path / name).write_bytes(b"x")
    for name in ("disk.aa", "disk.gz", "disk.dd"):
        assert split_parts(tmp_path / name) == [tmp_path / name]


# -- directories -----------------------------------------------------------------------------------


def members(place, **options):
    source = open_source(str(place), "logs", **options)
    return source, {m.name: m for m in source.members()}


HOSTILE = [
    b"new\nline", b"\x1b[31mred", b"\xff\xfe", b"x" * 255, "漢字".encode(), b"-rf", b" ", b"a\\b",
    b'q"uote', b"...", "e\u0301".encode(), "\u202egnp".encode(),
]  # fmt: skip


def test_hostile_names_are_kept_as_bytes(tmp_path):
    folder = os.fsencode(tmp_path / "logs")
    Path(os.fsdecode(folder)).mkdir()
    for n, name in enumerate(HOSTILE):
        Path(os.fsdecode(folder + b"/" + name)).write_bytes(b"%d" % n)
    source, found = members(tmp_path / "logs")
    assert set(found) == set(HOSTILE)
    assert list(found) == sorted(HOSTILE)
    for n, name in enumerate(HOSTILE):
        assert b"".join(found[name].chunks()) == b"%d" % n
    world = kit.make_world(tmp_path / "store")
    taken = world.case.ingest("logs", source)
    assert taken.manifest.result == "ok"
    assert taken.manifest.members.count == len(HOSTILE)
    lines = (world.folder / "items/E0001/members.jsonl").read_bytes().splitlines()
    assert len(lines) == len(HOSTILE)
    assert not any(c < 32 or c > 126 for line in lines for c in line)
    world.seal()
    assert world.verify().outcome == "clean"


def test_a_hostile_path_can_stand_in_the_ledger(tmp_path):
    place = tmp_path / "a\n\u0301\x1b[31m\udcff"
    place.mkdir()
    (place / "x").write_bytes(b"x")
    world = kit.make_world(tmp_path / "store")
    assert world.case.ingest("logs", open_source(str(place), "logs")).manifest.result == "ok"
    assert world.verify().findings == []


def test_links_are_named_and_not_followed(tmp_path):
    place = tmp_path / "logs"
    place.mkdir()
    (tmp_path / "secret").write_bytes(b"outside")
    (place / "to-file").symlink_to(tmp_path / "secret")
    (place / "to-folder").symlink_to(tmp_path)
    (place / "dangling").symlink_to("nowhere")
    (place / "loop").symlink_to(".")
    _, found = members(place)
    assert {name: (m.facts["type"], m.chunks) for name, m in found.items()} == dict.fromkeys(
        [b"dangling", b"loop", b"to-file", b"to-folder"], ("symlink", None)
    )
    assert found[b"to-file"].facts["target"] == str(tmp_path / "secret")


def test_pipes_and_sockets_are_named_and_not_opened(tmp_path):
    place = tmp_path / "logs"
    place.mkdir()
    os.mkfifo(place / "pi\npe")
    source, found = members(place)
    assert found == {}
    assert source.skipped() == ["pi\\x0ape: a socket, pipe or device; not opened"]


def test_a_file_swapped_for_a_link_or_pipe_after_it_was_seen_is_not_followed(tmp_path):
    place = tmp_path / "logs"
    place.mkdir()
    for name in ("a", "b", "c"):
        (place / name).write_bytes(b"x")
    _, found = members(place)
    for name in ("a", "b", "c"):
        (place / name).unlink()
    (place / "a").symlink_to("/etc/passwd")
    os.mkfifo(place / "b")
    for member in found.values():
        with pytest.raises(OSError):
            next(member.chunks())


def test_folders_come_before_what_is_in_them_and_order_is_stable(tmp_path):
    for name in ("b/y", "a/x", "a/z/w", "a.txt"):
        path = tmp_path / "logs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "logs" / "empty").mkdir()
    _, found = members(tmp_path / "logs")
    assert list(found) == [
        b"a", b"a/x", b"a/z", b"a/z/w", b"a.txt", b"b", b"b/y", b"empty",
    ]  # fmt: skip


@pytest.fixture
def dig(tmp_path):
    """Make folders in folders; removed by rm(1), since Python's rmtree is a recursion."""
    made = tmp_path / "logs"
    made.mkdir()

    def dig(name, depth):
        here = Path.cwd()
        try:
            os.chdir(made)
            for _ in range(depth):
                Path(name).mkdir()
                os.chdir(name)
            Path("deep").write_bytes(b"x")
        finally:
            os.chdir(here)
        return made

    yield dig
    subprocess.run(["rm", "-rf", made], check=True)


def test_any_depth_of_folders(dig):
    source, found = members(dig("d", 1500))
    assert len(found) == 1501
    assert source.skipped() == []


def test_what_is_below_the_longest_path_is_named_as_skipped(dig):
    source, _ = members(dig("d" * 200, 30))
    assert len(source.skipped()) == 1
    assert "not readable: File name too long" in source.skipped()[0]


def test_an_unreadable_file_and_folder_are_named_and_the_rest_is_taken(tmp_path, monkeypatch):
    place = tmp_path / "logs"
    (place / "closed").mkdir(parents=True)
    for name in ("a", "b", "closed/x"):
        (place / name).write_bytes(b"x")
    real_open, real_list = os.open, os.listdir

    def open_(path, *rest, **named):
        if os.fsencode(path).endswith(b"/b"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real_open(path, *rest, **named)

    def listdir(path):
        if os.fsencode(path).endswith(b"/closed"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real_list(path)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "listdir", listdir)
    world = kit.make_world(tmp_path / "store")
    taken = world.case.ingest("logs", open_source(str(place), "logs"))
    assert taken.manifest.result == "partial"
    assert taken.manifest.notes == [
        "b: Permission denied", "closed/: directory not readable: Permission denied",
    ]  # fmt: skip
    assert taken.manifest.stored_objects == 1


def test_a_file_that_grows_while_it_is_read_is_a_change(tmp_path):
    place = tmp_path / "logs"
    place.mkdir()
    log = place / "a.log"
    log.write_bytes(b"x" * 100)
    source, found = members(place)
    chunks = found[b"a.log"].chunks()
    assert next(chunks) == b"x" * 100
    with log.open("ab") as f:
        f.write(b"more")
    assert b"".join(chunks) == b"more"
    assert source.changes() == ["a.log: changed while it was read (104 bytes taken)"]


@pytest.mark.parametrize("kind", ["logs", "record"])
def test_one_file_is_a_set_of_one(tmp_path, kind):
    path = tmp_path / "auth.log"
    path.write_bytes(b"line\n")
    (tmp_path / "link").symlink_to(path)
    for place in (path, tmp_path / "link"):
        source = open_source(str(place), kind)
        (member,) = source.members()
        assert member.name == os.fsencode(place.name)
        assert b"".join(member.chunks()) == b"line\n"
        assert source.identity["size"] == 5


# -- standard input and devices --------------------------------------------------------------------

PIPE = (
    "import sys; from pathlib import Path; from tests.evidence_store import kit\n"
    "from acquisition.source import open_source\n"
    "world = kit.make_world(Path(sys.argv[1]))\n"
    "taken = world.case.ingest('memory', open_source('-', 'memory'), segment_size=65536)\n"
    "print(taken.manifest.size, taken.manifest.content['sha256'], taken.manifest.result)\n"
)


PIPE_SET = (
    "import sys; from pathlib import Path; from tests.evidence_store import kit\n"
    "from acquisition.source import open_source\n"
    "world = kit.make_world(Path(sys.argv[1]))\n"
    "made = world.case.ingest(sys.argv[2], open_source('-', sys.argv[2])).manifest\n"
    "print(made.layout, made.result, made.members.count)\n"
)


def test_standard_input_is_taken_to_its_end(tmp_path):
    import hashlib

    data = random.Random(1).randbytes(3 * SEGMENT + 11)
    done = subprocess.run(
        [sys.executable, "-c", PIPE, str(tmp_path / "store")], input=data, capture_output=True,
        check=True,
    )  # fmt: skip
    wanted = f"{len(data)} {hashlib.sha256(data).hexdigest()} ok\n"
    assert done.stdout.decode() == wanted
    assert kit.verify(tmp_path / "store").findings == []


@pytest.mark.parametrize("kind", ["logs", "record"])
def test_standard_input_is_a_set_of_one_where_a_file_would_be(tmp_path, kind):
    done = subprocess.run(
        [sys.executable, "-c", PIPE_SET, str(tmp_path / "store"), kind], input=b"line\n" * 1000,
        capture_output=True, check=True,
    )  # fmt: skip
    assert done.stdout.decode().split() == ["set", "ok", "1"]
    (stored,) = (tmp_path / "store").rglob("E0001/data/*")
    assert stored.read_bytes() == b"line\n" * 1000
    (listed,) = (tmp_path / "store").rglob("members.jsonl")
    assert '"name": "stdin"' in listed.read_text()
    assert kit.verify(tmp_path / "store").findings == []


@pytest.mark.parametrize("kind", ["disk", "logs"])
def test_a_closed_source_holds_no_descriptor_and_reads_no_more(tmp_path, kind):
    put_parts(tmp_path, "disk", ["001", "002"])
    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    with open_source(str(tmp_path / "disk.001"), kind) as source:
        assert source.changes() == []
    source.close()
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208
    if kind == "disk":
        with pytest.raises(OSError, match="Bad file descriptor"):
            source.readinto(memoryview(bytearray(10)), 0)


def test_a_refused_source_holds_no_descriptor(tmp_path):
    (tmp_path / "disk.vhdx").write_bytes(b"vhdxfile" + bytes(100))
    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    with pytest.raises(AcquisitionError):
        open_source(str(tmp_path / "disk.vhdx"), "disk")
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208


def test_a_terminal_is_not_evidence(monkeypatch):
    monkeypatch.setattr(os, "isatty", lambda _fd: True)
    with pytest.raises(AcquisitionError, match="terminal"):
        StandardInput("x")


def test_writable_mounts_are_those_of_a_writable_superblock():
    table = (
        "29 1 259:1 / /data rw,noatime - ext4 /dev/vda1 rw\n"
        "30 1 259:2 / /bound ro - ext4 /dev/vda2 rw,errors=remount-ro\n"
        "31 1 259:3 / /read\\040only ro shared:1 - xfs /dev/vda3 ro\n"
        "32 1 0:40 / /btrfs rw - btrfs /dev/nothing-of-this-name rw\n"
        "33 1 0:5 / /proc rw - proc proc rw\n"
        "34 1 259:4 / /a\\040b\\134c rw - ext4 /dev/vda4 rw\n"
        "cut off\n"
    )
    assert list(module._writable_mounts(table)) == [
        ("259:1", "/data"), ("259:2", "/bound"), ("0:5", "/proc"), ("259:4", "/a b\\c"),
    ]  # fmt: skip


def test_a_device_stamp_speaks_of_the_whole_disk_and_admits_what_it_cannot_tell(tmp_path):
    disk, part = tmp_path / "vda", tmp_path / "vda/vda1"
    (disk / "queue").mkdir(parents=True)
    part.mkdir()
    (part / "partition").write_text("1\n")
    (disk / "diskseq").write_text("9\n")
    (disk / "queue/iostats").write_text("1\n")

    def count(sectors, discarded=0):
        counters = [1, 0, 8, 1, 2, 0, sectors, 3, 0, 4, 5, 6, 0, discarded, 0, 0, 0]
        (disk / "stat").write_text(" ".join(map(str, counters)))

    count(100)
    first = module._device_stamp(part)
    assert first == module._device_stamp(disk)
    assert " diskseq 9 written 100 discarded 0" in first
    for change in ((108, 0), (100, 8)):
        count(*change)
        assert module._device_stamp(part) != first
    count(100)
    assert module._device_stamp(part) == first
    (disk / "diskseq").write_text("10\n")
    assert module._device_stamp(part) != first
    (disk / "queue/iostats").write_text("0\n")  # the kernel no longer counts
    assert module._device_stamp(part).startswith("not known")
    assert module._device_stamp(part) != module._device_stamp(part)


@pytest.fixture
def loop(tmp_path, need_tool):
    """Attach an image as a loop device, writable; partitions by `addpart` (start, sectors)."""
    attached = []

    def attach(image, *parts):
        done = subprocess.run([need_tool("losetup"), "--find", "--show", image], check=False,
                              capture_output=True, text=True)  # fmt: skip
        if done.returncode:
            pytest.skip(f"no loop device: {done.stderr.strip()}")
        device = done.stdout.strip()
        attached.append(device)
        for n, (start, length) in enumerate(parts, 1):
            subprocess.run([need_tool("addpart"), device, str(n), str(start), str(length)],
                           check=True)  # fmt: skip
        return device

    yield attach
    for device in attached:
        subprocess.run([need_tool("partx"), "--delete", device], check=False, capture_output=True)
        subprocess.run([need_tool("losetup"), "--detach", device], check=True)


@pytest.mark.chaos
@pytest.mark.skipif(os.geteuid() != 0, reason="attaches a loop device")
def test_a_device_that_was_written_to_is_not_passed_off_as_taken(tmp_path, loop):
    image = tmp_path / "disk.img"
    image.write_bytes(pattern(8 * SEGMENT))
    device = loop(image)
    world = kit.make_world(tmp_path / "store")

    def take():
        with open_source(device, "disk") as source:
            return world.case.ingest("disk", source, segment_size=SEGMENT)

    first = take()
    assert first.manifest.result == "ok"
    assert take().existing
    with Path(device).open("r+b") as f:
        f.seek(4096)
        f.write(b"written" * 1000)
    again = take()
    assert (again.item_id, again.existing, again.manifest.result) == ("E0002", False, "ok")
    assert again.manifest.image_root != first.manifest.image_root
    notes = [e.note or "" for e in world.case.ledger.events]
    assert any("taken as E0001 and may have been written to since" in note for note in notes)
    with image.open("r+b") as f:  # below the device, where its counters do not see it
        f.write(b"other")
    os.utime(image, ns=(1, 1))
    assert take().item_id == "E0003"
    assert take().existing


@pytest.mark.chaos
@pytest.mark.skipif(os.geteuid() != 0, reason="attaches a loop device")
def test_a_device_written_to_while_it_is_read_is_told(tmp_path, loop):
    image = tmp_path / "disk.img"
    image.write_bytes(pattern(SEGMENT))
    device = loop(image)
    with open_source(device, "disk") as source:
        read_all(source)
        assert source.changes() == []
        with Path(device).open("r+b", buffering=0) as f:
            f.write(b"written" * 1000)
            os.fsync(f.fileno())
        assert source.changes() == ["was written to while it was read: not the state of one moment"]


@pytest.mark.chaos
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a loop device")
def test_a_mounted_partition_of_a_whole_disk_is_told(tmp_path, loop, need_tool):
    image, point = tmp_path / "disk.img", tmp_path / "mount point"
    with image.open("wb") as f:
        f.truncate(32 << 20)
    point.mkdir()
    device = loop(image, (2048, 20480), (30720, 20480))
    part = f"{device}p1"
    subprocess.run([need_tool("mke2fs"), "-q", "-F", part], check=True)
    subprocess.run([need_tool("mount"), part, point], check=True)
    try:
        with open_source(device, "disk") as source:
            wanted = f"its partition {Path(part).name} is mounted writable at {point}"
            assert source.facts["mounted"] == [wanted]
            assert source.changes()[0] == f"{wanted}: not the state of one moment"
        with open_source(part, "disk") as source:
            assert source.facts["mounted"] == [f"is mounted writable at {point}"]
        with open_source(f"{device}p2", "disk") as source:
            assert "mounted" not in source.facts
            assert source.changes() == []
    finally:
        subprocess.run([need_tool("umount"), point], check=True)
    with open_source(device, "disk") as source:
        assert "mounted" not in source.facts


@pytest.mark.chaos
@pytest.mark.skipif(os.geteuid() != 0, reason="attaches a loop device")
def test_a_block_device_is_taken_whole(tmp_path, need_tool):
    image = tmp_path / "disk.img"
    data = pattern(SEGMENT) + bytes(SEGMENT) + pattern(SEGMENT // 2)
    image.write_bytes(data)
    losetup = need_tool("losetup")
    attached = subprocess.run(
        [losetup, "--find", "--show", "--read-only", image], check=False, capture_output=True,
        text=True,
    )  # fmt: skip
    if attached.returncode:
        pytest.skip(f"no loop device: {attached.stderr.strip()}")
    device = attached.stdout.strip()
    try:
        source = open_source(device, "disk")
        assert isinstance(source, BlockDevice)
        assert source.size == len(data)
        assert source.facts["type"] == "block device"
        assert source.facts["read_only"] == "1"
        assert source.facts["backing_file"] == str(image)
        assert re.fullmatch(r"7:\d+", source.facts["device"])
        world = kit.make_world(tmp_path / "store")
        taken = world.case.ingest("disk", source, segment_size=SEGMENT)
        assert taken.manifest.result == "ok"
        assert taken.manifest.holes_bytes == SEGMENT
        with world.case.open("E0001") as f:
            assert f.read() == data
    finally:
        subprocess.run([losetup, "--detach", device], check=True)
