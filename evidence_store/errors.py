# SPDX-License-Identifier: Apache-2.0
"""The error tree. Facts are attributes; the message says what failed, the hint what to do next.

    Error                                   exit 1
     |- IntegrityError                      exit 10   bytes, signatures or order differ
     |   '- LedgerError(position)
     |- StoreError                          exit 11   the store refused or could not do it
     |   |- StoreNotFoundError  CaseNotFoundError  ItemNotFoundError
     |   |- AlreadyExistsError              write-once: the name is taken
     |   |- CaseClosedError  BusyError  SigningKeyError
     |   |- StoreUnavailableError           no answer, busy, or refused: nothing is known
     |   '- StoreFullError
     |- SourceChangedError                  exit 12   a resumed source is not what it was
     |- ChildError                          exit 1    a limited child died; its reader says what of
     |- AcquisitionError                    exit 12   (acquisition.errors)
     |- AnalysisError                       exit 13   (analysis.errors)
     '- PipelineError                       exit 14   (pipeline.errors)

Exceptions never log, print or exit; `pipeline.cli` maps them to exit codes. Misuse of our own
interfaces is `ValueError` or `RuntimeError`.
"""

from __future__ import annotations


class Error(Exception):
    """Root of every error that impound raises on purpose.

    Attributes:
        hint: one sentence that says what to do next, or "".
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class IntegrityError(Error):
    """Stored bytes, a signature or an order differ from what was recorded. Never downgraded."""

    exit_code = 10


class LedgerError(IntegrityError):
    """The ledger is broken at `position` (sequence number)."""

    def __init__(self, message: str, *, position: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.position = position


class StoreError(Error):
    """The evidence store refused or could not do what was asked."""

    exit_code = 11


class SourceChangedError(Error):
    """A source that is resumed gives other bytes than those stored before."""

    exit_code = 12


class ChildError(Error):
    """A limited child died, gave no answer in time, or broke its protocol."""


class StoreNotFoundError(StoreError):
    """No store at this place."""


class CaseNotFoundError(StoreError):
    """The store has no such case."""


class ItemNotFoundError(StoreError):
    """The case has no such item."""


class AlreadyExistsError(StoreError):
    """Write-once: the name is taken. Nothing was changed."""


class CaseClosedError(StoreError):
    """The case is sealed; it takes no more evidence."""


class BusyError(StoreError):
    """Another process is at work on the same item."""


class StoreUnavailableError(StoreError):
    """The store did not answer, was busy, or refused us. What it holds is as it was; unknown."""


class StoreFullError(StoreError):
    """No space or quota left. What was stored so far stays and is resumed."""


class SigningKeyError(StoreError):
    """A signing key is missing, locked by a passphrase, malformed or not allowed in this case."""
