# SPDX-License-Identifier: Apache-2.0
"""Who an instance talked to, as the flow logs of its VPC have it.

Both places are read where they exist, CloudWatch Logs and S3. That there are no flow logs, that
they may not be read or that they hold nothing is a gap each: none of them means that there is no
peer. Records are written one to ten minutes after the fact and delivered minutes later; what is
younger is not seen.

Source: VPC User Guide, "Flow log records", "Flow log files" (folders, file names, five minutes a
file, "Hive-compatible S3 prefixes"), "Flow log limitations"; EC2 API Reference, DescribeFlowLogs;
CloudWatch Logs API Reference, FilterLogEvents.
"""

from __future__ import annotations

import gzip
import time
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Any

from evidence_store.aws import Failure, failures
from evidence_store.model import clean

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

DEFAULT_FORMAT = (
    "version account-id interface-id srcaddr dstaddr srcport dstport protocol packets bytes start "
    "end action log-status"
)
_LINE = 4096  # characters of a record
_MOST = 50_000  # peers that are counted
_FILES = 2000  # of one flow log
_ADMIN = {22, 3389, 5985, 5986}  # who comes in here is no customer
_EPHEMERAL = 32_768
_PRIVATE = tuple(ip_network(n) for n in (
    "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7",
))  # fmt: skip
_NOBODY = tuple(ip_network(n) for n in (
    "0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/127", "fe80::/10", "ff00::/8",
))  # fmt: skip


@dataclass(frozen=True)
class Peer:
    """An address that packets were exchanged with.

    Attributes:
        last: end of its last record, seconds since the epoch; 0.0 if the log does not say it.
        bytes: in all records.
        opened: the instance seems to have opened a connection to it, or it came in for
            administration: it is cut before those that were only served.
    """

    address: Address
    last: float = 0.0
    bytes: int = 0
    opened: bool = False


@dataclass(frozen=True)
class Flows:
    """What flow logs say.

    Attributes:
        peers: to be cut, the most urgent first.
        private: peers of the same network; others may need them too.
        services: addresses of AWS services that others use as well, where the log names them.
        gaps: what was not seen, in words.
    """

    peers: tuple[Peer, ...] = ()
    private: tuple[Peer, ...] = ()
    services: tuple[Peer, ...] = ()
    gaps: tuple[str, ...] = ()


