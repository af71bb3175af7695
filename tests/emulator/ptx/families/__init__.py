"""The instruction families: each file registers its forms when it is imported. A new one is a file and a line here."""

from . import (  # noqa: F401
    approximations,
    atomics,
    collectives,
    comparisons,
    control,
    conversions,
    copies,
    floats,
    halves,
    integers,
    logic,
    matrices,
    memory,
    moves,
    synchronisation,
)
