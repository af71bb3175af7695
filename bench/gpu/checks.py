"""Whether the kernels are right here: probes, what the compiler makes of every variant, tests, sanitizer."""

from __future__ import annotations

import glob
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from cuflash import _kernels
from cuflash._device import available_cores
from cuflash._kernels import KernelSpec
from gpu.child import Cases, LeftOut, Settings
from gpu.pytest_lines import PATH

ROOT = Path(__file__).parent.parent.parent
TESTS = ROOT / "tests"
QUICK = ("test_forward.py", "test_decode.py", "test_rotary_merge.py", "test_kv_cache.py")
MOST_FAILURES = 40  # that are kept word for word
WORKERS = 4  # processes that share the GPU where pytest-xdist is installed
SANITIZER_PLACES = ("/usr/local/cuda*/bin", "/usr/local/cuda*/compute-sanitizer", "/opt/nvidia/*/*", "/opt/cuda/bin")
TAIL = 1500  # characters kept of what a program printed
FIRST_CALL = """
import time, cupy, cuflash
x = cupy.ones((1, 2, 128, 64), cupy.float32)
cupy.cuda.Device().synchronize()
for _ in range(2):
    start = time.perf_counter()
    cuflash.attention(x, x, x)
    cupy.cuda.Device().synchronize()
    print(time.perf_counter() - start)
"""


# ---- probes --------------------------------------------------------------------------------------------------------


def probe_cases(settings: Settings) -> Cases:
    """Every probe against NumPy and against what a GPU gave before, which is recorded where there is nothing yet."""
    sys.path.insert(0, str(TESTS))
    import probes

    for name in probes.MAKERS:
        yield name, partial(run_probe, settings, name)


def run_probe(settings: Settings, name: str) -> dict[str, Any]:
    """Differences are text, none is an empty list. Results that NumPy contradicts are not recorded."""
    import golden_probes
    import probes

    from cuflash._runtime import cupy_runtime
    from gpu import machine

    probe = probes.make(name)
    found = probes.run(cupy_runtime.runtime(), probe)
    wrong = probes.differences(found, probe.expected, probe.ulps)
    results, about = golden_probes.read_golden()
    known = results.get(probe.key)
    if known is not None:
        return {"NumPy": wrong, "golden": probes.differences(found, known, 2 * probe.ulps)}
    if not wrong:
        results[probe.key] = found
        about[probe.key] = {"probe": name, "gpu": machine.name(), "date": time.strftime("%Y-%m-%d")}
        golden_probes.write_golden(results, about)
        shutil.copy(golden_probes.GOLDEN, Path(settings.out) / "golden-probes.npz")
    return {"NumPy": wrong, "golden": "recorded" if not wrong else "not recorded"}


# ---- compilation ---------------------------------------------------------------------------------------------------


def compile_cases(settings: Settings) -> Cases:
    """Every variant for this GPU, on all cores at once; before and behind that the first call of a fresh process."""
    yield "first call, nothing compiled", lambda: first_call(None)
    compiler = Compiler(_kernels.variants())
    for variant in compiler.variants:
        yield _kernels.file_name(variant, "").removesuffix("-.cubin"), partial(compiler.result, variant)
    yield "first call, from disk", lambda: first_call(os.environ["CUFLASH_CACHE_DIR"])


class Compiler:
    """Compiles all variants from the moment that one is asked for."""

    def __init__(self, variants: list[KernelSpec]) -> None:
        self.variants = variants

    @cached_property
    def _futures(self) -> dict[KernelSpec, Future]:
        from cuflash._runtime import cupy_runtime

        arch = cupy_runtime.runtime().gpu().arch
        pool = ThreadPoolExecutor(available_cores())
        return {variant: pool.submit(self._compile, variant, arch) for variant in self.variants}

    def _compile(self, variant: KernelSpec, arch: str) -> dict[str, Any]:
        from cuflash._runtime import images

        if not _kernels.runs_on(variant, arch):
            return {"left out": f"{arch} has no such instructions"}
        start = time.perf_counter()
        compiled = images.obtain(variant, arch)
        taken = time.perf_counter() - start
        facts = {"registers": compiled.registers, "spill bytes": compiled.spill_bytes, "bytes": len(compiled.image)}
        return {**facts, "compiled in": round(taken, 3)}

    def result(self, variant: KernelSpec) -> dict[str, Any]:
        """Of one variant, when it is done."""
        return self._futures[variant].result()


