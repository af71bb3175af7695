"""Looking at the library from outside: what a call would do, what is installed, whether it computes right here."""

from __future__ import annotations

import inspect
import platform
from collections.abc import Callable
from typing import Any

import numpy as np

from cuflash import _attention, _blas, _decoding, _varlen
from cuflash._device import available_cores, cpu_device
from cuflash._dispatch import backend
from cuflash._plan import make_backward_plan, make_plan, threads_for
from cuflash._problem import attention as problem
from cuflash._problem import decoding, packed
from cuflash.errors import ProblemError


def explain(function: Callable[..., Any], /, *args: Any, **options: Any) -> str:
    """Say how a call would be computed, and why so, without computing it.

    Parameters
    ----------
    function : callable
        `attention`, `attention_vjp`, `attention_weights`, `attention_backward`, `attention_varlen`,
        `attention_varlen_backward` or `decode`.
    *args, **options
        What the call would be given.

    Returns
    -------
    str
        The problem, the backend, and the plan with its reasons.

    Raises
    ------
    TypeError, ProblemError, UnsupportedError
        As the call would, and ProblemError for a function that has no plan.

    Examples
    --------
    >>> import numpy as np
    >>> import cuflash
    >>> x = np.zeros((8, 1024, 64), dtype=np.float32)
    >>> print(cuflash.explain(cuflash.attention, x, x, x, causal=True))  # doctest: +ELLIPSIS
    attention of float32, batch (), hq=8, hk=8, lq=1024, lk=1024, d=64, dv=64
    options: causal or window (left None, right 0)
    backend: numpy
    plan: a block holds 1 head(s) x 256 row(s) of queries...
    """
    readers: dict[Callable[..., Any], Callable[..., tuple[problem.Call, Any]]] = {
        _attention.attention: _read_attention,
        _attention.attention_vjp: _read_vjp,
        _attention.attention_weights: _read_weights,
        _attention.attention_backward: _read_backward,
        _varlen.attention_varlen: _read_varlen,
        _varlen.attention_varlen_backward: _read_varlen_backward,
        _decoding.decode: _read_decode,
    }
    if not callable(function) or function not in readers:
        known = ", ".join(known.__name__ for known in readers)
        raise ProblemError(
            f"explain: no plan is made for {getattr(function, '__name__', function)!r}; only for {known}"
        )
    signature = _attention.attention if function is _attention.attention_vjp else function
    inspect.signature(signature).bind(*args, **options)  # a TypeError in the function's own words
    call, plan = readers[function](*args, **options)
    return "\n".join([*_describe(call), f"backend: {call.home}", f"plan: {plan.why}"])


def _read_attention(q: Any, k: Any, v: Any, **options: Any) -> tuple[problem.Call, Any]:
    call = problem.attention_call("attention", q, k, v, **options)
    return call, _plan(call, make_plan, "forward with lse" if call.wants_lse else "forward")


def _read_vjp(q: Any, k: Any, v: Any, **options: Any) -> tuple[problem.Call, Any]:
    return _read_attention(q, k, v, **{**options, "return_lse": True})


def _read_weights(q: Any, k: Any, **options: Any) -> tuple[problem.Call, Any]:
    call, _ = problem.weights_call("attention_weights", q, k, **options)
    return call, _plan(call, make_plan, "weights")


def _read_backward(*args: Any, **options: Any) -> tuple[problem.Call, Any]:
    call = problem.backward_call("attention_backward", *args, **options).call
    return call, _plan(call, make_backward_plan, "backward")


def _read_decode(q: Any, cache: Any, **options: Any) -> tuple[problem.Call, Any]:
    call = decoding.decode_call("decode", q, cache, **options)
    if call.home == "numpy":
        return call, make_plan(call.problem, cpu_device())
    return call, backend("explain", call.home).explain_decode(call)


def _plan(call: problem.Call, of_cpu: Callable[..., Any], kind: str) -> Any:
    """The plan of the backend that would compute a call."""
    if call.home == "numpy":
        return of_cpu(call.problem, cpu_device())
    return backend("explain", call.home).plan(kind, call.problem)


def _read_varlen(*args: Any, **options: Any) -> tuple[problem.Call, Any]:
    pack = packed.varlen_call("attention_varlen", *args, **options)
    return pack.call, _plan_pack(pack, make_plan, "forward")


def _read_varlen_backward(*args: Any, **options: Any) -> tuple[problem.Call, Any]:
    pack = packed.varlen_backward_call("attention_varlen_backward", *args, **options).pack
    return pack.call, _plan_pack(pack, make_backward_plan, "backward")


def _plan_pack(pack: packed.Pack, of_cpu: Callable[..., Any], kind: str) -> Any:
    call, operands = pack.call, pack.call.operands
    if call.home == "numpy":
        return _plan_members(pack, of_cpu)
    return backend("explain", call.home).plan(kind, call.problem, (operands.q.shape[1], operands.k.shape[1]))


def _plan_members(pack: packed.Pack, make: Callable[..., Any]) -> Any:
    """The plan of the member with the most work; its reasons say that the members run together."""
    device, members = cpu_device(), packed.list_members(pack)
    sizes = [(m.queries.stop - m.queries.start, m.keys.stop - m.keys.start) for m in members]
    busy = [size for size in sizes if size[0]] or [(0, 0)]
    plans = [make(packed.member_problem(pack.call.problem, *size), device, len(busy)) for size in busy]
    (lq, lk), plan = max(zip(busy, plans), key=lambda pair: pair[1].work)
    threads = max(1, threads_for(plans, device))
    reasons = plan.why.rpartition("; ")[0]  # all but how many threads it would get alone
    together = f"{len(members)} member(s) together on {threads} thread(s)"
    return plan._replace(why=f"{together}; the one with the most work, {lq} x {lk}: {reasons}")


