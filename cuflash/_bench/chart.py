"""The picture of the two tables: how many times faster than standard attention, as published and as measured here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cuflash._bench.report import Row, Table, text

GREY, BLUE, ORANGE, INK = "#b9c0c7", "#2c6fa6", "#e07b28", "#333333"
WIDTH = 0.27  # of a bar; a row has three
LINEAR_UP_TO = 20  # ratios beyond which the axis is logarithmic
TITLES = ("One causal call over l tokens", "One new token at a context of l")


def draw(path: str | Path, machine: dict[str, Any], tables: Sequence[Table]) -> None:
    """Write the chart of what `seeds.tables` made, the same bytes for the same figures where the file is an SVG.

    The format follows the file's ending; needs matplotlib.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.hashsalt": "cuflash",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "axes.edgecolor": INK,
    }
    with rc_context(settings):
        figure = Figure(figsize=(9.8, 4.0))
        for axes, table, title in zip(figure.subplots(1, len(tables)), tables, TITLES, strict=True):
            _draw_table(axes, table, title)
        figure.text(0.01, 0.012, _caption(machine), fontsize=7, color=INK)
        figure.tight_layout(w_pad=2.5, rect=(0, 0.04, 1, 1))
        dateless = {"Date": None, "Creator": None} if str(path).endswith(".svg") else {}
        figure.savefig(path, facecolor="white", metadata=dateless)


def _under(row: Row) -> str:
    times = f"{text(row['standard ms'])} → {text(row['cuflash ms'])} ms"
    return f"l = {row['l']}\n{times}\nmemory −{row['saved, %']:.3g} %"


def _caption(machine: dict[str, Any]) -> str:
    return (
        f"b = 1, h = 8, d = 64, float32. {machine['date']}, {machine['cpu']}, {machine['threads']} threads, "
        f"NumPy {machine['numpy']} ({machine['kernels']} kernels). ms and memory: standard → cuflash; "
        "published: −40 % memory"
    )


def _draw_table(axes: Any, table: Table, title: str) -> None:
    """Three bars for each row: published, and cuflash against both of its neighbours."""
    (neighbour,) = (name for name in table.rows[0] if name.endswith(" ratio") and name != "published ratio")
    series = (
        ("published ratio", "published: standard / method", GREY),
        (neighbour, f"NumPy, {neighbour.removesuffix(' ratio')} / cuflash", BLUE),
        ("ratio", "standard / cuflash", ORANGE),
    )
    places = np.arange(len(table.rows))
    for index, (name, label, color) in enumerate(series):
        heights = [row[name] or np.nan for row in table.rows]
        bars = axes.bar(places + (index - 1) * WIDTH, heights, WIDTH * 0.94, color=color, label=label)
        labels = [f"{text(float(height))}×" if height == height else "" for height in heights]
        axes.bar_label(bars, labels, padding=2, fontsize=7.5, color=INK)
    axes.set_xticks(places, [_under(row) for row in table.rows], fontsize=8.5)
    axes.axhline(1, color=GREY, lw=0.8, zorder=0)
    highest = max(row["ratio"] for row in table.rows)
    if highest > LINEAR_UP_TO:
        axes.set_yscale("log")
        axes.set_ylim(0.1, 60 * highest)
    else:
        axes.set_ylim(0, 1.5 * highest)
    axes.yaxis.set_major_formatter("{x:g}×")
    axes.tick_params(axis="y", which="minor", length=0)
    axes.set_title(title, fontsize=10, color=INK)
    axes.set_ylabel("times faster" + (" (logarithmic)" if highest > LINEAR_UP_TO else ""), fontsize=8.5)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
