# SPDX-License-Identifier: Apache-2.0
"""What a responder points at: an instance, volume or snapshot, by ARN or by id with its place.

Source: AWS General Reference, "Amazon Resource Names"; EC2 User Guide, "Resource IDs".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["instance", "volume", "snapshot"]

_ARN = re.compile(
    r"arn:(?P<partition>aws[a-z-]*):ec2:(?P<region>[a-z0-9-]+):(?P<account>[0-9]{12})?:"
    r"(?P<kind>instance|volume|snapshot)/(?P<id>[a-z]+-[0-9a-f]{8,17})"
)
_ID = re.compile(r"(?P<prefix>i|vol|snap)-[0-9a-f]{8,17}")
# Source: botocore, endpoints.json, `regionRegex` of each partition.
_PARTITIONS = (
    ("cn-", "aws-cn"), ("us-gov-", "aws-us-gov"), ("us-iso-", "aws-iso"), ("us-isob-", "aws-iso-b"),
    ("us-isof-", "aws-iso-f"), ("eu-isoe-", "aws-iso-e"), ("eusc-", "aws-eusc"),
)  # fmt: skip
_KINDS: dict[str, Kind] = {"i": "instance", "vol": "volume", "snap": "snapshot"}


@dataclass(frozen=True)
class Target:
    """One resource under investigation."""

    kind: Kind
    resource_id: str
    account: str
    region: str
    partition: str = "aws"

    @property
    def arn(self) -> str:
        """Its ARN. That of a snapshot names no account, as AWS writes it."""
        account = "" if self.kind == "snapshot" else self.account
        return f"arn:{self.partition}:ec2:{self.region}:{account}:{self.kind}/{self.resource_id}"


def partition_of(region: str) -> str:
    """Return the partition of a Region.

    >>> partition_of("eu-central-1"), partition_of("us-gov-west-1")
    ('aws', 'aws-us-gov')
    """
    return next((name for start, name in _PARTITIONS if region.startswith(start)), "aws")


def parse_target(text: str, *, account: str = "", region: str = "") -> Target:
    """Return the target that `text` names.

    Args:
        text: ARN, or id (`i-…`, `vol-…`, `snap-…`).
        account: where an id lies; must agree with an ARN that names one.
        region: the same.

    Raises: ValueError, saying what is missing or contradictory.
    """
    if match := _ARN.fullmatch(text):
        found = match.groupdict()
        prefix = found["id"].partition("-")[0]
        if _KINDS.get(prefix) != found["kind"]:
            raise ValueError(f"{text!r} contradicts itself: {found['id']} is no {found['kind']}")
        for name, said in (("account", account), ("region", region)):
            if said and found[name] and said != found[name]:
                raise ValueError(f"{text!r} lies in {name} {found[name]}, not in {said}")
        owner = found["account"] or account
        if not owner:
            raise ValueError(f"{text!r} names no account; say which with --account")
        return Target(_KINDS[prefix], found["id"], owner, found["region"], found["partition"])
    if match := _ID.fullmatch(text):
        missing = [f"--{n}" for n, v in (("account", account), ("region", region)) if not v]
        if missing:
            raise ValueError(f"{text} is ambiguous; say where it lies with {' and '.join(missing)}")
        return Target(_KINDS[match["prefix"]], text, account, region, partition_of(region))
    raise ValueError(f"not an instance, volume or snapshot: {text!r} (an ARN, i-…, vol-…, snap-…)")
