"""What bench/validate_gpu.py runs on a GPU, as far as it can be seen without one: on NumPy, and with stand-ins."""

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from gpu_bench import BENCH, bench_modules

import cuflash
from cuflash import _kernels, reference
from cuflash._bench import timing
from cuflash._bench.timing import GpuTimes, Peer
from cuflash._device import Gpu
from cuflash._runtime import cupy_runtime, images
from cuflash._runtime.nvrtc import Compiled


@pytest.fixture
def gpu(monkeypatch):
    """Import a module of bench/ by its name."""
    yield from bench_modules(monkeypatch)


# tests and sanitizer


TESTS = """
import time, pytest

@pytest.mark.parametrize("backend", ["numpy", "cupy"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_numbers(backend, number):
    assert number < 3

@pytest.mark.skip("not here")
@pytest.mark.parametrize("backend", ["cupy"])
def test_skipped(backend):
    pass

@pytest.fixture
def broken():
    raise RuntimeError("no fixture")

@pytest.mark.parametrize("backend", ["cupy"])
def test_broken(backend, broken):
    pass

@pytest.mark.parametrize("backend", ["cupy"])
def test_wait(backend):
    time.sleep({wait})
"""


@pytest.mark.parametrize(("wait", "seconds"), [(0, 60), (30, 4)])
def test_tests_are_counted_also_where_they_are_stopped(wait, seconds, gpu, tmp_path, monkeypatch):
    checks, child, runner = gpu("gpu.checks"), gpu("gpu.child"), gpu("gpu.runner")
    (tmp_path / "test_them.py").write_text(TESTS.format(wait=wait))
    monkeypatch.setattr(checks, "ROOT", tmp_path)
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(checks.os, "environ", runner.environment())
    settings = child.Settings(str(tmp_path), time.time() + seconds)
    found = checks.run_tests(settings, "quick", [str(tmp_path)], 1)
    assert (found["passed"], found["failed"], found["skipped"]) == (3 if wait == 0 else 2, 2, 1)
    assert found["ended"] == "tests failed" if wait == 0 else found["ended"].startswith("stopped after")
    wrong, broken = found["failures"]
    assert wrong.startswith("test_them.py::test_numbers[3-cupy]: ") and "assert 3 < 3" in wrong
    assert broken.startswith("test_them.py::test_broken[cupy]: ") and "no fixture" in broken


def test_no_test_with_the_backend_is_said(gpu, tmp_path, monkeypatch):
    checks, child, runner = gpu("gpu.checks"), gpu("gpu.child"), gpu("gpu.runner")
    (tmp_path / "test_them.py").write_text("def test_it(): pass\n")
    monkeypatch.setattr(checks, "ROOT", tmp_path)
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(checks.os, "environ", runner.environment())
    found = checks.run_tests(child.Settings(str(tmp_path), time.time() + 60), "quick", [str(tmp_path)], 1)
    assert found["ended"] == "no test has this backend"


CLEAN = "ran: attention\nran: merge\n========= ERROR SUMMARY: 0 errors\n"
RACE = "ran: attention\n========= RACECHECK SUMMARY: 3 hazards displayed (2 errors, 1 warning)\n"


@pytest.mark.parametrize(
    ("printed", "ended", "errors", "kept"),
    [
        (CLEAN, "exit status 0", 0, False),
        (CLEAN, "exit status 1", 0, True),
        (RACE, "exit status 0", 3, True),
        ("========= Device not supported\n", "exit status 255", None, True),
    ],
)
def test_what_the_sanitizer_says(printed, ended, errors, kept, gpu):
    found = gpu("gpu.checks").read_sanitizer(printed, ended)
    assert found["errors"] == errors
    assert found["functions"] == [line[5:] for line in printed.splitlines() if line.startswith("ran: ")]
    assert ("printed" in found) == kept


