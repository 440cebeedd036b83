# SPDX-License-Identifier: Apache-2.0
"""Templates are found in a checkout and in a wheel."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from pipeline import templates
from pipeline.errors import PipelineError

ROOT = Path(__file__).parents[2]


def test_in_a_checkout():
    for name in templates.NAMES:
        assert templates.template(name) == (ROOT / "cfn" / f"{name}.yaml").read_text()


def test_all_are_named():
    assert sorted(templates.NAMES) == sorted(p.stem for p in (ROOT / "cfn").glob("*.yaml"))


def test_as_a_wheel_has_them(tmp_path, monkeypatch):
    """The wheel puts `cfn` into the package; nothing is beside it."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert build["targets"]["wheel"]["force-include"] == {
        f"cfn/{name}.yaml": f"pipeline/cfn/{name}.yaml" for name in templates.NAMES
    }
    (tmp_path / "pipeline" / "cfn").mkdir(parents=True)
    (tmp_path / "pipeline" / "cfn" / "forensics.yaml").write_text("here")
    monkeypatch.setattr(templates.resources, "files", lambda _package: tmp_path / "pipeline")
    assert templates.template("forensics") == "here"


def test_an_installation_without_them_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(templates.resources, "files", lambda _package: tmp_path / "pipeline")
    with pytest.raises(PipelineError, match="is missing from"):
        templates.template("forensics")


@pytest.mark.parametrize("name", ["../pyproject", "", "nothing"])
def test_no_other_file(name):
    with pytest.raises(ValueError, match="no such template"):
        templates.template(name)
