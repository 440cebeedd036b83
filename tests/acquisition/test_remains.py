# SPDX-License-Identifier: Apache-2.0
"""What is left: what is worth most, what is lost and why, and hostile words in events."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from acquisition.errors import AcquisitionError
from acquisition.remains import (
    PAGES,
    Deed,
    Found,
    Keeper,
    Look,
    Piece,
    Search,
    candidates,
    decide,
    deed_of,
)

THEN = datetime(2026, 1, 2, tzinfo=UTC)
DAY = timedelta(days=1)
A, B = "vol-aaaaaaaaaaaaaaaaa", "vol-bbbbbbbbbbbbbbbbb"
INSTANCE = "i-0123456789abcdef0"


def found(*pieces, volumes=(A,), deeds=(), looks=(), ended_with=(), reason="", state="terminated"):
    return Found(INSTANCE, state, reason, dict.fromkeys(volumes, ""), frozenset(ended_with),
                 pieces, tuple(deeds), tuple(looks))  # fmt: skip


def snap(name, days=0, volume=A, **more):
    return Piece("snapshot", f"snap-{name}", volume, THEN + days * DAY, **more)


def binned(kind, name, volume=A, days=1):
    return Piece(f"binned-{kind}", name, volume, until=THEN + days * DAY)


def deed(name, **more):
    return Deed(name, THEN, "arn:aws:iam::1:user/eve", "203.0.113.9", "e-1", **more)


def error(code, status=400):
    return ClientError(
        {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}},
        "X",
    )


# -- decision --------------------------------------------------------------------------------------


def test_the_order_of_value():
    """Volume, volume in the bin, newest snapshot, then the rest of the bin."""
    volume = Piece("volume", A, A)
    pieces = [binned("image", "ami-1"), binned("snapshot", "snap-9"), snap("old"), snap("new", 3),
              binned("volume", A), volume]  # fmt: skip
    first = candidates(found(*pieces))[0]
    assert [p.resource_id for p in first] == [A, A, "snap-new", "snap-old", "snap-9", "ami-1"]
    assert decide(found(*pieces)).take[0] == volume


def test_of_two_of_one_moment_the_one_without_an_image_is_taken():
    assert decide(found(snap("a", images=("ami-1",)), snap("b"))).take == (snap("b"),)


def test_one_piece_for_each_volume_and_each_copy():
    """What volume a copied snapshot names means nothing: it stands for itself."""
    take = decide(found(snap("a"), snap("b", volume=B), snap("c", volume=""))).take
    assert {p.resource_id for p in take} == {"snap-a", "snap-b", "snap-c"}


def test_everything_is_held_and_what_ends_first_comes_first():
    pieces = [
        snap("a"), Piece("volume", B, B), binned("image", "ami-1", "", 1),
        binned("snapshot", "snap-late", A, 9), binned("snapshot", "snap-soon", A, 2),
    ]  # fmt: skip
    holds = [(h.action, h.piece.resource_id) for h in decide(found(*pieces)).holds]
    assert holds == [("restore", "snap-soon"), ("restore", "snap-late"), ("restore", "ami-1"),
                     ("tag", B), ("lock", "snap-a")]  # fmt: skip


def test_an_archived_snapshot_is_held_and_not_taken():
    decided = decide(found(snap("cold", 5, state="archive"), snap("old")))
    assert [p.resource_id for p in decided.take] == ["snap-old"]
    assert len(decided.holds) == 2
    assert "RestoreSnapshotTier" in decided.gaps[0]


def test_a_recovery_point_that_is_no_snapshot_here_is_held_and_told():
    """What it is as a snapshot is taken as that, once."""
    seen = Piece("recovery-point", "arn:aws:ec2:eu-central-1::snapshot/snap-1", "vol-1")
    hidden = Piece("recovery-point", "arn:aws:backup:eu-central-1:1:recovery-point:x", "vol-1")
    decision = decide(found(Piece("snapshot", "snap-1", "vol-1"), seen, hidden))
    assert [p.resource_id for p in decision.take] == ["snap-1"]
    assert [h.piece for h in decision.holds if h.action == "hold"] == [hidden, seen]
    assert [g for g in decision.gaps if hidden.resource_id in g and "restore it" in g]
    assert not [g for g in decision.gaps if seen.resource_id in g]


def test_a_deleted_volume_is_lost_with_who_and_when():
    decided = decide(found(deeds=[deed("DeleteVolume", volumes=(A,))]))
    assert "deleted: DeleteVolume 2026-01-02T00:00:00Z by arn:aws:iam::1:user/eve" in (
        decided.lost[A]
    )  # fmt: skip
    assert "no snapshot, image or recycled copy of it is left" in decided.lost[A]


def test_a_refused_deletion_deleted_nothing():
    decided = decide(found(deeds=[deed("DeleteVolume", volumes=(A,), error="Denied")]))
    assert "no event says who deleted it" in decided.lost[A]


def test_who_deleted_its_snapshots_is_said_too():
    deeds = [deed("CreateSnapshot", volumes=(A,), snapshots=("snap-1",)),
             deed("DeleteSnapshot", snapshots=("snap-1",)),
             deed("DeleteSnapshot", snapshots=("snap-2",))]  # fmt: skip
    why = decide(found(deeds=deeds)).lost[A]
    assert why.count("DeleteSnapshot") == 1


def test_a_volume_that_ended_with_its_instance():
    why = decide(found(ended_with=[A], deeds=[deed("TerminateInstances")])).lost[A]
    assert why.startswith("ended with the instance (DeleteOnTermination): TerminateInstances")


def test_an_instance_that_ended_itself_is_told_as_ec2_says_it():
    why = decide(found(ended_with=[A], reason="EC2 says: Instance initiated")).lost[A]
    assert "Instance initiated" in why


def test_a_place_not_seen_makes_no_claim_of_nothing():
    look = Look("snapshots", 0, "no (UnauthorizedOperation)", denied=True)
    decided = decide(found(looks=[look]))
    assert "nothing of it was found where it could be looked for" in decided.lost[A]
    assert decided.gaps == ("not allowed to look at snapshots: no (UnauthorizedOperation)",)


def test_no_answer_is_not_a_denial():
    [gap] = decide(found(looks=[Look("snapshots", 0, "timed out")])).gaps
    assert gap.startswith("could not look at all of snapshots")


def test_nothing_known_at_all_is_a_gap():
    [gap] = decide(found(volumes=())).gaps
    assert "no volume of" in gap


# -- events ----------------------------------------------------------------------------------------


def event(name="AttachVolume", record=None, **more):
    said = {"EventName": name, "EventId": "e-1", "EventTime": THEN, "Username": "eve"}
    text = record if isinstance(record, str) else json.dumps(record or {})
    return {**said, "CloudTrailEvent": text, **more}


def test_an_event_says_who_what_and_from_where():
    record = {"userIdentity": {"arn": "arn:eve"}, "sourceIPAddress": "203.0.113.9",
              "requestParameters": {"volumeId": A, "device": "/dev/sdf"}}  # fmt: skip
    read = deed_of(event(record=record))
    assert (read.who, read.source, read.volumes, read.device) == (
        "arn:eve", "203.0.113.9", (A,), "/dev/sdf"
    )  # fmt: skip


def test_ids_within_text_are_not_believed():
    """A description is whatever its author wrote."""
    record = {"requestParameters": {"volumeId": A, "description": f"see also {B}"}}
    assert deed_of(event("CreateSnapshot", record)).volumes == (A,)


def test_ids_in_sets_of_items_are_read():
    record = {"responseElements": {"CreateSnapshotsResponse": {"snapshotSet": {"items": [
        {"snapshotId": "snap-0123456789abcdef0", "volumeId": A}, {"volumeId": B},
    ]}}}}  # fmt: skip
    read = deed_of(event("CreateSnapshots", record))
    assert (read.volumes, read.snapshots) == ((A, B), ("snap-0123456789abcdef0",))


@pytest.mark.parametrize("record", ["{", "[]", "null", '"x"', '{"userIdentity": 3}', "[" * 200_000])
def test_a_broken_record_is_an_event_by_its_user(record):
    assert deed_of(event(record=record)).who == "eve"


def test_control_characters_do_not_get_out():
    read = deed_of(event(record={"userIdentity": {"arn": "a\x1b[2J\nb"}}))
    assert "\x1b" not in read.text
    assert "\n" not in read.text


def test_a_deep_record_is_read():
    deep: object = A
    for _ in range(800):
        deep = {"a": deep}
    assert deed_of(event(record={"requestParameters": deep})).volumes == (A,)


def test_other_events_are_left_out():
    assert deed_of(event("DescribeVolumes")) is None


# -- search ----------------------------------------------------------------------------------------


class Nothing:
    """An account in which there is nothing; `fails`: operation -> error."""

    def __init__(self, fails=None, **answers):
        self.fails, self.answers, self.asked = fails or {}, answers, []

    def __getattr__(self, operation):
        def call(**asked):
            self.asked.append((operation, asked))
            if operation in self.fails:
                raise self.fails[operation]
            answer = self.answers.get(operation, {})
            return answer(**asked) if callable(answer) else answer

        return call


def searched(fails=None, kind="instance", **answers):
    answers = {
        "describe_instances": {"Reservations": []},
               "get_resource_config_history": {"configurationItems": []}, **answers,
    }  # fmt: skip
    client = Nothing(fails, **answers)
    answer = Search(client, client, client, "1").run(kind, INSTANCE if kind == "instance" else A)
    return answer, client


def test_each_place_is_looked_at_whatever_another_says():
    fails = dict.fromkeys(
        ("lookup_events", "describe_images", "describe_volumes"),
        error("UnauthorizedOperation", 403),
    )
    fails["list_images_in_recycle_bin"] = EndpointConnectionError(endpoint_url="x")
    fails["describe_instances"] = error("InvalidInstanceID.NotFound")
    fails["get_resource_config_history"] = error("ResourceNotDiscoveredException")
    answer, _ = searched(fails)
    assert sum(look.denied for look in answer.looks) == 3
    assert [look.place.split()[0] for look in answer.looks if look.why and not look.denied] == [
        "images"
    ]
    assert answer.is_over
    seen = {look.place.split()[0]: look.why for look in answer.looks}
    assert (seen["instances"], seen["AWS"]) == ("", "")  # that it is not there is an answer


def test_a_history_without_end_is_cut_and_said():
    page = {"Events": [event(record={"requestParameters": {"volumeId": A}})], "NextToken": "t"}
    answer, client = searched(lookup_events=page)
    assert len([1 for name, _ in client.asked if name == "lookup_events"]) == 2 * PAGES  # and of A
    assert any("only the newest were read" in look.why for look in answer.looks)


def test_the_volume_of_a_copy_is_not_asked_for():
    """It would find every copied snapshot of the account."""
    said = {"SnapshotId": "snap-1", "VolumeId": "vol-ffffffff", "StartTime": THEN, "OwnerId": "1",
            "State": "completed", "VolumeSize": 1}  # fmt: skip
    image = {"ImageId": "ami-1", "BlockDeviceMappings": [{"Ebs": {"SnapshotId": "snap-1"}}]}
    answer, client = searched(
        describe_snapshots={"Snapshots": [said]}, describe_images={"Images": [image]}
    )
    assert answer.volumes == {}
    assert {p.volume_id for p in answer.pieces} == {""}
    assert "vol-ffffffff" not in str(client.asked)


def test_anothers_snapshot_is_not_left_by_the_target():
    said = {"SnapshotId": "snap-1", "VolumeId": A, "StartTime": THEN, "OwnerId": "666",
            "State": "completed"}  # fmt: skip
    answer, _ = searched(kind="volume", describe_snapshots={"Snapshots": [said]})
    assert answer.pieces == ()


# -- hold ------------------------------------------------------------------------------------------


def keeper(**answers):
    client = Nothing(answers.pop("fails", None), **answers)
    waits = []
    return Keeper(client, client, waits.append), client, waits


def test_what_is_out_of_the_bin_is_not_restored_again():
    held, client, _ = keeper(describe_snapshots={"Snapshots": [{}]})
    held.restore(binned("snapshot", "snap-1"))
    assert {name for name, _ in client.asked} == {"describe_snapshots"}


def test_what_another_restored_is_waited_for():
    answers = iter([[], [], [{}]])
    held, _, waits = keeper(
        fails={"restore_snapshot_from_recycle_bin": error("InvalidSnapshot.NotFound")},
        describe_snapshots=lambda **_: {"Snapshots": next(answers)},
    )
    held.restore(binned("snapshot", "snap-1"))
    assert len(waits) == 1


def test_what_never_shows_is_an_error_with_a_hint():
    held, _, waits = keeper(describe_snapshots={"Snapshots": []})
    with pytest.raises(AcquisitionError, match="does not show") as caught:
        held.restore(binned("snapshot", "snap-1"))
    assert caught.value.hint
    assert len(waits) == 30


def test_a_refused_restore_is_an_error_at_once():
    held, _, waits = keeper(
        fails={"restore_snapshot_from_recycle_bin": error("UnauthorizedOperation", 403)},
        describe_snapshots={"Snapshots": []},
    )
    with pytest.raises(AcquisitionError, match="restore snap-1"):
        held.restore(binned("snapshot", "snap-1"))
    assert waits == []


def test_a_tag_of_another_case_stays():
    held, client, _ = keeper(describe_tags={"Tags": [{"Key": "case", "Value": "OLD"}]})
    assert held.tag(A, {"case": "T-1", "notification": "a@b"}) == {
        "case": "OLD", "notification": "a@b"
    }  # fmt: skip
    [made] = [asked for name, asked in client.asked if name == "create_tags"]
    assert made["Tags"] == [{"Key": "notification", "Value": "a@b"}]
