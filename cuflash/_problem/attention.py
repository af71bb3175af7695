"""One call of attention, its gradient or its weights: arrays and options in, a Problem and its operands out."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from cuflash import masks
from cuflash._bias import Alibi
from cuflash._problem import arrays, options
from cuflash._problem.arrays import Array
from cuflash._problem.match import match, match_batch, match_broadcast, match_exact
from cuflash.errors import ProblemError


class Problem(NamedTuple):
    """What is to be computed: hashable, and all that a plan depends on. Lengths, offsets and strides are data."""

    function: str
    dtype: str
    batch: tuple[int, ...]
    hq: int
    hk: int
    lq: int
    lk: int
    d: int
    dv: int
    scale: float
    softcap: float | None
    left: int | None  # a query at position p sees keys p - left to p + right; None is unlimited
    right: int | None
    mask: bool
    bias: tuple[int, ...] | None  # the bias's own shape, before broadcasting
    alibi: bool
    sinks: bool
    kv_lengths: bool
    ragged: bool  # offsets or lengths differ between batch entries
    kv_batch: tuple[int, ...]  # `batch`, with 1 where the keys or the values are broadcast
    splits: int | None = None  # parts the keys are cut into, where the caller asks for a number
    stored: str | None = None  # dtype of quantised keys and values
    page_size: int | None = None  # tokens of a page, where keys and values lie in pages

    @property
    def group(self) -> int:
        """Query heads that share one key/value head."""
        return self.hq // self.hk if self.hk else 1

    @property
    def accumulator(self) -> Any:
        """dtype of the arithmetic: float64 for float64, else float32."""
        return arrays.lse_dtype(self.dtype)


class Operands(NamedTuple):
    """The arrays of a call as views in one order of axes: (*batch, heads, length, dim); nothing is copied."""

    q: Array  # (*batch, hq, lq, d)
    k: Array  # (*batch, hk, lk, d)
    v: Array  # (*batch, hk, lk, dv)
    q_offset: int | Array  # an integer, or integers (*batch); lists come as NumPy arrays whatever the library
    kv_lengths: int | Array  # likewise
    mask: Array | None = None  # booleans (*batch, hq, lq, lk), broadcast without a copy
    bias: Array | None = None  # (*batch, hq, lq, lk), likewise
    slopes: Array | None = None  # (hq,), of Alibi
    sinks: Array | None = None  # (hq,)
    seqs: Array | None = None  # (b,): the row of k and v that each row of q belongs to; None is its own
    page_table: Array | None = None  # (rows, entries): `seqs` are its rows; k and v are (pages, hk, page_size, dim)
    k_scale: Array | None = None  # of quantised keys, as k without its last axis
    v_scale: Array | None = None
    store: Any = None  # of a cache on a device: its `Store`, where kernels find what else they need


class Call(NamedTuple):
    """A checked call: the problem, its operands, and the shapes and arrays that the caller expects back."""

    problem: Problem
    operands: Operands
    home: str  # array library
    like: Array  # whose memory order the output takes
    form: str  # "bhld" or "blhd" as `layout`; "flat": two axes, one head; "token": (b, heads, dim), one query
    out_shape: tuple[int, ...]
    lse_shape: tuple[int, ...]
    return_lse: bool
    out: Array | None = None
    lse: Array | None = None
    workspace: Array | None = None  # bytes

    @property
    def wants_lse(self) -> bool:
        """Whether the lse is a result."""
        return self.return_lse or self.lse is not None

    def canonical(self, array: Array) -> Array:
        """A caller's array as a view (*batch, heads, length, dim)."""
        return heads_first(array, self.form)

    def canonical_lse(self, array: Array) -> Array:
        """A caller's lse as a view (*batch, heads, length)."""
        if self.form == "flat":
            return array[None]
        return array[..., None] if self.form == "token" else array


def heads_first(array: Array, form: str) -> Array:
    """An array as the caller gives it as a view (..., heads, length, dim)."""
    if form == "bhld":
        return array
    if form == "blhd":
        return array.swapaxes(-3, -2)
    return array[None] if form == "flat" else array[..., None, :]


