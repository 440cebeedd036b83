# SPDX-License-Identifier: Apache-2.0
"""Signed notes (C2SP) with ECDSA P-256, and the local keys that sign them.

A note is text that ends in a newline, an empty line, and signature lines

    — <key name> base64(kid || DER signature)

where `kid` is the first 4 bytes of SHA-256 of the key's DER SubjectPublicKeyInfo. A reader decodes
base64 strictly, ignores unknown keys, rejects the whole note for one bad signature of a known
key, and wants at least one good one.

Source: https://c2sp.org/signed-note (ECDSA signatures of type 0x02).
"""

from __future__ import annotations

import base64
import binascii
import errno
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

from evidence_store.errors import IntegrityError, SigningKeyError

MAX_NOTE_BYTES = 16384
_DASH = "— "
_ECDSA = ec.ECDSA(hashes.SHA256())
PBKDF2_ITERATIONS = 600_000  # OWASP Password Storage Cheat Sheet, PBKDF2-HMAC-SHA256
# Object identifiers of RFC 8018 and NIST, DER contents.
_PBES2 = bytes.fromhex("2a864886f70d01050d")
_PBKDF2 = bytes.fromhex("2a864886f70d01050c")
_HMAC_SHA256 = bytes.fromhex("2a864886f70d0209")
_AES256_CBC = bytes.fromhex("60864801650304012a")


