# SPDX-License-Identifier: Apache-2.0
"""Workstations: each difference from the template is told; volumes in the right zone, once."""

from __future__ import annotations

import copy

import pytest

from acquisition.errors import AcquisitionError, UnsupportedSourceError
from acquisition.workstation import Station, Workstations, differences, stack_name
from pipeline.gameday.aws.accounts import AUDIT, REGION
from pipeline.gameday.aws.volumes import _of

ASKED = {
    "Case": "T-1", "SubnetId": "subnet-1", "VolumeKey": "arn:key", "S3PrefixList": "pl-1",
    "EndpointGroup": "sg-ep", "TargetCidr": "10.0.0.5/32", "InstanceType": "m6i.xlarge",
    "ImageId": "ami-1",
}  # fmt: skip
INSTANCE = {
    "ImageId": "ami-1", "SubnetId": "subnet-1", "InstanceType": "m6i.xlarge",
    "SecurityGroups": [{"GroupId": "sg-f"}],
    "NetworkInterfaces": [{"Groups": [{"GroupId": "sg-f"}]}],
    "MetadataOptions": {"HttpTokens": "required"},
    "IamInstanceProfile": {"Arn": "arn:aws:iam::1:instance-profile/impound-workstation"},
    "Tags": [{"Key": "case", "Value": "T-1"}],
}  # fmt: skip
ROOT = {"Encrypted": True, "KmsKeyId": "arn:key"}


def permit(port, **peer):
    kinds = {"cidr": ("IpRanges", "CidrIp"), "cidr6": ("Ipv6Ranges", "CidrIpv6"),
             "prefixes": ("PrefixListIds", "PrefixListId"),
             "group": ("UserIdGroupPairs", "GroupId")}  # fmt: skip
    [(kind, value)] = peer.items()
    name, key = kinds[kind]
    return {"IpProtocol": "tcp", "FromPort": port, "ToPort": port, name: [{key: value}]}


GROUP = {
    "GroupId": "sg-f", "IpPermissions": [],
    "IpPermissionsEgress": [permit(443, prefixes="pl-1"), permit(443, group="sg-ep"),
                            permit(22, cidr="10.0.0.5/32")],
}  # fmt: skip


def test_a_workstation_as_asked_differs_in_nothing():
    assert differences(INSTANCE, GROUP, ROOT, ASKED) == []


def test_ingress_from_the_target_is_right_only_where_asked_for():
    group = GROUP | {"IpPermissions": [permit(22, cidr="10.0.0.5/32")]}
    assert differences(INSTANCE, group, ROOT, ASKED | {"AllowToolIngress": "true"}) == []
    assert "permitted to it" in differences(INSTANCE, group, ROOT, ASKED)[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ImageId": "ami-2"}, "the image is ami-2"), ({"SubnetId": "subnet-2"}, "the subnet"),
        ({"InstanceType": "t2.nano"}, "the type"), ({"KeyName": "mine"}, "key pair mine"),
        ({"PublicIpAddress": "192.0.2.1"}, "public address"),
        ({"MetadataOptions": {"HttpTokens": "optional"}}, "IMDSv1"),
        ({"MetadataOptions": {}}, "IMDSv1"),
        ({"IamInstanceProfile": {"Arn": "arn:aws:iam::1:instance-profile/x"}}, "profile is x"),
        ({"IamInstanceProfile": {}}, "profile is none"), ({"Tags": []}, "tag `case`"),
        ({"NetworkInterfaces": [{"Groups": [{"GroupId": "sg-x"}]}]}, "its groups"),
    ],
)  # fmt: skip
def test_each_difference_of_the_instance_is_told(change, said):
    [found] = differences(INSTANCE | change, GROUP, ROOT, ASKED)
    assert said in found


@pytest.mark.parametrize("root", [{}, {"Encrypted": False}, {"Encrypted": True, "KmsKeyId": "x"}])
def test_a_root_volume_without_its_key_is_told(root):
    [found] = differences(INSTANCE, GROUP, root, ASKED)
    assert "root volume" in found


@pytest.mark.parametrize(
    "extra",
    [permit(22, cidr="0.0.0.0/0"), permit(443, cidr6="::/0"), permit(22, group="sg-x"),
     {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}],
)  # fmt: skip
@pytest.mark.parametrize("key", ["IpPermissions", "IpPermissionsEgress"])
def test_each_rule_too_many_is_told(extra, key):
    group = copy.deepcopy(GROUP)
    group[key].append(extra)
    [found] = differences(INSTANCE, group, ROOT, ASKED)
    assert found.startswith("permitted ")


