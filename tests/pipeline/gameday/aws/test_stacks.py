# SPDX-License-Identifier: Apache-2.0
"""Stacks in the stand-in: groups and instances as the template says, ended with their stack."""

from __future__ import annotations

import json

import pytest
from botocore.exceptions import ClientError

from pipeline.gameday.aws.accounts import AUDIT

TEMPLATE = {
    "Parameters": {"Count": {"Type": "Number", "Default": 0}, "Vpc": {"Type": "String"},
                   "Subnet": {"Type": "String"}, "Image": {"Type": "String", "Default": "/ami"}},
    "Conditions": {"Many": {"Fn::Not": [{"Fn::Equals": [{"Ref": "Count"}, "0"]}]}},
    "Resources": {
        "Group": {"Type": "AWS::EC2::SecurityGroup", "Properties": {
            "GroupDescription": "g", "VpcId": {"Ref": "Vpc"},
            "SecurityGroupIngress": [{"Ref": "AWS::NoValue"}],
            "SecurityGroupEgress": [
                {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "CidrIp": "10.0.0.1/32"},
            ],
        }},
        "Host": {"Type": "AWS::EC2::Instance", "Properties": {
            "ImageId": {"Fn::Sub": "{{resolve:ssm:${Image}}}"}, "SubnetId": {"Ref": "Subnet"},
            "SecurityGroupIds": [{"Ref": "Group"}], "InstanceType": "m6i.large",
            "MetadataOptions": {"HttpTokens": "required"},
        }},
        "Queue": {"Type": "AWS::SQS::Queue", "Condition": "Many"},
    },
    "Outputs": {"Host": {"Value": {"Ref": "Host"}}, "Group": {"Value": {"Ref": "Group"}}},
}  # fmt: skip


@pytest.fixture
def make(aws_in_process):
    clients = {n: aws_in_process.client(n, AUDIT) for n in ("ec2", "cloudformation", "ssm", "sqs")}
    subnet = clients["ec2"].describe_subnets()["Subnets"][0]
    clients["ssm"].put_parameter(Name="/ami", Value="ami-1", Type="String")

    def make(name, **more):
        given = {"Vpc": subnet["VpcId"], "Subnet": subnet["SubnetId"], **more}
        cfn = clients["cloudformation"]
        cfn.create_stack(
            StackName=name, TemplateBody=json.dumps(TEMPLATE),
            Parameters=[{"ParameterKey": k, "ParameterValue": v} for k, v in given.items()],
        )  # fmt: skip
        [stack] = cfn.describe_stacks(StackName=name)["Stacks"]
        return {o["OutputKey"]: o["OutputValue"] for o in stack["Outputs"]}

    make.clients = clients
    return make


def instance(ec2, name):
    return ec2.describe_instances(InstanceIds=[name])["Reservations"][0]["Instances"][0]


def test_group_and_instance_are_what_the_template_says(make):
    made, ec2 = make("impound-T-1"), make.clients["ec2"]
    [group] = ec2.describe_security_groups(GroupIds=[made["Group"]])["SecurityGroups"]
    assert group["IpPermissions"] == []
    [rule] = group["IpPermissionsEgress"]  # and not the one that allows all
    assert (rule["FromPort"], rule["IpRanges"][0]["CidrIp"]) == (22, "10.0.0.1/32")
    host = instance(ec2, made["Host"])
    assert host["ImageId"] == "ami-1"
    assert host["MetadataOptions"]["HttpTokens"] == "required"
    assert [g["GroupId"] for g in host["SecurityGroups"]] == [made["Group"]]
    [nic] = host["NetworkInterfaces"]
    assert [g["GroupId"] for g in nic["Groups"]] == [made["Group"]]


def test_a_number_is_compared_as_text(make):
    make("none")
    assert not make.clients["sqs"].list_queues().get("QueueUrls")
    make("some", Count="2")
    assert len(make.clients["sqs"].list_queues()["QueueUrls"]) == 1


def test_a_stack_ends_its_own_instance_only(make):
    first, second = make("impound-a-1"), make("impound-b-1")
    make.clients["cloudformation"].delete_stack(StackName="impound-a-1")
    states = [instance(make.clients["ec2"], s["Host"])["State"]["Name"] for s in (first, second)]
    assert states == ["terminated", "running"]


def test_a_parameter_that_is_not_there_fails_the_stack(make):
    with pytest.raises(ClientError, match="cannot be found"):
        make("x", Image="/none")
