"""Every kernel for every architecture: what ptxas makes of it fits the hardware, and the plain path is mostly products.

Each level compiles every kernel for each architecture that runs it: TEST_LEVEL=1 the largest variant of each dtype and
few more, TEST_LEVEL=2 every one of `matrix_variants` for one architecture at least, TEST_LEVEL=3 each of these for all.
"""

import functools
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import sass
from kernels import need_nvrtc
from levels import TEST_LEVEL

from cuflash import _configs, _gpu_decode_plan, _kernels, _params
from cuflash._runtime import images, nvrtc

# Shared memory that a block may have, bytes: CUDA C++ programming guide, table of technical specifications.
SMEM_BLOCK = {
    "sm_75": 64 << 10, "sm_80": 163 << 10, "sm_86": 99 << 10, "sm_89": 99 << 10,
    "sm_90a": 227 << 10, "sm_100a": 227 << 10, "sm_120": 99 << 10,
}  # fmt: skip
ARCHS = tuple(SMEM_BLOCK)
REGISTERS = 65536  # of a multiprocessor; a thread gets a multiple of 8
CODED = ("decode_mma", "decode_simt")
PTX_MOST = 6000  # instructions of a kernel: the emulator translates each to C++


@functools.cache
def matrix_variants():
    """The variants that are compiled: all but some of those that decode codes.

    Of these, one for each kernel, dtype and class: that with the most queries, the kinds of codes taking turns.
    """
    plain, coded = [], {}
    for variant in _kernels.variants():
        config = dict(variant.config)
        if variant.kernel in CODED and config["codes"] != "Codes::none":
            coded.setdefault((variant.kernel, config["dtype"], config["value_dim"]), []).append(variant)
        else:
            plain.append(variant)
    for turn, group in enumerate(coded.values()):
        kinds = sorted({dict(variant.config)["codes"] for variant in group})
        kind = kinds[turn % len(kinds)]
        plain.append(max(group, key=lambda one: (dict(one.config)["codes"] == kind, dict(one.config)["q_tile"])))
    return plain


@functools.cache
def chosen(level):
    """Pairs of a variant and an architecture that are compiled at a level."""
    of_kernel = {}
    for variant in matrix_variants():
        of_kernel.setdefault(variant.kernel, []).append(variant)
    sample = {1: each_dtype, 2: each_variant}.get(level, all_pairs)
    return {pair for group in of_kernel.values() for pair in sample(group)}


def all_pairs(group):
    """The variants of a kernel, each for all that choose it."""
    return {(variant, arch) for variant in group for arch in planned(variant)}


def each_dtype(group):
    """Each dtype's largest variant, for architectures in turn; the smallest for those that remain."""

    def size(variant):
        config = dict(variant.config)
        return config.get("value_dim", config.get("columns", 0)), config.get("q_tile", 0)

    rising = sorted(group, key=size)
    largest = {dict(variant.config).get("dtype"): variant for variant in rising}.values()
    some = set()
    for i, variant in enumerate(largest):
        archs = planned(variant)
        some.add((variant, archs[2 * i % len(archs)]))
    return with_each_arch(some, rising, lambda i, fitting: fitting[:1])


def each_variant(group):
    """Each variant for architectures in turn; variants in turn for those that remain."""
    some = set()
    for i, variant in enumerate(group):
        archs = planned(variant)
        some.add((variant, ARCHS[i % len(ARCHS)] if ARCHS[i % len(ARCHS)] in archs else archs[i % len(archs)]))
    return with_each_arch(some, group, lambda i, fitting: fitting[i % max(1, len(fitting)) :][:1])


def with_each_arch(some, group, pick):
    """`some`, and of those that fit an architecture which it lacks what `pick` takes."""
    added = set()
    for i, arch in enumerate(ARCHS):
        if all(arch != other for _, other in some):
            added |= {(variant, arch) for variant in pick(i, [one for one in group if arch in planned(one)])}
    return some | added


@functools.cache
def planned(variant):
    """The architectures for which a variant is chosen: they have its instructions, and it is the best that fits."""
    if variant.kernel != "fwd_mma":
        return [arch for arch in ARCHS if _kernels.runs_on(variant, arch)]
    config = dict(variant.config)
    sizes = config["dtype"].partition("::")[2], config["head_dim"], config["value_dim"]
    fitting = [arch for arch in ARCHS if _kernels.runs_on(variant, arch)]
    return [arch for arch in fitting if _configs.best_fwd_mma(*sizes, SMEM_BLOCK[arch]).spec == variant]


@pytest.fixture(autouse=True, scope="module")
def kept():
    """Kernels are compiled, and once for each text."""
    need_nvrtc()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CUFLASH_CUBIN_DIR", raising=False)
        yield


