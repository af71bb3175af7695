"""Take every figure of docs/benchmarks.rst and the README's chart: ``python bench/measure.py [--only NAME ...]``.

Each benchmark runs in an interpreter of its own and writes docs/measured/NAME.json, from which the documentation makes
its tables. A quarter of an hour and 6 GB of memory, on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parent
DOCS = BENCH.parent / "docs"
JOBS = {  # name: script, arguments, environment
    "seeds": ("seeds.py", ("--chart", str(DOCS / "_static" / "seeds.svg")), {}),
    "attention": ("attention.py", (), {}),
    # What OpenBLAS runs on a CPU with AVX-512 that it does not know.
    "attention-avx2": ("attention.py", (), {"OPENBLAS_CORETYPE": "Haswell"}),
    "backward": ("backward.py", (), {}),
    "decode": ("decode.py", (), {}),
    "overhead": ("overhead.py", (), {}),
    "host": ("host.py", (), {}),
    "memory": ("memory.py", (), {}),
}


def main() -> None:
    """Run those that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=JOBS, nargs="+", default=JOBS, metavar="NAME", help=", ".join(JOBS))
    for name in parser.parse_args().only:
        script, arguments, environment = JOBS[name]
        command = [sys.executable, str(BENCH / script), *arguments, "--json", str(DOCS / "measured" / f"{name}.json")]
        print(f"\n=== {name}", flush=True)
        subprocess.run(command, env={**os.environ, **environment}, check=True)


if __name__ == "__main__":
    main()
