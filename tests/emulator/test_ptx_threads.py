"""What threads do together, against the manual: shuffles, votes, reductions, barriers, copies; special registers."""

import numpy as np
import pytest

from emulator.cuda import cuda_kernels
from emulator.small_kernels import Array

LANES = np.arange(32)
ALL = 0xFFFFFFFF


@pytest.fixture
def launch(pytestconfig):
    """`launch(source, name, *arrays, ...)`: the arrays' values afterwards; the launch must have no finding."""
    made = []

    def call(source, name, *arrays, arch="90a", **how):
        kernels = cuda_kernels(pytestconfig, source, arch)
        made.extend(Array(f"array {place}", values.nbytes, values) for place, values in enumerate(arrays))
        outcome = kernels.run(name, *made[-len(arrays) :], **how)
        assert outcome.report == ""
        pairs = zip(made[-len(arrays) :], arrays)
        return [one.view(values.dtype).reshape(values.shape).copy() for one, values in pairs]

    yield call
    for one in made:
        one.destroy()


# ---- shfl --------------------------------------------------------------------------------------------------------
SHUFFLES = """
extern "C" __global__ void shuffles(const unsigned* in, unsigned* out) {
    for (int trial = 0; trial < 64; ++trial) {
        const unsigned* row = in + 96 * trial + threadIdx.x;
        unsigned a = row[0], b = row[32], c = row[64], d, p;
        #define SHUFFLE(MODE, PLACE) \\
            asm volatile("{ .reg .pred p; shfl.sync." MODE ".b32 %0|p, %2, %3, %4, -1; selp.u32 %1, 1, 0, p; }" \\
                         : "=r"(d), "=r"(p) : "r"(a), "r"(b), "r"(c)); \\
            out[(trial * 8 + PLACE) * 32 + threadIdx.x] = d; out[(trial * 8 + PLACE + 1) * 32 + threadIdx.x] = p;
        SHUFFLE("up", 0) SHUFFLE("down", 2) SHUFFLE("bfly", 4) SHUFFLE("idx", 6)
    }
    unsigned d;
    asm volatile("shfl.sync.bfly.b32 %0, %1, 1, 31, -1;" : "=r"(d) : "r"(threadIdx.x));
    out[64 * 8 * 32 + threadIdx.x] = d;
}
"""


def shuffled(mode, lane, a, b, c):
    """The manual's pseudocode: the value and whether the source lane is in range."""
    bval, cval, mask = b & 31, c & 31, c >> 8 & 31
    most, least = (lane & mask) | (cval & ~mask & 31), lane & mask
    source = {"up": lane - bval, "down": lane + bval, "bfly": lane ^ bval, "idx": least | (bval & ~mask & 31)}[mode]
    inside = source >= most if mode == "up" else source <= most
    return a[source if inside else lane], int(inside)


def test_shuffles(launch):
    random = np.random.default_rng(2)
    rows = random.integers(0, 1 << 32, (64, 3, 32), dtype=np.uint32)
    rows[:, 2] = random.choice([0x1F, 0, 0x1C1F, 0x181F, 0x1C03, 0x0F, 0x101F, 0x1F1F], (64, 1))
    rows[::3, 2] = random.choice([0x1F, 0, 0x1C1F, 0x1E00], (len(rows[::3]), 32))
    rows[:40, 1] %= 40
    _, out = launch(SHUFFLES, "shuffles", rows, np.zeros((64 * 8 + 1, 32), np.uint32))
    for trial, (a, b, c) in enumerate(rows):
        for place, mode in enumerate(("up", "down", "bfly", "idx")):
            got = out[trial * 8 + 2 * place : trial * 8 + 2 * place + 2].T
            expected = [shuffled(mode, lane, a, int(b[lane]), int(c[lane])) for lane in range(32)]
            np.testing.assert_array_equal(got, expected, f"{mode} {b} {c}")
    np.testing.assert_array_equal(out[-1], LANES ^ 1)


