# SPDX-License-Identifier: Apache-2.0
"""What a policy says, read by itself. Pure; no simulation of all that AWS weighs.

Source: IAM User Guide, "IAM JSON policy elements reference".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any


def statements(policy: Any) -> list[Mapping[str, Any]]:
    """The statements of a policy, given as text or as JSON."""
    said = (json.loads(policy) if isinstance(policy, str) else policy or {}).get("Statement", [])
    return [s for s in listed(said) if isinstance(s, Mapping)]


def listed(value: Any) -> list[Any]:
    """One or many, as a list."""
    return list(value) if isinstance(value, list) else [] if value is None else [value]


def principals(statement: Mapping[str, Any], kind: str) -> list[str]:
    """Whom a statement names: `AWS`, `Service`, `Federated`."""
    said = statement.get("Principal", {})
    return ["*"] if said == "*" else [str(p) for p in listed(said.get(kind))]


def anybody(statement: Mapping[str, Any]) -> bool:
    """Whether it speaks of everybody."""
    return "*" in principals(statement, "AWS")


def covers(statement: Mapping[str, Any], action: str) -> bool:
    """Whether it names an action."""
    return any(fnmatchcase(action.lower(), str(p).lower())
               for p in listed(statement.get("Action")))  # fmt: skip


def all_objects(statement: Mapping[str, Any], bucket: str) -> bool:
    """Whether it is about every object of a bucket."""
    return any(str(r) == "*" or str(r).endswith((f":{bucket}/*", f":{bucket}*"))
               for r in listed(statement.get("Resource")))  # fmt: skip


def gives(policy: str, account: str, action: str) -> bool:
    """Whether a key policy allows an action to an account, conditions taken as met. Pure."""
    mine = {account, f"arn:aws:iam::{account}:root", "*"}
    return any(
        s.get("Effect") == "Allow" and covers(s, action)
        and any(p in mine or f"::{account}:" in p for p in principals(s, "AWS"))
        for s in statements(policy)
    )  # fmt: skip


def trusts(policy: Any, account: str, role: str) -> bool:
    """Whether a trust policy lets a role of an account assume it. Pure."""
    return any(
        s.get("Effect") == "Allow" and covers(s, "sts:AssumeRole")
        and any(p == account or p.endswith((f"::{account}:root", f"::{account}:role/{role}"))
                for p in principals(s, "AWS"))
        for s in statements(policy)
    )  # fmt: skip


def trusts_service(policy: Any, service: str) -> bool:
    """The same for a service."""
    return any(
        s.get("Effect") == "Allow" and covers(s, "sts:AssumeRole")
        and service in principals(s, "Service") for s in statements(policy)
    )  # fmt: skip


def trusts_saml(policy: Any, providers: Iterable[str]) -> bool:
    """The same for an identity provider."""
    known = set(providers)
    return any(
        s.get("Effect") == "Allow" and covers(s, "sts:AssumeRoleWithSAML")
        and known & set(principals(s, "Federated")) for s in statements(policy)
    )  # fmt: skip
