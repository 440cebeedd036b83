# SPDX-License-Identifier: Apache-2.0
"""Flow logs: records, files, and what they do not say."""

from __future__ import annotations

import gzip
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network

import pytest

from acquisition.containment.flows import DEFAULT_FORMAT, Reader, Tally
from pipeline.gameday.aws.accounts import LOG_ARCHIVE, MEMBER, REGION

NOW = datetime(2026, 3, 1, 12, 40, tzinfo=UTC).timestamp()
OWN = "10.0.0.5"
INTERFACE = {
    "NetworkInterfaceId": "eni-1", "SubnetId": "subnet-1", "VpcId": "vpc-1",
    "PrivateIpAddresses": [{"PrivateIpAddress": OWN, "Association": {"PublicIp": "192.0.2.200"}}],
    "Ipv6Addresses": [{"Ipv6Address": "2001:db8::5"}],
}  # fmt: skip
NAMES = DEFAULT_FORMAT.split()


def record(source, target, here=50_000, there=443, *, end=NOW - 60, size=100, **more):
    said = {"interface": "eni-1", "action": "ACCEPT", "status": "OK"} | more
    return (f"2 {MEMBER} {said['interface']} {source} {target} {here} {there} 6 1 {size} 0 "
            f"{int(end)} {said['action']} {said['status']}")  # fmt: skip


def tally(*lines, names=NAMES, spared=()):
    made = Tally({"eni-1": frozenset({ip_address(OWN)})}, NOW - 3600,
                 [ip_network(s) for s in spared])  # fmt: skip
    for line in lines:
        made.add(names, line)
    return made.flows(())


def addresses(found):
    return [str(p.address) for p in found]


# -- records


def test_both_directions_are_one_peer():
    found = tally(record(OWN, "192.0.2.1"), record("192.0.2.1", OWN, 443, 50_000, size=900))
    [peer] = found.peers
    assert (str(peer.address), peer.bytes, peer.opened) == ("192.0.2.1", 1000, True)


def test_whom_it_called_comes_before_whom_it_served_and_the_latest_first():
    found = tally(
        record("192.0.2.1", OWN, 50_000, 443, size=10**9),
        record(OWN, "192.0.2.2", end=NOW - 900), record(OWN, "192.0.2.3", end=NOW - 60),
        record("192.0.2.4", OWN, 50_000, 22, end=NOW - 1000),
    )  # fmt: skip
    assert addresses(found.peers) == ["192.0.2.3", "192.0.2.2", "192.0.2.4", "192.0.2.1"]


@pytest.mark.parametrize(
    "line",
    [
        record(OWN, "192.0.2.1", action="REJECT"),
        record(OWN, "192.0.2.1", end=NOW - 7200),
        record(OWN, "192.0.2.1", interface="eni-2"),
        record("192.0.2.8", "192.0.2.1"),
        record(OWN, "169.254.169.254"),
        record(OWN, "224.0.0.1"),
        record("-", "-", status="NODATA"),
    ],
)  # fmt: skip
def test_what_is_no_peer(line):
    found = tally(line)
    assert (found.peers, found.private, found.gaps) == ((), (), ())


def test_private_peers_are_kept_apart():
    found = tally(record(OWN, "10.1.2.3"), record(OWN, "100.64.0.1"), record(OWN, "192.0.2.1"))
    assert addresses(found.private) == ["10.1.2.3", "100.64.0.1"]
    assert addresses(found.peers) == ["192.0.2.1"]


def test_responders_are_spared():
    assert tally(record("10.9.0.4", OWN, 50_000, 22), spared=["10.9.0.0/24"]).private == ()


@pytest.mark.parametrize(
    "line", ["2 rubbish", record(OWN, "no-address"), record(OWN, "192.0.2.1", size="9" * 3 + "x"),
             record(OWN, "192.0.2.1").replace(" 50000 ", " fifty "), "\x00" * 100],
)  # fmt: skip
def test_a_record_that_makes_no_sense_is_counted(line):
    found = tally(line)
    assert found.peers == ()
    assert found.gaps == ("1 flow records could not be read",)


def test_what_aws_skipped_is_a_gap():
    [gap] = tally(record("-", "-", status="SKIPDATA")).gaps
    assert "skipped flow records 1 times" in gap


def test_translated_addresses_are_not_taken_for_the_peer():
    names = ["srcaddr", "dstaddr", "srcport", "dstport", "pkt-srcaddr", "pkt-dstaddr"]
    found = tally(f"{OWN} 10.0.0.1 50000 443 {OWN} 192.0.2.1", names=names)
    assert addresses(found.peers) == ["192.0.2.1"]


def test_addresses_of_aws_services_are_kept_apart():
    names = ["srcaddr", "dstaddr", "srcport", "dstport", "pkt-dst-aws-service"]
    found = tally(f"{OWN} 192.0.2.1 50000 443 S3", f"{OWN} 192.0.2.2 50000 443 EC2", names=names)
    assert addresses(found.services) == ["192.0.2.1"]
    assert addresses(found.peers) == ["192.0.2.2"]


# -- where they lie


class Ec2:
    """One flow log."""

    def __init__(self, **log):
        self.log = {
            "FlowLogId": "fl-1", "ResourceId": "vpc-1", "LogDestinationType": "s3",
            "LogDestination": "arn:aws:s3:::flow-bucket/some/prefix", "TrafficType": "ALL",
            "LogFormat": " ".join(f"${{{n}}}" for n in NAMES), **log,
        }  # fmt: skip

    def get_paginator(self, _operation):
        return self

    def paginate(self, Filters):
        named = Filters[0]["Values"]
        return [{"FlowLogs": [self.log] if self.log["ResourceId"] in named else []}]


