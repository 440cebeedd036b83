# SPDX-License-Identifier: Apache-2.0
"""Three accounts of a landing zone, and sessions in them.

A session comes from STS AssumeRole, as in production; the account of a request is the account of
its access key. `MOTO_ACCOUNT_ID` would force all requests into one account and is refused.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass

import boto3
import botocore.session
from botocore.config import Config
from botocore.loaders import Loader, create_loader

MEMBER = "222222222222"
LOG_ARCHIVE = "333333333333"
AUDIT = "444444444444"
REGION = "eu-central-1"

RESPONDER_ROLE = "impound-responder"
SEALER_ROLE = "impound-sealer"
EXECUTION_ROLE = "impound-ExecutionRole"

# What the first AssumeRole is signed with; any key will do, the stand-in has no users yet.
_ROOT = {"aws_access_key_id": "AKIAIMPOUNDSIMULATOR", "aws_secret_access_key": "simulator"}


class AccountError(RuntimeError):
    """A session does not act in the account that it was made for."""


@dataclass(frozen=True)
class Credentials:
    """Temporary credentials of a role session."""

    access_key: str
    secret_key: str
    token: str
    region: str = REGION

    def environment(self) -> dict[str, str]:
        """As the environment variables that every AWS SDK reads."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_SESSION_TOKEN": self.token,
            "AWS_DEFAULT_REGION": self.region,
        }

    def session(self) -> boto3.Session:
        """As a boto3 session: one for the same credentials."""
        return _session_of(self)


@functools.lru_cache(maxsize=64)
def _session_of(held: Credentials) -> boto3.Session:
    return _session(
        aws_access_key_id=held.access_key, aws_secret_access_key=held.secret_key,
        aws_session_token=held.token, region_name=held.region,
    )  # fmt: skip


def _session(**credentials: str) -> boto3.Session:
    """A session that reads the service models once for all (half a second each otherwise)."""
    core = botocore.session.get_session()
    core.register_component("data_loader", _loader())
    return boto3.Session(botocore_session=core, **credentials)


@functools.cache
def _loader() -> Loader:
    return create_loader()


def role_arn(account: str, role: str) -> str:
    """Return the ARN of a role.

    >>> role_arn(AUDIT, RESPONDER_ROLE)
    'arn:aws:iam::444444444444:role/impound-responder'
    """
    return f"arn:aws:iam::{account}:role/{role}"


def assume(
    account: str, role: str = RESPONDER_ROLE, session_name: str = "gameday",
    endpoint: str | None = None,
) -> Credentials:  # fmt: skip
    """Assume a role; the identity is checked.

    Args:
        account: 12 digits.
        role: its name; moto does not ask whether it exists.
        session_name: RoleSessionName.
        endpoint: URL of a server process; None in this process.

    Raises: AccountError if the session acts in another account.
    """
    if "MOTO_ACCOUNT_ID" in os.environ:
        raise AccountError("MOTO_ACCOUNT_ID is set: every request would act in that account")
    # Region is explicit, and nothing of the user's own configuration is read.
    settings = Config(
        connect_timeout=10, read_timeout=30, retries={"total_max_attempts": 2},
        ignore_configured_endpoint_urls=True,
    )  # fmt: skip
    where = {"region_name": REGION, "endpoint_url": endpoint, "config": settings}
    sts = _session(**_ROOT).client("sts", **where)
    got = sts.assume_role(RoleArn=role_arn(account, role), RoleSessionName=session_name)
    made = got["Credentials"]
    credentials = Credentials(made["AccessKeyId"], made["SecretAccessKey"], made["SessionToken"])
    identity = credentials.session().client("sts", **where).get_caller_identity()
    expected = f"arn:aws:sts::{account}:assumed-role/{role}/{session_name}"
    if identity["Account"] != account or identity["Arn"] != expected:
        raise AccountError(f"the session is {identity['Arn']}, not {expected}")
    return credentials
