"""Compiling kernels before they are needed: for this machine's GPU into the cache, or for any GPU into a folder."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from cuflash._device import available_cores, exact_arch
from cuflash.errors import ProblemError

BAR, WIDTH = 20, 48  # characters of the bar, and of the name beside it
Job = tuple[Any, str]  # a variant, and the architecture


def warmup(
    dtypes: Any = None,
    head_dims: int | Iterable[int] | None = None,
    *,
    arch: str | Iterable[str] | None = None,
    out: str | Path | None = None,
    progress: bool = True,
) -> None:
    """Compile the kernels that calls would otherwise compile when they first need them.

    NumPy needs nothing of the kind. With CuPy the kernels are compiled for the current GPU and kept on disk, from where
    each process reads what it uses. With `arch` neither a GPU nor a driver is needed. It prints what was done.

    Parameters
    ----------
    dtypes : dtype or sequence of dtypes, optional
        Of the arrays; all four by default.
    head_dims : int or sequence of int, optional
        The larger of d and dv; every one from 1 to 512 by default.
    arch : str or sequence of str, optional
        What to compile for, such as ``"sm_90a"``, in place of the current GPU.
    out : path, optional
        A folder for one file per kernel, in place of the cache. Set the environment variable CUFLASH_CUBIN_DIR to it
        where the kernels are to be used; NVRTC is not needed there.
    progress : bool, default True
        Show a bar on the standard error stream.

    Raises
    ------
    ProblemError
        A name or number that no kernel has.
    CompileError
        NVRTC is missing or refuses a kernel.

    Examples
    --------
    >>> import numpy as np
    >>> import cuflash
    >>> cuflash.warmup(dtypes=np.float32, head_dims=[64, 128])  # doctest: +ELLIPSIS
    numpy: nothing to prepare
    cupy: ...
    """
    from cuflash import _kernels

    names = None if dtypes is None else [_dtype_name(dtype) for dtype in _as_list(dtypes)]
    dims = None if head_dims is None else _as_list(head_dims)
    variants = _kernels.variants(names, dims)
    print("numpy: nothing to prepare")
    archs = [_device_arch()] if arch is None else [_exact(name) for name in _as_list(arch)]
    if out is not None and archs == [None]:
        raise ProblemError("warmup: `out` is given, but there is no GPU to compile for; `arch` says for which")
    jobs = [
        (variant, one) for one in archs if one is not None for variant in variants if _kernels.runs_on(variant, one)
    ]
    if not jobs:
        return
    from cuflash._runtime import images

    def make(job: Job) -> str:
        if out is None:
            images.obtain(*job)
        else:
            images.precompile(*job, Path(out))
        return _kernels.file_name(*job)

    start = time.monotonic()
    _run_all(make, jobs, progress)
    place = "in the cache" if out is None else f"in {out}"
    print(f"cupy: {len(jobs)} kernels for {', '.join(map(str, archs))} {place}, {time.monotonic() - start:.1f} s")


def _as_list(given: Any) -> list[Any]:
    alone = isinstance(given, (str, type, np.dtype)) or not isinstance(given, Iterable)
    return [given] if alone else list(given)


def _dtype_name(dtype: Any) -> str:
    return dtype if isinstance(dtype, str) else np.dtype(dtype).name


def _device_arch() -> str | None:
    """What the current GPU is compiled for; where there is none, a line that says so, and None."""
    from cuflash._runtime import cupy_runtime

    absence = cupy_runtime.absence()
    if absence is None:
        return cupy_runtime.runtime().gpu().arch
    print(f"cupy: {absence}; compiling needs CuPy, and a GPU only where `arch` is not given")
    return None


def _exact(arch: str) -> str:
    """An architecture as GPUs are asked for it, so that sm_90 is sm_90a."""
    from cuflash._runtime import nvrtc

    digits = re.fullmatch(r"sm_(\d{2,3})a?", arch)
    known = [exact_arch(*divmod(number, 10)) for number in nvrtc.supported_archs()]
    exact = exact_arch(*divmod(int(digits[1]), 10)) if digits else ""
    if exact not in known or arch not in (exact, exact.rstrip("a")):
        raise ProblemError(
            f"warmup: `arch` has {arch!r}, but NVRTC {nvrtc.version()} here compiles for {', '.join(known)}"
        )
    return exact


def _run_all(make: Callable[[Job], str], jobs: list[Job], progress: bool) -> None:
    """Call `make` on every job, on as many threads as there are cores: NVRTC compiles on several at once."""
    from concurrent.futures import ThreadPoolExecutor, as_completed

    with ThreadPoolExecutor(min(len(jobs), available_cores())) as pool:
        futures = [pool.submit(make, job) for job in jobs]
        try:
            for done, future in enumerate(as_completed(futures), 1):
                name = future.result()
                if progress:
                    _show(done, len(jobs), name)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _show(done: int, total: int, name: str) -> None:
    """A bar that is drawn over itself on a terminal; elsewhere a line for each kernel."""
    count = f"{done:{len(str(total))}}/{total}"
    if sys.stderr.isatty():
        bar = "#" * (BAR * done // total)
        sys.stderr.write(f"\r[{bar:-<{BAR}}] {count} {name[:WIDTH]:{WIDTH}}" + "\n" * (done == total))
    else:
        sys.stderr.write(f"{count} {name}\n")
    sys.stderr.flush()
