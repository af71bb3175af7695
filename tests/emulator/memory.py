"""The machine's global memory as NumPy arrays: each allocation lies between guard pages and is freed with its last
view. Kernels may read and write nothing else.
"""

import bisect
import weakref

import numpy as np
from addresses import Address

from emulator.library import machine

READ_ONLY, WRITE_ONCE, BETWEEN_BLOCKS, SPARSE = 1, 2, 4, 8  # as in machine.hpp

_live = weakref.WeakValueDictionary()  # allocations by address
_addresses = []  # rising: the machine gives none twice


class Allocation:
    """What the views of one allocation have as their base."""

    def __init__(self, nbytes, name, flags=0):
        self.address = machine().machine_create(max(nbytes, 1), name.encode(), flags)
        if not self.address:
            raise MemoryError(f"{nbytes} bytes for {name}")
        self.__array_interface__ = {"data": (self.address, False), "shape": (nbytes,), "typestr": "|u1", "version": 3}
        self.nbytes, self.sparse = nbytes, flags & SPARSE
        _live[self.address] = self
        bisect.insort(_addresses, self.address)
        weakref.finalize(self, _free, self.address)

    def describe(self, name, flags):
        """A name for findings, and what launches may do with it from now on."""
        machine().machine_describe(self.address, name.encode(), flags | self.sparse)


def _free(address):
    del _addresses[bisect.bisect_left(_addresses, address)]
    machine().machine_destroy(address)


def at(address):
    """The allocation that an address lies in, or None; the byte behind its last counts as in it."""
    place = bisect.bisect_right(_addresses, address) - 1
    found = _live.get(_addresses[place]) if place >= 0 else None
    return found if found is not None and address <= found.address + max(found.nbytes, 1) else None


def empty(shape, dtype, name="array", flags=0):
    """An array in C order, all bytes NaN; with SPARSE zeros, which take no memory until they are written."""
    dtype = np.dtype(dtype)
    nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    return np.asarray(Allocation(nbytes, name, flags))[:nbytes].view(dtype).reshape(shape)


def allocate(values, name="array"):
    """A copy in the machine's memory, in the same order of axes."""
    order = np.argsort([-abs(stride) for stride in values.strides], kind="stable")
    copy = empty([values.shape[axis] for axis in order], values.dtype, name).transpose(np.argsort(order))
    copy[...] = values
    return copy


def allocation_of(values):
    """The allocation that a view lies in, or None."""
    base = base_of(values)
    return base if isinstance(base, Allocation) else None


def base_of(values):
    """What a view is one of in the end."""
    while isinstance(values, np.ndarray):
        values = values.base
    return values


def on_device(values):
    """Whether a NumPy array is a view of the machine's memory, or stands for one."""
    return isinstance(base_of(values), (Allocation, Address))
