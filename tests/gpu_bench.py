"""What the tests of bench/validate_gpu.py share: its modules."""

import importlib
import sys
from pathlib import Path

BENCH = Path(__file__).parent.parent / "bench"


def bench_modules(monkeypatch):
    """For a fixture: a function that imports a module of bench/ by its name, and forgets it after the test."""
    monkeypatch.syspath_prepend(str(BENCH))
    yield importlib.import_module
    for name in [name for name in sys.modules if name.split(".")[0] in ("gpu", "validate_gpu")]:
        del sys.modules[name]
