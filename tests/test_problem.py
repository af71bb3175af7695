"""Every wrong call is an error that says what is wrong and the way out, and writes nothing."""

import re
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import cuflash
from cuflash import Alibi, CacheFullError, KVCache, ProblemError, UnsupportedError, masks

F32, F64 = np.float32, np.float64


def arr(*shape, dtype=F64):
    return np.zeros(shape, dtype)


class ndarray:
    """Stands in for cupy.ndarray: an array type of that name and module, no NumPy array."""

    __module__ = "cupy"
    shape, dtype, ndim, strides = (2, 8, 5, 64), np.dtype(F64), 4, (20480, 2560, 512, 8)
    data = SimpleNamespace(ptr=0, device_id=0)


CUPY = ndarray()
Q, K, V = arr(2, 8, 5, 64), arr(2, 2, 7, 64), arr(2, 2, 7, 64)
LSE = arr(2, 8, 5)


def attention(q=Q, k=K, v=V, **options):
    return lambda: cuflash.attention(q, k, v, **options)


def backward(dout=Q, out=Q, lse=LSE, **options):
    return lambda: cuflash.attention_backward(dout, Q, K, V, out, lse, **options)


def weights(**options):
    return lambda: cuflash.attention_weights(Q, K, **options)


def cache(lengths=(3, 2), **options):
    made = KVCache(2, 8, 2, 64, dtype=F64, **options)
    made.append(arr(2, 2, 3, 64), arr(2, 2, 3, 64), lengths=list(lengths))
    return made


def decode(q=None, lengths=None, replaced=None, **options):
    def call():
        given = cache()
        if lengths is not None:
            given.lengths[:] = lengths
        if replaced is not None:
            given.lengths = replaced
        return cuflash.decode(arr(2, 8, 64) if q is None else q, given, **options)

    return call


def append(k=None, v=None, **options):
    k = arr(2, 2, 1, 64) if k is None else k
    return lambda: cache().append(k, k if v is None else v, **options)


def read_only(array):
    view = array.view()
    view.flags.writeable = False
    return view


