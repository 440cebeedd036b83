# SPDX-License-Identifier: Apache-2.0
"""Pages of EC2's Describe operations.

Source: EC2 Developer Guide, "Pagination": without MaxResults all is one page; a page may hold fewer
than MaxResults; a token is opaque.
"""

from __future__ import annotations

import base64
from typing import TypeVar

from moto.ec2.exceptions import EC2ClientError
from moto.ec2.responses._base_response import EC2BaseResponse

from pipeline.gameday.aws.conditions import conditions

Item = TypeVar("Item")


def page(
    response: EC2BaseResponse, items: list[Item], least: int, most: int
) -> tuple[list[Item], str | None]:
    """Return what the request asks for of `items`, and the token for the rest.

    Raises: EC2ClientError InvalidParameterValue, InvalidNextToken.
    """
    size, token = response._get_param("MaxResults"), response._get_param("NextToken")
    if size is not None and size < least:
        raise EC2ClientError(
            "InvalidParameterValue",
            f"Value ( {size} ) for parameter maxResults is invalid. Expecting a value greater than"
            f" or equal to {least}.",
        )
    start, limit = 0, len(items)
    if size is not None:
        limit = min(size, most, conditions.settings.page_limit or most)
    elif token:
        limit = conditions.settings.page_limit or most
    mark = f"{type(response).__name__}:{response._get_action()}:"
    if token:
        try:
            found = base64.b64decode(token, validate=True).decode()
            start = int(found.removeprefix(mark)) if found.startswith(mark) else -1
        except ValueError:
            start = -1
        if start < 0:
            raise EC2ClientError("InvalidNextToken", "The specified NextToken is not valid.")
    end = start + limit
    following = base64.b64encode(f"{mark}{end}".encode()).decode() if end < len(items) else None
    return items[start:end], following
