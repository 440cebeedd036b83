# SPDX-License-Identifier: Apache-2.0
"""What the parts of one acquisition share: the case, ways into accounts, pace, and when to stop.

One reader for each account and Region: the quota of EBS direct is theirs, whatever is read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from acquisition.ebs import Bucket, EbsDirect, Endpoint
from acquisition.snapshot import Ec2, Lock, nonce
from evidence_store.store import Case, case_tags
from evidence_store.transfer import Progress
from pipeline.accounts import Accounts
from pipeline.config import Settings
from pipeline.steps import Recorder

Say = Callable[[str], None]
CREATES_PER_SECOND = 5.0  # CreateSnapshots, of an account in a Region


class Stopped(Exception):
    """The run ended while this was waiting; its step stays open, for the next run."""


@dataclass
class Run:
    """One run. Safe for several threads; `close` it.

    Attributes:
        case: what is made is marked as made for it.
        ending: set, it ends all waits.
        written: where steps are recorded, if that is not the case: a journal.
    """

    case: Case
    accounts: Accounts
    settings: Settings
    say: Say = lambda _line: None
    progress: Callable[[str], Progress] = lambda _label: lambda _done, _total: None
    ending: threading.Event = field(default_factory=threading.Event)
    written: Recorder | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _readers: dict[tuple[str, str], EbsDirect] = field(default_factory=dict, init=False)
    _paces: dict[tuple[str, str], Bucket] = field(default_factory=dict, init=False)
    _open: ExitStack = field(default_factory=ExitStack, init=False)

    @property
    def recorder(self) -> Recorder:
        """Where steps are recorded, and what was."""
        return self.written or self.case

    def close(self) -> None:
        """Close the readers."""
        self._open.close()

    def stop(self) -> None:
        """End the waits of all threads: they can last a day."""
        self.ending.set()

    def sleep(self, seconds: float) -> None:
        """Wait. Raises: Stopped."""
        if self.ending.wait(seconds):
            raise Stopped

    def ec2(self, account: str, region: str) -> Ec2:
        """Return EC2 of an account. Raises: AccountError, ConfigError."""
        return Ec2(
            self.accounts.client("ec2", account, region),
            self.accounts.client("ec2", account, region, once=True), account, region, self.sleep,
        )  # fmt: skip

    def reader(self, account: str, region: str) -> EbsDirect:
        """Return the reader of an account in a Region; it stays open until `close`."""
        session = self.accounts.session(account)
        client = self.accounts.client("ebs", account, region)
        with self._lock:
            if (account, region) not in self._readers:
                made = EbsDirect(Endpoint.of(session, client, account))
                self._readers[account, region] = self._open.enter_context(made)
            return self._readers[account, region]

    def pace(self, account: str, region: str) -> None:
        """Wait until one more CreateSnapshots is within the account's rate. Raises: Stopped."""
        with self._lock:
            bucket = self._paces.setdefault(
                (account, region), Bucket(CREATES_PER_SECOND, CREATES_PER_SECOND)
            )
        self.sleep(bucket.reserve())

    def mark(self, step: str, target: str) -> str:
        """Return the nonce of a step of this case."""
        return nonce(self.case.store.identity.store_id, self.case.case_id, step, target)

    @property
    def tags(self) -> dict[str, str]:
        """What everything that is made for the case is tagged with."""
        state = self.case.state
        return case_tags(self.case.case_id, state.ticket, state.contact)

    @property
    def lock(self) -> Lock | None:
        """How snapshots are locked, if they are."""
        aws = self.settings.aws
        return None if aws.source_lock == "none" else Lock(aws.source_lock, aws.source_lock_days)
