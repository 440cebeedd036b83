# SPDX-License-Identifier: Apache-2.0
"""Bodies of Lambda functions for tests; named by `module:function`."""

from __future__ import annotations

import os
import sys
import time


def who(event, context):
    import boto3

    identity = boto3.session.Session().client("sts").get_caller_identity()
    print("a handler may print")
    return {
        "event": event,
        "arn": identity["Arn"],
        "account": identity["Account"],
        "name": context.function_name,
        "setting": os.environ.get("SETTING"),
    }


def raises(event, context):
    raise LookupError("no such case")


def ends(event, context):
    sys.stdout.flush()
    os._exit(3)


def sleeps(event, context):
    time.sleep(60)


def not_json(event, context):
    return object()
