"""The NumPy backend: tiled attention made readable, and what runs on a machine without a GPU.

`threads` runs blocks on all cores with BLAS held to one thread, `scores` makes one score tile with every option
applied, `online_softmax` is the running (max, sum, output) of a block of rows; `forward` and `backward` walk the tiles.
"""

from cuflash._numpy.backward import backward
from cuflash._numpy.cache import append, copy_pages, zeros
from cuflash._numpy.forward import decode, forward, weights
from cuflash._numpy.merge import merge
from cuflash._numpy.rotary import rotary
from cuflash._numpy.varlen import backward_varlen, forward_varlen

__all__ = [
    "append", "backward", "backward_varlen", "copy_pages", "decode", "forward", "forward_varlen", "merge", "rotary",
    "weights", "zeros",
]  # fmt: skip
