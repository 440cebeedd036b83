# SPDX-License-Identifier: Apache-2.0
"""Peers that flow logs name."""

from __future__ import annotations

import pytest

from pipeline.gameday.aws.accounts import MEMBER
from pipeline.gameday.aws.seed import CALLED, FLOW_LOGS, SERVED, flow
from pipeline.journal import LateError
from tests.pipeline.isolation.conftest import PEER, deny, interface_of

# -- peers that flow logs name


def denied(web):
    return sorted((e["CidrBlock"], e["Egress"]) for e in web.entries()
                  if e["RuleAction"] == "deny" and e["RuleNumber"] < 32767)  # fmt: skip


def test_whom_it_talked_to_is_cut_without_being_named(contain, web):
    done = contain(peers=()).isolate()
    cut = (f"{CALLED}/32", f"{SERVED}/32")
    assert denied(web) == sorted((c, way) for c in cut for way in (True, False))
    [called, served] = done.document()["peers"]
    assert (called["address"], called["opened"], called["kind"]) == (CALLED, True, "peer")
    assert (served["address"], served["opened"]) == (SERVED, False)
    numbers = {e["CidrBlock"]: e["RuleNumber"] for e in web.entries() if not e["Egress"]}
    assert numbers[cut[0]] < numbers[cut[1]]


def test_release_removes_the_entries_of_observed_peers(contain, web):
    before = web.entries()
    contain(peers=()).isolate()
    done = contain(peers=()).release()
    assert web.entries() == before
    assert [u.restored for u in done if u.attribute.kind == "acl-entry"] == ["exact"] * 4


@pytest.mark.chaos
def test_peers_are_looked_for_after_the_cut(contain, aws):
    contain().isolate()
    order = [c.operation for c in aws.calls()]
    asked = order.index("FilterLogEvents")
    assert {"ModifyNetworkInterfaceAttribute", "PutRolePolicy", "DisassociateAddress"} <= set(
        order[:asked]
    )


@pytest.mark.chaos
def test_a_private_peer_is_named_and_not_cut(contain, web, aws):
    interface, own = interface_of(web)
    flow(aws.client("logs", MEMBER), interface, own, "10.77.0.9", 50_000, 5432)
    done = contain(peers=()).isolate()
    [gap] = [g for g in done.gaps if "10.77.0.9" in g]
    assert "--peer" in gap
    assert not [c for c, _ in denied(web) if c.startswith("10.77.")]


@pytest.mark.chaos
def test_responders_are_no_peers(contain, web, aws):
    interface, own = interface_of(web)
    flow(aws.client("logs", MEMBER), interface, "10.9.0.5", own, 50_000, 22)
    done = contain(peers=()).isolate()
    assert "10.9.0." not in str(done.document()["peers"]) + str(done.gaps)


@pytest.mark.chaos
def test_a_peer_of_the_second_interface(contain, web, aws):
    interface, own = interface_of(web, 1)
    flow(aws.client("logs", MEMBER), interface, own, "192.0.2.9", 50_000, 80)
    contain(peers=()).isolate()
    assert ("192.0.2.9/32", True) in denied(web)


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"age": 7200.0}, "hold no accepted flow"),
        ({"action": "REJECT"}, "hold no accepted flow"),
    ],
)
def test_a_log_that_holds_nothing_is_no_proof_of_no_peer(contain, web, aws, change, said):
    logs = aws.client("logs", MEMBER)
    logs.delete_log_group(logGroupName=FLOW_LOGS)
    logs.create_log_group(logGroupName=FLOW_LOGS)
    interface, own = interface_of(web)
    flow(logs, interface, own, "192.0.2.9", 50_000, 80, **change)
    done = contain(peers=()).isolate()
    assert [g for g in done.gaps if said in g]
    assert denied(web) == []


def test_without_flow_logs_the_plan_says_that_peers_are_not_known(contain, web):
    held = [f["FlowLogId"] for f in web.ec2.describe_flow_logs()["FlowLogs"]]
    web.ec2.delete_flow_logs(FlowLogIds=held)
    assert [g for g in contain(peers=()).plan().gaps if "has no flow logs" in g]
    assert [g for g in contain(peers=()).isolate().gaps if "has no flow logs" in g]


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("service", "operation", "right"),
    [("ec2", "DescribeFlowLogs", "ec2:DescribeFlowLogs"),
     ("logs", "FilterLogEvents", "logs:FilterLogEvents")],
)  # fmt: skip
def test_without_the_right_to_read_flow_logs(contain, web, aws, service, operation, right):
    deny(aws, operation, service)
    done = contain().isolate()
    assert [g for g in done.gaps if right in g]
    assert done.verdict.verdict == "groups applied, not probed"
    assert [c for c, _ in denied(web)] == [PEER, PEER]


@pytest.mark.chaos
def test_flow_logs_that_give_no_answer_keep_nothing_waiting(contain, web, monkeypatch):
    def late(_seconds, _call):
        raise LateError("late")

    monkeypatch.setattr("pipeline.sightings.within", late)
    done = contain().isolate()
    assert [g for g in done.gaps if "no peer is known" in g]
    assert done.verdict.verdict == "groups applied, not probed"


@pytest.mark.chaos
def test_more_peers_than_an_acl_has_room_for(contain, web, aws):
    interface, own = interface_of(web)
    logs = aws.client("logs", MEMBER)
    for n in range(20):
        flow(logs, interface, f"192.0.2.{n}", own, 50_000, 443)
    done = contain(peers=()).isolate()
    entries = [e for e in web.entries() if e["Egress"]]
    assert len(entries) == 20
    assert any(e.get("CidrBlock") == f"{CALLED}/32" for e in entries)
    assert [g for g in done.gaps if "no free egress rule" in g]
    contain().release()
    assert denied(web) == []
