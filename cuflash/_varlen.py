"""The public functions on packed sequences: many of different lengths in one array, without padding."""

from __future__ import annotations

from typing import Any

from cuflash._attention import Gradients
from cuflash._dispatch import backend, prepared
from cuflash._problem import packed


@prepared
def attention_varlen(
    q: Any, k: Any, v: Any, q_starts: Any, kv_starts: Any, /, *, causal: bool = False, window: Any = None,
    mask: Any = None, bias: Any = None, scale: float | None = None, softcap: float | None = None, sinks: Any = None,
    q_offset: Any = None, kv_lengths: Any = None, precision: str | None = None, out: Any = None, lse_out: Any = None,
    workspace: Any = None, return_lse: bool = False,
) -> Any:  # fmt: skip
    """`attention` of n sequences of different lengths that lie packed, one behind another, each on its own.

    Member m has the queries ``q[q_starts[m]:q_starts[m + 1]]`` and the keys ``k[kv_starts[m]:kv_starts[m + 1]]``, in
    number ``lq`` and ``lk``; either may be none. Nothing that belongs to another member is ever read. There is no
    `layout`: the length always comes first.

    Parameters
    ----------
    q : array, shape (total_q, hq, d)
        Queries of all members: float16, bfloat16, float32 or float64.
    k : array, shape (total_k, hk, d)
        Keys, of q's dtype. hk divides hq: query head h uses key/value head ``h // (hq // hk)``.
    v : array, shape (total_k, hk, dv)
        Values, of q's dtype.
    q_starts, kv_starts : integers, shape (n + 1,)
        Where each member starts, and where the last one ends: from 0 to the totals, never falling. From lengths they
        are ``numpy.cumsum([0, *lengths])``. With CuPy arrays they are lists, or CuPy arrays that only kernels read:
        nothing then looks whether they are right, and rows of no member are left as they are.
    causal, window
        As in `attention`, for each member with its own `q_offset`.
    mask : boolean array or structured mask, optional
        True = takes part; broadcasts to (n, hq, longest lq, longest lk), where element (m, h, i, j) is about query i
        and key j of member m. What lies behind a member's own queries and keys is never looked at. Where starts lie on
        a GPU, the last two axes have size 1 or whatever reaches the longest, which is not checked.
    bias : array or Alibi, optional
        Added to the scores; q's dtype or float32; broadcasts as `mask` does.
    scale, softcap
        As in `attention`.
    sinks : array, shape (hq,), optional
        Logits that join the softmax's denominator and carry no value, the same for all members.
    q_offset : int or integers (n,), optional
        Position of each member's query 0 among its keys, by default its own ``lk - lq``.
    kv_lengths : int or integers (n,), optional
        How many keys of each member are real, from its first: at most lk. It does not change the default `q_offset`.
    precision, workspace, return_lse
        As in `attention`.
    out, lse_out : array, optional
        Where to put the results: exact shape and dtype, overlapping no operand.

    Returns
    -------
    out : array, shape (total_q, hq, dv)
        In the dtype and memory order of `q`. A query that sees no key gives 0.
    lse : array, shape (hq, total_q), if `return_lse`
        Natural-log log-sum-exp of the final scores, sinks included; float32, or float64 for float64. -inf for a query
        that sees no key.

    Raises
    ------
    TypeError
        For what is not an array, a mix of libraries or dtypes, an unsupported dtype, starts that are no integers.
    ProblemError
        For shapes, starts or options that contradict each other.
    UnsupportedError
        For a valid call that nothing here computes.

    See Also
    --------
    attention : the same for sequences of one length.

    Examples
    --------
    >>> import numpy as np
    >>> import cuflash
    >>> rng = np.random.default_rng(0)
    >>> starts = np.cumsum([0, 3, 5, 0, 4])  # four members of 3, 5, 0 and 4 tokens
    >>> q, k, v = rng.standard_normal((3, 12, 8, 64))  # 12 tokens in all, 8 heads
    >>> out = cuflash.attention_varlen(q, k, v, starts, starts, causal=True)
    >>> second = slice(3, 8)
    >>> alone = cuflash.attention(q[second], k[second], v[second], causal=True, layout="blhd")
    >>> out.shape, np.allclose(out[second], alone)
    ((12, 8, 64), True)
    """
    pack = packed.varlen_call(
        "attention_varlen", q, k, v, q_starts, kv_starts, causal=causal, window=window, mask=mask, bias=bias,
        scale=scale, softcap=softcap, sinks=sinks, q_offset=q_offset, kv_lengths=kv_lengths, precision=precision,
        out=out, lse_out=lse_out, workspace=workspace, return_lse=return_lse,
    )  # fmt: skip
    output, lse = backend("attention_varlen", pack.call.home).forward_varlen(pack)
    return (output, lse) if pack.call.return_lse else output


@prepared
def attention_varlen_backward(
    dout: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, q_starts: Any, kv_starts: Any, /, *, dlse: Any = None,
    deterministic: bool = True, causal: bool = False, window: Any = None, mask: Any = None, bias: Any = None,
    scale: float | None = None, softcap: float | None = None, sinks: Any = None, q_offset: Any = None,
    kv_lengths: Any = None, precision: str | None = None,
) -> Gradients:  # fmt: skip
    """Gradients of `attention_varlen`, recomputing the scores tile by tile from the lse.

    Parameters
    ----------
    dout : array, shape (total_q, hq, dv)
        Gradient with respect to the output, of q's dtype.
    q, k, v : array
        The operands of the forward call.
    out, lse : array
        What the forward call returned for the same operands and options.
    q_starts, kv_starts : integers, shape (n + 1,)
        Those of the forward call.
    dlse : array, shape (hq, total_q), optional
        Gradient with respect to the lse.
    deterministic : bool
        Whether bits must not change from run to run. They never do: both backends are always deterministic.
    causal, window, mask, bias, scale, softcap, sinks, q_offset, kv_lengths, precision
        The options of the forward call; see `attention_varlen`.

    Returns
    -------
    Gradients
        ``dq, dk, dv, dbias, dsinks``, each in its operand's shape and dtype. `dsinks`, and `dbias` along axes where the
        bias was broadcast, are summed over the members; where no member looks at the bias, `dbias` is 0. `dbias` is
        None without a bias array (slopes of `Alibi` get no gradient), `dsinks` without sinks.

    Raises
    ------
    TypeError, ProblemError, UnsupportedError
        As `attention_varlen`.

    Examples
    --------
    >>> import numpy as np
    >>> import cuflash
    >>> starts = np.cumsum([0, 2, 4])
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 6, 1, 8))
    >>> out, lse = cuflash.attention_varlen(q, k, v, starts, starts, return_lse=True)
    >>> grads = cuflash.attention_varlen_backward(np.ones_like(out), q, k, v, out, lse, starts, starts)
    >>> grads.dv[:2].sum(axis=0).round(6)  # two queries hand out weights that sum to 1
    array([[2., 2., 2., 2., 2., 2., 2., 2.]])
    """
    given = packed.varlen_backward_call(
        "attention_varlen_backward", dout, q, k, v, out, lse, q_starts, kv_starts, dlse=dlse,
        deterministic=deterministic, causal=causal, window=window, mask=mask, bias=bias, scale=scale, softcap=softcap,
        sinks=sinks, q_offset=q_offset, kv_lengths=kv_lengths, precision=precision,
    )  # fmt: skip
    home = given.pack.call.home
    return Gradients(*backend("attention_varlen_backward", home).backward_varlen(given))
