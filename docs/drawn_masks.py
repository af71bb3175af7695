"""The drawings of the semantics page, as SVG text: which keys the options show, and what is done to a row of scores.

What is drawn is what the library computes: squares are where `cuflash.attention_weights` of equal scores is not 0, and
where a structured mask says the same, its `visible` must agree. A drawing is a few paths, so it stays small, its
changes can be read, and tests/test_docs.py compares it with the committed file. `docs/figures.py` writes the files.
"""

from typing import NamedTuple

import numpy as np

import cuflash
from cuflash.masks import Causal, Window

CELL = 18  # pixels
STYLE = """
text{font:11px sans-serif;fill:#333} .title{font:11px monospace} .index{font-size:9px;fill:#777;text-anchor:middle}
.hidden{fill:#e9ecef} .seen{fill:#2c6fa6} .none{fill:#e07b28} .absent{fill:#fff;stroke:#aaa;stroke-dasharray:2 2}
.grid{stroke:#fff;stroke-width:1.5;fill:none} .axis{stroke:#aaa;fill:none} .sign{font-size:20px;text-anchor:middle}
""".replace("\n", "")


class Panel(NamedTuple):
    """One score matrix: rows are queries, columns are keys."""

    title: str
    seen: np.ndarray  # (lq, lk)
    real: int | None = None  # keys that are there; None is all
    sign: str = ""  # drawn to the right of the panel


def panel(title, lq, lk, same=None, sign="", **options):
    """What `options` show of lk keys to lq queries; `same` is a structured mask that must say the same."""
    seen = cuflash.attention_weights(np.zeros((lq, 1)), np.zeros((lk, 1)), **options) > 0
    if same is not None:
        position = np.arange(lq)[:, None] + options.get("q_offset", lk - lq)
        assert np.array_equal(seen, same.visible(position, np.arange(lk))), title
    return Panel(title, seen, options.get("kv_lengths"), sign)


def drawings():
    """File name -> SVG text."""
    documents = np.repeat([0, 1, 2], [3, 2, 3])
    own = documents[:, None] == documents
    return {
        "causal.svg": matrices(
            panel("causal=True", 6, 6, Causal(), causal=True),
            panel("lq=3, lk=6", 3, 6, Causal(), causal=True),
            panel("lq=3, q_offset=0", 3, 6, Causal(), causal=True, q_offset=0),
            panel("lq=6, lk=3", 6, 3, Causal(), causal=True),
            panel("lk=3, q_offset=0", 6, 3, Causal(), causal=True, q_offset=0),
        ),
        "window.svg": matrices(
            panel("window=2", 8, 8, Window(2, 2), window=2),
            panel("window=(3, 1)", 8, 8, Window(3, 1), window=(3, 1)),
            panel("window=(None, 1)", 8, 8, Window(None, 1), window=(None, 1)),
            panel("window=(3, 1), lq=3", 3, 8, Window(3, 1), window=(3, 1)),
        ),
        "composition.svg": matrices(
            panel("mask=same_document", 8, 8, sign="∧", mask=own),
            panel("causal=True", 8, 8, Causal(), "∧", causal=True),
            panel("window=(2, None)", 8, 8, Window(2, None), "=", window=(2, None)),
            panel("all three", 8, 8, mask=own, causal=True, window=(2, None)),
        ),
        "lengths.svg": matrices(
            panel("kv_lengths=5", 8, 8, kv_lengths=5),
            panel("causal, kv_lengths=5", 8, 8, causal=True, kv_lengths=5),
            panel("lq=2, kv_lengths=5", 2, 8, causal=True, kv_lengths=5),
            panel("… and q_offset=3", 2, 8, causal=True, kv_lengths=5, q_offset=3),
        ),
        "scores.svg": row_of_scores(),
    }


# ---- matrices ------------------------------------------------------------------------------------------------------


def matrices(*panels):
    """Panels beside each other on one baseline at the top."""
    parts, x = [], 24
    for one in panels:
        width = one.seen.shape[1] * CELL
        parts += matrix(one, x, 46)
        if one.sign:
            parts.append(f'<text class="sign" x="{x + width + 20}" y="{46 + width // 2 + 6}">{one.sign}</text>')
        x += max(width, 7 * len(one.title) - 14) + 40
    return document(x - 24, 58 + CELL * max(one.seen.shape[0] for one in panels), parts)


