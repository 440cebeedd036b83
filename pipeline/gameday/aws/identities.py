# SPDX-License-Identifier: Apache-2.0
"""Who may not act any more: what inline policies of roles and users deny, and inactive keys.

moto stores such policies and asks none, and lets an inactive key act. Allows are not judged: see
`seed.LEFT_OUT`.

Source: IAM User Guide ("Policy evaluation logic", "AWS global condition context keys":
`aws:userid`, `aws:TokenIssueTime`, "Manage access keys for IAM users"); "Common errors" of the
services.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime

from moto.iam.models import User, iam_backends
from moto.sts.models import AssumedRole, sts_backends

from pipeline.gameday.aws.call import Answer, Call, before
from pipeline.gameday.aws.conditions import conditions
from pipeline.gameday.aws.kms import effects
from pipeline.gameday.aws.sessions import SERVICES, began

_UNKNOWN = {
    "ec2": (401, "AuthFailure", "AWS was not able to validate the provided access credentials"),
    "s3": (403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist."),
    "kms": (400, "UnrecognizedClientException", "The security token is invalid."),
}
_INVALID = (403, "InvalidClientTokenId", "The security token included in the request is invalid.")


def session_of(call: Call) -> AssumedRole | None:
    """The role session that asks."""
    return sts_backends[call.account]["aws"].get_assumed_role_from_access_key(call.access_key)


def user_of(call: Call) -> User | None:
    """The user whose long-term key asks."""
    for user in iam_backends[call.account]["aws"].users.values():
        if any(k.access_key_id == call.access_key for k in user.access_keys):
            return user
    return None


def denied_by_its_policies(call: Call) -> Answer | None:
    """A deny among the inline policies holds for sessions that exist already."""
    if (session := session_of(call)) is not None:
        return _of_a_role(call, session)
    if (user := user_of(call)) is None:
        return None
    if any(k.access_key_id == call.access_key and k.status != "Active" for k in user.access_keys):
        return call.error(*_UNKNOWN.get(call.service, _INVALID))
    return _judged(call, user.policies, user.name, {"aws:userid": user.id})


def _of_a_role(call: Call, session: AssumedRole) -> Answer | None:
    name = session.role_arn.rpartition("/")[2]
    role = next(
        (r for r in iam_backends[call.account]["aws"].roles.values() if r.name == name), None
    )
    if role is None or role.arn != session.role_arn:
        return None
    facts = {"aws:userid": f"{role.id}:{session.session_name}"}
    if issued := began(call.access_key):
        facts["aws:tokenissuetime"] = f"{datetime.fromtimestamp(issued, UTC):%Y-%m-%dT%H:%M:%SZ}"
    return _judged(call, role.policies, role.name, facts)


def _judged(
    call: Call, policies: Mapping[str, str], owner: str, facts: Mapping[str, str]
) -> Answer | None:
    for name, document in list(policies.items()):
        if not conditions.visible("policy", f"{owner} {name}"):
            continue
        policy = json.loads(document) if isinstance(document, str) else document
        listed = policy.get("Statement", [])
        for statement in [listed] if isinstance(listed, dict) else listed:
            said = {"Statement": [{**statement, "Principal": "*"}]}
            action = f"{call.service}:{call.operation}"
            if action == "sts:GetCallerIdentity":  # no policy forbids it
                continue
            if effects(json.dumps(said), action, call.caller, facts, unknown=False) == {"Deny"}:
                return _refusal(call, action)
    return None


def _refusal(call: Call, action: str) -> Answer:
    if call.service == "ec2":
        return call.error(
            403, "UnauthorizedOperation", "You are not authorized to perform this operation."
        )
    code = "AccessDenied" if call.service in ("s3", "sts", "iam") else "AccessDeniedException"
    return call.error(
        403, code,
        f"User: {call.caller.arn} is not authorized to perform: {action} with an explicit deny in "
        "an identity-based policy",
    )  # fmt: skip


for _service in (*SERVICES, "autoscaling"):
    before(_service, "*")(denied_by_its_policies)
