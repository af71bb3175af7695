"""The register of kernels: one line each, and which variants of each are ever launched.

A kernel `name` is the struct that its line names, a template on one `Config`; the file holds it, and the compiled
function is called `cuflash_<name>`. A variant is a kernel with the values of its `Config`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from cuflash import _configs, _params
from cuflash._configs import Config, KernelSpec, Value, Variant
from cuflash._device import capability
from cuflash.errors import ProblemError

DTYPES = tuple(_params.DTYPES)
HEAD_DIMS = range(1, _configs.DIM_MOST + 1)


class Wanted(NamedTuple):
    """What variants are asked for."""

    dtypes: tuple[str, ...]
    dims: tuple[tuple[int, int], ...]  # d and dv: a pair for each that any kernel tells apart


class Kernel(NamedTuple):
    """A line of the register."""

    file: str  # below rawkernels/
    struct: str  # in namespace cf
    config: str  # type of its template argument, in namespace cf
    params: _params.Struct  # what a launch hands over
    configs: Callable[[Wanted], Iterable[Config]]  # all that calls with these launch
    least: Mapping[str, int] = {}  # by dtype, the compute capability that has its instructions: 80 is 8.0


def spec(kernel: str, **config: Value) -> KernelSpec:
    """A variant by the members of its `Config`, in the order of C++."""
    return KernelSpec(kernel, tuple(config.items()))


def instance(variant: KernelSpec) -> str:
    """The C++ type of a variant.

    >>> instance(spec("fwd_simt", dtype="Dtype::float32", value_dim=64))
    'cf::FwdSimt<cf::SimtConfig{.dtype = cf::Dtype::float32, .value_dim = 64}>'
    """
    kernel = KERNELS[variant.kernel]
    members = ", ".join(f".{name} = {_spell(value)}" for name, value in variant.config)
    return f"cf::{kernel.struct}<cf::{kernel.config}{{{members}}}>"


def _spell(value: Value) -> str:
    return f"cf::{value}" if isinstance(value, str) else str(value)


def file_name(variant: KernelSpec, arch: str) -> str:
    """What a variant compiled for `arch` is called in a folder.

    >>> file_name(spec("fwd_simt", dtype="Dtype::float32", value_dim=64), "sm_90a")
    'fwd_simt-float32-value_dim64-sm_90a.cubin'
    """
    return "-".join([variant.kernel, *map(_shorten, variant.config), arch]) + ".cubin"


def _shorten(member: tuple[str, Value]) -> str:
    name, value = member
    return value.rpartition("::")[2] if isinstance(value, str) else f"{name}{value}"


def runs_on(variant: KernelSpec, arch: str) -> bool:
    """Whether an architecture has the instructions of a variant.

    >>> runs_on(spec("fwd_mma", dtype="Dtype::bfloat16"), "sm_75")
    False
    """
    return KERNELS[variant.kernel].least.get(str(dict(variant.config).get("dtype")), 0) <= capability(arch)


def variants(dtypes: Iterable[str] | None = None, head_dims: Iterable[int] | None = None) -> list[KernelSpec]:
    """Every variant that calls launch with these dtypes, where the larger of d and dv is one of these; None is all.

    Raises
    ------
    ProblemError
        A name or number that no kernel has.
    """
    wanted = Wanted(_among("dtypes", dtypes, DTYPES), _pairs(_among("head_dims", head_dims, HEAD_DIMS)))
    found = (KernelSpec(name, config) for name, kernel in KERNELS.items() for config in kernel.configs(wanted))
    return list(dict.fromkeys(found))


def _among(argument: str, given: Iterable | None, known: tuple[str, ...] | range) -> tuple:
    if given is None:
        return tuple(known)
    chosen = (given,) if isinstance(given, (str, int)) else tuple(given)
    for one in chosen:
        if one not in known:
            expected = f"{known[0]} to {known[-1]}" if isinstance(known, range) else ", ".join(known)
            raise ProblemError(f"warmup: `{argument}` has {one!r}, but must be among {expected}")
    return chosen


def _pairs(head_dims: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """d and dv of which the larger is one of these; of dims between the same two that a kernel tells apart, one."""
    wide = [bisect_left(_configs.WIDTHS, dim) for dim in head_dims]
    pairs = [(most, less) for most in dict.fromkeys(wide) for less in range(most + 1)]
    return tuple((_configs.WIDTHS[d], _configs.WIDTHS[dv]) for one in pairs for d, dv in (one, one[::-1]))


def _fwd_mma(wanted: Wanted) -> Iterable[Config]:
    return (
        variant.spec.config
        for dtype in wanted.dtypes
        for d, dv in wanted.dims
        for variant in _configs.fwd_mma(dtype, d, dv)
    )


def _by_dim(find: Callable[[str, int], Variant]) -> Callable[[Wanted], Iterable[Config]]:
    return _by_dims(lambda dtype, d, dv: find(dtype, max(d, dv)))


def _by_dims(find: Callable[[str, int, int], Variant]) -> Callable[[Wanted], Iterable[Config]]:
    return lambda wanted: (find(dtype, d, dv).spec.config for dtype in wanted.dtypes for d, dv in wanted.dims)


def _dtype_alone(wanted: Wanted) -> Iterable[Config]:
    return ((("dtype", f"Dtype::{dtype}"),) for dtype in wanted.dtypes)


def _dtype_and_parts(wanted: Wanted) -> Iterable[Config]:
    """Parts that a caller has are of the result's dtype, those of a forward pass of that of sums."""
    return (
        (("dtype", f"Dtype::{dtype}"), ("parts", f"Dtype::{parts}"))
        for dtype in wanted.dtypes
        for parts in dict.fromkeys((dtype, "float64" if dtype == "float64" else "float32"))
    )


