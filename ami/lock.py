# SPDX-License-Identifier: Apache-2.0
"""Renew what pins the forensics image: `ami/requirements.txt`, and as root `ami/debian.lock`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from prepare import sha256

HERE = Path(__file__).resolve().parent


def python() -> None:
    """Python packages of the image: versions of `constraints.txt`, digests of what pip would take.

    What has no wheel is pinned by its source archive.
    """
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install",
         "--dry-run", "--ignore-installed", "--report", "-",
         "--constraint", HERE.parent / "constraints.txt", HERE.parent, "pip"],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    lines = []
    for each in json.loads(done.stdout)["install"]:
        name, version = each["metadata"]["name"], each["metadata"]["version"]
        if name != "impound":
            digest = each["download_info"]["archive_info"]["hashes"]["sha256"]
            lines.append(f"{name}=={version} --hash=sha256:{digest}\n")
    (HERE / "requirements.txt").write_text("".join(sorted(lines, key=str.lower)))


def debian() -> None:
    """Debian packages that a minimal Debian lacks: SHA-256, name, version."""
    sys.path.insert(0, str(HERE.parent))
    from tests.rootfs import unpack

    with tempfile.TemporaryDirectory() as root:
        unpack(Path(root))
        (Path(root) / "etc/resolv.conf").write_text(Path("/etc/resolv.conf").read_text())
        inside = ("chroot", root, "env", "LC_ALL=C", "apt-get", "-q", "-y")
        subprocess.run([*inside, "update"], check=True, stdout=subprocess.DEVNULL)
        names = (HERE / "packages").read_text().split()
        subprocess.run(
            [*inside, "install", "--no-install-recommends", "--download-only", *names],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        lines = []
        for path in (Path(root) / "var/cache/apt/archives").glob("*.deb"):
            name, version = (
                subprocess.run(
                    [*inside[:2], "dpkg-deb", "-f", f"/{path.relative_to(root)}", field],
                    check=True, stdout=subprocess.PIPE, text=True,
                ).stdout.strip() for field in ("Package", "Version")
            )  # fmt: skip
            lines.append(f"{sha256(path)} {name} {version}\n")
    (HERE / "debian.lock").write_text("".join(sorted(lines, key=lambda line: line.split()[1])))


if __name__ == "__main__":
    python()
    if os.geteuid() == 0:
        debian()
    else:
        print("ami/debian.lock is as it was: it needs root", file=sys.stderr)  # noqa: T201
