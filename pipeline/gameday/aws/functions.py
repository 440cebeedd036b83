# SPDX-License-Identifier: Apache-2.0
"""Lambda Invoke of Python functions (moto would need docker).

A function is registered by account, name and `module:function`, so that nothing has to be imported
here. It runs under the credentials of its own role, never the caller's: in the server process as a
process of its own, in this process with its environment swapped (one at a time). What it raises
comes back as AWS gives it: status 200, `X-Amz-Function-Error: Unhandled`, type and message.

Source: Lambda API reference "Invoke"; Lambda Developer Guide "Lambda function errors in Python".
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.gameday.aws.accounts import assume
from pipeline.gameday.aws.call import Answer, Call, before
from pipeline.gameday.aws.runtime import Context, call_handler


@dataclass(frozen=True)
class Function:
    """One function.

    `handler`: `module:function`. `role`: name of the role it runs as, in `account`. `invokers`:
    other accounts that its resource policy allows. `environment`: its variables.
    """

    account: str
    name: str
    handler: str
    role: str
    invokers: tuple[str, ...] = ()
    timeout: float = 60.0
    environment: tuple[tuple[str, str], ...] = ()


_functions: dict[tuple[str, str], Function] = {}
_environment_lock = threading.RLock()  # a function may invoke another
_children: set[subprocess.Popen[str]] = set()
# Set by the server: where its functions find it. None: functions run in this process.
endpoint: str | None = None


def register(function: Function) -> None:
    """Make a function known; one of the same account and name is replaced."""
    _functions[function.account, function.name] = function


def clear() -> None:
    """Forget all functions."""
    _functions.clear()


@before("lambda", "Invoke")
def invoke(call: Call) -> Answer:
    """Run a registered function; no other can be run here, whatever moto knows of it."""
    account, name = _named(str(call.parameters.get("FunctionName", "")), call.account)
    arn = f"arn:aws:lambda:{call.region}:{account}:function:{name}"
    function = _functions.get((account, name))
    if function is None:
        return call.error(404, "ResourceNotFoundException", f"Function not found: {arn}")
    if call.account != account and call.account not in function.invokers:
        return call.error(
            403, "AccessDeniedException", f"User: {call.caller.arn} is not authorized to perform:"
            f" lambda:InvokeFunction on resource: {arn}",
        )  # fmt: skip
    kind = call.headers.get("x-amz-invocation-type", "RequestResponse")
    if kind == "DryRun":
        return Answer(204, {}, b"")
    event = json.loads(call.body() or b"{}")
    context = Context(name, arn)
    if kind == "Event":
        work = threading.Thread(target=_run, args=(function, event, context), daemon=True)
        work.start()
        if endpoint is None:
            work.join()  # in this process nothing may run on when the stand-in has ended
        return Answer(202, {}, b"")
    result = _run(function, event, context)
    headers = {"content-type": "application/json", "x-amz-executed-version": "$LATEST"}
    if "error" in result:
        headers["x-amz-function-error"] = "Unhandled"
        return Answer(200, headers, json.dumps(result["error"]).encode())
    return Answer(200, headers, json.dumps(result["value"]).encode())


def _named(text: str, account: str) -> tuple[str, str]:
    """(account, name) of a function's name, partial ARN or ARN, qualifier dropped."""
    parts = text.split(":")
    if text.startswith("arn:"):
        return (parts[4], parts[6]) if len(parts) >= 7 else (account, text)
    if len(parts) >= 3 and parts[1] == "function":
        return parts[0], parts[2]
    return account, parts[0]


def _run(function: Function, event: Any, context: Context) -> dict[str, Any]:
    session_name = function.name.ljust(2, "-")  # as on AWS, but STS wants two characters
    credentials = assume(function.account, function.role, session_name, endpoint)
    variables = {
        **dict(function.environment),
        **credentials.environment(),
        "AWS_REGION": credentials.region,
        "AWS_LAMBDA_FUNCTION_NAME": function.name,
    }
    if endpoint is None:
        with _variables(variables | {"AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"}):
            return call_handler(function.handler, event, context)
    return _in_child(function, variables | {"AWS_ENDPOINT_URL": endpoint}, event, context)


@contextlib.contextmanager
def _variables(variables: dict[str, str]) -> Iterator[None]:
    with _environment_lock:
        kept = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        try:
            yield
        finally:
            for name, value in kept.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def _in_child(
    function: Function, variables: dict[str, str], event: Any, context: Context
) -> dict[str, Any]:
    words = {
        "handler": function.handler, "event": event, "function_name": context.function_name,
        "arn": context.invoked_function_arn,
    }  # fmt: skip
    command = [sys.executable, "-I", "-m", "pipeline.gameday.aws.runtime"]
    kept = {n: v for n, v in os.environ.items() if n in ("PATH", "LANG", "LC_ALL", "TMPDIR")}
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=kept | {"HOME": "/nonexistent"} | variables,
    )  # fmt: skip
    _children.add(child)
    try:
        out, err = child.communicate(json.dumps(words), timeout=function.timeout)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        message = f"Task timed out after {function.timeout:.2f} seconds"
        return {"error": {"errorMessage": message, "errorType": "Sandbox.Timedout"}}
    finally:
        _children.discard(child)
    sys.stderr.write(err)
    try:
        result: dict[str, Any] = json.loads(out.splitlines()[-1])
    except (ValueError, IndexError):
        message = f"Error: Runtime exited with error: exit status {child.returncode}"
        return {"error": {"errorMessage": message, "errorType": "Runtime.ExitError"}}
    return result


def stop_children() -> None:
    """End the functions that still run (when the server ends)."""
    for child in list(_children):
        child.kill()
