# SPDX-License-Identifier: Apache-2.0
"""The forensics image: its Packer files, its pins, and its provisioning, which really runs."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipeline.tools import Manifest
from tests.conftest import missing, need_tool
from tests.rootfs import RootfsError, unpack

AMI = Path(__file__).parents[2] / "ami"
PINNED = re.compile(r"([A-Za-z0-9._-]+)==(\S+) --hash=sha256:([0-9a-f]{64})")


def assembled(tmp_path):
    """The main file with the IMDSv2 options in it, as `make ami` builds."""
    main, options = (AMI / "packer.pkr.hcl").read_text(), (AMI / "imdsv2.hcl").read_text()
    assert main.count("  # imdsv2.hcl is put here.\n") == 1
    path = tmp_path / "whole.pkr.hcl"
    path.write_text(main.replace("  # imdsv2.hcl is put here.\n", options))
    return path


def bare(value):
    """python-hcl2 8 leaves quotes in strings and marks blocks."""
    if isinstance(value, dict):
        return {bare(k): bare(v) for k, v in value.items() if k != "__is_block__"}
    if isinstance(value, list):
        return [bare(v) for v in value]
    return value.strip('"') if isinstance(value, str) else value


def test_packer_takes_the_main_file():
    packer = need_tool("packer")
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"),
                   "CHECKPOINT_DISABLE": "1"}  # fmt: skip
    for arguments in (("validate",), ("fmt", "-check")):
        done = subprocess.run(
            [packer, *arguments, "ami/packer.pkr.hcl"], cwd=AMI.parent, env=environment,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


def test_packer_refuses_a_misspelt_argument(tmp_path):
    packer = need_tool("packer")
    wrong = tmp_path / "wrong.pkr.hcl"
    wrong.write_text((AMI / "packer.pkr.hcl").read_text().replace("encrypt_boot", "encrypt_bot"))
    done = subprocess.run([packer, "validate", wrong], cwd=AMI.parent, capture_output=True)
    assert done.returncode == 1


def test_the_image_is_encrypted_asks_for_imdsv2_and_has_a_pinned_base(tmp_path):
    import hcl2

    with assembled(tmp_path).open() as f:
        found = bare(hcl2.load(f))
    source = found["source"][0]["amazon-ebs"]["workstation"]
    assert source["encrypt_boot"] is True
    assert all(d["encrypted"] is True for d in source["launch_block_device_mappings"])
    assert source["imds_support"] == "v2.0"
    assert source["metadata_options"][0]["http_tokens"] == "required"
    base = source["source_ami_filter"][0]
    assert base["owners"] == ["136693071363"]
    assert base["filters"]["name"] == "debian-12-amd64-*"
    assert "ami_users" not in source
    assert "ami_groups" not in source


def test_plugins_are_pinned():
    import hcl2

    with (AMI / "plugins.pkr.hcl").open() as f:
        block = bare(hcl2.load(f))["packer"][0]
    for plugin in block["required_plugins"][0].values():
        if isinstance(plugin, dict):
            assert plugin["version"].startswith("= ")


def test_python_packages_are_those_of_the_constraints_each_by_its_digest():
    constraints = dict(
        line.split("==") for line in (AMI.parent / "constraints.txt").read_text().splitlines()
    )
    versions = {canonicalize_name(n): v for n, v in constraints.items()}
    pinned = {}
    for line in (AMI / "requirements.txt").read_text().splitlines():
        match = PINNED.fullmatch(line)
        assert match, line
        pinned[canonicalize_name(match[1])] = match[2]
    assert "pip" in pinned
    needed, work = set(), ["impound"]
    while work:
        for text in importlib.metadata.requires(work.pop()) or ():
            one = Requirement(text)
            name = canonicalize_name(one.name)
            if name not in needed and (not one.marker or one.marker.evaluate({"extra": ""})):
                needed.add(name)
                work.append(name)
    assert needed <= pinned.keys(), f"make lock-ami: {sorted(needed - pinned.keys())}"
    stale = {n: v for n, v in pinned.items() if n != "pip" and versions.get(n) != v}
    assert not stale, f"make lock-ami: {stale}"


def test_debian_packages_are_pinned_by_digest():
    lines = [line.split(" ") for line in (AMI / "debian.lock").read_text().splitlines()]
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest, _, _ in lines)
    locked = {name for _, name, _ in lines}
    present = {"e2fsprogs"}  # in every Debian
    assert set((AMI / "packages").read_text().split()) - present <= locked
    assert not locked & {"openssh-server", "lvm2", "mdadm", "multipath-tools", "udisks2"}


def test_provisioning_is_sound_shell():
    done = subprocess.run(
        [need_tool("shellcheck"), AMI / "provision.sh"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


# -- it really runs


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    if os.geteuid() != 0:
        missing("the root file system needs root")
    root = tmp_path_factory.mktemp("ami") / "root"
    root.mkdir(mode=0o755)
    try:
        unpack(root)
    except RootfsError as e:
        missing(str(e))
    (root / "etc/resolv.conf").write_text(Path("/etc/resolv.conf").read_text())
    # As on a build host: no service starts, and none could reach out of here.
    (root / "usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 101\n")
    (root / "usr/sbin/policy-rc.d").chmod(0o755)
    return root


def inside(root, *command):
    """Run in the root file system, with processes and mounts of its own."""
    return subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", f"--mount-proc={root}/proc",
         "chroot", root, "env", "-i", "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
         "HOME=/root", *command],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", timeout=600,
    )  # fmt: skip


@pytest.mark.chroot
@pytest.mark.xdist_group("ami")
def test_provisioning_makes_a_workstation_that_checks_itself(place):
    if sys.version_info[:2] != (3, 11):
        missing("the image has Python 3.11")
    need_tool("unshare")
    prepared = place / "tmp/impound-ami"
    done = subprocess.run(
        [sys.executable, AMI / "prepare.py", prepared], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]

    # What was changed on its way is refused, before anything is installed.
    plan = prepared / "packages"
    kept = plan.read_text()
    plan.write_text(kept + "openssh-server\n")
    refused = inside(place, "sh", "-eu", "/tmp/impound-ami/provision.sh", "/tmp/impound-ami")
    assert refused.returncode == 1
    assert "not what was prepared" in refused.stdout
    assert not (place / "opt/impound").exists()
    plan.write_text(kept)

    made = inside(place, "sh", "-eu", "/tmp/impound-ami/provision.sh", "/tmp/impound-ami")
    assert made.returncode == 0, made.stdout[-4000:]

    manifest = Manifest.model_validate_json((place / "etc/impound/tools.json").read_bytes())
    paths = {tool.path for tool in manifest.tools}
    assert {"/usr/bin/mmls", "/usr/bin/fls", "/usr/bin/ewfacquire", "/usr/sbin/nft"} <= paths
    assert any(path.endswith("/nbd-client") for path in paths)
    assert manifest.python["boto3"]
    for folder in ("rules", "symbols"):
        assert (place / "opt/impound" / folder).is_dir()
    assert not (place / "usr/sbin/sshd").exists()

    checked = inside(place, "impound", "--json", "self-check")
    assert checked.returncode == 0, checked.stdout[-4000:]
    said = json.loads(checked.stdout)
    states = {c["check"]: c["state"] for c in said["checks"]}
    assert states["installed files"] == "ok"
    assert states["impound"] == "ok"
    assert states["tool /usr/bin/mmls"] == "ok"
    assert states["firewall"] == "ok"
    assert states["root by PARTUUID"] == "not applicable"

    # The ledger names the manifest.
    wanted = inside(place, "sha256sum", "/etc/impound/tools.json").stdout.split()[0]
    code = "from pipeline.session import tool_identity; print(tool_identity().sha256)"
    assert inside(place, "/opt/impound/bin/python", "-I", "-c", code).stdout.split() == [wanted]

    # A tool that was exchanged, a file of impound that was changed, a setting undone: each is told.
    (place / "usr/bin/mmls").write_bytes(b"#!/bin/sh\n")
    for found in (place / "opt/impound/lib").glob("python3*/site-packages/pipeline/nbd.py"):
        found.write_text(found.read_text() + "\n")
    (place / "etc/lvm/lvmlocal.conf").unlink()
    checked = inside(place, "impound", "--json", "self-check")
    assert checked.returncode == 14
    failed = {c["check"] for c in json.loads(checked.stdout)["checks"] if c["state"] == "failed"}
    assert failed == {"installed files", "impound", "tool /usr/bin/mmls", "LVM takes no evidence"}
    assert inside(place, "/opt/impound/bin/python", "-I", "-c", code).stdout.split() != [wanted]