# ---- votes and their like ----------------------------------------------------------------------------------------
VOTES = """
#define PREDICATE(TEXT) asm volatile("{ .reg .pred p, q; setp.ne.u32 p, %1, 0; " TEXT " selp.u32 %0, 1, 0, q; }" \\
                                     : "=r"(d) : "r"(a), "r"(mask)); *out = d; out += 32;
#define WORD(TEXT) asm volatile("{ .reg .pred p; setp.ne.u32 p, %1, 0; " TEXT " }" : "=r"(d) : "r"(a), "r"(mask)); \\
                   *out = d; out += 32;
extern "C" __global__ void votes(const unsigned* in, unsigned* out, const unsigned* masks) {
    out += threadIdx.x;
    for (int trial = 0; trial < 16; ++trial) {
        unsigned a = in[32 * trial + threadIdx.x], mask = masks[trial], d, p;
        if (!(mask >> threadIdx.x & 1)) { out += 32 * 20; continue; }
        PREDICATE("vote.sync.all.pred q, p, %2;") PREDICATE("vote.sync.any.pred q, p, %2;")
        PREDICATE("vote.sync.uni.pred q, p, %2;") PREDICATE("vote.sync.all.pred q, !p, %2;")
        WORD("vote.sync.ballot.b32 %0, p, %2;") WORD("vote.sync.ballot.b32 %0, !p, %2;")
        WORD("match.any.sync.b32 %0, %1, %2;")
        WORD("{ .reg .b64 w; mov.b64 w, {0, %1}; match.any.sync.b64 %0, w, %2; }")
        WORD("match.all.sync.b32 %0, %1, %2;") PREDICATE("match.all.sync.b32 _|q, %1, %2;")
        WORD("redux.sync.add.u32 %0, %1, %2;") WORD("redux.sync.add.s32 %0, %1, %2;")
        WORD("redux.sync.min.u32 %0, %1, %2;") WORD("redux.sync.max.u32 %0, %1, %2;")
        WORD("redux.sync.min.s32 %0, %1, %2;") WORD("redux.sync.max.s32 %0, %1, %2;")
        WORD("redux.sync.and.b32 %0, %1, %2;") WORD("redux.sync.or.b32 %0, %1, %2;")
        WORD("redux.sync.xor.b32 %0, %1, %2;")
        asm volatile("{ .reg .pred p; elect.sync %0|p, %2; selp.u32 %1, 1, 0, p; }" : "=r"(d), "=r"(p) : "r"(mask));
        *out = d << 8 | p; out += 32;
    }
}
"""


def voted(a, lanes):
    """What each of the instructions gives to each lane of the mask, in the kernel's order."""
    own = a[lanes]
    true, mask = own != 0, int((1 << lanes.astype(object)).sum())
    signed, same = own.view(np.int32), [int((1 << lanes[own == value].astype(object)).sum()) for value in own]
    everywhere = len(set(own.tolist())) == 1
    return [
        true.all(), true.any(), true.all() or not true.any(), not true.any(),
        int((1 << lanes[true].astype(object)).sum()), int((1 << lanes[~true].astype(object)).sum()),
        same, same,
        mask if everywhere else 0, everywhere,
        own.sum(dtype=np.uint32), own.sum(dtype=np.uint32),
        own.min(), own.max(), signed.min().view(np.uint32), signed.max().view(np.uint32),
        np.bitwise_and.reduce(own), np.bitwise_or.reduce(own), np.bitwise_xor.reduce(own),
        [lanes[0] << 8 | (lane == lanes[0]) for lane in lanes],
    ]  # fmt: skip


def test_votes_matches_and_reductions(launch):
    random = np.random.default_rng(3)
    rows = random.integers(0, 1 << 32, (16, 32), dtype=np.uint32)
    rows[::4] = 0
    rows[1::4] = random.integers(0, 3, (4, 32))
    rows[2] = 5
    masks = random.integers(1, 1 << 32, 16, dtype=np.uint32)
    masks[:6] = ALL
    _, out, _ = launch(VOTES, "votes", rows, np.zeros((16, 20, 32), np.uint32), masks)
    for a, got, mask in zip(rows, out, masks):
        lanes = LANES[(mask >> LANES & 1).astype(bool)]
        for place, expected in enumerate(voted(a, lanes)):
            expected = np.broadcast_to(expected, len(lanes))
            np.testing.assert_array_equal(got[place, lanes], expected, f"{place} {a} {mask:#x}")


def test_active_lanes_are_those_that_have_not_exited(launch):
    left = sum(1 << lane for lane in range(32) if lane % 3)
    source = f"""extern "C" __global__ void active(unsigned* out) {{
        if (threadIdx.x % 3 == 0) asm volatile("exit;");
        unsigned d;
        __syncwarp({left:#x}u); asm volatile("activemask.b32 %0;" : "=r"(d)); __syncwarp({left:#x}u);
        out[threadIdx.x] = d;
    }}"""
    (out,) = launch(source, "active", np.zeros(32, np.uint32))
    np.testing.assert_array_equal(out, np.where(LANES % 3, left, 0))


