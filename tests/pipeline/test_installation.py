# SPDX-License-Identifier: Apache-2.0
"""Files against RECORD: equal, damaged, lost, added; and what cannot be compared says so."""

from __future__ import annotations

import base64
import hashlib
from importlib import metadata

import pytest

from pipeline import installation


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """An installed package of two files, and its distribution."""
    root = tmp_path / "site"
    made = {"pipeline/__init__.py": b"x = 1\n", "pipeline/report/page.css": b"a {}\n"}
    rows = []
    for name, body in made.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(body)
        digest = base64.urlsafe_b64encode(hashlib.sha256(body).digest()).rstrip(b"=").decode()
        rows.append(f"{name},sha256={digest},{len(body)}")
    info = root / "impound-9.dist-info"
    info.mkdir()
    rows.append("impound-9.dist-info/RECORD,,")
    (info / "RECORD").write_text("\n".join(rows) + "\n")
    (info / "METADATA").write_text("Name: impound\nVersion: 9\n")
    monkeypatch.setattr(installation, "__file__", str(root / "pipeline" / "installation.py"))
    return root


def found(root):
    return installation.check(metadata.PathDistribution(root / "impound-9.dist-info"))


def test_equal(installed):
    cache = installed / "pipeline" / "__pycache__"
    cache.mkdir()
    (cache / f"a.{installation.sys.implementation.cache_tag}.pyc").write_bytes(b"x")
    seen = found(installed)
    assert (seen.state, seen.files) == ("equal", 2)
    record = (installed / "impound-9.dist-info" / "RECORD").read_bytes()
    assert seen.record_sha256 == hashlib.sha256(record).hexdigest()


def test_a_changed_file(installed):
    (installed / "pipeline/__init__.py").write_bytes(b"x = 2\n")
    seen = found(installed)
    assert (seen.state, seen.changed) == ("different", ("pipeline/__init__.py",))
    assert seen.document()["changed"] == ["pipeline/__init__.py"]


def test_a_lost_file(installed):
    (installed / "pipeline/report/page.css").unlink()
    assert (found(installed).state, found(installed).missing) == (
        "different", ("pipeline/report/page.css",),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["pipeline/evil.py", "pipeline/boto3.pyc", "analysis/a.so"])
def test_a_file_that_was_added(installed, name):
    (installed / name).parent.mkdir(exist_ok=True)
    (installed / name).write_bytes(b"")
    assert (found(installed).state, found(installed).extra) == ("different", (name,))


def test_a_working_tree_says_so(installed):
    (installed / "impound-9.dist-info/direct_url.json").write_text(
        '{"dir_info": {"editable": true}, "url": "file:///src/impound"}'
    )
    assert found(installed).state == "editable"
    assert "file:///src/impound" in found(installed).why


def test_without_a_record_nothing_is_claimed(installed):
    (installed / "impound-9.dist-info/RECORD").unlink()
    assert found(installed).state == "unknown"


def test_a_record_without_digests_proves_nothing(installed):
    (installed / "impound-9.dist-info/RECORD").write_text(
        "pipeline/__init__.py,,\npipeline/report/page.css,,\n"
    )
    assert found(installed).state == "different"
    assert found(installed).changed == ("pipeline/__init__.py", "pipeline/report/page.css")


def test_a_record_that_names_none_of_the_packages(installed):
    (installed / "impound-9.dist-info/RECORD").write_text("impound-9.dist-info/RECORD,,\n")
    assert found(installed).state == "different"


def test_code_from_elsewhere_is_not_what_was_installed(installed, monkeypatch):
    monkeypatch.setattr(installation, "__file__", "/elsewhere/pipeline/installation.py")
    assert found(installed).state == "unknown"
    assert "/elsewhere" in found(installed).why
