# SPDX-License-Identifier: LicenseRef-VSL-1.0
"""Runs plugins over one loaded kernel, each in a fork of its own.

A fork shares the kernel's symbols, costs milliseconds, and can be ended whatever the plugin does:
hang, crash, or eat memory. Its rows go to a file line by line, so that what it gave before it died
is kept. Two run at once where there are two processors.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import gc
import json
import os
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volatility3.framework import constants, exceptions, interfaces
from volatility3.framework import plugins as framework_plugins
from volatility3.framework.configuration import requirements
from volatility3.plugins import timeliner

from analysis.memory.kernel import MODULE
from analysis.memory.profiles import Plugin
from evidence_store.child import Channel
from evidence_store.errors import IntegrityError

MAX_ROWS = 1_000_000
_MAX_LINE = 64 << 10
_MAX_BYTES = 1 << 30
_AT_ONCE = 2
_POLL_S = 0.02


@dataclass
class Result:
    """What a plugin gave.

    Attributes:
        plugin: its name.
        columns: of its rows.
        path: a line of JSON for each row: {"d": depth, "v": values}, or for each event of its
            timeline {"e": message, "k": kind, "t": ISO 8601}.
        problem: why it is not whole; "" if it is.
        cut: whether rows were left out because there were too many.
        seconds: wall clock.
    """

    plugin: str
    path: Path
    columns: list[str]
    problem: str = ""
    cut: bool = False
    seconds: float = 0.0

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield the lines; the last may be torn, and is left out then."""
        if not self.path.exists():
            return
        with self.path.open("rb") as f:
            f.readline()
            for line in f:
                if line.endswith(b"\n"):
                    yield json.loads(line)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield rows, column -> value."""
        for line in self.lines():
            if "v" in line:
                yield dict(zip(self.columns, line["v"], strict=False))


class SharedChannel:
    """Lets forks of this process ask the parent for segments, one at a time.

    A fork that dies between question and answer leaves the answer behind: it left a mark too, and
    whoever comes next first asks for what does not exist until that answer comes.
    """

    def __init__(self, channel: Channel, lock: Path) -> None:
        self._channel = channel
        self._ask = channel.open_object
        self._path = lock
        lock.write_bytes(b"0")
        channel.open_object = self.open_object  # type: ignore[method-assign]

    def open_object(self, item: str, name: str) -> int | None:
        """See Channel.open_object."""
        fd = os.open(self._path, os.O_RDWR)  # of this process: a lock is by open file
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.pread(fd, 1, 0) != b"0":
                self._settle()
            os.pwrite(fd, b"1", 0)
            try:
                return self._ask(item, name)
            finally:
                os.pwrite(fd, b"0", 0)
        finally:
            os.close(fd)

    def _settle(self) -> None:
        message = json.dumps({"message_type": "open", "item": "", "object": ""}).encode()
        sock = self._channel._sock
        sock.send(message)
        while True:
            answer, fds, _, _ = socket.recv_fds(sock, 4096, 1)
            for fd in fds:
                os.close(fd)
            if not answer or answer.startswith(b"\x02not an item"):
                return


def run_all(
    context: Any,
    known: dict[str, Any],
    wanted: list[Plugin],
    folder: Path,
    done: Callable[[Result], None],
    at_once: int = _AT_ONCE,
) -> None:
    """Run plugins; `done` is called with each as it ends."""
    folder.mkdir(exist_ok=True)
    gc.collect()
    gc.freeze()  # or each fork copies all objects when it collects
    waiting = list(wanted)
    running: dict[int, tuple[Plugin, Path, float]] = {}
    ended: list[Result] = []
    at_once = max(1, min(at_once, len(os.sched_getaffinity(0))))
    while waiting or running or ended:
        while waiting and len(running) < at_once:
            plugin = waiting.pop(0)
            path = folder / f"{plugin.name}.jsonl"
            if plugin.name not in known:
                ended.append(Result(plugin.name, path, [], "this volatility3 does not have it"))
                continue
            with warnings.catch_warnings():
                # Of threads beside this one, which only libraries have, the fork uses nothing.
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
            if pid == 0:
                _fork(context, known[plugin.name], plugin, path)
            running[pid] = plugin, path, time.monotonic()
        for pid, (plugin, path, started) in list(running.items()):
            seconds = time.monotonic() - started
            gone, status = os.waitpid(pid, os.WNOHANG)
            problem = ""
            if not gone:
                if seconds < plugin.seconds:
                    continue
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                problem = f"it was ended after {plugin.seconds} s"
            del running[pid]
            ended.append(_result(plugin, path, status, problem, seconds))
        if waiting and len(running) < at_once:
            continue  # the next ones run while results are taken
        if ended:
            done(ended.pop(0))
        else:
            time.sleep(_POLL_S)


def _result(plugin: Plugin, path: Path, status: int, problem: str, seconds: float) -> Result:
    end: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        end = json.loads(path.with_suffix(".end").read_bytes())
    columns: list[str] = []
    with contextlib.suppress(OSError, ValueError), path.open("rb") as f:
        columns = json.loads(f.readline())
    if not problem and not end:
        code = os.waitstatus_to_exitcode(status)
        problem = f"it died (signal {-code})" if code < 0 else f"it ended with status {code}"
    return Result(plugin.name, path, columns, problem or end.get("problem", ""),
                  bool(end.get("cut")), seconds)  # fmt: skip


def _fork(context: Any, kind: Any, plugin: Plugin, path: Path) -> None:
    """In the fork: run it, write its rows, and never return."""
    code = 1
    try:
        end = _write(context, kind, plugin, path)
        temporary = path.with_suffix(".part")
        temporary.write_text(json.dumps(end))
        temporary.rename(path.with_suffix(".end"))
        code = 0
    except BaseException as e:
        sys.stderr.write(f"{plugin.name}: {type(e).__name__}: {e}\n")
    finally:
        os._exit(code)


def _write(context: Any, kind: Any, plugin: Plugin, path: Path) -> dict[str, Any]:
    end: dict[str, Any] = {"problem": "", "cut": False}
    with path.open("wb") as out:
        try:
            _rows(construct(context, kind, plugin), out, end)
        except MemoryError:
            end["problem"] = "it ran out of the memory it may use"
        except IntegrityError:
            raise
        # What a plugin raises on hostile memory is anything; it is told, never hidden.
        except Exception as e:
            end["problem"] = f"it failed: {type(e).__name__}: {str(e)[:300]}"
    return end


def construct(context: Any, kind: Any, plugin: Plugin) -> Any:
    """Return a plugin over the kernel that is loaded. Raises: volatility3's exceptions."""
    base = f"plugins.{kind.__name__}"
    layer = context.modules[MODULE].layer_name
    for need in kind.get_requirements():
        if isinstance(need, requirements.ModuleRequirement):
            context.config[f"{base}.{need.name}"] = MODULE
        elif isinstance(need, requirements.TranslationLayerRequirement):
            context.config[f"{base}.{need.name}"] = layer
    for name, value in plugin.options.items():
        context.config[f"{base}.{name}"] = value
    return framework_plugins.construct_plugin(context, [], kind, "plugins", None, FileHandler)


