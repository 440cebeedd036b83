# SPDX-License-Identifier: Apache-2.0
"""Every policy statement is judged by somebody else's reading of IAM, and none can go unnoticed."""

from __future__ import annotations

import json
from fnmatch import fnmatch

import pytest

from tests.infra.cases import cases
from tests.infra.judge import find_judge
from tests.infra.kit import world


@pytest.fixture(scope="module")
def judge():
    return find_judge()


@pytest.fixture(scope="module")
def judged(judge):
    """All cases with their verdicts."""
    asked = cases()
    return list(zip(asked, judge.verdicts(c.simulation(world()) for c in asked), strict=True))


def test_what_is_allowed_and_what_is_not(judged):
    wrong = [
        f"{case}: {said}" for case, said in judged
        if said["verdict"] == "error" or (said["verdict"] == "Allowed") != case.expected
    ]  # fmt: skip
    assert wrong == []


def test_every_condition_is_one_that_aws_has(judged):
    """A key that its action does not know never holds, and `Null` on it always does."""
    known = {"aws:principalarn"}
    for case, said in judged:
        known |= {k.lower() for k, _ in case.context} - {k.lower() for k in said["ignored"]}
    used = {
        key.lower() for document in world() for statement in document.body["Statement"]
        for keys in statement.get("Condition", {}).values() for key in keys
    }  # fmt: skip
    assert used <= known, used - known


def speaks_of(statement, case):
    """Whether it may matter: it names the action, and gives what the case is about."""
    actions = statement["Action"]
    patterns = [actions] if isinstance(actions, str) else actions
    named = any(fnmatch(case.action.lower(), p.lower()) for p in patterns)
    return named and (statement["Effect"] == "Allow") == case.expected


def test_no_statement_can_go_unnoticed(judge):
    """Each statement in turn is left out: at least one verdict must change."""
    noticed: dict[str, bool] = {}
    questions, owners = [], []
    for document in world():
        for statement in document.body["Statement"]:
            sid = statement["Sid"]
            changed = tuple(document.without(sid) if d is document else d for d in world())
            noticed[f"{document.place} {sid}"] = False
            for case in cases():
                if speaks_of(statement, case) and document in case.governed(world()):
                    questions.append(case.simulation(changed))
                    owners.append((f"{document.place} {sid}", case.expected))
    for (place, expected), said in zip(owners, judge.verdicts(questions), strict=True):
        assert said["verdict"] != "error", (place, said)
        noticed[place] |= (said["verdict"] == "Allowed") != expected
    assert [place for place, seen in noticed.items() if not seen] == []
    assert len(noticed) > 90


def test_statements_have_names_of_their_own():
    for document in world():
        assert len(set(document.sids)) == len(document.sids), document.place


def test_sizes():
    """IAM quotas: a role's inline policies 10,240 characters; SCPs 5,120; key policies 32 KiB."""
    inline: dict[str, int] = {}
    for document in world():
        size = len(json.dumps(document.body, separators=(",", ":")))
        if document.kind == "identity":
            inline[document.owner] = inline.get(document.owner, 0) + size
        assert size <= {"scp": 5120, "trust": 2048}.get(document.kind, 20480), document.place
    assert max(inline.values()) <= 10240, inline
