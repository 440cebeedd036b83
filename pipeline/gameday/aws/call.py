# SPDX-License-Identifier: Apache-2.0
"""One AWS request as it reaches moto, in either mode, and what is done around it.

moto hands every request, in this process (`mock_aws`) and in its server, to a handler that it looks
up in its backend's table of URLs. `install()` wraps those handlers: count the call, apply fault
rules, ask the service's checks (`BEFORE`), let moto work, complete the answer (`AFTER`). Clients
are not touched, so what is tested is what any SDK would see.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import io
import json
import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

import moto
from botocore.exceptions import ConnectionClosedError
from moto.core.base_backend import BaseBackend
from moto.core.config import default_user_config
from moto.core.request import Request
from moto.core.responses import BaseResponse
from moto.core.routing import get_service_router
from moto.core.utils import get_service_model
from moto.iam.models import get_account_id_from
from moto.sts.models import sts_backends
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException, NotFound

from pipeline.gameday.aws.faults import Faults, Seen

MOTO_VERSION = "5.2.5"
DAMAGE = "impound.damage"  # in the environ of a server: takes the kind of fault to act out

_SIGNING_NAMES = {"awslambda": "lambda", "ec2instanceconnect": "ec2-instance-connect"}
_ACCOUNT_HEADER = "HTTP_X_MOTO_ACCOUNT_ID"


class MotoVersionError(RuntimeError):
    """Another moto than the one that this extension was written for and tested with."""


@dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @classmethod
    def of(cls, result: Any) -> Answer:
        """Whatever a moto handler returns."""
        status, headers, body = result if isinstance(result, tuple) else (200, {}, result)
        raw = body.encode() if isinstance(body, str) else bytes(body or b"")
        return cls(int(status), {str(k).lower(): str(v) for k, v in headers.items()}, raw)


@dataclass(frozen=True)
class Caller:
    """Who asks. `role` is the ARN of the assumed role, or None (a user, or nobody known)."""

    account: str
    arn: str
    role: str | None


@dataclass
class Call:
    """One request.

    `service` is botocore's name of it, `parameters` holds what stands in path, query, form or JSON
    body (not in XML), `resources` what a fault rule's `resource` is compared with.
    """

    request: Request
    service: str
    operation: str
    account: str
    region: str
    access_key: str
    parameters: dict[str, Any] = field(default_factory=dict)
    resources: tuple[str, ...] = ()

    @property
    def headers(self) -> Headers:
        """The request's headers, names in any case."""
        return self.request.headers

    @functools.cached_property
    def caller(self) -> Caller:
        """Who asks."""
        session = sts_backends[self.account]["aws"].get_assumed_role_from_access_key(
            self.access_key
        )
        if session is None:
            return Caller(self.account, f"arn:aws:iam::{self.account}:root", None)
        return Caller(self.account, session.arn, session.role_arn)

    def body(self) -> bytes:
        """The request's body as sent."""
        data: bytes = self.request.get_data(cache=True)
        return data

    def set_header(self, name: str, value: str | None) -> None:
        """Let moto see another header than was sent; None removes it."""
        key = f"HTTP_{name.upper().replace('-', '_')}"
        if value is None:
            self.request.environ.pop(key, None)
        else:
            self.request.environ[key] = value

    def set_body(self, body: bytes) -> None:
        """Let moto see another body than was sent."""
        environ = {k: v for k, v in self.request.environ.items() if k != "werkzeug.request"}
        environ["wsgi.input"] = io.BytesIO(body)
        environ["CONTENT_LENGTH"] = str(len(body))
        self.request = type(self.request)(environ)

    def act_in(self, account: str) -> None:
        """Let moto look for the resource in its owner's account."""
        self.request.environ[_ACCOUNT_HEADER] = account

    def error(self, status: int, code: str, message: str, reason: str = "") -> Answer:
        """Return an error in the service's own form; `reason`: for those that give one."""
        protocol = str(get_service_model(self.service).protocol)
        headers = {"x-amzn-requestid": "simulator", "content-type": "application/xml"}
        if protocol.endswith("json"):
            headers |= {"content-type": "application/x-amz-json-1.1", "x-amzn-errortype": code}
            text = json.dumps(
                {"__type": code, "message": message, "Message": message}
                | ({"Reason": reason} if reason else {})
            )
            return Answer(status, headers, text.encode())
        inner = f"<Code>{escape(code)}</Code><Message>{escape(message)}</Message>"
        if self.service == "s3":
            text = "" if self.request.method == "HEAD" else (
                f"<Error>{inner}<RequestId>simulator</RequestId></Error>"
            )  # fmt: skip
        elif protocol == "ec2":
            text = (f"<Response><Errors><Error>{inner}</Error></Errors>"
                    "<RequestID>simulator</RequestID></Response>")  # fmt: skip
        else:
            text = (f"<ErrorResponse><Error><Type>Sender</Type>{inner}</Error>"
                    "<RequestId>simulator</RequestId></ErrorResponse>")  # fmt: skip
        return Answer(status, headers, text.encode())


