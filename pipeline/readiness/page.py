# SPDX-License-Identifier: Apache-2.0
"""The result as one HTML page: no scripts, one style sheet named by digest, all values escaped."""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline import __version__
from pipeline.errors import PipelineError
from pipeline.readiness.checks import CHECKS
from pipeline.readiness.model import STATUSES, Finding, exit_code
from pipeline.report import text

_MARK = '<meta name="impound-readiness"'
_HEAD = 4096


def render(findings: Sequence[Finding], at: datetime) -> str:
    """Return the page. `at`: when it was looked, UTC."""
    environment = Environment(
        loader=PackageLoader("pipeline.readiness"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=text.visible, auto_reload=False,
    )  # fmt: skip
    style = environment.get_template("readiness.css").render()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    code = exit_code(findings)
    return environment.get_template("readiness.html").render(
        style=Markup(style), style_digest=digest, version=__version__,  # noqa: S704
        at=f"{at:%Y-%m-%d %H:%M:%S} UTC", counts=Counter(f.status for f in findings),
        statuses=STATUSES, verdict={0: "ready", 3: "ready with gaps", 14: "not ready"}[code],
        faults=[f for s in STATUSES for f in findings if f.status == s != "ok"],
        checks=[(c, [f for f in findings if f.check == c]) for c in CHECKS
                if any(f.check == c for f in findings)],
        worst=lambda found: next(s for s in STATUSES if any(f.status == s for f in found)),
    )  # fmt: skip


def write(path: Path, page: str) -> None:
    """Write the page; one of ours is replaced, nothing else. Raises: PipelineError."""
    try:
        if os.path.lexists(path):
            with path.open("rb") as f:
                ours = _MARK.encode() in f.read(_HEAD)
            if path.is_symlink() or not ours:
                raise PipelineError(
                    f"{path} is no readiness page of ours, and is not overwritten",
                    hint="name another file with --html",
                )
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            out.write(page)
        temporary.replace(path)
    except OSError as e:
        raise PipelineError(f"cannot write {path}: {e.strerror}") from e