def first_call(cache: str | None) -> dict[str, float]:
    """Seconds of the first and the second call in a new process; with no folder given, in an empty one."""
    with tempfile.TemporaryDirectory() as empty:
        environment = {**os.environ, "CUFLASH_CACHE_DIR": cache or empty}
        run = subprocess.run([sys.executable, "-c", FIRST_CALL], capture_output=True, text=True, env=environment)
    if run.returncode:
        raise RuntimeError(run.stderr[-TAIL:])
    first, second = map(float, run.stdout.split())
    return {"first": first, "second": second}


# ---- tests ---------------------------------------------------------------------------------------------------------


def test_cases(settings: Settings) -> Cases:
    """The tests of the backend `cupy`: a few files first, then all others."""
    yield "quick", lambda: run_tests(settings, "quick", [str(TESTS / name) for name in QUICK], 0.5)
    yield "rest", lambda: run_tests(settings, "rest", [str(TESTS), *(f"--ignore={TESTS / name}" for name in QUICK)], 1)


def run_tests(settings: Settings, name: str, arguments: list[str], share: float) -> dict[str, Any]:
    """Counts and failures; a run that is stopped for its time keeps those that have ended."""
    lines = Path(settings.out) / f"tests-{name}.jsonl"
    lines.write_text("", encoding="utf-8")
    workers = ["-n", str(WORKERS)] if importlib.util.find_spec("xdist") else []
    command = [sys.executable, "-m", "pytest", "-q", "-k", "cupy", "-p", "gpu.pytest_lines", *workers, *arguments]
    start, limit = time.monotonic(), share * settings.seconds_left
    try:
        code = subprocess.run(command, cwd=ROOT, env={**os.environ, PATH: str(lines)}, timeout=limit).returncode
        ended = {0: "all passed", 1: "tests failed", 5: "no test has this backend"}.get(code, f"exit status {code}")
    except subprocess.TimeoutExpired:
        ended = f"stopped after {limit:.0f} s"
    return {"ended": ended, "seconds": round(time.monotonic() - start, 1), **count_tests(lines)}


def count_tests(lines: Path) -> dict[str, Any]:
    """What the plugin has written: how many of each outcome, and the first failures."""
    found = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    counts = {kind: sum(line["outcome"] == kind for line in found) for kind in ("passed", "failed", "skipped")}
    failures = [f"{line['test']}: {line['message']}" for line in found if line["outcome"] == "failed"]
    return {**counts, "failures": failures[:MOST_FAILURES]}


# ---- compute-sanitizer ---------------------------------------------------------------------------------------------


def sanitizer_cases(settings: Settings) -> Cases:
    """memcheck and racecheck over one small call of every function."""
    yield "memcheck", lambda: sanitize(settings, "memcheck", 0.5)
    yield "racecheck", lambda: sanitize(settings, "racecheck", 0.9)


def sanitize(settings: Settings, tool: str, share: float) -> dict[str, Any]:
    """What the tool's summary says, and the end of what it printed where that is not zero."""
    program = find_sanitizer()
    if program is None:
        raise LeftOut(f"compute-sanitizer is neither on the PATH nor in {', '.join(SANITIZER_PLACES)}")
    command = [program, "--tool", tool, "--print-limit", "20"]
    script = [sys.executable, "-m", "gpu.every_function"]
    limit = share * settings.seconds_left
    printed, ended = run_for(limit, [*command, "--kernel-name", "kns=cuflash_", *script])
    if re.search(r"unrecogni[sz]ed option", printed):
        printed, ended = run_for(limit, [*command, *script])
    return read_sanitizer(printed, ended)


def run_for(seconds: float, command: list[str]) -> tuple[str, str]:
    """What a program printed, and how it ended; it is stopped after so many seconds."""
    try:
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds)
    except subprocess.TimeoutExpired as stopped:
        return (stopped.stdout or b"").decode(errors="replace"), f"stopped after {seconds:.0f} s"
    return run.stdout.decode(errors="replace"), f"exit status {run.returncode}"


def read_sanitizer(printed: str, ended: str) -> dict[str, Any]:
    """Errors (None where there is no summary), functions that ran, and text where something is wrong."""
    found = re.search(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard", printed)
    errors = int(found[1] or found[2]) if found else None
    functions = re.findall(r"^ran: (.*)$", printed, re.MULTILINE)
    result = {"errors": errors, "ended": ended, "functions": functions}
    return result if errors == 0 and ended == "exit status 0" else {**result, "printed": printed[-TAIL:]}


def find_sanitizer() -> str | None:
    """The program, also where it is not on the PATH: of CUDA, of a profiler, or in a Python package."""
    found = shutil.which("compute-sanitizer")
    folders = [*SANITIZER_PLACES, *(f"{path}/nvidia/*/bin" for path in sys.path if path)]
    return found or next((path for folder in folders for path in glob.glob(f"{folder}/compute-sanitizer")), None)
