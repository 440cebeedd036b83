# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: the tree is RFC 6962's, a proof proves, and a sealer never goes backwards."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evidence_store.checkpoint import (
    EMPTY_ROOT,
    Checkpoint,
    LastSeen,
    Sealer,
    encode_proof,
    inclusion_proof,
    leaf_hash,
    parse_checkpoint,
    root_from_proof,
    sign_checkpoint,
    tree_root,
    verify_checkpoint,
)
from evidence_store.errors import CaseNotFoundError, IntegrityError, StoreError
from evidence_store.ledger import Draft
from evidence_store.store import Case, allowed
from tests.evidence_store import kit
from tests.evidence_store.kit import CHECKPOINT, ENTRY, SECOND, STRANGER

ORIGIN = "local/cases/T-1"
KEYS = {CHECKPOINT.public.kid: CHECKPOINT.public}

# The leaves and roots that Certificate Transparency implementations share as test vectors.
VECTORS = [
    ("", "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"),
    ("00", "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"),
    ("10", "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77"),
    ("2021", "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"),
    ("3031", "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4"),
    ("40414243", "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef"),
    ("5051525354555657", "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c"),
    ("606162636465666768696a6b6c6d6e6f",
     "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"),
]  # fmt: skip


def naive_root(leaves):
    """RFC 6962 §2.1, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    both = naive_root(leaves[:k]) + naive_root(leaves[k:])
    return hashlib.sha256(b"\x01" + both).digest()


def leaves_of(n):
    return [leaf_hash(str(i).encode()) for i in range(n)]


def test_roots_are_those_of_the_shared_vectors():
    leaves = [leaf_hash(bytes.fromhex(data)) for data, _ in VECTORS]
    for n, (_, root) in enumerate(VECTORS, 1):
        assert tree_root(leaves[:n]).hex() == root
    assert tree_root([]) == EMPTY_ROOT


@given(st.lists(st.binary(max_size=4), max_size=70))
def test_root_is_the_definition_s(data):
    leaves = [leaf_hash(part) for part in data]
    assert tree_root(leaves) == naive_root(leaves)


@given(st.integers(1, 130), st.data())
def test_a_proof_leads_to_the_root_and_nothing_else_does(n, data):
    leaves = leaves_of(n)
    index = data.draw(st.integers(0, n - 1))
    proof, root = inclusion_proof(leaves, index), tree_root(leaves)
    assert root_from_proof(leaves[index], index, n, proof) == root
    assert root_from_proof(leaf_hash(b"other"), index, n, proof) != root
    for wrong in (proof[:-1], [*proof, root]):
        if wrong != proof:
            with pytest.raises(IntegrityError):
                root_from_proof(leaves[index], index, n, wrong)
    if proof:
        at = data.draw(st.integers(0, len(proof) - 1))
        assert (
            root_from_proof(leaves[index], index, n, [*proof[:at], bytes(32), *proof[at + 1 :]])
            != root
        )


def test_no_proof_of_a_leaf_that_is_not_there():
    for index in (-1, 3):
        with pytest.raises(ValueError, match="no leaf"):
            inclusion_proof(leaves_of(3), index)


@given(st.integers(0, 10**15), st.binary(min_size=32, max_size=32), st.text(
    st.characters(exclude_characters="\n", exclude_categories=("Cs",)), min_size=1))  # fmt: skip
def test_checkpoint_text_round_trip(size, root, origin):
    made = Checkpoint(size, root, origin)
    assert parse_checkpoint(made.text()) == made
    assert str(made) == f"{size}:{base64.b64encode(root).decode()}"


@given(st.binary(max_size=120) | st.binary(max_size=30).map(lambda b: b"o\n" + b + b"\nAA==\n"))
def test_arbitrary_bytes_raise_nothing_but_integrity_error(raw):
    with pytest.raises(IntegrityError):
        parse_checkpoint(raw)


@pytest.mark.parametrize("extra", ["extension line\n", " ", "\n"])
def test_extension_lines_and_loose_forms_are_refused(extra):
    text = Checkpoint(4, bytes(32), ORIGIN).text()
    for raw in (text + extra.encode(), text.replace(b"4", b"04"), text.replace(b"A=", b"B=")):
        with pytest.raises(IntegrityError):
            parse_checkpoint(raw)


def test_every_flipped_bit_of_a_checkpoint_is_refused():
    raw = sign_checkpoint(Checkpoint(4, bytes(range(32)), ORIGIN), CHECKPOINT)
    assert verify_checkpoint(raw, ORIGIN, KEYS).size == 4
    for at in range(len(raw) * 8):
        changed = bytearray(raw)
        changed[at // 8] ^= 1 << at % 8
        with pytest.raises(IntegrityError):
            verify_checkpoint(bytes(changed), ORIGIN, KEYS)


def test_a_checkpoint_of_another_case_or_key_is_refused():
    raw = sign_checkpoint(Checkpoint(4, bytes(32), ORIGIN), CHECKPOINT)
    with pytest.raises(IntegrityError):
        verify_checkpoint(raw, "local/cases/T-2", KEYS)
    with pytest.raises(IntegrityError):
        verify_checkpoint(raw, ORIGIN, {STRANGER.public.kid: STRANGER.public})
    mixed = sign_checkpoint(Checkpoint(4, bytes(32), "a/cases/b"), CHECKPOINT)
    with pytest.raises(IntegrityError):
        verify_checkpoint(
            mixed.replace("— a/cases/b".encode(), f"— {ORIGIN}".encode()), ORIGIN, KEYS
        )


# -- memory outside the store ----------------------------------------------------------------------


def test_last_seen_only_grows(tmp_path):
    memory = LastSeen(tmp_path / "seen")
    assert memory.get("s", "T-1") is None
    memory.put("s", "T-1", Checkpoint(5, bytes(32), ORIGIN), "k")
    memory.put("s", "T-1", Checkpoint(3, b"\1" * 32, ORIGIN), "k")
    assert memory.get("s", "T-1") == (Checkpoint(5, bytes(32), ORIGIN), "k")
    memory.put("s", "T-1", Checkpoint(6, b"\1" * 32, ORIGIN), "k")
    assert memory.get("s", "T-1")[0].size == 6
    assert memory.get("s", "T-2") is None
    assert len(list((tmp_path / "seen" / "s").iterdir())) == 1


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"size":"x"}', b"\xff", b"{" * 500])
def test_a_damaged_memory_is_an_error_and_not_forgotten(tmp_path, body):
    memory = LastSeen(tmp_path)
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "T-1.json").write_bytes(body)
    with pytest.raises(IntegrityError):
        memory.get("s", "T-1")
    with pytest.raises(IntegrityError):
        memory.put("s", "T-1", Checkpoint(5, bytes(32), ORIGIN), "k")


@pytest.mark.parametrize("store_id", ["../x", "..", ".", "a/b"])
def test_a_store_id_cannot_lead_out_of_the_folder(tmp_path, store_id):
    with pytest.raises(IntegrityError):
        LastSeen(tmp_path).get(store_id, "T-1")


# -- the sealer ------------------------------------------------------------------------------------


def test_seal_writes_proof_and_note_and_is_repeatable(world):
    world.note()
    first = world.case.seal(CHECKPOINT)
    folder = world.folder / "checkpoints" / f"{2:016d}"
    files = kit.tree(folder)
    assert sorted(files) == ["last.proof", "log.note"]
    assert files["last.proof"] == encode_proof(inclusion_proof(world.case.ledger.leaves, 1))
    assert world.case.seal(CHECKPOINT) == first
    assert kit.tree(folder) == files
    assert world.case.latest_checkpoint() == first
    assert world.verify().outcome == "clean"


def test_an_interrupted_seal_is_finished_by_the_next(world):
    world.seal()
    note = world.folder / "checkpoints" / f"{1:016d}" / "log.note"
    note.unlink()
    assert world.verify().notes[0].text == "a checkpoint was begun and not finished"
    world.seal()
    assert note.exists()
    assert world.verify().outcome == "clean"


def test_sealer_refuses_a_ledger_that_was_cut_off(world):
    world.note()
    world.seal()
    world.entry(1).unlink()
    with pytest.raises(IntegrityError, match="end was removed"):
        Case(world.store, kit.CASE).seal(CHECKPOINT)


def test_sealer_refuses_to_go_backwards_by_its_own_memory(tmp_path):
    memory = LastSeen(tmp_path / "seen")
    world = kit.make_world(tmp_path / "store", last_seen=memory)
    young = world.copy(tmp_path / "young")
    young.store.last_seen = memory
    world.note()
    world.seal()
    with pytest.raises(IntegrityError, match="end was removed"):
        young.case.seal(CHECKPOINT)
    young.note("another history")
    with pytest.raises(IntegrityError, match="not those that were sealed"):
        young.case.seal(CHECKPOINT)
    assert not (young.folder / "checkpoints").exists()


def test_sealer_wants_a_listed_key(world):
    for signer in (STRANGER, ENTRY):
        with pytest.raises(StoreError, match="may not seal"):
            world.case.seal(signer)


def test_sealer_wants_a_ledger(tmp_path, world):
    with pytest.raises(CaseNotFoundError):
        Sealer(CHECKPOINT).seal(Case(world.store, "T-none"))


def test_a_revoked_checkpoint_key_seals_no_more_but_its_old_seals_hold(world):
    world.seal()
    old = allowed(CHECKPOINT.public, f"local/cases/{kit.CASE}", "checkpoint")
    new = allowed(SECOND.public, f"local/cases/{kit.CASE}", "checkpoint")
    world.store.backend.create(
        f"cases/{kit.CASE}/keys/{SECOND.public.kid}.pem", SECOND.public.pem()
    )
    world.case.record(lambda: Draft("key.added", {"keys": [new]}))
    world.case.record(lambda: Draft("key.revoked", {"keys": [old]}))
    with pytest.raises(StoreError, match="may not seal"):
        world.case.seal(CHECKPOINT)
    world.case.seal(SECOND)
    assert world.verify().outcome == "clean"
    # Signed all the same, by whoever kept the revoked key:
    world.note()
    size = len(world.case.ledger.entries)
    forged = Checkpoint(size, world.case.ledger.roots[size], world.case.ledger.origin)
    place = f"cases/{kit.CASE}/checkpoints/{size:016d}"
    proof = encode_proof(inclusion_proof(world.case.ledger.leaves, size - 1))
    world.store.backend.create(f"{place}/last.proof", proof)
    world.store.backend.create(f"{place}/log.note", sign_checkpoint(forged, CHECKPOINT))
    assert "no key that this case allows" in str(world.verify().findings[0])
