# SPDX-License-Identifier: Apache-2.0
"""Signed notes: what is accepted is exactly what was signed, by whom the case allows."""

from __future__ import annotations

import base64
import subprocess

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from evidence_store.errors import IntegrityError, SigningKeyError
from evidence_store.sign import (
    PBKDF2_ITERATIONS,
    LocalSigner,
    PublicKey,
    parse_note,
    sign_note,
    verify_note,
)
from tests.evidence_store.kit import ENTRY, SECOND, STRANGER

NAME = "local/entry"
KEYS = {ENTRY.public.kid: (NAME, ENTRY.public)}
TEXT = b"line one\nline two\n"


def check(raw, keys=KEYS):
    note = parse_note(raw)
    return verify_note(note, keys)


def add_line(raw, line):
    return raw + f"— {line}\n".encode()


def blob(raw):
    return raw.rpartition(b" ")[2].rstrip(b"\n").decode()


@given(st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1), st.text(
    st.characters(exclude_categories=("Cs", "Cc", "Z"), exclude_characters="+"),
    min_size=1, max_size=40))  # fmt: skip
def test_sign_and_parse_round_trip(line, name):
    raw = sign_note(f"{line}\n".encode(), name, ENTRY)
    note = parse_note(raw)
    assert note.text == f"{line}\n".encode()
    assert [s.name for s in note.signatures] == [name]
    assert verify_note(note, {ENTRY.public.kid: (name, ENTRY.public)}) == ENTRY.public.kid


@given(st.binary(max_size=400) | st.binary(max_size=100).map(lambda b: TEXT + b"\n" + b))
def test_arbitrary_bytes_raise_nothing_but_integrity_error(raw):
    with pytest.raises(IntegrityError):
        check(raw)


def test_every_flipped_bit_of_a_note_is_refused():
    raw = sign_note(TEXT, NAME, ENTRY)
    for at in range(len(raw) * 8):
        changed = bytearray(raw)
        changed[at // 8] ^= 1 << at % 8
        with pytest.raises(IntegrityError):
            check(bytes(changed))


def test_unknown_keys_are_ignored_and_one_known_is_needed():
    raw = sign_note(TEXT, NAME, ENTRY)
    other = sign_note(TEXT, "who/ever", STRANGER).rpartition(b"\n\n")[2]
    assert check(raw + other) == ENTRY.public.kid
    with pytest.raises(IntegrityError, match="no key"):
        check(sign_note(TEXT, NAME, STRANGER))


def test_a_bad_signature_of_a_known_key_rejects_a_note_with_a_good_one():
    raw = sign_note(TEXT, NAME, ENTRY)
    bad = sign_note(b"other\n", "second", SECOND).rpartition(b"\n\n")[2]
    keys = {**KEYS, SECOND.public.kid: ("second", SECOND.public)}
    with pytest.raises(IntegrityError, match="bad signature"):
        check(raw + bad, keys)
    assert check(raw + bad) == ENTRY.public.kid


def test_another_key_name_is_refused():
    with pytest.raises(IntegrityError, match="signs as"):
        check(sign_note(TEXT, "local/other", ENTRY))


@pytest.mark.parametrize(
    "signature", [b"", b"\x30", b"garbage", b"\x30\x06\x02\x01\x00\x02\x01\x00"]
)
def test_a_signature_that_is_no_der_is_refused(signature):
    line = base64.b64encode(bytes.fromhex(ENTRY.public.kid) + signature).decode()
    with pytest.raises(IntegrityError):
        check(TEXT + f"\n— {NAME} {line}\n".encode())


def test_base64_is_strict():
    raw = sign_note(TEXT, NAME, ENTRY)
    good = blob(raw)
    for changed in (good + "=", good[:-1], good[:10] + "\t" + good[10:],
                    good.replace("=", "") + "A", good[:10] + "-" + good[11:]):  # fmt: skip
        with pytest.raises(IntegrityError):
            check(raw.replace(good.encode(), changed.encode()))
    sloppy = base64.b64encode(b"\0\0\0\0x").decode()  # ends "eA=="? the last bits may not be set
    loose = sloppy[:-2] + chr(ord(sloppy[-2]) + 1) + sloppy[-1]
    assert base64.b64decode(loose) == base64.b64decode(sloppy)
    with pytest.raises(IntegrityError):
        parse_note(add_line(raw, f"x {loose}"))


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"\n\n", TEXT, TEXT + b"\n", TEXT + b"\n\n", TEXT + b"\nno dash\n",
        TEXT + "\n— only-a-name\n".encode(), TEXT + "\n—  AAAAAAAA\n".encode(),
        TEXT + b"\n\xff\n", sign_note(TEXT, NAME, ENTRY)[:-1], sign_note(TEXT, NAME, ENTRY) + b"\n",
        sign_note(TEXT, NAME, ENTRY).replace(b"\n\n", b"\n"),
        sign_note(b"x" * 17000 + b"\n", NAME, ENTRY),
    ],
    ids=range(13),
)  # fmt: skip
def test_what_is_no_note_is_refused(raw):
    with pytest.raises(IntegrityError):
        check(raw)


