# SPDX-License-Identifier: Apache-2.0
"""What is decided before anything is fetched."""

from __future__ import annotations

import subprocess
import time

import pytest

from pipeline.gameday.guest import GuestError, build, guest_image, missing_tools
from pipeline.gameday.guest.machine import _serve_keys


def test_an_image_of_another_recipe_is_another_image(monkeypatch, tmp_path):
    recipe = tmp_path / "recipe"
    recipe.mkdir()
    monkeypatch.setattr(build, "_RECIPE", recipe)
    (recipe / "init").write_text("one")
    first = build.recipe_hash()
    assert build.recipe_hash() == first
    (recipe / "init").write_text("two")
    assert build.recipe_hash() != first


def test_missing_programs_are_named_with_their_packages(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "tool", lambda name: None if name == "gcc" else f"/usr/bin/{name}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert missing_tools() == ["gcc (apt install gcc libc6-dev)"]
    with pytest.raises(GuestError, match="needs gcc"):
        guest_image()
    assert [p.suffix for p in (tmp_path / "impound/guest").iterdir()] == [".lock"]


def test_what_failed_to_be_made_leaves_nothing_in_the_cache(monkeypatch, tmp_path):
    def fail(work, say):
        (work / "image").mkdir()
        raise GuestError("no network")

    monkeypatch.setattr(build, "_make", fail)
    monkeypatch.setattr(build, "missing_tools", list)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(GuestError, match="no network"):
        guest_image()
    assert [p.suffix for p in (tmp_path / "impound/guest").iterdir()] == [".lock"]


def test_a_failing_program_is_quoted(tmp_path):
    with pytest.raises(GuestError, match=r"mke2fs failed: .*no/such"):
        build._run("mke2fs", "-q", "-n", tmp_path / "no/such/disk")


@pytest.mark.parametrize(
    ("user", "keys"),
    [
        ("responder", "lasting\nfresh\n"),
        ("nobody", ""),
        ("../responder", ""),
        ("respo;nder", ""),
        ("", ""),
    ],
)
def test_keys_are_served_to_their_user_until_they_expire(tmp_path, user, keys):
    now = int(time.time())
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "responder").write_text(
        f"{now + 10**6} lasting\n{now - 1} expired\n{now + 60} fresh\n"
    )
    served = subprocess.run(
        ["sh", _serve_keys(), tmp_path / "keys"], input=f"{user}\n", text=True, check=True,
        capture_output=True,
    )  # fmt: skip
    assert served.stdout == keys
