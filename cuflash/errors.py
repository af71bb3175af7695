"""The exceptions of cuflash, each a subclass of the built-in a caller would catch anyway.

A message names the function, the argument in backticks, what it has, what was expected and by whom, and the way out.
"""

__all__ = ["CacheFullError", "ProblemError", "UnsupportedError"]


class ProblemError(ValueError):
    """Shapes or option values that contradict each other."""


class UnsupportedError(NotImplementedError):
    """A valid request that nothing here can compute; the message names what is nearest."""


class CacheFullError(RuntimeError):
    """An append that does not fit the cache; nothing was written."""
