"""Comparing results as the accuracy guarantee is worded: against the error of the plain formula, not a constant."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["assert_accurate"]

_ULPS = 4  # units in the last place of the largest exact number that are always allowed


def assert_accurate(actual: Any, exact: Any, stepwise: Any, *, factor: float = 2.0) -> None:
    """Fail unless `actual` is about as accurate as the same formula evaluated step by step.

    The rule of FlashAttention's own tests: ``max|actual - exact| <= factor * max|stepwise - exact|``, plus a few
    units in the last place of the largest exact number, for where the step-by-step result happens to be close.
    Infinities must stand in the same places; a NaN is always a failure.

    Parameters
    ----------
    actual : array
        The result under test, in its own dtype.
    exact : array
        The reference, in a wider dtype.
    stepwise : array
        The formula evaluated in the dtype of the inputs, sums of 16-bit values accumulated in float32.
    factor : float
        How many times the error of `stepwise` is allowed.

    Raises
    ------
    AssertionError
        Naming the worst element, its error, and the bound.

    References
    ----------
    Dao et al., "FlashAttention", 2022, and the tests that ship with it.

    Examples
    --------
    >>> import numpy as np
    >>> from cuflash import reference, testing
    >>> import cuflash
    >>> x = np.random.default_rng(0).standard_normal((5, 64), dtype=np.float32)
    >>> exact, stepwise = (reference.attention(x, x, x, dtype=dtype) for dtype in (np.float64, np.float32))
    >>> testing.assert_accurate(cuflash.attention(x, x, x), exact, stepwise)
    """
    actual, exact, stepwise = (np.asarray(x) for x in (actual, exact, stepwise))
    epsilon = _epsilon(actual.dtype)
    if not actual.shape == exact.shape == stepwise.shape:
        raise AssertionError(f"shapes differ: actual {actual.shape}, exact {exact.shape}, stepwise {stepwise.shape}")
    wide = np.promote_types(exact.dtype, np.float64)
    actual, exact, stepwise = (x.astype(wide) for x in (actual, exact, stepwise))
    finite = np.isfinite(exact)
    misplaced = ~np.where(finite, np.isfinite(actual), actual == exact)
    if misplaced.any():
        where = _first(misplaced)
        raise AssertionError(f"{misplaced.sum()} elements: at {where} is {actual[where]}, expected {exact[where]}")
    if not np.isfinite(stepwise[finite]).all():
        raise AssertionError("the step-by-step result is not finite where the exact one is: it is no yardstick here")
    error, allowed = (np.abs(np.where(finite, x, 0) - np.where(finite, exact, 0)) for x in (actual, stepwise))
    scale = np.abs(exact[finite]).max(initial=0)
    bound = factor * allowed.max(initial=0) + _ULPS * epsilon * scale
    if error.max(initial=0) > bound:
        where = _first(error == error.max())
        raise AssertionError(
            f"{(error > bound).sum()} of {error.size} elements: at {where} is {actual[where]:.9g}, expected "
            f"{exact[where]:.9g}; the error {error[where]:.3g} exceeds {bound:.3g}, which is {factor:g} times that of "
            f"the step-by-step result, {allowed.max():.3g}, and {_ULPS} ulps of {scale:.3g}"
        )


def _epsilon(dtype: Any) -> float:
    """Distance from 1 to the next number of a dtype, bfloat16 among them."""
    if dtype.kind == "f":
        return float(np.finfo(dtype).eps)
    import ml_dtypes

    finfo: Any = ml_dtypes.finfo
    return float(finfo(dtype).eps)


def _first(where: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(where)[0])