def attention_call(
    function: str, q: Array, k: Array, v: Array, *, causal: Any = False, window: Any = None, mask: Any = None,
    bias: Any = None, scale: Any = None, softcap: Any = None, sinks: Any = None, q_offset: Any = None,
    kv_lengths: Any = None, layout: Any = "bhld", precision: Any = None, out: Any = None, lse_out: Any = None,
    workspace: Any = None, return_lse: Any = False,
) -> Call:  # fmt: skip
    """Check and normalise `attention` and its kin."""
    home = arrays.same_library(function, "q", q=q, k=k, v=v)
    arrays.check_optional(function, home, "q", sinks=sinks, out=out, lse_out=lse_out, workspace=workspace)
    dtype = arrays.same_float(function, "q", q=q, k=k, v=v)
    sizes = _match_shapes(function, q.shape, k.shape, v.shape, options.read_layout(function, layout))
    options.read_precision(function, precision)
    wanted = options.read_flag(function, "return_lse", return_lse)
    left, right = options.read_span(function, causal, window, mask)
    form, batch, hq, lk = sizes.form, sizes.batch, sizes.hq, sizes.lk
    operands = Operands(
        q=_expand(heads_first(q, form), batch), k=_expand(heads_first(k, form), batch),
        v=_expand(heads_first(v, form), batch),
        q_offset=lk - sizes.lq if q_offset is None
        else options.read_integers(function, "q_offset", q_offset, batch, home),
        kv_lengths=lk if kv_lengths is None
        else options.read_integers(function, "kv_lengths", kv_lengths, batch, home, 0, lk),
        mask=read_mask(function, mask, sizes.scores, home),
        bias=read_bias(function, bias, sizes.scores, home, q.dtype),
        slopes=read_slopes(function, bias, hq, dtype),
        sinks=read_sinks(function, sinks, hq, q.dtype),
    )  # fmt: skip
    if form == "flat":
        operands = operands._replace(mask=_add_head(operands.mask), bias=_add_head(operands.bias))
    problem = Problem(
        function, dtype, batch, hq, sizes.hk, sizes.lq, lk, sizes.d, sizes.dv,
        options.read_scale(function, scale, sizes.d, dtype), options.read_softcap(function, softcap, dtype),
        left, right, operands.mask is not None, None if operands.bias is None else bias.shape,
        operands.slopes is not None, sinks is not None, kv_lengths is not None,
        type(operands.q_offset) is not int or type(operands.kv_lengths) is not int, sizes.kv_batch,
    )  # fmt: skip
    if out is not None or lse_out is not None or workspace is not None:
        given = {"q": q, "k": k, "v": v, "sinks": sinks, "mask": operands.mask, "bias": operands.bias}
        check_outputs(function, out, lse_out, workspace, sizes.out, sizes.lse, q.dtype, dtype, given)
    return Call(problem, operands, home, q, form, sizes.out, sizes.lse, wanted, out, lse_out, workspace)


class _Shapes(NamedTuple):
    """All that follows from the shapes of q, k and v."""

    form: str  # as in `Call`
    batch: tuple[int, ...]
    kv_batch: tuple[int, ...]
    hq: int
    hk: int
    lq: int
    lk: int
    d: int
    dv: int
    out: tuple[int, ...]  # shapes as the caller sees them
    lse: tuple[int, ...]
    scores: tuple[int, ...]


_AXES = {  # the trailing axes of q, k, v
    "bhld": (("hq", "lq", "d"), ("hk", "lk", "d"), ("hk", "lk", "dv")),
    "blhd": (("lq", "hq", "d"), ("lk", "hk", "d"), ("lk", "hk", "dv")),
    "flat": (("lq", "d"), ("lk", "d"), ("lk", "dv")),
}