def _rows(made: Any, out: Any, end: dict[str, Any]) -> None:
    grid = made.run()
    out.write(json.dumps([column.name for column in grid.columns]).encode() + b"\n")
    count = 0

    def take(node: Any, _accumulator: Any) -> None:
        nonlocal count
        count += 1
        if count > MAX_ROWS or out.tell() > _MAX_BYTES:
            raise _EnoughError
        values = [plain(value) for value in node.values]
        line = json.dumps({"d": node.path_depth - 1, "v": values})
        if len(line) > _MAX_LINE:
            line = json.dumps({"d": node.path_depth - 1, "v": [_short(v) for v in values]})
            end["cut"] = True
        out.write(line.encode() + b"\n")

    error = grid.populate(take, None, fail_on_errors=False)
    if isinstance(error, _EnoughError):
        end["cut"] = True
    elif isinstance(error, MemoryError):
        raise error
    elif error is not None:
        end["problem"] = f"it failed after {count} rows: {type(error).__name__}: {str(error)[:300]}"
    if isinstance(made, timeliner.TimeLinerInterface):
        for message, kind, at in made.generate_timeline():
            if isinstance(at, datetime.datetime):
                count += 1
                if count > MAX_ROWS:
                    end["cut"] = True
                    break
                event = {"e": str(message)[:8000], "k": kind.name.lower(), "t": at.isoformat()}
                out.write(json.dumps(event).encode() + b"\n")


class _EnoughError(Exception):
    """More rows than are kept."""


def _short(value: Any) -> Any:
    return value[:4000] if isinstance(value, str) else value


def plain(value: Any) -> Any:
    """Return what JSON has for a value of volatility3; None for one that is absent."""
    if value is None or isinstance(value, interfaces.renderers.BaseAbsentValue):
        return None
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return bytes(value[:2048]).hex()
    if isinstance(value, str):
        return str(value)
    data = getattr(value, "data", None)
    return bytes(data[:2048]).hex() if isinstance(data, bytes) else str(value)[:4000]


class FileHandler(interfaces.plugins.FileHandlerInterface):  # type: ignore[misc]
    """Where a plugin writes a file that it recovered: below `files/` of this process's folder."""

    folder = Path("files")

    def __init__(self, filename: str) -> None:
        super().__init__(filename)
        self.folder.mkdir(exist_ok=True)
        number = sum(1 for _ in self.folder.iterdir())
        self._file = (self.folder / f"{number:08d}").open("w+b")

    def write(self, data: Any) -> int:
        """As a file."""
        return self._file.write(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        """As a file."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """As a file."""
        return self._file.tell()

    def close(self) -> None:
        """As a file."""
        self._file.close()


UNUSABLE = (exceptions.VolatilityException, ValueError, KeyError, AttributeError, TypeError)
"""What loading a symbol table that is none may raise."""

VERSION = constants.PACKAGE_VERSION
