"""From the library of a call's arrays to the backend that computes it. A backend is a module with the functions of
`cuflash._numpy`; each is imported when it is first needed.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import Any

from cuflash.errors import UnsupportedError

_BACKENDS: dict[str, str] = {"numpy": "cuflash._numpy"}


def backend(function: str, home: str) -> Any:
    """The backend for arrays of the library `home`."""
    if home not in _BACKENDS:
        raise UnsupportedError(
            f"{function}: {home} arrays have no backend in this version; it computes on numpy arrays: "
            "use cupy.asnumpy and cupy.asarray around the call"
        )
    return _load(_BACKENDS[home])


_load = lru_cache(import_module)
