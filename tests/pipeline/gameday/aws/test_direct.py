# SPDX-License-Identifier: Apache-2.0
"""EBS direct: pages, tokens, changes, rights, errors; one test a behaviour, both modes."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import resource
import time

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, IncompleteReadError, ResponseStreamingError

from pipeline.gameday.aws.accounts import AUDIT, LOG_ARCHIVE, MEMBER, REGION
from pipeline.gameday.aws.blocks import BLOCK
from pipeline.gameday.aws.faults import Fault

DAY = 86_400


@pytest.fixture
def ebs(aws):
    return aws.client("ebs", MEMBER)


@pytest.fixture
def rejected():
    """`with rejected("Code", 400, "REASON"):` the call in it must be refused so."""

    @contextlib.contextmanager
    def check(code, status, reason=None):
        with pytest.raises(ClientError) as caught:
            yield
        answer = caught.value.response
        assert (
            answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"],
            answer.get("Reason"),
        ) == (code, status, reason)  # fmt: skip

    return check


def get(ebs, snapshot_id, block):
    return ebs.get_snapshot_block(
        SnapshotId=snapshot_id, BlockIndex=block["BlockIndex"], BlockToken=block["BlockToken"]
    )


def test_block(ebs, snapshot, padded):
    """EBS direct reference, GetSnapshotBlock: length, SHA-256 in Base64, algorithm, in headers."""
    made = snapshot({2: b"x"})
    listed = ebs.list_snapshot_blocks(SnapshotId=made)
    assert (listed["VolumeSize"], listed["BlockSize"]) == (1, 524288)
    [block] = listed["Blocks"]
    got = get(ebs, made, block)
    body = got["BlockData"].read()
    assert body == padded(b"x")
    assert got["DataLength"] == 524288
    assert got["ChecksumAlgorithm"] == "SHA256"
    assert got["Checksum"] == base64.b64encode(hashlib.sha256(body).digest()).decode()
    headers = got["ResponseMetadata"]["HTTPHeaders"]
    assert headers["x-amz-data-length"] == "524288"
    assert headers["x-amz-checksum"] == got["Checksum"]
    assert headers["x-amz-checksum-algorithm"] == "SHA256"


def test_a_block_of_zeros_that_was_written_is_listed(ebs, snapshot):
    """EBS User Guide, EBS direct concepts: blocks that were written, whatever is in them."""
    listed = ebs.list_snapshot_blocks(SnapshotId=snapshot({4: bytes(BLOCK)}))
    assert [b["BlockIndex"] for b in listed["Blocks"]] == [4]


def test_pages(ebs, snapshot, rejected):
    """EBS direct reference, ListSnapshotBlocks: sorted, at least 100 a page, StartingBlockIndex."""
    made = snapshot(dict.fromkeys(range(1000, 700, -1), b""))
    first = ebs.list_snapshot_blocks(SnapshotId=made, MaxResults=100, StartingBlockIndex=750)
    pages = [first]
    while token := pages[-1].get("NextToken"):
        pages.append(ebs.list_snapshot_blocks(SnapshotId=made, MaxResults=100, NextToken=token))
    assert [len(p["Blocks"]) for p in pages] == [100, 100, 51]
    indexes = [b["BlockIndex"] for p in pages for b in p["Blocks"]]
    assert indexes == list(range(750, 1001))
    assert ebs.list_snapshot_blocks(SnapshotId=made, StartingBlockIndex=2000)["Blocks"] == []
    with rejected("ValidationException", 400, "INVALID_PAGE_TOKEN"):
        ebs.list_snapshot_blocks(SnapshotId=made, NextToken="bm9uc2Vuc2U=")
    with rejected("ValidationException", 400, "INVALID_PAGE_TOKEN"):
        ebs.list_snapshot_blocks(SnapshotId=snapshot(), NextToken=first["NextToken"])


def test_fewer_than_100_are_not_to_be_had(aws, snapshot):
    """EBS User Guide, EBS direct FAQ: under 100 the API returns at least 100."""
    made = snapshot(dict.fromkeys(range(150), b""))
    ebs = aws.client("ebs", MEMBER, config=Config(parameter_validation=False))
    assert len(ebs.list_snapshot_blocks(SnapshotId=made, MaxResults=7)["Blocks"]) == 100


def test_shorter_pages(aws, ebs, snapshot):
    """EBS direct reference, MaxResults: the request can return fewer blocks."""
    made = snapshot(dict.fromkeys(range(5), b""))
    aws.behave(block_page_limit=2)
    page = ebs.list_snapshot_blocks(SnapshotId=made)
    assert [b["BlockIndex"] for b in page["Blocks"]] == [0, 1]
    assert page["NextToken"]


def test_tokens(aws, ebs, snapshot, rejected):
    """EBS User Guide, EBS direct concepts: a token is for one block, other in each list, 7 days."""
    made, other = snapshot({0: b"a", 1: b"b"}), snapshot({0: b"c"})
    listed = ebs.list_snapshot_blocks(SnapshotId=made)
    one, two = listed["Blocks"]
    assert one["BlockToken"] != ebs.list_snapshot_blocks(SnapshotId=made)["Blocks"][0]["BlockToken"]
    for snapshot_id, index, token in (
        (made, 0, two["BlockToken"]),
        (other, 0, one["BlockToken"]),
        (made, 0, "bm9uc2Vuc2U="),
        (made, 7, one["BlockToken"]),
    ):
        with rejected("ValidationException", 400, "INVALID_BLOCK_TOKEN"):
            get(ebs, snapshot_id, {"BlockIndex": index, "BlockToken": token})
    aws.advance(7 * DAY - 60)
    get(ebs, made, one)
    aws.advance(61)
    assert abs(listed["ExpiryTime"].timestamp() - time.time() - 7 * DAY) < 60
    with rejected("ValidationException", 400, "INVALID_BLOCK_TOKEN"):
        get(ebs, made, one)
    get(ebs, made, ebs.list_snapshot_blocks(SnapshotId=made)["Blocks"][0])


def test_page_token_for_an_hour(aws, ebs, snapshot, rejected):
    """EBS User Guide, EBS direct concepts: page tokens are valid for 60 minutes."""
    made = snapshot(dict.fromkeys(range(101), b""))
    token = ebs.list_snapshot_blocks(SnapshotId=made, MaxResults=100)["NextToken"]
    aws.advance(3601)
    with rejected("ValidationException", 400, "INVALID_PAGE_TOKEN"):
        ebs.list_snapshot_blocks(SnapshotId=made, NextToken=token)


def test_unknown_snapshot(ebs, rejected):
    """EBS direct reference, Errors: ResourceNotFoundException, SNAPSHOT_NOT_FOUND."""
    for ask in (
        lambda: ebs.list_snapshot_blocks(SnapshotId="snap-0"),
        lambda: ebs.get_snapshot_block(SnapshotId="snap-0", BlockIndex=0, BlockToken="aaaa"),
        lambda: ebs.list_changed_blocks(SecondSnapshotId="snap-0"),
    ):
        with rejected("ResourceNotFoundException", 404, "SNAPSHOT_NOT_FOUND"):
            ask()


def test_pending_snapshot(aws, ebs, member, volume, rejected):
    """EBS User Guide, EBS direct FAQ: only completed snapshots are readable."""
    aws.behave(snapshot_polls=1)
    made = member.create_snapshot(VolumeId=volume({0: b"x"}))["SnapshotId"]
    with rejected("ValidationException", 400, "INVALID_SNAPSHOT_ID"):
        ebs.list_snapshot_blocks(SnapshotId=made)
    aws.set_snapshot(made, "completed")
    assert ebs.list_snapshot_blocks(SnapshotId=made)["Blocks"]


# -- whose


def test_shared_snapshot(aws, member, snapshot, blocks, padded, rejected):
    """EBS User Guide, Control access to EBS direct APIs: own and shared snapshots."""
    made, audit = snapshot({0: b"x"}), aws.client("ebs", AUDIT)
    with rejected("ResourceNotFoundException", 404, "SNAPSHOT_NOT_FOUND"):
        audit.list_snapshot_blocks(SnapshotId=made)
    member.modify_snapshot_attribute(SnapshotId=made, OperationType="add", UserIds=[AUDIT])
    assert blocks(made, AUDIT) == {0: padded(b"x")}
    with rejected("ResourceNotFoundException", 404, "SNAPSHOT_NOT_FOUND"):
        aws.client("ebs", LOG_ARCHIVE).list_snapshot_blocks(SnapshotId=made)


def test_key_of_a_shared_snapshot(aws, member, snapshot, cmk, allow, blocks, rejected):
    """EBS User Guide, Control access to EBS direct APIs: kms:Decrypt on the snapshot's key."""
    closed = snapshot({0: b"x"}, KmsKeyId=cmk())
    opened = snapshot({0: b"x"}, KmsKeyId=cmk(allow(f"arn:aws:iam::{AUDIT}:root", "Decrypt")))
    for each in (closed, opened):
        member.modify_snapshot_attribute(SnapshotId=each, OperationType="add", UserIds=[AUDIT])
    assert list(blocks(opened, AUDIT)) == [0]
    with rejected("AccessDeniedException", 403, "DEPENDENCY_ACCESS_DENIED"):
        aws.client("ebs", AUDIT).list_snapshot_blocks(SnapshotId=closed)


