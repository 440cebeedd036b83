# SPDX-License-Identifier: Apache-2.0
"""Snapshots by EBS direct: equal bytes whatever happens on the way, or one clear error."""

from __future__ import annotations

import hashlib
import ipaddress
import re
import ssl
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from acquisition.blocks import Base, DeltaImage, SnapshotFile, SnapshotImage, snapshot_facts
from acquisition.ebs import (
    BLOCK_BYTES,
    Bucket,
    EbsDirect,
    Endpoint,
    ServiceError,
    Window,
)
from acquisition.errors import AcquisitionError, SourceNotFoundError, UnsupportedSourceError
from evidence_store.digest import Range, segment_name
from evidence_store.errors import IntegrityError, SourceChangedError
from evidence_store.transfer import UnreadableError
from tests.acquisition.ebs_server import BLOCK, EbsServer, block, image
from tests.evidence_store import kit

SEGMENT = 2 * BLOCK
FULL = {i: block(i) for i in (0, 1, 3, 8, 9, 10, 11, 700, 2047)}
THROTTLED = "400 RequestThrottledException ACCOUNT_THROTTLED"


@pytest.fixture
def server():
    """One snapshot of 1 GiB, `snap-1`."""
    server = EbsServer({"snap-1": dict(FULL)})
    yield server
    server.close()


