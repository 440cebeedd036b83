# SPDX-License-Identifier: Apache-2.0
"""YARA-X over physical memory: each match once, at its address, whatever piece it lies in."""

from __future__ import annotations

import pytest

from analysis import rules as module
from analysis.errors import AnalysisError
from analysis.ram import open_ram
from analysis.rules import compile_rules, scan
from tests.analysis.conftest import ImageBytes
from tests.analysis.kernel_image import lime

RULE = b'rule beacon : c2 { strings: $a = "beacon-marker" condition: $a }'


def found(ram, sources):
    problems = []
    compiled, ignored = compile_rules(sources)
    return list(scan(ram, compiled, problems)), problems, ignored


def test_match_at_its_physical_address():
    ram = open_ram(ImageBytes(lime([(0x5000, bytes(100) + b"beacon-marker" + bytes(100))])))
    (hit,), problems, ignored = found(ram, {"c2.yar": RULE})
    assert (hit.rule, hit.namespace, hit.pattern) == ("beacon", "c2.yar", "$a")
    assert (hit.address, hit.length, hit.data) == (0x5064, 13, b"beacon-marker")
    assert (problems, ignored) == ([], [])


def test_matches_in_the_overlap_of_pieces_are_told_once(monkeypatch):
    monkeypatch.setattr(module, "_PIECE", 1000)
    monkeypatch.setattr(module, "_OVERLAP", 100)
    data = bytearray(5000)
    for at in (995, 1050, 3000):
        data[at : at + 13] = b"beacon-marker"
    hits, _, _ = found(open_ram(ImageBytes(bytes(data))), {"c2.yar": RULE})
    assert [hit.address for hit in hits] == [995, 1050, 3000]


def test_bad_rule_is_told_and_the_others_used():
    ram = open_ram(ImageBytes(b"xx beacon-marker"))
    hits, _, ignored = found(ram, {"bad.yar": b"rule x { condition: nonsense }", "c2.yar": RULE})
    assert len(hits) == 1
    assert ignored[0].startswith("bad.yar: ")


def test_no_rule_left_is_an_error():
    with pytest.raises(AnalysisError, match="no rule could be used"):
        compile_rules({"bad.yar": b"rule"})


def test_flood_of_matches_is_cut_and_told(monkeypatch):
    monkeypatch.setattr(module, "_MOST", 10)
    hits, problems, _ = found(open_ram(ImageBytes(b"beacon-marker" * 50)), {"c2.yar": RULE})
    assert len(hits) == 10
    assert "more than 10 matches of beacon" in problems[0]