# ---- barriers ----------------------------------------------------------------------------------------------------
def test_barriers(launch):
    source = """
    __shared__ unsigned box[128];
    __device__ unsigned give(unsigned value, unsigned partner) {
        box[threadIdx.x] = value; asm volatile("bar.sync 0;" ::: "memory");
        unsigned got = box[partner]; asm volatile("barrier.sync.aligned 0, 128;" ::: "memory"); return got;
    }
    extern "C" __global__ void barriers(unsigned* out) {
        const unsigned i = threadIdx.x; unsigned d, p, q;
        out[i] = give(i + 1000, 127 - i);
        asm volatile("{ .reg .pred a; setp.lt.u32 a, %1, 5; bar.red.popc.u32 %0, 1, a; }" : "=r"(d) : "r"(i));
        out[128 + i] = d;
        asm volatile("{ .reg .pred a, b, c; setp.lt.u32 a, %2, 3; barrier.red.and.aligned.pred b, 2, 128, !a; "
                     "bar.red.or.pred c, 3, a; selp.u32 %0, 1, 0, b; selp.u32 %1, 1, 0, c; }"
                     : "=r"(p), "=r"(q) : "r"(i));
        out[256 + i] = p << 1 | q;
        if (i < 64) { box[i] = i; asm volatile("bar.arrive 4, 128;" ::: "memory"); }
        else { asm volatile("barrier.cta.sync 4, 128;" ::: "memory"); out[384 + i] = box[i - 64]; }
        if (i < 64) asm volatile("bar.sync 5, 64;" ::: "memory");
        __syncthreads();
        box[i] = 7 * i; asm volatile("bar.warp.sync 0xffffffff;" ::: "memory");
        out[512 + i] = box[i ^ 31];
    }"""
    (out,) = launch(source, "barriers", np.zeros((5, 128), np.uint32), block=128)
    i = np.arange(128)
    np.testing.assert_array_equal(out[0], 1000 + 127 - i)
    np.testing.assert_array_equal(out[1], 5)
    np.testing.assert_array_equal(out[2], 1)
    np.testing.assert_array_equal(out[3, 64:], i[:64])
    np.testing.assert_array_equal(out[4], 7 * (i ^ 31))


def test_fences_and_waits_are_taken(launch):
    fences = [f"fence.{order}.{scope};" for order in ("sc", "acq_rel") for scope in ("cta", "cluster", "gpu", "sys")]
    fences += ["membar.cta;", "membar.gl;", "membar.sys;", "nanosleep.u32 20;"]
    fences += ["fence.acquire.gpu;", "fence.release.gpu;"]
    text = " ".join(fences)
    source = f'extern "C" __global__ void fences(int* out) {{ asm volatile("{text}" ::: "memory"); *out = 1; }}'
    (out,) = launch(source, "fences", np.zeros(1, np.int32), block=1)
    assert out[0] == 1


