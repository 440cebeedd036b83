# SPDX-License-Identifier: Apache-2.0
"""The composition root: keys, identity of the writer, and the store behind a URI."""

from __future__ import annotations

import getpass
import hashlib
import os
import platform
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from urllib.parse import unquote, urlsplit

from evidence_store.backend import LocalBackend
from evidence_store.checkpoint import LastSeen
from evidence_store.errors import SigningKeyError
from evidence_store.ledger import Scribe
from evidence_store.model import Actor, Tool, clean
from evidence_store.sign import LocalSigner, PublicKey
from evidence_store.store import Store
from pipeline import __version__
from pipeline.config import Settings, config_home, state_home
from pipeline.errors import UsageError

KEY_NAMES = ("entry", "checkpoint")
_PACKAGES = ("acquisition", "analysis", "evidence_store", "pipeline")


def tool_identity() -> Tool:
    """Return this program's name, version, and the digest of its installed files."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        root = Path(str(resources.files(package)))
        for path in sorted(root.rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                body = hashlib.sha256(path.read_bytes()).hexdigest()
                digest.update(f"{body}  {package}/{path.relative_to(root).as_posix()}\n".encode())
    return Tool(name="impound", version=__version__, sha256=digest.hexdigest())


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
        """Who writes. Nobody vouches for a local user, so nothing is `authenticated`."""
        asserted = {"user": clean(getpass.getuser(), 100), "uid": os.getuid()}
        if self.settings.responder:
            asserted["responder"] = clean(self.settings.responder, 100)
        return Actor.model_validate(
            {"asserted": asserted, "host": {"name": clean(platform.node(), 100)}}
        )

    def scribe(self) -> Scribe:
        """Return who writes into the ledger. Raises: SigningKeyError."""
        return Scribe(self.actor, tool_identity(), self.signer("entry"))

    def local_root(self) -> Path:
        """Directory of a local store. Raises: UsageError if the URI is of another kind."""
        parts = urlsplit(self.store_uri)
        if parts.scheme == "file":
            return Path(unquote(parts.path))
        if "://" in self.store_uri:
            raise UsageError(
                f"cannot open a store at {clean(self.store_uri, 100)}",
                hint="a store is a directory, given as a path or file:// address",
            )
        return Path(self.store_uri)

    def open_store(self, *, writing: bool = False) -> Store:
        """Return the store, for reading, or with the user's entry key for writing.

        Raises: UsageError, SigningKeyError.
        """
        backend = LocalBackend(self.local_root())
        last_seen = LastSeen(state_home() / "last-seen")
        return Store(backend, self.scribe() if writing else None, last_seen)
