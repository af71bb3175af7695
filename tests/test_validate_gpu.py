"""bench/validate_gpu.py without a GPU: stages keep to their time and survive each other, and what is found is kept."""

import json
import os
import sys
import time
from pathlib import Path

import pytest
from gpu_bench import bench_modules

FAKE = """
import os, signal, subprocess, sys, time
from types import SimpleNamespace
from gpu.child import LeftOut

def good(settings):
    for i in range(3):
        yield f"case {i}", lambda i=i: {"square": i * i, "process": os.getpid()}

def mixed(settings):
    yield "first", lambda: "fine"
    yield "raises", lambda: 1 / 0
    yield "left out", leave_out
    yield "last", lambda: "fine"

def leave_out():
    raise LeftOut("not on this machine")

def crashing(settings):
    yield "first", os.getpid
    yield "crash", lambda: os.kill(os.getpid(), signal.SIGSEGV)
    yield "between", os.getpid
    yield "leave", lambda: os._exit(7)
    yield "last", os.getpid

def hanging(settings):
    yield "first", os.getpid
    yield "hang", hang
    yield "last", os.getpid

def hang():
    sleeper = subprocess.Popen(["sleep", "600"])
    print("sleeper", sleeper.pid, flush=True)
    time.sleep(600)

def slow(settings):
    for i in range(30):
        yield f"case {i}", lambda: time.sleep(0.1)

def endless(settings):
    yield "first", lambda: "fine"
    yield "hang", lambda: time.sleep(600)
    yield "last", lambda: "fine"

def told(settings):
    yield "settings", settings._asdict
    yield "seconds", lambda: settings.seconds_left

def broken(settings):
    raise RuntimeError("no cases")

def lost(settings):
    def wait():
        raise RuntimeError("the device is gone")
    sys.modules["cupy"] = SimpleNamespace(
        cuda=SimpleNamespace(runtime=SimpleNamespace(deviceSynchronize=wait)),
        get_default_memory_pool=lambda: SimpleNamespace(free_all_blocks=lambda: None),
    )
    yield "first", os.getpid
    yield "raises", lambda: 1 / 0
    yield "last", os.getpid
"""


@pytest.fixture
def gpu(monkeypatch):
    """Import a module of bench/ by its name."""
    yield from bench_modules(monkeypatch)


@pytest.fixture
def run(gpu, tmp_path, monkeypatch):
    """`run(*stages, seconds=)`: results of stages whose cases are in FAKE."""
    runner = gpu("gpu.runner")
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "fake.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    monkeypatch.setattr(runner, "POLL", 0.01)
    monkeypatch.setattr(runner, "GRACE", 0.3)

    def go(*stages, seconds=60, **options):
        stages = [(stage, {}) if isinstance(stage, str) else stage for stage in stages]
        stages = [runner.Stage(name, f"fake:{name}", **{"seconds": 1, **more}) for name, more in stages]
        return runner.run_stages(stages, tmp_path / "out", seconds, {"date": "2026-01-02"}, **options)

    go.out = tmp_path / "out"
    return go


def statuses(results, stage):
    return {name: case["status"] for name, case in results["stages"][stage]["cases"].items()}


# stages


def test_results_of_all_stages_are_merged_and_kept(run):
    results = run("good", "mixed")
    assert statuses(results, "good") == {"case 0": "ok", "case 1": "ok", "case 2": "ok"}
    assert [case["result"]["square"] for case in results["stages"]["good"]["cases"].values()] == [0, 1, 4]
    assert results["stages"]["good"]["status"] == "done"
    assert json.loads((run.out / "results.json").read_text()) == results
    assert results["date"] == "2026-01-02"


def test_a_case_that_raises_costs_no_other(run):
    results = run("mixed")
    assert statuses(results, "mixed") == {"first": "ok", "raises": "error", "left out": "left out", "last": "ok"}
    stage = results["stages"]["mixed"]
    assert stage["status"] == "1 of 4 cases failed"
    assert stage["cases"]["raises"]["error"].endswith("ZeroDivisionError: division by zero\n")
    assert results["left_out"] == ["mixed: left out: not on this machine"]


def test_a_crash_costs_its_case(run):
    results = run("crashing", "good")
    expected = {"first": "ok", "crash": "crashed (SIGSEGV)", "between": "ok", "leave": "crashed (exit status 7)"}
    assert statuses(results, "crashing") == {**expected, "last": "ok"}
    pids = {case["result"] for case in results["stages"]["crashing"]["cases"].values() if "result" in case}
    assert len(pids) == 3, "a process goes on behind each crash"
    assert results["stages"]["crashing"]["status"].startswith("crashed (SIGSEGV) in crash; crashed (exit status 7)")
    assert results["stages"]["good"]["status"] == "done"
    assert "crashing: crash: crashed (SIGSEGV)" in results["left_out"]


