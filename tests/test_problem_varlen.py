"""Wrong calls on packed sequences: each says what is wrong and the way out."""

import re

import numpy as np
import pytest

import cuflash
from cuflash import Alibi, ProblemError, UnsupportedError

F32, F64 = np.float32, np.float64
STARTS = [0, 2, 2, 5], [0, 3, 4, 7]  # members of 2, 0, 3 queries and 3, 1, 3 keys


def arr(*shape, dtype=F64):
    return np.zeros(shape, dtype)


class ndarray:
    """Stands in for cupy.ndarray: an array type of that name and module, no NumPy array."""

    __module__ = "cupy"
    shape, dtype, ndim = (5, 4, 8), np.dtype(F64), 3


CUPY = ndarray()
Q, K, V, LSE = arr(5, 4, 8), arr(7, 2, 8), arr(7, 2, 6), arr(4, 5)
OUT = arr(5, 4, 6)


def varlen(q=Q, k=K, v=V, q_starts=STARTS[0], kv_starts=STARTS[1], **options):
    return lambda: cuflash.attention_varlen(q, k, v, q_starts, kv_starts, **options)


def backward(dout=OUT, out=OUT, lse=LSE, q_starts=STARTS[0], **options):
    return lambda: cuflash.attention_varlen_backward(dout, Q, K, V, out, lse, q_starts, STARTS[1], **options)


TYPES = {
    "attention_varlen: `q` must be a numpy.ndarray or cupy.ndarray, got list; use numpy.asarray": varlen(q=[[[1.0]]]),
    "attention_varlen: `k` has dtype float32, but `q` has float64; nothing is promoted silently": varlen(
        k=K.astype(F32)
    ),
    "attention_varlen: `q` is a numpy array, but `v` is a cupy array": varlen(v=CUPY),
    "attention_varlen: `q` is a numpy array, but `q_starts` is a cupy array": varlen(q_starts=CUPY),
    "attention_varlen: `q` is a numpy array, but `out` is a cupy array": varlen(out=CUPY),
    "attention_varlen: `kv_starts` must be a numpy.ndarray or cupy.ndarray, got NoneType": varlen(kv_starts=None),
    "attention_varlen: `q_starts` must be a numpy.ndarray or cupy.ndarray, got int": varlen(q_starts=5),
    "attention_varlen: `q_starts` must hold integers of at most 64 bits, got dtype float64": varlen(
        q_starts=[0.0, 2, 2, 5]
    ),
    "attention_varlen: `kv_starts` must hold integers of at most 64 bits, got dtype bool": varlen(
        kv_starts=arr(4, dtype=bool)
    ),
    "attention_varlen: `kv_starts` must hold integers of at most 64 bits, got dtype object": varlen(
        kv_starts=[0, 3, 4, 10**30]
    ),
    "attention_varlen: `mask` has dtype float64, but must be boolean (True = takes part)": varlen(mask=arr(3, 3)),
    "attention_varlen: `bias` has dtype float16, but must be float64 as `q` is, or float32": varlen(
        bias=arr(3, 3, dtype="f2")
    ),
    "attention_varlen: `sinks` has dtype int64, but must be float64 as `q` is, or float32": varlen(
        sinks=arr(4, dtype=int)
    ),
    "attention_varlen: `causal` must be True or False, got 1": varlen(causal=1),
    "attention_varlen: `return_lse` must be True or False, got None": varlen(return_lse=None),
    "attention_varlen: `kv_lengths` must be an integer or an array of integers, got 2.5": varlen(kv_lengths=2.5),
    "attention_varlen: `q_offset` must hold integers of at most 64 bits, got dtype float64": varlen(q_offset=arr(3)),
    "attention_varlen: `out` has dtype float32, but must be float64": varlen(out=OUT.astype(F32)),
    "attention_varlen: `workspace` has dtype float64, but must be uint8": varlen(workspace=arr(8)),
    "attention_varlen_backward: `dout` has dtype float32, but `q` has float64": backward(dout=OUT.astype(F32)),
    "attention_varlen_backward: `lse` has dtype float32, but must be float64, as attention_varlen returns it": backward(
        lse=LSE.astype(F32)
    ),
    "attention_varlen_backward: `deterministic` must be True or False, got 0": backward(deterministic=0),
    "attention_varlen_backward: `lse` must be a numpy.ndarray or cupy.ndarray, got NoneType": backward(lse=None),
}

