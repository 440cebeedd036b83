# SPDX-License-Identifier: Apache-2.0
"""Who we are to a host, and who it is to us: the ladder of logins, and host keys.

Logins are tried in the order given; what each rung failed with is kept. There is no login by
password, no agent, nothing forwarded.

    EC2 Instance Connect   a key made for this run, held in memory; the service shows it to the host
                           for 60 s, so it works under isolation and leaves no key file
    certificate            a key with a certificate of the responders' CA, trusted by golden images
    key                    the operator's key

A host key is `pinned` (given by the operator), `known` (the one this case saw before) or taken at
`first use`, which `strict` forbids. A key that differs from what is pinned or known always stops.

Source: EC2 Instance Connect API Reference, SendSSHPublicKey; OpenSSH PROTOCOL.certkeys;
RFC 4253 §8; RFC 4716 §4 and OpenSSH `ssh-keygen -l` (fingerprints).
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from acquisition.errors import AcquisitionError
from evidence_store.aws import Failure, failures
from evidence_store.model import clean

if TYPE_CHECKING:
    from paramiko import PKey

Trust = Literal["pinned", "known", "first-use"]
Passphrase = Callable[[], str]

_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
_KEY = re.compile(
    r"(?:^|\s)(?P<type>ssh-(?:ed25519|rsa)|ecdsa-sha2-nistp(?:256|384|521)) "
    r"(?P<body>[A-Za-z0-9+/]+={0,2})"
)
_ALGORITHMS = {"ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256")}


class LoginError(AcquisitionError):
    """No login works. The message names each rung and what it failed with."""


class HostKeyError(AcquisitionError):
    """The host shows another key than the one it must have, or one that nobody vouched for."""


@dataclass(frozen=True)
class Login:
    """One rung of the ladder.

    Attributes:
        name: as people and the footprint know it.
        key: returns the private key for a user; pushes it first where that is needed.
            Raises LoginError.
    """

    name: str
    key: Callable[[str], PKey]


def run_key() -> PKey:
    """Return a new Ed25519 key that lives in memory only."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from paramiko import Ed25519Key

    text = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )  # fmt: skip
    return Ed25519Key.from_private_key(io.StringIO(text.decode()))


def public_line(key: PKey) -> str:
    """Return a key as a line of authorized_keys."""
    return f"{key.get_name()} {key.get_base64()}"


def instance_connect(client: Any, instance: str, zone: str, key: PKey) -> Login:
    """Push `key` by EC2 Instance Connect each time a login is needed: it is valid for 60 s.

    Args:
        client: of `ec2-instance-connect` in the account and Region of the instance.
        instance: its id.
        zone: its Availability Zone.
        key: see `run_key`.
    """

    def push(user: str) -> PKey:
        try:
            answer = client.send_ssh_public_key(
                InstanceId=instance, InstanceOSUser=user, SSHPublicKey=public_line(key),
                AvailabilityZone=zone,
            )  # fmt: skip
        except failures() as e:
            error = Failure(e).error(f"cannot push a key to {instance}")
            raise LoginError(str(error), hint=error.hint) from e
        if answer.get("Success") is not True:
            raise LoginError(f"EC2 Instance Connect did not take a key for {instance}")
        return key

    return Login("EC2 Instance Connect", push)


def key_file(path: Path, passphrase: Passphrase | None = None, certificate: Path | None = None,
             ) -> Login:  # fmt: skip
    """Log in by a key in a file, with its certificate if there is one.

    Both are read once. `passphrase` is asked only for a key that needs one.
    """

    @functools.cache
    def load() -> PKey:
        from cryptography.exceptions import UnsupportedAlgorithm
        from paramiko import PasswordRequiredException, PKey, SSHException

        try:
            try:
                key = PKey.from_path(path)
            except (PasswordRequiredException, TypeError) as e:
                if passphrase is None:
                    raise LoginError(f"{clean(str(path))} needs its passphrase",
                                     hint="give it by prompt") from e  # fmt: skip
                key = PKey.from_path(path, passphrase().encode())  # type: ignore[arg-type]
            if certificate is not None:
                key.load_certificate(str(certificate))
        except (OSError, ValueError, TypeError, SSHException, UnsupportedAlgorithm) as e:
            why = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
            raise LoginError(f"cannot use the key {clean(str(path))}: {clean(why, 200)}") from e
        return key

    return Login("certificate" if certificate else "key", lambda _user: load())


@dataclass(frozen=True)
class HostKeys:
    """What is known of a host's keys.

    Attributes:
        pinned: fingerprints (`SHA256:…`) or public keys (`ssh-ed25519 AAAA…`).
        known: the public key that this case saw before, or "".
        strict: an unknown key stops.
    """

    pinned: tuple[str, ...] = ()
    known: str = ""
    strict: bool = False

    def algorithms(self) -> tuple[str, ...]:
        """Which host key algorithms to offer: those of the keys that we hold; () for any.

        Otherwise a host with several keys could show one that we cannot judge.
        """
        types = [k.split(" ")[0] for k in (*self.pinned, self.known) if k.startswith(("s", "e"))]
        if any(k.startswith("SHA256:") for k in self.pinned):
            return ()
        return tuple(a for t in dict.fromkeys(types) for a in _ALGORITHMS.get(t, (t,)))

    def judge(self, offered: str) -> Trust:
        """Return why a key is accepted. `offered`: type and base64. Raises: HostKeyError."""
        print_ = fingerprint(offered)
        if self.pinned:
            if offered in self.pinned or print_ in self.pinned:
                return "pinned"
            raise HostKeyError(
                f"the host shows the key {print_}, pinned is {', '.join(map(_named, self.pinned))}",
                hint="somebody may answer in its place: compare with the inventory before going on",
            )
        if self.known:
            if offered == self.known:
                return "known"
            raise HostKeyError(
                f"the host key changed: this case saw {fingerprint(self.known)}, now {print_}",
                hint="somebody may answer in its place; if the change is explained, --host-key it",
            )
        if self.strict:
            raise HostKeyError(
                f"the host key {print_} is unknown, and --strict-host-key is set",
                hint="give the right one with --host-key (inventory, golden image, console output)",
            )
        return "first-use"


def _named(pinned: str) -> str:
    return pinned if pinned.startswith("SHA256:") else fingerprint(pinned)


def fingerprint(key: str) -> str:
    """Return the SHA-256 fingerprint of a public key, as OpenSSH prints it.

    >>> fingerprint("ssh-ed25519 AAAA")
    'SHA256:cJ6AyISHokEeHuTfufIqhhSS0gxHZRUMDHlKvXD4FHw'
    """
    body = base64.b64decode(key.split(" ")[1])
    return "SHA256:" + base64.b64encode(hashlib.sha256(body).digest()).decode().rstrip("=")


def parse_host_keys(texts: Iterable[str]) -> tuple[str, ...]:
    """Return host keys as `HostKeys.pinned` has them.

    Takes fingerprints (`SHA256:…`, also a line of `ssh-keygen -l` or of a console output), public
    keys, and lines of known_hosts.

    Raises: ValueError.
    """
    found = []
    for text in texts:
        if match := _KEY.search(text):
            try:
                base64.b64decode(match["body"], validate=True)
            except binascii.Error as e:
                raise ValueError(f"not a host key: {text[:80]!r}") from e
            found.append(f"{match['type']} {match['body']}")
        elif match := _FINGERPRINT.search(text):
            found.append(match[0])
        else:
            raise ValueError(f"not a host key: {text[:80]!r} (SHA256:…, or ssh-ed25519 AAAA…)")
    return tuple(found)
