"""Whole kernels through NVRTC and the translator: calls, tables, local arrays, parameters, branches, and where findings
are said to stand. Each runs as NVRTC's two code generators make it: the one up to sm_90 and the one from sm_100 on.
"""

from itertools import pairwise

import numpy as np
import pytest

from emulator.cuda import cuda_kernels
from emulator.small_kernels import Array

pytestmark = pytest.mark.parametrize("arch", ["75", "90a", "100a", "120"])


@pytest.fixture
def outcome(pytestconfig, arch):
    """`outcome(source, name, *arrays, ...)`: the launch's outcome and the arrays' values afterwards."""
    made = []

    def call(source, name, *arrays, **how):
        kernels = cuda_kernels(pytestconfig, source, arch)
        made.extend(Array(f"array {place}", values.nbytes, values) for place, values in enumerate(arrays))
        after = kernels.run(name, *made[-len(arrays) :], **how)
        return after, [one.view(values.dtype).copy() for one, values in zip(made[-len(arrays) :], arrays)]

    yield call
    for one in made:
        one.destroy()


@pytest.fixture
def result(outcome):
    """The values of the last array after a launch without a finding."""

    def call(source, name, *arrays, **how):
        after, values = outcome(source, name, *arrays, **how)
        assert after.report == ""
        return values[-1]

    return call


CALLS = """
struct Both { double x; int n; short s[3]; };
__device__ __noinline__ Both twice(Both in, int k) {
    Both out{2 * in.x, in.n + k, {}}; out.s[2] = in.s[0] + 1; out.s[0] = in.s[1]; out.s[1] = 3; return out;
}
__device__ __noinline__ int add(int a, int b) { return a + b; }
__device__ __noinline__ int sub(int a, int b) { return a - b; }
__device__ int (*table[2])(int, int) = {add, sub};
__device__ __noinline__ int factorial(int n) { return n < 2 ? 1 : n * factorial(n - 1); }
__device__ __noinline__ void leave(int i) { if (i == 3) asm volatile("exit;"); }
extern "C" __global__ void calls(double* out) {
    const int i = threadIdx.x;
    Both both = twice({0.25 * i, i, {(short)i, 7, 9}}, 5);
    out[i * 8] = both.x; out[i * 8 + 1] = both.n; out[i * 8 + 2] = both.s[2] + 100 * both.s[0];
    out[i * 8 + 3] = table[i & 1](i, 10); out[i * 8 + 4] = factorial(i % 8);
    leave(i); out[i * 8 + 5] = 1;
}"""


def test_functions_tables_of_functions_and_recursion(result):
    out = result(CALLS, "calls", np.zeros(32 * 8)).reshape(32, 8)
    i = np.arange(32)
    np.testing.assert_array_equal(out[:, 0], 0.5 * i)
    np.testing.assert_array_equal(out[:, 1], i + 5)
    np.testing.assert_array_equal(out[:, 2], 701 + i)
    np.testing.assert_array_equal(out[:, 3], np.where(i % 2, i - 10, i + 10))
    np.testing.assert_array_equal(out[:8, 4], [1, 1, 2, 6, 24, 120, 720, 5040])
    np.testing.assert_array_equal(out[:, 5], i != 3)


TABLES = """
__constant__ float weights[4] = {1, 2, 4, 8.5f};
__constant__ const float* parts[2] = {weights, weights + 2};
__device__ unsigned char bytes[5] = {1, 2, 3, 250, 255};
__device__ long long counts[2] = {-1, 1ll << 40};
__device__ int counter;
extern "C" __global__ void tables(double* out) {
    const int i = threadIdx.x;
    out[i] = (double)parts[i & 1][i >> 1 & 1] + bytes[i % 5] + counts[i & 1];
    atomicAdd(&counter, i);
    asm volatile("bar.sync 0;" ::: "memory");
    if (i == 0) out[32] = counter;
}"""


def test_initialised_tables(result):
    out = result(TABLES, "tables", np.zeros(33))
    i = np.arange(32)
    weights = np.array([[1, 2], [4, 8.5]])[i & 1, i >> 1 & 1]
    bytes_, counts = np.array([1, 2, 3, 250, 255])[i % 5], np.array([-1, 1 << 40])[i & 1]
    np.testing.assert_array_equal(out[:32], weights + bytes_ + counts)
    assert out[32] == i.sum()


LOCAL = """
__device__ __noinline__ int total(const int* values, int count) {
    int s = 0; for (int k = 0; k < count; ++k) s += values[k]; return s; }
extern "C" __global__ void local(const int* in, int* out) {
    int values[8];
    for (int k = 0; k < 8; ++k) values[k] = k * threadIdx.x;
    values[in[threadIdx.x]] = 1000;
    out[threadIdx.x] = values[in[threadIdx.x + 32]] + total(values, 4);
}"""