ARRAYS = {
    "attention: `q` must be a numpy.ndarray or cupy.ndarray, got list; use numpy.asarray": attention(q=[[1.0]]),
    "attention: `k` must be a numpy.ndarray or cupy.ndarray, got tuple; use numpy.asarray": attention(k=((1.0,),)),
    "attention: `v` must be a numpy.ndarray or cupy.ndarray, got str; convert it to one first": attention(v="v"),
    "attention: `q` must be a numpy.ndarray or cupy.ndarray, got NoneType; convert": attention(q=None),
    "attention: `v` must be a numpy.ndarray or cupy.ndarray, got float; use numpy.asarray": attention(v=1.0),
    "attention: `q` must be a numpy.ndarray or cupy.ndarray, got decimal.Decimal": attention(
        q=__import__("decimal").Decimal(1)
    ),
    "attention: `v` must be a numpy.ndarray or cupy.ndarray, got NoneType": attention(v=None),
    "attention_weights: `k` must be a numpy.ndarray or cupy.ndarray, got NoneType": lambda: cuflash.attention_weights(
        Q, None
    ),
    "attention_backward: `dout` must be a numpy.ndarray or cupy.ndarray, got NoneType": backward(dout=None),
    "attention_backward: `lse` must be a numpy.ndarray or cupy.ndarray, got NoneType": backward(lse=None),
    "attention: `q` is a numpy.ma.MaskedArray, whose hidden entries would be read; pass its .data": attention(
        q=np.ma.array(Q)
    ),
    "attention: `k` is a numpy.matrix; pass numpy.asarray(k)": attention(k=arr(7, 64).view(np.matrix)),
    "attention: `q` is a numpy array, but `k` is a cupy array; nothing is moved": attention(k=CUPY),
    "attention: `q` is a cupy array, but `k` is a numpy array": attention(q=CUPY),
    "attention: `q` is a numpy array, but `out` is a cupy array": attention(out=CUPY),
    "attention: `q` is a numpy array, but `mask` is a cupy array": attention(mask=CUPY),
    "attention: `q` is a numpy array, but `bias` is a cupy array": attention(bias=CUPY),
    "attention: `q` is a numpy array, but `kv_lengths` is a cupy array": attention(kv_lengths=CUPY),
    "attention: `q` has dtype int64, but must be float16, bfloat16, float32 or float64": attention(
        q=arr(2, 8, 5, 64, dtype=int)
    ),
    "attention: `q` has dtype complex128, but must be": attention(q=arr(2, 8, 5, 64, dtype=complex)),
    "attention: `q` has dtype bool, but must be": attention(q=arr(2, 8, 5, 64, dtype=bool)),
    "attention: `q` has dtype object, but must be": attention(q=arr(2, 8, 5, 64, dtype=object)),
    "attention: `k` has dtype float32, but `q` has float64; nothing is promoted silently": attention(k=K.astype(F32)),
    "attention: `v` has dtype float16, but `q` has float64": attention(v=V.astype(np.float16)),
    "attention: `v` has dtype int32, but must be float16": attention(v=V.astype(np.int32)),
    "attention: `q` has dtype >f8 in foreign byte order; convert it with q.astype": attention(q=Q.astype(">f8")),
    "attention: `k` has dtype >f4 in foreign byte order": attention(k=K.astype(">f4")),
    "rotary: `x` must be a numpy.ndarray or cupy.ndarray, got list": lambda: cuflash.rotary([[1.0, 2.0]], 0),
    "rotary: `x` has dtype int64, but must be": lambda: cuflash.rotary(arr(3, 4, dtype=int), 0),
    "rotary: `positions` must hold real numbers, got dtype <U1": lambda: cuflash.rotary(arr(3, 4), "a"),
    "rotary: `freqs` must hold real numbers, got dtype complex128": lambda: cuflash.rotary(
        arr(3, 4), 0, freqs=[1j, 2j]
    ),
    "decode: `cache` must be a KVCache or PagedKVCache, got ndarray": lambda: cuflash.decode(arr(2, 8, 64), K),
    "decode: `q` has dtype float32, but `cache` has float64": decode(q=arr(2, 8, 64, dtype=F32)),
    "KVCache.append: `k` has dtype float32, but `cache` has float64": append(k=arr(2, 2, 1, 64, dtype=F32)),
    "KVCache.append: `k` must be a numpy.ndarray or cupy.ndarray, got list": append(k=[1.0]),
    "KVCache: `dtype` is missing; give it, or an array of that dtype as `like`": lambda: KVCache(1, 1, 1, 1),
    "KVCache: `dtype` is int16, but must be float16, bfloat16, float32 or float64, or int8 or float8_e4m3fn": lambda: (
        KVCache(1, 1, 1, 1, dtype=np.int16)
    ),
    "KVCache: `like` must be a numpy.ndarray or cupy.ndarray, got list": lambda: KVCache(1, 1, 1, 1, like=[1.0]),
    "KVCache: `xp` must be an array library such as numpy, got 'numpy'": lambda: KVCache(
        1, 1, 1, 1, dtype=F32, xp="numpy"
    ),
    "merge: `outs` must be a numpy.ndarray or cupy.ndarray, got int": lambda: cuflash.merge(1, 2),
    "merge: `outs[1]` must be a numpy.ndarray or cupy.ndarray, got list": lambda: cuflash.merge([V, [1]], [LSE, LSE]),
    "merge: part 1 has dtypes float32 and float64, but must have float64 and float64": lambda: cuflash.merge(
        [Q, Q.astype(F32)], [LSE, LSE]
    ),
    "merge: part 0 has dtypes float16 and float64, but must have float16 and float32": lambda: cuflash.merge(
        [Q.astype(np.float16)], [LSE]
    ),
    "Alibi: `slopes` must hold real numbers, got dtype complex128": lambda: Alibi([1j]),
}

