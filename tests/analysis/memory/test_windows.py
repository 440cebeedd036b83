# SPDX-License-Identifier: LicenseRef-VSL-1.0
"""Windows memory made by script, explained by volatility3 with tables that were given."""

from __future__ import annotations

import gzip
import json
import sys
import urllib.request

import pytest

from acquisition.source import open_source
from analysis.jobs import EXTRACT, JOBS, extract_request, run_job
from analysis.memory.run import Result
from analysis.memory.windows import FULL, NEVER_EMPTY, NOT_RUN, Windows
from analysis.output import ParquetSink
from analysis.query import query
from pipeline.symbols import files, take
from tests.analysis import windows_image
from tests.analysis.linked import link, loaded
from tests.analysis.windows_image import BASE, BOOT, ROOTKIT, crash_dump, isf, record, usual
from tests.evidence_store import kit


def explained(tmp_path, data, table, job="memory", **options):
    """Take an image into a case and run a job over it with a table; return world and result."""
    (tmp_path / "memory").write_bytes(data)
    (tmp_path / "table.json").write_text(json.dumps(table))
    world = kit.make_world(tmp_path / "store")
    world.case.ingest("memory", open_source(str(tmp_path / "memory"), "memory"))
    given = {"symbols": files(tmp_path / "table.json"), **options.pop("given", {})}
    kind = EXTRACT if job == "extract" else JOBS[job]
    return world, run_job(world.case, kind, "E0001", given=given, **options)


def rows(world, sql):
    return query(world.case, sql).rows


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    return explained(tmp_path_factory.mktemp("seen"), bytes(usual().bytes), isf())


def test_processes_are_those_of_the_kernels_list(seen):
    world, result = seen
    assert result.result == "partial"
    found = rows(world, "SELECT pid, ppid, comm, args, views, started FROM processes ORDER BY pid")
    start = (BOOT - 116444736000000000) * 100
    assert found == [
        (4, 0, "System", None, "pslist,psscan", start + 4 * 10**9),
        (92, 4, "Registry", None, "pslist,psscan", start + 92 * 10**9),
        (404, 4, "smss.exe", "\\SystemRoot\\smss.exe", "pslist,psscan", start + 404 * 10**9),
        (1200, 404, "evil.exe", '"C:\\evil.exe" -c 192.0.2.7', "pslist,psscan",
         start + 1200 * 10**9),
    ]  # fmt: skip


def test_process_that_was_unlinked_is_found_and_one_that_ended_is_told_apart(seen):
    world, _ = seen
    sql = "SELECT rule, severity, pid FROM findings WHERE rule LIKE 'process%' ORDER BY pid"
    assert rows(world, sql) == [
        ("process.hidden", "high", 1300), ("process.ended", "info", 1400)]  # fmt: skip
    assert rows(world, "SELECT view, state FROM process_views WHERE pid = 1400") == [
        ("psscan", "exited")
    ]


def test_drivers_that_the_list_leaves_out_are_told_apart_by_their_objects(seen):
    world, _ = seen
    sql = "SELECT name, views FROM modules ORDER BY name"
    assert rows(world, sql) == [
        ("ntoskrnl.exe", "modules,modscan"), ("old.sys", "modscan"), ("rootkit.sys", "modscan"),
        ("tcpip.sys", "modules,modscan"),
    ]  # fmt: skip
    sql = "SELECT address FROM modules WHERE name = 'rootkit.sys'"
    assert rows(world, sql) == [(ROOTKIT - (1 << 64),)]
    sql = "SELECT severity, title, explanation FROM findings WHERE rule = 'module.hidden'"
    assert sorted(rows(world, sql)) == [
        ("high", "module rootkit.sys is not in the kernel's list", "hidden or race"),
        ("medium", "module old.sys is not in the kernel's list", "unloaded or hidden"),
    ]


def test_system_call_that_leads_out_of_the_kernel_is_a_hook(seen):
    world, _ = seen
    sql = "SELECT rule, severity, title, address FROM findings WHERE rule LIKE '%ssdt'"
    ((rule, severity, title, address),) = rows(world, sql)
    assert (rule, severity, title) == (
        "hook.ssdt", "high", "ssdt entry 1 leads out of the kernel")  # fmt: skip
    assert address & (1 << 48) - 1 == ROOTKIT + 0x10 & (1 << 48) - 1


def test_code_in_memory_of_a_process_is_found(seen):
    world, _ = seen
    sql = "SELECT pid, address, title FROM findings WHERE rule = 'memory.injected'"
    assert rows(world, sql) == [
        (1200, 0x700000, "process 1200 evil.exe has executable memory of its own")]  # fmt: skip


