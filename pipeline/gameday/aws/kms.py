# SPDX-License-Identifier: Apache-2.0
"""What KMS does and moto does not: digests signed as they are, key states, key policies, owners.

A key of another account is used by its ARN and needs a key policy or a grant that allows the
caller; with the account's root as principal the identity policies of that account decide on AWS,
and here every identity of that account is allowed. Of conditions those on the caller's ARN and
account, on the service that asks for the caller, on grants for AWS resources and on the encryption
context are understood: any other keeps an Allow from applying and a Deny in force.

Source: KMS Developer Guide "Key policies", "Grants", "Policy evaluation", "Condition keys", "Key
states"; API reference of Sign, Verify, GetPublicKey, GenerateDataKey, Encrypt, Decrypt.
"""

from __future__ import annotations

import base64
import fnmatch
import json
from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from moto.kms import models
from moto.kms.models import Key, kms_backends
from moto.kms.utils import ECDSAPrivateKey

from pipeline.gameday.aws.call import Answer, Call, Caller, after, before
from pipeline.gameday.aws.conditions import conditions

RAW_LIMIT = 4096
_DIGEST_BYTES = {"256": 32, "384": 48, "512": 64}
_NEED_ENABLED = (
    "Encrypt", "Decrypt", "GenerateDataKey", "GenerateDataKeyWithoutPlaintext", "ReEncrypt",
    "Sign", "Verify", "GetPublicKey", "GenerateMac", "VerifyMac", "CreateGrant",
)  # fmt: skip
_BY_POLICY = (*_NEED_ENABLED, "DescribeKey", "PutKeyPolicy", "GetKeyPolicy", "DisableKey",
              "EnableKey", "ScheduleKeyDeletion", "CancelKeyDeletion")  # fmt: skip
_ACROSS_ACCOUNTS = {
    *_NEED_ENABLED, "DescribeKey", "GetKeyRotationStatus", "ListGrants",
    "RevokeGrant",
}  # fmt: skip


def install() -> None:
    """Make no RSA key for what is not asymmetric: moto makes one of 50 ms for every key."""
    module: Any = models
    plain = module.generate_private_key

    def needed(spec: str) -> Any:
        return plain(spec) if spec.startswith(("RSA_", "ECC_")) else None

    module.generate_private_key = needed


def find_key(reference: str, account: str, region: str) -> Key | None:
    """Return a key by id, key ARN, alias or alias ARN; `account`, `region` complete the first."""
    if reference.startswith("arn:"):
        parts = reference.split(":", 5)
        if len(parts) < 6 or not parts[3] or not parts[4]:
            return None
        region, account, reference = parts[3:]
    backends = kms_backends[account]
    if region not in backends:
        return None
    backend = backends[region]
    key_id = reference.removeprefix("key/")
    if reference.startswith("alias/"):
        key_id = backend.get_key_id_from_alias(reference) or ""
    key: Key | None = backend.keys.get(key_id)
    return key


def allowed(key: Key, action: str, caller: Caller, facts: Mapping[str, str] | None = None) -> bool:
    """Whether key policy or grants let `caller` do `action` (`kms:Sign`). An explicit Deny wins.

    `facts`: further condition keys of the request, in lower case.
    """
    known = {
        "aws:principalarn": caller.role or caller.arn,
        "aws:principalaccount": caller.account,
        "kms:calleraccount": caller.account,
        **(facts or {}),
    }
    applying = effects(_policy(key), action, caller, known)
    if "Deny" in applying:
        return False
    return "Allow" in applying or _granted(key, action, caller, known)


def effects(
    policy: str, action: str, caller: Caller, facts: Mapping[str, str], *, unknown: bool = True
) -> set[str]:
    """Return the effects of those statements of a resource policy that apply.

    `unknown`: a condition on what is not known here lets a deny apply.
    """
    statements = json.loads(policy).get("Statement", [])
    return {
        statement["Effect"]
        for statement in ([statements] if isinstance(statements, dict) else statements)
        if _covers(statement, action)
        and _speaks_of(statement, caller)
        and _holds(
            statement.get("Condition", {}), facts, unknown=unknown and statement["Effect"] == "Deny"
        )
    }


def unusable(
    reference: str, account: str, region: str, caller: Caller, actions: tuple[str, ...],
    context: Mapping[str, str],
) -> str:  # fmt: skip
    """Why EBS may not use a key for `caller`; "" if it may.

    Args:
        reference: id, ARN, alias or alias ARN; `account`, `region` complete the first and third.
        account: see above.
        region: see above, and where the service asks from.
        caller: whom EBS acts for.
        actions: without `kms:`; CreateGrant is one for an AWS resource.
        context: the encryption context.
    """
    conditions.tick("key")
    key = find_key(reference, account, region)
    if key is None or key.region != region:
        return f"{reference} does not exist in {region}"
    if key.key_state != "Enabled" or not key.enabled:
        return f"{key.arn} is {key.key_state}"
    if key.key_usage != "ENCRYPT_DECRYPT" or key.key_spec != "SYMMETRIC_DEFAULT":
        return f"{key.arn} is no symmetric encryption key"
    facts = {
        "kms:viaservice": f"ec2.{region}.amazonaws.com",
        "kms:grantisforawsresource": "true",
        **{f"kms:encryptioncontext:{k.lower()}": v for k, v in context.items()},
    }
    for action in actions:
        if not allowed(key, f"kms:{action}", caller, facts):
            return f"{caller.arn} may not kms:{action} with {key.arn}"
    return ""


