# SPDX-License-Identifier: Apache-2.0
"""`respond` and what goes with it, over three accounts: once, whatever happens in between."""

from __future__ import annotations

import collections
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.gameday.aws.accounts import AUDIT, MEMBER
from pipeline.gameday.aws.faults import Fault
from pipeline.workflow import STEPS, Step, of_scope

DRIVER = Path(__file__).with_name("respond_driver.py")
GIB = 1 << 30
MISSING = {"protect", "isolate", "memory", "live", "records", "notify"} & {
    s.name for s in STEPS if s.function() is None
}


def own(aws_server, account):
    """Snapshots in an account that this case made."""
    found = aws_server.client("ec2", account).describe_snapshots(OwnerIds=["self"])["Snapshots"]
    return [s for s in found if any(t["Key"] == "impound-nonce" for t in s.get("Tags", []))]


def states(result):
    found = {}
    for line in result.json["steps"]:
        found.setdefault(line["step"], set()).add(line["state"])
    return found


def made_once(aws_server, cloud, verdicts=(0,)):
    """Two volumes frozen, read, copied and compared, each once; custody is clean."""
    assert len(own(aws_server, MEMBER)) == len(own(aws_server, AUDIT)) == 2
    calls = collections.Counter(s.operation for s in aws_server.calls())
    assert (calls["CreateSnapshots"], calls["CopySnapshot"]) == (1, 2)
    items = cloud("--json", "item", "list", "T-1").json["items"]
    disks = [i for i in items if i["kind"] == "disk"]
    assert len(disks) == 2
    assert all(i["state"] == "complete" for i in disks)
    assert cloud("verify", "T-1", "--deep").code in verdicts


def expected(found):
    """Nothing but what is not there yet, and a file system that is not one, is a gap."""
    for step, seen in found.items():
        if step in MISSING:
            assert seen == {"gap"}, step
        elif step in ("memory", "live"):
            # No machine stands behind the instance; a volume has no memory, which is no gap.
            assert "gap" in seen <= {"gap", "ok"}, step
        elif step in ("analyse", "isolate"):  # without a machine nothing answers a probe
            assert seen <= {"gap", "ok"}
        else:
            assert seen == {"ok"}, (step, seen)
    assert list(found) == [s.name for s in STEPS]


def test_from_observe_to_report(cloud, target, aws_server, tmp_path):
    done = cloud("--json", "respond", "T-1", target)
    assert done.code == 3, done.err + done.out
    expected(states(done))
    made_once(aws_server, cloud)
    assert (tmp_path / "work" / "T-1-report" / "index.html").exists()
    shown = cloud("--json", "status", "T-1")
    lines = [json.loads(line) for line in shown.out.splitlines()]
    assert shown.code == 0
    assert lines[0]["message_type"] == "run"
    assert {line["step"] for line in lines[1:]} == {s.name for s in STEPS}
    assert "gap" in cloud("status").out
    jobs = [json.loads(line) for line in cloud("--json", "jobs", "T-1").out.splitlines()]
    assert {j["queue"] for j in jobs} == {"acquire", "cpu", "memory"}
    assert {j["state"] for j in jobs} == {"success"}
    assert cloud("jobs", "T-1", "--prune").code == 0
    assert cloud("--json", "jobs", "T-1").out == ""
    # Again: all is found, nothing is made.
    calls = len(aws_server.calls())
    again = cloud("--json", "resume", "T-1")
    assert again.code == 3
    expected(states(again))
    operations = {s.operation for s in aws_server.calls()[calls:]}
    assert not operations & {"CreateSnapshots", "CopySnapshot", "GetSnapshotBlock", "LockSnapshot"}
    made_once(aws_server, cloud)


