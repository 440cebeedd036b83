# SPDX-License-Identifier: Apache-2.0
"""Captures that are killed, and links that are cut, at seeded moments: complete afterwards."""

from __future__ import annotations

import os
import random
import signal

import pytest

from acquisition.memory import KcoreCapture, look
from acquisition.verdict import judge
from tests.acquisition.kcore_host import MIB, KcoreHost, lime

pytestmark = pytest.mark.chaos
SEGMENT = MIB
SEED = int(os.environ.get("IMPOUND_SEED", "7"))


@pytest.fixture
def host(tmp_path):
    made = KcoreHost(tmp_path / "host").start()
    yield made
    made.stop()


def capture(world, host, progress, patience_s=30.0):
    with host.remote().open() as remote:
        source = KcoreCapture(remote, look(remote), "memory", way="raw", piece_bytes=2 * MIB,
                              patience_s=patience_s)  # fmt: skip
        with source:
            taken = world.case.ingest("memory", source, segment_size=SEGMENT, progress=progress)
            source.read_again()
            return source, taken


def whole(world, item):
    with world.case.open(item) as f:
        return f.read()


@pytest.mark.parametrize("seed", range(SEED, SEED + 10))
def test_killed_capture_is_completed_by_the_next_run(world, host, tmp_path, seed):
    world.store.resume = tmp_path / "resume"
    content = host.load()
    moment = random.Random(seed).randrange(1, 15)
    child = os.fork()
    if not child:
        calls = []

        def die(done, total):
            calls.append(done)
            if len(calls) >= moment:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            capture(world, host, die)
        finally:
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    source, taken = capture(world, host, lambda _done, _total: None)
    assert taken.resumed
    assert whole(world, taken.item_id) == lime(content), seed
    assert source.seen.read <= source.seen.ram
    assert len(list(world.case.state.items)) == 1


@pytest.mark.parametrize("seed", range(SEED, SEED + 10))
def test_cut_links_end_in_a_complete_capture(world, host, seed):
    content = host.load()
    dice = random.Random(seed)
    moments = sorted(dice.sample(range(1, 15), 3))
    calls = []

    def cut(done, total):
        calls.append(done)
        if len(calls) in moments:
            host.drop()

    source, taken = capture(world, host, cut)
    assert whole(world, taken.item_id) == lime(content), seed
    assert judge(source.seen).word == "complete"
