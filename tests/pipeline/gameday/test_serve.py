# SPDX-License-Identifier: Apache-2.0
"""`gameday --serve` as a user has it: a process, a file for the shell, an end without remains."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.gameday.aws.accounts import AUDIT, LOG_ARCHIVE, RESPONDER_ROLE
from pipeline.gameday.aws.seed import EVIDENCE_BUCKET, SEALER, seed

IMPOUND = [sys.executable, "-I", "-c", "from pipeline.cli import main; main()"]


def until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


def children(pid):
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == pid:
            found.append(int(entry.parent.name))
    return found


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def env_file(tmp_path):
    return tmp_path / "aws.env"


@pytest.fixture
def serve(env_file):
    """Start it and wait for its file; what still runs at the end is killed."""
    started = []

    def start(*more):
        process = subprocess.Popen(
            [*IMPOUND, *more, "gameday", "--serve", "--env-file", str(env_file)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        until(lambda: env_file.exists() or process.poll() is not None)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def sourced(env_file):
    """The variables as a POSIX shell has them."""
    done = subprocess.run(
        ["sh", "-c", '. "$1" && env -0', "sh", str(env_file)],
        capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    return dict(v.split("=", 1) for v in done.stdout.split("\0") if v)


def client(service, variables):
    import boto3

    session = boto3.Session(
        variables["AWS_ACCESS_KEY_ID"], variables["AWS_SECRET_ACCESS_KEY"],
        variables["AWS_SESSION_TOKEN"], variables["AWS_DEFAULT_REGION"],
    )  # fmt: skip
    return session.client(service, endpoint_url=variables["AWS_ENDPOINT_URL"])


@pytest.mark.chaos
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_from_start_to_end(serve, env_file, number):
    process = serve("--json")
    assert stat.S_IMODE(env_file.stat().st_mode) == 0o600
    variables = sourced(env_file)
    identity = client("sts", variables).get_caller_identity()
    assert identity["Account"] == AUDIT
    assert f":assumed-role/{RESPONDER_ROLE}/GAMEDAY.responder" in identity["Arn"]
    [server] = children(process.pid)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert json.loads(out)["endpoint"] == variables["AWS_ENDPOINT_URL"]
    assert not env_file.exists()
    assert not Path(variables["IMPOUND_CONFIG"]).exists()
    assert not running(server)


def test_its_settings_are_settings(serve, env_file, home, impound, monkeypatch):
    serve()
    variables = sourced(env_file)
    monkeypatch.setenv("IMPOUND_CONFIG", variables["IMPOUND_CONFIG"])
    shown = impound("--json", "config").json["settings"]
    kms = client("kms", variables)
    for name, usage in (
        ("s3.kms_key", "ENCRYPT_DECRYPT"),
        ("signing.entry_key", "SIGN_VERIFY"),
        ("signing.checkpoint_key", "SIGN_VERIFY"),
    ):
        assert kms.describe_key(KeyId=shown[name])["KeyMetadata"]["KeyUsage"] == usage
    assert shown["store"] == f"s3://{EVIDENCE_BUCKET}"
    assert shown["signing.sealer"] == (
        f"arn:aws:lambda:eu-central-1:{LOG_ARCHIVE}:function:{SEALER}"
    )


def test_the_estate_is_ready(serve, env_file, need_tool):
    """An instance whose volumes hold the images, block by block, and are as large as they."""
    need_tool("mke2fs")
    process = serve()
    variables = sourced(env_file)
    images = [Path(i) for i in variables["IMAGES"].split()]
    assert len(images) == len(variables["VOLUMES"].split()) == 2
    ebs = client("ebs", variables)
    snapshot = variables["SNAPSHOT"].rpartition("/")[2]
    ids = [arn.rpartition("/")[2] for arn in variables["VOLUMES"].split()]
    with pytest.raises(Exception, match="does not exist"):
        ebs.list_snapshot_blocks(SnapshotId=snapshot)  # not shared yet
    session = client("sts", variables).assume_role(
        RoleArn=variables["EXECUTION_ROLE"], RoleSessionName="GAMEDAY.me",
        ExternalId=variables["EXTERNAL_ID"],
    )["Credentials"]  # fmt: skip
    member = variables | {
        "AWS_ACCESS_KEY_ID": session["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": session["SecretAccessKey"],
        "AWS_SESSION_TOKEN": session["SessionToken"],
    }
    volumes = client("ec2", member).describe_volumes(VolumeIds=ids)
    sizes = [v["Size"] << 30 for v in volumes["Volumes"]]
    assert sizes == [i.stat().st_size for i in images]
    ebs = client("ebs", member)
    with images[0].open("rb") as image:
        for block in ebs.list_snapshot_blocks(SnapshotId=snapshot)["Blocks"]:
            image.seek(block["BlockIndex"] << 19)
            got = ebs.get_snapshot_block(SnapshotId=snapshot, **block)["BlockData"].read()
            assert got == image.read(1 << 19)
    process.terminate()
    assert process.wait(20) == 0
    assert not images[0].parent.exists()


def test_images_of_somebody_else_are_kept(impound, env_file):
    folder = env_file.with_name("aws.env.images")
    folder.mkdir()
    (folder / "mine").touch()
    assert impound("gameday", "--serve", "--env-file", env_file).code == 2
    assert (folder / "mine").exists()


def test_without_mke2fs(env_file, monkeypatch):
    """No instance then, and it is said."""
    from pipeline.gameday import serve as module

    monkeypatch.setattr(module, "tool", lambda _name: None)
    with module.standing(env_file) as now:
        assert now.seeded.estate is None
        assert any("mke2fs is not installed" in what for what in now.left_out)
        assert "INSTANCE" not in now.variables


def test_a_machine_that_cannot_be_made_is_left_out_and_said(env_file, monkeypatch, tmp_path):
    from pipeline.gameday import serve as module
    from pipeline.gameday.guest import build

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "tool", lambda _name: None)
    with module.standing(env_file, guest=True) as now:
        assert now.guest is None
        assert any("no machine behind the instance" in what and "qemu-system-x86" in what
                   for what in now.left_out)  # fmt: skip
        assert "GUEST_ADDRESS" not in now.variables
        assert "proxy" not in module.config_path(env_file).read_text()


@pytest.mark.guest
@pytest.mark.xdist_group("guest")
def test_a_machine_stands_behind_the_instance(boot_guest, env_file):
    """From outside it is reached while the groups let it; a pushed key logs in."""
    from acquisition.reach import connect
    from pipeline.gameday import serve as module
    from pipeline.gameday.aws.accounts import MEMBER

    with module.standing(env_file, guest=True) as now:
        variables, server = now.variables, now.server
        instance = variables["INSTANCE"].rpartition("/")[2]
        for source in (module.FORENSICS, module.OUTSIDE):
            proxy = f"127.0.0.1:{server.vantage(source)}"
            with connect(variables["GUEST_ADDRESS"], 22, proxy) as s:
                assert s.recv(8).startswith(b"SSH-2.0-")
        key = env_file.with_name("other")
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        server.client("ec2-instance-connect", MEMBER).send_ssh_public_key(
            InstanceId=instance, InstanceOSUser="responder",
            SSHPublicKey=key.with_suffix(".pub").read_text().strip(),
        )  # fmt: skip
        known = env_file.with_name("known")
        known.write_text(f"[127.0.0.1]:{now.guest.port()} {variables['GUEST_HOST_KEY']}\n")
        done = subprocess.run(
            ["ssh", "-F", "none", "-i", key, "-p", str(now.guest.port()), "-o", "BatchMode=yes",
             "-o", f"UserKnownHostsFile={known}", "-o", "IdentitiesOnly=yes",
             "responder@127.0.0.1", "hostname"],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, "practice\n"), done.stderr
        folder = module.guest_path(env_file)
        assert folder.is_dir()
    assert not folder.exists()


@pytest.mark.chaos
def test_killed_it_leaves_no_child_and_the_next_run_starts(serve, env_file):
    first = serve()
    [server] = children(first.pid)
    before = env_file.read_text()
    first.kill()
    first.communicate()
    until(lambda: not running(server))
    assert env_file.read_text() == before  # nobody was left to remove it
    second = serve()
    until(lambda: env_file.exists() and env_file.read_text() != before)
    second.terminate()
    assert second.wait(20) == 0


@pytest.mark.chaos
def test_stand_in_that_ends_by_itself(serve, env_file):
    process = serve()
    [server] = children(process.pid)
    os.kill(server, signal.SIGKILL)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 14
    assert "ended by itself" in err
    assert not env_file.exists()


def test_a_file_of_somebody_else_is_kept(impound, env_file):
    env_file.write_text("export MINE=1\n")
    result = impound("gameday", "--serve", "--env-file", env_file)
    assert result.code == 2
    assert "exists" in result.err
    assert env_file.read_text() == "export MINE=1\n"


def test_a_folder_that_is_not_there(impound, tmp_path):
    result = impound("gameday", "--serve", "--env-file", tmp_path / "none" / "env")
    assert result.code == 14
    assert "cannot write" in result.err


def test_options_that_do_not_go_together(impound, env_file, tmp_path):
    assert impound("gameday", "--env-file", env_file).code == 2
    assert impound("gameday", "--serve", "-o", tmp_path / "out").code == 2


def test_without_the_extra(impound, env_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "moto", None)
    for name in [n for n in sys.modules if n.startswith("pipeline.gameday.aws")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "boto3", None)
    result = impound("gameday", "--serve", "--env-file", env_file)
    assert result.code == 14
    assert "impound[gameday]" in result.err


# -- what is in it


@pytest.fixture
def seeded(aws_in_process):
    return seed(aws_in_process, "no.such:handler")


def test_evidence_bucket(aws_in_process, seeded):
    """A11, as far as the stand-in can carry it: lock, versions, default key, no deletes."""
    from botocore.exceptions import ClientError

    s3 = aws_in_process.client("s3", AUDIT)
    lock = s3.get_object_lock_configuration(Bucket=EVIDENCE_BUCKET)["ObjectLockConfiguration"]
    assert lock["ObjectLockEnabled"] == "Enabled"
    assert s3.get_bucket_versioning(Bucket=EVIDENCE_BUCKET)["Status"] == "Enabled"
    done = s3.put_object(Bucket=EVIDENCE_BUCKET, Key="k", Body=b"", ChecksumAlgorithm="SHA256")
    assert done["SSEKMSKeyId"] == seeded.store_key
    for version in ({}, {"VersionId": done["VersionId"]}):
        with pytest.raises(ClientError, match=r"403|AccessDenied"):
            s3.delete_object(Bucket=EVIDENCE_BUCKET, Key="k", **version)
    assert s3.get_object(Bucket=EVIDENCE_BUCKET, Key="k")["Body"].read() == b""


def test_only_the_sealer_signs_checkpoints(aws_in_process, seeded):
    """A12: no Audit principal, and no administrator of Log Archive, can."""
    from botocore.exceptions import ClientError

    sign = {
        "KeyId": seeded.checkpoint_key, "Message": b"x", "SigningAlgorithm": "ECDSA_SHA_256",
    }  # fmt: skip
    for account, role in (
        (AUDIT, RESPONDER_ROLE), (AUDIT, SEALER), (LOG_ARCHIVE, RESPONDER_ROLE),
    ):  # fmt: skip
        with pytest.raises(ClientError, match="AccessDeniedException"):
            aws_in_process.client("kms", account, role).sign(**sign)
    sealer = aws_in_process.client("kms", LOG_ARCHIVE, SEALER)
    assert sealer.sign(**sign)["Signature"]
    assert aws_in_process.client("kms", AUDIT).get_public_key(KeyId=seeded.checkpoint_key)


def test_the_sealer_reads_evidence(aws_in_process, seeded):
    aws_in_process.client("s3", AUDIT).put_object(
        Bucket=EVIDENCE_BUCKET, Key="k", Body=b"1", ChecksumAlgorithm="SHA256"
    )
    sealer = aws_in_process.client("s3", LOG_ARCHIVE, SEALER)
    assert sealer.get_object(Bucket=EVIDENCE_BUCKET, Key="k")["Body"].read() == b"1"


@pytest.mark.parametrize("more", [
    ("--organisation",), ("--serve", "--defect", "contact"),
    ("--serve", "--organisation", "--defect", "nothing"),
])  # fmt: skip
def test_defects_that_make_no_sense(impound, more):
    assert impound("gameday", *more).code == 2


@pytest.mark.chaos
def test_an_organisation_with_a_defect(env_file):
    """The very settings that `readiness` needs are in the file."""
    from pipeline.config import load
    from pipeline.gameday.aws.accounts import MEMBER
    from pipeline.gameday.serve import standing

    with standing(env_file, defects=["guardduty"]) as zone:
        settings = load(zone.variables["IMPOUND_CONFIG"]).settings
        assert settings.readiness.subnets
        assert settings.aws.isolation_sources
        client = zone.server.client("guardduty", MEMBER)
        [detector] = client.list_detectors()["DetectorIds"]
        assert client.get_detector(DetectorId=detector)["Status"] == "DISABLED"
