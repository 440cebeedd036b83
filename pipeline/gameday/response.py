# SPDX-License-Identifier: Apache-2.0
"""The scenario `response`: an instance is compromised in a practice landing zone; `respond` acts.

Everything is done by the commands that a responder would give, each a process of its own, with a
home and settings of its own. What the commands claim is then looked up where it must show: in the
accounts, and in the disks as they were made.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from acquisition.reach import connect
from pipeline.gameday.disks import find, traces
from pipeline.gameday.scorecard import Scorecard, Step, StepFailedError, must
from pipeline.gameday.serve import FORENSICS, OUTSIDE, Zone, standing

CASE = "GAMEDAY"
_IMPOUND = (sys.executable, "-I", "-c", "from pipeline.cli import main; main()")
_NOT_HERE = "is not part of this version"
# Gaps that a rehearsal cannot close; any other gap of a step is a failure.
_EXPECTED: Mapping[str, str] = {
    "isolate": "not probed",  # with a machine it is
    "analyse": "listed in the table coverage",
}
_ON_THE_MACHINE = ("memory", "live", "hostkeys")
_SILENCE_S = 3.0
_FILES = "SELECT item, path, sha256, allocated, name FROM files"


@dataclass(frozen=True)
class Connections:
    """How an instance is connected: interface -> groups, profiles, elastic addresses."""

    groups: Mapping[str, Sequence[str]]
    profile: Sequence[str]
    public: Sequence[str]


@dataclass
class ResponseGameDay:
    """One run in `folder`, which must not exist yet.

    Attributes:
        told: called with each line of progress.
        guest: a machine stands behind the instance, if it can be made here.
    """

    folder: Path
    seed: int
    card: Scorecard
    told: Callable[[str], None] = lambda _line: None
    guest: bool = False
    _zone: Zone = field(init=False)

    def run(self) -> Scorecard:
        """Do it; the scorecard says which step failed, and how. Later steps build on it."""
        self.folder.mkdir(parents=True)
        try:
            with self._standing():
                self._steps()
        except StepFailedError:
            pass  # it is the last step of the scorecard
        return self.card

    @contextlib.contextmanager
    def _standing(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            with self.card.step("landing zone") as step:
                self._zone = stack.enter_context(
                    standing(
                        self.folder.absolute() / "aws.env",
                        self.seed,
                        guest=self.guest,
                        say=self.told,
                    )
                )
                estate = self._zone.seeded.estate
                self.card.not_rehearsed += [f"AWS: {what}" for what in self._zone.left_out]
                must(estate, "no disks could be made: mke2fs is missing (apt install e2fsprogs)")
                step.detail = "three accounts, one instance with two encrypted volumes"
                if self._zone.guest:
                    step.detail += ", and a machine behind it"
            yield

    def _steps(self) -> None:
        instance = self._zone.variables["INSTANCE"]
        disks, before = self._digests(), self._connections()
        with contextlib.ExitStack() as stack:
            intruder = stack.enter_context(self._intruder()) if self._zone.guest else None
            self._detection(instance)
            self._respond(instance)
            self._isolated(before)
            if intruder:
                self._packets(intruder)
        self._evidence(disks)
        self._find()
        self._release(instance, before)
        self._clean_up()
        self._verify()

    # -- the steps -------------------------------------------------------------------------------

    def _detection(self, instance: str) -> None:
        finding = detection(instance)
        with self.card.step("a detection arrives, a case is opened") as step:
            (self.folder / "detection.json").write_text(json.dumps(finding, indent=1) + "\n")
            title = finding["detail"]["title"]
            self._impound("case", "open", CASE, "--title", title, "--contact", "soc@example.org")
            step.detail = finding["detail"]["type"]

    def _respond(self, instance: str) -> None:
        """One step of the scorecard for each step of the response, with its own seconds."""
        ended = self._impound(
            "respond", CASE, instance, "-o", str(self.folder.absolute() / "report"), codes=(0, 3)
        )[-1]
        spans: dict[str, list[tuple[float, float]]] = {}
        for job in self._impound("jobs", CASE):
            if job["started"] and job["ended"]:
                spans.setdefault(job["step"], []).append((job["started"], job["ended"]))
        for name in dict.fromkeys(line["step"] for line in ended["steps"]):
            self._judge(name, [x for x in ended["steps"] if x["step"] == name], spans.get(name, []))
        failed = [s.name for s in self.card.steps if s.outcome == "failed"]
        must(not failed, f"the response failed at {', '.join(failed)}")
        self.card.report = str(self.folder / "report" / "index.html")

    def _judge(
        self, name: str, lines: Sequence[Mapping[str, Any]], spans: list[tuple[float, float]]
    ) -> None:
        gaps = [gap for line in lines for gap in line["gaps"]]
        if gaps and all(_NOT_HERE in gap for gap in gaps):
            self.card.not_rehearsed.append(f"{name}: not there yet")
            return
        if name in _ON_THE_MACHINE and not self._has_machine:
            self.card.not_rehearsed.append(f"{name}: no machine stands behind the instance")
            return
        if name == "hostkeys":
            self.card.not_rehearsed.append(f"{name}: the key of the machine is pinned")
            return
        known = self._expected
        bad = [gap for gap in gaps if name not in known or known[name] not in gap]
        bad += [f"{x['unit']} {x['state']}" for x in lines if x["state"] not in ("ok", "gap")]
        seconds = max(e for _, e in spans) - min(b for b, _ in spans) if spans else 0.0
        pieces = f"{len(lines)} pieces" if len(lines) > 1 else ""
        detail = "; ".join(bad or ([pieces] if pieces else []) + list(dict.fromkeys(gaps)))
        step = Step(f"respond: {name}", "failed" if bad else "ok", round(seconds, 3), detail)
        self.card.steps.append(step)
        self.card.on_step(step)

    @property
    def _has_machine(self) -> bool:
        return self._zone.guest is not None

    @property
    def _expected(self) -> Mapping[str, str]:
        # The intruder's connection is cut, which the machine cannot know.
        held = {"isolate": "the host holds a flow"} if self._has_machine else {}
        return {**_EXPECTED, **held}

    # -- the machine, by packets -----------------------------------------------------------------

    @contextlib.contextmanager
    def _intruder(self) -> Iterator[socket.socket]:
        """Somebody outside who is connected when it all begins."""
        with self.card.step("an intruder is connected") as step, contextlib.ExitStack() as stack:
            made = self._call(OUTSIDE)
            must(made, "the machine does not answer from outside, before anything was done")
            assert made  # noqa: S101
            stack.enter_context(made)
            banner = made.recv(80).decode(errors="replace").strip()
            step.detail = f"from {OUTSIDE}: {banner}"
            kept = stack.pop_all()
        with kept:
            yield made

    def _packets(self, intruder: socket.socket) -> None:
        with self.card.step("packets: the intruder is cut, we are not") as step:
            intruder.sendall(b"SSH-2.0-intruder\r\n")
            must(_silent(intruder), "the intruder's connection goes on")
            again = self._call(OUTSIDE)
            must(again is None, "somebody from outside is answered")
            ours = self._call(FORENSICS)
            must(ours, "the forensics side is not answered")
            assert ours  # noqa: S101
            with ours:
                banner = ours.recv(80).decode(errors="replace").strip()
            step.detail = f"from {FORENSICS}: {banner}"

    def _call(self, source: str) -> socket.socket | None:
        """Connect to the machine's SSH server from an address; None if nobody answers."""
        proxy = f"127.0.0.1:{self._zone.server.vantage(source)}"
        try:
            made = connect(self._zone.variables["GUEST_ADDRESS"], 22, proxy, _SILENCE_S)
        except OSError:
            return None
        made.settimeout(30)
        return made

    def _isolated(self, before: Connections) -> None:
        with self.card.step("the instance is cut off") as step:
            now = self._connections()
            groups = {group for of in now.groups.values() for group in of}
            must(now.groups.keys() == before.groups.keys(), "an interface is gone")
            must(len(groups) == 1, f"its interfaces are in {len(groups)} groups, not in one")
            must(not any(groups & set(of) for of in before.groups.values()), "no group changed")
            must(not now.profile and not now.public, "it kept its profile or its address")
            step.detail = f"{len(now.groups)} interfaces in {groups.pop()}, no profile, no address"

    def _release(self, instance: str, before: Connections) -> None:
        with self.card.step("release, approved by the operator") as step:
            done = self._impound("release", instance, "--case", CASE)[-1]["attributes"]
            lost = [a["attribute"] for a in done if a["restored"] == "cannot"]
            must(not lost, f"not restored: {', '.join(lost)}")
            must(self._connections() == before, "the instance is not connected as it was")
            kinds = Counter(a["restored"] for a in done)
            step.detail = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))

    def _clean_up(self) -> None:
        """The locks outlive a game day: they hold once, then the operator takes them off."""
        ec2 = self._zone.server.client("ec2", self._zone.variables["MEMBER_ACCOUNT"])
        with self.card.step("locked snapshots are not deleted") as step:
            kept = self._impound("acquire", "cleanup", CASE, codes=(3,))[-1]["snapshots"]
            must(kept and not any(s["deleted"] for s in kept), "a locked snapshot was deleted")
            step.detail = f"{len(kept)} kept: {kept[0]['kept_because']}"
        with self.card.step("clean up") as step:
            for snapshot in kept:
                ec2.unlock_snapshot(SnapshotId=snapshot["snapshot"])
            gone = self._impound("acquire", "cleanup", CASE)[-1]["snapshots"]
            must(all(s["deleted"] for s in gone), "a snapshot is left")
            step.detail = f"{len(gone)} snapshots of the member account deleted, copies kept"

    def _connections(self) -> Connections:
        """Look it up in the account, not in what we say of it."""
        ec2 = self._zone.server.client("ec2", self._zone.variables["MEMBER_ACCOUNT"])
        name = self._zone.variables["INSTANCE"].rpartition("/")[2]
        found = ec2.describe_network_interfaces(
            Filters=[{"Name": "attachment.instance-id", "Values": [name]}]
        )["NetworkInterfaces"]
        profiles = ec2.describe_iam_instance_profile_associations(
            Filters=[{"Name": "instance-id", "Values": [name]}]
        )["IamInstanceProfileAssociations"]
        return Connections(
            {n["NetworkInterfaceId"]: sorted(g["GroupId"] for g in n["Groups"]) for n in found},
            [p["IamInstanceProfile"]["Arn"] for p in profiles],
            sorted(a["PublicIp"] for a in ec2.describe_addresses()["Addresses"]
                   if a.get("InstanceId") == name),
        )  # fmt: skip

    def _evidence(self, disks: set[str]) -> None:
        with self.card.step("evidence equals the disks") as step:
            items = self._impound("item", "list", CASE)[-1]["items"]
            kept = {
                i["item"]: i["manifest"]["content"]["sha256"] for i in items if i["kind"] == "disk"
            }
            must(set(kept.values()) == disks, "the items are not what the volumes hold")
            step.detail = ", ".join(f"{item} {digest[:12]}" for item, digest in kept.items())

    def _find(self) -> None:
        with self.card.step("find planted traces") as step:
            planted = traces(self.seed)
            rows = self._impound("query", CASE, _FILES)[-1]["rows"]
            names = ("item", "path", "sha256", "allocated", "name")
            self.card.planted += find(planted, ([row[n] for n in names] for row in rows))
            missed = [p.name for p in self.card.planted if not p.found]
            must(not missed, f"not found: {', '.join(missed)}")
            step.detail = f"{len(planted)} of {len(planted)}"

    def _verify(self) -> None:
        with self.card.step("verify, all content") as step:
            verdict = self._impound("verify", CASE, "--deep")[-1]
            self.card.verdict = verdict["outcome"]
            step.detail = f"{verdict['entries']} entries, {verdict['objects']} objects"

    # -- helpers ---------------------------------------------------------------------------------

    def _digests(self) -> set[str]:
        found = set()
        for path in self._zone.variables["IMAGES"].split():
            with Path(path).open("rb") as f:
                found.add(hashlib.file_digest(f, "sha256").hexdigest())
        return found

    def _impound(self, *arguments: str, codes: Sequence[int] = (0,)) -> list[dict[str, Any]]:
        """Run a command as a responder would; return what it prints as JSON.

        Raises: StepFailedError if it ends with another exit code than `codes`.
        """
        home = self.folder.absolute() / "home"
        home.mkdir(exist_ok=True)
        environment = {
            "PATH": os.environ.get("PATH", os.defpath), "HOME": str(home), "LANG": "C.UTF-8",
            **self._zone.variables,
        }  # fmt: skip
        said = ""
        with (
            tempfile.TemporaryFile("w+") as out,
            (self.folder / "commands.log").open("a") as log,
            subprocess.Popen(
                [*_IMPOUND, "--json", "--yes", *arguments], stdin=subprocess.DEVNULL, stdout=out,
                stderr=subprocess.PIPE, text=True, cwd=self.folder, env=environment,
            ) as process,
        ):  # fmt: skip
            assert process.stderr  # noqa: S101
            log.write(f"$ impound {shlex.join(arguments)}\n")
            for line in process.stderr:
                said = line.strip() or said
                log.write(line)
                self.told(f"  {line.rstrip()}")
            code = process.wait()
            out.seek(0)
            printed = out.read()
            log.write(printed)
        must(code in codes, f"impound {arguments[0]} ended with {code}: {said}")
        return [json.loads(line) for line in printed.splitlines()]


def _silent(connection: socket.socket) -> bool:
    """Whether nothing comes for a while."""
    connection.settimeout(_SILENCE_S)
    try:
        return not connection.recv(1)
    except TimeoutError:
        return True


def detection(instance: str) -> dict[str, Any]:
    """Return a finding as EventBridge delivers it, for an instance given by ARN.

    Source: GuardDuty user guide, "Processing GuardDuty findings with Amazon EventBridge".
    """
    _, _, _, region, account, name = instance.split(":", 5)
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    return {
        "version": "0", "id": "00000000-0000-0000-0000-000000000000",
        "detail-type": "GuardDuty Finding", "source": "aws.guardduty", "account": account,
        "time": now, "region": region, "resources": [],
        "detail": {
            "schemaVersion": "2.0", "accountId": account, "region": region,
            "type": "CryptoCurrency:EC2/BitcoinTool.B!DNS", "severity": 8,
            "title": "The EC2 instance is querying a domain of a cryptocurrency pool",
            "resource": {
                "resourceType": "Instance",
                "instanceDetails": {"instanceId": name.rpartition("/")[2]},
            },
            "service": {"eventFirstSeen": now, "count": 1},
        },
    }  # fmt: skip
