# SPDX-License-Identifier: Apache-2.0
"""What is left of a target that is terminated or deleted: looked for everywhere, held, chosen from.

Volumes that outlived their instance, snapshots, images, the Recycle Bin; CloudTrail and AWS Config
say which volumes there were, and who ended them. A place that may not be looked at is told apart
from one where nothing is. Nothing is deleted, and what stands is not changed: what is in the
Recycle Bin is taken out, snapshots are locked, volumes are tagged.

Source: EC2 API Reference (DescribeVolumes, DescribeSnapshots, DescribeImages,
List…InRecycleBin, Restore…FromRecycleBin, LockSnapshot); CloudTrail API Reference, LookupEvents (90
days of management events, two requests a second); AWS Config API Reference,
GetResourceConfigHistory; EC2 User Guide, "Terminate your instance".
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from acquisition.backup import points
from acquisition.errors import AcquisitionError
from acquisition.snapshot import GIB, PAUSE_S
from evidence_store.aws import Failure, failures
from evidence_store.model import clean

Kind = Literal["volume", "binned-volume", "snapshot", "binned-snapshot", "binned-image",
               "recovery-point"]  # fmt: skip

# What is done to volumes and what is made of them; the rest of the history is not of interest.
EVENTS = (
    "RunInstances", "CreateVolume", "AttachVolume", "DetachVolume", "DeleteVolume",
    "TerminateInstances", "CreateSnapshot", "CreateSnapshots", "CopySnapshot", "CreateImage",
    "RegisterImage", "DeleteSnapshot", "DeregisterImage",
)  # fmt: skip
PAGES = 100  # of 50 events; two a second
_LOOKED_UP = 40  # volumes, and deleted snapshots, whose history is read
_AT_ONCE = 200  # values of one filter
_VISIBLE_S = 60.0
_VOLUME = re.compile(r"vol-[0-9a-f]{8,17}")
_SNAPSHOT = re.compile(r"snap-[0-9a-f]{8,17}")
_IMAGE = re.compile(r"ami-[0-9a-f]{8,17}")
_COPIED = re.compile(r"vol-f{8,17}")
_DENIED = {"UnauthorizedOperation", "AccessDenied", "AccessDeniedException"}
_LEFT = ("available", "in-use")
_BY_NAME = "only its description says that it is of the target, and anybody could write that"
_BY_TIME = "only the moment it was made, that of the launch, says that it is of the target"
_LAUNCH = (timedelta(seconds=-5), timedelta(seconds=120))  # when RunInstances makes volumes


class NothingLeftError(AcquisitionError):
    """Every place was looked at that could be, and nothing can be acquired."""


@dataclass(frozen=True)
class Deed:
    """A recorded API call. `who`: ARN or name; `error`: AWS's code if it was refused."""

    name: str
    at: datetime
    who: str
    source: str
    event_id: str
    error: str = ""
    volumes: tuple[str, ...] = ()
    snapshots: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    device: str = ""

    @property
    def text(self) -> str:
        """As a clause."""
        origin = f" from {self.source}" if self.source else ""
        return f"{self.name} {_utc(self.at)} by {self.who}{origin} (event {self.event_id})"


@dataclass(frozen=True)
class Look:
    """One place that was looked at, or could not be: `denied`, or it gave no answer (`why`)."""

    place: str
    found: int = 0
    why: str = ""
    denied: bool = False

    @property
    def gap(self) -> str:
        """What was not seen, or ""."""
        if not self.why:
            return ""
        said = "not allowed to look at" if self.denied else "could not look at all of"
        return f"{said} {self.place}: {self.why}"


