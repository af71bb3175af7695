"""The structs of rawkernels/attention/*params.cuh as NumPy dtypes, and packing of Python numbers into them.

Each struct is described here once more, field by field in the C++ order; tests/test_params_layout.py has NVRTC compare
every size and offset. A launch hands its kernel one struct by value:

    problem = ATTENTION.values(q=pointer, ..., batch=(1, 1, 1, b), ...)
    params = FWD.pack(problem=problem, out=pointer, out_strides=(0, 0, 0, *strides), ...)

Missing and unknown fields are a TypeError, a tuple of the wrong length is a struct.error.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from keyword import iskeyword
from typing import Any

import numpy as np

BATCH_AXES = 4
UNSET = -(2**63)  # of INTEGERS: what the kernel knows better than the host
FARTHEST = 2**61  # no offset and no side of a window is larger
KEPT_AXES, SUMMED_AXES = BATCH_AXES + 3, BATCH_AXES + 1
MERGE_ARRAYS = 16  # arrays that one merge takes
PLACES = 128  # integers that one scatter writes

DTYPES = {"float16": 0, "bfloat16": 1, "float32": 2, "float64": 3}  # enum class Dtype
CODES = {"none": 0, "int8": 1, "float8_e4m3fn": 2}  # enum class Codes
NUMBER_KINDS = {"int32": 0, "int64": 1, "float32": 2, "float64": 3}  # enum class NumberKind

POINTER = "u8"
FORMATS = {"i4": "i", "i8": "q", "u4": "I", "u8": "Q", "f4": "f", "f8": "d"}  # NumPy's names, struct's


class Struct:
    """A C++ struct: its dtype, and functions that take its fields as keywords.

    Parameters
    ----------
    name : str
        The C++ type in namespace cf; its layout is the same whatever the template's arguments are.
    **fields : str, Struct or tuple
        In the order of C++: a dtype such as ``"i8"``, another struct, or one of these with a number of elements. A
        name that Python keeps for itself ends in ``_``.

    Attributes
    ----------
    dtype : numpy.dtype
        Laid out as C++ does it.
    address_words : tuple of int
        Which of its 8-byte words are addresses.
    values : callable
        Every field by keyword (`in_` for one called `in`), a tuple of numbers where it is an array or a struct. Returns
        all numbers as one tuple, which can be a field of a larger struct.
    pack : callable
        The same keywords; returns the struct as an array without axes. Its dtype is raw bytes of the struct's size:
        CuPy reads the address of an argument from `__array_interface__`, which takes 1 us for raw bytes and 42 us for a
        structured dtype of this size.
    """

    def __init__(self, name: str, **fields: str | Struct | tuple[str | Struct, int]) -> None:
        self.name = name
        self.dtype = np.dtype([_field(key, kind) for key, kind in fields.items()], align=True)
        packer, raw = struct.Struct("<" + "".join(_formats(self.dtype))), np.dtype(f"V{self.dtype.itemsize}")
        assert packer.size == self.dtype.itemsize
        # One expression with every field in its place: the loop over keywords that it replaces took 1.3 us more.
        names = {key: key + "_" * iskeyword(key) for key in fields}
        numbers = ", ".join(names[key] if isinstance(kind, str) else f"*{names[key]}" for key, kind in fields.items())
        keywords, used = ", ".join(names.values()), {"pack": packer.pack, "ndarray": np.ndarray, "raw": raw}
        self.address_words = tuple(_addresses(self.dtype))
        self.values: Callable[..., tuple[float, ...]] = eval(f"lambda *, {keywords}: ({numbers},)", {})
        self.pack: Callable[..., Any] = eval(f"lambda *, {keywords}: ndarray((), raw, pack({numbers}))", used)

    def unpack(self, packed: Any) -> Any:
        """A packed struct with its fields, for tests and messages."""
        return packed.view(self.dtype)


def _field(key: str, kind: str | Struct | tuple[str | Struct, int]) -> tuple[Any, ...]:
    one, *length = kind if isinstance(kind, tuple) else (kind,)
    return (key.rstrip("_"), one.dtype if isinstance(one, Struct) else f"<{one}", *length)


def _formats(dtype: np.dtype) -> Iterator[str]:
    """What the module `struct` calls the numbers of a dtype, with pad bytes where it has holes."""
    if dtype.subdtype is not None:
        element, shape = dtype.subdtype
        for _ in range(int(np.prod(shape))):
            yield from _formats(element)
        return
    if dtype.fields is None:
        yield FORMATS[dtype.str[1:]]
        return
    end = 0
    for key in dtype.names or ():
        field, offset = dtype.fields[key][:2]
        yield "x" * (offset - end)
        yield from _formats(field)
        end = offset + field.itemsize
    yield "x" * (dtype.itemsize - end)


def _addresses(dtype: np.dtype, start: int = 0) -> Iterator[int]:
    """Words of a dtype that are addresses, counted from byte `start`."""
    if dtype.subdtype is not None:
        element, shape = dtype.subdtype
        for i in range(int(np.prod(shape))):
            yield from _addresses(element, start + i * element.itemsize)
    elif dtype.fields is not None:
        for field, offset in (dtype.fields[key][:2] for key in dtype.names or ()):
            yield from _addresses(field, start + offset)
    elif dtype.str[1:] == POINTER:
        yield start // dtype.itemsize


# rawkernels/attention/params.cuh
STRIDES = Struct("Strides", batch=("i8", BATCH_AXES), head="i8", row="i8", col="i8")
INTEGERS = Struct("Integers", data=POINTER, value="i8", batch=("i8", BATCH_AXES), bytes="i4")
REALS = Struct("Reals", data=POINTER, strides=STRIDES, dtype="i4")
ATTENTION = Struct(
    "Attention<T>",
    q=POINTER, k=POINTER, v=POINTER, q_strides=STRIDES, k_strides=STRIDES, v_strides=STRIDES,
    mask=POINTER, mask_strides=STRIDES, bias=REALS, slopes=REALS, sinks=REALS, q_offset=INTEGERS, kv_lengths=INTEGERS,
    q_starts=POINTER, kv_starts=POINTER, left="i8", right="i8", scale="f8", softcap="f8", batch=("i4", BATCH_AXES),
    hq="i4", group="i4", lq="i4", lk="i4", d="i4", dv="i4", q_tiles="i4",
)  # fmt: skip
FWD = Struct(
    "FwdParams<T>",
    problem=ATTENTION, out=POINTER, part_outs=POINTER, out_strides=STRIDES, lse=POINTER, lse_strides=STRIDES,
    sum=POINTER, out_step="i8", lse_step="i8", parts="i4", part_keys="i4",
)  # fmt: skip
GRADIENT = Struct("Gradient", data=POINTER, strides=STRIDES, dtype="i4")
BACKWARD = Struct(
    "Backward<T>",
    problem=ATTENTION, dout=POINTER, dout_strides=STRIDES, lse=POINTER, lse_strides=STRIDES,
    delta=POINTER, delta_strides=STRIDES,
)  # fmt: skip
BWD_PREPARE = Struct(
    "BwdPrepareParams<T>",
    dout=POINTER, dout_strides=STRIDES, out=POINTER, out_strides=STRIDES, dlse=POINTER, dlse_strides=STRIDES,
    delta=POINTER, delta_strides=STRIDES, batch=("i4", BATCH_AXES), heads="i4", rows="i4", dv="i4",
)  # fmt: skip
BWD_Q = Struct("BwdQParams<T>", given=BACKWARD, dq=GRADIENT)
BWD_KV = Struct(
    "BwdKvParams<T>",
    given=BACKWARD, dk=GRADIENT, dv=GRADIENT, hk="i4", kv_tiles="i4", k_slices="i4", v_slices="i4",
)  # fmt: skip
BWD_BIAS = Struct(
    "BwdBiasParams<T>",
    given=BACKWARD, dbias=GRADIENT, part_stride="i8", batch=("i4", BATCH_AXES), heads="i4", rows="i4", cols="i4",
    parts="i4",
)  # fmt: skip
BWD_SINKS = Struct(
    "BwdSinksParams<T>",
    lse=POINTER, lse_strides=STRIDES, delta=POINTER, delta_strides=STRIDES, sinks=REALS, dsinks=GRADIENT,
    batch=("i4", BATCH_AXES), heads="i4", rows="i4",
)  # fmt: skip
WEIGHTS = Struct(
    "WeightsParams<T>",
    problem=ATTENTION, max=POINTER, sum=POINTER, row_strides=STRIDES, weights=POINTER, weights_strides=STRIDES,
    kv_tiles="i4",
)  # fmt: skip
SUM_AXES = Struct(
    "SumAxesParams<A>",
    in_=POINTER, out=POINTER, elements="i8", sizes=("i8", KEPT_AXES), in_strides=("i8", KEPT_AXES),
    out_strides=("i8", KEPT_AXES), summed_sizes=("i8", SUMMED_AXES), summed_strides=("i8", SUMMED_AXES), dtype="i4",
)  # fmt: skip

# rawkernels/attention/cache_params.cuh
TOKEN_STRIDES = Struct("TokenStrides", row="i8", token="i8", head="i8", col="i8")
CACHE = Struct(
    "Cache<Stored>",
    k=POINTER, v=POINTER, k_scale=POINTER, v_scale=POINTER, k_strides=TOKEN_STRIDES, v_strides=TOKEN_STRIDES,
    k_scale_strides=TOKEN_STRIDES, v_scale_strides=TOKEN_STRIDES, page_table=POINTER, table_stride="i8",
    rows="i4", tokens="i4", entries="i4",
)  # fmt: skip
DECODE = Struct(
    "DecodeParams<T, Stored>",
    q=POINTER, q_strides=STRIDES, cache=CACHE, seqs=POINTER, lengths=POINTER, q_offset="i8", bias=REALS,
    slopes=REALS, sinks=REALS, left="i8", right="i8", scale="f8", softcap="f8", out=POINTER, out_strides=STRIDES,
    lse=POINTER, lse_strides=STRIDES, part_outs=POINTER, part_sums=POINTER, tickets=POINTER, b="i4", hq="i4", hk="i4",
    lq="i4", d="i4", dv="i4", part_keys="i4", splits="i4", parts="i4", listed="i4", limit="i4",
)  # fmt: skip
APPEND = Struct(
    "AppendParams<T, Stored>",
    k=POINTER, v=POINTER, k_strides=STRIDES, v_strides=STRIDES, cache=CACHE, seqs=POINTER, counts=INTEGERS,
    lengths=POINTER, shared=POINTER, reserved=POINTER, dropped=POINTER, tickets=POINTER, b="i4", hk="i4", l="i4",
    d="i4", dv="i4", blocks="i4",
)  # fmt: skip
COPY_PAGES = Struct(
    "CopyPagesParams",
    arrays=(POINTER, 4), bytes=("i8", 4), sources=POINTER, targets=POINTER, count="i4", chunks="i4",
)  # fmt: skip
SCATTER = Struct("ScatterParams", at=(POINTER, PLACES), values=("i4", PLACES), count="i4")
MERGE_PART = Struct("MergePart<T>", out=POINTER, lse=POINTER, out_strides=STRIDES, lse_strides=STRIDES)
MERGE = Struct(
    "MergeParams<T, Part>",
    given=(MERGE_PART, MERGE_ARRAYS), out_step="i8", lse_step="i8", out=POINTER, lse=POINTER, out_strides=STRIDES,
    lse_strides=STRIDES, entries="i8", batch=("i4", BATCH_AXES), heads="i4", rows="i4", dv="i4",
    parts="i4", arrays="i4", sums="i4",
)  # fmt: skip
NUMBERS = Struct("Numbers", data=POINTER, strides=STRIDES, kind="i4")
ROTARY = Struct(
    "RotaryParams<T>",
    x=POINTER, out=POINTER, x_strides=STRIDES, out_strides=STRIDES, positions=NUMBERS, freqs=NUMBERS, entries="i8",
    batch=("i4", BATCH_AXES), heads="i4", rows="i4", d="i4", dim="i4", interleaved="i4",
)  # fmt: skip

STRUCTS = tuple(one for one in tuple(globals().values()) if isinstance(one, Struct))
