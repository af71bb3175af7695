"""What the library says of itself: explain, show_config, selftest, warmup, the command line, and assert_accurate."""

import numpy as np
import pytest
from backends import on_numpy

import cuflash
from cuflash.__main__ import main
from cuflash.testing import assert_accurate


@pytest.fixture
def x(backend):
    """A long operand that takes no memory: nothing may be computed with it."""
    return backend.xp.broadcast_to(backend.asarray(np.zeros((1, 1, 1), np.float32)), (8, 1 << 20, 64))


def test_explain_names_the_problem_and_the_plan(x, backend):
    sinks = backend.asarray(np.zeros(8, np.float32))
    text = cuflash.explain(cuflash.attention, x, x, x, causal=True, softcap=2.0, sinks=sinks)
    for words in (
        "attention of float32",
        "hq=8",
        "lq=1048576",
        "softcap 2.0",
        "sinks",
        f"backend: {backend.name}",
        "plan: ",
    ):
        assert words in text
    assert cuflash.explain(cuflash.attention_vjp, x, x, x, return_lse=True).startswith("attention of")


def test_explain_of_each_function(x, backend):
    cache = cuflash.KVCache(2, 50, 2, 8, dtype=np.float32, xp=backend.xp)
    q = backend.asarray(np.zeros((2, 4, 8), np.float32))
    assert "lk=50" in cuflash.explain(cuflash.decode, q, cache, splits=3, return_lse=True)
    assert "3 part" in cuflash.explain(cuflash.decode, q, cache, splits=3)
    assert "attention_weights" in cuflash.explain(cuflash.attention_weights, x[:4], x[:4])
    lse = backend.xp.broadcast_to(x[0, 0, 0], (8, 1 << 20))
    assert "attention_backward" in cuflash.explain(cuflash.attention_backward, x, x, x, x, x, lse, causal=True)


def test_explain_of_packed_sequences(x, backend):
    packed = x.swapaxes(0, 1)  # (total, h, d)
    starts = [0, 0, 9, 1 << 20], [0, 4, 5, 1 << 20]
    text = cuflash.explain(cuflash.attention_varlen, packed, packed, packed, *starts, kv_lengths=[1, 1, 1000])
    longest = "longest lq=1048567, longest lk=1048571" if backend.name == "numpy" else "lq up to 1048567, lk up to 10"
    assert f"attention_varlen of float32, batch (3,), hq=8, hk=8, {longest}" in text
    if backend.name == "numpy":
        assert "3 member(s) together on" in text
        assert "the one with the most work, 1048567 x 1000: a block holds" in text
    lse = backend.xp.broadcast_to(x[0, 0, 0], (8, 1 << 20))
    arrays = *[packed] * 5, lse, *starts
    assert "attention_varlen_backward" in cuflash.explain(cuflash.attention_varlen_backward, *arrays, causal=True)
    nothing = packed[:0]
    none = "0 member(s)" if backend.name == "numpy" else "batch (0,)"
    assert none in cuflash.explain(cuflash.attention_varlen, *[nothing] * 3, [0], [0])


@on_numpy
@pytest.mark.parametrize("threads", ["1", "3"])
def test_plans_say_how_many_threads(threads, x, monkeypatch):
    monkeypatch.setenv("CUFLASH_NUM_THREADS", threads)
    assert f"{threads} thread" in cuflash.explain(cuflash.attention, x, x, x)


def test_explain_raises_what_the_call_would(x):
    with pytest.raises(cuflash.ProblemError, match="`v` has lk"):
        cuflash.explain(cuflash.attention, x, x, x[:, :5])
    with pytest.raises(TypeError):
        cuflash.explain(cuflash.attention, x, x, x, casual=True)
    with pytest.raises(TypeError):
        cuflash.explain(cuflash.attention, x, x)
    with pytest.raises(cuflash.ProblemError, match="rotary"):
        cuflash.explain(cuflash.rotary, x, 0)


def test_show_config_prints_versions(capsys):
    assert cuflash.show_config() is None
    printed = capsys.readouterr().out
    for words in (f"cuflash {cuflash.__version__}", f"numpy {np.__version__}", "threads: ", "BLAS: "):
        assert words in printed


