# SPDX-License-Identifier: Apache-2.0
"""Ways into accounts, and that nobody acts where STS did not say they are."""

from __future__ import annotations

from datetime import timedelta

import boto3
import pytest
from botocore.credentials import AssumeRoleCredentialFetcher

from pipeline.accounts import (
    AccountError,
    Accounts,
    Step,
    is_session_of,
    session_name,
    way_to,
)
from pipeline.config import Settings
from pipeline.errors import ConfigError
from pipeline.gameday.aws.accounts import AUDIT, MEMBER, REGION
from pipeline.gameday.aws.faults import Fault

OTHER = "555555555555"


def settings(**accounts):
    return Settings.model_validate({
        "responder": "ann",
        "aws": {"audit_account": AUDIT, "management_account": "999999999999",
                "external_id": "secret"},
        "accounts": accounts,
    })  # fmt: skip


# -- deciding --------------------------------------------------------------------------------------


def test_an_account_without_a_table_is_reached_by_the_execution_role():
    assert way_to(MEMBER, settings()) == [
        Step(f"arn:aws:iam::{MEMBER}:role/impound-ExecutionRole", "secret")
    ]


def test_names_take_the_partition_and_arns_stay():
    found = way_to(MEMBER, settings(), "aws-cn")
    assert found[0].role_arn.startswith("arn:aws-cn:iam::")
    own = {MEMBER: {"role": "arn:aws:iam::222222222222:role/ir/x", "external_id": "mine"}}
    assert way_to(MEMBER, settings(**own)) == [Step(own[MEMBER]["role"], "mine")]


def test_a_chain_begins_with_the_administrator_of_the_audit_account():
    first, second = way_to(MEMBER, settings(**{MEMBER: {"access": "chain"}}))
    assert first.role_arn == f"arn:aws:iam::{AUDIT}:role/aws-controltower-AuditAdministratorRole"
    assert second.role_arn.startswith(f"arn:aws:iam::{MEMBER}:role/aws-controltower-Admin")
    with pytest.raises(ConfigError, match="first role"):
        way_to(MEMBER, Settings.model_validate({"accounts": {MEMBER: {"access": "chain"}}}))


def test_a_profile_must_be_named():
    assert way_to(MEMBER, settings(**{MEMBER: {"access": "profile", "profile": "ir"}})) == "ir"
    with pytest.raises(ConfigError, match="none is named"):
        way_to(MEMBER, settings(**{MEMBER: {"access": "profile"}}))


def test_the_management_account_is_out_of_reach():
    with pytest.raises(AccountError, match="out of reach"):
        way_to("999999999999", settings(**{"999999999999": {"access": "role"}}))


@pytest.mark.parametrize("account", ["", "123", "22222222222x", "222222222222\n"])
def test_what_is_no_account(account):
    with pytest.raises(ConfigError, match="not an account"):
        way_to(account, settings())


def test_session_names_fit_what_iam_allows():
    assert session_name("T-1", "") == "T-1.impound"
    assert session_name("T-1", "a b/c\u00fc") == "T-1.a_b_c_"
    assert len(session_name("x" * 64, "y" * 64)) == 64


# -- going -----------------------------------------------------------------------------------------


@pytest.fixture
def base(aws_server, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws_server.endpoint)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name, value in aws_server.credentials(AUDIT).environment().items():
        monkeypatch.setenv(name, value)
    return boto3.session.Session(region_name=REGION)


def arn(client):
    return client.get_caller_identity()["Arn"]


def test_a_role_in_the_member_account_under_the_name_of_case_and_person(base):
    accounts = Accounts(settings(), base, session_name("T-1", "ann"))
    found = arn(accounts.client("sts", MEMBER, REGION))
    assert found == f"arn:aws:sts::{MEMBER}:assumed-role/impound-ExecutionRole/T-1.ann"
    assert accounts.client("sts", MEMBER, REGION) is accounts.client("sts", MEMBER, REGION)


