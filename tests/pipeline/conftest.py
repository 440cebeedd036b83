# SPDX-License-Identifier: Apache-2.0
"""The command line as a user has it: own home, own passphrase, own working directory."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from pipeline.cli.base import run


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)

    @property
    def json_lines(self):
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home with a passphrase file; the working directory is beside it."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "pass").write_text("correct horse battery\n")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("IMPOUND_PASSPHRASE_FILE", str(home / "pass"))
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "IMPOUND_CONFIG", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture
def impound(home, capfdbinary):
    """Run a command line in this process; return code, stdout, stderr."""

    def call(*argv: str) -> Result:
        capfdbinary.readouterr()
        code = run([str(a) for a in argv])
        out, err = capfdbinary.readouterr()
        return Result(code, out.decode("utf-8", "backslashreplace"), err.decode())

    return call


@pytest.fixture
def opened(impound):
    """The same, with keys and the case T-1001."""
    assert impound("case", "open", "T-1001", "--title", "lab", "--contact", "soc@a.org").code == 0
    return impound
