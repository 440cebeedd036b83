# SPDX-License-Identifier: Apache-2.0
"""The answers of a host to the collectors of a live response, by script."""

from __future__ import annotations

import json

from tests.evidence_store import kit

BOOT = "0123abcd-0000-4000-8000-0123456789ab"
STARTED = "Tue Nov 24 02:27:16 2026"
BOOT_NS = 1_795_487_000 * 10**9


def stat(pid, comm):
    """/proc/<pid>/stat of a process that started `pid` ticks after boot."""
    return f"{pid} ({comm}) S {pid - 1} " + "0 " * 17 + f"{pid} 0 0"


class Asked(kit.FakeSet):
    """The answers of a live response of a host."""

    def __init__(self, files, target="arn:a", kind="live response", serial="L1", root=True):
        files = {name.encode(): body for name, body in files.items()}
        super().__init__(files, text="live facts", serial=serial)
        self._facts = {"type": kind, "target": target, "root": root}

    @property
    def facts(self):
        return self._facts


def outcome(name, word="success", **more):
    """A line of collectors.jsonl."""
    return json.dumps({"name": name, "outcome": word, **more}).encode() + b"\n"


def answers(
    processes, *, boot=BOOT, boot_ns=BOOT_NS, modules=("loop", "virtio"), tcp=(), more=None
):
    """Return what a host says 100 s after its boot. `processes`: pid -> name."""
    ps = "PID PPID PGID SID TT USER UID EUID NLWP STAT STARTED ELAPSED RSS WCHAN COMMAND\n"
    proc = ""
    for pid, comm in processes.items():
        ps += f"{pid} {pid - 1} 0 0 ? root 0 0 1 S {STARTED} 9 1 x /bin/{comm} -a\n"
        proc += f"== {pid}\n{stat(pid, comm)}\n/bin/{comm} -a\nUid: 0\n/bin/{comm}\n"
    at = boot_ns // 10**9 + 100
    given = {
        "clock": f"{at}.000000000\n100.00 80.00\n",
        "processes": ps, "processes.proc": proc,
        "sockets.proc": "== tcp\n  sl  local_address rem_address   st\n"
        "   0: 00000000:0016 00000000:0000 0A 0:0\n" + "".join(tcp) + "== tcp6\n"
        "   0: 0000000000000000FFFF00000100007F:0016 00000000000000000000000001000000:115C 01 0\n",
        "modules": "".join(f"{m} 1 0 - Live 0x0\n" for m in modules) + "==\nkernel\n==\n0\n",
        "system": f"Linux host\n{boot}\nkernel.x = 1\n",
    }  # fmt: skip
    given |= more or {}
    lines = [{"name": name, "outcome": "success", "began_ns": str((at - 3) * 10**9)}
             for name in given]  # fmt: skip
    given["collectors.jsonl"] = "".join(json.dumps(line) + "\n" for line in lines)
    return {name: text.encode() for name, text in given.items()}