def test_a_device_that_is_lost_costs_the_process_and_no_more(run):
    results = run("lost")
    assert statuses(results, "lost") == {"first": "ok", "raises": "error", "last": "ok"}
    cases = results["stages"]["lost"]["cases"]
    assert cases["first"]["result"] != cases["last"]["result"]
    assert results["stages"]["lost"]["status"] == "lost the device; 1 of 3 cases failed"
    assert "ZeroDivisionError" in cases["raises"]["error"]


def test_a_case_that_hangs_is_ended_with_all_it_has_started(run):
    results = run(("hanging", {"case_seconds": 0.7}))
    assert statuses(results, "hanging") == {"first": "ok", "hang": "hung for 0.7 s", "last": "ok"}
    (pid,) = [line.split()[1] for line in (run.out / "log.txt").read_text().splitlines() if line.startswith("sleeper")]
    assert not running(pid)


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] not in "ZX"
    except OSError:
        return False


def test_a_stage_keeps_to_its_time_and_says_what_it_left_out(run):
    start = time.monotonic()
    results = run("slow", "good", seconds=3)
    assert time.monotonic() - start < 4.5
    found = list(statuses(results, "slow").values())
    done = found.count("ok")
    assert 3 < done < 20
    assert found == ["ok"] * done + ["no time"] * (30 - done)
    assert results["left_out"] == [f"slow: {30 - done} cases, case {done} first: no time"]
    assert results["stages"]["good"]["status"] == "done"


def test_a_case_that_runs_beyond_the_stage_is_ended(run):
    start = time.monotonic()
    results = run("endless", seconds=1)
    assert time.monotonic() - start < 3
    assert statuses(results, "endless") == {"first": "ok", "hang": "out of time", "last": "no time"}
    assert results["stages"]["endless"]["status"].startswith("out of time in hang")


def test_what_a_stage_leaves_is_for_those_behind_it(run):
    results = run(("good", {"seconds": 8}), "told", "slow", seconds=20)
    assert 7 < results["stages"]["told"]["cases"]["seconds"]["result"] <= 10


def test_cases_know_their_folder_and_whether_to_leave_our_kernels_out(run):
    results = run("good", ("told", {"own_kernels": False}), baseline_only=True)
    assert list(results["stages"]) == ["told"]
    settings = results["stages"]["told"]["cases"]["settings"]["result"]
    assert settings["baseline_only"] is True and settings["out"] == str(run.out)


@pytest.mark.parametrize("name", ["broken", "absent"])
def test_a_stage_that_never_begins_is_tried_once(name, run):
    results = run(name, "good")
    assert results["stages"][name] == {
        "status": "crashed (exit status 1)",
        "cases": {},
        "seconds": results["stages"][name]["seconds"],
    }
    assert f"{name}: everything: crashed (exit status 1)" in results["left_out"]
    assert (run.out / "log.txt").read_text().count(f"=== {name}") == 1
    assert results["stages"]["good"]["status"] == "done"


def test_a_line_that_was_cut_off_is_passed_over(gpu, tmp_path):
    runner, child = gpu("gpu.runner"), gpu("gpu.child")
    child.append_line(tmp_path / child.LINES, {"stage": "one", "case": "a", "status": "ok"})
    with open(tmp_path / child.LINES, "a") as file:
        file.write('{"stage": "one", "ca')
    assert runner.read_lines(tmp_path) == [{"stage": "one", "case": "a", "status": "ok"}]


# the command


@pytest.fixture
def command(gpu):
    return gpu("validate_gpu")


def test_every_stage_names_its_cases_without_a_gpu(gpu, command):
    names = {}
    for stage in command.STAGES:
        module, _, function = stage.cases.partition(":")
        cases = list(getattr(gpu(module), function)(gpu("gpu.child").Settings("nowhere", 0.0)))
        names[stage.name] = [name for name, _ in cases]
        assert len(set(names[stage.name])) == len(cases) > 0
    assert list(names) == command.NAMES
    assert "float16 d128 l8192 causal" in names["forward"] and "bfloat16 b32 l32768" in names["decode"]
    assert "cupy" not in sys.modules or not os.environ.get("CUDA_VISIBLE_DEVICES")


def test_all_stages_end_in_nine_minutes(gpu, command):
    runner = gpu("gpu.runner")
    assert command.SECONDS + runner.GRACE + runner.REAPED <= 540
    assert sum(stage.seconds for stage in command.STAGES) <= 540