def test_local_arrays(outcome, arch):
    i = np.arange(32)
    first, second = i % 8, (3 * i) % 8
    after, (_, out) = outcome(LOCAL, "local", np.concatenate([first, second]).astype(np.int32), np.zeros(32, np.int32))
    assert after.report == ""
    values = np.arange(8)[None, :] * i[:, None]
    values[i, first] = 1000
    np.testing.assert_array_equal(out, values[i, second] + values[:, :4].sum(1))
    bad = np.concatenate([first, second]).astype(np.int32)
    bad[:32] = 0
    bad[5] = 11
    after, _ = outcome(LOCAL, "local", bad, np.zeros(32, np.int32))
    assert after.kinds() == ["fault"] and "kernel.cu:7 block (0,0,0) thread 5" in after.report, after.report
    assert "a local access outside the thread's arrays" in after.report


PARAMETERS = """
struct Table { const int* in; int* out; short few[20]; };
__device__ __noinline__ int total(const short* values, int count) {
    int s = 0; for (int k = 0; k < count; ++k) s += values[k]; return s; }
extern "C" __global__ void parameters(const __grid_constant__ Table table) {
    const int i = threadIdx.x;
    table.out[i] = table.few[table.in[i]] + 1000 * total(table.few, i % 8);
}"""


def test_parameters_are_indexed_and_have_generic_addresses(pytestconfig, arch):
    kernels = cuda_kernels(pytestconfig, PARAMETERS, arch)
    i = np.arange(32, dtype=np.int32)
    given, out = Array("in", 128, i % 20), Array("out", 128)
    few = np.arange(20, dtype=np.int16) * 3 - 7
    packed = [Place(address) for address in (given.address, out.address, *few.view(np.int64))]
    outcome = kernels.run("parameters", *packed)
    assert outcome.report == ""
    expected = few[i % 20] + 1000 * np.array([few[: k % 8].sum() for k in i])
    np.testing.assert_array_equal(out.view("int32"), expected)
    given.values.view("int32")[7] = 20
    outcome = kernels.run("parameters", *packed)
    assert outcome.kinds() == ["fault"] and "outside the parameters" in outcome.report
    given.destroy()
    out.destroy()


class Place:
    """Eight bytes of parameters."""

    def __init__(self, address):
        self.address = int(address) & 0xFFFFFFFFFFFFFFFF


BRANCHES = """
extern "C" __global__ void branches(const int* in, int* out) {
    const int i = threadIdx.x; int r = 0;
    for (int k = 0; k < in[i]; ++k) { if (k == 5) continue; if (k == 20) break; r += k; }
    asm volatile("{ .reg .pred p; .reg .u32 n; mov.u32 n, %1; LOOP: setp.gt.u32 p, n, 3; @!p bra DONE; sub.u32 n, n, 4;"
                 " bra LOOP; DONE: mad.lo.u32 %0, n, 1000, %0; }" : "+r"(r) : "r"(in[i]));
    asm volatile("{ ts: .branchtargets A, B, C; brx.idx %1, ts; A: add.u32 %0, %0, 10000; bra.uni D;"
                 " B: add.u32 %0, %0, 20000; bra D; C: add.u32 %0, %0, 30000; D: }" : "+r"(r) : "r"(i % 3));
    switch (in[i] * 7 % 16) {
        case 0: r ^= 1; break; case 1: r += 3; break; case 2: r *= 5; break; case 3: r -= 7; break;
        case 4: r = -r; break; case 7: r *= r; case 9: r += 11; break; case 10: r += 12; break;
        case 12: r <<= 1; break; default: r += 99;
    }
    out[i] = r;
}"""


def after_branches(n, i):
    r = sum(k for k in range(min(n, 20)) if k != 5) + n % 4 * 1000 + (i % 3 + 1) * 10000
    case = n * 7 % 16
    steps = {0: r ^ 1, 1: r + 3, 2: r * 5, 3: r - 7, 4: -r, 7: r * r + 11, 9: r + 11, 10: r + 12, 12: r << 1}
    return np.int64(steps.get(case, r + 99)).astype(np.int32)


def test_branches_and_tables_of_labels(result):
    n = np.arange(32, dtype=np.int32)
    out = result(BRANCHES, "branches", n, np.zeros(32, np.int32))
    np.testing.assert_array_equal(out, [after_branches(int(k), i) for i, k in enumerate(n)])


