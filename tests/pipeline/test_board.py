# SPDX-License-Identifier: Apache-2.0
"""Where the engine's memory is."""

from __future__ import annotations

import pytest

from pipeline import board
from pipeline.config import Settings
from pipeline.errors import ConfigError
from pipeline.gameday.aws.accounts import AUDIT, REGION


@pytest.fixture
def secrets(aws_in_process, monkeypatch):
    board._secret.cache_clear()
    credentials = aws_in_process.credentials(AUDIT, "impound-workstation")
    for name, value in credentials.environment().items():
        monkeypatch.setenv(name, value)
    yield aws_in_process.client("secretsmanager", AUDIT, "impound-workstation")
    board._secret.cache_clear()


def test_the_address_may_lie_in_a_secret(secrets, monkeypatch):
    made = secrets.create_secret(Name="engine", SecretString="postgresql://u:p@db/impound\n")
    monkeypatch.setenv("IMPOUND_ENGINE_URL", made["ARN"])
    place = board.place_of(Settings(), "store", "T-1")
    assert (place.url, place.home) == ("postgresql://u:p@db/impound", None)


def test_a_secret_that_is_no_address_is_not_printed(secrets, monkeypatch):
    made = secrets.create_secret(Name="engine", SecretString="hunter2")
    monkeypatch.setenv("IMPOUND_ENGINE_URL", made["ARN"])
    with pytest.raises(ConfigError) as e:
        board.place_of(Settings(), "store", "T-1")
    assert "hunter2" not in f"{e.value} {e.value.hint}"


def test_a_secret_that_is_not_there(secrets, monkeypatch):
    arn = f"arn:aws:secretsmanager:{REGION}:{AUDIT}:secret:none-AbCdEf"
    monkeypatch.setenv("IMPOUND_ENGINE_URL", arn)
    with pytest.raises(ConfigError, match="cannot read the secret") as e:
        board.place_of(Settings(), "store", "T-1")
    assert arn in e.value.hint
