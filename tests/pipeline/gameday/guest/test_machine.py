# SPDX-License-Identifier: Apache-2.0
"""The practice machine as it runs."""

from __future__ import annotations

import subprocess

import pytest

from pipeline.gameday.guest.build import SUDO_PASSWORD

pytestmark = [pytest.mark.guest, pytest.mark.xdist_group("guest")]
PAGE = 4096


def ssh(guest, command, user="responder", stdin=""):
    """Run a command by the OpenSSH client, which accepts the machine's host key only."""
    known = guest.folder / "known_hosts"
    known.write_text(f"[127.0.0.1]:{guest.port()} {guest.host_key}\n")
    return subprocess.run(
        ["ssh", "-F", "none", "-i", guest.key, "-p", str(guest.port()),
         "-o", f"UserKnownHostsFile={known}", "-o", "StrictHostKeyChecking=yes",
         "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", f"{user}@127.0.0.1", command],
        input=stdin, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_root_reads_memory_and_sees_what_was_planted(guest):
    plant = f"/proc/{guest.truth['pids']['plant']}"
    script = (
        'head -c 4 /proc/kcore; grep -c "System RAM" /proc/iomem; cat /proc/version; '
        f'tr "\\0" " " < {plant}/cmdline; echo; readlink {plant}/exe; ss -Htlnp; ls /tmp/.x'
    )
    done = ssh(guest, f"sudo -n sh -c '{script}'")
    assert done.stderr == ""
    planted = guest.truth["processes"]["plant"]
    assert done.stdout.startswith("\x7fELF2\n")
    assert guest.truth["version"] in done.stdout
    assert " ".join(planted["argv"]) in done.stdout
    assert f"{planted['executable']} (deleted)" in done.stdout
    assert 'users:(("kdevtmpfsi"' in done.stdout
    assert "loot" not in done.stdout.rpartition("LISTEN")[2]


def test_what_was_planted_is_in_the_memory_seen_from_outside(guest, tmp_path):
    memory = guest.dump(tmp_path / "memory").read_bytes()
    assert len(memory) == guest.memory_mib << 20
    for what, mark in guest.truth["memory"].items():
        assert mark.encode() in memory, what


def test_nothing_changes_while_it_stands_still(guest, tmp_path):
    with guest.halted():
        guest._monitor.execute("pmemsave", val=0, size=16 << 20, filename=str(tmp_path / "a"))
        guest._monitor.execute("pmemsave", val=0, size=16 << 20, filename=str(tmp_path / "b"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert ssh(guest, "true").returncode == 0


def test_users_may_do_what_they_shall(guest):
    careful = ssh(guest, "sudo -n id || sudo -S -p '' id -u", "careful", f"{SUDO_PASSWORD}\n")
    assert (careful.returncode, careful.stdout) == (0, "0\n")
    assert "a password is required" in ssh(guest, "sudo -n id", "plain").stderr
    assert ssh(guest, "true", "root").returncode == 255


def test_a_pushed_key_serves_while_it_is_valid(guest, tmp_path):
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True)
    own, guest.key = guest.key, other
    try:
        assert ssh(guest, "true").returncode == 255
        guest.authorize("responder", other.with_suffix(".pub").read_text(), -1)
        assert ssh(guest, "true").returncode == 255
        guest.authorize("responder", other.with_suffix(".pub").read_text(), 60)
        assert ssh(guest, "true").returncode == 0
    finally:
        guest.key = own


def test_it_reaches_no_network(guest):
    tried = ssh(guest, "timeout 3 bash -c 'exec 3<>/dev/tcp/10.0.2.2/22' && echo reached")
    assert "reached" not in tried.stdout


def test_lockdown_and_hidden_pointers(boot_guest):
    with boot_guest(
        append="lockdown=confidentiality sysctl.kernel.kptr_restrict=2 "
        "impound.sshd=MaxSessions:1 impound.requiretty"
    ) as locked:
        root = ssh(locked, "cat /proc/sys/kernel/kptr_restrict; sudo -n cat /proc/kcore")
        assert root.stdout == "2\n"
        assert "you must have a tty" in root.stderr
        # with a terminal there is root, and still no memory
        told = ssh(locked, "script -qec 'sudo -n head -c 4 /proc/kcore' /dev/null")
        assert "Operation not permitted" in told.stdout


def test_five_levels_of_page_tables_and_a_reset(boot_guest):
    with boot_guest(la57=True) as wide:
        note = "sudo -n head -c 65536 /proc/kcore | tr -c '[:print:]' '\\n'"
        assert "NUMBER(pgtable_l5_enabled)=1" in ssh(wide, note).stdout
        version = wide.truth["version"]
        wide.reboot()
        assert wide.truth["version"] == version
        assert "NUMBER(pgtable_l5_enabled)=1" in ssh(wide, note).stdout
