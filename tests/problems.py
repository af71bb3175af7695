"""What the tests ask: options and their pairs, sizes of nothing, orders of memory, and any problem at random."""

import itertools

import numpy as np
from hypothesis import strategies as st

import cuflash

# Views (..., h, l, d) of arrays in another order of memory: what to lay out, and how to look at it.
VIEWS = {
    "plain": (lambda x: x, lambda x: x),
    "length before heads": (lambda x: x.swapaxes(-3, -2).copy(), lambda x: x.swapaxes(-3, -2)),
    "Fortran": (lambda x: x.T.copy(), lambda x: x.T),
    "reversed length": (lambda x: x[..., ::-1, :].copy(), lambda x: x[..., ::-1, :]),
    "reversed features": (lambda x: x[..., ::-1].copy(), lambda x: x[..., ::-1]),
    "every third row": (lambda x: spread(x, -2), lambda x: x[..., ::3, :]),
    "every third feature": (lambda x: spread(x, -1), lambda x: x[..., ::3]),
    "inner slice": (lambda x: surround(x), lambda x: x[(slice(1, -2),) * x.ndim]),
}


def surround(x):
    """An array with NaN on all sides of `x`."""
    return np.pad(x, [(1, 2)] * x.ndim, constant_values=x.dtype.type(np.nan))


def spread(x, axis):
    """An array three times as long on an axis, with NaN between the numbers of `x`."""
    wide = np.repeat(x, 3, axis=axis)
    keep = np.arange(wide.shape[axis]) % 3 == 0
    return np.where(keep[:, None] if axis == -2 else keep, wide, wide.dtype.type(np.nan))


# Sizes (b, hq, hk, lq, lk, d, dv) of which one or several are 0.
ZERO_SIZES = [
    (0, 2, 1, 3, 4, 5, 6),
    (2, 2, 1, 0, 4, 5, 6),
    (2, 2, 1, 3, 0, 5, 6),
    (2, 2, 1, 3, 4, 0, 6),
    (2, 2, 1, 3, 4, 5, 0),
    (2, 2, 1, 0, 0, 5, 6),
    (2, 2, 1, 3, 0, 0, 0),
    (2, 0, 0, 3, 4, 5, 6),
    (0, 0, 0, 0, 0, 0, 0),
]

# Options of attention as the tests combine them; two that set the same keyword exclude each other.
OPTIONS = ("causal", "window", "mask", "structured mask", "bias", "alibi", "scale", "softcap", "sinks", "q_offset",
           "kv_lengths")  # fmt: skip
SAME_KEYWORD = ({"mask", "structured mask"}, {"bias", "alibi"})
PAIRS = [pair for pair in itertools.combinations(OPTIONS, 2) if set(pair) not in SAME_KEYWORD]


def make_option(name, b, hq, lq, lk, dtype):
    """One option by name, for operands of these sizes."""
    rng = np.random.default_rng([OPTIONS.index(name), b, hq, lq, lk])
    values = {
        "causal": lambda: {"causal": True},
        "window": lambda: {"window": (lk // 3, 2)},
        "mask": lambda: {"mask": (rng.random((b, 1, lq, lk)) < 0.7) & (np.arange(lq) != lq // 2)[:, None]},
        "structured mask": lambda: {"mask": cuflash.masks.Window(lk // 2, None) & cuflash.masks.Window(None, 3)},
        "bias": lambda: {"bias": rng.standard_normal((hq, lq, lk)).astype(dtype)},
        "alibi": lambda: {"bias": cuflash.Alibi(rng.random(hq) / 4)},
        "scale": lambda: {"scale": 0.3},
        "softcap": lambda: {"softcap": 1.5},
        "sinks": lambda: {"sinks": (2 * rng.standard_normal(hq)).astype(dtype)},
        "q_offset": lambda: {"q_offset": rng.integers(-lq // 2, lk, size=b)},
        "kv_lengths": lambda: {"kv_lengths": rng.permutation(np.linspace(lk // 3, lk, b).astype(int))},
    }
    return values[name]()


@st.composite
def any_problem(draw):
    """Shapes that broadcast, orders of memory, and any set of options, for float64."""
    batch = draw(st.sampled_from([(), (1,), (2,), (3, 1), (2, 2)]))
    hk, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    lq, lk = draw(st.integers(0, 20)), draw(st.integers(0, 40))
    d, dv = draw(st.integers(0, 6)), draw(st.integers(0, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    arrays = []
    for shape in ((hk * group, lq, d), (hk, lk, d), (hk, lk, dv)):
        own = tuple(n if draw(st.booleans()) else 1 for n in batch)[draw(st.integers(0, len(batch))) :]
        arrays.append(rng.standard_normal((*own, *shape)))
    whole = np.broadcast_shapes(*(x.shape[:-3] for x in arrays))
    options = {}

    def broadcast(shape):
        own = tuple(n if draw(st.booleans()) else 1 for n in shape)
        return own[draw(st.integers(0, len(own))) :]

    scores = (*whole, hk * group, lq, lk)
    makers = {
        "causal": lambda: True,
        "window": lambda: draw(st.tuples(*[st.none() | st.integers(0, lk + 2)] * 2)),
        "mask": lambda: np.asarray(rng.random(broadcast(scores)) < 0.7),
        "bias": lambda: np.asarray(rng.standard_normal(broadcast(scores))),
        "scale": lambda: draw(st.sampled_from([0.0, -0.5, 1])),
        "softcap": lambda: draw(st.sampled_from([0.25, 4.0])),
        "sinks": lambda: rng.standard_normal(hk * group),
        "q_offset": lambda: rng.integers(-lq - 2, lk + 3, size=broadcast(whole)),
        "kv_lengths": lambda: rng.integers(0, lk + 1, size=broadcast(whole)),
    }
    for name in draw(st.sets(st.sampled_from(sorted(makers)))):
        options[name] = makers[name]()
    if "bias" not in options and draw(st.booleans()):
        options["bias"] = cuflash.Alibi(rng.random(hk * group))
    views = draw(st.tuples(*[st.sampled_from(list(VIEWS))] * 3))
    return arrays, views, options, draw(st.sampled_from(["tuned", "small"]))