# What orders the store of a value before its load in another block: the writer's part, the reader's, whether it does.
HANDSHAKES = {
    "release and acquire": ("st.release.gpu.global.u32 [%0], 1;", "ld.acquire.gpu.global.u32 %0, [%1];", True),
    "of the system": ("st.release.sys.u32 [%0], 1;", "ld.acquire.sys.u32 %0, [%1];", True),
    "of a block": ("st.release.cta.u32 [%0], 1;", "ld.acquire.cta.u32 %0, [%1];", False),
    "of a cluster": ("st.release.cluster.u32 [%0], 1;", "ld.acquire.cluster.u32 %0, [%1];", False),
    "relaxed": ("st.relaxed.gpu.u32 [%0], 1;", "ld.relaxed.gpu.u32 %0, [%1];", False),
    "volatile": ("st.volatile.u32 [%0], 1;", "ld.volatile.u32 %0, [%1];", False),
    "fences": ("fence.acq_rel.gpu; st.relaxed.gpu.u32 [%0], 1;", "ld.relaxed.gpu.u32 %0, [%1]; fence.sc.gpu;", True),
    "fences without order": ("fence.gpu; st.relaxed.gpu.u32 [%0], 1;", "ld.relaxed.gpu.u32 %0, [%1]; fence.sys;", True),
    "membar": ("membar.gl; st.volatile.global.u32 [%0], 1;", "ld.volatile.global.u32 %0, [%1]; membar.sys;", True),
    "membar of a block": ("membar.cta; st.volatile.u32 [%0], 1;", "ld.volatile.u32 %0, [%1]; membar.gl;", False),
    "fence of a cluster": ("fence.sc.cluster; st.relaxed.gpu.u32 [%0], 1;", "ld.acquire.gpu.u32 %0, [%1];", False),
    "volatile in place of acquire": ("st.release.gpu.u32 [%0], 1;", "ld.volatile.u32 %0, [%1];", False),
    "volatile in place of release": ("st.volatile.u32 [%0], 1;", "ld.acquire.gpu.u32 %0, [%1];", False),
    "no acquire": ("st.release.gpu.u32 [%0], 1;", "ld.relaxed.gpu.u32 %0, [%1];", False),
    "no release": ("st.relaxed.gpu.u32 [%0], 1;", "ld.acquire.gpu.u32 %0, [%1];", False),
    "atomics": ("red.release.gpu.global.add.u32 [%0], 1;", "atom.acquire.gpu.global.or.b32 %0, [%1], 0;", True),
    "of both": (
        "{ .reg .b32 t; atom.acq_rel.gpu.exch.b32 t, [%0], 1; }",
        "atom.acq_rel.gpu.cas.b32 %0, [%1], 7, 7;",
        True,
    ),
    "plain atomics": ("red.global.add.u32 [%0], 1;", "atom.global.or.b32 %0, [%1], 0;", False),
    "atomics of a block": ("red.release.cta.or.b32 [%0], 1;", "atom.acquire.cta.or.b32 %0, [%1], 0;", False),
}


@pytest.mark.parametrize("how", HANDSHAKES)
def test_orders_and_scopes_reach_the_machine(pytestconfig, how):
    give, take, ordered = HANDSHAKES[how]
    source = f"""extern "C" __global__ void pass(unsigned* box, unsigned* flag, unsigned* out) {{
        if (blockIdx.x == 0) {{ box[0] = 42; asm volatile("{give}" :: "l"(flag) : "memory"); return; }}
        unsigned seen = 0; while (!seen) asm volatile("{take}" : "=r"(seen) : "l"(flag) : "memory");
        out[0] = box[0];
    }}"""
    kernels = cuda_kernels(pytestconfig, source)
    arrays = [Array(name, 4, np.zeros(1, np.uint32), between_blocks=1) for name in ("box", "flag", "out")]
    outcome = kernels.run("pass", *arrays, grid=2, block=1, resident_blocks=2)
    kinds, value = set(outcome.kinds()), arrays[2].view()[0]
    for one in arrays:
        one.destroy()
    assert kinds == (set() if ordered else {"race"}), outcome.report
    assert value == 42


# ---- cp.async ----------------------------------------------------------------------------------------------------
def test_asynchronous_copies(launch):
    source = """
    extern __shared__ __align__(16) unsigned char box[];
    extern "C" __global__ void copies(const unsigned char* in, unsigned* out) {
        const unsigned i = threadIdx.x, to = (unsigned)__cvta_generic_to_shared(box) + 64 * i;
        unsigned* words = (unsigned*)(box + 64 * i);
        for (int k = 0; k < 16; ++k) words[k] = 0xaaaaaaaa;
        const unsigned char* from = in + 64 * i;
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" :: "r"(to), "l"(from) : "memory");
        asm volatile("cp.async.ca.shared::cta.global.L2::128B [%0+8], [%1+8], 8;" :: "r"(to), "l"(from) : "memory");
        asm volatile("cp.async.commit_group;");
        asm volatile("cp.async.cg.shared.global.L2::256B [%0+16], [%1+16], 16;" :: "r"(to), "l"(from) : "memory");
        asm volatile("cp.async.cg.shared.global [%0+32], [%1+32], 16, %2;"
                     :: "r"(to), "l"(from), "r"(i % 17) : "memory");
        asm volatile("{ .reg .pred p; setp.lt.u32 p, %2, 16; cp.async.cg.shared.global [%0+48], [%1+48], 16, p; }"
                     :: "r"(to), "l"(from), "r"(i) : "memory");
        asm volatile("cp.async.commit_group;"); asm volatile("cp.async.wait_group 1;" ::: "memory");
        out[16 * i] = words[0]; out[16 * i + 2] = words[2]; out[16 * i + 3] = words[3];
        asm volatile("cp.async.wait_all;" ::: "memory");
        out[16 * i + 1] = words[1];
        for (int k = 4; k < 16; ++k) out[16 * i + k] = words[k];
    }"""
    given = np.random.default_rng(4).integers(0, 256, (32, 64), dtype=np.uint8)
    _, out = launch(source, "copies", given, np.zeros((32, 16), np.uint32), shared=2048)
    expected = given.copy()
    expected[:, 4:8] = 0xAA
    for i in range(32):
        expected[i, 32 + i % 17 : 48] = 0
        expected[i, 48:] = 0 if i < 16 else given[i, 48:]
    np.testing.assert_array_equal(out.view(np.uint8).reshape(32, 64), expected)