_policies_before: dict[str, str] = {}


def _policy(key: Key) -> str:
    """The policy in force: the one before, for as long as a new one is not seen."""
    if conditions.visible("key", key.id):
        _policies_before.pop(key.id, None)
    return _policies_before.get(key.id, key.policy)


def _granted(key: Key, action: str, caller: Caller, facts: Mapping[str, str]) -> bool:
    mine = {caller.account, f"arn:aws:iam::{caller.account}:root", caller.arn, caller.role}
    return any(
        grant.grantee_principal in mine
        and action.removeprefix("kms:") in grant.operations
        and _constrained(grant.constraints or {}, facts)
        and conditions.visible("key", grant.id)
        for grant in key.grants.values()
    )


def _constrained(constraints: dict[str, dict[str, str]], facts: Mapping[str, str]) -> bool:
    context = {k: v for k, v in facts.items() if k.startswith("kms:encryptioncontext:")}
    for kind, wanted in constraints.items():
        asked = {f"kms:encryptioncontext:{k.lower()}": v for k, v in (wanted or {}).items()}
        if kind == "EncryptionContextEquals" and asked != context:
            return False
        if kind == "EncryptionContextSubset" and not asked.items() <= context.items():
            return False
    return True


def _listed(value: Any) -> list[str]:
    return [str(value)] if isinstance(value, str | bool) else list(value or [])


def _covers(statement: dict[str, Any], action: str) -> bool:
    def among(name: str) -> bool:
        patterns = _listed(statement.get(name))
        return any(fnmatch.fnmatchcase(action.lower(), p.lower()) for p in patterns)

    return among("Action") if "Action" in statement else not among("NotAction")


def _speaks_of(statement: dict[str, Any], caller: Caller) -> bool:
    def among(principal: Any) -> bool:
        names = ["*"] if principal == "*" else _listed((principal or {}).get("AWS"))
        mine = {
            "*", caller.account, f"arn:aws:iam::{caller.account}:root", caller.arn, caller.role,
        }  # fmt: skip
        return any(name in mine for name in names)

    if "Principal" in statement:
        return among(statement["Principal"])
    return not among(statement.get("NotPrincipal"))


_OPERATORS = ("StringEquals", "StringLike", "ArnEquals", "ArnLike", "Bool",
              "DateLessThan")  # fmt: skip


def _holds(tests: dict[str, dict[str, Any]], facts: Mapping[str, str], *, unknown: bool) -> bool:
    for operator, wanted in tests.items():
        negated = "Not" in operator
        plain = operator.replace("Not", "")
        for name, values in wanted.items():
            fact = facts.get(name.lower())
            if fact is None or plain not in _OPERATORS:
                if not unknown:
                    return False
                continue
            if plain == "DateLessThan":
                if not all(fact < v for v in _listed(values)):  # both in UTC, to the second
                    return False
                continue
            exact = plain in ("StringEquals", "Bool")
            found = any(
                fact == v if exact else fnmatch.fnmatchcase(fact, v)
                for v in (str(v).lower() if plain == "Bool" else v for v in _listed(values))
            )
            if found == negated:
                return False
    return True


def _key(call: Call) -> Key | None:
    if reference := call.parameters.get("KeyId"):
        return find_key(str(reference), call.account, call.region)
    if call.operation == "Decrypt" and (blob := call.parameters.get("CiphertextBlob")):
        # As on AWS the ciphertext names its key; moto writes the id in front, in 36 characters.
        key_id = base64.b64decode(blob)[:36].decode("latin-1")
        for account in [call.account, *kms_backends]:
            if key := find_key(key_id, account, call.region):
                return key
    return None


@before("kms", "*")
def key_of_the_owner(call: Call) -> Answer | None:
    """Key policy, then the key's state, then let moto look in the owner's account."""
    conditions.tick("key")
    key = _key(call)
    if key is None:
        return None  # moto says what is missing
    action = f"kms:{call.operation}"
    foreign = key.account_id != call.account
    if foreign and call.operation not in _ACROSS_ACCOUNTS:
        return _denied(call, key, action)
    context = call.parameters.get("EncryptionContext") or {}
    facts = {
        "kms:grantisforawsresource": "false",
        **{f"kms:encryptioncontext:{k.lower()}": v for k, v in context.items()},
    }
    if (foreign or call.operation in _BY_POLICY) and not allowed(key, action, call.caller, facts):
        return _denied(call, key, action)
    if call.operation in _NEED_ENABLED:
        if key.key_state == "PendingDeletion":
            return call.error(400, "KMSInvalidStateException", f"{key.arn} is pending deletion.")
        if not key.enabled:
            return call.error(400, "DisabledException", f"{key.arn} is disabled.")
    if foreign:
        call.act_in(key.account_id)
    if "KeyId" in call.parameters and not str(call.parameters["KeyId"]).startswith("alias/"):
        # Some of moto's operations know no ARN.
        call.set_body(json.dumps(call.parameters | {"KeyId": key.id}).encode())
    return None


