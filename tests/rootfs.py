# SPDX-License-Identifier: Apache-2.0
"""A minimal Debian as a tarball, made once by debootstrap and kept by the hash of its recipe.

unpack(folder)    # as root; about a second once the tarball is there

It lies in `$XDG_CACHE_HOME/impound-tests/`, outside the tree; a changed recipe makes another one.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

RECIPE = {
    "release": "bookworm",
    "variant": "minbase",
    "include": ["ca-certificates"],
    "format": 1,
}


class RootfsError(RuntimeError):
    """The tarball cannot be made; the text says why."""


def recipe_hash() -> str:
    """What names the tarball: changes whenever its recipe does."""
    return hashlib.sha256(json.dumps(RECIPE, sort_keys=True).encode()).hexdigest()[:16]


def cache() -> Path:
    """Folder of what tests keep from run to run."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "impound-tests"


def tarball() -> Path:
    """Return the path of the tarball (zstd); make it if it is not there (root, about a minute).

    Several processes may ask at once: one makes it, the others wait.

    Raises: RootfsError.
    """
    folder = cache()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"rootfs-{recipe_hash()}.tar.zst"
    with (folder / f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            # Not in the cache: a root file system wants a disk without nodev or nosuid.
            with tempfile.TemporaryDirectory(prefix="impound-rootfs-") as made:
                _make(Path(made) / "root", path)
    return path


def unpack(folder: Path) -> None:
    """Unpack it into an empty folder, owners and modes included (root). Raises: RootfsError."""
    _run("tar", "--zstd", "--numeric-owner", "-xpf", tarball(), "-C", folder)


def _make(root: Path, path: Path) -> None:
    program = shutil.which("debootstrap") or shutil.which("debootstrap", path="/usr/sbin")
    if program is None:
        raise RootfsError("debootstrap is not installed")
    root.mkdir(mode=0o755)
    _run(program, f"--variant={RECIPE['variant']}", f"--include={','.join(RECIPE['include'])}",
         RECIPE["release"], root)  # fmt: skip
    for deb in (root / "var/cache/apt/archives").glob("*.deb"):
        deb.unlink()
    whole = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        _run("tar", "--zstd", "--numeric-owner", "--sort=name", "--one-file-system",
             "--exclude=./proc/*", "--exclude=./sys/*", "-cpf", whole, "-C", root, ".")  # fmt: skip
        whole.replace(path)
    finally:
        whole.unlink(missing_ok=True)


def _run(*command: str | Path) -> None:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "HOME": "/"},
        text=True, errors="replace",
    )  # fmt: skip
    if done.returncode:
        raise RootfsError(f"{command[0]} ended with {done.returncode}:\n{done.stdout[-2000:]}")