def test_libraries_and_times_stand_in_their_tables(seen):
    world, _ = seen
    sql = "SELECT data FROM memory WHERE plugin = 'windows.dlllist.DllList' AND pid = 1200"
    assert {json.loads(data)["Name"] for (data,) in rows(world, sql)} == {"evil.exe", "ntdll.dll"}
    sql = "SELECT DISTINCT source FROM timeline ORDER BY 1"
    assert ("windows.pslist.PsList",) in rows(world, sql)


def test_what_says_nothing_is_a_gap_and_no_empty_table(seen):
    """The kernel of the test has no sockets and no callbacks, as no real one has."""
    world, _ = seen
    said = " ".join(r for (r,) in rows(world, "SELECT reason FROM coverage WHERE level = 'gap'"))
    for plugin in ("netscan.NetScan", "callbacks.Callbacks", "privileges.Privs"):
        assert f"windows.{plugin} gave no rows, though every running system has some" in said
    assert "windows.registry.hivelist.HiveList: it failed after 0 rows" in said
    assert "could not be imported" not in said
    limits = " ".join(r for (r,) in rows(world, "SELECT reason FROM coverage "
                                         "WHERE level = 'limit'"))  # fmt: skip
    assert "credentials are not taken out of memory" in limits


@pytest.mark.chaos
@pytest.mark.parametrize("kind", [1, 5], ids=["full", "by bitmap"])
def test_crash_dump_is_explained_as_raw_memory_is(tmp_path, kind):
    world, _ = explained(tmp_path, crash_dump(usual(), kind), isf())
    found = rows(world, "SELECT pid FROM processes ORDER BY pid")
    assert found == [(4,), (92,), (404,), (1200,)]
    assert ("process.hidden", 1300) in rows(world, "SELECT rule, pid FROM findings")


