"""Biases given by a rule in place of an array."""

from __future__ import annotations

from typing import Any

import numpy as np

from cuflash.errors import ProblemError


class Alibi:
    """Attention with linear biases: adds ``-slopes[h] * abs(i + q_offset - j)`` to the scores.

    Parameters
    ----------
    slopes : array_like, shape (hq,)
        One finite number per query head, per position of distance. Read when a call is made; not differentiated.

    Raises
    ------
    TypeError
        If the slopes are not real numbers.
    ProblemError
        If they are not one axis of finite numbers.

    References
    ----------
    Press, Smith, Lewis: "Train Short, Test Long: Attention with Linear Biases Enables Input Length Extrapolation",
    ICLR 2022.

    Examples
    --------
    >>> import numpy as np
    >>> import cuflash
    >>> q = np.zeros((2, 1, 4)); k = np.zeros((2, 3, 4))
    >>> cuflash.attention_weights(q, k, bias=cuflash.Alibi([1.0, 0.0])).round(3)
    array([[[0.09 , 0.245, 0.665]],
    <BLANKLINE>
           [[0.333, 0.333, 0.333]]])
    """

    __slots__ = ("slopes", "steepest")

    def __init__(self, slopes: Any) -> None:
        values = np.array(slopes)
        if values.dtype.kind not in "fiu":
            raise TypeError(f"Alibi: `slopes` must hold real numbers, got dtype {values.dtype}")
        if values.ndim != 1:
            raise ProblemError(f"Alibi: `slopes` must have one axis (hq,), got shape {values.shape}")
        if not np.isfinite(values).all():
            raise ProblemError("Alibi: `slopes` must be finite")
        self.slopes = values.astype(np.float64)
        self.slopes.flags.writeable = False
        self.steepest = float(np.abs(self.slopes).max(initial=0))

    def __repr__(self) -> str:
        return f"Alibi({self.slopes.tolist()})"