def test_each_rule_that_is_missing_is_told():
    for number in range(3):
        group = copy.deepcopy(GROUP)
        del group["IpPermissionsEgress"][number]
        [found] = differences(INSTANCE, group, ROOT, ASKED)
        assert found.startswith("not permitted from it")


def test_a_stack_has_a_name_whatever_the_case_is_called():
    name = stack_name("_" + "a." * 31, "0123456789abcdef")
    assert len(name) <= 128
    assert name.replace("-", "").isalnum()


# -- volumes, in the stand-in


@pytest.fixture
def bench(aws_in_process):
    ec2 = aws_in_process.client("ec2", AUDIT)
    cfn = aws_in_process.client("cloudformation", AUDIT)
    subnet = ec2.describe_subnets(
        Filters=[{"Name": "availability-zone", "Values": [f"{REGION}b"]}]
    )["Subnets"][0]["SubnetId"]
    instance = ec2.run_instances(ImageId="ami-1", MinCount=1, MaxCount=1, SubnetId=subnet)
    found = instance["Instances"][0]["InstanceId"]
    volume = ec2.create_volume(Size=1, AvailabilityZone=f"{REGION}a", Encrypted=True)["VolumeId"]
    ec2.get_waiter("volume_available").wait(VolumeIds=[volume])
    snapshot = ec2.create_snapshot(VolumeId=volume)["SnapshotId"]
    ec2.get_waiter("snapshot_completed").wait(SnapshotIds=[snapshot])
    station = Station("stack", "T-1", "CREATE_COMPLETE", found, f"{REGION}b", state="running")
    return Workstations(cfn, ec2, ec2, lambda _s: None), station, snapshot


TAGS = {"case": "T-1"}


def test_a_volume_is_made_in_the_zone_of_the_workstation_and_attached_once(bench):
    stations, station, snapshot = bench
    made = stations.attach(station, snapshot, TAGS, "m1")
    assert (made.instance, made.device, made.state) == (station.instance, "/dev/sdf", "in-use")
    assert stations.attach(station, snapshot, TAGS, "m1") == made
    other = stations.attach(station, snapshot, TAGS, "m2")
    assert (other.volume != made.volume, other.device) == (True, "/dev/sdg")
    assert {v.volume for v in stations.volumes("T-1")} == {made.volume, other.volume}
    assert stations.volumes("T-2") == []


def test_a_stopped_workstation_is_given_nothing(bench):
    stations, station, snapshot = bench
    stopped = Station(
        "s", "T-1", "CREATE_COMPLETE", station.instance, station.zone, state="stopped"
    )
    with pytest.raises(AcquisitionError, match="is stopped"):
        stations.attach(stopped, snapshot, TAGS, "m1")
    assert stations.volumes("T-1") == []


@pytest.mark.parametrize("where", ["snapshot", "volume"])
def test_a_marketplace_volume_is_refused_with_a_hint(bench, where):
    from pipeline.gameday.aws import snapshots

    stations, station, snapshot = bench
    codes = [{"ProductCodeId": "abc", "ProductCodeType": "marketplace"}]
    if where == "snapshot":
        snapshots.find(snapshot, AUDIT, REGION).product_codes = codes
    else:
        made = stations._create(station, snapshot, TAGS, "m1")
        _of(made.volume).product_codes = codes
    with pytest.raises(UnsupportedSourceError, match="Marketplace") as e:
        stations.attach(station, snapshot, TAGS, "m1")
    assert "item serve" in e.value.hint
    assert all(not v.instance for v in stations.volumes("T-1"))


def test_a_volume_is_taken_away_and_its_snapshot_stays(bench):
    stations, station, snapshot = bench
    made = stations.attach(station, snapshot, TAGS, "m1")
    stations.remove(made)
    assert stations.volumes("T-1") == []
    assert stations.ec2.describe_snapshots(SnapshotIds=[snapshot])["Snapshots"]


def test_a_volume_whose_snapshot_is_gone_stays(bench):
    stations, station, snapshot = bench
    made = stations.attach(station, snapshot, TAGS, "m1")
    stations.ec2.delete_snapshot(SnapshotId=snapshot)
    with pytest.raises(AcquisitionError, match="stays"):
        stations.remove(made)
    assert [v.instance for v in stations.volumes("T-1")] == [station.instance]
