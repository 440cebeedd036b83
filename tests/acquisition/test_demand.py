# SPDX-License-Identifier: Apache-2.0
"""A snapshot as objects: only what is asked for, never zeros for what is lost."""

from __future__ import annotations

import fcntl
import os

import pytest
from botocore.credentials import Credentials

from acquisition.blocks import SnapshotImage
from acquisition.demand import BlockObjects
from acquisition.ebs import BLOCK_BYTES, EbsDirect, Endpoint, ServiceError
from evidence_store.child import Child
from evidence_store.transfer import UnreadableError
from tests.acquisition.ebs_server import EbsServer, block

FULL = {i: block(i) for i in (0, 1, 3, *range(100, 164), 2047)}


@pytest.fixture
def server():
    server = EbsServer({"snap-1": dict(FULL)})
    yield server
    server.close()


@pytest.fixture
def image(server):
    endpoint = Endpoint(server.url, "eu-central-1", "111122223333", Credentials("AKIAX", "secret"))
    with EbsDirect(
        endpoint, wait=lambda stop, _s: stop.is_set(), blocks_per_second=1e6, lists_per_second=1e6
    ) as service, SnapshotImage(service, "snap-1", page_blocks=100) as image:  # fmt: skip
        yield image


def read(objects, index):
    fd = objects.open_object(f"{index:016x}")
    if fd is None:
        return None
    try:
        return os.pread(fd, BLOCK_BYTES + 1, 0)
    finally:
        os.close(fd)


def test_blocks_and_holes(image, server):
    objects = BlockObjects(image)
    for index in (2047, 0, 2, 3):
        assert read(objects, index) == FULL.get(index)
    assert sorted(server.gets()) == [0, 3, 2047]
    assert image.received.bytes == 3 * BLOCK_BYTES


def test_a_descriptor_cannot_be_written_through(image):
    fd = BlockObjects(image).open_object("0" * 16)
    try:
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
        assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE
    finally:
        os.close(fd)


def test_single_blocks_fetch_nothing_ahead(image, server):
    objects = BlockObjects(image)
    for index in (100, 110, 120, 111):
        read(objects, index)
    assert len(server.gets()) == 4


def test_reading_in_order_fetches_many_at_once_and_each_once(image, server):
    objects = BlockObjects(image)
    for index in range(100, 164):
        assert read(objects, index) == FULL[index]
    assert sorted(server.gets()) == list(range(100, 164))


def test_memory_is_bounded(image, server):
    objects = BlockObjects(image, cache_bytes=4 * BLOCK_BYTES)
    for index in (*range(100, 164), *range(100, 164)):
        assert read(objects, index) == FULL[index]
    assert len(objects._file._blocks) <= 4


def test_a_lost_block_is_an_error_and_its_neighbours_are_read(image, server):
    server.fail("corrupt", "/blocks/103?")
    objects = BlockObjects(image)
    for index in range(100, 108):
        if index == 103:
            with pytest.raises(UnreadableError):
                objects.open_object(f"{index:016x}")
        else:
            assert read(objects, index) == FULL[index]


def test_access_denied_is_one_error(image, server):
    server.fail("error", value="403 AccessDeniedException no")
    with pytest.raises(ServiceError):
        BlockObjects(image).open_object("0" * 16)


def test_no_number():
    with pytest.raises(ValueError, match="invalid literal"):
        BlockObjects.open_object(object.__new__(BlockObjects), "../etc")


def run(image, tmp_path, ranges):
    got = []
    child = Child(
        module="tests.evidence_store.child_bodies", request={"do": "read", "ranges": ranges},
        items={"E0001": (image.size, BLOCK_BYTES, BlockObjects(image))}, folder=tmp_path,
        on_message=got.append,
    )  # fmt: skip
    return child.run(), [bytes.fromhex(one["hex"]) for one in got]


def test_a_child_reads_across_blocks_and_holes(image, server, tmp_path):
    outcome, got = run(image, tmp_path, [[BLOCK_BYTES - 5, 10], [2 * BLOCK_BYTES, 8], [0, 4]])
    assert outcome.ok, outcome.reason
    assert got == [FULL[0][-5:] + FULL[1][:5], bytes(8), FULL[0][:4]]
    assert len(server.gets()) == 2


def test_a_child_sees_an_io_error_for_a_lost_block(image, server, tmp_path):
    server.fail("corrupt", "/blocks/3?")
    outcome, _ = run(image, tmp_path, [[3 * BLOCK_BYTES, 10]])
    assert not outcome.ok
    assert "Errno 5" in outcome.reason