@dataclass(frozen=True)
class Piece:
    """Something that is left.

    Attributes:
        volume_id: whose content it holds; "" if that is not known.
        at: the moment that it shows; None if it is not known (volumes: the last moment there was).
        size: bytes; 0 if it is not known.
        until: when the Recycle Bin drops it.
        images: that hold it.
        state: as AWS names it; of a snapshot `archive` if it lies in that tier; of a recovery
            point its vault too.
        doubt: why it may not be of the target at all, in words.
    """

    kind: Kind
    resource_id: str
    volume_id: str = ""
    at: datetime | None = None
    size: int = 0
    until: datetime | None = None
    images: tuple[str, ...] = ()
    state: str = ""
    doubt: str = ""

    @property
    def facts(self) -> dict[str, str | int]:
        """For ledger and output."""
        return {
            "kind": self.kind, "id": self.resource_id, "volume": self.volume_id,
            "at": _utc(self.at) if self.at else "", "size": self.size, "state": self.state,
            "until": _utc(self.until) if self.until else "", "images": " ".join(self.images),
            "doubt": self.doubt,
        }  # fmt: skip


@dataclass(frozen=True)
class Found:
    """What a search saw.

    Attributes:
        state: of the instance, as EC2 says now; "" if EC2 does not know it.
        reason: why EC2 says it ended.
        volumes: ids that the target had -> device, or "".
        ended_with: volumes that AWS Config says end with the instance (DeleteOnTermination).
    """

    target: str
    state: str
    reason: str
    volumes: Mapping[str, str]
    ended_with: frozenset[str]
    pieces: tuple[Piece, ...]
    deeds: tuple[Deed, ...]
    looks: tuple[Look, ...]

    @property
    def is_over(self) -> bool:
        """Whether the target itself is not there any more."""
        return self.state in ("", "terminated", "shutting-down")


@dataclass(frozen=True)
class Hold:
    """One thing to do, so that a piece stays: `restore`, `lock`, `tag`; `hold` in AWS Backup."""

    action: Literal["restore", "lock", "tag", "hold"]
    piece: Piece


@dataclass(frozen=True)
class Decision:
    """What to do about what was found.

    Attributes:
        holds: in this order; what comes out of the Recycle Bin is looked at again and locked.
        take: at most one piece for each volume, the most valuable first.
        lost: volumes of which nothing is left -> why.
        gaps: what was not seen.
    """

    holds: tuple[Hold, ...]
    take: tuple[Piece, ...]
    lost: Mapping[str, str]
    gaps: tuple[str, ...]


# -- decision --------------------------------------------------------------------------------------


def decide(found: Found) -> Decision:
    """Return what to hold, what to take, and what is lost. Pure.

    A volume is worth more than anything made of it before: first the volume itself, then one that
    the Recycle Bin gives back, then the newest snapshot (one of an image counts as any other), then
    what else the bin holds. Everything is held; of each volume one piece is taken.
    """
    order = sorted(found.pieces, key=_value)
    take = [pieces[0] for pieces in candidates(found)]
    holds = [Hold("restore", p) for p in _leaving(order)]
    holds += [Hold("tag", p) for p in order if p.kind == "volume"]
    holds += [Hold("lock", p) for p in order if p.kind == "snapshot"]
    holds += [Hold("hold", p) for p in order if p.kind == "recovery-point"]
    return Decision(tuple(holds), tuple(take), _lost(found), tuple(_gaps(found)))


def candidates(found: Found) -> list[list[Piece]]:
    """Return what can be read of each volume, the most valuable first. Pure."""
    of: dict[str, list[Piece]] = {}
    for piece in sorted(found.pieces, key=_value):
        if piece.state != "archive" and piece.kind != "recovery-point":  # is a snapshot, too
            of.setdefault(piece.volume_id or piece.resource_id, []).append(piece)
    return list(of.values())


def _value(piece: Piece) -> tuple[int, float, bool, str]:
    """Sort key: the most valuable first."""
    rank = {"volume": 0, "binned-volume": 1, "snapshot": 2, "recovery-point": 5}.get(piece.kind, 3)
    rank += piece.kind == "binned-image"
    newest = -piece.at.timestamp() if piece.at else 0.0
    return rank, newest, bool(piece.images), piece.resource_id


