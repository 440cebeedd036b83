# SPDX-License-Identifier: Apache-2.0
"""CloudTrail's event history; one test a behaviour, both modes."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from pipeline.gameday.aws.accounts import AUDIT, MEMBER, REGION


@pytest.fixture
def trail(aws):
    return aws.client("cloudtrail", MEMBER)


def by(key, value):
    return {"LookupAttributes": [{"AttributeKey": key, "AttributeValue": value}]}


def names(answer):
    return [e["EventName"] for e in answer["Events"]]


def test_events_of_a_resource_newest_first(member, trail, volume):
    """CloudTrail API, LookupEvents: by ResourceName; the latest event first."""
    made = volume()
    member.delete_volume(VolumeId=made)
    found = trail.lookup_events(**by("ResourceName", made))
    assert names(found) == ["DeleteVolume", "CreateVolume"]
    [event, _] = found["Events"]
    assert {"ResourceType": "AWS::EC2::Volume", "ResourceName": made} in event["Resources"]
    record = json.loads(event["CloudTrailEvent"])
    assert record["requestParameters"] == {"volumeId": made}
    assert record["userIdentity"]["arn"].endswith("/gameday")
    assert event["Username"] == "gameday"


def test_events_by_name_and_user(member, trail, volume):
    """CloudTrail API, LookupAttribute: EventName, Username."""
    volume()
    assert names(trail.lookup_events(**by("EventName", "CreateVolume"))) == ["CreateVolume"]
    assert names(trail.lookup_events(**by("Username", "somebody"))) == []


def test_one_attribute_at_most(trail, refused):
    """CloudTrail API, LookupEvents: "Currently the list can contain only one item"."""
    two = by("EventName", "a")["LookupAttributes"] + by("EventName", "b")["LookupAttributes"]
    with refused("InvalidLookupAttributesException", 400):
        trail.lookup_events(LookupAttributes=two)


def test_pages(member, trail, volume, refused):
    """CloudTrail API, LookupEvents: NextToken, of the same query only; MaxResults 1 to 50."""
    made = volume()
    for _ in range(3):
        member.create_tags(Resources=[made], Tags=[{"Key": "a", "Value": "b"}])
    asked = by("ResourceName", made)
    first = trail.lookup_events(**asked, MaxResults=3)
    rest = trail.lookup_events(**asked, MaxResults=3, NextToken=first["NextToken"])
    assert len(first["Events"]) == 3
    assert names(rest) == ["CreateVolume"]
    assert "NextToken" not in rest
    with refused("InvalidNextTokenException", 400):
        trail.lookup_events(**by("EventName", "x"), NextToken=first["NextToken"])


def test_ninety_days(aws, trail, volume):
    """CloudTrail API, LookupEvents: "the last 90 days"."""
    made = volume()
    aws.advance(89 * 86_400)
    assert names(trail.lookup_events(**by("ResourceName", made)))
    aws.advance(2 * 86_400)
    assert names(trail.lookup_events(**by("ResourceName", made))) == []


def test_between_two_times(trail, volume):
    """CloudTrail API, LookupEvents: StartTime, EndTime."""
    made, now = volume(), datetime.now(UTC)
    asked = by("ResourceName", made)
    hour = timedelta(hours=1)
    assert names(trail.lookup_events(**asked, StartTime=now - hour, EndTime=now + hour))
    assert names(trail.lookup_events(**asked, EndTime=now - hour)) == []


def test_events_are_late(aws, trail, volume):
    """CloudTrail User Guide: delivered "within an average of about 5 minutes" of a call."""
    aws.behave(trail_seconds=300)
    made = volume()
    assert names(trail.lookup_events(**by("ResourceName", made))) == []
    aws.advance(301)
    assert names(trail.lookup_events(**by("ResourceName", made))) == ["CreateVolume"]


def test_an_account_sees_its_own(aws, trail, volume):
    """CloudTrail API, LookupEvents: "events … in the current account", of the Region."""
    made = volume()
    assert names(trail.lookup_events(**by("ResourceName", made)))
    audit = aws.client("cloudtrail", AUDIT)
    assert names(audit.lookup_events(**by("ResourceName", made))) == []


def test_a_refused_call_is_an_event_with_its_code(member, trail, refused):
    """CloudTrail User Guide, Record contents: errorCode, errorMessage."""
    gone = "vol-0123456789abcdef0"
    with refused("InvalidVolume.NotFound", 400):
        member.delete_volume(VolumeId=gone)
    [event] = trail.lookup_events(**by("ResourceName", gone))["Events"]
    record = json.loads(event["CloudTrailEvent"])
    assert (record["errorCode"], record["responseElements"]) == ("InvalidVolume.NotFound", None)


def test_run_instances_names_no_volumes(trail, instance):
    """Assumed (docs/aws-assumptions.md): the answer precedes the attachment."""
    i, [volume_id] = instance()
    assert "RunInstances" in names(trail.lookup_events(**by("ResourceName", i)))
    found = trail.lookup_events(**by("ResourceName", volume_id))
    assert "RunInstances" not in names(found)


def test_an_attachment_names_both(member, trail, instance, volume):
    """CloudTrail User Guide, Record contents: requestParameters."""
    i, _ = instance()
    made = volume(AvailabilityZone=f"{REGION}a")
    member.attach_volume(VolumeId=made, InstanceId=i, Device="/dev/sdh")
    [event] = [e for e in trail.lookup_events(**by("ResourceName", i))["Events"]
               if e["EventName"] == "AttachVolume"]  # fmt: skip
    asked = json.loads(event["CloudTrailEvent"])["requestParameters"]
    assert asked == {"volumeId": made, "instanceId": i, "device": "/dev/sdh"}


def test_words_in_a_description_are_no_resource(member, trail, volume):
    """CloudTrail API, Resource: what the call accessed, not what it says."""
    member.create_snapshot(VolumeId=volume(), Description="of i-0123456789abcdef0 it says")
    assert names(trail.lookup_events(**by("ResourceName", "i-0123456789abcdef0"))) == []
