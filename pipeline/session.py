# SPDX-License-Identifier: Apache-2.0
"""The composition root: keys, identity of the writer, and the store behind a URI."""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from evidence_store.aws import Failure, KmsSigner, failures
from evidence_store.backend import LocalBackend
from evidence_store.checkpoint import Checkpoint, LastSeen, publish
from evidence_store.errors import IntegrityError, SigningKeyError, StoreError
from evidence_store.ledger import Scribe
from evidence_store.model import Actor, Clock, Tool, clean
from evidence_store.s3 import Protection, S3Backend
from evidence_store.sign import LocalSigner, PublicKey, Signer
from evidence_store.store import Case, Store
from pipeline import __version__, tools
from pipeline.config import Settings, cache_home, config_home, state_home
from pipeline.errors import ConfigError, UsageError

if TYPE_CHECKING:
    import boto3

    from pipeline.accounts import Accounts

_S3_URI = re.compile(
    r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])"
    r"(/(?P<prefix>[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*))?/?"
)
KEY_NAMES = ("entry", "checkpoint")


def tool_identity(manifest: Path = tools.MANIFEST) -> Tool:
    """Return this program's name, version and digest.

    On a workstation that is the digest of its tool manifest, which names impound and all tools
    beside it, if what is installed is what it says; elsewhere that of the installed files.
    """
    digest = tools.installed_digest()
    try:
        found = tools.read(manifest)
    except ConfigError:  # nothing is claimed by it; self-check says so
        found = None
    if found and found.manifest.impound.sha256 == digest:
        digest = found.sha256
    return Tool(name="impound", version=__version__, sha256=digest)


@dataclass
class Passphrase:
    """Where the passphrase of the signing keys comes from. It is asked for once, never stored.

    In this order: the descriptor of `--passphrase-fd`, the file in `IMPOUND_PASSPHRASE_FILE`, a
    prompt if there is a terminal.
    """

    descriptor: int | None = None
    interactive: bool = field(default_factory=lambda: sys.stdin is not None and sys.stdin.isatty())
    _value: bytes | None = None

    @property
    def unattended(self) -> bool:
        """Whether it can be had without asking a person."""
        return self.descriptor is not None or bool(os.environ.get("IMPOUND_PASSPHRASE_FILE"))

    def get(self, *, new: bool = False) -> bytes:
        """Return the passphrase; `new`: ask twice, and refuse an empty one.

        Raises: SigningKeyError if there is none to be had.
        """
        if self._value is None:
            self._value = self._read(new=new)
        if not self._value:
            raise SigningKeyError("the passphrase is empty; a signing key needs one")
        return self._value

    def _read(self, *, new: bool) -> bytes:
        if self.descriptor is not None:
            try:
                with os.fdopen(os.dup(self.descriptor), "rb") as f:
                    return f.readline(4096).rstrip(b"\r\n")
            except OSError as e:
                raise SigningKeyError(
                    f"cannot read the passphrase from descriptor {self.descriptor}: {e.strerror}"
                ) from e
        if path := os.environ.get("IMPOUND_PASSPHRASE_FILE"):
            try:
                return Path(path).read_bytes().split(b"\n", 1)[0].rstrip(b"\r")
            except OSError as e:
                raise SigningKeyError(
                    f"cannot read the passphrase file {path}: {e.strerror}",
                    hint="IMPOUND_PASSPHRASE_FILE names a file whose first line is the passphrase",
                ) from e
        if not self.interactive:
            raise SigningKeyError(
                "a passphrase is needed and there is no terminal to ask for it",
                hint="set IMPOUND_PASSPHRASE_FILE, or use --passphrase-fd",
            )
        value = getpass.getpass("passphrase of the signing keys: ", stream=sys.stderr)
        if new and getpass.getpass("once more: ", stream=sys.stderr) != value:
            raise SigningKeyError("the two passphrases differ; no key was made")
        return value.encode()


