# SPDX-License-Identifier: Apache-2.0
"""The limited child: what it can read, what it cannot do, and that it always ends."""

from __future__ import annotations

import json
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


def need(outcome, what, value):
    """Skip where this kernel gives the child less; fail where CI says it gives all."""
    said = getattr(outcome, what)
    if said != value:
        assert "not" in said or "only" in said, said
        pytest.skip(f"this kernel: {said}")


def test_connects_to_nothing_of_its_parent(tmp_path):
    name = f"impound-test-{os.getpid()}"
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as abstract,
        socket.socket(socket.AF_UNIX) as bus,
    ):
        abstract.bind("\0" + name)
        abstract.listen()
        path = str(tmp_path / "bus")
        bus.bind(path)
        bus.listen()
        outcome, messages = run(
            tmp_path, "network", port=server.getsockname()[1], name=name, path=path
        )
    assert outcome.ok, outcome
    need(outcome, "network", "none")
    need(outcome, "files", "own folder only")
    assert refusals(messages) == dict.fromkeys(["tcp", "abstract", "path"], "PermissionError")


@pytest.fixture
def home(tmp_path):
    """A home directory with the keys of a user."""
    keys = tmp_path / "home/.config/impound/keys"
    keys.mkdir(parents=True)
    (keys / "entry.pem").write_text("PRIVATE KEY")
    (tmp_path / "home/passphrase").write_text("correct horse")
    return tmp_path / "home"


def refusals(messages) -> dict[str, str]:
    return {m["what"]: m["error"] for m in messages}


def test_reads_no_key_file_of_its_user(tmp_path, home):
    paths = [str(home / ".config/impound/keys/entry.pem"), str(home / "passphrase")]
    outcome, messages = run(tmp_path, "read_files", paths=paths)
    assert outcome.ok, outcome
    need(outcome, "files", "own folder only")
    assert refusals(messages) == dict.fromkeys(paths, "PermissionError")


def test_reads_no_file_of_the_store_by_its_path(tmp_path, world):
    world.case.ingest("disk", kit.FakeImage(kit.pattern(9)), segment_size=kit.SEGMENT)
    paths = [str(world.folder / "items/E0001/data" / ("0" * 16)),
             str(world.folder / "items/E0001/manifest.json")]  # fmt: skip
    assert all(Path(p).is_file() for p in paths)
    outcome, messages = run(tmp_path, "read_files", paths=paths)
    assert outcome.ok, outcome
    need(outcome, "files", "own folder only")
    assert refusals(messages) == dict.fromkeys(paths, "PermissionError")


def test_reads_nothing_of_other_processes_and_of_the_system(tmp_path):
    paths = [f"/proc/{os.getpid()}/{name}" for name in ("environ", "status")] + ["/etc/passwd"]
    outcome, messages = run(tmp_path, "read_files", paths=paths)
    assert outcome.ok, outcome
    need(outcome, "files", "own folder only")
    assert refusals(messages) == dict.fromkeys(paths, "PermissionError")


def test_lists_no_folder_but_its_own(tmp_path, home):
    paths = [str(home), "/", "/tmp", str(tmp_path), str(tmp_path / "child")]
    outcome, messages = run(tmp_path, "list_folders", paths=paths)
    assert outcome.ok, outcome
    need(outcome, "files", "own folder only")
    assert refusals(messages) == {**dict.fromkeys(paths, "PermissionError"), paths[-1]: ""}


def test_writes_nothing_outside_its_folder(tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "victim").write_text("evidence")
    outcome, messages = run(
        tmp_path, "write_files", folder=str(folder), victim=str(folder / "victim")
    )
    assert outcome.ok, outcome
    need(outcome, "files", "own folder only")
    assert len(messages) == 13
    assert [m["what"] for m in messages if m["error"] not in ("PermissionError", "OSError")] == []
    assert [p.name for p in folder.iterdir()] == ["victim"]
    assert (folder / "victim").read_text() == "evidence"


def test_writes_as_it_likes_in_its_folder(tmp_path):
    outcome, _ = run(tmp_path, "write_in_own_folder")
    assert outcome.ok, outcome
    assert (tmp_path / "child/three").exists()