@dataclass(frozen=True)
class PublicKey:
    """A P-256 public key. `spki`: DER SubjectPublicKeyInfo."""

    spki: bytes = field(repr=False)

    @classmethod
    def from_pem(cls, pem: bytes) -> PublicKey:
        """Return the key in a PEM file.

        Raises: SigningKeyError if it is not a P-256 public key.
        """
        try:
            key = serialization.load_pem_public_key(pem)
        except (ValueError, UnsupportedAlgorithm) as e:
            raise SigningKeyError(f"not a public key in PEM form: {e}") from e
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
            raise SigningKeyError("not a P-256 key; impound signs with ECDSA P-256 only")
        return cls._of(key)

    @classmethod
    def _of(cls, key: ec.EllipticCurvePublicKey) -> PublicKey:
        return cls(
            key.public_bytes(
                serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the SPKI, 64 hex digits: what people compare by phone."""
        return hashlib.sha256(self.spki).hexdigest()

    @property
    def kid(self) -> str:
        """The first 8 hex digits of the fingerprint."""
        return self.fingerprint[:8]

    @cached_property
    def _key(self) -> ec.EllipticCurvePublicKey:
        key = serialization.load_der_public_key(self.spki)
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise SigningKeyError("not an elliptic-curve key")
        return key

    def pem(self) -> bytes:
        """The key in PEM form."""
        return self._key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def verifies(self, signature: bytes, text: bytes) -> bool:
        """Tell whether `signature` (DER) is this key's over `text`."""
        try:
            self._key.verify(signature, text, _ECDSA)
        except InvalidSignature:
            return False
        return True


class Signer(Protocol):
    """Something that signs with one P-256 key: a local file, KMS."""

    @property
    def public(self) -> PublicKey:
        """The public half."""

    def sign(self, text: bytes) -> bytes:
        """Return a DER signature over `text`."""


class LocalSigner:
    """Signs with a private key held in memory."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self.public = PublicKey._of(key.public_key())

    @classmethod
    def generate(cls) -> LocalSigner:
        """Make a new key."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def load(cls, path: Path, passphrase: Callable[[], bytes]) -> LocalSigner:
        """Read an encrypted PKCS#8 PEM file.

        Raises: SigningKeyError if it is missing, not a P-256 key, not encrypted, or the passphrase
            is wrong.
        """
        try:
            pem = path.read_bytes()
        except FileNotFoundError as e:
            raise SigningKeyError(
                f"no signing key at {path}", hint="make one with: impound key new"
            ) from e
        except OSError as e:
            raise SigningKeyError(f"cannot read the signing key {path}: {e.strerror}") from e
        if b"ENCRYPTED" not in pem:
            raise SigningKeyError(
                f"{path} is not protected by a passphrase",
                hint=f"encrypt it: openssl pkcs8 -topk8 -v2 aes256 -in {path} -out new.pem",
            )
        try:
            key = serialization.load_pem_private_key(pem, passphrase())
        except (ValueError, TypeError, UnsupportedAlgorithm) as e:
            raise SigningKeyError(
                f"cannot open the signing key {path}: wrong passphrase or damaged file",
                hint="check IMPOUND_PASSPHRASE_FILE or --passphrase-fd, or type it at the prompt",
            ) from e
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
            raise SigningKeyError(f"{path} is not a P-256 key")
        return cls(key)

    def save(self, path: Path, passphrase: bytes) -> None:
        """Write `path` (0600, encrypted PKCS#8) and `path` with suffix .pub.pem; never overwrite.

        Raises: SigningKeyError if the file exists, cannot be written, or the passphrase is empty.
        """
        if not passphrase:
            raise SigningKeyError("a signing key needs a passphrase; an empty one is refused")
        plain = self._key.private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        pem = encrypted_pkcs8(plain, passphrase)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            halves = (path.with_suffix(".pub.pem"), path)
            for half in halves:  # both or none: a public half of another key would be listed
                if half.exists():
                    raise FileExistsError(errno.EEXIST, "exists", str(half))
            for target, body, mode in (
                (path, pem, 0o600),
                (path.with_suffix(".pub.pem"), self.public.pem(), 0o644),
            ):
                fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
                with os.fdopen(fd, "wb") as f:
                    f.write(body)
                    f.flush()
                    os.fsync(fd)
        except FileExistsError as e:
            raise SigningKeyError(
                f"{e.filename} exists and is not overwritten",
                hint="move it away if you mean to start with a new key",
            ) from e
        except OSError as e:
            raise SigningKeyError(f"cannot write {path}: {e.strerror}") from e

    def sign(self, text: bytes) -> bytes:
        """Return a DER signature over `text`."""
        return self._key.sign(text, _ECDSA)


def encrypted_pkcs8(plain: bytes, passphrase: bytes, iterations: int | None = None) -> bytes:
    """Return a PKCS#8 private key (DER) encrypted, in PEM form.

    PBES2 with PBKDF2-HMAC-SHA-256 and AES-256-CBC, as `openssl pkcs8 -topk8 -v2 aes-256-cbc` writes
    it. The cryptography package writes this form too, but with 2,048 iterations only.

    Source: RFC 5958 §3 (EncryptedPrivateKeyInfo), RFC 8018 §6.2 and appendix A.
    """
    rounds = iterations or PBKDF2_ITERATIONS
    salt, iv = os.urandom(16), os.urandom(16)
    key = PBKDF2HMAC(hashes.SHA256(), 32, salt, rounds).derive(passphrase)
    pad = 16 - len(plain) % 16
    cipher = Cipher(algorithms.AES256(key), modes.CBC(iv)).encryptor()
    encrypted = cipher.update(plain + bytes([pad]) * pad) + cipher.finalize()
    prf = _der(0x30, _der(0x06, _HMAC_SHA256), _der(0x05))
    count = rounds.to_bytes(rounds.bit_length() // 8 + 1, "big")
    kdf = _der(0x30, _der(0x06, _PBKDF2),
               _der(0x30, _der(0x04, salt), _der(0x02, count), prf))  # fmt: skip
    aes = _der(0x30, _der(0x06, _AES256_CBC), _der(0x04, iv))
    scheme = _der(0x30, _der(0x06, _PBES2), _der(0x30, kdf, aes))
    body = base64.b64encode(_der(0x30, scheme, _der(0x04, encrypted)))
    lines = [body[at : at + 64] for at in range(0, len(body), 64)]
    name = b"ENCRYPTED PRIVATE KEY"
    return b"\n".join([b"-----BEGIN %b-----" % name, *lines, b"-----END %b-----" % name, b""])


def _der(tag: int, *parts: bytes) -> bytes:
    """Return one DER value (X.690 §8.1), shorter than 64 KiB."""
    content = b"".join(parts)
    size = len(content)
    if size < 128:
        return bytes([tag, size]) + content
    length = size.to_bytes(1 if size < 256 else 2, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


@dataclass(frozen=True)
class Signature:
    """One signature line, decoded."""

    name: str
    kid: str
    der: bytes


@dataclass(frozen=True)
class Note:
    """A parsed note: the signed text and every signature line. Nothing is verified yet."""

    text: bytes
    signatures: tuple[Signature, ...]


def check_key_name(name: str) -> str:
    """Return `name` if a note can carry it: not empty, no white space, no plus sign (C2SP).

    Raises: ValueError.
    """
    if not name or "+" in name or any(c.isspace() for c in name):
        raise ValueError(f"not a key name, it is empty or holds white space or '+': {name!r}")
    return name


def sign_note(text: bytes, key_name: str, signer: Signer) -> bytes:
    """Return `text` as a signed note. The signature is verified before it is returned.

    Raises: ValueError for a key name out of form; SigningKeyError if what the signer returned does
        not verify (a wrong key behind an alias, a service that hashes twice).
    """
    check_key_name(key_name)
    der = signer.sign(text)
    if not signer.public.verifies(der, text):
        raise SigningKeyError(f"the signature made by key {signer.public.kid} does not verify")
    blob = base64.b64encode(bytes.fromhex(signer.public.kid) + der).decode()
    return text + f"\n{_DASH}{key_name} {blob}\n".encode()


def parse_note(raw: bytes) -> Note:
    """Return the parts of a note.

    Raises: IntegrityError if it is not one, byte for byte.
    """
    if len(raw) > MAX_NOTE_BYTES:
        raise IntegrityError(f"a note is at most {MAX_NOTE_BYTES} bytes, this one has {len(raw)}")
    text, separator, block = raw.rpartition(b"\n\n")
    if not separator or not text or not block.endswith(b"\n"):
        raise IntegrityError("not a signed note: no signature block")
    signatures = []
    try:
        lines = block.decode().split("\n")[:-1]
    except UnicodeDecodeError as e:
        raise IntegrityError("signature block is not UTF-8") from e
    for line in lines:
        name, _, blob = line.removeprefix(_DASH).partition(" ")
        try:
            decoded = base64.b64decode(blob, validate=True)
        except (binascii.Error, ValueError) as e:
            raise IntegrityError("signature line is not base64") from e
        if (
            not line.startswith(_DASH)
            or not name
            or len(decoded) < 5
            or base64.b64encode(decoded).decode() != blob
        ):
            raise IntegrityError("malformed signature line")
        signatures.append(Signature(name, decoded[:4].hex(), decoded[4:]))
    return Note(text + b"\n", tuple(signatures))


def verify_note(note: Note, keys: Mapping[str, tuple[str, PublicKey]]) -> str:
    """Return the kid of the first known signer; no known key's signature may be bad.

    Args:
        note: a parsed note.
        keys: kid -> (key name that must stand in the line, key).

    Raises: IntegrityError.
    """
    good = ""
    for signature in note.signatures:
        known = keys.get(signature.kid)
        if known is None:
            continue
        name, key = known
        if signature.name != name:
            raise IntegrityError(f"key {signature.kid} signs as {name!r}, not {signature.name!r}")
        if not key.verifies(signature.der, note.text):
            raise IntegrityError(f"bad signature of key {signature.kid}")
        good = good or signature.kid
    if not good:
        raise IntegrityError("signed by no key that this case allows")
    return good