@pytest.mark.chaos
def test_another_machine_finds_what_was_made(cloud, target, aws_server, home, process):
    assert process("respond", "T-1", target, kill="copy:after").wait(120) == -signal.SIGKILL
    shutil.rmtree(home / ".local/state/impound/engine")
    elsewhere = cloud("--json", "status", "T-1")
    head, *lines = [json.loads(line) for line in elsewhere.out.splitlines()]
    assert (elsewhere.code, head["state"], head["targets"]) == (0, "elsewhere", [target])
    assert "progress" in head["untold"]
    told = {line["step"]: line["state"] for line in lines}
    assert list(told) == [s.name for s in STEPS if s.scope == "target"]
    assert told["freeze"] == told["observe"] == "ok"
    copies = {line["state"] for line in lines if line["step"] == "copy"}
    assert "ok" in copies
    assert copies <= {"ok", "begun"}  # the other volume's was under way, or done
    assert told["memory"] == "gap"  # not part of it, or no way in
    assert told["verify"] == "unrecorded"
    frozen = {line["unit"] for line in lines if line["step"] == "copy"}
    shown = cloud("status", "T-1", "--aws")
    assert all(f"AWS: {snapshot} of vol-" in shown.out for snapshot in frozen)
    assert "NOT TOLD" in shown.out
    done = cloud("--json", "resume", "T-1")
    assert done.code == 3, done.err
    expected(states(done))
    made_once(aws_server, cloud)


@pytest.mark.chaos
@pytest.mark.parametrize("step", [s.name for s in STEPS if s.name not in ("memory", "live")])
def test_killed_after_each_step_and_resumed(cloud, target, aws_server, process, step):
    first = process("respond", "T-1", target, kill=f"{step}:after")
    assert first.wait(180) == -signal.SIGKILL
    assert children_of_jobs() == []
    resumed = process("--json", "resume", "T-1")
    out, err = resumed.communicate(timeout=180)
    assert resumed.returncode == 3, err
    assert json.loads(out)["outcome"] == "gap"
    # The job beside it may have been storing its tables; they are made anew, and verify says so.
    made_once(aws_server, cloud, (0, 3) if step == "analyse" else (0,))


@pytest.mark.chaos
@pytest.mark.parametrize("step", ["observe", "freeze", "lock", "read", "copy", "prove", "respond"])
def test_killed_before_the_ledger_knows_and_resumed(cloud, target, aws_server, process, step):
    first = process("respond", "T-1", target, kill=f"{step}:outcome")
    code = first.wait(180)
    assert code == (3 if step == "respond" else -signal.SIGKILL)  # with gaps it is never done
    resumed = process("--json", "resume", "T-1")
    _, err = resumed.communicate(timeout=180)
    assert resumed.returncode == 3, err
    made_once(aws_server, cloud)


def children_of_jobs():
    """Processes of the limited child that have outlived their parent, after a moment."""
    end = time.monotonic() + 5
    while True:
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                line = (entry / "cmdline").read_bytes()
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue
            if b"evidence_store.child" in line and parent == 1:
                found.append(entry.name)
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.1)


@pytest.mark.chaos
def test_a_second_process_attaches_and_shows(cloud, target, aws_server, process, home):
    first = process("--json", "respond", "T-1", target)
    lock = home / ".local/state/impound/engine"
    until(lambda: any(lock.rglob("executor.lock")))
    second = process("--json", "respond", "T-1", target)
    results = [json.loads(p.communicate(timeout=120)[0]) for p in (first, second)]
    assert [p.returncode for p in (first, second)] == [3, 3]
    assert results[0]["runs"] == results[1]["runs"]
    made_once(aws_server, cloud)


@pytest.mark.chaos
def test_when_the_first_is_killed_the_second_takes_over(cloud, target, aws_server, process, home):
    first = process("respond", "T-1", target, kill="read:after")
    until(lambda: any((home / ".local/state/impound/engine").rglob("executor.lock")))
    second = process("--json", "respond", "T-1", target)
    assert first.wait(120) == -signal.SIGKILL
    out, err = second.communicate(timeout=120)
    assert second.returncode == 3, err
    assert json.loads(out)["outcome"] == "gap"
    made_once(aws_server, cloud)


def until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


@pytest.mark.chaos
def test_interrupted_it_says_so_at_once_and_resumes(cloud, target, aws_server, process):
    aws_server.faults.add(
        Fault("delay", service="ebs", operation="GetSnapshotBlock", seconds=1.0, times=None)
    )
    first = process("respond", "T-1", target)
    until(lambda: any(s.operation == "GetSnapshotBlock" for s in aws_server.calls()))
    first.send_signal(signal.SIGINT)
    _, err = first.communicate(timeout=30)
    assert first.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    aws_server.faults.clear()
    assert cloud("resume", "T-1").code == 3
    made_once(aws_server, cloud)


