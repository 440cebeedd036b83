# SPDX-License-Identifier: Apache-2.0
"""What the templates make, looked at as CloudFormation would resolve them."""

from __future__ import annotations

import base64
import json
import tomllib

import pytest
import yaml

from acquisition.containment.state import GROUP_NAME
from acquisition.snapshot import NONCE_TAG, missing_actions
from pipeline.accounts import ADMINISTRATOR_EXECUTION, AUDIT_ADMINISTRATOR, EXECUTION_ROLE
from pipeline.config import Settings
from pipeline.gameday.aws.accounts import AUDIT, LOG_ARCHIVE, MEMBER, REGION
from pipeline.templates import NAMES, template
from tests.infra.kit import CHECKPOINT_KEY, PARAMETERS, ROOT, Stack, stacks, world

KEPT = {
    "AWS::KMS::Key", "AWS::KMS::Alias", "AWS::S3::Bucket", "AWS::S3::BucketPolicy",
    "AWS::SQS::Queue",
}  # fmt: skip


def settings_text(name="Intake"):
    functions = dict(stacks()["audit"].of("AWS::Lambda::Function"))
    return functions[name]["Environment"]["Variables"]["IMPOUND_SETTINGS"]


@pytest.mark.parametrize("name", NAMES)
def test_deletion_destroys_neither_evidence_nor_keys(name):
    """All that holds evidence, or without which it cannot be read, trusted or explained."""
    stack = stacks()[name]
    for key, body in stack.template["Resources"].items():
        if body["Type"] in KEPT or (body["Type"] == "AWS::Logs::LogGroup" and name != "member"):
            assert body.get("DeletionPolicy") == "Retain", key
            assert body.get("UpdateReplacePolicy") == "Retain", key
        assert body.get("DeletionPolicy", "Retain") == "Retain", key


def test_what_is_kept_is_of_these_kinds():
    """A new kind that holds something must be thought of."""
    kinds = {b["Type"] for s in stacks().values() for b in s.template["Resources"].values()}
    assert not kinds & {"AWS::DynamoDB::Table", "AWS::RDS::DBInstance", "AWS::EFS::FileSystem",
                        "AWS::EC2::Volume", "AWS::Backup::BackupVault"}  # fmt: skip
    assert kinds >= KEPT


def test_buckets_are_shut_and_locked():
    shut = {"BlockPublicAcls": True, "BlockPublicPolicy": True, "IgnorePublicAcls": True,
            "RestrictPublicBuckets": True}  # fmt: skip
    for name in ("audit", "seal"):
        for key, p in stacks()[name].of("AWS::S3::Bucket"):
            assert p["PublicAccessBlockConfiguration"] == shut, key
            assert p["VersioningConfiguration"] == {"Status": "Enabled"}, key
            if key != "AccessLogBucket":
                assert p["ObjectLockEnabled"] is True, key
                rule = p["ObjectLockConfiguration"]["Rule"]["DefaultRetention"]
                assert rule["Mode"] == "COMPLIANCE", key
            assert "LifecycleConfiguration" not in p, key


# -- forensics.yaml


def group(**parameters):
    [(_, p)] = Stack("forensics", parameters).of("AWS::EC2::SecurityGroup")
    return p


def test_egress_is_never_empty_and_never_everywhere():
    """Without a rule CloudFormation adds one that allows all (the stand-in always does)."""
    for more in ({}, {"TargetCidr": "", "IsolationGroup": "sg-0123456789abcdef1"},
                 {"DatabaseGroup": "sg-0123456789abcdef2"}):  # fmt: skip
        rules = group(**more)["SecurityGroupEgress"]
        assert len(rules) >= 3
        for rule in rules:
            assert rule["IpProtocol"] == "tcp"
            assert rule["FromPort"] == rule["ToPort"]
            assert rule.get("CidrIp", "x/32").endswith("/32")
            assert "CidrIpv6" not in rule


def test_the_target_is_reached_on_the_tool_port_only():
    rules = group(ToolPort="4445")["SecurityGroupEgress"]
    [target] = [r for r in rules if r.get("CidrIp")]
    assert (target["CidrIp"], target["FromPort"]) == ("10.1.2.3/32", "4445")
    rules = group(TargetCidr="", IsolationGroup="sg-0123456789abcdef1")["SecurityGroupEgress"]
    [target] = [r for r in rules if r.get("DestinationSecurityGroupId") == "sg-0123456789abcdef1"]
    assert target["FromPort"] == "22"


