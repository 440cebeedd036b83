# SPDX-License-Identifier: Apache-2.0
"""How packets get to a host, and whether they may: security group rules, sockets, tunnels.

The rules of the target's groups are judged before a packet leaves: a port that they do not permit
is refused with the rule that would permit it.

    direct            TCP, from the forensics subnet or a peered one, or by an HTTP proxy there
    jump host         a TCP connection that another SSH host opens for us
    endpoint          an EC2 Instance Connect Endpoint: TCP in binary messages of a WebSocket

Source: EC2 User Guide, "Security group rules", "Connect using EC2 Instance Connect Endpoint"; AWS
Signature Version 4 by query parameters; RFC 6455; RFC 9110 §9.3.6 (CONNECT).
"""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlencode

from acquisition.errors import AcquisitionError
from evidence_store.model import clean

if TYPE_CHECKING:
    from websocket import WebSocket

    from acquisition.remote import Remote

TUNNEL_SECONDS = 3600  # the longest that an endpoint keeps a tunnel; then it is opened again
_CONNECT_SECONDS = 10.0


class UnreachableError(AcquisitionError):
    """Nothing answers: closed port, no route, no answer in time."""


class PortClosedError(AcquisitionError):
    """The target's groups do not let us in. Nothing was sent."""


class Stream(Protocol):
    """What an SSH transport needs of a connection."""

    def send(self, data: bytes, /) -> int:
        """Send some of `data`; return how much."""

    def recv(self, size: int, /) -> bytes:
        """Return up to `size` bytes, b"" at the end. Raises: TimeoutError."""

    def settimeout(self, seconds: float | None, /) -> None:
        """Set how long `send` and `recv` wait."""

    def close(self) -> None:
        """Close it."""


Dial = Callable[[], Stream]


@dataclass(frozen=True)
class Permit:
    """A rule that lets us in, and what could not be judged of it."""

    rule: str
    note: str = ""


def permitted(rules: Iterable[str], source: str, port: int) -> Permit:
    """Return the ingress rule that lets `source` reach a TCP port. Pure.

    Args:
        rules: of all groups of the target, as isolation writes them:
            `ingress tcp 22 10.1.0.0/24`, `ingress -1 all sg-…`.
        source: the address that the target sees.
        port: wanted.

    Raises: PortClosedError with the rule that would permit it.

    >>> permitted(["egress -1 all 127.0.0.1/32", "ingress tcp 22 10.1.0.0/24"], "10.1.0.9", 22).rule
    'ingress tcp 22 10.1.0.0/24'
    """
    address = ip_address(source)
    by_reference = ""
    for rule in rules:
        direction, protocol, ports, whom = (*rule.split(" "), "", "", "", "")[:4]
        if direction != "ingress" or protocol not in ("tcp", "6", "-1") or not _in(port, ports):
            continue
        try:
            network = ip_network(whom)
        except ValueError:
            by_reference = by_reference or rule
            continue
        if address.version == network.version and address in network:
            return Permit(rule)
    if by_reference:
        whom = by_reference.rpartition(" ")[2]
        return Permit(by_reference, f"who belongs to {whom} was not checked")
    wanted = f"ingress tcp {port} {source}/{address.max_prefixlen}"
    raise PortClosedError(
        f"the groups of the target do not permit {source} to reach port {port}; nothing was sent",
        hint=f"permitted it would be by: {wanted}",
    )


def _in(port: int, ports: str) -> bool:
    if ports == "all":
        return True
    low, _, high = ports.partition("-")
    try:
        return int(low) <= port <= int(high or low)
    except ValueError:
        return False


def own_address(host: str) -> str:
    """Return the local address from which packets to `host` would leave. Sends nothing.

    Raises: UnreachableError without a route.
    """
    try:
        family, _, _, _, place = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as s:
            s.connect(place)  # of a datagram socket: only a look at the routes
            return str(s.getsockname()[0])
    except OSError as e:
        raise UnreachableError(f"there is no route to {clean(host, 80)}: {e.strerror}") from e


def connect(
    host: str, port: int, proxy: str = "", seconds: float = _CONNECT_SECONDS
) -> socket.socket:  # fmt: skip
    """Connect by TCP.

    Args:
        host: address or name.
        port: of it.
        proxy: `HOST:PORT` of an HTTP proxy that connects in our place (CONNECT), or "".
        seconds: how long to wait for an answer.

    Raises: ConnectionRefusedError: refused, by the host or as the proxy says (502). TimeoutError.
        OSError: everything else.
    """
    if not proxy:
        return socket.create_connection((host, port), seconds)
    name, _, number = proxy.rpartition(":")
    made = socket.create_connection((name.strip("[]"), int(number)), seconds)
    try:
        whom = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        made.sendall(f"CONNECT {whom} HTTP/1.1\r\nHost: {whom}\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head and len(head) < 8192:
            byte = made.recv(1)  # what follows the head is not the proxy's
            if not byte:
                raise ConnectionResetError(errno.ECONNRESET, f"the proxy {proxy} hung up")
            head += byte
        status = head.split(b" ", 2)[1:2]
        if status == [b"502"]:
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"refused, says the proxy {proxy}")
        if status == [b"504"]:
            raise TimeoutError(errno.ETIMEDOUT, f"no answer, says the proxy {proxy}")
        if not status or not status[0].startswith(b"2"):
            said = clean(head.partition(b"\r\n")[0].decode("latin-1"), 80)
            raise ConnectionAbortedError(errno.ECONNABORTED, f"the proxy {proxy} says {said}")
    except BaseException:
        made.close()
        raise
    return made


