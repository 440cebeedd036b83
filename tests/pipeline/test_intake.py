# SPDX-License-Identifier: Apache-2.0
"""Events from the queue to records in custody."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import pytest

from pipeline.config import load
from pipeline.errors import ConfigError, UsageError
from pipeline.gameday.aws.accounts import AUDIT
from pipeline.gameday.aws.seed import seed
from pipeline.intake import handler, messages

FINDING = json.dumps({
    "id": "1", "source": "aws.guardduty", "detail-type": "GuardDuty Finding",
    "account": "222222222222", "region": "eu-central-1", "time": "2026-01-02T03:04:05Z",
    "detail": {"severity": 8},
})  # fmt: skip


def batch(*bodies):
    return {"Records": [
        {"messageId": f"m{n}", "body": body, "eventSourceARN": "arn:aws:sqs:x",
         "attributes": {"SentTimestamp": "1767323045000"}} for n, body in enumerate(bodies)
    ]}  # fmt: skip


@pytest.fixture
def local(home, impound, tmp_path, monkeypatch):
    """A store in a directory, settings as a function has them."""
    assert impound("key", "new").code == 0
    monkeypatch.setenv("IMPOUND_SETTINGS", f'store = "{tmp_path / "evidence"}"\n')
    return impound


def stored(impound, answer):
    store = ("--store", load().settings.store)
    items = impound(*store, "--json", "item", "list", answer["case"]).json["items"]
    assert impound(*store, "verify", answer["case"]).code in (0, 3)
    return items, store


def test_a_batch_is_one_record_byte_for_byte(local, tmp_path, caplog):
    answer = handler(batch(FINDING, "not JSON \u2603"), None)
    assert caplog.messages == ["kept ['1']"]  # readiness looks for the id of its probe
    assert (answer["item"], answer["kept"], answer["existing"]) == ("E0001", 2, False)
    assert answer["case"].startswith("_intake-20")
    [item], _ = stored(local, answer)
    assert item["kind"] == "record"
    kept = {p.read_bytes() for p in (tmp_path / "evidence").glob("cases/*/items/E0001/data/*")}
    assert {FINDING.encode(), "not JSON \u2603".encode()} <= kept


def test_the_same_batch_again_is_the_same_item(local):
    first = handler(batch(FINDING), None)
    again = handler(batch(FINDING), None)
    assert (again["item"], again["existing"]) == (first["item"], True)
    other = handler(batch(FINDING, "{}"), None)
    assert (other["item"], other["existing"]) == ("E0002", False)


def test_what_an_event_says_of_itself():
    [found] = messages(batch(FINDING))
    assert found.name == hashlib.sha256(FINDING.encode()).hexdigest()
    assert found.facts["source"] == "aws.guardduty"
    assert found.facts["account"] == "222222222222"
    assert (found.facts["message"], found.facts["sent_ms"]) == ("m0", "1767323045000")


@pytest.mark.parametrize(
    "body", ["", "[]", "null", "{", '{"source": ["x"]}', "[" * 100_000,
             '{"id": "\\u0000\\u001b[2J"}', json.dumps({"source": "x" * 100_000})],
)  # fmt: skip
def test_hostile_bodies_are_kept_and_believed_in_nothing(local, body):
    [found] = messages(batch(body))
    assert found.body == body.encode()
    assert all("\x1b" not in str(v) and len(str(v)) <= 210 for v in found.facts.values())
    assert handler(batch(body), None)["kept"] == 1


@pytest.mark.parametrize(
    "event", [{}, {"Records": []}, {"Records": "x"}, {"Records": [{}]}, {"Records": [{"body": 1}]}]
)
def test_what_is_no_batch_is_refused(event):
    with pytest.raises(UsageError):
        handler(event, None)


def test_a_store_that_cannot_be_had_gives_the_batch_back(local, monkeypatch, tmp_path):
    """Raised, so that the queue gives it again."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("IMPOUND_SETTINGS", f'store = "{tmp_path / "file" / "store"}"\n')
    with pytest.raises(Exception, match="file"):
        handler(batch(FINDING), None)


def test_settings_that_cannot_be_read_say_where(monkeypatch, home):
    monkeypatch.setenv("IMPOUND_SETTINGS", "store = ")
    with pytest.raises(ConfigError, match=r"\$IMPOUND_SETTINGS"):
        load()
    monkeypatch.setenv("IMPOUND_SETTINGS", "workers = 0")
    with pytest.raises(ConfigError, match=r"\$IMPOUND_SETTINGS"):
        load()


def test_in_aws_under_its_own_role_and_sealed(home, impound, aws_server, monkeypatch):
    zone = seed(aws_server, "pipeline.sealer:handler")
    text = (
        f'store = "{zone.store}"\n[s3]\nkms_key = "{zone.store_key}"\n'
        f'[signing]\nentry_key = "{zone.entry_key}"\ncheckpoint_key = "{zone.checkpoint_key}"\n'
        f'sealer = "{zone.sealer}"\n'
    )
    name = aws_server.register(
        AUDIT, "impound-intake", "pipeline.intake:handler", "impound-intake",
        environment={"IMPOUND_SETTINGS": text, "XDG_STATE_HOME": str(home / "state"),
                     "XDG_CACHE_HOME": str(home / "cache")},
    )  # fmt: skip
    said = aws_server.client("lambda", AUDIT).invoke(
        FunctionName=name, Payload=json.dumps(batch(FINDING, "{}")).encode()
    )
    answer = json.loads(said["Payload"].read())
    assert "FunctionError" not in said, answer
    assert (answer["kept"], answer["sealed"]) == (2, True)


def test_little_is_needed():
    heavy = ("paramiko", "pyarrow", "volatility3", "dfvfs", "pytsk3", "duckdb", "click", "rich",
             "jinja2", "matplotlib", "dbos", "moto")  # fmt: skip
    code = f"import sys, pipeline.intake; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )  # fmt: skip
    assert done.stdout.strip() == "[]"
