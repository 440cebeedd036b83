# SPDX-License-Identifier: Apache-2.0
"""Make `ami/input/`: all that the forensics image is provisioned with, each file by its SHA-256.

python ami/prepare.py [--symbols FILE] [--rules FILE] [--agent FILE SHA256] [FOLDER]

Python packages are those that `ami/requirements.txt` names by version and digest; impound is the
wheel of this checkout. Rules and symbols are tar archives. The agent is the Debian package of the
SSM agent, by which people log in.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PYTHON = (3, 11)  # of Debian 12


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def prepare(
    folder: Path, extra: dict[str, Path] | None = None, wheel: Path | None = None
) -> None:  # fmt: skip
    """Fill a folder.

    Args:
        folder: emptied first, `.gitignore` excepted.
        extra: name in the folder -> file to put there.
        wheel: of impound (default: built now).
    """
    if sys.version_info[:2] != PYTHON:
        raise SystemExit(f"the image has Python {PYTHON[0]}.{PYTHON[1]}: run this with the same")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        if old.is_dir():
            shutil.rmtree(old)
        elif old.name != ".gitignore":
            old.unlink()
    wheels = folder / "wheels"
    wheels.mkdir()
    # `pip wheel` takes what is a wheel as it is, and builds what is not from its pinned source.
    pip("wheel", "--no-deps", "--require-hashes", "--wheel-dir", wheels, "--requirement",
        HERE / "requirements.txt")  # fmt: skip
    if wheel is None:
        pip("wheel", "--no-deps", "--wheel-dir", wheels, HERE.parent)
    else:
        shutil.copy(wheel, wheels)
    lines = []
    for path in sorted(wheels.iterdir()):
        name, version = path.name.split("-")[:2]
        lines.append(f"{name}=={version} --hash=sha256:{sha256(path)}\n")
    (folder / "requirements.txt").write_text("".join(lines))
    for name in ("provision.sh", "packages", "debian.lock"):
        shutil.copy(HERE / name, folder)
    with tarfile.open(folder / "files.tar", "w") as tar:
        for path in sorted((HERE / "files").rglob("*")):
            if path.is_file():
                tar.add(path, path.relative_to(HERE / "files").as_posix(), filter=_roots)
    for name, path in (extra or {}).items():
        shutil.copy(path, folder / name)
    sums = [
        f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n"
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (".gitignore", "SHA256SUMS")
    ]
    (folder / "SHA256SUMS").write_text("".join(sums))


def _roots(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = "root"
    entry.mode = 0o644
    return entry


def pip(*arguments: str | Path) -> None:
    """Run pip quietly."""
    subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments],
        check=True,
    )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=HERE / "input")
    for name in ("rules", "symbols"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--agent", nargs=2, metavar=("FILE", "SHA256"))
    given = parser.parse_args()
    extra = {f"{n}.tar": v for n in ("rules", "symbols") if (v := getattr(given, n))}
    if given.agent:
        path, digest = Path(given.agent[0]), given.agent[1]
        if sha256(path) != digest:
            raise SystemExit(f"{path} has SHA-256 {sha256(path)}, not {digest}")
        extra["amazon-ssm-agent.deb"] = path
    prepare(given.folder, extra)


if __name__ == "__main__":
    main()
