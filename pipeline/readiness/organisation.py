# SPDX-License-Identifier: Apache-2.0
"""Which accounts and Regions there are to look at."""

from __future__ import annotations

from collections.abc import Sequence

from evidence_store.aws import Failure, failures
from evidence_store.errors import Error
from evidence_store.model import clean
from pipeline.errors import ConfigError, UsageError
from pipeline.readiness.checks import READINESS_CASE
from pipeline.readiness.look import Estate
from pipeline.session import Session


def estate(session: Session, ids: Sequence[str] = (), regions: Sequence[str] = ()) -> Estate:
    """Return what to look at.

    Args:
        session: settings and credentials.
        ids: accounts; none: those of the settings, else those of the organisation.
        regions: Regions; none: those of the settings, else that of the session.

    Raises: UsageError, ConfigError, AccountError.
    """
    settings = session.settings
    for account in ids:
        if not (len(account) == 12 and account.isdecimal()):
            raise UsageError(f"not an account: {clean(account, 40)!r}", hint="it has 12 digits")
    accounts = session.accounts(READINESS_CASE)
    audit = settings.aws.audit_account or accounts.own
    where = tuple(regions or settings.readiness.regions or [session.region])
    if where == ("",):
        raise ConfigError("no Region to look at", hint="set readiness.regions, or give --region")
    found = Estate(session, accounts, audit, settings.aws.log_archive_account, (), where)
    known = list(ids) or list(settings.readiness.accounts)
    if not known:
        known = [*settings.accounts]
        try:
            known += _listed(found)
        except failures() as e:
            found.unlisted = _unlisted(Failure(e).message)
        except Error as e:
            found.unlisted = _unlisted(str(e))
    out = {audit, settings.aws.log_archive_account, settings.aws.management_account}
    found.members = tuple(a for a in dict.fromkeys(known) if a not in out)
    if ids and settings.aws.log_archive_account not in ids:
        found.log_archive = ""
    return found


def _listed(estate: Estate) -> list[str]:
    """Accounts of the organisation that are not being closed.

    Source: Organizations API Reference, ListAccounts (by a delegated administrator).
    """
    client = estate.client("organizations", estate.audit, "us-east-1")
    pages = client.get_paginator("list_accounts").paginate()
    return [a["Id"] for page in pages for a in page["Accounts"] if a["Status"] == "ACTIVE"]


def _unlisted(why: str) -> str:
    return clean(
        f"the accounts of the organisation cannot be listed ({why}); only those of the settings "
        "were looked at: make Audit a delegated administrator, or set readiness.accounts", 400,
    )  # fmt: skip