@dataclass
class Session:
    """Everything a command needs, built when it is needed."""

    settings: Settings
    store_uri: str
    passphrase: Passphrase

    def key_path(self, name: str) -> Path:
        """Path of a local private key, `entry` or `checkpoint`."""
        return config_home() / "keys" / f"{name}.pem"

    def public_key(self, name: str) -> PublicKey:
        """Return the public half of a local key; needs no passphrase.

        Raises: SigningKeyError.
        """
        path = self.key_path(name).with_suffix(".pub.pem")
        try:
            return PublicKey.from_pem(path.read_bytes())
        except OSError as e:
            raise SigningKeyError(
                f"no signing key at {path}", hint="make one with: impound key new"
            ) from e

    def missing_keys(self) -> list[str]:
        """Return which of the two local keys do not exist."""
        return [name for name in KEY_NAMES if not self.key_path(name).exists()]

    @property
    def entry_signer(self) -> Signer:
        """Who signs entries: the KMS key of the settings, else the local key.

        Raises: SigningKeyError.
        """
        if key := self.settings.signing.entry_key:
            return KmsSigner(self.client("kms", _region_of(key)), key)
        return self.signer("entry")

    @property
    def signs_unasked(self) -> bool:
        """Whether an entry can be signed without asking a person for a passphrase."""
        if self.settings.signing.entry_key:
            return True
        return self.passphrase.unattended and "entry" not in self.missing_keys()

    @property
    def checkpoint_public(self) -> PublicKey:
        """Public half of the key that seals: that of the settings, else the local one.

        Raises: SigningKeyError.
        """
        if key := self.settings.signing.checkpoint_key:
            return KmsSigner(self.client("kms", _region_of(key)), key).public
        return self.public_key("checkpoint")

    @property
    def local_key_uses(self) -> list[str]:
        """For which uses the settings name no key in KMS."""
        named = self.settings.signing
        return [n for n, key in zip(KEY_NAMES, (named.entry_key, named.checkpoint_key), strict=True)
                if not key]  # fmt: skip

    def make_keys(self, names: Iterable[str]) -> dict[str, PublicKey]:
        """Make local keys that do not exist yet; return them.

        Raises: SigningKeyError.
        """
        passphrase = self.passphrase.get(new=True)
        made = {}
        for name in names:
            signer = LocalSigner.generate()
            signer.save(self.key_path(name), passphrase)
            made[name] = signer.public
        return made

    def signer(self, name: str) -> LocalSigner:
        """Return the local signer `entry` or `checkpoint`; may ask for the passphrase.

        Raises: SigningKeyError.
        """
        return LocalSigner.load(self.key_path(name), self.passphrase.get)

    @cached_property
    def actor(self) -> Actor:
        """Who writes. Only in AWS does a third party vouch for it: STS says who is calling.

        Raises: StoreError if AWS does not say.
        """
        asserted = {"user": clean(getpass.getuser(), 100), "uid": os.getuid()}
        if self.settings.responder:
            asserted["responder"] = clean(self.settings.responder, 100)
        actor: dict[str, Any] = {
            "asserted": asserted, "host": {"name": clean(platform.node(), 100)},
        }  # fmt: skip
        if self.in_aws:
            actor["authenticated"] = self._caller()
        return Actor.model_validate(actor)

    def _caller(self) -> dict[str, str]:
        try:
            said = self.client("sts").get_caller_identity()
        except failures() as e:
            raise Failure(e).error("cannot find out who is calling AWS") from e
        return {"arn": clean(said["Arn"], 300), "account": said["Account"],
                "user_id": clean(said["UserId"], 200)}  # fmt: skip

    # -- the store -------------------------------------------------------------------------------

    @property
    def in_aws(self) -> bool:
        """Whether the store is in S3."""
        return self.store_uri.startswith("s3://")

    @cached_property
    def _aws(self) -> boto3.session.Session:
        """The session of every client; its credentials renew themselves where they can."""
        import boto3

        settings = self.settings.s3
        try:
            return boto3.session.Session(
                profile_name=settings.profile or None, region_name=settings.region or None
            )
        except failures() as e:
            raise Failure(e).error("cannot use AWS") from e

    @property
    def region(self) -> str:
        """Region of the session at hand, or "". Raises: StoreError."""
        return str(self._aws.region_name or "")

    def client(
        self, service: str, region: str | None = None, *, attempts: int = 6, **options: Any
    ) -> Any:
        """Return a client. Raises: StoreError."""
        from botocore.config import Config

        config = Config(
            retries={"mode": "standard", "total_max_attempts": attempts},
            max_pool_connections=64,
            tcp_keepalive=True,
            user_agent_extra=f"impound/{__version__}",
            **options,
        )
        try:
            return self._aws.client(service, region_name=region, config=config)
        except failures() as e:
            raise Failure(e).error(f"cannot use AWS ({service})") from e

    def _s3_backend(self, *, writing: bool) -> S3Backend:
        match = _S3_URI.fullmatch(self.store_uri)
        if match is None:
            raise UsageError(
                f"not the address of a store: {clean(self.store_uri, 100)}",
                hint="it looks like s3://bucket or s3://bucket/prefix",
            )
        settings = self.settings.s3
        protection = None
        if settings.kms_key:
            protection = Protection(
                settings.kms_key, settings.retention_days, settings.record_days,
                settings.legal_hold,
            )  # fmt: skip
        elif writing:
            raise ConfigError(
                "a store in S3 needs the key that encrypts it",
                hint='set kms_key = "arn:…" in the table [s3] of the settings',
            )
        # The bytes are signed for by the checksum header; a second digest of them adds nothing.
        backend = S3Backend(
            self.client("s3", s3={"payload_signing_enabled": False}), match["bucket"],
            match["prefix"] or "", protection, cache_home() / "s3",
        )  # fmt: skip
        if writing:
            backend.check_fit()
        return backend

    def local_root(self) -> Path | None:
        """Directory of a local store; None in S3. Raises: UsageError if it is neither."""
        parts = urlsplit(self.store_uri)
        if parts.scheme == "file":
            return Path(unquote(parts.path))
        if self.in_aws:
            return None
        if "://" in self.store_uri:
            raise UsageError(
                f"cannot open a store at {clean(self.store_uri, 100)}",
                hint="a store is a directory (a path, file://…) or s3://bucket/prefix",
            )
        return Path(self.store_uri)

    def open_store(self, *, writing: bool = False) -> Store:
        """Return the store, for reading, or with the user's entry key for writing.

        Raises: UsageError, ConfigError, SigningKeyError, StoreError.
        """
        last_seen, resume = LastSeen(state_home() / "last-seen"), state_home() / "resume"
        root = self.local_root()
        if root is not None:
            return Store(LocalBackend(root), self._scribe() if writing else None, last_seen, resume)
        backend = self._s3_backend(writing=writing)
        return Store(backend, self._scribe(backend) if writing else None, last_seen, resume)

    def _scribe(self, backend: S3Backend | None = None) -> Scribe:
        def clock() -> Clock:
            return Clock(source="system", server_date=backend.server_date if backend else None)

        return Scribe(self.actor, tool_identity(), self.entry_signer, clock_facts=clock)

    def accounts(self, case_id: str) -> Accounts:
        """Return the way into every account, under the name of case and person.

        Raises: StoreError.
        """
        from pipeline.accounts import Accounts, session_name

        name = session_name(case_id, self.settings.responder or getpass.getuser())
        return Accounts(self.settings, self._aws, name)

    def ask_sealer(self, case: Case) -> Checkpoint:
        """Have the sealer of the settings seal a case, and store what it signed.

        Raises: StoreError, IntegrityError if what it answers is not true of the ledger.
        """
        name = self.settings.signing.sealer
        client = self.client("lambda", _region_of(name), read_timeout=60, attempts=1)
        order = {"store": case.store.backend.uri, "case": case.case_id}
        try:
            answer = client.invoke(FunctionName=name, Payload=json.dumps(order).encode())
            body = json.loads(answer["Payload"].read())
        except failures() as e:
            raise Failure(e).error(f"cannot ask the sealer {name}") from e
        except ValueError as e:
            raise StoreError(f"the sealer {name} gave no JSON") from e
        if answer.get("FunctionError") or not isinstance(body, dict) or "note" not in body:
            said = body.get("errorMessage", "") if isinstance(body, dict) else ""
            if isinstance(body, dict) and body.get("errorType") in (
                "IntegrityError",
                "LedgerError",
            ):
                raise IntegrityError(
                    f"the sealer {name} found that case {case.case_id} is not what it sealed: "
                    f"{clean(str(said), 300)}",
                    hint=f"change nothing; impound verify {case.case_id} names what differs",
                )
            raise StoreError(
                f"the sealer {name} refused: {clean(str(said), 300) or 'no reason given'}",
                hint=f"ask who runs it; impound verify {case.case_id} shows what is unsealed",
            )
        size = len(case.ledger.entries)
        checkpoint = publish(case, str(body["note"]).encode(), case.store.last_seen)
        if checkpoint.size < size:
            raise StoreError(
                f"the sealer {name} sealed {checkpoint.size} of {size} entries",
                hint=f"it may not see the newest yet; run impound seal {case.case_id} again",
            )
        return checkpoint


def _region_of(arn: str) -> str | None:
    """Region in an ARN, None for a bare name.

    >>> _region_of("arn:aws:kms:eu-central-1:111122223333:key/x")
    'eu-central-1'
    """
    parts = arn.split(":")
    return parts[3] if len(parts) > 4 else None
