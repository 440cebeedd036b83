# SPDX-License-Identifier: Apache-2.0
"""verify.sh: a second verifier, of standard tools only, that agrees with the first."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

import evidence_store
from evidence_store.ledger import Draft
from evidence_store.model import canonical
from evidence_store.sign import sign_note
from evidence_store.store import allowed
from tests.evidence_store import kit
from tests.evidence_store.kit import CASE, CHECKPOINT, ENTRY, SECOND, SEGMENT, STRANGER

SCRIPT = Path(evidence_store.__file__).with_name("verify.sh")
SEED = int(os.environ.get("IMPOUND_SEED", "20260102"))
# What the script may use beside the shell: coreutils, findutils, grep, sed, openssl.
TOOLS = [
    "base64",
    "cat",
    "comm",
    "cp",
    "cut",
    "find",
    "grep",
    "head",
    "join",
    "mktemp",
    "od",
    "openssl",
    "rm",
    "sed",
    "sha256sum",
    "sort",
    "stat",
    "tail",
    "tr",
    "wc",
    "xargs",
]


@pytest.fixture(scope="session")
def bin_folder(tmp_path_factory, need_tool_session):
    folder = tmp_path_factory.mktemp("bin")
    for name in TOOLS:
        (folder / name).symlink_to(need_tool_session(name))
    return folder


@pytest.fixture(scope="session")
def need_tool_session():
    from tests.conftest import need_tool

    return need_tool


@pytest.fixture
def run(bin_folder, need_tool):
    """Run the script with dash and nothing else in PATH but the allowed tools."""
    shell = need_tool("dash")

    def run(folder, *options, script=SCRIPT, cwd=None):
        return subprocess.run(
            [shell, str(script), *options, str(folder)],
            env={"PATH": str(bin_folder), "LC_ALL": "de_DE.UTF-8"}, cwd=cwd,
            capture_output=True, text=True, errors="replace", check=False, timeout=120,
        )  # fmt: skip

    return run


def last_line(done):
    return done.stdout.splitlines()[-1]


@pytest.fixture
def full(filled, tmp_path):
    return filled.copy(tmp_path / "full")


def assert_broken(done, why=""):
    assert done.returncode == 1, done.stdout + done.stderr
    assert last_line(done).startswith("BROKEN ")
    assert any(re.search(why, x) for x in done.stdout.splitlines() if x.startswith("BROKEN: ")), (
        done.stdout
    )
    assert done.stderr == ""


# -- sound -----------------------------------------------------------------------------------------


def test_it_uses_no_other_language():
    text = SCRIPT.read_text()
    assert not re.search(r"\b(awk|perl|python3?|xxd|bash|ruby|jq)\b", text)


def test_a_sound_case_is_ok_with_its_root_and_first_key(filled, run):
    checkpoint = filled.case.latest_checkpoint()
    done = run(filled.folder)
    assert (done.returncode, done.stderr) == (0, "")
    said, verdict = done.stdout.splitlines()
    assert said.startswith("not checked: ")
    assert verdict == (
        f"OK 9 entries, 2 items, root {checkpoint}, first key {ENTRY.public.fingerprint}"
    )
    quick = run(filled.folder, "-q")
    assert quick.returncode == 0
    assert last_line(quick) == last_line(done)
    assert "note: quick" in quick.stdout


def test_it_runs_from_anywhere_and_with_odd_folder_names(filled, run, tmp_path):
    script = tmp_path / "copied.sh"
    shutil.copy(SCRIPT, script)
    root = tmp_path / "-odd\n store"
    shutil.copytree(filled.root, root)
    assert run(f"cases/{CASE}", script=script, cwd=root).returncode == 0
    assert run(root / "cases" / CASE, script=script).returncode == 0
    dashed = tmp_path / "-r"
    shutil.copytree(filled.folder, dashed)
    assert run("-r", script=script, cwd=tmp_path).returncode == 2  # an option without its value
    (tmp_path / "own" / "cases").mkdir(parents=True)
    shutil.copy(filled.root / "store.json", tmp_path / "own")
    dashed.rename(tmp_path / "own" / "cases" / "-r")
    alone = run("./-r", script=script, cwd=tmp_path / "own" / "cases")
    assert alone.returncode == 0
    assert "the folder is called -r" in alone.stdout


def test_it_runs_under_bash_too(filled, bin_folder, need_tool, tmp_path):
    world = filled.copy(tmp_path / "world")
    for code in (0, 1):
        done = subprocess.run(
            [need_tool("bash"), "--posix", str(SCRIPT), str(world.folder)],
            env={"PATH": str(bin_folder)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (code, ""), done.stdout
        kit.flip(world.folder / "items" / "E0001" / "data" / f"{0:016x}", 5)


def test_it_pleases_shellcheck(need_tool):
    done = subprocess.run(
        [need_tool("shellcheck"), str(SCRIPT)], capture_output=True, text=True, check=False
    )
    assert done.stdout == ""
    assert done.returncode == 0


def test_a_missing_store_json_is_a_finding_in_both(filled, run, tmp_path):
    world = filled.copy(tmp_path / "world")
    (world.root / "store.json").unlink()
    assert_broken(run(world.folder), "store.json is missing")
    assert world.verify().outcome == "broken"
    (world.root / "store.json").symlink_to(filled.root / "store.json")
    assert_broken(run(world.folder), "store.json is missing")
    assert world.verify().outcome == "broken"


def test_it_says_what_it_does_not_check(filled, run):
    (line,) = [x for x in run(filled.folder).stdout.splitlines() if x.startswith("not checked: ")]
    for part in ("canonical form and whole schema", "digests of all bytes in order", "clocks"):
        assert part in line
    usage = run(filled.folder, "-h").stdout
    assert "Not checked: canonical form and whole schema" in usage


@pytest.mark.parametrize(
    "options",
    [["-k", "abc"], ["-k", "g" * 64], ["-r", "5"], ["-r", "x:y"], ["-z"]],
    ids=["short key", "no hex", "no root", "no size", "unknown"],
)
def test_wrong_use_is_2(filled, run, options):
    done = run(filled.folder, *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage:" in done.stderr


def test_what_is_no_case_is_2(run, tmp_path):
    assert run(tmp_path).returncode == 2
    assert run(tmp_path / "none").returncode == 2


def test_first_key_and_receipt_are_compared(filled, run):
    key, receipt = ENTRY.public.fingerprint, str(filled.case.latest_checkpoint())
    assert run(filled.folder, "-k", key, "-r", receipt).returncode == 0
    assert run(filled.folder, "-k", key.upper(), "-q").returncode == 0
    assert_broken(run(filled.folder, "-k", STRANGER.public.fingerprint), "opened with the key")
    assert_broken(run(filled.folder, "-r", "9:" + "A" * 43 + "="), "as the receipt does")
    assert_broken(run(filled.folder, "-r", "10:" + receipt[2:]), "as the receipt does")


def test_a_rollback_is_found_by_the_receipt(filled, run, tmp_path):
    world = filled.copy(tmp_path / "new")
    world.note("later")
    receipt = str(world.case.seal(CHECKPOINT))
    assert run(world.folder, "-r", receipt).returncode == 0
    assert_broken(run(filled.folder, "-r", receipt), "as the receipt does")


def test_free_form_fields_cannot_pass_for_the_chain(world, run):
    world.case.record(lambda: Draft("review.noted", {
        "note": 'quoted "prev":"00" \\ and { [ ] } , :',
        "data": {"prev": "0" * 64, "seq": 7, "origin": "x", "action": "case.sealed",
                 "item": "E9999",
                 "keys": [{"kid": STRANGER.public.kid, "sha256": STRANGER.public.fingerprint,
                           "use": "entry", "name": "x"}],
                 "deep": [[{"a": {"b": [1, True, None, "}"]}}]], "esc": 'a\\"b\\\\'},
    }))  # fmt: skip
    world.note("naïve … 漢字")
    world.seal()
    done = run(world.folder)
    assert done.returncode == 0, done.stdout
    assert last_line(done).startswith("OK 3 entries, 0 items")


def test_names_that_need_escapes_in_json(tmp_path, run):
    world = kit.make_world(tmp_path / "store", deployment='a"b"\\\\c\\"/é')
    world.note()
    world.seal()
    assert world.verify().outcome == "clean"
    done = run(world.folder)
    assert done.returncode == 0, done.stdout


def test_a_ledger_that_lists_a_victims_key_first_is_not_the_victims(run, tmp_path):
    """The attacker lists the other's public key first, and signs with an own one."""
    world = kit.make_world(tmp_path / "store")
    opened = world.case.ledger.entries[0].event
    victim = allowed(SECOND.public, opened.keys[0].name, "entry")
    event = opened.model_copy(update={"keys": [victim, *opened.keys]})
    world.entry(0).chmod(0o600)
    world.entry(0).write_bytes(sign_note(event.text(), opened.keys[0].name, kit.ENTRY))
    (world.folder / "keys" / f"{SECOND.public.kid}.pem").write_bytes(SECOND.public.pem())
    done = run(world.folder, "-k", SECOND.public.fingerprint)
    assert_broken(done, "not signed by the first key")
    assert "not signed by the first key" in str(world.verify().findings[0])


