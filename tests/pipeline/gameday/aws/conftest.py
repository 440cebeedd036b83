# SPDX-License-Identifier: Apache-2.0
"""A bucket with Object Lock, and how a refusal is looked at."""

from __future__ import annotations

import base64
import hashlib
from contextlib import contextmanager

import pytest
from botocore.exceptions import ClientError

from pipeline.gameday.aws.accounts import AUDIT, REGION

BUCKET = "evidence"


@pytest.fixture
def s3(aws):
    return aws.client("s3", AUDIT)


@pytest.fixture
def kms(aws):
    return aws.client("kms", AUDIT)


@pytest.fixture
def bucket(s3):
    s3.create_bucket(
        Bucket=BUCKET,
        ObjectLockEnabledForBucket=True,
        CreateBucketConfiguration={"LocationConstraint": REGION},
    )
    return BUCKET


@pytest.fixture
def sha256():
    return lambda body: base64.b64encode(hashlib.sha256(body).digest()).decode()


@pytest.fixture
def refused():
    """`with refused("Code", 403):` the call in it must be refused so."""

    @contextmanager
    def check(code, status):
        with pytest.raises(ClientError) as caught:
            yield caught
        error = caught.value.response
        assert (error["Error"]["Code"], error["ResponseMetadata"]["HTTPStatusCode"]) == (
            code,
            status,
        )

    return check
