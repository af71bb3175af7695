"""Bits do not depend on threads, and nobody else notices them: other callers, BLAS, forks, a closing interpreter."""

import importlib
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from backends import on_numpy

import cuflash

threadpoolctl = pytest.importorskip("threadpoolctl")


def blas_threads():
    return [library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]


def make_calls(backend, normal):
    """Calls that cut their work in every way there is, each returning arrays."""

    def arrays(*shapes, dtype="float32"):
        return [backend.asarray(normal(*shape, dtype=dtype, seed=seed)) for seed, shape in enumerate(shapes)]

    def decoded(batch, length, heads):
        q, k, v = arrays((batch, heads, 1, 32), (batch, 2, length, 32), (batch, 2, length, 32))
        cache = cuflash.KVCache(batch, length, 2, 32, dtype=np.float32)
        cache.append(k, v, lengths=np.linspace(1, length, batch).astype(int))
        return lambda: cuflash.decode(q, cache, return_lse=True)

    def gradient(q_shape, k_shape, dtype="float32", **options):
        q, k, v, dout = arrays(q_shape, k_shape, k_shape, q_shape, dtype=dtype)
        bias = options.pop("bias", None)
        given = options if bias is None else options | {"bias": arrays(bias)[0]}
        return lambda: [x for x in cuflash.attention_vjp(q, k, v, **given)[1](dout) if x is not None]

    whole = arrays((2, 4, 700, 32), (2, 2, 700, 32), (2, 2, 700, 32))
    ragged = arrays((3, 65, 40), (3, 1111, 40), (3, 1111, 24), dtype="float64")
    small = arrays((3, 90, 2, 7, 32), (3, 90, 1, 80, 32), (3, 90, 1, 80, 32))
    few = arrays((1, 3, 32), (1, 9000, 32), (1, 9000, 32))
    return {
        "many tiles": lambda: cuflash.attention(*whole, causal=True, return_lse=True),
        "odd tiles": lambda: cuflash.attention(*ragged, window=(300, 20), return_lse=True),
        "few queries": lambda: cuflash.attention(*few, return_lse=True),
        "weights": lambda: [cuflash.attention_weights(*whole[:2], causal=True)],
        "gradient": gradient((2, 4, 300, 32), (2, 2, 300, 32), causal=True),
        "gradient in parts": gradient((1, 300, 32), (1, 2100, 32), dtype="float64"),
        "gradient of a shared bias": gradient((2, 4, 130, 16), (2, 2, 700, 16), bias=(130, 700)),
        "gradient of a row bias": gradient((2, 4, 130, 16), (2, 2, 2100, 16), bias=(4, 1, 2100)),
        "gradient of a column bias": gradient((1, 2, 130, 16), (1, 1, 2100, 16), bias=(130, 1)),
        "gradient of shared keys": gradient((6, 2, 300, 16), (2, 500, 16)),
        "many small entries": lambda: cuflash.attention(*small, causal=True, return_lse=True),
        "decode": decoded(3, 2500, 8),
        "decode one": decoded(1, 5000, 4),
    }


NAMES = [
    "many tiles",
    "odd tiles",
    "few queries",
    "weights",
    "gradient",
    "gradient in parts",
    "gradient of a shared bias",
    "gradient of a row bias",
    "gradient of a column bias",
    "gradient of shared keys",
    "many small entries",
    "decode",
    "decode one",
]


@pytest.fixture(scope="module")
def calls(backend, normal):
    """The calls by name."""
    return make_calls(backend, normal)


def bits(backend, call):
    return [backend.to_numpy(x).tobytes() for x in call()]


@on_numpy
@pytest.mark.parametrize("name", NAMES)
def test_bits_are_the_same_for_any_number_of_threads(name, calls, backend, monkeypatch):
    before = blas_threads()
    found = set()
    for count in ("1", "2", "3", "2", "16"):
        monkeypatch.setenv("CUFLASH_NUM_THREADS", count)
        found.add(tuple(bits(backend, calls[name])))
        assert blas_threads() == before
    monkeypatch.delenv("CUFLASH_NUM_THREADS")
    found.add(tuple(bits(backend, calls[name])))
    assert len(found) == 1
    assert list(calls) == NAMES