def test_an_index_outside_a_table_of_labels_is_a_finding(outcome):
    source = """extern "C" __global__ void jump(int* out) {
        asm volatile("{ ts: .branchtargets A, B; brx.idx %0, ts; A: B: }" :: "r"(out[threadIdx.x])); }"""
    after, _ = outcome(source, "jump", np.array([0, 1, 2], np.int32), block=3)
    assert after.kinds() == ["fault"] and "a branch index outside its table" in after.report


SHARED = """
__device__ __noinline__ float* scratch() { __shared__ float inside[3]; return inside; }
extern __shared__ __align__(64) char rest[];
extern "C" __global__ void first(unsigned* out) {
    __shared__ float values[33]; __shared__ double more[2];
    float* s = scratch(); s[threadIdx.x] = 1; values[threadIdx.x] = 2; more[threadIdx.x & 1] = 3; rest[threadIdx.x] = 4;
    out[0] = __cvta_generic_to_shared(s); out[1] = __cvta_generic_to_shared(values);
    out[2] = __cvta_generic_to_shared(more); out[3] = __cvta_generic_to_shared(rest);
    out[4] = s[0] + 10 * values[0] + 100 * (float)more[0] + 1000 * rest[0];
}"""


@pytest.mark.parametrize("start", [0x400, 0x480])
def test_shared_arrays_lie_apart_and_aligned(result, pytestconfig, arch, start):
    out = result(SHARED, "first", np.zeros(5, np.uint32), block=1, shared=4, shared_base=start)
    sizes = (12, 132, 16)
    spans = sorted((int(at), int(at) + size) for at, size in zip(out[:3], sizes))
    assert all(before[1] <= after[0] for before, after in pairwise(spans)) and spans[0][0] >= start
    assert out[2] % 8 == 0 and (out[3] - start) % 64 == 0 and out[3] >= spans[-1][1]
    assert out[3] - start == cuda_kernels(pytestconfig, SHARED, arch).translation.kernels["first"].static_shared_bytes
    assert out[4] == 4321


POSITIONS = """
__device__ __forceinline__ void put(int* to, int value) {
    *to = value;
}
extern "C" __global__ void __launch_bounds__(64) positions(int* out) {
    put(out + threadIdx.x, 1);
    for (int k = 0; k < 100; ++k)
        if (out[k] == 2)
            put(out + 1000 + k, 3);
}"""


def test_findings_name_the_innermost_line(outcome, pytestconfig, arch):
    after, _ = outcome(POSITIONS, "positions", np.full(100, 2, np.int32), block=1)
    assert after.kinds()[0] == "out-of-bounds" and "kernel.cu:3 " in after.report.splitlines()[0], after.report
    assert cuda_kernels(pytestconfig, POSITIONS, arch).translation.kernels["positions"].max_threads == 64


def test_a_loop_without_end_is_a_finding(outcome):
    source = """extern "C" __global__ void forever(volatile int* out) {
        while (out[0] == 0)
            asm volatile("");
    }"""
    after, _ = outcome(source, "forever", np.zeros(1, np.int32), block=1, most_steps=1000)
    assert after.kinds() == ["hang"] and "kernel.cu:2" in after.report, after.report


def test_a_trap_is_a_finding(outcome):
    source = """extern "C" __global__ void stop(int* out) {
        if (threadIdx.x == 2) __trap();
        if (threadIdx.x == 3) __brkpt(); }"""
    after, _ = outcome(source, "stop", np.zeros(1, np.int32), block=3)
    assert after.kinds() == ["trap"] and "kernel.cu:2 block (0,0,0) thread 2" in after.report, after.report
    after, _ = outcome(source.replace("== 2", "== 9"), "stop", np.zeros(1, np.int32), block=4)
    assert after.kinds() == ["trap"] and "kernel.cu:3 block (0,0,0) thread 3" in after.report, after.report


def test_a_read_only_load_of_what_the_launch_writes_is_a_finding(outcome):
    source = """extern "C" __global__ void both(int* out) {
        out[1] = out[0]; out[2] = __ldg(out + 3); }"""
    after, (out,) = outcome(source, "both", np.arange(4, dtype=np.int32), block=1)
    assert out.tolist() == [0, 0, 3, 3]
    assert after.kinds() == ["non-coherent"] and "kernel.cu:2" in after.report, after.report


def test_unwritten_local_arrays_hold_nan(result):
    source = """extern "C" __global__ void unwritten(const int* in, float* out) {
        float values[4];
        if (in[0] > 100) for (int k = 0; k < 4; ++k) values[k] = k;
        values[in[1]] = 5; out[0] = values[in[2]]; out[1] = values[in[1]];
    }"""
    out = result(source, "unwritten", np.array([0, 1, 2], np.int32), np.zeros(2, np.float32), block=1)
    assert np.isnan(out[0]) and out[1] == 5