def _leaving(pieces: Iterable[Piece]) -> list[Piece]:
    """What is in the bin, by when it is dropped; an image after the snapshots that it needs."""
    binned = [p for p in pieces if p.kind.startswith("binned")]
    return sorted(
        binned,
        key=lambda p: (p.kind == "binned-image", p.until or datetime.max.replace(tzinfo=UTC)),
    )


def _lost(found: Found) -> dict[str, str]:
    left = {p.volume_id for p in found.pieces}
    return {v: _why(found, v) for v in sorted(found.volumes) if v not in left}


def _why(found: Found, volume_id: str) -> str:
    nothing = "no snapshot, image or recycled copy of it is left"
    if any(look.why for look in found.looks):
        nothing = "nothing of it was found where it could be looked for"
    done = [d for d in found.deeds if not d.error]
    deleted = [d for d in done if d.name == "DeleteVolume" and volume_id in d.volumes]
    dropped = [d.text for d in done if d.name == "DeleteSnapshot"
               and set(d.snapshots) & _snapshots_of(found, volume_id)]  # fmt: skip
    also = f"; snapshots of it: {'; '.join(dropped[:3])}" if dropped else ""
    if deleted:
        return f"deleted: {deleted[0].text}; {nothing}{also}"
    ended = [d.text for d in done if d.name == "TerminateInstances"]
    how = ended[0] if ended else found.reason or "no event says who ended the instance"
    if volume_id in found.ended_with:
        return f"ended with the instance (DeleteOnTermination): {how}; {nothing}{also}"
    return f"is not there any more, no event says who deleted it ({how}); {nothing}{also}"


def _snapshots_of(found: Found, volume_id: str) -> set[str]:
    return {s for d in found.deeds if d.name.startswith("Create") and volume_id in d.volumes
            for s in d.snapshots}  # fmt: skip


def _gaps(found: Found) -> Iterator[str]:
    yield from (look.gap for look in found.looks if look.gap)
    if not found.volumes and not found.pieces:
        yield (
            f"no volume of {found.target} is known: neither EC2, CloudTrail (90 days) nor AWS "
            "Config names one"
        )
    for piece in found.pieces:
        if piece.doubt:
            yield f"{piece.resource_id} may be another's: {piece.doubt}"
        if piece.kind == "recovery-point" and _hidden(found, piece):
            yield (
                f"recovery point {piece.resource_id} ({piece.state}) is no snapshot that can be "
                "seen here: restore it with AWS Backup, and acquire the volume that this makes"
            )
        if piece.state == "archive":
            yield (
                f"snapshot {piece.resource_id} of {piece.volume_id} lies in the archive tier and "
                "cannot be read; restore it (RestoreSnapshotTier, up to 72 h) and run this again"
            )


def _hidden(found: Found, point: Piece) -> bool:
    """Whether a recovery point is nothing that is found as a snapshot, or as one of an image."""
    name = point.resource_id.rpartition("/")[2]
    return not any(
        p.kind == "snapshot" and (p.resource_id == name or name in p.images) for p in found.pieces
    )


# -- search ----------------------------------------------------------------------------------------


