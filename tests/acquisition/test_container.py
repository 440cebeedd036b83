# SPDX-License-Identifier: Apache-2.0
"""Containers: the disk inside is taken, what is damaged is a gap, what is hostile hurts a child."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import resource
import struct
import subprocess
import time
import zlib
from pathlib import Path

import pytest

from acquisition.container import ewf as ewf_module
from acquisition.container import image as module
from acquisition.container.disk import File
from acquisition.container.ewf import SIGNATURE
from acquisition.errors import AcquisitionError, SourceNotFoundError, UnsupportedSourceError
from acquisition.source import open_source
from evidence_store.backend import SparseBody
from evidence_store.child import Child, Limits
from evidence_store.digest import LinearDigest
from evidence_store.transfer.image import join_gaps, read_runs
from tests.conftest import need_tool
from tests.evidence_store.kit import SEGMENT

MIB = 1 << 20
CHUNK = 32768
QEMU = [
    ("qcow2", "disk.qcow2", ""), ("qcow2", "disk.qcow2", "compat=0.10"),
    ("qcow2", "disk.qcow2", "cluster_size=512"), ("qcow2", "disk.qcow2", "cluster_size=2M"),
    ("qcow2", "disk.qcow2", "extended_l2=on"),
    ("vmdk", "disk.vmdk", "subformat=monolithicSparse"),
    ("vmdk", "disk.vmdk", "subformat=monolithicFlat"),
    ("vmdk", "disk.vmdk", "subformat=twoGbMaxExtentSparse"),
    ("vmdk", "disk.vmdk", "subformat=twoGbMaxExtentFlat"),
    ("vmdk", "disk.vmdk", "subformat=streamOptimized"),
    ("vpc", "disk.vhd", "subformat=dynamic,force_size=on"),
    ("vpc", "disk.vhd", "subformat=fixed,force_size=on"),
    ("vhdx", "disk.vhdx", "subformat=dynamic"), ("vhdx", "disk.vhdx", "subformat=fixed"),
    ("vhdx", "disk.vhdx", "subformat=dynamic,block_size=1M"),
]  # fmt: skip


def sh(*argv: str | Path) -> str:
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True)
    assert done.returncode == 0, (argv, done.stderr or done.stdout)
    return done.stdout


@pytest.fixture(scope="session")
def disk(tmp_path_factory):
    """A sparse raw disk of 24 MiB and some sectors: noise, text, and much that is zero."""
    path = tmp_path_factory.mktemp("disk") / "disk.raw"
    noise = random.Random(7)
    with path.open("wb") as f:
        f.truncate(24 * MIB + 7 * 512)
        for at, length in ((0, MIB), (5 * MIB + 12345, 2 * MIB), (16 * MIB, 300), (23 * MIB, MIB)):
            f.seek(at)
            f.write(noise.randbytes(length // 2) + b"a line of text\n" * (length // 30))
    return path


def read_with_gaps(source, view, offset):
    """Fill `view` as an ingest would store it; return the gaps."""
    runs, gaps = read_runs(source, view, offset, LinearDigest())
    SparseBody(view, runs).whole()
    return gaps


def content(source) -> tuple[bytes, list]:
    """All bytes, taken as an ingest does, and the gaps."""
    out = bytearray(source.size)
    gaps = []
    with memoryview(out) as view:
        for at in range(0, source.size, 8 * MIB):
            gaps += read_with_gaps(source, view[at : at + 8 * MIB], at)
    return bytes(out), join_gaps(gaps)


def convert(disk, folder, form, name, options=""):
    need_tool("qemu-img")
    more = ["-o", options] if options else []
    sh("qemu-img", "convert", "-O", form, *more, disk, folder / name)
    return folder / name


@pytest.fixture
def ewf(tmp_path, disk):
    """Make an E01 set; return its first file."""

    def make(*options: str, name="disk", form="encase6", image=None) -> Path:
        need_tool("ewfacquire")
        target = tmp_path / name
        sh("ewfacquire", "-u", "-q", "-t", target, "-f", form, "-d", "sha1", *options,
           image or disk)  # fmt: skip
        return next(p for p in sorted(tmp_path.glob(f"{name}.*01")) if p.suffix[2:] == "01")

    return make


# -- round trips -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "name", "options"), QEMU)
def test_what_qemu_packed_comes_out_as_it_was(tmp_path, disk, form, name, options):
    path = convert(disk, tmp_path, form, name, options)
    source = open_source(str(path), "disk")
    data, gaps = content(source)
    assert gaps == []
    # VMDK of several extents and VHD hold whole units only: what comes after must be zero.
    raw = disk.read_bytes()
    assert data[: len(raw)] == raw
    assert not any(data[len(raw) :])
    assert source.conclude(None) == []
    # The same question to another reader.
    sh("qemu-img", "convert", "-f", form, "-O", "raw", path, tmp_path / "again.raw")
    assert data == (tmp_path / "again.raw").read_bytes()


def test_compressed_clusters_come_out_as_they_were(tmp_path, disk):
    need_tool("qemu-img")
    sh("qemu-img", "convert", "-c", "-O", "qcow2", disk, tmp_path / "c.qcow2")
    assert content(open_source(str(tmp_path / "c.qcow2"), "disk")) == (disk.read_bytes(), [])


@pytest.mark.chaos
def test_holes_of_a_sparse_container_are_not_read(tmp_path):
    need_tool("qemu-img")
    for form, options in (("qcow2", ""), ("vhdx", ""), ("vmdk", ""), ("vpc", "force_size=on")):
        path = tmp_path / f"big.{form}"
        sh("qemu-img", "create", "-f", form, *(["-o", options] if options else []), path, "1T")
        sh("qemu-io", "-f", form, "-c", "write -P 7 700G 64k", path)
        source = open_source(str(path), "disk")
        assert source.size >= 1 << 40
        at, steps = 0, 0
        while at < 700 << 30:
            following = source.next_data(at)
            steps += 1
            assert following > at or steps > 1
            at = following
            assert steps < 100
        assert at == 700 << 30
        block = bytearray(65536)
        assert source.readinto(memoryview(block), at) == 65536
        assert bytes(block) == b"\7" * 65536
        end = at + 65536
        for _ in range(100):
            end = source.next_data(end + (32 << 20) if end == at + 65536 else end)
            if end == source.size:
                break
        assert end == source.size


@pytest.mark.parametrize(
    "form", ["encase6", "encase5", "encase1", "ftk", "smart", "linen6", "ewfx"]
)
def test_what_ewfacquire_packed_comes_out_as_it_was(ewf, disk, form):
    source = open_source(str(ewf(form=form)), "disk")
    data, gaps = content(source)
    assert (data, gaps) == (disk.read_bytes(), [])
    md5 = hashlib.md5(data).hexdigest()
    assert "md5" in source.digests
    assert source.conclude({"md5": md5, "sha1": hashlib.sha1(data).hexdigest()}) == []
    assert source.facts["container_md5"] == {"stored": md5, "computed": md5, "match": True}


def test_a_set_of_segment_files_is_one_disk(ewf, disk):
    first = ewf("-S", "1MiB", "-c", "none", "-C", "K-7", "-e", "Ann\u202eA", "-N", "a\tb")
    files = sorted(first.parent.glob("disk.E*"))
    assert len(files) > 3
    source = open_source(str(first), "disk")
    assert content(source)[0] == disk.read_bytes()
    source.conclude(None)
    assert source.facts["inside"]["header"]["case_number"] == "K-7"
    assert source.facts["files"] == [
        {"name": p.name, "size": p.stat().st_size,
         "sha256": hashlib.sha256(p.read_bytes()).hexdigest()} for p in files
    ]  # fmt: skip


def test_a_set_of_more_files_than_a_process_may_open_by_default(tmp_path):
    """1,300 segment files, written by hand: ewfacquire makes none below 1 MiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4000:
        pytest.skip(f"the system allows only {hard} descriptors")
    count = 1300
    body = write_set(tmp_path, count)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        source = open_source(str(tmp_path / "many.E01"), "disk")
        assert content(source) == (body, [])
        md5 = hashlib.md5(body).hexdigest()
        assert source.conclude({"md5": md5}) == []
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(source.facts["files"]) == 200
    assert source.facts["files_count"] == count


