# SPDX-License-Identifier: Apache-2.0
"""A forensics workstation in the Audit account: launched as a stack, judged, given volumes, ended.

What is launched is looked at again and compared with what was asked for; `differences` is pure.
Everything made carries the nonce of its step, and is looked for before it is made. A volume for a
workstation is made from a snapshot, which stays: only the volume is deleted again, and only while
the snapshot is there.

Source: CloudFormation API Reference, CreateStack, DescribeStacks, DeleteStack; EC2 API Reference,
CreateVolume, AttachVolume, DetachVolume, DescribeSnapshotAttribute (`productCodes`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from acquisition.errors import AcquisitionError, UnsupportedSourceError
from acquisition.snapshot import NONCE_TAG, UnreachableError, aws_error, failing
from evidence_store.aws import Failure, failures
from evidence_store.model import clean

ROLE_TAG, ROLE = "impound", "workstation"
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9-]")
_STACK_S, _STATE_S, _VISIBLE_S = 1800.0, 900.0, 60.0
PAUSE_S = 3.0
_DEVICES = tuple(f"/dev/sd{letter}" for letter in "fghijklmnop")
_MADE = ("CREATE_COMPLETE", "UPDATE_COMPLETE")
_MARKETPLACE = "acquire snapshot, and item serve of what it takes, need no volume"


class NotAsAskedError(AcquisitionError):
    """What was launched is not what the template says."""


@dataclass(frozen=True)
class Station:
    """One workstation. `state`: of its instance, or of its stack while there is none."""

    stack: str
    case: str
    status: str
    instance: str = ""
    zone: str = ""
    group: str = ""
    state: str = ""
    launched: str = ""
    address: str = ""

    @property
    def facts(self) -> dict[str, str]:
        """For ledger and JSON."""
        return {
            "stack": self.stack, "status": self.status,
            "instance": self.instance, "zone": self.zone, "group": self.group,
            "state": self.state, "launched": self.launched, "address": self.address,
        }  # fmt: skip


@dataclass(frozen=True)
class Attached:
    """A volume made for a workstation. `device`: the name that EC2 was given, not the kernel's."""

    volume: str
    snapshot: str
    state: str
    instance: str = ""
    device: str = ""
    size: int = 0


def stack_name(case_id: str, mark: str) -> str:
    """Return the name of a case's stack.

    >>> stack_name("T_1.a", "0123456789abcdef")
    'impound-T-1-a-01234567'
    """
    return f"impound-{_NOT_IN_A_NAME.sub('-', case_id)}-{mark[:8]}"


def differences(
    instance: Mapping[str, Any], group: Mapping[str, Any], root: Mapping[str, Any],
    asked: Mapping[str, str],
) -> list[str]:  # fmt: skip
    """Return what of a workstation is not as it was asked for. Pure.

    Args:
        instance: as DescribeInstances has it.
        group: as DescribeSecurityGroups has it.
        root: its root volume, as DescribeVolumes has it.
        asked: the stack's parameters; `ImageId`: what the image has to be, if it is known.
    """
    wrong = []

    def same(what: str, found: object, wanted: object) -> None:
        if found != wanted:
            wrong.append(f"{what} is {clean(str(found), 100) or 'none'}, not {wanted}")

    if image := asked.get("ImageId"):
        same("the image", instance.get("ImageId"), image)
    same("the subnet", instance.get("SubnetId"), asked["SubnetId"])
    if kind := asked.get("InstanceType"):
        same("the type", instance.get("InstanceType"), kind)
    groups = sorted(
        {g["GroupId"] for n in instance.get("NetworkInterfaces", ()) for g in n.get("Groups", ())}
        | {g["GroupId"] for g in instance.get("SecurityGroups", ())}
    )
    same("its groups", groups, [group["GroupId"]])
    if instance.get("KeyName"):
        wrong.append(f"it has the key pair {clean(str(instance['KeyName']), 60)}")
    if instance.get("PublicIpAddress"):
        wrong.append(f"it has the public address {clean(str(instance['PublicIpAddress']), 40)}")
    if instance.get("MetadataOptions", {}).get("HttpTokens") != "required":
        wrong.append("instance metadata is served without a token (IMDSv1)")
    profile = str(instance.get("IamInstanceProfile", {}).get("Arn", ""))
    wanted = asked.get("WorkstationProfile") or "impound-workstation"
    same("its instance profile", profile.rpartition("/")[2], wanted)
    if not root.get("Encrypted"):
        wrong.append("its root volume is not encrypted")
    else:
        same("the key of its root volume", root.get("KmsKeyId"), asked["VolumeKey"])
    tags = {t["Key"]: t["Value"] for t in instance.get("Tags", ())}
    same("its tag `case`", tags.get("case", ""), asked["Case"])
    expected = _rules(asked)
    for direction, key in (("to it", "IpPermissions"), ("from it", "IpPermissionsEgress")):
        found = set(_flat(group.get(key, ())))
        wrong += [f"permitted {direction}: {rule}" for rule in sorted(found - expected[key])]
        wrong += [f"not permitted {direction}: {rule}" for rule in sorted(expected[key] - found)]
    return wrong


