"""ldmatrix and mma.sync against the manual's drawings of which lane holds what (PTX ISA 8.5, 9.7.14.5)."""

import numpy as np
import pytest

from emulator.cuda import cuda_kernels
from emulator.small_kernels import Array

LANES = np.arange(32)

LOADS = """
template <int COUNT, bool TRANS> __device__ void load(unsigned address, unsigned* out);
#define LOAD(COUNT, TRANS, TEXT, LIST, ...) \\
    template <> __device__ void load<COUNT, TRANS>(unsigned address, unsigned* out) { \\
        unsigned r[4]; \\
        asm volatile("ldmatrix.sync.aligned.m8n8.x" #COUNT TEXT ".shared.b16 {" LIST "}, [%" #COUNT "];" \\
                     : __VA_ARGS__ : "r"(address) : "memory"); \\
        for (int i = 0; i < COUNT; ++i) out[32 * i + threadIdx.x] = r[i]; \\
    }
#define R(I) "=r"(r[I])
LOAD(1, false, "", "%0", R(0))
LOAD(1, true, ".trans", "%0", R(0))
LOAD(2, false, "", "%0, %1", R(0), R(1))
LOAD(2, true, ".trans", "%0, %1", R(0), R(1))
LOAD(4, false, "", "%0, %1, %2, %3", R(0), R(1), R(2), R(3))
LOAD(4, true, ".trans", "%0, %1, %2, %3", R(0), R(1), R(2), R(3))
extern "C" __global__ void loads(const unsigned short* in, const unsigned* rows, unsigned* out) {
    __shared__ alignas(16) unsigned short tile[64 * 8];
    for (int i = threadIdx.x; i < 64 * 8; i += 32) tile[i] = in[i];
    __syncwarp();
    const unsigned address = (unsigned)__cvta_generic_to_shared(tile) + 16 * rows[threadIdx.x];
    load<1, false>(address, out); load<1, true>(address, out + 32);
    load<2, false>(address, out + 64); load<2, true>(address, out + 128);
    load<4, false>(address, out + 192); load<4, true>(address, out + 320);
}
extern "C" __global__ void unordered(unsigned* out) {
    __shared__ alignas(16) unsigned tile[32 * 4];
    for (int i = 0; i < 4; ++i) tile[4 * threadIdx.x + i] = i;
    load<4, false>((unsigned)__cvta_generic_to_shared(tile) + 16 * threadIdx.x, out);
}
"""


def lane_words(matrix):
    """Row l // 4, elements 2 (l % 4) and the one after it, as one word."""
    pairs = matrix.reshape(32, 2).astype(np.uint32)
    return pairs[:, 0] | pairs[:, 1] << 16


def run(kernels, name, *arrays, **config):
    """The outcome of a launch, and what the last array holds."""
    made = [Array(f"array {place}", values.nbytes, values) for place, values in enumerate(arrays)]
    outcome = kernels.run(name, *made, **config)
    last = made[-1].view(arrays[-1].dtype).reshape(arrays[-1].shape).copy()
    for one in made:
        one.destroy()
    return outcome, last


def test_ldmatrix_gives_rows_or_columns_to_lanes(pytestconfig):
    random = np.random.default_rng(0)
    tile = random.integers(0, 1 << 16, (64, 8)).astype(np.uint16)
    rows = random.permutation(64)[:32].astype(np.uint32)
    kernels = cuda_kernels(pytestconfig, LOADS)
    outcome, out = run(kernels, "loads", tile, rows, np.zeros(448, np.uint32))
    assert outcome.report == ""
    matrices = [tile[rows[8 * i : 8 * i + 8]] for i in range(4)]
    expected = []
    for count in (1, 2, 4):
        expected += [lane_words(matrix) for matrix in matrices[:count]]
        expected += [lane_words(matrix.T) for matrix in matrices[:count]]
    np.testing.assert_array_equal(out, np.concatenate(expected))
    assert outcome.counters.matrix_loads == 14


def test_rows_that_share_banks_are_counted(pytestconfig):
    """Rows of 16 bytes, eight of which fill the 32 banks once."""
    kernels = cuda_kernels(pytestconfig, LOADS)
    tile, out = np.zeros((64, 8), np.uint16), np.zeros(448, np.uint32)
    for stride, conflicts in ((1, 0), (2, 4), (8, 7)):
        rows = (LANES % 8 * stride).astype(np.uint32)
        outcome, _ = run(kernels, "loads", tile, rows, out)
        assert outcome.counters.bank_conflicts == conflicts * outcome.counters.matrix_loads


