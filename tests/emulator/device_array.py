"""Arrays that live in the machine's memory and behave as CuPy's do: results of any computation are device arrays, and
whatever would have to look at a value on the host raises `HostRead`.

They are no subclass of numpy.ndarray, as CuPy's are none: `numpy.asarray` would read a subclass without a word, and
code that asks `isinstance(x, numpy.ndarray)` would take the wrong turn here and the right one on a GPU.
"""

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from emulator.memory import allocate, on_device


class HostRead(AssertionError):
    """Something on the host looked at the values of a device array: on a GPU that waits for all work in flight."""


# Functions that CuPy has under the same name, and that do not look at values.
ALLOWED = {
    np.broadcast_to, np.clip, np.concatenate, np.copyto, np.diff, np.empty_like, np.expand_dims, np.moveaxis,
    np.reshape, np.squeeze, np.stack, np.swapaxes, np.transpose, np.where, np.zeros_like,
}  # fmt: skip


class DeviceArray(NDArrayOperatorsMixin):
    """A view of device memory. `_values` is for the tests' runtime alone."""

    __module__ = "emulator"
    __slots__ = ("__weakref__", "_values")
    __array_priority__ = 100
    __hash__ = None

    def __init__(self, values):
        self._values = values

    shape = property(lambda self: self._values.shape)
    strides = property(lambda self: self._values.strides)
    dtype = property(lambda self: self._values.dtype)
    ndim = property(lambda self: self._values.ndim)
    size = property(lambda self: self._values.size)
    nbytes = property(lambda self: self._values.nbytes)
    itemsize = property(lambda self: self._values.itemsize)
    flags = property(lambda self: self._values.flags)
    T = property(lambda self: DeviceArray(self._values.T))
    device = property(lambda self: 0)
    data = property(lambda self: DevicePointer(self._values.ctypes.data))

    def __len__(self):
        return len(self._values)

    def __repr__(self):
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype})"

    def __getitem__(self, index):
        return wrap(self._values[indices(index)])

    def __setitem__(self, index, value):
        if isinstance(value, np.ndarray) and value.ndim:
            raise TypeError("a NumPy array cannot be assigned to a device array; use the runtime's asarray")
        self._values[indices(index)] = unwrap(value)

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **keywords):
        mixed = [x for x in (*inputs, *(out or ())) if isinstance(x, np.ndarray) and x.ndim]
        if mixed:
            return NotImplemented
        if out is not None:
            keywords["out"] = tuple(unwrap(x) for x in out)
        return wrap(getattr(ufunc, method)(*(unwrap(x) for x in inputs), **keywords))

    def __array_function__(self, function, types, args, keywords):
        if function not in ALLOWED:
            return NotImplemented
        args = [[unwrap(x) for x in arg] if isinstance(arg, (list, tuple)) else unwrap(arg) for arg in args]
        return wrap(function(*args, **{name: unwrap(value) for name, value in keywords.items()}))

    def __deepcopy__(self, memo):
        return moved(self._values)

    def __reduce__(self):
        """As CuPy's, which waits for the device, too."""
        return moved, (np.array(self._values),)

    def _read(self, *_, **__):
        raise HostRead(f"the host looks at the values of {self!r}")

    __array__ = __bool__ = __int__ = __float__ = __complex__ = __index__ = __iter__ = __contains__ = _read
    item = tolist = tobytes = get = dump = _read


class DevicePointer:
    """As `cupy.ndarray.data`: where element 0 lies."""

    __slots__ = ("ptr",)
    device_id = 0

    def __init__(self, ptr):
        self.ptr = ptr


def _method(name):
    def call(self, *args, **keywords):
        keywords = {key: unwrap(value) for key, value in keywords.items()}
        return wrap(getattr(self._values, name)(*map(unwrap, args), **keywords))

    call.__name__ = name
    return call


for _name in ("all", "any", "argmax", "astype", "clip", "copy", "fill", "max", "min", "prod", "ravel", "reshape",
              "squeeze", "sum", "swapaxes", "transpose", "view"):  # fmt: skip
    setattr(DeviceArray, _name, _method(_name))


def wrap(result):
    """What NumPy made of device arrays, as device arrays again: a view stays where it is, a new array moves there."""
    if isinstance(result, (tuple, list)):
        return type(result)(wrap(x) for x in result)
    if result is None:
        return None
    values = np.asarray(result)
    return DeviceArray(values if on_device(values) else allocate(values))


def moved(values):
    """A copy on the device."""
    return DeviceArray(allocate(values))


def unwrap(value):
    """The memory behind a device array; any other value unchanged."""
    return value._values if isinstance(value, DeviceArray) else value


def indices(index):
    """An index with device arrays in it, as NumPy takes it."""
    return tuple(map(unwrap, index)) if isinstance(index, tuple) else unwrap(index)
