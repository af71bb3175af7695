"""One call on packed sequences: members of different lengths, one behind another on a single axis, each on its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from cuflash._problem import arrays, options
from cuflash._problem.arrays import Array
from cuflash._problem.attention import (
    Backward,
    Call,
    Operands,
    Problem,
    check_outputs,
    heads_first,
    read_bias,
    read_mask,
    read_sinks,
    read_slopes,
    with_results,
)
from cuflash._problem.match import match
from cuflash.errors import ProblemError


class Pack(NamedTuple):
    """A checked call on n members.

    The problem has batch (n,), and lq and lk of the longest member. The operands q, k and v have no batch axis, they
    are (heads, total, dim); `mask` and `bias` are (n, hq, lq, lk), of which a member takes its first queries and keys.

    For arrays on a device `q_offset` and `kv_lengths` are None where they were not given. Starts that lie there are not
    read: lq and lk are then the totals, and `mask` and `bias` have whatever size they came with, or the totals.
    """

    call: Call
    q_starts: Array  # (n + 1,) int64 in the host's memory, or integers on the device
    kv_starts: Array  # likewise


class PackBackward(NamedTuple):
    """A checked call of the gradient."""

    pack: Pack
    given: Backward


class Member(NamedTuple):
    """One sequence of a pack."""

    queries: slice  # where they lie on the packed axis
    keys: slice  # the real ones alone, so that nothing below needs their length
    q_offset: int


_AXES = {"q": ("total_q", "hq", "d"), "k": ("total_k", "hk", "d"), "v": ("total_k", "hk", "dv")}
_MEMBERS = "the members (n,)"
_SCORES = "the scores (n, hq, longest lq, longest lk)"


def varlen_call(
    function: str, q: Array, k: Array, v: Array, q_starts: Any, kv_starts: Any, *, causal: Any = False,
    window: Any = None, mask: Any = None, bias: Any = None, scale: Any = None, softcap: Any = None, sinks: Any = None,
    q_offset: Any = None, kv_lengths: Any = None, precision: Any = None, out: Any = None, lse_out: Any = None,
    workspace: Any = None, return_lse: Any = False,
) -> Pack:  # fmt: skip
    """Check and normalise `attention_varlen`."""
    home = arrays.same_library(function, "q", q=q, k=k, v=v)
    arrays.check_optional(function, home, "q", sinks=sinks, out=out, lse_out=lse_out, workspace=workspace)
    dtype = arrays.same_float(function, "q", q=q, k=k, v=v)
    dims = _match_axes(function, {"q": q.shape, "k": k.shape, "v": v.shape})
    hq, d = dims["hq"], dims["d"]
    q_starts = _read_starts(function, "q_starts", q_starts, home, "q", dims["total_q"])
    kv_starts = _read_starts(function, "kv_starts", kv_starts, home, "k", dims["total_k"])
    members = q_starts.size - 1
    if q_starts.size != kv_starts.size:
        raise ProblemError(
            f"{function}: `kv_starts` has {kv_starts.size - 1} members, but `q_starts` has {members} "
            f"(shapes {kv_starts.shape} and {q_starts.shape}); a member without keys starts where it ends"
        )
    options.read_precision(function, precision)
    wanted = options.read_flag(function, "return_lse", return_lse)
    left, right = options.read_span(function, causal, window, mask)
    lengths = _read_lengths(home, q_starts, kv_starts)
    scores = (members, hq, *((dims["total_q"], dims["total_k"]) if lengths is None else lengths.longest))
    offsets, keys = (lengths.lk - lengths.lq, lengths.lk) if lengths is not None and home == "numpy" else (None, None)
    operands = Operands(
        q=heads_first(q, "blhd"), k=heads_first(k, "blhd"), v=heads_first(v, "blhd"),
        q_offset=offsets if q_offset is None
        else options.read_integers(function, "q_offset", q_offset, (members,), home, axes=_MEMBERS),
        kv_lengths=keys if kv_lengths is None else _read_kv_lengths(function, kv_lengths, members, lengths, home),
        mask=read_mask(function, mask, _reach(mask, scores, lengths), home, _SCORES),
        bias=read_bias(function, bias, _reach(bias, scores, lengths), home, q.dtype, _SCORES),
        slopes=read_slopes(function, bias, hq, dtype), sinks=read_sinks(function, sinks, hq, q.dtype),
    )  # fmt: skip
    problem = Problem(
        function, dtype, (members,), hq, dims["hk"], *scores[2:], d, dims["dv"],
        options.read_scale(function, scale, d, dtype), options.read_softcap(function, softcap, dtype), left, right,
        operands.mask is not None, None if operands.bias is None else bias.shape, operands.slopes is not None,
        sinks is not None, kv_lengths is not None, True, (members,),
    )  # fmt: skip
    out_shape, lse_shape = (dims["total_q"], hq, dims["dv"]), (hq, dims["total_q"])
    given = {"q": q, "k": k, "v": v, "sinks": sinks, "mask": operands.mask, "bias": operands.bias}
    check_outputs(function, out, lse_out, workspace, out_shape, lse_shape, q.dtype, dtype, given)
    call = Call(problem, operands, home, q, "blhd", out_shape, lse_shape, wanted, out, lse_out, workspace)
    return Pack(call, q_starts, kv_starts)


def varlen_backward_call(
    function: str, dout: Array, q: Array, k: Array, v: Array, out: Array, lse: Array, q_starts: Any, kv_starts: Any, *,
    dlse: Any = None, deterministic: Any = True, **given: Any,
) -> PackBackward:  # fmt: skip
    """Check and normalise `attention_varlen_backward`; `given` are the forward call's options."""
    options.read_flag(function, "deterministic", deterministic)
    pack = varlen_call(function, q, k, v, q_starts, kv_starts, **given)
    backward = with_results(pack.call, dout, q, k, v, out, lse, dlse, given, "(hq, total_q)")
    return PackBackward(pack, backward)


