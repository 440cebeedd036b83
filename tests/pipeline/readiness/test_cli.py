# SPDX-License-Identifier: Apache-2.0
"""`impound readiness` over the whole practice organisation."""

from __future__ import annotations

import json
import os

import pytest

from pipeline.cli.base import run
from pipeline.gameday.aws.organisation import DEFECTS, FOR_PEOPLE

pytestmark = pytest.mark.xdist_group("readiness")
MENDED = [name for name in DEFECTS if name not in FOR_PEOPLE]


@pytest.fixture
def impound(place, capfdbinary):
    def call(*argv):
        capfdbinary.readouterr()
        code = run([str(a) for a in argv])
        out, err = capfdbinary.readouterr()
        return code, out.decode(), err.decode()

    return call


def failed(document):
    return {f["check"] for f in document["findings"] if f["status"] not in ("ok", "warning")}


def test_exactly_the_seeded_defects_and_after_fix_all_ready(place, impound, tmp_path):
    for name in MENDED:
        DEFECTS[name](place.made)
    code, out, _ = impound("--json", "readiness")
    document = json.loads(out)
    assert (code, document["verdict"]) == (14, "not ready")
    assert failed(document) == set(MENDED)
    bad = [f for f in document["findings"] if f["status"] == "failed"]
    assert len(bad) == len(MENDED)
    assert all(f["fix"] and f["mends"] for f in bad)

    page = tmp_path / "ready.html"
    code, out, err = impound("--json", "--yes", "readiness", "--fix", "all", "--html", page)
    document = json.loads(out)
    assert (code, document["verdict"], failed(document)) == (0, "ready", set()), err
    assert (document["fixed"], document["refused"]) == (len(MENDED), [])
    assert document["receipt"]

    # The ledger tells what was meant and what was done; the item what was seen.
    case = place.session.open_store().case("_readiness")
    done = [e for e in case.ledger.events if e.action == "step.done"]
    assert {e.data["step"] for e in done} == {f"readiness {n}" for n in MENDED}
    with os.fdopen(case.open_member(document["item"], "readiness.json"), "rb") as kept:
        assert json.load(kept)["findings"] == document["findings"]
    assert impound("verify", "_readiness", "--deep")[0] == 0
    assert "<script" not in page.read_text()


def test_a_plan_and_a_question_without_an_answer_change_nothing(place, impound):
    contact = ("readiness", "--check", "contact", "--fix", "contact")
    DEFECTS["contact"](place.made)
    code, out, _ = impound("--json", *contact, "--dry-run")
    [change] = json.loads(out)["changes"]
    assert (code, change["check"]) == (0, "contact")
    code, out, err = impound("--json", *contact)
    assert (code, failed(json.loads(out))) == (14, {"contact"})
    assert "nothing was changed" in err
    code, out, _ = impound("--json", "--yes", *contact)
    assert (code, json.loads(out)["fixed"]) == (0, 1)


def test_a_table_that_needs_no_colours(place, impound, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    code, out, _ = impound("readiness", "--check", "guardduty", "--check", "contact", "--all")
    assert code == 0
    assert "\x1b" not in out
    assert out.count("✓ ok") == 6
    assert "ready: 6 ok" in out
    assert "recorded as E" in out


def test_names_that_do_not_exist(place, impound):
    assert impound("readiness", "--check", "nothing")[0] == 2
    assert impound("readiness", "--fix", "nothing")[0] == 2
    assert impound("readiness", "--dry-run")[0] == 2
    assert impound("readiness", "--account", "12")[0] == 2


def test_only_some_accounts(place, impound):
    code, out, _ = impound("--json", "readiness", "--account", "222222222222", "--check", "contact")
    assert (code, json.loads(out)["accounts"]) == (0, ["444444444444", "222222222222"])


def test_a_run_that_cannot_be_recorded_says_so_and_is_not_ready(place, impound):
    from pipeline.gameday.aws.faults import Fault

    place.stand.faults.add(Fault("error", service="kms", operation="Sign", times=None,
                                 code="AccessDenied"))  # fmt: skip
    DEFECTS["contact"](place.made)
    try:
        code = impound("--json", "--yes", "readiness", "--check", "contact", "--fix", "contact")[0]
    finally:
        place.stand.faults.clear()
    assert code in (11, 14)
    assert impound("--json", "--yes", "readiness", "--check", "contact", "--fix", "contact")[0] == 0