def test_the_sanitizer_runs_without_an_option_it_does_not_know(gpu, tmp_path, monkeypatch):
    checks, child = gpu("gpu.checks"), gpu("gpu.child")
    program = tmp_path / "compute-sanitizer"
    lines = "\n".join(f"echo '{line}'" for line in CLEAN.splitlines())
    program.write_text(f"#!/bin/sh\ncase \"$*\" in *kernel-name*) echo 'unrecognised option'; exit 1;; esac\n{lines}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    settings = child.Settings(str(tmp_path), time.time() + 60)
    expected = {"errors": 0, "ended": "exit status 0", "functions": ["attention", "merge"]}
    assert checks.sanitize(settings, "memcheck", 1) == expected
    program.write_text(f"#!/bin/sh\n{lines}\nexec sleep 60\n")
    settings = child.Settings(str(tmp_path), time.time() + 1)
    found = checks.sanitize(settings, "memcheck", 0.5)
    assert found["functions"] == ["attention", "merge"] and found["ended"].startswith("stopped after")
    monkeypatch.setattr(checks, "find_sanitizer", lambda: None)
    with pytest.raises(child.LeftOut, match="compute-sanitizer is neither on the PATH nor in"):
        checks.sanitize(settings, "memcheck", 1)


def test_the_sanitizers_script_calls_every_function(gpu):
    """Its calls are valid: NumPy computes them."""
    run = subprocess.run(
        [sys.executable, "-m", "gpu.every_function", "numpy"],
        env=gpu("gpu.runner").environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    text = (BENCH / "gpu" / "every_function.py").read_text()
    functions = ("attention", "attention_vjp", "attention_varlen", "attention_varlen_backward", "attention_weights",
                 "decode", "merge", "rotary", "KVCache", "PagedKVCache", "Alibi")  # fmt: skip
    for name in functions:
        assert getattr(cuflash, name) and f"cuflash.{name}" in text


def test_every_variant_is_compiled_for_this_gpu_once_one_is_asked_for(gpu, monkeypatch):
    checks, asked = gpu("gpu.checks"), []

    def obtain(variant, arch):
        asked.append(arch)
        return Compiled(bytes(1000), "ptxas info: Used 72 registers\n8 bytes spill stores, 16 bytes spill loads")

    fake = SimpleNamespace(gpu=lambda: Gpu("sm_90a", 132, 227 << 10))
    monkeypatch.setattr(cupy_runtime, "runtime", lambda: fake)
    monkeypatch.setattr(images, "obtain", obtain)
    monkeypatch.setattr(checks, "first_call", lambda cache: {"first": 1.0, "second": 0.1})
    cases = dict(checks.compile_cases(gpu("gpu.child").Settings("nowhere", 0.0)))
    assert asked == []
    variants = [name for name in cases if not name.startswith("first call")]
    assert len(variants) == len(_kernels.variants()) == len(cases) - 2
    found = cases[variants[-1]]()
    assert (found["registers"], found["spill bytes"], found["bytes"]) == (72, 24, 1000)
    for name in variants:
        cases[name]()
    assert asked == ["sm_90a"] * len(variants)


def test_the_first_call_is_that_of_a_new_process(gpu, tmp_path, monkeypatch):
    checks = gpu("gpu.checks")
    (tmp_path / "cupy.py").write_text(
        "from types import SimpleNamespace as N\nfloat32 = None\nones = lambda *_: None\n"
        "cuda = N(Device=lambda: N(synchronize=lambda: None))\n"
    )
    (tmp_path / "cuflash.py").write_text(
        "import os, time\ncalls = []\ndef attention(q, k, v):\n    calls.append(1)\n"
        "    time.sleep(0.3 / len(calls) ** 2 if not os.listdir(os.environ['CUFLASH_CACHE_DIR']) else 0)\n"
    )
    monkeypatch.chdir(tmp_path)
    cold = checks.first_call(None)
    assert 0.3 <= cold["first"] < 1 and 0.05 < cold["second"] < 0.2
    assert checks.first_call(str(tmp_path))["first"] < 0.1
    (tmp_path / "cuflash.py").write_text("raise RuntimeError('no driver')")
    with pytest.raises(RuntimeError, match="no driver"):
        checks.first_call(None)


# what is timed


@pytest.mark.parametrize("causal", [False, True])
def test_the_definition_for_one_head(causal, gpu, monkeypatch):
    operands = gpu("gpu.operands")
    monkeypatch.setattr(operands, "ROWS", 16)
    dout, q, k, v = np.random.default_rng(0).standard_normal((4, 1, 45, 8))
    out, lse = operands.attend(np, q[0], k[0], v[0], causal)
    expected = reference.attention(q, k, v, causal=causal, return_lse=True)
    np.testing.assert_allclose(out, expected[0][0], rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(lse, expected[1][0], rtol=1e-12)
    for found, right in zip(
        operands.gradients(np, dout[0], q[0], k[0], v[0], causal),
        reference.attention_backward(dout, q, k, v, causal=causal),
    ):
        np.testing.assert_allclose(found, right[0], rtol=1e-10, atol=1e-12)


def test_bfloat16_by_hand(gpu):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    operands = gpu("gpu.operands")
    numbers = np.random.default_rng(0).standard_normal(10000).astype(np.float32)
    bits = numbers.view(np.uint32)
    bits[:2000] = bits[:2000] & 0xFFFF0000 | 0x8000  # ties
    narrow = operands.narrow(np, numbers, "bfloat16")
    np.testing.assert_array_equal(narrow.view(np.uint16), numbers.astype(ml_dtypes.bfloat16).view(np.uint16))
    np.testing.assert_array_equal(operands.widen(narrow), narrow.astype(np.float64))


@pytest.fixture
def small(gpu):
    """A problem of attention on NumPy, its operands, and a clock that calls once."""
    operands, attention = gpu("gpu.operands"), gpu("gpu.attention")
    problem = operands.Problem("float32", 16, 33, True)
    dout, q, k, v = (operands.normal(np, seed, "float32", 2, 3, 33, 16) for seed in range(4))

    def clock(xp, call, seconds):
        call()
        return GpuTimes(2e-3, 0.05, 1e-5, 5)

    def compare(makers, expected):
        return attention.compare(np, makers, problem, expected, 1e9, clock=clock)

    return SimpleNamespace(
        attention=attention, operands=operands, problem=problem, dout=dout, q=q, k=k, v=v, compare=compare
    )


def test_peers_are_checked_then_timed(small):
    q, k, v = small.q, small.k, small.v
    makers = small.attention.forward_makers(np, small.problem, q, k, v, False)
    makers = {name: makers[name] for name in ("cuflash", "cupy")}
    makers["wrong"] = lambda: Peer(lambda: cuflash.attention(q, k, v, causal=False))
    makers["NaN"] = lambda: Peer(lambda: np.full_like(q, np.nan))
    makers["absent"] = lambda: Peer(lambda: 1 / 0)
    expected = small.operands.attend(np, q[-1, -1], k[-1, -1], v[-1, -1], True)[0]
    row = small.compare(makers, expected)
    assert row["ms"] == {"cuflash": 2.0, "cupy": 2.0}
    assert row["TFLOP/s"] == {"cuflash": 0.5, "cupy": 0.5}
    assert row["error"]["cuflash"] < 1e-6 < 1e-2 < row["error"]["wrong"]
    assert row["absent"]["wrong"].startswith("wrong: off by ")
    assert row["absent"]["NaN"] == "wrong: off by nan of the norm"
    assert row["absent"]["absent"] == "ZeroDivisionError: division by zero"


def test_gradients_are_checked_in_all_three(small):
    operands = (small.dout, small.q, small.k, small.v)
    makers = small.attention.backward_makers(np, small.problem, *operands, False)
    expected = small.operands.gradients(np, *(x[-1, -1] for x in operands), True)
    right = makers["cuflash"]()
    makers = {name: makers[name] for name in ("cuflash", "cupy")}
    makers["wrong"] = lambda: Peer(right.call, lambda grads: (*grads[:2], 2 * grads[2]))
    row = small.compare(makers, expected)
    assert list(row["ms"]) == ["cuflash", "cupy"]
    assert row["error"]["wrong"] == pytest.approx(1, abs=0.01)


def test_what_cuflash_raises_is_an_error_of_the_case(small):
    with pytest.raises(ZeroDivisionError):
        small.compare({"cuflash": lambda: Peer(lambda: 1 / 0)}, small.q[0, 0])


def test_decoding_peers_agree(gpu):
    functions, operands = gpu("gpu.functions"), gpu("gpu.operands")
    q = operands.normal(np, 0, "float32", 2, 4, 16)
    k, v = (operands.normal(np, seed, "float32", 2, 2, 300, 16) for seed in (1, 2))
    expected = functions.decode_head(np, q, k, v)
    makers = functions.decode_makers(np, q, k, v, False)
    for name in ("cuflash", "cuflash, paged", "cupy"):
        peer = makers[name]()
        out = peer.result(peer.call())
        assert out.shape == (2, 4, 16)
        assert operands.error(np, functions.head_of_decode(out), expected) < 1e-6
    assert not any(name.startswith("cuflash") for name in functions.decode_makers(np, q, k, v, True))


@pytest.mark.parametrize("name", ["append, one token", "append, prompt", "append, prompt to int8", "rotary", "merge"])
def test_calls_that_move_memory(name, gpu, monkeypatch):
    functions = gpu("gpu.functions")
    monkeypatch.setattr(functions, "HQ", 2)
    monkeypatch.setattr(functions, "HK", 1)
    monkeypatch.setattr(functions, "D", 8)
    call, moved = functions.MOVING[name](np, "float32")
    for _ in range(timing.MOST + 2):
        call()
    assert moved > 1000


def test_calls_of_a_few_numbers(gpu):
    functions = gpu("gpu.functions")
    for make in functions.OWN_CALLS.values():
        call = make(np)
        for _ in range(3):
            call()


# GPU times


class FakeGpu:
    """Stands in for CuPy: a device that works behind the host, on a clock that both move."""

    def __init__(self):
        self.host = self.device = 0.0
        self.flushes, self.log = 0, []
        attributes = {"cudaDevAttrL2CacheSize": 50_000_000}
        runtime = SimpleNamespace(
            cudaDevAttrL2CacheSize="cudaDevAttrL2CacheSize",
            getDevice=lambda: 0,
            deviceGetAttribute=lambda name, device: attributes[name],
        )
        stream = SimpleNamespace(synchronize=self.wait)
        self.cuda = SimpleNamespace(
            runtime=runtime,
            get_current_stream=lambda: stream,
            Event=lambda: Event(self),
            get_elapsed_time=lambda begin, end: 1e3 * (end.at - begin.at),
        )

    def enqueue(self, host, device):
        """The host spends some time, then the device has some more to do."""
        self.host += host
        self.device = max(self.device, self.host) + device

    def wait(self):
        self.host = max(self.host, self.device)

    def empty(self, size, dtype):
        assert size == 100_000_000 and dtype == np.uint8
        return SimpleNamespace(nbytes=size, data=SimpleNamespace(memset_async=self.flush))

    def flush(self, value, nbytes):
        self.flushes += nbytes == 100_000_000
        self.enqueue(1e-6, 50e-6)


class Event:
    def __init__(self, gpu):
        self.gpu = gpu

    def record(self):
        self.at = max(self.gpu.device, self.gpu.host)


@pytest.fixture
def device(monkeypatch):
    fake = FakeGpu()
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: fake.host))
    return fake


@pytest.mark.parametrize(("host", "work"), [(20e-6, 5e-6), (400e-6, 5e-6), (20e-6, 3e-3)])
def test_the_gpus_part_alone_is_timed(host, work, device):
    """Also where the host takes longer than the GPU: it is kept busy meanwhile, with a cache that is cold each time."""
    calls = []

    def call():
        calls.append(device.flushes)
        device.enqueue(host, work * (30 if len(calls) == 1 else 1))  # the first one compiles

    taken = timing.time_on_gpu(device, call, seconds=0.1)
    assert taken.median == pytest.approx(work)
    assert taken.spread == pytest.approx(0, abs=1e-6)
    assert taken.host == pytest.approx(host)
    assert timing.FEWEST <= taken.rounds <= timing.MOST and taken.rounds == len(calls) - 2
    assert np.diff(calls[2:]).min() > 0


def test_the_hosts_part_alone_is_timed(device):
    assert timing.time_on_host(device, lambda: device.enqueue(25e-6, 4e-6)) == pytest.approx(25e-6)


def test_clocks_are_read_where_there_is_someone_to_ask(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert timing.read_clocks() == {}
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '1980 MHz, 3201 MHz, 41, 310.5 W, 97 %'\n")
    program.chmod(0o755)
    assert timing.read_clocks()["clocks.sm"] == "1980 MHz" and timing.read_clocks()["power.draw"] == "310.5 W"
    program.write_text("#!/bin/sh\nexit 9\n")
    assert timing.read_clocks() == {}