def test_no_ingress_unless_asked_for():
    assert "SecurityGroupIngress" not in group()
    [rule] = group(AllowToolIngress="true", ToolPort="4445")["SecurityGroupIngress"]
    assert (rule["CidrIp"], rule["FromPort"], rule["ToPort"]) == ("10.1.2.3/32", "4445", "4445")
    [rule] = group(
        AllowToolIngress="true", TargetCidr="", IsolationGroup="sg-0123456789abcdef1",
        IsolationGroupOwner=MEMBER,
    )["SecurityGroupIngress"]  # fmt: skip
    assert rule["SourceSecurityGroupId"] == "sg-0123456789abcdef1"
    assert rule["SourceSecurityGroupOwnerId"] == MEMBER


def test_the_database_is_reached_only_where_there_is_one():
    ports = {r["FromPort"] for r in group()["SecurityGroupEgress"]}
    assert 5432 not in ports
    rules = group(DatabaseGroup="sg-0123456789abcdef2")["SecurityGroupEgress"]
    assert [r["DestinationSecurityGroupId"] for r in rules if r["FromPort"] == 5432] == [
        "sg-0123456789abcdef2"
    ]


def fleet(**more):
    return Stack(
        "forensics",
        {"Workers": "3", "DatabaseGroup": "sg-0123456789abcdef2", "EngineSecret":
         f"arn:aws:secretsmanager:{REGION}:{AUDIT}:secret:engine-AbCdEf", **more},
        settings=settings_text(),
    )  # fmt: skip


def machines():
    stack = fleet()
    [(_, instance)] = stack.of("AWS::EC2::Instance")
    [(_, launch)] = stack.of("AWS::EC2::LaunchTemplate")
    return {"workstation": instance, "worker": launch["LaunchTemplateData"]}


@pytest.mark.parametrize("which", ["workstation", "worker"])
def test_a_machine_is_closed(which):
    found = machines()[which]
    assert "KeyName" not in found
    assert found["MetadataOptions"] == {
        "HttpTokens": "required", "HttpPutResponseHopLimit": 1, "HttpEndpoint": "enabled",
    }  # fmt: skip
    [disk] = found["BlockDeviceMappings"]
    assert disk["Ebs"]["Encrypted"] is True
    assert disk["Ebs"]["KmsKeyId"] == PARAMETERS["forensics"]["VolumeKey"]
    assert found["ImageId"] == "{{resolve:ssm:/impound/ami}}"


def test_workers_only_if_wanted():
    assert "WorkerGroup" not in stacks()["forensics"].resources
    made = fleet().resources
    assert made["WorkerGroup"]["Properties"]["MaxSize"] == "3"
    [launch] = [p for _, p in fleet().of("AWS::EC2::LaunchTemplate")]
    tagged = launch["LaunchTemplateData"]["TagSpecifications"]
    assert {t["ResourceType"] for t in tagged} == {"instance", "volume"}


def test_evidence_tags():
    """M5: contact and ticket on all that a case makes."""
    [(_, instance)] = Stack("forensics", {"Ticket": "INC-9"}).of("AWS::EC2::Instance")
    tags = {t["Key"]: t["Value"] for t in instance["Tags"]}
    assert tags == {"Name": "impound T-1", "case": "T-1", "notification": "soc@example.org",
                    "incident-response": "quarantine:INC-9"}  # fmt: skip
    assert instance["PropagateTagsToVolumeOnCreation"] is True
    tags = {t["Key"]: t["Value"] for t in group()["Tags"]}
    assert tags["incident-response"] == "quarantine:T-1"


@pytest.mark.parametrize("which", ["workstation", "worker"])
def test_user_data_runs_one_command_with_the_settings(which):
    text = base64.b64decode(machines()[which]["UserData"]).decode()
    assert text.startswith("#cloud-config\n")
    config = yaml.safe_load(text)
    assert config.keys() == {"write_files", "runcmd"}
    [command] = config["runcmd"]
    wanted = ["resume", "T-1"] if which == "workstation" else ["worker"]
    assert command[3:] == ["impound", *wanted]
    assert command[1] == "IMPOUND_CONFIG=/etc/impound/case.toml"
    assert command[2].startswith("IMPOUND_ENGINE_URL=arn:aws:secretsmanager:")
    files = {f["path"]: f for f in config["write_files"]}
    common = tomllib.loads(base64.b64decode(files["/etc/impound/config.toml"]["content"]).decode())
    own = tomllib.loads(files["/etc/impound/case.toml"]["content"])
    settings = Settings.model_validate({**common, **own, "s3": common["s3"] | own["s3"]})
    assert settings.store == "s3://evidence"
    assert settings.s3.kms_key == PARAMETERS["forensics"]["EvidenceKey"]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("Case", "x\nruncmd: [id]"), ("Case", "../x"), ("TargetCidr", "0.0.0.0/0"),
     ("EvidenceBucket", 'x"\n'), ("EvidenceKey", "alias/x"), ("Contact", "a\nb"),
     ("EngineSecret", "postgresql://u:p@h/d"), ("AmiParameter", "x}}")],
)  # fmt: skip
def test_a_parameter_cannot_say_more(name, wrong):
    with pytest.raises(AssertionError):
        Stack("forensics", {name: wrong})