def _rules(asked: Mapping[str, str]) -> dict[str, set[str]]:
    port = asked.get("ToolPort") or "22"
    target = f"tcp {port}-{port} {asked.get('TargetCidr') or asked.get('IsolationGroup')}"
    leaving = {f"tcp 443-443 {asked['S3PrefixList']}", f"tcp 443-443 {asked['EndpointGroup']}",
               target}  # fmt: skip
    if database := asked.get("DatabaseGroup"):
        leaving.add(f"tcp 5432-5432 {database}")
    entering = {target} if asked.get("AllowToolIngress") == "true" else set()
    return {"IpPermissions": entering, "IpPermissionsEgress": leaving}


def _flat(permissions: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for each in permissions:
        ports = f"{each.get('FromPort', '*')}-{each.get('ToPort', '*')}"
        peers = [
            *(r["CidrIp"] for r in each.get("IpRanges", ())),
            *(r["CidrIpv6"] for r in each.get("Ipv6Ranges", ())),
            *(r["PrefixListId"] for r in each.get("PrefixListIds", ())),
            *(r["GroupId"] for r in each.get("UserIdGroupPairs", ())),
        ]
        for peer in peers:
            yield f"{each.get('IpProtocol')} {ports} {peer}"


@dataclass
class Workstations:
    """Workstations in one Region of the Audit account.

    Attributes:
        cfn, ec2: clients.
        once: EC2 without retries, for calls that make something.
    """

    cfn: Any
    ec2: Any
    once: Any
    sleep: Callable[[float], None] = time.sleep
    _images: dict[str, str] = field(default_factory=dict)

    # -- stacks ----------------------------------------------------------------------------------

    def there(self, case_id: str = "") -> list[Station]:
        """Return the workstations that are there, of one case or of all.

        Raises: AcquisitionError.
        """
        with failing("list workstations"):
            stacks = [s for page in self.cfn.get_paginator("describe_stacks").paginate()
                      for s in page["Stacks"]]  # fmt: skip
        found = [
            self._station(stack, tags) for stack in stacks
            if (tags := {t["Key"]: t["Value"] for t in stack.get("Tags", ())}).get(ROLE_TAG) == ROLE
            and stack["StackStatus"] != "DELETE_COMPLETE"
        ]  # fmt: skip
        return [s for s in found if not case_id or s.case == case_id]

    def _station(self, stack: Mapping[str, Any], tags: Mapping[str, str]) -> Station:
        outputs = {o["OutputKey"]: o["OutputValue"] for o in stack.get("Outputs", ())}
        instance = self._instance(outputs["Workstation"]) if "Workstation" in outputs else {}
        launched = instance.get("LaunchTime")
        return Station(
            stack["StackName"], tags.get("case", ""), stack["StackStatus"],
            instance.get("InstanceId", ""),
            instance.get("Placement", {}).get("AvailabilityZone", ""),
            outputs.get("ForensicsGroup", ""), instance.get("State", {}).get("Name", ""),
            f"{launched:%Y-%m-%dT%H:%M:%SZ}" if launched else "",
            instance.get("PrivateIpAddress", ""),
        )  # fmt: skip

    def _instance(self, instance_id: str) -> dict[str, Any]:
        try:
            pages = self.ec2.describe_instances(InstanceIds=[instance_id])["Reservations"]
        except failures() as e:
            if Failure(e).code == "InvalidInstanceID.NotFound":
                return {}
            raise aws_error(e, f"look at instance {instance_id}") from e
        found = [dict(i) for page in pages for i in page["Instances"]]
        return found[0] if found else {}

    def _find(self, name: str) -> Station | None:
        return next((s for s in self.there() if s.stack == name), None)

    def launch(
        self, name: str, template: str, asked: Mapping[str, str], tags: Mapping[str, str], mark: str
    ) -> Station:
        """Return the workstation of this name when it runs; it is made unless it is there.

        Raises: AcquisitionError with the reason that CloudFormation gives.
        """
        if self._find(name) is None:
            marked = {**tags, ROLE_TAG: ROLE, NONCE_TAG: mark}
            try:
                self.cfn.create_stack(
                    StackName=name, TemplateBody=template, OnFailure="DELETE",
                    Parameters=[{"ParameterKey": k, "ParameterValue": v}
                                for k, v in asked.items()],
                    Tags=[{"Key": k, "Value": v[:256]} for k, v in marked.items() if v],
                )  # fmt: skip
            except failures() as e:
                if Failure(e).code != "AlreadyExistsException":
                    raise aws_error(e, f"launch stack {name}") from e
        waited = 0.0
        while waited < _STACK_S:
            found = self._find(name)
            if found is None and waited >= _VISIBLE_S:
                raise AcquisitionError(f"stack {name} is not there: its creation failed",
                                       hint=self._why(name))  # fmt: skip
            if found and found.status in _MADE and found.state == "running":
                return found
            if found and ("FAILED" in found.status or "ROLLBACK" in found.status or
                          found.status.startswith("DELETE")):  # fmt: skip
                raise AcquisitionError(f"stack {name} is {found.status}", hint=self._why(name))
            if found and found.status in _MADE and found.state not in ("", "pending"):
                raise AcquisitionError(
                    f"the workstation {found.instance} is {found.state}",
                    hint="impound workstation terminate, then launch a new one",
                )
            self.sleep(PAUSE_S)
            waited += PAUSE_S
        raise AcquisitionError(f"stack {name} is not complete after {_STACK_S / 60:.0f} min",
                               hint="run the same command again; it goes on waiting")  # fmt: skip

    def _why(self, name: str) -> str:
        """The first reason for a failure, as CloudFormation gives it, or where to look."""
        look = f"aws cloudformation describe-stack-events --stack-name {name}"
        try:
            events = self.cfn.describe_stack_events(StackName=name)["StackEvents"]
        except failures():
            return look
        failed = [e for e in events if e.get("ResourceStatus", "").endswith("FAILED")]
        said = [f"{e['LogicalResourceId']}: {e.get('ResourceStatusReason', '')}" for e in failed]
        return clean(said[-1], 300) if said else look

    def judge(self, station: Station, template: str, asked: Mapping[str, str]) -> list[str]:
        """Look at a workstation again and return what is not as asked.

        Raises: AcquisitionError.
        """
        with failing(f"look at {station.stack}"):
            said = self.cfn.get_template(StackName=station.stack, TemplateStage="Original")
            groups = self.ec2.describe_security_groups(GroupIds=[station.group])["SecurityGroups"]
        instance = self._instance(station.instance)
        if not instance:
            return [f"instance {station.instance} is not there"]
        mappings = {m["DeviceName"]: m["Ebs"]["VolumeId"]
                    for m in instance.get("BlockDeviceMappings", ()) if "Ebs" in m}  # fmt: skip
        # Whatever was attached later is not the first by its name.
        root = mappings.get(instance.get("RootDeviceName", ""), next(iter(mappings.values()), ""))
        volume: Mapping[str, Any] = {}
        if root:
            with failing(f"look at {root}"):
                volume = self.ec2.describe_volumes(VolumeIds=[root])["Volumes"][0]
        wrong = differences(instance, groups[0], volume, asked)
        if said["TemplateBody"] != template:
            wrong.append("its stack has another template than this program's")
        return wrong

    def terminate(self, station: Station) -> None:
        """Delete a workstation's stack, and wait until it is gone. Raises: AcquisitionError."""
        with failing(f"delete stack {station.stack}"):
            self.cfn.delete_stack(StackName=station.stack)

        def gone() -> bool:
            found = self._find(station.stack)
            if found and found.status == "DELETE_FAILED":
                raise AcquisitionError(
                    f"stack {station.stack} cannot be deleted", hint=self._why(station.stack)
                )
            instance = self._instance(station.instance) if station.instance else {}
            state = instance.get("State", {}).get("Name", "terminated")
            return found is None and state == "terminated"

        self._until(gone, f"stack {station.stack} to be gone", _STACK_S)

    # -- volumes ---------------------------------------------------------------------------------

    def volumes(self, case_id: str) -> list[Attached]:
        """Return the volumes that were made for workstations of a case.

        Raises: AcquisitionError.
        """
        with failing("list volumes"):
            found = [
                v for page in self.ec2.get_paginator("describe_volumes").paginate(Filters=[
                    {"Name": "tag:case", "Values": [case_id]},
                    {"Name": f"tag:{ROLE_TAG}", "Values": ["evidence-volume"]},
                ]) for v in page["Volumes"]
            ]  # fmt: skip
        return [_attached(v) for v in found]

    def attach(
        self, station: Station, snapshot: str, tags: Mapping[str, str], mark: str
    ) -> Attached:
        """Return a volume of a snapshot, attached to a running workstation.

        It is made unless it is there.

        Raises: UnsupportedSourceError for a Marketplace volume; AcquisitionError.
        """
        if station.state != "running":
            raise AcquisitionError(
                f"the workstation {station.instance} is {station.state or 'not there'}",
                hint="volumes are attached only while it runs: a start could take one for its own",
            )
        self._refuse_marketplace("snapshot", snapshot)
        made = self._volume(mark) or self._create(station, snapshot, tags, mark)
        made = self._settled(made.volume, ("available", "in-use"))
        self._refuse_marketplace("volume", made.volume)
        if made.instance and made.instance != station.instance:
            raise AcquisitionError(
                f"{made.volume} is attached to {made.instance}",
                hint="impound workstation terminate ends that workstation and takes it away",
            )
        if not made.instance:
            self._attach(station, made.volume)
        return self._settled(made.volume, ("in-use",), attached=True)

    def _refuse_marketplace(self, kind: str, name: str) -> None:
        call = getattr(self.ec2, f"describe_{kind}_attribute")
        key = "SnapshotId" if kind == "snapshot" else "VolumeId"
        try:
            codes = call(**{key: name}, Attribute="productCodes").get("ProductCodes", [])
        except failures() as e:
            if kind == "snapshot" and Failure(e).code in ("InvalidSnapshot.NotFound",
                                                         "AuthFailure"):  # fmt: skip
                return  # another owner's: only the volume says it
            raise aws_error(e, f"look at the product codes of {name}") from e
        if any(c.get("ProductCodeType", "marketplace") == "marketplace" for c in codes):
            raise UnsupportedSourceError(
                f"{name} carries a Marketplace product code: EC2 lets it be attached only as the "
                "root of a stopped instance of that product",
                hint=_MARKETPLACE,
            )

    def _volume(self, mark: str) -> Attached | None:
        with failing("look for an earlier volume"):
            found = self.ec2.describe_volumes(
                Filters=[{"Name": f"tag:{NONCE_TAG}", "Values": [mark]}]
            )["Volumes"]
        there = [v for v in found if v["State"] not in ("deleting", "deleted", "error")]
        return _attached(there[0]) if there else None

    def _create(
        self, station: Station, snapshot: str, tags: Mapping[str, str], mark: str
    ) -> Attached:
        marked = {**tags, ROLE_TAG: "evidence-volume", NONCE_TAG: mark}
        try:
            made = self.once.create_volume(
                SnapshotId=snapshot, AvailabilityZone=station.zone, VolumeType="gp3",
                Encrypted=True, ClientToken=f"{mark}-{station.instance}"[:64],
                TagSpecifications=[{"ResourceType": "volume", "Tags": [
                    {"Key": k, "Value": v[:256]} for k, v in marked.items() if v]}],
            )  # fmt: skip
        except failures() as e:
            if not Failure(e).may_have_happened:
                raise aws_error(e, f"make a volume of {snapshot}") from e
            found = self._volume(mark)
            if found is None:
                raise aws_error(e, f"make a volume of {snapshot}") from e
            return found
        return _attached(made)

    def _attach(self, station: Station, volume: str) -> None:
        instance = self._instance(station.instance)
        taken = {m["DeviceName"] for m in instance.get("BlockDeviceMappings", ())}
        free = next((d for d in _DEVICES if d not in taken), "")
        if not free:
            raise AcquisitionError(
                f"{station.instance} has no device name left for {volume}",
                hint="detach a volume, or launch another workstation",
            )
        try:
            self.ec2.attach_volume(VolumeId=volume, InstanceId=station.instance, Device=free)
        except failures() as e:
            if Failure(e).code != "VolumeInUse":  # an answer was lost: what follows looks
                raise aws_error(e, f"attach {volume} to {station.instance}") from e

    def _settled(
        self, volume: str, states: tuple[str, ...], *, attached: bool = False
    ) -> Attached:  # fmt: skip
        """Wait until a volume is in one of these states, its attachment too."""
        waited, found = 0.0, None
        while waited < _STATE_S:
            try:
                found = _attached(self.ec2.describe_volumes(VolumeIds=[volume])["Volumes"][0])
            except failures() as e:
                failure = Failure(e)
                if failure.code != "InvalidVolume.NotFound" or waited >= _VISIBLE_S:
                    if failure.code != "InvalidVolume.NotFound":
                        raise aws_error(e, f"look at {volume}") from e
                    raise AcquisitionError(
                        f"{volume} is gone: most likely its key was refused",
                        hint="the workstation's role needs kms:CreateGrant, kms:Decrypt, "
                        "kms:ReEncrypt* and kms:GenerateDataKeyWithoutPlaintext on that key",
                    ) from e
            else:
                if found.state in states and (not attached or found.device):
                    return found
                if found.state == "error":
                    raise AcquisitionError(f"{volume} is in the state error")
            self.sleep(PAUSE_S)
            waited += PAUSE_S
        raise UnreachableError(
            f"{volume} is {found.state if found else 'not there'} after {_STATE_S / 60:.0f} min",
            hint="run the same command again; it goes on from there",
        )

    def remove(self, held: Attached) -> None:
        """Detach a volume and delete it, if the snapshot that it was made from is there.

        Raises: AcquisitionError if it is not: then the volume may be the only one, and stays.
        """
        try:
            found = self.ec2.describe_snapshots(SnapshotIds=[held.snapshot])["Snapshots"]
        except failures() as e:
            if "NotFound" not in Failure(e).code:
                raise aws_error(e, f"look at snapshot {held.snapshot}") from e
            found = []
        if not found or found[0]["State"] != "completed":
            raise AcquisitionError(
                f"{held.volume} stays: its snapshot {held.snapshot} is not there any more",
                hint="find out who deleted it; make a snapshot of the volume before anything else",
            )
        if held.instance:
            with failing(f"detach {held.volume}"):
                self.ec2.detach_volume(VolumeId=held.volume, InstanceId=held.instance)
        self._settled(held.volume, ("available",))
        with failing(f"delete {held.volume}"):
            self.ec2.delete_volume(VolumeId=held.volume)

    def _until(self, done: Callable[[], bool], what: str, seconds: float) -> None:
        waited = 0.0
        while not done():
            if waited >= seconds:
                raise UnreachableError(f"waited {seconds / 60:.0f} min for {what}",
                                       hint="run the same command again")  # fmt: skip
            self.sleep(PAUSE_S)
            waited += PAUSE_S


def _attached(said: Mapping[str, Any]) -> Attached:
    held = [a for a in said.get("Attachments", ()) if a.get("State") not in ("detached",)]
    there = [a for a in held if a.get("State") == "attached"]
    return Attached(
        said["VolumeId"], said.get("SnapshotId", ""), said["State"],
        held[0]["InstanceId"] if held else "", there[0]["Device"] if there else "",
        int(said.get("Size", 0)) << 30,
    )  # fmt: skip