def test_a_key_that_nobody_listed_is_a_note(full, run):
    path = full.folder / "keys" / f"{STRANGER.public.kid}.pem"
    path.write_bytes(STRANGER.public.pem())
    done = run(full.folder)
    assert done.returncode == 0, done.stdout
    assert "a key that the ledger does not name" in done.stdout
    path.rename(path.with_name("0" * 8 + ".pem"))
    assert_broken(run(full.folder), "not a key of the case")


def test_keys_added_and_revoked_are_followed(world, run):
    def listed(signer, use):
        name = "local/second" if use == "entry" else f"local/cases/{CASE}"
        return allowed(signer.public, name, use)

    for signer, use in ((SECOND, "entry"), (STRANGER, "checkpoint")):
        key = f"cases/{CASE}/keys/{signer.public.kid}.pem"
        world.store.backend.create(key, signer.public.pem())
        keys = [listed(signer, use)]
        world.case.record(lambda keys=keys: Draft("key.added", {"keys": keys}))
    world.seal()
    world.scribe.signer = SECOND
    world.note()
    world.case.seal(STRANGER)
    for signer, use in ((ENTRY, "entry"), (CHECKPOINT, "checkpoint")):
        keys = [listed(signer, use)]
        world.case.record(lambda keys=keys: Draft("key.revoked", {"keys": keys}))
    world.note()
    world.case.seal(STRANGER)
    assert world.verify().outcome == "clean"
    assert run(world.folder).returncode == 0, run(world.folder).stdout
    # Entry 7 signed by the revoked key; then a checkpoint by the revoked checkpoint key.
    text = world.entry(6).read_bytes().partition(b"\n\n")[0] + b"\n"
    damaged = world.copy(world.root.parent / "damaged")
    from evidence_store.sign import sign_note

    kit.rewrite(damaged.entry(6), sign_note(text, "local/entry", ENTRY))
    assert_broken(run(damaged.folder), "no key that this case allows")
    assert damaged.verify().outcome == "broken"
    note = world.folder / "checkpoints" / f"{7:016d}" / "log.note"
    body = note.read_bytes().partition(b"\n\n")[0] + b"\n"
    kit.rewrite(note, sign_note(body, f"local/cases/{CASE}", CHECKPOINT))
    assert_broken(run(world.folder), "no key that this case allows")
    assert world.verify().outcome == "broken"


