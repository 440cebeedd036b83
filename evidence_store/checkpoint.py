# SPDX-License-Identifier: Apache-2.0
r"""Checkpoints: a signed statement of how many entries a ledger has and what they are.

The chain of `prev` digests cannot notice that its own end was cut off; a checkpoint can. Its text

    <origin>\n<size>\n<base64 of the RFC 6962 root>\n

is signed with a second key whose note name is the origin. A leaf is a whole ledger file, signature
included. `last.proof` holds the inclusion proof of the last entry, one base64 hash a line, so that
a shell can bind the chain to the root without building the tree.

Source: https://c2sp.org/tlog-checkpoint, RFC 6962 §2.1, RFC 9162 §2.1.3.2.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evidence_store.errors import (
    AlreadyExistsError,
    CaseNotFoundError,
    IntegrityError,
    StoreError,
)
from evidence_store.sign import (
    MAX_NOTE_BYTES,
    PublicKey,
    Signer,
    parse_note,
    sign_note,
    verify_note,
)

if TYPE_CHECKING:
    from evidence_store.ledger import Ledger
    from evidence_store.store import Case

EMPTY_ROOT = hashlib.sha256(b"").digest()
_SIZE = re.compile(r"0|[1-9][0-9]{0,15}")


def leaf_hash(entry: bytes) -> bytes:
    """RFC 6962 leaf: SHA-256(0x00 || whole ledger file)."""
    return hashlib.sha256(b"\x00" + entry).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _split(n: int) -> int:
    """The largest power of two smaller than n."""
    return 1 << ((n - 1).bit_length() - 1)


class Tree:
    """An RFC 6962 tree that grows leaf by leaf; each `add` returns the new root in O(log n)."""

    def __init__(self) -> None:
        self._stack: list[tuple[int, bytes]] = []  # (leaves below, hash), sizes strictly falling

    def add(self, leaf: bytes) -> bytes:
        """Add a leaf hash; return the root of the grown tree."""
        size, value = 1, leaf
        while self._stack and self._stack[-1][0] == size:
            value = _node(self._stack.pop()[1], value)
            size *= 2
        self._stack.append((size, value))
        for _, left in reversed(self._stack[:-1]):
            value = _node(left, value)
        return value


def tree_root(leaves: Sequence[bytes]) -> bytes:
    """Return the RFC 6962 root of leaf hashes.

    >>> tree_root([]) == EMPTY_ROOT
    True
    """
    tree, root = Tree(), EMPTY_ROOT
    for leaf in leaves:
        root = tree.add(leaf)
    return root


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """Return the audit path of leaf `index`, lowest first (RFC 6962 §2.1.1)."""
    if not 0 <= index < len(leaves):
        raise ValueError(f"no leaf {index} in a tree of {len(leaves)}")
    if len(leaves) == 1:
        return []
    k = _split(len(leaves))
    if index < k:
        return [*inclusion_proof(leaves[:k], index), tree_root(leaves[k:])]
    return [*inclusion_proof(leaves[k:], index - k), tree_root(leaves[:k])]


def root_from_proof(leaf: bytes, index: int, size: int, proof: Sequence[bytes]) -> bytes:
    """Return the root that a proof leads to (RFC 9162 §2.1.3.2).

    Raises: IntegrityError if the proof has the wrong length.
    """
    fn, sn, value = index, size - 1, leaf
    for step in proof:
        if sn == 0:
            raise IntegrityError("inclusion proof is too long")
        if fn & 1 or fn == sn:
            value = _node(step, value)
            while not fn & 1 and fn:
                fn >>= 1
                sn >>= 1
        else:
            value = _node(value, step)
        fn >>= 1
        sn >>= 1
    if sn:
        raise IntegrityError("inclusion proof is too short")
    return value


@dataclass(frozen=True, order=True)
class Checkpoint:
    """`size` entries of `origin` have this root. What tickets and mails carry."""

    size: int
    root: bytes
    origin: str

    @property
    def root_text(self) -> str:
        """The root in base64, as in the note."""
        return base64.b64encode(self.root).decode()

    def text(self) -> bytes:
        """The signed text."""
        return f"{self.origin}\n{self.size}\n{self.root_text}\n".encode()

    def __str__(self) -> str:
        return f"{self.size}:{self.root_text}"


def parse_checkpoint(text: bytes) -> Checkpoint:
    """Return the checkpoint in a note's text; extension lines are refused.

    Raises: IntegrityError.
    """
    try:
        origin, size, root, rest = text.decode().split("\n")
        decoded = base64.b64decode(root, validate=True)
    except (ValueError, binascii.Error) as e:
        raise IntegrityError("malformed checkpoint") from e
    if rest or not origin or not _SIZE.fullmatch(size) or len(decoded) != 32:
        raise IntegrityError("malformed checkpoint")
    checkpoint = Checkpoint(int(size), decoded, origin)
    if checkpoint.text() != text:
        raise IntegrityError("checkpoint is not in canonical form")
    return checkpoint


def verify_checkpoint(raw: bytes, origin: str, keys: Mapping[str, PublicKey]) -> Checkpoint:
    """Return the checkpoint in a signed note.

    Args:
        raw: `log.note` as stored.
        origin: the ledger it must speak of.
        keys: kid -> checkpoint key.

    Raises: IntegrityError.
    """
    note = parse_note(raw)
    verify_note(note, {kid: (origin, key) for kid, key in keys.items()})
    checkpoint = parse_checkpoint(note.text)
    if checkpoint.origin != origin:
        raise IntegrityError(f"checkpoint of {checkpoint.origin!r}, not of {origin!r}")
    return checkpoint


def encode_proof(proof: Sequence[bytes]) -> bytes:
    """`last.proof`: one base64 hash a line, lowest first."""
    return b"".join(base64.b64encode(step) + b"\n" for step in proof)


def folder(size: int) -> str:
    """Return the folder of a checkpoint below the case: `checkpoints/<size:016d>`."""
    return f"checkpoints/{size:016d}"


def sign_checkpoint(checkpoint: Checkpoint, signer: Signer) -> bytes:
    """Return the signed note."""
    return sign_note(checkpoint.text(), checkpoint.origin, signer)


class LastSeen:
    """The newest checkpoint of each case that this user has seen, kept outside the store.

    Whoever rolls back ledger and checkpoints together is caught by what was remembered elsewhere.
    One JSON file for each store and case: {"origin", "size", "root", "key"}; only grows.

    Source: Borg's client security database; C2SP witness rule.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, store_id: str, case_id: str) -> Path:
        if "/" in store_id or store_id.startswith("."):
            raise IntegrityError(f"store id is not a name: {store_id!r}")
        return self._folder / store_id / f"{case_id}.json"

    def get(self, store_id: str, case_id: str) -> tuple[Checkpoint, str] | None:
        """Return (checkpoint, fingerprint of the case's first key), or None if never seen.

        Raises: IntegrityError if the file is damaged: forgetting it silently would hide a rollback.
        """
        path = self._path(store_id, case_id)
        try:
            body = json.loads(path.read_bytes())
            root = base64.b64decode(body["root"], validate=True)
            return Checkpoint(int(body["size"]), root, str(body["origin"])), str(body["key"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise IntegrityError(
                f"cannot read what was last seen of {case_id}: {path}: {e}",
                hint=f"compare a receipt by hand, then move {path} away",
            ) from e

    def put(self, store_id: str, case_id: str, checkpoint: Checkpoint, key: str) -> None:
        """Remember `checkpoint` unless a newer one is known already.

        Raises: StoreError if it cannot be written.
        """
        known = self.get(store_id, case_id)
        if known is not None and known[0].size >= checkpoint.size:
            return
        path = self._path(store_id, case_id)
        body = {
            "origin": checkpoint.origin, "size": checkpoint.size,
            "root": checkpoint.root_text, "key": key,
        }  # fmt: skip
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with temporary.open("w") as f:
                json.dump(body, f)
                f.flush()
                os.fsync(f.fileno())
            temporary.replace(path)
        except OSError as e:
            raise StoreError(f"cannot remember the checkpoint in {path}: {e.strerror}") from e


def checkpoint_sizes(case: Case) -> list[int]:
    """Return the sizes that have a checkpoint, ascending."""
    sizes = []
    for stored in case.store.backend.list(f"{case.prefix}/checkpoints"):
        folder, _, name = stored.key.rpartition("/")
        size = folder.rpartition("/")[2]
        if name == "log.note" and size.isdigit() and len(size) == 16:
            sizes.append(int(size))
    return sizes


def read_checkpoint(case: Case, size: int) -> Checkpoint:
    """Return one checkpoint, verified against the ledger.

    Raises: IntegrityError: bad signature, another size than its folder says, more entries than the
    ledger has (it was cut off), or another root (it was rewritten).
    """
    ledger = case.ledger
    key = f"{case.prefix}/{folder(size)}/log.note"
    raw = case.store.backend.read(key, 1 << 20)
    try:
        checkpoint = verify_checkpoint(raw, ledger.origin or "", ledger.ring.checkpoint_keys(size))
    except IntegrityError as e:
        raise IntegrityError(f"{key}: {e}") from e
    if checkpoint.size != size:
        raise IntegrityError(f"{key} says {checkpoint.size} entries, its folder {size}")
    compare_with_checkpoint(ledger, checkpoint, key)
    return checkpoint


def compare_with_checkpoint(ledger: Ledger, checkpoint: Checkpoint, where: str) -> None:
    """Check that the ledger still begins with what was sealed. Raises: IntegrityError."""
    if checkpoint.origin != ledger.origin:
        raise IntegrityError(f"{where} speaks of {checkpoint.origin!r}")
    if checkpoint.size > len(ledger.entries):
        raise IntegrityError(
            f"{where} says the ledger has {checkpoint.size} entries, but there are "
            f"{len(ledger.entries)}: the end was removed"
        )
    if ledger.roots[checkpoint.size] != checkpoint.root:
        raise IntegrityError(
            f"{where}: the first {checkpoint.size} entries are not those that were sealed"
        )


@dataclass
class Sealer:
    """Signs checkpoints, and refuses to go backwards.

    It re-verifies everything it vouches for: the chain and signatures (when the case was read), and
    that each earlier checkpoint, and the last one remembered outside the store, is a prefix.
    """

    signer: Signer
    last_seen: LastSeen | None = None

    def seal(self, case: Case) -> Checkpoint:
        """Store a checkpoint for the ledger's present size, unless there is one; return it.

        Raises: as `sign`.
        """
        return publish(case, self.sign(case), self.last_seen)

    def sign(self, case: Case) -> bytes:
        """Return the signed note of a checkpoint for the ledger's present size. Stores nothing.

        Raises: IntegrityError if the ledger is not an extension of what was sealed or seen before;
        StoreError.
        """
        case.refresh()
        ledger = case.ledger
        if not ledger.entries:
            raise CaseNotFoundError(f"case {case.case_id} has no ledger")
        size = len(ledger.entries)
        if self.signer.public.kid not in ledger.ring.checkpoint_keys(size):
            raise StoreError(
                f"key {self.signer.public.kid} may not seal case {case.case_id}",
                hint=f"add it: impound key add {case.case_id} CHECKPOINT.pub.pem --use checkpoint",
            )
        store_id = case.store.identity.store_id
        if self.last_seen and (known := self.last_seen.get(store_id, case.case_id)):
            compare_with_checkpoint(ledger, known[0], "the checkpoint remembered by this user")
        sizes = checkpoint_sizes(case)
        for earlier in sizes:
            read_checkpoint(case, earlier)
        if size in sizes:
            return case.store.backend.read(note_key(case, size), MAX_NOTE_BYTES)
        checkpoint = Checkpoint(size, ledger.roots[size], ledger.origin or "")
        return sign_checkpoint(checkpoint, self.signer)


def note_key(case: Case, size: int) -> str:
    """Key of the note of the checkpoint over the first `size` entries."""
    return f"{case.prefix}/{folder(size)}/log.note"


def publish(case: Case, note: bytes, last_seen: LastSeen | None) -> Checkpoint:
    """Store a checkpoint that a sealer signed, if it is true of the ledger; return it.

    Raises: IntegrityError if it is not, or is signed by no key that may; StoreError.
    """
    case.refresh()
    ledger, backend = case.ledger, case.store.backend
    size = parse_checkpoint(parse_note(note).text).size
    checkpoint = verify_checkpoint(note, ledger.origin or "", ledger.ring.checkpoint_keys(size))
    compare_with_checkpoint(ledger, checkpoint, "the sealer")
    proof = encode_proof(inclusion_proof(ledger.leaves[:size], size - 1))
    with contextlib.suppress(AlreadyExistsError):
        backend.create(f"{case.prefix}/{folder(size)}/last.proof", proof)
    with contextlib.suppress(AlreadyExistsError):
        backend.create(note_key(case, size), note)
    if last_seen:
        last_seen.put(case.store.identity.store_id, case.case_id, checkpoint, ledger.ring.first)
    return checkpoint
