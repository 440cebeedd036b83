# SPDX-License-Identifier: Apache-2.0
"""The image of the practice machine: kernel, initramfs, disk; made of Debian packages, then cached.

Packages are fetched by apt (which checks their signatures and digests) and unpacked; no script of
theirs runs, so no root is needed. What those scripts would have set up is set up here.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from pipeline.errors import PipelineError
from pipeline.gameday.disks import tool

_RECIPE = Path(__file__).with_name("recipe")
_KERNEL = "linux-image-cloud-amd64"
_BUSYBOX = "busybox-static"
_PACKAGES = (
    "base-files", "bash", "bsdutils", "coreutils", "dash", "debianutils", "diffutils", "findutils",
    "grep", "gzip", "hostname", "iproute2", "kmod", "libc-bin", "libpam-modules", "login", "lz4",
    "mawk", "mount", "ncurses-base", "openssh-server", "openssh-sftp-server", "passwd", "procps",
    "sed", "sudo", "tar", "util-linux", "zstd",
)  # fmt: skip
_MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "loop", "dummy")
_DISK_MIB = 450
_SECONDS = 600.0
_PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86", "apt-get": "apt", "dpkg-deb": "dpkg", "tar": "tar",
    "mke2fs": "e2fsprogs", "gcc": "gcc libc6-dev", "setpriv": "util-linux", "unshare": "util-linux",
}  # fmt: skip

# Nobody can log in by password; `careful` needs one for sudo. `$6$` of SUDO_PASSWORD.
SUDO_PASSWORD = "practice makes perfect"  # noqa: S105
_HASH = (
    "$6$practice$RBpITM1ZYaopBveHIpJOjMqObP3kINu2MQsgXf7kgMMOuY/."
    "bAsO.oDeVBTYN1G/snLNS1N1G4ihqB4.mv3sD."
)
_USERS = {"responder": 1000, "careful": 1001, "plain": 1002}
_FILES = {
    "etc/passwd": (
        "root:x:0:0:root:/root:/bin/bash\n"
        "sshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
        + "".join(f"{n}:x:{i}:{i}::/home/{n}:/bin/bash\n" for n, i in _USERS.items())
    ),
    "etc/group": (
        "root:x:0:\ntty:x:5:\nshadow:x:42:\nutmp:x:43:\nnogroup:x:65534:\n"
        + "".join(f"{n}:x:{i}:\n" for n, i in _USERS.items())
    ),
    "etc/shadow": (
        "root:*:19000:0:99999:7:::\nsshd:*:19000:0:99999:7:::\nresponder:*:19000:0:99999:7:::\n"
        f"careful:{_HASH}:19000:0:99999:7:::\nplain:*:19000:0:99999:7:::\n"
    ),
    "etc/hostname": "practice\n",
    "etc/hosts": "127.0.0.1 localhost practice\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files\n",
    "etc/ld.so.conf": "include /etc/ld.so.conf.d/*.conf\n",
    "etc/sudoers.d/practice": "responder ALL=(ALL) NOPASSWD: ALL\ncareful ALL=(ALL) ALL\n",
    "etc/pam.d/common-auth": "auth required pam_unix.so\n",
    "etc/pam.d/common-account": "account required pam_unix.so\n",
    "etc/pam.d/common-session": "session required pam_unix.so\n",
    "etc/pam.d/common-session-noninteractive": "session required pam_unix.so\n",
    "etc/pam.d/other": "auth required pam_deny.so\naccount required pam_deny.so\n",
    "etc/ssh/sshd_config": (
        "HostKey /etc/ssh/ssh_host_ed25519_key\nPasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\nPermitRootLogin no\nUsePAM no\nUseDNS no\n"
        "AuthorizedKeysCommand /usr/local/sbin/practice-keys %u\nAuthorizedKeysCommandUser nobody\n"
        "Subsystem sftp /usr/lib/openssh/sftp-server\n"
    ),
    "home/responder/notes.txt": "page-cache-file-mark-1d44\n" * 200,
    "var/log/auth.log": "",
}


class GuestError(PipelineError):
    """The practice machine cannot be made or does not start."""


@dataclass(frozen=True)
class Image:
    """A built image. `host_key`: one line "ssh-ed25519 …"; `facts`: packages with versions."""

    folder: Path
    host_key: str
    facts: dict[str, str]

    @property
    def kernel(self) -> Path:
        """For `-kernel`."""
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """For `-initrd`."""
        return self.folder / "initrd"

    @property
    def disk(self) -> Path:
        """Raw, with ext4 and no partitions; never written to."""
        return self.folder / "disk.img"


def missing_tools() -> list[str]:
    """Return what must be installed first: "program (apt install package)"."""
    return [f"{p} (apt install {package})" for p, package in _PROGRAMS.items() if not tool(p)]


def recipe_hash() -> str:
    """Return what changes whenever the image would, versions of packages excepted."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for path in sorted(_RECIPE.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def guest_image(say: Callable[[str], None] = lambda _text: None) -> Image:
    """Return the image from the cache (XDG), or make it: about two minutes.

    Raises: GuestError.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "impound" / "guest"
    place = cache / recipe_hash()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / f"{place.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # a second one waits for what the first one makes
            if not place.exists():
                if missing := missing_tools():
                    raise GuestError(
                        f"the practice machine needs {', '.join(missing)}",
                        hint="or run `make deps` as root",
                    )
                with tempfile.TemporaryDirectory(prefix="making-", dir=cache) as work:
                    _make(Path(work), say)
                    (Path(work) / "image").rename(place)
        facts = json.loads((place / "facts.json").read_text())
        return Image(place, facts.pop("host key"), facts)
    except (OSError, ValueError) as e:
        raise GuestError(f"cannot make the practice machine in {cache}: {e}") from e


def _make(work: Path, say: Callable[[str], None]) -> None:
    image, root = work / "image", work / "root"
    image.mkdir()
    say("practice machine: fetching Debian packages")
    system, apart = _fetch(work)
    say("practice machine: making its disk")
    versions = _unpack(system, root)
    extra = work / "extra"
    versions |= _unpack(apart, extra)
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    _set_up(root, private)
    _run("gcc", "-static", "-O1", "-o", root / "usr/local/lib/practice/plant", _RECIPE / "plant.c")
    shutil.copy(next((extra / "boot").glob("vmlinuz-*")), image / "vmlinuz")
    _initrd(extra, work / "initramfs", image / "initrd")
    # Who is not root here is root in a namespace of their own: files belong to root on the disk.
    mapped = [] if os.geteuid() == 0 else ["unshare", "--map-root-user"]
    _run(*mapped, tool("mke2fs") or "mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0",
         "-d", root, image / "disk.img", f"{_DISK_MIB}M")  # fmt: skip
    (image / "facts.json").write_text(json.dumps({"host key": public, **versions}, indent=1))


def _fetch(work: Path) -> tuple[list[Path], list[Path]]:
    """Download; return packages of the system, and kernel and busybox apart."""
    apt = work / "apt"
    archives = apt / "archives"
    (archives / "partial").mkdir(parents=True)
    (apt / "apart").mkdir()
    (apt / "status").touch()
    options = [
        "-q", "-y", "-o", f"Dir::State::status={apt / 'status'}", "-o", f"Dir::Cache={apt}",
        "-o", "Debug::NoLocking=1", "-o", "APT::Install-Recommends=0", "-o", "APT::Sandbox::User=",
        "-o", "APT::Architecture=amd64", "-o", "APT::Architectures=amd64",
    ]  # fmt: skip
    try:
        kernel = _kernel(options)
    except GuestError:  # no package lists here: lists of our own
        (apt / "lists" / "partial").mkdir(parents=True)
        options += ["-o", f"Dir::State::lists={apt / 'lists'}"]
        _run("apt-get", *options, "update")
        kernel = _kernel(options)
    _run("apt-get", *options, "--download-only", "install", *_PACKAGES)
    _run("apt-get", *options, "download", kernel, _BUSYBOX, cwd=apt / "apart")
    return sorted(archives.glob("*.deb")), sorted((apt / "apart").glob("*.deb"))


def _kernel(options: Sequence[str]) -> str:
    said = _run("apt-cache", *options[2:], "depends", _KERNEL)
    found = re.search(r"Depends: (linux-image-[0-9][\w.+-]*-cloud-amd64)\s", said)
    if not found:
        raise GuestError(
            f"apt does not know what {_KERNEL} is", hint="this needs Debian's packages"
        )
    return found[1]


def _unpack(packages: Sequence[Path], root: Path) -> dict[str, str]:
    """Unpack as dpkg would, and say so in its database; return versions."""
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(f"usr/{name}")
    database = root / "var/lib/dpkg"
    (database / "info").mkdir(parents=True)
    versions, status = {}, []
    for package in packages:
        files = ["dpkg-deb", "--fsys-tarfile", str(package)]
        with subprocess.Popen(files, stdout=subprocess.PIPE) as p:
            assert p.stdout  # noqa: S101
            _run("tar", "-x", "-p", "--keep-directory-symlink", "-C", root, stdin=p.stdout)
        if p.returncode:
            raise GuestError(f"cannot unpack {package.name}")
        control = _run("dpkg-deb", "--field", package)
        fields = dict(re.findall(r"^(Package|Version): (.*)$", control, re.M))
        versions[fields["Package"]] = fields["Version"]
        status.append(control.rstrip("\n") + "\nStatus: install ok installed\n")
        with tempfile.TemporaryDirectory() as held:
            _run("dpkg-deb", "--control", package, held)
            for part in ("md5sums", "conffiles"):
                if (Path(held) / part).exists():
                    shutil.copy(Path(held) / part, database / f"info/{fields['Package']}.{part}")
    (database / "status").write_text("\n".join(status))
    return versions


def _set_up(root: Path, host_key: bytes) -> None:
    """What the packages' scripts would have done, and what is ours."""
    for name in ("doc", "man", "locale", "info", "lintian", "bash-completion"):
        shutil.rmtree(root / "usr/share" / name, ignore_errors=True)
    for name in ("proc", "sys", "dev", "run", "tmp", "root", "var/log", "var/tmp", "etc/sudoers.d",
                 "usr/local/lib/practice", *(f"home/{n}" for n in _USERS)):  # fmt: skip
        (root / name).mkdir(parents=True, exist_ok=True)
    for name, text in _FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    key = root / "etc/ssh/ssh_host_ed25519_key"
    key.write_bytes(host_key)
    modes = {
        key: 0o600, root / "etc/shadow": 0o640, root / "etc/sudoers.d/practice": 0o440,
        root / "etc/sudoers": 0o440, root / "usr/bin/sudo": 0o4755, root / "root": 0o700,
        root / "etc/sudoers.d": 0o750,
    }  # fmt: skip
    for path, mode in modes.items():
        path.chmod(mode)
    for name in ("practice-start", "practice-keys"):
        copy = root / "usr/local/sbin" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_RECIPE / name, copy)
        copy.chmod(0o755)
    shutil.copyfile(_RECIPE / "history", root / "usr/local/lib/practice/history")
    for link, to in {"usr/bin/awk": "mawk", "usr/bin/sh": "dash"}.items():
        if not (root / link).is_symlink() and not (root / link).exists():
            (root / link).symlink_to(to)


