# SPDX-License-Identifier: Apache-2.0
"""Over the practice organisation: each check finds its own defect, and only that one."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from pipeline.gameday.aws.accounts import (
    AUDIT,
    EXECUTION_ROLE,
    LOG_ARCHIVE,
    MEMBER,
    REGION,
    RESPONDER_ROLE,
    role_arn,
)
from pipeline.gameday.aws.faults import Fault
from pipeline.gameday.aws.organisation import AMI_PARAMETER, DEFECTS, FOR_PEOPLE, FORWARD, policy
from pipeline.readiness import look, mend
from pipeline.readiness.checks import BY_NAME, CHECKS
from pipeline.readiness.judge import JUDGES
from pipeline.readiness.model import Place, exit_code
from pipeline.readiness.observe import OBSERVERS

pytestmark = pytest.mark.xdist_group("readiness")
# Nothing in AWS makes these wrong; `test_judge` and `test_observe` do.
HERE_OR_TIME = {"installation", "clock", "symbols", "gameday", "template"}


class Recorder:
    """A ledger in memory, as steps need it."""

    def __init__(self):
        self.events = []
        self.ledger = self

    def record(self, build):
        draft = build()
        if draft is None:
            return None
        event = SimpleNamespace(
            action=draft.action, data=draft.fields["data"], seq=len(self.events),
            at=None, note=draft.fields.get("note"),
        )  # fmt: skip
        self.events.append(event)
        return SimpleNamespace(event=event)


def bad(found):
    return [f for f in found if f.status not in ("ok", "warning")]


def found(place, name):
    return look.findings(place.estate, [BY_NAME[name]], 60)


def test_every_check_is_complete():
    names = {c.name for c in CHECKS}
    assert names == set(DEFECTS) | HERE_OR_TIME
    assert names == set(JUDGES) == set(OBSERVERS)
    assert set(mend.MENDERS) == {c.name for c in CHECKS if c.mends}
    assert set(DEFECTS) - set(FOR_PEOPLE) == {c.name for c in CHECKS if c.mends}


def test_a_healthy_organisation_is_ready(place):
    seen = look.findings(place.estate, CHECKS, 120)
    assert bad(seen) == []
    assert exit_code(seen) == 0
    assert {f.check.name for f in seen} == {c.name for c in CHECKS}
    wanted = {AUDIT, LOG_ARCHIVE, MEMBER}
    assert {f.place.account for f in seen if f.check.scope == "account"} == wanted
    warned = {f.check.name for f in seen if f.status == "warning"}
    # The stand-in leaves conditional denials out of the policy; no game day was recorded.
    assert warned <= {"installation", "bucket-policy", "gameday"}


def undo(place, name):
    """What people do about it."""
    member = place.made.client("iam", MEMBER)
    if name == "ami":
        place.made.client("ssm", AUDIT).put_parameter(
            Name=AMI_PARAMETER, Value=place.ami, Type="String"
        )
    elif name == "login":
        place.made.client("ec2", MEMBER).create_tags(
            Resources=[place.seeded.estate.instance],
            Tags=[{"Key": "impound-login", "Value": "key"}],
        )
    else:
        member.update_assume_role_policy(RoleName=EXECUTION_ROLE, PolicyDocument=policy({
            "Effect": "Allow", "Action": "sts:AssumeRole",
            "Principal": {"AWS": role_arn(AUDIT, RESPONDER_ROLE)},
        }))  # fmt: skip


@pytest.mark.parametrize("name", sorted(DEFECTS))
def test_each_check_finds_its_defect_and_what_mends_it(place, name):
    """Healthy; defect seeded: exactly one fault, with its fix; put right: healthy again."""
    if name == "way":  # a session that was made before goes on
        from pipeline.readiness.organisation import estate

        place = SimpleNamespace(**vars(place) | {"estate": estate(place.session)})
    if name == "ami":
        ssm = place.made.client("ssm", AUDIT)
        place.ami = ssm.get_parameter(Name=AMI_PARAMETER)["Parameter"]["Value"]
    if name != "way":
        assert bad(found(place, name)) == []
    DEFECTS[name](place.made)
    try:
        [fault] = bad(found(place, name))
        assert fault.status == ("gap" if name == "login" else "failed")
        assert fault.what
        assert fault.fix
        assert fault.place.account == (AUDIT if BY_NAME[name].scope == "audit" else MEMBER)
        assert (fault.mend is None) == (name in FOR_PEOPLE)
        others = [c for c in CHECKS if c.name != name and c.scope == BY_NAME[name].scope]
        if name not in ("way", "keys"):
            assert bad(look.findings(place.estate, others[:3], 60)) == []
        if fault.mend is not None:
            recorder = Recorder()
            assert mend.apply(place.estate, fault, recorder) == ""
            assert [e.action for e in recorder.events] == ["step.started", "step.done"]
            assert recorder.events[0].data["step"] == f"readiness {name}"
    finally:
        if name in FOR_PEOPLE:
            undo(place, name)
    if name == "way":
        place.estate = estate(place.session)
    assert bad(found(place, name)) == []


@pytest.mark.parametrize(("service", "operation", "name"), [
    ("guardduty", "ListDetectors", "guardduty"), ("kms", "GetKeyPolicy", "member-key"),
    ("ec2", "DescribeInstances", "login"), ("iam", "ListRoles", "saml-roles"),
    ("s3", "GetBucketPolicy", "bucket-policy"), ("events", "DescribeEventBus", "events"),
])  # fmt: skip
def test_not_allowed_to_look_is_unknown_and_never_failed(place, service, operation, name):
    place.stand.faults.add(Fault(
        "error", service=service, operation=operation, code="AccessDenied", times=100,
    ))  # fmt: skip
    try:
        seen = bad(found(place, name))
    finally:
        place.stand.faults.clear()
    assert {f.status for f in seen} == {"unknown"}
    assert exit_code(seen) == 3
    assert all("AccessDenied" in f.what for f in seen)


@pytest.mark.chaos
def test_throttling_is_unknown(place):
    place.stand.faults.add(Fault(
        "error", service="securityhub", operation="DescribeHub", code="ThrottlingException",
        status=400, times=1000,
    ))  # fmt: skip
    try:
        seen = found(place, "securityhub")
    finally:
        place.stand.faults.clear()
    assert {f.status for f in seen} == {"unknown"}
    assert bad(found(place, "securityhub")) == []


def test_what_takes_too_long_is_unknown(place, monkeypatch):
    import threading

    held = threading.Event()
    monkeypatch.setitem(OBSERVERS, "guardduty", lambda _view: held.wait(30))
    try:
        seen = look.findings(place.estate, [BY_NAME["guardduty"], BY_NAME["contact"]], 1.5)
    finally:
        held.set()
    assert {f.status for f in seen if f.check.name == "guardduty"} == {"unknown"}
    assert {f.status for f in seen if f.check.name == "contact"} == {"ok"}


def test_of_an_account_that_is_not_reached_nothing_is_claimed(place):
    from pipeline.readiness.organisation import estate

    DEFECTS["way"](place.made)
    try:
        names = ("way", "contact", "guardduty", "isolation-group")
        seen = look.findings(estate(place.session), [BY_NAME[n] for n in names], 60)
    finally:
        undo(place, "way")
    member = {f.check.name: f.status for f in seen if f.place.account == MEMBER}
    assert member == {"way": "failed", "contact": "unknown", "guardduty": "unknown",
                      "isolation-group": "unknown"}  # fmt: skip
    rest = {f.status for f in seen if f.place.account != MEMBER}
    assert rest == {"ok"}


def test_a_fault_of_the_mend_is_recorded(place):
    DEFECTS["securityhub"](place.made)
    [fault] = bad(found(place, "securityhub"))
    place.stand.faults.add(Fault(
        "error", service="securityhub", operation="EnableSecurityHub", code="AccessDenied",
    ))  # fmt: skip
    recorder = Recorder()
    try:
        assert "AccessDenied" in mend.apply(place.estate, fault, recorder)
    finally:
        place.stand.faults.clear()
    assert [e.action for e in recorder.events] == ["step.started", "step.failed"]
    assert mend.apply(place.estate, fault, recorder) == ""


def test_the_probe_is_taken_out_again_and_others_stay(place):
    sqs = place.made.client("sqs", AUDIT)
    url = sqs.get_queue_url(QueueName="impound-events")["QueueUrl"]
    assert bad(found(place, "events")) == []
    assert "Messages" not in sqs.receive_message(QueueUrl=url)
    sqs.send_message(QueueUrl=url, MessageBody="a finding that waits")
    [fault] = bad(found(place, "events"))
    assert fault.status == "unknown"
    got = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10)["Messages"]
    assert [m["Body"] for m in got if "probe" not in m["Body"]] == ["a finding that waits"]
    sqs.purge_queue(QueueUrl=url)


def test_a_path_that_is_not_proved_gets_a_rule_of_its_own(place):
    """The template forwards what impound acts upon, not the probe; or nothing at all."""
    events = place.made.client("events", MEMBER)
    pattern = events.describe_rule(Name=FORWARD)["EventPattern"]
    events.put_rule(Name=FORWARD, EventPattern='{"source": ["aws.tag"]}')
    [fault] = bad(found(place, "events"))
    assert (fault.status, "not proved" in fault.what) == ("unknown", True)
    assert mend.apply(place.estate, fault, Recorder()) == ""
    assert bad(found(place, "events")) == []
    for name in (FORWARD, "impound-readiness"):
        events.remove_targets(Rule=name, Ids=["audit"])
        events.delete_rule(Name=name)
    [fault] = bad(found(place, "events"))
    assert (fault.status, "no rule" in fault.what) == ("failed", True)
    assert mend.apply(place.estate, fault, Recorder()) == ""
    assert bad(found(place, "events")) == []
    [target] = events.list_targets_by_rule(Rule=FORWARD)["Targets"]
    assert target["RoleArn"].endswith(":role/impound-forward")
    events.put_rule(Name=FORWARD, EventPattern=pattern)


def test_a_key_mended_twice_says_it_once(place):
    DEFECTS["member-key"](place.made)
    [fault] = bad(found(place, "member-key"))
    for _ in range(2):
        assert mend.apply(place.estate, fault, Recorder()) == ""
    kms = place.made.client("kms", MEMBER)
    arn = kms.describe_key(KeyId="alias/impound-ebs")["KeyMetadata"]["Arn"]
    text = kms.get_key_policy(KeyId=arn, PolicyName="default")["Policy"]
    assert json.dumps(json.loads(text)).count("kms:CreateGrant") == 1


def test_an_automation_role_of_audit_trusts_functions_only(place):
    iam = place.made.client("iam", AUDIT)
    iam.update_assume_role_policy(
        RoleName="aws-controltower-AuditReadOnlyRole",
        PolicyDocument=policy(
            {
                "Effect": "Allow",
                "Action": "sts:AssumeRole",
                "Principal": {"Service": "ec2.amazonaws.com"},
            }
        ),
    )
    [fault] = bad(found(place, "automation-roles"))
    assert fault.place == Place(AUDIT)
    assert "AWS Lambda" in fault.what
    assert mend.apply(place.estate, fault, Recorder()) == ""
    assert bad(found(place, "automation-roles")) == []


def test_a_chain_that_may_be_walked_is_walked(place):
    """The first role lets the responder in, the second does not trust the first."""
    first, second = "aws-controltower-AuditReadOnlyRole", "aws-controltower-ReadOnlyExecutionRole"
    audit, member = place.made.client("iam", AUDIT), place.made.client("iam", MEMBER)
    walkable = {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {
        "Service": "lambda.amazonaws.com", "AWS": role_arn(AUDIT, RESPONDER_ROLE)}}  # fmt: skip
    audit.update_assume_role_policy(RoleName=first, PolicyDocument=policy(walkable))
    assert bad(found(place, "automation-roles")) == []
    trust = {"Effect": "Allow", "Action": "sts:AssumeRole",
             "Principal": {"AWS": role_arn(AUDIT, first)},
             "Condition": {"StringEquals": {"sts:ExternalId": "nobody knows"}}}  # fmt: skip
    member.update_assume_role_policy(RoleName=second, PolicyDocument=policy(trust))
    [fault] = bad(found(place, "automation-roles"))
    assert "may not assume" in fault.what
    assert fault.place == Place(MEMBER)
    del trust["Condition"]
    member.update_assume_role_policy(RoleName=second, PolicyDocument=policy(trust))


def test_what_to_look_at(place):
    from pipeline.errors import UsageError
    from pipeline.readiness.organisation import estate

    assert place.estate.members == (MEMBER,)
    assert place.estate.regions == (REGION,)
    one = estate(place.session, [MEMBER], ["us-east-1"])
    assert (one.everywhere, one.regions) == ((AUDIT, MEMBER), ("us-east-1",))
    with pytest.raises(UsageError):
        estate(place.session, ["12"])
    place.stand.faults.add(Fault("error", service="organizations", code="AccessDenied"))
    try:
        assert "cannot be listed" in estate(place.session).unlisted
    finally:
        place.stand.faults.clear()
