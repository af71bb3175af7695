"""The results as a page of text: the last thing that is printed, and short enough to be read where output is cut."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

LENGTH = 11_500  # characters
WIDTH = 118
CHECKS, LEFT_OUT = 40, 12  # lines at most
FIGURES = {"forward": 24, "backward": 24, "decode": 18, "memory": 15, "host": 15}

Found = dict[str, Any]


def text(results: Found) -> str:
    """Most important first; where it is too long benchmarks are left out, and what was left out still stands last."""
    stages = results["stages"]
    head = [*_machine(results), "", *_stages(stages), "", *_shorten(list(_checks(stages)), CHECKS)]
    left_out = [f"  {line}" for line in _shorten(results["left_out"], LEFT_OUT)]
    tail = ["", *_questions(stages), "", "left out:" if left_out else "left out: nothing", *left_out]
    head, tail = ([line[:WIDTH] for line in lines] for lines in (head, tail))
    figures = [line[:WIDTH] for line in _figures(stages)]
    room = LENGTH - sum(len(line) + 1 for line in [*head, *tail])
    kept: list[str] = []
    for line in figures:
        if room < len(line) + 60:
            kept.append(f"... {len(figures) - len(kept)} more lines: see results.json")
            break
        kept.append(line)
        room -= len(line) + 1
    return "\n".join([*head, *kept, *tail])


def _shorten(lines: list[str], most: int) -> list[str]:
    return lines if len(lines) <= most else [*lines[:most], f"... {len(lines) - most} more: see results.json"]


def _result(stages: Found, stage: str, case: str) -> Any:
    return stages.get(stage, {}).get("cases", {}).get(case, {}).get("result") or {}


def _ok(stages: Found, stage: str) -> Iterator[tuple[str, Any]]:
    """Name and result of the cases that have one."""
    for name, case in stages.get(stage, {}).get("cases", {}).items():
        if case["status"] == "ok":
            yield name, case["result"]


def _machine(results: Found) -> Iterator[str]:
    stages = results["stages"]
    gpu, versions = _result(stages, "environment", "gpu"), _result(stages, "environment", "versions")
    names = ("cupy-cuda13x", "cupy-cuda12x", "NVRTC", "torch", "triton", "numpy", "python")
    yield f"{gpu.get('name', 'no GPU')}, driver {gpu.get('driver', 'unknown')}, {results['date']}"
    yield ", ".join(f"{name} {versions[name]}" for name in names if name in versions)
    digests = _result(stages, "environment", "digests")
    yield ", ".join(f"{name} {digest}" for name, digest in digests.items())
    for stage in ("environment", "ceilings", "after"):
        if clocks := _result(stages, stage, "clocks"):
            yield f"clocks, {stage}: " + ", ".join(f"{name} {value}" for name, value in clocks.items())
    for name, found in _ok(stages, "ceilings"):
        if name != "clocks":
            yield f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in found.items())


def _stages(stages: Found) -> Iterator[str]:
    for name, stage in stages.items():
        counts: dict[str, int] = {}
        for case in stage["cases"].values():
            kind = case["status"].split(" ")[0] if case["status"].startswith(("hung", "crashed")) else case["status"]
            counts[kind] = counts.get(kind, 0) + 1
        cases = ", ".join(f"{count} {status}" for status, count in counts.items())
        yield f"{name:16} {stage['seconds']:6.1f} s  {cases or 'no case'}; {stage['status']}"


def _checks(stages: Found) -> Iterator[str]:
    for name, stage in stages.items():
        errors: dict[str, list[str]] = {}
        for case, found in stage["cases"].items():
            if found["status"] == "error":
                errors.setdefault((found["error"].strip().splitlines() or [""])[-1], []).append(case)
        for error, cases in errors.items():
            yield f"ERROR {name}, {cases[0]}{f' and {len(cases) - 1} more' if cases[1:] else ''}: {error}"
    for name, found in _ok(stages, "probes"):
        if found["NumPy"] or found["golden"] not in ("recorded", []):
            yield f"PROBE {name}: NumPy {found['NumPy']}, golden {found['golden']}"
    variants = [(name, found) for name, found in _ok(stages, "compile") if "registers" in found]
    if variants:
        slowest = max(variants, key=lambda pair: pair[1]["compiled in"])
        yield f"compiled: {len(variants)} variants, slowest {slowest[1]['compiled in']} s ({slowest[0]})"
        for name, found in variants:
            if found["spill bytes"]:
                yield f"SPILLS {name}: {found['spill bytes']} bytes"
    for case in ("first call, nothing compiled", "first call, from disk"):
        if found := _result(stages, "compile", case):
            yield f"{case}: {found['first']:.3f} s, the next {1e3 * found['second']:.2f} ms"
    for name, found in _ok(stages, "tests"):
        counts = ", ".join(f"{found[kind]} {kind}" for kind in ("passed", "failed", "skipped"))
        yield f"tests, {name}: {found['ended']} in {found['seconds']} s: {counts}"
        yield from (f"FAILED {failure}".replace("\n", " ") for failure in found["failures"][:10])
    for name, found in _ok(stages, "sanitizer"):
        ran = len(found["functions"])
        yield f"{name}: {found['errors']} errors, {ran} functions ran, {found['ended']}"


def _figures(stages: Found) -> Iterator[str]:
    """A line for each benchmark: ours first, then each peer's time as a multiple of ours."""
    for stage, most in FIGURES.items():
        found = list(_ok(stages, stage))
        if not found:
            continue
        if stage in ("forward", "backward", "decode"):
            yield f"{stage}: ms; TFLOP/s or GB/s; peers' times over ours"
            lines = [f"{name:28} {_row(row)}" for name, row in found]
        else:
            yield f"{stage}:"
            lines = [f"{name:36} {', '.join(f'{key} {value}' for key, value in row.items())}" for name, row in found]
        yield from (f"  {line}" for line in _shorten(lines, most))


def _row(row: Found) -> str:
    """Without cuflash the fastest peer comes first."""
    taken = row["ms"]
    if not taken:
        return "; ".join(f"{name}: {why}" for name, why in row["absent"].items()) or "nothing was timed"
    first = "cuflash" if "cuflash" in taken else min(taken, key=taken.get)
    rate = f"{row['GB/s'][first]:.0f} GB/s" if "GB/s" in row else f"{row['TFLOP/s'][first]:.3g}"
    shown = "" if first == "cuflash" else f"{first} "
    ratios = " ".join(
        f"{name.removeprefix('torch ')} {taken[name] / taken[first]:.2g}" for name in taken if name != first
    )
    wrong = " ".join(f"{name} WRONG" for name, why in row["absent"].items() if why.startswith("wrong"))
    return f"{shown}{taken[first]:.4g} ms {rate}; {ratios} {wrong}".rstrip()


def _questions(stages: Found) -> Iterator[str]:
    for name, found in _ok(stages, "questions"):
        yield f"question, {name}: {found}"