PLAIN = f"some/prefix/AWSLogs/{MEMBER}/vpcflowlogs/{REGION}/2026/03/01/"
HIVE = (f"some/prefix/AWSLogs/aws-account-id={MEMBER}/aws-service=vpcflowlogs/aws-region={REGION}/"
        "year=2026/month=03/day=01/")  # fmt: skip


@pytest.fixture
def bucket(aws_in_process):
    """A bucket of the Log Archive account."""
    s3 = aws_in_process.client("s3", LOG_ARCHIVE)
    s3.create_bucket(Bucket="flow-bucket",
                     CreateBucketConfiguration={"LocationConstraint": REGION})  # fmt: skip

    def put(folder, stamp, *lines, flow_log="fl-1", body=None):
        text = "\n".join([DEFAULT_FORMAT, *lines, ""]).encode()
        key = f"{folder}{MEMBER}_vpcflowlogs_{REGION}_{flow_log}_{stamp}_1a2b3c4d.log.gz"
        s3.put_object(Bucket="flow-bucket", Key=key,
                      Body=gzip.compress(text) if body is None else body)  # fmt: skip

    return put


def read(aws, ec2, *, accounts=(LOG_ARCHIVE,), minutes=60, clock=lambda: 0.0, seconds=15.0):
    clients = [lambda a=a: aws.client("s3", a) for a in accounts]
    return Reader(
        ec2, None, clients, MEMBER, REGION, now=lambda: NOW, clock=clock, seconds=seconds
    ).read([INTERFACE], minutes)


@pytest.mark.parametrize(
    ("folder", "options"),
    [
        (PLAIN, {}),
        (PLAIN + "12/", {"PerHourPartition": True}),
        (HIVE, {"HiveCompatiblePartitions": True}),
        (HIVE + "hour=12/", {"HiveCompatiblePartitions": True, "PerHourPartition": True}),
    ],
)
def test_files_in_s3(aws_in_process, bucket, folder, options):
    bucket(folder, "20260301T1235Z", record(OWN, "192.0.2.1"))
    bucket(folder, "20260301T0900Z", record(OWN, "192.0.2.2"))  # too old to be opened
    bucket(folder, "20260301T1235Z", record(OWN, "192.0.2.3"), flow_log="fl-2")
    found = read(aws_in_process, Ec2(DestinationOptions=options))
    assert addresses(found.peers) == ["192.0.2.1"]
    assert found.gaps == ()
    assert sum(c.operation == "GetObject" for c in aws_in_process.calls()) == 1


def test_over_midnight(aws_in_process, bucket):
    bucket(PLAIN, "20260301T0000Z", record(OWN, "192.0.2.1"))
    found = read(aws_in_process, Ec2(), minutes=1440)
    listed = [c for c in aws_in_process.calls() if c.operation == "ListObjectsV2"]
    assert (addresses(found.peers), len(listed)) == (["192.0.2.1"], 2)


def test_the_bucket_is_another_accounts(aws_in_process, bucket):
    """Who may not read it as the member may read it as the Log Archive."""
    bucket(PLAIN, "20260301T1235Z", record(OWN, "192.0.2.1"))
    found = read(aws_in_process, Ec2(), accounts=(MEMBER, LOG_ARCHIVE))
    assert addresses(found.peers) == ["192.0.2.1"]


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ({"DestinationOptions": {"FileFormat": "parquet"}}, "as Parquet"),
        ({"LogDestinationType": "kinesis-data-firehose"}, "kinesis-data-firehose"),
        ({"TrafficType": "REJECT"}, "refused packets only"),
        ({"LogDestination": "arn:aws:s3:::nowhere"}, "flow log fl-1"),
        ({"DeliverLogsStatus": "FAILED", "DeliverLogsErrorMessage": "Access error"},
         "not delivered: Access error"),
        ({}, "holds no file of that time"),
        ({"ResourceId": "vpc-2"}, "vpc-1 has no flow logs"),
    ],
)  # fmt: skip
def test_a_log_that_cannot_be_read_is_a_gap(aws_in_process, bucket, log, said):
    found = read(aws_in_process, Ec2(**log))
    assert found.peers == ()
    assert said in " ".join(found.gaps)


@pytest.mark.parametrize("body", [b"no gzip", gzip.compress(b"x" * 100)[:30], b""])
def test_a_broken_file_is_a_gap(aws_in_process, bucket, body):
    bucket(PLAIN, "20260301T1235Z", body=body)
    assert [g for g in read(aws_in_process, Ec2()).gaps if "fl-1" in g or "no accepted" in g]


def test_a_log_of_one_interface_does_not_cover_the_other(aws_in_process, bucket):
    bucket(PLAIN, "20260301T1235Z", record(OWN, "192.0.2.1"))
    other = INTERFACE | {"NetworkInterfaceId": "eni-2"}
    found = Reader(
        Ec2(ResourceId="eni-1"), None, [lambda: aws_in_process.client("s3", LOG_ARCHIVE)], MEMBER,
        REGION, now=lambda: NOW,
    ).read([INTERFACE, other], 60)  # fmt: skip
    assert found.gaps == ("no flow log covers eni-2",)


def test_it_stops_in_time(aws_in_process, bucket):
    for minute in range(3):
        bucket(PLAIN, f"20260301T123{minute}Z", record(OWN, f"192.0.2.{minute}"))
    ticks = iter(range(100))
    found = read(aws_in_process, Ec2(), clock=lambda: float(next(ticks)), seconds=2.0)
    assert set(addresses(found.peers)) == {"192.0.2.1", "192.0.2.2"}  # the newest files
    assert [g for g in found.gaps if "not read to its end" in g]
