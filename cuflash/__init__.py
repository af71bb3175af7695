"""cuflash: exact tiled attention and split-KV decoding as NumPy-style functions.

``cuflash.attention(q, k, v, causal=True)`` takes arrays and gives the same kind of array back; no deep-learning
framework is needed. Importing the package imports NumPy alone.
"""

from __future__ import annotations

from typing import Any

from cuflash import errors, masks
from cuflash._attention import Gradients, attention, attention_backward, attention_vjp, attention_weights, merge, rotary
from cuflash._bias import Alibi
from cuflash._decoding import decode
from cuflash._tools import explain, selftest, show_config
from cuflash._varlen import attention_varlen, attention_varlen_backward
from cuflash._warmup import warmup
from cuflash.errors import CacheFullError, CompileError, PerformanceWarning, ProblemError, UnsupportedError
from cuflash.kv_cache import KVCache
from cuflash.paged_kv_cache import PagedKVCache

__version__ = "0.1.0"

__all__ = [
    "Alibi", "CacheFullError", "CompileError", "Gradients", "KVCache", "PagedKVCache", "PerformanceWarning",
    "ProblemError", "UnsupportedError", "attention", "attention_backward", "attention_varlen",
    "attention_varlen_backward", "attention_vjp", "attention_weights", "decode", "errors", "explain", "masks", "merge",
    "reference", "rotary", "selftest", "show_config", "testing", "warmup",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """`cuflash.reference` and `cuflash.testing`, imported when first asked for."""
    if name in ("reference", "testing"):
        from importlib import import_module

        return import_module(f"cuflash.{name}")
    raise AttributeError(f"module 'cuflash' has no attribute {name!r}")
