"""Read a safetensors file with NumPy alone.

The format: 8 bytes of little-endian length, so many bytes of JSON, then the arrays' bytes. The JSON maps each name to
its dtype, shape and ``data_offsets`` [begin, end) in the bytes, and ``__metadata__`` to strings.
"""

from __future__ import annotations

import json
import math
import os

import numpy as np

DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I32": "<i4", "I64": "<i8", "U8": "|u1"}


def read_safetensors(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the arrays and the metadata of a safetensors file.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    arrays : dict of arrays
        Read-only views of one buffer.
    metadata : dict of strings

    Raises
    ------
    ValueError
        If the file is cut off, is not of this format, or has a dtype that is not in `DTYPES`.
    """
    with open(path, "rb") as file:
        content = file.read()
    header_bytes = int.from_bytes(content[:8], "little")
    try:
        if not 2 <= header_bytes <= len(content) - 8:
            raise ValueError("the header is cut off")
        header = json.loads(content[8 : 8 + header_bytes])
        metadata = header.pop("__metadata__", {})
        data = memoryview(content)[8 + header_bytes :]
        return {name: _view(data, name, **entry) for name, entry in header.items()}, metadata
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"read_safetensors: `path` {str(path)!r} is not a safetensors file of NumPy dtypes: {error}"
        ) from None


def _view(data: memoryview, name: str, *, dtype: str, shape: list[int], data_offsets: list[int]) -> np.ndarray:
    """Return the array `name` at its place in `data`, once its size and place are seen to agree."""
    if dtype not in DTYPES:
        raise ValueError(f"{name!r} is {dtype}, expected one of {', '.join(DTYPES)}")
    begin, end = data_offsets
    if not 0 <= begin <= end <= len(data) or end - begin != math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize:
        raise ValueError(f"{name!r} of shape {shape} lies at bytes {begin} to {end} of {len(data)}")
    return np.frombuffer(data[begin:end], DTYPES[dtype]).reshape(shape)
