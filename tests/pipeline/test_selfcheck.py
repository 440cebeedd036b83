# SPDX-License-Identifier: Apache-2.0
"""Self-check: one test a defect, one for the healthy state; unknown is not failed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pipeline import selfcheck, session, tools
from pipeline.errors import ConfigError
from pipeline.installation import Installation
from pipeline.selfcheck import Check, clock, exit_code, hardening, judged, running, tools_match

AMI = Path(__file__).parents[2] / "ami"


def test_files_of_the_wheel_are_well():
    assert judged(Installation("equal", files=3)).state == "ok"


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"changed": ("../../bin/impound",)}, "../../bin/impound differs"),
        ({"missing": ("acquisition/a.py",)}, "acquisition/a.py is missing"),
        ({"extra": ("analysis/extra.py",)}, "analysis/extra.py was added"),
    ],
)
def test_a_file_that_is_not_the_wheels_fails(found, said):
    check = judged(Installation("different", **found))
    assert (check.state, said in check.text) == ("failed", True)
    assert check.fix


def test_what_cannot_be_compared_is_unknown():
    assert judged(Installation("unknown", "no RECORD")).state == "unknown"


def test_an_editable_installation_is_unknown_and_says_so():
    found = selfcheck.installed()
    assert (found.state, "editable" in found.text) == ("unknown", True)


# -- the tools of a workstation


@pytest.fixture
def manifest(tmp_path, monkeypatch):
    path = tmp_path / "RECORD"
    path.write_text("list")
    monkeypatch.setattr(tools, "record_path", lambda: path)
    tool = tools.File(path="/usr/bin/mmls", package="sleuthkit", version="4", sha256="a" * 64)
    own = tools.Impound(
        version="1", sha256=tools.installed_digest(), record_sha256=tools.file_digest(path)
    )
    return tools.Manifest(format=1, made="2026-01-01T00:00:00Z", system="Debian", impound=own,
                          tools=(tool,), python={})  # fmt: skip


def states(checks):
    return {c.name: c.state for c in checks}


def denied(_path):
    raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize(
    ("read", "state"),
    [
        (lambda _: "a" * 64, "ok"), (lambda _: "b" * 64, "failed"), (lambda _: None, "failed"),
        (denied, "unknown"),
    ],
)  # fmt: skip
def test_a_tool_is_equal_exchanged_missing_or_unreadable(manifest, read, state):
    assert states(tools_match(manifest, read)) == {"impound": "ok", "tool /usr/bin/mmls": state}


def test_another_impound_than_that_of_the_image_fails(manifest):
    other = manifest.model_copy(
        update={"impound": manifest.impound.model_copy(update={"sha256": "0" * 64})}
    )
    assert states(tools_match(other, lambda _: "a" * 64))["impound"] == "failed"


def test_a_changed_list_of_files_fails(manifest):
    tools.record_path().write_text("another")
    assert states(tools_match(manifest, lambda _: "a" * 64))["impound"] == "failed"


# -- custody events name the manifest


def written(manifest, tmp_path):
    path = tmp_path / "tools.json"
    path.write_text(manifest.model_dump_json())
    return path


def test_events_name_the_manifest_of_a_workstation(manifest, tmp_path):
    path = written(manifest, tmp_path)
    assert session.tool_identity(path).sha256 == tools.file_digest(path)


def test_events_name_the_installed_files_elsewhere(tmp_path):
    assert session.tool_identity(tmp_path / "none").sha256 == tools.installed_digest()


def test_a_manifest_that_does_not_fit_is_not_named(manifest, tmp_path):
    other = manifest.model_copy(
        update={"impound": manifest.impound.model_copy(update={"sha256": "0" * 64})}
    )
    own = tools.installed_digest()
    assert session.tool_identity(written(other, tmp_path)).sha256 == own
    damaged = tmp_path / "tools.json"
    damaged.write_text("{")
    assert session.tool_identity(damaged).sha256 == own
    with pytest.raises(ConfigError, match="damaged"):
        tools.read(damaged)


# -- hardening


@pytest.fixture
def hard(tmp_path):
    """A root file system as provisioning leaves it, its files those of the image."""
    for source in (AMI / "files").rglob("*"):
        if source.is_file():
            path = tmp_path / source.relative_to(AMI / "files")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(source.read_bytes())
    for name in ("etc/udev/rules.d/64-md-raid-assembly.rules", "etc/udev/rules.d/69-lvm.rules",
                 "etc/systemd/system/multipathd.service", "etc/systemd/system/udisks2.service",
                 "etc/systemd/system-generators/systemd-gpt-auto-generator",
                 "etc/systemd/system/sysinit.target.wants/nftables.service"):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to("/dev/null")
    return tmp_path


def test_what_the_image_has_is_well(hard):
    assert set(states(hardening(hard)).values()) == {"ok"}


def install_sshd(root):
    (root / "usr/sbin").mkdir(parents=True)
    (root / "usr/sbin/sshd").touch()


def change(path, old, new):
    def edit(root):
        text = (root / path).read_text()
        assert old in text
        (root / path).write_text(text.replace(old, new))

    return edit


@pytest.mark.parametrize(
    ("spoil", "check"),
    [
        (install_sshd, "no SSH server"),
        (change("etc/nftables.conf", "policy drop", "policy accept"), "firewall"),
        (lambda r: (r / "etc/systemd/system/sysinit.target.wants/nftables.service").unlink(),
         "firewall"),
        (change("etc/lvm/lvmlocal.conf", "[]", '["vg0"]'), "LVM takes no evidence"),
        (change("etc/mdadm/mdadm.conf", "AUTO -all", "AUTO +all"), "md takes no evidence"),
        (change("etc/multipath.conf", "devnode", "#devnode"), "multipath takes no evidence"),
        (lambda r: (r / "etc/udev/rules.d/69-lvm.rules").unlink(), "nothing mounts by itself"),
    ],
)  # fmt: skip
def test_each_setting_undone_fails(hard, spoil, check):
    spoil(hard)
    found = states(hardening(hard))
    assert {name for name, state in found.items() if state != "ok"} == {check}
    assert found[check] == "failed"


GOOD = {
    "cmdline": "root=PARTUUID=0a-0b ro raid=noautodetect systemd.gpt_auto=0",
    "ruleset": "chain input { type filter hook input priority filter; policy drop; }",
}


def test_a_running_workstation_is_judged():
    assert set(states(running(GOOD)).values()) == {"ok"}
    assert states(running(GOOD | {"ruleset": ""}))["firewall is loaded"] == "failed"
    assert states(running(GOOD | {"ruleset": None}))["firewall is loaded"] == "unknown"
    assert states(running(GOOD | {"cmdline": "root=/dev/sda1"})) == {
        "root by PARTUUID": "failed", "no partition by its type": "failed",
        "firewall is loaded": "ok",
    }  # fmt: skip
    assert set(states(running(None)).values()) == {"not applicable"}


@pytest.mark.parametrize(
    ("said", "booted", "state"),
    [
        ((0, 500), True, "ok"), ((0x40, 500), True, "failed"), ((0, 2_000_000), True, "failed"),
        ((0x40, 500), None, "unknown"), (None, True, "unknown"),
        ((0x40, 0), False, "not applicable"),
    ],
)  # fmt: skip
def test_the_clock(said, booted, state):
    assert clock(said, booted).state == state


def test_the_kernel_says_how_its_clock_is():
    status, error = selfcheck._kernel_clock()
    assert status >= 0
    assert error >= 0


# -- the command


def test_unknown_is_a_gap_and_failed_is_not_ready():
    ok, unknown, failed = (Check("x", s, "") for s in ("ok", "unknown", "failed"))
    assert [exit_code(c) for c in ([ok], [ok, unknown], [ok, unknown, failed])] == [0, 3, 14]


def test_the_command_prints_a_table_and_json(impound, monkeypatch):
    found = [Check("a", "ok", "fine"), Check("b", "failed", "evil\x1b[2J", "mend it")]
    monkeypatch.setattr("pipeline.selfcheck.look", lambda: found)
    plain = impound("self-check")
    assert plain.code == 14
    assert "\x1b" not in plain.out
    assert re.search(r"failed +b +evil", plain.out)
    assert "b: mend it" in plain.out
    said = impound("self-check", "--json")
    assert (said.code, said.json["ready"]) == (14, False)
    assert said.json["checks"] == [c.document() for c in found]


def test_a_damaged_manifest_fails(tmp_path):
    path = tmp_path / "tools.json"
    path.write_text(json.dumps({"format": 2}))
    found = selfcheck.look(tmp_path, path)
    assert exit_code(found) == 14
    assert states(found)["tools"] == "failed"


def test_this_installation_is_looked_at(tmp_path):
    found = selfcheck.look(tmp_path)
    assert states(found)["tools"] == "not applicable"
    assert "failed" not in states(found).values()
