# SPDX-License-Identifier: Apache-2.0
"""What the functions run from."""

from __future__ import annotations

import hashlib
import runpy
import subprocess
import sys
import zipfile

from pipeline.session import tool_identity
from tests.infra.kit import ROOT

PACKAGE = runpy.run_path(str(ROOT / "cfn/package.py"))


def test_the_same_files_give_the_same_bytes(tmp_path):
    made = []
    for number in range(2):
        folder = tmp_path / str(number)
        (folder / "pipeline").mkdir(parents=True)
        for name in ("b.py", "a.py"):
            (folder / "pipeline" / name).write_text(name)
        PACKAGE["pack"](folder, tmp_path / "out" / f"{number}.zip")
        made.append(hashlib.sha256((tmp_path / "out" / f"{number}.zip").read_bytes()).digest())
    assert made[0] == made[1]
    with zipfile.ZipFile(tmp_path / "out" / "0.zip") as archive:
        assert archive.namelist() == ["pipeline/a.py", "pipeline/b.py"]


def test_every_function_can_be_imported_from_it(tmp_path):
    """Alone: this tree is not on the path, and what it names as its tool is the same."""
    PACKAGE["copy"](tmp_path)
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}]\n"
        "import pipeline.handler, pipeline.intake, pipeline.sealer, pipeline.session as s\n"
        f"assert pipeline.intake.__file__.startswith({str(tmp_path)!r})\n"
        "print(s.tool_identity().sha256)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == tool_identity().sha256