VALUES = {
    "attention_varlen: `q_starts` is a list of lists of different lengths": varlen(q_starts=[0, [1, 2]]),
    "attention_varlen: `kv_lengths` is a list of lists of different lengths": varlen(kv_lengths=[[1], [1, 2]]),
    "attention_varlen: `q` must have 3 axes (total_q, hq, d), got 2: shape (5, 8); give one head an axis with q[:, None]": varlen(q=arr(5, 8)),
    "attention_varlen: `v` must have 3 axes (total_k, hk, dv), got 4: shape (1, 7, 2, 6); give one head an axis with v[:, None], and reshape (b, l, h, d) to (b * l, h, d)": varlen(v=arr(1, 7, 2, 6)),
    "attention_varlen: `k` has d=9, but `q` has d=8 (shapes (7, 2, 9) and (5, 4, 8))": varlen(k=arr(7, 2, 9)),
    "attention_varlen: `v` has total_k=6, but `k` has total_k=7": varlen(v=arr(6, 2, 6)),
    "attention_varlen: `v` has hk=1, but `k` has hk=2": varlen(v=arr(7, 1, 6)),
    "attention_varlen: `k` has hk=3 heads, which does not divide hq=4 of `q` (shapes (7, 3, 8) and (5, 4, 8)); packed arrays have the length first: (total, heads, dim)": varlen(k=arr(7, 3, 8), v=arr(7, 3, 6)),
    "attention_varlen: `k` has hk=0 heads, which does not divide hq=4": varlen(k=arr(7, 0, 8), v=arr(7, 0, 6)),
    "attention_varlen: `q_starts` has shape (2, 2), but must be (n + 1,): where each of n members starts, and where": varlen(q_starts=arr(2, 2, dtype=int)),
    "attention_varlen: `kv_starts` has shape (0,), but must be (n + 1,)": varlen(kv_starts=[]),
    "attention_varlen: `kv_starts` has shape (), but must be (n + 1,)": varlen(kv_starts=np.array(7)),
    "attention_varlen: `q_starts` begins with 2, but must begin with 0; lengths become starts by numpy.cumsum([0, *lengths])": varlen(q_starts=[2, 0, 3]),
    "attention_varlen: `q_starts` begins with -1, but must begin with 0": varlen(q_starts=[-1, 2, 2, 5]),
    "attention_varlen: `kv_starts` falls from 4 to 3 at member 1": varlen(kv_starts=[0, 4, 3, 7]),
    "attention_varlen: `q_starts` falls from 9 to 5 at member 2": varlen(q_starts=np.array([0, 2, 9, 5], np.uint8)),
    "attention_varlen: `q_starts` ends with 4, but `q` has total_q=5; the last entry is where the last member ends": varlen(q_starts=[0, 2, 2, 4]),
    "attention_varlen: `kv_starts` ends with 8, but `k` has total_k=7": varlen(kv_starts=[0, 3, 4, 8]),
    "attention_varlen: `kv_starts` ends with 0, but `k` has total_k=7": varlen(kv_starts=[0]),
    "attention_varlen: `kv_starts` has 2 members, but `q_starts` has 3 (shapes (3,) and (4,)); a member without keys starts where it ends": varlen(kv_starts=[0, 3, 7]),
    "attention_varlen: `kv_lengths` is 4 for member 0, which has lk=3": varlen(kv_lengths=[4, 1, 3]),
    "attention_varlen: `kv_lengths` is 2 for member 1, which has lk=1": varlen(kv_lengths=2),
    "attention_varlen: `kv_lengths` is -1 at (2,), but must be 0 or more": varlen(kv_lengths=[1, 1, -1]),
    "attention_varlen: `kv_lengths` has shape (2,), which does not broadcast to the members (n,) = (3,)": varlen(kv_lengths=[1, 1]),
    "attention_varlen: `q_offset` has shape (3, 1), which does not broadcast to the members (n,) = (3,)": varlen(q_offset=arr(3, 1, dtype=int)),
    "attention_varlen: `mask` has shape (5, 7), which does not broadcast to the scores (n, hq, longest lq, longest lk) = (3, 4, 3, 3)": varlen(mask=arr(5, 7, dtype=bool)),
    "attention_varlen: `bias` has shape (2, 1, 1, 3), which does not broadcast to the scores (n, hq, longest lq, longest lk) = (3, 4, 3, 3)": varlen(bias=arr(2, 1, 1, 3)),
    "attention_varlen: `bias` has shape (2,), but the slopes' shape (hq,) is (4,)": varlen(bias=Alibi([1, 2])),
    "attention_varlen: `sinks` has shape (2,), but (hq,) is (4,)": varlen(sinks=arr(2)),
    "attention_varlen: `softcap` is 0.0, but must be positive": varlen(softcap=0.0),
    "attention_varlen: `window` is -2, but a side reaches 0 or more": varlen(window=-2),
    "attention_varlen: `out` has shape (5, 4, 8), but the output is (5, 4, 6)": varlen(out=arr(5, 4, 8)),
    "attention_varlen: `lse_out` has shape (5, 4), but the lse is (4, 5)": varlen(lse_out=arr(5, 4)),
    "attention_varlen: `out` overlaps `q` in memory; pass an array of its own": lambda: cuflash.attention_varlen(Q, Q, Q[..., :4], [0, 5], [0, 5], out=Q[..., 2:6]),
    "attention_varlen: `lse_out` overlaps `out` in memory": lambda: cuflash.attention_varlen(arr(2, 2, 1), arr(2, 2, 1), arr(2, 2, 1), [0, 2], [0, 2], out=(both := arr(2, 2, 1)), lse_out=both[..., 0]),
    "attention_varlen_backward: `dout` has shape (5, 4, 8), but the output is (5, 4, 6)": backward(dout=Q),
    "attention_varlen_backward: `out` has shape (4, 5, 6), but the output is (5, 4, 6)": backward(out=arr(4, 5, 6)),
    "attention_varlen_backward: `lse` has shape (5, 4), but (hq, total_q) is (4, 5)": backward(lse=arr(5, 4)),
    "attention_varlen_backward: `dlse` has shape (1, 5), but (hq, total_q) is (4, 5)": backward(dlse=arr(1, 5)),
    "attention_varlen_backward: `q_starts` ends with 3, but `q` has total_q=5": backward(q_starts=[0, 2, 2, 3]),
}  # fmt: skip

