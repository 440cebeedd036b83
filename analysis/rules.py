# SPDX-License-Identifier: Apache-2.0
"""YARA-X over physical memory, piece by piece.

A rule is judged on each piece of 16 MiB (and 1 MiB of the next) by itself: what it wants must lie
that near together in physical memory, and `filesize` or offsets mean nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import yara_x

from analysis.errors import AnalysisError
from analysis.ram import Ram

_PIECE, _OVERLAP = 16 << 20, 1 << 20
_SECONDS = 120  # for one piece
_MOST = 1000  # matches of one pattern in one piece
_SHOWN = 64


@dataclass(frozen=True)
class Hit:
    """A match: `address` physical, `length` bytes, `data` its first bytes."""

    rule: str
    namespace: str
    pattern: str
    address: int
    length: int
    data: bytes


def compile_rules(sources: Mapping[str, bytes]) -> tuple[yara_x.Rules, list[str]]:
    """Return compiled rules, and what was ignored of them and why.

    Args:
        sources: name of each file -> its text; the name is the namespace of its rules.

    Raises: AnalysisError if no rule is left.
    """
    ignored: list[str] = []
    compiler = yara_x.Compiler(relaxed_re_syntax=True)
    compiler.ignore_module("cuckoo")
    taken = 0
    for name, text in sources.items():
        alone = yara_x.Compiler(relaxed_re_syntax=True)
        alone.ignore_module("cuckoo")
        source = text.decode("utf-8", "replace")
        try:
            alone.add_source(source)
        except yara_x.CompileError as e:
            ignored.append(f"{name}: {str(e).strip().splitlines()[0]}")
            continue
        compiler.new_namespace(name)
        compiler.add_source(source)
        taken += 1
    if not taken:
        raise AnalysisError(f"no rule could be used: {'; '.join(ignored) or 'none were given'}")
    return compiler.build(), ignored


def scan(ram: Ram, rules: yara_x.Rules, problems: list[str]) -> Iterator[Hit]:
    """Yield matches in memory, each once; append to `problems` what was not scanned."""
    scanner = yara_x.Scanner(rules)
    scanner.set_timeout(_SECONDS)
    scanner.max_matches_per_pattern(_MOST)
    recent: set[tuple[str, str, str, int]] = set()
    for start, length in ram.pieces(_PIECE, _OVERLAP):
        data = ram.read(start, length)
        if data is None:
            problems.append(f"{length} bytes at {start:#x} cannot be read")
            continue
        try:
            found = scanner.scan(data)
        except yara_x.TimeoutError:
            problems.append(f"{length} bytes at {start:#x} took more than {_SECONDS} s")
            continue
        seen: set[tuple[str, str, str, int]] = set()
        for rule in found.matching_rules:
            for pattern in rule.patterns:
                if len(pattern.matches) >= _MOST:
                    problems.append(f"more than {_MOST} matches of {rule.identifier} at {start:#x}")
                for match in pattern.matches:
                    key = rule.namespace, rule.identifier, pattern.identifier, start + match.offset
                    seen.add(key)
                    if key not in recent:
                        shown = data[match.offset : match.offset + min(match.length, _SHOWN)]
                        yield Hit(rule.identifier, rule.namespace, pattern.identifier,
                                  start + match.offset, match.length, shown)  # fmt: skip
        recent = seen  # only neighbours overlap
