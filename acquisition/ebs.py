# SPDX-License-Identifier: Apache-2.0
"""EBS direct APIs, the reading half: signed by botocore, sent by urllib3, paced, checked.

Three calls: ListSnapshotBlocks, ListChangedBlocks, GetSnapshotBlock. boto3 does them too, at three
times the CPU time for each block, does not check a block's digest, and does not ask again when a
body broke off.

What goes wrong, and what becomes of it:

    throttled, 5xx, no answer, a body that breaks off or stalls     asked again, with full jitter
    digest, length or size of a block not as stated                 again, then `BlockLostError`
    the service answers for other blocks, never for this one        `BlockLostError`
    a token that is refused                                         `TokenRefusedError`: list again
    anything else (no right, no such snapshot, clock, credentials)  `ServiceError`, at once

Source: EBS direct APIs reference (GetSnapshotBlock, ListSnapshotBlocks, ListChangedBlocks, common
errors); EBS user guide, "Use EBS direct APIs" and its quotas; AWS Architecture Blog, "Exponential
Backoff and Jitter"; RFC 9110 §10.2.3 (Retry-After).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import quote
from urllib.request import getproxies, proxy_bypass

from acquisition.closing import Closing
from acquisition.errors import AcquisitionError
from evidence_store.aws import Failure, failures
from evidence_store.model import clean

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, HTTPConnectionPool

T = TypeVar("T")

BLOCK_BYTES = 512 << 10
BLOCKS_PER_SECOND = 1000  # GetSnapshotBlock, of an account in a Region and of a snapshot
LISTS_PER_SECOND = 50  # ListSnapshotBlocks and ListChangedBlocks, likewise
CONNECTIONS = 32

_ATTEMPTS = 12
_PATIENT = 40  # of a busy service: what others use comes free
_FEW = 5  # where asking again seldom mends it
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 20.0  # seconds
_CONNECT_SECONDS, _READ_SECONDS, _BODY_SECONDS = 5.0, 20.0, 60.0
_PART = 256 << 10
_MAX_LIST_BYTES = 32 << 20
_MAX_ERROR_BYTES = 64 << 10
_SKEW_SECONDS = 240

_THROTTLED = {
    "RequestThrottledException", "ThrottlingException", "Throttling", "TooManyRequestsException",
    "SlowDown",
}  # fmt: skip
_EXPIRED = {"ExpiredTokenException", "ExpiredToken", "RequestExpired"}
_SIGNATURE = {"InvalidSignatureException", "SignatureDoesNotMatch", "RequestTimeTooSkewed"}
_UNKNOWN_CALLER = {"UnrecognizedClientException", "InvalidClientTokenId", "MissingAuthentication"}


class ServiceError(AcquisitionError):
    """AWS refused, or gave no answer that can be used.

    Attributes:
        code: AWS's error code ("AccessDeniedException"), "" if there was no answer.
        reason: AWS's `Reason` beside it, or "".
        status: HTTP status, 0 if there was no answer.
    """

    def __init__(
        self, message: str, *, code: str = "", reason: str = "", status: int = 0, hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.reason = reason
        self.status = status


class TokenRefusedError(ServiceError):
    """A block or page token is not valid (any more); list the blocks again."""


class BlockLostError(AcquisitionError):
    """The service does not give this block as it should, however often it is asked."""


class Abandoned(Exception):
    """What this was read for has failed meanwhile."""


class Credentials(Protocol):
    """What botocore's credentials offer."""

    def get_frozen_credentials(self) -> Any:
        """Return access key, secret key and token; renewed first if they are about to expire."""


@dataclass(frozen=True)
class Endpoint:
    """Where the API is, and as whom.

    Attributes:
        url: such as https://ebs.eu-central-1.amazonaws.com.
        region: Region that requests are signed for.
        account: who calls; requests count against this account's quota.
        credentials: asked anew for each request.
    """

    url: str
    region: str
    account: str
    credentials: Credentials

    @classmethod
    def of(cls, session: Any, client: Any, account: str) -> Endpoint:
        """Return that of a boto3 session and of a client `ebs` made by it."""
        credentials = session.get_credentials()
        if credentials is None:
            raise AcquisitionError(
                "there are no AWS credentials",
                hint="give credentials: AWS_PROFILE, or the environment",
            )
        return cls(client.meta.endpoint_url, client.meta.region_name, account, credentials)