@dataclass
class Tally:
    """Peers of some interfaces, counted from records. Pure.

    Attributes:
        own: interface -> its addresses.
        since: records that ended earlier do not count, seconds since the epoch.
        spared: networks that are never peers: the responders'.
    """

    own: Mapping[str, frozenset[Address]]
    since: float
    spared: Sequence[Network] = ()
    skipped: int = 0
    unreadable: int = 0
    overflow: bool = False
    _peers: dict[Address, Peer] = field(default_factory=dict, init=False)
    _services: set[Address] = field(default_factory=set, init=False)

    def add(self, names: Sequence[str], line: str) -> None:
        """Count one record; `names`: what its fields are."""
        values = line.split()
        record = dict(zip(names, values, strict=False))
        interface = record.get("interface-id", "")
        if interface and interface not in self.own:
            return
        if len(values) != len(names):
            self.unreadable += 1
        elif record.get("log-status") == "SKIPDATA":
            self.skipped += 1
        elif record.get("log-status") != "NODATA" and record.get("action", "ACCEPT") == "ACCEPT":
            try:
                self._count(record, self._mine(interface))
            except ValueError:
                self.unreadable += 1

    def _mine(self, interface: str) -> frozenset[Address]:
        if interface:
            return self.own[interface]
        return frozenset(a for held in self.own.values() for a in held)

    def _count(self, record: Mapping[str, str], mine: frozenset[Address]) -> None:
        source = _address(record, "src")
        target = _address(record, "dst")
        if source in mine:
            peer, service = target, record.get("pkt-dst-aws-service", "-")
            here, there = _port(record, "srcport"), _port(record, "dstport")
        elif target in mine:
            peer, service = source, record.get("pkt-src-aws-service", "-")
            here, there = _port(record, "dstport"), _port(record, "srcport")
        else:
            return
        if peer in mine or _within(peer, _NOBODY):
            return
        end, size = float(record.get("end", 0)), int(record.get("bytes", 0))
        if not 0 <= end < 1e11 or size < 0:
            raise ValueError("not a record")
        if (end and end < self.since) or _within(peer, self.spared):
            return
        if peer not in self._peers and len(self._peers) >= _MOST:
            self.overflow = True
            return
        held = self._peers.get(peer, Peer(peer))
        opened = here in _ADMIN or there < _EPHEMERAL <= here
        self._peers[peer] = Peer(
            peer, max(held.last, end), held.bytes + size, held.opened or opened
        )
        if service not in ("-", "EC2", "AMAZON"):
            self._services.add(peer)

    def flows(self, gaps: Iterable[str]) -> Flows:
        """Return what was counted, and what was not."""
        order = sorted(
            self._peers.values(), key=lambda p: (not p.opened, -p.last, -p.bytes, str(p.address))
        )
        private = [p for p in order if _within(p.address, _PRIVATE)]
        services = [p for p in order if p.address in self._services and p not in private]
        rest = [p for p in order if p not in private and p not in services]
        said = list(gaps)
        if self.skipped:
            said.append(f"AWS skipped flow records {self.skipped} times, for want of capacity")
        if self.unreadable:
            said.append(f"{self.unreadable} flow records could not be read")
        if self.overflow:
            said.append(f"the flow logs have more than {_MOST} peers; the others are not counted")
        return Flows(tuple(rest), tuple(private), tuple(services), tuple(said))


def _within(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)


def _address(record: Mapping[str, str], side: str) -> Address:
    """One end of a flow: of the packet if the log has it, for addresses are translated."""
    text = record.get(f"pkt-{side}addr", "-")
    return ip_address(text if text != "-" else record.get(f"{side}addr", "-"))


def _port(record: Mapping[str, str], name: str) -> int:
    text = record.get(name, "-")
    return int(text) if text != "-" else 0