@dataclass
class Search:
    """Looks for what is left, in one Region of one account. Changes nothing.

    Attributes:
        ec2, trail, config: clients.
        account: whose.
        backup: client of AWS Backup; None: it is not asked.
        place: what ARNs of its resources begin with, `arn:aws:ec2:REGION:ACCOUNT`.
    """

    ec2: Any
    trail: Any
    config: Any
    account: str
    backup: Any = None
    place: str = ""
    _looks: list[Look] = field(default_factory=list, init=False)
    _deeds: dict[str, Deed] = field(default_factory=dict, init=False)
    _volumes: dict[str, str] = field(default_factory=dict, init=False)
    _launched: datetime | None = field(default=None, init=False)
    _recorded: bool = field(default=False, init=False)  # AWS Config knows its volumes

    def run(self, kind: str, resource_id: str, known: Iterable[str] = ()) -> Found:
        """Look everywhere.

        Args:
            kind: `instance` or `volume`.
            resource_id: its id.
            known: volumes that it is known to have had.
        """
        self._looks, self._deeds, self._launched, self._recorded = [], {}, None, False
        self._volumes = {}
        for volume_id in [*known, *([resource_id] if kind == "volume" else [])]:
            self._learn(volume_id)
        state, reason = self._instance(resource_id) if kind == "instance" else ("", "")
        self._history(resource_id)
        ended_with = self._configuration(resource_id) if kind == "instance" else frozenset()
        images = self._images(resource_id) if kind == "instance" else {}
        snapshots = self._snapshots(resource_id, images)
        volumes = self._live_volumes(resource_id)
        for volume_id in sorted(self._volumes)[:_LOOKED_UP]:
            if volume_id != resource_id:
                self._history(volume_id)
        pieces = [*volumes, *snapshots, *self._bin(resource_id, set(images))]
        pieces += self._recovery_points(resource_id)
        if kind == "volume":
            state = next((p.state for p in volumes if p.resource_id == resource_id), "")
        self._deleted({p.resource_id for p in pieces if not p.kind.startswith("binned")})
        deeds = sorted(self._deeds.values(), key=lambda d: (d.at, d.event_id))
        return Found(
            resource_id, state, reason, dict(self._volumes), ended_with, tuple(pieces),
            tuple(deeds), tuple(self._merged()),
        )  # fmt: skip

    def _learn(self, volume_id: str, device: str = "") -> None:
        """The target had this volume. That of a copied snapshot means nothing (EBS-3)."""
        if volume_id and not _COPIED.fullmatch(volume_id):
            self._volumes[volume_id] = device or self._volumes.get(volume_id, "")

    def _look(self, place: str, work: Callable[[], int]) -> None:
        """Look at one place; that it cannot be looked at stops nothing."""
        try:
            self._looks.append(Look(place, work()))
        except failures() as e:
            failure = Failure(e)
            denied = failure.answered and (failure.status == 403 or failure.code in _DENIED)
            why = f"{clean(failure.message, 200)} ({clean(failure.code, 60)})"
            self._looks.append(Look(place, 0, why, denied))

    def _merged(self) -> Iterator[Look]:
        """One look for each place, the trouble in it told once."""
        places: dict[str, Look] = {}
        for look in self._looks:
            before = places.get(look.place)
            places[look.place] = look if before is None else replace(
                before if before.why else look, found=before.found + look.found
            )  # fmt: skip
        yield from places.values()

    def _instance(self, resource_id: str) -> tuple[str, str]:
        said: list[dict[str, Any]] = []

        def look() -> int:
            try:
                pages = self.ec2.describe_instances(InstanceIds=[resource_id])["Reservations"]
            except failures() as e:
                if Failure(e).code.startswith("InvalidInstanceID"):
                    return 0
                raise
            said.extend(i for page in pages for i in page["Instances"])
            for instance in said:
                for m in instance.get("BlockDeviceMappings", ()):
                    if "Ebs" in m:
                        self._learn(m["Ebs"]["VolumeId"], str(m.get("DeviceName", "")))
            return len(said)

        self._look("instances (DescribeInstances)", look)
        if not said:
            return "", ""
        self._launched = said[0].get("LaunchTime")  # the event says it better, if there is one
        reason = clean(str(said[0].get("StateTransitionReason", "")), 200)
        return str(said[0]["State"]["Name"]), f"EC2 says: {reason}" if reason else ""

    # -- CloudTrail and AWS Config

    def _history(self, resource_id: str) -> None:
        def look() -> int:
            found = 0
            for said in self._events(resource_id):
                if (deed := deed_of(said)) is None:
                    continue
                found += deed.event_id not in self._deeds
                self._deeds[deed.event_id] = deed
                if deed.name == "RunInstances" and resource_id.startswith("i-"):
                    self._launched = deed.at
                if resource_id.startswith("i-") and not deed.error:
                    for volume_id in deed.volumes:
                        self._learn(volume_id, deed.device)
            return found

        self._look("CloudTrail event history (LookupEvents)", look)

    def _events(self, resource_id: str) -> Iterator[Mapping[str, Any]]:
        asked: dict[str, Any] = {
            "LookupAttributes": [{"AttributeKey": "ResourceName", "AttributeValue": resource_id}]
        }
        for _ in range(PAGES):
            page = self.trail.lookup_events(**asked, MaxResults=50)
            yield from page.get("Events", ())
            if not page.get("NextToken"):
                return
            asked["NextToken"] = page["NextToken"]
        self._looks.append(
            Look("CloudTrail event history (LookupEvents)", 0,
                 f"{resource_id} has more than {PAGES * 50} events; only the newest were read")
        )  # fmt: skip

    def _configuration(self, resource_id: str) -> frozenset[str]:
        ending: set[str] = set()

        def look() -> int:
            try:
                items = self.config.get_resource_config_history(
                    resourceType="AWS::EC2::Instance", resourceId=resource_id, limit=100
                )["configurationItems"]
            except failures() as e:
                if Failure(e).code == "ResourceNotDiscoveredException":
                    return 0
                raise
            for item in items:
                for volume_id, device, ends in _attached(item):
                    self._learn(volume_id, device)
                    self._recorded = True
                    if ends:
                        ending.add(volume_id)
            return len(items)

        self._look("AWS Config history (GetResourceConfigHistory)", look)
        return frozenset(ending)

    def _deleted(self, there: set[str]) -> None:
        """Read who deleted what CloudTrail says was made and that is gone, or in the bin."""
        made = {s for d in self._deeds.values() if d.name.startswith("Create") and not d.error
                for s in d.snapshots}  # fmt: skip
        made |= {i for d in self._deeds.values() if d.name == "CreateImage" for i in d.images}
        for resource_id in sorted(made - there)[:_LOOKED_UP]:
            self._history(resource_id)

    # -- EC2

    def _images(self, resource_id: str) -> dict[str, list[str]]:
        """Snapshot id -> images, of those made of the instance."""
        found: dict[str, list[str]] = {}

        def look() -> int:
            filters = [{"Name": "source-instance-id", "Values": [resource_id]}]
            images = self._paged("describe_images", "Images", Owners=["self"], Filters=filters)
            return _note_images(found, images)

        self._look("images (DescribeImages)", look)
        return found

    def _snapshots(self, resource_id: str, images: dict[str, list[str]]) -> list[Piece]:
        said: dict[str, Mapping[str, Any]] = {}
        named: set[str] = set()

        def ask(name: str, values: Iterable[str]) -> list[Mapping[str, Any]]:
            found: list[Mapping[str, Any]] = []
            for some in _some(sorted(values)):
                found += self._paged(
                    "describe_snapshots", "Snapshots", OwnerIds=["self"],
                    Filters=[{"Name": name, "Values": some}],
                )  # fmt: skip
            said.update((s["SnapshotId"], s) for s in found)
            return found

        def look() -> int:
            for s in ask("snapshot-id", images):
                self._learn(s.get("VolumeId", ""))
            for s in ask("description", [f"*{resource_id}*"]):
                # Anybody who may make a snapshot may write this.
                if s.get("VolumeId", "") not in self._volumes and s["SnapshotId"] not in images:
                    named.add(s["SnapshotId"])
            ask("volume-id", self._volumes)
            return len(said)

        def look_at_images() -> int:
            before = {i for of in images.values() for i in of}
            for some in _some(sorted(said)):
                filters = [{"Name": "block-device-mapping.snapshot-id", "Values": some}]
                _note_images(images, self._paged(
                    "describe_images", "Images", Owners=["self"], Filters=filters
                ))  # fmt: skip
            return len({i for of in images.values() for i in of} - before)

        self._look("snapshots (DescribeSnapshots)", look)
        self._look("images (DescribeImages)", look_at_images)
        return [
            _snapshot_piece(
                s, images.get(s["SnapshotId"], []), _BY_NAME if s["SnapshotId"] in named else ""
            )
            for s in said.values()
            if s.get("State") != "error" and s.get("OwnerId") == self.account
        ]

    def _live_volumes(self, resource_id: str) -> list[Piece]:
        found: dict[str, Piece] = {}

        def look() -> int:
            asked = [("volume-id", some) for some in _some(sorted(self._volumes))]
            if resource_id.startswith("i-"):
                asked.append(("attachment.instance-id", [resource_id]))
            for name, values in asked:
                said = self._paged(
                    "describe_volumes", "Volumes", Filters=[{"Name": name, "Values": values}]
                )
                for v in said:
                    held = [a.get("InstanceId", "") for a in v.get("Attachments", ())]
                    self._learn(v["VolumeId"])
                    if v["State"] in _LEFT:
                        state = " ".join(["in-use by", *held]) if held else v["State"]
                        found[v["VolumeId"]] = _volume_piece(v, state)
            if self._launched and not self._recorded:
                # RunInstances does not say in CloudTrail which volumes it made.
                filters = [{"Name": "status", "Values": ["available"]}]
                begin, end = (self._launched + d for d in _LAUNCH)
                for v in self._paged("describe_volumes", "Volumes", Filters=filters):
                    if begin <= v["CreateTime"] <= end and v["VolumeId"] not in found:
                        found[v["VolumeId"]] = _volume_piece(v, v["State"], _BY_TIME)
            return len(found)

        self._look("volumes (DescribeVolumes)", look)
        return [found[v] for v in sorted(found)]

    def _bin(self, resource_id: str, image_snapshots: set[str]) -> list[Piece]:
        made = {s: (d.volumes[0] if len(d.volumes) == 1 else "") for d in self._deeds.values()
                if d.name.startswith("Create") for s in d.snapshots}  # fmt: skip
        images = {i for d in self._deeds.values() if d.name.endswith("Image") for i in d.images}
        pieces: list[Piece] = []

        def volumes() -> int:
            listed = self._paged("list_volumes_in_recycle_bin", "Volumes")
            pieces.extend(
                Piece("binned-volume", v["VolumeId"], v["VolumeId"], v.get("RecycleBinEnterTime"),
                      v.get("Size", 0) * GIB, v.get("RecycleBinExitTime"))
                for v in listed if v["VolumeId"] in self._volumes
            )  # fmt: skip
            return len(pieces)

        def snapshots() -> int:
            before = len(pieces)
            for s in self._paged("list_snapshots_in_recycle_bin", "Snapshots"):
                snapshot_id = s["SnapshotId"]
                volume_id = s.get("VolumeId") or made.get(snapshot_id, "")
                named = resource_id in s.get("Description", "")
                ours = volume_id in self._volumes or snapshot_id in made
                if ours or named or snapshot_id in image_snapshots:
                    pieces.append(
                        Piece("binned-snapshot", snapshot_id, volume_id,
                              until=s.get("RecycleBinExitTime"), doubt="" if ours else _BY_NAME)
                    )  # fmt: skip
            return len(pieces) - before

        def binned_images() -> int:
            before = len(pieces)
            for image in self._paged("list_images_in_recycle_bin", "Images"):
                named = resource_id in image.get("Description", "")
                if named or image["ImageId"] in images:
                    doubt = "" if image["ImageId"] in images else _BY_NAME
                    until = image.get("RecycleBinExitTime")
                    pieces.append(Piece("binned-image", image["ImageId"], until=until, doubt=doubt))
            return len(pieces) - before

        self._look("volumes in the Recycle Bin (ListVolumesInRecycleBin)", volumes)
        self._look("snapshots in the Recycle Bin (ListSnapshotsInRecycleBin)", snapshots)
        self._look("images in the Recycle Bin (ListImagesInRecycleBin)", binned_images)
        return pieces

    def _recovery_points(self, resource_id: str) -> list[Piece]:
        pieces: list[Piece] = []

        def look() -> int:
            for name in dict.fromkeys((resource_id, *sorted(self._volumes))):
                kind = "volume" if name.startswith("vol-") else "instance"
                pieces.extend(
                    Piece("recovery-point", p.arn, name if kind == "volume" else "", p.at,
                          until=p.until, state=f"{p.status} in vault {p.vault}")
                    for p in points(self.backup, f"{self.place}:{kind}/{name}")
                )  # fmt: skip
            return len(pieces)

        if self.backup is not None:
            self._look("recovery points (AWS Backup, ListRecoveryPointsByResource)", look)
        return pieces

    def _paged(self, operation: str, what: str, **asked: Any) -> list[Mapping[str, Any]]:
        found: list[Mapping[str, Any]] = []
        while True:
            page = getattr(self.ec2, operation)(**asked)
            found += page.get(what, ())
            if not page.get("NextToken"):
                return found
            asked["NextToken"] = page["NextToken"]