@pytest.mark.parametrize("extra", ["stranger", "bad known", "garbage"])
def test_further_signature_lines(world, run, extra):
    from evidence_store.sign import sign_note

    world.note()
    raw = world.entry(1).read_bytes()
    more = {
        "stranger": sign_note(b"other\n", "who", STRANGER),
        "bad known": sign_note(b"other\n", "local/entry", ENTRY),
        "garbage": "\n\n— who AAAA\n".encode(),
    }[extra].rpartition(b"\n\n")[2]
    kit.rewrite(world.entry(1), raw + more)
    done = run(world.folder)
    assert (done.returncode == 0) == (extra == "stranger"), done.stdout
    assert (world.verify().findings == []) == (extra == "stranger")


def test_many_sizes_of_tree(world, run):
    for n in range(40):
        world.seal()
        world.note(str(n))
    world.seal()
    done = run(world.folder)
    assert done.returncode == 0, done.stdout
    assert "OK 41 entries" in done.stdout


def test_it_is_quick(world, run):
    for n in range(60):
        world.note(str(n))
    world.seal()
    begun = time.monotonic()
    assert run(world.folder).returncode == 0
    # 10 ms an entry on an idle core; the bound leaves room for a busy machine.
    assert (time.monotonic() - begun) / 61 < 0.1


