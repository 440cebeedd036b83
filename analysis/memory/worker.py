# SPDX-License-Identifier: LicenseRef-VSL-1.0
"""The job `memory`: plugins over one kernel, their rows as tables. Runs in a process of its own.

No row of any plugin is believed before the gate: with wrong symbols volatility3 gives empty tables
and says nothing. The kernel's own list must have the process that every running system has, and a
time that is read must be possible, or there are no rows at all, and `coverage` says why.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from analysis import live
from analysis.errors import AnalysisError
from analysis.memory.kernel import clock, image_of, load, plugins, warm
from analysis.memory.linux import Linux
from analysis.memory.profiles import Plugin
from analysis.memory.run import UNUSABLE, Result, SharedChannel, run_all
from analysis.memory.tables import Made, gap
from analysis.memory.windows import Windows
from analysis.output import ParquetSink
from analysis.ram import open_ram
from analysis.rules import compile_rules
from evidence_store.child import Channel
from evidence_store.item import SegmentFile

_SYSTEMS: dict[str, type[Made]] = {kind.system: kind for kind in (Linux, Windows)}
_ISF = "symbols/00000000.json.gz"
_KERNELS = "kernels/00000000.parquet"
_PDBS = "pdbs/00000000.parquet"
_KERNEL_ISF = Path("symbols/kernel.json.gz")
_MAX_ISF = 512 << 20
_MAX_ANSWER = 64 << 20


def main(channel: Channel) -> None:
    """Run the profile that the request names over its item."""
    request = channel.request
    sink = ParquetSink(channel)
    said = _live(channel, sink)
    with channel.image(request["item"]) as image:
        if kernel := trusted(channel, sink, image):
            context, known, made = kernel
            made.live, made.clock = said, clock(context)
            _profile(context, known, made, request)
    sink.close()


def _symbols(channel: Channel, sink: ParquetSink) -> dict[str, Any] | None:
    """Put the symbol table where it can be read; return the row of `kernels`."""
    for item in channel.request["needed"]:
        rows, found = _table(channel, item, _KERNELS), _copy(channel, item, _ISF, _KERNEL_ISF)
        if found and rows and rows[0]["page_table"] is not None:
            pdbs = _table(channel, item, _PDBS)
            for pdb in pdbs:
                if pdb["object"] not in (None, _ISF):
                    # Where volatility3 looks for it. Both parts are of a checked form.
                    name = f"symbols/windows/{pdb['pdb']}/{pdb['guid']}-{pdb['age']}.json.gz"
                    _copy(channel, item, pdb["object"], Path(name))
            return {
                "system": Linux.system,
                **rows[0],
                "lacking": [pdb for pdb in pdbs if pdb["object"] is None],
            }
    whose = "this kernel"
    for item in channel.request["needed"]:
        for row in _table(channel, item, _KERNELS):
            if row.get("system") == Windows.system:
                whose = f"Windows {row['release']} ({row['banner']} {row['build_id']})"
    gap(sink, "symbols", f"no symbols of {whose} could be made: the coverage of the job "
         "symbols says why. Without them its memory is not explained")  # fmt: skip
    return None


def _table(channel: Channel, item: str, name: str) -> list[dict[str, Any]]:
    """Return the rows of a part that the job symbols made; none if it did not make it."""
    fd = channel.open_object(item, name)
    if fd is None:
        return []
    with open(fd, "rb") as f:  # noqa: PTH123
        return list(pq.read_table(f).to_pylist())


def _copy(channel: Channel, item: str, name: str, path: Path) -> bool:
    """Put a part that the job symbols made into this process's folder; False if there is none."""
    part = channel.read_object(item, name, _MAX_ISF)
    if part is None:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(part)
    return True


def _live(channel: Channel, sink: ParquetSink) -> live.Answers | None:
    """Return what the live response beside the image says; None if there is none of that boot."""
    beside = channel.request["beside"]
    if not beside:
        gap(sink, "live", f"{channel.request['alone']}: the lists of this memory are compared with "
             "each other only", level="limit")  # fmt: skip
        return None

    def answer(name: str) -> bytes | None:
        held = beside["objects"].get(name, "")
        return channel.read_object(beside["item"], held, _MAX_ANSWER)

    found = live.read(answer)
    booted = channel.request["boot_id"]
    if booted and found.boot and booted != found.boot:
        gap(sink, "live", f"the host was booted anew between this memory and {beside['item']}: "
             "they are not compared")  # fmt: skip
        return None
    if not (booted and found.boot):
        gap(sink, "live", f"{beside['item']} stands beside this memory because it was "
             f"{'named' if beside['named'] else 'taken from the same target'}: that it is of the "
             "same boot is not known", level="limit")  # fmt: skip
    for problem in found.problems:
        gap(sink, "live", f"{beside['item']}: {problem}")
    return found


