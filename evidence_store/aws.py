# SPDX-License-Identifier: Apache-2.0
"""What AWS answers when it does not do what was asked, in our words; and a signer behind KMS.

botocore is imported when something failed or is about to be caught, never when this module is.

Source: S3 API Reference, "Error responses"; KMS API Reference, Sign and GetPublicKey; botocore
exceptions.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from evidence_store.errors import SigningKeyError, StoreError, StoreUnavailableError
from evidence_store.sign import PublicKey

MAX_RAW_BYTES = 4096
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
_UNKNOWN_CALLER = {
    "InvalidAccessKeyId", "InvalidClientTokenId", "UnrecognizedClientException", "InvalidToken",
    "SignatureDoesNotMatch",
}  # fmt: skip
_SKEW = {"RequestTimeTooSkewed", "InvalidSignatureException"}
_DENIED = {
    "AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "Forbidden", "403",
}  # fmt: skip
_BUSY = {
    "SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "Throttling",
    "ThrottlingException", "RequestLimitExceeded", "BandwidthLimitExceeded", "500", "502", "503",
    "504",
}  # fmt: skip
_NOT_SENT = {"NoCredentialsError", "PartialCredentialsError", "ParamValidationError"}
# A HEAD that is refused says 400 for an expired token and a disabled key alike.
_UNAVAILABLE = {"400"} | _EXPIRED | _UNKNOWN_CALLER | _SKEW | _DENIED | _BUSY


def failures() -> tuple[type[Exception], ...]:
    """The exceptions by which a call to AWS fails, for an `except` clause."""
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    return (BotoCoreError, ClientError, ResponseParserError, HTTPError)


class Failure:
    """One failed call.

    Attributes:
        code: AWS's error code, or the name of botocore's exception if there was no answer.
        message: a sentence.
    """

    def __init__(self, e: Exception) -> None:
        answer: dict[str, Any] | None = getattr(e, "response", None)
        self.answered = isinstance(answer, dict) and "Error" in answer
        if self.answered and answer is not None:
            self.code = str(answer["Error"].get("Code", ""))
            self.message = str(answer["Error"].get("Message") or self.code)
            facts = answer.get("ResponseMetadata", {})
            self.status = int(facts.get("HTTPStatusCode", 0))
            self.tried_again = int(facts.get("RetryAttempts", 0)) > 0
        else:
            self.code, self.message, self.status = type(e).__name__, str(e), 0
            if self.code == "ResponseParserError":  # it quotes the answer: credentials, from STS
                self.message = "the answer cannot be understood"
            self.tried_again = False

    @property
    def may_have_happened(self) -> bool:
        """Whether the call may have had its effect all the same.

        No answer, a server's error, or a refusal of what botocore had sent before.
        """
        if not self.answered:
            return self.code not in _NOT_SENT
        return self.status >= 500 or self.tried_again

    @property
    def unavailable(self) -> bool:
        """Whether it says nothing of what was asked for: no answer, busy, or we were refused."""
        if not self.answered:
            return self.code != "FlexibleChecksumError"
        return self.status in (403, 429) or self.status >= 500 or self.code in _UNAVAILABLE

    @property
    def passing(self) -> bool:
        """Whether it may well be over in a while: no answer, a server's error, throttling."""
        return not self.answered or self.status >= 500 or self.code in _BUSY

    @property
    def in_the_body(self) -> bool:
        """Whether an answer broke off or arrived corrupted, which asking again may mend."""
        return not self.answered and self.code in (
            "IncompleteReadError", "ResponseStreamingError", "FlexibleChecksumError",
            "ReadTimeoutError", "ConnectionClosedError", "ProtocolError", "IncompleteRead",
            "ResponseParserError",
        )  # fmt: skip

    def error(self, what: str) -> StoreError:
        """Return it as the store's error, with the next thing to do."""
        kind = StoreUnavailableError if self.unavailable else StoreError
        return kind(f"{what}: {self.message} ({self.code})", hint=self.hint)

    @property
    def hint(self) -> str:
        """The next thing to do, or ""."""
        code = self.code
        if code in _EXPIRED:
            return "renew the credentials, then run the same command again; it continues"
        if code in _UNKNOWN_CALLER:
            return "the credentials are not valid here; check the profile and the account"
        if code in _SKEW:
            return "this machine's clock is wrong; set it (chronyc makestep), then run it again"
        if code in _DENIED:
            return "the role lacks the right, or a bucket or key policy denies it"
        if code in ("OptInRequired", "AuthFailure"):
            return "the Region may not be enabled in that account, or the credentials are not of it"
        if code.startswith("KMS.") or code in ("DisabledException", "NotFoundException"):
            return "check the key: its ARN in the settings, that it is enabled, and its policy"
        if code in _BUSY:
            return "the service is busy; run the same command again later, it continues"
        if code in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
            return "give credentials: AWS_PROFILE, or the environment"
        if not self.answered:
            return "check the network and the endpoint, then run the same command again"
        return ""


class KmsSigner:
    """Signs with a KMS key of spec ECC_NIST_P256; the private half never leaves KMS.

    The signed text goes to KMS as it is (`MessageType=RAW`), so it is at most 4,096 bytes; whoever
    signs a note verifies each signature with the public half before it is used.
    """

    def __init__(self, client: Any, key_id: str) -> None:
        self._client = client
        self.key_id = key_id

    @cached_property
    def public(self) -> PublicKey:
        """The public half. Raises: SigningKeyError."""
        try:
            answer = self._client.get_public_key(KeyId=self.key_id)
        except failures() as e:
            raise self._error(e, "read the public half of") from e
        if answer.get("KeySpec") != "ECC_NIST_P256" or answer.get("KeyUsage") != "SIGN_VERIFY":
            raise SigningKeyError(
                f"KMS key {self.key_id} is {answer.get('KeySpec')} for {answer.get('KeyUsage')}",
                hint="a signing key has the spec ECC_NIST_P256 and the usage SIGN_VERIFY",
            )
        return PublicKey(answer["PublicKey"])

    def sign(self, text: bytes) -> bytes:
        """Return a DER signature over `text`. Raises: SigningKeyError."""
        if len(text) > MAX_RAW_BYTES:
            raise ValueError(f"KMS signs at most {MAX_RAW_BYTES} bytes")
        try:
            answer = self._client.sign(
                KeyId=self.key_id, Message=text, MessageType="RAW",
                SigningAlgorithm="ECDSA_SHA_256",
            )  # fmt: skip
        except failures() as e:
            raise self._error(e, "sign with") from e
        signature: bytes = answer["Signature"]
        return signature

    def _error(self, e: Exception, what: str) -> SigningKeyError:
        error = Failure(e).error(f"cannot {what} KMS key {self.key_id}")
        return SigningKeyError(str(error), hint=error.hint)