@lru_cache(maxsize=1024)
def _match_shapes(function: str, q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], layout: str) -> _Shapes:
    """Match the shapes of q, k and v."""
    given = {"q": q, "k": k, "v": v}
    form = "flat" if all(len(shape) == 2 for shape in given.values()) else layout
    if form != "flat":
        _check_axes(function, given)
    dims = match(function, *((name, shape, axes) for (name, shape), axes in zip(given.items(), _AXES[form])))
    hq, hk, lq, lk = dims.get("hq", 1), dims.get("hk", 1), dims["lq"], dims["lk"]
    if (hq % hk if hk else hq) != 0:
        raise ProblemError(
            f"{function}: `k` has hk={hk} heads, which does not divide hq={hq} of `q` "
            f"(shapes {k} and {q}); each key/value head serves hq / hk query heads"
        )
    own = {name: shape[:-3] for name, shape in given.items()}
    batch = match_batch(function, **own)
    kv_batch = tuple(map(min, pad_batch(own["k"], batch), pad_batch(own["v"], batch)))
    out: tuple[int, ...] = (lq, dims["dv"])
    if form != "flat":
        out = (*batch, lq, hq, dims["dv"]) if form == "blhd" else (*batch, hq, lq, dims["dv"])
    lse: tuple[int, ...] = (lq,) if form == "flat" else (*batch, hq, lq)
    return _Shapes(form, batch, kv_batch, hq, hk, lq, lk, dims["d"], dims["dv"], out, lse, (*lse, lk))


def _check_axes(function: str, given: dict[str, tuple[int, ...]]) -> None:
    """Each array must have heads, length and dim, where not all are one head."""
    for name, shape in given.items():
        if len(shape) < 2:
            raise ProblemError(f"{function}: `{name}` must have 2 axes or more, got shape {shape}")
    for name, shape in given.items():
        if len(shape) < 3:
            other, other_shape = max(given.items(), key=lambda item: len(item[1]))
            raise ProblemError(
                f"{function}: `{name}` has {len(shape)} axes, but `{other}` has {len(other_shape)} (shapes {shape} "
                f"and {other_shape}); two axes are one head only if all arrays have two: "
                f"give `{name}` a head axis"
            )


def pad_batch(own: tuple[int, ...], batch: tuple[int, ...]) -> tuple[int, ...]:
    """The batch axes of an array before broadcasting, as many as `batch` has."""
    return (1,) * (len(batch) - len(own)) + own


def _expand(array: Array, batch: tuple[int, ...]) -> Array:
    return array if array.shape[:-3] == batch else np.broadcast_to(array, batch + array.shape[-3:])


def _add_head(array: Array | None) -> Array | None:
    return None if array is None else array[None]


_SCORES = "the scores (..., hq, lq, lk)"


def read_mask(function: str, mask: Any, target: tuple[int, ...], home: str, axes: str = _SCORES) -> Array | None:
    """A mask array as a view broadcast to the scores; a structured mask is read by `options.read_span`."""
    if mask is None or isinstance(mask, masks.Window):
        return None
    arrays.check_library(function, "mask", mask, home)
    if mask.dtype != np.bool_:
        raise TypeError(
            f"{function}: `mask` has dtype {mask.dtype}, but must be boolean (True = takes part); "
            "numbers to be added to the scores go to `bias`"
        )
    return match_broadcast(function, "mask", mask, target, axes)


def read_bias(
    function: str, bias: Any, target: tuple[int, ...], home: str, dtype: Any, axes: str = _SCORES
) -> Array | None:
    """A bias array as a view broadcast to the scores; slopes are read by `read_slopes`."""
    if bias is None or isinstance(bias, Alibi):
        return None
    check_bias_array(function, bias, home, dtype)
    return match_broadcast(function, "bias", bias, target, axes)


def check_bias_array(function: str, bias: Any, home: str, dtype: Any) -> None:
    """A bias array: of the operands' library, and of q's dtype or float32."""
    arrays.check_library(function, "bias", bias, home)
    if bias.dtype == np.bool_:
        raise TypeError(
            f"{function}: `bias` is boolean, but is added to the scores; "
            "what to hide goes to `mask` (True = takes part)"
        )
    arrays.float_or_float32(function, "bias", bias, "q", dtype)


def read_slopes(function: str, bias: Any, hq: int, dtype: str) -> Array | None:
    """The slopes of an Alibi bias, one per query head, within the range of the arithmetic."""
    if not isinstance(bias, Alibi):
        return None
    match_exact(function, "bias", bias.slopes.shape, (hq,), "the slopes' shape (hq,)")
    options.check_range(function, "bias", bias.steepest, dtype, "has a slope of")
    return bias.slopes


def read_sinks(function: str, sinks: Any, hq: int, dtype: Any) -> Array | None:
    """Sink logits, one per query head."""
    if sinks is not None:
        arrays.float_or_float32(function, "sinks", sinks, "q", dtype)
        match_exact(function, "sinks", sinks.shape, (hq,), "(hq,)")
    return sinks


