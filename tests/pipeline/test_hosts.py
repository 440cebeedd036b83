# SPDX-License-Identifier: Apache-2.0
"""`acquire memory` and `acquire live` as a user has them: AWS is the stand-in, sshd is real."""

from __future__ import annotations

import hashlib
import json

import pytest

from acquisition.live import COLLECTORS
from pipeline.gameday.aws.accounts import MEMBER
from tests.acquisition.kcore_host import lime
from tests.acquisition.kcore_host import memory as content_of
from tests.pipeline.conftest import FROM, NET
from tests.sshd import Sshd

FEW = tuple(c for c in COLLECTORS if c.name in ("clock", "sockets.proc", "mounts"))


@pytest.fixture
def ec2(aws_server, zone):
    return aws_server.client("ec2", MEMBER)


def entries(cloud, action):
    listed = cloud("--json", "case", "show", "T-1").json
    return [e for e in listed["entries"] if e["action"] == action]


def test_memory_of_an_instance(cloud, ssh, permit, target, host, home):
    permit()
    done = cloud("--json", "acquire", "memory", target, "--case", "T-1")
    assert done.code == 0, done.err
    assert done.json["verdict"] == "complete"
    assert done.json["sha256"] == hashlib.sha256(lime(content_of())).hexdigest()
    listed = cloud("--json", "case", "show", "T-1").json
    kinds = {i["item"]: i["kind"] for i in listed["items"]}
    assert kinds[done.json["item"]] == "memory"
    assert sorted(kinds.values()) == ["memory", "record", "record"]
    (session,) = entries(cloud, "session.recorded")
    log = cloud("item", "cat", "T-1", session["item"], "--member", "footprint.jsonl").out
    said = [json.loads(line) for line in log.splitlines()]
    assert any("if=/proc/kcore" in a.get("command", "") for a in said)
    pieces = {a["n"] for a in said if a.get("why") == "memory"}
    ends = [a for a in said if a.get("end_of") in pieces]
    assert {(a["outcome"], a["code"]) for a in ends} == {("ended", 0)}
    shown = cloud("case", "show", "T-1").out
    assert "dd if=/proc/kcore" in shown
    side = cloud("item", "cat", "T-1", done.json["sidecars"], "--member", "verdict.json").out
    assert json.loads(side)["verdict"] == "complete"
    assert cloud("verify", "T-1", "--deep").code == 0

    # the same boot again: nothing is read; a session that was killed left its footprint
    folder = next((home / ".local/state/impound/footprints").rglob("T-1"))
    assert list(folder.iterdir()) == []
    name = hashlib.sha256(target.encode()).hexdigest()[:16]
    (folder / f"{name}-killed.jsonl").write_text('{"n":1,"what":"command","command":"dd"}\n')
    again = cloud("--json", "acquire", "memory", target, "--case", "T-1")
    assert (again.code, again.json["existing"], again.json["item"]) == (
        0, True, done.json["item"])  # fmt: skip
    assert again.json["verdict"] == "complete"
    assert list(folder.iterdir()) == []
    last = entries(cloud, "session.recorded")[-1]
    kept = cloud("item", "cat", "T-1", last["item"], "--member", "earlier-0.jsonl")
    assert '"command":"dd"' in kept.out


def test_capture_that_was_killed_before_its_verdict_is_judged_by_the_next_run(
    cloud, ssh, permit, target, host, monkeypatch
):
    permit()

    def die(_seen):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("pipeline.memory.judge", die)
        assert cloud("--json", "acquire", "memory", target, "--case", "T-1").code == 130
    done = cloud("--json", "acquire", "memory", target, "--case", "T-1")
    assert done.code == 0, done.err
    assert done.json["existing"]
    assert (done.json["verdict"], done.json["gaps"]) == ("complete", [])
    assert done.json["sidecars"]
    again = cloud("--json", "acquire", "memory", target, "--case", "T-1")
    assert (again.json["verdict"], again.json["sidecars"]) == ("complete", done.json["sidecars"])
    kinds = [i["kind"] for i in cloud("--json", "case", "show", "T-1").json["items"]]
    assert kinds.count("memory") == 1


def test_closed_port_is_refused_with_the_rule_before_a_packet_leaves(
    cloud, ssh, permit, target, host
):
    before = (host.home / "log").read_bytes()
    done = cloud("--json", "acquire", "memory", target, "--case", "T-1")
    assert done.code == 12
    assert f"ingress tcp 22 {FROM}/32" in json.loads(done.err.splitlines()[-1])["hint"]
    assert (host.home / "log").read_bytes() == before
    assert not (host.room / "sudo.log").exists()
    planned = cloud("--json", "plan", "memory", target, "--case", "T-1")
    assert planned.code == 3
    assert f"ingress tcp 22 {FROM}/32" in planned.json["refused"]


