# SPDX-License-Identifier: Apache-2.0
"""The CloudFormation templates: in `cfn/` of a checkout, in `pipeline/cfn/` once installed."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from pipeline.errors import PipelineError

NAMES = ("audit", "forensics", "member", "org", "seal")


def template(name: str) -> str:
    """Return a template as text.

    Args:
        name: one of `NAMES`.

    Raises: ValueError for another name; PipelineError if the installation lacks it.
    """
    if name not in NAMES:
        raise ValueError(f"no such template: {name}")
    installed = Path(str(resources.files("pipeline")))
    for place in (installed / "cfn", installed.parent / "cfn"):
        path = place / f"{name}.yaml"
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise PipelineError(
        f"the template {name}.yaml is missing from this installation",
        hint="install impound again",
    )
