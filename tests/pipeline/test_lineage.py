# SPDX-License-Identifier: Apache-2.0
"""Chains of items that ledger and manifest tell only in part."""

from types import SimpleNamespace

import pytest

from pipeline.lineage import lineage

VOLUME = "arn:aws:ec2:eu-central-1:222222222222:volume/vol-1"
SOURCE = {"snapshot": "snap-1", "owner": "222222222222", "started": "2026-01-01T00:00:00.000Z",
          "lineage": [VOLUME, "arn:aws:ec2:eu-central-1::snapshot/snap-1"],
          "volume_device": "/dev/sdf"}  # fmt: skip


def event(seq, action, *, item=None, result="ok", **data):
    return SimpleNamespace(seq=seq, action=action, item=item, result=result, data=data)


FROZEN = event(1, "step.done", step="snapshot", target="vol-1", snapshot="snap-1",
               of="arn:aws:ec2:eu-central-1:222222222222:instance/i-1")  # fmt: skip
COPYING = event(2, "step.started", step="copy", target="snap-1", to="444444444444")
COPIED = event(3, "step.done", step="copy", target="snap-1", copy="snap-2", kms_key="k",
               lock={"state": "compliance", "until": "2026-02-01T00:00:00Z"})  # fmt: skip


def compared(result):
    return event(4, "item.verified", item="E0001", result=result, snapshot="snap-2")


def said(events, source=SOURCE):
    return [str(link) for link in lineage("E0001", source, events)]


@pytest.mark.parametrize("source", [{}, {"snapshot": None}, {"text": "disk.img"}])
def test_what_was_not_read_from_a_snapshot_has_none(source):
    assert said([FROZEN, COPIED], source) == []


def test_a_whole_chain():
    assert said([FROZEN, COPYING, COPIED, compared("ok")]) == [
        "volume vol-1 (/dev/sdf, i-1)",
        "snapshot snap-1 (222222222222, begun 2026-01-01T00:00:00.000Z, not locked)",
        "shared with 444444444444",
        "copy snap-2 (444444444444, locked (compliance) until 2026-02-01T00:00:00Z, under k)",
        "item E0001 (read whole and equal)",
    ]


def test_a_copy_that_differs_is_not_called_equal():
    assert said([COPYING, COPIED, compared("failed")])[-1] == "item E0001 (NOT EQUAL)"


def test_a_copy_that_nobody_read_is_not_called_equal():
    other = event(4, "item.verified", item="E0002", snapshot="snap-2")
    assert said([COPYING, COPIED, other])[-1] == "item E0001 (not compared)"


def test_without_a_copy():
    assert said([FROZEN, COPYING])[-1] == "item E0001 (read from it; no copy was made)"


def test_a_volume_frozen_again_keeps_both_chains_apart():
    again = event(9, "step.done", step="snapshot", target="vol-1", snapshot="snap-9")
    assert lineage("E0001", SOURCE, [FROZEN, again])[0].entry == 1
    assert lineage("E0001", {**SOURCE, "snapshot": "snap-9"}, [FROZEN, again])[0].entry == 9


def test_what_could_not_be_shared_was_copied_first():
    own = event(2, "step.done", step="reencrypt", target="snap-1", copy="snap-7", kms_key="m")
    shared = event(5, "step.done", step="share", target="snap-7", to="444444444444")
    copied = event(6, "step.done", step="copy", target="snap-1", copy="snap-2", through="snap-7")
    chain = lineage("E0001", SOURCE, [FROZEN, COPYING, own, shared, copied])
    assert [(link.what, link.name, link.entry) for link in chain[2:5]] == [
        ("copy", "snap-7", 2), ("share", "444444444444", 5), ("copy", "snap-2", 6),
    ]  # fmt: skip
