# SPDX-License-Identifier: Apache-2.0
"""Keys that are pushed, and host keys as operators write them."""

from __future__ import annotations

import pytest
from botocore.exceptions import ClientError

from acquisition.login import (
    HostKeyError,
    HostKeys,
    LoginError,
    fingerprint,
    instance_connect,
    parse_host_keys,
    public_line,
    run_key,
)

ED = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIK1XqJ9xD1n3g9b7d3Vb3H2vWyzM4Zz5p1yq3Q2a9R0c"


class Service:
    def __init__(self, answer):
        self.answer, self.calls = answer, []

    def send_ssh_public_key(self, **how):
        self.calls.append(how)
        if isinstance(self.answer, Exception):
            raise self.answer
        return {"Success": self.answer}


def test_pushed_key_is_pushed_again_for_each_login():
    key = run_key()
    service = Service(True)
    login = instance_connect(service, "i-1", "eu-central-1a", key)
    assert login.key("admin") is key
    login.key("admin")
    assert service.calls == 2 * [{
        "InstanceId": "i-1", "InstanceOSUser": "admin", "AvailabilityZone": "eu-central-1a",
        "SSHPublicKey": public_line(key),
    }]  # fmt: skip


@pytest.mark.parametrize(
    "answer",
    [
        False,
        ClientError(
            {"Error": {"Code": "AccessDeniedException", "Message": "no"}}, "SendSSHPublicKey"
        ),
    ],
)
def test_refused_push_is_a_rung_that_failed(answer):
    with pytest.raises(LoginError):
        instance_connect(Service(answer), "i-1", "z", run_key()).key("admin")


def test_two_runs_have_two_keys():
    assert public_line(run_key()) != public_line(run_key())


@pytest.mark.parametrize("text", [
    ED, f"{ED} root@host", f"10.0.0.5 {ED}", f"256 {fingerprint(ED)} root@host (ED25519)",
    fingerprint(ED),
])  # fmt: skip
def test_host_keys_are_taken_as_people_have_them(text):
    (parsed,) = parse_host_keys([text])
    assert HostKeys((parsed,)).judge(ED) == "pinned"


@pytest.mark.parametrize("text", ["", "MD5:aa:bb", "ssh-ed25519 !!!", "SHA256:short"])
def test_what_is_no_host_key_is_refused(text):
    with pytest.raises(ValueError, match="not a host key"):
        parse_host_keys([text])


def test_only_key_types_that_can_be_judged_are_asked_for():
    assert HostKeys(parse_host_keys(["ssh-rsa AAAA"])).algorithms() == (
        "rsa-sha2-512", "rsa-sha2-256")  # fmt: skip
    assert HostKeys((fingerprint(ED),)).algorithms() == ()
    assert HostKeys(known=ED).algorithms() == ("ssh-ed25519",)


def test_pinned_key_decides_over_a_known_one():
    other = ED[:-4] + "AAAA"
    with pytest.raises(HostKeyError):
        HostKeys((other,), known=ED).judge(ED)
