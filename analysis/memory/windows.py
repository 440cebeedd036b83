# SPDX-License-Identifier: LicenseRef-VSL-1.0
"""Windows: which plugins run, its gate, and its tables from several plugins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from analysis import crossview
from analysis.crossview import Claim
from analysis.memory import calls, rules
from analysis.memory.profiles import Plugin
from analysis.memory.tables import (
    Made,
    Row,
    because,
    impossible,
    match,
    ns,
    number,
    signed,
    time_of,
)

_PSLIST, _INFO = "windows.pslist.PsList", "windows.info.Info"
_PSSCAN, _CMDLINE = "windows.psscan.PsScan", "windows.cmdline.CmdLine"
_MODULES, _MODSCAN = "windows.modules.Modules", "windows.modscan.ModScan"
_DRIVERS, _NETSCAN = "windows.driverscan.DriverScan", "windows.netscan.NetScan"
_PSXVIEW = "windows.malware.psxview.PsXView"
_SCAN_S = 1800

QUICK = (
    Plugin(_PSSCAN, _SCAN_S),
    Plugin(_CMDLINE),
    Plugin(_NETSCAN, _SCAN_S),
    Plugin("windows.netstat.NetStat"),
    Plugin(_MODULES),
    Plugin(_MODSCAN, _SCAN_S),
    Plugin(_DRIVERS, _SCAN_S),
    Plugin("windows.ssdt.SSDT"),
    Plugin(calls.NAME),
    Plugin("windows.callbacks.Callbacks", _SCAN_S),
    Plugin("windows.malware.malfind.Malfind", 900),
    Plugin("windows.malware.ldrmodules.LdrModules", 900),
    Plugin("windows.svcscan.SvcScan", 900),
    Plugin("windows.dlllist.DllList"),
    Plugin("windows.registry.hivelist.HiveList"),
    Plugin("windows.getsids.GetSIDs"),
    Plugin("windows.privileges.Privs"),
    Plugin("windows.envars.Envars"),
    Plugin("windows.sessions.Sessions"),
    Plugin("windows.unloadedmodules.UnloadedModules"),
)
FULL = (
    *QUICK,
    Plugin("windows.pstree.PsTree"),
    Plugin(_PSXVIEW, 2 * _SCAN_S),
    Plugin("windows.malware.drivermodule.DriverModule", _SCAN_S),
    Plugin("windows.malware.hollowprocesses.HollowProcesses", 900),
    Plugin("windows.malware.processghosting.ProcessGhosting", 900),
    Plugin("windows.malware.pebmasquerade.PebMasquerade", 900),
    Plugin("windows.malware.suspicious_threads.SuspiciousThreads", 900),
    Plugin("windows.malware.skeleton_key_check.Skeleton_Key_Check"),
    Plugin("windows.malware.svcdiff.SvcDiff", _SCAN_S),
    Plugin("windows.malware.unhooked_system_calls.UnhookedSystemCalls", 900),
    Plugin("windows.malware.direct_system_calls.DirectSystemCalls", 900),
    Plugin("windows.malware.indirect_system_calls.IndirectSystemCalls", 900),
    Plugin("windows.handles.Handles", 900),
    Plugin("windows.threads.Threads", 900),
    Plugin("windows.thrdscan.ThrdScan", _SCAN_S),
    Plugin("windows.suspended_threads.SuspendedThreads", 900),
    Plugin("windows.orphan_kernel_threads.Threads", _SCAN_S),
    Plugin("windows.filescan.FileScan", _SCAN_S),
    Plugin("windows.mutantscan.MutantScan", _SCAN_S),
    Plugin("windows.symlinkscan.SymlinkScan", _SCAN_S),
    Plugin("windows.timers.Timers"),
    Plugin("windows.driverirp.DriverIrp", _SCAN_S),
    Plugin("windows.devicetree.DeviceTree", _SCAN_S),
    Plugin("windows.etwpatch.EtwPatch", 900),
    Plugin("windows.iat.IAT", 900),
    Plugin("windows.verinfo.VerInfo", 900),
    Plugin("windows.vadinfo.VadInfo", 900),
    Plugin("windows.joblinks.JobLinks"),
    Plugin("windows.kpcrs.KPCRs"),
    Plugin("windows.debugregisters.DebugRegisters"),
    Plugin("windows.bigpools.BigPools"),
    Plugin("windows.windowstations.WindowStations", _SCAN_S),
    Plugin("windows.deskscan.DeskScan", _SCAN_S),
    Plugin("windows.svclist.SvcList"),
    Plugin("windows.getservicesids.GetServiceSIDs"),
    Plugin("windows.consoles.Consoles", 900),
    Plugin("windows.cmdscan.CmdScan", 900),
    Plugin("windows.shimcachemem.ShimcacheMem", 900),
    Plugin("windows.registry.hivescan.HiveScan", _SCAN_S),
    Plugin("windows.registry.userassist.UserAssist", 900),
    Plugin("windows.registry.scheduled_tasks.ScheduledTasks", 900),
    Plugin("windows.registry.amcache.Amcache", 900),
    Plugin("windows.registry.getcellroutine.GetCellRoutine"),
    Plugin("windows.virtmap.VirtMap"),
)
# volatility3 passes over much that it does not find without a word.
NEVER_EMPTY = frozenset((
    _PSSCAN, _CMDLINE, _MODULES, _MODSCAN, _DRIVERS, _NETSCAN, "windows.netstat.NetStat",
    "windows.ssdt.SSDT", calls.NAME, "windows.callbacks.Callbacks", "windows.svcscan.SvcScan",
    "windows.malware.ldrmodules.LdrModules", "windows.dlllist.DllList",
    "windows.registry.hivelist.HiveList", "windows.getsids.GetSIDs", "windows.privileges.Privs",
    "windows.envars.Envars", "windows.handles.Handles", "windows.threads.Threads",
    "windows.thrdscan.ThrdScan", "windows.filescan.FileScan", "windows.mutantscan.MutantScan",
    "windows.symlinkscan.SymlinkScan", "windows.timers.Timers", "windows.driverirp.DriverIrp",
    "windows.vadinfo.VadInfo", "windows.kpcrs.KPCRs", "windows.verinfo.VerInfo",
))  # fmt: skip
NOT_RUN = (
    "windows.pe_symbols.PESymbols", "windows.pedump.PEDump", "windows.dumpfiles.DumpFiles",
    "windows.memmap.Memmap", "windows.strings.Strings", "windows.vadregexscan.VadRegExScan",
    "windows.vadyarascan.VadYaraScan",
)  # fmt: skip
_CREDENTIALS = ("hashdump", "lsadump", "cachedump")
_MASK = (1 << 48) - 1


def _socket(row: Row) -> Row:
    protocol = str(row["Proto"] or "")
    return {
        "pid": row["PID"], "comm": row["Owner"], "protocol": protocol[:3],
        "family": "AF_INET6" if protocol.endswith("v6") else "AF_INET",
        "type": "DGRAM" if protocol.startswith("UDP") else "STREAM",
        "local_address": row["LocalAddr"], "local_port": number(row["LocalPort"]),
        "remote_address": row["ForeignAddr"], "remote_port": number(row["ForeignPort"]),
        "state": row["State"], "address": signed(row["Offset"]),
    }  # fmt: skip


class Windows(Made):
    """Windows memory."""

    system = "windows"
    gate = (_PSLIST, _INFO)
    profiles = {"quick": QUICK, "full": FULL}  # noqa: RUF012
    limits = (
        f"need arguments and do not run: {', '.join(NOT_RUN)}",
        f"credentials are not taken out of memory: {', '.join(_CREDENTIALS)}",
        "pagefiles are not read: what was paged out is not seen",
    )
    never_empty = NEVER_EMPTY
    rules_kind = rules.WindowsRules
    own = {calls.NAME: calls.Calls}  # noqa: RUF012
    tables = {_NETSCAN: ("sockets", _socket),  # noqa: RUF012
              rules.WindowsRules.name: ("matches", match)}  # fmt: skip

    @classmethod
    def misses(cls, module: str) -> bool:
        """See Made."""
        return super().misses(module) and module.rpartition(".")[2] not in _CREDENTIALS

    def untrusted(self) -> str:
        """Return why the symbols cannot be trusted, "" if they can.

        Every running Windows has a process 4, System, and a time.
        """
        results = {result.plugin: result for result in self.held}
        names = {row["PID"]: row["ImageFileName"] for row in results[_PSLIST].rows()}
        if not names:
            return f"the kernel's list of processes is empty{because(results[_PSLIST])}"
        if names.get(4) != "System":
            return f"there is no process 4, System, among {len(names)}"
        said = {row["Variable"]: row["Value"] for row in results[_INFO].rows()}
        if "SystemTime" not in said:
            return f"no time of the system can be read{because(results[_INFO])}"
        if impossible(time_of(said["SystemTime"])):
            return f"the time of the system would be {said['SystemTime']}"
        return ""

    def finish(self) -> None:
        """Write the tables that need several plugins."""
        views = {
            name: [_viewed(row, name) for row in result.rows()]
            for name, plugin in (("pslist", _PSLIST), ("psscan", _PSSCAN))
            if (result := self.taken.get(plugin)) and not result.problem
        }
        self.write("process_views", (row for view in views.values() for row in view))
        for row in self.rows(_PSXVIEW):
            self.write("process_views", (
                {"view": name, "pid": row["PID"], "comm": row["Name"]}
                for name in ("thrdscan", "csrss") if row.get(name)
            ))  # fmt: skip
        self.write("processes", self._processes(views))
        self.write("modules", self._modules())
        self.write("findings", (claim.row() for claim in self._claims(views)))

    def _claims(self, views: dict[str, list[Row]]) -> Iterator[Claim]:
        yield from crossview.processes(views)
        if self._whole(_MODULES) and self._whole(_MODSCAN):
            yield from crossview.drivers(
                ({"Base": signed(row["Base"])} for row in self.rows(_MODULES)),
                ({**row, "Base": signed(row["Base"])} for row in self.rows(_MODSCAN)),
                ({**row, "Start": signed(row["Start"])} for row in self.rows(_DRIVERS)),
            )
        first, last = (at & _MASK for at in self.image)
        yield from crossview.hooks("ssdt", (
            {**row, "Symbol": "here" if first <= row["Address"] & _MASK <= last else ""}
            for row in self.rows(calls.NAME)
        ))  # fmt: skip
        yield from crossview.hooks("callback", (
            {"Name": row["Type"], "Address": row["Callback"], "Symbol": row["Module"] or ""}
            for row in self.rows("windows.callbacks.Callbacks")
        ))  # fmt: skip
        yield from crossview.injected(
            {**row, "Start": row["Start VPN"]}
            for row in self.rows("windows.malware.malfind.Malfind")
        )
        yield from crossview.unlinked(self.rows("windows.malware.ldrmodules.LdrModules"))
        yield from crossview.matched(self.rows(rules.WindowsRules.name))

    def _whole(self, plugin: str) -> bool:
        result = self.taken.get(plugin)
        return result is not None and not result.problem

    def _processes(self, views: dict[str, list[Row]]) -> Iterator[Row]:
        arguments = {row["PID"]: row["Args"] for row in self.rows(_CMDLINE)}
        # Before Windows 10 a scan has physical addresses. A pid is used again, not at one time.
        scanned = {(row["pid"], row["started"]) for row in views.get("psscan", ())}
        for row in self.rows(_PSLIST):
            view = _viewed(row, "pslist")
            names = ["pslist", *(["psscan"] if (view["pid"], view["started"]) in scanned else [])]
            yield {**view, "args": arguments.get(row["PID"]), "views": ",".join(names)}

    def _modules(self) -> Iterator[Row]:
        listed = {row["Base"]: row for row in self.rows(_MODULES)}
        scanned = {row["Base"]: row for row in self.rows(_MODSCAN)}
        for base in dict.fromkeys([*listed, *scanned]):
            row = listed.get(base) or scanned[base]
            seen = [name for name, view in (("modules", listed), ("modscan", scanned))
                    if base in view]  # fmt: skip
            yield {"name": row["Name"], "size": row["Size"], "address": signed(base),
                   "parameters": row["Path"], "views": ",".join(seen)}  # fmt: skip


def _viewed(row: Row, view: str) -> dict[str, Any]:
    at = row["Offset(V)"] if "Offset(V)" in row else row.get("Offset(P)")
    return {"view": view, "pid": row["PID"], "ppid": row["PPID"], "comm": row["ImageFileName"],
            "state": "exited" if row["ExitTime"] else None, "address": signed(at),
            "started": ns(row["CreateTime"])}  # fmt: skip