@pytest.mark.chaos
def test_cancel_stops_it_and_resume_goes_on(cloud, target, aws_server, process):
    aws_server.faults.add(
        Fault("delay", service="ebs", operation="GetSnapshotBlock", seconds=1.0, times=None)
    )
    first = process("respond", "T-1", target)
    until(lambda: any(s.operation == "GetSnapshotBlock" for s in aws_server.calls()))
    done = cloud("--json", "cancel", "T-1", "--note", "wrong host")
    assert done.code == 0, done.err
    assert done.json["targets"] == [target]
    _, err = first.communicate(timeout=60)
    assert first.returncode == 130, err
    assert "Traceback" not in err
    entries = cloud("--json", "case", "show", "T-1").json["entries"]
    assert any(e["note"] == "cancelled: wrong host" for e in entries)
    assert cloud("--json", "status", "T-1").json_lines[0]["state"] == "cancelled"
    aws_server.faults.clear()
    assert cloud("resume", "T-1").code == 3
    made_once(aws_server, cloud)


@pytest.mark.chaos
def test_a_step_waits_for_approval_and_the_rest_goes_on(cloud, target, aws_server, settings):
    settings('[engine]\napprove = ["isolate"]\n')
    done = cloud("--json", "respond", "T-1", target)
    assert done.code == 4, done.err
    found = states(done)
    assert found["isolate"] == {"waiting"}
    assert found["memory"] == found["live"] == {"nothing"}  # they need it, and were not begun
    assert found["read"] == found["copy"] == found["report"] == {"ok"}
    assert cloud("status", "T-1").code == 4
    assert "impound approve T-1 isolate" in cloud("respond", "T-1", target).out
    assert cloud("approve", "T-1", "isolat").code == 2
    given = cloud("--json", "approve", "T-1", "isolate", "--note", "CISO, by phone")
    assert (given.code, given.json["new"]) == (0, True)
    assert cloud("--json", "approve", "T-1", "isolate").json["new"] is False
    entries = cloud("--json", "case", "show", "T-1").json["entries"]
    assert [e["note"] for e in entries if e["action"] == "approval.given"] == ["CISO, by phone"]
    done = cloud("--json", "resume", "T-1")
    assert done.code == 3
    expected(states(done))
    made_once(aws_server, cloud)


@pytest.mark.chaos
def test_an_approval_given_meanwhile_is_found(cloud, target, settings, process):
    settings('[engine]\napprove = ["isolate"]\n')
    running = process("--json", "respond", "T-1", target)
    until(lambda: "respond.isolate" in str(cloud("case", "show", "T-1").out)
          or "snapshot" in cloud("case", "show", "T-1").out)  # fmt: skip
    assert cloud("approve", "T-1", "isolate", "--target", target).code == 0
    out, err = running.communicate(timeout=120)
    assert running.returncode == 3, err
    assert all(line["state"] != "waiting" for line in json.loads(out)["steps"])


@pytest.mark.chaos
def test_many_targets_at_once(cloud, target, zone, aws_server):
    """An instance, and one of its volumes as a target of its own."""
    volume = zone.estate.variables()["VOLUMES"].split()[1]
    done = cloud("--json", "respond", "T-1", target, volume)
    assert done.code == 3, done.err
    of = {line["target"] for line in done.json["steps"]}
    assert of == {target, volume, ""}
    expected(states(done))
    assert len(own(aws_server, MEMBER)) == len(own(aws_server, AUDIT)) == 3


@pytest.mark.chaos
def test_a_denied_target_is_a_gap_and_the_other_goes_on(cloud, target, aws_server):
    aws_server.faults.add(
        Fault("error", service="ec2", operation="CreateSnapshots", code="UnauthorizedOperation",
              status=403, message="You are not authorized.", times=None)
    )  # fmt: skip
    done = cloud("--json", "respond", "T-1", target)
    assert done.code == 3, done.err
    found = states(done)
    assert found["freeze"] == {"gap"}
    assert found["read"] == found["copy"] == found["verify"] == {"nothing"}
    assert found["report"] == {"ok"}
    assert "not authorized" in done.out
    aws_server.faults.clear()
    assert cloud("resume", "T-1").code == 3
    assert len(own(aws_server, MEMBER)) == 2