def _describe(call: problem.Call) -> list[str]:
    p = call.problem
    lengths = f"lq={p.lq}, lk={p.lk}"
    if "varlen" in p.function:  # of members that lie on a device the host may know nothing but the sum
        known = call.home == "numpy"
        lengths = f"longest lq={p.lq}, longest lk={p.lk}" if known else f"lq up to {p.lq}, lk up to {p.lk}"
    sizes = f"hq={p.hq}, hk={p.hk}, {lengths}, d={p.d}, dv={p.dv}"
    used = []
    if p.left is not None or p.right is not None:
        used.append(f"causal or window (left {p.left}, right {p.right})")
    used += [f"softcap {p.softcap}"] * (p.softcap is not None)
    used += [f"bias {p.bias}"] * (p.bias is not None)
    flags = {"mask": p.mask, "Alibi": p.alibi, "sinks": p.sinks, "lengths per sequence": p.kv_lengths}
    used += [f"{p.stored} keys and values with scales"] * (p.stored is not None)
    used += [f"pages of {p.page_size} tokens"] * (p.page_size is not None)
    used += [name for name, given in flags.items() if given]
    return [f"{p.function} of {p.dtype}, batch {p.batch}, {sizes}", f"options: {', '.join(used) or 'none'}"]


def show_config() -> None:
    """Print versions, threads, BLAS and what this CPU offers, as a bug report needs them.

    Where OpenBLAS runs kernels narrower than the CPU's vectors, it says so and what to try; cuflash never sets it.

    Examples
    --------
    >>> import cuflash
    >>> cuflash.show_config()  # doctest: +ELLIPSIS
    cuflash ...
    """
    from cuflash import __version__

    device = cpu_device()
    print(f"cuflash {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    print(", ".join(f"{name} {_version(name)}" for name in ("numpy", "scipy", "threadpoolctl", "ml_dtypes", "cupy")))
    print(f"threads: {device.threads} of {available_cores()} cores (CUFLASH_NUM_THREADS sets the number)")
    libraries = _blas.libraries()
    for blas in libraries:
        kernels, threads = _blas.kernels(blas), blas["num_threads"]
        print(f"BLAS: {blas['internal_api']} {blas['version']}, {kernels} kernels, {threads} threads")
    width = _blas.wider(libraries, _blas.cpu_features())
    if width:
        print(
            f"BLAS runs below this CPU's {width.text}: products, and with them attention, may be faster in a program "
            f"that is started with {_blas.VARIABLE}={width.kernels[0]} in its environment; on some CPUs they are not"
        )
    print(f"backends: numpy, {_cupy_backend()}")


def _version(name: str) -> str:
    """Of a module, whatever the distribution is called: CuPy's name says for which CUDA it is."""
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        distributions = metadata.packages_distributions().get(name)
    return metadata.version(distributions[0]) if distributions else "not installed"


def _cupy_backend() -> str:
    from cuflash._runtime import cupy_runtime

    absence = cupy_runtime.absence()
    if absence is not None:
        return f"not cupy, which {absence}"
    gpu = cupy_runtime.runtime().gpu()
    return f"cupy on a GPU of {gpu.sms} multiprocessors, for which kernels are compiled as {gpu.arch}"


def selftest() -> bool:
    """Check this installation on this machine: attention, a gradient and decoding against the float64 reference.

    Returns
    -------
    bool
        True; a difference raises.

    Raises
    ------
    AssertionError
        If a result is further from the reference than rounding explains.

    Examples
    --------
    >>> import cuflash
    >>> cuflash.selftest()  # doctest: +ELLIPSIS
    attention float32 ... ok
    attention float64 ... ok
    gradient float64 ... ok
    decode float32 ... ok
    True
    """
    from cuflash import reference
    from cuflash.kv_cache import KVCache

    def report(name: str, actual: Any, expected: Any, bound: float) -> None:
        error = float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))
        if not error <= bound:
            raise AssertionError(
                f"selftest: {name} is off by {error:.1e} of its norm, but at most {bound:.0e} is rounding"
            )
        print(f"{name} (relative error {error:.1e}) ok")

    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, heads, 300, 64)) for heads in (4, 2, 2))
    expected = reference.attention(q, k, v, causal=True)
    for dtype, bound in ((np.float32, 1e-6), (np.float64, 1e-14)):
        small = [x.astype(dtype) for x in (q, k, v)]
        exact = reference.attention(*small, causal=True)
        report(f"attention {np.dtype(dtype).name}", _attention.attention(*small, causal=True), exact, bound)
    _, vjp = _attention.attention_vjp(q, k, v, causal=True)
    report("gradient float64", vjp(expected).dk, reference.attention_backward(expected, q, k, v, causal=True).dk, 1e-13)
    cache = KVCache(2, 300, 2, 64, dtype=np.float32)
    cache.append(k.astype(np.float32), v.astype(np.float32))
    report("decode float32", _decoding.decode(q[:, :, -1].astype(np.float32), cache), expected[:, :, -1], 1e-6)
    return True