def deed_of(said: Mapping[str, Any]) -> Deed | None:
    """Return an event of LookupEvents, or None if it is of no interest here.

    What callers write into requests stands in it: only whole ids count, never text around them.
    """
    name = str(said.get("EventName", ""))
    if name not in EVENTS:
        return None
    try:
        record = json.loads(said.get("CloudTrailEvent") or "{}")
    except (ValueError, RecursionError):
        record = {}
    record = record if isinstance(record, dict) else {}
    identity = record.get("userIdentity")
    identity = identity if isinstance(identity, dict) else {}
    who = identity.get("arn") or identity.get("invokedBy") or said.get("Username") or "unknown"
    asked = record.get("requestParameters")
    parts = [asked, record.get("responseElements"),
             [r.get("ResourceName") for r in said.get("Resources", ())]]  # fmt: skip
    words = set(_words(parts))

    def whole(pattern: re.Pattern[str]) -> tuple[str, ...]:
        return tuple(sorted(w for w in words if pattern.fullmatch(w)))

    device = asked.get("device", "") if isinstance(asked, dict) else ""
    return Deed(
        name, said["EventTime"].astimezone(UTC), clean(str(who), 200),
        clean(str(record.get("sourceIPAddress") or ""), 100), clean(str(said["EventId"]), 100),
        clean(str(record.get("errorCode") or ""), 100), whole(_VOLUME), whole(_SNAPSHOT),
        whole(_IMAGE), clean(str(device), 40),
    )  # fmt: skip


