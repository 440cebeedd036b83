# SPDX-License-Identifier: LicenseRef-VSL-1.0
"""Which plugins run, in which order, and what their rows are.

`quick` is what a responder asks first, in seconds; `full` is all that need no argument.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

GATE = ("linux.pslist.PsList", "linux.boottime.Boottime")
"""They run first. Unless they give what every running kernel has, no other row is believed."""


@dataclass(frozen=True)
class Plugin:
    """A plugin to run. `seconds`: its limit. `options`: its configuration."""

    name: str
    seconds: int = 300
    options: dict[str, Any] = field(default_factory=dict)


QUICK = (
    Plugin("linux.psaux.PsAux"),
    Plugin("linux.pidhashtable.PIDHashTable"),
    Plugin("linux.psscan.PsScan", 900),
    Plugin("linux.sockstat.Sockstat"),
    Plugin("linux.lsmod.Lsmod"),
    Plugin("linux.malware.modxview.Modxview", 600),
    Plugin("linux.malware.check_syscall.Check_syscall"),
    Plugin("linux.malware.check_idt.Check_idt"),
    Plugin("linux.malware.check_afinfo.Check_afinfo"),
    Plugin("linux.malware.malfind.Malfind"),
    Plugin("linux.malware.process_spoofing.ProcessSpoofing"),
    Plugin("linux.malware.tty_check.Tty_Check"),
    Plugin("linux.malware.netfilter.Netfilter"),
    Plugin("linux.malware.keyboard_notifiers.Keyboard_notifiers"),
    Plugin("linux.bash.Bash", 600),
    Plugin("linux.lsof.Lsof"),
    Plugin("linux.envars.Envars"),
    Plugin("linux.kmsg.Kmsg"),
    Plugin("linux.mountinfo.MountInfo"),
    Plugin("linux.ip.Addr"),
    Plugin("linux.ip.Link"),
    Plugin("linux.ebpf.EBPF"),
    Plugin("linux.kthreads.Kthreads"),
    Plugin("linux.capabilities.Capabilities"),
    Plugin("linux.malware.check_creds.Check_creds"),
)

FULL = (
    # The longest first, or they run alone at the end.
    Plugin("linux.kallsyms.Kallsyms", 900),
    Plugin("linux.library_list.LibraryList", 600),
    Plugin("linux.pscallstack.PsCallStack", 900),
    *QUICK,
    Plugin("linux.pstree.PsTree"),
    Plugin("linux.sockscan.Sockscan", 900),
    Plugin("linux.malware.check_modules.Check_modules"),
    Plugin("linux.malware.hidden_modules.Hidden_modules", 900),
    Plugin("linux.elfs.Elfs"),
    Plugin("linux.proc.Maps"),
    Plugin("linux.pagecache.Files", 900),
    Plugin("linux.iomem.IOMem"),
    Plugin("linux.ptrace.Ptrace"),
    Plugin("linux.tracing.ftrace.CheckFtrace"),
    Plugin("linux.tracing.perf_events.PerfEvents"),
    Plugin("linux.tracing.tracepoints.CheckTracepoints"),
    Plugin("linux.graphics.fbdev.Fbdev"),
    Plugin("linux.vmcoreinfo.VMCoreInfo", 900),
)

NEED_ARGUMENTS = (
    "linux.module_extract.ModuleExtract", "linux.pagecache.InodePages",
    "linux.pagecache.RecoverFs", "linux.vmaregexscan.VmaRegExScan",
    "linux.vmayarascan.VmaYaraScan",
)  # fmt: skip
"""What does not run; files are what `analyse --extract` takes."""

PROFILES = {"quick": QUICK, "full": FULL}
