# SPDX-License-Identifier: Apache-2.0
"""What KMS signs, refuses and lends to other accounts, one test a behaviour, in both modes."""

from __future__ import annotations

import hashlib
import json

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.serialization import load_der_public_key

from pipeline.gameday.aws.accounts import AUDIT, LOG_ARCHIVE, MEMBER, SEALER_ROLE, role_arn

MESSAGE = b"a statement"
DIGEST = hashlib.sha256(MESSAGE).digest()
ECDSA = "ECDSA_SHA_256"


@pytest.fixture
def signing_key(kms):
    def make(**more):
        more = {"KeySpec": "ECC_NIST_P256"} | more
        return kms.create_key(KeyUsage="SIGN_VERIFY", **more)["KeyMetadata"]["Arn"]

    return make


def policy(*statements):
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})


def statement(effect, principal, *actions, **more):
    return {
        "Effect": effect, "Principal": {"AWS": principal}, "Action": list(actions),
        "Resource": "*", **more,
    }  # fmt: skip


OWNER = statement("Allow", f"arn:aws:iam::{AUDIT}:root", "kms:*")


def test_digest_is_signed_as_it_is(kms, signing_key):
    """KMS API reference, Sign, MessageType: DIGEST is not hashed again."""
    key = signing_key()
    public = load_der_public_key(kms.get_public_key(KeyId=key)["PublicKey"])
    for kind, message in (("DIGEST", DIGEST), ("RAW", MESSAGE)):
        signature = kms.sign(KeyId=key, Message=message, MessageType=kind, SigningAlgorithm=ECDSA)
        public.verify(signature["Signature"], MESSAGE, ec.ECDSA(hashes.SHA256()))
        for other, same in (("DIGEST", DIGEST), ("RAW", MESSAGE)):
            assert kms.verify(
                KeyId=key, Message=same, MessageType=other, SigningAlgorithm=ECDSA,
                Signature=signature["Signature"],
            )["SignatureValid"]  # fmt: skip
    with pytest.raises(InvalidSignature):
        public.verify(signature["Signature"], b"another", ec.ECDSA(hashes.SHA256()))


def test_digest_with_rsa(kms, signing_key):
    """The same for RSA keys."""
    key, algorithm = signing_key(KeySpec="RSA_2048"), "RSASSA_PKCS1_V1_5_SHA_256"
    public = load_der_public_key(kms.get_public_key(KeyId=key)["PublicKey"])
    done = kms.sign(KeyId=key, Message=DIGEST, MessageType="DIGEST", SigningAlgorithm=algorithm)
    public.verify(done["Signature"], MESSAGE, padding.PKCS1v15(), hashes.SHA256())


def test_digest_of_the_wrong_length(kms, signing_key, refused):
    """KMS API reference, Sign, MessageType: the digest's length must match the algorithm."""
    key = signing_key()
    with refused("ValidationException", 400):
        kms.sign(KeyId=key, Message=DIGEST[:31], MessageType="DIGEST", SigningAlgorithm=ECDSA)


def test_raw_message_of_4096_bytes_at_most(kms, signing_key, refused):
    """KMS API reference, Sign, Message: 1 to 4096 bytes."""
    key = signing_key()
    kms.sign(KeyId=key, Message=bytes(4096), MessageType="RAW", SigningAlgorithm=ECDSA)
    with refused("ValidationException", 400):
        kms.sign(KeyId=key, Message=bytes(4097), MessageType="RAW", SigningAlgorithm=ECDSA)


@pytest.mark.parametrize(("kind", "message"), [("RAW", MESSAGE), ("DIGEST", DIGEST)])
def test_bad_signature(kms, signing_key, refused, kind, message):
    """KMS API reference, Verify: KMSInvalidSignatureException, not SignatureValid=false."""
    key = signing_key()
    made = kms.sign(KeyId=key, Message=message, MessageType=kind, SigningAlgorithm=ECDSA)
    with refused("KMSInvalidSignatureException", 400):
        kms.verify(
            KeyId=key, Message=hashlib.sha256(b"another").digest(), MessageType=kind,
            Signature=made["Signature"], SigningAlgorithm=ECDSA,
        )  # fmt: skip


def test_public_key_names_its_key(kms, signing_key):
    """KMS API reference, GetPublicKey: KeyId is the key ARN."""
    key = signing_key()
    kms.create_alias(AliasName="alias/entry", TargetKeyId=key)
    for name in (key, key.split("/")[1], "alias/entry"):
        got = kms.get_public_key(KeyId=name)
        assert (got["KeyId"], got["KeySpec"]) == (key, "ECC_NIST_P256")


