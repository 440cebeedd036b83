# SPDX-License-Identifier: Apache-2.0
"""The command line as a user has it: own home, own passphrase, own working directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.cli.base import run
from tests.acquisition.kcore_host import KcoreHost
from tests.evidence_store.kit import pattern
from tests.sshd import USER

HERE = Path(__file__).parent
GIB = 1 << 30


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)

    @property
    def json_lines(self):
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home with a passphrase file; the working directory is beside it."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "pass").write_text("correct horse battery\n")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    # Each command opens two keys: at the real count that is most of a short command's time.
    monkeypatch.setattr("evidence_store.sign.PBKDF2_ITERATIONS", 2_000)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("IMPOUND_PASSPHRASE_FILE", str(home / "pass"))
    for name in (
        "XDG_CONFIG_HOME",
        "XDG_STATE_HOME",
        "IMPOUND_CONFIG",
        "IMPOUND_SETTINGS",
        "NO_COLOR",
    ):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture
def impound(home, capfdbinary):
    """Run a command line in this process; return code, stdout, stderr."""

    def call(*argv: str) -> Result:
        capfdbinary.readouterr()
        code = run([str(a) for a in argv])
        out, err = capfdbinary.readouterr()
        return Result(code, out.decode("utf-8", "backslashreplace"), err.decode())

    return call


@pytest.fixture
def opened(impound):
    """The same, with keys and the case T-1001."""
    assert impound("case", "open", "T-1001", "--title", "lab", "--contact", "soc@a.org").code == 0
    return impound


# -- an instance with two volumes in three accounts, and responses to it


@pytest.fixture
def images(tmp_path):
    """Two volumes of 1 GiB with a few blocks of data each; no file system in them."""
    made = []
    for number, offsets in enumerate(((0, 5 << 20, GIB - (1 << 19)), (300 << 20,))):
        path = tmp_path / f"volume{number}.img"
        with path.open("wb") as f:
            f.truncate(GIB)
            for at in offsets:
                os.pwrite(f.fileno(), pattern(1 << 19, number + 1), at)
        made.append(path)
    return made


@pytest.fixture
def zone(aws_server, images):
    from pipeline.gameday.aws.seed import seed

    return seed(aws_server, "pipeline.sealer:handler", images)


@pytest.fixture
def settings(home, zone):
    from pipeline.gameday.aws.accounts import AUDIT

    path = home / "impound.toml"

    def write(more=""):
        path.write_text(
            f'[aws]\naudit_account = "{AUDIT}"\nsnapshot_key = "{zone.estate.copy_key}"\n'
            f'external_id = "{zone.estate.external_id}"\n'
            f'source_lock = "governance"\nsource_lock_days = 1\n{more}'
        )
        return path

    write()
    return write


@pytest.fixture
def responder(home, aws_server, zone, monkeypatch):
    """Credentials of a responder; settings are read from `home / "impound.toml"`."""
    from pipeline.gameday.aws.accounts import REGION

    for name, value in {
        **zone.responder.environment(), "AWS_ENDPOINT_URL": aws_server.endpoint,
        "AWS_CONFIG_FILE": str(home / "none"), "AWS_SHARED_CREDENTIALS_FILE": str(home / "none"),
        "AWS_EC2_METADATA_DISABLED": "true", "AWS_DEFAULT_REGION": REGION,
        "IMPOUND_CONFIG": str(home / "impound.toml"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("acquisition.snapshot.PAUSE_S", 0.01)


@pytest.fixture
def cloud(impound, responder, settings):
    assert impound("case", "open", "T-1", "--contact", "soc@a.org").code == 0
    return impound


@pytest.fixture
def take(cloud, zone):
    """`acquire volume` of the instance."""
    target = zone.estate.variables()["INSTANCE"]
    return lambda *more: cloud("--json", "acquire", "volume", target, "--case", "T-1", *more)


@pytest.fixture
def target(zone):
    return zone.estate.variables()["INSTANCE"]


@pytest.fixture
def process(cloud):
    """The command line as a process of its own, with a kill in it if wanted."""
    started = []

    def start(*argv, kill=""):
        made = subprocess.Popen(
            [sys.executable, str(HERE / "respond_driver.py"), *argv],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env={**os.environ, "IMPOUND_TEST_KILL": kill,
                            "PYTHONPATH": str(HERE.parents[1])},
        )  # fmt: skip
        started.append(made)
        return made

    yield start
    for made in started:
        if made.poll() is None:
            made.kill()
        made.communicate()


# -- a machine behind the instance: sshd is real

FROM = "10.9.0.7"
NET = "10.9.0.0/24"


@pytest.fixture
def host(tmp_path):
    made = KcoreHost(tmp_path / "host").start()
    made.load()
    yield made
    made.stop()


@pytest.fixture
def permit(target, aws_server, zone):
    """Let the forensics network in, by the only rule of the instance's group."""
    from pipeline.gameday.aws.accounts import MEMBER

    ec2 = aws_server.client("ec2", MEMBER)
    seen = ec2.describe_instances(InstanceIds=[target.rpartition("/")[2]])
    first = seen["Reservations"][0]["Instances"][0]["NetworkInterfaces"][0]
    groups = [g["GroupId"] for g in first["Groups"]]
    group = groups[0]
    rules = ec2.describe_security_group_rules(Filters=[{"Name": "group-id", "Values": groups}])
    for rule in rules["SecurityGroupRules"]:
        if not rule["IsEgress"] and rule["FromPort"] == 22:
            ec2.revoke_security_group_ingress(
                GroupId=rule["GroupId"], SecurityGroupRuleIds=[rule["SecurityGroupRuleId"]]
            )

    def do():
        ec2.authorize_security_group_ingress(
            GroupId=group, IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp=NET
        )

    return do


