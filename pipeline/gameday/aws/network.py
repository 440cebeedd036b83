# SPDX-License-Identifier: Apache-2.0
"""Packets between people and simulated instances: a proxy that enforces what the accounts say.

A real machine stands behind a simulated instance (`attach`). Who wants to reach it stands at a
`vantage`, an address in the simulated network, and speaks HTTP CONNECT to the port on 127.0.0.1
that belongs to it: `CONNECT 172.31.0.9:22 HTTP/1.1`. What groups or ACLs do not let through is not
answered, as on AWS; what is let through and finds no listener is refused (502). Each packet is
judged by the accounts as they are then: `flows`. What is not let through any more is held back, so
a flow stalls, and goes on if it may again.

SendSSHPublicKey puts a key where the machine's sshd asks for keys, for 60 s. An Instance Connect
Endpoint is made by CreateInstanceConnectEndpoint; its tunnels come from its own address.

Left out: UDP and ICMP, routes, the endpoint's own groups; of a tunnel's signature is checked who
signed and when, not the signature itself.

Source: EC2 Instance Connect API Reference (SendSSHPublicKey); EC2 API Reference
(CreateInstanceConnectEndpoint); EC2 User Guide, "Connect using EC2 Instance Connect Endpoint"; RFC
9110 §9.3.6 (CONNECT); RFC 6455.
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from moto.ec2.models import EC2Backend, ec2_backends
from moto.ec2.models.elastic_network_interfaces import NetworkInterface
from moto.sts.models import sts_backends
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    RejectConnection,
    Request,
)

from pipeline.gameday.aws import call as calls
from pipeline.gameday.aws.call import Answer, Call, after, before
from pipeline.gameday.aws.conditions import conditions
from pipeline.gameday.aws.flows import (
    ALWAYS_TRACKED,
    End,
    Entry,
    Face,
    Flow,
    Rule,
    begins,
    goes_on,
    is_tracked,
)

KEY_SECONDS = 60
_CHUNK = 1 << 16
_HEAD_BYTES = 8192
_PORTS = (22, 3389)  # of an endpoint
_LOOK_SECONDS = 0.2
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_KEY = re.compile(
    r"(ssh-(ed25519|rsa)|ecdsa-sha2-nistp(256|384|521)) [A-Za-z0-9+/=]{16,4000}( .*)?"
)


@dataclass
class Machine:
    """What stands behind an instance: its ports on 127.0.0.1, and the folder of its keys."""

    ports: Mapping[int, int]
    keys: Path | None


@dataclass
class Running:
    """A flow that began."""

    flow: Flow
    tracked: dict[bool, bool] = field(default_factory=dict)  # end (outward) -> tracked
    passes: bool = True
    seen: int = -1  # the version of the network that it was judged by
    last: float = 0.0
    passed: int = 0
    over: bool = False


class Network:
    """Machines, vantages, endpoints and flows of one stand-in."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._machines: dict[str, Machine] = {}
        self._hosts: dict[str, Mapping[int, int]] = {}
        self._servers: list[_Server] = []
        self._running: list[Running] = []
        self._version = 0
        self.endpoints: dict[str, dict[str, Any]] = {}

    def reset(self) -> None:
        """Nothing stands anywhere; what listens is closed."""
        with self._changed:
            servers, self._servers = self._servers, []
            self._machines.clear()
            self._hosts.clear()
            self.endpoints.clear()
            for one in self._running:
                one.over = True
            self._running.clear()
            self.change()
        for server in servers:
            server.shutdown()
            server.server_close()

    def change(self) -> None:
        """Something in the accounts changed: flows are judged again."""
        with self._changed:
            self._version += 1
            self._changed.notify_all()

    # -- what stands where -----------------------------------------------------------------------

    def attach(self, instance: str, ports: Mapping[int, int], keys: str = "") -> None:
        """Put a machine behind an instance. Raises: ValueError.

        Args:
            instance: of any account.
            ports: of the instance -> on 127.0.0.1.
            keys: folder in which its sshd finds keys: files named after users, lines "EXPIRES KEY".
        """
        if not any(instance == i.id for _, i in _instances()):
            raise ValueError(f"no such instance: {instance}")
        with self._lock:
            self._machines[instance] = Machine(dict(ports), Path(keys) if keys else None)
        self.change()

    def place(self, address: str, ports: Mapping[int, int]) -> None:
        """Put a machine at an address that is no instance's: somebody on the Internet."""
        with self._lock:
            self._hosts[address] = dict(ports)

    def vantage(self, address: str, via: str = "") -> int:
        """Let somebody stand at an address; return the port of its proxy. Raises: ValueError.

        Args:
            address: where flows come from; that of an interface: flows from its instance.
            via: one of ALWAYS_TRACKED, or "".
        """
        if via and via not in ALWAYS_TRACKED:
            raise ValueError(f"no such way: {via}; one of {', '.join(sorted(ALWAYS_TRACKED))}")
        return self._serve(lambda c: self._proxy(c, address, via))

    def _serve(self, handle: Callable[[socket.socket], None]) -> int:
        server = _Server(handle)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        with self._lock:
            self._servers.append(server)
        return int(server.server_address[1])

    def machine(self, instance: str) -> Machine | None:
        """Return what stands behind an instance."""
        with self._lock:
            return self._machines.get(instance)

    def flows(self) -> list[dict[str, Any]]:
        """What flows there are, as they would be judged now."""
        with self._lock:
            for one in self._running:
                self._judge(one)
            return [
                {
                    "source": r.flow.source, "destination": r.flow.destination,
                    "port": r.flow.port, "via": r.flow.via, "tracked": all(r.tracked.values()),
                    "passes": r.passes, "bytes": r.passed,
                } for r in self._running
            ]  # fmt: skip

    # -- judging ---------------------------------------------------------------------------------

    def begin(self, flow: Flow) -> Running | None:
        """Return a flow that both ends let begin, or None."""
        with self._lock:
            ends = _ends(flow)
            if not all(begins(flow, e) for e in ends):
                return None
            made = Running(flow, {e.outward: is_tracked(flow, e) for e in ends},
                           seen=self._version, last=conditions.now())  # fmt: skip
            self._running.append(made)
            return made

    def end(self, running: Running) -> None:
        """It is over."""
        with self._lock:
            running.over = True
            with contextlib.suppress(ValueError):
                self._running.remove(running)

    def let(self, running: Running, size: int, waiting: socket.socket) -> bool:
        """Wait until `size` bytes may pass; False if `waiting` is closed or all is over before."""
        with self._changed:
            while not running.over:
                self._judge(running)
                if running.passes:
                    running.last = conditions.now()
                    running.passed += size
                    return True
                self._changed.wait(_LOOK_SECONDS)
                if _hung_up(waiting):
                    return False
            return False

    def _judge(self, one: Running) -> None:
        idle = conditions.now() - one.last
        if one.seen == self._version and idle < 1.0:
            return
        one.seen = self._version
        ends = {e.outward: e for e in _ends(one.flow)}
        one.passes = ends.keys() == one.tracked.keys()  # an address that is gone leads nowhere
        for outward, end in ends.items():
            passes, tracked = goes_on(
                one.flow, end, tracked=one.tracked.get(outward, False), idle_s=idle
            )
            one.tracked[outward] = tracked
            one.passes = one.passes and passes

    def _there(self, address: str) -> Mapping[int, int] | None:
        """Return the ports of what stands at an address; None if nothing does."""
        with self._lock:
            for instance, machine in self._machines.items():
                if any(address in _addresses(b, eni) for b, eni in _interfaces(instance)):
                    return machine.ports
            return self._hosts.get(address)

    # -- connections -----------------------------------------------------------------------------

    def _proxy(self, client: socket.socket, source: str, via: str) -> None:
        asked = _connect_head(client)
        if asked is None:
            client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            return
        flow = Flow(source, *asked, via)
        running = self.begin(flow) if self._there(flow.destination) is not None else None
        if running is None:
            self._hold(client)
            return
        try:
            behind = self._dial(flow)
            if behind is None:
                client.sendall(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
                return
            with behind:
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                both(
                    lambda: self._pump(running, client, behind.sendall, behind),
                    lambda: self._pump(running, behind, client.sendall, client),
                )
        finally:
            self.end(running)

    def _dial(self, flow: Flow) -> socket.socket | None:
        port = (self._there(flow.destination) or {}).get(flow.port)
        if port is None:
            return None
        try:
            return socket.create_connection(("127.0.0.1", port), 5)
        except OSError:
            return None

    def _hold(self, client: socket.socket) -> None:
        """Nobody answers: until the caller gives up, or the stand-in ends."""
        with self._changed:
            servers = self._servers
            while servers is self._servers and not _hung_up(client):
                self._changed.wait(_LOOK_SECONDS)

    def _pump(
        self, running: Running, one: socket.socket, send: Callable[[bytes], Any],
        other: socket.socket,
    ) -> None:  # fmt: skip
        one.settimeout(None)
        with contextlib.suppress(OSError):
            while data := one.recv(_CHUNK):
                if not self.let(running, len(data), one):
                    break
                send(data)
        # The end of a flow is a packet too: one that is held back does not arrive.
        if self.let(running, 0, one):
            with contextlib.suppress(OSError):
                other.shutdown(socket.SHUT_WR)

    # -- endpoints -------------------------------------------------------------------------------

    def open_endpoint(self, name: str, address: str, account: str, vpc: str) -> int:
        """Let an endpoint take tunnels; return its port."""
        return self._serve(lambda c: self._tunnel(c, name, address, account, vpc))

    def _tunnel(self, client: socket.socket, name: str, address: str, account: str, vpc: str,
                ) -> None:  # fmt: skip
        ws = WSConnection(ConnectionType.SERVER)
        request = next((e for e in _events(client, ws) if isinstance(e, Request)), None)
        if request is None:
            return
        asked = {k: v[0] for k, v in parse_qs(urlsplit(request.target).query).items()}
        if _tunnel_refusal(asked, name, account):
            client.sendall(ws.send(RejectConnection(status_code=403)))
            return
        flow = Flow(address, asked["privateIpAddress"], int(asked["remotePort"]))
        running = self.begin(flow) if vpc == _vpc_of(flow.destination) else None
        behind = self._dial(flow) if running else None
        client.sendall(ws.send(AcceptConnection()))
        if running is None or behind is None:
            client.sendall(ws.send(CloseConnection(1011, "the target does not answer")))
            client.settimeout(5)
            client.recv(_CHUNK)  # its answer
            return
        writing = threading.Lock()

        def to_client(data: bytes) -> None:
            with writing:
                client.sendall(ws.send(BytesMessage(data)))

        def from_client() -> None:
            with contextlib.suppress(OSError):
                for event in _events(client, ws):
                    if isinstance(event, BytesMessage):
                        if not self.let(running, len(event.data), client):
                            break
                        behind.sendall(bytes(event.data))
                    elif isinstance(event, Ping):
                        with writing:
                            client.sendall(ws.send(event.response()))
                    elif isinstance(event, CloseConnection):
                        break
            with contextlib.suppress(OSError):
                behind.shutdown(socket.SHUT_WR)

        def from_machine() -> None:
            self._pump(running, behind, to_client, client)

        with behind:
            both(from_client, from_machine)
        self.end(running)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, handle: Callable[[socket.socket], None]) -> None:
        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    handle(self.request)

        super().__init__(("127.0.0.1", 0), Handler)


