# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E501 (lines are as wide as the programs print them)
"""Answers of programs: as they print them, and what a hostile one may make of them."""

from __future__ import annotations

import pytest

from analysis.live import programs
from analysis.live.text import moment
from tests.analysis.live.test_text import read

LOGINS = """\
           system boot  2026-11-24 02:27
           run-level 5  2026-11-24 02:27
LOGIN      tty1         2026-11-24 02:27               612 id=tty1
root     + pts/0        2026-11-24 02:30   .          1234 (10.0.2.2)
           pts/1        2026-11-24 02:31              1300 id=ts/1  term=0 exit=0
 02:31:00 up 4 min,  1 user,  load average: 0.66, 0.75, 0.67
USER     TTY      FROM             LOGIN@   IDLE   JCPU   PCPU WHAT
root     pts/0    10.0.2.2         02:30    1.00s  0.05s  0.01s w
root     pts/0        10.0.2.2         Tue Nov 24 02:30:11 2026   still logged in
ops      pts/1        fe80::1%eth0     Tue Nov 24 02:29:00 2026 - Tue Nov 24 02:29:30 2026  (00:00)
ops      pts/1        10.0.2.3         Mon Nov 23 02:29:00 2026 - crash  (23:58)
reboot   system boot  6.1.0-56-cloud-amd64 Tue Nov 24 02:27:16 2026   still running
shutdown system down  6.1.0-56-cloud-amd64 Tue Nov 24 02:26:16 2026 - Tue Nov 24 02:27:16 2026  (00:01)

wtmp begins Mon Nov 23 02:26:16 2026
admin    ssh:notty    198.51.100.7     Tue Nov 24 02:28:00 2026 - Tue Nov 24 02:28:00 2026  (00:00)

btmp begins Tue Nov 24 02:28:00 2026
SESSION  UID USER  SEAT  TTY
     12    0 root        pts/0
     c1 1000 ops   seat0 -

2 sessions listed.
"""


def at(text):
    return moment(f"Tue Nov 24 {text} 2026")


def test_logins_of_four_programs():
    rows, unread = read(programs.logins(LOGINS, utc=True))
    assert unread == []
    assert [(r["by"], r["kind"], r["user"], r["tty"], r["at"], r["until"]) for r in rows] == [
        ("who", "boot", None, "system boot", at("02:27:00"), None),
        ("who", "runlevel", None, "run-level 5", at("02:27:00"), None),
        ("who", "getty", "LOGIN", "tty1", at("02:27:00"), None),
        ("who", "login", "root", "pts/0", at("02:30:00"), None),
        ("who", "ended", None, "pts/1", at("02:31:00"), None),
        ("last", "login", "root", "pts/0", at("02:30:11"), None),
        ("last", "login", "ops", "pts/1", at("02:29:00"), at("02:29:30")),
        ("last", "login", "ops", "pts/1", moment("Mon Nov 23 02:29:00 2026"), None),
        ("last", "boot", "reboot", "system boot", at("02:27:16"), None),
        ("last", "shutdown", "shutdown", "system down", at("02:26:16"), at("02:27:16")),
        ("lastb", "failed", "admin", "ssh:notty", at("02:28:00"), at("02:28:00")),
        ("loginctl", "session", "root", "pts/0", None, None),
        ("loginctl", "session", "ops", None, None, None),
    ]  # fmt: skip
    assert (rows[3]["pid"], rows[3]["host"]) == (1234, "10.0.2.2")
    assert rows[6]["host"] == "fe80::1%eth0"


def test_time_of_a_host_in_another_zone_is_not_certain():
    rows, _ = read(programs.logins(LOGINS, utc=False))
    assert {(row["at"], row["until"]) for row in rows} == {(None, None)}
    rows, _ = read(programs.logins("root + pts/0  Nov 24 02:30 . 12 (h)\n", utc=True))
    assert [row["at"] for row in rows] == [None], "without a year"


def test_login_of_no_known_file_is_not_taken_for_one():
    """Where `last` was cut, nobody knows whether a line is of wtmp or of btmp."""
    cut = LOGINS[: LOGINS.index("\nwtmp")]
    rows, unread = read(programs.logins(cut, utc=True))
    assert {row["by"] for row in rows} == {"who"}
    assert len(unread) == 5


SCHEDULE = """\
NEXT                        LEFT          LAST                        PASSED       UNIT                         ACTIVATES
Tue 2026-11-24 03:00:00 UTC 28min left    Tue 2026-11-24 02:28:00 UTC 4min ago     apt-daily.timer              apt-daily.service
-                           -             -                           -            snapd.snap-repair.timer      snapd.service
Wed 2026-11-25 00:00:00 CET 21h left      n/a                         n/a          logrotate.timer              logrotate.service

3 timers listed.
== /etc/crontab
SHELL=/bin/sh
# m h dom mon dow user command
17 *\t* * *\troot\tcd / && run-parts --report /etc/cron.hourly

== /etc/cron.d/x y
@reboot nobody /tmp/x
* * * * root
== /var/spool/cron/crontabs/ops
*/5 0-6,8 * jan mon /home/ops/x -a

1\tTue Nov 24 03:00:00 2026 a root
"""


