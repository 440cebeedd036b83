# SPDX-License-Identifier: Apache-2.0
"""The proxy between people and instances: each rule, on real connections."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest

from pipeline.gameday.aws.accounts import AUDIT, MEMBER
from pipeline.gameday.aws.stand import StandError

OUTSIDE, FORENSICS = "198.51.100.7", "10.99.0.10"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBxI2pzsh0Yt1mFh4VbJgD1pXmZ4A0qQd0b0c1Qe0yqR"
SILENCE_S = 0.3


@pytest.fixture
def aws(aws_in_process):
    """In this process; that the other mode tells the same network is tested once."""
    return aws_in_process


class Echo:
    """A TCP server on 127.0.0.1 that gives back what it gets."""

    def __init__(self):
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.server.accept()
                threading.Thread(target=self.answer, args=(client,), daemon=True).start()

    @staticmethod
    def answer(client):
        with client, contextlib.suppress(OSError):
            while data := client.recv(65536):
                client.sendall(data)


@pytest.fixture(scope="module")
def echo():
    made = Echo()
    yield made
    made.server.shutdown(socket.SHUT_RDWR)
    made.server.close()


class Caller:
    """Somebody at a vantage who connects to an address."""

    def __init__(self, port, address, inside):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.sendall(f"CONNECT {address}:{inside} HTTP/1.1\r\n\r\n".encode())

    def said(self, seconds=10.0):
        """The status of the answer; "" if there is none so long."""
        self.socket.settimeout(seconds)
        head = b""
        try:
            while b"\r\n\r\n" not in head:
                more = self.socket.recv(1)
                if not more:
                    return head.decode()
                head += more
        except TimeoutError:
            return ""
        return head.split()[1].decode()

    def passes(self, seconds=10.0):
        """Whether a word comes back."""
        self.socket.settimeout(seconds)
        self.socket.sendall(b"x")
        try:
            return self.socket.recv(1) == b"x"
        except TimeoutError:
            return False


@pytest.fixture
def call(aws):
    made = []
    ports = {}

    def connect(address, inside=22, source=FORENSICS, via=""):
        if (source, via) not in ports:
            ports[source, via] = aws.vantage(source, via)
        made.append(Caller(ports[source, via], address, inside))
        return made[-1]

    yield connect
    for one in made:
        one.socket.close()


@pytest.fixture
def groups(member):
    """Make a group: rules as (outward, port or None for all, CIDR)."""
    vpc = member.describe_vpcs()["Vpcs"][0]["VpcId"]
    number = iter(range(100))

    def make(*rules):
        made = member.create_security_group(
            GroupName=f"g{next(number)}", Description="d", VpcId=vpc
        )["GroupId"]
        member.revoke_security_group_egress(
            GroupId=made, IpPermissions=[{"IpProtocol": "-1",
                                          "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}])  # fmt: skip
        for outward, port, cidr in rules:
            allow = (member.authorize_security_group_egress if outward
                     else member.authorize_security_group_ingress)  # fmt: skip
            ports = {"FromPort": port, "ToPort": port} if port else {}
            whom = (
                {"UserIdGroupPairs": [{"GroupId": cidr}]} if cidr.startswith("sg-")
                else {"IpRanges": [{"CidrIp": cidr}]}
            )  # fmt: skip
            allow(GroupId=made, IpPermissions=[
                {"IpProtocol": "tcp" if port else "-1", **ports, **whom}])  # fmt: skip
        return made

    return make


@pytest.fixture
def web(aws, member, instance, groups, echo, tmp_path):
    """An instance that listens to the forensics network only; its id, interface and address."""
    name, _ = instance(SecurityGroupIds=[groups((False, 22, f"{FORENSICS}/32"))])
    aws.attach(name, {22: echo.port, 4444: echo.port, 9: 1}, tmp_path)
    [found] = member.describe_network_interfaces(
        Filters=[{"Name": "attachment.instance-id", "Values": [name]}]
    )["NetworkInterfaces"]
    return name, found["NetworkInterfaceId"], found["PrivateIpAddress"], found["SubnetId"]


def test_only_what_a_rule_permits_is_answered(call, web):
    assert call(web[2]).said() == "200"
    assert call(web[2], 4444).said(SILENCE_S) == ""
    assert call(web[2], source=OUTSIDE).said(SILENCE_S) == ""


def test_a_permitted_port_without_a_listener_is_refused(member, call, web, groups):
    member.modify_network_interface_attribute(
        NetworkInterfaceId=web[1], Groups=[groups((False, None, "0.0.0.0/0"))]
    )
    assert call(web[2], 9).said() == "502"
    assert call(web[2], 23).said() == "502"


def test_an_address_where_nothing_stands_does_not_answer(call, web):
    assert call("203.0.113.1").said(SILENCE_S) == ""


def test_a_tracked_flow_survives_isolation_and_a_new_one_does_not_begin(
    aws, member, call, web, groups
):
    old = call(web[2])
    assert (old.said(), old.passes()) == ("200", True)
    member.modify_network_interface_attribute(NetworkInterfaceId=web[1], Groups=[groups()])
    assert old.passes()
    assert call(web[2]).said(SILENCE_S) == ""
    [flow] = aws.flows()
    assert (flow["tracked"], flow["passes"], flow["source"]) == (True, True, FORENSICS)


def test_an_untracked_flow_stalls_at_once_and_goes_on_if_it_may_again(
    aws, member, call, web, groups
):
    every = groups((False, 22, "0.0.0.0/0"), (True, None, "0.0.0.0/0"))
    member.modify_network_interface_attribute(NetworkInterfaceId=web[1], Groups=[every])
    old = call(web[2], source=OUTSIDE)
    assert (old.said(), old.passes()) == ("200", True)
    member.modify_network_interface_attribute(NetworkInterfaceId=web[1], Groups=[groups()])
    assert not old.passes(SILENCE_S)
    assert [f["passes"] for f in aws.flows()] == [False]
    member.modify_network_interface_attribute(NetworkInterfaceId=web[1], Groups=[every])
    old.socket.settimeout(10)
    assert old.socket.recv(1) == b"x"


def test_a_rule_that_is_revoked_counts_like_a_swap(aws, member, call, web, groups):
    every = groups((False, 22, "0.0.0.0/0"), (True, None, "0.0.0.0/0"))
    member.modify_network_interface_attribute(NetworkInterfaceId=web[1], Groups=[every])
    old = call(web[2], source=OUTSIDE)
    assert old.said() == "200"
    member.revoke_security_group_ingress(GroupId=every, IpPermissions=[{
        "IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "0.0.0.0/0"}],
    }])  # fmt: skip
    assert not old.passes(SILENCE_S)


def test_through_a_nat_gateway_even_allow_all_then_isolation_cuts_nothing(
    aws, member, call, web, groups, echo
):
    every = groups((False, None, "0.0.0.0/0"), (True, None, "0.0.0.0/0"))
    member.modify_network_interface_attribute(NetworkInterfaceId=web[1], Groups=[every])
    aws.place("203.0.113.66", {443: echo.port})
    plain = call("203.0.113.66", 443, source=web[2])
    by_nat = call("203.0.113.66", 443, source=web[2], via="nat-gateway")
    assert (plain.said(), by_nat.said()) == ("200", "200")
    member.modify_network_interface_attribute(NetworkInterfaceId=web[1], Groups=[groups()])
    assert not plain.passes(SILENCE_S)
    assert by_nat.passes()
    assert call("203.0.113.66", 443, source=web[2]).said(SILENCE_S) == ""


def test_a_deny_in_the_acl_cuts_a_tracked_flow(aws, member, call, web):
    old = call(web[2])
    assert (old.said(), old.passes()) == ("200", True)
    [acl] = member.describe_network_acls(
        Filters=[{"Name": "association.subnet-id", "Values": [web[3]]}]
    )["NetworkAcls"]
    where = {"NetworkAclId": acl["NetworkAclId"], "RuleNumber": 1, "Egress": False}
    member.create_network_acl_entry(
        **where, Protocol="-1", RuleAction="deny", CidrBlock=f"{FORENSICS}/32"
    )
    assert not old.passes(SILENCE_S)
    assert call(web[2]).said(SILENCE_S) == ""
    member.delete_network_acl_entry(**where)
    old.socket.settimeout(10)
    assert old.socket.recv(1) == b"x"


def test_a_rule_by_group_lets_members_of_it_in(aws, member, call, web, groups, instance):
    web_group = groups((True, None, "0.0.0.0/0"))
    other, _ = instance(SecurityGroupIds=[web_group])
    [found] = member.describe_network_interfaces(
        Filters=[{"Name": "attachment.instance-id", "Values": [other]}]
    )["NetworkInterfaces"]
    member.modify_network_interface_attribute(
        NetworkInterfaceId=web[1], Groups=[groups((False, 22, web_group))]
    )
    assert call(web[2], source=found["PrivateIpAddress"]).said() == "200"
    assert call(web[2], source=FORENSICS).said(SILENCE_S) == ""


def test_a_public_address_leads_there_while_it_is_associated(member, call, web):
    address = member.allocate_address(Domain="vpc")
    made = member.associate_address(AllocationId=address["AllocationId"], NetworkInterfaceId=web[1])
    old = call(address["PublicIp"])
    assert (old.said(), old.passes()) == ("200", True)
    member.disassociate_address(AssociationId=made["AssociationId"])
    assert not old.passes(SILENCE_S)
    assert call(address["PublicIp"]).said(SILENCE_S) == ""


def test_nothing_reaches_an_instance_that_is_stopped(member, call, web):
    member.stop_instances(InstanceIds=[web[0]])
    assert call(web[2]).said(SILENCE_S) == ""


def test_a_flow_that_nobody_used_for_five_days_is_forgotten(aws, member, call, web, groups):
    old = call(web[2])
    assert old.said() == "200"
    member.modify_network_interface_attribute(NetworkInterfaceId=web[1], Groups=[groups()])
    aws.advance(432_001)
    assert not old.passes(SILENCE_S)


def test_the_end_of_a_flow_reaches_the_other_side(call, web):
    one = call(web[2])
    assert one.said() == "200"
    one.socket.sendall(b"last words")
    one.socket.shutdown(socket.SHUT_WR)
    one.socket.settimeout(10)
    heard = b""
    while more := one.socket.recv(100):
        heard += more
    assert heard == b"last words"


@pytest.mark.parametrize("head", [b"GET / HTTP/1.1\r\n\r\n", b"CONNECT evil HTTP/1.1\r\n\r\n"])
def test_only_connect_is_understood(aws, head):
    with socket.create_connection(("127.0.0.1", aws.vantage(OUTSIDE))) as s:
        s.settimeout(10)
        s.sendall(head)
        assert s.recv(100).startswith(b"HTTP/1.1 400 ")


def test_what_is_asked_wrongly_is_refused(aws):
    with pytest.raises(StandError, match="no such way"):
        aws.vantage(OUTSIDE, "magic")
    with pytest.raises(StandError, match="no such instance"):
        aws.attach("i-00000000", {22: 22})


def test_the_server_has_the_same_network(aws_server, echo):
    ec2 = aws_server.client("ec2", MEMBER)
    made = ec2.run_instances(ImageId="ami-1", MinCount=1, MaxCount=1)["Instances"][0]
    aws_server.attach(made["InstanceId"], {22: echo.port})
    group = made["SecurityGroups"][0]["GroupId"]
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[{
        "IpProtocol": "tcp", "FromPort": 22, "ToPort": 22,
        "IpRanges": [{"CidrIp": f"{FORENSICS}/32"}],
    }])  # fmt: skip
    port = aws_server.vantage(FORENSICS)
    one = Caller(port, made["PrivateIpAddress"], 22)
    assert (one.said(), one.passes()) == ("200", True)
    assert [(f["port"], f["passes"]) for f in aws_server.flows()] == [(22, True)]
    other = Caller(port, made["PrivateIpAddress"], 443)
    assert other.said(SILENCE_S) == ""
    for caller in (one, other):
        caller.socket.close()


def test_a_reset_ends_every_flow(aws, call, web):
    one = call(web[2])
    assert one.said() == "200"
    aws.reset()
    assert aws.flows() == []


# -- EC2 Instance Connect


@pytest.fixture
def push(aws, web):
    client = aws.client("ec2-instance-connect", MEMBER)

    def send(**more):
        given = {"InstanceId": web[0], "InstanceOSUser": "responder", "SSHPublicKey": KEY}
        return client.send_ssh_public_key(**(given | more))

    return send


def test_a_pushed_key_is_there_for_a_minute(member, push, web, tmp_path):
    before = time.time()
    [held] = member.describe_instances(InstanceIds=[web[0]])["Reservations"][0]["Instances"]
    assert push(AvailabilityZone=held["Placement"]["AvailabilityZone"])["Success"] is True
    expires, _, key = (tmp_path / "responder").read_text().strip().partition(" ")
    assert key == KEY
    assert before + 59 <= int(expires) <= time.time() + 60


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"InstanceId": "i-0123456789abcdef0"}, "EC2InstanceNotFoundException"),
        ({"AvailabilityZone": "eu-central-1c"}, "EC2InstanceNotFoundException"),
        ({"InstanceOSUser": "../root"}, "InvalidArgsException"),
        ({"SSHPublicKey": "not a key that anybody would take" * 4}, "InvalidArgsException"),
        ({"SSHPublicKey": f"{KEY}\n99999999999 {KEY}"}, "InvalidArgsException"),
    ],
)
def test_a_key_that_cannot_be_pushed_is_refused(push, refused, tmp_path, more, code):
    with refused(code, 400):
        push(**more)
    assert list(tmp_path.glob("r*")) == []


def test_a_key_for_another_accounts_or_a_stopped_instance_is_refused(
    aws, member, push, refused, web
):
    other = aws.client("ec2-instance-connect", AUDIT)
    with refused("EC2InstanceNotFoundException", 400):
        other.send_ssh_public_key(InstanceId=web[0], InstanceOSUser="u", SSHPublicKey=KEY)
    member.stop_instances(InstanceIds=[web[0]])
    with refused("EC2InstanceStateInvalidException", 400):
        push()


@pytest.fixture
def endpoint(aws, member, web):
    made = member.create_instance_connect_endpoint(SubnetId=web[3])["InstanceConnectEndpoint"]
    [found] = member.describe_instance_connect_endpoints(
        Filters=[{"Name": "vpc-id", "Values": [made["VpcId"]]}]
    )["InstanceConnectEndpoints"]
    assert found == made
    [interface] = member.describe_network_interfaces(
        NetworkInterfaceIds=made["NetworkInterfaceIds"]
    )["NetworkInterfaces"]
    return made, interface["PrivateIpAddress"]


@pytest.fixture
def tunnel(aws, endpoint, web):
    websocket = pytest.importorskip("websocket")
    from acquisition.reach import tunnel_url

    opened = []

    def open_it(port=22, account=MEMBER, change=lambda url: url):
        made = endpoint[0]
        url = tunnel_url(
            aws.session(account), "eu-central-1", made["InstanceConnectEndpointId"],
            made["DnsName"], web[2], port, scheme="ws",
        )  # fmt: skip
        opened.append(websocket.create_connection(change(url), timeout=10))
        return opened[-1]

    yield open_it
    for one in opened:
        one.shutdown()


def test_a_tunnel_comes_from_the_endpoint(member, web, groups, endpoint, tunnel):
    closed = tunnel()
    assert closed.recv_data()[0] == 8  # nobody lets the endpoint in
    member.modify_network_interface_attribute(
        NetworkInterfaceId=web[1], Groups=[groups((False, 22, f"{endpoint[1]}/32"))]
    )
    open_one = tunnel()
    for word in (b"hello", b"x" * 200_000):
        open_one.send_binary(word)
        heard = b""
        while len(heard) < len(word):
            heard += open_one.recv_data()[1]
        assert heard == word
    member.modify_network_interface_attribute(NetworkInterfaceId=web[1], Groups=[groups()])
    open_one.send_binary(b"tracked")
    assert open_one.recv_data()[1] == b"tracked"


@pytest.mark.parametrize(
    "how",
    [
        {"account": AUDIT},
        {"port": 4444},
        {"change": lambda url: url.replace("X-Amz-Signature", "X-Amz-Unsigned")},
        {"change": lambda url: url.replace("eice-", "eice-0")},
        {"change": lambda url: url.replace("X-Amz-Date=20", "X-Amz-Date=19")},
    ],
)
def test_a_tunnel_that_is_not_rightly_asked_for_is_refused(tunnel, how):
    import websocket

    with pytest.raises(websocket.WebSocketBadStatusException, match="403"):
        tunnel(**how)


def test_a_vpc_has_one_endpoint_until_that_is_deleted(member, endpoint, refused, web):
    with refused("InstanceConnectEndpointLimitExceeded", 400):
        member.create_instance_connect_endpoint(SubnetId=web[3])
    name = endpoint[0]["InstanceConnectEndpointId"]
    member.delete_instance_connect_endpoint(InstanceConnectEndpointId=name)
    assert member.describe_instance_connect_endpoints()["InstanceConnectEndpoints"] == []
    with refused("InvalidInstanceConnectEndpointId.NotFound", 400):
        member.delete_instance_connect_endpoint(InstanceConnectEndpointId=name)


def test_an_endpoint_that_is_not_there_is_not_described(member, refused):
    with refused("InvalidInstanceConnectEndpointId.NotFound", 400):
        member.describe_instance_connect_endpoints(InstanceConnectEndpointIds=["eice-12345678"])
