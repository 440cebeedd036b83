# SPDX-License-Identifier: Apache-2.0
"""What is called is what is granted: nothing is missing, nothing is there in vain.

`calls.json` lists, for each role, every call that the code makes under it. It is held against three
sides: the stand-in (what is called stands in it), the source (what stands in it is called), the
templates (its rights are those that are granted).
"""

from __future__ import annotations

import ast
import json
import re

import pytest

from pipeline.gameday.aws.accounts import AUDIT, LOG_ARCHIVE, MEMBER, REGION
from pipeline.gameday.aws.seed import EXTERNAL_ID, seed
from tests.infra.calls import CALLS, granted, needed, refused, unlisted
from tests.infra.cases import EXECUTION, INTAKE, SEALER, WORKSTATION
from tests.infra.kit import CONTAINMENT, ROOT, Stack

ROLES = {r.rpartition("/")[2]: r for r in (EXECUTION, INTAKE, SEALER, WORKSTATION)}
# Rights that no call of this code shows, each with what needs it.
BESIDE = {
    "impound-workstation": {
        "ec2:AttachVolume": "workstation attach",
        "ec2:CreateVolume": "workstation attach",
        "ec2:DescribeVolumes": "workstation attach",
        "ec2:DetachVolume": "workstation attach",
        "secretsmanager:GetSecretValue": "IMPOUND_ENGINE_URL names a secret",
        "sts:SetSourceIdentity": "setting aws.source_identity",
    },
    "impound-intake": {
        "logs:CreateLogStream": "Lambda itself",
        "logs:PutLogEvents": "Lambda itself",
        "sqs:DeleteMessage": "the event source mapping",
        "sqs:GetQueueAttributes": "the event source mapping",
        "sqs:ReceiveMessage": "the event source mapping",
    },
    "impound-sealer": {
        "logs:CreateLogStream": "Lambda itself",
        "logs:PutLogEvents": "Lambda itself",
    },
    "impound-ExecutionRole": {},
}
# Not the spelling of botocore's methods.
SPELLED = {
    "ec2-instance-connect:SendSSHPublicKey": "send_ssh_public_key",
    "ec2-instance-connect:OpenTunnel": "openTunnel",
    "s3:ListObjectsV2": "list_objects_v2", "lambda:Invoke": "invoke",
    "sts:AssumeRole": "AssumeRoleCredentialFetcher", "ebs:GetSnapshotBlock": "read_block",
    "ebs:ListSnapshotBlocks": "list_blocks", "ebs:ListChangedBlocks": "changedblocks",
}  # fmt: skip


def source_words():
    """Names and texts in the code of the product: what it calls is among them."""
    words: set[str] = set()
    for package in ("acquisition", "evidence_store", "pipeline"):
        for path in (ROOT / package).rglob("*.py"):
            if "gameday" in path.parts:
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute):
                    words.add(node.attr)
                elif isinstance(node, ast.Name):
                    words.add(node.id)
                elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                    words.add(node.name)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    words |= set(re.findall(r"[A-Za-z_]\w+", node.value))
    return words


def test_what_is_listed_is_called():
    words = source_words()
    listed = {c for calls in CALLS.values() for c in calls}
    spelled = {
        c: SPELLED.get(c) or re.sub(r"(?<!^)(?=[A-Z])", "_", c.partition(":")[2]).lower()
        for c in listed
    }
    assert sorted(c for c, word in spelled.items() if word not in words) == []


@pytest.mark.parametrize("name", CALLS)
def test_what_is_granted_is_what_is_called(name):
    called = set().union(*(needed(*c.split(":"), name) for c in CALLS[name]))
    wanted = called | BESIDE[name].keys()
    assert sorted(wanted - granted()[ROLES[name]]) == []
    assert sorted(granted()[ROLES[name]] - wanted) == []


def test_containment_has_what_intake_has_but_for_the_sealer():
    """The role may not be edited, and another account's function needs both sides."""
    more = granted()[CONTAINMENT] - granted()[INTAKE]
    less = {a for a in granted()[INTAKE] - granted()[CONTAINMENT]
            if not a.startswith(("sqs:", "logs:"))}  # fmt: skip
    assert (more, less) == ({"sts:AssumeRole"}, {"lambda:InvokeFunction"})


# -- a response under the roles of the templates, in the stand-in