class Waits:
    """Waits for nothing, and remembers for how long it should have."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, stop: threading.Event, seconds: float) -> bool:
        self.seconds.append(seconds)
        return stop.is_set()


@pytest.fixture
def waits():
    return Waits()


@pytest.fixture
def service(server, waits):
    with make_service(server, waits) as service:
        yield service


def make_service(server, waits, credentials=None, **options):
    endpoint = Endpoint(
        server.url, "eu-central-1", "111122223333", credentials or Credentials("AKIAX", "secret")
    )
    options.setdefault("blocks_per_second", 1e6)
    options.setdefault("lists_per_second", 1e6)
    return EbsDirect(endpoint, wait=waits, **options)


@pytest.fixture
def world(world, tmp_path):
    world.store.resume = tmp_path / "resume"
    return world


def take(world, source, **options):
    options.setdefault("linear", False)
    return world.case.ingest("disk", source, segment_size=SEGMENT, **options)


def content(world, item_id, blocks=range(2048)):
    """The bytes of an item at these blocks."""
    with world.case.open(item_id) as f:
        return b"".join(f.pread(BLOCK, i * BLOCK) for i in blocks)


def whole_digest(blocks):
    digest = hashlib.sha256()
    for index in range(2048):
        digest.update(blocks.get(index, bytes(BLOCK)))
    return digest.hexdigest()


def near(*snapshots):
    """Every block that is written in one of these, and its neighbours."""
    written = {i + d for blocks in snapshots for i in blocks for d in (-1, 0, 1)}
    return sorted(i for i in written if 0 <= i < 2048)


# -- whole images --------------------------------------------------------------------------------


def test_a_snapshot_becomes_an_item_of_equal_bytes(world, server, service):
    taken = take(world, SnapshotImage(service, "snap-1", facts={"owner": "1"}), linear=True)
    assert taken.manifest.content["sha256"] == whole_digest(FULL)
    assert taken.manifest.result == "ok"
    assert sorted(server.gets()) == sorted(FULL)
    source = taken.manifest.source
    assert source["source_checksums"] == {
        "algorithm": "SHA256", "block_size": BLOCK, "checked": 9, "mismatched": 0, "unreadable": 0,
    }  # fmt: skip
    assert source["fetched_bytes"] == 9 * BLOCK
    assert source["owner"] == "1"
    assert source["read_by"]["account"] == "111122223333"
    assert kit.verify(world.root).findings == []


@pytest.mark.chaos
@settings(max_examples=20)
@given(
    indices=st.sets(st.integers(0, 2047) | st.integers(0, 9), max_size=12),
    page=st.integers(1, 4),
    empty=st.integers(0, 2),
    forgetful=st.booleans(),
)
def test_any_set_of_blocks_in_any_pages_gives_the_image(
    tmp_path_factory, indices, page, empty, forgetful
):
    blocks = {i: block(i) for i in indices}
    server = EbsServer({"snap-1": blocks}, page_limit=page, empty_pages=empty)
    server.expire_on_list = forgetful
    world = kit.make_world(tmp_path_factory.mktemp("w") / "store")
    try:
        with make_service(server, Waits()) as service:
            source = SnapshotImage(service, "snap-1", page_blocks=100)
            assert source.listing.count() == len(blocks)
            taken = take(world, source, read_back=False)
    finally:
        server.close()
    assert taken.manifest.unreadable == []
    stored = world.case.segments(taken.manifest)
    assert {int(name, 16) for name in stored.digests} == {i // 2 for i in blocks}
    assert content(world, taken.item_id, near(blocks)) == image(blocks, near(blocks))


def test_a_block_written_with_zeros_is_a_hole_like_one_never_written(world, server, service):
    server.snapshots["snap-1"] = {0: block(0), 4: bytes(BLOCK), 5: bytes(BLOCK)}
    taken = take(world, SnapshotImage(service, "snap-1"))
    assert taken.manifest.stored_objects == 1
    assert taken.manifest.unreadable == []


def test_a_snapshot_taken_before_is_not_taken_again(world, server, service):
    first = take(world, SnapshotImage(service, "snap-1"))
    asked = len(server.gets())
    second = take(world, SnapshotImage(service, "snap-1"))
    assert (second.item_id, second.existing) == (first.item_id, True)
    assert len(server.gets()) == asked


def test_a_byte_range_reads_as_the_image_does(service):
    source = SnapshotImage(service, "snap-1")
    view = memoryview(bytearray(BLOCK))
    assert source.readinto(view, 3 * BLOCK + 100) == BLOCK - 100
    assert bytes(view[: BLOCK - 100]) == block(3)[100:]
    assert source.readinto(view, 2 * BLOCK) == BLOCK
    assert bytes(view) == bytes(BLOCK)
    assert source.readinto(view, source.size) == 0
    assert [source.next_data(i) for i in (5, 2 * BLOCK, 12 * BLOCK, 2047 * BLOCK + 7)] == [
        5, 3 * BLOCK, 700 * BLOCK, 2047 * BLOCK + 7,
    ]  # fmt: skip


# -- faults that pass ----------------------------------------------------------------------------

PASSING = {
    "throttled": ("error", THROTTLED),
    "throttled by another name": ("error", "429 TooManyRequestsException"),
    "internal error": ("error", "500 InternalServerException"),
    "unavailable": ("error", "503 ServiceUnavailable"),
    "a block not found for a moment": ("error", "404 ResourceNotFoundException"),
    "a connection lost": ("hang up", ""),
    "a body cut off": ("truncate", ""),
    "a body of another content": ("corrupt", ""),
    "a body too short": ("short", ""),
    "a body too long": ("long", ""),
    "no checksum": ("no checksum", ""),
    "another length stated": ("wrong length", ""),
    "a slow answer": ("delay", "0.05"),
}


@pytest.mark.parametrize("fault", PASSING)
def test_blocks_are_asked_for_again_after(world, server, service, fault):
    kind, value = PASSING[fault]
    server.fail(kind, "blockToken", times=4, value=value)
    taken = take(world, SnapshotImage(service, "snap-1"))
    assert taken.manifest.result == "ok"
    assert content(world, taken.item_id, near(FULL)) == image(FULL, near(FULL))
    assert len(server.gets()) == len(FULL) + (0 if kind == "delay" else 4)


@pytest.mark.parametrize("fault", ["throttled", "unavailable", "a connection lost"])
def test_lists_are_asked_for_again_after(world, server, service, fault):
    kind, value = PASSING[fault]
    server.page_limit = 2
    server.fail(kind, "maxResults", times=4, value=value)
    taken = take(world, SnapshotImage(service, "snap-1"))
    assert content(world, taken.item_id, near(FULL)) == image(FULL, near(FULL))


def test_a_list_that_is_no_json_is_asked_for_again(world, server, service):
    server.fail("text", "maxResults", times=2, value="<html>")
    assert take(world, SnapshotImage(service, "snap-1")).manifest.result == "ok"


def test_refused_block_tokens_are_listed_anew(world, server, service):
    source = SnapshotImage(service, "snap-1")
    server.generation += 1  # seven days later
    taken = take(world, source)
    assert taken.manifest.result == "ok"
    assert content(world, taken.item_id, near(FULL)) == image(FULL, near(FULL))


def test_a_refused_page_token_begins_the_list_where_it_was(server, service):
    server.empty_pages = 1
    server.page_limit = 3
    server.fail("error", "pageToken", times=1, value="400 ValidationException INVALID_PAGE_TOKEN")
    assert SnapshotImage(service, "snap-1").listing.count() == len(FULL)


def test_the_service_is_given_the_time_it_asks_for(world, server, service, waits):
    server.fail("error", "blocks/3?", times=1, value=f"{THROTTLED.rpartition(' ')[0]} after=7")
    assert take(world, SnapshotImage(service, "snap-1")).manifest.result == "ok"
    assert max(waits.seconds) == 7


def test_mismatches_are_counted_in_the_manifest(world, server, service):
    server.fail("corrupt", "blocks/8?", times=2)
    taken = take(world, SnapshotImage(service, "snap-1"))
    assert taken.manifest.result == "ok"
    stated = taken.manifest.source["source_checksums"]
    assert (stated["checked"], stated["mismatched"], stated["unreadable"]) == (9, 2, 0)


# -- blocks that are lost ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "value", "why"),
    [
        ("corrupt", "", "block 9 of snap-1: SHA-256 is [0-9a-f]{64}, AWS states [0-9a-f]{64}"),
        (
            "no checksum",
            "",
            "block 9 of snap-1: AWS states length '524288', 'SHA256' checksum of 0",
        ),
        ("error", "500 InternalServerException", "block 9 .*other blocks are answered"),
        ("error", "404 ResourceNotFoundException", "block 9 .*other blocks are answered"),
    ],
    ids=["corrupt", "unstated", "mute", "not found"],
)
def test_a_block_that_is_never_right_is_unreadable_and_never_zeros(
    world, server, service, kind, value, why
):
    server.fail(kind, "blocks/9?", value=value)
    taken = take(world, SnapshotImage(service, "snap-1"), workers=1)
    assert taken.manifest.result == "partial"
    assert [(g.offset, g.length) for g in taken.manifest.unreadable] == [(9 * BLOCK, BLOCK)]
    assert re.search(why, taken.manifest.unreadable[0].error)
    assert taken.manifest.source["source_checksums"]["unreadable"] == 1
    assert content(world, taken.item_id, [8, 10]) == block(8) + block(10)
    assert world.case.segments(taken.manifest).unreadable == [Range(9 * BLOCK, BLOCK)]


def test_a_segment_of_lost_blocks_is_not_stored(world, server, service):
    for index in (8, 9):
        server.fail("corrupt", f"blocks/{index}?")
    taken = take(world, SnapshotImage(service, "snap-1"))
    assert segment_name(4) not in world.case.segments(taken.manifest).digests
    assert taken.manifest.unreadable_bytes == 2 * BLOCK


# -- faults that stay ----------------------------------------------------------------------------

NOW = datetime.now(UTC)
STAYING = {
    "no right": ("error", "403 AccessDeniedException", "AccessDenied", "ebs:GetSnapshotBlock"),
    "no such key": ("error", "403 UnrecognizedClientException", "Unrecognized", "profile"),
    "expired credentials": ("error", "403 ExpiredTokenException", "ExpiredToken", "renew"),
    "unavailable": ("error", "503 ServiceUnavailable", "ServiceUnavailable", "later"),
    "throttled": ("error", THROTTLED, "ACCOUNT_THROTTLED", "quota"),
    "no network": ("hang up", "", "ProtocolError|ConnectionError", "network"),
    "cut off": ("truncate", "", "IncompleteRead|ProtocolError", "network"),
    "a clock that is wrong": (
        "error",
        "403 InvalidSignatureException date="
        + format_datetime(NOW - timedelta(hours=2), usegmt=True),
        "clock is 7[0-9]{3} s ahead", "chronyc",
    ),
    "a clock that is wrong, said so": (
        "error", "403 RequestTimeTooSkewed", "this machine's clock differs", "chronyc",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", STAYING)
def test_one_clear_error_and_a_second_run_completes_it_after(world, server, service, fault):
    kind, value, message, hint = STAYING[fault]
    for index in (700, 2047):
        server.fail(kind, f"blocks/{index}?", value=value)
    if value.startswith("503") or kind in ("hang up", "truncate"):
        server.fail(kind, "blockToken", value=value)
        server.faults[-1].match = lambda p: len(server.gets()) > 7 and "blockToken" in p
    with pytest.raises(ServiceError, match=message) as e:
        take(world, SnapshotImage(service, "snap-1"), workers=1)
    assert hint in e.value.hint
    assert world.case.state.items["E0001"].intents[0].outcome == "failed"
    server.faults.clear()
    asked = len(server.gets())
    taken = take(world, SnapshotImage(service, "snap-1"))
    assert taken.resumed
    assert content(world, taken.item_id, near(FULL)) == image(FULL, near(FULL))
    assert set(server.gets()[asked:]) <= {11, 10, 700, 2047}
    assert kit.verify(world.root).findings == []


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("403 AccessDeniedException UNAUTHORIZED_ACCOUNT", "ebs:ListSnapshotBlocks"),
        ("404 ResourceNotFoundException SNAPSHOT_NOT_FOUND", "whose key may not be used"),
    ],
)
def test_a_snapshot_that_may_not_be_listed_is_one_clear_error(server, service, value, hint):
    server.fail("error", "", value=value)
    with pytest.raises(ServiceError, match=r"cannot list the blocks of snap-1: .*Exception") as e:
        SnapshotImage(service, "snap-1")
    assert hint in e.value.hint
    assert len(server.requests) == 1


def test_a_service_that_only_fails_is_not_a_disk_of_unreadable_blocks(world, server, service):
    server.fail("error", "blockToken", value="500 InternalServerException")
    with pytest.raises(ServiceError, match="InternalServerException"):
        take(world, SnapshotImage(service, "snap-1"))


def page(blocks, **changes):
    import json

    listed = [{"BlockIndex": i, "BlockToken": "t"} for i in blocks]
    return json.dumps({"Blocks": listed, "VolumeSize": 1, "BlockSize": BLOCK} | changes)


@pytest.mark.parametrize(
    "body",
    [
        page([3, 3]), page([4, 3]), page([-1]), page([2048]), page([True]), page(["1"]),
        page([], Blocks=[{"BlockIndex": 1}]), page([], Blocks=[7]), page([], Blocks="x"),
        page([], BlockSize=512), page([], BlockSize=None), page([], VolumeSize=0),
        page([], VolumeSize=1 << 40), page([], VolumeSize="1"), page([], VolumeSize=True),
    ],
    ids=range(15),
)  # fmt: skip
def test_a_malformed_list_is_refused(server, service, body):
    server.fail("text", "maxResults", value=body)
    with pytest.raises(AcquisitionError, match="makes no sense"):
        SnapshotImage(service, "snap-1")


def test_a_volume_that_changes_its_size_is_refused(server, service):
    server.page_limit = 2
    source = SnapshotImage(service, "snap-1")
    server.gib = 2
    with pytest.raises(AcquisitionError, match="the volume has 2 GiB"):
        source.listing.count()


def test_a_block_that_is_not_listed_any_more_is_an_error(world, server, service):
    source = SnapshotImage(service, "snap-1")
    del server.snapshots["snap-1"][9]
    with pytest.raises(AcquisitionError, match="block 9 of snap-1 was listed and is not any more"):
        take(world, source)


# -- taken up again ------------------------------------------------------------------------------


def interrupt(world, server, service):
    """Leave an item whose last segments are missing; return what was stored."""
    server.fail("error", "blocks/700?", value="403 AccessDeniedException")
    with pytest.raises(ServiceError):
        take(world, SnapshotImage(service, "snap-1"), workers=1)
    server.faults.clear()
    server.requests.clear()
    return sorted((world.folder / "items/E0001/data").iterdir())


def test_stored_segments_are_not_fetched_again(world, server, service):
    assert len(interrupt(world, server, service)) == 4
    taken = take(world, SnapshotImage(service, "snap-1"), linear=True)
    assert sorted(server.gets()) == [700, 2047]
    assert taken.manifest.content["sha256"] == whole_digest(FULL)
    assert world.case.item(taken.item_id).acquired
    assert not list(world.store.resume.rglob("*.jsonl"))  # of no more use


def test_without_notes_stored_segments_are_fetched_and_compared(world, server, service):
    interrupt(world, server, service)
    for path in world.store.resume.rglob("*.jsonl"):
        path.unlink()
    assert take(world, SnapshotImage(service, "snap-1")).manifest.result == "ok"
    assert sorted(server.gets()) == sorted(FULL)


@pytest.mark.parametrize("linear", [True, False])
def test_a_segment_tampered_with_between_two_runs_is_caught(world, server, service, linear):
    stored = interrupt(world, server, service)
    stored[2].chmod(0o600)
    stored[2].write_bytes(bytes(SEGMENT))
    with pytest.raises(SourceChangedError, match=stored[2].name):
        take(world, SnapshotImage(service, "snap-1"), linear=linear)


def test_notes_that_are_torn_or_about_something_else_are_of_no_effect(world, server, service):
    interrupt(world, server, service)
    (notes,) = world.store.resume.rglob("*.jsonl")
    lines = notes.read_bytes().splitlines(keepends=True)
    notes.write_bytes(lines[0] + b"{}\n[]\n\xff\n" + lines[2] + lines[3][:-5])
    take(world, SnapshotImage(service, "snap-1"))
    assert len(server.gets()) == len(FULL) - len([3] if b"0001" in lines[2] else [8, 9])


def test_notes_about_another_source_are_dropped(world, server, service):
    interrupt(world, server, service)
    (notes,) = world.store.resume.rglob("*.jsonl")
    lines = notes.read_bytes().splitlines(keepends=True)
    notes.write_bytes(b'{"key": "other", "segment_size": 0}\n' + b"".join(lines[1:]))
    take(world, SnapshotImage(service, "snap-1"))
    assert sorted(server.gets()) == sorted(FULL)


def test_a_lost_block_stays_lost_in_a_segment_that_is_not_fetched_again(world, server, service):
    server.fail("corrupt", "blocks/9?")
    interrupt(world, server, service)
    taken = take(world, SnapshotImage(service, "snap-1"))
    assert sorted(server.gets()) == [700, 2047]
    assert [(g.offset, g.length) for g in taken.manifest.unreadable] == [(9 * BLOCK, BLOCK)]
    assert taken.manifest.result == "partial"


# -- deltas --------------------------------------------------------------------------------------

LATER = {i: b for i, b in FULL.items() if i != 3} | {1: block(71), 500: block(500)}


@pytest.fixture
def later(server):
    """A second snapshot of the volume, `snap-2`: 1 rewritten, 3 discarded, 500 written."""
    server.snapshots["snap-2"] = dict(LATER)
    return server


def test_a_delta_fetches_what_changed_and_opens_as_the_whole(world, later, service):
    base = take(world, SnapshotImage(service, "snap-1"))
    later.requests.clear()
    with DeltaImage(SnapshotImage(service, "snap-2"), Base.of(world.case, base.item_id)) as delta:
        taken = take(world, delta, linear=True, parents=[base.item_id])
    assert sorted(later.gets()) == [1, 500]
    assert taken.manifest.content["sha256"] == whole_digest(LATER)
    source = taken.manifest.source
    assert (source["base_item"], source["base_snapshot"]) == (base.item_id, "snap-1")
    assert source["base_image_root"] == base.manifest.image_root
    assert source["fetched_bytes"] == 2 * BLOCK
    assert source["base_bytes"] == 10 * BLOCK  # with what the base's segments hold around them
    assert kit.verify(world.root).findings == []


def test_a_delta_has_the_root_of_the_whole(world, later, service, tmp_path):
    base = take(world, SnapshotImage(service, "snap-1"))
    delta = take(
        world, DeltaImage(SnapshotImage(service, "snap-2"), Base.of(world.case, base.item_id))
    )
    other = kit.make_world(tmp_path / "other")
    whole = take(other, SnapshotImage(service, "snap-2"))
    assert delta.manifest.image_root == whole.manifest.image_root


@pytest.mark.chaos
@settings(max_examples=15)
@given(
    before=st.dictionaries(st.integers(0, 15), st.integers(0, 3), max_size=8),
    after=st.dictionaries(st.integers(0, 15), st.integers(0, 3), max_size=8),
    page=st.integers(1, 3),
    empty=st.integers(0, 1),
)
def test_a_delta_of_any_two_snapshots_is_the_second(tmp_path_factory, before, after, page, empty):
    old, new = ({i: block(s) for i, s in blocks.items()} for blocks in (before, after))
    server = EbsServer({"snap-1": old, "snap-2": new}, page_limit=page, empty_pages=empty)
    world = kit.make_world(tmp_path_factory.mktemp("w") / "store")
    try:
        with make_service(server, Waits()) as service:
            base = take(world, SnapshotImage(service, "snap-1"), read_back=False)
            server.requests.clear()
            source = DeltaImage(SnapshotImage(service, "snap-2"), Base.of(world.case, base.item_id))
            taken = take(world, source, read_back=False)
            view = memoryview(bytearray(BLOCK))
            for i in range(17):
                assert source.readinto(view, i * BLOCK) == BLOCK
                assert bytes(view) == new.get(i, bytes(BLOCK))
    finally:
        server.close()
    assert content(world, taken.item_id, range(17)) == image(new, range(17))
    changed = {i for i in new if new[i] != old.get(i)}
    assert set(server.gets()) <= changed


def test_what_the_base_could_not_read_is_fetched(world, later, service):
    later.fail("corrupt", "snap-1/blocks/9?")
    base = take(world, SnapshotImage(service, "snap-1"))
    assert base.manifest.unreadable_bytes == BLOCK
    later.requests.clear()
    taken = take(
        world, DeltaImage(SnapshotImage(service, "snap-2"), Base.of(world.case, base.item_id))
    )
    assert sorted(later.gets()) == [1, 9, 500]
    assert taken.manifest.result == "ok"
    assert content(world, taken.item_id, near(LATER)) == image(LATER, near(LATER))


def test_a_delta_on_a_volume_that_grew(world, later, service):
    base = take(world, SnapshotImage(service, "snap-1"))
    later.gib = 2
    later.snapshots["snap-2"][3000] = block(3000)
    taken = take(
        world, DeltaImage(SnapshotImage(service, "snap-2"), Base.of(world.case, base.item_id))
    )
    assert taken.manifest.size == 2 << 30
    assert content(world, taken.item_id, [0, 1, 2047, 2048, 3000]) == image(
        later.snapshots["snap-2"], [0, 1, 2047, 2048, 3000]
    )


def test_a_base_that_was_tampered_with_is_not_copied(world, later, service):
    base = take(world, SnapshotImage(service, "snap-1"))
    path = world.folder / "items" / base.item_id / "data" / segment_name(4)
    path.chmod(0o600)
    path.write_bytes(bytes(SEGMENT))
    delta = DeltaImage(SnapshotImage(service, "snap-2"), Base.of(world.case, base.item_id))
    with pytest.raises(IntegrityError, match="is not what was acquired"):
        take(world, delta)
    assert not world.case.item("E0002").acquired


def test_snapshots_of_two_volumes_are_no_delta(world, later, service):
    base = take(world, SnapshotImage(service, "snap-1"))
    later.fail("error", "changedblocks", value="400 ValidationException UNRELATED_SNAPSHOTS")
    with pytest.raises(ServiceError, match="UNRELATED_SNAPSHOTS") as e:
        DeltaImage(SnapshotImage(service, "snap-2"), Base.of(world.case, base.item_id))
    assert "without --since" in e.value.hint


def test_an_item_of_a_file_is_no_base(world):
    taken = world.case.ingest("disk", kit.FakeImage(bytes(100)), segment_size=SEGMENT)
    with pytest.raises(UnsupportedSourceError, match="was not read from a snapshot"):
        Base.of(world.case, taken.item_id)


# -- a file over a snapshot ----------------------------------------------------------------------


def test_a_file_fetches_the_blocks_asked_for_once(server, service):
    source = SnapshotImage(service, "snap-1", page_blocks=100)
    with SnapshotFile(source) as f:
        assert f.size == 1 << 30
        assert f.pread(10, 700 * BLOCK + 5) == block(700)[5:15]
        assert f.pread(10, 700 * BLOCK + 50) == block(700)[50:60]
        assert f.pread(BLOCK, 400 * BLOCK) == bytes(BLOCK)
        assert f.pread(100, (1 << 30) - 50) == block(2047)[-50:]
        assert f.pread(1, 1 << 30) == b""
        assert sorted(server.gets()) == [700, 2047]
    assert source.received.bytes == 2 * BLOCK


def test_a_file_reads_and_seeks_as_files_do(service):
    whole = image(FULL, range(14))
    with SnapshotFile(SnapshotImage(service, "snap-1"), cache_bytes=3 * BLOCK) as f:
        assert f.read(5 * BLOCK) == whole[: 5 * BLOCK]
        f.seek(3 * BLOCK - 7)
        assert f.read(9 * BLOCK) == whole[3 * BLOCK - 7 : 12 * BLOCK - 7]
        assert f.tell() == 12 * BLOCK - 7
        f.seek(-3, 2)
        assert f.read() == block(2047)[-3:]


def test_a_file_keeps_no_more_than_it_may(server, service):
    with SnapshotFile(SnapshotImage(service, "snap-1"), cache_bytes=2 * BLOCK) as f:
        for index in (0, 3, 8, 0):
            f.pread(1, index * BLOCK)
        f.pread(1, 0)
    assert server.gets() == [0, 3, 8, 0]


def test_a_file_reads_ahead_only_where_reading_goes_on(server, service):
    with SnapshotFile(SnapshotImage(service, "snap-1"), readahead=2) as f:
        f.pread(BLOCK, 8 * BLOCK)
        assert server.gets() == [8]
        f.pread(BLOCK, 9 * BLOCK)
        assert sorted(server.gets()) == [8, 9, 10, 11]


def test_a_file_gives_no_zeros_for_what_is_lost(server, service):
    server.fail("corrupt", "blocks/9?")
    with SnapshotFile(SnapshotImage(service, "snap-1")) as f:
        assert f.pread(BLOCK, 8 * BLOCK) == block(8)
        for _ in range(2):
            with pytest.raises(UnreadableError, match="block 9"):
                f.pread(BLOCK, 8 * BLOCK + 1)
    assert server.gets().count(9) == 5


# -- pace, credentials, connections --------------------------------------------------------------


def test_a_bucket_gives_its_burst_and_then_its_rate():
    now = [100.0]
    bucket = Bucket(10, 3, clock=lambda: now[0])
    now[0] = 200.0
    assert [round(bucket.reserve(), 3) for _ in range(6)] == [0, 0, 0, 0, 0.1, 0.2]
    now[0] += 0.25
    assert round(bucket.reserve(), 3) == 0.05


def test_requests_wait_for_the_bucket_of_the_account_and_of_the_snapshot(world, server, waits):
    with make_service(server, waits, blocks_per_second=1) as service:
        take(world, SnapshotImage(service, "snap-1"))
    assert max(waits.seconds) > 5  # the ninth block of nine, at one a second


def test_throttling_halves_what_is_in_flight_and_success_restores_it():
    now, stop = [0.0], threading.Event()
    window = Window(32, clock=lambda: now[0])
    for _ in range(200):
        window.enter(stop)
        window.leave(well=True)
    full = window.limit
    assert full > 16
    for _ in range(5):  # in flight together: one cut
        window.enter(stop)
        window.leave(well=False, throttled=True)
    assert window.limit == full / 2
    now[0] += 10
    window.enter(stop)
    window.leave(well=False, throttled=True)
    assert window.limit == full / 4
    for _ in range(2000):
        window.enter(stop)
        window.leave(well=True)
    assert window.limit == 32


def test_connections_are_used_again(world, server, waits):
    with make_service(server, waits, connections=2) as service:
        take(world, SnapshotImage(service, "snap-1"))
    assert server.connections <= 2


@pytest.fixture
def tls(tmp_path):
    """(context of a server on 127.0.0.1, file with the certificate that vouches for it)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(NOW - timedelta(days=1)).not_valid_after(NOW + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    bundle, private = tmp_path / "ca.pem", tmp_path / "key.pem"
    bundle.write_bytes(certificate.public_bytes(Encoding.PEM))
    private.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(bundle, private)
    return context, bundle


def test_the_endpoint_must_prove_who_it_is(world, waits, tls, monkeypatch):
    context, bundle = tls
    server = EbsServer({"snap-1": dict(FULL)}, tls=context)
    try:
        with (
            make_service(server, waits) as service,
            pytest.raises(ServiceError, match="is not who it says it is") as e,
        ):
            SnapshotImage(service, "snap-1")
        assert "AWS_CA_BUNDLE" in e.value.hint
        assert not server.requests
        monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
        with make_service(server, waits) as service:
            assert take(world, SnapshotImage(service, "snap-1")).manifest.result == "ok"
    finally:
        server.close()


def test_reading_ends_at_once_when_it_is_told_to_stop(server):
    server.fail("error", "blockToken", value="503 ServiceUnavailable")
    endpoint = Endpoint(server.url, "eu-central-1", "1", Credentials("AKIAX", "secret"))
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    with EbsDirect(endpoint) as service:  # it waits, as in earnest
        source = SnapshotImage(service, "snap-1")
        started = time.monotonic()
        source.fill(memoryview(bytearray(SEGMENT)), 0, stop)
        assert time.monotonic() - started < 3


def test_credentials_are_asked_for_at_each_request(world, server, waits):
    class Renewing:
        asked = 0

        def get_frozen_credentials(self):
            self.asked += 1
            return Credentials(f"AKIA{self.asked}", "secret", f"token{self.asked}")

    renewing = Renewing()
    with make_service(server, waits, renewing) as service:
        take(world, SnapshotImage(service, "snap-1"))
    assert renewing.asked == len(server.requests)
    sent = [h["Authorization"] for h in server.headers]
    assert len(set(sent)) == len(sent)
    assert all("/eu-central-1/ebs/aws4_request" in s for s in sent)
    assert server.headers[0]["X-Amz-Security-Token"] == "token1"


def test_the_signature_is_that_of_what_is_sent(server, service):
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest

    SnapshotFile(SnapshotImage(service, "snap-1")).pread(1, 0)
    sent, headers = server.requests[-1], server.headers[-1]
    assert "%2B" in sent or "%3D" in sent  # a token is not safe in an address as it is
    request = AWSRequest("GET", server.url + sent)
    request.headers["X-Amz-Date"] = headers["X-Amz-Date"]
    request.context["timestamp"] = headers["X-Amz-Date"]
    auth = SigV4Auth(Credentials("AKIAX", "secret"), "ebs", "eu-central-1")
    canonical = auth.canonical_request(request)
    expected = auth.signature(auth.string_to_sign(request, canonical), request)
    assert headers["Authorization"].endswith(f"Signature={expected}")


def test_no_credentials_are_one_clear_error():
    class Session:
        def get_credentials(self):
            return None

    with pytest.raises(AcquisitionError, match="no AWS credentials"):
        Endpoint.of(Session(), None, "111122223333")


def test_a_failing_source_of_credentials_is_one_clear_error(server, waits):
    from botocore.exceptions import CredentialRetrievalError

    class Broken:
        def get_frozen_credentials(self):
            raise CredentialRetrievalError(provider="sso", error_msg="token has expired")

    with (
        make_service(server, waits, Broken()) as service,
        pytest.raises(ServiceError, match=r"cannot get AWS credentials.*token has expired"),
    ):
        SnapshotImage(service, "snap-1")


def test_the_modules_load_no_aws_client():
    code = (
        "import sys, acquisition.blocks\n"
        "heavy = {'boto3', 'botocore', 'urllib3', 'paramiko', 'pyarrow', 'dfvfs'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


# -- what EC2 tells ------------------------------------------------------------------------------


class Ec2:
    """A client that knows one snapshot."""

    class meta:
        region_name, partition = "eu-central-1", "aws"

    def __init__(self, locks=(), **changes):
        self.said = {
            "SnapshotId": "snap-1", "State": "completed", "OwnerId": "111122223333",
            "VolumeId": "vol-1", "VolumeSize": 1, "Encrypted": True, "KmsKeyId": "arn:key",
            "StartTime": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        } | changes  # fmt: skip
        self.locks = locks

    def describe_snapshots(self, SnapshotIds):
        return {"Snapshots": [self.said] if self.said else []}

    def describe_locked_snapshots(self, SnapshotIds):
        if isinstance(self.locks, str):
            raise ClientError({"Error": {"Code": self.locks, "Message": "no"}}, "x")
        return {"Snapshots": list(self.locks)}


def test_facts_of_a_snapshot():
    until = datetime(2027, 1, 1, tzinfo=UTC)
    facts = snapshot_facts(
        Ec2([{"LockState": "compliance", "LockExpiresOn": until}]), "snap-1"
    )  # fmt: skip
    assert facts == {
        "arn": "arn:aws:ec2:eu-central-1::snapshot/snap-1", "region": "eu-central-1",
        "owner": "111122223333", "volume": "vol-1", "volume_gib": 1, "encrypted": True,
        "kms_key": "arn:key", "started": "2026-01-02T03:04:05.000Z",
        "lock": {"state": "compliance", "until": "2027-01-01T00:00:00.000Z"},
    }  # fmt: skip


def test_a_lock_that_may_not_be_looked_at_is_not_known():
    assert snapshot_facts(Ec2("UnauthorizedOperation"), "snap-1")["lock"] == (
        "not known: UnauthorizedOperation"
    )
    assert snapshot_facts(Ec2(), "snap-1")["lock"] == "not locked"


def test_a_snapshot_that_is_not_completed_is_refused():
    ec2 = Ec2(State="error", StateMessage="Given key ID is not accessible")
    with pytest.raises(AcquisitionError, match=r"is error \(Given key ID is not accessible\)"):
        snapshot_facts(ec2, "snap-1")
    gone = Ec2()
    gone.said = {}
    with pytest.raises(SourceNotFoundError):
        snapshot_facts(gone, "snap-1")


def test_the_block_size_is_that_of_the_service():
    assert BLOCK_BYTES == BLOCK
