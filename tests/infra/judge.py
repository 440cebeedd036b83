# SPDX-License-Identifier: Apache-2.0
"""Questions to an independent judge of policies, `@cloud-copilot/iam-simulate`, as its own process.

Source: IAM User Guide, "Policy evaluation logic"; Service Authorization Reference.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.gameday.aws.accounts import AUDIT, LOG_ARCHIVE, MEMBER
from tests.conftest import missing, need_tool
from tests.infra.kit import ROOT, Document

_ALL: dict[str, Any] = {"Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}  # fmt: skip
_BUCKETS = {
    "evidence": AUDIT,
    "accesslogbucket": AUDIT,
    "anchorbucket": LOG_ARCHIVE,
    "flows": MEMBER,
}


@dataclass(frozen=True)
class Case:
    """One request.

    Attributes:
        who: ARN of a role, or a service.
        action, resource: what is asked, on what.
        expected: whether it is allowed.
        context: condition keys.
        admin: the caller's own policies allow everything.
        scp: its account is under the organisation's policies.
    """

    who: str
    action: str
    resource: str
    expected: bool
    context: tuple[tuple[str, str | tuple[str, ...]], ...] = ()
    admin: bool = False
    scp: bool = False

    def __str__(self) -> str:
        said = "may" if self.expected else "may not"
        return f"{self.who} {said} {self.action} on {self.resource} {dict(self.context)}"

    @property
    def account(self) -> str:
        """Whose the resource is."""
        parts = self.resource.split(":")
        if parts[2:3] == ["s3"]:
            bucket = parts[5].partition("/")[0]
            return _BUCKETS.get(bucket, LOG_ARCHIVE)
        return parts[4] if len(parts) > 4 and parts[4] else self.who.split(":")[4]

    def governed(self, documents: Sequence[Document]) -> list[Document]:
        """The policies that have a say."""
        return [d for d in documents if d.body["Statement"] and (
            (d.kind == "identity" and d.owner == self.who)
            or (d.kind == "scp" and self.scp)
            or (d.kind == "trust" and d.owner == self.resource)
            or (d.kind == "resource" and self._protected_by(d.owner))
        )]  # fmt: skip

    def _protected_by(self, owner: str) -> bool:
        if owner == "sqs":
            return ":sqs:" in self.resource
        return self.resource == owner or self.resource.startswith(f"{owner}/")

    def simulation(self, documents: Sequence[Document]) -> dict[str, Any]:
        """As the judge takes it."""
        said = self.governed(documents)
        identity = [{"name": d.place, "policy": d.body} for d in said if d.kind == "identity"]
        if self.admin:
            identity.append({"name": "admin", "policy": _ALL})
        scps = [{"name": d.place, "policy": d.body} for d in said if d.kind == "scp"]
        shields = [d.body for d in said if d.kind in ("resource", "trust")]
        if not shields and ":kms:" in self.resource:  # some key of the account's own
            root = {"AWS": f"arn:aws:iam::{self.account}:root"}
            shields = [{**_ALL, "Statement": [_ALL["Statement"][0] | {"Principal": root}]}]
        assert len(shields) <= 1
        named = {"aws:PrincipalArn": self.who} if self.who.startswith("arn:") else {}
        return {
            "request": {
                "principal": self.who, "action": self.action,
                "resource": {"resource": self.resource, "accountId": self.account},
                "contextVariables": named | {
                    k: list(v) if isinstance(v, tuple) else v for k, v in self.context
                },
            },
            "identityPolicies": identity,
            "serviceControlPolicies": [{"orgIdentifier": "r-abcd", "policies": [
                {"name": "FullAWSAccess", "policy": _ALL}, *scps,
            ]}] if self.scp else [],
            "resourceControlPolicies": [],
            **({"resourcePolicy": shields[0]} if shields else {}),
        }  # fmt: skip


@dataclass
class Judge:
    """The judge; `folder` has its `node_modules`."""

    node: str
    folder: Path
    asked: int = field(default=0, init=False)

    def verdicts(self, simulations: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Ask them all at once; the answers are in the same order."""
        text = json.dumps(list(simulations))
        done = subprocess.run(
            [self.node, str(ROOT / "tests/infra/oracle/judge.mjs"), str(self.folder)], input=text,
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        said: list[dict[str, Any]] = json.loads(done.stdout)
        self.asked += len(said)
        return said


def find_judge() -> Judge:  # noqa: RET503 (`missing` does not return)
    """Return it, or skip the test (fail it where CI=true)."""
    node = need_tool("node")
    for place in (os.environ.get("IMPOUND_ORACLE"), ROOT / ".venv/oracle"):
        if place and (Path(place) / "node_modules/@cloud-copilot/iam-simulate").is_dir():
            return Judge(node, Path(place).absolute())
    why = "make .venv/.oracle" if shutil.which("npm") else "npm is not installed"
    missing(f"the judge of policies is not installed ({why})")


def role(account: str, name: str) -> str:
    """ARN of a role."""
    return f"arn:aws:iam::{account}:role/{name}"


def admin(account: str) -> str:
    """ARN of a role that may do all that its account may."""
    return role(account, "administrator")


ATTACKER = admin(MEMBER)
