# SPDX-License-Identifier: Apache-2.0
"""Answers line by line: formats as the kernel and the programs write them, and what forges them."""

from __future__ import annotations

import pytest

from analysis.live import text
from tests.analysis.live_answers import BOOT_NS, stat


def read(lines):
    """Return the rows, and the numbers of the lines that are not of the format."""
    told = list(lines)
    return [row for _, row in told if row], [at for at, row in told if row is None]


STATUS = ("TracerPid:\t7\nUid:\t1000\t0\t0\t0\nGid:\t100\t100\t100\t100\n"
          "CapEff:\t000001ffffffffff\nSeccomp:\t2\nSeccomp_filters:\t1\n")  # fmt: skip


def test_process_of_proc():
    answer = f"== 9\n{stat(9, 'evil (x)')}\n/tmp/evil --a b \n{STATUS}" + (
        "/tmp/evil (deleted)\n/root\n/\n0::/init.scope\n== 10\n\n== 2\n"
        f"{stat(2, 'kthreadd')}\n\n{STATUS}/\n/\n0::/\n"
    )
    (evil, thread), unread = read(text.processes_proc(answer, BOOT_NS))
    assert unread == [], "a process that had ended is no error"
    assert (evil["comm"], evil["args"], evil["uid"], evil["euid"], evil["gid"]) == (
        "evil (x)", "/tmp/evil --a b", 1000, 0, 100)  # fmt: skip
    assert (evil["exe"], evil["cwd"], evil["root"], evil["cgroup"]) == (
        "/tmp/evil (deleted)", "/root", "/", "0::/init.scope")  # fmt: skip
    assert (evil["tracer"], evil["seccomp"], evil["capabilities"]) == (7, 2, "000001ffffffffff")
    assert (thread["args"], thread.get("exe"), thread["cwd"]) == (None, None, "/")
    assert thread["started"] == BOOT_NS + 2 * 10_000_000


def test_command_line_that_forges_a_status_does_not_change_the_user():
    forged = "x\nTracerPid:\t0\nUid:\t0\t0\t0\t0\n/bin/bash\n/\n/\n"
    answer = f"== 9\n{stat(9, 'x')}\n{forged}\n{STATUS}/tmp/x\n/\n/\n0::/\n"
    (row,), _ = read(text.processes_proc(answer, None))
    assert (row["uid"], row["exe"], row["started"]) == (1000, "/tmp/x", None)
    assert row["args"].startswith("x\nTracerPid")


def test_digest_of_a_program_counts_for_each_process_of_its_inode():
    digest = "a" * 64
    rows, unread = read(text.executables(
        f"1 8:1 {digest} /bin/sh\n7 8:1  /bin/sh (deleted)\n8 8:2  /bin/none\nforged\n"
    ))  # fmt: skip
    assert [(row["pid"], row["sha256"], row["exe"], row["exe_deleted"]) for row in rows] == [
        (1, digest, "/bin/sh", False), (7, digest, "/bin/sh", True), (8, None, "/bin/none", False)
    ]  # fmt: skip
    assert unread == [4]


def test_value_of_several_lines_is_one_variable():
    rows, unread = read(text.environment("junk\n== 5\nA=1\nF=() {\n  :\n}\n\nB=\n== 6\nx\nC=a=b\n"))
    assert [(r["pid"], r["name"], r["value"]) for r in rows] == [
        (5, "A", "1"), (5, "F", "() {\n  :\n}\n"), (5, "B", ""), (6, "", "x"),
        (6, "C", "a=b")]  # fmt: skip
    assert unread == [1]


def test_mappings():
    rows, unread = read(text.maps(
        "== 5\n7f00-7f10 rwxp 00000000 00:00 0 \n"
        "ffffffffff600000-ffffffffff601000 r-xp 00001000 fd:01 12   /tmp/a b (deleted)\nzz\n"
    ))  # fmt: skip
    assert [(r["protection"], r["path"], r["deleted"], r["inode"]) for r in rows] == [
        ("rwxp", None, False, 0), ("r-xp", "/tmp/a b", True, 12)]  # fmt: skip
    assert rows[1]["start"] == -(10 << 20)
    assert unread == [4]


def test_open_files():
    rows, unread = read(text.open_files(
        "== 5\ntotal 0\ndr-x------ 2 0 0  4 Nov 24 02:30 .\ndr-xr-xr-x 9 0 0  0 Nov 24 02:30 ..\n"
        "lr-x------ 1 0 0 64 Nov 24 02:30 0 -> /tmp/x 7 -> y (deleted)\n"
        "lrwx------ 1 0 0 64 2026-11-24 02:30 13 -> socket:[624]\n"
        "l-wx------ 1 0 0 64 Nov 24 02:30 2\n of a name with a line end\n"
    ))  # fmt: skip
    assert [(r["fd"], r["mode"], r["target"], r["deleted"], r["socket"]) for r in rows] == [
        (0, "r-", "/tmp/x 7 -> y", True, None), (13, "rw", "socket:[624]", False, 624),
        (2, "-w", None, False, None)]  # fmt: skip
    assert unread == [8]