def check_outputs(
    function: str, out: Any, lse_out: Any, workspace: Any, out_shape: tuple[int, ...], lse_shape: tuple[int, ...],
    dtype: Any, dtype_name: str, given: dict[str, Any],
) -> None:  # fmt: skip
    """The arrays to be written, each of its shape and overlapping neither another nor what is `given`."""
    if out is not None:
        arrays.check_output(function, "out", out, out_shape, "the output", dtype, **given)
    if lse_out is not None:
        lse_dtype = arrays.lse_dtype(dtype_name)
        arrays.check_output(function, "lse_out", lse_out, lse_shape, "the lse", lse_dtype, **given, out=out)
    if workspace is not None:
        shape = (workspace.size,)
        arrays.check_output(function, "workspace", workspace, shape, "one axis of bytes", np.uint8, **given,
                            out=out, lse_out=lse_out)  # fmt: skip


class Backward(NamedTuple):
    """A checked call of the gradient: the forward call, and what came out of it."""

    call: Call
    dout: Array  # (*batch, hq, lq, dv)
    out: Array  # (*batch, hq, lq, dv)
    lse: Array  # (*batch, hq, lq)
    dlse: Array | None  # (*batch, hq, lq)
    q: Array  # q, k, v, bias and sinks as the caller gave them: the gradients take their shapes
    k: Array
    v: Array
    bias: Array | None
    sinks: Array | None


def backward_call(
    function: str, dout: Array, q: Array, k: Array, v: Array, out: Array, lse: Array, *, dlse: Any = None,
    deterministic: Any = True, **given: Any,
) -> Backward:  # fmt: skip
    """Check and normalise `attention_backward`; `given` are attention's options."""
    options.read_flag(function, "deterministic", deterministic)
    return with_results(attention_call(function, q, k, v, **given), dout, q, k, v, out, lse, dlse, given)


def with_results(
    call: Call, dout: Array, q: Array, k: Array, v: Array, out: Array, lse: Array, dlse: Any, given: dict[str, Any],
    axes: str = "(..., hq, lq)",
) -> Backward:  # fmt: skip
    """A checked forward call and what came out of it, checked here; `axes` are those of the lse."""
    function = call.problem.function
    home = arrays.same_library(function, "q", q=q, dout=dout, out=out, lse=lse)
    arrays.check_optional(function, home, "q", dlse=dlse)
    arrays.same_float(function, "q", q=q, dout=dout, out=out)
    match_exact(function, "dout", dout.shape, call.out_shape, "the output")
    match_exact(function, "out", out.shape, call.out_shape, "the output")
    for name, array in (("lse", lse), ("dlse", dlse)):
        if array is not None:
            match_exact(function, name, array.shape, call.lse_shape, axes)
            if array.dtype != call.problem.accumulator:
                raise TypeError(
                    f"{function}: `{name}` has dtype {array.dtype}, but must be {np.dtype(call.problem.accumulator)}, "
                    f"as {function.removesuffix('_backward')} returns it"
                )
    bias, sinks = given.get("bias"), given.get("sinks")
    return Backward(
        call, call.canonical(dout), call.canonical(out), call.canonical_lse(lse),
        None if dlse is None else call.canonical_lse(dlse), q, k, v,
        None if isinstance(bias, Alibi) else bias, sinks,
    )  # fmt: skip


def weights_call(function: str, q: Array, k: Array, *, out: Any = None, **given: Any) -> tuple[Call, tuple[int, ...]]:
    """Check and normalise `attention_weights`; also the shape of the weights, (..., hq, lq, lk)."""
    home = arrays.same_library(function, "q", q=q, k=k)
    arrays.check_optional(function, home, "q", out=out)
    call = attention_call(function, q, k, k[..., :0] if k.ndim else k, **given)  # values of width 0
    shape = (*call.lse_shape, call.problem.lk)
    if out is not None:
        inputs = {"q": q, "k": k, "mask": call.operands.mask, "bias": call.operands.bias, "sinks": given.get("sinks")}
        arrays.check_output(function, "out", out, shape, _SCORES, q.dtype, **inputs)
    return call, shape
