# SPDX-License-Identifier: Apache-2.0
"""`self-check`: is this installation what it should be? Facts are gathered, then judged. Pure.

Three things are apart: a check that failed, one that could not be made (`unknown`), and one that
does not apply here. A workstation is what has a tool manifest; elsewhere nothing is asked of the
operating system. An image that has not booted (a chroot) is asked only for what lies on its disk.

Source: PEP 376 and PyPA "Recording installed projects" (RECORD); adjtimex(2) (STA_UNSYNC,
esterror); sd_booted(3); lvmlocal.conf(5), mdadm.conf(5), multipath.conf(5),
systemd-gpt-auto-generator(8).
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evidence_store.model import clean
from pipeline import installation, tools
from pipeline.errors import ConfigError

State = Literal["ok", "failed", "unknown", "not applicable"]
_SHOWN = 5
_MAX_CLOCK_ERROR_US = 1_000_000
_STA_UNSYNC = 0x40


@dataclass(frozen=True)
class Check:
    """One finding. `fix`: what to do, if it is not as it should be."""

    name: str
    state: State
    text: str
    fix: str = ""

    def document(self) -> dict[str, str]:
        """As JSON."""
        return {"check": self.name, "state": self.state, "text": self.text, "fix": self.fix}


def exit_code(checks: Iterable[Check]) -> int:
    """Return 14 if one failed, 3 if one could not be made, else 0."""
    states = {check.state for check in checks}
    return 14 if "failed" in states else 3 if "unknown" in states else 0


def look(root: Path = Path("/"), manifest: Path | None = None) -> list[Check]:
    """Look at this installation, and at the machine if it is a workstation.

    Args:
        root: of the file system whose hardening is looked at.
        manifest: path of the tool manifest (default: the one under `root`).
    """
    try:
        found = tools.read(manifest or root / tools.MANIFEST.relative_to("/"))
    except ConfigError as e:
        return [installed(), Check("tools", "failed", str(e), e.hint), clock(_kernel_clock(), None)]
    booted = (root / "run/systemd/system").is_dir() if found else None
    checks = [installed()]
    if found is None:
        checks.append(Check("tools", "not applicable", "no tool manifest: not a workstation"))
    else:
        checks += tools_match(found.manifest, _digest)
        checks += hardening(root)
        checks += running(_facts(root) if booted else None)
    checks.append(clock(_kernel_clock(), booted))
    return checks


# -- this program


def installed() -> Check:
    """Whether the installed files are those that the wheel brought."""
    return judged(installation.check())


def judged(found: installation.Installation) -> Check:
    """The same, of what was found. Pure."""
    name = "installed files"
    if found.state == "equal":
        return Check(name, "ok", f"{found.files} files are those of the wheel")
    if found.state == "different":
        wrong = [
            *(f"{path} differs" for path in found.changed),
            *(f"{path} is missing or unreadable" for path in found.missing),
            *(f"{path} was added" for path in found.extra),
        ]
        return Check(
            name, "failed", _some(wrong),
            "install the wheel again; ask who changed it before evidence is taken with it",
        )  # fmt: skip
    why = "an editable installation: " if found.state == "editable" else ""
    return Check(name, "unknown", why + found.why, "install the wheel where evidence is taken")


# -- tools


def tools_match(
    manifest: tools.Manifest, digest: Callable[[str], str | None]
) -> Iterator[Check]:  # fmt: skip
    """Compare each tool with the manifest.

    Args:
        manifest: of this machine.
        digest: SHA-256 of a path; None if it is not there. Raises: PermissionError.
    """
    rebuild = "launch a new workstation from the image; find out what changed this one"
    record = tools.record_path()
    wrong = []
    if tools.installed_digest() != manifest.impound.sha256:
        wrong.append("its files differ")
    if record is None or tools.file_digest(record) != manifest.impound.record_sha256:
        wrong.append("the list of its files differs")
    yield Check(
        "impound", "failed" if wrong else "ok",
        _some(wrong) or f"{manifest.impound.version}, as the image was built {manifest.made}",
        rebuild if wrong else "",
    )  # fmt: skip
    for tool in manifest.tools:
        name = f"tool {clean(tool.path, 200)}"
        said = f"{tool.package} {tool.version}, {tool.sha256}"
        try:
            found = digest(tool.path)
        except OSError as e:
            yield Check(name, "unknown", f"cannot be read: {e.strerror}", "run it as root")
            continue
        if found is None:
            yield Check(name, "failed", f"missing ({said})", rebuild)
        elif found != tool.sha256:
            yield Check(name, "failed", f"differs: {found}, not {said}", rebuild)
        else:
            yield Check(name, "ok", said)


def _digest(path: str) -> str | None:
    try:
        return tools.file_digest(Path(path))
    except FileNotFoundError:
        return None


# -- hardening: what lies on the disk


def hardening(root: Path) -> Iterator[Check]:
    """Judge what lies on the disk of a workstation: the same in an image and once it runs."""
    fix = "launch a new workstation from the image"

    def check(name: str, wrong: list[str], well: str) -> Check:
        return Check(name, "failed" if wrong else "ok", _some(wrong) or well, fix if wrong else "")

    server = [p for p in ("usr/sbin/sshd", "usr/sbin/dropbear") if (root / p).exists()]
    yield check("no SSH server", [f"/{p} is installed" for p in server], "none is installed")
    wall = _text(root / "etc/nftables.conf")
    closed = re.search(r"hook input priority \w+; policy drop;", wall)
    wrong = [] if closed else ["/etc/nftables.conf does not drop what comes in"]
    unit = root / "etc/systemd/system/sysinit.target.wants/nftables.service"
    if not unit.is_symlink():
        wrong.append("nftables.service is not enabled")
    yield check("firewall", wrong, "drops what comes in but answers")

    for name, path, wanted in (
        ("LVM", "etc/lvm/lvmlocal.conf", r"^\s*auto_activation_volume_list\s*=\s*\[\s*\]"),
        ("md", "etc/mdadm/mdadm.conf", r"^AUTO\s+-all\s*$"),
        ("multipath", "etc/multipath.conf", r'^\s*devnode\s+"\.\*"'),
    ):
        held = re.search(wanted, _text(root / path), re.MULTILINE)
        yield check(
            f"{name} takes no evidence", [] if held else [f"/{path} lets it activate by itself"],
            f"/{path} forbids it",
        )  # fmt: skip
    masked = [
        path for path in (
            "etc/udev/rules.d/64-md-raid-assembly.rules", "etc/udev/rules.d/69-lvm.rules",
            "etc/systemd/system/multipathd.service", "etc/systemd/system/udisks2.service",
            "etc/systemd/system-generators/systemd-gpt-auto-generator",
        ) if not _is_null(root / path)
    ]  # fmt: skip
    yield check(
        "nothing mounts by itself", [f"/{path} is not masked" for path in masked],
        "automatic assembly and mounting are masked",
    )  # fmt: skip


def _is_null(path: Path) -> bool:
    return path.is_symlink() and str(path.readlink()) == "/dev/null"


# -- hardening: what only a running machine shows


def _facts(root: Path) -> Mapping[str, str | None]:
    """Gather `cmdline` and `ruleset`; None: it could not be had."""
    return {
        "cmdline": _text(root / "proc/cmdline") or None,
        "ruleset": _ruleset(),
    }


def _ruleset() -> str | None:
    program = shutil.which("nft", path="/usr/sbin:/sbin")
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, "list", "ruleset"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def running(facts: Mapping[str, str | None] | None) -> Iterator[Check]:
    """Judge what runs; `facts` is None before the first boot."""
    for name, fact, wanted, well in (
        ("root by PARTUUID", "cmdline", r"\broot=PARTUUID=[0-9a-fA-F-]+",
         "the root file system is named by its partition's id"),
        ("no partition by its type", "cmdline", r"\bsystemd\.gpt_auto=0\b",
         "systemd mounts nothing for its partition type"),
        ("firewall is loaded", "ruleset", r"hook input priority \w+; policy drop;",
         "the kernel drops what comes in"),
    ):  # fmt: skip
        if facts is None:
            yield Check(name, "not applicable", "not booted: an image")
        elif (said := facts[fact]) is None:
            yield Check(name, "unknown", f"the {fact} cannot be read", "run it as root")
        elif re.search(wanted, said):
            yield Check(name, "ok", well)
        else:
            yield Check(name, "failed", f"the {fact} does not say so", "build the image again")


# -- the clock


def clock(said: tuple[int, int] | None, booted: bool | None) -> Check:
    """Judge the kernel's clock.

    Args:
        said: status bits and estimated error in microseconds, as adjtimex(2) has them.
        booted: whether a workstation has booted; None: this is no workstation.
    """
    fix = "start chrony, and look at `chronyc tracking`"
    if booted is False:
        return Check("clock", "not applicable", "not booted: an image")
    if said is None:
        return Check("clock", "unknown", "the kernel does not say how good its clock is")
    status, error_us = said
    if not status & _STA_UNSYNC and error_us <= _MAX_CLOCK_ERROR_US:
        return Check("clock", "ok", f"kept in step, estimated error {error_us / 1000:.1f} ms")
    text = (
        "nothing keeps it in step" if status & _STA_UNSYNC
        else f"its estimated error is {error_us / 1e6:.1f} s"
    )  # fmt: skip
    # Elsewhere a host or another program may keep it, and the kernel would not know.
    return Check("clock", "failed" if booted else "unknown", text, fix)


class _Timex(ctypes.Structure):
    _fields_ = [
        ("modes", ctypes.c_uint), ("offset", ctypes.c_long), ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long), ("esterror", ctypes.c_long), ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),
    ]  # fmt: skip


def _kernel_clock() -> tuple[int, int] | None:
    timex = _Timex()
    try:
        done = ctypes.CDLL(None).adjtimex(ctypes.byref(timex))
    except (OSError, AttributeError):
        return None
    return None if done < 0 else (timex.status, timex.esterror)


# -- files


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def _some(lines: list[str]) -> str:
    more = len(lines) - _SHOWN
    return "; ".join(lines[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
