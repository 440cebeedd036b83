# SPDX-License-Identifier: Apache-2.0
"""Definitions of artifacts as patterns."""

from __future__ import annotations

import pytest

from analysis.walk.paths import parse
from pipeline import artifacts
from pipeline.errors import UsageError


def test_every_definition_gives_patterns_that_can_be_looked_for():
    for system in ("Linux", "Windows"):
        names = artifacts.names(system)
        assert len(names) > 50
        found = artifacts.places(names, {system}, b"a:x:1:1::/home/a:/bin/sh\n")
        assert len(found.patterns) == len(found.origins) > len(names)
        for pattern in found.patterns:
            parse(pattern)
            assert "%%" not in pattern


def test_only_of_the_systems_that_are_there():
    linux = artifacts.places(["BashShellHistoryFile"], {"Linux"}, b"").patterns
    assert "/root/.bash_history" in linux
    none = artifacts.places(["LinuxPasswdFile"], {"Windows"}, b"")
    assert none.patterns == []
    assert "names no files on Windows" in none.left_out[0]


@pytest.mark.parametrize(
    "line",
    [
        b"x:x:1:1::/a/../../etc:",
        b"x:x:1:1::relative:",
        b"x:x:1:1::/:",
        b"\xff:::",
        b"x:x:1:1::/%%a%%:",
    ],
)
def test_hostile_users_are_left_out(line):
    assert artifacts.users(line) == {"root": "/root"}


def test_a_home_that_looks_like_a_pattern_is_only_itself():
    homes = artifacts.users(b"x:x:1:1::/home/*:/bin/sh")
    assert homes["x"] == "/home/[*]"
    assert parse(homes["x"])[1].matches("*")
    assert not parse(homes["x"])[1].matches("ann")


def test_more_users_than_are_looked_at():
    many = b"".join(b"u%d:x:1:1::/home/u%d:/bin/sh\n" % (n, n) for n in range(5000))
    assert len(artifacts.users(many)) == 500


def test_a_name_that_is_not_known():
    with pytest.raises(UsageError) as e:
        artifacts.check(["WindowsPrefetchFile"])
    assert "did you mean" in e.value.hint
