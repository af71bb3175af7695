"""CUDA's own mathematical functions, which NVRTC puts into a kernel as PTX, against NumPy.

They are long programs of ordinary instructions: bit tricks, tables, carry chains, calls. If one instruction is wrong,
a function leaves its documented error (CUDA's programming guide, table of maximum ulp errors).
"""

import math

import numpy as np
import pytest

from emulator.cuda import cuda_kernels
from emulator.small_kernels import Array

COUNT = 512
# name: C++ of the result, NumPy's function, units in the last place.
FLOATS = {
    "expf": ("expf(x)", np.exp, 1),
    "logf": ("logf(x)", np.log, 1),
    "tanhf": ("tanhf(x)", np.tanh, 2),
    "sinf": ("sinf(x)", np.sin, 2),
    "sincosf": ("(sincosf(x, &s, &c), c)", np.cos, 2),
    "exp2f": ("exp2f(x)", np.exp2, 2),
    "log2f": ("log2f(x)", np.log2, 1),
    "erff": ("erff(x)", np.vectorize(math.erf, otypes=[float]), 2),
}
DOUBLES = {
    "exp": ("exp(x)", np.exp, 1),
    "log": ("log(x)", np.log, 1),
    "tanh": ("tanh(x)", np.tanh, 2),
    "sin": ("sin(x)", np.sin, 2),
    "sincos": ("(sincos(x, &s, &c), c)", np.cos, 2),
    "erf": ("erf(x)", np.vectorize(math.erf, otypes=[float]), 3),  # 2, and 1 of math.erf
    "pow": ("pow(fabs(x), 2.3)", lambda x: np.power(np.abs(x), np.longdouble(2.3)), 2),
    "division": ("1.0 / x", lambda x: 1 / x, 0),
    "sqrt": ("sqrt(x)", np.sqrt, 0),
}


def source(kind, functions):
    lines = [f'extern "C" __global__ void evaluate(const {kind}* in, {kind}* out) {{']
    lines.append(f"const int i = threadIdx.x; const {kind} x = in[i]; {kind} s, c;")
    lines += [f"out[{place * COUNT} + i] = {text};" for place, (text, _, _) in enumerate(functions.values())]
    return "\n".join([*lines, "}"])


def arguments(dtype):
    """Every power of two and its like, small and large numbers, and what is not a number."""
    limits = np.finfo(dtype)
    random = np.random.default_rng(1)
    exponents = random.uniform(np.log2(float(limits.tiny)), np.log2(float(limits.max)), COUNT // 4)
    values = np.concatenate([random.normal(size=COUNT // 2), random.uniform(-100, 100, COUNT // 4), 2.0**exponents])
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 1e5, 1e15]
    special += [limits.tiny, limits.smallest_subnormal, limits.max]
    values[: len(special)] = special
    return values.astype(dtype)


@pytest.mark.long
@pytest.mark.parametrize(("dtype", "kind"), [("float32", "float"), ("float64", "double")])
@pytest.mark.parametrize("arch", ["75", "90a", "100a"])
def test_functions_keep_their_documented_errors(pytestconfig, dtype, kind, arch):
    functions = FLOATS if dtype == "float32" else DOUBLES
    kernels = cuda_kernels(pytestconfig, source(kind, functions), arch)
    x = arguments(dtype)
    given = Array("in", x.nbytes, x)
    out = Array("out", len(functions) * x.nbytes)
    outcome = kernels.run("evaluate", given, out, block=COUNT)
    assert outcome.report == ""
    results = out.view(dtype).reshape(len(functions), COUNT).copy()
    given.destroy()
    out.destroy()
    wide = np.float64 if dtype == "float32" else np.longdouble
    for (name, (_, function, units)), got in zip(functions.items(), results):
        with np.errstate(all="ignore"):
            expected = np.asarray(function(x.astype(wide)), wide)
            rounded = expected.astype(dtype)
            error = np.abs(got.astype(wide) - expected) / np.spacing(np.abs(rounded)).astype(wide)
        finite = np.isfinite(rounded)
        assert np.array_equal(got[~finite], rounded[~finite], equal_nan=True), name
        # Half a unit more where the documented error is one of the rounded result.
        worst = np.argmax(np.where(finite, error, 0))
        assert error[worst] <= units + 0.5, (name, x[worst], got[worst], rounded[worst])
        zero = rounded == 0
        np.testing.assert_array_equal(np.signbit(got[zero]), np.signbit(rounded[zero]), name)