def test_key_for_one_volume(aws, member, volume, cmk, allow, blocks, rejected):
    """KMS Developer Guide, EBS encryption context: aws:ebs:id is the volume's id."""
    for right in ("vol-*", "vol-0"):
        context = {"kms:EncryptionContext:aws:ebs:id": right}
        key = cmk(allow(f"arn:aws:iam::{AUDIT}:root", "Decrypt", StringLike=context))
        made = member.create_snapshot(VolumeId=volume({0: b"x"}, KmsKeyId=key))["SnapshotId"]
        member.modify_snapshot_attribute(SnapshotId=made, OperationType="add", UserIds=[AUDIT])
        if right == "vol-*":
            assert list(blocks(made, AUDIT)) == [0]
            continue
        with rejected("AccessDeniedException", 403, "DEPENDENCY_ACCESS_DENIED"):
            aws.client("ebs", AUDIT).list_snapshot_blocks(SnapshotId=made)


def test_disabled_key(aws, ebs, snapshot, cmk, rejected):
    """EBS direct reference, ValidationException: INVALID_CUSTOMER_KEY (unconfirmed)."""
    key = cmk()
    made = snapshot({0: b"x"}, KmsKeyId=key)
    aws.client("kms", MEMBER).disable_key(KeyId=key)
    with rejected("ValidationException", 400, "INVALID_CUSTOMER_KEY"):
        ebs.list_snapshot_blocks(SnapshotId=made)


