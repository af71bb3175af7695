"""Everything that wants to be seen on a GPU, in one command: ``python bench/validate_gpu.py [--out DIR]``.

Probes beside NumPy and beside what a GPU gave before, compilation of every variant, the tests on CuPy arrays,
compute-sanitizer, questions that later kernels depend on, and benchmarks of every function beside the peers that are
installed. Each stage has a process and a share of the time of its own; whatever crashes or hangs, the rest is kept.

Needs one NVIDIA GPU, CuPy with NVRTC, and nothing from the network. Written are results.json (with the digest of
rawkernels/, versions and clocks), lines.jsonl (the same as it was found), log.txt (what was printed), and the probes'
golden data where there was none: to DIR, or to bench/results/<gpu>/. A short text comes last.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

BENCH = Path(__file__).resolve().parent
sys.path[:0] = [str(BENCH), str(BENCH.parent)]

from gpu import summary  # noqa: E402
from gpu.runner import Stage, environment, run_stages  # noqa: E402

SECONDS = 525.0  # under nine minutes
STAGES = [
    Stage("environment", "gpu.machine:cases", 20, own_kernels=False),
    Stage("probes", "gpu.checks:probe_cases", 35),
    Stage("compile", "gpu.checks:compile_cases", 50, case_seconds=120),
    Stage("tests", "gpu.checks:test_cases", 120, case_seconds=600),
    Stage("sanitizer", "gpu.checks:sanitizer_cases", 60, case_seconds=300),
    Stage("questions", "gpu.questions:cases", 25, case_seconds=30, own_kernels=False),
    Stage("ceilings", "gpu.machine:ceilings", 20, own_kernels=False),
    Stage("forward", "gpu.attention:forward_cases", 70, own_kernels=False),
    Stage("backward", "gpu.attention:backward_cases", 70, own_kernels=False),
    Stage("decode", "gpu.functions:decode_cases", 35, own_kernels=False),
    Stage("memory", "gpu.functions:memory_cases", 10),
    Stage("host", "gpu.functions:host_cases", 10, own_kernels=False),
    Stage("after", "gpu.machine:after", 5, own_kernels=False),
]
NAMES = [stage.name for stage in STAGES]


def main(arguments: list[str] | None = None) -> int:
    """Run what is asked for; the exit status is 0 where every case that ran was fine."""
    given = parser().parse_args(arguments)
    stages = [stage for stage in STAGES if stage.name in given.stages]
    if given.dry_run:
        for stage in stages:
            left_out = given.baseline_only and stage.own_kernels
            print(f"{stage.name}: {stage.cases}, {'left out' if left_out else f'share {stage.seconds:g}'}")
        return 0
    name = gpu_name()
    if name is None:
        print("no GPU: CuPy finds none, or cannot be imported", file=sys.stderr)
        return 2
    out = given.out or BENCH / "results" / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    about = {
        "gpu": name,
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "seconds": given.seconds,
        "stages asked": given.stages,
    }
    results = run_stages(
        stages, out, given.seconds, {**about, "baseline only": given.baseline_only}, given.baseline_only
    )
    page = summary.text(results)
    (out / "summary.txt").write_text(page + "\n", encoding="utf-8")
    print(f"\n{page}")
    return int(any(stage["status"] != "done" for stage in results["stages"].values()))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--stages", nargs="+", choices=NAMES, default=NAMES, metavar="STAGE", help=", ".join(NAMES))
    made.add_argument("--seconds", type=positive, default=SECONDS, help=f"for all stages ({SECONDS:g})")
    made.add_argument("--out", type=Path, metavar="DIR", help="for what is written (bench/results/<gpu>)")
    made.add_argument("--baseline-only", action="store_true", help="the machine and the peers, without our kernels")
    made.add_argument("--dry-run", action="store_true", help="say what would run")
    return made


def positive(text: str) -> float:
    """A number of seconds."""
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return number


def gpu_name() -> str | None:
    """Of the first GPU, asked in a process of its own: this one never loads the driver."""
    code = "from gpu import machine; print(machine.name())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    return run.stdout.strip() or None if run.returncode == 0 else None


if __name__ == "__main__":
    sys.exit(main())
