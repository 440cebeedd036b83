# SPDX-License-Identifier: Apache-2.0
"""Role sessions that end, and how long a chained one may be.

Source: STS API Reference, AssumeRole ("DurationSeconds", role chaining: one hour at most); IAM User
Guide, "Troubleshoot temporary credentials". Code by service: EC2 "Error codes" (RequestExpired),
S3 "Error responses" (ExpiredToken), "Common errors" of the others (ExpiredTokenException).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from pipeline.gameday.aws.call import Answer, Call, after, before
from pipeline.gameday.aws.conditions import conditions

CHAINED_SECONDS = 3600
SERVICES = ("ec2", "ebs", "kms", "s3", "lambda", "sts", "events", "sqs", "logs", "ssm", "iam")
_EXPIRED = {
    "ec2": ("RequestExpired", "Request has expired."),
    "s3": ("ExpiredToken", "The provided token has expired."),
    "sts": ("ExpiredToken", "The security token included in the request is expired"),
}
_began: dict[str, float] = {}
_OTHERS = ("ExpiredTokenException", "The security token included in the request is expired")


def session_has_ended(call: Call) -> Answer | None:
    """Refuse what is signed with credentials that are too old."""
    seconds = conditions.settings.session_seconds
    if not seconds:
        return None
    began = _began.get(call.access_key)
    if began is None or conditions.now() < began + seconds:
        return None
    return call.error(400, *_EXPIRED.get(call.service, _OTHERS))


for _service in SERVICES:
    before(_service, "*")(session_has_ended)


@before("sts", "AssumeRole")
def chained_sessions_are_short(call: Call) -> Answer | None:
    """A role that assumes a role gets one hour at most."""
    asked = int(call.parameters.get("DurationSeconds", CHAINED_SECONDS))
    if call.caller.role is None or asked <= CHAINED_SECONDS:
        return None
    return call.error(
        400, "ValidationError",
        "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role"
        " chaining",
    )  # fmt: skip


@after("sts", "AssumeRole")
def sessions_are_dated(_call: Call, answer: Answer) -> Answer:
    """Know when a session began, and tell the client when it ends."""
    found = re.search(rb"<AccessKeyId>([^<]+)</AccessKeyId>", answer.body)
    if answer.status != 200 or found is None:
        return answer
    now = conditions.now()
    _began[found[1].decode()] = now
    if not conditions.settings.session_seconds:
        return answer
    ends = datetime.fromtimestamp(now + conditions.settings.session_seconds, UTC)
    stamp = f"<Expiration>{ends:%Y-%m-%dT%H:%M:%S.%fZ}</Expiration>".encode()
    body = re.sub(rb"<Expiration>[^<]*</Expiration>", stamp, answer.body)
    return Answer(200, answer.headers | {"content-length": str(len(body))}, body)


def reset() -> None:
    """Forget the sessions of an earlier stand-in."""
    _began.clear()