def test_selftest_passes(capsys):
    assert cuflash.selftest() is True
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) >= 4
    assert all(line.endswith("ok") for line in printed)


@pytest.mark.parametrize(
    ("name", "what"),
    [("attention", "attention float32"), ("attention_vjp", "gradient"), ("decode", "decode")],
)
def test_selftest_fails_where_a_function_is_wrong(name, what, monkeypatch, capsys):
    """A relative error of 1e-4, from the softmax's scale, is found."""
    from cuflash import _attention, _decoding

    module = _decoding if name == "decode" else _attention
    right = getattr(module, name)
    monkeypatch.setattr(module, name, lambda q, *args, **options: right(q * q.dtype.type(1.001), *args, **options))
    with pytest.raises(AssertionError, match=f"selftest: {what}"):
        cuflash.selftest()


def test_warmup_says_that_there_is_nothing_to_do(capsys):
    assert cuflash.warmup() is None
    assert "nothing" in capsys.readouterr().out


@pytest.mark.parametrize(("command", "words"), [("info", "numpy"), ("selftest", "ok"), ("warmup", "nothing")])
def test_command_line(command, words, capsys):
    assert main([command]) == 0
    assert words in capsys.readouterr().out


def test_version():
    assert [part.isdigit() for part in cuflash.__version__.split(".")[:2]] == [True, True]


# assert_accurate


EXACT = np.linspace(-1, 1, 9)


@pytest.mark.parametrize(
    ("error", "accepted"), [(0, True), (1.9e-3, True), (2.1e-3, False), (-1.9e-3, True), (-1, False)]
)
def test_errors_are_held_against_those_of_the_stepwise_result(error, accepted):
    actual, stepwise = EXACT.copy(), EXACT.copy()
    actual[3] += error
    stepwise[5] += 1e-3
    if accepted:
        assert_accurate(actual, EXACT, stepwise)
        return
    with pytest.raises(AssertionError, match=r"at \(3,\)"):
        assert_accurate(actual, EXACT, stepwise)


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
def test_a_few_ulps_are_always_allowed(name):
    pytest.importorskip("ml_dtypes")
    dtype = np.dtype(name)
    ulp = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}[name]
    exact = np.ones(3, np.longdouble)
    assert_accurate((exact + 4 * np.longdouble(ulp)).astype(dtype), exact, exact)
    with pytest.raises(AssertionError, match="exceeds"):
        assert_accurate((exact + 5 * np.longdouble(ulp)).astype(dtype), exact, exact)


def test_the_factor_may_be_chosen():
    assert_accurate(EXACT + 7e-3, EXACT, EXACT + 1e-3, factor=8)
    with pytest.raises(AssertionError, match="8 times"):
        assert_accurate(EXACT + 9e-3, EXACT, EXACT + 1e-3, factor=8)


@pytest.mark.parametrize(
    ("actual", "exact"),
    [
        ([0, np.nan], [0, 1]),
        ([0, np.nan], [0, np.nan]),
        ([0, np.inf], [0, 1]),
        ([0, 1], [0, -np.inf]),
        ([0, np.inf], [0, -np.inf]),
        ([0, np.nan], [0, -np.inf]),
        ([0, 1, 2], [0, 1]),
        ([[0, 1]], [0, 1]),
    ],
)
def test_infinities_stand_in_their_places_and_shapes_agree(actual, exact):
    with pytest.raises(AssertionError):
        assert_accurate(np.array(actual, float), np.array(exact, float), np.array(exact, float))


def test_a_stepwise_result_that_overflows_is_no_yardstick():
    with pytest.raises(AssertionError, match="yardstick"):
        assert_accurate(EXACT, EXACT, EXACT * np.array([np.inf] + [1] * 8))


def test_infinities_and_empty_arrays_pass():
    exact = np.array([1.0, -np.inf])
    assert_accurate(exact.astype(np.float32), exact, exact)
    assert_accurate(np.empty((0, 3), np.float32), np.empty((0, 3)), np.empty((0, 3)))
