# SPDX-License-Identifier: Apache-2.0
"""Many facts at once, bounded in time. What could not be read is `Unseen`, never a failure."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from acquisition.errors import AcquisitionError
from evidence_store.aws import Failure, failures
from evidence_store.errors import Error
from evidence_store.model import clean
from pipeline import __version__
from pipeline.accounts import Accounts
from pipeline.readiness import (  # the last two register themselves
    judge,
    observe,
    observe_account,  # noqa: F401
    observe_member,  # noqa: F401
)
from pipeline.readiness.checks import CHECKS
from pipeline.readiness.model import Check, Finding, Observation, Place, Unseen
from pipeline.session import Session

WORKERS = 16
LIMIT_S = 300.0
CONNECT_S, READ_S, ATTEMPTS = 5, 20, 4
_NOT_REACHED = "the account was not reached"


def utc_now() -> datetime:
    """The time of this machine."""
    return datetime.now(UTC)


@dataclass
class Estate:
    """How to look: accounts, Regions, clients that do not wait for ever.

    Attributes:
        members: accounts that are neither Audit nor Log Archive.
        unlisted: why the organisation's accounts could not be listed, or "".
    """

    session: Session
    accounts: Accounts
    audit: str
    log_archive: str
    members: tuple[str, ...]
    regions: tuple[str, ...]
    now: Callable[[], datetime] = utc_now
    unlisted: str = ""
    _clients: dict[tuple[str, str, str], Any] = field(default_factory=dict)
    _locks: dict[str, threading.Lock] = field(default_factory=dict)

    @property
    def everywhere(self) -> tuple[str, ...]:
        """Every account, Audit first."""
        return tuple(dict.fromkeys(a for a in (self.audit, self.log_archive, *self.members) if a))

    def client(self, service: str, account: str, region: str) -> Any:
        """A client that gives up soon. Raises: AccountError, ConfigError."""
        from botocore.config import Config

        key = (service, account, region)
        with self._locks.setdefault(account, threading.Lock()):  # sessions are not for two at once
            if key not in self._clients:
                config = Config(
                    connect_timeout=CONNECT_S, read_timeout=READ_S, max_pool_connections=WORKERS,
                    retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
                    user_agent_extra=f"impound/{__version__}",
                )  # fmt: skip
                self._clients[key] = self.accounts.session(account).client(
                    service, region_name=region, config=config
                )
            return self._clients[key]

    def places(self, check: Check) -> Iterator[Place]:
        """Where a check is made."""
        if check.scope == "installation":
            yield Place()
            return
        ids = {
            "audit": (self.audit,), "account": self.everywhere, "member": self.members,
        }[check.scope]  # fmt: skip
        for account in ids:
            if check.regional:
                yield from (Place(account, region) for region in self.regions)
            else:
                yield Place(account)


def findings(estate: Estate, checks: Iterable[Check] = CHECKS,
             limit_s: float = LIMIT_S) -> list[Finding]:  # fmt: skip
    """Look, then judge. Never raises for what AWS answers."""
    settings, now = estate.session.settings, estate.now()
    return [f for o in observations(estate, checks, limit_s) for f in judge.judge(o, settings, now)]


def observations(estate: Estate, checks: Iterable[Check] = CHECKS,
                 limit_s: float = LIMIT_S) -> list[Observation]:  # fmt: skip
    """Return the facts that these checks need, in their order.

    Args:
        estate: where.
        checks: which.
        limit_s: seconds for everything; what is not there by then is unseen.
    """
    wanted = [(check, place) for check in checks for place in estate.places(check)]
    pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="readiness")
    try:
        ways = {a: pool.submit(_reached, estate, a)
                for a in dict.fromkeys(p.account for _, p in wanted if p.account)}  # fmt: skip
        end = _Clock(limit_s)
        wait(ways.values(), timeout=end.left)
        jobs: dict[tuple[Check, Place], Future[Any]] = {}
        lost: dict[str, str] = {}
        for account, way in ways.items():
            answer = way.result() if way.done() else f"no answer within {limit_s:.0f} s"
            if answer:
                lost[account] = answer
        for check, place in wanted:
            if place.account not in lost or check.name == "way":
                jobs[check, place] = pool.submit(_seen, estate, check, place)
        wait(jobs.values(), timeout=end.left)
        return [
            Observation(check, place, _fact(jobs.get((check, place)), lost.get(place.account, ""),
                                            limit_s))
            for check, place in wanted
        ]  # fmt: skip
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class _Clock:
    def __init__(self, seconds: float) -> None:
        import time

        self._now = time.monotonic
        self._end = self._now() + seconds

    @property
    def left(self) -> float:
        return max(0.0, self._end - self._now())


def _reached(estate: Estate, account: str) -> str:
    try:
        estate.client("sts", account, estate.regions[0])
    except Error as e:
        return f"{_NOT_REACHED}: {clean(str(e), 200)}"
    except failures() as e:
        return f"{_NOT_REACHED}: {clean(str(e), 200)}"
    return ""


def _fact(job: Future[Any] | None, lost: str, limit_s: float) -> Any:
    if job is None:
        return Unseen(lost)
    if not job.done():
        return Unseen(f"no answer within {limit_s:.0f} s")
    return job.result()


def _seen(estate: Estate, check: Check, place: Place) -> Any:
    """The fact; whatever hinders us is `Unseen`."""
    try:
        return observe.OBSERVERS[check.name](observe.View(estate, place))
    except failures() as e:
        failure = Failure(e)
        return Unseen(clean(f"{failure.message} ({failure.code})", 300))
    except (Error, AcquisitionError, OSError) as e:
        return Unseen(clean(str(e), 300))
    except (KeyError, ValueError, TypeError, IndexError) as e:  # an answer that is not understood
        return Unseen(clean(f"the answer is not understood: {type(e).__name__} {e}", 300))