@on_numpy
def test_four_callers_at_once(calls, backend, monkeypatch):
    """Each gets the bits it gets alone, and BLAS has its threads again afterwards."""
    monkeypatch.setenv("CUFLASH_NUM_THREADS", "1")
    expected = {name: bits(backend, call) for name, call in calls.items()}
    monkeypatch.setenv("CUFLASH_NUM_THREADS", "3")
    before = blas_threads()
    barrier = threading.Barrier(4, timeout=60)
    wrong = []

    def caller(shift):
        barrier.wait()
        try:
            for name in NAMES[shift:] + NAMES[:shift]:
                for _ in range(2):
                    if bits(backend, calls[name]) != expected[name]:
                        wrong.append(name)
        except BaseException as error:
            wrong.append(repr(error))

    callers = [threading.Thread(target=caller, args=(3 * i,)) for i in range(4)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in callers)
    assert wrong == []
    assert blas_threads() == before


@on_numpy
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_limit_of_the_callers_own_is_kept(count, calls, backend):
    """What a caller has set for BLAS is set again, not the number BLAS began with."""
    with threadpoolctl.threadpool_limits(count, user_api="blas"):
        bits(backend, calls["many tiles"])
        assert set(blas_threads()) == {count}


@on_numpy
@pytest.mark.parametrize("where", ["everywhere", "in a helper alone"])
def test_an_error_inside_a_thread_reaches_the_caller(where, calls, backend, monkeypatch):
    """And leaves everything fit for the next call."""
    query_block = numpy_module("scores").QueryBlock
    monkeypatch.setenv("CUFLASH_NUM_THREADS", "3")
    expected, before = bits(backend, calls["many tiles"]), blas_threads()
    right, caller, failed = query_block.center, threading.get_ident(), threading.Event()

    def planted(*args):
        if where == "in a helper alone" and threading.get_ident() == caller:
            assert failed.wait(timeout=30)
            return right(*args)
        failed.set()
        raise MemoryError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(query_block, "center", planted)
        with pytest.raises(MemoryError, match="planted"):
            calls["many tiles"]()
    assert blas_threads() == before
    assert bits(backend, calls["many tiles"]) == expected


def numpy_module(name):
    return importlib.import_module(f"cuflash._numpy.{name}")


def run_in_thread(function):
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(function).result(timeout=60)


@on_numpy
@pytest.mark.parametrize("run", [lambda function: function(), run_in_thread], ids=["this thread", "another thread"])
def test_blas_is_held_to_one_thread_whoever_calls(run, calls, backend):
    """BLAS on several threads inside each of several threads is a hundred times slower."""
    guard = numpy_module("threads").one_thread_blas
    bits(backend, calls["many tiles"])
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = blas_threads()

        def inside():
            with guard, guard:
                return blas_threads()

        assert set(run(inside)) == {1}
        assert blas_threads() == before


@on_numpy
@pytest.mark.parametrize("run", [lambda function: function(), run_in_thread], ids=["this thread", "another thread"])
def test_others_can_still_limit_blas(run, calls, backend):
    """threadpoolctl lets one thread at a time set limits; no call may keep that right to itself."""
    bits(backend, calls["many tiles"])

    def limited():
        with threadpoolctl.threadpool_limits(1, user_api="blas"):
            return blas_threads()

    assert set(run(limited)) == {1}


@on_numpy
@pytest.mark.parametrize("count", ["0", "-1", "two", "1.5", "1,2"])
def test_a_wrong_number_of_threads_is_an_error(count, backend, normal, monkeypatch):
    monkeypatch.setenv("CUFLASH_NUM_THREADS", count)
    x = backend.asarray(normal(3, 4))
    with pytest.raises(cuflash.ProblemError, match=f"CUFLASH_NUM_THREADS is '{count}'"):
        cuflash.attention(x, x, x)