@pytest.fixture(scope="module")
def facts():
    """Threads, blocks of a multiprocessor and bytes of shared memory of each variant, as NVRTC evaluates them."""
    variants = matrix_variants()
    source = nvrtc.read_source(variants[0], "compute_75")
    files = sorted({_kernels.KERNELS[variant.kernel].file for variant in variants})
    text = "".join(f'#include "{file}"\n' for file in files)
    members = ("THREADS", "BLOCKS_PER_SM", "SMEM_BYTES")
    numbers = ", ".join(f"{_kernels.instance(variant)}::{name}" for variant in variants for name in members)
    source = source._replace(text=f'{text}extern "C" __constant__ int facts[] = {{{numbers}}};\n')
    ptx = nvrtc.compile_source(source).image.decode()
    size, listed = re.search(r"\.b8 facts\[(\d+)\] = \{([^}]*)\}", ptx).groups()
    data = bytes(map(int, listed.split(","))).ljust(int(size), b"\0")  # the list ends with the last byte that is not 0
    found = np.frombuffer(data, "<i4").reshape(len(variants), len(members)).tolist()
    return dict(zip(variants, found, strict=True))


def in_threads(work, given):
    """What two threads make of each; NVRTC lets go of the interpreter's lock."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(work, given))


def test_the_register_is_covered():
    """Each kernel, dtype and class; at every level each kernel and dtype, and each kernel for each architecture."""
    variants, everything = matrix_variants(), _kernels.variants()
    assert len(variants) == len(set(variants)) <= 170

    def kinds(some):
        keys = ("dtype", "value_dim", "columns")
        return {(variant.kernel, *map(dict(variant.config).get, keys)) for variant in some}

    assert kinds(variants) == kinds(everything)
    assert {variant for variant in everything if variant.kernel not in CODED} <= set(variants)
    assert len(chosen(3)) == sum(len(planned(variant)) for variant in variants)
    for level in (1, 2, 3):
        pairs = chosen(level)
        dtypes = {(variant.kernel, dict(variant.config).get("dtype")) for variant, _ in pairs}
        assert dtypes == {(variant.kernel, dict(variant.config).get("dtype")) for variant in variants}
        assert level == 1 or {variant for variant, _ in pairs} == set(variants)
        kernels = {(variant.kernel, arch) for variant, arch in pairs}
        assert len(kernels) == len(_kernels.KERNELS) * len(ARCHS) - 2  # decode_mma and decode_fma are not for sm_75
    assert chosen(2) <= chosen(3) and chosen(1) <= chosen(3)


@pytest.mark.grows
@pytest.mark.parametrize("arch", ARCHS)
def test_ptxas_keeps_to_the_budget(arch, facts):
    """No spills, no more registers than `blocks` leave, no warning, and shared memory that a block may have."""
    variants = [variant for variant in facts if (variant, arch) in chosen(TEST_LEVEL)]
    compiled = in_threads(lambda variant: images.obtain(variant, arch), variants)
    wrong = [
        (variant, complaint)
        for variant, one in zip(variants, compiled, strict=True)
        for complaint in complaints(one, *facts[variant], SMEM_BLOCK[arch])
    ]
    assert not wrong, "\n".join(f"{variant}: {complaint}" for variant, complaint in wrong)


def complaints(compiled, threads, blocks, smem_bytes, smem_most):
    """What is wrong with a cubin."""
    budget = min(255, REGISTERS // (threads * blocks) // 8 * 8)
    if not 0 < compiled.registers <= budget:
        yield f"{compiled.registers} registers, budget {budget}"
    spills = [int(number) for number in re.findall(r"(\d+) bytes spill", compiled.log)]
    if len(spills) < 2 or any(spills):
        yield f"bytes spilled: {spills}"
    for line in compiled.log.splitlines():
        if re.search(r"\bC75\d\d\b|warning|error", line, re.IGNORECASE):
            yield line
    if smem_bytes > smem_most:
        yield f"{smem_bytes} bytes of shared memory, at most {smem_most}"


def test_what_is_complained_of():
    log = "0 bytes stack frame, {} bytes spill stores, {} bytes spill loads\nUsed {} registers\n{}"
    fine = nvrtc.Compiled(b"", log.format(0, 0, 128, ""))
    assert not list(complaints(fine, 128, 4, 65536, 65536))
    assert list(complaints(fine, 128, 5, 65536, 65536)) == ["128 registers, budget 96"]
    assert list(complaints(fine, 128, 4, 65537, 65536)) == ["65537 bytes of shared memory, at most 65536"]
    spilled = nvrtc.Compiled(b"", log.format(0, 8, 128, ""))
    assert list(complaints(spilled, 128, 4, 0, 65536)) == ["bytes spilled: [0, 8]"]
    told = "ptxas info : (C7519) Potential Performance Loss: wgmma.mma_async instructions are serialized"
    assert list(complaints(nvrtc.Compiled(b"", log.format(0, 0, 128, told)), 128, 4, 0, 65536)) == [told]


def test_launches_around_a_cache_have_the_kernels_threads_and_shared_memory(facts):
    """The other launches are compared in test_gpu_plan.py and test_gpu_decode_plan.py."""
    steps = [
        _gpu_decode_plan.append_step(dtype, codes, 1, 1)
        for dtype in _kernels.DTYPES
        for codes in _params.CODES
        if dtype != "float64" or codes == "none"
    ]
    steps += [_gpu_decode_plan.copy_pages_step(1, 1), _gpu_decode_plan.scatter_step()]
    for step in steps:
        threads, _, smem_bytes = facts[step.spec]
        assert (step.spec, step.threads, step.smem_bytes) == (step.spec, threads, smem_bytes)


@pytest.mark.grows
def test_ptx_is_short():
    """Options are applied in loops that are not unrolled: see fwd_simt.cu. TEST_LEVEL=1 looks at those of sm_90a."""
    variants = sorted({variant for variant, arch in chosen(TEST_LEVEL) if TEST_LEVEL > 1 or arch == "sm_90a"})
    ptx = in_threads(lambda variant: images.obtain(variant, "compute_90", ("-lineinfo",)).image.decode(), variants)
    counts = {
        one: len(re.findall(r"^\t[a-z@].*;$", text, re.MULTILINE)) for one, text in zip(variants, ptx, strict=True)
    }
    assert min(counts.values()) > 0
    assert not {variant: count for variant, count in counts.items() if count > PTX_MOST}


# The loops that a full tile of 64 queries and 64 keys goes through at d = dv = 64, in order of address: how often, and
# those inside. A thread loads 8 numbers in one round; the options, which are not given, go through no round.
TILE_LOOPS = [
    (2, [(2, []), (2, []), (8, [])]),  # chunks of 32 features: rows of q, rows of k, products
    (0, []),
    (4, []),  # rows of v
    (16, []),  # products
]
PRODUCTS = 2 * 64 * 64 * 64 // 128  # of a thread


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_120"])
def test_the_plain_path_is_mostly_products(arch):
    """40 % of the issue slots of fwd_simt are FFMA: float32, a multiprocessor issues as many of them as of anything."""
    disassembler = sass.find_disassembler()
    if disassembler is None:
        pytest.skip("no nvdisasm: pip install nvidia-cuda-nvdisasm for the count of fwd_simt's instructions")
    variant = _configs.fwd_simt("float32", 64, 64).spec
    code = sass.disassemble(disassembler, images.obtain(variant, arch).image)
    (tile,) = [loop for loop in sass.loops(code) if len(loop.inner) > 2]
    counts = sass.count(code, tile, (1, TILE_LOOPS))
    # If the loops were others than those stated, their products would not be those that the tile has.
    assert PRODUCTS <= counts["FFMA"] <= 1.2 * PRODUCTS, counts
    assert PRODUCTS / counts.total() >= 0.4, counts


def rows_of_fwd_mma():
    """Pairs of a variant, and an architecture that it is chosen for: at TEST_LEVEL=2 of d = dv = 128."""
    pairs = chosen(3 if TEST_LEVEL > 1 else 1)
    rows = [row for row in pairs if row[0].kernel == "fwd_mma" and row[1] in ("sm_80", "sm_90a", "sm_120")]
    return [row for row in rows if TEST_LEVEL != 2 or dict(row[0].config)["head_dim"] == 128]


@pytest.mark.grows
def test_fwd_mma_feeds_the_tensor_cores():
    """Each product once; a load for every four of them where a warp has 32 rows; nothing through local memory."""
    disassembler = sass.find_disassembler()
    if disassembler is None:
        pytest.skip("no nvdisasm: pip install nvidia-cuda-nvdisasm for the count of fwd_mma's instructions")
    rows = rows_of_fwd_mma()
    codes = in_threads(lambda row: sass.disassemble(disassembler, images.obtain(*row).image), rows)
    for (variant, arch), code in zip(rows, codes, strict=True):
        config, counts = dict(variant.config), Counter(code.names)
        kv_tile, threads = config["kv_tile"], 32 * config["warps"]
        row_tiles, dims = config["q_tile"] // 16 // config["warps"], config["head_dim"] + config["value_dim"]
        copied = (config["q_tile"] + 2 * kv_tile) * config["head_dim"] + kv_tile * config["value_dim"]
        expected = {
            "HMMA": row_tiles * (kv_tile // 8) * (config["head_dim"] // 16 + config["value_dim"] // 16),
            "LDSM": row_tiles * config["head_dim"] // 16 + (kv_tile // 16) * dims // 16,
            "LDGSTS": copied // 8 // threads,  # of 16 bytes: q, keys before the loop and in it, values
            "LDL": 0,
            "STL": 0,
        }
        assert {name: counts[name] for name in expected} == expected, (variant, arch)