def test_executes_nothing_that_it_wrote(tmp_path):
    outcome, messages = run(tmp_path, "execute_own_file")
    assert outcome.ok, outcome
    need(outcome, "files", "own folder only")
    assert refusals(messages) == {"own": "PermissionError", "system": ""}


def test_a_descriptor_leads_to_no_other_way_of_opening_its_file(tmp_path, world):
    world.case.ingest("disk", kit.FakeImage(kit.pattern(9)), segment_size=kit.SEGMENT)
    outcome, messages = run(tmp_path, "reopen_segment", items=item(world))
    assert outcome.ok, outcome
    need(outcome, "files", "own folder only")
    assert refusals(messages) == {"read": "PermissionError", "write": "PermissionError"}


def test_limits_cannot_be_raised_not_even_by_root(tmp_path):
    outcome, (said,) = run(tmp_path, "raise_limits")
    assert outcome.ok, outcome
    assert "not allowed to raise" in said["error"]


def test_libraries_of_jobs_and_reports_work_inside(tmp_path):
    outcome, messages = run(tmp_path, "use_libraries")
    assert outcome.ok, outcome
    assert messages == [{"message_type": "done", "rows": [[3]], "zone": "Europe/Berlin",
                         "tsk": True, "cpus": True}]  # fmt: skip


@pytest.mark.parametrize(("stay_s", "wall_s"), [(0, 60), (3600, 2)], ids=["it ends", "is ended"])
def test_grandchild_in_a_session_of_its_own_is_gone(tmp_path, stay_s, wall_s):
    outcome, messages = run(
        tmp_path, "spawn_in_new_session", stay_s=stay_s, limits=Limits(wall_s=wall_s)
    )
    assert outcome.ok == (stay_s == 0), outcome
    pid = messages[0]["pid"]
    if outcome.processes != "ended with it" and not gone(pid):
        os.kill(pid, signal.SIGKILL)
    need(outcome, "processes", "ended with it")
    # Not "soon": nothing may write any more when the parent looks at what was made.
    assert gone(pid)


WITHOUT_NAMESPACES = """
echo 0 > /proc/sys/user/max_pid_namespaces && echo 0 > /proc/sys/user/max_net_namespaces || exit 99
exec "$@"
"""


@pytest.mark.parametrize("do", ["spawn_and_wait", "ignore_sigterm"])
def test_without_namespaces_its_group_is_ended_and_that_is_said(tmp_path, need_tool, do):
    script = textwrap.dedent(f"""
        import json
        from dataclasses import asdict
        from pathlib import Path
        from evidence_store.child import Child, Limits
        said = []
        outcome = Child({BODY!r}, {{"do": {do!r}}}, {{}}, Path({str(tmp_path)!r}),
                        Limits(wall_s=2), said.append).run()
        print(json.dumps([asdict(outcome), said]))
    """)
    done = subprocess.run(
        [need_tool("unshare"), "--user", "--map-root-user", "sh", "-c", WITHOUT_NAMESPACES, "sh",
         sys.executable, "-c", script],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode in (1, 99) and not done.stdout and "Traceback" not in done.stderr:
        pytest.skip(f"no user namespace to try this in: {done.stderr}")
    outcome, messages = json.loads(done.stdout)
    if "but sockets" in outcome["files"]:
        assert outcome["network"].startswith("not taken away: ")
    else:
        assert outcome["network"] == "none"
    assert outcome["processes"].startswith("only its process group was ended: ")
    assert "wall clock" in outcome["reason"]
    assert wait_until_gone(messages[0]["pid"])


def test_what_it_has_is_said_once_before_evidence_is_seen(tmp_path):
    outcome, messages = run(tmp_path, "say_hello_again")
    assert [m["message_type"] for m in messages] == ["hello"]
    assert "unknown" not in (outcome.network, outcome.files, outcome.processes)


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


def test_a_check_that_raises_ends_it(tmp_path):
    """Whoever waits for it can be told to stop: within a second, and the child is dead."""

    class EnoughError(Exception):
        pass

    seen: list[dict] = []

    def check():
        if seen:
            raise EnoughError

    folder = tmp_path / "child"
    folder.mkdir()
    child = Child(BODY, {"do": "wait_forever"}, {}, folder, Limits(), seen.append, check=check)
    with pytest.raises(EnoughError):
        child.run()
    assert wait_until_gone(int(seen[0]["pid"]))
