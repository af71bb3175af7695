"""Packed sequences, member by member."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from cuflash.reference._attention import Gradients, attention, attention_backward
from cuflash.reference._steps import accumulator, sum_over, sum_to

Array = Any  # an array, or what NumPy makes one of


def attention_varlen(
    q: Array, k: Array, v: Array, q_starts: Array, kv_starts: Array, /, *, return_lse: bool = False,
    dtype: Any = np.float64, **options: Any,
) -> Any:  # fmt: skip
    """`attention` of each member of a pack on its own: queries ``q[q_starts[m]:q_starts[m + 1]]``, keys likewise.

    Parameters
    ----------
    q, k, v : arrays, (total_q, hq, d), (total_k, hk, d), (total_k, hk, dv)
    q_starts, kv_starts : integers, (n + 1,)
        Where members start; from 0 to the totals, never falling.
    return_lse, dtype, **options
        As for `attention`, `sinks` among them. `q_offset` and `kv_lengths` may be (n,); `mask` and `bias` broadcast to
        (n, hq, longest lq, longest lk), of which a member looks at the first of its own queries and keys.

    Returns
    -------
    out, lse : arrays, (total_q, hq, dv) and (hq, total_q)

    Examples
    --------
    >>> import numpy as np
    >>> from cuflash import reference
    >>> q, v = np.zeros((3, 1, 1)), np.array([2.0, 4.0, 9.0])[:, None, None]
    >>> reference.attention_varlen(q, q, v, [0, 2, 3], [0, 2, 3])[:, 0, 0]
    array([3., 3., 9.])
    """
    out = np.zeros((*np.shape(q)[:2], np.shape(v)[-1]), dtype)
    lse = np.zeros(np.shape(q)[1::-1], accumulator(dtype))
    for _, queries, keys, own in _members(q, q_starts, kv_starts, options):
        out[queries], lse[:, queries] = attention(
            q[queries], k[keys], v[keys], layout="blhd", return_lse=True, dtype=dtype, **own
        )
    return (out, lse) if return_lse else out


def attention_varlen_backward(
    dout: Array, q: Array, k: Array, v: Array, q_starts: Array, kv_starts: Array, /, *, dlse: Array = None,
    dtype: Any = np.float64, **options: Any,
) -> Gradients:  # fmt: skip
    """Gradients of `attention_varlen`: those of each member in its place, summed where members share an operand.

    Parameters
    ----------
    dout : array, (total_q, hq, dv)
    dlse : array, (hq, total_q), optional
        What arrives at `out` and `lse`.
    q, k, v, q_starts, kv_starts, dtype, **options
        As for `attention_varlen`.

    Returns
    -------
    Gradients
        ``(dq, dk, dv, dbias, dsinks)``. What of a bias no member looks at has gradient 0.

    Examples
    --------
    >>> import numpy as np
    >>> from cuflash import reference
    >>> x = np.ones((3, 1, 1))
    >>> reference.attention_varlen_backward(x, x, x, x, [0, 2, 3], [0, 2, 3]).dv[:, 0, 0]
    array([1., 1., 1.])
    """
    bias, sinks = (options.get(name) for name in ("bias", "sinks"))
    dq, dk, dv = (np.zeros(np.shape(x), dtype) for x in (q, k, v))
    dbias = np.zeros(_scores_shape(q, q_starts, kv_starts), dtype)
    dsinks = np.zeros((dbias.shape[0], dbias.shape[1]), dtype)
    for m, queries, keys, own in _members(q, q_starts, kv_starts, options):
        grads = attention_backward(
            dout[queries], q[queries], k[keys], v[keys], dlse=None if dlse is None else dlse[:, queries],
            layout="blhd", dtype=dtype, **own,
        )  # fmt: skip
        dq[queries], dk[keys], dv[keys] = grads[:3]
        if grads.dbias is not None:
            dbias[m, :, : grads.dbias.shape[1], : grads.dbias.shape[2]] = grads.dbias
        if grads.dsinks is not None:
            dsinks[m] = grads.dsinks
    return Gradients(
        dq, dk, dv,
        None if bias is None or hasattr(bias, "slopes") else sum_to(dbias, np.shape(bias)),
        None if sinks is None else sum_over(dsinks, axis=0)[0],
    )  # fmt: skip


def _members(
    q: Array, q_starts: Array, kv_starts: Array, options: dict[str, Any]
) -> Iterator[tuple[int, slice, slice, dict[str, Any]]]:
    """Each member's number, its queries and keys on the packed axes, and its own options."""
    scores = _scores_shape(q, q_starts, kv_starts)
    for m in range(scores[0]):
        queries, keys = (slice(int(starts[m]), int(starts[m + 1])) for starts in (q_starts, kv_starts))
        own = dict(options)
        for name in ("q_offset", "kv_lengths"):
            if own.get(name) is not None:
                own[name] = np.broadcast_to(own[name], scores[:1])[m]
        for name, structure in (("mask", "visible"), ("bias", "slopes")):
            if own.get(name) is not None and not hasattr(own[name], structure):
                whole = np.broadcast_to(own[name], scores)
                own[name] = whole[m, :, : queries.stop - queries.start, : keys.stop - keys.start]
        yield m, queries, keys, own


def _scores_shape(q: Array, q_starts: Array, kv_starts: Array) -> tuple[int, int, int, int]:
    """(n, hq, longest lq, longest lk)."""
    longest = (int(np.diff(starts).max(initial=0)) for starts in (q_starts, kv_starts))
    return len(q_starts) - 1, np.shape(q)[1], *longest
