"""The public functions on whole arrays: check, hand to a backend, give back what NumPy users expect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from cuflash._dispatch import backend, prepared
from cuflash._problem import attention as problem
from cuflash._problem import transforms


class Gradients(NamedTuple):
    """Gradients in the shapes and dtypes of their operands; None for an operand that was not given."""

    dq: Any
    dk: Any
    dv: Any
    dbias: Any = None
    dsinks: Any = None


@prepared
def attention(
    q: Any, k: Any, v: Any, /, *, causal: bool = False, window: Any = None, mask: Any = None, bias: Any = None,
    scale: float | None = None, softcap: float | None = None, sinks: Any = None, q_offset: Any = None,
    kv_lengths: Any = None, layout: str = "bhld", precision: str | None = None, out: Any = None, lse_out: Any = None,
    workspace: Any = None, return_lse: bool = False,
) -> Any:  # fmt: skip
    """Exact scaled dot-product attention, softmax(scale * q k^T + ...) v, in tiles.

    The scores are never held as a whole: memory beyond the arrays is O(l * d).

    Parameters
    ----------
    q : array, shape (..., hq, lq, d)
        Queries: float16, bfloat16, float32 or float64. With ``layout="blhd"`` (..., lq, hq, d). If all three operands
        have two axes they are one head: (lq, d).
    k : array, shape (..., hk, lk, d)
        Keys, of q's dtype. hk divides hq: query head h uses key/value head ``h // (hq // hk)``. Leading axes broadcast.
    v : array, shape (..., hk, lk, dv)
        Values, of q's dtype.
    causal : bool
        Query i sees key j only if ``j <= i + q_offset``.
    window : None, int or (left, right)
        Query i sees keys from ``i + q_offset - left`` to ``i + q_offset + right``, both inclusive; None on a side is
        unlimited, an int is both sides.
    mask : boolean array or structured mask, optional
        True = takes part; broadcasts to (..., hq, lq, lk). Or `masks.Causal`, `masks.Window`. Composes with `causal`
        and `window`. Hidden keys must be finite.
    bias : array or Alibi, optional
        Added to the scores; q's dtype or float32; broadcasts to (..., hq, lq, lk).
    scale : float, optional
        Factor of the products, by default ``1 / sqrt(d)``.
    softcap : float, optional
        ``s -> softcap * tanh(s / softcap)``, after the scale and before the bias.
    sinks : array, shape (hq,), optional
        Logits that join the softmax's denominator and carry no value.
    q_offset : int or integers, optional
        Position of query 0 among the keys, by default ``lk - lq`` (the last query sees the last key); 0 aligns the
        first ones. Integers broadcast to the leading (batch) axes.
    kv_lengths : int or integers, optional
        How many keys are real, from the first; those behind are never read. Broadcasts to the batch axes. It does not
        change the default `q_offset`. Of a CuPy array, which is not looked into, a number beyond 0..lk counts as the
        nearer of these.
    layout : {"bhld", "blhd"}
        Whether heads come before length. `lse` is (..., hq, lq) in both.
    precision : {None, "tf32"}
        None is IEEE arithmetic; "tf32" has no kernel yet.
    out, lse_out : array, optional
        Where to put the results: exact shape and dtype, overlapping no operand.
    workspace : uint8 array, one axis, optional
        Scratch memory that a call would otherwise allocate. NumPy takes none; a GPU takes some where few queries meet
        many keys, and `explain` says how many bytes. One that is too small is a ProblemError.
    return_lse : bool
        Whether to return the log-sum-exp as well. On a GPU few float32 queries are then computed by another kernel,
        which rounds as gradients do, so that `out` may differ in its last digits.

    Returns
    -------
    out : array, shape (..., hq, lq, dv)
        In the dtype of `q`, and in its memory order where q has all the batch axes. A query that sees no key gives 0.
    lse : array, shape (..., hq, lq), if `return_lse`
        Natural-log log-sum-exp of the final scores, sinks included; float32, or float64 for float64. -inf for a query
        that sees no key.

    Raises
    ------
    TypeError
        For what is not an array, a mix of libraries or dtypes, an unsupported dtype, a mask that is not boolean.
    ProblemError
        For shapes or options that contradict each other.
    UnsupportedError
        For a valid call that nothing here computes.

    References
    ----------
    Dao, Fu, Ermon, Rudra, Re: "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness", 2022.
    Dao: "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning", 2023.

    Examples
    --------
    >>> import numpy as np
    >>> import cuflash
    >>> rng = np.random.default_rng(0)
    >>> q = rng.standard_normal((2, 8, 5, 64))  # batch 2, 8 query heads, 5 queries
    >>> k = rng.standard_normal((2, 2, 7, 64))  # 2 key/value heads, 7 keys
    >>> v = rng.standard_normal((2, 2, 7, 64))
    >>> out, lse = cuflash.attention(q, k, v, causal=True, return_lse=True)
    >>> out.shape, lse.shape
    ((2, 8, 5, 64), (2, 8, 5))
    """
    call = problem.attention_call(
        "attention", q, k, v, causal=causal, window=window, mask=mask, bias=bias, scale=scale, softcap=softcap,
        sinks=sinks, q_offset=q_offset, kv_lengths=kv_lengths, layout=layout, precision=precision, out=out,
        lse_out=lse_out, workspace=workspace, return_lse=return_lse,
    )  # fmt: skip
    output, lse = backend("attention", call.home).forward(call)
    return (output, lse) if call.return_lse else output


@prepared
def attention_backward(
    dout: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, /, *, dlse: Any = None, deterministic: bool = True,
    causal: bool = False, window: Any = None, mask: Any = None, bias: Any = None, scale: float | None = None,
    softcap: float | None = None, sinks: Any = None, q_offset: Any = None, kv_lengths: Any = None,
    layout: str = "bhld", precision: str | None = None,
) -> Gradients:  # fmt: skip
    """Gradients of `attention`, recomputing the scores tile by tile from the lse.

    Parameters
    ----------
    dout : array, shape (..., hq, lq, dv)
        Gradient with respect to the output, of q's dtype.
    q, k, v : array
        The operands of the forward call.
    out, lse : array
        What the forward call returned for the same operands and options.
    dlse : array, shape (..., hq, lq), optional
        Gradient with respect to the lse.
    deterministic : bool
        Whether bits must not change from run to run. They never do: both backends are always deterministic.
    causal, window, mask, bias, scale, softcap, sinks, q_offset, kv_lengths, layout, precision
        The options of the forward call; see `attention`.

    Returns
    -------
    Gradients
        ``dq, dk, dv, dbias, dsinks``, each in its operand's shape and dtype, summed over axes that were broadcast and
        over the query heads that share a key/value head. `dbias` is None without a bias array (slopes of `Alibi` get no
        gradient), `dsinks` without sinks.

    Raises
    ------
    TypeError, ProblemError, UnsupportedError
        As `attention`.

    References
    ----------
    Dao: "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning", 2023.

    Examples
    --------
    >>> import numpy as np
    >>> import cuflash
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = rng.standard_normal((3, 6, 4))
    >>> out, lse = cuflash.attention(q, k, v, causal=True, return_lse=True)
    >>> grads = cuflash.attention_backward(np.ones_like(out), q, k, v, out, lse, causal=True)
    >>> grads.dq.shape, np.allclose(grads.dv.sum(axis=0), 6.0)  # each query hands out weights that sum to 1
    ((6, 4), True)
    """
    given = problem.backward_call(
        "attention_backward", dout, q, k, v, out, lse, dlse=dlse, deterministic=deterministic, causal=causal,
        window=window, mask=mask, bias=bias, scale=scale, softcap=softcap, sinks=sinks, q_offset=q_offset,
        kv_lengths=kv_lengths, layout=layout, precision=precision,
    )  # fmt: skip
    return Gradients(*backend("attention_backward", given.call.home).backward(given))


def attention_vjp(q: Any, k: Any, v: Any, /, **options: Any) -> tuple[Any, Callable[..., Gradients]]:
    """Attention and the function that takes a gradient of its output to gradients of its operands.

    Parameters
    ----------
    q, k, v : array
        As in `attention`.
    **options
        The options of `attention`.

    Returns
    -------
    out : array, or (out, lse) with ``return_lse=True``
        What `attention` returns.
    vjp : callable
        ``vjp(dout, dlse=None)`` returns `Gradients`. It keeps the operands, not copies: do not change them before. Of
        the results it keeps copies.

    Raises
    ------
    TypeError, ProblemError, UnsupportedError
        As `attention`.

    Examples
    --------
    >>> import numpy as np
    >>> import cuflash
    >>> x = np.random.default_rng(0).standard_normal((6, 4))
    >>> out, vjp = cuflash.attention_vjp(x, x, x, bias=np.zeros((6, 6)))
    >>> grads = vjp(np.ones_like(out))
    >>> dx = grads.dq + grads.dk + grads.dv
    >>> dx.shape, grads.dbias.shape
    ((6, 4), (6, 6))
    """
    return_lse = problem.options.read_flag("attention_vjp", "return_lse", options.pop("return_lse", False))
    out, lse = attention(q, k, v, return_lse=True, **options)
    kept_out, kept_lse = out.copy(), lse.copy()
    kept = {name: value for name, value in options.items() if name not in ("out", "lse_out", "workspace")}

    def vjp(dout: Any, dlse: Any = None) -> Gradients:
        return attention_backward(dout, q, k, v, kept_out, kept_lse, dlse=dlse, **kept)

    return ((out, lse) if return_lse else out), vjp


@prepared
def attention_weights(
    q: Any, k: Any, /, *, causal: bool = False, window: Any = None, mask: Any = None, bias: Any = None,
    scale: float | None = None, softcap: float | None = None, sinks: Any = None, q_offset: Any = None,
    kv_lengths: Any = None, layout: str = "bhld", precision: str | None = None, out: Any = None,
) -> Any:  # fmt: skip
    """The softmax itself, to look at; it is as large as the scores, so pass the few query rows you want.

    Parameters
    ----------
    q, k : array
        As in `attention`.
    causal, window, mask, bias, scale, softcap, sinks, q_offset, kv_lengths, layout, precision
        As in `attention`. For some rows of a longer sequence pass their `q_offset`.
    out : array, shape (..., hq, lq, lk), optional
        Where to put the weights.

    Returns
    -------
    array, shape (..., hq, lq, lk)
        In q's dtype. A row sums to 1, to less with sinks, and to 0 if its query sees no key.

    Raises
    ------
    TypeError, ProblemError, UnsupportedError
        As `attention`.

    Examples
    --------
    >>> import numpy as np
    >>> import cuflash
    >>> x = np.eye(3)
    >>> cuflash.attention_weights(x, x, causal=True, scale=1.0).round(2)
    array([[1.  , 0.  , 0.  ],
           [0.27, 0.73, 0.  ],
           [0.21, 0.21, 0.58]])
    """
    call, shape = problem.weights_call(
        "attention_weights", q, k, out=out, causal=causal, window=window, mask=mask, bias=bias, scale=scale,
        softcap=softcap, sinks=sinks, q_offset=q_offset, kv_lengths=kv_lengths, layout=layout, precision=precision,
    )  # fmt: skip
    return backend("attention_weights", call.home).weights(call, shape, out)


@prepared
def merge(outs: Any, lses: Any, /, *, axis: int = 0) -> tuple[Any, Any]:
    """Attention over all keys from attention over disjoint parts of them.

    Parameters
    ----------
    outs : array or sequence of arrays
        Outputs (parts, ..., h, l, dv), stacked along `axis`, or one array (..., h, l, dv) for each part.
    lses : array or sequence of arrays
        Their log-sum-exps (parts, ..., h, l), natural log; float32, or float64 for float64.
    axis : int
        Where the parts are; a negative one counts from the last axis of the lse.

    Returns
    -------
    out : array, shape (..., h, l, dv)
    lse : array, shape (..., h, l)
        Associative up to rounding. A part with lse -inf adds nothing, whatever its output holds.

    Raises
    ------
    TypeError, ProblemError
        For parts that do not belong together.

    Examples
    --------
    >>> import numpy as np
    >>> import cuflash
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 6, 4))
    >>> parts = [cuflash.attention(q, k[s], v[s], return_lse=True) for s in (slice(0, 2), slice(2, 6))]
    >>> out, lse = cuflash.merge(*zip(*parts))
    >>> np.allclose(out, cuflash.attention(q, k, v))
    True
    """
    call = transforms.merge_call("merge", outs, lses, axis)
    merged: tuple[Any, Any] = backend("merge", call.home).merge(call.outs, call.lses)
    return merged


@prepared
def rotary(
    x: Any, positions: Any, /, *, layout: str = "bhld", dim: int | None = None, base: float = 10000.0,
    freqs: Any = None, interleaved: bool = False, out: Any = None,
) -> Any:  # fmt: skip
    """Rotary position embedding of queries or keys.

    Its gradient is ``rotary(dx, -positions)`` with the same options (and signed positions).

    Parameters
    ----------
    x : array, shape (..., h, l, d)
        Queries or keys; (..., l, h, d) with ``layout="blhd"``; (l, d) is one head.
    positions : integers or floats
        Broadcast to (..., l), the axes of `x` without heads and features.
    layout : {"bhld", "blhd"}
    dim : int, optional
        Turn the first `dim` features (even), by default all d; the rest pass unchanged.
    base : float
        Frequencies are ``base ** (-2 i / dim)`` radians per position.
    freqs : array, shape (dim / 2,), optional
        Frequencies in radians per position, in place of those of `base`.
    interleaved : bool
        Whether feature 2i is paired with 2i + 1 (RoFormer, GPT-J) in place of i with i + dim / 2 (GPT-NeoX, Llama).
    out : array, optional
        Where to put the result; must not overlap `x`.

    Returns
    -------
    array
        In the shape, dtype and memory order of `x`.

    Raises
    ------
    TypeError, ProblemError
        For positions, frequencies or a `dim` that do not fit.

    References
    ----------
    Su, Lu, Pan, Murtadha, Wen, Liu: "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.

    Examples
    --------
    >>> import numpy as np
    >>> import cuflash
    >>> x = np.array([[1.0, 0.0], [1.0, 0.0]])
    >>> cuflash.rotary(x, np.arange(2)).round(2)
    array([[1.  , 0.  ],
           [0.54, 0.84]])
    """
    call = transforms.rotary_call(
        "rotary", x, positions, layout=layout, dim=dim, base=base, freqs=freqs, interleaved=interleaved, out=out
    )
    return backend("rotary", call.home).rotary(call)
