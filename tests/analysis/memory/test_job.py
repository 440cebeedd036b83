# SPDX-License-Identifier: Apache-2.0
"""The job `memory` as it runs: a process of its own over an item in a store."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from pathlib import Path

import pytest

from acquisition.source import open_source
from analysis.beside import LIVE, find
from analysis.errors import AnalysisError
from analysis.jobs import EXTRACT, JOBS, extract_request, run_job
from analysis.query import query
from analysis.ram import open_ram
from analysis.symbols.kernel import kernels, read_names
from tests.analysis.conftest import ImageFile
from tests.analysis.kernel_image import TEXT, Memory, elf_core, lime
from tests.analysis.live_answers import BOOT, Asked, answers
from tests.evidence_store import kit

SAMPLES = os.environ.get("IMPOUND_SAMPLES")


@pytest.fixture
def world(tmp_path):
    return kit.make_world(tmp_path / "store")


def take(world, tmp_path, data):
    path = tmp_path / "memory"
    path.write_bytes(data)
    world.case.ingest("memory", open_source(str(path), "memory"))


class Captured:
    """An image as a capture of a host is taken: its facts name target and boot."""

    def __init__(self, path):
        self._image = open_source(str(path), "memory")
        self.facts = {**self._image.facts, "target": "arn:a", "boot_id": BOOT}

    def __getattr__(self, name):
        return getattr(self._image, name)


def said(world):
    rows = query(world.case, "SELECT job, what, reason FROM coverage ORDER BY ALL").rows
    return "\n".join(" ".join(row) for row in rows)


def test_wrong_symbols_are_no_empty_table(world, tmp_path):
    """A kernel whose tables are well formed, and that has not what every kernel has."""
    take(world, tmp_path, lime([(0, bytes(Memory().bytes))]))
    result = run_job(world.case, JOBS["memory"], "E0001")
    assert result.needed.result == "ok"
    assert world.case.item(result.result_item).parents == ["E0001", result.needed.result_item]
    assert result.result == "failed"
    assert set(result.rows) == {"coverage"}
    assert "memory symbols the symbol table cannot be loaded" in said(world)
    again = run_job(world.case, JOBS["memory"], "E0001")
    assert again.needed.existing, "symbols that were made are not made again"
    assert not again.existing, "what failed is tried again"


def test_memory_of_no_kernel_says_so_twice(world, tmp_path):
    take(world, tmp_path, elf_core([(0, bytes(1 << 20))], machine=183))
    result = run_job(world.case, JOBS["memory"], "E0001")
    assert (result.needed.result, result.result) == ("failed", "failed")
    assert "memory of arm64: only x86-64 is analysed" in said(world)
    assert "no symbols of this kernel could be made" in said(world)


def test_truncated_image_is_a_gap_of_the_memory(world, tmp_path):
    take(world, tmp_path, lime([(0, bytes(Memory().bytes)), (1 << 24, bytes(9000))])[:-1000])
    run_job(world.case, JOBS["memory"], "E0001")
    assert "memory memory the image ends 1000 bytes before the range 0x1000000 does" in said(world)


def test_live_response_of_the_same_host_stands_beside_its_memory(world, tmp_path):
    (tmp_path / "memory").write_bytes(lime([(0, bytes(Memory().bytes))]))
    world.case.ingest("memory", Captured(tmp_path / "memory"))
    manifest = world.case.manifest("E0001")
    assert find(world.case, manifest, LIVE) is None
    world.case.ingest("live", Asked(answers({1: "init"}), target="arn:b", serial="other"))
    world.case.ingest("record", Asked(answers({1: "init"}), serial="kind"))
    assert find(world.case, manifest, LIVE) is None, "of another host, or no live response"
    given = {**answers({1: "init"}), "histories": b"secret"}
    taken = world.case.ingest("live", Asked(given))
    found = find(world.case, manifest, LIVE)
    assert (found.item, found.digest) == (taken.item_id, taken.manifest.image_root)
    assert "histories" not in found.objects, "only what is compared"
    result = run_job(world.case, JOBS["memory"], "E0001")
    record = world.case.item(result.result_item)
    assert f"with live response {found.item}" in record.source, "another makes another job"
    assert found.item in record.parents


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"boot": "f" * 8 + BOOT[8:]}, "booted anew between this memory and E0002"),
        ({"processes": {9: "x"}}, "has no process 1"),
    ],
)
def test_live_response_that_cannot_be_compared_is_a_gap(world, tmp_path, given, says):
    (tmp_path / "memory").write_bytes(lime([(0, bytes(Memory().bytes))]))
    world.case.ingest("memory", Captured(tmp_path / "memory"))
    world.case.ingest("live", Asked(answers(**{"processes": {1: "init"}, **given})))
    run_job(world.case, JOBS["memory"], "E0001")
    assert says in said(world)


OTHER_BOOT = "f" * 8 + BOOT[8:]


def by_hand(world, tmp_path, boot):
    """Ingest memory that others took, of a kernel whose boot id is these 16 bytes."""
    memory = Memory(extra=[("b", "sysctl_bootid", TEXT + 0x4000)])
    memory.put(TEXT + 0x4000, boot)
    take(world, tmp_path, lime([(0, bytes(memory.bytes))]))


def live_of(world, name, boot=BOOT):
    source = Asked(answers({1: "init"}, boot=boot), target=f"arn:{name}", serial=name)
    return world.case.ingest("live", source).item_id


def test_memory_taken_by_others_stands_beside_the_live_response_of_its_boot(world, tmp_path):
    by_hand(world, tmp_path, uuid.UUID(BOOT).bytes)
    live_of(world, "another host", OTHER_BOOT)
    same = live_of(world, "its host")
    live_of(world, "a third host", OTHER_BOOT)
    result = run_job(world.case, JOBS["memory"], "E0001")
    assert query(world.case, "SELECT boot_id FROM kernels").rows == [(BOOT,)]
    assert f"with live response {same} by" in world.case.item(result.result_item).source
    assert same in world.case.item(result.result_item).parents
    assert " live E000" not in said(world), "nothing to say of the pair"


@pytest.mark.parametrize(
    ("boot", "says"),
    [
        (bytes(16), "nobody had asked its kernel for the boot id"),
        (b"\xff" * 16, "nobody had asked its kernel for the boot id"),
        (uuid.UUID(OTHER_BOOT).bytes, f"the case is of the same boot ({OTHER_BOOT})"),
    ],
    ids=["never asked", "no boot id", "another boot"],
)  # fmt: skip
def test_memory_taken_by_others_is_never_paired_with_another_host(world, tmp_path, boot, says):
    by_hand(world, tmp_path, boot)
    live_of(world, "another host")
    result = run_job(world.case, JOBS["memory"], "E0001")
    assert "with live response" not in world.case.item(result.result_item).source
    assert says in said(world)


def test_live_response_that_was_named_stands_beside_memory_unless_it_is_of_another_boot(
    world, tmp_path
):
    by_hand(world, tmp_path, bytes(16))
    named = live_of(world, "host")
    result = run_job(world.case, JOBS["memory"], "E0001", beside=named)
    assert named in world.case.item(result.result_item).parents
    assert f"{named} stands beside this memory because it was named" in said(world)
    with pytest.raises(AnalysisError, match="E0001 is no live response"):
        run_job(world.case, JOBS["memory"], "E0001", beside="E0001")
    other = kit.make_world(tmp_path / "other")
    by_hand(other, tmp_path, uuid.UUID(BOOT).bytes)
    wrong = live_of(other, "host", OTHER_BOOT)
    run_job(other.case, JOBS["memory"], "E0001", beside=wrong)
    assert f"booted anew between this memory and {wrong}" in said(other)


def sample(image):
    """Unpack the memory of a real machine; return what it said of itself."""
    import zstandard

    folder = Path(SAMPLES) / "memory-6.1"
    with (folder / "mem.lime.zst").open("rb") as packed, image.open("wb") as out:
        zstandard.ZstdDecompressor().copy_stream(packed, out)
    return json.loads((folder / "truth.json").read_text())


@pytest.mark.guest
@pytest.mark.skipif(not SAMPLES, reason="IMPOUND_SAMPLES is not set")
def test_executables_and_cached_files_are_taken_from_memory(world, tmp_path):
    planted = sample(tmp_path / "m")["planted"]
    world.case.ingest("memory", open_source(str(tmp_path / "m"), "memory"))
    asked = extract_request([107, 103, 1, 2, 9999], [planted["P_FILE"], "/usr/sbin/ss*", "/none/*"])
    result = run_job(world.case, EXTRACT, "E0001", given={"extract": asked})
    assert result.result == "partial"
    text = said(world)
    assert "executable of process 2: it is a thread of the kernel" in text
    assert "executable of process 9999: the kernel's list has no such process" in text
    assert "file of /none/*: no cached file has this path" in text
    rows = query(
        world.case, "SELECT kind, pid, path, size, held, sha256, object FROM extracted"
    ).rows
    paths = {row[2]: row for row in rows}
    kind, _, _, size, held, digest, name = paths[planted["P_FILE"]]
    assert (kind, held) == ("file", size)
    with os.fdopen(world.case.open_member(result.result_item, name), "rb") as f:
        content = f.read()
    assert planted["P_CONTENT"].encode() in content
    assert hashlib.sha256(content).hexdigest() == digest
    assert "executable of process 107: none of it is in memory" in text
    (shell,) = [row for row in rows if row[1] == 1]
    assert shell[2] == "/usr/bin/bash"
    assert 0 < shell[4] < shell[3]
    assert f"{shell[3] - shell[4]} of its {shell[3]} bytes are not in memory" in text
    with os.fdopen(world.case.open_member(result.result_item, shell[6]), "rb") as f:
        assert f.read(4) == b"\x7fELF"
    assert any(path == "/usr/sbin/sshd" for path in paths)
    parents = world.case.item(result.result_item).parents
    assert parents == ["E0001", result.needed.result_item]


@pytest.mark.guest
@pytest.mark.skipif(not SAMPLES, reason="IMPOUND_SAMPLES is not set")
def test_what_a_host_leaves_out_of_its_own_lists_is_found_in_its_memory(world, tmp_path):
    truth = sample(tmp_path / "m")
    world.case.ingest("memory", Captured(tmp_path / "m"))
    listed = {p["pid"]: p["comm"] for p in truth["processes"]}
    del listed[107]
    modules = [name for name in truth["modules"] if name != "dummy"]
    world.case.ingest("live", Asked(answers({**listed, 4000: "ps"}, modules=modules)))
    result = run_job(world.case, JOBS["memory"], "E0001")
    assert result.result == "ok", result.gaps
    found = query(world.case, "SELECT rule, pid FROM findings ORDER BY ALL").rows
    assert ("process.not-live", 107) in found
    assert ("process.only-live", 4000) in found
    assert ("module.not-live", None) in found
    sockets = query(world.case, "SELECT title FROM findings WHERE rule = 'socket.not-live'").rows
    assert any("TCP 0.0.0.0:4444, LISTEN" in title for (title,) in sockets)
    assert not any("0.0.0.0:22, LISTEN" in title for (title,) in sockets)
    views = query(world.case, "SELECT view, item, address FROM process_views WHERE pid = 1").rows
    assert ("live", "E0002", None) in views


@pytest.mark.guest
@pytest.mark.skipif(not SAMPLES, reason="IMPOUND_SAMPLES is not set")
def test_memory_of_a_real_machine_finds_the_live_response_of_its_boot(world, tmp_path):
    """Its boot id is written where its kernel has it, as if somebody had asked for it."""
    image = tmp_path / "m"
    truth = sample(image)
    ram = open_ram(ImageFile(image))
    kernel = next(kernels(ram))
    at = ram.offset_of(kernel.physical(read_names(ram, kernel)["sysctl_bootid"]))
    with image.open("r+b") as f:
        f.seek(at)
        f.write(uuid.UUID(BOOT).bytes)
    world.case.ingest("memory", open_source(str(image), "memory"))
    asked = "SELECT pid, ppid, comm FROM processes ORDER BY pid"
    run_job(world.case, JOBS["memory"], "E0001")
    alone = query(world.case, asked).rows
    live_of(world, "another host", OTHER_BOOT)
    listed = {p["pid"]: p["comm"] for p in truth["processes"] if p["pid"] != 107}
    # Asked some seconds after the truth was, before the memory was read by the clock in it.
    given = answers({**listed, 4000: "ps"}, boot_ns=(1_795_487_280 - 100) * 10**9)
    same = world.case.ingest("live", Asked(given, serial="same")).item_id
    result = run_job(world.case, JOBS["memory"], "E0001")
    assert result.result == "ok", result.gaps
    assert same in world.case.item(result.result_item).parents
    assert query(world.case, asked).rows == alone, "those of memory are not those of the host"
    found = query(world.case, "SELECT rule, pid, explanation FROM findings").rows
    assert ("process.not-live", 107, "hidden or exit") in found
    assert ("process.only-live", 4000, "exit") in found


@pytest.mark.guest
@pytest.mark.skipif(not SAMPLES, reason="IMPOUND_SAMPLES is not set")
def test_memory_of_a_real_machine_equals_what_it_said_of_itself(world, tmp_path):
    image = tmp_path / "mem.lime"
    truth = sample(image)
    world.case.ingest("memory", open_source(str(image), "memory"))
    result = run_job(world.case, JOBS["memory"], "E0001")
    assert result.result == "ok", result.gaps
    found = {
        (pid, ppid): comm
        for pid, ppid, comm in query(world.case, "SELECT pid, ppid, comm FROM processes").rows
    }
    # The collector's own session was over; ps writes the work of a kworker behind its name.
    collector = {179, 185, 186}
    expected = {(p["pid"], p["ppid"]): p["comm"] for p in truth["processes"]
                if p["pid"] not in collector}  # fmt: skip
    for key, comm in expected.items():
        assert comm.startswith(found[key][:15].rstrip("-+")), key
    capture = {comm for key, comm in found.items() if key not in expected}
    assert capture == {"sshd", "sudo", "dd"}
    sockets = query(world.case, "SELECT pid, local_port, state FROM sockets "
                    "WHERE family = 'AF_INET' AND pid = 107 ORDER BY ALL").rows  # fmt: skip
    assert sockets == [(107, 4444, "ESTABLISHED"), (107, 4444, "LISTEN"),
                       (107, 4445, "UNCONNECTED"), (107, 34134, "ESTABLISHED")]  # fmt: skip
    names = {name for (name,) in query(world.case, "SELECT name FROM modules").rows}
    assert {"dummy", "loop", "virtio_net", "virtio_blk"} <= names
    findings = query(world.case, "SELECT rule, pid FROM findings").rows
    assert ("memory.injected", 107) in findings
    assert not [rule for rule, _ in findings if rule.startswith(("hook", "process.hidden"))]
    (commands,) = query(world.case, "SELECT count(*) FROM timeline WHERE source LIKE '%Bash'").rows
    assert commands == (6,)
