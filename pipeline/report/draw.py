# SPDX-License-Identifier: Apache-2.0
"""Draws charts as SVG: JSON on standard input, JSON on standard output. Knows no case.

Runs as a process of its own in `/`, because matplotlib reads a file `matplotlibrc` from the working
directory, and the working directory may hold evidence. Equal input and version: equal bytes.
"""

from __future__ import annotations

import io
import json
import sys
from typing import Any

_INK, _FAINT, _BAR = "#222222", "#d5d9de", "#2b5c8a"


def draw(chart: dict[str, Any]) -> str:
    """Return one chart: a row of bars for each series, all on one time axis and one scale.

    Args:
        chart: `series` [[name, counts]], `ticks` [[bin, label]], `x` and `y` axis titles.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    series = chart["series"]
    bins = len(series[0][1])
    top = max([1, *(count for _, counts in series for count in counts)])
    figure = Figure(figsize=(7.2, 0.86 * len(series) + 0.62))
    height = figure.get_size_inches()[1]
    for row, (name, counts) in enumerate(series):
        bottom = (0.5 + 0.86 * (len(series) - 1 - row)) / height
        axes = figure.add_axes((0.07, bottom, 0.89, 0.6 / height))
        axes.set_yscale("log")
        axes.set_ylim(0.6, max(16.0, top * 1.8))
        margin = max(0.7, (12 - bins) / 2)  # few bins: bars, not slabs
        axes.set_xlim(-margin, bins - 1 + margin)
        shown = [(i, count) for i, count in enumerate(counts) if count]
        if shown:
            axes.bar([i for i, _ in shown], [c - 0.6 for _, c in shown], bottom=0.6,
                     width=0.82, color=_BAR, linewidth=0)  # fmt: skip
        axes.yaxis.set_major_locator(LogLocator(base=10, numticks=4))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{round(v):,}"))
        axes.grid(axis="y", color=_FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(_INK)
        axes.tick_params(axis="both", length=2.5, colors=_INK, labelsize=7.5)
        axes.tick_params(axis="y", length=0)
        last = row == len(series) - 1
        axes.set_xticks([i for i, _ in chart["ticks"]],
                        [label if last else "" for _, label in chart["ticks"]])  # fmt: skip
        axes.set_title(name, loc="left", fontsize=8.5, color=_INK, pad=2)
    figure.text(0.99, 0.05 / height, chart["x"], ha="right", va="bottom", fontsize=7.5, color=_INK)
    figure.text(0.01, 0.05 / height, chart["y"], ha="left", va="bottom", fontsize=7.5, color=_INK)
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def main() -> None:
    """Draw every chart of the input."""
    import matplotlib

    matplotlib.rcdefaults()  # nor the user's settings
    matplotlib.rcParams.update({
        "svg.hashsalt": "impound", "svg.fonttype": "none", "font.family": ["DejaVu Sans"],
        "text.parse_math": False, "axes.unicode_minus": False,
    })  # fmt: skip
    json.dump([draw(chart) for chart in json.load(sys.stdin)], sys.stdout)


if __name__ == "__main__":
    main()