Before = Callable[[Call], Answer | None]
After = Callable[[Call, Answer], Answer]

# (service, operation) or (service, "*") -> what to ask before moto works; the first answer stands.
BEFORE: dict[tuple[str, str], list[Before]] = defaultdict(list)
# The same for afterwards; each gets what the one before it returned.
AFTER: dict[tuple[str, str], list[After]] = defaultdict(list)


def before(service: str, *operations: str) -> Callable[[Before], Before]:
    """Register a check."""

    def register(function: Before) -> Before:
        for operation in operations:
            BEFORE[service, operation].append(function)
        return function

    return register


def after(service: str, *operations: str) -> Callable[[After], After]:
    """Register a completion."""

    def register(function: After) -> After:
        for operation in operations:
            AFTER[service, operation].append(function)
        return function

    return register


# One stand-in a process: moto's own state is global too.
faults = Faults()
calls: deque[Seen] = deque(maxlen=100_000)
# moto checks a condition and writes in two steps, and publishes an object before its checksum.
_one_at_a_time = {"s3": threading.RLock(), "ec2": threading.RLock()}


def one_at_a_time(service: str) -> contextlib.AbstractContextManager[Any]:
    """Hold off other requests to a service whose state has to stand still."""
    return _one_at_a_time.get(service, contextlib.nullcontext())


current: contextvars.ContextVar[Call] = contextvars.ContextVar("current")

_installed = False


def install() -> None:
    """Put the extension over moto; once a process, any further call does nothing.

    Raises: MotoVersionError.
    """
    global _installed
    if _installed:
        return
    if moto.__version__ != MOTO_VERSION:
        raise MotoVersionError(f"moto {moto.__version__} is installed, {MOTO_VERSION} is needed")
    # Those that are not named again register themselves.
    from pipeline.gameday.aws import (  # noqa: F401
        backup,
        direct,
        ended,
        endpoints,
        events,
        functions,
        identities,
        images,
        instances,
        keystacks,
        kms,
        landing,
        listing,
        recycle,
        s3,
        scaling,
        sessions,
        snapshots,
        stacks,
        trail,
        volumes,
    )

    for extension in (
        events, listing, volumes, snapshots, instances, recycle, images, ended, trail, endpoints,
        backup, keystacks, kms, stacks,
    ):  # fmt: skip
        extension.install()
    for name in ("urls", "url_paths"):
        _wrap(name)
    # No 1,300 public images in every account, and no containers.
    os.environ["MOTO_EC2_LOAD_DEFAULT_AMIS"] = "false"
    for service in ("lambda", "batch"):
        default_user_config[service] = {"use_docker": False}
    _installed = True


def _wrap(name: str) -> None:
    plain: Any = getattr(BaseBackend, name).fget

    def wrapped(self: BaseBackend) -> dict[str, Callable[..., Any]]:
        return {url: _around(handler) for url, handler in plain(self).items()}

    setattr(BaseBackend, name, property(wrapped, doc=getattr(BaseBackend, name).__doc__))