def _initrd(extra: Path, tree: Path, made: Path) -> None:
    """An initramfs of busybox and the modules without which there is no disk or network."""
    for name in ("bin", "proc", "sys", "dev", "disk", "modules"):
        (tree / name).mkdir(parents=True)
    busybox = tree / "bin/busybox"
    shutil.copy(extra / "bin/busybox", busybox)
    shutil.copyfile(_RECIPE / "init", tree / "init")
    (tree / "init").chmod(0o755)
    held = {p.name.removesuffix(".ko").replace("-", "_"): p for p in extra.rglob("*.ko")}
    order: list[str] = []

    def need(name: str) -> None:
        path = held.get(name)
        if path is None or path.name in order:  # built into the kernel, or there already
            return
        found = re.search(rb"\0depends=([\w,-]*)\0", b"\0" + path.read_bytes())
        for other in filter(None, found[1].decode().replace("-", "_").split(",") if found else ()):
            need(other)
        order.append(path.name)
        shutil.copy(path, tree / "modules" / path.name)

    for name in _MODULES:
        need(name)
    (tree / "modules/order").write_text("\n".join(order) + "\n")
    names = "\n".join([".", *sorted(str(p.relative_to(tree)) for p in tree.rglob("*"))])
    packed = subprocess.run(
        [busybox, "cpio", "-o", "-H", "newc"], input=names.encode(), cwd=tree, check=False,
        capture_output=True,
    )  # fmt: skip
    if packed.returncode:
        raise GuestError(f"cannot pack the initramfs: {packed.stderr.decode(errors='replace')}")
    made.write_bytes(gzip.compress(packed.stdout, 1))


def _run(*command: str | Path, cwd: Path | None = None, stdin: object = None) -> str:
    """Run a program; return what it printed. Raises: GuestError."""
    try:
        done = subprocess.run(
            [str(c) for c in command], cwd=cwd, stdin=stdin or subprocess.DEVNULL,  # type: ignore[call-overload]
            capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False,
            env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except subprocess.TimeoutExpired as e:
        raise GuestError(f"{command[0]} did not end within {_SECONDS:.0f} s") from e
    if done.returncode:
        lines = [x for x in done.stderr.splitlines() if x.strip()]
        raise GuestError(f"{command[0]} failed: {lines[-1] if lines else done.returncode}")
    return str(done.stdout)