def trusted(
    channel: Channel, sink: ParquetSink, image: SegmentFile
) -> tuple[Any, dict[str, Any], Made] | None:
    """Return the kernel of an image whose symbols passed their test, the plugins, and their sink.

    None, and a gap, if there is no such.
    """
    SharedChannel(channel, Path("lock"))
    try:
        ram = open_ram(image)
    except AnalysisError as e:
        gap(sink, "memory", str(e))
        return None
    for problem in ram.problems:
        gap(sink, "memory", problem.reason, offset=problem.offset, length=problem.length)
    facts = _symbols(channel, sink)
    if facts is None:
        return None
    known, missing = plugins()
    kind = _SYSTEMS[facts["system"] or Linux.system]
    try:
        context = load(ram, _KERNEL_ISF, facts)
    except UNUSABLE as e:
        why = f"the symbol table cannot be loaded: {type(e).__name__}: {str(e)[:300]}"
        gap(sink, "symbols", why)
        return None
    known.update(kind.own)
    made = kind(sink, channel.request, image_of(context, facts), ram=ram, missing=missing,
                lacking=facts["lacking"])  # fmt: skip
    run_all(context, known, [Plugin(name) for name in kind.gate], Path("rows"), made.hold)
    if why := made.untrusted():
        gap(sink, "symbols", f"the symbols of {facts['release']} failed their test: {why}")
        return None
    return context, known, made


def _profile(context: Any, known: dict[str, Any], made: Made, request: dict[str, Any]) -> None:
    sink, profile = made.sink, request["options"].get("profile", "quick")
    total = len(made.gate) + len(made.profiles[profile])
    for result in made.held:
        made.take(result)

    def done(result: Result) -> None:
        made.take(result)
        sink.progress(len(made.taken), total)

    for pdb in made.lacking:
        if any(plugin.name.startswith(f"{name}.") for plugin in made.profiles[profile]
               for name in pdb["used_by"].split(", ")):  # fmt: skip
            gap(sink, "plugin", f"{pdb['used_by']} asks for {pdb['pdb']} ({pdb['guid']}, age "
                f"{pdb['age']}), which was not given: symbols kit tells where it is")  # fmt: skip
    warm(context)
    wanted = [*made.profiles[profile], *_rules(made, known, request["given"])]
    run_all(context, known, wanted, Path("rows"), done)
    made.finish()
    _left_out(made, profile)


def _rules(made: Made, known: dict[str, Any], given: list[str]) -> list[Plugin]:
    """Compile the rules that were given; return the plugin that applies them, if there are any."""
    sink = made.sink
    if not given:
        return []
    try:
        compiled, ignored = compile_rules({name: Path(name).read_bytes() for name in given})
    except AnalysisError as e:
        gap(sink, "rules", str(e))
        return []
    for why in ignored:
        gap(sink, "rules", f"ignored: {why}")
    gap(sink, "rules", "rules are judged on 16 MiB of physical memory at a time; what lies "
         "scattered over pages is not seen together", level="limit")  # fmt: skip
    kind = made.rules_kind
    known[kind.name] = type("Rules", (kind,), {"ram": made.ram, "compiled": compiled})
    return [Plugin(kind.name, 3600)]


def _left_out(made: Made, profile: str) -> None:
    sink = made.sink
    run = {*made.gate, *(plugin.name for plugin in made.profiles[profile])}
    more = [plugin.name for plugin in made.profiles["full"] if plugin.name not in run]
    if more:
        gap(sink, "plugin", f"the profile {profile} leaves out {len(more)} plugins that the "
             f"profile full has: {', '.join(more)}", level="limit")  # fmt: skip
    for reason in made.limits:
        gap(sink, "plugin", reason, level="limit")
    if lost := [name for name in made.missing if made.misses(name)]:
        gap(sink, "plugin", f"could not be imported: {', '.join(lost)}")