@functools.cache
def _around(handler: Callable[..., Any]) -> Callable[..., Any]:
    owner = getattr(handler, "__self__", None)
    if not (isinstance(owner, type) and issubclass(owner, BaseResponse)):
        return handler

    module = owner.__module__.split(".")[1]
    service = _SIGNING_NAMES.get(module, module)

    @functools.wraps(handler)
    def around(request: Request, _url: str, _headers: Any) -> tuple[int, dict[str, str], bytes]:
        call = _call(request, service)
        current.set(call)
        answer = _serve(call, handler)
        return answer.status, dict(answer.headers), answer.body

    around.__self__ = owner  # type: ignore[attr-defined]
    return around


def _serve(call: Call, handler: Callable[..., Any]) -> Answer:
    role = call.caller.role or ""
    calls.append(Seen(call.service, call.operation, call.account, call.resources, role))
    found = faults.take(call.service, call.operation, call.account, call.resources)
    for fault in (f for f in found if f.kind == "delay"):
        time.sleep(fault.seconds)
    last = next((f for f in found if f.kind != "delay"), None)
    if last and last.kind == "error":
        return call.error(*last.answer, last.reason)
    answer = _work(call, handler)
    if last is None:
        return answer
    if call.request.from_wsgi_server and last.kind != "corrupt":
        call.request.environ[DAMAGE](last.kind)
        return answer
    if last.kind == "lost-answer":
        raise ConnectionClosedError(endpoint_url=call.request.url)
    body = bytearray(answer.body)
    headers = answer.headers | {"content-length": str(len(body))}
    if last.kind == "truncate":
        del body[len(body) // 2 :]
    elif body:
        body[len(body) // 2] ^= 0xFF
    return Answer(answer.status, headers, bytes(body))


def _work(call: Call, handler: Callable[..., Any]) -> Answer:
    for key in ((call.service, "*"), (call.service, call.operation)):
        for check in BEFORE.get(key, ()):
            if (refused := check(call)) is not None:
                return refused
    with one_at_a_time(call.service):
        answer = Answer.of(_handle(call, handler))
    for key in ((call.service, "*"), (call.service, call.operation)):
        for complete in AFTER.get(key, ()):
            answer = complete(call, answer)
    return answer


def _handle(call: Call, handler: Callable[..., Any]) -> Any:
    request = call.request
    try:
        return handler(request, request.raw_url, request.headers)
    except HTTPException as e:
        return e.code, dict(e.get_headers()), e.get_body()


def _call(request: Request, service: str) -> Call:
    access_key, region = _credential(request)
    call = Call(
        request, service, "", request.headers.get("x-moto-account-id", ""), region, access_key
    )
    if not call.account:
        call.account = get_account_id_from(access_key)
    target = request.headers.get("x-amz-target")
    if target:
        call.operation = target.rpartition(".")[2]
        call.parameters = json.loads(call.body() or b"{}")
    elif (request.content_type or "").startswith("application/x-www-form-urlencoded") and (
        service != "s3"
    ):
        call.parameters = dict(request.form) or dict(request.args)
        call.operation = call.parameters.get("Action", "")
    else:
        try:
            operation, parameters = get_service_router(service).match(request)
            call.operation = operation.name
        except NotFound:
            parameters = {}
        call.parameters = parameters | dict(parse_qsl(request.query_string.decode(), True))
        if not call.operation:
            call.operation = str(call.parameters.get("Action", ""))
    call.resources = _resources(call)
    return call


def _credential(request: Request) -> tuple[str, str]:
    """(access key, Region) that the request is signed with."""
    authorization = request.headers.get("Authorization", "")
    scope = authorization.partition("Credential=")[2].partition(",")[0]
    scope = scope or request.args.get("X-Amz-Credential", "")
    parts = scope.split("/")
    return (parts[0], parts[2]) if len(parts) >= 5 else ("", "us-east-1")


def _resources(call: Call) -> tuple[str, ...]:
    p = call.parameters
    if call.service == "s3":
        bucket, key = p.get("Bucket", ""), p.get("Key", "")
        return (f"{bucket}/{key}" if key else bucket,)
    if call.operation == "GetSnapshotBlock":
        return (f"{p['snapshotId']}/{p['blockIndex']}", str(p["snapshotId"]))
    return tuple(v for k, v in p.items() if isinstance(v, str) and k not in ("Action", "Version"))