def direct(host: str, port: int, proxy: str = "") -> Dial:
    """Connect by TCP. A peer that no longer answers is noticed by the kernel within a minute.

    Arguments as of `connect`.
    """

    def dial() -> Stream:
        try:
            made = connect(host, port, proxy)
        except ConnectionRefusedError as e:
            raise UnreachableError(
                f"{host} refuses connections to port {port}", hint="is sshd running there?"
            ) from e
        except TimeoutError as e:
            raise UnreachableError(
                f"{host} does not answer on port {port}",
                hint="groups, network ACL and routes between here and there: impound plan memory",
            ) from e
        except OSError as e:
            raise UnreachableError(f"cannot reach {host} port {port}: {e.strerror}") from e
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000)
        return made

    return dial


def through(jump: Remote, host: str, port: int) -> Dial:
    """Let a jump host connect. It sees only what is encrypted between us and the target."""

    def dial() -> Stream:
        jump.ensure()
        return jump.forward(host, port)

    return dial


def endpoint(session: Any, region: str, endpoint_id: str, dns_name: str, address: str, port: int,
             ) -> Dial:  # fmt: skip
    """Connect through an EC2 Instance Connect Endpoint.

    Args:
        session: boto3 session of the account that owns the endpoint.
        region: of the endpoint.
        endpoint_id: `eice-…`.
        dns_name: its DnsName, as DescribeInstanceConnectEndpoints says it.
        address: private address of the target.
        port: of the target; endpoints permit 22 and 3389.
    """

    def dial() -> Stream:
        import websocket

        # Without TLS only to what stands in for AWS on this machine.
        scheme = "ws" if dns_name.startswith("127.0.0.1:") else "wss"
        url = tunnel_url(session, region, endpoint_id, dns_name, address, port, scheme=scheme)
        try:
            made = websocket.create_connection(
                url, timeout=_CONNECT_SECONDS, enable_multithread=True,
                sockopt=((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),),
            )  # fmt: skip
        except (websocket.WebSocketException, OSError) as e:
            raise UnreachableError(
                f"{endpoint_id} opens no tunnel to {address}: {clean(str(e), 200)}",
                hint="right ec2-instance-connect:OpenTunnel, and the endpoint's own group",
            ) from e
        return Tunnel(made)

    return dial


def tunnel_url(
    session: Any, region: str, endpoint_id: str, dns_name: str, address: str, port: int,
    *, scheme: str = "wss",
) -> str:  # fmt: skip
    """Return the signed URL of a tunnel, valid for 60 s."""
    from botocore.auth import SigV4QueryAuth
    from botocore.awsrequest import AWSRequest

    query = urlencode({
        "instanceConnectEndpointId": endpoint_id, "maxTunnelDuration": TUNNEL_SECONDS,
        "privateIpAddress": address, "remotePort": port,
    })  # fmt: skip
    request = AWSRequest("GET", f"{scheme}://{dns_name}/openTunnel?{query}")
    credentials = session.get_credentials().get_frozen_credentials()
    SigV4QueryAuth(credentials, "ec2-instance-connect", region, expires=60).add_auth(request)
    return str(request.url)


class Tunnel:
    """A WebSocket whose binary messages carry a TCP stream, as a socket."""

    def __init__(self, opened: WebSocket) -> None:
        self._socket = opened
        self._rest = b""
        self._lock = threading.Lock()
        self._closed = False  # paramiko asks its socket for it when it ends its thread

    def send(self, data: bytes, /) -> int:
        """See `Stream`."""
        with self._lock:
            self._socket.send_binary(data)
        return len(data)

    def recv(self, size: int, /) -> bytes:
        """See `Stream`."""
        import websocket

        while not self._rest:
            try:
                code, message = self._socket.recv_data()
            except websocket.WebSocketTimeoutException as e:
                raise TimeoutError from e
            except (websocket.WebSocketException, OSError):
                return b""
            if code == websocket.ABNF.OPCODE_CLOSE:
                return b""
            self._rest = bytes(message)
        out, self._rest = self._rest[:size], self._rest[size:]
        return out

    def settimeout(self, seconds: float | None, /) -> None:
        """See `Stream`."""
        self._socket.settimeout(seconds)

    def close(self) -> None:
        """See `Stream`."""
        import websocket

        self._closed = True
        with contextlib.suppress(websocket.WebSocketException, OSError):
            self._socket.close(timeout=1)