@pytest.fixture
def ssh(cloud, settings, host, target):
    """Settings with which the instance answers at the test's sshd."""

    def write(more="instance_connect = false"):
        settings(
            f'[ssh]\nuser = "{USER}"\nkey = "{host.home / "user"}"\n{more}\n'
            f'source = "{FROM}"\npatience_s = 1\n'
            f'[ssh.at]\n{target.rpartition("/")[2]} = "127.0.0.1:{host.port}"\n'
        )

    write()
    return write


# -- a workstation in the Audit account


@pytest.fixture
def bench(cloud, zone, settings, monkeypatch):
    """The command line with all that a workstation needs; the store is a directory."""
    lines = [f'{name} = "{value}"' for name, value in zone.workstation.items()]
    settings("[s3]\n" + f'kms_key = "{zone.store_key}"\n[workstation]\n' + "\n".join(lines) + "\n")
    monkeypatch.setattr("acquisition.workstation.PAUSE_S", 0.01)
    # Where evidence lies is of no matter to EC2; a local store is quicker.
    monkeypatch.setattr("pipeline.session.Session.in_aws", False)
    from pipeline.workstation import parameters as plain

    monkeypatch.setattr(
        "pipeline.workstation.parameters",
        lambda settings, _uri, *more: plain(settings, "s3://evidence", *more),
    )
    return cloud


@pytest.fixture
def launched(bench):
    made = bench("--json", "workstation", "launch", "--case", "T-1", "--target", "10.0.0.5")
    assert made.code == 0, made.err
    return made.json


@pytest.fixture
def ec2(aws_server):
    from pipeline.gameday.aws.accounts import AUDIT

    return aws_server.client("ec2", AUDIT)


# -- the engine alone


@pytest.fixture
def place(tmp_path):
    return str(tmp_path / "home")


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log"


@pytest.fixture
def driver(place, log):
    """Start the driver; what still runs at the end is killed."""
    started = []

    def start(*more, where=place):
        process = subprocess.Popen(
            [sys.executable, str(HERE / "engine_driver.py"), str(where), str(log), *map(str, more)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
