# SPDX-License-Identifier: Apache-2.0
"""Proof by packets, through the stand-in's network."""

from __future__ import annotations

import socket

import pytest

from acquisition.errors import AcquisitionError
from pipeline.config import Settings
from tests.pipeline.isolation.conftest import SOURCES

# -- proof by packets, through the stand-in's network


@pytest.fixture
def listener():
    """A port on 127.0.0.1 that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield server.getsockname()[1]


@pytest.fixture
def packets(aws, contain, web, listener):
    """A containment that probes from the forensics side, with a host behind the instance."""
    aws.attach(web.id, {22: listener, 4444: listener})

    def make(source="10.9.0.4", sources=SOURCES, **more):
        made = contain(packets=True, probe_s=2.0, **more)
        made.settings = Settings(
            aws={"isolation_sources": sources},
            ssh={"proxy": f"127.0.0.1:{aws.vantage(source)}", "source": source},
        )
        return made

    return make


def proved(world):
    return [e.data for e in world.case.ledger.events if (e.data or {}).get("step") == "prove"][-1]


def test_isolation_is_proved_by_packets(packets, world):
    done = packets(sockets=lambda: ()).isolate()
    assert (done.verdict.verdict, done.verdict.left, done.gaps) == ("isolated", (), [])
    world.case.refresh()
    assert proved(world)["verdict"] == "isolated"
    probed = [e.data for e in world.case.ledger.events if (e.data or {}).get("step") == "probe"][-1]
    assert probed["source"] == "10.9.0.4"
    assert len(probed["reached"]) == 2  # port 22 of both interfaces, and nothing else
    assert {4444, 4445, 22} < set(probed["ports"])


def test_flows_of_the_instance_are_exceptions(packets, world):
    done = packets(sockets=lambda: ("tcp 10.0.0.5:51000 203.0.113.9:443",)).isolate()
    assert done.verdict.verdict == "isolated except"
    assert done.gaps == [
        "isolated except: the host holds a flow, which may be cut by now: "
        "tcp 10.0.0.5:51000 203.0.113.9:443"
    ]


def test_nobody_who_logs_in_is_an_exception_too(packets):
    assert packets().isolate().gaps == [
        "isolated except: flows that began before: nobody logged in to look"
    ]


def test_a_login_that_fails_is_a_gap_and_the_proof_goes_on(packets):
    def flows():
        raise AcquisitionError("the host refuses the key")

    done = packets(sockets=flows).isolate()
    assert done.verdict.verdict == "isolated except"
    assert done.gaps[0] == "its flows were not looked at: the host refuses the key"


def test_a_port_that_answers_is_not_isolated(packets, web, monkeypatch):
    """Groups that read right and do not filter: what only a packet shows."""
    from pipeline.gameday.aws import network

    plain = network.begins
    monkeypatch.setattr(network, "begins",
                        lambda flow, end: flow.port in (22, 4444) or plain(flow, end))  # fmt: skip
    done = packets(sockets=lambda: ()).isolate()
    assert done.verdict.verdict == "not isolated"
    assert len(done.verdict.left) == 2
    assert all("port 4444 of" in text for text in done.verdict.left)


def test_a_machine_that_isolation_does_not_let_in_proves_nothing(packets):
    done = packets(source="10.8.0.4").isolate()
    assert done.verdict.verdict == "groups applied, not probed"
    assert done.gaps[0].endswith("10.8.0.4 is not among aws.isolation_sources")


def test_without_sources_there_is_nothing_to_prove_it_by(packets):
    done = packets(sources=()).isolate()
    assert done.gaps[0].endswith("aws.isolation_sources names no network")


def test_a_host_that_is_off_proves_nothing(packets, contain, web):
    contain().isolate()
    web.ec2.modify_instance_attribute(InstanceId=web.id, DisableApiStop={"Value": False})
    web.ec2.stop_instances(InstanceIds=[web.id], Force=True)
    done = packets().isolate()
    assert done.verdict.verdict == "groups applied, not probed"
    assert "silence proves nothing" in done.gaps[-1]
