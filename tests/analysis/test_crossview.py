# SPDX-License-Identifier: Apache-2.0
"""What methods disagree on, and what that is said to mean."""

from __future__ import annotations

import json

import pytest

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


@pytest.mark.parametrize(
    ("asked", "started", "severity", "explanation"),
    [
        (100, 50, "high", "hidden"),  # asked before memory was read, and it ran then
        (100, 110, "info", "race"),
        (400, 50, "medium", "exit or hidden"),  # asked after
        (400, 250, "info", "exit"),
        (100, None, "high", "race or hidden"),
    ],
)
def test_time_tells_the_hidden_from_the_race_and_the_exit(asked, started, severity, explanation):
    evil = {**task(66), "started": started and started * 10**9}
    views = {"pslist": [task(1), evil], "live": [task(1)]}
    times = crossview.Times(asked * 10**9, (200 * 10**9, 300 * 10**9))
    (claim,) = crossview.processes(views, times)
    assert (claim.rule, claim.severity, claim.explanation) == (
        "process.not-live", severity, explanation)  # fmt: skip


def test_what_is_missing_is_not_surely_hidden_where_nobody_knows_when_reading_began():
    views = {"pslist": [task(1), {**task(66), "started": 10**9}], "live": [task(1)]}
    times = crossview.Times(100 * 10**9, (200 * 10**9, 200 * 10**9), began=False)
    (claim,) = crossview.processes(views, times)
    assert (claim.severity, claim.explanation) == ("high", "hidden or exit")
    assert "is not known" in claim.reason


def test_ps_that_was_replaced():
    old, new = {**task(66), "started": 10**9}, {**task(90), "started": 99 * 10**9}
    views = {"live": [task(1), old, new], "live-ps": [task(1)]}
    times = crossview.Times(100 * 10**9, (0, 1))
    assert rules(crossview.processes(views, times)) == [("process.not-in-ps", 66)]
    assert len(crossview.processes(views)) == 2


def test_process_that_one_of_two_live_lists_has_is_not_hidden_from_both():
    views = {"pslist": [task(1), task(66)], "live": [task(1)], "live-ps": [task(1), task(66)]}
    assert crossview.processes(views) == []


def socket(port, state="LISTEN", netns=1, remote=("0.0.0.0", 0), local="0.0.0.0"):
    return {"Family": "AF_INET", "NetNS": netns, "Proto": "TCP", "State": state, "PID": 5,
            "Source Addr": local, "Source Port": str(port), "Destination Addr": remote[0],
            "Destination Port": str(remote[1])}  # fmt: skip


def test_sockets_that_the_system_did_not_list():
    live = [
        {"protocol": "TCP", "state": "LISTEN", "local": ("0.0.0.0", 22), "remote": ("0.0.0.0", 0)},
        {"protocol": "TCP", "state": "ESTABLISHED", "local": ("::ffff:1.2.3.4", 22),
         "remote": ("5.6.7.8", 9)},
    ]  # fmt: skip
    held = [socket(22), socket(22, "ESTABLISHED", remote=("5.6.7.8", 9), local="1.2.3.4"),
            socket(4444), socket(4444), socket(80, netns=7), socket(81, "CLOSE")]  # fmt: skip
    (claim,) = crossview.live_sockets(held, live)
    assert rules([claim]) == [("socket.not-live", 5)]
    assert "TCP 0.0.0.0:4444" in claim.title
    assert crossview.live_sockets([], live) == []


def test_modules_that_the_system_did_not_list():
    claims = crossview.live_modules(["loop", "rk"], ["loop", "new"])
    assert [(c.rule, c.rows[0]["name"]) for c in claims] == [
        ("module.not-live", "rk"), ("module.only-live", "new")]  # fmt: skip
    assert all("race" in c.reason for c in claims[:1])


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


def test_driver_of_windows_outside_the_list_is_judged_by_its_object():
    listed = [{"Base": 1, "Name": "a.sys"}]
    scanned = [{"Base": n, "Name": name} for n, name in ((1, "a.sys"), (2, "b.sys"), (3, "c.sys"),
                                                         (3, "c.sys"), (0, ""))]  # fmt: skip
    claims = crossview.drivers(listed, scanned, [{"Start": 3, "Driver Name": None, "Name": "c"}])
    assert [(c.severity, c.explanation, c.address) for c in claims] == [
        ("medium", "unloaded or hidden", 2), ("high", "hidden or race", 3)]  # fmt: skip
    assert "driver object c still starts in it" in claims[1].reason


def test_mapped_executable_that_no_list_of_the_loader_has_is_told():
    row = {"Pid": 4, "Process": "x", "Base": 1, "MappedPath": "\\a.dll", "InLoad": False,
           "InInit": False, "InMem": False}  # fmt: skip
    claims = crossview.unlinked([row, {**row, "InMem": True}, {**row, "MappedPath": None}])
    assert [(c.rule, c.severity, c.pid) for c in claims] == [("image.unlinked", "low", 4)]


def test_process_of_windows_that_ended_is_not_hidden():
    row = {"pid": 8, "comm": "x", "address": 1, "state": "exited"}
    (claim,) = crossview.processes({"pslist": [], "psscan": [row]})
    assert claim.rule == "process.ended"
