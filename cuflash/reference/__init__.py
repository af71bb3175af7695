"""The definition of every function, in NumPy alone: whole score matrices in float64, no tiles and no tricks.

The backends are tested against these functions, share no code with them, and follow the same papers. `dtype` chooses
the arithmetic: float64 is the reference for 16-bit types and float32, longdouble for float64; the input's own dtype is
the step-by-step evaluation that errors are measured against (sums of 16-bit values are accumulated in float32).

`options` are the semantic ones of `cuflash.attention`, with the same meaning and defaults: `causal`, `window`, `mask`,
`bias`, `scale`, `softcap`, `q_offset`, `kv_lengths`. Operands are taken as they are: the public functions check theirs.
"""

from cuflash.reference._attention import Gradients, attention, attention_backward, attention_weights
from cuflash.reference._decoding import decode
from cuflash.reference._transforms import merge, rotary
from cuflash.reference._varlen import attention_varlen, attention_varlen_backward

__all__ = [
    "Gradients", "attention", "attention_backward", "attention_varlen", "attention_varlen_backward",
    "attention_weights", "decode", "merge", "rotary",
]  # fmt: skip
