# SPDX-License-Identifier: Apache-2.0
"""Judgements over facts alone: what no defect of the practice organisation shows."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from pipeline.config import Settings
from pipeline.readiness.checks import BY_NAME
from pipeline.readiness.judge import ENDPOINTS, judge, method
from pipeline.readiness.model import Observation, Place, Unseen, exit_code

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
AUDIT, MEMBER = "444444444444", "222222222222"
KEY = f"arn:aws:kms:eu-central-1:{AUDIT}:key/1"


PROBED = {"on": True, "pattern": '{"source": ["impound.readiness"]}'}


def ago(days):
    return (NOW - timedelta(days=days)).isoformat()


def said(name, fact, account=MEMBER, **settings):
    wanted = Settings.model_validate({"aws": {"audit_account": AUDIT}} | settings)
    return judge(Observation(BY_NAME[name], Place(account, "eu-central-1"), fact), wanted, NOW)


def one(name, fact, **settings):
    [finding] = said(name, fact, **settings)
    return finding.status, finding.what


INSTALLED = {"state": "equal", "why": "", "changed": [], "missing": [], "extra": []}
BUCKET = {"bucket": "b", "exists": True, "versions": True, "locks": True, "key": ""}
DENY = {"Effect": "Deny", "Principal": "*", "Action": "s3:Delete*", "Resource": "arn:aws:s3:::b/*"}
TLS = {"Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": "*",
       "Condition": {"Bool": {"aws:SecureTransport": "false"}}}  # fmt: skip
AMI = {"parameter": "/impound/ami", "image": "ami-1", "created": ago(3), "state": "available",
       "encrypted": True}  # fmt: skip
TRAIL = {"arn": "t", "home": "r", "everywhere": True, "validates": True, "logging": True,
         "error": "", "bucket": "logs"}  # fmt: skip
SUBNET = {"id": "subnet-12345678", "vpc": "vpc-1", "cidr": "10.0.0.0/24", "free": 200,
          "public": False}  # fmt: skip
NET = {"wanted": ["subnet-12345678"], "subnets": [SUBNET], "endpoints": {"vpc-1": list(ENDPOINTS)}}
FLOW = {"id": "fl-1", "traffic": "ALL", "active": True, "error": "", "destination": "logs"}
LENT = json.dumps({"Statement": [{"Effect": "Allow", "Principal": {"AWS": AUDIT},
                                  "Action": "kms:*", "Resource": "*"}]})  # fmt: skip
MEMBER_KEY = {"arn": KEY, "manager": "CUSTOMER", "state": "Enabled", "policy": LENT}


@pytest.mark.parametrize(("name", "fact", "status", "words"), [
    ("installation", INSTALLED, "ok", ""),
    ("installation", INSTALLED | {"state": "different", "changed": ["a.py"]}, "failed", "a.py"),
    ("installation", INSTALLED | {"state": "editable", "why": "a tree"}, "warning", "a tree"),
    ("installation", INSTALLED | {"state": "unknown", "why": "no RECORD"}, "unknown", "RECORD"),
    ("clock", {"offset_s": 0.5}, "ok", ""),
    ("clock", {"offset_s": -40.0}, "failed", "+40 s"),
    ("symbols", {"directory": "/s", "files": 2}, "ok", ""),
    ("symbols", {"directory": "/s", "files": 0}, "warning", "/s"),
    ("gameday", {"last": ago(300)}, "ok", ""),
    ("gameday", {"last": ago(400)}, "warning", "2025-10-20"),
    ("gameday", {"last": None}, "warning", "no game day"),
    ("bucket-lock", BUCKET, "ok", ""),
    ("bucket-lock", {"bucket": ""}, "warning", "directory"),
    ("bucket-lock", BUCKET | {"exists": False}, "failed", "does not exist"),
    ("bucket-lock", BUCKET | {"locks": False}, "failed", "does not lock"),
    ("bucket-lock", BUCKET | {"versions": False}, "failed", "does not lock"),
    ("bucket-policy", {"bucket": "b", "policy": {"Statement": [DENY, TLS]}}, "ok", ""),
    ("bucket-policy", {"bucket": "b", "policy": {"Statement": [
        DENY | {"Condition": {"Bool": {"x": "true"}}}, TLS]}}, "failed", "does not deny"),
    ("bucket-policy", {"bucket": "b", "policy": {"Statement": [
        DENY | {"Resource": "arn:aws:s3:::b/cases/*"}, TLS]}}, "failed", "does not deny"),
    ("bucket-policy", {"bucket": "b", "policy": {"Statement": [
        DENY | {"Principal": {"AWS": AUDIT}}, TLS]}}, "failed", "does not deny"),
    ("bucket-policy", {"bucket": "b", "policy": {"Statement": [
        DENY, TLS, {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject",
                    "Resource": "*"}]}}, "failed", "to everybody"),
    ("bucket-policy", {"bucket": "b", "policy": {"Statement": [DENY]}}, "warning", "TLS"),
    ("bucket-public", {"bucket": "b", "blocks": {}}, "failed", "BlockPublicAcls"),
    ("subnet", NET, "ok", ""),
    ("subnet", NET | {"wanted": []}, "failed", "no subnet"),
    ("subnet", NET | {"subnets": []}, "failed", "in this Region"),
    ("subnet", NET | {"subnets": [SUBNET | {"free": 2}]}, "failed", "2 free"),
    ("subnet", NET | {"subnets": [SUBNET | {"public": True}]}, "failed", "public"),
    ("subnet", NET | {"endpoints": {"vpc-1": list(ENDPOINTS[1:])}}, "failed", ENDPOINTS[0]),
    ("ami", AMI, "ok", ""),
    ("ami", AMI | {"image": None}, "failed", "/impound/ami"),
    ("ami", AMI | {"state": "absent"}, "failed", "absent"),
    ("ami", AMI | {"encrypted": False}, "failed", "not encrypted"),
    ("ami", AMI | {"created": ago(120)}, "failed", "120 days"),
    ("template", {"refused": "", "last": ago(10)}, "ok", ""),
    ("template", {"refused": "", "last": None}, "warning", "never"),
    ("template", {"refused": "", "last": ago(500)}, "warning", "2025-07"),
    ("template", {"refused": "bad Rule", "last": ago(10)}, "failed", "bad Rule"),
    ("quotas", {"L-1216C47A": 8.0, "L-309BACF6": 1e5}, "failed", "8 are allowed"),
    ("quotas", {"L-1216C47A": None, "L-309BACF6": 1e5}, "unknown", "vCPUs"),
    ("way", {"refused": "no"}, "failed", "no"),
    ("contact", {"email": "a@b.c"}, "ok", ""),
    ("cloudtrail", [TRAIL], "ok", ""),
    ("cloudtrail", [], "failed", "no trail"),
    ("cloudtrail", [TRAIL | {"everywhere": False}], "failed", "no trail"),
    ("cloudtrail", [TRAIL | {"validates": False}], "failed", "no digests"),
    ("cloudtrail", [TRAIL | {"error": "AccessDenied"}], "failed", "delivers nothing"),
    ("cloudtrail", [TRAIL | {"logging": False}, TRAIL], "ok", ""),
    ("config", {"recorders": [], "channels": []}, "failed", "no recorder"),
    ("config", {"recorders": [{"name": "d", "recording": True, "error": "NoSuchBucket"}],
                "channels": ["d"]}, "failed", "NoSuchBucket"),
    ("flow-logs", {"vpc-1": [FLOW]}, "ok", ""),
    ("flow-logs", {"vpc-1": [FLOW | {"traffic": "REJECT"}]}, "failed", "no flow log"),
    ("flow-logs", {"vpc-1": [FLOW | {"error": "Access error"}]}, "failed", "Access error"),
    ("member-key", {"reference": "", "key": None}, "failed", "is set"),
    ("member-key", {"reference": "alias/x", "key": None}, "failed", "does not exist"),
    ("member-key", {"reference": "alias/x", "key": MEMBER_KEY}, "ok", ""),
    ("member-key", {"reference": "alias/x", "key": MEMBER_KEY | {"manager": "AWS"}},
     "failed", "cannot be shared"),
    ("member-key", {"reference": "alias/x", "key": MEMBER_KEY | {"state": "PendingDeletion"}},
     "failed", "PendingDeletion"),
    ("isolation-group", {"vpc-1": None}, "failed", "no isolation group"),
    ("isolation-group", {"vpc-1": {"id": "sg-1", "rules": []}}, "failed", "lacks egress"),
    ("isolation-group", {"vpc-1": {"id": "sg-1", "rules": ["egress -1 all 127.0.0.1/32"]}},
     "ok", ""),
    ("path", {"vpc-1": {}}, "failed", "let nobody in"),
    ("events", {"bus": "", "queue": "", "rules": {}, "arrived": False}, "failed", "bus"),
    ("events", {"bus": "b", "queue": "q", "rules": {}, "arrived": False}, "failed", "no rule"),
    ("events", {"bus": "b", "queue": "q", "rules": {"r": PROBED}, "arrived": False},
     "failed", "did not arrive"),
    ("events", {"bus": "b", "queue": "q", "rules": {"r": PROBED}, "arrived": True}, "ok", ""),
    ("events", {"bus": "b", "queue": "q", "rules": {"r": PROBED, "t": PROBED | {"on": False}},
                "arrived": True}, "failed", "the rule t"),
    ("events", {"bus": "b", "queue": "q", "rules": {"r": {"on": True, "pattern": "{}"}},
                "arrived": False}, "unknown", "not proved"),
    ("events", {"bus": "b", "queue": "q", "rules": {"r": PROBED}, "arrived": None},
     "unknown", "cannot be told"),
])  # fmt: skip
def test_one_fact(name, fact, status, words):
    found, what = one(name, fact)
    assert found == status, what
    assert words in what


def key(**more):
    return {"arn": KEY, "state": "Enabled", "spec": "SYMMETRIC_DEFAULT",
            "usage": "ENCRYPT_DECRYPT"} | more  # fmt: skip


SIGN = {"spec": "ECC_NIST_P256", "usage": "SIGN_VERIFY"}
KEYS = {"s3.kms_key": key(), "aws.snapshot_key": key(), "signing.entry_key": key(**SIGN),
        "signing.checkpoint_key": key(**SIGN, arn=KEY.replace(AUDIT, "3" * 12))}  # fmt: skip


@pytest.mark.parametrize(("setting", "change", "status", "words"), [
    ("s3.kms_key", {"arn": ""}, "warning", "not set"),
    ("s3.kms_key", {"state": "absent"}, "failed", "absent"),
    ("s3.kms_key", {"state": "Disabled"}, "failed", "Disabled"),
    ("s3.kms_key", {"usage": "SIGN_VERIFY"}, "failed", "SIGN_VERIFY"),
    ("signing.entry_key", {"spec": "RSA_2048"}, "failed", "RSA_2048"),
    ("signing.checkpoint_key", {"arn": KEY}, "warning", "one account"),
])  # fmt: skip
def test_keys(setting, change, status, words):
    assert one("keys", KEYS)[0] == "ok"
    found, what = one("keys", KEYS | {setting: KEYS[setting] | change})
    assert (found, words in what) == (status, True), what


def volumes(member_key=True, **more):
    return {"member_key": member_key, "keys": [{"volumes": ["vol-1"], **MEMBER_KEY, **more}]}


@pytest.mark.parametrize(("fact", "status", "words"), [
    ({"member_key": False, "keys": []}, "ok", ""),  # nothing is encrypted: nothing hinders
    (volumes(), "ok", ""),
    (volumes(manager="AWS"), "ok", ""),  # by way of the account's own key
    (volumes(member_key=False, manager="AWS"), "failed", "cannot be shared"),
    (volumes(manager="FOREIGN"), "failed", "another"),
    (volumes(state="absent"), "failed", "does not exist"),
    (volumes(policy='{"Statement": []}'), "failed", "kms:CreateGrant"),
    (volumes(unseen="denied"), "unknown", "denied"),
    (volumes(volumes=["vol-1", "vol-2", "vol-3"], manager="FOREIGN"), "failed", "and 2 more"),
])  # fmt: skip
def test_volumes(fact, status, words):
    found, what = one("volumes", fact)
    assert (found, words in what) == (status, True), what


VPC = {"routes": [], "shared": [], "endpoints": [], "subnets": {"subnet-1": "10.0.1.0/24"}}


@pytest.mark.parametrize(("seen", "status"), [
    (VPC, "failed"),
    (VPC | {"routes": [["10.9.0.0/16", "pcx-1"]]}, "ok"),
    (VPC | {"routes": [["10.8.0.0/16", "pcx-1"]]}, "failed"),
    (VPC | {"shared": ["10.9.0.0/24"]}, "ok"),
    (VPC | {"endpoints": ["10.9.0.0/24"]}, "ok"),
    (VPC | {"endpoints": ["10.0.1.0/24"]}, "failed"),  # the isolation group does not let it in
])  # fmt: skip
def test_path(seen, status):
    found = said("path", {"vpc-1": seen}, aws={"audit_account": AUDIT,
                                               "isolation_sources": ["10.9.0.0/24"]})  # fmt: skip
    assert [f.status for f in found] == [status]
    assert all(f.mend is None for f in found)


INSTANCE = {"instance": "i-1", "platform": "", "image": "ami-12345678", "image_name": "own",
            "owner": "self", "key": "", "metadata": True, "tags": {}}  # fmt: skip


@pytest.mark.parametrize(("change", "wanted"), [
    ({}, "none"), ({"key": "ops"}, "key"), ({"platform": "windows", "key": "ops"}, "none"),
    ({"image_name": "al2023-ami-2023.5-x86_64", "owner": "amazon"}, "EC2 Instance Connect"),
    ({"image_name": "al2023-ami-2023.5-x86_64", "owner": "amazon", "metadata": False}, "none"),
    ({"image_name": "al2023-ami-2023.5-x86_64", "owner": "aws-marketplace"}, "none"),
    ({"image": "ami-87654321"}, "CA"), ({"tags": {"impound-login": "CA"}}, "CA"),
    ({"tags": {"impound-login": "\x1b[2J"}}, "none"),
])  # fmt: skip
def test_how_one_logs_in(change, wanted):
    assert method(INSTANCE | change, ["ami-87654321"]) == wanted


@pytest.mark.parametrize(("more", "mends"), [
    ({}, False), ({"contact_email": "s@example.org", "contact_phone": "+49 30 1"}, True),
])  # fmt: skip
def test_a_contact_is_mended_only_if_it_is_known(more, mends):
    [found] = said("contact", None, readiness=more)
    assert (found.status, found.mend is not None) == ("failed", mends)
    if mends:
        assert said("contact", {"email": "x@example.org"}, readiness=more)[0].status == "failed"
        assert said("contact", {"email": "S@example.org"}, readiness=more)[0].status == "ok"


def test_saml_roles_without_a_provider_are_for_people():
    fact = {"providers": [], "roles": {"securityaudit": None, "securityresponse": None}}
    found = said("saml-roles", fact, readiness={"namespace": "acme"})
    assert [(f.status, f.mend) for f in found] == [("failed", None)] * 2
    assert "acme-saml-securityaudit" in found[0].what


def test_a_trust_of_another_provider_is_none():
    trust = {"Statement": [{"Effect": "Allow", "Action": "sts:AssumeRoleWithSAML",
                            "Principal": {"Federated": "arn:elsewhere"}}]}  # fmt: skip
    role = {"name": "x-saml-securityaudit", "trust": trust, "policies": ["SecurityAudit"]}
    fact = {"providers": ["arn:idp"], "roles": {"securityaudit": role, "securityresponse": None}}
    assert "trusts no SAML provider" in said("saml-roles", fact)[0].what


def test_unseen_is_unknown():
    [found] = said("guardduty", Unseen("AccessDenied"))
    assert (found.status, found.mend) == ("unknown", None)
    assert exit_code([found]) == 3


def test_exit_codes():
    bad = said("guardduty", {"detector": "", "on": False})
    warned = said("symbols", {"directory": "/", "files": 0})
    unknown = said("guardduty", Unseen("x"))
    gap = said("login", [INSTANCE])
    assert gap[0].status == "gap"
    assert exit_code(warned) == 0
    assert exit_code(gap + warned) == exit_code(unknown) == 3
    assert exit_code(bad + unknown + warned) == 14
    assert exit_code([]) == 3  # nothing was looked at: nothing is claimed