def test_sockets_of_proc_have_owner_inode_and_state():
    rows, unread = read(text.sockets_proc(
        "== tcp\n  sl  local_address rem_address   st\n"
        "   3: 0100007F:B536 0100007F:EA95 06 00000000:00000000 03:000004BE 00000000     0"
        "        0 0 3 0000000022d3f273\n"
        "   4: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000"
        "        0 16012 1 00000000258435d2 100 0 0 10 0\n   5: torn\n== udp\n"
        "   1: 00000000:0044 00000000:0000 07 00000000:00000000 00:00000000 00000000     0"
        "        0 5 2 0 0\n== raw6\n"
        "  58: 00000000000000000000000000000000:003A 00000000000000000000000000000000:0000 07 0:0\n"
        "== unix\nwhatever\n== tcp\n   1: 00000000:1F90 00000000:0000 0A 0:0\n"
    ))  # fmt: skip
    assert [(r["protocol"], r["state"], r["local_port"], r["uid"], r["inode"]) for r in rows] == [
        ("TCP", "TIME_WAIT", 46390, 0, 0), ("TCP", "LISTEN", 8080, 1000, 16012),
        ("UDP", "UNCONNECTED", 68, 0, 5), ("RAW", "UNCONNECTED", 58, None, None)]  # fmt: skip
    assert unread == [5]


def test_sockets_of_ss():
    rows, unread = read(text.sockets(
        "Netid State  Recv-Q Send-Q Local Address:Port Peer Address:Port Process\n"
        "nl    UNCONN 0      0      rtnl:systemd/1       *   sk=0 cb=0\n"
        'u_str LISTEN 0      128    /run/a b.sock 812   * 0   users:(("sshd",pid=7,fd=3))\n'
        "u_dgr UNCONN 0      0      * 16014             * 16013 <->\n"
        'tcp   LISTEN 0      128    *:22               *:*   users:(("sshd",pid=7,fd=4),'
        '("a",pid=1,fd=5",pid=9,fd=6)) ino:624 sk:1 cgroup:/ <->\n'
        "tcp   ESTAB  0      0      [::ffff:10.0.2.15%eth0]:22  [fe80::1]:4 uid:33 ino:9 sk:2\n"
        "\t skmem:(r0)\ntcp   TIME-WAIT 0  0  127.0.0.1:46390 127.0.0.1:60053 ino:0 sk:3\n"
        "Active Internet connections (servers and established)\n"
    ))  # fmt: skip
    of_ip = [row for row in rows if row["protocol"]]
    assert [(r["family"], r["state"], r["local_address"], r["local_port"], r["uid"], r["inode"])
            for r in of_ip] == [
        ("AF_INET6", "LISTEN", "::", 22, 0, 624),
        ("AF_INET6", "ESTABLISHED", "10.0.2.15", 22, 33, 9),
        ("AF_INET", "TIME_WAIT", "127.0.0.1", 46390, 0, None)]  # fmt: skip
    assert of_ip[0]["users"] == [(7, 4, "sshd"), (9, 6, 'a",pid=1,fd=5')]
    assert [(r["family"], r["type"], r["local_address"], r["inode"]) for r in rows[:3]] == [
        ("AF_NETLINK", None, "rtnl:systemd/1", None), ("AF_UNIX", "STREAM", "/run/a b.sock", 812),
        ("AF_UNIX", "DGRAM", "*", 16014)]  # fmt: skip
    assert unread == [9]


def test_modules_of_both_lists_and_what_taints_the_kernel():
    rows, unread = read(text.modules(
        "rk 16384 1 loop, Live 0xffffffffc0000000 (OE)\nloop 1 0 - Live 0x0\nbad line\n"
        "==\nloop\nkvm\n==\n12288\n"))  # fmt: skip
    assert [(r.get("name"), r["view"], r.get("taints"), r.get("used_by")) for r in rows] == [
        ("rk", "procfs", "OE", "loop"), ("loop", "procfs", None, None),
        ("loop", "sysfs", None, None),
        ("kvm", "sysfs", None, None), (None, "", None, None)]  # fmt: skip
    assert (rows[0]["address"], rows[1]["address"], rows[-1]["tainted"]) == (
        0xFFFFFFFFC0000000 - 2**64, None, 12288)  # fmt: skip
    assert unread == [3]


def test_mounts_are_read_as_the_kernel_escapes_them():
    rows, unread = read(text.mounts(
        "36 35 98:0 /a\\040b /mnt\\012x rw,noatime master:1 shared:2 - ext3 /dev/r\\134t rw,e=c\n"
        "25 1 254:0 / / rw - ext4 /dev/vda rw\n25 1 forged\n"))  # fmt: skip
    assert [(r["root"], r["path"], r["type"], r["device"]) for r in rows] == [
        ("/a b", "/mnt\nx", "ext3", "/dev/r\\t"), ("/", "/", "ext4", "/dev/vda")]  # fmt: skip
    assert unread == [3]


PARSERS = [text.processes, text.executables, text.environment, text.maps, text.open_files,
           text.sockets_proc, text.sockets, text.modules, text.mounts]  # fmt: skip


@pytest.mark.parametrize("parser", PARSERS, ids=lambda p: p.__name__)
@pytest.mark.parametrize("hostile", [
    "", "\n" * 1000, "== 1\n" * 1000, "== tcp\n" + "9" * 5000, '("' * 50_000, "\x00\x1b[2J" * 9,
    "1 " * 50_000, "u_str a 1 1 " + "a 1 " * 50_000, "a=" * 50_000, "\\400" * 1000,
    "lr-x------ 1 0 0 64 " + "1 " * 50_000,
], ids=["empty", "line ends", "heads", "digits", "users", "controls", "numbers", "path", "equals",
        "octal", "descriptor"])  # fmt: skip
def test_hostile_text_is_read_or_counted(parser, hostile):
    for _, row in parser(hostile):
        assert row is None or row["collector"]