def test_arguments(command, capsys):
    assert command.main(["--dry-run", "--stages", "probes", "forward", "--baseline-only"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == ["probes: gpu.checks:probe_cases, left out", "forward: gpu.attention:forward_cases, share 70"]
    for wrong in (["--stages", "all"], ["--seconds", "0"], ["--seconds", "soon"]):
        with pytest.raises(SystemExit) as stopped:
            command.main(wrong)
        assert stopped.value.code == 2


def test_without_a_gpu_nothing_runs(command, monkeypatch, capsys):
    monkeypatch.setattr(command, "run_stages", None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert command.main([]) == 2
    assert "no GPU: " in capsys.readouterr().err


def test_the_results_lie_under_the_name_of_the_gpu(command, monkeypatch, tmp_path, capsys):
    asked = []

    def run_stages(stages, out, seconds, about, baseline_only):
        asked.append((len(stages), out, seconds, about["gpu"], baseline_only))
        out.mkdir(exist_ok=True)
        return {**about, "stages": {"after": {"status": "done", "seconds": 1.0, "cases": {}}}, "left_out": []}

    monkeypatch.setattr(command, "gpu_name", lambda: "NVIDIA H200 (MIG)")
    monkeypatch.setattr(command, "run_stages", run_stages)
    monkeypatch.setattr(command, "BENCH", tmp_path)
    (tmp_path / "results").mkdir()
    assert command.main(["--baseline-only"]) == 0
    assert command.main(["--out", str(tmp_path / "mine"), "--seconds", "60"]) == 0
    assert asked[0][1:] == (tmp_path / "results" / "nvidia-h200-mig", command.SECONDS, "NVIDIA H200 (MIG)", True)
    assert asked[1][1:3] == (tmp_path / "mine", 60)
    assert (tmp_path / "mine" / "summary.txt").read_text() in capsys.readouterr().out


# the page at the end


def many_results():
    row = {
        "ms": {"cuflash": 2.0, "torch flash": 1.0, "cupy": 8.0}, "TFLOP/s": {"cuflash": 30.0, "torch flash": 60.0},
        "absent": {"triton": "wrong: off by 3e-02 of the norm", "torch cudnn": "RuntimeError: no"}, "host us": {},
    }  # fmt: skip
    cases = {f"float16 d128 l{l} full": {"status": "ok", "seconds": 1.0, "result": row} for l in range(400)}
    failures = [f"tests/test_x.py::test_{i}[cupy]: assert {'x' * 300}" for i in range(40)]
    tests = {"ended": "tests failed", "seconds": 9.0, "passed": 7, "failed": 40, "skipped": 2, "failures": failures}
    stages = {
        "environment": {"gpu": {"status": "ok", "result": {"name": "NVIDIA H200", "driver": "580"}}},
        "probes": {"ticket": {"status": "ok", "result": {"NumPy": ["sums: 3 differ"], "golden": []}}},
        "tests": {"quick": {"status": "ok", "result": tests}},
        "compile": {"fwd_simt": {"status": "error", "error": "Traceback\nCompileError: no\n"}},
        "forward": cases,
        "backward": cases,
        "decode": cases,
        "questions": {"start": {"status": "ok", "result": {"address": 1024}}},
    }
    stages = {name: {"status": "done", "seconds": 1.5, "cases": cases} for name, cases in stages.items()}
    return {"date": "2026-01-02 03:04", "stages": stages, "left_out": [f"decode: case {i}: no time" for i in range(50)]}


def test_the_page_is_short_and_has_what_matters(gpu):
    summary = gpu("gpu.summary")
    page = summary.text(many_results())
    assert len(page) <= summary.LENGTH
    for words in (
        "NVIDIA H200, driver 580, 2026-01-02 03:04",
        "ERROR compile, fwd_simt: CompileError: no",
        "PROBE ticket: NumPy ['sums: 3 differ']",
        "tests, quick: tests failed in 9.0 s: 7 passed, 40 failed, 2 skipped",
        "float16 d128 l0 full         2 ms 30; flash 0.5 cupy 4 triton WRONG",
        "... 376 more: see results.json",
        "question, start: {'address': 1024}",
        "decode: case 0: no time",
        "... 38 more: see results.json",
    ):
        assert words in page, words


def test_the_page_is_short_also_where_all_goes_wrong(gpu):
    summary, results = gpu("gpu.summary"), many_results()
    error = {"status": "error", "error": "x\n" + "y" * 500}
    for name in ("ceilings", "memory", "host", "after"):
        results["stages"][name] = {"status": "z" * 200, "seconds": 1.0, "cases": {}}
    for stage in results["stages"].values():
        cases = {f"{name} {'w' * 60}": case for name, case in stage["cases"].items()}
        stage["cases"] = {**cases, **{f"bad {i}": error for i in range(100)}}
    page = summary.text(results)
    assert len(page) <= summary.LENGTH
    assert "ERROR environment, bad 0 and 99 more: yyy" in page and page.endswith("... 38 more: see results.json")
    assert "more lines: see results.json" in page


def test_a_page_of_nothing(gpu):
    page = gpu("gpu.summary").text({"date": "today", "stages": {}, "left_out": []})
    assert page.startswith("no GPU, driver unknown, today\n") and page.endswith("left out: nothing")