def test_plan_sends_nothing_and_says_everything(cloud, ssh, permit, target, host, ec2):
    permit()
    host.stop()
    ssh("")
    for name in ("memory", "live"):
        planned = cloud("--json", "plan", name, target, "--case", "T-1")
        assert planned.code == 0, planned.err
        assert planned.json["rule"] == f"ingress tcp 22 {NET}"
        assert planned.json["logins"] == ["EC2 Instance Connect", "key"]
        assert planned.json["host_key"] == "first use"
        assert planned.json["commands"]
    assert cloud("plan", "live", target, "--case", "T-1").out.count("\n") > 20
    volume = "vol-0123456789abcdef0"
    refused = cloud("acquire", "memory", volume, "--case", "T-1", "--account", MEMBER)
    assert refused.code == 2
    ec2.stop_instances(InstanceIds=[target.rpartition("/")[2]])
    done = cloud("acquire", "memory", target, "--case", "T-1")
    assert done.code == 12
    assert "its memory is gone" in done.err


def test_all_zero_memory_is_unusable_exit_12(cloud, ssh, permit, target, host):
    permit()
    host.load(content=content_of(zero=True))
    for _ in range(2):
        done = cloud("--json", "acquire", "memory", target, "--case", "T-1")
        assert done.code == 12
        assert done.json["verdict"] == "unusable"


def test_host_key_of_the_case_is_fixed_by_the_first_session(
    cloud, ssh, permit, target, host, tmp_path, monkeypatch
):
    monkeypatch.setattr("pipeline.live.COLLECTORS", FEW)
    permit()
    strict = cloud("acquire", "live", target, "--case", "T-1", "--strict-host-key")
    assert strict.code == 12
    assert "strict-host-key" in strict.err
    assert cloud("acquire", "live", target, "--case", "T-1").code == 0
    other = Sshd(tmp_path / "other")
    (host.home / "host").write_bytes((other.home / "host").read_bytes())
    host.stop()
    host.start()
    done = cloud("--json", "acquire", "live", target, "--case", "T-1")
    assert done.code == 12
    assert "host key changed" in done.err
    pinned = cloud("acquire", "live", target, "--case", "T-1", "--host-key", other.host_key)
    assert pinned.code == 0


def test_refused_login_names_each_method_and_leaves_its_footprint(cloud, ssh, permit, target, host):
    permit()
    (host.home / "authorized").write_text("")
    done = cloud("acquire", "memory", target, "--case", "T-1")
    assert done.code == 12
    assert "key: refused" in done.err
    listed = cloud("--json", "case", "show", "T-1").json
    assert listed["entries"][-1]["action"] == "step.failed"
    assert [i["kind"] for i in listed["items"]] == ["record"]


def test_sudo_password_by_descriptor_is_stored_nowhere(cloud, ssh, permit, target, host, tmp_path):
    permit()
    (host.room / "password").write_text("tr0ub4dor")
    refused = cloud("acquire", "memory", target, "--case", "T-1")
    assert refused.code == 12
    assert "--sudo-password" in refused.err
    secret = tmp_path / "secret"
    secret.write_text("tr0ub4dor\n")
    with secret.open() as f:
        done = cloud("acquire", "memory", target, "--case", "T-1",
                     "--sudo-password-fd", str(f.fileno()))  # fmt: skip
    assert done.code == 0, done.err
    stored = b"".join(p.read_bytes() for p in (tmp_path / "work").rglob("*") if p.is_file())
    assert b"tr0ub4dor" not in stored


def test_host_without_kcore_is_captured_by_avml(cloud, ssh, permit, target, host, tmp_path):
    """A stand-in for AVML: a script that writes a LiME image where it is told."""
    permit()
    (host.room / "kcore").write_bytes(b"")
    (tmp_path / "image").write_bytes(lime(content_of()))
    tool = tmp_path / "avml"
    tool.write_text(f'#!/bin/sh\nexec cat "{tmp_path / "image"}" > "$1"\n')
    given = ("acquire", "memory", target, "--case", "T-1", "--avml", str(tool), "--avml-sha256")
    wrong = cloud(*given, "0" * 64)
    assert wrong.code == 12
    assert "nothing was sent" in wrong.err
    done = cloud("--json", *given, hashlib.sha256(tool.read_bytes()).hexdigest())
    assert done.code == 0, done.err
    assert (done.json["verdict"], done.json["sent"]) == ("complete", "avml")
    assert any("kcore" in remark for remark in done.json["remarks"])


def test_live_of_an_instance(cloud, ssh, permit, target, monkeypatch):
    monkeypatch.setattr("pipeline.live.COLLECTORS", FEW)
    permit()
    done = cloud("--json", "acquire", "live", target, "--case", "T-1", "--path", "/no/such")
    assert done.code == 0, done.err
    assert done.json["outcomes"]["failed"] == 0
    names = {c["name"]: c["outcome"] for c in done.json["collectors"]}
    assert names["sockets.proc"] == "success"
    assert names["paths/0000"] == "missing"
    got = cloud("item", "cat", "T-1", done.json["item"], "--member", "sockets.proc")
    assert "local_address" in got.out
