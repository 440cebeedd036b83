# SPDX-License-Identifier: Apache-2.0
"""The memory of a real kernel, compared with what the hypervisor saw just before and after."""

from __future__ import annotations

import pytest

from acquisition.kcore import PAGE
from acquisition.live import COLLECTORS, Collection
from acquisition.login import HostKeys, key_file, parse_host_keys
from acquisition.memory import KcoreCapture, LockedDownError, look
from acquisition.reach import direct
from acquisition.remote import Place, Remote
from acquisition.verdict import judge

pytestmark = [pytest.mark.guest, pytest.mark.xdist_group("guest")]


def login(guest):
    return Remote(
        Place("127.0.0.1", "responder", guest.port()), direct("127.0.0.1", guest.port()),
        [key_file(guest.key)], HostKeys(parse_host_keys([guest.host_key])),
    ).open()  # fmt: skip


def capture(world, guest, remote, tmp_path):
    """Capture it; return the verdict, how many stable pages agree (of 100), and the image."""
    source = KcoreCapture(remote, look(remote), "memory of the practice machine")
    before = guest.dump(tmp_path / "before").read_bytes()
    taken = world.case.ingest("memory", source)
    after = guest.dump(tmp_path / "after").read_bytes()
    source.read_again()
    with world.case.open(taken.item_id) as f:
        image = f.read()
    layout = source.look.plan.image
    stable = same = 0
    for piece in source.look.plan.pieces:
        for at in range(piece.start, piece.end, PAGE):
            if before[at : at + PAGE] == after[at : at + PAGE]:
                where = layout.image_offset(at)
                stable += 1
                same += image[where : where + PAGE] == before[at : at + PAGE]
    source.close()
    return judge(source.seen), 100 * same / stable, image


def test_pages_that_did_not_change_agree_with_the_hypervisor(world, guest, tmp_path):
    with login(guest) as remote:
        verdict, agreed, image = capture(world, guest, remote, tmp_path)
    assert (verdict.word, verdict.reasons) == ("complete", ())
    assert agreed >= 99
    for what, mark in guest.truth["memory"].items():
        assert mark.encode() in image, what


def test_five_levels_of_page_tables(world, boot_guest, tmp_path):
    with boot_guest(la57=True) as guest, login(guest) as remote:
        assert look(remote).plan.levels == 5
        verdict, agreed, _ = capture(world, guest, remote, tmp_path)
    assert verdict.word == "complete"
    assert agreed >= 99


def test_lockdown_and_hidden_addresses_are_named(boot_guest):
    with (
        boot_guest(append="lockdown=confidentiality sysctl.kernel.kptr_restrict=2") as guest,
        login(guest) as remote,
        pytest.raises(LockedDownError, match="lockdown"),
    ):
        look(remote)


def test_live_response_sees_what_was_planted(world, guest):
    with login(guest) as remote:
        source = Collection(remote, COLLECTORS, "live", {"type": "live"}, deleted=True)
        taken = world.case.ingest("live", source)
    assert source.counts["failed"] == 0
    pid = guest.truth["pids"]["plant"]
    found = {a.name: a for a in source.outcomes}
    assert found[f"deleted/{pid}"].outcome == "success"
    assert taken.manifest.result == "ok"