def test_timers_crontabs_and_jobs():
    rows, unread = read(programs.schedule(SCHEDULE, utc=True))
    assert [(r["kind"], r["name"], r.get("user"), r.get("command")) for r in rows] == [
        ("timer", "apt-daily.timer", None, "apt-daily.service"),
        ("timer", "snapd.snap-repair.timer", None, "snapd.service"),
        ("timer", "logrotate.timer", None, "logrotate.service"),
        ("cron", "/etc/crontab", "root", "cd / && run-parts --report /etc/cron.hourly"),
        ("cron", "/etc/cron.d/x y", "nobody", "/tmp/x"),
        ("cron", "/var/spool/cron/crontabs/ops", "ops", "/home/ops/x -a"),
        ("at", "1", "root", None),
    ]  # fmt: skip
    assert [row.get("next") for row in rows[:3]] == [at("03:00:00"), None, None]
    assert rows[0]["last"] == at("02:28:00")
    assert rows[-1]["next"] == at("03:00:00")
    assert rows[5]["schedule"] == "*/5 0-6,8 * jan mon"
    assert unread == [14], "a line without a command"


def test_units_and_their_files():
    rows, unread = read(programs.services(
        "  sshd.service loaded active running OpenSSH server daemon\n"
        "● x.service    not-found inactive dead x.service\n"
        "sshd.service enabled enabled\na@.service alias -\ny.timer static\nnonsense\n"))  # fmt: skip
    assert [(r["name"], r.get("active"), r.get("enabled"), r.get("preset")) for r in rows] == [
        ("sshd.service", "active", None, None), ("x.service", "inactive", None, None),
        ("sshd.service", None, "enabled", "enabled"), ("a@.service", None, "alias", None),
        ("y.timer", None, "static", None)]  # fmt: skip
    assert unread == [6]


CONTAINERS = """\
CONTAINER ID   IMAGE          COMMAND                  CREATED        STATUS                    PORTS                NAMES
0123456789ab   nginx:latest   "/docker-entrypoint.…"   2 hours ago    Up 2 hours                0.0.0.0:80->80/tcp   web
cdef           évil           "x"                      3 hours ago    Exited (0) 1 hour ago                          b
CONTAINER           IMAGE               CREATED             STATE               NAME                ATTEMPT             POD ID
aa                  img                 2 days ago          Running             c1                  0                   p1
CONTAINER    IMAGE                      RUNTIME
cc           docker.io/library/a:1      io.containerd.runc.v2
"""


def test_containers_of_three_programs():
    rows, unread = read(programs.containers(CONTAINERS))
    assert unread == []
    assert [(r["by"], r["container"], r["image"], r.get("name"), r.get("status")) for r in rows] == [
        ("docker or podman", "0123456789ab", "nginx:latest", "web", "Up 2 hours"),
        ("docker or podman", "cdef", "évil", "b", "Exited (0) 1 hour ago"),
        ("crictl", "aa", "img", "c1", "Running"),
        ("ctr", "cc", "docker.io/library/a:1", None, None),
    ]  # fmt: skip
    assert (rows[0]["ports"], rows[1]["ports"], rows[2].get("pod")) == (
        "0.0.0.0:80->80/tcp", None, "p1")  # fmt: skip


def logins(text):
    return programs.logins(text, utc=True)


def schedule(text):
    return programs.schedule(text, utc=True)


@pytest.mark.parametrize("parser", [logins, schedule, programs.services, programs.containers],
                         ids=lambda p: p.__name__)  # fmt: skip
@pytest.mark.parametrize("hostile", [
    "", "\n" * 100, "CONTAINER\n \x00\n", "CONTAINER ID\n" + " x" * 50_000, "== /" + "a" * 50_000,
    "== /a\n" + "* " * 50_000, "- " * 50_000 + ".timer", "a" * 50_000, " " * 50_000 + "x",
    "a b " + "Tue Nov 24 02:28:00 2026 " * 5_000, "SESSION UID\n" + "1 " * 50_000,
], ids=["empty", "line ends", "head", "no columns", "file", "stars", "dashes", "word", "blanks",
        "times", "session"])  # fmt: skip
def test_hostile_text_is_read_or_counted(parser, hostile):
    for _, row in parser(hostile):
        assert row is None or row["collector"]