def test_pdb_and_executable_of_a_linker_explain_a_machine(tmp_path, monkeypatch, need_tool):
    """From the PDB to the process that was unlinked, by what a user runs."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    executable, pdb = link(need_tool, tmp_path)
    (taken,) = take([pdb])
    with gzip.open(taken["file"]) as f:
        table = json.load(f)
    machine = usual(table=table, image=loaded(executable))
    world, _ = explained(tmp_path, bytes(machine.bytes), table)
    found = rows(world, "SELECT pid, comm FROM processes ORDER BY pid")
    assert found == [(4, "System"), (92, "Registry"), (404, "smss.exe"), (1200, "evil.exe")]
    assert ("process.hidden", 1300) in rows(world, "SELECT rule, pid FROM findings")


def test_pdb_of_a_driver_that_is_wanted_is_a_gap_of_what_asks_for_it(tmp_path):
    machine = usual()
    for n, name in enumerate(("tcpip.pdb", "conhost.pdb")):
        place = 0x40000 + 0x1000 * n
        machine.bytes[place : place + 64] = record(windows_image.Pdb(name, "CD" * 16, 2))
    world, _ = explained(tmp_path, bytes(machine.bytes), isf())
    said = " ".join(r for (r,) in rows(world, "SELECT reason FROM coverage"))
    assert f"windows.netstat asks for tcpip.pdb ({'CD' * 16}, age 2), which was not given" in said
    assert "asks for conhost.pdb" not in said, "no plugin of this profile does"


def moved(table, kind, field, by):
    table["user_types"][kind]["fields"][field]["offset"] += by
    return table


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("table", "says"),
    [
        (moved(isf(), "_EPROCESS", "UniqueProcessId", 8), "there is no process 4, System"),
        (moved(isf(), "_EPROCESS", "ActiveProcessLinks", 8), "there is no process 4, System"),
        (moved(isf(), "_KUSER_SHARED_DATA", "SystemTime", 8), "no time of the system|time of the "
         "system would be"),
        (isf(PsActiveProcessHead=0x7000), "list of processes is empty|there is no process 4"),
        ({**isf(), "user_types": {}}, "the symbol table cannot be loaded"),
    ],
    ids=["other pids", "other links", "other time", "other head", "no types"],
)  # fmt: skip
def test_wrong_symbols_are_no_rows_and_a_reason(tmp_path, table, says):
    world, result = explained(tmp_path, bytes(usual().bytes), table)
    assert (result.result, set(result.rows)) == ("failed", {"coverage"})
    reasons = [r for (r,) in rows(world, "SELECT reason FROM coverage WHERE what = 'symbols'")]
    assert any(one in reason for one in says.split("|") for reason in reasons), reasons


@pytest.mark.chaos
def test_list_that_leads_into_itself_ends(tmp_path):
    machine = usual()
    head = machine.symbol("PsActiveProcessHead")
    first = machine._lists[head][0]
    machine.kernel.put(machine._lists[head][2], (first.to_bytes(8, "little")))
    world, _ = explained(tmp_path, bytes(machine.bytes), isf())
    assert {pid for (pid,) in rows(world, "SELECT pid FROM processes")} == {4, 92, 404, 1200}


@pytest.mark.chaos
def test_hostile_names_are_text_and_no_end(tmp_path):
    machine = usual()
    machine.process(2000, 4, "\x1b[31m\xff;<b>")
    world, _ = explained(tmp_path, bytes(machine.bytes), isf())
    ((comm,),) = rows(world, "SELECT comm FROM processes WHERE pid = 2000")
    assert "<b>" in comm


RULES = {"memory": {"a.yar": b"rule code { strings: $a = { 55 48 90 90 90 90 } condition: $a }"}}


def test_rules_match_with_the_process_that_has_the_page(tmp_path):
    world, _ = explained(tmp_path, bytes(usual().bytes), isf(), given=RULES)
    assert rows(world, "SELECT rule, pid, comm, virtual FROM matches") == [
        ("code", 1200, "evil.exe", 0x700000)]  # fmt: skip


@pytest.mark.chaos
def test_rules_match_where_no_owner_of_a_page_can_be_found(tmp_path):
    table = isf()
    del table["user_types"]["_EPROCESS"]["fields"]["VadRoot"]
    world, _ = explained(tmp_path, bytes(usual().bytes), table, given=RULES)
    assert rows(world, "SELECT rule, pid FROM matches") == [("code", None)]
    said = " ".join(r for (r,) in rows(world, "SELECT reason FROM coverage"))
    assert "not all owners of pages are known" in said


def test_files_are_not_taken_out_of_windows_and_that_is_said(tmp_path):
    asked = {"extract": extract_request([4], [])}
    world, result = explained(tmp_path, bytes(usual().bytes), isf(), "extract", given=asked)
    assert result.result == "failed"
    said = " ".join(r for (r,) in rows(world, "SELECT reason FROM coverage"))
    assert "files are taken out of memory of Linux only" in said


def test_table_of_a_drivers_pdb_is_found_by_plugins(tmp_path, monkeypatch):
    """As netstat asks for that of tcpip.sys; nothing asks a server."""
    from volatility3 import symbols
    from volatility3.framework import constants
    from volatility3.framework.symbols.windows import pdbutil

    from analysis.memory.kernel import load

    table = isf(windows_image.Pdb("tcpip.pdb", "CD" * 16, 2))
    place = tmp_path / f"symbols/windows/tcpip.pdb/{'CD' * 16}-2.json"
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps(table))
    (tmp_path / "symbols/kernel.json").write_text(json.dumps(isf()))
    # What loading sets for a whole process, which this one is not: later tests do use the network.
    for owner, name in (
        (symbols, "__path__"), (pdbutil.PDBUtility, "download_pdb_isf"), (constants, "OFFLINE"),
        (constants, "PARALLELISM"), (urllib.request, "_opener"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, getattr(owner, name))
    monkeypatch.setattr("volatility3.framework.constants.CACHE_PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "jsonschema", None)  # as the process itself has it
    machine = usual()
    facts = {"system": "windows", "kernel_offset": BASE - (1 << 64), "levels": 4,
             "page_table": machine.kernel.top}  # fmt: skip
    context = load(machine.ram(), tmp_path / "symbols/kernel.json", facts)
    find = pdbutil.PDBUtility.load_windows_symbol_table
    kind = "volatility3.framework.symbols.intermed.IntermediateSymbolTable"
    assert find(context, "CD" * 16, 2, "tcpip.pdb", kind, "net")
    assert find(context, "EF" * 16, 1, "tcpip.pdb", kind, "other") is None


def test_every_plugin_of_the_profiles_exists():
    from analysis.memory.kernel import plugins

    known, failed = plugins()
    known.update(Windows.own)
    named = {*Windows.gate, *(plugin.name for plugin in FULL)}
    assert (named | set(NOT_RUN)) - set(known) == set()
    assert named >= NEVER_EMPTY
    assert not [name for name in failed if Windows.misses(name)]
    left = {name for name in known if name.startswith("windows.")} - named - set(NOT_RUN)
    # Older names of the same, and what reads layers or rows that it has not been given.
    aside = {"windows.crashinfo.Crashinfo", "windows.mftscan.ADS", "windows.mftscan.MFTScan",
             "windows.mftscan.ResidentData", "windows.statistics.Statistics",
             "windows.mbrscan.MBRScan", "windows.poolscanner.PoolScanner",
             "windows.windows.Windows", "windows.desktops.Desktops", "windows.vadwalk.VadWalk",
             "windows.truecrypt.Passphrase", "windows.registry.certificates.Certificates",
             "windows.registry.printkey.PrintKey",
             "windows.unhooked_system_calls.unhooked_system_calls"}  # fmt: skip
    last = {name.rpartition(".")[2].lower() for name in named}
    assert {name for name in left - aside if name.rpartition(".")[2].lower() not in last} == set()


def gate(tmp_path, names, said, problem=""):
    made = []
    for name, columns, values in (
        (Windows.gate[0], ["PID", "ImageFileName"], names),
        (Windows.gate[1], ["Variable", "Value"], said),
    ):
        path = tmp_path / f"{name}.jsonl"
        lines = [columns, *({"d": 0, "v": list(row)} for row in values)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        made.append(Result(name, path, columns, problem))
    return Windows(None, {}, (0, 1), held=made).untrusted()


@pytest.mark.parametrize(
    ("names", "said", "says"),
    [
        ([(4, "System")], [("SystemTime", "2024-01-17 01:00:00+00:00")], ""),
        ([], [], "list of processes is empty"),
        ([(4, "evil")], [], "no process 4, System"),
        ([(4, "System")], [], "no time of the system"),
        ([(4, "System")], [("SystemTime", "1601-01-01 00:00:00+00:00")], "would be 1601"),
        ([(4, "System")], [("SystemTime", "2999-01-01 00:00:00+00:00")], "would be 2999"),
        ([(4, "System")], [("SystemTime", "-")], "would be -"),
    ],
    ids=["sound", "empty", "other name", "no time", "too early", "too late", "no sense"],
)
def test_gate(tmp_path, names, said, says):
    why = gate(tmp_path, names, said)
    assert says in why
    assert bool(why) == bool(says)


class Kept(ParquetSink):
    """A sink that keeps rows by table."""

    job = "memory"

    def __init__(self):
        self.tables = {}
        self.gaps = []

    def rows(self, table, batch):
        self.tables.setdefault(table, []).extend(batch.to_pylist())

    def coverage(self, **row):
        self.gaps.append(row)


@pytest.fixture
def made(tmp_path):
    """Give results of plugins to the tables of Windows; return what they became."""

    def run(results):
        sink = Kept()
        windows = Windows(sink, {"item": "E0001", "item_digest": "ab"}, (0x1000, 0x1FFF))
        for plugin, given in results.items():
            path = tmp_path / f"{plugin}.jsonl"
            columns = list(given[0]) if given else ["PID"]
            lines = [columns, *({"d": 0, "v": list(row.values())} for row in given)]
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
            windows.take(Result(plugin, path, columns))
        windows.finish()
        return sink

    return run


def test_sockets_of_windows_stand_in_the_table_of_sockets(made):
    row = {"Offset": 0xA40100001000, "Proto": "TCPv6", "LocalAddr": "::", "LocalPort": 445,
           "ForeignAddr": "*", "ForeignPort": 0, "State": "LISTENING", "PID": 4,
           "Owner": "System", "Created": None}  # fmt: skip
    udp = {**row, "Proto": "UDPv4", "LocalAddr": "0.0.0.0", "State": None, "PID": None}
    found = made({"windows.netscan.NetScan": [row, udp]}).tables["sockets"]
    keys = ("pid", "protocol", "family", "type", "local_port", "state", "comm")
    assert [tuple(one[key] for key in keys) for one in found] == [
        (4, "TCP", "AF_INET6", "STREAM", 445, "LISTENING", "System"),
        (0, "UDP", "AF_INET", "DGRAM", 445, None, "System"),
    ]
    assert found[0]["address"] == 0xFFFFA40100001000 - (1 << 64)


def test_callback_into_no_module_is_told(made):
    row = {"Type": "PspLoadImageNotifyRoutine", "Callback": 0x5000, "Module": None,
           "Symbol": None, "Detail": None}  # fmt: skip
    named = {**row, "Module": "fltmgr"}
    found = made({"windows.callbacks.Callbacks": [row, named]}).tables["findings"]
    assert [(one["rule"], one["address"]) for one in found] == [("hook.callback", 0x5000)]


def test_views_of_threads_and_sessions_are_kept(made):
    row = {"Name": "x.exe", "PID": 8, "pslist": False, "psscan": True, "thrdscan": True,
           "csrss": False, "Exit Time": None}  # fmt: skip
    found = made({"windows.malware.psxview.PsXView": [row]}).tables["process_views"]
    assert [(one["view"], one["pid"]) for one in found] == [("thrdscan", 8)]


def test_scan_that_was_cut_short_makes_nothing_seem_hidden(made, tmp_path):
    gone = {"Offset": 1, "Base": 2, "Size": 3, "Name": "a.sys", "Path": "a", "File output": ""}
    sink = made({"windows.modscan.ModScan": [gone]})
    assert "findings" not in sink.tables, "without the list nobody knows what it leaves out"