def write_set(folder: Path, count: int, chunk: int = 4096) -> bytes:
    """A set of `count` files with one uncompressed chunk each; return the disk."""

    def section(kind: bytes, at: int, body: bytes, last: bool = False) -> bytes:
        size = 76 + len(body)
        head = struct.pack("<16sQQ40x", kind, at if last else at + size, size)
        return head + struct.pack("<I", zlib.adler32(head)) + body

    chunks = [struct.pack("<I", n) * (chunk // 4) for n in range(count)]
    suffixes = ["E01", *module.segment_suffixes("E01")]
    for n, data in enumerate(chunks):
        out = SIGNATURE + struct.pack("<BHH", 1, n + 1, 0)
        if n == 0:
            volume = bytearray(1048)
            struct.pack_into("<BxxxIIIQ", volume, 0, 1, count, chunk // 512, 512,
                             count * chunk // 512)  # fmt: skip
            out += section(b"volume", len(out), volume + struct.pack("<I", zlib.adler32(volume)))
        start = len(out) + 76
        out += section(b"sectors", len(out), data + struct.pack("<I", zlib.adler32(data)))
        head = struct.pack("<I4xQ4x", 1, 0)
        entries = struct.pack("<I", start)
        table = head + struct.pack("<I", zlib.adler32(head)) + entries
        table += struct.pack("<I", zlib.adler32(entries))
        out += section(b"table", len(out), table)
        if n == count - 1:
            digest = hashlib.md5(b"".join(chunks)).digest() + bytes(16)
            digest += struct.pack("<I", zlib.adler32(digest))
            out += section(b"hash", len(out), digest)
        out += section(b"done" if n == count - 1 else b"next", len(out), b"", last=True)
        (folder / f"many.{suffixes[n]}").write_bytes(out)
    return b"".join(chunks)


def write_ex01(folder: Path, disk: bytes, files: int = 2, chunk: int = CHUNK) -> list[Path]:
    """An Ex01 set as EnCase 7 makes them: packed, plain and pattern chunks, both digests.

    libewf 20260924 reads what this writes as it is meant.
    """
    chunks = [disk[at : at + chunk] for at in range(0, len(disk), chunk)]
    each = -(-len(chunks) // files)
    paths = []

    def text(names: str, values: str) -> bytes:
        rows = f"1\nmain\n{names}\n{values}\n\n"
        return zlib.compress(b"\xff\xfe" + rows.encode("utf-16-le"))

    def sealed(body: bytes, pad: int) -> bytes:
        return body + struct.pack("<I", zlib.adler32(body)) + bytes(pad)

    for n in range(files):
        out = bytearray(b"EVF2\r\n\x81\0" + struct.pack("<BBHI", 2, 1, 1, n + 1) + bytes(range(16)))
        before = 0

        def section(kind: int, body: bytes, out=out) -> None:
            nonlocal before
            pad = -len(body) % 16
            out += body + bytes(pad)
            digest = hashlib.md5(body + bytes(pad)).digest()
            head = struct.pack("<IIQQII16s12x", kind, 1, before, len(body) + pad, 64, pad, digest)
            before = len(out)
            out += sealed(head, 0)

        section(1, text("sn\tmd\tts\tdt\tbp\tph", f"S1\tM\t{len(disk) // 512}\tf\t512\t1"))
        section(2, text("cn\tex\ttb\tsb", f"K-7\tAnn\t{len(chunks)}\t{chunk // 512}"))
        base, body, entries = len(out), bytearray(), b""
        for number, data in list(enumerate(chunks))[n * each : (n + 1) * each]:
            packed = zlib.compress(data)
            if number % 5 == 4 and data == data[:8] * (len(data) // 8):
                entries += data[:8] + struct.pack("<II", 0, 4 | 1)
                continue
            flags = 1 if len(packed) < len(data) else 2
            stored = packed if flags == 1 else sealed(data, 0)
            entries += struct.pack("<QII", base + len(body), len(stored), flags)
            body += stored + bytes(-len(stored) % 16)
        section(3, bytes(body))
        head = struct.pack("<QII", n * each, len(entries) // 16, 0)
        section(4, sealed(head, 12) + sealed(entries, 12))
        if n == files - 1:
            section(8, sealed(hashlib.md5(disk).digest(), 12))
            section(9, sealed(hashlib.sha1(disk).digest(), 8))
        section(15 if n == files - 1 else 13, b"")
        paths.append(folder / f"d.Ex{n + 1:02d}")
        paths[-1].write_bytes(out)
    return paths


@pytest.mark.parametrize("files", [1, 3])
def test_an_ex01_comes_out_as_it_was(tmp_path, disk, files):
    raw = disk.read_bytes()
    source = open_source(str(write_ex01(tmp_path, raw, files)[0]), "disk")
    assert content(source) == (raw, [])
    digests = {"md5": hashlib.md5(raw).hexdigest(), "sha1": hashlib.sha1(raw).hexdigest()}
    assert source.conclude(digests) == []
    assert source.facts["inside"]["header"] == {
        "case_number": "K-7", "examiner": "Ann", "serial": "S1", "model": "M",
    }  # fmt: skip
    assert len(source.facts["files"]) == files


def test_a_damaged_ex01_is_a_gap(tmp_path, disk):
    raw = disk.read_bytes()
    paths = write_ex01(tmp_path, raw, 3)
    flip(paths[0], 100_000)
    paths[2].unlink()
    source = open_source(str(paths[0]), "disk")
    data, gaps = content(source)
    assert [gap.length for gap in gaps][:-1] == [CHUNK]
    assert gaps[-1].offset + gaps[-1].length == len(raw)
    whole = bytearray(raw)
    for gap in gaps:
        whole[gap.offset : gap.offset + gap.length] = bytes(gap.length)
    assert data == whole
    assert any("incomplete" in remark for remark in source.conclude(None))


@pytest.mark.chaos
def test_corrupt_ex01_is_gaps_or_one_error(tmp_path, disk):
    (path,) = write_ex01(tmp_path, disk.read_bytes(), 1)
    whole = path.read_bytes()
    chance = random.Random(3)
    for turn in range(8):
        body = bytearray(whole)
        for _ in range(5):
            at = chance.choice((chance.randrange(400), len(body) - 1 - chance.randrange(14_000)))
            body[at] = chance.randrange(256)
        path.write_bytes(body if turn % 4 else body[: chance.randrange(len(body))])
        with contextlib.suppress(AcquisitionError):
            source = open_source(str(path), "disk")
            if source.size < 64 * MIB:
                content(source)
                source.conclude(None)


def test_an_encrypted_ex01_is_refused(tmp_path, disk):
    (path,) = write_ex01(tmp_path, disk.read_bytes(), 1)
    body = bytearray(path.read_bytes())
    body[-64:-60] = struct.pack("<I", 11)
    body[-4:] = struct.pack("<I", zlib.adler32(bytes(body[-64:-4])))
    path.write_bytes(body)
    with pytest.raises(UnsupportedSourceError, match="encrypted"):
        open_source(str(path), "disk")


def test_offsets_that_grow_past_31_bits(tmp_path):
    """EnCase 6.7 writes the whole 32 bits then, and such chunks are not compressed."""
    path = tmp_path / "table"
    path.write_bytes(struct.pack("<4I", 0x80000010, 0x7FFFFF00, 0x80000100, 0x80008200))
    disk = ewf_module.Ewf.__new__(ewf_module.Ewf)
    with path.open("rb") as f:
        file = File(f.fileno(), 16, "table")
        disk._tables = [ewf_module._Table(file, 0, 4, 1000, 0x80010000, "")]
        assert disk._read_entries(0) == [
            (0x10 + 1000, 0x7FFFFF00 + 1000, True), (0x7FFFFF00 + 1000, 0x80000100 + 1000, False),
            (0x80000100 + 1000, 0x80008200 + 1000, False), (0x80008200 + 1000, 0x80010000, False),
        ]  # fmt: skip


def test_two_threads_read_at_once(ewf, disk):
    from concurrent.futures import ThreadPoolExecutor

    source = open_source(str(ewf()), "disk")
    raw = disk.read_bytes()

    def part(at):
        view = bytearray(min(100_000, len(raw) - at))
        return not read_with_gaps(source, memoryview(view), at) and view == raw[at : at + 100_000]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(part, range(0, len(raw), 100_000)))


def test_an_active_layer_is_taken_and_said_to_be_one(tmp_path, disk):
    path = convert(disk, tmp_path, "qcow2", "s.qcow2")
    sh("qemu-img", "snapshot", "-c", "before", path)
    sh("qemu-io", "-f", "qcow2", "-c", "write -P 9 2M 1M", path)
    source = open_source(str(path), "disk")
    data, _ = content(source)
    assert data[2 * MIB : 3 * MIB] == b"\x09" * MIB
    assert source.facts["inside"]["snapshots"] == 1
    assert "active" in source.facts["inside"]["layer"]


def test_an_ingest_records_the_digests_of_the_container(world, ewf, disk):
    done = world.case.ingest("disk", open_source(str(ewf()), "disk"), segment_size=SEGMENT)
    manifest = done.manifest
    assert manifest.result == "ok"
    assert manifest.content["sha256"] == hashlib.sha256(disk.read_bytes()).hexdigest()
    for name in ("md5", "sha1"):
        assert manifest.source[f"container_{name}"]["match"] is True
        assert manifest.content[name] == manifest.source[f"container_{name}"]["stored"]
    path = manifest.source["path"]
    assert world.case.ingest("disk", open_source(path, "disk")).existing


# -- damage ----------------------------------------------------------------------------------------


def flip(path: Path, at: int) -> None:
    body = bytearray(path.read_bytes())
    body[at] ^= 0x10
    path.write_bytes(body)


@pytest.mark.parametrize("packing", ["none", "fast"])
def test_a_damaged_chunk_is_a_gap_and_the_digest_says_so(world, ewf, disk, packing):
    path = ewf("-c", packing)
    flip(path, 700_000)
    manifest = world.case.ingest("disk", open_source(str(path), "disk")).manifest
    assert manifest.result == "partial"
    (gap,) = manifest.unreadable
    assert gap.length == CHUNK
    assert "checksum" in gap.error or "incorrect" in gap.error or "Error" in gap.error
    assert manifest.source["container_md5"]["match"] is False
    assert any("MD5 stored in the container" in note for note in manifest.notes)
    raw = bytearray(disk.read_bytes())
    raw[gap.offset : gap.offset + gap.length] = bytes(gap.length)
    assert manifest.content["sha256"] == hashlib.sha256(raw).hexdigest()


def test_a_damaged_table_is_read_from_its_copy(ewf, disk):
    path = ewf()
    at = path.read_bytes().index(b"table\0") + 76 + 24 + 9
    flip(path, at)
    source = open_source(str(path), "disk")
    assert content(source) == (disk.read_bytes(), [])
    assert any("its copy is used" in remark for remark in source.conclude(None))


def test_both_tables_damaged_is_a_gap(ewf, disk):
    path = ewf()
    body = path.read_bytes()
    for name in (b"table\0", b"table2\0"):
        flip(path, body.index(name) + 76 + 24 + 9)
    data, gaps = content(open_source(str(path), "disk"))
    assert sum(gap.length for gap in gaps) == len(data)


def test_a_set_without_its_end_is_a_gap(ewf, disk):
    first = ewf("-S", "1MiB", "-c", "none")
    sorted(first.parent.glob("disk.E*"))[-1].unlink()
    source = open_source(str(first), "disk")
    data, (gap,) = content(source)
    assert gap.offset + gap.length == source.size
    assert data[: gap.offset] == disk.read_bytes()[: gap.offset]
    assert any("incomplete" in remark for remark in source.conclude(None))


def test_a_cut_file_within_a_set_does_not_shift_what_follows(ewf, disk):
    first = ewf("-S", "1MiB", "-c", "none")
    second = first.with_suffix(".E02")
    second.write_bytes(second.read_bytes()[:-2000])
    source = open_source(str(first), "disk")
    data, (gap,) = content(source)
    raw = disk.read_bytes()
    assert data[: gap.offset] == raw[: gap.offset]
    assert gap.offset + gap.length == len(raw)
    assert any("can be placed" in remark for remark in source.conclude(None))


def test_a_set_that_lacks_one_in_between_is_refused(ewf):
    first = ewf("-S", "1MiB", "-c", "none")
    first.with_suffix(".E02").unlink()
    with pytest.raises(UnsupportedSourceError, match=r"lacks disk\.E02, but has disk\.E03"):
        open_source(str(first), "disk")


def test_a_later_file_of_a_set_is_refused(ewf):
    first = ewf("-S", "1MiB", "-c", "none")
    with pytest.raises(UnsupportedSourceError, match="segment file 2"):
        open_source(str(first.with_suffix(".E02")), "disk")


def test_a_file_of_another_set_is_refused(ewf):
    first = ewf("-S", "1MiB", "-c", "none")
    for path, section, mark in (
        (first, b"volume\0", b"\1"), (first.with_suffix(".E02"), b"data\0", b"\2"),
    ):  # fmt: skip
        body = bytearray(path.read_bytes())
        at = body.index(section) + 76
        body[at + 64 : at + 80] = mark * 16
        body[at + 1048 : at + 1052] = struct.pack("<I", zlib.adler32(bytes(body[at : at + 1048])))
        path.write_bytes(body)
    with pytest.raises(AcquisitionError, match="belongs to another set"):
        open_source(str(first), "disk")


@pytest.mark.parametrize(("form", "name", "options"), [
    ("qcow2", "d.qcow2", ""), ("vmdk", "d.vmdk", ""), ("vhdx", "d.vhdx", ""),
    ("vmdk", "d.vmdk", "subformat=monolithicFlat"),
])  # fmt: skip
def test_a_truncated_container_is_a_gap_not_zeros(tmp_path, disk, form, name, options):
    path = convert(disk, tmp_path, form, name, options)
    data = tmp_path / "d-flat.vmdk" if "Flat" in options else path
    size = data.stat().st_size
    os.truncate(data, size - MIB // 2 - 512)
    got, gaps = content(open_source(str(path), "disk"))
    raw = bytearray(disk.read_bytes())
    assert gaps
    for gap in gaps:
        raw[gap.offset : gap.offset + gap.length] = bytes(gap.length)
    assert got[: len(raw)] == raw


def test_a_damaged_grain_of_a_stream_is_a_gap(tmp_path, disk):
    path = convert(disk, tmp_path, "vmdk", "s.vmdk", "subformat=streamOptimized")
    flip(path, path.stat().st_size // 2)
    got, gaps = content(open_source(str(path), "disk"))
    assert sum(gap.length for gap in gaps) == 65536
    assert got[: gaps[0].offset] == disk.read_bytes()[: gaps[0].offset]


def test_errors_of_the_first_acquisition_are_told(ewf, tmp_path):
    path = ewf()
    body = path.read_bytes()
    at = body.index(b"digest\0")
    errors = struct.pack("<I516x", 1) + struct.pack("<II", 40, 8) + bytes(4)
    head = struct.pack("<16sQQ40x", b"error2", at + 76 + len(errors), 76 + len(errors))
    moved = body[at:]
    # The sections behind move on, and with them the places they name.
    shifted, pos = b"", 0
    while pos < len(moved):
        kind, following, size = struct.unpack_from("<16sQQ", moved, pos)
        name = kind.rstrip(b"\0")
        length = size if name != b"done" else 76
        place = following + 76 + len(errors)
        section = struct.pack("<16sQQ40x", kind, place, size)
        shifted += section + struct.pack("<I", zlib.adler32(section))
        shifted += moved[pos + 76 : pos + length]
        pos += length
    path.write_bytes(body[:at] + head + struct.pack("<I", zlib.adler32(head)) + errors + shifted)
    source = open_source(str(path), "disk")
    assert source.facts["inside"]["acquisition_errors"] == [[40, 8]]
    assert any("could not read 8 sectors" in r for r in source.conclude(None))


def test_a_container_written_to_meanwhile_is_noticed(tmp_path, disk):
    path = convert(disk, tmp_path, "qcow2", "d.qcow2")
    source = open_source(str(path), "disk")
    assert source.changes() == []
    with path.open("ab") as f:
        f.write(b"x")
    assert source.changes() == ["d.qcow2: was written to while it was read"]


# -- refused ---------------------------------------------------------------------------------------


def test_a_difference_to_a_backing_file_is_refused(tmp_path, disk):
    base = convert(disk, tmp_path, "qcow2", "base.qcow2")
    sh("qemu-img", "create", "-f", "qcow2", "-b", base, "-F", "qcow2", tmp_path / "d.qcow2")
    with pytest.raises(UnsupportedSourceError, match="differs from a backing file") as caught:
        open_source(str(tmp_path / "d.qcow2"), "disk")
    assert "qemu-img convert" in caught.value.hint
    sh("qemu-img", "create", "-f", "vmdk", "-b", convert(disk, tmp_path, "vmdk", "b.vmdk"),
       "-F", "vmdk", tmp_path / "d.vmdk")  # fmt: skip
    with pytest.raises(UnsupportedSourceError, match="differs from a parent"):
        open_source(str(tmp_path / "d.vmdk"), "disk")


@pytest.mark.parametrize("method", [1, 2])
def test_an_encrypted_qcow2_is_refused(tmp_path, disk, method):
    path = convert(disk, tmp_path, "qcow2", "e.qcow2")
    body = bytearray(path.read_bytes())
    body[32:36] = struct.pack(">I", method)  # AES, LUKS
    path.write_bytes(body)
    with pytest.raises(UnsupportedSourceError, match="encrypted"):
        open_source(str(path), "disk")


def test_zstd_clusters_are_refused(tmp_path, disk):
    need_tool("qemu-img")
    path = tmp_path / "z.qcow2"
    sh("qemu-img", "convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd", disk, path)
    with pytest.raises(UnsupportedSourceError, match="zstd"):
        open_source(str(path), "disk")


def test_a_vhdx_with_a_log_is_refused(tmp_path, disk):
    path = convert(disk, tmp_path, "vhdx", "d.vhdx")
    body = bytearray(path.read_bytes())
    for at in (65536, 131072):
        header = body[at : at + 4096]
        header[48:64] = b"\1" * 16
        header[4:8] = bytes(4)
        from acquisition.container import vhd

        crc = 0xFFFFFFFF
        for byte in header:
            crc = crc >> 8 ^ vhd._CRC[(crc ^ byte) & 255]
        header[4:8] = struct.pack("<I", crc ^ 0xFFFFFFFF)
        body[at : at + 4096] = header
    path.write_bytes(body)
    with pytest.raises(UnsupportedSourceError, match="not closed"):
        open_source(str(path), "disk")


# -- hostile ---------------------------------------------------------------------------------------


def descriptor(path: Path, *extents: str, more: str = "") -> str:
    path.write_text("\n".join(
        ["# Disk DescriptorFile", "version=1", "CID=1", "parentCID=ffffffff",
         'createType="custom"', more, *extents]))  # fmt: skip
    return str(path)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../secret", "..", ".", "", "sub/x", "a\\..\\b", "\x00/etc/passwd"]
)
def test_hostile_extent_outside_of_the_folder_is_never_opened(tmp_path, name, monkeypatch):
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(512))
    path = descriptor(folder / "d.vmdk", f'RW 1 FLAT "{name}" 0')
    opened = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda p, *a, **k: opened.append(str(p)) or real(p, *a, **k))
    with pytest.raises(AcquisitionError, match=r"outside of its folder|names no extent"):
        open_source(path, "disk")
    assert {p for p in opened if not p.startswith("/tmp/impound")} <= {path}


def test_hostile_extent_that_is_a_link_or_pipe_is_refused(tmp_path):
    (tmp_path / "link").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("link", "pipe", "folder"):
        with pytest.raises(AcquisitionError, match=f"cannot open {name}|{name} is no regular"):
            open_source(descriptor(tmp_path / "d.vmdk", f'RW 1 FLAT "{name}" 0'), "disk")
    with pytest.raises(SourceNotFoundError, match="cannot open gone"):
        open_source(descriptor(tmp_path / "d.vmdk", 'RW 1 FLAT "gone" 0'), "disk")


def test_an_extent_beside_the_descriptor_is_read(tmp_path):
    (tmp_path / "a b-flat.vmdk").write_bytes(b"x" * 512 + b"y" * 512)
    path = descriptor(
        tmp_path / "d.vmdk", 'RW 1 FLAT "a b-flat.vmdk" 1', "RW 2 ZERO", 'RW 1 VMFS "a b-flat.vmdk"'
    )
    assert content(open_source(path, "disk")) == (b"y" * 512 + bytes(1024) + b"x" * 512, [])


def test_hostile_sizes_are_one_error(tmp_path, ewf):
    path = ewf()
    body = bytearray(path.read_bytes())
    at = body.index(b"volume\0") + 76
    body[at + 4 : at + 8] = struct.pack("<I", 0xFFFFFFFF)
    body[at + 16 : at + 24] = struct.pack("<Q", 1 << 51)
    body[at + 1048 : at + 1052] = struct.pack("<I", zlib.adler32(bytes(body[at : at + 1048])))
    path.write_bytes(body)
    with pytest.raises(AcquisitionError, match="it claims"):
        open_source(str(path), "disk")
    header = struct.pack(
        ">4sIQIIQIIQQIIQ", b"QFI\xfb", 2, 0, 0, 16, 1 << 60, 0, 1, 65536, 0, 0, 0, 0
    )
    (tmp_path / "q").write_bytes(header + bytes(200_000))
    with pytest.raises(UnsupportedSourceError, match="claims a disk of"):
        open_source(str(tmp_path / "q"), "disk")
    (tmp_path / "flat").write_bytes(bytes(512))
    with pytest.raises(UnsupportedSourceError, match="claims a disk of"):
        open_source(descriptor(tmp_path / "v", f'RW {1 << 49} FLAT "flat" 0'), "disk")


def test_hostile_table_that_loops_is_a_gap(tmp_path):
    """Every entry of the second table leads to one cluster: 512 MiB of one."""
    size = 512 * MIB
    header = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", 2, 0, 0, 16, size, 0, 1, 65536, 0, 0, 0, 0)
    body = bytearray(4 * 65536)
    body[: len(header)] = header
    body[65536 : 65536 + 8] = struct.pack(">Q", 2 * 65536)
    body[2 * 65536 : 3 * 65536] = struct.pack(">Q", 3 * 65536) * 8192
    (tmp_path / "loop").write_bytes(body)
    source = open_source(str(tmp_path / "loop"), "disk")
    view = bytearray(8 * MIB)
    (gap,) = read_with_gaps(source, memoryview(view), 0)
    assert gap.length == len(view)
    body[65536 : 65536 + 16] = struct.pack(">QQ", 2 * 65536, 2 * 65536)
    body[24:32] = struct.pack(">Q", 2 * size)
    body[36:40] = struct.pack(">I", 2)
    (tmp_path / "twice").write_bytes(body)
    with pytest.raises(AcquisitionError, match="lead to one place"):
        open_source(str(tmp_path / "twice"), "disk")


def test_hostile_sections_in_a_circle_end(ewf):
    path = ewf()
    body = bytearray(path.read_bytes())
    at = body.index(b"sectors\0")
    section = body[at : at + 72]
    section[16:24] = struct.pack("<Q", 13)
    body[at : at + 76] = section + struct.pack("<I", zlib.adler32(bytes(section)))
    path.write_bytes(body)
    with pytest.raises(AcquisitionError, match="no table of chunks"):
        open_source(str(path), "disk")


@pytest.mark.parametrize("form", ["E01", "qcow2", "vmdk", "stream", "vhd", "vhdx"])
def test_corrupt_containers_are_gaps_or_one_error(tmp_path, disk, ewf, form):
    """Random damage to the tables: no traceback, no hang, and no byte that is wrong unnoticed."""
    if form == "E01":
        path = ewf()
    else:
        qemu, options = {
            "qcow2": ("qcow2", ""), "vmdk": ("vmdk", ""), "vhdx": ("vhdx", ""),
            "stream": ("vmdk", "subformat=streamOptimized"), "vhd": ("vpc", "force_size=on"),
        }[form]  # fmt: skip
        path = convert(disk, tmp_path, qemu, f"d.{form}", options)
    whole = path.read_bytes()
    chance = random.Random(form)
    heads = [0, len(whole) - 1024, *(chance.randrange(len(whole)) for _ in range(3))]
    for turn in range(8):
        body = bytearray(whole)
        at = heads[turn % len(heads)]
        for _ in range(chance.randrange(1, 12)):
            body[min(len(body) - 1, at + chance.randrange(600))] = chance.randrange(256)
        path.write_bytes(body if turn % 4 else body[: chance.randrange(len(body))])
        try:
            source = open_source(str(path), "disk")
        except AcquisitionError:
            continue
        if isinstance(source, module.ContainerImage) and source.size < 64 * MIB:
            data, _ = content(source)
            assert len(data) == source.size
            source.conclude(None)


# -- the child -------------------------------------------------------------------------------------


def crashing(monkeypatch, body: str):
    """Readers whose child runs `body` (tests.acquisition.reader_bodies) instead."""
    real = Child.start

    def start(self):
        self.module, self.request = "tests.acquisition.reader_bodies", {**self.request, "as": body}
        return real(self)

    monkeypatch.setattr(Child, "start", start)


def test_a_child_that_dies_at_one_spot_leaves_a_gap_there(tmp_path, disk, monkeypatch):
    crashing(monkeypatch, "dies_at_5_mib")
    path = convert(disk, tmp_path, "qcow2", "d.qcow2")
    source = open_source(str(path), "disk")
    view = bytearray(8 * MIB)
    (gap,) = read_with_gaps(source, memoryview(view), 0)
    assert (gap.offset, gap.length) == (5 * MIB, 4096)
    assert "SIGSEGV" in gap.error
    raw = bytearray(disk.read_bytes()[: 8 * MIB])
    raw[5 * MIB : 5 * MIB + 4096] = bytes(4096)
    assert view == raw


def test_a_child_that_always_dies_is_given_up(world, tmp_path, disk, monkeypatch):
    crashing(monkeypatch, "dies")
    monkeypatch.setattr(module, "_MAX_DEATHS", 5)
    path = convert(disk, tmp_path, "qcow2", "d.qcow2")
    with pytest.raises(AcquisitionError, match="died 6 times"):
        world.case.ingest("disk", open_source(str(path), "disk"))
    assert world.case.item("E0001").intents[-1].outcome == "failed"


def test_a_child_that_hangs_is_ended(tmp_path, disk, monkeypatch):
    crashing(monkeypatch, "hangs")
    monkeypatch.setattr(module, "_TIMEOUT_S", 2.0)
    path = convert(disk, tmp_path, "qcow2", "d.qcow2")
    started = time.monotonic()
    with pytest.raises(OSError, match="no answer in 2 s"):
        open_source(str(path), "disk").readinto(memoryview(bytearray(10)), 0)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("body", ["lies", "garbage", "wrong_type"])
def test_what_a_child_says_is_not_trusted(tmp_path, disk, monkeypatch, body):
    crashing(monkeypatch, body)
    path = convert(disk, tmp_path, "qcow2", "d.qcow2")
    source = open_source(str(path), "disk")
    view = bytearray(b"\xee" * 100)
    with pytest.raises(OSError, match=r"no reason|malformed|no known type"):
        source.readinto(memoryview(view), 0)
    assert view == b"\xee" * 100


def test_a_child_cannot_take_the_shared_memory_away(tmp_path, disk, monkeypatch):
    crashing(monkeypatch, "cuts_the_memory")
    path = convert(disk, tmp_path, "qcow2", "d.qcow2")
    with pytest.raises(OSError, match="not permitted"):
        open_source(str(path), "disk").readinto(memoryview(bytearray(10)), 0)


def test_what_a_child_makes_up_is_cut_to_size(tmp_path, disk, monkeypatch):
    crashing(monkeypatch, "talks")
    source = open_source(str(convert(disk, tmp_path, "qcow2", "d.qcow2")), "disk")
    assert len(repr(source.facts)) < 70_000
    assert source.facts["inside"]["n"] == "1.5"
    assert source.digests == ()


def test_a_child_that_talks_too_much_is_refused(tmp_path, disk, monkeypatch):
    crashing(monkeypatch, "floods")
    with pytest.raises(AcquisitionError, match="breaks the protocol"):
        open_source(str(convert(disk, tmp_path, "qcow2", "d.qcow2")), "disk")


def test_limits_of_the_child_hold(tmp_path, disk, monkeypatch):
    crashing(monkeypatch, "eats_memory")
    path = convert(disk, tmp_path, "qcow2", "d.qcow2")
    with pytest.raises(OSError, match="memory it may use"):
        open_source(str(path), "disk").readinto(memoryview(bytearray(10)), 0)
    assert Limits().address_space == 4 << 30


def test_nothing_is_left_running(tmp_path, disk):
    source = open_source(str(convert(disk, tmp_path, "qcow2", "d.qcow2")), "disk")
    reader = source._readers._all[0]
    process = reader.child._process
    folder = source._readers._folder.name
    del source
    assert process.returncode is not None
    assert not Path(folder).exists()
