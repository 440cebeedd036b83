# SPDX-License-Identifier: Apache-2.0
"""One GET by libcurl: the body straight into memory that the caller gives, the rest bounded.

libcurl needs half the processor time of a Python HTTP client for a block of 512 KiB, and most of
it without the interpreter's lock; see `benchmarks/ebs.py`.

Source: libcurl's `curl_easy_setopt` and `libcurl-errors` manual pages; pycurl's documentation.
"""

from __future__ import annotations

import contextlib
import os
import queue
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from evidence_store.model import clean

if TYPE_CHECKING:
    from pycurl import Curl

_CONNECT_SECONDS, _STALL_SECONDS, _WHOLE_SECONDS = 5, 20, 60
_MAX_HEADERS = 100
_OTHER_BYTES = 64 << 10
_RECEIVE_BYTES = 512 << 10


class NoAnswerError(Exception):
    """No whole answer came.

    Attributes:
        received: bytes of the body until then.
        certificate: it is not who it says it is.
    """

    def __init__(self, cause: str, received: int, *, certificate: bool) -> None:
        super().__init__(cause)
        self.received = received
        self.certificate = certificate


@dataclass(frozen=True)
class Answer:
    """A whole answer.

    Attributes:
        status: of HTTP.
        headers: by name in lower case; of a name that came twice, the last.
        body: all of it, or its first bytes if `over`; in the caller's memory where that was given
            and the status is 200.
        over: the body is longer than was allowed; what follows was not read.
    """

    status: int
    headers: Mapping[str, str]
    body: memoryview
    over: bool


class _Receiver:
    """Takes one answer as it comes."""

    def __init__(self, into: memoryview | None, limit: int) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.at = 0
        self.over = False
        self._into = into
        self._limit = limit
        self._other = bytearray()

    def head(self, line: bytes) -> None:
        """Take a header line; a status line begins the answer anew (100, or a proxy's CONNECT)."""
        if line.startswith(b"HTTP/"):
            self.headers.clear()
            code = line.split(None, 2)[1:2]
            self.status = int(code[0]) if code and code[0].isdigit() else 0
        elif len(self.headers) < _MAX_HEADERS:
            name, colon, value = line.partition(b":")
            if colon:
                self.headers[name.decode("latin-1").lower()] = value.strip().decode("latin-1")

    def body(self, part: bytes) -> int | None:
        """Take the next part; a return of other than its length ends the transfer."""
        end = self.at + len(part)
        if self.status == 200 and self._into is not None:
            if end > len(self._into):
                self.over = True
                return 0
            self._into[self.at : end] = part
        else:
            limit = self._limit if self.status == 200 else _OTHER_BYTES
            self._other += part[: limit - self.at]
            if end > limit:
                self.over = True
                return 0
        self.at = end
        return None

    def answer(self) -> Answer:
        if self.status == 200 and self._into is not None:
            return Answer(200, self.headers, self._into[: self.at], self.over)
        return Answer(self.status, self.headers, memoryview(bytes(self._other)), self.over)


class Client:
    """GETs of one server by many threads; each connection is kept and used again."""

    def __init__(self, url: str) -> None:
        """Open nothing yet.

        Who the server is is judged by `AWS_CA_BUNDLE`, else by the certificates that botocore
        brings. The proxy of the environment is used for https.
        """
        self.base = url.rstrip("/")
        self._idle: queue.LifoQueue[Curl] = queue.LifoQueue()
        parts = urlsplit(self.base)
        proxy = getproxies().get("https") if parts.scheme == "https" else None
        self._proxy = "" if not proxy or proxy_bypass(parts.hostname or "") else proxy

    def close(self) -> None:
        """Close what is idle; no thread may be in `get`."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait().close()

    def get(
        self, target: str, headers: Mapping[str, str], into: memoryview | None = None,
        limit: int = 0,
    ) -> Answer:  # fmt: skip
        """Ask for `base` + `target`; the body of a 200 goes `into` memory, else up to `limit`.

        Raises: NoAnswerError: refused, reset, broken off, stalled for 20 s, not whole in 60 s.
        """
        import pycurl

        taken = _Receiver(into, limit)
        with self._handle() as curl:
            curl.setopt(pycurl.URL, self.base + target)
            curl.setopt(pycurl.HTTPHEADER, [f"{name}: {value}" for name, value in headers.items()])
            curl.setopt(pycurl.HEADERFUNCTION, taken.head)
            curl.setopt(pycurl.WRITEFUNCTION, taken.body)
            try:
                curl.perform()
            except pycurl.error as e:
                code, said = (*e.args, "", "")[:2]
                if not (taken.over and code == pycurl.E_WRITE_ERROR):
                    raise NoAnswerError(
                        clean(str(said), 200) or f"libcurl error {code}", taken.at,
                        certificate=code in (
                            pycurl.E_PEER_FAILED_VERIFICATION, pycurl.E_SSL_CACERT_BADFILE,
                        ),
                    ) from e  # fmt: skip
        return taken.answer()

    @contextlib.contextmanager
    def _handle(self) -> Iterator[Curl]:
        try:
            curl = self._idle.get_nowait()
        except queue.Empty:
            curl = self._open()
        try:
            yield curl
        finally:
            self._idle.put(curl)  # libcurl itself closes a connection that is not clean

    def _open(self) -> Curl:
        import pycurl

        curl = pycurl.Curl()
        for option, value in (
            (pycurl.NOSIGNAL, 1),  # no alarm signals: they would reach another thread
            (pycurl.USERAGENT, "impound"),
            (pycurl.PATH_AS_IS, 1),  # what is signed is what is sent
            (pycurl.FOLLOWLOCATION, 0),
            (pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1),
            (pycurl.PROXY, self._proxy),
            (pycurl.CONNECTTIMEOUT, _CONNECT_SECONDS),
            (pycurl.LOW_SPEED_LIMIT, 1),
            (pycurl.LOW_SPEED_TIME, _STALL_SECONDS),
            (pycurl.TIMEOUT, _WHOLE_SECONDS),
            (pycurl.BUFFERSIZE, _RECEIVE_BYTES),
        ):
            curl.setopt(option, value)
        if self.base.startswith("https:"):
            from botocore.httpsession import get_cert_path

            curl.setopt(pycurl.CAINFO, os.environ.get("AWS_CA_BUNDLE") or get_cert_path(True))
        return curl