# -- changes


def test_changed_blocks(aws, ebs, member, volume, padded):
    """EBS direct reference, ListChangedBlocks: other bytes, and those of one snapshot only."""
    source = volume({0: b"same", 1: b"old"})
    first = member.create_snapshot(VolumeId=source)["SnapshotId"]
    aws.write(source, {1: b"new", 2: b"more"})
    second = member.create_snapshot(VolumeId=source)["SnapshotId"]
    answer = ebs.list_changed_blocks(FirstSnapshotId=first, SecondSnapshotId=second)
    assert (answer["VolumeSize"], answer["BlockSize"]) == (1, 524288)
    one, two = answer["ChangedBlocks"]
    assert (one["BlockIndex"], two["BlockIndex"]) == (1, 2)
    assert "FirstBlockToken" not in two
    for snapshot_id, token, body in (
        (first, one["FirstBlockToken"], b"old"),
        (second, one["SecondBlockToken"], b"new"),
    ):
        got = get(ebs, snapshot_id, {"BlockIndex": 1, "BlockToken": token})
        assert got["BlockData"].read() == padded(body)


def test_a_block_that_only_the_first_has(aws, ebs, member, volume):
    """EBS direct reference, ChangedBlock: a token for the snapshot that has the block."""
    source = volume({0: b"gone"})
    first = member.create_snapshot(VolumeId=source)["SnapshotId"]
    aws.fill(source, {1: b"new"})
    second = member.create_snapshot(VolumeId=source)["SnapshotId"]
    found = ebs.list_changed_blocks(FirstSnapshotId=first, SecondSnapshotId=second)
    assert [set(b) for b in found["ChangedBlocks"]] == [
        {"BlockIndex", "FirstBlockToken"},
        {"BlockIndex", "SecondBlockToken"},
    ]


def test_without_the_first_snapshot(ebs, snapshot):
    """EBS direct reference, ListChangedBlocks: without FirstSnapshotId all of the second."""
    made = snapshot({0: b"a", 5: b"b"})
    found = ebs.list_changed_blocks(SecondSnapshotId=made)["ChangedBlocks"]
    assert [b["BlockIndex"] for b in found] == [0, 5]
    assert all("FirstBlockToken" not in b for b in found)


def test_an_empty_page_of_changes(aws, ebs, member, volume):
    """EBS User Guide, EBS direct FAQ: an empty page may have a NextToken."""
    source = volume(dict.fromkeys(range(5), b""))
    first = member.create_snapshot(VolumeId=source)["SnapshotId"]
    aws.write(source, {4: b"new"})
    second = member.create_snapshot(VolumeId=source)["SnapshotId"]
    aws.behave(block_page_limit=2)
    pair = {"FirstSnapshotId": first, "SecondSnapshotId": second}
    pages = [ebs.list_changed_blocks(**pair)]
    while token := pages[-1].get("NextToken"):
        pages.append(ebs.list_changed_blocks(NextToken=token, **pair))
    found = [[b["BlockIndex"] for b in p["ChangedBlocks"]] for p in pages]
    assert found == [[], [], [4]]