def _dtype_of_sums(wanted: Wanted) -> Iterable[Config]:
    return ((("dtype", f"Dtype::{'float64' if dtype == 'float64' else 'float32'}"),) for dtype in wanted.dtypes)


def _dtype_and_codes(wanted: Wanted) -> Iterable[Config]:
    return (
        (("dtype", f"Dtype::{dtype}"), ("codes", f"Codes::{codes}"))
        for dtype in wanted.dtypes
        for codes in _params.CODES
    )


def _decoding(
    find: Callable[[str, str, int, int, int], Variant | None], *queries: int
) -> Callable[[Wanted], Iterable[Config]]:
    """Of a kernel with tiles for so many queries. Codes are computed with in float32: not for float64."""

    def configs(wanted: Wanted) -> Iterable[Config]:
        found = (
            find(dtype, codes, d, dv, rows)
            for dtype in wanted.dtypes
            for codes in (_params.CODES if dtype != "float64" else ("none",))
            for d, dv in wanted.dims
            for rows in queries
        )
        return (variant.spec.config for variant in found if variant is not None)

    return configs


def _always(**members: int) -> Callable[[Wanted], Iterable[Config]]:
    return lambda wanted: (tuple(members.items()),)


KERNELS: dict[str, Kernel] = {
    "fwd_mma": Kernel(
        "fwd_mma.cu", "FwdMma", "MmaConfig", _params.FWD, _fwd_mma, {"Dtype::float16": 75, "Dtype::bfloat16": 80}
    ),
    "fwd_simt": Kernel("fwd_simt.cu", "FwdSimt", "SimtConfig", _params.FWD, _by_dims(_configs.fwd_simt)),
    "bwd_prepare": Kernel("bwd_prepare.cu", "BwdPrepare", "ElementConfig", _params.BWD_PREPARE, _dtype_alone),
    "bwd_q_simt": Kernel("bwd_q_simt.cu", "BwdQSimt", "GradientConfig", _params.BWD_Q, _by_dims(_configs.bwd_q_simt)),
    "bwd_kv_simt": Kernel(
        "bwd_kv_simt.cu", "BwdKvSimt", "GradientConfig", _params.BWD_KV, _by_dim(_configs.bwd_kv_simt)
    ),
    "bwd_bias_simt": Kernel(
        "bwd_bias_simt.cu", "BwdBiasSimt", "GradientConfig", _params.BWD_BIAS, _by_dim(_configs.bwd_bias_simt)
    ),
    "bwd_sinks": Kernel("bwd_sinks.cu", "BwdSinks", "ElementConfig", _params.BWD_SINKS, _dtype_alone),
    "weights_simt": Kernel(
        "weights_simt.cu", "WeightsSimt", "SimtConfig", _params.WEIGHTS, _by_dim(_configs.weights_simt)
    ),
    "sum_axes": Kernel("sum_axes.cu", "SumAxes", "ElementConfig", _params.SUM_AXES, _dtype_of_sums),
    "kv_append": Kernel("kv_append.cu", "KvAppend", "AppendConfig", _params.APPEND, _dtype_and_codes),
    "decode_mma": Kernel(
        "decode_mma.cu",
        "DecodeMma",
        "DecodeMmaConfig",
        _params.DECODE,
        _decoding(_configs.decode_mma, 16, 32),
        {"Dtype::float16": 80, "Dtype::bfloat16": 80},
    ),
    "decode_fma": Kernel(
        "decode_fma.cu",
        "DecodeFma",
        "DecodeFmaConfig",
        _params.DECODE,
        _decoding(_configs.decode_fma, 4, 8),
        {"Dtype::float32": 80},
    ),
    "decode_simt": Kernel(
        "decode_simt.cu", "DecodeSimt", "DecodeConfig", _params.DECODE, _decoding(_configs.decode_simt, 8, 16, 32)
    ),
    "copy_pages": Kernel(
        "copy_pages.cu", "CopyPages", "CopyConfig", _params.COPY_PAGES, _always(chunk_bytes=_configs.COPY_CHUNK_BYTES)
    ),
    "scatter": Kernel("scatter.cu", "Scatter", "ScatterConfig", _params.SCATTER, _always(places=_params.PLACES)),
    "merge": Kernel("merge.cu", "Merge", "MergeConfig", _params.MERGE, _dtype_and_parts),
    "rotary": Kernel("rotary.cu", "Rotary", "RotaryConfig", _params.ROTARY, _dtype_alone),
}