@pytest.fixture
def zone(aws_server, tmp_path):
    images = []
    for number in range(2):
        images.append(tmp_path / f"volume{number}.img")
        images[-1].write_bytes(bytes([number + 1]) * 4096)
    made = seed(aws_server, "pipeline.sealer:handler", images)
    # The trust of the template, in place of the one that the practice landing zone has.
    [trust] = [p["AssumeRolePolicyDocument"] for k, p in
               Stack("member", {"ExternalId": EXTERNAL_ID}).of("AWS::IAM::Role")
               if k == "ExecutionRole"]  # fmt: skip
    aws_server.client("iam", MEMBER).update_assume_role_policy(
        RoleName="impound-ExecutionRole", PolicyDocument=json.dumps(trust)
    )
    # So too the key: lent to the Audit account as the template lends its own.
    [lent] = [p["KeyPolicy"] for _, p in Stack("member").of("AWS::KMS::Key")]
    aws_server.client("kms", MEMBER).put_key_policy(
        KeyId=made.estate.member_key, PolicyName="default", Policy=json.dumps(lent)
    )
    return made


@pytest.fixture
def text(zone):
    return (
        f'store = "{zone.store}"\n[s3]\nkms_key = "{zone.store_key}"\n'
        f'[signing]\nentry_key = "{zone.entry_key}"\ncheckpoint_key = "{zone.checkpoint_key}"\n'
        f'sealer = "{zone.sealer}"\n'
        f'[aws]\naudit_account = "{AUDIT}"\nsnapshot_key = "{zone.estate.copy_key}"\n'
        f'external_id = "{EXTERNAL_ID}"\nsource_lock = "governance"\nsource_lock_days = 1\n'
        'isolation_sources = ["10.9.0.0/24"]\n'
    )


@pytest.fixture
def workstation(home, impound, aws_server, text, monkeypatch):
    credentials = aws_server.credentials(AUDIT, "impound-workstation", "i-0123456789abcdef0")
    for name, value in {
        **credentials.environment(), "AWS_ENDPOINT_URL": aws_server.endpoint,
        "AWS_CONFIG_FILE": str(home / "none"), "AWS_SHARED_CREDENTIALS_FILE": str(home / "none"),
        "AWS_EC2_METADATA_DISABLED": "true", "AWS_DEFAULT_REGION": REGION,
        "IMPOUND_SETTINGS": text,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("acquisition.snapshot.PAUSE_S", 0.01)
    return impound


@pytest.mark.chaos
def test_a_workstation_acquires_isolates_and_releases(workstation, zone, aws_server):
    target = zone.estate.variables()["INSTANCE"]
    seen = len(aws_server.calls())
    assert workstation("case", "open", "T-1", "--contact", "soc@a.org").code == 0
    done = workstation("--json", "acquire", "volume", target, "--case", "T-1")
    assert done.code == 0, done.err
    done = workstation("--yes", "isolate", target, "--case", "T-1")
    assert done.code == 3, done.err
    done = workstation("--yes", "release", target, "--case", "T-1")
    assert done.code in (0, 3), done.err
    assert workstation("verify", "T-1").code == 0
    calls = aws_server.calls()[seen:]
    roles = {c.role for c in calls}
    assert {WORKSTATION, EXECUTION, SEALER} <= roles
    assert refused(calls) == []
    assert unlisted(calls) == []


@pytest.mark.chaos
def test_functions_contain_and_keep(home, zone, aws_server, text):
    """Containment by Control Tower's chain, intake under its own role."""
    seen = len(aws_server.calls())
    environment = {"IMPOUND_SETTINGS": f'{text}access = "chain"\n',
                   "XDG_STATE_HOME": str(home / "state"),
                   "XDG_CACHE_HOME": str(home / "cache")}  # fmt: skip
    contain = aws_server.register(
        AUDIT, "impound-containment", "pipeline.handler:handler",
        "aws-controltower-AuditAdministratorRole", timeout=120, environment=environment,
    )  # fmt: skip
    keep = aws_server.register(AUDIT, "impound-intake", "pipeline.intake:handler",
                               "impound-intake", environment=environment)  # fmt: skip
    event = {"case": "T-2", "target": zone.estate.variables()["INSTANCE"],
             "open": {"contact": "soc@a.org"}}  # fmt: skip
    batch = {"Records": [{"messageId": "m", "body": "{}"}]}
    answers = [
        json.loads(aws_server.client("lambda", AUDIT).invoke(
            FunctionName=name, Payload=json.dumps(asked).encode())["Payload"].read())
        for name, asked in ((contain, event), (keep, batch))
    ]  # fmt: skip
    assert answers[0].get("verdict") == "groups applied, not probed", answers[0]
    assert answers[0]["spooled"] is False
    assert answers[1].get("kept") == 1, answers[1]
    calls = aws_server.calls()[seen:]
    assert f"arn:aws:iam::{MEMBER}:role/aws-controltower-AdministratorExecutionRole" in {
        c.role for c in calls
    }
    wrong = [w for w in refused(calls) if "lambda:Invoke" not in w]  # see the test above
    assert wrong == []
    assert unlisted(calls) == []
    assert {c.account for c in calls if c.role == CONTAINMENT} == {AUDIT}
    assert LOG_ARCHIVE in {c.account for c in calls}
