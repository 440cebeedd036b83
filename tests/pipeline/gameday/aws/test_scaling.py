# SPDX-License-Identifier: Apache-2.0
"""Auto Scaling as its User Guide describes it; each test names the page."""

from __future__ import annotations

import pytest

from pipeline.gameday.aws.accounts import MEMBER


@pytest.fixture
def scaling(aws):
    return aws.client("autoscaling", MEMBER)


@pytest.fixture
def fleet(member, scaling):
    """A group of one; return what it holds by now."""

    def make(least=1, most=2, **more):
        member.create_launch_template(
            LaunchTemplateName="web", LaunchTemplateData={"ImageId": "ami-1"}
        )
        subnet = member.describe_subnets()["Subnets"][0]["SubnetId"]
        scaling.create_auto_scaling_group(
            AutoScalingGroupName="web", LaunchTemplate={"LaunchTemplateName": "web"},
            MinSize=least, MaxSize=most, DesiredCapacity=1, VPCZoneIdentifier=subnet, **more,
        )  # fmt: skip
        [one] = members(scaling)
        return one

    return make


def shown(scaling):
    return scaling.describe_auto_scaling_groups(AutoScalingGroupNames=["web"])["AutoScalingGroups"][
        0
    ]


def members(scaling):
    return {i["InstanceId"]: i["LifecycleState"] for i in shown(scaling)["Instances"]}


def state(member, instance):
    found = member.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]
    return found["State"]["Name"]


def test_an_unhealthy_member_is_ended_in_spite_of_every_protection(member, scaling, fleet):
    """User Guide, "Instance scale-in protection": does not protect from health check replacement;
    EC2 User Guide, "Change instance termination protection": nor does that."""
    one = fleet()
    member.modify_instance_attribute(InstanceId=one, DisableApiTermination={"Value": True})
    scaling.set_instance_protection(
        AutoScalingGroupName="web", InstanceIds=[one], ProtectedFromScaleIn=True
    )
    scaling.set_instance_health(InstanceId=one, HealthStatus="Unhealthy")
    [replacement] = members(scaling)
    assert replacement != one
    assert state(member, one) == "terminated"


def test_health_checks_take_their_time(aws, member, scaling, fleet):
    """User Guide, "Health checks for instances"."""
    one = fleet()
    aws.behave(health_checks=2)
    scaling.set_instance_health(InstanceId=one, HealthStatus="Unhealthy")
    assert [list(members(scaling)) for _ in range(3)][:2] == [[one]] * 2
    assert state(member, one) == "terminated"


def test_a_load_balancer_that_cannot_get_through_ends_it(member, scaling, fleet):
    """User Guide, "Health checks for instances": Elastic Load Balancing health checks."""
    one = fleet(HealthCheckType="ELB")
    found = member.describe_instances(InstanceIds=[one])["Reservations"][0]["Instances"][0]
    interface = found["NetworkInterfaces"][0]["NetworkInterfaceId"]
    closed = member.create_security_group(
        GroupName="closed", Description="closed", VpcId=found["VpcId"]
    )["GroupId"]
    member.modify_network_interface_attribute(NetworkInterfaceId=interface, Groups=[closed])
    members(scaling)
    assert state(member, one) == "terminated"


def test_a_detached_member_is_replaced_and_left_alone(member, scaling, fleet):
    """API Reference, DetachInstances, ShouldDecrementDesiredCapacity=false."""
    one = fleet()
    scaling.detach_instances(
        AutoScalingGroupName="web", InstanceIds=[one], ShouldDecrementDesiredCapacity=False
    )
    [replacement] = members(scaling)
    assert replacement != one
    assert (state(member, one), shown(scaling)["DesiredCapacity"]) == ("running", 1)
    assert scaling.describe_auto_scaling_instances(InstanceIds=[one])["AutoScalingInstances"] == []


@pytest.mark.parametrize("call", ["detach_instances", "enter_standby"])
def test_no_group_goes_below_its_minimum(scaling, fleet, refused, call):
    """User Guide, "Detach or attach instances", "Temporarily remove instances"."""
    one = fleet()
    with refused("ValidationError", 400):
        getattr(scaling, call)(
            AutoScalingGroupName="web", InstanceIds=[one], ShouldDecrementDesiredCapacity=True
        )
    assert members(scaling) == {one: "InService"}


def test_who_is_no_member_is_refused(scaling, fleet, refused):
    """API Reference, DetachInstances, EnterStandby, SetInstanceProtection."""
    one = fleet()
    where = {"AutoScalingGroupName": "web", "InstanceIds": [one]}
    scaling.detach_instances(**where, ShouldDecrementDesiredCapacity=False)
    for call, more in (
        ("detach_instances", {"ShouldDecrementDesiredCapacity": False}),
        ("enter_standby", {"ShouldDecrementDesiredCapacity": False}),
        ("exit_standby", {}), ("set_instance_protection", {"ProtectedFromScaleIn": True}),
    ):  # fmt: skip
        with refused("ValidationError", 400):
            getattr(scaling, call)(**where, **more)


def test_standby_is_not_checked_and_comes_back(member, scaling, fleet, refused):
    """User Guide, "Temporarily remove instances from your Auto Scaling group"."""
    one = fleet()
    where = {"AutoScalingGroupName": "web", "InstanceIds": [one]}
    scaling.enter_standby(**where, ShouldDecrementDesiredCapacity=False)
    with refused("ValidationError", 400):
        scaling.enter_standby(**where, ShouldDecrementDesiredCapacity=False)
    scaling.set_instance_health(InstanceId=one, HealthStatus="Unhealthy")
    assert (members(scaling)[one], state(member, one)) == ("Standby", "running")
    scaling.set_instance_health(InstanceId=one, HealthStatus="Healthy")
    scaling.exit_standby(**where)
    assert (members(scaling)[one], shown(scaling)["DesiredCapacity"]) == ("InService", 2)


def test_attaching_raises_the_desired_capacity_up_to_the_maximum(scaling, fleet, refused):
    """API Reference, AttachInstances: desired capacity grows; the sum must not pass MaxSize."""
    one = fleet(most=1)
    where = {"AutoScalingGroupName": "web", "InstanceIds": [one]}
    scaling.detach_instances(**where, ShouldDecrementDesiredCapacity=False)
    with refused("ValidationError", 400):
        scaling.attach_instances(**where)
    scaling.update_auto_scaling_group(AutoScalingGroupName="web", MaxSize=2)
    scaling.attach_instances(**where)
    assert (members(scaling)[one], shown(scaling)["DesiredCapacity"]) == ("InService", 2)
    with refused("ValidationError", 400):
        scaling.attach_instances(**where)