def test_usage_by_default(kms):
    """KMS API reference, CreateKey, KeyUsage: ENCRYPT_DECRYPT."""
    assert kms.create_key()["KeyMetadata"]["KeyUsage"] == "ENCRYPT_DECRYPT"


def test_disabled_key(kms, signing_key, refused):
    """KMS Developer Guide, Key states: DisabledException for every cryptographic operation."""
    key, cmk = signing_key(), kms.create_key()["KeyMetadata"]["Arn"]
    made = kms.sign(KeyId=key, Message=MESSAGE, SigningAlgorithm=ECDSA)["Signature"]
    secret = kms.encrypt(KeyId=cmk, Plaintext=b"x")["CiphertextBlob"]
    for each in (key, cmk):
        kms.disable_key(KeyId=each)
    for operation in (
        lambda: kms.sign(KeyId=key, Message=MESSAGE, SigningAlgorithm=ECDSA),
        lambda: kms.verify(KeyId=key, Message=MESSAGE, SigningAlgorithm=ECDSA, Signature=made),
        lambda: kms.get_public_key(KeyId=key),
        lambda: kms.encrypt(KeyId=cmk, Plaintext=b"x"),
        lambda: kms.generate_data_key(KeyId=cmk, KeySpec="AES_256"),
        lambda: kms.decrypt(CiphertextBlob=secret),
    ):
        with refused("DisabledException", 400):
            operation()
    assert kms.describe_key(KeyId=key)["KeyMetadata"]["KeyState"] == "Disabled"
    kms.enable_key(KeyId=cmk)
    assert kms.decrypt(CiphertextBlob=secret)["Plaintext"] == b"x"


def test_key_to_be_deleted(kms, signing_key, refused):
    """KMS Developer Guide, Key states: KMSInvalidStateException while deletion is pending."""
    key = signing_key()
    kms.schedule_key_deletion(KeyId=key, PendingWindowInDays=7)
    with refused("KMSInvalidStateException", 400):
        kms.sign(KeyId=key, Message=MESSAGE, SigningAlgorithm=ECDSA)


# -- other accounts and key policies


def test_key_of_another_account_is_closed_by_default(aws, signing_key, refused):
    """KMS Developer Guide, Allowing users in other accounts: its policy must say so."""
    key, foreign = signing_key(), aws.client("kms", LOG_ARCHIVE)
    for operation in (
        lambda: foreign.describe_key(KeyId=key),
        lambda: foreign.get_public_key(KeyId=key),
        lambda: foreign.sign(KeyId=key, Message=MESSAGE, SigningAlgorithm=ECDSA),
    ):
        with refused("AccessDeniedException", 400):
            operation()


def test_signing_key_lent_to_another_account(aws, signing_key, refused):
    """KMS Developer Guide, Allowing users in other accounts: by key ARN, what is allowed only."""
    key = signing_key(
        Policy=policy(
            OWNER,
            statement(
                "Allow", f"arn:aws:iam::{LOG_ARCHIVE}:root",
                "kms:DescribeKey", "kms:GetPublicKey", "kms:Sign", "kms:Verify",
            ),
        )
    )  # fmt: skip
    foreign = aws.client("kms", LOG_ARCHIVE)
    assert foreign.describe_key(KeyId=key)["KeyMetadata"]["AWSAccountId"] == AUDIT
    assert foreign.get_public_key(KeyId=key)["KeyId"] == key
    made = foreign.sign(KeyId=key, Message=DIGEST, MessageType="DIGEST", SigningAlgorithm=ECDSA)
    assert made["KeyId"] == key
    assert foreign.verify(
        KeyId=key, Message=MESSAGE, SigningAlgorithm=ECDSA, Signature=made["Signature"]
    )["SignatureValid"]
    with refused("AccessDeniedException", 400):
        foreign.disable_key(KeyId=key)
    with refused("AccessDeniedException", 400):
        aws.client("kms", MEMBER).get_public_key(KeyId=key)
    with refused("NotFoundException", 400):  # without its ARN it is a key of one's own
        foreign.describe_key(KeyId=key.split("/")[1])