def _words(said: Any) -> Iterator[str]:
    waiting = [said]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, Mapping):
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


def _attached(item: Mapping[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """(volume, device, ends with the instance) of a configuration item of an instance."""
    for related in item.get("relationships", ()):
        if _VOLUME.fullmatch(str(related.get("resourceId", ""))):
            yield str(related["resourceId"]), "", False
    try:
        said = json.loads(item.get("configuration") or "{}")
    except (ValueError, RecursionError):
        return
    mappings = said.get("blockDeviceMappings") if isinstance(said, dict) else None
    for mapping in mappings if isinstance(mappings, list) else ():
        ebs = mapping.get("ebs") if isinstance(mapping, dict) else None
        if isinstance(ebs, dict) and _VOLUME.fullmatch(str(ebs.get("volumeId", ""))):
            device = clean(str(mapping.get("deviceName", "")), 40)
            yield str(ebs["volumeId"]), device, ebs.get("deleteOnTermination") is True


def _note_images(found: dict[str, list[str]], images: Iterable[Mapping[str, Any]]) -> int:
    count = 0
    for count, image in enumerate(images, 1):  # noqa: B007 (counted)
        for mapping in image.get("BlockDeviceMappings", ()):
            if snapshot_id := mapping.get("Ebs", {}).get("SnapshotId"):
                of = found.setdefault(snapshot_id, [])
                if image["ImageId"] not in of:
                    of.append(image["ImageId"])
    return count


def _volume_piece(said: Mapping[str, Any], state: str, doubt: str = "") -> Piece:
    name = said["VolumeId"]
    return Piece("volume", name, name, None, said["Size"] * GIB, state=state, doubt=doubt)


def _snapshot_piece(said: Mapping[str, Any], images: list[str], doubt: str) -> Piece:
    archived = said.get("StorageTier") == "archive"
    volume_id = said.get("VolumeId", "")
    return Piece(
        "snapshot", said["SnapshotId"], "" if _COPIED.fullmatch(volume_id) else volume_id,
        said["StartTime"].astimezone(UTC),
        int(said.get("VolumeSize", 0)) * GIB, None, tuple(images),
        "archive" if archived else str(said.get("State", "")), doubt,
    )  # fmt: skip


def _some(values: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(values), _AT_ONCE):
        yield values[start : start + _AT_ONCE]


# -- hold ------------------------------------------------------------------------------------------

_RESTORE = {
    "binned-volume": ("restore_volume_from_recycle_bin", "VolumeId"),
    "binned-snapshot": ("restore_snapshot_from_recycle_bin", "SnapshotId"),
    "binned-image": ("restore_image_from_recycle_bin", "ImageId"),
}
_SHOW: dict[str, tuple[str, str]] = {
    "binned-volume": ("describe_volumes", "volume-id"),
    "binned-snapshot": ("describe_snapshots", "snapshot-id"),
    "binned-image": ("describe_images", "image-id"),
}


@dataclass
class Keeper:
    """Keeps what is left from going. `once`: a client without retries."""

    ec2: Any
    once: Any
    sleep: Callable[[float], None] = time.sleep

    def restore(self, piece: Piece) -> None:
        """Take a piece out of the Recycle Bin, unless it is out; wait until it shows.

        Raises: AcquisitionError.
        """
        operation, parameter = _RESTORE[piece.kind]
        if not self._shows(piece):
            try:
                getattr(self.once, operation)(**{parameter: piece.resource_id})
            except failures() as e:
                failure = Failure(e)
                # Not in the bin: another has taken it out, and it does not show yet.
                if not (failure.may_have_happened or "NotFound" in failure.code):
                    raise _error(e, f"restore {piece.resource_id} from the Recycle Bin") from e
        waited = 0.0
        while not self._shows(piece):
            if waited >= _VISIBLE_S:
                raise AcquisitionError(
                    f"{piece.resource_id} does not show after it was restored",
                    hint="run the same command again; it looks for it first",
                )
            self.sleep(PAUSE_S)
            waited += 2

    def _shows(self, piece: Piece) -> bool:
        operation, name = _SHOW[piece.kind]
        owners = {"binned-snapshot": {"OwnerIds": ["self"]}, "binned-image": {"Owners": ["self"]}}
        try:
            said = getattr(self.ec2, operation)(
                Filters=[{"Name": name, "Values": [piece.resource_id]}],
                **owners.get(piece.kind, {}),
            )
        except failures() as e:
            raise _error(e, f"look for {piece.resource_id}") from e
        return any(said.get(what) for what in ("Volumes", "Snapshots", "Images"))

    def tag(self, volume_id: str, tags: Mapping[str, str]) -> dict[str, str]:
        """Mark a volume as evidence; return what it carries of these tags, and did before.

        A tag that is there with another value stays as it is.

        Raises: AcquisitionError.
        """
        try:
            said = self.ec2.describe_tags(
                Filters=[{"Name": "resource-id", "Values": [volume_id]}]
            )["Tags"]  # fmt: skip
            there = {t["Key"]: t["Value"] for t in said}
            new = {k: v[:256] for k, v in tags.items() if v and k not in there}
            if new:
                self.ec2.create_tags(
                    Resources=[volume_id], Tags=[{"Key": k, "Value": v} for k, v in new.items()]
                )
        except failures() as e:
            raise _error(e, f"tag {volume_id}") from e
        return {**new, **{k: there[k] for k in tags if k in there}}


def _utc(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _error(e: Exception, what: str) -> AcquisitionError:
    error = Failure(e).error(f"cannot {what}")
    return AcquisitionError(str(error), hint=error.hint)
