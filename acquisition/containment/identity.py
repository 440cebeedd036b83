# SPDX-License-Identifier: Apache-2.0
"""The calls of isolation that take sessions and keys away: inline denies, access keys.

What belongs to another account is named `ACCOUNT/NAME`.

Source: IAM API Reference (PutRolePolicy, PutUserPolicy, UpdateAccessKey, GetAccessKeyLastUsed,
ListInstanceProfilesForRole); STS API Reference (GetAccessKeyInfo); IAM User Guide, "Revoking IAM
role temporary security credentials".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

from acquisition.containment.state import LONG, Attribute, policy_text
from acquisition.errors import AcquisitionError
from evidence_store.errors import Error

KINDS = ("session-deny", "user-deny", "access-key")


class ContainmentError(AcquisitionError):
    """An instance could not be looked at or changed."""


def resource(account: str, name: str, own: str) -> str:
    """Return how an attribute names what belongs to an account.

    >>> resource("111111111111", "web", "111111111111"), resource("2", "web", "1")
    ('web', '2/web')
    """
    return name if account == own else f"{account}/{name}"


@dataclass
class Identity:
    """Roles, users and keys that an instance acted as.

    Attributes:
        iam: makes a client for an account; "" is the instance's.
        instance: its id, of which the policies are named.
    """

    iam: Callable[[str], Any]
    instance: str

    def read(self, attribute: Attribute) -> JsonValue:
        """Return a value. Raises: ContainmentError, and what the client raises."""
        iam, name = self._of(attribute)
        if attribute.kind == "access-key":
            user, _, key = name.partition(" ")
            try:
                pages = list(iam.get_paginator("list_access_keys").paginate(UserName=user))
            except iam.exceptions.NoSuchEntityException:
                return None
            held = (k for page in pages for k in page["AccessKeyMetadata"])
            return next((str(k["Status"]) for k in held if k["AccessKeyId"] == key), None)
        try:
            found = (
                iam.get_role_policy(RoleName=name, PolicyName=self._policy)
                if attribute.kind == "session-deny" else
                iam.get_user_policy(UserName=name, PolicyName=self._policy)
            )  # fmt: skip
        except iam.exceptions.NoSuchEntityException:
            return None
        text = policy_text(found["PolicyDocument"])
        if len(text) > LONG:
            raise ContainmentError(
                f"{name} has a policy {self._policy} of {len(text)} characters that is not ours",
                hint="look at it; remove it by hand if it may go",
            )
        return text

    def write(self, attribute: Attribute, value: Any) -> None:
        """Give it a value. Raises what the client raises."""
        iam, name = self._of(attribute)
        if attribute.kind == "access-key":
            user, _, key = name.partition(" ")
            iam.update_access_key(UserName=user, AccessKeyId=key, Status=value)
            return
        role = attribute.kind == "session-deny"
        where = {"RoleName" if role else "UserName": name, "PolicyName": self._policy}
        if value is None:
            (iam.delete_role_policy if role else iam.delete_user_policy)(**where)
        else:
            (iam.put_role_policy if role else iam.put_user_policy)(**where, PolicyDocument=value)

    @property
    def _policy(self) -> str:
        return f"impound-{self.instance}"

    def _of(self, attribute: Attribute) -> tuple[Any, str]:
        account, slash, name = attribute.resource.rpartition("/")
        try:
            return self.iam(account if slash else ""), name
        except Error as e:  # the account is out of reach
            raise ContainmentError(f"cannot reach {attribute}: {e}", hint=e.hint) from e

    def sharing(self, ec2: Any, roles: Iterable[str]) -> list[str]:
        """Return the other instances of the Region that have one of these roles.

        Raises what the clients raise.
        """
        iam = self.iam("")
        profiles = [
            p["Arn"] for role in roles
            for page in iam.get_paginator("list_instance_profiles_for_role").paginate(RoleName=role)
            for p in page["InstanceProfiles"]
        ]  # fmt: skip
        found = {
            a["InstanceId"]
            for page in ec2.get_paginator("describe_iam_instance_profile_associations").paginate()
            for a in page["IamInstanceProfileAssociations"]
            if a["IamInstanceProfile"]["Arn"] in profiles
        }
        return sorted(found - {self.instance})