def test_a_copy_still_under_way_must_not_be_read(pytestconfig):
    source = """
    extern "C" __global__ void early(const int* in, int* out) {
        __shared__ __align__(16) int box[8]; unsigned to = (unsigned)__cvta_generic_to_shared(box);
        asm volatile("cp.async.ca.shared.global [%0], [%1], 16; cp.async.commit_group;" :: "r"(to), "l"(in) : "memory");
        asm volatile("cp.async.ca.shared.global [%0+16], [%1+16], 16; cp.async.commit_group;"
                     :: "r"(to), "l"(in) : "memory");
        asm volatile("cp.async.wait_group 1;" ::: "memory");
        out[0] = box[0];
        out[1] = box[4];
        asm volatile("cp.async.wait_all;" ::: "memory");
    }"""
    kernels = cuda_kernels(pytestconfig, source)
    given, out = Array("in", 32, np.arange(8, dtype=np.int32)), Array("out", 8)
    outcome = kernels.run("early", given, out, block=1)
    assert len(outcome.kinds()) == 1 and "kernel.cu:9 " in outcome.report, outcome.report
    given.destroy()
    out.destroy()


# ---- special registers -------------------------------------------------------------------------------------------
SPECIAL = [
    "tid.x", "tid.y", "tid.z", "ntid.x", "ntid.y", "ntid.z", "ctaid.x", "ctaid.y", "ctaid.z", "nctaid.x",
    "nctaid.y", "nctaid.z", "laneid", "warpid", "nwarpid", "smid", "nsmid", "lanemask_eq", "lanemask_le",
    "lanemask_lt", "lanemask_ge", "lanemask_gt", "total_smem_size", "dynamic_smem_size", "cluster_ctaid.x",
    "cluster_nctaid.y", "clusterid.z", "nclusterid.x", "cluster_ctarank", "cluster_nctarank", "is_explicit_cluster",
]  # fmt: skip


def test_special_registers(launch):
    reads = "".join(f'asm volatile("mov.u32 %0, %%{name};" : "=r"(d)); *out++ = d;' for name in SPECIAL[:-1])
    source = f"""
    __shared__ volatile int fixed[5]; extern __shared__ int rest[];
    extern "C" __global__ void registers(unsigned* out) {{
        unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x, d;
        unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
        if (thread == 0) {{ fixed[0] = 1; rest[0] = fixed[0]; }}
        out += (block * 40 + thread) * {len(SPECIAL) + 2};
        {reads}
        asm volatile("{{ .reg .pred p; mov.pred p, %%is_explicit_cluster; selp.u32 %0, 1, 0, p; }}" : "=r"(d));
        *out++ = d; unsigned long long first, second;
        asm volatile("mov.u64 %0, %%clock64; mov.u64 %1, %%globaltimer;" : "=l"(first), "=l"(second));
        *out++ = first < second;
        asm volatile("mov.u32 %0, WARP_SZ;" : "=r"(d)); *out++ = d;
    }}"""
    grid, block = (3, 2, 2), (5, 4, 2)
    out = np.zeros((12, 40, len(SPECIAL) + 2), np.uint32)
    (out,) = launch(source, "registers", out, grid=grid, block=block, shared=64)
    for b in range(12):
        for t in range(40):
            tid, ctaid = (t % 5, t // 5 % 4, t // 20), (b % 3, b // 3 % 2, b // 6)
            lane = t % 32
            expected = [*tid, *block, *ctaid, *grid, lane, t // 32, 2, 0, 1]
            expected += [1 << lane, (2 << lane) - 1, (1 << lane) - 1]
            expected += [ALL & ~((1 << lane) - 1), ALL & ~((2 << lane) - 1), 32 + 64, 64]
            expected += [0, 1, ctaid[2], grid[0], 0, 1, 0, 1, 32]
            assert out[b, t].tolist() == expected