def _match_axes(function: str, shapes: dict[str, tuple[int, ...]]) -> Mapping[str, int]:
    """Sizes of the named axes of q, k and v."""
    for name, shape in shapes.items():
        if len(shape) != 3:
            raise ProblemError(
                f"{function}: `{name}` must have 3 axes ({', '.join(_AXES[name])}), got {len(shape)}: shape {shape}; "
                f"give one head an axis with {name}[:, None], and reshape (b, l, h, d) to (b * l, h, d)"
            )
    dims = match(function, *((name, shape, _AXES[name]) for name, shape in shapes.items()))
    hq, hk = dims["hq"], dims["hk"]
    if (hq % hk if hk else hq) != 0:
        raise ProblemError(
            f"{function}: `k` has hk={hk} heads, which does not divide hq={hq} of `q` (shapes {shapes['k']} and "
            f"{shapes['q']}); packed arrays have the length first: (total, heads, dim)"
        )
    return dims


def _read_starts(function: str, name: str, starts: Any, home: str, of: str, total: int) -> Array:
    """Where members start and the last one ends: integers from 0 to `total`, the length of the array named `of`."""
    if isinstance(starts, (list, tuple)):
        starts = options.list_to_array(function, name, starts)
    else:
        arrays.check_library(function, name, starts, home)
    if starts.dtype.kind not in "iu":
        raise TypeError(options.not_integers(function, name, starts.dtype))
    if starts.ndim != 1 or not starts.size:
        raise ProblemError(
            f"{function}: `{name}` has shape {starts.shape}, but must be (n + 1,): where each of n members starts, and "
            "where the last one ends"
        )
    if home != "numpy" and type(starts) is not np.ndarray:
        if starts.size == 1 and total:
            raise ProblemError(f"{function}: `{name}` has no member, but `{of}` has total_{of}={total}")
        return starts
    starts = starts.astype(np.int64)
    if starts[0] != 0:
        raise ProblemError(
            f"{function}: `{name}` begins with {starts[0]}, but must begin with 0; "
            "lengths become starts by numpy.cumsum([0, *lengths])"
        )
    falls = np.flatnonzero(starts[1:] < starts[:-1])
    if falls.size:
        at = int(falls[0])
        raise ProblemError(f"{function}: `{name}` falls from {starts[at]} to {starts[at + 1]} at member {at}")
    if starts[-1] != total:
        raise ProblemError(
            f"{function}: `{name}` ends with {starts[-1]}, but `{of}` has total_{of}={total}; "
            "the last entry is where the last member ends"
        )
    return starts


class _Lengths(NamedTuple):
    """Of each member."""

    lq: Array
    lk: Array

    @property
    def longest(self) -> tuple[int, int]:
        return int(self.lq.max(initial=0)), int(self.lk.max(initial=0))


def _read_lengths(home: str, q_starts: Array, kv_starts: Array) -> _Lengths | None:
    """What the starts say, unless some lie on a device."""
    if home != "numpy" and not type(q_starts) is type(kv_starts) is np.ndarray:
        return None
    return _Lengths(np.diff(q_starts), np.diff(kv_starts))


def _reach(array: Any, scores: tuple[int, ...], lengths: _Lengths | None) -> tuple[int, ...]:
    """What a mask or bias is broadcast to: the scores, or, where no length is known, scores as large as it is."""
    if lengths is not None:
        return scores
    own = (1, 1, *getattr(array, "shape", ()))[-2:]
    return (*scores[:2], *(total if size == 1 else size for size, total in zip(own, scores[2:])))


def _read_kv_lengths(function: str, kv_lengths: Any, members: int, lengths: _Lengths | None, home: str) -> int | Array:
    """How many keys of each member are real; none has more than it has, as far as the host knows."""
    read = options.read_integers(function, "kv_lengths", kv_lengths, (members,), home, 0, axes=_MEMBERS)
    if lengths is None or (home != "numpy" and type(read) not in (int, np.ndarray)):
        return read
    each, lk = np.broadcast_to(read, members), lengths.lk
    wrong = np.flatnonzero(each > lk)
    if wrong.size:
        m = int(wrong[0])
        raise ProblemError(f"{function}: `kv_lengths` is {each[m]} for member {m}, which has lk={lk[m]}")
    return each if home == "numpy" else read


def list_members(pack: Pack) -> list[Member]:
    """Every member of a pack that lies in the host's memory, in order; some may have no query or no key."""
    q_starts, kv_starts = pack.q_starts.tolist(), pack.kv_starts.tolist()
    numbers = pack.call.operands.q_offset, pack.call.operands.kv_lengths
    offsets, lengths = (np.broadcast_to(x, pack.call.problem.batch).tolist() for x in numbers)
    return [
        Member(slice(start, stop), slice(first, first + length), offset)
        for start, stop, first, length, offset in zip(q_starts, q_starts[1:], kv_starts, lengths, offsets)
    ]


def member_problem(problem: Problem, lq: int, lk: int) -> Problem:
    """The problem of a member of these lengths, which it shares with all others of the same lengths."""
    bias = problem.bias
    if bias is not None:
        heads, rows, keys = (1, 1, 1, *bias)[-3:]
        bias = (heads, 1 if rows == 1 else lq, 1 if keys == 1 else lk)
    return problem._replace(batch=(), lq=lq, lk=lk, bias=bias, kv_lengths=False, ragged=False, kv_batch=())
