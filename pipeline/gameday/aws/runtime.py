# SPDX-License-Identifier: Apache-2.0
"""What runs a Lambda handler: standard library only, so that a child starts at once."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import traceback
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Context:
    """The second argument of a handler, as far as it is used."""

    function_name: str
    invoked_function_arn: str
    aws_request_id: str = "simulator"


def call_handler(handler: str, event: Any, context: Context) -> dict[str, Any]:
    """Call `module:function`; return {"value": …} or, if it raised, {"error": …} as on AWS."""
    try:
        module, _, name = handler.partition(":")
        value = getattr(importlib.import_module(module), name)(event, context)
        json.dumps(value)
    except Exception as e:
        return {"error": {
            "errorMessage": str(e), "errorType": type(e).__name__, "requestId": "simulator",
            "stackTrace": traceback.format_tb(e.__traceback__),
        }}  # fmt: skip
    return {"value": value}


def main() -> None:
    """The child: one event on stdin, the result as the last line of stdout."""
    words = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        result = call_handler(
            words["handler"], words["event"], Context(words["function_name"], words["arn"])
        )
    sys.stdout.write("\n" + json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
