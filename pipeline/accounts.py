# SPDX-License-Identifier: Apache-2.0
"""Sessions in the accounts of a landing zone: how to get there, and proof of having arrived.

An account is reached by one of three ways, a setting of each account:

    role      AssumeRole of a role in it (default `impound-ExecutionRole`), with an ExternalId
    chain     AssumeRole twice: an administrator's role first, then the execution role in it
    profile   a profile of the AWS configuration (SAML, IAM Identity Center)

Nothing acts in an account before STS has said that the session is in it. Credentials renew
themselves; RoleSessionName is `<case>.<responder>`, so that CloudTrail names case and person.

Source: IAM User Guide "Methods to assume a role"; STS API Reference, AssumeRole; AWS Control Tower
User Guide, "Programmatic roles and trust relationships for the AWS Control Tower audit account".
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evidence_store.aws import Failure, failures
from evidence_store.model import clean
from pipeline import __version__
from pipeline.config import AccountSettings, Settings
from pipeline.errors import ConfigError, PipelineError

if TYPE_CHECKING:
    import boto3

_ACCOUNT = re.compile(r"[0-9]{12}")
_NOT_IN_A_NAME = re.compile(r"[^\w+=,.@-]", re.ASCII)
EXECUTION_ROLE = "impound-ExecutionRole"
AUDIT_ADMINISTRATOR = "aws-controltower-AuditAdministratorRole"
ADMINISTRATOR_EXECUTION = "aws-controltower-AdministratorExecutionRole"


class AccountError(PipelineError):
    """An account cannot be reached, or a session turned out to be in another one."""


@dataclass(frozen=True)
class Step:
    """One AssumeRole on the way. `external_id` may be empty."""

    role_arn: str
    external_id: str = ""


def session_name(case_id: str, responder: str) -> str:
    """Return the RoleSessionName of a person at work on a case, 2 to 64 characters.

    >>> session_name("T-1101", "Ann Öst")
    'T-1101.Ann__st'
    """
    return _NOT_IN_A_NAME.sub("_", f"{case_id}.{responder or 'impound'}")[:64]


def way_to(account: str, settings: Settings, partition: str = "aws") -> list[Step] | str:
    """Return how an account is reached: roles to assume one after the other, or a profile. Pure.

    Raises: ConfigError if the settings make no sense; AccountError for the management account.
    """
    if not _ACCOUNT.fullmatch(account):
        raise ConfigError(f"not an account: {clean(account, 40)!r}", hint="it has 12 digits")
    aws = settings.aws
    if account == aws.management_account:
        raise AccountError(
            f"the management account {account} is out of reach",
            hint="no role of this installation is trusted there, by design",
        )
    chosen = settings.accounts.get(account) or AccountSettings(access=aws.access)
    if chosen.access == "profile":
        if not chosen.profile:
            raise ConfigError(
                f"account {account} is reached by a profile, but none is named",
                hint=f'set profile = "…" in the table [accounts.{account}]',
            )
        return chosen.profile

    def arn(role: str, where: str) -> str:
        return role if role.startswith("arn:") else f"arn:{partition}:iam::{where}:role/{role}"

    if chosen.access == "role":
        external = chosen.external_id or aws.external_id
        return [Step(arn(chosen.role or EXECUTION_ROLE, account), external)]
    if not (chosen.via or aws.audit_account):
        raise ConfigError(
            f"account {account} is reached by a chain, but its first role is not known",
            hint="set audit_account in the table [aws], or via in that of the account",
        )
    return [
        Step(arn(chosen.via or AUDIT_ADMINISTRATOR, aws.audit_account)),
        Step(arn(chosen.role or ADMINISTRATOR_EXECUTION, account), chosen.external_id),
    ]


def is_session_of(caller: str, role_arn: str) -> bool:
    """Whether who calls is a session of a role. Pure. STS leaves out the path of a role.

    >>> is_session_of("arn:aws:sts::444444444444:assumed-role/ir/x",
    ...               "arn:aws:iam::444444444444:role/teams/ir")
    True
    """
    said, wanted = caller.split(":"), role_arn.split(":")
    return (
        len(said) == len(wanted) == 6
        and said[4] == wanted[4]
        and said[5].startswith(f"assumed-role/{wanted[5].rpartition('/')[2]}/")
    )


class Accounts:
    """Sessions and clients by account and Region, kept for reuse. Safe for several threads.

    Args:
        settings: of this installation.
        base: the session from which every way begins.
        name: RoleSessionName.
    """

    def __init__(self, settings: Settings, base: boto3.session.Session, name: str) -> None:
        self._settings = settings
        self._base = base
        self._name = name
        self.session = functools.lru_cache(maxsize=256)(self._session)
        self.client = functools.lru_cache(maxsize=1024)(self._client)

    @functools.cached_property
    def own(self) -> str:
        """The account of the base session. Raises: AccountError."""
        return self._identity(self._base)["Account"]

    def _session(self, account: str) -> boto3.session.Session:
        """Return a session that acts in `account`, proved by STS.

        Raises: ConfigError, AccountError.
        """
        import boto3

        configured = account in self._settings.accounts
        reachable = account != self._settings.aws.management_account
        if not configured and reachable and account == self.own:
            return self._base
        region = self._base.region_name
        partition = self._base.get_partition_for_region(region) if region else "aws"
        way = way_to(account, self._settings, partition)
        if isinstance(way, str):
            try:
                session = boto3.session.Session(profile_name=way, region_name=region)
            except failures() as e:
                raise _error(e, f"cannot use the profile {way}") from e
            reached = f"profile {way}"
        else:
            session = self._base
            # A function may run as the first role of a chain, which only functions can assume.
            if len(way) > 1 and is_session_of(self._identity(session)["Arn"], way[0].role_arn):
                way = way[1:]
            for step in way:
                session = self._assume(session, step)
            reached = " then ".join(step.role_arn for step in way)
        found = self._identity(session, reached)
        if found["Account"] != account:
            raise AccountError(
                f"{reached} acts in account {found['Account']}, not in {account}",
                hint=f"correct the table [accounts.{account}] of the settings",
            )
        return session

    def _assume(self, source: boto3.session.Session, step: Step) -> boto3.session.Session:
        import boto3
        from botocore.credentials import AssumeRoleCredentialFetcher, DeferredRefreshableCredentials
        from botocore.session import get_session

        extra = {"RoleSessionName": self._name}
        if step.external_id:
            extra["ExternalId"] = step.external_id
        if self._settings.aws.source_identity and self._settings.responder:
            extra["SourceIdentity"] = _NOT_IN_A_NAME.sub("_", self._settings.responder)[:64]
        core = get_session()
        # Service models are read once for all accounts: half a second each otherwise.
        core.register_component("data_loader", source._session.get_component("data_loader"))
        core.set_config_variable("region", source.region_name)
        fetcher = AssumeRoleCredentialFetcher(
            functools.partial(core.create_client, region_name=source.region_name),
            source.get_credentials(), step.role_arn, extra_args=extra,
        )  # fmt: skip
        core._credentials = DeferredRefreshableCredentials(fetcher.fetch_credentials, "assume-role")
        return boto3.session.Session(botocore_session=core)

    def _identity(self, session: boto3.session.Session, reached: str = "") -> dict[str, str]:
        try:
            said: dict[str, str] = session.client("sts").get_caller_identity()
        except failures() as e:
            raise _error(e, f"cannot reach AWS by {reached or 'the credentials at hand'}") from e
        return said

    def _client(self, service: str, account: str, region: str, *, once: bool = False) -> Any:
        """Return a client for a service in one Region of one account.

        `once`: it never repeats a call by itself, for calls that make something anew each time.

        Raises: ConfigError, AccountError.
        """
        from botocore.config import Config

        config = Config(
            retries={"mode": "standard", "total_max_attempts": 1 if once else 6},
            max_pool_connections=64,
            tcp_keepalive=True,
            user_agent_extra=f"impound/{__version__}",
        )
        try:
            return self.session(account).client(service, region_name=region, config=config)
        except failures() as e:
            raise _error(e, f"cannot use {service} in {region}") from e


def _error(e: Exception, what: str) -> AccountError:
    error = Failure(e).error(what)
    return AccountError(str(error), hint=error.hint)
