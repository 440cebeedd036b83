# SPDX-License-Identifier: Apache-2.0
"""Bags for the tests. Run as a script it makes `tests/data/golden-bag`, if that is not there:

PYTHONPATH=. python tests/evidence_store/bag/make.py
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

from evidence_store.backend import LocalBackend
from evidence_store.bag import export_case, import_bag, verify_bag
from evidence_store.bag.layout import MANIFEST, NOTE, TAG_MANIFEST, bag_text
from evidence_store.sign import sign_note
from evidence_store.store import Store
from tests.evidence_store import kit

GOLDEN = Path(__file__).parents[2] / "data" / "golden-bag"
LAB_ENTRY, LAB_CHECKPOINT = kit.make_signer(2001), kit.make_signer(2002)


def seal(case):
    return case.seal(kit.CHECKPOINT)


def export(world, to, **more):
    return export_case(world.case, to, seal, **more)


def lab_store(root, seed="lab"):
    return Store(LocalBackend(root), kit.make_scribe(LAB_ENTRY, seed))


def receive(root, bag, *, sealed=True, seed="lab", **more):
    done = import_bag(
        lab_store(root, seed), bag, deployment="lab", checkpoint_key=LAB_CHECKPOINT.public, **more
    )  # fmt: skip
    if sealed and not done.existing:
        done.case.seal(LAB_CHECKPOINT)
    return done


def findings(bag, **more):
    return [str(f) for f in verify_bag(bag, **more).findings]


def writable(folder):
    """Let a test damage a bag: files of one are read-only."""
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def copy(bag, to):
    shutil.copytree(bag, to, symlinks=True)
    return writable(to)


def relist(bag, *, signer=None, export_id=None):
    """Write the lists anew, as somebody without keys can; with `signer` sign them too."""

    def lines(names):
        return "".join(
            f"{hashlib.sha256((bag / n).read_bytes()).hexdigest()}  {n}\n" for n in sorted(names)
        ).encode()

    files = [p.relative_to(bag).as_posix() for p in bag.rglob("*") if p.is_file()]
    (bag / MANIFEST).write_bytes(lines(n for n in files if n.startswith("data/")))
    info = bag / "bag-info.txt"
    payload = [bag / n for n in files if n.startswith("data/")]
    oxum = f"Payload-Oxum: {sum(p.stat().st_size for p in payload)}.{len(payload)}"
    told = [oxum if line.startswith("Payload-Oxum") else line
            for line in info.read_text().splitlines()]  # fmt: skip
    info.write_text("\n".join(told) + "\n")
    body = lines(n for n in files if not n.startswith("data/") and n not in (TAG_MANIFEST, NOTE))
    (bag / TAG_MANIFEST).write_bytes(body)
    if signer is not None:
        text = bag_text(export_id, hashlib.sha256(body).hexdigest())
        (bag / NOTE).write_bytes(sign_note(text, "local/entry", signer))
    return bag


def golden_world(root):
    world = kit.make_world(root)
    data = kit.pattern(4096) + bytes(8192) + kit.pattern(700, 7)
    image = kit.FakeImage(data, holes=[(4096, 4096)])
    world.case.ingest("disk", image, segment_size=4096)
    world.case.ingest("logs", kit.FakeSet({b"etc/hosts": b"127.0.0.1 localhost\n", b"a\xff": b"x"}))
    world.case.ingest("logs", kit.FakeSet({b"secret": b"left out\n"}, serial="F2", text="other"))
    world.seal()
    return world


def main():
    if GOLDEN.exists():
        sys.exit(f"{GOLDEN} is there; a golden bag is not made anew lightly")
    with tempfile.TemporaryDirectory() as folder:
        world = golden_world(Path(folder) / "store")
        export(world, GOLDEN, items=["E0001", "E0002"], raw=True, recipient="the future")
    writable(GOLDEN)
    os.sync()


if __name__ == "__main__":
    main()
