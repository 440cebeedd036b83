# SPDX-License-Identifier: Apache-2.0
"""Pack the functions: this project and the four libraries that they need, for AWS Lambda.

    python -I cfn/package.py dist/impound-lambda.zip

Wheels for x86-64 and Python 3.13, at the versions of constraints.txt. The same inputs give the same
bytes.

Source: Lambda Developer Guide, "Working with .zip file archives for Python Lambda functions".
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("boto3", "cryptography", "pydantic", "rfc8785")
OURS = ("acquisition", "analysis", "evidence_store", "pipeline")
RUNTIME = "3.13"
_MOMENT = (1980, 1, 1, 0, 0, 0)


def fetch(folder: Path) -> None:
    """Install the libraries into a folder."""
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
         "--target", str(folder), "--only-binary=:all:", "--python-version", RUNTIME,
         "--platform", "manylinux2014_x86_64", "--platform", "manylinux_2_28_x86_64",
         "--platform", "manylinux_2_34_x86_64", "--implementation", "cp", "--no-compile",
         "--constraint", str(ROOT / "constraints.txt"), *NEEDED],
        check=True,
    )  # fmt: skip


def copy(folder: Path) -> None:
    """Copy this project's own modules."""
    for package in OURS:
        for path in sorted((ROOT / package).rglob("*")):
            if path.suffix == ".pyc" or not path.is_file():
                continue
            place = folder / path.relative_to(ROOT)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())
            place.chmod(0o644)


def pack(folder: Path, into: Path) -> None:
    """Make the archive, names in order, all of one date."""
    into.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(into, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), _MOMENT)
            entry.external_attr = (path.stat().st_mode & 0o777) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, path.read_bytes())


def main() -> None:
    """Pack."""
    into = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as name:
        fetch(Path(name))
        copy(Path(name))
        pack(Path(name), into)
    print(f"{into} {into.stat().st_size} bytes")


if __name__ == "__main__":
    main()
