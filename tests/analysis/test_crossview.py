# SPDX-License-Identifier: Apache-2.0
"""What methods disagree on, and what that is said to mean."""

from __future__ import annotations

import json

from analysis import crossview
from analysis.schema import FINDINGS, SEVERITIES


def task(pid, comm="x", state=None):
    return {"pid": pid, "comm": comm, "address": pid * 4096, "state": state}


def rules(claims):
    for claim in claims:
        assert claim.severity in SEVERITIES
        assert set(claim.row()) <= set(FINDINGS.names)
        json.loads(claim.row()["rows"])
    return sorted((claim.rule, claim.pid) for claim in claims)


def test_views_that_agree_say_nothing():
    views = {"pslist": [task(1), task(2)], "pidhashtable": [task(2), task(1)],
             "psscan": [task(1, state="TASK_RUNNING"), task(2)]}  # fmt: skip
    assert crossview.processes(views) == []


def test_task_unlinked_from_the_list_is_hidden():
    claims = crossview.processes({"pslist": [task(1)], "pidhashtable": [task(1), task(66, "evil")]})
    assert rules(claims) == [("process.hidden", 66)]
    assert "race" in claims[0].reason
    assert "rootkit" in claims[0].reason


def test_task_that_cannot_be_found_by_pid():
    assert rules(
        crossview.processes({"pslist": [task(1), task(7)], "pidhashtable": [task(1)]})
    ) == [("process.unhashed", 7)]


def test_scan_tells_the_ended_from_the_hidden():
    scanned = [task(1), task(8, state="EXIT_DEAD"), task(9, state="TASK_RUNNING")]
    views = {"pslist": [task(1)], "pidhashtable": [task(1)], "psscan": scanned}
    assert rules(crossview.processes(views)) == [("process.ended", 8), ("process.hidden", 9)]


def test_method_that_failed_hides_nothing():
    assert crossview.processes({"pidhashtable": [task(1)], "psscan": [task(1), task(2)]}) == []
    assert crossview.processes({"pslist": [task(1)]}) == []


def test_live_response_beside_memory():
    views = {"pslist": [task(1), task(66)], "pidhashtable": [task(1), task(66)],
             "live": [task(1), task(500, "ps")]}  # fmt: skip
    assert rules(crossview.processes(views)) == [
        ("process.not-live", 66),
        ("process.only-live", 500),
    ]


def test_module_that_is_not_in_every_list():
    row = {"Name": "rk", "Address": 5, "In procfs": False, "In sysfs": True, "In scan": True}
    (claim,) = crossview.modules([row, {**row, "Name": "ok", "In procfs": True}])
    assert claim.rule == "module.hidden"
    assert "sysfs, scan" in claim.reason


def test_hooks_are_told_from_boot_code():
    good = {"Index": 0, "Handler Address": 50, "Handler Symbol": "__x64_sys_read"}
    bad = {"Index": 1, "Handler Address": 500, "Handler Symbol": None}
    assert rules(crossview.hooks("syscall", [good, bad], (0, 100))) == [("hook.syscall", None)]
    assert rules(crossview.hooks("idt", [{"Index": 18, "Address": 60, "Symbol": None,
                 "Module": None}], (0, 100))) == [("unnamed.idt", None)]  # fmt: skip
    assert rules(crossview.hooks("netfilter", [{"Proto": "IPV4", "Is Hooked": "False"}])) == []
    assert rules(crossview.hooks("netfilter", [{"Proto": "IPV4", "Is Hooked": "True"}])) == [
        ("hook.netfilter", None)
    ]


def test_sockets_without_an_owner():
    ends = {"Proto": "TCP", "Source Addr": "1.2.3.4", "Source Port": "1", "Destination Addr": "::",
            "Destination Port": "0", "State": "LISTEN"}  # fmt: skip
    assert crossview.sockets([ends], [ends]) == []
    assert crossview.sockets([], [{**ends, "State": "CLOSE"}]) == []
    assert rules(crossview.sockets([], [ends])) == [("socket.unowned", None)]


def test_injected_and_spoofed():
    injected = {"PID": 5, "Process": "p", "Start": 4096, "Protection": "rwx", "Disasm": "x" * 5000}
    assert rules(crossview.injected([injected])) == [("memory.injected", 5)]
    row = {"PID": 5, "Comm": "p", "Comm_Spoofed": True, "Cmdline_Spoofed": False,
           "Exe_Deleted": "True"}  # fmt: skip
    (claim,) = crossview.spoofed([row, {**row, "Comm_Spoofed": False, "Exe_Deleted": "False"}])
    assert claim.severity == "medium"


def test_many_rows_do_not_make_a_huge_finding():
    claim = crossview.Claim("r", "low", "t", "r", "e", rows=[{"x": "y" * 3000}] * 50)
    assert len(claim.row()["rows"]) < 40_000