OPTIONS = {
    "attention: `scale` must be a real number of Python or NumPy, got '1'": attention(scale="1"),
    "attention: `scale` must be a real number of Python or NumPy, got True": attention(scale=True),
    "attention: `scale` must be a real number of Python or NumPy, got array([1.])": attention(scale=np.ones(1)),
    "attention: `softcap` must be a real number of Python or NumPy, got 1j": attention(softcap=1j),
    "attention: `causal` must be True or False, got 16": attention(causal=16),
    "attention: `return_lse` must be True or False, got 1": attention(return_lse=1),
    "attention: `window` must be an integer, got 1.5": attention(window=1.5),
    "attention: `window` must be an integer, got True": attention(window=True),
    "attention: `window` is Window(left=1, right=0), a mask: pass it as `mask`": attention(window=masks.Window(1, 0)),
    "attention: `mask` has dtype float64, but must be boolean (True = takes part); numbers to be added to the scores go to `bias`": attention(
        mask=arr(5, 7)
    ),
    "attention: `mask` has dtype int64, but must be boolean": attention(mask=arr(5, 7, dtype=int)),
    "attention: `mask` is a numpy.ma.MaskedArray": attention(mask=np.ma.array(arr(5, 7, dtype=bool))),
    "attention: `mask` must be a numpy.ndarray or cupy.ndarray, got str": attention(mask="causal"),
    "attention: `bias` is boolean, but is added to the scores; what to hide goes to `mask`": attention(
        bias=arr(5, 7, dtype=bool)
    ),
    "attention: `bias` has dtype float16, but must be float64 as `q` is, or float32": attention(
        bias=arr(5, 7, dtype=np.float16)
    ),
    "attention: `sinks` has dtype int64, but must be float64 as `q` is, or float32": attention(sinks=arr(8, dtype=int)),
    "attention: `kv_lengths` must hold integers of at most 64 bits, got dtype float64": attention(kv_lengths=arr(2)),
    "attention: `kv_lengths` must be an integer or an array of integers, got 3.0": attention(kv_lengths=3.0),
    "attention: `q_offset` must be an integer or an array of integers, got True": attention(q_offset=True),
    "attention: `q_offset` must hold integers of at most 64 bits, got dtype bool": attention(
        q_offset=arr(2, dtype=bool)
    ),
    "attention: `out` has dtype float32, but must be float64": attention(out=arr(2, 8, 5, 64, dtype=F32)),
    "attention: `lse_out` has dtype float32, but must be float64": attention(lse_out=arr(2, 8, 5, dtype=F32)),
    "attention: `workspace` has dtype float64, but must be uint8": attention(workspace=arr(8)),
    "attention_backward: `deterministic` must be True or False, got 'yes'": backward(deterministic="yes"),
    "attention_backward: `lse` has dtype float32, but must be float64, as attention returns it": backward(
        lse=LSE.astype(F32)
    ),
    "attention_backward: `dlse` has dtype float32, but must be float64": backward(dlse=LSE.astype(F32)),
    "attention_backward: `dout` has dtype float32, but `q` has float64": backward(dout=Q.astype(F32)),
    "attention_vjp: `return_lse` must be True or False, got 2": lambda: cuflash.attention_vjp(Q, K, V, return_lse=2),
    "decode: `cache.lengths` must hold integers, got dtype float64": decode(replaced=np.zeros(2)),
    "decode: `cache.lengths` must be a numpy.ndarray or cupy.ndarray, got list": decode(replaced=[1, 2]),
    "decode: `splits` must be an integer, got 2.0": decode(splits=2.0),
    "decode: `validate` must be True or False, got 1": decode(validate=1),
    "decode: `causal` must be True or False, got 'no'": decode(causal="no"),
    "decode: `seqs` must hold integers, got dtype float64": decode(seqs=[0.0, 1.0]),
    "KVCache: `batch` must be an integer, got 1.0": lambda: KVCache(1.0, 1, 1, 1, dtype=F32),
    "KVCache: `grow` must be True or False, got 1": lambda: KVCache(1, 1, 1, 1, dtype=F32, grow=1),
    "KVCache.truncate: `seq` must be a row, rows, or None for all, got [0.5]": lambda: cache().truncate([0.5], 0),
    "KVCache.truncate: `seq` must be an integer, got 'all'": lambda: cache().truncate("all", 0),
    "rotary: `dim` must be an integer, got 2.0": lambda: cuflash.rotary(arr(3, 4), 0, dim=2.0),
    "rotary: `interleaved` must be True or False, got 0": lambda: cuflash.rotary(arr(3, 4), 0, interleaved=0),
    "rotary: `base` must be a real number of Python or NumPy, got None": lambda: cuflash.rotary(
        arr(3, 4), 0, base=None
    ),
    "merge: `axis` must be an integer, got 'parts'": lambda: cuflash.merge(Q, LSE, axis="parts"),
    "Window: `left` must be an integer or None, got 1.5": lambda: masks.Window(1.5, 0),
    "Window: `right` must be an integer or None, got False": lambda: masks.Window(1, False),
}