def _denied(call: Call, key: Key, action: str) -> Answer:
    return call.error(
        400, "AccessDeniedException",
        f"User: {call.caller.arn} is not authorized to perform: {action} on resource: {key.arn}"
        f" because no resource-based policy allows the {action} action",
    )  # fmt: skip


@before("kms", "PutKeyPolicy")
def policy_is_seen_later(call: Call) -> None:
    """Changes of a key policy are seen everywhere after a while only."""
    if key := _key(call):
        _policies_before[key.id] = _policy(key)
        conditions.born("key", key.id)


@after("kms", "CreateGrant")
def grant_is_seen_later(_call: Call, answer: Answer) -> Answer:
    """The same for grants (the grant token, which would be seen at once, is not understood)."""
    if answer.status == 200:
        conditions.born("key", json.loads(answer.body)["GrantId"])
    return answer


@before("kms", "CreateKey")
def usage_by_default(call: Call) -> None:
    """KeyUsage is ENCRYPT_DECRYPT unless said; moto keeps none."""
    if "KeyUsage" not in call.parameters:
        call.set_body(json.dumps(call.parameters | {"KeyUsage": "ENCRYPT_DECRYPT"}).encode())


@before("kms", "Sign", "Verify")
def message_size(call: Call) -> Answer | None:
    """RAW: 4096 bytes at most. DIGEST: as long as the algorithm's hash."""
    message = base64.b64decode(call.parameters.get("Message", ""))
    algorithm = str(call.parameters.get("SigningAlgorithm", ""))
    if call.parameters.get("MessageType") == "DIGEST":
        if len(message) != _DIGEST_BYTES.get(algorithm[-3:]):
            return call.error(
                400, "ValidationException", f"Digest is invalid length for algorithm {algorithm}."
            )
    elif len(message) > RAW_LIMIT:
        return call.error(
            400, "ValidationException", "1 validation error detected: Value at 'message' failed to"
            f" satisfy constraint: Member must have length less than or equal to {RAW_LIMIT}",
        )  # fmt: skip
    return None


@after("kms", "Sign")
def signed_as_it_is(call: Call, answer: Answer) -> Answer:
    """MessageType=DIGEST: sign the digest, not a hash of it."""
    key = _key(call)
    if answer.status != 200 or key is None or call.parameters.get("MessageType") != "DIGEST":
        return answer
    digest = base64.b64decode(call.parameters["Message"])
    document = json.loads(answer.body)
    private: Any = key.private_key
    signature = private.private_key.sign(
        digest, *_scheme(private, call.parameters["SigningAlgorithm"])
    )
    document["Signature"] = base64.b64encode(signature).decode()
    return Answer(200, answer.headers, json.dumps(document).encode())


@after("kms", "Verify")
def bad_signature_is_an_error(call: Call, answer: Answer) -> Answer:
    """KMSInvalidSignatureException, never SignatureValid=false."""
    key = _key(call)
    if answer.status != 200 or key is None:
        return answer
    document = json.loads(answer.body)
    if call.parameters.get("MessageType") == "DIGEST":
        private: Any = key.private_key
        try:
            private.private_key.public_key().verify(
                base64.b64decode(call.parameters["Signature"]),
                base64.b64decode(call.parameters["Message"]),
                *_scheme(private, call.parameters["SigningAlgorithm"]),
            )
            document["SignatureValid"] = True
        except InvalidSignature:
            document["SignatureValid"] = False
    if not document["SignatureValid"]:
        return call.error(400, "KMSInvalidSignatureException", "")
    return Answer(200, answer.headers, json.dumps(document).encode())


def _scheme(private: Any, algorithm: str) -> tuple[Any, ...]:
    """What follows the message in `sign` and `verify` of cryptography, for a message hashed."""
    if isinstance(private, ECDSAPrivateKey):
        return (ec.ECDSA(Prehashed(private._ECDSAPrivateKey__hash_algorithm(algorithm))),)  # type: ignore[attr-defined]
    padding, hashed = private._RSAPrivateKey__padding_and_hash_algorithm(algorithm)
    return padding, Prehashed(hashed)


@after("kms", "GetPublicKey")
def public_key_names_its_key(call: Call, answer: Answer) -> Answer:
    """KeyId is the ARN, and KeySpec is given."""
    key = _key(call)
    if answer.status != 200 or key is None:
        return answer
    document = json.loads(answer.body) | {"KeyId": key.arn, "KeySpec": key.key_spec}
    return Answer(200, answer.headers, json.dumps(document).encode())