@pytest.mark.chaos
def test_a_difference_between_source_and_copy_is_broken_evidence(cloud, target, aws_server):
    aws_server.faults.add(
        Fault("corrupt", service="ebs", operation="GetSnapshotBlock", account=AUDIT, times=None)
    )
    done = cloud("--json", "respond", "T-1", target)
    assert done.code in (3, 10), done.err
    assert "verify" in done.out


@pytest.mark.chaos
def test_the_plan_only_looks_and_is_what_runs(cloud, target, aws_server):
    calls = len(aws_server.calls())
    planned = cloud("--json", "plan", "respond", "T-1", target)
    dry = cloud("--json", "respond", "T-1", target, "--dry-run")
    assert (planned.code, planned.json) == (3, dry.json)
    made = {s.operation for s in aws_server.calls()[calls:]}
    assert not any(o.startswith(("Create", "Copy", "Lock", "Modify")) for o in made)
    assert [s["step"] for s in planned.json["steps"]] == [s.name for s in STEPS]
    assert {g.partition(":")[0] for g in planned.json["gaps"]} == MISSING
    done = cloud("--json", "respond", "T-1", target)
    assert list(states(done)) == [s["step"] for s in planned.json["steps"]]


@pytest.mark.parametrize(
    ("argv", "code", "word"),
    [
        (("T-1", "i-0123456789abcdef0"), 2, "ambiguous"),
        (("T-9", "arn:aws:ec2:eu-central-1:222222222222:instance/i-0123456789abcdef0"), 11,
         "no case"),
        (("T-1", "arn:aws:ec2:eu-central-1:222222222222:instance/i-0123456789abcdef0"), 12,
         "not exist"),
        (("T-1", "arn:aws:ec2:eu-central-1:222222222222:snapshot/snap-0123456789abcdef0"), 2,
         "snapshot"),
    ],
)  # fmt: skip
def test_wrong_targets_make_nothing(cloud, aws_server, argv, code, word):
    done = cloud("respond", *argv)
    assert done.code == code, done.err
    assert word in done.err
    assert own(aws_server, MEMBER) == []


def test_nothing_to_resume_cancel_or_show(cloud):
    assert "no response to resume" in cloud("resume", "T-1").out
    assert "no response under way" in cloud("cancel", "T-1").out
    assert "no response here" in cloud("status", "T-1").out
    assert cloud("jobs", "T-1").out.strip() == "T-1: no jobs"
    assert cloud("worker").code == 14


def test_a_closed_case_takes_no_response(cloud, target):
    assert cloud("case", "close", "T-1").code == 0
    done = cloud("respond", "T-1", target)
    assert done.code == 11
    assert "closed" in done.err


@pytest.mark.chaos
def test_runs_of_another_version_are_replaced(cloud, target, aws_server, process, home):
    """The program was upgraded while a response was under way."""
    import contextlib
    import sqlite3

    assert process("respond", "T-1", target, kill="copy:after").wait(120) == -signal.SIGKILL
    [path] = (home / ".local/state/impound/engine").rglob("engine.sqlite")
    with contextlib.closing(sqlite3.connect(path)) as c, c:
        c.execute("update workflow_status set application_version = 'respond-0'")
    shown = cloud("status", "T-1").out
    assert "of another version; impound resume CASE" in shown
    done = cloud("--json", "resume", "T-1")
    assert done.code == 3, done.err
    made_once(aws_server, cloud)


def test_status_needs_no_engine_no_key_and_no_aws(cloud, home):
    code = (
        "import sys; from pipeline.cli.base import run\n"
        "assert run(['status', 'T-1']) == 0\n"
        "print('MODULES', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.rpartition("MODULES")[2].split()}
    assert not loaded & {"dbos", "sqlalchemy", "boto3", "paramiko", "pyarrow", "psycopg"}


def test_a_step_of_a_module_that_is_not_there():
    there = Step("x", "y", "pipeline.workflow:observe")
    assert there.function() is not None
    assert Step("x", "y", "pipeline.no_such:thing").function() is None
    assert [s.name for s in of_scope(["report", "observe"], "case")] == ["report"]