VALUES = {
    "attention: `v` has lk=6, but `k` has lk=7 (shapes (2, 2, 6, 64) and (2, 2, 7, 64))": attention(v=arr(2, 2, 6, 64)),
    "attention: `k` has d=32, but `q` has d=64 (shapes (2, 2, 7, 32) and (2, 8, 5, 64))": attention(k=arr(2, 2, 7, 32)),
    "attention: `v` has hk=4, but `k` has hk=2": attention(v=arr(2, 4, 7, 64)),
    "attention: `k` has hk=3 heads, which does not divide hq=8 of `q`": attention(
        k=arr(2, 3, 7, 64), v=arr(2, 3, 7, 64)
    ),
    "attention: `k` has hk=8 heads, which does not divide hq=1 of `q`": attention(
        q=arr(1, 5, 64), k=arr(8, 7, 64), v=arr(8, 7, 64)
    ),
    "attention: the leading axes do not broadcast: (2,) of `q`, (3,) of `k`, (3,) of `v`": attention(
        k=arr(3, 2, 7, 64), v=arr(3, 2, 7, 64)
    ),
    "attention: `k` has 2 axes, but `q` has 4 (shapes (7, 64) and (2, 8, 5, 64)); two axes are one head only if all": attention(
        k=arr(7, 64)
    ),
    "attention: `q` must have 2 axes or more, got shape (64,)": attention(q=arr(64)),
    "attention: `k` must have 2 axes or more, got shape ()": attention(k=np.array(1.0)),
    "attention_weights: `q` must have 2 axes": lambda: cuflash.attention_weights(arr(6), arr(6)),
    'attention: `layout` is \'lbhd\', but must be "bhld" or "blhd"': attention(layout="lbhd"),
    "attention: `layout` is None, but must be": attention(layout=None),
    "attention: `scale` is nan, but must be finite": attention(scale=float("nan")),
    "attention: `scale` is inf, but must be finite": attention(scale=np.inf),
    "attention: `softcap` is 0.0, but must be positive; None caps nothing": attention(softcap=0.0),
    "attention: `softcap` is -1.0, but must be positive": attention(softcap=-1),
    "attention: `scale` is 1e+39, beyond the numbers that float32 is computed in": lambda: cuflash.attention(
        *[arr(3, 4, dtype=F32)] * 3, scale=1e39
    ),
    "attention: `bias` has a slope of 1e+39, beyond the numbers that float32 is computed in": lambda: cuflash.attention(
        *(x.astype(F32) for x in (Q, K, V)), bias=Alibi([1.0] * 7 + [-1e39])
    ),
    "attention: `softcap` is 1e-46, beyond the numbers that float32 is computed in": lambda: cuflash.attention(
        *[arr(3, 4, dtype=F32)] * 3, softcap=1e-46
    ),
    "attention: `softcap` is inf, but must be finite": attention(softcap=np.inf),
    "attention: `window` is -1, but a side reaches 0 or more positions; None is unlimited": attention(window=-1),
    "attention: `window` is (3, -2), but a side reaches": attention(window=(3, -2)),
    "attention: `window` is (1, 2, 3), but must be None, an integer or (left, right)": attention(window=(1, 2, 3)),
    "attention: `mask` has shape (7, 5), which does not broadcast to the scores (..., hq, lq, lk) = (2, 8, 5, 7)": attention(
        mask=arr(7, 5, dtype=bool)
    ),
    "attention: `mask` has shape (1, 2, 8, 5, 7), which does not broadcast": attention(
        mask=arr(1, 2, 8, 5, 7, dtype=bool)
    ),
    "attention: `bias` has shape (8,), which does not broadcast to the scores": attention(bias=arr(8)),
    "attention: `bias` has shape (3,), but the slopes' shape (hq,) is (8,)": attention(bias=Alibi([1, 2, 3])),
    "attention: `sinks` has shape (2,), but (hq,) is (8,)": attention(sinks=arr(2)),
    "attention: `kv_lengths` is 8, but must lie in 0..7": attention(kv_lengths=8),
    "attention: `kv_lengths` is -1 at (1,), but must lie in 0..7": attention(kv_lengths=np.array([7, -1])),
    "attention: `kv_lengths` has shape (3,), which does not broadcast to the batch axes = (2,)": attention(
        kv_lengths=np.array([1, 1, 1])
    ),
    "attention: `q_offset` has shape (2, 8), which does not broadcast to the batch axes = (2,)": attention(
        q_offset=arr(2, 8, dtype=int)
    ),
    "attention: `precision` is 'fp8', but must be None or \"tf32\"": attention(precision="fp8"),
    "attention: `out` has shape (2, 5, 8, 64), but the output is (2, 8, 5, 64)": attention(out=arr(2, 5, 8, 64)),
    "attention: `out` overlaps `q` in memory; pass an array of its own": attention(out=Q),
    "attention: `out` overlaps `v` in memory": lambda: cuflash.attention(K, K, V, out=V),
    "attention: `lse_out` has shape (2, 5, 8), but the lse is (2, 8, 5)": attention(lse_out=arr(2, 5, 8)),
    "attention: `out` overlaps itself in memory (strides (2560, 320, 64, 0))": lambda: cuflash.attention(
        Q, K, V, out=np.lib.stride_tricks.as_strided(arr(2, 8, 5, 8), (2, 8, 5, 64), (2560, 320, 64, 0))
    ),
    "attention: `out` is read-only; pass an array that may be written": attention(out=read_only(arr(2, 8, 5, 64))),
    "attention: `workspace` has shape (2, 4), but one axis of bytes is (8,)": attention(
        workspace=arr(2, 4, dtype=np.uint8)
    ),
    "attention_backward: `dout` has shape (2, 8, 5, 7), but the output is (2, 8, 5, 64)": backward(
        dout=arr(2, 8, 5, 7)
    ),
    "attention_backward: `out` has shape (8, 5, 64), but the output is (2, 8, 5, 64)": backward(out=arr(8, 5, 64)),
    "attention_backward: `lse` has shape (2, 5, 8), but (..., hq, lq) is (2, 8, 5)": backward(lse=arr(2, 5, 8)),
    "attention_backward: `dlse` has shape (8, 5), but (..., hq, lq) is (2, 8, 5)": backward(dlse=arr(8, 5)),
    "attention_weights: `out` has shape (2, 8, 5, 8), but the scores (..., hq, lq, lk) is (2, 8, 5, 7)": weights(
        out=arr(2, 8, 5, 8)
    ),
    "attention_weights: `out` overlaps `mask` in memory": lambda: cuflash.attention_weights(
        arr(1, 1), arr(8, 1), mask=(shared := arr(1, 8)).view(bool)[:, ::8], out=shared
    ),
    "decode: `q` must have 4 axes, or 3 (b, hq, d) for one token, got 2": decode(q=arr(8, 64)),
    "decode: `cache` has d=64, but `q` has d=32": decode(q=arr(2, 8, 32)),
    "decode: `cache` has hk=2 heads, which does not divide hq=3 of `q`": decode(q=arr(2, 3, 64)),
    "decode: got b=3 rows, but the cache has batch=2; name the rows with `seqs`": decode(q=arr(3, 8, 64)),
    "decode: `seqs` names row 2, but the cache has rows 0 to 1": decode(seqs=[0, 2]),
    "decode: `seqs` names row -1, but": decode(seqs=[0, -1]),
    "decode: `seqs` has shape (1,), but (b,), one for each of the b rows handed in, is (2,)": decode(seqs=[0]),
    "decode: `splits` is 0, but the keys are cut into 1 part or more": decode(splits=0),
    "decode: `cache.lengths` holds 9, but must lie in 0..8": decode(lengths=9),
    "decode: `cache.lengths` holds -1, but must lie in 0..8": decode(lengths=-1),
    "decode: `cache.lengths` has shape (3,), but (b,) of the cache is (2,)": decode(replaced=np.zeros(3, int)),
    "decode: `bias` has 2 keys on its last axis, but the longest sequence of `cache` has 3": decode(bias=arr(2)),
    "decode: `bias` has shape (3, 1, 5), which does not broadcast to (b, hq, lq, keys) = (2, 8, 1, 5)": decode(
        bias=arr(3, 1, 5)
    ),
    "decode: `out` has shape (2, 64), but the output is (2, 8, 64)": decode(out=arr(2, 64)),
    "decode: `window` is (-3, 0), but a side reaches": decode(window=(-3, 0)),
    "KVCache: `capacity` is -1, but must be 0 or more": lambda: KVCache(1, -1, 1, 1, dtype=F32),
    "KVCache: `kv_heads` is 0, but must be 1 or more": lambda: KVCache(1, 1, 0, 1, dtype=F32),
    "KVCache.append: `k` must have 4 axes, got 3: shape (2, 1, 64)": append(k=arr(2, 1, 64)),
    "KVCache.append: `k` has 1 heads of 64, but the cache holds 2 heads of 64 (layout 'blhd')": append(layout="blhd"),
    "KVCache.append: `v` has 2 heads of 32, but the cache holds 2 heads of 64": append(v=arr(2, 2, 1, 32)),
    "KVCache.append: `v` has l=2, but `k` has l=1": append(v=arr(2, 2, 2, 64)),
    "KVCache.append: got b=1 rows, but the cache has batch=2": append(k=arr(1, 2, 1, 64)),
    "KVCache.append: `seqs` names a row twice: [1, 1]": append(seqs=[1, 1]),
    "KVCache.append: `lengths` is 2 at (1,), but must lie in 0..1": append(lengths=[1, 2]),
    "KVCache.truncate: `length` is 4 for row 0, but it has only 3 tokens": lambda: cache().truncate(0, 4),
    "KVCache.truncate: `length` is -1, but must be 0 or more": lambda: cache().truncate(0, -1),
    "KVCache.truncate: `seq` names row 2, but the cache has rows 0 to 1": lambda: cache().truncate(2, 0),
    "KVCache.truncate: `seq` names a row twice: [1, 1]": lambda: cache().truncate([1, 1], [0, 1]),
    "rotary: `x` must have 2 axes or more, got shape (4,)": lambda: cuflash.rotary(arr(4), 0),
    "rotary: `dim` is 3, but must be even and lie in 0..4, x's last axis": lambda: cuflash.rotary(arr(3, 4), 0, dim=3),
    "rotary: `dim` is 6, but must be even": lambda: cuflash.rotary(arr(3, 4), 0, dim=6),
    "rotary: `positions` has shape (4,), which does not broadcast to (..., l) = (3,)": lambda: cuflash.rotary(
        arr(3, 4), np.arange(4)
    ),
    "rotary: `freqs` has shape (4,), but (dim / 2,) is (2,)": lambda: cuflash.rotary(arr(3, 4), 0, freqs=arr(4)),
    "rotary: `base` is -1.0, but must be positive": lambda: cuflash.rotary(arr(3, 4), 0, base=-1.0),
    "rotary: `out` overlaps `x` in memory": lambda: cuflash.rotary(Q, 0, out=Q),
    "merge: `outs` is empty, but there must be at least one part": lambda: cuflash.merge([], []),
    "merge: `outs` has 2 parts, but `lses` has 1": lambda: cuflash.merge([Q, Q], [LSE]),
    "merge: `outs[1]` has shape (2, 2, 7, 64), but outs[0] is (2, 8, 5, 64)": lambda: cuflash.merge([Q, V], [LSE, LSE]),
    "merge: `lses[0]` has shape (8, 5), but outs[0] without its last axis is (2, 8, 5)": lambda: cuflash.merge(
        [Q], [LSE[0]]
    ),
    "merge: `axis` is 3, but `outs` has shape (2, 8, 5, 64)": lambda: cuflash.merge(Q, LSE, axis=3),
    "merge: `axis` is 1, but `outs` is a sequence: its parts are already apart": lambda: cuflash.merge(
        [Q], [LSE], axis=1
    ),
    "Alibi: `slopes` must have one axis (hq,), got shape (1, 2)": lambda: Alibi([[1.0, 2.0]]),
    "Alibi: `slopes` must be finite": lambda: Alibi([np.nan]),
    "Window: `left` is -1, but a window reaches 0 or more positions": lambda: masks.Window(-1, 0),
    "explain: no plan is made for 'merge'; only for attention": lambda: cuflash.explain(cuflash.merge, Q, LSE),
}

