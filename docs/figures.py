"""Draw the pictures of the documentation and of the README; with --measure, measure first what they show.

    python docs/figures.py              draws _static/overview.svg and _static/masks.svg
    python docs/figures.py --measure    writes errors.csv, memory.csv, measured.inc first: half a minute, 1 GB of memory

Drawn masks are results of `cuflash.attention_weights`; the memory curve and the tables are measurements.
"""

import argparse
import csv
import sys
import tracemalloc
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import PathPatch
from matplotlib.path import Path as MplPath

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "bench")]  # this checkout and the peers of its benchmarks

import peers
import timing

import cuflash
from cuflash import reference

BLUE, MIDDLE, PALE, GREY, ORANGE, INK = "#2c6fa6", "#7fb0d8", "#a9cbe6", "#e9ecef", "#e07b28", "#333333"
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
STANDARD_LENGTHS = LENGTHS[:4]  # at 4096 its scores are 512 MiB
HEADS, DIM = 8, 64


# ---- measurements --------------------------------------------------------------------------------------------------


def peak_bytes(function, *arrays, **options):
    """Peak of what is allocated during a call, above its inputs and its result."""
    tracemalloc.start()
    try:
        out = function(*arrays, **options)
        return tracemalloc.get_traced_memory()[1] - out.nbytes
    finally:
        tracemalloc.stop()


def measure_memory():
    rng = np.random.default_rng(0)
    small = rng.standard_normal((3, HEADS, 64, DIM), dtype=np.float32)
    cuflash.attention(*small, causal=True)  # imports and pools are not part of a call
    rows = []
    for length in LENGTHS:
        q, k, v = rng.standard_normal((3, HEADS, length, DIM), dtype=np.float32)
        ours = peak_bytes(cuflash.attention, q, k, v, causal=True)
        standard = peak_bytes(peers.in_place, q, k, v, True) if length in STANDARD_LENGTHS else None
        print(f"l = {length}: {ours / 1e6:.2f} MB, standard {standard and standard / 1e6}")
        rows.append((length, f"{ours / 1e6:.1f}", "" if standard is None else f"{standard / 1e6:.1f}"))
    write_csv("memory.csv", ("length", "cuflash, MB", "standard, in place, MB"), rows)


def errors_of(dtype, length):
    """Relative errors in the Frobenius norm: of cuflash, and of the formula step by step in the same dtype."""
    rng = np.random.default_rng(length)
    q, k, v = rng.standard_normal((3, length, DIM)).astype(dtype)
    name = np.dtype(dtype).name
    exact = reference.attention(q, k, v, dtype=np.longdouble if name == "float64" else np.float64)
    stepwise = reference.attention(q, k, v, dtype=dtype)

    def error(out):
        difference = (out.astype(exact.dtype) - exact).astype(float)
        return np.linalg.norm(difference) / np.linalg.norm(exact.astype(float))

    return error(cuflash.attention(q, k, v)), error(stepwise)


def measure_errors():
    import ml_dtypes

    rows = []
    for dtype in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16):
        for length in (113, 1024, 4096):
            ours, stepwise = errors_of(dtype, length)
            rows.append((np.dtype(dtype).name, length, f"{ours:.1e}", f"{stepwise:.1e}"))
            print(*rows[-1])
    write_csv("errors.csv", ("dtype", "length", "cuflash", "step by step"), rows)


def write_csv(name, header, rows):
    with (HERE / name).open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def write_device():
    """What stands under every table of measurements."""
    text = "Measured on {date}: {cpu}, {threads} threads, Python {python}, NumPy {numpy}".format(**timing.machine())
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
    with (HERE / "memory.csv").open() as file:
        rows = list(csv.reader(file))[1:]
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


def visible(lq, lk, **options):
    """Which keys take part, found by asking for the weights of equal scores."""
    return cuflash.attention_weights(np.zeros((lq, 1)), np.zeros((lk, 1)), **options) > 0


def draw_masks():
    """What the options show, one small score matrix each."""
    blocks = np.kron(np.eye(3, dtype=bool), np.ones((3, 3), dtype=bool))[:8, :8]
    drawings = [
        ("causal=True", visible(8, 8, causal=True)),
        ("causal=True, lq=4, lk=8", visible(4, 8, causal=True)),
        ("the same with q_offset=0", visible(4, 8, causal=True, q_offset=0)),
        ("causal=True, kv_lengths=5", visible(8, 8, causal=True, kv_lengths=5)),
        ("window=2", visible(8, 8, window=2)),
        ("window=(3, 1)", visible(8, 8, window=(3, 1))),
        ("window=2, causal=True", visible(8, 8, window=2, causal=True)),
        ("mask=blocks, causal=True", visible(8, 8, mask=blocks, causal=True)),
    ]
    figure, grid = plt.subplots(2, 4, figsize=(9.8, 5.4))
    for axes, (title, seen) in zip(grid.flat, drawings):
        lq, lk = seen.shape
        add_cells(axes, ~seen, GREY)
        add_cells(axes, seen, BLUE)
        axes.set(xlim=(0, 8), ylim=(8, 0), aspect="equal", xticks=np.arange(lk) + 0.5, yticks=np.arange(lq) + 0.5)
        axes.set_xticklabels(range(lk))
        axes.set_yticklabels(range(lq))
        axes.xaxis.tick_top()
        axes.set_title(title, fontsize=9, color=INK)
        bare(axes)
    figure.tight_layout(h_pad=2)
    save(figure, "masks.svg")


def save(figure, name):
    """Write a figure under _static, the same bytes for the same drawing."""
    (HERE / "_static").mkdir(exist_ok=True)
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
    draw_masks()
    draw_overview()


if __name__ == "__main__":
    main()
