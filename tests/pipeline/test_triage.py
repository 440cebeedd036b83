# SPDX-License-Identifier: Apache-2.0
"""`triage snapshot`: what is taken, what it costs, what is said of the rest."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from pipeline.gameday.aws.accounts import AUDIT, MEMBER, REGION
from pipeline.gameday.aws.faults import Fault

GIB = 1 << 30
_P1, _P2 = 1 << 20, 512 << 20


def fill(tree):
    """A root file system as a responder knows it."""
    files = {
        "etc/passwd": b"root:x:0:0:root:/root:/bin/bash\nann:x:1000:1000::/home/ann:/bin/sh\n"
                      b"srv:x:1001:1001::/srv/app:/bin/sh\n",
        "root/.ssh/authorized_keys": b"ssh-ed25519 AAAA root@kali\n",
        "home/ann/.bash_history": b"curl http://203.0.113.9/u\n",
        "srv/app/.bash_history": b"id\n",
        "usr/bin/dash": os.urandom(200_000),
        "run/utmp": b"utmp",
        "big": os.urandom(3 << 20),
        "empty": b"",
    }  # fmt: skip
    for name, content in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tree / "var").mkdir()
    (tree / "var/run").symlink_to("/run")
    (tree / "bin").symlink_to("usr/bin")
    (tree / "usr/bin/sh").symlink_to("dash")
    return files


def sparse(image, to, start):
    with image.open("rb") as f:
        while block := f.read(1 << 16):
            if block.strip(b"\0"):
                os.pwrite(to, block, start + f.tell() - len(block))


def partitioned(path, first, second):
    """An MBR disk of 1 GiB with two file systems."""
    with path.open("wb") as f:
        f.truncate(GIB)
        table = b""
        for start, image in ((_P1, first), (_P2, second)):
            sparse(image, f.fileno(), start)
            table += b"\0\0\0\0\x83\0\0\0" + (start >> 9).to_bytes(4, "little")
            table += (image.stat().st_size >> 9).to_bytes(4, "little")
        f.seek(446)
        f.write(table.ljust(64, b"\0") + b"\x55\xaa")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("triage")


@pytest.fixture(scope="module")
def content(place):
    tree = place / "tree"
    tree.mkdir()
    return fill(tree)


@pytest.fixture(scope="module")
def disk(content, need_tool, place):
    """ext4 with the tree in p1, an XFS with one file in p2; read only."""
    ext, xfs, whole = (place / name for name in ("ext.img", "xfs.img", "whole.img"))
    for path, size in ((ext, 200 << 20), (xfs, 310 << 20)):
        with path.open("wb") as f:
            f.truncate(size)
    subprocess.run(
        [need_tool("mke2fs"), "-q", "-F", "-t", "ext4", "-d", place / "tree", ext], check=True
    )
    (place / "one").write_bytes(b"on xfs\n")
    proto = f"/\n0 0\nd--755 0 0\netc d--755 0 0\npasswd ---644 0 0 {place / 'one'}\n$\n$\n"
    (place / "proto").write_text(proto)
    subprocess.run([need_tool("mkfs.xfs"), "-q", "-f", "-p", place / "proto", xfs], check=True)
    partitioned(whole, ext, xfs)
    whole.chmod(0o400)
    return whole


@pytest.fixture
def images(disk):
    return [disk]


@pytest.fixture
def triage(cloud, zone):
    target = zone.estate.variables()["SNAPSHOT"]

    def call(*more, text=False):
        start = () if text else ("--json",)
        return cloud(*start, "triage", "snapshot", target, "--case", "T-1", *more)

    return call


def members(cloud, item="E0001"):
    listed = cloud("--json", "item", "members", "T-1", item).json["members"]
    return {m["name"]: m for m in listed}


def test_named_files_go_into_custody(triage, cloud, content):
    done = triage("--paths", "/etc/passwd", "/root/.ssh/*", "/home/*/.bash_history")
    assert done.code == 0, done.err + done.out
    taken = members(cloud)
    assert set(taken) == {
        "/etc/passwd", "p2:/etc/passwd", "/root/.ssh/authorized_keys", "/home/ann/.bash_history"
    }  # fmt: skip
    for name, member in taken.items():
        body = b"on xfs\n" if name.startswith("p2:") else content[name[1:]]
        assert member["sha256"] == hashlib.sha256(body).hexdigest()
        assert (member["type"], member["size"]) == ("file", len(body))
    assert taken["/etc/passwd"]["volume"] == "p1"
    assert taken["/etc/passwd"]["fs"] == "ext4"
    assert taken["p2:/etc/passwd"]["fs"] == "xfs"
    assert taken["/etc/passwd"]["mode"] & 0o777 == 0o644
    assert int(taken["/etc/passwd"]["mtime_ns"]) > 0
    assert cloud("verify", "T-1", "--deep").code == 0
    assert cloud("item", "cat", "T-1", "E0001", "--member", "/etc/passwd").out.startswith("root:")


def test_only_the_blocks_needed_are_fetched(triage, aws_server):
    done = triage("--paths", "/etc/passwd")
    gets = [c for c in aws_server.calls() if c.operation == "GetSnapshotBlock"]
    assert done.json["blocks"] == len(gets)
    assert done.json["fetched"] == len(gets) << 19
    assert len(gets) <= 10
    assert done.json["percent"] < 1
    assert "% of 1.0 GiB" in triage("--paths", "/etc/passwd", "--again", text=True).out


def test_the_manifest_says_where_it_is_from(triage, cloud, zone):
    triage("--paths", "/etc/passwd", "/none")
    [item] = cloud("--json", "item", "list", "T-1").json["items"]
    source = item["manifest"]["source"]
    assert item["kind"] == "logs"
    assert source["arn"].endswith(zone.estate.snapshot)
    assert source["patterns"] == ["/etc/passwd", "/none"]
    assert source["unmatched"] == ["/none"]
    assert source["source_checksums"]["checked"] == source["fetched_blocks"] > 0
    assert {v["fs"] for v in source["volumes"] if v["fs"]} == {"ext4", "xfs"}
    assert item["manifest"]["result"] == "partial"


def test_a_pattern_that_matches_nothing_is_named(triage):
    done = triage("--paths", "/etc/passwd", "/etc/nothing*", text=True)
    assert done.code == 3
    assert "nothing matches /etc/nothing*" in done.out


def test_nothing_at_all(triage, cloud):
    done = triage("--paths", "/none")
    assert done.code == 3
    assert done.json["item"] is None
    assert done.json["unmatched"] == ["/none"]
    assert cloud("--json", "item", "list", "T-1").json["items"] == []
    again = triage("--paths", "/none")
    assert (again.code, again.json["existing"], again.json["unmatched"]) == (3, True, ["/none"])


def test_again_fetches_nothing_and_stores_nothing(triage, cloud, aws_server):
    first = triage("--paths", "/etc/passwd")
    calls = len(aws_server.calls())
    again = triage("--paths", "/etc/passwd")
    assert again.code == 0
    assert again.json["existing"]
    assert again.json["item"] == first.json["item"] == "E0001"
    made = {c.operation for c in aws_server.calls()[calls:]}
    assert not made & {"GetSnapshotBlock", "ListSnapshotBlocks"}
    assert triage("--paths", "/etc/passwd", "--again").json["item"] == "E0002"
    assert triage("--paths", "/big").json["item"] == "E0003"


def test_again_after_gaps_says_so(triage):
    triage("--paths", "/etc/passwd", "/none")
    assert triage("--paths", "/etc/passwd", "/none").code == 3


def test_links(triage, cloud):
    done = triage("--paths", "/var/run/utmp", "/bin/sh", "/bin/dash")
    assert done.code == 0
    taken = members(cloud)
    assert set(taken) == {"/var/run", "/run/utmp", "/bin", "/usr/bin/sh", "/usr/bin/dash"}
    assert taken["/usr/bin/sh"]["target"] == "dash"
    assert taken["/var/run"]["type"] == "symlink"
    followed = {(f["path"], f["target"]) for f in done.json["links_followed"]}
    assert followed == {("/var/run", "/run"), ("/bin", "usr/bin")}
    assert any("link to dash" in limit for limit in done.json["limits"])


def test_a_directory_alone_says_how_to_take_what_is_in_it(triage):
    done = triage("--paths", "/etc", text=True)
    assert done.code == 0
    assert "/etc/** takes what is in it" in done.out


def test_too_large_is_a_gap(triage, cloud, content):
    done = triage("--paths", "/big", "/etc/passwd", "--max-file", "1", text=True)
    assert done.code == 3
    assert "too large: 3145728 bytes" in done.out
    taken = members(cloud)
    assert taken["/big"]["object"] is None
    assert taken["/etc/passwd"]["object"]
    done = triage("--paths", "/big", "/usr/bin/dash", "--max-total", "3", text=True)
    assert done.code == 3
    assert "--max-total" in done.out


def test_an_empty_file_is_a_file(triage, cloud):
    assert triage("--paths", "/empty", "/big").code == 0
    assert members(cloud)["/empty"]["sha256"] == hashlib.sha256(b"").hexdigest()


def test_list_takes_nothing(triage, cloud):
    done = triage("--paths", "/etc/*", "--list", text=True)
    assert done.code == 0
    assert "/etc/passwd" in done.out
    assert "nothing taken" in done.out
    assert cloud("--json", "item", "list", "T-1").json["items"] == []
    assert triage("--paths", "/etc/*").json["item"] == "E0001"


def test_what_stands_in_the_ledger(triage, cloud):
    triage("--paths", "/etc/passwd")
    store = Path("evidence/cases/T-1/ledger")
    events = [json.loads(p.read_text().splitlines()[0]) for p in sorted(store.iterdir())]
    [begun] = [e for e in events if e["action"] == "step.started"]
    [done] = [e for e in events if e["action"] == "step.done"]
    assert begun["data"]["patterns"] == ["/etc/passwd"]
    assert done["data"]["item"] == "E0001"
    assert done["data"]["fetched"] > 0


def test_artifacts_by_name_with_the_users_of_the_snapshot(triage, cloud, content):
    done = triage("--artifacts", "LinuxPasswdFile", "BashShellHistoryFile")
    assert done.code == 0, done.out + done.err
    taken = members(cloud)
    assert {"/etc/passwd", "/home/ann/.bash_history", "/srv/app/.bash_history"} <= set(taken)
    assert done.json["artifacts"] == ["LinuxPasswdFile", "BashShellHistoryFile"]
    assert triage("--artifacts", "LinuxPasswdFile", "BashShellHistoryFile").json["existing"]


def test_an_artifact_that_is_not_there(triage):
    done = triage("--artifacts", "LinuxPasswdFile", "DockerContainerConfig", text=True)
    assert done.code == 3
    assert "artifact DockerContainerConfig" in done.out


def test_an_artifact_of_no_known_name(triage):
    done = triage("--artifacts", "LinuxPaswdFile", text=True)
    assert done.code == 2
    assert "LinuxPasswdFile" in done.err


def test_the_list_of_artifacts(impound):
    done = impound("triage", "artifacts", "passwd")
    assert done.code == 0
    assert "LinuxPasswdFile" in done.out.splitlines()


def test_a_block_that_is_lost_is_a_gap(triage, aws_server):
    first = triage("--paths", "/big", "--list")
    assert first.code == 0
    aws_server.faults.add(Fault("corrupt", service="ebs", operation="GetSnapshotBlock", times=None,
                                skip=first.json["blocks"]))  # fmt: skip
    done = triage("--paths", "/big", text=True)
    assert done.code == 3, done.out + done.err
    assert "unreadable" in done.out


def test_without_the_right_to_read_blocks(triage, aws_server, cloud):
    aws_server.faults.add(
        Fault("error", service="ebs", operation="GetSnapshotBlock", status=403, times=None,
              code="AccessDeniedException", message="no")
    )  # fmt: skip
    done = triage("--paths", "/etc/passwd", text=True)
    assert done.code == 12
    assert "AccessDenied" in done.err
    assert "Traceback" not in done.err
    aws_server.faults.clear()
    assert triage("--paths", "/etc/passwd").json["item"] == "E0001"


def test_a_snapshot_that_is_not_there(cloud, zone):
    done = cloud("triage", "snapshot", "snap-0123456789abcdef0", "--account", MEMBER, "--region",
                 REGION, "--case", "T-1", "--paths", "/a")  # fmt: skip
    assert done.code == 12
    assert "snap-0123456789abcdef0" in done.err


def test_a_snapshot_that_is_not_complete(cloud, zone, aws_server):
    ec2 = aws_server.client("ec2", MEMBER)
    made = ec2.create_snapshot(VolumeId=zone.estate.volumes[0])["SnapshotId"]
    aws_server.set_snapshot(made, "pending")
    done = cloud("triage", "snapshot", made, "--account", MEMBER, "--region", REGION, "--case",
                 "T-1", "--paths", "/a")  # fmt: skip
    assert done.code == 12
    assert "pending" in done.err


def test_another_account(cloud, zone):
    done = cloud("triage", "snapshot", zone.estate.snapshot, "--account", AUDIT, "--region",
                 REGION, "--case", "T-1", "--paths", "/a")  # fmt: skip
    assert done.code == 12
    assert "NotFound" in done.err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), "--artifacts"),
        (("--paths", "/a", "--artifacts", "LinuxPasswdFile"), "not both"),
        (("--paths", "etc/passwd"), "absolute"),
        (("--paths", "/a/../b"), ".."),
        (("--paths", "/"), "root"),
        (("--paths",), "--paths"),
    ],
)
def test_usage(triage, more, said):
    done = triage(*more, text=True)
    assert done.code == 2
    assert said in done.err


def test_an_instance_is_no_snapshot(cloud, zone):
    done = cloud("triage", "snapshot", zone.estate.variables()["INSTANCE"], "--case", "T-1",
                 "--paths", "/a")  # fmt: skip
    assert done.code == 2
    assert "is no snapshot" in done.err


class TestNoFileSystem:
    @pytest.fixture
    def disk(self, tmp_path):
        path = tmp_path / "luks.img"
        with path.open("wb") as f:
            f.truncate(GIB)
            f.seek(0)
            f.write(b"LUKS\xba\xbe" + bytes(5000) + b"x")
        return path

    def test_is_one_error_that_says_what_is_there(self, triage):
        done = triage("--paths", "/etc/passwd", text=True)
        assert done.code == 13
        assert "LUKS" in done.err
        assert done.err.count("\n") == 2


def children_of(pid):
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(one) for one in found]


def test_a_reader_that_is_killed_leaves_what_it_found(triage, cloud, monkeypatch):
    import pipeline.triage as module

    class Killed(module.Looked):
        def take(self, message):
            super().take(message)
            if len(self.found) == 1:
                for pid in children_of(os.getpid()):
                    line = Path(f"/proc/{pid}/cmdline").read_bytes()
                    if b"evidence_store.child" in line:
                        os.kill(pid, signal.SIGKILL)

    monkeypatch.setattr(module, "Looked", Killed)
    done = triage("--paths", "/etc/passwd", "/**", text=True)
    assert done.code == 13
    assert "E0001" in done.err
    kept = members(cloud)
    assert kept
    monkeypatch.setattr(module, "Looked", Killed.__base__)
    whole = triage("--paths", "/etc/passwd", "/**")
    assert (whole.code, whole.json["item"]) == (0, "E0002")
    assert len(members(cloud, "E0002")) > len(kept)
    assert cloud("verify", "T-1", "--deep").code == 0


def test_a_child_that_lies_about_what_it_wrote(triage, cloud, monkeypatch):
    import pipeline.triage as module

    def lie(message):
        member = real(message)
        if member["object"] is not None:
            member["sha256"] = "0" * 64
        return member

    real = module._member
    monkeypatch.setattr(module, "_member", lie)
    done = triage("--paths", "/etc/passwd")
    assert done.code == 3
    assert all("not what" in str(m["error"]) for m in members(cloud).values())