def test_a_chain_ends_in_the_member_account(base, aws_server):
    accounts = Accounts(settings(**{MEMBER: {"access": "chain"}}), base, "T-1.ann")
    assert f":{MEMBER}:" in arn(accounts.client("sts", MEMBER, REGION))
    assumed = [s for s in aws_server.calls() if s.operation == "AssumeRole"]
    assert [s.account for s in assumed[-2:]] == [AUDIT, AUDIT]


def test_a_function_that_is_the_first_role_of_the_chain_does_not_assume_it(base, aws_server):
    """Only functions can assume it, so it could not assume itself."""
    first = aws_server.credentials(AUDIT, "aws-controltower-AuditAdministratorRole").session()
    chained = Settings.model_validate({"aws": {"audit_account": AUDIT, "access": "chain"}})
    accounts = Accounts(chained, first, "T-1.ann")
    seen = len(aws_server.calls())
    assert arn(accounts.client("sts", MEMBER, REGION)).endswith(
        ":assumed-role/aws-controltower-AdministratorExecutionRole/T-1.ann"
    )
    assumed = [s for s in aws_server.calls()[seen:] if s.operation == "AssumeRole"]
    assert len(assumed) == 1


@pytest.mark.parametrize(
    "caller",
    ["arn:aws:sts::444444444444:assumed-role/irx/s", "arn:aws:iam::444444444444:user/ir",
     "arn:aws:sts::555555555555:assumed-role/ir/s", "arn:aws:iam::444444444444:role/ir", ""],
)  # fmt: skip
def test_who_is_no_session_of_the_role(caller):
    assert not is_session_of(caller, "arn:aws:iam::444444444444:role/ir")


def test_the_account_at_hand_needs_no_role(base):
    accounts = Accounts(settings(), base, "T-1.ann")
    assert accounts.own == AUDIT
    assert accounts.session(AUDIT) is base


def test_a_profile_in_another_account_is_found_out_before_anything_acts(base, tmp_path):
    (tmp_path / "config").write_text(
        f"[profile ir]\nrole_arn = arn:aws:iam::{OTHER}:role/x\n"
        f"credential_source = Environment\nregion = {REGION}\n"
    )
    accounts = Accounts(
        settings(**{MEMBER: {"access": "profile", "profile": "ir"}}), base, "T-1.ann"
    )
    with pytest.raises(AccountError, match=f"acts in account {OTHER}, not in {MEMBER}"):
        accounts.client("ec2", MEMBER, REGION)


def test_a_profile_that_is_not_there(base):
    accounts = Accounts(settings(**{MEMBER: {"access": "profile", "profile": "no"}}), base, "n.a")
    with pytest.raises(AccountError, match="profile no"):
        accounts.client("ec2", MEMBER, REGION)


def test_a_role_that_cannot_be_assumed_is_named(base, aws_server):
    aws_server.faults.add(
        Fault("error", service="sts", operation="AssumeRole", code="AccessDenied", times=None)
    )
    accounts = Accounts(settings(), base, "T-1.ann")
    with pytest.raises(AccountError, match="impound-ExecutionRole") as caught:
        accounts.client("ec2", MEMBER, REGION)
    assert "lacks the right" in caught.value.hint


def test_credentials_renew_themselves(base, aws_server, monkeypatch):
    accounts = Accounts(settings(), base, "T-1.ann")
    client = accounts.client("sts", MEMBER, REGION)
    client.get_caller_identity()
    before = sum(s.operation == "AssumeRole" for s in aws_server.calls())
    credentials = accounts.session(MEMBER).get_credentials()
    credentials._expiry_time -= timedelta(days=2)  # as if the hours had passed
    monkeypatch.setattr(AssumeRoleCredentialFetcher, "_is_expired", lambda *_: True)
    client.get_caller_identity()
    assert sum(s.operation == "AssumeRole" for s in aws_server.calls()) == before + 1
