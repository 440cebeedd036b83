# SPDX-License-Identifier: Apache-2.0
"""Points in time of one volume: freezing again, and fetching only what changed since."""

from __future__ import annotations

import hashlib
import os

import pytest

from pipeline.gameday.aws.accounts import MEMBER
from pipeline.gameday.aws.faults import Fault
from tests.evidence_store.kit import pattern

GIB = 1 << 30
BLOCK = 512 << 10


@pytest.fixture
def images(tmp_path):
    """Two volumes, of which the second is empty but for its last block."""
    made = []
    for number, blocks in enumerate(((0, 3, 2047), (2047,))):
        path = tmp_path / f"volume{number}.img"
        with path.open("wb") as f:
            f.truncate(GIB)
            for index in blocks:
                os.pwrite(f.fileno(), pattern(BLOCK, number + 1), index * BLOCK)
        made.append(path)
    return made


@pytest.fixture
def one(cloud, zone):
    """`acquire volume --no-copy` of the first volume."""
    volume = zone.estate.variables()["VOLUMES"].split()[0]
    return lambda *more: cloud("--json", "acquire", "volume", volume, "--case", "T-1", "--no-copy",
                               *more)  # fmt: skip


def gets(aws_server):
    return sum(c.operation == "GetSnapshotBlock" for c in aws_server.calls())


@pytest.mark.chaos
def test_a_second_point_in_time_fetches_only_what_changed(one, cloud, aws_server, zone, images):
    first = one().json["volumes"][0]
    aws_server.write(zone.estate.volumes[0], {3: pattern(BLOCK, 9), 700: pattern(BLOCK, 8)})
    before = gets(aws_server)
    done = one("--again", "--since", "last")
    assert done.code == 0, done.out + done.err
    second = done.json["volumes"][0]
    assert second["snapshot"] != first["snapshot"]
    assert (second["since"], second["fetched"]) == (first["item"], 2 * BLOCK)
    assert gets(aws_server) - before == 2
    items = cloud("--json", "item", "list", "T-1").json["items"]
    whole = bytearray(images[0].read_bytes())
    whole[3 * BLOCK : 4 * BLOCK] = pattern(BLOCK, 9)
    whole[700 * BLOCK : 701 * BLOCK] = pattern(BLOCK, 8)
    manifest = items[1]["manifest"]
    assert manifest["content"]["sha256"] == hashlib.sha256(whole).hexdigest()
    assert manifest["source"]["base_item"] == first["item"]
    assert manifest["parents"] == [first["item"]]
    assert cloud("verify", "T-1", "--deep").code == 0
    plain = one()
    assert [v["item"] for v in plain.json["volumes"]] == [second["item"]]


def test_again_goes_on_with_a_freeze_that_is_not_read_yet(one, aws_server, zone):
    one()
    aws_server.faults.add(
        Fault("error", service="ebs", operation="ListSnapshotBlocks", status=403, times=None,
              code="AccessDeniedException", message="no")
    )  # fmt: skip
    failed = one("--again")
    assert failed.code == 3
    aws_server.faults.clear()
    done = one("--again")
    assert done.code == 0
    assert done.json["volumes"][0]["snapshot"] == failed.json["volumes"][0]["snapshot"]
    assert "goes on with it" in done.out


def test_since_a_snapshot_that_was_there_before(one, cloud, zone, aws_server):
    taken = cloud("--json", "acquire", "snapshot", zone.estate.variables()["SNAPSHOT"], "--case",
                  "T-1", "--no-copy")  # fmt: skip
    assert taken.code == 0, taken.out + taken.err
    aws_server.write(zone.estate.volumes[0], {9: pattern(BLOCK, 9)})
    done = one("--since", zone.estate.snapshot)
    assert done.code == 0, done.out + done.err
    assert done.json["volumes"][0]["fetched"] == BLOCK


def test_what_cannot_be_a_base_is_said_before_anything_is_made(one, cloud, zone, aws_server,
                                                               tmp_path):  # fmt: skip
    (tmp_path / "file.img").write_bytes(b"x" * 512)
    assert cloud("ingest", "T-1", str(tmp_path / "file.img"), "--kind", "disk").code == 0
    other = zone.estate.variables()["VOLUMES"].split()[1]
    of_other = cloud("--json", "acquire", "volume", other, "--case", "T-1", "--no-copy")
    made = len(aws_server.client("ec2", MEMBER).describe_snapshots(OwnerIds=["self"])["Snapshots"])
    for since, words in (
        ("snap-0123456789abcdef0", "no complete item"),
        ("E0099", "no item E0099"),
        ("E0001", "was not read from a snapshot"),
        (of_other.json["volumes"][0]["item"], "none of the target's"),
    ):
        done = one("--since", since)
        assert done.code != 0
        assert words in done.err, done.err
    ec2 = aws_server.client("ec2", MEMBER)
    assert len(ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]) == made


def test_since_itself_asks_for_a_later_point_in_time(one):
    first = one()
    done = one("--since", first.json["volumes"][0]["item"])
    assert done.code == 12
    assert "--again" in done.err


def test_an_item_that_is_not_complete_is_no_base(one, aws_server, zone, cloud):
    aws_server.faults.add(
        Fault("error", service="ebs", operation="GetSnapshotBlock", status=403, times=None,
              code="AccessDeniedException", message="no")
    )  # fmt: skip
    assert one().code == 3
    aws_server.faults.clear()
    done = one("--since", "E0001")
    assert done.code == 12
    assert "E0001 is failed" in done.err


def test_a_volume_does_not_shrink():
    from acquisition.errors import AcquisitionError
    from pipeline.baseline import Held, check_size

    held = Held("E0001", "snap-1", "arn:volume", 2 * GIB, "2026-01-01", 0)
    check_size(held, 2 * GIB)
    with pytest.raises(AcquisitionError, match="do not shrink"):
        check_size(held, GIB)
