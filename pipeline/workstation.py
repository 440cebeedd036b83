# SPDX-License-Identifier: Apache-2.0
"""Workstations of a case: launched, judged, given volumes, ended; each step in the ledger.

EC2's part of `attach` (a volume of the Audit snapshot, in the zone of the workstation) can be done
from anywhere. The kernel's part (find the device, make it read-only, mount it) is done where the
volume is: on the workstation itself, by the same command.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import JsonValue

from acquisition import volume
from acquisition.errors import AcquisitionError, UnsupportedSourceError
from acquisition.target import parse_target
from acquisition.volume import AttachedSnapshot, Machine
from acquisition.workstation import (
    Attached,
    NotAsAskedError,
    Station,
    Workstations,
    stack_name,
)
from evidence_store.model import ITEM_ID, clean
from evidence_store.store import Case
from pipeline import steps
from pipeline.accounts import Accounts
from pipeline.config import Settings
from pipeline.errors import ConfigError, UsageError
from pipeline.run import Run
from pipeline.templates import template

MACHINE = Machine()
MOUNTS = Path("/mnt/evidence")


@dataclass
class Volume:
    """An attached volume. `device`, `mounts`: known on the workstation itself only."""

    attached: Attached
    item: str = ""
    device: str = ""
    mounts: list[dict[str, JsonValue]] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)

    def document(self) -> dict[str, JsonValue]:
        """As JSON."""
        held = self.attached
        return {
            "volume": held.volume, "snapshot": held.snapshot, "instance": held.instance,
            "attached_as": held.device, "size": held.size, "item": self.item or None,
            "device": self.device or None, "mounts": [dict(m) for m in self.mounts],
            "gaps": list(self.gaps),
        }  # fmt: skip


def workstations(
    accounts: Accounts, account: str, region: str, sleep: Callable[[float], None] = time.sleep
) -> Workstations:
    """Return those of an account in a Region. Raises: AccountError, ConfigError."""
    return Workstations(
        accounts.client("cloudformation", account, region),
        accounts.client("ec2", account, region),
        accounts.client("ec2", account, region, once=True), sleep,
    )  # fmt: skip


def parameters(
    settings: Settings, store_uri: str, case_id: str, ticket: str, contact: str, target: str
) -> dict[str, str]:
    """Return what the template is launched with. Pure.

    `target` is an address, or an isolation group (`sg-…`).

    Raises: ConfigError naming each setting that is missing.
    """
    own, aws = settings.workstation, settings.aws
    store = urlsplit(store_uri)
    if store.scheme != "s3":
        raise ConfigError(
            "a workstation keeps evidence in S3, and this store is a directory",
            hint="name the store with --store s3://BUCKET",
        )
    key = own.volume_key or aws.snapshot_key
    needed = {
        "workstation.vpc": own.vpc, "workstation.subnet": own.subnet,
        "workstation.endpoint_group": own.endpoint_group,
        "workstation.s3_prefix_list": own.s3_prefix_list, "workstation.volume_key": key,
        "s3.kms_key": settings.s3.kms_key, "aws.audit_account": aws.audit_account,
    }  # fmt: skip
    if missing := [name for name, value in needed.items() if not value]:
        raise ConfigError(f"a workstation needs {', '.join(missing)}",
                          hint="set them (impound config --explain)")  # fmt: skip
    if not contact:
        raise ConfigError(
            f"case {case_id} has no contact, which whatever is made is tagged with",
            hint="open cases with --contact",
        )
    group = target.startswith("sg-")
    return {
        "Case": case_id, "Ticket": ticket, "Contact": contact, "VpcId": own.vpc,
        "SubnetId": own.subnet, "EndpointGroup": own.endpoint_group,
        "S3PrefixList": own.s3_prefix_list, "EvidenceBucket": store.netloc,
        "EvidenceKey": settings.s3.kms_key, "VolumeKey": key, "AmiId": own.ami,
        "AmiParameter": own.ami_parameter, "InstanceType": own.instance_type,
        "WorkstationProfile": own.profile, "Workers": "0",
        "DatabaseGroup": own.database_group, "EngineSecret": own.engine_secret,
        **({"IsolationGroup": target} if group else {"TargetCidr": f"{target}/32"}),
    }  # fmt: skip


@dataclass
class Bench:
    """Workstations of one Region of the Audit account, as a case uses them.

    Attributes:
        run: the case, its settings and ways into accounts.
        region: where.
    """

    run: Run
    region: str
    store_uri: str = ""
    machine: Machine = field(default_factory=lambda: MACHINE)
    mounts: Path = field(default_factory=lambda: MOUNTS)

    @cached_property
    def audit(self) -> str:
        """The Audit account. Raises: ConfigError."""
        if account := self.run.settings.aws.audit_account:
            return account
        raise ConfigError("workstations need aws.audit_account",
                          hint="set it in the table [aws]")  # fmt: skip

    @cached_property
    def stations(self) -> Workstations:
        """EC2's and CloudFormation's side. Raises: AccountError, ConfigError."""
        return workstations(self.run.accounts, self.audit, self.region, self.run.sleep)

    @property
    def case(self) -> Case:
        """The case."""
        return self.run.case

    # -- launch ----------------------------------------------------------------------------------

    def target(self) -> str:
        """Return the private address of the one instance that the case is about.

        Raises: UsageError if the ledger names none, or several.
        """
        arns = {
            str((event.data or {}).get("target") or "") for event in self.case.ledger.events
            if event.action.startswith(("step.", "target."))
        }  # fmt: skip
        found = sorted(arn for arn in arns if ":instance/i-" in arn)
        if len(found) != 1:
            raise UsageError(
                f"case {self.case.case_id} names {len(found)} instances",
                hint="say with --target which address the workstation may reach "
                "(or which isolation group, sg-…)",
            )
        where = parse_target(found[0])
        ec2 = self.run.ec2(where.account, where.region)
        said = ec2.client.describe_instances(InstanceIds=[where.resource_id])["Reservations"]
        address = next((i.get("PrivateIpAddress") for r in said for i in r["Instances"]), None)
        if not address:
            raise AcquisitionError(f"{where.resource_id} has no address any more",
                                   hint="name one with --target")  # fmt: skip
        return str(address)

    def launch(self, target: str) -> Station:
        """Launch the case's workstation, or return the one that is there; look at it again.

        Raises: NotAsAskedError with each difference; AcquisitionError, ConfigError, UsageError.
        """
        case = self.case
        own = [s for s in self.stations.there(case.case_id) if s.status != "DELETE_IN_PROGRESS"]
        state = case.state
        # A workstation that was ended is not launched again by what the ledger says of it.
        begun = steps.begin(case, "workstation", self._round(), region=self.region)
        mark = self.run.mark("workstation", begun.target)
        name = own[0].stack if own else stack_name(case.case_id, mark)
        asked = parameters(
            self.run.settings, self.store_uri, case.case_id, state.ticket, state.contact,
            target or self._target_before() or self.target(),
        )  # fmt: skip
        try:
            body = template("forensics")
            self.run.say(f"{name}: waiting for the workstation")
            made = self.stations.launch(name, body, asked, self.run.tags, mark)
            wrong = self.stations.judge(made, body, asked)
        except AcquisitionError as e:
            if begun.done is None:
                steps.failed(case, begun, str(e))
            raise
        if wrong:
            why = f"the workstation {made.instance} is not what was asked for: {'; '.join(wrong)}"
            if begun.done is None:
                steps.failed(case, begun, why)
            else:
                steps.note(case, "workstation-differs", made.instance, why=clean(why, 400))
            raise NotAsAskedError(
                why, hint=f"put no evidence on it; impound workstation terminate --case "
                f"{case.case_id}, and find out who changed it",
            )  # fmt: skip
        if begun.done is None:
            steps.done(case, begun, **made.facts, reaches=asked.get("TargetCidr")
                       or asked.get("IsolationGroup") or "")  # fmt: skip
        return made

    def _round(self) -> str:
        """The name of this launch in the ledger: each ends with a termination."""
        ended = {
            str((e.data or {}).get("target")) for e in self.case.ledger.events
            if e.action == "step.done" and (e.data or {}).get("step") == "terminate"
        }  # fmt: skip
        return f"workstation-{len(ended) + 1}"

    def _target_before(self) -> str:
        """What the launch of this round was told to reach, from the ledger."""
        for event in steps.events_of(self.case, "workstation", self._round()):
            reaches = str((event.data or {}).get("reaches") or "")
            if event.action == "step.done" and reaches:
                return reaches.removesuffix("/32")
        return ""

    def station(self) -> Station:
        """Return the case's running workstation. Raises: AcquisitionError."""
        found = self.stations.there(self.case.case_id)
        if not found:
            raise AcquisitionError(
                f"case {self.case.case_id} has no workstation",
                hint=f"impound workstation launch --case {self.case.case_id}",
            )
        return next((s for s in found if s.state == "running"), found[0])

    # -- attach ----------------------------------------------------------------------------------

    def snapshot_of(self, name: str) -> tuple[str, str]:
        """Return (Audit snapshot, item) of a snapshot or an item.

        Raises: UsageError; AcquisitionError if an item has no Audit copy; ItemNotFoundError.
        """
        if ITEM_ID.fullmatch(name):
            source = str(self.case.manifest(name).source.get("snapshot") or "")
            copy = next((
                str((e.data or {})["copy"]) for e in reversed(self.case.ledger.events)
                if e.action == "step.done" and (e.data or {}).get("step") == "copy"
                and (e.data or {}).get("target") == source and source
            ), "")  # fmt: skip
            if not copy:
                raise AcquisitionError(
                    f"{name} has no Audit copy to attach",
                    hint=f"impound item serve {self.case.case_id} {name} needs none",
                )
            return copy, name
        if not name.startswith("snap-"):
            raise UsageError(f"not a snapshot or an item: {clean(name, 60)!r}",
                             hint="attach takes snap-… or E0001")  # fmt: skip
        return name, ""

    def attach(self, name: str, *, mounting: bool = True) -> Volume:
        """Attach a volume of an Audit snapshot, read-only; on the workstation itself mount it too.

        Raises: AcquisitionError, UsageError, ConfigError.
        """
        station = self.station()
        snapshot, item = self.snapshot_of(name)
        target = f"{snapshot} {station.instance}"
        begun = steps.begin(self.case, "attach", target, **({"item": item} if item else {}))
        # Each volume anew: what made one that is gone would only name it again.
        mark = self.run.mark("attach", f"{target} {self._detached(snapshot)}")
        try:
            self.run.ec2(self.audit, self.region).completed(snapshot)
            made = Volume(self.stations.attach(station, snapshot, self.run.tags, mark), item)
        except AcquisitionError as e:
            if begun.done is None:
                steps.failed(self.case, begun, str(e))
            raise
        if begun.done is None or begun.done.get("volume") != made.attached.volume:
            held = made.attached
            steps.note(
                self.case, "attach", target, volume=held.volume, zone=station.zone,
                device=held.device, instance=station.instance, snapshot=snapshot,
            )  # fmt: skip
        if self.machine.instance_id() == station.instance:
            self._use(made, mounting=mounting)
        return made

    def _detached(self, snapshot: str) -> int:
        """How many volumes of a snapshot were taken away again."""
        return sum(
            event.action == "step.done" and data.get("step") == "detach"
            and data.get("snapshot") == snapshot
            for event in self.case.ledger.events if (data := event.data or {})
        )  # fmt: skip

    def _use(self, made: Volume, *, mounting: bool) -> None:
        """Find the device, make it and its partitions read-only, mount what can be mounted."""
        device = self.machine.device(made.attached.volume)
        made.device = str(device)
        parts = self.machine.partitions(device)
        volume.make_read_only([device, *parts])
        held = steps.begin(self.case, "readonly", f"{made.attached.volume} {device}")
        if held.done is None:
            steps.done(self.case, held, devices=[str(d) for d in (device, *parts)],
                       claim="refused by the kernel; no write blocker")  # fmt: skip
        for part in (parts or [device]) if mounting else []:
            self._mount(made, part)

    def _mount(self, made: Volume, part: Path) -> None:
        point = self.mounts / self.case.case_id / made.attached.volume / part.name
        if point in volume.mounted([part]):
            made.mounts.append({"device": str(part), "at": str(point)})
            return
        begun = steps.begin(self.case, "mount", f"{made.attached.volume} {part}", at=str(point))
        try:
            options = volume.mount(part, point)
        except UnsupportedSourceError as e:
            made.gaps.append(str(e))
            steps.skipped(self.case, "mount", begun.target, str(e))
            return
        except AcquisitionError as e:
            made.gaps.append(str(e))
            steps.failed(self.case, begun, str(e))
            return
        made.mounts.append({"device": str(part), "at": str(point), "options": list(options)})
        steps.note(self.case, "mount", begun.target, at=str(point), options=list(options))

    @contextmanager
    def opened(
        self, copy: str, source: str, text: str, facts: Mapping[str, JsonValue]
    ) -> Iterator[AttachedSnapshot]:
        """Give the device of a volume of an Audit copy, to be read as `source`; then take it away.

        Only on the case's workstation itself. After a failure the volume stays attached: the same
        command again goes on with it.

        Raises: AcquisitionError.
        """
        station = self.station()
        if self.machine.instance_id() != station.instance:
            raise AcquisitionError(
                f"this machine is not the workstation {station.instance}, to which it is attached",
                hint="run it there; without --via volume no workstation is needed",
            )
        made = self.attach(copy, mounting=False)
        held = made.attached
        via: dict[str, JsonValue] = {
            "volume": held.volume, "copy": copy, "instance": held.instance, "zone": station.zone,
        }  # fmt: skip
        with AttachedSnapshot(
            Path(made.device), source, text=text, size=held.size, facts=facts, via=via
        ) as image:
            yield image
        self.release(held)

    # -- taking away -----------------------------------------------------------------------------

    def release(self, held: Attached) -> None:
        """Unmount, detach and delete a volume that was made for this case; its snapshot stays.

        Raises: AcquisitionError.
        """
        begun = steps.begin(self.case, "detach", held.volume, snapshot=held.snapshot)
        try:
            if held.instance and self.machine.instance_id() == held.instance:
                device = self.machine.device(held.volume)
                for point in volume.mounted([device, *self.machine.partitions(device)]):
                    volume.unmount(point)
            self.stations.remove(held)
        except AcquisitionError as e:
            steps.failed(self.case, begun, str(e))
            raise
        steps.done(self.case, begun, snapshot=held.snapshot, deleted=True)

    def terminate(self, station: Station) -> list[str]:
        """End a workstation: its volumes first, then its stack. Return what could not be done.

        Snapshots, items and what was there before are not touched.
        """
        if self.machine.instance_id() == station.instance:
            raise UsageError(
                "this is that workstation", hint="terminate it from elsewhere, or from the console"
            )
        gaps = []
        for held in self.stations.volumes(self.case.case_id):
            if held.instance in ("", station.instance):
                try:
                    self.release(held)
                except AcquisitionError as e:
                    gaps.append(f"{e}" + (f" ({e.hint})" if e.hint else ""))
        name = self._round()
        begun = steps.begin(self.case, "terminate", name, **station.facts)
        try:
            self.stations.terminate(station)
        except AcquisitionError as e:
            steps.failed(self.case, begun, str(e))
            raise
        steps.done(self.case, begun, stack=station.stack, instance=station.instance,
                   gaps=[clean(g, 300) for g in gaps])  # fmt: skip
        return gaps
