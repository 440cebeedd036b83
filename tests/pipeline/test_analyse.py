# SPDX-License-Identifier: Apache-2.0
"""What `impound analyse` says of a job."""

from __future__ import annotations

import pytest

from analysis.jobs import JobResult
from evidence_store.child import Outcome
from pipeline.cli.analyse import _asked, _document, _lines
from pipeline.errors import UsageError


def result(network: str, files: str, processes: str) -> JobResult:
    outcome = Outcome(True, "", "", network, files, processes, 1.0, 0)
    return JobResult("files", "E0001", "E0002", {"files": 1}, [], outcome)


def test_a_job_that_was_limited_in_all_is_one_line():
    assert len(_lines(result("none", "own folder only", "ended with it"))) == 1


def test_what_could_not_be_taken_away_from_a_job_is_said():
    weak = result("not taken away: A", "not limited: no Landlock (B)", "only its group: C")
    assert len(_lines(weak)) == 4
    said = "\n".join(_lines(weak))
    assert all(why in said for why in ("away: A", "Landlock (B)", "group: C"))
    document = _document(weak)
    assert (document["network"], document["files"], document["processes"]) == (
        "not taken away: A", "not limited: no Landlock (B)", "only its group: C")  # fmt: skip


@pytest.mark.parametrize("wrong", ["sshd", "12x", "../etc", "99999999999"])
def test_what_is_neither_process_nor_path_is_no_extraction(wrong):
    with pytest.raises(UsageError, match="neither a process id nor an absolute path"):
        _asked(("1", wrong))


def test_one_request_whatever_the_order():
    assert _asked(("/b", "2", "/a", "1", "1")) == _asked(("1", "2", "/a", "/b"))
    assert not _asked(())


def test_a_live_response_is_named_for_one_memory_item(opened, tmp_path):
    """Beside two, it would stand beside that of another host."""
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode() * 5000)
        assert opened("ingest", "T-1001", tmp_path / name, "--kind", "memory").code in (0, 3)
    for argv in (["--jobs", "memory"], ["--item", "E0001", "--jobs", "symbols"]):
        done = opened("analyse", "T-1001", "--beside", "E0002", *argv)
        assert done.code == 2
        assert "--beside is for one memory item" in done.err
    done = opened("analyse", "T-1001", "--beside", "E0002", "--item", "E0001", "--jobs", "memory")
    assert done.code == 13
    assert "E0002 is no live response" in done.err