def matrix(one, x, y):
    """One panel whose score matrix has its corner at (x, y)."""
    lq, lk = one.seen.shape
    real = lk if one.real is None else one.real
    blind = np.broadcast_to(~one.seen.any(axis=1, keepdims=True), (lq, real))
    lines = [f"M0 {CELL * i}h{CELL * lk}" for i in range(1, lq)] + [f"M{CELL * j} 0v{CELL * lq}" for j in range(1, lk)]
    yield f'<g transform="translate({x} {y})"><text class="title" y="-30">{one.title}</text>'
    yield "".join(index(CELL * j + CELL // 2, -6, j) for j in range(lk))
    yield "".join(index(-9, CELL * i + CELL // 2 + 3, i) for i in range(lq))
    yield f'<rect class="hidden" width="{CELL * real}" height="{CELL * lq}"/>'
    for name, cells in (("seen", one.seen), ("none", blind)):
        if cells.any():
            yield f'<path class="{name}" d="{outline(cells)}"/>'
    yield f'<path class="grid" d="{"".join(lines)}"/>'
    if real < lk:
        yield f'<rect class="absent" x="{CELL * real}" width="{CELL * (lk - real)}" height="{CELL * lq}"/>'
    yield "</g>"


def index(x, y, text):
    return f'<text class="index" x="{x}" y="{y}">{text}</text>'


def outline(cells):
    """Rectangles that cover the True cells: runs along the rows, joined where rows below have the same run."""
    pieces, open_runs = [], {}
    for row in range(len(cells) + 1):
        edges = np.flatnonzero(np.diff(cells[row].astype(int), prepend=0, append=0)) if row < len(cells) else []
        runs = {(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2])}
        for left, right in sorted(open_runs.keys() - runs):
            top = open_runs.pop((left, right))
            width, height = CELL * (right - left), CELL * (row - top)
            pieces.append(f"M{CELL * left} {CELL * top}h{width}v{height}h{-width}z")
        for run in runs - open_runs.keys():
            open_runs[run] = row
    return "".join(pieces)


def document(width, height, parts):
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    ground = '<rect width="100%" height="100%" fill="#fff"/>'
    head = [f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', f"<style>{STYLE}</style>", ground]
    return "\n".join([*head, *parts, "</svg>\n"])


# ---- a row of scores -----------------------------------------------------------------------------------------------


def row_of_scores():
    """The scores of one query on their way to the weights, as bars over eight keys; the query stands at key 5."""
    products = np.array([1.0, 6.0, -2.0, 2.5, 4.0, 1.5, 5.0, 3.0])
    scale, cap, slope, sink, position = 0.5, 2.0, 0.25, 0.5, 5
    scaled = scale * products
    capped = cap * np.tanh(scaled / cap)
    biased = capped - slope * abs(position - np.arange(8))
    shown = np.where(np.arange(8) <= position, biased, -np.inf)
    weights = np.exp(shown) / (np.exp(shown).sum() + np.exp(sink))
    options = {"scale": scale, "softcap": cap, "bias": cuflash.Alibi([slope]), "sinks": np.array([sink])}
    ours = cuflash.attention_weights(np.ones((1, 1)), products[:, None], causal=True, q_offset=position, **options)
    assert np.allclose(ours[0], weights, rtol=1e-12)
    stages = [
        ("scale · q·k", scaled, 11),
        ("softcap", capped, 11),
        ("+ bias (Alibi)", biased, 11),
        ("hide (causal)", shown, 11),
        ("softmax with sink", np.append(weights, 1 - weights.sum()), 100),
    ]
    parts = []
    for place, (title, heights, unit) in enumerate(stages):
        parts += bars(title, heights, unit, 12 + 158 * place, 70)
    return document(12 + 158 * len(stages), 122, parts)


def bars(title, heights, unit, x, y):
    """One stage: eight bars over a base line at y, `unit` pixels per 1, and a ninth for the sink."""
    yield f'<g transform="translate({x} {y})"><text class="title" y="-54">{title}</text>'
    for name, places in (("seen", range(8)), ("none", range(8, len(heights)))):
        bar = [f"M{16 * j + 2} 0v{-unit * heights[j]:.1f}h12V0z" for j in places if np.isfinite(heights[j])]
        if bar:
            yield f'<path class="{name}" d="{"".join(bar)}"/>'
    yield f'<path class="axis" d="M0 0h{16 * len(heights)}"/>'
    yield "".join(index(16 * j + 8, -4, "−∞") for j in range(8) if not np.isfinite(heights[j]))
    yield "".join(index(16 * j + 8, 44, name) for j, name in enumerate([*range(8), "sink"][: len(heights)]))
    yield "</g>"
