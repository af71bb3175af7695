"""From the library of a call's arrays to the backend that computes it: an object, or a module, with the functions of
`cuflash._numpy`. Each is made when it is first needed.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Sequence
from functools import wraps
from importlib import import_module
from typing import Any, ParamSpec, TypeVar

from cuflash._problem import arrays
from cuflash.errors import UnsupportedError

Given = ParamSpec("Given")
Result = TypeVar("Result")

_backends: dict[str, Any] = {}
_thread = threading.local()  # `backend`: the one that stands for all in a thread, while there is one


def _numpy() -> Any:
    return import_module("cuflash._numpy")


def _cupy() -> Any:
    from cuflash._cuda import Backend
    from cuflash._runtime.cupy_runtime import runtime

    return Backend(runtime())


_MAKERS: dict[str, Callable[[], Any]] = {"numpy": _numpy, "cupy": _cupy}


def backend(function: str, home: str) -> Any:
    """The backend for arrays of the library `home`."""
    found = getattr(_thread, "backend", None) or _backends.get(home)
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


def prepared(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Have the calls of a public function found again where the backend of its first argument can."""

    @wraps(function)
    def call(*args: Given.args, **options: Given.kwargs) -> Result:
        found = find_prepared(function, args, options)
        result: Result = function(*args, **options) if found is None else found.run()
        return result

    return call


def find_prepared(function: Callable[..., Any], args: Sequence[Any], options: dict[str, Any]) -> Any:
    """A call that the backend of its first argument knows, or None; `run` of it returns what the function does."""
    home = arrays.known_library(type(args[0])) if args else None
    if home is None or home == "numpy":
        return None
    return backend(function.__name__, home).calls.find(function, args, options, _perform)


def _perform(made: Any, function: Callable[..., Any], args: Sequence[Any], options: dict[str, Any]) -> Any:
    """Call a function with one backend in place of all; no finaliser runs meanwhile, whose calls would go there too."""
    collects = gc.isenabled()
    gc.disable()
    _thread.backend = made
    try:
        return function(*args, **options)
    finally:
        _thread.backend = None
        if collects:
            gc.enable()