# -- notes -----------------------------------------------------------------------------------------


def test_what_is_sound_but_should_be_known_is_a_note(full, run):
    full.note("unsealed")
    full.case.record(lambda: Draft("item.identified", {"item": "E0003", "data": {"kind": "disk"}}))
    full.case.record(lambda: Draft("acquire.started", {"item": "E0003", "refs": [10]}))
    for name in (f"items/E0001/data/{9:016x}", "items/E0002/extra", "items/E0009/x", "beside",
                 "items/E0001/-n odd\nname"):  # fmt: skip
        path = full.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    done = run(full.folder)
    assert done.returncode == 0, done.stdout
    notes = "\n".join(x for x in done.stdout.splitlines() if x.startswith("note: "))
    for part in ("3 entries are not sealed", "E0003 is interrupted", f"data/{9:016x} of item E0001",
                 "extra of item E0002", "items/E0009", "odd name", "beside ledger"):  # fmt: skip
        assert part in notes, part
    assert full.verify().findings == []


def test_a_disposed_item_is_not_missed(full, run):
    full.case.record(lambda: Draft("item.disposed", {"item": "E0001"}))
    shutil.rmtree(full.folder / "items" / "E0001")
    done = run(full.folder)
    assert done.returncode == 0
    assert "E0001 was disposed of" in done.stdout


# -- broken ----------------------------------------------------------------------------------------


def test_a_truncated_tail_and_a_forged_tail_are_found(full, run, tmp_path):
    forged = full.copy(tmp_path / "forged")
    full.entry(8).unlink()
    assert_broken(run(full.folder), "end was removed")
    forged.entry(8).unlink()
    forged.scribe.new_id = kit.fake_ids("forged")
    forged.case.record(lambda: Draft("review.noted", {"note": "forged"}))
    assert_broken(run(forged.folder), "not those that were sealed")


def test_hostile_names_do_not_pass_for_what_is_missing(full, run):
    """A folder called "a<newline>data" makes a listing show a segment that is not there."""
    segment = full.folder / "items" / "E0001" / "data" / f"{0:016x}"
    body = segment.read_bytes()
    segment.unlink()
    trap = full.folder / "items" / "E0001" / "a\ndata"
    trap.mkdir()
    (trap / segment.name).write_bytes(body)
    for options in ((), ("-q",)):
        assert_broken(run(full.folder, *options), f"data/{0:016x} is missing")
    (full.folder / "ledger" / "-rf *\n\x1b[31m$(touch pwned)").write_bytes(b"")
    done = run(full.folder)
    assert "\x1b" not in done.stdout
    assert_broken(done, "not an entry")


def test_a_link_does_not_pass_for_a_file(full, run, tmp_path):
    for name in (f"items/E0001/data/{0:016x}", "items/E0002/members.jsonl",
                 "items/E0001/manifest.json", f"keys/{ENTRY.public.kid}.pem",
                 f"ledger/{3:016d}.note", f"checkpoints/{9:016d}/last.proof"):  # fmt: skip
        path, aside = full.folder / name, tmp_path / "aside"
        path.rename(aside)
        path.symlink_to(aside)
        assert_broken(run(full.folder))
        assert full.verify().outcome == "broken"
        path.unlink()
        aside.rename(path)
    assert run(full.folder).returncode == 0


def test_quick_finds_presence_and_size_and_full_finds_content(full, run):
    path = full.folder / "items" / "E0001" / "data" / f"{4:016x}"
    whole = path.read_bytes()
    assert len(whole) == SEGMENT // 2
    kit.flip(path, 4242)
    assert run(full.folder, "-q").returncode == 0
    assert_broken(run(full.folder), f"data/{4:016x}")
    kit.rewrite(path, whole[:-1])
    assert_broken(run(full.folder, "-q"), "size")


@pytest.mark.parametrize("body", [b"", b"\n", b"-----BEGIN PUBLIC KEY-----\n", b"\0\n\xff"])
def test_a_key_file_of_junk_is_a_finding(full, run, body):
    kit.rewrite(full.folder / "keys" / f"{ENTRY.public.kid}.pem", body)
    assert_broken(run(full.folder, "-q"), "is not a P-256 public key")


