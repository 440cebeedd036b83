# SPDX-License-Identifier: Apache-2.0
"""What logs tell of an instance when it is cut off: whom it talked to, and as whom it acted.

Logs are slow and may be out of reach. The cut never waits for them: they are asked after it, for a
limited time, and what they do not tell is a gap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial

from pydantic import JsonValue

from acquisition.containment.aws import Aws
from acquisition.containment.flows import Flows, Peer, Reader, own_addresses
from acquisition.containment.identity import ContainmentError, resource
from acquisition.containment.state import Attribute, peer_cidr, some
from acquisition.containment.trail import Acted, Key, Trail
from acquisition.target import Target
from evidence_store.aws import Failure, failures
from evidence_store.errors import Error
from evidence_store.model import clean
from pipeline.accounts import Accounts
from pipeline.config import AwsSettings
from pipeline.journal import LateError, within

_SEARCH_S = 20.0


def peers(
    accounts: Accounts, settings: AwsSettings, target: Target, aws: Aws
) -> tuple[Flows, list[str]]:
    """Return whom an instance talked to lately, and what of it is not known or not cut."""
    minutes = settings.peer_minutes
    if not minutes:
        return Flows(), ["peers were not looked for (aws.peer_minutes is 0)"]
    owners = dict.fromkeys((target.account, settings.log_archive_account or target.account))

    def read() -> Flows:
        reader = Reader(
            accounts.client("ec2", target.account, target.region),
            accounts.client("logs", target.account, target.region),
            [partial(accounts.client, "s3", owner, target.region) for owner in owners],
            target.account, target.region, seconds=_SEARCH_S - 5,
        )  # fmt: skip
        return reader.read(aws.interfaces(), minutes, settings.isolation_sources)

    try:
        found = within(_SEARCH_S, read)
    except LateError:
        return Flows(), [f"flow logs gave no answer within {_SEARCH_S:.0f} s: no peer is known"]
    except Error as e:
        return Flows(), [f"flow logs cannot be read: {e}"]
    gaps = list(found.gaps)
    if found.private:
        gaps.append(
            f"it talked to {some(cidrs(found.private))} of its own networks, which others of its "
            "subnet may need: not cut; --peer ADDRESS cuts one"
        )
    if found.services:
        gaps.append(
            f"it talked to AWS services at {some(cidrs(found.services))}, which others need: not "
            "cut; its sessions are"
        )
    return found, gaps


def acted(
    accounts: Accounts, settings: AwsSettings, target: Target, aws: Aws,
    sleep: Callable[[float], None],
) -> Acted:  # fmt: skip
    """Return as whom an instance acted lately, and what of it is not known."""
    hours = settings.session_hours
    if not hours:
        return Acted(gaps=("sessions were not looked for (aws.session_hours is 0)",))

    def follow() -> Acted:
        trail = Trail(
            lambda account, region: accounts.client("cloudtrail", account, region),
            target.account, (target.region, "us-east-1"), seconds=_SEARCH_S - 5, sleep=sleep,
        )  # fmt: skip
        addresses = [str(a) for i in aws.interfaces() for a in own_addresses(i)]
        return trail.follow(target.resource_id, hours, addresses)

    try:
        return within(_SEARCH_S, follow)
    except LateError:
        return Acted(gaps=(
            f"CloudTrail gave no answer within {_SEARCH_S:.0f} s: which sessions the instance "
            "assumed is not known",
        ))  # fmt: skip
    except Error as e:
        return Acted(gaps=(f"CloudTrail cannot be read: {e}",))


def key_of(accounts: Accounts, target: Target, key: str) -> Key:
    """Return whose access key this is. Raises: ContainmentError, AccountError."""
    try:
        sts = accounts.client("sts", target.account, target.region)
        account = str(sts.get_access_key_info(AccessKeyId=key)["Account"])
        iam = accounts.client("iam", account, target.region)
        user = str(iam.get_access_key_last_used(AccessKeyId=key).get("UserName") or "")
    except failures() as e:
        error = Failure(e).error(f"cannot find out whose key {key} is")
        raise ContainmentError(clean(str(error), 400), hint=error.hint) from e
    if not user or user == "<root_account>":
        raise ContainmentError(f"{key} is no user's key", hint="the root user alone can end it")
    return Key(account, user, key)


def attributes_of(key: Key, target: Target) -> tuple[Attribute, Attribute]:
    """Return what is changed of a key, and of its user."""
    name = resource(key.account, key.user, target.account)
    return Attribute("access-key", f"{name} {key.key}"), Attribute("user-deny", name)


def cidrs(found: Iterable[Peer]) -> tuple[str, ...]:
    """Return their addresses as CIDR."""
    return tuple(peer_cidr(str(p.address)) for p in found)


def document(flows: Flows | None) -> JsonValue:
    """What flow logs say, as JSON; None if they were not asked."""
    if flows is None:
        return None
    return [
        {"address": str(p.address), "bytes": p.bytes, "opened": p.opened, "kind": kind,
         "last": f"{datetime.fromtimestamp(p.last, UTC):%Y-%m-%dT%H:%M:%SZ}" if p.last else None}
        for kind, found in
        (("peer", flows.peers), ("private", flows.private), ("service", flows.services))
        for p in found
    ]  # fmt: skip