def both(one: Callable[[], None], other: Callable[[], None]) -> None:
    """Run two functions at once, to the end of both."""
    beside = threading.Thread(target=one, daemon=True)
    beside.start()
    other()
    beside.join()


def _hung_up(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(0))


def _connect_head(client: socket.socket) -> tuple[str, int] | None:
    """Read the head of a request; return what it wants to reach."""
    client.settimeout(10)
    head = b""
    while b"\r\n\r\n" not in head:
        more = client.recv(1)  # what follows the head is the flow's
        if not more or len(head) > _HEAD_BYTES:
            return None
        head += more
    found = re.match(rb"CONNECT \[?([0-9a-f.:]+?)\]?:(\d{1,5}) HTTP/1\.[01]\r\n", head)
    return (found[1].decode(), int(found[2])) if found else None


def _events(client: socket.socket, ws: WSConnection) -> Iterator[Any]:
    client.settimeout(None)
    while data := client.recv(_CHUNK):
        ws.receive_data(data)
        yield from ws.events()


def _tunnel_refusal(asked: Mapping[str, str], name: str, account: str) -> str:
    """Say why a tunnel is refused: who signed, when, for which endpoint and port."""
    signer = asked.get("X-Amz-Credential", "").split("/")
    session = sts_backends[account]["aws"].get_assumed_role_from_access_key(signer[0])
    if session is None or signer[-2:] != ["ec2-instance-connect", "aws4_request"]:
        return "not signed by a session of the account"
    try:
        signed = datetime.strptime(asked["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        late = time.time() > signed.timestamp() + min(int(asked["X-Amz-Expires"]), 60)
        port = int(asked["remotePort"])
    except (KeyError, ValueError):
        return "the request is not complete"
    if late or not asked.get("X-Amz-Signature"):
        return "the signature has expired"
    if asked.get("instanceConnectEndpointId") != name or port not in _PORTS:
        return "not of this endpoint"
    return "" if asked.get("privateIpAddress") else "no address"


# -- what the accounts say


def _instances() -> Iterator[tuple[EC2Backend, Any]]:
    for regions in list(ec2_backends.values()):
        for backend in list(regions.values()):
            for reservation in list(backend.reservations.values()):
                for instance in list(reservation.instances):
                    yield backend, instance


def _interfaces(instance: str = "") -> Iterator[tuple[EC2Backend, NetworkInterface]]:
    for regions in list(ec2_backends.values()):
        for backend in list(regions.values()):
            for eni in list(backend.enis.values()):
                if eni.instance and instance in ("", eni.instance.id):
                    yield backend, eni


def _addresses(backend: EC2Backend, eni: NetworkInterface) -> frozenset[str]:
    private = {str(a["PrivateIpAddress"]) for a in eni.private_ip_addresses}
    private.add(str(eni.private_ip_address))
    public = {a.public_ip for a in backend.addresses
              if a.association_id and a.eni is not None and a.eni.id == eni.id}  # fmt: skip
    return frozenset(private | public)


def _face(backend: EC2Backend, eni: NetworkInterface) -> Face:
    rules = [
        Rule(
            r.is_egress, str(r.ip_protocol), *_range(r),
            r.cidr_ipv4 or r.cidr_ipv6 or str(r.source_group.get("GroupId", "")),
        )
        for group in eni._group_set for r in (*group.ingress_rules, *group.egress_rules)
    ]  # fmt: skip
    entries = [
        Entry(
            int(e.rule_number), str(e.egress).lower() == "true", e.rule_action == "allow",
            str(e.protocol), int(e.port_range_from or 0), int(e.port_range_to or 65535),
            e.cidr_block or e.ipv6_cidr_block or "",
        )
        for acl in backend.network_acls.values()
        if any(a.subnet_id == eni.subnet.id for a in acl.associations)
        for e in acl.network_acl_entries
    ]  # fmt: skip
    up = eni.instance is not None and eni.instance._state.name == "running"
    return Face(_addresses(backend, eni), frozenset(g.id for g in eni._group_set), tuple(rules),
                tuple(entries), up)  # fmt: skip


def _range(rule: Any) -> tuple[int, int]:
    if rule.ip_protocol == "-1" or rule.from_port is None:
        return 0, 65535
    return int(rule.from_port), int(rule.to_port)


def _ends(flow: Flow) -> list[End]:
    """Those ends of a flow that are interfaces."""
    with calls.one_at_a_time("ec2"):
        held = {}
        for backend, eni in _interfaces():
            for address in _addresses(backend, eni) & {flow.source, flow.destination}:
                held[address] = _face(backend, eni)
    nobody = frozenset[str]()
    ends = []
    for own, peer, outward in (
        (flow.source, flow.destination, True), (flow.destination, flow.source, False),
    ):  # fmt: skip
        if own in held:
            groups = held[peer].groups if peer in held else nobody
            ends.append(End(held[own], outward, peer, groups))
    return ends


def _vpc_of(address: str) -> str:
    return next((str(eni.subnet.vpc_id) for backend, eni in _interfaces()
                 if address in _addresses(backend, eni)), "")  # fmt: skip


network = Network()


@after("ec2", "*")
def flows_are_judged_again(call: Call, answer: Answer) -> Answer:
    """After whatever may have changed something."""
    if not call.operation.startswith(("Describe", "Get")):
        network.change()
    return answer


# -- EC2 Instance Connect


@before("ec2-instance-connect", "SendSSHPublicKey")
def a_key_for_a_minute(call: Call) -> Answer | None:
    """Show a key to the machine behind an instance for 60 s; moto takes anything."""
    given = call.parameters
    name, user = str(given.get("InstanceId", "")), str(given.get("InstanceOSUser", ""))
    key = str(given.get("SSHPublicKey", "")).strip()
    found = next(
        (i for b, i in _instances() if b.account_id == call.account and i.id == name), None
    )
    if found is None:
        return call.error(400, "EC2InstanceNotFoundException", "Instance not found")
    if found._state.name != "running":
        return call.error(
            400, "EC2InstanceStateInvalidException", f"Instance {name} is not running"
        )
    zone = given.get("AvailabilityZone")
    if not _USER.fullmatch(user) or not _KEY.fullmatch(key):
        return call.error(400, "InvalidArgsException", "user or key is not valid")
    if zone and zone != found._placement.zone:
        return call.error(400, "EC2InstanceNotFoundException", f"Instance not found in {zone}")
    machine = network.machine(name)
    if machine is None or machine.keys is None:
        return call.error(
            400, "EC2InstanceUnavailableException", f"no machine stands behind {name}"
        )
    with (machine.keys / user).open("a") as f:
        f.write(f"{int(time.time()) + KEY_SECONDS} {key}\n")
    return None
