# SPDX-License-Identifier: Apache-2.0
"""The key that a host showed over SSH, against those of its frozen disk (A6)."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from acquisition.live import COLLECTORS
from acquisition.login import fingerprint
from acquisition.target import parse_target
from pipeline.config import load
from pipeline.gameday.aws.accounts import MEMBER
from pipeline.hostkeys import PUBLIC_KEYS, Shown, compare, judge
from pipeline.session import Passphrase, Session
from tests.sshd import Sshd

FEW = tuple(c for c in COLLECTORS if c.name == "clock")
ONE, OTHER = (f"ssh-ed25519 {body * 8}" for body in ("AAAA", "BBBB"))


# -- pure


def test_a_key_of_the_disk_whatever_its_comment():
    assert judge([Shown("E0001", ONE)], {f"{ONE} root@web": "/x"}) == ("same", [])


def test_a_key_that_the_disk_does_not_hold():
    outcome, [gap] = judge([Shown("E0001", ONE), Shown("E0002", OTHER)], {OTHER: "/x"})
    assert outcome == "differs"
    assert gap.startswith("source not authenticated: E0001 ")
    assert fingerprint(ONE) in gap
    assert fingerprint(OTHER) in gap


@pytest.mark.parametrize(("unread", "said"), [((), PUBLIC_KEYS), (("snap-1: LUKS",), "LUKS")])
def test_without_a_key_on_the_disk_nothing_is_confirmed(unread, said):
    outcome, [gap] = judge([Shown("E0001", ONE)], {}, unread)
    assert outcome == "not compared"
    assert "source not authenticated: E0001" in gap
    assert said in gap


# -- a real sshd, a real ext4 behind its instance


@pytest.fixture
def other(tmp_path):
    return Sshd(tmp_path / "other")


@pytest.fixture
def keys(host):
    """What lies in /etc/ssh of the disk."""
    return {"ssh_host_ed25519_key.pub": f"{host.host_key} root@web\n", "ssh_host_rsa_key.pub": "no"}


@pytest.fixture
def images(tmp_path, keys, need_tool):
    tree, image = tmp_path / "tree", tmp_path / "disk.img"
    (tree / "etc/ssh").mkdir(parents=True)
    for name, text in keys.items():
        (tree / "etc/ssh" / name).write_text(text)
    with image.open("wb") as f:
        f.truncate(1 << 30)
    subprocess.run([need_tool("mke2fs"), "-q", "-F", "-t", "ext4", "-d", tree, image], check=True)
    return [image]


@pytest.fixture
def taken(cloud, ssh, permit, target, monkeypatch):
    """Live facts were taken."""
    monkeypatch.setattr("pipeline.live.COLLECTORS", FEW)
    permit()

    def take(*more):
        done = cloud("--json", "acquire", "live", target, "--case", "T-1", *more)
        assert done.code == 0, done.err
        return done.json["item"]

    return take


@pytest.fixture
def compared(cloud, target, zone):
    """Compare; return what it came to, and what the report says of it."""

    def call(tmp_path):
        session = Session(load().settings, "./evidence", Passphrase(interactive=False))
        case = session.open_store(writing=True).case("T-1")
        found = compare(case, session.accounts("T-1"), parse_target(target), [zone.estate.snapshot])
        assert cloud("case", "close", "T-1", "--yes").code == 0
        done = cloud("report", "T-1", "-o", tmp_path / "report")
        assert done.code in (0, 3), done.err
        page = (tmp_path / "report/index.html").read_text()
        return found, "source not authenticated" in page

    return call


def test_the_disk_confirms_the_host(taken, compared, cloud, tmp_path):
    taken()
    found, told = compared(tmp_path)
    assert (found.outcome, found.gaps, found.keys, told) == ("same", (), 1, False)
    shown = cloud("--json", "case", "show", "T-1").json
    assert any((e["step"] or "").startswith("hostkeys ") for e in shown["entries"])
    [kept] = [i["item"] for i in shown["items"] if i["kind"] == "logs"]
    names = cloud("--json", "item", "members", "T-1", kept).json["members"]
    assert {Path(m["name"]).name for m in names} >= {"ssh_host_ed25519_key.pub"}
    assert cloud("verify", "T-1", "--deep").code == 0


def test_another_machine_answered(taken, compared, host, other, tmp_path):
    (host.home / "host").write_bytes((other.home / "host").read_bytes())
    host.stop()
    host.start()
    item = taken()
    found, told = compared(tmp_path)
    assert (found.outcome, told) == ("differs", True)
    [gap] = found.gaps
    assert item in gap
    assert fingerprint(other.host_key) in gap
    assert fingerprint(host.host_key) in gap


@pytest.mark.parametrize("keys", [{}, {"ssh_host_rsa_key.pub": "\0" * 5000 + "ssh-rsa"}])
def test_a_disk_that_holds_none_confirms_nothing(taken, compared, tmp_path):
    taken()
    found, told = compared(tmp_path)
    assert (found.outcome, told) == ("not compared", True)


@pytest.mark.chaos  # a whole response
def test_respond_compares(taken, cloud, target, other, host):
    """The step, as a response has it: live facts are there, of a machine that is not the disk's."""
    (host.home / "host").write_bytes((other.home / "host").read_bytes())
    host.stop()
    host.start()
    item = taken()
    done = cloud("--json", "respond", "T-1", target)
    assert done.code == 3, done.err
    [line] = [s for s in done.json["steps"] if s["step"] == "hostkeys"]
    assert line["state"] == "gap"
    assert f"source not authenticated: {item} " in json.dumps(line)
    page = Path("T-1-report/index.html").read_text()
    assert "showed a key that the frozen disk does not hold" in page
    again = cloud("--json", "resume", "T-1")
    assert [s["state"] for s in again.json["steps"] if s["step"] == "hostkeys"] == ["gap"]
    assert cloud("verify", "T-1", "--deep").code == 0


def test_a_pinned_key_needs_no_disk(taken, compared, host, tmp_path):
    taken("--host-key", host.host_key)
    assert compared(tmp_path) == (None, False)


def test_a_snapshot_that_is_gone_is_said(taken, compared, aws_server, zone, tmp_path):
    taken()
    aws_server.client("ec2", MEMBER).delete_snapshot(SnapshotId=zone.estate.snapshot)
    found, _ = compared(tmp_path)
    assert found.outcome == "not compared"
    assert zone.estate.snapshot in found.gaps[0]