UNSUPPORTED = {
    'attention_varlen: `precision`="tf32" has no kernel; None computes in IEEE float32': varlen(precision="tf32"),
}

CASES = [
    pytest.param(error, message, call, id=message[:90])
    for error, table in ((TypeError, TYPES), (ProblemError, VALUES), (UnsupportedError, UNSUPPORTED))
    for message, call in table.items()
]


@pytest.mark.parametrize(("error", "message", "call"), CASES)
def test_a_wrong_call_says_so(error, message, call):
    with pytest.raises(error, match=re.escape(message)) as caught:
        call()
    assert type(caught.value) is error


def test_options_are_keyword_only_and_there_is_no_layout():
    with pytest.raises(TypeError, match="positional"):
        cuflash.attention_varlen(Q, K, V, *STARTS, True)
    with pytest.raises(TypeError, match="positional-only"):
        cuflash.attention_varlen(Q, K, V, q_starts=STARTS[0], kv_starts=STARTS[1])
    with pytest.raises(TypeError, match="unexpected keyword argument 'layout'"):
        cuflash.attention_varlen(Q, K, V, *STARTS, layout="blhd")


def test_without_what_is_wrong_the_calls_are_right():
    assert varlen()().shape == OUT.shape
    assert backward()().dv.shape == V.shape
