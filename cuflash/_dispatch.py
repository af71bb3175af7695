"""From the library of a call's arrays to the backend that computes it: an object, or a module, with the functions of
`cuflash._numpy`. Each is made when it is first needed.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from cuflash._problem import arrays
from cuflash.errors import UnsupportedError

_backends: dict[str, Any] = {}


def _numpy() -> Any:
    return import_module("cuflash._numpy")


def _cupy() -> Any:
    from cuflash._cuda import Backend
    from cuflash._runtime.cupy_runtime import runtime

    return Backend(runtime())


_MAKERS: dict[str, Callable[[], Any]] = {"numpy": _numpy, "cupy": _cupy}


def backend(function: str, home: str) -> Any:
    """The backend for arrays of the library `home`."""
    found = _backends.get(home)
    if found is None:
        if home not in _MAKERS:
            raise UnsupportedError(
                f"{function}: {home} arrays have no backend in this version; it computes on numpy and cupy arrays"
            )
        found = _backends[home] = _MAKERS[home]()
    return found


def register(home: str, kind: type, made: Any) -> None:
    """Have arrays of type `kind`, which lie on a device, computed by the backend `made`."""
    arrays.register(kind, home)
    _backends[home] = made
