# SPDX-License-Identifier: Apache-2.0
"""The report in a real browser: nothing is blocked, nothing overflows, it prints."""

from __future__ import annotations

import re
import subprocess

import pytest

from pipeline.report import render
from tests.pipeline.report_case import hostile

pytestmark = pytest.mark.browser


@pytest.fixture
def page(tmp_path):
    return render(hostile(tmp_path).case, tmp_path / "out")


def chromium(need_tool, tmp_path, page, *options):
    command = [
        need_tool("chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
        "--no-first-run", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr",
        *options, page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)


def test_screenshot_shows_something_and_the_console_is_silent(need_tool, tmp_path, page):
    picture = tmp_path / "page.png"
    done = chromium(need_tool, tmp_path, page, f"--screenshot={picture}", "--window-size=1100,3000")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 50_000
    assert not re.findall(r"CONSOLE|Content Security Policy|Refused to", done.stderr)


def test_it_prints(need_tool, tmp_path, page):
    printed = tmp_path / "page.pdf"
    chromium(need_tool, tmp_path, page, f"--print-to-pdf={printed}", "--no-pdf-header-footer")
    text = subprocess.run(
        [need_tool("pdftotext"), "-layout", str(printed), "-"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "How to verify" in text
    assert len(text.split("\f")) > 3
