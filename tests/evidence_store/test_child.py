# SPDX-License-Identifier: Apache-2.0
"""The limited child: what it can read, what it cannot do, and that it always ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from evidence_store.child import Child, Limits
from evidence_store.errors import IntegrityError
from tests.evidence_store import kit

BODY = "tests.evidence_store.child_bodies"


def run(tmp_path, do, *, items=None, limits=None, **request):
    messages: list[dict] = []
    folder = tmp_path / "child"
    folder.mkdir()
    child = Child(
        BODY, {"do": do, **request}, items or {}, folder, limits or Limits(), messages.append
    )
    return child.run(), messages


def item(world, item_id="E0001"):
    manifest = world.case.manifest(item_id)
    return {item_id: (manifest.size, manifest.segment_size, world.case.objects(item_id))}


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie that nobody reaps in this container counts)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def wait_until_gone(pid: int) -> bool:
    """Wait for the end of any process, by pidfd (no polling, at most 10 s)."""
    import select

    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], 10)[0])
    finally:
        os.close(fd)


def test_reads_across_segments_holes_and_the_end(tmp_path, world):
    data = kit.pattern(kit.SEGMENT) + bytes(kit.SEGMENT) + kit.pattern(1000, 9)
    world.case.ingest("disk", kit.FakeImage(data), segment_size=kit.SEGMENT)
    ranges = [(0, 10), (kit.SEGMENT - 5, 10), (kit.SEGMENT + 7, 9), (2 * kit.SEGMENT - 3, 600),
              (len(data) - 4, 100), (len(data), 5)]  # fmt: skip
    outcome, messages = run(tmp_path, "read", items=item(world), ranges=ranges)
    assert outcome.ok, outcome
    assert [bytes.fromhex(m["hex"]) for m in messages] == [
        data[at : at + length] for at, length in ranges
    ]


def test_changed_segment_is_never_handed_over(tmp_path, world):
    world.case.ingest("disk", kit.FakeImage(kit.pattern(kit.SEGMENT)), segment_size=kit.SEGMENT)
    segment = world.folder / "items/E0001/data" / ("0" * 16)
    segment.chmod(0o600)
    body = bytearray(segment.read_bytes())
    body[100] ^= 1
    segment.write_bytes(body)
    with pytest.raises(IntegrityError, match="0000000000000000 is not what was acquired"):
        run(tmp_path, "read", items=item(world), ranges=[(0, 1)])


def test_item_of_no_concern_is_refused(tmp_path):
    outcome, _ = run(tmp_path, "read_other")
    assert not outcome.ok
    assert "not an item of this job" in outcome.reason


def test_memory_is_limited(tmp_path):
    outcome, _ = run(tmp_path, "use_memory", limits=Limits(address_space=512 << 20))
    assert outcome.reason == "it ran out of the memory it may use"


def test_cpu_time_is_limited(tmp_path):
    outcome, _ = run(tmp_path, "use_cpu", limits=Limits(cpu_s=1))
    assert not outcome.ok
    assert "CPU time" in outcome.reason


def test_file_size_is_limited(tmp_path):
    outcome, _ = run(tmp_path, "fill_disk", limits=Limits(file_bytes=4 << 20))
    assert not outcome.ok
    assert (tmp_path / "child/big").stat().st_size <= 4 << 20


def test_wall_clock_ends_it_and_all_it_started(tmp_path):
    outcome, messages = run(tmp_path, "spawn_and_wait", limits=Limits(wall_s=1.5))
    assert "wall clock" in outcome.reason
    assert wait_until_gone(messages[0]["pid"])


def test_has_no_network(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        outcome, messages = run(tmp_path, "network", port=server.getsockname()[1])
    assert outcome.ok, outcome
    if outcome.network != "none":
        pytest.skip(f"this kernel lets us take no network away: {outcome.network}")
    assert messages[0]["message_type"] == "refused"


def test_lives_in_a_clean_small_world(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    outcome, (said,) = run(tmp_path, "limits")
    assert outcome.ok, outcome
    assert said["files"] == Limits().open_files
    assert said["core"] == 0
    assert said["cwd"] == str(tmp_path / "child")
    assert "AWS_SECRET_ACCESS_KEY" not in said["environment"]
    assert "/nowhere" not in said["path"]
    assert "" not in said["path"]


def test_crash_keeps_what_was_said_before(tmp_path):
    outcome, messages = run(tmp_path, "crash")
    assert outcome.reason == "it crashed (SIGSEGV)"
    assert messages == [{"message_type": "before"}]


def test_what_it_prints_is_escaped(tmp_path):
    outcome, _ = run(tmp_path, "complain")
    assert "\x1b" not in outcome.stderr
    assert "\\x1b[2Jbad" in outcome.reason


@pytest.mark.parametrize("do", ["malformed", "nested"])
def test_malformed_message_ends_it(tmp_path, do):
    outcome, _ = run(tmp_path, do)
    assert "malformed message" in outcome.reason


def test_dies_with_its_parent(tmp_path):
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(f"""
            from pathlib import Path
            from evidence_store.child import Child
            Child({BODY!r}, {{"do": "wait_forever"}}, {{}}, Path({str(tmp_path)!r}),
                  on_message=lambda m: print(m["pid"], flush=True)).run()
        """)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert parent.stdout is not None
    with parent.stdout as out:
        pid = int(out.readline())
    assert not gone(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert wait_until_gone(pid)
