"""The exceptions and warnings of cuflash, each a subclass of the built-in a caller would catch anyway.

A message names the function, the argument in backticks, what it has, what was expected and by whom, and the way out.
"""

from collections.abc import Sequence

__all__ = ["CacheFullError", "CompileError", "PerformanceWarning", "ProblemError", "UnsupportedError"]


class ProblemError(ValueError):
    """Shapes or option values that contradict each other."""


class UnsupportedError(NotImplementedError):
    """A valid request that nothing here can compute; the message names what is nearest."""


class CacheFullError(RuntimeError):
    """An append that does not fit the cache; nothing was written."""


class CompileError(RuntimeError):
    """A kernel that could not be compiled: its sources are incomplete, NVRTC is missing, or NVRTC refused it.

    Parameters
    ----------
    message : str
        What happened.
    log : str
        NVRTC's own words, empty where it was not asked.
    options : sequence of str
        What NVRTC was given.
    source : str, optional
        File with the text that NVRTC was given, where one could be written.

    Attributes
    ----------
    log : str
    options : tuple of str
    source : str or None
    """

    def __init__(self, message: str, log: str = "", options: Sequence[str] = (), source: str | None = None) -> None:
        super().__init__(message, log, tuple(options), source)
        self.log, self.options, self.source = log, tuple(options), source

    def __str__(self) -> str:
        lines = [str(self.args[0])]
        if self.log:
            lines.append(self.log.rstrip())
        if self.options:
            lines.append(f"options: {' '.join(self.options)}")
        if self.source is not None:
            lines.append(f"source: {self.source}")
        return "\n".join(lines)


class PerformanceWarning(UserWarning):
    """The result is right, but takes longer than it need; the message says why and what to do."""