UNSUPPORTED = {
    'attention: `precision`="tf32" has no kernel; None computes in IEEE float32': attention(precision="tf32"),
    "KVCache: math arrays have no backend in this version": lambda: KVCache(
        1, 1, 1, 1, dtype=F32, xp=ModuleType("math")
    ),
}

FULL = {
    "KVCache.append: a sequence would have 9 tokens, but the cache has capacity=8; truncate it": append(
        k=arr(2, 2, 6, 64)
    ),
}

CASES = [
    pytest.param(error, message, call, id=message[:70])
    for error, table in (
        (TypeError, ARRAYS), (TypeError, OPTIONS), (ProblemError, VALUES), (UnsupportedError, UNSUPPORTED),
        (CacheFullError, FULL),
    )
    for message, call in table.items()
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "call"), CASES)
def test_a_wrong_call_says_so(error, message, call):
    with pytest.raises(error, match=re.escape(message)) as caught:
        call()
    assert type(caught.value) is error


def test_there_are_many_distinct_wrong_calls():
    assert len(CASES) >= 80


@pytest.mark.parametrize(
    "options",
    [{"softcap": 0.0}, {"mask": arr(9)}, {"kv_lengths": 8}, {"window": -1}, {"precision": "tf32"}, {"return_lse": 2}],
    ids=str,
)
def test_an_error_leaves_the_output_untouched(options):
    out, lse = np.full((2, 8, 5, 64), 7.0), np.full((2, 8, 5), 7.0)
    with pytest.raises((ValueError, TypeError, NotImplementedError)):
        cuflash.attention(Q, K, V, out=out, lse_out=lse, **options)
    assert (out == 7.0).all() and (lse == 7.0).all()


def test_options_are_keyword_only_and_operands_positional_only():
    with pytest.raises(TypeError, match="positional"):
        cuflash.attention(Q, K, V, True)
    with pytest.raises(TypeError, match="positional-only"):
        cuflash.attention(q=Q, k=K, v=V)
    with pytest.raises(TypeError, match="unexpected keyword argument 'causl'"):
        cuflash.attention(Q, K, V, causl=True)


def test_errors_are_the_builtins_a_caller_would_catch():
    assert issubclass(ProblemError, ValueError)
    assert issubclass(UnsupportedError, NotImplementedError)
    assert issubclass(CacheFullError, RuntimeError)


@pytest.mark.parametrize("threads", ["0", "-2", "two", "1.5"])
def test_a_wrong_number_of_threads_is_named(monkeypatch, threads):
    monkeypatch.setenv("CUFLASH_NUM_THREADS", threads)
    with pytest.raises(
        ProblemError, match=re.escape(f"CUFLASH_NUM_THREADS is {threads!r}, but must be a whole number")
    ):
        cuflash.attention(Q, K, V)
