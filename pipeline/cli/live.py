# SPDX-License-Identifier: Apache-2.0
"""The picture of a response under way, as tall and as wide as the terminal is. Pure.

A line that is too long is cut, never wrapped: what else wraps pushes the rest out of sight. Steps
that ended well and steps that wait are folded together where there is no room for all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from pipeline.response import Line

Cells = tuple[str, str, str, str]  # step, piece, state, what
_QUIET = ("ok", "nothing")
_LATER = ("waits", "queued")


def picture(rows: Iterable[tuple[Line, Cells]], width: int, height: int) -> list[str]:
    """Return at most `height` lines of at most `width` characters.

    Args:
        rows: what to show, by target and in order.
        width: characters.
        height: lines, at least 1.
    """
    groups: dict[str, list[tuple[Line, Cells]]] = {}
    for line, cells in rows:
        groups.setdefault(line.target.rpartition("/")[2] or "case", []).append((line, cells))
    for way in (_full, _folded, _short):
        lines = [text for name, group in groups.items() for text in way(name, group)]
        if len(lines) <= height:
            break
    else:
        lines = [*lines[: height - 1], f"… and {len(lines) - height + 1} more"]
    return [text if len(text) <= width else text[: width - 1] + "…" for text in lines]


def _full(name: str, group: list[tuple[Line, Cells]]) -> list[str]:
    sizes = [max(len(cells[i]) for _, cells in group) for i in range(3)]
    return [name, *(
        "  " + "  ".join([*(c.ljust(n) for c, n in zip(cells, sizes, strict=False)), cells[3]])
        .rstrip() for _, cells in group
    )]  # fmt: skip


def _folded(name: str, group: list[tuple[Line, Cells]]) -> list[str]:
    ended = [cells[0] for line, cells in group if line.state in _QUIET]
    later = [cells[0] for line, cells in group if line.state in _LATER]
    open_ = [(line, cells) for line, cells in group if line.state not in (*_QUIET, *_LATER)]
    lines = _full(name, open_) if open_ else [name]
    if ended:
        lines.insert(1, f"  ok: {', '.join(dict.fromkeys(ended))}")
    if later:
        lines.append(f"  waits: {', '.join(dict.fromkeys(later))}")
    return lines


def _short(name: str, group: list[tuple[Line, Cells]]) -> list[str]:
    counts = Counter(line.state for line, _ in group)
    at = next((f"{c[0]} {c[2]} {c[3]}".strip() for line, c in group if line.state == "running"), "")
    counted = ", ".join(f"{n} {state}" for state, n in counts.items() if state != "running")
    return [f"{name}: " + "; ".join(t for t in (at, counted) if t)]
