# SPDX-License-Identifier: Apache-2.0
"""`gameday --serve`: a practice landing zone on this machine, until it is told to stop.

Everything that the command line needs to work in it goes into one file that a shell can source. The
file appears when all is ready, and is gone when the stand-in is.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from pipeline.errors import PipelineError, UsageError
from pipeline.gameday.disks import ext4_disk, plant, tool, traces, xfs_disk
from pipeline.gameday.scorecard import StepFailedError

if TYPE_CHECKING:
    from pipeline.gameday.aws.organisation import Organisation
    from pipeline.gameday.aws.seed import Seeded
    from pipeline.gameday.aws.stand import ServerProcess
    from pipeline.gameday.guest import Guest

HANDLER = "pipeline.sealer:handler"
_MARK = "# made by: impound gameday --serve"
_VOLUME_BYTES = 1 << 30
# Where responders come from in the practice network, and where nobody may come from.
FORENSICS, OUTSIDE = "10.99.0.10", "198.51.100.7"
_FORENSICS_NETWORK = "10.99.0.0/24"
_NO_IMAGES = "no instance and no volumes: {} is not installed (apt install {})"


class StandInError(PipelineError):
    """The AWS stand-in is not installed, or ended by itself."""


@dataclass(frozen=True)
class Zone:
    """A landing zone that stands.

    `variables`: for the environment; `left_out`: unlike AWS; `guest`: the machine behind the
    instance, if one was asked for and could be made.
    """

    server: ServerProcess
    variables: dict[str, str]
    seeded: Seeded
    left_out: tuple[str, ...]
    guest: Guest | None = None

    def exports(self) -> list[str]:
        """Lines for a POSIX shell."""
        return [f"export {name}={shlex.quote(value)}" for name, value in self.variables.items()]


def config_path(env_file: Path) -> Path:
    """The settings file beside the file of variables."""
    return env_file.with_name(f"{env_file.name}.toml")


def images_path(env_file: Path) -> Path:
    """The folder of disk images beside the file of variables."""
    return env_file.with_name(f"{env_file.name}.images")


def guest_path(env_file: Path) -> Path:
    """The folder of the practice machine beside the file of variables: its keys, its console."""
    return env_file.with_name(f"{env_file.name}.guest")


@contextlib.contextmanager
def serving(
    env_file: Path, defects: Sequence[str] | None = None, *, guest: bool = False,
    say: Callable[[str], None] = lambda _line: None,
) -> Iterator[tuple[Zone, Callable[[], None]]]:  # fmt: skip
    """Start the stand-in and write the file; yield (zone, wait). At the end all is gone.

    `wait` returns on SIGINT, SIGTERM or SIGHUP, which interrupt nothing else, and raises
    StandInError if the stand-in ended by itself. Arguments: as of `standing`.

    Raises: UsageError if `env_file` is something else; StandInError.
    """
    stop = threading.Event()
    with _signals(stop), standing(env_file, defects=defects, guest=guest, say=say) as zone:

        def wait() -> None:
            while not stop.wait(0.2):
                if zone.server.wait(0):
                    raise StandInError("the AWS stand-in ended by itself", hint="start it again")

        yield zone, wait


@contextlib.contextmanager
def standing(
    env_file: Path, seed: int = 1, defects: Sequence[str] | None = None, *, guest: bool = False,
    say: Callable[[str], None] = lambda _line: None,
) -> Iterator[Zone]:  # fmt: skip
    """Start the stand-in, its disks with the traces of `seed`, and write the file.

    Args:
        env_file: the file of variables.
        seed: for the traces.
        defects: None: what a response needs; else everything that `readiness` looks for is in
            place, but for what these checks find.
        guest: put the practice machine behind the instance, if it can be made here.
        say: called with what takes a while.

    Raises: UsageError if `env_file` is something else; StandInError.
    """
    for path in (env_file, config_path(env_file)):
        _make_way(path)
    for folder in (images_path(env_file), guest_path(env_file)):
        _make_way_for_folder(folder)
    try:
        from pipeline.gameday.aws.accounts import AccountError
        from pipeline.gameday.aws.seed import LEFT_OUT
        from pipeline.gameday.aws.seed import seed as make
        from pipeline.gameday.aws.stand import ServerProcess, StandError
    except ImportError as e:
        raise StandInError(
            f"the AWS stand-in is not installed ({e.name})",
            hint="pip install 'impound[gameday]'",
        ) from e
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(ServerProcess())
            images, left_out = _images(images_path(env_file), seed, stack)
            seeded = make(server, HANDLER, images)
        except (StandError, AccountError, StepFailedError) as e:
            raise StandInError(str(e)) from e
        organisation = None
        if defects is not None:
            organisation = _organise(server, seeded, defects)
        variables = {
            "AWS_ENDPOINT_URL": server.endpoint,
            **seeded.responder.environment(),
            "IMPOUND_CONFIG": str(config_path(env_file).absolute()),
            **(seeded.estate.variables() if seeded.estate else {}),
        }
        zone = Zone(server, variables, seeded, (*LEFT_OUT, *left_out))
        if guest:
            zone = _with_guest(zone, guest_path(env_file), stack, say)
        stack.callback(_remove, config_path(env_file))
        _write(config_path(env_file), _settings(zone, organisation))
        stack.callback(_remove, env_file)
        _write(env_file, [_MARK, *zone.exports()])
        yield zone


def _images(folder: Path, seed: int, stack: contextlib.ExitStack) -> tuple[list[Path], list[str]]:
    """Make the disks of an instance; return them and what could not be made.

    Raises: StandInError; StepFailedError.
    """
    if not tool("mke2fs") or not tool("debugfs"):
        return [], [_NO_IMAGES.format("mke2fs", "e2fsprogs")]
    try:
        folder.mkdir(mode=0o700)
        stack.callback(shutil.rmtree, folder)
        (folder / "mark").write_text(_MARK + "\n")
        planted, tree = traces(seed), folder / "tree"
        plant(tree, planted, seed)
        made, missing = [folder / "root.img", folder / "data.img"], []
        ext4_disk(tree, made[0], [t.path for t in planted if t.deleted])
        if tool("mkfs.xfs"):
            xfs_disk(tree, made[1])
        else:
            missing.append("an XFS volume: mkfs.xfs is not installed (apt install xfsprogs)")
            ext4_disk(tree, made[1], [])
        shutil.rmtree(tree)
        for image in made:  # as large as its volume, so that their digests are equal
            os.truncate(image, _VOLUME_BYTES)
    except OSError as e:
        raise StandInError(f"cannot write images to {folder}: {e.strerror}") from e
    return made, missing


def _with_guest(
    zone: Zone, folder: Path, stack: contextlib.ExitStack, say: Callable[[str], None]
) -> Zone:  # fmt: skip
    """Put the practice machine behind the instance; what cannot be is left out and said."""
    from pipeline.gameday.guest import Guest, GuestError, guest_image
    from pipeline.gameday.guest.machine import PORTS, USER

    estate = zone.seeded.estate
    if estate is None:
        return replace(zone, left_out=(*zone.left_out, "no machine: there is no instance"))
    try:
        image = guest_image(say)
        say("practice machine: starting")
        folder.mkdir(mode=0o700)
        stack.callback(shutil.rmtree, folder)
        (folder / "mark").write_text(_MARK + "\n")
        guest = stack.enter_context(Guest(image, folder))
        (folder / "host_keys").write_text(f"{estate.instance} {guest.host_key}\n")
    except (GuestError, OSError) as e:
        lacking = f"no machine behind the instance, so no memory and no live response: {e}"
        return replace(zone, left_out=(*zone.left_out, lacking))
    zone.server.attach(estate.instance, {p: guest.port(p) for p in PORTS}, guest.keys)
    held = zone.server.client("ec2", zone.variables["MEMBER_ACCOUNT"]).describe_instances(
        InstanceIds=[estate.instance]
    )["Reservations"][0]["Instances"][0]
    variables = {
        "GUEST_ADDRESS": held["PrivateIpAddress"], "GUEST_USER": USER,
        "GUEST_KEY": str(guest.key), "GUEST_HOST_KEY": guest.host_key,
        "GUEST_PROXY": f"127.0.0.1:{zone.server.vantage(FORENSICS)}",
    }  # fmt: skip
    differs = "the machine behind the instance runs from a disk of its own, not from the volumes"
    return replace(zone, guest=guest, variables=zone.variables | variables,
                   left_out=(*zone.left_out, differs))  # fmt: skip


def _organise(server: ServerProcess, seeded: Seeded, defects: Sequence[str]) -> Organisation:
    """Put everything in place, then the defects. Raises: StandInError."""
    from pipeline.gameday.aws.organisation import DEFECTS, organise

    if seeded.estate is None:
        raise StandInError(
            "the organisation needs an instance, and its disks could not be made",
            hint="apt install e2fsprogs",
        )
    made = organise(server, seeded)
    for name in defects:
        DEFECTS[name](made)
    return made


def _settings(zone: Zone, organisation: Organisation | None) -> list[str]:
    seeded = zone.seeded
    reach = [
        f'isolation_sources = ["{_FORENSICS_NETWORK}"]',
        "[ssh]",
        f'user = "{zone.variables["GUEST_USER"]}"',
        f'proxy = "{zone.variables["GUEST_PROXY"]}"',
        f'source = "{FORENSICS}"',
        f'host_keys = "{zone.guest.folder / "host_keys"}"',
    ] if zone.guest else []  # fmt: skip
    return [
        _MARK,
        f'store = "{seeded.store}"',  # where the sealer seals
        "[aws]",
        f'audit_account = "{seeded.store_key.split(":")[4]}"',
        f'log_archive_account = "{seeded.checkpoint_key.split(":")[4]}"',
        f'snapshot_key = "{seeded.estate.copy_key if seeded.estate else seeded.store_key}"',
        f'external_id = "{seeded.estate.external_id if seeded.estate else ""}"',
        'source_lock = "governance"',
        "source_lock_days = 1",
        *(organisation.aws_settings() if organisation else []),
        *reach,
        "[s3]",
        f'kms_key = "{seeded.store_key}"',
        "[signing]",
        f'entry_key = "{seeded.entry_key}"',
        f'checkpoint_key = "{seeded.checkpoint_key}"',
        f'sealer = "{seeded.sealer}"',
        "[workstation]",
        *(f'{name} = "{value}"' for name, value in seeded.workstation.items()),
        *(organisation.settings() if organisation else []),
    ]


def _make_way(path: Path) -> None:
    """Remove what an earlier run left; nothing else is touched."""
    try:
        with path.open() as f:
            ours = f.readline().rstrip("\n") == _MARK
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"cannot use {path}: {e}") from e
    if not ours:
        raise UsageError(f"{path} exists", hint="name a new file with --env-file")
    path.unlink()


def _make_way_for_folder(folder: Path) -> None:
    """The same for a folder."""
    if not folder.exists():
        return
    try:
        ours = (folder / "mark").read_text() == _MARK + "\n"
    except (OSError, UnicodeDecodeError):
        ours = False
    if not ours:
        raise UsageError(f"{folder} exists", hint="name a new file with --env-file")
    shutil.rmtree(folder)


def _write(path: Path, lines: list[str]) -> None:
    """Readable by its owner only, whole or absent."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as f:
            f.write("\n".join(lines) + "\n")
        temporary.replace(path)
    except OSError as e:
        temporary.unlink(missing_ok=True)
        raise StandInError(f"cannot write {path}: {e.strerror}") from e


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


@contextlib.contextmanager
def _signals(stop: threading.Event) -> Iterator[None]:
    def end(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    kept = {s: signal.signal(s, end) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
