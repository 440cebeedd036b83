# SPDX-License-Identifier: Apache-2.0
"""The scenario `offline`: a lab receives a disk image and has to prove what it did with it.

Evidence is made on the spot without root: see `disks`.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
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
from pipeline.gameday.disks import Trace, ext4_disk, find, plant, tool, traces, xfs_disk
from pipeline.gameday.scorecard import Scorecard, must
from pipeline.session import Session, tool_identity

log = logging.getLogger(__name__)

CASE = "GAMEDAY"
_LATER = [
    "containers (E01, qcow2) and bags",
    "memory analysis, timelines, detections",
]

Progress = Callable[[str], Callable[[int, int | None], None]]


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
            plant(tree, planted, self.seed)
            disks = {"ext4 disk": self.folder / "disk.img"}
            ext4_disk(tree, disks["ext4 disk"], [t.path for t in planted if t.deleted])
            if tool("mkfs.xfs"):
                disks["XFS disk"] = self.folder / "xfs.img"
                xfs_disk(tree, disks["XFS disk"])
            else:
                self.card.not_rehearsed.append(
                    "XFS (mkfs.xfs is not installed: apt install xfsprogs)"
                )
            shutil.rmtree(tree)
            step.detail = ", ".join(disks)
        return disks

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
            self.card.planted += find(planted, answer.rows)
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