def test_unrelated_snapshots(ebs, snapshot, rejected):
    """EBS direct reference, ValidationException: UNRELATED_SNAPSHOTS."""
    with rejected("ValidationException", 400, "UNRELATED_SNAPSHOTS"):
        ebs.list_changed_blocks(FirstSnapshotId=snapshot(), SecondSnapshotId=snapshot())


def test_copies_are_of_one_lineage(aws, member, audit, volume, lent, cmk, rejected):
    """EBS User Guide, Copy a snapshot: copies to one account under one key are incremental."""
    source, own = volume({0: b"a"}, KmsKeyId=lent), cmk(account=AUDIT)
    copies, sources = [], []
    for change in ({1: b"b"}, {2: b"c"}):
        made = member.create_snapshot(VolumeId=source)["SnapshotId"]
        member.modify_snapshot_attribute(SnapshotId=made, OperationType="add", UserIds=[AUDIT])
        copies.append(audit.copy_snapshot(
            SourceSnapshotId=made, SourceRegion=REGION, KmsKeyId=own
        )["SnapshotId"])  # fmt: skip
        sources.append(made)
        aws.write(source, change)
    ebs = aws.client("ebs", AUDIT)
    found = ebs.list_changed_blocks(FirstSnapshotId=copies[0], SecondSnapshotId=copies[1])
    assert [b["BlockIndex"] for b in found["ChangedBlocks"]] == [1]
    with rejected("ValidationException", 400, "UNRELATED_SNAPSHOTS"):
        ebs.list_changed_blocks(FirstSnapshotId=sources[0], SecondSnapshotId=copies[1])


# -- faults


def test_throttled(aws, ebs, snapshot, rejected):
    """EBS direct reference, RequestThrottledException: 400, with a reason."""
    made = snapshot({0: b"x"})
    throttled = {"code": "RequestThrottledException", "reason": "RESOURCE_LEVEL_THROTTLE"}
    throttled = {"code": "RequestThrottledException", "reason": "RESOURCE_LEVEL_THROTTLE"}
    aws.faults.add(Fault("error", operation="GetSnapshotBlock", **throttled))
    [block] = ebs.list_snapshot_blocks(SnapshotId=made)["Blocks"]
    with rejected("RequestThrottledException", 400, "RESOURCE_LEVEL_THROTTLE"):
        get(ebs, made, block)
    get(ebs, made, block)


def test_one_block_damaged_or_cut_off(aws, ebs, snapshot):
    """The body is another than the checksum in the header says; nothing else tells."""
    made = snapshot({0: b"x", 1: b"y"})
    one, two = ebs.list_snapshot_blocks(SnapshotId=made)["Blocks"]
    aws.faults.add(Fault("corrupt", resource=f"{made}/1"), Fault("truncate", resource=f"{made}/0"))
    got = get(ebs, made, two)
    body = got["BlockData"].read()
    assert len(body) == 524288
    assert base64.b64encode(hashlib.sha256(body).digest()).decode() != got["Checksum"]
    with pytest.raises((IncompleteReadError, ResponseStreamingError)):
        get(ebs, made, one)["BlockData"].read()


# -- size


def test_eight_gib_in_little_memory(aws_in_process, tmp_path):
    """A large sparse volume costs neither memory nor time until its blocks are read."""
    image = tmp_path / "image"
    with image.open("wb") as f:
        f.truncate(8 << 30)
        for offset in range(0, 8 << 30, 64 << 20):
            f.seek(offset)
            f.write(b"data")
    ec2, ebs = (aws_in_process.client(s, MEMBER) for s in ("ec2", "ebs"))
    volume = ec2.create_volume(Size=8, AvailabilityZone=f"{REGION}a")["VolumeId"]
    aws_in_process.fill(volume, image)
    made = ec2.create_snapshot(VolumeId=volume)["SnapshotId"]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    listed = ebs.list_snapshot_blocks(SnapshotId=made)["Blocks"]
    assert [b["BlockIndex"] for b in listed] == list(range(0, 16384, 128))
    for block in itertools.islice(listed, 64):
        assert get(ebs, made, block)["BlockData"].read().startswith(b"data")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_an_image_that_changes(aws, ebs, member, volume, tmp_path, rejected):
    """A content is a point in time: an image written to afterwards is refused, not served."""
    image = tmp_path / "image"
    image.write_bytes(b"x")
    made = member.create_snapshot(VolumeId=volume(image))["SnapshotId"]
    [block] = ebs.list_snapshot_blocks(SnapshotId=made)["Blocks"]
    image.write_bytes(b"other")
    with rejected("InternalServerException", 500):
        get(ebs, made, block)