def test_encryption_key_lent_to_another_account(aws, kms, refused):
    """The same for data keys; a ciphertext finds its key by itself."""
    user = statement("Allow", LOG_ARCHIVE, "kms:GenerateDataKey*", "kms:Encrypt", "kms:Decrypt")
    key = kms.create_key(Policy=policy(OWNER, user))["KeyMetadata"]["Arn"]
    foreign = aws.client("kms", LOG_ARCHIVE)
    made = foreign.generate_data_key(KeyId=key, KeySpec="AES_256")
    assert made["KeyId"] == key
    assert kms.decrypt(CiphertextBlob=made["CiphertextBlob"])["Plaintext"] == made["Plaintext"]
    secret = foreign.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    assert foreign.decrypt(CiphertextBlob=secret)["Plaintext"] == b"x"
    with refused("AccessDeniedException", 400):
        aws.client("kms", MEMBER).decrypt(CiphertextBlob=secret)


def test_deny_wins(aws, signing_key, refused):
    """KMS Developer Guide, Policy evaluation: an explicit deny overrides any allow."""
    key = signing_key(
        Policy=policy(
            OWNER,
            statement("Allow", "*", "kms:*"),
            statement("Deny", f"arn:aws:iam::{MEMBER}:root", "kms:Sign"),
        )
    )
    assert aws.client("kms", LOG_ARCHIVE).sign(KeyId=key, Message=MESSAGE, SigningAlgorithm=ECDSA)[
        "Signature"
    ]
    aws.client("kms", MEMBER).get_public_key(KeyId=key)
    with refused("AccessDeniedException", 400):
        aws.client("kms", MEMBER).sign(KeyId=key, Message=MESSAGE, SigningAlgorithm=ECDSA)


def test_one_role_only(aws, refused):
    """KMS Developer Guide, Key policies: a role as principal is that role, not its account."""
    owner = aws.client("kms", LOG_ARCHIVE)
    administer = statement(
        "Allow", f"arn:aws:iam::{LOG_ARCHIVE}:root", "kms:DescribeKey", "kms:PutKeyPolicy"
    )
    sealer = statement("Allow", role_arn(LOG_ARCHIVE, SEALER_ROLE), "kms:Sign")
    key = owner.create_key(
        KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY", Policy=policy(administer, sealer)
    )["KeyMetadata"]["Arn"]
    owner.describe_key(KeyId=key)
    with refused("AccessDeniedException", 400):
        owner.sign(KeyId=key, Message=MESSAGE, SigningAlgorithm=ECDSA)
    aws.client("kms", LOG_ARCHIVE, SEALER_ROLE).sign(
        KeyId=key, Message=MESSAGE, SigningAlgorithm=ECDSA
    )
    with refused("AccessDeniedException", 400):  # the same name in another account
        aws.client("kms", AUDIT, SEALER_ROLE).sign(
            KeyId=key, Message=MESSAGE, SigningAlgorithm=ECDSA
        )


@pytest.mark.parametrize(
    ("condition", "may"),
    [
        ({"StringEquals": {"aws:PrincipalAccount": LOG_ARCHIVE}}, True),
        ({"StringEquals": {"aws:PrincipalAccount": MEMBER}}, False),
        ({"ArnLike": {"aws:PrincipalArn": "arn:aws:iam::*:role/impound-*"}}, True),
        ({"ArnNotLike": {"aws:PrincipalArn": "arn:aws:iam::*:role/impound-*"}}, False),
        ({"Bool": {"aws:MultiFactorAuthPresent": "true"}}, False),  # not understood: no Allow
    ],
)
def test_conditions_on_the_caller(aws_in_process, condition, may, refused):
    """KMS Developer Guide, Condition keys: those on the caller; any other allows nothing."""
    aws = aws_in_process
    user = statement("Allow", "*", "kms:Sign", Condition=condition)
    key = aws.client("kms").create_key(
        KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY", Policy=policy(OWNER, user)
    )["KeyMetadata"]["Arn"]
    foreign = aws.client("kms", LOG_ARCHIVE)
    if may:
        foreign.sign(KeyId=key, Message=MESSAGE, SigningAlgorithm=ECDSA)
        return
    with refused("AccessDeniedException", 400):
        foreign.sign(KeyId=key, Message=MESSAGE, SigningAlgorithm=ECDSA)


def test_a_condition_that_is_not_understood_keeps_a_deny(aws_in_process, refused):
    aws = aws_in_process
    deny = statement("Deny", "*", "kms:Sign", Condition={"Bool": {"aws:ViaAWSService": "false"}})
    kms = aws.client("kms")
    key = kms.create_key(
        KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY", Policy=policy(OWNER, deny)
    )["KeyMetadata"]["Arn"]
    with refused("AccessDeniedException", 400):
        kms.sign(KeyId=key, Message=MESSAGE, SigningAlgorithm=ECDSA)