def test_ldmatrix_of_what_other_lanes_have_just_written_is_a_race(pytestconfig):
    outcome, _ = run(cuda_kernels(pytestconfig, LOADS), "unordered", np.zeros(128, np.uint32))
    assert set(outcome.kinds()) == {"race"}
    assert "ldmatrix" in outcome.report


def test_ldmatrix_needs_rows_at_multiples_of_16_bytes(pytestconfig):
    source = """extern "C" __global__ void off(unsigned* out) {
        __shared__ alignas(16) unsigned tile[64];
        unsigned r;
        asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                     : "=r"(r) : "r"((unsigned)__cvta_generic_to_shared(tile) + 8) : "memory");
        out[threadIdx.x] = r;
    }"""
    outcome, _ = run(cuda_kernels(pytestconfig, source), "off", np.zeros(32, np.uint32))
    assert outcome.kinds() == ["misaligned"]


# ---- mma -----------------------------------------------------------------------------------------------------------
MULTIPLIES = """
extern "C" __global__ void multiply(const unsigned* a, const unsigned* b, const float* c, float* d) {
    a += 4 * threadIdx.x; b += 2 * threadIdx.x; c += 4 * threadIdx.x; d += 4 * threadIdx.x;
    #define MULTIPLY(SHAPE, TYPE, A, B) \\
        asm volatile("mma.sync.aligned." SHAPE ".row.col.f32." TYPE "." TYPE ".f32 {%0, %1, %2, %3}, " A ", " B \\
                     ", {%10, %11, %12, %13};" : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3]) \\
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), \\
                       "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3])); \\
        d += 128;
    MULTIPLY("m16n8k16", "f16", "{%4, %5, %6, %7}", "{%8, %9}")
    MULTIPLY("m16n8k16", "bf16", "{%4, %5, %6, %7}", "{%8, %9}")
    MULTIPLY("m16n8k8", "f16", "{%4, %5}", "{%8}")
    MULTIPLY("m16n8k8", "bf16", "{%4, %5}", "{%8}")
}
"""


def numbers_of(words, kind):
    """The two 16-bit numbers of each word, (..., 2)."""
    bits = np.stack([words & 0xFFFF, words >> 16], -1).astype(np.uint16)
    if kind == "f16":
        return bits.view(np.float16).astype(np.float64)
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def word_of_a(row, k):
    """Lane and register that hold element (row, k) of a, and which half."""
    return 4 * (row % 8) + k % 8 // 2, row // 8 + 2 * (k // 8), k % 2


def word_of_b(k, col):
    return 4 * col + k % 8 // 2, k // 8, k % 2


def place_of_c(row, col):
    return 4 * (row % 8) + col // 2, 2 * (row // 8) + col % 2


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("depth", [8, 16])
def test_mma_is_the_product_of_the_matrices_that_the_lanes_hold(pytestconfig, kind, depth):
    random = np.random.default_rng(1)
    halves = random.standard_normal((32, 6, 2)).astype(np.float32)
    if kind == "f16":
        bits = halves.astype(np.float16).view(np.uint16).astype(np.uint32)
    else:
        bits = halves.view(np.uint32) >> 16
    words = bits[..., 0] | bits[..., 1] << 16
    c = random.standard_normal((32, 4)).astype(np.float32)
    arrays = (words[:, :4].copy(), words[:, 4:].copy(), c, np.zeros((4, 32, 4), np.float32))
    outcome, out = run(cuda_kernels(pytestconfig, MULTIPLIES), "multiply", *arrays)
    assert outcome.report == ""
    assert outcome.counters.mmas == 4
    a, b = numbers_of(words[:, :4], kind), numbers_of(words[:, 4:], kind)
    expected = np.empty((32, 4))
    for row in range(16):
        for col in range(8):
            place = place_of_c(row, col)
            products = [a[word_of_a(row, k)] * b[word_of_b(k, col)] for k in range(depth)]
            expected[place] = c[place] + sum(products)
    found = out[(0 if depth == 16 else 2) + (kind == "bf16")]
    np.testing.assert_allclose(found, expected.astype(np.float32), rtol=1e-6, atol=1e-6)


def test_mma_needs_all_lanes(pytestconfig):
    arrays = (np.zeros((32, 4), np.uint32), np.zeros((32, 2), np.uint32), *[np.zeros((4, 32, 4), np.float32)] * 2)
    outcome, _ = run(cuda_kernels(pytestconfig, MULTIPLIES), "multiply", *arrays, block=16)
    assert outcome.kinds() == ["divergence"]