@pytest.mark.parametrize("lie", kit.LIES)
def test_an_item_whose_descriptions_contradict_each_other_is_found(full, run, lie):
    item, how, _, why = kit.LIES[lie]
    kit.forge_item(full, item, **how)
    done = run(full.folder, "-q")
    assert_broken(done, why)
    assert all(item in x for x in done.stdout.splitlines() if x.startswith("BROKEN: "))


def test_an_item_signed_again_as_it_was_is_sound(full, run):
    kit.forge_item(full, "E0001")
    kit.forge_item(full, "E0002", members=lambda body: body)
    assert run(full.folder).returncode == 0


def test_totals_are_right_for_images_and_sets_of_many_forms(world, run):
    """The shell adds up holes, gaps and a last segment that is short; each may be the last."""
    end = SEGMENT // 2
    for n, (size, hole, bad) in enumerate([
        (0, None, None), (1, None, None), (SEGMENT, None, None), (SEGMENT, 0, None),
        (3 * SEGMENT + end, 3, None), (3 * SEGMENT + end, 0, None), (3 * SEGMENT, 2, None),
        (3 * SEGMENT + end, None, (3 * SEGMENT, end)), (3 * SEGMENT, 0, (SEGMENT, SEGMENT)),
        (3 * SEGMENT + end, 1, (2 * SEGMENT + 4096, 8192)),
    ]):  # fmt: skip
        data = kit.pattern(size)
        holes = []
        if hole is not None:
            start, length = hole * SEGMENT, min(SEGMENT, size - hole * SEGMENT)
            data, holes = data[:start] + bytes(length) + data[start + length :], [(start, length)]
        source = kit.FakeImage(data, holes=holes, bad=[bad] if bad else [], serial=f"S{n}")
        world.case.ingest("disk", source, segment_size=SEGMENT, linear=n % 2 == 0)
    files = {b'quoted "object": "0000000000000000" \\': b"1", b"\xff\n": b"",
             b"gone": OSError(5, "Input/output error"), "naïve 漢字".encode(): b"22"}  # fmt: skip
    world.case.ingest("logs", kit.FakeSet(files))
    world.case.ingest("record", kit.FakeSet({}, serial="F2"))
    world.seal()
    assert world.verify(linear=True).findings == []
    done = run(world.folder)
    assert done.returncode == 0, done.stdout
    assert "12 items" in last_line(done)


# -- both verifiers agree --------------------------------------------------------------------------