# -- the names that the code uses


def test_roles_and_keys_are_those_of_the_code():
    names = {p["RoleName"] for s in stacks().values() for _, p in s.of("AWS::IAM::Role")
             if "RoleName" in p}  # fmt: skip
    assert names >= {
        EXECUTION_ROLE, AUDIT_ADMINISTRATOR, ADMINISTRATOR_EXECUTION, "impound-sealer",
        "impound-workstation", "impound-intake", "acme-saml-securityaudit",
        "acme-saml-securityresponse", "aws-controltower-AuditReadOnlyRole",
        "aws-controltower-ReadOnlyExecutionRole",
    }  # fmt: skip
    texts = {name: template(name) for name in NAMES}
    assert GROUP_NAME in texts["member"]
    assert GROUP_NAME in texts["org"]
    assert f"aws:ResourceTag/{NONCE_TAG}" in texts["member"]
    assert NONCE_TAG in texts["org"]
    [alias] = [p["AliasName"] for _, p in stacks()["member"].of("AWS::KMS::Alias")]
    assert Settings.model_validate(tomllib.loads(settings_text())).aws.member_key == alias


def test_settings_are_whole():
    settings = Settings.model_validate(tomllib.loads(settings_text()))
    where = f"{REGION}:{AUDIT}"
    assert settings.store == "s3://evidence"
    assert settings.s3.kms_key == f"arn:aws:kms:{where}:key/EvidenceKey"
    assert settings.signing.entry_key == f"arn:aws:kms:{where}:key/EntryKey"
    assert settings.signing.checkpoint_key == CHECKPOINT_KEY
    assert settings.signing.sealer.endswith(f":{LOG_ARCHIVE}:function:impound-sealer")
    assert settings.aws.snapshot_key == f"arn:aws:kms:{where}:key/CopyKey"
    assert settings.aws.audit_account == AUDIT
    assert settings.aws.isolation_sources == ("10.9.0.0/24", "10.9.1.0/24")
    assert settings.aws.external_id == PARAMETERS["member"]["ExternalId"]
    assert settings.aws.access == "role"


def test_containment_goes_the_way_of_control_tower():
    settings = Settings.model_validate(tomllib.loads(settings_text("Containment")))
    assert settings.aws.access == "chain"
    assert len(settings_text("Containment")) < 3500  # of 4,096 bytes for all variables


def test_functions_name_code_that_is_there():
    for stack in stacks().values():
        for key, p in stack.of("AWS::Lambda::Function"):
            if "ZipFile" in p["Code"]:
                assert len(p["Code"]["ZipFile"]) <= 4096, key
                continue
            module, _, name = p["Handler"].rpartition(".")
            assert f"\ndef {name}(" in (ROOT / f"{module.replace('.', '/')}.py").read_text()


def test_the_members_key_can_be_used_by_the_audit_account():
    """As `acquire volume` judges it before it shares anything."""
    [document] = [d for d in world() if d.place == "member.EbsKey"]
    assert missing_actions(json.dumps(document.body), AUDIT) == []
    assert missing_actions(json.dumps(document.body), LOG_ARCHIVE) != []


def test_global_parts_are_made_once_in_an_account():
    elsewhere = Stack("member", {"HomeRegion": "us-east-1", "GlobalRegion": "us-east-1"})
    made = elsewhere.resources.keys()
    once = {"ExecutionRole", "SecurityAuditRole", "SecurityResponseRole", "ReadOnlyExecutionRole",
            "AdministratorExecutionRole", "HealthRule", "IamRule"}  # fmt: skip
    assert not made & once
    assert stacks()["member"].resources.keys() - made == once


def test_only_what_is_local_is_forwarded():
    """Findings come from the delegated administrator; twice would open two cases."""
    member = stacks()["member"]
    sources = {
        s for key, p in member.of("AWS::Events::Rule") if key != "NewVpcRule"
        for s in p["EventPattern"]["source"]
    }  # fmt: skip
    probe = "impound.readiness"  # no finding: what readiness proves the path with
    assert sources == {
        "aws.tag", "aws.ec2", "aws.cloudwatch", "aws.health", "aws.iam", probe,
    }  # fmt: skip
    [findings] = [p for k, p in stacks()["audit"].of("AWS::Events::Rule") if k == "FindingsRule"]
    assert set(findings["EventPattern"]["source"]) == {"aws.guardduty", "aws.securityhub"}
