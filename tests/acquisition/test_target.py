# SPDX-License-Identifier: Apache-2.0
"""What a responder points at is one resource in one place, or is refused."""

from __future__ import annotations

import botocore.session
import pytest

from acquisition.target import Target, parse_target, partition_of

INSTANCE = "arn:aws:ec2:eu-central-1:222222222222:instance/i-0123456789abcdef0"


def test_an_arn_says_it_all():
    found = parse_target(INSTANCE)
    assert found == Target("instance", "i-0123456789abcdef0", "222222222222", "eu-central-1")
    assert found.arn == INSTANCE
    china = INSTANCE.replace("arn:aws:", "arn:aws-cn:")
    assert parse_target(china).arn == china


def test_an_id_needs_its_place():
    found = parse_target("vol-0123456789abcdef0", account="222222222222", region="eu-west-1")
    assert (found.kind, found.region) == ("volume", "eu-west-1")
    with pytest.raises(ValueError, match=r"ambiguous.*--account and --region"):
        parse_target("i-0123456789abcdef0")
    with pytest.raises(ValueError, match=r"--account$"):
        parse_target("i-0123456789abcdef0", region="eu-west-1")


def test_a_snapshot_arn_names_no_account():
    arn = "arn:aws:ec2:eu-west-1::snapshot/snap-0123456789abcdef0"
    assert parse_target(arn, account="222222222222").arn == arn
    with pytest.raises(ValueError, match="names no account"):
        parse_target(arn)


@pytest.mark.parametrize(
    "text",
    ["", "i-", "i-xyz", "ami-0123456789abcdef0", "arn:aws:s3:::bucket", INSTANCE + "\n",
     INSTANCE.replace("instance/i-", "instance/vol-"), "I-0123456789abcdef0"],
)  # fmt: skip
def test_what_is_no_target(text):
    with pytest.raises(ValueError, match=r"not an instance|contradicts"):
        parse_target(text, account="222222222222", region="eu-west-1")


@pytest.mark.parametrize(("account", "region"), [("333333333333", ""), ("", "us-east-1")])
def test_an_arn_and_an_option_that_contradict_it(account, region):
    with pytest.raises(ValueError, match="lies in"):
        parse_target(INSTANCE, account=account, region=region)


def test_an_id_lies_in_the_partition_of_its_region():
    found = parse_target("i-0123456789abcdef0", account="1" * 12, region="cn-north-1")
    assert found.arn.startswith("arn:aws-cn:ec2:cn-north-1:")


def test_partitions_are_those_of_botocore():
    session = botocore.session.get_session()
    for partition in session.get_available_partitions():
        for region in session.get_available_regions("ec2", partition):
            assert partition_of(region) == partition
