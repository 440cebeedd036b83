# SPDX-License-Identifier: Apache-2.0
"""The command line: results, exit codes, and one clear error for each wrong input."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import pkgutil
import stat
import subprocess
import sys
from pathlib import Path

import click
import pytest

import acquisition
import analysis
import evidence_store
import pipeline
from evidence_store.errors import Error
from pipeline.cli.base import ALIASES, COMMANDS, EXIT_CODES, cli

HEAVY = {"boto3", "botocore", "paramiko", "dbos", "pyarrow", "duckdb", "matplotlib", "pytsk3",
         "volatility3", "dfvfs", "rich", "moto", "sqlalchemy", "psycopg"}  # fmt: skip


def errors_of(package):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if module.name.endswith("errors"):
            yield importlib.import_module(module.name)


def test_every_error_has_an_exit_code_of_the_table():
    for package in (acquisition, analysis, evidence_store, pipeline):
        list(errors_of(package))
    seen, work = set(), [Error]
    while work:
        kind = work.pop()
        seen.add(kind)
        work += kind.__subclasses__()
    assert {kind.exit_code for kind in seen if "tests" not in kind.__module__} <= set(EXIT_CODES)


def test_exit_codes_stand_in_the_help(impound):
    text = impound("--help").out
    for code, meaning in EXIT_CODES.items():
        assert any(line.split(maxsplit=1) == [str(code), meaning] for line in text.splitlines()), (
            code
        )


def test_every_command_has_help_and_takes_the_global_options(impound):
    def walk(command, path):
        yield path, command
        if isinstance(command, click.Group) and command is not cli:
            for name, sub in command.commands.items():
                yield from walk(sub, [*path, name])

    for name in COMMANDS:
        root = cli.get_command(click.Context(cli), name)
        for path, command in walk(root, [name]):
            result = impound(*path, "--help")
            assert result.code == 0, path
            assert command.help, path
            for option in ("--json", "--store", "--passphrase-fd", "--quiet", "--yes"):
                assert option in result.out, (path, option)


def test_examples_in_the_help_stand_on_lines_of_their_own(impound):
    text = impound("--help").out
    assert "\b" not in text
    assert "\\b" not in text
    assert [line.strip() for line in text.splitlines() if "--deep" in line] == [
        "impound verify T-1001 --deep"
    ]
    assert "\\b" not in impound("completion", "--help").out


@pytest.mark.parametrize("group", ["key", "case", "item", "acquire", "plan"])
def test_a_group_alone_shows_its_help(impound, group):
    done = impound(group)
    assert done.code == 2
    assert done.err.startswith(f"Usage: impound {group}")
    assert "\\x0a" not in done.err
    assert impound("--json", group).code == 2


def test_alias_and_unknown_command(impound):
    assert set(ALIASES.values()) <= set(COMMANDS)
    assert impound("analyze", "--help").code == 0
    wrong = impound("anlyse")
    assert wrong.code == 2
    assert "anlyse" in wrong.err


@pytest.mark.parametrize("argv", [["--version"], ["--help"], ["ingest", "--help"]])
def test_start_loads_nothing_heavy(argv):
    code = (
        "import sys; from pipeline.cli.base import run; run(sys.argv[1:]); "
        "print('MODULES', *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True
    )
    loaded = {name.split(".")[0] for name in done.stdout.rpartition("MODULES")[2].split()}
    assert not loaded & HEAVY


def test_ingest_and_verify_load_no_analysis_library(home):
    (home / "disk.img").write_bytes(os.urandom(100_000))
    code = (
        "import sys; from pipeline.cli.base import run\n"
        f"assert run(['case', 'open', 'T-1']) == 0\n"
        f"assert run(['ingest', 'T-1', {str(home / 'disk.img')!r}, '--kind', 'disk']) == 0\n"
        "assert run(['verify', 'T-1', '--deep']) == 0\n"
        "print('MODULES', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.rpartition("MODULES")[2].split()}
    assert not loaded & HEAVY


# -- keys ------------------------------------------------------------------------------------------


def test_key_new_makes_two_protected_keys_once(impound, home):
    made = impound("--json", "key", "new").json["keys"]
    assert [key["use"] for key in made] == ["entry", "checkpoint"]
    for key in made:
        assert stat.S_IMODE(Path(key["private"]).stat().st_mode) == 0o600
        assert "ENCRYPTED" in Path(key["private"]).read_text()
    again = impound("key", "new")
    assert again.code == 11
    assert "nothing was changed" in again.err


def test_empty_passphrase_is_refused(impound, home):
    (home / "pass").write_text("\n")
    result = impound("key", "new")
    assert result.code == 11
    assert "empty" in result.err
    assert not (home / ".config/impound/keys/entry.pem").exists()


def test_wrong_passphrase(opened, home):
    (home / "pass").write_text("wrong\n")
    result = opened("case", "close", "T-1001")
    assert result.code == 11
    assert "wrong passphrase" in result.err
    assert "IMPOUND_PASSPHRASE_FILE" in result.err


def test_passphrase_from_descriptor(impound, monkeypatch, home):
    monkeypatch.delenv("IMPOUND_PASSPHRASE_FILE")
    reading, writing = os.pipe()
    os.write(writing, b"correct horse battery\n")
    os.close(writing)
    result = impound("--passphrase-fd", str(reading), "key", "new")
    os.close(reading)
    assert result.code == 0


def test_no_terminal_and_no_passphrase_is_one_clear_error(impound, monkeypatch):
    monkeypatch.delenv("IMPOUND_PASSPHRASE_FILE")
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        result = impound("key", "new")
    assert result.code == 11
    assert "IMPOUND_PASSPHRASE_FILE" in result.err


def test_second_person_is_let_in_and_out(opened, home, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "other"))
    other = opened("--json", "key", "new").json["keys"][0]
    (tmp_path / "f").write_bytes(b"x" * 5000)
    denied = opened("ingest", "T-1001", tmp_path / "f", "--kind", "disk")
    assert denied.code == 11
    assert "may not sign" in denied.err
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert opened("key", "add", "T-1001", other["public"]).code == 0
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "other"))
    done = opened("ingest", "T-1001", tmp_path / "f", "--kind", "disk")
    assert done.code == 0
    assert "may not seal" in done.err  # the checkpoint key of the other is not allowed
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert opened("seal", "T-1001").code == 0
    assert opened("verify", "T-1001", "--deep").code == 0
    assert opened("key", "revoke", "T-1001", other["kid"]).code == 0
    assert opened("verify", "T-1001", "--deep").code == 0
    assert opened("key", "revoke", "T-1001", "00000000").code == 11
    listed = {k["kid"]: k for k in opened("--json", "case", "show", "T-1001").json["keys"]}
    assert listed[other["kid"]]["revoked"] > listed[other["kid"]]["since"] > 0


def test_a_checkpoint_key_is_revoked_when_there_is_another(opened, tmp_path, monkeypatch):
    own = next(k for k in opened("--json", "key", "show").json["keys"] if k["use"] == "checkpoint")
    only = opened("key", "revoke", "T-1001", own["kid"])
    assert only.code == 11
    assert "only checkpoint key" in only.err
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "other"))
    other = opened("--json", "key", "new").json["keys"][1]
    monkeypatch.delenv("XDG_CONFIG_HOME")
    added = opened("key", "add", "T-1001", other["public"], "--use", "checkpoint")
    assert added.code == 0
    revoked = opened("key", "revoke", "T-1001", own["kid"])
    assert revoked.code == 0
    assert "may not seal" in revoked.err  # nor can it seal its own end
    assert opened("verify", "T-1001").code == 3
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "other"))
    assert opened("seal", "T-1001").code == 0
    assert opened("verify", "T-1001").code == 0


def test_a_checkpoint_key_may_be_kept_elsewhere(impound, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "sealer"))
    public = impound("--json", "key", "new").json["keys"][1]["public"]
    monkeypatch.delenv("XDG_CONFIG_HOME")
    done = impound("case", "open", "T-1001", "--checkpoint-key", public)
    assert done.code == 0
    assert "no checkpoint key here" in done.err
    assert [k["use"] for k in impound("--json", "key", "show").json["keys"]] == ["entry"]
    assert impound("verify", "T-1001").code == 3
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "sealer"))
    assert impound("seal", "T-1001").code == 0
    assert impound("verify", "T-1001").code == 0
    missing = impound("case", "open", "T-1002", "--checkpoint-key", tmp_path / "none")
    assert missing.code == 11


# -- cases -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case_id", ["", "../x", "-x", ".x", "a b", "a/b", "x" * 65, "a\nb", "ä"])
def test_wrong_case_id(impound, case_id):
    result = impound("case", "open", "--", case_id)
    assert result.code == 2
    assert "not a case id" in result.err


def test_open_twice_and_show_unknown(opened):
    again = opened("case", "open", "T-1001")
    assert again.code == 11
    assert "impound case show T-1001" in again.err
    unknown = opened("case", "show", "T-9")
    assert unknown.code == 11
    assert "case list" in unknown.err


def test_list_show_close(opened):
    assert opened("--json", "case", "list").json["cases"][0]["title"] == "lab"
    shown = opened("--json", "case", "show", "T-1001").json
    assert [entry["action"] for entry in shown["entries"]] == ["case.opened"]
    assert opened("case", "close", "T-1001", "--note", "done").code == 0
    refused = opened("ingest", "T-1001", __file__, "--kind", "record")
    assert refused.code == 11
    assert "is closed" in refused.err
    assert opened("verify", "T-1001").code == 0


def test_no_store_says_how_to_make_one(impound):
    result = impound("verify", "T-1001")
    assert result.code == 11
    assert "case open" in result.err


def test_json_errors_are_one_object_on_stderr(impound):
    result = impound("--json", "case", "show", "T-1")
    assert result.out == ""
    error = json.loads(result.err)
    assert error["message_type"] == "exit_error"
    assert error["code"] == 11
    assert error["hint"]
    usage = impound("ingest", "--json")
    assert json.loads(usage.err)["code"] == 2


# -- evidence --------------------------------------------------------------------------------------


def test_ingest_of_a_container_compares_its_own_digest(opened, tmp_path, need_tool):
    need_tool("ewfacquire")
    raw, path = tmp_path / "disk.raw", tmp_path / "disk.E01"
    raw.write_bytes(os.urandom(200_000) + bytes(312_000))
    subprocess.run(
        ["ewfacquire", "-u", "-q", "-c", "none", "-t", path.with_suffix(""), raw],
        check=True, capture_output=True,
    )  # fmt: skip
    done = opened("ingest", "T-1001", path, "--kind", "disk")
    assert done.code == 0, done.err
    assert f"sha256 {hashlib.sha256(raw.read_bytes()).hexdigest()}" in done.out
    assert "equal to the md5 stored in the container" in done.out
    body = bytearray(path.read_bytes())
    body[100_000] ^= 1
    path.write_bytes(body)
    done = opened("ingest", "T-1001", path, "--kind", "disk")
    assert done.code == 3
    assert "GAP: 32768 bytes in 1 ranges unreadable" in done.out
    assert "does not have the MD5 stored in the container" in done.out
    path.write_bytes(body[:2000])
    done = opened("ingest", "T-1001", path, "--kind", "disk")
    assert done.code == 12
    assert done.err.startswith("impound: disk.E01 is damaged: no table of chunks is left")
    assert "--kind record" in done.err


def test_ingest_again_stores_nothing(opened, tmp_path):
    (tmp_path / "disk.img").write_bytes(os.urandom(300_000))
    first = opened("--json", "ingest", "T-1001", tmp_path / "disk.img", "--kind", "disk")
    assert first.code == 0
    again = opened("--json", "ingest", "T-1001", tmp_path / "disk.img", "--kind", "disk")
    assert (again.code, again.json["existing"]) == (0, True)
    assert again.json["manifest"] == first.json["manifest"]
    third = opened("--json", "ingest", "T-1001", tmp_path / "disk.img", "--kind", "disk", "--again")
    assert third.json["item"] == "E0002"


def test_a_source_that_was_written_to_is_not_passed_off_as_taken(opened, tmp_path):
    disk, logs = tmp_path / "disk.img", tmp_path / "logs"
    disk.write_bytes(os.urandom(9000))
    (logs / "sub").mkdir(parents=True)
    (logs / "sub/a.log").write_bytes(b"first")
    assert opened("ingest", "T-1001", disk, "--kind", "disk").code == 0
    assert opened("ingest", "T-1001", logs, "--kind", "logs").code == 0
    assert opened("--json", "ingest", "T-1001", logs, "--kind", "logs").json["existing"]
    disk.write_bytes(os.urandom(9000))
    os.utime(disk, ns=(1, 1))
    (logs / "sub/b.log").write_bytes(b"second")
    again = opened("--json", "ingest", "T-1001", disk, "--kind", "disk")
    assert (again.code, again.json["item"], again.json["existing"]) == (0, "E0003", False)
    more = opened("--json", "ingest", "T-1001", logs, "--kind", "logs")
    assert (more.json["item"], more.json["manifest"]["stored_objects"]) == ("E0004", 2)
    notes = [e["note"] for e in opened("--json", "case", "show", "T-1001").json["entries"]]
    assert "this source was taken as E0001 and has changed since" in notes
    assert opened("verify", "T-1001", "--deep").code == 0


def test_half_a_key_pair_is_never_made(impound, home):
    folder = home / ".config/impound/keys"
    folder.mkdir(parents=True)
    (folder / "checkpoint.pub.pem").write_text("of a key kept elsewhere")
    result = impound("key", "new")
    assert result.code == 11
    assert "checkpoint.pub.pem exists" in result.err
    assert not (folder / "checkpoint.pem").exists()


def test_missing_file_and_wrong_kind(opened, tmp_path):
    missing = opened("ingest", "T-1001", tmp_path / "no", "--kind", "disk")
    assert missing.code == 12
    assert "no such file" in missing.err
    assert opened("ingest", "T-1001", tmp_path, "--kind", "disc").code == 2
    assert opened("--json", "case", "show", "T-1001").json["items"] == []


def test_all_zero_source_is_not_a_success(opened, tmp_path):
    (tmp_path / "zero.img").write_bytes(bytes(1 << 20))
    result = opened("ingest", "T-1001", tmp_path / "zero.img", "--kind", "disk")
    assert result.code == 3
    assert "every byte of the source is zero" in result.out


def test_directory_members_and_cat(opened, tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / "a\nb.log").write_bytes(b"first")
    (folder / "c.log").write_bytes(b"0123456789")
    assert opened("ingest", "T-1001", folder, "--kind", "logs").code == 0
    listed = opened("item", "members", "T-1001", "E0001")
    assert "a\\x0ab.log" in listed.out
    cat = opened("item", "cat", "T-1001", "E0001", "--member", "c.log", "--range", "2-4")
    assert cat.out == "234"
    actions = [e["action"] for e in opened("--json", "case", "show", "T-1001").json["entries"]]
    assert actions[-1] == "item.accessed"
    which = opened("item", "cat", "T-1001", "E0001")
    assert which.code == 11
    assert "--member" in which.err
    assert opened("item", "cat", "T-1001", "E0001", "--range", "4-2").code == 2


def test_hostile_source_text_and_title(impound, tmp_path):
    hostile = "\x1b[2J\u202e<script>\n"
    assert impound("case", "open", "T-1", "--title", hostile).code == 0
    (tmp_path / "f").write_bytes(b"data")
    done = impound("ingest", "T-1", tmp_path / "f", "--kind", "disk", "--source", hostile)
    listed = impound("item", "list", "T-1")
    shown = impound("case", "show", "T-1")
    for result in (done, listed, shown):
        assert result.code == 0
        assert "\x1b" not in result.out + result.err
        assert "\u202e" not in result.out + result.err
    assert impound("verify", "T-1", "--deep").code == 0


def test_source_of_raw_bytes(opened, tmp_path):
    path = tmp_path / os.fsdecode(b"bad\xff\n.img")
    path.write_bytes(b"data" * 100)
    assert opened("ingest", "T-1001", path, "--kind", "disk").code == 0
    assert "bad\\xff\\x0a.img" in opened("item", "list", "T-1001").out


# -- verification ----------------------------------------------------------------------------------


@pytest.fixture
def evidence(opened, tmp_path):
    """T-1001 with a disk; returns (impound, case folder)."""
    (tmp_path / "disk.img").write_bytes(os.urandom(200_000))
    assert opened("ingest", "T-1001", tmp_path / "disk.img", "--kind", "disk").code == 0
    return opened, tmp_path / "work/evidence/cases/T-1001"


def flip(path, at=-20):
    mode = path.stat().st_mode
    path.chmod(0o600)
    body = bytearray(path.read_bytes())
    body[at] ^= 1
    path.write_bytes(body)
    path.chmod(mode)


def test_flipped_segment_is_found_by_deep_and_named(evidence):
    impound, folder = evidence
    flip(folder / "items/E0001/data/0000000000000000")
    assert impound("verify", "T-1001").code == 0
    deep = impound("verify", "T-1001", "--deep")
    assert deep.code == 10
    assert "item E0001: segment 0 (data/0000000000000000) has SHA-256" in deep.out


@pytest.mark.parametrize("name", [
    "items/E0001/manifest.json", "items/E0001/segments.sha256", "ledger/0000000000000002.note",
    "checkpoints/0000000000000005/log.note", "checkpoints/0000000000000005/last.proof",
])  # fmt: skip
def test_flipped_byte_elsewhere_is_found_by_plain_verify(evidence, name):
    impound, folder = evidence
    flip(folder / name)
    result = impound("verify", "T-1001")
    assert result.code == 10, result.out


def test_last_entry_removed(evidence):
    impound, folder = evidence
    max((folder / "ledger").iterdir()).unlink()
    result = impound("--json", "verify", "T-1001")
    assert result.code == 10
    assert any("the end was removed" in f["text"] for f in result.json["findings"])


def test_rollback_of_everything_is_caught_by_what_was_seen_and_by_a_receipt(evidence, tmp_path):
    impound, folder = evidence
    receipt = impound("--json", "seal", "T-1001").json["receipt"]
    for name in ("ledger/0000000000000003.note", "ledger/0000000000000004.note"):
        (folder / name).unlink()
    for part in (folder / "checkpoints/0000000000000005").iterdir():
        part.unlink()
    (folder / "checkpoints/0000000000000005").rmdir()
    assert impound("verify", "T-1001").code == 10
    (state,) = (tmp_path / "home/.local/state/impound/last-seen").rglob("T-1001.json")
    state.unlink()
    assert impound("verify", "T-1001").code == 3  # unfinished, unsealed: nothing else to compare
    expect = f"{receipt['size']}:{receipt['root']}"
    assert impound("verify", "T-1001", "--expect", expect).code == 10
    assert impound("verify", "T-1001", "--expect", "nonsense").code == 2


def test_first_key_is_compared(evidence):
    impound, _ = evidence
    key = impound("--json", "case", "show", "T-1001").json["first_key"]
    assert impound("verify", "T-1001", "--expect-key", key).code == 0
    assert impound("verify", "T-1001", "--expect-key", "0" * 64).code == 10


def test_verify_record_writes_the_verdict(evidence):
    impound, _ = evidence
    assert impound("verify", "T-1001", "--deep", "--record").code == 0
    last = impound("--json", "case", "show", "T-1001").json["entries"][-1]
    assert (last["action"], last["item"], last["result"]) == ("item.verified", "E0001", "ok")


def test_verify_says_what_it_covered_and_linear_covers_all(evidence):
    impound, folder = evidence
    plain, deep, linear = (
        impound("--json", "verify", "T-1001", *flags).json
        for flags in ([], ["--deep"], ["--linear"])
    )
    assert [v["linear_items"] for v in (plain, deep, linear)] == [0, 0, 1]
    assert [v["deep"] for v in (plain, deep, linear)] == [False, True, True]
    assert [len(v["not_covered"]) for v in (plain, deep, linear)] == [2, 1, 0]
    assert "linear digests (images: 1)" in linear["covered"]
    text = impound("verify", "T-1001", "--deep").out
    assert "every object" in text
    assert "not checked: linear digests (--linear does)" in text
    assert "not checked" not in impound("verify", "T-1001", "--linear").out
    assert impound("verify", "T-1001", "--linear", "--record").code == 0
    assert '"how":"linear"' in max((folder / "ledger").iterdir()).read_text()


def test_verify_tells_of_leftovers_without_a_note(evidence):
    impound, folder = evidence
    store = folder.parent.parent
    assert impound("--json", "verify", "T-1001").json["leftovers"] == {
        "temporary": {"files": 0, "bytes": 0}, "quarantine": {"files": 0, "bytes": 0},
    }  # fmt: skip
    (store / "tmp/old").write_bytes(b"12345")
    os.utime(store / "tmp/old", (0, 0))
    (store / "quarantine/x").mkdir(parents=True)
    (store / "quarantine/x/torn").write_bytes(b"12")
    result = impound("verify", "T-1001")
    assert result.code == 0
    assert (
        "left over in tmp/ of the store: 1 of interrupted writes (5 B), no evidence" in result.out
    )
    assert "set aside in quarantine/ of the store: 1 torn (2 B)" in result.out
    assert impound("--json", "verify", "T-1001").json["leftovers"] == {
        "temporary": {"files": 1, "bytes": 5}, "quarantine": {"files": 1, "bytes": 2},
    }  # fmt: skip
    assert (store / "tmp/old").exists()


def test_reading_commands_write_nothing(evidence):
    impound, folder = evidence
    before = sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*"))
    for argv in (["verify", "T-1001", "--deep"], ["case", "show", "T-1001"], ["case", "list"],
                 ["item", "list", "T-1001"], ["query", "T-1001", "select 1"]):  # fmt: skip
        assert impound(*argv).code == 0
    assert sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*")) == before


# -- settings --------------------------------------------------------------------------------------


def test_settings_come_from_files_never_from_the_working_directory(impound, home, tmp_path):
    (tmp_path / "work/config.toml").write_text('store = "trap"\n')
    (tmp_path / "work/impound.toml").write_text('store = "trap"\n')
    folder = home / ".config/impound"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text('responder = "R. Doe"\n')
    named = tmp_path / "named.toml"
    named.write_text('store = "/srv/evidence"\n')
    shown = impound("--json", "--config", named, "config", "--explain").json
    origin = {row["name"]: (row["value"], row["from"]) for row in shown["explained"]}
    assert origin["store"] == ("/srv/evidence", str(named))
    assert origin["responder"] == ("R. Doe", str(folder / "config.toml"))
    assert origin["workers"] == (2, "built in")


def test_settings_in_the_manual_are_those_there_are(impound):
    """Its sample leaves lines out, and shows none that is not printed."""
    manual = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    sample = manual.partition("\nSETTING ")[2].partition("\n\n")[0].splitlines()[1:]
    printed = {" ".join(line.split()) for line in impound("config", "--explain").out.splitlines()}
    shown = {" ".join(line.split()) for line in sample if line != "…"}
    store = {line for line in shown | printed if line.startswith("store ")}  # set by the test
    assert len(shown) > 5
    assert shown - store <= printed


def test_tables_of_settings_are_merged(impound, home, tmp_path):
    key = "arn:aws:kms:eu-central-1:444444444444:key/1"
    folder = home / ".config/impound"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(
        f'[signing]\nentry_key = "{key}"\nsealer = "seal"\n[s3]\nkms_key = "{key}"\n'
    )
    named = tmp_path / "named.toml"
    named.write_text('[signing]\nsealer = "impound-sealer"\n')
    shown = impound("--json", "--config", named, "config", "--explain").json
    origin = {row["name"]: (row["value"], row["from"]) for row in shown["explained"]}
    assert origin["signing.sealer"] == ("impound-sealer", str(named))
    assert origin["signing.entry_key"] == (key, str(folder / "config.toml"))
    assert origin["s3.kms_key"] == (key, str(folder / "config.toml"))
    assert origin["signing.checkpoint_key"] == ("", "built in")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stor = 1", "stor"),
        ("workers = 0", "workers"),
        ('[s3]\nkms_key = "alias/evidence"', "s3.kms_key"),
        ('[signing]\nentry = "x"', "signing.entry"),
        ('[signing]\nsealer = "arn:aws:iam::1:role/x"', "signing.sealer"),
        ('s3 = "bucket"', "s3"),
        ("= [", "cannot read"),
        (None, "no settings"),
    ],
)
def test_wrong_settings_name_file_and_setting(impound, tmp_path, text, message):
    path = tmp_path / "bad.toml"
    if text is not None:
        path.write_text(text)
    result = impound("--config", path, "config")
    assert result.code == 14
    assert message in result.err
    assert "bad.toml" in result.err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(impound, shell):
    result = impound("completion", shell)
    assert result.code == 0
    assert "_IMPOUND_COMPLETE" in result.out
