# SPDX-License-Identifier: Apache-2.0
"""The command line on a store in S3: KMS signs, another account seals, others verify."""

from __future__ import annotations

import hashlib
import subprocess

import pytest

from pipeline.gameday.aws.accounts import AUDIT, REGION
from pipeline.gameday.aws.faults import Fault
from pipeline.gameday.aws.seed import CUSTODIAN_ROLE, seed
from tests.evidence_store.kit import pattern

STORE = "s3://evidence/x"


@pytest.fixture
def landing_zone(aws_server, tmp_path):
    return seed(aws_server, "pipeline.sealer:handler")


@pytest.fixture
def settings(landing_zone, tmp_path):
    path = tmp_path / "impound.toml"
    path.write_text(
        f'store = "{STORE}"\n[s3]\nkms_key = "{landing_zone.store_key}"\n[signing]\n'
        f'entry_key = "{landing_zone.entry_key}"\n'
        f'checkpoint_key = "{landing_zone.checkpoint_key}"\nsealer = "{landing_zone.sealer}"\n'
    )
    return path


@pytest.fixture
def become(aws_server, monkeypatch):
    def act(role, session_name):
        environment = aws_server.credentials(AUDIT, role, session_name).environment()
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return act


@pytest.fixture
def s3_home(home, aws_server, landing_zone, settings, become, monkeypatch):
    become("impound-responder", "T-1101.ann")
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws_server.endpoint)
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(home / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(home / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("IMPOUND_CONFIG", str(settings))


@pytest.fixture
def cloud(s3_home, impound):
    """A command line whose case T-1101 is open in S3."""
    done = impound("case", "open", "T-1101", "--contact", "soc@a.org")
    assert done.code == 0, done.err
    return impound


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(pattern(3 << 20) + bytes(1 << 20))
    return path


def test_from_opening_to_deep_verification(cloud, disk, landing_zone, aws_server):
    done = cloud("--json", "ingest", "T-1101", disk, "--kind", "disk")
    assert done.code == 0, done.err
    verdict = cloud("--json", "verify", "T-1101", "--deep")
    assert verdict.code == 0, verdict.out
    assert verdict.json["sealed"] == verdict.json["entries"] == 5
    assert cloud("--json", "case", "list").json["cases"][0]["case"] == "T-1101"
    identities = {e["identity"] for e in cloud("--json", "case", "show", "T-1101").json["entries"]}
    assert len(identities) == 1
    assert identities.pop().endswith("/T-1101.ann")
    sealed_by = {s.account for s in aws_server.calls() if s.operation == "Sign"}
    assert sealed_by == {"444444444444", "333333333333"}


def test_analysis_and_report_work_on_a_store_in_s3(cloud, tmp_path, need_tool):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "hello.txt").write_text("hello")
    image = tmp_path / "ext4.img"
    subprocess.run(
        [need_tool("mke2fs"), "-q", "-t", "ext4", "-d", tmp_path / "root", image, "4M"], check=True
    )
    assert cloud("ingest", "T-1101", image, "--kind", "disk").code == 0
    done = cloud("analyse", "T-1101", "--jobs", "files")
    assert done.code == 0, done.err
    rows = cloud("--json", "query", "T-1101",
                 "select sha256 from files where path like '%hello.txt'").json["rows"]  # fmt: skip
    assert rows == [{"sha256": hashlib.sha256(b"hello").hexdigest()}]
    assert cloud("report", "T-1101", "-o", tmp_path / "report").code == 0
    assert (tmp_path / "report" / "index.html").stat().st_size > 10_000


@pytest.mark.chaos
def test_a_second_party_verifies_and_says_so_under_its_own_name(cloud, disk, become):
    cloud("ingest", "T-1101", disk, "--kind", "disk")
    assert cloud("--json", "verify", "T-1101").json["opinions"] == []
    become(CUSTODIAN_ROLE, "T-1101.bob")
    done = cloud("verify", "T-1101", "--deep", "--record")
    assert done.code == 0, done.err
    verdict = cloud("--json", "verify", "T-1101")
    [opinion] = verdict.json["opinions"]
    assert opinion["by"].endswith("/T-1101.bob")
    assert (opinion["item"], opinion["how"], opinion["result"]) == ("E0001", "deep", "ok")
    assert verdict.json["sealed"] == verdict.json["entries"]


@pytest.mark.chaos
def test_the_one_who_acquired_is_no_second_party(cloud, disk):
    cloud("ingest", "T-1101", disk, "--kind", "disk")
    assert cloud("verify", "T-1101", "--deep", "--record").code == 0
    assert cloud("--json", "verify", "T-1101").json["opinions"] == []


@pytest.mark.chaos
def test_a_sealer_that_does_not_answer_leaves_what_is_stored_and_says_3(cloud, disk, aws_server):
    aws_server.faults.add(
        Fault(
            "error", service="lambda", operation="Invoke", code="AccessDeniedException", times=None
        )
    )
    done = cloud("ingest", "T-1101", disk, "--kind", "disk")
    assert done.code == 3
    assert "is not sealed" in done.err
    verdict = cloud("--json", "verify", "T-1101")
    assert verdict.code == 3
    assert "not sealed" in str(verdict.json["notes"])
    aws_server.faults.clear()
    assert cloud("seal", "T-1101").code == 0
    assert cloud("verify", "T-1101").code == 0


def test_expired_credentials_in_the_middle_are_renewed_and_it_goes_on(cloud, disk, aws_server):
    aws_server.faults.add(
        Fault("error", service="s3", operation="PutObject", resource="*/data/*",
              code="ExpiredToken", times=None)
    )  # fmt: skip
    done = cloud("ingest", "T-1101", disk, "--kind", "disk")
    assert done.code == 11
    assert "renew the credentials" in done.err
    aws_server.faults.clear()
    assert cloud("ingest", "T-1101", disk, "--kind", "disk").code == 0
    assert cloud("verify", "T-1101", "--deep").code == 0
    [item] = cloud("--json", "case", "show", "T-1101").json["items"]
    assert [i["outcome"] for i in item["intents"]] == ["interrupted, resumed", "acquired"]


@pytest.mark.chaos
def test_throttling_is_waited_out(cloud, disk, aws_server):
    aws_server.faults.add(
        Fault("error", service="s3", operation="*", code="SlowDown", skip=3, times=2)
    )
    assert cloud("ingest", "T-1101", disk, "--kind", "disk").code == 0
    assert cloud("verify", "T-1101", "--deep").code == 0


def test_clock_skew_is_named(cloud, aws_server):
    aws_server.faults.add(
        Fault("error", service="s3", operation="*", code="RequestTimeTooSkewed", times=None)
    )
    done = cloud("case", "show", "T-1101")
    assert done.code == 11
    assert "clock" in done.err


@pytest.mark.parametrize(
    ("store", "code", "word"),
    [("s3://no-such-bucket-here/x", 11, "no bucket"), ("s3://plain/x", 11, "not versioned"),
     ("s3://Bad_Bucket", 2, "s3://bucket/prefix"), ("s3://evidence/../x", 2, "s3://bucket/prefix"),
     ("gs://evidence", 2, "cannot open")],
)  # fmt: skip
def test_wrong_stores(s3_home, impound, aws_server, store, code, word):
    aws_server.client("s3", AUDIT).create_bucket(
        Bucket="plain", CreateBucketConfiguration={"LocationConstraint": REGION}
    )
    done = impound("--store", store, "case", "open", "T-1")
    assert done.code == code
    assert word in done.err


def test_a_missing_key_setting_is_said_before_anything_is_recorded(s3_home, impound, settings):
    text = settings.read_text()
    settings.write_text(text.replace("[s3]\nkms_key", "[s3]\n#kms_key"))
    done = impound("case", "open", "T-1")
    assert done.code == 14
    assert "kms_key" in done.err


def test_a_disabled_key(cloud, disk, aws_server, landing_zone):
    aws_server.client("kms", AUDIT).disable_key(KeyId=landing_zone.store_key)
    done = cloud("ingest", "T-1101", disk, "--kind", "disk")
    assert done.code == 11
    assert "check the key" in done.err


def test_no_credentials(s3_home, impound, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    done = impound("case", "list")
    assert done.code == 11
    assert "give credentials" in done.err


def test_tampering_in_the_bucket_is_exit_10_and_named(cloud, disk, aws_server):
    cloud("ingest", "T-1101", disk, "--kind", "disk")
    s3 = aws_server.client("s3", AUDIT)
    key = f"x/cases/T-1101/items/E0001/data/{0:016x}"
    s3.put_object(Bucket="evidence", Key=key, Body=b"another")
    verdict = cloud("verify", "T-1101")
    assert verdict.code == 10
    assert "data/0000000000000000: has 2 versions" in verdict.out
