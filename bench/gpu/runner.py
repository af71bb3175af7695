"""Gives each stage its share of the time and a process of its own, and keeps all that it has written.

Stages share the seconds that are left in proportion to what they ask for, so what one leaves over goes to those behind
it. A process that crashes, or hangs in a case, loses that case alone: another goes on behind it. `lines.jsonl` has
every line of every process as it was written, `results.json` is made from it after each stage, `log.txt` is what was
printed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import IO, Any, NamedTuple

from gpu.child import LINES, LOST_DEVICE, Settings, append_line

BENCH = Path(__file__).parent.parent
POLL = 0.1  # seconds
GRACE = 5  # seconds beyond a deadline for the case that runs; cases look at it themselves
REAPED = 10  # seconds that a killed process may take to go; one that the driver holds is left behind

NAMED = 4  # cases that are listed by their names

Lines = list[dict[str, Any]]


class Stage(NamedTuple):
    """A part of the run."""

    name: str
    cases: str  # module:function
    seconds: float  # its share
    case_seconds: float = 60  # more than this and a case is held to hang
    own_kernels: bool = True  # has nothing to do where those of cuflash are not to run


def run_stages(
    stages: list[Stage], out: Path, seconds: float, about: dict[str, Any], baseline_only: bool = False
) -> dict[str, Any]:
    """Run all, keep results.json up to date, and return what it holds. `about` goes into it as it is."""
    out.mkdir(parents=True, exist_ok=True)
    (out / LINES).write_text("", encoding="utf-8")
    results: dict[str, Any] = {**about, "stages": {}, "left_out": []}
    end = time.time() + seconds
    wanted = [stage for stage in stages if not (baseline_only and stage.own_kernels)]
    with open(out / "log.txt", "w", encoding="utf-8") as log, tempfile.TemporaryDirectory() as kernels:
        run = Run(out, baseline_only, log, kernels)
        for index, stage in enumerate(wanted):
            share = (end - time.time()) * stage.seconds / sum(other.seconds for other in wanted[index:])
            start = time.time()
            print(f"{stage.name}: up to {max(share, 0):.0f} s ...", flush=True)
            problems = run_stage(stage, run, start + share)
            results["stages"][stage.name] = found = merge(lines_of(stage, out), problems)
            found["seconds"] = round(time.time() - start, 1)
            print(f"{stage.name}: {found['status']}, {found['seconds']} s", flush=True)
            results["left_out"] = list_left_out(results["stages"])
            write(out / "results.json", results)
    return results


class Run(NamedTuple):
    """What all stages share."""

    out: Path
    baseline_only: bool
    log: IO[str]
    kernels: str  # folder of compiled ones: cold at first


def run_stage(stage: Stage, run: Run, deadline: float) -> list[str]:
    """Run one stage to its end or deadline; returns what went wrong with its processes."""
    problems: list[str] = []
    while True:
        before = len(lines_of(stage, run.out))
        how = run_process(stage, run, deadline)
        lines = lines_of(stage, run.out)
        case = open_case(lines)
        if case is not None:
            append_line(run.out / LINES, {"stage": stage.name, "case": case, "status": how})
        if lines and lines[-1]["status"] == "end":
            return problems
        problems.append(f"{how} in {case}" if case else how)
        if len(lines) == before:  # not one case has begun
            return problems


def run_process(stage: Stage, run: Run, deadline: float) -> str:
    """One process, which runs the cases that have not begun, or past the deadline names them; says how it ended."""
    begun = [line["case"] for line in lines_of(stage, run.out) if line["status"] == "begun"]
    settings = Settings(str(run.out), deadline, tuple(begun), run.baseline_only)
    print(f"=== {stage.name}, behind {len(begun)} cases", file=run.log, flush=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "gpu.child", stage.name, stage.cases, json.dumps(settings._asdict())],
        stdin=subprocess.DEVNULL,
        stdout=run.log,
        stderr=subprocess.STDOUT,
        env={**environment(), "CUFLASH_CACHE_DIR": run.kernels},
        start_new_session=True,
    )
    count, moved = len(lines_of(stage, run.out)), time.time()
    latest = max(deadline, moved) + GRACE
    while process.poll() is None:
        time.sleep(POLL)
        if len(lines_of(stage, run.out)) != count:
            count, moved = len(lines_of(stage, run.out)), time.time()
        if time.time() > latest:
            return stop(process, "out of time")
        if time.time() - moved > stage.case_seconds:
            return stop(process, f"hung for {stage.case_seconds:g} s")
    code = process.returncode
    if code == LOST_DEVICE:
        return "lost the device"
    return f"crashed ({signal.Signals(-code).name if code < 0 else f'exit status {code}'})"


def environment() -> dict[str, str]:
    """For a process that finds these modules and cuflash, and prints what it prints at once."""
    paths = [str(BENCH), str(BENCH.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def stop(process: subprocess.Popen, reason: str) -> str:
    """End a process and those it has started."""
    os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(REAPED)
    except subprocess.TimeoutExpired:
        return f"{reason}; it does not end"
    return reason


def read_lines(out: Path) -> Lines:
    """All lines that are whole: the last one may have been cut off with its process."""
    lines = []
    for text in (out / LINES).read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def lines_of(stage: Stage, out: Path) -> Lines:
    """Those of one stage."""
    return [line for line in read_lines(out) if line["stage"] == stage.name]


def open_case(lines: Lines) -> str | None:
    """The case that has begun and not ended."""
    last = next((line for line in reversed(lines) if "case" in line), {})
    return last["case"] if last.get("status") == "begun" else None


def merge(lines: Lines, problems: list[str]) -> dict[str, Any]:
    """A stage's part of the results: the last line of each case, and a word on all."""
    cases: dict[str, dict[str, Any]] = {}
    for line in lines:
        if "case" in line:
            cases[line["case"]] = {key: line[key] for key in ("status", "seconds", "result", "error") if key in line}
    failed = sum(case["status"] not in ("ok", "left out", "no time") for case in cases.values())
    words = [f"{problem}{f' {count} times' if count > 1 else ''}" for problem, count in Counter(problems).items()]
    words += [f"{failed} of {len(cases)} cases failed"] if failed else []
    return {"status": "; ".join(words) or "done", "cases": cases}


def list_left_out(stages: dict[str, Any]) -> list[str]:
    """What was not looked at, and why."""
    texts = []
    for name, stage in stages.items():
        reasons: dict[str, list[str]] = {}
        for case, found in stage["cases"].items():
            if found["status"] not in ("ok", "error"):
                reasons.setdefault(found.get("error") or found["status"], []).append(case)
        texts += [f"{name}: {_list(cases)}: {reason}" for reason, cases in reasons.items()]
        if not stage["cases"]:
            texts.append(f"{name}: everything: {stage['status']}")
    return texts


def _list(cases: list[str]) -> str:
    return ", ".join(cases) if len(cases) <= NAMED else f"{len(cases)} cases, {cases[0]} first"


def write(path: Path, results: dict[str, Any]) -> None:
    """Replace a JSON file at once."""
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, path)
