"""The two tables of ``python -m cuflash bench``: cuflash and standard attention beside published times of both kinds.

Both measure one causal attention of 8 heads of 64 features, batch 1, float32; projections and the rest of a model are
not part of it.

1. Tiled against standard attention. A row is one call over l tokens. Standard attention is the textbook's with
   ``scipy.special.softmax``; beside it the best that NumPy does in place with the whole score matrix.
2. Decoding with split keys and a cache against standard decoding. A row is one new token when the sequence has l
   tokens, that one included. Standard decoding has no cache: one standard attention over all l tokens, of which the
   last row is used. Beside it a cache and NumPy, with the token's scores materialised, in place. cuflash takes the last
   token off the cache (so that every call is the same; on its own account), appends it again and decodes.

Memory is the peak of what a call allocates beyond its operands, the cache and its result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

import cuflash
from cuflash import reference
from cuflash._bench import standard
from cuflash._bench.report import Bar, Row, Table
from cuflash._bench.timing import Peer, compare, peak_bytes, relative_error

HEADS, DIM = 8, 64
PUBLISHED_SAVED = 40.0  # % of the memory for scores
CHECKED_LENGTH, BOUND = 65, 1e-6  # results are held against the definition first, at this length and relative error
NOTES = (
    "ms are medians, MB peaks of a call beyond operands, cache and result. A ratio is standard (or its neighbour) over "
    "cuflash, the published one standard over the method. saved: of standard's MB."
)


class Kind(NamedTuple):
    """One of the tables."""

    title: str
    first_row: int
    published: Mapping[int, tuple[float, float]]  # by length: milliseconds of standard attention and of the method
    make: Callable[[int], dict[str, Peer]]  # cuflash, standard and its neighbour at a length
    neighbour: str


def tables(lengths: Sequence[int], rounds: int) -> list[Table]:
    """Measure both; a length for which nothing was published gets neither row number nor bar."""
    measured = [measure(kind, lengths, rounds) for kind in KINDS]
    return [*measured[:-1], measured[-1]._replace(notes=NOTES)]


def measure(kind: Kind, lengths: Sequence[int], rounds: int) -> Table:
    """Measure one table, after a look at whether its peers compute what they should."""
    _check(kind.make(CHECKED_LENGTH))
    rows = [_row(kind, length, rounds) for length in lengths]
    bars = [
        Bar(f"row {row['row']}, l = {row['l']}, ratio", row["ratio"], ">", row["published ratio"])
        for row in rows
        if row["row"] is not None
    ]
    return Table(kind.title, rows, bars)


def _row(kind: Kind, length: int, rounds: int) -> Row:
    peers = kind.make(length)
    taken = compare(peers, rounds)
    memory = {name: peak_bytes(peer.call) / 1e6 for name, peer in peers.items()}
    known = length in kind.published
    standard_ms, method_ms = kind.published.get(length, (None, None))
    order = ("standard", kind.neighbour, "cuflash")
    return {
        "row": kind.first_row + list(kind.published).index(length) if known else None,
        "l": length,
        "published standard ms": standard_ms,
        "published method ms": method_ms,
        "published ratio": round(standard_ms / method_ms, 3) if standard_ms and method_ms else None,
        **{f"{name} ms": taken[name] for name in order},
        "ratio": taken["standard / cuflash"],
        f"{kind.neighbour} ratio": taken[f"{kind.neighbour} / cuflash"],
        **{f"{name} MB": round(memory[name], 3) for name in order},
        "published saved, %": PUBLISHED_SAVED if known else None,
        "saved, %": math.floor(1000 * (1 - memory["cuflash"] / memory["standard"])) / 10,
        "spread, %": taken["spread, %"],
    }


def _operands(length: int) -> np.ndarray:
    """q, k, v, each (1, h, l, d)."""
    return np.random.default_rng(length).standard_normal((3, 1, HEADS, length, DIM), dtype=np.float32)


def attention_peers(length: int) -> dict[str, Peer]:
    """Attention over `length` tokens; results are those of the last token."""
    q, k, v = _operands(length)

    def last(out: np.ndarray) -> np.ndarray:
        return out[:, :, -1]

    return {
        "cuflash": Peer(lambda: cuflash.attention(q, k, v, causal=True), last),
        "standard": Peer(lambda: standard.naive(q, k, v, True), last),
        "in place": Peer(lambda: standard.in_place(q, k, v, True), last),
    }


def decoding_peers(length: int) -> dict[str, Peer]:
    """The last of `length` tokens; results are its own."""
    q, k, v = _operands(length)
    token = q[:, :, -1]
    newest = k[:, :, -1:], v[:, :, -1:]
    cache = cuflash.KVCache(1, length, HEADS, DIM, dtype=np.float32)
    cache.append(k, v)
    keys, values = cache.k.copy(), cache.v.copy()

    def split() -> np.ndarray:
        cache.truncate(0, length - 1)
        cache.append(*newest)
        return cuflash.decode(token, cache)

    def materialised() -> np.ndarray:
        keys[:, -1:], values[:, -1:] = (x.transpose(0, 2, 1, 3) for x in newest)
        return standard.decode_in_place(token, keys, values)

    return {
        "cuflash": Peer(split),
        "standard": Peer(lambda: standard.naive(q, k, v, True), lambda out: out[:, :, -1]),
        "cached, in place": Peer(materialised),
    }


def _check(peers: Mapping[str, Peer]) -> None:
    """Time nothing that is wrong."""
    q, k, v = _operands(CHECKED_LENGTH)
    expected = reference.attention(q, k, v, causal=True)[:, :, -1]
    for name, peer in peers.items():
        error = relative_error(peer.result(peer.call()), expected)
        if not error <= BOUND:
            raise AssertionError(
                f"bench: {name} is off by {error:.1e} of its norm; `python -m cuflash selftest` says more"
            )


KINDS = (
    Kind(
        f"1. Tiled against standard attention: one causal call over l tokens, b = 1, h = {HEADS}, d = {DIM}, float32",
        1,
        {512: (12.3, 7.1), 1024: (45.8, 22.6), 2048: (178.6, 87.3)},
        attention_peers,
        "in place",
    ),
    Kind(
        "2. Decoding with split keys and a cache against standard decoding, which recomputes everything: one new token "
        f"at a context of l tokens, b = 1, h = {HEADS}, d = {DIM}, float32",
        4,
        {512: (34.5, 18.2), 1024: (78.6, 35.1), 2048: (150.2, 65.9)},
        decoding_peers,
        "cached, in place",
    ),
)
LENGTHS = tuple(KINDS[0].published)
