# SPDX-License-Identifier: LicenseRef-VSL-1.0
"""The job `extract`: executables of processes and files of the page cache, as files of a result.

What memory does not hold of a file stands as zeros in it, and where is told (`absent`): its digest
is that of the file only if nothing is absent. Paths and sizes are hostile: a file is named by a
number, its path is a column; no file and no sum of them grows over its limit.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from volatility3.framework import exceptions, interfaces, renderers
from volatility3.framework.configuration import requirements
from volatility3.framework.renderers import format_hints
from volatility3.framework.symbols import linux
from volatility3.plugins.linux import pagecache, pslist

from analysis.memory.linux import Linux
from analysis.memory.profiles import Plugin
from analysis.memory.run import Result, run_all
from analysis.memory.tables import gap
from analysis.memory.worker import trusted
from analysis.output import ParquetSink
from evidence_store.child import Channel

NAME = "impound.extract"
MAX_FILES = 1000
MAX_FILE_BYTES = 1 << 30
MAX_BYTES = 4 << 30
_PAGE = 4096
_SECONDS = 3600
_MAX_RUNS = 200
_FOLDER = Path("out/content")


class Extract(interfaces.plugins.PluginInterface):  # type: ignore[misc]
    """Files that were asked for; set `pids` and `paths` on a subclass."""

    _required_framework_version = (2, 0, 0)
    pids: frozenset[int]
    paths: tuple[str, ...]
    folder = _FOLDER

    @classmethod
    def get_requirements(cls) -> list[Any]:
        """See PluginInterface."""
        return [requirements.ModuleRequirement(name="kernel", description="Linux kernel")]

    def run(self) -> Any:
        """See PluginInterface."""
        columns = [
            ("Kind", str), ("PID", int), ("Process", str), ("Path", str), ("Inode", int),
            ("Size", int), ("Held", int), ("SHA256", str), ("Absent", str), ("File", str),
            ("Address", format_hints.Hex), ("Problem", str),
        ]  # fmt: skip
        self.made = 0
        self.bytes = 0
        self.folder.mkdir(parents=True, exist_ok=True)
        return renderers.TreeGrid(columns, ((0, row) for row in self._generator()))

    def _generator(self) -> Iterator[tuple[Any, ...]]:
        left = set(self.pids)
        if self.pids:
            for task in pslist.PsList.list_tasks(self.context, self.config["kernel"]):
                if int(task.pid) in left:
                    left.discard(int(task.pid))
                    yield self._executable(task)
        for pid in sorted(left):
            yield self._row("executable", pid, problem="the kernel's list has no such process")
        unmatched = set(self.paths)
        if self.paths:
            inodes = pagecache.Files.get_inodes(
                self.context, self.config["kernel"], follow_symlinks=False
            )
            for found in inodes:
                path = str(found.path)
                hits = [p for p in self.paths if path == p or fnmatch.fnmatchcase(path, p)]
                if hits and found.inode.is_reg:
                    unmatched.difference_update(hits)
                    yield self._file("file", None, None, path, found.inode)
        for path in sorted(unmatched):
            yield self._row("file", None, path=path, problem="no cached file has this path")

    def _executable(self, task: Any) -> tuple[Any, ...]:
        pid = int(task.pid)
        try:
            comm = str(task.comm.cast("string", max_length=16, errors="replace"))
            if not task.mm:
                why = "it is a thread of the kernel and has no executable"
                return self._row("executable", pid, comm, problem=why)
            file = task.mm.exe_file
            if not file or not file.is_readable():
                why = "its executable is not in memory"
                return self._row("executable", pid, comm, problem=why)
            path = linux.LinuxUtilities.path_for_file(self.context, task, file)
            return self._file("executable", pid, comm, path, file.dereference().f_inode)
        except exceptions.InvalidAddressException as e:
            why = f"it cannot be read: {type(e).__name__}"
            return self._row("executable", pid, problem=why)

    def _file(
        self, kind: str, pid: int | None, comm: str | None, path: str, inode: Any
    ) -> tuple[Any, ...]:
        try:
            size, number = int(inode.i_size), int(inode.i_ino)
        except exceptions.InvalidAddressException:
            return self._row(kind, pid, comm, path, problem="its inode is not in memory")
        if self.made >= MAX_FILES:
            why = f"only {MAX_FILES} files are taken at once"
        elif not 0 <= size <= MAX_FILE_BYTES:
            why = f"it would have {size} bytes; at most {MAX_FILE_BYTES} are taken"
        elif self.bytes + size > MAX_BYTES:
            why = f"all files together would have more than {MAX_BYTES} bytes"
        else:
            return self._take(kind, pid, comm, path, inode, size, number)
        return self._row(kind, pid, comm, path, number, size, problem=why)

    def _take(
        self, kind: str, pid: int | None, comm: str | None, path: str, inode: Any, size: int,
        number: int,
    ) -> tuple[Any, ...]:  # fmt: skip
        name = f"{self.made:08d}.bin"
        pages: set[int] = set()
        problem = ""
        with (self.folder / name).open("w+b") as out:
            out.truncate(size)
            try:
                for index, content in inode.get_contents():
                    if index in pages or not 0 <= index * _PAGE < size:
                        continue
                    out.seek(index * _PAGE)
                    out.write(content[: min(_PAGE, size - index * _PAGE)])
                    pages.add(index)
            except exceptions.VolatilityException as e:
                problem = f"its pages could be read only in part: {type(e).__name__}"
            absent = missing(pages, size)
            if size and not pages:
                (self.folder / name).unlink()
                why = problem or "none of it is in memory"
                return self._row(kind, pid, comm, path, number, size, problem=why)
            out.flush()
            out.seek(0)
            digest = hashlib.file_digest(out, "sha256").hexdigest()
        self.made += 1
        self.bytes += size
        lost = sum(end - start for start, end in absent)
        if lost and not problem:
            problem = f"{lost} of its {size} bytes are not in memory and stand as zeros"
        return self._row(kind, pid, comm, path, number, size, size - lost, digest, absent, name,
                         int(inode.vol.offset), problem)  # fmt: skip

    def _row(
        self, kind: str, pid: int | None, comm: str | None = None, path: str | None = None,
        inode: int | None = None, size: int | None = None, held: int | None = None,
        digest: str | None = None, absent: list[tuple[int, int]] | None = None,
        name: str | None = None, address: int | None = None, problem: str = "",
    ) -> tuple[Any, ...]:  # fmt: skip
        runs = None if absent is None else json.dumps(absent[:_MAX_RUNS])
        at = None if address is None else format_hints.Hex(address)
        values = kind, pid, comm, path, inode, size, held, digest, runs, name, at, problem
        return tuple(renderers.NotAvailableValue() if v is None else v for v in values)


def missing(pages: set[int], size: int) -> list[tuple[int, int]]:
    """Return the byte ranges of a file whose pages are not among `pages`.

    >>> missing({0, 2}, 3 * 4096 + 5)
    [(4096, 8192), (12288, 12293)]
    """
    runs: list[tuple[int, int]] = []
    for index in range(-(-size // _PAGE)):
        if index not in pages:
            start, end = index * _PAGE, min((index + 1) * _PAGE, size)
            if runs and runs[-1][1] == start:
                start = runs.pop()[0]
            runs.append((start, end))
    return runs


def main(channel: Channel) -> None:
    """Extract what the request names."""
    sink = ParquetSink(channel)
    asked = json.loads(Path(channel.request["given"][0]).read_bytes())
    with channel.image(channel.request["item"]) as image:
        if kernel := trusted(channel, sink, image):
            context, known, made = kernel
            if not isinstance(made, Linux):
                gap(sink, "extract", "files are taken out of memory of Linux only")
                sink.close()
                return
            kind = type("Extract", (Extract,), {
                "pids": frozenset(asked["pids"]), "paths": tuple(asked["paths"])})  # fmt: skip
            known[NAME] = kind
            run_all(context, known, [Plugin(NAME, _SECONDS)], Path("rows"),
                    lambda result: _keep(result, channel, sink, made.write))  # fmt: skip
    sink.close()


def _keep(result: Result, channel: Channel, sink: ParquetSink, write: Any) -> None:
    """Announce the files whose row is there, and tell what is missing."""
    if result.problem:
        gap(sink, "extract", f"{NAME}: {result.problem}")
    rows = []
    for row in result.rows():
        who = f"process {row['PID']}" if row["PID"] is not None else str(row["Path"])
        if row["Problem"]:
            path = None if row["Path"] is None else str(row["Path"])
            gap(sink, "extract", f"{row['Kind']} of {who}: {row['Problem']}", path=path)
        if row["File"] is None:
            continue
        name = f"content/{row['File']}"
        channel.send("part", table="content", name=name, rows=1)
        rows.append({
            "kind": row["Kind"], "pid": row["PID"], "comm": row["Process"], "path": row["Path"],
            "inode": row["Inode"], "size": row["Size"], "held": row["Held"],
            "sha256": row["SHA256"], "absent": row["Absent"], "object": name,
        })  # fmt: skip
    write("extracted", rows)