class Mutation:
    """One random damage to a case, told by a seed."""

    def __init__(self, world, seed):
        self.random = random.Random(seed)
        self.world = world
        self.folder = world.folder
        self.files = sorted(kit.tree(world.folder))
        self.told = self.random.choice(
            [self.flip, self.flip, self.flip, self.truncate, self.append, self.delete, self.swap,
             self.duplicate, self.add, self.rename, self.insert_zero, self.store_json,
             self.no_store_json, self.manifest, self.members, self.lie, self.lie]
        )()  # fmt: skip

    def pick(self):
        # Evenly over kinds of file, so that the many segments do not crowd out the ledger.
        kinds = sorted({name.split("/")[0] for name in self.files})
        kind = self.random.choice(kinds)
        return self.random.choice([n for n in self.files if n.startswith(kind)])

    def change(self, name, change):
        path = self.folder / name
        kit.rewrite(path, change(path.read_bytes()))

    def flip(self):
        name = self.pick()
        if not (size := kit.bits(self.folder / name)):
            return "nothing"
        bit = self.random.randrange(size)
        kit.flip(self.folder / name, bit)
        return f"flip bit {bit} of {name}"

    def store_json(self):
        path = self.folder / "../../store.json"
        bit = self.random.randrange(kit.bits(path))
        kit.flip(path, bit)
        return f"flip bit {bit} of store.json"

    def no_store_json(self):
        (self.folder / "../../store.json").unlink()
        return "delete store.json"

    def item_file(self, name):
        return self.random.choice([n for n in self.files if n.endswith(f"/{name}")])

    def manifest(self):
        """One that looks right, put there by somebody without keys."""
        name = self.item_file("manifest.json")
        described = json.loads((self.folder / name).read_bytes())
        field = self.random.choice(sorted(k for k, v in described.items() if isinstance(v, int)))
        described[field] += 1
        self.change(name, lambda _: canonical(described) + b"\n")
        return f"one more {field} in {name}"

    def members(self):
        name = self.item_file("members.jsonl")
        lines = (self.folder / name).read_bytes().splitlines(keepends=True)
        self.random.shuffle(lines)
        self.change(name, lambda _: b"".join(lines[: self.random.randrange(4)]))
        return f"other lines in {name}"

    def lie(self):
        """What somebody with a stolen entry key (sometimes with both) can make an item say."""
        lie = self.random.choice(sorted(kit.LIES))
        item, how, *_ = kit.LIES[lie]
        old = self.folder.parent / "old"
        shutil.copytree(self.folder / "checkpoints", old)
        kit.forge_item(self.world, item, **how)
        if keep := self.random.random() < 0.5:
            shutil.rmtree(self.folder / "checkpoints")
            shutil.copytree(old, self.folder / "checkpoints")
        shutil.rmtree(old)
        return f"lie: {lie}, {'old' if keep else 'new'} checkpoint"

    def truncate(self):
        name = self.pick()
        keep = self.random.randrange((self.folder / name).stat().st_size + 1)
        self.change(name, lambda body: body[:keep])
        return f"truncate {name} to {keep}"

    def append(self):
        name = self.pick()
        more = self.random.choice([b"\n", b"\0", b"x", b"\n\n", "— a b\n".encode()])
        self.change(name, lambda body: body + more)
        return f"append {more} to {name}"

    def insert_zero(self):
        name = self.pick()
        at = self.random.randrange((self.folder / name).stat().st_size + 1)
        self.change(name, lambda body: body[:at] + b"\0" + body[at:])
        return f"insert NUL into {name} at {at}"

    def delete(self):
        name = self.pick()
        (self.folder / name).unlink()
        return f"delete {name}"

    def swap(self):
        one, two = self.pick(), self.pick()
        first, second = ((self.folder / n).read_bytes() for n in (one, two))
        self.change(one, lambda _: second)
        self.change(two, lambda _: first)
        return f"swap {one} and {two}"

    def other_name(self, name):
        base = self.random.choice(
            ["x", f"{self.random.randrange(12):016x}", f"{self.random.randrange(12):016d}.note",
             "log.note", "-e", ".x", "a\nb", "manifest.json", Path(name).name + "~"]
        )  # fmt: skip
        return str(Path(name).with_name(base))

    def duplicate(self):
        name = self.pick()
        other = self.other_name(name)
        body = (self.folder / name).read_bytes()
        (self.folder / other).unlink(missing_ok=True)
        (self.folder / other).write_bytes(body)
        return f"copy {name} to {other!r}"

    def add(self):
        other = self.other_name(self.pick())
        (self.folder / other).unlink(missing_ok=True)
        (self.folder / other).write_bytes(self.random.randbytes(self.random.randrange(40)))
        return f"put something at {other!r}"

    def rename(self):
        name = self.pick()
        other = self.other_name(name)
        (self.folder / name).rename(self.folder / other)
        return f"rename {name} to {other!r}"


def agree(filled, run, tmp_path, count):
    print(f"IMPOUND_SEED={SEED}")
    differ, broken = [], 0
    for n in range(count):
        world = filled.copy(tmp_path / "world")
        mutation = Mutation(world, SEED * 1000 + n)
        python = world.verify(deep=True)
        shell = run(world.folder)
        broken += python.outcome == "broken"
        if (python.outcome == "broken") != (shell.returncode == 1) or shell.returncode > 1:
            differ.append((n, mutation.told, python.outcome, python.findings, shell.stdout))
        assert shell.stderr == "", (n, mutation.told)
        shutil.rmtree(world.root)
    assert differ == []
    assert broken > count // 2


@pytest.mark.chaos
def test_both_verifiers_agree_on_random_damage(filled, run, tmp_path):
    agree(filled, run, tmp_path, 25)


@pytest.mark.chaos
def test_both_verifiers_agree_on_much_random_damage(filled, run, tmp_path):
    agree(filled, run, tmp_path, 200)
