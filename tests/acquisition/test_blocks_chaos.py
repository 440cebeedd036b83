# SPDX-License-Identifier: Apache-2.0
"""A reader killed at any moment loses nothing, and what it stored is not fetched twice."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.acquisition.ebs_server import BLOCK, EbsServer, block
from tests.evidence_store import kit

pytestmark = pytest.mark.chaos

KILLS = 20
READER = """
import sys
from pathlib import Path
from botocore.credentials import Credentials
from acquisition.blocks import SnapshotImage
from acquisition.ebs import EbsDirect, Endpoint
from evidence_store.backend import LocalBackend
from evidence_store.store import Store
from tests.evidence_store import kit

url, root, resume, seed = sys.argv[1:]
store = Store(LocalBackend(Path(root)), kit.make_scribe(seed=seed), None, Path(resume))
with EbsDirect(Endpoint(url, "eu-central-1", "1", Credentials("a", "b"))) as service:
    store.case(kit.CASE).ingest("disk", SnapshotImage(service, "snap-1"), segment_size=1 << 20)
"""


def test_kills_at_any_moment_lose_nothing(tmp_path):
    seed = int(os.environ.get("IMPOUND_SEED", "1" if os.environ.get("CI") else time.time_ns()))
    print("IMPOUND_SEED", seed)
    rng = random.Random(seed)
    blocks = {i: block(i) for i in rng.sample(range(2048), 400)}
    server = EbsServer({"snap-1": blocks})
    server.fail("delay", "blockToken", value="0.02")
    world = kit.make_world(tmp_path / "store")
    data = world.folder / "items/E0001/data"
    seen = []
    try:
        for attempt in range(KILLS + 1):
            stored = {p.name for p in data.glob("*")} if data.exists() else set()
            asked = len(server.requests)
            reader = subprocess.Popen(
                [sys.executable, "-c", READER, server.url, str(world.root),
                 str(tmp_path / "resume"), str(attempt)],
            )  # fmt: skip
            if attempt < KILLS:
                while len(server.requests) == asked and reader.poll() is None:
                    time.sleep(0.005)
                time.sleep(rng.uniform(0, 0.25))
                reader.send_signal(signal.SIGKILL)
            assert reader.wait(120) in (0, -signal.SIGKILL)
            fetched = {f"{int(p.split('/')[4].split('?')[0]) // 2:016x}"
                       for p in server.requests[asked:] if "blockToken" in p}  # fmt: skip
            assert not fetched & stored
            seen.append(len(stored))
    finally:
        server.close()
    assert reader.returncode == 0
    assert len(set(seen)) > 3, "the kills struck while it was at work"
    world.case.refresh()
    whole = hashlib.sha256()
    for index in range(2048):
        whole.update(blocks.get(index, bytes(BLOCK)))
    assert world.case.manifest("E0001").content["sha256"] == whole.hexdigest()
    assert kit.verify(world.root).findings == []