@pytest.mark.parametrize("name", ["", "a b", "a\nb", "a+b", "a\u2003b"])
def test_a_key_name_that_a_note_cannot_carry_is_refused(name):
    with pytest.raises(ValueError, match="key name"):
        sign_note(TEXT, name, ENTRY)


def test_a_signer_that_signs_something_else_is_caught():
    class Lying:
        public = ENTRY.public

        def sign(self, text):
            return ENTRY.sign(text + b"!")

    with pytest.raises(SigningKeyError, match="does not verify"):
        sign_note(TEXT, NAME, Lying())


def test_openssl_verifies_what_we_sign(tmp_path, need_tool):
    raw = sign_note(TEXT, NAME, ENTRY)
    (tmp_path / "text").write_bytes(TEXT)
    (tmp_path / "signature").write_bytes(parse_note(raw).signatures[0].der)
    (tmp_path / "key.pem").write_bytes(ENTRY.public.pem())
    done = subprocess.run(
        [need_tool("openssl"), "dgst", "-sha256", "-verify", "key.pem", "-signature", "signature",
         "text"], cwd=tmp_path, capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, b"Verified OK\n")


# -- keys on disk ----------------------------------------------------------------------------------


def test_key_is_saved_encrypted_private_and_never_overwritten(tmp_path):
    path = tmp_path / "keys" / "entry.pem"
    ENTRY.save(path, b"secret")
    assert path.stat().st_mode & 0o777 == 0o600
    assert b"ENCRYPTED" in path.read_bytes()
    assert PublicKey.from_pem(path.with_suffix(".pub.pem").read_bytes()) == ENTRY.public
    assert LocalSigner.load(path, lambda: b"secret").public == ENTRY.public
    before = path.read_bytes()
    with pytest.raises(SigningKeyError, match="not overwritten"):
        SECOND.save(path, b"other")
    assert path.read_bytes() == before


def test_openssl_opens_a_saved_key_and_sees_how_it_is_protected(tmp_path):
    path = tmp_path / "entry.pem"
    ENTRY.save(path, "pässword".encode())
    public = subprocess.run(
        ["openssl", "pkey", "-in", path, "-passin", "pass:pässword", "-pubout"],
        check=True, capture_output=True,
    ).stdout  # fmt: skip
    assert public == ENTRY.public.pem()
    shown = subprocess.run(
        ["openssl", "asn1parse", "-in", path], check=True, capture_output=True, text=True
    ).stdout
    for part in ("PBES2", "PBKDF2", "hmacWithSHA256", "aes-256-cbc", f"{PBKDF2_ITERATIONS:06X}"):
        assert part in shown


def test_an_empty_passphrase_is_refused(tmp_path):
    with pytest.raises(SigningKeyError, match="passphrase"):
        ENTRY.save(tmp_path / "k.pem", b"")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_loaded_says_why(tmp_path):
    path = tmp_path / "k.pem"
    with pytest.raises(SigningKeyError, match="no signing key"):
        LocalSigner.load(path, lambda: b"x")
    ENTRY.save(path, b"secret")
    with pytest.raises(SigningKeyError, match="wrong passphrase"):
        LocalSigner.load(path, lambda: b"wrong")
    plain = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "plain.pem").write_bytes(plain)
    with pytest.raises(SigningKeyError, match="not protected"):
        LocalSigner.load(tmp_path / "plain.pem", lambda: b"x")
    LocalSigner(ec.generate_private_key(ec.SECP384R1())).save(tmp_path / "p384.pem", b"x")
    with pytest.raises(SigningKeyError, match="P-256"):
        LocalSigner.load(tmp_path / "p384.pem", lambda: b"x")


def test_only_p256_public_keys_are_taken():
    def pem(key):
        return key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    for other in (ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()):
        with pytest.raises(SigningKeyError, match="P-256"):
            PublicKey.from_pem(pem(other))
    for junk in (b"", b"junk", ENTRY.public.pem()[:-40]):
        with pytest.raises(SigningKeyError):
            PublicKey.from_pem(junk)
    assert ENTRY.public.fingerprint.startswith(ENTRY.public.kid)
