"""Draw the pictures of the documentation and of the README; with --measure, measure first what they show.

    python docs/figures.py              draws overview.svg, errors.svg, those of drawn_masks.py and of the examples
    python docs/figures.py --measure    writes errors.csv, memory.csv, measured.inc first: two minutes, 2 GB of memory

Drawn masks are results of `cuflash.attention_weights`; curves and tables are measurements.
"""

import argparse
import csv
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import PathPatch
from matplotlib.path import Path as MplPath

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # this checkout

import drawn_masks

import cuflash
from cuflash import reference
from cuflash._bench import chart
from cuflash._bench.report import load, machine
from cuflash._bench.standard import in_place
from cuflash._bench.timing import peak_bytes

MIDDLE, PALE, GREY, ORANGE, INK = "#7fb0d8", "#a9cbe6", "#e9ecef", "#e07b28", "#333333"
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
STANDARD_LENGTHS = LENGTHS[:4]  # at 4096 its scores are 512 MiB
ERROR_LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)
HEADS, DIM = 8, 64
ENVIRONMENT = os.environ | {"PYTHONPATH": str(HERE.parent)}  # of the examples


# ---- measurements --------------------------------------------------------------------------------------------------


def measure_memory():
    rng = np.random.default_rng(0)
    small = rng.standard_normal((3, HEADS, 64, DIM), dtype=np.float32)
    cuflash.attention(*small, causal=True)  # imports and pools are not part of a call
    rows = []
    for length in LENGTHS:
        q, k, v = rng.standard_normal((3, HEADS, length, DIM), dtype=np.float32)
        ours = peak_bytes(partial(cuflash.attention, q, k, v, causal=True))
        standard = peak_bytes(partial(in_place, q, k, v, True)) if length in STANDARD_LENGTHS else None
        print(f"l = {length}: {ours / 1e6:.2f} MB, standard {standard and standard / 1e6}")
        rows.append((length, f"{ours / 1e6:.1f}", "" if standard is None else f"{standard / 1e6:.1f}"))
    write_csv("memory.csv", ("length", "cuflash, MB", "standard, in place, MB"), rows)


def errors_of(dtype, length, causal):
    """Relative errors in the Frobenius norm: of cuflash, and of the formula step by step in the same dtype."""
    rng = np.random.default_rng(length)
    heads = max(1, 1024 // length)  # short sequences give few numbers to average over
    q, k, v = rng.standard_normal((3, heads, length, DIM)).astype(dtype)
    wide = np.longdouble if np.dtype(dtype) == np.float64 else np.float64
    exact = reference.attention(q, k, v, causal=causal, dtype=wide)
    stepwise = reference.attention(q, k, v, causal=causal, dtype=dtype)
    norm = np.linalg.norm(exact.astype(float))
    outs = (cuflash.attention(q, k, v, causal=causal), stepwise)
    return [np.linalg.norm((out.astype(wide) - exact).astype(float)) / norm for out in outs]


def measure_errors():
    import ml_dtypes

    rows = []
    for dtype in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16):
        for length in ERROR_LENGTHS:
            errors = [*errors_of(dtype, length, False), *errors_of(dtype, length, True)]
            rows.append((np.dtype(dtype).name, length, *(f"{error:.1e}" for error in errors)))
            print(*rows[-1])
    header = ("dtype", "length", "cuflash", "step by step", "cuflash, causal", "step by step, causal")
    write_csv("errors.csv", header, rows)


def write_csv(name, header, rows):
    with (HERE / name).open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def read_csv(name):
    with (HERE / name).open() as file:
        return list(csv.reader(file))[1:]


def write_device():
    """What stands under every table of measurements."""
    text = "Measured on {date}: {cpu}, {threads} threads, Python {python}, NumPy {numpy}".format(**machine())
    (HERE / "measured.inc").write_text(f"{text}, by ``docs/figures.py --measure``.\n")


# ---- drawings ------------------------------------------------------------------------------------------------------


def add_cells(axes, cells, color):
    """Unit squares at the True places of a boolean matrix, row 0 on top, as a single path."""
    if not cells.any():
        return
    square = np.array([[0.03, 0.03], [0.97, 0.03], [0.97, 0.97], [0.03, 0.97], [0.03, 0.03]])
    vertices = (square + np.argwhere(cells)[:, None, ::-1]).reshape(-1, 2)
    codes = np.tile([MplPath.MOVETO, MplPath.LINETO, MplPath.LINETO, MplPath.LINETO, MplPath.CLOSEPOLY], cells.sum())
    axes.add_patch(PathPatch(MplPath(vertices, codes), facecolor=color, linewidth=0, clip_on=False))


def bare(axes):
    """No frame and no tick marks."""
    axes.tick_params(length=0, labelsize=7)
    for spine in axes.spines.values():
        spine.set_visible(False)


