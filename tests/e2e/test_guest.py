# SPDX-License-Identifier: Apache-2.0
"""Memory and live response of a machine behind the practice instance, by the commands of a person.

What the hypervisor sees of its memory, just before and just after, is the judge.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys

import pytest

from pipeline.gameday.serve import standing

pytestmark = [pytest.mark.guest, pytest.mark.xdist_group("guest")]
IMPOUND = [sys.executable, "-I", "-c", "from pipeline.cli import main; main()"]
PAGE = 4096
LIME = struct.Struct("<IIQQQ")


@pytest.fixture
def zone(boot_guest, tmp_path):
    with standing(tmp_path / "gd.env", guest=True) as made:
        assert made.guest, made.left_out
        yield made


@pytest.fixture
def impound(zone, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8",
                   **zone.variables}  # fmt: skip

    def call(*arguments, code=0, text=True):
        done = subprocess.run([*IMPOUND, "--yes", *arguments], cwd=tmp_path, env=environment,
                              stdin=subprocess.DEVNULL, capture_output=True, text=text,
                              check=False, timeout=300)  # fmt: skip
        assert done.returncode in (code if isinstance(code, tuple) else (code,)), done.stderr
        return done.stdout

    return call


def lime_pages(image):
    """Yield (physical address, page) of a LiME image."""
    at = 0
    while at < len(image):
        magic, version, start, end, _ = LIME.unpack_from(image, at)
        assert (magic, version) == (0x4C694D45, 1)
        at += LIME.size
        for address in range(start, end + 1, PAGE):
            yield address, image[at + address - start : at + address - start + PAGE]
        at += end + 1 - start


def test_memory_as_the_hypervisor_sees_it_and_what_lives_there(zone, impound, tmp_path):
    guest, instance = zone.guest, zone.variables["INSTANCE"]
    impound("case", "open", "T-7", "--contact", "soc@example.org")

    before = guest.dump(tmp_path / "before").read_bytes()
    taken = json.loads(impound("--json", "acquire", "memory", instance, "--case", "T-7"))
    after = guest.dump(tmp_path / "after").read_bytes()
    assert taken["verdict"] == "complete", taken
    image = impound("item", "cat", "T-7", taken["item"], text=False)

    same = agree = pages = 0
    for address, page in lime_pages(image):
        pages += 1
        if before[address : address + PAGE] == after[address : address + PAGE]:
            same += 1
            agree += page == after[address : address + PAGE]
    print(f"{pages} pages, {same} unchanged between the dumps, {agree / same:.4%} of them agree")
    assert pages > 0.9 * len(after) / PAGE
    assert same > pages / 2
    assert agree / same >= 0.99
    for what, mark in guest.truth["memory"].items():
        assert mark.encode() in image, what

    live = json.loads(impound("--json", "acquire", "live", instance, "--case", "T-7"))
    outcomes = {c["name"]: c["outcome"] for c in live["collectors"]}
    members = impound("item", "members", "T-7", live["item"])
    assert set(outcomes.values()) <= {"success", "empty", "missing"}, outcomes
    assert members
    assert outcomes[f"deleted/{guest.truth['pids']['plant']}"] == "success"
    shown = impound("case", "show", "T-7")
    assert "acquire memory" in shown or "footprint" in shown
    assert impound("verify", "T-7", "--deep")
    explained(impound, guest, taken["item"], live["item"])
    asked_as_tables(impound, guest, live["item"])
    paired_by_its_boot(impound, tmp_path / "after", live["item"])


def ask(impound, sql):
    answer = json.loads(impound("--json", "query", "T-7", sql))
    return [tuple(row[column] for column in answer["columns"]) for row in answer["rows"]]


def explained(impound, guest, memory, live):
    """The memory of the machine is explained without symbols, and beside what it said of itself."""
    done = json.loads(impound("--json", "analyse", "T-7", "--item", memory, "--jobs", "memory"))
    assert [(r["job"], r["result"]) for r in done["results"]] == [
        ("symbols", "ok"), ("memory", "ok")], done  # fmt: skip

    def asked(sql):
        return ask(impound, sql)

    running = dict(asked("SELECT pid, comm FROM processes ORDER BY pid"))
    pids = guest.truth["pids"]
    assert {1, *pids.values()} <= running.keys()
    assert set(guest.truth["modules"]) <= {name for (name,) in asked("SELECT name FROM modules")}
    views = asked(f"SELECT view, item FROM process_views WHERE pid = {pids['plant']}")
    assert {("pslist", memory), ("live", live)} <= set(views)
    hidden = asked("SELECT pid, explanation FROM findings WHERE rule = 'process.not-live'")
    assert not {pid for pid, _ in hidden} & {1, *pids.values()}
    print(f"{len(running)} processes; not in the live response: {hidden}")

    impound("analyse", "T-7", "--item", memory, "--extract", str(pids["sshd"]), code=(0, 3))
    ((path, held, size),) = asked("SELECT path, held, size FROM extracted")
    assert path == "/usr/sbin/sshd"
    lost = asked("SELECT reason FROM coverage WHERE what = 'extract'")
    assert 0 < held <= size
    assert bool(lost) == (held < size), "what memory lacks is told, and nothing else"


def asked_as_tables(impound, guest, live):
    """What the machine said of itself can be asked, and no line of it is left over."""
    impound("analyse", "T-7", "--item", live, "--jobs", "live", code=(0, 3))
    unread = ask(impound, "SELECT reason FROM coverage WHERE job = 'live' AND level = 'gap'")
    assert unread == []
    plant = guest.truth["pids"]["plant"]
    ((comm, deleted, digest, views),) = ask(impound, "SELECT comm, exe_deleted, exe_sha256, views "
                                            f"FROM live_processes WHERE pid = {plant}")  # fmt: skip
    print(f"process {plant} {comm}: deleted {deleted}, {digest}, listed by {views}")
    assert deleted
    assert len(digest) == 64
    assert views == "processes.proc,processes"
    modules = {name for (name,) in ask(impound, "SELECT name FROM live_modules")}
    assert set(guest.truth["modules"]) <= modules
    ((port,),) = ask(impound, "SELECT DISTINCT local_port FROM live_sockets WHERE comm = 'sshd' "
                     "AND state = 'LISTEN' AND protocol = 'TCP'")  # fmt: skip
    assert port == 22


def paired_by_its_boot(impound, dump, live):
    """Memory that the hypervisor wrote names no host; the boot id in it does."""
    memory = json.loads(impound("--json", "ingest", "T-7", str(dump), "--kind", "memory"))["item"]
    done = json.loads(impound("--json", "analyse", "T-7", "--item", memory, "--jobs", "memory",
                              code=(0, 3)))  # fmt: skip
    assert [r["job"] for r in done["results"]] == ["symbols", "memory"], done
    of_memory = f"SELECT boot_id FROM kernels WHERE item = '{memory}'"
    assert ask(impound, of_memory) == ask(impound, "SELECT boot_id FROM live_host")
    print(ask(impound, f"SELECT job, level, reason FROM coverage WHERE item = '{memory}'"))
    ((source,),) = [(item["source"],) for item in
                    json.loads(impound("--json", "item", "list", "T-7"))["items"]
                    if item["item"] == done["results"][1]["result_item"]]  # fmt: skip
    assert f"with live response {live} by" in source