class Bucket:
    """At most `rate` a second, and `burst` at once; shared by all threads (GCRA)."""

    def __init__(
        self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._step = 1 / rate
        self._slack = burst / rate
        self._clock = clock
        self._next = clock()
        self._lock = threading.Lock()

    def reserve(self) -> float:
        """Take one; return the seconds to wait before it may be used."""
        with self._lock:
            now = self._clock()
            self._next = max(self._next, now - self._slack) + self._step
            return max(0.0, self._next - self._step - now)


class Window:
    """How many requests are in flight: one more for each round that went well, half if throttled.

    Source: RFC 5681 (additive increase, multiplicative decrease).
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = min(8.0, float(most))
        self._most = float(most)
        self._clock = clock
        self._in_flight = 0
        self._cut_at = float("-inf")
        self._free = threading.Condition()

    def enter(self, stop: threading.Event) -> None:
        """Wait for a place. Raises: Abandoned."""
        with self._free:
            while self._in_flight >= int(self.limit):
                self._free.wait(0.5)
                if stop.is_set():
                    raise Abandoned
            self._in_flight += 1

    def leave(self, *, well: bool, throttled: bool = False) -> None:
        """Give the place back, and say how it went."""
        with self._free:
            self._in_flight -= 1
            if throttled:
                if self._clock() - self._cut_at > 0.5:  # one cut for what was in flight together
                    self._cut_at = self._clock()
                    self.limit = max(1.0, self.limit / 2)
            elif well and self.limit < self._most:
                self.limit = min(self._most, self.limit + 1 / self.limit)
                self._free.notify()
            self._free.notify()


class _Again(Exception):
    """One attempt failed in a way that another may mend."""

    def __init__(
        self, error: AcquisitionError, *, attempts: int = _ATTEMPTS, throttled: bool = False,
        after: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(str(error))
        self.error = error
        self.attempts = attempts
        self.throttled = throttled
        self.after = after


@dataclass
class Requests:
    """What was asked of the service."""

    sent: int = 0
    throttled: int = 0
    repeated: int = 0


@dataclass
class Received:
    """Blocks that one reader received.

    Attributes:
        checked: had the digest that AWS states of them.
        mismatched: had not; each was asked for again.
        lost: given up.
        bytes: of all of these.
    """

    checked: int = 0
    mismatched: int = 0
    lost: int = 0
    bytes: int = 0


class EbsDirect(Closing):
    """The API of one account in one Region: make one and share it, for the quota is shared.

    Its connections, threads and pace are used by every snapshot read through it.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        connections: int = CONNECTIONS,
        blocks_per_second: float = BLOCKS_PER_SECOND,
        lists_per_second: float = LISTS_PER_SECOND,
        wait: Callable[[threading.Event, float], bool] = threading.Event.wait,
    ) -> None:
        """Open nothing yet.

        Args:
            endpoint: where, and as whom.
            connections: most requests in flight.
            blocks_per_second: pace of GetSnapshotBlock, in all and for each snapshot.
            lists_per_second: pace of both lists, likewise.
            wait: how to wait for seconds, unless the event is set (for tests).
        """
        self.endpoint = endpoint
        self.requests = Requests()
        self.threads = ThreadPoolExecutor(connections, thread_name_prefix="ebs")
        self._wait = wait
        self._rates = {"blocks": blocks_per_second, "lists": lists_per_second}
        self._buckets: dict[tuple[str, str], Bucket] = {}
        self._window = Window(connections)
        self._lock = threading.Lock()
        self._pool, self._base = _connect(endpoint.url, connections)
        self._sign = _signer(endpoint)
        self._known_good: tuple[str, int, str] | None = None

    def close(self) -> None:
        """See `Closing.close`."""
        self.threads.shutdown(wait=True)
        self._pool.close()

    def list_blocks(
        self, snapshot: str, *, start: int, limit: int, since: str = "", page: str = "",
        stop: threading.Event | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Return one page of ListSnapshotBlocks, or of ListChangedBlocks if `since` is given.

        Raises: TokenRefusedError for a page token; ServiceError.
        """
        query = {"maxResults": str(limit)}
        query |= {"pageToken": page} if page else {"startingBlockIndex": str(start)}
        if since:
            query["firstSnapshotId"] = since
        path = f"/snapshots/{quote(snapshot, safe='')}/{'changedblocks' if since else 'blocks'}"
        what = f"cannot list the blocks of {clean(snapshot)}"

        def receive(response: BaseHTTPResponse) -> dict[str, Any]:
            try:
                answer = json.loads(_body(response, _MAX_LIST_BYTES, what))
            except ValueError as e:
                raise _Again(ServiceError(f"{what}: the answer is no JSON"), attempts=_FEW) from e
            if not isinstance(answer, dict):
                raise _Again(ServiceError(f"{what}: the answer is no object"), attempts=_FEW)
            return answer

        return self._ask("lists", snapshot, path, query, receive, what, stop)

    def read_block(
        self, snapshot: str, index: int, token: str, view: memoryview, received: Received,
        stop: threading.Event | None = None,
    ) -> None:  # fmt: skip
        """Read one block into `view` (512 KiB) and compare it with the digest that came with it.

        Raises: TokenRefusedError, BlockLostError, ServiceError; Abandoned once `stop` is set.
        """
        try:
            self._read_block(snapshot, index, token, view, received, stop)
        except BlockLostError:
            with self._lock:
                received.lost += 1
            raise
        except ServiceError as e:
            if (e.status != 404 and e.status < 500) or not self._answers_for_others(stop):
                raise
            with self._lock:
                received.lost += 1
            raise BlockLostError(f"{e}; other blocks are answered") from e
        self._known_good = (snapshot, index, token)

    def _read_block(
        self, snapshot: str, index: int, token: str, view: memoryview, received: Received,
        stop: threading.Event | None, attempts: int | None = None,
    ) -> None:  # fmt: skip
        path = f"/snapshots/{quote(snapshot, safe='')}/blocks/{index}"
        what = f"cannot read block {index} of {clean(snapshot)}"

        def receive(response: BaseHTTPResponse) -> None:
            stated = _stated(response.headers, what)
            _fill(response, view, what)
            actual = hashlib.sha256(view).digest()
            with self._lock:
                received.bytes += len(view)
                received.checked += actual == stated
                received.mismatched += actual != stated
            if actual != stated:
                raise _Again(
                    _Mismatch(f"{what}: SHA-256 is {actual.hex()}, AWS states {stated.hex()}"),
                    attempts=_FEW,
                )

        try:
            self._ask(
                "blocks", snapshot, path, {"blockToken": token}, receive, what, stop, attempts
            )
        except _Mismatch as e:
            raise BlockLostError(str(e)) from e

    def _answers_for_others(self, stop: threading.Event | None) -> bool:
        """Tell whether a block that was read before can be read now: then not all is down."""
        if self._known_good is None:
            return False
        try:
            scratch = memoryview(bytearray(BLOCK_BYTES))
            self._read_block(*self._known_good, scratch, Received(), stop, attempts=2)
        except AcquisitionError:
            return False
        return True

    # -- one call --------------------------------------------------------------------------------

    def _ask(
        self, pace: str, snapshot: str, path: str, query: Mapping[str, str],
        receive: Callable[[BaseHTTPResponse], T], what: str, stop: threading.Event | None,
        most: int | None = None,
    ) -> T:  # fmt: skip
        stop = stop or threading.Event()
        attempt = 0
        while True:
            for bucket in (self._bucket(pace, ""), self._bucket(pace, snapshot)):
                self._pause(bucket.reserve(), stop)
            attempt += 1
            try:
                with self._place(stop):
                    return self._send(path, query, receive, what)
            except _Again as again:
                if attempt >= (again.attempts if most is None else min(most, again.attempts)):
                    raise again.error from again.__cause__
                with self._lock:
                    self.requests.repeated += 1
                longest = min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** (attempt - 1))
                wait = max(random.uniform(0, longest), again.after)  # noqa: S311
            self._pause(wait, stop)

    def _bucket(self, pace: str, snapshot: str) -> Bucket:
        with self._lock:
            key = (pace, snapshot)
            if key not in self._buckets:
                rate = self._rates[pace]
                self._buckets[key] = Bucket(rate, max(1.0, rate / 20))
            return self._buckets[key]

    def _pause(self, seconds: float, stop: threading.Event) -> None:
        if (seconds > 0 and self._wait(stop, seconds)) or stop.is_set():
            raise Abandoned

    @contextlib.contextmanager
    def _place(self, stop: threading.Event) -> Iterator[None]:
        self._window.enter(stop)
        well = throttled = False
        try:
            yield
            well = True
        except _Again as e:
            throttled = e.throttled
            raise
        finally:
            self._window.leave(well=well, throttled=throttled)

    def _send(
        self, path: str, query: Mapping[str, str], receive: Callable[[BaseHTTPResponse], T],
        what: str,
    ) -> T:  # fmt: skip
        from urllib3.exceptions import HTTPError

        target = path + "?" + "&".join(f"{k}={quote(v, safe='-_.~')}" for k, v in query.items())
        headers = self._sign(self._base + target)
        with self._lock:
            self.requests.sent += 1
        try:
            response = self._pool.urlopen(
                "GET", target, headers=headers, retries=False, redirect=False,
                preload_content=False, decode_content=False,
            )  # fmt: skip
            whole = False
            try:
                if response.status != 200:
                    raise self._refused(response, path, what)
                got = receive(response)
                whole = True
                return got
            finally:
                if not whole:
                    response.close()  # what else is on its way must not be taken for an answer
                response.release_conn()
        except (HTTPError, OSError) as e:
            raise _unanswered(e, what) from e

    def _refused(self, response: BaseHTTPResponse, path: str, what: str) -> Exception:
        raw = response.read(_MAX_ERROR_BYTES) or b""
        try:
            said = json.loads(raw)
        except ValueError:
            said = {}
        said = said if isinstance(said, dict) else {}
        code = str(response.headers.get("x-amzn-ErrorType") or said.get("__type") or "")
        code = clean(code.split(":")[0].rpartition("#")[2], 80) or f"HTTP {response.status}"
        reason = clean(str(said.get("Reason") or ""), 80)
        message = clean(str(said.get("Message") or said.get("message") or "no message"), 300)
        inside = f"{code}, {reason}" if reason else code
        error = ServiceError(
            f"{what}: {message} ({inside})", code=code, reason=reason, status=response.status
        )
        if response.status == 429 or code in _THROTTLED:
            with self._lock:
                self.requests.throttled += 1
            error.hint = "others use the quota of this account too; run the same command again"
            after = _retry_after(response.headers)
            return _Again(error, attempts=_PATIENT, throttled=True, after=after)
        if response.status >= 500 or response.status == 408:
            error.hint = "run the same command again later; it continues"
            return _Again(error, after=_retry_after(response.headers))
        if code == "ValidationException" and (
            reason in ("INVALID_BLOCK_TOKEN", "INVALID_PAGE_TOKEN") or "token" in message.lower()
        ):
            return TokenRefusedError(str(error), code=code, reason=reason, status=response.status)
        if code in _EXPIRED:
            error.hint = "renew the credentials, then run the same command again; it continues"
            return _Again(error, attempts=2)
        if skew := _skew(response.headers, code, message):
            return ServiceError(
                f"{what}: {skew}", code=code, status=response.status,
                hint="set this machine's clock (chronyc makestep), then run it again",
            )  # fmt: skip
        error.hint = _hint(code, reason)
        if response.status == 404 and "/blocks/" in path:
            return _Again(error, attempts=_FEW)
        return error


class _Mismatch(AcquisitionError):
    """A block is not what was stated of it."""


def _hint(code: str, reason: str) -> str:
    if reason == "UNRELATED_SNAPSHOTS":
        return "the two snapshots are not of one volume; take this one whole, without --since"
    if code in _SIGNATURE or code in _UNKNOWN_CALLER:
        return "the credentials are not valid here; check the profile, the account and the Region"
    if code == "AccessDeniedException":
        return (
            "the role needs ebs:ListSnapshotBlocks, ebs:ListChangedBlocks and "
            "ebs:GetSnapshotBlock, and kms:Decrypt on the key of the snapshot"
        )
    if code == "ResourceNotFoundException":
        return (
            "check id, account and Region; a snapshot that is not completed, not shared with this "
            "account, or whose key may not be used, is also said not to exist"
        )
    return ""


def _unanswered(e: Exception, what: str) -> Exception:
    cause = clean(str(e.args[-1] if e.args else e) or type(e).__name__, 200)
    if "CERTIFICATE_VERIFY_FAILED" in cause:
        return ServiceError(
            f"{what}: the endpoint is not who it says it is: {cause}",
            hint="where a proxy opens TLS, name its certificate in AWS_CA_BUNDLE",
        )
    return _Again(ServiceError(
        f"{what}: {type(e).__name__}: {cause}",
        hint="check the network and the endpoint, then run the same command again; it continues",
    ))  # fmt: skip


def _skew(headers: Mapping[str, str], code: str, message: str) -> str:
    """Return how wrong this machine's clock is, if that is why a signature was refused."""
    if code not in _SIGNATURE:
        return ""
    try:
        theirs = parsedate_to_datetime(headers["Date"])
        behind = (theirs - datetime.now(UTC)).total_seconds()
    except (KeyError, ValueError, TypeError):
        behind = 0.0
    if abs(behind) > _SKEW_SECONDS:
        side = "behind" if behind > 0 else "ahead of"
        return f"this machine's clock is {abs(behind):.0f} s {side} that of AWS ({code})"
    if code == "RequestTimeTooSkewed" or "not yet current" in message or "expired" in message:
        return f"this machine's clock differs from that of AWS: {message} ({code})"
    return ""


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the service asks to wait; at most a minute."""
    value = headers.get("Retry-After", "")
    return min(60.0, float(value)) if value.isascii() and value.isdigit() else 0.0


def _stated(headers: Mapping[str, str], what: str) -> bytes:
    """Return the SHA-256 that the service states of a block."""
    algorithm = headers.get("x-amz-Checksum-Algorithm", "")
    length = headers.get("x-amz-Data-Length", "")
    try:
        stated = base64.b64decode(headers.get("x-amz-Checksum", ""), validate=True)
    except (binascii.Error, ValueError):
        stated = b""
    if algorithm != "SHA256" or len(stated) != 32 or length != str(BLOCK_BYTES):
        said = f"length {length!r}, {algorithm!r} checksum of {len(stated)} bytes"
        raise _Again(
            _Mismatch(f"{what}: AWS states {clean(said, 150)}; wanted {BLOCK_BYTES} and SHA256"),
            attempts=_FEW,
        )
    return stated


def _fill(response: BaseHTTPResponse, view: memoryview, what: str) -> None:
    """Read the whole body into `view`. Raises: _Again if it is another length, or stalls."""
    deadline = time.monotonic() + _BODY_SECONDS
    at = 0
    while at < len(view):
        part = response.read(min(_PART, len(view) - at))
        if not part:
            raise _Again(ServiceError(f"{what}: the body ended after {at} bytes"))
        view[at : at + len(part)] = part
        at += len(part)
        if time.monotonic() > deadline:
            raise _Again(ServiceError(f"{what}: {at} bytes in {_BODY_SECONDS:.0f} s"))
    if response.read(1):
        raise _Again(_Mismatch(f"{what}: the body is longer than a block"), attempts=_FEW)


def _body(response: BaseHTTPResponse, limit: int, what: str) -> bytes:
    deadline = time.monotonic() + _BODY_SECONDS
    parts, size = [], 0
    while part := response.read(_PART):
        parts.append(part)
        size += len(part)
        if size > limit:
            raise ServiceError(f"{what}: the answer has more than {limit} bytes")
        if time.monotonic() > deadline:
            raise _Again(ServiceError(f"{what}: {size} bytes in {_BODY_SECONDS:.0f} s"))
    return b"".join(parts)


def _connect(url: str, connections: int) -> tuple[HTTPConnectionPool, str]:
    """Return a pool for the endpoint, through the proxy of the environment, and its base address.

    Who AWS is is judged by `AWS_CA_BUNDLE`, else by the certificates that botocore brings.
    """
    import urllib3
    from botocore.httpsession import get_cert_path

    address = urllib3.util.parse_url(url.rstrip("/"))
    timeout = urllib3.Timeout(connect=_CONNECT_SECONDS, read=_READ_SECONDS)
    options: dict[str, Any] = {"maxsize": connections, "block": True, "timeout": timeout}
    if address.scheme == "https":
        bundle = os.environ.get("AWS_CA_BUNDLE") or get_cert_path(True)
        options |= {"cert_reqs": "CERT_REQUIRED", "ca_certs": bundle}
    proxy = getproxies().get("https") if address.scheme == "https" else None
    if proxy and not proxy_bypass(address.host or ""):
        manager: urllib3.PoolManager = urllib3.ProxyManager(proxy, **options)
    else:
        manager = urllib3.PoolManager(**options)
    return manager.connection_from_url(address.url), address.url


def _signer(endpoint: Endpoint) -> Callable[[str], dict[str, str]]:
    """Return what gives the headers of a signed GET of an address."""
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest

    def sign(url: str) -> dict[str, str]:
        request = AWSRequest("GET", url)
        try:
            frozen = endpoint.credentials.get_frozen_credentials()
            SigV4Auth(frozen, "ebs", endpoint.region).add_auth(request)
        except failures() as e:
            failure = Failure(e)
            raise ServiceError(
                f"cannot get AWS credentials: {failure.message} ({failure.code})",
                code=failure.code, hint=failure.hint,
            ) from e  # fmt: skip
        return dict(request.headers.items())

    return sign