def draw_tiles(axes, tiles=8, now=(5, 3)):
    """The walk over a causal score matrix of tiles x tiles tiles, at the moment tile `now` is computed."""
    row, col = now
    visited = np.tri(tiles, dtype=bool)
    add_cells(axes, ~visited, GREY)
    add_cells(axes, np.tri(tiles, k=-1, dtype=bool), PALE)
    add_cells(axes, np.eye(tiles, dtype=bool), MIDDLE)
    add_cells(axes, (np.arange(tiles)[:, None] == row) & (np.arange(tiles) == col), ORANGE)
    style = {"arrowstyle": "->", "color": INK, "lw": 1.5}
    axes.annotate("", (col, row + 0.5), (0.1, row + 0.5), arrowprops=style)
    axes.annotate("", (row + 0.95, row + 0.5), (col + 1, row + 0.5), arrowprops={**style, "ls": ":"})
    axes.set(xlim=(0, tiles), ylim=(tiles, 0), xticks=[], yticks=[], aspect="equal")
    axes.set_xlabel("keys, in tiles")
    axes.set_ylabel("queries, in tiles")
    axes.set_title("The only scores that exist: one tile per thread", fontsize=10, color=INK)
    skipped = f"never visited:\n{(~visited).sum()} of {visited.size} tiles"
    axes.text(tiles - 0.2, 0.3, skipped, ha="right", va="top", fontsize=9, color=INK)
    bare(axes)


def draw_memory(axes):
    """Measured peaks of memory.csv, and what the scores alone would take."""
    rows = read_csv("memory.csv")
    length = np.array([int(row[0]) for row in rows])
    standard = [(int(row[0]), float(row[2])) for row in rows if row[2]]
    scores = HEADS * length.astype(float) ** 2 * 4 / 1e6
    axes.loglog(length, scores, color=INK, ls=":", lw=1, label=f"{HEADS} · l² · 4 bytes (computed)")
    axes.loglog(*zip(*standard), "o-", color=INK, label="scores stored, in place (measured)")
    axes.loglog(length, [float(row[1]) for row in rows], "o-", color=ORANGE, label="cuflash (measured)")
    axes.set_xticks(length, [str(n) for n in length])
    axes.minorticks_off()
    axes.set_xlabel("length l")
    axes.set_ylabel("MB beyond inputs and result")
    axes.set_title(f"Peak memory, causal, {HEADS} heads of {DIM}, float32", fontsize=10, color=INK)
    axes.legend(frameon=False, fontsize=8.5, loc="upper left")
    axes.grid(color=GREY)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def draw_overview():
    """The picture of the README: the walk over the tiles, and the memory it saves."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.8, 4.1), width_ratios=(1, 1.25))
    draw_tiles(left)
    draw_memory(right)
    figure.tight_layout(w_pad=2.5, rect=(0, 0, 0.985, 1))
    save(figure, "overview.svg")


def draw_errors():
    """The errors of errors.csv, a panel for each dtype."""
    rows = read_csv("errors.csv")
    names = list(dict.fromkeys(row[0] for row in rows))
    curves = (
        ("step by step, full", INK, "-", 3), ("step by step, causal", INK, ":", 5),
        ("cuflash, full", ORANGE, "-", 2), ("cuflash, causal", ORANGE, ":", 4),
    )  # fmt: skip
    figure, panels = plt.subplots(1, len(names), figsize=(9.8, 2.9), sharex=True)
    for axes, name in zip(panels, names):
        table = np.array([row[1:] for row in rows if row[0] == name], dtype=float)
        power = np.floor(np.log10(table[:, 1:].max()))
        for label, color, style, column in curves:
            axes.semilogx(table[:, 0], table[:, column - 1] / 10**power, style, color=color, label=label)
        axes.minorticks_off()
        axes.set(ylim=(0, None), xlabel="length l")
        axes.set_xticks(ERROR_LENGTHS[::2], ERROR_LENGTHS[::2])
        axes.set_title(f"{name}, in units of 1e{power:.0f}", fontsize=10, color=INK)
        axes.grid(color=GREY)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    panels[0].set_ylabel("‖out − ref‖ / ‖ref‖")
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, fontsize=9, loc="lower center", ncols=4)
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    save(figure, "errors.svg")


def save(figure, name):
    """Write a figure under _static, the same bytes for the same drawing."""
    figure.savefig(HERE / "_static" / name, facecolor="white", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    print(f"wrote _static/{name}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="measure memory and errors first")
    if parser.parse_args().measure:
        measure_errors()
        measure_memory()
        write_device()
    plt.rcParams.update({"svg.hashsalt": "cuflash", "svg.fonttype": "none", "font.family": "sans-serif"})
    for name, text in drawn_masks.drawings().items():
        (HERE / "_static" / name).write_text(text, encoding="utf-8")
        print(f"wrote _static/{name}")
    draw_overview()
    chart.draw(HERE / "_static" / "seeds.svg", *load(HERE / "measured" / "seeds.json"))
    draw_errors()
    for name in ("kernel_regression", "nonlocal_means", "stream"):
        picture = HERE / "_static" / f"{name}.svg"
        subprocess.run([sys.executable, HERE / "examples" / f"{name}.py", picture], env=ENVIRONMENT, check=True)
        print(f"wrote _static/{name}.svg")


if __name__ == "__main__":
    main()