@dataclass
class Reader:
    """Reads the flow logs of some interfaces, and stops in time.

    Attributes:
        ec2, logs: clients in the account and Region of the instance.
        s3: clients to read a bucket with, one after the other until one may.
        account, region: of the instance.
        now: the time, seconds since the epoch.
        seconds: after so long no more is read.
        clock: measures that.
    """

    ec2: Any
    logs: Any
    s3: Sequence[Callable[[], Any]]
    account: str
    region: str
    now: Callable[[], float] = time.time
    seconds: float = 15.0
    clock: Callable[[], float] = time.monotonic
    _until: float = field(default=0.0, init=False)

    def read(
        self, interfaces: Sequence[Mapping[str, Any]], minutes: int, spared: Sequence[str] = ()
    ) -> Flows:
        """Return whom these interfaces exchanged packets with lately. Raises nothing of AWS's.

        Args:
            interfaces: as EC2 describes them.
            minutes: how far back.
            spared: networks that are never peers, as CIDR.
        """
        self._until = self.clock() + self.seconds
        since = datetime.fromtimestamp(self.now(), UTC) - timedelta(minutes=minutes)
        tally = Tally(
            {i["NetworkInterfaceId"]: frozenset(own_addresses(i)) for i in interfaces},
            since.timestamp(), [ip_network(s) for s in spared],
        )  # fmt: skip
        gaps: list[str] = []
        try:
            found = self._logs_of(interfaces)
        except failures() as e:
            return tally.flows([_trouble(e, "which flow logs there are", "ec2:DescribeFlowLogs")])
        if not found:
            where = ", ".join(sorted({str(i["VpcId"]) for i in interfaces}))
            gaps.append(f"{where} has no flow logs: whom the instance talks to is not known")
        unseen = tally.own.keys() - {n for log in found for n in self._covers(log, interfaces)}
        if found and unseen:
            gaps.append(f"no flow log covers {', '.join(sorted(unseen))}")
        for log in found:
            try:
                gaps += self._read(log, tally, since)
            except failures() as e:
                gaps.append(_trouble(e, f"flow log {log['FlowLogId']}", _RIGHTS[_kind(log)]))
            except (OSError, EOFError, zlib.error, KeyError, ValueError) as e:
                gaps.append(f"flow log {log['FlowLogId']} cannot be read: {clean(str(e), 200)}")
        flows = tally.flows(gaps)
        if not (flows.peers or flows.private or flows.services or gaps):
            flows = tally.flows([
                f"the flow logs hold no accepted flow of the last {minutes} minutes: whom the "
                "instance talks to is not known"
            ])  # fmt: skip
        return flows

    def _logs_of(self, interfaces: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        names = sorted({str(i[key]) for i in interfaces
                        for key in ("NetworkInterfaceId", "SubnetId", "VpcId")})  # fmt: skip
        pages = self.ec2.get_paginator("describe_flow_logs").paginate(
            Filters=[{"Name": "resource-id", "Values": names}]
        )
        return [log for page in pages for log in page["FlowLogs"]]

    @staticmethod
    def _covers(log: Mapping[str, Any], interfaces: Iterable[Mapping[str, Any]]) -> list[str]:
        return [
            i["NetworkInterfaceId"] for i in interfaces
            if log["ResourceId"] in (i["NetworkInterfaceId"], i["SubnetId"], i["VpcId"])
        ]  # fmt: skip

    def _read(self, log: Mapping[str, Any], tally: Tally, since: datetime) -> Iterator[str]:
        """Count one log; yields gaps."""
        name = log["FlowLogId"]
        if log.get("DeliverLogsStatus") == "FAILED":
            why = clean(log.get("DeliverLogsErrorMessage", "?"), 200)
            yield f"flow log {name} is not delivered: {why}"
        if log.get("TrafficType") == "REJECT":
            yield f"flow log {name} holds refused packets only"
            return
        kind = _kind(log)
        if kind == "cloud-watch-logs":
            finished = self._cloudwatch(log, tally, since)
        elif kind == "s3" and (log.get("DestinationOptions") or {}).get("FileFormat") != "parquet":
            finished = yield from self._bucket(log, tally, since)
        else:
            shape = "as Parquet" if kind == "s3" else f"to {clean(kind, 40)}"
            yield f"flow log {name} is written {shape}, which is not read here"
            return
        if not finished:
            yield f"flow log {name} was not read to its end within {self.seconds:.0f} s"

    def _late(self) -> bool:
        return self.clock() > self._until

    def _cloudwatch(self, log: Mapping[str, Any], tally: Tally, since: datetime) -> bool:
        names = _fields(log.get("LogFormat") or "")
        for interface in sorted(tally.own):
            # A stream holds one interface: `eni-…-all`, `-accept`.
            pages = self.logs.get_paginator("filter_log_events").paginate(
                logGroupName=log["LogGroupName"], logStreamNamePrefix=interface,
                startTime=int(since.timestamp() * 1000),
            )  # fmt: skip
            for page in pages:
                for event in page["events"]:
                    if event["logStreamName"].startswith(interface):
                        tally.add(names, event["message"][:_LINE])
                if self._late():
                    return False
        return True

    def _bucket(
        self, log: Mapping[str, Any], tally: Tally, since: datetime
    ) -> Generator[str, None, bool]:
        """Count the files of the time asked for; return whether all of them were."""
        bucket, _, prefix = str(log["LogDestination"]).partition(":::")[2].partition("/")
        s3, keys = self._listed(bucket, prefix.strip("/"), log, since)
        if not keys:
            yield f"flow log {log['FlowLogId']}: s3://{bucket} holds no file of that time"
        for number, key in enumerate(keys):
            if number >= _FILES or self._late():
                return False
            body = s3.get_object(Bucket=bucket, Key=key)["Body"]
            with gzip.GzipFile(fileobj=body) as lines:
                names = _fields(lines.readline(_LINE).decode(errors="replace"))
                for count, line in enumerate(iter(lambda: lines.readline(_LINE), b"")):
                    tally.add(names, line.decode(errors="replace"))
                    if count % 10_000 == 9_999 and self._late():
                        return False
        return True

    def _listed(
        self, bucket: str, prefix: str, log: Mapping[str, Any], since: datetime
    ) -> tuple[Any, list[str]]:
        """(client that may, keys from the newest on). Raises: what the last client met."""
        for number, client in enumerate(self.s3):
            s3 = client()
            try:
                keys = [
                    key for start in self._folders(log, prefix, since)
                    for page in s3.get_paginator("list_objects_v2").paginate(
                        Bucket=bucket, Prefix=start[0], StartAfter=start[1])
                    for key in (o["Key"] for o in page.get("Contents", ()))
                    if f"_{log['FlowLogId']}_" in key
                ]  # fmt: skip
            except failures() as e:
                if Failure(e).status not in (403, 404) or number + 1 == len(self.s3):
                    raise
            else:
                return s3, sorted(keys, key=lambda k: k.rpartition("/")[2], reverse=True)
        raise ValueError("no client to read it with")

    def _folders(
        self, log: Mapping[str, Any], prefix: str, since: datetime
    ) -> Iterator[tuple[str, str]]:
        """(folder, key before the first one wanted) of each hour or day since then."""
        how = log.get("DestinationOptions") or {}
        hourly, hive = how.get("PerHourPartition"), how.get("HiveCompatiblePartitions")
        names = (
            ("aws-account-id=", "aws-service=", "aws-region=", "year=", "month=", "day=", "hour=")
            if hive else ("",) * 7
        )  # fmt: skip
        since -= timedelta(minutes=5)  # a file is named after the end of its five minutes or so
        stamp = f"{self.account}_vpcflowlogs_{self.region}_{log['FlowLogId']}_{since:%Y%m%dT%H%MZ}"
        moment = since.replace(minute=0, second=0, microsecond=0)
        seen = ""
        while moment.timestamp() <= self.now():
            values = (self.account, "vpcflowlogs", self.region, *f"{moment:%Y %m %d %H}".split())
            parts = [a + b for a, b in zip(names, values, strict=True)][: 7 if hourly else 6]
            folder = "/".join([*([prefix] if prefix else []), "AWSLogs", *parts, ""])
            if folder != seen:
                yield folder, folder + stamp
            seen = folder
            moment += timedelta(hours=1)


_RIGHTS = {
    "cloud-watch-logs": "logs:FilterLogEvents",
    "s3": "s3:ListBucket and s3:GetObject, on its bucket, and kms:Decrypt with its key",
}


def _kind(log: Mapping[str, Any]) -> str:
    return str(log.get("LogDestinationType") or "cloud-watch-logs")


def _fields(text: str) -> list[str]:
    """Names of fields, of a format (`${srcaddr} …`) or of a file's first line.

    >>> _fields("${version} ${srcaddr}")
    ['version', 'srcaddr']
    """
    return text.replace("${", "").replace("}", "").split() or DEFAULT_FORMAT.split()


def own_addresses(interface: Mapping[str, Any]) -> Iterator[Address]:
    """Yield an interface's addresses as EC2 describes them, the public ones too."""
    for held in interface.get("PrivateIpAddresses", ()):
        yield ip_address(held["PrivateIpAddress"])
        if public := held.get("Association", {}).get("PublicIp"):
            yield ip_address(public)
    for held in interface.get("Ipv6Addresses", ()):
        yield ip_address(held["Ipv6Address"])


def _trouble(e: Exception, what: str, right: str) -> str:
    failure = Failure(e)
    said = f"cannot read {what}: {clean(failure.message, 200)} ({clean(failure.code, 60)})"
    return f"{said}; the role needs {right}" if failure.status == 403 else said