@on_numpy
def test_the_number_of_threads_is_taken_from_the_environment(backend, normal, monkeypatch):
    x = backend.asarray(np.broadcast_to(normal(1, 1), (4096, 64)))
    for count in (1, 3):
        monkeypatch.setenv("CUFLASH_NUM_THREADS", str(count))
        assert f"{count} thread(s)" in cuflash.explain(cuflash.attention, x, x, x)
    for unset in ("", None):
        monkeypatch.delenv("CUFLASH_NUM_THREADS") if unset is None else monkeypatch.setenv("CUFLASH_NUM_THREADS", unset)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        assert f"{cores} thread(s)" in cuflash.explain(cuflash.attention, x, x, x)


# A process of their own.

PRELUDE = """
import atexit, os, signal, sys, threading, time
import numpy as np
import threadpoolctl
import cuflash

def blas_threads():
    return [library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]

x = np.random.default_rng(0).standard_normal((4, 1100, 32), dtype=np.float32)
call = lambda: cuflash.attention(x, x, x, causal=True).tobytes()
before = blas_threads()
expected = call()
"""

FORK = """
def child_is_right():
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)  # a child that hangs is killed, and so fails
        right = blas_threads() == before and call() == expected and call() == expected and blas_threads() == before
        os._exit(0 if right else 1)
    return os.waitpid(pid, 0)[1] == 0
"""

BUSY = """
stop = threading.Event()

def work():
    while not stop.is_set():
        call()

thread = threading.Thread(target=work)
thread.start()
time.sleep(0.05)
results = [child_is_right() for _ in range(8)]
stop.set()
thread.join()
"""


def run_python(*parts, timeout=60):
    """A fresh interpreter with two threads for cuflash and for BLAS; its last line of output."""
    environment = os.environ | {
        "CUFLASH_NUM_THREADS": "2",
        "OPENBLAS_NUM_THREADS": "2",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    result = subprocess.run(
        [sys.executable, "-c", "\n".join(parts)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip().splitlines()[-1]


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


@needs_fork
def test_a_child_forked_after_a_call_computes():
    """The pool's threads do not exist in the child, nor do the locks they held."""
    assert run_python(PRELUDE, FORK, "print(child_is_right() and child_is_right() and call() == expected)") == "True"


@needs_fork
def test_a_forked_child_makes_threads_of_its_own():
    """Not that it would compute alone for ever."""
    names = "{thread.name for thread in threading.enumerate() if thread.name.startswith('cuflash')}"
    fork = f"""
before_fork = len({names})
pid = os.fork()
if pid == 0:
    signal.alarm(30)
    in_child = len({names})
    os._exit(0 if in_child == 0 and call() == expected and len({names}) == before_fork > 0 else 1)
print(os.waitpid(pid, 0)[1])
"""
    assert run_python(PRELUDE, fork) == "0"


@needs_fork
def test_a_child_forked_during_a_call_computes():
    """The child inherits neither BLAS held to one thread nor a lock that nobody will release."""
    assert run_python(PRELUDE, FORK, BUSY, "print(all(results), blas_threads() == before)") == "True True"


def test_a_call_while_the_interpreter_closes():
    """Threads can no longer be started then; the caller does all the work."""
    assert run_python(PRELUDE, "atexit.register(lambda: print(call() == expected))") == "True"
    last_words = "threading._register_atexit(lambda: print(call() == expected))"
    assert run_python(PRELUDE, last_words) == "True"


INTERRUPTS = """
import random
random.seed(0)
began = time.perf_counter(); call(); one_call = time.perf_counter() - began
armed = False

def interrupt(*_):
    global armed
    if armed:
        armed = False
        raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
for _ in range(150):
    try:
        armed = True
        signal.setitimer(signal.ITIMER_REAL, random.random() * 2 * one_call + 2e-5)
        while armed:
            call()
    except KeyboardInterrupt:
        pass
    armed = False
    assert call() == expected
    assert blas_threads() == before
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no interval timers here")
def test_calls_go_on_after_interrupts_at_any_moment():
    """An interrupt must not leave a lock held, a helper at work, or BLAS at one thread beyond the next call."""
    assert run_python(PRELUDE, INTERRUPTS, "print('done')") == "done"
