# SPDX-License-Identifier: Apache-2.0
"""The page and the table: what others named is escaped; nothing of others is overwritten."""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import UTC, datetime

import pytest

from pipeline.cli.base import Globals
from pipeline.cli.readiness import _table
from pipeline.errors import PipelineError
from pipeline.readiness.checks import BY_NAME, CHECKS
from pipeline.readiness.model import STATUSES, Finding, Place
from pipeline.readiness.page import render, write

EVIL = "<script>alert(1)</script>\u202e\x1b[2J [bold]x[/bold] @example.org"
AT = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.fixture
def findings():
    """One of each status, with a hostile name."""
    return [
        Finding(BY_NAME["contact"], Place("222222222222"), status, EVIL, "do it", {"email": "x"})
        for status in STATUSES
    ]


def test_hostile_names_on_the_page(findings):
    page = render(findings, AT)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "\u202e" not in page
    assert "\x1b" not in page


def test_hostile_names_in_the_table(findings, capsys):
    _table(Globals(no_color=True), findings)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "[bold]x[/bold]" in shown
    for status in STATUSES:
        assert status in shown


def test_the_page_stands_alone(findings):
    page = render(findings, AT)
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}'" in page
    assert not re.search(r"(src|href)=", page)
    assert "style=" not in page
    assert "2026-11-24 12:00:00 UTC" in page


def test_it_names_every_check_and_the_worst_of_each():
    ok = [Finding(c, Place("222222222222", "eu-central-1"), "ok", c.title) for c in CHECKS]
    page = render(ok, AT)
    assert "<h1>Ready</h1>" in page
    assert "What to do" not in page
    assert all(f'<th scope="row">{c.name}</th>' in page for c in CHECKS)
    bad = Finding(CHECKS[5], Place("333333333333"), "failed", "broken", "mend it")
    page = render([*ok, bad], AT)
    assert "<h1>Not ready</h1>" in page
    assert page.count("✕ failed") == 2  # what to do, and the row of its check
    assert "1 failed" in page


def test_a_page_of_somebody_else_is_not_overwritten(findings, tmp_path):
    page, other = tmp_path / "page.html", tmp_path / "other"
    page.write_text("mine")
    with pytest.raises(PipelineError, match="not overwritten"):
        write(page, "x")
    assert page.read_text() == "mine"
    page.unlink()
    for _ in range(2):  # one of ours is replaced
        write(page, render(findings, AT))
    other.symlink_to(page)
    with pytest.raises(PipelineError, match="not overwritten"):
        write(other, "x")
    with pytest.raises(PipelineError, match="cannot write"):
        write(tmp_path / "none" / "page.html", "x")
